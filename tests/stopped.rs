//! 500 of 2,000 readers stop reading while 64 MiB are published to the channels of all: the others do not suffer, and
//! what the stopped ones cost is bounded, in the server and in the kernel.

use crate::common;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::crowd::{Crowd, Heard, own_memory};
use common::http::Conn;
use common::server::Server;
use common::sock_diag::send_queues;
use common::sse::{Item, Stream};
use common::ws::{Message, Socket, V1, text_of};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

const STOPPED: usize = 500;
const READING: usize = 1_500;
const MESSAGES: usize = 4_096;
const MESSAGE_BYTES: usize = 16 * KIB;
const KERNEL_BYTES: usize = 96 * KIB;
const WORKERS: usize = 2;

/// Channels among which readers and messages are divided. All on one, `PUSHLINE_FLOOD_CHANNELS=1`, is 96 GB over
/// loopback in each of two runs: it is for a patient person.
fn channels() -> usize {
    std::env::var("PUSHLINE_FLOOD_CHANNELS").map_or(20, |count| count.parse().expect("a number of channels"))
}

/// What each channel has of a flood.
#[derive(Clone, Copy)]
struct Share {
    channels: usize,
    messages: usize,
    history_bytes: usize,
    feed_bytes: usize,
}

impl Share {
    fn of(channels: usize) -> Self {
        // History holds a sixteenth of what is published, and a feed a quarter of that.
        let messages = MESSAGES / channels;
        let history_bytes = messages * MESSAGE_BYTES / 16;
        Self { channels, messages, history_bytes, feed_bytes: (history_bytes / 4).max(2 * MESSAGE_BYTES) }
    }

    fn channel_of(self, reader: usize) -> usize {
        reader % self.channels
    }

    fn name(channel: usize) -> String {
        format!("flood/{channel}")
    }
}

/// What one run measured.
#[derive(Default)]
struct Run {
    /// From publishing to arriving at each reader that reads, sorted.
    latencies: Vec<Duration>,
    /// The most that the server's own memory grew.
    grown: usize,
    /// Of a stopped reader's socket: the most bytes unsent, and sent but not acknowledged.
    unsent: usize,
    in_flight: usize,
}

impl Run {
    fn percentile(&self, percent: usize) -> Duration {
        self.latencies[(self.latencies.len() - 1) * percent / 100]
    }
}

#[test]
fn stopped_readers_cost_the_others_nothing() {
    let share = Share::of(channels());
    let without = flood(share, 0);
    let with = flood(share, STOPPED);
    let mut report = String::new();
    for (percent, slack) in [(50, Duration::from_millis(20)), (99, Duration::from_millis(200))] {
        let (before, after) = (without.percentile(percent), with.percentile(percent));
        report += &format!("p{percent}: {before:?} without, {after:?} with\n");
        // Generous: two cores do everything here. A pass that visited stopped readers would show all the same.
        assert!(after <= before * 3 + slack, "the others' latency suffers:\n{report}");
    }
    // Each stopped reader may hold the rest of one message, in its encoding; the rest is bounded whoever reads.
    let owed = STOPPED * (MESSAGE_BYTES * 4 / 3 + KIB);
    // Lanes of three encodings and recent messages on each worker, in buffers that double.
    let feeds = share.channels * WORKERS * (3 * 2 + 1) * share.feed_bytes;
    let bound = share.channels * share.history_bytes + feeds + owed + 8 * MIB;
    eprintln!("{report}memory grew by {} KiB of {}", with.grown / KIB, bound / KIB);
    eprintln!("at most {} KiB unsent, {} KiB in flight", with.unsent / KIB, with.in_flight / KIB);
    assert!(with.grown <= bound, "own memory grew by {}, more than {bound}", with.grown);
    // What is in flight is the receiver's to bound, by its window.
    assert!(with.unsent > 0, "nobody was stopped");
    assert!(with.unsent <= KERNEL_BYTES, "unsent to a stopped reader: {}", with.unsent);
}

fn flood(share: Share, stopped: usize) -> Run {
    let server = Server::start(&[
        "--workers",
        &WORKERS.to_string(),
        "--set",
        &format!("history.bytes={}", share.history_bytes),
        "--set",
        "history.messages=100000",
        "--set",
        &format!("feed.bytes={}", share.feed_bytes),
        "--set",
        &format!("slow.kernel_bytes={KERNEL_BYTES}"),
        // They stay for the whole flood, so that what they cost is seen.
        "--set",
        "slow.policy=skip",
        // Not what is measured here, and the stopped ones will be silent.
        "--set",
        "heartbeat.interval_seconds=60",
        "--set",
        "heartbeat.timeout_seconds=120",
    ]);
    let addr = server.addr();
    let mut halted = Halted::default();
    for number in 0..stopped {
        halted.open(addr, number, share);
    }
    let mut crowd = Crowd::new();
    for number in 0..READING {
        crowd.add(reading(addr, number, &Share::name(share.channel_of(number))));
    }
    let before = own_memory(server.pid());
    let start = Instant::now();
    let done = AtomicBool::new(false);
    // How far the slowest reader of each channel has come.
    let least: Vec<AtomicUsize> = (0..share.channels).map(|_| AtomicUsize::new(0)).collect();
    let ports = halted.ports();
    let mut run = Run::default();
    std::thread::scope(|scope| {
        // Whoever fails, the others must end.
        let _ended = Ends(&done);
        let publisher = scope.spawn(|| {
            let _ended = Ends(&done);
            let mut conn = Conn::open(addr);
            for n in 0..share.messages {
                for (channel, least) in least.iter().enumerate() {
                    // Those that read do so as fast as this machine lets them: history must not run away from them.
                    let ahead = share.history_bytes / MESSAGE_BYTES / 2;
                    common::until("the readers keep up", || {
                        (least.load(Ordering::SeqCst) + ahead > n).then_some(())
                    });
                    publish(&mut conn, &Share::name(channel), n, start);
                }
            }
        });
        let watch = scope.spawn(|| {
            let mut seen = Run::default();
            while !done.load(Ordering::SeqCst) {
                seen.grown = own_memory(server.pid()).saturating_sub(before).max(seen.grown);
                let queues = send_queues(addr.port());
                for queue in ports.iter().filter_map(|port| queues.get(port)) {
                    seen.unsent = seen.unsent.max(queue.unsent);
                    seen.in_flight = seen.in_flight.max(queue.in_flight);
                }
                // A rate, not a wait: what is seen grows only.
                std::thread::sleep(Duration::from_millis(50));
            }
            seen
        });
        let mut readers: Vec<Marks> = (0..READING).map(|_| Marks::default()).collect();
        let end = Instant::now() + Duration::from_secs(300);
        while readers.iter().any(|reader| reader.next < share.messages) {
            crowd.listen(Duration::from_millis(100), |number, heard| {
                let Heard::Bytes(bytes) = heard else { panic!("reader {number} was ended") };
                readers[number].push(bytes, |at| run.latencies.push(start.elapsed().saturating_sub(at)));
            });
            let mut at: HashMap<usize, usize> = HashMap::new();
            for (number, reader) in readers.iter().enumerate() {
                let at = at.entry(share.channel_of(number)).or_insert(usize::MAX);
                *at = reader.next.min(*at);
            }
            at.iter().for_each(|(channel, at)| least[*channel].store(*at, Ordering::SeqCst));
            assert!(
                !publisher.is_finished() || !done.load(Ordering::SeqCst) || Instant::now() < end,
                "{at:?}"
            );
            assert!(Instant::now() < end, "not all was delivered in time; the channels are at {at:?}");
        }
        done.store(true, Ordering::SeqCst);
        let seen = watch.join().expect("the watch watches");
        run = Run { latencies: std::mem::take(&mut run.latencies), ..seen };
    });
    run.latencies.sort();
    halted.go_on(share);
    run
}

/// Says that the flood is over, also when its thread fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

/// Publishes `#n:ns;` and padding.
fn publish(conn: &mut Conn, channel: &str, n: usize, start: Instant) {
    let mut body = format!("#{n}:{};", start.elapsed().as_nanos());
    body.extend(std::iter::repeat_n('x', MESSAGE_BYTES - body.len()));
    let target = format!("/channels/{channel}");
    conn.request("POST", &target, &[("Content-Type", "text/plain")], body).expect(201);
}

/// A reader's socket, by SSE or raw WebSocket, with its head read.
fn reading(addr: SocketAddr, number: usize, channel: &str) -> TcpStream {
    let target = format!("/channels/{channel}");
    let socket = match number / 20 % 2 {
        0 => Stream::open(addr, &target).conn().stream().try_clone(),
        _ => Socket::open(addr, &target).conn().stream().try_clone(),
    };
    socket.expect("a descriptor")
}

/// Finds `#n:ns;` in a stream of bytes, however cut, and sees to it that none is missing.
#[derive(Default)]
struct Marks {
    next: usize,
    /// A mark cut at the end of what came.
    rest: Vec<u8>,
}

impl Marks {
    fn push(&mut self, bytes: &[u8], mut seen: impl FnMut(Duration)) {
        self.rest.extend_from_slice(bytes);
        let mut from = 0;
        while let Some(at) = memchr::memchr(b'#', &self.rest[from..]) {
            let mark = from + at + 1;
            let Some(length) = memchr::memchr(b';', &self.rest[mark..]) else {
                self.rest.drain(..mark - 1);
                return;
            };
            let text = std::str::from_utf8(&self.rest[mark..mark + length]).expect("ASCII");
            let (n, ns) = text.split_once(':').expect("#n:ns;");
            assert_eq!(n, self.next.to_string(), "the next message");
            self.next += 1;
            seen(Duration::from_nanos(ns.parse().expect("a number")));
            from = mark + length;
        }
        self.rest.clear();
    }
}

/// Readers that do not read.
#[derive(Default)]
struct Halted {
    streams: Vec<Stream>,
    v1s: Vec<V1>,
    raws: Vec<Socket>,
}

impl Halted {
    fn open(&mut self, addr: SocketAddr, number: usize, share: Share) {
        let channel = Share::name(share.channel_of(number));
        let target = format!("/channels/{channel}");
        // Each channel has some of each kind.
        match number / share.channels % 4 {
            0 | 1 => self.streams.push(Stream::open(addr, &target)),
            2 => self.v1s.push(V1::subscribed(addr, &channel).0),
            _ => self.raws.push(Socket::open(addr, &target)),
        }
    }

    fn ports(&mut self) -> Vec<u16> {
        let conns = self.streams.iter_mut().map(Stream::conn);
        let conns = conns.chain(self.v1s.iter_mut().map(|v1| v1.socket.conn()));
        conns
            .chain(self.raws.iter_mut().map(Socket::conn))
            .map(|conn| conn.stream().local_addr().expect("a bound socket").port())
            .collect()
    }

    /// A few of them read on: each gets a beginning, is told the gap, and gets the end.
    fn go_on(mut self, share: Share) {
        let last = share.messages - 1;
        for stream in self.streams.iter_mut().take(10) {
            read_on(last, || match stream.item() {
                Some(Item::Event(event)) if event.name == "$gap" => Told::Gap,
                Some(Item::Event(event)) => Told::Message(number_of(&event.data)),
                Some(_) => Told::Nothing,
                None => panic!("the stream ended"),
            });
        }
        for v1 in self.v1s.iter_mut().take(10) {
            read_on(last, || {
                let object = v1.next();
                match &text_of(&object, "type")[..] {
                    "gap" => Told::Gap,
                    "message" => Told::Message(number_of(&text_of(&object, "data"))),
                    _ => panic!("{object}"),
                }
            });
        }
        // Raw cannot be told a gap: it ends.
        for raw in self.raws.iter_mut().take(10) {
            let mut next = 0;
            loop {
                match raw.message() {
                    Message::Text(text) => {
                        assert_eq!(number_of(&text), next);
                        next += 1;
                    }
                    Message::Close(4408) | Message::End => break,
                    other => panic!("{other:?}"),
                }
            }
            assert!(next < last);
        }
    }
}

enum Told {
    Message(usize),
    Gap,
    Nothing,
}

/// Reads up to message `last`: in order, and none missing but where a gap was told, which must be at least once.
fn read_on(last: usize, mut next: impl FnMut() -> Told) {
    let (mut want, mut told, mut gaps) = (0, false, 0);
    while want <= last {
        match next() {
            Told::Gap => {
                told = true;
                gaps += 1;
            }
            Told::Message(n) => {
                assert!(n == want || (told && n > want), "{n} came, {want} was next, gap told: {told}");
                want = n + 1;
                told = false;
            }
            Told::Nothing => {}
        }
    }
    assert!(gaps > 0, "no gap in a flood of 16 times the history");
}

/// The number in a message's `#n:…`.
fn number_of(text: &str) -> usize {
    let text = text.strip_prefix('#').expect("#n:…");
    text[..text.find(':').expect("a number")].parse().expect("a number")
}
