//! Origins, hosts and CORS (Fetch standard).

use crate::common;

use std::time::Duration;

use common::http::{Conn, Headers, Response, ask, get, head_cursor, poll, post, publish};
use common::server::Server;

const EVIL: &str = "https://evil.example";
const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const KEY: (&str, &str) = ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==");
const HANDSHAKE: [(&str, &str); 4] =
    [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"), KEY];

/// A request from a page.
fn from(server: &Server, origin: &str, method: &str, target: &str, headers: Headers, body: &str) -> Response {
    let mut all = vec![("Origin", origin)];
    all.extend(headers);
    let mut conn = Conn::open(server.addr());
    conn.send(method, target, &all, body);
    let head = conn.read_head();
    // Streams never end by themselves; their heads are what is looked at.
    let body = match head.get("content-length") {
        Some(length) if method != "HEAD" && head.status != 304 => {
            conn.take(length.parse().expect("a length")).expect("a body")
        }
        _ => Vec::new(),
    };
    Response { body, ..head }
}

/// Asserts what the browser needs to show an answer to the page.
#[track_caller]
fn shown(answer: &Response, origin: &str) {
    assert_eq!(answer.header("access-control-allow-origin"), origin, "{answer}");
    assert_eq!(answer.header("access-control-allow-credentials"), "true", "{answer}");
    for name in ["ETag", "Pushline-Cursor", "Retry-After", "Idempotency-Replayed", "Preference-Applied"] {
        assert!(answer.lists("access-control-expose-headers", name), "{name}: {answer}");
    }
    assert!(answer.lists("vary", "Origin"), "{answer}");
}

#[track_caller]
fn refused(answer: &Response) {
    assert_eq!(answer.status, 403, "{answer}");
    answer.problem(403);
    assert!(answer.get("access-control-allow-origin").is_none(), "{answer}");
}

#[test]
fn origins_of_loopback_are_allowed_and_no_others() {
    let server = Server::start(&[]);
    let port = server.addr().port();
    for origin in [
        format!("http://127.0.0.1:{port}"),
        format!("http://localhost:{port}"),
        "http://localhost".to_owned(),
        "http://localhost:3000".to_owned(),
        "https://localhost:8443".to_owned(),
        "http://127.0.0.1:5173".to_owned(),
        "http://127.0.0.2".to_owned(),
        "http://127.255.255.254:5173".to_owned(),
        "http://[::1]:3000".to_owned(),
    ] {
        let answer = from(&server, &origin, "GET", "/channels/a", &[], "").expect(200);
        shown(&answer, &origin);
    }
    for origin in [
        EVIL,
        "null",
        "",
        "*",
        "http://evil.example:80",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://evil.example/localhost",
        "http://localhost@evil.example",
        "http://evil.example#localhost",
        "http://127.1",
        "http://0177.0.0.1",
        "http://2130706433",
        "http://127.0.0.2.evil.example",
        "http://128.0.0.1",
        "http://[::2]",
        "http://[::]",
        "http://10.0.0.1",
        "http://xlocalhost",
        "http://localhost:99999",
        "http://localhost:3000/",
        "http://localhost:3000, http://evil.example",
        "http://evil.example http://localhost:3000",
        "localhost:3000",
        "file://",
        "chrome-extension://localhost",
    ] {
        refused(&from(&server, origin, "GET", "/channels/a", &[], ""));
    }
    // No origin: no page asked, and no page is spoken of.
    let answer = get(server.addr(), "/channels/a").expect(200);
    assert!(answer.get("access-control-allow-origin").is_none(), "{answer}");
    assert!(answer.lists("vary", "Origin"), "{answer}");
}

#[test]
fn a_foreign_origin_is_refused_before_any_effect() {
    let server = Server::start(&[]);
    let kept = publish(server.addr(), "safe", "kept");
    let stream: Headers = &[("Accept", "text/event-stream")];
    let text: Headers = &[TEXT];
    let ndjson: Headers = &[("Content-Type", "application/x-ndjson")];
    let preflight: Headers = &[("Access-Control-Request-Method", "POST")];
    for origin in [EVIL, "null"] {
        for (method, target, headers, body) in [
            ("POST", "/channels/safe", text, "x"),
            ("POST", "/publish", ndjson, "{\"channel\":\"safe\",\"data\":\"x\"}"),
            ("DELETE", "/channels/safe", &[][..], ""),
            ("GET", "/channels/safe", &[], ""),
            ("HEAD", "/healthz", &[], ""),
            ("GET", "/channels/safe?cursor=&wait=30", &[], ""),
            ("GET", "/channels/safe", stream, ""),
            ("GET", "/channels/safe", &HANDSHAKE, ""),
            ("OPTIONS", "/channels/safe", preflight, ""),
            ("PUT", "/channels/safe", &[], ""),
            ("GET", "/nowhere", &[], ""),
        ] {
            let answer = from(&server, origin, method, target, headers, body);
            assert_eq!(answer.status, 403, "{method} {target} {headers:?} from {origin}: {answer}");
            assert!(answer.get("access-control-allow-origin").is_none(), "{answer}");
        }
    }
    assert_eq!(poll(server.addr(), "/channels/safe?limit=9").ids(), [kept]);
}

#[test]
fn every_answer_to_an_allowed_origin_is_shown() {
    let server = Server::start(&[]);
    let origin = "http://localhost:3000";
    let cursor = head_cursor(server.addr(), "shown");
    let tag = get(server.addr(), "/channels/shown").header("etag").to_owned();
    let big = "x".repeat(70_000);
    let held = format!("/channels/shown?cursor={cursor}&wait=1");
    let cases: Vec<(u16, &str, &str, Headers, &str)> = vec![
        (200, "GET", "/channels/shown", &[], ""),
        (200, "HEAD", "/channels/shown", &[], ""),
        (200, "GET", "/healthz", &[], ""),
        (200, "GET", "/channels/shown", &[("Accept", "text/event-stream")], ""),
        (204, "GET", &held, &[], ""),
        (201, "POST", "/channels/other", &[TEXT], "x"),
        (201, "POST", "/channels/other", &[TEXT, ("Idempotency-Key", "k")], "x"),
        (409, "POST", "/channels/other", &[TEXT, ("Idempotency-Key", "k")], "y"),
        (204, "DELETE", "/channels/other", &[], ""),
        (400, "GET", "/channels/a//b", &[], ""),
        (400, "GET", "/channels/shown?cursor=%25", &[], ""),
        (400, "POST", "/channels/other", &[("Content-Type", "application/json")], "{"),
        (400, "POST", "/channels/other", &[TEXT, ("Pushline-Event", "error")], "x"),
        (404, "GET", "/nowhere", &[], ""),
        (405, "PUT", "/channels/shown", &[], ""),
        (406, "GET", "/channels/shown", &[("Accept", "image/png")], ""),
        (413, "POST", "/channels/other", &[TEXT], &big),
        (415, "POST", "/channels/other", &[TEXT, ("Content-Encoding", "gzip")], "x"),
        (415, "POST", "/publish", &[TEXT], "x"),
        (417, "POST", "/channels/other", &[TEXT, ("Expect", "miracle")], "x"),
        (426, "GET", "/channels/shown", &[KEY], ""),
    ];
    let mut hidden = Vec::new();
    for (status, method, target, headers, body) in cases {
        let answer = from(&server, origin, method, target, headers, body);
        assert_eq!(answer.status, status, "{method} {target} {headers:?}: {answer}");
        if answer.get("access-control-allow-origin").is_none() {
            hidden.push(format!("{status} {method} {target} {headers:?}"));
        } else {
            shown(&answer, origin);
        }
    }
    assert!(hidden.is_empty(), "hidden from the page:\n{}", hidden.join("\n"));
    let answer = from(&server, origin, "GET", "/channels/shown", &[("If-None-Match", &tag)], "").expect(304);
    shown(&answer, origin);
    // A batch, and its lines.
    let ndjson = [("Content-Type", "application/x-ndjson")];
    shown(&from(&server, origin, "POST", "/publish", &ndjson, "bad\n"), origin);
}

#[test]
fn preflights() {
    let server = Server::start(&[]);
    let origin = "http://localhost:3000";
    let all = &["GET", "HEAD", "POST", "DELETE", "OPTIONS"][..];
    for (target, methods) in [
        ("/channels/a", all),
        ("/channels/a/b,c", all),
        ("/channels", &["GET", "HEAD", "OPTIONS"]),
        ("/publish", &["POST", "OPTIONS"]),
        ("/", &["GET", "HEAD", "OPTIONS"]),
        ("/healthz", &["GET", "HEAD", "OPTIONS"]),
    ] {
        let answer = from(
            &server,
            origin,
            "OPTIONS",
            target,
            &[
                ("Access-Control-Request-Method", "POST"),
                ("Access-Control-Request-Headers", "authorization,content-type,idempotency-key"),
            ],
            "",
        );
        assert!([200, 204].contains(&answer.status), "{answer}");
        assert_eq!(answer.header("access-control-allow-origin"), origin);
        assert_eq!(answer.header("access-control-allow-credentials"), "true");
        for method in all {
            let takes = methods.contains(method);
            assert_eq!(answer.lists("access-control-allow-methods", method), takes, "{method}: {answer}");
            assert_eq!(answer.lists("allow", method), takes, "{method}: {answer}");
        }
        for name in [
            "Authorization",
            "Content-Type",
            "Prefer",
            "If-None-Match",
            "Last-Event-ID",
            "Pushline-Event",
            "Pushline-TTL",
            "Idempotency-Key",
        ] {
            assert!(answer.lists("access-control-allow-headers", name), "{name}: {answer}");
        }
        assert!(answer.header("access-control-max-age").parse::<u32>().is_ok_and(|age| age > 0), "{answer}");
        assert!(answer.lists("vary", "Origin"), "{answer}");
    }
    refused(&from(&server, EVIL, "OPTIONS", "/channels/a", &[("Access-Control-Request-Method", "GET")], ""));
}

#[test]
fn an_origin_is_allowed_by_name() {
    let server =
        Server::start(&["--set", r#"origins.allow=["https://app.example","http://b.example:8080"]"#]);
    for origin in ["https://app.example", "http://b.example:8080"] {
        shown(&from(&server, origin, "GET", "/channels/a", &[], "").expect(200), origin);
        shown(&from(&server, origin, "GET", "/nowhere", &[], "").expect(404), origin);
    }
    for origin in [
        EVIL,
        "null",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://sub.app.example",
        "http://b.example",
    ] {
        refused(&from(&server, origin, "GET", "/channels/a", &[], ""));
    }
}

#[test]
fn on_loopback_the_host_is_loopback() {
    let server = Server::start(&[]);
    for host in [
        "localhost",
        "LOCALHOST",
        "localhost:1",
        "127.0.0.1",
        "127.0.0.1:65535",
        "127.0.0.2",
        "127.255.255.255:80",
        "[::1]",
        "[::1]:8080",
    ] {
        ask(server.addr(), "GET", "/channels/a", &[("Host", host)], "").expect(200);
    }
    // What DNS rebinding would send: the page's own name, and its origin, which match each other.
    for host in [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.1",
        "0127.0.0.1",
        "0.0.0.0",
        "[::2]",
    ] {
        for origin in [None, Some(format!("http://{host}"))] {
            let mut headers = vec![("Host", host), ("Content-Type", "text/plain")];
            headers.extend(origin.iter().map(|origin| ("Origin", origin.as_str())));
            let answer = ask(server.addr(), "GET", "/channels/a", &headers, "");
            assert!([400, 403, 421].contains(&answer.status), "{host}: {answer}");
            let answer = post(server.addr(), "/channels/a", &headers, "x");
            assert!([400, 403, 421].contains(&answer.status), "{host}: {answer}");
            assert!(answer.get("access-control-allow-origin").is_none(), "{answer}");
        }
    }
    assert!(poll(server.addr(), "/channels/a").messages.is_empty());
}

/// The URL that it prints works, whichever address of loopback it listens on.
#[test]
fn the_address_that_it_listens_on_is_a_host() {
    for listen in ["127.0.0.2:0", "127.255.255.254:0"] {
        let server = Server::start_bare(&["--listen", listen]);
        let own = format!("http://{}", server.addr());
        shown(&from(&server, &own, "GET", "/channels/a", &[], "").expect(200), &own);
    }
}

#[test]
fn an_open_server_allows_its_own_host_and_port() {
    let server = Server::start_bare(&["--listen", "0.0.0.0:0", "--open"]);
    let addr = format!("127.0.0.1:{}", server.addr().port()).parse().expect("an address");
    let read =
        |host: &str, origin: &str| ask(addr, "GET", "/channels/a", &[("Host", host), ("Origin", origin)], "");
    for (host, origin) in [
        ("push.example:8080", "http://push.example:8080"),
        ("push.example", "http://push.example"),
        ("Push.Example", "http://push.example"),
        ("10.1.2.3:8080", "http://10.1.2.3:8080"),
    ] {
        shown(&read(host, origin).expect(200), origin);
    }
    for (host, origin) in [
        ("push.example:8080", "http://push.example:8081"),
        ("push.example:8080", "http://push.example"),
        ("push.example", "http://push.example:8080"),
        ("push.example:8080", "http://example:8080"),
        ("push.example:8080", "null"),
        ("push.example:8080", EVIL),
    ] {
        refused(&read(host, origin));
    }
}

#[test]
fn a_handshake_from_an_allowed_origin_succeeds() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    let mut headers = vec![("Origin", "http://localhost:3000")];
    headers.extend(HANDSHAKE);
    conn.send("GET", "/channels/ws", &headers, "");
    let head = conn.read_head().expect(101);
    assert_eq!(head.header("sec-websocket-accept"), "ICX+Yqv66kxgM0FcWaLWlFLwTAI=");
    // Nothing but the handshake's answer comes by itself: raw sees no cursor.
    conn.quiet(Duration::from_millis(100));
}
