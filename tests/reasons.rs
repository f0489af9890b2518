//! Why connections end (docs/close-reasons.md): each reason is brought about on the transports that can have it, and read
//! from the access log; the log's debug line must say the same.

use crate::common;

use std::net::SocketAddr;
use std::time::Duration;

use common::access::{ACCESS_LOG, AccessLog};
use common::http::{Conn, get, head_cursor, publish};
use common::receive_buffer;
use common::server::{Server, field, message_of};
use common::sse::{Item, Stream};
use common::token::{self, KEYS};
use common::until;
use common::ws::{BINARY, Message, PONG, Socket, TEXT, V1, V1_NAME, wire};
use serde_json::Value;

struct Logged {
    server: Server,
    log: AccessLog,
}

impl Logged {
    fn start(args: &[&str]) -> Self {
        let all: Vec<&str> = ACCESS_LOG.iter().chain(args).copied().collect();
        let server = Server::start(&all);
        let log = AccessLog::of(&server);
        Self { server, log }
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// How the connection of a client ended: transport and reason, the same in both logs.
    #[track_caller]
    fn end(&self, client: SocketAddr) -> (String, String) {
        let line = self.log.end_of(client);
        let text = |name: &str| line[name].as_str().unwrap_or_else(|| panic!("{name} in {line}")).to_owned();
        let end = (text("transport"), text("reason"));
        let peer = client.to_string();
        let closed = self.server.wait_log(|line| {
            message_of(line).as_deref() == Some("closed") && field(line, "peer").as_deref() == Some(&peer)
        });
        let logged = (field(&closed, "transport"), field(&closed, "reason"));
        assert_eq!(logged, (Some(end.0.clone()), Some(end.1.clone())), "{closed}");
        end
    }

    #[track_caller]
    fn ends(&self, client: SocketAddr, transport: &str, reason: &str) {
        assert_eq!(self.end(client), (transport.to_owned(), reason.to_owned()));
    }
}

fn local(conn: &Conn) -> SocketAddr {
    conn.stream().local_addr().expect("an address")
}

/// A poll that is held.
fn held(addr: SocketAddr, channel: &str) -> Conn {
    let path = format!("/channels/{channel}?cursor={}&wait=50", head_cursor(addr, channel));
    let mut conn = Conn::open(addr);
    conn.send("GET", &path, &[], "");
    // Held, once a request behind it is not answered either.
    conn.quiet(Duration::from_millis(200));
    conn
}

#[test]
fn asked_and_answered() {
    let logged = Logged::start(&[]);
    let addr = logged.addr();
    let mut conn = Conn::open(addr);
    let client = local(&conn);
    conn.request("GET", "/channels/a", &[("Connection", "close")], "").expect(200);
    conn.eof();
    drop(conn);
    logged.ends(client, "http", "asked");

    let mut conn = Conn::open(addr);
    let client = local(&conn);
    conn.send_raw("GET /channels/a HTTP/1.0\r\n\r\n");
    conn.read_response().expect(200);
    conn.eof();
    drop(conn);
    logged.ends(client, "http", "answered");

    for (protocol, transport) in
        [(None, "websocket"), (Some(("Sec-WebSocket-Protocol", V1_NAME)), "pushline.v1")]
    {
        let headers: Vec<_> = protocol.into_iter().collect();
        let mut socket = Socket::open_with(addr, "/channels/a", &headers);
        let client = local(socket.conn());
        socket.close(1000, "bye");
        while !matches!(socket.message(), Message::Close(1000)) {}
        drop(socket);
        logged.ends(client, transport, "asked");
    }
}

#[test]
fn gone_and_reset_on_every_transport() {
    let logged = Logged::start(&[]);
    let addr = logged.addr();
    for (how, reason) in [(Conn::abort as fn(Conn), "reset"), (drop, "gone")] {
        let mut idle = Conn::open(addr);
        idle.get("/channels/a").expect(200);
        let client = local(&idle);
        how(idle);
        logged.ends(client, "http", reason);

        // In the middle of a head, and of a body: a task reads.
        let beginnings = [
            "GET /channels/a HT",
            "POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx",
        ];
        for begun in beginnings {
            let mut conn = Conn::open(addr);
            let client = local(&conn);
            conn.send_raw(begun);
            conn.quiet(Duration::from_millis(100));
            how(conn);
            logged.ends(client, "http", reason);
        }

        let poll = held(addr, "a");
        let client = local(&poll);
        how(poll);
        logged.ends(client, "long_poll", reason);

        for (headers, transport) in [
            (vec![("Accept", "text/event-stream")], "sse"),
            (vec![("Sec-WebSocket-Protocol", V1_NAME)], "pushline.v1"),
            (vec![], "websocket"),
        ] {
            let mut conn = Conn::open(addr);
            let client = local(&conn);
            if transport == "sse" {
                conn.send("GET", "/channels/a", &headers, "");
                conn.read_head().expect(200);
            } else {
                conn.send_raw(common::ws::request(addr, "/channels/a", &headers));
                conn.read_head().expect(101);
            }
            how(conn);
            logged.ends(client, transport, reason);
        }
    }
}

/// The client's kernel acknowledges nothing any more: a cable was pulled.
#[test]
fn timed_out_where_nothing_is_acknowledged() {
    let logged =
        Logged::start(&["--set", "heartbeat.interval_seconds=0.3", "--set", "heartbeat.timeout_seconds=0.6"]);
    let addr = logged.addr();
    let mut stream = Stream::open(addr, "/channels/a");
    let client = local(stream.conn());
    deafen(stream.conn());
    publish(addr, "a", "into the void");
    logged.ends(client, "sse", "timed_out");
    drop(stream);
}

/// Drops all that comes for a socket, before its kernel acknowledges it.
#[allow(unsafe_code)]
fn deafen(conn: &Conn) {
    use std::os::fd::AsRawFd;
    // BPF: return 0, which keeps no byte of any packet.
    let mut nothing = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 }];
    let filter = libc::sock_fprog { len: 1, filter: nothing.as_mut_ptr() };
    let bytes = libc::socklen_t::try_from(size_of_val(&filter)).expect("small");
    // SAFETY: the descriptor is open while `conn` is borrowed; the program and its one instruction live through the call.
    let done = unsafe {
        libc::setsockopt(
            conn.stream().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            bytes,
        )
    };
    assert_eq!(done, 0, "SO_ATTACH_FILTER: {}", std::io::Error::last_os_error());
}

/// A long answer that nobody reads: by a task on a fresh connection, at once on a kept one.
#[test]
fn stalled_where_an_answer_is_not_taken() {
    let logged = Logged::start(&["--set", "timeouts.body_seconds=0.5", "--set", "history.bytes=8388608"]);
    let addr = logged.addr();
    let text = "x".repeat(60_000);
    for _ in 0..80 {
        publish(addr, "fat", &text);
    }
    for kept in [false, true] {
        let mut conn = Conn::open(addr);
        receive_buffer(conn.stream(), 4_096);
        if kept {
            conn.get("/healthz").expect(200);
        }
        let client = local(&conn);
        conn.send("GET", "/channels/fat?limit=80", &[], "");
        logged.ends(client, "http", "stalled");
    }
}

#[test]
fn idle_request_timeout_and_silent() {
    let logged = Logged::start(&[
        "--set",
        "timeouts.idle_seconds=0.4",
        "--set",
        "timeouts.head_seconds=0.4",
        "--set",
        "timeouts.body_seconds=0.4",
        "--set",
        "heartbeat.interval_seconds=0.2",
        "--set",
        "heartbeat.timeout_seconds=0.5",
    ]);
    let addr = logged.addr();
    let mut conn = Conn::open(addr);
    conn.get("/channels/a").expect(200);
    conn.eof();
    logged.ends(local(&conn), "http", "idle");

    let beginnings =
        ["GET /channels/a HT", "POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"];
    for begun in beginnings {
        let mut conn = Conn::open(addr);
        conn.send_raw(begun);
        conn.read_response().expect(408);
        logged.ends(local(&conn), "http", "request_timeout");
    }

    // Pings are not answered, for nobody reads them.
    let mut raw = Socket::open(addr, "/channels/a");
    logged.ends(local(raw.conn()), "websocket", "silent");
    let mut v1 = V1::open(addr, "/channels/a");
    logged.ends(local(v1.socket.conn()), "pushline.v1", "silent");
}

#[test]
fn what_clients_do_wrong() {
    let logged = Logged::start(&["--set", "limits.message_bytes=1024"]);
    let addr = logged.addr();
    let requests = [
        ("GET /channels/a HTTP/1.1\r\nHost : x\r\n\r\n", "bad_request"),
        ("\x16\x03\x01\x02", "bad_request"),
        (
            "POST /channels/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "bad_request",
        ),
        ("POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n", "too_big"),
    ];
    for (wire, reason) in requests {
        let mut conn = Conn::open(addr);
        let client = local(&conn);
        conn.send_raw(wire);
        assert!(conn.read_response().status >= 400, "{reason}");
        conn.eof();
        drop(conn);
        logged.ends(client, "http", reason);
    }
    let v1 = [("Sec-WebSocket-Protocol", V1_NAME)];
    let sockets = [
        (&v1[..0], wire(0x80 | TEXT, None, b"unmasked"), 1002, "protocol"),
        (&v1[..], common::ws::masked(true, BINARY, b"x"), 1003, "unacceptable"),
        (&v1[..0], common::ws::masked(true, TEXT, b"\xFF"), 1007, "invalid_utf8"),
        (&v1[..0], common::ws::masked(true, TEXT, &[b'x'; 2_000]), 1009, "too_big"),
    ];
    for (headers, wire, code, reason) in sockets {
        let mut socket = Socket::open_with(addr, "/channels/a", headers);
        let client = local(socket.conn());
        socket.send_raw(wire);
        let end = std::iter::from_fn(|| Some(socket.message()))
            .find(|message| !matches!(message, Message::Text(_)));
        assert_eq!(end, Some(Message::Close(code)), "{reason}");
        drop(socket);
        logged.ends(client, if headers.is_empty() { "websocket" } else { "pushline.v1" }, reason);
    }
}

#[test]
fn slow_where_history_is_shorter_than_the_pause() {
    let logged = Logged::start(&[
        "--set",
        "history.messages=2",
        "--set",
        "feed.bytes=1024",
        "--set",
        "slow.kernel_bytes=66560",
    ]);
    let addr = logged.addr();
    let old = head_cursor(addr, "a");
    let mut stream = Stream::open(addr, "/channels/a");
    receive_buffer(stream.conn().stream(), 4_096);
    let client = local(stream.conn());
    let text = "x".repeat(60_000);
    for _ in 0..200 {
        publish(addr, "a", &text);
    }
    // Found when the socket takes bytes again.
    let mut last = None;
    while let Some(item) = stream.item() {
        if let Item::Event(event) = item {
            last = Some(event);
        }
    }
    assert_eq!(last.expect("a last word").named("$close").json()["reason"], "slow");
    drop(stream);
    logged.ends(client, "sse", "slow");
    let mut raw = Socket::open(addr, &format!("/channels/a?cursor={old}"));
    let client = local(raw.conn());
    raw.expect_close(4408);
    drop(raw);
    logged.ends(client, "websocket", "slow");
}

#[test]
fn drain_on_every_transport() {
    let mut logged = Logged::start(&["--set", "drain.window_seconds=0.5"]);
    let addr = logged.addr();
    let mut idle = Conn::open(addr);
    idle.get("/channels/a").expect(200);
    let mut poll = held(addr, "a");
    let mut stream = Stream::open(addr, "/channels/a");
    let mut raw = Socket::open(addr, "/channels/a");
    let mut v1 = V1::open(addr, "/channels/a");
    let clients = [
        (local(&idle), "http"),
        (local(&poll), "long_poll"),
        (local(stream.conn()), "sse"),
        (local(raw.conn()), "websocket"),
        (local(v1.socket.conn()), "pushline.v1"),
    ];
    logged.server.signal(libc::SIGTERM);
    poll.read_response().expect(204);
    while stream.item().is_some() {}
    raw.expect_close(1012);
    while !matches!(v1.socket.message(), Message::Close(1012)) {}
    idle.eof();
    drop((idle, poll, stream, raw, v1));
    assert_eq!(logged.server.wait_exit(), 0);
    for (client, transport) in clients {
        logged.ends(client, transport, "drain");
    }
}

/// What panics ends alone, and does not look as if its client had gone.
#[cfg(debug_assertions)]
#[test]
fn internal_where_the_fault_is_ours() {
    let mut logged = Logged::start(&[]);
    logged.server.expect_panics();
    let addr = logged.addr();
    for kept in [false, true] {
        let mut conn = Conn::open(addr);
        if kept {
            conn.get("/healthz").expect(200);
        }
        let client = local(&conn);
        conn.send("GET", "/$debug/panic", &[], "");
        assert!(conn.try_read_response().is_err());
        logged.ends(client, "http", "internal");
    }
    let mut raw = Socket::open(addr, "/channels/a");
    let client = local(raw.conn());
    raw.text("$debug/panic");
    raw.expect_close(1011);
    drop(raw);
    logged.ends(client, "websocket", "internal");
}

/// Over the limit nothing is read, and nothing is answered: the line says `refused`.
#[test]
fn full_at_the_limit_of_connections() {
    let logged = Logged::start(&["--workers", "1", "--set", "limits.connections=1"]);
    let first = Conn::open(logged.addr());
    let mut second = Conn::open(logged.addr());
    let peer = local(&second).to_string();
    second.eof();
    let line = logged.log.wait("refused", |line| line["type"] == "refused" && line["peer"] == peer);
    assert_eq!(line["reason"], "full");
    drop(first);
    until("room again", || {
        let mut conn = Conn::open(logged.addr());
        conn.send("GET", "/healthz", &[], "");
        conn.try_read_response().ok()
    });
}

/// Browsers cannot see a refused handshake: it is accepted, and the close frame says why.
#[test]
fn who_may_not() {
    let logged = Logged::start(&["--set", KEYS]);
    let addr = logged.addr();
    let reader = token::of("anna").subscribe(&["a"]).publish(&["b"]).sign();
    let v1 = [("Sec-WebSocket-Protocol", V1_NAME)];
    for (query, channel, code, reason) in [
        (String::new(), "a", 4401, "unauthenticated"),
        ("?token=nonsense".to_owned(), "a", 4401, "unauthenticated"),
        (format!("?token={reader}"), "b", 4403, "forbidden"),
    ] {
        for (headers, transport) in [(&v1[..0], "websocket"), (&v1[..], "pushline.v1")] {
            let mut socket = Socket::open_with(addr, &format!("/channels/{channel}{query}"), headers);
            let client = local(socket.conn());
            while !matches!(socket.message(), Message::Close(is) if is == code) {}
            drop(socket);
            logged.ends(client, transport, reason);
        }
    }
    let mut raw = Socket::open(addr, &format!("/channels/a?token={reader}"));
    let client = local(raw.conn());
    raw.text("x");
    raw.expect_close(1008);
    drop(raw);
    logged.ends(client, "websocket", "not_allowed");
    let end = logged.log.end_of(client);
    assert_eq!(end["subject"], "anna", "{end}");
    let opened = logged
        .log
        .wait("the handshake", |line| line["peer"] == client.to_string() && line["type"] == "request");
    assert_eq!(
        (&opened["status"], &opened["path"]),
        (&101.into(), &"/channels/a?token=-".into()),
        "{opened}"
    );
    // Each refused handshake has its answer too.
    let answered = |line: &Value| line["type"] == "request" && line["status"] == 101;
    until("seven handshakes", || {
        (logged.log.lines().iter().filter(|line| answered(line)).count() == 7).then_some(())
    });
    assert!(!logged.log.text().contains(&reader));
}

/// A client that answers no ping, but sends something, is alive.
#[test]
fn whoever_speaks_is_not_silent() {
    let logged =
        Logged::start(&["--set", "heartbeat.interval_seconds=0.2", "--set", "heartbeat.timeout_seconds=0.5"]);
    let mut raw = Socket::open(logged.addr(), "/channels/a");
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        raw.send(true, PONG, "");
    }
    get(logged.addr(), "/channels/a").expect(200);
    let client = local(raw.conn());
    raw.close(1000, "");
    while !matches!(raw.message(), Message::Close(_)) {}
    drop(raw);
    logged.ends(client, "websocket", "asked");
}
