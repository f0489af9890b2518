//! The operator's listener: who may look in, what is told of channels and connections, how one is ended; that it is of no
//! worker, and ends with the node.

use crate::common;
mod connections;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use common::admin::{addr_of, json, json_with, listen_of};
use common::http::{Conn, ask, get, head_cursor, post, publish};
use common::server::{Server, field};
use common::sse::Stream;
use common::token;
use common::ws::{Socket, V1};
use common::{receive_buffer, until};

const ADMIN: [&str; 2] = ["--set", "admin.listen=127.0.0.1:0"];
const WORKERS: [&str; 2] = ["1", "4"];

fn start(more: &[&str]) -> (Server, SocketAddr) {
    let mut args = ADMIN.to_vec();
    args.extend(more);
    let server = Server::start(&args);
    let admin = addr_of(&server);
    (server, admin)
}

fn hex(token: &str) -> String {
    Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect()
}

// --- Who may look in --------------------------------------------------------------------------------------------------

#[test]
fn nothing_listens_unless_it_is_configured() {
    let server = Server::start(&[]);
    assert!(!server.log().iter().any(|line| line.contains("\"admin\"")));
    get(server.addr(), "/metrics").problem(404);
    get(server.addr(), "/connections").problem(404);
}

#[test]
fn the_token_is_asked_for_and_probes_need_none() {
    let digest = format!("admin.token_sha256={}", hex("open sesame"));
    let (_server, admin) = start(&["--set", &digest]);
    for path in ["/metrics", "/channels", "/connections", "/connections/x", "/nowhere"] {
        let answer = get(admin, path);
        assert!(answer.problem(401).contains("admin.token_sha256"), "{answer}");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{answer}");
        let wrong = ask(admin, "GET", path, &[("Authorization", "Bearer open sesam")], "");
        wrong.problem(401);
    }
    ask(admin, "GET", "/metrics", &[("Authorization", "Bearer open sesame")], "").expect(200);
    ask(admin, "DELETE", "/connections/x", &[], "").problem(401);
    get(admin, "/healthz").expect(200);
    get(admin, "/readyz").expect(200);
}

#[test]
fn pages_in_a_browser_are_kept_out() {
    let (_server, admin) = start(&[]);
    let port = admin.port();
    for (what, headers) in [
        ("rebinding", vec![("Host", "evil.example")]),
        ("rebinding with the port", vec![("Host", "evil.example:9180")]),
        ("its own origin", vec![("Origin", "http://127.0.0.1:9180")]),
        ("a sandbox", vec![("Origin", "null")]),
        ("an image", vec![("Sec-Fetch-Site", "cross-site")]),
    ] {
        for path in ["/metrics", "/connections", "/healthz"] {
            let answer = ask(admin, "GET", path, &headers, "");
            answer.problem(403);
            assert_eq!(answer.get("access-control-allow-origin"), None, "{what}: {answer}");
        }
    }
    ask(admin, "OPTIONS", "/connections", &[("Origin", "https://evil.example")], "").problem(403);
    for host in [format!("localhost:{port}"), format!("[::1]:{port}"), "127.0.0.1".to_owned()] {
        ask(admin, "GET", "/metrics", &[("Host", &host)], "").expect(200);
    }
}

#[test]
fn what_is_asked_wrongly_is_told_how_to_ask() {
    let (_server, admin) = start(&[]);
    for (target, status, why) in [
        ("/nowhere", 404, "/connections"),
        ("/channels?limit=0", 400, "1 to 1000"),
        ("/channels?limit=x", 400, "limit"),
        ("/channels?sort=size", 400, "sort"),
        ("/channels?sort=rate&after=a", 400, "sort=name"),
        ("/channels?prefx=a", 400, "prefx"),
        ("/connections?transport=telnet", 400, "long_poll"),
        ("/connections?address=localhost", 400, "10.0.0.0/8"),
        ("/connections?channel=a//b", 400, "segment"),
        ("/connections?after=x", 400, "next"),
        ("/connections?lag=-1", 400, "lag"),
        ("/connections/nobody", 404, "connection id"),
    ] {
        let detail = get(admin, target).problem(status);
        assert!(detail.contains(why), "{target}: {detail}");
    }
    let answer = post(admin, "/channels", &[], "");
    answer.problem(405);
    assert!(answer.lists("allow", "GET"), "{answer}");
}

#[test]
fn a_bad_address_is_refused_at_start() {
    let refused = Server::refused(&["--listen", "127.0.0.1:0", "--set", "admin.listen=0.0.0.0:0"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("set admin.token_sha256"), "{}", refused.stderr);
    let (_server, admin) = start(&[]);
    let same = format!("admin.listen={admin}");
    let refused = Server::refused(&["--listen", "127.0.0.1:0", "--set", &same]);
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("is taken") && refused.stderr.contains("--takeover"),
        "{}",
        refused.stderr
    );
    let refused =
        Server::refused(&["--listen", "127.0.0.1:0", "--set", "admin.listen=unix:/nowhere/at/all/a.sock"]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("cannot listen on admin.listen"), "{}", refused.stderr);
}

/// One request over a unix socket; the whole answer.
fn ask_unix(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).expect("somebody listens");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn a_unix_socket_is_of_one_user_and_goes_with_the_node() {
    let folder = std::env::temp_dir().join(format!("pushline-admin-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a directory");
    let path = folder.join("admin.sock");
    // Left by a process that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket"));
    let listen = format!("admin.listen=unix:{}", path.display());
    let mut server = Server::start(&["--set", &listen]);
    assert_eq!(listen_of(&server), format!("unix:{}", path.display()));
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = ask_unix(&path, "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = ask_unix(&path, "GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");

    let refused = Server::refused(&["--listen", "127.0.0.1:0", "--set", &listen]);
    assert!(refused.stderr.contains("is taken"), "{}", refused.stderr);
    assert!(path.exists(), "who was refused leaves it alone");
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
    assert!(!path.exists(), "the file is gone with the node");
    std::fs::remove_dir_all(&folder).expect("its own directory");
}

// --- Its life ---------------------------------------------------------------------------------------------------------

#[test]
fn readiness_ends_before_the_node_does() {
    let (mut server, admin) = start(&["--set", "drain.window_seconds=3"]);
    let addr = server.addr();
    get(addr, "/readyz").expect(200);
    assert_eq!(json(admin, "/readyz"), json!({ "status": "serving" }));
    assert_eq!(json(admin, "/healthz"), json!({ "status": "ok" }));
    let mut stream = Stream::open(addr, "/channels/a");
    server.signal(libc::SIGTERM);
    let detail = until("it is not ready", || {
        let answer = get(admin, "/readyz");
        (answer.status == 503).then(|| answer.problem(503))
    });
    assert!(detail.contains("stopping"), "{detail}");
    // Operators look on while clients are told to leave.
    get(admin, "/healthz").expect(200);
    let metrics = common::admin::Metrics::scrape(admin);
    assert_eq!(metrics.sum("pushline_ready", &[]), 0.0);
    stream.event().named("$close");
    drop(stream);
    assert_eq!(server.wait_exit(), 0);
    assert!(TcpStream::connect(admin).is_err(), "it ends with the node");
}

/// The inode of the socket that listens on a port.
fn listening_inode(port: u16) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let local = format!(":{port:04X}");
    let line = table.lines().skip(1).find(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        columns[1].ends_with(&local) && columns[3] == "0A"
    });
    line.expect("somebody listens").split_ascii_whitespace().nth(9).expect("an inode").to_owned()
}

/// A worker that had the operator's socket would keep it open when it is closed, and count it as its own.
#[test]
fn no_worker_has_a_descriptor_of_it() {
    let (server, admin) = start(&["--files", "per-worker", "--workers", "2"]);
    get(admin, "/metrics").expect(200);
    let socket = format!("socket:[{}]", listening_inode(admin.port()));
    let mut threads = Vec::new();
    for task in
        std::fs::read_dir(format!("/proc/{}/task", server.pid())).expect("a running process").flatten()
    {
        let name = std::fs::read_to_string(task.path().join("comm")).expect("a name").trim().to_owned();
        let fds = std::fs::read_dir(task.path().join("fd")).expect("descriptors").flatten();
        let has = fds
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|link| link.to_string_lossy() == socket);
        threads.push((name, has));
    }
    let of = |start: &str| {
        threads.iter().filter(|(name, _)| name.starts_with(start)).map(|(_, has)| *has).collect::<Vec<_>>()
    };
    assert_eq!((of("admin"), of("worker-")), (vec![true], vec![false, false]), "{threads:?}");
}

/// Requests of operators while workers have tables of their own: nothing is ever written to a client's descriptor.
#[test]
fn what_workers_answer_reaches_no_client() {
    let (server, admin) = start(&["--files", "per-worker", "--workers", "2"]);
    let mut streams: Vec<Stream> = (0..40).map(|_| Stream::open(server.addr(), "/channels/a")).collect();
    for _ in 0..50 {
        get(admin, "/metrics").expect(200);
        assert_eq!(json(admin, "/connections")["connections"].as_array().map(Vec::len), Some(40));
    }
    publish(server.addr(), "a", "the first bytes since");
    for stream in &mut streams {
        assert_eq!(stream.message().data, "the first bytes since");
    }
}

#[test]
fn a_successor_takes_the_address() {
    let listen = |addr: SocketAddr| format!("admin.listen={addr}");
    let window = ["--set", "drain.window_seconds=2"];
    let (mut old, admin) = start(&window);
    let mut stream = Stream::open(old.addr(), "/channels/a");
    let address = old.addr().to_string();
    let new = Server::start_bare(&["--listen", &address, "--takeover", "--set", &listen(admin)]);
    assert_eq!(addr_of(&new), admin);
    // Only the successor is ready: that all answers say so means that it has the address alone.
    until("the successor alone answers", || {
        (0..20).all(|_| get(admin, "/readyz").status == 200).then_some(())
    });
    stream.event().named("$close");
    drop(stream);
    assert_eq!(old.wait_exit(), 0);
    assert_eq!(json(admin, "/readyz"), json!({ "status": "serving" }));
}

/// One that fails to start after it has made ready to listen takes nothing; one that starts takes all, and keeps it. The
/// operator is answered all the time.
#[test]
fn a_successor_that_cannot_start_takes_no_address() {
    let ready = "GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let folder = std::env::temp_dir().join(format!("pushline-admin-takeover-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a directory");
    let path = folder.join("admin.sock");
    let unix = format!("admin.listen=unix:{}", path.display());
    for (listen, is_unix) in [(unix.as_str(), true), ("admin.listen=127.0.0.1:0", false)] {
        let window = ["--set", "drain.window_seconds=0"];
        let mut old = Server::start(&[&["--set", listen][..], &window].concat());
        let at = listen_of(&old);
        let (address, same) = (old.addr().to_string(), format!("admin.listen={at}"));
        let status = || match is_unix {
            true => {
                ask_unix(&path, ready).split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a status")
            }
            false => get(at.parse().expect("an address"), "/readyz").status,
        };
        let inode = || std::fs::metadata(&path).map(|file| file.ino()).ok();
        let before = inode();
        let takeover = ["--listen", &address, "--takeover", "--set", &same];
        // What is found out last: the access log cannot be opened, in a directory that is not there.
        let bad = [&takeover[..], &["--set", "access_log.to=/nowhere/at/all.log"]].concat();
        let (hands_over, done) = (AtomicBool::new(false), AtomicBool::new(false));
        let mut new = std::thread::scope(|scope| {
            let asked = scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let may_drain = hands_over.load(Ordering::SeqCst);
                    let status = status();
                    assert!(status == 200 || status == 503 && may_drain, "{status}");
                }
            });
            // Whatever fails below, the operator's end is awaited.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for _ in 0..3 {
                    let refused = Server::refused(&bad);
                    assert!(refused.stderr.contains("access_log.to"), "{}", refused.stderr);
                }
                assert_eq!(inode(), before, "the file is the old one's");
                let beside = std::fs::read_dir(&folder).expect("our own").count();
                assert_eq!(beside, usize::from(is_unix), "nothing lies beside it");
                hands_over.store(true, Ordering::SeqCst);
                let new = Server::start_bare(&[&takeover[..], &window].concat());
                assert_eq!(listen_of(&new), at);
                assert_eq!(old.wait_exit(), 0);
                new
            }));
            done.store(true, Ordering::SeqCst);
            asked.join().expect("each time there was an answer");
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        assert_eq!(status(), 200, "the new one answers, and the old one has left the file alone");
        assert!(!is_unix || inode() != before);
        new.signal(libc::SIGTERM);
        assert_eq!(new.wait_exit(), 0);
        assert!(!path.exists(), "the file is gone with the last");
    }
    std::fs::remove_dir_all(&folder).expect("its own directory");
}

// --- Channels ---------------------------------------------------------------------------------------------------------

fn names(list: &Value) -> Vec<&str> {
    let channels = list["channels"].as_array().expect("a list");
    channels.iter().map(|channel| channel["channel"].as_str().expect("a name")).collect()
}

#[test]
fn channels_with_their_readers_and_history() {
    for workers in WORKERS {
        let (server, admin) = start(&["--workers", workers]);
        let addr = server.addr();
        assert_eq!(json(admin, "/channels"), json!({ "channels": [], "known": 0 }));
        let mut id = String::new();
        for text in ["a", "bc", "def"] {
            id = publish(addr, "news/today", text);
        }
        publish(addr, "news/old", "x");
        publish(addr, "prices", "a longer message than the others");
        let mut streams: Vec<Stream> = (0..5).map(|_| Stream::open(addr, "/channels/news/today")).collect();
        let raw = Socket::open(addr, "/channels/news/today");
        let (v1, _) = V1::subscribed(addr, "prices");
        let cursor = head_cursor(addr, "prices");
        let mut held = Conn::open(addr);
        held.send("GET", &format!("/channels/prices?cursor={cursor}&wait=50"), &[], "");
        let list = until("all readers are there", || {
            let list = json(admin, "/channels");
            let readers = |at: usize| list["channels"][at]["readers"]["total"].as_u64();
            ((readers(1), readers(2)) == (Some(6), Some(2))).then_some(list)
        });
        assert_eq!(names(&list), ["news/old", "news/today", "prices"]);
        assert_eq!(list["known"], 3);
        let today = &list["channels"][1];
        assert_eq!(today["head"], id);
        assert_eq!(today["history"]["messages"], 3);
        assert_eq!(today["history"]["bytes"], 3 * 160 + 6);
        assert_eq!(
            today["readers"],
            json!({ "total": 6, "long_poll": 0, "sse": 5, "websocket": 1, "pushline.v1": 0 })
        );
        let prices = &list["channels"][2]["readers"];
        assert_eq!(
            prices,
            &json!({ "total": 2, "long_poll": 1, "sse": 0, "websocket": 0, "pushline.v1": 1 })
        );
        let rate = today["publishes_per_second"].as_f64().expect("a number");
        assert!(rate > 0.0 && rate <= 3.0, "{rate}");

        // Some of them, in other orders, a page at a time.
        assert_eq!(names(&json(admin, "/channels?prefix=news/")), ["news/old", "news/today"]);
        assert_eq!(names(&json(admin, "/channels?sort=readers")), ["news/today", "prices"]);
        assert_eq!(names(&json(admin, "/channels?sort=messages&limit=1")), ["news/today"]);
        assert_eq!(names(&json(admin, "/channels?sort=bytes&prefix=p")), ["prices"]);
        assert_eq!(names(&json(admin, "/channels?sort=rate&limit=1")), ["news/today"]);
        let (mut paged, mut target) = (Vec::new(), "/channels?limit=1".to_owned());
        loop {
            let page = json(admin, &target);
            paged.extend(names(&page).iter().map(|name| (*name).to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            target = format!("/channels?limit=1&after={}", next.replace('/', "%2F"));
        }
        assert_eq!(paged, ["news/old", "news/today", "prices"]);

        // A reader that goes is not told any more.
        drop(streams.pop());
        drop((raw, v1));
        until("two have gone", || {
            let list = json(admin, "/channels?prefix=news/today");
            (list["channels"][0]["readers"]["total"] == 4).then_some(())
        });
    }
}

#[test]
fn many_channels_are_told_in_bounded_answers() {
    let (server, admin) = start(&["--workers", "4"]);
    let lines: String =
        (0..3_000).map(|n| format!("{{\"channel\":\"room/{n:04}\",\"data\":{n}}}\n")).collect();
    let answers = common::http::batch(server.addr(), &lines);
    assert_eq!(answers.len(), 3_000);
    let page = json(admin, "/channels");
    assert_eq!((names(&page).len(), &page["known"]), (100, &json!(3_000)));
    assert_eq!(page["next"], "room/0099");
    let page = json(admin, "/channels?limit=1000&after=room/2500");
    assert_eq!((names(&page).len(), names(&page)[0]), (499, "room/2501"));
    assert_eq!(page.get("next"), None);
}

// --- What a token is for -----------------------------------------------------------------------------------------------

#[test]
fn a_token_is_for_everything_that_is_told() {
    let digest = format!("admin.token_sha256={}", hex("t"));
    let (server, admin) = start(&["--set", &digest]);
    let stream = Stream::open(server.addr(), "/channels/a");
    let target = format!("/connections/{}", stream.connection);
    ask(admin, "DELETE", &target, &[], "").problem(401);
    let one = json_with(admin, &target, &[("Authorization", "Bearer t")]);
    assert_eq!(one["id"], stream.connection);
    assert!(!one.to_string().contains("Bearer"));
}
