//! What a `pushline.v1` client sends: text frames of JSON, one object each.
//! Owns their form. Whether a channel, cursor or token is any good is for others to say.

use super::envelope::Seq;
use super::members::{self, Members};
use super::publish::Publish;
use super::refusal::{ErrorCode, Refusal};
use std::borrow::Cow;

/// One frame: what to do, and the client's own number, to be echoed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFrame<'a> {
    pub seq: Option<Seq>,
    pub operation: Operation<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation<'a> {
    Subscribe { channel: Cow<'a, str>, start: Start<'a> },
    Unsubscribe { channel: Cow<'a, str> },
    Publish(Publish<'a>),
    Auth { token: Cow<'a, str> },
    Ping,
}

/// Where a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start<'a> {
    Now,
    /// After this cursor, whose form is unchecked.
    Cursor(Cow<'a, str>),
    /// So many messages before now.
    History(u32),
}

/// A refused frame; `seq`, when it could be read, ties the error to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRefusal {
    pub refusal: Refusal,
    pub seq: Option<Seq>,
}

/// The most bytes that a frame can need for a message of so many bytes: JSON may write each byte as six (`\u0000`),
/// and the other members (a token among them) need some room.
pub const fn frame_bytes_max(message_bytes_max: u64) -> u64 {
    message_bytes_max.saturating_mul(6).saturating_add(16_384)
}

/// Reads one frame. Members that it does not know are ignored; `null` is the same as leaving a member out, except for
/// `data`.
///
/// # Errors
/// [`FrameRefusal`], to be answered with an error; the connection stays.
pub fn parse_v1(text: &str) -> Result<ClientFrame<'_>, FrameRefusal> {
    let unnumbered = |refusal| FrameRefusal { refusal, seq: None };
    let members = Members::parse(text).map_err(unnumbered)?;
    let seq = seq(&members).map_err(unnumbered)?;
    match operation(&members) {
        Ok(operation) => Ok(ClientFrame { seq, operation }),
        Err(refusal) => Err(FrameRefusal { refusal, seq }),
    }
}

fn seq(members: &Members<'_>) -> Result<Option<Seq>, Refusal> {
    let Some(raw) = members.seq else { return Ok(None) };
    let range = Seq::from(i64::MIN)..=Seq::from(u64::MAX);
    match raw.get().parse() {
        Ok(seq) if range.contains(&seq) => Ok(Some(seq)),
        _ => Err(Refusal::new(ErrorCode::BadFrame, "'seq' is not a whole number from -2^63 to 2^64-1")),
    }
}

fn operation<'a>(members: &Members<'a>) -> Result<Operation<'a>, Refusal> {
    const TYPES: &str = "'type' must be one of subscribe, unsubscribe, publish, auth, ping";
    let unknown = Refusal::new(ErrorCode::BadFrame, TYPES);
    let kind = members.kind.and_then(members::string).ok_or(unknown)?;
    match &*kind {
        "subscribe" => Ok(Operation::Subscribe { channel: members.channel()?, start: start(members)? }),
        "unsubscribe" => Ok(Operation::Unsubscribe { channel: members.channel()? }),
        "publish" => Publish::from_members(members).map(Operation::Publish),
        "auth" => {
            let missing = Refusal::new(ErrorCode::BadFrame, "'token' is missing or not a JSON string");
            Ok(Operation::Auth { token: members.token.and_then(members::string).ok_or(missing)? })
        }
        "ping" => Ok(Operation::Ping),
        _ => Err(unknown),
    }
}

fn start<'a>(members: &Members<'a>) -> Result<Start<'a>, Refusal> {
    match (members.cursor, members.history) {
        (None, None) => Ok(Start::Now),
        (Some(raw), None) => members::string(raw).map(Start::Cursor).ok_or(Refusal::new(
            ErrorCode::BadCursor,
            "'cursor' is not a JSON string; give the cursor that the server gave",
        )),
        (None, Some(raw)) => match members::whole_number(raw) {
            Some(messages) => Ok(Start::History(u32::try_from(messages).unwrap_or(u32::MAX))),
            None => Err(Refusal::new(
                ErrorCode::BadHistory,
                "'history' is not a whole number; give how many earlier messages to send",
            )),
        },
        (Some(_), Some(_)) => {
            Err(Refusal::new(ErrorCode::BadHistory, "both 'cursor' and 'history'; give at most one of them"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::publish::PublishData;
    use proptest::prelude::*;

    #[test]
    fn frames() {
        let subscribe = |start| Operation::Subscribe { channel: "c".into(), start };
        for (name, text, seq, operation) in [
            ("subscribe", r#"{"type":"subscribe","channel":"c"}"#, None, subscribe(Start::Now)),
            (
                "subscribe after a cursor",
                r#"{"type":"subscribe","channel":"c","cursor":"abc","seq":7}"#,
                Some(7),
                subscribe(Start::Cursor("abc".into())),
            ),
            (
                "subscribe with history",
                r#"{"seq":0,"history":5,"channel":"c","type":"subscribe"}"#,
                Some(0),
                subscribe(Start::History(5)),
            ),
            (
                "more history than there can be",
                r#"{"type":"subscribe","channel":"c","history":99999999999}"#,
                None,
                subscribe(Start::History(u32::MAX)),
            ),
            (
                "nulls are left out",
                r#"{"type":"subscribe","channel":"c","history":null,"cursor":null,"seq":null}"#,
                None,
                subscribe(Start::Now),
            ),
            (
                "unsubscribe",
                r#" {"type":"unsubscribe","channel":"c","seq":18446744073709551615} "#,
                Some(18_446_744_073_709_551_615),
                Operation::Unsubscribe { channel: "c".into() },
            ),
            (
                "publish",
                r#"{"type":"publish","channel":"c","data":{"a":[]},"event":"e","ttl":0,"key":"k","seq":1}"#,
                Some(1),
                Operation::Publish(Publish {
                    channel: "c".into(),
                    data: PublishData::Json(r#"{"a":[]}"#),
                    event: Some("e".into()),
                    ttl_s: Some(0),
                    key: Some("k".into()),
                }),
            ),
            ("auth", r#"{"type":"auth","token":"t"}"#, None, Operation::Auth { token: "t".into() }),
            (
                "the lowest seq",
                r#"{"type":"ping","seq":-9223372036854775808}"#,
                Some(-9_223_372_036_854_775_808),
                Operation::Ping,
            ),
            ("ping", r#"{"type":"ping","seq":3,"x":{}}"#, Some(3), Operation::Ping),
            ("escaped type", r#"{"type":"p\u0069ng"}"#, None, Operation::Ping),
        ] {
            assert_eq!(parse_v1(text), Ok(ClientFrame { seq, operation }), "{name}");
        }
    }

    #[test]
    fn refusals() {
        use ErrorCode::*;
        for (name, text, code, seq) in [
            ("nothing", "", BadFrame, None),
            ("not JSON", "hello", BadFrame, None),
            ("array", r#"["ping"]"#, BadFrame, None),
            ("cut", r#"{"type":"ping""#, BadFrame, None),
            ("two objects", r#"{"type":"ping"}{}"#, BadFrame, None),
            ("byte order mark", "\u{feff}{}", BadFrame, None),
            ("type twice", r#"{"type":"ping","type":"auth","seq":1}"#, BadFrame, None),
            ("no type", r#"{"seq":4}"#, BadFrame, Some(4)),
            ("type of a number", r#"{"type":1,"seq":4}"#, BadFrame, Some(4)),
            ("unknown type", r#"{"type":"Ping","seq":4}"#, BadFrame, Some(4)),
            ("seq of a string", r#"{"type":"ping","seq":"4"}"#, BadFrame, None),
            ("seq below i64", r#"{"type":"ping","seq":-9223372036854775809}"#, BadFrame, None),
            (
                "seq beyond i128",
                r#"{"type":"ping","seq":9999999999999999999999999999999999999999}"#,
                BadFrame,
                None,
            ),
            ("seq with an exponent", r#"{"type":"ping","seq":4e1}"#, BadFrame, None),
            ("seq with a fraction", r#"{"type":"ping","seq":4.0}"#, BadFrame, None),
            ("seq beyond u64", r#"{"type":"ping","seq":18446744073709551616}"#, BadFrame, None),
            ("no channel", r#"{"type":"subscribe","seq":4}"#, BadFrame, Some(4)),
            ("channel of a list", r#"{"type":"subscribe","channel":["c"],"seq":4}"#, BadChannel, Some(4)),
            (
                "cursor of a number",
                r#"{"type":"subscribe","channel":"c","cursor":1,"seq":4}"#,
                BadCursor,
                Some(4),
            ),
            (
                "negative history",
                r#"{"type":"subscribe","channel":"c","history":-1,"seq":4}"#,
                BadHistory,
                Some(4),
            ),
            (
                "cursor and history",
                r#"{"type":"subscribe","channel":"c","cursor":"x","history":1,"seq":4}"#,
                BadHistory,
                Some(4),
            ),
            ("no data", r#"{"type":"publish","channel":"c","seq":4}"#, BadData, Some(4)),
            ("bad ttl", r#"{"type":"publish","channel":"c","data":1,"ttl":1.5,"seq":4}"#, BadTtl, Some(4)),
            ("no token", r#"{"type":"auth","seq":4}"#, BadFrame, Some(4)),
        ] {
            let got = parse_v1(text).map_err(|refused| (refused.refusal.code, refused.seq));
            assert_eq!(got, Err((code, seq)), "{name}");
        }
    }

    #[test]
    fn a_frame_of_brackets_costs_no_stack() {
        let text = format!(r#"{{"type":"ping","x":{}{}}}"#, "[".repeat(1 << 20), "]".repeat(1 << 20));
        assert!(parse_v1(&text).is_ok());
    }

    proptest! {
        #[test]
        fn no_frame_panics(text in "(?s).*") {
            let _ = parse_v1(&text);
        }

        #[test]
        fn text_arrives_whole(data in "(?s).*", channel in "(?s).{1,20}", seq: i64) {
            let sent = serde_json::json!({"type": "publish", "channel": channel, "data": data, "seq": seq}).to_string();
            let frame = parse_v1(&sent).unwrap();
            prop_assert_eq!(frame.seq, Some(seq.into()));
            let Operation::Publish(publish) = frame.operation else { panic!("not a publish") };
            prop_assert_eq!(publish.channel, channel);
            prop_assert!(sent.len() as u64 <= frame_bytes_max(data.len() as u64));
            prop_assert_eq!(publish.data, PublishData::Text(data.into()));
        }
    }
}
