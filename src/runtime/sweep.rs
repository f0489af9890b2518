//! What time brings: pings and comments, ends of waits, the silent closed, a drain's farewells; and, a few at a time,
//! channels and feeds that nobody uses any more. No timer per connection: each stands once in the wheel.

use std::time::{Duration, Instant};

use crate::domain::lane::Standing;
use crate::proto::sse;
use crate::proto::ws::frame::{Opcode, write_frame};

use super::clock::{TICK_MS, ticks};
use super::close::Reason;
use super::ending::LINGER_TICKS;
use super::entry::{ConnId, Kind};
use super::io;
use super::state::{Draining, State};
use super::stats::HandshakeFailure;
use super::trace::What;

/// Connections taken out of the wheel in one go.
const DUE_MAX: usize = 256;
/// Connections looked at between two looks at the clock: of those that are told something, each takes a system call.
const LOOKS_AT_ONCE: usize = 4;
/// The wheel's horizon, less a little.
const LOOK_TICKS: u32 = 1_000;
/// When one that has just become idle is first looked at: most speak again before, and leave their place in the wheel
/// behind until its time.
const JUST_IDLE_LOOK_TICKS: u32 = 10;
/// Where nothing is due, the clock's task sleeps so long.
const NAP_TICKS_MAX: u32 = 10;
/// Feeds and channels looked at in one tick, at least.
const LOOKS_MIN: usize = 256;

/// How soon a client that was refused may come back: at least, and so much later at most.
const REFUSED_RECONNECT_MS: u64 = 1_000;
const REFUSED_JITTER_MS: u64 = 9_000;

/// In a drain, how long a client that leaves first stays away at least, and so much later at most; and what one that leaves
/// last stays away beyond that: as long as the window, but nobody for a long window's sake longer than this.
const AWAY_MS: u64 = 1_000;
const AWAY_JITTER_MS: u64 = 1_000;
const AWAY_GROWTH_MS_MAX: u64 = 30_000;

/// After a drain has begun, before the first is told to leave: by then every worker has heard of it, and what they had
/// accepted until then has come to its readers.
const SETTLING_TICKS: u32 = 3;

/// After a drain has begun, before connections between requests are closed: at least one whole tick, so that a request
/// that is on its way is answered. Less than [`SETTLING_TICKS`].
const IDLE_TICKS: u32 = 2;
/// In a drain, between a connection's opening and its first request.
const FIRST_REQUEST_TICKS: u32 = 4;

impl State {
    /// Puts a connection into the wheel, for when it is next to be looked at.
    pub fn schedule(&mut self, conn: ConnId) {
        let now = self.tick();
        let Some(entry) = self.conn(conn) else { return };
        let is_just_idle = matches!(entry.kind, Kind::Idle) && entry.heard_tick == now;
        let due = match self.draining {
            // As in `begin_drain`: gone before anyone is told to come back.
            Some(_) if entry.is_between_requests() => entry.first_request_due(FIRST_REQUEST_TICKS).max(now),
            Some(draining) if !matches!(entry.kind, Kind::Ending { .. }) => {
                let end = draining.begun_tick + draining.window_ticks;
                // Nobody outlives its token in a long window.
                let token_end = self.token_end(entry, now).unwrap_or(u32::MAX);
                let left = u64::from(end.saturating_sub(now));
                (now + SETTLING_TICKS + self.random_below(left) as u32).min(token_end)
            }
            // Its answer is looked for before its end is due, or the next ping would wait for that.
            _ if entry.flags.pinged => self.due(conn.slot, now).min(now + self.heartbeat_ticks().0),
            _ => self.due(conn.slot, now),
        };
        let due = due.clamp(now + 1, now + if is_just_idle { JUST_IDLE_LOOK_TICKS } else { LOOK_TICKS });
        if let Some(entry) = self.conn_mut(conn) {
            entry.due_tick = due;
        }
        self.wheel.schedule(u64::from(due), conn.slot, conn.generation);
        self.call_clock(due);
    }

    pub fn reschedule(&mut self, slot: u32) {
        if let Some(conn) = self.conn_id(slot) {
            self.schedule(conn);
        }
    }

    /// When something is to be done about a connection if nothing happens until then.
    fn due(&self, slot: u32, now: u32) -> u32 {
        let Some(entry) = self.conns.get(slot) else { return now };
        let (interval, timeout) = self.heartbeat_ticks();
        let due = match &entry.kind {
            Kind::Handshake => entry.opened_tick + ticks(self.node.settings.timeouts.head),
            // Its answer is on the way, and has as long as one that a task sends.
            Kind::Idle if entry.owed.is_some() => {
                entry.heard_tick.max(entry.said_tick) + ticks(self.node.settings.timeouts.body)
            }
            Kind::Idle => entry.heard_tick + ticks(self.node.settings.timeouts.idle),
            Kind::Publishing(_) => entry.heard_tick + ticks(self.node.settings.timeouts.body),
            Kind::Poll(held) => held.until_tick,
            Kind::Sse => self.last_said(slot) + interval,
            Kind::Ws { reader, begun_tick, .. } => {
                let silent = entry.heard_tick + if entry.flags.pinged { timeout } else { interval };
                if reader.is_idle() { silent } else { silent.min(self.frame_ends(*begun_tick)) }
            }
            Kind::Ending { until_tick, .. } => *until_tick,
        };
        self.token_due(slot, entry, now).map_or(due, |of_token| due.min(of_token))
    }

    /// When a WebSocket's frame, or its message of several, must be there whole.
    fn frame_ends(&self, begun_tick: u32) -> u32 {
        begun_tick + ticks(self.node.settings.timeouts.body)
    }

    /// When something last went to a stream.
    fn last_said(&self, slot: u32) -> u32 {
        let Some(entry) = self.conns.get(slot) else { return 0 };
        let of_feeds = entry.subs.as_slice().iter().filter_map(|sub| {
            let lane = self.feeds.get(sub.feed)?.lanes.get(usize::from(sub.lane))?;
            Some(lane.readers.get(sub.index as usize)?.sent_tick)
        });
        of_feeds.fold(entry.said_tick, u32::max)
    }

    /// How long the clock's task may sleep: each wake-up of an idle node costs more than what it does then.
    pub fn nap(&mut self) -> Duration {
        let now = self.tick();
        let is_busy = self.draining.is_some() || !self.catchups_later.is_empty() || self.watches_memory();
        let ticks = if is_busy { 1 } else { self.wheel.ticks_to_next(NAP_TICKS_MAX) };
        self.naps_until = now + ticks;
        Duration::from_millis(u64::from(ticks) * TICK_MS)
    }

    /// Something is due at `tick`.
    pub fn call_clock(&mut self, tick: u32) {
        self.calls_clock |= tick < self.naps_until;
    }

    /// Looks at what is due, for so long. True when there may be more: `due` is what was taken out of the wheel, and not
    /// looked at yet.
    pub fn on_tick(&mut self, due: &mut Vec<(u32, u32)>, slice: Duration) -> bool {
        let now = self.tick();
        let until = Instant::now() + slice;
        let more = loop {
            if due.is_empty() {
                self.wheel.advance(u64::from(now), DUE_MAX, due);
            }
            if due.is_empty() {
                break false;
            }
            for (slot, generation) in due.drain(due.len().saturating_sub(LOOKS_AT_ONCE)..) {
                self.on_wheel(ConnId { slot, generation }, now);
            }
            if Instant::now() >= until {
                break true;
            }
        };
        self.bury();
        more
    }

    /// A connection has come out of the wheel.
    fn on_wheel(&mut self, conn: ConnId, now: u32) {
        match self.conn(conn).map(|entry| entry.due_tick) {
            Some(due_tick) if due_tick <= now => self.on_due(conn, now),
            // A moment of a long drain that lies beyond the wheel's horizon.
            Some(due_tick) if self.draining.is_some() => {
                self.wheel.schedule(u64::from(due_tick), conn.slot, conn.generation);
            }
            // One that was put into the wheel again since has a later place in it.
            Some(_) | None => {}
        }
    }

    fn on_due(&mut self, conn: ConnId, now: u32) {
        let slot = conn.slot;
        let Some(entry) = self.conns.get(slot) else { return };
        if let (Some(draining), false) = (self.draining, matches!(entry.kind, Kind::Ending { .. })) {
            if self.token_end(entry, now).is_some_and(|end| end <= now) {
                // What it is behind it may not have any more.
                self.end_expired(slot);
                return;
            }
            self.leave_by_drain(slot, draining);
            return;
        }
        if self.due(slot, now) > now {
            self.schedule(conn);
            return;
        }
        if let Kind::Ws { reader, begun_tick, .. } = &entry.kind
            && !reader.is_idle()
            && self.frame_ends(*begun_tick) <= now
        {
            self.farewell(slot, Reason::RequestTimeout, 0);
            return;
        }
        if self.on_token_due(conn, now) {
            return;
        }
        let Some(entry) = self.conns.get_mut(slot) else { return };
        match entry.kind {
            Kind::Handshake => {
                self.fail_handshake_as(slot, HandshakeFailure::Late);
                self.remove(slot, Reason::TlsFailed);
            }
            Kind::Idle if entry.owed.is_some() => self.remove(slot, Reason::Stalled),
            Kind::Idle => self.remove(slot, Reason::Idle),
            Kind::Publishing(_) => self.expire_publishing(slot),
            Kind::Poll(_) => self.expire_poll(slot),
            Kind::Sse => {
                // One that is blocked has bytes on the way: TCP_USER_TIMEOUT tells whether it lives.
                if !entry.flags.blocked {
                    self.say(slot, sse::COMMENT);
                    self.trace_ping(slot);
                } else {
                    entry.said_tick = now;
                }
                self.schedule(conn);
            }
            Kind::Ws { .. } if entry.flags.pinged => self.farewell(slot, Reason::Silent, 0),
            Kind::Ws { .. } => {
                entry.flags.pinged = true;
                let mut ping = Vec::with_capacity(2);
                write_frame(&mut ping, Opcode::Ping, &[]);
                self.say(slot, &ping);
                self.trace_ping(slot);
                self.schedule(conn);
            }
            // For the reason that its ending began with.
            Kind::Ending { reason, .. } => self.remove(slot, reason),
        }
    }

    fn trace_ping(&self, slot: u32) {
        if self.is_traced() {
            self.trace_conn(slot, || What::Pinged);
        }
    }

    /// Every held connection gets its own moment in the drain's window.
    pub fn begin_drain(&mut self) {
        if self.draining.is_some() {
            return;
        }
        let begun_tick = self.tick();
        let window_ticks = ticks(self.node.settings.drain.window);
        self.call_clock(begun_tick + 1);
        self.draining = Some(Draining { begun_tick, window_ticks });
        let mut moments = Moments::new(self.random_below(u64::MAX));
        let held: Vec<ConnId> = (self.conns.range(0..self.conns.slots_end()))
            .map(|(slot, generation, _)| ConnId { slot, generation })
            .collect();
        for conn in held {
            // Between requests nobody is told anything: gone first, so that whoever is told to come back does not come
            // by one of these.
            let Some(entry) = self.conn(conn) else { continue };
            let moment = if entry.is_between_requests() {
                entry.first_request_due(FIRST_REQUEST_TICKS).max(begun_tick + IDLE_TICKS)
            } else {
                let token_end = self.token_end(entry, begun_tick).unwrap_or(u32::MAX);
                let moment = begun_tick + SETTLING_TICKS + moments.next_below(window_ticks);
                moment.min(token_end.max(begun_tick + 1))
            };
            if let Some(entry) = self.conn_mut(conn)
                && !matches!(entry.kind, Kind::Ending { .. })
            {
                entry.due_tick = moment;
                self.wheel.schedule(u64::from(moment), conn.slot, conn.generation);
            }
        }
    }

    /// How long a client that is told to leave now should stay away. Refused for want of room, it comes neither at once
    /// nor with all the others. In a drain, the later it leaves the longer: so whoever left at a tenth of the window comes
    /// back at a tenth of a longer one, and all come back as evenly as they left. (Delays by chance would heap them up in
    /// the middle; one for all would bring those back together who came in vain before the next process was there.)
    pub fn reconnect_ms(&mut self) -> u64 {
        let Some(Draining { begun_tick, window_ticks }) = self.draining else {
            return REFUSED_RECONNECT_MS + self.random_below(REFUSED_JITTER_MS);
        };
        let gone_ticks = self.tick().saturating_sub(begun_tick + SETTLING_TICKS).min(window_ticks);
        let growth_ms = AWAY_GROWTH_MS_MAX.min(u64::from(window_ticks) * TICK_MS);
        let grown_ms = growth_ms * u64::from(gone_ticks) / u64::from(window_ticks).max(1);
        AWAY_MS + grown_ms + self.random_below(AWAY_JITTER_MS)
    }

    /// To be looked at again in the next tick.
    fn put_off(&mut self, slot: u32) {
        let due = self.tick() + 1;
        let Some(ConnId { slot, generation }) = self.conn_id(slot) else { return };
        if let Some(entry) = self.conns.get_mut(slot) {
            entry.due_tick = due;
            self.wheel.schedule(u64::from(due), slot, generation);
        }
    }

    /// Whether a stream has not been sent all that there is for it.
    fn is_behind(&self, slot: u32) -> bool {
        let Some(entry) = self.conns.get(slot) else { return false };
        entry.subs.as_slice().iter().any(|sub| {
            let lane = self.feeds.get(sub.feed).and_then(|feed| feed.lanes.get(usize::from(sub.lane)));
            let reader = lane.and_then(|lane| lane.readers.get(sub.index as usize));
            reader.is_some_and(|reader| reader.standing != Standing::Live)
        })
    }

    fn leave_by_drain(&mut self, slot: u32, draining: Draining) {
        let reconnect_ms = self.reconnect_ms();
        match self.conns.get_mut(slot) {
            // A request has come and is about to be read, or served: it is answered.
            Some(entry) if entry.is_between_requests() && (entry.flags.busy || io::has_input(entry.fd)) => {
                self.put_off(slot);
            }
            Some(entry) if entry.is_between_requests() => self.remove(slot, Reason::Drain),
            Some(_) => {
                // What came for it since the last pass goes first; and what it is behind, if it takes it within the window:
                // it is gone with this process.
                self.send_pending(slot);
                if self.is_behind(slot) && self.tick() < draining.begun_tick + draining.window_ticks {
                    self.put_off(slot);
                    return;
                }
                self.farewell(slot, Reason::Drain, reconnect_ms);
            }
            None => {}
        }
    }

    /// Whether a drain has told everybody, or waited long enough for those who do not listen.
    pub fn is_drained(&self) -> bool {
        let Some(draining) = self.draining else { return false };
        let over = draining.begun_tick + draining.window_ticks + 5 * LINGER_TICKS + 50;
        self.connections == 0 || self.tick() > over
    }

    /// Lets go, a few at a time, of what nobody uses.
    pub fn sweep(&mut self) {
        let now_ms = self.node.clock.now_ms();
        let tick = self.tick();
        let ticks = (tick - std::mem::replace(&mut self.swept_tick, tick)) as usize;
        self.catchups.extend(self.catchups_later.drain(..));
        self.home.sweep(now_ms, ticks * LOOKS_MIN.max(self.home.channels() / 50));
        let mut bounds = self.node.feed_bounds();
        // What feeds keep for resumes beside history is within the node's bytes too.
        bounds.bytes = bounds.bytes.min(self.feed_share());
        let are_large = self.has_large_feeds();
        let looks = LOOKS_MIN.max(self.feeds.len() / if are_large { 5 } else { 50 });
        let end = self.feeds.slots_end();
        for _ in 0..(ticks * looks).min(end as usize) {
            self.sweep_feed_at = if self.sweep_feed_at + 1 < end { self.sweep_feed_at + 1 } else { 0 };
            let slot = self.sweep_feed_at;
            let Some(feed) = self.feeds.get_mut(slot) else { continue };
            if !feed.has_readers() && (feed.leased_until_ms <= now_ms || are_large) {
                self.drop_feed(slot);
                continue;
            }
            if are_large {
                feed.shrink(bounds, now_ms);
            } else {
                feed.trim(bounds, now_ms);
            }
            self.weigh_feed(slot);
        }
        self.tell_shortages();
    }
}

/// Moments spread evenly over a window, however many are asked for, and neighbours far from each other: multiples of the
/// golden ratio, of which only the fractions count.
struct Moments(u64);

/// The golden ratio's fraction, of 2^64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Moments {
    fn new(first: u64) -> Self {
        Self(first)
    }

    /// The next moment below `end`; 0 when that is 0.
    fn next_below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_add(GOLDEN);
        ((u128::from(self.0) * u128::from(end)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_even_however_few() {
        for (first, count) in [(0, 10), (7, 100), (u64::MAX / 3, 1_000), (u64::MAX, 100_000)] {
            let mut moments = Moments::new(first);
            let mut seconds = [0; 10];
            for _ in 0..count {
                seconds[moments.next_below(100) as usize / 10] += 1;
            }
            let (least, most) = (seconds.iter().min().unwrap(), seconds.iter().max().unwrap());
            assert!(most - least <= 2, "{count}: {seconds:?}");
        }
        assert_eq!(Moments::new(9).next_below(0), 0);
    }
}
