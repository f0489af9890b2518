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
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { messages: 3, bytes: 1 << 20, age_ms: 60_000 };
    const ALL: PageMax = PageMax { messages: 100, bytes: usize::MAX };

    fn draft(text: &str, ttl_seconds: Option<u32>) -> Draft {
        Draft { event: None, body: Body::Text(text.into()), ttl_seconds }
    }

    fn name() -> Name {
        Name::parse("a").expect("a name")
    }

    /// Read by somebody when it comes, and by nobody: readers are told the same.
    const BOTH: [bool; 2] = [true, false];

    fn add(history: &mut History, is_read: bool, draft: Draft, bounds: Bounds, now_ms: u64) {
        if is_read {
            history.append(&name(), draft, bounds, now_ms);
        } else {
            history.append_unread(&name(), draft, bounds, now_ms);
        }
    }

    fn seen(page: &Page) -> (Vec<String>, bool) {
        let texts = page.messages.iter().map(|m| String::from_utf8_lossy(m.body.bytes()).into_owned());
        (texts.collect(), page.gap)
    }

    fn after(seq: u64) -> From {
        From::After(Cursor { incarnation: 7, seq })
    }

    #[test]
    fn what_is_read_leaves_the_shelf_and_is_shared() {
        const LARGE: Bounds = Bounds { messages: 1_000, ..BOUNDS };
        let mut history = History::new(7);
        for number in 0..100 {
            add(&mut history, false, draft(&format!("{number:01000}"), None), LARGE, 0);
        }
        let unread = |history: &History| {
            history.kept.iter().filter(|kept| matches!(kept.form, Form::Shelved { .. })).count()
        };
        let few = PageMax { messages: 100, bytes: 10 * (OVERHEAD_BYTES + 1_000) };
        let newest = history.read_newest(&name(), few, LARGE, 0);
        assert_eq!(
            (newest.after, newest.messages.len(), unread(&history)),
            (90, 10, 90),
            "no more than asked for"
        );
        let page = history.read(&name(), after(95), ALL, LARGE, 0);
        for (one, other) in page.messages.iter().zip(&newest.messages[5..]) {
            assert!(Arc::ptr_eq(one, other), "one message for all that read it");
        }
        let page = history.read(&name(), after(0), ALL, LARGE, 0);
        let texts: Vec<String> = (0..100).map(|number| format!("{number:01000}")).collect();
        assert_eq!(seen(&page).0, texts);
        assert_eq!((unread(&history), history.shelf.slack_bytes()), (0, 0), "and nothing is left there");
        add(&mut history, false, draft(&"x".repeat(shelf::MESSAGE_BYTES_MAX + 1), None), LARGE, 0);
        assert_eq!(unread(&history), 0, "what is large is not put there");
        let none = PageMax { messages: 100, bytes: 1_000 };
        let newest = history.read_newest(&name(), none, LARGE, 0);
        assert_eq!((newest.after, newest.messages.len(), newest.gap), (101, 0, false), "what is too large");
    }

    #[test]
    fn one_that_is_never_read_keeps_nothing_of_those_that_were() {
        const MANY: Bounds = Bounds { messages: 1_000, bytes: 1 << 20, age_ms: 1 << 40 };
        let mut history = History::new(7);
        add(&mut history, false, draft("stays", None), MANY, 0);
        for number in 0..2_000 {
            add(&mut history, false, draft("goes", Some(1)), MANY, number * 1_000);
            history.read(&name(), From::Newest(1), ALL, MANY, number * 1_000);
        }
        assert!(history.bytes() < 1_000, "{}", history.bytes());
    }

    #[test]
    fn gaps() {
        for is_read in BOTH {
            let mut history = History::new(7);
            for text in ["1", "2", "3", "4", "5"] {
                add(&mut history, is_read, draft(text, None), BOUNDS, 0);
            }
            let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            for (what, from, want, gap) in [
                ("dropped by count", after(0), texts(&["3", "4", "5"]), true),
                ("last dropped was seen", after(2), texts(&["3", "4", "5"]), false),
                ("inside", after(4), texts(&["5"]), false),
                ("head", after(5), texts(&[]), false),
                ("ahead of the head", after(6), texts(&["3", "4", "5"]), true),
                (
                    "another channel's",
                    From::After(Cursor { incarnation: 8, seq: 5 }),
                    texts(&["3", "4", "5"]),
                    true,
                ),
                ("newest", From::Newest(2), texts(&["4", "5"]), false),
                ("newest of fewer", From::Newest(9), texts(&["3", "4", "5"]), false),
                ("now", From::Now, texts(&[]), false),
            ] {
                assert_eq!(seen(&history.read(&name(), from, ALL, BOUNDS, 0)), (want, gap), "{what}");
            }
            history.delete(&name(), 0);
            assert_eq!(seen(&history.read(&name(), after(5), ALL, BOUNDS, 0)), (vec![], true), "deleted");
            assert_eq!(
                seen(&history.read(&name(), after(6), ALL, BOUNDS, 0)),
                (vec![], false),
                "after the deletion"
            );
        }
    }

    #[test]
    fn the_newest_message_is_kept_whatever_its_size() {
        for is_read in BOTH {
            let bounds = Bounds { bytes: 200, ..BOUNDS };
            let big = "x".repeat(1_000);
            let mut history = History::new(7);
            add(&mut history, is_read, draft("small", None), bounds, 0);
            add(&mut history, is_read, draft(&big, None), bounds, 0);
            assert_eq!(
                seen(&history.read(&name(), From::Newest(1), ALL, bounds, 0)),
                (vec![big.clone()], false)
            );
            assert_eq!(seen(&history.read(&name(), after(1), ALL, bounds, 0)), (vec![big.clone()], false));
            assert_eq!(
                seen(&history.read(&name(), after(0), ALL, bounds, 0)),
                (vec![big], true),
                "the one before it went"
            );
            add(&mut history, is_read, draft("small", None), bounds, 0);
            assert_eq!(
                seen(&history.read(&name(), after(1), ALL, bounds, 0)),
                (vec!["small".to_owned()], true)
            );
            // Age still ends it, and so do deletion and the node's limit, which take it by name.
            assert_eq!(seen(&history.read(&name(), after(2), ALL, bounds, 60_000)), (vec![], true));
            add(&mut history, is_read, draft(&"x".repeat(1_000), None), bounds, 60_000);
            assert_eq!((history.drop_oldest(), history.len()), (1_160, 0));
        }
    }

    #[test]
    fn own_ttl_is_no_loss() {
        for is_read in BOTH {
            let mut history = History::new(7);
            add(&mut history, is_read, draft("kept", None), BOUNDS, 0);
            add(&mut history, is_read, draft("short", Some(1)), BOUNDS, 0);
            add(&mut history, is_read, draft("never", Some(0)), BOUNDS, 0);
            assert_eq!(history.len(), 2);
            let page = history.read(&name(), after(0), ALL, BOUNDS, 1_000);
            assert_eq!((seen(&page), page.next), ((vec!["kept".to_owned()], false), 3));
            assert_eq!(
                seen(&history.read(&name(), after(0), ALL, BOUNDS, 60_000)),
                (vec![], true),
                "age is a loss"
            );
            assert_eq!(history.bytes(), 0);
        }
    }

    #[test]
    fn a_ttl_beyond_the_channels_age_is_cut_and_its_end_is_a_gap() {
        for is_read in BOTH {
            let mut history = History::new(7);
            add(&mut history, is_read, draft("long", Some(61)), BOUNDS, 0);
            assert_eq!(seen(&history.read(&name(), after(0), ALL, BOUNDS, 60_000)), (vec![], true));
        }
    }

    #[test]
    fn pages_join_up() {
        for is_read in BOTH {
            let mut history = History::new(7);
            for text in ["1", "2", "3"] {
                add(&mut history, is_read, draft(text, None), BOUNDS, 0);
            }
            let one = PageMax { messages: 1, bytes: 1 };
            let (mut at, mut all) = (0, Vec::new());
            while at < 3 {
                let page = history.read(&name(), after(at), one, BOUNDS, 0);
                all.extend(seen(&page).0);
                at = page.next;
            }
            assert_eq!(all, ["1", "2", "3"]);
        }
    }

    /// A message that stays does not keep the memory of all those that came with it and ended.
    #[test]
    fn what_ends_between_others_gives_its_memory_back() {
        let bounds = Bounds { messages: 10_000, bytes: usize::MAX, ..BOUNDS };
        let mut history = History::new(7);
        for number in 0..10_000 {
            let ttl_seconds = if number % 100 == 0 { None } else { Some(1) };
            add(&mut history, false, draft(&format!("{number:0100}"), ttl_seconds), bounds, 0);
        }
        assert!(history.bytes() > 1_000_000);
        history.trim(bounds, 1_000);
        assert_eq!(history.len(), 100);
        assert!(history.bytes() < 100 * 260 + 32 * 1_024, "{}", history.bytes());
        let (texts, gap) = seen(&history.read(&name(), after(0), ALL, bounds, 1_000));
        let numbers: Vec<usize> = texts.iter().map(|text| text.parse().expect("a number")).collect();
        assert_eq!((numbers, gap), ((0..100).map(|number| number * 100).collect(), false));
    }

    proptest::proptest! {
        #[test]
        fn it_knows_what_it_holds(
            steps in proptest::collection::vec((0_u8..12, 0_u64..40_000, proptest::bool::ANY), 1..60),
        ) {
            let bounds = Bounds { messages: 5, ..BOUNDS };
            let (mut history, mut now_ms) = (History::new(7), 0);
            for (at, (what, pause_ms, is_read)) in steps.into_iter().enumerate() {
                match what {
                    0 => drop(history.delete(&name(), now_ms)),
                    1 => add(&mut history, is_read, draft("brief", Some(0)), bounds, now_ms),
                    2 | 3 => add(&mut history, is_read, draft("short", Some(20)), bounds, now_ms),
                    4 => drop(history.drop_oldest()),
                    5 | 6 => now_ms += pause_ms,
                    7 => add(&mut history, is_read, draft(&"y".repeat(at * 100), None), bounds, now_ms),
                    _ => add(&mut history, is_read, draft("x", None), bounds, now_ms),
                }
                history.trim(bounds, now_ms);
                for seq in 0..=history.head + 2 {
                    let holds = history.kept.iter().any(|kept| kept.seq == seq);
                    proptest::prop_assert_eq!(history.holds(seq), holds, "{}", seq);
                }
                let is_old = |kept: &Kept| kept.ts_ms + bounds.age_ms <= now_ms;
                proptest::prop_assert!(!history.kept.iter().any(is_old));
                proptest::prop_assert!(history.kept.len() <= bounds.messages);
                let bytes: usize = history.kept.iter().map(Kept::cost_bytes).sum();
                proptest::prop_assert_eq!(history.kept_bytes, bytes);
                proptest::prop_assert!(history.bytes() >= bytes);
            }
        }

        /// What nobody read when it came is, when it is asked for, what it would be otherwise.
        #[test]
        fn a_shelved_message_is_the_same(
            messages in proptest::collection::vec((0_u8..3, "\\PC{0,40}", proptest::option::of("[a-z]{1,64}"), 0_u32..90), 1..12),
        ) {
            let [mut read, mut unread] = [History::new(7), History::new(7)];
            let bounds = Bounds { messages: 10, ..BOUNDS };
            for (kind, text, event, ttl) in messages {
                let body = match kind {
                    0 => Body::Json(text.into()),
                    1 => Body::Text(text.into()),
                    _ => Body::Binary(text.into_bytes().iter().map(|byte| byte ^ 0x80).collect()),
                };
                let draft = Draft { event: event.map(Into::into), body, ttl_seconds: Some(ttl).filter(|&ttl| ttl < 80) };
                add(&mut read, true, draft.clone(), bounds, 5);
                add(&mut unread, false, draft, bounds, 5);
            }
            for now_ms in [5, 20_000, 65_005] {
                let [read, unread] =
                    [&mut read, &mut unread].map(|history| history.read(&name(), after(0), ALL, bounds, now_ms));
                proptest::prop_assert_eq!(format!("{read:?}"), format!("{unread:?}"));
            }
        }
    }
}
