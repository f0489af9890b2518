//! Logs: one line an event, to stderr, for people (text) or machines (JSON).
//! Owns the form of lines and the filter. Never decides what is logged: code does, with `tracing`.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::runtime::settings::{Log, LogFormat};
use crate::runtime::stderr;

/// Reads `log.level`: a level, or directives such as `info,pushline::edge=debug`.
///
/// # Errors
/// What `EnvFilter` could not read. It takes a bare misspelt level for a target: `edge::config` looks for those.
pub fn filter(level: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::builder().parse(level)
}

/// Sends events to stderr from now on, and panics, without ever waiting for it. The first call of a process decides; later
/// ones change nothing.
pub fn init(log: &Log) {
    let filter = filter(&log.level).expect("edge::config checked log.level");
    // A line that cannot be written is lost: told with `eprintln!`, it would panic on the same broken stderr.
    stderr::start();
    stderr::say_panics();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Lines).log_internal_errors(false);
    // An error here means only that a subscriber is installed already.
    let _ = match log.format {
        LogFormat::Text => builder.compact().with_ansi(colours()).try_init(),
        LogFormat::Json => {
            // Fields lie beside `timestamp`, `level`, `message` and `target`; nothing here uses spans.
            let json = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
            json.try_init()
        }
    };
}

/// Where lines go: each comes whole, in one write.
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr::say(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Only where a person looks, and not where they asked for none (<https://no-color.org>).
fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
