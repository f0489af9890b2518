//! Reading and writing by WebSocket (RFC 6455), raw and `pushline.v1`: the contract's section, row by row.

mod common;

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use common::http::{
    Conn, Headers, Response, ask, get, head_cursor, poll, post, publish, published, wire as http_wire,
};
use common::server::{Server, descriptors, settled};
use common::sse::Stream;
use common::ws::{
    BINARY, CLOSE, CONTINUATION, KEY, Message, PING, PONG, Socket, TEXT, V1, V1_NAME, accept, masked,
    request, text_of, wire,
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

mod frames {
    use super::*;

    #[test]
    fn fragments_with_control_frames_between() {
        let server = Server::start(&[]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.send(false, TEXT, "one ");
        socket.send(true, PING, "between");
        socket.send(false, CONTINUATION, "");
        socket.send(true, PONG, "unasked");
        socket.send(false, CONTINUATION, "two ");
        socket.send(true, PING, "");
        socket.send(true, CONTINUATION, "three");
        let pong = socket.frame().expect("a pong");
        assert_eq!(
            (pong.opcode, pong.payload),
            (PONG, b"between".to_vec()),
            "at once, not at the message's end"
        );
        let mut rest = [socket.frame().expect("a frame"), socket.frame().expect("a frame")];
        rest.sort_by_key(|frame| frame.opcode);
        assert_eq!((rest[0].opcode, &rest[0].payload[..]), (TEXT, &b"one two three"[..]));
        assert_eq!((rest[1].opcode, &rest[1].payload[..]), (PONG, &b""[..]));
        socket.send(false, BINARY, [1]);
        socket.send(true, CONTINUATION, [2]);
        assert_eq!(socket.expect_binary(), [1, 2]);
    }

    #[test]
    fn a_byte_at_a_time() {
        let server = Server::start(&[]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let mut bytes = masked(false, TEXT, "gr\u{fc}".as_bytes());
        bytes.extend(masked(true, PING, b"!"));
        bytes.extend(masked(true, CONTINUATION, &[b'n'; 130]));
        for byte in bytes {
            socket.send_raw([byte]);
        }
        assert_eq!(socket.expect_text(), format!("gr\u{fc}{}", "n".repeat(130)), "past the pong");
    }

    /// The empty mask and any other do.
    #[test]
    fn any_mask() {
        let server = Server::start(&[]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        for (n, mask) in [[0; 4], [0xFF; 4], [1, 2, 3, 4], [0, 0, 0, 0x80]].into_iter().enumerate() {
            for length in 0..20 {
                let text = format!("{n}{}", "y".repeat(length));
                socket.send_raw(wire(0x80 | TEXT, Some(mask), text.as_bytes()));
                assert_eq!(socket.expect_text(), text);
            }
        }
    }

    #[test]
    fn utf8_is_checked_across_fragments() {
        let server = Server::start(&[]);
        let text = "κόσμε \u{10FFFF}";
        let bytes = text.as_bytes();
        let mut socket = Socket::open(server.addr(), "/channels/a");
        for cut in 0..=bytes.len() {
            socket.send(false, TEXT, &bytes[..cut]);
            socket.send(true, CONTINUATION, &bytes[cut..]);
            assert_eq!(socket.expect_text(), text, "cut at {cut}");
        }
        for (what, parts) in [
            ("a lone continuation byte", &[&b"\x80"[..]][..]),
            ("a surrogate", &[b"\xED\xA0\x80"]),
            ("an overlong form", &[b"\xC0\xAF"]),
            ("above U+10FFFF", &[b"\xF4\x90\x80\x80"]),
            ("cut short at the end", &[b"ab\xCE"]),
            ("cut short at the end of the last fragment", &[b"\xCE", b"\xBA\xCE"]),
            ("broken over two fragments", &[b"\xCE", b"x"]),
            ("broken over three", &[b"\xF0\x9F", b"\xA6", b"x"]),
            ("good, then bad", &[b"good", b"\xFF"]),
        ] {
            let mut socket = Socket::open(server.addr(), "/channels/bad");
            for (n, part) in parts.iter().enumerate() {
                let opcode = if n == 0 { TEXT } else { CONTINUATION };
                socket.send(n + 1 == parts.len(), opcode, part);
            }
            assert_eq!(socket.message(), Message::Close(1007), "{what}");
        }
        assert!(poll(server.addr(), "/channels/bad?limit=5").messages.is_empty(), "nothing was published");
        // Binary may be anything.
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.binary(b"\xFF\xFE");
        assert_eq!(socket.expect_binary(), b"\xFF\xFE");
    }

    #[test]
    fn protocol_errors_close_with_1002() {
        let server = Server::start(&[]);
        let mask = Some([1, 2, 3, 4]);
        let two = [masked(false, TEXT, b"a"), masked(true, TEXT, b"b")].concat();
        let long_zero = [&[0x82, 0xFF][..], &[0xFF; 8], &[0; 4]].concat();
        for (what, bytes) in [
            ("unmasked", wire(0x80 | TEXT, None, b"a")),
            ("unmasked close", wire(0x80 | CLOSE, None, &[0x03, 0xE8])),
            ("RSV1", wire(0xC0 | TEXT, mask, b"a")),
            ("RSV2", wire(0xA0 | TEXT, mask, b"a")),
            ("RSV3 on a ping", wire(0x90 | PING, mask, b"a")),
            ("opcode 3", wire(0x83, mask, b"a")),
            ("opcode 7", wire(0x87, mask, b"")),
            ("opcode 11", wire(0x8B, mask, b"")),
            ("opcode 15", wire(0x8F, mask, b"")),
            ("a ping in fragments", masked(false, PING, b"a")),
            ("a close in fragments", masked(false, CLOSE, b"")),
            ("a ping of 126 bytes", masked(true, PING, &[0; 126])),
            ("a close of 126 bytes", masked(true, CLOSE, &[3; 126])),
            ("a continuation of nothing", masked(true, CONTINUATION, b"a")),
            ("a message within a message", two),
            ("a close of one byte", masked(true, CLOSE, &[3])),
            ("a length above 2^63", long_zero),
        ] {
            let mut socket = Socket::open(server.addr(), "/channels/a");
            socket.send_raw(bytes);
            let end = socket.message();
            // A length that no machine has is too big as much as it is wrong.
            let big = what.contains("2^63") && end == Message::Close(1009);
            assert!(end == Message::Close(1002) || big, "{what}: {end:?}");
            assert_eq!(socket.frame(), None, "{what}: the end follows");
        }
        assert!(poll(server.addr(), "/channels/a?limit=5").messages.is_empty(), "nothing was published");
    }

    #[test]
    fn close_codes_of_the_client_are_checked() {
        let server = Server::start(&[]);
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            let mut socket = Socket::open(server.addr(), "/channels/a");
            socket.close(code, "");
            assert_eq!(socket.message(), Message::Close(1002), "{code}");
            assert_eq!(socket.frame(), None);
        }
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
            let mut socket = Socket::open(server.addr(), "/channels/a");
            socket.close(code, "because");
            assert_eq!(socket.message(), Message::Close(code), "echoed");
            assert_eq!(socket.frame(), None, "and the server ends the connection");
        }
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.send(true, CLOSE, b"\x03\xE8bad \xFF");
        assert_eq!(socket.message(), Message::Close(1007), "the reason is UTF-8 too");
    }

    #[test]
    fn the_close_handshake() {
        let server = Server::start(&[]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.send(true, CLOSE, "");
        assert!(matches!(socket.message(), Message::Close(1000 | 1005)));
        assert_eq!(socket.frame(), None);
        // What comes after a close frame is nobody's; what came before was published.
        let mut socket = Socket::open(server.addr(), "/channels/a");
        let bytes =
            [masked(true, TEXT, b"last"), masked(true, CLOSE, &[3, 232]), masked(true, TEXT, b"late")]
                .concat();
        socket.send_raw(bytes);
        let mut end = socket.message();
        if end == Message::Text("last".into()) {
            end = socket.message();
        }
        assert_eq!(end, Message::Close(1000));
        assert_eq!(socket.frame(), None);
        let mut stream = Stream::open(server.addr(), "/channels/a?history=9");
        publish(server.addr(), "a", "mark");
        assert_eq!(stream.texts(2), ["last", "mark"]);
        // A close between fragments drops the message.
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.send(false, TEXT, "half");
        socket.close(1000, "");
        assert_eq!(socket.message(), Message::Close(1000));
    }

    #[test]
    fn pings_are_answered() {
        let server = Server::start(&[]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        for payload in [&b""[..], b"hello", &[0xFF; 125]] {
            socket.send(true, PING, payload);
            let pong = socket.frame().expect("a pong");
            assert_eq!((pong.opcode, &pong.payload[..]), (PONG, payload));
        }
        // Of many, the last one must be answered (RFC 6455 §5.5.3).
        let many: Vec<u8> = (0..50u8).flat_map(|n| masked(true, PING, &[n])).collect();
        socket.send_raw(many);
        loop {
            let pong = socket.frame().expect("a pong");
            assert_eq!(pong.opcode, PONG);
            if pong.payload == [49] {
                break;
            }
        }
        socket.send(true, PONG, "unasked");
        socket.text("still here");
        assert_eq!(socket.expect_text(), "still here");
    }

    #[test]
    fn too_large_is_1009() {
        let server = Server::start(&["--set", "limits.message_bytes=1000"]);
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.text(&"x".repeat(1_000));
        assert_eq!(socket.expect_text().len(), 1_000);
        // The head of the second one says enough.
        let announced = vec![0x82, 0xFF, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        for bytes in [masked(true, BINARY, &[0; 1_001]), announced] {
            let mut socket = Socket::open(server.addr(), "/channels/a");
            socket.send_raw(bytes);
            assert_eq!(socket.message(), Message::Close(1009));
            assert_eq!(socket.frame(), None);
        }
        let mut socket = Socket::open(server.addr(), "/channels/a");
        socket.send(false, BINARY, [0; 600]);
        socket.send(false, CONTINUATION, [0; 400]);
        socket.send(false, CONTINUATION, [0; 1]);
        assert_eq!(socket.message(), Message::Close(1009), "the sum of fragments");
        // A flood of empty fragments is no message either, but costs nothing.
        let mut socket = Socket::open(server.addr(), "/channels/b");
        socket.send(false, TEXT, "a");
        let empty: Vec<u8> = (0..10_000).flat_map(|_| masked(false, CONTINUATION, b"")).collect();
        socket.send_raw(empty);
        socket.send(true, CONTINUATION, "b");
        assert_eq!(socket.expect_text(), "ab");
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
        let server = Server::start(SHORT);
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
        assert!((2..=6).contains(&pings), "{pings} pings in 5 s of silence, one a second at most");
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

mod v1 {
    use super::*;

    #[test]
    fn opens_and_subscribes_the_urls_channels() {
        let server = Server::start(&[]);
        let id = publish(server.addr(), "a", "before");
        let mut v1 = V1::open(server.addr(), "/channels/a,b%2Fc");
        let first = v1.expect("subscribed");
        assert_eq!(
            (&first["channel"], &first["cursor"], &first["gap"]),
            (&json!("a"), &json!(id), &json!(false))
        );
        assert_eq!(first.get("seq"), None);
        assert_eq!(v1.expect("subscribed")["channel"], "b/c");
        v1.socket.quiet(QUIET);
        publish(server.addr(), "a", "after");
        assert_eq!(v1.texts(1), ["after"]);
        let other = V1::open(server.addr(), "/channels/a");
        assert_ne!(other.connection, v1.connection);
    }

    #[test]
    fn channels_alone_opens_a_connection_with_none() {
        let server = Server::start(&[]);
        let mut v1 = V1::open(server.addr(), "/channels");
        v1.socket.quiet(QUIET);
        let answer = v1.ask(json!({"type": "subscribe", "channel": "a"}), "subscribed");
        assert_eq!(answer["channel"], "a");
        publish(server.addr(), "a", "x");
        assert_eq!(v1.texts(1), ["x"]);
    }

    #[test]
    fn a_message_has_its_members() {
        let server = Server::start(&[]);
        let (mut v1, _) = V1::subscribed(server.addr(), "a/b");
        let tick = &[("Content-Type", "application/json"), ("Pushline-Event", "tick")];
        let id = published(&post(server.addr(), "/channels/a/b", tick, "{\"n\":1.50}"));
        let text = v1.socket.expect_text();
        assert!(text.contains("{\"n\":1.50}"), "JSON as it came: {text}");
        let message: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&message["type"], &message["channel"], &message["id"], &message["event"]),
            (&json!("message"), &json!("a/b"), &json!(id), &json!("tick"))
        );
        assert!(message["ts"].as_u64().is_some_and(|ts| ts > 1_700_000_000_000), "{message}");
        publish(server.addr(), "a/b", "text \" \\ \n \u{0}");
        let message = v1.expect("message");
        assert_eq!((&message["data"], message.get("event")), (&json!("text \" \\ \n \u{0}"), None));
        post(server.addr(), "/channels/a/b", &[], [1, 2, 3]).expect(201);
        let message = v1.expect("message");
        assert_eq!((&message["base64"], message.get("data")), (&json!("AQID"), None));
    }

    #[test]
    fn subscribe_by_cursor_by_history_and_from_now() {
        let server = Server::start(&[]);
        let ids: Vec<String> = ["1", "2", "3"].map(|text| publish(server.addr(), "a", text)).into();
        for (extra, cursor, want) in [
            (json!({}), &ids[2], &[][..]),
            (json!({"cursor": ids[0]}), &ids[0], &["2", "3"]),
            (json!({"history": 1}), &ids[1], &["3"]),
            (json!({"history": 0}), &ids[2], &[]),
        ] {
            let mut subscribe = json!({"type": "subscribe", "channel": "a", "seq": 7});
            for (name, value) in extra.as_object().expect("an object") {
                subscribe[name] = value.clone();
            }
            let mut v1 = V1::open(server.addr(), "/channels");
            let answer = v1.ask(subscribe, "subscribed");
            assert_eq!(
                answer,
                json!({"type": "subscribed", "channel": "a", "cursor": cursor, "gap": false, "seq": 7})
            );
            assert_eq!(v1.texts(want.len()), want);
            v1.socket.quiet(Duration::from_millis(30));
        }
        let mut v1 = V1::open(server.addr(), "/channels");
        let all = v1.ask(json!({"type": "subscribe", "channel": "a", "history": 99}), "subscribed");
        assert_eq!(all["gap"], false);
        assert_eq!(v1.texts(3), ["1", "2", "3"]);
    }

    #[test]
    fn the_urls_cursor_is_the_joined_one() {
        let server = Server::start(&[]);
        let a = publish(server.addr(), "a", "a1");
        publish(server.addr(), "a", "a2");
        publish(server.addr(), "b", "b1");
        let mut v1 = V1::open(server.addr(), &format!("/channels/b,a?cursor=.{a}"));
        let mut seen = Vec::new();
        for _ in 0..3 {
            let value = v1.next();
            seen.push(format!("{} {}", text_of(&value, "type"), text_of(&value, "channel")));
        }
        seen.sort();
        assert_eq!(seen, ["message a", "subscribed a", "subscribed b"]);
        publish(server.addr(), "b", "b2");
        assert_eq!(v1.texts(1), ["b2"]);
    }

    #[test]
    fn seq_is_the_clients_own() {
        let server = Server::start(&[]);
        let mut v1 = V1::open(server.addr(), "/channels");
        for seq in [json!(0), json!(1), json!(4_294_967_296_u64), json!(9_007_199_254_740_991_u64)] {
            for (kind, answer) in
                [("subscribe", "subscribed"), ("publish", "published"), ("unsubscribe", "unsubscribed")]
            {
                let mut request = json!({"type": kind, "channel": "a", "seq": seq});
                if kind == "publish" {
                    request["data"] = json!("x");
                    request["ttl"] = json!(0);
                    request["channel"] = json!("elsewhere");
                }
                let answer = v1.ask(request, answer);
                assert_eq!(answer["seq"], seq, "{answer}");
            }
        }
        let answer = v1.ask(json!({"type": "subscribe", "channel": "a"}), "subscribed");
        assert_eq!(answer.get("seq"), None, "none was given");
    }

    #[test]
    fn subscribing_twice_is_an_error() {
        let server = Server::start(&[]);
        let (mut v1, _) = V1::subscribed(server.addr(), "a");
        let first = v1.refused(json!({"type": "subscribe", "channel": "a", "seq": 1}));
        let again = v1.refused(json!({"type": "subscribe", "channel": "a", "seq": 2}));
        assert_eq!(first["code"], again["code"], "codes are of a closed list");
        publish(server.addr(), "a", "once");
        publish(server.addr(), "a", "mark");
        assert_eq!(v1.texts(2), ["once", "mark"]);
    }

    #[test]
    fn unsubscribe_ends_it_and_it_may_begin_again() {
        let server = Server::start(&[]);
        let mut v1 = V1::open(server.addr(), "/channels/a,b");
        v1.expect("subscribed");
        v1.expect("subscribed");
        let id = publish(server.addr(), "a", "1");
        v1.texts(1);
        let answer = v1.ask(json!({"type": "unsubscribe", "channel": "a"}), "unsubscribed");
        assert_eq!(answer["channel"], "a");
        publish(server.addr(), "a", "2");
        publish(server.addr(), "b", "mark");
        assert_eq!(v1.texts(1), ["mark"], "nothing of a");
        v1.refused(json!({"type": "unsubscribe", "channel": "a", "seq": 3}));
        let answer = v1.ask(json!({"type": "subscribe", "channel": "a", "cursor": id}), "subscribed");
        assert_eq!(answer["cursor"], json!(id));
        assert_eq!(v1.texts(1), ["2"]);
    }

    #[test]
    fn publishes_each_kind() {
        let server = Server::start(&[]);
        let (mut reader, _) = V1::subscribed(server.addr(), "a");
        let mut v1 = V1::open(server.addr(), "/channels");
        for (member, value, want) in [
            ("data", json!("a text"), json!({"data": "a text"})),
            ("data", json!(""), json!({"data": ""})),
            ("data", json!({"an": ["object"]}), json!({"data": {"an": ["object"]}})),
            ("data", json!(null), json!({"data": null})),
            ("data", json!(1.5), json!({"data": 1.5})),
            ("base64", json!("AQID"), json!({"base64": "AQID"})),
            ("base64", json!(""), json!({"base64": ""})),
        ] {
            let mut request = json!({"type": "publish", "channel": "a", "event": "tick", "seq": 5});
            request[member] = value;
            let answer = v1.ask(request, "published");
            let id = text_of(&answer, "id");
            assert_eq!(answer, json!({"type": "published", "channel": "a", "id": id, "seq": 5}));
            let message = reader.expect("message");
            assert_eq!((&message["id"], &message["event"]), (&json!(id), &json!("tick")));
            for member in ["data", "base64"] {
                assert_eq!(message.get(member), want.get(member), "{message}");
            }
        }
        let held = poll(server.addr(), "/channels/a?limit=100").messages;
        assert_eq!(held.len(), 7);
        assert_eq!((&held[0]["data"], &held[5]["base64"]), (&json!("a text"), &json!("AQID")));
        // Raw readers see which was text: a JSON string as `data` is a text message.
        let mut raw = Socket::open(server.addr(), "/channels/b");
        v1.ask(json!({"type": "publish", "channel": "b", "data": "text"}), "published");
        assert_eq!(raw.expect_text(), "text");
        v1.socket.text("{\"type\":\"publish\",\"channel\":\"b\",\"data\":{ \"b\" : 1.50 }}");
        v1.expect("published");
        assert_eq!(raw.expect_text(), "{ \"b\" : 1.50 }", "JSON is passed on as it came");
        v1.ask(json!({"type": "publish", "channel": "b", "base64": "AQID"}), "published");
        assert_eq!(raw.expect_binary(), [1, 2, 3]);
    }

    #[test]
    fn its_own_messages_come_back() {
        let server = Server::start(&[]);
        let (mut v1, _) = V1::subscribed(server.addr(), "a");
        v1.send(json!({"type": "publish", "channel": "a", "data": "x", "seq": 1}));
        let mut answers = [v1.next(), v1.next()];
        answers.sort_by_key(|answer| text_of(answer, "type"));
        assert_eq!((&answers[0]["type"], &answers[1]["type"]), (&json!("message"), &json!("published")));
        assert_eq!(answers[0]["id"], answers[1]["id"]);
    }

    #[test]
    fn publishes_with_a_ttl() {
        let server = Server::start(&[]);
        let (mut v1, start) = V1::subscribed(server.addr(), "a");
        v1.send(json!({"type": "publish", "channel": "a", "data": "now", "ttl": 0}));
        let kinds = [text_of(&v1.next(), "type"), text_of(&v1.next(), "type")];
        assert!(kinds.contains(&"message".to_owned()), "{kinds:?}");
        publish(server.addr(), "a", "kept");
        let held = poll(server.addr(), &format!("/channels/a?cursor={start}"));
        assert_eq!((held.data(), held.gap), (vec![json!("kept")], false));
    }

    #[test]
    fn a_key_is_replayed() {
        let server = Server::start(&[]);
        let (mut reader, _) = V1::subscribed(server.addr(), "a");
        let mut v1 = V1::open(server.addr(), "/channels");
        let keyed = json!({"type": "publish", "channel": "a", "data": "once", "key": "k1", "seq": 1});
        let first = v1.ask(keyed.clone(), "published");
        assert_eq!(first.get("replayed"), None, "{first}");
        let again = v1.ask(keyed, "published");
        assert_eq!((&again["id"], &again["replayed"]), (&first["id"], &json!(true)));
        let other = json!({"type": "publish", "channel": "a", "data": "another", "key": "k1", "seq": 2});
        v1.refused(other);
        // Over HTTP, batch and v1 alike.
        let keyed = &[("Content-Type", "text/plain"), ("Idempotency-Key", "k1")];
        let http = post(server.addr(), "/channels/a", keyed, "once");
        assert_eq!(json!(published(&http)), first["id"]);
        assert_eq!(http.header("idempotency-replayed"), "true");
        publish(server.addr(), "a", "mark");
        assert_eq!(reader.texts(2), ["once", "mark"]);
    }

    #[test]
    fn refused_operations_are_errors_and_the_connection_stays() {
        let server = Server::start(&[]);
        let id = publish(server.addr(), "a", "x");
        let mut v1 = V1::open(server.addr(), "/channels");
        let long = "a".repeat(201);
        for request in [
            json!({"type": "subscribe", "channel": "a", "cursor": id, "history": 1, "seq": 1}),
            json!({"type": "subscribe", "channel": "a", "cursor": "!!", "seq": 1}),
            json!({"type": "subscribe", "channel": "a", "cursor": format!("{id}.{id}"), "seq": 1}),
            json!({"type": "subscribe", "channel": "a", "history": -1, "seq": 1}),
            json!({"type": "subscribe", "channel": "a", "history": "1", "seq": 1}),
            json!({"type": "subscribe", "channel": "a,b", "seq": 1}),
            json!({"type": "subscribe", "channel": "", "seq": 1}),
            json!({"type": "subscribe", "channel": "a//b", "seq": 1}),
            json!({"type": "subscribe", "channel": "$sys", "seq": 1}),
            json!({"type": "subscribe", "channel": long, "seq": 1}),
            json!({"type": "subscribe", "channel": 1, "seq": 1}),
            json!({"type": "subscribe", "seq": 1}),
            json!({"type": "unsubscribe", "channel": "never", "seq": 1}),
            json!({"type": "publish", "channel": "a", "seq": 1}),
            json!({"type": "publish", "data": "x", "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "base64": "eA==", "seq": 1}),
            json!({"type": "publish", "channel": "a", "base64": "not base64!", "seq": 1}),
            json!({"type": "publish", "channel": "a", "base64": 1, "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "event": "$x", "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "event": "error", "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "event": "open", "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "event": "", "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "event": "a\nb", "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "event": "e".repeat(65), "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "ttl": -1, "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "ttl": 1.5, "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "key": "", "seq": 1}),
            json!({"type": "publish", "channel": "a", "data": "x", "key": "k".repeat(129), "seq": 1}),
            json!({"type": "dance", "seq": 1}),
            json!({"type": "open", "seq": 1}),
        ] {
            let what = request.to_string();
            let error = v1.refused(request);
            let code = text_of(&error, "code");
            assert!(
                code.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-".contains(&byte)),
                "{what}: {error}"
            );
        }
        let held = poll(server.addr(), "/channels/a?limit=9").messages;
        assert_eq!(held.len(), 1, "nothing was published: {held:?}");
        assert_eq!(v1.ask(json!({"type": "subscribe", "channel": "a"}), "subscribed")["cursor"], json!(id));
    }

    /// What is not an object of the table is told so: an error, or the end with the code that says why.
    #[test]
    fn what_is_no_object_is_refused() {
        let server = Server::start(&[]);
        for text in [
            "",
            "hello",
            "[]",
            "1",
            "null",
            "{\"type\":1}",
            "{}",
            "{\"type\":\"ping\"",
            "{\"type\":\"ping\"} {}",
        ] {
            let mut v1 = V1::open(server.addr(), "/channels");
            v1.socket.text(text);
            v1.expect("error");
            v1.ask(json!({"type": "ping"}), "pong");
        }
        let mut v1 = V1::open(server.addr(), "/channels");
        v1.socket.binary(b"{\"type\":\"ping\"}");
        loop {
            match v1.socket.message() {
                Message::Text(_) => {}
                end => break assert_eq!(end, Message::Close(1003), "text frames alone"),
            }
        }
    }

    #[test]
    fn frames_are_checked_as_in_raw() {
        let server = Server::start(&[]);
        for (what, bytes, code) in [
            ("unmasked", wire(0x80 | TEXT, None, b"{}"), 1002),
            ("invalid UTF-8", masked(true, TEXT, b"{\"type\":\"\xFF\"}"), 1007),
            ("an endless length", vec![0x81, 0xFF, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
        ] {
            let mut v1 = V1::open(server.addr(), "/channels");
            v1.socket.send_raw(bytes);
            loop {
                match v1.socket.message() {
                    Message::Text(_) => {}
                    end => break assert_eq!(end, Message::Close(code), "{what}"),
                }
            }
        }
        let mut v1 = V1::open(server.addr(), "/channels");
        v1.socket.send(false, TEXT, "{\"type\":");
        v1.socket.send(true, PING, "p");
        v1.socket.send(true, CONTINUATION, "\"ping\"}");
        v1.expect("pong");
    }

    #[test]
    fn ping_is_answered_with_pong() {
        let server = Server::start(&[]);
        let mut v1 = V1::open(server.addr(), "/channels");
        assert_eq!(v1.ask(json!({"type": "ping"}), "pong"), json!({"type": "pong"}));
    }

    /// The limit is of the decoded data: a frame may be larger by its encoding.
    #[test]
    fn the_message_limit_is_of_the_decoded_data() {
        let server = Server::start(&["--set", "limits.message_bytes=1000"]);
        let (mut reader, _) = V1::subscribed(server.addr(), "a");
        let mut v1 = V1::open(server.addr(), "/channels");
        let publish = |member: &str, value: &str| {
            format!("{{\"type\":\"publish\",\"channel\":\"a\",\"seq\":1,\"{member}\":{value}}}")
        };
        let escapes = |count: usize| format!("\"{}\"", "\\u0041".repeat(count));
        let base64 = |count: usize| format!("\"{}\"", BASE64.encode(vec![9; count]));
        let array = |count: usize| format!("[{}]", "1".repeat(count - 2));
        for text in [
            publish("data", &escapes(1_000)),
            publish("base64", &base64(1_000)),
            publish("data", &array(1_000)),
        ] {
            v1.socket.text(&text);
            v1.expect("published");
            reader.expect("message");
        }
        let mut codes = Vec::new();
        for text in [
            publish("data", &escapes(1_001)),
            publish("base64", &base64(1_001)),
            publish("data", &array(1_001)),
        ] {
            v1.socket.text(&text);
            let error = v1.expect("error");
            assert_eq!(error["seq"], 1, "{error}");
            codes.push(text_of(&error, "code"));
        }
        codes.dedup();
        assert_eq!(codes.len(), 1, "{codes:?}");
        v1.ask(json!({"type": "ping"}), "pong");
        // Far beyond what any encoding of an allowed message takes.
        v1.socket.text(&publish("data", &escapes(20_000)));
        assert_eq!(v1.socket.message(), Message::Close(1009));
    }

    #[test]
    fn a_gap_on_subscribe() {
        let server = Server::start(&["--set", "history.messages=2"]);
        let start = head_cursor(server.addr(), "a");
        for text in ["1", "2", "3"] {
            publish(server.addr(), "a", text);
        }
        let mut v1 = V1::open(server.addr(), "/channels");
        let subscribe = json!({"type": "subscribe", "channel": "a", "cursor": start, "seq": 1});
        let answer = v1.ask(subscribe, "subscribed");
        assert_eq!((&answer["gap"], &answer["seq"]), (&json!(true), &json!(1)), "{answer}");
        let mut value = v1.next();
        if value["type"] == "gap" {
            value = v1.next();
        }
        assert_eq!(value["data"], "2", "what there is");
        assert_eq!(v1.texts(1), ["3"]);

        let mut v1 = V1::open(server.addr(), &format!("/channels/a?cursor={start}"));
        assert_eq!(v1.expect("subscribed")["gap"], true, "by the URL as well");
    }

    /// `subscribed` tells the gap and gives the cursor in one frame: that cursor is past the gap, and exact.
    #[test]
    fn the_cursor_of_subscribed_is_its_resume_point() {
        let server = Server::start(&["--set", "history.messages=2"]);
        let start = head_cursor(server.addr(), "a");
        for text in ["1", "2", "3"] {
            publish(server.addr(), "a", text);
        }
        let mut v1 = V1::open(server.addr(), &format!("/channels/a?cursor={start}"));
        let cursor = text_of(&v1.expect("subscribed"), "cursor");
        let held = poll(server.addr(), &format!("/channels/a?cursor={cursor}"));
        assert_eq!((held.data(), held.gap), (vec![json!("2"), json!("3")], false));
    }

    #[test]
    fn a_deletion_is_a_gap() {
        let server = Server::start(&[]);
        let mut v1 = V1::open(server.addr(), "/channels/a,b");
        v1.expect("subscribed");
        v1.expect("subscribed");
        publish(server.addr(), "a", "1");
        v1.texts(1);
        ask(server.addr(), "DELETE", "/channels/a", &[], "").expect(204);
        let gap = v1.expect("gap");
        assert_eq!(gap["channel"], "a");
        let cursor = text_of(&gap, "cursor");
        publish(server.addr(), "a", "2");
        assert_eq!(v1.texts(1), ["2"]);
        let held = poll(server.addr(), &format!("/channels/a?cursor={cursor}"));
        assert_eq!((held.data(), held.gap), (vec![json!("2")], false));
    }

    #[test]
    fn two_channels_keep_each_its_order() {
        let server = Server::start(&["--workers", "4"]);
        let mut v1 = V1::open(server.addr(), "/channels/a,b");
        v1.expect("subscribed");
        v1.expect("subscribed");
        let mut conn = Conn::open(server.addr());
        for n in 0..100 {
            let channel = ["/channels/a", "/channels/b"][n % 2];
            conn.send("POST", channel, &[("Content-Type", "text/plain")], n.to_string());
        }
        for _ in 0..100 {
            conn.read_response().expect(201);
        }
        let mut next = [0, 1];
        for _ in 0..100 {
            let message = v1.expect("message");
            let of = usize::from(message["channel"] == "b");
            assert_eq!(message["data"], json!(next[of].to_string()));
            next[of] += 2;
        }
    }

    #[test]
    fn many_subscriptions_on_one_connection() {
        let server = Server::start(&["--workers", "4"]);
        let mut v1 = V1::open(server.addr(), "/channels");
        for n in 0..100 {
            v1.send(json!({"type": "subscribe", "channel": format!("c{n}"), "seq": n}));
        }
        let mut seqs: Vec<u64> =
            (0..100).map(|_| v1.expect("subscribed")["seq"].as_u64().expect("a number")).collect();
        seqs.sort_unstable();
        assert!(seqs.into_iter().eq(0..100));
        let mut conn = Conn::open(server.addr());
        for n in 0..100 {
            let target = format!("/channels/c{n}");
            conn.request("POST", &target, &[("Content-Type", "text/plain")], n.to_string()).expect(201);
        }
        for _ in 0..100 {
            let message = v1.expect("message");
            assert_eq!(message["channel"], json!(format!("c{}", text_of(&message, "data"))));
        }
    }

    #[test]
    fn subscriptions_are_limited() {
        let server = Server::start(&["--set", "limits.subscriptions=3"]);
        let mut v1 = V1::open(server.addr(), "/channels");
        for channel in ["a", "b", "c"] {
            v1.ask(json!({"type": "subscribe", "channel": channel}), "subscribed");
        }
        v1.refused(json!({"type": "subscribe", "channel": "d", "seq": 4}));
        v1.ask(json!({"type": "unsubscribe", "channel": "a"}), "unsubscribed");
        v1.ask(json!({"type": "subscribe", "channel": "d"}), "subscribed");
    }
}

/// One reader, one cursor, every transport in turn: nothing lost, nothing twice.
#[test]
fn resumes_across_transports() {
    let server = Server::start(&["--workers", "4"]);
    let addr = server.addr();
    let stream = Stream::open(addr, "/channels/a");
    let mut cursor = stream.cursor.clone();
    drop(stream);
    let mut n = 0;
    let mut next = |count: usize| -> Vec<String> {
        (0..count)
            .map(|_| {
                n += 1;
                publish(addr, "a", &n.to_string());
                n.to_string()
            })
            .collect()
    };
    for _ in 0..3 {
        let want = next(2);
        let mut v1 = V1::open(addr, &format!("/channels/a?cursor={cursor}"));
        assert_eq!(v1.expect("subscribed")["cursor"], json!(cursor));
        for text in want {
            let message = v1.expect("message");
            assert_eq!(message["data"], json!(text));
            cursor = text_of(&message, "id");
        }
        drop(v1);

        let want = next(2);
        let mut raw = Socket::open(addr, &format!("/channels/a?cursor={cursor}"));
        assert_eq!([raw.expect_text(), raw.expect_text()].to_vec(), want, "raw is resumed into");
        drop(raw);
        let held = Conn::open(addr).get(&format!("/channels/a?wait=5&cursor={cursor}"));
        let held = common::http::Poll::of(&held);
        assert_eq!(held.data(), want.iter().map(|text| json!(text)).collect::<Vec<_>>(), "but not out of");
        cursor = held.cursor;

        let want = next(3);
        let mut stream = Stream::resume(addr, "/channels/a", &cursor);
        let message = stream.message();
        assert_eq!(message.data, want[0]);
        cursor = message.id;
        drop(stream);

        let held = poll(addr, &format!("/channels/a?limit=1&cursor={cursor}"));
        assert_eq!(held.data(), [json!(want[1])]);
        cursor = held.cursor;
        let mut stream = Stream::open(addr, &format!("/channels/a?envelope=1&cursor={cursor}"));
        let message = stream.message();
        assert_eq!(message.json()["data"], json!(want[2]));
        cursor = message.id;
    }
}

/// A held long poll, a stream and both kinds of WebSocket hear one publish each, whoever published it.
#[test]
fn one_publish_reaches_all_four() {
    let server = Server::start(&["--workers", "4"]);
    let addr = server.addr();
    let cursor = head_cursor(addr, "a");
    let mut held = Conn::open(addr);
    held.send("GET", &format!("/channels/a?wait=20&cursor={cursor}"), &[], "");
    let mut stream = Stream::open(addr, "/channels/a");
    let mut raw = Socket::open(addr, "/channels/a");
    let (mut v1, _) = V1::subscribed(addr, "a");
    let wire = http_wire(addr, "POST", "/channels/a", &[("Content-Type", "text/plain")], b"all");
    let mut conn = Conn::open(addr);
    conn.send_raw(wire);
    let id = published(&conn.read_response());
    let answer = common::http::Poll::of(&held.read_response());
    assert_eq!((answer.data(), answer.cursor), (vec![json!("all")], id.clone()));
    assert_eq!(stream.message().id, id);
    assert_eq!(raw.expect_text(), "all");
    assert_eq!(v1.expect("message")["id"], json!(id));
}
