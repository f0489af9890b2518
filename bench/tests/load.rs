//! The load as a program: what it refuses, what it says when readers do not come, and that it counts right when orders
//! follow each other. Against the floor, and against servers of a few lines that misbehave.

#[path = "common/floor.rs"]
mod floor;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use floor::floor;
use serde_json::Value;

const GROUPS: &str = r#"{"do":"groups","messages":4,"together":2}"#;

/// A server that has each connection served by a thread of its own.
fn server(serve: fn(TcpStream)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// A port on which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").to_string()
}

/// Whether the load succeeded, and what it said.
fn load(target: &str, args: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_load"));
    command.args(["--target", target, "--readers", "3", "--ramp-seconds", "1", "--patience", "2"]);
    let output = command.args(args).env("RUST_BACKTRACE", "0").output().expect("the load runs");
    let said = [&output.stderr[..], &output.stdout].map(String::from_utf8_lossy).concat();
    (output.status.success(), said)
}

fn read_head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|got| got == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn answer_all(mut stream: TcpStream, answer: &str) {
    read_head(&mut stream);
    let _ = stream.write_all(answer.as_bytes());
    // Until the reader has gone.
    let _ = stream.read(&mut [0; 64]);
}

#[test]
fn why_readers_do_not_come_is_told() {
    let not_found =
        server(|stream| answer_all(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"));
    let full = server(|stream| {
        answer_all(stream, "HTTP/1.1 503 Full\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    });
    let closing = server(|mut stream| drop(read_head(&mut stream)));
    let silent = server(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())));
    let plain = server(|mut stream| {
        let _ = stream.read(&mut [0; 4_096]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 64]);
    });
    for (name, target, args, reason) in [
        ("nobody listens", &nobody(), &[][..], "Connection refused"),
        ("no such path", &not_found, &[], "HTTP/1.1 404 Not Found"),
        ("no such path, polled", &not_found, &["--transport", "longpoll"], "HTTP/1.1 404 Not Found"),
        ("full", &full, &["--transport", "sse"], "HTTP/1.1 503 Full"),
        ("full, polled", &full, &["--transport", "short"], "HTTP/1.1 503 Full"),
        ("closed at once", &closing, &[], "closed without an answer"),
        ("silent", &silent, &[], "no answer within 1 s"),
        ("TLS to a plain port", &plain, &["--tls", &plain], "TLS: "),
    ] {
        let (succeeded, said) = load(target, args);
        assert!(!succeeded && said.contains(reason), "{name}: {said}");
    }
}

/// Before readers are opened: nobody listens.
#[test]
fn what_cannot_be_is_refused_at_once() {
    let target = nobody();
    for (args, said) in [
        (&["--order", "{}"][..], "do"),
        (&["--order", r#"{"do":"watch","ms":1,"sm":1}"#], "sm"),
        (&["--order", r#"{"do":"return","ms":1}"#], "ms"),
        (&["--order", r#"{"do":"pace","ms":1,"per_s":0}"#], "per_s"),
        (&["--order", r#"{"do":"groups","messages":1,"together":0}"#], "together"),
        (&["--order", GROUPS, "--transport", "short"], "short"),
        (&["--order", r#"{"do":"poll","ms":1,"per_s":1}"#], "ws"),
        (&["--order", r#"{"do":"speak","turns":1}"#, "--transport", "sse"], "sse"),
        (&["--order", r#"{"do":"speak","turns":1}"#, "--transport", "v1"], "v1"),
        (&["--order", GROUPS, "--readers", "0"], "no readers"),
        (&["--rate", "0"], "--rate"),
        (&["--rate", "nan"], "--rate"),
        (&["--message-bytes", "26"], "--message-bytes"),
        (&["--message-bytes", "100000000"], "--message-bytes"),
        (&["--members", "0"], "--members"),
        (&["--cpu", "4000"], "--cpu 4000"),
        (&["--cpu", "1023"], "--cpu 1023"),
        (&["--sources", "192.0.2.77"], "192.0.2.77"),
        (&["--sources", "127.0.0.5", "--readers", "70000"], "--sources"),
    ] {
        let args = [args, &["--readers", "3"][..if args.contains(&"--readers") { 0 } else { 2 }]].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_load"));
        command.args(["--target", &target]).args(&args).env("RUST_BACKTRACE", "0");
        let output = command.output().expect("the load runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert!(stderr.contains(said) && !stderr.contains("are open"), "{args:?}: {stderr}");
    }
}

#[test]
fn servers_have_names() {
    let floor = floor(&[]);
    let port = floor.address.rsplit(':').next().expect("a port");
    let (succeeded, said) = load(&format!("localhost:{port}"), &["--order", GROUPS]);
    assert!(succeeded, "{said}");
    let (succeeded, said) = load(&floor.address, &["--order", GROUPS, "--sources", "127.0.0.5-127.0.0.6"]);
    assert!(succeeded, "{said}");
}

/// Longer than what is read at once.
#[test]
fn long_messages_come_whole() {
    let floor = floor(&[]);
    for transport in ["ws", "v1", "sse", "poll"] {
        let args = ["--order", GROUPS, "--transport", transport, "--message-bytes", "700000"];
        let (succeeded, said) = load(&floor.address, &args);
        assert!(succeeded, "{transport}: {said}");
    }
}

/// The second load finds what the first has published; and short polls promise the newest message alone.
#[test]
fn short_polls_have_no_faults_of_their_own() {
    let floor = floor(&[]);
    for run in 1..3 {
        let args = ["--transport", "short", "--order", r#"{"do":"poll","ms":300,"per_s":2000}"#];
        let (succeeded, said) = load(&floor.address, &args);
        assert!(succeeded, "run {run}: {said}");
    }
}

/// Writes `lines` to a load's standard input; returns its answers, the first of which says that readers are open.
fn session(target: &str, args: &[&str], lines: &str) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_load"));
    command.args(["--target", target]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the load starts");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends with its orders");
    let lines = output.stdout.lines().map(|line| line.expect("text"));
    lines.map(|line| serde_json::from_str(&line).expect("JSON")).collect()
}

#[test]
fn a_line_that_is_no_order_ends_nothing() {
    let floor = floor(&[]);
    let answers =
        session(&floor.address, &["--readers", "2"], &format!("\n{{bad\n{{\"do\":\"x\"}}\n{GROUPS}\n"));
    assert_eq!(answers.len(), 4, "{answers:?}");
    assert!(answers[1]["error"].is_string() && answers[2]["error"].is_string(), "{answers:?}");
    assert_eq!((&answers[3]["deliveries"], &answers[3]["open"]), (&8.into(), &2.into()));
}

/// One WebSocket reader. The first message reaches it with the second, which is repeated instead of the third.
fn late(mut stream: TcpStream) {
    static READER: std::sync::Mutex<Option<TcpStream>> = std::sync::Mutex::new(None);
    static FIRST: std::sync::Mutex<Vec<u8>> = std::sync::Mutex::new(Vec::new());
    let mut published = BufReader::new(stream.try_clone().expect("a descriptor"));
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if published.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        if head.starts_with("GET ") {
            let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
            *READER.lock().expect("no panic") = Some(stream.try_clone().expect("a descriptor"));
            let _ = published.read(&mut [0; 64]);
            return;
        }
        let mut body = [0; 64];
        published.read_exact(&mut body).expect("a message of 64 bytes");
        let mut first = FIRST.lock().expect("no panic");
        let frame = [&[0x81, 64][..], &body].concat();
        let sent = match &body[..11] {
            b"#0000000001" => {
                first.extend_from_slice(&frame);
                Vec::new()
            }
            b"#0000000002" => [&first[..], &frame, &frame].concat(),
            _ => Vec::new(),
        };
        let mut reader = READER.lock().expect("no panic");
        reader.as_mut().expect("it came first").write_all(&sent).expect("it reads");
        let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
    }
}

/// Neither a message of an order that was given up nor one that comes twice stands for one that is lost.
#[test]
fn late_and_repeated_messages_hide_no_loss() {
    let one = r#"{"do":"groups","messages":1,"together":1}"#;
    let two = r#"{"do":"groups","messages":2,"together":2}"#;
    let args = ["--readers", "1", "--message-bytes", "64", "--patience", "1"];
    let answers = session(&server(late), &args, &format!("{one}\n{two}\n"));
    let of = |order: usize, name: &str| answers[order][name].as_u64().expect("a number");
    assert_eq!((of(1, "deliveries"), of(1, "lost")), (0, 1), "{answers:?}");
    assert_eq!((of(2, "deliveries"), of(2, "lost")), (2, 1), "{answers:?}");
    assert_eq!((of(2, "repeated"), of(2, "stragglers")), (1, 1), "{answers:?}");
}
