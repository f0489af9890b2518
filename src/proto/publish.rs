//! The fields of a publish, and a line of `POST /publish`.
//! Owns the rules for event names, TTLs and idempotency keys, the same for headers, batch lines and `pushline.v1`.
//! Channel names belong to the domain: here they are only strings.

use super::json;
use super::members::{self, Members};
use super::payload;
use super::refusal::{ErrorCode, Refusal};
use std::borrow::Cow;

pub const EVENT_BYTES_MAX: usize = 64;
pub const KEY_BYTES_MAX: usize = 128;

/// Why a field of a publish is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFieldError {
    EventEmpty,
    EventTooLong,
    EventNotUtf8,
    EventControl,
    /// `error` and `open` are events of EventSource itself; a client could not tell them apart.
    EventReserved,
    /// A leading `$` marks the server's own events.
    EventDollar,
    TtlNotWhole,
    KeyEmpty,
    KeyTooLong,
}

impl PublishFieldError {
    /// What was wrong and what would be right, for the client.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::EventEmpty => "the event name is empty; leave it out, or give 1 to 64 bytes of UTF-8",
            Self::EventTooLong => "the event name is longer than 64 bytes; shorten it",
            Self::EventNotUtf8 => "the event name is not UTF-8; encode it as UTF-8",
            Self::EventControl => "the event name has a control character; use printable characters",
            Self::EventReserved => "the event names 'error' and 'open' belong to EventSource; choose another",
            Self::EventDollar => {
                "event names that begin with '$' belong to the server; choose another first character"
            }
            Self::TtlNotWhole => "the TTL is not a whole number of seconds; write digits alone, such as 60",
            Self::KeyEmpty => "the idempotency key is empty; leave it out, or give 1 to 128 bytes",
            Self::KeyTooLong => "the idempotency key is longer than 128 bytes; shorten it, or send its hash",
        }
    }

    /// The code of the same refusal in `pushline.v1` and batch answers.
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::EventEmpty
            | Self::EventTooLong
            | Self::EventNotUtf8
            | Self::EventControl
            | Self::EventReserved
            | Self::EventDollar => ErrorCode::BadEvent,
            Self::TtlNotWhole => ErrorCode::BadTtl,
            Self::KeyEmpty | Self::KeyTooLong => ErrorCode::BadKey,
        }
    }
}

impl From<PublishFieldError> for Refusal {
    fn from(error: PublishFieldError) -> Self {
        Self::new(error.code(), error.detail())
    }
}

/// Checks an event name: 1 to 64 bytes of UTF-8, no control characters, not `error` or `open`, no leading `$`.
///
/// # Errors
/// The rule that it breaks.
pub fn check_event(name: &[u8]) -> Result<&str, PublishFieldError> {
    if name.is_empty() {
        return Err(PublishFieldError::EventEmpty);
    }
    if name.len() > EVENT_BYTES_MAX {
        return Err(PublishFieldError::EventTooLong);
    }
    let name = std::str::from_utf8(name).map_err(|_| PublishFieldError::EventNotUtf8)?;
    if name.chars().any(char::is_control) {
        return Err(PublishFieldError::EventControl);
    }
    if name.starts_with('$') {
        return Err(PublishFieldError::EventDollar);
    }
    if matches!(name, "error" | "open") {
        return Err(PublishFieldError::EventReserved);
    }
    Ok(name)
}

/// Reads a TTL in seconds. One beyond `u32` is cut to it: it is a whole number, and the channel's limit cuts it further.
///
/// # Errors
/// When it is anything but digits.
pub fn parse_ttl(digits: &[u8]) -> Result<u32, PublishFieldError> {
    if digits.is_empty() {
        return Err(PublishFieldError::TtlNotWhole);
    }
    digits.iter().try_fold(0u32, |seconds, byte| match byte {
        b'0'..=b'9' => Ok(seconds.saturating_mul(10).saturating_add(u32::from(byte - b'0'))),
        _ => Err(PublishFieldError::TtlNotWhole),
    })
}

/// Checks an idempotency key: 1 to 128 bytes, any bytes.
///
/// # Errors
/// When it is empty or longer.
pub fn check_key(key: &[u8]) -> Result<(), PublishFieldError> {
    match key.len() {
        0 => Err(PublishFieldError::KeyEmpty),
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(PublishFieldError::KeyTooLong),
    }
}

/// The data of a publish that came as JSON; decoded, so owned where the decoding changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublishData<'a> {
    Json(&'a str),
    Text(Cow<'a, str>),
    Binary(Vec<u8>),
}

impl PublishData<'_> {
    /// How many there are.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Json(text) => text.len(),
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }
}

/// One publish that came as a JSON object. Everything but `channel` and the data's size is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish<'a> {
    pub channel: Cow<'a, str>,
    pub data: PublishData<'a>,
    pub event: Option<Cow<'a, str>>,
    pub ttl_s: Option<u32>,
    pub key: Option<Cow<'a, str>>,
}

impl<'a> Publish<'a> {
    pub(super) fn from_members(members: &Members<'a>) -> Result<Self, Refusal> {
        let channel = members.channel()?;
        let data = data(members)?;
        let event = members.event.map(|raw| {
            let name = members::string(raw).ok_or(Refusal::new(
                ErrorCode::BadEvent,
                "'event' is not a valid JSON string; leave it out, or give 1 to 64 bytes of UTF-8",
            ))?;
            check_event(name.as_bytes())?;
            Ok::<_, Refusal>(name)
        });
        let key = members.key.map(|raw| {
            let key = members::string(raw).ok_or(Refusal::new(
                ErrorCode::BadKey,
                "'key' is not a valid JSON string; leave it out, or give 1 to 128 bytes",
            ))?;
            check_key(key.as_bytes())?;
            Ok::<_, Refusal>(key)
        });
        let ttl_s = members.ttl.map(|raw| parse_ttl(raw.get().as_bytes()));
        Ok(Self {
            channel,
            data,
            event: event.transpose()?,
            ttl_s: ttl_s.transpose()?,
            key: key.transpose()?,
        })
    }
}

/// Reads one line of a batch: `{"channel":…,"data":…|"base64":…,"event":…,"ttl":…,"key":…}`.
///
/// # Errors
/// What is wrong with this line; the others are not concerned.
pub fn parse_batch_line(line: &[u8]) -> Result<Publish<'_>, Refusal> {
    let text = std::str::from_utf8(line)
        .map_err(|_| Refusal::new(ErrorCode::BadFrame, "the line is not UTF-8; encode it as UTF-8"))?;
    Publish::from_members(&Members::parse(text)?)
}

/// A JSON string as `data` is a text message, any other value a JSON message; `base64` in its place a binary one.
fn data<'a>(members: &Members<'a>) -> Result<PublishData<'a>, Refusal> {
    const fn bad(detail: &'static str) -> Refusal {
        Refusal::new(ErrorCode::BadData, detail)
    }
    match (members.data, members.base64) {
        (Some(raw), None) if raw.get().starts_with('"') => members::string(raw)
            .map(PublishData::Text)
            .ok_or(bad("'data' has half a surrogate pair; write the whole pair, or the character itself")),
        (Some(raw), None) => match json::check_depth(raw.get()) {
            Ok(()) => Ok(PublishData::Json(raw.get())),
            Err(error) => Err(bad(error.detail())),
        },
        (None, Some(raw)) => members::string(raw)
            .and_then(|text| payload::read_base64(&text))
            .map(PublishData::Binary)
            .ok_or(bad("'base64' is not base64; use the standard alphabet (+ and /), without white space")),
        (Some(_), Some(_)) => Err(bad("both 'data' and 'base64'; give one of them")),
        (None, None) => Err(bad("neither 'data' nor 'base64'; give one of them")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events() {
        use PublishFieldError::*;
        let long = "a".repeat(65);
        for (name, want) in [
            (&b"tick"[..], Ok("tick")),
            (b"a b:c", Ok("a b:c")),
            ("\u{e9}v\u{e9}nement".as_bytes(), Ok("événement")),
            (b"errors", Ok("errors")),
            (b"a$", Ok("a$")),
            (&long.as_bytes()[..64], Ok(&long[..64])),
            (long.as_bytes(), Err(EventTooLong)),
            (b"", Err(EventEmpty)),
            (b"\xff", Err(EventNotUtf8)),
            (b"a\nb", Err(EventControl)),
            (b"a\tb", Err(EventControl)),
            (b"a\0", Err(EventControl)),
            ("a\u{85}".as_bytes(), Err(EventControl)),
            (b"\x7f", Err(EventControl)),
            (b"error", Err(EventReserved)),
            (b"open", Err(EventReserved)),
            (b"$gap", Err(EventDollar)),
        ] {
            assert_eq!(check_event(name), want, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn ttls() {
        for (digits, want) in [
            (&b"0"[..], Some(0)),
            (b"60", Some(60)),
            (b"060", Some(60)),
            (b"4294967295", Some(u32::MAX)),
            (b"4294967296", Some(u32::MAX)),
            (b"99999999999999999999999999", Some(u32::MAX)),
            (b"", None),
            (b"-1", None),
            (b"+1", None),
            (b"1.5", None),
            (b"1e3", None),
            (b" 1", None),
            (b"1s", None),
        ] {
            assert_eq!(parse_ttl(digits).ok(), want, "{}", digits.escape_ascii());
        }
    }

    #[test]
    fn keys() {
        for (bytes, want) in [
            (0, Err(PublishFieldError::KeyEmpty)),
            (1, Ok(())),
            (128, Ok(())),
            (129, Err(PublishFieldError::KeyTooLong)),
        ] {
            assert_eq!(check_key(&vec![0xff; bytes]), want, "{bytes}");
        }
    }

    #[test]
    fn batch_lines() {
        let json = |json| Ok(PublishData::Json(json));
        let text = |text: &'static str| Ok(PublishData::Text(text.into()));
        let deep = format!(r#"{{"channel":"c","data":{}{}}}"#, "[".repeat(129), "]".repeat(129));
        for (name, line, want) in [
            ("json, as it came", &br#"{"channel":"c","data": {"a": 1.0 } }"#[..], json(r#"{"a": 1.0 }"#)),
            ("null is a message", br#"{"channel":"c","data":null}"#, json("null")),
            ("text", br#"{"channel":"c","data":"hi"}"#, text("hi")),
            ("escaped text", br#"{"channel":"c","data":"\u0041\n"}"#, text("A\n")),
            ("binary", br#"{"channel":"c","base64":"aGk="}"#, Ok(PublishData::Binary(b"hi".to_vec()))),
            ("carriage return after", b"{\"channel\":\"c\",\"data\":1}\r", json("1")),
            ("unknown members", br#"{"channel":"c","data":1,"x":[[1],{}]}"#, json("1")),
            ("escaped member", br#"{"ch\u0061nnel":"c","data":1}"#, json("1")),
            ("nulls", br#"{"channel":"c","data":1,"event":null,"ttl":null,"key":null}"#, json("1")),
            ("both", br#"{"channel":"c","data":null,"base64":""}"#, Err(ErrorCode::BadData)),
            ("neither", br#"{"channel":"c"}"#, Err(ErrorCode::BadData)),
            ("bad base64", br#"{"channel":"c","base64":"a-_="}"#, Err(ErrorCode::BadData)),
            ("base64 of a number", br#"{"channel":"c","base64":1}"#, Err(ErrorCode::BadData)),
            ("half a surrogate pair", br#"{"channel":"c","data":"\ud800"}"#, Err(ErrorCode::BadData)),
            ("too deep", deep.as_bytes(), Err(ErrorCode::BadData)),
            ("no channel", br#"{"data":1}"#, Err(ErrorCode::BadFrame)),
            ("channel of a number", br#"{"channel":1,"data":1}"#, Err(ErrorCode::BadChannel)),
            ("bad event", br#"{"channel":"c","data":1,"event":"$x"}"#, Err(ErrorCode::BadEvent)),
            ("event of a number", br#"{"channel":"c","data":1,"event":1}"#, Err(ErrorCode::BadEvent)),
            ("ttl as a string", br#"{"channel":"c","data":1,"ttl":"1"}"#, Err(ErrorCode::BadTtl)),
            ("negative ttl", br#"{"channel":"c","data":1,"ttl":-1}"#, Err(ErrorCode::BadTtl)),
            ("empty key", br#"{"channel":"c","data":1,"key":""}"#, Err(ErrorCode::BadKey)),
            ("channel twice", br#"{"channel":"c","channel":"d","data":1}"#, Err(ErrorCode::BadFrame)),
            ("array", br#"["c",1]"#, Err(ErrorCode::BadFrame)),
            ("two objects", br#"{"channel":"c","data":1}{}"#, Err(ErrorCode::BadFrame)),
            ("nothing", b"", Err(ErrorCode::BadFrame)),
            ("not UTF-8", b"{\"channel\":\"\xff\",\"data\":1}", Err(ErrorCode::BadFrame)),
        ] {
            let got = parse_batch_line(line).map(|publish| publish.data).map_err(|refusal| refusal.code);
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn a_whole_line() {
        let line = br#"{"channel":"a/b","data":"x","event":"tick","ttl":60,"key":"k\u00e9"}"#;
        let want = Publish {
            channel: "a/b".into(),
            data: PublishData::Text("x".into()),
            event: Some("tick".into()),
            ttl_s: Some(60),
            key: Some("k\u{e9}".into()),
        };
        assert_eq!(parse_batch_line(line), Ok(want));
    }

    proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>) {
            let _ = parse_batch_line(&line);
        }

        #[test]
        fn every_cut_of_a_line_is_refused(text in "(?s).{0,20}", event in "[a-z]{1,4}x") {
            let line = serde_json::json!({"channel": "c", "data": text, "event": event}).to_string();
            prop_assert!(parse_batch_line(line.as_bytes()).is_ok());
            for cut in 0..line.len() {
                prop_assert!(parse_batch_line(&line.as_bytes()[..cut]).is_err(), "cut at {}", cut);
            }
        }
    }
}
