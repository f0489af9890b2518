//! Streams that are opened where their request was read, without a task: those that came whole, and are good, of channels
//! that are on this worker. When all readers come back at once, nearly all are.
//! Owns the choice of them. How a stream begins is `stream`'s; whoever is not served here, or refused, is a task's.

use std::rc::Rc;
use std::time::Instant;

use crate::domain::auth::Act;
use crate::domain::channel::Name;
use crate::domain::page::From;
use crate::proto::http::fields::Accept;
use crate::proto::http::head::HeadScanner;
use crate::proto::http::request::{FieldSlots, Method, Request, Upgrade, Version, parse};
use crate::proto::http::target::{Query, Target, decode_path};
use crate::runtime::caller::Caller;
use crate::runtime::close::Reason;
use crate::runtime::entry::ConnId;
use crate::runtime::feeds::Place;
use crate::runtime::peer::Peer;
use crate::runtime::quotas::Begins;
use crate::runtime::state::Socket;
use crate::runtime::stats::Refusal;
use crate::runtime::worker::Worker;

use super::answer::Manner;
use super::ask;
use super::at_once::now;
use super::auth::TicketUse;
use super::channels::{parse_names, stream_start, switch};
use super::forwarding;
use super::site::Site;
use super::stream::{Client, Events, begin_events, event_stream_head, places, refuse_events};
use super::tickets;
use super::websocket::{Handshake, begin_websocket, refuse_switched};

/// What a request wants opened.
enum Wanted {
    WebSocket(Handshake),
    /// By Server-Sent Events; in envelopes or not.
    Events {
        envelope: bool,
    },
}

/// Opens the stream that a newcomer's first bytes ask for, and takes the socket. Where it does not, nothing was done that
/// would be done twice.
pub fn open(site: &Site, worker: &Rc<Worker>, newcomer: &mut Option<Socket>, input: &[u8]) -> Option<()> {
    let mut slots = FieldSlots::new();
    let span = HeadScanner::new(site.settings().limits.head_bytes).find(input).ok()??;
    let request = parse(input, span, &mut slots).ok()?;
    let leftover = input.get(span.used()..)?;
    let Socket { fd, peer, .. } = *newcomer.as_ref()?;
    let accept = Accept::parse(request.fields.all("accept"));
    if !is_for_here(&request, accept) || worker.with(|state| state.turns_away(fd).is_some()) {
        return None;
    }
    let opening = Opening::of(site, worker, peer, &request)?;
    opening.begin(site, worker, newcomer.take()?, &request, leftover);
    Some(())
}

/// The same for the request of a held connection, which is all that came. `None`: the connection is still what it was.
pub fn open_held(
    site: &Site,
    worker: &Rc<Worker>,
    conn: ConnId,
    request: &Request<'_>,
    leftover: &[u8],
) -> Option<()> {
    let peer = worker.with(|state| state.conn(conn).map(|entry| entry.peer))?;
    let opening = Opening::of(site, worker, peer, request)?;
    if let Some(socket) = worker.with(|state| state.release(conn.slot)) {
        opening.begin(site, worker, socket, request, leftover);
    }
    Some(())
}

/// Whether a request may be one to open a stream here.
pub fn is_for_here(request: &Request<'_>, accept: Accept) -> bool {
    request.method == Method::Get
        && request.version == Version::Http11
        && request.keep_alive
        && request.body.is_empty()
        && !request.expect_continue
        && (request.upgrade != Upgrade::None || accept.event_stream)
}

/// A stream that may begin.
struct Opening<'r> {
    wanted: Wanted,
    names: Vec<Name>,
    from: Vec<From>,
    places: Vec<Place>,
    manner: Manner<'r>,
    /// The client, behind whatever passes its request on.
    peer: Peer,
    bearer: Option<Caller>,
    ticket: Option<TicketUse>,
}

impl<'r> Opening<'r> {
    /// `None`: for a task, or not at all.
    fn of(site: &Site, worker: &Rc<Worker>, sender: Peer, request: &Request<'r>) -> Option<Self> {
        let Target::Path { path, query } = request.target else { return None };
        let names = parse_names(decode_path(path).ok()?.strip_prefix("/channels/")?).ok()?;
        if !names.iter().all(|name| ask::is_live_here(worker, name)) {
            return None;
        }
        let passed = site.gate.pass(request).ok()?;
        let (wanted, from) = wanted(request, query, names.len())?;
        // Whoever watches is told of each step, by the task that takes it.
        if worker.with(|state| state.is_traced() || state.draining.is_some() || state.is_full()) {
            return None;
        }
        let places = now(places(worker, &names, &from))?.ok()?;
        let unix_s = site.node.clock.now_ms() / 1_000;
        let manner =
            Manner { method: Method::Get, version: Version::Http11, keep_alive: true, passed, unix_s };
        let proxy = &site.settings().proxy;
        let peer = match proxy.forwards(&sender) {
            true => forwarding::client(proxy, &request.fields, sender),
            false => sender,
        };
        let (mut bearer, mut ticket) = (None, None);
        if !site.doorman.is_open() {
            let admitted = site.doorman.admit(request, query, peer, unix_s).ok()?;
            if !names.iter().all(|name| site.doorman.may(&admitted.bearer, Act::Subscribe, name)) {
                return None;
            }
            (bearer, ticket) = (Some(admitted.bearer), admitted.ticket);
            if !tickets::make_way_here(site, worker, ticket) {
                return None;
            }
        }
        Some(Self { wanted, names, from, places, manner, peer, bearer, ticket })
    }

    /// Begins it, or says that the client has as many as it may.
    fn begin(
        self,
        site: &Site,
        worker: &Rc<Worker>,
        mut socket: Socket,
        request: &Request<'r>,
        leftover: &[u8],
    ) {
        let Self { wanted, names, from, places, manner, peer, bearer, ticket } = self;
        (socket.peer, socket.bearer) = (peer, bearer);
        let is_limited = site.node.begin_reading(&mut socket, names.len(), Begins::Stream).is_err();
        let opened = worker.with(|state| {
            let noted = if state.notes() { state.note(request, peer, Instant::now()) } else { None };
            let client = Client { socket, noted, ticket };
            let (reason, counted) = (Reason::RateLimited, Refusal::Quota);
            match wanted {
                Wanted::WebSocket(handshake) if is_limited => {
                    refuse_switched(state, client, &handshake, reason, counted);
                    None
                }
                Wanted::WebSocket(handshake) => {
                    let leftover = leftover.to_vec();
                    let doorman = &site.doorman;
                    Some(begin_websocket(state, doorman, client, &handshake, &names, &places, leftover))
                }
                Wanted::Events { envelope } => {
                    let mut head = Vec::with_capacity(512);
                    event_stream_head(&mut head, &manner);
                    state.stats().answer(200);
                    if is_limited {
                        refuse_events(state, client, head, reason, counted);
                        return None;
                    }
                    let events = Events { head, names: &names, from: &from, envelope };
                    Some(begin_events(state, &site.doorman, client, events, &places))
                }
            }
        });
        tickets::opened(site, worker, ticket, opened);
    }
}

/// What is to be opened, and from where on each channel is read.
fn wanted(request: &Request<'_>, query: Query<'_>, channels: usize) -> Option<(Wanted, Vec<From>)> {
    if request.upgrade != Upgrade::None {
        let (handshake, from) = Handshake::of(request, query, channels).ok()?;
        return Some((Wanted::WebSocket(handshake), from));
    }
    let from = stream_start(query, request.fields.get("last-event-id"), channels).ok()?;
    let envelope = switch(query, "envelope").ok()?;
    Some((Wanted::Events { envelope }, from))
}
