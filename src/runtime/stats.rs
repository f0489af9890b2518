//! Counters of one worker. Written by its thread alone; read by any.

use std::sync::atomic::{AtomicU64, Ordering};

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
