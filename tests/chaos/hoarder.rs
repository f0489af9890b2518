//! Clients that take more than their share, in each way that a quota counts; and that in the end each has its whole share
//! again. Owns the quotas. Honest clients stay far below them.

use std::io::Write as _;
use std::time::Duration;

use serde_json::json;

use super::World;
use super::door::Door;
use super::liar::{Liar, Trick};
use crate::common::admin::Metrics;
use crate::common::http::{Conn, wire};
use crate::common::rng::Rng;
use crate::common::sse::Stream;
use crate::common::token::{self, bearer};
use crate::common::until;
use crate::common::ws::{self, Socket, TEXT, V1_NAME, masked};

/// Who hoards beside all liars, in every way, one after the other.
const WHO: u8 = 99;
const SUBJECT: &str = "hoarder";
const ADDRESS_CONNECTIONS: usize = 24;
const SUBJECT_CONNECTIONS: usize = 8;
const SUBJECT_SUBSCRIPTIONS: usize = 40;

pub const QUOTAS: &[&str] = &[
    "quotas.address.connections=24",
    "quotas.address.connections_per_second=60",
    "quotas.address.subscriptions=50",
    "quotas.address.publishes_per_second=150",
    "quotas.address.publish_bytes_per_second=256KiB",
    "quotas.subject.connections=8",
    "quotas.subject.subscriptions=40",
    "quotas.subject.publishes_per_second=100",
    "quotas.subject.publish_bytes_per_second=128KiB",
];

/// What was refused in the end, to somebody.
const REFUSED: [(&str, &str); 9] = [
    ("address", "connections"),
    ("address", "connections_per_second"),
    ("address", "subscriptions"),
    ("address", "publishes_per_second"),
    ("address", "publish_bytes_per_second"),
    ("subject", "connections"),
    ("subject", "subscriptions"),
    ("subject", "publishes_per_second"),
    ("subject", "publish_bytes_per_second"),
];

pub const TRICKS: [Trick; 6] = [
    |liar| liar.hoards_connections(),
    |liar| liar.comes_again_and_again(),
    |liar| liar.hoards_streams(),
    |liar| liar.hoards_subscriptions(),
    |liar| liar.publishes_without_end(),
    |liar| liar.publishes_at_length(),
];

/// Hoards in every way, over and over.
pub fn hoard(world: &World, mut rng: Rng) {
    for turn in 0.. {
        let door = [Door::Plain, Door::Proxy][turn / TRICKS.len() % 2];
        if !world.goes_on() {
            return;
        }
        let conn = world.doors.enter(door, WHO, &mut rng).expect("the server takes connections");
        let mut liar = Liar::new(world, conn, door, WHO, &mut rng);
        TRICKS[turn % TRICKS.len()](&mut liar);
        liar.leave();
    }
}

impl Liar<'_> {
    fn hoards_connections(&mut self) {
        let held: Vec<Conn> = (0..self.rng.within(30..=50)).map(|_| self.another()).collect();
        self.wait(300);
        drop(held);
    }

    fn comes_again_and_again(&mut self) {
        for _ in 0..150 {
            drop(self.another());
        }
    }

    /// A token's bearer, or nobody.
    fn somebody(&mut self) -> Option<String> {
        self.rng.once_in(2).then(|| bearer(&token::of(SUBJECT).sign()))
    }

    /// With one token.
    fn hoards_streams(&mut self) {
        let bearer = bearer(&token::of(SUBJECT).sign());
        let headers = [("Accept", "text/event-stream"), ("Authorization", bearer.as_str())];
        let mut held = Vec::new();
        for _ in 0..16 {
            let mut conn = self.another();
            let _ = conn.try_send_raw(wire(self.addr, "GET", &self.target(), &headers, b""));
            held.push(conn);
        }
        self.wait(300);
    }

    /// By one connection with a token, and one of the same address without.
    fn hoards_subscriptions(&mut self) {
        let token = token::of(SUBJECT).sign();
        let mut other = self.another();
        for target in [format!("/channels?token={token}"), "/channels".to_owned()] {
            let mut wire = ws::request(self.addr, &target, &[("Sec-WebSocket-Protocol", V1_NAME)]);
            for number in 0..60 {
                let subscribe = json!({"type": "subscribe", "channel": format!("liar/{number}")});
                wire.extend(masked(true, TEXT, subscribe.to_string().as_bytes()));
            }
            self.say(&wire);
            self.listen(Duration::from_millis(100));
            std::mem::swap(&mut self.conn, &mut other);
        }
    }

    fn publishes_without_end(&mut self) {
        let target = self.target();
        for bearer in [Some(bearer(&token::of(SUBJECT).sign())), self.somebody(), None] {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
            let request = wire(self.addr, "POST", &target, &headers, b"more");
            for _ in 0..20 {
                if !self.say(&request.repeat(10)) {
                    return;
                }
            }
            self.listen(Duration::from_millis(100));
        }
    }

    fn publishes_at_length(&mut self) {
        let (target, body) = (self.target(), vec![b'm'; 16_000]);
        for bearer in [Some(bearer(&token::of(SUBJECT).sign())), None] {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
            let request = wire(self.addr, "POST", &target, &headers, &body);
            for _ in 0..30 {
                if !self.say(&request) {
                    return;
                }
            }
            self.listen(Duration::from_millis(100));
        }
    }
}

/// Each quota has refused somebody something; nobody holds anything any more, and each may have its whole share.
pub fn is_over(world: &World) {
    let metrics = Metrics::scrape(world.admin);
    for (scope, limit) in REFUSED {
        let refused = metrics.sum("pushline_quota_refusals_total", &[("scope", scope), ("limit", limit)]);
        assert!(refused > 0.0, "quotas.{scope}.{limit} has refused nobody");
    }
    for door in [Door::Plain, Door::Proxy] {
        has_its_share(world, door);
    }
}

/// As many connections as a client may have and not one more, on some of them the streams of a subject, and channels.
fn has_its_share(world: &World, door: Door) {
    let enter = || {
        let conn = world.doors.knock(door, WHO).expect("the server takes connections");
        if door.is_behind_proxy() {
            conn.stream().write_all(b"PROXY TCP4 203.0.113.99 10.0.0.1 4711 80\r\n").expect("sent");
        }
        conn
    };
    let is_served = |conn: &mut Conn| {
        let answer = conn.try_send("GET", "/healthz", &[], "").and_then(|()| conn.try_read_response());
        answer.is_ok_and(|answer| answer.expect(200).status == 200)
    };
    let mut held: Vec<Conn> = Vec::new();
    until("all connections are free", || {
        let mut conn = enter();
        held.extend(is_served(&mut conn).then_some(conn));
        (held.len() == ADDRESS_CONNECTIONS).then_some(())
    });
    assert!(!is_served(&mut enter()), "one more than an address may have");
    let bearer = bearer(&token::of(SUBJECT).sign());
    let headers = [("Accept", "text/event-stream"), ("Authorization", bearer.as_str())];
    let mut streams: Vec<Stream> = Vec::new();
    for mut conn in held.drain(..=SUBJECT_CONNECTIONS) {
        conn.send("GET", "/channels/liar/0", &headers, "");
        streams.push(Stream::of(conn));
    }
    let mut names: Vec<String> = streams.iter_mut().map(|stream| stream.event().name).collect();
    assert_eq!(names.pop().as_deref(), Some("$close"), "one more than a subject may have");
    assert!(names.iter().all(|name| name == "$open"), "{names:?}");
    drop((held, streams));
    until("the subject has its subscriptions", || {
        let target = format!("/channels?token={}", token::of(SUBJECT).sign());
        let headers = [("Sec-WebSocket-Protocol", V1_NAME)];
        let mut socket = Socket::open_with(world.doors.plain, &target, &headers);
        // Its streams may not be gone yet.
        if !socket.expect_text().contains(r#""type":"open""#) {
            return None;
        }
        for number in 0..SUBJECT_SUBSCRIPTIONS {
            let subscribe = json!({"type": "subscribe", "channel": format!("share/{number}")});
            socket.text(&subscribe.to_string());
        }
        let told: Vec<String> = (0..SUBJECT_SUBSCRIPTIONS).map(|_| socket.expect_text()).collect();
        told.iter().all(|told| told.contains(r#""type":"subscribed""#)).then_some(())
    });
}
