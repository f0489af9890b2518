//! Readers whose position no lane holds: pages of the feed's recent messages, or of history, are put before them until
//! they are level with a lane. Where history no longer holds the position either, the policy for the slow applies.

use crate::domain::lane::{Encoding, Standing};
use crate::domain::page::{From, Page, PageMax};

use super::close::Reason;
use super::entry::{ConnId, Sub};
use super::feeds::PAGE;
use super::mail::{Answer, Ask};
use super::post::Pending;
use super::settings::SlowPolicy;
use super::state::State;
use super::trace::What;

/// How soon a reader that was too slow may come back: at least, and up to twice that.
const SLOW_RECONNECT_MS: u64 = 1_000;

impl State {
    /// Goes on with one reader that catches up. False when there is none.
    pub fn catch_up_one(&mut self) -> bool {
        let Some((conn, feed)) = self.catchups.pop_front() else { return false };
        self.next_page(conn, feed);
        self.bury();
        true
    }

    /// The subscription, if it still stands and still catches up.
    fn catching_up(&self, conn: ConnId, feed: u32) -> Option<(Sub, u64)> {
        let sub = self.conn(conn)?.subs.of_feed(feed)?;
        let lane = self.feeds.get(feed)?.lanes.get(usize::from(sub.lane))?;
        let reader = lane.readers.get(sub.index as usize)?;
        (reader.standing == Standing::CatchUp).then_some((sub, reader.seq))
    }

    fn next_page(&mut self, conn: ConnId, feed_slot: u32) {
        let Some((_, seq)) = self.catching_up(conn, feed_slot) else { return };
        let (now_ms, bounds) = (self.node.clock.now_ms(), self.node.feed_bounds());
        let Some(feed) = self.feeds.get_mut(feed_slot) else { return };
        let from = From::After(feed.at(seq));
        match feed.read(from, PAGE, bounds, now_ms) {
            Some(page) => self.on_page(conn, feed_slot, Some(page)),
            None => self.ask_page(conn, feed_slot, from, PAGE),
        }
    }

    fn ask_page(&mut self, conn: ConnId, feed_slot: u32, from: From, max: PageMax) {
        let Some(name) = self.feeds.get(feed_slot).map(|feed| feed.name.clone()) else { return };
        let home = self.node.home_of(name.as_str());
        let ask = Ask::Read { name, from, max };
        self.stats().pages.add(1);
        if home == self.index {
            if let Answer::Page(page) = self.answer(self.index, ask) {
                self.on_page(conn, feed_slot, page);
            }
        } else if self.ask(home, ask, Pending::Page { conn, feed: feed_slot }).is_err() {
            // The home is overloaded: ask again on the next tick.
            self.catchups_later.push((conn, feed_slot));
            self.call_clock(self.tick() + 1);
        }
    }

    /// A page for a reader that catches up.
    pub fn on_page(&mut self, conn: ConnId, feed_slot: u32, page: Option<Page>) {
        let Some((sub, seq)) = self.catching_up(conn, feed_slot) else { return };
        let Some(page) = page else { return };
        if !page.gap && page.after != seq {
            // Of an earlier subscription of this connection.
            self.catchups.push_back((conn, feed_slot));
            return;
        }
        if self.conn(conn).is_some_and(|entry| entry.flags.blocked) {
            // It will ask again when it takes bytes again.
            self.stand(sub, Standing::Blocked);
            return;
        }
        let mut gap_at = None;
        if page.gap {
            match self.verdict(sub) {
                Verdict::Close => {
                    let delay_ms = SLOW_RECONNECT_MS + self.random_below(SLOW_RECONNECT_MS);
                    self.farewell(conn.slot, Reason::Slow, delay_ms);
                    return;
                }
                Verdict::TellGap => gap_at = Some(page.after),
                Verdict::TellGapThenNewest => {
                    let newest = self.feeds.get_mut(feed_slot).and_then(|feed| {
                        let head = feed.head().seq;
                        head.checked_sub(1).filter(|before| *before > page.after)
                    });
                    gap_at = Some(newest.unwrap_or(page.after));
                }
            }
        }
        if let Some(seq) = gap_at
            && self.is_traced()
            && let Some(cursor) = self.feeds.get(feed_slot).map(|feed| feed.at(seq))
        {
            self.trace_sub(conn.slot, feed_slot, || What::Gap { cursor });
        }
        self.put_page(conn, sub, &page, gap_at);
        self.after_page(conn, feed_slot);
    }

    /// Sends a page, with the gap that it begins with.
    fn put_page(&mut self, conn: ConnId, sub: Sub, page: &Page, gap_at: Option<u64>) {
        let Some(head) = self.feeds.get(sub.feed).map(|feed| feed.head().seq) else { return };
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        let mut ends = Vec::with_capacity(page.messages.len() + 2);
        let from = gap_at.unwrap_or(page.after);
        if gap_at.is_some() {
            // What the gap's cursor says is what the reader then stands at.
            self.write_gap(conn.slot, sub, from, &mut scratch);
            ends.push((scratch.len(), from));
        }
        for message in &page.messages {
            // The feed may not have heard yet of the newest: those will come live.
            if message.cursor.seq > from && message.cursor.seq <= head {
                self.write_message(conn.slot, sub, message, &mut scratch);
                ends.push((scratch.len(), message.cursor.seq));
            }
        }
        let next = page.next.min(head);
        match ends.last_mut() {
            Some((_, last)) => *last = (*last).max(next),
            None => ends.push((0, next.max(from))),
        }
        self.send_own(conn.slot, sub, &scratch, &ends);
        scratch.clear();
        scratch.shrink_to(PAGE.bytes);
        self.scratch = scratch;
    }

    /// Level with a lane: live again. Else the next page, or the next time that the socket takes bytes.
    fn after_page(&mut self, conn: ConnId, feed_slot: u32) {
        let Some((sub, seq)) = self.catching_up(conn, feed_slot) else { return };
        if self.conn(conn).is_some_and(|entry| entry.flags.blocked) {
            self.stand(sub, Standing::Blocked);
            return;
        }
        let Some(feed) = self.feeds.get_mut(feed_slot) else { return };
        let head = feed.head().seq;
        if feed.lanes[usize::from(sub.lane)].holds(seq) {
            feed.reader_mut(sub.lane, sub.index).standing = Standing::Live;
            let cursor = feed.at(seq);
            if self.is_traced() {
                self.trace_sub(conn.slot, feed_slot, || What::CaughtUp { cursor });
            }
            self.no_longer_fresh(conn, feed_slot);
            if seq < head {
                self.touch(feed_slot);
            }
        } else {
            self.catchups.push_back((conn, feed_slot));
        }
    }

    fn no_longer_fresh(&mut self, conn: ConnId, feed: u32) {
        if let Some(entry) = self.conn_mut(conn)
            && let Some(sub) = entry.subs.as_mut_slice().iter_mut().find(|sub| sub.feed == feed)
        {
            sub.fresh = false;
        }
    }

    fn stand(&mut self, sub: Sub, standing: Standing) {
        if let Some(feed) = self.feeds.get_mut(sub.feed) {
            feed.reader_mut(sub.lane, sub.index).standing = standing;
        }
    }

    /// What happens to a reader whose position is lost.
    fn verdict(&self, sub: Sub) -> Verdict {
        let Some(feed) = self.feeds.get(sub.feed) else { return Verdict::Close };
        if feed.lanes[usize::from(sub.lane)].encoding == Encoding::Raw {
            return Verdict::Close;
        }
        match self.node.policy_for(&feed.name) {
            SlowPolicy::Skip => Verdict::TellGap,
            SlowPolicy::Latest => Verdict::TellGapThenNewest,
            SlowPolicy::Disconnect if sub.fresh => Verdict::TellGap,
            SlowPolicy::Disconnect => Verdict::Close,
        }
    }
}

enum Verdict {
    Close,
    TellGap,
    TellGapThenNewest,
}
