//! Starting and stopping, and what is left behind by those who come and go.

use crate::common;

use std::collections::HashSet;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use common::http::{AT_ONCE, Conn, Poll, get, head_cursor, poll, post, publish, timed};
use common::server::{Server, descriptors, settled};
use common::until;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");

#[test]
fn a_taken_port_is_refused() {
    let server = Server::start(&[]);
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    for addr in [server.addr(), other.local_addr().expect("an address")] {
        let refusal = Server::refused(&["--listen", &addr.to_string()]);
        assert!(refusal.code.is_some_and(|code| code != 0), "{:?}", refusal.code);
        assert!(refusal.stderr.contains(&addr.port().to_string()), "names the port: {}", refusal.stderr);
    }
    get(server.addr(), "/healthz").expect(200);
    // One taken port of two is a refusal too.
    let refusal = Server::refused(&["--listen", "127.0.0.1:0", "--listen", &server.addr().to_string()]);
    assert_ne!(refusal.code, Some(0));
}

#[test]
fn a_port_is_free_again_after_the_end() {
    let mut server = Server::start(&["--set", "drain.window_seconds=0.1"]);
    let addr = server.addr();
    let mut kept = Conn::open(addr);
    kept.get("/healthz").expect(200);
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    let again = Server::start_bare(&["--listen", &addr.to_string()]);
    get(again.addr(), "/healthz").expect(200);
}

#[test]
fn it_says_that_anyone_may_read_and_publish() {
    let server = Server::start(&[]);
    server.wait_log(|line| line.contains("anyone"));
}

#[test]
fn without_authentication_no_other_address_without_open() {
    let refusal = Server::refused(&["--listen", "0.0.0.0:0"]);
    assert!(refusal.code.is_some_and(|code| code != 0));
    assert!(refusal.stderr.contains("--open"), "{}", refusal.stderr);
    let server = Server::start_bare(&["--listen", "0.0.0.0:0", "--open"]);
    let addr = format!("127.0.0.1:{}", server.addr().port()).parse().expect("an address");
    get(addr, "/healthz").expect(200);
}

#[test]
fn several_listeners_are_one_server() {
    let mut listen = vec!["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"];
    let v6 = TcpListener::bind("[::1]:0").is_ok();
    if v6 {
        listen.extend(["--listen", "[::1]:0"]);
    }
    let server = Server::start_bare(&listen);
    assert_eq!(server.addrs().len(), if v6 { 3 } else { 2 });
    assert_eq!(
        server.addrs().iter().map(std::net::SocketAddr::port).filter(|port| *port != 0).count(),
        server.addrs().len()
    );
    let id = publish(server.addrs()[0], "shared", "x");
    for addr in server.addrs() {
        get(*addr, "/healthz").expect(200);
        assert_eq!(poll(*addr, "/channels/shared").ids(), std::slice::from_ref(&id));
    }
}

#[test]
fn settings_are_heard() {
    let server = Server::start(&["--set", "limits.message_bytes=4", "--set", "history.messages=2"]);
    post(server.addr(), "/channels/set", &[TEXT], "12345").problem(413);
    for n in 0..4 {
        publish(server.addr(), "set", &n.to_string());
    }
    assert_eq!(poll(server.addr(), "/channels/set?limit=9").messages.len(), 2);
    let refusal = Server::refused(&["--set", "limits.mesage_bytes=4"]);
    assert!(refusal.code.is_some_and(|code| code != 0));
    assert!(refusal.stderr.contains("limits.message_bytes"), "the nearest right one: {}", refusal.stderr);
}

#[test]
fn both_drivers_serve_on_any_number_of_workers() {
    for args in [["--driver", "epoll", "--workers", "1"], ["--driver", "auto", "--workers", "5"]] {
        let server = Server::start(&args);
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("a process").count();
        assert!(tasks >= args[3].parse().expect("a number"), "{tasks} tasks with {args:?}");
        for n in 0..20 {
            let channel = format!("c{n}");
            let cursor = head_cursor(server.addr(), &channel);
            let mut held = Conn::open(server.addr());
            held.send("GET", &format!("/channels/{channel}?cursor={cursor}&wait=40"), &[], "");
            let id = publish(server.addr(), &channel, "x");
            assert_eq!(Poll::of(&held.read_response()).ids(), [id], "{args:?}");
        }
    }
}

// --- Stopping -------------------------------------------------------------------------------------------------------

#[test]
fn sigterm_and_sigint_end_with_0() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // With nobody there, and with all kinds of company.
        for company in [false, true] {
            let mut server = Server::start(&["--set", "drain.window_seconds=0.5"]);
            let addr = server.addr();
            let conns: Vec<_> = if company {
                Kind::ALL.iter().map(|kind| open(&server, *kind)).collect()
            } else {
                Vec::new()
            };
            server.signal(signal);
            assert_eq!(server.wait_exit(), 0, "signal {signal}, company: {company}");
            drop(conns);
            assert!(Conn::try_open(addr).is_err(), "nobody listens");
        }
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    for (first, second) in [
        (libc::SIGTERM, libc::SIGTERM),
        (libc::SIGINT, libc::SIGTERM),
        (libc::SIGTERM, libc::SIGINT),
        (libc::SIGINT, libc::SIGINT),
    ] {
        let mut server = Server::start(&["--set", "drain.window_seconds=3600"]);
        let streams: Vec<_> = (0..20).map(|_| open(&server, Kind::Stream)).collect();
        server.signal(first);
        until("it stops accepting", || Conn::try_open(server.addr()).is_err().then_some(()));
        assert!(server.alive(), "it waits for its clients");
        server.signal(second);
        let (code, took) = timed(|| server.wait_exit());
        assert_eq!(code, 128 + second, "it tells which signal ended it");
        assert!(took < AT_ONCE, "{took:?}");
        drop(streams);
    }
}

/// A publish that was on its way when the end began: done, or refused for now, and the connection ends.
#[test]
fn a_publish_during_the_drain_is_answered() {
    let mut server = Server::start(&["--set", "drain.window_seconds=3600"]);
    let streams: Vec<_> = (0..20).map(|_| open(&server, Kind::Stream)).collect();
    let mut conn = open(&server, Kind::HalfBody);
    conn.quiet(Duration::from_millis(100));
    server.signal(libc::SIGTERM);
    until("it stops accepting", || Conn::try_open(server.addr()).is_err().then_some(()));
    conn.send_raw("-done");
    let answer = conn.read_response();
    assert!([201, 503].contains(&answer.status) && answer.closes(), "{answer}");
    if answer.status == 503 {
        answer.problem(503);
        assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{answer}");
    }
    conn.eof();
    drop(streams);
}

#[test]
fn a_takeover_refuses_nobody() {
    let mut old = Server::start(&["--set", "drain.window_seconds=0.5"]);
    let addr = old.addr();
    // On every worker, or nearly: each has its own part in the end.
    let mut held: Vec<_> = (0..16).map(|_| open(&old, Kind::Held)).collect();
    let new = Server::start_bare(&["--listen", &addr.to_string(), "--takeover"]);
    for _ in 0..50 {
        get(addr, "/healthz").expect(200);
    }
    for conn in &mut held {
        conn.read_response().expect(204);
    }
    assert_eq!(old.wait_exit(), 0);
    for _ in 0..50 {
        get(new.addr(), "/healthz").expect(200);
    }
}

// --- Nothing is left behind -----------------------------------------------------------------------------------------

/// What a connection was doing when it ended.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Silent,
    HalfHead,
    HalfBody,
    Idle,
    Unread,
    Refused,
    Held,
    Stream,
    Raw,
    V1,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Silent,
        Self::HalfHead,
        Self::HalfBody,
        Self::Idle,
        Self::Unread,
        Self::Refused,
        Self::Held,
        Self::Stream,
        Self::Raw,
        Self::V1,
    ];
}

/// Opens a connection and brings it to where it will end.
fn open(server: &Server, kind: Kind) -> Conn {
    let mut conn = Conn::open(server.addr());
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    match kind {
        Kind::Silent => {}
        Kind::HalfHead => conn.send_raw("GET /healthz HTTP/1.1\r\nHost: lo"),
        Kind::HalfBody => {
            conn.send_raw(
                "POST /channels/churn HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf",
            );
        }
        Kind::Idle => drop(conn.get("/healthz").expect(200)),
        Kind::Unread => (0..3).for_each(|_| conn.send("GET", "/channels/churn?limit=9", &[], "")),
        Kind::Refused => {
            conn.send_raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\nrest")
        }
        Kind::Held => {
            let cursor = Poll::of(&conn.get("/channels/churn?limit=0")).cursor;
            conn.send("GET", &format!("/channels/churn?cursor={cursor}&wait=50"), &[], "");
        }
        Kind::Stream => {
            conn.send("GET", "/channels/churn", &[("Accept", "text/event-stream")], "");
            conn.read_head().expect(200);
        }
        Kind::Raw => {
            conn.send_raw(format!("GET /channels/churn HTTP/1.1\r\nHost: localhost\r\n{upgrade}\r\n"));
            conn.read_head().expect(101);
        }
        Kind::V1 => {
            conn.send_raw(format!(
                "GET /channels/churn,other HTTP/1.1\r\nHost: localhost\r\n{upgrade}Sec-WebSocket-Protocol: pushline.v1\r\n\r\n"
            ));
            conn.read_head().expect(101);
        }
    }
    conn
}

/// Two thousand connections, in every state, closed, aborted and half-closed: no descriptor and no socket stays.
#[test]
fn churn_leaves_nothing_behind() {
    for files in ["shared", "per-worker"] {
        let server = Server::start(&["--files", files]);
        publish(server.addr(), "churn", "x");
        // What is made once, when first needed, may stay.
        let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("a process").count();
        let baseline = descriptors(server.pid()) + 4 * tasks;
        for round in 0..10 {
            let mut conns = Vec::new();
            for n in 0..100 {
                conns.push(open(&server, Kind::ALL[n % Kind::ALL.len()]));
            }
            if round == 5 {
                // Some end while a message is on its way to them.
                publish(server.addr(), "churn", "y");
            }
            let mut half_closed = Vec::new();
            for (n, mut conn) in conns.into_iter().enumerate() {
                match (n / Kind::ALL.len() + round) % 3 {
                    0 => drop(conn),
                    1 => conn.abort(),
                    _ => {
                        conn.shutdown_write();
                        conn.set_timeout(Duration::from_millis(1));
                        half_closed.push(conn);
                    }
                }
            }
            drop(half_closed);
        }
        settled(&server, baseline);
        get(server.addr(), "/healthz").expect(200);
    }
}

/// A client that says that it will send no more, and waits for nothing, is let go.
#[test]
fn a_half_closed_connection_ends() {
    let server = Server::start(&[]);
    for kind in Kind::ALL {
        let mut conn = open(&server, kind);
        conn.shutdown_write();
        // Whatever is said before it: the end comes, and by FIN.
        conn.take_all().unwrap_or_else(|error| panic!("{kind:?}: {error}"));
    }
}

/// The different file tables of a process: which open files each thread sees.
fn tables(pid: u32) -> HashSet<Vec<PathBuf>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process");
    tasks
        .flatten()
        .map(|task| {
            let mut files: Vec<_> = std::fs::read_dir(task.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|file| std::fs::read_link(file.path()).ok())
                .collect();
            files.sort();
            files
        })
        .collect()
}

#[test]
fn each_worker_may_have_a_file_table_of_its_own() {
    let server = Server::start(&["--files", "per-worker", "--workers", "3"]);
    let conns: Vec<_> = (0..60).map(|_| open(&server, Kind::Idle)).collect();
    let count = tables(server.pid()).len();
    assert!(count >= 4, "main's and three workers', not {count}");
    drop(conns);
    // Mailboxes and their descriptors work across tables.
    for n in 0..10 {
        let channel = format!("t{n}");
        let cursor = head_cursor(server.addr(), &channel);
        let mut held = Conn::open(server.addr());
        held.send("GET", &format!("/channels/{channel}?cursor={cursor}&wait=40"), &[], "");
        let id = publish(server.addr(), &channel, "x");
        assert_eq!(Poll::of(&held.read_response()).ids(), [id]);
    }
    let server = Server::start(&["--files", "shared", "--workers", "3"]);
    let conns: Vec<_> = (0..20).map(|_| open(&server, Kind::Idle)).collect();
    // Threads are looked at one after the other: what opens or closes meanwhile is seen by some.
    until("all threads see the same files", || (tables(server.pid()).len() == 1).then_some(()));
    drop(conns);
}
