//! Tokens, good and bad: every refusal by its name.

use std::path::PathBuf;
use std::time::Duration;

use jsonwebtoken::EncodingKey;
use serde_json::json;

use super::*;
use crate::domain::channel::{Name, NameError};
use crate::runtime::settings::{Authentication, KeyMaterial, Secret, TokenAlgorithm, TokenKey};

const NOW_S: u64 = 1_700_000_000;
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name)
}

fn key(kid: Option<&str>, algorithm: TokenAlgorithm, material: KeyMaterial) -> TokenKey {
    TokenKey { kid: kid.map(Into::into), algorithm, material }
}

fn secret(kid: Option<&str>, secret: &str) -> TokenKey {
    key(kid, TokenAlgorithm::Hs256, KeyMaterial::Secret(Secret(secret.into())))
}

fn public(kid: Option<&str>, algorithm: TokenAlgorithm, name: &str) -> TokenKey {
    key(kid, algorithm, KeyMaterial::PublicKeyFile(file(name)))
}

fn settings(keys: Vec<TokenKey>) -> Authentication {
    Authentication {
        keys,
        jwks_file: None,
        audience: vec![],
        issuer: vec![],
        cookie: "t".into(),
        leeway: Duration::ZERO,
        lifetime_max: Duration::from_secs(3_600),
        revocations_max: 1,
        api_keys: vec![],
        anonymous: None,
    }
}

fn policy(keys: Vec<TokenKey>) -> Policy {
    Policy::load(&settings(keys)).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn coded(text: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// A token with any header and claims, signed by `sign`.
fn signed(header: &str, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", coded(header), coded(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).expect("a signature");
    format!("{message}.{signature}")
}

fn hs256(header: &str, claims: &str) -> String {
    signed(header, claims, &EncodingKey::from_secret(SECRET.as_bytes()), Algorithm::HS256)
}

fn claims() -> String {
    json!({ "sub": "anna", "exp": NOW_S + 60 }).to_string()
}

fn private(name: &str) -> Vec<u8> {
    std::fs::read(file(name)).expect("a key of the tests")
}

#[track_caller]
fn denied(policy: &Policy, token: &str) -> Denied {
    policy.verify(token, NOW_S).expect_err("a refusal").denied
}

const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

#[test]
fn what_a_token_says() {
    let policy = policy(vec![secret(None, SECRET)]);
    let claims = json!({
        "sub": "anna", "exp": NOW_S + 60, "nbf": NOW_S, "iat": NOW_S - 5, "jti": "t1", "aud": ["x"], "iss": "y", "role": {},
        "subscribe": ["news/**", "me/{sub}"], "publish": ["chat/*"],
    });
    let token = hs256(HS256, &claims.to_string());
    let bearer = policy.verify(&token, NOW_S).expect("a good token").bearer;
    assert_eq!(bearer.subject.as_deref(), Some("anna"));
    assert_eq!(bearer.token_id.as_deref(), Some("t1"));
    assert_eq!((bearer.issued_s, bearer.expires_s), (Some(NOW_S - 5), Some(NOW_S + 60)));
    assert_eq!(bearer.digest, <[u8; 32]>::from(Sha256::digest(&token)));
    for (act, name, want) in [
        (Act::Subscribe, "news/a/b", true),
        (Act::Subscribe, "me/anna", true),
        (Act::Subscribe, "me/bert", false),
        (Act::Subscribe, "chat/a", false),
        (Act::Publish, "chat/a", true),
        (Act::Publish, "news/a", false),
        (Act::Delete, "news/a", false),
    ] {
        assert_eq!(bearer.may(act, &Name::parse(name).expect("a name")), want, "{act:?} {name}");
    }
}

#[test]
fn each_algorithm_with_its_key() {
    let policy = policy(vec![
        secret(Some("h"), SECRET),
        public(Some("r"), TokenAlgorithm::Rs256, "rs256.pub.pem"),
        public(Some("p"), TokenAlgorithm::Rs256, "rs256.pkcs1.pem"),
        public(Some("e"), TokenAlgorithm::Es256, "es256.pub.pem"),
        public(Some("d"), TokenAlgorithm::EdDsa, "eddsa.pub.pem"),
    ]);
    let keys = [
        ("h", "HS256", Algorithm::HS256, EncodingKey::from_secret(SECRET.as_bytes())),
        ("r", "RS256", Algorithm::RS256, EncodingKey::from_rsa_pem(&private("rs256.pem")).expect("RSA")),
        ("p", "RS256", Algorithm::RS256, EncodingKey::from_rsa_pem(&private("rs256.pem")).expect("RSA")),
        ("e", "ES256", Algorithm::ES256, EncodingKey::from_ec_pem(&private("es256.pem")).expect("P-256")),
        ("d", "EdDSA", Algorithm::EdDSA, EncodingKey::from_ed_pem(&private("eddsa.pem")).expect("Ed25519")),
    ];
    for (kid, name, algorithm, key) in &keys {
        let with_kid = signed(&json!({ "alg": name, "kid": kid }).to_string(), &claims(), key, *algorithm);
        assert!(policy.verify(&with_kid, NOW_S).is_ok(), "{kid}");
        let without = signed(&json!({ "alg": name }).to_string(), &claims(), key, *algorithm);
        assert!(policy.verify(&without, NOW_S).is_ok(), "{kid}: each key of the algorithm is tried");
        // Every cut of a signature, and every other header, is refused.
        let wrong = signed(r#"{"alg":"HS256","kid":"none of them"}"#, &claims(), key, *algorithm);
        assert_eq!(denied(&policy, &wrong), Denied::KeyUnknown);
        let (message, signature) = with_kid.rsplit_once('.').expect("three parts");
        for cut in [0, 1, signature.len() / 2, signature.len() - 1] {
            let refused = denied(&policy, &format!("{message}.{}", &signature[..cut]));
            assert_eq!(refused, Denied::Signature, "{kid} cut at {cut}");
        }
        let mut swapped = with_kid.clone().into_bytes();
        let at = message.len() - 2;
        swapped[at] = if swapped[at] == b'A' { b'B' } else { b'A' };
        let swapped = String::from_utf8(swapped).expect("ASCII");
        assert_eq!(denied(&policy, &swapped), Denied::Signature, "{kid}");
    }
    // The name of one key with the algorithm of another.
    for (kid, name, algorithm, key) in &keys {
        for (other, other_name, ..) in keys.iter().filter(|(_, other, ..)| other != name) {
            let header = json!({ "alg": name, "kid": other }).to_string();
            let token = signed(&header, &claims(), key, *algorithm);
            assert_eq!(denied(&policy, &token), Denied::KeyAlgorithm, "{kid} as {other} ({other_name})");
        }
    }
}

/// The classic: what everyone knows of an RSA key, taken for the secret of an HMAC (RFC 8725 §2.1).
#[test]
fn a_public_key_is_no_secret() {
    for name in ["rs256.pub.pem", "rs256.pkcs1.pem"] {
        for kid in [None, Some("r")] {
            let policy = policy(vec![public(kid, TokenAlgorithm::Rs256, name)]);
            let pem = std::fs::read(file(name)).expect("a key");
            for secret in [&pem[..], pem.trim_ascii()] {
                let header = json!({ "alg": "HS256", "kid": kid }).to_string();
                let key = EncodingKey::from_secret(secret);
                let token = signed(&header, &claims(), &key, Algorithm::HS256);
                let want = if kid.is_some() { Denied::KeyAlgorithm } else { Denied::Algorithm };
                assert_eq!(denied(&policy, &token), want);
            }
        }
    }
}

#[test]
fn headers_that_are_refused() {
    let policy = policy(vec![secret(Some("a"), SECRET), secret(Some("b"), OTHER)]);
    for (header, want) in [
        (r#"{"alg":"none"}"#, Denied::Algorithm),
        (r#"{"alg":"None"}"#, Denied::Algorithm),
        (r#"{"alg":""}"#, Denied::Algorithm),
        (r#"{"alg":"hs256"}"#, Denied::Algorithm),
        (r#"{"alg":"HS384"}"#, Denied::Algorithm),
        (r#"{"alg":"PS256"}"#, Denied::Algorithm),
        (r#"{"alg":"RS256"}"#, Denied::Algorithm),
        (r#"{"alg":"HS256","kid":"c"}"#, Denied::KeyUnknown),
        (r#"{"alg":"HS256","kid":""}"#, Denied::KeyUnknown),
        (r#"{"alg":"HS256","kid":"b"}"#, Denied::Signature),
        (r#"{"alg":"RS256","kid":"a"}"#, Denied::KeyAlgorithm),
        (r#"{"alg":"HS256","kid":"a","crit":["exp"]}"#, Denied::Critical),
        (r#"{"alg":"HS256","kid":"a","crit":[]}"#, Denied::Critical),
        (r#"{"alg":"HS256","kid":"a","crit":null}"#, Denied::Critical),
        (r#"{"alg":"HS256","alg":"HS256","kid":"a"}"#, Denied::Header),
        (r#"{"alg":"HS256","kid":"a","kid":"b"}"#, Denied::Header),
        (r#"{"alg":["HS256"]}"#, Denied::Header),
        (r#"{"alg":"HS256","kid":1}"#, Denied::Header),
        (r#"{"kid":"a"}"#, Denied::Header),
        (r#"["HS256","a"]"#, Denied::Header),
        ("", Denied::Header),
        ("{", Denied::Header),
        ("{}{}", Denied::Header),
    ] {
        assert_eq!(denied(&policy, &hs256(header, &claims())), want, "{header}");
    }
    // Without its signature, as `alg: none` has it.
    let bare = format!("{}.{}.", coded(r#"{"alg":"none"}"#), coded(claims()));
    assert_eq!(denied(&policy, &bare), Denied::Algorithm);
    let bare = format!("{}.{}.", coded(HS256), coded(claims()));
    assert_eq!(denied(&policy, &bare), Denied::Signature);
    for header in
        [r#" {"alg":"HS256","kid":"a"}"#, r#"{"alg":"HS256","kid":"a","typ":"at+jwt","x5u":"https://evil"}"#]
    {
        assert!(policy.verify(&hs256(header, &claims()), NOW_S).is_ok(), "{header}");
    }
}

#[test]
fn a_key_without_kid_checks_tokens_with_any() {
    let policy = policy(vec![secret(None, SECRET), secret(Some("b"), OTHER)]);
    assert!(policy.verify(&hs256(r#"{"alg":"HS256","kid":"theirs"}"#, &claims()), NOW_S).is_ok());
    let named = hs256(r#"{"alg":"HS256","kid":"b"}"#, &claims());
    assert_eq!(denied(&policy, &named), Denied::Signature, "a kid that is known decides");
}

#[test]
fn forms_that_are_no_jwt() {
    let policy = policy(vec![secret(None, SECRET)]);
    let good = hs256(HS256, &claims());
    for text in ["", ".", "..", "a.b", "a.b.c.d", &format!("{good}.x"), "not a token"] {
        let refused = denied(&policy, text);
        assert!(matches!(refused, Denied::NoJwt | Denied::Header), "{text:?}: {refused:?}");
    }
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    for padded in [format!("{message}.{signature}="), format!("{message}=.{signature}")] {
        assert_eq!(denied(&policy, &padded), Denied::Signature, "{padded:?}");
    }
    let long = hs256(HS256, &json!({ "sub": "a".repeat(TOKEN_BYTES_MAX), "exp": NOW_S + 9 }).to_string());
    assert_eq!(denied(&policy, &long), Denied::TooLong { bytes: long.len() });
}

#[test]
fn claims_that_are_refused() {
    let policy = policy(vec![secret(None, SECRET)]);
    let kind = |claim| Denied::ClaimType(claim);
    let pattern = |act, at, error| Denied::Pattern { act, at, error };
    let at = |offset: i64| NOW_S.checked_add_signed(offset).expect("a time");
    for (claims, want) in [
        (json!({ "sub": "a" }), Denied::ClaimMissing(Claim::Expiry)),
        (json!({ "sub": "a", "exp": null }), Denied::ClaimMissing(Claim::Expiry)),
        (json!({ "exp": at(9) }), Denied::ClaimMissing(Claim::Subject)),
        (json!({ "sub": "", "exp": at(9) }), kind(Claim::Subject)),
        (json!({ "sub": 7, "exp": at(9) }), kind(Claim::Subject)),
        (json!({ "sub": "a", "exp": "soon" }), kind(Claim::Expiry)),
        (json!({ "sub": "a", "exp": true }), kind(Claim::Expiry)),
        (json!({ "sub": "a", "exp": at(0) }), Denied::Expired { ago_s: 0 }),
        (json!({ "sub": "a", "exp": at(-7) }), Denied::Expired { ago_s: 7 }),
        (json!({ "sub": "a", "exp": -1 }), Denied::Expired { ago_s: NOW_S }),
        (
            json!({ "sub": "a", "exp": at(3_601) }),
            Denied::LivesTooLong { seconds: 3_601, seconds_max: 3_600 },
        ),
        (
            json!({ "sub": "a", "exp": at(9), "iat": NOW_S - 3_592 }),
            Denied::LivesTooLong { seconds: 3_601, seconds_max: 3_600 },
        ),
        (json!({ "sub": "a", "exp": at(9), "nbf": at(3) }), Denied::NotYet { in_s: 3 }),
        (json!({ "sub": "a", "exp": at(90), "iat": at(61) }), Denied::IssuedAhead { by_s: 61 }),
        (json!({ "sub": "a", "exp": at(90), "iat": 1e300 }), Denied::IssuedAhead { by_s: u64::MAX - NOW_S }),
        (json!({ "sub": "a", "exp": at(9), "nbf": "x" }), kind(Claim::NotBefore)),
        (json!({ "sub": "a", "exp": at(9), "iat": "x" }), kind(Claim::Issued)),
        (json!({ "sub": "a", "exp": at(9), "jti": 1 }), kind(Claim::Id)),
        (json!({ "sub": "a", "exp": at(9), "aud": 1 }), kind(Claim::Audience)),
        (json!({ "sub": "a", "exp": at(9), "aud": [1] }), kind(Claim::Audience)),
        (json!({ "sub": "a", "exp": at(9), "iss": ["a"] }), kind(Claim::Issuer)),
        (json!({ "sub": "a", "exp": at(9), "subscribe": "news" }), kind(Claim::Grants(Act::Subscribe))),
        (json!({ "sub": "a", "exp": at(9), "publish": [1] }), kind(Claim::Grants(Act::Publish))),
        (json!({ "sub": "a", "exp": at(9), "delete": {} }), kind(Claim::Grants(Act::Delete))),
        (
            json!({ "sub": "a", "exp": at(9), "subscribe": ["a", "b//c"] }),
            pattern(Act::Subscribe, 1, NameError::Empty),
        ),
        (
            json!({ "sub": "a", "exp": at(9), "publish": ["a/**/b"] }),
            pattern(Act::Publish, 0, NameError::WildcardSegment),
        ),
    ] {
        assert_eq!(denied(&policy, &hs256(HS256, &claims.to_string())), want, "{claims}");
    }
    for claims in [
        format!(r#"{{"sub":"a","sub":"b","exp":{}}}"#, at(9)),
        format!(r#"{{"sub":"a","exp":{0},"exp":{0}}}"#, at(9)),
        r#"{"sub":"a","exp":1e999}"#.into(),
        format!(r#"["a",{}]"#, at(9)),
        "null".into(),
        "[".repeat(1_000),
    ] {
        assert_eq!(denied(&policy, &hs256(HS256, &claims)), Denied::Claims, "{claims}");
    }
    for claims in [
        json!({ "sub": "a", "exp": NOW_S as f64 + 9.5, "nbf": NOW_S as f64 - 0.5 }),
        json!({ "sub": "a", "exp": at(3_600), "nbf": null, "iat": null, "jti": null, "subscribe": null }),
        json!({ "sub": "a/b", "exp": at(9), "subscribe": ["me/{sub}"] }),
    ] {
        assert!(policy.verify(&hs256(HS256, &claims.to_string()), NOW_S).is_ok(), "{claims}");
    }
}

#[test]
fn audience_issuer_and_leeway() {
    let mut wanted = settings(vec![secret(None, SECRET)]);
    wanted.audience = vec!["pushline".into(), "chat".into()];
    wanted.issuer = vec!["https://login.example".into()];
    wanted.leeway = Duration::from_millis(4_500);
    let policy = Policy::load(&wanted).expect("no files");
    let with = |aud: Value, iss: Value, exp: u64, nbf: u64| {
        let claims = json!({ "sub": "a", "exp": exp, "nbf": nbf, "aud": aud, "iss": iss });
        policy
            .verify(&hs256(HS256, &claims.to_string()), NOW_S)
            .map(|verified| verified.bearer.expires_s)
            .map_err(|unwelcome| unwelcome.denied)
    };
    let iss = || json!("https://login.example");
    assert_eq!(with(json!("chat"), iss(), NOW_S + 9, NOW_S), Ok(Some(NOW_S + 14)));
    assert_eq!(with(json!(["x", "chat"]), iss(), NOW_S - 4, NOW_S + 5), Ok(Some(NOW_S + 1)));
    assert_eq!(with(json!("chat"), iss(), NOW_S - 5, NOW_S), Err(Denied::Expired { ago_s: 0 }));
    assert_eq!(with(json!("chat"), iss(), NOW_S + 9, NOW_S + 6), Err(Denied::NotYet { in_s: 6 }));
    for aud in [json!("Chat"), json!(["x"]), json!([]), json!(null), json!("")] {
        assert_eq!(with(aud.clone(), iss(), NOW_S + 9, NOW_S), Err(Denied::Audience), "{aud}");
    }
    for iss in [json!("https://login.example/"), json!(null)] {
        assert_eq!(with(json!("chat"), iss.clone(), NOW_S + 9, NOW_S), Err(Denied::Issuer), "{iss}");
    }
}

#[test]
fn keys_that_are_not_for_their_algorithm() {
    let load =
        |key: TokenKey| Policy::load(&settings(vec![key])).expect_err("a refusal").remove(0).to_string();
    for (algorithm, name, words) in [
        (TokenAlgorithm::Rs256, "es256.pub.pem", "RSA key of 2048"),
        (TokenAlgorithm::Rs256, "eddsa.pub.pem", "RSA key of 2048"),
        (TokenAlgorithm::Rs256, "rsa1024.pub.pem", "RSA key of 2048"),
        (TokenAlgorithm::Es256, "rs256.pub.pem", "P-256"),
        (TokenAlgorithm::Es256, "rs256.pkcs1.pem", "P-256"),
        (TokenAlgorithm::Es256, "p384.pub.pem", "P-256"),
        (TokenAlgorithm::Es256, "eddsa.pub.pem", "P-256"),
        (TokenAlgorithm::EdDsa, "es256.pub.pem", "Ed25519"),
        (TokenAlgorithm::EdDsa, "rs256.pkcs1.pem", "Ed25519"),
        (TokenAlgorithm::Rs256, "rs256.pem", "private key"),
        (TokenAlgorithm::EdDsa, "eddsa.pem", "private key"),
        (TokenAlgorithm::Rs256, "README.md", "no public key in PEM"),
        (TokenAlgorithm::Rs256, "nowhere.pem", "cannot read"),
    ] {
        let said = load(public(Some("k"), algorithm, name));
        assert!(said.contains(words) && said.contains("auth.keys[0] (kid k)"), "{name}: {said}");
    }
    assert!(load(secret(None, "short")).contains("5 bytes"));
    assert!(
        load(key(None, TokenAlgorithm::Hs256, KeyMaterial::SecretFile(file("none")))).contains("cannot read")
    );
}
