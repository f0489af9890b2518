//! Tickets: what stands for a token in the URL of an EventSource, which cannot send headers.
//! Owns their life: used first within 30 s, from then on by one client address, until the token ends. Kept as digests:
//! who reads this memory learns no ticket. Shared by all workers under a lock, for a client comes to any of them; only
//! requests with a ticket take it.

mod table;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use crate::domain::home::WorkerIndex;
use crate::runtime::caller::Claims;
use crate::runtime::entry::ConnId;
use crate::runtime::memory::{Memory, Pressure};
use crate::runtime::peer::Peer;

use self::table::{Digest, Room, TICKETS_MAX, Table};
use super::denied::Denied;
use super::unwelcome::Unwelcome;

/// How long a ticket waits for its first use.
pub const UNUSED_S_MAX: u64 = 30;
/// Random bytes of a ticket.
const TICKET_BYTES: usize = 32;
/// Tickets may take this part of the node's memory, and, where it is tight, this.
const PARTS: usize = 8;
const PARTS_TIGHT: usize = 32;

/// The fingerprint of a key that tokens are signed with.
pub type TokenKey = [u8; 32];

/// A ticket that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Given {
        ticket: String,
        /// Until its token is over.
        expires_in_s: u64,
    },
    /// The node has as many as it may, or no memory for more.
    Full,
}

/// One use of a ticket: names the ticket without being it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketUse {
    digest: Digest,
    /// The how manieth: streams are opened on several workers at once, and noted in any order.
    number: u64,
}

/// A stream that was opened with a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    pub worker: WorkerIndex,
    pub conn: ConnId,
}

/// A ticket that was used.
#[derive(Debug)]
pub struct Used {
    pub claims: Arc<Claims>,
    pub key: TokenKey,
    pub ticket: TicketUse,
}

/// All tickets of a node.
#[derive(Default)]
pub struct Tickets(Mutex<Table>);

struct Ticket {
    /// One object for all tickets of a token, and for its connections.
    claims: Arc<Claims>,
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
        self.claims.has_expired(now_s) || (self.client.is_none() && self.is_late(now_s))
    }

    fn is_late(&self, now_s: u64) -> bool {
        now_s > self.at_s + UNUSED_S_MAX
    }
}

impl Tickets {
    /// Gives a ticket for a token that was signed with `key`.
    ///
    /// # Errors
    /// The machine has no random bytes.
    pub fn give(
        &self,
        claims: Arc<Claims>,
        key: TokenKey,
        memory: &Memory,
        now_s: u64,
    ) -> Result<Asked, getrandom::Error> {
        let mut bytes = [0; TICKET_BYTES];
        getrandom::fill(&mut bytes)?;
        let ticket = URL_SAFE_NO_PAD.encode(bytes);
        let expires_in_s = claims.expires_s.unwrap_or(now_s).saturating_sub(now_s);
        let Some(room) = room(memory) else { return Ok(Asked::Full) };
        let entry = Ticket { claims, at_s: now_s, client: None, uses: 0, stream: None };
        let mut table = self.table();
        let is_in = table.insert(digest_of(&ticket), entry, key, room, now_s);
        table.weigh(memory.beside());
        Ok(if is_in { Asked::Given { ticket, expires_in_s } } else { Asked::Full })
    }

    /// Whom a ticket stands for. Its first use binds it to the client's address.
    ///
    /// # Errors
    /// [`Unwelcome`]
    pub fn use_by(&self, ticket: &str, peer: Peer, now_s: u64) -> Result<Used, Unwelcome> {
        let client = Client { network: peer.network(), is_unix: peer.is_unix };
        let digest = digest_of(ticket);
        let mut table = self.table();
        let entry = table.get_mut(&digest).ok_or(Denied::TicketUnknown)?;
        // Those that are over stay until there is no room: whoever asks again, as a request does that was begun at once and
        // then given to a task, hears the same.
        if let Some(expires_s) = entry.claims.expires_s.filter(|expires_s| *expires_s <= now_s) {
            return Err(Unwelcome::of(Denied::Expired { ago_s: now_s - expires_s }, &entry.claims));
        }
        match entry.client {
            None if entry.is_late(now_s) => return Err(Unwelcome::of(Denied::TicketLate, &entry.claims)),
            None => entry.client = Some(client),
            Some(first) if first != client => {
                return Err(Unwelcome::of(Denied::TicketElsewhere, &entry.claims));
            }
            Some(_) => {}
        }
        entry.at_s = now_s;
        entry.uses += 1;
        let (claims, number) = (Arc::clone(&entry.claims), entry.uses);
        let key = table.key_of(&claims).ok_or(Denied::TicketUnknown)?;
        Ok(Used { claims, key, ticket: TicketUse { digest, number } })
    }

    /// The stream of an earlier use, which is to end for that of this one.
    pub fn before(&self, ticket: TicketUse) -> Option<Opened> {
        let mut table = self.table();
        let latest = table.get_mut(&ticket.digest)?.stream;
        latest.filter(|(number, _)| *number < ticket.number).map(|(_, stream)| stream)
    }

    /// Notes the stream that a use of a ticket has opened. Given back is the one that is to be ended: of an earlier use; or
    /// this one, when a later use has opened another already.
    pub fn opened(&self, ticket: TicketUse, stream: Opened) -> Option<Opened> {
        let mut table = self.table();
        let latest = &mut table.get_mut(&ticket.digest)?.stream;
        match *latest {
            Some((number, _)) if number > ticket.number => Some(stream),
            // It was noted before.
            Some(same) if same == (ticket.number, stream) => None,
            before => {
                *latest = Some((ticket.number, stream));
                before.map(|(_, stream)| stream)
            }
        }
    }

    /// Forgets the tickets of tokens whose key is no longer good.
    pub fn keep(&self, is_good: impl Fn(&TokenKey) -> bool) {
        let mut table = self.table();
        table.retain(|_, key| is_good(key));
        table.weigh_again();
    }

    /// Memory is tight: what tickets take beyond a small part of it is given back.
    pub fn give_back(&self, memory: &Memory, now_s: u64) {
        let mut table = self.table();
        table.shrink(memory.bytes_max() / PARTS_TIGHT, now_s);
        table.weigh_again();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No panic leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tickets may take; `None`: nobody gets one just now.
fn room(memory: &Memory) -> Option<Room> {
    let parts = match memory.pressure() {
        Pressure::Calm => PARTS,
        Pressure::Tight => PARTS_TIGHT,
        Pressure::Full | Pressure::Spent => return None,
    };
    Some(Room { bytes_max: memory.bytes_max() / parts, tickets_max: TICKETS_MAX })
}

fn digest_of(ticket: &str) -> Digest {
    Sha256::digest(ticket).into()
}

#[cfg(test)]
mod tests {
    use super::table::{TICKETS_MAX, TICKETS_OF_TOKEN_MAX};
    use super::*;
    use crate::domain::auth::{Bearer, Grants, Proof, pattern_for};
    use crate::runtime::memory::Part;
    use crate::runtime::tally::Tally;

    const NOW_S: u64 = 1_000_000;

    fn digest(number: u64) -> [u8; 32] {
        let mut digest = [9; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        digest
    }

    /// A token of a subject, which grants so many patterns.
    fn token(number: u64, subject: &str, patterns: usize) -> Arc<Claims> {
        let pattern = |at| pattern_for(&format!("channel/{at}"), None).expect("a pattern");
        let subscribe = (0..patterns).filter_map(pattern).collect();
        let bearer = Bearer {
            proof: Proof::Token,
            subject: Some(subject.into()),
            token_id: None,
            issued_s: None,
            expires_s: Some(NOW_S + 100),
            digest: digest(number),
            grants: Grants { subscribe, ..Grants::default() },
        };
        Arc::new(Claims::new(bearer, &Tally::default()))
    }

    fn memory(bytes_max: usize) -> Memory {
        Memory::new(bytes_max, usize::MAX, 1)
    }

    fn asked(tickets: &Tickets, claims: &Arc<Claims>, memory: &Memory, now_s: u64) -> Option<String> {
        match tickets.give(Arc::clone(claims), [7; 32], memory, now_s) {
            Ok(Asked::Given { ticket, .. }) => Some(ticket),
            Ok(Asked::Full) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn given(tickets: &Tickets, number: u64) -> String {
        asked(tickets, &token(number, "anna", 0), &memory(1 << 30), NOW_S).expect("a ticket")
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
            tickets
                .use_by(ticket, peer, NOW_S + after_s)
                .map(|used| used.claims.digest)
                .map_err(|unwelcome| unwelcome.denied)
        };
        assert_eq!(used("another", anna, 0), Err(Denied::TicketUnknown));
        assert_eq!(used(&ticket, anna, 30), Ok(digest(1)), "in time");
        assert_eq!(used(&ticket, bert, 31), Err(Denied::TicketElsewhere));
        assert_eq!(used(&ticket, Peer::UNIX, 31), Err(Denied::TicketElsewhere));
        assert_eq!(used(&ticket, anna, 99), Ok(digest(1)), "until its token ends");
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
        let used = || tickets.use_by(&ticket, peer("10.0.0.1"), NOW_S).expect("used").ticket;
        let stream = |slot| Opened { worker: 0, conn: ConnId { slot, generation: 1 } };
        let (first, second, third) = (used(), used(), used());
        assert_eq!(tickets.opened(first, stream(1)), None);
        assert_eq!(tickets.opened(third, stream(3)), Some(stream(1)));
        assert_eq!(tickets.opened(third, stream(3)), None, "noted twice");
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
        assert_eq!(tickets.use_by(&first, peer("10.0.0.1"), NOW_S).err(), Some(Denied::TicketUnknown.into()));
        let memory = memory(1 << 30);
        let ask = |number: u64, subject: &str, now_s| {
            asked(&tickets, &token(number, subject, 0), &memory, now_s).is_some()
        };
        tickets.keep(|_| false);
        assert!((0..TICKETS_MAX as u64).all(|number| ask(number, &number.to_string(), NOW_S)));
        assert!(!ask(1 << 40, "bert", NOW_S), "nobody has much more than he would");
        // What was not used in time makes room.
        assert!(ask(1 << 40, "bert", NOW_S + UNUSED_S_MAX + 1));
        assert_eq!(tickets.len(), 1);
    }

    #[test]
    fn who_has_most_gives_way() {
        let (tickets, memory) = (Tickets::default(), memory(8 << 20));
        let bert = asked(&tickets, &token(0, "bert", 0), &memory, NOW_S).expect("a ticket");
        for number in 1..1_000 {
            assert!(asked(&tickets, &token(number, "anna", 400), &memory, NOW_S).is_some(), "{number}");
        }
        let [count, tokens, subjects, _, bytes] = tickets.table().counts();
        assert!(count < 100 && tokens == count && bytes <= 1 << 20, "{count} {bytes}");
        assert!(bytes > 900 << 10 && subjects == 2, "{bytes}");
        assert!(tickets.use_by(&bert, peer("10.0.0.1"), NOW_S).is_ok());
        for number in 1_000..1_020 {
            let claims = token(number, &number.to_string(), 400);
            assert!(asked(&tickets, &claims, &memory, NOW_S).is_some(), "anna has more: {number}");
        }
        // What is not counted where the claims are.
        assert!((1..40_000).contains(&memory.beside().bytes()), "{}", memory.beside().bytes());
        tickets.give_back(&memory, NOW_S);
        assert!(tickets.table().counts()[4] <= 256 << 10);
        tickets.keep(|_| false);
        assert_eq!(tickets.table().counts(), [0; 5]);
        assert_eq!(memory.beside().bytes(), 0);
    }

    #[test]
    fn a_tokens_tickets_share_its_claims() {
        let (tickets, memory) = (Tickets::default(), memory(8 << 20));
        let ask = |number| asked(&tickets, &token(number, "anna", 400), &memory, NOW_S).expect("a ticket");
        let [first, second, _] = [ask(1), ask(1), ask(2)];
        let used = |ticket: &str| tickets.use_by(ticket, peer("10.0.0.1"), NOW_S).expect("used").claims;
        assert!(Arc::ptr_eq(&used(&first), &used(&second)));
    }

    #[test]
    fn none_is_given_where_memory_is_short() {
        let (tickets, memory) = (Tickets::default(), memory(8 << 20));
        let part = |others| Part { history: 0, feeds: 0, others, oldest_ms: u64::MAX };
        for (others, is_given) in [(0, true), (15 << 19, false), (0, true)] {
            memory.tell(0, part(others));
            memory.judge(&memory.sums());
            let given = asked(&tickets, &token(1, "anna", 0), &memory, NOW_S);
            assert_eq!(given.is_some(), is_given, "{others}");
        }
    }
}
