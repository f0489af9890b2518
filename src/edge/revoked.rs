//! What operators took back: tokens by their subject, their id or the connection that came with one, and channels. One
//! list for all workers, asked of every request and told to every held connection (`walk`).
//! Owns which tokens a revocation concerns and how long it is kept: until the last of them has ended by itself. Kept in
//! memory alone: a restart forgets it (docs/authentication.md).

mod walk;

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use foldhash::fast::RandomState;

use crate::domain::auth::{Bearer, Proof};
use crate::domain::channel::{Name, NameError, Pattern};
use crate::runtime::clock::Clock;
use crate::runtime::node::Node;

use self::walk::Walk;
pub use self::walk::{Taken, take};

/// Those whose time is over are looked for so often, and when there is no room.
const PURGE_S: u64 = 60;

/// Whom a revocation concerns: tokens that all that is given fits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Target {
    /// `sub`
    pub subject: Option<Box<str>>,
    /// `jti`
    pub token_id: Option<Box<str>>,
    /// SHA-256 of the token that a connection came with.
    pub digest: Option<[u8; 32]>,
    /// A channel or a pattern of channels: these alone are taken back, not the whole token.
    pub channel: Option<Box<str>>,
}

/// What is to be revoked, as it was asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub target: Target,
    /// The id of the connection that `target.digest` was found by.
    pub connection: Option<Box<str>>,
    /// When it was revoked first, in seconds since 1970; `None`: now.
    pub made_s: Option<u64>,
    /// When it may be forgotten; `None`: when every token that it concerns is over.
    pub until_s: Option<u64>,
}

/// One revocation.
#[derive(Debug)]
pub struct Revocation {
    /// In the order in which they were made; never used again.
    pub number: u64,
    pub target: Target,
    pub connection: Option<Box<str>>,
    pattern: Option<Pattern>,
    pub made_s: u64,
    until_s: Option<u64>,
}

/// Why nothing was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotRevoked {
    #[error(
        "nothing is named; give at least one of subject, token_id, connection and channel (several: whoever fits all)"
    )]
    Nothing,
    #[error("{0} is empty; give it, or leave it out")]
    Empty(&'static str),
    #[error("channel: {0}")]
    Channel(NameError),
    #[error("made is in the future; give when it was revoked, in seconds since 1970, or leave it out")]
    Future,
    #[error("until is in the past; give when it may be forgotten, in seconds since 1970, or leave it out")]
    Past,
    #[error(
        "there are {max} revocations already (auth.revocations_max); lift some with DELETE /revocations/N, or raise it. \
         To end all tokens at once, replace the key that signed them"
    )]
    Full { max: usize },
}

/// The revocations of a node.
pub struct Revocations {
    table: RwLock<Table>,
    /// So many there are, and so many of them take back channels: where none does, nobody is asked.
    count: AtomicUsize,
    of_channels: AtomicUsize,
    /// The longest life that any token was ever allowed.
    lifetime_s: AtomicU64,
    clock: Clock,
    max: usize,
    /// One for each worker, from the first revocation on.
    walks: OnceLock<Box<[Mutex<Walk>]>>,
}

#[derive(Default)]
struct Table {
    last_number: u64,
    /// So many of `all` take back channels.
    of_channels: usize,
    all: BTreeMap<u64, Arc<Revocation>>,
    /// By the hash of what a token is found by first; of several with one hash the wrong ones do not fit.
    index: HashMap<u64, Vec<Arc<Revocation>>, RandomState>,
    hasher: RandomState,
    purged_s: u64,
}

/// What a revocation is found by.
#[derive(Hash)]
enum Key<'k> {
    Digest(&'k [u8; 32]),
    TokenId(&'k str),
    Subject(&'k str),
    Channel(&'k str),
    /// The segments of a pattern before its first wildcard.
    Prefix(&'k str),
}

impl Revocations {
    pub fn new(max: usize, lifetime_s: u64) -> Self {
        Self {
            table: RwLock::default(),
            count: AtomicUsize::new(0),
            of_channels: AtomicUsize::new(0),
            lifetime_s: AtomicU64::new(lifetime_s),
            clock: Clock::start(),
            max,
            walks: OnceLock::new(),
        }
    }

    /// Tokens may live so long from now on. Those that were allowed to live longer are still about.
    pub fn allow_lifetime(&self, lifetime_s: u64) {
        self.lifetime_s.fetch_max(lifetime_s, Ordering::Relaxed);
    }

    /// Takes back what is asked for: of all requests from now on, and of all held connections within a moment. In order;
    /// those before one that is refused hold.
    pub fn revoke(
        self: &Arc<Self>,
        node: &Node,
        asked: impl IntoIterator<Item = Asked>,
    ) -> (Vec<Arc<Revocation>>, Result<(), NotRevoked>) {
        let now_s = self.now_s();
        let (mut made, mut result) = (Vec::new(), Ok(()));
        for asked in asked {
            match self.add(asked, now_s) {
                Ok(revocation) => made.push(revocation),
                Err(refused) => {
                    result = Err(refused);
                    break;
                }
            }
        }
        if !made.is_empty() {
            self.end_held(node, &made);
        }
        (made, result)
    }

    fn add(&self, asked: Asked, now_s: u64) -> Result<Arc<Revocation>, NotRevoked> {
        let Asked { target, connection, made_s, until_s } = asked;
        let pattern = check(&target)?;
        if made_s.is_some_and(|made_s| made_s > now_s) {
            return Err(NotRevoked::Future);
        }
        if until_s.is_some_and(|until_s| until_s <= now_s) {
            return Err(NotRevoked::Past);
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let lifetime_s = self.lifetime_s.load(Ordering::Relaxed);
        if table.purged_s + PURGE_S <= now_s || table.all.len() >= self.max {
            table.purged_s = now_s;
            table.remove_where(|one| one.is_over(now_s, lifetime_s));
        }
        // The same once more: it holds for tokens that were issued since.
        table.remove_where_indexed(&target, |one| one.target == target);
        if table.all.len() >= self.max {
            self.changed(&table);
            return Err(NotRevoked::Full { max: self.max });
        }
        table.last_number += 1;
        let number = table.last_number;
        let made_s = made_s.unwrap_or(now_s);
        let revocation = Arc::new(Revocation { number, target, connection, pattern, made_s, until_s });
        table.of_channels += usize::from(revocation.pattern.is_some());
        table.all.insert(number, Arc::clone(&revocation));
        let key = table.key_of(&revocation);
        table.index.entry(key).or_default().push(Arc::clone(&revocation));
        self.changed(&table);
        Ok(revocation)
    }

    /// Lifts a revocation. Whoever it ended may come back. False: there is none of that number.
    pub fn lift(&self, number: u64) -> bool {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let was_there = table.remove(number);
        self.changed(&table);
        was_there
    }

    fn changed(&self, table: &Table) {
        self.count.store(table.all.len(), Ordering::Relaxed);
        self.of_channels.store(table.of_channels, Ordering::Relaxed);
    }

    /// Those that hold, oldest first, from after the number `after` on, at most `count`.
    pub fn list(&self, after: u64, count: usize) -> Vec<Arc<Revocation>> {
        self.list_at(after, count, self.now_s())
    }

    fn list_at(&self, after: u64, count: usize, now_s: u64) -> Vec<Arc<Revocation>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let lifetime_s = self.lifetime_s.load(Ordering::Relaxed);
        let later = table.all.range(after.saturating_add(1)..).map(|(_, one)| one);
        later.filter(|one| !one.is_over(now_s, lifetime_s)).take(count).cloned().collect()
    }

    /// When a revocation is forgotten.
    pub fn until_s(&self, revocation: &Revocation) -> u64 {
        revocation.until_s(self.lifetime_s.load(Ordering::Relaxed))
    }

    /// Whether somebody's whole token was taken back.
    pub fn has(&self, bearer: &Bearer) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.has_at(bearer, self.now_s())
    }

    fn has_at(&self, bearer: &Bearer, now_s: u64) -> bool {
        self.any(bearer, None, now_s, |one| one.pattern.is_none())
    }

    /// Whether a channel was taken back from somebody.
    pub fn has_channel(&self, bearer: &Bearer, name: &Name) -> bool {
        self.of_channels.load(Ordering::Relaxed) > 0 && self.has_channel_at(bearer, name, self.now_s())
    }

    fn has_channel_at(&self, bearer: &Bearer, name: &Name, now_s: u64) -> bool {
        self.any(bearer, Some(name), now_s, |one| one.takes(name))
    }

    fn now_s(&self) -> u64 {
        self.clock.now_ms() / 1_000
    }

    fn any(
        &self,
        bearer: &Bearer,
        name: Option<&Name>,
        now_s: u64,
        fits: impl Fn(&Revocation) -> bool,
    ) -> bool {
        // What a rule permits, the configuration permits anew with each request; and what an API key does, unless it is
        // named.
        let is_token = match bearer.proof {
            Proof::None => return false,
            Proof::Token => true,
            Proof::ApiKey => false,
        };
        let lifetime_s = self.lifetime_s.load(Ordering::Relaxed);
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        let keys = [
            Some(Key::Digest(&bearer.digest)),
            bearer.token_id.as_deref().map(Key::TokenId),
            bearer.subject.as_deref().map(Key::Subject),
            name.filter(|_| is_token).map(|name| Key::Channel(name.as_str())),
        ];
        let prefixes =
            name.filter(|_| is_token).into_iter().flat_map(|name| prefixes(name.as_str())).map(Key::Prefix);
        keys.into_iter().flatten().chain(prefixes).any(|key| {
            let found = table.index.get(&table.hasher.hash_one(&key));
            found
                .into_iter()
                .flatten()
                .any(|one| fits(one) && one.concerns_token(bearer) && !one.is_over(now_s, lifetime_s))
        })
    }
}

fn check(target: &Target) -> Result<Option<Pattern>, NotRevoked> {
    let Target { subject, token_id, digest, channel } = target;
    if subject.is_none() && token_id.is_none() && digest.is_none() && channel.is_none() {
        return Err(NotRevoked::Nothing);
    }
    for (name, value) in [("subject", subject), ("token_id", token_id)] {
        if value.as_ref().is_some_and(|value| value.is_empty()) {
            return Err(NotRevoked::Empty(name));
        }
    }
    channel.as_deref().map(Pattern::parse).transpose().map_err(NotRevoked::Channel)
}

/// The segments of a pattern before its first wildcard.
fn literal_prefix(pattern: &str) -> &str {
    let mut begins = std::iter::once(0).chain(pattern.match_indices('/').map(|(at, _)| at + 1));
    let is_wildcard = |at: &usize| {
        let segment = pattern.get(*at..).and_then(|rest| rest.split('/').next());
        matches!(segment, Some("*" | "**"))
    };
    let end = begins.find(is_wildcard).map_or(pattern.len(), |at| at.saturating_sub(1));
    pattern.get(..end).unwrap_or_default()
}

/// All that may stand before the first wildcard of a pattern that a name matches.
fn prefixes(name: &str) -> impl Iterator<Item = &str> {
    std::iter::once("").chain(name.match_indices('/').filter_map(|(at, _)| name.get(..at)))
}

impl Table {
    fn key_of(&self, revocation: &Revocation) -> u64 {
        self.key_of_target(&revocation.target)
    }

    /// The narrowest of what is given.
    fn key_of_target(&self, target: &Target) -> u64 {
        let key = match target {
            Target { digest: Some(digest), .. } => Key::Digest(digest),
            Target { token_id: Some(token_id), .. } => Key::TokenId(token_id),
            Target { subject: Some(subject), .. } => Key::Subject(subject),
            Target { channel: Some(channel), .. } if Name::parse(channel).is_ok() => Key::Channel(channel),
            Target { channel, .. } => Key::Prefix(literal_prefix(channel.as_deref().unwrap_or_default())),
        };
        self.hasher.hash_one(key)
    }

    fn remove(&mut self, number: u64) -> bool {
        let Some(revocation) = self.all.remove(&number) else { return false };
        self.of_channels -= usize::from(revocation.pattern.is_some());
        let key = self.key_of(&revocation);
        if let Some(same) = self.index.get_mut(&key) {
            same.retain(|one| one.number != number);
            if same.is_empty() {
                self.index.remove(&key);
            }
        }
        true
    }

    fn remove_where(&mut self, fits: impl Fn(&Revocation) -> bool) {
        let over: Vec<u64> = self.all.values().filter(|one| fits(one)).map(|one| one.number).collect();
        for number in over {
            self.remove(number);
        }
    }

    /// The same, of those alone that are found as `target` is.
    fn remove_where_indexed(&mut self, target: &Target, fits: impl Fn(&Revocation) -> bool) {
        let found = self.index.get(&self.key_of_target(target)).into_iter().flatten();
        let over: Vec<u64> = found.filter(|one| fits(one)).map(|one| one.number).collect();
        for number in over {
            self.remove(number);
        }
    }
}

impl Revocation {
    fn until_s(&self, lifetime_s: u64) -> u64 {
        // A token of the same second is concerned too.
        self.until_s.unwrap_or_else(|| self.made_s.saturating_add(lifetime_s).saturating_add(1))
    }

    fn is_over(&self, now_s: u64, lifetime_s: u64) -> bool {
        self.until_s(lifetime_s) <= now_s
    }

    fn takes(&self, name: &Name) -> bool {
        self.pattern.as_ref().is_some_and(|pattern| pattern.matches(name.as_str()))
    }

    /// Whether it is about this token, its channel left aside. One that was issued later is good again, unless the
    /// revocation names just this one.
    fn concerns_token(&self, bearer: &Bearer) -> bool {
        let Target { subject, token_id, digest, .. } = &self.target;
        let is_named = token_id.is_some() || digest.is_some();
        subject.as_ref().is_none_or(|subject| bearer.subject.as_ref() == Some(subject))
            && token_id.as_ref().is_none_or(|token_id| bearer.token_id.as_ref() == Some(token_id))
            && digest.is_none_or(|digest| bearer.digest == digest)
            && (is_named || bearer.issued_s.is_none_or(|issued_s| issued_s <= self.made_s))
    }

    /// Whether it is about whoever reads a channel, be it without a token.
    fn concerns_everybody(&self) -> bool {
        let Target { subject, token_id, digest, channel } = &self.target;
        channel.is_some() && subject.is_none() && token_id.is_none() && digest.is_none()
    }
}

#[cfg(test)]
mod tests;
