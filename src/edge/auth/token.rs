//! One JWT (RFC 7519, RFC 7515), from its text to the bearer that it stands for.
//! Owns the form of tokens, which key may check which, and the claims. Signatures are a library's. The clock is an
//! argument. A token that any two readers could read in two ways is refused.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, crypto};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::domain::auth::{Act, Bearer, Grants, Proof, pattern_for};
use crate::domain::channel::Pattern;

use super::denied::{Claim, Denied};
use super::key::TokenKey;
use super::policy::{Policy, Verified};
use super::unwelcome::{Signed, Unwelcome};

/// The longest token that is looked at: half of what a head may have.
pub const TOKEN_BYTES_MAX: usize = 8 * 1_024;

/// A signer's clock may be ahead by so much at least, or by `auth.leeway_seconds` if that is more.
const AHEAD_S_MAX: u64 = 60;

/// A JOSE header (RFC 7515 §4). A member that stands twice is refused by serde.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    #[serde(default)]
    crit: Present,
}

/// Whether a member is there, be it `null`.
#[derive(Default)]
struct Present(bool);

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self(true))
    }
}

/// The claims that are looked at; others are for others (RFC 7519 §4).
#[derive(Deserialize)]
struct Claims {
    sub: Option<Value>,
    exp: Option<Value>,
    nbf: Option<Value>,
    iat: Option<Value>,
    jti: Option<Value>,
    aud: Option<Value>,
    iss: Option<Value>,
    subscribe: Option<Value>,
    publish: Option<Value>,
    delete: Option<Value>,
}

pub fn verify(policy: &Policy, token: &str, now_s: u64) -> Result<Verified, Unwelcome> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Denied::TooLong { bytes: token.len() }.into());
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Denied::NoJwt.into());
    };
    let header: Header = object(header).ok_or(Denied::Header)?;
    if header.crit.0 {
        return Err(Denied::Critical.into());
    }
    let message_bytes = token.len() - signature.len() - 1;
    let message = token.as_bytes().get(..message_bytes).unwrap_or_default();
    let algorithm = algorithm(&header.alg).ok_or(Denied::Algorithm)?;
    let key = keys_for(policy, header.kid.as_deref(), algorithm)?
        .find(|key| crypto::verify(signature, message, &key.decoding, algorithm).is_ok_and(|good| good))
        .ok_or(Denied::Signature)?;
    let claims: Claims = object(payload).ok_or(Denied::Claims)?;
    let who = signed(&claims);
    match bearer(policy, claims, Sha256::digest(token).into(), now_s) {
        Ok(bearer) => Ok(Verified { bearer, key: key.fingerprint }),
        Err(denied) => Err(Unwelcome { denied, who: Some(Box::new(who)) }),
    }
}

/// Who holds a token, whatever is wrong with its other claims.
fn signed(claims: &Claims) -> Signed {
    let text = |value: &Option<Value>| value.as_ref().and_then(Value::as_str).map(Into::into);
    Signed { subject: text(&claims.sub), token_id: text(&claims.jti) }
}

/// The JSON object in a part of a token.
fn object<T: for<'de> Deserialize<'de>>(part: &str) -> Option<T> {
    let json = URL_SAFE_NO_PAD.decode(part).ok()?;
    // serde would read the members from an array too.
    let is_object = json.trim_ascii_start().starts_with(b"{");
    is_object.then(|| serde_json::from_slice(&json).ok()).flatten()
}

/// The algorithms that are taken. `none` (RFC 7518 §3.6) is not among them.
fn algorithm(name: &str) -> Option<Algorithm> {
    match name {
        "HS256" => Some(Algorithm::HS256),
        "RS256" => Some(Algorithm::RS256),
        "ES256" => Some(Algorithm::ES256),
        "EdDSA" => Some(Algorithm::EdDSA),
        _ => None,
    }
}

/// The keys that a token may be checked with: those that its `kid` names, or, when none does, those without one; without
/// `kid` all. Of them only those for its algorithm, so that a public key is never taken for a secret (RFC 8725 §3.1).
fn keys_for<'p>(
    policy: &'p Policy,
    kid: Option<&str>,
    algorithm: Algorithm,
) -> Result<impl Iterator<Item = &'p TokenKey>, Denied> {
    let by_kid = |wanted: Option<&str>| {
        policy.keys.iter().filter(|key| key.kid.as_deref() == wanted).collect::<Vec<_>>()
    };
    let named = match kid {
        None => policy.keys.iter().collect(),
        Some(kid) => match by_kid(Some(kid)) {
            none if none.is_empty() => by_kid(None),
            some => some,
        },
    };
    if named.is_empty() {
        return Err(if kid.is_some() { Denied::KeyUnknown } else { Denied::Algorithm });
    }
    let mut fitting = named.into_iter().filter(move |key| key.algorithm == algorithm).peekable();
    if fitting.peek().is_none() {
        return Err(if kid.is_some() { Denied::KeyAlgorithm } else { Denied::Algorithm });
    }
    Ok(fitting)
}

fn bearer(policy: &Policy, claims: Claims, digest: [u8; 32], now_s: u64) -> Result<Bearer, Denied> {
    let Claims { sub, exp, nbf, iat, jti, aud, iss, subscribe, publish, delete } = claims;
    let expires_s = date(exp, Claim::Expiry)?.ok_or(Denied::ClaimMissing(Claim::Expiry))?;
    // From when it was issued, if it says so: else one that is refused for its length would be good some day, when the
    // revocations of its time are forgotten.
    let issued_s = issued(date(iat, Claim::Issued)?, policy.leeway_s, now_s)?;
    let lives_s = expires_s.saturating_sub(issued_s.unwrap_or(now_s).min(now_s));
    let expires_s = expires_s.saturating_add(policy.leeway_s);
    if expires_s <= now_s {
        return Err(Denied::Expired { ago_s: now_s - expires_s });
    }
    if lives_s > policy.lifetime_s_max {
        return Err(Denied::LivesTooLong { seconds: lives_s, seconds_max: policy.lifetime_s_max });
    }
    if let Some(begins_s) = date(nbf, Claim::NotBefore)?
        && begins_s > now_s.saturating_add(policy.leeway_s)
    {
        return Err(Denied::NotYet { in_s: begins_s - now_s });
    }
    is_for(aud, &policy.audience, Claim::Audience, Denied::Audience)?;
    is_for(iss, &policy.issuer, Claim::Issuer, Denied::Issuer)?;
    let subject = text(sub, Claim::Subject)?.ok_or(Denied::ClaimMissing(Claim::Subject))?;
    if subject.is_empty() {
        return Err(Denied::ClaimType(Claim::Subject));
    }
    let grants = Grants {
        subscribe: patterns(subscribe, Act::Subscribe, &subject)?,
        publish: patterns(publish, Act::Publish, &subject)?,
        delete: patterns(delete, Act::Delete, &subject)?,
    };
    Ok(Bearer {
        proof: Proof::Token,
        subject: Some(subject),
        token_id: text(jti, Claim::Id)?,
        issued_s,
        expires_s: Some(expires_s),
        digest,
        grants,
    })
}

/// When a token was issued: no later than the next second, whatever the signer's clock says, or a revocation a while after its
/// first use would take it for a newer one. (The next second: so a token is made that is newer than a revocation of now.)
fn issued(iat_s: Option<u64>, leeway_s: u64, now_s: u64) -> Result<Option<u64>, Denied> {
    match iat_s {
        Some(iat_s) if iat_s > now_s.saturating_add(leeway_s.max(AHEAD_S_MAX)) => {
            Err(Denied::IssuedAhead { by_s: iat_s - now_s })
        }
        iat_s => Ok(iat_s.map(|iat_s| iat_s.min(now_s + 1))),
    }
}

/// Seconds since 1970, which may have a fraction (RFC 7519 §2, NumericDate). Before 1970 is 0: long ago.
fn date(value: Option<Value>, claim: Claim) -> Result<Option<u64>, Denied> {
    let Some(value) = value else { return Ok(None) };
    let seconds = value.as_u64().or_else(|| value.as_f64().map(|seconds| seconds as u64));
    seconds.map(Some).ok_or(Denied::ClaimType(claim))
}

fn text(value: Option<Value>, claim: Claim) -> Result<Option<Box<str>>, Denied> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.into())),
        Some(_) => Err(Denied::ClaimType(claim)),
    }
}

/// Whether a claim names one of those that are asked for; where none is, whatever it names. Only `aud` may be a list.
fn is_for(value: Option<Value>, wanted: &[String], claim: Claim, otherwise: Denied) -> Result<(), Denied> {
    let names = match value {
        None => Vec::new(),
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) if claim == Claim::Audience => names
            .into_iter()
            .map(|name| match name {
                Value::String(name) => Ok(name),
                _ => Err(Denied::ClaimType(claim)),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(Denied::ClaimType(claim)),
    };
    if wanted.is_empty() || names.iter().any(|name| wanted.contains(name)) { Ok(()) } else { Err(otherwise) }
}

fn patterns(value: Option<Value>, act: Act, subject: &str) -> Result<Vec<Pattern>, Denied> {
    let wrong = Denied::ClaimType(Claim::Grants(act));
    let Some(value) = value else { return Ok(Vec::new()) };
    let mut patterns = Vec::new();
    for (at, pattern) in value.as_array().ok_or(wrong)?.iter().enumerate() {
        let pattern = pattern.as_str().ok_or(wrong)?;
        let read = pattern_for(pattern, Some(subject)).map_err(|error| Denied::Pattern { act, at, error })?;
        patterns.extend(read);
    }
    Ok(patterns)
}

#[cfg(test)]
mod tests;
