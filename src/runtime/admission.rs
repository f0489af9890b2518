//! Who is let in: a node that has no memory left, or more to do than it can do in time, turns newcomers away before
//! anything is done for them (docs/limits.md, "Storms").
//! Owns the decision. How it is told is the edge's.

use super::close::Transport;
use super::entry::ConnId;
use super::io;
use super::state::State;
use super::stats::Refusal;

/// After many connections had waited to be accepted, newcomers are asked for so long how long their requests waited.
const CROWD_TICKS: u32 = 10;

/// Newcomers of a crowd to one that is asked for how long its request waited, as long as nobody has waited for long: their
/// waits differ by little, and grow slowly.
const CROWD_TO_ONE_ASKED: u8 = 8;

/// What is known of the newcomers that may have waited.
#[derive(Debug, Default)]
pub struct Crowd {
    /// Until then there may be such.
    until_tick: u32,
    /// That came since one was asked.
    unasked: u8,
    /// The last that was asked had waited for half of what is too long.
    is_near_late: bool,
}

/// What is said to one that is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// Appended to the answers; it ends the connection.
    Away(Transport),
    /// The request is not whole yet: a task reads on.
    Unread,
    /// It is served all the same.
    Served,
}

impl State {
    /// As many connections as are taken in one go were waiting to be accepted: the worker may be late.
    pub fn see_crowd(&mut self) {
        let tick = self.tick();
        if tick >= self.crowd.until_tick {
            // Its first is asked.
            self.crowd.unasked = CROWD_TO_ONE_ASKED;
        }
        self.crowd.until_tick = tick + CROWD_TICKS;
    }

    /// Why the first request of a connection is turned away, if it is: for want of memory, or because it has waited for so long,
    /// in the kernel and here, that others had better be served in time. The client's own slowness does not count: the
    /// time runs from the last byte that came.
    pub fn turns_away(&mut self, fd: i32) -> Option<Refusal> {
        if self.is_full() {
            return Some(Refusal::Memory);
        }
        self.is_late(fd).then_some(Refusal::Admission)
    }

    fn is_late(&mut self, fd: i32) -> bool {
        if self.tick() >= self.crowd.until_tick {
            return false;
        }
        self.crowd.unasked = self.crowd.unasked.saturating_add(1);
        if self.crowd.unasked < CROWD_TO_ONE_ASKED && !self.crowd.is_near_late {
            return false;
        }
        let max = self.node.settings.timeouts.admission;
        let waited = io::since_input(fd).unwrap_or_default();
        self.crowd.unasked = 0;
        self.crowd.is_near_late = waited > max / 2;
        let is_late = waited > max;
        if is_late {
            // The crowd is not through yet.
            self.see_crowd();
        }
        is_late
    }

    /// As [`turns_away`](Self::turns_away), of a held connection between requests.
    pub fn turns_away_held(&mut self, conn: ConnId) -> Option<Refusal> {
        let entry = self.conn(conn).filter(|entry| entry.sent_messages == 0)?;
        let fd = entry.fd;
        self.turns_away(fd)
    }
}
