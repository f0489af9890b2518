//! One process taking the place of another on the same port, again and again, under load: no connection is refused or
//! reset, each publish is answered or was never done, every reader is told and comes back; and when the new process
//! cannot start, the old one has not noticed.

use crate::common;

use std::collections::HashSet;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::http::{Conn, End, get, publish};
use common::server::{Server, field, message_of};
use common::sse::{Item, Stream};
use common::until;
use common::ws::V1;

const TEXT: &[(&str, &str)] = &[("Content-Type", "text/plain")];
const SETTINGS: &[&str] = &[
    "--set",
    "drain.window_seconds=0.5",
    "--set",
    "history.messages=1000000",
    "--set",
    "history.bytes=64MiB",
];
const CONNECTORS: usize = 3;
const PUBLISHERS: usize = 2;
const READERS: usize = 12;

/// What went on while processes came and went.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    connects: AtomicUsize,
    /// Each publish: answered by 201; by 503; or not at all, the connection having ended.
    accepted: Mutex<Vec<String>>,
    refused: AtomicUsize,
    unanswered: Mutex<Vec<String>>,
    /// The first thing that went wrong.
    fault: Mutex<Option<String>>,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn fail(&self, what: String) {
        self.fault.lock().expect("no panic").get_or_insert(what);
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits until so much more was done; says what went wrong instead.
    fn goes_further(&self, connects: usize, publishes: usize) {
        let accepted = || self.accepted.lock().expect("no panic").len();
        let from = (self.connects.load(Ordering::SeqCst), accepted());
        until("clients are served", || {
            let done =
                self.connects.load(Ordering::SeqCst) >= from.0 + connects && accepted() >= from.1 + publishes;
            (done || !self.goes_on()).then_some(())
        });
        self.check();
    }

    fn check(&self) {
        let fault = self.fault.lock().expect("no panic").clone();
        let connects = self.connects.load(Ordering::SeqCst);
        assert!(fault.is_none(), "after {connects} connections: {}", fault.unwrap_or_default());
    }
}

/// Connects, asks, reads the answer to the end.
fn connect_once(addr: SocketAddr) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(addr)?;
    socket.set_read_timeout(Some(common::DEADLINE))?;
    write!(socket, "GET /healthz HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") || answer.starts_with(b"HTTP/1.1 503 ") {
        return Ok(());
    }
    Err(std::io::Error::other(format!("answered {:?}", String::from_utf8_lossy(&answer))))
}

fn connect_all_the_time(addr: SocketAddr, load: &Load) {
    while load.goes_on() {
        match connect_once(addr) {
            Ok(()) => drop(load.connects.fetch_add(1, Ordering::SeqCst)),
            Err(error) => load.fail(format!("a connection: {error}")),
        }
    }
}

/// Publishes by one connection after the other, each for as long as it lasts.
fn publish_all_the_time(addr: SocketAddr, publisher: usize, load: &Load) {
    let mut number = 0;
    while load.goes_on() {
        let mut conn = match Conn::try_open(addr) {
            Ok(conn) => conn,
            Err(error) => return load.fail(format!("a publisher's connection: {error}")),
        };
        while load.goes_on() {
            number += 1;
            let text = format!("{publisher}/{number}");
            let wire = common::http::wire(addr, "POST", "/channels/busy", TEXT, text.as_bytes());
            match conn.try_send_raw(wire).and_then(|()| conn.try_read_response()) {
                Ok(answer) if answer.status == 201 => {
                    load.accepted.lock().expect("no panic").push(text);
                    if answer.closes() {
                        break;
                    }
                }
                Ok(answer) if answer.status == 503 && answer.closes() => {
                    load.refused.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                Ok(answer) => return load.fail(format!("a publish: {answer}")),
                // Between two requests a connection may end, and a client cannot know which came first. Then nothing was
                // done; it is judged below.
                Err(error) if conn.ahead().is_empty() && is_end(error.kind()) => {
                    load.unanswered.lock().expect("no panic").push(text);
                    break;
                }
                Err(error) => return load.fail(format!("a publish, half answered: {error}")),
            }
        }
    }
}

fn is_end(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Reads a stream to its `$close`, and puts its messages into `texts`.
fn read_until_told(stream: &mut Stream, texts: &Mutex<Vec<String>>) {
    loop {
        match stream.item().expect("`$close` comes before the end") {
            Item::Event(event) if event.name == "$close" => {
                assert_eq!(event.json()["reason"], "drain");
                stream.ended();
                return;
            }
            Item::Event(event) => texts.lock().expect("no panic").push(event.expect_message().data),
            Item::Retry(_) | Item::Comment(_) => {}
        }
    }
}

fn start(addr: &str, workers: &str, takeover: bool) -> Server {
    let mut args = vec!["--listen", addr, "--workers", workers];
    args.extend(SETTINGS);
    if takeover {
        args.push("--takeover");
    }
    Server::start_bare(&args)
}

/// Through processes with so many workers each.
fn hand_on(workers: &[&str]) {
    let mut old = start("127.0.0.1:0", workers[0], false);
    let addr = old.addr();
    let load = Load::default();
    // By process: what its readers have read.
    let mut read: Vec<Vec<String>> = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTORS {
            scope.spawn(|| connect_all_the_time(addr, &load));
        }
        for publisher in 0..PUBLISHERS {
            let load = &load;
            scope.spawn(move || publish_all_the_time(addr, publisher, load));
        }
        // Whatever fails below, the clients must end.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for &count in &workers[1..] {
                load.goes_further(100, 50);
                // From the beginning, so that each has all that this process ever took.
                let mut streams: Vec<Stream> =
                    (0..READERS).map(|_| Stream::open(addr, "/channels/busy?history=1000000")).collect();
                let mut v1s: Vec<V1> = (0..READERS).map(|_| V1::subscribed(addr, "calm").0).collect();
                let lists: Vec<Mutex<Vec<String>>> = streams.iter().map(|_| Mutex::default()).collect();
                let new = std::thread::scope(|scope| {
                    for (stream, texts) in streams.iter_mut().zip(&lists) {
                        scope.spawn(|| read_until_told(stream, texts));
                    }
                    // A reader that is far behind cannot have all within the window.
                    let mark = load.accepted.lock().expect("no panic").last().cloned().expect("some");
                    for texts in &lists {
                        let has_read =
                            || texts.lock().expect("no panic").iter().rev().any(|text| *text == mark);
                        until("readers are level", || has_read().then_some(()));
                    }
                    start(&addr.to_string(), count, true)
                });
                let lists: Vec<Vec<String>> =
                    lists.into_iter().map(|texts| texts.into_inner().expect("no panic")).collect();
                // All in one order, and nothing left out. One that does not take the last in time has less: what is
                // owed to it is bounded by the window.
                let longest = lists.iter().max_by_key(|list| list.len()).cloned().expect("readers");
                for list in &lists {
                    assert!(
                        longest.starts_with(list),
                        "readers of one process: {} and {}",
                        list.len(),
                        longest.len()
                    );
                }
                read.push(longest);
                for v1 in &mut v1s {
                    assert_eq!(v1.expect("closing")["reason"], "drain");
                    v1.socket.expect_close(1012);
                }
                // By its last cursor, to the process that is there now.
                let mut back = Stream::resume(addr, "/channels/busy", streams[0].last_id());
                back.event().named("$gap");
                assert_eq!(old.wait_exit(), 0, "the old process ends well");
                old = new;
                load.goes_further(200, 50);
            }
        }));
        load.stop.store(true, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    load.check();
    publish(addr, "busy", "end");
    let mut last = Stream::open(addr, "/channels/busy?history=1000000");
    let texts = std::iter::from_fn(|| Some(last.message().data).filter(|text| text != "end"));
    read.push(texts.collect());
    judge(&load, &read);
}

/// Each publish that was answered is in one process's order, and none that was not.
fn judge(load: &Load, read: &[Vec<String>]) {
    let (accepted, unanswered) =
        (load.accepted.lock().expect("no panic"), load.unanswered.lock().expect("no panic"));
    eprintln!(
        "{} connections; publishes: {} accepted ({:?} by process), {} refused, {} not answered",
        load.connects.load(Ordering::SeqCst),
        accepted.len(),
        read.iter().map(Vec::len).collect::<Vec<_>>(),
        load.refused.load(Ordering::SeqCst),
        unanswered.len(),
    );
    let all: Vec<&String> = read.iter().flatten().collect();
    let distinct: HashSet<&String> = all.iter().copied().collect();
    assert_eq!(distinct.len(), all.len(), "no message twice");
    let lost: Vec<_> = accepted.iter().filter(|text| !distinct.contains(text)).collect();
    assert!(lost.is_empty(), "answered by 201, and never delivered: {lost:?}");
    let silent: Vec<_> = unanswered.iter().filter(|text| distinct.contains(text)).collect();
    assert!(silent.is_empty(), "done, and not answered: {silent:?}");
    for list in read {
        let mut last = [0; PUBLISHERS];
        for text in list {
            let (publisher, number) = text.split_once('/').expect("PUBLISHER/NUMBER");
            let (publisher, number) =
                (publisher.parse::<usize>().expect("a number"), number.parse::<u64>().expect("a number"));
            assert!(std::mem::replace(&mut last[publisher], number) < number, "in order: {text}");
        }
    }
}

#[test]
fn as_many_workers() {
    hand_on(&["1", "1", "4", "4"]);
}

#[test]
fn more_and_fewer_workers() {
    hand_on(&["2", "4", "2", "1", "3"]);
}

/// Soon after the old process takes no connections any more the kernel spreads them over the new one's workers again: not
/// all to one. That 64 of them come to two of four by chance happens once in 10^18 times.
#[test]
fn the_new_process_shares_its_connections_among_its_workers() {
    let mut old = start("127.0.0.1:0", "2", false);
    let addr = old.addr();
    let _reader = Stream::open(addr, "/channels/a");
    let new = Server::start_bare(&[
        "--listen",
        &addr.to_string(),
        "--workers",
        "4",
        "--takeover",
        "--set",
        "drain.window_seconds=0",
    ]);
    assert_eq!(old.wait_exit(), 0);
    // Of each connection's end there is a line, with its worker.
    let ends = || {
        let lines = new.log().into_iter().filter(|line| message_of(line).as_deref() == Some("closed"));
        lines.filter_map(|line| field(&line, "worker")).collect::<Vec<String>>()
    };
    until("connections are spread", || {
        let before = ends().len();
        let mut conns: Vec<Conn> = (0..64).map(|_| Conn::open(addr)).collect();
        for conn in &mut conns {
            conn.get("/healthz").expect(200);
        }
        drop(conns);
        let ended = until("their ends are in the log", || {
            let ended = ends().split_off(before);
            (ended.len() >= 64).then_some(ended)
        });
        let workers: HashSet<&String> = ended.iter().collect();
        (workers.len() >= 3).then_some(())
    });
}

/// Whatever keeps the new process from serving is found out before the old one is asked, or anyone comes to the new one.
#[test]
fn a_new_process_that_cannot_start_changes_nothing() {
    let old = start("127.0.0.1:0", "2", false);
    let addr = old.addr();
    let load = Load::default();
    let mut stream = Stream::open(addr, "/channels/a");
    // Not to be shared: no SO_REUSEPORT.
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("an address").to_string();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTORS {
            scope.spawn(|| connect_all_the_time(addr, &load));
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..3 {
                load.goes_further(50, 0);
                let listen = addr.to_string();
                let refused = Server::refused(&["--takeover", "--listen", &listen, "--listen", &taken]);
                assert_eq!(refused.code, Some(1), "{}", refused.stderr);
                assert!(refused.stderr.contains(&taken), "{}", refused.stderr);
                load.goes_further(50, 0);
                get(addr, "/readyz").expect(200);
            }
        }));
        load.stop.store(true, Ordering::SeqCst);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    load.check();
    publish(addr, "a", "still here");
    assert_eq!(stream.texts(1), ["still here"]);
    assert_eq!(stream.conn().end_within(Duration::from_millis(1)), End::Open);
    assert!(!old.log().iter().any(|line| message_of(line).as_deref() == Some("draining")));
}

/// A port that nobody serves is simply taken; one that somebody else serves is not.
#[test]
fn a_takeover_from_nobody() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let server = start(&free.to_string(), "1", true);
    get(server.addr(), "/readyz").expect(200);
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = other.local_addr().expect("an address").to_string();
    let refused = Server::refused(&["--takeover", "--listen", &taken]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("not by a Pushline of this user"), "{}", refused.stderr);
}

/// Who takes over, and does not listen at all that the other did, is seen.
#[test]
fn an_address_that_nobody_serves_any_more_is_told() {
    let mut old = Server::start_bare(&["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    let [kept, left] = *old.addrs() else { panic!("two addresses: {:?}", old.addrs()) };
    let _new = start(&kept.to_string(), "1", true);
    let line = old.wait_log(|line| field(line, "at").is_some_and(|at| at == left.to_string()));
    assert_eq!(field(&line, "level").as_deref(), Some("WARN"), "{line}");
    assert_eq!(old.wait_exit(), 0);
    get(kept, "/readyz").expect(200);
    let told = |addr: SocketAddr| old.log().iter().any(|line| field(line, "at") == Some(addr.to_string()));
    assert!(!told(kept), "somebody serves it");
}

/// While it waits for its load balancers to notice, a node may still be replaced: then nobody need be waited for.
#[test]
fn a_node_that_waits_to_be_noticed_is_taken_over() {
    let mut old = Server::start(&["--set", "drain.delay_seconds=3600", "--set", "drain.window_seconds=0"]);
    let addr = old.addr();
    let mut stream = Stream::open(addr, "/channels/a");
    old.signal(libc::SIGTERM);
    until("readiness ends", || (get(addr, "/readyz").status == 503).then_some(()));
    let _new = start(&addr.to_string(), "1", true);
    read_until_told(&mut stream, &Mutex::default());
    assert_eq!(old.wait_exit(), 0);
    get(addr, "/readyz").expect(200);
}

/// Starts two processes with the same arguments in the same moment, and waits until each serves or has refused. What is
/// done with those that served comes then: they last as long as their threads do.
fn start_two(args: &[&str], then: impl FnOnce(&mut [Option<Server>; 2])) {
    let begin = std::sync::Barrier::new(3);
    let (seen_tx, seen) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let keep: [_; 2] = std::array::from_fn(|_| {
            let (keep_tx, keep) = std::sync::mpsc::channel::<()>();
            let (begin, seen) = (&begin, seen_tx.clone());
            scope.spawn(move || {
                begin.wait();
                let server = std::panic::catch_unwind(|| Server::start_bare(args)).ok();
                seen.send(server).expect("the test waits");
                let _ = keep.recv();
            });
            keep_tx
        });
        begin.wait();
        let mut servers = [(); 2].map(|()| seen.recv().expect("a server, or none"));
        then(&mut servers);
        drop(servers);
        drop(keep);
    });
}

/// However they fall, one process alone has the port in the end: all readers are its.
#[test]
fn two_that_take_over_at_once_are_one_in_the_end() {
    for round in 0..4 {
        let mut old = start("127.0.0.1:0", "1", false);
        let addr = old.addr();
        let listen = addr.to_string();
        let mut args = vec!["--listen", &listen, "--workers", "2", "--takeover"];
        args.extend(SETTINGS);
        start_two(&args, |servers| {
            assert_eq!(old.wait_exit(), 0);
            if let [Some(one), Some(other)] = servers {
                until("the one has taken over from the other", || {
                    let alive = [one.alive(), other.alive()];
                    assert_ne!(alive, [false, false], "round {round}");
                    (alive != [true, true]).then_some(())
                });
                for ended in [one, other].into_iter().filter_map(|server| (!server.alive()).then_some(server))
                {
                    assert_eq!(ended.wait_exit(), 0, "it ended by a drain");
                }
            } else {
                assert!(servers.iter().any(Option::is_some), "round {round}: one at least serves");
            }
            let mut readers: Vec<Stream> = (0..16).map(|_| Stream::open(addr, "/channels/a")).collect();
            publish(addr, "a", "to all");
            for reader in &mut readers {
                assert_eq!(reader.texts(1), ["to all"], "round {round}");
            }
        });
    }
}

/// So too where nobody listens yet, and nobody asked for a takeover: one of two has the port.
#[test]
fn two_that_start_at_once_do_not_share_a_port() {
    for round in 0..4 {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        start_two(&["--listen", &free.to_string(), "--workers", "1"], |servers| {
            assert_eq!(servers.iter().flatten().count(), 1, "round {round}");
        });
    }
}

/// A process is heard by its names before it says that it serves, and opens nothing more afterwards.
#[test]
fn a_process_that_serves_can_be_taken_over_at_once() {
    let server = start("127.0.0.1:0", "1", false);
    let names = std::fs::read_to_string("/proc/net/unix").expect("/proc/net/unix");
    assert!(names.contains(&format!("@pushline/{}", server.addr())), "{names}");
}
