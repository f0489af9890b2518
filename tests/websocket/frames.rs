//! Frames (RFC 6455 §5): what a client may send, and what ends it.

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
    assert_eq!((pong.opcode, pong.payload), (PONG, b"between".to_vec()), "at once, not at the message's end");
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
        [masked(true, TEXT, b"last"), masked(true, CLOSE, &[3, 232]), masked(true, TEXT, b"late")].concat();
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
