//! New tokens for connections that live: `auth` of `pushline.v1` and `POST /connections/{id}/auth`; and the first token of
//! a v1 connection that came without one, whose channels wait for it.
//! Owns what a new token changes. Whether it is good is the doorman's to say.

use std::rc::Rc;
use std::sync::Arc;

use crate::domain::auth::{Act, Bearer, Proof};
use crate::domain::channel::Name;
use crate::domain::lane::Encoding;
use crate::domain::page::From;
use crate::proto::envelope::{self, Seq};
use crate::proto::json;
use crate::proto::refusal::{ErrorCode, Refusal};
use crate::proto::ws::handshake::write_switching;
use crate::runtime::caller::Caller;
use crate::runtime::close::{Reason, Transport};
use crate::runtime::entry::{ConnId, Kind};
use crate::runtime::framing::text_frame;
use crate::runtime::peer::Peer;
use crate::runtime::state::State;
use crate::runtime::stats::Refusal as Counted;
use crate::runtime::stream::Stream;
use crate::runtime::tokens::{Lost, NotRenewed, Waiting};
use crate::runtime::trace::{What, Who};
use crate::runtime::worker::Worker;

use super::answer::Answer;
use super::auth::{Declined, Denied, Unwelcome};
use super::doorman::{self, Doorman};
use super::identity::{connection_id, find_connection};
use super::site::Site;
use super::stream::{begin_reading, end_unless, on_opened, places};
use super::websocket::{Handshake, subscribed_frame};

/// How long a `pushline.v1` connection may take to bring its first token: 10 s.
const FIRST_TOKEN_TICKS: u32 = 100;

const TAKES_NONE: Refusal = Refusal::new(
    ErrorCode::Unauthorized,
    "this server takes no tokens: it has no keys configured; leave auth out",
);
const NOT_YET: Refusal = Refusal::new(
    ErrorCode::Unauthorized,
    "this connection has not said who it is; send {\"type\":\"auth\",\"token\":…} first",
);

/// What a `pushline.v1` connection may do before its token has come: nothing.
///
/// # Errors
/// The refusal to tell.
pub fn has_begun(site: &Site, worker: &Rc<Worker>, conn: ConnId) -> Result<(), Refusal> {
    let waits = || worker.with(|state| state.conn(conn).is_some_and(|entry| entry.flags.waiting));
    if !site.doorman.is_open() && waits() { Err(NOT_YET) } else { Ok(()) }
}

/// `auth` of `pushline.v1`.
///
/// # Errors
/// The refusal to tell; the connection stays, with the token that it had.
pub async fn authenticate(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    token: &str,
    seq: Option<Seq>,
) -> Result<(), Declined> {
    if site.doorman.is_open() {
        return Err(TAKES_NONE.into());
    }
    let now_s = site.node.clock.now_ms() / 1_000;
    let peer = worker.with(|state| state.conn(conn).map(|entry| entry.peer));
    let bearer = site.doorman.verify_token(token, now_s).and_then(|bearer| {
        match worker.with(|state| state.may_renew(conn, &bearer, true)) {
            Ok(()) => Ok(bearer),
            Err(NotRenewed::Unknown) => Err(Denied::NoToken.into()),
            Err(NotRenewed::OtherSubject | NotRenewed::WithoutToken) => {
                Err(Unwelcome::of(Denied::OtherSubject, &bearer))
            }
        }
    });
    let bearer = bearer.map_err(|unwelcome| {
        if let Some(peer) = peer {
            doorman::note_unwelcome(&unwelcome, peer);
            trace_unwelcome(worker, &unwelcome, peer);
        }
        worker.stats().refuse(unwelcome.denied.counted());
        unwelcome.denied
    })?;
    worker.with(|state| state.count_for_subject(conn, &bearer)).map_err(|limited| {
        worker.stats().refuse(Counted::Quota);
        Refusal::new(ErrorCode::RateLimited, limited.detail())
    })?;
    let mut out = Vec::with_capacity(96);
    text_frame(&mut out, |json| envelope::write_v1_authenticated(json, left_s(&bearer, now_s), seq));
    let waiting = worker.with(|state| {
        state.say(conn.slot, &out);
        state.renew(conn, bearer.clone());
        let waiting = state.take_waiting(conn);
        if waiting.is_none() {
            lose(&site.doorman, state, conn, &bearer);
        }
        state.bury();
        waiting
    });
    if let Some(waiting) = waiting {
        begin(site, worker, conn, &bearer, *waiting).await;
    }
    Ok(())
}

/// Whoever watches the subject hears of it; whoever watches the connection does anyway.
fn trace_unwelcome(worker: &Rc<Worker>, unwelcome: &Unwelcome, peer: Peer) {
    worker.with(|state| {
        if state.is_traced() && unwelcome.who.is_some() {
            let who =
                Who { subject: unwelcome.subject(), transport: Some(Transport::V1), ..Who::of_peer(peer) };
            state.trace(who, || What::Denied { why: unwelcome.why() });
        }
    });
}

/// Opens a `pushline.v1` connection whose token is still to come: until then the URL's channels wait.
pub fn open_waiting(
    worker: &Rc<Worker>,
    mut stream: Stream,
    handshake: &Handshake,
    names: Vec<Name>,
    from: Vec<From>,
    mut leftover: Vec<u8>,
) {
    let mut out = Vec::with_capacity(256);
    write_switching(&mut out, &handshake.accept, handshake.subprotocol);
    let refused = if worker.with(|state| state.is_full()) {
        Some((Reason::Full, Counted::Memory))
    } else {
        // Its channels are counted when they begin, with whose they are.
        begin_reading(worker, &mut stream, &[]).err().map(|_| (Reason::RateLimited, Counted::Quota))
    };
    let noted = stream.noted.take();
    let Some(socket) = stream.into_socket() else { return };
    worker.with(|state| {
        let conn = state.adopt(socket, Kind::Ws { v1: true, reader: Default::default(), begun_tick: 0 });
        state.stats().answer(101);
        on_opened(state, noted, 101, out.len(), conn);
        let is_draining = state.draining.is_some();
        let refused = if is_draining { Some((Reason::Drain, Counted::Draining)) } else { refused };
        if let Some((reason, counted)) = refused {
            state.say(conn.slot, &out);
            state.stats().refuse(counted);
            return farewell(state, conn, reason);
        }
        let id = connection_id(state, conn);
        text_frame(&mut out, |json| envelope::write_v1_open(json, &id));
        state.say(conn.slot, &out);
        let until_tick = state.tick() + FIRST_TOKEN_TICKS;
        if !state.wait_for_token(conn, Waiting { names, from, until_tick }) {
            state.stats().refuse(Counted::Memory);
            return farewell(state, conn, Reason::Full);
        }
        if !leftover.is_empty() {
            state.on_frames(conn, &mut leftover);
        }
        state.bury();
    });
}

/// Subscribes the channels that waited for the token.
async fn begin(site: &Site, worker: &Rc<Worker>, conn: ConnId, bearer: &Caller, waiting: Waiting) {
    let Waiting { names, from, .. } = waiting;
    let Some(peer) = worker.with(|state| state.conn(conn).map(|entry| entry.peer)) else { return };
    if let Err(denied) = site.doorman.permit(bearer, Act::Subscribe, &names, peer) {
        worker.with(|state| {
            state.stats().refuse(denied.counted());
            doorman::trace_conn(state, conn, denied);
            farewell(state, conn, denied.reason());
        });
        return;
    }
    if let Err(limited) = worker.with(|state| state.begin_stream(conn, names.len())) {
        worker.with(|state| {
            state.stats().refuse(Counted::Quota);
            state.trace_conn_limited(conn, limited);
            farewell(state, conn, Reason::RateLimited);
        });
        return;
    }
    let places = places(worker, &names, &from).await;
    worker.with(|state| {
        let Ok(places) = places else {
            state.stats().refuse(Counted::Overloaded);
            return farewell(state, conn, Reason::Full);
        };
        if state.conn(conn).is_none() {
            return;
        }
        let mut out = Vec::with_capacity(128 * names.len());
        for (name, place) in names.iter().zip(&places) {
            subscribed_frame(&mut out, name, place, None);
        }
        state.say(conn.slot, &out);
        let read = places.iter().all(|place| state.subscribe(conn.slot, *place, Encoding::V1, false));
        end_unless(state, conn, read);
        recheck(&site.doorman, state, conn, bearer);
        state.bury();
    });
}

/// Looks once more at a connection that was permitted, by `bearer`, what it reads only now: meanwhile its token may have
/// been taken back, or replaced by one for less.
pub fn recheck(doorman: &Doorman, state: &mut State, conn: ConnId, bearer: &Caller) {
    doorman.recheck(state, conn);
    let now = state.conn(conn).and_then(|entry| entry.bearer.clone());
    if let Some(now) = now.filter(|now| !now.is(bearer)) {
        lose(doorman, state, conn, &now);
    }
}

fn farewell(state: &mut State, conn: ConnId, reason: Reason) {
    if state.conn(conn).is_some() {
        let reconnect_ms = state.reconnect_ms();
        state.farewell(conn.slot, reason, reconnect_ms);
        state.bury();
    }
}

/// Ends the subscriptions that a new token does not cover.
fn lose(doorman: &Doorman, state: &mut State, conn: ConnId, bearer: &Bearer) {
    let is_lost = |name: &Name| !doorman.may(bearer, Act::Subscribe, name);
    state.lose_channels(conn, Lost::NotCovered, is_lost);
}

fn left_s(bearer: &Bearer, now_s: u64) -> u64 {
    bearer.expires_s.unwrap_or(u64::MAX).saturating_sub(now_s)
}

/// `POST /connections/{id}/auth` by `bearer`. The connection is any worker's.
///
/// # Errors
/// [`Denied`]
pub async fn renew(site: &Site, worker: &Rc<Worker>, id: &str, bearer: &Caller) -> Result<Answer, Denied> {
    if bearer.proof != Proof::Token {
        return Err(Denied::NoToken);
    }
    let Some((index, conn)) = find_connection(&site.node, id) else { return Ok(unknown()) };
    let now_s = site.node.clock.now_ms() / 1_000;
    let (renewed, auth) = (Arc::clone(bearer.claims()), Arc::clone(site.doorman.auth()));
    let done = worker.on_worker(index, move |state| {
        state.may_renew(conn, &renewed, false).map_err(NotDone::Because)?;
        if auth.revocations.has(&renewed) {
            return Err(NotDone::Revoked);
        }
        let renewed = Caller::of(renewed);
        state.renew(conn, renewed.clone());
        let is_lost = |name: &Name| !auth.may(&renewed, Act::Subscribe, name);
        state.lose_channels(conn, Lost::NotCovered, is_lost);
        state.bury();
        Ok(())
    });
    match done.await.unwrap_or(Err(NotDone::Because(NotRenewed::Unknown))) {
        Ok(()) => {
            let mut body = br#"{"expires_in":"#.to_vec();
            json::write_u64(&mut body, left_s(bearer, now_s));
            body.push(b'}');
            Ok(Answer::json(200, body).field("Cache-Control", "no-store"))
        }
        Err(NotDone::Because(NotRenewed::Unknown)) => Ok(unknown()),
        Err(NotDone::Because(NotRenewed::WithoutToken)) => Err(Denied::WithoutToken),
        Err(NotDone::Because(NotRenewed::OtherSubject)) => Err(Denied::OtherSubject),
        Err(NotDone::Revoked) => Err(Denied::Revoked),
    }
}

/// Why a connection was not renewed.
enum NotDone {
    Because(NotRenewed),
    /// While it was on the way to the connection's worker.
    Revoked,
}

/// Where anyone may read, nobody renews anything.
pub fn none_needed() -> Answer {
    Answer::problem(
        404,
        "this server has no authentication configured, and so no tokens to renew; leave the request out",
    )
}

fn unknown() -> Answer {
    Answer::problem(404, "no connection has this id, or no longer; open a new one with the token")
}
