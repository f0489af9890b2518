//! Every key there is: its name, its default, its range. The one list that the file, the environment, `--set` and
//! the checks share.
//! Owns names and how they are found, also when misspelt. Never values: `value` reads those.

use crate::runtime::settings::{
    DriverChoice, FilesChoice, LogFormat, ProxyHeader, SlowPolicy, TokenAlgorithm,
};

/// One key of `pushline.toml`.
#[derive(Debug, PartialEq)]
pub struct Key {
    /// With its table: `limits.connections`.
    pub name: &'static str,
    /// As TOML.
    pub default: &'static str,
    pub range: Range,
}

/// What a number of this key may be, both ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Range {
    Count(usize, usize),
    Bytes(usize, usize),
    Seconds(f64, f64),
    /// Not a number: its reader in `value` has its rule.
    Other,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
/// The shortest time that is told from "at once": clocks and sweeps are no finer.
const MOMENT: f64 = 0.001;
const DAY: f64 = 86_400.0;
/// Most channels, keys or connections that a node is asked to hold. A bound against slips, not a promise.
const MANY: usize = 100_000_000;

/// Most of what is counted by the second. Token buckets have nanoseconds: beyond it they would be far from the mark.
const PER_SECOND_MAX: usize = 10_000_000;

/// In the order in which they are shown: keys without a table first, as TOML needs it.
pub const KEYS: &[Key] = &[
    key("listen", r#"["127.0.0.1:8080"]"#, Range::Other),
    key("unix_mode", r#""0660""#, Range::Other),
    key("workers", r#""auto""#, Range::Count(1, 1024)),
    key("driver", r#""auto""#, Range::Other),
    key("files", r#""auto""#, Range::Other),
    key("open", "false", Range::Other),
    key("takeover", "false", Range::Other),
    key("tls.listen", "[]", Range::Other),
    key("tls.certificates", "[]", Range::Other),
    key("limits.connections", "1000000", Range::Count(1, MANY)),
    key("limits.message_bytes", "65536", Range::Bytes(1, 64 * MIB)),
    key("limits.head_bytes", "16384", Range::Bytes(KIB, MIB)),
    key("limits.batch_bytes", "1048576", Range::Bytes(KIB, GIB)),
    key("limits.subscriptions", "1024", Range::Count(1, 1_000_000)),
    key("limits.channels", "1000000", Range::Count(1, MANY)),
    key("limits.idempotency_keys", "100000", Range::Count(1, MANY)),
    key("limits.mailbox_bytes", "67108864", Range::Bytes(64 * KIB, 64 * GIB)),
    key("limits.memory_bytes", r#""auto""#, Range::Bytes(16 * MIB, 64 * 1024 * GIB)),
    key("timeouts.head_seconds", "10", Range::Seconds(MOMENT, 3600.0)),
    key("timeouts.body_seconds", "30", Range::Seconds(MOMENT, 3600.0)),
    key("timeouts.idle_seconds", "75", Range::Seconds(MOMENT, DAY)),
    key("timeouts.admission_seconds", "5", Range::Seconds(MOMENT, 3600.0)),
    key("heartbeat.interval_seconds", "25", Range::Seconds(MOMENT, DAY)),
    key("heartbeat.timeout_seconds", "60", Range::Seconds(MOMENT, DAY)),
    key("history.messages", "1000", Range::Count(1, MANY)),
    key("history.bytes", "1048576", Range::Bytes(1, 64 * GIB)),
    key("history.seconds", "300", Range::Seconds(MOMENT, 366.0 * DAY)),
    key("history.node_bytes", "536870912", Range::Bytes(1, 1024 * GIB)),
    key("feed.bytes", "1048576", Range::Bytes(KIB, GIB)),
    key("slow.policy", r#""disconnect""#, Range::Other),
    key("slow.kernel_bytes", "131072", Range::Bytes(65 * KIB, 16 * MIB)),
    key("slow.rules", "[]", Range::Other),
    key("drain.window_seconds", "10", Range::Seconds(0.0, 3600.0)),
    key("drain.delay_seconds", "0", Range::Seconds(0.0, 3600.0)),
    key("origins.allow", "[]", Range::Other),
    key("auth.keys", "[]", Range::Other),
    key("auth.jwks_file", r#""none""#, Range::Other),
    key("auth.audience", "[]", Range::Other),
    key("auth.issuer", "[]", Range::Other),
    key("auth.cookie", r#""pushline_token""#, Range::Other),
    key("auth.leeway_seconds", "0", Range::Seconds(0.0, 300.0)),
    key("auth.lifetime_seconds_max", "2678400", Range::Seconds(1.0, 366.0 * DAY)),
    key("auth.revocations_max", "100000", Range::Count(1, 10_000_000)),
    key("auth.api_keys", "[]", Range::Other),
    key("auth.anonymous", r#""none""#, Range::Other),
    key("proxy.trusted", "[]", Range::Other),
    key("proxy.protocol", "false", Range::Other),
    key("proxy.header", r#""none""#, Range::Other),
    key("quotas.address.connections", r#""none""#, Range::Count(1, MANY)),
    key("quotas.address.connections_per_second", r#""none""#, Range::Count(1, PER_SECOND_MAX)),
    key("quotas.address.subscriptions", r#""none""#, Range::Count(1, MANY)),
    key("quotas.address.publishes_per_second", r#""none""#, Range::Count(1, PER_SECOND_MAX)),
    key("quotas.address.publish_bytes_per_second", r#""none""#, Range::Bytes(1, 256 * MIB)),
    key("quotas.subject.connections", r#""none""#, Range::Count(1, MANY)),
    key("quotas.subject.connections_per_second", r#""none""#, Range::Count(1, PER_SECOND_MAX)),
    key("quotas.subject.subscriptions", r#""none""#, Range::Count(1, MANY)),
    key("quotas.subject.publishes_per_second", r#""none""#, Range::Count(1, PER_SECOND_MAX)),
    key("quotas.subject.publish_bytes_per_second", r#""none""#, Range::Bytes(1, 256 * MIB)),
    key("quotas.node.connections", r#""none""#, Range::Count(1, MANY)),
    key("quotas.node.connections_per_second", r#""none""#, Range::Count(1, PER_SECOND_MAX)),
    key("quotas.node.subscriptions", r#""none""#, Range::Count(1, MANY)),
    key("quotas.node.publishes_per_second", r#""none""#, Range::Count(1, PER_SECOND_MAX)),
    key("quotas.node.publish_bytes_per_second", r#""none""#, Range::Bytes(1, 256 * MIB)),
    key("log.level", r#""info""#, Range::Other),
    key("log.format", r#""text""#, Range::Other),
    key("admin.listen", r#""none""#, Range::Other),
    key("admin.token_sha256", r#""none""#, Range::Other),
    key("access_log.to", r#""off""#, Range::Other),
    key("access_log.format", r#""json""#, Range::Other),
];

pub const DRIVERS: &[(&str, DriverChoice)] =
    &[("auto", DriverChoice::Auto), ("io_uring", DriverChoice::IoUring), ("epoll", DriverChoice::Epoll)];
pub const FILES: &[(&str, FilesChoice)] =
    &[("auto", FilesChoice::Auto), ("per-worker", FilesChoice::PerWorker), ("shared", FilesChoice::Shared)];
pub const POLICIES: &[(&str, SlowPolicy)] =
    &[("disconnect", SlowPolicy::Disconnect), ("skip", SlowPolicy::Skip), ("latest", SlowPolicy::Latest)];
pub const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];
pub const ALGORITHMS: &[(&str, TokenAlgorithm)] = &[
    ("HS256", TokenAlgorithm::Hs256),
    ("RS256", TokenAlgorithm::Rs256),
    ("ES256", TokenAlgorithm::Es256),
    ("EdDSA", TokenAlgorithm::EdDsa),
];
pub const HEADERS: &[(&str, ProxyHeader)] = &[
    ("none", ProxyHeader::None),
    ("forwarded", ProxyHeader::Forwarded),
    ("x-forwarded-for", ProxyHeader::XForwardedFor),
];
pub const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];

const fn key(name: &'static str, default: &'static str, range: Range) -> Key {
    Key { name, default, range }
}

impl Key {
    pub fn find(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// `PUSHLINE_LIMITS_CONNECTIONS` for `limits.connections`.
    pub fn env_name(&self) -> String {
        format!("PUSHLINE_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// The default, as the layers hold values.
    pub fn default_value(&self) -> toml::Value {
        self.default.parse().expect("defaults are TOML; a test reads them all")
    }
}

/// The first key in the table `name`, if that is a table.
pub fn first_in(name: &str) -> Option<&'static str> {
    KEYS.iter().find_map(|key| key.name.strip_prefix(name)?.strip_prefix('.'))
}

/// The key most like `wrong`, which may lack its table (`connections`).
pub fn nearest(wrong: &str) -> &'static Key {
    let likeness = |key: &Key| {
        let leaf = key.name.rsplit('.').next().unwrap_or(key.name);
        let whole = strsim::normalized_damerau_levenshtein(wrong, key.name);
        // The whole name wins when both fit as well, and the one of which less is lacking.
        let tables = key.name.matches('.').count() as f64;
        whole.max(strsim::normalized_damerau_levenshtein(wrong, leaf) - 0.01 * tables)
    };
    let by_likeness = |a: &&Key, b: &&Key| likeness(a).total_cmp(&likeness(b));
    KEYS.iter().max_by(by_likeness).expect("there are keys")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_distinct_in_the_file_and_in_the_environment() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        let env: BTreeSet<_> = KEYS.iter().map(Key::env_name).collect();
        assert_eq!((names.len(), env.len()), (KEYS.len(), KEYS.len()));
        assert!(!env.contains("PUSHLINE_CONFIG"), "kept for the flag");
    }

    #[test]
    fn misspelt_names_find_their_key() {
        for (wrong, want) in [
            ("limits.conections", "limits.connections"),
            ("limit.connections", "limits.connections"),
            ("connections", "limits.connections"),
            ("heartbeat.interval", "heartbeat.interval_seconds"),
            ("heartbeat_interval_seconds", "heartbeat.interval_seconds"),
            ("history.message", "history.messages"),
            ("worker", "workers"),
            ("policy", "slow.policy"),
            ("Listen", "listen"),
        ] {
            assert_eq!(nearest(wrong).name, want, "{wrong}");
        }
    }
}
