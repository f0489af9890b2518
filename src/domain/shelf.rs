//! The bytes of messages that history keeps and nobody reads yet, side by side in the order in which they came.
//! Owns the segments that hold them. Whoever publishes to many channels in turn finds the place of the next message where
//! the last one was put, in a cache still, and what goes is not touched: it is memory of its own that is cold, not the work.

use std::collections::VecDeque;

/// Bytes that a segment has at most.
const SEGMENT_BYTES_MAX: usize = 16 * 1024;
/// What is larger is left where it is: to copy it would cost more than the cold memory.
pub const MESSAGE_BYTES_MAX: usize = SEGMENT_BYTES_MAX / 8;
/// A new segment has this part of what the shelf holds: little is taken beside it.
const SEGMENT_PARTS: usize = 8;

/// Where bytes were put.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    segment: u32,
    at: u16,
}

#[derive(Debug, Default)]
struct Segment {
    bytes: Vec<u8>,
    /// Messages that are still here.
    messages: u32,
}

#[derive(Debug, Default)]
pub struct Shelf {
    /// Those that are full, oldest first.
    full: VecDeque<Segment>,
    /// The newest: here, for a message that comes goes nowhere else.
    last: Segment,
    /// The number of the first segment; they are counted without end, and wrap.
    first: u32,
    held_bytes: usize,
    /// Memory of all segments.
    taken_bytes: usize,
    messages: usize,
}

impl Shelf {
    /// Puts two pieces down, the one behind the other; together of [`MESSAGE_BYTES_MAX`] at most.
    pub fn put(&mut self, first: &[u8], second: &[u8]) -> Place {
        let len = first.len() + second.len();
        if self.last.bytes.len() + len > self.last.bytes.capacity() {
            let part = (self.held_bytes / SEGMENT_PARTS).min(SEGMENT_BYTES_MAX);
            let bytes = Vec::with_capacity(len.max(part));
            self.taken_bytes += bytes.capacity();
            let full = std::mem::replace(&mut self.last, Segment { bytes, messages: 0 });
            // The number of one that nothing is in is free.
            if full.messages > 0 {
                self.full.push_back(full);
            }
        }
        self.held_bytes += len;
        self.messages += 1;
        let at = self.last.bytes.len() as u16;
        self.last.bytes.extend_from_slice(first);
        self.last.bytes.extend_from_slice(second);
        self.last.messages += 1;
        Place { segment: self.first.wrapping_add(self.full.len() as u32), at }
    }

    /// Where the next message will most likely lie; it may be of nothing.
    pub fn next_place(&self) -> *const u8 {
        self.last.bytes.as_ptr().wrapping_add(self.last.bytes.len())
    }

    /// The `len` bytes that were put at `place`.
    pub fn get(&self, place: Place, len: usize) -> &[u8] {
        let (index, at) = (self.index(place.segment), usize::from(place.at));
        let segment = self.full.get(index).unwrap_or(&self.last);
        segment.bytes.get(at..at + len).unwrap_or_default()
    }

    /// What was put at `place`, `len` bytes, is wanted no more. A segment goes with its last message.
    pub fn forget(&mut self, place: Place, len: usize) {
        let index = self.index(place.segment);
        let segment = self.full.get_mut(index).unwrap_or(&mut self.last);
        segment.messages -= 1;
        self.messages -= 1;
        self.held_bytes -= len;
        if segment.messages == 0 {
            self.taken_bytes -= segment.bytes.capacity();
            segment.bytes = Vec::new();
        }
        while self.full.front().is_some_and(|first| first.messages == 0) {
            self.full.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        if self.messages == 0 {
            self.full = VecDeque::new();
        }
    }

    /// Memory that is taken beside what is held: what no message has come to yet, and what went from between others.
    pub fn slack_bytes(&self) -> usize {
        self.taken_bytes + self.full.len() * size_of::<Segment>() - self.held_bytes
    }

    /// How many messages are here.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Whether most of it has gone from between others: what is left is to be put down anew.
    pub fn is_sparse(&self) -> bool {
        self.slack_bytes() > self.held_bytes + SEGMENT_BYTES_MAX
    }

    /// Where the segment with this number is among those that there are.
    fn index(&self, number: u32) -> usize {
        number.wrapping_sub(self.first) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_takes_its_size_and_many_little_more() {
        let mut shelf = Shelf::default();
        shelf.put(b"tick", &[7; 96]);
        assert_eq!(shelf.taken_bytes, 100);
        let mut places: VecDeque<Place> = VecDeque::new();
        let mut shelf = Shelf::default();
        for round in 0..10_000 {
            places.push_back(shelf.put(b"", &[7; 100]));
            if places.len() > 1_000 {
                shelf.forget(places.pop_front().expect("there is one"), 100);
            }
            let (held, kept) = (places.len() * 100, shelf.taken_bytes);
            assert!(kept <= held + 2 * (held / SEGMENT_PARTS) + 200, "{round}: {kept} for {held}");
        }
        assert_eq!(places.iter().filter(|place| shelf.get(**place, 100) == [7; 100]).count(), 1_000);
    }

    proptest::proptest! {
        /// Whatever goes in whatever order, the others are there, and in the end nothing is kept.
        #[test]
        fn what_was_put_is_found(steps in proptest::collection::vec((0_u8..3, 0_usize..=MESSAGE_BYTES_MAX, 0_usize..64), 1..200)) {
            let mut shelf = Shelf::default();
            let mut held: Vec<(Place, Vec<u8>)> = Vec::new();
            for (number, (what, size, pick)) in steps.into_iter().enumerate() {
                if what == 0 && !held.is_empty() {
                    let (place, bytes) = held.swap_remove(pick % held.len());
                    shelf.forget(place, bytes.len());
                } else {
                    let size = if what == 1 { size } else { size % 300 };
                    let bytes = vec![number as u8; size];
                    let (first, second) = bytes.split_at(pick.min(size));
                    held.push((shelf.put(first, second), bytes.clone()));
                }
                for (place, bytes) in &held {
                    proptest::prop_assert_eq!(shelf.get(*place, bytes.len()), bytes);
                }
                let segments = shelf.full.iter().chain([&shelf.last]);
                let taken: usize = segments.map(|segment| segment.bytes.capacity()).sum();
                proptest::prop_assert_eq!(shelf.taken_bytes, taken);
            }
            for (place, bytes) in held {
                shelf.forget(place, bytes.len());
            }
            proptest::prop_assert_eq!((shelf.taken_bytes, shelf.held_bytes, shelf.full.len()), (0, 0, 0));
        }
    }
}
