//! New tokens for connections that live: `auth` on `pushline.v1`, `POST /connections/{id}/auth` for everybody; and v1
//! connections whose first token comes after the handshake.

use crate::common;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::http::{Response, ask, get, post, publish};
use common::server::Server;
use common::sse::Stream;
use common::token::{self, KEYS, now, now_s};
use common::until;
use common::ws::{Message, Socket, TEXT, V1, V1_NAME, masked, text_of};

const QUIET: Duration = Duration::from_millis(150);
/// How long a `pushline.v1` connection may take to bring its first token.
const PATIENCE: Duration = Duration::from_secs(10);

fn server() -> Server {
    Server::start(&["--set", KEYS])
}

fn auth(token: &str) -> Value {
    json!({"type": "auth", "token": token, "seq": 5})
}

fn renew(server: &Server, connection: &str, token: &str) -> Response {
    let bearer = token::bearer(token);
    post(server.addr(), &format!("/connections/{connection}/auth"), &[("Authorization", &bearer)], "")
}

/// Publishes as somebody who may.
#[track_caller]
fn say(server: &Server, channel: &str, text: &str) {
    let token = token::of("publisher").sign();
    let text_plain = [("Content-Type", "text/plain")];
    post(server.addr(), &format!("/channels/{channel}?token={token}"), &text_plain, text).expect(201);
}

#[test]
fn v1_goes_on_with_a_new_token() {
    let server = server();
    let exp = now_s() + 3;
    let first = token::of("anna").until(exp).sign();
    let mut v1 = V1::open(server.addr(), &format!("/channels/a?token={first}"));
    v1.expect("subscribed");
    v1.expect("expiring");
    let second = token::of("anna").until(now_s() + 60).sign();
    let answer = v1.ask(auth(&second), "authenticated");
    let left = answer["expires_in"].as_u64().expect("seconds");
    assert!((58..=60).contains(&left) && answer["seq"] == 5, "{answer}");
    until("the first token's end", || (now() > Duration::from_secs(exp + 1)).then_some(()));
    say(&server, "a", "still here");
    assert_eq!(v1.texts(1), ["still here"]);
    // And ends with a third, of which it is told anew.
    let third = token::of("anna").until(now_s() + 2).sign();
    v1.ask(auth(&third), "authenticated");
    v1.expect("expiring");
    assert_eq!(v1.expect("closing")["reason"], "expired");
    v1.socket.expect_close(4401);
}

#[test]
fn v1_is_renewed_for_the_same_subject_alone() {
    let server = server();
    let exp = now_s() + 4;
    let mut v1 =
        V1::open(server.addr(), &format!("/channels/a?token={}", token::of("anna").until(exp).sign()));
    v1.expect("subscribed");
    v1.expect("expiring");
    let error = v1.refused(auth(&token::of("bert").sign()));
    assert_eq!(error["code"], "forbidden", "{error}");
    for bad in [
        "nonsense".to_owned(),
        String::new(),
        token::of("anna").until(now_s() - 1).sign(),
        token::of("anna").sign() + "x",
    ] {
        let error = v1.refused(auth(&bad));
        assert_eq!(error["code"], "unauthorized", "{error}");
        assert!(bad.is_empty() || !error.to_string().contains(&bad), "tokens are not told: {error}");
    }
    // The good one is still in force, for as long as it was.
    say(&server, "a", "x");
    assert_eq!(v1.texts(1), ["x"]);
    assert_eq!(v1.expect("closing")["reason"], "expired");
    assert!(now() >= Duration::from_secs(exp));
}

#[test]
fn v1_loses_what_its_new_token_does_not_cover() {
    let server = server();
    let first = token::of("anna").sign();
    let mut v1 = V1::open(server.addr(), &format!("/channels/a,b/c,d?token={first}"));
    (0..3).for_each(|_| drop(v1.expect("subscribed")));
    let second = token::of("anna").subscribe(&["a", "d"]).publish(&["b/*"]).sign();
    v1.ask(auth(&second), "authenticated");
    let ended = v1.expect("error");
    assert_eq!((&ended["code"], &ended["channel"]), (&json!("subscription_ended"), &json!("b/c")));
    assert!(ended["message"].is_string() && ended.get("seq").is_none(), "{ended}");
    for (channel, text) in [("b/c", "unheard"), ("a", "1"), ("d", "2")] {
        say(&server, channel, text);
    }
    let mut heard = v1.texts(2);
    heard.sort();
    assert_eq!(heard, ["1", "2"]);
    let error = v1.refused(json!({"type": "subscribe", "channel": "b/c", "seq": 1}));
    assert_eq!(error["code"], "forbidden");
    let error = v1.refused(json!({"type": "publish", "channel": "a", "data": "x", "seq": 2}));
    assert_eq!(error["code"], "forbidden");
    v1.ask(json!({"type": "publish", "channel": "b/x", "data": "x"}), "published");
    // What it lost it may have again.
    v1.ask(auth(&token::of("anna").sign()), "authenticated");
    v1.ask(json!({"type": "subscribe", "channel": "b/c"}), "subscribed");
}

#[test]
fn a_stream_of_events_goes_on_with_a_new_token() {
    for workers in ["1", "4"] {
        let server = Server::start(&["--set", KEYS, "--workers", workers]);
        let exp = now_s() + 4;
        let first = token::of("anna").until(exp).sign();
        let target = format!("/channels/a?token={first}");
        let mut streams: Vec<Stream> = (0..6).map(|_| Stream::open(server.addr(), &target)).collect();
        let second = token::of("anna").until(now_s() + 60).sign();
        for stream in &mut streams {
            stream.event().named("$expiring");
            // By whichever worker accepts it.
            let answer = renew(&server, &stream.connection, &second).expect(200);
            assert_eq!(answer.header("cache-control"), "no-store", "{answer}");
            let left = answer.json()["expires_in"].as_u64().expect("seconds");
            assert!((55..=60).contains(&left), "{answer}");
        }
        until("the first token's end", || (now() > Duration::from_secs(exp + 1)).then_some(()));
        say(&server, "a", "still here");
        for stream in &mut streams {
            assert_eq!(stream.message().data, "still here");
        }
        let third = token::of("anna").until(now_s() + 2).sign();
        renew(&server, &streams[0].connection, &third).expect(200);
        streams[0].event().named("$expiring");
        assert_eq!(streams[0].event().named("$close").json()["reason"], "expired");
    }
}

#[test]
fn a_v1_connection_is_renewed_over_http_too() {
    let server = server();
    let mut v1 = V1::open(server.addr(), &format!("/channels/a,b?token={}", token::of("anna").sign()));
    (0..2).for_each(|_| drop(v1.expect("subscribed")));
    renew(&server, &v1.connection, &token::of("anna").subscribe(&["a"]).sign()).expect(200);
    let ended = v1.expect("error");
    assert_eq!((&ended["code"], &ended["channel"]), (&json!("subscription_ended"), &json!("b")));
}

#[test]
fn who_may_renew_a_stream() {
    let server = Server::start(&["--set", KEYS, "--set", "auth.anonymous={ subscribe = [\"news/**\"] }"]);
    let anna = token::of("anna").sign();
    let mut stream = Stream::open(server.addr(), &format!("/channels/a?token={anna}"));
    let id = stream.connection.clone();
    renew(&server, &id, &token::of("bert").sign()).problem(403);
    let answer = post(server.addr(), &format!("/connections/{id}/auth"), &[], "");
    answer.problem(401);
    assert!(answer.header("www-authenticate").starts_with("Bearer"), "{answer}");
    renew(&server, &id, &token::of("anna").until(now_s() - 1).sign()).problem(401);
    // Another seal, another place, a shorter one, none at all.
    let flipped = |at: usize| {
        let mut other = id.clone().into_bytes();
        other[at] = if other[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(other).expect("ASCII")
    };
    for unknown in
        [flipped(id.len() - 2), flipped(4), flipped(0), id[..id.len() - 1].to_owned(), "x".to_owned()]
    {
        renew(&server, &unknown, &anna).problem(404);
    }
    for target in ["/connections//auth", "/connections", "/connections/x", "/connections/x/y/auth"] {
        post(server.addr(), target, &[("Authorization", &token::bearer(&anna))], "").problem(404);
    }
    let answer = ask(server.addr(), "GET", &format!("/connections/{id}/auth?token={anna}"), &[], "");
    answer.problem(405);
    assert!(answer.lists("allow", "POST"), "{answer}");
    // A page of an allowed origin may ask.
    let origin = format!("http://{}", server.addr());
    let asked = [("Origin", origin.as_str()), ("Access-Control-Request-Method", "POST")];
    let answer = ask(server.addr(), "OPTIONS", &format!("/connections/{id}/auth"), &asked, "").expect(204);
    assert!(answer.lists("access-control-allow-methods", "POST"), "{answer}");
    assert!(answer.lists("access-control-allow-headers", "Authorization"), "{answer}");
    // Who came without a token has none to renew.
    let stranger = Stream::open(server.addr(), "/channels/news/a");
    renew(&server, &stranger.connection, &anna).problem(403);
    stream.quiet(QUIET);
    renew(&server, &id, &anna).expect(200);
    // The id of one that is gone.
    drop(stream);
    until("the stream is gone", || (renew(&server, &id, &anna).status == 404).then_some(()));
}

#[test]
fn a_stream_ends_whose_new_token_does_not_cover_it() {
    let server = server();
    let first = token::of("anna").sign();
    let mut stream = Stream::open(server.addr(), &format!("/channels/a,b?token={first}"));
    renew(&server, &stream.connection, &token::of("anna").subscribe(&["a"]).sign()).expect(200);
    let close = stream.event().named("$close").json();
    assert_eq!(close["reason"], "forbidden", "{close}");
    stream.ended();
}

/// Also of channels that it subscribes to just then.
#[test]
fn nothing_slips_in_while_a_token_for_less_comes() {
    const CHANNELS: usize = 60;
    let server = Server::start(&["--set", KEYS, "--workers", "4"]);
    let first = token::of("anna").sign();
    let less = token::of("anna").subscribe(&["other"]).sign();
    for round in 0..40 {
        let mut v1 = V1::open(server.addr(), &format!("/channels?token={first}"));
        let subscribe = |number| json!({"type": "subscribe", "channel": format!("{round}/{number}")});
        let frames: Vec<u8> = (0..CHANNELS)
            .flat_map(|number| masked(true, TEXT, subscribe(number).to_string().as_bytes()))
            .collect();
        v1.socket.send_raw(&frames);
        renew(&server, &v1.connection, &less).expect(200);
        // Each is refused, or had and lost.
        let mut errors = 0;
        while errors < CHANNELS {
            errors += usize::from(v1.next()["type"] == "error");
        }
    }
}

#[test]
fn v1_may_bring_its_first_token_after_the_handshake() {
    let server = server();
    let token = token::of("anna").sign();
    let before = get(server.addr(), &format!("/channels/a?limit=0&token={token}")).expect(200).json();
    say(&server, "a", "between");
    let cursor = before["cursor"].as_str().expect("a cursor");
    let mut v1 = V1::open(server.addr(), &format!("/channels/a,b?cursor={cursor}."));
    v1.ask(json!({"type": "ping"}), "pong");
    for (n, operation) in [
        json!({"type": "subscribe", "channel": "c"}),
        json!({"type": "unsubscribe", "channel": "a"}),
        json!({"type": "publish", "channel": "a", "data": "x"}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut operation = operation;
        operation["seq"] = json!(n);
        let error = v1.refused(operation);
        assert_eq!(error["code"], "unauthorized", "{error}");
    }
    let error = v1.refused(auth("nonsense"));
    assert_eq!(error["code"], "unauthorized", "{error}");
    v1.socket.quiet(QUIET);
    let answer = v1.ask(auth(&token), "authenticated");
    assert!(answer["expires_in"].as_u64().is_some_and(|left| (58..=60).contains(&left)), "{answer}");
    // The URL's channels, from where it asked for them.
    let mut heard: Vec<String> = (0..3)
        .map(|_| v1.next())
        .map(|one| text_of(&one, "type") + " " + &text_of(&one, "channel"))
        .collect();
    heard.sort();
    assert_eq!(heard, ["message a", "subscribed a", "subscribed b"]);
    v1.ask(json!({"type": "publish", "channel": "c", "data": "x"}), "published");
}

#[test]
fn v1_without_a_token_is_closed_after_a_while() {
    let server = server();
    let opened = Instant::now();
    let mut all: Vec<V1> = ["/channels/a", "/channels"].map(|target| V1::open(server.addr(), target)).into();
    // That something is said is not enough.
    all[0].ask(json!({"type": "ping"}), "pong");
    all[0].refused(auth("nonsense"));
    for v1 in &mut all {
        assert_eq!(v1.expect("closing")["reason"], "unauthenticated");
        assert!(opened.elapsed() >= PATIENCE - Duration::from_millis(200), "{:?}", opened.elapsed());
        v1.socket.expect_close(4401);
    }
    assert!(opened.elapsed() < PATIENCE + Duration::from_secs(4), "{:?}", opened.elapsed());
}

#[test]
fn a_token_in_time_is_not_closed_then() {
    let server = server();
    let mut v1 = V1::open(server.addr(), "/channels/a");
    v1.ask(auth(&token::of("anna").sign()), "authenticated");
    v1.expect("subscribed");
    // Opened later, and closed when its time is over: so is the first one's.
    let mut silent = V1::open(server.addr(), "/channels/a");
    assert_eq!(silent.expect("closing")["reason"], "unauthenticated");
    silent.socket.expect_close(4401);
    v1.ask(json!({"type": "ping"}), "pong");
}

#[test]
fn a_first_token_must_cover_the_urls_channels() {
    let server = server();
    let mut v1 = V1::open(server.addr(), "/channels/a,b");
    v1.ask(auth(&token::of("anna").subscribe(&["a"]).sign()), "authenticated");
    assert_eq!(v1.expect("closing")["reason"], "forbidden");
    v1.socket.expect_close(4403);
    // One that came with the handshake is told the same.
    let token = token::of("anna").subscribe(&["a"]).sign();
    let mut socket = Socket::open_with(
        server.addr(),
        &format!("/channels/a,b?token={token}"),
        &[("Sec-WebSocket-Protocol", V1_NAME)],
    );
    while let Message::Text(_) = socket.message() {}
}

/// Where strangers may read the URL's channels they are served at once, and may still say who they are.
#[test]
fn strangers_are_served_by_v1_and_may_bring_a_token_later() {
    let server = Server::start(&["--set", KEYS, "--set", "auth.anonymous={ subscribe = [\"news/**\"] }"]);
    let mut v1 = V1::open(server.addr(), "/channels/news/a");
    v1.expect("subscribed");
    let error = v1.refused(json!({"type": "subscribe", "channel": "private", "seq": 1}));
    assert_eq!(error["code"], "unauthorized", "{error}");
    let exp = now_s() + 3;
    v1.ask(auth(&token::of("anna").until(exp).sign()), "authenticated");
    v1.expect("expiring");
    v1.ask(json!({"type": "subscribe", "channel": "private"}), "subscribed");
    let error = v1.refused(auth(&token::of("bert").sign()));
    assert_eq!(error["code"], "forbidden", "it is anna's now: {error}");
    assert_eq!(v1.expect("closing")["reason"], "expired");
    assert!(now() >= Duration::from_secs(exp));
    // Where they may not, the channels wait.
    let mut v1 = V1::open(server.addr(), "/channels/news/a,private");
    v1.socket.quiet(QUIET);
    v1.ask(auth(&token::of("anna").sign()), "authenticated");
    (0..2).for_each(|_| drop(v1.expect("subscribed")));
}

#[test]
fn a_raw_frame_is_never_a_token() {
    let server = server();
    let token = token::of("anna").sign();
    let frame = auth(&token).to_string();
    let mut socket = Socket::open(server.addr(), &format!("/channels/a?token={token}"));
    socket.text(&frame);
    assert_eq!(socket.expect_text(), frame, "it is a message");
    let mut socket = Socket::open(server.addr(), "/channels/a");
    socket.text(&frame);
    assert_eq!(socket.message(), Message::Close(4401));
}

/// Without authentication configured there is nothing to renew.
#[test]
fn a_server_without_keys_takes_no_tokens() {
    let server = Server::start(&[]);
    let (mut v1, _) = V1::subscribed(server.addr(), "a");
    let error = v1.refused(auth(&token::of("anna").sign()));
    assert_eq!(error["code"], "unauthorized", "{error}");
    publish(server.addr(), "a", "x");
    assert_eq!(v1.texts(1), ["x"]);
}
