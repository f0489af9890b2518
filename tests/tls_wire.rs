//! Where TLS is spoken, nothing else is ever said: whoever is refused, cut off or told to leave, for whatever reason and in
//! whatever state, hears whole records of TLS, or the end. Looked at as it stands on the wire.

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::http::{Conn, wire};
use common::tls::{ClientTls, TlsServer, client};
use common::ws::{TEXT, V1_NAME, masked, request};
use common::{DEADLINE, until};
use rustls::ClientConfig;

const NDJSON: &[(&str, &str)] = &[("Content-Type", "application/x-ndjson")];

/// A socket, and all that came by it.
struct Tap {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Read for Tap {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.stream.read(room)?;
        self.heard.extend_from_slice(&room[..bytes]);
        Ok(bytes)
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One client.
struct Visitor {
    tap: Tap,
    tls: ClientTls,
    plain: Vec<u8>,
    ended: bool,
}

impl Visitor {
    fn new(addr: SocketAddr, config: &Arc<ClientConfig>) -> Option<Self> {
        let stream = TcpStream::connect(addr).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).expect("above zero");
        stream.set_write_timeout(Some(DEADLINE)).expect("above zero");
        let tls = ClientTls::new(Arc::clone(config), "localhost");
        Some(Self { tap: Tap { stream, heard: Vec::new() }, tls, plain: Vec::new(), ended: false })
    }

    /// Sends only so much of its first message.
    fn begin(&mut self, part: usize) {
        let mut hello = Vec::new();
        self.tls.conn.write_tls(&mut hello).expect("a vector");
        let _ = self.tap.write_all(&hello[..hello.len() * part / 100]);
    }

    fn shake(&mut self) {
        self.ended |= self.tls.conn.is_handshaking() && self.tls.conn.complete_io(&mut self.tap).is_err();
    }

    fn say(&mut self, plain: &[u8]) {
        self.shake();
        if self.ended {
            return;
        }
        self.tls.conn.writer().write_all(plain).expect("room");
        while self.tls.conn.wants_write() {
            if self.tls.conn.write_tls(&mut self.tap).is_err() {
                self.ended = true;
                return;
            }
        }
    }

    /// Listens for so long, or until `enough` of what is said, or the end.
    fn hear(&mut self, patience: Duration, enough: impl Fn(&[u8]) -> bool) {
        let until = Instant::now() + patience;
        while !self.ended && !enough(&self.plain) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            self.tap.stream.set_read_timeout(Some(left)).expect("above zero");
            match self.tls.conn.read_tls(&mut self.tap) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => self.ended = true,
            }
            match self.tls.conn.process_new_packets() {
                Ok(_) => {}
                // An alert of the server's, which is TLS too; what is not is seen on the wire.
                Err(_) => self.ended = true,
            }
            let mut part = [0; 4096];
            while let Ok(bytes @ 1..) = self.tls.conn.reader().read(&mut part) {
                self.plain.extend_from_slice(&part[..bytes]);
            }
        }
    }

    /// To the end.
    fn hear_all(&mut self) {
        self.hear(DEADLINE, |_| false);
        assert!(self.ended, "no end; said was {:?}", String::from_utf8_lossy(&self.plain));
    }

    fn has(&self, text: &str) -> bool {
        memchr::memmem::find(&self.plain, text.as_bytes()).is_some()
    }

    /// All that came was TLS: records of its types, versions and lengths (RFC 8446 §5.1), the last cut at most.
    #[track_caller]
    fn heard_only_tls(&self, what: &str) {
        let mut rest = &self.tap.heard[..];
        while let [kind, more @ ..] = rest {
            let shown = String::from_utf8_lossy(&rest[..rest.len().min(200)]);
            assert!((20..=23).contains(kind), "{what}: no record of TLS: {shown:?}");
            let [3, minor, high, low, body @ ..] = more else {
                assert!(more.len() < 4 && more.first().is_none_or(|major| *major == 3), "{what}: {shown:?}");
                return;
            };
            let bytes = usize::from(u16::from_be_bytes([*high, *low]));
            assert!(*minor <= 3 && bytes <= 16_384 + 256, "{what}: {shown:?}");
            rest = &body[bytes.min(body.len())..];
        }
    }
}

/// What visitors ask for, by name; what a stream is, stays.
fn asks(addr: SocketAddr) -> Vec<(&'static str, Vec<u8>)> {
    let channel = "/channels/news";
    let half = format!("POST {channel} HTTP/1.1\r\nHost: {addr}\r\nContent-Length: 100\r\n\r\nhalf");
    vec![
        ("poll", wire(addr, "GET", channel, &[], b"")),
        ("publish", wire(addr, "POST", channel, &[], b"x")),
        ("events", wire(addr, "GET", channel, &[("Accept", "text/event-stream")], b"")),
        ("raw", request(addr, channel, &[])),
        ("v1", request(addr, channel, &[("Sec-WebSocket-Protocol", V1_NAME)])),
        ("half a body", half.into_bytes()),
        ("half a head", b"GET /channels/news HT".to_vec()),
        ("nonsense", b"\x01\x02\r\n\r\n".to_vec()),
        ("nothing there", wire(addr, "GET", "/nowhere", &[], b"")),
    ]
}

fn config_of(server: &TlsServer) -> Arc<ClientConfig> {
    Arc::new(client(&[&server.identity], rustls::DEFAULT_VERSIONS))
}

/// Many come at once, each asks for something and stays. Gives all, those that were let in first.
fn crowd(server: &TlsServer, each: usize) -> Vec<(&'static str, Visitor)> {
    let (addr, config) = (server.tls, config_of(server));
    let mut all = std::thread::scope(|scope| {
        let visits: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut visitors = Vec::new();
                    for _ in 0..each {
                        for (what, ask) in asks(addr) {
                            let mut visitor = Visitor::new(addr, &config).expect("the kernel accepts");
                            visitor.say(&ask);
                            visitor.hear(Duration::from_millis(20), |plain| !plain.is_empty());
                            visitors.push((what, visitor));
                        }
                    }
                    visitors
                })
            })
            .collect();
        visits.into_iter().flat_map(|visit| visit.join().expect("no panic")).collect::<Vec<_>>()
    });
    all.sort_by_key(|(_, visitor)| visitor.plain.is_empty());
    for (what, visitor) in &mut all {
        visitor.hear(Duration::from_millis(1), |_| false);
        visitor.heard_only_tls(what);
    }
    all
}

#[test]
fn over_the_limit_of_connections_nothing_is_said() {
    let server = TlsServer::start(&["--set", "limits.connections=20"]);
    let all = crowd(&server, 6);
    let silent = all.iter().filter(|(_, visitor)| visitor.tap.heard.is_empty()).count();
    assert!(silent > 0 && silent < all.len(), "{silent} of {}", all.len());
    assert!(all.iter().any(|(_, visitor)| visitor.has("$open")), "some are served");
}

#[test]
fn over_the_quotas_of_connections_nothing_is_said() {
    for quota in ["{ connections = 10 }", "{ connections_per_second = 10 }"] {
        for whose in ["address", "node"] {
            let quota = format!("quotas.{whose}={quota}");
            let server = TlsServer::start(&["--set", &quota]);
            let all = crowd(&server, 3);
            let silent = all.iter().filter(|(_, visitor)| visitor.tap.heard.is_empty()).count();
            assert!(silent > 0 && silent < all.len(), "{quota}: {silent} of {}", all.len());
        }
    }
}

/// Quotas of what is done with a connection are told in its own words, encrypted.
#[test]
fn over_other_quotas_each_is_told_by_tls() {
    let quota = "quotas.address={ subscriptions = 2, publishes_per_second = 2 }";
    let server = TlsServer::start(&["--set", quota]);
    let all = crowd(&server, 3);
    assert!(all.iter().all(|(_, visitor)| !visitor.tap.heard.is_empty()));
    assert!(all.iter().any(|(what, visitor)| *what == "publish" && visitor.has("HTTP/1.1 429 ")));
    assert!(all.iter().any(|(what, visitor)| *what == "events" && visitor.has("$close")));
}

#[test]
fn when_memory_is_full_each_is_told_by_tls() {
    let server = TlsServer::start(&["--workers", "1", "--set", "limits.memory_bytes=32MiB"]);
    // Keys are remembered for two minutes: nothing makes room for others.
    let (batches, full) = (AtomicUsize::new(0), AtomicUsize::new(0));
    until("memory is full, and stays so", || {
        let batch = batches.fetch_add(1, Ordering::Relaxed);
        let line =
            |n| format!("{{\"channel\":\"live\",\"data\":\"{n}\",\"ttl\":0,\"key\":\"{batch}/{n}\"}}\n");
        let lines: String = (0..500).map(line).collect();
        // As it fills, whoever holds so much may be cut off.
        let mut conn = Conn::open(server.plain);
        conn.try_send_raw(wire(server.plain, "POST", "/publish", NDJSON, lines.as_bytes())).ok()?;
        conn.expect_answer_to("POST");
        let is_full = conn.try_read_response().ok()?.text().contains("\"status\":503");
        full.store(if is_full { full.load(Ordering::Relaxed) + 1 } else { 0 }, Ordering::Relaxed);
        (full.load(Ordering::Relaxed) == 20).then_some(())
    });
    let mut all = crowd(&server, 4);
    for (what, visitor) in &mut all {
        visitor.hear(Duration::from_millis(500), |plain| !plain.is_empty());
        visitor.heard_only_tls(what);
    }
    // Not each: what is freed meanwhile lets some in.
    let told = |what: &str, text: &[u8]| {
        let has = |visitor: &Visitor| memchr::memmem::find(&visitor.plain, text).is_some();
        assert!(all.iter().any(|(is, visitor)| *is == what && has(visitor)), "{what}");
    };
    told("poll", b"HTTP/1.1 503 ");
    told("publish", b"HTTP/1.1 503 ");
    told("events", b"event: $close");
    // 1013 in a close frame.
    told("raw", &[0x03, 0xF5]);
    told("v1", &[0x03, 0xF5]);
}

/// A server that had no time for a while, and has many waiting when it has.
#[test]
fn in_a_storm_each_is_told_by_tls() {
    let mut server = TlsServer::start(&["--workers", "1", "--set", "timeouts.admission_seconds=0.2"]);
    let (addr, config) = (server.tls, config_of(&server));
    let mut there = Vec::new();
    for _ in 0..5 {
        for (what, ask) in asks(addr) {
            let mut visitor = Visitor::new(addr, &config).expect("the kernel accepts");
            visitor.shake();
            there.push((what, ask, visitor));
        }
    }
    server.server.stop();
    for (_, ask, visitor) in &mut there {
        visitor.say(ask);
    }
    let mut come: Vec<Visitor> = (0..300).filter_map(|_| Visitor::new(addr, &config)).collect();
    come.iter_mut().for_each(|visitor| visitor.begin(100));
    // What is waited for is time itself.
    std::thread::sleep(Duration::from_millis(400));
    server.server.signal(libc::SIGCONT);
    for (what, _, visitor) in &mut there {
        visitor.hear(Duration::from_millis(300), |_| false);
        visitor.heard_only_tls(what);
    }
    let late = there.iter().filter(|(_, _, visitor)| visitor.has("HTTP/1.1 503 ")).count();
    assert!(late > 0, "some had waited too long");
    for visitor in &mut come {
        visitor.say(&wire(addr, "GET", "/channels/news", &[], b""));
        visitor.hear(DEADLINE, |plain| !plain.is_empty());
        visitor.heard_only_tls("in the storm");
        assert!(!visitor.plain.is_empty());
    }
}

/// Handshakes in every state, requests that are half there, streams, polls that wait.
#[test]
fn in_a_drain_each_is_told_by_tls_or_nothing() {
    let mut server = TlsServer::start(&["--set", "drain.window_seconds=1"]);
    let (addr, config) = (server.tls, config_of(&server));
    let mut all = crowd(&server, 2);
    for part in [0, 1, 50, 99, 100] {
        let mut visitor = Visitor::new(addr, &config).expect("the kernel accepts");
        visitor.begin(part);
        all.push(("a handshake", visitor));
    }
    let mut established = Visitor::new(addr, &config).expect("the kernel accepts");
    established.shake();
    all.push(("established", established));
    let cursor = common::http::head_cursor(server.plain, "waits");
    let mut waits = Visitor::new(addr, &config).expect("the kernel accepts");
    waits.say(&wire(addr, "GET", &format!("/channels/waits?wait=30&cursor={cursor}"), &[], b""));
    all.push(("waits", waits));
    common::http::publish(server.plain, "other", "so that the poll is held by now");
    server.server.signal(libc::SIGTERM);
    // Whoever comes meanwhile is refused by the kernel, or closed.
    let mut late = Vec::new();
    for _ in 0..50 {
        if let Some(mut visitor) = Visitor::new(addr, &config) {
            visitor.begin(100);
            late.push(visitor);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    for (what, visitor) in &mut all {
        visitor.hear_all();
        visitor.heard_only_tls(what);
    }
    for visitor in &mut late {
        visitor.hear_all();
        visitor.heard_only_tls("late");
    }
    let told = |what: &str, text: &str| all.iter().any(|(is, visitor)| *is == what && visitor.has(text));
    assert!(told("events", "event: $close") && told("v1", "\"closing\"") && told("waits", "HTTP/1.1 204 "));
    assert_eq!(server.server.wait_exit(), 0);
}

#[test]
fn whoever_is_too_slow_or_makes_it_panic_is_told_by_tls_or_nothing() {
    let mut server = TlsServer::start(&[
        "--set",
        "timeouts.head_seconds=0.5",
        "--set",
        "timeouts.body_seconds=0.5",
        "--set",
        "timeouts.idle_seconds=0.5",
        "--set",
        "heartbeat.interval_seconds=0.3",
        "--set",
        "heartbeat.timeout_seconds=0.6",
    ]);
    server.server.expect_panics();
    let (addr, config) = (server.tls, config_of(&server));
    let mut all = crowd(&server, 1);
    for part in [0, 1, 50, 99, 100] {
        let mut visitor = Visitor::new(addr, &config).expect("the kernel accepts");
        visitor.begin(part);
        all.push(("a handshake", visitor));
    }
    let mut panics = Visitor::new(addr, &config).expect("the kernel accepts");
    panics.say(&wire(addr, "GET", "/$debug/panic", &[], b""));
    all.push(("a panic", panics));
    let mut panics = Visitor::new(addr, &config).expect("the kernel accepts");
    panics.say(&request(addr, "/channels/news", &[]));
    panics.hear(DEADLINE, |plain| plain.ends_with(b"\r\n\r\n"));
    panics.say(&masked(true, TEXT, b"$debug/panic"));
    all.push(("a panic of a session", panics));
    for (what, visitor) in &mut all {
        if *what == "events" {
            // It only listens, for as long as it likes.
            visitor.hear(Duration::from_millis(500), |_| false);
        } else {
            visitor.hear_all();
        }
        visitor.heard_only_tls(what);
    }
    let told = |what: &str, text: &str| all.iter().any(|(is, visitor)| *is == what && visitor.has(text));
    assert!(told("half a body", "HTTP/1.1 408 ") && told("half a head", "HTTP/1.1 408 "));
}
