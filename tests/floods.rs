//! Clients that send as much as they can of what costs them little (docs/limits.md, "Floods"): memory stays bounded, the
//! others are served, and nobody's channel is pushed out.

use crate::common;

use std::hash::BuildHasher as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use common::cost::{KIB, MIB, Peak, baseline, bystander};
use common::http::{AT_ONCE, Conn, head_cursor, poll, publish};
use common::server::{Server, settled};
use common::sse::Stream;
use common::until;
use common::ws::{CLOSE, CONTINUATION, FrameParser, PING, Socket, TEXT, V1, V1_NAME, masked, request};

/// How long each flood lasts.
const LASTS: Duration = Duration::from_secs(2);
/// Who floods at once.
const FLOODERS: usize = 4;

/// Floods from several connections at once, each opened by `hello`, each sending `block` again and again without a pause.
/// With `reads`, each reads what comes back. Gives how much was sent.
fn flood(addr: SocketAddr, hello: &[u8], block: &[u8], reads: bool) -> usize {
    let (sent, end) = (AtomicUsize::new(0), Instant::now() + LASTS);
    std::thread::scope(|scope| {
        for _ in 0..FLOODERS {
            scope.spawn(|| {
                let socket = TcpStream::connect(addr).expect("room");
                socket.set_write_timeout(Some(Duration::from_millis(100))).expect("open");
                (&socket).write_all(hello).expect("sent");
                let done = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    if reads {
                        let mut socket = socket.try_clone().expect("a descriptor");
                        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("open");
                        let done = &done;
                        scope.spawn(move || {
                            let mut part = vec![0; 256 * KIB];
                            while !done.load(Ordering::Relaxed) {
                                let _ = socket.read(&mut part);
                            }
                        });
                    }
                    let mut at = 0;
                    while Instant::now() < end {
                        // A server that takes no more just now, or for good, is what some floods come to.
                        if let Ok(count) = (&socket).write(&block[at..]) {
                            sent.fetch_add(count, Ordering::Relaxed);
                            at = (at + count) % block.len();
                        }
                    }
                    done.store(true, Ordering::Relaxed);
                });
            });
        }
    });
    sent.into_inner()
}

/// What a flood may cost: nobody waits for long, memory grows by so much, and nothing is left of it.
fn bounded(server: &Server, memory: usize, attack: impl FnOnce() -> usize) -> usize {
    let files = baseline(server);
    let peak = Peak::watch(server.pid());
    let (sent, waited) = bystander(server.addr(), attack);
    let (_, grown) = peak.end();
    eprintln!("{} KiB sent, {} KiB of memory, a bystander waited {waited:?}", sent / KIB, grown / KIB);
    assert!(waited < AT_ONCE, "{waited:?}");
    assert!(grown < memory, "{} KiB", grown / KIB);
    settled(server, files);
    sent
}

fn v1_hello(addr: SocketAddr) -> Vec<u8> {
    request(addr, "/channels", &[("Sec-WebSocket-Protocol", V1_NAME)])
}

#[test]
fn pings() {
    let server = Server::start(&["--workers", "1"]);
    let addr = server.addr();
    let hello = request(addr, "/channels/a", &[]);
    for payload in [&b""[..], &[b'x'; 125]] {
        let block = masked(true, PING, payload).repeat(2_000);
        // Pongs that are read, and pongs that are not: only the latest is kept.
        for reads in [true, false] {
            bounded(&server, 8 * MIB, || flood(addr, &hello, &block, reads));
        }
    }
    // v1's own ping is answered by a message: who does not read those is not read either.
    let block = masked(true, TEXT, br#"{"type":"ping"}"#).repeat(1_000);
    for reads in [true, false] {
        bounded(&server, 24 * MIB, || flood(addr, &v1_hello(addr), &block, reads));
    }
}

#[test]
fn fragments() {
    let server = Server::start(&["--workers", "1", "--set", "timeouts.body_seconds=1"]);
    let addr = server.addr();
    let mut hello = request(addr, "/channels/a", &[]);
    hello.extend(masked(false, TEXT, b"begins"));
    let empty = masked(false, CONTINUATION, b"");
    for block in [empty.repeat(5_000), [empty, masked(true, PING, b"!")].concat().repeat(2_000)] {
        bounded(&server, 8 * MIB, || flood(addr, &hello, &block, true));
    }
    // However many come, the message has had its time: 1001.
    let mut conn = Conn::open(addr);
    conn.send_raw(&hello);
    let block = masked(false, CONTINUATION, b"").repeat(100);
    let all = until("its time is over", || {
        // Closed meanwhile, perhaps.
        let _ = conn.try_send_raw(&block);
        let count = conn.fill().unwrap_or(0);
        let seen = memchr::memmem::find(conn.ahead(), b"request_timeout").is_some();
        (seen || count == 0).then(|| conn.ahead().to_vec())
    });
    let head = memchr::memmem::find(&all, b"\r\n\r\n").expect("a head") + 4;
    let mut parser = FrameParser::default();
    parser.push(&all[head..]);
    let frame = std::iter::from_fn(|| parser.next_frame()).find(|frame| frame.opcode == CLOSE);
    assert_eq!(frame.expect("a close frame").close_code(), 1001);
    assert!(poll(addr, "/channels/a").messages.is_empty());
}

/// Many small messages in one read: their frames are acted on in slices, and nothing is read meanwhile.
#[test]
fn tiny_messages() {
    let server = Server::start(&["--workers", "1"]);
    let addr = server.addr();
    let hello = request(addr, "/channels/a", &[]);
    let block = masked(true, TEXT, b"").repeat(5_000);
    bounded(&server, 24 * MIB, || flood(addr, &hello, &block, true));
}

#[test]
fn subscriptions() {
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    publish(addr, "kept", "still here");
    // To one channel and back, and to ever other ones.
    let pair = |n: usize| {
        let subscribe = json!({"type": "subscribe", "channel": format!("flood/{n}")}).to_string();
        let unsubscribe = json!({"type": "unsubscribe", "channel": format!("flood/{n}")}).to_string();
        [masked(true, TEXT, subscribe.as_bytes()), masked(true, TEXT, unsubscribe.as_bytes())].concat()
    };
    for channels in [1, 20_000] {
        let block: Vec<u8> = (0..20_000).flat_map(|n| pair(n % channels)).collect();
        // A feed is kept for some seconds after its last reader.
        bounded(&server, 48 * MIB, || flood(addr, &v1_hello(addr), &block, true));
    }
    assert_eq!(poll(addr, "/channels/kept").data(), ["still here"]);
    // More than a connection may have: each is refused, and costs nothing but its answer.
    let mut v1 = V1::open(addr, "/channels");
    for n in 0..1_024 {
        v1.ask(json!({"type": "subscribe", "channel": format!("mine/{n}")}), "subscribed");
    }
    assert_eq!(v1.refused(json!({"type": "subscribe", "channel": "more"}))["code"], "too_many_subscriptions");
}

#[test]
fn publishes_to_one_channel() {
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    let mut flooded = Stream::open(addr, "/channels/flooded");
    let mut quiet = Stream::open(addr, "/channels/quiet");
    let post = common::http::wire(addr, "POST", "/channels/flooded", &[("Content-Type", "text/plain")], b"x");
    let block = post.repeat(200);
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It reads on, and is told where it could not keep up.
            while !ended.load(Ordering::Relaxed) {
                let _ = flooded.item_within(Duration::from_millis(50));
            }
        });
        let reader = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            let mut conn = Conn::open(addr);
            while !ended.load(Ordering::Relaxed) {
                let said = Instant::now();
                conn.request("POST", "/channels/quiet", &[("Content-Type", "text/plain")], "tick")
                    .expect(201);
                assert_eq!(quiet.message().data, "tick");
                longest = longest.max(said.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            longest
        });
        let peak = Peak::watch(server.pid());
        let sent = flood(addr, b"", &block, true);
        ended.store(true, Ordering::Relaxed);
        let ((_, grown), longest) = (peak.end(), reader.join().expect("another channel's reader is served"));
        eprintln!("{} KiB sent, {} KiB of memory, waited {longest:?}", sent / KIB, grown / KIB);
        assert!(longest < AT_ONCE, "{longest:?}");
        assert!(grown < 24 * MIB, "{} KiB", grown / KIB);
    });
}

/// Names that a known seed would put into one place of the table: each costs what any name costs.
#[test]
fn names_that_collide_under_a_known_seed() {
    const NAMES: usize = 4_000;
    let known = foldhash::fast::FixedState::default();
    // As a name is hashed: its bytes, and the mark of a string's end. The lowest bits choose the place.
    let chosen: Vec<String> = (0_u64..)
        .map(|n| format!("c{n}"))
        .filter(|name| known.hash_one(name.as_str()) % 4_096 == 0)
        .take(NAMES)
        .collect();
    let others: Vec<String> = (0..NAMES).map(|n| format!("o{n}")).collect();
    let publish_all = |names: &[String]| {
        let server = Server::start(&["--workers", "1"]);
        let mut conn = Conn::open(server.addr());
        let lines: String =
            names.iter().map(|name| format!("{{\"channel\":\"{name}\",\"data\":\"x\"}}\n")).collect();
        let began = Instant::now();
        for _ in 0..3 {
            let answer =
                conn.request("POST", "/publish", &[("Content-Type", "application/x-ndjson")], &*lines);
            assert_eq!(answer.expect(200).text().matches("\"id\"").count(), NAMES);
        }
        began.elapsed()
    };
    let (any, collide) = (publish_all(&others), publish_all(&chosen));
    eprintln!("{any:?} for any names, {collide:?} for chosen ones");
    // In one place each would be compared with all before it: 16 million comparisons, some seconds.
    assert!(collide < any * 4 + Duration::from_millis(500), "{any:?}, {collide:?}");
}

/// Reading names that nobody has published to takes no channel's place, however many are read.
#[test]
fn scans_of_unknown_names() {
    let server = Server::start(&["--workers", "2", "--set", "limits.channels=100"]);
    let addr = server.addr();
    let mut reader = Stream::open(addr, "/channels/read");
    let mut cursors = Vec::new();
    for n in 0..30 {
        cursors.push(head_cursor(addr, &format!("kept/{n}")));
        publish(addr, &format!("kept/{n}"), "still here");
    }
    let quiet = head_cursor(addr, "quiet");
    let files = baseline(&server);
    let peak = Peak::watch(server.pid());
    let ((), waited) = bystander(addr, || {
        let mut conn = Conn::open(addr);
        for n in 0..20_000 {
            conn.get(&format!("/channels/scan/{n}")).expect(200);
        }
        // Streams make channels, for as long as they are read: those of others are left alone.
        for n in 0..300 {
            drop(Conn::open(addr).try_send_raw(common::http::wire(
                addr,
                "GET",
                &format!("/channels/sub/{n}"),
                &[("Accept", "text/event-stream")],
                b"",
            )));
            drop(Socket::open(addr, &format!("/channels/raw/{n}")));
        }
    });
    assert!(waited < AT_ONCE, "{waited:?}");
    let (_, grown) = peak.end();
    assert!(grown < 24 * MIB, "{} KiB", grown / KIB);
    for (n, cursor) in cursors.iter().enumerate() {
        let answer = poll(addr, &format!("/channels/kept/{n}?cursor={cursor}"));
        assert_eq!((answer.data(), answer.gap), (vec![json!("still here")], false), "{n}");
    }
    publish(addr, "read", "you too");
    assert_eq!(reader.message().data, "you too");
    // And a name that was only asked for has kept its cursor good.
    publish(addr, "quiet", "first");
    let answer = poll(addr, &format!("/channels/quiet?cursor={quiet}"));
    assert_eq!((answer.data(), answer.gap), (vec![json!("first")], false));
    settled(&server, files);
}
