//! Unix sockets: every transport by one, its file, its end, and a takeover.

use crate::common;

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::http::{Conn, End, Poll, published};
use common::server::{Server, field, message_of};
use common::sse::{Item, Stream};
use common::until;
use common::ws::{Socket, V1, V1_NAME, request};
use serde_json::json;

/// A folder of the test's own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("pushline-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("a.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn listen(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn start(path: &Path, args: &[&str]) -> Server {
    let listen = listen(path);
    let server = Server::start_bare(&[&["--listen", &listen], args].concat());
    assert_eq!(server.sockets(), [path]);
    server
}

fn websocket(path: &Path, target: &str, v1: bool) -> Socket {
    let mut conn = Conn::open_unix(path);
    let addr = "127.0.0.1:80".parse().expect("an address");
    let headers: &[(&str, &str)] = if v1 { &[("Sec-WebSocket-Protocol", V1_NAME)] } else { &[] };
    conn.send_raw(request(addr, target, headers));
    Socket::of(conn).expect("a handshake")
}

#[test]
fn every_transport_comes_by_it() {
    let folder = Folder::new("transports");
    let path = folder.socket();
    let _server = start(&path, &[]);
    let mut conn = Conn::open_unix(&path);
    let cursor = Poll::of(&conn.get("/channels/c?limit=0")).cursor;
    let mut held = Conn::open_unix(&path);
    held.send("GET", &format!("/channels/c?cursor={cursor}&wait=40"), &[], "");
    let mut asking = Conn::open_unix(&path);
    asking.send("GET", "/channels/c", &[("Accept", "text/event-stream")], "");
    let mut events = Stream::of(asking);
    events.event().named("$open");
    let mut raw = websocket(&path, "/channels/c", false);
    let mut v1 = V1::of(websocket(&path, "/channels/c", true));
    v1.expect("subscribed");

    let id = published(&conn.request("POST", "/channels/c", &[("Content-Type", "text/plain")], "hello"));
    assert_eq!(Poll::of(&held.read_response()).ids(), [id.as_str()]);
    assert_eq!(events.message().data, "hello");
    assert_eq!(raw.expect_text(), "hello");
    assert_eq!(v1.expect("message")["data"], "hello");
    raw.text("from raw");
    assert_eq!(events.message().data, "from raw");
    assert_eq!(v1.expect("message")["data"], "from raw");
    v1.ask(json!({"type": "publish", "channel": "d", "data": 1}), "published");
    assert_eq!(Poll::of(&held.get("/channels/d")).data(), [json!(1)]);
}

#[test]
fn hosts_and_origins_are_those_of_loopback() {
    let folder = Folder::new("hosts");
    let path = folder.socket();
    let _server = start(&path, &[]);
    let ask = |headers: &[(&str, &str)]| Conn::open_unix(&path).request("GET", "/healthz", headers, "");
    ask(&[("Host", "localhost")]).expect(200);
    ask(&[("Host", "evil.example")]).problem(403);
    ask(&[("Host", "localhost"), ("Origin", "https://evil.example")]).problem(403);
    ask(&[("Host", "localhost"), ("Origin", "http://localhost:3000")]).expect(200);
}

#[test]
fn the_file_has_its_permissions_and_goes_at_the_end() {
    let folder = Folder::new("file");
    let path = folder.socket();
    for (args, want) in [(&[][..], 0o660), (&["--set", "unix_mode=0600"], 0o600)] {
        let mut server = start(&path, args);
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o777, want);
        server.signal(libc::SIGTERM);
        assert_eq!(server.wait_exit(), 0);
        assert!(!path.exists());
    }
    // And when the second signal cuts a drain short.
    let mut server = start(&path, &["--set", "drain.window_seconds=600"]);
    let _held = websocket(&path, "/channels/c", false);
    server.signal(libc::SIGTERM);
    server.wait_log(|line| message_of(line).as_deref() == Some("draining"));
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit(), 128 + libc::SIGTERM);
    assert!(!path.exists());
}

#[test]
fn what_a_dead_process_left_is_replaced_and_nothing_else() {
    let folder = Folder::new("stale");
    let path = folder.socket();
    drop(UnixListener::bind(&path).expect("a socket"));
    let mut server = start(&path, &[]);
    Conn::open_unix(&path).get("/healthz").expect(200);
    // One that serves.
    let refused = Server::refused(&["--listen", &listen(&path)]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("is taken") && refused.stderr.contains("--takeover"),
        "{}",
        refused.stderr
    );
    Conn::open_unix(&path).get("/healthz").expect(200);
    // Killed, it leaves its file.
    server.signal(libc::SIGKILL);
    server.wait_exit();
    assert!(path.exists());
    drop(start(&path, &[]));
    // What is no socket, whoever asks.
    let precious = folder.0.join("precious");
    fs::write(&precious, "text").expect("a file");
    for args in [&[][..], &["--takeover"]] {
        let refused = Server::refused(&[&["--listen", &listen(&precious)], args].concat());
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("no socket"), "{}", refused.stderr);
    }
    assert_eq!(fs::read_to_string(&precious).expect("it is there"), "text");
    // A folder that is not there.
    let refused = Server::refused(&["--listen", &listen(&folder.0.join("none/a.sock"))]);
    assert!(refused.stderr.contains("cannot listen on unix:"), "{}", refused.stderr);
}

#[test]
fn all_workers_accept_from_it() {
    let folder = Folder::new("workers");
    let path = folder.socket();
    for files in ["per-worker", "shared"] {
        let server = start(&path, &["--workers", "3", "--files", files]);
        until("each worker had a connection", || {
            let conns: Vec<_> = (0..60)
                .map(|_| {
                    let mut conn = Conn::open_unix(&path);
                    conn.send("GET", "/healthz", &[("Connection", "close")], "");
                    conn
                })
                .collect();
            conns.into_iter().for_each(|mut conn| drop(conn.read_response().expect(200)));
            let log = server.log();
            let closed = log.iter().filter(|line| message_of(line).as_deref() == Some("closed"));
            let workers: HashSet<_> = closed.filter_map(|line| field(line, "worker")).collect();
            (workers.len() == 3).then_some(())
        });
    }
}

#[test]
fn a_reader_that_stops_costs_little_and_is_told() {
    let folder = Folder::new("slow");
    let path = folder.socket();
    let _server = start(&path, &["--set", "history.messages=50", "--set", "feed.bytes=65536"]);
    let mut asking = Conn::open_unix(&path);
    asking.send("GET", "/channels/c", &[("Accept", "text/event-stream")], "");
    let mut events = Stream::of(asking);
    events.event().named("$open");
    let mut publisher = Conn::open_unix(&path);
    let text = "x".repeat(4_000);
    for at in 0..220 {
        let body = format!("{at} {text}");
        published(&publisher.request("POST", "/channels/c", &[("Content-Type", "text/plain")], body));
    }
    let mut next = 0;
    loop {
        let event = events.event();
        if event.name == "$close" {
            assert_eq!(event.json()["reason"], "slow");
            break;
        }
        assert!(event.expect_message().data.starts_with(&format!("{next} ")), "in order");
        next += 1;
    }
    assert!((1..220).contains(&next), "{next} of 220 came");
    while !matches!(events.item(), None | Some(Item::Event(_))) {}
}

/// Connects, asks, and reads the answer.
fn ask_once(path: &Path) -> std::io::Result<()> {
    let mut conn = Conn::try_open_unix(path)?;
    conn.try_send_raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    conn.expect_answer_to("GET");
    conn.try_read_response()?.expect(200);
    Ok(())
}

/// Again and again, under load: each process ends, and each client is answered.
#[test]
fn a_takeover_refuses_nobody() {
    const TIMES: usize = 6;
    let folder = Folder::new("takeover");
    let path = folder.socket();
    let args = ["--workers", "3", "--set", "drain.window_seconds=0.3"];
    let mut old = start(&path, &args);
    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let fault = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match ask_once(&path) {
                        Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => drop(fault.lock().expect("no panic").get_or_insert(error)),
                    }
                }
            });
        }
        let served = |count: usize| {
            let start = answered.load(Ordering::Relaxed);
            until("clients are served", || (answered.load(Ordering::Relaxed) >= start + count).then_some(()));
            let fault = fault.lock().expect("no panic");
            assert!(fault.is_none(), "after {start} answers: {fault:?}");
        };
        // Whatever fails below, the clients must end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..TIMES {
                let mut held: Vec<_> = (0..8).map(|_| websocket(&path, "/channels/c", false)).collect();
                served(20);
                // Each hears of the one before by its path.
                let new = start(&path, &[&args[..], &["--takeover"]].concat());
                for socket in &mut held {
                    socket.expect_close(1012);
                }
                drop(held);
                assert_eq!(old.wait_exit(), 0);
                old = new;
                assert_eq!(old.sockets(), [path.as_path()], "the one before left the file alone");
                served(20);
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(ask_once(&path).is_ok());
}

#[test]
fn a_takeover_takes_from_no_stranger() {
    let folder = Folder::new("stranger");
    let path = folder.socket();
    let stranger = UnixListener::bind(&path).expect("a socket");
    let refused = Server::refused(&["--listen", &listen(&path), "--takeover"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("is taken, and not by a Pushline"), "{}", refused.stderr);
    // It is still reached, and nothing else lies beside it.
    let mut client = UnixStream::connect(&path).expect("a listener");
    client.write_all(b"x").expect("connected");
    drop(stranger);
    assert_eq!(fs::read_dir(&folder.0).expect("a folder").count(), 1);
}

#[test]
fn ports_and_sockets_together() {
    let folder = Folder::new("both");
    let path = folder.socket();
    let server = Server::start_bare(&["--listen", "127.0.0.1:0", "--listen", &listen(&path)]);
    common::http::publish(server.addr(), "c", "by the port");
    let poll = Poll::of(&Conn::open_unix(&path).get("/channels/c"));
    assert_eq!(poll.data(), [json!("by the port")]);
    // Closed without an answer beyond the limit, like any other.
    let server = start(&folder.0.join("b.sock"), &["--set", "limits.connections=1"]);
    let mut first = Conn::open_unix(&server.sockets()[0]);
    first.get("/healthz").expect(200);
    let mut second = Conn::open_unix(&server.sockets()[0]);
    let _ = second.try_send_raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_ne!(second.end_within(Duration::from_secs(5)), End::Bytes);
}
