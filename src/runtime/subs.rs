//! Which channels a held connection reads: its places in feeds, and what becomes of them when it goes.

use super::entry::{Kind, Sub, Subs};
use super::feeds::Place;
use super::state::State;
use super::trace::What;
use crate::domain::lane::{Encoding, Reader, Standing};

impl State {
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
        let lease = self.node.clock.now_ms() + super::feeds::LEASE_MS;
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
}
