//! Quotas by subject (docs/limits.md): each limit on each transport, also of who says late who they are, and everything
//! given back, however a connection ends.

use crate::common;

use std::net::SocketAddr;

use serde_json::{Value, json};

use common::admin::{Metrics, addr_of, json as told};
use common::http::{Conn, Poll, ask, publish};
use common::server::Server;
use common::sse::Stream;
use common::token::{self, KEYS, now_s};
use common::until;
use common::ws::{Socket, V1, V1_NAME, text_of};

use crate::quotas::{limited, limited_stream, limited_v1};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
/// Strangers read `open/**`, and may say later who they are.
const STRANGERS: &str = "auth.anonymous={ subscribe = ['open/**'], publish = ['open/**'] }";

struct Node {
    server: Server,
    admin: SocketAddr,
}

impl Node {
    fn start(quotas: &[&str], args: &[&str]) -> Self {
        let mut all =
            vec!["--set", KEYS, "--set", STRANGERS, "--set", "admin.listen=127.0.0.1:0", "--workers", "2"];
        all.extend(quotas.iter().flat_map(|quota| ["--set", quota]));
        all.extend(args);
        let server = Server::start(&all);
        let admin = addr_of(&server);
        Self { server, admin }
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// So many were refused by this key, and none by any other.
    #[track_caller]
    fn counted(&self, limit: &str, count: usize) {
        let metrics = Metrics::scrape(self.admin);
        let refused = "pushline_quota_refusals_total";
        let by_key = metrics.sum(refused, &[("scope", "subject"), ("limit", limit)]);
        assert_eq!((by_key, metrics.sum(refused, &[])), (count as f64, count as f64));
        assert_eq!(metrics.sum("pushline_refusals_total", &[("reason", "quota")]), count as f64);
    }

    /// Waits until quotas keep count of so many subjects.
    #[track_caller]
    fn subjects(&self, count: usize) {
        let of = || Metrics::scrape(self.admin).sum("pushline_quota_accounts", &[("scope", "subject")]);
        until(&format!("{count} subjects are counted"), || (of() == count as f64).then_some(()));
    }
}

fn with(target: &str, token: &str) -> String {
    format!("{target}{}token={token}", if target.contains('?') { '&' } else { '?' })
}

fn auth(token: &str) -> Value {
    json!({"type": "auth", "token": token, "seq": 1})
}

fn v1(addr: SocketAddr, target: &str) -> Socket {
    Socket::open_with(addr, target, &[("Sec-WebSocket-Protocol", V1_NAME)])
}

/// A poll of `channel` that will wait.
fn waits(addr: SocketAddr, channel: &str, token: &str) -> String {
    let head = Conn::open(addr).get(&with(&format!("/channels/{channel}?limit=0"), token)).expect(200);
    with(&format!("/channels/{channel}?wait=40&cursor={}", Poll::of(&head).cursor), token)
}

/// One more reader of `c` is refused on every transport. Returns how often.
#[track_caller]
fn refused_everywhere(addr: SocketAddr, token: &str, key: &str) -> usize {
    let target = with("/channels/c", token);
    limited_stream(Stream::begin(addr, &target, &[]));
    Socket::open(addr, &target).expect_close(4429);
    limited_v1(v1(addr, &target));
    // By the first message.
    let mut late = V1::open(addr, "/channels/c");
    late.ask(auth(token), "authenticated");
    limited_v1(late.socket);
    // A connection's first request, and a later one.
    let mut conn = Conn::open(addr);
    let waits = waits(addr, "c", token);
    for _ in 0..2 {
        limited(&conn.get(&waits), key);
    }
    6
}

#[test]
fn connections_on_every_transport() {
    let node = Node::start(&["quotas.subject.connections=1"], &[]);
    let addr = node.addr();
    let (anna, bert) = (token::of("anna").sign(), token::of("bert").sign());
    let mut first = Stream::open(addr, &with("/channels/c", &anna));
    let mut count = refused_everywhere(addr, &anna, "subject.connections");
    limited_v1(v1(addr, &with("/channels", &anna)));
    // A stranger who is refused stays one, is served on, and may be somebody else.
    let (mut stranger, _) = V1::subscribed(addr, "open/a");
    let error = stranger.refused(auth(&anna));
    assert_eq!(error["code"], "rate_limited");
    assert!(text_of(&error, "message").contains("quotas.subject.connections "), "{error}");
    publish(addr, "open/a", "still here");
    assert_eq!(stranger.texts(1), ["still here"]);
    count += 2;
    stranger.ask(auth(&bert), "authenticated");
    limited_stream(Stream::begin(addr, &with("/channels/c", &bert), &[]));
    count += 1;
    // What is answered at once holds nothing.
    let mut conn = Conn::open(addr);
    conn.get(&with("/channels/c", &anna)).expect(200);
    conn.request("POST", &with("/channels/c", &anna), &[TEXT], "x").expect(201);
    assert_eq!(first.message().data, "x");
    node.counted("connections", count);
    node.subjects(2);
}

/// A new token of the same subject takes nothing more, by either way to bring it.
#[test]
fn a_renewal_is_no_second_connection() {
    let quotas = [
        "quotas.subject.connections=1",
        "quotas.subject.connections_per_second=1",
        "quotas.subject.subscriptions=1",
    ];
    let node = Node::start(&quotas, &[]);
    let addr = node.addr();
    let token = |left| token::of("anna").until(now_s() + left).sign();
    let mut first = V1::open(addr, &with("/channels/c", &token(50)));
    first.expect("subscribed");
    for left in 51..55 {
        first.ask(auth(&token(left)), "authenticated");
        let renew = format!("/connections/{}/auth", first.connection);
        let authorization = token::bearer(&token(left + 5));
        ask(addr, "POST", &renew, &[("Authorization", &authorization)], "").expect(200);
    }
    node.counted("connections", 0);
    // What it held is free, and nothing more was taken of it.
    drop(first);
    until("another one is let in", || {
        let mut events = Stream::begin(addr, &with("/channels/c", &token(50)), &[]);
        (events.event().name == "$open").then_some(())
    });
}

#[test]
fn new_connections_by_the_second() {
    type Opens = fn(SocketAddr, &str) -> bool;
    let ways: [(&str, Opens); 5] = [
        ("events", |addr, token| {
            Stream::begin(addr, &with("/channels/c", token), &[]).event().name == "$open"
        }),
        ("raw", |addr, token| {
            let mut raw = Socket::open(addr, &with("/channels/c", token));
            // What comes first is what it says itself, or that it is refused.
            raw.text("x");
            raw.message() == common::ws::Message::Text("x".into())
        }),
        ("v1", |addr, token| v1(addr, &with("/channels", token)).expect_text().contains("\"open\"")),
        ("late", |addr, token| {
            let mut late = V1::open(addr, "/channels/c");
            late.ask(auth(token), "authenticated");
            late.next()["type"] == "subscribed"
        }),
        ("stranger", |addr, token| {
            let (mut stranger, _) = V1::subscribed(addr, "open/a");
            stranger.send(auth(token));
            let is_let_in = stranger.next()["type"] == "authenticated";
            stranger.ask(json!({"type": "ping"}), "pong");
            is_let_in
        }),
    ];
    let node = Node::start(&["quotas.subject.connections_per_second=1"], &[]);
    let addr = node.addr();
    let mut refused = 0;
    for (name, opens) in ways {
        let token = token::of(name).sign();
        let opened: Vec<bool> = (0..20).map(|_| opens(addr, &token)).collect();
        assert!(opened[0] && opened.contains(&false), "{name}: {opened:?}");
        refused += opened.iter().filter(|opened| !**opened).count();
        until("time fills the bucket", || {
            let is_open = opens(addr, &token);
            refused += usize::from(!is_open);
            is_open.then_some(())
        });
    }
    // Polls come as often as there are messages.
    let token = token::of("polls").sign();
    let mut conn = Conn::open(addr);
    for _ in 0..5 {
        conn.send("GET", &waits(addr, "d", &token), &[], "");
        Conn::open(addr).request("POST", &with("/channels/d", &token), &[TEXT], "x").expect(201);
        assert_eq!(Poll::of(&conn.read_response()).messages.len(), 1);
    }
    node.counted("connections_per_second", refused);
}

#[test]
fn subscriptions_on_every_transport() {
    let key = "subject.subscriptions";
    let node = Node::start(&["quotas.subject.subscriptions=3"], &[]);
    let addr = node.addr();
    let (anna, bert) = (token::of("anna").sign(), token::of("bert").sign());
    let mut first = V1::open(addr, &with("/channels/a,b", &anna));
    (0..2).for_each(|_| drop(first.expect("subscribed")));
    first.ask(json!({"type": "subscribe", "channel": "d"}), "subscribed");
    let error = first.refused(json!({"type": "subscribe", "channel": "e", "seq": 7}));
    assert_eq!(error["code"], "rate_limited");
    assert!(text_of(&error, "message").contains("quotas.subject.subscriptions "), "{error}");
    let mut count = 1 + refused_everywhere(addr, &anna, key);
    // A stranger brings what they read already.
    let (mut stranger, _) = V1::subscribed(addr, "open/a");
    let error = stranger.refused(auth(&anna));
    assert!(text_of(&error, "message").contains("quotas.subject.subscriptions "), "{error}");
    count += 1;
    publish(addr, "open/a", "still here");
    assert_eq!(stranger.texts(1), ["still here"]);
    first.ask(json!({"type": "unsubscribe", "channel": "d"}), "unsubscribed");
    stranger.ask(auth(&anna), "authenticated");
    stranger.refused(json!({"type": "subscribe", "channel": "open/b"}));
    count += 1;
    stranger.ask(json!({"type": "unsubscribe", "channel": "open/a"}), "unsubscribed");
    first.ask(json!({"type": "subscribe", "channel": "d"}), "subscribed");
    // A token that covers less gives what it does not cover back.
    first.ask(auth(&token::of("anna").subscribe(&["a"]).sign()), "authenticated");
    drop(Stream::open(addr, &with("/channels/x,y", &anna)));
    drop(Stream::open(addr, &with("/channels/x,y,z", &bert)));
    node.counted("subscriptions", count);
}

/// Ways to hold something. Each is of a subject of its own.
const HOLDS: [&str; 6] = ["events", "raw", "v1", "late", "stranger", "poll"];

/// Open until it is dropped.
#[allow(dead_code, reason = "what it holds is never read: that it is open is what counts")]
enum Held {
    Stream(Stream),
    Socket(Socket),
    V1(V1),
    Conn(Conn),
}

fn hold(addr: SocketAddr, way: &str, token: &str) -> Held {
    match way {
        "events" => Held::Stream(Stream::open(addr, &with("/channels/a,b", token))),
        "raw" => Held::Socket(Socket::open(addr, &with("/channels/a", token))),
        "v1" => Held::V1(V1::open(addr, &with("/channels/a,b", token))),
        "late" => {
            let mut late = V1::open(addr, "/channels/a,b");
            late.ask(auth(token), "authenticated");
            Held::V1(late)
        }
        "stranger" => {
            let (mut stranger, _) = V1::subscribed(addr, "open/a");
            stranger.ask(auth(token), "authenticated");
            Held::V1(stranger)
        }
        _ => {
            let mut conn = Conn::open(addr);
            conn.send("GET", &waits(addr, "a", token), &[], "");
            Held::Conn(conn)
        }
    }
}

#[test]
fn everything_is_given_back_however_it_ends() {
    // Nothing that is held twice by one subject, and in all just what is held below.
    let quotas =
        ["quotas.subject.connections=1", "quotas.subject.subscriptions=2", "quotas.node.subscriptions=9"];
    let mut node = Node::start(&quotas, &[]);
    node.server.expect_panics();
    let addr = node.addr();
    // Of a second ago: a revocation concerns it, and not those that are made after it.
    let token = |way: &str, left: u64| {
        token::of(way)
            .until(now_s() + left)
            .with("iat", now_s() - 1)
            .with("jti", format!("{way}/{left}"))
            .sign()
    };
    type Ends = fn(&Node, Vec<Held>);
    let ends: [(&str, u64, Ends); 5] = [
        ("the client goes", 60, |_, held| drop(held)),
        ("its token ends", 6, |node, held| {
            node.subjects(0);
            drop(held);
        }),
        ("its token is taken back", 61, |node, held| {
            for way in HOLDS {
                let what = json!({ "token_id": format!("{way}/61") }).to_string();
                ask(node.admin, "POST", "/revocations", &[("Content-Type", "application/json")], what)
                    .expect(201);
            }
            node.subjects(0);
            drop(held);
        }),
        ("an operator ends it", 62, |node, held| {
            let list = told(node.admin, "/connections?limit=1000");
            let ids = list["connections"].as_array().expect("a list").iter();
            for id in ids.filter(|one| one["state"] != "idle").map(|one| text_of(one, "id")) {
                // One that has ended by itself is not found.
                ask(node.admin, "DELETE", &format!("/connections/{id}"), &[], "");
            }
            node.subjects(0);
            drop(held);
        }),
        ("its code panics", 63, |node, held| {
            let mut left = Vec::new();
            for one in held {
                match one {
                    Held::Socket(mut socket) => {
                        socket.text("$debug/panic");
                        socket.expect_close(1011);
                    }
                    Held::V1(mut v1) => v1.socket.text("$debug/panic"),
                    other => left.push(other),
                }
            }
            node.subjects(left.len());
            drop(left);
        }),
    ];
    for (name, left, end) in ends {
        let held: Vec<Held> = HOLDS.iter().map(|way| hold(addr, way, &token(way, left))).collect();
        node.subjects(HOLDS.len());
        end(&node, held);
        node.subjects(0);
        eprintln!("given back when {name}");
    }
    node.counted("connections", 0);
    // Nothing of the node's is left taken either.
    let nine: Vec<String> = (0..9).map(|n| format!("open/{n}")).collect();
    let all = until("all subscriptions are free", || {
        let mut events = Stream::begin(addr, &format!("/channels/{}", nine.join(",")), &[]);
        (events.event().name == "$open").then_some(events)
    });
    limited_stream(Stream::begin(addr, "/channels/open/more", &[]));
    drop(all);
}

/// One subject's quota is nobody else's, and who has an API key has none.
#[test]
fn whose_it_is() {
    let node = Node::start(
        &["quotas.subject.connections=1"],
        &[
            "--set",
            // Of the key "app".
            "auth.api_keys=[{ name = 'app', sha256 = 'a172cedcae47474b615c54d510a5d84a8dea3032e958587430b413538be3f333', subscribe = ['**'] }]",
        ],
    );
    let addr = node.addr();
    let key = [("Authorization", "Bearer app")];
    let held: Vec<Stream> = (0..3).map(|_| Stream::open_with(addr, "/channels/c", &key)).collect();
    let named: Vec<Stream> = (0..3)
        .map(|n| Stream::open(addr, &with("/channels/c", &token::of(&format!("user-{n}")).sign())))
        .collect();
    let strangers: Vec<Stream> = (0..3).map(|_| Stream::open(addr, "/channels/open/a")).collect();
    node.counted("connections", 0);
    node.subjects(3);
    drop((held, named, strangers));
    node.subjects(0);
}
