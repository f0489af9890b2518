//! Any token: nothing that is not signed with the key is good, and of what is, only what keeps the rules.
//! The first byte chooses: the text as it is; or a header and claims, cut at the first zero byte, signed with the key.
#![no_main]
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use pushline::edge::auth::{Policy, TOKEN_BYTES_MAX};
use pushline::edge::config::{Inputs, load};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const NOW_S: u64 = 1_700_000_000;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let keys = format!("auth.keys=[{{ kid = 'a', algorithm = 'HS256', secret = '{SECRET}' }}]");
    let lifetime = "auth.lifetime_seconds_max=3600".to_owned();
    load(&Inputs { set: vec![keys, lifetime], ..Inputs::default() }).expect("a good configuration").policy
});

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    if choice & 1 == 0 {
        if let Ok(text) = std::str::from_utf8(rest) {
            assert!(POLICY.verify(text, NOW_S).is_err(), "unsigned and good");
        }
        return;
    }
    let cut = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    let (header, claims) = (&rest[..cut], rest.get(cut + 1..).unwrap_or_default());
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("a signature");
    let token = format!("{message}.{signature}");
    match POLICY.verify(&token, NOW_S) {
        Ok(verified) => {
            let bearer = verified.bearer;
            assert!(token.len() <= TOKEN_BYTES_MAX);
            assert!(bearer.subject.is_some_and(|subject| !subject.is_empty()));
            let expires_s = bearer.expires_s.expect("only tokens that end are good");
            assert!((NOW_S + 1..=NOW_S + 3_600).contains(&expires_s));
            let claims: serde_json::Value = serde_json::from_slice(claims).expect("claims are JSON");
            assert!(claims.is_object());
        }
        Err(refused) => {
            assert!(!refused.denied.why().is_empty() && refused.denied.status() >= 400);
        }
    }
});
