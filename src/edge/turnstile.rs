//! What a newcomer is told that is not served: the node is full, or too far behind (`runtime::admission`: when).
//! Each transport has its own words: a stream of events that ends with `$close`, a WebSocket that is accepted
//! and closed with 1013, `503` with `Retry-After` for all else. Of the request only what tells them apart is looked at;
//! probes of the node's health are served all the same.

use std::rc::Rc;

use crate::proto::http::fields::Accept;
use crate::proto::http::head::HeadScanner;
use crate::proto::http::request::{FieldSlots, Method, Request, Upgrade, parse};
use crate::proto::http::target::Target;
use crate::proto::ws::close::write_close;
use crate::proto::ws::handshake::{self, Subprotocol, write_switching};
use crate::proto::{envelope, sse};
use crate::runtime::admission::Turned;
use crate::runtime::close::{Reason, Transport};
use crate::runtime::framing::text_frame;
use crate::runtime::worker::Worker;

use super::answer::{Answer, Manner, VARY, VARY_READ};
use super::site::Site;
use super::stream::event_stream_head;

/// All that is said, and what its receiver was.
pub struct Refusal {
    pub bytes: Vec<u8>,
    pub transport: Transport,
}

const DETAIL: &str =
    "the server is full, or has more to do than it can do in time; come back after Retry-After";

/// As [`turn_away`], of bytes that just came.
pub fn turn_away_unread(site: &Site, worker: &Rc<Worker>, input: &[u8], out: &mut Vec<u8>) -> Turned {
    let mut slots = FieldSlots::new();
    let found = HeadScanner::new(site.settings().limits.head_bytes).find(input);
    // What is wrong with a head is told by who reads it: at no greater cost.
    let Ok(Some(span)) = found else { return Turned::Unread };
    let Ok(request) = parse(input, span, &mut slots) else { return Turned::Unread };
    match turn_away(site, worker, &request) {
        Some(refusal) => {
            out.extend_from_slice(&refusal.bytes);
            Turned::Away(refusal.transport)
        }
        None => Turned::Served,
    }
}

/// What to say in place of serving `request`, which is the connection's first and last; `None`: it is served.
pub fn turn_away(site: &Site, worker: &Rc<Worker>, request: &Request<'_>) -> Option<Refusal> {
    let Target::Path { path, .. } = request.target else { return None };
    if matches!(path, "/healthz" | "/readyz") {
        return None;
    }
    let reconnect_ms = worker.with(|state| state.reconnect_ms());
    // Whoever does not pass is told as much by the refusal as anybody: nothing.
    let passed = site.gate.pass(request).unwrap_or_default();
    let manner = Manner {
        method: request.method,
        version: request.version,
        keep_alive: false,
        passed,
        unix_s: site.node.clock.now_ms() / 1_000,
    };
    let is_channel = path.starts_with("/channels");
    let websocket = if is_channel { websocket(request, reconnect_ms) } else { None };
    Some(match websocket {
        Some(refusal) => refusal,
        None if is_channel && wants_events(request) => events(&manner, reconnect_ms),
        None => answer(&manner, is_channel, reconnect_ms),
    })
}

fn wants_events(request: &Request<'_>) -> bool {
    request.method == Method::Get && Accept::parse(request.fields.all("accept")).event_stream
}

/// Browsers cannot see a refused handshake: it is accepted, then closed.
fn websocket(request: &Request<'_>, reconnect_ms: u64) -> Option<Refusal> {
    let Upgrade::WebSocket { key } = request.upgrade else { return None };
    let subprotocol = handshake::choose(request.fields.all("sec-websocket-protocol")).ok()?;
    let accept = handshake::Accept::of_key(key.as_bytes()).ok()?;
    let mut bytes = Vec::with_capacity(256);
    write_switching(&mut bytes, &accept, subprotocol);
    let transport = match subprotocol {
        Subprotocol::Raw => Transport::Raw,
        Subprotocol::V1 => {
            text_frame(&mut bytes, |json| {
                envelope::write_v1_closing(json, Reason::Full.as_str(), reconnect_ms);
            });
            Transport::V1
        }
    };
    write_close(&mut bytes, Reason::Full.close_code(), Reason::Full.as_str());
    Some(Refusal { bytes, transport })
}

/// Chromium never comes back after an error status.
fn events(manner: &Manner<'_>, reconnect_ms: u64) -> Refusal {
    let mut bytes = Vec::with_capacity(512);
    event_stream_head(&mut bytes, manner);
    sse::write_close(&mut bytes, Reason::Full.as_str(), reconnect_ms);
    Refusal { bytes, transport: Transport::Sse }
}

fn answer(manner: &Manner<'_>, is_channel: bool, reconnect_ms: u64) -> Refusal {
    let mut bytes = Vec::with_capacity(512);
    let is_read = is_channel && matches!(manner.method, Method::Get | Method::Head);
    Answer::problem(503, DETAIL)
        .field("Retry-After", reconnect_ms.div_ceil(1_000).max(1).to_string())
        .vary(if is_read { VARY_READ } else { VARY })
        .closing()
        .write(&mut bytes, manner);
    Refusal { bytes, transport: Transport::Http }
}
