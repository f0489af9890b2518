//! From checked settings to a serving node.
//! Owns the order of starting: logs first, so that everything after can speak. Never parses settings.

use std::cell::Cell;
use std::net::SocketAddr;

use crate::edge::admin::{self, Admin};
use crate::edge::config::Config;
use crate::edge::doctor::{self, Wanted};
use crate::edge::log;
use crate::edge::machine::Machine;
use crate::edge::site::Site;
use crate::runtime::activation::{self, Passed};
use crate::runtime::server::{self, Ended, ServeError};
use crate::runtime::settings::Settings;

/// Serves until told to stop.
///
/// # Errors
/// [`ServeError`] when the node cannot start; nothing was served then.
pub fn run(config: Config) -> Result<Ended, ServeError> {
    log::init(&config.settings.log);
    warn_of_limits(&config);
    let mut settings = config.settings;
    settings.passed = passed(&settings)?;
    if !settings.open {
        tracing::info!(
            "listening on loopback alone; anyone on this machine may read and publish. --open permits other addresses"
        );
    }
    let (listening, operators) = (Cell::new(None), Cell::new(None));
    let ended = server::serve(
        settings,
        Site::new,
        |settings| {
            listening.set(admin::listen(settings)?);
            Ok(())
        },
        |node, addresses| {
            operators.set(listening.take().map(|listening| Admin::start(node, listening)));
            greet(addresses);
        },
        |_| {},
    );
    // Operators look on until the last client is gone.
    drop(operators);
    ended
}

/// The sockets that a service manager passed, if those that they reach may be reached.
fn passed(settings: &Settings) -> Result<Vec<Passed>, ServeError> {
    let passed = activation::passed()?;
    match passed.iter().find(|passed| !settings.open && !passed.addr.ip().to_canonical().is_loopback()) {
        Some(Passed { name, addr, .. }) => {
            Err(ServeError::PassedReachable { name: name.clone(), addr: *addr })
        }
        None => Ok(passed),
    }
}

/// Says what keeps the node from the connections that it is configured for: what `pushline doctor` finds, or, when nobody
/// chose their number, one line that names it.
fn warn_of_limits(config: &Config) {
    let machine = Machine::read_quickly();
    let report = doctor::examine(&machine, &Wanted::new(&config.settings, None, &machine));
    let (asked, holds) = (report.connections, report.holds);
    if report.stops == 0 {
        return;
    }
    if config.is_given("limits.connections") {
        for finding in report.stopping() {
            let remedy = finding.remedy.as_deref();
            tracing::warn!(limit = finding.name, holds = finding.holds, asked, remedy, "{}", finding.says);
        }
    } else {
        tracing::info!(
            holds,
            asked,
            "this machine may hold fewer connections than the default limits.connections; `pushline doctor` tells why, \
             and the remedy"
        );
    }
}

/// A line to try, for whoever started this in a terminal.
fn greet(addresses: &[SocketAddr]) {
    use std::io::Write;
    let Some(addr) = addresses.first() else { return };
    // A closed stdout is no reason not to serve.
    let _ = writeln!(
        std::io::stdout(),
        "Pushline serves http://{addr}/ - try:\n  curl -N -H 'Accept: text/event-stream' http://{addr}/channels/news\n  \
         curl -d hello http://{addr}/channels/news"
    );
}
