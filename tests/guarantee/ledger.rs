//! What was published and what each reader was told, and whether the two agree: every message once and in order, or a
//! gap told. Owns the judgement. Never speaks to the server.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::message::{Key, Message};

/// One channel of a run.
pub struct Channel {
    pub name: String,
    /// Publishers take turns, so that they know the order; else the server alone decides it, and history tells it.
    pub ordered: bool,
    /// Some messages end by their own TTL.
    pub brief: bool,
    pub order: Mutex<Order>,
    /// By publisher: how many it has begun to send, and how many were answered.
    sent: Vec<AtomicUsize>,
    acked: Vec<AtomicUsize>,
}

/// The channel's order.
#[derive(Default)]
pub struct Order {
    /// Each message with the digest of its id.
    pub messages: Vec<(Key, u64)>,
    /// How many messages there were before each deletion.
    pub deletions: Vec<usize>,
}

impl Channel {
    pub fn new(name: String, ordered: bool, brief: bool, publishers: usize) -> Self {
        let zeros = || (0..publishers).map(|_| AtomicUsize::new(0)).collect();
        Self { name, ordered, brief, order: Mutex::default(), sent: zeros(), acked: zeros() }
    }

    /// The message of a key. The last one of the channel never ends by its TTL.
    pub fn message(&self, seed: u64, key: Key) -> Message {
        let last = key.publisher + 1 == self.sent.len();
        Message::new(seed, key, self.brief && !last)
    }

    /// The next number of a publisher's, which is about to be sent.
    pub fn send(&self, publisher: usize) -> usize {
        self.sent[publisher].fetch_add(1, Ordering::SeqCst)
    }

    /// The server has answered for a publisher's next one.
    pub fn acked(&self, publisher: usize) {
        self.acked[publisher].fetch_add(1, Ordering::SeqCst);
    }

    /// Counts by publisher: answered so far; a reader that begins from now gets none of these.
    pub fn seen_acked(&self) -> Vec<usize> {
        self.acked.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }

    /// Counts by publisher: begun so far; a reader that has its cursor gets all after these.
    pub fn seen_sent(&self) -> Vec<usize> {
        self.sent.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }
}

pub fn digest(id: &str) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(id)
}

/// What a reader was told of one channel, and by which of its hops.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Its first cursor: after all of `before`, before any after `until` (both by publisher).
    Start {
        before: Vec<usize>,
        until: Vec<usize>,
    },
    Message {
        key: Key,
        id: u64,
    },
    Gap,
    /// A raw WebSocket begins at the reader's cursor; what it brings comes again.
    RawStart,
    RawMessage {
        key: Key,
    },
}

pub type Log = Vec<(usize, Entry)>;

/// What a judged log held.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub messages: usize,
    pub raw: usize,
    pub gaps: usize,
    pub lost: usize,
}

/// The order of a finished run, for lookups.
pub struct Reference<'a> {
    seed: u64,
    channel: &'a Channel,
    messages: Vec<(Key, u64)>,
    deletions: Vec<usize>,
    places: HashMap<(usize, usize), usize>,
}

/// Where a reader stands: the next message is at least `low`, and none from `high` on may be missing.
#[derive(Debug, Clone, Copy)]
struct Position {
    low: usize,
    high: usize,
    /// It stands right after a message that it got, so that every deletion since must be told.
    after_message: bool,
}

impl Position {
    const fn after(place: usize) -> Self {
        Self { low: place + 1, high: place + 1, after_message: true }
    }
}

impl<'a> Reference<'a> {
    /// Takes the order of a channel whose publishers are done.
    ///
    /// # Panics
    /// When an answered message has no place in it, or one publisher's are out of their order.
    pub fn new(seed: u64, channel: &'a Channel) -> Self {
        let order = channel.order.lock().expect("publishers ended well");
        let (messages, deletions) = (order.messages.clone(), order.deletions.clone());
        let mut places = HashMap::new();
        let mut next = vec![0; channel.acked.len()];
        for (place, (key, _)) in messages.iter().enumerate() {
            assert_eq!(key.n, next[key.publisher], "{}: a publisher's own order: {key:?}", channel.name);
            next[key.publisher] += 1;
            places.insert((key.publisher, key.n), place);
        }
        assert_eq!(next, channel.seen_acked(), "{}: all that was answered is there, once", channel.name);
        Self { seed, channel, messages, deletions, places }
    }

    /// Judges one reader's log.
    ///
    /// # Errors
    /// What is wrong, and the number of the hop where it shows.
    pub fn judge(&self, log: &Log, gaps_allowed: bool) -> Result<Tally, (usize, String)> {
        let mut tally = Tally::default();
        let mut at: Option<Position> = None;
        let mut raw: Option<Position> = None;
        // A gap that was told before a raw hop holds for what that brings too.
        let mut raw_told = false;
        let mut told = false;
        for &(hop, ref entry) in log {
            let wrong = |what: String| Err((hop, what));
            match entry {
                Entry::Start { before, until } => {
                    at = Some(self.start(before, until));
                    told = false;
                }
                Entry::Gap => {
                    tally.gaps += 1;
                    if !gaps_allowed {
                        return wrong(format!("a gap was told; the reader stood at {at:?}"));
                    }
                    told = true;
                }
                Entry::Message { key, id } => {
                    let Some(position) = at else { return wrong(format!("{key:?} before any cursor")) };
                    let place = match self.step(position, *key, told) {
                        Ok((place, lost)) => {
                            tally.lost += lost;
                            place
                        }
                        Err(what) => return wrong(what),
                    };
                    if self.messages[place].1 != *id {
                        return wrong(format!("{key:?} came with another id than its publisher was given"));
                    }
                    at = Some(Position::after(place));
                    told = false;
                    tally.messages += 1;
                }
                Entry::RawStart => (raw, raw_told) = (at, told),
                Entry::RawMessage { key } => {
                    let Some(position) = raw else { return wrong(format!("{key:?} before any cursor")) };
                    let place = match self.step(position, *key, raw_told) {
                        Ok((place, _)) => place,
                        Err(what) => return wrong(format!("raw: {what}")),
                    };
                    raw = Some(Position::after(place));
                    raw_told = false;
                    tally.raw += 1;
                }
            }
        }
        Ok(tally)
    }

    fn start(&self, before: &[usize], until: &[usize]) -> Position {
        let place = |(publisher, n): (usize, usize)| self.places.get(&(publisher, n)).copied();
        let low = before.iter().enumerate().filter(|(_, n)| **n > 0);
        let low = low.filter_map(|(publisher, n)| place((publisher, n - 1))).max().map_or(0, |last| last + 1);
        let high = until.iter().enumerate().filter_map(|(publisher, n)| place((publisher, *n))).min();
        Position { low, high: high.unwrap_or(self.messages.len()).max(low), after_message: false }
    }

    /// A message comes to a reader at `position`: its place, and how many were lost before it, if a gap was told.
    fn step(&self, position: Position, key: Key, told: bool) -> Result<(usize, usize), String> {
        let Position { low, high, after_message } = position;
        let Some(&place) = self.places.get(&(key.publisher, key.n)) else {
            return Err(format!("{key:?} was never published"));
        };
        if place < low {
            let stood = self.messages.get(low);
            return Err(format!(
                "twice, or out of order: {key:?} at {place} came when {stood:?} at {low} was next"
            ));
        }
        let missing = |at: &&(Key, u64)| !self.channel.message(self.seed, at.0).brief();
        let lost = self.messages.get(high..place).unwrap_or_default().iter().filter(missing).count();
        if told {
            return Ok((place, lost));
        }
        if lost > 0 {
            return Err(format!(
                "{lost} lost and no gap told: {key:?} at {place} came when {:?} at {high} was next",
                self.messages[high]
            ));
        }
        if after_message && self.deletions.iter().any(|&deletion| low <= deletion && deletion <= place) {
            return Err(format!("a deletion between {low} and {place} was not told"));
        }
        Ok((place, 0))
    }
}
