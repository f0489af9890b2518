//! A node: makes its workers, has them listen, and gives it into the hands of its keeper.
//! Owns what must happen once and in order: descriptors that all share come first and low, then each worker leaves the
//! shared table of open files (design, "Open files"), and only then makes its own. Whatever may fail comes before the
//! first listener: from then on clients come to this process, and would be lost with it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use rustls::ServerConfig;

use super::access::AccessLog;
use super::access_file;
use super::capacity;
use super::clock::Clock;
use super::host::{self, Signal, SignalFd};
use super::io::{Epoll, EventFd, SocketOptions};
use super::keeper::Keeper;
use super::listen::{self, Listener, listeners_each};
use super::mail::Mail;
use super::mailbox::{Mailbox, mailbox};
use super::memory::Memory;
use super::node::Node;
use super::notify::Supervisor;
use super::phase::{Phase, Progress};
use super::probe::{self, Refused};
use super::quotas::Quotas;
use super::report::Reports;
use super::sendring::{BATCH_MAX, SendRing};
use super::settings::{AccessTo, At, DriverChoice, Endpoint, FilesChoice, Settings};
use super::state::State;
use super::stats::{Places, Stats};
use super::takeover::{Controls, Predecessor};
use super::unix::{self, UnixListener};
use super::worker::{Edge, Parts, Worker};

/// Entries of a worker's ring for requests.
const RING_ENTRIES: u32 = 1_024;
/// Letters may take this part of the node's memory at most.
const MAILBOXES_PART: usize = 8;
/// Where neither the configuration nor the machine says how much memory there is: as if there were none to spare.
const MEMORY_UNKNOWN_BYTES: usize = 512 << 20;
/// How long the port, or the socket, of a process that just ended may still seem taken.
const PORT_PATIENCE: Duration = Duration::from_millis(500);
/// How long a process that has just started, or taken over itself, may need until it can be asked for its place.
const NAME_PATIENCE: Duration = Duration::from_secs(2);

/// How long the end of the process waits for the access log to be written: a pipe that nobody reads never takes it.
const ACCESS_LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Why the node could not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(
        "{0} is taken: another process listens there. Stop it, choose another --listen, or, if it is a Pushline, \
         start with --takeover"
    )]
    PortTaken(At),
    #[error(
        "cannot listen on {0}: what is there is a file and no socket. Move it away, or choose another path for --listen"
    )]
    NoSocket(At),
    #[error("cannot listen on {at}: {error}")]
    Listen { at: At, error: io::Error },
    #[error(
        "admin.listen = {0} is taken: another process listens there. Stop it, choose another address, or, if it is the \
         Pushline that is to be replaced, start with --takeover"
    )]
    AdminTaken(String),
    #[error("cannot listen on admin.listen = {address}: {error}")]
    AdminListen { address: String, error: io::Error },
    #[error(
        "--takeover: {at} is taken, and not by a Pushline of this user that would give it up ({error}); stop what \
         listens there, or choose another --listen"
    )]
    NoPredecessor { at: At, error: io::Error },
    #[error("--driver io_uring: {0}; use --driver epoll, or auto")]
    IoUring(Refused),
    #[error(
        "--files per-worker: the kernel refuses close_range(CLOSE_RANGE_UNSHARE) ({0}); use --files shared"
    )]
    Files(io::Error),
    #[error(
        "access_log.to = {path}: cannot be opened ({error}); name a file in a directory that this user may write to"
    )]
    AccessLog { path: String, error: io::Error },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
    #[error(transparent)]
    Passed(#[from] super::activation::Refused),
    #[error(
        "the socket {name:?} that was passed listens on {addr}, which is not a loopback address, and without \
         authentication anyone who reaches it could read and publish; configure authentication, or permit that with \
         open = true"
    )]
    PassedReachable { name: String, addr: SocketAddr },
    #[error("a worker ended before it was told to")]
    WorkerEnded,
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |error| ServeError::Io { what, error }
}

/// What a service manager calls a socket where clients speak TLS (`FileDescriptorName=`).
const TLS_SOCKET: &str = "tls";

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
    /// With the descriptor of the listener, where main has it.
    endpoints: Vec<(Endpoint, Option<RawFd>)>,
    listeners_each: usize,
    /// Main says that all workers are made: listen. Hung up: one could not be, so end.
    go: mpsc::Receiver<()>,
    uring: bool,
    own_files: bool,
    last_shared: RawFd,
    connections_max: usize,
    random: u64,
}

/// Serves until told to stop. `tls` is what connections to addresses for TLS are served with; `make_edge` makes each
/// worker's policy, on its thread; `prepare` makes, on the main thread and before any worker starts, what is not the
/// workers': what it opens is in no worker's table of files. What it gives is called when nothing can fail any more, and
/// before another process is asked for its place; `ready` hears the addresses; `reload` is called, on the main thread, for
/// each SIGHUP.
///
/// # Errors
/// [`ServeError`], before anything was served.
pub fn serve<E: Edge + 'static, B: FnOnce()>(
    settings: Settings,
    tls: Option<Arc<ServerConfig>>,
    make_edge: impl Fn(&Arc<Node>) -> E + Send + Sync + Clone + 'static,
    prepare: impl FnOnce(&Settings) -> Result<B, ServeError>,
    ready: impl FnOnce(&Arc<Node>, &[Endpoint]),
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

    let memory_bytes = settings.limits.memory_bytes.unwrap_or(MEMORY_UNKNOWN_BYTES);

    // What all share, made first so that their numbers are low.
    let signals = SignalFd::new().map_err(io_error("cannot make a signal descriptor"))?;
    let ended_workers = Arc::new(AtomicUsize::new(0));
    let main = EventFd::new().map_err(io_error("cannot make an eventfd"))?;
    let epoll = Epoll::new().map_err(io_error("cannot make an epoll set"))?;
    let reports = Reports::new().map_err(io_error("cannot make a mailbox"))?;
    let passed = settings.passed.iter().map(|passed| passed.fd);
    let shared = [signals.as_raw_fd(), main.as_raw_fd(), epoll.as_raw_fd(), reports.wake_fd()];
    let mut last_shared = shared.into_iter().chain(passed).fold(0, RawFd::max);
    let (mut senders, mut mailboxes) = (Vec::new(), Vec::new());
    for _ in 0..workers {
        // A message that fits no mailbox could never reach its channel.
        let bytes_max = (settings.limits.mailbox_bytes.min(memory_bytes / MAILBOXES_PART / workers))
            .max(2 * settings.limits.message_bytes + 4_096);
        let (sender, mailbox) = mailbox(bytes_max).map_err(io_error("cannot make a mailbox"))?;
        last_shared = last_shared.max(mailbox.wake_fd());
        senders.push(sender);
        mailboxes.push(mailbox);
    }

    let mut sockets = unix_listeners(&settings)?;
    last_shared = sockets.iter().map(AsRawFd::as_raw_fd).fold(last_shared, RawFd::max);
    let predecessors = find_predecessors(&settings)?;
    let (reserved, endpoints) = reserve(&settings, &sockets)?;
    let begin = prepare(&settings)?;
    let listening: Vec<Endpoint> = endpoints.iter().map(|(endpoint, _)| endpoint.clone()).collect();
    let before = predecessors.iter().map(|(_, predecessor)| predecessor.listeners).max();
    let listeners_each =
        if settings.passed.is_empty() { listeners_each(workers, before.unwrap_or(0)) } else { 1 };
    let connections_max = capacity::by_files(files_max, workers, own_files).max(1);
    let connections_of_node = settings.limits.connections.min(connections_max * workers);
    let (secret, first_incarnation, seed) = (random()?, u64::from_le_bytes(random()?), random::<8>()?);
    let clock = Clock::start();
    let access = open_access_log(&settings, clock, secret)?;
    let node = Arc::new(Node {
        clock,
        access,
        mailboxes: senders,
        listening: AtomicUsize::new(workers),
        drained: AtomicUsize::new(0),
        main,
        progress: Progress::default(),
        reports,
        places: Places::default(),
        memory: Memory::new(memory_bytes, settings.history.node_bytes, workers),
        quotas: Quotas::new(&settings.quotas, settings.limits.message_bytes),
        stats: (0..workers).map(|_| Stats::default()).collect(),
        secret,
        first_incarnation,
        home_seed: Default::default(),
        tls: ArcSwapOption::new(tls),
        settings,
    });

    let (started_tx, started_rx) = mpsc::channel();
    let (mut threads, mut gos) = (Vec::new(), Vec::new());
    let cpus = host::allowed_cpus().map_or(1, |cpus| cpus.len().max(1));
    for (index, mailbox) in mailboxes.into_iter().enumerate() {
        let (go_tx, go) = mpsc::channel();
        gos.push(go_tx);
        let seed = Seed {
            index: index as u16,
            cpu: index,
            cpus,
            mailbox,
            endpoints: endpoints.clone(),
            listeners_each,
            go,
            uring,
            own_files,
            last_shared,
            connections_max,
            random: u64::from_le_bytes(seed) ^ (index as u64 + 1) << 32,
        };
        let (node, make_edge, started) = (Arc::clone(&node), make_edge.clone(), started_tx.clone());
        let ended_workers = Arc::clone(&ended_workers);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let guard = AbortOnPanic;
                run_worker(seed, Arc::clone(&node), make_edge, &started);
                ended_workers.fetch_add(1, Ordering::Release);
                node.main.write();
                drop(guard);
            })
            .map_err(io_error("cannot start a worker's thread"))?;
        threads.push(thread);
    }
    drop(started_tx);
    let all_have =
        || (0..workers).try_for_each(|_| started_rx.recv().unwrap_or(Err(ServeError::WorkerEnded)));
    all_have()?;
    for socket in &mut sockets {
        let at = At::Unix(socket.path().into());
        socket.begin().map_err(|error| ServeError::Listen { at, error })?;
    }
    for go in &gos {
        let _ = go.send(());
    }
    all_have()?;

    let listeners = workers * listeners_each;
    begin();
    take_over(&node, predecessors, listeners as u32);
    drop(reserved);
    node.progress.reach(Phase::Serving);
    tracing::info!(
        listen = listening.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(","),
        driver = if uring { "io_uring" } else { "epoll" },
        workers,
        files = if own_files { "per-worker" } else { "shared" },
        connections_max = connections_of_node,
        memory_bytes,
        "serving"
    );
    ready(&node, &listening);
    let mut manager = Supervisor::find(workers);
    manager.on_ready(&node);
    let controls = Controls::new(listening.into_iter().map(|endpoint| endpoint.at), listeners as u32);
    let ended = Keeper::new(&node, &signals, &epoll, controls, manager, &ended_workers, reload).run()?;
    if ended == Ended::Drained {
        for thread in threads {
            let _ = thread.join();
        }
        node.progress.reach(Phase::Stopped);
        tell_stopped(&node);
    }
    if let Some(access) = &node.access {
        access.finish(ACCESS_LOG_PATIENCE);
    }
    Ok(ended)
}

fn open_access_log(
    settings: &Settings,
    clock: Clock,
    secret: [u8; 20],
) -> Result<Option<AccessLog>, ServeError> {
    access_file::start(&settings.access_log, clock, secret).map_err(|error| match &settings.access_log.to {
        AccessTo::File(path) => ServeError::AccessLog { path: path.display().to_string(), error },
        AccessTo::Off | AccessTo::Stdout | AccessTo::Stderr => {
            ServeError::Io { what: "cannot start the access log", error }
        }
    })
}

/// Bytes that nobody can guess, and that tell nothing of others that were drawn.
fn random<const BYTES: usize>() -> Result<[u8; BYTES], ServeError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(|error| ServeError::Io {
        what: "cannot get random bytes",
        error: io::Error::other(error.to_string()),
    })?;
    Ok(bytes)
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

/// Those that serve the addresses already, to be asked for them once all is ready here.
fn find_predecessors(settings: &Settings) -> Result<Vec<(At, Predecessor)>, ServeError> {
    let mut found = Vec::new();
    let asks = settings.takeover && settings.passed.is_empty();
    let is_known = |endpoint: &Endpoint| endpoint.addr().is_none_or(|addr| addr.port() != 0);
    for Endpoint { at, .. } in endpoints_of(settings).filter(|endpoint| asks && is_known(endpoint)) {
        match find_predecessor(&at)? {
            Some(predecessor) => found.push((at, predecessor)),
            // What nobody holds yet is simply ours.
            None => tracing::info!(%at, "--takeover: nobody to take over from"),
        }
    }
    Ok(found)
}

fn find_predecessor(at: &At) -> Result<Option<Predecessor>, ServeError> {
    let until = Instant::now() + NAME_PATIENCE;
    loop {
        let error = match Predecessor::find(at) {
            Ok(predecessor) => return Ok(Some(predecessor)),
            Err(error) => error,
        };
        let is_nobody = error.kind() == io::ErrorKind::ConnectionRefused;
        if is_nobody && !is_taken(at)? {
            return Ok(None);
        }
        if !is_nobody || Instant::now() >= until {
            return Err(ServeError::NoPredecessor { at: at.clone(), error });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_taken(at: &At) -> Result<bool, ServeError> {
    let taken = match at {
        At::Tcp(addr) => listen::port_is_taken(*addr),
        At::Unix(path) => unix::is_live(path),
    };
    taken.map_err(|error| ServeError::Listen { at: at.clone(), error })
}

/// A socket for every path: made before any worker starts, so that all accept from the same.
fn unix_listeners(settings: &Settings) -> Result<Vec<UnixListener>, ServeError> {
    let mut sockets = Vec::new();
    let listen: &[Endpoint] = if settings.passed.is_empty() { &settings.listen } else { &[] };
    for Endpoint { at, .. } in listen {
        let At::Unix(path) = at else { continue };
        let make = if settings.takeover { UnixListener::staged } else { UnixListener::new };
        let until = Instant::now() + PORT_PATIENCE;
        let made = loop {
            match make(path, settings.unix_mode) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                made => break made,
            }
        };
        sockets.push(made.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => ServeError::PortTaken(at.clone()),
            io::ErrorKind::AlreadyExists => ServeError::NoSocket(at.clone()),
            _ => ServeError::Listen { at: at.clone(), error },
        })?);
    }
    Ok(sockets)
}

/// Everything to listen at; what speaks TLS comes last.
fn endpoints_of(settings: &Settings) -> impl Iterator<Item = Endpoint> + '_ {
    let tls = settings.tls.listen.iter().map(|addr| Endpoint { at: At::Tcp(*addr), tls: true });
    settings.listen.iter().cloned().chain(tls)
}

/// Where to listen, and where main has the listener already.
type Endpoints = Vec<(Endpoint, Option<RawFd>)>;

/// Holds every address, so that all workers can listen on it and nobody else can take it meanwhile. Gives what holds
/// them, and all endpoints, each with the port that it has.
fn reserve(settings: &Settings, sockets: &[UnixListener]) -> Result<(Vec<OwnedFd>, Endpoints), ServeError> {
    if !settings.passed.is_empty() {
        let passed = settings.passed.iter();
        let endpoints = passed.map(|passed| {
            let tls = passed.name == TLS_SOCKET && !settings.tls.certificates.is_empty();
            (Endpoint { at: At::Tcp(passed.addr), tls }, Some(passed.fd))
        });
        return Ok((Vec::new(), endpoints.collect()));
    }
    let (mut reserved, mut endpoints) = (Vec::new(), Vec::new());
    let mut sockets = sockets.iter();
    for endpoint in endpoints_of(settings) {
        let Some(addr) = endpoint.addr() else {
            endpoints.push((endpoint.clone(), sockets.next().map(AsRawFd::as_raw_fd)));
            continue;
        };
        let failed = |error| ServeError::Listen { at: endpoint.at.clone(), error };
        if addr.port() != 0 && !settings.takeover {
            let until = Instant::now() + PORT_PATIENCE;
            while listen::port_is_taken(addr).map_err(failed)? {
                if Instant::now() >= until {
                    return Err(ServeError::PortTaken(endpoint.at.clone()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let (holder, addr) = listen::reserve_port(addr).map_err(failed)?;
        reserved.push(holder);
        endpoints.push((Endpoint { at: At::Tcp(addr), tls: endpoint.tls }, None));
    }
    Ok((reserved, endpoints))
}

/// Asks those that serve the addresses to drain, now that `listeners` of this process serve each too.
fn take_over(node: &Arc<Node>, predecessors: Vec<(At, Predecessor)>, listeners: u32) {
    let mut asked = Vec::new();
    for (at, mut predecessor) in predecessors {
        match predecessor.ask_to_drain(listeners) {
            Ok(()) => asked.push(predecessor),
            // It heard of an address before this, and has begun to drain.
            Err(_) if !asked.is_empty() => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                tracing::info!(%at, "--takeover: the other process has ended");
            }
            // Connections come to this process already: to end now would lose them.
            Err(error) => {
                tracing::warn!(%at, %error, "--takeover: the other process does not answer; stop it: it has half of the new connections");
            }
        }
    }
    if !asked.is_empty() {
        let node = Arc::clone(node);
        std::thread::spawn(move || {
            for predecessor in asked {
                predecessor.wait_until_closed();
                node.post(0, Mail::Unsteer);
            }
        });
    }
}

fn tell_stopped(node: &Node) {
    let sum = |of: fn(&Stats) -> u64| node.stats.iter().map(of).sum::<u64>();
    tracing::info!(
        accepted = sum(|stats| stats.accepted.get()),
        closed = sum(|stats| stats.closed.get()),
        refused = sum(Stats::refused_in_all),
        published = sum(|stats| stats.placed.get()),
        handshakes = sum(|stats| stats.handshakes.get()),
        handshakes_failed = sum(Stats::failed_handshakes_in_all),
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
    let go = seed.go;
    let make = move || -> io::Result<Parts> {
        let workers = node.mailboxes.len();
        let listeners = prepare_listeners(seed.endpoints, seed.listeners_each, &node.settings)?;
        let ring = if uring { SendRing::uring(BATCH_MAX as u32)? } else { SendRing::plain() };
        let edge = Rc::new(make_edge(&node));
        let state = State::new(node, seed.index, ring, Epoll::new()?, seed.random);
        Ok(Parts {
            state,
            mailbox: seed.mailbox,
            listeners,
            listeners_each: seed.listeners_each,
            nonblocking: !uring,
            connections_max: seed.connections_max,
            edge,
            workers,
            cpus: seed.cpus,
        })
    };
    let result = if uring {
        let runtime = RuntimeBuilder::<TimeDriver<IoUringDriver>>::new().with_entries(RING_ENTRIES).build();
        runtime.and_then(|mut runtime| runtime.block_on(run_tasks(make, &go, started)))
    } else {
        let runtime = RuntimeBuilder::<TimeDriver<LegacyDriver>>::new().build();
        runtime.and_then(|mut runtime| runtime.block_on(run_tasks(make, &go, started)))
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

/// One worker's sockets to listen with: so many, one after the other, to each address; or those that were passed.
fn prepare_listeners(endpoints: Endpoints, each: usize, settings: &Settings) -> io::Result<Vec<Listener>> {
    let options = SocketOptions {
        unsent_bytes_max: settings.slow.kernel_bytes.min(u32::MAX as usize) as u32,
        unacked_ms_max: settings.heartbeat.timeout.as_millis() as u32,
    };
    if !settings.passed.is_empty() {
        let listeners = settings.passed.iter().zip(endpoints);
        return listeners
            .map(|(passed, (endpoint, _))| {
                Ok(Listener { fd: passed.listener(options)?, endpoint, is_passed: true })
            })
            .collect();
    }
    let mut listeners = Vec::with_capacity(endpoints.len() * each);
    for (endpoint, made) in endpoints {
        match (&endpoint.at, made) {
            (At::Tcp(addr), _) => {
                for _ in 0..each {
                    let fd = listen::prepare(*addr, options)?;
                    listeners.push(Listener { fd, endpoint: endpoint.clone(), is_passed: false });
                }
            }
            (At::Unix(_), Some(made)) => {
                listeners.push(Listener { fd: unix::duplicate(made)?, endpoint, is_passed: false });
            }
            (At::Unix(_), None) => {}
        }
    }
    Ok(listeners)
}

fn files_limit() -> usize {
    host::set_nofile_to_hard_limit().map_or(1_024, |limit| limit as usize)
}
