//! Slow readers: they cost the others nothing and the server little, and get what their channel's policy says.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use common::crowd::{Crowd, Heard, own_memory, send_queues};
use common::http::{Conn, head_cursor, poll};
use common::receive_buffer;
use common::server::Server;
use common::sse::{Item, Stream};
use common::ws::{Message, Socket, V1, V1_NAME, request, text_of};

const MIB: usize = 1024 * 1024;

// --- 2,000 readers, of which 500 stop ---------------------------------------------------------------------------------

/// Readers of the channel that is flooded, which stop at once; as many again of its readers go on.
const STOPPED: usize = 500;
/// Readers of the flooded channel that go on. Not more: 64 MB to each of 1,500 would be 96 GB, which would measure the
/// machine's memory bus.
const FLOODED: usize = 20;
/// Readers of another channel on the same workers.
const OTHERS: usize = 1_480;

const FLOOD_MESSAGES: usize = 4_096;
const FLOOD_MESSAGE_BYTES: usize = 16 * 1024;
const KERNEL_BYTES: usize = 64 * 1024;
/// Sent and not acknowledged, of one stopped reader.
const IN_FLIGHT_BYTES: usize = 32 * 1024;
const HISTORY_BYTES: usize = 4 * MIB;
const FEED_BYTES: usize = MIB;
const WORKERS: usize = 2;

/// What one run measured.
struct Run {
    /// Latencies of messages to the others, and to the flooded readers that go on, sorted.
    others: Vec<Duration>,
    flooded: Vec<Duration>,
    /// The most that the server's own memory grew while the flood went on.
    grown: usize,
    /// The fullest send queue of a stopped reader.
    queued: usize,
}

/// A percentile of sorted times.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() - 1) * percent / 100]
}

#[test]
fn stopped_readers_cost_the_others_nothing() {
    let without = flood(0);
    let with = flood(STOPPED);
    let mut report = String::new();
    for (name, without, with) in
        [("others", &without.others, &with.others), ("flooded", &without.flooded, &with.flooded)]
    {
        for (percent, slack) in [(50, Duration::from_millis(20)), (99, Duration::from_millis(200))] {
            let (before, after) = (percentile(without, percent), percentile(with, percent));
            report += &format!("{name} p{percent}: {before:?} without, {after:?} with\n");
            // Generous: two cores do everything here. A pass that visited stopped readers would show all the same.
            assert!(after <= before * 3 + slack, "the others' latency suffers:\n{report}");
        }
    }
    // Each stopped reader may hold the rest of one message, in its encoding; the rest is bounded whoever reads.
    let owed = STOPPED * (FLOOD_MESSAGE_BYTES * 4 / 3 + 1_024);
    let feeds = WORKERS * 3 * FEED_BYTES;
    let bound = HISTORY_BYTES + feeds + owed + 24 * MIB;
    eprintln!("{report}memory grew by {} KiB of {}", with.grown / 1_024, bound / 1_024);
    eprintln!("fullest send queue: {} KiB", with.queued / 1_024);
    assert!(with.grown <= bound, "own memory grew by {}, more than {bound}", with.grown);
    // The kernel looks before it takes a segment, which may be 64 KiB; and what is on its way counts with the queue until
    // it is acknowledged, up to the window that the receiver had before it closed.
    let most = KERNEL_BYTES + 64 * 1024 + IN_FLIGHT_BYTES + FLOOD_MESSAGE_BYTES;
    assert!(with.queued > 0 && with.queued <= most, "a stopped reader's send queue: {}", with.queued);
}

fn flood(stopped: usize) -> Run {
    let server = Server::start(&[
        "--workers",
        &WORKERS.to_string(),
        "--set",
        &format!("history.bytes={HISTORY_BYTES}"),
        "--set",
        "history.messages=100000",
        "--set",
        &format!("feed.bytes={FEED_BYTES}"),
        "--set",
        &format!("slow.kernel_bytes={KERNEL_BYTES}"),
        // They stay for the whole flood, so that what they cost is seen.
        "--set",
        "slow.policy=skip",
        // Not what is measured here, and half of the sockets will be silent.
        "--set",
        "heartbeat.interval_seconds=60",
        "--set",
        "heartbeat.timeout_seconds=120",
    ]);
    let addr = server.addr();
    let start = Instant::now();
    let mut halted = Halted::default();
    for number in 0..stopped {
        halted.open(addr, number);
    }
    let mut crowd = Crowd::new();
    for number in 0..FLOODED + OTHERS {
        let channel = if number < FLOODED { "flood" } else { "others" };
        crowd.add(if number % 2 == 0 { stream_socket(addr, channel) } else { raw_socket(addr, channel) });
    }
    let before = own_memory(server.pid());
    let (done, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    // How far the slowest of the flooded readers that go on has come.
    let least = AtomicUsize::new(0);
    let peers = halted.peers();
    let mut run = Run { others: Vec::new(), flooded: Vec::new(), grown: 0, queued: 0 };
    std::thread::scope(|scope| {
        // Whoever fails, the others must end.
        let _ended = Ends(&done);
        let flood = scope.spawn(|| {
            let _ended = Ends(&done);
            let mut conn = Conn::open(addr);
            for n in 0..FLOOD_MESSAGES {
                // Those that go on read as fast as this machine lets them: history must not run away from them.
                common::until("the flooded readers keep up", || {
                    (least.load(Ordering::SeqCst) + HISTORY_BYTES / FLOOD_MESSAGE_BYTES / 2 > n).then_some(())
                });
                publish(&mut conn, "flood", n, start, FLOOD_MESSAGE_BYTES);
            }
        });
        scope.spawn(|| {
            let mut conn = Conn::open(addr);
            while !done.load(Ordering::SeqCst) {
                let n = sent.load(Ordering::SeqCst);
                publish(&mut conn, "others", n, start, 100);
                sent.store(n + 1, Ordering::SeqCst);
                // A rate, not a wait: the same in both runs.
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        let watch = scope.spawn(|| {
            let (mut grown, mut queued) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                grown = own_memory(server.pid()).saturating_sub(before).max(grown);
                let queues = send_queues(addr.port());
                queued =
                    peers.iter().filter_map(|peer| queues.get(peer)).copied().max().unwrap_or(0).max(queued);
                std::thread::sleep(Duration::from_millis(100));
            }
            (grown, queued)
        });
        let mut readers: Vec<Marks> = (0..FLOODED + OTHERS).map(|_| Marks::default()).collect();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            crowd.listen(Duration::from_millis(100), |number, heard| {
                let Heard::Bytes(bytes) = heard else { panic!("reader {number} was ended") };
                let times = if number < FLOODED { &mut run.flooded } else { &mut run.others };
                readers[number].push(bytes, |at| times.push(start.elapsed().saturating_sub(at)));
            });
            let at: Vec<usize> = readers[..FLOODED].iter().map(|reader| reader.next).collect();
            least.store(at.iter().copied().min().unwrap_or(0), Ordering::SeqCst);
            let want =
                |number: usize| if number < FLOODED { FLOOD_MESSAGES } else { sent.load(Ordering::SeqCst) };
            let all = readers.iter().enumerate().all(|(number, reader)| reader.next >= want(number));
            if flood.is_finished() && all {
                break;
            }
            assert!(Instant::now() < end, "not all was delivered in time; the flooded readers are at {at:?}");
        }
        (run.grown, run.queued) = watch.join().expect("the watch watches");
    });
    run.others.sort();
    run.flooded.sort();
    halted.go_on();
    run
}

/// Says that the flood is over, also when its thread fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Publishes `#n:ns;` and padding.
fn publish(conn: &mut Conn, channel: &str, n: usize, start: Instant, bytes: usize) {
    let mut body = format!("#{n}:{};", start.elapsed().as_nanos());
    body.extend(std::iter::repeat_n('x', bytes - body.len()));
    let target = format!("/channels/{channel}");
    conn.request("POST", &target, &[("Content-Type", "text/plain")], body).expect(201);
}

/// A stream's socket, its head and `$open` read.
fn stream_socket(addr: SocketAddr, channel: &str) -> TcpStream {
    let mut stream = Stream::open(addr, &format!("/channels/{channel}"));
    stream.conn().stream().try_clone().expect("a descriptor")
}

fn raw_socket(addr: SocketAddr, channel: &str) -> TcpStream {
    let mut socket = Socket::open(addr, &format!("/channels/{channel}"));
    socket.conn().stream().try_clone().expect("a descriptor")
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
    fn open(&mut self, addr: SocketAddr, number: usize) {
        match number % 4 {
            0 | 1 => self.streams.push(Stream::open(addr, "/channels/flood")),
            2 => self.v1s.push(V1::subscribed(addr, "flood").0),
            _ => self.raws.push(Socket::open(addr, "/channels/flood")),
        }
    }

    fn peers(&mut self) -> Vec<u16> {
        let conns = self.streams.iter_mut().map(Stream::conn);
        let conns = conns.chain(self.v1s.iter_mut().map(|v1| v1.socket.conn()));
        conns
            .chain(self.raws.iter_mut().map(Socket::conn))
            .map(|conn| conn.stream().local_addr().expect("a bound socket").port())
            .collect()
    }

    /// A few of them read on: each gets a beginning, is told the gap, and gets the end.
    fn go_on(mut self) {
        let last = FLOOD_MESSAGES - 1;
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

/// The number in a message's `#n:…` or `n:…`.
fn number_of(text: &str) -> usize {
    let text = text.trim_start_matches('#');
    text[..text.find(':').expect("a number")].parse().expect("a number")
}

// --- What a stopped reader gets ---------------------------------------------------------------------------------------

/// One message of [`burst`].
const BURST_MESSAGE_BYTES: usize = 8 * 1024;
/// What history holds in the tests of policies.
const HELD: usize = 10;

/// A history of 10 messages, small feeds and sockets, and all three policies by pattern.
const BY_PATTERN: &[&str] = &[
    "--set",
    "history.messages=10",
    "--set",
    "limits.message_bytes=16KiB",
    "--set",
    "feed.bytes=40KiB",
    "--set",
    "slow.kernel_bytes=4KiB",
    "--set",
    "slow.policy=disconnect",
    "--set",
    "slow.rules=[{ channels = \"skip/*\", policy = \"skip\" }, { channels = \"latest/**\", policy = \"latest\" }]",
    // A worker that is starved of its core must not look like a stopped reader: one worker serves all.
    "--workers",
    "1",
];

/// Publishes messages `from..to` of 8 KiB, each when a reader that reads has the one before: so it is the stopped reader
/// that falls behind, and not a worker that this machine lets wait.
fn burst(addr: SocketAddr, channel: &str, from: usize, to: usize) {
    let target = format!("/channels/{channel}");
    let mut control = Stream::open(addr, &target);
    let mut conn = Conn::open(addr);
    for n in from..to {
        let body = format!("{n}:{}", "x".repeat(BURST_MESSAGE_BYTES));
        conn.request("POST", &target, &[("Content-Type", "text/plain")], body).expect(201);
        assert_eq!(number_of(&control.message().data), n);
    }
}

/// More messages than the sockets, the feed and history of [`BY_PATTERN`] hold together: 4.9 MB. A socket whose owner does
/// not read takes some 100 KB.
const BURST: usize = 600;

/// What a reader got after it had stopped: messages in order up to the first gap, then those after the last gap.
#[derive(Debug, Default)]
struct Got {
    first: Vec<usize>,
    gaps: usize,
    after: Vec<usize>,
}

impl Got {
    fn message(&mut self, n: usize) {
        let run = if self.gaps == 0 { &mut self.first } else { &mut self.after };
        if let Some(last) = run.last() {
            assert_eq!(n, last + 1, "in order, none missing");
        }
        run.push(n);
    }

    fn gap(&mut self) {
        self.gaps += 1;
        self.after.clear();
    }

    fn last(&self) -> Option<usize> {
        self.after.last().or(self.first.last()).copied()
    }

    /// Fell out of what the server keeps, was told so, and went on with the `count` newest.
    #[track_caller]
    fn went_on_with(&self, count: usize) {
        assert_eq!(self.first.first(), Some(&0), "{self:?}");
        assert!(self.first.len() < BURST - HELD && self.gaps > 0, "{self:?}");
        assert!(self.after.iter().copied().eq(BURST - count..BURST), "{self:?}");
    }
}

fn read_stream(stream: &mut Stream) -> Got {
    let mut got = Got::default();
    while got.last() != Some(BURST - 1) {
        match stream.event() {
            event if event.name == "$gap" => got.gap(),
            event => got.message(number_of(&event.expect_message().data)),
        }
    }
    got
}

fn read_v1(v1: &mut V1) -> Got {
    let mut got = Got::default();
    while got.last() != Some(BURST - 1) {
        let object = v1.next();
        match &text_of(&object, "type")[..] {
            "gap" => got.gap(),
            "message" => got.message(number_of(&text_of(&object, "data"))),
            "subscribed" => {}
            _ => panic!("{object}"),
        }
    }
    got
}

#[test]
fn skip_tells_the_gap_and_goes_on_from_the_oldest_held() {
    let server = Server::start(BY_PATTERN);
    let mut stream = Stream::open(server.addr(), "/channels/skip/a");
    let mut v1 = V1::open(server.addr(), "/channels/skip/a");
    burst(server.addr(), "skip/a", 0, BURST);
    read_stream(&mut stream).went_on_with(HELD);
    read_v1(&mut v1).went_on_with(HELD);
    burst(server.addr(), "skip/a", BURST, BURST + 1);
    assert_eq!(number_of(&stream.message().data), BURST, "and stays");
}

#[test]
fn latest_tells_the_gap_and_goes_on_from_the_newest() {
    let server = Server::start(BY_PATTERN);
    let mut stream = Stream::open(server.addr(), "/channels/latest/a/b");
    let mut v1 = V1::open(server.addr(), "/channels/latest/a/b");
    burst(server.addr(), "latest/a/b", 0, BURST);
    read_stream(&mut stream).went_on_with(1);
    read_v1(&mut v1).went_on_with(1);
    burst(server.addr(), "latest/a/b", BURST, BURST + 1);
    assert_eq!(number_of(&stream.message().data), BURST, "and stays");
}

#[test]
fn disconnect_closes_it_and_the_cursor_tells_the_gap() {
    let server = Server::start(BY_PATTERN);
    let addr = server.addr();
    // No pattern matches these.
    for channel in ["plain", "skip", "skip/a/b"] {
        let mut stream = Stream::open(addr, &format!("/channels/{channel}"));
        let mut v1 = V1::open(addr, &format!("/channels/{channel}"));
        burst(addr, channel, 0, BURST);
        let mut cursor = stream.cursor.clone();
        let mut got = Got::default();
        loop {
            let Item::Event(event) = stream.item().expect("`$close` comes before the end") else { continue };
            if event.name == "$close" {
                let told = event.json();
                assert_eq!(told["reason"], "slow", "{event:?}");
                assert!(told["reconnect_ms"].is_u64(), "{event:?}");
                break;
            }
            cursor.clone_from(&event.id);
            got.message(number_of(&event.expect_message().data));
        }
        stream.ended();
        assert!(got.first.len() < BURST - HELD, "{got:?}");
        let mut again = Stream::resume(addr, &format!("/channels/{channel}"), &cursor);
        again.event().named("$gap");
        let texts = again.texts(HELD);
        assert!(texts.iter().map(|text| number_of(text)).eq(BURST - HELD..BURST));

        let mut got = Got::default();
        let code = loop {
            match v1.socket.message() {
                Message::Text(text) => {
                    let object: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                    match &text_of(&object, "type")[..] {
                        "message" => got.message(number_of(&text_of(&object, "data"))),
                        "subscribed" => {}
                        "closing" => assert_eq!(object["reason"], "slow", "{object}"),
                        _ => panic!("{object}"),
                    }
                }
                Message::Close(code) => break code,
                other => panic!("{other:?} instead of the close frame"),
            }
        };
        assert_eq!(code, 4408);
        assert!(got.first.len() < BURST - HELD, "{got:?}");
    }
}

/// Raw cannot be told a gap, so every policy ends it.
#[test]
fn raw_is_closed_with_4408_whatever_the_policy() {
    let server = Server::start(BY_PATTERN);
    for channel in ["plain", "skip/a", "latest/a"] {
        let mut socket = Socket::open(server.addr(), &format!("/channels/{channel}"));
        burst(server.addr(), channel, 0, BURST);
        let mut got = Got::default();
        let end = loop {
            match socket.message() {
                Message::Text(text) => got.message(number_of(&text)),
                end => break end,
            }
        };
        assert_eq!(end, Message::Close(4408), "{channel}");
        assert!(got.first.first() == Some(&0) && got.first.len() < BURST - HELD, "{got:?}");
    }
}

#[test]
fn the_policy_for_all_channels() {
    for (policy, count) in [("skip", HELD), ("latest", 1)] {
        let mut args = BY_PATTERN[..8].to_vec();
        let policy = format!("slow.policy={policy}");
        args.extend(["--set", &policy]);
        let server = Server::start(&args);
        let mut stream = Stream::open(server.addr(), "/channels/any");
        burst(server.addr(), "any", 0, BURST);
        read_stream(&mut stream).went_on_with(count);
    }
}

/// The channels of one reader have each its own policy, and one's flood loses nothing of another.
#[test]
fn a_flooded_channel_loses_nothing_of_its_neighbour() {
    let server = Server::start(BY_PATTERN);
    let addr = server.addr();
    let mut stream = Stream::open(addr, "/channels/skip/a,calm");
    let mut v1 = V1::open(addr, "/channels/skip/a,calm");
    burst(addr, "skip/a", 0, BURST);
    burst(addr, "calm", 0, 3);
    for kind in ["sse", "v1"] {
        let (mut got, mut calm) = (Got::default(), Vec::new());
        while got.last() != Some(BURST - 1) || calm.len() < 3 {
            let (name, channel, data) = if kind == "sse" {
                let event = stream.event();
                let object = event.json();
                let name = if event.name == "$gap" { "gap" } else { "message" };
                (name.to_owned(), text_of(&object, "channel"), object["data"].clone())
            } else {
                let object = v1.next();
                (text_of(&object, "type"), text_of(&object, "channel"), object["data"].clone())
            };
            match (&name[..], &channel[..]) {
                ("subscribed", _) => {}
                ("gap", "skip/a") => got.gap(),
                ("message", "skip/a") => got.message(number_of(data.as_str().expect("a text"))),
                ("message", "calm") => calm.push(number_of(data.as_str().expect("a text"))),
                other => panic!("{other:?}"),
            }
        }
        got.went_on_with(HELD);
        assert_eq!(calm, [0, 1, 2]);
    }
}

/// History holds far more than feed and sockets.
const LONG: &[&str] = &[
    "--set",
    "history.messages=100000",
    "--set",
    "history.bytes=64MiB",
    "--set",
    "limits.message_bytes=16KiB",
    "--set",
    "feed.bytes=40KiB",
    "--set",
    "slow.kernel_bytes=4KiB",
];

/// A policy applies only when history no longer holds the position: until then a slow reader is only late.
#[test]
fn a_reader_that_goes_on_loses_nothing_that_history_holds() {
    let server = Server::start(LONG);
    let addr = server.addr();
    let mut stream = Stream::open(addr, "/channels/a");
    let mut several = Stream::open(addr, "/channels/b,a");
    let mut v1 = V1::open(addr, "/channels/a");
    let mut raw = Socket::open(addr, "/channels/a");
    burst(addr, "a", 0, BURST);
    for got in [read_stream(&mut stream), read_v1(&mut v1)] {
        assert_eq!((got.first.len(), got.gaps), (BURST, 0));
    }
    for want in 0..BURST {
        assert_eq!(number_of(&raw.expect_text()), want);
        let object = several.message().json();
        assert_eq!(number_of(&text_of(&object, "data")), want);
    }
    burst(addr, "a", BURST, BURST + 1);
    assert_eq!(number_of(&stream.message().data), BURST, "and is live again");
    assert_eq!(number_of(&raw.expect_text()), BURST);
}

#[test]
fn a_stopped_reader_that_resumes_by_cursor_loses_nothing_that_history_holds() {
    let server = Server::start(LONG);
    let addr = server.addr();
    let mut stream = Stream::open(addr, "/channels/a");
    let v1 = V1::open(addr, "/channels/a");
    burst(addr, "a", 0, BURST);
    let mut cursor = stream.cursor.clone();
    for want in 0..5 {
        let message = stream.message();
        assert_eq!(number_of(&message.data), want);
        cursor = message.id;
    }
    drop((stream, v1));
    let mut next = 5;
    while next < BURST {
        let page = poll(addr, &format!("/channels/a?cursor={cursor}"));
        assert!(!page.gap);
        for data in page.data() {
            assert_eq!(number_of(data.as_str().expect("a text")), next);
            next += 1;
        }
        cursor = page.cursor;
    }
}

/// Control frames are the one thing that a full socket must not pile up.
#[test]
fn pings_of_a_reader_that_does_not_read_are_bounded() {
    let server = Server::start(LONG);
    let addr = server.addr();
    let mut socket = Socket::open(addr, "/channels/a");
    burst(addr, "a", 0, 100);
    let before = own_memory(server.pid());
    let flood: Vec<u8> =
        (0..1_000).flat_map(|_| common::ws::masked(true, common::ws::PING, &[b'p'; 125])).collect();
    socket.conn().stream().set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    for _ in 0..200 {
        // A server may stop reading from who does not read: then writing ends here.
        if socket.conn().try_send_raw(&flood).is_err() {
            break;
        }
    }
    let grown = own_memory(server.pid()).saturating_sub(before);
    assert!(grown < 8 * MIB, "26 MB of pings grew the server by {grown}");
    publish_and_see(addr);
}

/// The server still serves.
fn publish_and_see(addr: SocketAddr) {
    let mut stream = Stream::open(addr, "/channels/check");
    common::http::publish(addr, "check", "x");
    assert_eq!(stream.texts(1), ["x"]);
}

/// A reader that takes a byte at a time gets all of it, and a publisher never waits for it.
#[test]
fn a_trickling_reader_gets_all_of_it() {
    let server = Server::start(LONG);
    let addr = server.addr();
    let start = head_cursor(addr, "a");
    let mut socket = TcpStream::connect(addr).expect("the server accepts");
    receive_buffer(&socket, 2 * 1024);
    socket.set_read_timeout(Some(common::DEADLINE)).expect("a timeout");
    socket
        .write_all(&request(addr, "/channels/a", &[("Sec-WebSocket-Protocol", V1_NAME)]))
        .expect("it reads");
    burst(addr, "a", 0, 40);
    let mut seen = Vec::new();
    let mut part = [0; 97];
    while !seen.ends_with(b"\"}") || memchr::memmem::rfind(&seen, b"\"39:").is_none() {
        let count = socket.read(&mut part).expect("it goes on");
        assert!(count > 0, "the end came early");
        seen.extend_from_slice(&part[..count]);
    }
    for want in 0..40 {
        let mark = format!("\"data\":\"{want}:");
        assert!(memchr::memmem::find(&seen, mark.as_bytes()).is_some(), "{want}");
    }
    let held = poll(addr, &format!("/channels/a?cursor={start}&limit=1"));
    assert_eq!(held.messages[0]["channel"], json!("a"));
}
