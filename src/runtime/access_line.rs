//! A line of the access log as text. Owns the names of its fields. Pure.

use super::access::{End, Head, Line, Of, Request};
use super::identity::{self, Secret};
use super::line::Fields;
use super::settings::LogFormat;

/// Appends one line with its end.
pub fn write(out: &mut Vec<u8>, line: &Line, format: LogFormat, secret: &Secret) {
    let kind = match line.of {
        Of::Request(_) => "request",
        Of::End(_) => "close",
        Of::Refused(_) => "refused",
    };
    let mut fields = Fields::begin(out, format, line.at_ms, kind);
    fields.number("worker", u64::from(line.worker));
    fields.text("peer", &line.peer.to_string());
    let id = |conn| identity::id_of(secret, line.worker, conn);
    match &line.of {
        Of::Request(request) => {
            write_request(&mut fields, request);
            fields.maybe("connection", request.conn.map(id).as_deref());
        }
        Of::End(end) => {
            write_end(&mut fields, end);
            fields.maybe("connection", end.conn.map(id).as_deref());
        }
        Of::Refused(reason) => fields.text("reason", reason.as_str()),
    }
    fields.maybe("subject", line.subject.as_deref());
    if let Of::Request(Request { head, .. }) = &line.of {
        write_sender(&mut fields, head);
    }
    fields.end();
}

/// Appends the line that says that others are missing.
pub fn write_dropped(out: &mut Vec<u8>, at_ms: u64, count: u64, format: LogFormat) {
    let mut fields = Fields::begin(out, format, at_ms, "dropped");
    fields.number("lines", count);
    fields.end();
}

fn write_request(fields: &mut Fields<'_>, request: &Request) {
    fields.maybe("method", request.head.method.as_deref());
    fields.maybe("path", request.head.target.as_deref());
    if let Some(answer) = request.answer {
        fields.number("status", u64::from(answer.status));
        fields.number("bytes", answer.bytes);
    }
    fields.number("duration_us", request.duration_us);
    fields.text("transport", request.transport.as_str());
}

fn write_end(fields: &mut Fields<'_>, end: &End) {
    fields.text("transport", end.transport.as_str());
    fields.text("reason", end.reason.as_str());
    fields.number("duration_us", end.duration_ms * 1_000);
    fields.number("messages", u64::from(end.messages));
    fields.number("bytes", end.bytes);
}

fn write_sender(fields: &mut Fields<'_>, head: &Head) {
    fields.maybe("user_agent", head.agent.as_deref());
    fields.maybe("origin", head.origin.as_deref());
    fields.maybe("referer", head.referer.as_deref());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::access::Answered;
    use super::super::close::{Reason, Transport};
    use super::super::entry::ConnId;
    use super::super::peer::Peer;
    use super::*;

    fn request(head: Head) -> Line {
        Line {
            at_ms: 1_700_000_000_123,
            worker: 3,
            peer: Peer::from(std::net::SocketAddr::from(([127, 0, 0, 1], 80))),
            subject: Some("anna".into()),
            of: Of::Request(Request {
                head,
                transport: Transport::Http,
                duration_us: 45,
                answer: Some(Answered { status: 200, bytes: 7 }),
                conn: None,
            }),
        }
    }

    fn written(line: &Line, format: LogFormat) -> String {
        let mut out = Vec::new();
        write(&mut out, line, format, &[7; 20]);
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn both_forms() {
        let head = Head {
            method: Some("GET".into()),
            target: Some("/channels/a?limit=1".into()),
            agent: Some("curl/8 \"x\"".into()),
            ..Head::default()
        };
        let line = request(head);
        assert_eq!(
            written(&line, LogFormat::Text),
            "2023-11-14T22:13:20.123Z request worker=3 peer=127.0.0.1:80 method=GET path=/channels/a?limit=1 \
             status=200 bytes=7 duration_us=45 transport=http subject=anna user_agent=\"curl/8 \\\"x\\\"\"\n"
        );
        assert_eq!(
            written(&line, LogFormat::Json),
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"type\":\"request\",\"worker\":3,\"peer\":\"127.0.0.1:80\",\
             \"method\":\"GET\",\"path\":\"/channels/a?limit=1\",\"status\":200,\"bytes\":7,\"duration_us\":45,\
             \"transport\":\"http\",\"subject\":\"anna\",\"user_agent\":\"curl/8 \\\"x\\\"\"}\n"
        );
        let end = End {
            transport: Transport::V1,
            reason: Reason::Slow,
            duration_ms: 1_500,
            messages: 2,
            bytes: 3,
            conn: Some(ConnId { slot: 1, generation: 2 }),
        };
        let line = Line { subject: None, of: Of::End(end), ..line };
        let id = identity::id_of(&[7; 20], 3, ConnId { slot: 1, generation: 2 });
        assert_eq!(
            written(&line, LogFormat::Text),
            format!(
                "2023-11-14T22:13:20.123Z close worker=3 peer=127.0.0.1:80 transport=pushline.v1 reason=slow \
                 duration_us=1500000 messages=2 bytes=3 connection={id}\n"
            )
        );
        let mut out = Vec::new();
        write_dropped(&mut out, 0, 9, LogFormat::Text);
        assert_eq!(out, b"1970-01-01T00:00:00.000Z dropped lines=9\n");
    }

    proptest! {
        /// Whatever a client says, it stays in its own field of its own line.
        #[test]
        fn nothing_that_a_client_says_is_more_than_a_value(said in any::<String>()) {
            let said: Box<str> = said.into();
            let head = Head {
                method: Some("GET".into()),
                target: Some(said.clone()),
                agent: Some(said.clone()),
                origin: Some(said.clone()),
                referer: Some(said.clone()),
            };
            let line = request(head);
            for format in [LogFormat::Text, LogFormat::Json] {
                let text = written(&line, format);
                prop_assert_eq!(text.lines().count(), 1);
                prop_assert!(text.ends_with('\n'));
                prop_assert!(!text.trim_end_matches('\n').chars().any(char::is_control), "{text:?}");
            }
            let json: serde_json::Value = serde_json::from_str(&written(&line, LogFormat::Json)).expect("JSON");
            prop_assert_eq!(json["user_agent"].as_str(), Some(&*said));
        }
    }
}
