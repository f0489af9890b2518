//! Content of requests, as it comes (RFC 9112 §6, §7.1): of known length and in chunks, waited for, refused.

use crate::common;

use std::time::Duration;

use common::cost::cpu;
use common::http::{Conn, Poll, head_cursor, poll, published, wire};
use common::rng::{Rng, seed};
use common::server::Server;
use common::tls::TlsServer;
use serde_json::json;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const CHUNKED: (&str, &str) = ("Transfer-Encoding", "chunked");
const A_WHILE: Duration = Duration::from_millis(200);

/// Bodies that come in many reads, with the next request right behind them.
#[test]
fn large_bodies_are_read_however_they_are_cut() {
    let server = Server::start(&["--set", "limits.message_bytes=1MiB"]);
    let addr = server.addr();
    let mut rng = Rng::new(seed(), 0);
    for length in [2_000, 2_048, 4_095, 65_536, 65_537, 140_000, 1 << 20] {
        let text: String = (0..length).map(|_| char::from(b'a' + rng.below(26) as u8)).collect();
        let mut asked = wire(addr, "POST", "/channels/large", &[TEXT], text.as_bytes());
        let whole = asked.len();
        asked.extend_from_slice(&wire(addr, "GET", "/channels/large", &[], b""));
        for _ in 0..10 {
            let mut conn = Conn::open(addr);
            let mut rest = &asked[..];
            while !rest.is_empty() {
                // Now and then just to the end of the body, or a byte short of it.
                let body_left = whole.saturating_sub(asked.len() - rest.len());
                let piece = match rng.below(8) {
                    0 => body_left,
                    1 => body_left.saturating_sub(1),
                    _ => 1 + rng.below(length),
                };
                let (piece, after) = rest.split_at(piece.clamp(1, rest.len()));
                conn.send_raw(piece);
                rest = after;
            }
            published(&conn.read_response());
            assert_eq!(Poll::of(&conn.read_response()).data(), [json!(text)], "{length}");
        }
    }
}

/// A body of one byte, in one record of TLS with much behind it: that is not read a byte at a time.
#[test]
fn what_is_encrypted_is_read_as_it_comes() {
    const ROUNDS: usize = 60;
    const BEHIND: usize = 300;
    let server = TlsServer::start(&["--workers", "1"]);
    let addr = server.tls;
    let mut conn = Conn::open(addr);
    conn.get("/healthz").expect(200);
    let begun = wire(addr, "POST", "/channels/a", &[TEXT, ("Expect", "100-continue")], b"x");
    let (begun, body) = begun.split_at(begun.len() - 1);
    let mut rest = body.to_vec();
    (0..BEHIND).for_each(|_| rest.extend(wire(addr, "GET", "/healthz", &[], b"")));
    assert!((12 * 1024..16 * 1024).contains(&rest.len()), "one record: {}", rest.len());
    let before = cpu(server.server.pid());
    for _ in 0..ROUNDS {
        conn.send_raw(begun);
        // It waits for the body.
        conn.take_through(b"\r\n\r\n").expect("an interim answer");
        conn.send_raw(&rest);
        published(&conn.read_response());
        (0..BEHIND).for_each(|_| drop(conn.read_response().expect(200)));
    }
    let spent = cpu(server.server.pid()) - before;
    eprintln!("{spent:?} for {ROUNDS} rounds");
    assert!(spent < Duration::from_millis(300), "{spent:?}");
}

#[test]
fn chunked_bodies() {
    let server = Server::start(&[]);
    for (name, body, want) in [
        ("one", "5\r\nhello\r\n0\r\n\r\n", "hello"),
        ("three", "1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n0\r\n\r\n", "abcdef"),
        ("hexadecimal", "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        ("leading zeros", "0005\r\nhello\r\n000\r\n\r\n", "hello"),
        ("extensions", "5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n", "hello"),
        ("trailers", "5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-Other: 2\r\n\r\n", "hello"),
        ("empty", "0\r\n\r\n", ""),
        ("CRLF inside", "7\r\na\r\n0\r\nb\r\n0\r\n\r\n", "a\r\n0\r\nb"),
    ] {
        let mut whole = Conn::open(server.addr());
        published(&whole.request("POST", "/channels/chunks", &[TEXT, CHUNKED], body));
        assert_eq!(poll(server.addr(), "/channels/chunks").data(), [json!(want)], "{name}");
        // The connection is in step behind it.
        whole.get("/healthz").expect(200);
        let mut bytes = Conn::open(server.addr());
        let coding = ("Transfer-Encoding", "Chunked");
        let wire =
            common::http::wire(server.addr(), "POST", "/channels/bytes", &[TEXT, coding], body.as_bytes());
        for byte in wire {
            bytes.send_raw([byte]);
        }
        published(&bytes.read_response());
        assert_eq!(poll(server.addr(), "/channels/bytes").data(), [json!(want)], "{name}, byte by byte");
        bytes.get("/healthz").expect(200);
    }
}

/// A refusal does not leave the body to be read as the next request.
#[test]
fn bodies_of_refused_requests_are_not_requests() {
    let server = Server::start(&[]);
    let smuggled = "DELETE /channels/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(200);
    let chunked = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    let gap_before = head_cursor(server.addr(), "smuggled");
    for (method, target, status) in [
        ("POST", "/nowhere", 404),
        ("PUT", "/channels/a", 405),
        ("POST", "/healthz", 405),
        ("POST", "/channels/a//b", 400),
        ("GET", "/channels/a?limit=x", 400),
        ("GET", "/healthz", 200),
        ("DELETE", "/channels/other", 204),
    ] {
        for (headers, body) in [(&[TEXT][..], &smuggled), (&[TEXT, CHUNKED], &chunked)] {
            let mut conn = Conn::open(server.addr());
            let answer = conn.request(method, target, headers, body);
            let taken = [status, 400, 413].contains(&answer.status);
            assert!(taken, "{method} {target}: {answer}");
            if answer.closes() {
                conn.eof();
            } else {
                assert_eq!(conn.get("/channels/smuggled?limit=0").status, 200, "{method} {target}");
                conn.quiet(Duration::from_millis(20));
            }
        }
    }
    assert!(
        !poll(server.addr(), &format!("/channels/smuggled?cursor={gap_before}")).gap,
        "nothing was deleted"
    );
}

#[test]
fn expect_100_continue() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for value in ["100-continue", "100-Continue"] {
        conn.send_raw(format!(
            "POST /channels/x HTTP/1.1\r\nHost: localhost\r\nExpect: {value}\r\nContent-Length: 2\r\n\r\n"
        ));
        assert_eq!(
            conn.take_through(b"\r\n\r\n").expect("an interim answer"),
            b"HTTP/1.1 100 Continue\r\n\r\n"
        );
        conn.send_raw("ok");
        published(&conn.read_response());
    }
    // The body is there already: 100 may be left out, the answer may not.
    conn.send("POST", "/channels/x", &[("Expect", "100-continue")], "ok");
    published(&conn.read_response());
    // Nothing to continue with.
    let answer = conn.request("GET", "/healthz", &[("Expect", "100-continue")], "").expect(200);
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
    // Refused before the body is asked for.
    let mut conn = Conn::open(server.addr());
    conn.send_raw(
        "POST /channels/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
    );
    let answer = conn.read_response();
    answer.problem(413);
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
    // Any other expectation.
    let mut conn = Conn::open(server.addr());
    conn.request("POST", "/channels/x", &[("Expect", "a-miracle")], "x").problem(417);
    // HTTP/1.0 knows no 100 (RFC 9110 §10.1.1).
    let mut conn = Conn::open(server.addr());
    conn.send_raw(
        "POST /channels/x HTTP/1.0\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    );
    conn.quiet(A_WHILE);
    conn.send_raw("ok");
    let answer = conn.read_response().expect(201);
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
}
