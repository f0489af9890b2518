//! The wheel: which slots of a slab want to be looked at, and when.
//!
//! Owns buckets of (slot, generation), one to a tick, and nothing else of a timer: there is no
//! cancelling. Whoever ends early is found out by its generation, and whoever wants to be looked
//! at later than the wheel reaches comes out early and is put back by its owner. Never reads a
//! clock.

/// Length of a tick.
pub const TICK_MS: u64 = 100;

/// Ticks that the wheel reaches ahead: 102.4 s.
pub const HORIZON_TICKS: u64 = 1024;

/// Room that an emptied bucket keeps: more is given back, since a burst of connections would
/// otherwise leave its size in each bucket.
const BUCKET_ENTRIES_KEPT: usize = 64;

/// Deadlines of slots, to the tick.
pub struct Wheel {
    buckets: Vec<Vec<(u32, u32)>>,
    /// The first tick that is not yet done: that of the bucket at `current % HORIZON_TICKS`.
    current: u64,
    len: usize,
}

impl Wheel {
    /// A wheel whose first tick to come is `first_tick`.
    pub fn new(first_tick: u64) -> Self {
        Self { buckets: (0..HORIZON_TICKS).map(|_| Vec::new()).collect(), current: first_tick, len: 0 }
    }

    /// Entries that wait, those of the past generations included.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks for `slot` to come out of [`advance`](Self::advance) at `at_tick`: at the next one, if
    /// that is past; at the horizon, if it is beyond.
    pub fn schedule(&mut self, at_tick: u64, slot: u32, generation: u32) {
        let tick = at_tick.clamp(self.current, self.current + (HORIZON_TICKS - 1));
        self.bucket(tick).push((slot, generation));
        self.len += 1;
    }

    /// Appends to `due` what is due at `now_tick`, at most `budget` entries, and returns whether
    /// more is. No bucket is ever passed over, however long the pause before.
    pub fn advance(&mut self, now_tick: u64, budget: usize, due: &mut Vec<(u32, u32)>) -> bool {
        let mut left = budget;
        while self.current <= now_tick {
            if self.len == 0 {
                self.current = now_tick + 1;
                return false;
            }
            let bucket = self.bucket(self.current);
            let taken = bucket.len().min(left);
            due.extend(bucket.drain(bucket.len() - taken..));
            if bucket.is_empty() && bucket.capacity() > BUCKET_ENTRIES_KEPT {
                *bucket = Vec::new();
            }
            let is_done = bucket.is_empty();
            self.len -= taken;
            left -= taken;
            if !is_done {
                return true;
            }
            self.current += 1;
        }
        false
    }

    /// Ticks until something comes out of [`advance`](Self::advance) again, if nothing is put in meanwhile: from 1 to
    /// `ticks_max`.
    pub fn ticks_to_next(&self, ticks_max: u32) -> u32 {
        if self.len == 0 {
            return ticks_max;
        }
        let is_due = |ticks: &u32| {
            let tick = self.current + u64::from(*ticks) - 1;
            !self.buckets[(tick % HORIZON_TICKS) as usize].is_empty()
        };
        (1..=ticks_max).find(is_due).unwrap_or(ticks_max)
    }

    fn bucket(&mut self, tick: u64) -> &mut Vec<(u32, u32)> {
        &mut self.buckets[(tick % HORIZON_TICKS) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn all_due(wheel: &mut Wheel, now_tick: u64) -> Vec<(u32, u32)> {
        let mut due = Vec::new();
        assert!(!wheel.advance(now_tick, usize::MAX, &mut due));
        due.sort_unstable();
        due
    }

    #[test]
    fn entries_come_out_at_their_tick() {
        let mut wheel = Wheel::new(1000);
        wheel.schedule(1005, 1, 10);
        wheel.schedule(1006, 2, 20);
        wheel.schedule(3, 3, 30);
        wheel.schedule(u64::MAX, 4, 40);
        assert_eq!(all_due(&mut wheel, 1000), [(3, 30)]);
        assert_eq!(all_due(&mut wheel, 1004), []);
        assert_eq!(all_due(&mut wheel, 1005), [(1, 10)]);
        assert_eq!(all_due(&mut wheel, 1005), []);
        assert_eq!(all_due(&mut wheel, 1000 + HORIZON_TICKS - 2), [(2, 20)]);
        assert_eq!(all_due(&mut wheel, 1000 + HORIZON_TICKS - 1), [(4, 40)], "at the horizon");
        assert!(wheel.is_empty());
    }

    #[test]
    fn a_long_pause_skips_nothing() {
        let mut wheel = Wheel::new(0);
        for slot in 0..2000 {
            wheel.schedule(u64::from(slot), slot, 0);
        }
        assert_eq!(all_due(&mut wheel, 1 << 40).len(), 2000);
        wheel.schedule(0, 7, 7);
        assert_eq!(all_due(&mut wheel, (1 << 40) + 1), [(7, 7)]);
    }

    #[test]
    fn slices_take_what_they_may_and_say_that_more_is_due() {
        let mut wheel = Wheel::new(0);
        for slot in 0..10 {
            wheel.schedule(u64::from(slot / 5), slot, 0);
        }
        let mut due = Vec::new();
        assert!(wheel.advance(9, 3, &mut due));
        assert!(wheel.advance(9, 3, &mut due));
        assert_eq!((due.len(), wheel.len()), (6, 4));
        assert!(wheel.advance(9, 0, &mut due));
        assert!(!wheel.advance(9, 4, &mut due));
        due.sort_unstable();
        assert_eq!(due, (0..10).map(|slot| (slot, 0)).collect::<Vec<_>>());
    }

    #[test]
    fn a_burst_leaves_no_memory_behind() {
        let mut wheel = Wheel::new(0);
        for slot in 0..100_000 {
            wheel.schedule(u64::from(slot % 2), slot, 0);
        }
        assert_eq!(all_due(&mut wheel, 1).len(), 100_000);
        assert!(wheel.buckets.iter().all(|bucket| bucket.capacity() <= BUCKET_ENTRIES_KEPT));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Schedule { ahead: i64 },
        Advance { by: u64, budget: usize },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (-5_i64..2_000).prop_map(|ahead| Step::Schedule { ahead }),
            1 => (0_u64..40, 0_usize..6).prop_map(|(by, budget)| Step::Advance { by, budget }),
            1 => (0_u64..3_000, 0_usize..1_000).prop_map(|(by, budget)| Step::Advance { by, budget }),
        ]
    }

    proptest! {
        /// Against a map by tick: the same entries, at the same advance, none lost or twice.
        #[test]
        fn behaves_like_a_map(steps in prop::collection::vec(any_step(), 1..200)) {
            let (mut now, mut slot, mut wheel) = (5_000_u64, 0_u32, Wheel::new(5_000));
            // `done` is the first tick that the wheel is not yet through with.
            let (mut model, mut done) = (BTreeMap::<u64, Vec<(u32, u32)>>::new(), 5_000_u64);
            for step in steps {
                match step {
                    Step::Schedule { ahead } => {
                        let at = now.saturating_add_signed(ahead);
                        wheel.schedule(at, slot, !slot);
                        let tick = at.max(done).min(done + HORIZON_TICKS - 1);
                        model.entry(tick).or_default().push((slot, !slot));
                        slot += 1;
                    }
                    Step::Advance { by, budget } => {
                        now += by;
                        let mut due = Vec::new();
                        let more = wheel.advance(now, budget, &mut due);
                        prop_assert!(due.len() <= budget);
                        for entry in due {
                            let mut first = model.first_entry().expect("no entry that is not there");
                            prop_assert!(*first.key() <= now, "early");
                            let place = first.get().iter().position(|e| *e == entry);
                            first.get_mut().swap_remove(place.expect("ticks in their order"));
                            if first.get().is_empty() {
                                first.remove();
                            }
                        }
                        let next = model.keys().next().copied().unwrap_or(u64::MAX);
                        prop_assert_eq!(more, next <= now);
                        done = (now + 1).min(next.max(done)).max(done);
                        prop_assert_eq!(wheel.current, done);
                    }
                }
                prop_assert_eq!(wheel.len(), model.values().map(Vec::len).sum::<usize>());
            }
        }
    }
}
