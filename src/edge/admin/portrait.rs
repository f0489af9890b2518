//! What operators are told of one connection: in a list a line, alone all that is known. Never a token, nor what is sent.

use serde::Serialize;

use crate::domain::lane::Standing;
use crate::edge::identity::connection_id;
use crate::runtime::clock::TICK_MS;
use crate::runtime::close::Transport;
use crate::runtime::entry::{ConnId, Entry, Kind, Sub};
use crate::runtime::state::State;
use crate::runtime::tasks::{Awaits, TASKS_FROM, Waiting};
use crate::runtime::tcp::{TcpState, tcp_state};

/// One connection in a list.
#[derive(Debug, Serialize)]
pub struct Row {
    pub id: String,
    worker: u16,
    transport: &'static str,
    state: &'static str,
    address: String,
    subject: Option<String>,
    /// Since it was accepted.
    age_seconds: f64,
    /// How many it reads.
    channels: usize,
    /// Of the channel that it is furthest behind in.
    lag_messages: u64,
    owed_bytes: usize,
    blocked_seconds: Option<f64>,
    sent_messages: u64,
    sent_bytes: u64,
}

/// All of one connection.
#[derive(Debug, Serialize)]
pub struct Portrait {
    #[serde(flatten)]
    row: Row,
    /// `jti` of its token.
    token_id: Option<String>,
    /// When its token ends, in seconds since 1970.
    expires_at: Option<u64>,
    /// Since something last came from it, and went to it.
    heard_seconds_ago: f64,
    said_seconds_ago: f64,
    flags: Flags,
    reads: Vec<Reading>,
    /// `None`: the kernel does not tell, as of a unix socket.
    tcp: Option<TcpState>,
}

/// What is true of it just now.
#[derive(Debug, Serialize)]
struct Flags {
    blocked: bool,
    /// What it sent is being acted on.
    busy: bool,
    /// A ping has not been answered yet.
    pinged: bool,
    /// Not read from, for it does not read what it is owed.
    input_off: bool,
    /// Only its close is awaited.
    shut: bool,
}

/// Its place in one channel.
#[derive(Debug, Serialize)]
struct Reading {
    channel: String,
    cursor: String,
    lag_messages: u64,
    standing: &'static str,
    sent_messages: u64,
    sent_bytes: u64,
}

pub fn subject_of(entry: &Entry) -> Option<&str> {
    entry.bearer.as_ref()?.subject.as_deref()
}

/// Messages that it does not have yet, in the channel that it is furthest behind in.
pub fn lag_of(state: &State, entry: &Entry) -> u64 {
    entry.subs.as_slice().iter().filter_map(|sub| lag_in(state, *sub)).max().unwrap_or(0)
}

fn lag_in(state: &State, sub: Sub) -> Option<u64> {
    let feed = state.feeds.get(sub.feed)?;
    let reader = feed.lanes.get(usize::from(sub.lane))?.readers.get(sub.index as usize)?;
    Some(feed.head().seq.saturating_sub(reader.seq))
}

pub fn row(state: &State, conn: ConnId, entry: &Entry) -> Row {
    let (mut messages, mut bytes) = (u64::from(entry.sent_messages), entry.sent_bytes);
    for sub in entry.subs.as_slice() {
        if let Some(lane) = state.feeds.get(sub.feed).and_then(|feed| feed.lanes.get(usize::from(sub.lane)))
            && let Some(reader) = lane.readers.get(sub.index as usize)
        {
            messages += u64::from(reader.messages);
            bytes += reader.bytes;
        }
    }
    let blocked = state.blocked.get(&conn.slot).filter(|_| entry.flags.blocked);
    Row {
        id: connection_id(state, conn),
        worker: state.index,
        transport: entry.kind.transport().as_str(),
        state: state_of(entry),
        address: entry.peer.to_string(),
        subject: subject_of(entry).map(str::to_owned),
        age_seconds: seconds_since(state, entry.opened_tick),
        channels: entry.subs.as_slice().len(),
        lag_messages: lag_of(state, entry),
        owed_bytes: entry.owed.as_ref().map_or(0, |owed| owed.len()),
        blocked_seconds: blocked.map(|tick| seconds_since(state, *tick)),
        sent_messages: messages,
        sent_bytes: bytes,
    }
}

/// One that is in the middle of a request, or of an answer.
pub fn row_of_task(state: &State, conn: ConnId, waiting: &Waiting) -> Row {
    Row {
        id: connection_id(state, conn),
        worker: state.index,
        transport: Transport::Http.as_str(),
        state: waiting.awaits.as_str(),
        address: waiting.peer.to_string(),
        subject: None,
        age_seconds: seconds_since(state, waiting.opened_tick),
        channels: 0,
        lag_messages: 0,
        owed_bytes: 0,
        blocked_seconds: (waiting.awaits == Awaits::Answer).then(|| seconds_since(state, waiting.since_tick)),
        sent_messages: 0,
        sent_bytes: 0,
    }
}

fn portrait_of_task(state: &State, conn: ConnId) -> Option<Portrait> {
    let waiting = state.tasks.named(conn)?;
    let since = seconds_since(state, waiting.since_tick);
    let blocked = waiting.awaits == Awaits::Answer;
    Some(Portrait {
        row: row_of_task(state, conn, waiting),
        token_id: None,
        expires_at: None,
        heard_seconds_ago: since,
        said_seconds_ago: since,
        flags: Flags { blocked, busy: false, pinged: false, input_off: blocked, shut: false },
        reads: Vec::new(),
        tcp: tcp_state(waiting.fd),
    })
}

/// All of a connection; `None`: it is not there.
pub fn of(state: &State, conn: ConnId) -> Option<Portrait> {
    if conn.slot >= TASKS_FROM {
        return portrait_of_task(state, conn);
    }
    let entry = state.conn(conn)?;
    let bearer = entry.bearer.as_deref();
    let reads: Vec<Reading> = entry.subs.as_slice().iter().filter_map(|sub| reading(state, *sub)).collect();
    let sent = entry.subs.as_slice().iter().filter_map(|sub| {
        let lane = state.feeds.get(sub.feed)?.lanes.get(usize::from(sub.lane))?;
        Some(lane.readers.get(sub.index as usize)?.sent_tick)
    });
    let said_tick = sent.fold(entry.said_tick, u32::max);
    let flags = entry.flags;
    Some(Portrait {
        row: row(state, conn, entry),
        token_id: bearer.and_then(|bearer| bearer.token_id.as_deref()).map(str::to_owned),
        expires_at: bearer.and_then(|bearer| bearer.expires_s),
        heard_seconds_ago: seconds_since(state, entry.heard_tick),
        said_seconds_ago: seconds_since(state, said_tick),
        flags: Flags {
            blocked: flags.blocked,
            busy: flags.busy,
            pinged: flags.pinged,
            input_off: flags.input_off,
            shut: flags.shut,
        },
        reads,
        tcp: tcp_state(entry.fd),
    })
}

fn reading(state: &State, sub: Sub) -> Option<Reading> {
    let feed = state.feeds.get(sub.feed)?;
    let reader = feed.lanes.get(usize::from(sub.lane))?.readers.get(sub.index as usize)?;
    Some(Reading {
        channel: feed.name.as_str().to_owned(),
        cursor: feed.at(reader.seq).text().to_string(),
        lag_messages: feed.head().seq.saturating_sub(reader.seq),
        standing: match reader.standing {
            Standing::Live => "live",
            Standing::Blocked => "blocked",
            Standing::CatchUp => "catching_up",
        },
        sent_messages: u64::from(reader.messages),
        sent_bytes: reader.bytes,
    })
}

fn state_of(entry: &Entry) -> &'static str {
    match entry.kind {
        Kind::Handshake => "handshake",
        Kind::Idle => "idle",
        Kind::Publishing(_) => "publishing",
        Kind::Poll(_) => "waiting",
        Kind::Sse | Kind::Ws { .. } => "streaming",
        Kind::Ending { .. } => "ending",
    }
}

fn seconds_since(state: &State, tick: u32) -> f64 {
    (u64::from(state.tick().saturating_sub(tick)) * TICK_MS) as f64 / 1_000.0
}
