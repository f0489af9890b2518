//! What becomes of a held connection when the token that it was let in with ends, is renewed or is taken back: announced,
//! told, closed (docs/authentication.md). Owns its deadlines, which stand in the wheel with all others: a connection
//! without a token costs nothing here. Never verifies a token: the edge does.

use crate::domain::auth::{Bearer, Proof};
use crate::domain::channel::Name;
use crate::domain::page::From;
use crate::proto::refusal::ErrorCode;
use crate::proto::{envelope, sse};

use super::caller::Caller;
use super::clock::TICK_MS;
use super::close::Reason;
use super::entry::{ConnId, Entry, Kind};
use super::framing::text_frame;
use super::state::State;
use super::stats::Refusal;
use super::trace::What;

/// So long before its token ends a client is told of it.
pub const EXPIRING_MS: u64 = 30_000;

/// What a `pushline.v1` connection without a token gets once it has brought one.
#[derive(Debug)]
pub struct Waiting {
    /// The URL's channels, and where to begin in each.
    pub names: Vec<Name>,
    pub from: Vec<From>,
    /// Without a token then, it is closed.
    pub until_tick: u32,
}

impl Waiting {
    /// Memory that this holds.
    pub(super) fn kept_bytes(&self) -> usize {
        // Each name with the counts of those who share it.
        let texts: usize = self.names.iter().map(|name| 2 * size_of::<usize>() + name.as_str().len()).sum();
        let (names, from) = (self.names.capacity(), self.from.capacity());
        size_of::<Self>() + names * size_of::<Name>() + texts + from * size_of::<From>()
    }
}

/// Why a connection loses a channel that it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Its new token does not cover it.
    NotCovered,
    /// An operator took it back.
    Revoked,
}

impl Lost {
    const fn detail(self) -> &'static str {
        match self {
            Self::NotCovered => "the connection's new token does not cover this channel; bring one that does",
            Self::Revoked => "the right to read this channel was taken back; ask for a new token",
        }
    }
}

/// Why a connection's token cannot be replaced by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotRenewed {
    /// No stream is there: never was, or no longer.
    Unknown,
    /// It came without a token.
    WithoutToken,
    /// The new token is of somebody else.
    OtherSubject,
}

impl State {
    /// When something is to be done about the token of a held connection.
    pub(super) fn token_due(&self, slot: u32, entry: &Entry, now: u32) -> Option<u32> {
        if entry.flags.waiting {
            return self.waiting.get(&slot).map(|waiting| waiting.until_tick);
        }
        let left_ms = self.token_left_ms(entry)?;
        let left_ms = if will_be_told(entry) { left_ms.saturating_sub(EXPIRING_MS) } else { left_ms };
        Some(now.saturating_add(u32::try_from(left_ms.div_ceil(TICK_MS)).unwrap_or(u32::MAX)))
    }

    /// When the token of a held connection ends.
    pub(super) fn token_end(&self, entry: &Entry, now: u32) -> Option<u32> {
        let left_ms = self.token_left_ms(entry)?;
        Some(now.saturating_add(u32::try_from(left_ms.div_ceil(TICK_MS)).unwrap_or(u32::MAX)))
    }

    /// How long the token of a held connection still counts; `None`: it has none that ends.
    fn token_left_ms(&self, entry: &Entry) -> Option<u64> {
        let expires_s = entry.bearer.as_ref()?.expires_s?;
        match entry.kind {
            Kind::Poll(_) | Kind::Sse | Kind::Ws { .. } => {
                Some(expires_s.saturating_mul(1_000).saturating_sub(self.node.clock.now_ms()))
            }
            // Each request brings its own.
            Kind::Idle | Kind::Handshake | Kind::Publishing(_) | Kind::Ending { .. } => None,
        }
    }

    /// Does what is due about a connection's token. True when something was.
    pub(super) fn on_token_due(&mut self, conn: ConnId, now: u32) -> bool {
        let slot = conn.slot;
        let Some(entry) = self.conns.get(slot) else { return false };
        if self.token_due(slot, entry, now).is_none_or(|due| due > now) {
            return false;
        }
        if entry.flags.waiting {
            let reconnect_ms = self.reconnect_ms();
            self.stats().refuse(Refusal::Unauthenticated);
            self.farewell(slot, Reason::Unauthenticated, reconnect_ms);
            return true;
        }
        let left_ms = self.token_left_ms(entry).unwrap_or(0);
        if left_ms == 0 {
            self.end_expired(slot);
        } else {
            self.tell_expiring(slot, left_ms);
            self.schedule(conn);
        }
        true
    }

    pub(super) fn end_expired(&mut self, slot: u32) {
        // Published while the token still counted.
        self.send_pending(slot);
        let reconnect_ms = self.reconnect_ms();
        self.farewell(slot, Reason::Expired, reconnect_ms);
    }

    fn tell_expiring(&mut self, slot: u32, left_ms: u64) {
        let Some(entry) = self.conns.get_mut(slot) else { return };
        entry.flags.told_expiring = true;
        let is_v1 = matches!(entry.kind, Kind::Ws { .. });
        let seconds = left_ms.div_ceil(1_000);
        let mut notice = Vec::with_capacity(64);
        if is_v1 {
            text_frame(&mut notice, |json| envelope::write_v1_expiring(json, seconds));
        } else {
            sse::write_expiring(&mut notice, seconds);
        }
        self.say(slot, &notice);
    }

    /// Whether a token of `bearer` may take the place of what the connection has. With `first`, of nothing too: somebody
    /// who came without one says who they are.
    ///
    /// # Errors
    /// [`NotRenewed`]
    pub fn may_renew(&self, conn: ConnId, bearer: &Bearer, first: bool) -> Result<(), NotRenewed> {
        let entry = self.conn(conn).ok_or(NotRenewed::Unknown)?;
        if !matches!(entry.kind, Kind::Sse | Kind::Ws { .. }) {
            return Err(NotRenewed::Unknown);
        }
        match &entry.bearer {
            Some(had) if had.proof != Proof::None => {
                let is_same = had.proof == bearer.proof && had.subject == bearer.subject;
                if is_same { Ok(()) } else { Err(NotRenewed::OtherSubject) }
            }
            Some(_) | None if first => Ok(()),
            Some(_) | None => Err(NotRenewed::WithoutToken),
        }
    }

    /// From now on the connection is of `bearer`: until its token ends, and for what it covers.
    pub fn renew(&mut self, conn: ConnId, bearer: Caller) {
        let Some(entry) = self.conn_mut(conn) else { return };
        let expires_s = bearer.expires_s;
        entry.bearer = Some(bearer);
        entry.flags.told_expiring = false;
        if self.is_traced() {
            self.trace_conn(conn.slot, || What::Renewed { expires_s });
        }
        self.schedule(conn);
    }

    /// Ends the subscriptions of a connection to channels that are lost to it. A transport that cannot tell so of one
    /// channel ends.
    pub fn lose_channels(&mut self, conn: ConnId, lost: Lost, is_lost: impl Fn(&Name) -> bool) {
        let Some(entry) = self.conn(conn) else { return };
        let feeds = entry.subs.as_slice().iter().filter_map(|sub| {
            let name = &self.feeds.get(sub.feed)?.name;
            is_lost(name).then(|| (sub.feed, name.clone()))
        });
        let feeds: Vec<(u32, Name)> = feeds.collect();
        if feeds.is_empty() {
            return;
        }
        if lost == Lost::NotCovered {
            // What was published until now is still its own.
            self.send_pending(conn.slot);
        }
        match self.conn(conn).map(|entry| &entry.kind) {
            Some(Kind::Ws { v1: true, .. }) => {
                for (feed, name) in feeds {
                    self.unsubscribe(conn.slot, feed);
                    self.say_subscription_ended(conn.slot, &name, lost);
                }
            }
            Some(Kind::Sse | Kind::Ws { .. }) => {
                let reason = match lost {
                    Lost::NotCovered => Reason::Forbidden,
                    Lost::Revoked => Reason::Revoked,
                };
                let reconnect_ms = self.reconnect_ms();
                self.farewell(conn.slot, reason, reconnect_ms);
            }
            // Its token is still good: 403, not 401.
            Some(Kind::Poll(_)) => self.farewell(conn.slot, Reason::Forbidden, 0),
            Some(Kind::Idle | Kind::Handshake | Kind::Publishing(_) | Kind::Ending { .. }) | None => {}
        }
    }

    fn say_subscription_ended(&mut self, slot: u32, name: &Name, lost: Lost) {
        let mut notice = Vec::with_capacity(192);
        text_frame(&mut notice, |json| {
            let channel = Some(name.as_str());
            envelope::write_v1_error(json, ErrorCode::SubscriptionEnded, lost.detail(), channel, None);
        });
        self.say(slot, &notice);
    }

    /// A connection waits for its token: until then it reads nothing. False: the node has no memory for what it waits for.
    pub fn wait_for_token(&mut self, conn: ConnId, waiting: Waiting) -> bool {
        let Some(entry) = self.conn_mut(conn) else { return true };
        entry.flags.waiting = true;
        self.waiting.insert(conn.slot, Box::new(waiting));
        self.schedule(conn);
        self.weigh_conn(conn.slot)
    }

    /// What a connection waited for, once its token has come.
    pub fn take_waiting(&mut self, conn: ConnId) -> Option<Box<Waiting>> {
        let entry = self.conn_mut(conn)?;
        if !std::mem::take(&mut entry.flags.waiting) {
            return None;
        }
        let waiting = self.waiting.remove(&conn.slot);
        self.weigh_conn(conn.slot);
        self.schedule(conn);
        waiting
    }
}

/// Whether the end of its token will still be told: raw WebSockets and polls have no way to.
fn will_be_told(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Sse | Kind::Ws { v1: true, .. }) && !entry.flags.told_expiring
}
