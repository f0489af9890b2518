//! A server that nobody comes to any more: what it holds then, and how it ends.

use std::time::{Duration, Instant};

use super::{World, honest, liar};
use crate::common::admin::Metrics;
use crate::common::crowd::own_memory;
use crate::common::http::{ask, get, publish};
use crate::common::server::{Server, descriptors, field, message_of, settled};
use crate::common::sse::Stream;
use crate::common::until;

/// Beyond what it was before, after as much again: allocators keep some of what was freed.
const GROWTH_BYTES_MAX: usize = 12 << 20;
/// How long memory may take to come back: feeds are kept for some seconds for readers that come back.
const PATIENCE: Duration = Duration::from_secs(15);

/// What there is of readers, and must not be when they are gone.
const LEFT: [&str; 4] =
    ["pushline_connections", "pushline_readers", "pushline_feed_bytes", "pushline_owed_bytes"];

/// What a server holds.
pub struct Rest {
    memory: usize,
    descriptors: usize,
}

impl Rest {
    pub fn of(server: &Server) -> Self {
        let memory = until_small(server, 0, Duration::from_secs(1));
        Self { memory, descriptors: descriptors(server.pid()) }
    }

    /// No descriptor more, and hardly more memory.
    pub fn comes_back(&self, server: &Server) {
        settled(server, self.descriptors);
        let most = self.memory + GROWTH_BYTES_MAX;
        let grown = until_small(server, most, PATIENCE);
        eprintln!("memory: {} KiB before, {} KiB after", self.memory >> 10, grown >> 10);
        assert!(grown <= most, "{} bytes before, {grown} after", self.memory);
    }
}

/// Waits until memory is small enough, at most so long.
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

/// Nobody is there any more, and history is forgotten.
pub fn forget(world: &World) {
    let forget = |name: &str| {
        ask(world.doors.plain, "DELETE", &format!("/channels/{name}"), &[], "").expect(204);
    };
    (0..super::CHANNELS).for_each(|channel| forget(&honest::name(channel)));
    (0..liar::CHANNELS).for_each(|channel| forget(&liar::name(channel)));
    until("nothing is left of readers", || {
        let metrics = Metrics::scrape(world.admin);
        let left = LEFT.map(|name| metrics.sum(name, &[]));
        left.iter().all(|count| *count == 0.0).then_some(())
    });
}

/// Whoever comes now is served.
pub fn serves(world: &World) {
    for addr in [world.doors.plain, world.doors.tls] {
        get(addr, "/readyz").expect(200);
        let mut stream = Stream::open(addr, "/channels/after");
        publish(addr, "after", "all is well");
        assert_eq!(stream.texts(1), ["all is well"]);
    }
}

/// A server that was told to end does, and no place for a connection was lost. Gives how many panics it counted.
pub fn ends_well(server: &mut Server) -> u64 {
    assert_eq!(server.wait_exit(), 0);
    let stopped = server.wait_log(|line| message_of(line).as_deref() == Some("stopped"));
    let count = |name: &str| field(&stopped, name).and_then(|count| count.parse::<u64>().ok());
    assert_eq!(count("accepted"), count("closed"), "a place for a connection was lost: {stopped}");
    count("panics").expect("a number")
}
