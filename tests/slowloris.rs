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
use common::server::{descriptors, field, message_of, settled};
use common::sse::Stream;
use common::tls::{ClientTls, TlsServer};
use common::ws::{CONTINUATION, Message, PING, PONG, Socket, TEXT, V1, V1_NAME, masked, request};
use common::{DEADLINE, receive_buffer, until};

/// Each is slow plainly, and by TLS.
macro_rules! both {
    ($($name:ident)*) => {
        mod plainly {
            $(#[test] fn $name() { super::$name(false); })*
        }
        mod by_tls {
            $(#[test] fn $name() { super::$name(true); })*
        }
    };
}

both! {
    a_head_a_byte_at_a_time
    a_body_a_byte_at_a_time
    a_websocket_frame_a_byte_at_a_time
    a_message_of_fragments_that_never_ends
    messages_without_a_pause_are_no_slow_message
    a_reader_a_byte_at_a_time
    a_window_that_stays_shut
    half_open_peers_are_given_up
    a_slow_one_beside_a_fast_one_on_the_same_worker
}

/// So many at once, each a byte at a time.
const SLOW: usize = 300;

/// A server that clients come to plainly, or by TLS.
struct Node {
    server: TlsServer,
    addr: SocketAddr,
}

impl Node {
    fn start(by_tls: bool, args: &[&str]) -> Self {
        let server = TlsServer::start(args);
        let addr = if by_tls { server.tls } else { server.plain };
        Self { server, addr }
    }

    fn pid(&self) -> u32 {
        self.server.server.pid()
    }
}

/// Slow clients, each with its own TLS where that is spoken.
struct Slow {
    crowd: Crowd,
    tls: Vec<Option<ClientTls>>,
    /// What was said to each.
    said: Vec<Vec<u8>>,
}

impl Slow {
    /// Come, and have said this.
    fn come(addr: SocketAddr, begun: &[u8]) -> Self {
        Self::come_by(addr, || ClientTls::of(addr), begun)
    }

    fn come_by(addr: SocketAddr, tls: impl Fn() -> Option<ClientTls>, begun: &[u8]) -> Self {
        let (mut crowd, mut all) = (Crowd::new(), Vec::new());
        for _ in 0..SLOW {
            let mut socket = TcpStream::connect(addr).expect("room");
            socket.set_nodelay(true).expect("open");
            let mut tls = tls();
            match &mut tls {
                Some(tls) => tls.write_all(&mut socket, begun).expect("sent"),
                None => socket.write_all(begun).expect("sent"),
            }
            crowd.add(socket);
            all.push(tls);
        }
        Self { crowd, tls: all, said: vec![Vec::new(); SLOW] }
    }

    /// A byte of each: by TLS in a record of its own.
    fn say(&mut self, byte: u8) {
        for (number, tls) in self.tls.iter_mut().enumerate() {
            let mut wire = vec![byte];
            if let Some(tls) = tls {
                wire.clear();
                tls.conn.writer().write_all(&[byte]).expect("room");
                tls.conn.write_tls(&mut wire).expect("a vector");
            }
            // Closed meanwhile: it is told so by reading.
            self.crowd.send(number, &wire);
        }
    }

    /// Whether anybody heard anything within a moment.
    fn listen(&mut self) -> bool {
        let (all, said) = (&mut self.tls, &mut self.said);
        let mut heard = |number: usize, heard: Heard<'_>| {
            let Heard::Bytes(mut bytes) = heard else { return };
            let Some(tls) = &mut all[number] else { return said[number].extend_from_slice(bytes) };
            while !bytes.is_empty() {
                tls.conn.read_tls(&mut bytes).expect("a slice");
                tls.conn.process_new_packets().expect("records");
                let _ = tls.conn.reader().read_to_end(&mut said[number]);
            }
        };
        self.crowd.listen(Duration::from_millis(20), &mut heard) > 0
    }

    /// These bytes of each, over and over, until the server has answered or closed each; what it said to each.
    fn trickle(self, slow: &[u8]) -> Vec<Vec<u8>> {
        self.trickle_by(|all, turn| all.say(slow[turn % slow.len()]))
    }

    /// The same of what stands on the wire when this is said by TLS.
    fn trickle_sealed(mut self, plain: &[u8]) -> Vec<Vec<u8>> {
        let mut wires = vec![Vec::new(); SLOW];
        for (tls, wire) in self.tls.iter_mut().flatten().zip(&mut wires) {
            tls.conn.writer().write_all(plain).expect("room");
            tls.conn.write_tls(wire).expect("a vector");
        }
        self.trickle_by(|all, turn| {
            for (number, wire) in wires.iter().enumerate() {
                all.crowd.send(number, &wire[turn..=turn]);
            }
        })
    }

    fn trickle_by(mut self, mut say: impl FnMut(&mut Self, usize)) -> Vec<Vec<u8>> {
        let end = Instant::now() + DEADLINE;
        for turn in 0.. {
            say(&mut self, turn);
            while self.listen() && Instant::now() < end {}
            if self.crowd.live() == 0 {
                break;
            }
            assert!(Instant::now() < end, "{} are still there", self.crowd.live());
        }
        self.said
    }

    /// The same of those who say nothing more.
    fn wait(mut self) -> Vec<Vec<u8>> {
        let end = Instant::now() + DEADLINE;
        while self.crowd.live() > 0 {
            self.listen();
            assert!(Instant::now() < end, "{} are still there", self.crowd.live());
        }
        self.said
    }
}

/// What slow ones do that ends in its time, with this said to each, at a bounded cost.
fn ends_by(
    node: &Node,
    seconds: u64,
    slow: impl FnOnce(SocketAddr) -> Vec<Vec<u8>>,
    said: impl Fn(&[u8]) -> bool,
) {
    let server = &node.server.server;
    let files = baseline(server);
    let (peak, used) = (Peak::watch(server.pid()), cpu(server.pid()));
    let began = Instant::now();
    let (answers, waited) = bystander(server.addr(), || slow(node.addr));
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

/// The same of a trickle.
fn ends(node: &Node, begun: &[u8], slow: &[u8], seconds: u64, said: impl Fn(&[u8]) -> bool) {
    ends_by(node, seconds, |addr| Slow::come(addr, begun).trickle(slow), said);
}

fn a_head_a_byte_at_a_time(by_tls: bool) {
    let node = Node::start(by_tls, &["--set", "timeouts.head_seconds=1.5"]);
    ends(&node, b"GET /channels/a HTTP/1.1\r\nHost: localhost\r\nX: ", b"y", 2, |answer| {
        answer.starts_with(b"HTTP/1.1 408 ")
    });
}

fn a_body_a_byte_at_a_time(by_tls: bool) {
    let node = Node::start(by_tls, &["--set", "timeouts.body_seconds=1.5"]);
    let head = b"POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n";
    ends(&node, head, b"x", 2, |answer| answer.starts_with(b"HTTP/1.1 408 "));
    let head = b"POST /channels/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    ends(&node, head, b"1\r\nx\r\n", 2, |answer| answer.starts_with(b"HTTP/1.1 408 "));
    assert!(poll(node.addr, "/channels/a").messages.is_empty());
}

/// A handshake whose bytes come one at a time: there is nothing to say to it.
#[test]
fn a_handshake_a_byte_at_a_time() {
    let node = Node::start(true, &["--set", "timeouts.head_seconds=1.5"]);
    let hello = node.server.hello();
    let bare = |addr| Slow::come_by(addr, || None, b"").trickle(&hello);
    ends_by(&node, 2, bare, <[u8]>::is_empty);
}

/// A record's bytes come one at a time: what is in it has not begun to come, and nobody waits longer for that.
#[test]
fn a_record_a_byte_at_a_time() {
    let node =
        Node::start(true, &["--set", "timeouts.head_seconds=1.5", "--set", "timeouts.idle_seconds=1.5"]);
    let head = wire(node.addr, "GET", "/channels/a", &[("X-Long", &"y".repeat(4_000))], b"");
    ends_by(&node, 2, |addr| Slow::come(addr, b"").trickle_sealed(&head), <[u8]>::is_empty);
}

/// Handshakes that are done, and nothing else.
#[test]
fn sessions_on_which_nothing_is_said() {
    let node = Node::start(true, &["--set", "timeouts.idle_seconds=1.5"]);
    ends_by(&node, 2, |addr| Slow::come(addr, b"").wait(), <[u8]>::is_empty);
}

/// 1001, which ends a connection whose request came too slowly.
fn is_timed_out(answer: &[u8]) -> bool {
    memchr::memmem::find(answer, &[0x03, 0xE9]).is_some()
        && memchr::memmem::find(answer, b"request_timeout").is_some()
}

fn a_websocket_frame_a_byte_at_a_time(by_tls: bool) {
    let node = Node::start(by_tls, &["--set", "timeouts.body_seconds=1.5"]);
    let addr = node.addr;
    let frame = masked(true, TEXT, &[b'x'; 60_000]);
    for protocol in [&[][..], &[("Sec-WebSocket-Protocol", V1_NAME)]] {
        let mut begun = request(addr, "/channels/a", protocol);
        begun.extend_from_slice(&frame[..20]);
        ends(&node, &begun, &frame[20..], 2, is_timed_out);
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
fn a_message_of_fragments_that_never_ends(by_tls: bool) {
    let node = Node::start(by_tls, &["--set", "timeouts.body_seconds=1.5"]);
    let mut begun = request(node.addr, "/channels/a", &[]);
    begun.extend(masked(false, TEXT, b"x"));
    let slow: Vec<u8> =
        [masked(false, CONTINUATION, b""), masked(true, PING, b"!"), masked(false, CONTINUATION, b"x")]
            .concat();
    ends(&node, &begun, &slow, 2, is_timed_out);
}

/// Each message has its own time: a connection that is never between two of them goes on.
fn messages_without_a_pause_are_no_slow_message(by_tls: bool) {
    let node = Node::start(by_tls, &["--set", "timeouts.body_seconds=1"]);
    let addr = node.addr;
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

/// Reads a byte now and then, while others get all.
fn a_reader_a_byte_at_a_time(by_tls: bool) {
    const READERS: usize = 100;
    const MESSAGES: usize = 400;
    let node = Node::start(
        by_tls,
        &["--set", "slow.kernel_bytes=66KiB", "--set", "history.bytes=256KiB", "--set", "feed.bytes=64KiB"],
    );
    let addr = node.addr;
    let mut slow = Vec::new();
    for n in 0..READERS {
        let mut conn = Conn::open(addr);
        receive_buffer(conn.stream(), 4_096);
        let head = match n % 2 {
            0 => wire(addr, "GET", "/channels/a", &[("Accept", "text/event-stream")], b""),
            _ => request(addr, "/channels/a", &[("Sec-WebSocket-Protocol", V1_NAME)]),
        };
        conn.send_raw(&head);
        conn.stream().set_nonblocking(true).expect("open");
        slow.push(conn);
    }
    let mut reader = Stream::open(addr, "/channels/a");
    let text = "x".repeat(16 * KIB);
    let (peak, used) = (Peak::watch(node.pid()), cpu(node.pid()));
    let began = Instant::now();
    let ((), waited) = bystander(addr, || {
        let mut conn = Conn::open(addr);
        for n in 0..MESSAGES {
            conn.request("POST", "/channels/a", &[("Content-Type", "text/plain")], format!("{n}:{text}"))
                .expect(201);
            assert!(reader.message().data.starts_with(&format!("{n}:")), "in order, none missing");
            for conn in &slow {
                let _ = conn.stream().read(&mut [0]);
            }
        }
    });
    let (took, used, (_, grown)) = (began.elapsed(), cpu(node.pid()) - used, peak.end());
    eprintln!("{took:?}, {used:?} of CPU, {} KiB, a bystander waited {waited:?}", grown / KIB);
    assert!(waited < AT_ONCE, "{waited:?}");
    // The rest of one message each, in its encoding; history, feeds and lanes.
    assert!(grown < READERS * 24 * KIB + 8 * MIB, "{} KiB", grown / KIB);
}

/// Reads nothing, and its kernel says that it lives: it is given `heartbeat.timeout_seconds`, on each transport.
fn a_window_that_stays_shut(by_tls: bool) {
    let node = Node::start(
        by_tls,
        &[
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
        ],
    );
    let (server, addr) = (&node.server.server, node.addr);
    let files = baseline(server);
    let text = "x".repeat(60 * KIB);
    let stalled: Vec<Conn> = [
        wire(addr, "GET", "/channels/a", &[("Accept", "text/event-stream")], b""),
        request(addr, "/channels/a", &[]),
        request(addr, "/channels/a", &[("Sec-WebSocket-Protocol", V1_NAME)]),
    ]
    .iter()
    .map(|head| {
        let mut conn = Conn::open(addr);
        receive_buffer(conn.stream(), 4_096);
        conn.send_raw(head);
        conn
    })
    .collect();
    let mut reader = Stream::open(addr, "/channels/a");
    // A poll whose answer is not read.
    let mut unread = Conn::open(addr);
    receive_buffer(unread.stream(), 4_096);
    for n in 0..40 {
        publish(addr, "a", &format!("{n}:{text}"));
        assert!(reader.message().data.starts_with(&format!("{n}:")));
    }
    unread.send_raw(wire(addr, "GET", "/channels/a?limit=40", &[], b""));
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
    settled(server, files);
    drop((stalled, unread));
}

/// Peers whose machine is gone, or whose network is: nothing that is sent to them comes back.
fn half_open_peers_are_given_up(by_tls: bool) {
    if !own_network() {
        eprintln!("skipped: this user may not make a network of its own (unshare)");
        return;
    }
    let node = Node::start(
        by_tls,
        &[
            "--set",
            "heartbeat.interval_seconds=0.5",
            "--set",
            "heartbeat.timeout_seconds=1.5",
            "--set",
            "timeouts.idle_seconds=2",
            "--set",
            "timeouts.body_seconds=2",
        ],
    );
    let (server, addr) = (&node.server.server, node.addr);
    let files = baseline(server);
    let mut peers = Vec::new();
    for head in [
        wire(addr, "GET", "/channels/a", &[("Accept", "text/event-stream")], b""),
        request(addr, "/channels/a", &[]),
        request(addr, "/channels/a", &[("Sec-WebSocket-Protocol", V1_NAME)]),
        wire(addr, "GET", "/channels/a?limit=0", &[], b""),
        b"POST /channels/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx".to_vec(),
        b"GET /chan".to_vec(),
        Vec::new(),
    ] {
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
    until("all are given up", || (descriptors(node.pid()) <= files).then_some(()));
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
fn a_slow_one_beside_a_fast_one_on_the_same_worker(by_tls: bool) {
    let node = Node::start(by_tls, &["--workers", "1"]);
    let addr = node.addr;
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
