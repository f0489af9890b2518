//! A node: makes its workers, has them listen, and gives it into the hands of its keeper.
//! Owns what must happen once and in order: descriptors that all share come first and low, then each worker leaves the
//! shared table of open files, and only then makes its own (`threads`). Whatever may fail comes before the first listener:
//! from then on clients come to this process, and would be lost with it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;

use super::access::AccessLog;
use super::access_file;
use super::addresses::{reserve, unix_listeners};
use super::capacity::{self, Room};
use super::clock::Clock;
use super::host::{self, Signal};
use super::io::EventFd;
use super::keeper::{Keeper, Signs};
use super::listen::listeners_each;
use super::mail::Mail;
use super::mailbox::{Mailbox, Sender, mailbox};
use super::memory::Memory;
use super::node::Node;
use super::notify::Supervisor;
use super::phase::{Phase, Progress};
use super::probe;
use super::quotas::Quotas;
use super::report::Reports;
use super::serve_error::{ServeError, io_error};
use super::settings::{AccessTo, At, DriverChoice, Endpoint, Settings};
use super::stats::{Places, Stats};
use super::succession::{claim, find_predecessors, take_over};
use super::takeover::{Claim, Controls};
use super::threads::{Seed, Threads};
use super::unix::UnixListener;
use super::worker::Edge;

/// Letters may take this part of the node's memory at most.
const MAILBOXES_PART: usize = 8;
/// Where neither the configuration nor the machine says how much memory there is: as if there were none to spare.
const MEMORY_UNKNOWN_BYTES: usize = 512 << 20;
/// How long the end of the process waits for the access log to be written: a pipe that nobody reads never takes it.
const ACCESS_LOG_PATIENCE: Duration = Duration::from_secs(2);

/// How a node ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Drained,
    /// By a second signal, in the middle of a drain.
    AtOnce(Signal),
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
    let plan = Plan::of(&settings)?;
    let Shared { signs, main, reports, senders, mailboxes, claims, mut sockets, last } =
        Shared::make(&settings, &plan)?;
    let predecessors = find_predecessors(&settings)?;
    let (reserved, endpoints) = reserve(&settings, &sockets)?;
    let begin = prepare(&settings)?;
    let listening: Vec<Endpoint> = endpoints.iter().map(|(endpoint, _)| endpoint.clone()).collect();
    let before = predecessors.iter().map(|(_, predecessor)| predecessor.listeners).max().unwrap_or(0);
    let is_passed = !settings.passed.is_empty();
    let listeners_each = if is_passed { 1 } else { listeners_each(plan.workers, before) };
    let listeners = (plan.workers * listeners_each) as u32;
    let node = Arc::new(make_node(settings, &plan, tls, main, reports, senders)?);

    let seed = Seed {
        cpus: plan.cpus,
        endpoints,
        listeners_each,
        uring: plan.uring,
        own_files: plan.own_files,
        last_shared: last,
        room: plan.room,
        random: u64::from_le_bytes(random()?),
    };
    let threads = Threads::start(&node, &seed, mailboxes, make_edge)?;
    threads.all_have_come()?;
    node.memory.begin(host::resident_bytes().unwrap_or(0));
    for socket in &mut sockets {
        let at = At::Unix(socket.path().into());
        socket.begin().map_err(|error| ServeError::Listen { at, error })?;
    }
    threads.go();
    threads.all_have_come()?;

    begin();
    take_over(&node, predecessors, listeners);
    drop(reserved);
    let mut controls = Controls::new(listening.iter().map(|endpoint| endpoint.at.clone()), listeners);
    signs.hear(&mut controls);
    drop(claims);
    node.progress.reach(Phase::Serving);
    tell_serving(&node, &plan, &listening);
    ready(&node, &listening);
    let mut supervisor = Supervisor::find(plan.workers);
    supervisor.on_ready(&node);
    let ended = Keeper::new(&node, &signs, controls, supervisor, reload).run()?;
    if ended == Ended::Drained {
        threads.join();
        node.progress.reach(Phase::Stopped);
        tell_stopped(&node);
    }
    if let Some(access) = &node.access {
        access.finish(ACCESS_LOG_PATIENCE);
    }
    Ok(ended)
}

/// What a node is to be: as it is configured, and as the machine permits.
struct Plan {
    workers: usize,
    /// That the process may use.
    cpus: usize,
    uring: bool,
    /// Each worker has a table of open files of its own.
    own_files: bool,
    /// Connections that open files allow.
    room: Room,
    memory_bytes: usize,
}

impl Plan {
    fn of(settings: &Settings) -> Result<Self, ServeError> {
        let files_max =
            host::set_nofile_to_hard_limit().map_err(io_error("cannot read the limit on open files"))?;
        let files_max = files_max as usize;
        let cpus = host::allowed_cpus().map_or(1, |cpus| cpus.len().max(1));
        let workers = settings.workers.unwrap_or(cpus);
        let uring = choose_driver(settings.driver)?;
        let own_files = capacity::own_files(settings.files, files_max, workers, settings.limits.connections);
        let room = capacity::room(files_max, workers, own_files);
        let memory_bytes = settings.limits.memory_bytes.unwrap_or(MEMORY_UNKNOWN_BYTES);
        Ok(Self { workers, cpus, uring, own_files, room, memory_bytes })
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

/// Whatever descriptors all threads share, made first so that their numbers are low.
struct Shared {
    signs: Signs,
    main: EventFd,
    reports: Reports,
    senders: Vec<Sender<Mail>>,
    mailboxes: Vec<Mailbox<Mail>>,
    /// Not shared: their numbers are above all others here.
    claims: Vec<Claim>,
    sockets: Vec<UnixListener>,
    /// The highest number among them.
    last: RawFd,
}

impl Shared {
    fn make(settings: &Settings, plan: &Plan) -> Result<Self, ServeError> {
        let signs = Signs::new()?;
        let main = EventFd::new().map_err(io_error("cannot make an eventfd"))?;
        let reports = Reports::new().map_err(io_error("cannot make a mailbox"))?;
        // A message that fits no mailbox could never reach its channel.
        let bytes_max =
            (settings.limits.mailbox_bytes.min(plan.memory_bytes / MAILBOXES_PART / plan.workers))
                .max(2 * settings.limits.message_bytes + 4_096);
        let made: io::Result<Vec<_>> = (0..plan.workers).map(|_| mailbox(bytes_max)).collect();
        let (senders, mailboxes): (Vec<_>, Vec<_>) =
            made.map_err(io_error("cannot make a mailbox"))?.into_iter().unzip();
        let last = [signs.last_fd(), main.as_raw_fd(), reports.wake_fd()]
            .into_iter()
            .chain(settings.passed.iter().map(|passed| passed.fd))
            .chain(mailboxes.iter().map(Mailbox::wake_fd))
            .fold(0, RawFd::max);
        // Before anything is done to a path, and yet above the sockets that are made there.
        let claims = claim(settings, last + 1 + settings.listen.len() as RawFd)?;
        let sockets = unix_listeners(settings)?;
        let last = sockets.iter().map(AsRawFd::as_raw_fd).fold(last, RawFd::max);
        Ok(Self { signs, main, reports, senders, mailboxes, claims, sockets, last })
    }
}

fn make_node(
    settings: Settings,
    plan: &Plan,
    tls: Option<Arc<ServerConfig>>,
    main: EventFd,
    reports: Reports,
    mailboxes: Vec<Sender<Mail>>,
) -> Result<Node, ServeError> {
    let clock = Clock::start();
    let secret = random()?;
    Ok(Node {
        clock,
        access: open_access_log(&settings, clock, secret)?,
        mailboxes,
        listening: AtomicUsize::new(plan.workers),
        drained: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
        main,
        progress: Progress::default(),
        reports,
        places: Places::default(),
        memory: Memory::new(plan.memory_bytes, settings.history.node_bytes, plan.workers),
        quotas: Quotas::new(&settings.quotas, settings.limits.message_bytes),
        stats: (0..plan.workers).map(|_| Stats::default()).collect(),
        secret,
        first_incarnation: u64::from_le_bytes(random()?),
        home_seed: Default::default(),
        tls: ArcSwapOption::new(tls),
        settings,
    })
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

fn tell_serving(node: &Node, plan: &Plan, listening: &[Endpoint]) {
    let Plan { workers, uring, own_files, room, memory_bytes, .. } = *plan;
    tracing::info!(
        listen = listening.iter().map(Endpoint::to_string).collect::<Vec<_>>().join(","),
        driver = if uring { "io_uring" } else { "epoll" },
        workers,
        files = if own_files { "per-worker" } else { "shared" },
        connections_max = node.settings.limits.connections.min(room.most(workers)),
        memory_bytes,
        "serving"
    );
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
