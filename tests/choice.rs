//! Which transport a GET gets (contract, "One channel, one URL, four transports"): the first row that fits decides.

mod common;

use common::http::{Conn, Headers, head_cursor};
use common::server::Server;

const WEBSOCKET: [(&str, &str); 4] = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "WebSocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
];
const SSE: (&str, &str) = ("Accept", "text/event-stream");

/// What the head of an answer shows.
fn transport(server: &Server, target: &str, headers: Headers) -> String {
    let mut conn = Conn::open(server.addr());
    conn.send("GET", target, headers, "");
    let head = conn.read_head();
    match (head.status, head.get("content-type")) {
        (101, _) => "websocket".to_owned(),
        (200, Some("text/event-stream")) => "stream".to_owned(),
        (200 | 204, _) if head.get("preference-applied").is_some() => "long".to_owned(),
        (200, Some("application/json")) => "short".to_owned(),
        (status, _) => status.to_string(),
    }
}

#[test]
fn the_first_row_that_fits_decides() {
    let server = Server::start(&[]);
    let waiting = format!("/channels/a?cursor={}&wait=1", head_cursor(server.addr(), "a"));
    let at_once = waiting.replace("wait=1", "wait=0");
    let all: Vec<_> = WEBSOCKET.into_iter().chain([SSE, ("Prefer", "wait=1")]).collect();
    let without = |name: &str| -> Vec<(&str, &str)> {
        all.iter().copied().filter(|(header, _)| *header != name).collect()
    };
    let cases = [
        ("all at once", waiting.as_str(), all.clone(), "websocket"),
        ("a handshake", "/channels/a", WEBSOCKET.to_vec(), "websocket"),
        ("a handshake without its upgrade", &waiting, without("Upgrade"), "426"),
        ("a handshake without `Connection: upgrade`", &waiting, without("Connection"), "426"),
        ("another upgrade", "/channels/a", vec![("Connection", "Upgrade"), ("Upgrade", "h2c")], "short"),
        ("a stream, and a wait", &waiting, vec![SSE], "stream"),
        (
            "a stream among others",
            "/channels/a",
            vec![("Accept", "application/json, Text/Event-Stream;q=0.5")],
            "stream",
        ),
        ("a stream in a second line", "/channels/a", vec![("Accept", "text/html"), SSE], "stream"),
        ("anything is not a stream", "/channels/a", vec![("Accept", "*/*")], "short"),
        ("any text is not a stream", "/channels/a", vec![("Accept", "text/*, */*;q=0.1")], "short"),
        ("a stream refused", "/channels/a", vec![("Accept", "text/event-stream;q=0, */*")], "short"),
        ("a wait", &waiting, vec![], "long"),
        ("a preference", waiting.trim_end_matches("&wait=1"), vec![("Prefer", "wait=1")], "long"),
        ("a wait of nothing", &at_once, vec![], "short"),
        ("a wait without a cursor", "/channels/a?limit=1", vec![], "short"),
        ("none of these", "/channels/a", vec![], "short"),
    ];
    for (name, target, headers, want) in cases {
        assert_eq!(transport(&server, target, &headers), want, "{name}");
    }
}
