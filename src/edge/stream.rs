//! Opening streams: Server-Sent Events and WebSockets, from the request to the hands of the holder (contract, "Reading by
//! Server-Sent Events", "Reading and writing by WebSocket").

use std::rc::Rc;

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::feed::Encoding;
use crate::domain::history::From;
use crate::proto::http::date::format_imf_date;
use crate::proto::http::request::{Request, Upgrade};
use crate::proto::http::response::ResponseWriter;
use crate::proto::http::target::Query;
use crate::proto::ws::handshake::{self, Accept, Subprotocol, write_switching};
use crate::proto::{envelope, sse};
use crate::runtime::close::{Reason, Transport};
use crate::runtime::entry::{ConnId, Kind};
use crate::runtime::feeds::Place;
use crate::runtime::framing::text_frame;
use crate::runtime::noted::Noted;
use crate::runtime::post::Overloaded;
use crate::runtime::quotas::{Begins, Limited};
use crate::runtime::state::{Socket, State};
use crate::runtime::stats::Refusal;
use crate::runtime::stream::Stream;
use crate::runtime::trace::Who;
use crate::runtime::worker::Worker;

use super::answer::{Answer, Manner, VARY_READ};
use super::ask;
use super::auth::TicketUse;
use super::channels::stream_start;
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
    let places = if worker.with(|state| state.is_full()) {
        Err((Reason::Full, Refusal::Memory))
    } else if begin_reading(worker, &mut stream, names).is_err() {
        Err((Reason::RateLimited, Refusal::Quota))
    } else {
        let places = places(worker, names, from).await;
        places.map_err(|Overloaded| (Reason::Full, Refusal::Overloaded))
    };
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

/// What was found for a client, or why it is refused: also by a drain that has begun meanwhile.
fn unless_draining(
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
    let subject = bearer.as_ref().and_then(|bearer| bearer.subject.as_deref());
    state.on_answered(noted, status, bytes, subject, Some(conn));
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

/// A handshake that was found good.
pub struct Handshake {
    pub accept: Accept,
    pub subprotocol: Subprotocol,
}

impl Handshake {
    /// What a request for a WebSocket of so many channels comes to, and where it begins in each.
    ///
    /// # Errors
    /// The answer to give.
    pub fn of(request: &Request<'_>, query: Query<'_>, channels: usize) -> Result<(Self, Vec<From>), Answer> {
        let Upgrade::WebSocket { key } = request.upgrade else {
            return Err(Answer::problem(400, "this is no WebSocket handshake").closing());
        };
        let subprotocol = handshake::choose(request.fields.all("sec-websocket-protocol"));
        let good = subprotocol.and_then(|subprotocol| {
            let accept = Accept::of_key(key.as_bytes())?;
            Ok(Self { accept, subprotocol })
        });
        let good = good.map_err(|error| Answer::problem(400, error.detail()).closing())?;
        if good.subprotocol == Subprotocol::Raw && channels != 1 {
            return Err(Answer::problem(
                400,
                "a raw WebSocket reads exactly one channel; name one, or offer the subprotocol pushline.v1",
            )
            .closing());
        }
        Ok((good, stream_start(query, None, channels)?))
    }

    pub fn is_v1(&self) -> bool {
        self.subprotocol == Subprotocol::V1
    }
}

/// Refuses a WebSocket that is in a task's hands.
pub fn refuse_websocket(
    worker: &Rc<Worker>,
    mut stream: Stream,
    handshake: &Handshake,
    reason: Reason,
    counted: Refusal,
) {
    let noted = stream.noted.take();
    let Some(socket) = stream.into_socket() else { return };
    worker.with(|state| {
        refuse_switched(state, Client { socket, noted, ticket: None }, handshake, reason, counted);
    });
}

/// Opens a WebSocket. `leftover` are the client's first frames, if they came already. `None`: the client is gone.
pub async fn open_websocket(
    worker: &Rc<Worker>,
    doorman: &Doorman,
    mut stream: Stream,
    handshake: &Handshake,
    reads: Reads<'_>,
    leftover: Vec<u8>,
    ticket: Option<TicketUse>,
) -> Option<ConnId> {
    let Reads { names, from } = reads;
    let places = if worker.with(|state| state.is_full()) {
        Err((Reason::Full, Refusal::Memory))
    } else if begin_reading(worker, &mut stream, names).is_err() {
        Err((Reason::RateLimited, Refusal::Quota))
    } else {
        let places = places(worker, names, from).await;
        places.map_err(|Overloaded| (Reason::Full, Refusal::Overloaded))
    };
    let noted = stream.noted.take();
    let client = Client { socket: stream.into_socket()?, noted, ticket };
    Some(worker.with(|state| match unless_draining(state, places) {
        Ok(places) => begin_websocket(state, doorman, client, handshake, names, &places, leftover),
        Err((reason, counted)) => refuse_switched(state, client, handshake, reason, counted),
    }))
}

/// A WebSocket of which the channels are found: told that it is one, and in the holder's hands from now on.
pub fn begin_websocket(
    state: &mut State,
    doorman: &Doorman,
    client: Client,
    handshake: &Handshake,
    names: &[Name],
    places: &[Place],
    mut leftover: Vec<u8>,
) -> ConnId {
    let v1 = handshake.is_v1();
    let mut out = Vec::with_capacity(256);
    write_switching(&mut out, &handshake.accept, handshake.subprotocol);
    let ticket = client.ticket;
    let conn = adopt_websocket(state, client, v1, out.len());
    tickets::begins(state, doorman, ticket, conn);
    if v1 {
        let id = connection_id(state, conn);
        text_frame(&mut out, |json| envelope::write_v1_open(json, &id));
        for (name, place) in names.iter().zip(places) {
            subscribed_frame(&mut out, name, place, None);
        }
    }
    state.say(conn.slot, &out);
    if !v1 && places.iter().any(|place| place.gap) {
        // Raw cannot tell a gap.
        state.farewell(conn.slot, Reason::Slow, 0);
        state.bury();
        return conn;
    }
    let encoding = if v1 { Encoding::V1 } else { Encoding::Raw };
    let read = places.iter().all(|place| state.subscribe(conn.slot, *place, encoding, false));
    end_unless(state, conn, read);
    doorman.recheck(state, conn);
    if !leftover.is_empty() {
        state.on_frames(conn, &mut leftover);
    }
    state.bury();
    conn
}

/// Takes in a connection that has become a WebSocket, by a head of so many bytes.
fn adopt_websocket(state: &mut State, client: Client, v1: bool, head_bytes: usize) -> ConnId {
    let conn = state.adopt(client.socket, Kind::Ws { v1, reader: Default::default(), begun_tick: 0 });
    state.stats().answer(101);
    on_opened(state, client.noted, 101, head_bytes, conn);
    conn
}

/// Switches protocols, and says why that ends: a browser cannot see a handshake that is refused.
pub fn refuse_switched(
    state: &mut State,
    client: Client,
    handshake: &Handshake,
    reason: Reason,
    counted: Refusal,
) -> ConnId {
    state.stats().refuse(counted);
    let mut out = Vec::with_capacity(256);
    write_switching(&mut out, &handshake.accept, handshake.subprotocol);
    let conn = adopt_websocket(state, client, handshake.is_v1(), out.len());
    state.say(conn.slot, &out);
    let reconnect_ms = state.reconnect_ms();
    state.farewell(conn.slot, reason, reconnect_ms);
    state.bury();
    conn
}

/// A node so slow that a channel was let go of between finding it and reading it is too full: the client comes back.
pub fn end_unless(state: &mut State, conn: ConnId, reads: bool) {
    if !reads {
        state.stats().refuse(Refusal::Overloaded);
        let reconnect_ms = state.reconnect_ms();
        state.farewell(conn.slot, Reason::Full, reconnect_ms);
    }
}

/// Appends the frame that answers a subscription.
pub fn subscribed_frame(out: &mut Vec<u8>, name: &Name, place: &Place, seq: Option<envelope::Seq>) {
    let cursor = place.cursor().text();
    text_frame(out, |json| {
        envelope::write_v1_subscribed(json, name.as_str(), &cursor, place.gap, seq);
    });
}

/// Whether a connection has the channel already.
pub fn has_channel(state: &State, conn: ConnId, name: &Name) -> bool {
    let Some(entry) = state.conn(conn) else { return false };
    entry.subs.as_slice().iter().any(|sub| state.feeds.get(sub.feed).is_some_and(|feed| feed.name == *name))
}
