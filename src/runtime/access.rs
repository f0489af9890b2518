//! The access log as workers know it: lines to be, and the queue to the thread that writes them (`access_file`).
//! Owns the queue and its bound. A worker never waits: what does not fit is dropped and counted, and the log says how
//! many. Never owns a descriptor, never makes text (`access_line`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::domain::home::WorkerIndex;

use super::close::{Reason, Transport};
use super::entry::ConnId;
use super::peer::Peer;

/// Lines that wait to be written, of the whole node: what comes in 50 ms of 300,000 requests a second.
const LINES_MAX: usize = 16 * 1024;

/// What one line will say.
#[derive(Debug)]
pub struct Line {
    pub at_ms: u64,
    pub worker: WorkerIndex,
    pub peer: Peer,
    pub subject: Option<Box<str>>,
    pub of: Of,
}

#[derive(Debug)]
pub enum Of {
    /// A request was answered, or nobody was there any more to be answered.
    Request(Request),
    /// A connection ended.
    End(End),
    /// A connection was closed when it came.
    Refused(Reason),
}

#[derive(Debug)]
pub struct Request {
    pub head: Head,
    pub transport: Transport,
    pub duration_us: u64,
    /// `None`: the client went before it was answered.
    pub answer: Option<Answered>,
    pub conn: Option<ConnId>,
}

#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub status: u16,
    /// Head and body.
    pub bytes: u64,
}

/// What a request's head says, as far as it may be shown.
#[derive(Debug, Default)]
pub struct Head {
    pub method: Option<Box<str>>,
    /// Path and query, as they came, without secrets.
    pub target: Option<Box<str>>,
    pub agent: Option<Box<str>>,
    pub origin: Option<Box<str>>,
    /// Without its query.
    pub referer: Option<Box<str>>,
}

#[derive(Debug)]
pub struct End {
    pub transport: Transport,
    pub reason: Reason,
    pub duration_ms: u64,
    pub messages: u32,
    pub bytes: u64,
    /// Of one that the holder had.
    pub conn: Option<ConnId>,
}

/// What the thread that writes is told beside lines.
#[derive(Debug)]
pub(super) enum Order {
    /// The file may have been moved away: open it again.
    Reopen,
    /// Write what waits, say so, and end.
    Stop(Sender<()>),
}

/// The way in. Cloned for each worker.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: Sender<Box<Line>>,
    orders: Sender<Order>,
    dropped: Arc<AtomicU64>,
}

/// The way out.
pub(super) struct Outlet {
    pub lines: Receiver<Box<Line>>,
    pub orders: Receiver<Order>,
    pub dropped: Arc<AtomicU64>,
}

pub(super) fn channel() -> (AccessLog, Outlet) {
    let ((lines_in, lines), (orders_in, orders)) = (bounded(LINES_MAX), unbounded());
    let dropped = Arc::new(AtomicU64::new(0));
    let log = AccessLog { lines: lines_in, orders: orders_in, dropped: Arc::clone(&dropped) };
    (log, Outlet { lines, orders, dropped })
}

impl AccessLog {
    /// Never waits.
    pub fn tell(&self, line: Line) {
        if self.lines.try_send(Box::new(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were dropped and not yet told of.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Opens the file again, under the name that was given: for whoever rotates logs.
    pub fn reopen(&self) {
        // The thread ends with the process: an order that nobody takes needs no doing.
        let _ = self.orders.send(Order::Reopen);
    }

    /// Waits until all that was told is written, but not for longer than `patience`: a pipe that nobody reads is no
    /// reason not to end.
    pub fn finish(&self, patience: Duration) {
        let (written, all_written) = bounded(1);
        if self.orders.send(Order::Stop(written)).is_ok() {
            let _ = all_written.recv_timeout(patience);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (log, outlet) = channel();
        let line =
            || Line { at_ms: 0, worker: 0, peer: Peer::UNIX, subject: None, of: Of::Refused(Reason::Full) };
        for _ in 0..LINES_MAX + 3 {
            log.tell(line());
        }
        assert_eq!((outlet.lines.len(), log.dropped()), (LINES_MAX, 3));
        drop(outlet);
        // Whoever tells a log that has ended does not wait either.
        log.tell(line());
        log.finish(Duration::from_secs(9));
    }
}
