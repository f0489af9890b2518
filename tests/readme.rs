//! The README's screen of use: its curl commands, run as they stand, do what the text beside them says.
//! Only the address and the placeholder of a cursor are replaced. What a command is to bring stands here by its number.

use crate::common;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::DEADLINE;
use common::http::poll;
use common::server::Server;
use serde_json::{Value, json};

/// The commands under "One screen of use", in order; continued lines are one command.
fn commands(server: &Server) -> Vec<String> {
    let readme = std::fs::read_to_string("README.md").expect("a README");
    let section =
        readme.split("\n## ").find(|part| part.starts_with("One screen of use")).expect("the section");
    let mut commands = Vec::new();
    // Every second part between fences is a block, the first line its language.
    for block in section.split("\n```").skip(1).step_by(2) {
        let Some(shell) = block.strip_prefix("sh\n") else { continue };
        let mut command = String::new();
        for line in shell.lines() {
            command += line;
            command.push('\n');
            if !line.ends_with(['\\', '|']) {
                commands.push(std::mem::take(&mut command));
            }
        }
        assert_eq!(command, "", "a block ends within a command");
    }
    let here = format!("localhost:{}", server.addr().port());
    commands.iter().map(|command| command.replace("localhost:8080", &here)).collect()
}

/// A command that runs. Ended by its deadline, or with the server.
struct Running(Child, BufReader<ChildStdout>);

impl Running {
    fn start(command: &str) -> Self {
        let mut child = Command::new("timeout")
            .args([&DEADLINE.as_secs().to_string(), "sh", "-c", command])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("coreutils' timeout");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self(child, out)
    }

    /// Reads to the first line that begins with `start`.
    fn line(&mut self, start: &str) -> String {
        let mut before = String::new();
        for line in self.1.by_ref().lines() {
            let line = line.expect("UTF-8");
            if line.starts_with(start) {
                return line;
            }
            before += &line;
            before.push('\n');
        }
        panic!("it ended without a line that begins with {start:?}:\n{before}");
    }

    /// All of its output, when it has ended well.
    fn output(mut self) -> String {
        let mut text = String::new();
        self.1.read_to_string(&mut text).expect("UTF-8");
        let status = self.0.wait().expect("our own child");
        assert!(status.success(), "{status}: {text}");
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn output(command: &str) -> String {
    Running::start(command).output()
}

#[track_caller]
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let server = Server::start(&[]);
    let commands = commands(&server);
    let [read, publish, poll_newest, poll_on, publish_json, publish_lines] = &commands[..] else {
        panic!("six commands are known here, the README has others: {commands:#?}")
    };

    // "Read a channel as a stream, and publish to it from another terminal".
    let mut stream = Running::start(read);
    stream.line("event: $open");
    stream.line("data:");
    let answer = parsed(&output(publish));
    let id = answer["published"][0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer["published"][0]["channel"], "news");
    assert_eq!(stream.line("data:"), "data: hello");

    // "Poll, and be answered with 304 while nothing is new": the newest message, an ETag, a cursor.
    let answer = output(poll_newest);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("\r\netag: \""), "{head}");
    let body = parsed(body);
    assert_eq!((&body["messages"][0]["data"], &body["messages"][0]["id"]), (&json!("hello"), &json!(id)));

    // "or wait for the next message": held until something comes.
    let cursor = body["cursor"].as_str().expect("a cursor");
    let waits = poll_on.replace("CURSOR", cursor);
    assert_ne!(&waits, poll_on);
    let held = Running::start(&waits);
    output(publish);
    let answer = parsed(&held.output());
    assert_eq!((&answer["messages"][0]["data"], &answer["gap"]), (&json!("hello"), &json!(false)));

    // "Publish JSON with a name, a time to live, and a key that makes a retry harmless".
    let first = output(publish_json);
    assert_eq!(output(publish_json), first, "a retry has the first answer");
    let gold = poll(server.addr(), "/channels/prices/gold?limit=9");
    assert_eq!(gold.data(), [json!({ "price": 42 })], "and published nothing");
    assert_eq!(gold.messages[0]["event"], "tick");

    // "or many lines at once".
    let answers = output(publish_lines);
    assert_eq!(answers.lines().filter(|line| parsed(line)["id"].is_string()).count(), 2, "{answers}");
    assert_eq!(poll(server.addr(), "/channels/a").data(), [json!(1)]);
    assert_eq!(poll(server.addr(), "/channels/b").data(), [json!("two")]);
}
