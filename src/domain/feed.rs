//! A channel's recent past on one worker: a lane of framed bytes for each encoding in use, and the recent messages from
//! which resumes and polls are answered without asking the channel's home.
//! Owns its link to the home and the order in which messages come in. Never frames by itself and never sends: framing is
//! passed in, sending is the fan-out's.

use std::collections::VecDeque;
use std::sync::Arc;

use super::channel::Name;
use super::cursor::Cursor;
use super::history::Bounds;
use super::lane::{Encoding, Lane, Reader, Standing};
use super::message::{Body, Message};
use super::page::{From, Page, PageMax, page_len};

/// How a feed stands to its channel's home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Asked to join; the answer will hold all that came before it.
    Joining,
    Live,
}

/// What came of a message that arrived from home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    Placed,
    /// Known already, or part of an answer still to come.
    Ignored,
    /// One before it is missing: the feed must join again.
    Hole,
}

/// What a feed may keep.
#[derive(Debug, Clone, Copy)]
pub struct FeedBounds {
    /// Of framed bytes in each lane, and of recent messages.
    pub bytes: usize,
    /// A feed keeps no message that history would not.
    pub history: Bounds,
}

/// What a feed takes beside its name, messages and lanes: itself, and its place in the table of names.
const FEED_BYTES: usize = 320;

/// One channel on one worker.
#[derive(Debug)]
pub struct Feed {
    pub name: Name,
    pub link: Link,
    pub lanes: Vec<Lane>,
    /// Kept for polls until then, without readers (ms).
    pub leased_until_ms: u64,
    /// In the fan-out's queue, or in the middle of its pass.
    pub queued: bool,
    /// When the oldest message was placed for which no pass has begun (µs of the node's clock); 0: there is none.
    pub placed_us: u64,
    /// What its worker counted of it last.
    pub counted_bytes: usize,
    incarnation: u64,
    head: u64,
    recent: VecDeque<Arc<Message>>,
    recent_after: u64,
    recent_bytes: usize,
    /// The oldest of `recent` is of then, or later: the message itself, which no cache holds any more, is seldom looked at.
    oldest_ms: u64,
}

impl Feed {
    pub fn new(name: Name) -> Self {
        Self {
            name,
            link: Link::Joining,
            lanes: Vec::new(),
            leased_until_ms: 0,
            queued: false,
            placed_us: 0,
            counted_bytes: 0,
            incarnation: 0,
            head: 0,
            recent: VecDeque::new(),
            recent_after: 0,
            recent_bytes: 0,
            oldest_ms: 0,
        }
    }

    pub fn head(&self) -> Cursor {
        self.at(self.head)
    }

    pub fn at(&self, seq: u64) -> Cursor {
        Cursor { incarnation: self.incarnation, seq }
    }

    pub fn has_readers(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.readers.is_empty())
    }

    /// Whether any reader is behind the head and could be sent to.
    pub fn has_work(&self) -> bool {
        self.lanes.iter().any(|lane| {
            lane.readers.iter().any(|reader| reader.standing == Standing::Live && reader.seq < self.head)
        })
    }

    /// The home's answer to joining. What is between the feed's head and the page is for each reader to catch up with.
    pub fn on_joined(
        &mut self,
        page: Page,
        bounds: FeedBounds,
        frame: &mut impl FnMut(Encoding, &Message, &mut Vec<u8>) -> u16,
    ) {
        self.link = Link::Live;
        if self.incarnation != page.incarnation || page.after > self.head {
            self.incarnation = page.incarnation;
            self.head = page.after;
            self.recent.clear();
            self.recent_bytes = 0;
            self.recent_after = page.after;
            for lane in &mut self.lanes {
                lane.clear(page.after);
            }
        }
        for message in &page.messages {
            if message.cursor.seq > self.head {
                self.skip_to(message.cursor.seq - 1);
                self.place(Arc::clone(message), bounds, frame);
            }
        }
        self.skip_to(page.head);
    }

    /// A message from home.
    pub fn on_message(
        &mut self,
        message: Arc<Message>,
        bounds: FeedBounds,
        frame: &mut impl FnMut(Encoding, &Message, &mut Vec<u8>) -> u16,
    ) -> Arrival {
        let seq = message.cursor.seq;
        if self.link == Link::Joining || message.cursor.incarnation != self.incarnation || seq <= self.head {
            return Arrival::Ignored;
        }
        if seq != self.head + 1 {
            self.link = Link::Joining;
            return Arrival::Hole;
        }
        self.place(message, bounds, frame);
        Arrival::Placed
    }

    fn place(
        &mut self,
        message: Arc<Message>,
        bounds: FeedBounds,
        frame: &mut impl FnMut(Encoding, &Message, &mut Vec<u8>) -> u16,
    ) {
        self.head = message.cursor.seq;
        let deletion = message.body == Body::Deletion;
        for lane in &mut self.lanes {
            // Raw cannot tell a gap: its readers find their position gone and are closed.
            if !lane.is_framed() || (deletion && lane.encoding == Encoding::Raw) {
                lane.clear(self.head);
            } else {
                lane.push(&message, bounds.bytes, frame);
            }
        }
        if deletion {
            self.recent.clear();
            self.recent_bytes = 0;
            self.recent_after = self.head;
            return;
        }
        self.recent_bytes += message.cost_bytes();
        let now_ms = message.ts_ms;
        if self.recent.is_empty() {
            self.oldest_ms = now_ms;
        }
        self.recent.push_back(message);
        self.trim(bounds, now_ms);
    }

    /// The numbers up to `seq` ended by their own TTL: no loss.
    fn skip_to(&mut self, seq: u64) {
        while self.head < seq {
            self.head += 1;
            for lane in &mut self.lanes {
                if lane.is_framed() {
                    lane.push_nothing();
                } else {
                    lane.clear(self.head);
                }
            }
        }
    }

    /// Lets go of recent messages that the bounds, or history's, no longer hold.
    pub fn trim(&mut self, bounds: FeedBounds, now_ms: u64) {
        let bytes_max = bounds.bytes.min(bounds.history.bytes);
        let is_old = |ts_ms: u64| ts_ms.saturating_add(bounds.history.age_ms) <= now_ms;
        loop {
            let over = self.recent.len() > bounds.history.messages || self.recent_bytes > bytes_max;
            // The newest stays whatever its size: readers that wait for it may find it nowhere else (a TTL of 0).
            let goes = over && self.recent.len() > 1;
            if !goes && !is_old(self.oldest_ms) {
                break;
            }
            let Some(oldest) = self.recent.front() else { break };
            self.oldest_ms = oldest.ts_ms;
            if !goes && !is_old(oldest.ts_ms) {
                break;
            }
            self.recent_bytes -= oldest.cost_bytes();
            self.recent_after = oldest.cursor.seq;
            self.recent.pop_front();
        }
        if self.recent.is_empty() && self.recent.capacity() > 0 {
            self.recent = VecDeque::new();
        }
    }

    /// Answers what the feed can answer as the home would; `None`: ask the home.
    pub fn read(&mut self, from: From, max: PageMax, bounds: FeedBounds, now_ms: u64) -> Option<Page> {
        if self.link == Link::Joining {
            return None;
        }
        self.trim(bounds, now_ms);
        let after = match from {
            From::Now | From::Newest(0) => self.head,
            From::Newest(count) => {
                let held = self.recent.iter().filter(|message| !message.has_ended(now_ms)).count();
                if held < count {
                    return None;
                }
                let alive = self.recent.iter().rev().filter(|message| !message.has_ended(now_ms));
                alive.take(count).last()?.cursor.seq - 1
            }
            From::After(cursor) => {
                let known = cursor.incarnation == self.incarnation
                    && (self.recent_after..=self.head).contains(&cursor.seq);
                if !known {
                    return None;
                }
                cursor.seq
            }
        };
        let first = self.recent.partition_point(|message| message.cursor.seq <= after);
        let alive = || self.recent.range(first..).filter(|message| !message.has_ended(now_ms));
        let (count, more) = page_len(alive().map(|message| message.cost_bytes()), max);
        let messages: Vec<Arc<Message>> = alive().take(count).map(Arc::clone).collect();
        let next = match messages.last() {
            Some(last) if more => last.cursor.seq,
            _ => self.head,
        };
        Some(Page { incarnation: self.incarnation, after, messages, next, head: self.head, gap: false })
    }

    /// What has come after `seq` for one who was waiting: messages that were for that moment alone included. `None`: not
    /// all of it is held.
    pub fn read_live(&self, seq: u64, max: PageMax) -> Option<Page> {
        if self.link == Link::Joining || seq < self.recent_after || seq > self.head {
            return None;
        }
        let first = self.recent.partition_point(|message| message.cursor.seq <= seq);
        let live = self.recent.range(first..);
        let (count, more) = page_len(live.clone().map(|message| message.cost_bytes()), max);
        let messages: Vec<Arc<Message>> = live.take(count).map(Arc::clone).collect();
        let next = match messages.last() {
            Some(last) if more => last.cursor.seq,
            _ => self.head,
        };
        Some(Page { incarnation: self.incarnation, after: seq, messages, next, head: self.head, gap: false })
    }

    /// Adds a reader to the lane of its encoding. Returns where it stands: lane and index.
    pub fn add_reader(&mut self, encoding: Encoding, reader: Reader) -> (u8, u32) {
        let lane = match self.lanes.iter().position(|lane| lane.encoding == encoding) {
            Some(lane) => lane,
            None => {
                self.lanes.reserve_exact(1);
                self.lanes.push(Lane::new(encoding, self.head));
                self.lanes.len() - 1
            }
        };
        let readers = &mut self.lanes[lane].readers;
        if readers.is_empty() {
            readers.reserve_exact(1);
        }
        readers.push(reader);
        (lane as u8, (readers.len() - 1) as u32)
    }

    /// Takes a reader out. The one that stood last takes its place: it is returned with its old index.
    pub fn remove_reader(&mut self, lane: u8, index: u32) -> (Reader, Option<(u32, u32)>) {
        let lane = &mut self.lanes[usize::from(lane)];
        let gone = lane.readers.swap_remove(index as usize);
        let moved = lane.readers.get(index as usize).map(|moved| (moved.slot, lane.readers.len() as u32));
        if lane.readers.is_empty() {
            let head = self.head;
            lane.readers = Vec::new();
            lane.clear(head);
        } else if lane.readers.capacity() > 4 * lane.readers.len() + 64 {
            lane.readers.shrink_to(2 * lane.readers.len());
        }
        (gone, moved)
    }

    pub fn reader_mut(&mut self, lane: u8, index: u32) -> &mut Reader {
        &mut self.lanes[usize::from(lane)].readers[index as usize]
    }

    /// Bytes of messages, framed and not.
    pub fn held_bytes(&self) -> usize {
        self.recent_bytes + self.lanes.iter().map(Lane::held_bytes).sum::<usize>()
    }

    /// Memory that the feed takes, with messages that history may hold too.
    pub fn kept_bytes(&self) -> usize {
        FEED_BYTES
            + self.name.as_str().len()
            + self.recent_bytes
            + self.recent.capacity() * size_of::<Arc<Message>>()
            + self.lanes.iter().map(Lane::kept_bytes).sum::<usize>()
    }

    /// Lets go of what is beyond `bounds`, in the lanes too: readers that were there go on from history. What everybody here
    /// has, history has for those who come back.
    pub fn shrink(&mut self, bounds: FeedBounds, now_ms: u64) {
        self.trim(bounds, now_ms);
        if self.lanes.iter().all(|lane| lane.readers.iter().all(|reader| reader.seq >= self.head)) {
            self.recent = VecDeque::new();
            self.recent_bytes = 0;
            self.recent_after = self.head;
        }
        for lane in &mut self.lanes {
            lane.shrink(bounds.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::History;
    use super::super::message::Draft;
    use super::*;

    const BOUNDS: FeedBounds =
        FeedBounds { bytes: 1_000, history: Bounds { messages: 100, bytes: 100_000, age_ms: 60_000 } };
    const ALL: PageMax = PageMax { messages: 100, bytes: usize::MAX };

    fn frame(_: Encoding, message: &Message, out: &mut Vec<u8>) -> u16 {
        out.extend_from_slice(message.body.bytes());
        out.push(b'\n');
        1
    }

    fn reader(seq: u64) -> Reader {
        Reader {
            slot: 1,
            fd: -1,
            seq,
            bytes: 0,
            messages: 0,
            sent_tick: 0,
            standing: Standing::Live,
            sealed: false,
            shared: false,
            joined: false,
        }
    }

    fn message(history: &mut History, text: &str, ttl_seconds: Option<u32>) -> Arc<Message> {
        let name = Name::parse("a").expect("a name");
        let draft = Draft { event: None, body: Body::Text(text.into()), ttl_seconds };
        history.append(&name, draft, BOUNDS.history, 0)
    }

    fn joined(history: &mut History) -> Feed {
        let mut feed = Feed::new(Name::parse("a").expect("a name"));
        feed.on_joined(newest(history), BOUNDS, &mut frame);
        feed
    }

    fn newest(history: &mut History) -> Page {
        history.read(&Name::parse("a").expect("a name"), From::Newest(100), ALL, BOUNDS.history, 0)
    }

    #[test]
    fn a_feed_that_shrinks_gives_memory_back_and_keeps_its_place() {
        let mut history = History::new(1);
        let mut feed = joined(&mut history);
        feed.add_reader(Encoding::Raw, reader(0));
        let wide = FeedBounds { bytes: 100_000, ..BOUNDS };
        for _ in 0..100 {
            feed.on_message(message(&mut history, &"x".repeat(499), None), wide, &mut frame);
        }
        let before = feed.kept_bytes();
        assert!(before > 100_000, "{before}");
        feed.shrink(BOUNDS, 0);
        let after = feed.kept_bytes();
        assert!(after < 5_000, "{after}");
        assert_eq!(feed.lanes[0].bytes_after(99).len(), 500);
        assert!(feed.lanes[0].holds(98) && !feed.lanes[0].holds(97));
        feed.on_message(message(&mut history, "next", None), wide, &mut frame);
        assert_eq!(feed.lanes[0].bytes_after(100), b"next\n");
        assert!(feed.read_live(100, ALL).is_some_and(|page| page.messages.len() == 1));
        feed.reader_mut(0, 0).seq = 101;
        feed.shrink(BOUNDS, 0);
        assert!(feed.kept_bytes() < 2_500 && feed.read_live(100, ALL).is_none());
        assert!(feed.read_live(101, ALL).is_some_and(|page| page.messages.is_empty()));
    }

    #[test]
    fn ended_messages_are_skipped_and_fill_their_place() {
        let mut history = History::new(1);
        message(&mut history, "kept", None);
        message(&mut history, "gone", Some(0));
        let third = message(&mut history, "third", None);
        let mut feed = joined(&mut history);
        assert_eq!(feed.head().seq, 3);
        let page = feed.read(From::After(feed.at(1)), ALL, BOUNDS, 0).expect("held");
        assert_eq!((page.messages.len(), page.messages[0].cursor), (1, third.cursor));
        assert_eq!(feed.read(From::Newest(2), ALL, BOUNDS, 0).expect("held").after, 0);
        assert!(feed.read(From::Newest(3), ALL, BOUNDS, 0).is_none());
    }

    #[test]
    fn a_hole_is_noticed_and_joining_again_fills_it() {
        let mut history = History::new(1);
        let mut feed = joined(&mut history);
        feed.add_reader(Encoding::Sse, reader(0));
        feed.on_message(message(&mut history, "1", None), BOUNDS, &mut frame);
        message(&mut history, "2", None);
        let third = message(&mut history, "3", None);
        assert_eq!(feed.on_message(third, BOUNDS, &mut frame), Arrival::Hole);
        feed.on_joined(newest(&mut history), BOUNDS, &mut frame);
        assert_eq!(feed.lanes[0].bytes_after(0), b"1\n2\n3\n");
    }

    #[test]
    fn a_deletion_is_in_every_lane_but_raw() {
        let mut history = History::new(1);
        let mut feed = joined(&mut history);
        feed.add_reader(Encoding::Raw, reader(0));
        feed.add_reader(Encoding::V1, reader(0));
        feed.on_message(message(&mut history, "1", None), BOUNDS, &mut frame);
        let deletion = history.delete(&Name::parse("a").expect("a name"), 0);
        feed.on_message(deletion, BOUNDS, &mut frame);
        assert!(!feed.lanes[0].holds(0) && feed.lanes[1].holds(0));
        assert_eq!(feed.lanes[1].framed_after(1).next().map(|framed| framed.tail), Some(None));
        assert!(feed.read(From::After(feed.at(0)), ALL, BOUNDS, 0).is_none());
    }
}
