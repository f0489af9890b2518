//! Publishers that number what they publish, and readers that see to it that no number is missing.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::World;
use crate::common::http::{Conn, Poll};
use crate::common::rng::Rng;
use crate::common::sse::{Item, Stream};
use crate::common::ws::{PING, PONG, TEXT, V1, text_of};

const PLAIN: &[(&str, &str)] = &[("Content-Type", "text/plain")];
/// Messages answered and not yet come: more than this late, and the machine is not to blame.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Sse,
    V1,
    LongPoll,
}

impl Transport {
    pub const ALL: [Self; 3] = [Self::Sse, Self::V1, Self::LongPoll];
}

pub fn name(channel: usize) -> String {
    format!("honest/{channel}")
}

/// Publishes as fast as it goes, by one connection after the other.
pub fn publish_all(world: &World, channel: usize, mut rng: Rng) {
    let target = format!("/channels/{}", name(channel));
    let (mut number, mut together) = (0, 0);
    let mut conn: Option<Conn> = None;
    while world.goes_on() {
        let open = conn.get_or_insert_with(|| Conn::open(world.addr));
        number += 1;
        let body = format!("{number} {}", "x".repeat(rng.by_scale(11)));
        let answer = open.request("POST", &target, PLAIN, body).expect(201);
        world.published[channel].store(number, Ordering::SeqCst);
        together += 1;
        if answer.closes() || together > 500 {
            (conn, together) = (None, 0);
        }
    }
    world.publishers.fetch_sub(1, Ordering::SeqCst);
}

/// What a reader has had.
struct Ledger {
    transport: Transport,
    channel: usize,
    last: u64,
}

impl Ledger {
    fn note(&mut self, data: &str) {
        let number = data.split(' ').next().and_then(|number| number.parse().ok());
        let number: u64 = number.unwrap_or_else(|| panic!("{self}: not ours: {data:.40}"));
        assert_eq!(number, self.last + 1, "{self}");
        self.last = number;
    }

    fn has_all(&self, world: &World) -> bool {
        world.last(self.channel) == Some(self.last)
    }
}

impl std::fmt::Display for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} of {}, after {}", self.transport, name(self.channel), self.last)
    }
}

/// Reads a channel from its beginning to its end.
pub fn read(world: &World, channel: usize, transport: Transport) {
    let mut ledger = Ledger { transport, channel, last: 0 };
    match transport {
        Transport::Sse => read_stream(world, &mut ledger),
        Transport::V1 => read_v1(world, &mut ledger),
        Transport::LongPoll => read_polls(world, &mut ledger),
    }
}

/// What comes within a while, or the end of patience.
fn next<T>(ledger: &Ledger, world: &World, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let mut since = Instant::now();
    loop {
        if let Some(value) = ask() {
            return Some(value);
        }
        if ledger.has_all(world) {
            return None;
        }
        if world.published[ledger.channel].load(Ordering::SeqCst) == ledger.last {
            since = Instant::now();
        }
        assert!(since.elapsed() < PATIENCE, "{ledger}: nothing came for {PATIENCE:?}");
    }
}

const LOOK: Duration = Duration::from_millis(100);

fn target(world: &World, ledger: &Ledger) -> String {
    format!("/channels/{}?cursor={}", name(ledger.channel), world.starts[ledger.channel])
}

fn read_stream(world: &World, ledger: &mut Ledger) {
    let mut stream = Stream::open(world.addr, &target(world, ledger));
    while let Some(item) = next(ledger, world, || stream.item_within(LOOK)) {
        match item.unwrap_or_else(|| panic!("{ledger}: the stream ended")) {
            Item::Event(event) => ledger.note(&event.expect_message().data),
            Item::Comment(_) | Item::Retry(_) => {}
        }
    }
}

fn read_v1(world: &World, ledger: &mut Ledger) {
    let mut v1 = V1::open(world.addr, &target(world, ledger));
    assert_eq!(v1.expect("subscribed")["gap"], false, "{ledger}");
    while let Some(frame) = next(ledger, world, || v1.socket.frame_within(LOOK)) {
        let frame = frame.unwrap_or_else(|| panic!("{ledger}: the connection ended"));
        match frame.opcode {
            PING => v1.socket.send(true, PONG, frame.payload),
            TEXT => {
                let object: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                assert_eq!(object["type"], "message", "{ledger}: {object}");
                ledger.note(&text_of(&object, "data"));
            }
            _ => panic!("{ledger}: {frame:?}"),
        }
    }
}

fn read_polls(world: &World, ledger: &mut Ledger) {
    let mut cursor = world.starts[ledger.channel].clone();
    let mut conn: Option<Conn> = None;
    while !ledger.has_all(world) {
        let open = conn.get_or_insert_with(|| Conn::open(world.addr));
        let answer = open.get(&format!("/channels/{}?wait=1&cursor={cursor}", name(ledger.channel)));
        if answer.status == 200 {
            let poll = Poll::of(&answer);
            assert!(!poll.gap, "{ledger}: a gap");
            poll.data().iter().for_each(|data| ledger.note(data.as_str().expect("a text")));
            cursor = poll.cursor;
        } else {
            assert_eq!(answer.status, 204, "{ledger}: {answer}");
        }
        if answer.closes() {
            conn = None;
        }
    }
}
