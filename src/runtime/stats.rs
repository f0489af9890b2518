//! Counters of one worker, written by its thread alone and read by any; and the one count that all write: places taken.
//! Owns what is counted, by which names. Where it costs clients anything, it is not counted here but looked at when asked.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::close::{Reason, Transport};

/// One counter: a plain add, for only one thread writes it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One counter for each of a closed list.
#[derive(Debug)]
pub struct Counters<const N: usize>([Counter; N]);

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Counters<N> {
    pub fn add(&self, at: usize, count: u64) {
        if let Some(counter) = self.0.get(at) {
            counter.add(count);
        }
    }

    pub fn get(&self, at: usize) -> u64 {
        self.0.get(at).map_or(0, Counter::get)
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// What is refused to a client, and why: one closed list for logs, metrics and whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.connections`, or what open files allow: closed when it was accepted.
    Connections,
    /// The table of open files was found full.
    Files,
    /// More new connections than could be served in time.
    Admission,
    /// `limits.memory_bytes`.
    Memory,
    /// A quota of the address, the subject or the node.
    Quota,
    /// Another site's page, or a foreign `Host`.
    Origin,
    /// Nobody's token, or one that does not count.
    Unauthenticated,
    /// A token that does not cover this.
    Forbidden,
    /// No request, or one that could be read in two ways.
    BadRequest,
    /// A head or a body that came too slowly.
    SlowRequest,
    /// A mailbox is full: the node has more to do than it can.
    Overloaded,
    /// `limits.channels`, all of them in use.
    Channels,
    /// `limits.idempotency_keys`
    Keys,
    /// The node is stopping.
    Draining,
}

impl Refusal {
    pub const ALL: [Self; 14] = [
        Self::Connections,
        Self::Files,
        Self::Admission,
        Self::Memory,
        Self::Quota,
        Self::Origin,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::BadRequest,
        Self::SlowRequest,
        Self::Overloaded,
        Self::Channels,
        Self::Keys,
        Self::Draining,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Files => "files",
            Self::Admission => "admission",
            Self::Memory => "memory",
            Self::Quota => "quota",
            Self::Origin => "origin",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::BadRequest => "bad_request",
            Self::SlowRequest => "slow_request",
            Self::Overloaded => "overloaded",
            Self::Channels => "channels",
            Self::Keys => "keys",
            Self::Draining => "draining",
        }
    }
}

/// Why no TLS connection came of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// The client closed or reset the connection in the middle.
    Gone,
    /// It was not over within `timeouts.head_seconds`.
    Late,
    /// HTTP was spoken without TLS.
    Plain,
    /// Client and server have no version, cipher suite or application protocol in common.
    Incompatible,
    /// The client said by an alert that it does not want: it does not trust the certificate, most often.
    Alert,
    /// What came is no TLS, or breaks its rules.
    Malformed,
    /// The server ended it: it drains, an operator closed it, or a fault.
    Server,
}

impl HandshakeFailure {
    pub const ALL: [Self; 7] =
        [Self::Gone, Self::Late, Self::Plain, Self::Incompatible, Self::Alert, Self::Malformed, Self::Server];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Late => "late",
            Self::Plain => "plain",
            Self::Incompatible => "incompatible",
            Self::Alert => "alert",
            Self::Malformed => "malformed",
            Self::Server => "server",
        }
    }

    /// That of a connection which ended for `reason` before its handshake had.
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::Gone | Reason::Reset | Reason::TimedOut => Self::Gone,
            Reason::TlsFailed => Self::Malformed,
            _ => Self::Server,
        }
    }
}

/// Upper bounds of a histogram's buckets, in microseconds; one more bucket is for what is over all of them.
pub const BOUNDS_US: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 10_000_000,
];

/// How long something took, each time.
#[derive(Debug, Default)]
pub struct Histogram {
    pub buckets: Counters<{ BOUNDS_US.len() + 1 }>,
    pub sum_us: Counter,
}

impl Histogram {
    pub fn observe_us(&self, us: u64) {
        self.buckets.add(BOUNDS_US.partition_point(|bound| *bound < us), 1);
        self.sum_us.add(us);
    }
}

/// Messages and bytes of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    pub messages: u64,
    pub bytes: u64,
}

pub const TRANSPORTS: usize = Transport::ALL.len();
pub const REASONS: usize = Reason::ALL.len();
pub const REFUSALS: usize = Refusal::ALL.len();
pub const HANDSHAKE_FAILURES: usize = HandshakeFailure::ALL.len();

/// What one worker has done. Aligned so that no two workers write one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats {
    pub accepted: Counter,
    pub closed: Counter,
    /// Connections that became this; of `Http`: none, those are `accepted`.
    pub began: Counters<TRANSPORTS>,
    /// Connections that are this no more.
    pub left: Counters<TRANSPORTS>,
    /// By reason, then by transport: see [`Stats::close`].
    ended: Counters<{ REASONS * TRANSPORTS }>,
    refusals: Counters<REFUSALS>,
    /// Answers to requests, by the first digit of their status.
    answers: Counters<5>,
    /// Messages that were given their place here.
    pub placed: Counter,
    pub placed_bytes: Counter,
    /// Messages given to readers, by transport.
    pub deliveries: Counters<TRANSPORTS>,
    /// All that was given to sockets, or is owed to them, by transport.
    pub sent_bytes: Counters<TRANSPORTS>,
    /// Of the fan-out.
    pub sends: Counter,
    pub short_sends: Counter,
    /// Pages of history that readers behind were given.
    pub pages: Counter,
    pub panics: Counter,
    /// TLS handshakes that were awaited; that ended well; those of them that resumed a session. What began and neither
    /// ended well nor failed goes on.
    pub handshakes_begun: Counter,
    pub handshakes: Counter,
    pub handshakes_resumed: Counter,
    handshakes_failed: Counters<HANDSHAKE_FAILURES>,
    /// From the beginning of a pass over a feed's readers to its end.
    pub pass: Histogram,
    /// From the placing of the oldest message of a pass to the first send of the pass, and to the last.
    pub first_write: Histogram,
    pub last_write: Histogram,
}

impl Stats {
    pub fn close(&self, transport: Transport, reason: Reason) {
        self.closed.add(1);
        self.ended.add(reason as usize * TRANSPORTS + transport as usize, 1);
    }

    pub fn closed_as(&self, transport: Transport, reason: Reason) -> u64 {
        self.ended.get(reason as usize * TRANSPORTS + transport as usize)
    }

    pub fn refuse(&self, refusal: Refusal) {
        self.refusals.add(refusal as usize, 1);
    }

    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refusals.get(refusal as usize)
    }

    pub fn refused_in_all(&self) -> u64 {
        self.refusals.sum()
    }

    pub fn fail_handshake(&self, failure: HandshakeFailure) {
        self.handshakes_failed.add(failure as usize, 1);
    }

    pub fn failed_handshakes(&self, failure: HandshakeFailure) -> u64 {
        self.handshakes_failed.get(failure as usize)
    }

    pub fn failed_handshakes_in_all(&self) -> u64 {
        self.handshakes_failed.sum()
    }

    pub fn answer(&self, status: u16) {
        self.answers.add(usize::from(status / 100).saturating_sub(1), 1);
    }

    /// Answers whose status begins with `digit`.
    pub fn answered(&self, digit: usize) -> u64 {
        self.answers.get(digit - 1)
    }

    pub fn deliver(&self, transport: Transport, load: Load) {
        self.deliveries.add(transport as usize, load.messages);
        self.sent_bytes.add(transport as usize, load.bytes);
    }

    /// Connections that are open as `transport`. Counts of a moment: they may be one apart.
    pub fn open(&self, transport: Transport) -> u64 {
        let held = |transport: Transport| {
            let at = transport as usize;
            self.began.get(at).saturating_sub(self.left.get(at))
        };
        match transport {
            Transport::Http => {
                let others = Transport::ALL.into_iter().filter(|other| *other != Transport::Http).map(held);
                let open = self.accepted.get().saturating_sub(self.closed.get());
                open.saturating_sub(others.sum())
            }
            other => held(other),
        }
    }
}

/// Connections of the node. The kernel spreads them unevenly, so a part for each worker would refuse some before the node
/// is full. Written at an accept and a close; aligned so that nothing else is in its cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Places(AtomicUsize);

impl Places {
    /// Takes a place, if there are fewer than `max`.
    pub fn take(&self, max: usize) -> bool {
        if self.0.fetch_add(1, Ordering::Relaxed) < max {
            return true;
        }
        self.give();
        false
    }

    pub fn taken(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub fn give(&self) {
        let before = self.0.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a place was given back that nobody took");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_has_each_of_its_own_at_its_place() {
        for (at, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, at, "{}", refusal.as_str());
        }
        for (at, failure) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, at, "{}", failure.as_str());
        }
        for (at, transport) in Transport::ALL.into_iter().enumerate() {
            assert_eq!(transport as usize, at, "{}", transport.as_str());
        }
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, at, "{}", reason.as_str());
        }
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_is_not_below_it() {
        let histogram = Histogram::default();
        for us in [0, 10, 11, 10_000_000, 10_000_001, u64::from(u32::MAX)] {
            histogram.observe_us(us);
        }
        let last = BOUNDS_US.len();
        let counts: Vec<u64> = [0, 1, last - 1, last].map(|at| histogram.buckets.get(at)).to_vec();
        assert_eq!((counts, histogram.buckets.sum()), (vec![2, 1, 1, 2], 6));
    }

    #[test]
    fn what_is_open_is_what_came_and_did_not_go() {
        let stats = Stats::default();
        stats.accepted.add(5);
        stats.began.add(Transport::Sse as usize, 2);
        assert_eq!((stats.open(Transport::Http), stats.open(Transport::Sse)), (3, 2));
        stats.left.add(Transport::Sse as usize, 1);
        stats.close(Transport::Sse, Reason::Gone);
        assert_eq!((stats.open(Transport::Http), stats.open(Transport::Sse)), (3, 1));
        assert_eq!(stats.closed_as(Transport::Sse, Reason::Gone), 1);
        assert_eq!(stats.closed_as(Transport::Http, Reason::Gone), 0);
        for status in [101, 200, 304, 404, 503] {
            stats.answer(status);
        }
        assert_eq!([1, 2, 3, 4, 5].map(|digit| stats.answered(digit)), [1; 5]);
    }
}
