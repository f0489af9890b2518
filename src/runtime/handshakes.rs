//! TLS handshakes of held connections: each step has its turn in a queue that takes a bounded part of the worker's time, so
//! that a storm of them holds up neither deliveries nor requests. What has not begun costs an entry, and no more.
//! Owns the queue, and what is said to clients that do not speak TLS. The deadline is `sweep`'s.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::close::{Reason, Transport};
use super::entry::{ConnId, Kind};
use super::io::{RecvOutcome, recv_nonblocking};
use super::state::State;
use super::stats::HandshakeFailure;
use super::tls::{PARTIAL_BYTES_MAX, Tls, TlsError};
use super::turns::Breather;
use super::worker::Worker;

/// How long handshakes may hold the thread: half of what the fan-out may, which then has its turn. One with an RSA key of
/// 2,048 bits takes longer alone.
const SLICE: Duration = Duration::from_micros(500);
/// Read of a connection at once: more than the first flight of any usual client.
const READ_BYTES: usize = 4 * 1024;

/// To whoever speaks HTTP where TLS is spoken.
const PLAIN_ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    Content-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 56\r\n\
    Connection: close\r\n\r\n\
    TLS is spoken here; use https:// or wss:// in the URL.\r\n";

impl Worker {
    /// Goes on with handshakes, a slice at a time.
    pub(super) async fn shake_hands(self: Rc<Self>, breather: Breather) {
        let mut buffer = vec![0; PARTIAL_BYTES_MAX + READ_BYTES];
        loop {
            self.has_handshakes.wait().await;
            self.has_handshakes.unring();
            loop {
                let until = Instant::now() + SLICE;
                let more = self.with(|state| {
                    while state.shake_hands_once(&mut buffer) {
                        if Instant::now() >= until {
                            break;
                        }
                    }
                    state.bury();
                    !state.handshakes.is_empty()
                });
                self.serve_requests();
                self.send_answers();
                if !more {
                    break;
                }
                breather.breathe().await;
            }
        }
    }
}

impl State {
    /// Something has come for a handshake: it waits for its turn, and is not looked at until then.
    pub fn queue_handshake(&mut self, conn: ConnId) {
        let Some(entry) = self.conn_mut(conn) else { return };
        entry.flags.busy = true;
        if !entry.flags.once {
            self.set_interest(conn.slot);
        }
        self.handshakes.push_back(conn);
    }

    /// Goes on with one handshake. False when none waits.
    fn shake_hands_once(&mut self, buffer: &mut [u8]) -> bool {
        let Some(conn) = self.handshakes.pop_front() else { return false };
        let Some(entry) = self.conn_mut(conn) else { return true };
        entry.flags.busy = false;
        if !matches!(entry.kind, Kind::Handshake) {
            return true;
        }
        let before = entry.tls.as_ref().map_or(0, |tls| tls.partial_bytes());
        match recv_nonblocking(entry.fd, &mut buffer[before..before + READ_BYTES]) {
            RecvOutcome::Bytes(bytes) => self.on_handshake_bytes(conn, &mut buffer[..before + bytes]),
            RecvOutcome::Empty => self.set_interest(conn.slot),
            RecvOutcome::Eof => self.remove(conn.slot, Reason::Gone),
            RecvOutcome::Failed(errno) => self.remove(conn.slot, Reason::of_errno(errno)),
        }
        true
    }

    /// `wire` ends with what has just come; before it is room for what came before.
    fn on_handshake_bytes(&mut self, conn: ConnId, wire: &mut [u8]) {
        let config = self.node.tls.load_full();
        let Some(entry) = self.conn_mut(conn) else { return };
        let mut tls = match (entry.tls.take(), config) {
            (Some(tls), _) => tls,
            // A TLS record begins with its type; a request with the letters of its method.
            (None, _) if wire.first().is_some_and(u8::is_ascii_alphabetic) => {
                self.fail_handshake_as(conn.slot, HandshakeFailure::Plain);
                self.end(conn.slot, Transport::Http, Reason::TlsFailed, PLAIN_ANSWER);
                return;
            }
            (None, Some(config)) => match Tls::new(config) {
                Ok(tls) => Box::new(tls),
                Err(error) => return self.fail_handshake(conn, &error),
            },
            (None, None) => return self.remove(conn.slot, Reason::Internal),
        };
        tls.take_partial(wire);
        let (mut plain, mut out) = (std::mem::take(&mut self.opened), Vec::new());
        let received = tls.receive(wire, &mut plain, &mut out);
        if let Some(entry) = self.conn_mut(conn) {
            entry.tls = Some(tls);
        }
        if !self.weigh_conn(conn.slot) {
            // Its part of a long message is more than there is room for.
            plain.clear();
            self.opened = plain;
            return self.let_go(conn.slot);
        }
        if !out.is_empty() {
            self.put_wire(conn.slot, &out);
        }
        match received {
            Err(error) => self.fail_handshake(conn, &error),
            Ok(received) if received.established => {
                self.on_established(conn, &mut plain);
                if received.closed && plain.is_empty() {
                    self.remove(conn.slot, Reason::Gone);
                }
            }
            Ok(_) => self.set_interest(conn.slot),
        }
        plain.clear();
        self.opened = plain;
    }

    /// The handshake has ended: the connection is one between requests, or its first has come already.
    fn on_established(&mut self, conn: ConnId, plain: &mut [u8]) {
        let tick = self.tick();
        self.stats().handshakes.add(1);
        let Some(entry) = self.conn_mut(conn) else { return };
        entry.kind = Kind::Idle;
        entry.heard_tick = tick;
        if entry.tls.as_ref().is_some_and(|tls| tls.is_resumed()) {
            self.stats().handshakes_resumed.add(1);
        }
        self.schedule(conn);
        if plain.is_empty() {
            self.set_interest(conn.slot);
        } else {
            self.on_input(conn, plain);
        }
    }

    fn fail_handshake(&mut self, conn: ConnId, error: &TlsError) {
        self.fail_handshake_as(conn.slot, failure_of(error));
        self.fail_tls(conn, error);
    }

    /// A handshake has failed, for a reason that its connection's end does not tell; that follows.
    pub(super) fn fail_handshake_as(&mut self, slot: u32, failure: HandshakeFailure) {
        if let Some(entry) = self.conns.get_mut(slot)
            && matches!(entry.kind, Kind::Handshake)
        {
            // Counted once: from now on it is a connection like any other that ends.
            entry.kind = Kind::Idle;
            self.stats().fail_handshake(failure);
        }
    }
}

fn failure_of(error: &TlsError) -> HandshakeFailure {
    match error {
        TlsError::Protocol(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) => {
            HandshakeFailure::Incompatible
        }
        TlsError::Protocol(rustls::Error::AlertReceived(_)) => HandshakeFailure::Alert,
        TlsError::Protocol(_) | TlsError::TooLong | TlsError::Exhausted => HandshakeFailure::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_answer_has_the_length_that_it_tells() {
        let text = std::str::from_utf8(PLAIN_ANSWER).expect("ASCII");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{}", body.len());
    }
}
