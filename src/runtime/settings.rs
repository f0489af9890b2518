//! What a node was told to do: the checked settings that workers read.
//! Owns plain values with units in their names. Never parses: `edge::config` makes these from
//! files, environment and flags, and refuses what does not fit.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::channel::Pattern;

use super::activation::Passed;

/// All settings of a node. Immutable once made; shared by all workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub listen: Vec<SocketAddr>,
    /// Sockets that a service manager passed, in place of those to be made for `listen`. Given by who starts the process,
    /// not by configuration.
    pub passed: Vec<Passed>,
    /// Worker threads; `None`: one per core.
    pub workers: Option<usize>,
    pub driver: DriverChoice,
    pub files: FilesChoice,
    /// Anyone may read and publish, on any address.
    pub open: bool,
    /// Start although another Pushline serves the port; it is asked to drain.
    pub takeover: bool,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub heartbeat: Heartbeat,
    pub history: HistoryLimits,
    pub feed: FeedLimits,
    pub slow: SlowReaders,
    pub drain: Drain,
    pub origins: Origins,
    pub log: Log,
    pub admin: Admin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring if the kernel lets us, else epoll, with one line that says so.
    Auto,
    IoUring,
    Epoll,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilesChoice {
    /// Per worker when the open-files limit is below `limits.connections`.
    Auto,
    PerWorker,
    Shared,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections of the node, split evenly among workers.
    pub connections: usize,
    /// One message's data, decoded.
    pub message_bytes: usize,
    /// One request head.
    pub head_bytes: usize,
    /// One batch (`POST /publish`) body.
    pub batch_bytes: usize,
    /// Channels subscribed by one `pushline.v1` connection.
    pub subscriptions: usize,
    /// Channels the node remembers; beyond it the longest unused are forgotten.
    pub channels: usize,
    /// Idempotency keys the node remembers; beyond it new keys are refused with 429.
    pub idempotency_keys: usize,
    /// Bytes waiting in one worker's mailbox.
    pub mailbox_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub head: Duration,
    pub body: Duration,
    /// Keep-alive without a request.
    pub idle: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// WebSocket: ping after so long without a byte received. SSE: comment after so long without a byte sent.
    pub interval: Duration,
    /// WebSocket: closed after so long without a byte received; also TCP_USER_TIMEOUT of every stream.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Of one channel.
    pub messages: usize,
    /// Of one channel.
    pub bytes: usize,
    /// Of one channel.
    pub age: Duration,
    /// Of the node, split evenly among workers.
    pub node_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedLimits {
    /// Framed bytes kept for one channel, encoding and worker.
    pub bytes: usize,
}

/// What happens to a reader whose position history no longer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlowPolicy {
    /// Close it (4408, `$close`); it resumes with its cursor and is told the gap.
    Disconnect,
    /// Tell the gap, go on from the oldest message held.
    Skip,
    /// Tell the gap, go on from the newest message.
    Latest,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SlowReaders {
    pub policy: SlowPolicy,
    /// First pattern that matches a channel decides; else `policy`.
    pub rules: Vec<(Pattern, SlowPolicy)>,
    /// Unsent bytes in the kernel for one reader, more than [`SEGMENT_BYTES_MAX`](super::io::SEGMENT_BYTES_MAX).
    pub kernel_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Goodbyes are spread over so long.
    pub window: Duration,
    /// New connections are taken for so long after readiness has ended.
    pub delay: Duration,
}

/// Browser origins that may use the server besides its own (`scheme://host[:port]`, lower case).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    pub allow: Vec<String>,
}

/// What is logged, to stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level (`info`), or directives as tracing-subscriber's `EnvFilter` reads them (`info,pushline::edge=debug`).
    pub level: String,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// Where an operator looks in, and how they show that they may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// `None`: nowhere.
    pub listen: Option<AdminAddress>,
    /// SHA-256 of the token; `None`: whoever reaches the address may.
    pub token_sha256: Option<[u8; 32]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
