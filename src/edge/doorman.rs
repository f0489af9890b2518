//! Who a request is of, for one worker: finds the token among its carriers, of which the first counts, has it verified, and
//! says what its bearer may do.
//! Owns the carriers, and the memory of bearers that were verified before. Which token is good is `auth`'s to say. A token
//! goes from here to nowhere: what is logged is who came, and why they were refused.

use std::borrow::Cow;
use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use sha2::{Digest, Sha256};

use crate::domain::auth::{Act, Bearer, Grants, Proof};
use crate::domain::channel::Name;
use crate::proto::http::error::HttpError;
use crate::proto::http::fields::{self, Authorization, Several};
use crate::proto::http::request::Request;
use crate::proto::http::target::Query;
use crate::runtime::caller::Caller;
use crate::runtime::entry::ConnId;
use crate::runtime::memory::Memory;
use crate::runtime::peer::Peer;
use crate::runtime::state::State;
use crate::runtime::tally::Tally;
use crate::runtime::trace::What;

use super::answer::Answer;
use super::auth::{
    Auth, Carrier, Denied, Policy, TOKEN_BYTES_MAX, TicketUse, TokenKey, Unwelcome, Used, Verified,
};
use super::origin::Barred;
use super::rules::{Rules, nobody, reconsider};

/// Bearers remembered by one worker, and the memory they take; beyond either all are forgotten. A token that is not
/// remembered costs the check of its signature again.
const BEARERS_MAX: usize = 8_192;
const BEARERS_BYTES_MAX: usize = 8 << 20;
/// All workers together remember no more than this part of the node's memory.
const BEARERS_PARTS: usize = 32;

/// Parameters of a query that say who asks, not what for.
pub const CREDENTIALS: [&str; 2] = ["ticket", "token"];

/// Lets the requests of one worker in, or not.
pub struct Doorman {
    auth: Arc<Auth>,
    /// No authentication is configured: anyone may do everything.
    is_open: bool,
    everyone: Caller,
    known: RefCell<Known>,
    /// What is known of this worker's clients.
    tally: Tally,
    remembered_bytes_max: usize,
}

/// Someone who was let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub bearer: Caller,
    /// They came by a ticket: a stream that is opened with it ends the one before.
    pub ticket: Option<TicketUse>,
}

/// Who was verified before, by the policy that holds.
struct Known {
    rules: Rules,
    /// By the SHA-256 of their tokens, with what those were signed with.
    bearers: HashMap<[u8; 32], (Caller, TokenKey), RandomState>,
    bytes: usize,
}

/// What a request says of who sent it.
enum Carried<'r> {
    Nothing,
    Token(Carrier, Cow<'r, str>),
    Ticket(Cow<'r, str>),
}

impl Doorman {
    pub fn new(auth: &Arc<Auth>, is_open: bool, memory: &Memory) -> Self {
        let tally = Tally::default();
        let part = memory.bytes_max() / BEARERS_PARTS / memory.workers();
        Self {
            auth: Arc::clone(auth),
            is_open,
            everyone: Caller::new(nobody(Grants::all()), &tally),
            known: RefCell::new(Known::new(&auth.policy(), &tally)),
            tally,
            remembered_bytes_max: BEARERS_BYTES_MAX.min(part),
        }
    }

    /// Where what is known of clients is counted.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Memory is tight: whom no connection is of is forgotten.
    pub fn forget(&self) {
        self.known().forget();
    }

    /// Whether anyone may do everything: no authentication is configured.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    pub fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    /// Who a request is of, and the ticket that was used: the first carrier that is there decides. Where none is, the
    /// stranger of `auth.anonymous`; where no authentication is configured, one who may do everything.
    ///
    /// # Errors
    /// [`Unwelcome`]
    pub fn admit(
        &self,
        request: &Request<'_>,
        query: Query<'_>,
        peer: Peer,
        now_s: u64,
    ) -> Result<Admitted, Unwelcome> {
        if self.is_open {
            return Ok(Admitted { bearer: self.everyone.clone(), ticket: None });
        }
        let (bearer, ticket) = match self.carried(request, query)? {
            Carried::Nothing => (self.known().rules.strangers.clone(), None),
            Carried::Token(Carrier::Authorization, token) => {
                (self.verify_authorization(&token, now_s)?, None)
            }
            Carried::Token(_, token) => (self.verify_token(&token, now_s)?, None),
            Carried::Ticket(ticket) => {
                let Used { claims, key, ticket } = self.auth.tickets.use_by(&ticket, peer, now_s)?;
                let known = self.known().of(&claims.digest);
                let bearer = match known {
                    Some((bearer, _)) => bearer,
                    None => self.remember(Caller::of(claims), key),
                };
                (self.good(bearer, now_s)?, Some(ticket))
            }
        };
        Ok(Admitted { bearer, ticket })
    }

    /// Whom a JWT stands for.
    ///
    /// # Errors
    /// [`Unwelcome`]
    pub fn verify_token(&self, token: &str, now_s: u64) -> Result<Caller, Unwelcome> {
        check_length(token)?;
        self.verify_jwt(token, Sha256::digest(token).into(), now_s).map(|(bearer, _)| bearer)
    }

    /// Whom a JWT or an API key stands for.
    fn verify_authorization(&self, token: &str, now_s: u64) -> Result<Caller, Unwelcome> {
        check_length(token)?;
        let digest = Sha256::digest(token).into();
        let publisher = self.known().rules.publisher(&digest);
        match publisher {
            Some(publisher) => self.good(publisher, now_s),
            None => self.verify_jwt(token, digest, now_s).map(|(bearer, _)| bearer),
        }
    }

    fn verify_jwt(&self, token: &str, digest: [u8; 32], now_s: u64) -> Result<(Caller, TokenKey), Unwelcome> {
        let known = self.known().of(&digest);
        let (bearer, key) = match known {
            Some(known) => known,
            None => {
                let Verified { bearer, key } = self.known().rules.policy.verify(token, now_s)?;
                (self.remember(Caller::new(bearer, &self.tally), key), key)
            }
        };
        Ok((self.good(bearer, now_s)?, key))
    }

    fn remember(&self, bearer: Caller, key: TokenKey) -> Caller {
        self.known().remember(bearer.clone(), key, self.remembered_bytes_max);
        bearer
    }

    /// A bearer that was verified once, if it still counts.
    fn good(&self, bearer: Caller, now_s: u64) -> Result<Caller, Unwelcome> {
        match bearer.expires_s {
            Some(expires_s) if expires_s <= now_s => {
                Err(Unwelcome::of(Denied::Expired { ago_s: now_s - expires_s }, &bearer))
            }
            _ if self.auth.revocations.has(&bearer) => Err(Unwelcome::of(Denied::Revoked, &bearer)),
            _ => Ok(bearer),
        }
    }

    /// Whoever asks for a ticket: with a token in `Authorization`.
    ///
    /// # Errors
    /// [`Unwelcome`]
    pub fn asks_for_ticket(
        &self,
        request: &Request<'_>,
        query: Query<'_>,
        now_s: u64,
    ) -> Result<(Caller, TokenKey), Unwelcome> {
        let token = match self.carried(request, query)? {
            Carried::Token(Carrier::Authorization, token) => token,
            Carried::Token(..) | Carried::Ticket(_) => return Err(Denied::NoTicketForThis.into()),
            Carried::Nothing => return Err(Denied::NoToken.into()),
        };
        check_length(&token)?;
        let digest = Sha256::digest(&*token).into();
        if self.known().rules.policy.api_key(&digest).is_some() {
            return Err(Denied::NoTicketForThis.into());
        }
        self.verify_jwt(&token, digest, now_s)
    }

    /// Whether a bearer may do this to a channel.
    pub fn may(&self, bearer: &Bearer, act: Act, name: &Name) -> bool {
        self.auth.may(bearer, act, name)
    }

    /// Whether a bearer may do this to all of the channels. That they may not is told of in the log.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn permit(&self, bearer: &Bearer, act: Act, names: &[Name], peer: Peer) -> Result<(), Denied> {
        match names.iter().find(|name| !self.may(bearer, act, name)) {
            None => Ok(()),
            Some(name) => {
                let denied = refusal(bearer, act);
                note(denied, peer, Some(bearer), Some(name));
                Err(denied)
            }
        }
    }

    /// Whether a held connection may do this to a channel: by its bearer, as long as that lasts.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn permit_conn(&self, state: &State, conn: ConnId, act: Act, name: &Name) -> Result<(), Denied> {
        match self.bearer_of(state, conn)? {
            Some((bearer, peer)) => self
                .permit(&bearer, act, std::slice::from_ref(name), peer)
                .inspect_err(|denied| state.stats().refuse(denied.counted())),
            None => Ok(()),
        }
    }

    /// Looks once more at one who was let in when their request began, and is held only now: a walk for a revocation, or for
    /// rules that were loaded anew, may have gone by meanwhile.
    pub fn recheck(&self, state: &mut State, conn: ConnId) {
        self.auth.revocations.recheck(state, conn);
        if !self.is_open && state.conn(conn).is_some_and(|entry| has_no_token(entry.bearer.as_deref())) {
            reconsider(&self.known().rules, &self.auth, state, conn);
        }
    }

    /// Whom a held connection is of, by the rules that hold now, and from where; `None`: no authentication is configured.
    ///
    /// # Errors
    /// [`Denied`]: nobody is known, or no longer.
    pub fn bearer_of(&self, state: &State, conn: ConnId) -> Result<Option<(Caller, Peer)>, Denied> {
        if self.is_open {
            return Ok(None);
        }
        let entry = state.conn(conn).ok_or(Denied::NoToken)?;
        let now_s = state.node.clock.now_ms() / 1_000;
        let denied = match &entry.bearer {
            None => Denied::NoToken,
            Some(bearer) => match bearer.expires_s {
                Some(expires_s) if expires_s <= now_s => Denied::Expired { ago_s: now_s - expires_s },
                Some(_) => return Ok(Some((bearer.clone(), entry.peer))),
                None => match self.known().rules.now(bearer) {
                    Some(bearer) => return Ok(Some((bearer, entry.peer))),
                    None => Denied::Revoked,
                },
            },
        };
        note(denied, entry.peer, entry.bearer.as_deref(), None);
        state.stats().refuse(denied.counted());
        Err(denied)
    }

    /// What a request carries: the first that is there decides, good or bad.
    fn carried<'r>(&self, request: &Request<'r>, query: Query<'r>) -> Result<Carried<'r>, Denied> {
        let mut values = request.fields.all("authorization");
        if let Some(value) = values.next() {
            if values.next().is_some() {
                return Err(Denied::Repeated(Carrier::Authorization));
            }
            match fields::authorization(value) {
                Authorization::Bearer(token) => {
                    return Ok(Carried::Token(Carrier::Authorization, token.into()));
                }
                Authorization::BearerMalformed => return Err(Denied::Unreadable(Carrier::Authorization)),
                // Of a proxy before this server, most likely.
                Authorization::OtherScheme => {}
            }
        }
        if let Some(ticket) = of_query(query, "ticket", Carrier::Ticket)? {
            return Ok(Carried::Ticket(ticket));
        }
        if let Some(token) = of_query(query, "token", Carrier::Query)? {
            return Ok(Carried::Token(Carrier::Query, token));
        }
        let known = self.known();
        match fields::cookie(request.fields.all("cookie"), known.rules.policy.cookie().as_bytes()) {
            Err(Several) => Err(Denied::Repeated(Carrier::Cookie)),
            // A cookie that is empty was taken away.
            Ok(None | Some([])) => Ok(Carried::Nothing),
            Ok(Some(value)) => match std::str::from_utf8(value) {
                Ok(token) => Ok(Carried::Token(Carrier::Cookie, token.into())),
                Err(_) => Err(Denied::Unreadable(Carrier::Cookie)),
            },
        }
    }

    /// What is known under the policy that holds now.
    fn known(&self) -> RefMut<'_, Known> {
        let mut known = self.known.borrow_mut();
        let policy = self.auth.policy();
        if !Arc::ptr_eq(&known.rules.policy, &policy) {
            *known = Known::new(&policy, &self.tally);
        }
        known
    }
}

impl Known {
    fn new(policy: &Arc<Policy>, tally: &Tally) -> Self {
        Self { rules: Rules::new(policy, tally), bearers: HashMap::default(), bytes: 0 }
    }

    fn of(&self, digest: &[u8; 32]) -> Option<(Caller, TokenKey)> {
        self.bearers.get(digest).cloned()
    }

    fn remember(&mut self, bearer: Caller, key: TokenKey, bytes_max: usize) {
        let bytes = bearer.claims().bytes();
        if self.bearers.len() >= BEARERS_MAX || self.bytes + bytes > bytes_max {
            self.forget();
        }
        self.bytes += bytes;
        self.bearers.insert(bearer.digest, (bearer, key));
    }

    fn forget(&mut self) {
        self.bearers = HashMap::default();
        self.bytes = 0;
    }
}

fn check_length(token: &str) -> Result<(), Denied> {
    let bytes = token.len();
    if bytes > TOKEN_BYTES_MAX { Err(Denied::TooLong { bytes }) } else { Ok(()) }
}

/// A credential in the query. One that cannot be decoded is there, and bad.
fn of_query<'q>(query: Query<'q>, key: &str, carrier: Carrier) -> Result<Option<Cow<'q, str>>, Denied> {
    if query.is_empty() {
        return Ok(None);
    }
    query.get(key).map_err(|error| match error {
        HttpError::ParameterRepeated => Denied::Repeated(carrier),
        _ => Denied::Unreadable(carrier),
    })
}

/// Why a bearer may not do something: a stranger is to say who they are first.
pub fn refusal(bearer: &Bearer, act: Act) -> Denied {
    match bearer.proof {
        Proof::None => Denied::NoToken,
        Proof::Token | Proof::ApiKey => Denied::Forbidden(act),
    }
}

/// Whether it is the configuration that lets somebody in.
fn has_no_token(bearer: Option<&Bearer>) -> bool {
    bearer.is_some_and(|bearer| bearer.proof != Proof::Token)
}

/// Tells the log who was refused what, and exactly why.
pub fn note(denied: Denied, peer: Peer, bearer: Option<&Bearer>, channel: Option<&Name>) {
    let subject = bearer.and_then(|bearer| bearer.subject.as_deref());
    let token_id = bearer.and_then(|bearer| bearer.token_id.as_deref());
    tell(denied, peer, subject, token_id, channel);
}

/// The same of somebody who was not let in.
pub fn note_unwelcome(unwelcome: &Unwelcome, peer: Peer) {
    tell(unwelcome.denied, peer, unwelcome.subject(), unwelcome.token_id(), None);
}

fn tell(denied: Denied, peer: Peer, subject: Option<&str>, token_id: Option<&str>, channel: Option<&Name>) {
    let channel = channel.map(Name::as_str);
    tracing::debug!(%peer, subject, token_id, channel, code = denied.as_str(), why = %denied, "refused");
}

/// The same of a request that was refused for where it came from, before it was asked who sent it.
pub fn note_barred(barred: Barred, peer: Peer) {
    tracing::debug!(%peer, code = barred.as_str(), why = barred.detail(), "refused");
}

/// A held connection was refused: whoever watches it hears exactly why.
pub fn trace_conn(state: &State, conn: ConnId, denied: Denied) {
    if state.is_traced() && state.conn(conn).is_some() {
        state.trace_conn(conn.slot, || What::Denied { why: denied.why().into() });
    }
}

/// The answer to a request that was refused.
pub fn answer(denied: Denied) -> Answer {
    Answer::problem(denied.status(), denied.detail()).field("WWW-Authenticate", denied.challenge())
}
