//! Counters of one worker, written by its thread alone and read by any; and the one count that all write: places taken.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// One counter: a plain add, for only one thread writes it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker has done. Aligned so that no two workers write one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats {
    pub accepted: Counter,
    pub closed: Counter,
    pub refused: Counter,
    pub requests: Counter,
    pub published: Counter,
    pub deliveries: Counter,
    pub sends: Counter,
    pub short_sends: Counter,
    pub pages: Counter,
    pub panics: Counter,
}

/// Connections of the node. The kernel spreads them unevenly, so a part for each worker would refuse some before the node
/// is full. Written at an accept and a close; aligned so that nothing else is in its cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Places(AtomicUsize);

impl Places {
    /// Takes a place, if there are fewer than `max`.
    pub fn take(&self, max: usize) -> bool {
        if self.0.fetch_add(1, Ordering::Relaxed) < max {
            return true;
        }
        self.give();
        false
    }

    pub fn give(&self) {
        let before = self.0.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a place was given back that nobody took");
    }
}
