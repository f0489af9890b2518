//! The laboratory itself: a load that sees every message passes, one that is cheated says so. Against the floor, which
//! can be told to lose and to repeat.

#[path = "common/floor.rs"]
mod floor;

use std::process::{Command, Output};

use floor::{Floor, floor};

fn load(floor: &Floor, transport: &str, order: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_load"));
    command.args([
        "--target",
        &floor.address,
        "--transport",
        transport,
        "--readers",
        "50",
        "--members",
        "10",
    ]);
    command.args(["--patience", "2"]);
    command.args(["--order", order]).output().expect("the load runs")
}

const GROUPS: &str = r#"{"do":"groups","messages":40,"together":4}"#;
const ORDERS: [(&str, &str); 6] = [
    ("ws", GROUPS),
    ("v1", GROUPS),
    ("sse", GROUPS),
    ("poll", GROUPS),
    ("ws", r#"{"do":"speak","turns":20}"#),
    ("ws", r#"{"do":"pace","ms":200,"per_s":200,"random":true}"#),
];

#[test]
fn nothing_is_wrong_with_an_honest_server() {
    for args in [&[][..], &["--coalesce"], &["--threads", "3"]] {
        let floor = floor(args);
        for (transport, order) in ORDERS {
            let output = load(&floor, transport, order);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{args:?} {transport} {order}: {said}");
        }
    }
}

#[test]
fn a_repeated_message_is_noticed() {
    let floor = floor(&["--repeat", "7"]);
    for (transport, order) in ORDERS.into_iter().filter(|(transport, _)| *transport != "poll") {
        let output = load(&floor, transport, order);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.contains("repeated 0,"), "{transport} {order}: {said}");
    }
}

#[test]
fn a_lost_message_is_noticed() {
    let floor = floor(&["--lose", "70"]);
    // A flood goes on until its time is over, whatever is lost, and waits at its end alone.
    for transport in ["ws", "sse"] {
        let output = load(&floor, transport, r#"{"do":"flood","ms":100,"window":1000000,"together":4}"#);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && !said.contains("lost 0,"), "{transport}: {said}");
    }
}
