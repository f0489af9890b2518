//! HTTP/1.1 itself (RFC 9110, 9112): what holds for every route.

use crate::common;

use std::io::{ErrorKind, Write};

use common::http::{Conn, Poll, ask, get, poll, post, publish, published};
use common::server::Server;
use serde_json::json;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const CHUNKED: (&str, &str) = ("Transfer-Encoding", "chunked");

// --- Connections ----------------------------------------------------------------------------------------------------

#[test]
fn healthz_is_200() {
    let server = Server::start(&[]);
    get(server.addr(), "/healthz").expect(200);
    let head = ask(server.addr(), "HEAD", "/healthz", &[], "").expect(200);
    assert!(head.body.is_empty());
    let answer = post(server.addr(), "/healthz", &[], "");
    answer.problem(405);
    assert!(answer.lists("allow", "GET") && answer.lists("allow", "HEAD"), "{answer}");
}

#[test]
fn a_connection_serves_request_after_request() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for n in 0..50 {
        assert!(!conn.get("/healthz").expect(200).closes());
        published(&conn.request("POST", "/channels/ka", &[TEXT], n.to_string()));
        assert_eq!(Poll::of(&conn.get("/channels/ka")).data(), [json!(n.to_string())]);
        // A refusal that leaves no doubt about framing leaves the connection, too.
        conn.get("/nowhere").problem(404);
        conn.request("POST", "/channels/a//b", &[TEXT], "refused").problem(400);
        conn.request("DELETE", "/channels/other", &[], "").expect(204);
    }
}

/// A connection that says nothing at first, and pauses longer than the clock's task sleeps, is served all the same.
#[test]
fn a_connection_that_pauses_is_served_again() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for pause_ms in [0, 1_300, 1_300, 0] {
        // The pause is what is tested.
        std::thread::sleep(std::time::Duration::from_millis(pause_ms));
        conn.request("GET", "/healthz", &[], "").expect(200);
    }
}

#[test]
fn connection_close_is_honoured() {
    let server = Server::start(&[]);
    for value in ["close", "Close", "x, close", "keep-alive, close"] {
        let mut conn = Conn::open(server.addr());
        let answer = conn.request("GET", "/healthz", &[("Connection", value)], "").expect(200);
        assert!(answer.lists("connection", "close"), "{value}: {answer}");
        conn.eof();
    }
    // What is pipelined behind it is not answered (RFC 9112 §9.6).
    let mut conn = Conn::open(server.addr());
    conn.send("GET", "/healthz", &[("Connection", "close")], "");
    conn.send("POST", "/channels/behind", &[TEXT], "x");
    conn.read_response().expect(200);
    conn.eof();
    assert!(poll(server.addr(), "/channels/behind").messages.is_empty());
}

/// A client that goes on asking and does not read is not read from either; when it reads, it has every answer, in order,
/// those that were made at once and those that a task made.
#[test]
fn one_that_asks_and_does_not_read_is_not_read_from() {
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    publish(addr, "large", &"x".repeat(12 * 1024));
    let mut conn = Conn::open(addr);
    let mut writer = conn.stream().try_clone().expect("a descriptor");
    let (blocked, is_blocked) = std::sync::mpsc::channel();
    let asked = std::thread::spawn(move || {
        let wire = |n: usize| match n % 5 {
            0 => common::http::wire(addr, "POST", "/channels/numbers", &[TEXT], n.to_string().as_bytes()),
            3 => common::http::wire(addr, "HEAD", "/channels/large", &[], b""),
            4 => common::http::wire(addr, "GET", "/nowhere", &[], b""),
            _ => common::http::wire(addr, "GET", "/channels/large", &[], b""),
        };
        writer.set_nonblocking(true).expect("a socket");
        // What no kernel's buffers hold.
        for n in 0..200_000 {
            let bytes = wire(n);
            let sent = match writer.write(&bytes) {
                Ok(sent) if sent == bytes.len() => continue,
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => panic!("{error}"),
            };
            // Of both ends: the reader waits for what comes.
            writer.set_nonblocking(false).expect("a socket");
            blocked.send(()).expect("the reader waits");
            writer.write_all(&bytes[sent..]).expect("the server reads again");
            return n + 1;
        }
        panic!("the server took all");
    });
    is_blocked.recv().expect("not all was taken");
    // The server lives, and serves others.
    get(addr, "/healthz").expect(200);
    let (mut n, mut numbers) = (0, Vec::new());
    while !asked.is_finished() || n < 1_000 {
        conn.expect_answer_to(if n % 5 == 3 { "HEAD" } else { "GET" });
        let answer = conn.read_response();
        match n % 5 {
            0 => numbers.push(published(&answer)),
            3 => assert!(answer.expect(200).body.is_empty()),
            4 => drop(answer.problem(404)),
            _ => assert_eq!(Poll::of(&answer).data()[0].as_str().map(str::len), Some(12 * 1024), "{n}"),
        }
        n += 1;
    }
    let asked = asked.join().expect("all is asked");
    for n in n..asked {
        conn.expect_answer_to(if n % 5 == 3 { "HEAD" } else { "GET" });
        let answer = conn.read_response();
        assert_eq!(answer.status, [201, 200, 200, 200, 404][n % 5], "{n}");
    }
    assert_eq!(conn.request("GET", "/healthz", &[], "").status, 200);
    numbers.dedup();
    assert!(numbers.len() > 100, "each publish has its own id");
}

/// Requests that stand behind answers which the client does not take yet are served when it does.
#[test]
fn what_is_behind_untaken_answers_is_served_after_them() {
    let server = Server::start(&["--workers", "1"]);
    let addr = server.addr();
    publish(addr, "large", &"x".repeat(12 * 1024));
    let mut conn = Conn::open(addr);
    common::receive_buffer(conn.stream(), 32 * 1024);
    let mut other = Conn::open(addr);
    let mut taken = 0;
    const CHUNKS: usize = 100;
    for n in 0..CHUNKS {
        // Together, so that some are answered at once and the last is for a task.
        let mut wire =
            common::http::wire(addr, "POST", "/channels/numbers", &[TEXT], n.to_string().as_bytes());
        wire.extend(common::http::wire(addr, "GET", "/channels/large", &[], b"").repeat(3));
        wire.extend(common::http::wire(addr, "HEAD", "/healthz", &[], b""));
        conn.send_raw(wire);
        // Each by itself, as long as the server takes them.
        let is_taken =
            (0..50).any(|_| Poll::of(&other.get("/channels/numbers")).data() == [json!(n.to_string())]);
        taken += usize::from(is_taken);
    }
    assert!(taken > 0 && taken < CHUNKS, "{taken} were taken");
    for n in 0..CHUNKS {
        for (method, status) in [("POST", 201), ("GET", 200), ("GET", 200), ("GET", 200), ("HEAD", 200)] {
            conn.expect_answer_to(method);
            assert_eq!(conn.read_response().status, status, "{method} of chunk {n}");
        }
    }
    assert_eq!(Poll::of(&other.get("/channels/numbers")).data(), [json!((CHUNKS - 1).to_string())]);
}

/// A publish that another worker is asked for is answered when that one says so: not before what was asked for first, whether
/// that waits to be sent with others, or for room in the socket.
#[test]
fn what_is_answered_by_mail_stays_behind_what_was_asked_for_first() {
    const BURST: usize = 30;
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    std::thread::scope(|scope| {
        for client in 0..8 {
            scope.spawn(move || {
                // Answers that stay small are sent with those of others, large ones are owed.
                let channel = format!("read/{client}");
                publish(addr, &channel, &"x".repeat(if client % 2 == 0 { 10 } else { 12 * 1024 }));
                let mut conn = Conn::open(addr);
                common::receive_buffer(conn.stream(), 64 * 1024);
                let get = common::http::wire(addr, "GET", &format!("/channels/{channel}"), &[], b"");
                for round in 0..100 {
                    let mut wire = Vec::new();
                    for n in 0..BURST {
                        if n % 3 < 2 {
                            wire.extend_from_slice(&get);
                            continue;
                        }
                        let target = format!("/channels/written/{}", (round + n) % 5);
                        wire.extend(common::http::wire(addr, "POST", &target, &[TEXT], b"1"));
                    }
                    conn.send_raw(wire);
                    for n in 0..BURST {
                        let want = if n % 3 < 2 { 200 } else { 201 };
                        assert_eq!(conn.read_response().status, want, "client {client}, {round}, {n}");
                    }
                }
            });
        }
    });
}

/// What comes while a publish is answered by another worker is read, though the next request behind it stood there already.
#[test]
fn what_comes_during_an_answer_by_mail_is_read() {
    const CLIENTS: usize = 200;
    let server = Server::start(&["--workers", "4"]);
    let addr = server.addr();
    for round in 0..10 {
        let mut conns: Vec<Conn> = (0..CLIENTS).map(|_| Conn::open(addr)).collect();
        let mut first = common::http::wire(addr, "POST", &format!("/channels/mail-{round}"), &[TEXT], b"x");
        first.extend(common::http::wire(addr, "GET", &format!("/channels/mail-{round}"), &[], b""));
        let second = common::http::wire(addr, "GET", "/healthz", &[], b"");
        for conn in &mut conns {
            conn.send_raw(&first);
            conn.send_raw(&second);
        }
        for conn in &mut conns {
            published(&conn.read_response());
            Poll::of(&conn.read_response());
            conn.read_response().expect(200);
        }
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(&["--workers", "2"]);
    let mut conn = Conn::open(server.addr());
    let mut wire = Vec::new();
    for n in 0..200 {
        let request = match n % 5 {
            0 => common::http::wire(server.addr(), "GET", "/healthz", &[], b""),
            1 => common::http::wire(server.addr(), "POST", &format!("/channels/p{n}"), &[TEXT], b"x"),
            2 => common::http::wire(server.addr(), "GET", &format!("/channels/p{}", n - 1), &[], b""),
            3 => common::http::wire(
                server.addr(),
                "POST",
                "/channels/p",
                &[TEXT, CHUNKED],
                b"1\r\nx\r\n0\r\n\r\n",
            ),
            _ => common::http::wire(server.addr(), "DELETE", &format!("/channels/p{}", n - 3), &[], b""),
        };
        wire.extend_from_slice(&request);
    }
    conn.send_raw(&wire);
    for n in 0..200 {
        let answer = conn.read_response();
        match n % 5 {
            0 => assert_eq!(answer.status, 200, "{n}: {answer}"),
            2 => assert_eq!(Poll::of(&answer).messages.len(), 1, "{n}: what was published just before"),
            4 => assert_eq!(answer.status, 204, "{n}: {answer}"),
            _ => drop(published(&answer)),
        }
    }
}

#[test]
fn requests_are_read_however_they_are_cut() {
    let server = Server::start(&[]);
    let mut wire = common::http::wire(server.addr(), "POST", "/channels/cut", &[TEXT], b"one");
    wire.extend_from_slice(b"\r\n"); // an empty line before a request line (RFC 9112 §2.2)
    wire.extend_from_slice(&common::http::wire(server.addr(), "GET", "/channels/cut", &[], b""));
    for cut in 1..wire.len() {
        let mut conn = Conn::open(server.addr());
        conn.send_raw(&wire[..cut]);
        conn.send_raw(&wire[cut..]);
        published(&conn.read_response());
        assert_eq!(Poll::of(&conn.read_response()).data(), [json!("one")], "cut at {cut}");
    }
    let mut conn = Conn::open(server.addr());
    for byte in &wire {
        conn.send_raw([*byte]);
    }
    published(&conn.read_response());
    Poll::of(&conn.read_response());
}

#[test]
fn a_half_closed_client_still_gets_its_answer() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    conn.send("POST", "/channels/half", &[TEXT], "x");
    conn.shutdown_write();
    published(&conn.read_response());
    conn.eof();
}

// --- Methods, targets, versions -------------------------------------------------------------------------------------

#[test]
fn head_has_no_body_anywhere() {
    let server = Server::start(&[]);
    publish(server.addr(), "h", "x");
    let mut conn = Conn::open(server.addr());
    for (target, status) in
        [("/healthz", 200), ("/channels/h", 200), ("/nowhere", 404), ("/channels/a//b", 400)]
    {
        let full = conn.get(target).expect(status);
        let head = conn.request("HEAD", target, &[], "").expect(status);
        assert_eq!(head.header("content-length"), full.body.len().to_string(), "{target}");
        assert_eq!(head.header("content-type"), full.header("content-type"), "{target}");
    }
    conn.get("/healthz").expect(200);
}

#[test]
fn options_tell_the_methods() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for (target, methods, others) in [
        ("/channels/x", &["GET", "HEAD", "POST", "DELETE", "OPTIONS"][..], &["PUT"][..]),
        ("/publish", &["POST", "OPTIONS"], &["DELETE", "GET"]),
        ("/healthz", &["GET", "HEAD", "OPTIONS"], &["DELETE", "POST"]),
    ] {
        let answer = conn.request("OPTIONS", target, &[], "");
        assert!([200, 204].contains(&answer.status), "{target}: {answer}");
        for method in methods {
            assert!(answer.lists("allow", method), "{method} {target}: {answer}");
        }
        for method in others {
            assert!(!answer.lists("allow", method), "{method} {target}: {answer}");
        }
    }
    let answer = conn.request("OPTIONS", "*", &[], "");
    assert!([200, 204].contains(&answer.status), "{answer}");
    conn.request("OPTIONS", "/nowhere", &[], "").problem(404);
    conn.get("/healthz").expect(200);
}

#[test]
fn absolute_form_targets() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let mut conn = Conn::open(addr);
    publish(addr, "abs", "x");
    for authority in [addr.to_string(), format!("localhost:{}", addr.port()), "LOCALHOST".to_owned()] {
        let answer = conn.get(&format!("http://{authority}/channels/abs?limit=1"));
        assert_eq!(Poll::of(&answer).data(), [json!("x")], "{authority}");
    }
    conn.get(&format!("HTTP://{addr}/healthz")).expect(200);
    // The target's host counts, not the header's (RFC 9112 §3.2.2).
    let answer = conn.get("http://evil.example/channels/abs");
    assert!((400..500).contains(&answer.status), "{answer}");
}

#[test]
fn http_1_0() {
    let server = Server::start(&[]);
    publish(server.addr(), "old", "x");
    let mut conn = Conn::open(server.addr());
    conn.send_raw("GET /channels/old HTTP/1.0\r\nHost: localhost\r\n\r\n");
    let answer = conn.read_response();
    assert_eq!(Poll::of(&answer).data(), [json!("x")]);
    assert!(answer.closes() && answer.get("transfer-encoding").is_none(), "{answer}");
    conn.eof();
    // `Upgrade` is of HTTP/1.1 alone, so this is a key without a handshake.
    let mut conn = Conn::open(server.addr());
    conn.send_raw(
        "GET /channels/old HTTP/1.0\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    );
    conn.read_response().problem(426);
}

#[test]
fn http_1_0_keeps_alive_only_where_both_say_so() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for _ in 0..2 {
        conn.send_raw("GET /healthz HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n");
        let answer = conn.read_response().expect(200);
        // A client of HTTP/1.0 takes silence for the end.
        if !answer.lists("connection", "keep-alive") {
            return conn.eof();
        }
    }
}

#[test]
fn an_unknown_upgrade_is_ignored() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for value in ["h2c", "foo/2, bar"] {
        conn.request("GET", "/channels/up", &[("Connection", "Upgrade"), ("Upgrade", value)], "").expect(200);
    }
}

#[test]
fn unknown_paths_and_methods() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for target in
        ["/nowhere", "/channelsx", "/Channels/a", "/publish/x", "/healthz/", "/index.php", "//", "/.."]
    {
        conn.get(target).problem(404);
    }
    for (method, target, allowed) in [
        ("PUT", "/channels/x", &["GET", "HEAD", "POST", "DELETE"][..]),
        ("PATCH", "/channels/x", &["GET", "HEAD", "POST", "DELETE"]),
        ("PUT", "/healthz", &["GET", "HEAD"]),
        ("GET", "/publish", &["POST"]),
        ("DELETE", "/publish", &["POST"]),
    ] {
        let answer = conn.request(method, target, &[], "");
        answer.problem(405);
        for method in allowed {
            assert!(answer.lists("allow", method), "{target}: {answer}");
        }
        assert!(!answer.lists("allow", "PUT"), "{answer}");
    }
    // Methods that no route has; names are case-sensitive.
    for method in ["FOO", "get", "M-SEARCH"] {
        let answer = conn.request(method, "/channels/x", &[], "");
        assert!([405, 501].contains(&answer.status), "{answer}");
        answer.problem(answer.status);
    }
}

#[test]
fn accept() {
    let server = Server::start(&[]);
    publish(server.addr(), "acc", "x");
    let mut conn = Conn::open(server.addr());
    for (accept, good) in [
        ("*/*", true),
        ("application/json", true),
        ("Application/JSON", true),
        ("application/*", true),
        ("text/html, application/xhtml+xml, application/xml;q=0.9, */*;q=0.8", true),
        ("application/json;q=0.1, text/html", true),
        ("image/png", false),
        ("text/html", false),
        ("application/json;q=0", false),
        ("application/json;q=0, */*", false),
        ("*/*;q=0.0", false),
    ] {
        let answer = conn.request("GET", "/channels/acc", &[("Accept", accept)], "");
        if good {
            assert_eq!(answer.status, 200, "{accept}: {answer}");
            assert_eq!(answer.header("content-type"), "application/json", "{accept}");
        } else {
            assert_eq!(answer.status, 406, "{accept}: {answer}");
            answer.problem(406);
        }
    }
}

#[test]
fn every_answer_has_a_date_and_a_length() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for target in ["/healthz", "/channels/d", "/nowhere", "/channels/a//b"] {
        let answer = conn.get(target);
        // RFC 9110 §6.6.1; the form: Sun, 06 Nov 1994 08:49:37 GMT
        let date = answer.header("date");
        assert!(date.len() == 29 && date.ends_with(" GMT") && date.as_bytes()[3] == b',', "{date}");
        assert_eq!(answer.header("content-length"), answer.body.len().to_string());
    }
}

#[test]
fn problems_tell_what_is_wrong() {
    let server = Server::start(&[]);
    let over = "x".repeat(64 * 1024 + 1);
    let json = ("Content-Type", "application/json");
    for (name, answer, status) in [
        ("a name", get(server.addr(), "/channels/a//b"), 400),
        ("a cursor", get(server.addr(), "/channels/a?cursor=%25"), 400),
        ("JSON", post(server.addr(), "/channels/a", &[json], "{"), 400),
        ("a path", get(server.addr(), "/a"), 404),
        ("a method", ask(server.addr(), "PUT", "/channels/a", &[], ""), 405),
        ("a type", ask(server.addr(), "GET", "/channels/a", &[("Accept", "image/png")], ""), 406),
        ("a size", post(server.addr(), "/channels/a", &[TEXT], &over), 413),
        ("a coding", post(server.addr(), "/channels/a", &[("Content-Encoding", "gzip")], ""), 415),
        ("a line", get(server.addr(), &format!("/{}", "x".repeat(20_000))), 414),
        (
            "a key without an upgrade",
            ask(
                server.addr(),
                "GET",
                "/channels/a",
                &[("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")],
                "",
            ),
            426,
        ),
    ] {
        assert_eq!(answer.status, status, "{name}: {answer}");
        let detail = answer.problem(status);
        assert_ne!(detail, answer.json()["title"], "{name}: the detail says more than the title");
        if status == 426 {
            assert_eq!(answer.header("upgrade").to_ascii_lowercase(), "websocket", "{answer}");
            assert_eq!(answer.header("sec-websocket-version"), "13", "{answer}");
        }
    }
}
