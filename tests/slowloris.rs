//! Clients that are slow on purpose, in all the ways there are (docs/limits.md, "Slow clients"): what they cost is bounded,
//! in time, memory, CPU and descriptors, and the others are served.

use crate::common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::cost::{KIB, MIB, Peak, baseline, bystander, cpu};
use common::crowd::{Crowd, Heard};
use common::http::{AT_ONCE, Conn, poll, publish, wire};
use common::server::{Server, descriptors, field, message_of, settled};
use common::sse::Stream;
use common::ws::{CONTINUATION, Message, PING, PONG, Socket, TEXT, V1, V1_NAME, masked, request};
use common::{DEADLINE, receive_buffer, until};

/// So many at once, each a byte at a time.
const SLOW: usize = 300;

/// Sends each of `wires` a byte at a time on a connection of its own, over and over all of them, until the server has
/// answered or closed each; what it said to each.
fn trickle(addr: SocketAddr, begun: &[u8], slow: &[u8]) -> Vec<Vec<u8>> {
    let mut crowd = Crowd::new();
    for _ in 0..SLOW {
        let socket = TcpStream::connect(addr).expect("room");
        socket.set_nodelay(true).expect("open");
        (&socket).write_all(begun).expect("sent");
        crowd.add(socket);
    }
    let mut said = vec![Vec::new(); SLOW];
    let end = Instant::now() + DEADLINE;
    for byte in slow.iter().cycle() {
        for number in 0..SLOW {
            // Closed meanwhile: it is told so by reading.
            crowd.send(number, &[*byte]);
        }
        let mut heard = |number: usize, heard: Heard<'_>| {
            if let Heard::Bytes(bytes) = heard {
                said[number].extend_from_slice(bytes);
            }
        };
        while crowd.listen(Duration::from_millis(20), &mut heard) > 0 && Instant::now() < end {}
        if crowd.live() == 0 {
            return said;
        }
        assert!(Instant::now() < end, "{} are still there", crowd.live());
    }
    unreachable!("a cycle")
}

/// A trickle that ends in its time, with this said to each, at a bounded cost.
fn ends(server: &Server, begun: &[u8], slow: &[u8], seconds: u64, said: impl Fn(&[u8]) -> bool) {
    let files = baseline(server);
    let (peak, used) = (Peak::watch(server.pid()), cpu(server.pid()));
    let began = Instant::now();
    let (answers, waited) = bystander(server.addr(), || trickle(server.addr(), begun, slow));
    let took = began.elapsed();
    let (used, (_, grown)) = (cpu(server.pid()) - used, peak.end());
    eprintln!("{took:?}, {used:?} of CPU, {} KiB, a bystander waited {waited:?}", grown / KIB);
    assert!(took < Duration::from_secs(seconds + 8), "{took:?}");
    for answer in &answers {
        assert!(said(answer), "{:?}", String::from_utf8_lossy(answer));
    }
    assert!(waited < AT_ONCE, "{waited:?}");
    // A few thousand reads of a byte, at 20 µs or so: nothing spins.
    assert!(used < took / 2 + Duration::from_millis(500), "{used:?} of CPU in {took:?}");
    assert!(grown < SLOW * 16 * KIB + 4 * MIB, "{} KiB", grown / KIB);
    settled(server, files);
}

#[test]
fn a_head_a_byte_at_a_time() {
    let server = Server::start(&["--set", "timeouts.head_seconds=1.5"]);
    ends(&server, b"GET /channels/a HTTP/1.1\r\nHost: localhost\r\nX: ", b"y", 2, |answer| {
        answer.starts_with(b"HTTP/1.1 408 ")
    });
}

#[test]
fn a_body_a_byte_at_a_time() {
    let server = Server::start(&["--set", "timeouts.body_seconds=1.5"]);
    let head = b"POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n";
    ends(&server, head, b"x", 2, |answer| answer.starts_with(b"HTTP/1.1 408 "));
    let head = b"POST /channels/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    ends(&server, head, b"1\r\nx\r\n", 2, |answer| answer.starts_with(b"HTTP/1.1 408 "));
    assert!(poll(server.addr(), "/channels/a").messages.is_empty());
}

/// 1001, which ends a connection whose request came too slowly.
fn is_timed_out(answer: &[u8]) -> bool {
    memchr::memmem::find(answer, &[0x03, 0xE9]).is_some()
        && memchr::memmem::find(answer, b"request_timeout").is_some()
}

#[test]
fn a_websocket_frame_a_byte_at_a_time() {
    let server = Server::start(&["--set", "timeouts.body_seconds=1.5"]);
    let addr = server.addr();
    let frame = masked(true, TEXT, &[b'x'; 60_000]);
    for protocol in [&[][..], &[("Sec-WebSocket-Protocol", V1_NAME)]] {
        let mut begun = request(addr, "/channels/a", protocol);
        begun.extend_from_slice(&frame[..20]);
        ends(&server, &begun, &frame[20..], 2, is_timed_out);
    }
    // In the middle of a header too.
    let mut begun = request(addr, "/channels/a", &[]);
    begun.extend_from_slice(&frame[..3]);
    let mut socket = Conn::open(addr);
    socket.send_raw(&begun);
    let all = socket.take_all().expect("an orderly end");
    assert!(is_timed_out(&all), "{}", String::from_utf8_lossy(&all));
}

/// Control frames in between give a message no more time.
#[test]
fn a_message_of_fragments_that_never_ends() {
    let server = Server::start(&["--set", "timeouts.body_seconds=1.5"]);
    let mut begun = request(server.addr(), "/channels/a", &[]);
    begun.extend(masked(false, TEXT, b"x"));
    let slow: Vec<u8> =
        [masked(false, CONTINUATION, b""), masked(true, PING, b"!"), masked(false, CONTINUATION, b"x")]
            .concat();
    ends(&server, &begun, &slow, 2, is_timed_out);
}

/// Each message has its own time: a connection that is never between two of them goes on.
#[test]
fn messages_without_a_pause_are_no_slow_message() {
    let server = Server::start(&["--set", "timeouts.body_seconds=1"]);
    let addr = server.addr();
    let mut socket = Socket::open(addr, "/channels/a");
    let (first, second) = (masked(false, TEXT, b"he"), masked(true, CONTINUATION, b"llo"));
    socket.send_raw(&first);
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_millis(2_500) {
        // The end of one and the beginning of the next, in one piece.
        socket.send_raw([&second[..], &first[..]].concat());
        assert_eq!(socket.message(), Message::Text("hello".into()));
        let mut ping = masked(true, PING, b"?");
        let rest = ping.split_off(3);
        socket.send_raw(ping);
        socket.send_raw(rest);
        let pong = socket.frame().expect("it goes on");
        assert_eq!(pong.opcode, PONG);
        count += 1;
    }
    assert!(count > 10, "{count}");
    // And then the last one does not come.
    assert_eq!(socket.message(), Message::Close(1001));
}

/// What opens a stream of a channel: of events, of raw frames, of `pushline.v1`.
fn streams(addr: SocketAddr) -> [Vec<u8>; 3] {
    [
        wire(addr, "GET", "/channels/a", &[("Accept", "text/event-stream")], b""),
        request(addr, "/channels/a", &[]),
        request(addr, "/channels/a", &[("Sec-WebSocket-Protocol", V1_NAME)]),
    ]
}

/// A connection whose kernel takes little that is not read.
fn narrow(addr: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(addr).expect("room");
    receive_buffer(&socket, 4_096);
    socket
}

/// Reads a byte now and then, while others get all.
#[test]
fn a_reader_a_byte_at_a_time() {
    const READERS: usize = 100;
    const MESSAGES: usize = 400;
    let server = Server::start(&[
        "--set",
        "slow.kernel_bytes=66KiB",
        "--set",
        "history.bytes=256KiB",
        "--set",
        "feed.bytes=64KiB",
    ]);
    let addr = server.addr();
    let mut slow = Vec::new();
    for n in 0..READERS {
        let [sse, _, v1] = streams(addr);
        let socket = narrow(addr);
        (&socket).write_all(if n % 2 == 0 { &sse } else { &v1 }).expect("sent");
        socket.set_nonblocking(true).expect("open");
        slow.push(socket);
    }
    let mut reader = Stream::open(addr, "/channels/a");
    let text = "x".repeat(16 * KIB);
    let (peak, used) = (Peak::watch(server.pid()), cpu(server.pid()));
    let began = Instant::now();
    let ((), waited) = bystander(addr, || {
        let mut conn = Conn::open(addr);
        for n in 0..MESSAGES {
            conn.request("POST", "/channels/a", &[("Content-Type", "text/plain")], format!("{n}:{text}"))
                .expect(201);
            assert!(reader.message().data.starts_with(&format!("{n}:")), "in order, none missing");
            for socket in &mut slow {
                let _ = socket.read(&mut [0]);
            }
        }
    });
    let (took, used, (_, grown)) = (began.elapsed(), cpu(server.pid()) - used, peak.end());
    eprintln!("{took:?}, {used:?} of CPU, {} KiB, a bystander waited {waited:?}", grown / KIB);
    assert!(waited < AT_ONCE, "{waited:?}");
    // The rest of one message each, in its encoding; history, feeds and lanes.
    assert!(grown < READERS * 24 * KIB + 8 * MIB, "{} KiB", grown / KIB);
}

/// Reads nothing, and its kernel says that it lives: it is given `heartbeat.timeout_seconds`, on each transport.
#[test]
fn a_window_that_stays_shut() {
    let server = Server::start(&[
        "--set",
        "heartbeat.interval_seconds=0.5",
        "--set",
        "heartbeat.timeout_seconds=1.5",
        "--set",
        "timeouts.body_seconds=1.5",
        "--set",
        "slow.kernel_bytes=66KiB",
        "--set",
        "history.bytes=8MiB",
    ]);
    let addr = server.addr();
    let files = baseline(&server);
    let text = "x".repeat(60 * KIB);
    let stalled = streams(addr).map(|head| {
        let socket = narrow(addr);
        (&socket).write_all(&head).expect("sent");
        socket
    });
    let mut reader = Stream::open(addr, "/channels/a");
    // A poll whose answer is not read.
    let unread = narrow(addr);
    for n in 0..40 {
        publish(addr, "a", &format!("{n}:{text}"));
        assert!(reader.message().data.starts_with(&format!("{n}:")));
    }
    (&unread).write_all(&wire(addr, "GET", "/channels/a?limit=40", &[], b"")).expect("sent");
    // A WebSocket is silent as well, and whichever is seen first counts.
    for (transport, reasons) in [
        ("sse", &["timed_out"][..]),
        ("websocket", &["timed_out", "silent"]),
        ("pushline.v1", &["timed_out", "silent"]),
    ] {
        let closed = server.wait_log(|line| {
            message_of(line).as_deref() == Some("closed")
                && field(line, "transport").as_deref() == Some(transport)
        });
        assert!(reasons.contains(&field(&closed, "reason").unwrap_or_default().as_str()), "{closed}");
    }
    // The reader that reads is still there.
    publish(addr, "a", "on");
    assert_eq!(reader.message().data, "on");
    drop(reader);
    settled(&server, files);
    drop((stalled, unread));
}

/// Peers whose machine is gone, or whose network is: nothing that is sent to them comes back.
#[test]
fn half_open_peers_are_given_up() {
    if !own_network() {
        return eprintln!("skipped: this user may not make a network of its own (unshare)");
    }
    let server = Server::start(&[
        "--set",
        "heartbeat.interval_seconds=0.5",
        "--set",
        "heartbeat.timeout_seconds=1.5",
        "--set",
        "timeouts.idle_seconds=2",
        "--set",
        "timeouts.body_seconds=2",
    ]);
    let addr = server.addr();
    let files = baseline(&server);
    let mut peers = Vec::new();
    let others = [
        wire(addr, "GET", "/channels/a?limit=0", &[], b""),
        b"POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx".to_vec(),
        b"GET /chan".to_vec(),
        Vec::new(),
    ];
    for head in streams(addr).into_iter().chain(others) {
        let mut conn = Conn::open(addr);
        conn.send_raw(&head);
        peers.push(conn);
    }
    let cursor = poll(addr, "/channels/a?limit=0").cursor;
    let mut held = Conn::open(addr);
    held.send("GET", &format!("/channels/a?cursor={cursor}&wait=2"), &[], "");
    let mut stream = Stream::open(addr, "/channels/a");
    publish(addr, "a", "before");
    assert_eq!(stream.message().data, "before");
    assert!(ip(&["link", "set", "lo", "down"]), "root may shut it down");
    until("all are given up", || (descriptors(server.pid()) <= files).then_some(()));
    assert!(ip(&["link", "set", "lo", "up"]));
    publish(addr, "a", "after");
    assert_eq!(poll(addr, "/channels/a?limit=2").data(), ["before", "after"]);
    drop((peers, held, stream));
}

/// A network for this thread, and for what it starts, alone. False: not permitted.
#[allow(unsafe_code)]
fn own_network() -> bool {
    // SAFETY: no pointers; it concerns the calling thread alone.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    done == 0 && ip(&["link", "set", "lo", "up"])
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().is_ok_and(|status| status.success())
}

/// Slow ones among thousands of others: a v1 client whose frames come whole is not held up by one whose do not.
#[test]
fn a_slow_one_beside_a_fast_one_on_the_same_worker() {
    let server = Server::start(&["--workers", "1"]);
    let addr = server.addr();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut slow = Socket::open(addr, "/channels/a");
            let frame = masked(true, TEXT, &[b'x'; 60_000]);
            for byte in frame.iter().take_while(|_| !done.load(Ordering::Relaxed)) {
                slow.send_raw([*byte]);
            }
        });
        let mut fast = V1::open(addr, "/channels");
        let mut longest = Duration::ZERO;
        for _ in 0..300 {
            let asked = Instant::now();
            fast.ask(serde_json::json!({"type": "ping"}), "pong");
            longest = longest.max(asked.elapsed());
        }
        done.store(true, Ordering::Relaxed);
        assert!(longest < AT_ONCE / 5, "{longest:?}");
    });
}
