//! TLS (RFC 8446, RFC 5246): every transport over it, sessions, and clients that speak it badly or not at all.
//! Beside these, the tests of the transports run over TLS too: `PUSHLINE_TLS=1 cargo test --test black_box sse::`.

use crate::common;
mod certificates;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::http::{Conn, get, poll, post};
use common::server::{Server, descriptors, settled};
use common::sse::Stream;
use common::tls::{ClientTls, Files, Identity, TlsServer, client, speaks_tls};
use common::ws::{Message, PING, PONG, Socket, V1, text_of};
use common::{DEADLINE, receive_buffer, until};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, HandshakeKind, SupportedProtocolVersion};
use serde_json::json;

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&TLS13], &[&TLS12]];

/// Publishes; the message's id.
#[track_caller]
fn publish(addr: SocketAddr, channel: &str, text: &str) -> String {
    let answer = post(addr, &format!("/channels/{channel}"), &[("Content-Type", "text/plain")], text);
    let id = answer.expect(201).json()["published"][0]["id"].clone();
    id.as_str().expect("an id").to_owned()
}

/// A handshake by hand: the client's half, its socket, and how it went.
fn shake(
    addr: SocketAddr,
    config: &Arc<rustls::ClientConfig>,
    name: &str,
) -> (ClientTls, TcpStream, std::io::Result<()>) {
    let mut stream = TcpStream::connect(addr).expect("the server accepts");
    stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
    let mut tls = ClientTls::new(Arc::clone(config), name);
    let done = tls.conn.complete_io(&mut stream).map(drop);
    (tls, stream, done)
}

/// The alert with which a handshake was refused.
#[track_caller]
fn alert_of(done: std::io::Result<()>) -> AlertDescription {
    let error = done.expect_err("a refusal");
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error:?}"),
    }
}

#[test]
fn every_transport_resumes_over_tls() {
    for versions in VERSIONS {
        let server = TlsServer::start(&[]);
        let addr = server.tls;
        speaks_tls(addr, client(&[&server.identity], versions));
        let first = publish(addr, "news", "one");

        // Each transport is cut after its first message, and another goes on from where it was.
        let mut events = Stream::open(addr, &format!("/channels/news?cursor={first}"));
        publish(server.plain, "news", "two");
        let two = events.message();
        assert_eq!(two.data, "two");
        drop(events);

        publish(addr, "news", "three");
        let polled = poll(addr, &format!("/channels/news?wait=10&cursor={}", two.id));
        assert_eq!(polled.data(), ["three"]);

        let mut waiting = Conn::open(addr);
        waiting.send("GET", &format!("/channels/news?wait=20&cursor={}", polled.cursor), &[], "");
        publish(addr, "news", "four");
        assert_eq!(waiting.read_response().expect(200).json()["messages"][0]["data"], "four");
        // Kept alive: the next request comes by the same connection.
        let polled = waiting.get("/channels/news").expect(200).json();
        assert_eq!(polled["messages"][0]["data"], "four");
        let cursor = polled["cursor"].as_str().expect("a cursor").to_owned();

        let mut v1 = V1::open(addr, "/channels");
        v1.send(json!({"type": "subscribe", "channel": "news", "cursor": cursor}));
        v1.expect("subscribed");
        v1.send(json!({"type": "publish", "channel": "news", "data": "five", "seq": 1}));
        let mut kinds = [v1.next(), v1.next()];
        kinds.sort_by_key(|value| value["type"].to_string());
        assert_eq!((&kinds[0]["data"], &kinds[1]["type"]), (&json!("five"), &json!("published")));

        let mut raw = Socket::open(addr, &format!("/channels/news?cursor={cursor}"));
        assert_eq!(raw.expect_text(), "five");
        raw.text("six");
        assert_eq!(raw.expect_text(), "six");
        raw.send(true, PING, "are you there");
        let pong = raw.frame().expect("a pong");
        assert_eq!((pong.opcode, &pong.payload[..]), (PONG, &b"are you there"[..]));
        raw.close(1000, "");
        raw.expect_close(1000);
        assert!(!raw.conn().tls().is_cut, "the end is told by TLS too");
        assert_eq!(raw.conn().tls().conn.protocol_version(), Some(versions[0].version));
        assert_eq!(raw.conn().tls().conn.alpn_protocol(), None);
    }
}

/// Far larger than a record, and than what a socket takes at once: whole and in order, to slow readers too.
#[test]
fn large_messages_arrive_whole_at_slow_readers() {
    const BYTES: usize = 3_000_000;
    let server = TlsServer::start(&[
        "--set",
        "limits.message_bytes=4MiB",
        "--set",
        "history.bytes=64MiB",
        "--set",
        "feed.bytes=16MiB",
    ]);
    let addr = server.tls;
    let text = |number: usize| -> String {
        let mut text = format!("{number}:");
        text.extend((0..BYTES).map(|at| char::from(b'a' + ((at * 7 + at / 26 + number) % 26) as u8)));
        text
    };
    let mut events = Stream::open(addr, "/channels/big");
    let mut raw = Socket::open(addr, "/channels/big");
    let (mut v1, _) = V1::subscribed(addr, "big");
    receive_buffer(events.conn().stream(), 16 * 1024);
    receive_buffer(raw.conn().stream(), 16 * 1024);
    for number in 0..4 {
        publish(addr, "big", &text(number));
    }
    // What the client asks for meanwhile goes between records, not into them.
    raw.send(true, PING, "1");
    raw.send(true, PING, "2");
    for number in 0..4 {
        let want = text(number);
        assert!(events.message().data == want, "SSE, message {number}");
        assert!(raw.expect_text() == want, "raw, message {number}");
        assert!(text_of(&v1.expect("message"), "data") == want, "v1, message {number}");
    }
}

/// Many small messages while nobody reads: encrypted bytes are owed, then the feed, then history goes on.
#[test]
fn slow_readers_get_everything_once_and_in_order() {
    const MESSAGES: usize = 6_000;
    // Less than two segments of loopback's would have TCP itself wait, longer each time.
    const RECEIVE_BYTES: libc::c_int = 128 * 1024;
    let server = TlsServer::start(&[
        "--set",
        "feed.bytes=64KiB",
        "--set",
        "history.messages=100000",
        "--set",
        "history.bytes=64MiB",
        "--set",
        "slow.kernel_bytes=65KiB",
    ]);
    let addr = server.tls;
    let mut streams: Vec<Stream> = (0..4).map(|_| Stream::open(addr, "/channels/many")).collect();
    let mut joined = Stream::open(addr, "/channels/many,other");
    let (mut v1, _) = V1::subscribed(addr, "many");
    for stream in &mut streams {
        receive_buffer(stream.conn().stream(), RECEIVE_BYTES);
    }
    receive_buffer(joined.conn().stream(), RECEIVE_BYTES);
    receive_buffer(v1.socket.conn().stream(), RECEIVE_BYTES);
    let filler = "x".repeat(1_000);
    let lines: Vec<String> = (0..MESSAGES)
        .map(|number| json!({"channel": "many", "data": format!("{number} {filler}")}).to_string())
        .collect();
    for part in lines.chunks(500) {
        common::http::batch(server.plain, &part.join("\n"));
    }
    let number = |text: &str| text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    for want in 0..MESSAGES {
        for stream in &mut streams {
            assert_eq!(number(&stream.message().data), want);
        }
        let event = joined.message();
        assert_eq!(number(event.json()["data"].as_str().expect("text")), want);
        assert_eq!(number(&text_of(&v1.expect("message"), "data")), want);
    }
}

/// Each byte of the client's in a segment of its own.
#[test]
fn a_handshake_and_a_request_come_byte_by_byte() {
    for versions in VERSIONS {
        let server = TlsServer::start(&[]);
        let config = Arc::new(client(&[&server.identity], versions));
        let mut stream = TcpStream::connect(server.tls).expect("the server accepts");
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
        let mut tls = ClientTls::new(config, "localhost");
        let mut answer = Vec::new();
        let mut asked = false;
        while !String::from_utf8_lossy(&answer).contains("\"cursor\"") {
            let mut out = Vec::new();
            while tls.conn.wants_write() {
                tls.conn.write_tls(&mut out).expect("a vector");
            }
            for byte in out {
                stream.write_all(&[byte]).expect("the server reads");
            }
            if !tls.conn.is_handshaking() && !asked {
                asked = true;
                let request = format!("GET /channels/news HTTP/1.1\r\nHost: {}\r\n\r\n", server.tls);
                tls.conn.writer().write_all(request.as_bytes()).expect("room");
                continue;
            }
            tls.conn.read_tls(&mut stream).expect("bytes");
            tls.conn.process_new_packets().expect("records");
            let mut part = [0; 4096];
            while let Ok(bytes @ 1..) = tls.conn.reader().read(&mut part) {
                answer.extend_from_slice(&part[..bytes]);
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
}

#[test]
fn sessions_are_resumed_also_after_certificates_were_loaded_anew() {
    for versions in VERSIONS {
        let mut server = TlsServer::start(&[]);
        speaks_tls(server.tls, client(&[&server.identity], versions));
        let kind = |addr| {
            let mut conn = Conn::open(addr);
            conn.get("/healthz").expect(200);
            // A ticket of TLS 1.3 comes behind the handshake.
            conn.get("/healthz").expect(200);
            conn.tls().conn.handshake_kind()
        };
        assert_eq!(kind(server.tls), Some(HandshakeKind::Full), "{versions:?}");
        assert_eq!(kind(server.tls), Some(HandshakeKind::Resumed), "{versions:?}");
        server.server.signal(libc::SIGHUP);
        server.server.wait_log(|line| line.contains("\"certificate\""));
        assert_eq!(kind(server.tls), Some(HandshakeKind::Resumed), "{versions:?}");
    }
}

#[test]
fn protocols_and_versions_that_are_not_spoken_are_refused() {
    let server = TlsServer::start(&[]);
    let with = |protocols: &[&str]| {
        let mut config = client(&[&server.identity], rustls::DEFAULT_VERSIONS);
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        shake(server.tls, &Arc::new(config), "localhost")
    };
    let (tls, _, done) = with(&["h2", "http/1.1"]);
    done.expect("one of both is spoken");
    assert_eq!(tls.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(alert_of(with(&["h2"]).2), AlertDescription::NoApplicationProtocol);

    for version in ["-tls1_1", "-tls1"] {
        // OpenSSL sends no signature algorithms where it offers nothing newer.
        let told = openssl(server.tls, &[version, "-cipher", "ALL:@SECLEVEL=0"], "");
        let told = told.replace("alert handshake failure", "alert protocol version");
        assert!(told.contains("alert protocol version"), "{version}: {told}");
    }
}

/// What `openssl s_client` says, given `input`.
fn openssl(addr: SocketAddr, args: &[&str], input: &str) -> String {
    let mut child = Command::new("timeout")
        .args([&DEADLINE.as_secs().to_string(), "openssl", "s_client", "-connect", &addr.to_string()])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl is installed");
    // It may have ended by then.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("our own child");
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn openssl_resumes_and_is_answered() {
    let server = TlsServer::start(&[]);
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", server.tls);
    for version in ["-tls1_2", "-tls1_3"] {
        let session = server.dir().join("session");
        let session = session.to_str().expect("UTF-8");
        let told = openssl(server.tls, &[version, "-ign_eof", "-sess_out", session], &request);
        assert!(told.contains("HTTP/1.1 200 OK") && told.contains("New, TLSv1"), "{version}: {told}");
        let told = openssl(server.tls, &[version, "-ign_eof", "-sess_in", session], &request);
        assert!(told.contains("HTTP/1.1 200 OK") && told.contains("Reused, TLSv1"), "{version}: {told}");
    }
    // Without tickets, by the session's id.
    let told = openssl(server.tls, &["-tls1_2", "-no_ticket", "-reconnect"], "Q\n");
    assert!(told.matches("Reused, TLSv1.2").count() >= 4, "{told}");
    // Nobody may begin anew in the middle.
    let told = openssl(server.tls, &["-tls1_2"], "R\n");
    assert!(told.contains("no renegotiation"), "{told}");
}

#[test]
fn curl_is_answered() {
    let server = TlsServer::start(&[]);
    let file = server.dir().join("own.pem");
    let url = format!("https://localhost:{}/channels/news", server.tls.port());
    let curl = |args: &[&str]| {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20", "--cacert", file.to_str().expect("UTF-8")])
            .args(args)
            .output()
            .expect("curl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let large = "z".repeat(60_000);
    assert!(curl(&["--data", &large, &url]).contains("\"published\""));
    // Two requests by one connection, both protocols offered.
    let got = curl(&["--http2", &url, &url]);
    assert_eq!(got.matches(&large).count(), 2);
}

/// Whoever speaks HTTP to the port for TLS is told so; whoever speaks neither is told in TLS.
#[test]
fn what_is_no_tls_is_answered_shortly() {
    let server = TlsServer::start(&[]);
    for text in ["GET / HTTP/1.1\r\nHost: x\r\n\r\n", "POST /channels/a HTTP/1.1\r\n", "g"] {
        let mut stream = TcpStream::connect(server.tls).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
        stream.write_all(text.as_bytes()).expect("the server reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an end without a reset");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert!(head.contains("Content-Type: text/plain") && head.contains("Connection: close"), "{answer}");
        assert!(body.contains("https://"), "{answer}");
    }
    for bytes in [&b"\x00\x01\x02\x03\x04\x05\x06"[..], &[0x16, 3, 1, 0xFF, 0xFF, 1], &[0x80, 0x2E, 1, 0, 2]]
    {
        let mut stream = TcpStream::connect(server.tls).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
        stream.write_all(bytes).expect("the server reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an end without a reset");
        assert!(answer.starts_with(&[0x15, 3]) && answer.len() == 7, "an alert: {answer:?}");
    }
}

#[test]
fn a_handshake_has_a_deadline() {
    let server = TlsServer::start(&["--set", "timeouts.head_seconds=0.4"]);
    let config = Arc::new(client(&[&server.identity], rustls::DEFAULT_VERSIONS));
    let mut hello = Vec::new();
    ClientTls::new(config, "localhost").conn.write_tls(&mut hello).expect("a vector");
    for bytes in [0, 1, 5, hello.len() / 2, hello.len() - 1, hello.len()] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(server.tls).expect("the server accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
        stream.write_all(&hello[..bytes]).expect("the server reads");
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(ended.is_ok(), "{bytes} bytes: {ended:?}");
        assert!(begun.elapsed() >= Duration::from_millis(300), "{bytes} bytes: at once");
        assert_eq!(answer.is_empty(), bytes < hello.len(), "{bytes} bytes: {answer:?}");
    }
    // One that makes it in time is held to other deadlines.
    let mut events = Stream::open(server.tls, "/channels/news");
    events.quiet(Duration::from_secs(1));
}

/// What comes is neither decrypted nor believed; nobody else notices.
#[test]
fn changed_records_end_the_connection_alone() {
    let server = TlsServer::start(&[]);
    let config = Arc::new(client(&[&server.identity], rustls::DEFAULT_VERSIONS));
    let mut other = Stream::open(server.tls, "/channels/news");
    let (mut tls, mut stream, done) = shake(server.tls, &config, "localhost");
    done.expect("a handshake");
    tls.conn.writer().write_all(b"GET / HTTP/1.1\r\n\r\n").expect("room");
    let mut record = Vec::new();
    tls.conn.write_tls(&mut record).expect("a vector");
    *record.last_mut().expect("bytes") ^= 1;
    stream.write_all(&record).expect("the server reads");
    let error = tls.read(&mut stream, &mut [0; 100]).expect_err("no answer to that");
    assert_eq!(alert_of(Err(error)), AlertDescription::BadRecordMac);
    publish(server.tls, "news", "unharmed");
    assert_eq!(other.message().data, "unharmed");
}

/// TLS 1.3 lets either side change its keys at any time.
#[test]
fn keys_are_renewed_when_the_client_asks() {
    let server = TlsServer::start(&[]);
    speaks_tls(server.tls, client(&[&server.identity], &[&TLS13]));
    let mut raw = Socket::open(server.tls, "/channels/news");
    let mut idle = Conn::open(server.tls);
    idle.get("/healthz").expect(200);
    for round in 0..5 {
        raw.conn().tls().conn.refresh_traffic_keys().expect("TLS 1.3");
        raw.text(&format!("round {round}"));
        assert_eq!(raw.expect_text(), format!("round {round}"));
        publish(server.tls, "news", "more");
        assert_eq!(raw.expect_text(), "more");
        // Nothing but the keys comes on a connection between requests.
        idle.tls().conn.refresh_traffic_keys().expect("TLS 1.3");
        idle.get("/healthz").expect(200);
    }
}

/// A client that says goodbye by TLS is gone; one that asks first is answered first.
#[test]
fn the_clients_goodbye_is_heard() {
    let server = TlsServer::start(&[]);
    let mut conn = Conn::open(server.tls);
    conn.get("/healthz").expect(200);
    conn.close_notify();
    conn.eof();
    assert!(!conn.tls().is_cut);
    for target in ["/channels/news", "/healthz"] {
        let mut conn = Conn::open(server.tls);
        conn.send("GET", target, &[], "");
        conn.close_notify();
        conn.read_response().expect(200);
    }
    let mut events = Stream::open(server.tls, "/channels/news");
    events.conn().close_notify();
    events.ended();
    assert!(!events.conn().tls().is_cut);
}

#[test]
fn a_drain_is_told_over_tls() {
    let mut server = TlsServer::start(&["--set", "drain.window_seconds=1"]);
    let addr = server.tls;
    let mut idle = Conn::open(addr);
    idle.get("/healthz").expect(200);
    let mut events = Stream::open(addr, "/channels/news");
    let (mut v1, cursor) = V1::subscribed(addr, "news");
    let mut raw = Socket::open(addr, "/channels/news");
    let mut waiting = Conn::open(addr);
    waiting.send("GET", &format!("/channels/news?wait=30&cursor={cursor}"), &[], "");
    publish(addr, "other", "so that the poll is held by now");
    server.server.signal(libc::SIGTERM);
    idle.eof();
    assert!(!idle.tls().is_cut, "an idle connection is told by TLS");
    let close = events.event().named("$close");
    assert_eq!(close.json()["reason"], "drain");
    events.ended();
    assert!(!events.conn().tls().is_cut);
    assert_eq!(v1.expect("closing")["reason"], "drain");
    assert_eq!(v1.socket.message(), Message::Close(1012));
    assert_eq!(raw.message(), Message::Close(1012));
    let answer = waiting.read_response().expect(204);
    assert!(answer.closes() && answer.get("retry-after").is_some(), "{answer}");
    drop((v1, raw));
    assert_eq!(server.server.wait_exit(), 0);
}

#[test]
fn a_port_for_tls_is_taken_over() {
    let mut old = TlsServer::start(&["--set", "drain.window_seconds=1"]);
    let addr = old.tls;
    let mut events = Stream::open(addr, "/channels/news");
    let files = Files::new();
    let certificates = format!("tls.certificates=[{}]", old.identity.write(&files.0, "same"));
    let listen = format!("tls.listen={addr}");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let new = std::thread::scope(|scope| {
        let stop = &stop;
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    let mut answered = 0;
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let mut conn = Conn::try_open(addr).expect("nobody is refused");
                        conn.send("GET", "/channels/news?limit=0", &[], "");
                        conn.try_read_response().expect("nobody is cut off").expect(200);
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        let new = Server::start(&["--set", &listen, "--set", &certificates, "--takeover"]);
        old.server.signal(0);
        assert_eq!(old.server.wait_exit(), 0);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let answered: Vec<usize> = clients.into_iter().map(|client| client.join().expect("served")).collect();
        assert!(answered.iter().all(|answered| *answered > 0), "{answered:?}");
        new
    });
    assert_eq!(events.event().named("$close").json()["reason"], "drain");
    assert!(poll(addr, "/channels/news").messages.is_empty());
    drop(new);
}

/// Two thousand readers by TLS: each gets each message, and when they are gone nothing is left.
#[test]
fn thousands_read_and_leave_nothing_behind() {
    const READERS: usize = 2_000;
    let server = TlsServer::start(&[]);
    let addr = server.tls;
    get(addr, "/healthz").expect(200);
    let baseline = descriptors(server.server.pid());
    let mut readers: Vec<Stream> = (0..READERS).map(|_| Stream::open(addr, "/channels/all")).collect();
    for number in 0..3 {
        publish(server.plain, "all", &format!("message {number}"));
    }
    for (at, reader) in readers.iter_mut().enumerate() {
        assert_eq!(reader.texts(3), ["message 0", "message 1", "message 2"], "reader {at}");
    }
    // Half say goodbye, half are just gone.
    for (at, mut reader) in readers.into_iter().enumerate() {
        if at % 2 == 0 {
            reader.conn().close_notify();
        }
    }
    settled(&server.server, baseline);
    assert!(Stream::open(addr, "/channels/all").item_within(Duration::from_millis(100)).is_none());
}

/// Of the tests themselves: the next server at that port may speak plainly.
#[test]
fn which_ports_speak_tls_is_forgotten_with_their_server() {
    let server = TlsServer::start(&[]);
    let addr = server.tls;
    assert!(ClientTls::of(addr).is_some() && ClientTls::of(server.plain).is_none());
    drop(server);
    assert!(ClientTls::of(addr).is_none());
}

/// Whoever floods with half handshakes does not hold up who is there.
#[test]
fn a_storm_of_handshakes_does_not_hold_up_deliveries() {
    let server = TlsServer::start(&["--workers", "1"]);
    let config = Arc::new(client(&[&server.identity], rustls::DEFAULT_VERSIONS));
    let mut events = Stream::open(server.tls, "/channels/news");
    let mut hellos = Vec::new();
    for _ in 0..400 {
        let mut hello = Vec::new();
        let mut tls = ClientTls::new(Arc::clone(&config), "localhost");
        tls.conn.write_tls(&mut hello).expect("a vector");
        let mut stream = TcpStream::connect(server.tls).expect("the server accepts");
        stream.write_all(&hello).expect("the server reads");
        hellos.push((tls, stream));
    }
    let mut worst = Duration::ZERO;
    for number in 0..20 {
        let begun = Instant::now();
        publish(server.plain, "news", &format!("{number}"));
        assert_eq!(events.message().data, format!("{number}"));
        worst = worst.max(begun.elapsed());
    }
    assert!(worst < Duration::from_secs(5), "{worst:?}");
    // And each of them comes to its end.
    for (mut tls, mut stream) in hellos {
        stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
        tls.conn.complete_io(&mut stream).expect("its turn comes");
    }
}
