//! The form of the source: what a reader may rely on without looking.

use std::fs;
use std::path::{Path, PathBuf};

/// The hard stop; about 300 reads well.
const LINES_MAX: usize = 600;
const LAYERS: [&str; 4] = ["proto", "domain", "runtime", "edge"];

struct File {
    /// Relative to the package.
    path: String,
    text: String,
}

impl File {
    /// Its lines without comments, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(n, line)| (n + 1, line));
        lines.filter_map(|(n, line)| {
            let code = line.split("//").next().unwrap_or_default();
            (!code.trim().is_empty()).then_some((n, code))
        })
    }
}

fn sources(folders: &[&str]) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path: PathBuf = entry.path();
            let name = entry.file_name();
            if path.is_dir() {
                if !["target", "node_modules", ".cache"].contains(&name.to_string_lossy().as_ref()) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|is| is == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                let path = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
                files.push(File { path, text });
            }
        }
    }
    assert!(!files.is_empty(), "no sources");
    files
}

/// The layers that a piece of code names by `crate::…` or by climbing out of its own.
fn imported(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for start in ["crate::", "super::super::", "pushline::"] {
        for (at, _) in code.match_indices(start) {
            let rest = &code[at + start.len()..];
            // One path, or the first names of a group.
            let inside = rest.strip_prefix('{');
            let names = match inside {
                Some(group) => top_level(group),
                None => vec![rest],
            };
            for name in names {
                let name =
                    name.trim().split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
                found.extend(name.filter(|name| LAYERS.contains(name)));
            }
        }
    }
    found
}

/// The members of a group of imports, up to its closing brace.
fn top_level(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut members) = (0, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&group[from..at]);
                return members;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    members.push(&group[from..]);
    members
}

#[test]
fn imports_are_found_in_every_form() {
    for (code, want) in [
        ("use crate::proto::http;", &["proto"][..]),
        ("use crate::{domain::channel::{Name, Pattern}, edge};", &["domain", "edge"]),
        ("let x = crate::runtime::io::f();", &["runtime"]),
        ("use super::super::edge::api;", &["edge"]),
        ("use super::cursor::Cursor;", &[]),
        ("use crate::prototype;", &[]),
    ] {
        assert_eq!(imported(code), want, "{code}");
    }
}

/// `proto` and `domain` know nothing of each other; `runtime` knows both; `edge` knows all.
#[test]
fn imports_point_down() {
    let mut wrong = Vec::new();
    for file in sources(&["src"]) {
        let below: &[&str] = match file.path.split('/').nth(1) {
            Some("proto") => &["proto"],
            Some("domain") => &["domain"],
            Some("runtime") => &["runtime", "proto", "domain"],
            _ => &LAYERS,
        };
        // Imports may go over several lines, so the file's code is read as one text.
        let code: Vec<&str> = file.code().map(|(_, code)| code).collect();
        for layer in imported(&code.join(" ")) {
            if !below.contains(&layer) {
                wrong.push(format!("{} imports {layer}", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What has no I/O and no clock asks for neither.
#[test]
fn codecs_and_domain_are_pure() {
    let mut wrong = Vec::new();
    let impure = [
        "TcpStream",
        "TcpListener",
        "std::fs",
        "std::io",
        "std::thread",
        "Instant::now",
        "SystemTime::now",
        "monoio",
        "tracing",
    ];
    for file in sources(&["src/proto", "src/domain"]) {
        for (n, code) in file.code() {
            for word in impure {
                if code.contains(word) {
                    wrong.push(format!("{}:{n}: {word}", file.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let mut wrong = Vec::new();
    for file in sources(&["src"]) {
        let opening = file.text.lines().take_while(|line| line.starts_with("//!")).count();
        if !(1..=15).contains(&opening) {
            wrong.push(format!("{} opens with {opening} lines of `//!`", file.path));
        }
        if file.path.ends_with("/mod.rs") {
            wrong.push(format!("{}: declare it inline", file.path));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_a_heap() {
    for file in sources(&["src", "tests", "bench"]) {
        let lines = file.text.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines: which two nouns is it?", file.path);
    }
}

#[test]
fn nothing_is_left_for_later() {
    let mut wrong = Vec::new();
    for file in sources(&["src", "bench"]) {
        for (n, line) in file.text.lines().enumerate() {
            for word in ["TODO", "FIXME", "XXX", "HACK", "todo!(", "unimplemented!(", "dbg!("] {
                if line.contains(word) {
                    wrong.push(format!("{}:{}: {word}", file.path, n + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `unsafe` stays in the files of `runtime` that name it, and each block says why it is sound.
#[test]
fn unsafe_is_kept_in_runtime_and_explained() {
    let mut wrong = Vec::new();
    for file in sources(&["src"]) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (n, code) in file.code() {
            let mut words = code.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
            if !words.any(|word| word == "unsafe") {
                continue;
            }
            if !file.path.starts_with("src/runtime/") {
                wrong.push(format!("{}:{n}: unsafe outside runtime", file.path));
            }
            let before = &lines[n.saturating_sub(12)..n];
            if !before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                wrong.push(format!("{}:{n}: unsafe without its reason", file.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Words that say nothing of what a thing is.
#[test]
fn names_say_what_things_are() {
    let banned = ["manager", "helper", "helpers", "util", "utils", "process", "handle", "data", "info"];
    let mut wrong = Vec::new();
    for file in sources(&["src"]) {
        let stem = Path::new(&file.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if banned.contains(&stem) {
            wrong.push(file.path.clone());
        }
        for (n, code) in file.code() {
            let mut words = code.split_whitespace();
            while let Some(word) = words.next() {
                if !["struct", "enum", "trait", "mod"].contains(&word) {
                    continue;
                }
                let name = words
                    .next()
                    .unwrap_or_default()
                    .trim_end_matches(|letter: char| !letter.is_alphanumeric());
                let last = name.rfind(char::is_uppercase).map_or(name, |at| &name[at..]);
                if banned.contains(&last.to_ascii_lowercase().as_str()) {
                    wrong.push(format!("{}:{n}: {name}", file.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
