//! One memory budget (docs/limits.md): flooded in each way, the server stays within it, serves those who are there, and
//! recovers.

use crate::common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use common::admin::{Metrics, addr_of};
use common::cost::{KIB, MIB, Peak, bystander};
use common::crowd::{Crowd, Heard, own_memory};
use common::http::{AT_ONCE, Conn, ask, get, head_cursor, poll, publish, published, wire};
use common::server::{Server, field};
use common::sse::{Item, Stream};
use common::tls::TlsServer;
use common::token::{self, KEYS};
use common::ws::{Socket, TEXT, V1, V1_NAME, masked, request};
use common::{receive_buffer, until};

const BUDGET: usize = 48 * MIB;
/// What is in hand for a moment and counted only after it: answers and frames under way, and what an allocator keeps.
const SLACK: usize = 16 * MIB;
const LARGEST: usize = 64 * KIB;

fn server(more: &[&str]) -> Server {
    let budget = format!("limits.memory_bytes={BUDGET}");
    let mut args = vec!["--workers", "2", "--set", &budget];
    args.extend(more);
    Server::start(&args)
}

#[track_caller]
fn within(peak: Peak) {
    let (most, _) = peak.end();
    eprintln!("at most {} of {} KiB", most / KIB, (BUDGET + SLACK) / KIB);
    assert!(most <= BUDGET + SLACK, "{} KiB, more than {} and some", most / KIB, BUDGET / KIB);
}

/// New connections are served, publishes too.
fn recovers(addr: SocketAddr) {
    until("newcomers are served again", || {
        let mut conn = Conn::try_open(addr).ok()?;
        conn.try_send_raw(wire(addr, "POST", "/channels/after", &[], b"well")).ok()?;
        conn.expect_answer_to("POST");
        conn.try_read_response().ok().filter(|answer| answer.status == 201).map(drop)
    });
    let mut stream = Stream::open(addr, "/channels/after");
    publish(addr, "after", "and on");
    assert_eq!(stream.message().data, "and on");
}

/// Lines of the log that tell how short memory is.
fn pressures(server: &Server) -> Vec<String> {
    server.log().iter().filter_map(|line| field(line, "pressure")).collect()
}

#[test]
fn histories_shrink_oldest_first_and_nobody_is_refused() {
    let server = server(&[]);
    let addr = server.addr();
    let peak = Peak::watch(server.pid());
    let first = head_cursor(addr, "h/0");
    let text = "x".repeat(LARGEST);
    const CHANNELS: usize = 300;
    let ((), waited) = bystander(addr, || {
        // In turn, so that the oldest are in all channels: 188 MiB in the end.
        for round in 0..10 {
            let mut conn = Conn::open(addr);
            for channel in 0..CHANNELS {
                let text = format!("{round}:{}", &text[10..]);
                let target = format!("/channels/h/{channel}");
                conn.request("POST", &target, &[("Content-Type", "text/plain")], text).expect(201);
            }
        }
    });
    assert!(waited < AT_ONCE, "{waited:?}");
    within(peak);
    let rounds = |channel: usize| -> Vec<usize> {
        let messages = poll(addr, &format!("/channels/h/{channel}?limit=100")).messages;
        messages.iter().map(|m| m["data"].as_str().expect("text")[..1].parse().expect("a number")).collect()
    };
    let mut held = 0;
    for channel in 0..CHANNELS {
        let rounds = rounds(channel);
        held += rounds.len();
        // What is held is the newest, in each channel about as much: none is empty while others have the third last.
        assert!(rounds.iter().copied().eq(10 - rounds.len()..10), "{channel}: {rounds:?}");
        assert!(rounds.len() <= 3, "{channel}: {rounds:?}");
    }
    assert!(held * LARGEST > BUDGET / 4, "history has what others leave: {held}");
    assert!(poll(addr, &format!("/channels/h/0?cursor={first}")).gap, "a loss is told");
    let refused = |pressure: &String| pressure == "full" || pressure == "spent";
    assert!(!pressures(&server).iter().any(refused), "{:?}", pressures(&server));
}

/// Many small messages cost more beside their bytes than large ones.
#[test]
fn small_messages_in_many_channels_are_counted_whole() {
    let budget = format!("limits.memory_bytes={BUDGET}");
    let server = Server::start(&["--workers", "1", "--set", &budget]);
    let addr = server.addr();
    let peak = Peak::watch(server.pid());
    let mut conn = Conn::open(addr);
    for batch in 0..25 {
        let lines: String = (0..10_000)
            .map(|n| format!("{{\"channel\":\"s/{}\",\"data\":\"{n}\"}}\n", (batch * 10_000 + n) % 20_000))
            .collect();
        let answer = conn.request("POST", "/publish", &[("Content-Type", "application/x-ndjson")], lines);
        assert_eq!(answer.expect(200).text().matches("\"id\"").count(), 10_000);
    }
    within(peak);
    assert_eq!(poll(addr, "/channels/s/19999").data(), ["9999"]);
}

#[test]
fn stalled_readers_of_large_messages_go_and_the_others_get_all() {
    const STALLED: usize = 1_200;
    let server = server(&[
        "--set",
        "slow.kernel_bytes=66KiB",
        "--set",
        "heartbeat.interval_seconds=30",
        "--set",
        "admin.listen=127.0.0.1:0",
    ]);
    let addr = server.addr();
    let peak = Peak::watch(server.pid());
    let stalled: Vec<TcpStream> = (0..STALLED)
        .map(|n| {
            let socket = TcpStream::connect(addr).expect("room");
            receive_buffer(&socket, 4_096);
            let target = "/channels/big";
            let head = match n % 2 {
                0 => wire(addr, "GET", target, &[("Accept", "text/event-stream")], b""),
                _ => request(addr, target, &[]),
            };
            (&socket).write_all(&head).expect("sent");
            socket
        })
        .collect();
    let mut reader = Stream::open(addr, "/channels/big");
    let mut conn = Conn::open(addr);
    conn.get("/healthz").expect(200);
    until("all of them read", || {
        let metrics = Metrics::scrape(addr_of(&server));
        let open = |transport| metrics.sum("pushline_connections", &[("transport", transport)]);
        (open("sse") + open("websocket") > STALLED as f64).then_some(())
    });
    let text = "x".repeat(LARGEST - 10);
    let ((), waited) = bystander(addr, || {
        for n in 0..12 {
            let text = format!("{n}:{text}");
            // Refused while memory is full, until those who hold it are gone.
            until("it is published", || {
                let answer = conn.request("POST", "/channels/big", &[("Content-Type", "text/plain")], &text);
                assert!([201, 503].contains(&answer.status), "{answer}");
                if answer.closes() {
                    // Its own body was among what was given back.
                    conn = Conn::open(addr);
                }
                (answer.status == 201).then_some(())
            });
            let got = reader.message().data;
            assert!(got.starts_with(&format!("{n}:")), "{n}: {}", &got[..10]);
        }
    });
    assert!(waited < AT_ONCE, "{waited:?}");
    within(peak);
    server.wait_log(|line| field(line, "reason").as_deref() == Some("slow"));
    drop(stalled);
    recovers(addr);
}

#[test]
fn half_sent_bodies_are_refused_and_the_others_are_served() {
    const SENDERS: usize = 1_500;
    let server = server(&["--set", "timeouts.body_seconds=60"]);
    let addr = server.addr();
    let before = own_memory(server.pid());
    let peak = Peak::watch(server.pid());
    let mut stream = Stream::open(addr, "/channels/live");
    let mut conn = Conn::open(addr);
    conn.get("/healthz").expect(200);
    let mut head =
        format!("POST /channels/half HTTP/1.1\r\nHost: {addr}\r\nContent-Length: {LARGEST}\r\n\r\n");
    head += &"x".repeat(LARGEST - 100);
    let (senders, waited) = bystander(addr, || {
        (0..SENDERS)
            .filter_map(|_| {
                let socket = TcpStream::connect(addr).ok()?;
                socket.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout");
                // Those that come last may be closed as they come.
                let _ = (&socket).write_all(head.as_bytes());
                Some(socket)
            })
            .collect::<Vec<_>>()
    });
    assert!(waited < AT_ONCE, "{waited:?}");
    let full = server.wait_log(|line| field(line, "pressure").is_some());
    // What is counted is what is there: not half, nor twice as much.
    let of = |name| field(&full, name).and_then(|text| text.parse::<usize>().ok()).expect("a number");
    let counted = of("history") + of("feeds") + of("others");
    let taken = of("taken");
    assert!(of("resident") > before / 2, "what the kernel says stands beside it: {full}");
    assert!(counted * 10 > (taken - before) * 6 && counted * 10 < taken * 13, "{counted} of {taken}");
    // One that was connected goes on, and is not refused for good.
    conn.get("/channels/live").expect(200);
    until("it is published", || {
        let answer = conn.request("POST", "/channels/live", &[("Content-Type", "text/plain")], "on");
        assert!([201, 503].contains(&answer.status), "{answer}");
        (answer.status == 201).then_some(())
    });
    assert_eq!(stream.message().data, "on");
    within(peak);
    // Those that were refused were told so, and when to come back.
    let mut told = 0;
    for socket in &senders {
        socket.set_nonblocking(true).expect("open");
        let mut answer = [0; 1_024];
        match (&*socket).read(&mut answer) {
            Ok(count) if answer[..count].starts_with(b"HTTP/1.1 503 ") => {
                assert!(memchr::memmem::find(&answer[..count], b"\r\nRetry-After: ").is_some());
                told += 1;
            }
            Ok(0) => {}
            Ok(count) => panic!("{}", String::from_utf8_lossy(&answer[..count])),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset), "{error}")
            }
        }
    }
    assert!(told > SENDERS / 10, "{told}");
    drop(senders);
    recovers(addr);
}

#[test]
fn a_body_takes_its_size_while_it_comes() {
    const SENDERS: usize = 200;
    let server = server(&["--set", "timeouts.body_seconds=60"]);
    let addr = server.addr();
    let before = own_memory(server.pid());
    let request = wire(addr, "POST", "/channels/half", &[], &[b'x'; LARGEST]);
    let (begun, rest) = request.split_at(request.len() - 1);
    let mut senders: Vec<Conn> = (0..SENDERS).map(|_| Conn::open(addr)).collect();
    senders.iter_mut().for_each(|sender| sender.send_raw(begun));
    let bodies = SENDERS * LARGEST;
    // All but what lies in sockets yet.
    until("they are held", || (own_memory(server.pid()) > before + bodies * 7 / 8).then_some(()));
    let grown = own_memory(server.pid()) - before;
    assert!(grown < bodies / 4 * 5, "{} KiB for {}", grown / KIB, bodies / KIB);
    for sender in &mut senders {
        sender.send_raw(rest);
        sender.expect_answer_to("POST");
        published(&sender.read_response());
    }
    assert!(pressures(&server).is_empty());
}

#[test]
fn begun_messages_of_websockets_are_refused_with_1013() {
    const SENDERS: usize = 1_500;
    let server = server(&["--set", "timeouts.body_seconds=60"]);
    let addr = server.addr();
    let peak = Peak::watch(server.pid());
    let mut there = Socket::open_with(addr, "/channels/live", &[]);
    let mut crowd = Crowd::new();
    let frame = masked(false, TEXT, "x".repeat(LARGEST - 100).as_bytes());
    let (mut switched, mut full) = (0, 0);
    let mut heard = |_: usize, heard: Heard<'_>| {
        if let Heard::Bytes(bytes) = heard {
            switched += memchr::memmem::find_iter(bytes, b"HTTP/1.1 101 ").count();
            // 1013 at the beginning of a close frame's payload.
            full += memchr::memmem::find_iter(bytes, &[0x03, 0xF5]).count();
        }
    };
    let ((), waited) = bystander(addr, || {
        for _ in 0..SENDERS {
            let Ok(socket) = TcpStream::connect(addr) else { continue };
            let _ = socket.set_write_timeout(Some(Duration::from_secs(5)));
            let hello = request(addr, "/channels/f", &[("Sec-WebSocket-Protocol", V1_NAME)]);
            let _ = (&socket).write_all(&hello).and_then(|()| (&socket).write_all(&frame));
            crowd.add(socket);
            while crowd.listen(Duration::ZERO, &mut heard) > 0 {}
        }
        while crowd.listen(Duration::from_millis(500), &mut heard) > 0 {}
    });
    assert!(waited < AT_ONCE, "{waited:?}");
    within(peak);
    assert!(switched > 100 && full > 100, "{switched} were accepted, {full} told that the server is full");
    there.text("still here");
    // What it says itself may be refused now; that it is served is what counts.
    drop(crowd);
    recovers(addr);
}

/// Answers that nobody reads are given up for others, however long their clients might have had.
#[test]
fn answers_that_are_not_read_are_let_go() {
    let server = server(&["--set", "history.bytes=4MiB", "--set", "slow.kernel_bytes=66KiB"]);
    let addr = server.addr();
    let text = "x".repeat(LARGEST - 10);
    for n in 0..40 {
        publish(addr, &format!("big/{}", n % 2), &text);
    }
    let unread: Vec<TcpStream> = (0..150)
        .map(|n| {
            let socket = TcpStream::connect(addr).expect("room");
            receive_buffer(&socket, 4_096);
            let target = format!("/channels/big/{}?limit=20", n % 2);
            (&socket).write_all(&wire(addr, "GET", &target, &[], b"")).expect("sent");
            socket
        })
        .collect();
    server.wait_log(|line| field(line, "pressure").as_deref() == Some("full"));
    recovers(addr);
    server.wait_log(|line| field(line, "reason").as_deref() == Some("slow"));
    drop(unread);
}

/// Requests under way are few at a time, however many come at once: the others wait unread, and all are answered.
#[test]
fn polls_of_many_channels_at_once_take_turns() {
    const CLIENTS: usize = 2_000;
    let server = server(&[]);
    let addr = server.addr();
    let names: Vec<String> = (0..64).map(|number| format!("{number:0182}")).collect();
    let ask = wire(addr, "GET", &format!("/channels/{}", names.join(",")), &[], b"");
    let mut crowd = Crowd::new();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let client = TcpStream::connect(addr).expect("room");
        crowd.add(client.try_clone().expect("a descriptor"));
        clients.push(client);
    }
    let peak = Peak::watch(server.pid());
    let mut answered = 0;
    let ((), waited) = bystander(addr, || {
        clients.iter().for_each(|client| {
            let _ = (&*client).write_all(&ask);
        });
        until("all are answered", || {
            crowd.listen(Duration::from_millis(200), |_: usize, heard: Heard<'_>| {
                if let Heard::Bytes(bytes) = heard {
                    answered += memchr::memmem::find_iter(bytes, b"HTTP/1.1 200 ").count();
                }
            });
            (answered == CLIENTS).then_some(())
        });
    });
    assert!(waited < AT_ONCE, "{waited:?}");
    within(peak);
    assert_eq!(pressures(&server), Vec::<String>::new(), "far from the budget");
}

/// A small batch may have a large answer: it is counted, and given up for others when nobody reads it.
#[test]
fn batches_whose_answers_are_not_read_are_let_go() {
    let server = server(&["--set", "slow.kernel_bytes=66KiB"]);
    let addr = server.addr();
    let peak = Peak::watch(server.pid());
    // Refused, each with its reason: ten times what was asked.
    let body = "{\"no\":1}\n".repeat(60_000);
    let batch = wire(addr, "POST", "/publish", &[("Content-Type", "application/x-ndjson")], body.as_bytes());
    let unread: Vec<TcpStream> = (0..40)
        .map(|_| {
            let socket = TcpStream::connect(addr).expect("room");
            receive_buffer(&socket, 4_096);
            socket.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let _ = (&socket).write_all(&batch);
            socket
        })
        .collect();
    server.wait_log(|line| field(line, "reason").as_deref() == Some("slow"));
    recovers(addr);
    within(peak);
    drop(unread);
}

/// What v1 connections wait for until their token comes is counted.
#[test]
fn channels_that_wait_for_a_token_are_counted() {
    let server = Server::start(&["--workers", "1", "--set", "limits.memory_bytes=32MiB", "--set", KEYS]);
    let addr = server.addr();
    V1::open(addr, "/channels/a");
    let before = own_memory(server.pid());
    let names: Vec<String> = (0..64).map(|number| format!("{number:0200}")).collect();
    let hello =
        request(addr, &format!("/channels/{}", names.join(",")), &[("Sec-WebSocket-Protocol", V1_NAME)]);
    let mut waiting = Vec::new();
    until("memory is short", || {
        for _ in 0..100 {
            let socket = TcpStream::connect(addr).ok()?;
            socket.set_write_timeout(Some(Duration::from_secs(5))).expect("a timeout");
            let _ = (&socket).write_all(&hello);
            waiting.push(socket);
        }
        (!pressures(&server).is_empty()).then_some(())
    });
    let line = server.wait_log(|line| field(line, "pressure").is_some());
    let of = |name| field(&line, name).and_then(|text| text.parse::<usize>().ok()).expect("a number");
    let (counted, taken) = (of("history") + of("feeds") + of("others"), of("taken"));
    assert!(counted * 10 > (taken - before) * 6 && counted * 10 < taken * 13, "{counted} of {taken}");
}

/// What each transport hears that comes when memory is full, and who was there before.
#[test]
fn newcomers_are_told_as_their_transport_says_and_health_is_answered() {
    let server = Server::start(&["--workers", "1", "--set", "limits.memory_bytes=32MiB"]);
    let addr = server.addr();
    let mut kept = Conn::open(addr);
    kept.get("/healthz").expect(200);
    let mut stream = Stream::open(addr, "/channels/quiet");
    let mut v1 = V1::open(addr, "/channels");
    // Keys are remembered for two minutes: nothing makes room for others. In small requests, so that nobody holds much.
    for n in 0.. {
        let key = format!("{n}");
        let answer = kept.request("POST", "/channels/live", &[("Idempotency-Key", &key), ("TTL", "0")], "no");
        assert!(n < 200_000 && [201, 503].contains(&answer.status), "{n}: {answer}");
        if answer.status == 503 {
            break;
        }
    }

    let answer = kept.request("POST", "/channels/live", &[], "no");
    assert!(answer.problem(503).contains("memory") && !answer.closes(), "{answer}");
    assert!((1..=10).contains(&answer.header("retry-after").parse::<u32>().expect("seconds")), "{answer}");
    kept.get("/channels/live").expect(200);
    for frame in [
        json!({"type": "publish", "channel": "live", "data": 1}),
        json!({"type": "subscribe", "channel": "live"}),
    ] {
        assert_eq!(v1.refused(frame)["code"], "overloaded");
    }
    kept.request("DELETE", "/channels/quiet", &[], "").expect(204);
    stream.event().named("$gap");

    get(addr, "/healthz").expect(200);
    for method in ["GET", "POST", "HEAD", "OPTIONS"] {
        let mut conn = Conn::open(addr);
        let answer = conn.request(method, "/channels/live", &[("Origin", "http://localhost")], "");
        assert_eq!(answer.status, 503, "{answer}");
        assert_eq!(answer.header("access-control-allow-origin"), "http://localhost");
        assert!(
            (1..=10).contains(&answer.header("retry-after").parse::<u32>().expect("seconds")),
            "{answer}"
        );
        assert!(answer.closes(), "{answer}");
        conn.eof();
    }
    let mut refused = Stream::begin(addr, "/channels/live", &[]);
    let Some(Item::Retry(retry_ms)) = refused.item() else { panic!("`retry:` comes first") };
    let close = refused.event().named("$close").json();
    assert_eq!((&close["reason"], &close["reconnect_ms"]), (&json!("full"), &json!(retry_ms)));
    refused.ended();
    let mut raw = Socket::open_with(addr, "/channels/live", &[]);
    raw.expect_close(1013);
    let mut refused = Socket::open_with(addr, "/channels/live", &[("Sec-WebSocket-Protocol", V1_NAME)]);
    let closing: Value = serde_json::from_str(&refused.expect_text()).expect("JSON");
    assert_eq!((&closing["type"], &closing["reason"]), (&json!("closing"), &json!("full")));
    refused.expect_close(1013);
    // On a connection that was there, a stream is a newcomer too.
    kept.send("GET", "/channels/live", &[("Accept", "text/event-stream")], "");
    let mut refused = Stream::of(kept);
    assert_eq!(refused.event().named("$close").json()["reason"], "full");
}

/// Handshakes that are begun and go no further, and sessions on which nothing is asked.
#[test]
fn tls_is_part_of_it() {
    const BUDGET: usize = 16 * MIB;
    let budget = format!("limits.memory_bytes={BUDGET}");
    let server = TlsServer::start(&["--workers", "2", "--set", &budget]);
    let addr = server.plain;
    let mut kept = Conn::open(addr);
    kept.get("/healthz").expect(200);
    let mut stream = Stream::open(addr, "/channels/quiet");
    let peak = Peak::watch(server.server.pid());
    let hello = server.hello();
    let mut begun = Vec::new();
    let ((), waited) = bystander(addr, || {
        for n in 0..9_000 {
            let Ok(socket) = TcpStream::connect(server.tls) else { continue };
            // Closed as it comes, once all is taken.
            let _ = (&socket).write_all(&hello);
            begun.push(socket);
            if n % 250 == 0 && pressures(&server.server).iter().any(|pressure| pressure == "spent") {
                break;
            }
        }
    });
    assert!(waited < AT_ONCE, "{waited:?}");
    server.server.wait_log(|line| field(line, "pressure").as_deref() == Some("full"));
    let (most, _) = peak.end();
    assert!(most <= BUDGET + SLACK, "{} KiB", most / KIB);
    kept.request("DELETE", "/channels/quiet", &[], "").expect(204);
    stream.event().named("$gap");
    drop(begun);
    recovers(addr);
}

#[test]
fn what_tokens_grant_is_part_of_it() {
    let server = server(&["--set", KEYS, "--set", "admin.listen=127.0.0.1:0"]);
    let addr = server.addr();
    let patterns: Vec<String> = (0..400).map(|at| format!("c{at:06}/x")).collect();
    let mut patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    patterns.push("**");
    let honest = token::bearer(&token::of("bert").sign());
    let headers = [("Authorization", &*honest), ("Content-Type", "text/plain")];
    let peak = Peak::watch(server.pid());
    let mut streams = Vec::new();
    let mut greedy = token::of("anna").subscribe(&patterns);
    for id in 0..4_000 {
        greedy = greedy.with("jti", id.to_string());
        let token = token::bearer(&greedy.clone().sign());
        let mut conn = Conn::open(addr);
        conn.send("GET", "/channels/news", &[("Authorization", &token), ("Accept", "text/event-stream")], "");
        // Refused or not: it is open, and counts.
        streams.push(conn);
        if id % 500 == 0 {
            // Those go that hold most: for the others it is over in a moment.
            until("it is published", || {
                let answer = ask(addr, "POST", "/channels/news", &headers, "well");
                (answer.status == 201).then_some(())
            });
        }
    }
    within(peak);
    let metrics = Metrics::scrape(addr_of(&server));
    assert!(metrics.sum("pushline_connections_closed_total", &[("reason", "full")]) > 0.0);
    assert!(pressures(&server).iter().all(|pressure| pressure != "spent"), "{:?}", pressures(&server));
}
