//! One worker's part in the node's memory: counts what its feeds, connections and tasks hold, and gives back what is too
//! much: the oldest history first, then the connections that hold most (`memory`: when).
//! Counts are kept where bytes come and go, by comparing a thing with what was counted of it last; a worker sums up once in
//! a tick, and when it has taken what it was granted since.

use crate::domain::feed::FeedBounds;

use super::caller::Caller;
use super::close::Reason;
use super::entry::{ConnId, Entry, Kind};
use super::host;
use super::io;
use super::memory::{Part, Pressure, Sums};
use super::poll::Answered;
use super::state::{Socket, State};
use super::tally::Tally;
use super::tasks::Awaits;

/// What a held connection may have beside its entry without being asked to give it back.
pub const SMALL_BYTES: usize = 1_024;
/// What is counted of a task that waits, beside what it holds: less than it takes (`running`), so that whoever is slow with a
/// small request is not ended for it; the kernel's figure has the rest.
pub const TASK_BYTES: usize = 2 * 1_024;
/// More than so much for history is worth asking for between two ticks.
const HISTORY_GRAIN_BYTES: usize = 16 * 1_024;
/// Workers together take this part of the node's memory, of each kind, before they look again.
const GRANT_PARTS: usize = 32;
/// Tables are looked at after so many questions to channels: each may have made them grow by some hundred bytes.
const ASKS_MAX: usize = 1_024;
/// Messages dropped before the worker does something else: about a millisecond.
const DROPS_MAX: usize = 4_096;
/// Messages of about the same age go together: so many ms, or this part of the time that history spans.
const AGE_GRAIN_MS: u64 = 1_000;
const AGE_PARTS: u64 = 8;
/// What feeds may keep each, however many there are.
const FEED_BYTES_MIN: usize = 4 * 1_024;
/// What a slot of the table of connections takes beside its entry.
const SLOT_BYTES: usize = 8;

/// What this worker counts.
pub struct Ledger {
    feeds: usize,
    /// Of held connections, beside their entries.
    conns: usize,
    /// Of tasks, and of frames that are acted on.
    tasks: usize,
    /// Of those whom connections are of, and of what is remembered: who they were, and answers to polls.
    pub(super) claims: Tally,
    /// What those may come to before the node is looked at.
    claims_grant: usize,
    /// What `conns` and `tasks` may come to before the node is looked at.
    grant: usize,
    /// The same of `feeds`.
    feeds_grant: usize,
    /// What all feeds here may take.
    feeds_max: usize,
    /// Questions to channels here, and connections, of which some make tables grow.
    asks: usize,
    /// The node had more for history when it was looked at last.
    history_may_grow: bool,
    /// History has pushed out messages since the last tick.
    history_was_full: bool,
    looked_tick: u32,
    /// What all workers counted when this one asked the kernel last.
    counted: usize,
    /// What has come into history here since then, in the place of others.
    replaced: usize,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            feeds: 0,
            conns: 0,
            tasks: 0,
            claims: Tally::default(),
            claims_grant: 0,
            grant: 0,
            feeds_grant: 0,
            asks: 0,
            // Until memory is looked at, which is in the first tick.
            feeds_max: usize::MAX,
            history_may_grow: true,
            history_was_full: false,
            looked_tick: u32::MAX,
            counted: 0,
            replaced: 0,
        }
    }
}

impl Ledger {
    fn held(&self) -> usize {
        self.conns + self.tasks
    }

    fn is_over(&self) -> bool {
        self.held() > self.grant
    }
}

/// What became of a task's wish to hold more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Fits,
    /// The node has no memory for it.
    Full,
}

impl State {
    /// Counts a feed again.
    pub fn weigh_feed(&mut self, slot: u32) {
        let Some(feed) = self.feeds.get_mut(slot) else { return };
        let bytes = feed.kept_bytes();
        let before = std::mem::replace(&mut feed.counted_bytes, bytes);
        self.ledger.feeds = self.ledger.feeds + bytes - before;
        if self.ledger.feeds > self.ledger.feeds_grant {
            self.balance_memory();
        }
    }

    /// A feed is gone.
    pub fn forget_feed(&mut self, counted_bytes: usize) {
        self.ledger.feeds -= counted_bytes;
    }

    /// Counts what a held connection has beside its entry. False: it has more than the node has memory for.
    pub fn weigh_conn(&mut self, slot: u32) -> bool {
        let Some(entry) = self.conns.get_mut(slot) else { return true };
        let waiting = if entry.flags.waiting { self.waiting.get(&slot) } else { None };
        let boxed = entry.boxed_bytes() + waiting.map_or(0, |waiting| waiting.kept_bytes());
        let bytes = boxed + entry.session_bytes();
        let before = std::mem::replace(&mut entry.counted_bytes, bytes as u32) as usize;
        self.ledger.conns = self.ledger.conns + bytes - before;
        // Asked in any case: many that are small are much.
        let fits = bytes <= before || self.fits();
        fits || boxed <= SMALL_BYTES
    }

    /// A held connection is gone.
    pub fn forget_conn(&mut self, entry: &Entry) {
        self.ledger.conns -= entry.counted_bytes as usize;
    }

    /// Counts what a task that waits for its client holds; `place` is where it is remembered.
    pub fn weigh_task(
        &mut self,
        place: &mut Option<u32>,
        socket: &Socket,
        awaits: Awaits,
        bytes: usize,
    ) -> Held {
        let Some(more) = self.remember_task(place, socket, awaits, bytes) else { return Held::Full };
        self.ledger.tasks = self.ledger.tasks.saturating_add_signed(more);
        let fits = bytes <= TASK_BYTES + SMALL_BYTES || more <= 0 || self.fits();
        if fits { Held::Fits } else { Held::Full }
    }

    /// A task that waited is done.
    pub fn forget_task(&mut self, place: u32) {
        self.ledger.tasks -= self.take_task(place);
    }

    /// Counts what a task holds that does not wait for its client, or, negative, no longer does.
    pub fn weigh_work(&mut self, bytes: isize) {
        self.ledger.tasks = self.ledger.tasks.saturating_add_signed(bytes);
        if self.ledger.is_over() {
            self.balance_memory();
        }
    }

    /// Whether what is counted is within what the node grants; it is asked again before it is exceeded.
    fn fits(&mut self) -> bool {
        if !self.ledger.is_over() {
            return true;
        }
        let sums = self.balance_memory();
        self.node.memory.room(&sums) > 0
    }

    /// Bytes that one feed may keep: less than configured where all feeds together are too large.
    pub fn feed_bounds(&self) -> FeedBounds {
        let mut bounds = self.node.feed_bounds();
        if self.ledger.feeds > self.ledger.feeds_max {
            bounds.bytes = bounds.bytes.min(self.feed_share());
        }
        bounds
    }

    /// One feed's part of what all may take.
    pub fn feed_share(&self) -> usize {
        (self.ledger.feeds_max / self.feeds.len().max(1)).max(FEED_BYTES_MIN)
    }

    /// Whether feeds here take more than they may.
    pub fn has_large_feeds(&self) -> bool {
        self.ledger.feeds > self.ledger.feeds_max
    }

    /// Where what is known of clients is counted.
    pub fn claims(&self) -> &Tally {
        &self.ledger.claims
    }

    /// Whether connections go for what they hold: whatever is only remembered goes first.
    pub fn is_tight(&self) -> bool {
        self.node.memory.pressure() >= Pressure::Tight
    }

    /// Whether newcomers and publishes are refused for want of memory.
    pub fn is_full(&self) -> bool {
        self.node.memory.pressure() >= Pressure::Full
    }

    /// Whether a connection that comes now is closed at once.
    pub fn is_spent(&self) -> bool {
        self.node.memory.pressure() == Pressure::Spent
    }

    /// Bytes that this worker counts, as it tells the node.
    fn part(&mut self) -> Part {
        let slots = self.conns.slots_end() as usize;
        let letters = self.node.mailboxes[usize::from(self.index)].queued_bytes();
        Part {
            history: self.home.bytes(),
            feeds: self.ledger.feeds,
            others: self.home.tables_bytes()
                + slots * (size_of::<Entry>() + SLOT_BYTES)
                + self.ledger.held()
                + self.running_bytes()
                + self.ledger.claims.bytes()
                + letters
                + self.poll_body.as_ref().map_or(0, Answered::cost_bytes)
                + self.beside_bytes(),
            oldest_ms: self.home.oldest_ms().unwrap_or(u64::MAX),
        }
    }

    /// What no worker holds: one of them tells of it.
    fn beside_bytes(&self) -> usize {
        if self.index == 0 { self.node.memory.beside().bytes() } else { 0 }
    }

    /// Tells the node what this worker takes, and takes what it is granted.
    pub fn balance_memory(&mut self) -> Sums {
        let part = self.part();
        let memory = &self.node.memory;
        memory.tell(usize::from(self.index), part);
        let mut sums = memory.sums();
        // Each worker for itself: what a thread has freed, it alone can give back.
        let changed = sums.counted().abs_diff(self.ledger.counted) + self.ledger.replaced;
        if memory.is_stale(changed) {
            self.ledger.counted = sums.counted();
            self.ledger.replaced = 0;
            self.ask_kernel();
            sums = memory.sums();
        }
        let (before, now) = memory.judge(&sums);
        let workers = memory.workers();
        let history_max = memory.history_max(&sums);
        // A little of what there is: others take of it too, before this worker looks again.
        let granted = |bytes: usize| bytes.min(memory.bytes_max() / GRANT_PARTS) / workers;
        let more = granted(history_max.saturating_sub(sums.history));
        self.home.set_bytes_max(part.history + more);
        self.ledger.history_may_grow = more > HISTORY_GRAIN_BYTES;
        self.ledger.grant = self.ledger.held() + granted(memory.room(&sums));
        self.ledger.claims_grant = self.ledger.claims.bytes() + granted(memory.bytes_max());
        self.ledger.feeds_grant = part.feeds + granted(memory.bytes_max());
        self.ledger.feeds_max = memory.feeds_max(&sums) / workers;
        let is_half = sums.total() > memory.bytes_max() / 2;
        if now != before {
            let (taken, budget) = (sums.total(), memory.bytes_max());
            let (history, feeds, others) = (sums.history, sums.feeds, sums.others);
            // Of the two, counted and seen by the kernel, either may have decided.
            let (pressure, resident) = (now.as_str(), memory.resident_bytes());
            if now > before.max(Pressure::Tight) {
                tracing::warn!(
                    pressure,
                    taken,
                    resident,
                    budget,
                    history,
                    feeds,
                    others,
                    "memory is short: newcomers and publishes are refused; see limits.memory_bytes"
                );
            } else {
                tracing::info!(pressure, taken, resident, budget, history, feeds, others, "memory");
            }
        }
        if now > Pressure::Calm || is_half {
            self.call_clock(self.tick() + 1);
        }
        sums
    }

    /// A channel here is asked something, or a connection comes: tables may have grown, and what is known of clients.
    pub fn see_growth(&mut self) {
        self.ledger.asks += 1;
        if self.ledger.asks.is_multiple_of(ASKS_MAX) || self.ledger.claims.bytes() > self.ledger.claims_grant
        {
            self.balance_memory();
        }
    }

    /// A message of so many bytes comes into history here: where that would push out others, the node may have room yet.
    pub fn make_room(&mut self, bytes: usize) {
        if self.home.is_full_for(bytes) {
            self.ledger.replaced += bytes;
            if self.ledger.history_may_grow || self.node.memory.is_stale(self.ledger.replaced) {
                self.balance_memory();
            }
            // The oldest of the node are elsewhere, perhaps: they are to go, not those of this worker.
            self.ledger.history_was_full = true;
            self.call_clock(self.tick() + 1);
        }
    }

    /// Whether memory is looked at in every tick.
    pub fn watches_memory(&self) -> bool {
        let memory = &self.node.memory;
        let sums = memory.sums();
        let history_max = memory.history_max(&sums);
        self.ledger.history_was_full
            || sums.history > history_max - history_max / 32
            || sums.total() > memory.bytes_max() / 2
            || memory.pressure() > Pressure::Calm
    }

    /// Whether it is time to look at memory: once in a tick. One worker asks the kernel for all.
    pub fn looks_at_memory(&mut self) -> bool {
        let tick = self.tick();
        if std::mem::replace(&mut self.ledger.looked_tick, tick) == tick {
            return false;
        }
        self.ledger.history_was_full = false;
        self.poll_body = None;
        if self.node.memory.has_slack() {
            host::give_back_freed_memory();
        }
        if self.index == 0 {
            self.node.memory.on_tick();
            self.ask_kernel();
        }
        true
    }

    /// Corrects what is counted by what the kernel says that the process takes.
    fn ask_kernel(&self) {
        let memory = &self.node.memory;
        let Some(bytes) = host::resident_bytes() else { return };
        memory.correct(bytes);
        if !memory.has_slack() {
            return;
        }
        // Nobody is to be refused for what was freed and is only not given back yet.
        host::give_back_freed_memory();
        memory.correct(host::resident_bytes().unwrap_or(bytes));
        if memory.has_slack() && memory.asks_others() {
            self.node.on_each_worker(|_| {
                |state: &mut State| {
                    host::give_back_freed_memory();
                    state.node.memory.has_given_back();
                }
            });
        }
    }

    /// Gives back what is too much, a slice at a time. True: there may be more.
    pub fn give_back(&mut self) -> bool {
        let sums = self.balance_memory();
        if self.shrink_history(&sums) {
            return true;
        }
        if self.node.memory.pressure() >= Pressure::Tight {
            self.let_go_of_laggards(&sums);
        }
        false
    }

    /// Drops messages until history is a sixteenth below what it may take: the oldest of the node, whichever worker has
    /// them. True: there may be more.
    fn shrink_history(&mut self, sums: &Sums) -> bool {
        let memory = &self.node.memory;
        let max = memory.history_max(sums);
        let Some(oldest_ms) = memory.oldest_ms() else { return false };
        if sums.history <= max - max / 32 {
            return false;
        }
        let excess = sums.history - (max - max / 16);
        let span_ms = self.node.clock.now_ms().saturating_sub(oldest_ms);
        let until_ms = oldest_ms.saturating_add((span_ms / AGE_PARTS).max(AGE_GRAIN_MS));
        let quota = excess.div_ceil(memory.workers_with(until_ms).max(1));
        let mut freed = 0;
        for _ in 0..DROPS_MAX {
            if freed >= quota || self.home.oldest_ms().is_none_or(|oldest| oldest > until_ms) {
                return false;
            }
            freed += self.home.drop_oldest().unwrap_or(0);
        }
        true
    }

    /// Ends those that hold most, until this worker has given back its part of what is too much.
    fn let_go_of_laggards(&mut self, sums: &Sums) {
        let excess = self.node.memory.excess(sums);
        let own = self.ledger.held() + self.ledger.claims.bytes() + self.ledger.feeds;
        let all = sums.others + sums.feeds;
        let quota = (excess as u128 * own as u128).div_ceil(all.max(1) as u128) as usize;
        let mut heavy: Vec<(usize, Holder)> = Vec::new();
        for (slot, generation, entry) in self.conns.range(0..self.conns.slots_end()) {
            let bytes = self.weight(entry);
            if bytes > SMALL_BYTES {
                heavy.push((bytes, Holder::Conn(ConnId { slot, generation })));
            }
        }
        for (at, waiting) in self.tasks.iter() {
            if waiting.bytes > TASK_BYTES + SMALL_BYTES && waiting.may_be_evicted() {
                heavy.push((waiting.bytes, Holder::Task(at)));
            }
        }
        heavy.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        let mut freed = 0;
        for (bytes, holder) in heavy {
            if freed >= quota {
                break;
            }
            freed += bytes;
            match holder {
                Holder::Conn(conn) => self.let_go(conn.slot),
                Holder::Task(at) => self.evict_task(at),
            }
        }
        self.bury();
        self.balance_memory();
    }

    /// What the node gets back when a connection ends: what it holds, its part of what is known of whose it is, and of the
    /// framed bytes that wait for it.
    fn weight(&self, entry: &Entry) -> usize {
        let mut bytes = (entry.counted_bytes as usize).saturating_sub(entry.session_bytes());
        bytes += entry.bearer.as_ref().map_or(0, Caller::part_bytes);
        if entry.flags.blocked {
            for sub in entry.subs.as_slice() {
                let lane = self.feeds.get(sub.feed).and_then(|feed| feed.lanes.get(usize::from(sub.lane)));
                bytes += lane.map_or(0, |lane| lane.kept_bytes() / lane.readers.len().max(1));
            }
        }
        bytes
    }

    /// Ends a connection for what it holds. One whose socket takes nothing is cut, and what the kernel holds for it goes
    /// too; any other is told. What is cut is taken out by the next [`bury`](Self::bury).
    pub fn let_go(&mut self, slot: u32) {
        let reconnect_ms = self.reconnect_ms();
        let Some(entry) = self.conns.get(slot) else { return };
        let reason = if entry.flags.blocked { Reason::Slow } else { Reason::Full };
        let is_mid_message = entry.owed.is_some();
        match entry.kind {
            // The homes answer within a moment, and then it holds nothing.
            Kind::Publishing(_) => {}
            Kind::Sse | Kind::Ws { .. } | Kind::Poll(_) if !is_mid_message => {
                self.farewell(slot, reason, reconnect_ms);
            }
            _ => {
                io::reset_when_closed(entry.fd);
                self.doom(slot, reason);
            }
        }
    }
}

/// Who holds memory.
enum Holder {
    Conn(ConnId),
    Task(usize),
}
