//! Publishing (`POST /channels/{name}`), seen by a poll.

use crate::common;

use std::collections::HashSet;
use std::thread;

use common::http::{
    Conn, Poll, ask, batch, get, head_cursor, line_id, newest, poll, post, publish, published,
};
use common::server::Server;
use common::until;
use serde_json::{Value, json};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const JSON: (&str, &str) = ("Content-Type", "application/json");

// --- The body -------------------------------------------------------------------------------------------------------

#[test]
fn content_types_decide_what_a_message_is() {
    let server = Server::start(&[]);
    let cases = [
        ("JSON", Some("application/json"), &b"{\"a\":1}"[..], "data", json!({"a": 1})),
        ("JSON, a parameter", Some("application/json; charset=utf-8"), &b"[1]"[..], "data", json!([1])),
        ("JSON in capitals", Some("Application/JSON"), &b"true"[..], "data", json!(true)),
        ("+json", Some("application/cloudevents+json"), &b"null"[..], "data", json!(null)),
        ("+JSON", Some("application/vnd.x+JSON;v=1"), &b"\"s\""[..], "data", json!("s")),
        ("text", Some("text/plain"), "grüße\r\n".as_bytes(), "data", json!("grüße\r\n")),
        ("text that is JSON", Some("text/plain"), &b"{\"a\":1}"[..], "data", json!("{\"a\":1}")),
        ("HTML", Some("TEXT/html; charset=utf-8"), &b"<p>"[..], "data", json!("<p>")),
        ("text with NUL", Some("text/plain"), &b"a\0\x1b\"\\b"[..], "data", json!("a\0\u{1b}\"\\b")),
        ("curl -d", Some("application/x-www-form-urlencoded"), &b"a=%20&b+c"[..], "data", json!("a=%20&b+c")),
        ("binary", Some("application/octet-stream"), &b"\x00\xff\xfe"[..], "base64", json!("AP/+")),
        ("an image", Some("image/png"), &b"\x89PNG"[..], "base64", json!("iVBORw==")),
        ("no type", None, &b"abc"[..], "base64", json!("YWJj")),
        ("json is not the type", Some("application/jsonx"), &b"{"[..], "base64", json!("ew==")),
    ];
    for (name, kind, body, field, want) in cases {
        let headers: Vec<_> = kind.iter().map(|kind| ("Content-Type", *kind)).collect();
        let id = published(&post(server.addr(), "/channels/types", &headers, body));
        let message = newest(server.addr(), "types");
        assert_eq!(message["id"], id, "{name}");
        assert_eq!(message.get(field), Some(&want), "{name}: {message}");
        let other = if field == "data" { "base64" } else { "data" };
        assert!(message.get(other).is_none(), "{name}: {message}");
    }
}

#[test]
fn an_empty_body_is_an_empty_message() {
    let server = Server::start(&[]);
    for (headers, field) in [
        (&[TEXT][..], "data"),
        (&[("Content-Type", "application/x-www-form-urlencoded")][..], "data"),
        (&[][..], "base64"),
    ] {
        let id = published(&post(server.addr(), "/channels/empty", headers, ""));
        let message = newest(server.addr(), "empty");
        assert_eq!((&message["id"], &message[field]), (&json!(id), &json!("")), "{headers:?}");
    }
    let head = head_cursor(server.addr(), "empty");
    // No length and no coding is a body of nothing (RFC 9112 §6.3).
    let mut conn = Conn::open(server.addr());
    conn.send_raw("POST /channels/empty HTTP/1.1\r\nHost: localhost\r\n\r\n");
    published(&conn.read_response());
    assert_eq!(poll(server.addr(), &format!("/channels/empty?cursor={head}")).messages.len(), 1);
}

#[test]
fn invalid_json_is_400() {
    let server = Server::start(&[]);
    let cases: &[&[u8]] = &[
        b"{",
        b"", // an empty message, but of a type that has none
        b" ",
        b"{\"a\":1}x",
        b"{\"a\":1}{}",
        b"nul",
        b"'a'",
        b"{\"a\":1,}",
        b"[1,]",
        b"{a:1}",
        b"NaN",
        b"01",
        b"1.",
        b"\"a\nb\"",
        b"\"\xff\"",
        b"\"\\x\"",
        b"\xef\xbb\xbf{}",
    ];
    for body in cases {
        let answer = post(server.addr(), "/channels/bad", &[JSON], body);
        assert_eq!(answer.status, 400, "{:?}", String::from_utf8_lossy(body));
        let detail = answer.problem(400);
        assert!(detail.contains("JSON"), "{detail}");
    }
    assert!(poll(server.addr(), "/channels/bad").messages.is_empty());
}

#[test]
fn json_is_passed_on_byte_for_byte() {
    let server = Server::start(&[]);
    for body in [
        r#"{"b":1,  "a" : [1.0,1e5,-0,"\u00e9\/"],"a":2}"#,
        "123456789012345678901234567890.10",
        "{\n  \"a\":\t1\r\n}",
        "\"\u{2028}\"",
    ] {
        post(server.addr(), "/channels/bytes", &[JSON], body).expect(201);
        let answer = get(server.addr(), "/channels/bytes");
        assert!(answer.text().contains(body), "{body:?} in {answer}");
    }
}

#[test]
fn text_must_be_utf8() {
    let server = Server::start(&[]);
    for kind in ["text/plain", "text/html", "application/x-www-form-urlencoded"] {
        for body in [&b"a\xff"[..], b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"] {
            let answer = post(server.addr(), "/channels/utf8", &[("Content-Type", kind)], body);
            assert!(answer.problem(400).contains("UTF-8"), "{answer}");
        }
    }
    assert!(poll(server.addr(), "/channels/utf8").messages.is_empty());
}

#[test]
fn a_message_is_at_most_64_kib() {
    let server = Server::start(&[]);
    let most = "x".repeat(64 * 1024);
    publish(server.addr(), "big", &most);
    assert_eq!(newest(server.addr(), "big")["data"], most);
    let over = most + "x";
    post(server.addr(), "/channels/big", &[TEXT], &over).problem(413);
    // In chunks, so that its size shows only while it comes.
    let mut conn = Conn::open(server.addr());
    let mut wire =
        b"POST /channels/big HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..65 {
        wire.extend_from_slice(b"400\r\n");
        wire.extend_from_slice(&[b'x'; 1024]);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    conn.send_raw(&wire);
    conn.read_response().problem(413);
    // What was never sent whole is refused by its length alone.
    let mut conn = Conn::open(server.addr());
    conn.send_raw(
        "POST /channels/big HTTP/1.1\r\nHost: localhost\r\nContent-Length: 18446744073709551615\r\n\r\nx",
    );
    conn.read_response().problem(413);
    assert_eq!(poll(server.addr(), "/channels/big?limit=9").messages.len(), 1);
}

#[test]
fn the_size_limit_is_configured() {
    let server = Server::start(&["--set", "limits.message_bytes=10"]);
    publish(server.addr(), "small", "0123456789");
    let detail = post(server.addr(), "/channels/small", &[TEXT], "0123456789x").problem(413);
    assert!(detail.contains("10"), "{detail}");
}

#[test]
fn a_content_encoding_is_415() {
    let server = Server::start(&[]);
    for coding in ["gzip", "br", "x-own"] {
        let headers = [JSON, ("Content-Encoding", coding)];
        post(server.addr(), "/channels/coded", &headers, "{}").problem(415);
    }
    assert!(poll(server.addr(), "/channels/coded").messages.is_empty());
}

// --- Pushline-Event -------------------------------------------------------------------------------------------------

#[test]
fn event_names() {
    let server = Server::start(&[]);
    let (most, over) = ("e".repeat(64), "e".repeat(65));
    let wide = "é".repeat(32);
    for (event, good) in [
        ("tick", true),
        ("räksmörgås", true),
        ("a b:c,d", true),
        ("message", true),
        ("opened", true),
        ("a$b", true),
        (&most, true),
        (&wide, true),
        (&(wide.clone() + "x"), false),
        (&over, false),
        ("", false),
        ("error", false),
        ("open", false),
        ("$tick", false),
        ("$", false),
        ("a\tb", false),
        ("a\u{85}b", false),
    ] {
        let before = head_cursor(server.addr(), "events");
        let answer = post(server.addr(), "/channels/events", &[TEXT, ("Pushline-Event", event)], "x");
        // The same rule for a batch's line.
        let line = json!({"channel": "events", "data": "y", "event": event}).to_string();
        let lines = batch(server.addr(), &line);
        let after = poll(server.addr(), &format!("/channels/events?cursor={before}"));
        if good {
            published(&answer);
            line_id(&lines[0]);
            assert_eq!(after.messages.len(), 2, "{event:?}");
            assert!(after.messages.iter().all(|message| message["event"] == event), "{event:?}: {after:?}");
        } else {
            answer.problem(400);
            assert!(lines[0].get("id").is_none(), "{event:?}: {}", lines[0]);
            assert!(after.messages.is_empty(), "{event:?}: {after:?}");
        }
    }
    publish(server.addr(), "events", "unnamed");
    assert!(newest(server.addr(), "events").get("event").is_none_or(Value::is_null));
}

#[test]
fn an_event_name_is_utf8() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    conn.send_raw(
        b"POST /channels/e HTTP/1.1\r\nHost: localhost\r\nPushline-Event: a\xff\r\nContent-Length: 0\r\n\r\n",
    );
    conn.read_response().problem(400);
}

// --- Pushline-TTL ---------------------------------------------------------------------------------------------------

#[test]
fn ttl_0_is_delivered_and_not_kept() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let before = head_cursor(addr, "now");
    let mut held = Conn::open(addr);
    held.send("GET", &format!("/channels/now?cursor={before}&wait=30"), &[], "");
    held.quiet(std::time::Duration::from_millis(200));
    let id = published(&post(addr, "/channels/now", &[TEXT, ("Pushline-TTL", "0")], "gone"));
    let answer = Poll::of(&held.read_response());
    assert_eq!((answer.data(), answer.ids()), (vec![json!("gone")], vec![id.clone()]));
    assert!(poll(addr, "/channels/now?limit=5").messages.is_empty());
    // Its id is a cursor, and it leaves no gap behind.
    let kept = publish(addr, "now", "kept");
    for cursor in [&before, &id, &answer.cursor] {
        let after = poll(addr, &format!("/channels/now?cursor={cursor}"));
        assert_eq!((after.ids(), after.gap), (vec![kept.clone()], false), "{cursor}");
    }
}

#[test]
fn a_ttl_that_ends_makes_no_gap() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let start = head_cursor(addr, "ttl");
    let first = publish(addr, "ttl", "first");
    let brief = published(&post(addr, "/channels/ttl", &[TEXT, ("Pushline-TTL", "1")], "brief"));
    let third = publish(addr, "ttl", "third");
    let last = published(&post(addr, "/channels/ttl", &[TEXT, ("Pushline-TTL", "1")], "last"));
    assert_eq!(poll(addr, &format!("/channels/ttl?cursor={start}")).messages.len(), 4, "kept for a second");
    let gone = |what: &str| what == "brief" || what == "last";
    until("the brief messages end", || {
        let all = poll(addr, "/channels/ttl?limit=9");
        (!all.data().iter().any(|text| gone(text.as_str().unwrap_or_default()))).then_some(())
    });
    for (cursor, want) in [
        (&start, vec![first.clone(), third.clone()]),
        (&first, vec![third.clone()]),
        (&brief, vec![third.clone()]),
        (&third, vec![]),
        (&last, vec![]),
    ] {
        let after = poll(addr, &format!("/channels/ttl?cursor={cursor}"));
        assert_eq!((after.ids(), after.gap), (want, false), "{cursor}");
    }
}

#[test]
fn ttl_is_a_whole_number() {
    let server = Server::start(&[]);
    for (ttl, good) in [
        ("0", true),
        ("60", true),
        ("4294967296", true),
        ("18446744073709551616", true), // cut to the channel's own limit, whatever it is
        ("-1", false),
        ("1.5", false),
        ("1s", false),
        ("", false),
        ("0x10", false),
        ("1 2", false),
    ] {
        let answer = post(server.addr(), "/channels/ttls", &[TEXT, ("Pushline-TTL", ttl)], "x");
        if good {
            answer.expect(201);
        } else {
            answer.problem(400);
        }
    }
}

#[test]
fn ttl_is_cut_to_the_channels_own_limit() {
    let server = Server::start(&["--set", "history.seconds=1"]);
    let addr = server.addr();
    let start = head_cursor(addr, "short");
    post(addr, "/channels/short", &[TEXT, ("Pushline-TTL", "3600")], "x").expect(201);
    until("history forgets it", || poll(addr, "/channels/short").messages.is_empty().then_some(()));
    // A message without a TTL that age has taken is a loss, and told.
    let start = poll(addr, &format!("/channels/short?cursor={start}")).cursor;
    publish(addr, "short", "y");
    until("history forgets it", || poll(addr, "/channels/short").messages.is_empty().then_some(()));
    let after = poll(addr, &format!("/channels/short?cursor={start}"));
    assert!(after.gap, "{after:?}");
    assert!(!poll(addr, &format!("/channels/short?cursor={}", after.cursor)).gap, "told once");
}

// --- Several channels -----------------------------------------------------------------------------------------------

#[test]
fn publishing_to_several_channels() {
    let server = Server::start(&[]);
    let answer =
        post(server.addr(), "/channels/m/b,m/a", &[TEXT, ("Idempotency-Key", "k")], "both").expect(201);
    let list = answer.json()["published"].clone();
    let channels: Vec<_> =
        list.as_array().expect("a list").iter().map(|one| one["channel"].clone()).collect();
    assert_eq!(channels, ["m/b", "m/a"], "in the URL's order");
    for one in list.as_array().expect("a list") {
        let message = newest(server.addr(), one["channel"].as_str().expect("a name"));
        assert_eq!((&message["id"], &message["data"]), (&one["id"], &json!("both")));
        assert_eq!(message["channel"], one["channel"]);
    }
    let again = post(server.addr(), "/channels/m/b,m/a", &[TEXT, ("Idempotency-Key", "k")], "both");
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.body, answer.body);
    assert_eq!(poll(server.addr(), "/channels/m/b,m/a?limit=9").messages.len(), 2);
}

#[test]
fn publishing_is_done_for_all_channels_or_none() {
    let server = Server::start(&[]);
    for target in ["/channels/ok,a//b", "/channels/ok,$server", "/channels/ok,*", "/channels/ok,ok"] {
        let answer = post(server.addr(), target, &[TEXT], "x");
        assert!((400..500).contains(&answer.status), "{target}: {answer}");
        answer.problem(answer.status);
    }
    // A key that conflicts on one of them.
    let key = [TEXT, ("Idempotency-Key", "k")];
    published(&post(server.addr(), "/channels/taken", &key, "one"));
    post(server.addr(), "/channels/ok,taken", &key, "two").problem(409);
    assert!(poll(server.addr(), "/channels/ok").messages.is_empty());
}

// --- Order and ids --------------------------------------------------------------------------------------------------

#[test]
fn ids_are_opaque_short_and_unique() {
    let server = Server::start(&[]);
    let mut seen = HashSet::new();
    for n in 0..50 {
        let id = publish(server.addr(), "ids", &n.to_string());
        assert!(!id.is_empty() && id.len() <= 32, "{id}");
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)), "{id}");
        assert!(seen.insert(id), "the ids repeat");
        if n % 10 == 9 {
            ask(server.addr(), "DELETE", "/channels/ids", &[], "").expect(204);
        }
    }
}

#[test]
fn ids_are_not_reused_after_a_channel_is_forgotten_or_a_restart() {
    let mut seen = HashSet::new();
    for _ in 0..2 {
        // The first of a hundred channels are forgotten for the last, then come again.
        let server = Server::start(&["--set", "limits.channels=64"]);
        let mut cursors = Vec::new();
        for round in 0..2 {
            for n in 0..100 {
                let id = publish(server.addr(), &format!("forgotten/{n}"), "x");
                assert!(seen.insert(format!("{n} {id}")), "{id} was used before");
                cursors.push((round, n, id));
            }
        }
        // Each cursor is right, or a gap is told.
        for (round, n, cursor) in cursors.iter().filter(|(_, n, _)| n % 17 == 0) {
            let after = poll(server.addr(), &format!("/channels/forgotten/{n}?cursor={cursor}"));
            let want = 1 - round;
            assert!(after.gap || after.messages.len() == want, "{round} {n}: {after:?}");
        }
    }
}

#[test]
fn one_order_for_all_publishers() {
    let server = Server::start(&["--workers", "2", "--set", "history.messages=1000"]);
    let addr = server.addr();
    let start = head_cursor(addr, "order");
    let publishers: Vec<_> = (0..4)
        .map(|who| {
            thread::spawn(move || {
                let mut conn = Conn::open(addr);
                // Pipelined ten at a time: they take their places in the order of the connection.
                for round in 0..5 {
                    for n in 0..10 {
                        let text = format!("{who}:{:02}", round * 10 + n);
                        conn.send("POST", "/channels/order", &[TEXT], text);
                    }
                    for _ in 0..10 {
                        published(&conn.read_response());
                    }
                }
            })
        })
        .collect();
    publishers.into_iter().for_each(|publisher| publisher.join().expect("a publisher"));
    let mut all = Vec::new();
    let mut cursor = start;
    while all.len() < 200 {
        let page = poll(addr, &format!("/channels/order?limit=7&cursor={cursor}"));
        assert!(!page.gap && (1..=7).contains(&page.messages.len()), "{page:?}");
        assert_eq!(page.ids().last(), Some(&page.cursor), "a message's id is the cursor just after it");
        all.extend(page.data());
        cursor = page.cursor;
    }
    for who in 0..4 {
        let of: Vec<_> =
            all.iter().filter_map(Value::as_str).filter(|text| text.starts_with(&who.to_string())).collect();
        assert!(of.is_sorted() && of.len() == 50, "{of:?}");
    }
}

// --- DELETE ---------------------------------------------------------------------------------------------------------

#[test]
fn delete_forgets_and_tells_a_gap() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let start = head_cursor(addr, "del");
    publish(addr, "del", "one");
    let head = publish(addr, "del", "two");
    let tag = get(addr, "/channels/del").header("etag").to_owned();
    let answer = ask(addr, "DELETE", "/channels/del", &[], "").expect(204);
    assert!(answer.body.is_empty() && answer.get("content-length").is_none(), "{answer}");
    let now = poll(addr, "/channels/del?limit=9");
    assert!(now.messages.is_empty() && !now.gap, "{now:?}");
    assert_ne!(now.cursor, head, "the head moves");
    assert_ne!(get(addr, "/channels/del").header("etag"), tag);
    for cursor in [&start, &head] {
        let after = poll(addr, &format!("/channels/del?cursor={cursor}"));
        assert_eq!((after.gap, after.gaps.as_slice()), (true, &["del".to_owned()][..]), "{cursor}");
        assert!(after.messages.is_empty(), "{cursor}: {after:?}");
        assert_eq!(after.cursor, now.cursor);
    }
    let id = publish(addr, "del", "three");
    assert!(poll(addr, &format!("/channels/del?cursor={head}")).gap);
    let after = poll(addr, &format!("/channels/del?cursor={}", now.cursor));
    assert_eq!((after.ids(), after.gap), (vec![id], false));
}

#[test]
fn delete_is_204_always() {
    let server = Server::start(&[]);
    for _ in 0..2 {
        ask(server.addr(), "DELETE", "/channels/never-seen", &[], "").expect(204);
    }
    // A held poll is told at once.
    let cursor = head_cursor(server.addr(), "held");
    let mut held = Conn::open(server.addr());
    held.send("GET", &format!("/channels/held?cursor={cursor}&wait=30"), &[], "");
    held.quiet(std::time::Duration::from_millis(200));
    ask(server.addr(), "DELETE", "/channels/held", &[], "").expect(204);
    assert!(Poll::of(&held.read_response()).gap);
}
