//! Whose a request is when a trusted proxy says so in a field: `Forwarded` and `X-Forwarded-For`.

use crate::common;

use std::net::SocketAddr;

use common::http::{Conn, Poll, ask, publish};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::ws::Socket;

fn server(header: &str, trusted: &str, args: &[&str]) -> Server {
    let (header, trusted) = (format!("proxy.header={header}"), format!("proxy.trusted={trusted}"));
    Server::start(&[&["--set", &header, "--set", &trusted], args].concat())
}

/// The address that the server knows for a stream that is asked for with these headers.
fn known_as(server: &Server, channel: &str, headers: &[(&str, &str)]) -> String {
    let before = closed(server).len();
    let target = format!("/channels/{channel}");
    drop(Stream::open_with(server.addr(), &target, headers));
    common::until("the stream is closed", || closed(server).get(before).cloned())
}

/// The addresses of streams that have ended.
fn closed(server: &Server) -> Vec<String> {
    let log = server.log();
    let lines = log.iter().filter(|line| {
        message_of(line).as_deref() == Some("closed") && field(line, "transport").as_deref() == Some("sse")
    });
    lines.map(|line| field(line, "peer").expect("an address")).collect()
}

#[test]
fn x_forwarded_for_of_a_trusted_proxy() {
    let server = server("x-forwarded-for", "127.0.0.1,10.0.0.0/8", &[]);
    for (value, want) in [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:4711", "192.0.2.7:4711"),
        ("2001:db8::7", "2001:db8::7"),
        ("198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("198.51.100.1, 192.0.2.7, 10.1.2.3", "192.0.2.7"),
        ("\"198.51.100.1, 192.0.2.7", "192.0.2.7"),
    ] {
        assert_eq!(known_as(&server, "c", &[("X-Forwarded-For", value)]), want, "{value}");
    }
    let lines = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "192.0.2.7")];
    assert_eq!(known_as(&server, "c", &lines), "192.0.2.7");
    // The other field is not asked.
    let headers = [("Forwarded", "for=198.51.100.1"), ("X-Forwarded-For", "192.0.2.7")];
    assert_eq!(known_as(&server, "c", &headers), "192.0.2.7");
}

#[test]
fn forwarded_of_a_trusted_proxy() {
    let server = server("forwarded", "127.0.0.1,10.0.0.0/8", &[]);
    for (value, want) in [
        ("for=192.0.2.7", "192.0.2.7"),
        ("for=198.51.100.1, For=\"[2001:db8::7]:4711\";proto=https", "[2001:db8::7]:4711"),
        ("for=192.0.2.7, for=10.1.2.3", "192.0.2.7"),
        ("for=\"198.51.100.1, for=192.0.2.7", "192.0.2.7"),
    ] {
        assert_eq!(known_as(&server, "c", &[("Forwarded", value)]), want, "{value}");
    }
}

#[test]
fn what_says_nothing_leaves_the_proxys_address() {
    let server = server("forwarded", "127.0.0.1,10.0.0.0/8", &[]);
    for value in ["for=unknown", "for=_hidden", "by=10.0.0.1", "for=192.0.2.7, for=_hidden"] {
        let got = known_as(&server, "c", &[("Forwarded", value)]);
        assert!(got.starts_with("127.0.0.1:"), "{value}: {got}");
    }
    let nearest = known_as(&server, "c", &[("Forwarded", "for=unknown, for=10.1.2.3")]);
    assert_eq!(nearest, "10.1.2.3", "the last that is known");
    // What cannot be read, and nothing at all: told once each.
    for _ in 0..3 {
        let got = known_as(&server, "c", &[("Forwarded", "for=192.0.2.7, nonsense")]);
        assert!(got.starts_with("127.0.0.1:"), "{got}");
        assert!(known_as(&server, "c", &[("X-Forwarded-For", "192.0.2.7")]).starts_with("127.0.0.1:"));
    }
    let told = |words: &str| server.log().iter().filter(|line| line.contains(words)).count();
    assert_eq!((told("cannot be read"), told("without the field")), (1, 1));
}

#[test]
fn nobody_elses_field_counts() {
    for server in [
        server("x-forwarded-for", "10.0.0.0/8,unix", &[]),
        Server::start(&["--set", "proxy.trusted=127.0.0.1"]),
    ] {
        let headers = [("X-Forwarded-For", "192.0.2.7"), ("Forwarded", "for=192.0.2.7")];
        let got = known_as(&server, "c", &headers);
        assert!(got.starts_with("127.0.0.1:"), "{got}");
    }
}

#[test]
fn after_the_proxy_protocol() {
    let both = ["--set", "proxy.protocol=true"];
    let server = server("x-forwarded-for", "127.0.0.1,10.0.0.0/8", &both);
    let known_as = |header: &str| {
        let mut conn = Conn::open(server.addr());
        conn.send_raw(header);
        let headers = [("Accept", "text/event-stream"), ("X-Forwarded-For", "192.0.2.7")];
        conn.send("GET", "/channels/c", &headers, "");
        let before = closed(&server).len();
        drop(Stream::of(conn));
        common::until("the stream is closed", || closed(&server).get(before).cloned())
    };
    // A proxy before a proxy, and a client that writes the field itself.
    assert_eq!(known_as("PROXY TCP4 10.0.0.9 10.0.0.1 4711 80\r\n"), "192.0.2.7");
    assert_eq!(known_as("PROXY TCP4 198.51.100.1 10.0.0.1 4711 80\r\n"), "198.51.100.1:4711");
}

/// A proxy's connection serves many clients, one request after another.
#[test]
fn each_request_is_of_its_own_client() {
    let quota = ["--set", "quotas.address.publishes_per_second=1", "--workers", "2"];
    let server = server("x-forwarded-for", "127.0.0.1", &quota);
    let mut conn = Conn::open(server.addr());
    let mut clients = (1..).map(|number| format!("192.0.2.{number}"));
    for channel in 0..8 {
        // Channels of this worker and of others; the first request is a task's, the others are served at once.
        let target = format!("/channels/c{channel}");
        let (one, other) = (clients.next().expect("many"), clients.next().expect("many"));
        let mut post =
            |client: &str| conn.request("POST", &target, &[("X-Forwarded-For", client)], "x").status;
        assert_eq!(post(&one), 201);
        let again: Vec<u16> = (0..20).map(|_| post(&one)).collect();
        assert!(again.contains(&429), "{again:?}");
        assert_eq!(post(&other), 201);
    }
    // A poll that waited gives the connection back to the proxy.
    let (one, other) = (clients.next().expect("many"), clients.next().expect("many"));
    let cursor = Poll::of(&conn.get("/channels/d?limit=0")).cursor;
    let held = format!("/channels/d?cursor={cursor}&wait=30");
    conn.send("GET", &held, &[("X-Forwarded-For", &one)], "");
    let answer = ask(server.addr(), "POST", "/channels/d", &[("X-Forwarded-For", "203.0.113.1")], "x");
    answer.expect(201);
    assert_eq!(Poll::of(&conn.read_response()).messages.len(), 1);
    let mut post =
        |client: &str| conn.request("POST", "/channels/d", &[("X-Forwarded-For", client)], "x").status;
    let many: Vec<u16> = (0..20).map(|_| post(&one)).collect();
    assert!(many[0] == 201 && many.contains(&429), "{many:?}");
    assert_eq!(post(&other), 201, "and no address is left from the last poll or request");
}

#[test]
fn websockets_are_of_the_client_too() {
    let server = server("x-forwarded-for", "127.0.0.1", &[]);
    let addr: SocketAddr = server.addr();
    drop(Socket::open_with(addr, "/channels/c", &[("X-Forwarded-For", "192.0.2.7")]));
    let line = server.wait_log(|line| {
        message_of(line).as_deref() == Some("closed")
            && field(line, "transport").as_deref() == Some("websocket")
    });
    assert_eq!(field(&line, "peer").as_deref(), Some("192.0.2.7"));
    publish(addr, "c", "without the field");
}
