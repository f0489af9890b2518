//! Keys that tokens are signed with: from the configuration, PEM files (RFC 7468) and JWKS files (RFC 7517) to what a
//! signature is checked with. Each key is for exactly one algorithm, whatever a token says.
//! Owns what makes a key fit to be trusted. Never shows one.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::runtime::settings::{self, KeyMaterial, TokenAlgorithm};

/// Least bytes of an HS256 secret (RFC 7518 §3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Least and most bytes of an RSA modulus (RFC 7518 §3.3, and what ring takes).
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1_024;
/// What a DER public key has around its modulus, at least and at most.
const DER_BYTES: std::ops::RangeInclusive<usize> = 8..=48;
/// A coordinate of P-256, and an Ed25519 key.
const POINT_BYTES: usize = 32;
/// The curve P-256 as DER (RFC 5480 §2.1.1.1).
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Largest file of keys that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One key.
#[derive(Clone)]
pub struct TokenKey {
    pub kid: Option<Box<str>>,
    pub algorithm: Algorithm,
    pub decoding: DecodingKey,
    /// Names the key after a reload: of all that it is.
    pub fingerprint: [u8; 32],
}

/// Why a key cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KeyError {
    #[error("{key}: cannot read {}: {error}", path.display())]
    Unreadable { key: String, path: PathBuf, error: String },
    #[error(
        "{key}: the secret has {bytes} bytes; HS256 needs {SECRET_BYTES_MIN} or more that nobody can guess, like \
         `openssl rand -base64 32` makes"
    )]
    SecretShort { key: String, bytes: usize },
    #[error(
        "{key}: {} holds a private key; put the public one here, which `openssl pkey -in FILE -pubout` gives, and keep \
         the private one where tokens are made",
        path.display()
    )]
    Private { key: String, path: PathBuf },
    #[error("{key}: {} is no public key in PEM form (-----BEGIN PUBLIC KEY-----)", path.display())]
    NoPem { key: String, path: PathBuf },
    #[error("{key}: the public key in {} is not for {algorithm:?}, which needs {needs}", path.display())]
    OtherKind { key: String, path: PathBuf, algorithm: Algorithm, needs: &'static str },
    #[error("auth.jwks_file: {} is no JWKS: a JSON object with a list `keys` (line {line})", path.display())]
    NoJwks { path: PathBuf, line: usize },
    #[error("auth.jwks_file: {} has no key that can be used here{why}", path.display())]
    NoneUsable { path: PathBuf, why: String },
    #[error(
        "auth: {count} keys are more than {count_max}, and each is tried for a token without kid; leave out old ones"
    )]
    TooMany { count: usize, count_max: usize },
}

impl TokenKey {
    fn new(kid: Option<&str>, algorithm: Algorithm, decoding: DecodingKey, material: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in
            [kid.unwrap_or_default().as_bytes(), format!("{algorithm:?}").as_bytes()].iter().chain(material)
        {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self { kid: kid.map(Into::into), algorithm, decoding, fingerprint: digest.finalize().into() }
    }

    /// A key of `auth.keys`, the `at`th.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn load(at: usize, key: &settings::TokenKey) -> Result<Self, KeyError> {
        let name = match &key.kid {
            Some(kid) => format!("auth.keys[{at}] (kid {kid})"),
            None => format!("auth.keys[{at}]"),
        };
        let kid = key.kid.as_deref();
        match &key.material {
            KeyMaterial::Secret(secret) => Self::of_secret(name, kid, secret.0.as_bytes()),
            KeyMaterial::SecretFile(path) => {
                let bytes = read(&name, path)?;
                // Editors and `echo` end a file with a line break, which nobody means to be part of the secret.
                let secret = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                Self::of_secret(name, kid, secret.strip_suffix(b"\r").unwrap_or(secret))
            }
            KeyMaterial::PublicKeyFile(path) => {
                let bytes = read(&name, path)?;
                Self::of_pem(name, kid, algorithm_of(key.algorithm), path, &bytes)
            }
        }
    }

    fn of_secret(key: String, kid: Option<&str>, secret: &[u8]) -> Result<Self, KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError::SecretShort { key, bytes: secret.len() });
        }
        Ok(Self::new(kid, Algorithm::HS256, DecodingKey::from_secret(secret), &[secret]))
    }

    fn of_pem(
        key: String,
        kid: Option<&str>,
        algorithm: Algorithm,
        path: &Path,
        bytes: &[u8],
    ) -> Result<Self, KeyError> {
        let text = String::from_utf8_lossy(bytes);
        let path = path.to_owned();
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private { key, path });
        }
        let Some(der) = der_of(&text) else { return Err(KeyError::NoPem { key, path }) };
        let (decoding, needs, fits) = match algorithm {
            Algorithm::RS256 => {
                let least = *MODULUS_BYTES.start() + *DER_BYTES.start();
                let most = *MODULUS_BYTES.end() + *DER_BYTES.end();
                let fits = (least..=most).contains(&der.len());
                (DecodingKey::from_rsa_pem(bytes), "an RSA key of 2048 to 8192 bits", fits)
            }
            Algorithm::ES256 => {
                let fits = der.windows(P256.len()).any(|window| window == P256);
                (DecodingKey::from_ec_pem(bytes), "a key on the curve P-256", fits)
            }
            _ => (DecodingKey::from_ed_pem(bytes), "an Ed25519 key", true),
        };
        match decoding {
            // The library takes the key's own word for what it is.
            Ok(decoding) if fits && is_of_kind(algorithm, &der) => {
                Ok(Self::new(kid, algorithm, decoding, &[&der]))
            }
            _ => Err(KeyError::OtherKind { key, path, algorithm, needs }),
        }
    }
}

/// The content of the one public key in a PEM file.
fn der_of(text: &str) -> Option<Vec<u8>> {
    let begin = |tag: &str| format!("-----BEGIN {tag}-----");
    let tag = ["PUBLIC KEY", "RSA PUBLIC KEY"].into_iter().find(|tag| text.contains(&begin(tag)))?;
    let (_, rest) = text.split_once(&begin(tag))?;
    let (body, after) = rest.split_once(&format!("-----END {tag}-----"))?;
    let body: String = body.split_ascii_whitespace().collect();
    (!after.contains("-----BEGIN")).then(|| STANDARD.decode(body).ok()).flatten()
}

/// Whether a DER public key names the kind of its algorithm; PKCS#1 names none, and is RSA.
fn is_of_kind(algorithm: Algorithm, der: &[u8]) -> bool {
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
    let head = der.get(..der.len().min(32)).unwrap_or_default();
    let names = |oid: &[u8]| head.windows(oid.len()).any(|window| window == oid);
    match algorithm {
        Algorithm::RS256 => names(RSA) || !(names(EC) || names(ED25519)),
        Algorithm::ES256 => names(EC),
        _ => names(ED25519) && der.len() == POINT_BYTES + 12,
    }
}

const fn algorithm_of(algorithm: TokenAlgorithm) -> Algorithm {
    match algorithm {
        TokenAlgorithm::Hs256 => Algorithm::HS256,
        TokenAlgorithm::Rs256 => Algorithm::RS256,
        TokenAlgorithm::Es256 => Algorithm::ES256,
        TokenAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, KeyError> {
    let unreadable =
        |error: String| KeyError::Unreadable { key: key.to_owned(), path: path.to_owned(), error };
    let bytes = fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(unreadable(format!("{bytes} bytes are more than any file of keys has")));
    }
    fs::read(path).map_err(|error| unreadable(error.to_string()))
}

/// A JWKS file (RFC 7517 §5).
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
}

/// One key of it; members of other kinds of keys are not looked at (§4).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    k: Option<String>,
}

/// The keys of a JWKS file, and what was left out, in words: a set may hold keys that are for others (RFC 7517 §5).
///
/// # Errors
/// [`KeyError`], when the file is no JWKS, or none of its keys can be used.
pub fn load_jwks(path: &Path) -> Result<(Vec<TokenKey>, Vec<String>), KeyError> {
    let bytes = read("auth.jwks_file", path)?;
    let set: JwkSet = serde_json::from_slice(&bytes)
        .map_err(|error| KeyError::NoJwks { path: path.to_owned(), line: error.line() })?;
    let (mut keys, mut left_out) = (Vec::new(), Vec::new());
    for (at, value) in set.keys.into_iter().enumerate() {
        match serde_json::from_value::<Jwk>(value) {
            Ok(jwk) => match of_jwk(&jwk) {
                Ok(key) => keys.push(key),
                Err(why) => {
                    let kid = jwk.kid.map(|kid| format!(" (kid {kid})")).unwrap_or_default();
                    left_out.push(format!("keys[{at}]{kid} {why}"));
                }
            },
            Err(_) => left_out.push(format!("keys[{at}] is no JWK: an object with `kty`")),
        }
    }
    if keys.is_empty() {
        let why = left_out.iter().map(|left_out| format!("; {left_out}")).collect();
        return Err(KeyError::NoneUsable { path: path.to_owned(), why });
    }
    Ok((keys, left_out))
}

fn of_jwk(jwk: &Jwk) -> Result<TokenKey, &'static str> {
    if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
        return Err("is not for signatures (use)");
    }
    if jwk.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
        return Err("is not to verify with (key_ops)");
    }
    let bytes = |member: &Option<String>| URL_SAFE_NO_PAD.decode(member.as_deref()?).ok();
    let for_algorithm = |algorithm: Algorithm, name: &str| match jwk.alg.as_deref() {
        None => Ok(algorithm),
        Some(alg) if alg == name => Ok(algorithm),
        Some(_) => Err("is for an algorithm that is not taken here: HS256, RS256, ES256 and EdDSA are"),
    };
    let kid = jwk.kid.as_deref();
    match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("oct", _) => {
            let algorithm = for_algorithm(Algorithm::HS256, "HS256")?;
            let secret = bytes(&jwk.k).ok_or("has no k in base64url")?;
            if secret.len() < SECRET_BYTES_MIN {
                return Err("is a secret of fewer than 32 bytes");
            }
            Ok(TokenKey::new(kid, algorithm, DecodingKey::from_secret(&secret), &[&secret]))
        }
        ("RSA", _) => {
            let algorithm = for_algorithm(Algorithm::RS256, "RS256")?;
            let (n, e) = bytes(&jwk.n).zip(bytes(&jwk.e)).ok_or("has no n and e in base64url")?;
            // Some write the sign's byte, which ring does not take.
            let n = n.get(n.iter().take_while(|byte| **byte == 0).count()..).unwrap_or_default();
            if !MODULUS_BYTES.contains(&n.len()) {
                return Err("is an RSA key of fewer than 2048 or more than 8192 bits");
            }
            Ok(TokenKey::new(kid, algorithm, DecodingKey::from_rsa_raw_components(n, &e), &[n, &e]))
        }
        ("EC", Some("P-256")) => {
            let algorithm = for_algorithm(Algorithm::ES256, "ES256")?;
            let (x, y) = bytes(&jwk.x).zip(bytes(&jwk.y)).ok_or("has no x and y in base64url")?;
            if x.len() != POINT_BYTES || y.len() != POINT_BYTES {
                return Err("has coordinates that are not of 32 bytes");
            }
            let point = [&[4][..], &x, &y].concat();
            Ok(TokenKey::new(kid, algorithm, DecodingKey::from_ec_der(&point), &[&point]))
        }
        ("OKP", Some("Ed25519")) => {
            let algorithm = for_algorithm(Algorithm::EdDSA, "EdDSA")?;
            let x = bytes(&jwk.x)
                .filter(|x| x.len() == POINT_BYTES)
                .ok_or("has no x of 32 bytes in base64url")?;
            Ok(TokenKey::new(kid, algorithm, DecodingKey::from_ed_der(&x), &[&x]))
        }
        ("EC" | "OKP", _) => Err("is on a curve that is not taken here: P-256 and Ed25519 are"),
        _ => Err("is of a kind that is not taken here: oct, RSA, EC and OKP are"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn jwk(text: &str) -> Result<TokenKey, &'static str> {
        of_jwk(&serde_json::from_str(text).expect("a JWK"))
    }

    #[test]
    fn jwks_are_for_one_algorithm() {
        let n = URL_SAFE_NO_PAD.encode([[0].as_slice(), &[0xff; 256]].concat());
        let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
        let secret = URL_SAFE_NO_PAD.encode(SECRET);
        let x = URL_SAFE_NO_PAD.encode([7; 32]);
        for (text, want) in [
            (format!(r#"{{"kty":"oct","k":"{secret}"}}"#), Ok(Algorithm::HS256)),
            (format!(r#"{{"kty":"oct","k":"{secret}","alg":"HS512"}}"#), Err("algorithm")),
            (r#"{"kty":"oct","k":"AAAA"}"#.into(), Err("32 bytes")),
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","use":"sig"}}"#), Ok(Algorithm::RS256)),
            (
                format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","alg":"RS256","kid":"k"}}"#),
                Ok(Algorithm::RS256),
            ),
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","alg":"HS256"}}"#), Err("algorithm")),
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","alg":"PS256"}}"#), Err("algorithm")),
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","use":"enc"}}"#), Err("use")),
            (format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","key_ops":["sign"]}}"#), Err("key_ops")),
            (format!(r#"{{"kty":"RSA","n":"{short}","e":"AQAB"}}"#), Err("2048")),
            (r#"{"kty":"RSA","n":"!","e":"AQAB"}"#.into(), Err("base64url")),
            (format!(r#"{{"kty":"EC","crv":"P-256","x":"{x}","y":"{x}"}}"#), Ok(Algorithm::ES256)),
            (format!(r#"{{"kty":"EC","crv":"P-384","x":"{x}","y":"{x}"}}"#), Err("curve")),
            (r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.into(), Err("32 bytes")),
            (format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#), Ok(Algorithm::EdDSA)),
            (format!(r#"{{"kty":"OKP","crv":"X25519","x":"{x}"}}"#), Err("curve")),
            (r#"{"kty":"AKP"}"#.into(), Err("kind")),
        ] {
            match (jwk(&text).map(|key| key.algorithm), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{text}"),
                (Err(said), Err(word)) => assert!(said.contains(word), "{text}: {said}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_key_is_known_again_by_all_that_it_is() {
        let key = |kid: Option<&str>, secret: &str| {
            TokenKey::of_secret("k".into(), kid, secret.as_bytes()).expect("a key").fingerprint
        };
        let other = SECRET.replace('0', "1");
        assert_eq!(key(Some("a"), SECRET), key(Some("a"), SECRET));
        assert_ne!(key(Some("a"), SECRET), key(Some("b"), SECRET));
        assert_ne!(key(Some("a"), SECRET), key(Some("a"), &other));
        assert!(matches!(
            TokenKey::of_secret("k".into(), None, b"short"),
            Err(KeyError::SecretShort { bytes: 5, .. })
        ));
    }
}
