//! What is asked of the channels that live on one worker (`channels`: the table of them): their messages' order, keys, who
//! reads them, and which messages go first.
//! A channel comes into being when it is first published to or subscribed to, and is forgotten when nobody reads it,
//! nothing is kept and it has not been used for as long as history lasts. Bounded in channels and, over all of them, in bytes.
//! Owns no I/O and no clock: the worker passes requests in and carries answers out.

use std::sync::Arc;

use super::ages::{Age, Ages, RUN_MAX, Run, slice_of};
use super::channel::Name;
use super::channels::{Channel, Channels, Room};
use super::cursor::Cursor;
use super::history::{Bounds, History};
use super::idempotency::{Key, Keys, Known};
use super::message::{Draft, Message};
use super::page::{From, Page, PageMax};

pub use super::channels::{Look, WorkerIndex};

/// What a key costs in the two tables that know it, its own bytes included (128 at most).
const KEY_BYTES: usize = 400;
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

/// The channels at home on one worker.
pub struct Home {
    channels: Channels,
    keys: Keys,
    bounds: HomeBounds,
    /// Whose messages the node's byte limit drops next.
    ages: Ages,
}

impl Home {
    /// `first` and `step` make incarnations unique: workers begin at different places and step over each other.
    pub fn new(bounds: HomeBounds, first: u64, step: u64) -> Self {
        Self {
            channels: Channels::new(bounds.channels, first, step),
            keys: Keys::new(bounds.keys),
            bounds,
            ages: Ages::default(),
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
        let Some(slot) = self.channels.claim(name, Room::OfUnused, now_ms) else { return };
        let deleted = self.channels.with_history(slot, |history| history.delete(name, now_ms));
        if let (Some(message), Some(channel)) = (deleted, self.channels.get_mut(slot)) {
            tell(channel, &message, deliver);
        }
    }

    /// A page of a channel's history. Of one that nobody has published to only the name is noted, so that its cursor stays
    /// good: asking for names costs no channel its place.
    pub fn read(&mut self, name: &Name, from: From, max: PageMax, now_ms: u64) -> Page {
        let bounds = self.bounds.channel;
        let is_kept = self.channels.find(name).is_some() || self.channels.had_messages(name);
        let slot = if is_kept { self.channels.claim(name, Room::OfUnused, now_ms) } else { None };
        let page = slot.and_then(|slot| {
            self.channels.with_named(slot, |name, history| history.read(name, from, max, bounds, now_ms))
        });
        page.unwrap_or_else(|| {
            History::resume(self.channels.note(name)).read(name, from, max, bounds, now_ms)
        })
    }

    /// Makes sure that a message to the channel would have room. False: it would not.
    pub fn claim(&mut self, name: &Name, now_ms: u64) -> bool {
        self.channels.claim(name, Room::OfUnread, now_ms).is_some()
    }

    /// The head of a channel that is known.
    pub fn head(&mut self, name: &Name, now_ms: u64) -> Option<Cursor> {
        match self.channels.find(name) {
            Some(slot) => {
                let channel = self.channels.get_mut(slot)?;
                channel.used_ms = now_ms;
                Some(channel.history.head())
            }
            None => self.channels.rest(name).map(|rest| rest.head()),
        }
    }

    /// Makes `worker` a reader of the channel and gives it the newest messages to begin with. Asked again by a worker
    /// that lost its place, it is a reader that keeps up once more.
    pub fn join(&mut self, name: &Name, worker: WorkerIndex, max: PageMax, now_ms: u64) -> Option<Page> {
        let slot = self.channels.claim(name, Room::OfUnused, now_ms)?;
        let channel = self.channels.get_mut(slot)?;
        match channel.readers.iter_mut().find(|(reader, _)| *reader == worker) {
            Some((_, lost)) => *lost = false,
            None => {
                channel.readers.reserve_exact(1);
                channel.readers.push((worker, false));
            }
        }
        let bounds = self.bounds.channel;
        self.channels.with_named(slot, |name, history| history.read_newest(name, max, bounds, now_ms))
    }

    pub fn leave(&mut self, name: &Name, worker: WorkerIndex, now_ms: u64) {
        if let Some(slot) = self.channels.find(name)
            && let Some(channel) = self.channels.get_mut(slot)
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
        for _ in 0..channels_max.min(self.channels.places()) {
            let Some(slot) = self.channels.turn() else { break };
            self.channels.with_history(slot, |history| history.trim(bounds, now_ms));
            if let Some(channel) = self.channels.get_mut(slot) {
                channel.rate.turn(channel.history.head().seq, now_ms);
            }
            if self.channels.is_unused(slot, now_ms, bounds.age_ms) {
                self.channels.forget(slot);
            }
        }
        if self.ages.count() > 2 * self.channels.kept() + 1_024 {
            self.compact_ages();
        }
    }

    pub fn channels(&self) -> usize {
        self.channels.count()
    }

    /// Of all history.
    pub fn bytes(&self) -> usize {
        self.channels.bytes()
    }

    /// Messages that are kept, of all channels.
    pub fn messages(&self) -> usize {
        self.channels.kept()
    }

    /// What all history together may take from now on. Less than it takes: what comes pushes out the oldest, and
    /// [`drop_oldest`](Self::drop_oldest) does the rest.
    pub fn set_bytes_max(&mut self, bytes: usize) {
        self.bounds.bytes = bytes;
    }

    /// Whether history would push out messages for `bytes` more.
    pub fn is_full_for(&self, bytes: usize) -> bool {
        self.channels.bytes().saturating_add(bytes) > self.bounds.bytes
    }

    /// What the channels in the places from `at` on are, and their places. A look at them leaves them as they are.
    pub fn look_from(&self, at: usize, now_ms: u64) -> impl Iterator<Item = (usize, Option<Look<'_>>)> {
        self.channels.look_from(at, now_ms)
    }

    /// What a channel is, if it is known.
    pub fn look(&self, name: &Name, now_ms: u64) -> Option<Look<'_>> {
        self.channels.look(name, now_ms)
    }

    /// Runs of messages, in the order in which they go.
    pub fn runs(&self) -> usize {
        self.ages.count()
    }

    /// The memory that channels take beside their messages, and what is known of others and of keys.
    pub fn tables_bytes(&self) -> usize {
        self.channels.tables_bytes() + self.ages.bytes() + self.keys.len() * KEY_BYTES
    }

    /// When the oldest message of all channels was placed: no other is older by [`SLICE_MS`](super::ages::SLICE_MS).
    pub fn oldest_ms(&mut self) -> Option<u64> {
        let slot = self.oldest()?;
        self.channels.get(slot)?.history.oldest().map(|(_, ts_ms)| ts_ms)
    }

    /// Drops the oldest message of all channels. Returns the bytes that it held; `None`: there is none.
    pub fn drop_oldest(&mut self) -> Option<usize> {
        let slot = self.oldest()?;
        self.channels.with_history(slot, History::drop_oldest)
    }

    /// The channel that has the oldest message.
    fn oldest(&mut self) -> Option<u32> {
        while let Some(age) = self.ages.first() {
            if self.channels.is_aged(age) {
                return Some(age.slot);
            }
            self.ages.drop_first();
            self.channels.unlist(age);
        }
        None
    }

    /// Where the next message of a channel will lie: see [`History::next_places`](super::history::History::next_places).
    pub fn next_places(&self, name: &str) -> Option<[(*const u8, usize); 2]> {
        self.channels.next_places(name)
    }

    fn place(
        &mut self,
        name: &Name,
        draft: Draft,
        now_ms: u64,
        deliver: impl FnMut(WorkerIndex, &Arc<Message>) -> bool,
    ) -> Option<Cursor> {
        let slot = self.channels.claim(name, Room::OfUnread, now_ms)?;
        let bounds = self.bounds.channel;
        let channel = self.channels.get_mut(slot)?;
        let cursor = if channel.readers.is_empty() {
            self.channels
                .with_named(slot, |own, history| history.append_unread(own, draft, bounds, now_ms))?
        } else {
            let message =
                self.channels.with_named(slot, |own, history| history.append(own, draft, bounds, now_ms))?;
            tell(self.channels.get_mut(slot)?, &message, deliver);
            message.cursor
        };
        let channel = self.channels.get_mut(slot)?;
        let run = Run { from: cursor.seq, slice: slice_of(channel.history.newest_ms()) };
        let goes_on =
            channel.run.is_some_and(|last| last.slice == run.slice && cursor.seq - last.from < RUN_MAX);
        if !goes_on && channel.history.holds(cursor.seq) {
            channel.run = Some(run);
            self.ages.put(Age { slot, incarnation: cursor.incarnation, run });
        }
        while self.channels.bytes() > self.bounds.bytes && self.drop_oldest().is_some() {}
        if self.ages.count() > 4 * self.channels.kept() + 65_536 {
            self.compact_ages();
        }
        Some(cursor)
    }

    fn compact_ages(&mut self) {
        let channels = &mut self.channels;
        self.ages.keep(|&age| {
            let is_wanted = channels.has_of(age);
            if !is_wanted {
                channels.unlist(age);
            }
            is_wanted
        });
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

#[cfg(test)]
mod tests {
    use super::super::channels::UNHEARD_KEPT_MS;
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
        let page = home.read(&name("a"), From::Now, ALL, 0);
        let cursor = Cursor { incarnation: page.incarnation, seq: page.next };
        home.publish(&name("a"), draft(1), None, 500, |_, _| true).expect("published");
        let page = home.read(&name("a"), From::After(cursor), ALL, 500);
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
        assert!(home.read(&name("a"), before, ALL, 2_000).gap, "it missed the message");
        let page = home.read(&name("a"), From::After(first.cursor), ALL, 2_000);
        assert!(!page.gap, "it had seen all");
        let second = home.publish(&name("a"), draft(1), None, 2_000, |_, _| true).expect("published");
        assert_eq!(second.cursor.seq, 2);
    }

    #[test]
    fn the_nodes_bytes_drop_the_oldest_of_all_channels() {
        let mut home = home(1_000, 10);
        let first = home.publish(&name("old"), draft(400), None, 0, |_, _| true).expect("published");
        home.publish(&name("new"), draft(400), None, 0, |_, _| true).expect("published");
        assert!(home.bytes() <= 1_000);
        let before = From::After(Cursor { seq: 0, ..first.cursor });
        assert!(home.read(&name("old"), before, ALL, 0).gap);
        assert_eq!(home.read(&name("new"), From::Newest(9), ALL, 0).messages.len(), 1);
    }

    #[test]
    fn a_few_messages_too_many_are_seen_by_nobody() {
        let mut home = home(1 << 20, 10);
        home.bounds.channel.messages = 64;
        let first = home.publish(&name("a"), draft(1), None, 0, |_, _| true).expect("published");
        for _ in 0..64 {
            home.publish(&name("a"), draft(1), None, 0, |_, _| true).expect("published");
        }
        assert_eq!(home.messages(), 65, "a 32nd more may wait for others");
        let page = home.read(&name("a"), From::After(Cursor { seq: 0, ..first.cursor }), ALL, 0);
        assert_eq!((page.messages.len(), page.gap, home.messages()), (64, true, 64));
        for _ in 0..1_000 {
            home.publish(&name("a"), draft(1), None, 0, |_, _| true).expect("published");
            assert!(home.messages() <= 66);
        }
    }

    #[test]
    fn messages_that_are_not_kept_are_not_remembered() {
        let mut home = home(1 << 20, 10);
        home.publish(&name("a"), draft(1), None, 0, |_, _| true).expect("published");
        for _ in 0..100_000 {
            let brief = Draft { ttl_seconds: Some(0), ..draft(1) };
            home.publish(&name("a"), brief, None, 0, |_, _| true).expect("published");
        }
        assert_eq!((home.messages(), home.runs()), (1, 1));
    }

    #[test]
    fn when_channels_are_full_a_message_takes_the_place_of_the_longest_unused_but_never_of_one_with_readers()
    {
        let mut home = home(1 << 20, 2);
        home.join(&name("read"), 0, ALL, 0);
        home.publish(&name("old"), draft(1), None, 1, |_, _| true).expect("published");
        home.publish(&name("new"), draft(1), None, 2, |_, _| true).expect("an unread one makes room");
        assert!(home.channels.find(&name("new")).is_some() && home.channels.find(&name("old")).is_none());
        home.join(&name("new"), 0, ALL, 3);
        let refused = home.publish(&name("third"), draft(1), None, 4, |_, _| true);
        assert_eq!(refused, Err(PublishRefusal::ChannelsFull));
        assert!(!home.claim(&name("third"), 4));
    }

    #[test]
    fn who_asks_for_names_pushes_out_no_channel_that_has_messages_or_readers() {
        let mut home = home(1 << 20, 4);
        home.join(&name("read"), 0, ALL, 0);
        let kept = home.publish(&name("kept"), draft(1), None, 0, |_, _| true).expect("published");
        for n in 0..10_000 {
            let page = home.read(&name(&format!("scan/{n}")), From::Newest(1), ALL, n);
            assert!(page.messages.is_empty());
        }
        assert_eq!(home.channels(), 2, "a name that is asked for is no channel");
        // Subscribing makes a channel, at the cost of those that were subscribed to before.
        for n in 0..10_000 {
            let name = name(&format!("sub/{n}"));
            if home.join(&name, 0, ALL, n).is_some() {
                home.leave(&name, 0, n);
            }
        }
        assert!(home.channels() <= 4);
        let page = home.read(&name("kept"), From::After(Cursor { seq: 0, ..kept.cursor }), ALL, 999);
        assert_eq!((page.messages.len(), page.gap), (1, false));
        assert!(home.channels.find(&name("read")).is_some());
        // And where all have messages or readers, who subscribes is refused, and who asks is answered.
        for n in 0..2 {
            home.publish(&name(&format!("full/{n}")), draft(1), None, 1_000, |_, _| true).expect("published");
        }
        assert!(home.join(&name("one more"), 0, ALL, 1_001).is_none());
        assert!(!home.read(&name("one more"), From::Now, ALL, 1_001).gap);
    }

    #[test]
    fn a_channel_that_nobody_published_to_is_forgotten_soon_and_its_cursor_stays_good() {
        let mut home = Home::new(
            HomeBounds {
                channel: Bounds { age_ms: 300_000, ..CHANNEL },
                bytes: 1 << 20,
                channels: 10,
                keys: 1,
            },
            5,
            1,
        );
        let page = home.join(&name("a"), 0, ALL, 0).expect("room");
        home.leave(&name("a"), 0, 1_000);
        home.sweep(1_000 + UNHEARD_KEPT_MS - 1, 10);
        assert_eq!(home.channels(), 1);
        home.sweep(1_000 + UNHEARD_KEPT_MS, 10);
        assert_eq!(home.channels(), 0);
        let cursor = Cursor { incarnation: page.incarnation, seq: page.head };
        assert_eq!(home.head(&name("a"), 7_000), Some(cursor));
        home.publish(&name("a"), draft(1), None, 8_000, |_, _| true).expect("published");
        let page = home.read(&name("a"), From::After(cursor), ALL, 8_000);
        assert_eq!((page.messages.len(), page.gap), (1, false));
    }

    #[test]
    fn the_oldest_go_when_less_is_allowed() {
        let mut home = home(1 << 20, 10);
        for (at_ms, channel) in [(0, "a"), (10, "b"), (20, "a")] {
            home.publish(&name(channel), draft(100), None, at_ms, |_, _| true).expect("published");
        }
        assert_eq!(home.oldest_ms(), Some(0));
        home.delete(&name("a"), 30, |_, _| true);
        assert_eq!(home.oldest_ms(), Some(10), "what is gone already does not count");
        let bytes = home.bytes();
        assert_eq!(home.drop_oldest(), Some(bytes));
        assert_eq!((home.drop_oldest(), home.oldest_ms(), home.bytes()), (None, None, 0));
        home.set_bytes_max(300);
        for at_ms in 40..50 {
            home.publish(&name("c"), draft(100), None, at_ms, |_, _| true).expect("published");
        }
        assert!(home.bytes() <= 300 && home.is_full_for(100) && !home.is_full_for(0));
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
