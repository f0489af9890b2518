//! Server-Sent Events (WHATWG HTML §9.2), written: messages, envelopes, the server's own events.
//! Every writer appends to a buffer of its caller. `id:` and the blank line that dispatches the event always stand
//! last, as a tail of known length: a client cut before it has stored nothing, and a reader of several channels can be
//! given the same body with a tail of its own.

use super::envelope;
use super::json;
use super::payload::{MessageView, Payload, write_base64};
use memchr::memchr2;

/// Keeps proxies from closing a silent stream.
pub const COMMENT: &[u8] = b":\n";

/// The event of binary messages; one with a name is `$binary:NAME`.
pub const BINARY_EVENT: &str = "$binary";

/// Appends a message whose `data` is the message's own, with its own id.
pub fn write_message(out: &mut Vec<u8>, message: &MessageView<'_>) {
    write_message_body(out, message);
    write_id(out, message.id);
}

/// [`write_message`] without the tail: [`write_id`] must follow.
pub fn write_message_body(out: &mut Vec<u8>, message: &MessageView<'_>) {
    match (message.payload, message.event) {
        (Payload::Binary(_), None) => write_line(out, "event: ", BINARY_EVENT),
        (Payload::Binary(_), Some(name)) => {
            out.extend_from_slice(b"event: $binary:");
            write_line(out, "", name);
        }
        (Payload::Json(_) | Payload::Text(_), None) => {}
        (Payload::Json(_) | Payload::Text(_), Some(name)) => write_line(out, "event: ", name),
    }
    match message.payload {
        Payload::Text(text) => write_text(out, text),
        Payload::Json(text) => {
            out.extend_from_slice(b"data: ");
            let start = out.len();
            out.extend_from_slice(text.as_bytes());
            join_lines(out, start);
            out.push(b'\n');
        }
        Payload::Binary(bytes) => {
            out.extend_from_slice(b"data: ");
            write_base64(out, bytes);
            out.push(b'\n');
        }
    }
}

/// Appends a message whose `data` is the message object of a poll (several channels, `?envelope=1`), with its own id.
pub fn write_envelope(out: &mut Vec<u8>, message: &MessageView<'_>) {
    write_envelope_body(out, message);
    write_id(out, message.id);
}

/// [`write_envelope`] without the tail: [`write_id`] must follow. The event's name stands if it has one; `$binary` does
/// not, for the object itself says `base64`.
pub fn write_envelope_body(out: &mut Vec<u8>, message: &MessageView<'_>) {
    if let Some(name) = message.event {
        write_line(out, "event: ", name);
    }
    out.extend_from_slice(b"data: ");
    let start = out.len();
    envelope::write_message_object(out, message);
    join_lines(out, start);
    out.push(b'\n');
}

/// Appends the tail: `id:` and the blank line that dispatches the event.
pub fn write_id(out: &mut Vec<u8>, id: &str) {
    write_line(out, "id: ", id);
    out.push(b'\n');
}

/// Appends how long to wait before a reconnect. No blank line: it takes effect with its own line end, and an event
/// follows it.
pub fn write_retry(out: &mut Vec<u8>, ms: u64) {
    out.extend_from_slice(b"retry: ");
    json::write_u64(out, ms);
    out.push(b'\n');
}

/// Appends `$open`: the stream's resume point.
pub fn write_open(out: &mut Vec<u8>, cursor: &str, connection: &str) {
    out.extend_from_slice(b"event: $open\ndata: {\"cursor\":");
    json::write_str(out, cursor);
    out.extend_from_slice(b",\"connection\":");
    json::write_str(out, connection);
    out.extend_from_slice(b"}\n");
    write_id(out, cursor);
}

/// Appends `$gap`: messages of `channel` before its `cursor` were lost. `id` is the stream's joined cursor.
pub fn write_gap(out: &mut Vec<u8>, channel: &str, cursor: &str, id: &str) {
    out.extend_from_slice(b"event: $gap\ndata: {\"channel\":");
    json::write_str(out, channel);
    out.extend_from_slice(b",\"cursor\":");
    json::write_str(out, cursor);
    out.extend_from_slice(b"}\n");
    write_id(out, id);
}

/// Appends `$expiring`: the token ends in so many seconds.
pub fn write_expiring(out: &mut Vec<u8>, seconds: u64) {
    out.extend_from_slice(b"event: $expiring\ndata: {\"in\":");
    json::write_u64(out, seconds);
    out.extend_from_slice(b"}\n\n");
}

/// Appends `$close`, after the `retry:` that it names. The end of the stream follows.
pub fn write_close(out: &mut Vec<u8>, reason: &str, reconnect_ms: u64) {
    write_retry(out, reconnect_ms);
    out.extend_from_slice(b"event: $close\ndata: {\"reason\":");
    json::write_str(out, reason);
    out.extend_from_slice(b",\"reconnect_ms\":");
    json::write_u64(out, reconnect_ms);
    out.extend_from_slice(b"}\n\n");
}

/// One `field: value` line. The value has no line break: event names and ids are checked for that where they are made.
fn write_line(out: &mut Vec<u8>, field: &str, value: &str) {
    debug_assert!(memchr2(b'\r', b'\n', value.as_bytes()).is_none());
    out.extend_from_slice(field.as_bytes());
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

/// A `data: ` line for each piece between CRLF, CR or LF.
fn write_text(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        out.extend_from_slice(b"data: ");
        let Some(at) = memchr2(b'\r', b'\n', rest) else {
            out.extend_from_slice(rest);
            out.push(b'\n');
            return;
        };
        let (piece, line_end) = rest.split_at(at);
        out.extend_from_slice(piece);
        out.push(b'\n');
        rest = line_end.strip_prefix(b"\r\n").or(line_end.get(1..)).unwrap_or_default();
    }
}

/// Line breaks of the JSON from `start` on become spaces. In valid JSON they stand only between tokens.
fn join_lines(out: &mut [u8], start: usize) {
    let mut rest = out.get_mut(start..).unwrap_or_default();
    while let Some(at) = memchr2(b'\r', b'\n', rest) {
        let (line_end, tail) = rest.split_at_mut(at + 1);
        line_end[at] = b' ';
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn view<'a>(event: Option<&'a str>, payload: Payload<'a>) -> MessageView<'a> {
        MessageView { id: "i-1", channel: "c/d", event, ts_ms: 1_700_000_000_000, payload }
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn messages() {
        use Payload::*;
        for (name, event, payload, want) in [
            ("text", None, Text("hi"), "data: hi\nid: i-1\n\n"),
            ("named", Some("tick"), Text("hi"), "event: tick\ndata: hi\nid: i-1\n\n"),
            ("empty text", None, Text(""), "data: \nid: i-1\n\n"),
            ("LF", None, Text("a\nb"), "data: a\ndata: b\nid: i-1\n\n"),
            ("CR", None, Text("a\rb"), "data: a\ndata: b\nid: i-1\n\n"),
            ("CRLF", None, Text("a\r\nb"), "data: a\ndata: b\nid: i-1\n\n"),
            ("LF CR", None, Text("a\n\rb"), "data: a\ndata: \ndata: b\nid: i-1\n\n"),
            ("at the end", None, Text("a\n"), "data: a\ndata: \nid: i-1\n\n"),
            ("at the start", None, Text("\r\na"), "data: \ndata: a\nid: i-1\n\n"),
            ("CR at the end", None, Text("a\r"), "data: a\ndata: \nid: i-1\n\n"),
            ("leading space", None, Text(" a"), "data:  a\nid: i-1\n\n"),
            ("json", None, Json("{\"a\":1}"), "data: {\"a\":1}\nid: i-1\n\n"),
            ("json lines", None, Json("{\r\n\"a\":\n1\r}"), "data: {  \"a\": 1 }\nid: i-1\n\n"),
            ("binary", None, Binary(b"hi"), "event: $binary\ndata: aGk=\nid: i-1\n\n"),
            ("named binary", Some("tick"), Binary(b""), "event: $binary:tick\ndata: \nid: i-1\n\n"),
        ] {
            let message = view(event, payload);
            let whole = written(|out| write_message(out, &message));
            assert_eq!(whole, want, "{name}");
            let parts = written(|out| {
                write_message_body(out, &message);
                write_id(out, message.id);
            });
            assert_eq!(parts, want, "{name}");
        }
    }

    #[test]
    fn envelopes() {
        let ts = 1_700_000_000_000u64;
        for (name, event, payload, want) in [
            (
                "text",
                None,
                Payload::Text("a\nb"),
                format!(r#"data: {{"id":"i-1","channel":"c/d","ts":{ts},"data":"a\nb"}}"#),
            ),
            (
                "json lines",
                Some("e"),
                Payload::Json("[\n1]"),
                format!(
                    "event: e\ndata: {{\"id\":\"i-1\",\"channel\":\"c/d\",\"event\":\"e\",\"ts\":{ts},\"data\":[ 1]}}"
                ),
            ),
            (
                "binary",
                None,
                Payload::Binary(b"hi"),
                format!(r#"data: {{"id":"i-1","channel":"c/d","ts":{ts},"base64":"aGk="}}"#),
            ),
        ] {
            let got = written(|out| write_envelope(out, &view(event, payload)));
            assert_eq!(got, want + "\nid: i-1\n\n", "{name}");
        }
    }

    #[test]
    fn own_events() {
        for (name, got, want) in [
            ("retry", written(|out| write_retry(out, 1500)), "retry: 1500\n"),
            (
                "open",
                written(|out| write_open(out, "a.b", "x1")),
                "event: $open\ndata: {\"cursor\":\"a.b\",\"connection\":\"x1\"}\nid: a.b\n\n",
            ),
            (
                "gap",
                written(|out| write_gap(out, "c\"d", "b", "a.b")),
                "event: $gap\ndata: {\"channel\":\"c\\\"d\",\"cursor\":\"b\"}\nid: a.b\n\n",
            ),
            ("expiring", written(|out| write_expiring(out, 30)), "event: $expiring\ndata: {\"in\":30}\n\n"),
            (
                "close",
                written(|out| write_close(out, "drain", 2000)),
                "retry: 2000\nevent: $close\ndata: {\"reason\":\"drain\",\"reconnect_ms\":2000}\n\n",
            ),
        ] {
            assert_eq!(got, want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn text_comes_back_with_plain_line_ends(text in r"(?s)([ab:\r\n ]|.)*") {
            let wire = written(|out| write_message(out, &view(None, Payload::Text(&text))));
            let lines: Vec<&str> = wire.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            prop_assert_eq!(lines.join("\n"), text.replace("\r\n", "\n").replace('\r', "\n"));
            prop_assert!(!wire.contains('\r'));
            prop_assert_eq!(wire.find("\n\n"), Some(wire.len() - 2));
        }
    }
}
