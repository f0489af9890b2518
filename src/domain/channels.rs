//! The table of the channels at home on one worker: where each is, what its name is known for when it is not kept, and which
//! goes when all places are taken. Who asks for names makes no room by pushing out channels that have messages or readers.
//! Owns the sums of what all histories hold. The order of messages over all channels, and keys, are `home`'s.

use foldhash::fast::RandomState;

use super::ages::{Age, RUN_MAX, Run, slice_of};
use super::channel::Name;
use super::cursor::Cursor;
use super::history::History;
use super::rests::{Rest, Rests};

/// Index of a worker.
pub type WorkerIndex = u16;

/// How many channels one look for a victim considers.
const VICTIM_LOOKS: usize = 64;

/// A channel that nobody has published to is kept so long for readers that come back at once.
pub const UNHEARD_KEPT_MS: u64 = 5_000;

/// What a channel's name costs beside its own bytes: counts, and its place in the table of names.
const NAME_BYTES: usize = 48;

/// One channel that is kept.
#[derive(Debug)]
pub struct Channel {
    pub name: Name,
    pub history: History,
    pub used_ms: u64,
    /// Workers with a feed of it, and whether each has lost its place (told to pull).
    pub readers: Vec<(WorkerIndex, bool)>,
    /// Its newest run that stands in the order of ages.
    pub run: Option<Run>,
    pub rate: Rate,
}

/// How long a rate looks back.
const RATE_MS: u64 = 10_000;

/// How often a channel is published to: the messages of the last ten seconds, from those of a window that ended and of the
/// one that goes on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rate {
    begun_ms: u64,
    begun_seq: u64,
    before: u32,
}

impl Rate {
    /// A channel that was sized up before `now_ms` is sized up again when its window is over.
    pub fn turn(&mut self, head: u64, now_ms: u64) {
        let age_ms = now_ms.saturating_sub(self.begun_ms);
        if age_ms >= RATE_MS {
            // One window that was open for longer counts as if it had been spread over it.
            let messages = head.saturating_sub(self.begun_seq) * RATE_MS / age_ms;
            *self =
                Self { begun_ms: now_ms, begun_seq: head, before: messages.min(u64::from(u32::MAX)) as u32 };
        }
    }

    fn per_second(&self, head: u64, now_ms: u64) -> f64 {
        let age_ms = now_ms.saturating_sub(self.begun_ms);
        let messages = head.saturating_sub(self.begun_seq) as f64;
        let window_s = RATE_MS as f64 / 1_000.0;
        if age_ms >= RATE_MS {
            return messages * 1_000.0 / age_ms as f64;
        }
        let before = f64::from(self.before) * (RATE_MS - age_ms) as f64 / RATE_MS as f64;
        (before + messages) / window_s
    }
}

/// What one channel is, at a glance.
#[derive(Debug, Clone, Copy)]
pub struct Look<'c> {
    pub name: &'c Name,
    pub head: Cursor,
    pub messages: usize,
    pub bytes: usize,
    /// Messages placed per second, over the last ten seconds or so.
    pub per_second: f64,
    /// Workers with readers of it.
    pub workers: usize,
}

impl Channel {
    fn look(&self, now_ms: u64) -> Look<'_> {
        let head = self.history.head();
        Look {
            name: &self.name,
            head,
            messages: self.history.len(),
            bytes: self.history.bytes(),
            per_second: self.rate.per_second(head.seq, now_ms),
            workers: self.readers.len(),
        }
    }
}

/// Whose room a channel may take that comes when all room is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Of channels without messages and readers.
    OfUnused,
    /// If there is none of those: of the longest unused without readers.
    OfUnread,
}

/// The channels at home on one worker.
pub struct Channels {
    slots: Vec<Option<Channel>>,
    free: Vec<u32>,
    by_name: std::collections::HashMap<Name, u32, RandomState>,
    channels_max: usize,
    /// Of the names of all channels.
    names_bytes: usize,
    /// Of all histories, and how many messages they keep.
    bytes: usize,
    kept: usize,
    rests: Rests,
    incarnation_next: u64,
    incarnation_step: u64,
    sweep_at: usize,
}

impl Channels {
    /// `first` and `step` make incarnations unique: workers begin at different places and step over each other.
    pub fn new(channels_max: usize, first: u64, step: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_name: Default::default(),
            channels_max,
            names_bytes: 0,
            bytes: 0,
            kept: 0,
            rests: Rests::default(),
            incarnation_next: first,
            incarnation_step: step,
            sweep_at: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.by_name.len()
    }

    /// Bytes of all histories.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages that all histories keep.
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// The memory that channels take beside their messages, and what is known of others.
    pub fn tables_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Option<Channel>>()
            + self.free.capacity() * size_of::<u32>()
            + self.by_name.capacity() * (size_of::<(Name, u32)>() + 1)
            + self.names_bytes
            + self.rests.bytes()
    }

    /// Where a channel is, if it is kept.
    pub fn find(&self, name: &Name) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Where the next message of a channel will lie, if it is kept: see [`History::next_places`].
    pub fn next_places(&self, name: &str) -> Option<[(*const u8, usize); 2]> {
        Some(self.get(*self.by_name.get(name)?)?.history.next_places())
    }

    pub fn get(&self, slot: u32) -> Option<&Channel> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// Its history changes by [`with_history`](Self::with_history) alone.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Channel> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Whether a channel that is not kept had messages.
    pub fn had_messages(&self, name: &Name) -> bool {
        self.rests.had_messages(name)
    }

    /// What is known of a channel that is not kept.
    pub fn rest(&self, name: &Name) -> Option<Rest> {
        self.rests.get(name)
    }

    /// The same; nothing yet, and it is noted from now on.
    pub fn note(&mut self, name: &Name) -> Rest {
        self.rests.get(name).unwrap_or_else(|| {
            let rest = Rest::unheard(self.new_incarnation());
            self.rests.put(name, rest);
            rest
        })
    }

    /// What the channels in the places from `at` on are, and their places. A look at them leaves them as they are.
    pub fn look_from(&self, at: usize, now_ms: u64) -> impl Iterator<Item = (usize, Option<Look<'_>>)> {
        self.slots
            .iter()
            .enumerate()
            .skip(at)
            .map(move |(at, channel)| (at, channel.as_ref().map(|channel| channel.look(now_ms))))
    }

    /// What a channel is, if it is known.
    pub fn look(&self, name: &Name, now_ms: u64) -> Option<Look<'_>> {
        Some(self.slots.get(*self.by_name.get(name)? as usize)?.as_ref()?.look(now_ms))
    }

    /// Runs `change` on a channel's history and keeps the sums right.
    pub fn with_history<T>(&mut self, slot: u32, change: impl FnOnce(&mut History) -> T) -> Option<T> {
        self.with_named(slot, |_, history| change(history))
    }

    /// The same where the channel's name is wanted: its own, one for all its messages.
    pub fn with_named<T>(&mut self, slot: u32, change: impl FnOnce(&Name, &mut History) -> T) -> Option<T> {
        let Channel { name, history, .. } = self.slots.get_mut(slot as usize)?.as_mut()?;
        let (bytes, kept) = (history.bytes(), history.len());
        let result = change(name, history);
        self.bytes = self.bytes - bytes + history.bytes();
        self.kept = self.kept - kept + history.len();
        Some(result)
    }

    /// Whether the channel's oldest message is of that run, or of an older one.
    pub fn is_aged(&self, age: Age) -> bool {
        self.of_age(age).is_some_and(|channel| {
            channel.history.oldest().is_some_and(|(seq, ts_ms)| age.run.reaches(seq, ts_ms))
        })
    }

    /// Whether the channel has messages that may be of that run.
    pub fn has_of(&self, age: Age) -> bool {
        self.of_age(age).is_some_and(|channel| {
            let has_of_slice = channel.history.has_of(|ts_ms| slice_of(ts_ms).cmp(&age.run.slice));
            has_of_slice && channel.history.oldest().is_some_and(|(seq, _)| seq < age.run.from + RUN_MAX)
        })
    }

    fn of_age(&self, age: Age) -> Option<&Channel> {
        self.get(age.slot).filter(|channel| channel.history.head().incarnation == age.incarnation)
    }

    /// That run does not stand in the order of ages any more.
    pub fn unlist(&mut self, age: Age) {
        if let Some(channel) = self.get_mut(age.slot)
            && channel.history.head().incarnation == age.incarnation
            && channel.run == Some(age.run)
        {
            channel.run = None;
        }
    }

    /// Places, some of which may be empty.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// The next channel's place, in turn.
    pub fn turn(&mut self) -> Option<u32> {
        self.sweep_at = (self.sweep_at + 1).checked_rem(self.slots.len())?;
        Some(self.sweep_at as u32)
    }

    /// The channel's slot; a new one if it is unknown. `None` when there is no `room`.
    pub fn claim(&mut self, name: &Name, room: Room, now_ms: u64) -> Option<u32> {
        if let Some(&slot) = self.by_name.get(name) {
            self.slots[slot as usize].as_mut()?.used_ms = now_ms;
            return Some(slot);
        }
        if self.by_name.len() >= self.channels_max {
            let victim = self.victim(room)?;
            self.forget(victim);
        }
        let history = match self.rests.take(name) {
            Some(rest) => History::resume(rest),
            None => History::new(self.new_incarnation()),
        };
        let rate = Rate { begun_ms: now_ms, begun_seq: history.head().seq, before: 0 };
        let channel =
            Channel { name: name.clone(), history, used_ms: now_ms, readers: Vec::new(), run: None, rate };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(channel);
                slot
            }
            None => {
                self.slots.push(Some(channel));
                (self.slots.len() - 1) as u32
            }
        };
        self.by_name.insert(name.clone(), slot);
        self.names_bytes += NAME_BYTES + name.as_str().len();
        Some(slot)
    }

    fn new_incarnation(&mut self) -> u64 {
        let incarnation = self.incarnation_next;
        self.incarnation_next = self.incarnation_next.wrapping_add(self.incarnation_step);
        incarnation
    }

    /// Whether nobody reads a channel, nothing of it is kept, and it was not used for so long.
    pub fn is_unused(&self, slot: u32, now_ms: u64, age_ms: u64) -> bool {
        self.slots[slot as usize].as_ref().is_some_and(|channel| {
            let is_heard = channel.history.head().seq > 0;
            let kept_ms = if is_heard { age_ms } else { age_ms.min(UNHEARD_KEPT_MS) };
            channel.is_empty() && channel.used_ms.saturating_add(kept_ms) <= now_ms
        })
    }

    /// Of the next few channels the longest unused that may make room.
    fn victim(&mut self, room: Room) -> Option<u32> {
        let len = self.slots.len();
        let older =
            |best: Option<(u64, u32)>, used_ms: u64| best.is_none_or(|(best_ms, _)| used_ms < best_ms);
        let (mut unused, mut unread) = (None, None);
        for looked in 0..len.min(64 * VICTIM_LOOKS) {
            let found = unused.is_some() || (room == Room::OfUnread && unread.is_some());
            if looked >= VICTIM_LOOKS && found {
                break;
            }
            self.sweep_at = (self.sweep_at + 1) % len;
            let Some(channel) = &self.slots[self.sweep_at] else { continue };
            if !channel.readers.is_empty() {
                continue;
            }
            let candidate = Some((channel.used_ms, self.sweep_at as u32));
            if channel.is_empty() && older(unused, channel.used_ms) {
                unused = candidate;
            }
            if older(unread, channel.used_ms) {
                unread = candidate;
            }
        }
        match room {
            Room::OfUnused => unused,
            Room::OfUnread => unused.or(unread),
        }
        .map(|(_, slot)| slot)
    }

    /// Forgets a channel; where its order stopped is known for a while.
    pub fn forget(&mut self, slot: u32) {
        if let Some(channel) = self.slots[slot as usize].take() {
            self.bytes -= channel.history.bytes();
            self.kept -= channel.history.len();
            self.by_name.remove(&channel.name);
            self.names_bytes -= NAME_BYTES + channel.name.as_str().len();
            self.free.push(slot);
            self.rests.put(&channel.name, channel.history.rest());
        }
    }
}

impl Channel {
    /// Neither messages nor readers.
    fn is_empty(&self) -> bool {
        self.readers.is_empty() && self.history.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    /// Names of which the lowest bits of the hash are the same under a seed that everybody knows fill one place of a table
    /// with that seed, and are spread by ours as any others are.
    #[test]
    fn names_chosen_to_collide_do_not() {
        let name = |name: &str| Name::parse(name).expect("a name");
        const PLACES: u64 = 1 << 10;
        let known = foldhash::fast::FixedState::default();
        let chosen =
            (0_u64..).map(|n| name(&format!("c{n}"))).filter(|name| known.hash_one(name) % PLACES == 0);
        let chosen: Vec<Name> = chosen.take(2_000).collect();
        let channels = Channels::new(10, 5, 1);
        let mut filled = vec![0_usize; PLACES as usize];
        for name in &chosen {
            filled[(channels.by_name.hasher().hash_one(name) % PLACES) as usize] += 1;
        }
        // Two to a place on average: 25 in one are no accident.
        assert!(filled.iter().all(|&names| names < 25), "{:?}", filled.iter().max());
    }
}
