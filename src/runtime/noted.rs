//! What is kept of a request from its head to its answer, where the access log or a trace wants it. However the request
//! ends, answered or not, it has its line.
//! Made only where somebody wants it: [`State::notes`] is one branch when nobody does.

use std::rc::Rc;
use std::time::Instant;

use crate::domain::auth::Bearer;
use crate::proto::http::request::{Fields, Request};
use crate::proto::http::shown;
use crate::proto::http::target::Target;

use super::access::{AccessLog, Answered, End, Head, Line, Of, Request as Told};
use super::clock::Clock;
use super::close::{Reason, Transport};
use super::entry::ConnId;
use super::peer::Peer;
use super::state::{Socket, State};
use super::trace::{What, Who};

/// Most bytes that are shown of what a client says.
const TARGET_BYTES_MAX: usize = 1_024;
const FIELD_BYTES_MAX: usize = 256;

/// A request under way.
#[derive(Debug)]
pub struct Noted(Option<Box<Kept>>);

#[derive(Debug)]
struct Kept {
    /// `None`: only a trace wants it.
    log: Option<Rc<AccessLog>>,
    clock: Clock,
    worker: u16,
    peer: Peer,
    head: Head,
    transport: Transport,
    begun: Instant,
    /// Who was not let in.
    subject: Option<Box<str>>,
}

impl Noted {
    /// Who sent it, and was not let in.
    pub fn is_of(&mut self, subject: Option<&str>) {
        if let Some(kept) = &mut self.0 {
            kept.subject = subject.map(Into::into);
        }
    }

    /// What the request became.
    pub fn becomes(&mut self, transport: Transport) {
        if let Some(kept) = &mut self.0 {
            kept.transport = transport;
        }
    }
}

impl Kept {
    fn tell(self, answer: Option<Answered>, subject: Option<&str>, conn: Option<ConnId>) {
        let Self { log, clock, worker, peer, head, transport, begun, subject: unwelcome } = self;
        let Some(log) = log else { return };
        let duration_us = begun.elapsed().as_micros() as u64;
        let of = Of::Request(Told { head, transport, duration_us, answer, conn });
        log.tell(Line {
            at_ms: clock.now_ms(),
            worker,
            peer,
            subject: subject.map(Into::into).or(unwelcome),
            of,
        });
    }
}

/// Nobody was there to be answered any more.
impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(kept) = self.0.take() {
            kept.tell(None, None, None);
        }
    }
}

/// What may be shown of a request.
fn head_of(request: &Request<'_>) -> Head {
    let target = match request.target {
        Target::Asterisk => "*".into(),
        Target::Path { path, query } if query.is_empty() => shown::target(path.as_bytes(), TARGET_BYTES_MAX),
        Target::Path { path, query } => {
            shown::target(format!("{path}?{}", query.raw()).as_bytes(), TARGET_BYTES_MAX)
        }
    };
    Head {
        method: Some(request.method.as_str().into()),
        target: Some(target.into()),
        ..sender_of(&request.fields)
    }
}

fn sender_of(fields: &Fields<'_>) -> Head {
    let text = |name| fields.get(name).map(|value| shown::text(value, FIELD_BYTES_MAX).into());
    let url = |name| fields.get(name).map(|value| shown::url_without_query(value, FIELD_BYTES_MAX).into());
    Head {
        method: None,
        target: None,
        agent: text("user-agent"),
        origin: url("origin"),
        referer: url("referer"),
    }
}

/// What may be shown of what could not be read as a request.
fn head_of_unread(head: &[u8]) -> Head {
    let (method, target) = shown::request_line(head);
    Head {
        method: method.map(Into::into),
        target: target.map(|target| shown::target(target, TARGET_BYTES_MAX).into()),
        ..Head::default()
    }
}

impl State {
    /// Whether anybody wants to know of requests.
    pub fn notes(&self) -> bool {
        self.access.is_some() || self.is_traced()
    }

    /// A request came at `begun`, from `peer`: what is kept until it is answered, if anybody wants it.
    pub fn note(&mut self, request: &Request<'_>, peer: Peer, begun: Instant) -> Option<Noted> {
        self.notes().then(|| self.keep(head_of(request), peer, begun))
    }

    /// The same for what could not be read as a request.
    pub fn note_unread(&mut self, head: &[u8], peer: Peer, begun: Instant) -> Option<Noted> {
        self.notes().then(|| self.keep(head_of_unread(head), peer, begun))
    }

    fn keep(&mut self, head: Head, peer: Peer, begun: Instant) -> Noted {
        if self.is_traced() {
            let (method, target) = (head.method.clone(), head.target.clone());
            self.trace(Who::of_peer(peer), || What::Request { method, target });
        }
        Noted(Some(Box::new(Kept {
            log: self.access.clone(),
            clock: self.node.clock,
            worker: self.index,
            peer,
            head,
            transport: Transport::Http,
            begun,
            subject: None,
        })))
    }

    /// A request of `bearer`'s has its answer, of so many bytes. `conn`: the stream that it became.
    pub fn on_answered(
        &mut self,
        mut noted: Noted,
        status: u16,
        bytes: usize,
        bearer: Option<&Bearer>,
        conn: Option<ConnId>,
    ) {
        let subject = bearer.and_then(|bearer| bearer.subject.as_deref());
        let Some(kept) = noted.0.take() else { return };
        let answer = Answered { status, bytes: bytes as u64 };
        if self.is_traced() {
            let duration_us = kept.begun.elapsed().as_micros() as u64;
            let subject = subject.or(kept.subject.as_deref());
            let who = Who { conn, peer: Some(kept.peer), subject, transport: Some(kept.transport) };
            self.trace(who, || What::Answered { status, bytes: answer.bytes, duration_us });
        }
        kept.tell(Some(answer), subject, conn);
    }

    /// A connection has ended: its line, and what traces hear. `conn`: the name that it had with the holder.
    pub fn tell_closed(
        &mut self,
        socket: &Socket,
        conn: Option<ConnId>,
        transport: Transport,
        reason: Reason,
    ) {
        let duration_ms = u64::from(self.tick() - socket.opened_tick) * super::clock::TICK_MS;
        let (messages, bytes) = (socket.sent_messages, socket.sent_bytes);
        tracing::debug!(
            worker = self.index,
            transport = transport.as_str(),
            reason = reason.as_str(),
            peer = %socket.peer,
            duration_ms,
            messages,
            bytes,
            "closed"
        );
        let subject = socket.bearer.as_ref().and_then(|bearer| bearer.subject.as_deref());
        if self.is_traced() {
            let who = Who { conn, peer: Some(socket.peer), subject, transport: Some(transport) };
            self.trace(who, || What::Closed { reason, messages, bytes, duration_ms });
        }
        if let Some(log) = &self.access {
            // Nobody was ever told the name of a connection that is no stream.
            let conn = conn.filter(|_| transport == Transport::Sse || transport.is_websocket());
            let of = Of::End(End { transport, reason, duration_ms, messages, bytes, conn });
            let subject = subject.map(Into::into);
            log.tell(Line {
                at_ms: self.node.clock.now_ms(),
                worker: self.index,
                peer: socket.peer,
                subject,
                of,
            });
        }
    }

    /// A connection was closed when it came.
    pub fn tell_refused(&mut self, peer: Peer, reason: Reason) {
        if self.is_traced() {
            self.trace(Who::of_peer(peer), || What::Refused { reason });
        }
        if let Some(log) = &self.access {
            let at_ms = self.node.clock.now_ms();
            log.tell(Line { at_ms, worker: self.index, peer, subject: None, of: Of::Refused(reason) });
        }
    }
}
