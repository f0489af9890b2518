//! In which order the messages of all channels go when together they are too many: by when they were placed, to within
//! [`SLICE_MS`].
//! Owns the queue. A channel stands there once for each run of messages, not for each message: a busy node's queue is small,
//! and lies in the caches.

use std::collections::VecDeque;

/// Messages of one channel that were placed within so many milliseconds are one run.
pub const SLICE_MS: u64 = 16;
/// A run has so many messages at most: where a clock was set back, times tell no order.
pub const RUN_MAX: u64 = 64;

/// The slice of a moment (ms since 1970).
pub const fn slice_of(ms: u64) -> u64 {
    ms / SLICE_MS
}

/// A run: messages of one slice of time, from this number on, [`RUN_MAX`] at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub from: u64,
    pub slice: u64,
}

impl Run {
    /// Whether the message `seq`, placed at `ts_ms`, is of it or of an older one.
    pub fn reaches(&self, seq: u64, ts_ms: u64) -> bool {
        seq.saturating_sub(self.from) < RUN_MAX && slice_of(ts_ms) <= self.slice
    }
}

/// A run of a channel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    pub slot: u32,
    pub incarnation: u64,
    pub run: Run,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::channel::Name;
    use super::super::history::Bounds;
    use super::super::home::{Home, HomeBounds};
    use super::super::message::{Body, Draft};
    use super::super::page::{From, PageMax};
    use super::*;

    const ALL: PageMax = PageMax { messages: 100, bytes: usize::MAX };

    fn home(messages: usize, channels: usize) -> Home {
        let channel = Bounds { messages, bytes: 1 << 20, age_ms: u64::MAX / 2 };
        Home::new(HomeBounds { channel, bytes: 1 << 30, channels, keys: 1 }, 5, 1)
    }

    fn name(name: &str) -> Name {
        Name::parse(name).expect("a name")
    }

    fn publish(home: &mut Home, channel: &str, ttl_seconds: Option<u32>, now_ms: u64) {
        let draft = Draft { event: None, body: Body::Binary(vec![0].into()), ttl_seconds };
        home.publish(&name(channel), draft, None, now_ms, |_, _| true).expect("published");
    }

    fn left(home: &Home, channel: &str) -> usize {
        home.look(&name(channel), 0).expect("known").messages
    }

    #[test]
    fn channels_take_turns_by_slices_of_time() {
        let mut home = home(10, 10);
        // Two channels speak by turns, twice in each slice.
        for at_ms in (0..4 * SLICE_MS).step_by(SLICE_MS as usize / 2) {
            publish(&mut home, "a", None, at_ms);
            publish(&mut home, "b", None, at_ms);
        }
        assert_eq!(home.runs(), 8, "once for a channel and a slice");
        for want in [(6, 8), (6, 6), (4, 6), (4, 4)] {
            home.drop_oldest();
            home.drop_oldest();
            assert_eq!((left(&home, "a"), left(&home, "b")), want);
        }
        // What has gone for another reason leaves no trace, and who speaks again in the same slice is found.
        let now_ms = 3 * SLICE_MS + SLICE_MS / 2;
        home.delete(&name("a"), now_ms, |_, _| true);
        home.delete(&name("b"), now_ms, |_, _| true);
        assert_eq!((home.oldest_ms(), home.runs()), (None, 0));
        publish(&mut home, "a", None, now_ms);
        assert!(home.drop_oldest().is_some() && home.drop_oldest().is_none());
    }

    /// All of it is placed at one time, then.
    #[test]
    fn where_the_clock_was_set_back_channels_take_turns_all_the_same() {
        let mut home = home(10_000, 10);
        publish(&mut home, "a", None, 1_000_000);
        publish(&mut home, "b", None, 1_000_000);
        let each = 10 * RUN_MAX as usize;
        for n in 0..each as u64 {
            publish(&mut home, "a", None, n);
            publish(&mut home, "b", None, n);
        }
        for _ in 0..each {
            home.drop_oldest();
        }
        let (a, b) = (left(&home, "a"), left(&home, "b"));
        assert!(a.abs_diff(b) <= RUN_MAX as usize && a + b == each + 2, "{a} and {b}");
    }

    #[test]
    fn what_ends_by_itself_leaves_no_run() {
        let mut home = home(10, 10);
        publish(&mut home, "a", None, 0);
        for n in 1..200_000 {
            publish(&mut home, "a", Some(1), n * 20);
            if n % 100 == 0 {
                home.sweep(n * 20, 10);
            }
        }
        assert!(home.runs() < 2_000, "{}", home.runs());
    }

    proptest! {
        /// Whatever became of channels and messages, each message that is left can be dropped.
        #[test]
        fn every_message_is_found(
            steps in proptest::collection::vec((0_u8..12, 0_usize..5, 0_u64..8), 1..300),
            messages in 1_usize..100,
        ) {
            let mut home = home(messages, 3);
            let (channels, mut now_ms) = (["a", "b", "c", "d", "e"], 1_000);
            for (what, channel, by_ms) in steps {
                let channel = channels[channel];
                now_ms += by_ms;
                match what {
                    0 => now_ms = now_ms.saturating_sub(100 * by_ms),
                    1 => home.delete(&name(channel), now_ms, |_, _| true),
                    2 => drop(home.read(&name(channel), From::Newest(9), ALL, now_ms)),
                    3 => (0..20 * by_ms).for_each(|_| _ = home.drop_oldest()),
                    4 => home.sweep(now_ms, 3),
                    5 => publish(&mut home, channel, Some(0), now_ms),
                    6 => publish(&mut home, channel, Some(1), now_ms),
                    7 => (0..100).for_each(|_| publish(&mut home, channel, None, now_ms)),
                    _ => publish(&mut home, channel, None, now_ms),
                }
            }
            let messages = home.messages();
            prop_assert!(home.runs() <= 4 * messages + 65_536);
            let dropped = std::iter::from_fn(|| home.drop_oldest()).count();
            prop_assert_eq!((dropped, home.messages(), home.bytes(), home.runs()), (messages, 0, 0, 0));
        }
    }
}
