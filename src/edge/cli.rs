//! The command line: `pushline [serve]`, `pushline check-config`, `pushline doctor`, `pushline api-key`,
//! `pushline --version`.
//! Owns flags, their help, exit codes (0, 1: could not serve, or the doctor found why not, 2: wrong command line or
//! configuration, 128 and more: a second signal) and what is printed before logs exist. Never checks a value: flags go to
//! `config` as they came, like every other layer.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use toml::Value;

use crate::domain::auth::Act;
use crate::edge::api_key;
use crate::edge::certificates;
use crate::edge::config::{self, Config, Inputs};
use crate::edge::doctor::{self, Wanted};
use crate::edge::machine::Machine;
use crate::edge::start;
use crate::edge::watch::{self, Watching};
use crate::runtime::server::Ended;
use crate::runtime::stderr;

/// Stopped by a second signal in the middle of a drain: this and the signal's number, as shells tell of signals.
const EXIT_SIGNALLED: i32 = 128;
const EXIT_FAILED: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// As many as `limits.connections` may be.
const CONNECTIONS_MAX: u64 = 100_000_000;

const AFTER_HELP: &str = "\
Every key of pushline.toml is an environment variable too: PUSHLINE_, then the key in upper case with _ for each dot \
(limits.connections: PUSHLINE_LIMITS_CONNECTIONS).
What is given last here wins: defaults, the file, the environment, flags, --set.";

/// A connection server: publish over HTTP, read by polling, Server-Sent Events or WebSocket.
#[derive(Debug, Parser)]
#[command(name = "pushline", version, args_conflicts_with_subcommands = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve (the same as no command)
    #[command(after_help = AFTER_HELP)]
    Serve(Flags),
    /// Check the configuration that `serve` would have with the same flags, show it, and end
    #[command(after_help = AFTER_HELP)]
    CheckConfig(Flags),
    /// Tell what on this machine would stop so many connections, and the remedy; exit code 1 when something would
    #[command(after_help = AFTER_HELP)]
    Doctor(Examination),
    /// Make an API key for a server-side publisher: prints the key, and the line of pushline.toml that permits it
    ApiKey {
        /// Who it is for: stands in logs, and tells its publishes from those of others
        name: String,
        /// Channels that it may publish to, as patterns; repeatable [default: **]
        #[arg(long, value_name = "PATTERN")]
        publish: Vec<String>,
        /// Channels that it may read; repeatable [default: none]
        #[arg(long, value_name = "PATTERN")]
        subscribe: Vec<String>,
        /// Channels whose history it may delete; repeatable [default: none]
        #[arg(long, value_name = "PATTERN")]
        delete: Vec<String>,
    },
    /// Show, live, what happens to a client or a channel of a node that runs: an event a line, until Ctrl-C
    Trace(Trace),
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("of").required(true).multiple(true)))]
struct Trace {
    /// Where the node's admin listener is (admin.listen): http://ADDR:PORT or unix:PATH
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9180")]
    admin: String,
    /// A file with the admin listener's token, where it has one
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// A connection, by the id that `$open` or `open` gave it
    #[arg(long, value_name = "ID", group = "of")]
    connection: Vec<String>,
    /// All that one subject (`sub` of tokens) does
    #[arg(long, value_name = "SUB", group = "of")]
    subject: Vec<String>,
    /// A channel: who comes and goes, what is published and sent
    #[arg(long, value_name = "NAME", group = "of")]
    channel: Vec<String>,
    /// Clients at an address, in a network (10.0.0.0/8), or, with `unix`, at unix sockets
    #[arg(long, value_name = "IP", group = "of")]
    address: Vec<String>,
    /// Each event as the JSON object that it is
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Examination {
    /// How many connections to hold [default: limits.connections]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=CONNECTIONS_MAX))]
    connections: Option<u64>,
    /// One JSON object, for machines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Debug, Args)]
struct Flags {
    /// Where clients come, ADDR:PORT or unix:/PATH; repeat it for several [default: 127.0.0.1:8080] [env: PUSHLINE_LISTEN]
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',')]
    listen: Vec<String>,
    /// Worker threads [default: one per core] [env: PUSHLINE_WORKERS]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// auto, io_uring or epoll [default: auto] [env: PUSHLINE_DRIVER]
    #[arg(long)]
    driver: Option<String>,
    /// File tables: auto, per-worker or shared [default: auto] [env: PUSHLINE_FILES]
    #[arg(long)]
    files: Option<String>,
    /// The configuration file [default: pushline.toml, if there is one] [env: PUSHLINE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Permit anyone on any address [env: PUSHLINE_OPEN=true]
    #[arg(long)]
    open: bool,
    /// Start although another Pushline serves the port: it is asked to drain [env: PUSHLINE_TAKEOVER=true]
    #[arg(long)]
    takeover: bool,
    /// Any key of the file; the value as in the file, or a bare word; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Flags {
    /// What `config` needs, with the process's own environment.
    fn into_inputs(self) -> Inputs {
        let Self { listen, workers, driver, files, config, open, takeover, set } = self;
        let mut flags = Vec::new();
        if !listen.is_empty() {
            flags.push(("listen", listen.into()));
        }
        for (name, text) in [("workers", workers), ("driver", driver), ("files", files)] {
            flags.extend(text.map(|text| (name, config::from_text(&text))));
        }
        for (name, given) in [("open", open), ("takeover", takeover)] {
            flags.extend(given.then_some((name, Value::Boolean(true))));
        }
        Inputs { config, flags, set, env: std::env::vars_os().collect() }
    }
}

/// The whole program: reads the command line, does what it says, and gives the exit code.
pub fn main() -> ExitCode {
    let Cli { command, flags } = Cli::parse();
    let (flags, then): (Flags, Box<dyn FnOnce(Config, Inputs) -> ExitCode>) = match command {
        None => (flags, Box::new(serve)),
        Some(Command::Serve(flags)) => (flags, Box::new(serve)),
        Some(Command::CheckConfig(flags)) => (flags, Box::new(|config, _| show(config))),
        Some(Command::Doctor(Examination { connections, json, flags })) => {
            let connections = connections.map(|number| number as usize);
            (flags, Box::new(move |config, _| examine(&config, connections, json)))
        }
        Some(Command::ApiKey { name, publish, subscribe, delete }) => {
            return match api_key::make(
                &name,
                &[(Act::Publish, publish), (Act::Subscribe, subscribe), (Act::Delete, delete)],
            ) {
                Ok(text) => {
                    let _ = write!(std::io::stdout(), "{text}");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!("pushline: {error}");
                    ExitCode::from(EXIT_USAGE)
                }
            };
        }
        Some(Command::Trace(asked)) => return trace(asked),
    };
    let inputs = flags.into_inputs();
    match config::load(&inputs) {
        Ok(config) => then(config, inputs),
        Err(refusals) => {
            refusals.iter().for_each(|refusal| eprintln!("pushline: {refusal}"));
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn serve(config: Config, inputs: Inputs) -> ExitCode {
    let tls = match certificates::load(&config.settings.tls, None) {
        Ok(tls) => tls,
        Err(error) => return refuse(&error),
    };
    match start::run(config, inputs, tls) {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        // Workers are in the middle of things: only the end of the process stops them.
        Ok(Ended::AtOnce(signal)) => std::process::exit(EXIT_SIGNALLED + signal.number()),
        Err(error) => {
            // After whatever the log says, and not waiting for ever either.
            stderr::say(format!("pushline: {error}\n").as_bytes());
            stderr::flush();
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn trace(asked: Trace) -> ExitCode {
    let Trace { admin, token_file, connection, subject, channel, address, json } = asked;
    let token = match token_file.as_ref().map(std::fs::read_to_string).transpose() {
        Ok(token) => token.map(|token| token.trim().to_owned()),
        Err(error) => {
            let file = token_file.unwrap_or_default();
            eprintln!("pushline: --token-file {}: cannot be read ({error})", file.display());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let named =
        [("connection", connection), ("subject", subject), ("channel", channel), ("address", address)];
    let of =
        named.into_iter().flat_map(|(name, texts)| texts.into_iter().map(move |text| (name, text))).collect();
    match watch::run(&Watching { admin, token, of, json }, &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pushline: {error}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn refuse(refusal: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("pushline: {refusal}");
    ExitCode::from(EXIT_USAGE)
}

/// All of it is TOML, so that it can be kept as a file.
fn show(config: Config) -> ExitCode {
    if let Err(error) = certificates::load(&config.settings.tls, None) {
        return refuse(&error);
    }
    if print(&format!("# configuration ok\n\n{config}\n")) {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_FAILED)
    }
}

/// Whether it was told. Whoever closes the pipe (`| head`) has seen enough: no failure.
fn print(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            eprintln!("pushline: cannot write to stdout: {error}");
            false
        }
        _ => true,
    }
}

fn examine(config: &Config, connections: Option<usize>, json: bool) -> ExitCode {
    let machine = Machine::read();
    let report = doctor::examine(&machine, &Wanted::new(&config.settings, connections, &machine));
    let text = if json {
        serde_json::to_string(&report).expect("numbers and texts") + "\n"
    } else {
        report.to_string()
    };
    if print(&text) && report.stops == 0 { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_same_flags_with_and_without_the_word() {
        for words in [
            &["pushline"][..],
            &["pushline", "serve"],
            &["pushline", "check-config"],
            &["pushline", "doctor"],
        ] {
            let flags =
                ["--listen", "127.0.0.1:1", "--listen", "[::1]:2,127.0.0.1:3", "--workers", "2", "--open"];
            let cli = Cli::try_parse_from(words.iter().chain(&flags)).expect("parses");
            let flags = match cli.command {
                Some(Command::Serve(flags) | Command::CheckConfig(flags)) => flags,
                Some(Command::Doctor(examination)) => examination.flags,
                Some(Command::ApiKey { .. }) => unreachable!("no such word here"),
                Some(Command::Trace(_)) => unreachable!("not among the words"),
                None => cli.flags,
            };
            let listen = vec!["127.0.0.1:1", "[::1]:2", "127.0.0.1:3"];
            let want = [("listen", listen.into()), ("workers", Value::Integer(2)), ("open", true.into())];
            assert_eq!(flags.into_inputs().flags, want, "{words:?}");
        }
    }

    #[test]
    fn flags_before_the_word_are_refused_not_lost() {
        assert!(Cli::try_parse_from(["pushline", "--open", "serve", "--takeover"]).is_err());
    }

    #[test]
    fn help_names_each_variable() {
        let help = Cli::command().render_long_help().to_string();
        for name in ["LISTEN", "WORKERS", "DRIVER", "FILES", "CONFIG", "OPEN", "TAKEOVER"] {
            assert!(help.contains(&format!("PUSHLINE_{name}")), "{name}: {help}");
        }
    }
}
