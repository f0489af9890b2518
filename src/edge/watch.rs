//! `pushline trace`: asks the admin listener of a node for a trace, and prints it, an event a line, until the trace or the
//! reader of the lines ends.
//! Owns the asking (HTTP/1.1 over TCP or a unix socket) and the form of lines for people. What the events are is
//! `runtime::trace_line`'s.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::proto::http::body::BodyDecoder;
use crate::proto::http::request::BodyLength;
use crate::runtime::line::write_value;

/// Where nothing answers within so long, nothing will.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A trace says at least every 15 s that it goes on.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The head of an answer, and a refusal's body.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// What to ask for.
#[derive(Debug)]
pub struct Watching {
    /// `http://ADDR:PORT`, `ADDR:PORT` or `unix:PATH`.
    pub admin: String,
    pub token: Option<String>,
    /// Names and values of the query.
    pub of: Vec<(&'static str, String)>,
    /// Events as they come.
    pub json: bool,
}

/// Why there is no trace, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error(
        "--admin {0}: must be http://ADDR:PORT or unix:PATH; to reach a node over a network, use a tunnel (ssh -L)"
    )]
    Address(String),
    #[error(
        "--admin {address}: cannot be reached ({error}); admin.listen in the node's configuration says where it listens"
    )]
    Connect { address: String, error: io::Error },
    #[error("{0}")]
    Refused(String),
    #[error("--admin {0}: what answers there is no admin listener of Pushline")]
    Stranger(String),
    #[error("the trace broke off: {0}")]
    Broken(io::Error),
}

/// Prints a trace to `out`, until it ends or nobody reads `out` any more.
///
/// # Errors
/// [`WatchError`]
pub fn run(watching: &Watching, out: &mut impl Write) -> Result<(), WatchError> {
    let (connection, host) = connect(&watching.admin)?;
    let mut connection = BufReader::new(connection);
    let asked = connection.get_mut().write_all(request(watching, &host).as_bytes());
    asked.map_err(WatchError::Broken)?;
    let stranger = || WatchError::Stranger(watching.admin.clone());
    let head = read_head(&mut connection).map_err(WatchError::Broken)?.ok_or_else(stranger)?;
    if head.status != 200 {
        return Err(refusal(connection, &head).unwrap_or_else(stranger));
    }
    if !head.is_events {
        return Err(stranger());
    }
    print_events(connection, head.is_chunked, |event| {
        if watching.json {
            writeln!(out, "{event}")?;
        } else {
            writeln!(out, "{}", line_of(event))?;
        }
        out.flush()
    })
}

/// A connection of either kind.
trait Connection: Read + Write {}
impl Connection for TcpStream {}
impl Connection for UnixStream {}

fn connect(admin: &str) -> Result<(Box<dyn Connection>, String), WatchError> {
    let failed = |error| WatchError::Connect { address: admin.to_owned(), error };
    if let Some(path) = admin.strip_prefix("unix:") {
        let stream = UnixStream::connect(Path::new(path)).map_err(failed)?;
        stream.set_read_timeout(Some(SILENCE_MAX)).map_err(failed)?;
        return Ok((Box::new(stream), "localhost".to_owned()));
    }
    let host = admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/');
    if host.contains('/') {
        return Err(WatchError::Address(admin.to_owned()));
    }
    let addresses = host.to_socket_addrs().map_err(|_| WatchError::Address(admin.to_owned()))?;
    let mut last = io::ErrorKind::NotFound.into();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(stream) => {
                stream.set_read_timeout(Some(SILENCE_MAX)).map_err(failed)?;
                return Ok((Box::new(stream), host.to_owned()));
            }
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn request(watching: &Watching, host: &str) -> String {
    let mut target = String::from("/trace");
    for (at, (name, text)) in watching.of.iter().enumerate() {
        target.push(if at == 0 { '?' } else { '&' });
        target.push_str(name);
        target.push('=');
        text.bytes().for_each(|byte| target.push_str(&encoded(byte)));
    }
    let token = watching.token.as_ref().map(|token| format!("Authorization: Bearer {token}\r\n"));
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\nConnection: close\r\n{}\r\n",
        token.unwrap_or_default()
    )
}

fn encoded(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        char::from(byte).to_string()
    } else {
        format!("%{byte:02X}")
    }
}

/// What an answer's head says.
struct Head {
    status: u16,
    is_events: bool,
    is_chunked: bool,
    content_length: Option<u64>,
}

/// `None`: it is none of HTTP's.
fn read_head(connection: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut limited = connection.take(HEAD_BYTES_MAX);
    let mut line = String::new();
    limited.read_line(&mut line)?;
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
    let Some(status) = status else { return Ok(None) };
    let mut head = Head { status, is_events: false, is_chunked: false, content_length: None };
    loop {
        line.clear();
        if limited.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let field = line.trim_end().to_ascii_lowercase();
        if field.is_empty() {
            return Ok(Some(head));
        }
        let Some((name, value)) = field.split_once(':') else { return Ok(None) };
        match (name, value.trim()) {
            ("content-type", value) => head.is_events = value.starts_with("text/event-stream"),
            ("transfer-encoding", value) => head.is_chunked = value == "chunked",
            ("content-length", value) => head.content_length = value.parse().ok(),
            _ => {}
        }
    }
}

/// What a refusal says: its problem details (RFC 9457).
fn refusal(connection: impl Read, head: &Head) -> Option<WatchError> {
    let mut body = Vec::new();
    let length = head.content_length.unwrap_or(HEAD_BYTES_MAX).min(HEAD_BYTES_MAX);
    connection.take(length).read_to_end(&mut body).ok()?;
    let problem: Value = serde_json::from_slice(&body).ok()?;
    let detail = problem.get("detail")?.as_str()?;
    let hint = if head.status == 401 { " (pushline trace --token-file FILE)" } else { "" };
    let mut shown = Vec::new();
    write_value(&mut shown, detail);
    let shown = String::from_utf8_lossy(&shown);
    Some(WatchError::Refused(format!("{}: {}{hint}", head.status, shown.trim_matches('"'))))
}

/// Reads events to the end of the trace.
fn print_events(
    mut connection: impl BufRead,
    is_chunked: bool,
    mut print: impl FnMut(&Value) -> io::Result<()>,
) -> Result<(), WatchError> {
    let length = if is_chunked { BodyLength::Chunked } else { BodyLength::Length(u64::MAX) };
    let broken = |_| WatchError::Broken(io::ErrorKind::InvalidData.into());
    let mut decoder = BodyDecoder::new(length, u64::MAX).map_err(broken)?;
    let mut content = Vec::new();
    loop {
        let input = connection.fill_buf().map_err(WatchError::Broken)?;
        if input.is_empty() {
            // A node that ends does not always say so.
            return Ok(());
        }
        let used = decoder.decode(input, &mut content).map_err(broken)?;
        connection.consume(used);
        while let Some(end) = memchr::memchr(b'\n', &content) {
            let line: Vec<u8> = content.drain(..=end).collect();
            let Some(json) = line.strip_prefix(b"data: ") else { continue };
            let event = serde_json::from_slice(json).map_err(|error| WatchError::Broken(error.into()))?;
            // Whoever closes the pipe has seen enough.
            if print(&event).is_err() {
                return Ok(());
            }
        }
        if decoder.is_done() {
            return Ok(());
        }
    }
}

/// Fields that come first, in this order.
const FIRST: [&str; 5] = ["channel", "connection", "subject", "peer", "transport"];
/// Those that stand at the beginning of the line.
const LEADING: [&str; 3] = ["time", "type", "worker"];

/// An event for people: the time of day, what happened, where, to whom, and the rest.
fn line_of(event: &Value) -> String {
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or("-");
    let mut line = Vec::with_capacity(160);
    // Of RFC 3339: hour to millisecond.
    line.extend_from_slice(text("time").get(11..23).unwrap_or("-").as_bytes());
    line.extend_from_slice(format!(" {:<15}", text("type")).as_bytes());
    if let Some(worker) = event.get("worker").and_then(Value::as_u64) {
        line.extend_from_slice(format!(" w{worker}").as_bytes());
    }
    let members = event.as_object().into_iter().flatten();
    let rest = members
        .map(|(name, _)| name.as_str())
        .filter(|name| !LEADING.contains(name) && !FIRST.contains(name));
    for name in FIRST.into_iter().chain(rest) {
        let Some(value) = event.get(name) else { continue };
        line.extend_from_slice(format!(" {name}=").as_bytes());
        match value {
            Value::String(text) => write_value(&mut line, text),
            other => line.extend_from_slice(other.to_string().as_bytes()),
        }
    }
    String::from_utf8_lossy(&line).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = json!({
            "time": "2026-11-26T13:00:01.250Z", "type": "sent", "worker": 1, "channel": "news", "messages": 2,
            "bytes": 70, "peer": "127.0.0.1:9", "subject": "an\u{1b}na",
        });
        assert_eq!(
            line_of(&event),
            "13:00:01.250 sent            w1 channel=news subject=\"an\\u001bna\" peer=127.0.0.1:9 bytes=70 messages=2"
        );
    }

    #[test]
    fn what_is_asked_for_is_escaped() {
        let watching = Watching {
            admin: "unix:/x".into(),
            token: Some("t".into()),
            of: vec![("channel", "a/é b".into()), ("subject", "x&y".into())],
            json: false,
        };
        let request = request(&watching, "localhost");
        assert!(
            request.starts_with("GET /trace?channel=a%2F%C3%A9%20b&subject=x%26y HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(request.ends_with("\r\nAuthorization: Bearer t\r\n\r\n"), "{request}");
    }

    /// However the answer is cut.
    #[test]
    fn events_are_read_from_chunks() {
        let body = b"e\r\ndata: {\"a\":1}\n\r\n3\r\n\n:\n\r\n10\r\n\ndata: {\"b\":2}\n\n\r\n0\r\n\r\n";
        for room in 1..body.len() {
            let mut seen = Vec::new();
            print_events(BufReader::with_capacity(room, &body[..]), true, |event| {
                seen.push(event.clone());
                Ok(())
            })
            .expect("an end");
            assert_eq!(seen, [json!({"a": 1}), json!({"b": 2})], "{room}");
        }
    }
}
