//! From feeds to sockets: each reader gets everything from its position to the feed's head, in one send.
//! A pass goes over all readers of a feed that has something new; batches of at most 64 sends may hold several passes, and
//! passes take turns batch by batch, so that a channel with few readers does not wait for one with many.
//! Owns the order: at most one send per connection in a batch, nothing to a connection that owes. Synchronous; the
//! worker slices it in time.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Instant;

use crate::domain::lane::{ENCODINGS, Encoding, Standing};

use super::close::{Reason, Transport};
use super::entry::{ConnId, Sub};
use super::sendring::{BATCH_MAX, Outcome, Send};
use super::state::State;
use super::stats::Load;
use super::trace::Sent;
use super::wire::SEALED_BYTES_MAX;

/// Bytes in one batch, unless a single send has more.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Room for encrypted bytes that is kept for the next batch.
const SEALED_ROOM_BYTES: usize = 256 * 1024;

/// Where the fan-out is.
#[derive(Default)]
pub struct Passes {
    current: Option<Pass>,
    /// Passes that have begun, while another has its turn. A feed has one at most: it stays `queued` until that ends.
    waiting: VecDeque<Pass>,
    /// Whose turn it is: that of passes that wait, or of feeds whose pass has not begun.
    resumes: bool,
    jobs: Vec<Job>,
    outcomes: Vec<(u32, Outcome)>,
    /// What is encrypted for readers of this batch.
    sealed: Vec<u8>,
    /// Feeds whose pass has come to its end in this batch.
    finished: Vec<u32>,
    batch: u32,
    /// Connections found lost, or to be ended, and why.
    pub doomed: Vec<(ConnId, Reason)>,
    /// When this batch began (µs of the node's clock).
    now_us: u64,
    /// What the batch gives to readers, by encoding.
    pub(super) loads: [Load; ENCODINGS],
    /// Passes that sent for the first time in this batch: when their oldest message was placed.
    opened: Vec<u64>,
    /// Passes that sent, and have come to their end in this batch.
    ended: Vec<Times>,
}

struct Pass {
    feed: u32,
    lane: usize,
    index: usize,
    times: Times,
    /// Something was sent.
    has_sent: bool,
}

/// When a pass began, and when its oldest message was placed (0: it has no new one), in µs of the node's clock.
#[derive(Debug, Clone, Copy)]
struct Times {
    begun_us: u64,
    placed_us: u64,
}

impl Pass {
    /// It sends, now.
    fn sends(&mut self, opened: &mut Vec<u64>) {
        if !std::mem::replace(&mut self.has_sent, true) && self.times.placed_us > 0 {
            opened.push(self.times.placed_us);
        }
    }
}

/// One send: everything after `from` in the lane; or, where it is encrypted, so much of it as one pass may.
pub(super) struct Job {
    pub feed: u32,
    pub index: u32,
    pub lane: u8,
    pub from: u64,
    pub bytes: u64,
    pub sealed: Option<Range<usize>>,
}

/// As what each encoding's readers came, in the encodings' order.
pub const ENCODING_TRANSPORTS: [Transport; ENCODINGS] =
    [Transport::Sse, Transport::Sse, Transport::Raw, Transport::V1, Transport::LongPoll];

/// What to do about the next reader.
enum Step {
    Taken,
    /// Not with others in one batch.
    Alone(ConnId, Sub),
    /// The batch must go first.
    Flush,
    Idle,
}

impl State {
    /// Whether there is anything to fan out.
    pub fn has_fan_out(&self) -> bool {
        self.pass.current.is_some() || !self.pass.waiting.is_empty() || !self.dirty.is_empty()
    }

    /// Another pass has its turn, if there is another.
    fn take_turns(&mut self) {
        let pass = &mut self.pass;
        if let Some(current) = pass.current.take() {
            pass.waiting.push_back(current);
        }
        // In turn, or many small feeds would keep a large one from going on.
        pass.resumes = !pass.resumes;
        if pass.resumes || self.dirty.is_empty() {
            pass.current = pass.waiting.pop_front();
        }
    }

    /// The pass that goes on, or begins.
    fn next_pass(&mut self) -> Option<Pass> {
        let Some(feed) = self.dirty.pop_front() else { return self.pass.waiting.pop_front() };
        let placed_us = self.feeds.get_mut(feed).map_or(0, |feed| std::mem::take(&mut feed.placed_us));
        let times = Times { begun_us: self.pass.now_us, placed_us };
        Some(Pass { feed, lane: 0, index: 0, times, has_sent: false })
    }

    /// Sends one batch, of `sends_max` at most, which is at most [`BATCH_MAX`]. False when there was nothing to send.
    pub fn fan_out_batch(&mut self, sends_max: usize, now: Instant) -> bool {
        let mut jobs = std::mem::take(&mut self.pass.jobs);
        self.pass.now_us = self.node.clock.us(now);
        self.take_turns();
        self.pass.batch = self.pass.batch.wrapping_add(1);
        let (mut bytes, mut worked) = (0, false);
        while jobs.len() < sends_max && bytes < BATCH_BYTES_MAX {
            match self.next_step(&mut jobs, &mut bytes) {
                Step::Taken => worked = true,
                Step::Alone(conn, sub) => {
                    worked = true;
                    self.send_alone(conn, sub);
                }
                Step::Flush => {
                    worked = true;
                    break;
                }
                Step::Idle => break,
            }
        }
        if !jobs.is_empty() {
            self.send(&jobs);
            jobs.clear();
            self.pass.sealed.clear();
            self.pass.sealed.shrink_to(SEALED_ROOM_BYTES);
        }
        self.pass.jobs = jobs;
        self.finish_passes();
        self.bury();
        worked
    }

    /// Takes the next reader that is behind into the batch. Its position moves at once, and back if the send falls short.
    fn next_step(&mut self, jobs: &mut Vec<Job>, bytes: &mut usize) -> Step {
        let Some(pass) = &mut self.pass.current else {
            self.pass.current = self.next_pass();
            return if self.pass.current.is_some() { Step::Taken } else { Step::Idle };
        };
        let Some(feed) = self.feeds.get_mut(pass.feed) else {
            self.pass.current = None;
            return Step::Taken;
        };
        let head = feed.head().seq;
        let Some(lane) = feed.lanes.get_mut(pass.lane) else {
            self.pass.finished.push(pass.feed);
            if pass.has_sent {
                self.pass.ended.push(pass.times);
            }
            self.pass.current = None;
            return Step::Taken;
        };
        let behind = lane.readers[pass.index.min(lane.readers.len())..]
            .iter()
            .position(|reader| reader.standing == Standing::Live && reader.seq < head);
        let Some(skipped) = behind else {
            pass.lane += 1;
            pass.index = 0;
            return Step::Taken;
        };
        pass.index += skipped;
        let index = pass.index;
        let reader = lane.readers[index];
        let alone = reader.joined || lane.encoding == Encoding::Poll || !lane.holds(reader.seq);
        if alone {
            if !jobs.is_empty() {
                return Step::Flush;
            }
            pass.index += 1;
            pass.sends(&mut self.pass.opened);
            let sub = Sub { feed: pass.feed, index: index as u32, lane: pass.lane as u8, fresh: false };
            let generation = self.conns.generation(reader.slot).unwrap_or_default();
            return Step::Alone(ConnId { slot: reader.slot, generation }, sub);
        }
        if reader.shared
            && let Some(entry) = self.conns.get_mut(reader.slot)
        {
            if entry.batch == self.pass.batch {
                return Step::Flush;
            }
            entry.batch = self.pass.batch;
        }
        pass.index += 1;
        let (mut upto, mut job_bytes, mut sealed) = (head, lane.bytes_after(reader.seq).len(), None);
        if reader.sealed && job_bytes > 0 {
            let plain;
            (upto, plain) = lane.some_after(reader.seq, SEALED_BYTES_MAX);
            job_bytes = plain.len();
            let start = self.pass.sealed.len();
            let tls = self.conns.get_mut(reader.slot).and_then(|entry| entry.tls.as_deref_mut());
            if tls.is_none_or(|tls| tls.seal(plain, &mut self.pass.sealed).is_err()) {
                self.doom(reader.slot, Reason::TlsFailed);
                return Step::Taken;
            }
            sealed = Some(start..self.pass.sealed.len());
        }
        let mover = &mut lane.readers[index];
        mover.seq = upto;
        if job_bytes == 0 {
            // Only numbers that ended by their own TTL.
            return Step::Taken;
        }
        *bytes += job_bytes;
        pass.sends(&mut self.pass.opened);
        let load = &mut self.pass.loads[lane.encoding as usize];
        load.messages += upto - reader.seq;
        load.bytes += job_bytes as u64;
        mover.messages = mover.messages.wrapping_add((upto - reader.seq) as u32);
        mover.bytes += job_bytes as u64;
        mover.sent_tick = self.node.clock.tick();
        jobs.push(Job {
            feed: pass.feed,
            index: index as u32,
            lane: pass.lane as u8,
            from: reader.seq,
            bytes: job_bytes as u64,
            sealed,
        });
        Step::Taken
    }

    fn send(&mut self, jobs: &[Job]) {
        let mut outcomes = std::mem::take(&mut self.pass.outcomes);
        outcomes.clear();
        {
            let mut sends = [Send { fd: -1, bytes: &[] }; BATCH_MAX];
            for (send, job) in sends.iter_mut().zip(jobs) {
                let Some(feed) = self.feeds.get(job.feed) else { continue };
                let lane = &feed.lanes[usize::from(job.lane)];
                let bytes = match &job.sealed {
                    None => lane.bytes_after(job.from),
                    Some(range) => &self.pass.sealed[range.clone()],
                };
                *send = Send { fd: lane.readers[job.index as usize].fd, bytes };
            }
            self.ring.send_batch(&sends[..jobs.len()], &mut outcomes);
        }
        self.stats().sends.add(jobs.len() as u64);
        self.stats().short_sends.add(outcomes.len() as u64);
        for (at, outcome) in &outcomes {
            self.fall_short(&jobs[*at as usize], *outcome);
        }
        self.pass.outcomes = outcomes;
        self.count_loads();
        if self.is_traced() {
            let sent: Vec<Sent> = jobs.iter().filter_map(|job| self.sent_by(job)).collect();
            self.trace_batch(&sent);
        }
    }

    /// What a send has come to, for traces.
    pub(super) fn sent_by(&self, job: &Job) -> Option<Sent> {
        let lane = self.feeds.get(job.feed)?.lanes.get(usize::from(job.lane))?;
        let reader = lane.readers.get(job.index as usize)?;
        let messages = reader.seq.saturating_sub(job.from) as u32;
        let bytes = lane.bytes_after(job.from).len() - lane.bytes_after(reader.seq).len();
        let is_lost = self.pass.doomed.iter().any(|(conn, _)| conn.slot == reader.slot);
        (messages > 0 && !is_lost).then_some(Sent {
            slot: reader.slot,
            feed: job.feed,
            upto: reader.seq,
            messages,
            bytes: bytes as u64,
        })
    }

    /// Adds what was given to readers to the worker's counters.
    pub(super) fn count_loads(&mut self) {
        for (encoding, load) in ENCODING_TRANSPORTS.into_iter().zip(&mut self.pass.loads) {
            if load.messages > 0 {
                self.node.stats[usize::from(self.index)].deliver(encoding, std::mem::take(load));
            }
        }
    }

    /// After a batch, which ended `now`: how long what ended or began in it took.
    pub fn time_passes(&mut self, now: Instant) {
        if self.pass.opened.is_empty() && self.pass.ended.is_empty() {
            return;
        }
        let now_us = self.node.clock.us(now);
        let stats = &self.node.stats[usize::from(self.index)];
        for placed_us in self.pass.opened.drain(..) {
            stats.first_write.observe_us(now_us.saturating_sub(placed_us));
        }
        for Times { begun_us, placed_us } in self.pass.ended.drain(..) {
            stats.pass.observe_us(now_us.saturating_sub(begun_us));
            if placed_us > 0 {
                stats.last_write.observe_us(now_us.saturating_sub(placed_us));
            }
        }
    }

    /// A send did not go out whole: the reader's position goes back to the last message that did at least in part.
    pub(super) fn fall_short(&mut self, job: &Job, outcome: Outcome) {
        let Some(feed) = self.feeds.get_mut(job.feed) else { return };
        let lane = &feed.lanes[usize::from(job.lane)];
        let slot = lane.readers[job.index as usize].slot;
        if let Some(range) = &job.sealed {
            self.owe_sealed(slot, range.clone(), outcome);
            return;
        }
        let (sent, (seq, owed)) = match outcome {
            Outcome::Whole => return,
            Outcome::Short(sent) => (sent, lane.split(job.from, sent)),
            Outcome::Full => (0, (job.from, &[][..])),
            Outcome::Failed(errno) => {
                let load = &mut self.pass.loads[lane.encoding as usize];
                load.messages = load.messages.saturating_sub(lane.readers[job.index as usize].seq - job.from);
                load.bytes = load.bytes.saturating_sub(job.bytes);
                self.doom(slot, Reason::of_errno(errno));
                return;
            }
        };
        let (owed, encoding) = (owed.to_vec(), lane.encoding);
        let reader = feed.reader_mut(job.lane, job.index);
        let load = &mut self.pass.loads[encoding as usize];
        load.messages = load.messages.saturating_sub(reader.seq - seq);
        load.bytes = (load.bytes + sent as u64 + owed.len() as u64).saturating_sub(job.bytes);
        reader.messages = reader.messages.wrapping_sub((reader.seq - seq) as u32);
        reader.bytes = reader.bytes + sent as u64 + owed.len() as u64 - job.bytes;
        reader.seq = seq;
        self.block(slot, &owed);
    }

    /// What is encrypted cannot be taken back: the position stays where it is, and all that did not go out is owed.
    fn owe_sealed(&mut self, slot: u32, sealed: Range<usize>, outcome: Outcome) {
        let sent = match outcome {
            Outcome::Whole => return,
            Outcome::Short(sent) => sent,
            Outcome::Full => 0,
            Outcome::Failed(errno) => {
                self.doom(slot, Reason::of_errno(errno));
                return;
            }
        };
        let all = std::mem::take(&mut self.pass.sealed);
        self.block(slot, &all[sealed.start + sent..sealed.end]);
        self.pass.sealed = all;
    }

    /// After a batch: lanes that all have read are emptied, feeds with more to send queue up again.
    fn finish_passes(&mut self) {
        let mut finished = std::mem::take(&mut self.pass.finished);
        for slot in finished.drain(..) {
            let Some(feed) = self.feeds.get_mut(slot) else { continue };
            feed.queued = false;
            let head = feed.head().seq;
            for lane in &mut feed.lanes {
                if lane.held_bytes() > 0 && lane.readers.iter().all(|reader| reader.seq >= head) {
                    lane.clear(head);
                }
            }
            let has_work = feed.has_work();
            if !has_work {
                // What came in the middle of the pass went out with it.
                feed.placed_us = 0;
            }
            self.weigh_feed(slot);
            if has_work {
                self.touch(slot);
            }
        }
        self.pass.finished = finished;
    }
}
