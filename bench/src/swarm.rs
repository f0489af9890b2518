//! Readers by the thousand: a thread opens its share at a bounded rate, then counts what comes.
//! Owns the sockets, one file table and one epoll set to a thread. Never publishes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::api::channel_name;
use crate::board::{Board, Command, Cursor, Tally, count_tenth};
use crate::count::Count;
use crate::message::{self, Stamp};
use crate::net::{self, Connect, Epoll, Events};
use crate::reader::{Desk, Over, Reader, State};
use crate::refusal::End;
use crate::script::Script;
use crate::sources::Sources;
use crate::tls::{Client, Tls};
use crate::ws;

/// Readers that one thread can hold: 20,000 descriptors less a reserve.
pub const READERS_PER_THREAD_MAX: usize = 19_800;
/// Handshakes of one thread that wait for their answer during a ramp, where nothing else is asked for.
pub const HANDSHAKES_WAITING_MAX: usize = 128;
/// Handshakes begun before events are looked at again.
const HANDSHAKES_AT_ONCE: usize = 256;
/// Refused or reset handshakes that are tried again, for each reader on average.
const TRIES_MAX: usize = 3;
/// At first; it grows with the longest item.
const SCRATCH_BYTES: usize = 256 * 1024;
/// Of one item: a message, or an answer to a poll with all its messages.
const ITEM_BYTES_MAX: usize = 64 << 20;
/// Behind the front of an item, for what one read brings.
const ROOM_BYTES_MIN: usize = WIRE_BYTES;
/// Read at once of a connection by TLS.
const WIRE_BYTES: usize = 64 * 1024;
/// The token of a thread's own waker.
const WAKER: u64 = u64::MAX;

/// What all readers of a load do.
pub struct Plan {
    pub dest: SocketAddrV4,
    pub sources: Sources,
    pub tls: Option<Client>,
    pub script: Script,
    /// Where readers come after a move, and what they say there.
    pub second: Option<(SocketAddrV4, Script)>,
    pub readers: usize,
    /// Readers of each channel.
    pub members: usize,
    /// Of each message, also of those that readers publish themselves.
    pub message_bytes: usize,
    /// Number of the first channel: loads beside each other keep apart.
    pub first_channel: usize,
    pub threads: usize,
    /// After which a message is lost; more for crowds.
    pub patience: Duration,
    /// Handshakes per second, of all threads together.
    pub rate_per_s: f64,
    /// Handshakes of one thread that wait for their answer during a ramp.
    pub waiting_max: usize,
    /// Of each reader's socket, where the kernel's own choice would hide that a reader has stopped.
    pub receive_buffer_bytes: Option<i32>,
}

impl Plan {
    pub fn channels(&self) -> usize {
        self.readers.div_ceil(self.members)
    }
}

/// Starts the reader threads; they run until the process ends.
pub fn start(plan: &Arc<Plan>, board: &Arc<Board>) -> Result<()> {
    if plan.readers > plan.threads * READERS_PER_THREAD_MAX {
        bail!("{} readers need more than {} threads", plan.readers, plan.threads);
    }
    for index in 0..plan.threads {
        let (plan, board) = (Arc::clone(plan), Arc::clone(board));
        let from = plan.readers * index / plan.threads;
        let to = plan.readers * (index + 1) / plan.threads;
        thread::Builder::new().name(format!("readers-{index}")).spawn(move || {
            let run = || -> Result<()> {
                net::own_file_table(board.last_shared()).context("a file table of its own")?;
                Swarm::new(&plan, &board, index, from, to - from)?.run()
            };
            if let Err(error) = run() {
                eprintln!("load: readers {from} to {to}: {error:#}");
                board.note_failed();
            }
        })?;
    }
    Ok(())
}

/// How fast readers are opened.
#[derive(Clone, Copy)]
enum Pace {
    /// So many a second since then.
    Ramp {
        began: Instant,
        per_s: f64,
    },
    AtOnce,
}

/// The readers of one thread.
struct Swarm<'a> {
    plan: &'a Plan,
    board: &'a Board,
    index: usize,
    /// Number of this thread's first reader among all.
    first: usize,
    count: usize,
    pace: Pace,
    started: usize,
    epoll: Epoll,
    readers: Vec<Option<Reader>>,
    /// Slots to be opened again, what their readers have seen, and since when they wait.
    again: Vec<(usize, Count, Option<u32>)>,
    /// What readers had seen when they were ended, for `Return`.
    ended: Vec<(usize, Count)>,
    /// A move is under way: with this cursor, since then.
    moving: Option<(Cursor, u64)>,
    /// Slots that come back, and when (`net::now_ns`).
    returns: BinaryHeap<Reverse<(u64, usize)>>,
    waiting: usize,
    retries: usize,
    scratch: Vec<u8>,
    /// What was read by TLS, and what it comes to.
    wire: Box<[u8]>,
    plain: Vec<u8>,
    out: Vec<u8>,
}

impl<'a> Swarm<'a> {
    fn new(plan: &'a Plan, board: &'a Board, index: usize, first: usize, count: usize) -> Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(board.waker(index), net::IN, WAKER)?;
        Ok(Self {
            plan,
            board,
            index,
            first,
            count,
            pace: Pace::Ramp { began: Instant::now(), per_s: plan.rate_per_s / plan.threads as f64 },
            started: 0,
            epoll,
            readers: Vec::with_capacity(count),
            again: Vec::new(),
            ended: Vec::new(),
            moving: None,
            returns: BinaryHeap::new(),
            waiting: 0,
            retries: 0,
            scratch: vec![0; SCRATCH_BYTES],
            wire: vec![0; if plan.tls.is_some() { WIRE_BYTES } else { 0 }].into_boxed_slice(),
            plain: Vec::new(),
            out: Vec::with_capacity(1024),
        })
    }

    fn run(&mut self) -> Result<()> {
        let mut events = Events::new(1024);
        loop {
            let timeout_ms = self.open_some()?;
            let ready = self.epoll.wait(&mut events, timeout_ms)?;
            if ready.is_empty() {
                continue;
            }
            let (mut delivered, mut commanded) = (0, false);
            // Borrowed apart from `self`.
            let board = self.board;
            let mut tally = board.tally(self.index);
            for event in ready {
                if event.u64 == WAKER {
                    commanded = true;
                } else {
                    delivered += self.on_event(event.u64 as usize, event.events, &mut tally)?;
                }
            }
            drop(tally);
            if delivered > 0 {
                board.add_delivered(delivered);
            }
            if commanded {
                for command in board.take_commands(self.index) {
                    self.on_command(command)?;
                }
            }
        }
    }

    /// Begins the handshakes that are due; returns how long the next may be waited for (-1: for ever).
    fn open_some(&mut self) -> Result<i32> {
        let next_return_ms = self.call_back();
        let left = self.count - self.readers.len() + self.again.len();
        if left == 0 {
            return Ok(next_return_ms);
        }
        let (due, waiting_max, timeout_ms) = match self.pace {
            Pace::Ramp { began, per_s } => {
                let due = (began.elapsed().as_secs_f64() * per_s) as usize;
                (due.saturating_sub(self.started), self.plan.waiting_max, (1_000.0 / per_s).clamp(1.0, 10.0))
            }
            Pace::AtOnce => (left, usize::MAX, 0.0),
        };
        for _ in 0..due.min(HANDSHAKES_AT_ONCE) {
            if self.waiting >= waiting_max || !self.open_one()? {
                break;
            }
            self.started += 1;
        }
        Ok(timeout_ms as i32)
    }

    /// Has those come back whose time it is; returns how long the next may be waited for (-1: for ever).
    fn call_back(&mut self) -> i32 {
        let now_ns = net::now_ns();
        while let Some(&Reverse((at_ns, slot))) = self.returns.peek() {
            if at_ns > now_ns {
                return ((at_ns - now_ns) / 1_000_000 + 1).min(1_000) as i32;
            }
            self.returns.pop();
            self.again.push((slot, Count::default(), None));
        }
        -1
    }

    /// Where readers connect now, and what they say there.
    fn destination(&self) -> (SocketAddrV4, &'a Script) {
        match (&self.plan.second, self.moving) {
            (Some((dest, script)), Some(_)) => (*dest, script),
            _ => (self.plan.dest, &self.plan.script),
        }
    }

    fn write_first(&mut self, channel: &[u8]) {
        let (_, script) = self.destination();
        self.out.clear();
        match self.moving {
            Some((cursor, _)) => script.write_resumed(&mut self.out, channel, cursor.text()),
            None => script.write_first(&mut self.out, channel),
        }
    }

    /// Begins the next handshake; false when all have begun.
    fn open_one(&mut self) -> Result<bool> {
        let (slot, count, began) = match self.again.pop() {
            Some(again) => again,
            None if self.readers.len() < self.count => {
                self.readers.push(None);
                (self.readers.len() - 1, Count::default(), None)
            }
            None => return Ok(false),
        };
        let dest = self.destination().0;
        let source = self.plan.sources.of(self.first + slot, dest);
        let (socket, connected) = match net::connect(source, dest, self.plan.receive_buffer_bytes) {
            Ok(Connect::Done(socket)) => (socket, true),
            Ok(Connect::Pending(socket)) => (socket, false),
            Err(error) => {
                let from = source.map_or_else(String::new, |source| format!(" from {source}"));
                return Err(error).with_context(|| format!("connecting to {dest}{from}"));
            }
        };
        let mut reader = Reader::new(socket, count);
        if let Some(began) = began {
            reader.set_began(began);
        }
        if let Some(client) = &self.plan.tls {
            reader.tls = Some(Box::new(Tls::new(client)?));
        }
        let fd = reader.socket.as_raw_fd();
        self.epoll.add(fd, if connected { net::IN | net::EDGE } else { net::OUT }, slot as u64)?;
        self.waiting += 1;
        self.readers[slot] = Some(reader);
        if connected {
            self.ask(slot)?;
        }
        Ok(true)
    }

    /// Sends the first request.
    fn ask(&mut self, slot: usize) -> Result<()> {
        let channel = self.channel(slot);
        self.write_first(&channel);
        let Some(reader) = self.readers[slot].as_mut() else { return Ok(()) };
        if reader.tls.is_some() {
            self.out.clear();
            let _ = reader.seal(&mut self.out);
            reader.state = State::Shaking;
            net::send(reader.socket.as_raw_fd(), &self.out).context("sending a handshake")?;
            return Ok(());
        }
        let sent = net::send(reader.socket.as_raw_fd(), &self.out).context("sending a request")?;
        if sent < self.out.len() {
            bail!("a fresh socket took {sent} of {} bytes", self.out.len());
        }
        reader.state = State::Head;
        if self.plan.script.opens_by_asking() {
            reader.state = State::Live;
            let waited_ns = reader.waited_ns();
            self.note_open(waited_ns);
        }
        Ok(())
    }

    fn note_open(&mut self, waited_ns: u64) {
        self.waiting -= 1;
        self.board.note_open();
        // Only reached outside of an event, where this thread does not hold its tally.
        self.board.tally(self.index).waits.saturating_record(waited_ns);
    }

    fn channel(&self, slot: usize) -> [u8; 8] {
        channel_name(self.plan.first_channel + (self.first + slot) / self.plan.members)
    }

    /// Looks after one socket; returns how many messages came.
    fn on_event(&mut self, slot: usize, events: u32, tally: &mut Tally) -> Result<u64> {
        let channel = self.channel(slot);
        let Some(reader) = self.readers[slot].as_mut() else { return Ok(0) };
        if reader.state == State::Connecting {
            if events & net::BROKEN != 0 {
                let error = net::socket_error(reader.socket.as_raw_fd());
                return self.on_end(slot, tally, &End::Broken(error)).map(|()| 0);
            }
            self.epoll.change(reader.socket.as_raw_fd(), net::IN | net::EDGE, slot as u64)?;
            if reader.tls.is_some() {
                self.out.clear();
                let sealed = reader.seal(&mut self.out);
                reader.state = State::Shaking;
                if let Err(error) = sealed {
                    return self.on_end(slot, tally, &End::Tls(error.to_string())).map(|()| 0);
                }
                if let Err(end) = send_whole(reader.socket.as_raw_fd(), &self.out) {
                    return self.on_end(slot, tally, &end).map(|()| 0);
                }
                return Ok(0);
            }
            self.write_first(&channel);
            let Some(reader) = self.readers[slot].as_mut() else { return Ok(0) };
            if let Err(end) = send_whole(reader.socket.as_raw_fd(), &self.out) {
                return self.on_end(slot, tally, &end).map(|()| 0);
            }
            reader.state = State::Head;
            if self.plan.script.opens_by_asking() {
                reader.state = State::Live;
                self.waiting -= 1;
                self.board.note_open();
            }
            return Ok(0);
        }
        if reader.stalled {
            return Ok(0);
        }
        let (_, script) = self.destination();
        let Some(reader) = self.readers[slot].as_mut() else { return Ok(0) };
        let mut delivered = 0;
        loop {
            let before = reader.take_cut(&mut self.scratch);
            if before + ROOM_BYTES_MIN > self.scratch.len() {
                if self.scratch.len() >= ITEM_BYTES_MAX {
                    bail!("a reader was sent {} MiB without an end", before >> 20);
                }
                let doubled = self.scratch.len() * 2;
                self.scratch.resize(doubled, 0);
            }
            let fd = reader.socket.as_raw_fd();
            let is_tls = reader.tls.is_some();
            let room = if is_tls { &mut self.wire[..] } else { &mut self.scratch[before..] };
            let emptied = room.len();
            let mut got = match net::recv(fd, room) {
                Ok(0) => {
                    return self.on_end(slot, tally, &End::Closed { cut_bytes: before }).map(|()| delivered);
                }
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    reader.keep_cut(&self.scratch[..before]);
                    return Ok(delivered);
                }
                Err(error) => return self.on_end(slot, tally, &End::Broken(error)).map(|()| delivered),
            };
            let is_short = got < emptied;
            if let Some(tls) = &mut reader.tls {
                self.plain.clear();
                if let Err(error) = tls.feed(&self.wire[..got], &mut self.plain) {
                    return self.on_end(slot, tally, &End::Tls(error.to_string())).map(|()| delivered);
                }
                got = self.plain.len();
                // A read may end a record that began before it.
                if before + got > self.scratch.len() {
                    self.scratch.resize(before + got, 0);
                }
                self.scratch[before..before + got].copy_from_slice(&self.plain);
            }
            let filled = before + got;
            let was_open = matches!(reader.state, State::Live | State::Resting);
            self.out.clear();
            if reader.state == State::Shaking {
                if reader.tls.as_ref().is_some_and(|tls| tls.is_open()) {
                    script.write_first(&mut self.out, &channel);
                    reader.state = State::Head;
                    if script.opens_by_asking() {
                        reader.state = State::Live;
                        self.waiting -= 1;
                        self.board.note_open();
                    }
                }
                let sealed = reader.seal(&mut self.out).map_err(|error| End::Tls(error.to_string()));
                if let Err(end) = sealed.and_then(|()| send_whole(fd, &self.out)) {
                    return self.on_end(slot, tally, &end).map(|()| delivered);
                }
                if is_short {
                    return Ok(delivered);
                }
                continue;
            }
            let mut desk = Desk {
                script,
                board: self.board,
                polling: self.board.polling(),
                given_up_ns: self.board.given_up_ns(),
                message_bytes: self.plan.message_bytes,
                channel,
                out: &mut self.out,
                tally,
            };
            match reader.on_bytes(&self.scratch[..filled], &mut desk) {
                Ok(more) => delivered += more,
                // A poll may be refused with `Connection: close`.
                Err(over) if !was_open && (over == Over::Refused || script.transport.is_polling()) => {
                    let end = End::answered(&self.scratch[..filled]);
                    return self.on_end(slot, tally, &end).map(|()| delivered);
                }
                Err(_) => return self.on_end(slot, tally, &End::Goodbye).map(|()| delivered),
            }
            if matches!(reader.state, State::Live | State::Resting) && !was_open {
                self.waiting -= 1;
                self.board.note_open();
                tally.waits.saturating_record(reader.waited_ns());
                if let Some((_, began_ns)) = self.moving {
                    count_tenth(&mut tally.back, began_ns, net::now_ns());
                }
            }
            if is_tls && let Err(error) = reader.seal(&mut self.out) {
                return self.on_end(slot, tally, &End::Tls(error.to_string())).map(|()| delivered);
            }
            // A socket that takes no answer is one whose server has stopped to read.
            if !self.out.is_empty()
                && let Err(end) = send_whole(fd, &self.out)
            {
                return self.on_end(slot, tally, &end).map(|()| delivered);
            }
            // A short read has emptied the socket; what comes later raises an edge of its own.
            if is_short {
                return Ok(delivered);
            }
        }
    }

    /// The server has ended this reader: counted when it was open, tried again when it was not.
    fn on_end(&mut self, slot: usize, tally: &mut Tally, end: &End) -> Result<()> {
        let Some(reader) = self.readers[slot].take() else { return Ok(()) };
        if matches!(reader.state, State::Live | State::Resting) {
            tally.told += u64::from(reader.told);
            tally.cut += u64::from(!reader.told);
            self.board.note_ended();
            match self.moving {
                Some((_, began_ns)) => {
                    let now_ns = net::now_ns();
                    count_tenth(&mut tally.left, began_ns, now_ns);
                    let away_ms = reader.away_ms.map_or(0, |ms| u64::from(ms.get()));
                    self.returns.push(Reverse((now_ns + away_ms * 1_000_000, slot)));
                }
                None => self.ended.push((slot, reader.count())),
            }
            return Ok(());
        }
        self.waiting -= 1;
        self.retries += 1;
        self.board.note_retried(end.reason(reader.state));
        if self.retries > self.count * TRIES_MAX + 10 {
            bail!("too many handshakes fail");
        }
        self.again.push((slot, reader.count(), Some(reader.began())));
        Ok(())
    }

    fn speak(&mut self, member: usize, number: u32) -> Result<()> {
        let mut message = Vec::new();
        for (slot, reader) in self.readers.iter_mut().enumerate() {
            let Some(reader) = reader else { continue };
            if (self.first + slot) % self.plan.members == member {
                message.clear();
                let stamp = Stamp { number, at_ns: net::now_ns() };
                message::write(&mut message, stamp, self.plan.message_bytes);
                self.out.clear();
                ws::write_client_frame(&mut self.out, ws::TEXT, &message);
                let _ = reader.seal(&mut self.out);
                let sent = net::send(reader.socket.as_raw_fd(), &self.out).context("speaking")?;
                if sent < self.out.len() {
                    bail!(
                        "a reader's socket took {sent} of the {} bytes that it was to speak",
                        self.out.len()
                    );
                }
            }
        }
        Ok(())
    }

    fn on_command(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Stall(part) => {
                for (slot, reader) in self.readers.iter_mut().enumerate() {
                    if let Some(reader) = reader {
                        reader.stalled = (self.first + slot).is_multiple_of(part);
                    }
                }
            }
            Command::Flow => {
                for slot in 0..self.readers.len() {
                    let Some(reader) = self.readers[slot].as_mut() else { continue };
                    if std::mem::take(&mut reader.stalled) {
                        let board = self.board;
                        let delivered = self.on_event(slot, net::IN, &mut board.tally(self.index))?;
                        board.add_delivered(delivered);
                    }
                }
            }
            Command::Return => {
                self.pace = Pace::AtOnce;
                self.retries = 0;
                self.again.extend(self.ended.drain(..).map(|(slot, count)| (slot, count, None)));
            }
            Command::Move { cursor, began_ns } => {
                self.pace = Pace::AtOnce;
                self.retries = 0;
                self.moving = Some((cursor, began_ns));
            }
            Command::Speak { member, number } => self.speak(member, number)?,
            Command::Poll => {
                for reader in self.readers.iter_mut().flatten() {
                    self.out.clear();
                    reader.ask_again(&mut self.out);
                    let _ = reader.seal(&mut self.out);
                    if !self.out.is_empty() {
                        net::send(reader.socket.as_raw_fd(), &self.out).context("sending a poll")?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn send_whole(fd: RawFd, bytes: &[u8]) -> Result<(), End> {
    match net::send(fd, bytes) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        Ok(_) => Err(End::Deaf),
        Err(error) => Err(End::Broken(error)),
    }
}
