//! A channel's recent past on one worker: its messages, already framed once for each encoding in use, and the readers'
//! positions in it. A reader is a position, not a queue.
//! Owns the lanes (framed bytes, readers) and the recent messages from which resumes and polls are answered without
//! asking the channel's home. Never frames by itself and never sends: framing is passed in, sending is the fan-out's.

use std::collections::VecDeque;
use std::sync::Arc;

use super::channel::Name;
use super::cursor::Cursor;
use super::history::{Bounds, From, Page, PageMax, take_page};
use super::message::{Body, Message};

/// How many encodings there are.
pub const ENCODINGS: usize = Encoding::Poll as usize + 1;

/// In which form a reader takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Sse,
    SseEnvelope,
    Raw,
    V1,
    /// Held long polls: they are answered from the messages; nothing is framed.
    Poll,
}

/// What a reader waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// For messages.
    Live,
    /// For its socket to take more; passes leave it alone.
    Blocked,
    /// For a page of history; passes leave it alone.
    CatchUp,
}

/// One connection's place in one channel.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    pub slot: u32,
    pub fd: i32,
    /// The last sequence number that it has, or that is in what it is owed.
    pub seq: u64,
    pub bytes: u64,
    pub messages: u32,
    /// The tick in which something was last sent to it.
    pub sent_tick: u32,
    pub standing: Standing,
    /// Its connection encrypts what it sends: the lane's bytes are not what goes out.
    pub sealed: bool,
    /// Its connection reads other channels too: two sends to it must not be in one batch.
    pub shared: bool,
    /// Reads several channels by SSE: each event ends with an id line of its own.
    pub joined: bool,
}

/// One framed message of a lane, as bytes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Framed<'l> {
    pub seq: u64,
    pub bytes: &'l [u8],
    /// How many of the last bytes are the id line that ends an event; `None`: not a message but a deletion.
    pub tail: Option<u16>,
}

#[derive(Debug, Clone, Copy)]
struct End {
    at: u64,
    tail: Option<u16>,
}

/// The framed bytes of one encoding, and who reads them.
#[derive(Debug)]
pub struct Lane {
    pub encoding: Encoding,
    pub readers: Vec<Reader>,
    /// The lane holds the messages after this one.
    after: u64,
    buf: Vec<u8>,
    /// Where the first message held begins in `buf`; bytes before it are dead.
    live_from: usize,
    /// Absolute offset of `buf[0]`.
    base: u64,
    ends: VecDeque<End>,
}

/// A lane that a few read gives its memory back when all have read it; one that many read keeps this much.
const KEPT_BYTES: usize = 64 * 1024;
const FEW_READERS: usize = 64;

impl Lane {
    fn new(encoding: Encoding, after: u64) -> Self {
        Self {
            encoding,
            readers: Vec::new(),
            after,
            buf: Vec::new(),
            live_from: 0,
            base: 0,
            ends: VecDeque::new(),
        }
    }

    pub fn holds(&self, seq: u64) -> bool {
        seq >= self.after
    }

    fn head(&self) -> u64 {
        self.after + self.ends.len() as u64
    }

    fn offset(&self, seq: u64) -> usize {
        match seq.checked_sub(self.after + 1) {
            None => self.live_from,
            Some(index) => (self.ends[index as usize].at - self.base) as usize,
        }
    }

    /// All bytes after position `seq`, which the lane holds.
    pub fn bytes_after(&self, seq: u64) -> &[u8] {
        &self.buf[self.offset(seq)..]
    }

    /// Of the bytes after position `seq`, which the lane holds, those of whole messages that are no more than `bytes_max`,
    /// or of the first message alone; and the last of these messages.
    pub fn some_after(&self, seq: u64, bytes_max: usize) -> (u64, &[u8]) {
        let all = self.bytes_after(seq);
        if all.len() <= bytes_max {
            return (self.head(), all);
        }
        let from = self.offset(seq);
        let until = self.base + (from + bytes_max) as u64;
        let first = (seq - self.after) as usize;
        let whole = self.ends.range(first..).take_while(|end| end.at <= until).count().max(1) as u64;
        (seq + whole, &self.buf[from..self.offset(seq + whole)])
    }

    /// The messages after position `seq`, which the lane holds, one by one.
    pub fn framed_after(&self, seq: u64) -> impl Iterator<Item = Framed<'_>> {
        let mut from = self.offset(seq);
        (seq + 1..=self.head()).map(move |seq| {
            let end = self.ends[(seq - self.after - 1) as usize];
            let to = (end.at - self.base) as usize;
            let bytes = &self.buf[from..to];
            from = to;
            Framed { seq, bytes, tail: end.tail }
        })
    }

    /// Of a send of all after `seq` that took `sent` bytes: the last message that went out at least in part, and what
    /// is still missing of it.
    pub fn split(&self, seq: u64, sent: usize) -> (u64, &[u8]) {
        let reached = self.offset(seq) + sent;
        let at = self.base + reached as u64;
        let first = (seq - self.after) as usize;
        let whole = self.ends.range(first..).take_while(|end| end.at <= at).count() as u64;
        let boundary = self.offset(seq + whole);
        if boundary == reached {
            return (seq + whole, &[]);
        }
        let end = self.offset(seq + whole + 1);
        (seq + whole + 1, &self.buf[reached..end])
    }

    fn append(&mut self, tail: Option<u16>) {
        self.ends.push_back(End { at: self.base + self.buf.len() as u64, tail });
    }

    /// Drops the oldest messages until the rest fits; the newest always stays.
    fn shorten(&mut self, bytes_max: usize) {
        while self.buf.len() - self.live_from > bytes_max && self.ends.len() > 1 {
            if let Some(end) = self.ends.pop_front() {
                self.live_from = (end.at - self.base) as usize;
                self.after += 1;
            }
        }
        if self.live_from > self.buf.len() / 2 && self.live_from > KEPT_BYTES {
            self.buf.drain(..self.live_from);
            self.base += self.live_from as u64;
            self.live_from = 0;
        }
    }

    /// Everybody has read everything up to `head`.
    pub fn clear(&mut self, head: u64) {
        self.after = head;
        self.base += self.buf.len() as u64;
        self.live_from = 0;
        if self.readers.len() <= FEW_READERS || self.buf.capacity() > KEPT_BYTES {
            self.buf = Vec::new();
            self.ends = VecDeque::new();
        } else {
            self.buf.clear();
            self.ends.clear();
        }
    }

    pub fn held_bytes(&self) -> usize {
        self.buf.len() - self.live_from
    }

    /// Memory that the lane takes, its readers' places included.
    pub fn kept_bytes(&self) -> usize {
        self.buf.capacity()
            + self.ends.capacity() * size_of::<End>()
            + self.readers.capacity() * size_of::<Reader>()
    }

    /// As [`shorten`](Self::shorten), and gives back what is not in use then.
    fn shrink(&mut self, bytes_max: usize) {
        self.shorten(bytes_max);
        if self.live_from > 0 {
            self.buf.drain(..self.live_from);
            self.base += self.live_from as u64;
            self.live_from = 0;
        }
        if self.buf.capacity() > 2 * self.buf.len() {
            self.buf.shrink_to_fit();
            self.ends.shrink_to_fit();
        }
    }
}

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
            let unframed = lane.readers.is_empty() || lane.encoding == Encoding::Poll;
            if unframed || (deletion && lane.encoding == Encoding::Raw) {
                // Raw cannot tell a gap: its readers find their position gone and are closed.
                lane.clear(self.head);
                continue;
            }
            let tail = frame(lane.encoding, &message, &mut lane.buf);
            lane.append((!deletion).then_some(tail));
            lane.shorten(bounds.bytes);
        }
        if deletion {
            self.recent.clear();
            self.recent_bytes = 0;
            self.recent_after = self.head;
            return;
        }
        self.recent_bytes += message.cost_bytes();
        let now_ms = message.ts_ms;
        self.recent.push_back(message);
        self.trim(bounds, now_ms);
    }

    /// The numbers up to `seq` ended by their own TTL: no loss.
    fn skip_to(&mut self, seq: u64) {
        while self.head < seq {
            self.head += 1;
            for lane in &mut self.lanes {
                if lane.readers.is_empty() || lane.encoding == Encoding::Poll {
                    lane.clear(self.head);
                } else {
                    lane.append(Some(0));
                }
            }
        }
    }

    /// Lets go of recent messages that the bounds, or history's, no longer hold.
    pub fn trim(&mut self, bounds: FeedBounds, now_ms: u64) {
        while let Some(oldest) = self.recent.front() {
            let old = oldest.ts_ms.saturating_add(bounds.history.age_ms) <= now_ms;
            let bytes_max = bounds.bytes.min(bounds.history.bytes);
            let over = self.recent.len() > bounds.history.messages || self.recent_bytes > bytes_max;
            // The newest stays whatever its size: readers that wait for it may find it nowhere else (a TTL of 0).
            if !old && (!over || self.recent.len() == 1) {
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
        let alive = self.recent.range(first..).filter(|message| !message.has_ended(now_ms));
        let (messages, more) = take_page(alive, max);
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
        let (messages, more) = take_page(self.recent.range(first..), max);
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
        let page = history.read(From::Newest(100), ALL, BOUNDS.history, 0);
        feed.on_joined(page, BOUNDS, &mut frame);
        feed
    }

    #[test]
    fn a_short_send_is_split_at_the_message() {
        let mut history = History::new(1);
        let mut feed = joined(&mut history);
        feed.add_reader(Encoding::Sse, reader(0));
        for text in ["one", "two", "three"] {
            feed.on_message(message(&mut history, text, None), BOUNDS, &mut frame);
        }
        let lane = &feed.lanes[0];
        assert_eq!(lane.bytes_after(0), b"one\ntwo\nthree\n");
        assert_eq!(lane.bytes_after(2), b"three\n");
        for (sent, want) in [
            (0, (0, &b""[..])),
            (1, (1, b"ne\n")),
            (4, (1, b"")),
            (5, (2, b"wo\n")),
            (13, (3, b"\n")),
            (14, (3, b"")),
        ] {
            assert_eq!(lane.split(0, sent), want, "sent {sent}");
        }
        assert_eq!(lane.split(1, 4), (2, &b""[..]));
        assert_eq!(lane.split(1, 6), (3, &b"ree\n"[..]));
    }

    #[test]
    fn the_tail_falls_off_and_offsets_stay_right() {
        let mut history = History::new(1);
        let mut feed = joined(&mut history);
        feed.add_reader(Encoding::Raw, reader(0));
        let long = "x".repeat(399);
        for seq in 1..=500 {
            feed.on_message(message(&mut history, &long, None), BOUNDS, &mut frame);
            let lane = &feed.lanes[0];
            assert!(lane.held_bytes() <= 1_000);
            assert_eq!(lane.bytes_after(seq - 1).len(), 400);
            assert_eq!(lane.framed_after(seq.saturating_sub(2)).count() as u64, seq.min(2));
        }
        assert!(!feed.lanes[0].holds(497) && feed.lanes[0].holds(498));
        assert!(feed.lanes[0].buf.capacity() < 400_000);
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
        feed.on_joined(history.read(From::Newest(100), ALL, BOUNDS.history, 0), BOUNDS, &mut frame);
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
