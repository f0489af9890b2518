//! What the server refuses, by the reasons that `/metrics` lists: each is counted where it happens, and as nothing else.
//! Connections over the limit, origins and unreadable requests are in `metrics`, quotas in `quotas`, storms in `storm`.

use crate::common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::admin::{Metrics, addr_of};
use common::http::{Conn, get, post, publish, wire};
use common::server::Server;
use common::sse::Stream;
use common::token::{self, KEYS};
use common::until;
use common::ws::{Socket, V1, V1_NAME};
use serde_json::json;

struct Node {
    server: Server,
    admin: SocketAddr,
}

impl Node {
    fn start(workers: &str, args: &[&str]) -> Self {
        let own = ["--set", "admin.listen=127.0.0.1:0", "--workers", workers];
        let server = Server::start(&[&own, args].concat());
        let admin = addr_of(&server);
        Self { server, admin }
    }

    fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Does something that is refused once: it is counted for this reason, and for no other.
    #[track_caller]
    fn refuses(&self, reason: &str, what: &str, act: impl FnOnce()) {
        let count = |reason: Option<&str>| {
            let labels: Vec<(&str, &str)> = reason.iter().map(|reason| ("reason", *reason)).collect();
            Metrics::scrape(self.admin).sum("pushline_refusals_total", &labels)
        };
        let (of_it, of_all) = (count(Some(reason)), count(None));
        act();
        until(&format!("{what} is counted"), || (count(None) > of_all).then_some(()));
        assert_eq!((count(Some(reason)) - of_it, count(None) - of_all), (1.0, 1.0), "{what}");
    }
}

#[test]
fn memory() {
    let node = Node::start("1", &["--set", "limits.memory_bytes=32MiB"]);
    let addr = node.addr();
    let mut kept = Conn::open(addr);
    kept.get("/healthz").expect(200);
    let mut other = Conn::open(addr);
    other.get("/healthz").expect(200);
    let mut third = Conn::open(addr);
    third.get("/healthz").expect(200);
    let mut v1 = V1::open(addr, "/channels");
    // Keys are remembered for two minutes: nothing makes room for others.
    let batches = AtomicUsize::new(0);
    until("memory is full", || {
        let batch = batches.fetch_add(1, Ordering::Relaxed);
        let line =
            |n| format!("{{\"channel\":\"live\",\"data\":\"{n}\",\"ttl\":0,\"key\":\"{batch}/{n}\"}}\n");
        let lines: String = (0..2_000).map(line).collect();
        let ndjson = [("Content-Type", "application/x-ndjson")];
        // Answered in whatever way: what counts is what a newcomer is told next.
        let mut filling = Conn::open(addr);
        let sent = filling.try_send_raw(wire(addr, "POST", "/publish", &ndjson, lines.as_bytes()));
        filling.expect_answer_to("POST");
        let _ = sent.and_then(|()| filling.try_read_response());
        (get(addr, "/channels/live").status == 503).then_some(())
    });
    node.refuses("memory", "a newcomer's poll", || drop(get(addr, "/channels/live").problem(503)));
    node.refuses("memory", "a newcomer's stream", || {
        let close = Stream::begin(addr, "/channels/live", &[]).event().named("$close");
        assert_eq!(close.json()["reason"], "full");
    });
    node.refuses("memory", "a newcomer's raw WebSocket", || {
        Socket::open(addr, "/channels/live").expect_close(1013)
    });
    node.refuses("memory", "a newcomer's v1", || {
        let mut socket = Socket::open_with(addr, "/channels", &[("Sec-WebSocket-Protocol", V1_NAME)]);
        socket.expect_text();
        socket.expect_close(1013);
    });
    node.refuses("memory", "a publish", || {
        drop(kept.request("POST", "/channels/live", &[], "no").problem(503))
    });
    for frame in [
        json!({"type": "publish", "channel": "live", "data": 1}),
        json!({"type": "subscribe", "channel": "live"}),
    ] {
        node.refuses("memory", "a frame", || assert_eq!(v1.refused(frame)["code"], "overloaded"));
    }
    // On connections that were there, streams are newcomers too.
    node.refuses("memory", "a stream", || {
        other.send("GET", "/channels/live", &[("Accept", "text/event-stream")], "");
        assert_eq!(Stream::of(other).event().named("$close").json()["reason"], "full");
    });
    node.refuses("memory", "a WebSocket", || {
        third.send_raw(common::ws::request(addr, "/channels/live", &[]));
        Socket::of(third).expect("a handshake").expect_close(1013);
    });
}

#[test]
fn who_it_is() {
    let node = Node::start("1", &["--set", KEYS]);
    let addr = node.addr();
    let reads_a = token::of("anna").subscribe(&["a"]).publish(&["a"]).sign();
    node.refuses("unauthenticated", "nobody", || drop(get(addr, "/channels/a").problem(401)));
    node.refuses("unauthenticated", "nobody, by SSE", || {
        assert_eq!(
            Conn::open(addr).request("GET", "/channels/a", &[("Accept", "text/event-stream")], "").status,
            401
        );
    });
    node.refuses("unauthenticated", "nobody, by a raw WebSocket", || {
        Socket::open(addr, "/channels/a").expect_close(4401);
    });
    let mut late = V1::open(addr, "/channels/b");
    node.refuses("unauthenticated", "a bad token by v1", || {
        drop(late.refused(json!({"type": "auth", "token": "nonsense"})));
    });
    node.refuses("forbidden", "a token that does not cover the URL", || {
        late.ask(json!({"type": "auth", "token": reads_a}), "authenticated");
        late.expect("closing");
        late.socket.expect_close(4403);
    });
    node.refuses("forbidden", "a read", || {
        drop(get(addr, &format!("/channels/b?token={reads_a}")).problem(403))
    });
    node.refuses("forbidden", "a raw WebSocket", || {
        Socket::open(addr, &format!("/channels/b?token={reads_a}")).expect_close(4403);
    });
    let mut v1 = V1::open(addr, &format!("/channels?token={reads_a}"));
    for kind in ["subscribe", "publish"] {
        node.refuses("forbidden", kind, || {
            drop(v1.refused(json!({"type": kind, "channel": "b", "data": (kind == "publish").then_some(1)})));
        });
    }
    let mut silent = V1::open(addr, "/channels/a");
    node.refuses("unauthenticated", "no token in time", || {
        assert_eq!(silent.expect("closing")["reason"], "unauthenticated");
    });
}

#[test]
fn slow_requests() {
    let node =
        Node::start("1", &["--set", "timeouts.head_seconds=0.3", "--set", "timeouts.body_seconds=0.3"]);
    for (what, begin) in [
        ("a head", "GET /channels/a HTTP/1.1\r\nHost: lo"),
        ("a body", "POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"),
    ] {
        node.refuses("slow_request", what, || {
            let mut conn = Conn::open(node.addr());
            conn.send_raw(begin);
            conn.expect_answer_to("GET");
            conn.read_response().problem(408);
        });
    }
}

#[test]
fn channels_and_keys() {
    let node = Node::start("1", &["--set", "limits.channels=1", "--set", "limits.idempotency_keys=16"]);
    let addr = node.addr();
    let reader = Stream::open(addr, "/channels/a");
    publish(addr, "a", "x");
    node.refuses("channels", "a publish", || drop(post(addr, "/channels/b", &[], "x").problem(503)));
    let mut v1 = V1::open(addr, "/channels");
    node.refuses("channels", "a frame", || {
        drop(v1.refused(json!({"type": "publish", "channel": "b", "data": "x"})));
    });
    let keyed = |n: usize| post(addr, "/channels/a", &[("Idempotency-Key", &format!("k{n}"))], "x");
    // One worker has all of them.
    let taken = (0..16).filter(|n| keyed(*n).status == 201).count();
    assert_eq!(taken, 16);
    node.refuses("keys", "a publish with a new key", || drop(keyed(16).problem(429)));
    drop(reader);
}

/// The mailbox of a channel's worker is full: of requests that come in one go, the last do not fit.
#[test]
fn overloaded() {
    let node =
        Node::start("2", &["--set", "limits.mailbox_bytes=64KiB", "--set", "limits.message_bytes=1000"]);
    let addr = node.addr();
    // Half of the connections are with the channel's worker, most likely, and keep it busy.
    let one = wire(addr, "POST", "/channels/a", &[("Content-Type", "text/plain")], &[b'x'; 1_000]);
    let refused = until("one does not fit", || {
        let mut conns: Vec<Conn> = (0..8).map(|_| Conn::open(addr)).collect();
        for conn in &mut conns {
            conn.get("/healthz").expect(200);
        }
        conns.iter_mut().for_each(|conn| conn.send_raw(one.repeat(200)));
        let mut refused = Vec::new();
        for conn in &mut conns {
            for _ in 0..200 {
                conn.expect_answer_to("POST");
                let answer = conn.read_response();
                if answer.status != 201 {
                    refused.push(answer);
                }
            }
        }
        (!refused.is_empty()).then_some(refused)
    });
    refused.iter().for_each(|answer| drop(answer.problem(503)));
    let metrics = Metrics::scrape(node.admin);
    let (of_it, of_all) = (
        metrics.sum("pushline_refusals_total", &[("reason", "overloaded")]),
        metrics.sum("pushline_refusals_total", &[]),
    );
    assert_eq!((of_it, of_all), (refused.len() as f64, refused.len() as f64));
}

#[test]
fn draining() {
    let mut node = Node::start("1", &["--set", "drain.window_seconds=5", "--set", "drain.delay_seconds=0"]);
    let addr = node.addr();
    // Held until the end of the window, most likely: one of many.
    let mut kept: Vec<V1> = (0..20).map(|_| V1::open(addr, "/channels")).collect();
    node.server.signal(libc::SIGTERM);
    until("it drains", || (Metrics::scrape(node.admin).sum("pushline_ready", &[]) == 0.0).then_some(()));
    let last = kept.iter_mut().find_map(|v1| {
        v1.send(json!({"type": "publish", "channel": "a", "data": 1}));
        let answer = v1.next();
        (answer["type"] == "error").then_some(answer)
    });
    assert!(last.is_some(), "one of them is still heard");
    let metrics = Metrics::scrape(node.admin);
    assert!(metrics.sum("pushline_refusals_total", &[("reason", "draining")]) >= 1.0, "{}", metrics.text);
}
