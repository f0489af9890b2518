//! A channel of the floor: who reads it, what is to be sent to them, and the answers that a poll may get.
//! Never sends.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::os::fd::RawFd;

use pushline_bench::{http, ws};

/// The streams, as indices into `Channel::readers` and `Channel::framed`.
pub const RAW: usize = 0;
pub const V1: usize = 1;
pub const SSE: usize = 2;

/// A poller that asks again after an answer misses no more than this.
const RECENT_MAX: usize = 1024;

#[derive(Default)]
pub struct Channel {
    pub name: Vec<u8>,
    pub readers: [Vec<RawFd>; 3],
    /// Polls that wait for a message.
    pub held: Vec<RawFd>,
    /// Bytes for the readers of each stream.
    pub framed: [Vec<u8>; 3],
    /// Something is to be sent.
    pub due: bool,
    /// Somebody polls: what was published is to be remembered.
    polled: bool,
    published: u64,
    /// What had been published when held polls were last answered.
    answered: u64,
    recent: VecDeque<Vec<u8>>,
    /// Answers to short polls, made when the first asks after a message: a publish makes none.
    changed: Vec<u8>,
    unchanged: Vec<u8>,
    tag: String,
    /// How many had been published when these answers were made.
    canned: Option<u64>,
}

impl Channel {
    pub fn new(name: &[u8]) -> Self {
        Self { name: name.to_vec(), ..Self::default() }
    }

    /// Frames a message for those who read.
    pub fn take(&mut self, message: &[u8]) {
        self.published += 1;
        let id = self.published;
        let [raw, v1, sse] = &mut self.framed;
        if !self.readers[RAW].is_empty() {
            ws::write_frame(raw, ws::TEXT, message);
        }
        if !self.readers[V1].is_empty() {
            let text = String::from_utf8_lossy(message);
            let envelope = format!(
                r#"{{"type":"message","channel":"bench","id":"{id:016}","ts":1700000000000,"data":"{text}"}}"#
            );
            ws::write_frame(v1, ws::TEXT, envelope.as_bytes());
        }
        if !self.readers[SSE].is_empty() {
            sse.extend_from_slice(b"data: ");
            sse.extend_from_slice(message);
            sse.extend_from_slice(format!("\nid: {id:016}\n\n").as_bytes());
        }
        // Read back by who publishes alone, so the newest is always kept. In the room of the one that goes for it.
        let kept = if self.polled { RECENT_MAX } else { 1 };
        let mut newest =
            if self.recent.len() >= kept { self.recent.pop_front() } else { None }.unwrap_or_default();
        newest.clear();
        newest.extend_from_slice(message);
        self.recent.push_back(newest);
    }

    fn can_answers(&mut self) {
        self.canned = Some(self.published);
        self.tag = format!("\"{}\"", self.published);
        let etag = format!("ETag: {}\r\n", self.tag);
        self.unchanged = format!("HTTP/1.1 304 Not Modified\r\n{etag}\r\n").into_bytes();
        let newest = self.recent.back().cloned();
        self.changed = answer(newest.iter(), self.published, &etag);
    }

    /// The answer to a short poll.
    pub fn short_answer(&mut self, head: &[u8]) -> &[u8] {
        self.polled = true;
        if self.canned != Some(self.published) {
            self.can_answers();
        }
        let same = http::field(head, "if-none-match").is_some_and(|tag| tag == self.tag);
        if same { &self.unchanged } else { &self.changed }
    }

    /// The answer to a poll without a wait: the cursor alone.
    pub fn cursor_answer(&mut self) -> Vec<u8> {
        self.polled = true;
        answer([].iter(), self.published, "")
    }

    /// The answer to a poll from `cursor`; `None`: it is to be held.
    pub fn held_answer(&mut self, cursor: u64) -> Option<Vec<u8>> {
        self.polled = true;
        let later = self.published.saturating_sub(cursor) as usize;
        (later > 0).then(|| {
            let skipped = self.recent.len().saturating_sub(later);
            answer(self.recent.iter().skip(skipped), self.published, "")
        })
    }

    /// The polls that are held, and the answer to all of them.
    pub fn answer_held(&mut self) -> Option<(Vec<RawFd>, Vec<u8>)> {
        let before = std::mem::replace(&mut self.answered, self.published);
        if self.held.is_empty() {
            return None;
        }
        let answer = self.held_answer(before)?;
        Some((std::mem::take(&mut self.held), answer))
    }
}

fn answer<'a>(messages: impl Iterator<Item = &'a Vec<u8>>, cursor: u64, fields: &str) -> Vec<u8> {
    let mut body = String::from("{\"messages\":[");
    for (at, message) in messages.enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(body, "{comma}{{\"data\":\"{}\"}}", String::from_utf8_lossy(message));
    }
    let _ = write!(body, "],\"cursor\":\"{cursor}\",\"gap\":false}}");
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
