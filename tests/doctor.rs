//! `pushline doctor` through the real binary: exit codes, both forms, and remedies that work when they are followed.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// In an empty directory of its own, without the tester's own `PUSHLINE_…`, as the last word of `before`.
fn command(name: &str, before: &[&str], args: &[&str]) -> Command {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("doctor-{name}"));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("directory");
    let words: Vec<&str> = before.iter().copied().chain([env!("CARGO_BIN_EXE_pushline")]).collect();
    let mut command = Command::new(words[0]);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("PUSHLINE_") {
            command.env_remove(variable);
        }
    }
    command.args(&words[1..]).args(args).current_dir(dir);
    command
}

struct Told {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Told {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }

    /// The finding of this name.
    fn finding(&self, name: &str) -> Value {
        let json = self.json();
        let findings = json["findings"].as_array().expect("a list");
        findings
            .iter()
            .find(|finding| finding["name"] == name)
            .unwrap_or_else(|| panic!("{name}: {json}"))
            .clone()
    }
}

fn doctor_in(name: &str, before: &[&str], args: &[&str]) -> Told {
    let Output { status, stdout, stderr } =
        command(name, before, &[&["doctor"], args].concat()).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Told { code: status.code(), out: text(stdout), err: text(stderr) }
}

fn doctor(name: &str, args: &[&str]) -> Told {
    doctor_in(name, &[], args)
}

#[test]
fn few_connections_are_fine_anywhere() {
    let told =
        doctor("few", &["--connections", "10", "--workers", "3", "--files", "shared", "--driver", "epoll"]);
    assert_eq!((told.code, told.err.as_str()), (Some(0), ""), "{}", told.out);
    assert!(told.out.starts_with("10 connections, 3 workers, file tables shared\n"), "{}", told.out);
    assert!(told.out.ends_with("nothing found that would stop 10 connections\n"), "{}", told.out);
    assert!(
        told.out.contains("io_uring: not asked for") || told.out.contains("io_uring: works"),
        "{}",
        told.out
    );
}

#[test]
fn more_than_configured_is_too_many() {
    let told = doctor("many", &["--connections", "11", "--set", "limits.connections=10"]);
    assert_eq!(told.code, Some(1), "{}", told.out);
    for part in
        ["STOP  limits.connections: configured for 10; enough for 10\n", "--set limits.connections=11"]
    {
        assert!(told.out.contains(part), "{part:?} in {}", told.out);
    }
    // The number in force is what counts without the flag; remedies are for the number asked for.
    assert_eq!(doctor("in-force", &["--set", "limits.connections=10"]).code, Some(0));
    let told = doctor("followed", &["--connections", "11", "--set", "limits.connections=11"]);
    assert_eq!(told.code, Some(0), "{}", told.out);
}

#[test]
fn json_says_the_same() {
    let told = doctor("json", &["--json", "--connections", "100000000", "--workers", "2"]);
    assert_eq!(told.code, Some(1));
    let json = told.json();
    assert_eq!((&json["connections"], &json["workers"]), (&Value::from(100_000_000), &Value::from(2)));
    let findings = json["findings"].as_array().expect("a list");
    let stopping: Vec<_> = findings.iter().filter(|finding| finding["level"] == "stop").collect();
    assert_eq!(json["stops"], stopping.len());
    for finding in &stopping {
        assert!(finding["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{finding}");
    }
    assert!(stopping.iter().any(|finding| finding["name"] == "limits.connections"), "{json}");
    let fewest = stopping.iter().filter_map(|finding| finding["holds"].as_u64()).min();
    assert_eq!(json["holds"].as_u64(), fewest, "{json}");
    assert_eq!(told.out.lines().count(), 1);
}

#[test]
fn wrong_words_are_told() {
    for (name, args, part) in [
        ("zero", &["--connections", "0"][..], "1..=100000000"),
        ("word", &["--connections", "many"], "--connections"),
        ("beyond", &["--connections", "100000001"], "1..=100000000"),
        ("without", &["--connections"], "--connections"),
        ("flag", &["--conections", "1"], "--connections"),
        ("config", &["--workers", "0"], "workers = 0 (--workers): must be"),
        ("key", &["--set", "limits.conections=5"], "did you mean limits.connections?"),
    ] {
        let told = doctor(name, args);
        assert_eq!((told.code, told.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(told.err.contains(part), "{args:?}: {}", told.err);
    }
}

#[test]
fn what_cannot_be_told_is_no_success() {
    for word in ["doctor", "check-config"] {
        let mut command = command("full", &[], &[word, "--set", "limits.connections=10"]);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a full device");
        let Output { status, stderr, .. } = command.stdout(full).output().expect("the binary runs");
        let said = String::from_utf8(stderr).expect("UTF-8");
        assert!(status.code() == Some(1) && said.contains("No space left"), "{word}: {status} {said}");
    }
}

/// In a namespace of its own, where this sysctl is too; the remedy is followed to the letter.
#[test]
fn a_short_queue_is_found_and_its_remedy_helps() {
    let script = "echo \"$1\" >/proc/sys/net/core/somaxconn && shift && exec \"$@\"";
    let ask = |somaxconn: &str| {
        let before = ["unshare", "--map-root-user", "--net", "sh", "-c", script, "sh", somaxconn];
        doctor_in("queue", &before, &["--json", "--connections", "10000", "--workers", "1"])
    };
    let told = ask("16");
    assert_eq!(told.code, Some(1), "{}{}", told.out, told.err);
    let finding = told.finding("net.core.somaxconn");
    assert_eq!(
        (&finding["level"], &finding["holds"]),
        (&Value::from("stop"), &Value::from(1_600)),
        "{finding}"
    );
    let remedy = finding["remedy"].as_str().expect("a remedy");
    let number = remedy.split(['=', ',']).nth(1).expect("sysctl -w NAME=NUMBER, …");
    let told = ask(number);
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
}

const ULIMIT: &str = "ulimit -n \"$1\" && shift && exec \"$@\"";

#[test]
fn few_open_files_are_found_and_each_remedy_helps() {
    let ask = |files: &str, args: &[&str]| {
        let before = ["sh", "-c", ULIMIT, "sh", files];
        doctor_in("files", &before, &[&["--json", "--connections", "2000"], args].concat())
    };
    let shared = ["--workers", "2", "--files", "shared"];
    let told = ask("1000", &shared);
    assert_eq!(told.code, Some(1), "{}", told.out);
    let finding = told.finding("open files");
    assert_eq!(finding["holds"], 1_000 - 2 * 64, "{finding}");
    let remedy = finding["remedy"].as_str().expect("a remedy").to_owned();
    let words: Vec<&str> = remedy.split(|letter: char| letter.is_whitespace() || letter == '=').collect();
    let after = |word: &str| {
        let at =
            words.iter().position(|other| *other == word).unwrap_or_else(|| panic!("{word} in {remedy}"));
        words[at + 1]
    };
    let told = ask(after("LimitNOFILE"), &shared);
    assert_eq!(told.code, Some(0), "{}", told.out);
    let told = ask("1000", &["--files", after("--files"), "--workers", after("--workers")]);
    assert_eq!(told.code, Some(0), "{}", told.out);
    // Left to itself, it divides the tables.
    let told = ask("1000", &["--workers", "2"]);
    assert_eq!((told.code, &told.json()["files"]), (Some(1), &Value::from("per-worker")), "{}", told.out);
}

/// Log lines of a node with few open files, until it serves.
fn start_lines(name: &str, args: &[&str]) -> Vec<String> {
    let before = ["sh", "-c", ULIMIT, "sh", "1000"];
    let args = [&["serve", "--listen", "127.0.0.1:0", "--driver", "epoll"], args].concat();
    let mut command = command(name, &before, &args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    let mut lines = Vec::new();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
        let line = line.expect("UTF-8");
        let serves = line.contains("serving");
        lines.push(line);
        if serves {
            break;
        }
    }
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    assert!(lines.last().is_some_and(|line| line.contains("serving")), "{lines:#?}");
    lines
}

#[test]
fn a_node_says_what_keeps_it_from_the_connections_it_is_to_hold() {
    let lines = start_lines("told", &["--set", "limits.connections=3000", "--workers", "2"]);
    let told: Vec<_> = lines.iter().filter(|line| line.contains("WARN")).collect();
    assert!(
        told.len() == 1 && told[0].contains("open files") && told[0].contains("LimitNOFILE=1719"),
        "{lines:#?}"
    );
}

#[test]
fn a_node_with_the_default_limit_says_one_line() {
    let lines = start_lines("default", &[]);
    assert_eq!(lines.iter().filter(|line| line.contains("pushline doctor")).count(), 1, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("WARN") || line.contains("LimitNOFILE")), "{lines:#?}");
}

#[test]
fn a_node_that_has_enough_says_nothing() {
    let lines = start_lines("enough", &["--set", "limits.connections=100"]);
    assert!(!lines.iter().any(|line| line.contains("doctor") || line.contains("WARN")), "{lines:#?}");
}
