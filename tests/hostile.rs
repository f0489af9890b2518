//! Malformed and hostile requests: each is answered, and harms nobody.

use crate::common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use common::http::{Conn, get, post};
use common::server::Server;

/// What becomes of the connection behind the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// Framing is in doubt: closed, and the answer is not eaten by RST.
    Closed,
    /// In step: the next request is answered.
    Open,
    /// Either will do.
    Either,
}
use After::{Closed, Either, Open};

struct Case {
    name: &'static str,
    wire: Vec<u8>,
    status: &'static [u16],
    after: After,
}

fn case(name: &'static str, wire: impl Into<Vec<u8>>, status: &'static [u16], after: After) -> Case {
    Case { name, wire: wire.into(), status, after }
}

/// A GET of /healthz with one more line in its head.
fn line(line: &str) -> Vec<u8> {
    format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{line}\r\n\r\n").into_bytes()
}

/// A publish with these framing lines and this body.
fn body(lines: &str, body: &str) -> Vec<u8> {
    format!("POST /channels/hostile HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n{body}").into_bytes()
}

fn chunks(chunks: &str) -> Vec<u8> {
    body("Transfer-Encoding: chunked", chunks)
}

/// A GET of /healthz with this request line.
fn first(first: &str) -> Vec<u8> {
    format!("{first}\r\nHost: localhost\r\n\r\n").into_bytes()
}

/// A GET of a channel with these lines in its head.
fn channel(lines: &str) -> Vec<u8> {
    format!("GET /channels/a HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n").into_bytes()
}

fn framing() -> Vec<Case> {
    let long = "9".repeat(40);
    vec![
        case(
            "length and coding",
            body("Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            &[400],
            Closed,
        ),
        case(
            "coding and length",
            body("Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n"),
            &[400],
            Closed,
        ),
        case("two lengths", body("Content-Length: 5\r\nContent-Length: 6", "hello!"), &[400], Closed),
        case(
            "the same length twice",
            body("Content-Length: 5\r\nContent-Length: 5", "hello"),
            &[400],
            Closed,
        ),
        case("a list of lengths", body("Content-Length: 5, 5", "hello"), &[400], Closed),
        case("a length with a plus", body("Content-Length: +5", "hello"), &[400], Closed),
        case("a negative length", body("Content-Length: -5", "hello"), &[400], Closed),
        case("a length in hexadecimal", body("Content-Length: 0x5", "hello"), &[400], Closed),
        case("a length in two words", body("Content-Length: 1 0", "hello"), &[400], Closed),
        case("an empty length", body("Content-Length:", "hello"), &[400], Closed),
        case(
            "a length beyond 64 bits",
            body(&format!("Content-Length: {long}"), "hello"),
            &[400, 413],
            Closed,
        ),
        case(
            "a length that would wrap",
            body("Content-Length: 18446744073709551621", "hello"),
            &[400, 413],
            Closed,
        ),
        case("a length too large", body("Content-Length: 99999999", "hello"), &[413], Closed),
        case("gzip, chunked", body("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), &[400], Closed),
        case("chunked, chunked", body("Transfer-Encoding: chunked, chunked", "0\r\n\r\n"), &[400], Closed),
        case(
            "chunked in two lines",
            body("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            &[400],
            Closed,
        ),
        case("chunked, gzip", body("Transfer-Encoding: chunked, gzip", "0\r\n\r\n"), &[400, 501], Closed),
        case("gzip alone", body("Transfer-Encoding: gzip", "0\r\n\r\n"), &[501], Closed),
        case("an unknown coding", body("Transfer-Encoding: xchunked", "0\r\n\r\n"), &[501], Closed),
        case("identity", body("Transfer-Encoding: identity", "0\r\n\r\n"), &[400, 501], Closed),
        case("an empty coding", body("Transfer-Encoding:", "0\r\n\r\n"), &[400, 501], Closed),
        case("a coding in quotes", body("Transfer-Encoding: \"chunked\"", "0\r\n\r\n"), &[400, 501], Closed),
        case(
            "a coding with a parameter",
            body("Transfer-Encoding: chunked;q=1", "0\r\n\r\n"),
            &[400, 501],
            Closed,
        ),
        case(
            "a coding behind a vertical tab",
            body("Transfer-Encoding: \x0bchunked", "0\r\n\r\n"),
            &[400, 501],
            Closed,
        ),
        case(
            "chunked in HTTP/1.0",
            "POST /channels/x HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
            Closed,
        ),
        case(
            "a space before the coding's colon",
            body("Transfer-Encoding : chunked", "0\r\n\r\n"),
            &[400],
            Closed,
        ),
        case("a space before the length's colon", body("Content-Length : 5", "hello"), &[400], Closed),
        case("a tab before the colon", body("Content-Length\t: 5", "hello"), &[400], Closed),
    ]
}

fn chunking() -> Vec<Case> {
    let long = "x".repeat(20_000);
    vec![
        case("a size of letters", chunks("zz\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("no size", chunks("\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("an extension without a size", chunks(";a=b\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a negative size", chunks("-5\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a size with a plus", chunks("+5\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a size with 0x", chunks("0x5\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a size behind a space", chunks(" 5\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a size that wraps", chunks("10000000000000005\r\nhello\r\n0\r\n\r\n"), &[400, 413], Closed),
        case("the largest size", chunks("ffffffffffffffff\r\nhello\r\n0\r\n\r\n"), &[400, 413], Closed),
        case(
            "half of the largest size",
            chunks("7fffffffffffffff\r\nhello\r\n0\r\n\r\n"),
            &[400, 413],
            Closed,
        ),
        case("a size of endless zeros", chunks(&"0".repeat(70_000)), &[400, 413, 431], Closed),
        case("more than the size", chunks("3\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a bare LF behind the size", chunks("5\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a bare LF behind the chunk", chunks("5\r\nhello\n0\r\n\r\n"), &[400], Closed),
        case("a bare CR behind the size", chunks("5\rhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a bare LF at the end", chunks("5\r\nhello\r\n0\r\n\n"), &[400], Closed),
        case("NUL in an extension", chunks("5;\0\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case("a bare LF in an extension", chunks("5;a\nb\r\nhello\r\n0\r\n\r\n"), &[400], Closed),
        case(
            "a long extension",
            chunks(&format!("5;{long}\r\nhello\r\n0\r\n\r\n")),
            &[400, 413, 431],
            Closed,
        ),
        case(
            "long trailers",
            chunks(&format!("5\r\nhello\r\n0\r\nX: {long}\r\n\r\n")),
            &[400, 413, 431],
            Closed,
        ),
        case(
            "many trailers",
            chunks(&format!("0\r\n{}\r\n", "X: y\r\n".repeat(5_000))),
            &[400, 413, 431],
            Closed,
        ),
    ]
}

fn heads() -> Vec<Case> {
    let long = "x".repeat(20_000);
    let target = format!("GET /{long} HTTP/1.1");
    let method = format!("{long} /healthz HTTP/1.1");
    vec![
        case("a folded line", line("X: a\r\n b"), &[400], Closed),
        case("a line folded with a tab", line("X: a\r\n\tb"), &[400], Closed),
        case(
            "a first line that is folded",
            "GET /healthz HTTP/1.1\r\n X: a\r\nHost: localhost\r\n\r\n",
            &[400],
            Closed,
        ),
        case("nothing but bare LFs", "GET /healthz HTTP/1.1\nHost: localhost\n\n", &[400], Closed),
        case("one bare LF", "GET /healthz HTTP/1.1\nHost: localhost\r\n\r\n", &[400], Closed),
        case("a bare LF in a value", line("X: a\nY: b"), &[400], Closed),
        case("a bare LF at the end", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\n", &[400], Closed),
        case("a bare CR in a value", line("X: a\rY: b"), &[400], Closed),
        case("NUL in a value", line("X: a\0b"), &[400], Closed),
        case("NUL in a name", line("X\0: a"), &[400], Closed),
        case("NUL in the target", first("GET /he\0althz HTTP/1.1"), &[400], Closed),
        case("NUL first", "\0GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", &[400], Closed),
        case("a control character in a value", line("X: a\x01b"), &[400], Closed),
        case("DEL in a value", line("X: a\x7fb"), &[400], Closed),
        case("a line without a colon", line("nonsense"), &[400], Closed),
        case("a line without a name", line(": value"), &[400], Closed),
        case("a space in a name", line("X Y: 1"), &[400], Closed),
        case("parentheses in a name", line("X(1): 1"), &[400], Closed),
        case("a name beyond ASCII", line("Xé: 1"), &[400], Closed),
        case("65 fields", line(&["X: y"; 64].join("\r\n")), &[431], Closed),
        case("a thousand fields", line(&["X: y"; 1_000].join("\r\n")), &[431], Closed),
        case("a head too long", line(&format!("X: {long}")), &[431], Closed),
        case(
            "a head without an end",
            format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{}", "X: yyyyyyyyyyyy\r\n".repeat(9_000)),
            &[431],
            Closed,
        ),
        case(
            "a line without an end",
            format!("GET /healthz HTTP/1.1\r\nX: {}", "y".repeat(200_000)),
            &[431],
            Closed,
        ),
        case("a target too long", first(&target), &[414], Closed),
        case("a method too long", first(&method), &[400, 414, 431, 501], Closed),
        case("no version", "GET /healthz\r\n\r\n", &[400, 505], Closed),
        case("no version, with fields", first("GET /healthz"), &[400, 505], Closed),
        case("HTTP/2.0", first("GET /healthz HTTP/2.0"), &[505], Closed),
        case("HTTP/3.0", first("GET /healthz HTTP/3.0"), &[505], Closed),
        case("HTTP/0.9", first("GET /healthz HTTP/0.9"), &[505], Closed),
        case("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400, 505], Closed),
        case("a version in small letters", first("GET /healthz http/1.1"), &[400, 505], Closed),
        case("a version of three", first("GET /healthz HTTP/1.1.1"), &[400, 505], Closed),
        case("a version without a dot", first("GET /healthz HTTP/11"), &[400, 505], Closed),
        case("another protocol's name", first("GET /healthz ICY/1.1"), &[400, 505], Closed),
        case("two spaces before the target", first("GET  /healthz HTTP/1.1"), &[400], Closed),
        case("two spaces before the version", first("GET /healthz  HTTP/1.1"), &[400], Closed),
        case("a space in the target", first("GET /heal thz HTTP/1.1"), &[400, 505], Closed),
        case("a tab for a space", first("GET\t/healthz\tHTTP/1.1"), &[400], Closed),
        case("a space at the end", first("GET /healthz HTTP/1.1 "), &[400, 505], Closed),
        case("no method", first(" /healthz HTTP/1.1"), &[400], Closed),
        case("a method of brackets", first("G<>T /healthz HTTP/1.1"), &[400], Closed),
        case("a target without a slash", first("GET healthz HTTP/1.1"), &[400], Either),
        case(
            "a target of bytes beyond ASCII",
            [&b"GET /channels/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n"[..]].concat(),
            &[400],
            Either,
        ),
        case("DEL in the target", first("GET /channels/a\x7f HTTP/1.1"), &[400], Either),
        case("an asterisk for GET", first("GET * HTTP/1.1"), &[400], Either),
        case("an authority for GET", first("GET localhost:80 HTTP/1.1"), &[400], Either),
        case("CONNECT", first("CONNECT localhost:80 HTTP/1.1"), &[400, 405, 501], Either),
        case("TRACE", first("TRACE /channels/a HTTP/1.1"), &[405, 501], Either),
        case("an absolute target without a host", first("GET http:///healthz HTTP/1.1"), &[400], Either),
        case("an absolute target of FTP", first("GET ftp://localhost/healthz HTTP/1.1"), &[400, 404], Either),
        case(
            "an absolute target with a user",
            first("GET http://u:p@localhost/healthz HTTP/1.1"),
            &[400],
            Either,
        ),
        case(
            "an answer for a request",
            "HTTP/1.1 200 OK\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
            &[400],
            Closed,
        ),
        case("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\xff\r\n\r\n".to_vec(), &[400], Closed),
        case("SSH", "SSH-2.0-OpenSSH_9.9\r\n\r\n", &[400], Closed),
        case("SMTP", "EHLO localhost\r\nMAIL FROM:<a@b>\r\n\r\n", &[400], Closed),
        case(
            "bytes of no protocol",
            (0..=255).cycle().take(4_000).chain(*b"\r\n\r\n").collect::<Vec<u8>>(),
            &[400],
            Closed,
        ),
    ]
}

fn hosts() -> Vec<Case> {
    let host = |host: &str| format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n");
    vec![
        case("no Host", "GET /healthz HTTP/1.1\r\n\r\n", &[400], Closed),
        case("no Host, absolute target", "GET http://localhost/healthz HTTP/1.1\r\n\r\n", &[400], Closed),
        case("two Hosts", line("Host: localhost"), &[400], Closed),
        case("two Hosts that differ", line("Host: 127.0.0.1"), &[400], Closed),
        case("an empty Host", host(""), &[400], Closed),
        case("a Host of two words", host("local host"), &[400], Closed),
        case("a list of Hosts", host("localhost, localhost"), &[400], Closed),
        case("a Host with a path", host("localhost/x"), &[400], Closed),
        case("a Host with a user", host("user@localhost"), &[400], Closed),
        case("a Host with a port too large", host("localhost:99999"), &[400], Closed),
        case("a Host with a port of letters", host("localhost:http"), &[400], Closed),
        case("a Host of half an address", host("[::1"), &[400], Closed),
        case("a foreign Host", host("evil.example"), &[400, 403, 421], Either),
    ]
}

fn requests() -> Vec<Case> {
    let good = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13";
    let key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==";
    let deep = "[".repeat(60_000);
    let json =
        |json: &str| body(&format!("Content-Type: application/json\r\nContent-Length: {}", json.len()), json);
    vec![
        case("a handshake with its key twice", channel(&format!("{good}\r\n{key}\r\n{key}")), &[400], Closed),
        case(
            "a handshake with a short key",
            channel(&format!("{good}\r\nSec-WebSocket-Key: AAAA")),
            &[400],
            Closed,
        ),
        case(
            "a handshake with a long key",
            channel(&format!("{good}\r\nSec-WebSocket-Key: {}", "A".repeat(32))),
            &[400],
            Closed,
        ),
        case(
            "a handshake whose key is no base64",
            channel(&format!("{good}\r\nSec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!==")),
            &[400],
            Closed,
        ),
        case("a handshake without a key", channel(good), &[400], Either),
        case(
            "a handshake of an old version",
            channel(&format!("{good}\r\n{key}").replace("13", "8")),
            &[426],
            Either,
        ),
        case("a key without an upgrade", channel(key), &[426], Either),
        case(
            "an unknown subprotocol",
            channel(&format!("{good}\r\n{key}\r\nSec-WebSocket-Protocol: mqtt")),
            &[400],
            Either,
        ),
        case("a path out of the tree", first("GET /channels/../../etc/passwd HTTP/1.1"), &[400, 404], Open),
        case("the same, encoded", first("GET /channels/%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), &[400], Open),
        case("CRLF in a name", first("GET /channels/a%0d%0aX:%20y HTTP/1.1"), &[400], Open),
        case("a cursor of markup", first("GET /channels/a?cursor=<script> HTTP/1.1"), &[400], Either),
        case(
            "a limit beyond numbers",
            first(&format!("GET /channels/a?limit={} HTTP/1.1", "9".repeat(300))),
            &[200, 400],
            Open,
        ),
        case(
            "a wait beyond numbers",
            first(&format!("GET /channels/a?wait={} HTTP/1.1", "9".repeat(300))),
            &[200, 400],
            Open,
        ),
        case(
            "a thousand questions",
            first(&format!("GET /channels/a?{} HTTP/1.1", "x=y&".repeat(1_000))),
            &[200, 400],
            Open,
        ),
        case("an unclosed quote in Prefer", channel("Prefer: wait=\"9"), &[200], Open),
        case("an Accept of punctuation", channel("Accept: ,;q=,;;\"/"), &[200, 400, 406], Open),
        case("a tag of punctuation", channel("If-None-Match: \"\"\"W/,,\""), &[200], Open),
        case(
            "a body nobody wants",
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
            &[200, 400, 413],
            Either,
        ),
        case("JSON that nests and never ends", json(&deep), &[400], Open),
        case(
            "JSON that nests deep, closed wrongly",
            json(&("[".repeat(30_000) + &"}".repeat(30_000))),
            &[400],
            Open,
        ),
        case(
            "an expectation of a miracle",
            body("Expect: miracle\r\nContent-Length: 5", "hello"),
            &[417],
            Either,
        ),
        case("a foreign Origin", line("Origin: http://evil.example"), &[403], Either),
        case(
            "two Origins",
            line("Origin: http://localhost\r\nOrigin: http://evil.example"),
            &[400, 403],
            Either,
        ),
    ]
}

/// Sends a case in one of three ways, and judges the answer.
fn ask(server: &Server, case: &Case, way: &str) {
    let what = format!("{} ({way})", case.name);
    let mut conn = Conn::open(server.addr());
    match way {
        "whole" => conn.send_raw(&case.wire),
        // The server may have answered before the last byte: then it still reads on for a while.
        "byte by byte" => case.wire.iter().for_each(|byte| drop(conn.try_send_raw([*byte]))),
        _ => {
            conn.send_raw(&case.wire);
            let _ = conn.try_send_raw([b'x'; 64 * 1024]);
        }
    }
    conn.set_timeout(Duration::from_secs(8));
    let answer = conn.try_read_response().unwrap_or_else(|error| panic!("{what}: no answer: {error}"));
    assert!(case.status.contains(&answer.status), "{what}: {:?} expected, not {answer}", case.status);
    if answer.status >= 400 {
        answer.problem(answer.status);
    }
    match case.after {
        Closed => {
            assert!(answer.closes(), "{what}: says that it closes: {answer}");
            conn.eof();
        }
        Open => {
            assert!(!answer.closes(), "{what}: {answer}");
            conn.get("/healthz").expect(200);
        }
        Either if answer.closes() => conn.eof(),
        Either => drop(conn.get("/healthz").expect(200)),
    }
}

/// Runs all cases, and only then fails with the names of those that did.
fn all(cases: &[Case]) {
    // Deadlines far beyond the test's patience: each answer is for what was sent, none for what was not.
    let server = Server::start(&["--set", "timeouts.head_seconds=300", "--set", "timeouts.body_seconds=300"]);
    let mut failed = Vec::new();
    for case in cases {
        let ways = [
            ("whole", true),
            ("byte by byte", case.wire.len() < 400),
            ("with junk behind it", case.after == Closed),
        ];
        for (way, _) in ways.iter().filter(|(_, applies)| *applies) {
            let done = catch_unwind(AssertUnwindSafe(|| ask(&server, case, way)));
            if done.is_err() {
                failed.push(format!("{} ({way})", case.name));
            }
        }
        get(server.addr(), "/healthz").expect(200);
    }
    // None of it was published, and all goes on.
    assert_eq!(get(server.addr(), "/channels/hostile").expect(200).json()["messages"], serde_json::json!([]));
    post(server.addr(), "/channels/hostile", &[], "good").expect(201);
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn framing_in_doubt() {
    all(&framing());
}

#[test]
fn chunks_in_doubt() {
    all(&chunking());
}

#[test]
fn heads_in_doubt() {
    all(&heads());
}

#[test]
fn hosts_in_doubt() {
    all(&hosts());
}

#[test]
fn hostile_requests() {
    all(&requests());
}

#[test]
fn the_table_is_not_thinned_out() {
    let count = framing().len() + chunking().len() + heads().len() + hosts().len() + requests().len();
    assert!(count >= 60, "{count}");
}

#[test]
fn what_only_looks_hostile_is_served() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for (name, wire) in [
        ("64 fields", line(&["X: y"; 63].join("\r\n"))),
        ("bytes beyond ASCII in a value", line("X: é")),
        ("an empty value", line("X:")),
        ("no space behind the colon", line("X:y")),
        ("tabs around a value", line("X:\t y \t")),
        ("a name of all characters", line("!#$%&'*+-.^_`|~09azAZ: y")),
        ("a Host in capitals with a port", "GET /healthz HTTP/1.1\r\nhOST: LocalHost:1\r\n\r\n".into()),
        ("a Host of an IPv6 address", "GET /healthz HTTP/1.1\r\nHost: [::1]:80\r\n\r\n".into()),
        ("an empty line first", [b"\r\n".to_vec(), line("X: y")].concat()),
        ("a head of nearly 16 KiB", line(&format!("X: {}", "y".repeat(16_000)))),
    ] {
        conn.send_raw(wire);
        assert_eq!(conn.read_response().status, 200, "{name}");
    }
}

/// Valid, whatever its depth: passed on, or refused; never the end of the server.
#[test]
fn json_that_nests_deep_harms_nobody() {
    let server = Server::start(&[]);
    let deep = "[".repeat(30_000) + &"]".repeat(30_000);
    let answer = post(server.addr(), "/channels/deep", &[("Content-Type", "application/json")], &deep);
    assert!([201, 400].contains(&answer.status), "{answer}");
    let line = format!("{{\"channel\":\"deep\",\"data\":{deep}}}");
    post(server.addr(), "/publish", &[("Content-Type", "application/x-ndjson")], line);
    get(server.addr(), "/channels/deep").expect(200);
}

#[test]
fn hundreds_who_say_nothing_harm_nobody() {
    let server = Server::start(&[]);
    let mut silent: Vec<_> = (0..300).map(|_| Conn::open(server.addr())).collect();
    for (n, conn) in silent.iter_mut().enumerate() {
        conn.send_raw(&line("X: y")[..n % 40]);
    }
    for _ in 0..20 {
        get(server.addr(), "/healthz").expect(200);
    }
    // Half a request is worth a whole answer when its rest comes.
    for (n, conn) in silent.iter_mut().enumerate() {
        conn.send_raw(&line("X: y")[n % 40..]);
        conn.read_response().expect(200);
    }
}
