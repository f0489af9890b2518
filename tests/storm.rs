//! More connections come than can be served in time (docs/limits.md, "Storms"): some are turned away, as their transport
//! is told such things, and those that are served have not waited for long.

use crate::common;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::admin::{Metrics, addr_of};
use common::cost::cpu;
use common::crowd::{Crowd, Heard};
use common::http::{Conn, get, wire};
use common::server::{Server, field, message_of};
use common::ws::{V1_NAME, request};
use common::{DEADLINE, until};

/// What a newcomer asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asks {
    Poll,
    Events,
    Raw,
    V1,
    Health,
}

const ALL: [Asks; 5] = [Asks::Poll, Asks::Events, Asks::Raw, Asks::V1, Asks::Health];

impl Asks {
    fn wire(self, addr: SocketAddr) -> Vec<u8> {
        let channel = "/channels/storm";
        match self {
            Self::Poll => wire(addr, "GET", channel, &[], b""),
            Self::Events => wire(addr, "GET", channel, &[("Accept", "text/event-stream")], b""),
            Self::Raw => request(addr, channel, &[]),
            Self::V1 => request(addr, channel, &[("Sec-WebSocket-Protocol", V1_NAME)]),
            Self::Health => wire(addr, "GET", "/healthz", &[], b""),
        }
    }

    /// Whether the answer so far says that it is served, or turned away; `None`: neither yet.
    fn is_served(self, answer: &[u8]) -> Option<bool> {
        let has = |part: &[u8]| memchr::memmem::find(answer, part).is_some();
        match self {
            Self::Poll | Self::Health if has(b"HTTP/1.1 200 ") => Some(true),
            Self::Poll if has(b"HTTP/1.1 503 ") && has(b"\r\nRetry-After: ") => Some(false),
            Self::Events if has(b"event: $open") => Some(true),
            Self::Events if has(b"event: $close\ndata: {\"reason\":\"full\"") => Some(false),
            // 1013 in a close frame.
            Self::Raw | Self::V1 if has(&[0x88, 6, 0x03, 0xF5]) => Some(false),
            Self::V1 if has(b"\"type\":\"subscribed\"") => Some(true),
            Self::Raw if answer.ends_with(b"\r\n\r\n") && has(b"HTTP/1.1 101 ") => Some(true),
            _ => None,
        }
    }
}

/// A server that had no time for a while: whoever came in it has waited too long.
#[test]
fn requests_that_have_waited_too_long_are_turned_away_and_the_next_are_served() {
    const EACH: usize = 160;
    let mut server = Server::start(&[
        "--workers",
        "1",
        "--set",
        "timeouts.admission_seconds=0.2",
        "--set",
        "admin.listen=127.0.0.1:0",
    ]);
    let addr = server.addr();
    let mut kept = Conn::open(addr);
    kept.get("/healthz").expect(200);
    server.stop();
    let mut crowd = Crowd::new();
    let mut asks = Vec::new();
    for n in 0..EACH * ALL.len() {
        let ask = ALL[n % ALL.len()];
        let socket = TcpStream::connect(addr).expect("the kernel accepts");
        (&socket).write_all(&ask.wire(addr)).expect("sent");
        crowd.add(socket);
        asks.push((ask, Vec::new(), None));
    }
    let sent = Instant::now();
    kept.send("GET", "/channels/storm", &[], "");
    // What is waited for is time itself: much of it, since on a busy machine the kernel may hand over late what was sent.
    std::thread::sleep(Duration::from_millis(1_000).saturating_sub(sent.elapsed()));
    server.signal(libc::SIGCONT);
    let mut heard = |number: usize, heard: Heard<'_>| {
        let (ask, answer, served): &mut (Asks, Vec<u8>, Option<bool>) = &mut asks[number];
        if let Heard::Bytes(bytes) = heard {
            answer.extend_from_slice(bytes);
        }
        *served = served.or_else(|| ask.is_served(answer));
    };
    let end = Instant::now() + DEADLINE;
    while Instant::now() < end && crowd.listen(Duration::from_millis(500), &mut heard) > 0 {}
    for (ask, answer, served) in &asks {
        let want = Some(*ask == Asks::Health);
        assert_eq!(*served, want, "{ask:?}: {}", String::from_utf8_lossy(answer));
    }
    // Who was there is served, and so is who comes now.
    kept.read_response().expect(200);
    get(addr, "/channels/storm").expect(200);
    let metrics = Metrics::scrape(addr_of(&server));
    let away = (EACH * (ALL.len() - 1)) as f64;
    assert_eq!(metrics.sum("pushline_refusals_total", &[("reason", "admission")]), away);
    assert_eq!(metrics.sum("pushline_refusals_total", &[]), away);
    server.signal(libc::SIGTERM);
    server.wait_exit();
    let stopped = server.wait_log(|line| message_of(line).as_deref() == Some("stopped"));
    assert_eq!(field(&stopped, "refused"), Some((EACH * (ALL.len() - 1)).to_string()), "{stopped}");
}

/// A request that comes slowly has not waited for the server.
#[test]
fn the_clients_own_slowness_is_not_held_against_it() {
    let mut server = Server::start(&["--workers", "1", "--set", "timeouts.admission_seconds=0.2"]);
    let addr = server.addr();
    let mut slow = Conn::open(addr);
    let head = wire(addr, "GET", "/channels/storm", &[], b"");
    slow.send_raw(&head[..20]);
    // A crowd, so that newcomers are looked at.
    server.stop();
    let crowd: Vec<Conn> = (0..300).map(|_| Conn::open(addr)).collect();
    std::thread::sleep(Duration::from_millis(300));
    server.signal(libc::SIGCONT);
    slow.send_raw(&head[20..]);
    slow.expect_answer_to("GET");
    slow.read_response().expect(200);
    drop(crowd);
}

/// Thousands, from many threads, on one worker: each is served or told to come back, and who is served has not waited.
#[test]
fn a_storm_is_served_in_time_or_turned_away() {
    const THREADS: usize = 8;
    const EACH: usize = 500;
    let admission = Duration::from_millis(500);
    let server = Server::start(&["--workers", "1", "--set", "timeouts.admission_seconds=0.5"]);
    let addr = server.addr();
    let waits = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let waits = &waits;
            scope.spawn(move || {
                let mut crowd = Crowd::new();
                let mut asks = Vec::new();
                for n in 0..EACH {
                    let ask = ALL[(n + thread) % 4];
                    let Ok(socket) = TcpStream::connect(addr) else { continue };
                    (&socket).write_all(&ask.wire(addr)).expect("sent");
                    crowd.add(socket);
                    asks.push((ask, Vec::new(), Instant::now(), None));
                    while crowd.listen(Duration::ZERO, |number, heard| hear(&mut asks[number], heard)) > 0 {}
                }
                let end = Instant::now() + DEADLINE;
                while asks.iter().any(|(.., told)| told.is_none()) && Instant::now() < end {
                    crowd.listen(Duration::from_millis(100), |number, heard| hear(&mut asks[number], heard));
                }
                waits.lock().expect("no panic").extend(asks.into_iter().map(|(ask, _, _, told)| (ask, told)));
            });
        }
    });
    let waits = waits.into_inner().expect("no panic");
    let (mut served, mut longest) = (0, Duration::ZERO);
    for (ask, told) in &waits {
        let (is_served, waited) = told.unwrap_or_else(|| panic!("{ask:?}: neither served nor told"));
        if is_served {
            served += 1;
            longest = longest.max(waited);
        }
    }
    eprintln!(
        "{served} of {} served, the last after {longest:?}; {:?} of CPU",
        waits.len(),
        cpu(server.pid())
    );
    assert!(served > 0);
    // The clients share the machine with the server: what they wait for themselves is not its doing.
    assert!(longest < admission + Duration::from_secs(2), "{longest:?}");
    until("the next is served at once", || (get(addr, "/channels/storm").status == 200).then_some(()));
}

type Ask = (Asks, Vec<u8>, Instant, Option<(bool, Duration)>);

fn hear((ask, answer, asked, told): &mut Ask, heard: Heard<'_>) {
    if let Heard::Bytes(bytes) = heard {
        answer.extend_from_slice(bytes);
    }
    if told.is_none() {
        *told = ask.is_served(answer).map(|served| (served, asked.elapsed()));
    }
}
