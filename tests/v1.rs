//! `pushline.v1`, the subprotocol over WebSocket, frame by frame; and one cursor over all transports.

use crate::common;
mod publishing;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use common::http::{Conn, ask, head_cursor, poll, post, publish, published};
use common::server::Server;
use common::sse::Stream;
use common::ws::{CONTINUATION, Message, PING, Socket, TEXT, V1, masked, text_of, wire};

/// How long nothing must come, where nothing is to come.
const QUIET: Duration = Duration::from_millis(150);

#[test]
fn opens_and_subscribes_the_urls_channels() {
    let server = Server::start(&[]);
    let id = publish(server.addr(), "a", "before");
    let mut v1 = V1::open(server.addr(), "/channels/a,b%2Fc");
    let first = v1.expect("subscribed");
    assert_eq!(
        (&first["channel"], &first["cursor"], &first["gap"]),
        (&json!("a"), &json!(id), &json!(false))
    );
    assert_eq!(first.get("seq"), None);
    assert_eq!(v1.expect("subscribed")["channel"], "b/c");
    v1.socket.quiet(QUIET);
    publish(server.addr(), "a", "after");
    assert_eq!(v1.texts(1), ["after"]);
    let other = V1::open(server.addr(), "/channels/a");
    assert_ne!(other.connection, v1.connection);
}

#[test]
fn channels_alone_opens_a_connection_with_none() {
    let server = Server::start(&[]);
    let mut v1 = V1::open(server.addr(), "/channels");
    v1.socket.quiet(QUIET);
    let answer = v1.ask(json!({"type": "subscribe", "channel": "a"}), "subscribed");
    assert_eq!(answer["channel"], "a");
    publish(server.addr(), "a", "x");
    assert_eq!(v1.texts(1), ["x"]);
}

#[test]
fn a_message_has_its_members() {
    let server = Server::start(&[]);
    let (mut v1, _) = V1::subscribed(server.addr(), "a/b");
    let tick = &[("Content-Type", "application/json"), ("Pushline-Event", "tick")];
    let id = published(&post(server.addr(), "/channels/a/b", tick, "{\"n\":1.50}"));
    let text = v1.socket.expect_text();
    assert!(text.contains("{\"n\":1.50}"), "JSON as it came: {text}");
    let message: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&message["type"], &message["channel"], &message["id"], &message["event"]),
        (&json!("message"), &json!("a/b"), &json!(id), &json!("tick"))
    );
    assert!(message["ts"].as_u64().is_some_and(|ts| ts > 1_700_000_000_000), "{message}");
    publish(server.addr(), "a/b", "text \" \\ \n \u{0}");
    let message = v1.expect("message");
    assert_eq!((&message["data"], message.get("event")), (&json!("text \" \\ \n \u{0}"), None));
    post(server.addr(), "/channels/a/b", &[], [1, 2, 3]).expect(201);
    let message = v1.expect("message");
    assert_eq!((&message["base64"], message.get("data")), (&json!("AQID"), None));
}

#[test]
fn subscribe_by_cursor_by_history_and_from_now() {
    let server = Server::start(&[]);
    let ids: Vec<String> = ["1", "2", "3"].map(|text| publish(server.addr(), "a", text)).into();
    for (extra, cursor, want) in [
        (json!({}), &ids[2], &[][..]),
        (json!({"cursor": ids[0]}), &ids[0], &["2", "3"]),
        (json!({"history": 1}), &ids[1], &["3"]),
        (json!({"history": 0}), &ids[2], &[]),
    ] {
        let mut subscribe = json!({"type": "subscribe", "channel": "a", "seq": 7});
        for (name, value) in extra.as_object().expect("an object") {
            subscribe[name] = value.clone();
        }
        let mut v1 = V1::open(server.addr(), "/channels");
        let answer = v1.ask(subscribe, "subscribed");
        assert_eq!(
            answer,
            json!({"type": "subscribed", "channel": "a", "cursor": cursor, "gap": false, "seq": 7})
        );
        assert_eq!(v1.texts(want.len()), want);
        v1.socket.quiet(Duration::from_millis(30));
    }
    let mut v1 = V1::open(server.addr(), "/channels");
    let all = v1.ask(json!({"type": "subscribe", "channel": "a", "history": 99}), "subscribed");
    assert_eq!(all["gap"], false);
    assert_eq!(v1.texts(3), ["1", "2", "3"]);
}

#[test]
fn the_urls_cursor_is_the_joined_one() {
    let server = Server::start(&[]);
    let a = publish(server.addr(), "a", "a1");
    publish(server.addr(), "a", "a2");
    publish(server.addr(), "b", "b1");
    let mut v1 = V1::open(server.addr(), &format!("/channels/b,a?cursor=.{a}"));
    let mut seen = Vec::new();
    for _ in 0..3 {
        let value = v1.next();
        seen.push(format!("{} {}", text_of(&value, "type"), text_of(&value, "channel")));
    }
    seen.sort();
    assert_eq!(seen, ["message a", "subscribed a", "subscribed b"]);
    publish(server.addr(), "b", "b2");
    assert_eq!(v1.texts(1), ["b2"]);
}

#[test]
fn seq_is_the_clients_own() {
    let server = Server::start(&[]);
    let mut v1 = V1::open(server.addr(), "/channels");
    for seq in [
        json!(0),
        json!(1),
        json!(-1),
        json!(4_294_967_296_u64),
        json!(9_007_199_254_740_991_u64),
        json!(u64::MAX),
        json!(i64::MIN),
    ] {
        for (kind, answer) in
            [("subscribe", "subscribed"), ("publish", "published"), ("unsubscribe", "unsubscribed")]
        {
            let mut request = json!({"type": kind, "channel": "a", "seq": seq});
            if kind == "publish" {
                request["data"] = json!("x");
                request["ttl"] = json!(0);
                request["channel"] = json!("elsewhere");
            }
            let answer = v1.ask(request, answer);
            assert_eq!(answer["seq"], seq, "{answer}");
        }
    }
    let answer = v1.ask(json!({"type": "subscribe", "channel": "a"}), "subscribed");
    assert_eq!(answer.get("seq"), None, "none was given");
    for seq in ["18446744073709551616", "-9223372036854775809", "1.0", "1e3", "\"1\"", "true"] {
        v1.socket.text(&format!("{{\"type\":\"ping\",\"seq\":{seq}}}"));
        let error = v1.next();
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("error"), &json!("bad_frame")),
            "{seq}: {error}"
        );
        assert!(error["message"].as_str().is_some_and(|text| text.contains("-2^63 to 2^64-1")), "{error}");
        assert_eq!(error.get("seq"), None, "{error}");
    }
}

#[test]
fn subscribing_twice_is_an_error() {
    let server = Server::start(&[]);
    let (mut v1, _) = V1::subscribed(server.addr(), "a");
    let first = v1.refused(json!({"type": "subscribe", "channel": "a", "seq": 1}));
    let again = v1.refused(json!({"type": "subscribe", "channel": "a", "seq": 2}));
    assert_eq!(first["code"], again["code"], "codes are of a closed list");
    publish(server.addr(), "a", "once");
    publish(server.addr(), "a", "mark");
    assert_eq!(v1.texts(2), ["once", "mark"]);
}

#[test]
fn unsubscribe_ends_it_and_it_may_begin_again() {
    let server = Server::start(&[]);
    let mut v1 = V1::open(server.addr(), "/channels/a,b");
    v1.expect("subscribed");
    v1.expect("subscribed");
    let id = publish(server.addr(), "a", "1");
    v1.texts(1);
    let answer = v1.ask(json!({"type": "unsubscribe", "channel": "a"}), "unsubscribed");
    assert_eq!(answer["channel"], "a");
    publish(server.addr(), "a", "2");
    publish(server.addr(), "b", "mark");
    assert_eq!(v1.texts(1), ["mark"], "nothing of a");
    v1.refused(json!({"type": "unsubscribe", "channel": "a", "seq": 3}));
    let answer = v1.ask(json!({"type": "subscribe", "channel": "a", "cursor": id}), "subscribed");
    assert_eq!(answer["cursor"], json!(id));
    assert_eq!(v1.texts(1), ["2"]);
}

/// What a connection published before it unsubscribes, it still gets.
#[test]
fn unsubscribe_comes_after_what_was_published() {
    const COUNT: usize = 200;
    for workers in ["1", "4"] {
        let server = Server::start(&["--workers", workers]);
        let (mut v1, _) = V1::subscribed(server.addr(), "a");
        let publish = r#"{"type":"publish","channel":"a","data":"x"}"#;
        let mut frames: Vec<u8> =
            (0..COUNT).flat_map(|_| common::ws::masked(true, common::ws::TEXT, publish.as_bytes())).collect();
        let unsubscribe = br#"{"type":"unsubscribe","channel":"a"}"#;
        frames.extend(common::ws::masked(true, common::ws::TEXT, unsubscribe));
        v1.socket.send_raw(&frames);
        let mut messages = 0;
        loop {
            match &text_of(&v1.next(), "type")[..] {
                "message" => messages += 1,
                "published" => {}
                "unsubscribed" => break,
                other => panic!("{other}"),
            }
        }
        assert_eq!(messages, COUNT, "{workers} workers");
    }
}

#[test]
fn refused_operations_are_errors_and_the_connection_stays() {
    let server = Server::start(&[]);
    let id = publish(server.addr(), "a", "x");
    let mut v1 = V1::open(server.addr(), "/channels");
    let long = "a".repeat(201);
    for request in [
        json!({"type": "subscribe", "channel": "a", "cursor": id, "history": 1, "seq": 1}),
        json!({"type": "subscribe", "channel": "a", "cursor": "!!", "seq": 1}),
        json!({"type": "subscribe", "channel": "a", "cursor": format!("{id}.{id}"), "seq": 1}),
        json!({"type": "subscribe", "channel": "a", "history": -1, "seq": 1}),
        json!({"type": "subscribe", "channel": "a", "history": "1", "seq": 1}),
        json!({"type": "subscribe", "channel": "a,b", "seq": 1}),
        json!({"type": "subscribe", "channel": "", "seq": 1}),
        json!({"type": "subscribe", "channel": "a//b", "seq": 1}),
        json!({"type": "subscribe", "channel": "$sys", "seq": 1}),
        json!({"type": "subscribe", "channel": long, "seq": 1}),
        json!({"type": "subscribe", "channel": 1, "seq": 1}),
        json!({"type": "subscribe", "seq": 1}),
        json!({"type": "unsubscribe", "channel": "never", "seq": 1}),
        json!({"type": "publish", "channel": "a", "seq": 1}),
        json!({"type": "publish", "data": "x", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "base64": "eA==", "seq": 1}),
        json!({"type": "publish", "channel": "a", "base64": "not base64!", "seq": 1}),
        json!({"type": "publish", "channel": "a", "base64": 1, "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "event": "$x", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "event": "error", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "event": "open", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "event": "", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "event": "a\nb", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "event": "e".repeat(65), "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "ttl": -1, "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "ttl": 1.5, "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "key": "", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": "x", "key": "k".repeat(129), "seq": 1}),
        json!({"type": "dance", "seq": 1}),
        json!({"type": "open", "seq": 1}),
    ] {
        let what = request.to_string();
        let error = v1.refused(request);
        let code = text_of(&error, "code");
        assert!(
            code.bytes().all(|byte| byte.is_ascii_lowercase() || b"_-".contains(&byte)),
            "{what}: {error}"
        );
    }
    let held = poll(server.addr(), "/channels/a?limit=9").messages;
    assert_eq!(held.len(), 1, "nothing was published: {held:?}");
    assert_eq!(v1.ask(json!({"type": "subscribe", "channel": "a"}), "subscribed")["cursor"], json!(id));
}

/// What is not an object of the table is told so: an error, or the end with the code that says why.
#[test]
fn what_is_no_object_is_refused() {
    let server = Server::start(&[]);
    for text in
        ["", "hello", "[]", "1", "null", "{\"type\":1}", "{}", "{\"type\":\"ping\"", "{\"type\":\"ping\"} {}"]
    {
        let mut v1 = V1::open(server.addr(), "/channels");
        v1.socket.text(text);
        v1.expect("error");
        v1.ask(json!({"type": "ping"}), "pong");
    }
    let mut v1 = V1::open(server.addr(), "/channels");
    v1.socket.binary(b"{\"type\":\"ping\"}");
    loop {
        match v1.socket.message() {
            Message::Text(_) => {}
            end => break assert_eq!(end, Message::Close(1003), "text frames alone"),
        }
    }
}

#[test]
fn frames_are_checked_as_in_raw() {
    let server = Server::start(&[]);
    for (what, bytes, code) in [
        ("unmasked", wire(0x80 | TEXT, None, b"{}"), 1002),
        ("invalid UTF-8", masked(true, TEXT, b"{\"type\":\"\xFF\"}"), 1007),
        ("an endless length", vec![0x81, 0xFF, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009),
    ] {
        let mut v1 = V1::open(server.addr(), "/channels");
        v1.socket.send_raw(bytes);
        loop {
            match v1.socket.message() {
                Message::Text(_) => {}
                end => break assert_eq!(end, Message::Close(code), "{what}"),
            }
        }
    }
    let mut v1 = V1::open(server.addr(), "/channels");
    v1.socket.send(false, TEXT, "{\"type\":");
    v1.socket.send(true, PING, "p");
    v1.socket.send(true, CONTINUATION, "\"ping\"}");
    v1.expect("pong");
}

#[test]
fn ping_is_answered_with_pong() {
    let server = Server::start(&[]);
    let mut v1 = V1::open(server.addr(), "/channels");
    assert_eq!(v1.ask(json!({"type": "ping"}), "pong"), json!({"type": "pong"}));
}

/// The limit is of the decoded data: a frame may be larger by its encoding.
#[test]
fn the_message_limit_is_of_the_decoded_data() {
    let server = Server::start(&["--set", "limits.message_bytes=1000"]);
    let (mut reader, _) = V1::subscribed(server.addr(), "a");
    let mut v1 = V1::open(server.addr(), "/channels");
    let publish = |member: &str, value: &str| {
        format!("{{\"type\":\"publish\",\"channel\":\"a\",\"seq\":1,\"{member}\":{value}}}")
    };
    let escapes = |count: usize| format!("\"{}\"", "\\u0041".repeat(count));
    let base64 = |count: usize| format!("\"{}\"", BASE64.encode(vec![9; count]));
    let array = |count: usize| format!("[{}]", " ".repeat(count - 2));
    for text in
        [publish("data", &escapes(1_000)), publish("base64", &base64(1_000)), publish("data", &array(1_000))]
    {
        v1.socket.text(&text);
        v1.expect("published");
        reader.expect("message");
    }
    let mut codes = Vec::new();
    for text in
        [publish("data", &escapes(1_001)), publish("base64", &base64(1_001)), publish("data", &array(1_001))]
    {
        v1.socket.text(&text);
        let error = v1.expect("error");
        assert_eq!(error["seq"], 1, "{error}");
        codes.push(text_of(&error, "code"));
    }
    codes.dedup();
    assert_eq!(codes.len(), 1, "{codes:?}");
    v1.ask(json!({"type": "ping"}), "pong");
    // Far beyond what any encoding of an allowed message takes.
    v1.socket.text(&publish("data", &escapes(20_000)));
    assert_eq!(v1.socket.message(), Message::Close(1009));
}

#[test]
fn a_gap_on_subscribe() {
    let server = Server::start(&["--set", "history.messages=2"]);
    let start = head_cursor(server.addr(), "a");
    for text in ["1", "2", "3"] {
        publish(server.addr(), "a", text);
    }
    let mut v1 = V1::open(server.addr(), "/channels");
    let subscribe = json!({"type": "subscribe", "channel": "a", "cursor": start, "seq": 1});
    let answer = v1.ask(subscribe, "subscribed");
    assert_eq!((&answer["gap"], &answer["seq"]), (&json!(true), &json!(1)), "{answer}");
    let mut value = v1.next();
    if value["type"] == "gap" {
        value = v1.next();
    }
    assert_eq!(value["data"], "2", "what there is");
    assert_eq!(v1.texts(1), ["3"]);

    let mut v1 = V1::open(server.addr(), &format!("/channels/a?cursor={start}"));
    assert_eq!(v1.expect("subscribed")["gap"], true, "by the URL as well");
}

/// `subscribed` tells the gap and gives the cursor in one frame: that cursor is past the gap, and exact.
#[test]
fn the_cursor_of_subscribed_is_its_resume_point() {
    let server = Server::start(&["--set", "history.messages=2"]);
    let start = head_cursor(server.addr(), "a");
    for text in ["1", "2", "3"] {
        publish(server.addr(), "a", text);
    }
    let mut v1 = V1::open(server.addr(), &format!("/channels/a?cursor={start}"));
    let cursor = text_of(&v1.expect("subscribed"), "cursor");
    let held = poll(server.addr(), &format!("/channels/a?cursor={cursor}"));
    assert_eq!((held.data(), held.gap), (vec![json!("2"), json!("3")], false));
}

#[test]
fn a_deletion_is_a_gap() {
    let server = Server::start(&[]);
    let mut v1 = V1::open(server.addr(), "/channels/a,b");
    v1.expect("subscribed");
    v1.expect("subscribed");
    publish(server.addr(), "a", "1");
    v1.texts(1);
    ask(server.addr(), "DELETE", "/channels/a", &[], "").expect(204);
    let gap = v1.expect("gap");
    assert_eq!(gap["channel"], "a");
    let cursor = text_of(&gap, "cursor");
    publish(server.addr(), "a", "2");
    assert_eq!(v1.texts(1), ["2"]);
    let held = poll(server.addr(), &format!("/channels/a?cursor={cursor}"));
    assert_eq!((held.data(), held.gap), (vec![json!("2")], false));
}

#[test]
fn two_channels_keep_each_its_order() {
    let server = Server::start(&["--workers", "4"]);
    let mut v1 = V1::open(server.addr(), "/channels/a,b");
    v1.expect("subscribed");
    v1.expect("subscribed");
    let mut conn = Conn::open(server.addr());
    for n in 0..100 {
        let channel = ["/channels/a", "/channels/b"][n % 2];
        conn.send("POST", channel, &[("Content-Type", "text/plain")], n.to_string());
    }
    for _ in 0..100 {
        conn.read_response().expect(201);
    }
    let mut next = [0, 1];
    for _ in 0..100 {
        let message = v1.expect("message");
        let of = usize::from(message["channel"] == "b");
        assert_eq!(message["data"], json!(next[of].to_string()));
        next[of] += 2;
    }
}

#[test]
fn many_subscriptions_on_one_connection() {
    let server = Server::start(&["--workers", "4"]);
    let mut v1 = V1::open(server.addr(), "/channels");
    for n in 0..100 {
        v1.send(json!({"type": "subscribe", "channel": format!("c{n}"), "seq": n}));
    }
    let mut seqs: Vec<u64> =
        (0..100).map(|_| v1.expect("subscribed")["seq"].as_u64().expect("a number")).collect();
    seqs.sort_unstable();
    assert!(seqs.into_iter().eq(0..100));
    let mut conn = Conn::open(server.addr());
    for n in 0..100 {
        let target = format!("/channels/c{n}");
        conn.request("POST", &target, &[("Content-Type", "text/plain")], n.to_string()).expect(201);
    }
    for _ in 0..100 {
        let message = v1.expect("message");
        assert_eq!(message["channel"], json!(format!("c{}", text_of(&message, "data"))));
    }
}

#[test]
fn subscriptions_are_limited() {
    let server = Server::start(&["--set", "limits.subscriptions=3"]);
    let mut v1 = V1::open(server.addr(), "/channels");
    for channel in ["a", "b", "c"] {
        v1.ask(json!({"type": "subscribe", "channel": channel}), "subscribed");
    }
    v1.refused(json!({"type": "subscribe", "channel": "d", "seq": 4}));
    v1.ask(json!({"type": "unsubscribe", "channel": "a"}), "unsubscribed");
    v1.ask(json!({"type": "subscribe", "channel": "d"}), "subscribed");
}

/// One reader, one cursor, every transport in turn: nothing lost, nothing twice.
#[test]
fn resumes_across_transports() {
    let server = Server::start(&["--workers", "4"]);
    let addr = server.addr();
    let stream = Stream::open(addr, "/channels/a");
    let mut cursor = stream.cursor.clone();
    drop(stream);
    let mut n = 0;
    let mut next = |count: usize| -> Vec<String> {
        (0..count)
            .map(|_| {
                n += 1;
                publish(addr, "a", &n.to_string());
                n.to_string()
            })
            .collect()
    };
    for _ in 0..3 {
        let want = next(2);
        let mut v1 = V1::open(addr, &format!("/channels/a?cursor={cursor}"));
        assert_eq!(v1.expect("subscribed")["cursor"], json!(cursor));
        for text in want {
            let message = v1.expect("message");
            assert_eq!(message["data"], json!(text));
            cursor = text_of(&message, "id");
        }
        drop(v1);

        let want = next(2);
        let mut raw = Socket::open(addr, &format!("/channels/a?cursor={cursor}"));
        assert_eq!([raw.expect_text(), raw.expect_text()].to_vec(), want, "raw is resumed into");
        drop(raw);
        let held = Conn::open(addr).get(&format!("/channels/a?wait=5&cursor={cursor}"));
        let held = common::http::Poll::of(&held);
        assert_eq!(held.data(), want.iter().map(|text| json!(text)).collect::<Vec<_>>(), "but not out of");
        cursor = held.cursor;

        let want = next(3);
        let mut stream = Stream::resume(addr, "/channels/a", &cursor);
        let message = stream.message();
        assert_eq!(message.data, want[0]);
        cursor = message.id;
        drop(stream);

        let held = poll(addr, &format!("/channels/a?limit=1&cursor={cursor}"));
        assert_eq!(held.data(), [json!(want[1])]);
        cursor = held.cursor;
        let mut stream = Stream::open(addr, &format!("/channels/a?envelope=1&cursor={cursor}"));
        let message = stream.message();
        assert_eq!(message.json()["data"], json!(want[2]));
        cursor = message.id;
    }
}

/// A held long poll, a stream and both kinds of WebSocket hear one publish each, whoever published it.
#[test]
fn one_publish_reaches_all_four() {
    let server = Server::start(&["--workers", "4"]);
    let addr = server.addr();
    let cursor = head_cursor(addr, "a");
    let mut held = Conn::open(addr);
    held.send("GET", &format!("/channels/a?wait=20&cursor={cursor}"), &[], "");
    let mut stream = Stream::open(addr, "/channels/a");
    let mut raw = Socket::open(addr, "/channels/a");
    let (mut v1, _) = V1::subscribed(addr, "a");
    let id = publish(addr, "a", "all");
    let answer = common::http::Poll::of(&held.read_response());
    assert_eq!((answer.data(), answer.cursor), (vec![json!("all")], id.clone()));
    assert_eq!(stream.message().id, id);
    assert_eq!(raw.expect_text(), "all");
    assert_eq!(v1.expect("message")["id"], json!(id));
}
