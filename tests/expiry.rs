//! A connection ends when its token does, on every transport; where the transport has words for it, it is told before.

use crate::common;

use std::time::Duration;

use serde_json::json;

use common::http::{Conn, get, post, published};
use common::server::{Server, field};
use common::sse::{Item, Stream};
use common::token::{self, KEYS, now, now_s};
use common::ws::{Message, Socket, V1};
use common::{receive_buffer, until};

/// How late an end may come: a tick or two, and a machine under load.
const LATE: Duration = Duration::from_millis(1_500);

fn server() -> Server {
    Server::start(&["--set", KEYS])
}

/// A token of anna's that ends at a whole second, about two from now.
fn short() -> (String, Duration) {
    let exp = now_s() + 3;
    (token::of("anna").until(exp).sign(), Duration::from_secs(exp))
}

/// Asserts that it is now just after `end`.
#[track_caller]
fn just_after(end: Duration) {
    let now = now();
    assert!(now >= end, "{:?} too early", end.saturating_sub(now));
    assert!(now < end + LATE, "{:?} too late", now.saturating_sub(end));
}

#[test]
fn a_stream_of_events_is_told_and_ended() {
    let server = server();
    let (token, end) = short();
    let mut stream = Stream::open(server.addr(), &format!("/channels/a?token={token}"));
    // Less than thirty seconds are left: it is told at once.
    let expiring = stream.event().named("$expiring");
    let left = expiring.json()["in"].as_u64().expect("seconds");
    assert!((1..=3).contains(&left) && expiring.lines.len() == 2, "{expiring:?}");
    let Some(Item::Retry(retry_ms)) = stream.item() else { panic!("`retry:` first") };
    just_after(end);
    let close = stream.event().named("$close").json();
    assert_eq!((&close["reason"], &close["reconnect_ms"]), (&json!("expired"), &json!(retry_ms)));
    stream.ended();
}

#[test]
fn a_v1_connection_is_told_and_ended() {
    let server = server();
    let (token, end) = short();
    let mut v1 = V1::open(server.addr(), &format!("/channels/a?token={token}"));
    v1.expect("subscribed");
    let left = v1.expect("expiring")["in"].as_u64().expect("seconds");
    assert!((1..=3).contains(&left), "{left}");
    let closing = v1.expect("closing");
    just_after(end);
    assert_eq!(closing["reason"], "expired");
    v1.socket.expect_close(4401);
}

#[test]
fn a_raw_websocket_is_ended() {
    let server = server();
    let (token, end) = short();
    let mut socket = Socket::open(server.addr(), &format!("/channels/a?token={token}"));
    assert_eq!(socket.message(), Message::Close(4401));
    just_after(end);
}

#[test]
fn a_held_poll_is_answered_with_401() {
    let server = server();
    let (token, end) = short();
    let long = token::of("anna").sign();
    let cursor = head_cursor_of(&server, &long);
    let mut conn = Conn::open(server.addr());
    let bearer = token::bearer(&token);
    let answer = conn.request(
        "GET",
        &format!("/channels/a?cursor={cursor}&wait=30"),
        &[("Authorization", &bearer)],
        "",
    );
    just_after(end);
    answer.problem(401);
    assert!(answer.header("www-authenticate").contains("error=\"invalid_token\""), "{answer}");
    assert_eq!(answer.header("cache-control"), "no-store", "{answer}");
    // The connection is as good as before, with a token that is.
    let bearer = token::bearer(&long);
    conn.request("GET", "/channels/a", &[("Authorization", &bearer)], "").expect(200);
}

fn head_cursor_of(server: &Server, token: &str) -> String {
    let answer = get(server.addr(), &format!("/channels/a?limit=0&token={token}")).expect(200);
    answer.json()["cursor"].as_str().expect("a cursor").to_owned()
}

#[test]
fn each_request_of_a_kept_connection_needs_a_token_that_is_good() {
    let server = server();
    let (token, end) = short();
    let mut conn = Conn::open(server.addr());
    let get = |conn: &mut Conn, token: &str| {
        conn.request("GET", "/channels/a", &[("Authorization", &token::bearer(token))], "")
    };
    let post = |conn: &mut Conn, token: &str| {
        conn.request("POST", "/channels/a", &[("Authorization", &token::bearer(token))], "x")
    };
    get(&mut conn, &token).expect(200);
    post(&mut conn, &token).expect(201);
    until("the token's end", || (now() >= end).then_some(()));
    get(&mut conn, &token).problem(401);
    post(&mut conn, &token).problem(401);
    post(&mut conn, &token::of("anna").sign()).expect(201);
}

#[test]
fn it_is_told_thirty_seconds_before() {
    let server = server();
    let exp = now_s() + 33;
    let token = token::of("anna").until(exp).sign();
    let mut stream = Stream::open(server.addr(), &format!("/channels/a?token={token}"));
    let mut v1 = V1::open(server.addr(), &format!("/channels/a?token={token}"));
    v1.expect("subscribed");
    assert_eq!(stream.event().named("$expiring").json(), json!({"in": 30}));
    just_after(Duration::from_secs(exp - 30));
    assert_eq!(v1.next(), json!({"type": "expiring", "in": 30}));
    // And once.
    stream.quiet(Duration::from_millis(300));
    v1.socket.quiet(Duration::from_millis(10));
}

#[test]
fn what_was_published_before_comes_before_the_end() {
    let server = server();
    let (token, end) = short();
    let mut v1 = V1::open(server.addr(), &format!("/channels/a?token={token}"));
    let mut stream = Stream::open(server.addr(), &format!("/channels/a?token={token}"));
    let target = format!("/channels/a?token={}", token::of("bert").sign());
    let mut count = 0;
    while now() < end {
        published(&post(server.addr(), &target, &[], "x"));
        count += usize::from(now() < end);
        // Neither reads meanwhile: what they get must fit into their sockets.
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut heard = (0, 0);
    while stream.event().name != "$close" {
        heard.0 += 1;
    }
    while v1.next()["type"] != "closing" {
        heard.1 += 1;
    }
    // Of the stream `$expiring` is one of them, of v1 `subscribed` too.
    assert!(heard.0 > count && heard.1 > count + 1, "{heard:?} of {count}");
}

/// A reader that reads nothing takes no notice, and is ended all the same.
#[test]
fn a_reader_that_does_not_read_is_ended_too() {
    let server =
        Server::start(&["--set", KEYS, "--set", "slow.kernel_bytes=68KiB", "--set", "history.bytes=16MiB"]);
    let exp = now_s() + 4;
    let token = token::of("anna").until(exp).sign();
    let mut stopped = Conn::open(server.addr());
    receive_buffer(stopped.stream(), 4_096);
    let target = format!("/channels/a?token={token}");
    stopped.send("GET", &target, &[("Accept", "text/event-stream")], "");
    stopped.read_head().expect(200);
    let publisher = token::bearer(&token::of("bert").sign());
    let mut conn = Conn::open(server.addr());
    for _ in 0..200 {
        conn.request("POST", "/channels/a", &[("Authorization", &publisher)], vec![b'x'; 60_000]).expect(201);
    }
    server.wait_log(|line| field(line, "reason").as_deref() == Some("expired"));
    assert!(now() >= Duration::from_secs(exp));
}

/// What is asked after the end is not done, though it came before the connection was closed.
#[test]
fn nothing_is_done_after_the_end() {
    let server = server();
    let (token, _) = short();
    let mut v1 = V1::open(server.addr(), &format!("/channels?token={token}"));
    v1.expect("expiring");
    v1.expect("closing");
    v1.send(json!({"type": "publish", "channel": "late", "data": "x"}));
    v1.socket.expect_close(4401);
    let answer = get(server.addr(), &format!("/channels/late?token={}", token::of("anna").sign()));
    assert_eq!(answer.expect(200).json()["messages"], json!([]));
}

/// A drain may take longer than a token lives.
#[test]
fn nobody_outlives_a_token_in_a_drain() {
    let mut server = Server::start(&["--set", KEYS, "--set", "drain.window_seconds=600"]);
    let (token, end) = short();
    let target = format!("/channels/a?token={token}");
    let mut streams: Vec<Stream> = (0..8).map(|_| Stream::open(server.addr(), &target)).collect();
    server.signal(libc::SIGTERM);
    for stream in &mut streams {
        while stream.event().name != "$close" {}
        assert!(now() < end + LATE, "too late");
        stream.ended();
    }
    server.signal(libc::SIGTERM);
    server.wait_exit();
}

/// An API key does not end, nor does a stranger's right.
#[test]
fn who_has_no_token_is_not_concerned() {
    let server = Server::start(&["--set", KEYS, "--set", "auth.anonymous={ subscribe = [\"news/**\"] }"]);
    let (token, end) = short();
    let mut stream = Stream::open(server.addr(), "/channels/news/a");
    let mut ended = Stream::open(server.addr(), &format!("/channels/news/a?token={token}"));
    while ended.event().name != "$close" {}
    just_after(end);
    let target = format!("/channels/news/a?token={}", token::of("bert").sign());
    post(server.addr(), &target, &[("Content-Type", "text/plain")], "x").expect(201);
    assert_eq!(stream.message().data, "x");
    stream.quiet(Duration::from_millis(300));
    // Without a token nothing else is given.
    get(server.addr(), "/channels/a").problem(401);
}
