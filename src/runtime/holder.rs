//! What comes on held connections: bytes for sessions, ends, room for what is owed.
//! Owns the reading; never blocks, never runs what a frame asks for: that is put on `spawns`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::domain::channel::Name;
use crate::proto::ws::close::write_close;
use crate::proto::ws::frame::{Opcode, write_frame};
use crate::proto::ws::reader::{Control, Event, Fed, ReaderState};

use super::clock::ticks;
use super::close::Reason;
use super::entry::{ConnId, Kind};
use super::io::{Ready, RecvOutcome, recv_nonblocking, take_error};
use super::state::{Frame, Spawn, State};
use super::trace::What;

/// Bytes read at once.
pub const READ_BYTES: usize = 64 * 1024;
/// Reads of one connection before the others have their turn.
const READS_MAX: usize = 4;
/// What a client may send behind a request that is held.
const LEFTOVER_BYTES_MAX: usize = 16 * 1024;

/// In debug builds, a text message that makes a session panic: so that tests can see it contained.
#[cfg(debug_assertions)]
const PANIC: &str = "$debug/panic";

/// How a WebSocket session ends, once its last frames are acted on.
#[derive(Debug, Clone, Copy)]
pub enum Last {
    /// The client said goodbye: answered with the same.
    Closed(Option<u16>),
    Refused(u16, &'static str),
}

impl State {
    /// Something is the case with a held connection.
    pub fn on_ready(&mut self, token: u64, ready: Ready, buffer: &mut [u8]) {
        let conn = ConnId::of_token(token);
        if self.conn(conn).is_none() {
            return;
        }
        if ready.is_writable() && self.conn(conn).is_some_and(|entry| entry.flags.blocked) {
            let is_done = self.on_writable(conn.slot);
            // What a socket failed of it tells once: a read would find its end alone.
            if is_done || !self.pass.doomed.is_empty() {
                self.bury();
                return;
            }
        }
        let reads = ready.is_readable()
            && self.conn(conn).is_some_and(|entry| !entry.flags.busy && !entry.flags.input_off);
        if reads && self.conn(conn).is_some_and(|entry| matches!(entry.kind, Kind::Handshake)) {
            self.queue_handshake(conn);
        } else if reads {
            self.read(conn, buffer);
        } else if ready.is_dead() {
            let errno = self.conn(conn).map_or(0, |entry| take_error(entry.fd));
            self.remove(conn.slot, Reason::of_errno(errno));
        }
        if self.conn(conn).is_some() && !self.weigh_conn(conn.slot) {
            self.let_go(conn.slot);
        }
        self.bury();
    }

    fn read(&mut self, conn: ConnId, buffer: &mut [u8]) {
        if self.is_busy() && self.conn(conn).is_some_and(|entry| matches!(entry.kind, Kind::Idle)) {
            self.defer(conn);
            return;
        }
        for _ in 0..READS_MAX {
            let Some(entry) = self.conn_mut(conn) else { return };
            if entry.flags.busy || entry.flags.input_off {
                return;
            }
            if matches!(entry.kind, Kind::Publishing(_))
                || (matches!(entry.kind, Kind::Idle) && entry.owed.is_some())
            {
                entry.flags.input_off = true;
                self.set_interest(conn.slot);
                return;
            }
            if entry.tls.is_some() {
                if !self.read_sealed(conn, buffer) {
                    return;
                }
                continue;
            }
            let bytes = match recv_nonblocking(entry.fd, buffer) {
                RecvOutcome::Bytes(bytes) => bytes,
                RecvOutcome::Empty => {
                    self.read_in_vain(conn);
                    return;
                }
                RecvOutcome::Eof => {
                    self.remove(conn.slot, Reason::Gone);
                    return;
                }
                RecvOutcome::Failed(errno) => {
                    self.remove(conn.slot, Reason::of_errno(errno));
                    return;
                }
            };
            if !self.on_input(conn, &mut buffer[..bytes]) || bytes < buffer.len() {
                return;
            }
        }
    }

    /// It was told of in vain: what is told once is asked for again.
    pub(super) fn read_in_vain(&mut self, conn: ConnId) {
        if self.conn(conn).is_some_and(|entry| entry.flags.once) {
            self.set_interest(conn.slot);
        }
    }

    /// Bytes have come, decrypted if need be. False: what they ask for comes before the next are read.
    pub(super) fn on_input(&mut self, conn: ConnId, input: &mut [u8]) -> bool {
        let tick = self.tick();
        let Some(entry) = self.conn_mut(conn) else { return false };
        if !matches!(entry.kind, Kind::Ending { .. }) {
            entry.heard_tick = tick;
        }
        let ponged = std::mem::take(&mut entry.flags.pinged);
        if ponged && self.is_traced() {
            self.trace_conn(conn.slot, || What::Ponged);
        }
        let Some(entry) = self.conn_mut(conn) else { return false };
        match &mut entry.kind {
            Kind::Idle => {
                let input = input.to_vec();
                self.spawns.push(Spawn::Request { conn, input });
                return false;
            }
            Kind::Poll(held) => {
                held.leftover.extend_from_slice(input);
                if held.leftover.len() >= LEFTOVER_BYTES_MAX {
                    entry.flags.input_off = true;
                    self.set_interest(conn.slot);
                }
            }
            // A stream's request was its last; bytes of a handshake are `handshakes`'.
            Kind::Handshake | Kind::Sse | Kind::Publishing(_) | Kind::Ending { .. } => {}
            Kind::Ws { .. } => self.on_frames(conn, input),
        }
        true
    }

    /// Feeds a WebSocket session.
    pub fn on_frames(&mut self, conn: ConnId, input: &mut [u8]) {
        let message_bytes = self.node.settings.limits.message_bytes as u64;
        let Some(entry) = self.conn_mut(conn) else { return };
        let Kind::Ws { v1, reader, .. } = &mut entry.kind else { return };
        let (v1, mut reader) = (*v1, std::mem::take(reader));
        let had_begun = reader.begun();
        let (mut pongs, mut latest) = (Vec::new(), 0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            session(v1, &mut reader, input, message_bytes, &mut |payload| {
                latest = pongs.len();
                write_frame(&mut pongs, Opcode::Pong, payload);
            })
        }));
        let has_begun = reader.begun();
        if let Some(entry) = self.conn_mut(conn)
            && let Kind::Ws { reader: kept, .. } = &mut entry.kind
        {
            *kept = reader;
        }
        if has_begun.is_some() && has_begun != had_begun {
            self.begin_frame(conn);
        }
        if !pongs.is_empty() {
            self.say_pongs(conn.slot, &pongs, latest);
        }
        let Ok((frames, last)) = outcome else {
            self.stats().panics.add(1);
            tracing::error!(
                worker = self.index,
                slot = conn.slot,
                "a session panicked; its connection is closed"
            );
            self.farewell(conn.slot, Reason::Internal, 0);
            return;
        };
        if !frames.is_empty() {
            if let Some(entry) = self.conn_mut(conn) {
                entry.flags.busy = true;
            }
            self.set_interest(conn.slot);
            let raw = (!v1).then(|| self.only_channel(conn)).flatten();
            self.spawns.push(Spawn::Frames { conn, raw, frames, last });
        } else if let Some(last) = last {
            self.end_session(conn, last);
        }
    }

    /// A frame has begun, or a message of several: it has its time from now on, whatever else comes in between.
    fn begin_frame(&mut self, conn: ConnId) {
        let tick = self.tick();
        let until = tick + ticks(self.node.settings.timeouts.body);
        let Some(entry) = self.conn_mut(conn) else { return };
        if let Kind::Ws { begun_tick, .. } = &mut entry.kind {
            *begun_tick = tick;
        }
        // Once in its time, however many begin: the wheel forgets nothing.
        if entry.due_tick > until {
            self.schedule(conn);
        }
    }

    fn only_channel(&self, conn: ConnId) -> Option<Name> {
        let sub = *self.conn(conn)?.subs.as_slice().first()?;
        Some(self.feeds.get(sub.feed)?.name.clone())
    }

    /// The frames of a busy session are acted on: it is read again, or ends.
    pub fn on_acted(&mut self, conn: ConnId, last: Option<Last>) {
        let Some(entry) = self.conn_mut(conn) else { return };
        if matches!(entry.kind, Kind::Ending { .. }) {
            return;
        }
        entry.flags.busy = false;
        match last {
            Some(last) => self.end_session(conn, last),
            None => self.set_interest(conn.slot),
        }
        self.bury();
    }

    fn end_session(&mut self, conn: ConnId, last: Last) {
        let Some(transport) = self.conn(conn).map(|entry| entry.kind.transport()) else { return };
        let mut notice = Vec::with_capacity(64);
        let reason = match last {
            Last::Closed(Some(code)) => {
                write_close(&mut notice, code, "");
                Reason::Asked
            }
            Last::Closed(None) => {
                write_frame(&mut notice, Opcode::Close, &[]);
                Reason::Asked
            }
            Last::Refused(code, why) => {
                write_close(&mut notice, code, why);
                Reason::of_close_code(code)
            }
        };
        self.end(conn.slot, transport, reason, &notice);
    }
}

/// The pure part: bytes in, what to do out.
fn session(
    v1: bool,
    reader: &mut ReaderState,
    input: &mut [u8],
    message_bytes_max: u64,
    pong: &mut dyn FnMut(&[u8]),
) -> (Vec<Frame>, Option<Last>) {
    let limit =
        if v1 { crate::proto::client_frame::frame_bytes_max(message_bytes_max) } else { message_bytes_max };
    let (mut frames, mut closed, mut unacceptable) = (Vec::new(), None, false);
    let fed = reader.feed(input, limit, &mut |event: Event<'_>| {
        match event {
            Event::Text(text) => {
                #[cfg(debug_assertions)]
                assert!(text != PANIC, "a panic that a test asked for");
                frames.push(Frame::Text(text.to_owned()));
            }
            Event::Binary(_) if v1 => {
                unacceptable = true;
                return Control::Stop;
            }
            Event::Binary(bytes) => frames.push(Frame::Binary(bytes.to_vec())),
            Event::Ping(payload) => pong(payload),
            Event::Pong => {}
            Event::Close(close) => closed = Some(close.code),
        }
        Control::Continue
    });
    let last = match fed {
        Err(error) => Some(Last::Refused(error.close_code(), error.reason())),
        Ok(_) if unacceptable => Some(Last::Refused(1003, "pushline.v1 is text frames of JSON")),
        Ok(Fed::Closed) => Some(Last::Closed(closed.flatten())),
        Ok(Fed::All | Fed::Stopped { .. }) => None,
    };
    (frames, last)
}
