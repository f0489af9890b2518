//! A slab that grows by chunks: where a worker's connections are.
//!
//! Owns entries with a slot (their place, reused) and a generation (never the same for two
//! entries of a slot). Entries never move, and growing copies nothing: a slab that doubles would
//! hold the thread, and thrice the memory, at each doubling. Never knows what an entry is.

use std::ops::Range;

/// Entries of one chunk.
pub const CHUNK_SLOTS: usize = 1024;

/// The end of a chunk's list of free slots.
const NONE: u16 = u16::MAX;
const _: () = assert!(CHUNK_SLOTS < NONE as usize);

/// Values by slot. New ones go to the lowest chunk with room, into the slot that was freed there
/// last, so that the highest chunks empty and are given back.
pub struct ChunkedSlab<T> {
    chunks: Vec<Chunk<T>>,
    /// No chunk below this index has room.
    first_with_room: usize,
    len: usize,
    /// Of the newest entry. One count for all slots, so that it outlives chunks that were given
    /// back; it comes round after 2^32 inserts, far longer than anyone holds a stale slot.
    generation: u32,
}

struct Chunk<T> {
    /// Grows up to [`CHUNK_SLOTS`], for which room is taken at once.
    entries: Vec<Entry<T>>,
    first_free: u16,
    len: u16,
}

struct Entry<T> {
    generation: u32,
    place: Place<T>,
}

enum Place<T> {
    Held(T),
    Free { next: u16 },
}

impl<T> Default for ChunkedSlab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> ChunkedSlab<T> {
    pub const fn new() -> Self {
        Self { chunks: Vec::new(), first_with_room: 0, len: 0, generation: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// One past the highest slot that could be in use: the end of all ranges worth visiting.
    pub fn slots_end(&self) -> u32 {
        (self.chunks.len() * CHUNK_SLOTS) as u32
    }

    /// Keeps `value`; its slot and generation.
    pub fn insert(&mut self, value: T) -> (u32, u32) {
        while self.chunks.get(self.first_with_room).is_some_and(|chunk| !chunk.has_room()) {
            self.first_with_room += 1;
        }
        if self.first_with_room == self.chunks.len() {
            assert!((self.chunks.len() + 1) * CHUNK_SLOTS <= u32::MAX as usize);
            self.chunks.push(Chunk::new());
        }
        self.generation = self.generation.wrapping_add(1);
        let entry = Entry { generation: self.generation, place: Place::Held(value) };
        let place = self.chunks[self.first_with_room].insert(entry);
        self.len += 1;
        ((self.first_with_room * CHUNK_SLOTS + place) as u32, self.generation)
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        self.entry(slot)?.held()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.entry_mut(slot)?.held_mut()
    }

    /// The value in `slot`, if it is still the one of that generation.
    pub fn get_checked(&self, slot: u32, generation: u32) -> Option<&T> {
        self.entry(slot).filter(|entry| entry.generation == generation)?.held()
    }

    /// The value in `slot`, if it is still the one of that generation.
    pub fn get_checked_mut(&mut self, slot: u32, generation: u32) -> Option<&mut T> {
        self.entry_mut(slot).filter(|entry| entry.generation == generation)?.held_mut()
    }

    /// The generation of the value in `slot`.
    pub fn generation(&self, slot: u32) -> Option<u32> {
        self.entry(slot).filter(|entry| entry.held().is_some()).map(|entry| entry.generation)
    }

    /// Takes the value out of `slot`.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let (index, place) = split(slot);
        let value = self.chunks.get_mut(index)?.remove(place)?;
        self.len -= 1;
        self.first_with_room = self.first_with_room.min(index);
        // One empty chunk stays, so that a count that swings around a chunk's end is no work.
        while let [.., before, last] = &self.chunks[..]
            && before.len == 0
            && last.len == 0
        {
            self.chunks.pop();
        }
        Some(value)
    }

    /// What is in the slots of `range`, in their order: slot, generation, value.
    pub fn range(&self, range: Range<u32>) -> impl Iterator<Item = (u32, u32, &T)> {
        let end = range.end.min(self.slots_end());
        (range.start..end).filter_map(|slot| {
            let entry = self.entry(slot)?;
            Some((slot, entry.generation, entry.held()?))
        })
    }

    fn entry(&self, slot: u32) -> Option<&Entry<T>> {
        let (index, place) = split(slot);
        self.chunks.get(index)?.entries.get(place)
    }

    fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry<T>> {
        let (index, place) = split(slot);
        self.chunks.get_mut(index)?.entries.get_mut(place)
    }
}

/// A slot's chunk, and its place there.
const fn split(slot: u32) -> (usize, usize) {
    (slot as usize / CHUNK_SLOTS, slot as usize % CHUNK_SLOTS)
}

impl<T> Chunk<T> {
    fn new() -> Self {
        Self { entries: Vec::with_capacity(CHUNK_SLOTS), first_free: NONE, len: 0 }
    }

    fn has_room(&self) -> bool {
        usize::from(self.len) < CHUNK_SLOTS
    }

    fn insert(&mut self, entry: Entry<T>) -> usize {
        self.len += 1;
        if self.first_free == NONE {
            assert!(self.entries.len() < CHUNK_SLOTS, "a chunk never grows beyond its room");
            self.entries.push(entry);
            return self.entries.len() - 1;
        }
        let place = usize::from(self.first_free);
        let Place::Free { next } = self.entries[place].place else {
            panic!("slot {place} is in the list of free slots and in use");
        };
        self.first_free = next;
        self.entries[place] = entry;
        place
    }

    fn remove(&mut self, place: usize) -> Option<T> {
        let entry = self.entries.get_mut(place)?;
        entry.held()?;
        let freed = Place::Free { next: self.first_free };
        self.first_free = place as u16;
        self.len -= 1;
        match std::mem::replace(&mut entry.place, freed) {
            Place::Held(value) => Some(value),
            Place::Free { .. } => None,
        }
    }
}

impl<T> Entry<T> {
    fn held(&self) -> Option<&T> {
        match &self.place {
            Place::Held(value) => Some(value),
            Place::Free { .. } => None,
        }
    }

    fn held_mut(&mut self) -> Option<&mut T> {
        match &mut self.place {
            Place::Held(value) => Some(value),
            Place::Free { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn slots_are_reused_and_generations_are_not() {
        let mut slab = ChunkedSlab::new();
        let (a, a_generation) = slab.insert("a");
        let (b, _) = slab.insert("b");
        assert_eq!((a, b, slab.len()), (0, 1, 2));
        assert_eq!(slab.remove(a), Some("a"));
        assert_eq!((slab.remove(a), slab.get(a), slab.generation(a)), (None, None, None));
        assert_eq!(slab.get_checked(a, a_generation), None);
        let (again, generation) = slab.insert("c");
        assert_eq!(again, a);
        assert_ne!(generation, a_generation);
        assert_eq!(slab.get_checked(a, a_generation), None);
        assert_eq!(slab.get_checked(a, generation), Some(&"c"));
        *slab.get_checked_mut(a, generation).unwrap() = "d";
        assert_eq!((slab.get(a), slab.generation(a)), (Some(&"d"), Some(generation)));
        assert_eq!(slab.get(5_000), None);
        assert_eq!(slab.get_mut(u32::MAX), None);
        assert_eq!(slab.remove(2), None);
    }

    #[test]
    fn freed_slots_are_taken_last_first_in_the_lowest_chunk() {
        let mut slab = ChunkedSlab::new();
        for number in 0..3 * CHUNK_SLOTS {
            assert_eq!(slab.insert(number).0 as usize, number);
        }
        for slot in [2_500, 7, 1_500, 3] {
            slab.remove(slot);
        }
        let slots: Vec<u32> = (0..5).map(|_| slab.insert(0).0).collect();
        assert_eq!(slots, [3, 7, 1_500, 2_500, 3_072]);
    }

    #[test]
    fn entries_never_move_and_empty_chunks_at_the_end_are_given_back() {
        let mut slab = ChunkedSlab::new();
        slab.insert(0);
        let first: *const i32 = slab.get(0).unwrap();
        for number in 1..10 * CHUNK_SLOTS as i32 {
            slab.insert(number);
        }
        assert_eq!(first, std::ptr::from_ref(slab.get(0).unwrap()));
        let stale = (9_500, slab.generation(9_500).unwrap());
        for slot in 1..10 * CHUNK_SLOTS as u32 {
            slab.remove(slot);
        }
        assert_eq!((slab.len(), slab.chunks.len()), (1, 2), "one empty chunk is kept");
        for number in 0..10 * CHUNK_SLOTS as i32 {
            slab.insert(number);
        }
        assert!(slab.get(stale.0).is_some());
        assert_eq!(slab.get_checked(stale.0, stale.1), None, "generations outlive their chunk");
    }

    #[test]
    fn an_entry_costs_its_value_and_a_word() {
        struct Like {
            _boxed: Option<Box<u8>>,
            _numbers: [u32; 12],
            _state: bool,
        }
        assert_eq!(size_of::<Entry<Like>>(), size_of::<Like>() + 8);
        let mut slab = ChunkedSlab::<Like>::new();
        for _ in 0..CHUNK_SLOTS {
            slab.insert(Like { _boxed: None, _numbers: [0; 12], _state: false });
        }
        assert_eq!(slab.chunks[0].entries.capacity(), CHUNK_SLOTS);
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(
            steps in prop::collection::vec((any::<bool>(), 0_usize..1_000_000), 1..6_000),
            mostly_insert in any::<bool>(),
        ) {
            let (mut slab, mut model) = (ChunkedSlab::new(), BTreeMap::<u32, (u32, usize)>::new());
            for (coin, number) in steps {
                if model.is_empty() || coin || (mostly_insert && number % 3 > 0) {
                    let (slot, generation) = slab.insert(number);
                    prop_assert_eq!(model.insert(slot, (generation, number)), None);
                } else {
                    // Some slot at or after a random one.
                    let from = (number as u32) % (slab.slots_end() + 1);
                    let slot = *model.range(from..).chain(model.iter()).next().unwrap().0;
                    let (generation, value) = model.remove(&slot).unwrap();
                    prop_assert_eq!(slab.get_checked(slot, generation), Some(&value));
                    prop_assert_eq!(slab.remove(slot), Some(value));
                }
                prop_assert_eq!(slab.len(), model.len());
            }
            let listed = |model: &BTreeMap<u32, (u32, usize)>, range: Range<u32>| {
                model.range(range).map(|(slot, (generation, value))| (*slot, *generation, *value)).collect()
            };
            for range in [0..u32::MAX, 10..20, 1_000..1_100, 0..0] {
                let expected: Vec<(u32, u32, usize)> = listed(&model, range.clone());
                let got: Vec<_> = slab.range(range).map(|(s, g, value)| (s, g, *value)).collect();
                prop_assert_eq!(got, expected);
            }
        }
    }
}
