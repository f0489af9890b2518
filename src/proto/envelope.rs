//! Messages and notices as JSON: the message object of polls and SSE envelopes, and what a `pushline.v1` server sends.
//! Owns the order of members. Writers append to a buffer of their caller; JSON payloads go in as they came.

use super::json;
use super::payload::{MessageView, Payload, write_base64};
use super::refusal::ErrorCode;

/// Appends the message object of a poll: `id, channel, event, ts, data|base64`.
pub fn write_message_object(out: &mut Vec<u8>, message: &MessageView<'_>) {
    string(out, r#"{"id":"#, message.id);
    string(out, r#","channel":"#, message.channel);
    if let Some(event) = message.event {
        string(out, r#","event":"#, event);
    }
    number(out, r#","ts":"#, message.ts_ms);
    write_payload_member(out, message.payload);
    out.push(b'}');
}

/// Appends the answer of a poll up to its messages, which follow, separated by commas.
pub fn write_poll_start(out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"messages":["#);
}

/// Appends the rest of the answer of a poll. `gaps`: the channels that have one.
pub fn write_poll_end(out: &mut Vec<u8>, cursor: &str, gaps: &[&str]) {
    string(out, r#"],"cursor":"#, cursor);
    let Some((first, more)) = gaps.split_first() else {
        return out.extend_from_slice(br#","gap":false}"#);
    };
    string(out, r#","gap":true,"gaps":["#, first);
    for channel in more {
        string(out, ",", channel);
    }
    out.extend_from_slice(b"]}");
}

/// `{"type":"message",…}`.
pub fn write_v1_message(out: &mut Vec<u8>, message: &MessageView<'_>) {
    string(out, r#"{"type":"message","channel":"#, message.channel);
    string(out, r#","id":"#, message.id);
    number(out, r#","ts":"#, message.ts_ms);
    if let Some(event) = message.event {
        string(out, r#","event":"#, event);
    }
    write_payload_member(out, message.payload);
    out.push(b'}');
}

/// A client's own number, echoed as it came: every integer of 64 bits, signed or not.
pub type Seq = i128;

/// `{"type":"open",…}`: the first that a connection hears.
pub fn write_v1_open(out: &mut Vec<u8>, connection: &str) {
    string(out, r#"{"type":"open","connection":"#, connection);
    out.push(b'}');
}

/// `{"type":"subscribed",…}`: `cursor` is the resume point, just before the first message that follows.
pub fn write_v1_subscribed(out: &mut Vec<u8>, channel: &str, cursor: &str, gap: bool, seq: Option<Seq>) {
    string(out, r#"{"type":"subscribed","channel":"#, channel);
    string(out, r#","cursor":"#, cursor);
    out.extend_from_slice(if gap { br#","gap":true"# } else { br#","gap":false"# });
    end_with_seq(out, seq);
}

/// `{"type":"unsubscribed",…}`.
pub fn write_v1_unsubscribed(out: &mut Vec<u8>, channel: &str, seq: Option<Seq>) {
    string(out, r#"{"type":"unsubscribed","channel":"#, channel);
    end_with_seq(out, seq);
}

/// `{"type":"published",…}`; `replayed` when the key was known and nothing was published.
pub fn write_v1_published(out: &mut Vec<u8>, channel: &str, id: &str, replayed: bool, seq: Option<Seq>) {
    string(out, r#"{"type":"published","channel":"#, channel);
    string(out, r#","id":"#, id);
    if replayed {
        out.extend_from_slice(br#","replayed":true"#);
    }
    end_with_seq(out, seq);
}

/// `{"type":"authenticated",…}`: the token ends in so many seconds.
pub fn write_v1_authenticated(out: &mut Vec<u8>, expires_in_s: u64, seq: Option<Seq>) {
    number(out, r#"{"type":"authenticated","expires_in":"#, expires_in_s);
    end_with_seq(out, seq);
}

/// `{"type":"pong"}`.
pub fn write_v1_pong(out: &mut Vec<u8>, seq: Option<Seq>) {
    out.extend_from_slice(br#"{"type":"pong""#);
    end_with_seq(out, seq);
}

/// `{"type":"gap",…}`: messages of the channel before `cursor` were lost to this reader.
pub fn write_v1_gap(out: &mut Vec<u8>, channel: &str, cursor: &str) {
    string(out, r#"{"type":"gap","channel":"#, channel);
    string(out, r#","cursor":"#, cursor);
    out.push(b'}');
}

/// `{"type":"expiring",…}`: the token ends in so many seconds.
pub fn write_v1_expiring(out: &mut Vec<u8>, seconds: u64) {
    number(out, r#"{"type":"expiring","in":"#, seconds);
    out.push(b'}');
}

/// `{"type":"closing",…}`: the close frame follows.
pub fn write_v1_closing(out: &mut Vec<u8>, reason: &str, reconnect_ms: u64) {
    string(out, r#"{"type":"closing","reason":"#, reason);
    number(out, r#","reconnect_ms":"#, reconnect_ms);
    out.push(b'}');
}

/// `{"type":"error",…}`. `channel`: the one concerned, for errors that answer no frame (a subscription that ended).
pub fn write_v1_error(
    out: &mut Vec<u8>,
    code: ErrorCode,
    detail: &str,
    channel: Option<&str>,
    seq: Option<Seq>,
) {
    string(out, r#"{"type":"error","code":"#, code.as_str());
    string(out, r#","message":"#, detail);
    if let Some(channel) = channel {
        string(out, r#","channel":"#, channel);
    }
    end_with_seq(out, seq);
}

fn write_payload_member(out: &mut Vec<u8>, payload: Payload<'_>) {
    match payload {
        Payload::Json(json) => {
            out.extend_from_slice(br#","data":"#);
            out.extend_from_slice(json.as_bytes());
        }
        Payload::Text(text) => string(out, r#","data":"#, text),
        Payload::Binary(bytes) => {
            out.extend_from_slice(br#","base64":""#);
            write_base64(out, bytes);
            out.push(b'"');
        }
    }
}

fn string(out: &mut Vec<u8>, before: &str, value: &str) {
    out.extend_from_slice(before.as_bytes());
    json::write_str(out, value);
}

fn number(out: &mut Vec<u8>, before: &str, value: u64) {
    out.extend_from_slice(before.as_bytes());
    json::write_u64(out, value);
}

fn end_with_seq(out: &mut Vec<u8>, seq: Option<Seq>) {
    if let Some(seq) = seq {
        out.extend_from_slice(br#","seq":"#);
        out.extend_from_slice(itoa::Buffer::new().format(seq).as_bytes());
    }
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn message_objects() {
        let view = |event, payload| MessageView {
            id: "i",
            channel: "news",
            event,
            ts_ms: 1_700_000_000_000,
            payload,
        };
        for (name, message, object, v1) in [
            (
                "json, as it came",
                view(Some("tick"), Payload::Json(r#"{"any": "json"}"#)),
                r#"{"id":"i","channel":"news","event":"tick","ts":1700000000000,"data":{"any": "json"}}"#,
                r#"{"type":"message","channel":"news","id":"i","ts":1700000000000,"event":"tick","data":{"any": "json"}}"#,
            ),
            (
                "text",
                view(None, Payload::Text("a\"\n")),
                r#"{"id":"i","channel":"news","ts":1700000000000,"data":"a\"\n"}"#,
                r#"{"type":"message","channel":"news","id":"i","ts":1700000000000,"data":"a\"\n"}"#,
            ),
            (
                "binary",
                view(None, Payload::Binary(&[0, 255])),
                r#"{"id":"i","channel":"news","ts":1700000000000,"base64":"AP8="}"#,
                r#"{"type":"message","channel":"news","id":"i","ts":1700000000000,"base64":"AP8="}"#,
            ),
        ] {
            assert_eq!(written(|out| write_message_object(out, &message)), object, "{name}");
            assert_eq!(written(|out| write_v1_message(out, &message)), v1, "{name}");
        }
    }

    #[test]
    fn polls() {
        for (gaps, want) in [
            (&[][..], r#"{"messages":[],"cursor":"a.b","gap":false}"#),
            (&["x"], r#"{"messages":[],"cursor":"a.b","gap":true,"gaps":["x"]}"#),
            (&["x", "y"], r#"{"messages":[],"cursor":"a.b","gap":true,"gaps":["x","y"]}"#),
        ] {
            let got = written(|out| {
                write_poll_start(out);
                write_poll_end(out, "a.b", gaps);
            });
            assert_eq!(got, want);
        }
    }

    #[test]
    fn notices() {
        for (got, want) in [
            (written(|out| write_v1_open(out, "x")), r#"{"type":"open","connection":"x"}"#),
            (
                written(|out| write_v1_subscribed(out, "c", "u", false, Some(1))),
                r#"{"type":"subscribed","channel":"c","cursor":"u","gap":false,"seq":1}"#,
            ),
            (
                written(|out| write_v1_subscribed(out, "c", "u", true, None)),
                r#"{"type":"subscribed","channel":"c","cursor":"u","gap":true}"#,
            ),
            (
                written(|out| write_v1_unsubscribed(out, "c", None)),
                r#"{"type":"unsubscribed","channel":"c"}"#,
            ),
            (
                written(|out| write_v1_published(out, "c", "i", false, Some(2))),
                r#"{"type":"published","channel":"c","id":"i","seq":2}"#,
            ),
            (
                written(|out| write_v1_published(out, "c", "i", true, None)),
                r#"{"type":"published","channel":"c","id":"i","replayed":true}"#,
            ),
            (
                written(|out| write_v1_authenticated(out, 60, Some(0))),
                r#"{"type":"authenticated","expires_in":60,"seq":0}"#,
            ),
            (written(|out| write_v1_pong(out, None)), r#"{"type":"pong"}"#),
            (written(|out| write_v1_gap(out, "c", "u")), r#"{"type":"gap","channel":"c","cursor":"u"}"#),
            (written(|out| write_v1_expiring(out, 30)), r#"{"type":"expiring","in":30}"#),
            (
                written(|out| write_v1_closing(out, "drain", 5)),
                r#"{"type":"closing","reason":"drain","reconnect_ms":5}"#,
            ),
            (
                written(|out| write_v1_error(out, ErrorCode::BadTtl, "no", None, Some(3))),
                r#"{"type":"error","code":"bad_ttl","message":"no","seq":3}"#,
            ),
            (
                written(|out| write_v1_error(out, ErrorCode::SubscriptionEnded, "no", Some("c"), None)),
                r#"{"type":"error","code":"subscription_ended","message":"no","channel":"c"}"#,
            ),
        ] {
            assert_eq!(got, want);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_json(id in "(?s).*", channel in "(?s).*", event in "(?s).*", text in "(?s).*", ts_ms: u64) {
            let payload = Payload::Text(&text);
            let message = MessageView { id: &id, channel: &channel, event: Some(&event), ts_ms, payload };
            let want = serde_json::json!({"id": id, "channel": channel, "event": event, "ts": ts_ms, "data": text});
            let got: serde_json::Value = serde_json::from_str(&written(|out| write_message_object(out, &message))).unwrap();
            prop_assert_eq!(got, want);
        }
    }
}
