//! `/metrics`: every number against what the test did, on all transports, with one worker and with four.

use crate::common;

use std::net::SocketAddr;

use common::admin::{Metrics, addr_of, json};
use common::http::{Conn, Poll, ask, get, head_cursor, poll, publish};
use common::server::Server;
use common::sse::Stream;
use common::ws::{CLOSE, Socket, V1};
use common::{receive_buffer, until};

const WORKERS: [&str; 2] = ["1", "4"];

fn start(workers: &str, more: &[&str]) -> (Server, SocketAddr) {
    let mut args = vec!["--workers", workers, "--set", "admin.listen=127.0.0.1:0"];
    args.extend(more);
    let server = Server::start(&args);
    let admin = addr_of(&server);
    (server, admin)
}

/// A metric, labels, and the sum of all series that have them.
type Wanted<'w> = (&'w str, &'w [(&'w str, &'w str)], f64);

/// Scrapes until the numbers are as they should be: a client may see its bytes before the worker has counted them.
#[track_caller]
fn settled(admin: SocketAddr, wanted: &[Wanted<'_>]) -> Metrics {
    let differs = |metrics: &Metrics| {
        wanted.iter().find(|(name, labels, want)| metrics.sum(name, labels) != *want).map(
            |(name, labels, want)| {
                format!("{name} {labels:?}: {} in place of {want}", metrics.sum(name, labels))
            },
        )
    };
    let end = std::time::Instant::now() + common::DEADLINE;
    loop {
        let metrics = Metrics::scrape(admin);
        let Some(differs) = differs(&metrics) else { return metrics };
        assert!(std::time::Instant::now() < end, "{differs}\n{}", metrics.text);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn readers_messages_and_bytes_of_all_transports() {
    for workers in WORKERS {
        let (server, admin) = start(workers, &[]);
        let addr = server.addr();
        let cursor = head_cursor(addr, "news");
        let mut streams =
            [Stream::open(addr, "/channels/news"), Stream::open(addr, "/channels/news?envelope=1")];
        let mut raw = Socket::open(addr, "/channels/news");
        let (mut v1, _) = V1::subscribed(addr, "news");
        let mut held = Conn::open(addr);
        held.send("GET", &format!("/channels/news?cursor={cursor}&wait=50"), &[], "");
        // Several messages of a stream of two channels have bytes of their own.
        let mut both = Stream::open(addr, "/channels/news,other");
        settled(
            admin,
            &[
                ("pushline_connections", &[("transport", "sse")], 3.0),
                ("pushline_connections", &[("transport", "websocket")], 1.0),
                ("pushline_connections", &[("transport", "pushline.v1")], 1.0),
                ("pushline_connections", &[("transport", "long_poll")], 1.0),
                ("pushline_readers", &[("transport", "sse")], 4.0),
                ("pushline_readers", &[("transport", "websocket")], 1.0),
                ("pushline_readers", &[("transport", "pushline.v1")], 1.0),
                ("pushline_readers", &[("transport", "long_poll")], 1.0),
                ("pushline_deliveries_total", &[], 0.0),
                ("pushline_messages_published_total", &[], 0.0),
            ],
        );

        for text in ["one", "three", "seventeen bytes !"] {
            publish(addr, "news", text);
            for stream in &mut streams {
                stream.message();
            }
            both.message();
            assert_eq!(raw.expect_text(), text);
            v1.expect("message");
            // Held until there is a message; with another one behind it, both might be in one answer.
            if text == "one" {
                assert_eq!(Poll::of(&held.read_response()).messages.len(), 1);
            }
        }
        assert_eq!(poll(addr, "/channels/news?limit=3").messages.len(), 3);

        let metrics = settled(
            admin,
            &[
                ("pushline_messages_published_total", &[], 3.0),
                ("pushline_published_bytes_total", &[], 25.0),
                ("pushline_deliveries_total", &[("transport", "sse")], 9.0),
                ("pushline_deliveries_total", &[("transport", "websocket")], 3.0),
                ("pushline_deliveries_total", &[("transport", "pushline.v1")], 3.0),
                ("pushline_deliveries_total", &[("transport", "long_poll")], 1.0),
                ("pushline_deliveries_total", &[("transport", "http")], 3.0),
                // Each message was read by all before the next came.
                ("pushline_fanout_sends_total", &[], 15.0),
                ("pushline_fanout_short_sends_total", &[], 0.0),
                ("pushline_connections", &[("transport", "long_poll")], 0.0),
                ("pushline_connections_opened_total", &[("transport", "long_poll")], 1.0),
                ("pushline_connections_opened_total", &[("transport", "sse")], 3.0),
                ("pushline_readers", &[("transport", "long_poll")], 0.0),
                ("pushline_readers_behind", &[], 0.0),
                ("pushline_lag_messages", &[], 0.0),
                ("pushline_connections_blocked", &[], 0.0),
                ("pushline_owed_bytes", &[], 0.0),
                ("pushline_history_messages", &[], 3.0),
                // `news`, and `other`, which was asked for.
                ("pushline_channels", &[], 2.0),
                ("pushline_panics_total", &[], 0.0),
                ("pushline_ready", &[], 1.0),
                ("pushline_worker_up", &[], workers.parse().expect("a number")),
                ("pushline_workers", &[], workers.parse().expect("a number")),
            ],
        );
        // Frames of the raw WebSocket: two bytes of head each.
        assert!(metrics.sum("pushline_sent_bytes_total", &[("transport", "websocket")]) >= 25.0 + 6.0);
        assert!(metrics.sum("pushline_history_bytes", &[]) > 25.0);
        assert!(metrics.sum("pushline_feed_bytes", &[]) > 25.0);
        assert!(metrics.sum("pushline_feeds", &[]) >= 1.0);
        // One pass for each message on each worker with readers: every one was timed, and none twice.
        let passes = metrics.sum("pushline_fanout_pass_seconds_count", &[]);
        assert!((3.0..=18.0).contains(&passes), "{passes}");
        for name in ["first", "last"] {
            let family = |part: &str| format!("pushline_publish_to_{name}_write_seconds_{part}");
            let count = metrics.sum(&family("count"), &[]);
            assert_eq!(count, passes);
            assert_eq!(metrics.sum(&family("bucket"), &[("le", "+Inf")]), count);
            let sum = metrics.sum(&family("sum"), &[]);
            assert!(sum > 0.0 && sum < 60.0, "{sum}");
        }
        let (first, last) =
            ("pushline_publish_to_first_write_seconds_sum", "pushline_publish_to_last_write_seconds_sum");
        assert!(metrics.sum(first, &[]) <= metrics.sum(last, &[]));
        assert!(metrics.sum("process_resident_memory_bytes", &[]) > 1e6);
        let mut names: Vec<String> =
            (0..workers.parse().expect("a number")).map(|worker: usize| worker.to_string()).collect();
        names.sort();
        assert_eq!(metrics.values("pushline_connections_accepted_total", "worker"), names);
        assert!(metrics.text.contains("# UNIT pushline_sent_bytes bytes\n"));
        assert!(metrics.text.contains(concat!(
            "pushline_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1\n"
        )));
    }
}

#[test]
fn connections_that_ended_and_why() {
    for workers in WORKERS {
        let (server, admin) = start(workers, &["--set", "timeouts.idle_seconds=0.3"]);
        let addr = server.addr();
        let stream = Stream::open(addr, "/channels/a");
        let mut raw = Socket::open(addr, "/channels/a");
        let mut v1 = V1::open(addr, "/channels/a");
        drop(stream);
        raw.close(1000, "");
        raw.expect_close(1000);
        // Not UTF-8.
        v1.socket.send_raw(common::ws::masked(true, common::ws::TEXT, &[0xff]));
        while v1.socket.frame().is_some_and(|frame| frame.opcode != CLOSE) {}
        drop((raw, v1));
        let mut idle = Conn::open(addr);
        idle.get("/healthz").expect(200);
        idle.eof();
        let closed = "pushline_connections_closed_total";
        let metrics = settled(
            admin,
            &[
                (closed, &[("transport", "sse")], 1.0),
                (closed, &[("transport", "websocket"), ("reason", "asked")], 1.0),
                (closed, &[("transport", "pushline.v1"), ("reason", "invalid_utf8")], 1.0),
                (closed, &[("transport", "http"), ("reason", "idle")], 1.0),
                (closed, &[], 4.0),
                ("pushline_connections_accepted_total", &[], 4.0),
                ("pushline_connections", &[], 0.0),
            ],
        );
        // All reasons are there before they happen.
        assert_eq!(metrics.sum(closed, &[("transport", "sse"), ("reason", "kicked")]), 0.0);
    }
}

#[test]
fn answers_by_status_and_refusals_by_reason() {
    for workers in WORKERS {
        let (server, admin) = start(workers, &["--set", "limits.connections=3"]);
        let addr = server.addr();
        let mut conn = Conn::open(addr);
        conn.get("/healthz").expect(200);
        let etag = conn.get("/channels/a").header("etag").to_owned();
        conn.request("GET", "/channels/a", &[("If-None-Match", &etag)], "").expect(304);
        conn.request("POST", "/channels/a", &[], "x").expect(201);
        conn.get("/nowhere").problem(404);
        conn.request("GET", "/channels/a", &[("Origin", "https://evil.example")], "").problem(403);
        conn.request("OPTIONS", "*", &[], "").expect(204);
        let mut bad = Conn::open(addr);
        bad.send_raw("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
        bad.expect_answer_to("GET");
        bad.read_response().problem(400);
        drop(bad);
        let refused = "pushline_refusals_total";
        settled(
            admin,
            &[
                ("pushline_requests_total", &[("status", "2xx")], 4.0),
                ("pushline_requests_total", &[("status", "3xx")], 1.0),
                ("pushline_requests_total", &[("status", "4xx")], 3.0),
                ("pushline_requests_total", &[("status", "5xx")], 0.0),
                (refused, &[("reason", "origin")], 1.0),
                (refused, &[("reason", "bad_request")], 1.0),
                (refused, &[], 2.0),
                ("pushline_connections", &[], 1.0),
                ("pushline_connections_limit", &[], 3.0),
            ],
        );
        // A stream's head is an answer, and a switch of protocols is another.
        let stream = Stream::open(addr, "/channels/a");
        let raw = Socket::open(addr, "/channels/a");
        let mut beyond = Conn::open(addr);
        beyond.eof();
        settled(
            admin,
            &[
                ("pushline_requests_total", &[("status", "1xx")], 1.0),
                ("pushline_requests_total", &[("status", "2xx")], 5.0),
                (refused, &[("reason", "connections")], 1.0),
            ],
        );
        drop((stream, raw));
    }
}

#[test]
fn who_is_behind_and_blocked() {
    for workers in WORKERS {
        let more = ["--set", "history.messages=100000", "--set", "slow.kernel_bytes=66560"];
        let (server, admin) = start(workers, &more);
        let addr = server.addr();
        let mut stopped = Stream::open(addr, "/channels/a");
        receive_buffer(stopped.conn().stream(), 4_096);
        let mut reads = Stream::open(addr, "/channels/a");
        let text = "x".repeat(60_000);
        let mut published = 0;
        let metrics = until("a stopped reader is blocked", || {
            publish(addr, "a", &text);
            reads.message();
            published += 1;
            let metrics = Metrics::scrape(admin);
            let behind = metrics.sum("pushline_readers_behind", &[]);
            (metrics.sum("pushline_connections_blocked", &[]) == 1.0 && behind == 1.0).then_some(metrics)
        });
        let lag = metrics.sum("pushline_lag_messages", &[]);
        assert!(lag >= 1.0 && lag <= f64::from(published), "{lag}");
        assert_eq!(metrics.sum("pushline_lag_messages_max", &[]), lag);
        assert!(metrics.sum("pushline_fanout_short_sends_total", &[]) >= 1.0);
        // Messages that it has not begun to take are no deliveries.
        let delivered = f64::from(2 * published) - lag;
        settled(admin, &[("pushline_deliveries_total", &[("transport", "sse")], delivered)]);
        let list = json(admin, "/connections?lag=1");
        assert_eq!(list["connections"].as_array().map(Vec::len), Some(1), "{list}");
        assert!(list["connections"][0]["blocked_seconds"].is_number(), "{list}");
        assert_eq!(list["connections"][0]["lag_messages"], lag as u64);
        drop(stopped);
        settled(
            admin,
            &[
                ("pushline_connections_blocked", &[], 0.0),
                ("pushline_readers_behind", &[], 0.0),
                ("pushline_owed_bytes", &[], 0.0),
                ("pushline_connections", &[("transport", "sse")], 1.0),
            ],
        );
    }
}

#[test]
fn a_scrape_is_for_get_alone() {
    let (server, admin) = start("1", &[]);
    let answer = ask(admin, "POST", "/metrics", &[], "");
    answer.problem(405);
    assert!(answer.lists("allow", "GET"), "{answer}");
    let head = ask(admin, "HEAD", "/metrics", &[], "").expect(200);
    assert!(head.body.is_empty());
    get(admin, "/metrics").expect(200);
    drop(server);
}
