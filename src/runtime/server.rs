//! A node: makes its workers, waits for signals, drains, ends.
//! Owns what must happen once and in order: descriptors that all share come first and low, then each worker leaves the
//! shared table of open files (design, "Open files"), and only then makes its own.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use super::capacity;
use super::clock::Clock;
use super::host::{self, Signal, SignalFd};
use super::io::{Epoll, EventFd, Interest, SocketOptions};
use super::listen;
use super::mail::Mail;
use super::mailbox::{Mailbox, mailbox};
use super::phase::{Phase, Progress};
use super::probe::{self, Refused};
use super::report::{Report, Reports};
use super::sendring::{BATCH_MAX, SendRing};
use super::settings::{DriverChoice, FilesChoice, Settings};
use super::state::{Node, State};
use super::stats::{Places, Stats};
use super::takeover::{Control, Predecessor};
use super::worker::{Edge, Parts, Worker};

/// Entries of a worker's ring for requests.
const RING_ENTRIES: u32 = 1_024;
/// How long the port of a process that just ended may still seem taken.
const PORT_PATIENCE: Duration = Duration::from_millis(500);

/// Why the node could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "{0} is taken: another process listens there. Stop it, choose another --listen, or, if it is a Pushline, \
         start with --takeover"
    )]
    PortTaken(SocketAddr),
    #[error("cannot listen on {addr}: {error}")]
    Listen { addr: SocketAddr, error: io::Error },
    #[error(
        "admin.listen = {0} is taken: another process listens there. Stop it, choose another address, or, if it is the \
         Pushline that is to be replaced, start with --takeover"
    )]
    AdminTaken(String),
    #[error("cannot listen on admin.listen = {address}: {error}")]
    AdminListen { address: String, error: io::Error },
    #[error("--takeover: no Pushline of this user serves {addr} ({error}); start without --takeover")]
    NoPredecessor { addr: SocketAddr, error: io::Error },
    #[error("--driver io_uring: {0}; use --driver epoll, or auto")]
    IoUring(Refused),
    #[error(
        "--files per-worker: the kernel refuses close_range(CLOSE_RANGE_UNSHARE) ({0}); use --files shared"
    )]
    Files(io::Error),
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
    #[error("a worker ended before it was told to")]
    WorkerEnded,
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::Io { what, error }
}

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Drained,
    /// By a second signal, in the middle of a drain.
    AtOnce(Signal),
}

/// What a worker thread is made with; it crosses threads, so it owns no descriptor but the mailbox's, which all share.
struct Seed {
    index: u16,
    cpu: usize,
    /// That the process may use.
    cpus: usize,
    mailbox: Mailbox<Mail>,
    addresses: Vec<SocketAddr>,
    uring: bool,
    own_files: bool,
    last_shared: RawFd,
    connections_max: usize,
    random: u64,
}

/// Serves until told to stop. `make_edge` makes each worker's policy, on its thread; `prepare` takes, on the main thread and
/// before any worker starts, what is not the workers': what it opens is in no worker's table of files; `ready` hears the
/// addresses; `reload` is called, on the main thread, for each SIGHUP.
///
/// # Errors
/// [`ServeError`], before anything was served.
pub fn serve<E: Edge + 'static>(
    settings: Settings,
    make_edge: impl Fn(&Arc<Node>) -> E + Send + Sync + Clone + 'static,
    prepare: impl FnOnce(&Settings) -> Result<(), ServeError>,
    ready: impl FnOnce(&Arc<Node>, &[SocketAddr]),
    reload: impl FnMut(&Arc<Node>),
) -> Result<Ended, ServeError> {
    // Signals come to the main thread alone; workers inherit this.
    host::block_signals().map_err(io_error("cannot block signals"))?;
    let files_max =
        host::set_nofile_to_hard_limit().map_err(io_error("cannot read the limit on open files"))?;
    let workers = match settings.workers {
        Some(workers) => workers,
        None => host::allowed_cpus().map_or(1, |cpus| cpus.len().max(1)),
    };
    let uring = choose_driver(settings.driver)?;
    let files_max = files_max as usize;
    let own_files = capacity::own_files(settings.files, files_max, workers, settings.limits.connections);

    // What all share, made first so that their numbers are low.
    let signals = SignalFd::new().map_err(io_error("cannot make a signal descriptor"))?;
    let ended_workers = Arc::new(AtomicUsize::new(0));
    let done = Arc::new(EventFd::new().map_err(io_error("cannot make an eventfd"))?);
    let epoll = Epoll::new().map_err(io_error("cannot make an epoll set"))?;
    let reports = Reports::new().map_err(io_error("cannot make a mailbox"))?;
    let mut last_shared =
        signals.as_raw_fd().max(done.as_raw_fd()).max(epoll.as_raw_fd()).max(reports.wake_fd());
    let (mut senders, mut mailboxes) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        // A message that fits no mailbox could never reach its channel.
        let bytes_max = settings.limits.mailbox_bytes.max(2 * settings.limits.message_bytes + 4_096);
        let (sender, mailbox) = mailbox(bytes_max).map_err(io_error("cannot make a mailbox"))?;
        last_shared = last_shared.max(mailbox.wake_fd());
        senders.push(sender);
        mailboxes.push(mailbox);
    }

    let reserved = reserve(&settings)?;
    prepare(&settings)?;
    let addresses: Vec<SocketAddr> = reserved.iter().map(|(_, addr)| *addr).collect();
    let connections_max = capacity::by_files(files_max, workers, own_files).max(1);
    let connections_of_node = settings.limits.connections.min(connections_max * workers);
    let mut secret = [0; 20];
    getrandom::fill(&mut secret).map_err(|error| ServeError::Io {
        what: "cannot get random bytes",
        error: io::Error::other(error.to_string()),
    })?;
    let node = Arc::new(Node {
        clock: Clock::start(),
        mailboxes: senders,
        drained: AtomicUsize::new(0),
        progress: Progress::default(),
        reports,
        places: Places::default(),
        stats: (0..workers).map(|_| Stats::default()).collect(),
        secret,
        home_seed: Default::default(),
        settings,
    });

    let (started_tx, started_rx) = mpsc::channel();
    let mut threads = Vec::new();
    let cpus = host::allowed_cpus().map_or(1, |cpus| cpus.len().max(1));
    for (index, mailbox) in mailboxes.into_iter().enumerate() {
        let seed = Seed {
            index: index as u16,
            cpu: index,
            cpus,
            mailbox,
            addresses: addresses.clone(),
            uring,
            own_files,
            last_shared,
            connections_max,
            random: u64::from_le_bytes(std::array::from_fn(|at| secret[at + 8])) ^ (index as u64 + 1) << 32,
        };
        let (node, make_edge, started) = (Arc::clone(&node), make_edge.clone(), started_tx.clone());
        let (done, ended_workers) = (Arc::clone(&done), Arc::clone(&ended_workers));
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let guard = AbortOnPanic;
                run_worker(seed, node, make_edge, &started);
                ended_workers.fetch_add(1, Ordering::Release);
                done.write();
                drop(guard);
            })
            .map_err(io_error("cannot start a worker's thread"))?;
        threads.push(thread);
    }
    drop(started_tx);
    for _ in 0..workers {
        started_rx.recv().unwrap_or(Err(ServeError::WorkerEnded))?;
    }

    let predecessors = take_over(&node.settings, &addresses, workers)?;
    drop(reserved);
    tracing::info!(
        listen = addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(","),
        driver = if uring { "io_uring" } else { "epoll" },
        workers,
        files = if own_files { "per-worker" } else { "shared" },
        connections_max = connections_of_node,
        "serving"
    );
    node.progress.reach(Phase::Serving);
    ready(&node, &addresses);
    if !predecessors.is_empty() {
        let node = Arc::clone(&node);
        std::thread::spawn(move || {
            for predecessor in predecessors {
                predecessor.wait();
                post(&node, 0, Mail::Unsteer);
            }
        });
    }
    let ended = wait_for_the_end(&node, &signals, &done, &epoll, &addresses, &ended_workers, reload)?;
    if ended == Ended::Drained {
        for thread in threads {
            let _ = thread.join();
        }
        tell_stopped(&node);
    }
    Ok(ended)
}

/// A worker's thread that panics takes a part of the channels with it: the node ends, and a restart tells the gaps.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn choose_driver(choice: DriverChoice) -> Result<bool, ServeError> {
    match choice {
        DriverChoice::Epoll => Ok(false),
        DriverChoice::IoUring => probe::io_uring_works().map(|()| true).map_err(ServeError::IoUring),
        DriverChoice::Auto => match probe::io_uring_works() {
            Ok(()) => Ok(true),
            Err(reason) => {
                tracing::warn!(%reason, "io_uring cannot be used here; using epoll");
                Ok(false)
            }
        },
    }
}

/// Holds every address, so that all workers can listen on it and nobody else can take it meanwhile.
fn reserve(settings: &Settings) -> Result<Vec<(OwnedFd, SocketAddr)>, ServeError> {
    let mut reserved = Vec::new();
    for &addr in &settings.listen {
        let failed = |error| ServeError::Listen { addr, error };
        if addr.port() != 0 && !settings.takeover {
            let until = Instant::now() + PORT_PATIENCE;
            while listen::port_is_taken(addr).map_err(failed)? {
                if Instant::now() >= until {
                    return Err(ServeError::PortTaken(addr));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        reserved.push(listen::reserve_port(addr).map_err(failed)?);
    }
    Ok(reserved)
}

fn take_over(
    settings: &Settings,
    addresses: &[SocketAddr],
    workers: usize,
) -> Result<Vec<Predecessor>, ServeError> {
    if !settings.takeover {
        return Ok(Vec::new());
    }
    let mut predecessors = Vec::new();
    for &addr in addresses {
        // A port that nobody holds yet is simply ours.
        match Predecessor::ask_to_drain(addr, workers as u32) {
            Ok(predecessor) => predecessors.push(predecessor),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                tracing::info!(%addr, "--takeover: nobody to take over from");
            }
            // It heard of the first address, and has begun to drain.
            Err(_) if !predecessors.is_empty() => {}
            Err(error) => return Err(ServeError::NoPredecessor { addr, error }),
        }
    }
    Ok(predecessors)
}

fn post(node: &Node, worker: usize, mail: Mail) {
    let bytes = mail.cost_bytes();
    node.mailboxes[worker].send_reserved(mail, bytes);
}

/// What the main thread waits for.
const SIGNALS: u64 = 0;
const DONE: u64 = 1;
const CONTROL: u64 = 2;

fn wait_for_the_end(
    node: &Arc<Node>,
    signals: &SignalFd,
    done: &EventFd,
    epoll: &Epoll,
    addresses: &[SocketAddr],
    ended_workers: &AtomicUsize,
    mut reload: impl FnMut(&Arc<Node>),
) -> Result<Ended, ServeError> {
    let waiting = io_error("cannot wait for signals");
    let mut controls: Vec<Control> = Vec::new();
    let add = |fd: RawFd, token| epoll.add(fd, token, Interest::Read);
    add(signals.as_raw_fd(), SIGNALS).and_then(|()| add(done.as_raw_fd(), DONE)).map_err(waiting)?;
    let mut unnamed: Vec<SocketAddr> = addresses.to_vec();
    let mut events = super::io::Events::with_capacity(8);
    let mut draining = false;
    loop {
        // The name of a predecessor's socket is free only when it drains.
        unnamed.retain(|addr| match Control::new(*addr) {
            Ok(control) => {
                let _ = epoll.add(control.as_raw_fd(), CONTROL, Interest::Read);
                controls.push(control);
                false
            }
            Err(_) => true,
        });
        let timeout = (!unnamed.is_empty()).then_some(Duration::from_millis(500));
        epoll.wait(&mut events, timeout).map_err(io_error("cannot wait for signals"))?;
        let tokens: Vec<u64> = events.iter().map(|(token, _)| token).collect();
        for token in tokens {
            match token {
                SIGNALS => match signals.read() {
                    Ok(Some(second @ (Signal::Terminate | Signal::Interrupt))) if draining => {
                        tracing::warn!("a second signal: stopping at once");
                        return Ok(Ended::AtOnce(second));
                    }
                    Ok(Some(Signal::Terminate | Signal::Interrupt)) => {
                        draining = true;
                        drain(node, None);
                    }
                    Ok(Some(Signal::HangUp)) => reload(node),
                    Ok(None) | Err(_) => {}
                },
                DONE => {
                    done.drain();
                    if !draining {
                        return Err(ServeError::WorkerEnded);
                    }
                    if ended_workers.load(Ordering::Acquire) == node.mailboxes.len() {
                        return Ok(Ended::Drained);
                    }
                }
                _ => {
                    let asked = controls.iter_mut().find_map(Control::hear);
                    if let (Some(listeners), false) = (asked, draining) {
                        draining = true;
                        for control in &mut controls {
                            let _ = epoll.remove(control.as_raw_fd());
                            control.close();
                        }
                        unnamed.clear();
                        drain(node, Some(listeners));
                    }
                }
            }
        }
    }
}

fn drain(node: &Arc<Node>, successor: Option<u32>) {
    // Before any listener closes.
    node.progress.reach(Phase::Draining);
    if successor.is_some() {
        node.reports.send(Report::HandOver);
    }
    tracing::info!(
        window_seconds = node.settings.drain.window.as_secs_f64(),
        takeover = successor.is_some(),
        "draining"
    );
    for worker in 0..node.mailboxes.len() {
        post(node, worker, Mail::Drain { successor });
    }
}

fn tell_stopped(node: &Node) {
    let sum = |of: fn(&Stats) -> u64| node.stats.iter().map(of).sum::<u64>();
    tracing::info!(
        accepted = sum(|stats| stats.accepted.get()),
        closed = sum(|stats| stats.closed.get()),
        refused = sum(Stats::refused_in_all),
        published = sum(|stats| stats.placed.get()),
        panics = sum(|stats| stats.panics.get()),
        "stopped"
    );
}

fn run_worker<E: Edge + 'static>(
    mut seed: Seed,
    node: Arc<Node>,
    make_edge: impl Fn(&Arc<Node>) -> E,
    started: &mpsc::Sender<Result<(), ServeError>>,
) {
    if seed.own_files
        && let Err(error) = super::files::unshare_from(seed.last_shared)
    {
        if node.settings.files == FilesChoice::PerWorker {
            let _ = started.send(Err(ServeError::Files(error)));
            return;
        }
        if seed.index == 0 {
            tracing::warn!(%error, "workers share one table of open files");
        }
        seed.connections_max = capacity::by_files(files_limit(), node.mailboxes.len(), false).max(1);
    }
    if let Err(error) = host::pin_to_cpu(seed.cpu) {
        tracing::debug!(worker = seed.index, %error, "not pinned");
    }
    let uring = seed.uring;
    let run = move || -> io::Result<Parts> {
        let workers = node.mailboxes.len() as u32;
        let options = SocketOptions {
            unsent_bytes_max: node.settings.slow.kernel_bytes.min(u32::MAX as usize) as u32,
            unacked_ms_max: node.settings.heartbeat.timeout.as_millis() as u32,
        };
        let listeners = seed.addresses.iter().map(|addr| listen::listen(*addr, options));
        let listeners = listeners.collect::<io::Result<Vec<_>>>()?;
        let ring = if uring { SendRing::uring(BATCH_MAX as u32)? } else { SendRing::plain() };
        let edge = Rc::new(make_edge(&node));
        let state = State::new(node, seed.index, ring, Epoll::new()?, seed.random);
        Ok(Parts {
            state,
            mailbox: seed.mailbox,
            listeners,
            nonblocking: !uring,
            connections_max: seed.connections_max,
            edge,
            workers,
            cpus: seed.cpus,
        })
    };
    let result = if uring {
        let runtime = RuntimeBuilder::<TimeDriver<IoUringDriver>>::new().with_entries(RING_ENTRIES).build();
        runtime.and_then(|mut runtime| runtime.block_on(run_tasks(run, started)))
    } else {
        let runtime = RuntimeBuilder::<TimeDriver<LegacyDriver>>::new().build();
        runtime.and_then(|mut runtime| runtime.block_on(run_tasks(run, started)))
    };
    if let Err(error) = result {
        let _ = started.send(Err(ServeError::Io { what: "a worker could not start", error }));
    }
}

async fn run_tasks(
    make: impl FnOnce() -> io::Result<Parts>,
    started: &mpsc::Sender<Result<(), ServeError>>,
) -> io::Result<()> {
    let parts = make()?;
    let _ = started.send(Ok(()));
    Worker::run(parts).await
}

fn files_limit() -> usize {
    host::set_nofile_to_hard_limit().map_or(1_024, |limit| limit as usize)
}
