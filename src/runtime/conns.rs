//! The held connections: taken in, spoken to, subscribed, ended. Every byte that goes to one outside of a fan-out pass
//! goes through here, and so does everything that makes it blocked or free again.

use std::os::fd::RawFd;

use crate::domain::feed::{Encoding, Reader, Standing};
use crate::domain::message::Message;
use crate::proto::ws::close::write_close;
use crate::proto::{envelope, sse};

use super::close::{Reason, Transport};
use super::entry::{ConnId, Entry, Flags, Kind, Sub, Subs};
use super::framing::text_frame;
use super::io::{self, Interest};
use super::sendring::{Outcome, send_now};
use super::state::{Place, Socket, Spawn, State};
use super::stats::HandshakeFailure;
use super::trace::What;

/// How long an ended connection may take to close after us.
pub const LINGER_TICKS: u32 = 10;
/// How long a blocked connection has to take its close notice.
const NOTICE_TICKS: u32 = 50;
/// Connections that linger at once; those beyond are just closed.
const LINGERING_MAX: usize = 4_096;
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

    fn put(&mut self, slot: u32, bytes: &[u8]) {
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

    /// Makes the connection a reader from `place` on. False when the feed is gone since it was found: nobody read it
    /// for longer than it is kept.
    pub fn subscribe(&mut self, slot: u32, place: Place, encoding: Encoding, joined: bool) -> bool {
        let tick = self.tick();
        let (feed_slot, seq) = (place.feed, place.after);
        let Some(entry) = self.conns.get_mut(slot) else { return true };
        if matches!(entry.kind, Kind::Ending { .. }) {
            return true;
        }
        let Some(feed) = self.feeds.get_checked_mut(feed_slot, place.generation) else { return false };
        let shared = !matches!(entry.subs, Subs::None);
        let blocked = entry.flags.blocked;
        let reader = Reader {
            slot,
            fd: entry.fd,
            seq,
            bytes: 0,
            messages: 0,
            sent_tick: tick,
            standing: if blocked { Standing::Blocked } else { Standing::Live },
            sealed: entry.tls.is_some(),
            shared,
            joined,
        };
        let behind = feed.head().seq.saturating_sub(seq);
        let (lane, index) = feed.add_reader(encoding, reader);
        if !blocked && encoding != Encoding::Poll && !feed.lanes[usize::from(lane)].holds(seq) {
            feed.reader_mut(lane, index).standing = Standing::CatchUp;
        }
        let standing = feed.reader_mut(lane, index).standing;
        if let Subs::One(first) = &entry.subs
            && let Some(feed) = self.feeds.get_mut(first.feed)
        {
            feed.reader_mut(first.lane, first.index).shared = true;
        }
        entry.subs.push(Sub { feed: feed_slot, index, lane, fresh: standing == Standing::CatchUp });
        if self.is_traced() && encoding != Encoding::Poll {
            let (cursor, gap) = (place.cursor(), place.gap);
            self.trace_sub(slot, feed_slot, || What::Subscribed { cursor, behind, gap });
        }
        match standing {
            Standing::CatchUp => {
                if let Some(conn) = self.conn_id(slot) {
                    self.catchups.push_back((conn, feed_slot));
                }
            }
            Standing::Live if behind > 0 => self.touch(feed_slot),
            Standing::Live | Standing::Blocked => {}
        }
        self.weigh_feed(feed_slot);
        self.weigh_conn(slot);
        true
    }

    /// Takes the connection out of one feed.
    pub fn unsubscribe(&mut self, slot: u32, feed: u32) {
        if self.is_traced() {
            self.trace_sub(slot, feed, || What::Unsubscribed { because: None });
        }
        let Some(entry) = self.conns.get_mut(slot) else { return };
        if let Some(sub) = entry.subs.remove(feed) {
            if let Some(share) = &mut entry.share {
                share.unsubscribe(1);
            }
            self.leave(slot, sub);
        }
    }

    /// Takes the connection out of all feeds: it reads no more.
    pub fn unsubscribe_all(&mut self, slot: u32) {
        let Some(entry) = self.conns.get_mut(slot) else { return };
        if let Some(share) = &mut entry.share {
            share.end_reading();
        }
        let subs = std::mem::replace(&mut entry.subs, Subs::None);
        for sub in subs.as_slice() {
            self.leave(slot, *sub);
        }
    }

    fn leave(&mut self, slot: u32, sub: Sub) {
        let lease = self.node.clock.now_ms() + super::state::LEASE_MS;
        let Some(feed) = self.feeds.get_mut(sub.feed) else { return };
        let (gone, moved) = feed.remove_reader(sub.lane, sub.index);
        debug_assert_eq!(gone.slot, slot);
        if !feed.has_readers() {
            feed.leased_until_ms = lease;
        }
        self.weigh_feed(sub.feed);
        if let Some((moved_slot, _)) = moved
            && let Some(moved_entry) = self.conns.get_mut(moved_slot)
            && let Some(moved_sub) =
                moved_entry.subs.as_mut_slice().iter_mut().find(|other| other.feed == sub.feed)
        {
            moved_sub.index = sub.index;
        }
        if let Some(entry) = self.conns.get_mut(slot) {
            entry.sent_bytes += gone.bytes;
            entry.sent_messages = entry.sent_messages.wrapping_add(gone.messages);
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
        entry.flags.busy = false;
        match &mut entry.owed {
            Some(owed) => {
                owed.held_back = input;
                None
            }
            None => Some(input),
        }
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
    fn shut(&mut self, slot: u32) {
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

    fn count_left(&mut self, slot: u32, entry: &Entry) {
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

    /// The descriptor of a held connection.
    pub fn fd(&self, slot: u32) -> RawFd {
        self.conns.get(slot).map_or(-1, |entry| entry.fd)
    }

    /// Appends the id that a reader of several channels by SSE is at.
    pub fn write_joined_cursor(&self, slot: u32, feed: u32, seq: u64, out: &mut Vec<u8>) {
        let Some(entry) = self.conns.get(slot) else { return };
        let cursors = entry.subs.as_slice().iter().filter_map(|sub| {
            let channel = self.feeds.get(sub.feed)?;
            let at = if sub.feed == feed {
                seq
            } else {
                channel.lanes.get(usize::from(sub.lane))?.readers.get(sub.index as usize)?.seq
            };
            Some(channel.at(at))
        });
        crate::domain::cursor::write_joined(out, cursors);
    }

    /// Appends a message as this reader takes it.
    pub fn write_message(&self, slot: u32, sub: Sub, message: &Message, out: &mut Vec<u8>) {
        let Some(lane) = self.feeds.get(sub.feed).and_then(|feed| feed.lanes.get(usize::from(sub.lane)))
        else {
            return;
        };
        let tail = super::framing::frame(lane.encoding, message, out);
        if lane.readers.get(sub.index as usize).is_some_and(|reader| reader.joined) {
            out.truncate(out.len() - usize::from(tail));
            self.write_joined_id(slot, sub.feed, message.cursor.seq, out);
        }
    }

    pub fn write_joined_id(&self, slot: u32, feed: u32, seq: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"id: ");
        self.write_joined_cursor(slot, feed, seq, out);
        out.extend_from_slice(b"\n\n");
    }

    /// Appends the notice that what came before `seq` is lost to this reader.
    pub fn write_gap(&self, slot: u32, sub: Sub, seq: u64, out: &mut Vec<u8>) {
        let Some(feed) = self.feeds.get(sub.feed) else { return };
        let Some(lane) = feed.lanes.get(usize::from(sub.lane)) else { return };
        if lane.readers.get(sub.index as usize).is_some_and(|reader| reader.joined) {
            let mut cursor = Vec::new();
            self.write_joined_cursor(slot, sub.feed, seq, &mut cursor);
            let cursor = String::from_utf8(cursor).unwrap_or_default();
            sse::write_gap(out, feed.name.as_str(), &feed.at(seq).text(), &cursor);
        } else {
            super::framing::gap(lane.encoding, &feed.name, &feed.at(seq).text(), out);
        }
    }
}

/// The socket of a connection that is taken out of the holder.
fn socket_of(entry: Entry, is_in_epoll: bool) -> Socket {
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
