//! The wire of held connections that speak TLS: plain bytes go out encrypted, what comes is decrypted. (The fan-out encrypts
//! into its batch's own room, answers into theirs.)
//! Owns the order: what is encrypted goes out whole, and before anything that is encrypted later; and the last word of a
//! connection, `close_notify`.

use super::close::Reason;
use super::entry::{ConnId, Entry};
use super::io::{RecvOutcome, recv_nonblocking};
use super::sendring::{Outcome, send_now};
use super::state::State;
use super::tls::{RECORD_BYTES_MAX, Tls};

/// What one reader gets in one pass at most, but for a larger message: a slow one is owed it all when its socket takes
/// nothing, for it cannot be taken back.
pub const SEALED_BYTES_MAX: usize = RECORD_BYTES_MAX;
/// Room that is kept for the next.
const ROOM_BYTES: usize = 64 * 1024;

/// Makes of plain bytes what goes out, in the place of what is in `out`. False: nothing more can be encrypted.
pub fn to_wire(tls: Option<&mut Tls>, plain: Vec<u8>, out: &mut Vec<u8>) -> bool {
    match tls {
        None => {
            *out = plain;
            true
        }
        Some(tls) => {
            out.clear();
            tls.seal(&plain, out).is_ok()
        }
    }
}

/// Says `close_notify` to a connection that is closed without waiting, if it is in a state to hear it.
pub fn close_at_once(entry: &mut Entry) {
    let is_free = entry.owed.is_none() && !entry.flags.blocked && !entry.flags.shut;
    if let (Some(tls), true) = (&mut entry.tls, is_free) {
        let mut last = Vec::new();
        tls.close(&mut last);
        if !last.is_empty() {
            // Whether it hears it or not.
            send_now(entry.fd, &last);
        }
    }
}

impl State {
    /// Encrypts `bytes` for a connection, behind what is in `out`. False: it does not speak TLS, or nothing more can be
    /// encrypted for it.
    pub(super) fn seal(&mut self, slot: u32, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        let tls = self.conns.get_mut(slot).and_then(|entry| entry.tls.as_deref_mut());
        tls.is_some_and(|tls| tls.seal(bytes, out).is_ok())
    }

    /// Sends bytes to a connection that speaks TLS, after what is owed; what its socket does not take is owed too. False:
    /// nothing was encrypted, and it is lost.
    pub(super) fn send_sealed(&mut self, slot: u32, bytes: &[u8]) -> bool {
        let mut sealed = std::mem::take(&mut self.sealed);
        let done = self.seal(slot, bytes, &mut sealed);
        if done {
            self.put_wire(slot, &sealed);
        } else {
            self.doom(slot, Reason::TlsFailed);
        }
        sealed.clear();
        sealed.shrink_to(ROOM_BYTES);
        self.sealed = sealed;
        done
    }

    /// Says that nothing more comes, once. False: the socket does not take it yet.
    pub(super) fn close_sealed(&mut self, slot: u32) -> bool {
        let Some(entry) = self.conns.get_mut(slot) else { return true };
        let Some(tls) = &mut entry.tls else { return true };
        let mut last = Vec::new();
        tls.close(&mut last);
        if last.is_empty() {
            return true;
        }
        match send_now(entry.fd, &last) {
            Outcome::Whole | Outcome::Failed(_) => true,
            Outcome::Short(sent) => {
                self.block(slot, &last[sent..]);
                false
            }
            Outcome::Full => {
                self.block(slot, &last);
                false
            }
        }
    }

    /// Reads once from a connection that speaks TLS, and acts on what that comes to. True: more may be there.
    pub(super) fn read_sealed(&mut self, conn: ConnId, buffer: &mut [u8]) -> bool {
        let Some(entry) = self.conn_mut(conn) else { return false };
        let Some(tls) = &mut entry.tls else { return false };
        let before = tls.partial_bytes();
        let bytes = match recv_nonblocking(entry.fd, &mut buffer[before..]) {
            RecvOutcome::Bytes(bytes) => bytes,
            RecvOutcome::Empty => {
                self.read_in_vain(conn);
                return false;
            }
            RecvOutcome::Eof => {
                self.remove(conn.slot, Reason::Gone);
                return false;
            }
            RecvOutcome::Failed(errno) => {
                self.remove(conn.slot, Reason::of_errno(errno));
                return false;
            }
        };
        tls.take_partial(buffer);
        let filled = before + bytes == buffer.len();
        let (mut plain, mut out) = (std::mem::take(&mut self.opened), Vec::new());
        let Some(tls) = self.conn_mut(conn).and_then(|entry| entry.tls.as_deref_mut()) else { return false };
        let received = tls.receive(&mut buffer[..before + bytes], &mut plain, &mut out);
        if !out.is_empty() {
            self.put_wire(conn.slot, &out);
        }
        let says_nothing = plain.is_empty();
        let goes_on = says_nothing || self.on_input(conn, &mut plain);
        plain.clear();
        plain.shrink_to(ROOM_BYTES);
        self.opened = plain;
        match received {
            // What it asked for before it closed its direction is answered; then its end is seen.
            Ok(received) if received.closed && says_nothing => {
                self.remove(conn.slot, Reason::Gone);
                false
            }
            Ok(_) => {
                if says_nothing {
                    self.read_in_vain(conn);
                }
                goes_on && filled
            }
            Err(error) => {
                self.fail_tls(conn, &error);
                false
            }
        }
    }

    /// What came cannot be decrypted, or no connection comes of it. Why was said to the client, if there was a word for it.
    pub(super) fn fail_tls(&mut self, conn: ConnId, error: &super::tls::TlsError) {
        let Some(entry) = self.conn(conn) else { return };
        tracing::debug!(worker = self.index, peer = %entry.peer, %error, "TLS failed");
        let transport = entry.kind.transport();
        if matches!(entry.kind, super::entry::Kind::Ending { .. }) {
            self.remove(conn.slot, Reason::TlsFailed);
        } else {
            self.end(conn.slot, transport, Reason::TlsFailed, &[]);
        }
    }
}
