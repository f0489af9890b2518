//! What the publisher and the reader threads share: counts, commands, and who is to be woken when.

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use crate::{net, stats};

/// What one thread has seen.
pub struct Tally {
    pub delivered: u64,
    /// Of orders that were given up: told as lost then, and not among `delivered`.
    pub stragglers: u64,
    /// Of another length than what was published.
    pub damaged: u64,
    /// Short polls promise the newest alone: older ones that were not seen, and need not be.
    pub superseded: u64,
    /// Numbers that were jumped over and never came.
    pub jumped: u64,
    pub repeated: u64,
    /// Came after a later one.
    pub late: u64,
    pub gaps: u64,
    /// Readers that the server ended with a word.
    pub told: u64,
    /// Readers that were ended without.
    pub cut: u64,
    /// Reads that brought a message: deliveries to a read tell how much was coalesced.
    pub reads: u64,
    /// Answers to polls, and those of them that were 304.
    pub answers: u64,
    pub unchanged: u64,
    /// Pings and comments.
    pub heartbeats: u64,
    /// Readers that were ended, and readers that came back, in each tenth of a second of a move.
    pub left: Vec<u32>,
    pub back: Vec<u32>,
    pub latency: Histogram<u64>,
    /// From `connect` to being subscribed.
    pub waits: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            delivered: 0,
            stragglers: 0,
            damaged: 0,
            superseded: 0,
            jumped: 0,
            repeated: 0,
            late: 0,
            gaps: 0,
            told: 0,
            cut: 0,
            reads: 0,
            answers: 0,
            unchanged: 0,
            heartbeats: 0,
            left: Vec::new(),
            back: Vec::new(),
            latency: stats::new_histogram(),
            waits: stats::new_histogram(),
        }
    }
}

impl Tally {
    /// Deliveries, a repeated message once, with those that a newer one stood for.
    pub fn first(&self) -> u64 {
        self.delivered + self.superseded - self.repeated
    }

    pub fn add(&mut self, one: &Self) {
        for (sum, more) in [
            (&mut self.delivered, one.delivered),
            (&mut self.stragglers, one.stragglers),
            (&mut self.damaged, one.damaged),
            (&mut self.superseded, one.superseded),
            (&mut self.jumped, one.jumped),
            (&mut self.repeated, one.repeated),
            (&mut self.late, one.late),
            (&mut self.gaps, one.gaps),
            (&mut self.told, one.told),
            (&mut self.cut, one.cut),
            (&mut self.reads, one.reads),
            (&mut self.answers, one.answers),
            (&mut self.unchanged, one.unchanged),
            (&mut self.heartbeats, one.heartbeats),
        ] {
            *sum += more;
        }
        for (sums, more) in [(&mut self.left, &one.left), (&mut self.back, &one.back)] {
            sums.resize(sums.len().max(more.len()), 0);
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        self.latency.add(&one.latency).expect("the same bounds");
        self.waits.add(&one.waits).expect("the same bounds");
    }
}

/// One more in the tenth of a second in which `at_ns` is, of those since `began_ns`.
pub fn count_tenth(tenths: &mut Vec<u32>, began_ns: u64, at_ns: u64) {
    let tenth = (at_ns.saturating_sub(began_ns) / 100_000_000) as usize;
    if tenths.len() <= tenth {
        tenths.resize(tenth + 1, 0);
    }
    tenths[tenth] += 1;
}

/// A reader's cursor: at most 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    bytes: [u8; 32],
    len: u8,
}

impl Cursor {
    /// `None`: none of ours is so long.
    pub fn new(text: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        Some(Self { bytes, len: text.len() as u8 })
    }

    pub fn text(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// What reader threads are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Every so manieth reader stops to read.
    Stall(usize),
    /// All read again.
    Flow,
    /// All readers that were ended come back at once.
    Return,
    /// From now on each reader that is ended comes to the second server, with this cursor, when it was told to.
    Move { cursor: Cursor, began_ns: u64 },
    /// In each channel the reader of this place publishes a message of this number, by its own WebSocket.
    Speak { member: usize, number: u32 },
    /// Short pollers begin to poll, one request after the other, until `polling` is false.
    Poll,
}

pub struct Board {
    delivered: AtomicU64,
    wake_at: AtomicU64,
    publisher: Thread,
    open: AtomicUsize,
    retried: AtomicUsize,
    failed: AtomicBool,
    polling: AtomicBool,
    /// What was published before was given up.
    given_up_ns: AtomicU64,
    /// The last number that channels held when short pollers came.
    held: Mutex<HashMap<[u8; 8], u32>>,
    /// Why the last handshake failed that did.
    refusal: Mutex<Option<String>>,
    tallies: Vec<Mutex<Tally>>,
    commands: Vec<Mutex<Vec<Command>>>,
    wakers: Vec<OwnedFd>,
}

impl Board {
    /// Made by the thread that will publish and wait, before it opens other descriptors.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self {
            delivered: AtomicU64::new(0),
            wake_at: AtomicU64::new(u64::MAX),
            publisher: thread::current(),
            open: AtomicUsize::new(0),
            retried: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            polling: AtomicBool::new(false),
            given_up_ns: AtomicU64::new(0),
            held: Mutex::default(),
            refusal: Mutex::default(),
            tallies: (0..threads).map(|_| Mutex::default()).collect(),
            commands: (0..threads).map(|_| Mutex::default()).collect(),
            wakers: (0..threads).map(|_| net::event_fd()).collect::<Result<_, _>>()?,
        })
    }

    /// The highest descriptor that reader threads keep in their own tables.
    pub fn last_shared(&self) -> RawFd {
        self.wakers.iter().map(|waker| waker.as_raw_fd()).max().unwrap_or(2)
    }

    pub fn waker(&self, thread: usize) -> RawFd {
        self.wakers[thread].as_raw_fd()
    }

    /// # Panics
    /// When a reader thread panicked.
    pub fn command(&self, command: Command) -> Result<()> {
        for (commands, waker) in self.commands.iter().zip(&self.wakers) {
            commands.lock().expect("reader threads do not panic").push(command);
            net::write_event(waker.as_raw_fd())?;
        }
        Ok(())
    }

    /// # Panics
    /// When the publisher panicked.
    pub fn take_commands(&self, thread: usize) -> Vec<Command> {
        net::clear_event(self.waker(thread));
        std::mem::take(&mut *self.commands[thread].lock().expect("the publisher does not panic"))
    }

    /// Deliveries so far, of all readers; a repeated message counts once.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::SeqCst)
    }

    /// Waits until so many deliveries were made in all; false when `patience` was over first.
    pub fn wait_delivered(&self, at_least: u64, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        self.wake_at.store(at_least, Ordering::SeqCst);
        while self.delivered() < at_least {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            thread::park_timeout(left);
        }
        true
    }

    pub fn add_delivered(&self, count: u64) {
        let before = self.delivered.fetch_add(count, Ordering::SeqCst);
        let wake_at = self.wake_at.load(Ordering::SeqCst);
        if before < wake_at && before + count >= wake_at {
            self.publisher.unpark();
        }
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn note_open(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub fn note_ended(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn retried(&self) -> usize {
        self.retried.load(Ordering::Relaxed)
    }

    /// # Panics
    /// When a reader thread panicked.
    pub fn note_retried(&self, why: String) {
        self.retried.fetch_add(1, Ordering::Relaxed);
        *self.refusal.lock().expect("reader threads do not panic") = Some(why);
    }

    /// Why a handshake failed, the last one that did.
    ///
    /// # Panics
    /// When a reader thread panicked.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().expect("reader threads do not panic").clone()
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub fn note_failed(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub fn polling(&self) -> bool {
        self.polling.load(Ordering::Relaxed)
    }

    pub fn set_polling(&self, polling: bool) {
        self.polling.store(polling, Ordering::Relaxed);
    }

    pub fn given_up_ns(&self) -> u64 {
        self.given_up_ns.load(Ordering::Relaxed)
    }

    /// Messages that were meant to be published before are stragglers from now on. A thread that has its tally already
    /// may still count some as deliveries: they are in the tally that is taken next.
    pub fn give_up(&self, before_ns: u64) {
        self.given_up_ns.store(before_ns, Ordering::Relaxed);
    }

    /// The last number that a channel held when its readers came.
    ///
    /// # Panics
    /// When a reader thread panicked.
    pub fn held(&self, channel: [u8; 8]) -> u32 {
        self.held.lock().expect("reader threads do not panic").get(&channel).copied().unwrap_or(0)
    }

    /// # Panics
    /// When another reader thread panicked.
    pub fn note_held(&self, channel: [u8; 8], number: u32) {
        let mut held = self.held.lock().expect("reader threads do not panic");
        let last = held.entry(channel).or_default();
        *last = number.max(*last);
    }

    /// The tally of one reader thread: its own but for the moments in which the publisher takes it.
    ///
    /// # Panics
    /// When the publisher panicked.
    pub fn tally(&self, thread: usize) -> MutexGuard<'_, Tally> {
        self.tallies[thread].lock().expect("the publisher does not panic")
    }

    /// Readers that were ended and that came back, of the move under way.
    pub fn moved(&self) -> (usize, usize) {
        let count = |tenths: &[u32]| tenths.iter().map(|count| *count as usize).sum::<usize>();
        let each = (0..self.tallies.len()).map(|thread| {
            let tally = self.tally(thread);
            (count(&tally.left), count(&tally.back))
        });
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Takes what all threads have seen since the last call.
    pub fn take_tally(&self) -> Tally {
        let mut sum = Tally::default();
        for thread in 0..self.tallies.len() {
            sum.add(&std::mem::take(&mut *self.tally(thread)));
        }
        sum
    }
}
