//! What is sent to one reader, outside of a batch of many: what a pass could not send to it with the others, what history has
//! for it, its gaps and ids.

use crate::domain::lane::{Encoding, Standing};
use crate::domain::message::Message;
use crate::proto::sse;

use super::close::Reason;
use super::entry::{ConnId, Kind, Sub};
use super::fanout::{ENCODING_TRANSPORTS, Job};
use super::sendring::{Outcome, send_now};
use super::state::State;
use super::stats::Load;
use super::trace::Sent;
use super::wire::SEALED_BYTES_MAX;

impl State {
    /// Sends to one reader that the batch cannot hold: its bytes are its own, or it must catch up, or it is a poll.
    pub(super) fn send_alone(&mut self, conn: ConnId, sub: Sub) {
        let Some(feed) = self.feeds.get_mut(sub.feed) else { return };
        let lane = &feed.lanes[usize::from(sub.lane)];
        let Some(reader) = lane.readers.get(sub.index as usize).copied() else { return };
        if lane.encoding == Encoding::Poll {
            self.answer_poll(conn.slot);
        } else if !lane.holds(reader.seq) {
            feed.reader_mut(sub.lane, sub.index).standing = Standing::CatchUp;
            self.catchups.push_back((conn, sub.feed));
            if self.is_traced() {
                self.trace_lag(conn.slot, sub.feed, reader.seq);
            }
        } else if reader.joined {
            self.send_joined(conn.slot, sub);
        } else {
            self.send_one(sub);
        }
    }

    /// Sends what the lane holds after the reader's position to it alone.
    fn send_one(&mut self, sub: Sub) {
        let tick = self.tick();
        let Some(feed) = self.feeds.get_mut(sub.feed) else { return };
        let head = feed.head().seq;
        let lane = &feed.lanes[usize::from(sub.lane)];
        let reader = lane.readers[sub.index as usize];
        if reader.sealed {
            self.send_one_sealed(sub);
            return;
        }
        let encoding = lane.encoding;
        let bytes = lane.bytes_after(reader.seq);
        let outcome = if bytes.is_empty() { Outcome::Whole } else { send_now(reader.fd, bytes) };
        let job = Job {
            feed: sub.feed,
            index: sub.index,
            lane: sub.lane,
            from: reader.seq,
            bytes: bytes.len() as u64,
            sealed: None,
        };
        let mover = feed.reader_mut(sub.lane, sub.index);
        mover.seq = head;
        mover.messages = mover.messages.wrapping_add((head - job.from) as u32);
        mover.bytes += job.bytes;
        mover.sent_tick = tick;
        let load = &mut self.pass.loads[encoding as usize];
        load.messages += head - job.from;
        load.bytes += job.bytes;
        self.stats().sends.add(1);
        self.fall_short(&job, outcome);
        self.count_loads();
        if self.is_traced() {
            self.trace_batch(self.sent_by(&job).as_slice());
        }
    }

    /// The same for one whose connection encrypts: so much as one pass may.
    fn send_one_sealed(&mut self, sub: Sub) {
        let Some(feed) = self.feeds.get(sub.feed) else { return };
        let lane = &feed.lanes[usize::from(sub.lane)];
        let Some(reader) = lane.readers.get(sub.index as usize).copied() else { return };
        let (upto, plain) = lane.some_after(reader.seq, SEALED_BYTES_MAX);
        let (bytes, plain, encoding) = (plain.len() as u64, plain.to_vec(), lane.encoding);
        self.stats().sends.add(1);
        if !plain.is_empty() && !self.send_sealed(reader.slot, &plain) {
            return;
        }
        let tick = self.tick();
        let Some(feed) = self.feeds.get_mut(sub.feed) else { return };
        let mover = feed.reader_mut(sub.lane, sub.index);
        mover.seq = upto;
        mover.messages = mover.messages.wrapping_add((upto - reader.seq) as u32);
        mover.bytes += bytes;
        mover.sent_tick = tick;
        let load = &mut self.pass.loads[encoding as usize];
        load.messages += upto - reader.seq;
        load.bytes += bytes;
        self.count_loads();
        if self.is_traced() {
            let messages = (upto - reader.seq) as u32;
            self.trace_batch(&[Sent { slot: reader.slot, feed: sub.feed, upto, messages, bytes }]);
        }
    }

    /// Sends what the lane holds to a reader of several channels, each event with an id line of its own.
    fn send_joined(&mut self, slot: u32, sub: Sub) {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let mut ends = Vec::new();
        if let Some(feed) = self.feeds.get(sub.feed) {
            let lane = &feed.lanes[usize::from(sub.lane)];
            let seq = lane.readers[sub.index as usize].seq;
            for framed in lane.framed_after(seq) {
                match framed.tail {
                    Some(_) if framed.bytes.is_empty() => {}
                    Some(tail) => {
                        scratch.extend_from_slice(&framed.bytes[..framed.bytes.len() - usize::from(tail)]);
                        self.write_joined_id(slot, sub.feed, framed.seq, &mut scratch);
                    }
                    None => self.write_gap(slot, sub, framed.seq, &mut scratch),
                }
                ends.push((scratch.len(), framed.seq));
            }
        }
        self.send_own(slot, sub, &scratch, &ends);
        scratch.clear();
        scratch.shrink_to(super::feeds::PAGE.bytes);
        self.scratch = scratch;
    }

    /// Sends bytes that were framed for one reader. `ends`: where each message ends, and its number.
    pub fn send_own(&mut self, slot: u32, sub: Sub, bytes: &[u8], ends: &[(usize, u64)]) {
        let tick = self.tick();
        let Some(entry) = self.conns.get(slot) else { return };
        let fd = entry.fd;
        let Some(&(_, last)) = ends.last() else { return };
        if entry.tls.is_some() {
            self.send_own_sealed(slot, sub, bytes, ends);
            return;
        }
        let outcome = if bytes.is_empty() { Outcome::Whole } else { send_now(fd, bytes) };
        let sent = match outcome {
            Outcome::Whole => bytes.len(),
            Outcome::Short(sent) => sent,
            Outcome::Full => 0,
            Outcome::Failed(errno) => {
                self.doom(slot, Reason::of_errno(errno));
                return;
            }
        };
        // The message in which the send ended; it counts as sent, what is missing of it is owed.
        let whole = ends.partition_point(|(end, _)| *end <= sent);
        let boundary = if whole == 0 { 0 } else { ends[whole - 1].0 };
        let begun = usize::from(sent > boundary);
        let reached = whole + begun;
        let upto = if begun == 1 { ends[whole].0 } else { sent };
        if reached > 0
            && let Some(feed) = self.feeds.get_mut(sub.feed)
        {
            let reader = feed.reader_mut(sub.lane, sub.index);
            reader.seq = if sent == bytes.len() { last } else { ends[reached - 1].1 };
            reader.messages = reader.messages.wrapping_add(reached as u32);
            reader.bytes += upto as u64;
            reader.sent_tick = tick;
            let (upto_seq, messages) = (reader.seq, reached as u32);
            let transport = ENCODING_TRANSPORTS[feed.lanes[usize::from(sub.lane)].encoding as usize];
            let load = Load { messages: reached as u64, bytes: upto as u64 };
            let stats = &self.node.stats[usize::from(self.index)];
            stats.deliver(transport, load);
            stats.sends.add(u64::from(!bytes.is_empty()));
            if self.is_traced() {
                let sent = Sent { slot, feed: sub.feed, upto: upto_seq, messages, bytes: upto as u64 };
                self.trace_batch(&[sent]);
            }
        }
        if sent < bytes.len() {
            self.block(slot, &bytes[sent..upto]);
        }
    }

    /// The same to a connection that encrypts: whole messages alone, and no more of them than one pass may take.
    fn send_own_sealed(&mut self, slot: u32, sub: Sub, bytes: &[u8], ends: &[(usize, u64)]) {
        let fit = ends.partition_point(|(end, _)| *end <= SEALED_BYTES_MAX).max(1);
        let (end, seq) = ends[fit - 1];
        if end > 0 && !self.send_sealed(slot, &bytes[..end]) {
            return;
        }
        let tick = self.tick();
        if let Some(feed) = self.feeds.get_mut(sub.feed) {
            let reader = feed.reader_mut(sub.lane, sub.index);
            reader.seq = seq;
            reader.messages = reader.messages.wrapping_add(fit as u32);
            reader.bytes += end as u64;
            reader.sent_tick = tick;
            let transport = ENCODING_TRANSPORTS[feed.lanes[usize::from(sub.lane)].encoding as usize];
            let stats = &self.node.stats[usize::from(self.index)];
            stats.deliver(transport, Load { messages: fit as u64, bytes: end as u64 });
            stats.sends.add(u64::from(end > 0));
            if self.is_traced() {
                let (messages, bytes) = (fit as u32, end as u64);
                self.trace_batch(&[Sent { slot, feed: sub.feed, upto: seq, messages, bytes }]);
            }
        }
    }

    /// Sends a stream what its feeds hold for it, without waiting for the next pass.
    pub fn send_pending(&mut self, slot: u32) {
        let Some(entry) = self.conns.get(slot) else { return };
        if matches!(entry.kind, Kind::Poll(_)) {
            return;
        }
        for sub in entry.subs.as_slice() {
            if let Some(feed) = self.feeds.get_mut(sub.feed) {
                let reader = feed.reader_mut(sub.lane, sub.index);
                if reader.standing == Standing::Live {
                    reader.standing = Standing::Blocked;
                }
            }
        }
        self.visit(slot);
    }

    /// A connection takes bytes again: each of its channels goes on, until it is full once more.
    pub fn visit(&mut self, slot: u32) {
        let count = self.conns.get(slot).map_or(0, |entry| entry.subs.as_slice().len());
        for at in 0..count {
            let Some(entry) = self.conns.get(slot) else { return };
            if entry.flags.blocked {
                return;
            }
            let Some(sub) = entry.subs.as_slice().get(at).copied() else { return };
            let Some(feed) = self.feeds.get_mut(sub.feed) else { continue };
            let head = feed.head().seq;
            let reader = feed.reader_mut(sub.lane, sub.index);
            if reader.standing != Standing::Blocked {
                continue;
            }
            reader.standing = Standing::Live;
            let is_behind = reader.seq < head;
            if is_behind {
                self.send_alone_while_it_takes(slot, sub);
            }
            if self.is_traced() {
                self.trace_if_level(slot, sub.feed);
            }
            if !is_behind {
                continue;
            }
            // It may have been the last that the lane was kept for: a pass lets go of it.
            self.touch(sub.feed);
        }
        // Those that were not reached are still marked as blocked, and wait for the next time.
    }

    /// One whose connection encrypts gets what it is behind in several goes.
    fn send_alone_while_it_takes(&mut self, slot: u32, sub: Sub) {
        let Some(conn) = self.conn_id(slot) else { return };
        loop {
            let before = self.behind(slot, sub);
            self.send_alone(conn, sub);
            let after = self.behind(slot, sub);
            // Nothing went, nothing is left, or it is not for this to go on.
            if after.is_none() || after == before {
                return;
            }
        }
    }

    /// The position of a live reader whose connection encrypts and takes bytes, if it is behind.
    fn behind(&self, slot: u32, sub: Sub) -> Option<u64> {
        let entry = self.conns.get(slot)?;
        let feed = self.feeds.get(sub.feed)?;
        let reader = feed.lanes.get(usize::from(sub.lane))?.readers.get(sub.index as usize)?;
        let goes_on = reader.slot == slot
            && reader.sealed
            && reader.standing == Standing::Live
            && !entry.flags.blocked
            && reader.seq < feed.head().seq;
        goes_on.then_some(reader.seq)
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
