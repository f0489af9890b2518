//! Who may do what, as all workers share it: keys and rules, which SIGHUP loads anew, and tickets.
//! Owns what is agreed on among workers. Never reads requests: `doorman` does, one for each worker.

mod denied;
mod key;
mod policy;
mod ticket;
mod token;
mod unwelcome;

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use crate::domain::auth::{Act, Bearer};
use crate::domain::channel::Name;

pub use self::denied::{Carrier, Claim, Declined, Denied};
pub use self::key::KeyError;
pub use self::policy::{Policy, Verified};
pub use self::ticket::{Asked, Opened, TicketUse, Tickets, TokenKey, UNUSED_S_MAX, Used};
pub use self::token::TOKEN_BYTES_MAX;
pub use self::unwelcome::{Signed, Unwelcome};

use super::revoked::Revocations;

/// Keys, rules and tickets of a node, and what was taken back.
pub struct Auth {
    policy: ArcSwap<Policy>,
    pub tickets: Tickets,
    pub revocations: Arc<Revocations>,
}

impl Auth {
    pub fn new(policy: Policy, revocations_max: usize) -> Self {
        let revocations = Arc::new(Revocations::new(revocations_max, policy.life_s_max()));
        Self { policy: ArcSwap::from_pointee(policy), tickets: Tickets::default(), revocations }
    }

    /// Whether a bearer may do this to a channel: they were given the right, and it was not taken back since.
    pub fn may(&self, bearer: &Bearer, act: Act, name: &Name) -> bool {
        bearer.may(act, name) && !self.revocations.has_channel(bearer, name)
    }

    /// What holds now.
    pub fn policy(&self) -> Guard<Arc<Policy>> {
        self.policy.load()
    }

    /// Takes new keys and rules. Connections stay; tickets of keys that are gone do not.
    pub fn replace(&self, policy: Policy) {
        let policy = Arc::new(policy);
        self.revocations.allow_lifetime(policy.life_s_max());
        self.policy.store(Arc::clone(&policy));
        self.tickets.keep(|key| policy.has_key(key));
    }
}
