//! What revocations do to held connections: a walk around each worker's, a slice at a time, that ends those concerned. One
//! walk for all revocations: each that is made while it is under way makes it go around once more.
//! Owns where the walks are. Connections in the hands of a task are looked at by the edge, when they are held again.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::auth::{Bearer, Proof};
use crate::domain::channel::Name;
use crate::domain::home::WorkerIndex;
use crate::runtime::close::Reason;
use crate::runtime::entry::{ConnId, Entry, Kind};
use crate::runtime::node::Node;
use crate::runtime::state::State;
use crate::runtime::tokens::Lost;

use super::{Revocation, Revocations};

/// Slots looked at in one slice, and connections ended in it: each of those costs system calls.
const LOOKS_MAX: u32 = 4_096;
const ENDS_MAX: usize = 64;

/// The walk around one worker's connections.
#[derive(Debug, Default)]
pub(super) struct Walk {
    is_under_way: bool,
    /// The next slot to look at, and how many are left.
    at: u32,
    left: u32,
    /// Revocations that concern those too who came without a token.
    of_everybody: Vec<Arc<Revocation>>,
}

/// What a walk finds to be ended.
enum Found {
    Whole(ConnId),
    Channels(ConnId),
}

impl Revocations {
    /// Ends what the revocations that were just added concern, on every worker.
    pub(super) fn end_held(self: &Arc<Self>, node: &Node, made: &[Arc<Revocation>]) {
        self.walks.get_or_init(|| node.mailboxes.iter().map(|_| Mutex::default()).collect());
        let of_everybody: Vec<_> = made.iter().filter(|one| one.concerns_everybody()).cloned().collect();
        node.on_each_worker(|_| {
            let (revocations, of_everybody) = (Arc::clone(self), of_everybody.clone());
            move |state: &mut State| revocations.go_around(state, of_everybody)
        });
    }

    fn go_around(self: Arc<Self>, state: &mut State, of_everybody: Vec<Arc<Revocation>>) {
        let Some(mut walk) = self.walk_of(state.index) else { return };
        walk.left = state.conns.slots_end();
        walk.of_everybody.extend(of_everybody);
        let begins = !std::mem::replace(&mut walk.is_under_way, true);
        drop(walk);
        if begins {
            state.begin_chore(move |state| self.walk_on(state));
        }
    }

    fn walk_of(&self, worker: WorkerIndex) -> Option<MutexGuard<'_, Walk>> {
        let walk = self.walks.get()?.get(usize::from(worker))?;
        Some(walk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Walks one slice. False when the walk is over.
    fn walk_on(&self, state: &mut State) -> bool {
        let Some(mut walk) = self.walk_of(state.index) else { return false };
        let end = state.conns.slots_end();
        let from = if walk.at < end { walk.at } else { 0 };
        let mut next = from + LOOKS_MAX.min(walk.left).min(end - from);
        let mut found = Vec::new();
        for (slot, generation, entry) in state.conns.range(from..next) {
            found.extend(self.concerned(state, &walk.of_everybody, entry, ConnId { slot, generation }));
            if found.len() == ENDS_MAX {
                next = slot + 1;
                break;
            }
        }
        walk.left = if end == 0 { 0 } else { walk.left.saturating_sub(next - from) };
        walk.at = next;
        let goes_on = walk.left > 0;
        let of_everybody =
            if goes_on { walk.of_everybody.clone() } else { std::mem::take(&mut walk.of_everybody) };
        walk.is_under_way = goes_on;
        drop(walk);
        for found in found {
            self.end(state, &of_everybody, found);
        }
        state.bury();
        goes_on
    }

    /// Looks at one connection alone.
    pub fn recheck(&self, state: &mut State, conn: ConnId) {
        if self.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let found = state.conn(conn).and_then(|entry| self.concerned(state, &[], entry, conn));
        if let Some(found) = found {
            self.end(state, &[], found);
        }
    }

    fn concerned(
        &self,
        state: &State,
        of_everybody: &[Arc<Revocation>],
        entry: &Entry,
        conn: ConnId,
    ) -> Option<Found> {
        match entry.kind {
            Kind::Poll(_) | Kind::Sse | Kind::Ws { .. } => {}
            // Its next request is asked for its token; what it asks now was permitted before.
            Kind::Idle | Kind::Handshake | Kind::Publishing(_) | Kind::Ending { .. } => return None,
        }
        let bearer = entry.bearer.as_deref();
        if bearer.is_some_and(|bearer| self.has(bearer)) {
            return Some(Found::Whole(conn));
        }
        let mut names = entry.subs.as_slice().iter().filter_map(|sub| Some(&state.feeds.get(sub.feed)?.name));
        let loses = names.any(|name| self.is_lost(bearer, of_everybody, name));
        loses.then_some(Found::Channels(conn))
    }

    fn is_lost(&self, bearer: Option<&Bearer>, of_everybody: &[Arc<Revocation>], name: &Name) -> bool {
        match bearer {
            Some(bearer) if bearer.proof == Proof::Token => self.has_channel(bearer, name),
            Some(bearer) if self.has_channel(bearer, name) => true,
            Some(_) | None => of_everybody.iter().any(|one| one.takes(name)),
        }
    }

    fn end(&self, state: &mut State, of_everybody: &[Arc<Revocation>], found: Found) {
        match found {
            Found::Whole(conn) => {
                let reconnect_ms = state.reconnect_ms();
                state.farewell(conn.slot, Reason::Revoked, reconnect_ms);
            }
            Found::Channels(conn) => {
                let bearer = state.conn(conn).and_then(|entry| entry.bearer.clone());
                let bearer = bearer.as_deref();
                state.lose_channels(conn, Lost::Revoked, |name| self.is_lost(bearer, of_everybody, name));
            }
        }
    }
}

/// A connection that was found by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Of the token that it came with, if it did.
    pub digest: Option<[u8; 32]>,
}

/// Looks for a connection of this worker. One without a token, which no revocation could find, is closed at once.
pub fn take(state: &mut State, conn: ConnId) -> Option<Taken> {
    let held = state.conn(conn).filter(|entry| !matches!(entry.kind, Kind::Ending { .. }))?;
    let token = held.bearer.as_deref().filter(|bearer| bearer.proof == Proof::Token);
    let digest = token.map(|bearer| bearer.digest);
    if digest.is_none() {
        let reconnect_ms = state.reconnect_ms();
        state.farewell(conn.slot, Reason::Revoked, reconnect_ms);
        state.bury();
    }
    Some(Taken { digest })
}
