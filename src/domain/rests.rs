//! Channels that are not kept: where the order of each stopped, by two hashes of its name. Its next message goes on there,
//! and whoever had seen all of it has missed nothing.
//! Forgotten channels that had messages, and names that were only asked for, are bounded apart: whoever asks for a million
//! names pushes out other such names, and nothing that anybody published to.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

use foldhash::fast::RandomState;

use super::channel::Name;
use super::cursor::Cursor;

/// All that is left of a forgotten channel.
#[derive(Debug, Clone, Copy)]
pub struct Rest {
    pub(super) incarnation: u64,
    pub(super) head: u64,
    pub(super) floor: u64,
}

impl Rest {
    /// Of a channel that nobody has published to.
    pub fn unheard(incarnation: u64) -> Self {
        Self { incarnation, head: 0, floor: 0 }
    }

    pub fn had_messages(&self) -> bool {
        self.head > 0
    }

    pub fn head(&self) -> Cursor {
        Cursor { incarnation: self.incarnation, seq: self.head }
    }
}

/// Of each kind, on one worker: some 8 MiB. Readers of those that went before are told a gap when they come back, though they
/// may have missed nothing.
pub const RESTS_MAX: usize = 65_536;

/// All that is known of channels that are not kept.
#[derive(Default)]
pub struct Rests {
    /// They had messages.
    forgotten: Shelf,
    /// Nobody has published to them.
    unheard: Shelf,
    hashes: [RandomState; 2],
}

/// The newest of its kind.
#[derive(Default)]
struct Shelf {
    by_name: HashMap<u128, Rest, RandomState>,
    /// Oldest first.
    order: VecDeque<u128>,
}

impl Rests {
    /// A channel is forgotten.
    pub fn put(&mut self, name: &Name, rest: Rest) {
        let key = self.key(name);
        let shelf = if rest.had_messages() { &mut self.forgotten } else { &mut self.unheard };
        shelf.put(key, rest);
    }

    /// A channel is kept again, if it was known.
    pub fn take(&mut self, name: &Name) -> Option<Rest> {
        let key = self.key(name);
        self.forgotten.by_name.remove(&key).or_else(|| self.unheard.by_name.remove(&key))
    }

    /// Whether the channel had messages before it was forgotten.
    pub fn had_messages(&self, name: &Name) -> bool {
        !self.forgotten.by_name.is_empty() && self.forgotten.by_name.contains_key(&self.key(name))
    }

    pub fn get(&self, name: &Name) -> Option<Rest> {
        let key = self.key(name);
        self.forgotten.by_name.get(&key).or_else(|| self.unheard.by_name.get(&key)).copied()
    }

    /// The memory that this takes.
    pub fn bytes(&self) -> usize {
        self.forgotten.bytes() + self.unheard.bytes()
    }

    fn key(&self, name: &Name) -> u128 {
        let [first, second] = &self.hashes;
        u128::from(first.hash_one(name)) << 64 | u128::from(second.hash_one(name))
    }
}

impl Shelf {
    fn put(&mut self, key: u128, rest: Rest) {
        if self.by_name.insert(key, rest).is_none() {
            self.order.push_back(key);
        }
        while self.order.len() > RESTS_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_name.remove(&oldest);
            }
        }
    }

    fn bytes(&self) -> usize {
        self.by_name.capacity() * (size_of::<(u128, Rest)>() + 1) + self.order.capacity() * size_of::<u128>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> Name {
        Name::parse(&format!("c{number}")).expect("a name")
    }

    #[test]
    fn what_is_known_is_bounded_and_scans_push_out_only_their_like() {
        let mut rests = Rests::default();
        let used = Name::parse("used").expect("a name");
        rests.put(&used, Rest { incarnation: 1, head: 7, floor: 7 });
        for number in 0..RESTS_MAX + 1_000 {
            rests.put(&name(number), Rest::unheard(2));
        }
        assert!(rests.had_messages(&used));
        assert_eq!(rests.get(&used).map(|rest| rest.head), Some(7));
        assert!(rests.get(&name(0)).is_none() && rests.get(&name(RESTS_MAX + 999)).is_some());
        assert_eq!(rests.unheard.by_name.len(), RESTS_MAX);
        assert!(rests.bytes() < 16 << 20, "{}", rests.bytes());
        assert!(rests.take(&used).is_some() && rests.get(&used).is_none());
    }
}
