//! Those whom the configuration itself lets in, strangers and API keys, as the rules that hold now have them; and what a
//! reload does to their connections, which no token ends.
//! Owns who of a connection's bearers is who now, and the walk around each worker's connections. Tokens keep what they
//! grant until they end or are taken back: that is `revoked`'s.

use std::sync::Arc;

use crate::domain::auth::{Act, Bearer, Grants, Proof};
use crate::domain::channel::Name;
use crate::runtime::caller::Caller;
use crate::runtime::close::Reason;
use crate::runtime::entry::{ConnId, Kind};
use crate::runtime::node::Node;
use crate::runtime::state::State;
use crate::runtime::tally::Tally;
use crate::runtime::tokens::Lost;

use super::auth::{Auth, Policy};

/// Slots looked at in one slice, and connections changed in it: each of those may cost system calls.
const LOOKS_MAX: u32 = 4_096;
const CHANGES_MAX: usize = 64;

/// Whom a policy lets in without a token.
pub struct Rules {
    pub policy: Arc<Policy>,
    pub strangers: Caller,
    /// In the order of the policy's API keys.
    publishers: Vec<Caller>,
}

impl Rules {
    pub fn new(policy: &Arc<Policy>, tally: &Tally) -> Self {
        Self {
            policy: Arc::clone(policy),
            strangers: Caller::new(nobody(policy.anonymous().clone()), tally),
            publishers: policy.publishers().map(|publisher| Caller::new(publisher, tally)).collect(),
        }
    }

    /// Whom an API key stands for, by its digest.
    pub fn publisher(&self, digest: &[u8; 32]) -> Option<Caller> {
        self.policy.api_key(digest).and_then(|at| self.publishers.get(at).cloned())
    }

    /// Who somebody is by these rules; `None`: their API key is gone.
    pub fn now(&self, bearer: &Caller) -> Option<Caller> {
        match bearer.proof {
            Proof::Token => Some(bearer.clone()),
            Proof::None => Some(self.strangers.clone()),
            // Nearly always it is still the same, and no digest is to be compared.
            Proof::ApiKey => (self.publishers.iter().find(|publisher| publisher.is(bearer)).cloned())
                .or_else(|| self.publisher(&bearer.digest)),
        }
    }
}

/// Someone who did not say who they are.
pub fn nobody(grants: Grants) -> Bearer {
    Bearer {
        proof: Proof::None,
        subject: None,
        token_id: None,
        issued_s: None,
        expires_s: None,
        digest: [0; 32],
        grants,
    }
}

/// Judges a held connection by the rules that hold now: it ends with its API key, and loses the channels that it may read
/// no longer. True: something had changed for it.
pub fn reconsider(rules: &Rules, auth: &Auth, state: &mut State, conn: ConnId) -> bool {
    let Some(entry) = state.conn_mut(conn) else { return false };
    // Who sends a request anew is judged anew.
    if !matches!(entry.kind, Kind::Poll(_) | Kind::Sse | Kind::Ws { .. }) {
        return false;
    }
    let Some(before) = &entry.bearer else { return false };
    match rules.now(before) {
        Some(now) if now.is(before) => false,
        Some(now) => {
            entry.bearer = Some(now.clone());
            state.lose_channels(conn, Lost::Revoked, |name: &Name| !auth.may(&now, Act::Subscribe, name));
            true
        }
        None => {
            let reconnect_ms = state.reconnect_ms();
            state.farewell(conn.slot, Reason::Revoked, reconnect_ms);
            true
        }
    }
}

/// Judges all held connections by the rules that have just been loaded.
pub fn go_around(auth: &Arc<Auth>, node: &Node) {
    node.on_each_worker(|_| {
        let auth = Arc::clone(auth);
        move |state: &mut State| {
            let rules = Rules::new(&auth.policy(), state.claims());
            let mut at = 0;
            state.begin_chore(move |state| walk_on(&rules, &auth, state, &mut at));
        }
    });
}

/// Walks one slice. False when the walk is over, or another has begun for later rules.
fn walk_on(rules: &Rules, auth: &Auth, state: &mut State, at: &mut u32) -> bool {
    if !Arc::ptr_eq(&rules.policy, &auth.policy()) {
        return false;
    }
    let end = state.conns.slots_end();
    let until = at.saturating_add(LOOKS_MAX).min(end);
    let mut changes = 0;
    while *at < until && changes < CHANGES_MAX {
        if let Some(conn) = state.conn_id(*at) {
            changes += usize::from(reconsider(rules, auth, state, conn));
        }
        *at += 1;
    }
    state.bury();
    *at < end
}
