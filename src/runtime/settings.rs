//! What a node was told to do: the checked settings that workers read.
//! Owns plain values with units in their names. Never parses: `edge::config` makes these from
//! files, environment and flags, and refuses what does not fit.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::peer::Peer;
use crate::domain::auth::Grants;
use crate::domain::channel::Pattern;

use super::activation::Passed;

/// All settings of a node. Immutable once made; shared by all workers.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub listen: Vec<Endpoint>,
    /// Sockets that a service manager passed, in place of those to be made for `listen`. Given by who starts the process,
    /// not by configuration.
    pub passed: Vec<Passed>,
    pub tls: TlsListeners,
    /// Permissions of the files of unix sockets.
    pub unix_mode: u32,
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
    pub auth: Authentication,
    pub proxy: Proxy,
    pub quotas: QuotaLimits,
    pub log: Log,
    pub admin: Admin,
    pub access_log: Access,
}

/// Where clients come by TLS, and what the node shows them then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsListeners {
    pub listen: Vec<SocketAddr>,
    /// At least one, where there is an address.
    pub certificates: Vec<CertificateFiles>,
}

/// A certificate, with its chain, and its key: PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Where clients come, and how they speak there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub at: At,
    /// They begin with a TLS handshake.
    pub tls: bool,
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    Tcp(SocketAddr),
    /// A file, by its absolute path.
    Unix(PathBuf),
}

impl Endpoint {
    pub const fn plain(at: At) -> Self {
        Self { at, tls: false }
    }

    /// The address, of one that has one.
    pub const fn addr(&self) -> Option<SocketAddr> {
        match self.at {
            At::Tcp(addr) => Some(addr),
            At::Unix(_) => None,
        }
    }
}

/// As it stands in the configuration, with `tls:` before it where TLS is spoken.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tls {
            f.write_str("tls:")?;
        }
        self.at.fmt(f)
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
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
    /// The process's own memory; `None`: a part of the machine's.
    pub memory_bytes: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub head: Duration,
    pub body: Duration,
    /// Keep-alive without a request.
    pub idle: Duration,
    /// A newcomer's request that waited longer for the server, in a crowd, is turned away.
    pub admission: Duration,
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
    /// Of the node.
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

/// Browser origins that may use the server besides its own (`scheme://host[:port]`, lower case; the host may begin with
/// `*.`, which stands for one label or more).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origins {
    pub allow: Vec<String>,
}

/// Who may do what. Nothing of keys, API keys and rules for strangers given: anyone may do everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    pub keys: Vec<TokenKey>,
    /// Keys in the form of others (RFC 7517 §5).
    pub jwks_file: Option<PathBuf>,
    /// A token must be for one of them; empty: it may be for anyone.
    pub audience: Vec<String>,
    /// A token must be of one of them; empty: it may be of anyone.
    pub issuer: Vec<String>,
    /// The name of the cookie that holds a token.
    pub cookie: String,
    /// How far the clocks of those who make tokens may be off.
    pub leeway: Duration,
    /// A token that lives longer is refused.
    pub lifetime_max: Duration,
    /// Revocations kept; beyond it another is refused.
    pub revocations_max: usize,
    pub api_keys: Vec<ApiKey>,
    /// What those may do who do not say who they are.
    pub anonymous: Option<Grants>,
}

impl Authentication {
    /// Whether everything that is not granted is refused.
    pub fn is_configured(&self) -> bool {
        !self.keys.is_empty()
            || self.jwks_file.is_some()
            || !self.api_keys.is_empty()
            || self.anonymous.is_some()
    }
}

/// A key that tokens are signed with, and the one algorithm that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenKey {
    pub kid: Option<String>,
    pub algorithm: TokenAlgorithm,
    pub material: KeyMaterial,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenAlgorithm {
    Hs256,
    Rs256,
    Es256,
    EdDsa,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyMaterial {
    Secret(Secret),
    SecretFile(PathBuf),
    PublicKeyFile(PathBuf),
}

/// What nobody may read in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Box<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A key of a server-side publisher; kept as its digest alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub name: String,
    pub sha256: [u8; 32],
    pub grants: Grants,
}

/// Proxies before the node, and how they say who the client is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Whose word counts.
    pub trusted: Vec<IpNet>,
    /// That of whoever comes by a unix socket too.
    pub trusts_unix: bool,
    /// Their connections begin with a header of the PROXY protocol.
    pub protocol: bool,
    pub header: ProxyHeader,
}

/// The field of a request in which trusted proxies say who the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeader {
    None,
    /// RFC 7239
    Forwarded,
    XForwardedFor,
}

impl Proxy {
    pub fn trusts(&self, peer: &Peer) -> bool {
        match peer.ip() {
            Some(ip) => self.trusted.iter().any(|network| network.contains(&ip)),
            None => self.trusts_unix,
        }
    }

    /// Whether a connection from there must begin by saying who the client is.
    pub fn announces(&self, peer: &Peer) -> bool {
        self.protocol && self.trusts(peer)
    }

    /// Whether requests from there say who the client is.
    pub fn forwards(&self, peer: &Peer) -> bool {
        self.header != ProxyHeader::None && self.trusts(peer)
    }
}

/// What one client may have and do, by its address, by its subject, and all clients together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuotaLimits {
    pub address: QuotaLimit,
    pub subject: QuotaLimit,
    pub node: QuotaLimit,
}

/// `None`: as much as there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaLimit {
    pub connections: Option<usize>,
    pub connections_per_second: Option<u32>,
    pub subscriptions: Option<usize>,
    pub publishes_per_second: Option<u32>,
    pub publish_bytes_per_second: Option<u32>,
}

/// What is logged, to stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// A level (`info`), or directives as tracing-subscriber's `EnvFilter` reads them (`info,pushline::edge=debug`).
    pub level: String,
    pub format: LogFormat,
}

/// A line for each request and each end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    pub to: AccessTo,
    pub format: LogFormat,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessTo {
    Off,
    Stdout,
    Stderr,
    /// Opened again at SIGHUP.
    File(PathBuf),
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
