//! A channel's messages on one worker in one encoding, framed once, and the places of those who read it so. A reader is a
//! position, not a queue.
//! Owns the framed bytes and where each message ends in them. Knows no channel, and neither frames nor sends by itself.

use std::collections::VecDeque;

use super::message::{Body, Message};

/// A lane that a few read gives its memory back when all have read it; one that many read keeps this much.
const KEPT_BYTES: usize = 64 * 1024;
const FEW_READERS: usize = 64;

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

impl Lane {
    pub(super) fn new(encoding: Encoding, after: u64) -> Self {
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

    /// Whether messages are framed for it: somebody reads its bytes.
    pub(super) fn is_framed(&self) -> bool {
        !self.readers.is_empty() && self.encoding != Encoding::Poll
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

    /// Takes the next message, framed, and drops the oldest ones that are beyond `bytes_max`.
    pub(super) fn push(
        &mut self,
        message: &Message,
        bytes_max: usize,
        frame: &mut impl FnMut(Encoding, &Message, &mut Vec<u8>) -> u16,
    ) {
        let tail = frame(self.encoding, message, &mut self.buf);
        self.append((message.body != Body::Deletion).then_some(tail));
        self.shorten(bytes_max);
    }

    /// Fills the place of the next message, which ended before it came.
    pub(super) fn push_nothing(&mut self) {
        self.append(Some(0));
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
    pub(super) fn shrink(&mut self, bytes_max: usize) {
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

#[cfg(test)]
mod tests {
    use super::super::channel::Name;
    use super::super::history::{Bounds, History};
    use super::super::message::Draft;
    use super::*;

    /// The texts, each with an end of line, in a lane that keeps this much.
    fn lane_of<'t>(texts: impl Iterator<Item = &'t str>, bytes_max: usize, each: impl Fn(&Lane)) -> Lane {
        let mut history = History::new(1);
        let name = Name::parse("a").expect("a name");
        let bounds = Bounds { messages: 100, bytes: 100_000, age_ms: 60_000 };
        let mut lane = Lane::new(Encoding::Raw, 0);
        for text in texts {
            let draft = Draft { event: None, body: Body::Text(text.into()), ttl_seconds: None };
            let message = history.append(&name, draft, bounds, 0);
            lane.push(&message, bytes_max, &mut |_, message, out| {
                out.extend_from_slice(message.body.bytes());
                out.push(b'\n');
                1
            });
            each(&lane);
        }
        lane
    }

    #[test]
    fn a_short_send_is_split_at_the_message() {
        let lane = lane_of(["one", "two", "three"].into_iter(), 1_000, |_| {});
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
        let long = "x".repeat(399);
        let lane = lane_of(std::iter::repeat_n(&*long, 500), 1_000, |lane| {
            let seq = lane.head();
            assert!(lane.held_bytes() <= 1_000);
            assert_eq!(lane.bytes_after(seq - 1).len(), 400);
            assert_eq!(lane.framed_after(seq.saturating_sub(2)).count() as u64, seq.min(2));
        });
        assert_eq!(lane.head(), 500);
        assert!(!lane.holds(497) && lane.holds(498));
        assert!(lane.buf.capacity() < 400_000);
    }
}
