//! The threads of a node's workers: started together, told to listen once all of them are made, waited for at the end.
//! Owns what each thread does before its worker runs: its own table of open files first, then its core, its runtime, its
//! listeners.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::addresses::{Endpoints, prepare_listeners};
use super::capacity::{self, Room};
use super::files;
use super::host;
use super::io::Epoll;
use super::listen;
use super::mail::Mail;
use super::mailbox::Mailbox;
use super::node::Node;
use super::sendring::{BATCH_MAX, SendRing};
use super::serve_error::{ServeError, io_error};
use super::settings::FilesChoice;
use super::state::State;
use super::stderr;
use super::worker::{Edge, Parts, Worker};

/// Entries of a worker's ring for requests.
const RING_ENTRIES: u32 = 1_024;

/// What every worker is made with; each adds its number to `random`.
#[derive(Clone)]
pub(super) struct Seed {
    /// That the process may use.
    pub cpus: usize,
    /// With the descriptor of the listener, where main has it.
    pub endpoints: Endpoints,
    pub listeners_each: usize,
    pub uring: bool,
    pub own_files: bool,
    pub last_shared: RawFd,
    pub room: Room,
    pub random: u64,
}

/// What is one worker's own; it crosses threads, so it owns no descriptor but the mailbox's, which all share.
struct Berth {
    index: u16,
    mailbox: Mailbox<Mail>,
    /// Main says that all workers are made: listen. Hung up: one could not be, so end.
    go: mpsc::Receiver<()>,
    started: mpsc::Sender<Result<(), ServeError>>,
}

/// All workers' threads.
pub(super) struct Threads {
    threads: Vec<JoinHandle<()>>,
    gos: Vec<mpsc::Sender<()>>,
    started: mpsc::Receiver<Result<(), ServeError>>,
}

impl Threads {
    /// Starts a thread for each of the mailboxes.
    ///
    /// # Errors
    /// The system has no more threads to give; those that started end again.
    pub fn start<E: Edge + 'static>(
        node: &Arc<Node>,
        seed: &Seed,
        mailboxes: Vec<Mailbox<Mail>>,
        make_edge: impl Fn(&Arc<Node>) -> E + Send + Clone + 'static,
    ) -> Result<Self, ServeError> {
        let (started_tx, started) = mpsc::channel();
        let (mut threads, mut gos) = (Vec::new(), Vec::new());
        for (index, mailbox) in mailboxes.into_iter().enumerate() {
            let (go_tx, go) = mpsc::channel();
            gos.push(go_tx);
            let berth = Berth { index: index as u16, mailbox, go, started: started_tx.clone() };
            let (node, seed, make_edge) = (Arc::clone(node), seed.clone(), make_edge.clone());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let guard = AbortOnPanic;
                    run_worker(seed, berth, Arc::clone(&node), make_edge);
                    node.ended.fetch_add(1, Ordering::Release);
                    node.main.write();
                    drop(guard);
                })
                .map_err(io_error("cannot start a worker's thread"))?;
            threads.push(thread);
        }
        Ok(Self { threads, gos, started })
    }

    /// Waits until every worker has come one step further: is made, then listens.
    ///
    /// # Errors
    /// Why the first that failed did.
    pub fn all_have_come(&self) -> Result<(), ServeError> {
        let one_has = |_: &_| self.started.recv().unwrap_or(Err(ServeError::WorkerEnded));
        self.threads.iter().try_for_each(one_has)
    }

    /// Has all of them listen.
    pub fn go(&self) {
        for go in &self.gos {
            let _ = go.send(());
        }
    }

    pub fn join(self) {
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// A worker's thread that panics takes a part of the channels with it: the node ends, and a restart tells the gaps.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            stderr::flush();
            std::process::abort();
        }
    }
}

fn run_worker<E: Edge + 'static>(
    mut seed: Seed,
    berth: Berth,
    node: Arc<Node>,
    make_edge: impl Fn(&Arc<Node>) -> E,
) {
    let Berth { index, mailbox, go, started } = berth;
    if seed.own_files
        && let Err(error) = files::unshare_from(seed.last_shared)
    {
        if node.settings.files == FilesChoice::PerWorker {
            let _ = started.send(Err(ServeError::Files(error)));
            return;
        }
        if index == 0 {
            tracing::warn!(%error, "workers share one table of open files");
        }
        seed.room = capacity::room(files_limit(), node.mailboxes.len(), false);
    }
    if let Err(error) = host::pin_to_cpu(usize::from(index)) {
        tracing::debug!(worker = index, %error, "not pinned");
    }
    let uring = seed.uring;
    let random = seed.random ^ (u64::from(index) + 1) << 32;
    let make = move || -> io::Result<Parts> {
        let workers = node.mailboxes.len();
        let listeners = prepare_listeners(seed.endpoints, seed.listeners_each, &node.settings)?;
        let ring = if uring { SendRing::uring(BATCH_MAX as u32)? } else { SendRing::plain() };
        let edge = Rc::new(make_edge(&node));
        let state = State::new(node, index, ring, Epoll::new()?, random);
        Ok(Parts {
            state,
            mailbox,
            listeners,
            listeners_each: seed.listeners_each,
            nonblocking: !uring,
            room: seed.room,
            edge,
            workers,
            cpus: seed.cpus,
        })
    };
    let result = if uring {
        let runtime = RuntimeBuilder::<TimeDriver<IoUringDriver>>::new().with_entries(RING_ENTRIES).build();
        runtime.and_then(|mut runtime| runtime.block_on(run_tasks(make, &go, &started)))
    } else {
        let runtime = RuntimeBuilder::<TimeDriver<LegacyDriver>>::new().build();
        runtime.and_then(|mut runtime| runtime.block_on(run_tasks(make, &go, &started)))
    };
    if let Err(error) = result {
        let _ = started.send(Err(ServeError::Io { what: "a worker could not start", error }));
    }
}

async fn run_tasks(
    make: impl FnOnce() -> io::Result<Parts>,
    go: &mpsc::Receiver<()>,
    started: &mpsc::Sender<Result<(), ServeError>>,
) -> io::Result<()> {
    let parts = make()?;
    let _ = started.send(Ok(()));
    if go.recv().is_err() {
        return Ok(());
    }
    for listener in parts.listeners.iter().filter(|listener| !listener.is_passed && !listener.is_unix()) {
        listen::begin(listener.fd.as_raw_fd())?;
    }
    let _ = started.send(Ok(()));
    Worker::run(parts).await
}

fn files_limit() -> usize {
    host::set_nofile_to_hard_limit().map_or(1_024, |limit| limit as usize)
}
