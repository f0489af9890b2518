//! The held connections: taken in, spoken to, subscribed, ended. Every byte that goes to one outside of a fan-out pass
//! goes through here, and so does everything that makes it blocked or free again.

use std::os::fd::RawFd;

use crate::domain::lane::Standing;

use super::close::{Reason, Transport};
use super::entry::{ConnId, Entry, Flags, Kind, Subs};
use super::io::Interest;
use super::sendring::{Outcome, send_now};
use super::state::{Socket, Spawn, State};
use super::trace::What;

/// Replies owed to a client that does not read them, before it is not read from either.
const OWED_INPUT_OFF_BYTES: usize = 16 * 1024;

impl State {
    /// Takes a socket in. Its first bytes, if any, were given to the session before.
    pub fn adopt(&mut self, socket: Socket, kind: Kind) -> ConnId {
        let tick = self.tick();
        let Socket { fd, is_in_epoll, .. } = socket;
        let entry = Entry {
            fd,
            flags: Flags::default(),
            kind,
            subs: Subs::None,
            owed: None,
            opened_tick: socket.opened_tick,
            heard_tick: tick,
            said_tick: tick,
            due_tick: tick,
            batch: 0,
            counted_bytes: 0,
            sent_messages: socket.sent_messages,
            sent_bytes: socket.sent_bytes,
            peer: socket.peer,
            bearer: socket.bearer,
            tls: socket.tls,
            share: socket.share,
        };
        self.count_began(entry.kind.transport());
        let (slot, generation) = self.conns.insert(entry);
        let conn = ConnId { slot, generation };
        let interest = self.conns.get_mut(slot).map_or(Interest::Read, interest);
        let watched = if is_in_epoll {
            self.epoll.modify(fd, conn.token(), interest)
        } else {
            self.epoll.add(fd, conn.token(), interest)
        };
        if watched.is_err() {
            self.remove(slot, Reason::Internal);
            return conn;
        }
        self.weigh_conn(slot);
        self.see_growth();
        self.schedule(conn);
        conn
    }

    pub fn conn(&self, conn: ConnId) -> Option<&Entry> {
        self.conns.get_checked(conn.slot, conn.generation)
    }

    pub fn conn_mut(&mut self, conn: ConnId) -> Option<&mut Entry> {
        self.conns.get_checked_mut(conn.slot, conn.generation)
    }

    pub fn conn_id(&self, slot: u32) -> Option<ConnId> {
        self.conns.generation(slot).map(|generation| ConnId { slot, generation })
    }

    /// Sends bytes of the server's own, after what is owed. One that has had its last word hears no more.
    pub fn say(&mut self, slot: u32, bytes: &[u8]) {
        if self.conns.get(slot).is_some_and(|entry| !matches!(entry.kind, Kind::Ending { .. })) {
            self.put(slot, bytes);
        }
    }

    pub(super) fn put(&mut self, slot: u32, bytes: &[u8]) {
        let tick = self.tick();
        let Some(entry) = self.conns.get_mut(slot) else { return };
        entry.said_tick = tick;
        entry.sent_bytes += bytes.len() as u64;
        let transport = entry.kind.transport() as usize;
        self.node.stats[usize::from(self.index)].sent_bytes.add(transport, bytes.len() as u64);
        if entry.tls.is_some() {
            self.send_sealed(slot, bytes);
        } else {
            self.put_wire(slot, bytes);
        }
    }

    /// Sends bytes as they are, after what is owed.
    pub(super) fn put_wire(&mut self, slot: u32, bytes: &[u8]) {
        let Some(entry) = self.conns.get_mut(slot) else { return };
        if entry.flags.blocked || entry.owed.is_some() {
            let owed = entry.owed.get_or_insert_default();
            owed.bytes.extend_from_slice(bytes);
            if owed.len() > OWED_INPUT_OFF_BYTES && !entry.flags.input_off {
                entry.flags.input_off = true;
                self.set_interest(slot);
            }
            self.weigh_conn(slot);
            return;
        }
        match send_now(entry.fd, bytes) {
            Outcome::Whole => {}
            Outcome::Short(sent) => self.block(slot, &bytes[sent..]),
            Outcome::Full => self.block(slot, bytes),
            Outcome::Failed(errno) => self.doom(slot, Reason::of_errno(errno)),
        }
    }

    /// Says pongs; to a client that does not read, the latest alone (RFC 6455 §5.5.3), which begins at `latest`.
    pub fn say_pongs(&mut self, slot: u32, pongs: &[u8], latest: usize) {
        let Some(entry) = self.conns.get_mut(slot) else { return };
        if matches!(entry.kind, Kind::Ending { .. }) {
            return;
        }
        if entry.flags.blocked || entry.owed.is_some() {
            entry.owed.get_or_insert_default().pong = Some(pongs[latest..].to_vec());
        } else {
            self.say(slot, pongs);
        }
    }

    /// The socket takes no more; `owed` is what is missing of the message that it has begun.
    pub fn block(&mut self, slot: u32, owed: &[u8]) {
        let Some(entry) = self.conns.get_mut(slot) else { return };
        if !owed.is_empty() {
            entry.owed.get_or_insert_default().bytes.extend_from_slice(owed);
        }
        if !std::mem::replace(&mut entry.flags.blocked, true) {
            self.blocked.insert(slot, self.node.clock.tick());
        }
        for sub in entry.subs.as_slice() {
            if let Some(feed) = self.feeds.get_mut(sub.feed) {
                let reader = feed.reader_mut(sub.lane, sub.index);
                if reader.standing == Standing::Live {
                    reader.standing = Standing::Blocked;
                }
            }
        }
        if self.weigh_conn(slot) {
            self.set_interest(slot);
        } else {
            self.let_go(slot);
        }
        if self.is_traced() {
            self.trace_conn(slot, || What::Blocked { owed_bytes: owed.len() as u64 });
        }
    }

    /// The socket takes more again: what is owed goes first, then every channel is visited. True: what was held back until
    /// now is to be served before anything is read.
    pub fn on_writable(&mut self, slot: u32) -> bool {
        let tick = self.tick();
        let Some(entry) = self.conns.get_mut(slot) else { return false };
        let mut held_back = Vec::new();
        while let Some(owed) = &mut entry.owed {
            match send_now(entry.fd, &owed.bytes[owed.sent..]) {
                Outcome::Whole => match owed.pong.take() {
                    Some(pong) => {
                        owed.sent = 0;
                        if !super::wire::to_wire(entry.tls.as_deref_mut(), pong, &mut owed.bytes) {
                            self.doom(slot, Reason::TlsFailed);
                            return false;
                        }
                    }
                    None => {
                        held_back = std::mem::take(&mut owed.held_back);
                        entry.owed = None;
                    }
                },
                Outcome::Short(sent) => {
                    // It reads, if slowly.
                    entry.said_tick = tick;
                    owed.sent += sent;
                    return false;
                }
                Outcome::Full => return false,
                Outcome::Failed(errno) => {
                    self.doom(slot, Reason::of_errno(errno));
                    return false;
                }
            }
        }
        entry.said_tick = tick;
        self.blocked.remove(&slot);
        entry.flags.blocked = false;
        entry.flags.input_off = false;
        if self.is_traced() {
            self.trace_conn(slot, || What::Unblocked);
        }
        let Some(entry) = self.conns.get_mut(slot) else { return false };
        match entry.kind {
            Kind::Ending { .. } => {
                self.shut(slot);
                return false;
            }
            // It has its whole answer, and is idle from now on.
            Kind::Idle => {
                entry.heard_tick = tick;
                self.reschedule(slot);
            }
            _ => {}
        }
        self.visit(slot);
        self.set_interest(slot);
        if !held_back.is_empty()
            && let Some(conn) = self.conn_id(slot)
        {
            self.serve_next(conn, held_back);
            return true;
        }
        false
    }

    /// Asks the kernel to be told of just what this connection waits for.
    pub fn set_interest(&mut self, slot: u32) {
        let Some(generation) = self.conns.generation(slot) else { return };
        let Some(entry) = self.conns.get_mut(slot) else { return };
        let interest = interest(entry);
        if self.epoll.modify(entry.fd, ConnId { slot, generation }.token(), interest).is_err() {
            self.doom(slot, Reason::Internal);
        }
    }

    /// Takes a connection out of the holder, to be served by a task.
    pub fn release(&mut self, slot: u32) -> Option<Socket> {
        self.unsubscribe_all(slot);
        let entry = self.conns.remove(slot)?;
        self.count_left(slot, &entry);
        self.forget_conn(&entry);
        // What is told once stays in the set: it comes back, and a change costs less than going and coming.
        let is_in_epoll = entry.flags.once;
        // A socket that cannot be taken out of the set would be told of twice.
        if !is_in_epoll && self.epoll.remove(entry.fd).is_err() {
            self.close(&socket_of(entry, is_in_epoll), Transport::Http, Reason::Internal);
            return None;
        }
        Some(socket_of(entry, is_in_epoll))
    }

    /// What was held back is served next; until then nothing is read.
    pub fn serve_next(&mut self, conn: ConnId, input: Vec<u8>) {
        if let Some(entry) = self.conn_mut(conn) {
            entry.flags.busy = true;
            self.spawns.push(Spawn::Request { conn, input });
        }
    }

    /// Whether `input` is to be served now: not while earlier answers are owed, nor when the connection is gone.
    pub fn begin_request(&mut self, conn: ConnId, input: Vec<u8>) -> Option<Vec<u8>> {
        let entry = self.conn_mut(conn)?;
        let was_busy = std::mem::take(&mut entry.flags.busy);
        let input = match &mut entry.owed {
            Some(owed) => {
                owed.held_back = input;
                None
            }
            None => Some(input),
        };
        if was_busy {
            // What was asked for meanwhile was without its input.
            self.set_interest(conn.slot);
        }
        input
    }

    /// What came after the last answered request of a connection is for a task; once the answers are sent.
    pub fn serve_rest(&mut self, conn: ConnId, input: Vec<u8>) {
        let Some(entry) = self.conn_mut(conn) else { return };
        if let Some(owed) = &mut entry.owed {
            owed.held_back = input;
        } else if let Some(socket) = self.release(conn.slot) {
            self.spawns.push(Spawn::Serve { socket, input });
        }
    }

    /// The descriptor of a held connection.
    pub fn fd(&self, slot: u32) -> RawFd {
        self.conns.get(slot).map_or(-1, |entry| entry.fd)
    }
}

/// The socket of a connection that is taken out of the holder.
pub(super) fn socket_of(entry: Entry, is_in_epoll: bool) -> Socket {
    Socket {
        fd: entry.fd,
        is_in_epoll,
        opened_tick: entry.opened_tick,
        sent_messages: entry.sent_messages,
        sent_bytes: entry.sent_bytes,
        peer: entry.peer,
        bearer: entry.bearer,
        tls: entry.tls,
        share: entry.share,
    }
}

/// What a connection waits for, just now; it is asked for at once.
fn interest(entry: &mut Entry) -> Interest {
    let reads = !entry.flags.busy && !entry.flags.input_off;
    let interest = match (reads, entry.flags.blocked) {
        (true, true) => Interest::ReadWrite,
        // Its turn is awaited before it is read from.
        (true, false) if matches!(entry.kind, Kind::Handshake) => Interest::ReadOnce,
        // Its first request makes a task of it, most likely: one that opens a stream.
        (true, false) if matches!(entry.kind, Kind::Idle) && entry.sent_messages == 0 => Interest::ReadOnce,
        (true, false) => Interest::Read,
        (false, true) => Interest::Write,
        (false, false) => Interest::Trouble,
    };
    entry.flags.once = interest == Interest::ReadOnce;
    interest
}
