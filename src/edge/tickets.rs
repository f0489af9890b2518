//! `POST /tickets`: a ticket for one who cannot send headers, and the end of the stream that a ticket opened before.
//! How long a ticket counts is `auth`'s.

use std::rc::Rc;
use std::sync::Arc;

use crate::proto::json;
use crate::runtime::caller::Caller;
use crate::runtime::close::Reason;
use crate::runtime::entry::ConnId;
use crate::runtime::quotas::Limited;
use crate::runtime::state::State;
use crate::runtime::stats::Refusal as Counted;
use crate::runtime::worker::Worker;

use super::answer::Answer;
use super::auth::{Asked, Opened, TicketUse, TokenKey, UNUSED_S_MAX};
use super::doorman::Doorman;
use super::publish::with_retry_after;
use super::site::Site;

/// The answer to who asked for a ticket, and may have one.
pub fn give(site: &Site, worker: &Rc<Worker>, bearer: &Caller, key: TokenKey, now_s: u64) -> Answer {
    let claims = Arc::clone(bearer.claims());
    let asked = site.doorman.auth().tickets.give(claims, key, &site.node.memory, now_s);
    worker.with(|state| state.see_growth());
    let Ok(asked) = asked else {
        tracing::error!("no ticket: this machine has no random bytes");
        return Answer::problem(500, "a fault of the server; ask again later");
    };
    let Asked::Given { ticket, expires_in_s } = asked else {
        worker.stats().refuse(Counted::Memory);
        tracing::debug!("no ticket: as many are given as may be");
        let answer = Answer::problem(503, "the server has given as many tickets as it may; ask again later");
        return with_retry_after(worker, answer);
    };
    let mut body = Vec::with_capacity(128);
    body.extend_from_slice(br#"{"ticket":"#);
    json::write_str(&mut body, &ticket);
    body.extend_from_slice(br#","use_within":"#);
    json::write_u64(&mut body, UNUSED_S_MAX.min(expires_in_s));
    body.extend_from_slice(br#","expires_in":"#);
    json::write_u64(&mut body, expires_in_s);
    body.push(b'}');
    Answer::json(201, body).field("Cache-Control", "no-store")
}

/// The answer to who asks for tickets faster than they may.
pub fn over_quota(worker: &Rc<Worker>, limited: Limited) -> Answer {
    worker.stats().refuse(Counted::Quota);
    let detail = format!("{}; a ticket counts as a publish", limited.detail());
    with_retry_after(worker, Answer::problem(429, detail))
}

/// Where anyone may read, nobody needs a ticket.
pub fn none_needed() -> Answer {
    Answer::problem(
        404,
        "this server has no authentication configured, and so no tickets; leave the ticket out",
    )
}

/// Where quotas bind, the stream that a ticket opened before ends before the next is counted: one takes the other's place.
pub async fn make_way(site: &Site, worker: &Rc<Worker>, ticket: Option<TicketUse>) {
    if let Some(before) = before(site, worker, ticket) {
        worker.on_worker(before.worker, move |state| replace(state, before.conn)).await;
    }
}

/// The same where nothing may be waited for. False: the stream before is another worker's.
pub fn make_way_here(site: &Site, worker: &Rc<Worker>, ticket: Option<TicketUse>) -> bool {
    let Some(before) = before(site, worker, ticket) else { return true };
    let is_here = worker.with(|state| state.index) == before.worker;
    if is_here {
        worker.with(|state| replace(state, before.conn));
    }
    is_here
}

fn before(site: &Site, worker: &Rc<Worker>, ticket: Option<TicketUse>) -> Option<Opened> {
    let ticket = ticket.filter(|_| site.node.quotas.is_some())?;
    // Who is refused anyway keeps what they have.
    if worker.with(|state| state.is_full() || state.draining.is_some()) {
        return None;
    }
    site.doorman.auth().tickets.before(ticket)
}

/// A stream begins that was opened with a ticket: noted before its client hears of it, who may come again at once. The one
/// that the ticket opened before ends, on whatever worker that is.
pub fn begins(state: &mut State, doorman: &Doorman, ticket: Option<TicketUse>, conn: ConnId) {
    let Some(ticket) = ticket else { return };
    let stream = Opened { worker: state.index, conn };
    match doorman.auth().tickets.opened(ticket, stream) {
        // It ends itself, once it has begun.
        Some(before) if before == stream => {}
        Some(before) if before.worker == state.index => replace(state, before.conn),
        Some(before) => {
            state.node.on_worker(before.worker, move |state: &mut State| replace(state, before.conn));
        }
        None => {}
    }
}

/// It has begun: if the client has come again meanwhile, it ends.
pub fn opened(site: &Site, worker: &Rc<Worker>, ticket: Option<TicketUse>, stream: Option<ConnId>) {
    let (Some(ticket), Some(conn)) = (ticket, stream) else { return };
    worker.with(|state| {
        let stream = Opened { worker: state.index, conn };
        if site.doorman.auth().tickets.opened(ticket, stream) == Some(stream) {
            replace(state, conn);
        }
    });
}

fn replace(state: &mut State, conn: ConnId) {
    if state.conn(conn).is_some() {
        let reconnect_ms = state.reconnect_ms();
        state.farewell(conn.slot, Reason::Replaced, reconnect_ms);
        state.end_reading(conn);
        state.bury();
    }
}
