//! How connections end: told as their transport says it, cut, or gone; and what is counted and told of each.

use super::close::{Reason, Transport};
use super::conns::socket_of;
use super::entry::{ConnId, Entry, Kind};
use super::framing::text_frame;
use super::io::{self};
use super::state::{Socket, State};
use super::stats::HandshakeFailure;
use super::trace::What;
use crate::proto::ws::close::write_close;
use crate::proto::{envelope, sse};

/// How long an ended connection may take to close after us.
pub const LINGER_TICKS: u32 = 10;
/// How long a blocked connection has to take its close notice.
const NOTICE_TICKS: u32 = 50;
/// Connections that linger at once; those beyond are just closed.
const LINGERING_MAX: usize = 4_096;
impl State {
    /// Ends a connection as its transport says it: the notice, if the socket takes it in time, then the end.
    pub fn farewell(&mut self, slot: u32, reason: Reason, reconnect_ms: u64) {
        let Some(entry) = self.conns.get(slot) else { return };
        let transport = entry.kind.transport();
        let mut notice = Vec::new();
        match entry.kind {
            Kind::Ending { .. } => return,
            Kind::Handshake => {
                self.remove(slot, reason);
                return;
            }
            Kind::Publishing(_) if reason == Reason::Drain => {
                // The homes answer within a moment.
                self.reschedule(slot);
                return;
            }
            Kind::Idle | Kind::Publishing(_) => {}
            Kind::Poll(_) => {
                self.answer_poll_with(slot, reason, reconnect_ms);
                return;
            }
            Kind::Sse => sse::write_close(&mut notice, reason.as_str(), reconnect_ms),
            Kind::Ws { v1, .. } => {
                if v1 {
                    text_frame(&mut notice, |json| {
                        envelope::write_v1_closing(json, reason.as_str(), reconnect_ms);
                    });
                }
                write_close(&mut notice, reason.close_code(), reason.as_str());
            }
        }
        self.end(slot, transport, reason, &notice);
    }

    /// Says `last`, then nothing more, and waits a little for the client to close.
    pub fn end(&mut self, slot: u32, transport: Transport, reason: Reason, last: &[u8]) {
        if self.is_traced() {
            self.trace_conn(slot, || What::Closing { reason });
        }
        self.unsubscribe_all(slot);
        let until_tick = self.tick() + NOTICE_TICKS;
        let Some(entry) = self.conns.get_mut(slot) else { return };
        entry.kind = Kind::Ending { transport, reason, until_tick };
        entry.flags.busy = false;
        if std::mem::take(&mut entry.flags.waiting) {
            self.waiting.remove(&slot);
        }
        self.lingering += 1;
        if !last.is_empty() {
            self.put(slot, last);
        }
        self.weigh_conn(slot);
        if self.conns.get(slot).is_some_and(|entry| !entry.flags.blocked) {
            self.shut(slot);
        } else {
            self.reschedule(slot);
        }
    }

    /// Everything is said: shuts our direction, and lingers until the client has closed its own.
    pub(super) fn shut(&mut self, slot: u32) {
        let until = self.tick() + LINGER_TICKS;
        let Some(entry) = self.conns.get_mut(slot) else { return };
        if entry.flags.shut {
            return;
        }
        if !self.close_sealed(slot) {
            self.reschedule(slot);
            return;
        }
        let Some(entry) = self.conns.get_mut(slot) else { return };
        entry.flags.shut = true;
        if io::shutdown_write(entry.fd).is_err() || self.lingering > LINGERING_MAX {
            // What it ends for was told when its ending began.
            self.doom(slot, Reason::Gone);
            return;
        }
        if let Kind::Ending { until_tick, .. } = &mut entry.kind {
            *until_tick = until;
        }
        if std::mem::take(&mut entry.flags.blocked) {
            self.blocked.remove(&slot);
        }
        entry.flags.input_off = false;
        self.set_interest(slot);
        self.reschedule(slot);
    }

    /// The connection is lost; it is taken out when nothing is being walked over.
    pub fn doom(&mut self, slot: u32, reason: Reason) {
        if let Some(conn) = self.conn_id(slot) {
            self.pass.doomed.push((conn, reason));
        }
    }

    /// Takes out what was found lost.
    pub fn bury(&mut self) {
        while let Some((conn, reason)) = self.pass.doomed.pop() {
            if self.conn(conn).is_some() {
                self.remove(conn.slot, reason);
            }
        }
    }

    /// Closes the socket and forgets the connection.
    pub fn remove(&mut self, slot: u32, reason: Reason) {
        let conn = self.conn_id(slot);
        if self.is_traced() {
            self.trace_leaving(slot, reason);
        }
        self.unsubscribe_all(slot);
        let Some(mut entry) = self.conns.remove(slot) else { return };
        self.count_left(slot, &entry);
        if matches!(entry.kind, Kind::Handshake) {
            self.stats().fail_handshake(HandshakeFailure::of(reason));
        }
        super::wire::close_at_once(&mut entry);
        if entry.flags.waiting {
            self.waiting.remove(&slot);
        }
        self.forget_conn(&entry);
        let (transport, reason) = match entry.kind {
            Kind::Ending { transport, reason, .. } => {
                self.lingering -= 1;
                (transport, reason)
            }
            ref kind => (kind.transport(), reason),
        };
        io::close(entry.fd);
        self.on_closed(&socket_of(entry, true), conn, transport, reason);
    }

    /// A connection has become a stream, or a poll that waits. What is neither is open all the same.
    pub fn count_began(&self, transport: Transport) {
        if transport != Transport::Http {
            self.stats().began.add(transport as usize, 1);
        }
    }

    pub(super) fn count_left(&mut self, slot: u32, entry: &Entry) {
        if entry.flags.blocked {
            self.blocked.remove(&slot);
        }
        let transport = entry.kind.transport();
        if transport != Transport::Http {
            self.stats().left.add(transport as usize, 1);
        }
    }

    /// Closes a socket, and says why in the log.
    pub fn close(&mut self, socket: &Socket, transport: Transport, reason: Reason) {
        io::close(socket.fd);
        self.on_closed(socket, None, transport, reason);
    }

    /// A connection's descriptor is closed: its place is free, and the logs say why. `conn`: its name with the holder.
    pub fn on_closed(&mut self, socket: &Socket, conn: Option<ConnId>, transport: Transport, reason: Reason) {
        self.connections -= 1;
        self.node.places.give();
        self.stats().close(transport, reason);
        self.tell_closed(socket, conn, transport, reason);
    }
}
