//! The operator's listener, as a test asks it: its address, its answers, its numbers.
//! Owns a strict reading of what OpenMetrics' text form allows here. Never decides what the numbers should be.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;

use super::http::{Headers, Response, ask};
use super::server::{Server, field, message_of};

/// Where operators come in: what the server says of it in its log.
pub fn listen_of(server: &Server) -> String {
    let line = server.wait_log(|line| message_of(line).as_deref() == Some("admin"));
    field(&line, "listen").expect("the line `admin` has `listen`")
}

/// The same, of one that listens on TCP.
pub fn addr_of(server: &Server) -> SocketAddr {
    listen_of(server).parse().expect("an address")
}

/// A JSON answer.
#[track_caller]
pub fn json(addr: SocketAddr, target: &str) -> Value {
    json_with(addr, target, &[])
}

#[track_caller]
pub fn json_with(addr: SocketAddr, target: &str, headers: Headers) -> Value {
    let answer = ask(addr, "GET", target, headers, "").expect(200);
    assert!(answer.header("content-type").starts_with("application/json"), "{answer}");
    answer.json()
}

/// The numbers of one scrape, by name and labels.
#[derive(Debug)]
pub struct Metrics {
    series: BTreeMap<(String, BTreeMap<String, String>), f64>,
    pub text: String,
}

impl Metrics {
    #[track_caller]
    pub fn scrape(addr: SocketAddr) -> Self {
        Self::of(&ask(addr, "GET", "/metrics", &[], ""))
    }

    #[track_caller]
    pub fn of(answer: &Response) -> Self {
        assert_eq!(answer.status, 200, "{answer}");
        let kind = answer.header("content-type");
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        let text = answer.text();
        assert!(text.ends_with("# EOF\n"), "its end is told");
        let mut series = BTreeMap::new();
        let mut types: BTreeMap<&str, &str> = BTreeMap::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert_eq!(types.insert(name, kind), None, "{name} is told once");
            }
            if line.starts_with('#') {
                continue;
            }
            let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let (name, labels) = match key.split_once('{') {
                None => (key, BTreeMap::new()),
                Some((name, labels)) => (name, labels_of(labels)),
            };
            assert!(family_of(name, &types).is_some(), "{line}: its family was told before");
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert_eq!(series.insert((name.to_owned(), labels), value), None, "{line}: twice");
        }
        Self { series, text }
    }

    /// The sum of all series of `name` that have these labels; there is at least one.
    #[track_caller]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |has: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| has.get(*label).map(String::as_str) == Some(*value))
        };
        let found: Vec<f64> = self
            .series
            .iter()
            .filter(|((is, has), _)| is == name && fits(has))
            .map(|(_, value)| *value)
            .collect();
        assert!(!found.is_empty(), "no {name} with {labels:?} in:\n{}", self.text);
        found.iter().sum()
    }

    /// The values of one label in the series of `name`.
    pub fn values(&self, name: &str, label: &str) -> Vec<&str> {
        let of_name = self.series.keys().filter(|(is, _)| is == name);
        let mut values: Vec<&str> =
            of_name.filter_map(|(_, has)| has.get(label)).map(String::as_str).collect();
        values.sort_unstable();
        values.dedup();
        values
    }
}

/// The family that a series belongs to (OpenMetrics 1.0, "Suffixes").
fn family_of<'n>(name: &'n str, types: &BTreeMap<&str, &str>) -> Option<&'n str> {
    let suffixes: [(&str, &[&str]); 4] = [
        ("counter", &["_total"]),
        ("gauge", &[""]),
        ("info", &["_info"]),
        ("histogram", &["_bucket", "_sum", "_count"]),
    ];
    suffixes.iter().flat_map(|(kind, endings)| endings.iter().map(move |ending| (kind, ending))).find_map(
        |(kind, ending)| {
            let family = name.strip_suffix(ending)?;
            (types.get(family) == Some(kind)).then_some(family)
        },
    )
}

/// `a="b",c="d"}`
#[track_caller]
fn labels_of(text: &str) -> BTreeMap<String, String> {
    let text = text.strip_suffix('}').unwrap_or_else(|| panic!("{text}"));
    let mut labels = BTreeMap::new();
    for label in text.split("\",") {
        let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{label}"));
        let value = value.strip_suffix('"').unwrap_or(value);
        assert_eq!(labels.insert(name.to_owned(), value.to_owned()), None, "{label}: twice");
    }
    labels
}
