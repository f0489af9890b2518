//! Deadlines and limits of connections: those who are slow, idle or too many.

use crate::common;

use std::time::Duration;

use common::http::{AT_ONCE, Conn, End, Poll, Response, ask, get, head_cursor, poll, publish, timed};
use common::server::{Server, field, message_of};
use common::until;

#[test]
fn a_slow_head_is_408() {
    let server = Server::start(&["--set", "timeouts.head_seconds=0.5", "--set", "timeouts.idle_seconds=60"]);
    let mut first = Conn::open(server.addr());
    let mut kept = Conn::open(server.addr());
    kept.get("/healthz").expect(200);
    for conn in [&mut first, &mut kept] {
        let (answer, took) = timed(|| {
            // Trickling does not extend it: the deadline is of the whole head.
            for byte in b"GET /healthz HT" {
                if conn.try_send_raw([*byte]).is_err()
                    || conn.end_within(Duration::from_millis(60)) != End::Open
                {
                    break;
                }
            }
            conn.read_response()
        });
        answer.problem(408);
        assert!(answer.closes(), "{answer}");
        conn.eof();
        assert!(took < AT_ONCE, "{took:?}");
    }
}

#[test]
fn an_idle_connection_is_just_closed() {
    let server = Server::start(&["--set", "timeouts.head_seconds=60", "--set", "timeouts.idle_seconds=0.5"]);
    let mut fresh = Conn::open(server.addr());
    let mut kept = Conn::open(server.addr());
    kept.get("/healthz").expect(200);
    fresh.eof();
    kept.eof();
    // And where the head's deadline is the shorter one, no first byte is still no 408.
    let server = Server::start(&["--set", "timeouts.head_seconds=0.5", "--set", "timeouts.idle_seconds=1"]);
    Conn::open(server.addr()).eof();
}

/// Whether the time is shorter or longer than the clock's task sleeps where nothing is due.
#[test]
fn an_idle_connection_is_closed_in_its_time() {
    // Deadlines are looked at once in a tick of 100 ms.
    let early_max = Duration::from_millis(100);
    let late_max = Duration::from_millis(300);
    for seconds in [0.3, 1.4] {
        let idle = Duration::from_secs_f64(seconds);
        let server = Server::start(&["--set", &format!("timeouts.idle_seconds={seconds}")]);
        let closed_late = |asks: bool| {
            let mut conn = Conn::open(server.addr());
            let ((), asked) = timed(|| {
                if asks {
                    conn.get("/healthz").expect(200);
                }
            });
            let ((), silent) = timed(|| conn.eof());
            assert!(
                asked + silent + early_max >= idle,
                "closed {silent:?} after its answer, before {idle:?}"
            );
            silent.saturating_sub(idle)
        };
        for asks in [false, true] {
            // A machine under load is late now and then, not every time.
            let in_time = (0..5).any(|_| closed_late(asks) < late_max);
            assert!(in_time, "{idle:?}, after an answer: {asks}: late five times");
        }
    }
}

/// A long answer on its way is no silence, however short `timeouts.idle_seconds` is; silence begins after it.
#[test]
fn an_answer_that_is_read_slowly_comes_whole() {
    let server = Server::start(&["--set", "timeouts.idle_seconds=0.3", "--set", "history.bytes=8388608"]);
    let addr = server.addr();
    let text = "x".repeat(60_000);
    for _ in 0..50 {
        publish(addr, "fat", &text);
    }
    let mut slow = Conn::open(addr);
    common::receive_buffer(slow.stream(), 65_536);
    slow.get("/healthz").expect(200);
    slow.send("GET", "/channels/fat?limit=50", &[], b"");
    for _ in 0..3 {
        Conn::open(addr).eof();
    }
    assert_eq!(Poll::of(&slow.read_response()).messages.len(), 50);
    slow.get("/healthz").expect(200);
    let ((), silent) = timed(|| slow.eof());
    assert!(silent < Duration::from_secs(5), "closed {silent:?} after its last answer");
}

#[test]
fn a_slow_body_is_408() {
    let server = Server::start(&["--set", "timeouts.body_seconds=0.5"]);
    for head in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        let mut conn = Conn::open(server.addr());
        conn.send_raw(format!("POST /channels/slow HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n3"));
        let answer = conn.read_response();
        answer.problem(408);
        assert!(answer.closes(), "{head}: {answer}");
        conn.eof();
    }
    assert!(poll(server.addr(), "/channels/slow").messages.is_empty());
}

#[test]
fn the_head_limit_is_configured() {
    let server = Server::start(&["--set", "limits.head_bytes=1024"]);
    let padding = "x".repeat(900);
    ask(server.addr(), "GET", "/healthz", &[("X-Padding", &padding)], "").expect(200);
    let padding = "x".repeat(1024);
    let mut conn = Conn::open(server.addr());
    let answer = conn.request("GET", "/healthz", &[("X-Padding", &padding)], "");
    answer.problem(431);
    assert!(answer.closes(), "{answer}");
    conn.eof();
}

#[test]
fn over_the_connection_limit_closed_without_an_answer() {
    // However unevenly the kernel spreads them among workers.
    let server = Server::start(&["--set", "limits.connections=12", "--workers", "4"]);
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..48 {
        // A refusal closes with RST where bytes were sent, so nothing is sent before the connection proves refused.
        let Ok(mut conn) = Conn::try_open(server.addr()) else {
            refused += 1;
            continue;
        };
        let _ = conn.try_send_raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        match conn.try_read_response() {
            Ok(answer) => open.push((conn, answer.expect(200))),
            Err(_) => {
                assert!(conn.ahead().is_empty(), "{:?}", String::from_utf8_lossy(conn.ahead()));
                refused += 1;
            }
        }
    }
    assert_eq!(open.len(), 12);
    assert_eq!(open.len() + refused, 48);
    // The log says so once, and how many.
    let told = server
        .wait_log(|line| message_of(line).is_some_and(|said| said.starts_with("connections are refused")));
    assert_eq!(field(&told, "level").as_deref(), Some("WARN"), "{told}");
    assert!(field(&told, "refused").is_some_and(|count| (1..=36).contains(&count.parse().unwrap_or(0))));
    // Those inside it go on; places are given again.
    for (conn, _) in &mut open {
        conn.get("/healthz").expect(200);
    }
    open.clear();
    until("a place is free again", || {
        let mut conn = Conn::try_open(server.addr()).ok()?;
        conn.try_send_raw("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
        conn.try_read_response().ok().filter(|answer: &Response| answer.status == 200)
    });
}

#[test]
fn a_client_that_reads_late_gets_all_its_answers() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let text = "x".repeat(60_000);
    for _ in 0..4 {
        publish(addr, "fat", &text);
    }
    // Answers of megabytes pile up unread; the server keeps serving others, and this one when it reads.
    let mut lazy = Conn::open(addr);
    let request = common::http::wire(addr, "GET", "/channels/fat?limit=4", &[], b"");
    let pipelined: Vec<u8> = request.repeat(60);
    lazy.send_raw(&pipelined);
    for _ in 0..20 {
        get(addr, "/healthz").expect(200);
    }
    for _ in 0..60 {
        assert_eq!(Poll::of(&lazy.read_response()).messages.len(), 4);
    }
    let cursor = head_cursor(addr, "fat");
    let answer = lazy.get(&format!("/channels/fat?cursor={cursor}"));
    assert!(Poll::of(&answer).messages.is_empty());
}
