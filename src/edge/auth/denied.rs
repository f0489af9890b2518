//! Why someone is not let in, or may not do what they ask: one closed list, for answers, close frames, `error` objects,
//! logs and counters alike.
//! Owns the words: just enough for the client, exact for the operator. Neither ever has a token, nor a part of one.

use std::fmt;

use crate::domain::auth::Act;
use crate::domain::channel::NameError;
use crate::proto::refusal::{ErrorCode, Refusal};
use crate::runtime::close::Reason;
use crate::runtime::stats::Refusal as Counted;

use super::ticket::UNUSED_S_MAX;
use super::token::TOKEN_BYTES_MAX;

/// How a token came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    Authorization,
    Ticket,
    Query,
    Cookie,
}

impl Carrier {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Authorization => "authorization",
            Self::Ticket => "ticket",
            Self::Query => "query",
            Self::Cookie => "cookie",
        }
    }
}

/// A claim that is looked at (RFC 7519 §4.1, docs/authentication.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Subject,
    Expiry,
    NotBefore,
    Issued,
    Id,
    Audience,
    Issuer,
    Grants(Act),
}

impl Claim {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Subject => "sub",
            Self::Expiry => "exp",
            Self::NotBefore => "nbf",
            Self::Issued => "iat",
            Self::Id => "jti",
            Self::Audience => "aud",
            Self::Issuer => "iss",
            Self::Grants(act) => act.as_str(),
        }
    }
}

/// Why someone is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// They did not say who they are, and strangers may not do this.
    NoToken,
    /// Two of the same kind: which one counts could be read two ways.
    Repeated(Carrier),
    /// What the carrier holds has not the form of a token (RFC 6750 §2.1).
    Unreadable(Carrier),
    TooLong {
        bytes: usize,
    },
    /// Neither a JWT (RFC 7519 §3) nor an API key that is known.
    NoJwt,
    /// The header of a JWT is no JSON object with `alg`.
    Header,
    /// The header names extensions that must be understood (RFC 7515 §4.1.11); none is.
    Critical,
    /// `alg` is none that any key has; `none` among them.
    Algorithm,
    /// No key has the token's `kid`.
    KeyUnknown,
    /// The key that `kid` names has another algorithm.
    KeyAlgorithm,
    Signature,
    /// The claims are no JSON object, or have one twice.
    Claims,
    /// A claim is of the wrong type.
    ClaimType(Claim),
    /// A claim that must be there is not.
    ClaimMissing(Claim),
    Expired {
        ago_s: u64,
    },
    NotYet {
        in_s: u64,
    },
    /// By a clock that is ahead of this machine's by more than may be.
    IssuedAhead {
        by_s: u64,
    },
    /// It would live longer than `auth.lifetime_seconds_max`.
    LivesTooLong {
        seconds: u64,
        seconds_max: u64,
    },
    Audience,
    Issuer,
    /// A pattern of the token is none: the `at`th (from 0) of the claim for this act.
    Pattern {
        act: Act,
        at: usize,
        error: NameError,
    },
    /// Never given, forgotten, or over with its token.
    TicketUnknown,
    /// Not used in time.
    TicketLate,
    /// Used first by a client of another address.
    TicketElsewhere,
    /// An API key does not end, and so is not for browsers; nor does a ticket give another.
    NoTicketForThis,
    /// An operator took it back.
    Revoked,
    /// Renewed by the token of someone else.
    OtherSubject,
    /// Renewed by another request, and opened without a token.
    WithoutToken,
    /// The token is good, but not for this act on this channel.
    Forbidden(Act),
}

impl Denied {
    pub const fn status(self) -> u16 {
        match self {
            Self::Repeated(_) => 400,
            Self::Forbidden(_) | Self::OtherSubject | Self::WithoutToken | Self::NoTicketForThis => 403,
            _ => 401,
        }
    }

    /// What it counts as.
    pub const fn counted(self) -> Counted {
        match self.status() {
            403 => Counted::Forbidden,
            _ => Counted::Unauthenticated,
        }
    }

    /// For logs and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Repeated(_) => "repeated",
            Self::Unreadable(_) => "unreadable",
            Self::TooLong { .. } => "too_long",
            Self::NoJwt => "no_jwt",
            Self::Header => "header",
            Self::Critical => "critical",
            Self::Algorithm => "algorithm",
            Self::KeyUnknown => "key_unknown",
            Self::KeyAlgorithm => "key_algorithm",
            Self::Signature => "signature",
            Self::Claims => "claims",
            Self::ClaimType(_) => "claim_type",
            Self::ClaimMissing(_) => "claim_missing",
            Self::Expired { .. } => "expired",
            Self::NotYet { .. } => "not_yet",
            Self::IssuedAhead { .. } => "issued_ahead",
            Self::LivesTooLong { .. } => "lives_too_long",
            Self::Audience => "audience",
            Self::Issuer => "issuer",
            Self::Pattern { .. } => "pattern",
            Self::TicketUnknown => "ticket_unknown",
            Self::TicketLate => "ticket_late",
            Self::TicketElsewhere => "ticket_elsewhere",
            Self::NoTicketForThis => "no_ticket_for_this",
            Self::Revoked => "revoked",
            Self::OtherSubject => "other_subject",
            Self::WithoutToken => "without_token",
            Self::Forbidden(_) => "forbidden",
        }
    }

    /// What the client hears. What only who holds a key could know is told only of tokens that were signed with one.
    /// Without quotes and backslashes: it stands in `WWW-Authenticate` too.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::NoToken => {
                "this needs a token that permits it; send one as Authorization: Bearer TOKEN, as ?ticket=, ?token= or \
                 the cookie"
            }
            Self::Repeated(_) => "a token or ticket stands twice in the request; send one",
            Self::Unreadable(_) | Self::NoJwt => {
                "what was sent as a token is none that this server takes; send a JWT, or an API key as Authorization: \
                 Bearer KEY"
            }
            Self::TooLong { .. } => {
                "the token is longer than 8 KiB; grant patterns instead of single channels"
            }
            Self::Header
            | Self::Critical
            | Self::Algorithm
            | Self::KeyUnknown
            | Self::KeyAlgorithm
            | Self::Signature => "the token is not valid here; get a new one from whoever gave you this one",
            Self::Claims => "the token's claims are not one JSON object, each claim once",
            Self::ClaimType(claim) => match claim {
                Claim::Subject => "the token's sub must be a string of at least one character",
                Claim::Expiry => "the token's exp must be a number of seconds since 1970",
                Claim::NotBefore => "the token's nbf must be a number of seconds since 1970",
                Claim::Issued => "the token's iat must be a number of seconds since 1970",
                Claim::Id => "the token's jti must be a string",
                Claim::Audience => "the token's aud must be a string or a list of strings",
                Claim::Issuer => "the token's iss must be a string",
                Claim::Grants(Act::Subscribe) => "the token's subscribe must be a list of channel patterns",
                Claim::Grants(Act::Publish) => "the token's publish must be a list of channel patterns",
                Claim::Grants(Act::Delete) => "the token's delete must be a list of channel patterns",
            },
            Self::ClaimMissing(Claim::Expiry) => {
                "the token has no exp; only tokens that end are taken: give it one, in seconds since 1970"
            }
            Self::ClaimMissing(Claim::Subject) => "the token has no sub; give it one, which names its holder",
            Self::ClaimMissing(_) => "the token lacks a claim that this server asks for",
            Self::Expired { .. } => "the token has expired; get a new one",
            Self::NotYet { .. } => "the token is not valid yet (nbf); use it later",
            Self::IssuedAhead { .. } => {
                "the token's iat is in the future; the clocks of whoever makes tokens and of this server differ"
            }
            Self::LivesTooLong { .. } => {
                "the token lives longer than this server takes (auth.lifetime_seconds_max); get one that ends sooner"
            }
            Self::Audience => "the token is for another audience (aud)",
            Self::Issuer => "the token is of an issuer (iss) that this server does not take tokens of",
            Self::Pattern { act: Act::Subscribe, .. } => {
                "the token's subscribe has an entry that is no channel pattern; whoever makes tokens must correct it"
            }
            Self::Pattern { act: Act::Publish, .. } => {
                "the token's publish has an entry that is no channel pattern; whoever makes tokens must correct it"
            }
            Self::Pattern { act: Act::Delete, .. } => {
                "the token's delete has an entry that is no channel pattern; whoever makes tokens must correct it"
            }
            Self::TicketUnknown | Self::TicketElsewhere => {
                "the ticket is not valid, or no longer; ask for another with POST /tickets"
            }
            Self::TicketLate => {
                "the ticket was not used within 30 seconds; ask for another with POST /tickets, and use it at once"
            }
            Self::NoTicketForThis => {
                "a ticket is given for a token that ends, sent as Authorization: Bearer TOKEN; an API key or another \
                 carrier gives none"
            }
            Self::Revoked => "the token was revoked; get a new one",
            Self::OtherSubject => {
                "the token is of another subject than the connection; open a new one with it"
            }
            Self::WithoutToken => {
                "the connection was opened without a token, so there is none to renew; open a new one with the token"
            }
            Self::Forbidden(Act::Subscribe) => "the token does not permit to subscribe to this channel",
            Self::Forbidden(Act::Publish) => "the token does not permit to publish to this channel",
            Self::Forbidden(Act::Delete) => "the token does not permit to delete the history of this channel",
        }
    }

    /// What the operator is told: exactly what was wrong.
    pub fn why(self) -> String {
        self.to_string()
    }

    /// `WWW-Authenticate` (RFC 6750 §3).
    pub fn challenge(self) -> String {
        let error = match (self, self.status()) {
            // Nothing was sent, so nothing was wrong with it (§3.1).
            (Self::NoToken, _) => return r#"Bearer realm="pushline""#.into(),
            (_, 400) => "invalid_request",
            (_, 403) => "insufficient_scope",
            _ => "invalid_token",
        };
        format!(r#"Bearer realm="pushline", error="{error}", error_description="{}""#, self.detail())
    }

    /// Why a connection ends that asked for this.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Expired { .. } => Reason::Expired,
            Self::Revoked => Reason::Revoked,
            Self::Forbidden(_) | Self::OtherSubject | Self::WithoutToken | Self::NoTicketForThis => {
                Reason::Forbidden
            }
            _ => Reason::Unauthenticated,
        }
    }

    /// What a `pushline.v1` client, or a line of a batch, is told.
    pub const fn refusal(self) -> Refusal {
        let code = match self.status() {
            403 => ErrorCode::Forbidden,
            _ => ErrorCode::Unauthorized,
        };
        Refusal::new(code, self.detail())
    }
}

/// Why an operation of a `pushline.v1` client, or a line of a batch, was not done: what its sender hears and, of one who
/// may not do it, why exactly.
#[derive(Debug, Clone, Copy)]
pub struct Declined {
    pub refusal: Refusal,
    denied: Option<Denied>,
}

impl Declined {
    /// What whoever watches is told.
    pub fn why(self) -> Box<str> {
        self.denied.map_or_else(|| self.refusal.detail.into(), |denied| denied.why().into())
    }
}

impl From<Refusal> for Declined {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, denied: None }
    }
}

impl From<Denied> for Declined {
    fn from(denied: Denied) -> Self {
        Self { refusal: denied.refusal(), denied: Some(denied) }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoToken => f.write_str("no token, and auth.anonymous does not permit it"),
            Self::Repeated(carrier) => write!(f, "more than one token or ticket in {}", carrier.as_str()),
            Self::Unreadable(carrier) => {
                write!(f, "what came in {} has not the form of a token", carrier.as_str())
            }
            Self::TooLong { bytes } => write!(f, "a token of {bytes} bytes, over {TOKEN_BYTES_MAX}"),
            Self::NoJwt => f.write_str("neither a JWT nor a known API key"),
            Self::Header => f.write_str("the JWT's header is no JSON object with alg"),
            Self::Critical => f.write_str("the JWT's header has crit: an extension that is not understood"),
            Self::Algorithm => f.write_str("the JWT's alg is that of no configured key"),
            Self::KeyUnknown => f.write_str("no configured key has the JWT's kid"),
            Self::KeyAlgorithm => f.write_str("the key that the JWT's kid names is for another alg"),
            Self::Signature => f.write_str("the JWT's signature is wrong"),
            Self::Claims => f.write_str("the JWT's claims are no JSON object, or one stands twice"),
            Self::ClaimType(claim) => write!(f, "the JWT's {} is of the wrong type", claim.as_str()),
            Self::ClaimMissing(claim) => write!(f, "the JWT has no {}", claim.as_str()),
            Self::Expired { ago_s } => write!(f, "the token expired {ago_s} s ago"),
            Self::NotYet { in_s } => write!(f, "the JWT's nbf is {in_s} s from now"),
            Self::IssuedAhead { by_s } => {
                write!(
                    f,
                    "the JWT's iat is {by_s} s from now: set the signer's clock, or auth.leeway_seconds"
                )
            }
            Self::LivesTooLong { seconds, seconds_max } => {
                write!(f, "the JWT lives {seconds} s, auth.lifetime_seconds_max permits {seconds_max} s")
            }
            Self::Audience => f.write_str("the JWT's aud has none of auth.audience"),
            Self::Issuer => f.write_str("the JWT's iss is none of auth.issuer"),
            Self::Pattern { act, at, error } => {
                write!(f, "the JWT's {}[{at}] is no channel pattern: {error}", act.as_str())
            }
            Self::TicketUnknown => {
                f.write_str("the ticket was never given here, is forgotten, or its token is over")
            }
            Self::TicketLate => write!(f, "the ticket was not used within {UNUSED_S_MAX} s"),
            Self::TicketElsewhere => f.write_str("the ticket was used first from another client address"),
            Self::NoTicketForThis => {
                f.write_str("a ticket was asked for with something else than a JWT in authorization")
            }
            Self::Revoked => f.write_str("revoked over the admin API"),
            Self::OtherSubject => f.write_str("a connection is renewed only for the sub that it has"),
            Self::WithoutToken => {
                f.write_str("only a connection that was opened with a token is renewed by another request")
            }
            Self::Forbidden(act) => write!(f, "the token does not cover {} on that channel", act.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Denied; 36] = [
        Denied::NoToken,
        Denied::Repeated(Carrier::Query),
        Denied::Unreadable(Carrier::Cookie),
        Denied::TooLong { bytes: 9_000 },
        Denied::NoJwt,
        Denied::Header,
        Denied::Critical,
        Denied::Algorithm,
        Denied::KeyUnknown,
        Denied::KeyAlgorithm,
        Denied::Signature,
        Denied::Claims,
        Denied::ClaimType(Claim::Subject),
        Denied::ClaimType(Claim::Expiry),
        Denied::ClaimType(Claim::Audience),
        Denied::ClaimType(Claim::Grants(Act::Delete)),
        Denied::ClaimMissing(Claim::Expiry),
        Denied::ClaimMissing(Claim::Subject),
        Denied::ClaimMissing(Claim::Audience),
        Denied::Expired { ago_s: 3 },
        Denied::NotYet { in_s: 3 },
        Denied::IssuedAhead { by_s: 3 },
        Denied::LivesTooLong { seconds: 9, seconds_max: 3 },
        Denied::Audience,
        Denied::Issuer,
        Denied::Pattern { act: Act::Subscribe, at: 1, error: NameError::Empty },
        Denied::TicketUnknown,
        Denied::TicketLate,
        Denied::TicketElsewhere,
        Denied::NoTicketForThis,
        Denied::Revoked,
        Denied::OtherSubject,
        Denied::WithoutToken,
        Denied::Forbidden(Act::Subscribe),
        Denied::Forbidden(Act::Publish),
        Denied::Forbidden(Act::Delete),
    ];

    #[test]
    fn each_has_words_that_fit_where_they_stand() {
        for denied in ALL {
            let detail = denied.detail();
            // RFC 6750 §3: what error_description may hold.
            let fits = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
            assert!(detail.len() > 20 && detail.bytes().all(fits), "{denied:?}: {detail}");
            assert!(!denied.why().is_empty() && denied.challenge().starts_with("Bearer "), "{denied:?}");
            assert!([400, 401, 403].contains(&denied.status()));
            assert!(denied.reason().close_code() >= 4401, "{denied:?}");
        }
        assert!(Denied::TicketLate.detail().contains(&format!("{UNUSED_S_MAX} seconds")));
        assert!(Denied::TooLong { bytes: 1 }.detail().contains(&format!("{} KiB", TOKEN_BYTES_MAX / 1_024)));
    }

    #[test]
    fn what_is_wrong_with_an_unsigned_token_is_no_clients_to_know() {
        let said = Denied::Signature.detail();
        for denied in
            [Denied::Header, Denied::Critical, Denied::Algorithm, Denied::KeyUnknown, Denied::KeyAlgorithm]
        {
            assert_eq!(denied.detail(), said);
        }
        assert_eq!(Denied::TicketUnknown.detail(), Denied::TicketElsewhere.detail());
    }
}
