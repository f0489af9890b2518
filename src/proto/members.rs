//! The members of a JSON object from a client, found but not yet read: each is checked on its own, so that a refusal
//! can name the member and still echo `seq`. Borrows from the text; `data` keeps its bytes.

use super::refusal::{ErrorCode, Refusal};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Every member that any object from a client may have. Others are ignored; `null` is the same as leaving it out,
/// except for `data`, where it is a JSON message.
#[derive(Deserialize)]
pub struct Members<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Option<&'a RawValue>,
    #[serde(borrow)]
    pub seq: Option<&'a RawValue>,
    #[serde(borrow)]
    pub channel: Option<&'a RawValue>,
    #[serde(borrow)]
    pub cursor: Option<&'a RawValue>,
    #[serde(borrow)]
    pub history: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "even_null")]
    pub data: Option<&'a RawValue>,
    #[serde(borrow)]
    pub base64: Option<&'a RawValue>,
    #[serde(borrow)]
    pub event: Option<&'a RawValue>,
    #[serde(borrow)]
    pub ttl: Option<&'a RawValue>,
    #[serde(borrow)]
    pub key: Option<&'a RawValue>,
    #[serde(borrow)]
    pub token: Option<&'a RawValue>,
}

fn even_null<'de: 'a, 'a, D: Deserializer<'de>>(value: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

impl<'a> Members<'a> {
    /// Finds the members of one object.
    pub fn parse(text: &'a str) -> Result<Self, Refusal> {
        // serde would also read a struct from an array.
        if !text.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
            return Err(Refusal::new(ErrorCode::BadFrame, "not a JSON object; send one object"));
        }
        serde_json::from_str(text).map_err(|error| {
            Refusal::new(
                ErrorCode::BadFrame,
                match error.classify() {
                    serde_json::error::Category::Data => "a member stands twice; give each member once",
                    serde_json::error::Category::Syntax
                    | serde_json::error::Category::Eof
                    | serde_json::error::Category::Io => "not valid JSON; send one JSON object",
                },
            )
        })
    }

    /// The channel's name, unchecked but for being a string.
    pub fn channel(&self) -> Result<Cow<'a, str>, Refusal> {
        let raw = self
            .channel
            .ok_or(Refusal::new(ErrorCode::BadFrame, "'channel' is missing; give the name of one channel"))?;
        string(raw).ok_or(Refusal::new(
            ErrorCode::BadChannel,
            "'channel' is not a valid JSON string; give the name of one channel",
        ))
    }
}

/// The value of a JSON string, without a copy if it has no escapes. None if it is another value, or has half a
/// surrogate pair and so is no Unicode text.
pub fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(raw.get()).ok().map(Cow::Owned)
}

/// The value of a number written as digits alone: no sign, no fraction, no exponent.
pub fn whole_number(raw: &RawValue) -> Option<u64> {
    let digits = raw.get();
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}
