//! Tickets: for an EventSource, which cannot send headers. How long one waits for its first use, and
//! how many there are, stands beside the code, in `edge/auth/ticket`.

use crate::common;

use common::cost::{MIB, Peak};
use common::http::{Conn, Headers, Response, ask, get};
use common::server::{Server, field};
use common::sse::{Item, Stream};
use common::token::{self, KEYS, bearer};
use common::until;
use common::ws::{Message, Socket, V1_NAME};

/// The answer to one who asks for a ticket.
fn asked(server: &Server, token: &str) -> Response {
    ask(server.addr(), "POST", "/tickets", &[("Authorization", &bearer(token))], "")
}

fn ticket(server: &Server, token: &str) -> String {
    let answer = asked(server, token).expect(201);
    answer.json()["ticket"].as_str().unwrap_or_else(|| panic!("a ticket in {answer}")).to_owned()
}

/// Reads a stream to its end: the reason that it gives.
#[track_caller]
fn end_of(stream: &mut Stream) -> String {
    let mut reason = None;
    while let Some(item) = stream.item() {
        if let Item::Event(event) = item
            && event.name == "$close"
        {
            reason = event.json()["reason"].as_str().map(str::to_owned);
        }
    }
    reason.expect("the stream says why it ends")
}

#[test]
fn a_ticket_stands_for_its_token() {
    let server = Server::start(&["--set", KEYS]);
    let token = token::of("anna").subscribe(&["me/{sub}"]).publish(&["me/{sub}"]).sign();
    let answer = asked(&server, &token).expect(201);
    assert_eq!(answer.header("cache-control"), "no-store", "{answer}");
    let body = answer.json();
    let ticket = body["ticket"].as_str().expect("a ticket");
    // 256 bits, in characters that need no coding in a URL.
    assert!(
        ticket.len() == 43
            && ticket.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    );
    assert_eq!(body["use_within"], 30);
    assert!((50..=60).contains(&body["expires_in"].as_u64().expect("seconds")), "{body}");
    assert_ne!(self::ticket(&server, &token), ticket);

    let target = |channel: &str| format!("/channels/{channel}?ticket={ticket}");
    let mut stream = Stream::open(server.addr(), &target("me/anna"));
    // Whatever the token may, on whatever worker, and no more.
    let mut conn = Conn::open(server.addr());
    for _ in 0..2 {
        conn.get(&target("me/anna")).expect(200);
        conn.get(&target("me/bert")).problem(403);
        conn.request("POST", &target("me/anna"), &[("Content-Type", "text/plain")], "x").expect(201);
    }
    assert_eq!(stream.texts(2), ["x", "x"]);
    let headers: Headers = &[("Accept", "text/event-stream")];
    ask(server.addr(), "GET", &target("me/bert"), headers, "").problem(403);
}

#[test]
fn a_new_stream_ends_the_one_before_on_whatever_worker() {
    let server = Server::start(&["--workers", "3", "--set", KEYS]);
    let token = token::of("anna").sign();
    let target = format!("/channels/news?ticket={}", ticket(&server, &token));
    let other = format!("/channels/news?ticket={}", ticket(&server, &token));
    let mut others = Stream::open(server.addr(), &other);
    let mut streams = vec![Stream::open(server.addr(), &target)];
    // The kernel spreads connections over workers: among so many, some come to another.
    for _ in 0..12 {
        let mut before = streams.pop().expect("a stream");
        streams.push(Stream::resume(server.addr(), &target, &before.cursor));
        assert_eq!(end_of(&mut before), "replaced");
    }
    // A poll is no stream; a WebSocket is one.
    get(server.addr(), &target).expect(200);
    let mut raw = Socket::open(server.addr(), &target);
    assert_eq!(end_of(&mut streams[0]), "replaced");
    let v1 = Socket::open_with(server.addr(), &target, &[("Sec-WebSocket-Protocol", V1_NAME)]);
    assert_eq!(raw.message(), Message::Close(4401));
    drop(v1);
    // Another ticket of the same token is another stream.
    let headers = [("Authorization", &*bearer(&token)), ("Content-Type", "text/plain")];
    ask(server.addr(), "POST", "/channels/news", &headers, "x").expect(201);
    assert_eq!(others.message().data, "x");
}

#[test]
fn only_the_address_that_used_it_first_may_come_back() {
    let server = Server::start(&["--set", KEYS]);
    let target = format!("/channels/news?ticket={}", ticket(&server, &token::of("anna").sign()));
    let status = |last: u8| {
        let mut conn = Conn::open_as(last, server.addr());
        conn.send("GET", &target, &[("Accept", "text/event-stream")], "");
        conn.read_head().status
    };
    assert_eq!([status(2), status(3), status(1), status(2)], [200, 401, 401, 200]);
    let why = server.wait_log(|line| field(line, "code").as_deref() == Some("ticket_elsewhere"));
    assert!(field(&why, "peer").is_some_and(|peer| peer.starts_with("127.0.0.3:")), "{why}");
}

#[test]
fn a_ticket_ends_with_its_token() {
    let server = Server::start(&["--set", KEYS]);
    let end_s = token::now_s() + 2;
    let target = format!("/channels/news?ticket={}", ticket(&server, &token::of("anna").until(end_s).sign()));
    get(server.addr(), &target).expect(200);
    until("the token's end", || (token::now_s() >= end_s).then_some(()));
    // A new connection, and one whose requests are served at once.
    let mut conn = Conn::open(server.addr());
    for _ in 0..3 {
        let answer = conn.get(&target);
        assert!(answer.expect(401).text().contains("expired"));
    }
}

#[test]
fn a_ticket_ends_with_its_key() {
    let path = std::env::temp_dir().join(format!("pushline-tickets-{}", std::process::id()));
    let keys = format!(
        "auth.keys=[{{ kid = 'tests', algorithm = 'HS256', secret_file = '{}' }}, {{ algorithm = 'HS256', secret = '{}' }}]",
        path.display(),
        "another ".repeat(5),
    );
    std::fs::write(&path, token::SECRET).expect("a file");
    let mut server = Server::start(&["--set", &keys]);
    let target = format!("/channels/news?ticket={}", ticket(&server, &token::of("anna").sign()));
    get(server.addr(), &target).expect(200);
    let mut reload = |count: usize| {
        server.signal(libc::SIGHUP);
        let mut seen = 0;
        server.wait_log(|line| {
            seen += usize::from(line.contains("loaded anew"));
            seen == count
        });
        get(server.addr(), &target).status
    };
    assert_eq!(reload(1), 200, "the same keys again");
    std::fs::write(&path, "a new secret that is long enough for HS256").expect("a file");
    assert_eq!(reload(2), 401);
    let _ = std::fs::remove_file(&path);
}

#[test]
fn who_gets_none() {
    let server = Server::start(&["--set", KEYS]);
    let good = token::of("anna").sign();
    let post = |target: &str, headers: Headers| ask(server.addr(), "POST", target, headers, "");
    let none = post("/tickets", &[]).expect(401);
    assert!(none.header("www-authenticate").starts_with("Bearer realm"), "{none}");
    asked(&server, &token::of("anna").until(token::now_s() - 1).sign()).problem(401);
    asked(&server, "nonsense").problem(401);
    post(&format!("/tickets?token={good}"), &[]).problem(403);
    post("/tickets", &[("Cookie", &format!("pushline_token={good}"))]).problem(403);
    let ticket = ticket(&server, &good);
    post(&format!("/tickets?ticket={ticket}"), &[]).problem(403);
    let wrong = get(server.addr(), "/tickets").expect(405);
    assert_eq!(wrong.header("allow"), "POST, OPTIONS");
    for unknown in ["x", "", &"x".repeat(43), &ticket[..42], &format!("{ticket}x")] {
        get(server.addr(), &format!("/channels/news?ticket={unknown}")).problem(401);
    }
    // A token is no ticket, nor a ticket a token.
    get(server.addr(), &format!("/channels/news?ticket={good}")).problem(401);
    get(server.addr(), &format!("/channels/news?token={ticket}")).problem(401);
    // Without authentication there is nothing to stand for.
    let open = Server::start(&[]);
    ask(open.addr(), "POST", "/tickets", &[("Authorization", &bearer(&good))], "").problem(404);
}

/// A token as large as may be: it grants some hundred patterns.
fn large_token(subject: &str, id: usize) -> String {
    let patterns: Vec<String> = (0..400).map(|at| format!("c{at:06}/x")).collect();
    let mut patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    patterns.push("**");
    token::of(subject).subscribe(&patterns).with("jti", id.to_string()).sign()
}

#[test]
fn tickets_are_part_of_the_memory_budget() {
    const BUDGET: usize = 32 * MIB;
    let budget = format!("limits.memory_bytes={BUDGET}");
    let server = Server::start(&["--workers", "2", "--set", KEYS, "--set", &budget]);
    let peak = Peak::watch(server.pid());
    let honest = token::of("bert").sign();
    let target = format!("/channels/news?ticket={}", ticket(&server, &honest));
    let mut stream = Stream::open(server.addr(), &target);
    // One user, who needs no more than a new token each time.
    let mut conn = Conn::open(server.addr());
    for id in 0..150 {
        let token = bearer(&large_token("anna", id));
        for _ in 0..40 {
            let answer = conn.request("POST", "/tickets", &[("Authorization", &token)], "");
            assert!([201, 503].contains(&answer.status), "{answer}");
            assert_eq!(answer.status == 503, answer.get("retry-after").is_some(), "{answer}");
        }
    }
    let (most, _) = peak.end();
    assert!(most < BUDGET, "{} MiB", most / MIB);
    // Nobody else is the worse for it.
    ticket(&server, &honest);
    let headers = [("Authorization", &*bearer(&honest)), ("Content-Type", "text/plain")];
    ask(server.addr(), "POST", "/channels/news", &headers, "x").expect(201);
    assert_eq!(stream.message().data, "x");
    let mut again = Stream::resume(server.addr(), &target, &stream.cursor);
    assert_eq!(end_of(&mut stream), "replaced");
    ask(server.addr(), "POST", "/channels/news", &headers, "y").expect(201);
    assert_eq!(again.texts(2), ["x", "y"]);
    assert!(server.log().iter().all(|line| field(line, "pressure").is_none()));
}

#[test]
fn a_ticket_counts_as_a_publish() {
    let quota = "quotas.subject.publishes_per_second=1";
    let server = Server::start(&["--set", KEYS, "--set", quota]);
    let token = token::of("anna").sign();
    let refused = until("the quota is used up", || {
        let answer = asked(&server, &token);
        (answer.status != 201).then_some(answer)
    });
    refused.problem(429);
    assert!(refused.get("retry-after").is_some(), "{refused}");
    assert!(refused.text().contains("a ticket counts as a publish"), "{refused}");
    asked(&server, &token::of("bert").sign()).expect(201);
}

#[test]
fn a_ticket_that_is_used_again_needs_no_place_more() {
    let quota = "quotas.subject.connections=2";
    let server = Server::start(&["--workers", "3", "--set", KEYS, "--set", quota]);
    let token = token::of("anna").sign();
    let target = format!("/channels/news?ticket={}", ticket(&server, &token));
    let other = format!("/channels/news?ticket={}", ticket(&server, &token));
    let mut others = Stream::open(server.addr(), &other);
    let mut before = Stream::open(server.addr(), &target);
    // On whatever worker it comes again.
    for _ in 0..12 {
        let stream = Stream::resume(server.addr(), &target, &before.cursor);
        assert_eq!(end_of(&mut before), "replaced");
        before = stream;
    }
    let mut raw = Socket::open(server.addr(), &target);
    assert_eq!(end_of(&mut before), "replaced");
    let headers = [("Authorization", &*bearer(&token)), ("Content-Type", "text/plain")];
    ask(server.addr(), "POST", "/channels/news", &headers, "x").expect(201);
    assert_eq!((others.message().data, raw.expect_text()), ("x".to_owned(), "x".to_owned()));
    // A third ticket is one too many, and ends nobody.
    let third = format!("/channels/news?ticket={}", ticket(&server, &token));
    assert_eq!(end_of(&mut Stream::begin(server.addr(), &third, &[])), "rate_limited");
    ask(server.addr(), "POST", "/channels/news", &headers, "y").expect(201);
    assert_eq!((others.message().data, raw.expect_text()), ("y".to_owned(), "y".to_owned()));
}
