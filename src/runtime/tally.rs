//! Bytes that count as long as something lives, wherever it goes: added where it is made, taken off where it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many bytes live.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<AtomicUsize>);

impl Tally {
    pub fn bytes(&self) -> usize {
        // Relaxed, here and below: a sum of what changes all the time.
        self.0.load(Ordering::Relaxed)
    }

    /// Counts so many bytes, for as long as what is given back lives.
    pub fn weigh(&self, bytes: usize) -> Weight {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Weight { tally: self.clone(), bytes }
    }
}

/// Bytes that are counted.
#[derive(Debug)]
pub struct Weight {
    tally: Tally,
    bytes: usize,
}

impl Weight {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// It has become more, or less.
    pub fn set(&mut self, bytes: usize) {
        self.tally.0.fetch_add(bytes, Ordering::Relaxed);
        self.tally.0.fetch_sub(std::mem::replace(&mut self.bytes, bytes), Ordering::Relaxed);
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.tally.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_does_not_count() {
        let tally = Tally::default();
        let mut first = tally.weigh(100);
        let second = tally.weigh(20);
        first.set(70);
        assert_eq!((tally.bytes(), first.bytes()), (90, 70));
        drop(first);
        assert_eq!(tally.bytes(), 20);
        drop(second);
        assert_eq!(tally.bytes(), 0);
    }
}
