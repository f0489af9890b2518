//! All tickets of a node, and what they take of its memory: at most a part of it, which every subject may have of as much
//! as any other.
//! Owns their number, their bytes, and who gives way where there is no room. When a ticket counts is `ticket`'s.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::runtime::caller::Claims;
use crate::runtime::tally::{Tally, Weight};

use super::{Ticket, TokenKey};

/// Tickets of a node.
pub(super) const TICKETS_MAX: usize = 65_536;
/// Tickets of one token: beyond it the one that was not used for longest is forgotten. Every page that is opened asks for
/// one, and few pages are open at once.
pub(super) const TICKETS_OF_TOKEN_MAX: usize = 64;
/// Tickets that are over are looked for when there are twice as many as were left the last time, and so many at least.
const SWEEP_MIN: usize = 256;
/// What a ticket takes, and what is kept of its token beside its claims.
const TICKET_BYTES: usize = 2 * (size_of::<Ticket>() + 2 * size_of::<Digest>());
const TOKEN_BYTES: usize = 2 * (size_of::<Token>() + size_of::<Holding>() + 2 * size_of::<Digest>());

/// SHA-256, of a ticket or of a token.
pub(super) type Digest = [u8; 32];

/// What tickets may take just now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub bytes_max: usize,
    pub tickets_max: usize,
}

#[derive(Default)]
pub(super) struct Table {
    tickets: HashMap<Digest, Ticket, RandomState>,
    tokens: HashMap<Digest, Token, RandomState>,
    holdings: HashMap<u64, Holding, RandomState>,
    /// Subjects by what they hold.
    by_bytes: BTreeSet<(usize, u64)>,
    hasher: RandomState,
    /// With the claims, which count where they are, too.
    bytes: usize,
    claims_bytes: usize,
    /// From the first ticket on.
    weight: Option<Weight>,
    sweep_at: usize,
}

/// A token that tickets were given for.
struct Token {
    claims: Arc<Claims>,
    key: TokenKey,
    tickets: Vec<Digest>,
}

/// What the tickets of one subject take.
#[derive(Default)]
struct Holding {
    bytes: usize,
    /// In the order in which tickets were asked for first.
    tokens: VecDeque<Digest>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.tickets.len()
    }

    pub(super) fn get_mut(&mut self, ticket: &Digest) -> Option<&mut Ticket> {
        self.tickets.get_mut(ticket)
    }

    /// The key that a token with tickets was signed with.
    pub(super) fn key_of(&self, claims: &Claims) -> Option<TokenKey> {
        self.tokens.get(&claims.digest).map(|token| token.key)
    }

    /// Puts a ticket in, for which others may have to give way. False: there is no room.
    pub(super) fn insert(
        &mut self,
        digest: Digest,
        mut ticket: Ticket,
        key: TokenKey,
        room: Room,
        now_s: u64,
    ) -> bool {
        let of_token = ticket.claims.digest;
        if let Some(token) = self.tokens.get(&of_token)
            && token.tickets.len() >= TICKETS_OF_TOKEN_MAX
        {
            let last_used = |digest: &&Digest| self.tickets.get(*digest).map_or(0, |ticket| ticket.at_s);
            if let Some(last) = token.tickets.iter().min_by_key(last_used).copied() {
                self.remove(&last);
            }
        }
        let most_bytes = TICKET_BYTES + TOKEN_BYTES + ticket.claims.bytes();
        if self.tickets.len() >= self.sweep_at.max(SWEEP_MIN) || !self.has_room(room, most_bytes) {
            self.sweep(now_s);
        }
        let known = self.tokens.get(&of_token).map(|token| Arc::clone(&token.claims));
        let is_new = known.is_none();
        let bytes = if is_new { most_bytes } else { TICKET_BYTES };
        // Each worker has claims of its own for a token, until it comes by a ticket.
        ticket.claims = known.unwrap_or(ticket.claims);
        let subject = self.subject_of(&ticket.claims);
        if !self.make_room(room, bytes, subject, &of_token) {
            return false;
        }
        let claims = &ticket.claims;
        let token = self.tokens.entry(of_token).or_insert_with(|| {
            self.claims_bytes += claims.bytes();
            Token { claims: Arc::clone(claims), key, tickets: Vec::new() }
        });
        token.tickets.push(digest);
        self.tickets.insert(digest, ticket);
        self.holds(subject, |holding| {
            holding.bytes += bytes;
            if is_new {
                holding.tokens.push_back(of_token);
            }
        });
        self.bytes += bytes;
        true
    }

    /// Forgets those that are over.
    fn sweep(&mut self, now_s: u64) {
        self.retain(|ticket, _| !ticket.is_over(now_s));
        self.sweep_at = 2 * self.tickets.len();
    }

    /// The same, and then as many more as it takes, of those who have most.
    pub(super) fn shrink(&mut self, bytes_max: usize, now_s: u64) {
        if self.bytes > bytes_max {
            self.sweep(now_s);
        }
        while self.bytes > bytes_max {
            let Some(&(_, most)) = self.by_bytes.last() else { return };
            let Some(token) = self.oldest_of(most) else { return };
            self.remove_token(&token);
        }
    }

    /// Forgets all that do not stay.
    pub(super) fn retain(&mut self, stays: impl Fn(&Ticket, &TokenKey) -> bool) {
        let goes = |(digest, ticket): (&Digest, &Ticket)| {
            let key = self.key_of(&ticket.claims)?;
            (!stays(ticket, &key)).then_some(*digest)
        };
        let go: Vec<Digest> = self.tickets.iter().filter_map(goes).collect();
        for digest in go {
            self.remove(&digest);
        }
    }

    /// Counts from now on in `tally` what is not counted elsewhere.
    pub(super) fn weigh(&mut self, tally: &Tally) {
        let bytes = self.bytes - self.claims_bytes;
        self.weight.get_or_insert_with(|| tally.weigh(0)).set(bytes);
    }

    pub(super) fn weigh_again(&mut self) {
        let bytes = self.bytes - self.claims_bytes;
        if let Some(weight) = &mut self.weight {
            weight.set(bytes);
        }
    }

    fn has_room(&self, room: Room, bytes: usize) -> bool {
        self.bytes + bytes <= room.bytes_max && self.tickets.len() < room.tickets_max
    }

    /// Lets the tokens go, the oldest first, of whoever holds more than twice what `subject` would, or else of `subject`.
    /// False: it has nothing to let go of.
    fn make_room(&mut self, room: Room, bytes: usize, subject: u64, asked_for: &Digest) -> bool {
        while !self.has_room(room, bytes) {
            let Some(&(most_bytes, most)) = self.by_bytes.last() else { return false };
            let own = self.holdings.get(&subject).map_or(0, |holding| holding.bytes);
            let from = if most_bytes / 2 > own + bytes { most } else { subject };
            match self.oldest_of(from) {
                Some(token) if token != *asked_for => self.remove_token(&token),
                _ => return false,
            }
        }
        true
    }

    fn oldest_of(&self, subject: u64) -> Option<Digest> {
        self.holdings.get(&subject)?.tokens.front().copied()
    }

    fn subject_of(&self, claims: &Claims) -> u64 {
        self.hasher.hash_one(claims.subject.as_deref())
    }

    fn remove_token(&mut self, token: &Digest) {
        let tickets = self.tokens.get(token).map(|token| token.tickets.clone()).unwrap_or_default();
        for ticket in tickets {
            self.remove(&ticket);
        }
    }

    fn remove(&mut self, digest: &Digest) {
        let Some(ticket) = self.tickets.remove(digest) else { return };
        let of_token = ticket.claims.digest;
        let Some(token) = self.tokens.get_mut(&of_token) else { return };
        token.tickets.retain(|other| other != digest);
        let is_last = token.tickets.is_empty();
        let claims_bytes = token.claims.bytes();
        let mut bytes = TICKET_BYTES;
        if is_last {
            self.tokens.remove(&of_token);
            self.claims_bytes -= claims_bytes;
            bytes += TOKEN_BYTES + claims_bytes;
        }
        self.bytes -= bytes;
        let subject = self.subject_of(&ticket.claims);
        self.holds(subject, |holding| {
            holding.bytes -= bytes;
            if is_last {
                holding.tokens.retain(|token| *token != of_token);
            }
        });
    }

    /// Changes what a subject holds.
    fn holds(&mut self, subject: u64, change: impl FnOnce(&mut Holding)) {
        let holding = self.holdings.entry(subject).or_default();
        self.by_bytes.remove(&(holding.bytes, subject));
        change(holding);
        if holding.bytes == 0 {
            self.holdings.remove(&subject);
        } else {
            self.by_bytes.insert((holding.bytes, subject));
        }
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> [usize; 5] {
        [self.tickets.len(), self.tokens.len(), self.holdings.len(), self.by_bytes.len(), self.bytes]
    }
}
