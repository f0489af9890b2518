//! Opening a WebSocket, from the request that asks for one to the hands of the holder.
//! Owns how a good handshake is refused: it is accepted, and closed with the reason, which a browser could not see
//! otherwise. Frames are `frames`'s.

use std::rc::Rc;

use crate::domain::auth::{Act, Bearer, Proof};
use crate::domain::channel::Name;
use crate::domain::lane::Encoding;
use crate::domain::page::From;
use crate::proto::envelope;
use crate::proto::http::request::{Request, Upgrade};
use crate::proto::http::target::Query;
use crate::proto::ws::handshake::{self, Accept, Subprotocol, write_switching};
use crate::runtime::close::Reason;
use crate::runtime::entry::{ConnId, Kind};
use crate::runtime::feeds::Place;
use crate::runtime::framing::text_frame;
use crate::runtime::state::State;
use crate::runtime::stats::Refusal;
use crate::runtime::stream::Stream;
use crate::runtime::worker::Worker;

use super::answer::{Answer, VARY_READ};
use super::auth::{Denied, TicketUse};
use super::channels::stream_start;
use super::conn::{Call, Conn, Next};
use super::doorman::{self, Admitted, Doorman};
use super::identity::connection_id;
use super::renewal;
use super::stream::{Client, Reads, admitted_places, end_unless, on_opened, unless_draining};
use super::tickets;

impl Conn {
    pub(super) async fn on_websocket(mut self, call: Call<'_>, names: Vec<Name>) -> Next {
        match Handshake::of(&call.request, call.query, names.len()) {
            Ok((handshake, from)) => {
                let admitted = self.admit(&call);
                let waits = handshake.is_v1()
                    && admitted.as_ref().is_ok_and(|admitted| self.brings_token_later(admitted, &names));
                let admitted = admitted.and_then(|admitted| {
                    if waits { Ok(admitted) } else { self.permit_websocket(admitted, &names) }
                });
                // Answers of pipelined requests go first.
                if self.flush().await.is_err() {
                    return Next::Gone;
                }
                let Conn { worker, stream, input, site, .. } = self;
                match admitted {
                    Ok(_) if waits => renewal::open_waiting(&worker, stream, &handshake, names, from, input),
                    Ok(Admitted { ticket, .. }) => {
                        tickets::make_way(&site, &worker, ticket).await;
                        let reads = Reads { names: &names, from: &from };
                        let doorman = &site.doorman;
                        let opened =
                            open_websocket(&worker, doorman, stream, &handshake, reads, input, ticket).await;
                        tickets::opened(&site, &worker, ticket, opened);
                    }
                    Err(denied) => {
                        refuse_websocket(&worker, stream, &handshake, denied.reason(), denied.counted());
                    }
                }
                Next::Gone
            }
            Err(answer) => self.answered(&answer.vary(VARY_READ), &call.manner).await,
        }
    }

    /// Whether somebody who came without a token is to bring one, by `pushline.v1`: strangers may not have what the URL names.
    fn brings_token_later(&self, admitted: &Admitted, names: &[Name]) -> bool {
        let (doorman, bearer) = (&self.site.doorman, &admitted.bearer);
        let has_all = names.iter().all(|name| doorman.may(bearer, Act::Subscribe, name));
        bearer.proof == Proof::None && (may_nothing(bearer) || !has_all)
    }

    /// The same for a WebSocket: its channels, and where it names none, that it may do anything at all.
    fn permit_websocket(&self, admitted: Admitted, names: &[Name]) -> Result<Admitted, Denied> {
        if names.is_empty() && !self.site.doorman.is_open() && may_nothing(&admitted.bearer) {
            let denied = doorman::refusal(&admitted.bearer, Act::Subscribe);
            self.tell_denied(denied, Some(&admitted.bearer));
            return Err(denied);
        }
        self.permit(admitted, Act::Subscribe, names)
    }
}

/// Whether there is nothing that someone may do.
fn may_nothing(bearer: &Bearer) -> bool {
    bearer.proof == Proof::None && bearer.grants == Default::default()
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
    let places = admitted_places(worker, &mut stream, names, from).await;
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

/// Appends the frame that answers a subscription.
pub fn subscribed_frame(out: &mut Vec<u8>, name: &Name, place: &Place, seq: Option<envelope::Seq>) {
    let cursor = place.cursor().text();
    text_frame(out, |json| {
        envelope::write_v1_subscribed(json, name.as_str(), &cursor, place.gap, seq);
    });
}
