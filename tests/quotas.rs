//! Quotas (docs/limits.md): each limit as each transport tells it, and everything given back.

use crate::common;

use std::net::SocketAddr;
use std::time::Duration;

use common::access::{ACCESS_LOG, AccessLog};
use common::admin::{Metrics, addr_of};
use common::http::{AT_ONCE, Conn, End, Poll, Response, batch_with, head_cursor, timed};
use common::rng::Rng;
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::token::{self, KEYS, bearer};
use common::until;
use common::ws::{Message, Socket, V1, V1_NAME, request, text_of};
use serde_json::json;

const SSE: (&str, &str) = ("Accept", "text/event-stream");

fn server(quotas: &[&str], args: &[&str]) -> Server {
    let quotas: Vec<String> = quotas.iter().map(|quota| format!("quotas.{quota}")).collect();
    let set: Vec<&str> = quotas.iter().flat_map(|quota| ["--set", quota]).collect();
    Server::start(&[&set, args].concat())
}

/// One whose clients come through a proxy: by the field, each request says whose it is.
fn behind_proxy(quotas: &[&str]) -> Server {
    server(quotas, &["--set", "proxy.trusted=127.0.0.1", "--set", "proxy.header=x-forwarded-for"])
}

/// A connection that serves one request; `None`: it was closed without an answer.
fn try_conn(addr: SocketAddr) -> Option<Conn> {
    let mut conn = Conn::try_open(addr).ok()?;
    conn.try_send_raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    match conn.try_read_response() {
        Ok(answer) => answer.expect(200),
        Err(_) => {
            assert!(conn.ahead().is_empty(), "{:?}", String::from_utf8_lossy(conn.ahead()));
            return None;
        }
    };
    Some(conn)
}

/// A refusal that says when to come back, and which key decided.
#[track_caller]
pub fn limited(answer: &Response, key: &str) {
    let detail = answer.problem(429);
    assert!(detail.contains(&format!("quotas.{key} ")), "{detail}");
    let seconds: u32 = answer.header("retry-after").parse().expect("seconds");
    assert!((1..=10).contains(&seconds), "{answer}");
}

/// A stream that is refused: told when to come back, as browsers hear it.
#[track_caller]
pub fn limited_stream(mut events: Stream) {
    let close = events.event().named("$close");
    assert_eq!(close.json()["reason"], "rate_limited", "{close:?}");
    assert!(close.json()["reconnect_ms"].as_u64().is_some_and(|ms| ms >= 1_000), "{close:?}");
    events.ended();
}

/// A v1 WebSocket that is refused.
#[track_caller]
pub fn limited_v1(mut socket: Socket) {
    let Message::Text(text) = socket.message() else { panic!("`closing` comes first") };
    assert!(text.contains(r#""type":"closing""#) && text.contains(r#""reason":"rate_limited""#), "{text}");
    socket.expect_close(4429);
}

fn ask_stream(addr: SocketAddr, target: &str, from: &str) -> Stream {
    Stream::begin(addr, target, &[("X-Forwarded-For", from)])
}

fn open_v1(addr: SocketAddr, target: &str, from: &str) -> Socket {
    Socket::open_with(addr, target, &[("Sec-WebSocket-Protocol", V1_NAME), ("X-Forwarded-For", from)])
}

/// Asks until the answer is 429: a bucket of one each second is empty after the first, unless the machine stood still.
#[track_caller]
fn until_limited(key: &str, mut ask: impl FnMut() -> Response) {
    let answers: Vec<Response> = (0..30).map(|_| ask()).collect();
    let told = answers.iter().find(|answer| answer.status == 429);
    limited(told.unwrap_or_else(|| panic!("never refused: {}", answers[0])), key);
}

// --- Connections ----------------------------------------------------------------------------------------------------

#[test]
fn connections_of_one_address() {
    for (quota, count) in [("address.connections=3", 3), ("node.connections=2", 2)] {
        let server = server(&[quota], &["--listen", "[::1]:0", "--workers", "2"]);
        let (addr, other) = (server.addrs()[0], server.addrs()[1]);
        let mut held: Vec<Conn> = (0..count).map(|_| try_conn(addr).expect("within the quota")).collect();
        for _ in 0..5 {
            assert!(try_conn(addr).is_none(), "{quota}");
        }
        assert_eq!(try_conn(other).is_some(), quota.starts_with("address"), "another address");
        // Streams and WebSockets count as the connections that they are.
        held.pop();
        until("a place is free", || try_conn(addr)).send("GET", "/channels/c", &[SSE], "");
        held.clear();
        let mut again = Vec::new();
        until("all places are free", || {
            again.extend(try_conn(addr));
            (again.len() == count).then_some(())
        });
    }
}

#[test]
fn new_connections_by_the_second() {
    for quota in ["address.connections_per_second=1", "node.connections_per_second=1"] {
        let server = server(&[quota], &["--listen", "[::1]:0"]);
        let (addr, other) = (server.addrs()[0], server.addrs()[1]);
        let served = (0..30).filter(|_| try_conn(addr).is_some()).count();
        assert!((1..30).contains(&served), "{quota}: {served} of 30");
        if quota.starts_with("address") {
            assert!(try_conn(other).is_some(), "another address");
        }
        until("time fills the bucket", || try_conn(addr));
        let line = server.wait_log(|line| message_of(line).as_deref() == Some("over quota"));
        assert_eq!(field(&line, "resource").as_deref(), Some("connections_per_second"), "{line}");
    }
}

#[test]
fn behind_a_proxy_each_transport_is_told_its_own_way() {
    let server = behind_proxy(&["address.connections=1"]);
    let addr = server.addr();
    let mut first = Stream::open_with(addr, "/channels/c", &[("X-Forwarded-For", "192.0.2.1")]);
    limited_stream(ask_stream(addr, "/channels/c", "192.0.2.1"));
    let mut raw = Socket::open_with(addr, "/channels/c", &[("X-Forwarded-For", "192.0.2.1")]);
    raw.expect_close(4429);
    limited_v1(open_v1(addr, "/channels/c", "192.0.2.1"));
    limited_v1(open_v1(addr, "/channels", "192.0.2.1"));
    // A poll that waits, as a connection's first request and later.
    let cursor = head_cursor(addr, "c");
    let waits = format!("/channels/c?cursor={cursor}&wait=40");
    let mut conn = Conn::open(addr);
    for _ in 0..2 {
        limited(&conn.request("GET", &waits, &[("X-Forwarded-For", "192.0.2.1")], ""), "address.connections");
    }
    // One that is answered at once, and a publish, hold nothing.
    conn.request("GET", "/channels/c", &[("X-Forwarded-For", "192.0.2.1")], "").expect(200);
    let text = [("X-Forwarded-For", "192.0.2.1"), ("Content-Type", "text/plain")];
    conn.request("POST", "/channels/c", &text, "x").expect(201);
    assert_eq!(first.message().data, "x");
    // Others are served.
    let mut other = Conn::open(addr);
    other.send(
        "GET",
        &waits.replace(&cursor, &head_cursor(addr, "c")),
        &[("X-Forwarded-For", "192.0.2.2")],
        "",
    );
    conn.request("POST", "/channels/c", &[("X-Forwarded-For", "192.0.2.1")], "y").expect(201);
    assert_eq!(Poll::of(&other.read_response()).messages.len(), 1);
    // The poll is over, and with it what it held; so is the stream when it is cut.
    drop(Stream::open_with(addr, "/channels/c", &[("X-Forwarded-For", "192.0.2.2")]));
    first.conn().shutdown_write();
    drop(first);
    until("its place is free", || {
        let mut socket = open_v1(addr, "/channels", "192.0.2.1");
        let Message::Text(text) = socket.message() else { return None };
        text.contains(r#""type":"open""#).then_some(())
    });
}

/// A v1 connection whose token is still to come is its client's already, and is so once.
#[test]
fn behind_a_proxy_who_waits_for_a_token_counts() {
    let args = ["--set", "proxy.trusted=127.0.0.1", "--set", "proxy.header=x-forwarded-for", "--set", KEYS];
    let server = server(&["address.connections=1", "address.subscriptions=2"], &args);
    let addr = server.addr();
    let mut first = V1::of(open_v1(addr, "/channels/a,b", "192.0.2.1"));
    limited_v1(open_v1(addr, "/channels/a", "192.0.2.1"));
    let _other = V1::of(open_v1(addr, "/channels/a", "192.0.2.2"));
    let token = token::of("anna").sign();
    first.ask(json!({"type": "auth", "token": token}), "authenticated");
    (0..2).for_each(|_| drop(first.expect("subscribed")));
    limited_v1(open_v1(addr, "/channels/a", "192.0.2.1"));
    drop(first);
    until("its place is free", || {
        let mut socket = open_v1(addr, "/channels/a", "192.0.2.1");
        socket.expect_text().contains(r#""type":"open""#).then_some(())
    });
}

#[test]
fn streams_by_the_second_behind_a_proxy() {
    let server = behind_proxy(&["address.connections_per_second=1"]);
    let addr = server.addr();
    let refused = (0..20).any(|_| {
        let mut events = ask_stream(addr, "/channels/c", "192.0.2.1");
        events.event().name == "$close"
    });
    assert!(refused, "20 streams at once");
    let refused = (0..20).any(|_| {
        let mut socket = open_v1(addr, "/channels", "192.0.2.2");
        !socket.expect_text().contains("open")
    });
    assert!(refused, "20 WebSockets at once");
    let refused = (0..20).any(|_| {
        let mut raw = Socket::open_with(addr, "/channels/c", &[("X-Forwarded-For", "192.0.2.4")]);
        raw.text("x");
        raw.message() == Message::Close(4429)
    });
    assert!(refused, "20 raw WebSockets at once");
    // Polls come as often as there are messages.
    let mut conn = Conn::open(addr);
    for _ in 0..5 {
        let cursor = head_cursor(addr, "d");
        conn.send(
            "GET",
            &format!("/channels/d?cursor={cursor}&wait=40"),
            &[("X-Forwarded-For", "192.0.2.3")],
            "",
        );
        Conn::open(addr).request("POST", "/channels/d", &[], "x").expect(201);
        assert_eq!(Poll::of(&conn.read_response()).messages.len(), 1);
    }
}

/// What is over is closed as it comes: the key that decided is told by the metrics, the reason by the access log.
#[test]
fn who_is_closed_as_they_come_is_counted_and_logged() {
    for (quota, kind) in [
        ("address.connections=1", "close"),
        ("node.connections=1", "refused"),
        ("address.connections_per_second=1", "close"),
        ("node.connections_per_second=1", "close"),
    ] {
        let key = quota.split('=').next().expect("a key");
        let server = server(&[quota], &[&["--set", "admin.listen=127.0.0.1:0"][..], &ACCESS_LOG].concat());
        let log = AccessLog::of(&server);
        let held: Vec<Conn> = (0..30).filter_map(|_| try_conn(server.addr())).collect();
        let refused = 30 - held.len();
        let fits = |line: &serde_json::Value| line["type"] == kind && line["reason"] == "rate_limited";
        until("each has its line", || {
            (log.lines().iter().filter(|line| fits(line)).count() == refused).then_some(())
        });
        let metrics = Metrics::scrape(addr_of(&server));
        assert_eq!(by_key(&metrics, key), refused as f64, "{quota}");
        assert_eq!(metrics.sum("pushline_quota_refusals_total", &[]), refused as f64, "{quota}");
        assert_eq!(metrics.sum("pushline_refusals_total", &[]), refused as f64, "{quota}");
        let told = server.wait_log(|line| field(line, "quota").is_some());
        assert_eq!(field(&told, "quota"), Some(format!("quotas.{key}")));
        assert_eq!(field(&told, "level").as_deref(), Some("WARN"), "{told}");
    }
}

// --- Subscriptions --------------------------------------------------------------------------------------------------

#[test]
fn subscriptions_on_every_transport() {
    for scope in ["address", "node"] {
        let key = format!("{scope}.subscriptions");
        let server = server(&[&format!("{key}=3")], &["--workers", "2"]);
        let addr = server.addr();
        let (mut v1, _) = V1::subscribed(addr, "a");
        v1.ask(json!({"type": "subscribe", "channel": "b"}), "subscribed");
        v1.ask(json!({"type": "subscribe", "channel": "c"}), "subscribed");
        let error = v1.refused(json!({"type": "subscribe", "channel": "d", "seq": 7}));
        assert_eq!(error["code"], "rate_limited");
        assert!(text_of(&error, "message").contains(&format!("quotas.{key} ")), "{error}");
        limited_stream(Stream::begin(addr, "/channels/a", &[]));
        Socket::open(addr, "/channels/a").expect_close(4429);
        let cursor = head_cursor(addr, "a");
        let mut conn = Conn::open(addr);
        let waits = format!("/channels/a?cursor={cursor}&wait=40");
        for _ in 0..2 {
            limited(&conn.get(&waits), &key);
        }
        // One that fails in another way takes nothing.
        let error = v1.refused(json!({"type": "subscribe", "channel": "a"}));
        assert_eq!(error["code"], "already_subscribed");
        // Two are left: room for one transport after another, and never for three channels.
        v1.ask(json!({"type": "unsubscribe", "channel": "b"}), "unsubscribed");
        v1.ask(json!({"type": "unsubscribe", "channel": "c"}), "unsubscribed");
        limited_stream(Stream::begin(addr, "/channels/x,y,z", &[]));
        limited_v1(Socket::open_with(addr, "/channels/x,y,z", &[("Sec-WebSocket-Protocol", V1_NAME)]));
        drop(Stream::open(addr, "/channels/x,y"));
        until("the stream's are free", || {
            let mut events = Stream::begin(addr, "/channels/x", &[]);
            (events.event().name == "$open").then_some(())
        });
        until("all are free", || {
            let mut socket = Socket::open_with(addr, "/channels/x,y", &[("Sec-WebSocket-Protocol", V1_NAME)]);
            socket.expect_text().contains("open").then_some(())
        });
        until("a poll may wait", || {
            conn.send("GET", &waits, &[], "");
            if conn.end_within(Duration::from_millis(50)) == End::Open {
                return Some(());
            }
            limited(&conn.read_response(), &key);
            None
        });
        Conn::open(addr).request("POST", "/channels/a", &[], "x").expect(201);
        assert_eq!(Poll::of(&conn.read_response()).messages.len(), 1);
    }
}

// --- Publishing -----------------------------------------------------------------------------------------------------

/// Publishes in every way until it is refused in each. `text` is what is published.
fn publishing_is_limited(quota: &str, text: &str) {
    let key = quota.split('=').next().expect("a key");
    // Each way its own server: what all together may do is spent by the first. By subject, somebody is one.
    let token = key.starts_with("subject").then(|| token::of("anna").sign());
    let start = || {
        let keys: &[&str] = if token.is_some() { &["--set", KEYS] } else { &[] };
        server(&[quota], &[&["--workers", "2", "--set", "admin.listen=127.0.0.1:0"], keys].concat())
    };
    let (one, two, three, four, five) = (start(), start(), start(), start(), start());
    let authorization = token.as_deref().map(bearer);
    let fields: Vec<(&str, &str)> =
        authorization.iter().map(|value| ("Authorization", value.as_str())).collect();
    let with =
        |target: &str| token.iter().fold(target.to_owned(), |url, token| format!("{url}?token={token}"));
    // A new connection's request is a task's; those behind it are served at once, here or by another worker.
    until_limited(key, || Conn::open(one.addr()).request("POST", "/channels/a", &fields, text));
    let mut conn = Conn::open(one.addr());
    for channel in ["a", "b", "c", "d"] {
        until_limited(key, || conn.request("POST", &format!("/channels/{channel}"), &fields, text));
    }
    until_limited(key, || conn.request("POST", "/channels/a,b", &fields, text));
    conn.request("GET", "/channels/a", &fields, "").expect(200);

    let lines: String = (0..30).map(|_| json!({"channel": "a", "data": text}).to_string() + "\n").collect();
    let answers = batch_with(two.addr(), &fields, &lines);
    assert_eq!(answers.len(), 30);
    let refused: Vec<_> = answers.iter().filter(|line| line["status"] == 429).collect();
    assert!((1..30).contains(&refused.len()), "{} of 30 were refused", refused.len());
    assert_eq!(refused[0]["code"], "rate_limited");
    assert!(text_of(refused[0], "detail").contains(&format!("quotas.{key} ")), "{}", refused[0]);

    let mut raw = Socket::open(three.addr(), &with("/channels/a"));
    (0..30).for_each(|_| raw.text(text));
    let end = std::iter::repeat_with(|| raw.message()).find(|message| *message != Message::Text(text.into()));
    assert_eq!(end, Some(Message::Close(4429)));

    let mut v1 = V1::open(four.addr(), &with("/channels"));
    let answers: Vec<_> = (0..30)
        .map(|_| {
            v1.send(json!({"type": "publish", "channel": "a", "data": text}));
            v1.next()
        })
        .collect();
    assert_eq!(answers[0]["type"], "published");
    let error = answers.iter().find(|answer| answer["type"] == "error").expect("a refusal");
    assert_eq!(error["code"], "rate_limited", "{error}");
    v1.ask(json!({"type": "ping"}), "pong");

    if quota.contains("publishes") {
        until_limited(key, || Conn::open(five.addr()).request("DELETE", "/channels/a", &fields, ""));
    }
    // Each was counted by its key, and by no other.
    let servers =
        [(one, true), (two, true), (three, true), (four, true), (five, quota.contains("publishes"))];
    for (at, (server, is_counted)) in servers.iter().enumerate() {
        let metrics = Metrics::scrape(addr_of(server));
        let count = by_key(&metrics, key);
        assert_eq!(count >= 1.0, *is_counted, "{at}: {}", metrics.text);
        assert_eq!(metrics.sum("pushline_quota_refusals_total", &[]), count, "{at}");
        assert_eq!(metrics.sum("pushline_refusals_total", &[("reason", "quota")]), count, "{at}");
    }
}

/// How often the quota `SCOPE.LIMIT` was the reason of a refusal.
#[track_caller]
fn by_key(metrics: &Metrics, key: &str) -> f64 {
    let (scope, limit) = key.split_once('.').expect("a scope and a limit");
    metrics.sum("pushline_quota_refusals_total", &[("scope", scope), ("limit", limit)])
}

#[test]
fn publishes_by_the_second() {
    publishing_is_limited("address.publishes_per_second=1", "x");
    publishing_is_limited("subject.publishes_per_second=1", "x");
    publishing_is_limited("node.publishes_per_second=1", "x");
}

#[test]
fn bytes_by_the_second() {
    let text = "x".repeat(30_000);
    publishing_is_limited("address.publish_bytes_per_second=1000", &text);
    publishing_is_limited("subject.publish_bytes_per_second=1000", &text);
    publishing_is_limited("node.publish_bytes_per_second=1000", &text);
}

/// Who may not publish, or publishes what is none, uses up nothing that others need, and hears what is wrong.
#[test]
fn what_is_refused_anyway_takes_nothing() {
    const TIMES: usize = 20;
    let server = server(&["node.publishes_per_second=1"], &["--workers", "2", "--set", KEYS]);
    let addr = server.addr();
    let none: [&str; 0] = [];
    let reads = token::of("anna").publish(&none).sign();
    let mut v1 = V1::open(addr, &format!("/channels?token={reads}"));
    for _ in 0..TIMES {
        let error = v1.refused(json!({"type": "publish", "channel": "a", "data": "x"}));
        assert_eq!(error["code"], "forbidden", "{error}");
    }
    for _ in 0..TIMES {
        let mut raw = Socket::open(addr, &format!("/channels/a?token={reads}"));
        raw.text("x");
        raw.expect_close(1008);
    }
    let writes = bearer(&token::of("bert").publish(&["mine"]).sign());
    let fields = [("Authorization", writes.as_str())];
    let line = json!({"channel": "a", "data": "x"}).to_string() + "\n";
    for answer in batch_with(addr, &fields, &line.repeat(TIMES)) {
        assert_eq!(answer["code"], "forbidden", "{answer}");
    }
    let mut conn = Conn::open(addr);
    for _ in 0..TIMES {
        let fields = [fields[0], ("Content-Type", "application/json")];
        conn.request("POST", "/channels/mine", &fields, "{").problem(400);
    }
    conn.request("POST", "/channels/mine", &fields, "x").expect(201);
}

/// Wherever its channel lives, and whether or not it has a key.
#[test]
fn a_publish_counts_once() {
    const COUNT: usize = 20;
    let quota = format!("node.publishes_per_second={COUNT}");
    let server = server(&[&quota], &["--workers", "4"]);
    let mut conn = Conn::open(server.addr());
    conn.get("/healthz").expect(200);
    for number in 0..COUNT {
        let key = format!("{number}");
        conn.request("POST", &format!("/channels/{number}"), &[("Idempotency-Key", &key)], "x").expect(201);
    }
}

#[test]
fn time_gives_publishes_back() {
    let server = server(&["address.publishes_per_second=5"], &[]);
    let mut conn = Conn::open(server.addr());
    let mut post = || conn.request("POST", "/channels/a", &[], "x").status;
    let ((), took) = timed(|| {
        assert!((0..5).all(|_| post() == 201), "five at once");
        let mut published = 0;
        until("five more", || {
            published += usize::from(post() == 201);
            (published == 5).then_some(())
        });
    });
    assert!(took.as_millis() >= 950, "five a second: {took:?}");
    // More channels than it holds never pass, and it says so.
    let answer = conn.request("POST", "/channels/a,b,c,d,e,f", &[], "x");
    limited(&answer, "address.publishes_per_second");
}

#[test]
fn one_clients_flood_is_its_own() {
    let server = behind_proxy(&["address.publishes_per_second=1", "address.connections=2"]);
    let addr = server.addr();
    let mut flood = Conn::open(addr);
    let pipelined =
        common::http::wire(addr, "POST", "/channels/a", &[("X-Forwarded-For", "192.0.2.1")], b"x");
    flood.send_raw(pipelined.repeat(200));
    for number in 2..30 {
        let from = format!("192.0.2.{number}");
        let (answer, took) =
            timed(|| Conn::open(addr).request("POST", "/channels/b", &[("X-Forwarded-For", &from)], "x"));
        answer.expect(201);
        assert!(took < AT_ONCE, "{took:?}");
    }
    let statuses: Vec<u16> = (0..200)
        .map(|_| {
            flood.expect_answer_to("POST");
            flood.read_response().status
        })
        .collect();
    assert!(
        statuses[0] == 201 && statuses.iter().filter(|status| **status == 429).count() > 150,
        "{statuses:?}"
    );
}

// --- Given back -----------------------------------------------------------------------------------------------------

/// Connections of every kind come, do something, and end in every way; in the end nothing of any quota is taken.
#[test]
fn churn_leaves_nothing_behind() {
    let quotas = ["address.connections=24", "address.subscriptions=60", "node.subscriptions=60"];
    let server = server(&quotas, &["--workers", "2", "--set", "timeouts.head_seconds=1"]);
    let addr = server.addr();
    let mut rng = Rng::new(0x5eed, 0);
    let cursor = head_cursor(addr, "a");
    let mut held: Vec<Conn> = Vec::new();
    for turn in 0..400 {
        if held.len() >= 20 {
            let conn = held.swap_remove(rng.below(20));
            match rng.below(3) {
                0 => conn.abort(),
                1 => drop(conn),
                // Unread input at its end, and half a frame or request.
                _ => {
                    let mut conn = conn;
                    let _ = conn.try_send_raw([0x81, 0xFE]);
                    let _ = conn.stream().shutdown(std::net::Shutdown::Write);
                }
            }
        }
        let Ok(mut conn) = Conn::try_open(addr) else { continue };
        let sent = match turn % 8 {
            0 => conn.try_send_raw("GET /healthz HTTP/1.1\r\nHost: lo"),
            1 => conn.try_send_raw(
                "GET /channels/a,b HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
            ),
            2 => conn.try_send_raw(format!(
                "GET /channels/a?cursor={cursor}&wait=40 HTTP/1.1\r\nHost: localhost\r\n\r\n"
            )),
            3 => conn.try_send_raw(request(addr, "/channels/c", &[])),
            4 => conn.try_send_raw(request(addr, "/channels/a,b,c", &[("Sec-WebSocket-Protocol", V1_NAME)])),
            5 => conn
                .try_send_raw("POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"),
            6 => conn.try_send_raw("nonsense\r\n\r\n"),
            _ => {
                let subscribe = json!({"type": "subscribe", "channel": "d"}).to_string();
                let frame = common::ws::masked(true, common::ws::TEXT, subscribe.as_bytes());
                let head = request(addr, "/channels", &[("Sec-WebSocket-Protocol", V1_NAME)]);
                conn.try_send_raw([head, frame].concat())
            }
        };
        if sent.is_ok() {
            held.push(conn);
        }
    }
    held.into_iter().enumerate().for_each(|(at, conn)| if at % 2 == 0 { conn.abort() } else { drop(conn) });

    let mut conns = Vec::new();
    until("all connections are free", || {
        conns.extend(try_conn(addr));
        (conns.len() == 24).then_some(())
    });
    assert!(try_conn(addr).is_none(), "and not one more");
    drop(conns);
    let all: Vec<String> = (0..60).map(|number| format!("n{number}")).collect();
    let target = format!("/channels/{}", all.join(","));
    let mut stream = until("all subscriptions are free", || {
        let mut conn = Conn::try_open(addr).ok()?;
        conn.try_send_raw(format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        ))
        .ok()?;
        if conn.fill().ok()? == 0 {
            return None;
        }
        let mut events = Stream::of(conn);
        (events.event().name == "$open").then_some(events)
    });
    limited_stream(Stream::begin(addr, "/channels/a", &[]));
    assert_ne!(stream.conn().end_within(Duration::from_millis(10)), End::Closed);
}
