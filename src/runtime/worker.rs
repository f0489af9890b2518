//! One worker: a thread with its own runtime, listeners, connections, feeds and part of the channels.
//! Owns the tasks that never end (mail, the holder, fan-out, time; accepting is `accept`'s) and the way in and out of the state.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::home::{PublishRefusal, Published, WorkerIndex};

use super::accept::FIRST_BYTES;
use super::admission::Turned;
use super::answers::Answers;
use super::bell::Bell;
use super::capacity::Room;
use super::entry::{ConnId, HeldPoll};
use super::holder::{Last, READ_BYTES};
use super::io::{EventFd, Events};
use super::listen::{self, Listener};
use super::mail::{Answer, Ask, Mail};
use super::mailbox::Mailbox;
use super::node::Node;
use super::post::{Overloaded, Pending, Reply};
use super::state::{Frame, Socket, Spawn, State};
use super::stats::Stats;
use super::stderr;
use super::stream::Awaited;
use super::tally::Tally;
use super::turns::{Breather, Turn};

/// Letters read in one go.
const LETTERS_MAX: usize = 256;
/// Events looked at in one go: what was read is answered while it is in the caches. And before others have their turn.
const EVENTS_MAX: usize = 64;
const TURN_EVENTS: usize = 256;
/// Slices of history that are given back in one tick.
const SHRINKS_MAX: usize = 16;

/// What serves connections: policy, which the runtime knows nothing of.
pub trait Edge {
    /// Where what is known of clients is counted, and what is remembered for them.
    fn claims(&self) -> Tally;
    /// Memory is tight: what is only remembered goes before connections do.
    fn forget(&self, worker: &Rc<Worker>);
    /// This will be served next: memory that it needs is fetched while another is served. It does nothing else.
    fn expect(&self, worker: &Rc<Worker>, input: &[u8]);
    /// Answers those requests at the start of what came on a held connection that need no waiting: appends the answers
    /// to `out`. The rest is for a task. A panic closes that connection.
    fn serve_at_once(&self, worker: &Rc<Worker>, conn: ConnId, input: &[u8], out: &mut Vec<u8>) -> Done;
    /// Opens the stream that a newcomer's first bytes ask for, and takes the socket; or leaves it for a task. A panic closes
    /// it.
    fn open_at_once(&self, worker: &Rc<Worker>, newcomer: &mut Option<Socket>, input: &[u8]);
    /// Appends the answer to a publish of a held connection that the channel's home has answered; its status.
    fn write_published(
        &self,
        worker: &Rc<Worker>,
        name: &Name,
        result: Result<Published, PublishRefusal>,
        out: &mut Vec<u8>,
    ) -> u16;
    /// Appends what tells a newcomer that it is not served now, as its transport tells that. Of its request only that is
    /// looked at, and where the answer has to go.
    fn turn_away(&self, worker: &Rc<Worker>, input: &[u8], out: &mut Vec<u8>) -> Turned;
    /// Reads and answers requests, until the connection ends or is given to the holder.
    fn serve(self: Rc<Self>, worker: Rc<Worker>, socket: Socket, input: Vec<u8>) -> LocalTask;
    /// Answers a held poll with the help of the channels' homes.
    fn repoll(
        self: Rc<Self>,
        worker: Rc<Worker>,
        socket: Socket,
        names: Vec<Name>,
        cursors: Vec<Cursor>,
        held: Box<HeldPoll>,
    ) -> LocalTask;
    /// Does what the frames of a WebSocket ask, in order, then calls [`State::on_acted`].
    fn act(
        self: Rc<Self>,
        worker: Rc<Worker>,
        conn: ConnId,
        raw: Option<Name>,
        frames: Vec<Frame>,
        last: Option<Last>,
    ) -> LocalTask;
}

/// How much of what came was served at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    pub bytes: usize,
    pub answers: u32,
    /// More answers come by mail, to be sent after these.
    pub more_by_mail: bool,
}

pub type LocalTask = Pin<Box<dyn Future<Output = ()>>>;

/// What a worker is made with.
pub struct Parts {
    pub state: State,
    pub mailbox: Mailbox<Mail>,
    /// Its listeners: so many, one after the other, to each address.
    pub listeners: Vec<Listener>,
    pub listeners_each: usize,
    /// Wrapped sockets are blocking (io_uring) or not (epoll).
    pub nonblocking: bool,
    /// That open files allow.
    pub room: Room,
    pub edge: Rc<dyn Edge>,
    pub workers: usize,
    /// That the process may use.
    pub cpus: usize,
}

/// One worker, as its tasks see it.
pub struct Worker {
    state: RefCell<State>,
    pub(super) node: Arc<Node>,
    index: WorkerIndex,
    mailbox: RefCell<Mailbox<Mail>>,
    pub(super) edge: Rc<dyn Edge>,
    pub(super) nonblocking: bool,
    pub(super) room: Room,
    workers: usize,
    turn: Turn,
    /// What came on held connections, not served yet.
    pub(super) requests: RefCell<VecDeque<(ConnId, Vec<u8>)>>,
    pub(super) has_requests: Bell,
    /// To held connections, not sent yet.
    pub(super) answers: RefCell<Answers>,
    /// Room for those that are accepted in one go, and for the first bytes of one.
    pub(super) newcomers: RefCell<Vec<Socket>>,
    pub(super) first: RefCell<Vec<u8>>,
    fan_out: Bell,
    /// Handshakes can go on.
    pub(super) has_handshakes: Bell,
    /// Something is due before the clock's task would wake.
    calls_clock: Bell,
    /// Listeners are to be closed.
    pub(super) closing: Bell,
    /// A drain has begun.
    draining: Bell,
    drain_ends: Cell<Option<Instant>>,
    /// One listener of each address, by which the kernel is told where new connections go.
    steered: Rc<[RawFd]>,
    listeners_each: usize,
}

impl Worker {
    /// Runs until drained.
    ///
    /// # Errors
    /// No descriptors for the worker's own needs.
    pub async fn run(parts: Parts) -> io::Result<()> {
        let Parts { mut state, mailbox, listeners, listeners_each, nonblocking, room, edge, workers, cpus } =
            parts;
        state.ledger.claims = edge.claims();
        let of_ports: Vec<&Listener> = listeners.iter().filter(|listener| !listener.is_unix()).collect();
        let steered = (of_ports.chunks(listeners_each))
            .filter_map(|of_address| of_address.iter().find(|listener| !listener.is_passed))
            .map(|listener| listener.fd.as_raw_fd());
        let wake = Awaited::duplicate_of(mailbox.wake_fd())?;
        let epoll = Awaited::duplicate_of(state.epoll.as_raw_fd())?;
        let worker = Rc::new(Self {
            node: Arc::clone(&state.node),
            index: state.index,
            state: RefCell::new(state),
            mailbox: RefCell::new(mailbox),
            edge,
            nonblocking,
            room,
            workers,
            turn: Turn::new(workers, cpus),
            requests: RefCell::default(),
            has_requests: Bell::default(),
            answers: RefCell::default(),
            newcomers: RefCell::default(),
            first: RefCell::new(vec![0; FIRST_BYTES]),
            fan_out: Bell::default(),
            has_handshakes: Bell::default(),
            calls_clock: Bell::default(),
            closing: Bell::default(),
            draining: Bell::default(),
            drain_ends: Cell::new(None),
            steered: steered.collect(),
            listeners_each,
        });
        let open_listeners = Rc::new(Cell::new(listeners.len()));
        if listeners.iter().any(|listener| listener.endpoint.tls) {
            monoio::spawn(Rc::clone(&worker).shake_hands(Breather::new()?));
        }
        for listener in listeners {
            let spare = EventFd::new()?;
            let ready = Awaited::new(listener.fd.try_clone()?)?;
            let accepting = Rc::clone(&worker).accept(ready, listener, spare);
            let (open, worker) = (Rc::clone(&open_listeners), Rc::clone(&worker));
            monoio::spawn(async move {
                accepting.await;
                open.set(open.get() - 1);
                if open.get() == 0 {
                    worker.with(|state| state.node.tell_closed_to_connections());
                }
            });
        }
        monoio::spawn(Rc::clone(&worker).mail(wake));
        monoio::spawn(Rc::clone(&worker).requests());
        monoio::spawn(Rc::clone(&worker).hold(epoll, Breather::new()?));
        monoio::spawn(Rc::clone(&worker).fan_out(Breather::new()?));
        worker.time(Breather::new()?, open_listeners).await;
        Ok(())
    }

    pub fn stats(&self) -> &Stats {
        &self.node.stats[usize::from(self.index)]
    }

    /// Looks at or changes the state. A panic inside aborts the process: a half-changed order would lie.
    pub fn with<T>(self: &Rc<Self>, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, spawns, rings, shakes_hands, calls_clock) = {
            let guard = AbortOnUnwind;
            let mut state = self.state.borrow_mut();
            let result = change(&mut state);
            let spawns = std::mem::take(&mut state.spawns);
            let rings = state.has_fan_out() || !state.catchups.is_empty() || state.has_chores();
            let shakes_hands = !state.handshakes.is_empty();
            let calls_clock = std::mem::take(&mut state.calls_clock);
            drop(state);
            std::mem::forget(guard);
            (result, spawns, rings, shakes_hands, calls_clock)
        };
        if shakes_hands {
            self.has_handshakes.ring();
        }
        if calls_clock {
            self.calls_clock.ring();
        }
        if rings {
            self.fan_out.ring();
        }
        for spawn in spawns {
            self.start(spawn);
        }
        result
    }

    fn start(self: &Rc<Self>, spawn: Spawn) {
        let (edge, worker) = (Rc::clone(&self.edge), Rc::clone(self));
        match spawn {
            Spawn::Request { conn, input } => {
                self.requests.borrow_mut().push_back((conn, input));
                self.has_requests.ring();
            }
            Spawn::Published { conn, at, name, result } => {
                self.on_published(conn, at, &name, result);
            }
            Spawn::Serve { socket, input } => self.spawn(edge.serve(worker, socket, input)),
            Spawn::Repoll { socket, names, cursors, held } => {
                self.spawn(edge.repoll(worker, socket, names, cursors, held));
            }
            Spawn::Frames { conn, raw, frames, last } => {
                self.spawn(edge.act(worker, conn, raw, frames, last));
            }
        }
    }

    /// Runs a task; a panic in it ends it alone, and is counted.
    pub fn spawn(self: &Rc<Self>, task: LocalTask) {
        monoio::spawn(Caught { task: Some(task), worker: Rc::clone(self) });
    }

    /// Asks a channel's home, wherever it is.
    ///
    /// # Errors
    /// [`Overloaded`]: the home's mailbox is full.
    pub async fn ask(self: &Rc<Self>, name: &Name, ask: Ask) -> Result<Answer, Overloaded> {
        match self.begin_ask(name, ask, State::ask)? {
            Asked::Answered(answer) => Ok(answer),
            Asked::Sent(reply) => Ok(answered(reply).await),
        }
    }

    /// Has a worker do something with its state, and waits for what comes of it. `None`: there is no such worker.
    pub async fn on_worker<T: Send + 'static>(
        self: &Rc<Self>,
        index: WorkerIndex,
        errand: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Option<T> {
        let asked = self.with(|state| {
            if index == state.index {
                return Ok(Some(errand(state)));
            }
            if usize::from(index) >= state.node.mailboxes.len() {
                return Ok(None);
            }
            let reply = Rc::new(RefCell::new(Reply::default()));
            state.send_errand(index, errand, Pending::Task(Rc::clone(&reply)));
            Err(reply)
        });
        let reply = match asked {
            Ok(done) => return done,
            Err(reply) => reply,
        };
        match answered(reply).await {
            Answer::Errand(done) => done.downcast().ok().map(|done| *done),
            _ => None,
        }
    }

    /// Asks what must be done because something before it was: it always has room.
    pub async fn ask_surely(self: &Rc<Self>, name: &Name, ask: Ask) -> Answer {
        let asked = self.begin_ask(name, ask, |state, home, ask, pending| {
            state.ask_surely(home, ask, pending);
            Ok(())
        });
        match asked {
            Ok(Asked::Answered(answer)) => answer,
            Ok(Asked::Sent(reply)) => answered(reply).await,
            Err(Overloaded) => Answer::Done,
        }
    }

    fn begin_ask(
        self: &Rc<Self>,
        name: &Name,
        ask: Ask,
        send: impl FnOnce(&mut State, WorkerIndex, Ask, Pending) -> Result<(), Overloaded>,
    ) -> Result<Asked, Overloaded> {
        self.with(|state| {
            let home = state.node.home_of(name.as_str());
            if home == state.index {
                return Ok(Asked::Answered(state.answer(home, ask)));
            }
            let reply = Rc::new(RefCell::new(Reply::default()));
            send(state, home, ask, Pending::Task(Rc::clone(&reply)))?;
            Ok(Asked::Sent(reply))
        })
    }

    /// Reads the mail that is there: what another worker had placed before a request came is seen by its answer.
    pub fn read_mail(self: &Rc<Self>) -> bool {
        let mut letters = Vec::new();
        let more = self.mailbox.borrow_mut().drain(LETTERS_MAX, &mut letters);
        if letters.is_empty() {
            return more;
        }
        for letter in letters {
            match letter {
                Mail::Drain { successor } => self.on_drain(successor),
                Mail::CloseListeners => self.closing.ring(),
                Mail::Unsteer => {
                    for listener in self.steered.iter() {
                        let _ = listen::unsteer(*listener);
                    }
                }
                letter => self.with(|state| state.on_mail(letter)),
            }
        }
        self.send_answers();
        more
    }

    /// When the drain that is under way ends.
    pub fn drain_ends(&self) -> Option<Instant> {
        self.drain_ends.get()
    }

    /// Waits for a drain to begin.
    pub async fn drain_begins(&self) {
        self.draining.wait().await;
    }

    /// Whether mail waits.
    pub fn has_mail(&self) -> bool {
        self.mailbox.borrow().queued() > 0
    }

    fn on_drain(self: &Rc<Self>, successor: Option<u32>) {
        let window = self.with(|state| {
            state.begin_drain();
            state.node.settings.drain.window
        });
        self.drain_ends.set(Some(Instant::now() + window));
        self.draining.ring();
        match successor {
            None => self.closing.ring(),
            // The first worker steers the kernel for all, then tells all to close.
            Some(new) if self.with(|state| state.index) == 0 => {
                let (worker, old) = (Rc::clone(self), self.workers * self.listeners_each);
                monoio::spawn(worker.hand_over(Rc::clone(&self.steered), old as u32, new));
            }
            Some(_) => {}
        }
    }

    async fn mail(self: Rc<Self>, wake: Awaited) {
        loop {
            wake.readable().await;
            self.read_mail();
        }
    }

    /// Long work goes on when all others have had their turn, and those who share the CPU.
    async fn end_turn(self: &Rc<Self>, breather: &Breather) {
        if self.turn.shares_cpu {
            // What waits in another worker would wait for the slices of all: the kernel's are of milliseconds.
            std::thread::yield_now();
            // And what they sent meanwhile, for each other long work of this one.
            if self.has_mail() {
                self.read_mail();
            }
        }
        breather.breathe().await;
    }

    async fn hold(self: Rc<Self>, epoll: Awaited, breather: Breather) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; READ_BYTES];
        let mut until = Instant::now() + self.turn.slice;
        loop {
            if epoll.readable().await {
                until = Instant::now() + self.turn.slice;
            }
            let mut looked_at = 0;
            loop {
                let ready = self.with(|state| {
                    state.resume_deferred();
                    let ready = state.epoll.wait(&mut events, Some(Duration::ZERO)).unwrap_or(0);
                    for (token, ready) in events.iter() {
                        state.on_ready(token, ready, &mut buffer);
                    }
                    ready
                });
                self.serve_requests();
                self.send_answers();
                // Clients that ask again as soon as they are answered keep a few of them ready at all times.
                if Instant::now() >= until {
                    self.end_turn(&breather).await;
                    until = Instant::now() + self.turn.slice;
                    break;
                }
                looked_at += ready;
                if ready < EVENTS_MAX || looked_at >= TURN_EVENTS {
                    break;
                }
            }
        }
    }

    async fn fan_out(self: Rc<Self>, breather: Breather) {
        loop {
            self.fan_out.wait().await;
            self.fan_out.unring();
            loop {
                let mut now = Instant::now();
                let until = now + self.turn.slice;
                let more = self.with(|state| {
                    loop {
                        let caught_up = state.catch_up_one();
                        let did_chore = state.do_chore();
                        if !state.fan_out_batch(self.turn.sends_max, now) && !caught_up && !did_chore {
                            return false;
                        }
                        now = Instant::now();
                        state.time_passes(now);
                        if self.turn.shares_cpu || now >= until {
                            return true;
                        }
                    }
                });
                if !more {
                    break;
                }
                self.end_turn(&breather).await;
            }
        }
    }

    async fn time(self: &Rc<Self>, breather: Breather, open_listeners: Rc<Cell<usize>>) {
        let mut due = Vec::new();
        let mut drained = false;
        loop {
            let nap = self.with(State::nap);
            {
                let mut over = std::pin::pin!(monoio::time::sleep(nap));
                let mut called = std::pin::pin!(self.calls_clock.wait());
                std::future::poll_fn(|cx| match over.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(()),
                    Poll::Pending => called.as_mut().poll(cx),
                })
                .await;
            }
            self.calls_clock.unring();
            while self.with(|state| state.on_tick(&mut due, self.turn.slice)) {
                self.end_turn(&breather).await;
            }
            self.with(State::sweep);
            let mut gives = self.with(State::looks_at_memory);
            if gives && self.with(|state| state.is_tight()) {
                self.edge.forget(self);
            }
            for _ in 0..SHRINKS_MAX {
                gives = gives && self.with(State::give_back);
                if !gives {
                    break;
                }
                breather.breathe().await;
            }
            if !drained && open_listeners.get() == 0 && self.with(|state| state.is_drained()) {
                drained = true;
                self.with(|state| state.node.drained.fetch_add(1, Ordering::Relaxed));
            }
            // A worker's channels are read, and its answers awaited, until all have told their clients.
            if self.with(|state| state.node.drained.load(Ordering::Relaxed) == state.node.mailboxes.len()) {
                return;
            }
        }
    }
}

/// What became of a question.
enum Asked {
    Answered(Answer),
    Sent(Rc<RefCell<Reply>>),
}

async fn answered(reply: Rc<RefCell<Reply>>) -> Answer {
    std::future::poll_fn(move |cx| {
        let mut reply = reply.borrow_mut();
        match reply.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                reply.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    })
    .await
}

/// A panic while the state is borrowed ends the process: see [`Worker::with`].
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        stderr::say(
            b"pushline: a panic in the order of channels or the table of connections; stopping at once\n",
        );
        stderr::flush();
        std::process::abort();
    }
}

/// A task whose panic is its own.
struct Caught {
    task: Option<LocalTask>,
    worker: Rc<Worker>,
}

impl Future for Caught {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(task) = &mut self.task else { return Poll::Ready(()) };
        match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(_) => {
                let task = self.task.take();
                // What the task held is dropped on its own: its socket is closed.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(task)));
                self.worker.stats().panics.add(1);
                self.worker.with(|state| {
                    tracing::error!(worker = state.index, "a connection's task panicked; it is closed");
                });
                Poll::Ready(())
            }
        }
    }
}
