//! Publishing by `pushline.v1`.

use super::*;

#[test]
fn publishes_each_kind() {
    let server = Server::start(&[]);
    let (mut reader, _) = V1::subscribed(server.addr(), "a");
    let mut v1 = V1::open(server.addr(), "/channels");
    for (member, value, want) in [
        ("data", json!("a text"), json!({"data": "a text"})),
        ("data", json!(""), json!({"data": ""})),
        ("data", json!({"an": ["object"]}), json!({"data": {"an": ["object"]}})),
        ("data", json!(null), json!({"data": null})),
        ("data", json!(1.5), json!({"data": 1.5})),
        ("base64", json!("AQID"), json!({"base64": "AQID"})),
        ("base64", json!(""), json!({"base64": ""})),
    ] {
        let mut request = json!({"type": "publish", "channel": "a", "event": "tick", "seq": 5});
        request[member] = value;
        let answer = v1.ask(request, "published");
        let id = text_of(&answer, "id");
        assert_eq!(answer, json!({"type": "published", "channel": "a", "id": id, "seq": 5}));
        let message = reader.expect("message");
        assert_eq!((&message["id"], &message["event"]), (&json!(id), &json!("tick")));
        for member in ["data", "base64"] {
            assert_eq!(message.get(member), want.get(member), "{message}");
        }
    }
    let held = poll(server.addr(), "/channels/a?limit=100").messages;
    assert_eq!(held.len(), 7);
    assert_eq!((&held[0]["data"], &held[5]["base64"]), (&json!("a text"), &json!("AQID")));
    // Raw readers see which was text: a JSON string as `data` is a text message.
    let mut raw = Socket::open(server.addr(), "/channels/b");
    v1.ask(json!({"type": "publish", "channel": "b", "data": "text"}), "published");
    assert_eq!(raw.expect_text(), "text");
    v1.socket.text("{\"type\":\"publish\",\"channel\":\"b\",\"data\":{ \"b\" : 1.50 }}");
    v1.expect("published");
    assert_eq!(raw.expect_text(), "{ \"b\" : 1.50 }", "JSON is passed on as it came");
    v1.ask(json!({"type": "publish", "channel": "b", "base64": "AQID"}), "published");
    assert_eq!(raw.expect_binary(), [1, 2, 3]);
}

#[test]
fn its_own_messages_come_back() {
    let server = Server::start(&[]);
    let (mut v1, _) = V1::subscribed(server.addr(), "a");
    v1.send(json!({"type": "publish", "channel": "a", "data": "x", "seq": 1}));
    let mut answers = [v1.next(), v1.next()];
    answers.sort_by_key(|answer| text_of(answer, "type"));
    assert_eq!((&answers[0]["type"], &answers[1]["type"]), (&json!("message"), &json!("published")));
    assert_eq!(answers[0]["id"], answers[1]["id"]);
}

#[test]
fn publishes_with_a_ttl() {
    let server = Server::start(&[]);
    let (mut v1, start) = V1::subscribed(server.addr(), "a");
    v1.send(json!({"type": "publish", "channel": "a", "data": "now", "ttl": 0}));
    let kinds = [text_of(&v1.next(), "type"), text_of(&v1.next(), "type")];
    assert!(kinds.contains(&"message".to_owned()), "{kinds:?}");
    publish(server.addr(), "a", "kept");
    let held = poll(server.addr(), &format!("/channels/a?cursor={start}"));
    assert_eq!((held.data(), held.gap), (vec![json!("kept")], false));
}

#[test]
fn a_key_is_replayed() {
    let server = Server::start(&[]);
    let (mut reader, _) = V1::subscribed(server.addr(), "a");
    let mut v1 = V1::open(server.addr(), "/channels");
    let keyed = json!({"type": "publish", "channel": "a", "data": "once", "key": "k1", "seq": 1});
    let first = v1.ask(keyed.clone(), "published");
    assert_eq!(first.get("replayed"), None, "{first}");
    let again = v1.ask(keyed, "published");
    assert_eq!((&again["id"], &again["replayed"]), (&first["id"], &json!(true)));
    let other = json!({"type": "publish", "channel": "a", "data": "another", "key": "k1", "seq": 2});
    v1.refused(other);
    // Over HTTP, batch and v1 alike.
    let keyed = &[("Content-Type", "text/plain"), ("Idempotency-Key", "k1")];
    let http = post(server.addr(), "/channels/a", keyed, "once");
    assert_eq!(json!(published(&http)), first["id"]);
    assert_eq!(http.header("idempotency-replayed"), "true");
    publish(server.addr(), "a", "mark");
    assert_eq!(reader.texts(2), ["once", "mark"]);
}
