//! Which transport a GET gets: the first row that fits decides.

use crate::common;

use common::http::{Conn, Headers, ask, head_cursor, varies};
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

/// A cache must not give a page's refusal, say, to one who asks in another way.
#[test]
fn refusals_of_reads_vary_as_reads_do() {
    let server = Server::start(&[]);
    let key = WEBSOCKET[3];
    let offer = |header| WEBSOCKET.into_iter().chain([header]).collect::<Vec<_>>();
    let old = vec![WEBSOCKET[0], WEBSOCKET[1], ("Sec-WebSocket-Version", "8"), key];
    let no_key: Vec<_> = WEBSOCKET[..3].to_vec();
    let cases = [
        ("a foreign origin", "GET", "/channels/a", vec![("Origin", "https://evil.example")], 403),
        ("a foreign origin's HEAD", "HEAD", "/channels/a", vec![("Origin", "null")], 403),
        ("another host", "GET", "/channels/a", vec![("Host", "evil.example")], 403),
        ("a key alone", "GET", "/channels/a", vec![key], 426),
        ("an old version", "GET", "/channels/a", old, 426),
        ("no key", "GET", "/channels/a", no_key, 400),
        ("an unknown subprotocol", "GET", "/channels/a", offer(("Sec-WebSocket-Protocol", "x")), 400),
        ("two channels by raw", "GET", "/channels/a,b", WEBSOCKET.to_vec(), 400),
        ("a bad name", "GET", "/channels/a//b", vec![], 400),
        ("a bad cursor", "GET", "/channels/a?cursor=%25", vec![], 400),
        ("a bad host", "HEAD", "/channels/a", vec![("Host", "a b")], 400),
    ];
    for (name, method, target, headers, status) in cases {
        let answer = ask(server.addr(), method, target, &headers, "");
        assert_eq!(answer.status, status, "{name}: {answer}");
        varies(&answer);
    }
    let write = ask(server.addr(), "DELETE", "/channels/a", &[("Host", "evil.example")], "");
    assert!(write.status == 403 && !write.lists("vary", "Accept"), "{write}");
}
