//! An event of a trace as JSON. Owns its words. Pure.

use crate::domain::cursor::Cursor;

use super::identity::{self, Secret};
use super::line::Fields;
use super::settings::LogFormat;
use super::trace::{Event, What};

/// Appends an event, without the end of a line.
pub fn write(out: &mut Vec<u8>, event: &Event, secret: &Secret) {
    let mut fields = Fields::begin(out, LogFormat::Json, event.at_ms, event.what.as_str());
    fields.number("worker", u64::from(event.worker));
    let id = event.conn.map(|conn| identity::id_of(secret, event.worker, conn));
    fields.maybe("channel", event.channel.as_ref().map(|name| name.as_str()));
    fields.maybe("connection", id.as_deref());
    fields.maybe("peer", event.peer.map(|peer| peer.to_string()).as_deref());
    fields.maybe("subject", event.subject.as_deref());
    fields.maybe("transport", event.transport.map(|transport| transport.as_str()));
    write_what(&mut fields, &event.what);
    fields.end();
    out.pop();
}

/// Appends the event that says that others are missing.
pub fn write_dropped(out: &mut Vec<u8>, at_ms: u64, count: u64) {
    let mut fields = Fields::begin(out, LogFormat::Json, at_ms, "dropped");
    fields.number("events", count);
    fields.end();
    out.pop();
}

/// Appends the event that opens a trace: what it is of, as it was asked.
pub fn write_watching(out: &mut Vec<u8>, at_ms: u64, of: &[(&str, &str)]) {
    let mut fields = Fields::begin(out, LogFormat::Json, at_ms, "watching");
    of.iter().for_each(|(name, text)| fields.text(name, text));
    fields.end();
    out.pop();
}

impl What {
    /// The word for it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Found { .. } => "found",
            Self::Absent => "absent",
            Self::Accepted => "accepted",
            Self::Refused { .. } => "refused",
            Self::Request { .. } => "request",
            Self::Authenticated { .. } => "authenticated",
            Self::Denied { .. } => "denied",
            Self::Answered { .. } => "answered",
            Self::Subscribed { .. } => "subscribed",
            Self::Unsubscribed { .. } => "unsubscribed",
            Self::Sent { .. } => "sent",
            Self::SentToReaders { .. } => "sent_to_readers",
            Self::Blocked { .. } => "blocked",
            Self::Unblocked => "unblocked",
            Self::Lagged { .. } => "lagged",
            Self::CaughtUp { .. } => "caught_up",
            Self::Gap { .. } => "gap",
            Self::Pinged => "pinged",
            Self::Ponged => "ponged",
            Self::Published { .. } => "published",
            Self::Deleted => "deleted",
            Self::Renewed { .. } => "renewed",
            Self::Closing { .. } => "closing",
            Self::Closed { .. } => "closed",
        }
    }
}

fn write_what(fields: &mut Fields<'_>, what: &What) {
    let at = |fields: &mut Fields<'_>, cursor: &Cursor| fields.text("cursor", &cursor.text());
    match what {
        What::Absent | What::Accepted | What::Unblocked | What::Pinged | What::Ponged | What::Deleted => {}
        What::Found { subscriptions, open_ms } => {
            fields.number("subscriptions", u64::from(*subscriptions));
            fields.number("open_ms", *open_ms);
        }
        What::Refused { reason } | What::Closing { reason } => fields.text("reason", reason.as_str()),
        What::Request { method, target } => {
            fields.maybe("method", method.as_deref());
            fields.maybe("path", target.as_deref());
        }
        What::Authenticated { proof } => fields.text("proof", proof.as_str()),
        What::Denied { why } => fields.text("why", why),
        What::Answered { status, bytes, duration_us } => {
            fields.number("status", u64::from(*status));
            fields.number("bytes", *bytes);
            fields.number("duration_us", *duration_us);
        }
        What::Subscribed { cursor, behind, gap } => {
            at(fields, cursor);
            fields.number("behind", *behind);
            fields.switch("gap", *gap);
        }
        What::Unsubscribed { because } => fields.maybe("reason", because.map(|reason| reason.as_str())),
        What::Sent { cursor, messages, bytes } => {
            at(fields, cursor);
            fields.number("messages", u64::from(*messages));
            fields.number("bytes", *bytes);
        }
        What::SentToReaders { cursor, readers, messages, bytes } => {
            at(fields, cursor);
            fields.number("readers", u64::from(*readers));
            fields.number("messages", u64::from(*messages));
            fields.number("bytes", *bytes);
        }
        What::Blocked { owed_bytes } => fields.number("owed_bytes", *owed_bytes),
        What::Lagged { cursor, behind } => {
            at(fields, cursor);
            fields.number("behind", *behind);
        }
        What::CaughtUp { cursor } | What::Gap { cursor } => at(fields, cursor),
        What::Published { cursor, bytes, replayed } => {
            at(fields, cursor);
            fields.number("bytes", *bytes);
            fields.switch("replayed", *replayed);
        }
        What::Renewed { expires_s } => {
            if let Some(expires_s) = expires_s {
                fields.number("expires_s", *expires_s);
            }
        }
        What::Closed { reason, messages, bytes, duration_ms } => {
            fields.text("reason", reason.as_str());
            fields.number("messages", u64::from(*messages));
            fields.number("bytes", *bytes);
            fields.number("duration_ms", *duration_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::channel::Name;
    use crate::runtime::close::{Reason, Transport};
    use crate::runtime::entry::ConnId;

    #[test]
    fn an_event_is_one_object() {
        let conn = ConnId { slot: 1, generation: 2 };
        let event = Event {
            at_ms: 1_700_000_000_123,
            worker: 1,
            conn: Some(conn),
            peer: None,
            subject: Some("an\"na\n".into()),
            transport: Some(Transport::Sse),
            channel: Name::parse("news").ok(),
            what: What::Closed { reason: Reason::Slow, messages: 3, bytes: 4, duration_ms: 5 },
        };
        let mut out = Vec::new();
        write(&mut out, &event, &[0; 20]);
        let id = identity::id_of(&[0; 20], 1, conn);
        let want = format!(
            "{{\"time\":\"2023-11-14T22:13:20.123Z\",\"type\":\"closed\",\"worker\":1,\"channel\":\"news\",\
             \"connection\":\"{id}\",\"subject\":\"an\\\"na\\u000a\",\"transport\":\"sse\",\"reason\":\"slow\",\
             \"messages\":3,\"bytes\":4,\"duration_ms\":5}}"
        );
        assert_eq!(String::from_utf8(out).as_deref(), Ok(want.as_str()));
    }
}
