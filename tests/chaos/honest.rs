//! Publishers that number what they publish, and readers that see to it that no number is missing: none at all, or none
//! that they were not told of.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::World;
use super::door::Door;
use super::reading::{Reading, Told, Transport};
use crate::common::http::{Conn, Poll, get};
use crate::common::rng::Rng;
use crate::common::token;

/// Messages answered and not yet come: more than this late, and the machine is not to blame.
const PATIENCE: Duration = Duration::from_secs(60);
/// Who they are: each has an address of its own.
const READERS: usize = 10;
const PUBLISHERS: usize = 30;
/// How soon one that was refused comes back: sooner than it was told, for the run is short.
const RETURN_MS: std::ops::RangeInclusive<usize> = 20..=200;

pub fn name(channel: usize) -> String {
    format!("honest/{channel}")
}

/// Publishes as fast as it goes, by one connection after the other. What is not answered by 201 was not done: its number is
/// the next one's too.
pub fn publish_all(world: &World, channel: usize, mut rng: Rng) {
    let who = u8::try_from(PUBLISHERS + channel).expect("few");
    let target = format!("/channels/{}", name(channel));
    let bearer = token::bearer(&world.key);
    let headers = [("Content-Type", "text/plain"), ("Authorization", bearer.as_str())];
    let mut number = 1;
    let mut conn: Option<(Conn, usize)> = None;
    while world.goes_on() {
        let (open, asked) = conn.get_or_insert_with(|| {
            let door = *rng.pick(&Door::ALL);
            (world.doors.enter(door, who, &mut rng).expect("the server takes connections"), 0)
        });
        let body = format!("{number} {}", "x".repeat(rng.by_scale(11)));
        *asked += 1;
        let is_first = *asked == 1;
        let answer = open.try_send("POST", &target, &headers, body).and_then(|()| open.try_read_response());
        let is_last = *asked > 500 || answer.as_ref().map_or(true, |answer| answer.closes());
        match answer {
            Ok(answer) if answer.status == 201 => {
                world.published[channel].store(number, Ordering::SeqCst);
                number += 1;
            }
            Ok(answer) if answer.status == 503 => {
                assert!(answer.get("retry-after").is_some(), "{answer}");
                world.suffers(&target, "a publish: 503");
                std::thread::sleep(Duration::from_millis(rng.within(RETURN_MS) as u64));
            }
            Ok(answer) => panic!("{answer}"),
            Err(error) => {
                assert!(open.ahead().is_empty(), "half an answer: {error}");
                world.suffers(&target, if is_first { "a publish, the first: cut" } else { "a publish: cut" });
            }
        }
        if is_last {
            conn = None;
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
    /// It was told that some are lost before the next.
    gap: bool,
    /// When it last had all that there was, or some of it.
    moved: Instant,
    rng: Rng,
}

impl Ledger {
    fn note(&mut self, text: &str, cursor: String) {
        let number = text.split(' ').next().and_then(|number| number.parse().ok());
        let number: u64 = number.unwrap_or_else(|| panic!("{self}: not ours: {text:.40}"));
        let is_next = if self.gap { number > self.last } else { number == self.last + 1 };
        assert!(is_next, "{self}: {number} comes, a gap having been told: {}", self.gap);
        (self.last, self.cursor, self.gap, self.moved) = (number, cursor, false, Instant::now());
    }

    /// After how many messages it leaves and comes back.
    fn stay(&mut self) -> u64 {
        self.last + self.rng.by_scale(14) as u64
    }

    /// Whether there is nothing more to be had; and that it has not waited in vain.
    fn is_done(&mut self, world: &World) -> bool {
        if world.published[self.channel].load(Ordering::SeqCst) == self.last {
            self.moved = Instant::now();
        }
        assert!(self.moved.elapsed() < PATIENCE, "{self}: nothing came for {PATIENCE:?}");
        world.last(self.channel) == Some(self.last)
    }

    /// Whether nothing more comes because all that does was lost, as it was told.
    fn has_lost_the_rest(&self, world: &World) -> bool {
        if !self.gap || world.last(self.channel).is_none() {
            return false;
        }
        let answer = get(world.doors.plain, &format!("/channels/{}?limit=0", name(self.channel)));
        answer.status == 200 && Poll::of(&answer).cursor == self.cursor
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
    let moved = Instant::now();
    let mut ledger = Ledger { transport, channel, last: 0, cursor, gap: false, moved, rng };
    while !ledger.is_done(world) {
        if !read_once(world, &mut ledger) {
            return;
        }
    }
}

/// By one connection, for a while. False: there is nothing more to be had.
fn read_once(world: &World, ledger: &mut Ledger) -> bool {
    let who = u8::try_from(READERS + ledger.channel * Transport::ALL.len() + ledger.transport as usize);
    let who = who.expect("few");
    let door = *ledger.rng.pick(&Door::ALL);
    let conn = world.doors.enter(door, who, &mut ledger.rng).expect("the server takes connections");
    // Some have a token, which they renew all the time.
    let subject = ledger.rng.once_in(2).then(|| format!("honest-{who}"));
    let begun = Reading::begin(conn, ledger.transport, &name(ledger.channel), &ledger.cursor, subject);
    let until = ledger.stay();
    // What this connection was asked first has not been answered yet.
    let mut is_first = true;
    let end = match begun {
        Ok(mut reading) => loop {
            if ledger.last >= until || ledger.is_done(world) {
                return true;
            }
            let told = reading.next(&ledger.cursor);
            is_first &= matches!(told, Told::Waiting | Told::End(_));
            match told {
                Told::Message { text, cursor } => ledger.note(&text, cursor),
                Told::Gap { cursor } => {
                    world.suffers(ledger, "a gap");
                    ledger.gap = true;
                    ledger.cursor = cursor.unwrap_or_else(|| ledger.cursor.clone());
                }
                Told::Waiting | Told::Nothing if ledger.has_lost_the_rest(world) => return false,
                Told::Waiting | Told::Nothing => {}
                Told::End(reason) => break reason,
            }
        },
        Err(Told::End(reason)) => reason,
        Err(other) => panic!("{other:?}"),
    };
    let how = end.as_deref().unwrap_or(if is_first { "the first, cut" } else { "cut" });
    world.suffers(ledger, &format!("{:?}: {how}", ledger.transport));
    std::thread::sleep(Duration::from_millis(ledger.rng.within(RETURN_MS) as u64));
    true
}
