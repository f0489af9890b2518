//! The log on stderr: a pipe that nobody reads holds nobody up, neither while the node serves nor when it ends, and what did
//! not fit is counted and told.

use crate::common;

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStderr, Command, Stdio};

use common::http::{AT_ONCE, Conn, timed, wire};
use common::server::{field, message_of};
use common::token::KEYS;
use common::until;

/// A server whose stderr is read when the test wants to. Killed when dropped.
struct Unheard {
    child: Child,
    stderr: Option<ChildStderr>,
    addr: SocketAddr,
}

impl Unheard {
    fn start(args: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushline"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PUSHLINE_") {
                command.env_remove(name);
            }
        }
        command.args(["serve", "--listen", &free.to_string(), "--workers", "1"]).args(args);
        if let Ok(driver) = std::env::var("PUSHLINE_DRIVER") {
            command.args(["--driver", &driver]);
        }
        command.args(["--set", "log.format=json", "--set", "log.level=debug"]);
        command.current_dir(env!("CARGO_TARGET_TMPDIR"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the server's binary runs");
        let stderr = child.stderr.take();
        let server = Self { child, stderr, addr: free };
        until("it serves", || Conn::try_open(free).ok());
        server
    }

    /// Has far more to say than a pipe and its queue take; every request has its answer.
    fn says_much(&self) {
        let refused = &[("Authorization", "Bearer nobodys")];
        let wire = wire(self.addr, "GET", "/channels/a", refused, b"").repeat(100);
        let ((), took) = timed(|| {
            for _ in 0..REQUESTS / 100 {
                let mut conn = Conn::open(self.addr);
                conn.send_raw(&wire);
                for _ in 0..100 {
                    conn.expect_answer_to("GET");
                    conn.read_response().expect(401);
                }
            }
        });
        assert!(took < 10 * AT_ONCE, "{took:?}");
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    }

    fn wait_exit(&mut self) -> Option<i32> {
        until("it ends", || self.child.try_wait().expect("our own child")).code()
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const REQUESTS: usize = 12_000;

#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let mut server = Unheard::start(&["--set", KEYS]);
    server.says_much();
    let lines = BufReader::new(server.stderr.take().expect("piped")).lines();
    let (mut told, mut dropped, mut last) = (0, 0, String::new());
    for line in lines.map(|line| line.expect("text")) {
        match message_of(&line).expect("whole lines alone").as_str() {
            "refused" => told += 1,
            message if message.starts_with("lines of the log were dropped") => {
                dropped += field(&line, "lines").and_then(|lines| lines.parse().ok()).unwrap_or(0);
                // All that it had to say by now is there, or counted.
                server.terminate();
            }
            _ => {}
        }
        last = line;
    }
    assert!(dropped > 0 && told < REQUESTS && told + dropped >= REQUESTS, "{told} told, {dropped} dropped");
    assert_eq!(message_of(&last).as_deref(), Some("stopped"), "the last line is written before the end");
    assert_eq!(server.wait_exit(), Some(0));
}

#[test]
fn a_node_ends_though_nobody_reads_its_log() {
    for more in [&["--set", KEYS][..], &["--set", KEYS, "--set", "access_log.to=stderr"]] {
        let mut server = Unheard::start(more);
        server.says_much();
        server.terminate();
        assert_eq!(server.wait_exit(), Some(0));
    }
}
