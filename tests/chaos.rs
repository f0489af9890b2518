//! Chaos: clients that stall, cut, flood, hoard and lie, by every door (plainly, by TLS, by a unix socket, through proxies
//! that are broken or lie themselves), while publishers go at full speed, honest readers leave and come back, tokens end and
//! are taken back, configuration and certificates are loaded anew and connections' code panics. Afterwards: each honest
//! reader has had the whole, in order; no descriptor, no place for a connection, no share of a quota, no byte of a feed is
//! lost; memory is back where it was.
//!
//! Three worlds: one where nothing may be lost (here), one that is short of memory (`pressed`), and one where processes
//! take each other's place (`handed_on`); in the last two each honest reader is told what it has lost.
//!
//! `PUSHLINE_SEED` runs the choices of a failed run again; how threads meet is the machine's choice.
//! `PUSHLINE_CHAOS_SECONDS`: how long in each world (default: 8 to 12; minutes find more).

use crate::common;
#[path = "chaos/breaker.rs"]
mod breaker;
#[path = "chaos/door.rs"]
mod door;
#[path = "chaos/forger.rs"]
mod forger;
#[path = "chaos/framer.rs"]
mod framer;
#[path = "chaos/handed_on.rs"]
mod handed_on;
#[path = "chaos/hoarder.rs"]
mod hoarder;
#[path = "chaos/honest.rs"]
mod honest;
#[path = "chaos/impostor.rs"]
mod impostor;
#[path = "chaos/liar.rs"]
mod liar;
#[path = "chaos/operator.rs"]
mod operator;
#[path = "chaos/pressed.rs"]
mod pressed;
#[path = "chaos/presser.rs"]
mod presser;
#[path = "chaos/reading.rs"]
mod reading;
#[path = "chaos/rest.rs"]
mod rest;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::admin::addr_of;
use common::http::{ask, head_cursor};
use common::rng::{Rng, seed};
use common::server::Server;
use door::{Doors, Site};
use liar::Trick;
use reading::Transport;
use rest::Rest;

/// What honest readers read: a publisher each.
const CHANNELS: usize = 3;
const LIARS: usize = 8;
/// Before memory is looked at, at least: what a server takes once, whatever comes.
const WARM_UP: Duration = Duration::from_secs(4);

/// Liars are soon cut off; history holds whatever honest readers may want.
const SETTINGS: &[&str] = &[
    "history.messages=10000000",
    "history.bytes=1GiB",
    "history.node_bytes=4GiB",
    "feed.bytes=32KiB",
    "slow.kernel_bytes=68KiB",
    "limits.connections=2000",
    "limits.subscriptions=64",
    "timeouts.head_seconds=1",
    "timeouts.body_seconds=2",
    "timeouts.idle_seconds=3",
    "heartbeat.interval_seconds=1",
    "heartbeat.timeout_seconds=3",
];

/// What may become of honest clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// They are served at once, and get all.
    Whole,
    /// They may be refused and cut off, and lose what they are told is lost.
    Told,
}

/// What all threads of a run share.
struct World {
    doors: Doors,
    /// The operators' listener.
    admin: SocketAddr,
    /// The API key of publishers.
    key: String,
    rules: Rules,
    /// Of the process that serves.
    pid: AtomicU32,
    stop: AtomicBool,
    /// Cursors of the channels, before their first messages.
    starts: Vec<String>,
    /// Messages of each channel that were answered; honest readers go on until they have all.
    published: [AtomicU64; CHANNELS],
    publishers: AtomicUsize,
    panics: AtomicU64,
    /// How connections of honest clients ended otherwise than by their own will, and how often.
    ends: Mutex<BTreeMap<String, u64>>,
}

impl World {
    fn new(server: &Server, doors: Doors, site: &Site, rules: Rules) -> Self {
        Self {
            doors,
            admin: addr_of(server),
            key: site.key.clone(),
            rules,
            pid: AtomicU32::new(server.pid()),
            stop: AtomicBool::new(false),
            starts: Vec::new(),
            published: Default::default(),
            publishers: AtomicUsize::new(0),
            panics: AtomicU64::new(0),
            ends: Mutex::default(),
        }
    }

    fn pid(&self) -> u32 {
        self.pid.load(Ordering::SeqCst)
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    /// The last number of a channel, once nobody publishes any more.
    fn last(&self, channel: usize) -> Option<u64> {
        (self.publishers.load(Ordering::SeqCst) == 0).then(|| self.published[channel].load(Ordering::SeqCst))
    }

    /// An honest client was refused, cut off, or told a loss.
    fn suffers(&self, who: &dyn std::fmt::Display, how: &str) {
        assert_eq!(self.rules, Rules::Told, "{who}: {how}");
        *self.ends.lock().expect("no panic under the lock").entry(how.to_owned()).or_default() += 1;
    }
}

#[test]
fn nothing_is_lost_whatever_comes_1_worker() {
    run("1");
}

#[test]
fn nothing_is_lost_whatever_comes_3_workers() {
    run("3");
}

/// How long a world lasts.
fn seconds(usual: u64) -> Duration {
    let name = "PUSHLINE_CHAOS_SECONDS";
    Duration::from_secs(std::env::var(name).map_or(usual, |text| text.parse().expect(name)))
}

fn run(workers: &str) {
    let seed = seed();
    let site = Site::new(workers, &[SETTINGS, &["limits.message_bytes=16KiB"], hoarder::QUOTAS]);
    let (mut server, doors) = site.start();
    let mut world = World::new(&server, doors, &site, Rules::Whole);
    let time = seconds(12);
    chaos(&mut world, &site, &hoarder::TRICKS, seed, for_a_while(WARM_UP.max(time / 4)));
    rest::forget(&world);
    // Whatever connections leave behind, the longer run leaves more of.
    let before = Rest::of(&server);
    chaos(&mut world, &site, &hoarder::TRICKS, seed + 1, for_a_while(time));
    rest::forget(&world);
    hoarder::is_over(&world);
    before.comes_back(&server);
    rest::serves(&world);
    for identity in &site.identities {
        operator::renew(&mut server, world.doors.tls, &site, identity);
    }
    server.signal(libc::SIGTERM);
    let counted = rest::ends_well(&mut server);
    // Of a request whose client was gone before it was read nothing comes; of others one each.
    let panics = world.panics.load(Ordering::SeqCst);
    assert!(counted <= panics && counted > 0, "{counted} of {panics} panics were counted");
}

/// Lets time pass, while all goes well.
fn for_a_while(time: Duration) -> impl FnOnce(&World, &dyn Fn() -> bool) {
    move |_, goes_well| {
        let end = Instant::now() + time;
        while Instant::now() < end && goes_well() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Lets them all loose while `conduct` runs, which hears whether all goes well. Some of the liars' tricks are `more`.
fn chaos(
    world: &mut World,
    site: &Site,
    more: &[Trick],
    seed: u64,
    conduct: impl FnOnce(&World, &dyn Fn() -> bool),
) {
    let addr = world.doors.plain;
    let starts = (0..CHANNELS).map(|channel| {
        ask(addr, "DELETE", &format!("/channels/{}", honest::name(channel)), &[], "").expect(204);
        head_cursor(addr, &honest::name(channel))
    });
    world.starts = starts.collect();
    (world.published, world.publishers) = (Default::default(), AtomicUsize::new(CHANNELS));
    world.stop = AtomicBool::new(false);
    let world = &*world;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for channel in 0..CHANNELS {
            for transport in Transport::ALL {
                let rng = Rng::new(seed, 50 + (channel * Transport::ALL.len() + transport as usize) as u64);
                threads.push(scope.spawn(move || honest::read(world, channel, transport, rng)));
            }
        }
        for channel in 0..CHANNELS {
            threads.push(
                scope.spawn(move || honest::publish_all(world, channel, Rng::new(seed, channel as u64))),
            );
        }
        for liar in 0..LIARS {
            threads.push(scope.spawn(move || liar::lie(world, more, Rng::new(seed, 100 + liar as u64))));
        }
        threads.push(scope.spawn(move || operator::hang_up(world, site, Rng::new(seed, 99))));
        threads.push(scope.spawn(move || operator::take_back(world, Rng::new(seed, 98))));
        threads.push(scope.spawn(move || hoarder::hoard(world, Rng::new(seed, 97))));
        let goes_well = || !threads.iter().any(std::thread::ScopedJoinHandle::is_finished);
        let outcome = catch_unwind(AssertUnwindSafe(|| conduct(world, &goes_well)));
        world.stop.store(true, Ordering::SeqCst);
        let ended: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        for thread in ended {
            thread.unwrap_or_else(|panic| resume_unwind(panic));
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    });
    let published: Vec<u64> = world.published.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    let (panics, ends) = (world.panics.load(Ordering::SeqCst), world.ends.lock().expect("no panic"));
    eprintln!("{published:?} messages, {panics} panics, {ends:?}");
    assert!(published.iter().all(|count| *count > 10), "{published:?}");
}
