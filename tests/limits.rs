//! Deadlines and limits of connections: those who are slow, idle or too many.

use crate::common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::access::{ACCESS_LOG, AccessLog};
use common::admin::{Metrics, addr_of};
use common::cost::cpu;
use common::http::{
    AT_ONCE, Conn, End, Poll, Response, ask, get, head_cursor, poll, publish, published, timed,
};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::until;
use serde_json::Value;

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

/// Started with few, a worker takes what leaves it enough for itself.
#[test]
fn as_many_connections_as_open_files_allow() {
    // However the kernel spreads them over workers that share a table.
    for (files, workers, room) in [("100", "1", 100 - 64), ("200", "2", 200 - 128), ("360", "4", 360 - 256)] {
        let ulimit = ["prlimit", &format!("--nofile={files}:{files}")];
        let mut args = vec!["--listen", "127.0.0.1:0", "--workers", workers, "--files", "shared"];
        args.extend(["--set", "admin.listen=127.0.0.1:0"]);
        let server = Server::start_under(&ulimit, &args);
        let served: Vec<Conn> = (0..room + 24).filter_map(|_| served(server.addr())).collect();
        assert_eq!(served.len(), room, "{files} for {workers}");
        let metrics = Metrics::scrape(addr_of(&server));
        assert_eq!(metrics.sum("pushline_refusals_total", &[("reason", "connections")]), 24.0);
        assert_eq!(metrics.sum("pushline_refusals_total", &[]), 24.0);
        server.wait_log(|line| {
            message_of(line).is_some_and(|said| said.starts_with("connections are refused"))
        });
    }
}

/// Of 300 connections none is refused under the limit on open files that `pushline doctor` asks for.
#[test]
fn the_open_files_that_the_doctor_asks_for_are_enough() {
    for (files, workers) in [("shared", "2"), ("per-worker", "4")] {
        let shape = ["--workers", workers, "--files", files, "--set", "limits.connections=300"];
        let mut doctor = std::process::Command::new(env!("CARGO_BIN_EXE_pushline"));
        for (variable, _) in std::env::vars().filter(|(name, _)| name.starts_with("PUSHLINE_")) {
            doctor.env_remove(variable);
        }
        doctor.args(["doctor", "--json"]).args(shape).current_dir(env!("CARGO_TARGET_TMPDIR"));
        let told = doctor.output().expect("it runs");
        let report: Value = serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
        let says = report["findings"].as_array().and_then(|findings| {
            findings.iter().find(|finding| finding["name"] == "open files")?["says"].as_str()
        });
        let needed = says.and_then(|says| says.rsplit_once("; ")?.1.strip_suffix(" needed"));
        let limit = format!("--nofile={0}:{0}", needed.expect("a number"));
        let server =
            Server::start_under(&["prlimit", &limit], &[&["--listen", "127.0.0.1:0"], &shape[..]].concat());
        let served = (0..300).filter_map(|_| served(server.addr())).collect::<Vec<_>>();
        assert_eq!(served.len(), 300, "{files}, {limit}");
    }
}

/// A connection that is served; `None`: it was closed without an answer.
fn served(addr: SocketAddr) -> Option<Conn> {
    let mut conn = Conn::try_open(addr).ok()?;
    conn.try_send("GET", "/healthz", &[], "").ok()?;
    let answer = conn.try_read_response();
    assert!(conn.ahead().is_empty(), "{:?}", String::from_utf8_lossy(conn.ahead()));
    answer.ok().map(|answer| drop(answer.expect(200)))?;
    Some(conn)
}

/// The table of open files is full, for something else has taken what was left: whoever comes is closed and told so by
/// that, whoever is there is served, and when some leave others may come.
#[test]
fn when_open_files_run_out_newcomers_are_closed_and_the_others_served() {
    for (files, workers) in [("shared", "1"), ("shared", "2"), ("per-worker", "2")] {
        let mut args = vec!["--workers", workers, "--files", files, "--set", "admin.listen=127.0.0.1:0"];
        args.extend(ACCESS_LOG);
        let server = Server::start(&args);
        let addr = server.addr();
        let mut operator = Conn::open(addr_of(&server));
        let mut refusals = |reason: Option<&str>| {
            let labels: Vec<(&str, &str)> = reason.iter().map(|reason| ("reason", *reason)).collect();
            Metrics::of(&operator.get("/metrics")).sum("pushline_refusals_total", &labels)
        };
        let mut stream = Stream::open(addr, "/channels/there");
        let mut there: Vec<Conn> = (0..20).map(|_| served(addr).expect("there is room")).collect();
        open_files(server.pid(), leaving_room_for(4, server.pid()));
        let mut refused = 0;
        // When some leave there is room for as many, and it runs out again.
        for turn in 0..3 {
            let began = (Instant::now(), cpu(server.pid()));
            let before = refused;
            until("it runs out", || {
                match served(addr) {
                    Some(conn) => there.push(conn),
                    None => refused += 1,
                }
                (refused == before + 5).then_some(())
            });
            let (took, used) = (began.0.elapsed(), cpu(server.pid()) - began.1);
            assert!(used < took / 2 + Duration::from_millis(200), "{used:?} of CPU in {took:?}");
            until("it is counted", || (refusals(Some("files")) == f64::from(refused)).then_some(()));
            assert_eq!(refusals(None), f64::from(refused), "and as nothing else");
            for conn in &mut there {
                conn.get("/healthz").expect(200);
            }
            let text = format!("{files} {turn}");
            published(&there[0].request("POST", "/channels/there", &[("Content-Type", "text/plain")], &text));
            assert_eq!(stream.message().data, text);
            there.truncate(10);
        }
        let log = AccessLog::of(&server);
        until("each has its line", || {
            let fits = |line: &Value| line["type"] == "refused" && line["reason"] == "full";
            (log.lines().iter().filter(|line| fits(line)).count() == refused as usize).then_some(())
        });
        until("newcomers are served", || served(addr));
    }
}

/// From now on the process may have no descriptor of this number, or above.
#[allow(unsafe_code)]
fn open_files(pid: u32, max: u64) {
    let limit = libc::rlimit { rlim_cur: max, rlim_max: max };
    let pid = i32::try_from(pid).expect("a pid");
    // SAFETY: `limit` lives through the call, and the old one is not asked for.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "prlimit: {}", std::io::Error::last_os_error());
}

/// The limit on open files that leaves room for so many in the fullest of its tables.
fn leaving_room_for(files: usize, pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a running process").flatten();
    let tables = tasks.filter_map(|task| std::fs::read_dir(task.path().join("fd")).ok());
    let limits = tables.map(|table| {
        let open: Vec<u64> =
            table.flatten().filter_map(|file| file.file_name().to_string_lossy().parse().ok()).collect();
        (0..).filter(|number| !open.contains(number)).nth(files).expect("numbers have no end")
    });
    limits.max().expect("a thread")
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
