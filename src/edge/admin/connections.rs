//! `/connections`: who is connected, found by what is known of them; `/connections/{id}`: all that is known of one, and
//! its end.
//! Owns the questions and the walk over the workers, one after another, a slice at a time. What one connection is told as
//! is `portrait`'s. Listed are connections that a worker holds, streams, polls that wait, and those between requests, and
//! those that a task waits for: in the middle of a request, or of an answer. One whose request is being answered just now
//! is listed again a moment later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::domain::channel::Name;
use crate::domain::home::WorkerIndex;
use crate::runtime::close::{Reason, Transport};
use crate::runtime::entry::{ConnId, Entry, Kind};
use crate::runtime::identity::read_id;
use crate::runtime::peer::Peer;
use crate::runtime::state::State as Worker;
use crate::runtime::tasks::TASKS_FROM;

use super::desk::{Desk, SLICE};
use super::portrait::{self, Portrait, Row};
use super::problem::Refused;
use super::{LIMIT, LIMIT_MAX, limit_of};

/// Entries looked at before the clock is.
const LOOKS: u32 = 256;
/// A search goes on for so long; then it tells what it found, and where to go on.
const SEARCH_MAX: Duration = Duration::from_secs(5);

pub fn routes() -> Router<Desk> {
    Router::new().route("/connections", get(list)).route("/connections/{id}", get(show).delete(kick))
}

/// What a list is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    subject: Option<String>,
    channel: Option<String>,
    address: Option<String>,
    lag: Option<u64>,
    transport: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

/// The same, understood.
#[derive(Debug)]
struct Search {
    subject: Option<String>,
    channel: Option<Name>,
    from: Option<From>,
    lag: Option<u64>,
    transport: Option<Transport>,
}

/// Where a connection comes from.
#[derive(Debug, PartialEq)]
enum From {
    Network(IpNet),
    Unix,
}

/// Where a list goes on: a worker, and the slot there.
#[derive(Debug, Clone, Copy, PartialEq)]
struct At {
    worker: WorkerIndex,
    slot: u32,
}

#[derive(Debug, Serialize)]
struct List {
    connections: Vec<Row>,
    /// What `after` is to be for those that follow; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

async fn list(
    State(desk): State<Desk>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Json<List>, Refused> {
    let Query(wanted) = wanted?;
    let limit = limit_of(wanted.limit, LIMIT, LIMIT_MAX)?;
    let at = wanted.after.as_deref().map_or(Ok(At { worker: 0, slot: 0 }), At::parse)?;
    let search = Arc::new(Search::of(wanted)?);
    let until = Instant::now() + SEARCH_MAX;
    let (mut connections, mut next) = (Vec::new(), Some(at));
    while let Some(At { worker, slot }) = next {
        if connections.len() == limit || Instant::now() >= until {
            break;
        }
        let (search, room) = (Arc::clone(&search), limit - connections.len());
        let (found, goes_on) = desk.ask(worker, move |state| search.look(state, slot, room)).await?;
        connections.extend(found);
        next = match goes_on {
            Some(slot) => Some(At { worker, slot }),
            None => Some(At { worker: worker + 1, slot: 0 })
                .filter(|at| desk.workers().any(|worker| worker == at.worker)),
        };
    }
    Ok(Json(List { connections, next: next.map(At::text) }))
}

async fn show(State(desk): State<Desk>, Path(id): Path<String>) -> Result<Json<Portrait>, Refused> {
    let (worker, conn) = place_of(&desk, &id)?;
    let portrait = desk.ask(worker, move |state| portrait::of(state, conn)).await?;
    portrait.map(Json).ok_or_else(|| gone(&id))
}

async fn kick(State(desk): State<Desk>, Path(id): Path<String>) -> Result<StatusCode, Refused> {
    let (worker, conn) = place_of(&desk, &id)?;
    let was_there = desk.ask(worker, move |state| end(state, conn)).await?;
    if was_there { Ok(StatusCode::NO_CONTENT) } else { Err(gone(&id)) }
}

/// Ends a connection as its transport says it. False when it is not there any more.
fn end(state: &mut Worker, conn: ConnId) -> bool {
    if conn.slot >= TASKS_FROM {
        return state.kick_task(conn);
    }
    let is_open = |entry: &Entry| !matches!(entry.kind, Kind::Ending { .. });
    if !state.conn(conn).is_some_and(is_open) {
        return false;
    }
    let reconnect_ms = state.reconnect_ms();
    state.farewell(conn.slot, Reason::Kicked, reconnect_ms);
    state.bury();
    true
}

fn place_of(desk: &Desk, id: &str) -> Result<(WorkerIndex, ConnId), Refused> {
    let place =
        read_id(&desk.node().secret, id).filter(|(worker, _)| desk.workers().any(|known| known == *worker));
    place.ok_or_else(|| {
        Refused::new(
            StatusCode::NOT_FOUND,
            "this is no connection id of this process; ids are those of $open, open, the log and /connections",
        )
    })
}

fn gone(id: &str) -> Refused {
    Refused::new(
        StatusCode::NOT_FOUND,
        format!("connection {id} is not open, or has become another by a new request"),
    )
}

impl At {
    fn parse(text: &str) -> Result<Self, Refused> {
        let parts =
            text.split_once('.').and_then(|(worker, slot)| Some((worker.parse().ok()?, slot.parse().ok()?)));
        let (worker, slot) =
            parts.ok_or_else(|| Refused::bad("after is what `next` of an earlier answer was"))?;
        Ok(Self { worker, slot })
    }

    fn text(self) -> String {
        format!("{}.{}", self.worker, self.slot)
    }
}

impl From {
    fn parse(text: &str) -> Result<Self, Refused> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        network.map(Self::Network).map_err(|_| {
            Refused::bad(format!("address = {text}: must be an address, a network like 10.0.0.0/8, or unix"))
        })
    }

    fn has(&self, peer: &Peer) -> bool {
        match (self, peer.ip()) {
            (Self::Unix, ip) => ip.is_none(),
            (Self::Network(network), Some(ip)) => network.contains(&ip),
            (Self::Network(_), None) => false,
        }
    }
}

impl Search {
    fn of(wanted: Wanted) -> Result<Self, Refused> {
        let Wanted { subject, channel, address, lag, transport, .. } = wanted;
        let channel = channel.as_deref().map(Name::parse).transpose();
        let transport = transport.map(|text| {
            Transport::parse(&text).ok_or_else(|| {
                let known: Vec<_> = Transport::ALL.iter().map(|transport| transport.as_str()).collect();
                Refused::bad(format!("transport = {text}: must be one of {}", known.join(", ")))
            })
        });
        Ok(Self {
            subject,
            channel: channel.map_err(|error| Refused::bad(error.detail()))?,
            from: address.as_deref().map(From::parse).transpose()?,
            lag,
            transport: transport.transpose()?,
        })
    }

    /// Looks at one worker's connections from a slot on, for a slice of time: what fits, and the slot to go on from.
    fn look(&self, state: &Worker, from: u32, room: usize) -> (Vec<Row>, Option<u32>) {
        let until = Instant::now() + SLICE;
        let feed = match &self.channel {
            None => None,
            Some(name) => match state.feeds_by_name.get(name) {
                Some(feed) => Some(*feed),
                // Nobody here reads it.
                None => return (Vec::new(), None),
            },
        };
        if from >= TASKS_FROM {
            return self.look_at_tasks(state, from, room);
        }
        let (mut found, mut at, end) = (Vec::new(), from, state.conns.slots_end());
        while at < end {
            let stop = at.saturating_add(LOOKS).min(end);
            for (slot, generation, entry) in state.conns.range(at..stop) {
                if self.fits(state, entry, feed) {
                    found.push(portrait::row(state, ConnId { slot, generation }, entry));
                    if found.len() == room {
                        return (found, goes_on(state, slot + 1));
                    }
                }
            }
            at = stop;
            if Instant::now() >= until {
                break;
            }
        }
        (found, goes_on(state, at))
    }

    /// The same of connections that tasks wait for: they read no channel, and it is not known yet whose they are.
    fn look_at_tasks(&self, state: &Worker, from: u32, room: usize) -> (Vec<Row>, Option<u32>) {
        let is_wanted = self.transport.is_none_or(|transport| transport == Transport::Http)
            && self.channel.is_none()
            && self.subject.is_none()
            && self.lag.is_none_or(|lag| lag == 0);
        let mut found = Vec::new();
        for (conn, waiting) in state.tasks.seen_from(from).filter(|_| is_wanted) {
            if found.len() == room {
                return (found, Some(conn.slot));
            }
            if self.from.as_ref().is_none_or(|from| from.has(&waiting.peer)) {
                found.push(portrait::row_of_task(state, conn, waiting));
            }
        }
        (found, None)
    }

    fn fits(&self, state: &Worker, entry: &Entry, feed: Option<u32>) -> bool {
        self.transport.is_none_or(|transport| entry.kind.transport() == transport)
            && feed.is_none_or(|feed| entry.subs.of_feed(feed).is_some())
            && self.from.as_ref().is_none_or(|from| from.has(&entry.peer))
            && self.subject.as_ref().is_none_or(|subject| portrait::subject_of(entry) == Some(subject))
            && self.lag.is_none_or(|lag| portrait::lag_of(state, entry) >= lag)
    }
}

/// Where a worker's list goes on behind all slots below `at`: those of the holder come first.
fn goes_on(state: &Worker, at: u32) -> Option<u32> {
    if at < state.conns.slots_end() {
        return Some(at);
    }
    state.tasks.seen_from(TASKS_FROM).next().map(|_| TASKS_FROM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_understood_or_refused() {
        let at = At { worker: 3, slot: 1_024 };
        assert_eq!(At::parse(&at.text()).ok(), Some(at));
        for wrong in ["", "1", "a.b", "1.", "-1.2", "70000.1"] {
            assert!(At::parse(wrong).is_err(), "{wrong}");
        }
        let peer = |text: &str| Peer::new(text.parse().expect("an address"), 1);
        for (from, who, want) in [
            ("127.0.0.1", peer("127.0.0.1"), true),
            ("127.0.0.1", peer("127.0.0.2"), false),
            ("10.0.0.0/8", peer("10.9.9.9"), true),
            ("2001:db8::/32", peer("2001:db8:1::1"), true),
            ("2001:db8::/32", peer("10.0.0.1"), false),
            ("10.0.0.0/8", Peer::UNIX, false),
            ("unix", Peer::UNIX, true),
            ("unix", peer("10.0.0.1"), false),
        ] {
            assert_eq!(From::parse(from).expect("a place").has(&who), want, "{from} {who}");
        }
        for wrong in ["localhost", "10.0.0.0/99", ""] {
            assert!(From::parse(wrong).is_err(), "{wrong}");
        }
        let wanted = |transport: &str| Wanted { transport: Some(transport.into()), ..Wanted::default() };
        assert!(
            Search::of(wanted("pushline.v1")).is_ok_and(|search| search.transport == Some(Transport::V1))
        );
        assert!(Search::of(wanted("telnet")).is_err());
        assert!(Search::of(Wanted { channel: Some("a//b".into()), ..Wanted::default() }).is_err());
    }
}
