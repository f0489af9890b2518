//! The channels that live on one worker: their order, history, keys, and which workers read them.
//! A channel comes into being when it is first spoken of, and is forgotten when nobody reads it, nothing is kept and
//! it has not been used for as long as history lasts. Bounded in channels and, over all of them, in bytes.
//! Owns no I/O and no clock: the worker passes requests in and carries answers out.

use std::collections::VecDeque;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::channel::Name;
use super::cursor::Cursor;
use super::history::{Bounds, From, History, Page, PageMax, Rest};
use super::idempotency::{Key, Keys, Known};
use super::message::{Draft, Message};

/// Index of a worker.
pub type WorkerIndex = u16;

/// Forgotten channels of which the place in their order is still known, on one worker: 5 MiB. Readers of those forgotten
/// before them are told a gap when they come back, though they may have missed nothing.
const RESTS_MAX: usize = 65_536;

/// How many channels one look for a victim considers.
const VICTIM_LOOKS: usize = 64;

/// What the channels of one worker may take.
#[derive(Debug, Clone, Copy)]
pub struct HomeBounds {
    pub channel: Bounds,
    /// All history together.
    pub bytes: usize,
    pub channels: usize,
    pub keys: usize,
}

/// Why a publish was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishRefusal {
    /// The key came with another body.
    KeyConflict,
    /// The store of keys is full.
    KeysFull,
    /// The first publish with this key is under way: ask again.
    InFlight,
    /// Every channel is in use, and there is no room for one more.
    ChannelsFull,
}

/// A publish that was done, now or before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub cursor: Cursor,
    pub replayed: bool,
}

#[derive(Debug)]
struct Channel {
    name: Name,
    history: History,
    used_ms: u64,
    /// Workers with a feed of it, and whether each has lost its place (told to pull).
    readers: Vec<(WorkerIndex, bool)>,
    rate: Rate,
}

/// How long a rate looks back.
const RATE_MS: u64 = 10_000;

/// How often a channel is published to: the messages of the last ten seconds, from those of a window that ended and of the
/// one that goes on.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    begun_ms: u64,
    begun_seq: u64,
    before: u32,
}

impl Rate {
    /// A channel that was sized up before `now_ms` is sized up again when its window is over.
    fn turn(&mut self, head: u64, now_ms: u64) {
        let age_ms = now_ms.saturating_sub(self.begun_ms);
        if age_ms >= RATE_MS {
            // One window that was open for longer counts as if it had been spread over it.
            let messages = head.saturating_sub(self.begun_seq) * RATE_MS / age_ms;
            *self =
                Self { begun_ms: now_ms, begun_seq: head, before: messages.min(u64::from(u32::MAX)) as u32 };
        }
    }

    fn per_second(&self, head: u64, now_ms: u64) -> f64 {
        let age_ms = now_ms.saturating_sub(self.begun_ms);
        let messages = head.saturating_sub(self.begun_seq) as f64;
        let window_s = RATE_MS as f64 / 1_000.0;
        if age_ms >= RATE_MS {
            return messages * 1_000.0 / age_ms as f64;
        }
        let before = f64::from(self.before) * (RATE_MS - age_ms) as f64 / RATE_MS as f64;
        (before + messages) / window_s
    }
}

/// What one channel is, at a glance.
#[derive(Debug, Clone, Copy)]
pub struct Look<'c> {
    pub name: &'c Name,
    pub head: Cursor,
    pub messages: usize,
    pub bytes: usize,
    /// Messages placed per second, over the last ten seconds or so.
    pub per_second: f64,
    /// Workers with readers of it.
    pub workers: usize,
}

impl Channel {
    fn look(&self, now_ms: u64) -> Look<'_> {
        let head = self.history.head();
        Look {
            name: &self.name,
            head,
            messages: self.history.len(),
            bytes: self.history.bytes(),
            per_second: self.rate.per_second(head.seq, now_ms),
            workers: self.readers.len(),
        }
    }
}

/// The channels at home on one worker.
pub struct Home {
    channels: Vec<Option<Channel>>,
    free: Vec<u32>,
    by_name: std::collections::HashMap<Name, u32, RandomState>,
    keys: Keys,
    bounds: HomeBounds,
    bytes: usize,
    kept: usize,
    /// Every kept message's channel and number, oldest first: what the node's byte limit drops next.
    oldest: VecDeque<(u32, u64, u64)>,
    /// Of forgotten channels, by two hashes of their names, oldest first in `rests_order`.
    rests: std::collections::HashMap<u128, Rest, RandomState>,
    rests_order: VecDeque<u128>,
    rest_hashes: [RandomState; 2],
    incarnation_next: u64,
    incarnation_step: u64,
    sweep_at: usize,
}

impl Home {
    /// `first` and `step` make incarnations unique: workers begin at different places and step over each other.
    pub fn new(bounds: HomeBounds, first: u64, step: u64) -> Self {
        Self {
            channels: Vec::new(),
            free: Vec::new(),
            by_name: Default::default(),
            keys: Keys::new(bounds.keys),
            bounds,
            bytes: 0,
            kept: 0,
            oldest: VecDeque::new(),
            rests: Default::default(),
            rests_order: VecDeque::new(),
            rest_hashes: Default::default(),
            incarnation_next: first,
            incarnation_step: step,
            sweep_at: 0,
        }
    }

    /// Places a message. `deliver` is told it with each worker that reads the channel and keeps up.
    ///
    /// # Errors
    /// [`PublishRefusal`]; nothing was published.
    pub fn publish(
        &mut self,
        name: &Name,
        draft: Draft,
        key: Option<&Key>,
        now_ms: u64,
        deliver: impl FnMut(WorkerIndex, &Arc<Message>) -> bool,
    ) -> Result<Published, PublishRefusal> {
        if let Some(key) = key {
            match self.keys.reserve(name, key, now_ms) {
                Known::New => {}
                Known::Done(cursor) => return Ok(Published { cursor, replayed: true }),
                Known::InFlight => return Err(PublishRefusal::InFlight),
                Known::Conflict => return Err(PublishRefusal::KeyConflict),
                Known::Full => return Err(PublishRefusal::KeysFull),
            }
        }
        let placed = self.place(name, draft, now_ms, deliver);
        match (&placed, key) {
            (Some(cursor), Some(key)) => self.keys.commit(name, key, *cursor, now_ms),
            (None, Some(key)) => self.keys.release(name, key),
            (_, None) => {}
        }
        placed.map(|cursor| Published { cursor, replayed: false }).ok_or(PublishRefusal::ChannelsFull)
    }

    /// Reserves a key for a publish to several channels, which must be possible for all before it is done for one.
    pub fn reserve(&mut self, name: &Name, key: &Key, now_ms: u64) -> Known {
        self.keys.reserve(name, key, now_ms)
    }

    /// Gives a reservation back, undone.
    pub fn release(&mut self, name: &Name, key: &Key) {
        self.keys.release(name, key);
    }

    /// Publishes under a key that is reserved already.
    ///
    /// # Errors
    /// [`PublishRefusal::ChannelsFull`].
    pub fn publish_reserved(
        &mut self,
        name: &Name,
        draft: Draft,
        key: &Key,
        now_ms: u64,
        deliver: impl FnMut(WorkerIndex, &Arc<Message>) -> bool,
    ) -> Result<Published, PublishRefusal> {
        self.keys.release(name, key);
        self.publish(name, draft, Some(key), now_ms, deliver)
    }

    /// Deletes a channel's history, telling its readers.
    pub fn delete(
        &mut self,
        name: &Name,
        now_ms: u64,
        deliver: impl FnMut(WorkerIndex, &Arc<Message>) -> bool,
    ) {
        let Some(slot) = self.slot(name, now_ms) else { return };
        let Some(channel) = self.channels[slot as usize].as_mut() else { return };
        self.bytes -= channel.history.bytes();
        self.kept -= channel.history.len();
        let message = channel.history.delete(name, now_ms);
        tell(channel, &message, deliver);
    }

    /// A page of a channel's history; an unknown channel comes into being, so that its cursor stays good.
    pub fn read(&mut self, name: &Name, from: From, max: PageMax, now_ms: u64) -> Option<Page> {
        let slot = self.slot(name, now_ms)?;
        let bounds = self.bounds.channel;
        self.with_history(slot, |history| history.read(from, max, bounds, now_ms))
    }

    /// The head of a channel that is known.
    pub fn head(&mut self, name: &Name, now_ms: u64) -> Option<Cursor> {
        let channel = self.channels[*self.by_name.get(name)? as usize].as_mut()?;
        channel.used_ms = now_ms;
        Some(channel.history.head())
    }

    /// Makes `worker` a reader of the channel and gives it the newest messages to begin with. Asked again by a worker
    /// that lost its place, it is a reader that keeps up once more.
    pub fn join(&mut self, name: &Name, worker: WorkerIndex, max: PageMax, now_ms: u64) -> Option<Page> {
        let slot = self.slot(name, now_ms)?;
        let channel = self.channels[slot as usize].as_mut()?;
        match channel.readers.iter_mut().find(|(reader, _)| *reader == worker) {
            Some((_, lost)) => *lost = false,
            None => {
                channel.readers.reserve_exact(1);
                channel.readers.push((worker, false));
            }
        }
        let bounds = self.bounds.channel;
        self.with_history(slot, |history| {
            let newest = history.read(
                From::Newest(max.messages),
                PageMax { messages: max.messages, bytes: usize::MAX },
                bounds,
                now_ms,
            );
            shorten_to(newest, max.bytes)
        })
    }

    pub fn leave(&mut self, name: &Name, worker: WorkerIndex, now_ms: u64) {
        if let Some(&slot) = self.by_name.get(name)
            && let Some(channel) = self.channels[slot as usize].as_mut()
        {
            channel.readers.retain(|(reader, _)| *reader != worker);
            channel.readers.shrink_to_fit();
            channel.used_ms = now_ms;
        }
    }

    /// Looks at the next few channels, lets go of what has aged, forgets the unused. Called regularly: with `ticks`
    /// calls in the time that history lasts, each channel is looked at about once a second or more.
    pub fn sweep(&mut self, now_ms: u64, channels_max: usize) {
        self.keys.expire(now_ms);
        let bounds = self.bounds.channel;
        for _ in 0..channels_max.min(self.channels.len()) {
            self.sweep_at = (self.sweep_at + 1) % self.channels.len();
            let slot = self.sweep_at as u32;
            self.with_history(slot, |history| history.trim(bounds, now_ms));
            if let Some(Some(channel)) = self.channels.get_mut(self.sweep_at) {
                channel.rate.turn(channel.history.head().seq, now_ms);
            }
            if self.is_unused(slot, now_ms, bounds.age_ms) {
                self.forget(slot);
            }
        }
        if self.oldest.len() > 2 * self.kept + 1_024 {
            self.compact_oldest();
        }
    }

    pub fn channels(&self) -> usize {
        self.by_name.len()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that are kept, of all channels.
    pub fn messages(&self) -> usize {
        self.kept
    }

    /// What the channels in the places from `at` on are, and their places. A look at them leaves them as they are.
    pub fn look_from(&self, at: usize, now_ms: u64) -> impl Iterator<Item = (usize, Option<Look<'_>>)> {
        self.channels
            .iter()
            .enumerate()
            .skip(at)
            .map(move |(at, channel)| (at, channel.as_ref().map(|channel| channel.look(now_ms))))
    }

    /// What a channel is, if it is known.
    pub fn look(&self, name: &Name, now_ms: u64) -> Option<Look<'_>> {
        Some(self.channels.get(*self.by_name.get(name)? as usize)?.as_ref()?.look(now_ms))
    }

    fn place(
        &mut self,
        name: &Name,
        draft: Draft,
        now_ms: u64,
        deliver: impl FnMut(WorkerIndex, &Arc<Message>) -> bool,
    ) -> Option<Cursor> {
        let slot = self.slot(name, now_ms)?;
        let bounds = self.bounds.channel;
        // The channel's own: one name for all its messages.
        let name = self.channels[slot as usize].as_ref()?.name.clone();
        let message = self.with_history(slot, |history| history.append(&name, draft, bounds, now_ms))?;
        let channel = self.channels[slot as usize].as_mut()?;
        tell(channel, &message, deliver);
        if channel.history.holds(message.cursor.seq) {
            self.oldest.push_back((slot, message.cursor.incarnation, message.cursor.seq));
        }
        while self.bytes > self.bounds.bytes && self.drop_oldest() {}
        if self.oldest.len() > 4 * self.kept + 65_536 {
            self.compact_oldest();
        }
        Some(message.cursor)
    }

    /// Runs `change` on a channel's history and keeps the sums right.
    fn with_history<T>(&mut self, slot: u32, change: impl FnOnce(&mut History) -> T) -> Option<T> {
        let history = &mut self.channels.get_mut(slot as usize)?.as_mut()?.history;
        let (bytes, kept) = (history.bytes(), history.len());
        let result = change(history);
        self.bytes = self.bytes - bytes + history.bytes();
        self.kept = self.kept - kept + history.len();
        Some(result)
    }

    /// Drops the oldest message of all channels; false when there is none.
    fn drop_oldest(&mut self) -> bool {
        while let Some((slot, incarnation, seq)) = self.oldest.pop_front() {
            let dropped = self.with_history(slot, |history| {
                let is_it = history.head().incarnation == incarnation
                    && history.oldest_seq().is_some_and(|oldest| oldest <= seq);
                is_it.then(|| history.drop_oldest())
            });
            if dropped.flatten().is_some() {
                return true;
            }
        }
        false
    }

    fn compact_oldest(&mut self) {
        let channels = &self.channels;
        self.oldest.retain(|(slot, incarnation, seq)| {
            channels[*slot as usize].as_ref().is_some_and(|channel| {
                channel.history.head().incarnation == *incarnation && channel.history.holds(*seq)
            })
        });
        self.oldest.shrink_to(2 * self.oldest.len());
    }

    /// The channel's slot; a new one if it is unknown. `None` when there is no room.
    fn slot(&mut self, name: &Name, now_ms: u64) -> Option<u32> {
        if let Some(&slot) = self.by_name.get(name) {
            self.channels[slot as usize].as_mut()?.used_ms = now_ms;
            return Some(slot);
        }
        if self.by_name.len() >= self.bounds.channels {
            let victim = self.victim()?;
            self.forget(victim);
        }
        let history = match self.rests.remove(&self.rest_key(name)) {
            Some(rest) => History::resume(rest),
            None => {
                let incarnation = self.incarnation_next;
                self.incarnation_next = self.incarnation_next.wrapping_add(self.incarnation_step);
                History::new(incarnation)
            }
        };
        let rate = Rate { begun_ms: now_ms, begun_seq: history.head().seq, before: 0 };
        let channel = Channel { name: name.clone(), history, used_ms: now_ms, readers: Vec::new(), rate };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.channels[slot as usize] = Some(channel);
                slot
            }
            None => {
                self.channels.push(Some(channel));
                (self.channels.len() - 1) as u32
            }
        };
        self.by_name.insert(name.clone(), slot);
        Some(slot)
    }

    fn is_unused(&self, slot: u32, now_ms: u64, age_ms: u64) -> bool {
        self.channels[slot as usize].as_ref().is_some_and(|channel| {
            channel.readers.is_empty()
                && channel.history.is_empty()
                && channel.used_ms.saturating_add(age_ms) <= now_ms
        })
    }

    /// The longest unused of the next few channels that nobody reads.
    fn victim(&mut self) -> Option<u32> {
        let len = self.channels.len();
        let mut best: Option<(u64, u32)> = None;
        for looked in 0..len {
            if looked >= VICTIM_LOOKS && best.is_some() {
                break;
            }
            self.sweep_at = (self.sweep_at + 1) % len;
            if let Some(channel) = &self.channels[self.sweep_at]
                && channel.readers.is_empty()
                && best.is_none_or(|(used_ms, _)| channel.used_ms < used_ms)
            {
                best = Some((channel.used_ms, self.sweep_at as u32));
            }
            if looked >= 64 * VICTIM_LOOKS {
                break;
            }
        }
        best.map(|(_, slot)| slot)
    }

    fn forget(&mut self, slot: u32) {
        if let Some(channel) = self.channels[slot as usize].take() {
            self.bytes -= channel.history.bytes();
            self.kept -= channel.history.len();
            self.by_name.remove(&channel.name);
            self.free.push(slot);
            let key = self.rest_key(&channel.name);
            if self.rests.insert(key, channel.history.rest()).is_none() {
                self.rests_order.push_back(key);
            }
            while self.rests_order.len() > RESTS_MAX {
                if let Some(oldest) = self.rests_order.pop_front() {
                    self.rests.remove(&oldest);
                }
            }
        }
    }

    fn rest_key(&self, name: &Name) -> u128 {
        use std::hash::BuildHasher;
        let [first, second] = &self.rest_hashes;
        u128::from(first.hash_one(name)) << 64 | u128::from(second.hash_one(name))
    }
}

/// Tells each worker that reads the channel and keeps up; one that cannot take it has lost its place.
fn tell(
    channel: &mut Channel,
    message: &Arc<Message>,
    mut deliver: impl FnMut(WorkerIndex, &Arc<Message>) -> bool,
) {
    for (worker, lost) in &mut channel.readers {
        if !*lost {
            *lost = !deliver(*worker, message);
        }
    }
}

/// Drops messages from the front of a page until the rest fits.
fn shorten_to(mut page: Page, bytes_max: usize) -> Page {
    let mut bytes: usize = page.messages.iter().map(|message| message.cost_bytes()).sum();
    let mut drop = 0;
    while bytes > bytes_max && drop < page.messages.len() {
        bytes -= page.messages[drop].cost_bytes();
        page.after = page.messages[drop].cursor.seq;
        drop += 1;
    }
    page.messages.drain(..drop);
    page
}

#[cfg(test)]
mod tests {
    use super::super::message::Body;
    use super::*;

    const CHANNEL: Bounds = Bounds { messages: 10, bytes: 1 << 20, age_ms: 1_000 };
    const ALL: PageMax = PageMax { messages: 100, bytes: usize::MAX };

    fn home(bytes: usize, channels: usize) -> Home {
        Home::new(HomeBounds { channel: CHANNEL, bytes, channels, keys: 10 }, 5, 1)
    }

    fn name(name: &str) -> Name {
        Name::parse(name).expect("a name")
    }

    fn draft(bytes: usize) -> Draft {
        Draft { event: None, body: Body::Binary(vec![0; bytes].into()), ttl_seconds: None }
    }

    #[test]
    fn a_reading_makes_the_cursor_good() {
        let mut home = home(1 << 20, 10);
        let page = home.read(&name("a"), From::Now, ALL, 0).expect("room");
        let cursor = Cursor { incarnation: page.incarnation, seq: page.next };
        home.publish(&name("a"), draft(1), None, 500, |_, _| true).expect("published");
        let page = home.read(&name("a"), From::After(cursor), ALL, 500).expect("room");
        assert_eq!((page.messages.len(), page.gap), (1, false));
    }

    #[test]
    fn unused_channels_are_forgotten_and_ids_are_not_used_again() {
        let mut home = home(1 << 20, 10);
        let first = home.publish(&name("a"), draft(1), None, 0, |_, _| true).expect("published");
        home.sweep(999, 10);
        assert_eq!(home.channels(), 1);
        home.sweep(1_000, 10);
        home.sweep(2_000, 10);
        assert_eq!((home.channels(), home.bytes()), (0, 0));
        let before = From::After(Cursor { seq: 0, ..first.cursor });
        assert!(home.read(&name("a"), before, ALL, 2_000).expect("room").gap, "it missed the message");
        let page = home.read(&name("a"), From::After(first.cursor), ALL, 2_000).expect("room");
        assert!(!page.gap, "it had seen all");
        let second = home.publish(&name("a"), draft(1), None, 2_000, |_, _| true).expect("published");
        assert_eq!(second.cursor.seq, 2);
    }

    #[test]
    fn what_is_known_of_forgotten_channels_is_bounded() {
        let mut home = home(1 << 20, 1);
        for n in 0..RESTS_MAX + 1_000 {
            home.read(&name(&format!("c{n}")), From::Now, ALL, 0).expect("room");
        }
        assert!(home.rests.len() <= RESTS_MAX && home.rests_order.len() <= RESTS_MAX);
    }

    #[test]
    fn the_nodes_bytes_drop_the_oldest_of_all_channels() {
        let mut home = home(1_000, 10);
        let first = home.publish(&name("old"), draft(400), None, 0, |_, _| true).expect("published");
        home.publish(&name("new"), draft(400), None, 0, |_, _| true).expect("published");
        assert!(home.bytes() <= 1_000);
        let before = From::After(Cursor { seq: 0, ..first.cursor });
        assert!(home.read(&name("old"), before, ALL, 0).expect("room").gap);
        assert_eq!(home.read(&name("new"), From::Newest(9), ALL, 0).expect("room").messages.len(), 1);
    }

    #[test]
    fn messages_that_are_not_kept_are_not_remembered() {
        let mut home = home(1 << 20, 10);
        home.publish(&name("a"), draft(1), None, 0, |_, _| true).expect("published");
        for _ in 0..100_000 {
            let brief = Draft { ttl_seconds: Some(0), ..draft(1) };
            home.publish(&name("a"), brief, None, 0, |_, _| true).expect("published");
        }
        assert_eq!((home.kept, home.oldest.len()), (1, 1));
    }

    #[test]
    fn when_channels_are_full_the_longest_unused_goes_but_never_one_with_readers() {
        let mut home = home(1 << 20, 2);
        home.join(&name("read"), 0, ALL, 0);
        home.read(&name("unread"), From::Now, ALL, 1);
        assert!(home.read(&name("third"), From::Now, ALL, 2).is_some());
        home.join(&name("third"), 0, ALL, 3);
        assert!(home.read(&name("fourth"), From::Now, ALL, 4).is_none());
    }

    #[test]
    fn a_worker_that_could_not_take_a_message_is_told_no_more_until_it_joins_again() {
        let mut home = home(1 << 20, 2);
        home.join(&name("a"), 3, ALL, 0);
        let mut told = 0;
        for take in [true, false, true] {
            let deliver = |worker, _: &Arc<Message>| {
                assert_eq!(worker, 3);
                told += 1;
                take
            };
            home.publish(&name("a"), draft(1), None, 0, deliver).expect("published");
        }
        assert_eq!(told, 2);
        let page = home.join(&name("a"), 3, ALL, 0).expect("room");
        assert_eq!((page.after, page.head, page.messages.len()), (0, 3, 3));
    }

    #[test]
    fn a_rate_is_of_the_last_seconds() {
        let mut home = home(1 << 20, 10);
        let rate = |home: &Home, now_ms| home.look(&name("a"), now_ms).expect("known").per_second;
        // Ten a second for a minute, then none.
        for tenth in 0..600 {
            home.publish(&name("a"), draft(1), None, tenth * 100, |_, _| true).expect("published");
            if tenth % 10 == 0 {
                home.sweep(tenth * 100, 10);
            }
        }
        let at_end = rate(&home, 60_000);
        assert!((9.0..=11.0).contains(&at_end), "{at_end}");
        let later = rate(&home, 64_000);
        assert!(later < at_end, "{later}");
        home.sweep(71_000, 10);
        home.sweep(82_000, 10);
        assert!(home.look(&name("a"), 82_000).is_none_or(|look| look.per_second == 0.0));
        assert!(home.look(&name("unknown"), 0).is_none());
    }
}
