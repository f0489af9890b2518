//! Publishers that number what they publish, and readers that see to it that no number is missing.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::World;
use crate::common::http::{Conn, Poll};
use crate::common::rng::Rng;
use crate::common::sse::{Item, Stream};
use crate::common::token;
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
        let open = conn.get_or_insert_with(|| Conn::open(world.addr(rng.below(2))));
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
    /// Where it goes on if it is cut off.
    cursor: String,
    rng: Rng,
}

impl Ledger {
    fn note(&mut self, data: &str) {
        let number = data.split(' ').next().and_then(|number| number.parse().ok());
        let number: u64 = number.unwrap_or_else(|| panic!("{self}: not ours: {data:.40}"));
        assert_eq!(number, self.last + 1, "{self}");
        self.last = number;
    }

    /// Plainly, or by TLS: wherever it comes back.
    fn addr(&mut self, world: &World) -> SocketAddr {
        world.addr(self.rng.below(2))
    }

    /// After how many messages it leaves and comes back.
    fn stay(&mut self) -> u64 {
        self.last + self.rng.by_scale(14) as u64
    }

    fn target(&self) -> String {
        format!("/channels/{}?cursor={}", name(self.channel), self.cursor)
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

/// Reads a channel from its beginning to its end, by one connection after the other.
pub fn read(world: &World, channel: usize, transport: Transport, rng: Rng) {
    let cursor = world.starts[channel].clone();
    let mut ledger = Ledger { transport, channel, last: 0, cursor, rng };
    while !ledger.has_all(world) {
        match transport {
            Transport::Sse => read_stream(world, &mut ledger),
            Transport::V1 => read_v1(world, &mut ledger),
            Transport::LongPoll => read_polls(world, &mut ledger),
        }
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

const RENEWAL: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(100);

fn read_stream(world: &World, ledger: &mut Ledger) {
    let mut stream = Stream::open(ledger.addr(world), &ledger.target());
    let until = ledger.stay();
    while ledger.last < until {
        let Some(item) = next(ledger, world, || stream.item_within(LOOK)) else { return };
        match item.unwrap_or_else(|| panic!("{ledger}: the stream ended")) {
            Item::Event(event) => {
                let event = event.expect_message();
                ledger.note(&event.data);
                ledger.cursor = event.id;
            }
            Item::Comment(_) | Item::Retry(_) => {}
        }
    }
}

fn read_v1(world: &World, ledger: &mut Ledger) {
    // Some have a token, which they renew all the time.
    let has_token = ledger.rng.once_in(2);
    let mut target = ledger.target();
    if has_token {
        target += &format!("&token={}", token::of("honest").sign());
    }
    let mut v1 = V1::open(ledger.addr(world), &target);
    assert_eq!(v1.expect("subscribed")["gap"], false, "{ledger}");
    let until = ledger.stay();
    let mut renewed = Instant::now();
    while ledger.last < until {
        if has_token && renewed.elapsed() > RENEWAL {
            v1.send(json!({"type": "auth", "token": token::of("honest").sign()}));
            renewed = Instant::now();
        }
        let Some(frame) = next(ledger, world, || v1.socket.frame_within(LOOK)) else { return };
        let frame = frame.unwrap_or_else(|| panic!("{ledger}: the connection ended"));
        match frame.opcode {
            PING => v1.socket.send(true, PONG, frame.payload),
            TEXT => {
                let object: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                if has_token && object["type"] == "authenticated" {
                    continue;
                }
                assert_eq!(object["type"], "message", "{ledger}: {object}");
                ledger.note(&text_of(&object, "data"));
                ledger.cursor = text_of(&object, "id");
            }
            _ => panic!("{ledger}: {frame:?}"),
        }
    }
}

fn read_polls(world: &World, ledger: &mut Ledger) {
    let mut conn = Conn::open(ledger.addr(world));
    let until = ledger.stay();
    while ledger.last < until && !ledger.has_all(world) {
        let answer = conn.get(&format!("{}&wait=1", ledger.target()));
        if answer.status == 200 {
            let poll = Poll::of(&answer);
            assert!(!poll.gap, "{ledger}: a gap");
            poll.data().iter().for_each(|data| ledger.note(data.as_str().expect("a text")));
            ledger.cursor = poll.cursor;
        } else {
            assert_eq!(answer.status, 204, "{ledger}: {answer}");
        }
        if answer.closes() {
            return;
        }
    }
}
