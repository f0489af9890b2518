//! One answer, as a test asks it: its status, its fields, its body, problem details.
//! Owns a strict reading of a head (RFC 9112 §4). Never reads from a connection.

use serde_json::Value;

/// One final answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub version: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Statuses of the 1xx answers before it.
    pub interim: Vec<u16>,
}

impl Response {
    /// An answer without its body; `None`: what ends with a blank line is no head.
    pub fn of_head(head: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(head).ok()?;
        let mut lines = text.strip_suffix("\r\n\r\n")?.split("\r\n");
        let mut first = lines.next()?.splitn(3, ' ');
        let version = first.next().filter(|version| version.starts_with("HTTP/1."))?.to_owned();
        let status = first.next()?.parse().ok()?;
        let mut headers = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            assert!(!name.is_empty() && !name.contains(' ') && !line.contains(['\r', '\n']), "{line:?}");
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Some(Self { version, status, headers, body: Vec::new(), interim: Vec::new() })
    }

    /// A header's value; the name in any case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// A header's value that must be there once.
    pub fn header(&self, name: &str) -> &str {
        let count = self.headers.iter().filter(|(is, _)| is.eq_ignore_ascii_case(name)).count();
        assert_eq!(count, 1, "one {name} in {self}");
        self.get(name).unwrap_or_default()
    }

    /// Whether a header's comma-separated list (all its lines) has a member, in any case.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        self.headers
            .iter()
            .filter(|(is, _)| is.eq_ignore_ascii_case(name))
            .flat_map(|(_, value)| value.split(','))
            .any(|is| is.trim().eq_ignore_ascii_case(member))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self}"))
    }

    /// Asserts the status; gives itself back.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Asserts that this is problem details (RFC 9457) of a status; gives its `detail`.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{self}");
        for name in ["type", "title", "detail"] {
            assert!(problem[name].as_str().is_some_and(|text| !text.is_empty()), "`{name}` in {self}");
        }
        problem["detail"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether the server says that it closes the connection.
    pub fn closes(&self) -> bool {
        self.lists("connection", "close")
            || (self.version == "HTTP/1.0" && !self.lists("connection", "keep-alive"))
    }
}

impl std::fmt::Display for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} {}", self.version, self.status)?;
        for (name, value) in &self.headers {
            writeln!(f, "{name}: {value}")?;
        }
        write!(f, "\n{}", String::from_utf8_lossy(&self.body))
    }
}
