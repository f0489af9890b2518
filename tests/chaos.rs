//! Chaos: clients that stall, cut, flood and lie, plainly and by TLS, while publishers go at full speed, honest readers leave
//! and come back, tokens end and are taken back, configuration and certificates are loaded anew and connections' code
//! panics. Afterwards: each honest reader has had the whole, in order; no descriptor, no place for a connection, no byte of a
//! feed is lost; memory is back where it was.
//!
//! `PUSHLINE_SEED` runs the choices of a failed run again; how threads meet is the machine's choice.
//! `PUSHLINE_CHAOS_SECONDS`: how long (default 12; minutes find more).

use crate::common;
#[path = "chaos/breaker.rs"]
mod breaker;
#[path = "chaos/honest.rs"]
mod honest;
#[path = "chaos/liar.rs"]
mod liar;

use std::net::{SocketAddr, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::admin::{Metrics, addr_of};
use common::crowd::own_memory;
use common::http::{ask, get, head_cursor, publish};
use common::rng::{Rng, seed};
use common::server::{Server, descriptors, field, message_of, settled};
use common::sse::Stream;
use common::tls::{ClientTls, Identity, TlsServer, client, speaks_tls};
use common::{DEADLINE, token, until};
use honest::Transport;

/// What honest readers read: a publisher each.
const CHANNELS: usize = 3;
const LIARS: usize = 8;
/// Before memory is looked at: what a server takes once, whatever comes.
const WARM_UP: Duration = Duration::from_secs(4);
/// Beyond what it was before, after as much again: allocators keep some of what was freed.
const GROWTH_BYTES_MAX: usize = 12 << 20;

/// Liars are soon cut off; history holds whatever honest readers may want.
const SETTINGS: &[&str] = &[
    "history.messages=10000000",
    "history.bytes=1GiB",
    "history.node_bytes=4GiB",
    "feed.bytes=32KiB",
    "slow.kernel_bytes=68KiB",
    "limits.connections=2000",
    "limits.subscriptions=64",
    "limits.message_bytes=16KiB",
    "timeouts.head_seconds=1",
    "timeouts.body_seconds=2",
    "timeouts.idle_seconds=3",
    "heartbeat.interval_seconds=1",
    "heartbeat.timeout_seconds=3",
    "admin.listen=127.0.0.1:0",
    // Honest clients are nobody in particular; liars show tokens too.
    token::KEYS,
    r#"auth.anonymous={ subscribe = ["**"], publish = ["**"], delete = ["**"] }"#,
];

/// What all threads of a run share.
pub struct World {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    /// The operators' listener.
    pub admin: SocketAddr,
    pub stop: AtomicBool,
    /// Cursors of the channels, before their first messages.
    pub starts: Vec<String>,
    /// Messages of each channel that were answered; honest readers go on until they have all.
    pub published: [AtomicU64; CHANNELS],
    pub publishers: AtomicUsize,
    pub panics: AtomicU64,
}

impl World {
    /// One of both.
    pub fn addr(&self, which: usize) -> SocketAddr {
        [self.plain, self.tls][which % 2]
    }

    pub fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    /// The last number of a channel, once nobody publishes any more.
    pub fn last(&self, channel: usize) -> Option<u64> {
        (self.publishers.load(Ordering::SeqCst) == 0).then(|| self.published[channel].load(Ordering::SeqCst))
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

fn run(workers: &str) {
    let seed = seed();
    let name = "PUSHLINE_CHAOS_SECONDS";
    let seconds = std::env::var(name).map_or(12, |text| text.parse().expect(name));
    let mut args = vec!["--workers", workers];
    args.extend(SETTINGS.iter().flat_map(|setting| ["--set", setting]));
    let TlsServer { mut server, identity, tls, dir, .. } = TlsServer::start(&args);
    server.expect_panics();
    let identities = [identity, Identity::new(&["localhost"])];
    speaks_tls(tls, client(&[&identities[0], &identities[1]], rustls::DEFAULT_VERSIONS));
    let mut panics = chaos(&server, seed, WARM_UP, &identities, &dir.0);
    forget(&server);
    // Whatever connections leave behind, the longer run leaves more of.
    let (memory, before) = (until_small(&server, 0, Duration::from_secs(1)), descriptors(server.pid()));
    panics += chaos(&server, seed + 1, Duration::from_secs(seconds), &identities, &dir.0);
    forget(&server);
    settled(&server, before);
    let grown = until_small(&server, memory + GROWTH_BYTES_MAX, Duration::from_secs(15));
    eprintln!("memory: {} KiB before, {} KiB after", memory >> 10, grown >> 10);
    assert!(grown <= memory + GROWTH_BYTES_MAX, "{memory} bytes before, {grown} after");
    serves(server.addr());
    serves(tls);
    for identity in &identities {
        renew(&mut server, tls, identity, &dir.0);
    }

    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    let stopped = server.wait_log(|line| message_of(line).as_deref() == Some("stopped"));
    let count = |name: &str| field(&stopped, name).and_then(|count| count.parse::<u64>().ok());
    assert_eq!(count("accepted"), count("closed"), "a place for a connection was lost: {stopped}");
    // Of a request whose client was gone before it was read nothing comes; of others one each.
    let counted = count("panics").expect("a number");
    assert!(counted <= panics && counted > 0, "{counted} of {panics} panics were counted");
}

/// Lets them all loose for so long. Gives how many panics were asked for.
fn chaos(server: &Server, seed: u64, time: Duration, identities: &[Identity; 2], dir: &Path) -> u64 {
    let addr = server.addr();
    let starts = (0..CHANNELS).map(|channel| {
        ask(addr, "DELETE", &format!("/channels/{}", honest::name(channel)), &[], "").expect(204);
        head_cursor(addr, &honest::name(channel))
    });
    let world = World {
        plain: addr,
        tls: server.tls_addrs()[0],
        admin: addr_of(server),
        stop: AtomicBool::new(false),
        starts: starts.collect(),
        published: Default::default(),
        publishers: AtomicUsize::new(CHANNELS),
        panics: AtomicU64::new(0),
    };
    let world = &world;
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
            threads.push(scope.spawn(move || liar::lie(world, Rng::new(seed, 100 + liar as u64))));
        }
        let pid = server.pid();
        threads.push(scope.spawn(move || hang_up(world, pid, identities, dir, Rng::new(seed, 99))));
        threads.push(scope.spawn(move || take_back(world, Rng::new(seed, 98))));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let end = Instant::now() + time;
            while Instant::now() < end && !threads.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(Duration::from_millis(50));
            }
        }));
        world.stop.store(true, Ordering::SeqCst);
        let ended: Vec<_> = threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        for thread in ended {
            thread.unwrap_or_else(|panic| resume_unwind(panic));
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    });
    let published: Vec<u64> = world.published.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    eprintln!("{published:?} messages, {} panics", world.panics.load(Ordering::SeqCst));
    assert!(published.iter().all(|count| *count > 10), "{published:?}");
    world.panics.load(Ordering::SeqCst)
}

/// Has the configuration loaded anew, now and then, with another certificate; or half of it, when the server still reads what
/// was there before.
fn hang_up(world: &World, pid: u32, identities: &[Identity; 2], dir: &Path, mut rng: Rng) {
    while world.goes_on() {
        rng.pick(identities).write(dir, "own");
        let done = std::process::Command::new("kill").args(["-HUP", &pid.to_string()]).status();
        assert!(done.expect("kill runs").success(), "the server is gone");
        std::thread::sleep(Duration::from_millis(rng.within(50..=400) as u64));
    }
}

/// From now on, this certificate is shown.
fn renew(server: &mut Server, tls: SocketAddr, identity: &Identity, dir: &Path) {
    identity.write(dir, "own");
    server.signal(libc::SIGHUP);
    let config = Arc::new(client(&[identity], rustls::DEFAULT_VERSIONS));
    until("the certificate that was there last", || {
        let mut stream = TcpStream::connect(tls).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        ClientTls::new(Arc::clone(&config), "localhost").conn.complete_io(&mut stream).ok().map(drop)
    });
}

/// Takes the tokens of liars back, now and then.
fn take_back(world: &World, mut rng: Rng) {
    const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];
    while world.goes_on() {
        let what = format!("{{\"subject\":\"{}\"}}", liar::subject(&mut rng));
        let answer = ask(world.admin, "POST", "/revocations", JSON, what);
        assert!(answer.status < 500, "{answer}");
        // What operators look at while all this goes on.
        get(world.admin, "/metrics").expect(200);
        std::thread::sleep(Duration::from_millis(rng.within(100..=600) as u64));
    }
}

/// Nobody is there any more, and history is forgotten.
fn forget(server: &Server) {
    let addr = server.addr();
    for channel in 0..CHANNELS {
        ask(addr, "DELETE", &format!("/channels/{}", honest::name(channel)), &[], "").expect(204);
    }
    for channel in 0..liar::CHANNELS {
        ask(addr, "DELETE", &format!("/channels/{}", liar::name(channel)), &[], "").expect(204);
    }
    let admin = addr_of(server);
    // Feeds are kept for some seconds for readers that come back.
    until("nothing is left of readers", || {
        let metrics = Metrics::scrape(admin);
        let left = LEFT.map(|name| metrics.sum(name, &[]));
        left.iter().all(|count| *count == 0.0).then_some(())
    });
}

/// What there is of readers, and must not be when they are gone.
const LEFT: [&str; 4] =
    ["pushline_connections", "pushline_readers", "pushline_feed_bytes", "pushline_owed_bytes"];

/// Waits until memory is small enough, at most so long: feeds are kept for some seconds for readers that come back.
fn until_small(server: &Server, bytes: usize, patience: Duration) -> usize {
    let end = Instant::now() + patience;
    loop {
        get(server.addr(), "/$debug/give-back").expect(204);
        let now = own_memory(server.pid());
        if now <= bytes || Instant::now() > end {
            return now;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn serves(addr: SocketAddr) {
    get(addr, "/readyz").expect(200);
    let mut stream = Stream::open(addr, "/channels/after");
    publish(addr, "after", "all is well");
    assert_eq!(stream.texts(1), ["all is well"]);
}
