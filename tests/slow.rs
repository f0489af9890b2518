//! Slow readers get what their channel's policy says, and lose nothing that history holds (`stopped.rs`: what they cost).

use crate::common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::json;

use common::crowd::{Crowd, Heard, own_memory};
use common::http::{Conn, head_cursor, poll, publish};
use common::server::Server;
use common::sse::{Item, Stream};
use common::ws::{Message, Socket, V1, V1_NAME, request, text_of};
use common::{DEADLINE, receive_buffer};

const MIB: usize = 1024 * 1024;

/// The number in a message's `n:…`.
fn number_of(text: &str) -> usize {
    text[..text.find(':').expect("a number")].parse().expect("a number")
}

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
    "slow.kernel_bytes=68KiB",
    "--set",
    "slow.policy=disconnect",
    "--set",
    "slow.rules=[{ channels = \"skip/*\", policy = \"skip\" }, { channels = \"latest/**\", policy = \"latest\" }]",
    "--workers",
    "2",
];

/// Publishes messages `from..to` of 8 KiB, each when a reader that reads has the one before: so it is the stopped reader
/// that falls behind, and not the publisher that runs ahead of everybody.
fn burst(addr: SocketAddr, channel: &str, from: usize, to: usize) {
    let target = format!("/channels/{channel}");
    let mut control = Stream::open(addr, &target);
    let mut conn = Conn::open(addr);
    for n in from..to {
        publish_number(&mut conn, &target, n);
        assert_eq!(number_of(&control.message().data), n);
    }
}

fn publish_number(conn: &mut Conn, target: &str, n: usize) {
    let body = format!("{n}:{}", "x".repeat(BURST_MESSAGE_BYTES));
    conn.request("POST", target, &[("Content-Type", "text/plain")], body).expect(201);
}

/// The whole of a [`burst`], to readers that stop at once. Each has got the first message before the others are published:
/// a worker that has no core while more than history holds is published makes slow readers of all of its own, and what
/// is tested is a reader that stopped by itself.
fn burst_to(readers: &mut [&mut Conn], addr: SocketAddr, channel: &str) {
    publish_number(&mut Conn::open(addr), &format!("/channels/{channel}"), 0);
    for reader in readers {
        let mut seen = vec![0; 16 * 1024];
        common::until("the first message arrives", || {
            let length = reader.stream().peek(&mut seen).expect("an open socket");
            memchr::memmem::find(&seen[..length], b"0:xxx").map(drop)
        });
    }
    burst(addr, channel, 1, BURST);
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
    burst_to(&mut [stream.conn(), v1.socket.conn()], server.addr(), "skip/a");
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
    burst_to(&mut [stream.conn(), v1.socket.conn()], server.addr(), "latest/a/b");
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
        burst_to(&mut [stream.conn(), v1.socket.conn()], addr, channel);
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
        burst_to(&mut [socket.conn()], server.addr(), channel);
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
        burst_to(&mut [stream.conn()], server.addr(), "any");
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
    burst_to(&mut [stream.conn(), v1.socket.conn()], addr, "skip/a");
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

/// Publishers that ask again as soon as they are answered leave the worker no moment without a request; its readers have
/// their turns all the same, with either driver.
#[test]
fn publishers_without_a_pause_do_not_make_readers_slow() {
    const THREADS: usize = 2;
    // Few, and what they read is not looked through: it is the server that may be late here, not who reads.
    const READERS: usize = 100;
    const LAST: &str = "the last one";
    /// At most so much follows it: the end of its chunk, and a heartbeat.
    const END: usize = 64;
    // A worker that serves publishers alone passes all of it within the test; a reader that waits for the machine does not.
    const HELD: &[&str] = &["--set", "history.messages=50000", "--set", "history.bytes=64MiB"];
    for driver in ["auto", "epoll"] {
        let server = Server::start(&[&["--workers", "1", "--driver", driver], HELD].concat());
        let addr = server.addr();
        let mut readers = Crowd::new();
        for _ in 0..READERS {
            let mut conn = Conn::open(addr);
            conn.send("GET", "/channels/busy", &[("Accept", "text/event-stream")], "");
            conn.read_head().expect(200);
            readers.add(conn.into_parts().0);
        }
        // Of each reader, the end of what it got.
        let mut tails = vec![Vec::new(); READERS];
        let (mut waiting, mut ended) = (READERS, 0);
        std::thread::scope(|scope| {
            let publishing = scope.spawn(|| {
                std::thread::scope(|scope| {
                    for _ in 0..THREADS {
                        scope.spawn(|| publish_without_a_pause(addr));
                    }
                });
                publish(addr, "busy", LAST);
            });
            while waiting > 0 {
                let heard = readers.listen(DEADLINE, |reader, heard| match heard {
                    Heard::Bytes(bytes) => {
                        let tail: &mut Vec<u8> = &mut tails[reader];
                        tail.extend_from_slice(&bytes[bytes.len().saturating_sub(END)..]);
                        if memchr::memmem::find(tail, LAST.as_bytes()).is_some() {
                            waiting -= 1;
                        }
                        tail.drain(..tail.len().saturating_sub(LAST.len() - 1));
                    }
                    Heard::End(_) => (waiting, ended) = (waiting - 1, ended + 1),
                });
                assert!(heard > 0, "{driver}: {waiting} readers wait for the last message");
            }
            publishing.join().expect("all is published");
        });
        assert_eq!(ended, 0, "{driver}: of {READERS} readers");
    }
}

/// 32 connections with several requests under way each, and another for each answer.
fn publish_without_a_pause(addr: SocketAddr) {
    const AT_ONCE: usize = 16;
    let requests = common::http::wire(addr, "POST", "/channels/busy", &[], b"x").repeat(AT_ONCE);
    let one = requests.len() / AT_ONCE;
    let mut crowd = Crowd::new();
    let mut asking: Vec<TcpStream> = (0..32).map(|_| Conn::open(addr).into_parts().0).collect();
    for socket in &mut asking {
        crowd.add(socket.try_clone().expect("a descriptor"));
        socket.write_all(&requests).expect("the server reads");
    }
    let (mut asked, mut answered) = (32 * AT_ONCE, 0);
    while answered < asked {
        let heard = crowd.listen(DEADLINE, |number, heard| match heard {
            Heard::Bytes(bytes) => {
                let failed = memchr::memmem::find(bytes, b"problem+json").is_some();
                assert!(!failed, "{}", String::from_utf8_lossy(bytes));
                // One list in each; a single byte is in one piece, however the answers come.
                let answers = memchr::memchr_iter(b']', bytes).count();
                answered += answers;
                if asked < 60_000 {
                    asked += answers;
                    asking[number].write_all(&requests[..one * answers]).expect("the server reads");
                }
            }
            Heard::End(why) => panic!("a publisher's connection ended: {why:?}"),
        });
        assert!(heard > 0, "{answered} of {asked} are answered");
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
    "slow.kernel_bytes=68KiB",
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
    let mut seen = Vec::new();
    let mut part = [0; 97];
    // A reader without a cursor gets what comes once it is subscribed, which is more than connected.
    while memchr::memmem::find(&seen, b"\"subscribed\"").is_none() {
        let count = socket.read(&mut part).expect("it is subscribed");
        assert!(count > 0, "the end came early");
        seen.extend_from_slice(&part[..count]);
    }
    burst(addr, "a", 0, 40);
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
