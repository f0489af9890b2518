//! The access log of a server under test, read from its file as it grows.

use std::path::PathBuf;

use serde_json::Value;

use super::server::Server;
use super::until;

/// Settings for a server whose log is read here.
pub const ACCESS_LOG: [&str; 2] = ["--set", "access_log.to=./access.log"];

pub struct AccessLog(PathBuf);

impl AccessLog {
    pub fn of(server: &Server) -> Self {
        Self(server.dir().join("access.log"))
    }

    pub fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap_or_default()
    }

    /// All lines so far, each of which is JSON.
    pub fn lines(&self) -> Vec<Value> {
        let text = self.text();
        // The last one may be on its way.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    /// Waits for a line that fits.
    #[track_caller]
    pub fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        until(&format!("a line in the access log: {what}"), || {
            self.lines().into_iter().find(|line| fits(line))
        })
    }

    /// Waits for the answer to a request of this path.
    #[track_caller]
    pub fn request(&self, path: &str) -> Value {
        self.wait(path, |line| line["type"] == "request" && line["path"] == path)
    }

    /// Waits for the end of a client's connection.
    #[track_caller]
    pub fn end_of(&self, client: std::net::SocketAddr) -> Value {
        let peer = client.to_string();
        self.wait(&format!("the end of {peer}"), |line| line["type"] == "close" && line["peer"] == peer)
    }
}
