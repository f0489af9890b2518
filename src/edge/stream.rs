//! Opening a stream of Server-Sent Events, from the request to the hands of the holder, and what every stream begins with:
//! its places in the channels, and its quota.

use std::rc::Rc;

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::lane::Encoding;
use crate::domain::page::From;
use crate::proto::http::date::format_imf_date;
use crate::proto::http::response::ResponseWriter;
use crate::proto::sse;
use crate::runtime::close::{Reason, Transport};
use crate::runtime::entry::{ConnId, Kind};
use crate::runtime::feeds::Place;
use crate::runtime::noted::Noted;
use crate::runtime::post::Overloaded;
use crate::runtime::quotas::{Begins, Limited};
use crate::runtime::state::{Socket, State};
use crate::runtime::stats::Refusal;
use crate::runtime::stream::Stream;
use crate::runtime::trace::Who;
use crate::runtime::worker::Worker;

use super::answer::{Manner, VARY_READ};
use super::ask;
use super::auth::TicketUse;
use super::doorman::Doorman;
use super::identity::connection_id;
use super::tickets;

/// An EventSource that lost its stream waits so long, and up to so much longer, before it comes back.
const RETRY_MS: u64 = 1_000;
const RETRY_JITTER_MS: u64 = 2_000;

/// A client whose stream is about to begin.
pub struct Client {
    pub socket: Socket,
    /// Its request, where somebody wants to know of it.
    pub noted: Option<Noted>,
    /// It came by this.
    pub ticket: Option<TicketUse>,
}

/// What a stream reads, and from where.
#[derive(Clone, Copy)]
pub struct Reads<'r> {
    pub names: &'r [Name],
    pub from: &'r [From],
}

/// How an event stream begins, and what it reads from where.
pub struct Events<'e> {
    /// Written already.
    pub head: Vec<u8>,
    pub names: &'e [Name],
    pub from: &'e [From],
    pub envelope: bool,
}

/// The head of a stream of events.
pub fn event_stream_head(out: &mut Vec<u8>, manner: &Manner<'_>) {
    let writer = ResponseWriter::new(out, 200).date(&format_imf_date(manner.unix_s));
    manner
        .passed
        .write(writer)
        .field("Content-Type", "text/event-stream")
        .field("Cache-Control", "no-cache, no-transform")
        .field("X-Accel-Buffering", "no")
        .field("Vary", VARY_READ)
        .field("Connection", "close")
        .end();
}

/// Opens an event stream. `None`: it was refused, or the client is gone.
pub async fn open_events(
    worker: &Rc<Worker>,
    doorman: &Doorman,
    mut stream: Stream,
    manner: &Manner<'_>,
    reads: Reads<'_>,
    envelope: bool,
    ticket: Option<TicketUse>,
) -> Option<ConnId> {
    let Reads { names, from } = reads;
    let mut head = Vec::with_capacity(512);
    event_stream_head(&mut head, manner);
    let places = admitted_places(worker, &mut stream, names, from).await;
    let noted = stream.noted.take();
    let client = Client { socket: stream.into_socket()?, noted, ticket };
    worker.with(|state| match unless_draining(state, places) {
        Ok(places) => {
            let events = Events { head, names, from, envelope };
            Some(begin_events(state, doorman, client, events, &places))
        }
        Err((reason, counted)) => {
            refuse_events(state, client, head, reason, counted);
            None
        }
    })
}

/// Where a client's stream begins, which counts from now on; or why it is refused.
pub async fn admitted_places(
    worker: &Rc<Worker>,
    stream: &mut Stream,
    names: &[Name],
    from: &[From],
) -> Result<Vec<Place>, (Reason, Refusal)> {
    if worker.with(|state| state.is_full()) {
        return Err((Reason::Full, Refusal::Memory));
    }
    if begin_reading(worker, stream, names).is_err() {
        return Err((Reason::RateLimited, Refusal::Quota));
    }
    places(worker, names, from).await.map_err(|Overloaded| (Reason::Full, Refusal::Overloaded))
}

/// What was found for a client, or why it is refused: also by a drain that has begun meanwhile.
pub fn unless_draining(
    state: &State,
    places: Result<Vec<Place>, (Reason, Refusal)>,
) -> Result<Vec<Place>, (Reason, Refusal)> {
    match places {
        Ok(_) if state.draining.is_some() => Err((Reason::Drain, Refusal::Draining)),
        places => places,
    }
}

/// An event stream of which the channels are found: told how it begins, and in the holder's hands from now on.
pub fn begin_events(
    state: &mut State,
    doorman: &Doorman,
    client: Client,
    events: Events<'_>,
    places: &[Place],
) -> ConnId {
    let Events { head, names, from, envelope } = events;
    let conn = state.adopt(client.socket, Kind::Sse);
    tickets::begins(state, doorman, client.ticket, conn);
    let mut out = head;
    sse::write_retry(&mut out, RETRY_MS + state.random_below(RETRY_JITTER_MS));
    // Until a gap is told, a reader that is cut off must be told it again: its place is still the old one.
    let mut told: Vec<Cursor> = places
        .iter()
        .zip(from)
        .map(|(place, from)| if place.gap { asked(*from) } else { place.cursor() })
        .collect();
    let joined = |cursors: &[Cursor]| super::read::joined(cursors.iter().copied());
    sse::write_open(&mut out, &joined(&told), &connection_id(state, conn));
    for (at, place) in places.iter().enumerate() {
        if place.gap {
            told[at] = place.cursor();
            sse::write_gap(&mut out, names[at].as_str(), &place.cursor().text(), &joined(&told));
        }
    }
    state.say(conn.slot, &out);
    on_opened(state, client.noted, 200, out.len(), conn);
    let many = places.len() > 1;
    let encoding = if many || envelope { Encoding::SseEnvelope } else { Encoding::Sse };
    let read = places.iter().all(|place| state.subscribe(conn.slot, *place, encoding, many));
    end_unless(state, conn, read);
    doorman.recheck(state, conn);
    state.bury();
    conn
}

/// Chromium never comes back after an error status: a stream refused for a passing reason is a stream that ends.
pub fn refuse_events(state: &mut State, client: Client, mut out: Vec<u8>, reason: Reason, counted: Refusal) {
    let reconnect_ms = state.reconnect_ms();
    state.stats().refuse(counted);
    let conn = state.adopt(client.socket, Kind::Sse);
    sse::write_close(&mut out, reason.as_str(), reconnect_ms);
    on_opened(state, client.noted, 200, out.len(), conn);
    state.end(conn.slot, Transport::Sse, reason, &out);
    state.bury();
}

/// The request that a stream began with has its answer.
pub fn on_opened(state: &mut State, noted: Option<Noted>, status: u16, bytes: usize, conn: ConnId) {
    let Some(mut noted) = noted else { return };
    let Some(entry) = state.conn(conn) else { return };
    noted.becomes(entry.kind.transport());
    let bearer = entry.bearer.clone();
    state.on_answered(noted, status, bytes, bearer.as_deref(), Some(conn));
}

/// The cursor that a reader came with; nowhere, if it had none.
fn asked(from: From) -> Cursor {
    match from {
        From::After(cursor) => cursor,
        From::Now | From::Newest(_) => Cursor::NOWHERE,
    }
}

/// Counts a client's stream, before anything is done for it.
pub fn begin_reading(worker: &Rc<Worker>, stream: &mut Stream, names: &[Name]) -> Result<(), Limited> {
    worker.with(|state| {
        let begun = state.node.begin_reading(&mut stream.socket, names.len(), Begins::Stream);
        begun.inspect_err(|limited| {
            state.trace_limited(Who::of_socket(&stream.socket, Transport::Http), *limited);
        })
    })
}

pub async fn places(worker: &Rc<Worker>, names: &[Name], from: &[From]) -> Result<Vec<Place>, Overloaded> {
    let mut places = Vec::with_capacity(names.len());
    for (name, from) in names.iter().zip(from) {
        places.push(ask::place(worker, name, *from).await?);
    }
    Ok(places)
}

/// A node so slow that a channel was let go of between finding it and reading it is too full: the client comes back.
pub fn end_unless(state: &mut State, conn: ConnId, reads: bool) {
    if !reads {
        state.stats().refuse(Refusal::Overloaded);
        let reconnect_ms = state.reconnect_ms();
        state.farewell(conn.slot, Reason::Full, reconnect_ms);
    }
}

/// Whether a connection has the channel already.
pub fn has_channel(state: &State, conn: ConnId, name: &Name) -> bool {
    let Some(entry) = state.conn(conn) else { return false };
    entry.subs.as_slice().iter().any(|sub| state.feeds.get(sub.feed).is_some_and(|feed| feed.name == *name))
}
