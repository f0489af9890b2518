//! What an operator takes back is gone within a second: from requests, and from the live connections of all workers.

use crate::common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use common::http::{Conn, Response, ask, get, post};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::token::{self, KEYS, now_s};
use common::until;
use common::ws::{Message, Socket, TEXT, V1, masked};

/// How soon it takes effect.
const SOON: Duration = Duration::from_secs(1);
const QUIET: Duration = Duration::from_millis(150);

struct Node {
    server: Server,
    admin: SocketAddr,
}

impl Node {
    fn start(args: &[&str]) -> Self {
        let mut all = vec!["--set", KEYS, "--set", "admin.listen=127.0.0.1:0", "--workers", "4"];
        all.extend(args);
        let server = Server::start(&all);
        let line = server.wait_log(|line| message_of(line).as_deref() == Some("admin"));
        let admin = field(&line, "listen").expect("its address").parse().expect("an address");
        Self { server, admin }
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    fn ask_to_revoke(&self, what: &Value) -> Response {
        let json = [("Content-Type", "application/json")];
        ask(self.admin, "POST", "/revocations", &json, what.to_string())
    }

    /// Revokes; what the answer says, and when it was.
    #[track_caller]
    #[allow(clippy::needless_pass_by_value)]
    fn revoke(&self, what: Value) -> (Value, Instant) {
        let answer = self.ask_to_revoke(&what).expect(201).json();
        (answer, Instant::now())
    }

    fn list(&self) -> Vec<Value> {
        let answer = get(self.admin, "/revocations").expect(200).json();
        answer["revocations"].as_array().expect("a list").clone()
    }
}

#[track_caller]
fn soon(since: Instant) {
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
}

/// The token of a second ago: one of this second is concerned too, but so would be a new one.
fn old(subject: &str) -> token::Token {
    token::of(subject).with("iat", now_s() - 1)
}

/// One reader of each kind, of several workers.
struct Readers {
    streams: Vec<Stream>,
    v1: Vec<V1>,
    raw: Vec<Socket>,
    polls: Vec<Conn>,
}

impl Readers {
    fn open(node: &Node, token: &str) -> Self {
        let target = format!("/channels/a?token={token}");
        let before = get(node.addr(), &format!("{target}&limit=0")).expect(200).json();
        let cursor = before["cursor"].as_str().expect("a cursor").to_owned();
        let each = 0..6;
        Self {
            streams: each.clone().map(|_| Stream::open(node.addr(), &target)).collect(),
            v1: each
                .clone()
                .map(|_| {
                    let mut v1 = V1::open(node.addr(), &target);
                    v1.expect("subscribed");
                    v1
                })
                .collect(),
            raw: each.clone().map(|_| Socket::open(node.addr(), &target)).collect(),
            polls: each
                .map(|_| {
                    let mut conn = Conn::open(node.addr());
                    conn.send("GET", &format!("{target}&cursor={cursor}&wait=30"), &[], "");
                    conn
                })
                .collect(),
        }
    }

    /// All are ended, each in the words of its transport.
    #[track_caller]
    fn ended(mut self, since: Instant) {
        for stream in &mut self.streams {
            assert_eq!(stream.event().named("$close").json()["reason"], "revoked");
            stream.ended();
        }
        for v1 in &mut self.v1 {
            assert_eq!(v1.expect("closing")["reason"], "revoked");
            v1.socket.expect_close(4401);
        }
        for socket in &mut self.raw {
            assert_eq!(socket.message(), Message::Close(4401));
        }
        for conn in &mut self.polls {
            conn.read_response().problem(401);
        }
        soon(since);
    }

    /// All are still served.
    #[track_caller]
    fn served(mut self, node: &Node) {
        let publisher = token::of("publisher").sign();
        let text_plain = [("Content-Type", "text/plain")];
        post(node.addr(), &format!("/channels/a?token={publisher}"), &text_plain, "x").expect(201);
        self.streams.iter_mut().for_each(|stream| assert_eq!(stream.message().data, "x"));
        self.v1.iter_mut().for_each(|v1| assert_eq!(v1.texts(1), ["x"]));
        self.raw.iter_mut().for_each(|socket| assert_eq!(socket.expect_text(), "x"));
        self.polls.iter_mut().for_each(|conn| drop(conn.read_response().expect(200)));
    }
}

#[test]
fn a_subject_is_gone_at_once() {
    let node = Node::start(&[]);
    let (anna, bert) = (old("anna").sign(), old("bert").sign());
    let (hers, his) = (Readers::open(&node, &anna), Readers::open(&node, &bert));
    let mut kept = Conn::open(node.addr());
    let target = format!("/channels/a?token={anna}");
    kept.get(&target).expect(200);
    let (revoked, since) = node.revoke(json!({"subject": "anna"}));
    assert_eq!((&revoked["number"], &revoked["subject"]), (&json!(1), &json!("anna")), "{revoked}");
    kept.get(&target).problem(401);
    let answer = get(node.addr(), &target);
    assert!(answer.header("www-authenticate").contains("invalid_token"), "{answer}");
    answer.problem(401);
    post(node.addr(), &target, &[], "x").problem(401);
    Stream::begin(node.addr(), &format!("/channels/b?token={bert}"), &[]);
    hers.ended(since);
    his.served(&node);
    // One that was issued since is good, one that does not say when is not.
    let since = |iat: u64| format!("/channels/a?token={}", token::of("anna").with("iat", iat).sign());
    let made = revoked["made"].as_u64().expect("seconds");
    get(node.addr(), &since(made + 1)).expect(200);
    get(node.addr(), &since(made)).problem(401);
    get(node.addr(), &format!("/channels/a?token={}", token::of("anna").sign())).problem(401);
}

#[test]
fn a_token_is_gone_by_its_id() {
    let node = Node::start(&[]);
    let (first, second) = (old("anna").with("jti", "one").sign(), old("anna").with("jti", "two").sign());
    let (ends, stays) = (Readers::open(&node, &first), Readers::open(&node, &second));
    let (_, since) = node.revoke(json!({"token_id": "one"}));
    get(node.addr(), &format!("/channels/a?token={first}")).problem(401);
    ends.ended(since);
    stays.served(&node);
    let later = token::of("anna").with("jti", "one").with("iat", now_s() + 1).sign();
    get(node.addr(), &format!("/channels/a?token={later}")).problem(401);
}

#[test]
fn a_connection_is_gone_with_its_token() {
    let node = Node::start(&[]);
    let (first, second) = (old("anna").with("n", 1).sign(), old("anna").with("n", 2).sign());
    let (ends, stays) = (Readers::open(&node, &first), Readers::open(&node, &second));
    let id = ends.streams[0].connection.clone();
    let (revoked, since) = node.revoke(json!({"connection": id}));
    assert_eq!(revoked["connection"], json!(id), "{revoked}");
    assert!(!revoked.to_string().contains("digest"), "{revoked}");
    get(node.addr(), &format!("/channels/a?token={first}")).problem(401);
    ends.ended(since);
    stays.served(&node);
    node.ask_to_revoke(&json!({"connection": id})).problem(404);
    node.ask_to_revoke(&json!({"connection": "nonsense"})).problem(404);
}

/// A connection without a token is ended; what a rule permits, it permits again.
#[test]
fn a_strangers_connection_is_ended_alone() {
    let node = Node::start(&["--set", "auth.anonymous={ subscribe = [\"news\"] }"]);
    let mut streams: Vec<Stream> = (0..4).map(|_| Stream::open(node.addr(), "/channels/news")).collect();
    let id = streams[0].connection.clone();
    let answer = node.ask_to_revoke(&json!({"connection": id})).expect(200).json();
    assert_eq!(answer["number"], Value::Null, "{answer}");
    assert_eq!(streams[0].event().named("$close").json()["reason"], "revoked");
    streams[1].quiet(QUIET);
    assert_eq!(node.list(), [] as [Value; 0]);
    Stream::open(node.addr(), "/channels/news");
}

#[test]
fn a_channel_is_gone_alone() {
    let node = Node::start(&[]);
    let anna = old("anna").sign();
    let query = format!("?token={anna}");
    let mut v1: Vec<V1> = (0..6)
        .map(|_| {
            let mut v1 = V1::open(node.addr(), &format!("/channels/a,b{query}"));
            (0..2).for_each(|_| drop(v1.expect("subscribed")));
            v1
        })
        .collect();
    let mut both = Stream::open(node.addr(), &format!("/channels/a,b{query}"));
    let mut other = Stream::open(node.addr(), &format!("/channels/b{query}"));
    let mut raw = Socket::open(node.addr(), &format!("/channels/a{query}"));
    let cursor = get(node.addr(), &format!("/channels/a{query}&limit=0")).json()["cursor"].clone();
    let mut poll = Conn::open(node.addr());
    let cursor = cursor.as_str().expect("a cursor");
    poll.send("GET", &format!("/channels/a{query}&cursor={cursor}&wait=30"), &[], "");
    let (_, since) = node.revoke(json!({"channel": "a"}));
    for v1 in &mut v1 {
        let ended = v1.expect("error");
        assert_eq!((&ended["code"], &ended["channel"]), (&json!("subscription_ended"), &json!("a")));
    }
    assert_eq!(both.event().named("$close").json()["reason"], "revoked");
    assert_eq!(raw.message(), Message::Close(4401));
    poll.read_response().problem(403);
    soon(since);
    // Not to read, to publish to, or to delete; all else as before.
    get(node.addr(), &format!("/channels/a{query}")).problem(403);
    post(node.addr(), &format!("/channels/a{query}"), &[], "x").problem(403);
    ask(node.addr(), "DELETE", &format!("/channels/a{query}"), &[], "").problem(403);
    for (n, operation) in ["subscribe", "publish"].into_iter().enumerate() {
        let error = v1[0].refused(json!({"type": operation, "channel": "a", "data": "x", "seq": n}));
        assert_eq!(error["code"], "forbidden", "{error}");
    }
    post(node.addr(), &format!("/channels/b{query}"), &[("Content-Type", "text/plain")], "x").expect(201);
    assert_eq!(other.message().data, "x");
    v1.iter_mut().for_each(|v1| assert_eq!(v1.texts(1), ["x"]));
    let later = token::of("anna").with("iat", now_s() + 2).sign();
    get(node.addr(), &format!("/channels/a?token={later}")).expect(200);
}

#[test]
fn a_channel_is_gone_for_one_subject() {
    let node = Node::start(&[]);
    let open = |subject: &str, channel: &str| {
        Stream::open(node.addr(), &format!("/channels/{channel}?token={}", old(subject).sign()))
    };
    let mut ends = open("anna", "rooms/1");
    let mut stay = [open("bert", "rooms/1"), open("anna", "lobby")];
    let (_, since) = node.revoke(json!({"subject": "anna", "channel": "rooms/**"}));
    assert_eq!(ends.event().named("$close").json()["reason"], "revoked");
    soon(since);
    stay.iter_mut().for_each(|stream| stream.quiet(QUIET));
    let status = |subject: &str, channel: &str| {
        get(node.addr(), &format!("/channels/{channel}?token={}", old(subject).sign())).status
    };
    assert_eq!(
        (status("anna", "rooms/2"), status("bert", "rooms/2"), status("anna", "lobby")),
        (403, 200, 200)
    );
}

#[test]
fn a_v1_token_that_is_revoked_is_not_taken() {
    let node = Node::start(&[]);
    let revoked = old("anna").sign();
    node.revoke(json!({"subject": "anna"}));
    let mut v1 = V1::open(node.addr(), "/channels/a");
    let error = v1.refused(json!({"type": "auth", "token": revoked, "seq": 1}));
    assert_eq!(error["code"], "unauthorized", "{error}");
    let fresh = token::of("anna").with("iat", now_s() + 2).sign();
    v1.ask(json!({"type": "auth", "token": fresh}), "authenticated");
    v1.expect("subscribed");
    // Nor to renew a stream.
    let stream = Stream::open(node.addr(), &format!("/channels/a?token={fresh}"));
    let target = format!("/connections/{}/auth", stream.connection);
    post(node.addr(), &target, &[("Authorization", &token::bearer(&revoked))], "").problem(401);
    post(node.addr(), &target, &[("Authorization", &token::bearer(&fresh))], "").expect(200);
}

#[test]
fn revocations_are_listed_and_lifted() {
    let node = Node::start(&[]);
    let until = now_s() + 100;
    node.revoke(json!({"subject": "anna"}));
    node.revoke(json!({"token_id": "one", "until": until, "made": until - 200}));
    let list = node.list();
    assert_eq!(list.len(), 2, "{list:?}");
    assert_eq!((&list[0]["number"], &list[0]["subject"]), (&json!(1), &json!("anna")));
    let kept = list[0]["until"].as_u64().expect("seconds") - list[0]["made"].as_u64().expect("seconds");
    assert!((31 * 86_400..31 * 86_400 + 2).contains(&kept), "as long as the longest token: {list:?}");
    assert_eq!(list[1], json!({"number": 2, "token_id": "one", "made": until - 200, "until": until}));
    let target = format!("/channels/a?token={}", old("anna").sign());
    get(node.addr(), &target).problem(401);
    ask(node.admin, "DELETE", "/revocations/1", &[], "").expect(204);
    get(node.addr(), &target).expect(200);
    ask(node.admin, "DELETE", "/revocations/1", &[], "").problem(404);
    ask(node.admin, "DELETE", "/revocations/x", &[], "").problem(400);
}

#[test]
fn revocations_are_listed_in_pages() {
    let node = Node::start(&[]);
    for subject in ["anna", "bert", "carl"] {
        node.revoke(json!({"subject": subject}));
    }
    let page = |query: &str| get(node.admin, &format!("/revocations?{query}")).expect(200).json();
    let numbers = |page: &Value| -> Vec<u64> {
        page["revocations"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["number"].as_u64())
            .collect()
    };
    let first = page("limit=2");
    assert_eq!((numbers(&first), &first["next"]), (vec![1, 2], &json!(2)), "{first}");
    let last = page("limit=2&after=2");
    assert_eq!((numbers(&last), last.get("next")), (vec![3], None), "{last}");
    assert_eq!(page("limit=3").get("next"), None);
    for limit in ["0", "100001"] {
        let detail = get(node.admin, &format!("/revocations?limit={limit}")).problem(400);
        assert!(detail.contains("1 to 100000"), "{detail}");
    }
}

/// What one node lists, another takes: a node that starts is told so.
#[test]
fn a_list_can_be_carried_to_another_node() {
    let first = Node::start(&[]);
    first.revoke(json!({"subject": "anna", "until": now_s() + 100}));
    first.revoke(json!({"channel": "rooms/**"}));
    let list = get(first.admin, "/revocations").expect(200).text();
    let second = Node::start(&[]);
    let json = [("Content-Type", "application/json")];
    let answer = ask(second.admin, "POST", "/revocations", &json, list).expect(201).json();
    assert_eq!(answer["revocations"].as_array().map(Vec::len), Some(2), "{answer}");
    let same = |list: Vec<Value>| -> Vec<Value> {
        list.into_iter()
            .map(|mut one| {
                one["number"] = Value::Null;
                one
            })
            .collect()
    };
    assert_eq!(same(second.list()), same(first.list()));
    get(second.addr(), &format!("/channels/a?token={}", old("anna").sign())).problem(401);
}

#[test]
fn what_cannot_be_revoked_is_refused() {
    let node = Node::start(&["--set", "auth.revocations_max=2"]);
    for (what, says) in [
        (json!({}), "subject"),
        (json!({"subject": ""}), "subject"),
        (json!({"subject": 1}), "subject"),
        (json!({"channel": "a//b"}), "channel"),
        (json!({"sub": "anna"}), "sub"),
        (json!({"subject": "anna", "until": 5}), "until"),
        (json!({"subject": "anna", "made": now_s() + 1_000}), "made"),
        (json!([]), "object"),
    ] {
        let detail = node.ask_to_revoke(&what).problem(400);
        assert!(detail.contains(says), "{what}: {detail}");
    }
    node.revoke(json!({"subject": "anna"}));
    node.revoke(json!({"subject": "bert"}));
    let detail = node.ask_to_revoke(&json!({"subject": "carl"})).problem(409);
    assert!(detail.contains("auth.revocations_max"), "{detail}");
    node.revoke(json!({"subject": "anna"}));
    assert_eq!(node.list().len(), 2);
}

/// Streams that open while their token is revoked: whoever is let in is put out.
#[test]
fn nobody_slips_in_while_it_is_revoked() {
    let node = Node::start(&[]);
    let anna = old("anna").sign();
    let addr = node.addr();
    let target = format!("/channels/a?token={anna}");
    let opening: Vec<_> = (0..4)
        .map(|_| {
            let target = target.clone();
            std::thread::spawn(move || {
                let mut opened = Vec::new();
                for _ in 0..400 {
                    let mut conn = Conn::open(addr);
                    conn.send("GET", &target, &[("Accept", "text/event-stream")], "");
                    let head = conn.read_head();
                    if head.status == 401 {
                        return opened;
                    }
                    opened.push(Stream::of_head(conn, head));
                }
                panic!("never refused");
            })
        })
        .collect();
    let mut first = Stream::open(addr, &target);
    node.revoke(json!({"subject": "anna"}));
    for thread in opening {
        for mut stream in thread.join().expect("no panic") {
            while stream.event().name != "$close" {}
            stream.ended();
        }
    }
    assert_eq!(first.event().named("$close").json()["reason"], "revoked");
    until("all are gone", || (common::server::close_waits(addr.port()) == 0).then_some(()));
}

/// The same of channels that v1 connections subscribe to meanwhile.
#[test]
fn no_subscription_slips_in_while_its_channel_is_revoked() {
    const CHANNELS: usize = 60;
    let node = Node::start(&[]);
    let anna = old("anna").sign();
    for round in 0..20 {
        let mut all: Vec<V1> =
            (0..6).map(|_| V1::open(node.addr(), &format!("/channels?token={anna}"))).collect();
        let subscribe = |number| json!({"type": "subscribe", "channel": format!("{round}/{number}")});
        let frames: Vec<u8> = (0..CHANNELS)
            .flat_map(|number| masked(true, TEXT, subscribe(number).to_string().as_bytes()))
            .collect();
        all.iter_mut().for_each(|v1| v1.socket.send_raw(&frames));
        node.revoke(json!({"channel": format!("{round}/**")}));
        // Each is refused, or had and lost.
        for v1 in &mut all {
            let mut errors = 0;
            while errors < CHANNELS {
                errors += usize::from(v1.next()["type"] == "error");
            }
            v1.ask(json!({"type": "ping"}), "pong");
        }
    }
}

#[test]
fn an_api_key_is_gone_by_its_name() {
    let sha256: String = Sha256::digest("pushline_key").iter().map(|byte| format!("{byte:02x}")).collect();
    let keys = format!(
        "auth.api_keys=[{{ name = 'shop', sha256 = '{sha256}', publish = ['**'], subscribe = ['**'] }}]"
    );
    let node = Node::start(&["--set", &keys]);
    let headers = [("Authorization", "Bearer pushline_key"), ("Content-Type", "text/plain")];
    let status = || ask(node.addr(), "POST", "/channels/b", &headers, "x").status;
    let mut streams: Vec<Stream> =
        (0..6).map(|_| Stream::open_with(node.addr(), "/channels/a", &headers)).collect();
    let mut raw = Socket::open_with(node.addr(), "/channels/a", &headers);
    // Not by a channel alone, nor by another name.
    node.revoke(json!({ "channel": "b" }));
    node.revoke(json!({ "subject": "shops" }));
    assert_eq!(status(), 201);
    let (revoked, since) = node.revoke(json!({ "subject": "shop" }));
    for stream in &mut streams {
        assert_eq!(stream.event().named("$close").json()["reason"], "revoked");
    }
    assert_eq!(raw.message(), Message::Close(4401));
    soon(since);
    assert_eq!(status(), 401);
    ask(node.admin, "DELETE", &format!("/revocations/{}", revoked["number"]), &[], "").expect(204);
    assert_eq!(status(), 201);
}
