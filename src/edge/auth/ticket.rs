//! Tickets: what stands for a token in the URL of an EventSource, which cannot send headers.
//! Owns their life: used first within 30 s, from then on by one client address, until the token ends. Kept as digests:
//! who reads this memory learns no ticket. Shared by all workers under a lock, for a client comes to any of them; only
//! requests with a ticket take it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use foldhash::fast::RandomState;
use sha2::{Digest, Sha256};

use crate::domain::auth::Bearer;
use crate::domain::home::WorkerIndex;
use crate::runtime::entry::ConnId;
use crate::runtime::peer::Peer;

use super::denied::Denied;
use super::policy::Verified;

/// How long a ticket waits for its first use.
pub const UNUSED_S_MAX: u64 = 30;
/// Tickets of a node.
const TICKETS_MAX: usize = 65_536;
/// Tickets of one token: beyond it the one that was not used for longest is forgotten. Every page that is opened asks for
/// one, and few pages are open at once.
const TICKETS_OF_TOKEN_MAX: usize = 64;
/// Random bytes of a ticket.
const TICKET_BYTES: usize = 32;
/// Tickets that are over are looked for when there are twice as many as were left the last time, and so many at least.
const SWEEP_MIN: usize = 256;

/// A ticket that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Given {
        ticket: String,
        /// Until its token is over.
        expires_in_s: u64,
    },
    /// The node has as many as it may.
    Full,
}

/// One use of a ticket: names the ticket without being it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketUse {
    digest: [u8; 32],
    /// The how manieth: streams are opened on several workers at once, and noted in any order.
    number: u64,
}

/// A stream that was opened with a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub worker: WorkerIndex,
    pub conn: ConnId,
}

/// All tickets of a node.
#[derive(Default)]
pub struct Tickets(Mutex<Table>);

#[derive(Default)]
struct Table {
    tickets: HashMap<[u8; 32], Ticket, RandomState>,
    /// By the digest of their token.
    of_token: HashMap<[u8; 32], Vec<[u8; 32]>, RandomState>,
    sweep_at: usize,
}

struct Ticket {
    bearer: Arc<Bearer>,
    /// The token's.
    key: [u8; 32],
    /// When it was given, then when it was last used.
    at_s: u64,
    /// The client that used it first.
    client: Option<Client>,
    uses: u64,
    /// The stream of the latest use that opened one, and that use's number.
    stream: Option<(u64, Opened)>,
}

/// What counts as one client address: that of its network, for IPv6 clients change theirs within it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Client {
    network: u128,
    is_unix: bool,
}

impl Ticket {
    fn is_over(&self, now_s: u64) -> bool {
        self.bearer.has_expired(now_s) || (self.client.is_none() && self.is_late(now_s))
    }

    fn is_late(&self, now_s: u64) -> bool {
        now_s > self.at_s + UNUSED_S_MAX
    }
}

impl Tickets {
    /// Gives a ticket for a token.
    ///
    /// # Errors
    /// The machine has no random bytes.
    pub fn give(&self, verified: Verified, now_s: u64) -> Result<Asked, getrandom::Error> {
        let mut bytes = [0; TICKET_BYTES];
        getrandom::fill(&mut bytes)?;
        let ticket = URL_SAFE_NO_PAD.encode(bytes);
        let Verified { bearer, key } = verified;
        let expires_in_s = bearer.expires_s.unwrap_or(now_s).saturating_sub(now_s);
        let entry =
            Ticket { bearer: Arc::new(bearer), key, at_s: now_s, client: None, uses: 0, stream: None };
        if self.table().insert(digest_of(&ticket), entry, now_s) {
            Ok(Asked::Given { ticket, expires_in_s })
        } else {
            Ok(Asked::Full)
        }
    }

    /// Whom a ticket stands for. Its first use binds it to the client's address.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn use_by(&self, ticket: &str, peer: Peer, now_s: u64) -> Result<(Arc<Bearer>, TicketUse), Denied> {
        let client = Client { network: peer.network(), is_unix: peer.is_unix };
        let digest = digest_of(ticket);
        let mut table = self.table();
        let entry = table.tickets.get_mut(&digest).ok_or(Denied::TicketUnknown)?;
        // Those that are over stay until there is no room: whoever asks again, as a request does that was begun at once and
        // then given to a task, hears the same.
        if let Some(expires_s) = entry.bearer.expires_s.filter(|expires_s| *expires_s <= now_s) {
            return Err(Denied::Expired { ago_s: now_s - expires_s });
        }
        match entry.client {
            None if entry.is_late(now_s) => return Err(Denied::TicketLate),
            None => entry.client = Some(client),
            Some(first) if first != client => return Err(Denied::TicketElsewhere),
            Some(_) => {}
        }
        entry.at_s = now_s;
        entry.uses += 1;
        Ok((Arc::clone(&entry.bearer), TicketUse { digest, number: entry.uses }))
    }

    /// Notes the stream that a use of a ticket has opened. Given back is the one that is to be ended: of an earlier use; or
    /// this one, when a later use has opened another already.
    pub fn opened(&self, ticket: TicketUse, stream: Opened) -> Option<Opened> {
        let mut table = self.table();
        let latest = &mut table.tickets.get_mut(&ticket.digest)?.stream;
        match *latest {
            Some((number, _)) if number > ticket.number => Some(stream),
            before => {
                *latest = Some((ticket.number, stream));
                before.map(|(_, stream)| stream)
            }
        }
    }

    /// Forgets the tickets of tokens whose key is no longer good.
    pub fn keep(&self, is_good: impl Fn(&[u8; 32]) -> bool) {
        let mut table = self.table();
        table.retain(|ticket| is_good(&ticket.key));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table().tickets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No panic leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// False: there is no room.
    fn insert(&mut self, digest: [u8; 32], ticket: Ticket, now_s: u64) -> bool {
        if self.tickets.len() >= self.sweep_at.clamp(SWEEP_MIN, TICKETS_MAX) {
            self.retain(|ticket| !ticket.is_over(now_s));
            self.sweep_at = 2 * self.tickets.len();
        }
        let of_token = self.of_token.entry(ticket.bearer.digest).or_default();
        if of_token.len() >= TICKETS_OF_TOKEN_MAX {
            let last_used = |digest: &[u8; 32]| self.tickets.get(digest).map_or(0, |ticket| ticket.at_s);
            if let Some(at) = (0..of_token.len()).min_by_key(|at| last_used(&of_token[*at])) {
                self.tickets.remove(&of_token.remove(at));
            }
        }
        if self.tickets.len() >= TICKETS_MAX {
            if of_token.is_empty() {
                self.of_token.remove(&ticket.bearer.digest);
            }
            return false;
        }
        of_token.push(digest);
        self.tickets.insert(digest, ticket);
        true
    }

    fn retain(&mut self, stays: impl Fn(&Ticket) -> bool) {
        self.tickets.retain(|_, ticket| stays(ticket));
        let tickets = &self.tickets;
        self.of_token.retain(|_, of_token| {
            of_token.retain(|digest| tickets.contains_key(digest));
            !of_token.is_empty()
        });
    }
}

fn digest_of(ticket: &str) -> [u8; 32] {
    Sha256::digest(ticket).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::auth::{Grants, Proof};

    const NOW_S: u64 = 1_000_000;

    fn verified(token: u8, expires_s: u64) -> Verified {
        let bearer = Bearer {
            proof: Proof::Token,
            subject: Some("anna".into()),
            token_id: None,
            issued_s: None,
            expires_s: Some(expires_s),
            digest: [token; 32],
            grants: Grants::default(),
        };
        Verified { bearer, key: [token; 32] }
    }

    fn given(tickets: &Tickets, token: u8) -> String {
        match tickets.give(verified(token, NOW_S + 100), NOW_S) {
            Ok(Asked::Given { ticket, expires_in_s: 100 }) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn peer(text: &str) -> Peer {
        Peer::new(text.parse().expect("an address"), 1)
    }

    #[test]
    fn the_life_of_a_ticket() {
        let tickets = Tickets::default();
        let (anna, bert) = (peer("10.0.0.1"), peer("10.0.0.2"));
        let ticket = given(&tickets, 1);
        let used = |ticket: &str, peer, after_s| {
            tickets.use_by(ticket, peer, NOW_S + after_s).map(|(bearer, _)| bearer.digest)
        };
        assert_eq!(used("another", anna, 0), Err(Denied::TicketUnknown));
        assert_eq!(used(&ticket, anna, 30), Ok([1; 32]), "in time");
        assert_eq!(used(&ticket, bert, 31), Err(Denied::TicketElsewhere));
        assert_eq!(used(&ticket, Peer::UNIX, 31), Err(Denied::TicketElsewhere));
        assert_eq!(used(&ticket, anna, 99), Ok([1; 32]), "until its token ends");
        assert_eq!(used(&ticket, anna, 100), Err(Denied::Expired { ago_s: 0 }));
        assert_eq!(used(&ticket, anna, 101), Err(Denied::Expired { ago_s: 1 }));
        let late = given(&tickets, 1);
        assert_eq!(used(&late, anna, 31), Err(Denied::TicketLate));
        assert_eq!(used(&late, anna, 32), Err(Denied::TicketLate), "for good");
    }

    #[test]
    fn a_client_with_many_addresses_is_one() {
        let tickets = Tickets::default();
        let ticket = given(&tickets, 1);
        assert!(tickets.use_by(&ticket, peer("2001:db8::1"), NOW_S).is_ok());
        assert!(tickets.use_by(&ticket, peer("2001:db8::2:1"), NOW_S).is_ok());
        assert!(tickets.use_by(&ticket, peer("2001:db8:0:1::1"), NOW_S).is_err());
    }

    #[test]
    fn a_new_stream_tells_of_the_one_before() {
        let tickets = Tickets::default();
        let ticket = given(&tickets, 1);
        let used = || tickets.use_by(&ticket, peer("10.0.0.1"), NOW_S).expect("used").1;
        let stream = |slot| Opened { worker: 0, conn: ConnId { slot, generation: 1 } };
        let (first, second, third) = (used(), used(), used());
        assert_eq!(tickets.opened(first, stream(1)), None);
        assert_eq!(tickets.opened(third, stream(3)), Some(stream(1)));
        assert_eq!(tickets.opened(second, stream(2)), Some(stream(2)), "noted late, and not the latest");
        assert_eq!(tickets.opened(used(), stream(4)), Some(stream(3)));
        tickets.keep(|_| false);
        assert_eq!(tickets.opened(third, stream(5)), None, "forgotten");
    }

    #[test]
    fn their_number_is_bounded() {
        let tickets = Tickets::default();
        let first = given(&tickets, 1);
        for _ in 0..TICKETS_OF_TOKEN_MAX {
            given(&tickets, 1);
        }
        assert_eq!(tickets.len(), TICKETS_OF_TOKEN_MAX);
        assert_eq!(tickets.use_by(&first, peer("10.0.0.1"), NOW_S).err(), Some(Denied::TicketUnknown));
        let mut table = tickets.table();
        for at in table.tickets.len()..TICKETS_MAX {
            let mut digest = [9; 32];
            digest[..8].copy_from_slice(&(at as u64).to_le_bytes());
            let Verified { mut bearer, key } = verified(9, NOW_S + 100);
            bearer.digest = digest;
            let ticket =
                Ticket { bearer: Arc::new(bearer), key, at_s: NOW_S, client: None, uses: 0, stream: None };
            assert!(table.insert(digest, ticket, NOW_S));
        }
        drop(table);
        assert_eq!(tickets.give(verified(2, NOW_S + 100), NOW_S), Ok(Asked::Full));
        assert_eq!(tickets.len(), TICKETS_MAX);
        // What was not used in time makes room.
        let later = NOW_S + UNUSED_S_MAX + 1;
        assert!(matches!(tickets.give(verified(2, NOW_S + 100), later), Ok(Asked::Given { .. })));
        assert_eq!(tickets.len(), 1);
    }
}
