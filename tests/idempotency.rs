//! Idempotent publishing (`Idempotency-Key`).

use crate::common;

use std::collections::HashSet;

use common::http::{Conn, Response, batch, line_id, poll, post, publish, published, wire};
use common::server::Server;
use serde_json::json;

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const JSON: (&str, &str) = ("Content-Type", "application/json");

fn keyed(server: &Server, channel: &str, key: &str, body: &str) -> Response {
    post(server.addr(), &format!("/channels/{channel}"), &[TEXT, ("Idempotency-Key", key)], body)
}

#[test]
fn a_repeated_key_publishes_once() {
    let server = Server::start(&[]);
    let first = keyed(&server, "idem", "k-1", "hello");
    let id = published(&first);
    assert_eq!(first.get("idempotency-replayed"), None, "{first}");
    let again = keyed(&server, "idem", "k-1", "hello");
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.body, first.body);
    assert_eq!(poll(server.addr(), "/channels/idem?limit=9").ids(), std::slice::from_ref(&id));
    // Another key, and the same key on another channel, are other messages.
    let other = published(&keyed(&server, "idem", "k-2", "hello"));
    assert_ne!(other, id);
    let elsewhere = keyed(&server, "idem2", "k-1", "something else");
    assert_eq!(elsewhere.get("idempotency-replayed"), None);
    published(&elsewhere);
    assert_eq!(poll(server.addr(), "/channels/idem?limit=9").messages.len(), 2);
}

#[test]
fn another_body_under_the_same_key_is_409() {
    let server = Server::start(&[]);
    published(&keyed(&server, "conflict", "k", "one"));
    keyed(&server, "conflict", "k", "two").problem(409);
    assert_eq!(keyed(&server, "conflict", "k", "one").header("idempotency-replayed"), "true");
    assert_eq!(poll(server.addr(), "/channels/conflict?limit=9").messages.len(), 1);
}

#[test]
fn a_key_is_1_to_128_bytes() {
    let server = Server::start(&[]);
    keyed(&server, "keys", &"k".repeat(128), "x").expect(201);
    keyed(&server, "keys", &"k".repeat(129), "x").problem(400);
    keyed(&server, "keys", "", "x").problem(400);
    assert_eq!(poll(server.addr(), "/channels/keys?limit=9").messages.len(), 1);
}

#[test]
fn a_refused_publish_takes_no_key() {
    let server = Server::start(&[]);
    let headers = [JSON, ("Idempotency-Key", "k")];
    post(server.addr(), "/channels/retry", &headers, "{").problem(400);
    let answer = post(server.addr(), "/channels/retry", &headers, "{}").expect(201);
    assert_eq!(answer.get("idempotency-replayed"), None);
}

#[test]
fn repeats_in_flight_wait_for_the_first() {
    let server = Server::start(&["--workers", "2"]);
    let addr = server.addr();
    for round in 0..8 {
        let key = format!("round-{round}");
        let headers = [TEXT, ("Idempotency-Key", &key)];
        // All ready before any is sent; the last byte of each starts it.
        let mut conns: Vec<Conn> = (0..12)
            .map(|_| {
                let mut conn = Conn::open(addr);
                let wire = wire(addr, "POST", "/channels/flight", &headers, b"same");
                conn.send_raw(&wire[..wire.len() - 1]);
                conn
            })
            .collect();
        for conn in &mut conns {
            conn.send_raw("e");
        }
        let answers: Vec<Response> = conns.iter_mut().map(Conn::read_response).collect();
        let ids: HashSet<String> = answers.iter().map(published).collect();
        assert_eq!(ids.len(), 1, "round {round}");
        let first = answers.iter().filter(|answer| answer.get("idempotency-replayed").is_none()).count();
        assert_eq!(first, 1, "round {round}");
    }
    assert_eq!(poll(addr, "/channels/flight?limit=100").messages.len(), 8);
}

#[test]
fn a_full_store_of_keys_refuses_new_ones() {
    let server = Server::start(&["--set", "limits.idempotency_keys=16"]);
    let mut taken = 0;
    let refused = (0..17).find_map(|n| {
        let answer = keyed(&server, "store", &format!("k{n}"), "x");
        (answer.status != 201).then_some(answer).or_else(|| {
            taken += 1;
            None
        })
    });
    let refused = refused.expect("the 17th key does not fit");
    refused.problem(429);
    assert!(refused.header("retry-after").parse::<u32>().is_ok_and(|seconds| seconds > 0));
    assert!(taken > 0);
    // What was taken still replays, and without a key all goes on.
    assert_eq!(keyed(&server, "store", "k0", "x").header("idempotency-replayed"), "true");
    publish(server.addr(), "store", "no key");
    assert_eq!(poll(server.addr(), "/channels/store?limit=100").messages.len(), taken + 1);
}

#[test]
fn keys_hold_across_http_and_batch() {
    let server = Server::start(&[]);
    let id = published(&keyed(&server, "across", "k", "hello"));
    let line = json!({"channel": "across", "data": "hello", "key": "k"}).to_string();
    assert_eq!(line_id(&batch(server.addr(), &line)[0]), id);
    let conflict = json!({"channel": "across", "data": "other", "key": "k"}).to_string();
    assert!(batch(server.addr(), &conflict)[0].get("id").is_none());
    let line = json!({"channel": "across", "data": "second", "key": "b"}).to_string();
    let lines = batch(server.addr(), &format!("{line}\n{line}\n"));
    assert_eq!(line_id(&lines[0]), line_id(&lines[1]));
    assert_eq!(published(&keyed(&server, "across", "b", "second")), line_id(&lines[0]));
    assert_eq!(poll(server.addr(), "/channels/across?limit=9").messages.len(), 2);
}
