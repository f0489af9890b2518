//! Traces (docs/admin.md, "What happens to a client"): `pushline trace` beside a node, and what it shows of clients that
//! come, read, fall behind, publish and go.

use crate::common;

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use common::access::{ACCESS_LOG, AccessLog};
use common::admin::Metrics;
use common::http::{Conn, Poll, Response, ask, get, post, publish};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::token::{self, KEYS};
use common::ws::{PING, PONG, Socket, V1};
use common::{DEADLINE, receive_buffer, until};
use serde_json::{Value, json};

struct Node {
    server: Server,
    admin: String,
}

impl Node {
    fn start(args: &[&str]) -> Self {
        let all: Vec<&str> = ["--set", "admin.listen=127.0.0.1:0"].iter().chain(args).copied().collect();
        let server = Server::start(&all);
        let line = server.wait_log(|line| message_of(line).as_deref() == Some("admin"));
        let admin = format!("http://{}", field(&line, "listen").expect("where it listens"));
        Self { server, admin }
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    fn admin_addr(&self) -> SocketAddr {
        self.admin.trim_start_matches("http://").parse().expect("an address")
    }

    /// A trace that has begun on all workers.
    #[track_caller]
    fn trace(&self, of: &[&str]) -> Trace {
        let mut trace = Trace::start(&self.admin, &[of, &["--json"]].concat());
        trace.expect("watching");
        trace
    }
}

/// `pushline trace`, running.
struct Trace {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<Value>,
}

impl Trace {
    fn start(admin: &str, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pushline"))
            .args(["trace", "--admin", admin])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { child, lines, seen: Vec::new() }
    }

    fn line(&self, until: Instant) -> Option<String> {
        self.lines.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
    }

    /// The next event of a type, past others.
    #[track_caller]
    fn expect(&mut self, kind: &str) -> Value {
        self.expect_that(kind, |_| true)
    }

    #[track_caller]
    fn expect_that(&mut self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + DEADLINE;
        while let Some(line) = self.line(until) {
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            self.seen.push(event.clone());
            if event["type"] == kind && fits(&event) {
                return event;
            }
        }
        let seen: Vec<String> = self.seen.iter().map(Value::to_string).collect();
        panic!("no {kind} in\n{}", seen.join("\n"));
    }

    /// How it ended: its code, and what it said to that.
    #[track_caller]
    fn ended(mut self) -> (Option<i32>, String) {
        while self.line(Instant::now() + DEADLINE).is_some() {}
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().expect("piped");
        stderr.read_to_string(&mut said).expect("UTF-8");
        (self.child.wait().expect("our own child").code(), said)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn local(conn: &Conn) -> String {
    conn.stream().local_addr().expect("an address").to_string()
}

#[test]
fn a_client_from_its_coming_to_its_end() {
    let node = Node::start(&[]);
    let mut trace = node.trace(&["--address", "127.0.0.1"]);
    let mut stream = Stream::open(node.addr(), "/channels/news?token=s3cret");
    let peer = local(stream.conn());
    let of_it = |event: &Value| event["peer"] == peer.as_str();
    trace.expect_that("accepted", of_it);
    let request = trace.expect_that("request", of_it);
    assert_eq!((&request["method"], &request["path"]), (&json!("GET"), &json!("/channels/news?token=-")));
    let answered = trace.expect_that("answered", of_it);
    assert_eq!((&answered["status"], &answered["transport"]), (&json!(200), &json!("sse")));
    assert_eq!(answered["connection"], stream.connection.as_str());
    let subscribed = trace.expect_that("subscribed", of_it);
    assert_eq!((&subscribed["channel"], &subscribed["gap"]), (&json!("news"), &json!(false)));
    assert_eq!(subscribed["cursor"], stream.cursor.as_str());
    let id = publish(node.addr(), "news", "s3cret-payload");
    let sent = trace.expect_that("sent", of_it);
    assert_eq!((&sent["channel"], &sent["messages"]), (&json!("news"), &json!(1)));
    assert_eq!(sent["cursor"], id.as_str());
    assert!(sent["bytes"].as_u64().is_some_and(|bytes| bytes > 14), "{sent}");
    stream.texts(1);
    drop(stream);
    let left = trace.expect_that("unsubscribed", of_it);
    assert_eq!((&left["channel"], &left["reason"]), (&json!("news"), &json!("gone")));
    let closed = trace.expect_that("closed", of_it);
    assert_eq!((&closed["reason"], &closed["messages"]), (&json!("gone"), &json!(1)));
    // Another client's address is not of it.
    let mut elsewhere = node.trace(&["--address", "10.0.0.0/8", "--address", "unix"]);
    get(node.addr(), "/channels/news").expect(200);
    trace.expect_that("request", |event| event["path"] == "/channels/news");
    elsewhere.child.kill().expect("our own child");
    assert_eq!(elsewhere.line(Instant::now() + DEADLINE), None, "nobody comes from there");
    let all: Vec<String> = trace.seen.iter().map(Value::to_string).collect();
    assert!(!all.concat().contains("s3cret"), "{}", all.join("\n"));
}

#[test]
fn a_channel_whoever_comes() {
    let node = Node::start(&["--workers", "2"]);
    let mut trace = node.trace(&["--channel", "rooms/1"]);
    let mut streams: Vec<Stream> = (0..4).map(|_| Stream::open(node.addr(), "/channels/rooms/1")).collect();
    let mut others = Stream::open(node.addr(), "/channels/rooms/2");
    let mut connections: HashSet<String> = streams.iter().map(|stream| stream.connection.clone()).collect();
    for _ in 0..4 {
        let subscribed = trace.expect("subscribed");
        let connection = subscribed["connection"].as_str().expect("an id");
        assert!(connections.remove(connection), "each once: {subscribed}");
    }
    publish(node.addr(), "rooms/2", "not of it");
    others.texts(1);
    let id = publish(node.addr(), "rooms/1", "hello");
    let published = trace.expect("published");
    assert_eq!((&published["cursor"], &published["bytes"]), (&json!(id), &json!(5)));
    assert_eq!((&published["channel"], &published["replayed"]), (&json!("rooms/1"), &json!(false)));
    let mut readers = 0;
    while readers < 4 {
        let sent = trace.expect("sent_to_readers");
        assert_eq!((&sent["channel"], &sent["cursor"]), (&json!("rooms/1"), &json!(id)));
        readers += sent["readers"].as_u64().expect("a number");
    }
    streams.iter_mut().for_each(|stream| drop(stream.texts(1)));
    streams.truncate(3);
    assert_eq!(trace.expect("unsubscribed")["reason"], "gone");
    ask(node.addr(), "DELETE", "/channels/rooms/1", &[], "").expect(204);
    trace.expect("deleted");
    assert!(trace.seen.iter().all(|event| event["channel"] == "rooms/1" || event["type"] == "watching"));
    assert!(trace.seen.iter().all(|event| event["type"] != "sent"), "not for each reader");
}

#[test]
fn one_connection_to_its_end() {
    let node =
        Node::start(&["--set", "heartbeat.interval_seconds=0.2", "--set", "heartbeat.timeout_seconds=10"]);
    let (mut v1, _) = V1::subscribed(node.addr(), "a");
    let connection = v1.connection.clone();
    let mut trace = node.trace(&["--connection", &connection]);
    let found = trace.expect("found");
    assert_eq!((&found["subscriptions"], &found["transport"]), (&json!(1), &json!("pushline.v1")));
    trace.expect("pinged");
    let ping = loop {
        let frame = v1.socket.frame().expect("a frame");
        if frame.opcode == PING {
            break frame;
        }
    };
    v1.socket.send(true, PONG, ping.payload);
    trace.expect("ponged");
    v1.send(json!({"type": "publish", "channel": "a", "data": "s3cret"}));
    let published = trace.expect("published");
    assert_eq!((&published["channel"], &published["bytes"]), (&json!("a"), &json!(6)));
    // It may have been sent by the channel's home before its publisher hears of its place.
    if !trace.seen.iter().any(|event| event["type"] == "sent") {
        trace.expect("sent");
    }
    v1.send(json!({"type": "subscribe", "channel": "b"}));
    assert_eq!(trace.expect("subscribed")["channel"], "b");
    v1.send(json!({"type": "unsubscribe", "channel": "b"}));
    assert_eq!(trace.expect("unsubscribed")["reason"], Value::Null);
    v1.send(json!({"type": "unsubscribe", "channel": "b"}));
    assert!(trace.expect("denied")["why"].as_str().is_some_and(|why| why.contains("subscribe first")));
    v1.socket.close(1000, "");
    assert_eq!(trace.expect("closing")["reason"], "asked");
    drop(v1);
    assert_eq!(trace.expect("closed")["reason"], "asked");
    assert_eq!(trace.ended(), (Some(0), String::new()), "it ends with its connection");

    // Its id means nothing else now, and another's is told from none at all.
    let mut gone = node.trace(&["--connection", &connection]);
    gone.expect("absent");
    assert_eq!(gone.ended().0, Some(0));
    let (code, said) = Trace::start(&node.admin, &["--connection", "AAAA"]).ended();
    assert_eq!(code, Some(1));
    assert!(said.contains("404") && said.contains("never gave a connection that id"), "{said}");
}

/// A reader that stops, falls out of what the feed holds, and comes back to it by history.
#[test]
fn a_reader_that_falls_behind() {
    let node = Node::start(&[
        "--set",
        "feed.bytes=65536",
        "--set",
        "slow.kernel_bytes=66560",
        "--set",
        "history.bytes=67108864",
    ]);
    let mut trace = node.trace(&["--channel", "a"]);
    let mut stream = Stream::open(node.addr(), "/channels/a");
    receive_buffer(stream.conn().stream(), 65_536);
    trace.expect("subscribed");
    let text = "x".repeat(30_000);
    const MESSAGES: usize = 100;
    for _ in 0..MESSAGES {
        publish(node.addr(), "a", &text);
    }
    trace.expect("blocked");
    let reading = std::thread::spawn(move || {
        assert_eq!(stream.texts(MESSAGES).len(), MESSAGES);
        stream
    });
    trace.expect("unblocked");
    let lagged = trace.expect("lagged");
    assert!(lagged["behind"].as_u64().is_some_and(|behind| behind > 1), "{lagged}");
    trace.expect("caught_up");
    drop(reading.join().expect("a reader"));
}

/// Who somebody is, or exactly why not; the client is told less.
#[test]
fn who_somebody_is() {
    let node = Node::start(&["--set", KEYS]);
    let mut trace = node.trace(&["--address", "127.0.0.1"]);
    let mut of_anna = node.trace(&["--subject", "anna"]);
    let good = token::of("anna").subscribe(&["a"]).publish(&["b"]).sign();
    let bad = format!("{good}x");
    ask(node.addr(), "GET", "/channels/a", &[("Authorization", &token::bearer(&bad))], "").expect(401);
    assert!(trace.expect("denied")["why"].as_str().is_some_and(|why| !why.is_empty()));
    assert_eq!(trace.expect("answered")["status"], 401);
    ask(node.addr(), "GET", "/channels/a", &[("Authorization", &token::bearer(&good))], "").expect(200);
    let known = trace.expect("authenticated");
    assert_eq!((&known["subject"], &known["proof"]), (&json!("anna"), &json!("token")));
    assert_eq!(of_anna.expect("answered")["status"], 200);
    ask(node.addr(), "POST", "/channels/a", &[("Authorization", &token::bearer(&good))], "x").expect(403);
    assert_eq!(trace.expect("denied")["subject"], "anna");
    assert_eq!(of_anna.expect_that("answered", |event| event["status"] == 403)["subject"], "anna");
    let all: Vec<String> = trace.seen.iter().map(Value::to_string).collect();
    assert!(!all.concat().contains(&good), "{}", all.join("\n"));
}

/// Requests on a connection that is held when they come are told as those that come with it: each step, once, in order.
#[test]
fn requests_on_a_connection_that_waits() {
    let node = Node::start(&["--set", KEYS, "--set", "quotas.subject.subscriptions=1"]);
    let mut trace = node.trace(&["--address", "127.0.0.1"]);
    let both = token::bearer(&token::of("anna").subscribe(&["a"]).publish(&["a"]).sign());
    let fields = [("Authorization", both.as_str())];
    let mut conn = Conn::open(node.addr());
    // It has no request yet: it is held, and what comes is served where it is read.
    trace.expect("accepted");
    let mut steps = |trace: &mut Trace, method: &str, target: &str, status: u16| -> (Response, Vec<String>) {
        trace.seen.clear();
        conn.send(method, target, &fields, "x".repeat(usize::from(method == "POST")));
        let answer = conn.read_response();
        assert_eq!(answer.status, status, "{answer}");
        assert_eq!(trace.expect("answered")["status"], status);
        let told = trace.seen.iter().map(|event| {
            let whose = if event["type"] == "request" { Value::Null } else { json!("anna") };
            assert_eq!(event["subject"], whose, "{event}");
            event["type"].as_str().expect("a type").to_owned()
        });
        (answer, told.collect())
    };
    const PLAIN: [&str; 3] = ["request", "authenticated", "answered"];
    assert_eq!(steps(&mut trace, "POST", "/channels/a", 201).1, PLAIN);
    let (answer, told) = steps(&mut trace, "GET", "/channels/a", 200);
    assert_eq!(told, PLAIN);
    let waiting = format!("/channels/a?cursor={}&wait=1", Poll::of(&answer).cursor);
    assert_eq!(steps(&mut trace, "GET", &waiting, 204).1, PLAIN, "once, when its wait is over");
    let _reader = Stream::open_with(node.addr(), "/channels/a", &fields);
    trace.expect("subscribed");
    let refused = ["request", "authenticated", "denied", "answered"];
    assert_eq!(steps(&mut trace, "GET", &waiting, 429).1, refused);
}

/// Every refusal of somebody is told with its exact reason, logged with its code, and counted.
#[test]
fn whoever_is_refused() {
    let node = Node::start(&["--set", KEYS, "--set", "auth.anonymous={ subscribe = [\"open\"] }"]);
    let addr = node.addr();
    let mut trace = node.trace(&["--address", "127.0.0.1"]);
    let counted = |reason: &str| {
        Metrics::scrape(node.admin_addr()).sum("pushline_refusals_total", &[("reason", reason)])
    };
    let mut told = |reason: &str, code: &str, why: &str, refuse: &mut dyn FnMut()| {
        let before = counted(reason);
        refuse();
        trace.expect_that("denied", |event| event["why"].as_str().is_some_and(|told| told.contains(why)));
        node.server.wait_log(|line| {
            message_of(line).as_deref() == Some("refused") && field(line, "code").as_deref() == Some(code)
        });
        assert_eq!(counted(reason), before + 1.0, "{code}");
    };
    let sign = |subject: &str| token::bearer(&token::of(subject).sign());
    let (anna, bert) = (sign("anna"), sign("bert"));
    told("origin", "foreign_origin", "origins.allow", &mut || {
        drop(ask(addr, "GET", "/channels/a", &[("Origin", "https://elsewhere.example")], "").expect(403));
    });
    let hers = Stream::open_with(addr, "/channels/a", &[("Authorization", &anna)]);
    let nobodys = Stream::open(addr, "/channels/open");
    let renew = |stream: &Stream, fields: &[(&str, &str)]| {
        post(addr, &format!("/connections/{}/auth", stream.connection), fields, "").status
    };
    told("unauthenticated", "no_token", "no token", &mut || assert_eq!(renew(&hers, &[]), 401));
    told("forbidden", "other_subject", "the sub that it has", &mut || {
        assert_eq!(renew(&hers, &[("Authorization", &bert)]), 403);
    });
    told("forbidden", "without_token", "opened with a token", &mut || {
        assert_eq!(renew(&nobodys, &[("Authorization", &anna)]), 403);
    });
    told("unauthenticated", "no_token", "no token", &mut || {
        post(addr, "/tickets", &[], "").problem(401);
    });
    told("unauthenticated", "no_token", "no token", &mut || {
        post(addr, "/publish", &[("Content-Type", "application/x-ndjson")], "").problem(401);
    });
    let little = token::of("anna").subscribe(&["a"]).publish(&["a"]).sign();
    let mut late = V1::open(addr, "/channels/b");
    told("forbidden", "forbidden", "does not cover subscribe", &mut || {
        late.ask(json!({"type": "auth", "token": little}), "authenticated");
        assert_eq!(late.expect("closing")["reason"], "forbidden");
    });
    let mut v1 = V1::open(addr, &format!("/channels?token={little}"));
    told("unauthenticated", "no_jwt", "neither a JWT", &mut || {
        v1.refused(json!({"type": "auth", "token": "nonsense"}));
    });
    told("forbidden", "forbidden", "does not cover publish", &mut || {
        v1.refused(json!({"type": "publish", "channel": "b", "data": 1}));
    });
    told("forbidden", "forbidden", "does not cover publish", &mut || {
        let mut raw =
            Socket::open(addr, &format!("/channels/a?token={}", token::of("anna").publish(&["b"]).sign()));
        raw.text("x");
        raw.expect_close(1008);
    });
}

/// Which key decided, of every kind of refusal by a quota.
#[test]
fn quotas_that_refuse() {
    let node = Node::start(&[
        "--set",
        KEYS,
        "--set",
        "quotas.subject.connections=1",
        "--set",
        "quotas.subject.publishes_per_second=1",
        "--set",
        "quotas.address.connections=8",
    ]);
    let addr = node.addr();
    let mut trace = node.trace(&["--subject", "anna", "--address", "127.0.0.1"]);
    let token = token::of("anna").sign();
    let target = format!("/channels/a?token={token}");
    let _first = Stream::open(addr, &target);
    let says = |key: &'static str| {
        move |event: &Value| event["why"].as_str().is_some_and(|why| why.contains(&format!("quotas.{key} ")))
    };
    assert_eq!(Stream::begin(addr, &target, &[]).event().name, "$close");
    let event = trace.expect_that("denied", says("subject.connections"));
    assert_eq!((&event["subject"], &event["peer"].is_string()), (&json!("anna"), &true));
    Socket::open(addr, &target).expect_close(4429);
    trace.expect_that("denied", says("subject.connections"));
    let cursor =
        get(addr, &format!("{target}&limit=0")).json()["cursor"].as_str().expect("a cursor").to_owned();
    let mut conn = Conn::open(addr);
    for _ in 0..2 {
        conn.get(&format!("{target}&wait=40&cursor={cursor}")).problem(429);
        trace.expect_that("denied", says("subject.connections"));
    }
    until("a publish too many", || (conn.request("POST", &target, &[], "x").status == 429).then_some(()));
    trace.expect_that("denied", says("subject.publishes_per_second"));
    let conns: Vec<Conn> = (0..9).filter_map(|_| Conn::try_open(addr).ok()).collect();
    trace.expect_that("denied", says("address.connections"));
    trace.expect_that("closed", |event| event["reason"] == "rate_limited" && event["transport"] == "http");
    drop(conns);
}

/// More than anybody can be shown: what is missing is said, to the last one.
#[test]
fn what_does_not_fit_is_counted() {
    let node = Node::start(&["--workers", "1"]);
    let mut trace = node.trace(&["--channel", "flood"]);
    const LINES: u64 = 20_000;
    let lines = "{\"channel\":\"flood\",\"data\":1}\n".repeat(usize::try_from(LINES).expect("small"));
    post(node.addr(), "/publish", &[("Content-Type", "application/x-ndjson")], lines).expect(200);
    publish(node.addr(), "flood", "the last");
    let until = Instant::now() + DEADLINE;
    let (mut shown, mut dropped) = (0, 0);
    while shown + dropped < LINES + 1 {
        let line = trace.line(until).unwrap_or_else(|| panic!("{shown} shown, {dropped} dropped"));
        let event: Value = serde_json::from_str(&line).expect("JSON");
        match event["type"].as_str() {
            Some("published") => shown += 1,
            Some("dropped") => dropped += event["events"].as_u64().expect("a number"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(shown + dropped, LINES + 1);
    assert!(dropped > 0, "the queue has an end");
    trace.child.kill().expect("our own child");
}

#[test]
fn so_many_at_once() {
    let node = Node::start(&[]);
    let mut traces: Vec<Trace> = (0..8).map(|_| node.trace(&["--channel", "a"])).collect();
    let (code, said) = Trace::start(&node.admin, &["--channel", "a"]).ended();
    assert_eq!(code, Some(1));
    assert!(said.contains("429") && said.contains("end one of them"), "{said}");
    traces.truncate(7);
    // The place of one that has ended is free as soon as its connection is found closed.
    let again = until("a place", || {
        let trace = Trace::start(&node.admin, &["--channel", "a", "--json"]);
        trace.line(Instant::now() + Duration::from_secs(2)).is_some().then_some(trace)
    });
    drop(again);
    for trace in &mut traces {
        publish(node.addr(), "a", "x");
        trace.expect("published");
    }
}

#[test]
fn refusals_say_what_is_right() {
    let node = Node::start(&[]);
    for (query, status, says) in [
        ("", 400, "say what to trace"),
        ("?chanel=a", 400, "nothing to trace by"),
        ("?channel=a/**", 400, "not of a pattern"),
        ("?address=localhost", 400, "IP address"),
        ("?connection=x", 404, "never gave"),
    ] {
        let answer = get(node.admin_addr(), &format!("/trace{query}"));
        assert!(answer.problem(status).contains(says), "{query}: {answer}");
    }
    let (code, said) = Trace::start("http://127.0.0.1:1", &["--channel", "a"]).ended();
    assert!(code == Some(1) && said.contains("admin.listen"), "{said}");
    let here = format!("http://{}", node.addr());
    let (code, said) = Trace::start(&here, &["--channel", "a"]).ended();
    assert!(code == Some(1) && said.contains("404"), "{said}");
    let (code, said) = Trace::start(&node.admin, &[]).ended();
    assert!(code == Some(2) && said.contains("--channel"), "{said}");
}

/// For people: a line with the time of day, what happened, and where.
#[test]
fn lines_are_for_people() {
    let node = Node::start(&[]);
    let trace = Trace::start(&node.admin, &["--channel", "a"]);
    let first = trace.line(Instant::now() + DEADLINE).expect("a line");
    assert!(first.contains(" watching ") && first.ends_with(" channel=a"), "{first}");
    let id = publish(node.addr(), "a", "x");
    let line = trace.line(Instant::now() + DEADLINE).expect("a line");
    assert_eq!(line.as_bytes()[2], b':', "{line}");
    assert!(line.contains(" published "), "{line}");
    assert!(line.contains(&format!(" channel=a bytes=1 cursor={id} replayed=false")), "{line}");
}

/// Whose token was signed with a good key is told by name, whatever else is wrong with it; whoever names themselves is not.
#[test]
fn who_is_refused_is_named_where_a_signature_says_so() {
    let args = [&["--set", KEYS, "--set", "auth.audience=pushline"][..], &ACCESS_LOG].concat();
    let node = Node::start(&args);
    let (addr, log) = (node.addr(), AccessLog::of(&node.server));
    let mut trace = node.trace(&["--subject", "anna"]);
    let now_s = token::now_s();
    let anna = |id: &str| token::of("anna").with("jti", id).with("aud", "pushline").with("iat", now_s - 1);
    let told = |trace: &mut Trace, id: &str, why: &str| {
        let denied =
            trace.expect_that("denied", |event| event["why"].as_str().is_some_and(|told| told.contains(id)));
        assert!(denied["why"].as_str().is_some_and(|told| told.contains(why)), "{denied}");
        assert_eq!(denied["subject"], "anna");
        node.server.wait_log(|line| {
            message_of(line).as_deref() == Some("refused")
                && field(line, "subject").as_deref() == Some("anna")
                && field(line, "token_id").as_deref() == Some(id)
        });
    };
    let json = [("Content-Type", "application/json")];
    ask(node.admin_addr(), "POST", "/revocations", &json, r#"{"token_id":"revoked"}"#).expect(201);
    let bad_pattern = anna("pattern").with("subscribe", json!(["a//b"]));
    for (id, token, why) in [
        ("expired", anna("expired").until(now_s - 100), "expired"),
        ("not-yet", anna("not-yet").with("nbf", now_s + 600), "nbf"),
        ("audience", anna("audience").with("aud", "others"), "audience"),
        ("pattern", bad_pattern, "pattern"),
        ("revoked", anna("revoked"), "revoked"),
    ] {
        let path = format!("/channels/{id}");
        let token = token.sign();
        ask(addr, "GET", &path, &[("Authorization", &token::bearer(&token))], "").problem(401);
        told(&mut trace, id, why);
        assert_eq!(log.request(&path)["subject"], "anna");
        // A WebSocket too, of which the handshake is accepted.
        let mut raw = Socket::open(addr, &format!("/channels/raw-{id}?token={token}"));
        raw.frame().expect("a close frame");
        told(&mut trace, id, why);
        // And one that says who it is later.
        let mut v1 = V1::open(addr, &format!("/channels/v1-{id}"));
        v1.refused(json!({"type": "auth", "token": token}));
        told(&mut trace, id, why);
    }
    let ticket =
        ask(addr, "POST", "/tickets", &[("Authorization", &token::bearer(&anna("ticket").sign()))], "");
    let target =
        format!("/channels/ticket?ticket={}", ticket.expect(201).json()["ticket"].as_str().expect("one"));
    get(addr, &target).expect(200);
    let mut elsewhere = Conn::open_as(2, addr);
    elsewhere.send("GET", &target, &[], "");
    elsewhere.expect_answer_to("GET");
    elsewhere.read_response().problem(401);
    told(&mut trace, "ticket", "address");
    // Signed by nobody.
    let token = anna("forged").sign();
    let forged = format!("{}AAAA", &token[..token.len() - 4]);
    ask(addr, "GET", "/channels/forged", &[("Authorization", &token::bearer(&forged))], "").problem(401);
    let line = log.request("/channels/forged");
    assert!(line.get("subject").is_none(), "{line}");
}
