//! Channel names and the URLs that carry them.

use crate::common;

use std::collections::HashSet;

use common::http::{Conn, get, poll, post};
use common::server::Server;
use common::sse::Stream;
use serde_json::{Value, json};

const TEXT: (&str, &str) = ("Content-Type", "text/plain");

/// Publishes; the channels that the answer names.
fn channels(conn: &mut Conn, target: &str) -> Result<Vec<String>, u16> {
    let answer = conn.request("POST", target, &[TEXT], "x");
    if answer.status != 201 {
        assert!(answer.problem(answer.status).len() > 10, "{target}: {answer}");
        return Err(answer.status);
    }
    let list = answer.json()["published"].as_array().cloned().expect("`published`");
    Ok(list.iter().map(|one| one["channel"].as_str().expect("a name").to_owned()).collect())
}

#[test]
fn a_url_names_channels() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    let most = "n".repeat(200);
    let wide = "%C3%A9".repeat(100);
    for (path, want) in [
        ("news", &["news"][..]),
        ("News", &["News"]),
        ("a/b/c", &["a/b/c"]),
        ("a%2Fb", &["a/b"]),
        ("a%2fb/c", &["a/b/c"]),
        ("r%C3%A4ksm%c3%b6rg%C3%A5s", &["räksmörgås"]),
        ("%F0%9F%A6%80", &["🦀"]),
        ("a%20b", &["a b"]),
        ("a+b", &["a+b"]),
        ("a%2Bb", &["a+b"]),
        ("a%2520b", &["a%20b"]), // decoded once
        ("a%253F", &["a%3F"]),
        ("a%3Fb", &["a?b"]),
        ("a%23b", &["a#b"]),
        ("a%5Cb%22", &["a\\b\""]),
        ("a%2Cb", &["a", "b"]), // decoded, then split
        ("a,b", &["a", "b"]),
        ("b,a", &["b", "a"]),
        ("a/x,a/y", &["a/x", "a/y"]),
        ("a:b;c=d@e!~'()&", &["a:b;c=d@e!~'()&"]),
        ("...", &["..."]),
        (".a", &[".a"]),
        ("a*", &["a*"]),
        ("***", &["***"]),
        ("a/$b", &["a/$b"]),
        ("a$", &["a$"]),
        (&most, &[&most]),
        (&wide, &[&"é".repeat(100)]),
        ("news?x=1", &["news"]),
        ("news?", &["news"]),
    ] {
        assert_eq!(
            channels(&mut conn, &format!("/channels/{path}")).as_deref(),
            Ok(&want.iter().map(ToString::to_string).collect::<Vec<_>>()[..]),
            "{path}"
        );
    }
}

#[test]
fn bad_names_are_refused() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    let long = "n".repeat(201);
    let wide = "%C3%A9".repeat(100) + "x";
    for path in [
        "a//b",
        "/a",
        "a/",
        ".",
        "..",
        "a/./b",
        "a/../b",
        "a/..",
        "a/%2e%2E/b",
        "%2E",
        "*",
        "**",
        "a/*",
        "a/**/b",
        "%2A",
        "a%00b",
        "a%0Ab",
        "a%0D%0Ab",
        "a%1Fb",
        "a%7Fb",
        "a%C2%85b",
        "%FF",
        "a%C3",
        "%ED%A0%80",
        "a%",
        "a%2",
        "a%zz",
        "a%u1234",
        ",",
        "a,",
        ",a",
        "a,,b",
        "a,b/",
        "a,a",
        "a,b,a",
        "a%2Ca",
        &long,
        &wide,
    ] {
        let target = format!("/channels/{path}");
        assert_eq!(channels(&mut conn, &target), Err(400), "{path}");
        let answer = conn.get(&target);
        assert_eq!(answer.status, 400, "reading {path}: {answer}");
        let answer = conn.request("DELETE", &target, &[], "");
        assert_eq!(answer.status, 400, "deleting {path}: {answer}");
    }
}

#[test]
fn first_segments_with_a_dollar_belong_to_the_server() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    for path in ["$", "$events", "$a/b", "%24a", "a,$b"] {
        let target = format!("/channels/{path}");
        let status = channels(&mut conn, &target).expect_err(path);
        assert!([400, 403, 404].contains(&status), "{path}: {status}");
        for method in ["GET", "DELETE"] {
            let answer = conn.request(method, &target, &[], "");
            assert!([400, 403, 404].contains(&answer.status), "{method} {path}: {answer}");
        }
    }
}

#[test]
fn at_most_64_channels_and_none_twice() {
    let server = Server::start(&[]);
    let mut conn = Conn::open(server.addr());
    let list = |count: usize| (0..count).map(|n| format!("c{n}")).collect::<Vec<_>>().join(",");
    assert_eq!(channels(&mut conn, &format!("/channels/{}", list(64))).map(|all| all.len()), Ok(64));
    assert_eq!(
        conn.get(&format!("/channels/{}", list(64))).expect(200).json()["messages"].as_array().map(Vec::len),
        Some(64)
    );
    assert_eq!(channels(&mut conn, &format!("/channels/{}", list(65))), Err(400));
    conn.get(&format!("/channels/{}", list(65))).problem(400);
}

#[test]
fn the_longest_names_of_64_channels_fit_into_one_url() {
    let server = Server::start(&[]);
    let addr = server.addr();
    let names: Vec<String> = (0..64).map(|n| format!("{n:0>200}")).collect();
    let target = format!("/channels/{}", names.join(","));
    let mut conn = Conn::open(addr);
    assert_eq!(channels(&mut conn, &target).as_deref(), Ok(&names[..]));
    let now = poll(addr, &target);
    assert_eq!(now.messages.len(), 64);
    // And on with the cursor, by poll and by stream.
    channels(&mut conn, &target).expect("published");
    let resumed = format!("{target}?cursor={}", now.cursor);
    assert!(resumed.len() > 13_000, "{} bytes", resumed.len());
    let after = poll(addr, &resumed);
    assert_eq!((after.messages.len(), after.gap), (64, false));
    let mut stream = Stream::open(addr, &resumed);
    let read: HashSet<_> = (0..64).map(|_| stream.message().json()["channel"].to_string()).collect();
    assert_eq!(read.len(), 64);
}

#[test]
fn a_url_is_at_most_15_kib() {
    let server = Server::start(&[]);
    let url = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    get(server.addr(), &url(15 * 1024)).problem(404);
    get(server.addr(), &url(15 * 1024 + 1)).problem(414);
    // Where a head may be less than that, its limit is met first.
    let server = Server::start(&["--set", "limits.head_bytes=4096"]);
    get(server.addr(), &url(4000)).problem(404);
    get(server.addr(), &url(5000)).problem(431);
    get(server.addr(), &url(20_000)).problem(431);
}

#[test]
fn a_name_reads_back_as_it_was_published() {
    let server = Server::start(&[]);
    // Two spellings of one name, and what only looks like it.
    for (publish, read, same) in [
        ("a%2Fb", "a/b", true),
        ("caf%C3%A9", "caf%c3%a9", true),
        ("n%65ws", "news", true),
        ("x+y", "x%2By", true),
        ("x+y", "x%20y", false),
        ("Case", "case", false),
        ("caf%C3%A9/x", "cafe%CC%81/x", false), // no normalisation
        ("p%2541", "pA", false),
    ] {
        post(server.addr(), &format!("/channels/{publish}"), &[TEXT], publish).expect(201);
        let found = poll(server.addr(), &format!("/channels/{read}"));
        assert_eq!(found.data() == [json!(publish)], same, "{publish} as {read}: {found:?}");
    }
}

#[test]
fn a_name_needs_no_creating() {
    let server = Server::start(&[]);
    let answer = get(server.addr(), "/channels/nobody/was/here,nor/here?limit=9").expect(200).json();
    assert_eq!((&answer["messages"], &answer["gap"]), (&json!([]), &Value::Bool(false)));
    for target in ["/channels", "/channels/"] {
        let answer = get(server.addr(), target);
        assert!([400, 404, 426].contains(&answer.status), "{target}: {answer}");
    }
}
