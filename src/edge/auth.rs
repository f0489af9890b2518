//! Who may do what, as all workers share it: keys and rules, which SIGHUP loads anew, and tickets.
//! Owns what is agreed on among workers. Never reads requests: `doorman` does, one for each worker.

mod denied;
mod key;
mod policy;
mod ticket;
mod token;

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

pub use self::denied::{Carrier, Claim, Denied};
pub use self::key::KeyError;
pub use self::policy::{Policy, Verified};
pub use self::ticket::{Asked, Opened, TicketUse, Tickets, UNUSED_S_MAX};
pub use self::token::TOKEN_BYTES_MAX;

/// Keys, rules and tickets of a node.
pub struct Auth {
    policy: ArcSwap<Policy>,
    pub tickets: Tickets,
}

impl Auth {
    pub fn new(policy: Policy) -> Self {
        Self { policy: ArcSwap::from_pointee(policy), tickets: Tickets::default() }
    }

    /// What holds now.
    pub fn policy(&self) -> Guard<Arc<Policy>> {
        self.policy.load()
    }

    /// Takes new keys and rules. Connections stay; tickets of keys that are gone do not.
    pub fn replace(&self, policy: Policy) {
        let policy = Arc::new(policy);
        self.policy.store(Arc::clone(&policy));
        self.tickets.keep(|key| policy.has_key(key));
    }
}
