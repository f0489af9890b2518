//! What of a request may be shown to others than its server: in logs and traces.
//! Owns the rule that tokens and tickets are never part of that, wherever a client puts them. Takes bytes that need not be a
//! request at all.

use super::target::hex_digit;

/// Stands where a secret was.
const HIDDEN: &str = "-";
/// Query parameters whose values are secrets: what ends like one of these, to be on the safe side (`access_token`).
const SECRETS: [&str; 13] = [
    "token",
    "tokens",
    "ticket",
    "tickets",
    "secret",
    "password",
    "jwt",
    "auth",
    "authorization",
    "bearer",
    "key",
    "session",
    "credentials",
];
/// How JWTs begin (RFC 7515 §3.1: the base64url of `{"`), and this server's API keys; what follows must be so long.
const LOOKS: [(&str, usize); 2] = [("eyJ", 8), ("pushline_", 16)];

/// A request target without its authority and without the values of secret parameters; at most `bytes_max` of it.
pub fn target(raw: &[u8], bytes_max: usize) -> String {
    let raw = String::from_utf8_lossy(raw);
    let (path, query) = raw.split_once('?').unwrap_or((&raw, ""));
    // A query whose `?` is escaped is part of the path.
    let path = without_authority(path);
    let mut shown = if names_secret(path) { format!("/{HIDDEN}") } else { without_secrets(path) };
    let mut separator = '?';
    for part in query.split('&').filter(|part| !part.is_empty()) {
        shown.push(separator);
        separator = '&';
        shown.push_str(&parameter(part));
    }
    cut(shown, bytes_max)
}

/// A URL up to its query, which may hold anything: for `Referer`.
pub fn url_without_query(raw: &[u8], bytes_max: usize) -> String {
    let raw = String::from_utf8_lossy(raw);
    let end = raw.find(['?', '#']).unwrap_or(raw.len());
    let url = raw.get(..end).unwrap_or_default();
    // Before an `@` stand a name and a password.
    let shown =
        match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.rsplit_once('@')?.1))) {
            Some((scheme, rest)) => format!("{scheme}://{rest}"),
            None => url.to_owned(),
        };
    cut(without_secrets(&shown), bytes_max)
}

/// Any text, at most `bytes_max` of it.
pub fn text(raw: &[u8], bytes_max: usize) -> String {
    cut(without_secrets(&String::from_utf8_lossy(raw)), bytes_max)
}

/// Method and target of what may be no request: the first two words of its first line, as far as they look like it.
pub fn request_line(head: &[u8]) -> (Option<&str>, Option<&[u8]>) {
    let begin = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(head.len());
    let line = head.get(begin..).unwrap_or_default();
    let line = line.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    let is_method = |word: &&[u8]| word.len() <= 16 && word.iter().all(u8::is_ascii_alphabetic);
    let Some(method) = words.next().filter(is_method) else { return (None, None) };
    let target = words.next().filter(|word| word.starts_with(b"/") || *word == b"*" || has_scheme(word));
    (std::str::from_utf8(method).ok(), target)
}

fn has_scheme(word: &[u8]) -> bool {
    let scheme = word.iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
    word.get(scheme..).is_some_and(|rest| rest.starts_with(b"://"))
}

fn without_authority(path: &str) -> &str {
    let Some((scheme, rest)) = path.split_once("://") else { return path };
    if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return path;
    }
    rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")
}

/// `key=value`, the value hidden if the key, decoded, is that of a secret. Whatever looks like a secret's key further in
/// hides what follows it too: nobody else may take another reading of a broken query.
fn parameter(part: &str) -> String {
    if !names_secret(part) {
        return match part.split_once('=') {
            Some((key, value)) => format!("{}={}", without_secrets(key), without_secrets(value)),
            None => without_secrets(part),
        };
    }
    let key = part.split('=').next().unwrap_or_default();
    // A key that holds an escaped `=` may hold a secret behind it.
    let key = if decoded_leniently(key).contains('=') { HIDDEN } else { key };
    format!("{key}={HIDDEN}")
}

fn names_secret(raw: &str) -> bool {
    // Nothing to decode and nothing to find: most.
    if !raw.contains(['=', '%']) {
        return false;
    }
    let lower = decoded_leniently(raw).to_ascii_lowercase();
    SECRETS
        .iter()
        .any(|secret| lower.match_indices(secret).any(|(at, _)| lower[at + secret.len()..].starts_with('=')))
}

/// A text without those of its segments that look like a token or an API key, whatever they are called.
fn without_secrets(raw: &str) -> String {
    let is_secret = |segment: &str| looks_secret(&decoded_leniently(segment));
    // A secret whose letters are in several segments by its escapes is hidden with all of them.
    if !is_secret(raw) {
        return raw.to_owned();
    }
    let shown: Vec<&str> =
        raw.split('/').map(|segment| if is_secret(segment) { HIDDEN } else { segment }).collect();
    let shown = shown.join("/");
    if is_secret(&shown) { HIDDEN.to_owned() } else { shown }
}

fn looks_secret(text: &str) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    LOOKS.iter().any(|(begin, bytes_min)| {
        text.match_indices(begin).any(|(at, _)| {
            let rest = text.as_bytes().get(at + begin.len()..).unwrap_or_default();
            rest.iter().take_while(|byte| is_part(byte)).count() >= *bytes_min
        })
    })
}

/// Percent-decoded where that can be done, else as it is.
fn decoded_leniently(raw: &str) -> String {
    let mut decoded = Vec::with_capacity(raw.len());
    let bytes = raw.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digit = |ahead: usize| bytes.get(at + ahead).and_then(|byte| hex_digit(*byte));
        match (byte, digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_are_hidden_however_they_are_written() {
        for (raw, want) in [
            ("/channels/a", "/channels/a"),
            ("/channels/a?cursor=x&wait=5", "/channels/a?cursor=x&wait=5"),
            ("/channels/a?token=s3cret", "/channels/a?token=-"),
            ("/channels/a?cursor=x&ticket=s3cret&wait=5", "/channels/a?cursor=x&ticket=-&wait=5"),
            ("/channels/a?%74oken=s3cret", "/channels/a?%74oken=-"),
            ("/channels/a?TOKEN=s3cret", "/channels/a?TOKEN=-"),
            ("/channels/a?access_token=s3cret", "/channels/a?access_token=-"),
            ("/channels/a?token%3Ds3cret", "/channels/a?-=-"),
            ("/channels/a?a=b?token=s3cret", "/channels/a?a=-"),
            ("/channels/a?a;token=s3cret", "/channels/a?a;token=-"),
            ("/channels/a?token=s3cret=s3cret", "/channels/a?token=-"),
            ("/channels/a?token", "/channels/a?token"),
            ("/channels/a?t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.c2ln&b=c", "/channels/a?t=-&b=c"),
            ("/channels/a?t=%65yJhbGciOiJIUzI1NiJ9.eyJzdWIi.c2ln", "/channels/a?t=-"),
            ("/channels/eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.c2ln/b", "/channels/-/b"),
            ("/channels/a?x=pushline_s3crets3crets3cret", "/channels/a?x=-"),
            (
                "/channels/a?jwt=s3cret&api_key=s3cret&authorization=s3cret",
                "/channels/a?jwt=-&api_key=-&authorization=-",
            ),
            ("/channels/pushline_news/eyJ?cursor=eyJ", "/channels/pushline_news/eyJ?cursor=eyJ"),
            ("/channels/a?&&", "/channels/a"),
            ("http://user:s3cret@host/channels/a?b", "/channels/a?b"),
            ("http://user:s3cret@host", "/"),
            ("/a://b", "/a://b"),
            ("/channels/a%3Ftoken=s3cret", "/-"),
        ] {
            let shown = target(raw.as_bytes(), 1_000);
            assert_eq!(shown, want, "{raw}");
            assert!(!shown.contains("s3cret"), "{raw}");
        }
        assert_eq!(target("/ééé".as_bytes(), 4), "/é…");
        assert_eq!(
            url_without_query(b"https://u:s3cret@app.example/a?token=s#b", 99),
            "https://app.example/a"
        );
    }

    #[test]
    fn what_is_no_request_shows_little() {
        for (head, want) in [
            (&b"GET /a?b HTTP/1.1\r\n"[..], (Some("GET"), Some(&b"/a?b"[..]))),
            (b"\r\nGET /a", (Some("GET"), Some(b"/a"))),
            (b"GET", (Some("GET"), None)),
            (b"GET http://h/a HTTP/1.1", (Some("GET"), Some(b"http://h/a"))),
            (b"GET eyJhbGciOi", (Some("GET"), None)),
            (b"\x16\x03\x01 /a", (None, None)),
            (b"Authorization: Bearer s3cret", (None, None)),
            (b"", (None, None)),
        ] {
            assert_eq!(request_line(head), want, "{}", String::from_utf8_lossy(head));
        }
    }

    proptest! {
        #[test]
        fn no_token_is_ever_shown(
            before in "[a-z%&=?;/.]{0,12}",
            key in "(token|ticket|%74icket|Token)",
            after in "[a-z%&=?;]{0,12}",
        ) {
            let raw = format!("/channels/a?{before}&{key}=S3CRET{after}");
            prop_assert!(!target(raw.as_bytes(), 1_000).contains("S3CRET"), "{raw}");
        }
    }
}
