//! The access log (docs/access-log.md): what has a line, what never stands in one, and that it holds nobody up.

use crate::common;

use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use common::access::{ACCESS_LOG, AccessLog};
use common::http::{AT_ONCE, Conn, ask, get, head_cursor, post, publish, timed};
use common::server::{Server, message_of};
use common::sse::Stream;
use common::until;
use common::ws::{Socket, V1};
use serde_json::Value;

fn start(args: &[&str]) -> (Server, AccessLog) {
    let all: Vec<&str> = ACCESS_LOG.iter().chain(args).copied().collect();
    let server = Server::start(&all);
    let log = AccessLog::of(&server);
    (server, log)
}

#[track_caller]
fn said(line: &Value, want: &[(&str, Value)]) {
    for (name, value) in want {
        assert_eq!(&line[*name], value, "{name} of {line}");
    }
}

/// However it is served: in its first bytes or on a kept connection, at once or by a task, by this worker or another.
#[test]
fn each_request_has_one_line() {
    let (server, log) = start(&["--workers", "3"]);
    let addr = server.addr();
    let mut kept = Conn::open(addr);
    let peer = kept.stream().local_addr().expect("an address").to_string();
    let agent = [("User-Agent", "tests/1 \"quoted\""), ("Referer", "http://localhost/page?token=s3cret")];
    let answer = kept.request("GET", "/channels/first", &agent, "");
    let line = log.request("/channels/first");
    said(
        &line,
        &[
            ("method", "GET".into()),
            ("status", 200.into()),
            ("peer", peer.as_str().into()),
            ("transport", "http".into()),
            ("user_agent", "tests/1 \"quoted\"".into()),
            ("referer", "http://localhost/page".into()),
        ],
    );
    let body = u64::try_from(answer.body.len()).expect("small");
    assert!(line["bytes"].as_u64().is_some_and(|bytes| bytes > body), "{line}");
    assert!(line["duration_us"].as_u64().is_some_and(|us| us < 10_000_000), "{line}");
    assert!(line["time"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 24), "{line}");

    let mut want = vec![("/channels/first".to_owned(), 200)];
    // Homes on all workers: some are asked for, and answer later.
    for n in 0..12 {
        let path = format!("/channels/kept/{n}");
        assert_eq!(kept.request("POST", &path, &[("Content-Type", "text/plain")], "x").status, 201);
        want.push((path, 201));
        let path = format!("/channels/kept/{n}?limit=1");
        assert_eq!(kept.get(&path).status, 200);
        want.push((path, 200));
        let path = format!("/channels/own/{n}");
        post(addr, &path, &[("Idempotency-Key", "k")], "x").expect(201);
        want.push((path, 201));
    }
    let etag = get(addr, "/channels/kept/0?limit=1").header("etag").to_owned();
    want.push(("/channels/kept/0?limit=1".into(), 200));
    kept.request("GET", "/channels/kept/0?limit=1", &[("If-None-Match", &etag)], "").expect(304);
    want.push(("/channels/kept/0?limit=1".into(), 304));
    for (method, path, headers, status) in [
        ("DELETE", "/channels/kept/0", &[][..], 204),
        ("OPTIONS", "/channels/preflight", &[], 204),
        ("PUT", "/channels/put", &[], 405),
        ("GET", "/nowhere", &[], 404),
        ("GET", "/channels/strange", &[("Origin", "http://evil.example")], 403),
        ("HEAD", "/channels/head", &[("Accept", "text/event-stream")], 200),
        ("POST", "/publish", &[("Content-Type", "text/plain")], 415),
    ] {
        assert_eq!(ask(addr, method, path, headers, "").status, status, "{method} {path}");
        want.push((path.to_owned(), status));
    }
    // Pipelined, so that they are answered together.
    let wire: Vec<u8> = (0..20)
        .flat_map(|n| common::http::wire(addr, "GET", &format!("/channels/piped/{n}"), &[], b""))
        .collect();
    kept.send_raw(wire);
    for n in 0..20 {
        kept.expect_answer_to("GET");
        kept.read_response().expect(200);
        want.push((format!("/channels/piped/{n}"), 200));
    }
    want.sort();
    let lines = until("as many lines as requests", || {
        let lines: Vec<Value> = log.lines().into_iter().filter(|line| line["type"] == "request").collect();
        (lines.len() >= want.len()).then_some(lines)
    });
    let mut got: Vec<(String, u16)> = lines
        .iter()
        .map(|line| {
            let path = line["path"].as_str().expect("a path").to_owned();
            let status = line["status"].as_u64().unwrap_or_else(|| panic!("a status in {line}"));
            (path, u16::try_from(status).expect("a status"))
        })
        .collect();
    got.sort();
    assert_eq!(got, want);
    assert!(!log.text().contains("s3cret"));
}

#[test]
fn streams_and_polls_that_wait_have_theirs() {
    let (server, log) = start(&[]);
    let addr = server.addr();
    let stream = Stream::open(addr, "/channels/a");
    said(
        &log.request("/channels/a"),
        &[
            ("status", 200.into()),
            ("transport", "sse".into()),
            ("connection", stream.connection.as_str().into()),
        ],
    );
    let (v1, _) = V1::subscribed(addr, "b");
    said(
        &log.request("/channels/b"),
        &[
            ("status", 101.into()),
            ("transport", "pushline.v1".into()),
            ("connection", v1.connection.as_str().into()),
        ],
    );
    let raw = Socket::open(addr, "/channels/c");
    said(&log.request("/channels/c"), &[("status", 101.into()), ("transport", "websocket".into())]);

    // One on a fresh connection, one on a kept one; answered by a message, and by the end of the wait.
    let cursor = head_cursor(addr, "d");
    let path = format!("/channels/d?cursor={cursor}&wait=20");
    let mut fresh = Conn::open(addr);
    fresh.send("GET", &path, &[], "");
    let mut kept = Conn::open(addr);
    kept.get("/healthz").expect(200);
    let kept_path = format!("/channels/d?wait=20&cursor={cursor}");
    kept.send("GET", &kept_path, &[], "");
    let left_path = format!("/channels/left?wait=20&cursor={}", head_cursor(addr, "left"));
    let mut left = Conn::open(addr);
    left.send("GET", &left_path, &[], "");
    let ended = format!("/channels/e?cursor={}&wait=1", head_cursor(addr, "e"));
    get(addr, &ended).expect(204);
    said(&log.request(&ended), &[("status", 204.into()), ("transport", "long_poll".into())]);
    assert!(log.lines().iter().all(|line| line["path"] != path), "none before its answer");
    publish(addr, "d", "x");
    fresh.read_response().expect(200);
    kept.read_response().expect(200);
    for path in [&path, &kept_path] {
        let line = log.request(path);
        said(&line, &[("status", 200.into()), ("transport", "long_poll".into())]);
        assert!(line["duration_us"].as_u64().is_some_and(|us| us >= 900_000), "it waited: {line}");
    }
    // Who goes before the answer has a line without one.
    drop(left);
    said(&log.request(&left_path), &[("status", Value::Null), ("transport", "long_poll".into())]);
    drop((stream, v1, raw));
}

#[test]
fn what_could_not_be_read_has_a_line_too() {
    let (server, log) = start(&["--set", "timeouts.head_seconds=0.3", "--set", "timeouts.body_seconds=0.3"]);
    let addr = server.addr();
    let cases: [(&str, &[u8], u64, Option<&str>); 5] = [
        ("a bad field", b"GET /channels/bad HTTP/1.1\r\nHost : x\r\n\r\n", 400, Some("/channels/bad")),
        ("a late head", b"GET /channels/late?token=s3cret HTT", 408, Some("/channels/late?token=-")),
        (
            "a late body",
            b"POST /channels/body?ticket=s3cret HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
            408,
            Some("/channels/body?ticket=-"),
        ),
        ("no target", b"GET s3cret HTTP/1.1\r\n\r\n", 400, None),
        ("an escape", b"GET /\x1b[31ms3cret HTTP/1.1\r\n\r\n", 400, Some("/\u{1b}[31ms3cret")),
    ];
    for (name, wire, status, path) in cases {
        let mut conn = Conn::open(addr);
        let peer = conn.stream().local_addr().expect("an address").to_string();
        conn.send_raw(wire);
        assert_eq!(u64::from(conn.read_response().status), status, "{name}");
        let line = log.wait(name, |line| line["type"] == "request" && line["peer"] == peer);
        said(&line, &[("status", status.into()), ("path", path.map_or(Value::Null, Value::from))]);
    }
    let big = format!("GET /channels/big HTTP/1.1\r\nX: {}", "x".repeat(20_000));
    let mut conn = Conn::open(addr);
    conn.send_raw(big);
    conn.read_response().expect(431);
    said(&log.request("/channels/big"), &[("status", 431.into()), ("method", "GET".into())]);
    let text = log.text();
    assert!(!text.contains("token=s3cret") && !text.contains("ticket=s3cret"), "{text}");
    assert!(!text.contains('\u{1b}'), "a terminal that shows it obeys: {text:?}");
}

#[test]
fn ends_and_refusals_have_a_line() {
    let (server, log) = start(&["--workers", "1", "--set", "limits.connections=2"]);
    let addr = server.addr();
    let mut stream = Stream::open(addr, "/channels/a");
    let client = stream.conn().stream().local_addr().expect("an address");
    let mut second = Conn::open(addr);
    for text in ["one", "two"] {
        second.request("POST", "/channels/a", &[("Content-Type", "text/plain")], text).expect(201);
    }
    assert_eq!(stream.texts(2), ["one", "two"]);
    let connection = stream.connection.clone();
    let mut third = Conn::open(addr);
    let refused = third.stream().local_addr().expect("an address").to_string();
    third.eof();
    said(
        &log.wait("refused", |line| line["type"] == "refused" && line["peer"] == refused),
        &[("reason", "full".into())],
    );
    drop((second, stream));
    let line = log.end_of(client);
    said(
        &line,
        &[
            ("transport", "sse".into()),
            ("reason", "gone".into()),
            ("messages", 2.into()),
            ("connection", connection.into()),
        ],
    );
    assert!(line["bytes"].as_u64().is_some_and(|bytes| bytes > 300), "{line}");
}

#[test]
fn text_is_for_people() {
    let (server, log) = start(&["--set", "access_log.format=text"]);
    ask(server.addr(), "GET", "/channels/a?limit=1", &[("User-Agent", "x y\u{e9}=\"")], "").expect(200);
    let line =
        until("a line", || log.text().lines().find(|line| line.contains("request")).map(str::to_owned));
    assert!(line.contains(" request worker="), "{line}");
    assert!(line.contains(" method=GET path=/channels/a?limit=1 status=200 bytes="), "{line}");
    assert!(line.ends_with(" user_agent=\"x yé=\\\"\""), "{line}");
}

#[test]
fn a_file_that_was_moved_is_opened_again() {
    let (mut server, log) = start(&[]);
    get(server.addr(), "/channels/before").expect(200);
    log.request("/channels/before");
    let (now, moved) = (server.dir().join("access.log"), server.dir().join("access.log.1"));
    std::fs::rename(&now, &moved).expect("moved");
    get(server.addr(), "/channels/between").expect(200);
    server.signal(libc::SIGHUP);
    until("the new file", || now.exists().then_some(()));
    get(server.addr(), "/channels/after").expect(200);
    log.request("/channels/after");
    let old = std::fs::read_to_string(&moved).expect("the old file");
    assert!(old.contains("/channels/between") && !old.contains("/channels/after"), "{old}");
    assert!(!log.text().contains("/channels/between"));
    assert!(server.alive());
}

/// A pipe whose reader sleeps: everybody is served, and what did not fit is counted.
#[test]
fn a_log_that_is_not_taken_holds_nobody_up() {
    // Directories of tests are empty, so the pipe is made elsewhere.
    let path = std::env::temp_dir().join(format!("pushline-access-{}", std::process::id()));
    let name = std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
    let _ = std::fs::remove_file(&path);
    make_fifo(&name);
    let mut pipe = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .expect("a pipe");
    let to = format!("access_log.to={}", path.display());
    let server = Server::start(&["--workers", "1", "--set", &to]);
    const REQUESTS: usize = 3_000;
    let mut conn = Conn::open(server.addr());
    let wire = common::http::wire(server.addr(), "GET", "/channels/a", &[], b"").repeat(REQUESTS / 100);
    let ((), took) = timed(|| {
        for _ in 0..100 {
            conn.send_raw(&wire);
            for _ in 0..REQUESTS / 100 {
                conn.expect_answer_to("GET");
                conn.read_response().expect(200);
            }
        }
    });
    assert!(took < 3 * AT_ONCE, "{took:?}");
    server.wait_log(|line| message_of(line).is_some_and(|message| message.contains("cannot be written")));
    // It is read from now on: the log says what is missing.
    let mut text = Vec::new();
    let (mut lines, mut dropped) = (0, 0);
    until("all requests accounted for", || {
        get(server.addr(), "/channels/more").expect(200);
        let mut part = [0; 65_536];
        while let Ok(count) = pipe.read(&mut part) {
            text.extend_from_slice(&part[..count]);
        }
        let all: Vec<Value> = String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        lines = all.iter().filter(|line| line["path"] == "/channels/a").count();
        dropped = all
            .iter()
            .filter(|line| line["type"] == "dropped")
            .filter_map(|line| line["lines"].as_u64())
            .sum::<u64>();
        (dropped > 0).then_some(())
    });
    let dropped = usize::try_from(dropped).expect("few");
    // Beside the requests there are the lines of those that asked for more, and of their ends.
    assert!(lines < REQUESTS && lines + dropped + 1 >= REQUESTS, "{lines} written, {dropped} dropped");
    drop(server);
    let _ = std::fs::remove_file(&path);
}

#[allow(unsafe_code)]
fn make_fifo(name: &std::ffi::CStr) {
    // SAFETY: a string that lives through the call.
    let done = unsafe { libc::mkfifo(name.as_ptr(), 0o600) };
    assert_eq!(done, 0, "mkfifo: {}", std::io::Error::last_os_error());
}

/// All that was told before the end is written when the process has ended.
#[test]
fn the_end_of_the_process_is_in_it() {
    let (mut server, log) = start(&["--set", "drain.window_seconds=0.1"]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    let client = stream.conn().stream().local_addr().expect("an address").to_string();
    server.signal(libc::SIGTERM);
    while stream.item().is_some() {}
    drop(stream);
    assert_eq!(server.wait_exit(), 0);
    let lines = log.lines();
    let end = lines.iter().find(|line| line["type"] == "close" && line["peer"] == client);
    assert_eq!(end.map(|line| &line["reason"]), Some(&"drain".into()), "{lines:?}");
}

#[test]
fn a_file_that_cannot_be_opened_is_told_at_start() {
    let refusal =
        Server::refused(&["--listen", "127.0.0.1:0", "--set", "access_log.to=/nonexistent/access.log"]);
    assert_eq!(refusal.code, Some(1));
    assert!(refusal.stderr.contains("access_log.to = /nonexistent/access.log"), "{}", refusal.stderr);
    let refusal = Server::refused(&["--set", "access_log.to=stdotu"]);
    assert_eq!(refusal.code, Some(2), "{}", refusal.stderr);
}

#[test]
fn it_is_off_unless_asked_for() {
    let server = Server::start(&[]);
    get(server.addr(), "/channels/a").expect(200);
    std::thread::sleep(Duration::from_millis(100));
    assert!(std::fs::read_dir(server.dir()).expect("its directory").next().is_none());
}
