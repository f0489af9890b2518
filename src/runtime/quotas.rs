//! Quotas: what one client may hold and do, by its address, by its subject, and all clients together (`[quotas]`).
//! Owns the decision and the counts of what was refused. What a connection holds is its `share`. Tokens in buckets are
//! `governor`'s; accounts are the `ledger`'s. Where nothing is configured none of this exists.

use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::domain::auth::{Bearer, Proof};

use super::ledger::{Bucket, Held, Ledger, Time};
use super::peer::Peer;
use super::settings::{QuotaLimit, QuotaLimits};
use super::share::Share;

/// Of whom a quota is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    Address,
    Subject,
    Node,
}

/// Of what a quota is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Connections,
    ConnectionsPerSecond,
    Subscriptions,
    PublishesPerSecond,
    PublishBytesPerSecond,
}

impl Scope {
    pub const ALL: [Self; 3] = [Self::Address, Self::Subject, Self::Node];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Subject => "subject",
            Self::Node => "node",
        }
    }
}

impl Resource {
    pub const ALL: [Self; 5] = [
        Self::Connections,
        Self::ConnectionsPerSecond,
        Self::Subscriptions,
        Self::PublishesPerSecond,
        Self::PublishBytesPerSecond,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerSecond => "connections_per_second",
            Self::Subscriptions => "subscriptions",
            Self::PublishesPerSecond => "publishes_per_second",
            Self::PublishBytesPerSecond => "publish_bytes_per_second",
        }
    }

    /// Its bucket, of those that have one.
    const fn bucket(self) -> usize {
        match self {
            Self::ConnectionsPerSecond => 0,
            Self::PublishesPerSecond => 1,
            _ => 2,
        }
    }
}

/// A quota is used up: the client does less, or later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    pub scope: Scope,
    pub resource: Resource,
}

/// `…quotas.address.connections…`, for each scope and resource.
macro_rules! detail {
    ($scope:literal, $whose:literal, $resource:expr) => {
        match $resource {
            Resource::Connections => concat!(
                $whose,
                " has as many connections as quotas.",
                $scope,
                ".connections allows; close one, or come back later"
            ),
            Resource::ConnectionsPerSecond => concat!(
                $whose,
                " opens connections faster than quotas.",
                $scope,
                ".connections_per_second allows; come back later"
            ),
            Resource::Subscriptions => concat!(
                $whose,
                " has as many channels subscribed as quotas.",
                $scope,
                ".subscriptions allows; leave one, or come back later"
            ),
            Resource::PublishesPerSecond => concat!(
                $whose,
                " publishes more messages than quotas.",
                $scope,
                ".publishes_per_second allows; publish again later, and to no more channels at once than it allows in a second"
            ),
            Resource::PublishBytesPerSecond => concat!(
                $whose,
                " publishes more bytes than quotas.",
                $scope,
                ".publish_bytes_per_second allows; publish again later, or less at once"
            ),
        }
    };
}

impl Limited {
    /// What the client is told.
    pub const fn detail(self) -> &'static str {
        match self.scope {
            Scope::Address => detail!("address", "your address", self.resource),
            Scope::Subject => detail!("subject", "your token's subject", self.resource),
            Scope::Node => detail!("node", "everyone together", self.resource),
        }
    }
}

/// How a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// A stream or a WebSocket: a new connection of its client, also where a proxy keeps its own.
    Stream,
    /// A held poll: holds a connection, and comes as often as its channel has messages.
    Poll,
}

/// The quotas of a node, and who has used what of them.
#[derive(Debug)]
pub struct Quotas {
    address: Quotad,
    subject: Quotad,
    node: Quotad,
    /// Subjects' keys: nobody can choose two that are one.
    hashers: [RandomState; 2],
    refused: [[AtomicU64; Resource::ALL.len()]; Scope::ALL.len()],
}

type Keyed = RateLimiter<u128, Bucket, Time, NoOpMiddleware<Nanos>>;
type Single = RateLimiter<NotKeyed, InMemoryState, Time, NoOpMiddleware<Nanos>>;

#[derive(Debug)]
enum Rate {
    Unlimited,
    Keyed(Keyed),
    /// Of all together: without a lock.
    Single(Single),
}

/// The quotas of one scope.
#[derive(Debug)]
pub(super) struct Quotad {
    limit: QuotaLimit,
    pub(super) ledger: Arc<Ledger>,
    rates: [Rate; 3],
}

/// The account of the node in its own ledger.
pub(super) const NODE: u128 = 0;

impl Quotas {
    /// `None`: there are none. A message of `message_bytes_max` always passes when none was published for a while.
    pub fn new(limits: &QuotaLimits, message_bytes_max: usize) -> Option<Arc<Self>> {
        if *limits == QuotaLimits::default() {
            return None;
        }
        let time = Time::start();
        let scope = |limit, is_node| Quotad::new(limit, message_bytes_max, is_node, &time);
        Some(Arc::new(Self {
            address: scope(limits.address, false),
            subject: scope(limits.subject, false),
            node: scope(limits.node, true),
            hashers: Default::default(),
            refused: Default::default(),
        }))
    }

    /// How often a quota was the reason of a refusal.
    pub fn refused(&self, scope: Scope, resource: Resource) -> u64 {
        self.refused[scope as usize][resource as usize].load(Ordering::Relaxed)
    }

    /// Accounts that there are: of addresses, and of subjects.
    pub fn accounts(&self) -> (usize, usize) {
        (self.address.ledger.len(), self.subject.ledger.len())
    }

    /// Connections that the node may have.
    pub fn connections_max(&self) -> usize {
        self.node.limit.connections.unwrap_or(usize::MAX)
    }

    /// A connection did not fit into [`Quotas::connections_max`].
    pub fn on_full(&self, peer: &Peer) -> Limited {
        self.refuse(Scope::Node, Resource::Connections, peer)
    }

    /// A connection was accepted. `forwards`: it is of a trusted proxy, whose requests say whose they are.
    ///
    /// # Errors
    /// [`Limited`]
    pub fn admit(self: &Arc<Self>, peer: &Peer, forwards: bool) -> Result<Option<Box<Share>>, Limited> {
        let mut share = None;
        if let Some(key) = self.address_of(peer).filter(|_| !forwards) {
            self.take(Scope::Address, Held::Connections, key, 1, peer)?;
            share = Some(Box::new(Share::new(self, Some(key))));
            self.draw(Scope::Address, Resource::ConnectionsPerSecond, key, 1, peer)?;
        }
        self.draw(Scope::Node, Resource::ConnectionsPerSecond, NODE, 1, peer)?;
        Ok(share)
    }

    /// A client begins to read `channels`. What it holds from then on is in `share`, until [`Share::end_reading`].
    ///
    /// # Errors
    /// [`Limited`]; `share` is as it was.
    pub fn begin_reading(
        self: &Arc<Self>,
        share: &mut Option<Box<Share>>,
        client: &Peer,
        bearer: Option<&Bearer>,
        channels: usize,
        begins: Begins,
    ) -> Result<(), Limited> {
        let (address, subject) = self.keys(client, bearer);
        let share = share.get_or_insert_with(|| Box::new(Share::new(self, None)));
        share.address = address;
        let begun = share.begin(client, subject, channels, begins);
        if begun.is_err() {
            share.end_reading();
        }
        begun
    }

    /// Somebody publishes.
    ///
    /// # Errors
    /// [`Limited`]: nothing is to be published.
    pub fn publish(
        &self,
        client: &Peer,
        bearer: Option<&Bearer>,
        messages: usize,
        bytes: usize,
    ) -> Result<(), Limited> {
        let (address, subject) = self.keys(client, bearer);
        let keys = [(Scope::Address, address), (Scope::Subject, subject), (Scope::Node, Some(NODE))];
        for (scope, key) in keys {
            if let Some(key) = key {
                self.draw(scope, Resource::PublishesPerSecond, key, messages, client)?;
                self.draw(scope, Resource::PublishBytesPerSecond, key, bytes, client)?;
            }
        }
        Ok(())
    }

    /// The accounts of a client. Who has an API key is a server of the operator's: only what all have together binds it.
    /// Who comes by a unix socket has no address.
    pub(super) fn keys(&self, client: &Peer, bearer: Option<&Bearer>) -> (Option<u128>, Option<u128>) {
        if bearer.is_some_and(|bearer| bearer.proof == Proof::ApiKey) {
            return (None, None);
        }
        let subject = bearer.and_then(|bearer| bearer.subject.as_deref());
        (self.address_of(client), subject.and_then(|subject| self.subject_of(subject)))
    }

    fn address_of(&self, peer: &Peer) -> Option<u128> {
        (self.address.is_limited() && !peer.is_unix).then(|| peer.network())
    }

    fn subject_of(&self, subject: &str) -> Option<u128> {
        let half = |hasher: &RandomState| u128::from(hasher.hash_one(subject));
        self.subject.is_limited().then(|| half(&self.hashers[0]) << 64 | half(&self.hashers[1]))
    }

    pub(super) fn quotad(&self, scope: Scope) -> &Quotad {
        match scope {
            Scope::Address => &self.address,
            Scope::Subject => &self.subject,
            Scope::Node => &self.node,
        }
    }

    /// Takes tokens out of a bucket.
    pub(super) fn draw(
        &self,
        scope: Scope,
        resource: Resource,
        key: u128,
        count: usize,
        client: &Peer,
    ) -> Result<(), Limited> {
        let rate = &self.quotad(scope).rates[resource.bucket()];
        let Some(count) = NonZeroU32::new(u32::try_from(count).unwrap_or(u32::MAX)) else { return Ok(()) };
        let drawn = match rate {
            Rate::Unlimited => return Ok(()),
            Rate::Keyed(rate) => rate.check_key_n(&key, count),
            Rate::Single(rate) => rate.check_n(count),
        };
        // More than a bucket holds never passes: the detail says to ask for less at once.
        if matches!(drawn, Ok(Ok(()))) { Ok(()) } else { Err(self.refuse(scope, resource, client)) }
    }

    /// Takes something that is held.
    pub(super) fn take(
        &self,
        scope: Scope,
        what: Held,
        key: u128,
        count: u32,
        client: &Peer,
    ) -> Result<(), Limited> {
        let quotad = self.quotad(scope);
        let (max, resource) = match what {
            Held::Connections => (quotad.limit.connections, Resource::Connections),
            Held::Subscriptions => (quotad.limit.subscriptions, Resource::Subscriptions),
        };
        if quotad.ledger.take(key, what, count, max.unwrap_or(usize::MAX)) {
            Ok(())
        } else {
            Err(self.refuse(scope, resource, client))
        }
    }

    fn refuse(&self, scope: Scope, resource: Resource, client: &Peer) -> Limited {
        self.refused[scope as usize][resource as usize].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(peer = %client, scope = scope.as_str(), resource = resource.as_str(), "over quota");
        Limited { scope, resource }
    }
}

impl Quotad {
    fn new(limit: QuotaLimit, message_bytes_max: usize, is_node: bool, time: &Time) -> Self {
        let ledger = Arc::new(Ledger::new(time.clone()));
        let rate = |per_second: Option<u32>, burst_min: u32, resource: Resource| {
            let Some(per_second) = per_second.and_then(NonZeroU32::new) else { return Rate::Unlimited };
            let burst = NonZeroU32::new(burst_min).map_or(per_second, |least| per_second.max(least));
            let quota = Quota::per_second(per_second).allow_burst(burst);
            if is_node {
                Rate::Single(RateLimiter::direct_with_clock(quota, time.clone()))
            } else {
                let bucket = Bucket::new(Arc::clone(&ledger), resource.bucket());
                Rate::Keyed(RateLimiter::new(quota, bucket, time.clone()))
            }
        };
        let one_message = u32::try_from(message_bytes_max).unwrap_or(u32::MAX);
        let rates = [
            rate(limit.connections_per_second, 1, Resource::ConnectionsPerSecond),
            rate(limit.publishes_per_second, 1, Resource::PublishesPerSecond),
            rate(limit.publish_bytes_per_second, one_message, Resource::PublishBytesPerSecond),
        ];
        Self { limit, ledger, rates }
    }

    fn is_limited(&self) -> bool {
        self.limit != QuotaLimit::default()
    }

    pub(super) fn holds_subscriptions(&self) -> bool {
        self.limit.subscriptions.is_some()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::auth::Grants;

    const MESSAGE_BYTES: usize = 1_000;

    pub fn peer(text: &str) -> Peer {
        Peer::new(text.parse().expect("an address"), 4_000)
    }

    pub fn bearer(subject: &str, proof: Proof) -> Bearer {
        Bearer {
            proof,
            subject: Some(subject.into()),
            token_id: None,
            issued_s: None,
            expires_s: None,
            digest: [0; 32],
            grants: Grants::all(),
        }
    }

    pub fn of(set: impl FnOnce(&mut QuotaLimits)) -> Arc<Quotas> {
        let mut limits = QuotaLimits::default();
        set(&mut limits);
        Quotas::new(&limits, MESSAGE_BYTES).expect("some are set")
    }

    pub fn limited<T>(scope: Scope, resource: Resource) -> Result<T, Limited> {
        Err(Limited { scope, resource })
    }

    #[test]
    fn without_limits_there_is_nothing() {
        assert!(Quotas::new(&QuotaLimits::default(), MESSAGE_BYTES).is_none());
    }

    #[test]
    fn a_socket_counts_until_it_is_dropped() {
        let quotas = of(|limits| limits.address.connections = Some(2));
        let one = || quotas.admit(&peer("2001:db8::1"), false).map(|share| share.expect("it counts"));
        let (first, second) = (one().expect("the first"), one().expect("the second"));
        let neighbour = quotas.admit(&peer("2001:db8::ffff"), false);
        assert_eq!(neighbour.map(drop), limited(Scope::Address, Resource::Connections), "one /64");
        assert!(quotas.admit(&peer("2001:db8:0:1::1"), false).is_ok(), "another");
        assert!(quotas.admit(&Peer::UNIX, false).expect("no address").is_none());
        drop(first);
        let third = one().expect("the place of the first");
        drop((second, third));
        assert_eq!(quotas.accounts(), (0, 0));
        assert_eq!(quotas.refused(Scope::Address, Resource::Connections), 1);
        assert_eq!(quotas.refused(Scope::Node, Resource::Connections), 0);
    }

    #[test]
    fn publishes_are_counted_in_messages_and_bytes() {
        let quotas = of(|limits| {
            limits.address.publishes_per_second = Some(3);
            limits.subject.publish_bytes_per_second = Some(10);
        });
        let home = peer("192.0.2.1");
        let anna = bearer("anna", Proof::Token);
        quotas.publish(&home, Some(&anna), 1, MESSAGE_BYTES).expect("the largest message passes alone");
        let told = quotas.publish(&home, Some(&anna), 1, 500);
        assert_eq!(told, limited(Scope::Subject, Resource::PublishBytesPerSecond));
        quotas.publish(&home, None, 1, 0).expect("the third");
        let told = quotas.publish(&home, None, 1, 0);
        assert_eq!(told, limited(Scope::Address, Resource::PublishesPerSecond));
        let told = quotas.publish(&peer("192.0.2.2"), None, 4, 0);
        assert_eq!(told, limited(Scope::Address, Resource::PublishesPerSecond), "more than ever fits");
        for _ in 0..9 {
            let server = bearer("app", Proof::ApiKey);
            quotas.publish(&home, Some(&server), 1, 500).expect("a server of the operator's");
        }
        quotas.publish(&Peer::UNIX, None, 9, 0).expect("no address");
    }

    #[test]
    fn every_refusal_says_which_key_decided() {
        for scope in Scope::ALL {
            for resource in Resource::ALL {
                let key = format!("quotas.{}.{} allows", scope.as_str(), resource.as_str());
                let detail = Limited { scope, resource }.detail();
                assert!(detail.contains(&key), "{detail}");
            }
        }
    }
}
