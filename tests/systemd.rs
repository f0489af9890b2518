//! What a service manager and this server say to each other: sd_notify(3) with a socket of the test's own in the manager's
//! place, and listening sockets that are passed (sd_listen_fds(3)).

use crate::common;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::http::{Conn, get, publish};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::tls::{Files, Identity, client, speaks_tls};
use common::until;

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pushline-notify-{}-{count}", std::process::id()));
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(common::DEADLINE)).expect("a timeout above zero");
        Self { socket, path }
    }

    /// Starts a server that tells this manager; `more`: further variables, in which `$$` is the server's pid.
    fn start(&self, more: &str, args: &[&str]) -> Server {
        let path = self.path.to_str().expect("UTF-8");
        start(&format!("export NOTIFY_SOCKET={path} {more}"), args)
    }

    /// The next word that was said: lines of NAME=VALUE.
    fn hear(&self) -> Vec<String> {
        let mut word = [0; 4_096];
        let bytes = self.socket.recv(&mut word).expect("a word in time");
        let text = std::str::from_utf8(&word[..bytes]).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    /// The next word with this line, past others.
    fn wait_for(&self, line: &str) -> Vec<String> {
        loop {
            let word = self.hear();
            if word.iter().any(|is| is == line) {
                return word;
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A server in whose shell something is done first.
fn start(first: &str, args: &[&str]) -> Server {
    let script = format!("{first}; exec \"$@\"");
    let before = ["bash", "-c", &script, "bash"];
    Server::start_under(&before, args)
}

fn value<'w>(word: &'w [String], name: &str) -> &'w str {
    let found = word.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{name} in {word:?}"))
}

const ANYWHERE: &[&str] = &["--listen", "127.0.0.1:0"];

#[test]
fn it_says_when_it_serves_loads_anew_and_stops() {
    let manager = Manager::new();
    let args = [ANYWHERE, &["--set", "drain.window_seconds=2", "--set", "drain.delay_seconds=1"]].concat();
    let mut server = manager.start("", &args);
    let ready = manager.hear();
    assert_eq!(ready[0], "READY=1");
    assert_eq!(value(&ready, "STATUS"), "Serving 0 connections");
    get(server.addr(), "/readyz").expect(200);

    server.signal(libc::SIGHUP);
    let reloading = manager.wait_for("RELOADING=1");
    // Of the clock that the manager compares it with, or it would take it for an older one.
    let uptime = std::fs::read_to_string("/proc/uptime").expect("procfs");
    let uptime_s: f64 = uptime.split(' ').next().expect("seconds").parse().expect("a number");
    let at_s = value(&reloading, "MONOTONIC_USEC").parse::<f64>().expect("a number") / 1e6;
    assert!((at_s - uptime_s).abs() < 3_600.0 && at_s > 0.0, "{at_s} and {uptime_s}");
    assert_eq!(manager.hear(), ["READY=1"]);

    let mut stream = Stream::open(server.addr(), "/channels/a");
    server.signal(libc::SIGTERM);
    let stopping = manager.wait_for("STOPPING=1");
    // However long it is configured to take, it is not killed meanwhile.
    let extend_us: u64 = value(&stopping, "EXTEND_TIMEOUT_USEC").parse().expect("a number");
    assert!(extend_us >= 3_000_000, "{extend_us}");
    assert_eq!(manager.hear(), ["STATUS=Draining: 1 connections left"]);
    stream.event().named("$close");
    assert_eq!(server.wait_exit(), 0);
}

/// The watchdog hears that all is well while every worker answers, and nothing while one does not.
#[test]
fn a_worker_that_hangs_keeps_the_watchdog_waiting() {
    let manager = Manager::new();
    let args = [ANYWHERE, &["--workers", "2"]].concat();
    let server = manager.start("WATCHDOG_USEC=400000 WATCHDOG_PID=$$", &args);
    manager.wait_for("READY=1");
    let beats = |count: usize| {
        let mut moments = vec![Instant::now()];
        moments.extend((0..count).map(|_| {
            manager.wait_for("WATCHDOG=1");
            Instant::now()
        }));
        let pauses = moments.windows(2).map(|two| two[1] - two[0]);
        pauses.max().expect("at least one")
    };
    beats(5);
    let mut conn = Conn::open(server.addr());
    let hung = Instant::now();
    conn.send("GET", "/$debug/hang", &[], "");
    let mut longest = Duration::ZERO;
    while hung.elapsed() < Duration::from_secs(4) {
        longest = longest.max(beats(1));
    }
    assert!(longest >= Duration::from_millis(1_500), "the longest pause: {longest:?}");
    conn.read_response().expect(204);
    let said = server
        .wait_log(|line| message_of(line).is_some_and(|said| said.starts_with("workers do not answer")));
    assert!(field(&said, "workers").is_some_and(|workers| workers.len() == "[0]".len()), "{said}");
}

/// Not for this process: a variable that it has inherited.
#[test]
fn the_watchdog_of_another_process_hears_nothing() {
    let manager = Manager::new();
    let _server = manager.start("WATCHDOG_USEC=100000 WATCHDOG_PID=1", ANYWHERE);
    manager.wait_for("READY=1");
    manager.socket.set_read_timeout(Some(Duration::from_millis(600))).expect("a timeout above zero");
    assert!(manager.socket.recv(&mut [0; 64]).is_err());
}

// --- Sockets that are passed --------------------------------------------------------------------------------------------

/// The shell's words that pass a descriptor of this process on as the first of `LISTEN_FDS`.
#[allow(unsafe_code)]
fn passing(socket: &impl std::os::fd::AsFd, names: &str) -> String {
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: no pointers; the descriptor is open.
    let done = unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    assert_eq!(done, 0, "F_SETFD: {}", std::io::Error::last_os_error());
    format!("exec 3<&{fd}; export LISTEN_PID=$$ LISTEN_FDS=1 {names}")
}

fn refused_with(first: &str, args: &[&str]) -> (Option<i32>, String) {
    let script = format!("{first}; exec \"$@\"");
    let words = ["-c", &script, "bash", env!("CARGO_BIN_EXE_pushline"), "serve"];
    let mut command = std::process::Command::new("bash");
    command.args(words).args(args).current_dir(env!("CARGO_TARGET_TMPDIR"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PUSHLINE_") {
            command.env_remove(name);
        }
    }
    let output = command.output().expect("bash runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A restart refuses nobody: what comes while no process is there waits in the socket for the next.
#[test]
fn a_passed_socket_outlives_its_server() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = socket.local_addr().expect("an address");
    let settings = ["--workers", "4", "--set", "drain.window_seconds=0"];
    let mut server = start(&passing(&socket, "LISTEN_FDNAMES=web"), &settings);
    assert_eq!(server.addr(), addr, "in place of `listen`");
    let mut stream = Stream::open(addr, "/channels/a");
    publish(addr, "a", "hello");
    assert_eq!(stream.texts(1), ["hello"]);

    let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    while !stop.load(Ordering::SeqCst) {
                        let mut conn = Conn::try_open(addr)?;
                        let wire =
                            common::http::wire(addr, "GET", "/healthz", &[("Connection", "close")], b"");
                        conn.try_send_raw(wire)?;
                        assert_eq!(conn.try_read_response()?.status, 200);
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    std::io::Result::Ok(())
                })
            })
            .collect();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                let from = count.load(Ordering::SeqCst);
                until("clients are served", || {
                    let ended = clients.iter().any(std::thread::ScopedJoinHandle::is_finished);
                    (ended || count.load(Ordering::SeqCst) > from + 30).then_some(())
                });
                server.signal(libc::SIGTERM);
                assert_eq!(server.wait_exit(), 0);
                server = start(&passing(&socket, ""), &settings);
            }
        }));
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            let ended = client.join().expect("no panic");
            assert!(ended.is_ok(), "after {} connections: {ended:?}", count.load(Ordering::SeqCst));
        }
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn workers_share_a_passed_socket() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let server = start(&passing(&socket, ""), &["--workers", "3"]);
    let mut threads = Vec::new();
    for _ in 0..8 {
        let addr = server.addr();
        threads.push(std::thread::spawn(move || {
            for _ in 0..50 {
                get(addr, "/healthz").expect(200);
            }
        }));
    }
    threads.into_iter().for_each(|thread| thread.join().expect("all were answered"));
    let ended = until("their ends are in the log", || {
        let mut lines = server.log();
        lines.retain(|line| message_of(line).as_deref() == Some("closed"));
        (lines.len() >= 400).then_some(lines)
    });
    let workers: std::collections::HashSet<_> =
        ended.iter().filter_map(|line| field(line, "worker")).collect();
    assert!(workers.len() > 1, "all by {workers:?}");
}

#[test]
fn what_cannot_be_served_is_refused() {
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let (code, said) = refused_with(&passing(&udp, "LISTEN_FDNAMES=odd"), &[]);
    assert!(
        code == Some(1) && said.contains("\"odd\"") && said.contains("ListenStream="),
        "{code:?}: {said}"
    );

    let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
    let (code, said) = refused_with(&passing(&everywhere, ""), &[]);
    assert!(code == Some(1) && said.contains("not a loopback address"), "{code:?}: {said}");
    let server = start(&passing(&everywhere, ""), &["--open"]);
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, server.addr().port()));
    get(addr, "/healthz").expect(200);
}

/// A unix socket too, and its file stays.
#[test]
fn a_passed_unix_socket_outlives_its_server() {
    let path = std::env::temp_dir().join(format!("pushline-passed-{}.sock", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let socket = UnixListener::bind(&path).expect("a socket");
    let settings = ["--workers", "2", "--set", "drain.window_seconds=0"];
    let mut server = start(&passing(&socket, ""), &settings);
    assert!(server.sockets().iter().eq([&path]));
    Conn::open_unix(&path).get("/healthz").expect(200);
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    let mut early = Conn::open_unix(&path);
    early.send("GET", "/healthz", &[], "");
    let next = start(&passing(&socket, ""), &settings);
    early.read_response().expect(200);
    drop(next);
    std::fs::remove_file(&path).expect("the manager's file is still there");
}

/// By its name, or because it is where `tls.listen` says.
#[test]
fn a_passed_socket_speaks_tls_where_it_is_for_that() {
    let (files, identity) = (Files::new(), Identity::new(&["localhost"]));
    let certificates = format!("tls.certificates=[{}]", identity.write(&files.0, "own"));
    for (names, is_in_listen, is_tls) in
        [("LISTEN_FDNAMES=tls", false, true), ("", true, true), ("LISTEN_FDNAMES=web", false, false)]
    {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = socket.local_addr().expect("an address");
        let listen =
            if is_in_listen { format!("tls.listen={addr}") } else { "tls.listen=127.0.0.1:1".into() };
        let server = start(&passing(&socket, names), &["--set", &listen, "--set", &certificates]);
        if is_tls {
            assert_eq!(server.tls_addrs(), [addr], "{names}");
            speaks_tls(addr, client(&[&identity], rustls::DEFAULT_VERSIONS));
        } else {
            assert_eq!(server.addrs(), [addr], "{names}");
            server.wait_log(|line| message_of(line).is_some_and(|said| said.contains("for tls.listen")));
        }
        get(addr, "/healthz").expect(200);
    }
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (code, said) = refused_with(&passing(&socket, "LISTEN_FDNAMES=tls"), &[]);
    assert!(code == Some(1) && said.contains("there is no certificate"), "{code:?}: {said}");
}

/// Sockets that were passed to another process are none of ours.
#[test]
fn the_sockets_of_another_process_are_left_alone() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let words = passing(&socket, "").replace("LISTEN_PID=$$", "LISTEN_PID=1");
    let server = start(&words, ANYWHERE);
    assert_ne!(server.addr(), socket.local_addr().expect("an address"));
}

/// As systemd starts it, at the first connection.
#[test]
fn systemd_starts_it_by_its_socket() {
    let found = std::process::Command::new("systemd-socket-activate").arg("--version").output();
    if found.is_err() {
        return eprintln!("skipped: no systemd-socket-activate here");
    }
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let listen = free.to_string();
    let client = std::thread::spawn(move || {
        let mut conn = until("somebody listens", || Conn::try_open(free).ok());
        conn.get("/healthz").expect(200);
    });
    let server = Server::start_under(&["systemd-socket-activate", "-l", &listen], &[]);
    client.join().expect("the first connection is served");
    assert_eq!(server.addr(), free);
    assert!(TcpStream::connect(free).is_ok());
}
