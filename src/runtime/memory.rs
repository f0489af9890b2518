//! The node's memory: how much it may take, what its workers take of it, and how short it is.
//! Owns the sums and the thresholds. What each worker counts, and what it gives back, is `budget`'s.
//!
//! History and feeds fill what others leave of three quarters, so they shrink as connections need more. Beyond seven
//! eighths those connections go that hold most; beyond fifteen sixteenths newcomers and publishes are refused, and a
//! sixteenth beyond all of it they are not even accepted. Each ends a sixteenth or more below where it began.
//!
//! What workers count is right to within allocators' and tasks' own needs, and counts a message twice that history and a
//! feed share. What the process takes before it serves anybody is added to it. The sum is corrected by what the kernel says (`resident`), within bounds: memory that an allocator keeps
//! to itself must not make a node refuse everybody.

use std::sync::atomic::{AtomicIsize, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use super::tally::Tally;

/// How short memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// There is enough; history takes what is left.
    Calm,
    /// History and feeds are as small as they get: connections that hold most go.
    Tight,
    /// Newcomers and publishes are refused.
    Full,
    /// Connections are closed as they come.
    Spent,
}

impl Pressure {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Tight => "tight",
            Self::Full => "full",
            Self::Spent => "spent",
        }
    }

    const fn of(number: u8) -> Self {
        match number {
            0 => Self::Calm,
            1 => Self::Tight,
            2 => Self::Full,
            _ => Self::Spent,
        }
    }

    /// Where it begins, in 32nds of what may be taken.
    const fn begins(self) -> usize {
        match self {
            Self::Calm => 0,
            Self::Tight => 28,
            Self::Full => 30,
            Self::Spent => 34,
        }
    }

    /// Below which it ends, in 32nds.
    const fn ends(self) -> usize {
        match self {
            Self::Calm => 0,
            Self::Tight => 26,
            Self::Full => 28,
            Self::Spent => 32,
        }
    }

    /// What it is after `now`, when so much of `bytes_max` is taken.
    fn next(now: Self, taken_bytes: usize, bytes_max: usize) -> Self {
        let part = bytes_max / 32;
        let reached = |pressure: &Self| {
            let from = if *pressure <= now { pressure.ends() } else { pressure.begins() };
            taken_bytes >= part * from
        };
        [Self::Spent, Self::Full, Self::Tight].into_iter().find(reached).unwrap_or(Self::Calm)
    }
}

/// The kernel is asked again when what is counted has changed by this part of what may be taken.
const STALE_PARTS: usize = 32;

/// For so many ticks the kernel's figure must be too large before it counts whatever is counted here.
const OVER_TICKS: u8 = 3;

/// What one worker takes, in bytes, and the age of its oldest message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub history: usize,
    pub feeds: usize,
    /// Connections, tasks, tables, letters.
    pub others: usize,
    /// When the oldest message of its history was placed (ms since 1970); `u64::MAX`: it has none.
    pub oldest_ms: u64,
}

/// What all workers take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    pub history: usize,
    pub feeds: usize,
    pub others: usize,
    /// The process as such, before it serves anybody.
    pub base: usize,
    /// By how much the count is short, as the kernel told last; negative: how much is counted twice.
    pub correction: isize,
}

impl Sums {
    /// What workers count.
    pub fn counted(&self) -> usize {
        self.history + self.feeds + self.others + self.base
    }

    pub fn total(&self) -> usize {
        self.counted().saturating_add_signed(self.correction)
    }
}

/// One worker's part, written by it alone. Aligned so that no two workers write one cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell {
    history: AtomicUsize,
    feeds: AtomicUsize,
    others: AtomicUsize,
    oldest_ms: AtomicU64,
}

/// The budget of a node.
#[derive(Debug)]
pub struct Memory {
    bytes_max: usize,
    /// `history.node_bytes`.
    history_bytes_max: usize,
    cells: Vec<Cell>,
    base: AtomicUsize,
    correction: AtomicIsize,
    resident: AtomicUsize,
    pressure: AtomicU8,
    /// Ticks for which the kernel has told of more than may be taken: what was freed a moment ago is about to be given back.
    over_ticks: AtomicU8,
    /// What history may take at most because the kernel tells of more than may be taken.
    history_cap: AtomicUsize,
    /// Workers that were asked to give back what they have freed, and have not done it yet.
    asked: AtomicUsize,
    /// What no worker holds, but all together.
    beside: Tally,
}

impl Memory {
    pub fn new(bytes_max: usize, history_bytes_max: usize, workers: usize) -> Self {
        let cells: Vec<Cell> = (0..workers).map(|_| Cell::default()).collect();
        cells.iter().for_each(|cell| cell.oldest_ms.store(u64::MAX, Ordering::Relaxed));
        Self {
            bytes_max,
            history_bytes_max,
            cells,
            base: AtomicUsize::new(0),
            correction: AtomicIsize::new(0),
            resident: AtomicUsize::new(0),
            pressure: AtomicU8::new(0),
            over_ticks: AtomicU8::new(0),
            history_cap: AtomicUsize::new(usize::MAX),
            asked: AtomicUsize::new(0),
            beside: Tally::default(),
        }
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub fn workers(&self) -> usize {
        self.cells.len()
    }

    /// Where what no worker holds is counted.
    pub fn beside(&self) -> &Tally {
        &self.beside
    }

    /// All is made that serves, and nobody is served yet: so much is in use for as long as the process lives. Within a
    /// quarter of what it may take: a small budget and many workers must not make it refuse everybody.
    pub fn begin(&self, resident: usize) {
        let base = resident.saturating_sub(self.sums().counted()).min(self.bytes_max / 4);
        self.base.store(base, Ordering::Relaxed);
    }

    /// A worker tells what it takes.
    pub fn tell(&self, worker: usize, part: Part) {
        // Relaxed, here and below: sums of what changes all the time.
        let Some(cell) = self.cells.get(worker) else { return };
        cell.history.store(part.history, Ordering::Relaxed);
        cell.feeds.store(part.feeds, Ordering::Relaxed);
        cell.others.store(part.others, Ordering::Relaxed);
        cell.oldest_ms.store(part.oldest_ms, Ordering::Relaxed);
    }

    pub fn sums(&self) -> Sums {
        let sum = |of: fn(&Cell) -> &AtomicUsize| {
            self.cells.iter().map(|cell| of(cell).load(Ordering::Relaxed)).sum::<usize>()
        };
        Sums {
            history: sum(|cell| &cell.history),
            feeds: sum(|cell| &cell.feeds),
            others: sum(|cell| &cell.others),
            base: self.base.load(Ordering::Relaxed),
            correction: self.correction.load(Ordering::Relaxed),
        }
    }

    /// How short memory is, as it was judged last.
    pub fn pressure(&self) -> Pressure {
        Pressure::of(self.pressure.load(Ordering::Relaxed))
    }

    /// What the process takes of the machine, as the kernel told last.
    pub fn resident_bytes(&self) -> usize {
        self.resident.load(Ordering::Relaxed)
    }

    /// Judges how short memory is. Returns what it was before, and is now.
    pub fn judge(&self, sums: &Sums) -> (Pressure, Pressure) {
        let before = self.pressure();
        let mut now = Pressure::next(before, self.taken(sums), self.bytes_max);
        // Whatever is counted: beyond this the machine would have to say no.
        if self.over_ticks.load(Ordering::Relaxed) >= OVER_TICKS {
            let is_spent = self.resident_bytes() >= self.bytes_max / 16 * 18;
            now = now.max(if is_spent { Pressure::Spent } else { Pressure::Full });
        }
        if now != before {
            self.pressure.store(now as u8, Ordering::Relaxed);
        }
        (before, now)
    }

    /// What is taken once history has given back what it has beyond its part, which it does before anybody is refused for it.
    fn taken(&self, sums: &Sums) -> usize {
        let going = sums.history.saturating_sub(self.history_max(sums)).min(self.bytes_max / 4);
        sums.total().saturating_sub(going)
    }

    /// The kernel says that the process takes `resident` bytes.
    pub fn correct(&self, resident: usize) {
        self.resident.store(resident, Ordering::Relaxed);
        let sums = self.sums();
        let (history, feeds, counted) = (sums.history, sums.feeds, sums.counted());
        let correction = if resident >= counted {
            (resident - counted).min(self.bytes_max / 4) as isize
        } else {
            // Only messages that a feed shares with history are counted twice.
            -((counted - resident).min(feeds.min(history)) as isize)
        };
        self.correction.store(correction, Ordering::Relaxed);
    }

    /// Whether the process takes much more of the machine than is counted, and of what it may take: what was freed is to be
    /// given back.
    pub fn has_slack(&self) -> bool {
        let resident = self.resident_bytes();
        resident > self.bytes_max / 2 && resident > self.sums().counted() + self.bytes_max / 16
    }

    /// Whether all workers are to be asked to give back what they have freed: where none still has to do it.
    pub fn asks_others(&self) -> bool {
        let (none, all) = (0, self.cells.len());
        self.asked.compare_exchange(none, all, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// A worker has done it.
    pub fn has_given_back(&self) {
        // Asked anew in a tick, one may do it twice.
        let _ = self.asked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |asked| asked.checked_sub(1));
    }

    /// A tick has passed: all may be asked again, and a figure of the kernel that stays too large counts. History is less by
    /// a part for each tick of that, before anybody is refused and for as long as somebody would be: what allocators keep
    /// between what is in use comes back only with that.
    pub fn on_tick(&self) {
        let is_over = self.resident_bytes() >= self.bytes_max / 16 * 17;
        let history_cap = if is_over { self.sums().history / 8 * 7 } else { usize::MAX };
        self.history_cap.store(history_cap, Ordering::Relaxed);
        let ticks = self.over_ticks.load(Ordering::Relaxed);
        self.over_ticks.store(if is_over { ticks.saturating_add(1) } else { 0 }, Ordering::Relaxed);
        self.asked.store(0, Ordering::Relaxed);
    }

    /// Whether so much has come or gone since the kernel was asked that it is to be asked again: what is not counted, or
    /// freed and not given back, comes along with what is.
    pub fn is_stale(&self, changed_bytes: usize) -> bool {
        changed_bytes > self.bytes_max / STALE_PARTS
    }

    /// What all history may take, beside what others take.
    pub fn history_max(&self, sums: &Sums) -> usize {
        let taken = (sums.counted() - sums.history).saturating_add_signed(sums.correction);
        let cap = self.history_cap.load(Ordering::Relaxed).max(self.bytes_max / 16);
        self.left(taken).min(self.history_bytes_max).min(cap)
    }

    /// What all feeds may take. Together with history they have what others leave.
    pub fn feeds_max(&self, sums: &Sums) -> usize {
        let taken = (sums.others + sums.base).saturating_add_signed(sums.correction.max(0));
        (self.left(taken) / 2).min(self.history_bytes_max)
    }

    fn left(&self, taken: usize) -> usize {
        (self.bytes_max / 4 * 3).saturating_sub(taken).max(self.bytes_max / 16)
    }

    /// What may still be taken by those who are not refused.
    pub fn room(&self, sums: &Sums) -> usize {
        (self.bytes_max / 32 * Pressure::Full.begins()).saturating_sub(self.taken(sums))
    }

    /// What connections must give back for memory not to be tight any more.
    pub fn excess(&self, sums: &Sums) -> usize {
        sums.total().saturating_sub(self.bytes_max / 32 * Pressure::Tight.ends())
    }

    /// When the oldest message of all workers was placed; `None`: there is none.
    pub fn oldest_ms(&self) -> Option<u64> {
        let oldest = self.cells.iter().map(|cell| cell.oldest_ms.load(Ordering::Relaxed)).min();
        oldest.filter(|&oldest| oldest != u64::MAX)
    }

    /// Workers that have messages as old as that.
    pub fn workers_with(&self, oldest_ms: u64) -> usize {
        self.cells.iter().filter(|cell| cell.oldest_ms.load(Ordering::Relaxed) <= oldest_ms).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn memory(part: Part) -> Memory {
        let memory = Memory::new(32 * MIB, usize::MAX, 1);
        memory.tell(0, part);
        memory
    }

    fn part(history: usize, feeds: usize, others: usize) -> Part {
        Part { history: history * MIB, feeds: feeds * MIB, others: others * MIB, oldest_ms: 5 }
    }

    #[test]
    fn pressure_comes_and_goes_with_some_play() {
        let mut now = Pressure::Calm;
        for (taken, want) in [
            (27, Pressure::Calm),
            (28, Pressure::Tight),
            (26, Pressure::Tight),
            (25, Pressure::Calm),
            (27, Pressure::Calm),
            (30, Pressure::Full),
            (28, Pressure::Full),
            (27, Pressure::Tight),
            (33, Pressure::Full),
            (34, Pressure::Spent),
            (32, Pressure::Spent),
            (29, Pressure::Full),
            (3, Pressure::Calm),
        ] {
            now = Pressure::next(now, taken * MIB, 32 * MIB);
            assert_eq!(now, want, "{taken}");
        }
    }

    #[test]
    fn history_and_feeds_have_what_others_leave() {
        for (others, history, feeds) in [(0, 24, 12), (4, 20, 10), (20, 4, 2), (30, 2, 1)] {
            let memory = memory(part(0, 0, others));
            let sums = memory.sums();
            assert_eq!(
                (memory.history_max(&sums), memory.feeds_max(&sums)),
                (history * MIB, feeds * MIB),
                "{others}"
            );
        }
        let memory = Memory::new(32 * MIB, 3 * MIB, 1);
        assert_eq!(memory.history_max(&memory.sums()), 3 * MIB, "history.node_bytes");
    }

    #[test]
    fn the_count_is_corrected_within_bounds() {
        for (what, counted, resident, total) in [
            ("what is not counted", part(4, 0, 2), 7, 7),
            ("an allocator that keeps much to itself", part(1, 0, 1), 30, 2 + 8),
            ("messages counted twice", part(8, 8, 2), 12, 12),
            ("but nothing else is", part(1, 8, 2), 5, 10),
        ] {
            let memory = memory(counted);
            memory.correct(resident * MIB);
            assert_eq!(memory.sums().total(), total * MIB, "{what}");
        }
    }

    #[test]
    fn what_the_machine_says_is_heard_whatever_is_counted() {
        let memory = memory(part(1, 0, 1));
        let mut before = Pressure::Calm;
        // For a moment it may be what is freed and not given back.
        for (resident, ticks, now) in [
            (33, 9, Pressure::Calm),
            (34, 2, Pressure::Calm),
            (34, 1, Pressure::Full),
            (36, 1, Pressure::Spent),
            (34, 1, Pressure::Full),
            (20, 1, Pressure::Calm),
        ] {
            memory.correct(resident * MIB);
            (0..ticks).for_each(|_| memory.on_tick());
            assert_eq!(memory.judge(&memory.sums()), (before, now), "{resident}");
            before = now;
        }
    }

    #[test]
    fn what_the_process_takes_by_itself_is_beside_all_else() {
        let memory = memory(part(0, 0, 1));
        memory.begin(6 * MIB);
        assert_eq!(memory.sums().counted(), 6 * MIB);
        memory.tell(0, part(1, 0, 1));
        memory.correct(30 * MIB);
        let sums = memory.sums();
        assert_eq!((sums.total(), sums.others), ((7 + 8) * MIB, MIB));
        assert_eq!(memory.history_max(&sums), (24 - 6 - 8) * MIB);
        assert_eq!(memory.feeds_max(&sums), (24 - 6 - 8) / 2 * MIB);
        memory.begin(30 * MIB);
        assert_eq!(memory.sums().base, 8 * MIB);
    }

    /// Down to what it has in any case, and not for longer than that.
    #[test]
    fn history_goes_while_the_machine_says_too_much() {
        let memory = memory(part(16, 0, 1));
        memory.correct(34 * MIB);
        assert_eq!(memory.history_max(&memory.sums()), 15 * MIB);
        for history in [16, 12, 8, 4] {
            memory.tell(0, part(history, 0, 1));
            memory.correct(34 * MIB);
            memory.on_tick();
            let want = (history * MIB / 8 * 7).min(15 * MIB);
            assert_eq!(memory.history_max(&memory.sums()), want, "{history}");
        }
        memory.tell(0, part(2, 0, 1));
        memory.on_tick();
        assert_eq!(memory.history_max(&memory.sums()), 2 * MIB);
        memory.correct(33 * MIB);
        memory.on_tick();
        assert_eq!(memory.history_max(&memory.sums()), 15 * MIB);
    }

    #[test]
    fn the_oldest_of_all_is_known() {
        let memory = Memory::new(32 * MIB, usize::MAX, 3);
        assert_eq!(memory.oldest_ms(), None);
        memory.tell(0, Part { oldest_ms: 50, ..part(1, 0, 0) });
        memory.tell(2, Part { oldest_ms: 20, ..part(1, 0, 0) });
        assert_eq!((memory.oldest_ms(), memory.workers_with(20), memory.workers_with(50)), (Some(20), 1, 2));
    }
}
