//! Who a request is of, for one worker: finds the token among its carriers, of which the first counts, has it verified, and
//! says what its bearer may do.
//! Owns the carriers, and the memory of bearers that were verified before. Which token is good is `auth`'s to say. A token
//! goes from here to nowhere: what is logged is who came, and why they were refused.

use std::borrow::Cow;
use std::cell::{RefCell, RefMut};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use foldhash::fast::RandomState;
use sha2::{Digest, Sha256};

use crate::domain::auth::{Act, Bearer, Grants, Proof};
use crate::domain::channel::Name;
use crate::proto::http::error::HttpError;
use crate::proto::http::fields::{self, Authorization, Several};
use crate::proto::http::request::Request;
use crate::proto::http::target::Query;
use crate::runtime::entry::ConnId;
use crate::runtime::peer::Peer;
use crate::runtime::state::State;
use crate::runtime::trace::What;

use super::answer::Answer;
use super::auth::{Asked, Auth, Carrier, Denied, Policy, TOKEN_BYTES_MAX, TicketUse};
use super::origin::Barred;

/// Bearers remembered by one worker, and the memory they take; beyond either all are forgotten. A token that is not
/// remembered costs the check of its signature again.
const BEARERS_MAX: usize = 8_192;
const BEARERS_BYTES_MAX: usize = 8 << 20;
/// Memory of a bearer beside its texts, and of a pattern.
const BEARER_BYTES: usize = 256;
const PATTERN_BYTES: usize = 96;

/// Parameters of a query that say who asks, not what for.
pub const CREDENTIALS: [&str; 2] = ["ticket", "token"];

/// Lets the requests of one worker in, or not.
pub struct Doorman {
    auth: Arc<Auth>,
    /// No authentication is configured: anyone may do everything.
    is_open: bool,
    everyone: Rc<Bearer>,
    known: RefCell<Known>,
}

/// Someone who was let in.
#[derive(Debug, Clone)]
pub struct Admitted {
    pub bearer: Rc<Bearer>,
    /// They came by a ticket: a stream that is opened with it ends the one before.
    pub ticket: Option<TicketUse>,
}

/// Who was verified before, by the policy that holds.
struct Known {
    policy: Arc<Policy>,
    strangers: Rc<Bearer>,
    /// In the order of the policy's API keys.
    publishers: Vec<Rc<Bearer>>,
    /// By the SHA-256 of their tokens.
    bearers: HashMap<[u8; 32], Rc<Bearer>, RandomState>,
    bytes: usize,
}

/// What a request says of who sent it.
enum Carried<'r> {
    Nothing,
    Token(Carrier, Cow<'r, str>),
    Ticket(Cow<'r, str>),
}

impl Doorman {
    pub fn new(auth: &Arc<Auth>, is_open: bool) -> Self {
        Self {
            auth: Arc::clone(auth),
            is_open,
            everyone: Rc::new(nobody(Grants::all())),
            known: RefCell::new(Known::new(&auth.policy())),
        }
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
    /// [`Denied`]
    pub fn admit(
        &self,
        request: &Request<'_>,
        query: Query<'_>,
        peer: Peer,
        now_s: u64,
    ) -> Result<Admitted, Denied> {
        if self.is_open {
            return Ok(Admitted { bearer: Rc::clone(&self.everyone), ticket: None });
        }
        let (bearer, ticket) = match self.carried(request, query)? {
            Carried::Nothing => (Rc::clone(&self.known().strangers), None),
            Carried::Token(Carrier::Authorization, token) => {
                (self.verify_authorization(&token, now_s)?, None)
            }
            Carried::Token(_, token) => (self.verify_token(&token, now_s)?, None),
            Carried::Ticket(ticket) => {
                let (bearer, ticket) = self.auth.tickets.use_by(&ticket, peer, now_s)?;
                (self.good(self.known().shared(&bearer), now_s)?, Some(ticket))
            }
        };
        Ok(Admitted { bearer, ticket })
    }

    /// Whom a JWT stands for.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn verify_token(&self, token: &str, now_s: u64) -> Result<Rc<Bearer>, Denied> {
        check_length(token)?;
        self.verify_jwt(token, Sha256::digest(token).into(), now_s)
    }

    /// Whom a JWT or an API key stands for.
    fn verify_authorization(&self, token: &str, now_s: u64) -> Result<Rc<Bearer>, Denied> {
        check_length(token)?;
        let digest = Sha256::digest(token).into();
        let publisher = {
            let known = self.known();
            known.policy.api_key(&digest).and_then(|at| known.publishers.get(at).cloned())
        };
        match publisher {
            Some(publisher) => self.good(publisher, now_s),
            None => self.verify_jwt(token, digest, now_s),
        }
    }

    fn verify_jwt(&self, token: &str, digest: [u8; 32], now_s: u64) -> Result<Rc<Bearer>, Denied> {
        let mut known = self.known();
        let bearer = match known.bearers.get(&digest) {
            Some(bearer) => Rc::clone(bearer),
            None => {
                let bearer = Rc::new(known.policy.verify(token, now_s)?.bearer);
                known.remember(&bearer);
                bearer
            }
        };
        drop(known);
        self.good(bearer, now_s)
    }

    /// A bearer that was verified once, if it still counts.
    fn good(&self, bearer: Rc<Bearer>, now_s: u64) -> Result<Rc<Bearer>, Denied> {
        match bearer.expires_s {
            Some(expires_s) if expires_s <= now_s => Err(Denied::Expired { ago_s: now_s - expires_s }),
            _ if self.auth.revocations.has(&bearer) => Err(Denied::Revoked),
            _ => Ok(bearer),
        }
    }

    /// A ticket for whoever sends a token in `Authorization`.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn give_ticket(
        &self,
        request: &Request<'_>,
        query: Query<'_>,
        now_s: u64,
    ) -> Result<Result<Asked, getrandom::Error>, Denied> {
        let token = match self.carried(request, query)? {
            Carried::Token(Carrier::Authorization, token) => token,
            Carried::Token(..) | Carried::Ticket(_) => return Err(Denied::NoTicketForThis),
            Carried::Nothing => return Err(Denied::NoToken),
        };
        if self.verify_authorization(&token, now_s)?.proof != Proof::Token {
            return Err(Denied::NoTicketForThis);
        }
        let verified = self.known().policy.verify(&token, now_s)?;
        Ok(self.auth.tickets.give(verified, now_s))
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
        match bearer_of(state, conn)? {
            Some((bearer, peer)) => self
                .permit(&bearer, act, std::slice::from_ref(name), peer)
                .inspect_err(|denied| state.stats().refuse(denied.counted())),
            None => Ok(()),
        }
    }

    /// Looks once more at one who was let in when their request began, and is held only now: a walk for a revocation may
    /// have gone by meanwhile.
    pub fn recheck(&self, state: &mut State, conn: ConnId) {
        self.auth.revocations.recheck(state, conn);
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
        match fields::cookie(request.fields.all("cookie"), known.policy.cookie().as_bytes()) {
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
        if !Arc::ptr_eq(&known.policy, &policy) {
            *known = Known::new(&policy);
        }
        known
    }
}

impl Known {
    fn new(policy: &Arc<Policy>) -> Self {
        Self {
            policy: Arc::clone(policy),
            strangers: Rc::new(nobody(policy.anonymous().clone())),
            publishers: policy.publishers().map(Rc::new).collect(),
            bearers: HashMap::default(),
            bytes: 0,
        }
    }

    /// The bearer of another worker's memory, as this worker's connections share it.
    fn shared(&mut self, bearer: &Arc<Bearer>) -> Rc<Bearer> {
        if let Some(known) = self.bearers.get(&bearer.digest) {
            return Rc::clone(known);
        }
        let bearer = Rc::new(Bearer::clone(bearer));
        self.remember(&bearer);
        bearer
    }

    fn remember(&mut self, bearer: &Rc<Bearer>) {
        let bytes = cost_bytes(bearer);
        if self.bearers.len() >= BEARERS_MAX || self.bytes + bytes > BEARERS_BYTES_MAX {
            self.bearers.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.bearers.insert(bearer.digest, Rc::clone(bearer));
    }
}

/// The memory that a bearer takes, nearly.
fn cost_bytes(bearer: &Bearer) -> usize {
    let Bearer { subject, token_id, grants, .. } = bearer;
    let texts = subject.iter().chain(token_id).map(|text| text.len()).sum::<usize>();
    let patterns = grants.subscribe.len() + grants.publish.len() + grants.delete.len();
    BEARER_BYTES + texts + patterns * PATTERN_BYTES
}

/// Someone who did not say who they are.
fn nobody(grants: Grants) -> Bearer {
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

/// Whom a held connection is of, and from where; `None`: no authentication is configured.
///
/// # Errors
/// [`Denied`]: nobody is known, or no longer.
pub fn bearer_of(state: &State, conn: ConnId) -> Result<Option<(Rc<Bearer>, Peer)>, Denied> {
    if !state.node.settings.auth.is_configured() {
        return Ok(None);
    }
    let entry = state.conn(conn).ok_or(Denied::NoToken)?;
    let now_s = state.node.clock.now_ms() / 1_000;
    let denied = match &entry.bearer {
        None => Denied::NoToken,
        Some(bearer) => match bearer.expires_s {
            Some(expires_s) if expires_s <= now_s => Denied::Expired { ago_s: now_s - expires_s },
            _ => return Ok(Some((Rc::clone(bearer), entry.peer))),
        },
    };
    note(denied, entry.peer, entry.bearer.as_deref(), None);
    state.stats().refuse(denied.counted());
    Err(denied)
}

/// Tells the log who was refused what, and exactly why.
pub fn note(denied: Denied, peer: Peer, bearer: Option<&Bearer>, channel: Option<&Name>) {
    tracing::debug!(
        %peer,
        subject = bearer.and_then(|bearer| bearer.subject.as_deref()),
        channel = channel.map(Name::as_str),
        code = denied.as_str(),
        why = %denied,
        "refused"
    );
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
