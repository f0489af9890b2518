//! Configuration: what was given at start becomes the [`Settings`] that workers trust, or refusals that say what is
//! wrong, where it was said, and what would be right.
//! Two stages: `layer` collects raw values with their sources (defaults < file < environment < flags < `--set`), and
//! this file checks each (`value`), then all together. Only checked values leave. Zero never means "default" or
//! "unlimited". All refusals are told at once.
//! Never logs or exits: `cli` does.

pub mod auth;
mod key;
mod layer;
mod value;

use std::fmt::{self, Write};
use std::path::PathBuf;

use toml::Value;

use self::key::{DRIVERS, FILES, FORMATS, HEADERS, KEYS, Key, POLICIES, Range};
use self::layer::Layers;
pub use self::layer::{Inputs, Source, from_text};
use self::value::Read;
use super::auth::{KeyError, Policy};
use crate::proto::client_frame::frame_bytes_max;
use crate::runtime::settings::{
    Access, Admin, AdminAddress, Authentication, Drain, Endpoint, FeedLimits, Heartbeat, HistoryLimits,
    Limits, Log, Origins, Proxy, ProxyHeader, QuotaLimit, QuotaLimits, Settings, SlowReaders, Timeouts,
    TlsListeners,
};

/// Checked settings, and how they came to be.
#[derive(Debug)]
pub struct Config {
    pub settings: Settings,
    /// The keys and rules that `settings.auth` names, read from their files.
    pub policy: Policy,
    layers: Layers,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refusal {
    #[error("unknown key {name} ({from}): did you mean {nearest}?")]
    UnknownKey { name: String, from: Source, nearest: String },
    #[error("{name} = {given} ({from}): {name} is a table; give its keys, like {name}.{example}")]
    TableWanted { name: String, given: Value, from: Source, example: &'static str },
    #[error("{key} = {given} ({from}): {right}; the default is {default}")]
    BadValue { key: &'static str, given: Value, from: Source, right: String, default: &'static str },
    /// Each is right alone, but not together.
    #[error("{first} must be {relation} {second}: {why}")]
    Conflict { first: String, relation: String, second: String, why: &'static str },
    #[error(
        "{key} = {address} ({from}): is not a loopback address, and without authentication anyone who reaches it could \
         read and publish; configure [auth], listen on 127.0.0.1, or permit that with --open (open = true)"
    )]
    NotLoopback { key: &'static str, address: std::net::SocketAddr, from: Source },
    #[error("tls.listen = {address} ({from}): stands in listen too; an address speaks TLS or does not")]
    BothWays { address: std::net::SocketAddr, from: Source },
    #[error(
        "admin.listen = {address} ({from}): is not a loopback address, and without a token anyone who reaches it could look \
         into the node and close connections; set admin.token_sha256, or listen on 127.0.0.1 or unix:/path"
    )]
    AdminWithoutToken { address: std::net::SocketAddr, from: Source },
    #[error(
        "open = true ({from}): permits anyone to do anything, and {configured} permits only some; leave one of them out"
    )]
    OpenAndStrict { from: Source, configured: &'static str },
    #[error(transparent)]
    TokenKeys(#[from] KeyError),
    #[error(
        "{given}: proxy.trusted names nobody whose word would count; name the addresses of your proxies, like \
         [\"10.0.0.0/8\"]"
    )]
    NobodyTrusted { given: String },
    #[error("--set {given}: must be KEY=VALUE, like --set limits.connections=1000")]
    NotAssigned { given: String },
    #[error("cannot read {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: String },
    #[error("{} is not TOML: {error}", path.display())]
    NotToml { path: PathBuf, error: String },
}

impl Config {
    /// Whether somebody chose the value of a key, be it the default.
    pub fn is_given(&self, name: &str) -> bool {
        let key = Key::find(name).expect("only keys of the table are asked for");
        self.layers.get(key).source != Source::Default
    }

    pub fn values(&self) -> Values {
        Values(KEYS.iter().map(|key| (key.name, self.layers.get(key).value)).collect())
    }
}

/// The values of all keys, as they were given or by default: to see what has changed when the configuration is read again.
#[derive(Debug, Clone)]
pub struct Values(Vec<(&'static str, Value)>);

impl Values {
    /// The keys that have other values in `now`, and take effect by a restart alone.
    pub fn need_restart(&self, now: &Self) -> Vec<&'static str> {
        let pairs = self.0.iter().zip(&now.0);
        let changed = pairs.filter(|((_, before), (_, now))| before != now).map(|((name, _), _)| *name);
        changed.filter(|name| !is_reloaded(name)).collect()
    }
}

/// Whether a change of a key takes effect when the configuration is read again.
fn is_reloaded(name: &str) -> bool {
    name.starts_with("auth.") && name != "auth.revocations_max"
}

/// Makes settings from what was given.
///
/// # Errors
/// Every [`Refusal`] found, at least one.
pub fn load(inputs: &Inputs) -> Result<Config, Vec<Refusal>> {
    let (mut layers, refusals) = Layers::read(inputs);
    grow_defaults(&mut layers);
    let mut check = Check { layers: &layers, refusals };
    let settings = check.settings();
    // Values that were replaced by defaults would only be compared to confuse.
    if check.refusals.is_empty() {
        check.together(&settings);
    }
    let policy = check.policy(&settings);
    let refusals = check.refusals;
    match policy {
        Some(policy) if refusals.is_empty() => Ok(Config { settings, policy, layers }),
        _ => Err(refusals),
    }
}

/// Of the largest messages, a node's memory must hold so many.
const MESSAGES_MIN: usize = 64;

/// A key whose default grows with another key, and what it must be at least for the other's value.
struct Growing {
    key: &'static str,
    with: &'static str,
    least: fn(usize) -> usize,
}

const GROWING: [Growing; 2] = [
    Growing {
        key: "limits.batch_bytes",
        with: "limits.message_bytes",
        least: |bytes| frame_bytes_max(bytes as u64) as usize,
    },
    Growing { key: "history.node_bytes", with: "history.bytes", least: |bytes| bytes },
];

/// Who raises one limit should not have to know of all that must be at least as large.
fn grow_defaults(layers: &mut Layers) {
    let find = |name| Key::find(name).expect("only keys of the table grow");
    for Growing { key, with, least } in GROWING {
        let (key, with) = (find(key), find(with));
        let default = value::count(&key.default_value(), key.range);
        // What is no count is refused when it is read.
        if let (Ok(default), Ok(other)) = (default, value::count(&layers.get(with).value, with.range))
            && let Ok(grown) = i64::try_from(least(other))
            && least(other) > default
        {
            layers.grow_default(key, Value::Integer(grown), with.name);
        }
    }
}

/// The settings in force as TOML, with where each that is not a default came from.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = "";
        for key in KEYS {
            let (key_table, leaf) = key.name.rsplit_once('.').unwrap_or(("", key.name));
            if key_table != table {
                write!(f, "\n[{key_table}]\n")?;
                table = key_table;
            }
            let given = self.layers.get(key);
            write!(f, "{leaf} = {}", auth::hide_secrets(key.name, given.value))?;
            match given.source {
                Source::Default => f.write_char('\n')?,
                source => writeln!(f, "  # {source}")?,
            }
        }
        Ok(())
    }
}

/// The second stage under way.
struct Check<'a> {
    layers: &'a Layers,
    refusals: Vec<Refusal>,
}

impl Check<'_> {
    /// The value of a key; after a refusal its default, so that the other keys are still looked at.
    fn read<T>(&mut self, name: &str, read: impl Fn(&Value, Range) -> Read<T>) -> T {
        let key = Key::find(name).expect("only keys of the table are read");
        let given = self.layers.get(key);
        read(&given.value, key.range).unwrap_or_else(|right| {
            let Key { name, default, range } = *key;
            let (given, from) = (auth::hide_secrets(name, given.value), given.source);
            self.refusals.push(Refusal::BadValue { key: name, given, from, right, default });
            read(&key.default_value(), range).expect("defaults are right; a test reads them all")
        })
    }

    fn settings(&mut self) -> Settings {
        Settings {
            listen: self.read("listen", value::endpoints),
            passed: Vec::new(),
            tls: TlsListeners {
                listen: self.read("tls.listen", value::addresses_or_none),
                certificates: self.read("tls.certificates", value::certificates),
            },
            unix_mode: self.read("unix_mode", value::mode),
            workers: self.read("workers", value::workers),
            driver: self.read("driver", |value, _| value::choice(value, DRIVERS)),
            files: self.read("files", |value, _| value::choice(value, FILES)),
            open: self.read("open", value::switch),
            takeover: self.read("takeover", value::switch),
            limits: self.limits(),
            timeouts: Timeouts {
                head: self.read("timeouts.head_seconds", value::seconds),
                body: self.read("timeouts.body_seconds", value::seconds),
                idle: self.read("timeouts.idle_seconds", value::seconds),
                admission: self.read("timeouts.admission_seconds", value::seconds),
            },
            heartbeat: Heartbeat {
                interval: self.read("heartbeat.interval_seconds", value::seconds),
                timeout: self.read("heartbeat.timeout_seconds", value::seconds),
            },
            history: HistoryLimits {
                messages: self.read("history.messages", value::count),
                bytes: self.read("history.bytes", value::count),
                age: self.read("history.seconds", value::seconds),
                node_bytes: self.read("history.node_bytes", value::count),
            },
            feed: FeedLimits { bytes: self.read("feed.bytes", value::count) },
            slow: SlowReaders {
                policy: self.read("slow.policy", |value, _| value::choice(value, POLICIES)),
                rules: self.read("slow.rules", value::rules),
                kernel_bytes: self.read("slow.kernel_bytes", value::count),
            },
            drain: Drain {
                window: self.read("drain.window_seconds", value::seconds),
                delay: self.read("drain.delay_seconds", value::seconds),
            },
            origins: Origins { allow: self.read("origins.allow", value::origins) },
            auth: self.auth(),
            proxy: self.proxy(),
            quotas: QuotaLimits {
                address: self.quota("address"),
                subject: self.quota("subject"),
                node: self.quota("node"),
            },
            log: Log {
                level: self.read("log.level", value::log_level),
                format: self.read("log.format", |value, _| value::choice(value, FORMATS)),
            },
            admin: Admin {
                listen: self.read("admin.listen", value::admin_address),
                token_sha256: self.read("admin.token_sha256", value::sha256),
            },
            access_log: Access {
                to: self.read("access_log.to", value::access_to),
                format: self.read("access_log.format", |value, _| value::choice(value, FORMATS)),
            },
        }
    }

    fn auth(&mut self) -> Authentication {
        Authentication {
            keys: self.read("auth.keys", auth::keys),
            jwks_file: self.read("auth.jwks_file", auth::file),
            audience: self.read("auth.audience", auth::names),
            issuer: self.read("auth.issuer", auth::names),
            cookie: self.read("auth.cookie", auth::cookie),
            leeway: self.read("auth.leeway_seconds", value::seconds),
            lifetime_max: self.read("auth.lifetime_seconds_max", value::seconds),
            revocations_max: self.read("auth.revocations_max", value::count),
            api_keys: self.read("auth.api_keys", auth::api_keys),
            anonymous: self.read("auth.anonymous", auth::anonymous),
        }
    }

    /// Reads the files of keys that the settings name.
    fn policy(&mut self, settings: &Settings) -> Option<Policy> {
        match Policy::load(&settings.auth) {
            Ok(policy) => Some(policy),
            Err(errors) => {
                self.refusals.extend(errors.into_iter().map(Refusal::TokenKeys));
                None
            }
        }
    }

    fn limits(&mut self) -> Limits {
        Limits {
            connections: self.read("limits.connections", value::count),
            message_bytes: self.read("limits.message_bytes", value::count),
            head_bytes: self.read("limits.head_bytes", value::count),
            batch_bytes: self.read("limits.batch_bytes", value::count),
            subscriptions: self.read("limits.subscriptions", value::count),
            channels: self.read("limits.channels", value::count),
            idempotency_keys: self.read("limits.idempotency_keys", value::count),
            mailbox_bytes: self.read("limits.mailbox_bytes", value::count),
            memory_bytes: self.read("limits.memory_bytes", value::memory),
        }
    }

    fn proxy(&mut self) -> Proxy {
        let (trusted, trusts_unix) = self.read("proxy.trusted", value::trusted);
        Proxy {
            trusted,
            trusts_unix,
            protocol: self.read("proxy.protocol", value::switch),
            header: self.read("proxy.header", |value, _| value::choice(value, HEADERS)),
        }
    }

    fn quota(&mut self, scope: &str) -> QuotaLimit {
        let key = |name: &str| format!("quotas.{scope}.{name}");
        QuotaLimit {
            connections: self.read(&key("connections"), value::quota),
            connections_per_second: self.read(&key("connections_per_second"), value::rate),
            subscriptions: self.read(&key("subscriptions"), value::quota),
            publishes_per_second: self.read(&key("publishes_per_second"), value::rate),
            publish_bytes_per_second: self.read(&key("publish_bytes_per_second"), value::rate),
        }
    }

    /// What only values together can get wrong.
    fn together(&mut self, settings: &Settings) {
        let Settings { heartbeat, limits, history, .. } = settings;
        let rules = [
            (
                heartbeat.timeout > heartbeat.interval,
                ("heartbeat.timeout_seconds", "greater than", "heartbeat.interval_seconds"),
                "a live client must get a ping, and time to answer it, before it is taken for dead",
            ),
            (
                limits.batch_bytes >= limits.message_bytes,
                ("limits.batch_bytes", "at least", "limits.message_bytes"),
                "a message that may be published must fit into a batch",
            ),
            (
                limits.memory_bytes.is_none_or(|bytes| bytes / MESSAGES_MIN >= limits.message_bytes),
                ("limits.memory_bytes", "at least 64 times", "limits.message_bytes"),
                "a node that a few messages fill would refuse all others",
            ),
            (
                history.node_bytes >= history.bytes,
                ("history.node_bytes", "at least", "history.bytes"),
                "one channel cannot keep more than all channels together",
            ),
            (
                settings.tls.listen.is_empty() || !settings.tls.certificates.is_empty(),
                ("tls.certificates", "given with", "tls.listen"),
                "a client that comes by TLS must be shown a certificate",
            ),
            (
                settings.tls.certificates.is_empty() || !settings.tls.listen.is_empty(),
                ("tls.listen", "given with", "tls.certificates"),
                "without an address for TLS, nobody is shown a certificate",
            ),
        ];
        for (holds, (first, relation, second), why) in rules {
            if !holds {
                let (first, second) = (self.shown(first), self.shown(second));
                self.refusals.push(Refusal::Conflict { first, relation: relation.into(), second, why });
            }
        }
        let Proxy { trusted, trusts_unix, protocol, header } = &settings.proxy;
        if trusted.is_empty() && !trusts_unix {
            for (is_on, key) in
                [(*protocol, "proxy.protocol"), (*header != ProxyHeader::None, "proxy.header")]
            {
                if is_on {
                    self.refusals.push(Refusal::NobodyTrusted { given: self.shown(key) });
                }
            }
        }
        let strict = settings.auth.is_configured();
        let permitted = settings.open || strict;
        let reachable = |address: &std::net::SocketAddr| !address.ip().to_canonical().is_loopback();
        let plain: Vec<std::net::SocketAddr> = settings.listen.iter().filter_map(Endpoint::addr).collect();
        for (key, addresses) in [("listen", &plain), ("tls.listen", &settings.tls.listen)] {
            if let Some(&address) = addresses.iter().find(|address| reachable(address) && !permitted) {
                let from = self.given(key).source;
                self.refusals.push(Refusal::NotLoopback { key, address, from });
            }
        }
        let is_plain = |address: &&std::net::SocketAddr| address.port() != 0 && plain.contains(address);
        if let Some(&address) = settings.tls.listen.iter().find(is_plain) {
            self.refusals.push(Refusal::BothWays { address, from: self.given("tls.listen").source });
        }
        if let Admin { listen: Some(AdminAddress::Tcp(address)), token_sha256: None } = settings.admin
            && reachable(&address)
        {
            let from = self.given("admin.listen").source;
            self.refusals.push(Refusal::AdminWithoutToken { address, from });
        }
        if settings.open && strict {
            let keys = ["auth.keys", "auth.jwks_file", "auth.api_keys", "auth.anonymous"];
            let configured = keys.into_iter().find(|key| self.given(key).source != Source::Default);
            let configured = configured.unwrap_or("[auth]");
            self.refusals.push(Refusal::OpenAndStrict { from: self.given("open").source, configured });
        }
    }

    fn given(&self, name: &str) -> layer::Given {
        self.layers.get(Key::find(name).expect("only keys of the table are shown"))
    }

    fn shown(&self, name: &str) -> String {
        let layer::Given { value, source } = self.given(name);
        format!("{name} = {value} ({source})")
    }
}

#[cfg(test)]
mod tests;
