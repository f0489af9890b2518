//! Values of `[auth]`: from TOML to what `edge::auth` makes a policy of.
//! Owns what keys, API keys and rules for strangers may say, and the words for what they may not. Never reads the files
//! that they name; never shows a secret.

use std::path::PathBuf;

use toml::{Table, Value};

use super::key::{ALGORITHMS, Range};
use super::value::{Read, choice};
use crate::domain::auth::{Act, Grants, pattern_for};
use crate::domain::channel::Pattern;
use crate::runtime::settings::{ApiKey, KeyMaterial, Secret, TokenAlgorithm, TokenKey};

/// Most bytes in the name of an API key or a cookie, or in a `kid`.
const NAME_BYTES_MAX: usize = 128;
/// No name of an algorithm is longer; a secret is.
const ALGORITHM_BYTES_MAX: usize = 8;
/// What stands in the place of a secret wherever a configuration is shown.
const HIDDEN: &str = "(hidden)";

const KEY_RIGHT: &str = "each key is { kid = \"a\", algorithm = \"HS256\", secret_file = \"/etc/pushline/secret\" }, or has \
                         secret = \"…\", or for RS256, ES256 and EdDSA public_key_file = \"….pem\"; kid may be left out";
const API_KEY_RIGHT: &str = "each API key is a line that `pushline api-key NAME` prints, like { name = \"app\", sha256 = \
                             \"…\", publish = [\"**\"], subscribe = [], delete = [] }";
const ANONYMOUS_RIGHT: &str = "must be \"none\", or patterns of channels that are open to everyone, like { subscribe = \
                               [\"news/**\"], publish = [], delete = [] }";

/// The value of a key as it may be shown. What is not known to be harmless may be a secret in the wrong place: under a name
/// with a letter too many, or in the place of its digest.
pub fn hide_secrets(key: &str, value: Value) -> Value {
    match key {
        "auth.keys" => in_tables(value, |field, value| match field {
            "kid" | "secret_file" | "public_key_file" => true,
            "algorithm" => is_algorithm(value),
            _ => false,
        }),
        "auth.api_keys" => in_tables(value, |field, value| match field {
            "name" | "subscribe" | "publish" | "delete" => true,
            "sha256" => is_digest(value),
            _ => false,
        }),
        "admin.token_sha256" if !is_digest(&value) && value.as_str() != Some("none") => HIDDEN.into(),
        // The keys themselves, not the file that has them.
        "auth.jwks_file" if value.as_str().is_none_or(|path| path.contains('{')) => HIDDEN.into(),
        _ => value,
    }
}

/// Shows those fields of a list of tables that are harmless. A value of another shape may hold a secret anywhere.
fn in_tables(value: Value, is_harmless: impl Fn(&str, &Value) -> bool) -> Value {
    let Value::Array(tables) = value else { return HIDDEN.into() };
    let hide = |table: Value| match table {
        Value::Table(table) => {
            let fields = table.into_iter().map(|(field, value)| {
                let value = if is_harmless(&field, &value) { value } else { HIDDEN.into() };
                (field, value)
            });
            Value::Table(fields.collect())
        }
        _ => HIDDEN.into(),
    };
    Value::Array(tables.into_iter().map(hide).collect())
}

fn is_algorithm(value: &Value) -> bool {
    value.as_str().is_some_and(|name| name.len() <= ALGORITHM_BYTES_MAX)
}

fn is_digest(value: &Value) -> bool {
    value.as_str().and_then(digest).is_some()
}

pub fn keys(value: &Value, _: Range) -> Read<Vec<TokenKey>> {
    let tables = tables(value).ok_or_else(|| format!("must be a list; {KEY_RIGHT}"))?;
    let keys: Vec<TokenKey> = tables.into_iter().map(key).collect::<Read<_>>()?;
    for (at, key) in keys.iter().enumerate() {
        let is_same =
            |other: &TokenKey| key.kid.is_some() && other.kid == key.kid && other.algorithm == key.algorithm;
        if let (Some(kid), true) = (&key.kid, keys.iter().take(at).any(is_same)) {
            return Err(format!("must not have the kid {kid:?} twice for one algorithm"));
        }
    }
    Ok(keys)
}

fn key(table: &Table) -> Read<TokenKey> {
    only(table, &["kid", "algorithm", "secret", "secret_file", "public_key_file"], KEY_RIGHT)?;
    let kid = text(table, "kid", KEY_RIGHT)?;
    if kid.is_some_and(|kid| kid.is_empty() || kid.len() > NAME_BYTES_MAX) {
        return Err(format!("kid must have 1 to {NAME_BYTES_MAX} bytes; {KEY_RIGHT}"));
    }
    let algorithm =
        table.get("algorithm").ok_or_else(|| format!("a key lacks its algorithm; {KEY_RIGHT}"))?;
    let algorithm =
        choice(algorithm, ALGORITHMS).map_err(|right| format!("algorithm {right}; {KEY_RIGHT}"))?;
    let secret = text(table, "secret", KEY_RIGHT)?;
    let secret_file = text(table, "secret_file", KEY_RIGHT)?;
    let public_key_file = text(table, "public_key_file", KEY_RIGHT)?;
    let is_symmetric = algorithm == TokenAlgorithm::Hs256;
    let material = match (secret, secret_file, public_key_file) {
        (Some(secret), None, None) if is_symmetric => KeyMaterial::Secret(Secret(secret.into())),
        (None, Some(file), None) if is_symmetric => KeyMaterial::SecretFile(file.into()),
        (None, None, Some(file)) if !is_symmetric => KeyMaterial::PublicKeyFile(file.into()),
        _ if is_symmetric => {
            return Err(format!(
                "a key for HS256 needs secret or secret_file, and nothing else; {KEY_RIGHT}"
            ));
        }
        _ => {
            return Err(format!(
                "a key for RS256, ES256 or EdDSA needs public_key_file, and nothing else; {KEY_RIGHT}"
            ));
        }
    };
    Ok(TokenKey { kid: kid.map(Into::into), algorithm, material })
}

pub fn api_keys(value: &Value, _: Range) -> Read<Vec<ApiKey>> {
    let tables = tables(value).ok_or_else(|| format!("must be a list; {API_KEY_RIGHT}"))?;
    let keys: Vec<ApiKey> = tables.into_iter().map(api_key).collect::<Read<_>>()?;
    for (at, key) in keys.iter().enumerate() {
        if keys.iter().take(at).any(|other| other.name == key.name) {
            return Err(format!("must not have the name {:?} twice: it stands for a publisher", key.name));
        }
        if keys.iter().take(at).any(|other| other.sha256 == key.sha256) {
            return Err(format!("has the key of {:?} twice: which one counts could not be told", key.name));
        }
    }
    Ok(keys)
}

fn api_key(table: &Table) -> Read<ApiKey> {
    only(table, &["name", "sha256", "subscribe", "publish", "delete"], API_KEY_RIGHT)?;
    let name = text(table, "name", API_KEY_RIGHT)?.unwrap_or_default();
    if !is_api_key_name(name) {
        return Err(format!(
            "name must have 1 to {NAME_BYTES_MAX} bytes, no control characters; {API_KEY_RIGHT}"
        ));
    }
    let sha256 = text(table, "sha256", API_KEY_RIGHT)?.and_then(digest);
    let sha256 = sha256.ok_or_else(|| {
        format!(
            "sha256 of {name:?} must be 64 hexadecimal digits: the key's digest, not the key; {API_KEY_RIGHT}"
        )
    })?;
    let grants = grants(table, Some(name), API_KEY_RIGHT)?;
    if grants == Grants::default() {
        return Err(format!(
            "{name:?} permits nothing: it needs publish, subscribe or delete; {API_KEY_RIGHT}"
        ));
    }
    Ok(ApiKey { name: name.into(), sha256, grants })
}

/// Whether an API key may be called so.
pub fn is_api_key_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// What strangers may do; `None`: it is not said.
pub fn anonymous(value: &Value, _: Range) -> Read<Option<Grants>> {
    if value.as_str() == Some("none") {
        return Ok(None);
    }
    let table = value.as_table().ok_or(ANONYMOUS_RIGHT)?;
    only(table, &["subscribe", "publish", "delete"], ANONYMOUS_RIGHT)?;
    let has_subject = |pattern: &Value| pattern.as_str().is_some_and(|pattern| pattern.contains("{sub}"));
    if table.values().filter_map(Value::as_array).flatten().any(has_subject) {
        return Err(format!("has {{sub}}, but strangers have no subject; it {ANONYMOUS_RIGHT}"));
    }
    grants(table, None, ANONYMOUS_RIGHT).map(Some)
}

/// The three lists of patterns of a table; one that is not there is empty.
fn grants(table: &Table, subject: Option<&str>, right: &str) -> Read<Grants> {
    let list = |act: Act| -> Read<Vec<Pattern>> {
        let Some(value) = table.get(act.as_str()) else { return Ok(Vec::new()) };
        let patterns = value
            .as_array()
            .and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>())
            .ok_or_else(|| {
                format!("{} = {value} must be a list of channel patterns; {right}", act.as_str())
            })?;
        let mut list = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            let read = pattern_for(pattern, subject).map_err(|error| {
                format!("{} = {pattern:?} is no channel pattern: {error}; {right}", act.as_str())
            })?;
            list.extend(read);
        }
        Ok(list)
    };
    Ok(Grants { subscribe: list(Act::Subscribe)?, publish: list(Act::Publish)?, delete: list(Act::Delete)? })
}

/// A file, or `"none"`.
pub fn file(value: &Value, _: Range) -> Read<Option<PathBuf>> {
    match value.as_str() {
        Some("none") => Ok(None),
        Some(path) if !path.is_empty() => Ok(Some(path.into())),
        _ => Err("must be a path, or \"none\"".into()),
    }
}

/// Names that a claim may have: a string is one of them, whatever stands in it.
pub fn names(value: &Value, _: Range) -> Read<Vec<String>> {
    const RIGHT: &str = "must be a string, or a list of strings, none of them empty";
    let names = match value {
        Value::String(name) => Some(vec![name.clone()]),
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    names.filter(|names| names.iter().all(|name| !name.is_empty())).ok_or_else(|| RIGHT.into())
}

/// The name of a cookie (RFC 6265 §4.1.1).
pub fn cookie(value: &Value, _: Range) -> Read<String> {
    let is_name = |name: &&str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(crate::proto::http::fields::is_token_byte)
    };
    let right = "must be the name of a cookie: letters, digits, - and _, like \"pushline_token\"";
    value.as_str().filter(is_name).map(str::to_owned).ok_or_else(|| right.into())
}

/// SHA-256 as it is written down.
pub fn digest(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let digit = |at: usize| char::from(*hex.as_bytes().get(at)?).to_digit(16);
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = (digit(2 * at)? << 4 | digit(2 * at + 1)?) as u8;
    }
    (hex.len() == 64).then_some(bytes)
}

fn tables(value: &Value) -> Option<Vec<&Table>> {
    value.as_array()?.iter().map(Value::as_table).collect()
}

fn text<'t>(table: &'t Table, key: &str, right: &str) -> Read<Option<&'t str>> {
    let Some(value) = table.get(key) else { return Ok(None) };
    // The value itself is not shown: it may be a secret that lacks its quotes.
    value.as_str().map(Some).ok_or_else(|| format!("{key} must be a string in quotes; {right}"))
}

fn only(table: &Table, known: &[&str], right: &str) -> Read<()> {
    match table.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(format!("has {key}, which is none of {}; {right}", known.join(", "))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        text.parse().unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    #[test]
    fn keys_are_read() {
        let read = keys(
            &value(
                "[{ kid = 'a', algorithm = 'HS256', secret = 's' }, { algorithm = 'HS256', secret_file = '/s' }, \
                 { kid = 'a', algorithm = 'EdDSA', public_key_file = '/p.pem' }]",
            ),
            Range::Other,
        );
        assert_eq!(read.map(|keys| keys.len()), Ok(3));
        for (text, words) in [
            ("'HS256'", "must be a list"),
            ("['s3cr3t']", "must be a list"),
            ("[{ secret = 's3cr3t' }]", "lacks its algorithm"),
            ("[{ algorithm = 'none' }]", "must be one of \"HS256\""),
            ("[{ algorithm = 'HS512', secret = 's3cr3t' }]", "must be one of \"HS256\""),
            ("[{ algorithm = 'HS256', public_key_file = '/p' }]", "needs secret or secret_file"),
            (
                "[{ algorithm = 'HS256', secret = 's3cr3t', secret_file = '/s' }]",
                "needs secret or secret_file",
            ),
            ("[{ algorithm = 'RS256', secret = 's3cr3t' }]", "needs public_key_file"),
            ("[{ algorithm = 'ES256' }]", "needs public_key_file"),
            ("[{ algorithm = 'HS256', secret = 53 }]", "secret must be a string"),
            ("[{ algorithm = 'HS256', secrets = 's3cr3t' }]", "has secrets, which is none of"),
            ("[{ kid = '', algorithm = 'HS256', secret = 's3cr3t' }]", "kid must have 1 to"),
            (
                "[{ kid = 'a', algorithm = 'HS256', secret = 's3cr3t' }, { kid = 'a', algorithm = 'HS256', secret = 't' }]",
                "must not have the kid \"a\" twice",
            ),
        ] {
            let said = keys(&value(text), Range::Other).expect_err(text);
            assert!(
                said.contains(words) && !said.contains("s3cr3t") && !said.contains("53"),
                "{text}: {said}"
            );
        }
    }

    #[test]
    fn secrets_are_hidden() {
        for text in [
            "[{ kid = 'a', algorithm = 'HS256', secret = 's3cr3t' }]",
            "[{ secret = ['s3cr3t'] }]",
            "['s3cr3t']",
            "'s3cr3t'",
            "{ secret = 's3cr3t' }",
        ] {
            let shown = hide_secrets("auth.keys", value(text)).to_string();
            assert!(!shown.contains("s3cr3t") && shown.contains(HIDDEN), "{shown}");
        }
        let hash = "0".repeat(64);
        for (key, text) in [
            (
                "auth.keys",
                "[{ kid = 'a', algorithm = 'HS256', secrett = 's3cr3t-of-many-letters' }]".to_owned(),
            ),
            ("auth.keys", "[{ algorithm = 's3cr3t-of-many-letters', secret = 'HS256' }]".into()),
            ("auth.api_keys", "[{ name = 'a', sha256 = 'pushline_s3cr3t', publish = ['a'] }]".into()),
            ("auth.api_keys", format!("[{{ name = 'a', sha256 = '{hash}', key = 'pushline_s3cr3t' }}]")),
            ("auth.api_keys", "'pushline_s3cr3t'".into()),
            ("admin.token_sha256", "'s3cr3t'".into()),
            ("auth.jwks_file", r#"'{"keys":[{"kty":"oct","k":"s3cr3t"}]}'"#.into()),
        ] {
            let shown = hide_secrets(key, value(&text)).to_string();
            assert!(!shown.contains("s3cr3t") && shown.contains(HIDDEN), "{text}: {shown}");
        }
        for (key, text) in [
            ("log.level", "'info'".to_owned()),
            ("auth.keys", "[{ kid = 'a', algorithm = 'HS256', secret_file = '/s' }]".into()),
            ("auth.api_keys", format!("[{{ name = 'a', sha256 = '{hash}', publish = ['a'] }}]")),
            ("auth.jwks_file", "'/etc/pushline/jwks.json'".into()),
            ("admin.token_sha256", format!("'{hash}'")),
            ("admin.token_sha256", "'none'".into()),
        ] {
            assert_eq!(hide_secrets(key, value(&text)), value(&text));
        }
    }

    #[test]
    fn api_keys_are_read() {
        let sha256 = "0".repeat(63) + "F";
        let one = |rest: &str| format!("{{ name = 'app', sha256 = '{sha256}', {rest} }}");
        let read = api_keys(&value(&format!("[{}]", one("publish = ['a/**', 'me/{sub}']"))), Range::Other);
        let read = read.expect("an API key");
        assert_eq!((read[0].sha256[0], read[0].sha256[31]), (0, 15));
        assert!(read[0].grants.publish.iter().any(|pattern| pattern.matches("me/app")));
        for (text, words) in [
            ("1".to_owned(), "must be a list"),
            ("[{ name = 'app' }]".into(), "64 hexadecimal digits"),
            ("[{ name = 'app', sha256 = 'abc' }]".into(), "64 hexadecimal digits"),
            (format!("[{{ sha256 = '{sha256}' }}]"), "name must have"),
            (format!("[{}]", one("")), "permits nothing"),
            (format!("[{}]", one("publish = 'a'")), "must be a list of channel patterns"),
            (format!("[{}]", one("publish = ['a//b']")), "is no channel pattern"),
            (format!("[{}]", one("publishes = ['a']")), "has publishes"),
            (format!("[{0}, {0}]", one("publish = ['a']")), "must not have the name \"app\" twice"),
        ] {
            let said = api_keys(&value(&text), Range::Other).expect_err(&text);
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn strangers_are_read() {
        assert_eq!(anonymous(&value("'none'"), Range::Other), Ok(None));
        assert_eq!(anonymous(&value("{}"), Range::Other), Ok(Some(Grants::default())));
        let some =
            anonymous(&value("{ subscribe = ['news/**'] }"), Range::Other).expect("rules").expect("some");
        assert_eq!((some.subscribe.len(), some.publish.len()), (1, 0));
        for (text, words) in [
            ("true", "must be \"none\""),
            ("{ read = ['a'] }", "has read"),
            ("{ subscribe = ['me/{sub}'] }", "no subject"),
            ("{ subscribe = ['**/a'] }", "is no channel pattern"),
        ] {
            let said = anonymous(&value(text), Range::Other).expect_err(text);
            assert!(said.contains(words), "{text}: {said}");
        }
    }

    #[test]
    fn names_and_cookies() {
        assert_eq!(names(&value("'a,b'"), Range::Other), Ok(vec!["a,b".to_owned()]));
        assert_eq!(names(&value("['a', 'b']"), Range::Other).map(|names| names.len()), Ok(2));
        assert!(names(&value("['']"), Range::Other).is_err() && names(&value("1"), Range::Other).is_err());
        assert!(cookie(&value("'__Host-t'"), Range::Other).is_ok());
        assert!(
            cookie(&value("'a b'"), Range::Other).is_err() && cookie(&value("''"), Range::Other).is_err()
        );
        assert_eq!(file(&value("'none'"), Range::Other), Ok(None));
        assert!(file(&value("''"), Range::Other).is_err());
    }
}
