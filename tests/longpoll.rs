//! Long polling: the request that is held.

use crate::common;

use std::thread;
use std::time::Duration;

use common::http::{
    AT_ONCE, Conn, Headers, Poll, Response, ask, get, head_cursor, poll, publish, published, timed, varies,
};
use common::server::Server;
use serde_json::{Value, json};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
/// How long a request that must be held is watched before the event that ends it.
const A_WHILE: Duration = Duration::from_millis(200);

/// A GET with headers, on a connection of its own.
fn read(server: &Server, target: &str, headers: Headers) -> Response {
    ask(server.addr(), "GET", target, headers, "")
}

/// A connection with a held poll on it.
fn held(server: &Server, target: &str) -> Conn {
    let mut conn = Conn::open(server.addr());
    conn.send("GET", target, &[], "");
    conn.quiet(A_WHILE);
    conn
}

fn texts(poll: &Poll) -> Vec<String> {
    poll.data().iter().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
}

/// What every answer to `wait` carries.
#[track_caller]
fn waited(answer: &Response, seconds: &str, cursor: &str) {
    assert_eq!(answer.header("pushline-cursor"), cursor, "{answer}");
    assert_eq!(answer.header("cache-control"), "no-store", "{answer}");
    assert_eq!(answer.header("preference-applied"), format!("wait={seconds}"), "{answer}");
    assert!(answer.get("etag").is_none(), "{answer}");
    varies(answer);
}

#[test]
fn head_of_a_wait_is_never_held_and_has_the_fields_of_the_wait() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let start = head_cursor(addr, "head");
    let mut conn = Conn::open(addr);
    let ((), took) = timed(|| {
        for (target, headers) in [
            (format!("/channels/head?cursor={start}&wait=40"), &[][..]),
            (format!("/channels/head?cursor={start}"), &[("Prefer", "wait=40")][..]),
            (format!("/channels/head?cursor={start}&wait=40"), &[][..]),
        ] {
            let nothing = conn.request("HEAD", &target, headers, "").expect(204);
            waited(&nothing, "40", &start);
        }
        let id = publish(addr, "head", "one");
        let target = format!("/channels/head?cursor={start}&wait=40");
        let something = conn.request("HEAD", &target, &[], "").expect(200);
        waited(&something, "40", &id);
        let full = conn.get(&target);
        waited(&full, "40", &id);
        assert_eq!(something.header("content-length"), full.header("content-length"));
        ask(addr, "DELETE", "/channels/head", &[], "").expect(204);
        let gap = conn.request("HEAD", &format!("/channels/head?cursor={id}&wait=40"), &[], "").expect(200);
        waited(&gap, "40", &head_cursor(addr, "head"));
        // Several channels, of which one has something.
        let other = head_cursor(addr, "other");
        let id = publish(addr, "head", "two");
        let target = format!("/channels/head,other?cursor={id}.{other}&wait=40");
        waited(&conn.request("HEAD", &target, &[], "").expect(204), "40", &format!("{id}.{other}"));
        // Without a cursor there is nothing to wait for, as with GET.
        let now = conn.request("HEAD", "/channels/head?wait=40", &[], "").expect(200);
        assert!(!now.header("etag").is_empty() && now.get("preference-applied").is_none(), "{now}");
    });
    assert!(took < AT_ONCE, "{took:?}");
}

/// It is nowhere else: what a held poll waits for is in the feed, even where the feed is smaller.
#[test]
fn a_held_poll_gets_a_message_larger_than_its_feed() {
    let server = Server::start(&["--set", "feed.bytes=1024"]);
    let addr = server.addr();
    let cursor = head_cursor(addr, "large");
    let mut conn = held(&server, &format!("/channels/large?cursor={cursor}&wait=40"));
    let (large, headers) = ("x".repeat(5_000), [TEXT, ("Pushline-TTL", "0")]);
    let id = published(&ask(addr, "POST", "/channels/large", &headers, &large));
    let after = Poll::of(&conn.read_response());
    assert_eq!((after.ids(), texts(&after)), (vec![id], vec![large]));
}

#[test]
fn a_held_poll_ends_at_the_first_message() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let cursor = head_cursor(addr, "hold");
    let mut conn = held(&server, &format!("/channels/hold?cursor={cursor}&wait=40"));
    let id = publish(addr, "hold", "now");
    let answer = conn.read_response();
    let after = Poll::of(&answer);
    assert_eq!((after.ids(), after.gap, &after.cursor), (vec![id.clone()], false, &id));
    waited(&answer, "40", &id);
    // Keep-alive goes on, and so does the reading.
    publish(addr, "hold", "next");
    let answer = conn.get(&format!("/channels/hold?cursor={id}&wait=40"));
    assert_eq!(texts(&Poll::of(&answer)), ["next"], "nothing to wait for: at once");
    waited(&answer, "40", &Poll::of(&answer).cursor);
    conn.get("/healthz").expect(200);
}

#[test]
fn a_held_poll_ends_with_204() {
    let server = Server::start(&[]);
    let cursor = head_cursor(server.addr(), "end");
    let mut conn = Conn::open(server.addr());
    let ask: [(&str, String, Headers); 2] = [
        ("the query", format!("/channels/end?cursor={cursor}&wait=1"), &[]),
        ("the preference", format!("/channels/end?cursor={cursor}"), &[("Prefer", "wait=1")]),
    ];
    for (name, target, headers) in ask {
        let (answer, took) = timed(|| conn.request("GET", &target, headers, ""));
        assert_eq!(answer.status, 204, "{name}: {answer}");
        assert!(answer.body.is_empty() && answer.get("content-length").is_none(), "{name}: {answer}");
        waited(&answer, "1", &cursor);
        assert!(took > Duration::from_millis(900) && took < AT_ONCE, "{name}: {took:?}");
        assert!(!answer.closes(), "{name}: {answer}");
    }
    conn.get("/channels/end").expect(200);
}

#[test]
fn the_wait_is_capped_at_50_seconds() {
    let server = Server::start(&[]);
    let cursor = head_cursor(server.addr(), "cap");
    let id = publish(server.addr(), "cap", "x");
    let target = format!("/channels/cap?cursor={cursor}");
    for (wait, used) in [("49", "49"), ("50", "50"), ("51", "50"), ("1000000", "50")] {
        waited(&get(server.addr(), &format!("{target}&wait={wait}")), used, &id);
        waited(&read(&server, &target, &[("Prefer", &format!("wait={wait}"))]), used, &id);
    }
}

#[test]
fn forms_of_prefer() {
    let server = Server::start(&[]);
    let cursor = head_cursor(server.addr(), "prefer");
    let id = publish(server.addr(), "prefer", "x");
    let target = format!("/channels/prefer?cursor={cursor}");
    let long: &[Headers] = &[
        &[("Prefer", "wait=7")],
        &[("prefer", "Wait=7")],
        &[("Prefer", "wait=\"7\"")],
        &[("Prefer", "wait = 7")],
        &[("Prefer", "respond-async, wait=7; x=1, handling=lenient")],
        &[("Prefer", "respond-async"), ("Prefer", "wait=7")],
        &[("Prefer", "wait=7, wait=9")], // the first counts (RFC 7240 §2)
        &[("Prefer", "x=\"a, wait=9\", wait=7")],
    ];
    for headers in long {
        let answer = read(&server, &target, headers);
        assert_eq!(answer.status, 200, "{headers:?}");
        assert_eq!(answer.get("preference-applied"), Some("wait=7"), "{headers:?}: {answer}");
        waited(&answer, "7", &id);
    }
    // None of these asks for a wait: a short poll.
    let short: &[Headers] = &[
        &[("Prefer", "wait=0")],
        &[("Prefer", "wait")],
        &[("Prefer", "wait=soon")],
        &[("Prefer", "wait=-1")],
        &[("Prefer", "await=7")],
        &[("Prefer", "")],
    ];
    for headers in short {
        let answer = read(&server, &target, headers);
        assert_eq!(answer.status, 200, "{headers:?}");
        assert!(
            answer.get("etag").is_some() && answer.get("preference-applied").is_none(),
            "{headers:?}: {answer}"
        );
    }
    let answer = get(server.addr(), &format!("{target}&wait=0"));
    assert!(answer.get("etag").is_some(), "{answer}");
    // Both: the URL is the more deliberate.
    let answer = read(&server, &format!("{target}&wait=5"), &[("Prefer", "wait=7")]);
    assert!(["wait=5", "wait=7"].contains(&answer.header("preference-applied")), "{answer}");
}

#[test]
fn a_gap_is_an_answer() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let old = publish(addr, "told", "x");
    ask(addr, "DELETE", "/channels/told", &[], "").expect(204);
    let (answer, took) = timed(|| get(addr, &format!("/channels/told?cursor={old}&wait=40")));
    let after = Poll::of(&answer);
    assert!(after.gap && after.messages.is_empty(), "{after:?}");
    waited(&answer, "40", &after.cursor);
    assert!(took < AT_ONCE, "{took:?}");
    // And one that comes during the wait.
    let mut conn = held(&server, &format!("/channels/told?cursor={}&wait=40", after.cursor));
    ask(addr, "DELETE", "/channels/told", &[], "").expect(204);
    let answer = conn.read_response();
    assert!(Poll::of(&answer).gap && Poll::of(&answer).messages.is_empty(), "{answer}");
}

#[test]
fn a_held_poll_of_several_channels() {
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    let names: Vec<_> = (0..8).map(|n| format!("held/{n}")).collect();
    let list = names.join(",");
    let mut cursor = poll(addr, &format!("/channels/{list}?limit=0")).cursor;
    let mut conn = Conn::open(addr);
    for name in names.iter().rev() {
        conn.send("GET", &format!("/channels/{list}?cursor={cursor}&wait=40"), &[], "");
        conn.quiet(Duration::from_millis(50));
        publish(addr, name, name);
        let after = Poll::of(&conn.read_response());
        assert_eq!((texts(&after), after.gap), (vec![name.clone()], false));
        cursor = after.cursor;
    }
    // A gap in one of them is an answer.
    ask(addr, "DELETE", "/channels/held/3", &[], "").expect(204);
    let after = Poll::of(&conn.get(&format!("/channels/{list}?cursor={cursor}&wait=40")));
    assert_eq!((after.gaps, after.messages.len()), (vec!["held/3".to_owned()], 0));
    // Empty parts: from now.
    let mut conn = held(&server, "/channels/held/0,held/1?cursor=.&wait=40");
    publish(addr, "held/1", "new");
    assert_eq!(texts(&Poll::of(&conn.read_response())), ["new"]);
}

#[test]
fn requests_pipelined_behind_a_held_poll_wait_their_turn() {
    let server = Server::start(&[]);
    let addr = server.addr();
    // Sent with the poll, or when it is held already.
    for (channel, later) in [("pipe/with", false), ("pipe/later", true)] {
        let cursor = head_cursor(addr, channel);
        let mut conn = Conn::open(addr);
        conn.send("GET", &format!("/channels/{channel}?cursor={cursor}&wait=40"), &[], "");
        if later {
            conn.quiet(A_WHILE);
        }
        conn.send("GET", "/healthz", &[], "");
        conn.send("GET", &format!("/channels/{channel}?limit=0"), &[], "");
        conn.quiet(A_WHILE);
        let id = publish(addr, channel, "x");
        assert_eq!(Poll::of(&conn.read_response()).ids(), std::slice::from_ref(&id));
        conn.read_response().expect(200);
        assert_eq!(Poll::of(&conn.read_response()).cursor, id);
        // The same, ended by time.
        conn.send("GET", &format!("/channels/{channel}?cursor={id}&wait=1"), &[], "");
        conn.send("GET", "/healthz", &[], "");
        conn.read_response().expect(204);
        conn.read_response().expect(200);
    }
}

/// What waits behind a held poll waits in the kernel, not in the server, and none of it is lost.
#[test]
fn a_crowd_of_requests_behind_a_held_poll() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let cursor = head_cursor(addr, "crowd");
    let mut conn = held(&server, &format!("/channels/crowd?cursor={cursor}&wait=40"));
    let mut wire = Vec::new();
    for n in 0..2_000 {
        let target = if n % 2 == 0 { "/healthz" } else { "/channels/crowd" };
        wire.extend_from_slice(&common::http::wire(addr, "GET", target, &[], b""));
    }
    // It may take until the answer before the kernel takes all of it.
    let writer = thread::spawn({
        let mut stream = conn.stream().try_clone().expect("a descriptor");
        move || std::io::Write::write_all(&mut stream, &wire).expect("the server reads on")
    });
    conn.quiet(A_WHILE);
    publish(addr, "crowd", "x");
    assert_eq!(texts(&Poll::of(&conn.read_response())), ["x"]);
    for n in 0..2_000 {
        let answer = conn.read_response().expect(200);
        assert_eq!(answer.text().contains("\"x\""), n % 2 == 1, "{n}: {answer}");
    }
    writer.join().expect("the writer");
}

#[test]
fn half_a_request_behind_a_held_poll_is_kept() {
    let server = Server::start(&[]);
    let cursor = head_cursor(server.addr(), "half");
    let mut conn = held(&server, &format!("/channels/half?cursor={cursor}&wait=40"));
    conn.send_raw("GET /healthz HTTP/1.1\r\nHo");
    conn.quiet(A_WHILE);
    publish(server.addr(), "half", "x");
    assert_eq!(texts(&Poll::of(&conn.read_response())), ["x"]);
    conn.send_raw("st: localhost\r\n\r\n");
    conn.read_response().expect(200);
}

#[test]
fn a_held_poll_outlives_the_idle_deadline() {
    let server = Server::start(&[
        "--set",
        "timeouts.idle_seconds=1",
        "--set",
        "timeouts.head_seconds=1",
        "--set",
        "timeouts.body_seconds=1",
    ]);
    let cursor = head_cursor(server.addr(), "long");
    let (answer, took) = timed(|| get(server.addr(), &format!("/channels/long?cursor={cursor}&wait=3")));
    answer.expect(204);
    assert!(took > Duration::from_millis(2_800), "{took:?}");
}

#[test]
fn many_held_polls_end_together() {
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    let cursor = head_cursor(addr, "crowd");
    let mut conns: Vec<_> = (0..200)
        .map(|_| {
            let mut conn = Conn::open(addr);
            conn.send("GET", &format!("/channels/crowd?cursor={cursor}&wait=40"), &[], "");
            conn
        })
        .collect();
    conns.last_mut().expect("200").quiet(A_WHILE);
    // Some leave before the answer, in all ways.
    for n in 0..10 {
        let conn = conns.remove(n * 10);
        if n % 2 == 0 {
            conn.abort();
        }
    }
    let id = publish(addr, "crowd", "x");
    for conn in &mut conns {
        let answer = conn.read_response();
        assert_eq!(Poll::of(&answer).ids(), std::slice::from_ref(&id));
    }
}

#[test]
fn a_long_polling_reader_misses_nothing() {
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    let start = head_cursor(addr, "steady");
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let mut cursor = start.clone();
            thread::spawn(move || {
                let mut seen: Vec<Value> = Vec::new();
                while seen.len() < 300 {
                    let target = format!("/channels/steady?cursor={cursor}&wait=20&limit={}", 1 + n * 5);
                    let answer = get(addr, &target);
                    let page = Poll::of(&answer);
                    assert!(!page.gap, "{answer}");
                    seen.extend(page.data());
                    cursor = page.cursor;
                }
                seen
            })
        })
        .collect();
    let mut conn = Conn::open(addr);
    for n in 0..300 {
        published(&conn.request("POST", "/channels/steady", &[TEXT], n.to_string()));
    }
    let want: Vec<Value> = (0..300).map(|n| json!(n.to_string())).collect();
    for reader in readers {
        assert_eq!(reader.join().expect("a reader"), want);
    }
}

#[test]
fn a_drained_poll_says_come_back() {
    let mut server = Server::start(&["--set", "drain.window_seconds=1"]);
    let cursor = head_cursor(server.addr(), "drain");
    let mut conns: Vec<_> = (0..5)
        .map(|_| {
            let mut conn = Conn::open(server.addr());
            conn.send("GET", &format!("/channels/drain?cursor={cursor}&wait=45"), &[], "");
            conn
        })
        .collect();
    conns[4].quiet(A_WHILE);
    server.signal(libc::SIGTERM);
    for conn in &mut conns {
        let answer = conn.read_response().expect(204);
        assert!(answer.header("retry-after").parse::<u32>().is_ok(), "{answer}");
        assert!(answer.closes(), "{answer}");
        assert_eq!(answer.header("pushline-cursor"), cursor);
        conn.eof();
    }
    assert_eq!(server.wait_exit(), 0);
}
