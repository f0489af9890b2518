//! In which order the messages of all channels go when together they are too many: by when they were placed, to within
//! [`SLICE_MS`].
//! Owns the queue. A channel stands there once for each slice of time in which it got messages, not for each message: a
//! busy node's queue is small, and lies in the caches.

use std::collections::VecDeque;

/// Messages of one channel that were placed within so many milliseconds go one after the other.
pub const SLICE_MS: u64 = 16;

/// The slice of a moment (ms since 1970).
pub const fn slice_of(ms: u64) -> u64 {
    ms / SLICE_MS
}

/// A channel got messages in a slice of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    pub slot: u32,
    pub incarnation: u64,
    pub slice: u64,
}

/// Oldest first.
#[derive(Debug, Default)]
pub struct Ages(VecDeque<Age>);

impl Ages {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The memory that it takes.
    pub fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Age>()
    }

    pub fn put(&mut self, age: Age) {
        self.0.push_back(age);
    }

    pub fn first(&self) -> Option<Age> {
        self.0.front().copied()
    }

    pub fn drop_first(&mut self) {
        self.0.pop_front();
    }

    /// Keeps those of which `is_wanted`.
    pub fn keep(&mut self, is_wanted: impl FnMut(&Age) -> bool) {
        self.0.retain(is_wanted);
        self.0.shrink_to(2 * self.0.len());
    }
}
