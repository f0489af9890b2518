//! Readers by the thousand: a thread opens its share at a bounded rate, then counts what comes.
//! Owns the sockets, one file table and one epoll set to a thread. Never publishes.
//!
//! Nothing is allocated for a message that arrives whole; one clock is read for each `recv`.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use crate::net::{self, Connect, Epoll, Events};
use crate::transport::{self, Item, Transport};
use crate::{http, stats, ws};

/// Readers that one thread can hold: 20,000 descriptors less a reserve.
pub const READERS_PER_THREAD_MAX: usize = 19_900;
/// Readers from one source address, well below the 28,232 ephemeral ports that Linux gives it.
const READERS_PER_SOURCE: usize = 10_000;
/// Handshakes of one thread that wait for their answer.
const HANDSHAKES_WAITING_MAX: usize = 128;
/// Refused or reset handshakes that are tried again, for each reader on average.
const TRIES_MAX: usize = 3;
const SCRATCH_BYTES: usize = 256 * 1024;
/// Publish times are kept for so many numbers; a message that is later than that has no latency.
const TIMES_KEPT: usize = 1 << 16;

/// What all readers of a load do.
pub struct Plan {
    pub dest: SocketAddrV4,
    pub transport: Transport,
    pub request: Vec<u8>,
    pub host: String,
    pub path: String,
    pub readers: usize,
    pub threads: usize,
    /// Handshakes per second, of all threads together.
    pub rate_per_s: f64,
}

/// What one thread has seen.
pub struct Tally {
    pub delivered: u64,
    /// Numbers that were jumped over.
    pub missing: u64,
    /// Numbers that came again or too late.
    pub repeated: u64,
    pub gaps: u64,
    /// Readers that the server has ended.
    pub closed: u64,
    pub latency: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        let latency = stats::new_histogram();
        Self { delivered: 0, missing: 0, repeated: 0, gaps: 0, closed: 0, latency }
    }
}

/// What publisher and readers share.
pub struct Board {
    clock: Instant,
    published_ns: Box<[AtomicU64]>,
    delivered: AtomicU64,
    target: AtomicU64,
    publisher: Thread,
    open: AtomicUsize,
    retried: AtomicUsize,
    failed: AtomicBool,
    tallies: Vec<Mutex<Tally>>,
}

impl Board {
    /// Made by the thread that will publish and wait.
    pub fn new(threads: usize) -> Self {
        Self {
            clock: Instant::now(),
            published_ns: (0..TIMES_KEPT).map(|_| AtomicU64::new(0)).collect(),
            delivered: AtomicU64::new(0),
            target: AtomicU64::new(0),
            publisher: thread::current(),
            open: AtomicUsize::new(0),
            retried: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            tallies: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    /// Notes that message `number` is published now.
    pub fn stamp(&self, number: u32) {
        self.published_ns[number as usize % TIMES_KEPT].store(self.now_ns(), Ordering::Relaxed);
    }

    /// Says how many more deliveries `wait_delivered` waits for.
    pub fn expect(&self, deliveries: u64) {
        self.target.fetch_add(deliveries, Ordering::SeqCst);
    }

    /// Waits until all expected deliveries were made; false when `patience` was over first.
    pub fn wait_delivered(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.delivered.load(Ordering::SeqCst) < self.target.load(Ordering::SeqCst) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            thread::park_timeout(left);
        }
        true
    }

    /// Gives up on deliveries that did not come.
    pub fn forgive(&self) {
        self.target.store(self.delivered.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    fn add_delivered(&self, count: u64) {
        let before = self.delivered.fetch_add(count, Ordering::SeqCst);
        let target = self.target.load(Ordering::SeqCst);
        if before < target && before + count >= target {
            self.publisher.unpark();
        }
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    pub fn retried(&self) -> usize {
        self.retried.load(Ordering::Relaxed)
    }

    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Takes what all threads have seen since the last call.
    ///
    /// # Panics
    /// When a reader thread panicked.
    pub fn take_tally(&self) -> Tally {
        let mut sum = Tally::default();
        for tally in &self.tallies {
            let one = std::mem::take(&mut *tally.lock().expect("reader threads do not panic"));
            sum.delivered += one.delivered;
            sum.missing += one.missing;
            sum.repeated += one.repeated;
            sum.gaps += one.gaps;
            sum.closed += one.closed;
            sum.latency.add(&one.latency).expect("the same bounds");
        }
        sum
    }
}

/// Starts the reader threads; they run until the process ends.
/// `last_shared` is the highest descriptor that they keep in their own tables.
pub fn start(plan: &Arc<Plan>, board: &Arc<Board>, last_shared: RawFd) -> Result<()> {
    if plan.readers > plan.threads * READERS_PER_THREAD_MAX {
        bail!("{} readers need more than {} threads", plan.readers, plan.threads);
    }
    for index in 0..plan.threads {
        let (plan, board) = (Arc::clone(plan), Arc::clone(board));
        let from = plan.readers * index / plan.threads;
        let to = plan.readers * (index + 1) / plan.threads;
        thread::Builder::new().name(format!("readers-{index}")).spawn(move || {
            let run = || -> Result<()> {
                net::own_file_table(last_shared).context("a file table of its own")?;
                Swarm::new(&plan, &board, index, from, to - from)?.run()
            };
            if let Err(error) = run() {
                eprintln!("load: readers {from} to {to}: {error:#}");
                board.failed.store(true, Ordering::Relaxed);
            }
        })?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing sent yet.
    Connecting,
    /// The request is sent, its head not yet answered.
    Head,
    /// The head has come, the subscription not yet.
    Opening,
    Live,
}

struct Reader {
    socket: OwnedFd,
    state: State,
    /// The number that must come next.
    next: u32,
    /// The front of an item that was cut; few readers have one.
    #[expect(clippy::box_collection, reason = "8 bytes instead of 24 for each of a million readers")]
    cut: Option<Box<Vec<u8>>>,
}

/// The readers of one thread.
struct Swarm<'a> {
    plan: &'a Plan,
    board: &'a Board,
    index: usize,
    /// Number of this thread's first reader among all.
    first: usize,
    count: usize,
    rate_per_s: f64,
    epoll: Epoll,
    readers: Vec<Option<Reader>>,
    /// Slots to be tried again.
    again: Vec<usize>,
    waiting: usize,
    retries: usize,
    scratch: Box<[u8]>,
}

impl<'a> Swarm<'a> {
    fn new(plan: &'a Plan, board: &'a Board, index: usize, first: usize, count: usize) -> Result<Self> {
        Ok(Self {
            plan,
            board,
            index,
            first,
            count,
            rate_per_s: plan.rate_per_s / plan.threads as f64,
            epoll: Epoll::new()?,
            readers: Vec::with_capacity(count),
            again: Vec::new(),
            waiting: 0,
            retries: 0,
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Events::new(1024);
        let began = Instant::now();
        let mut started = 0;
        loop {
            let ramping = self.readers.len() < self.count || !self.again.is_empty();
            if ramping {
                let due = (began.elapsed().as_secs_f64() * self.rate_per_s) as usize;
                while started < due && self.waiting < HANDSHAKES_WAITING_MAX && self.start_one()? {
                    started += 1;
                }
            }
            let ready = self.epoll.wait(&mut events, if ramping { 1 } else { -1 })?;
            if !ready.is_empty() {
                let mut delivered = 0;
                // Borrowed apart from `self`: the lock is this thread's but for a moment per round.
                let board = self.board;
                let mut tally = board.tallies[self.index].lock().expect("the publisher does not panic");
                for event in ready {
                    delivered += self.on_event(event.u64 as usize, event.events, &mut tally)?;
                }
                drop(tally);
                if delivered > 0 {
                    board.add_delivered(delivered);
                }
            }
        }
    }

    /// Starts the next handshake; false when all have been started.
    fn start_one(&mut self) -> Result<bool> {
        let slot = match self.again.pop() {
            Some(slot) => slot,
            None if self.readers.len() < self.count => {
                self.readers.push(None);
                self.readers.len() - 1
            }
            None => return Ok(false),
        };
        let source = source_address(self.first + slot);
        let (socket, connected) = match net::connect(source, self.plan.dest) {
            Ok(Connect::Done(socket)) => (socket, true),
            Ok(Connect::Pending(socket)) => (socket, false),
            Err(error) => return Err(error).with_context(|| format!("connecting from {source}")),
        };
        let interest = if connected { net::IN | net::EDGE } else { net::OUT };
        self.epoll.add(socket.as_raw_fd(), interest, slot as u64)?;
        if connected {
            send_whole(&socket, &self.plan.request)?;
        }
        let state = if connected { State::Head } else { State::Connecting };
        self.readers[slot] = Some(Reader { socket, state, next: 1, cut: None });
        self.waiting += 1;
        Ok(true)
    }

    /// Looks after one socket; returns how many messages came.
    fn on_event(&mut self, slot: usize, events: u32, tally: &mut Tally) -> Result<u64> {
        let Some(reader) = self.readers[slot].as_mut() else { return Ok(0) };
        if reader.state == State::Connecting {
            if events & net::BROKEN != 0 {
                return self.on_end(slot, tally).map(|()| 0);
            }
            send_whole(&reader.socket, &self.plan.request)?;
            reader.state = State::Head;
            self.epoll.change(reader.socket.as_raw_fd(), net::IN | net::EDGE, slot as u64)?;
            return Ok(0);
        }
        let mut delivered = 0;
        loop {
            let before = reader.cut.take().map_or(0, |cut| {
                self.scratch[..cut.len()].copy_from_slice(&cut);
                cut.len()
            });
            let got = match net::recv(reader.socket.as_raw_fd(), &mut self.scratch[before..]) {
                Ok(0) => return self.on_end(slot, tally).map(|()| delivered),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    keep(reader, &self.scratch[..before]);
                    return Ok(delivered);
                }
                Err(_) => return self.on_end(slot, tally).map(|()| delivered),
            };
            let filled = before + got;
            let was_live = reader.state == State::Live;
            let Some(read) = on_bytes(reader, self.plan, self.board, &self.scratch[..filled], tally) else {
                return self.on_end(slot, tally).map(|()| delivered);
            };
            delivered += read;
            if reader.state == State::Live && !was_live {
                self.waiting -= 1;
                self.board.open.fetch_add(1, Ordering::Relaxed);
            }
            // A short read has emptied the socket; what comes later raises an edge of its own.
            if filled < self.scratch.len() {
                return Ok(delivered);
            }
        }
    }

    /// The server has ended this reader: counted when it was live, tried again when it was not.
    fn on_end(&mut self, slot: usize, tally: &mut Tally) -> Result<()> {
        let Some(reader) = self.readers[slot].take() else { return Ok(()) };
        if reader.state == State::Live {
            tally.closed += 1;
            self.board.open.fetch_sub(1, Ordering::Relaxed);
            return Ok(());
        }
        self.waiting -= 1;
        self.retries += 1;
        self.board.retried.fetch_add(1, Ordering::Relaxed);
        if self.retries > self.count * TRIES_MAX + 10 {
            bail!("too many handshakes fail");
        }
        self.again.push(slot);
        Ok(())
    }
}

/// 127.0.x.y by the reader's number, 127.0.0.1 left to others.
fn source_address(number: usize) -> Ipv4Addr {
    let source = number / READERS_PER_SOURCE;
    Ipv4Addr::new(127, 0, 1 + (source / 200) as u8, 1 + (source % 200) as u8)
}

fn send_whole(socket: &OwnedFd, bytes: &[u8]) -> Result<()> {
    let sent = net::send(socket.as_raw_fd(), bytes).context("sending a request")?;
    if sent < bytes.len() {
        bail!("a fresh socket took {sent} of {} bytes", bytes.len());
    }
    Ok(())
}

fn keep(reader: &mut Reader, rest: &[u8]) {
    reader.cut = if rest.is_empty() { None } else { Some(Box::new(rest.to_vec())) };
}

/// Reads all items in `input`; returns how many were messages, or `None` when the stream is over.
fn on_bytes(reader: &mut Reader, plan: &Plan, board: &Board, input: &[u8], tally: &mut Tally) -> Option<u64> {
    let mut at = 0;
    // A poll's answer is an item as a whole, its head included.
    if reader.state == State::Head && plan.transport == Transport::Poll {
        reader.state = State::Opening;
    }
    if reader.state == State::Head {
        let Some(end) = http::head_end(input) else {
            keep(reader, input);
            return Some(0);
        };
        if http::status(&input[..end]) != Some(plan.transport.status()) {
            return None;
        }
        reader.state = if plan.transport.opens_with_head() { State::Live } else { State::Opening };
        at = end;
    }
    let now_ns = board.now_ns();
    let mut delivered = 0;
    while let Some((item, used)) = plan.transport.parse(&input[at..]) {
        match item {
            Item::Message(number) => {
                delivered += 1;
                note(reader, board, number, now_ns, tally);
            }
            Item::Opened => reader.state = State::Live,
            Item::Polled { cursor, body } => {
                for number in transport::numbers_in(body) {
                    delivered += 1;
                    note(reader, board, number, now_ns, tally);
                }
                let next = transport::held_poll(&plan.host, &plan.path, cursor);
                if net::send(reader.socket.as_raw_fd(), &next).ok()? < next.len() {
                    return None;
                }
                reader.state = State::Live;
            }
            Item::Ping(payload) => {
                // A pong that does not fit is left out: the server hears from this reader by the next one.
                let _ = net::send(reader.socket.as_raw_fd(), &ws::pong(payload));
            }
            Item::Gap => tally.gaps += 1,
            Item::Closed => return None,
            Item::Other => {}
        }
        at += used;
    }
    keep(reader, &input[at..]);
    Some(delivered)
}

fn note(reader: &mut Reader, board: &Board, number: u32, now_ns: u64, tally: &mut Tally) {
    tally.delivered += 1;
    if number < reader.next {
        tally.repeated += 1;
        return;
    }
    tally.missing += u64::from(number - reader.next);
    reader.next = number + 1;
    let published_ns = board.published_ns[number as usize % TIMES_KEPT].load(Ordering::Relaxed);
    tally.latency.saturating_record(now_ns.saturating_sub(published_ns));
}
