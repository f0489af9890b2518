//! Values of header fields (RFC 9110 §5.6): lists, `Accept`, `Prefer`, `If-None-Match`, `Authorization`, `Cookie`,
//! `Content-Type`. Owns their grammar, and what a malformed value means: it is as if it were not there, for none of
//! these decides where a message ends. Values come as bytes, several where a field may stand several times.

/// Whether `byte` may stand in a token (RFC 9110 §5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Whether a comma list of tokens has `token`; case does not matter.
pub fn list_has(list: &[u8], token: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|element| trim(element).eq_ignore_ascii_case(token))
}

/// The elements of a comma list, without white space around them; empty ones are skipped (RFC 9110 §5.6.1.2).
/// Commas in quoted strings do not separate.
pub fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    Split { rest: Some(list), separator: b',' }.map(trim).filter(|element| !element.is_empty())
}

/// What a client accepts, of what can be had here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// `text/event-stream` is named, with a weight above 0. Ranges do not name it.
    pub event_stream: bool,
    /// `application/json` is named or in a range, and not excluded by the most specific of them (RFC 9110 §12.5.1);
    /// or there is no (well-formed) `Accept` at all.
    pub json: bool,
}

impl Accept {
    /// Reads all values of `Accept` as one list.
    pub fn parse<'a>(values: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut any = false;
        let mut event_stream = false;
        // The most specific range that JSON is in, by its rank, and whether its weight is above 0.
        let mut json = (0_u8, false);
        for (range, wanted) in values.flat_map(elements).filter_map(media_range) {
            any = true;
            event_stream |= wanted && range.eq_ignore_ascii_case(b"text/event-stream");
            let rank = match range {
                b"*/*" => 1,
                _ if range.eq_ignore_ascii_case(b"application/*") => 2,
                _ if range.eq_ignore_ascii_case(b"application/json") => 3,
                _ => continue,
            };
            json = json.max((rank, wanted));
        }
        Self { event_stream, json: json.1 || !any }
    }
}

/// A media range and whether its weight is above 0. Other parameters do not matter here.
fn media_range(element: &[u8]) -> Option<(&[u8], bool)> {
    let mut parts = Split { rest: Some(element), separator: b';' }.map(trim);
    let range = parts.next().filter(|range| range.contains(&b'/'))?;
    for part in parts {
        if let [b'q' | b'Q', b'=', weight @ ..] = part {
            return Some((range, weight_above_zero(weight)?));
        }
    }
    Some((range, true))
}

/// RFC 9110 §12.4.2: at most three digits after the point.
fn weight_above_zero(weight: &[u8]) -> Option<bool> {
    let (whole, fraction) = match weight {
        [whole] | [whole, b'.'] => (whole, &[][..]),
        [whole, b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
        _ => return None,
    };
    match whole {
        b'0' if fraction.iter().all(u8::is_ascii_digit) => Some(fraction.iter().any(|&digit| digit != b'0')),
        b'1' if fraction.iter().all(|&digit| digit == b'0') => Some(true),
        _ => None,
    }
}

/// Seconds of `Prefer: wait=S` (RFC 7240 §4.3). The first `wait` counts (§2), and is ignored if it is not a whole
/// number; one too large for `u64` is its largest.
pub fn prefer_wait<'a>(values: impl Iterator<Item = &'a [u8]>) -> Option<u64> {
    let wait = values.flat_map(elements).find_map(|element| {
        let preference = Split { rest: Some(element), separator: b';' }.next()?;
        let equals = preference.iter().position(|&byte| byte == b'=').unwrap_or(preference.len());
        let (name, value) = preference.split_at_checked(equals)?;
        trim(name).eq_ignore_ascii_case(b"wait").then_some(trim(value.get(1..).unwrap_or_default()))
    })?;
    seconds(wait.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(wait))
}

/// A whole number of seconds: digits alone. One too large for `u64` is its largest.
pub fn seconds(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(sum.saturating_mul(10).saturating_add(digit))
    })
}

/// Whether `If-None-Match` names `etag`, a strong tag with its quotes, or is `*` (RFC 9110 §13.1.2, weak comparison).
/// A malformed value names nothing: the safe reading sends the whole answer.
pub fn if_none_match<'a>(values: impl Iterator<Item = &'a [u8]>, etag: &[u8]) -> bool {
    let mut found = false;
    let mut tags = 0_usize;
    let mut star = false;
    for mut rest in values {
        loop {
            rest = trim(rest);
            if let Some(after) = rest.strip_prefix(b"*") {
                (star, rest, tags) = (true, after, tags + 1);
            } else if !rest.is_empty() && !rest.starts_with(b",") {
                let Some((tag, after)) = entity_tag(rest) else { return false };
                found |= tag == etag;
                (rest, tags) = (after, tags + 1);
            }
            match trim(rest) {
                [] => break,
                [b',', after @ ..] => rest = after,
                _ => return false,
            }
        }
    }
    if star { tags == 1 } else { found }
}

/// One entity tag, without `W/` and with its quotes, and what follows it (RFC 9110 §8.8.3). Unlike in a quoted
/// string, a backslash escapes nothing.
fn entity_tag(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let input = input.strip_prefix(b"W/").unwrap_or(input);
    let inner = input.strip_prefix(b"\"")?;
    let len = inner.iter().position(|&byte| byte == b'"')?;
    let (tag, after) = input.split_at_checked(len + 2)?;
    inner.get(..len)?.iter().all(|&byte| byte > b' ' && byte != 0x7f).then_some((tag, after))
}

/// What an `Authorization` field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authorization<'a> {
    Bearer(&'a str),
    /// The scheme is `Bearer`, but no token follows, or what follows is none.
    BearerMalformed,
    OtherScheme,
}

/// RFC 9110 §11.6.2, RFC 6750 §2.1.
pub fn authorization(value: &[u8]) -> Authorization<'_> {
    let (scheme, rest) = match value.iter().position(|&byte| byte == b' ') {
        Some(at) => value.split_at_checked(at).unwrap_or((value, b"")),
        None => (value, &b""[..]),
    };
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return Authorization::OtherScheme;
    }
    let token = trim(rest);
    let padding_bytes = token.iter().rev().take_while(|&&byte| byte == b'=').count();
    let (symbols, _) = token.split_at(token.len() - padding_bytes);
    let is_symbol =
        |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/');
    match std::str::from_utf8(token) {
        Ok(token) if !symbols.is_empty() && symbols.iter().all(is_symbol) => Authorization::Bearer(token),
        _ => Authorization::BearerMalformed,
    }
}

/// The cookie called `name` (RFC 6265 §5.4); quotes around its value are taken off.
///
/// # Errors
/// [`Several`]: a site beside this one may have set one of them (RFC 6265 §8.6), and their order says nothing.
pub fn cookie<'a>(values: impl Iterator<Item = &'a [u8]>, name: &[u8]) -> Result<Option<&'a [u8]>, Several> {
    let mut found = values.flat_map(|value| value.split(|&byte| byte == b';')).filter_map(|pair| {
        let value = trim(pair).strip_prefix(name)?.strip_prefix(b"=")?;
        Some(value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value))
    });
    let first = found.next();
    if found.any(|other| Some(other) != first) { Err(Several) } else { Ok(first) }
}

/// Cookies of one name have different values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Several;

/// What a `Content-Type` says about the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentKind {
    /// `application/json`, and every type that ends in `+json`.
    Json,
    /// `text/*`, and what curl sends by itself: `application/x-www-form-urlencoded`.
    Text,
    /// All else, and no type.
    Binary,
}

impl ContentKind {
    /// Parameters are not looked at.
    pub fn of(content_type: Option<&[u8]>) -> Self {
        match content_type {
            Some(b"application/json") => return Self::Json,
            Some(b"text/plain") => return Self::Text,
            Some(b"application/octet-stream") | None => return Self::Binary,
            Some(_) => {}
        }
        let essence = content_type.and_then(|value| value.split(|&byte| byte == b';').next()).map(trim);
        let Some(essence) = essence else { return Self::Binary };
        let Some(slash) = essence.iter().position(|&byte| byte == b'/') else { return Self::Binary };
        let (kind, subtype) = essence.split_at_checked(slash).unwrap_or_default();
        let is_json_suffixed = subtype.len() > 6
            && subtype.get(subtype.len() - 5..).is_some_and(|end| end.eq_ignore_ascii_case(b"+json"));
        if is_json_suffixed || essence.eq_ignore_ascii_case(b"application/json") {
            Self::Json
        } else if (kind.eq_ignore_ascii_case(b"text") && subtype.len() > 1)
            || essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
        {
            Self::Text
        } else {
            Self::Binary
        }
    }
}

/// Without the spaces and tabs around it (RFC 9110 §5.6.3: OWS).
pub const fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Splits at `separator`, but not within quoted strings (RFC 9110 §5.6.4). One that never ends takes the rest.
struct Split<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest.take()?;
        let (mut quoted, mut escaped) = (false, false);
        let end = rest.iter().position(|&byte| {
            if escaped {
                escaped = false;
            } else if quoted && byte == b'\\' {
                escaped = true;
            } else if byte == b'"' {
                quoted = !quoted;
            } else {
                return byte == self.separator && !quoted;
            }
            false
        });
        let Some((part, after)) = end.and_then(|end| rest.split_at_checked(end)) else { return Some(rest) };
        self.rest = after.get(1..);
        Some(part)
    }
}

#[cfg(test)]
mod tests {
    use std::iter::once;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists() {
        for (list, expected) in [
            ("", &[][..]),
            (" , ,", &[]),
            ("a", &["a"]),
            ("a,b , c\t", &["a", "b", "c"]),
            (r#"a="x,y", b"#, &[r#"a="x,y""#, "b"]),
            (r#"a="x\",y", b"#, &[r#"a="x\",y""#, "b"]),
            (r#"a="x, b"#, &[r#"a="x, b"#]),
        ] {
            let got: Vec<_> = elements(list.as_bytes()).collect();
            assert_eq!(got, expected.iter().map(|e| e.as_bytes()).collect::<Vec<_>>(), "{list}");
        }
        assert!(list_has(b"keep-alive, Upgrade", b"upgrade"));
        assert!(!list_has(b"upgrades", b"upgrade"));
    }

    #[test]
    fn accept() {
        for (value, event_stream, json) in [
            ("", false, true),
            ("*/*", false, true),
            ("text/*", false, false),
            ("text/event-stream", true, false),
            ("Text/Event-Stream;charset=utf-8", true, false),
            ("text/event-stream;q=0", false, false),
            ("text/event-stream;q=0.000, */*", false, true),
            ("text/event-stream; q=0.001", true, false),
            ("application/json, text/event-stream", true, true),
            ("application/*", false, true),
            ("application/json;q=0, */*", false, false),
            ("*/*;q=0, application/json", false, true),
            ("application/*;q=0, */*", false, false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false, true),
            ("text/html", false, false),
            ("text/event-stream;q=2", false, true),
            (r#"text/html;a=", text/event-stream""#, false, false),
            ("nonsense", false, true),
        ] {
            let got = Accept::parse(once(value.as_bytes()));
            assert_eq!(got, Accept { event_stream, json }, "{value}");
        }
        assert_eq!(Accept::parse(std::iter::empty()), Accept { event_stream: false, json: true });
        let both = Accept::parse([&b"text/event-stream"[..], b"application/json"].into_iter());
        assert_eq!(both, Accept { event_stream: true, json: true });
    }

    #[test]
    fn weights() {
        for (weight, expected) in [
            ("1", Some(true)),
            ("1.", Some(true)),
            ("1.000", Some(true)),
            ("0", Some(false)),
            ("0.0", Some(false)),
            ("0.5", Some(true)),
            ("0.001", Some(true)),
            ("0.0001", None),
            ("1.1", None),
            ("", None),
            (".5", None),
            ("-1", None),
            ("0.x", None),
        ] {
            assert_eq!(weight_above_zero(weight.as_bytes()), expected, "{weight}");
        }
    }

    #[test]
    fn prefer() {
        for (value, expected) in [
            ("wait=10", Some(10)),
            ("Wait = 10", Some(10)),
            ("wait=\"10\"", Some(10)),
            ("respond-async, wait=10;x=y", Some(10)),
            ("wait=10, wait=20", Some(10)),
            ("wait=x, wait=20", None),
            ("wait, wait=20", None),
            ("wait=", None),
            ("wait=-1", None),
            ("wait=1.5", None),
            ("wait=\"10", None),
            ("a=\"wait=3\"", None),
            ("waits=3", None),
            ("wait=0", Some(0)),
            ("wait=99999999999999999999999", Some(u64::MAX)),
            ("return=minimal", None),
        ] {
            assert_eq!(prefer_wait(once(value.as_bytes())), expected, "{value}");
        }
        assert_eq!(prefer_wait([&b"a"[..], b"wait=1", b"wait=2"].into_iter()), Some(1));
    }

    #[test]
    fn if_none_match_cases() {
        for (value, expected) in [
            (r#""a""#, true),
            (r#"W/"a""#, true),
            (r#"w/"a""#, false),
            (r#""b""#, false),
            (r#""b", "a""#, true),
            (r#""b",W/"a","c""#, true),
            (r#", "a" ,,"#, true),
            (r#""x,y", "a""#, true),
            (r#""\", "a""#, true),
            ("*", true),
            (" * ", true),
            (r#"*, "a""#, false),
            (r#""a", *"#, false),
            ("*, *", false),
            ("**", false),
            ("a", false),
            (r#""a"#, false),
            (r#""a" "a""#, false),
            (r#""a", b"#, false),
            (r#""a b", "a""#, false),
            ("", false),
        ] {
            assert_eq!(if_none_match(once(value.as_bytes()), br#""a""#), expected, "{value}");
        }
        assert!(if_none_match([&br#""b""#[..], br#""a""#].into_iter(), br#""a""#));
        assert!(!if_none_match([&b"*"[..], br#""a""#].into_iter(), br#""a""#));
        assert!(!if_none_match(std::iter::empty(), br#""a""#));
    }

    #[test]
    fn bearer() {
        for (value, expected) in [
            ("Bearer a.b-c_d~e+f/g==", Authorization::Bearer("a.b-c_d~e+f/g==")),
            ("bearer   x", Authorization::Bearer("x")),
            ("Bearer", Authorization::BearerMalformed),
            ("Bearer ", Authorization::BearerMalformed),
            ("Bearer a b", Authorization::BearerMalformed),
            ("Bearer a,b", Authorization::BearerMalformed),
            ("Bearer ==", Authorization::BearerMalformed),
            ("Bearer a=b", Authorization::BearerMalformed),
            ("Bearer é", Authorization::BearerMalformed),
            ("Basic eA==", Authorization::OtherScheme),
            ("Bearerx y", Authorization::OtherScheme),
            ("", Authorization::OtherScheme),
        ] {
            assert_eq!(authorization(value.as_bytes()), expected, "{value}");
        }
    }

    #[test]
    fn cookies() {
        let find = |value: &'static str| cookie(once(value.as_bytes()), b"t");
        assert_eq!(find("t=1"), Ok(Some(&b"1"[..])));
        assert_eq!(find("a=b; t=\"x=y\"; t=x=y"), Ok(Some(&b"x=y"[..])));
        assert_eq!(find("a=b; t=1; t=2"), Err(Several));
        assert_eq!(find("t=; t=2"), Err(Several));
        assert_eq!(find("tt=1; T=2; t"), Ok(None));
    }

    #[test]
    fn content_kinds() {
        for (value, expected) in [
            ("application/json", ContentKind::Json),
            ("Application/JSON; charset=utf-8", ContentKind::Json),
            ("application/ld+json", ContentKind::Json),
            ("image/x+JSON ;a=b", ContentKind::Json),
            ("application/jsonx", ContentKind::Binary),
            ("application/+json", ContentKind::Binary),
            ("application/json-seq", ContentKind::Binary),
            ("text/plain", ContentKind::Text),
            ("TEXT/x", ContentKind::Text),
            ("text/", ContentKind::Binary),
            ("text", ContentKind::Binary),
            ("application/x-www-form-urlencoded", ContentKind::Text),
            ("application/octet-stream", ContentKind::Binary),
            ("", ContentKind::Binary),
        ] {
            assert_eq!(ContentKind::of(Some(value.as_bytes())), expected, "{value}");
        }
        assert_eq!(ContentKind::of(None), ContentKind::Binary);
    }

    proptest! {
        /// A list cut at a comma outside quotes, into two fields, means the same (RFC 9110 §5.3).
        #[test]
        fn two_fields_are_one_list(parts in proptest::collection::vec(
            prop_oneof![Just("*/*"), Just("text/event-stream;q=0.5"), Just("application/json;q=0"), Just("wait=3"),
                Just("wait=x"), Just("\"a\""), Just("W/\"b\""), Just("x=\"q\\\",z\"")], 1..6)
        ) {
            let whole = parts.join(", ");
            for cut in 0..=parts.len() {
                let (first, second) = (parts[..cut].join(", "), parts[cut..].join(", "));
                let one = || once(whole.as_bytes());
                let two = || [first.as_bytes(), second.as_bytes()].into_iter();
                prop_assert_eq!(Accept::parse(one()), Accept::parse(two()));
                prop_assert_eq!(prefer_wait(one()), prefer_wait(two()));
                prop_assert_eq!(if_none_match(one(), b"\"a\""), if_none_match(two(), b"\"a\""));
            }
        }

        #[test]
        fn noise_is_harmless(noise in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'"'), Just(b','), Just(b';'), Just(b'=')], 0..40)) {
            let _ = Accept::parse(once(&noise[..]));
            let _ = prefer_wait(once(&noise[..]));
            let _ = if_none_match(once(&noise[..]), b"\"a\"");
            let _ = authorization(&noise);
            let _ = cookie(once(&noise[..]), b"a");
            let _ = ContentKind::of(Some(&noise));
        }
    }
}
