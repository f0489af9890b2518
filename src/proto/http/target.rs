//! The request target (RFC 9112 §3.2): its form, its path, its query, percent-decoding (RFC 3986 §2.1).
//! Owns the rule that a path is decoded once. Borrows where there is nothing to decode. Unencoded UTF-8, which curl
//! sends, is taken as it is: it has only one reading.

use std::borrow::Cow;

use super::error::HttpError;
use super::host;
use super::request::Method;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// Origin-form, and absolute-form without its authority. `path` begins with `/` and is not decoded.
    Path { path: &'a str, query: Query<'a> },
    /// `OPTIONS *`: the server itself.
    Asterisk,
}

/// What follows the first `?`, not decoded; no `?` and nothing after it are the same.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Query<'a>(&'a str);

/// Splits a target; the second value is the authority of the absolute-form, which overrides `Host`
/// (RFC 9112 §3.2.2).
pub(super) fn parse(method: Method, raw: &str) -> Result<(Target<'_>, Option<&str>), HttpError> {
    if method == Method::Connect {
        return Err(HttpError::NotAProxy);
    }
    // A fragment is never sent (RFC 9110 §4.1): whoever sends one may mean another resource than we would read.
    if memchr::memchr(b'#', raw.as_bytes()).is_some() {
        return Err(HttpError::Target);
    }
    if raw.starts_with('/') {
        return Ok((split_query(raw), None));
    }
    if raw == "*" {
        return if method == Method::Options { Ok((Target::Asterisk, None)) } else { Err(HttpError::Target) };
    }
    let Some((scheme, rest)) = raw.split_once("://") else {
        let authority_form = host::parse(raw.as_bytes()).is_some_and(|host| host.contains(':'));
        return Err(if authority_form { HttpError::NotAProxy } else { HttpError::Target });
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(HttpError::Target);
    }
    let authority_bytes = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(authority_bytes).ok_or(HttpError::Target)?;
    let authority = host::parse(authority.as_bytes()).ok_or(HttpError::HostInvalid)?;
    Ok((split_query(path), Some(authority)))
}

fn split_query(raw: &str) -> Target<'_> {
    let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
    // `http://host` and `http://host?q` have an empty path, which is `/` (RFC 9110 §4.2.3).
    Target::Path { path: if path.is_empty() { "/" } else { path }, query: Query(query) }
}

/// Percent-decodes a path, once. `+` stays as it is.
///
/// # Errors
/// [`HttpError::PercentEncoding`], [`HttpError::NotUtf8`].
pub fn decode_path(path: &str) -> Result<Cow<'_, str>, HttpError> {
    decode(path, false)
}

impl<'a> Query<'a> {
    /// A query without its `?`.
    pub const fn new(raw: &'a str) -> Self {
        Self(raw)
    }

    /// As it came.
    pub const fn raw(self) -> &'a str {
        self.0
    }

    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The pairs `key=value` in order, decoded as `application/x-www-form-urlencoded`: `+` is a space. A part without
    /// `=` is a key with an empty value; empty parts are skipped.
    pub fn pairs(self) -> impl Iterator<Item = Result<(Cow<'a, str>, Cow<'a, str>), HttpError>> {
        self.raw_pairs().map(|(key, value)| Ok((decode(key, true)?, decode(value, true)?)))
    }

    /// The value of `key`. Values of other keys are not looked at.
    ///
    /// # Errors
    /// [`HttpError::ParameterRepeated`] if `key` stands more than once: which counts could be read two ways;
    /// and what decoding gives.
    pub fn get(self, key: &str) -> Result<Option<Cow<'a, str>>, HttpError> {
        let mut found = None;
        for (raw_key, raw_value) in self.raw_pairs() {
            if decode(raw_key, true)? != key {
                continue;
            }
            if found.is_some() {
                return Err(HttpError::ParameterRepeated);
            }
            found = Some(decode(raw_value, true)?);
        }
        Ok(found)
    }

    /// The query without the parameters that are called by one of `keys`, not decoded.
    pub fn without(self, keys: &[&str]) -> Cow<'a, str> {
        let is_kept = |(key, _): &(&str, &str)| decode(key, true).is_ok_and(|key| !keys.contains(&&*key));
        if self.raw_pairs().all(|pair| is_kept(&pair)) {
            return Cow::Borrowed(self.0);
        }
        let parts = self.0.split('&').filter(|part| !part.is_empty());
        let kept = parts.filter(|part| is_kept(&part.split_once('=').unwrap_or((part, ""))));
        Cow::Owned(kept.collect::<Vec<_>>().join("&"))
    }

    fn raw_pairs(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let parts = self.0.split('&').filter(|part| !part.is_empty());
        parts.map(|part| part.split_once('=').unwrap_or((part, "")))
    }
}

impl std::fmt::Debug for Query<'_> {
    /// Never the text: it may be a token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Query({} bytes)", self.0.len())
    }
}

fn decode(raw: &str, plus_is_space: bool) -> Result<Cow<'_, str>, HttpError> {
    let is_coded = |byte: u8| byte == b'%' || (plus_is_space && byte == b'+');
    if !raw.bytes().any(is_coded) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut decoded = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (bytes.next().and_then(hex_digit), bytes.next().and_then(hex_digit));
                let (Some(high), Some(low)) = (high, low) else { return Err(HttpError::PercentEncoding) };
                (high << 4) | low
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| HttpError::NotUtf8)
}

pub(super) const fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path<'a>(path: &'a str, query: &'a str) -> Target<'a> {
        Target::Path { path, query: Query(query) }
    }

    #[test]
    fn forms() {
        let get = |raw| parse(Method::Get, raw);
        for (raw, expected) in [
            ("/", Ok((path("/", ""), None))),
            ("/a%2Fb?c=d?e", Ok((path("/a%2Fb", "c=d?e"), None))),
            ("//a/b", Ok((path("//a/b", ""), None))),
            ("/a?", Ok((path("/a", ""), None))),
            ("http://h:80/a?b", Ok((path("/a", "b"), Some("h:80")))),
            ("HTTPS://h", Ok((path("/", ""), Some("h")))),
            ("http://h?b", Ok((path("/", "b"), Some("h")))),
            ("http:///a", Err(HttpError::HostInvalid)),
            ("http://u@h/a", Err(HttpError::HostInvalid)),
            ("ftp://h/a", Err(HttpError::Target)),
            ("/a#b", Err(HttpError::Target)),
            ("a", Err(HttpError::Target)),
            ("?a", Err(HttpError::Target)),
            ("*", Err(HttpError::Target)),
            ("h:443", Err(HttpError::NotAProxy)),
        ] {
            assert_eq!(get(raw), expected, "{raw}");
        }
        assert_eq!(parse(Method::Options, "*"), Ok((Target::Asterisk, None)));
        assert_eq!(parse(Method::Connect, "/"), Err(HttpError::NotAProxy));
        assert_eq!(parse(Method::Connect, "h:443"), Err(HttpError::NotAProxy));
    }

    #[test]
    fn paths() {
        for (raw, expected) in [
            ("/a/b", Ok("/a/b")),
            ("/a+b", Ok("/a+b")),
            ("/é", Ok("/é")),
            ("/%C3%a9", Ok("/é")),
            ("/%2520", Ok("/%20")),
            ("/%00", Ok("/\0")),
            ("/%", Err(HttpError::PercentEncoding)),
            ("/%4", Err(HttpError::PercentEncoding)),
            ("/%+1", Err(HttpError::PercentEncoding)),
            ("/%é", Err(HttpError::PercentEncoding)),
            ("/%ff", Err(HttpError::NotUtf8)),
            ("/%c0%af", Err(HttpError::NotUtf8)),
            ("/%ed%a0%80", Err(HttpError::NotUtf8)),
        ] {
            assert_eq!(decode_path(raw).as_deref(), expected.as_deref(), "{raw}");
        }
        assert!(matches!(decode_path("/plain"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn queries() {
        for (raw, key, expected) in [
            ("", "a", Ok(None)),
            ("a=1", "a", Ok(Some("1"))),
            ("a=1&b=2", "b", Ok(Some("2"))),
            ("a", "a", Ok(Some(""))),
            ("a=", "a", Ok(Some(""))),
            ("&&a=1&", "a", Ok(Some("1"))),
            ("a=b=c", "a", Ok(Some("b=c"))),
            ("%61=1", "a", Ok(Some("1"))),
            ("a=x+y%2B", "a", Ok(Some("x y+"))),
            ("A=1", "a", Ok(None)),
            ("a=1&a=1", "a", Err(HttpError::ParameterRepeated)),
            ("a=1&%61=2", "a", Err(HttpError::ParameterRepeated)),
            ("b=1&b=2&a=3", "a", Ok(Some("3"))),
            ("a=%", "a", Err(HttpError::PercentEncoding)),
            ("b=%&a=1", "a", Ok(Some("1"))),
            ("%=1", "a", Err(HttpError::PercentEncoding)),
            ("a=%ff", "a", Err(HttpError::NotUtf8)),
        ] {
            let got = Query(raw).get(key);
            assert_eq!(got.as_ref().map(Option::as_deref), expected.as_ref().map(|v| *v), "{raw}");
        }
        assert!(matches!(Query("a=1").get("a"), Ok(Some(Cow::Borrowed("1")))));
        let pairs: Result<Vec<_>, _> = Query("a=1&b=%20&&c").pairs().collect();
        assert_eq!(
            pairs,
            Ok(vec![("a".into(), "1".into()), ("b".into(), " ".into()), ("c".into(), "".into())])
        );
    }

    #[test]
    fn parameters_are_left_out_however_they_are_written() {
        for (raw, expected) in [
            ("", ""),
            ("a=1&b=2", "a=1&b=2"),
            ("token=x", ""),
            ("a=1&token=x&b=2&ticket=y", "a=1&b=2"),
            ("%74oken=x&a=1", "a=1"),
            ("token&a=%74oken", "a=%74oken"),
            ("tokens=x&Token=y&&token=z", "tokens=x&Token=y"),
            ("%=x&a=1", "a=1"),
        ] {
            assert_eq!(Query(raw).without(&["ticket", "token"]), expected, "{raw}");
        }
        assert!(matches!(Query("a=1").without(&["token"]), Cow::Borrowed("a=1")));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(text in any::<String>()) {
            let coded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let decoded = decode_path(&coded);
            prop_assert_eq!(decoded.as_deref(), Ok(text.as_str()));
        }

        /// Two pieces decode to what the whole decodes to, wherever the cut is not inside an escape or a character.
        #[test]
        fn cuts_change_nothing(raw in "(%[0-9A-F]{2}|[a-z+%é/]){0,12}") {
            for (cut, _) in raw.char_indices() {
                let (head, tail) = raw.split_at(cut);
                if let (Ok(head), Ok(tail)) = (decode_path(head), decode_path(tail)) {
                    let (whole, joined) = (decode_path(&raw), format!("{head}{tail}"));
                    prop_assert_eq!(whole.as_deref(), Ok(joined.as_str()));
                }
            }
        }
    }
}
