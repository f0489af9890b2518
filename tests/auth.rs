//! Who may do what (docs/authentication.md): every refusal on every transport, carriers, API keys, strangers, keys
//! that change. What is wrong with a token in itself stands beside its code, in `edge/auth/token`.

use crate::common;
mod keys;
mod rules;
mod secrets;

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use common::http::{Conn, Headers, Poll, Response, ask, get, published};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::token::{self, KEYS, api_key, bearer};
use common::ws::{CLOSE, Message, Socket, V1, V1_NAME};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");
const NDJSON: (&str, &str) = ("Content-Type", "application/x-ndjson");
const EVENTS: (&str, &str) = ("Accept", "text/event-stream");

/// A server that takes the tests' tokens, and strangers on `open/**`.
fn strict(more: &[&str]) -> Server {
    let mut args =
        vec!["--set", KEYS, "--set", "auth.anonymous={ subscribe = ['open/**'], publish = ['open/wall'] }"];
    args.extend(more);
    Server::start(&args)
}

/// Method, target, fields, body, and the status of who may.
type Way = (&'static str, String, Vec<(&'static str, &'static str)>, String, u16);

/// Every way to ask something of a channel over HTTP.
fn ways(channel: &str) -> Vec<Way> {
    let url = format!("/channels/{channel}");
    let line = json!({ "channel": channel, "data": 1 }).to_string();
    vec![
        ("GET", url.clone(), vec![], String::new(), 200),
        ("HEAD", url.clone(), vec![], String::new(), 200),
        ("GET", format!("{url}?cursor=&wait=1"), vec![], String::new(), 204),
        ("GET", url.clone(), vec![EVENTS], String::new(), 200),
        ("HEAD", url.clone(), vec![EVENTS], String::new(), 200),
        ("POST", url.clone(), vec![TEXT], "x".into(), 201),
        ("POST", "/publish".into(), vec![NDJSON], line, 200),
        ("DELETE", url, vec![], String::new(), 204),
    ]
}

/// Asks, with what is behind the target and more fields; of a stream only its head is read.
fn asked(conn: &mut Conn, method: &str, target: &str, headers: Headers, body: &str) -> Response {
    conn.send(method, target, headers, body);
    let mut answer = conn.read_head();
    if let Some(length) = answer.get("content-length").filter(|_| method != "HEAD" && answer.status != 304) {
        answer.body = conn.take(length.parse().expect("a length")).expect("a body");
    }
    answer
}

fn with_query(target: &str, query: &str) -> String {
    match query {
        "" => target.to_owned(),
        query if target.contains('?') => format!("{target}&{query}"),
        query => format!("{target}?{query}"),
    }
}

#[track_caller]
fn challenged(answer: &Response, status: u16, error: Option<&str>) {
    assert_eq!(answer.status, status, "{answer}");
    let challenge = answer.header("www-authenticate");
    assert!(challenge.starts_with("Bearer realm="), "{answer}");
    match error {
        None => assert!(!challenge.contains("error="), "{answer}"),
        Some(error) => assert!(challenge.contains(&format!("error=\"{error}\"")), "{answer}"),
    }
    if !answer.body.is_empty() {
        answer.problem(status);
    }
}

/// The code that a WebSocket is closed with, past what it says before.
#[track_caller]
fn close_code(server: &Server, target: &str, headers: Headers) -> u16 {
    let mut socket = Socket::open_with(server.addr(), target, headers);
    loop {
        match socket.message() {
            Message::Close(code) => return code,
            Message::Text(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn nothing_is_permitted_that_is_not_granted() {
    let server = strict(&[]);
    for (method, target, headers, body, _) in ways("private/a") {
        // The batch's line is refused alone: strangers may publish elsewhere.
        if target == "/publish" {
            continue;
        }
        // On a connection of its own, and on one that is kept.
        let mut conn = Conn::open(server.addr());
        let first = asked(&mut conn, method, &target, &headers, &body);
        challenged(&first, 401, None);
        challenged(&asked(&mut conn, method, &target, &headers, &body), 401, None);
    }
    assert_eq!(close_code(&server, "/channels/private/a", &[]), 4401);
    let why = server.wait_log(|line| field(line, "code").as_deref() == Some("no_token"));
    assert!(field(&why, "why").is_some_and(|why| why.contains("auth.anonymous")), "{why}");
    assert_eq!(field(&why, "channel").as_deref(), Some("private/a"), "{why}");
    assert!(field(&why, "peer").is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{why}");
}

#[test]
fn a_good_token_permits_what_it_covers_by_every_carrier() {
    let server = strict(&["--set", "auth.cookie=session"]);
    let token = token::of("anna").sign();
    let (authorization, query, cookie) =
        (bearer(&token), format!("token={token}"), format!("a=b; session={token}; c=d"));
    let carriers: [(Headers, &str); 3] =
        [(&[("Authorization", &authorization)], ""), (&[], &query), (&[("Cookie", &cookie)], "")];
    for (credentials, query) in carriers {
        for (method, target, headers, body, status) in ways("private/a") {
            let all = [&headers[..], credentials].concat();
            let target = with_query(&target, query);
            // The second request of a connection is served where its bytes are read.
            for tries in 1..=2 {
                let mut conn = Conn::open(server.addr());
                for _ in 1..tries {
                    asked(&mut conn, "GET", "/healthz", &[], "").expect(200);
                }
                let answer = asked(&mut conn, method, &target, &all, &body);
                assert_eq!(answer.status, status, "{method} {target}: {answer}");
            }
        }
        let target = with_query("/channels/private/a", query);
        let mut raw = Socket::open_with(server.addr(), &target, credentials);
        raw.text("hello");
        assert_eq!(raw.expect_text(), "hello");
        let v1 = [credentials, &[("Sec-WebSocket-Protocol", V1_NAME)][..]].concat();
        let mut v1 = V1 { socket: Socket::open_with(server.addr(), &target, &v1), connection: String::new() };
        v1.expect("open");
        v1.expect("subscribed");
        v1.ask(json!({"type": "subscribe", "channel": "private/b"}), "subscribed");
        v1.ask(json!({"type": "publish", "channel": "private/c", "data": 1}), "published");
    }
}

#[test]
fn a_bad_token_is_401_by_every_carrier_whatever_else_is_granted() {
    let server = strict(&[]);
    let good = token::of("anna").sign();
    let expired = token::of("anna").until(token::now_s() - 5).sign();
    let endless = token::sign(json!({ "sub": "anna", "subscribe": ["**"] }));
    let other_key =
        good.rsplit_once('.').map(|(message, _)| format!("{message}.{}", "A".repeat(43))).expect("a JWT");
    let bad_pattern = token::of("anna").subscribe(&["a//b"]).sign();
    let long = token::of(&"a".repeat(9_000)).sign();
    for (bad, code, says) in [
        (&expired, "expired", "has expired"),
        (&endless, "claim_missing", "no exp"),
        (&other_key, "signature", "not valid here"),
        (&bad_pattern, "pattern", "no channel pattern"),
        (&long, "too_long", "longer than 8 KiB"),
        (&"nonsense".to_owned(), "no_jwt", "none that this server takes"),
    ] {
        let (authorization, query, cookie) =
            (bearer(bad), format!("token={bad}"), format!("pushline_token={bad}"));
        let carriers: [(Headers, &str); 3] =
            [(&[("Authorization", &authorization)], ""), (&[], &query), (&[("Cookie", &cookie)], "")];
        for (credentials, query) in carriers {
            // Strangers may read this channel; a bad token may not.
            for (method, target, headers, body, _) in ways("open/wall") {
                let all = [&headers[..], credentials].concat();
                let mut conn = Conn::open(server.addr());
                asked(&mut conn, "GET", "/healthz", &[], "").expect(200);
                let answer = asked(&mut conn, method, &with_query(&target, query), &all, &body);
                challenged(&answer, 401, Some("invalid_token"));
                assert!(answer.body.is_empty() || answer.text().contains(says), "{code}: {answer}");
            }
            let target = with_query("/channels/open/wall", query);
            assert_eq!(close_code(&server, &target, credentials), 4401);
            let v1 = [credentials, &[("Sec-WebSocket-Protocol", V1_NAME)][..]].concat();
            assert_eq!(close_code(&server, &target, &v1), 4401);
        }
        server.wait_log(|line| field(line, "code").as_deref() == Some(code));
    }
}

#[test]
fn a_token_that_does_not_cover_it_is_403() {
    let server = strict(&[]);
    let token = bearer(
        &token::of("anna").subscribe(&["mine/{sub}"]).publish(&["mine/*"]).with("delete", json!([])).sign(),
    );
    let credentials = ("Authorization", token.as_str());
    for (method, target, headers, body, _) in ways("private/a") {
        if target == "/publish" {
            continue;
        }
        let all = [&headers[..], &[credentials]].concat();
        let answer = asked(&mut Conn::open(server.addr()), method, &target, &all, &body);
        challenged(&answer, 403, Some("insufficient_scope"));
    }
    let mine = |method: &str, target: &str| ask(server.addr(), method, target, &[credentials, TEXT], "x");
    mine("POST", "/channels/mine/bert").expect(201);
    mine("GET", "/channels/mine/anna").expect(200);
    mine("GET", "/channels/mine/bert").problem(403);
    mine("DELETE", "/channels/mine/anna").problem(403);
    // All of a URL's channels, or none.
    mine("GET", "/channels/mine/anna,mine/bert").problem(403);
    mine("POST", "/channels/mine/anna,private/a").problem(403);
    let all = token::of("root").sign();
    let read =
        ask(server.addr(), "GET", "/channels/mine/anna?limit=9", &[("Authorization", &bearer(&all))], "");
    assert_eq!(Poll::of(&read).messages, [json!(null); 0], "none was done");
    assert_eq!(close_code(&server, "/channels/private/a", &[credentials]), 4403);
    let v1 = [credentials, ("Sec-WebSocket-Protocol", V1_NAME)];
    assert_eq!(close_code(&server, "/channels/mine/anna,private/a", &v1), 4403);
    let why = server.wait_log(|line| field(line, "code").as_deref() == Some("forbidden"));
    assert_eq!(field(&why, "subject").as_deref(), Some("anna"), "{why}");
}

#[test]
fn a_batch_is_judged_line_by_line() {
    let server = strict(&[]);
    let lines = "{\"channel\":\"open/wall\",\"data\":1}\n{\"channel\":\"private/a\",\"data\":2}\n{\"channel\":\"mine/a\",\"data\":3}\n";
    let batch = |credentials: Headers| {
        let answer =
            ask(server.addr(), "POST", "/publish", &[&[NDJSON], credentials].concat(), lines).expect(200);
        let lines = answer.text();
        lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>()
    };
    let strangers = batch(&[]);
    assert!(strangers[0]["id"].is_string(), "{strangers:?}");
    for line in &strangers[1..] {
        assert_eq!((&line["status"], &line["code"]), (&json!(401), &json!("unauthorized")), "{strangers:?}");
    }
    let token = bearer(&token::of("anna").publish(&["mine/*"]).sign());
    let annas = batch(&[("Authorization", &token)]);
    assert!(annas[2]["id"].is_string(), "{annas:?}");
    for line in &annas[..2] {
        assert_eq!((&line["status"], &line["code"]), (&json!(403), &json!("forbidden")), "{annas:?}");
    }
    // Who may publish nowhere need not send the lines.
    let reader = bearer(&token::of("anna").publish(&[]).sign());
    let answer = ask(server.addr(), "POST", "/publish", &[NDJSON, ("Authorization", &reader)], lines);
    challenged(&answer, 403, Some("insufficient_scope"));
}

#[test]
fn an_open_websocket_is_judged_frame_by_frame() {
    let server = strict(&[]);
    let token = bearer(&token::of("anna").subscribe(&["a", "b"]).publish(&["b"]).sign());
    let credentials = ("Authorization", token.as_str());
    let mut raw = Socket::open_with(server.addr(), "/channels/a", &[credentials]);
    raw.text("not mine to say");
    assert_eq!(raw.message(), Message::Close(1008));
    let mut raw = Socket::open_with(server.addr(), "/channels/b", &[credentials]);
    raw.text("mine");
    assert_eq!(raw.expect_text(), "mine");
    // A stranger on a channel that strangers may only read.
    let mut stranger = Socket::open(server.addr(), "/channels/open/news");
    stranger.text("graffiti");
    assert_eq!(stranger.frame().map(|frame| (frame.opcode, frame.close_code())), Some((CLOSE, 4401)));

    let headers = [credentials, ("Sec-WebSocket-Protocol", V1_NAME)];
    let mut v1 =
        V1 { socket: Socket::open_with(server.addr(), "/channels", &headers), connection: String::new() };
    v1.expect("open");
    v1.ask(json!({"type": "subscribe", "channel": "a"}), "subscribed");
    for refused in [
        json!({"type": "subscribe", "channel": "c", "seq": 1}),
        json!({"type": "publish", "channel": "a", "data": 1, "seq": 2}),
    ] {
        assert_eq!(v1.refused(refused)["code"], "forbidden");
    }
    v1.ask(json!({"type": "publish", "channel": "b", "data": 1}), "published");

    let mut stranger = V1::open(server.addr(), "/channels");
    stranger.ask(json!({"type": "subscribe", "channel": "open/news"}), "subscribed");
    for refused in [
        json!({"type": "subscribe", "channel": "a", "seq": 1}),
        json!({"type": "publish", "channel": "open/news", "data": 1, "seq": 2}),
    ] {
        assert_eq!(stranger.refused(refused)["code"], "unauthorized");
    }
    stranger.ask(json!({"type": "publish", "channel": "open/wall", "data": 1}), "published");
}

#[test]
fn the_first_carrier_decides() {
    let server = strict(&[]);
    let (good, bad) = (token::of("anna").sign(), "bad".to_owned());
    let status = |authorization: Option<&str>, query: &str, cookie: Option<&str>| {
        let mut headers = Vec::new();
        headers.extend(authorization.map(|value| ("Authorization", value)));
        headers.extend(cookie.map(|value| ("Cookie", value)));
        let target = with_query("/channels/private/a", query);
        let mut conn = Conn::open(server.addr());
        let first = asked(&mut conn, "GET", &target, &headers, "").status;
        assert_eq!(asked(&mut conn, "GET", &target, &headers, "").status, first);
        first
    };
    let (good_header, bad_header) = (bearer(&good), bearer(&bad));
    let (good_query, bad_query) = (format!("token={good}"), format!("token={bad}"));
    let (good_cookie, bad_cookie) = (format!("pushline_token={good}"), format!("pushline_token={bad}"));
    let bad_ticket = format!("ticket={bad}");
    for (authorization, query, cookie, want) in [
        (Some(good_header.as_str()), bad_query.as_str(), Some(bad_cookie.as_str()), 200),
        (Some(&bad_header), &good_query, Some(&good_cookie), 401),
        (Some(&good_header), &bad_ticket, None, 200),
        (None, &format!("{good_query}&{bad_ticket}"), Some(&good_cookie), 401),
        (None, &good_query, Some(&bad_cookie), 200),
        (None, &bad_query, Some(&good_cookie), 401),
        (None, "", Some(&good_cookie), 200),
        (None, "", Some(&format!("other=1; {good_cookie}")), 200),
        // Another scheme is a proxy's, an empty cookie one that was taken away.
        (Some("Basic eDp5"), &good_query, None, 200),
        (Some("Basic eDp5"), "", None, 401),
        (None, "", Some("pushline_token="), 401),
        // There, and bad.
        (Some("Bearer"), &good_query, None, 401),
        (Some("Bearer a b"), &good_query, None, 401),
        (None, "token=", Some(&good_cookie), 401),
        (None, "token=%ff", Some(&good_cookie), 401),
        (None, &format!("{good_query}&{good_query}"), None, 400),
        (None, "ticket=a&ticket=b", None, 400),
        // A token may be written in any way that a URL may.
        (None, &good_query.replace('.', "%2E").replace("token", "%74oken"), None, 200),
    ] {
        assert_eq!(status(authorization, query, cookie), want, "{authorization:?} {query} {cookie:?}");
    }
    let twice = [("Authorization", good_header.as_str()), ("Authorization", good_header.as_str())];
    let answer = ask(server.addr(), "GET", "/channels/private/a", &twice, "");
    challenged(&answer, 400, Some("invalid_request"));
}

#[test]
fn strangers_may_what_the_configuration_says() {
    let server = strict(&[]);
    get(server.addr(), "/channels/open/a/b").expect(200);
    get(server.addr(), "/channels/open").problem(401);
    get(server.addr(), "/channels/open/a,private/b").problem(401);
    ask(server.addr(), "POST", "/channels/open/wall", &[TEXT], "x").expect(201);
    ask(server.addr(), "POST", "/channels/open/news", &[TEXT], "x").problem(401);
    Stream::open(server.addr(), "/channels/open/a");
    // A token is not less than none, but it is another: what strangers may is not added to it.
    let token = bearer(&token::of("anna").subscribe(&["mine"]).sign());
    ask(server.addr(), "GET", "/channels/open/a", &[("Authorization", &token)], "").problem(403);
    // With keys alone strangers may nothing, not even a WebSocket without channels.
    let closed = Server::start(&["--set", KEYS]);
    get(closed.addr(), "/channels/open/a").problem(401);
    assert_eq!(close_code(&closed, "/channels", &[("Sec-WebSocket-Protocol", V1_NAME)]), 4401);
}

/// What is answered to one is not shown to another, however the answers are kept.
#[test]
fn answers_kept_in_memory_are_for_those_who_may() {
    let server = strict(&[]);
    let (anna, bert) = (token::of("anna").sign(), token::of("bert").subscribe(&["other"]).sign());
    let mut conn = Conn::open(server.addr());
    let target = "/channels/private/kept?limit=5";
    for _ in 0..3 {
        let answer = asked(&mut conn, "GET", target, &[("Authorization", &bearer(&anna))], "").expect(200);
        let tag = answer.header("etag").to_owned();
        let by_query = with_query(target, &format!("token={anna}"));
        assert_eq!(asked(&mut conn, "GET", &by_query, &[], "").header("etag"), tag);
        assert_eq!(asked(&mut conn, "GET", &by_query, &[("If-None-Match", &tag)], "").status, 304);
        asked(&mut conn, "GET", target, &[("If-None-Match", &tag)], "").expect(401);
        let bert = [("Authorization", &*bearer(&bert)), ("If-None-Match", &tag)];
        asked(&mut conn, "GET", target, &bert, "").expect(403);
    }
}

#[test]
fn what_needs_no_token_is_asked_for_none() {
    let server = strict(&["--set", "origins.allow=https://*.app.example"]);
    for target in ["/", "/healthz"] {
        get(server.addr(), target).expect(200);
    }
    ask(server.addr(), "GET", "/nowhere", &[("Authorization", "Bearer bad")], "").problem(404);
    ask(server.addr(), "PUT", "/channels/private/a", &[], "").problem(405);
    let page = ("Origin", "https://a.app.example");
    for (target, methods) in [("/channels/private/a", "DELETE"), ("/publish", "POST"), ("/tickets", "POST")] {
        let preflight = [
            page,
            ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization"),
        ];
        let answer = ask(server.addr(), "OPTIONS", target, &preflight, "").expect(204);
        assert_eq!(answer.header("access-control-allow-origin"), page.1);
        assert!(answer.lists("access-control-allow-methods", methods), "{answer}");
        assert!(answer.lists("access-control-allow-headers", "Authorization"), "{answer}");
    }
    // A page is shown its refusals too.
    let answer = ask(server.addr(), "GET", "/channels/private/a", &[page], "");
    challenged(&answer, 401, None);
    assert_eq!(answer.header("access-control-allow-origin"), page.1);
    assert_eq!(answer.header("access-control-allow-credentials"), "true");
    assert!(answer.lists("vary", "Origin"), "{answer}");
    // The origin is looked at first, and its refusal is not about tokens.
    let token = bearer(&token::of("anna").sign());
    for origin in ["https://app.example", "https://evil.example", "null"] {
        let answer = ask(
            server.addr(),
            "GET",
            "/channels/private/a",
            &[("Origin", origin), ("Authorization", &token)],
            "",
        );
        answer.problem(403);
        assert_eq!(answer.get("www-authenticate"), None, "{answer}");
        assert_eq!(answer.get("access-control-allow-origin"), None, "{answer}");
    }
}

#[test]
fn any_address_and_any_host_once_only_some_may_read() {
    let server = Server::start_bare(&["--listen", "0.0.0.0:0", "--set", KEYS]);
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], server.addr().port()));
    let token = bearer(&token::of("anna").sign());
    let headers = [("Host", "push.app.example"), ("Authorization", &*token)];
    ask(addr, "GET", "/channels/a", &headers, "").expect(200);
    // Its own host's pages may use it, others may not, loopback's included.
    let own = [&headers[..], &[("Origin", "http://push.app.example")]].concat();
    ask(addr, "GET", "/channels/a", &own, "").expect(200);
    let local = [&headers[..], &[("Origin", "http://localhost:3000")]].concat();
    ask(addr, "GET", "/channels/a", &local, "").problem(403);
    let refused = Server::refused(&["--listen", "0.0.0.0:0", "--open", "--set", KEYS]);
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("open = true") && refused.stderr.contains("auth.keys"),
        "{}",
        refused.stderr
    );
}

#[test]
fn api_keys_publish() {
    let (shop, shop_line) = api_key(&["shop", "--publish", "orders/**", "--publish", "news"]);
    let (root, root_line) = api_key(&["root", "--publish", "**", "--subscribe", "**", "--delete", "**"]);
    let server = Server::start(&["--set", &format!("auth.api_keys=[{shop_line}, {root_line}]")]);
    let by = |key: &str, method: &str, target: &str| {
        ask(server.addr(), method, target, &[("Authorization", &bearer(key)), TEXT], "x")
    };
    by(&shop, "POST", "/channels/orders/1/paid").expect(201);
    by(&shop, "POST", "/channels/news").expect(201);
    by(&shop, "POST", "/channels/other").problem(403);
    by(&shop, "GET", "/channels/news").problem(403);
    by(&root, "GET", "/channels/news").expect(200);
    by(&root, "DELETE", "/channels/news").expect(204);
    let digest: String = Sha256::digest(&shop).iter().map(|byte| format!("{byte:02x}")).collect();
    for wrong in [&shop[1..], &format!("{shop}x"), &shop.to_uppercase(), &digest, "pushline_"] {
        by(wrong, "POST", "/channels/news").problem(401);
    }
    // A key is for a server's requests: nowhere but in the field that URLs and browsers do not send by themselves.
    get(server.addr(), &format!("/channels/news?token={root}")).problem(401);
    ask(server.addr(), "GET", "/channels/news", &[("Cookie", &format!("pushline_token={root}"))], "")
        .problem(401);
    for (args, words) in
        [(&["", "--publish", "a"][..], "name"), (&["a", "--publish", "a//b"], "no channel pattern")]
    {
        let output =
            Command::new(env!("CARGO_BIN_EXE_pushline")).arg("api-key").args(args).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{output:?}");
    }
}

#[test]
fn idempotency_keys_are_per_publisher() {
    let (key, line) = api_key(&["anna"]);
    let server = strict(&["--set", &format!("auth.api_keys=[{line}]")]);
    let (anna, bert) = (token::of("anna"), token::of("bert"));
    // Another token of the same subject is the same publisher.
    let again = anna.clone().with("jti", "later").sign();
    let publish = |credentials: Option<&str>, body: &str| {
        let mut headers = vec![TEXT, ("Idempotency-Key", "k")];
        let value = credentials.map(bearer);
        headers.extend(value.iter().map(|value| ("Authorization", value.as_str())));
        ask(server.addr(), "POST", "/channels/open/wall", &headers, body)
    };
    let first = published(&publish(Some(&anna.clone().sign()), "a"));
    let repeated = publish(Some(&again), "a");
    assert_eq!((published(&repeated), repeated.header("idempotency-replayed")), (first.clone(), "true"));
    publish(Some(&again), "another body").problem(409);
    for other in [Some(bert.sign()), Some(key), None] {
        let answer = publish(other.as_deref(), "another body");
        assert_eq!(answer.get("idempotency-replayed"), None, "{answer}");
        assert_ne!(published(&answer), first);
    }
}

/// Pipelined, and by turns on one kept connection: each request is its own bearer's.
#[test]
fn each_request_of_a_connection_is_judged_alone() {
    let server = strict(&[]);
    let (reader, writer) =
        (bearer(&token::of("r").publish(&[]).sign()), bearer(&token::of("w").subscribe(&[]).sign()));
    let mut conn = Conn::open(server.addr());
    for _ in 0..2 {
        let mut want = Vec::new();
        for (token, read, write) in [
            (Some(&reader), 200, 403),
            (None, 401, 401),
            (Some(&writer), 403, 201),
            (Some(&reader), 200, 403),
        ] {
            let headers: Vec<_> = token.iter().map(|token| ("Authorization", token.as_str())).collect();
            conn.send("GET", "/channels/private/a", &headers, "");
            conn.send("POST", "/channels/private/a", &[&headers[..], &[TEXT]].concat(), "x");
            want.extend([read, write]);
        }
        let got: Vec<u16> = want.iter().map(|_| conn.read_response().status).collect();
        assert_eq!(got, want);
    }
}
