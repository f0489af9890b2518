//! Short polls, and the cursors that they begin from and tell.

use crate::common;

use std::collections::HashSet;

use common::http::{
    AT_ONCE, Conn, Headers, Poll, Response, ask, batch, get, head_cursor, poll, post, publish, published,
    timed, varies,
};
use common::server::Server;
use common::until;
use serde_json::json;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");

/// A GET with headers, on a connection of its own.
fn read(server: &Server, target: &str, headers: Headers) -> Response {
    ask(server.addr(), "GET", target, headers, "")
}

fn texts(poll: &Poll) -> Vec<String> {
    poll.data().iter().map(|text| text.as_str().unwrap_or_default().to_owned()).collect()
}

// --- Shape ----------------------------------------------------------------------------------------------------------

#[test]
fn the_shape_of_a_poll() {
    let server = Server::start(&[]);
    let since = std::time::SystemTime::UNIX_EPOCH;
    let before = since.elapsed().expect("after 1970").as_millis();
    let headers = [("Content-Type", "application/json"), ("Pushline-Event", "tick")];
    let id = published(&post(server.addr(), "/channels/news", &headers, r#"{"any":"json"}"#));
    let after = since.elapsed().expect("after 1970").as_millis();
    let answer = get(server.addr(), "/channels/news");
    let body = answer.json();
    let message = &body["messages"][0];
    let ts = u128::from(message["ts"].as_u64().expect("a number"));
    assert!((before..=after).contains(&ts), "{before} {ts} {after}");
    let want =
        json!({"id": id, "channel": "news", "event": "tick", "ts": message["ts"], "data": {"any": "json"}});
    assert_eq!(body, json!({"messages": [want], "cursor": id, "gap": false}));
    varies(&answer);
    assert_eq!(answer.header("cache-control"), "private, no-cache");
}

#[test]
fn an_unknown_channel_reads_as_empty() {
    let server = Server::start(&[]);
    let empty = poll(server.addr(), "/channels/nobody/knows");
    assert!(empty.messages.is_empty() && !empty.gap && !empty.cursor.is_empty(), "{empty:?}");
    // Its cursor, given before the first message, resumes exactly.
    let id = publish(server.addr(), "nobody/knows", "first");
    let after = poll(server.addr(), &format!("/channels/nobody/knows?cursor={}", empty.cursor));
    assert_eq!((after.ids(), after.gap), (vec![id], false));
}

#[test]
fn without_a_cursor_the_newest() {
    let server = Server::start(&[]);
    let ids: Vec<_> = (0..5).map(|n| publish(server.addr(), "new", &n.to_string())).collect();
    for (query, want) in [
        ("", &ids[4..]),
        ("?limit=1", &ids[4..]),
        ("?limit=0", &[]),
        ("?limit=3", &ids[2..]),
        ("?limit=9", &ids),
    ] {
        let now = poll(server.addr(), &format!("/channels/new{query}"));
        assert_eq!(now.ids(), want, "{query}");
        assert_eq!((&now.cursor, now.gap), (&ids[4], false), "{query}");
    }
    // Whatever `wait` says.
    let (answer, took) = timed(|| get(server.addr(), "/channels/new?wait=40"));
    assert_eq!(Poll::of(&answer).ids(), ids[4..]);
    assert!(took < AT_ONCE, "{took:?}");
    let (answer, took) = timed(|| get(server.addr(), "/channels/none?wait=40"));
    assert!(Poll::of(&answer).messages.is_empty());
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn with_a_cursor_what_came_after_oldest_first() {
    let server = Server::start(&["--set", "history.messages=200"]);
    let addr = server.addr();
    let start = head_cursor(addr, "after");
    let ids: Vec<_> = {
        let mut conn = Conn::open(addr);
        (0..120)
            .map(|n| published(&conn.request("POST", "/channels/after", &[TEXT], n.to_string())))
            .collect()
    };
    let page = |query: &str| poll(addr, &format!("/channels/after?{query}"));
    assert_eq!(page(&format!("cursor={}&limit=3", ids[1])).ids(), ids[2..5]);
    assert_eq!(page(&format!("cursor={}", ids[118])).ids(), ids[119..]);
    let head = page(&format!("cursor={}", ids[119]));
    assert_eq!((head.ids().len(), &head.cursor, head.gap), (0, &ids[119], false));
    // 100 by default and at most.
    for query in [format!("cursor={start}"), format!("cursor={start}&limit=1000")] {
        let first = page(&query);
        assert_eq!(first.ids(), ids[..100], "{query}");
        assert_eq!(first.cursor, ids[99]);
        assert_eq!(page(&format!("cursor={}", first.cursor)).ids(), ids[100..]);
    }
    // Nothing asked for, nothing lost.
    let none = page(&format!("cursor={}&limit=0", ids[110]));
    assert!(none.messages.is_empty());
    assert_eq!(page(&format!("cursor={}", none.cursor)).ids(), ids[111..]);
}

#[test]
fn queries_of_the_wrong_form_are_400() {
    let server = Server::start(&[]);
    let cursor = head_cursor(server.addr(), "q");
    for query in [
        "limit=x".to_owned(),
        "limit=-1".to_owned(),
        "limit=".to_owned(),
        "limit=1.5".to_owned(),
        format!("cursor={cursor}&wait=x"),
        format!("cursor={cursor}&wait=-1"),
        "cursor=%21".to_owned(),
        "cursor=a+b".to_owned(),
        "cursor=a%2Fb".to_owned(),
        "cursor=%FF".to_owned(),
        format!("cursor={}", "a".repeat(33)),
        format!("cursor={cursor}.{cursor}"),
        format!("cursor={cursor}."),
        "cursor=..".to_owned(),
    ] {
        let detail = get(server.addr(), &format!("/channels/q?{query}")).problem(400);
        assert!(detail.len() > 10, "{query}: {detail}");
    }
    for query in [format!("cursor={cursor}"), format!("cursor={cursor}.{cursor}.{cursor}")] {
        get(server.addr(), &format!("/channels/q,r?{query}")).problem(400);
    }
}

// --- Gaps -----------------------------------------------------------------------------------------------------------

#[test]
fn a_cursor_that_history_no_longer_holds_is_a_gap() {
    let server = Server::start(&["--set", "history.messages=3"]);
    let addr = server.addr();
    let start = head_cursor(addr, "gap");
    let ids: Vec<_> = (0..6).map(|n| publish(addr, "gap", &n.to_string())).collect();
    for (name, cursor, gap, want) in [
        ("the start", &start, true, &ids[3..]),
        ("one lost", &ids[1], true, &ids[3..]),
        ("none lost", &ids[2], false, &ids[3..]),
        ("inside", &ids[3], false, &ids[4..]),
        ("the head", &ids[5], false, &[]),
    ] {
        let after = poll(addr, &format!("/channels/gap?cursor={cursor}"));
        assert_eq!((after.gap, after.ids()), (gap, want.to_vec()), "{name}");
        assert_eq!(after.cursor, ids[5], "{name}");
        if gap {
            assert_eq!(after.gaps, ["gap"], "{name}");
        }
    }
    // Without a cursor nothing was promised.
    assert!(!poll(addr, "/channels/gap?limit=9").gap);
}

#[test]
fn history_is_bounded_in_bytes() {
    let server = Server::start(&["--set", "history.bytes=65536"]);
    let addr = server.addr();
    let start = head_cursor(addr, "bytes");
    let text = "x".repeat(20_000);
    let ids: Vec<_> = (0..6).map(|_| publish(addr, "bytes", &text)).collect();
    let after = poll(addr, &format!("/channels/bytes?cursor={start}"));
    assert!(after.gap && (1..=3).contains(&after.messages.len()), "{} messages", after.messages.len());
    assert_eq!(after.ids(), ids[6 - after.messages.len()..]);
}

/// As `pushline.toml` says: each message counts more than its data.
#[test]
fn what_a_mebibyte_of_history_holds() {
    let server = Server::start(&["--set", "history.messages=10000"]);
    let addr = server.addr();
    for (channel, message_bytes, holds) in [("kib", 1_024, 885), ("small", 128, 3_640)] {
        let line = json!({"channel": channel, "data": "x".repeat(message_bytes)}).to_string() + "\n";
        let start = head_cursor(addr, channel);
        let lines_max = 1_048_576 / line.len();
        let mut left = holds + 10;
        while left > 0 {
            let lines = left.min(lines_max);
            assert_eq!(batch(addr, &line.repeat(lines)).len(), lines);
            left -= lines;
        }
        let mut page = poll(addr, &format!("/channels/{channel}?cursor={start}"));
        let mut held = 0;
        while !page.messages.is_empty() {
            held += page.messages.len();
            page = poll(addr, &format!("/channels/{channel}?cursor={}", page.cursor));
        }
        assert_eq!(held, holds, "messages of {message_bytes} bytes");
    }
}

/// What fits no history is the channel's current state all the same.
#[test]
fn the_newest_message_is_kept_whatever_its_size() {
    let limits = ["--set", "history.bytes=1024", "--set", "feed.bytes=1024"];
    let server = Server::start(&limits);
    let addr = server.addr();
    let start = head_cursor(addr, "large");
    let first = publish(addr, "large", &"x".repeat(5_000));
    let second = publish(addr, "large", &"y".repeat(5_000));
    assert_eq!(poll(addr, "/channels/large").ids(), [&*second]);
    let after = poll(addr, &format!("/channels/large?cursor={start}"));
    assert_eq!((after.ids(), after.gap), (vec![second.clone()], true));
    let after = poll(addr, &format!("/channels/large?cursor={first}"));
    assert_eq!((after.ids(), after.gap), (vec![second.clone()], false));
    let small = publish(addr, "large", "z");
    let after = poll(addr, &format!("/channels/large?cursor={first}"));
    assert_eq!((after.ids(), after.gap), (vec![small.clone()], true), "it gives way to a newer one");
    ask(addr, "DELETE", "/channels/large", &[], "").expect(204);
    assert!(poll(addr, "/channels/large").messages.is_empty());
}

#[test]
fn the_history_of_the_node_is_bounded_in_bytes() {
    let limits = ["--set", "history.node_bytes=1MiB", "--set", "history.bytes=256KiB"];
    let server = Server::start(&limits);
    let addr = server.addr();
    let start = head_cursor(addr, "node/0");
    let text = "x".repeat(60_000);
    for n in 0..100 {
        publish(addr, &format!("node/{n}"), &text);
    }
    let kept =
        || (0..100).filter(|n| !poll(addr, &format!("/channels/node/{n}")).messages.is_empty()).count();
    // Workers that fill it together look at it once in a tick.
    until("1 MiB holds 17 messages of 60,000 bytes", || (kept() <= 17).then_some(()));
    assert!(kept() >= 1);
    let after = poll(addr, &format!("/channels/node/0?cursor={start}"));
    assert!(after.gap && after.messages.is_empty(), "the oldest went first, and it is told");
}

/// A channel that was never used, or not for as long as history lasts, may be forgotten: never silently.
#[test]
fn a_cursor_outlives_its_channel() {
    // All on one worker, whose clock it is.
    let server = Server::start(&["--workers", "1", "--set", "history.seconds=0.2"]);
    let addr = server.addr();
    let unused = head_cursor(addr, "unused");
    let used = publish(addr, "used", "old");
    // Nothing tells that a channel is forgotten, and asking for it would use it. So another one tells the time: when
    // messages published one after the other have aged, the channels that were left alone have long been looked at.
    for n in 0..4 {
        publish(addr, "clock", &n.to_string());
        until("a message ages", || poll(addr, "/channels/clock").messages.is_empty().then_some(()));
    }
    for (channel, cursor) in [("unused", unused), ("used", used)] {
        let id = publish(addr, channel, "new");
        assert_ne!(id, cursor);
        let after = poll(addr, &format!("/channels/{channel}?cursor={cursor}"));
        assert!(after.gap || after.ids() == [id], "{after:?}");
    }
}

#[test]
fn foreign_cursors_are_a_gap() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let foreign: Vec<_> = (0..3).map(|n| publish(addr, "theirs", &n.to_string())).collect();
    let old = {
        let before = Server::start(&[]);
        publish(before.addr(), "mine", "before the restart")
    };
    let empty = poll(addr, &format!("/channels/mine?cursor={}", foreign[0]));
    assert!(empty.gap && empty.messages.is_empty(), "{empty:?}");
    let ids: Vec<_> = (0..2).map(|n| publish(addr, "mine", &n.to_string())).collect();
    for cursor in foreign.iter().chain([&old]) {
        let after = poll(addr, &format!("/channels/mine?cursor={cursor}"));
        assert_eq!((after.gap, after.ids()), (true, ids.clone()), "what there is, and a gap");
        assert!(!poll(addr, &format!("/channels/mine?cursor={}", after.cursor)).gap, "told once");
    }
    // With several channels, only the one concerned.
    let theirs = head_cursor(addr, "theirs");
    let after = poll(addr, &format!("/channels/theirs,mine?cursor={theirs}.{}", foreign[0]));
    assert_eq!((after.gaps.as_slice(), after.ids()), (&["mine".to_owned()][..], ids));
}

/// Whatever is done to a cursor: refused, or a gap, or a position that is one. Never an error, never silence.
#[test]
fn cursors_that_were_tampered_with() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let mut real = vec![head_cursor(addr, "tamper")];
    real.extend((0..4).map(|n| publish(addr, "tamper", &n.to_string())));
    let known: HashSet<_> = real.iter().cloned().collect();
    let mut conn = Conn::open(addr);
    for cursor in [&real[0], &real[4]] {
        for at in 0..cursor.len() {
            for letter in ["A", "0", "z", "9", "_", "-"] {
                let mut changed = cursor.clone();
                changed.replace_range(at..=at, letter);
                if known.contains(&changed) {
                    continue;
                }
                for changed in [changed.clone(), changed[..=at].to_owned()] {
                    if known.contains(&changed) {
                        continue;
                    }
                    let answer = conn.get(&format!("/channels/tamper?cursor={changed}"));
                    if answer.status != 400 {
                        assert!(Poll::of(&answer).gap, "{changed}: {answer}");
                    }
                }
            }
        }
    }
}

// --- Validators -----------------------------------------------------------------------------------------------------

#[test]
fn if_none_match() {
    let server = Server::start(&[]);
    publish(server.addr(), "tag", "one");
    let first = get(server.addr(), "/channels/tag");
    let tag = first.header("etag").to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2, "strong: {tag}");
    for (value, not_modified) in [
        (tag.clone(), true),
        (format!("W/{tag}"), true),
        (format!("\"x\", {tag}"), true),
        (format!("\"x,y\" , W/\"z\",W/{tag} ,\"\""), true),
        ("*".to_owned(), true),
        ("\"x\"".to_owned(), false),
        (tag.trim_matches('"').to_owned(), false),
        (format!("\"{}x\"", tag.trim_matches('"')), false),
    ] {
        let answer = read(&server, "/channels/tag", &[("If-None-Match", &value)]);
        assert_eq!(answer.status, if not_modified { 304 } else { 200 }, "{value}: {answer}");
        assert_eq!(answer.header("etag"), tag, "{value}");
        assert_eq!(answer.header("cache-control"), "private, no-cache", "{value}");
        varies(&answer);
        if not_modified {
            assert!(answer.get("content-length").is_none_or(|length| length == first.body.len().to_string()));
        }
    }
    // Two lines are one list (RFC 9110 §5.2).
    let lines = [("If-None-Match", "\"x\""), ("If-None-Match", tag.as_str())];
    read(&server, "/channels/tag", &lines).expect(304);
    let cursor = Poll::of(&first).cursor;
    publish(server.addr(), "tag", "two");
    let answer = read(&server, "/channels/tag", &[("If-None-Match", &tag)]);
    assert_eq!(texts(&Poll::of(&answer)), ["two"], "never a cursor: the newest, not what came since");
    assert_ne!(answer.header("etag"), tag);
    // A poll that goes on from its cursor.
    let target = format!("/channels/tag?cursor={cursor}");
    let answer = get(server.addr(), &target).expect(200);
    read(&server, &target, &[("If-None-Match", answer.header("etag"))]).expect(304);
}

#[test]
fn a_304_leaves_the_connection_in_step() {
    let server = Server::start(&[]);
    publish(server.addr(), "step", "one");
    let mut conn = Conn::open(server.addr());
    let tag = conn.get("/channels/step").header("etag").to_owned();
    for _ in 0..3 {
        conn.request("GET", "/channels/step", &[("If-None-Match", &tag)], "").expect(304);
        conn.request("HEAD", "/channels/step", &[("If-None-Match", &tag)], "").expect(304);
        conn.get("/channels/step").expect(200);
    }
}

#[test]
fn the_same_tag_means_the_same_messages() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let start = head_cursor(addr, "same");
    for n in 0..3 {
        publish(addr, "same", &n.to_string());
    }
    publish(addr, "same2", "x");
    let head = head_cursor(addr, "same");
    let targets = [
        "/channels/same".to_owned(),
        "/channels/same?limit=0".to_owned(),
        "/channels/same?limit=2".to_owned(),
        "/channels/same?limit=9".to_owned(),
        format!("/channels/same?cursor={start}"),
        format!("/channels/same?cursor={start}&limit=2"),
        format!("/channels/same?cursor={head}"),
        "/channels/same,same2".to_owned(),
        "/channels/same2,same".to_owned(),
    ];
    let answers: Vec<_> = targets.iter().map(|target| get(addr, target).expect(200)).collect();
    for (target, answer) in targets.iter().zip(&answers) {
        for (other, other_answer) in targets.iter().zip(&answers) {
            if answer.json()["messages"] != other_answer.json()["messages"] {
                assert_ne!(answer.header("etag"), other_answer.header("etag"), "{target} and {other}");
                let conditional = read(&server, target, &[("If-None-Match", other_answer.header("etag"))]);
                assert_eq!(conditional.status, 200, "{target} with the tag of {other}");
            }
        }
    }
}

#[test]
fn a_tag_ends_with_the_message_that_ended() {
    let server = Server::start(&[]);
    let addr = server.addr();
    publish(addr, "ends", "stays");
    // Once more where the machine slept through the second.
    let first = until("a message is read before it ends", || {
        post(addr, "/channels/ends", &[TEXT, ("Pushline-TTL", "1")], "ends").expect(201);
        let first = get(addr, "/channels/ends");
        (texts(&Poll::of(&first)) == ["ends"]).then_some(first)
    });
    until("the newest message ends", || {
        let answer = read(&server, "/channels/ends", &[("If-None-Match", first.header("etag"))]);
        (answer.status == 200).then(|| {
            assert_eq!(texts(&Poll::of(&answer)), ["stays"]);
            assert_ne!(answer.header("etag"), first.header("etag"));
        })
    });
}

#[test]
fn head_is_get_without_the_body() {
    let server = Server::start(&[]);
    publish(server.addr(), "head", "one");
    let mut conn = Conn::open(server.addr());
    let full = conn.get("/channels/head");
    let head = conn.request("HEAD", "/channels/head", &[], "").expect(200);
    for name in ["etag", "cache-control", "content-type", "content-length"] {
        assert_eq!(head.header(name), full.header(name), "{name}");
    }
    varies(&head);
    // Never holds, never streams.
    let cursor = Poll::of(&full).cursor;
    let (answer, took) = timed(|| {
        let held = conn.request("HEAD", &format!("/channels/head?cursor={cursor}&wait=40"), &[], "");
        assert!((200..300).contains(&held.status), "{held}");
        let stream = conn.request("HEAD", "/channels/head", &[("Accept", "text/event-stream")], "");
        assert_eq!(stream.status, 200, "{stream}");
        // A stream's head says that the connection ends; a HEAD for one may say so too.
        if stream.closes() { get(server.addr(), "/healthz") } else { conn.get("/healthz") }
    });
    answer.expect(200);
    assert!(took < AT_ONCE, "{took:?}");
}

// --- Several channels -----------------------------------------------------------------------------------------------

#[test]
fn several_channels_have_one_joined_cursor() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let start = poll(addr, "/channels/b,a?limit=0").cursor;
    assert_eq!(start, format!("{}.{}", head_cursor(addr, "b"), head_cursor(addr, "a")), "in the URL's order");
    let (a1, b1, a2) = (publish(addr, "a", "a1"), publish(addr, "b", "b1"), publish(addr, "a", "a2"));
    let all = poll(addr, &format!("/channels/b,a?cursor={start}"));
    let of = |poll: &Poll, channel: &str| -> Vec<String> {
        poll.messages
            .iter()
            .filter(|message| message["channel"] == channel)
            .map(|message| message["id"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!((of(&all, "a"), of(&all, "b")), (vec![a1, a2.clone()], vec![b1.clone()]));
    assert_eq!((&all.cursor, all.gap), (&format!("{b1}.{a2}"), false));
    // The newest of each.
    let now = poll(addr, "/channels/b,a");
    assert_eq!((of(&now, "a"), of(&now, "b")), (vec![a2.clone()], vec![b1.clone()]));
    // Page by page, none lost, none twice.
    let mut cursor = start;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let page = poll(addr, &format!("/channels/b,a?limit=1&cursor={cursor}"));
        assert_eq!(page.messages.len(), 1);
        seen.extend(texts(&page));
        cursor = page.cursor;
    }
    assert!(poll(addr, &format!("/channels/b,a?cursor={cursor}")).messages.is_empty());
    seen.retain(|text| text.starts_with('a') || text == "b1");
    assert_eq!(seen.iter().filter(|text| text.starts_with('a')).collect::<Vec<_>>(), ["a1", "a2"]);
    assert!(seen.contains(&"b1".to_owned()));
}

#[test]
fn an_empty_part_of_a_cursor_is_from_now() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let before = publish(addr, "ea", "a0");
    let now = poll(addr, "/channels/ea?cursor=");
    assert_eq!((now.messages.len(), now.gap, &now.cursor), (0, false, &before), "one part, and empty");
    let start = head_cursor(addr, "ea");
    let a1 = publish(addr, "ea", "a1");
    publish(addr, "eb", "b1");
    for (cursor, want) in [(format!("{start}."), vec!["a1"]), (".".to_owned(), vec![])] {
        let after = poll(addr, &format!("/channels/ea,eb?cursor={cursor}"));
        assert_eq!(
            (texts(&after), after.gap),
            (want.into_iter().map(str::to_owned).collect(), false),
            "{cursor}"
        );
        assert!(after.cursor.starts_with(&format!("{a1}.")), "{after:?}");
        publish(addr, "eb", "b2");
        let later = poll(addr, &format!("/channels/ea,eb?cursor={}", after.cursor));
        assert_eq!(texts(&later), ["b2"], "the answer's cursor has no empty part");
    }
}

#[test]
fn a_page_of_many_channels_starves_none() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let names: Vec<_> = (0..64).map(|n| format!("many/{n}")).collect();
    let list = names.join(",");
    let mut cursor = poll(addr, &format!("/channels/{list}?limit=0")).cursor;
    assert_eq!(cursor.split('.').count(), 64);
    post(addr, &format!("/channels/{list}"), &[TEXT], "1").expect(201);
    post(addr, &format!("/channels/{list}"), &[TEXT], "2").expect(201);
    let mut seen = Vec::new();
    while seen.len() < 128 {
        let page = poll(addr, &format!("/channels/{list}?limit=50&cursor={cursor}"));
        assert!(!page.gap && (1..=50).contains(&page.messages.len()), "{} messages", page.messages.len());
        for message in &page.messages {
            seen.push((message["channel"].as_str().unwrap_or_default().to_owned(), message["data"].clone()));
        }
        cursor = page.cursor;
    }
    for name in &names {
        let of: Vec<_> =
            seen.iter().filter(|(channel, _)| channel == name).map(|(_, data)| data.clone()).collect();
        assert_eq!(of, [json!("1"), json!("2")], "{name}");
    }
}
