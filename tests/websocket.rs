//! WebSocket itself (RFC 6455) and the raw transport: handshakes, frames, life. `pushline.v1` has a file of its own.

use crate::common;
mod frames;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use common::http::{Conn, Headers, Response, ask, get, head_cursor, poll, post, publish, published};
use common::server::{Server, descriptors, settled};
use common::sse::Stream;
use common::ws::{
    BINARY, CLOSE, CONTINUATION, KEY, Message, PING, PONG, Socket, TEXT, V1, V1_NAME, accept, masked,
    request, wire,
};

/// How long nothing must come, where nothing is to come.
const QUIET: Duration = Duration::from_millis(150);

const V1_OFFERED: Headers = &[("Sec-WebSocket-Protocol", V1_NAME)];

#[track_caller]
fn refused(server: &Server, target: &str, headers: Headers) -> Response {
    match Socket::handshake(server.addr(), target, headers) {
        Ok(_) => panic!("a handshake of {target} with {headers:?} was accepted"),
        Err(answer) => *answer,
    }
}

/// A GET with exactly these headers besides `Host`.
fn with(server: &Server, headers: Headers) -> Response {
    let mut conn = Conn::open(server.addr());
    conn.send("GET", "/channels/a", headers, "");
    conn.read_response()
}

mod handshake {
    use super::*;

    #[test]
    fn accepts_as_the_rfc_says() {
        let server = Server::start(&[]);
        assert_eq!(accept(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the RFC's own example");
        for headers in [
            &[][..],
            &[("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")],
            &[("Pragma", "no-cache"), ("Cache-Control", "no-cache")],
        ] {
            let socket = Socket::open_with(server.addr(), "/channels/a", headers);
            assert_eq!(socket.head.version, "HTTP/1.1");
            assert_eq!(socket.head.get("sec-websocket-protocol"), None, "none was offered");
        }
    }

    #[test]
    fn names_and_tokens_have_no_case() {
        let server = Server::start(&[]);
        let mut conn = Conn::open(server.addr());
        conn.send_raw(format!(
            "GET /channels/a HTTP/1.1\r\nhost: {}\r\nCONNECTION: keep-alive, UPGRADE\r\nupgrade: WebSocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n\r\n",
            server.addr()
        ));
        let mut socket = Socket::of(conn).unwrap_or_else(|answer| panic!("{answer}"));
        socket.text("x");
        assert_eq!(socket.expect_text(), "x");
    }

    /// Frames in the same segment as the head are not lost.
    #[test]
    fn frames_may_follow_the_head_at_once() {
        let server = Server::start(&[]);
        let mut conn = Conn::open(server.addr());
        let mut bytes = request(server.addr(), "/channels/a", &[]);
        bytes.extend(masked(true, TEXT, b"early"));
        bytes.extend(&masked(true, PING, b"bird")[..3]);
        conn.send_raw(bytes);
        let mut socket = Socket::of(conn).unwrap_or_else(|answer| panic!("{answer}"));
        assert_eq!(socket.expect_text(), "early");
        socket.send_raw(&masked(true, PING, b"bird")[3..]);
        assert_eq!(socket.frame().map(|frame| (frame.opcode, frame.payload)), Some((PONG, b"bird".to_vec())));
    }

    /// A handshake on a connection that has been used before, and one pipelined after a request.
    #[test]
    fn may_come_late_on_a_connection() {
        let server = Server::start(&[]);
        let mut conn = Conn::open(server.addr());
        conn.get("/healthz").expect(200);
        conn.send("GET", "/healthz", &[], "");
        conn.send_raw(request(server.addr(), "/channels/a", &[]));
        conn.read_response().expect(200);
        let mut socket = Socket::of(conn).unwrap_or_else(|answer| panic!("{answer}"));
        socket.text("x");
        assert_eq!(socket.expect_text(), "x");
    }

    #[test]
    fn a_key_without_a_valid_upgrade_is_426() {
        let server = Server::start(&[]);
        let key = ("Sec-WebSocket-Key", KEY);
        let version = ("Sec-WebSocket-Version", "13");
        for headers in [
            &[key, version][..],
            &[key, version, ("Connection", "Upgrade")],
            &[key, version, ("Upgrade", "websocket")],
            &[key, version, ("Upgrade", "h2c"), ("Connection", "Upgrade")],
            &[key, ("Sec-WebSocket-Version", "8"), ("Upgrade", "websocket"), ("Connection", "Upgrade")],
            &[key, ("Upgrade", "websocket"), ("Connection", "Upgrade")],
        ] {
            let answer = with(&server, headers);
            answer.problem(426);
            assert!(answer.lists("upgrade", "websocket"), "{answer}");
            assert!(answer.lists("connection", "upgrade"), "Upgrade is hop by hop: {answer}");
            assert_eq!(answer.header("sec-websocket-version"), "13", "{answer}");
        }
    }

    #[test]
    fn http_1_0_cannot_upgrade() {
        let server = Server::start(&[]);
        let mut conn = Conn::open(server.addr());
        let text = String::from_utf8(request(server.addr(), "/channels/a", &[])).expect("ASCII");
        conn.send_raw(text.replace("HTTP/1.1", "HTTP/1.0"));
        assert_eq!(conn.read_head().status, 426);
    }

    #[test]
    fn other_upgrades_are_ignored() {
        let server = Server::start(&[]);
        for upgrade in ["h2c", "TLS/1.0", "websocket2"] {
            let answer = with(&server, &[("Upgrade", upgrade), ("Connection", "Upgrade")]).expect(200);
            assert_eq!(answer.header("content-type"), "application/json", "{answer}");
        }
    }

    #[test]
    fn a_bad_key_is_400_and_closed() {
        let server = Server::start(&[]);
        let upgrade = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")];
        let (short, long) = (BASE64.encode([1; 15]), BASE64.encode([1; 17]));
        for keys in [
            &[("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Key", KEY)][..],
            &[("Sec-WebSocket-Key", "")],
            &[("Sec-WebSocket-Key", &short)],
            &[("Sec-WebSocket-Key", &long)],
            &[("Sec-WebSocket-Key", "!!!!!!!!!!!!!!!!!!!!!!==")],
            &[("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ")],
        ] {
            let mut headers = upgrade.to_vec();
            headers.extend(keys);
            let mut conn = Conn::open(server.addr());
            conn.send("GET", "/channels/a", &headers, "");
            let answer = conn.read_response();
            answer.problem(400);
            assert!(answer.closes(), "{keys:?}: {answer}");
            conn.eof();
        }
    }

    #[test]
    fn subprotocols() {
        let server = Server::start(&[]);
        for offer in ["chat", "chat, superchat", "pushline.v2", "pushline.v10", "Pushline.V1"] {
            refused(&server, "/channels/a", &[("Sec-WebSocket-Protocol", offer)]).problem(400);
        }
        for offers in [
            &[("Sec-WebSocket-Protocol", V1_NAME)][..],
            &[("Sec-WebSocket-Protocol", "chat, pushline.v1")],
            &[("Sec-WebSocket-Protocol", "pushline.v1,chat")],
            &[("Sec-WebSocket-Protocol", "chat"), ("Sec-WebSocket-Protocol", "pushline.v1")],
        ] {
            let socket = Socket::open_with(server.addr(), "/channels/a", offers);
            assert_eq!(socket.head.header("sec-websocket-protocol"), V1_NAME, "{offers:?}");
        }
    }

    #[test]
    fn bad_urls_are_statuses() {
        let server = Server::start(&[]);
        let id = publish(server.addr(), "a", "x");
        for target in ["/channels/a,b", "/channels/a?cursor=!!", "/channels/a//b", "/channels/$x"] {
            refused(&server, target, &[]).problem(400);
        }
        for target in [
            "/channels/a,a".to_owned(),
            "/channels/a?cursor=!!".to_owned(),
            format!("/channels/a,b?cursor={id}"),
            format!("/channels/a?cursor={id}.{id}"),
        ] {
            refused(&server, &target, V1_OFFERED).problem(400);
        }
        assert_eq!(refused(&server, "/nowhere", &[]).status, 404);
        // Raw is exactly one channel.
        assert!(matches!(refused(&server, "/channels", &[]).status, 400 | 404));
    }

    /// A POST is no handshake, whatever else it says.
    #[test]
    fn only_get() {
        let server = Server::start(&[]);
        let mut conn = Conn::open(server.addr());
        let text = String::from_utf8(request(server.addr(), "/channels/a", &[])).expect("ASCII");
        conn.send_raw(text.replacen("GET", "POST", 1).replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"));
        assert_ne!(conn.read_head().status, 101);
    }
}

mod raw {
    use super::*;

    #[test]
    fn echoes_to_its_sender_and_reaches_every_transport() {
        let server = Server::start(&[]);
        let start = head_cursor(server.addr(), "a");
        let mut other = Socket::open(server.addr(), "/channels/a");
        let mut sse = Stream::open(server.addr(), "/channels/a");
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.text("grüße");
        socket.binary(&[0xFF, 0, 1]);
        socket.text("");
        socket.binary(&[]);
        for socket in [&mut socket, &mut other] {
            assert_eq!(socket.message(), Message::Text("grüße".into()));
            assert_eq!(socket.message(), Message::Binary(vec![0xFF, 0, 1]));
            assert_eq!(socket.message(), Message::Text(String::new()));
            assert_eq!(socket.message(), Message::Binary(Vec::new()));
        }
        assert_eq!(sse.message().lines[0], "data: grüße");
        assert_eq!(sse.message().named("$binary").data, BASE64.encode([0xFF, 0, 1]));
        let held = poll(server.addr(), &format!("/channels/a?cursor={start}")).messages;
        assert_eq!(held.len(), 4);
        assert_eq!((&held[0]["data"], held[0].get("base64")), (&json!("grüße"), None));
        assert_eq!((&held[1]["base64"], held[1].get("data")), (&json!("/wAB"), None));
        assert_eq!((&held[2]["data"], &held[3]["base64"]), (&json!(""), &json!("")));
    }

    #[test]
    fn each_messages_data_is_one_frame() {
        let server = Server::start(&[]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let json = "{ \"b\" : 1.0,\n\"a\":[] }";
        post(server.addr(), "/channels/a", &[("Content-Type", "application/json")], json).expect(201);
        assert_eq!(socket.expect_text(), json, "JSON as it came");
        publish(server.addr(), "a", "line\r\nline");
        assert_eq!(socket.expect_text(), "line\r\nline");
        post(server.addr(), "/channels/a", &[("Pushline-Event", "pic")], [9, 8]).expect(201);
        assert_eq!(socket.expect_binary(), [9, 8]);
        for length in [125, 126, 127, 65_535, 65_536] {
            let text = "x".repeat(length);
            socket.text(&text);
            assert!(socket.expect_text() == text, "{length} bytes");
        }
    }

    #[test]
    fn from_now_or_resumed_by_cursor() {
        let server = Server::start(&[]);
        let id = publish(server.addr(), "a", "1");
        publish(server.addr(), "a", "2");
        let mut now = Socket::open(server.addr(), "/channels/a");
        now.quiet(QUIET);
        let mut resumed = Socket::open(server.addr(), &format!("/channels/a?cursor={id}"));
        publish(server.addr(), "a", "3");
        assert_eq!((resumed.expect_text(), resumed.expect_text()), ("2".into(), "3".into()));
        assert_eq!(now.expect_text(), "3");
    }

    #[test]
    fn a_gap_closes_with_4408() {
        let server = Server::start(&["--set", "history.messages=2"]);
        let foreign = publish(server.addr(), "other", "x");
        let start = head_cursor(server.addr(), "a");
        for text in ["1", "2", "3"] {
            publish(server.addr(), "a", text);
        }
        for cursor in [start, foreign] {
            let mut socket = Socket::open(server.addr(), &format!("/channels/a?cursor={cursor}"));
            socket.expect_close(4408);
        }
        let mut socket = Socket::open(server.addr(), "/channels/a");
        ask(server.addr(), "DELETE", "/channels/a", &[], "").expect(204);
        socket.expect_close(4408);
    }

    #[test]
    fn a_ttl_of_0_comes_live() {
        let server = Server::start(&[]);
        let start = head_cursor(server.addr(), "a");
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let brief = &[("Content-Type", "text/plain"), ("Pushline-TTL", "0")];
        published(&post(server.addr(), "/channels/a", brief, "now"));
        publish(server.addr(), "a", "kept");
        assert_eq!((socket.expect_text(), socket.expect_text()), ("now".into(), "kept".into()));
        let mut later = Socket::open(server.addr(), &format!("/channels/a?cursor={start}"));
        assert_eq!(later.expect_text(), "kept");
    }

    #[test]
    fn many_messages_echo_in_order() {
        let server = Server::start(&[]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let wire: Vec<u8> =
            (0..1_000).flat_map(|n: u32| masked(true, TEXT, n.to_string().as_bytes())).collect();
        socket.send_raw(wire);
        for n in 0..1_000 {
            assert_eq!(socket.expect_text(), n.to_string());
        }
    }
}

mod life {
    use super::*;

    const SHORT: &[&str] = &["--set", "heartbeat.interval_seconds=1", "--set", "heartbeat.timeout_seconds=3"];

    #[test]
    fn a_silent_client_is_pinged_then_ended() {
        let server = Server::start(SHORT);
        let begin = Instant::now();
        let mut raw = Socket::open(server.addr(), "/channels/a");
        let mut v1 = V1::open(server.addr(), "/channels").socket;
        for socket in [&mut raw, &mut v1] {
            let ping = socket.frame().expect("a ping");
            assert_eq!(ping.opcode, PING);
        }
        assert!(
            begin.elapsed() > Duration::from_millis(500),
            "not before the interval: {:?}",
            begin.elapsed()
        );
        for socket in [&mut raw, &mut v1] {
            // More pings, `closing` or a close frame may come before the end; the end must.
            while socket.frame().is_some() {}
        }
        let took = begin.elapsed();
        assert!(took > Duration::from_secs(2) && took < Duration::from_secs(10), "{took:?}");
    }

    #[test]
    fn what_the_server_sends_does_not_count() {
        let server = Server::start(SHORT);
        let begin = Instant::now();
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let mut conn = Conn::open(server.addr());
        let mut pings = 0;
        loop {
            assert!(begin.elapsed() < Duration::from_secs(10), "it lives on what it is sent");
            conn.request("POST", "/channels/a", &[], "x").expect(201);
            match socket.frame_within(Duration::from_millis(100)) {
                Some(None) => break,
                Some(Some(frame)) => pings += usize::from(frame.opcode == PING),
                None => {}
            }
        }
        assert!(pings > 0, "it was pinged before");
        assert!(begin.elapsed() > Duration::from_secs(2), "{:?}", begin.elapsed());
    }

    #[test]
    fn a_client_that_answers_lives() {
        // The timeout must not matter to one that answers.
        let server = Server::start(&[
            "--set",
            "heartbeat.interval_seconds=1",
            "--set",
            "heartbeat.timeout_seconds=20",
        ]);
        let begin = Instant::now();
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let mut pings = 0;
        while begin.elapsed() < Duration::from_secs(5) {
            if let Some(frame) = socket.frame_within(Duration::from_millis(200)) {
                let frame = frame.expect("it lives");
                assert_eq!(frame.opcode, PING);
                pings += 1;
                socket.send(true, PONG, frame.payload);
            }
        }
        assert!((3..=5).contains(&pings), "{pings} pings in 5 s of silence, about one a second");
        socket.text("alive");
        assert_eq!(socket.expect_text(), "alive");
    }

    #[test]
    fn a_client_that_speaks_is_not_pinged() {
        let server = Server::start(&["--set", "heartbeat.interval_seconds=2"]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(4) {
            socket.send(true, PONG, "here");
            let frame = socket.frame_within(Duration::from_millis(200));
            assert_eq!(frame, None, "nothing comes, not even a ping");
        }
    }

    #[test]
    fn a_socket_that_left_leaves_nothing_behind() {
        let server = Server::start(&[]);
        get(server.addr(), "/healthz").expect(200);
        let baseline = descriptors(server.pid());
        for n in 0..30 {
            let mut socket = Socket::open(server.addr(), "/channels/a");
            let mut v1 = V1::open(server.addr(), "/channels/a,b");
            match n % 4 {
                0 => {}
                1 => socket.conn().shutdown_write(),
                2 => {
                    socket.close(1000, "");
                    v1.socket.close(1000, "");
                }
                _ => socket.send(false, TEXT, "half a message"),
            }
        }
        settled(&server, baseline);
    }
}

/// When the node can remember no further channel, because each of those it has is in use, it says so in the transport's
/// own way, and a client that comes later is served.
#[test]
fn a_full_server_closes_with_1013() {
    let server = Server::start(&["--workers", "1", "--set", "limits.channels=1"]);
    let addr = server.addr();
    let mut reader = Stream::open(addr, "/channels/a");
    publish(addr, "a", "x");
    let mut raw = Socket::open(addr, "/channels/b");
    raw.text("one too many");
    raw.expect_close(1013);
    let mut v1 = V1::open(addr, "/channels");
    v1.refused(json!({"type": "publish", "channel": "b", "data": "x", "seq": 1}));
    let answer = post(addr, "/channels/b", &[], "x");
    answer.problem(503);
    answer.header("retry-after");
    assert_eq!(reader.texts(1), ["x"]);
    drop(reader);
    ask(addr, "DELETE", "/channels/a", &[], "").expect(204);
    common::until("room for another channel", || {
        (post(addr, "/channels/b", &[], "x").status == 201).then_some(())
    });
}
