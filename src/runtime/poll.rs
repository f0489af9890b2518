//! Held long polls: answered at the first message, at the end of their wait, or when the server drains.
//! Owns the bytes of those answers; the fields that a request decided were written when it came.

use std::rc::Rc;

use crate::domain::channel::Name;
use crate::domain::cursor::{Cursor, write_joined};
use crate::domain::message::Body;
use crate::domain::page::{Page, PageMax};
use crate::proto::envelope;
use crate::proto::http::date::format_imf_date;
use crate::proto::http::problem::Problem;
use crate::proto::http::response::ResponseWriter;

use super::close::{Reason, Transport};
use super::entry::Kind;
use super::framing::view;
use super::state::{Spawn, State};

/// RFC 6750 §3.1.
const CHALLENGE: &str = "Bearer realm=\"pushline\", error=\"invalid_token\"";
const EXPIRED: &str = "the token ended while the request waited; ask again with a new one";
const REVOKED: &str = "the token was taken back while the request waited; ask again with a new one";
const FORBIDDEN: &str = "the right to read this channel was taken back while the request waited; ask again with a token that covers it";

/// What a poll says of a message beside its content, and at its end of a channel.
const BESIDE_CONTENT_BYTES: usize = 256;

/// The last body that was written, for the next poll that waited at the same place.
pub struct Answered {
    feed: u32,
    incarnation: u64,
    from: u64,
    head: u64,
    limit: u32,
    messages: u64,
    bytes: Rc<Vec<u8>>,
}

impl Answered {
    /// The memory that it takes.
    pub fn cost_bytes(&self) -> usize {
        self.bytes.capacity()
    }
}

/// Appends a poll's body: the messages of `pages`, oldest first over all channels, the joined cursor and the gaps. With
/// a `limit`, pages are cut so that no more messages than that stand in it.
pub fn write_body(out: &mut Vec<u8>, pages: &mut [(Name, Page)], limit: Option<usize>) {
    out.reserve(body_bytes(pages, limit));
    envelope::write_poll_start(out);
    let mut taken = vec![0; pages.len()];
    for count in 0..limit.unwrap_or(usize::MAX) {
        let next = (0..pages.len())
            .filter_map(|at| Some((at, pages[at].1.messages.get(taken[at])?)))
            .min_by_key(|(_, message)| message.ts_ms);
        let Some((at, message)) = next else { break };
        let id = message.cursor.text();
        if let Some(view) = view(message, &id) {
            if count > 0 {
                out.push(b',');
            }
            envelope::write_message_object(out, &view);
        }
        taken[at] += 1;
    }
    for ((_, page), taken) in pages.iter_mut().zip(taken) {
        if taken < page.messages.len() {
            page.messages.truncate(taken);
            page.next = page.messages.last().map_or(page.after, |last| last.cursor.seq);
        }
    }
    let mut cursor = Vec::new();
    write_joined(&mut cursor, pages.iter().map(|(_, page)| next_of(page)));
    let gaps: Vec<&str> = pages.iter().filter(|(_, page)| page.gap).map(|(name, _)| name.as_str()).collect();
    envelope::write_poll_end(out, &String::from_utf8(cursor).unwrap_or_default(), &gaps);
}

/// About as long as a poll's body becomes, or longer: a large one would else grow to up to twice its size.
fn body_bytes(pages: &[(Name, Page)], limit: Option<usize>) -> usize {
    let messages = || pages.iter().flat_map(|(_, page)| &page.messages);
    let content_bytes = |body: &Body| match body {
        Body::Binary(bytes) => bytes.len() / 3 * 4,
        body => body.bytes().len() / 16 * 17,
    };
    let bytes: usize = messages().map(|message| BESIDE_CONTENT_BYTES + content_bytes(&message.body)).sum();
    let (count, limit) = (messages().count(), limit.unwrap_or(usize::MAX));
    // Of several channels together no more than `limit` stand in it.
    let taken = if limit < count { bytes / count * limit } else { bytes };
    taken + BESIDE_CONTENT_BYTES * pages.len()
}

/// The cursor just after a page.
pub fn next_of(page: &Page) -> Cursor {
    Cursor { incarnation: page.incarnation, seq: page.next }
}

impl State {
    /// Something came for a held poll: answers it. What its feeds do not hold any more, a task asks the homes for.
    pub fn answer_poll(&mut self, slot: u32) {
        let Some((limit, subs)) = self.conns.get(slot).and_then(|entry| match &entry.kind {
            Kind::Poll(held) => Some((held.limit, entry.subs.as_slice().to_vec())),
            _ => None,
        }) else {
            return;
        };
        let mut body = None;
        if let [sub] = subs[..]
            && let Some(feed) = self.feeds.get(sub.feed)
            && let Some(cached) = &self.poll_body
        {
            let seq = feed.lanes[usize::from(sub.lane)].readers[sub.index as usize].seq;
            let same = cached.feed == sub.feed
                && cached.incarnation == feed.head().incarnation
                && (cached.from, cached.head, cached.limit) == (seq, feed.head().seq, limit);
            body = same.then(|| (Rc::clone(&cached.bytes), cached.messages));
        }
        if body.is_none() {
            let mut pages = Vec::with_capacity(subs.len());
            for sub in &subs {
                let Some(feed) = self.feeds.get(sub.feed) else { return };
                let seq = feed.lanes[usize::from(sub.lane)].readers[sub.index as usize].seq;
                let max = PageMax { messages: limit as usize, bytes: usize::MAX };
                let Some(page) = feed.read_live(seq, max) else {
                    self.repoll(slot);
                    return;
                };
                pages.push((feed.name.clone(), page));
            }
            if pages.iter().all(|(_, page)| page.messages.is_empty()) {
                // Only numbers whose messages had ended before this worker heard of them: it goes on waiting.
                for (sub, (_, page)) in subs.iter().zip(&pages) {
                    if let Some(feed) = self.feeds.get_mut(sub.feed) {
                        feed.reader_mut(sub.lane, sub.index).seq = page.next;
                    }
                }
                return;
            }
            let mut bytes = Vec::new();
            write_body(&mut bytes, &mut pages, Some(limit as usize));
            let bytes = Rc::new(bytes);
            let messages = pages.iter().map(|(_, page)| page.messages.len() as u64).sum();
            if let ([sub], [(_, page)]) = (&subs[..], &pages[..])
                && let Some(feed) = self.feeds.get(sub.feed)
            {
                self.poll_body = Some(Answered {
                    feed: sub.feed,
                    incarnation: page.incarnation,
                    from: feed.lanes[usize::from(sub.lane)].readers[sub.index as usize].seq,
                    head: page.head,
                    limit,
                    messages,
                    bytes: Rc::clone(&bytes),
                });
            }
            body = Some((bytes, messages));
        }
        if let Some((body, messages)) = body {
            self.stats().deliveries.add(Transport::LongPoll as usize, messages);
            self.end_poll(slot, 200, None, &body);
        }
    }

    /// The wait is over without a message.
    pub fn expire_poll(&mut self, slot: u32) {
        self.end_poll(slot, 204, None, &[]);
    }

    /// The wait ends for another reason than a message or its time: the token is not good any more, or the connection
    /// ends and the client comes back after `reconnect_ms`.
    pub fn answer_poll_with(&mut self, slot: u32, reason: Reason, reconnect_ms: u64) {
        match reason {
            Reason::Expired => self.refuse_poll(slot, 401, EXPIRED),
            Reason::Revoked => self.refuse_poll(slot, 401, REVOKED),
            Reason::Forbidden => self.refuse_poll(slot, 403, FORBIDDEN),
            _ => self.end_poll(slot, 204, Some((reason, reconnect_ms.div_ceil(1_000).max(1))), &[]),
        }
    }

    /// Answers with an error; the connection goes on.
    fn refuse_poll(&mut self, slot: u32, status: u16, detail: &str) {
        let Some(Kind::Poll(held)) = self.conns.get(slot).map(|entry| &entry.kind) else { return };
        let keep_alive = held.keep_alive;
        self.node.stats[usize::from(self.index)].answer(status);
        let mut out = Vec::with_capacity(512);
        let mut writer = ResponseWriter::new(&mut out, status)
            .date(&format_imf_date(self.node.clock.now_ms() / 1_000))
            .field_opt("WWW-Authenticate", (status == 401).then_some(CHALLENGE));
        if !keep_alive {
            writer = writer.field("Connection", "close");
        }
        writer.lines(&held.fields).end_with_problem(&Problem::new(status, detail), false);
        self.unsubscribe_all(slot);
        self.tell_poll(slot, keep_alive, Reason::Answered, &out);
    }

    /// `dismissed`: why its connection ends, and how many seconds the client should stay away.
    fn end_poll(&mut self, slot: u32, status: u16, dismissed: Option<(Reason, u64)>, body: &[u8]) {
        let mut cursor = Vec::new();
        let Some(entry) = self.conns.get(slot) else { return };
        let Kind::Poll(held) = &entry.kind else { return };
        if status == 204 {
            let feeds = entry.subs.as_slice().iter();
            let cursors = feeds.filter_map(|sub| {
                let feed = self.feeds.get(sub.feed)?;
                Some(feed.at(feed.lanes[usize::from(sub.lane)].readers[sub.index as usize].seq))
            });
            write_joined(&mut cursor, cursors);
        } else {
            // The body ends `"cursor":"…"`: the field repeats it.
            cursor.extend_from_slice(cursor_of(body));
        }
        let keep_alive = held.keep_alive && dismissed.is_none();
        self.node.stats[usize::from(self.index)].answer(status);
        let mut out = Vec::with_capacity(512 + body.len());
        let mut writer = ResponseWriter::new(&mut out, status)
            .date(&format_imf_date(self.node.clock.now_ms() / 1_000))
            .field("Pushline-Cursor", &cursor);
        if status == 200 {
            writer = writer.field("Content-Type", "application/json");
        }
        if let Some((_, seconds)) = dismissed {
            writer = writer.number("Retry-After", seconds);
        }
        if !keep_alive {
            writer = writer.field("Connection", "close");
        }
        writer.lines(&held.fields).end_with(body);
        self.on_poll_answered(slot, status, out.len());
        self.unsubscribe_all(slot);
        let reason = dismissed.map_or(Reason::Answered, |(reason, _)| reason);
        self.tell_poll(slot, keep_alive, reason, &out);
    }

    /// Sends the answer to a held poll, after which the connection is idle, or ends for `reason`.
    fn tell_poll(&mut self, slot: u32, keep_alive: bool, reason: Reason, out: &[u8]) {
        if !keep_alive {
            self.end(slot, Transport::LongPoll, reason, out);
            return;
        }
        self.say(slot, out);
        let tick = self.tick();
        let Some(entry) = self.conns.get_mut(slot) else { return };
        let Kind::Poll(held) = std::mem::replace(&mut entry.kind, Kind::Idle) else { return };
        self.node.stats[usize::from(self.index)].left.add(Transport::LongPoll as usize, 1);
        entry.heard_tick = tick;
        entry.sent_messages += 1;
        entry.peer = held.proxy.unwrap_or(entry.peer);
        if held.leftover.is_empty() {
            if entry.flags.input_off {
                entry.flags.input_off = false;
                self.set_interest(slot);
            }
            self.reschedule(slot);
        } else if let Some(conn) = self.conn_id(slot) {
            self.serve_rest(conn, held.leftover);
        }
    }

    fn on_poll_answered(&mut self, slot: u32, status: u16, bytes: usize) {
        let Some(entry) = self.conns.get_mut(slot) else { return };
        let Kind::Poll(held) = &mut entry.kind else { return };
        if let Some(noted) = held.noted.take() {
            let bearer = entry.bearer.clone();
            self.on_answered(noted, status, bytes, bearer.as_deref(), None);
        }
    }

    /// Gives a poll back to a task, which asks the channels' homes.
    fn repoll(&mut self, slot: u32) {
        let Some(entry) = self.conns.get_mut(slot) else { return };
        let Kind::Poll(held) = std::mem::replace(&mut entry.kind, Kind::Idle) else { return };
        self.node.stats[usize::from(self.index)].left.add(Transport::LongPoll as usize, 1);
        let feeds = entry.subs.as_slice().iter();
        let (names, cursors) = feeds
            .filter_map(|sub| {
                let feed = self.feeds.get(sub.feed)?;
                let seq = feed.lanes[usize::from(sub.lane)].readers[sub.index as usize].seq;
                Some((feed.name.clone(), feed.at(seq)))
            })
            .unzip();
        if let Some(socket) = self.release(slot) {
            self.spawns.push(Spawn::Repoll { socket, names, cursors, held });
        }
    }
}

/// The cursor in a body that [`write_body`] wrote.
pub fn cursor_of(body: &[u8]) -> &[u8] {
    const KEY: &[u8] = br#"],"cursor":""#;
    let start = memchr::memmem::rfind(body, KEY).map_or(body.len(), |at| at + KEY.len());
    let end = body[start..].iter().position(|byte| *byte == b'"').unwrap_or(0);
    &body[start..start + end]
}
