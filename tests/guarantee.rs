//! The guarantee: a reader that comes back with the last cursor it was given, over any transport, gets every later
//! message in order, none twice and none missing; or it is told that there is a gap.
//!
//! Publishers go at full speed while 100 readers hop between the transports and are cut at random bytes. The order is
//! known (publishers take turns on a channel) or read from history afterwards; then every reader's log is judged.
//! `PUSHLINE_SEED` runs the choices of a failed run again; how threads meet is the machine's choice.

use crate::common;
#[path = "guarantee/ledger.rs"]
mod ledger;
#[path = "guarantee/message.rs"]
mod message;
#[path = "guarantee/publisher.rs"]
mod publisher;
#[path = "guarantee/reader.rs"]
mod reader;

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::http::{Conn, Poll, head_cursor};
use common::rng::seed;
use common::server::Server;
use ledger::{Channel, Reference, Tally, digest};
use message::Key;
use reader::{Reader, TRANSPORTS};

const READERS: usize = 100;
/// Readers that come when publishing has begun.
const LATE: usize = 20;
const PUBLISHERS: usize = 4;

/// What all threads of a run share.
pub struct World {
    pub addr: SocketAddr,
    pub seed: u64,
    pub channels: Vec<Channel>,
    pub publishers: usize,
    pub per_publisher: usize,
    /// Gaps are allowed, and wanted.
    pub lossy: bool,
    pub deadline: Instant,
}

impl World {
    /// How many messages have been answered.
    fn acked(&self) -> usize {
        self.channels.iter().flat_map(Channel::seen_acked).sum()
    }
}

/// History holds all, so no gap may be told; feeds are small, so that readers fall back to history all the time.
const WHOLE: &[&str] = &[
    "history.messages=1000000",
    "history.bytes=256MiB",
    "limits.message_bytes=4096",
    "feed.bytes=12KiB",
    "slow.kernel_bytes=68KiB",
];

/// History holds next to nothing, so that readers lose messages all the time, and must be told each time.
const TINY: &[&str] =
    &["history.messages=10", "limits.message_bytes=4096", "feed.bytes=12KiB", "slow.kernel_bytes=68KiB"];

#[test]
fn nothing_is_lost_while_history_holds_it_1_worker() {
    run("1", WHOLE, 6_000, false);
}

#[test]
fn nothing_is_lost_while_history_holds_it_4_workers() {
    run("4", WHOLE, 6_000, false);
}

#[test]
fn every_loss_is_told_1_worker() {
    run("1", &[TINY, &["slow.policy=disconnect"]].concat(), 4_000, true);
}

#[test]
fn every_loss_is_told_4_workers() {
    run("4", &[TINY, &["slow.policy=disconnect"]].concat(), 4_000, true);
}

#[test]
fn every_loss_is_told_when_readers_skip() {
    run("4", &[TINY, &["slow.policy=skip"]].concat(), 4_000, true);
}

#[test]
fn every_loss_is_told_when_readers_want_the_latest() {
    run("2", &[TINY, &["slow.policy=latest"]].concat(), 4_000, true);
}

fn run(workers: &str, settings: &[&str], per_publisher: usize, lossy: bool) {
    let seed = seed();
    let mut args = vec!["--workers", workers];
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let server = Server::start(&args);
    let channels = (0..6).map(|n| {
        // The last three only where history can tell their order afterwards.
        let ordered = lossy || n < 3;
        Channel::new(format!("room/{n}"), ordered, ordered, PUBLISHERS + 1)
    });
    let world = World {
        addr: server.addr(),
        seed,
        channels: channels.collect(),
        publishers: PUBLISHERS,
        per_publisher,
        lossy,
        deadline: Instant::now() + Duration::from_secs(120),
    };
    let starts: Vec<String> =
        world.channels.iter().map(|channel| head_cursor(world.addr, &channel.name)).collect();
    let readers = publish_and_read(&world);
    if !lossy {
        for (channel, start) in world.channels.iter().zip(&starts) {
            read_order(&world, channel, start);
        }
    }
    judge(&world, &readers);
}

fn publish_and_read(world: &World) -> Vec<Reader<'_>> {
    let ready = Barrier::new(READERS - LATE + PUBLISHERS);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                let ready = &ready;
                scope.spawn(move || {
                    let mut reader = Reader::new(world, number);
                    if number >= LATE {
                        // Whatever happens to this one, the others must not wait for it for ever.
                        let started = catch_unwind(AssertUnwindSafe(|| reader.start()));
                        ready.wait();
                        started.unwrap_or_else(|panic| resume_unwind(panic));
                    } else {
                        let begun = world.per_publisher * world.publishers * number / (2 * LATE);
                        while world.acked() < begun && Instant::now() < world.deadline {
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                    reader.run();
                    reader
                })
            })
            .collect();
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|number| {
                let ready = &ready;
                scope.spawn(move || {
                    ready.wait();
                    publisher::run(world, number);
                })
            })
            .collect();
        for publisher in publishers {
            publisher.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
        eprintln!("published in {:?}", begun.elapsed());
        for channel in 0..world.channels.len() {
            publisher::end(world, channel);
        }
        let readers: Vec<_> = readers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        eprintln!("read in {:?}", begun.elapsed());
        readers.into_iter().map(|reader| reader.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Reads a channel's order from history, page by page; where the publishers know it, the two must agree.
fn read_order(world: &World, channel: &Channel, start: &str) {
    let mut conn = Conn::open(world.addr);
    let mut cursor = start.to_owned();
    let mut held = Vec::new();
    loop {
        let answer = conn.get(&format!("/channels/{}?cursor={cursor}", channel.name));
        let poll = Poll::of(&answer);
        assert!(!poll.gap, "{}: history holds all", channel.name);
        if poll.messages.is_empty() {
            break;
        }
        for message in &poll.messages {
            let key = Key::of_object(message).expect("a message of ours");
            held.push((key, digest(message["id"].as_str().expect("an id"))));
        }
        cursor = poll.cursor;
    }
    let mut order = channel.order.lock().expect("publishers ended well");
    if !channel.ordered {
        order.messages = held;
        return;
    }
    let mut rest = held.iter().peekable();
    for message in &order.messages {
        if rest.next_if_eq(&message).is_none() {
            assert!(
                channel.message(world.seed, message.0).brief(),
                "{}: {message:?} is not in history",
                channel.name
            );
        }
    }
    assert_eq!(rest.next(), None, "{}: history holds only what was published, in its order", channel.name);
}

fn judge(world: &World, readers: &[Reader]) {
    let references: Vec<Reference> =
        world.channels.iter().map(|channel| Reference::new(world.seed, channel)).collect();
    let mut total = Tally::default();
    let mut counts = [0; TRANSPORTS.len()];
    for (number, reader) in readers.iter().enumerate() {
        for (log, &channel) in reader.logs.iter().zip(reader.channels()) {
            let tally = references[channel].judge(log, world.lossy).unwrap_or_else(|(hop, what)| {
                let hops = &reader.hops[hop.saturating_sub(4)..=hop];
                panic!(
                    "reader {number} of {} (PUSHLINE_SEED={}): {what}\nits hops up to then, of {}: {hops:#?}",
                    world.channels[channel].name,
                    world.seed,
                    reader.hops.len()
                )
            });
            total.messages += tally.messages;
            total.raw += tally.raw;
            total.gaps += tally.gaps;
            total.lost += tally.lost;
        }
        for (count, more) in counts.iter_mut().zip(reader.counts) {
            *count += more;
        }
    }
    let hops: usize = readers.iter().map(|reader| reader.hops.len()).sum();
    eprintln!(
        "{hops} hops, {total:?}; messages by transport: {:?}",
        TRANSPORTS.iter().zip(counts).collect::<Vec<_>>()
    );
    assert!(counts.iter().all(|&count| count > 0), "every transport brought something");
    // Else the run proved nothing.
    assert_eq!(world.lossy, total.lost > 0, "{total:?}");
}

/// The judge itself: what it must not let pass, and what it must.
mod judgement {
    use super::*;
    use ledger::{Entry, Log};

    /// Ten messages of one publisher, one deletion after the sixth.
    fn channel() -> Channel {
        let channel = Channel::new("a".into(), true, false, 2);
        let mut order = channel.order.lock().expect("nobody else");
        for n in 0..10 {
            channel.send(0);
            channel.acked(0);
            order.messages.push((Key { channel: 0, publisher: 0, n }, n as u64));
        }
        order.deletions.push(6);
        drop(order);
        channel
    }

    const fn message(n: usize) -> Entry {
        Entry::Message { key: Key { channel: 0, publisher: 0, n }, id: n as u64 }
    }

    const fn raw(n: usize) -> Entry {
        Entry::RawMessage { key: Key { channel: 0, publisher: 0, n } }
    }

    fn start(before: usize, until: usize) -> Entry {
        Entry::Start { before: vec![before, 0], until: vec![until, 0] }
    }

    #[test]
    fn tells_right_from_wrong() {
        let channel = channel();
        let reference = Reference::new(1, &channel);
        let gap = Entry::Gap;
        let foreign = Entry::Message { key: Key { channel: 0, publisher: 0, n: 2 }, id: 7 };
        let nobodys = Entry::Message { key: Key { channel: 0, publisher: 0, n: 12 }, id: 12 };
        for (what, log, right) in [
            ("all in order", vec![start(0, 0), message(0), message(1), message(2)], true),
            ("one lost", vec![start(0, 0), message(0), message(2)], false),
            ("the first lost", vec![start(0, 0), message(1)], false),
            ("one twice", vec![start(0, 0), message(0), message(0)], false),
            ("out of order", vec![start(0, 0), message(1), message(0)], false),
            ("lost and told", vec![start(0, 0), message(0), gap.clone(), message(4), message(5)], true),
            ("told once, lost twice", vec![start(0, 0), gap.clone(), message(2), message(4)], false),
            ("back behind a gap", vec![start(0, 0), message(3), gap.clone(), message(3)], false),
            ("a start among those in flight", vec![start(2, 5), message(3), message(4)], true),
            ("a start that missed one", vec![start(2, 5), message(6)], false),
            ("a start with the past", vec![start(2, 5), message(1)], false),
            ("a deletion not told", vec![start(5, 5), message(5), message(6)], false),
            ("a deletion told", vec![start(5, 5), message(5), gap.clone(), message(6)], true),
            ("another's id", vec![start(2, 2), foreign], false),
            ("never published", vec![start(2, 2), nobodys], false),
            ("before any cursor", vec![message(0)], false),
            (
                "raw, and again",
                vec![start(0, 0), message(0), Entry::RawStart, raw(1), raw(2), message(1)],
                true,
            ),
            ("raw lost one", vec![start(0, 0), message(0), Entry::RawStart, raw(2)], false),
            ("raw twice", vec![start(0, 0), Entry::RawStart, raw(0), raw(0)], false),
            ("raw past a deletion", vec![start(5, 5), message(5), Entry::RawStart, raw(6)], false),
        ] {
            let log: Log = log.into_iter().enumerate().collect();
            let judged = reference.judge(&log, true);
            assert_eq!(judged.is_ok(), right, "{what}: {judged:?}");
        }
        let log: Log = vec![(0, start(0, 0)), (1, gap)];
        assert!(reference.judge(&log, false).is_err(), "a gap where none may be");
    }
}
