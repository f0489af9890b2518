//! One worker: a thread with its own runtime, listeners, connections, feeds and part of the channels.
//! Owns the tasks that never end (accepting, mail, the holder, fan-out, time) and the way in and out of the state.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::domain::channel::Name;
use crate::domain::cursor::Cursor;
use crate::domain::home::WorkerIndex;

use super::clock::TICK_MS;
use super::entry::{ConnId, HeldPoll};
use super::holder::{Last, READ_BYTES};
use super::io::{EventFd, Events, close};
use super::listen;
use super::mail::{Answer, Ask, Mail};
use super::mailbox::Mailbox;
use super::state::{Frame, Overloaded, Pending, Reply, Socket, Spawn, State};
use super::stream::Awaited;

/// How long the fan-out, or any other long work, may hold the thread.
const SLICE: Duration = Duration::from_millis(1);
/// Connections accepted, letters read, events looked at, in one go.
const ACCEPTS_MAX: usize = 64;
const LETTERS_MAX: usize = 256;
const EVENTS_MAX: usize = 256;
/// A pause after the table of open files was found full.
const FILES_FULL_PAUSE: Duration = Duration::from_millis(50);
/// Longer than a handshake on any sane path takes: for connections that were on their way to this process when the
/// kernel was told to send new ones elsewhere.
const HANDSHAKES_END: Duration = Duration::from_millis(300);

/// What serves connections: policy, which the runtime knows nothing of.
pub trait Edge {
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

pub type LocalTask = Pin<Box<dyn Future<Output = ()>>>;

/// What a worker is made with.
pub struct Parts {
    pub state: State,
    pub mailbox: Mailbox<Mail>,
    pub listeners: Vec<OwnedFd>,
    /// Wrapped sockets are blocking (io_uring) or not (epoll).
    pub nonblocking: bool,
    pub connections_max: usize,
    pub edge: Rc<dyn Edge>,
    pub workers: u32,
}

/// One worker, as its tasks see it.
pub struct Worker {
    state: RefCell<State>,
    mailbox: RefCell<Mailbox<Mail>>,
    edge: Rc<dyn Edge>,
    nonblocking: bool,
    connections_max: usize,
    workers: u32,
    fan_out: Bell,
    /// Listeners are to be closed.
    closing: Bell,
    /// A drain has begun.
    draining: Bell,
    drain_ends: Cell<Option<Instant>>,
    successor: Cell<Option<u32>>,
    /// How often it was said that the kernel may spread connections again.
    unsteered: Cell<u32>,
}

impl Worker {
    /// Runs until drained.
    ///
    /// # Errors
    /// No descriptors for the worker's own needs.
    pub async fn run(parts: Parts) -> io::Result<()> {
        let Parts { state, mailbox, listeners, nonblocking, connections_max, edge, workers } = parts;
        let wake = Awaited::duplicate_of(mailbox.wake_fd())?;
        let epoll = Awaited::duplicate_of(state.epoll.as_raw_fd())?;
        let worker = Rc::new(Self {
            state: RefCell::new(state),
            mailbox: RefCell::new(mailbox),
            edge,
            nonblocking,
            connections_max,
            workers,
            fan_out: Bell::default(),
            closing: Bell::default(),
            draining: Bell::default(),
            drain_ends: Cell::new(None),
            successor: Cell::new(None),
            unsteered: Cell::new(0),
        });
        let open_listeners = Rc::new(Cell::new(listeners.len()));
        for listener in listeners {
            let spare = EventFd::new()?;
            let accepting = Rc::clone(&worker).accept(Awaited::new(listener.try_clone()?)?, listener, spare);
            let open = Rc::clone(&open_listeners);
            monoio::spawn(async move {
                accepting.await;
                open.set(open.get() - 1);
            });
        }
        monoio::spawn(Rc::clone(&worker).mail(wake));
        monoio::spawn(Rc::clone(&worker).hold(epoll, Breather::new()?));
        monoio::spawn(Rc::clone(&worker).fan_out(Breather::new()?));
        worker.time(Breather::new()?, open_listeners).await;
        Ok(())
    }

    /// Looks at or changes the state. A panic inside aborts the process: a half-changed order would lie.
    pub fn with<T>(self: &Rc<Self>, change: impl FnOnce(&mut State) -> T) -> T {
        let (result, spawns, rings) = {
            let guard = AbortOnUnwind;
            let mut state = self.state.borrow_mut();
            let result = change(&mut state);
            let spawns = std::mem::take(&mut state.spawns);
            let rings = state.has_fan_out() || !state.catchups.is_empty();
            drop(state);
            std::mem::forget(guard);
            (result, spawns, rings)
        };
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
            let home = state.node.home_of(name);
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
                    self.unsteered.set(self.unsteered.get() + 1);
                    self.closing.wake();
                }
                letter => self.with(|state| state.on_mail(letter)),
            }
        }
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

    /// Lets fan-out and everybody else have their turn, in the middle of long work: see [`Pace`].
    async fn breathe(&self) {
        // A timer of the future: a task that wakes itself would be the next to run.
        monoio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Whether mail waits.
    pub fn has_mail(&self) -> bool {
        self.mailbox.borrow().queued() > 0
    }

    fn on_drain(self: &Rc<Self>, successor: Option<u32>) {
        self.successor.set(successor);
        let window = self.with(|state| {
            state.begin_drain();
            state.node.settings.drain.window
        });
        self.drain_ends.set(Some(Instant::now() + window));
        self.draining.ring();
        match successor {
            None => self.closing.ring(),
            // The first worker steers the kernel for all, then tells all to close.
            Some(_) => self.closing.wake(),
        }
    }

    async fn mail(self: Rc<Self>, wake: Awaited) {
        loop {
            wake.readable().await;
            self.read_mail();
        }
    }

    async fn accept(self: Rc<Self>, ready: Awaited, listener: OwnedFd, spare: EventFd) {
        let mut spare = Some(spare);
        let (mut steered, mut unsteered) = (false, 0);
        loop {
            {
                let mut readable = std::pin::pin!(ready.readable());
                let mut closing = std::pin::pin!(self.closing.wait());
                std::future::poll_fn(|cx| match readable.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(()),
                    Poll::Pending => closing.as_mut().poll(cx),
                })
                .await;
            }
            if std::mem::replace(&mut unsteered, self.unsteered.get()) != unsteered {
                let _ = listen::unsteer(listener.as_raw_fd());
            }
            if let Some(new) = self.successor.get()
                && !steered
                && self.with(|state| state.index) == 0
            {
                steered = true;
                self.hand_over(listener.as_raw_fd(), new).await;
            }
            let is_last = self.closing.is_rung();
            loop {
                let taken = self.accept_some(&listener, &mut spare);
                if taken < ACCEPTS_MAX {
                    break;
                }
                if !is_last {
                    break;
                }
            }
            if is_last {
                return;
            }
            if spare.is_none() {
                monoio::time::sleep(FILES_FULL_PAUSE).await;
                spare = EventFd::new().ok();
            }
        }
    }

    /// Sends new connections to the process that takes over, then lets every worker close.
    async fn hand_over(self: &Rc<Self>, listener: i32, new: u32) {
        let _ = listen::steer_away(listener, self.workers, new);
        monoio::time::sleep(HANDSHAKES_END).await;
        let _ = listen::steer_to_first_new(listener, self.workers);
        self.with(|state| {
            for mailbox in &state.node.mailboxes {
                let letter = Mail::CloseListeners;
                let bytes = letter.cost_bytes();
                mailbox.send_reserved(letter, bytes);
            }
        });
    }

    fn accept_some(self: &Rc<Self>, listener: &OwnedFd, spare: &mut Option<EventFd>) -> usize {
        for taken in 0..ACCEPTS_MAX {
            match listen::accept_nonblocking(listener.as_raw_fd(), self.nonblocking) {
                Ok(Some((fd, _peer))) => self.take_in(fd),
                Ok(None) => return taken,
                Err(_) => {
                    // The table of open files is full. One descriptor was kept for this: whoever waits is told by
                    // the close, and does not fill the queue for those who might be served.
                    drop(spare.take());
                    if let Ok(Some((fd, _peer))) = listen::accept_nonblocking(listener.as_raw_fd(), true) {
                        drop(fd);
                        self.with(|state| state.stats().refused.add(1));
                    }
                    return taken;
                }
            }
        }
        ACCEPTS_MAX
    }

    fn take_in(self: &Rc<Self>, fd: OwnedFd) {
        use std::os::fd::IntoRawFd;
        let fd = fd.into_raw_fd();
        self.with(|state| {
            if state.connections >= self.connections_max {
                state.stats().refused.add(1);
                close(fd);
                return;
            }
            state.connections += 1;
            state.stats().accepted.add(1);
            let socket = Socket { fd, opened_tick: state.tick(), sent_messages: 0, sent_bytes: 0 };
            state.spawns.push(Spawn::Serve { socket, input: Vec::new() });
        });
    }

    async fn hold(self: Rc<Self>, epoll: Awaited, breather: Breather) {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            epoll.readable().await;
            let until = Instant::now() + SLICE;
            loop {
                let ready = self.with(|state| {
                    let ready = state.epoll.wait(&mut events, Some(Duration::ZERO)).unwrap_or(0);
                    for (token, ready) in events.iter() {
                        state.on_ready(token, ready, &mut buffer);
                    }
                    ready
                });
                if ready < EVENTS_MAX {
                    break;
                }
                if Instant::now() >= until {
                    breather.breathe().await;
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
                let until = Instant::now() + SLICE;
                let more = self.with(|state| {
                    loop {
                        let caught_up = state.catch_up_one();
                        if !state.fan_out_batch() && !caught_up {
                            return false;
                        }
                        if Instant::now() >= until {
                            return true;
                        }
                    }
                });
                if !more {
                    break;
                }
                breather.breathe().await;
            }
        }
    }

    async fn time(self: &Rc<Self>, breather: Breather, open_listeners: Rc<Cell<usize>>) {
        let mut due = Vec::new();
        let mut drained = false;
        loop {
            monoio::time::sleep(Duration::from_millis(TICK_MS)).await;
            while self.with(|state| state.on_tick(&mut due)) {
                breather.breathe().await;
            }
            self.with(State::sweep);
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

/// Slices long work of one client, so that readers get what it publishes while it publishes.
#[derive(Debug, Default)]
pub struct Pace {
    steps: usize,
    bytes: usize,
}

/// Steps, and bytes, that one client may do in one go.
const PACE_STEPS: usize = 64;
const PACE_BYTES: usize = 256 * 1024;

impl Pace {
    /// One step is done.
    pub async fn step(&mut self, worker: &Worker, bytes: usize) {
        self.steps += 1;
        self.bytes += bytes;
        if self.steps >= PACE_STEPS || self.bytes >= PACE_BYTES {
            *self = Self::default();
            worker.breathe().await;
        }
    }

    /// The work has waited anyway.
    pub fn rested(&mut self) {
        *self = Self::default();
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
        eprintln!("pushline: a panic in the order of channels or the table of connections; stopping at once");
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
                self.worker.with(|state| {
                    state.stats().panics.add(1);
                    tracing::error!(worker = state.index, "a connection's task panicked; it is closed");
                });
                Poll::Ready(())
            }
        }
    }
}

/// Wakes tasks of this thread. Stays rung until unrung.
#[derive(Default)]
pub struct Bell {
    rung: Cell<bool>,
    /// How often it was heard, so that nobody misses one who waits.
    wakes: Cell<u32>,
    waiting: RefCell<slab::Slab<Waker>>,
}

impl Bell {
    pub fn ring(&self) {
        self.rung.set(true);
        self.wake();
    }

    /// Wakes those who wait, without staying rung.
    pub fn wake(&self) {
        self.wakes.set(self.wakes.get().wrapping_add(1));
        for (_, waker) in self.waiting.borrow().iter() {
            waker.wake_by_ref();
        }
    }

    pub fn unring(&self) {
        self.rung.set(false);
    }

    pub fn is_rung(&self) -> bool {
        self.rung.get()
    }

    /// Waits until the bell is rung, or those who wait are woken.
    pub fn wait(&self) -> Hearing<'_> {
        Hearing { bell: self, heard: self.wakes.get(), place: None }
    }
}

/// Waits for a bell. Leaves nothing behind when it is dropped.
pub struct Hearing<'b> {
    bell: &'b Bell,
    heard: u32,
    place: Option<usize>,
}

impl Future for Hearing<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.bell.rung.get() || self.bell.wakes.get() != self.heard {
            return Poll::Ready(());
        }
        let mut waiting = self.bell.waiting.borrow_mut();
        match self.place.and_then(|place| waiting.get_mut(place)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                let place = waiting.insert(cx.waker().clone());
                drop(waiting);
                self.place = Some(place);
            }
        }
        Poll::Pending
    }
}

impl Drop for Hearing<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.bell.waiting.borrow_mut().try_remove(place);
        }
    }
}

/// Lets the driver take its turn between two slices of long work: monoio puts a task that wakes itself in front of
/// timers and accepts, so this one waits for a descriptor, which only the driver's park sees.
struct Breather {
    event: EventFd,
    ready: Awaited,
}

impl Breather {
    fn new() -> io::Result<Self> {
        let event = EventFd::new()?;
        Ok(Self { ready: Awaited::duplicate_of(event.as_raw_fd())?, event })
    }

    async fn breathe(&self) {
        let mut readable = std::pin::pin!(self.ready.readable());
        let mut written = false;
        std::future::poll_fn(|cx| {
            let poll = readable.as_mut().poll(cx);
            if !std::mem::replace(&mut written, true) {
                // Only now, so that the poll above was pending.
                self.event.write();
            }
            poll
        })
        .await;
        self.event.drain();
    }
}
