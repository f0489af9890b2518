//! Events that hold the message object of a poll: of several channels, with joined ids, and where `?envelope` asks for it.

use super::*;

#[test]
fn several_channels_come_as_envelopes_with_joined_ids() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a,b%2Fc,d");
    let start = stream.cursor.clone();
    assert_eq!(start.split('.').count(), 3, "{start}");
    let tick = &[("Content-Type", "application/json"), ("Pushline-Event", "tick")];
    let a = published(&post(server.addr(), "/channels/a", tick, "{\"n\" : 1.0}"));
    let event = stream.message().named("tick");
    let parts: Vec<&str> = start.split('.').collect();
    assert_eq!(event.id, format!("{a}.{}.{}", parts[1], parts[2]), "in the URL's order");
    let data = event.json();
    assert_eq!((&data["id"], &data["channel"], &data["event"]), (&json!(a), &json!("a"), &json!("tick")));
    assert_eq!(data["data"], json!({"n": 1.0}));
    assert!(data["ts"].as_u64().is_some_and(|ts| ts > 1_700_000_000_000), "{data}");
    assert!(event.data.contains("{\"n\" : 1.0}"), "JSON is passed on as it came: {}", event.data);

    let bc = publish(server.addr(), "b/c", "two\nlines");
    let event = stream.message().named("");
    assert_eq!(event.id, format!("{a}.{bc}.{}", parts[2]));
    let data = event.json();
    assert_eq!((&data["channel"], &data["data"]), (&json!("b/c"), &json!("two\nlines")));
    assert_eq!(data.get("event"), None, "{data}");

    published(&post(server.addr(), "/channels/d", BINARY, [0, 1, 2]));
    let data = stream.message().json();
    assert_eq!((&data["base64"], data.get("data")), (&json!("AAEC"), None));
}

#[test]
fn several_channels_resume_by_the_joined_id() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a,b");
    publish(server.addr(), "a", "a1");
    publish(server.addr(), "b", "b1");
    stream.message();
    let last = stream.message().id;
    drop(stream);
    publish(server.addr(), "a", "a2");
    publish(server.addr(), "b", "b2");
    publish(server.addr(), "a", "a3");
    let mut stream = Stream::resume(server.addr(), "/channels/a,b", &last);
    let mut seen: Vec<(Value, Value)> = Vec::new();
    for _ in 0..3 {
        let data = stream.message().json();
        seen.push((data["channel"].clone(), data["data"].clone()));
    }
    let of = |channel: &str| -> Vec<Value> {
        seen.iter().filter(|(is, _)| is == channel).map(|(_, data)| data.clone()).collect()
    };
    assert_eq!(of("a"), ["a2", "a3"]);
    assert_eq!(of("b"), ["b2"]);

    // An empty part is from now.
    let (_, b) = last.split_once('.').expect("two parts");
    let mut stream = Stream::open(server.addr(), &format!("/channels/a,b?cursor=.{b}"));
    assert_eq!(stream.message().json()["data"], "b2");
    publish(server.addr(), "a", "a4");
    assert_eq!(stream.message().json()["data"], "a4");
}

/// A reader of several channels that was cut after any message resumes exactly there, whatever the channels' order was.
#[test]
fn every_joined_id_is_a_resume_point() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a,b,c");
    let mut cursors = vec![stream.cursor.clone()];
    let mut texts = Vec::new();
    for n in 0..12 {
        let channel = ["a", "b", "c"][n * n % 3];
        publish(server.addr(), channel, &format!("{n}"));
        let message = stream.message();
        texts.push(message.json()["data"].as_str().expect("a text").to_owned());
        cursors.push(message.id);
    }
    for (seen, cursor) in cursors.iter().enumerate() {
        let mut again = Stream::resume(server.addr(), "/channels/a,b,c", cursor);
        let mut rest: Vec<String> = Vec::new();
        for _ in seen..texts.len() {
            rest.push(again.message().json()["data"].as_str().expect("a text").to_owned());
        }
        let mut want = texts[seen..].to_vec();
        want.sort();
        rest.sort();
        assert_eq!(rest, want, "from {cursor}");
        again.quiet(Duration::from_millis(1));
    }
}

#[test]
fn a_gap_of_one_of_several_channels_names_it() {
    let server = Server::start(&["--set", "history.messages=2"]);
    let a = head_cursor(server.addr(), "a");
    let b = publish(server.addr(), "b", "b1");
    publish_all(&server, "a", &["a1", "a2", "a3"]);
    let mut stream = Stream::resume(server.addr(), "/channels/a,b", &format!("{a}.{b}"));
    let event = stream.event().named("$gap");
    let told = event.json();
    assert_eq!(told["channel"], "a");
    let cursor = told["cursor"].as_str().expect("a cursor");
    assert_eq!(event.id, format!("{cursor}.{b}"), "`id:` is the joined one");
    assert_eq!(stream.message().json()["data"], "a2");
    assert_eq!(stream.message().json()["data"], "a3");
}

#[test]
fn envelope_1_wraps_a_single_channel() {
    let server = Server::start(&[]);
    let mut stream = Stream::open(server.addr(), "/channels/a?envelope=1");
    let id = publish(server.addr(), "a", "hello");
    let message = stream.message();
    assert_eq!(message.id, id);
    assert_eq!(message.lines.len(), 2, "{message:?}");
    let of_poll = poll(server.addr(), "/channels/a").messages[0].clone();
    assert_eq!(message.json(), of_poll, "`data` is the message object of a poll");
}

#[test]
fn envelope_is_on_or_off() {
    let server = Server::start(&[]);
    let addr = server.addr();
    for (query, wraps) in [
        ("envelope", true),
        ("envelope=", true),
        ("envelope=1", true),
        ("envelope=true", true),
        ("envelope=0", false),
        ("envelope=false", false),
        ("", false),
    ] {
        let mut stream = Stream::open(addr, &format!("/channels/a?{query}"));
        publish(addr, "a", "hello");
        assert_eq!(stream.message().data == "hello", !wraps, "{query}");
    }
    for query in ["envelope=yes", "envelope=2", "envelope=TRUE", "envelope=1&envelope=1"] {
        let answer =
            ask(addr, "GET", &format!("/channels/a?{query}"), &[("Accept", "text/event-stream")], "");
        let detail = answer.problem(400);
        assert!(detail.contains("true") || query.contains('&'), "{query}: {detail}");
    }
}
