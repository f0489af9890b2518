//! A count of what one worker holds: readers and how far they are behind, feeds, channels. Nothing of it is counted while
//! clients are served; it is walked over when somebody asks, a slice at a time, so that it is never the sum of one moment.

use std::time::Instant;

use crate::domain::feed::Feed;
use crate::domain::lane::{Reader, Standing};
use crate::runtime::fanout::ENCODING_TRANSPORTS;
use crate::runtime::state::State;
use crate::runtime::stats::TRANSPORTS;

use super::desk::SLICE;

/// Readers, and feeds, looked at before the clock is.
const READERS: usize = 1_024;
const FEEDS: usize = 64;

/// What was counted so far.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Subscriptions, by transport.
    pub readers: [u64; TRANSPORTS],
    /// Readers that do not have all that the feed has.
    pub behind: u64,
    /// Readers that are given pages of history.
    pub catching_up: u64,
    /// Messages that readers do not have yet: all of them, and the most of one.
    pub lag: u64,
    pub lag_max: u64,
    /// Bytes of messages that sockets took only in part, and of answers to those readers.
    pub owed_bytes: u64,
    pub feeds: u64,
    pub feed_bytes: u64,
    pub channels: u64,
    pub history_messages: u64,
    pub history_bytes: u64,
    /// Connections whose socket takes no more.
    pub blocked: u64,
    /// TLS handshakes of which something has come that waits for its turn.
    pub handshakes_waiting: u64,
    at: Place,
}

/// Where the walk goes on.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    feed: u32,
    lane: usize,
    reader: usize,
}

impl Census {
    /// Counts on, for a slice of time. True when all is counted.
    pub fn go_on(&mut self, state: &State) -> bool {
        let until = Instant::now() + SLICE;
        let end = state.feeds.slots_end();
        let mut looked = 0;
        while self.at.feed < end {
            if let Some(feed) = state.feeds.get(self.at.feed)
                && !self.count_feed(state, feed, until)
            {
                return false;
            }
            self.at = Place { feed: self.at.feed + 1, ..Place::default() };
            looked += 1;
            if usize::is_multiple_of(looked, FEEDS) && Instant::now() >= until {
                return false;
            }
        }
        self.channels = state.home.channels() as u64;
        self.history_messages = state.home.messages() as u64;
        self.history_bytes = state.home.bytes() as u64;
        self.blocked = state.blocked.len() as u64;
        self.handshakes_waiting = state.handshakes.len() as u64;
        true
    }

    /// False when the time was over first.
    fn count_feed(&mut self, state: &State, feed: &Feed, until: Instant) -> bool {
        if (self.at.lane, self.at.reader) == (0, 0) {
            self.feeds += 1;
            self.feed_bytes += feed.held_bytes() as u64;
        }
        let head = feed.head().seq;
        while let Some(lane) = feed.lanes.get(self.at.lane) {
            let transport = ENCODING_TRANSPORTS[lane.encoding as usize];
            // Readers may have gone since the last slice.
            let rest = lane.readers.get(self.at.reader..).unwrap_or_default();
            let some = &rest[..rest.len().min(READERS)];
            self.readers[transport as usize] += some.len() as u64;
            for reader in some {
                self.count_reader(state, self.at.feed, reader, head);
            }
            if some.len() == rest.len() {
                self.at = Place { lane: self.at.lane + 1, reader: 0, ..self.at };
            } else {
                self.at.reader += some.len();
                if Instant::now() >= until {
                    return false;
                }
            }
        }
        true
    }

    fn count_reader(&mut self, state: &State, feed: u32, reader: &Reader, head: u64) {
        let lag = head.saturating_sub(reader.seq);
        if lag > 0 {
            self.behind += 1;
            self.lag += lag;
            self.lag_max = self.lag_max.max(lag);
        }
        match reader.standing {
            Standing::Live => {}
            Standing::CatchUp => self.catching_up += 1,
            Standing::Blocked => {
                // One that reads several channels owes once.
                if let Some(entry) = state.conns.get(reader.slot)
                    && entry.subs.as_slice().first().is_some_and(|sub| sub.feed == feed)
                {
                    self.owed_bytes += entry.owed.as_ref().map_or(0, |owed| owed.len() as u64);
                }
            }
        }
    }
}
