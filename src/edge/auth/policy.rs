//! The keys and rules that hold at one time: what a reload replaces as a whole.
//! Owns which keys a token is tried with, and the comparison of API keys. Never changes once made.

use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::domain::auth::{Bearer, Grants, Proof};
use crate::runtime::settings::{ApiKey, Authentication};

use super::key::{KeyError, TokenKey, load_jwks};
use super::token;
use super::unwelcome::Unwelcome;

/// Most keys: without `kid`, a token is tried with each of its algorithm.
const KEYS_MAX: usize = 64;

/// Keys, rules, and what a token must say.
pub struct Policy {
    pub(super) keys: Vec<TokenKey>,
    pub(super) audience: Vec<String>,
    pub(super) issuer: Vec<String>,
    pub(super) leeway_s: u64,
    pub(super) lifetime_s_max: u64,
    api_keys: Vec<ApiKey>,
    anonymous: Grants,
    cookie: String,
    left_out: Vec<String>,
}

/// A token that was found good, and the key that it was signed with.
#[derive(Debug)]
pub struct Verified {
    pub bearer: Bearer,
    pub key: [u8; 32],
}

impl Policy {
    /// Reads all files that the settings name.
    ///
    /// # Errors
    /// Every [`KeyError`] found.
    pub fn load(settings: &Authentication) -> Result<Self, Vec<KeyError>> {
        let (mut keys, mut errors, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        for (at, key) in settings.keys.iter().enumerate() {
            match TokenKey::load(at, key) {
                Ok(key) => keys.push(key),
                Err(error) => errors.push(error),
            }
        }
        if let Some(path) = &settings.jwks_file {
            match load_jwks(path) {
                Ok((of_file, others)) => {
                    keys.extend(of_file);
                    left_out = others;
                }
                Err(error) => errors.push(error),
            }
        }
        if keys.len() > KEYS_MAX {
            errors.push(KeyError::TooMany { count: keys.len(), count_max: KEYS_MAX });
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(Self {
            keys,
            audience: settings.audience.clone(),
            issuer: settings.issuer.clone(),
            // Tokens have whole seconds.
            leeway_s: settings.leeway.as_secs_f64().ceil() as u64,
            lifetime_s_max: settings.lifetime_max.as_secs_f64().ceil() as u64,
            api_keys: settings.api_keys.clone(),
            anonymous: settings.anonymous.clone().unwrap_or_default(),
            cookie: settings.cookie.clone(),
            left_out,
        })
    }

    /// What a token says, if it is good. `now_s`: seconds since 1970.
    ///
    /// # Errors
    /// [`Unwelcome`]
    pub fn verify(&self, token: &str, now_s: u64) -> Result<Verified, Unwelcome> {
        token::verify(self, token, now_s)
    }

    /// The place of the API key with this digest. Compares with all, each in constant time.
    pub fn api_key(&self, sha256: &[u8; 32]) -> Option<usize> {
        let mut found = u32::MAX;
        for (at, key) in self.api_keys.iter().enumerate() {
            found.conditional_assign(&(at as u32), key.sha256.ct_eq(sha256));
        }
        (found != u32::MAX).then_some(found as usize)
    }

    /// Those whom API keys stand for, in their order.
    pub fn publishers(&self) -> impl Iterator<Item = Bearer> {
        self.api_keys.iter().map(|key| Bearer {
            proof: Proof::ApiKey,
            subject: Some(key.name.as_str().into()),
            token_id: None,
            issued_s: None,
            expires_s: None,
            digest: key.sha256,
            grants: key.grants.clone(),
        })
    }

    /// The longest that a token which is good now may still be.
    pub fn life_s_max(&self) -> u64 {
        self.lifetime_s_max.saturating_add(self.leeway_s)
    }

    /// What those may do who do not say who they are.
    pub fn anonymous(&self) -> &Grants {
        &self.anonymous
    }

    /// The name of the cookie that holds a token.
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    pub fn has_key(&self, fingerprint: &[u8; 32]) -> bool {
        self.keys.iter().any(|key| key.fingerprint == *fingerprint)
    }

    /// How many keys, and API keys.
    pub fn counts(&self) -> (usize, usize) {
        (self.keys.len(), self.api_keys.len())
    }

    /// Keys of the JWKS file that are not used, and why.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }
}

impl std::fmt::Debug for Policy {
    /// No keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (keys, api_keys) = self.counts();
        f.debug_struct("Policy").field("keys", &keys).field("api_keys", &api_keys).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn api_keys_are_found_by_their_digest_alone() {
        let key =
            |name: &str, byte: u8| ApiKey { name: name.into(), sha256: [byte; 32], grants: Grants::all() };
        let settings = Authentication {
            keys: vec![],
            jwks_file: None,
            audience: vec![],
            issuer: vec![],
            cookie: "c".into(),
            leeway: Duration::ZERO,
            lifetime_max: Duration::from_secs(60),
            revocations_max: 1,
            api_keys: vec![key("a", 1), key("b", 2), key("c", 3)],
            anonymous: None,
        };
        let policy = Policy::load(&settings).expect("no files");
        let mut near = [2; 32];
        near[31] = 3;
        for (digest, want) in
            [([1; 32], Some(0)), ([2; 32], Some(1)), ([3; 32], Some(2)), (near, None), ([0; 32], None)]
        {
            assert_eq!(policy.api_key(&digest), want);
        }
        let names: Vec<_> = policy.publishers().map(|bearer| bearer.subject.unwrap_or_default()).collect();
        assert_eq!(names, ["a".into(), "b".into(), "c".into()]);
    }
}
