//! The layers that values come from: file, environment, flags, `--set`, each above the one before.
//! Owns reading them, and which value of a key wins. Never what a value may be: `value` and `config` check that.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;

use toml::{Table, Value};

use super::Refusal;
use super::key::{self, KEYS, Key};

/// The file that is read when none is named, if it is there.
pub const FILE_DEFAULT: &str = "pushline.toml";
/// Names the file, like `--config`.
const ENV_CONFIG: &str = "PUSHLINE_CONFIG";
const ENV_PREFIX: &str = "PUSHLINE_";

/// Everything that was given at start, as it came.
#[derive(Clone, Default)]
pub struct Inputs {
    /// `--config`.
    pub config: Option<PathBuf>,
    /// Flags that are keys, by the key's name, which is also the flag's.
    pub flags: Vec<(&'static str, Value)>,
    /// `--set`, each `KEY=VALUE`.
    pub set: Vec<String>,
    /// The whole environment; only names that begin with `PUSHLINE_` are looked at.
    pub env: Vec<(OsString, OsString)>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Default,
    /// A default that is larger than usual, because another key was raised.
    Grown(&'static str),
    File(PathBuf),
    Env(String),
    Flag(&'static str),
    Set,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::Grown(with) => write!(f, "the default, grown with {with}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "--{name}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    pub value: Value,
    pub source: Source,
}

/// The value that won, for each key that was given at all.
#[derive(Debug, Default)]
pub struct Layers {
    given: BTreeMap<&'static str, Given>,
    refusals: Vec<Refusal>,
}

impl Layers {
    /// Reads all layers; refuses what is no key, and what cannot be read at all.
    pub fn read(inputs: &Inputs) -> (Self, Vec<Refusal>) {
        let mut layers = Self::default();
        layers.file(inputs);
        for (name, text) in &inputs.env {
            layers.variable(name, text);
        }
        for (name, value) in &inputs.flags {
            layers.put(name, value.clone(), &Source::Flag(name));
        }
        for assignment in &inputs.set {
            match assignment.split_once('=') {
                Some((name, text)) => layers.put(name.trim(), from_text(text), &Source::Set),
                None => layers.refusals.push(Refusal::NotAssigned { given: assignment.clone() }),
            }
        }
        let refusals = std::mem::take(&mut layers.refusals);
        (layers, refusals)
    }

    /// The value of a key, whatever it came from.
    pub fn get(&self, key: &'static Key) -> Given {
        let default = || Given { value: key.default_value(), source: Source::Default };
        self.given.get(key.name).cloned().unwrap_or_else(default)
    }

    /// Gives a key another default, for the sake of the key `with`.
    pub fn grow_default(&mut self, key: &'static Key, value: Value, with: &'static str) {
        self.given.entry(key.name).or_insert(Given { value, source: Source::Grown(with) });
    }

    fn file(&mut self, inputs: &Inputs) {
        let named_by_env =
            || inputs.env.iter().find(|(name, _)| name == ENV_CONFIG).map(|(_, path)| path.into());
        let named: Option<PathBuf> = inputs.config.clone().or_else(named_by_env);
        let path = named.clone().unwrap_or_else(|| FILE_DEFAULT.into());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound && named.is_none() => return,
            Err(error) => return self.refusals.push(Refusal::Unreadable { path, error: error.to_string() }),
        };
        match text.parse::<Table>() {
            Ok(table) => {
                let source = Source::File(path);
                table.into_iter().for_each(|(name, value)| self.put(&name, value, &source));
            }
            Err(error) => {
                let mut error = error.to_string();
                // It shows the line that is wrong, and a secret may stand there.
                if error.contains("secret") {
                    error = error.lines().next().unwrap_or_default().to_owned();
                }
                self.refusals.push(Refusal::NotToml { path, error });
            }
        }
    }

    fn variable(&mut self, name: &OsString, text: &OsString) {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else { return };
        if name == ENV_CONFIG || is_of_kubernetes(name) {
            return;
        }
        let from = Source::Env(name.to_owned());
        match KEYS.iter().find(|key| key.env_name() == name) {
            Some(key) => self.put(key.name, from_text(&text.to_string_lossy()), &from),
            None => {
                let plain = name[ENV_PREFIX.len()..].to_lowercase();
                let nearest = key::nearest(&plain).env_name();
                self.refusals.push(Refusal::UnknownKey { name: name.to_owned(), from, nearest });
            }
        }
    }

    /// Takes one key, or a table of them, over what lower layers said.
    fn put(&mut self, name: &str, value: Value, source: &Source) {
        if let Some(key) = Key::find(name) {
            self.given.insert(key.name, Given { value, source: source.clone() });
            return;
        }
        let from = source.clone();
        match (value, key::first_in(name)) {
            (Value::Table(table), Some(_)) => self.put_all(name, table, source),
            // A misspelt table: each of its keys finds its like.
            (Value::Table(table), None) if !table.is_empty() => self.put_all(name, table, source),
            (given, Some(example)) => {
                self.refusals.push(Refusal::TableWanted { name: name.to_owned(), given, from, example })
            }
            (_, None) => {
                let nearest = key::nearest(name).name.to_owned();
                self.refusals.push(Refusal::UnknownKey { name: name.to_owned(), from, nearest });
            }
        }
    }

    fn put_all(&mut self, table_name: &str, table: Table, source: &Source) {
        for (leaf, value) in table {
            self.put(&format!("{table_name}.{leaf}"), value, source);
        }
    }
}

/// What was typed: TOML, or else a bare string (`skip`, `127.0.0.1:80`).
pub fn from_text(text: &str) -> Value {
    let text = text.trim();
    text.parse().unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// Kubernetes sets `PUSHLINE_SERVICE_HOST`, `PUSHLINE_PORT_8080_TCP` and the like in every pod beside a service that is
/// called `pushline`; they are no settings, and must not keep a node from starting.
fn is_of_kubernetes(name: &str) -> bool {
    let name = &name[ENV_PREFIX.len()..];
    let is_number = |rest: &str| rest.starts_with(|first: char| first.is_ascii_digit());
    name == "SERVICE_HOST"
        || name == "PORT"
        || name.starts_with("SERVICE_PORT")
        || name.strip_prefix("PORT_").is_some_and(is_number)
}
