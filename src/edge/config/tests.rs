//! Good and bad configurations, through all layers.

use std::time::Duration;

use super::*;
use crate::domain::channel::Pattern;
use crate::runtime::settings::{AccessTo, At, DriverChoice, FilesChoice, LogFormat, SlowPolicy};

/// A file of the test's own, removed at the end.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pushline-config-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).expect("temporary file");
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn set(assignments: &[&str]) -> Result<Config, Vec<Refusal>> {
    let set = assignments.iter().map(ToString::to_string).collect();
    load(&Inputs { set, ..Inputs::default() })
}

fn env(variables: &[(&str, &str)]) -> Result<Config, Vec<Refusal>> {
    let env = variables.iter().map(|(name, text)| (name.into(), text.into())).collect();
    load(&Inputs { env, ..Inputs::default() })
}

fn file(name: &str, text: &str) -> Result<Config, Vec<Refusal>> {
    let file = TempFile::new(name, text);
    load(&Inputs { config: Some(file.0.clone()), ..Inputs::default() })
}

fn settings(config: Result<Config, Vec<Refusal>>) -> Settings {
    config.expect("good configuration").settings
}

fn told(config: Result<Config, Vec<Refusal>>) -> Vec<String> {
    config.err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_those_that_are_told() {
    let seconds = Duration::from_secs;
    let want = Settings {
        listen: vec![Endpoint::plain(At::Tcp("127.0.0.1:8080".parse().unwrap()))],
        passed: Vec::new(),
        tls: TlsListeners::default(),
        unix_mode: 0o660,
        workers: None,
        driver: DriverChoice::Auto,
        files: FilesChoice::Auto,
        open: false,
        takeover: false,
        limits: Limits {
            connections: 1_000_000,
            message_bytes: 65_536,
            head_bytes: 16_384,
            batch_bytes: 1_048_576,
            subscriptions: 1024,
            channels: 1_000_000,
            idempotency_keys: 100_000,
            mailbox_bytes: 67_108_864,
            memory_bytes: None,
        },
        timeouts: Timeouts { head: seconds(10), body: seconds(30), idle: seconds(75), admission: seconds(5) },
        heartbeat: Heartbeat { interval: seconds(25), timeout: seconds(60) },
        history: HistoryLimits {
            messages: 1000,
            bytes: 1_048_576,
            age: seconds(300),
            node_bytes: 536_870_912,
        },
        feed: FeedLimits { bytes: 1_048_576 },
        slow: SlowReaders { policy: SlowPolicy::Disconnect, rules: vec![], kernel_bytes: 131_072 },
        drain: Drain { window: seconds(10), delay: seconds(0) },
        origins: Origins { allow: vec![] },
        auth: Authentication {
            keys: vec![],
            jwks_file: None,
            audience: vec![],
            issuer: vec![],
            cookie: "pushline_token".into(),
            leeway: seconds(0),
            lifetime_max: seconds(31 * 86_400),
            revocations_max: 100_000,
            api_keys: vec![],
            anonymous: None,
        },
        proxy: Proxy { trusted: vec![], trusts_unix: false, protocol: false, header: ProxyHeader::None },
        quotas: QuotaLimits::default(),
        log: Log { level: "info".into(), format: LogFormat::Text },
        admin: Admin { listen: None, token_sha256: None },
        access_log: Access { to: AccessTo::Off, format: LogFormat::Json },
    };
    assert_eq!(settings(set(&[])), want);
}

/// `pushline.toml` with each `#key = …` made an option; prose has a space after its `#`.
fn shipped_file() -> String {
    let lines = include_str!("../../../pushline.toml").lines().map(|line| match line.strip_prefix('#') {
        Some(option) if option.starts_with(|first: char| first.is_ascii_lowercase()) => option,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_has_every_key_at_its_default() {
    let config = file("shipped", &shipped_file()).expect("good configuration");
    assert_eq!(config.settings, settings(set(&[])));
    for key in KEYS {
        let given = config.layers.get(key);
        assert!(matches!(given.source, Source::File(_)), "{} is not in pushline.toml", key.name);
        assert_eq!(given.value, key.default_value(), "{}", key.name);
    }
}

#[test]
fn the_shipped_file_as_it_is_changes_nothing() {
    let shipped = file("as-it-is", include_str!("../../../pushline.toml"));
    assert_eq!(settings(shipped), settings(set(&[])));
}

#[test]
fn later_layers_win() {
    let low =
        TempFile::new("low", "workers = 1\ndriver = \"epoll\"\nlimits.connections = 1\nfiles = \"shared\"");
    let mut inputs = Inputs { config: Some(low.0.clone()), ..Inputs::default() };
    let four = |inputs: &Inputs| {
        let settings = settings(load(inputs));
        (settings.workers, settings.driver, settings.limits.connections, settings.files)
    };
    assert_eq!(four(&inputs), (Some(1), DriverChoice::Epoll, 1, FilesChoice::Shared));
    inputs.env = vec![
        ("PUSHLINE_WORKERS".into(), "2".into()),
        ("PUSHLINE_DRIVER".into(), "io_uring".into()),
        ("PUSHLINE_LIMITS_CONNECTIONS".into(), "2".into()),
    ];
    assert_eq!(four(&inputs), (Some(2), DriverChoice::IoUring, 2, FilesChoice::Shared));
    inputs.flags = vec![("workers", Value::Integer(3)), ("driver", "auto".into())];
    assert_eq!(four(&inputs), (Some(3), DriverChoice::Auto, 2, FilesChoice::Shared));
    inputs.set = vec!["workers=4".into(), "workers=5".into()];
    assert_eq!(four(&inputs), (Some(5), DriverChoice::Auto, 2, FilesChoice::Shared));
}

#[test]
fn the_file_that_a_variable_names_gives_way_to_the_flag() {
    let (by_env, by_flag) = (TempFile::new("by-env", "workers = 1"), TempFile::new("by-flag", "workers = 2"));
    let mut inputs =
        Inputs { env: vec![("PUSHLINE_CONFIG".into(), by_env.0.clone().into())], ..Inputs::default() };
    assert_eq!(settings(load(&inputs)).workers, Some(1));
    inputs.config = Some(by_flag.0.clone());
    assert_eq!(settings(load(&inputs)).workers, Some(2));
}

#[test]
fn values_are_toml_or_bare_words() {
    for (assignment, right) in [
        ("slow.policy=skip", (|s| s.slow.policy == SlowPolicy::Skip) as fn(&Settings) -> bool),
        ("slow.policy=\"skip\"", |s| s.slow.policy == SlowPolicy::Skip),
        ("slow.policy = skip", |s| s.slow.policy == SlowPolicy::Skip),
        ("limits.message_bytes=32KiB", |s| s.limits.message_bytes == 32_768),
        ("limits.message_bytes=1_000", |s| s.limits.message_bytes == 1000),
        ("limits={connections=7, head_bytes=1024}", |s| {
            s.limits.connections == 7 && s.limits.head_bytes == 1024
        }),
        ("heartbeat.interval_seconds=0.2", |s| s.heartbeat.interval == Duration::from_millis(200)),
        ("drain.window_seconds=0", |s| s.drain.window.is_zero()),
        ("workers=auto", |s| s.workers.is_none()),
        ("listen=[::1]:0", |s| s.listen == [Endpoint::plain(At::Tcp("[::1]:0".parse().unwrap()))]),
        ("listen=[::ffff:127.0.0.1]:80", |s| s.listen.len() == 1),
        ("listen=127.0.0.1:0,127.0.0.1:0", |s| s.listen.len() == 2),
        ("listen=[\"127.0.0.1:1\", \"127.0.0.1:2\"]", |s| s.listen.len() == 2),
        ("origins.allow=https://a.example, https://b.example", |s| {
            s.origins.allow == ["https://a.example", "https://b.example"]
        }),
        ("log.level=off", |s| s.log.level == "off"),
        ("log.level=info,pushline::edge=debug", |s| s.log.level == "info,pushline::edge=debug"),
        ("log.format=json", |s| s.log.format == LogFormat::Json),
        ("slow.rules=[{channels='t/**', policy='latest'}, {channels='t', policy='skip'}]", |s| {
            let pattern = |text| Pattern::parse(text).unwrap();
            s.slow.rules == [(pattern("t/**"), SlowPolicy::Latest), (pattern("t"), SlowPolicy::Skip)]
        }),
    ] {
        assert!(right(&settings(set(&[assignment]))), "{assignment}");
    }
    assert!(settings(env(&[("PUSHLINE_OPEN", "true"), ("PUSHLINE_LISTEN", "0.0.0.0:80,[::]:80")])).open);
}

#[test]
fn the_environment_of_others_is_left_alone() {
    let of_kubernetes = [
        ("PUSHLINE_SERVICE_HOST", "10.0.0.1"),
        ("PUSHLINE_SERVICE_PORT_HTTP", "80"),
        ("PUSHLINE_PORT", "tcp://10.0.0.1:80"),
        ("PUSHLINE_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("PATH", "/bin"),
        ("pushline_workers", "x"),
    ];
    assert_eq!(settings(env(&of_kubernetes)), settings(set(&[])));
}

/// Each refusal names the key, the value given, where, and what would be right.
#[test]
fn bad_values_are_refused() {
    for (assignment, words) in [
        ("limits.connections=0", &["limits.connections = 0", "--set", "1 to 100000000", "1000000"][..]),
        ("limits.connections=-1", &["limits.connections = -1", "whole number"]),
        ("limits.connections=1.5", &["limits.connections = 1.5", "whole number"]),
        ("limits.connections=many", &["limits.connections = \"many\"", "whole number"]),
        ("limits.connections=1KiB", &["\"1KiB\"", "whole number"]),
        ("limits.connections=", &["limits.connections = \"\"", "whole number"]),
        ("limits.head_bytes=1023", &["limits.head_bytes = 1023", "1024 to 1048576", "16384"]),
        ("limits.message_bytes=64k", &["limits.message_bytes = \"64k\"", "64KiB"]),
        ("limits.message_bytes=65MiB", &["\"65MiB\"", "67108864"]),
        ("timeouts.head_seconds=0", &["timeouts.head_seconds = 0", "0.001 to 3600", "10"]),
        ("timeouts.head_seconds=nan", &["timeouts.head_seconds = nan", "0.001"]),
        ("timeouts.head_seconds=inf", &["timeouts.head_seconds = inf", "3600"]),
        ("timeouts.head_seconds=10s", &["\"10s\"", "number of seconds"]),
        ("drain.window_seconds=-1", &["drain.window_seconds = -1", "0 to 3600"]),
        ("workers=0", &["workers = 0", "1 to 1024", "auto"]),
        ("workers=1025", &["workers = 1025", "1 to 1024"]),
        ("driver=uring", &["driver = \"uring\"", "\"auto\", \"io_uring\", \"epoll\""]),
        ("files=per_worker", &["files = \"per_worker\"", "\"per-worker\""]),
        ("open=1", &["open = 1", "true or false"]),
        ("slow.policy=drop", &["slow.policy = \"drop\"", "\"disconnect\", \"skip\", \"latest\""]),
        ("slow.rules=[{channels='a/**/b', policy='skip'}]", &["slow.rules", "a/**/b", "ticker/**"]),
        ("slow.rules=[{channels='a', policy='drop'}]", &["slow.rules", "policy = \"drop\"", "latest"]),
        ("slow.rules=[{chanels='a', policy='skip'}]", &["slow.rules", "chanels", "`channels`"]),
        ("slow.rules=[{channels='a'}]", &["slow.rules", "policy"]),
        ("slow.rules=a", &["slow.rules = \"a\"", "each rule is"]),
        ("listen=8080", &["listen = 8080", "127.0.0.1:8080"]),
        ("listen=localhost:8080", &["localhost:8080", "127.0.0.1:8080", "no host names"]),
        ("listen=[]", &["listen = []", "at least"]),
        ("listen=127.0.0.1:1,127.0.0.1:1", &["127.0.0.1:1 twice"]),
        ("origins.allow=*", &["origins.allow = \"*\"", "list each origin"]),
        ("origins.allow=['https://a.example/']", &["origins.allow", "https://a.example/", "no path"]),
        ("origins.allow=1", &["origins.allow = 1", "list of origins"]),
        ("log.level=inof", &["log.level = \"inof\"", "info"]),
        ("log.level=pushline=loud", &["pushline=loud", "debug"]),
        ("log.level=", &["log.level = \"\"", "info"]),
        ("log.format=xml", &["log.format = \"xml\"", "\"json\""]),
        ("limits=5", &["limits = 5", "is a table", "limits.connections"]),
        ("workers", &["--set workers", "KEY=VALUE"]),
    ] {
        let told = told(set(&[assignment]));
        assert_eq!(told.len(), 1, "{assignment}: {told:?}");
        assert!(words.iter().all(|word| told[0].contains(word)), "{assignment}: {told:?}");
    }
}

#[test]
fn unknown_keys_are_refused_wherever_they_stand() {
    for (got, words) in [
        (set(&["limits.conections=1"]), ["limits.conections (--set)", "did you mean limits.connections?"]),
        (set(&["=1"]), ["unknown key  (--set)", "did you mean"]),
        (
            env(&[("PUSHLINE_LIMITS_CONECTIONS", "1")]),
            [
                "unknown key PUSHLINE_LIMITS_CONECTIONS (environment",
                "did you mean PUSHLINE_LIMITS_CONNECTIONS?",
            ],
        ),
        (file("typo", "[limits]\nconections = 1"), ["typo.toml", "did you mean limits.connections?"]),
        (file("table", "[limit]\nconnections = 1"), ["limit.connections (", "limits.connections?"]),
        (file("empty", "[limit]"), ["unknown key limit (", "did you mean limits."]),
        (file("deep", "[limits.connections.x]\ny = 1"), ["limits.connections = ", "whole number"]),
        (file("syntax", "limits = = 1"), ["syntax.toml is not TOML", "line 1"]),
        (file("twice", "workers = 1\nworkers = 2"), ["twice.toml is not TOML", "workers"]),
        (
            load(&Inputs { config: Some("/no/such.toml".into()), ..Inputs::default() }),
            ["/no/such.toml", "read"],
        ),
        (env(&[("PUSHLINE_CONFIG", "/no/such.toml")]), ["/no/such.toml", "read"]),
    ] {
        let told = told(got);
        assert_eq!(told.len(), 1, "{words:?}: {told:?}");
        assert!(words.iter().all(|word| told[0].contains(word)), "{words:?}: {told:?}");
    }
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    for (assignments, words) in [
        (
            &["heartbeat.interval_seconds=60"][..],
            ["heartbeat.timeout_seconds = 60 (the default)", "heartbeat.interval_seconds = 60 (--set)"],
        ),
        (
            &["heartbeat.timeout_seconds=2"],
            ["heartbeat.timeout_seconds = 2 (--set)", "interval_seconds = 25 (the"],
        ),
        (
            &["limits.batch_bytes=2048"],
            ["limits.batch_bytes = 2048 (--set)", "limits.message_bytes = 65536 (the default)"],
        ),
        (
            &["limits.batch_bytes=1MiB", "limits.message_bytes=2MiB"],
            ["limits.batch_bytes = \"1MiB\" (--set)", "limits.message_bytes = \"2MiB\" (--set)"],
        ),
        (
            &["history.node_bytes=1000000"],
            ["history.node_bytes = 1000000 (--set)", "history.bytes = 1048576 (the default)"],
        ),
        (
            &["history.node_bytes=1GiB", "history.bytes=2GiB"],
            ["history.node_bytes = \"1GiB\" (--set)", "history.bytes = \"2GiB\" (--set)"],
        ),
        (&["listen=0.0.0.0:8080"], ["listen = 0.0.0.0:8080 (--set)", "--open"]),
        (
            &["open=true", "auth.anonymous={ subscribe = ['**'] }"],
            ["open = true (--set)", "auth.anonymous permits only some"],
        ),
        (&["listen=127.0.0.1:1,[::]:1"], ["listen = [::]:1 (--set)", "--open"]),
        (&["listen=unix:/run/a.sock,[::]:1"], ["listen = [::]:1 (--set)", "--open"]),
        (&["proxy.protocol=true"], ["proxy.protocol = true (--set)", "proxy.trusted names nobody"]),
        (&["proxy.header=forwarded"], ["proxy.header = \"forwarded\" (--set)", "proxy.trusted names nobody"]),
    ] {
        let told = told(set(assignments));
        assert_eq!(told.len(), 1, "{assignments:?}: {told:?}");
        assert!(words.iter().all(|word| told[0].contains(word)), "{assignments:?}: {told:?}");
    }
    assert_eq!(told(set(&["feed.bytes=1024", "limits.message_bytes=32MiB"])), [""; 0], "a feed copes");
    assert_eq!(told(set(&["listen=0.0.0.0:8080", "open=true"])), [""; 0]);
    assert_eq!(told(set(&["listen=0.0.0.0:8080", "auth.anonymous={}"])), [""; 0], "nobody may anything");
    assert_eq!(told(set(&["listen=unix:/run/a.sock", "proxy.trusted=unix", "proxy.protocol=true"])), [""; 0]);
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn keys_are_read_with_the_configuration() {
    let good = format!("auth.keys=[{{ algorithm = 'HS256', secret = '{SECRET}' }}]");
    let config = set(&[&good, "listen=0.0.0.0:8080"]).expect("any address, once only some may read");
    assert_eq!(config.policy.counts(), (1, 0));
    for (assignment, words) in [
        (
            "auth.keys=[{ kid = 'k', algorithm = 'HS256', secret = 's3cr3t' }]",
            ["auth.keys[0] (kid k)", "6 bytes"],
        ),
        ("auth.keys=[{ algorithm = 'HS256', secret_file = '/no/such' }]", ["auth.keys[0]", "/no/such"]),
        (
            "auth.keys=[{ algorithm = 'ES256', public_key_file = '/no/such' }]",
            ["auth.keys[0]", "cannot read"],
        ),
        ("auth.jwks_file=/no/such", ["auth.jwks_file", "/no/such"]),
        ("auth.jwks_file=Cargo.toml", ["auth.jwks_file", "is no JWKS"]),
        ("auth.keys=[{ algorithm = 'HS256', secret = 's3cr3t', x = 1 }]", ["(hidden)", "has x"]),
        ("auth.keys=s3cr3t", ["auth.keys = \"(hidden)\"", "must be a list"]),
        ("auth.leeway_seconds=301", ["auth.leeway_seconds = 301", "0 to 300"]),
        ("auth.lifetime_seconds_max=0", ["auth.lifetime_seconds_max = 0", "1 to"]),
        ("auth.anonymous=all", ["auth.anonymous = \"all\"", "news/**"]),
        ("auth.api_keys=[{ name = 'a' }]", ["auth.api_keys", "pushline api-key"]),
    ] {
        let told = told(set(&[assignment]));
        assert_eq!(told.len(), 1, "{assignment}: {told:?}");
        assert!(words.iter().all(|word| told[0].contains(word)), "{assignment}: {told:?}");
        assert!(!told[0].contains("s3cr3t"), "{told:?}");
    }
}

#[test]
fn secrets_are_not_shown() {
    let line = format!("keys = [{{ algorithm = 'HS256', secret = '{SECRET}' }}]");
    let config = file("secret", &format!("[auth]\n{line}")).expect("good configuration");
    let shown = format!("{config}{:?}", config.settings);
    assert!(shown.contains("(hidden)") && !shown.contains(SECRET), "{shown}");
    for text in
        [format!("[auth]\n{line} x"), format!("[auth]\n{line}\n{line}"), format!("[auth]\n{line}\nkeyz = 1")]
    {
        let told = told(file("secret-wrong", &text));
        assert!(!told.is_empty() && !told.concat().contains(SECRET), "{told:?}");
    }
}

#[test]
fn defaults_grow_with_what_must_fit_into_them() {
    for (assignments, want) in [
        (&[][..], (1_048_576, 536_870_912)),
        (&["limits.message_bytes=100KiB"], (1_048_576, 536_870_912)),
        (&["limits.message_bytes=1MiB"], (6 * 1_048_576 + 16_384, 536_870_912)),
        (&["limits.message_bytes=64MiB"], (6 * 67_108_864 + 16_384, 536_870_912)),
        (&["limits.message_bytes=1MiB", "limits.batch_bytes=1MiB"], (1_048_576, 536_870_912)),
        (&["history.bytes=2GiB"], (1_048_576, 2_147_483_648)),
        (&["history.bytes=64GiB"], (1_048_576, 68_719_476_736)),
        (&["history.bytes=2GiB", "history.node_bytes=3GiB"], (1_048_576, 3_221_225_472)),
    ] {
        let settings = settings(set(assignments));
        assert_eq!((settings.limits.batch_bytes, settings.history.node_bytes), want, "{assignments:?}");
    }
    let shown = set(&["limits.message_bytes=1MiB"]).unwrap().to_string();
    let line = "batch_bytes = 6307840  # the default, grown with limits.message_bytes\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn all_refusals_are_told_at_once() {
    let told =
        told(set(&["a=1", "workers=0", "driver=x", "heartbeat.timeout_seconds=1", "listen=0.0.0.0:1"]));
    assert_eq!(told.len(), 3, "comparisons wait until each value is right: {told:?}");
}

#[test]
fn what_is_shown_is_a_file_that_gives_the_same() {
    let config = set(&["limits.connections=5", "slow.rules=[{channels='t/**', policy='latest'}]"]).unwrap();
    let shown = config.to_string();
    assert!(shown.contains("connections = 5  # --set\n"), "{shown}");
    assert!(shown.contains("driver = \"auto\"\n"), "{shown}");
    assert_eq!(settings(file("shown", &shown)), config.settings);
}

#[test]
fn where_operators_look_in() {
    let admin = |assignments: &[&str]| settings(set(assignments)).admin;
    let digest = "00ff".repeat(16);
    let token = format!("admin.token_sha256={digest}");
    let tcp = |text: &str| Some(AdminAddress::Tcp(text.parse().unwrap()));
    assert_eq!(admin(&["admin.listen=none"]).listen, None);
    assert_eq!(admin(&["admin.listen=127.0.0.1:9180"]).listen, tcp("127.0.0.1:9180"));
    assert_eq!(admin(&["admin.listen=[::1]:0"]).listen, tcp("[::1]:0"));
    let unix = admin(&["admin.listen=unix:/run/pushline/admin.sock"]).listen;
    assert_eq!(unix, Some(AdminAddress::Unix("/run/pushline/admin.sock".into())));
    assert_eq!(admin(&["admin.listen=0.0.0.0:9180", &token]).listen, tcp("0.0.0.0:9180"));
    let digest = admin(&[&token]).token_sha256.expect("a digest");
    assert_eq!((digest[0], digest[1], digest[31]), (0, 0xff, 0xff));

    let long = format!("admin.listen=unix:/{}", "x".repeat(100));
    for (assignment, why) in [
        ("admin.listen=0.0.0.0:9180", "set admin.token_sha256"),
        ("admin.listen=192.0.2.1:9180", "could look into the node"),
        ("admin.listen=localhost:9180", "no host names"),
        ("admin.listen=unix:admin.sock", "absolute path"),
        ("admin.listen=unix:/run/", "absolute path"),
        ("admin.listen=9180", "must be \"none\""),
        (&long, "at most"),
        ("admin.token_sha256=secret", "sha256sum"),
        ("admin.token_sha256=00ff", "64 hexadecimal digits"),
    ] {
        let told = told(set(&[assignment]));
        assert!(told.iter().any(|told| told.contains(why)), "{assignment}: {told:?}");
    }
}
