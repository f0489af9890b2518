//! Accounts of clients by key, shared by all workers: what each holds just now, and how far each of its token buckets is
//! used. In shards, each with a lock.
//! Owns forgetting: an account that holds nothing and whose buckets are full again is not kept, and of those that only
//! have their buckets at most twice [`LOOSE_MAX`] are, however many keys come. Never decides: limits are `quotas`'.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use foldhash::fast::RandomState;
use governor::clock::Clock;
use governor::nanos::Nanos;
use governor::state::StateStore;

/// Token buckets of one account.
pub const BUCKETS: usize = 3;
const SHARDS: usize = 64;
/// Accounts that hold nothing, over all shards: some 6 MB, and twice that between two sweeps. Beyond it they are forgotten, and their buckets full again:
/// whoever comes with so many addresses at once has as many times the quota anyway.
const LOOSE_MAX: usize = 64 * 1024;
/// Accounts of a shard before it is first looked through for what may be forgotten.
const SWEEP_AT_MIN: usize = 64;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Connections,
    Subscriptions,
}

/// What one key has.
#[derive(Debug, Default)]
struct Account {
    connections: u32,
    subscriptions: u32,
    /// When each bucket is full again, in ns of [`Time`]; 0: it is.
    full_again_ns: [u64; BUCKETS],
}

impl Account {
    const fn is_loose(&self) -> bool {
        self.connections == 0 && self.subscriptions == 0
    }

    fn is_idle(&self, now_ns: u64) -> bool {
        self.is_loose() && self.full_again_ns.iter().all(|full| *full <= now_ns)
    }

    fn held(&mut self, what: Held) -> &mut u32 {
        match what {
            Held::Connections => &mut self.connections,
            Held::Subscriptions => &mut self.subscriptions,
        }
    }
}

#[derive(Debug)]
struct Shard {
    accounts: HashMap<u128, Account, RandomState>,
    /// So many accounts are the occasion to look for idle ones: each is looked at as often as one is made, about.
    sweep_at: usize,
}

/// All accounts of one kind of key.
#[derive(Debug)]
pub struct Ledger {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    time: Time,
}

impl Ledger {
    pub fn new(time: Time) -> Self {
        let hasher = RandomState::default();
        let shard =
            || Mutex::new(Shard { accounts: HashMap::with_hasher(hasher.clone()), sweep_at: SWEEP_AT_MIN });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hasher: hasher.clone(), time }
    }

    fn shard(&self, key: u128) -> MutexGuard<'_, Shard> {
        // The upper bits: the map uses the lower ones.
        let at = (self.hasher.hash_one(key) >> 32) as usize % SHARDS;
        // A panic under the lock ended the process.
        self.shards[at].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes `count` of something, unless more than `max` would be held then.
    pub fn take(&self, key: u128, what: Held, count: u32, max: usize) -> bool {
        let mut shard = self.shard(key);
        let account = shard.account(key, &self.time);
        let held = account.held(what);
        let after = held.saturating_add(count);
        let fits = after as usize <= max;
        if fits {
            *held = after;
        } else if account.is_idle(self.time.now_ns()) {
            shard.accounts.remove(&key);
        }
        fits
    }

    /// Gives back what was taken.
    pub fn give(&self, key: u128, what: Held, count: u32) {
        let mut shard = self.shard(key);
        let Some(account) = shard.accounts.get_mut(&key) else {
            debug_assert!(false, "given back to an account that holds nothing");
            return;
        };
        let held = account.held(what);
        debug_assert!(*held >= count, "more is given back than was taken");
        *held = held.saturating_sub(count);
        if account.is_idle(self.time.now_ns()) {
            shard.accounts.remove(&key);
        }
    }

    /// Accounts that there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().map_or(0, |shard| shard.accounts.len())).sum()
    }

    /// What a key holds.
    #[cfg(test)]
    pub fn held(&self, key: u128, what: Held) -> u32 {
        self.shard(key).accounts.get_mut(&key).map_or(0, |account| *account.held(what))
    }
}

impl Shard {
    fn account(&mut self, key: u128, time: &Time) -> &mut Account {
        if self.accounts.len() >= self.sweep_at && !self.accounts.contains_key(&key) {
            self.sweep(time.now_ns());
        }
        self.accounts.entry(key).or_default()
    }

    fn sweep(&mut self, now_ns: u64) {
        self.accounts.retain(|_, account| !account.is_idle(now_ns));
        let loose = self.accounts.values().filter(|account| account.is_loose()).count();
        if loose >= LOOSE_MAX / SHARDS {
            self.accounts.retain(|_, account| !account.is_loose());
        }
        let kept = self.accounts.len();
        // Of those that are made until the next sweep, all may be loose.
        self.sweep_at = kept + kept.clamp(SWEEP_AT_MIN, LOOSE_MAX / SHARDS);
        if self.accounts.capacity() > 4 * self.sweep_at {
            self.accounts.shrink_to(self.sweep_at);
        }
    }
}

/// One bucket of every account, as `governor` keeps its state in it.
#[derive(Debug)]
pub struct Bucket {
    ledger: Arc<Ledger>,
    at: usize,
}

impl Bucket {
    /// # Panics
    /// When accounts have no bucket `at`.
    pub fn new(ledger: Arc<Ledger>, at: usize) -> Self {
        assert!(at < BUCKETS);
        Self { ledger, at }
    }
}

impl StateStore for Bucket {
    type Key = u128;

    fn measure_and_replace<T, F, E>(&self, key: &u128, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut shard = self.ledger.shard(*key);
        let full_again_ns = &mut shard.account(*key, &self.ledger.time).full_again_ns[self.at];
        let (allowed, next) = measure((*full_again_ns > 0).then(|| Nanos::new(*full_again_ns)))?;
        *full_again_ns = next.as_u64();
        Ok(allowed)
    }
}

/// The clock of buckets: ns since it was made.
#[derive(Debug, Clone)]
pub struct Time {
    start: Instant,
    /// In tests, what goes beyond the true time.
    #[cfg(test)]
    pub ahead_ns: Arc<std::sync::atomic::AtomicU64>,
}

impl Time {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
            #[cfg(test)]
            ahead_ns: Arc::default(),
        }
    }

    /// Not 0: what began together with the clock is not taken for what never was.
    fn now_ns(&self) -> u64 {
        let true_ns = self.start.elapsed().as_nanos() as u64 + 1;
        #[cfg(test)]
        let true_ns = true_ns + self.ahead_ns.load(std::sync::atomic::Ordering::Relaxed);
        true_ns
    }
}

impl Clock for Time {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.now_ns())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::atomic::Ordering;

    use governor::{Quota, RateLimiter};

    use super::*;

    fn per_second(
        ledger: &Arc<Ledger>,
        at: usize,
        count: u32,
    ) -> RateLimiter<u128, Bucket, Time, governor::middleware::NoOpMiddleware<Nanos>> {
        let quota = Quota::per_second(NonZeroU32::new(count).expect("above zero"));
        RateLimiter::new(quota, Bucket::new(Arc::clone(ledger), at), ledger.time.clone())
    }

    fn pass(time: &Time, ms: u64) {
        time.ahead_ns.fetch_add(ms * 1_000_000, Ordering::Relaxed);
    }

    #[test]
    fn what_is_given_back_leaves_nothing() {
        let ledger = Ledger::new(Time::start());
        assert!(ledger.take(7, Held::Connections, 1, 2));
        assert!(ledger.take(7, Held::Connections, 1, 2));
        assert!(!ledger.take(7, Held::Connections, 1, 2));
        assert!(ledger.take(8, Held::Connections, 1, 2), "another key");
        assert!(!ledger.take(7, Held::Subscriptions, 3, 2));
        assert!(ledger.take(7, Held::Subscriptions, 2, 2));
        ledger.give(7, Held::Connections, 2);
        assert_eq!(ledger.held(7, Held::Subscriptions), 2);
        ledger.give(7, Held::Subscriptions, 2);
        ledger.give(8, Held::Connections, 1);
        assert!(!ledger.take(9, Held::Connections, 1, 0));
        assert_eq!(ledger.len(), 0);
    }

    #[test]
    fn buckets_fill_with_time_and_are_forgotten_when_full() {
        let time = Time::start();
        let ledger = Arc::new(Ledger::new(time.clone()));
        let (fast, slow) = (per_second(&ledger, 0, 10), per_second(&ledger, 1, 2));
        for _ in 0..10 {
            fast.check_key(&1).expect("ten at once");
        }
        assert!(fast.check_key(&1).is_err() && fast.check_key(&2).is_ok() && slow.check_key(&1).is_ok());
        pass(&time, 110);
        assert!(fast.check_key(&1).is_ok(), "the eleventh a tenth of a second later");
        assert!(ledger.take(1, Held::Connections, 1, 9));
        ledger.give(1, Held::Connections, 1);
        assert_eq!(ledger.len(), 2, "its buckets are not full");
        pass(&time, 5_000);
        assert!(ledger.take(1, Held::Connections, 1, 9));
        ledger.give(1, Held::Connections, 1);
        assert_eq!(ledger.len(), 1);
    }

    /// A /32 of IPv6 has four thousand million networks of one client each.
    #[test]
    fn however_many_keys_come_few_are_kept() {
        let time = Time::start();
        let ledger = Arc::new(Ledger::new(time.clone()));
        let rate = per_second(&ledger, 0, 1);
        assert!(ledger.take(u128::MAX, Held::Connections, 1, 1));
        for key in 0..1_000_000_u128 {
            rate.check_key(&(key << 64)).expect("its first");
        }
        assert!(ledger.len() <= 3 * LOOSE_MAX, "{}", ledger.len());
        assert!(!ledger.take(u128::MAX, Held::Connections, 1, 1), "what is held is kept");
        pass(&time, 2_000);
        for key in 0..200_000_u128 {
            ledger.take(key, Held::Connections, 1, 0);
            let _ = rate.check_key(&(key << 64));
            pass(&time, 10);
        }
        assert!(ledger.len() <= LOOSE_MAX / 4, "{}", ledger.len());
    }

    #[test]
    fn threads_agree() {
        let ledger = Ledger::new(Time::start());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if ledger.take(1, Held::Connections, 1, 3) {
                            ledger.give(1, Held::Connections, 1);
                        }
                    }
                });
            }
        });
        assert_eq!(ledger.len(), 0);
    }
}
