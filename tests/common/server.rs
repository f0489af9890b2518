//! One Pushline process for one test, on port 0, in an empty directory of its own.
//! Owns the child: its log lines, its signals, its end. Never speaks HTTP.
//!
//! `PUSHLINE_DRIVER` and `PUSHLINE_WORKERS` choose driver and workers for all tests that do not choose themselves. With
//! `PUSHLINE_TLS=1`, servers on a free loopback port listen by TLS too, and tests come by that.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use serde_json::Value;

use super::tls::{Files, Identity, client, speaks_no_more, speaks_tls};
use super::{DEADLINE, until};

/// A running server. Killed when dropped, by the thread's end too: keep it in the thread that started it.
pub struct Server {
    child: Child,
    addrs: Vec<SocketAddr>,
    tls_addrs: Vec<SocketAddr>,
    sockets: Vec<PathBuf>,
    log: Arc<Log>,
    dir: Dir,
    end_expected: bool,
    panics_expected: bool,
}

/// How a process ended that was not to serve.
pub struct Refusal {
    pub code: Option<i32>,
    pub stderr: String,
}

impl Server {
    /// Starts `pushline serve` on a free loopback port and waits until it serves.
    ///
    /// # Panics
    /// With all that it logged, when it ends or stays silent instead.
    pub fn start(args: &[&str]) -> Self {
        let mut all = vec!["--listen", "127.0.0.1:0"];
        all.extend(args);
        let by_tls = std::env::var("PUSHLINE_TLS").is_ok_and(|value| value == "1");
        if !by_tls || args.iter().any(|arg| arg.starts_with("tls.")) {
            return Self::start_bare(&all);
        }
        let (files, identity) = (Files::new(), Identity::new(&["localhost"]));
        let certificates = format!("tls.certificates=[{}]", identity.write(&files.0, "own"));
        all.extend(["--set", "tls.listen=127.0.0.1:0", "--set", &certificates]);
        let mut server = Self::start_bare(&all);
        speaks_tls(server.tls_addrs[0], client(&[&identity], rustls::DEFAULT_VERSIONS));
        server.addrs.insert(0, server.tls_addrs[0]);
        server
    }

    /// As [`Server::start`], on no address but those in `args`.
    pub fn start_bare(args: &[&str]) -> Self {
        Self::start_under(&[], args)
    }

    /// As [`Server::start_bare`], run by `before`: a program and its arguments, which becomes the server by exec.
    pub fn start_under(before: &[&str], args: &[&str]) -> Self {
        let dir = Dir::new();
        let (mut child, log) = spawn(&dir.0, before, args);
        let serving = log.wait(|line| message_of(line).as_deref() == Some("serving"));
        let Some(serving) = serving else {
            let _ = child.kill();
            let status = child.wait();
            panic!("the server did not serve ({status:?}) with {args:?}; it said:\n{}", log.all().join("\n"));
        };
        let listen = field(&serving, "listen").expect("the line `serving` has `listen`");
        let (mut addrs, mut tls_addrs, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
        for place in listen.split(',').map(str::trim) {
            if let Some(path) = place.strip_prefix("unix:") {
                sockets.push(path.into());
            } else if let Some(addr) = place.strip_prefix("tls:") {
                tls_addrs.push(addr.parse().expect("addresses"));
            } else {
                addrs.push(place.parse().expect("addresses"));
            }
        }
        Self { child, addrs, tls_addrs, sockets, log, dir, end_expected: false, panics_expected: false }
    }

    /// Runs `pushline serve` with `args` alone (and the log's form), which is expected to refuse.
    pub fn refused(args: &[&str]) -> Refusal {
        let dir = Dir::new();
        let (mut child, log) = spawn(&dir.0, &[], args);
        let status = wait_child(&mut child).unwrap_or_else(|| {
            let _ = child.kill();
            let _ = child.wait();
            panic!("the server did not refuse {args:?}; it said:\n{}", log.all().join("\n"))
        });
        log.wait(|_| false);
        Refusal { code: status.code(), stderr: log.all().join("\n") }
    }

    /// Panics of connections are what the test asks for.
    pub fn expect_panics(&mut self) {
        self.panics_expected = true;
    }

    /// The first address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Those where TLS is spoken.
    pub fn tls_addrs(&self) -> &[SocketAddr] {
        &self.tls_addrs
    }

    /// Its unix sockets.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its working directory.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }

    /// Sends a signal. Its end is expected from now on.
    #[allow(unsafe_code)]
    pub fn signal(&mut self, signal: i32) {
        self.end_expected = true;
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: plain system call; `self.child` has not been waited for while its end was not seen, so the pid is ours.
        let done = unsafe { libc::kill(pid, signal) };
        assert_eq!(done, 0, "kill: {}", std::io::Error::last_os_error());
    }

    /// Stops it until SIGCONT. One thread takes the signal and has the others stop: until they have, they go on.
    pub fn stop(&mut self) {
        self.signal(libc::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.pid());
        until("all of its threads have stopped", || {
            let mut threads = std::fs::read_dir(&tasks).ok()?.flatten();
            let has_stopped =
                |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
            let stopped = threads
                .all(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(has_stopped));
            stopped.then_some(())
        });
    }

    /// Waits for its end and for all that it said: the exit code, or 128 + the signal that ended it.
    ///
    /// # Panics
    /// When the deadline passes first.
    pub fn wait_exit(&mut self) -> i32 {
        self.end_expected = true;
        let status = wait_child(&mut self.child)
            .unwrap_or_else(|| panic!("the server did not end; it said:\n{}", self.log.tail()));
        self.log.wait(|_| false);
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for a log line (from the first one on) that fits.
    ///
    /// # Panics
    /// With the last lines when none came in time.
    pub fn wait_log(&self, fits: impl FnMut(&str) -> bool) -> String {
        self.log
            .wait(fits)
            .unwrap_or_else(|| panic!("no such line in the log; it ends with:\n{}", self.log.tail()))
    }

    /// All lines so far.
    pub fn log(&self) -> Vec<String> {
        self.log.all()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        speaks_no_more(&self.tls_addrs);
        let ended = self.child.try_wait().ok().flatten();
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.log.wait(|_| false);
        if std::thread::panicking() {
            eprintln!("the server's last lines:\n{}", self.log.tail());
            return;
        }
        if let (Some(status), false) = (ended, self.end_expected) {
            panic!("the server ended by itself ({status}); its last lines:\n{}", self.log.tail());
        }
        if let Some(line) =
            self.log.all().iter().find(|line| !self.panics_expected && line.contains("panicked at"))
        {
            panic!("the server panicked: {line}\nits last lines:\n{}", self.log.tail());
        }
    }
}

/// The text of one field of a JSON log line, flattened or under `fields`.
pub fn field(line: &str, name: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let value = line.get(name).or_else(|| line.get("fields")?.get(name))?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// The message of a JSON log line.
pub fn message_of(line: &str) -> Option<String> {
    field(line, "message")
}

/// Starts `pushline serve`, and hears what it says.
fn spawn(dir: &Path, before: &[&str], args: &[&str]) -> (Child, Arc<Log>) {
    let mut child = command(dir, before, args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the server's binary runs");
    let log = Log::follow(child.stderr.take().expect("a piped stderr"));
    (child, log)
}

/// `pushline serve` with the tests' log form, the chosen driver and `args`.
fn command(dir: &Path, before: &[&str], args: &[&str]) -> Command {
    let mut command = binary(dir, before);
    command.args(["serve", "--set", "log.format=json", "--set", "log.level=debug"]).args(args);
    for (variable, flag) in [("PUSHLINE_DRIVER", "--driver"), ("PUSHLINE_WORKERS", "--workers")] {
        if let (Ok(value), false) = (std::env::var(variable), args.contains(&flag)) {
            command.args([flag, &value]);
        }
    }
    command
}

/// The binary in `dir`, run by `before`, free of the environment's settings, dying with the thread that starts it.
#[allow(unsafe_code)]
fn binary(dir: &Path, before: &[&str]) -> Command {
    let words: Vec<&str> = before.iter().copied().chain([env!("CARGO_BIN_EXE_pushline")]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(dir);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PUSHLINE_") {
            command.env_remove(name);
        }
    }
    // The symbols of a backtrace take 64 MiB, for good: memory is measured in tests that ask for panics.
    command.env_remove("RUST_BACKTRACE");
    // SAFETY: between fork and exec only an async-signal-safe system call is made.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command
}

/// Waits for its end; `None` at the deadline.
#[allow(unsafe_code)]
fn wait_child(child: &mut Child) -> Option<ExitStatus> {
    if let Some(status) = child.try_wait().expect("our own child") {
        return Some(status);
    }
    let pid = libc::pid_t::try_from(child.id()).expect("a pid");
    // SAFETY: no pointers. The child has not been waited for, so the pid is still its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).expect("a descriptor");
    assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the system call made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // A process descriptor is readable once its process has ended.
    let mut end = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout_ms = i32::try_from(DEADLINE.as_millis()).expect("a few seconds");
    // SAFETY: one entry, which lives through the call.
    let ready = unsafe { libc::poll(&raw mut end, 1, timeout_ms) };
    assert!(ready >= 0, "poll: {}", std::io::Error::last_os_error());
    child.try_wait().expect("our own child")
}

/// What the server said so far; a thread appends, tests wait.
struct Log {
    lines: Mutex<Lines>,
    more: Condvar,
}

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    ended: bool,
}

impl Log {
    fn follow(stderr: impl std::io::Read + Send + 'static) -> Arc<Self> {
        let log = Arc::new(Self { lines: Mutex::default(), more: Condvar::new() });
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stderr);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                line.clear();
                writer.lines.lock().expect("no panic under the lock").all.push(text);
                writer.more.notify_all();
            }
            writer.lines.lock().expect("no panic under the lock").ended = true;
            writer.more.notify_all();
        });
        log
    }

    /// The first line that fits; `None` at the log's end or the deadline.
    fn wait(&self, mut fits: impl FnMut(&str) -> bool) -> Option<String> {
        let end = Instant::now() + DEADLINE;
        let mut lines = self.lines.lock().expect("no panic under the lock");
        let mut seen = 0;
        loop {
            while seen < lines.all.len() {
                if fits(&lines.all[seen]) {
                    return Some(lines.all[seen].clone());
                }
                seen += 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            if lines.ended || left.is_zero() {
                return None;
            }
            lines = self.more.wait_timeout(lines, left).expect("no panic under the lock").0;
        }
    }

    fn all(&self) -> Vec<String> {
        self.lines.lock().expect("no panic under the lock").all.clone()
    }

    fn tail(&self) -> String {
        let all = self.all();
        all[all.len().saturating_sub(30)..].join("\n")
    }
}

/// An empty directory, removed when dropped.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pushline-test-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Descriptors open in any of the process's file tables (each worker may have one of its own).
pub fn descriptors(pid: u32) -> usize {
    let mut count = 0;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    for task in tasks.flatten() {
        count += std::fs::read_dir(task.path().join("fd")).map_or(0, Iterator::count);
    }
    count
}

/// Sockets of a local port in CLOSE_WAIT: closed by the peer, forgotten by us.
pub fn close_waits(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let local = format!(":{port:04X}");
    table
        .lines()
        .skip(1)
        .filter(|line| {
            let mut columns = line.split_ascii_whitespace().skip(1);
            columns.next().is_some_and(|addr| addr.ends_with(&local)) && columns.nth(1) == Some("08")
        })
        .count()
}

/// Waits until a process holds at most `baseline` descriptors and the port no half-closed socket.
pub fn settled(server: &Server, baseline: usize) {
    let what = format!("descriptors back to {baseline} and nothing in CLOSE_WAIT");
    until(&what, || {
        (descriptors(server.pid()) <= baseline
            && server.addrs().iter().chain(server.tls_addrs()).all(|addr| close_waits(addr.port()) == 0))
        .then_some(())
    });
}
