//! One channel's order and history: gives each message its place, keeps the recent ones, answers "what came after".
//! Owns the rule of gaps: a message that left for any reason but its own TTL raises the `floor`; a position below the
//! floor has missed something. Bounded by messages, bytes (the newest message is kept whatever its size) and age.
//! A message that somebody reads is shared with the feeds that it goes to; what nobody reads lies on a shelf until it is
//! asked for, and is shared from then on. Never reads a clock.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::channel::Name;
use super::cursor::Cursor;
use super::kept::{Form, Kept};
use super::message::{Body, Draft, Message, OVERHEAD_BYTES};
use super::page::{From, Page, PageMax, page_len};
use super::rests::Rest;
use super::shelf::{self, Shelf};

/// A publish leaves this part of `Bounds::messages` beyond them, and so many at most, for the next ones to let go.
const SPARE_PART: usize = 32;
const SPARE_MAX: usize = 256;

/// What the next message is expected to have, about.
const NEXT_BYTES: usize = 128;

/// What one channel may keep.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub messages: usize,
    pub bytes: usize,
    pub age_ms: u64,
}

/// The order and the kept messages of one channel's life.
#[derive(Debug)]
pub struct History {
    incarnation: u64,
    head: u64,
    /// Every position below it has lost a message.
    floor: u64,
    kept: VecDeque<Kept>,
    shelf: Shelf,
    kept_bytes: usize,
    /// No kept message ends by its own TTL before this.
    next_end_ms: u64,
    /// No kept message is older than this: a message that was published long ago is in no cache, and is not looked at
    /// before it must be.
    oldest_ms: u64,
    /// When the newest that was kept was placed.
    newest_ms: u64,
    /// Kept messages may not be the newest numbers without a break.
    has_holes: bool,
}

impl History {
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            head: 0,
            floor: 0,
            kept: VecDeque::new(),
            shelf: Shelf::default(),
            kept_bytes: 0,
            next_end_ms: u64::MAX,
            oldest_ms: 0,
            newest_ms: 0,
            has_holes: false,
        }
    }

    /// What a channel is of which nobody has spoken for a while, and which keeps nothing: its next message goes on where
    /// it stopped, and whoever had seen all of it has missed nothing.
    pub fn rest(&self) -> Rest {
        let floor = self.kept.back().map_or(self.floor, |_| self.head);
        Rest { incarnation: self.incarnation, head: self.head, floor }
    }

    pub fn resume(rest: Rest) -> Self {
        Self { head: rest.head, floor: rest.floor, ..Self::new(rest.incarnation) }
    }

    pub fn head(&self) -> Cursor {
        Cursor { incarnation: self.incarnation, seq: self.head }
    }

    /// Memory that it takes, but for little: what a message costs covers some of what the shelf has beside it.
    pub fn bytes(&self) -> usize {
        let covered = self.shelf.messages() * (OVERHEAD_BYTES / 2);
        self.kept_bytes + self.shelf.slack_bytes().saturating_sub(covered)
    }

    /// Where what is kept of the next message, and its bytes, will most likely lie, and how many bytes that is. To be
    /// fetched, never to be read: they may be of nothing.
    pub fn next_places(&self) -> [(*const u8, usize); 2] {
        let newest = self.kept.back().map_or(std::ptr::null(), std::ptr::from_ref);
        [(newest.wrapping_add(1).cast(), size_of::<Kept>()), (self.shelf.next_place(), NEXT_BYTES)]
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Gives `draft` the next place, and keeps it unless its TTL is 0: a message for those who read it now.
    pub fn append(&mut self, channel: &Name, draft: Draft, bounds: Bounds, now_ms: u64) -> Arc<Message> {
        let ttl_seconds = draft.ttl_seconds;
        let (ts_ms, ends_ms) = self.next_place(ttl_seconds, bounds, now_ms);
        let message = Arc::new(Message {
            channel: channel.clone(),
            cursor: self.head(),
            ts_ms,
            event: draft.event,
            body: draft.body,
            ends_ms,
        });
        self.keep(ttl_seconds, ts_ms, ends_ms, message.content_bytes(), |_| {
            Form::Shared(Arc::clone(&message))
        });
        self.let_go(bounds, ts_ms);
        message
    }

    /// The same where nobody reads the channel.
    pub fn append_unread(&mut self, channel: &Name, draft: Draft, bounds: Bounds, now_ms: u64) -> Cursor {
        let bytes = draft.content_bytes();
        let (Some(kind), Ok(event_bytes), true) = (
            draft.body.kind(),
            draft.event.as_ref().map(|event| u8::try_from(event.len())).transpose(),
            bytes <= shelf::MESSAGE_BYTES_MAX,
        ) else {
            // No draft is a deletion, and event names are shorter.
            return self.append(channel, draft, bounds, now_ms).cursor;
        };
        let (ts_ms, ends_ms) = self.next_place(draft.ttl_seconds, bounds, now_ms);
        self.keep(draft.ttl_seconds, ts_ms, ends_ms, bytes, |shelf| {
            let event = draft.event.as_deref().unwrap_or_default().as_bytes();
            Form::Shelved { place: shelf.put(event, draft.body.bytes()), kind, event_bytes }
        });
        self.let_go(bounds, ts_ms);
        self.head()
    }

    /// Moves the head on. When the message there is placed, and when it ends by its own TTL.
    fn next_place(&mut self, ttl_seconds: Option<u32>, bounds: Bounds, now_ms: u64) -> (u64, Option<u64>) {
        self.head += 1;
        // The clock may be set back; the order of a channel's times is kept all the same.
        let ts_ms = if self.kept.is_empty() { now_ms } else { now_ms.max(self.newest_ms) };
        // Longer than the channel keeps anything, it would be lost for the channel's reason: a gap.
        let own_ms = ttl_seconds.map(|seconds| u64::from(seconds) * 1_000);
        (ts_ms, own_ms.filter(|&own| own <= bounds.age_ms).map(|own| ts_ms + own))
    }

    /// Keeps what was placed at the head, in the form that it is given, unless its TTL is 0.
    fn keep(
        &mut self,
        ttl_seconds: Option<u32>,
        ts_ms: u64,
        ends_ms: Option<u64>,
        bytes: usize,
        form: impl FnOnce(&mut Shelf) -> Form,
    ) {
        if ttl_seconds == Some(0) {
            self.has_holes = true;
            return;
        }
        if self.kept.is_empty() {
            (self.has_holes, self.oldest_ms) = (false, ts_ms);
        }
        self.newest_ms = ts_ms;
        let ends_ms = ends_ms.unwrap_or(u64::MAX);
        self.next_end_ms = self.next_end_ms.min(ends_ms);
        let (seq, form) = (self.head, form(&mut self.shelf));
        let kept = Kept { seq, ts_ms, ends_ms, bytes: bytes as u32, form };
        self.kept_bytes += kept.cost_bytes();
        self.kept.push_back(kept);
    }

    /// Forgets all messages. Takes a place in the order, so that every earlier position is told a gap.
    pub fn delete(&mut self, channel: &Name, now_ms: u64) -> Arc<Message> {
        self.head += 1;
        self.floor = self.head;
        self.kept = VecDeque::new();
        self.shelf = Shelf::default();
        self.kept_bytes = 0;
        self.next_end_ms = u64::MAX;
        Arc::new(Message {
            channel: channel.clone(),
            cursor: self.head(),
            ts_ms: now_ms,
            event: None,
            body: Body::Deletion,
            ends_ms: None,
        })
    }

    /// Trims, unless all that is to go are a few messages too many: these go together, for memory that nobody has touched
    /// lately is slow. No reader sees them: reads trim first.
    fn let_go(&mut self, bounds: Bounds, now_ms: u64) {
        let spare = (bounds.messages / SPARE_PART).min(SPARE_MAX);
        // Nor are they worth a larger table.
        let is_full = self.kept.len() > bounds.messages && self.kept.len() == self.kept.capacity();
        if self.kept.len() > bounds.messages.max(1) + spare
            || is_full
            || self.kept_bytes > bounds.bytes
            || self.next_end_ms <= now_ms
            || self.oldest_ms.saturating_add(bounds.age_ms) <= now_ms
        {
            self.trim(bounds, now_ms);
        }
    }

    /// Lets go of what the bounds and the messages' own TTLs no longer hold.
    pub fn trim(&mut self, bounds: Bounds, now_ms: u64) {
        if self.next_end_ms <= now_ms {
            let (mut bytes, mut next_end_ms) = (0, u64::MAX);
            self.has_holes = true;
            let shelf = &mut self.shelf;
            self.kept.retain(|kept| {
                let keep = !kept.has_ended(now_ms);
                if keep {
                    bytes += kept.cost_bytes();
                    next_end_ms = next_end_ms.min(kept.ends_ms);
                } else {
                    kept.leave(shelf);
                }
                keep
            });
            self.kept_bytes = bytes;
            self.next_end_ms = next_end_ms;
            self.tidy_shelf();
        }
        // The newest stays whatever its size: it is the channel's current state.
        while self.kept.len() > bounds.messages.max(1)
            || (self.kept_bytes > bounds.bytes && self.kept.len() > 1)
        {
            self.drop_oldest();
        }
        let is_old = |ts_ms: u64| ts_ms.saturating_add(bounds.age_ms) <= now_ms;
        while is_old(self.oldest_ms)
            && let Some(oldest) = self.kept.front()
        {
            self.oldest_ms = oldest.ts_ms;
            if is_old(oldest.ts_ms) {
                self.drop_oldest();
            }
        }
        if self.kept.is_empty() && self.kept.capacity() > 0 {
            self.kept = VecDeque::new();
        }
    }

    /// Puts what is left on the shelf down anew where most has gone from between: one message that stays would else keep the
    /// memory of all those around it.
    fn tidy_shelf(&mut self) {
        if !self.shelf.is_sparse() {
            return;
        }
        let mut tidy = Shelf::default();
        for kept in &mut self.kept {
            kept.move_to(&self.shelf, &mut tidy);
        }
        self.shelf = tidy;
    }

    /// Lets go of the oldest message, as a loss. Returns the bytes that it held.
    pub fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.kept.pop_front() else { return 0 };
        self.floor = oldest.seq;
        self.oldest_ms = oldest.ts_ms;
        self.kept_bytes -= oldest.cost_bytes();
        oldest.leave(&mut self.shelf);
        oldest.cost_bytes()
    }

    /// Whether message `seq` is kept.
    pub fn holds(&self, seq: u64) -> bool {
        if !self.has_holes {
            return seq <= self.head && self.head - seq < self.kept.len() as u64;
        }
        self.kept.binary_search_by_key(&seq, |kept| kept.seq).is_ok()
    }

    /// The number of the oldest message that is kept, and when it was placed.
    pub fn oldest(&self) -> Option<(u64, u64)> {
        self.kept.front().map(|kept| (kept.seq, kept.ts_ms))
    }

    /// When the newest message that was kept was placed.
    pub fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    /// Whether a message is kept of whose time of placing `order` says `Equal`.
    pub fn has_of(&self, order: impl Fn(u64) -> Ordering) -> bool {
        self.kept.binary_search_by(|kept| order(kept.ts_ms)).is_ok()
    }

    /// A page of what is held of the channel `name` from `from` on. Trims first, so that what it gives is within the bounds.
    pub fn read(&mut self, name: &Name, from: From, max: PageMax, bounds: Bounds, now_ms: u64) -> Page {
        self.trim(bounds, now_ms);
        let (after, gap) = match from {
            From::Now | From::Newest(0) => (self.head, false),
            From::Newest(count) => {
                let skip = self.kept.len().saturating_sub(count);
                (self.kept.get(skip).map_or(self.head, |first| first.seq - 1), false)
            }
            From::After(cursor) => {
                let ahead = cursor.incarnation != self.incarnation || cursor.seq > self.head;
                if ahead || cursor.seq < self.floor { (self.floor, true) } else { (cursor.seq, false) }
            }
        };
        let first = self.kept.partition_point(|kept| kept.seq <= after);
        let (count, more) = page_len(self.kept.range(first..).map(Kept::cost_bytes), max);
        let messages = self.share(name, first..first + count);
        let next = match messages.last() {
            Some(last) if more => last.cursor.seq,
            _ => self.head,
        };
        Page { incarnation: self.incarnation, after, messages, next, head: self.head, gap }
    }

    /// The newest of what is held that `max` allows, if only the very newest does: none, if that one is too large.
    pub fn read_newest(&mut self, name: &Name, max: PageMax, bounds: Bounds, now_ms: u64) -> Page {
        self.trim(bounds, now_ms);
        let mut left = max.bytes;
        let fits = |kept: &&Kept| left.checked_sub(kept.cost_bytes()).inspect(|rest| left = *rest).is_some();
        let count = self.kept.iter().rev().take(max.messages).take_while(fits).count();
        let messages = self.share(name, self.kept.len() - count..self.kept.len());
        let after = messages.first().map_or(self.head, |first| first.cursor.seq - 1);
        Page { incarnation: self.incarnation, after, messages, next: self.head, head: self.head, gap: false }
    }

    /// Kept messages of the channel `name`, for readers, with whom history shares them from now on.
    fn share(&mut self, name: &Name, which: Range<usize>) -> Vec<Arc<Message>> {
        let share = |kept: &mut Kept| kept.share(&mut self.shelf, name, self.incarnation);
        let messages = self.kept.range_mut(which).map(share).collect();
        self.tidy_shelf();
        messages
    }
}

#[cfg(test)]
mod tests;
