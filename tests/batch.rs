//! Publishing in batches (`POST /publish`).

use crate::common;

use common::http::{Conn, Poll, batch, get, head_cursor, line_id, newest, poll, post};
use common::server::Server;
use serde_json::json;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");

#[test]
fn a_batch_is_answered_line_by_line() {
    let server = Server::start(&[]);
    let start = head_cursor(server.addr(), "b1");
    let big = "x".repeat(64 * 1024 + 1);
    let lines: Vec<(String, bool)> = vec![
        (r#"{"channel":"b1","data":"text","event":"tick","ttl":60}"#.into(), true),
        (r#"{"channel":"b1","data":{"b":1.0,  "a":1}}"#.into(), true),
        (r#"{"channel":"b2","base64":"AP/+"}"#.into(), true),
        (r#"{"channel":"b1","data":null}"#.into(), true),
        (r#"{"channel":"b1","data":""}"#.into(), true),
        ("not json".into(), false),
        ("[]".into(), false),
        (r#"{"data":"x"}"#.into(), false),
        (r#"{"channel":"b1"}"#.into(), false),
        (r#"{"channel":7,"data":"x"}"#.into(), false),
        (r#"{"channel":"","data":"x"}"#.into(), false),
        (r#"{"channel":"b1,b2","data":"x"}"#.into(), false),
        (r#"{"channel":"a//b","data":"x"}"#.into(), false),
        (r#"{"channel":"$x","data":"x"}"#.into(), false),
        (r#"{"channel":"b1","data":"x","base64":"AA=="}"#.into(), false),
        (r#"{"channel":"b1","base64":"%%"}"#.into(), false),
        (r#"{"channel":"b1","base64":7}"#.into(), false),
        (r#"{"channel":"b1","data":"x","ttl":-1}"#.into(), false),
        (r#"{"channel":"b1","data":"x","ttl":"1"}"#.into(), false),
        (r#"{"channel":"b1","data":"x","event":"open"}"#.into(), false),
        (r#"{"channel":"b1","data":"x","event":"a\nb"}"#.into(), false),
        (r#"{"channel":"b1","data":"x","key":""}"#.into(), false),
        (json!({"channel": "b1", "data": "x", "key": "k".repeat(129)}).to_string(), false),
        (json!({"channel": "b1", "data": big}).to_string(), false),
        (r#"{"channel":"b1","data":"last"}"#.into(), true),
    ];
    let body = lines.iter().map(|(line, _)| line.as_str()).collect::<Vec<_>>().join("\n");
    let answers = batch(server.addr(), &body);
    assert_eq!(answers.len(), lines.len());
    let mut ids = Vec::new();
    for ((line, good), answer) in lines.iter().zip(&answers) {
        let line = &line[..line.len().min(80)];
        assert_eq!(answer.get("id").is_some(), *good, "{line}: {answer}");
        if *good {
            assert!(line.contains(answer["channel"].as_str().expect("a channel")), "{line}: {answer}");
            if answer["channel"] == "b1" {
                ids.push(line_id(answer));
            }
        }
    }
    let answer = get(server.addr(), &format!("/channels/b1?cursor={start}"));
    let b1 = Poll::of(&answer);
    assert_eq!(b1.ids(), ids);
    assert_eq!(b1.data(), [json!("text"), json!({"a": 1, "b": 1.0}), json!(null), json!(""), json!("last")]);
    assert_eq!(b1.messages[0]["event"], "tick");
    assert!(answer.text().contains(r#"{"b":1.0,  "a":1}"#), "as it came: {answer}");
    assert_eq!(newest(server.addr(), "b2")["base64"], "AP/+");
}

#[test]
fn a_batch_ends_with_or_without_a_newline() {
    let server = Server::start(&[]);
    let line = r#"{"channel":"nl","data":"x"}"#;
    for body in [format!("{line}\n{line}"), format!("{line}\n{line}\n"), format!("{line}\r\n{line}\r\n")] {
        let answers = batch(server.addr(), &body);
        assert_eq!(answers.len(), 2, "{body:?}");
        answers.iter().for_each(|answer| assert!(!line_id(answer).is_empty()));
    }
}

#[test]
fn a_batch_is_ndjson_by_post() {
    let server = Server::start(&[]);
    let line = r#"{"channel":"x","data":"x"}"#;
    post(server.addr(), "/publish", &[TEXT], line).problem(415);
    let gzip = [("Content-Type", "application/x-ndjson"), ("Content-Encoding", "gzip")];
    post(server.addr(), "/publish", &gzip, line).problem(415);
    let answer = get(server.addr(), "/publish");
    answer.problem(405);
    assert!(answer.lists("allow", "POST"), "{answer}");
    assert!(poll(server.addr(), "/channels/x").messages.is_empty());
}

/// A retry that believed in the header would publish twice.
#[test]
fn labels_of_one_message_are_no_headers_of_a_batch() {
    let server = Server::start(&[]);
    let line = r#"{"channel":"x","data":"x"}"#;
    for (name, value, member) in [
        ("Idempotency-Key", "k", "'key'"),
        ("Pushline-TTL", "5", "'ttl'"),
        ("pushline-event", "e", "'event'"),
    ] {
        let headers = [("Content-Type", "application/x-ndjson"), (name, value)];
        let mut conn = Conn::open(server.addr());
        let detail = conn.request("POST", "/publish", &headers, line).problem(400);
        assert!(detail.contains(member) && detail.contains("line"), "{name}: {detail}");
        conn.get("/healthz").expect(200);
    }
    assert!(poll(server.addr(), "/channels/x").messages.is_empty());
}

#[test]
fn a_long_batch_keeps_its_order() {
    let server = Server::start(&["--set", "history.messages=3000"]);
    let addr = server.addr();
    let start = poll(addr, "/channels/long/0?limit=0").cursor;
    let lines: String = (0..2_000)
        .map(|n| json!({"channel": format!("long/{}", n % 3), "data": n}).to_string() + "\n")
        .collect();
    let ids: Vec<_> = batch(addr, &lines).iter().map(line_id).collect();
    assert_eq!(ids.len(), 2_000);
    let mut seen = Vec::new();
    let mut cursor = start;
    while seen.len() < 667 {
        let page = poll(addr, &format!("/channels/long/0?cursor={cursor}"));
        assert!(!page.gap && !page.messages.is_empty());
        seen.extend(page.messages.iter().map(|message| (message["data"].clone(), message["id"].clone())));
        cursor = page.cursor;
    }
    let want: Vec<_> = (0..2_000).step_by(3).map(|n| (json!(n), json!(ids[n]))).collect();
    assert_eq!(seen, want);
}

#[test]
fn a_batch_is_bounded() {
    let limits = ["--set", "limits.batch_bytes=2048", "--set", "limits.message_bytes=1024"];
    let server = Server::start(&limits);
    let line = json!({"channel": "bound", "data": "x".repeat(900)}).to_string() + "\n";
    assert_eq!(batch(server.addr(), &line.repeat(2)).len(), 2);
    let ndjson = [("Content-Type", "application/x-ndjson")];
    post(server.addr(), "/publish", &ndjson, line.repeat(3)).problem(413);
    assert_eq!(poll(server.addr(), "/channels/bound?limit=9").messages.len(), 2);
}
