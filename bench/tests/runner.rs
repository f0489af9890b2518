//! The runner as a program: what it refuses, and that nothing outlives it.

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use pushline_bench::{net, proc};

const RUNNER: &str = env!("CARGO_BIN_EXE_pushline-bench");

#[test]
fn what_cannot_be_is_refused() {
    for (args, said) in [
        (
            &["sends", "--peers", "nchna"][..],
            "nchna: there is no such peer, only axum, mosquitto, nats, nchan",
        ),
        (&["publish", "--no-peers", "--pushline", "/nope"], "/nope"),
        (&["fanout", "--rounds", "0"], "--rounds"),
        (&["sends", "--groups", "0"], "--groups"),
        (&["sends", "--readers", "0"], "--readers"),
        (&["sends", "--rate", "0"], "--rate"),
        (&["sends", "--message-bytes", "1"], "--message-bytes"),
    ] {
        let args = [args, &["--quick", "--dry"]].concat();
        let output = Command::new(RUNNER).args(&args).env("RUST_BACKTRACE", "0").output().expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(said), "{args:?}: {stderr}");
    }
}

/// A server that stays would keep its CPU from all that are measured later.
#[test]
fn servers_end_with_a_runner_that_is_killed() {
    let mut command = Command::new(RUNNER);
    command.args(["sends", "--quick", "--dry", "--no-peers", "--readers", "20", "--rounds", "100000"]);
    let mut runner = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut log = BufReader::new(runner.stderr.take().expect("piped"));
    let mut said = String::new();
    while !said.contains("floor: 20 ws readers") {
        assert!(log.read_line(&mut said).is_ok_and(|got| got > 0), "{said}");
    }
    let targets: Vec<String> = proc::tree(runner.id())
        .into_iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok())
        .filter_map(|line| line.split('\0').skip_while(|word| *word != "--target").nth(1).map(str::to_owned))
        .collect();
    assert!(!targets.is_empty(), "{said}");
    let floors: Vec<TcpStream> =
        targets.iter().map(|target| TcpStream::connect(target).expect("it serves")).collect();
    net::terminate(runner.id()).expect("it runs");
    runner.wait().expect("it ends");
    for mut floor in floors {
        floor.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        // The server has gone: an end, or a reset.
        let end = floor.read(&mut [0; 16]);
        let gone =
            end.as_ref().map_or_else(|error| error.kind() == ErrorKind::ConnectionReset, |got| *got == 0);
        assert!(gone, "{end:?}");
    }
    // The loads have this pipe.
    log.read_to_string(&mut said).expect("text");
}
