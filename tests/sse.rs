//! Reading by Server-Sent Events: what is sent, when, and how it ends.

use crate::common;
mod envelope;

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use common::http::{Conn, End, Headers, ask, get, head_cursor, poll, post, publish, published};
use common::server::{Server, descriptors, settled};
use common::sse::{Item, Stream};

/// How long nothing must come, where nothing is to come.
const QUIET: Duration = Duration::from_millis(150);

const TEXT: Headers = &[("Content-Type", "text/plain")];
const JSON: Headers = &[("Content-Type", "application/json")];
const BINARY: Headers = &[("Content-Type", "application/octet-stream")];

/// The last `$gap` event's members, its form checked.
#[track_caller]
fn gap(stream: &mut Stream, channel: &str) -> String {
    let event = stream.event().named("$gap");
    let data = event.json();
    assert_eq!(data["channel"], channel, "{event:?}");
    assert!(event.lines.iter().any(|line| line.starts_with("id:")), "{event:?}");
    data["cursor"].as_str().unwrap_or_else(|| panic!("`cursor` in {event:?}")).to_owned()
}

fn publish_all(server: &Server, channel: &str, texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| publish(server.addr(), channel, text)).collect()
}

#[test]
fn head_of_a_stream() {
    let server = Server::start(&[]);
    let head = Stream::begin(server.addr(), "/channels/a", &[]).head;
    assert_eq!(head.header("content-type"), "text/event-stream");
    assert_eq!(head.header("cache-control"), "no-cache, no-transform");
    assert_eq!(head.header("x-accel-buffering"), "no");
    assert!(head.lists("connection", "close"), "{head}");
    assert_eq!(head.get("transfer-encoding"), None, "{head}");
    assert_eq!(head.get("content-length"), None, "{head}");
    assert_eq!(head.get("etag"), None, "{head}");
    for member in ["Accept", "Prefer", "Origin"] {
        assert!(head.lists("vary", member), "{head}");
    }
}

#[test]
fn accept_chooses_it() {
    let server = Server::start(&[]);
    for accept in
        ["text/event-stream", "TEXT/Event-Stream", "application/json;q=0.5, text/event-stream;q=0.9"]
    {
        let mut conn = Conn::open(server.addr());
        // The first row that fits decides: a cursor and a wait would be a long poll's.
        conn.send("GET", "/channels/a?wait=5", &[("Accept", accept), ("Prefer", "wait=5")], "");
        let head = conn.read_head().expect(200);
        assert_eq!(head.header("content-type"), "text/event-stream", "{accept}: {head}");
    }
    for accept in ["*/*", "application/json", "text/*;q=0.1, */*"] {
        let answer = ask(server.addr(), "GET", "/channels/a", &[("Accept", accept)], "");
        assert_eq!(answer.header("content-type"), "application/json", "{accept}: {answer}");
    }
}

#[test]
fn opens_with_retry_and_open() {
    let server = Server::start(&[]);
    let mut retries = HashSet::new();
    let mut connections = HashSet::new();
    for _ in 0..16 {
        let mut stream = Stream::open(server.addr(), "/channels/a");
        assert!((1..=60_000).contains(&stream.retry_ms), "{}", stream.retry_ms);
        retries.insert(stream.retry_ms);
        connections.insert(stream.connection.clone());
        stream.quiet(Duration::from_millis(1));
    }
    assert!(retries.len() > 4, "`retry:` is jittered: {retries:?}");
    assert_eq!(connections.len(), 16, "connections are told apart");
}

#[test]
fn cursors_have_their_form() {
    let server = Server::start(&[]);
    let id = publish(server.addr(), "a", "x");
    let mut stream = Stream::open(server.addr(), "/channels/a?history=1");
    let message = stream.message();
    assert_eq!(message.id, id);
    for cursor in [&stream.cursor, &id] {
        assert!((1..=32).contains(&cursor.len()), "{cursor}");
        assert!(cursor.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)), "{cursor}");
    }
}

#[test]
fn a_message_is_event_data_and_last_its_id() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    for (headers, body, lines) in [
        (TEXT, "plain", vec!["data: plain"]),
        (TEXT, "", vec!["data: "]),
        (TEXT, " led by a space", vec!["data:  led by a space"]),
        (TEXT, "a\nb", vec!["data: a", "data: b"]),
        (TEXT, "a\rb", vec!["data: a", "data: b"]),
        (TEXT, "a\r\nb", vec!["data: a", "data: b"]),
        (TEXT, "a\n\rb", vec!["data: a", "data: ", "data: b"]),
        (TEXT, "a\r\n\r\nb\n", vec!["data: a", "data: ", "data: b", "data: "]),
        (TEXT, "\n", vec!["data: ", "data: "]),
        (TEXT, ": no comment", vec!["data: : no comment"]),
        (TEXT, "x\nid: forged\nevent: forged", vec!["data: x", "data: id: forged", "data: event: forged"]),
        (TEXT, "räksmörgås \u{1F990}\0\u{2028}", vec!["data: räksmörgås \u{1F990}\0\u{2028}"]),
        (JSON, r#"{"b": 1.50,"a":[1e2,"\n\u00e4"]}"#, vec![r#"data: {"b": 1.50,"a":[1e2,"\n\u00e4"]}"#]),
        (JSON, "\"text\"", vec!["data: \"text\""]),
        (
            &[("Content-Type", "text/plain"), ("Pushline-Event", "tick")],
            "tack",
            vec!["event: tick", "data: tack"],
        ),
        (
            &[("Content-Type", "application/json"), ("Pushline-Event", "grüße")],
            "[]",
            vec!["event: grüße", "data: []"],
        ),
    ] {
        let id = published(&post(server.addr(), "/channels/a", headers, body));
        let message = stream.message();
        let mut want: Vec<String> = lines.into_iter().map(str::to_owned).collect();
        want.push(format!("id: {id}"));
        assert_eq!(message.lines, want, "{body:?}");
    }
}

#[test]
fn line_breaks_between_json_tokens_become_spaces() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    for breaks in ["\n", "\r", "\r\n", "\n\n"] {
        let body = format!("{{{breaks}\"a\":{breaks}1.0}}{breaks}");
        published(&post(server.addr(), "/channels/a", JSON, &body));
        let message = stream.message();
        let data: Vec<_> = message.lines.iter().filter(|line| line.starts_with("data:")).collect();
        assert_eq!(data.len(), 1, "{message:?}");
        assert_eq!(message.data.replace(' ', ""), "{\"a\":1.0}");
        assert!(message.data.starts_with("{ ") && message.data.contains(": "), "{message:?}");
    }
}

#[test]
fn binary_is_base64() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    for bytes in [&[][..], &[0], &[0xFF, 0xFE], b"\r\n\r\n", &[7; 1_000]] {
        let id = published(&post(server.addr(), "/channels/a", BINARY, bytes));
        let message = stream.message();
        let data = format!("data: {}", BASE64.encode(bytes));
        assert_eq!(message.lines, ["event: $binary".to_owned(), data, format!("id: {id}")]);
    }
    // No type at all is binary too.
    published(&post(server.addr(), "/channels/a", &[], b"abc"));
    assert_eq!(stream.message().named("$binary").data, "YWJj");
    published(&post(server.addr(), "/channels/a", &[("Pushline-Event", "pic")], b"abc"));
    assert_eq!(stream.message().named("$binary:pic").data, "YWJj");
}

#[test]
fn the_largest_message_comes_whole() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    let text = "\n".repeat(64 * 1024);
    publish(server.addr(), "a", &text);
    assert_eq!(stream.message().data, text);
    let text = "x".repeat(64 * 1024);
    publish(server.addr(), "a", &text);
    assert_eq!(stream.message().data, text);
}

#[test]
fn without_a_cursor_from_now() {
    let server = Server::start(&[]);
    publish(server.addr(), "a", "before");
    let mut stream = Stream::open(server.addr(), "/channels/a");
    stream.quiet(QUIET);
    publish_all(&server, "a", &["one", "two"]);
    assert_eq!(stream.texts(2), ["one", "two"]);
}

#[test]
fn history_n_from_n_messages_earlier() {
    let server = Server::start(&[]);
    publish_all(&server, "a", &["1", "2", "3"]);
    for (n, want) in
        [(0, &[][..]), (1, &["3"]), (2, &["2", "3"]), (3, &["1", "2", "3"]), (50, &["1", "2", "3"])]
    {
        let mut stream = Stream::open(server.addr(), &format!("/channels/a?history={n}"));
        assert_eq!(stream.texts(want.len()), want, "history={n}");
        stream.quiet(Duration::from_millis(50));
        let held = poll(server.addr(), &format!("/channels/a?cursor={}", stream.cursor));
        assert_eq!((held.data(), held.gap), (want.iter().map(|text| json!(text)).collect(), false));
    }
    let mut stream = Stream::open(server.addr(), "/channels/a?history=1");
    publish(server.addr(), "a", "4");
    assert_eq!(stream.texts(2), ["3", "4"], "and then live");
}

#[test]
fn resumes_by_cursor_and_by_last_event_id() {
    let server = Server::start(&[]);
    let ids = publish_all(&server, "a", &["1", "2", "3", "4"]);
    let mut stream = Stream::open(server.addr(), &format!("/channels/a?cursor={}", ids[1]));
    assert_eq!(stream.cursor, ids[1], "`$open` gives the resume point, never the head");
    assert_eq!(stream.texts(2), ["3", "4"]);
    let mut stream = Stream::resume(server.addr(), "/channels/a", &ids[2]);
    assert_eq!(stream.texts(1), ["4"]);
    publish(server.addr(), "a", "5");
    assert_eq!(stream.texts(1), ["5"]);
}

/// A browser reconnects to the URL it was given: what it says there is older than what it has seen.
#[test]
fn last_event_id_wins_over_the_url() {
    let server = Server::start(&[]);
    let ids = publish_all(&server, "a", &["1", "2", "3"]);
    for target in [
        format!("/channels/a?cursor={}", ids[0]),
        "/channels/a?history=3".to_owned(),
        "/channels/a?history=0".to_owned(),
    ] {
        let mut stream = Stream::resume(server.addr(), &target, &ids[1]);
        assert_eq!(stream.cursor, ids[1], "{target}");
        assert_eq!(stream.texts(1), ["3"], "{target}");
    }
}

/// An error status would end an EventSource for good.
#[test]
fn a_malformed_last_event_id_is_a_gap() {
    let server = Server::start(&[]);
    let ids = publish_all(&server, "a", &["1", "2"]);
    let two = format!("{0}.{0}", ids[0]);
    let long = "A".repeat(33);
    for wrong in ["!!", "a b", &long, &two, ".", "\u{e4}"] {
        let mut stream = Stream::resume(server.addr(), "/channels/a", wrong);
        gap(&mut stream, "a");
        assert_eq!(stream.texts(2), ["1", "2"], "{wrong:?}: what there is, and a gap");
        publish(server.addr(), "b", "x");
        stream.quiet(Duration::from_millis(20));
    }
}

#[test]
fn a_malformed_cursor_in_the_url_is_400() {
    let server = Server::start(&[]);
    let id = publish(server.addr(), "a", "1");
    for target in [
        "/channels/a?cursor=!!".to_owned(),
        format!("/channels/a?cursor={id}.{id}"),
        format!("/channels/a,b?cursor={id}"),
        format!("/channels/a?cursor={}", "A".repeat(33)),
        "/channels/a?history=x".to_owned(),
        "/channels/a?history=-1".to_owned(),
        "/channels/a,a".to_owned(),
        "/channels/a//b".to_owned(),
    ] {
        ask(server.addr(), "GET", &target, &[("Accept", "text/event-stream")], "").problem(400);
    }
}

#[test]
fn a_gap_is_told_before_what_there_is() {
    let server = Server::start(&["--set", "history.messages=3"]);
    let start = head_cursor(server.addr(), "a");
    let foreign = publish(server.addr(), "other", "x");
    let ids = publish_all(&server, "a", &["1", "2", "3", "4", "5"]);
    for (what, cursor) in
        [("no longer held", &start), ("no longer held", &ids[0]), ("of another channel", &foreign)]
    {
        let mut stream = Stream::resume(server.addr(), "/channels/a", cursor);
        let told = gap(&mut stream, "a");
        assert_eq!(stream.texts(3), ["3", "4", "5"], "{what}");
        let again = poll(server.addr(), &format!("/channels/a?cursor={told}"));
        assert_eq!((again.data(), again.gap), (vec![json!("3"), json!("4"), json!("5")], false), "{what}");
    }
    // The last position before the oldest held is no gap.
    let mut stream = Stream::resume(server.addr(), "/channels/a", &ids[1]);
    assert_eq!(stream.texts(3), ["3", "4", "5"]);
}

/// Cut between `$open` and `$gap`, the reader must still be told.
#[test]
fn the_cursor_of_open_does_not_hide_a_gap() {
    let server = Server::start(&["--set", "history.messages=1"]);
    let start = head_cursor(server.addr(), "a");
    publish_all(&server, "a", &["1", "2", "3"]);
    for cursor in [&start[..], "!!"] {
        let stream = Stream::resume(server.addr(), "/channels/a", cursor);
        let opened = stream.cursor.clone();
        drop(stream);
        let mut stream = Stream::resume(server.addr(), "/channels/a", &opened);
        gap(&mut stream, "a");
        assert_eq!(stream.texts(1), ["3"], "resumed from {cursor}, cut after $open, resumed from {opened}");
        let held = poll(server.addr(), &format!("/channels/a?cursor={opened}"));
        assert!(held.gap, "{held:?}");
    }
}

/// The `id:` of `$gap` is past the gap: it is told once.
#[test]
fn a_gap_is_told_once() {
    let server = Server::start(&["--set", "history.messages=2"]);
    let start = head_cursor(server.addr(), "a");
    publish_all(&server, "a", &["1", "2", "3", "4"]);
    let mut stream = Stream::resume(server.addr(), "/channels/a", &start);
    let event = stream.event().named("$gap");
    assert_eq!(event.json()["cursor"], event.id);
    let mut stream = Stream::resume(server.addr(), "/channels/a", &event.id);
    assert_eq!(stream.texts(2), ["3", "4"]);
}

#[test]
fn a_comment_when_nothing_was_sent_for_a_while() {
    let server = Server::start(&["--set", "heartbeat.interval_seconds=1"]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    let begin = std::time::Instant::now();
    for _ in 0..2 {
        let beat = stream.conn().take(2).expect("a heartbeat");
        assert_eq!(beat, b":\n", "a colon and one newline");
    }
    assert!(begin.elapsed() > Duration::from_millis(1_200), "not more often: {:?}", begin.elapsed());
    publish(server.addr(), "a", "x");
    assert_eq!(stream.texts(1), ["x"]);
}

#[test]
fn http_1_0_reads_it_too() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    conn.send_raw(format!(
        "GET /channels/a HTTP/1.0\r\nHost: {}\r\nAccept: text/event-stream\r\n\r\n",
        server.addr()
    ));
    let mut stream = Stream::of(conn);
    assert_eq!(stream.head.get("transfer-encoding"), None);
    assert!(stream.head.closes(), "{}", stream.head);
    assert!(matches!(stream.item(), Some(Item::Retry(_))));
    stream.event().named("$open");
    publish(server.addr(), "a", "x");
    assert_eq!(stream.texts(1), ["x"]);
}

/// Each kind of start gives its cursor before the first message: cut right there, nothing is lost.
#[test]
fn resumes_from_the_first_moment() {
    let server = Server::start(&[]);
    let ids = publish_all(&server, "a", &["1", "2", "3"]);
    let mut n = 3;
    for (target, missed) in [
        ("/channels/a".to_owned(), 0),
        ("/channels/a?history=2".to_owned(), 2),
        (format!("/channels/a?cursor={}", ids[0]), usize::MAX),
        ("/channels/unknown,a".to_owned(), 0),
    ] {
        let stream = Stream::open(server.addr(), &target);
        let cursor = stream.cursor.clone();
        drop(stream);
        let held = n;
        n += 1;
        publish(server.addr(), "a", &format!("{n}"));
        let first = if missed == usize::MAX { 2 } else { held - missed + 1 };
        let path = target.split('?').next().expect("a path");
        let mut again = Stream::resume(server.addr(), path, &cursor);
        for want in first..=n {
            let message = again.message();
            let text = if path.contains(',') { message.json()["data"].clone() } else { json!(message.data) };
            assert_eq!(text, json!(want.to_string()), "{target}");
        }
    }
}

/// `a` has never been published to: its first position is a cursor all the same.
#[test]
fn an_unknown_channel_gives_a_cursor_too() {
    let server = Server::start(&[]);
    let stream = Stream::open(server.addr(), "/channels/new");
    let cursor = stream.cursor.clone();
    drop(stream);
    publish_all(&server, "new", &["1", "2"]);
    let mut stream = Stream::resume(server.addr(), "/channels/new", &cursor);
    assert_eq!(stream.texts(2), ["1", "2"]);
}

#[test]
fn a_deletion_is_told_live_and_to_every_earlier_cursor() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    let first = publish(server.addr(), "a", "1");
    stream.message();
    ask(server.addr(), "DELETE", "/channels/a", &[], "").expect(204);
    let told = gap(&mut stream, "a");
    publish(server.addr(), "a", "2");
    assert_eq!(stream.texts(1), ["2"]);

    let mut after = Stream::resume(server.addr(), "/channels/a", &told);
    assert_eq!(after.texts(1), ["2"], "the cursor of the gap is past it");
    let mut before = Stream::resume(server.addr(), "/channels/a", &first);
    gap(&mut before, "a");
    assert_eq!(before.texts(1), ["2"]);
}

/// A message that ended by its own TTL is no loss.
#[test]
fn a_ttl_of_0_is_delivered_now_and_kept_nowhere() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    let start = stream.cursor.clone();
    let brief = &[("Content-Type", "text/plain"), ("Pushline-TTL", "0")];
    let id = published(&post(server.addr(), "/channels/a", brief, "now"));
    let message = stream.message();
    assert_eq!((message.data.as_str(), &message.id), ("now", &id));
    publish(server.addr(), "a", "kept");
    assert_eq!(stream.texts(1), ["kept"]);
    for cursor in [&start, &id] {
        let mut again = Stream::resume(server.addr(), "/channels/a", cursor);
        assert_eq!(again.texts(1), ["kept"], "and no gap");
    }
}

#[test]
fn head_neither_holds_nor_streams() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    conn.send("HEAD", "/channels/a", &[("Accept", "text/event-stream")], "");
    let head = conn.read_head().expect(200);
    assert_eq!(head.header("content-type"), "text/event-stream", "{head}");
    if head.closes() {
        conn.eof();
    } else {
        conn.get("/healthz").expect(200);
    }
}

#[test]
fn every_reader_gets_every_message_in_order() {
    let server = Server::start(&["--workers", "4"]);
    let mut streams: Vec<Stream> = (0..24).map(|_| Stream::open(server.addr(), "/channels/a")).collect();
    let mut conn = Conn::open(server.addr());
    for n in 0..200 {
        conn.send("POST", "/channels/a", TEXT, n.to_string());
    }
    let ids: Vec<String> = (0..200).map(|_| published(&conn.read_response())).collect();
    for stream in &mut streams {
        for (n, id) in ids.iter().enumerate() {
            let message = stream.message();
            assert_eq!((message.data, &message.id), (n.to_string(), id));
        }
    }
}

/// What a client says after its request is nobody's request: the stream goes on.
#[test]
fn bytes_from_the_client_do_not_harm_a_stream() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a");
    stream.conn().send_raw("GET /channels/b HTTP/1.1\r\nHost: x\r\n\r\n");
    publish(server.addr(), "a", "x");
    publish(server.addr(), "b", "y");
    // Closing is a fair answer as well; another's answer is not.
    match stream.item() {
        Some(Item::Event(event)) => assert_eq!(event.data, "x"),
        None => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_that_left_leaves_nothing_behind() {
    let server = Server::start(&[]);
    get(server.addr(), "/healthz").expect(200);
    let baseline = descriptors(server.pid());
    let mut halves = Vec::new();
    for n in 0..30 {
        let mut stream = Stream::open(server.addr(), "/channels/a,b");
        match n % 3 {
            0 => drop(stream),
            1 => {
                stream.conn().shutdown_write();
                halves.push(stream);
            }
            // With unread input the client's kernel says RST.
            _ => {
                publish(server.addr(), "a", "unread");
                stream.conn().stream().peek(&mut [0]).expect("bytes to leave unread");
                drop(stream);
            }
        }
    }
    for half in &mut halves {
        while half.item().is_some() {}
    }
    settled(&server, baseline);
    publish(server.addr(), "a", "still serving");
}

/// A connection cut by RST is forgotten as well, and the others go on.
#[test]
fn a_reset_reader_harms_no_other() {
    let server = Server::start(&[]);
    let mut stays = Stream::open(server.addr(), "/channels/a");
    let baseline = descriptors(server.pid());
    for _ in 0..10 {
        let mut conn = Conn::open(server.addr());
        conn.send("GET", "/channels/a", &[("Accept", "text/event-stream")], "");
        conn.read_head().expect(200);
        conn.abort();
        publish(server.addr(), "a", "x");
    }
    assert_eq!(stays.texts(10), ["x"; 10]);
    settled(&server, baseline);
    assert_eq!(stays.conn().end_within(Duration::from_millis(1)), End::Open);
}
