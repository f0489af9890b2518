//! The binary's command line, from outside: what it prints and how it exits.

use std::path::PathBuf;
use std::process::{Command, Output};

/// Runs in an empty directory of its own, without the tester's own `PUSHLINE_…`.
fn pushline(name: &str, file: Option<&str>, env: &[(&str, &str)], args: &[&str]) -> Output {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).expect("directory");
    if let Some(text) = file {
        std::fs::write(dir.join("pushline.toml"), text).expect("file");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_pushline"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("PUSHLINE_") {
            command.env_remove(variable);
        }
    }
    command.args(args).envs(env.iter().copied()).current_dir(dir).output().expect("the binary runs")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn version() {
    let output = pushline("version", None, &[], &["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(out(&output), concat!("pushline ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn check_config_shows_what_is_in_force_and_whence() {
    let file = "[limits]\nconnections = 5\n";
    let env = [("PUSHLINE_HISTORY_SECONDS", "0.5")];
    let args = ["check-config", "--workers", "3", "--set", "slow.policy=skip"];
    let output = pushline("good", Some(file), &env, &args);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let shown = out(&output);
    for line in [
        "# configuration ok",
        "connections = 5  # pushline.toml",
        "seconds = 0.5  # environment variable PUSHLINE_HISTORY_SECONDS",
        "workers = 3  # --workers",
        "policy = \"skip\"  # --set",
        "head_bytes = 16384",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line:?} in {shown}");
    }
    assert_eq!(err(&output), "");
}

#[test]
fn check_config_refuses_on_stderr() {
    let file = "[limits]\nconections = 5\nhead_bytes = 1\n";
    let output = pushline("bad", Some(file), &[], &["check-config"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(out(&output), "");
    assert_eq!(
        err(&output),
        "pushline: unknown key limits.conections (pushline.toml): did you mean limits.connections?\n\
         pushline: limits.head_bytes = 1 (pushline.toml): must be a whole number of bytes, or one with a unit like \
         \"64KiB\", from 1024 to 1048576; the default is 16384\n"
    );
}

#[test]
fn serving_refuses_a_bad_configuration_in_the_same_way() {
    for (name, args) in [("bad-serve", &["serve", "--workers", "0"][..]), ("bad-bare", &["--workers", "0"])] {
        let output = pushline(name, None, &[], args);
        assert_eq!(output.status.code(), Some(2));
        assert!(err(&output).starts_with("pushline: workers = 0 (--workers): must be"), "{}", err(&output));
    }
}

#[test]
fn a_named_file_must_exist() {
    let output = pushline("absent", None, &[], &["check-config", "--config", "absent.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("cannot read absent.toml"), "{}", err(&output));
}

#[test]
fn an_address_beyond_this_machine_needs_open() {
    let args = ["check-config", "--listen", "127.0.0.1:0", "--listen", "0.0.0.0:0"];
    let output = pushline("not-open", None, &[], &args);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("listen = 0.0.0.0:0 (--listen)"), "{}", err(&output));
    assert!(err(&output).contains("--open"), "{}", err(&output));

    let output = pushline("open", None, &[], &[&args[..], &["--open"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let output = pushline("open-env", None, &[("PUSHLINE_OPEN", "true")], &args);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
}

#[test]
fn an_unknown_flag_is_refused() {
    let output = pushline("flag", None, &[], &["serve", "--worker", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("--workers"), "{}", err(&output));
}
