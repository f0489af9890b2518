//! Under the system calls that tuning/seccomp.json and tuning/pushline.service permit, and under fewer.
//! Needs Debian's python3-seccomp and systemd (tests/run installs them as root).

use crate::common;

use std::path::PathBuf;
use std::process::{Command, Output};

use common::http::{Conn, Poll, head_cursor, post, publish};
use common::server::{Server, field, message_of};
use common::sse::Stream;
use common::ws::Socket;

fn path(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name).to_str().expect("UTF-8").to_owned()
}

/// The words that put a program under a profile, less some calls.
fn under(profile: &str, without: &[&str]) -> Vec<String> {
    let mut words = vec![path("tests/confine/seccomp"), path(profile)];
    words.extend(without.iter().flat_map(|call| ["--without".to_owned(), (*call).to_owned()]));
    words.push("--".to_owned());
    words
}

fn start(profile: &str, without: &[&str], driver: &str) -> Server {
    start_by(&[], profile, without, driver)
}

/// The same, by a program that has its words before.
fn start_by(first: &[&str], profile: &str, without: &[&str], driver: &str) -> Server {
    let words = under(profile, without);
    let before: Vec<&str> = first.iter().copied().chain(words.iter().map(String::as_str)).collect();
    Server::start_under(
        &before,
        &[
            "--listen",
            "127.0.0.1:0",
            "--driver",
            driver,
            "--workers",
            "2",
            "--set",
            "drain.window_seconds=0.1",
        ],
    )
}

/// One message over each transport, and the end.
fn serves(mut server: Server) {
    let addr = server.addr();
    let mut stream = Stream::open(addr, "/channels/c");
    let mut socket = Socket::open(addr, "/channels/c");
    let cursor = head_cursor(addr, "c");
    let mut held = Conn::open(addr);
    held.send("GET", &format!("/channels/c?cursor={cursor}&wait=40"), &[], "");
    let id = publish(addr, "c", "hello");
    assert_eq!(stream.texts(1), ["hello"]);
    assert_eq!(socket.expect_text(), "hello");
    assert_eq!(Poll::of(&held.read_response()).ids(), [id]);
    post(addr, "/channels/c", &[("Content-Type", "application/json")], "{").problem(400);
    server.signal(libc::SIGTERM);
    assert_eq!(server.wait_exit(), 0);
}

#[test]
fn both_profiles_permit_both_drivers_and_tables_of_their_own() {
    for profile in ["tuning/seccomp.json", "tuning/pushline.service"] {
        for driver in ["io_uring", "epoll"] {
            let server = start(profile, &[], driver);
            let serving = server.wait_log(|line| message_of(line).as_deref() == Some("serving"));
            assert_eq!(field(&serving, "driver").as_deref(), Some(driver));
            // A call that is refused would be told here.
            let told: Vec<_> = server.log().into_iter().filter(|line| line.contains("WARN")).collect();
            assert!(told.is_empty(), "{profile}: {told:#?}");
            serves(server);
        }
    }
}

/// What Docker's own profile does, and what that costs: a line at start, and epoll.
#[test]
fn without_io_uring_auto_says_so_and_serves() {
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        let server = start("tuning/seccomp.json", &[call], "auto");
        let line = server.wait_log(|line| message_of(line).is_some_and(|said| said.contains("using epoll")));
        assert!(field(&line, "reason").is_some_and(|reason| reason.contains("seccomp")), "{call}: {line}");
        let serving = server.wait_log(|line| message_of(line).as_deref() == Some("serving"));
        assert_eq!(field(&serving, "driver").as_deref(), Some("epoll"), "{call}");
        serves(server);
    }
}

/// Processes may be made, and namespaces not, as under Docker's own profile.
#[test]
fn a_container_s_processes_make_no_namespaces() {
    let tries = "import ctypes, os\n\
                 call = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n\
                 libc = ctypes.CDLL(None, use_errno=True)\n\
                 made = libc.syscall(call, 0x10000000 | 17, 0, 0, 0, 0)\n\
                 if made == 0: os._exit(0)\n\
                 print('namespace', made, os.strerror(ctypes.get_errno()))\n\
                 print('process', os.waitstatus_to_exitcode(os.system('true')))";
    let words = under("tuning/seccomp.json", &[]);
    let output = Command::new(&words[0]).args(&words[1..]).args(["/usr/bin/python3", "-c", tries]).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said, "namespace -1 Function not implemented\nprocess 0\n", "{output:?}");
}

#[test]
fn without_close_range_workers_share_a_table() {
    // So few files that each worker wants a table of its own.
    let few = ["prlimit", "--nofile=500:500"];
    let server = start_by(&few, "tuning/seccomp.json", &["close_range"], "epoll");
    let shares = "workers share one table of open files";
    let line = server.wait_log(|line| message_of(line).as_deref() == Some(shares));
    assert!(line.contains("WARN") && field(&line, "error").is_some(), "{line}");
    serves(server);
}

#[test]
fn the_doctor_names_who_forbids_it() {
    let doctor = |without: &[&str], driver: &str| {
        let words = under("tuning/seccomp.json", without);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_pushline"));
        command.args(["doctor", "--connections", "10", "--driver", driver]);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PUSHLINE_") {
                command.env_remove(name);
            }
        }
        let Output { status, stdout, stderr } =
            command.current_dir(env!("CARGO_TARGET_TMPDIR")).output().expect("it runs");
        let text = String::from_utf8(stdout).expect("UTF-8") + &String::from_utf8_lossy(&stderr);
        (status.code(), text)
    };
    let (code, text) = doctor(&[], "io_uring");
    assert!(code == Some(0) && text.contains("ok    io_uring: works"), "{text}");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        let (code, text) = doctor(&[call], "auto");
        assert!(
            code == Some(0) && text.contains("note  io_uring: ") && text.contains("seccomp.json"),
            "{text}"
        );
    }
    let (code, text) = doctor(&["io_uring_setup"], "io_uring");
    assert!(code == Some(1) && text.contains("STOP  io_uring: ") && text.contains("--driver auto"), "{text}");
    let (code, text) = doctor(&["close_range"], "epoll");
    assert!(code == Some(0) && text.contains("note  file tables: "), "{text}");
}

/// The units as systemd reads them: nothing unknown, and not much exposed. The binary need not be installed.
#[test]
fn the_units_are_sound() {
    let unit = std::fs::read_to_string(path("tuning/pushline.service")).expect("the unit");
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("unit");
    std::fs::create_dir_all(&dir).expect("a folder");
    let copy = dir.join("pushline.service");
    std::fs::write(&copy, unit.replace("/usr/local/bin/pushline", env!("CARGO_BIN_EXE_pushline")))
        .expect("a copy");
    let socket = dir.join("pushline.socket");
    std::fs::copy(path("tuning/pushline.socket"), &socket).expect("a copy");
    for (args, unit) in [
        (&["verify"][..], &copy),
        (&["security", "--offline=true", "--threshold=20", "--no-pager"], &copy),
        (&["verify"], &socket),
    ] {
        let Output { status, stdout, stderr } =
            Command::new("systemd-analyze").args(args).arg(unit).output().expect("systemd-analyze runs");
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success() && !err.contains("pushline."), "{args:?}: {out}{err}");
    }
}
