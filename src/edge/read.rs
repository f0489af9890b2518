//! Reading by polling: short polls, answered from memory, and long polls, which are held.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use foldhash::fast::RandomState;
use sha1::{Digest, Sha1};

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::lane::Encoding;
use crate::domain::page::{From, Page, PageMax};
use crate::proto::http::fields::{if_none_match, prefer_wait};
use crate::proto::http::request::{Method, Request, Version};
use crate::proto::http::response::ResponseWriter;
use crate::proto::http::target::{Query, Target};
use crate::runtime::clock::TICK_MS;
use crate::runtime::close::Transport;
use crate::runtime::entry::{ConnId, HeldPoll, Kind};
use crate::runtime::feeds::Place;
use crate::runtime::peer::Peer;
use crate::runtime::poll::{cursor_of, next_of, write_body};
use crate::runtime::post::Overloaded;
use crate::runtime::quotas::Limited;
use crate::runtime::state::{Socket, State};
use crate::runtime::stats::Refusal;
use crate::runtime::tally::{Tally, Weight};
use crate::runtime::worker::Worker;

use super::answer::{Answer, Content, Manner, VARY_READ};
use super::ask;
use super::channels::{LIMIT_MAX, WAIT_MAX_S, cursor, newest, number};
use super::doorman::CREDENTIALS;
use super::publish::with_retry_after;

/// Answers remembered by one worker; beyond it all are forgotten.
const REMEMBERED_MAX: usize = 1_024;
/// Larger answers are made anew each time: with the number above, what is remembered stays within 16 MiB.
const REMEMBERED_BYTES_MAX: usize = 16 * 1_024;
/// What remembering one takes beside its body and target.
const REMEMBERED_BYTES: usize = 512;

/// Messages in one answer, in bytes as they are kept; one message of each channel always fits.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// One poll.
#[derive(Debug, Clone)]
pub struct PollRequest {
    pub names: Vec<Name>,
    pub from: Vec<From>,
    /// Most messages: of each channel without a cursor, of all together with one.
    pub limit: u32,
    pub has_cursor: bool,
}

/// Short polls that were answered, to be answered again as long as nothing has changed.
pub struct Remembered {
    answers: RefCell<HashMap<Box<str>, Rc<ShortAnswer>, RandomState>>,
    tally: Tally,
}

/// A channel of another worker that is polled so soon again gets a feed here, to answer from.
const HOT_MS: u64 = 1_000;

struct ShortAnswer {
    body: Rc<Vec<u8>>,
    messages: u64,
    etag: String,
    /// The heads that it was made at.
    heads: Vec<(Name, Cursor)>,
    made_ms: u64,
    /// Something in it ends then.
    until_ms: u64,
    weight: Weight,
}

impl Remembered {
    /// Counts what it holds in `tally`.
    pub fn new(tally: &Tally) -> Self {
        Self { answers: RefCell::default(), tally: tally.clone() }
    }

    /// The answer to the poll at `target`, if it was given before and still holds.
    pub fn get(&self, worker: &Rc<Worker>, target: &str, request: &Request<'_>) -> Option<Answer> {
        let remembered = Rc::clone(self.answers.borrow().get(target)?);
        ask::read_mail(worker);
        let holds = worker.with(|state| {
            let now_ms = state.node.clock.now_ms();
            if remembered.made_ms + HOT_MS > now_ms {
                for (name, _) in &remembered.heads {
                    state.feed_if_remote(name);
                }
            }
            remembered.until_ms > now_ms
                && remembered.heads.iter().all(|(name, head)| state.known_head(name) == Some(*head))
        });
        if !holds {
            self.answers.borrow_mut().remove(target);
            return None;
        }
        Some(short_answer(worker, &remembered, request))
    }

    fn put(&self, target: &str, answer: Rc<ShortAnswer>) {
        if answer.weight.bytes() > REMEMBERED_BYTES_MAX {
            return;
        }
        let mut answers = self.answers.borrow_mut();
        if answers.len() >= REMEMBERED_MAX {
            answers.clear();
        }
        answers.insert(target.into(), answer);
    }

    /// Memory is tight: all are made anew.
    pub fn forget(&self) {
        *self.answers.borrow_mut() = HashMap::default();
    }
}

/// What a poll is answered with.
pub enum Polled {
    Answer(Answer),
    /// Nothing yet: to be held at these places.
    Hold {
        places: Vec<Place>,
        limit: u32,
        wait_s: u64,
    },
}

/// Answers a GET or HEAD that asks for JSON.
pub async fn poll(
    worker: &Rc<Worker>,
    remembered: &Remembered,
    request: &Request<'_>,
    query: Query<'_>,
    names: Vec<Name>,
) -> Polled {
    match polled(worker, remembered, request, query, names).await {
        Ok(polled) => polled,
        Err(answer) => Polled::Answer(answer.vary(VARY_READ)),
    }
}

async fn polled(
    worker: &Rc<Worker>,
    remembered: &Remembered,
    request: &Request<'_>,
    query: Query<'_>,
    names: Vec<Name>,
) -> Result<Polled, Answer> {
    let wait_s = wait_of(query, request)?;
    let target = match request.target {
        Target::Path { path, query } if query.is_empty() => Cow::Borrowed(path),
        // Who asks changes no answer, and what they ask with is not remembered.
        Target::Path { path, query } => Cow::Owned(format!("{path}?{}", query.without(&CREDENTIALS))),
        Target::Asterisk => Cow::Borrowed(""),
    };
    if wait_s == 0
        && let Some(answer) = remembered.get(worker, &target, request)
    {
        return Ok(Polled::Answer(answer));
    }
    let poll = poll_of(query, names)?;
    if wait_s == 0 || !poll.has_cursor {
        return Ok(Polled::Answer(short_poll(worker, remembered, &target, &poll, request).await));
    }
    if request.method == Method::Head {
        return Ok(Polled::Answer(long_poll_head(worker, &poll, wait_s).await));
    }
    Ok(match long_poll(worker, &poll, wait_s).await {
        Waited::Answer(answer) => Polled::Answer(answer),
        Waited::Hold(places) => Polled::Hold { places, limit: poll.limit, wait_s },
    })
}

/// The wait that a request asks for, in seconds; 0: none.
///
/// # Errors
/// The answer to give.
pub fn wait_of(query: Query<'_>, request: &Request<'_>) -> Result<u64, Answer> {
    let asked = match number(query, "wait")? {
        Some(wait_s) => Some(wait_s),
        None => prefer_wait(request.fields.all("prefer")),
    };
    Ok(asked.unwrap_or(0).min(WAIT_MAX_S))
}

fn poll_of(query: Query<'_>, names: Vec<Name>) -> Result<PollRequest, Answer> {
    let cursor = cursor(query, names.len())?;
    let limit = number(query, "limit")?;
    let has_cursor = cursor.is_some();
    let limit = limit.unwrap_or(if has_cursor { u64::from(LIMIT_MAX) } else { 1 }).min(u64::from(LIMIT_MAX));
    let from = cursor.unwrap_or_else(|| vec![newest(limit); names.len()]);
    Ok(PollRequest { names, from, limit: limit as u32, has_cursor })
}

/// Answers a poll at once.
async fn short_poll(
    worker: &Rc<Worker>,
    remembered: &Remembered,
    target: &str,
    poll: &PollRequest,
    request: &Request<'_>,
) -> Answer {
    let mut pages = match pages(worker, poll).await {
        Ok(pages) => pages,
        Err(Overloaded) => return overloaded(worker),
    };
    let mut body = Vec::new();
    write_body(&mut body, &mut pages, poll.has_cursor.then_some(poll.limit as usize));
    if body.len() < REMEMBERED_BYTES_MAX && body.capacity() > body.len() / 4 * 5 {
        body.shrink_to_fit();
    }
    let weight = remembered.tally.weigh(REMEMBERED_BYTES + body.capacity() + target.len());
    let digest = Sha1::digest(&body);
    let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&digest[..12]));
    let answer = worker.with(|state| {
        let age_ms = state.node.settings.history.age.as_millis() as u64;
        let messages = pages.iter().flat_map(|(_, page)| &page.messages);
        let until = messages.map(|message| message.ends_ms.unwrap_or(u64::MAX).min(message.ts_ms + age_ms));
        let heads = pages
            .iter()
            .map(|(name, page)| (name.clone(), Cursor { incarnation: page.incarnation, seq: page.head }));
        ShortAnswer {
            made_ms: state.node.clock.now_ms(),
            until_ms: until.min().unwrap_or(u64::MAX),
            heads: heads.collect(),
            messages: pages.iter().map(|(_, page)| page.messages.len() as u64).sum(),
            body: Rc::new(body),
            etag,
            weight,
        }
    });
    let answer = Rc::new(answer);
    remembered.put(target, Rc::clone(&answer));
    short_answer(worker, &answer, request)
}

fn short_answer(worker: &Rc<Worker>, answer: &ShortAnswer, request: &Request<'_>) -> Answer {
    let fresh = if_none_match(request.fields.all("if-none-match"), answer.etag.as_bytes());
    if !fresh && request.method == Method::Get {
        worker.stats().deliveries.add(Transport::Http as usize, answer.messages);
    }
    let told = Answer::new(if fresh { 304 } else { 200 });
    let told =
        told.field("ETag", answer.etag.clone()).field("Cache-Control", "private, no-cache").vary(VARY_READ);
    if fresh {
        return told;
    }
    Answer { content: Content::Of("application/json", Rc::clone(&answer.body)), ..told }
}

async fn pages(worker: &Rc<Worker>, poll: &PollRequest) -> Result<Vec<(Name, Page)>, Overloaded> {
    let bytes = ANSWER_BYTES_MAX / poll.names.len().max(1);
    let max = PageMax { messages: (poll.limit as usize).max(1), bytes };
    let mut pages = Vec::with_capacity(poll.names.len());
    for (name, from) in poll.names.iter().zip(&poll.from) {
        pages.push((name.clone(), ask::page(worker, name, *from, max).await?));
    }
    Ok(pages)
}

/// The answer to a poll that may not wait.
pub fn over_quota(worker: &Rc<Worker>, limited: Limited) -> Answer {
    worker.stats().refuse(Refusal::Quota);
    with_retry_after(worker, Answer::problem(429, limited.detail())).vary(VARY_READ)
}

fn overloaded(worker: &Rc<Worker>) -> Answer {
    worker.stats().refuse(Refusal::Overloaded);
    let answer = Answer::problem(503, "the server has more to do than it can; ask again later");
    with_retry_after(worker, answer).vary(VARY_READ)
}

/// What a long poll came to.
pub enum Waited {
    Answer(Answer),
    /// Nothing yet: to be held at these places.
    Hold(Vec<Place>),
}

/// Looks for what a long poll waits for.
pub async fn long_poll(worker: &Rc<Worker>, poll: &PollRequest, wait_s: u64) -> Waited {
    loop {
        let mut pages = match pages(worker, poll).await {
            Ok(pages) => pages,
            Err(Overloaded) => return Waited::Answer(overloaded(worker)),
        };
        if let Some(answer) = found(&mut pages, poll.limit, wait_s) {
            let messages = pages.iter().map(|(_, page)| page.messages.len() as u64).sum();
            worker.stats().deliveries.add(Transport::LongPoll as usize, messages);
            return Waited::Answer(answer);
        }
        let mut places = Vec::with_capacity(poll.names.len());
        for (name, page) in &pages {
            let from = From::After(Cursor { incarnation: page.incarnation, seq: page.next });
            match ask::place(worker, name, from).await {
                Ok(place) => places.push(place),
                Err(Overloaded) => return Waited::Answer(overloaded(worker)),
            }
        }
        // Deleted since the pages were read: read again, and tell it.
        if places.iter().all(|place| !place.gap) {
            return Waited::Hold(places);
        }
    }
}

/// What a long poll would be told now, for one who asks for the head alone and so is never held.
async fn long_poll_head(worker: &Rc<Worker>, poll: &PollRequest, wait_s: u64) -> Answer {
    let Ok(mut pages) = pages(worker, poll).await else { return overloaded(worker) };
    found(&mut pages, poll.limit, wait_s).unwrap_or_else(|| {
        let cursor = joined(pages.iter().map(|(_, page)| next_of(page)));
        waited(204, wait_s, cursor)
    })
}

/// The answer to a long poll that need not be held: there is a message, or a gap.
fn found(pages: &mut [(Name, Page)], limit: u32, wait_s: u64) -> Option<Answer> {
    if pages.iter().all(|(_, page)| !page.gap && page.messages.is_empty()) {
        return None;
    }
    let mut body = Vec::new();
    write_body(&mut body, pages, Some(limit as usize));
    let cursor = String::from_utf8_lossy(cursor_of(&body)).into_owned();
    let content = Content::Of("application/json", Rc::new(body));
    Some(Answer { content, ..waited(200, wait_s, cursor) })
}

fn waited(status: u16, wait_s: u64, cursor: String) -> Answer {
    Answer::new(status)
        .field("Cache-Control", "no-store")
        .field("Preference-Applied", format!("wait={wait_s}"))
        .field("Pushline-Cursor", cursor)
        .vary(VARY_READ)
}

pub fn joined(cursors: impl IntoIterator<Item = Cursor>) -> String {
    let mut text = Vec::new();
    crate::domain::cursor::write_joined(&mut text, cursors);
    String::from_utf8(text).unwrap_or_default()
}

/// What the answer to a held poll will say, whenever it comes.
fn held_fields(manner: &Manner<'_>, wait_s: u64) -> Vec<u8> {
    let mut fields = Vec::with_capacity(128);
    let writer = ResponseWriter::new(&mut fields, 200);
    let writer = manner.passed.write(writer).field("Vary", VARY_READ).field("Cache-Control", "no-store");
    let writer = writer.field("Preference-Applied", format!("wait={wait_s}"));
    let writer = if manner.version == Version::Http10 && manner.keep_alive {
        writer.field("Connection", "keep-alive")
    } else {
        writer
    };
    writer.end();
    // Only the lines of fields: without the status line before and the empty line after.
    let start = fields.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    fields.drain(..start);
    fields.truncate(fields.len().saturating_sub(2));
    fields
}

/// What is kept of a poll that waits. `leftover`: what the client sent after the request. `proxy`: whose connection it is
/// when it is not the client's.
pub fn held(
    state: &State,
    manner: &Manner<'_>,
    limit: u32,
    wait_s: u64,
    leftover: Vec<u8>,
    proxy: Option<Peer>,
) -> Box<HeldPoll> {
    let until_tick = state.tick() + (wait_s * 1_000 / TICK_MS) as u32;
    let fields = held_fields(manner, wait_s).into();
    let keep_alive = manner.keep_alive;
    Box::new(HeldPoll { limit, until_tick, fields, keep_alive, leftover, noted: None, proxy })
}

/// Gives a poll to the holder, as a reader of the feeds at `places`.
pub fn hold(state: &mut State, socket: Socket, places: &[Place], held: Box<HeldPoll>) -> ConnId {
    let conn = state.adopt(socket, Kind::Poll(held));
    read_at(state, conn, places);
    conn
}

/// The same, for a connection that the holder has.
pub fn hold_on(state: &mut State, conn: ConnId, places: &[Place], held: Box<HeldPoll>) {
    let Some(entry) = state.conn_mut(conn) else { return };
    entry.kind = Kind::Poll(held);
    let is_told_once = entry.flags.once;
    state.count_began(Transport::LongPoll);
    if is_told_once {
        state.set_interest(conn.slot);
    }
    state.schedule(conn);
    read_at(state, conn, places);
}

fn read_at(state: &mut State, conn: ConnId, places: &[Place]) {
    let reads = places.iter().all(|place| state.subscribe(conn.slot, *place, Encoding::Poll, false));
    super::stream::end_unless(state, conn, reads);
}
