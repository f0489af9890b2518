//! From checked settings to a serving node.
//! Owns the order of starting: logs first, so that everything after can speak. Never parses settings.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ServerConfig;

use crate::edge::admin::{self, Admin};
use crate::edge::auth::{Auth, Policy};
use crate::edge::certificates;
use crate::edge::config::{self, Config, Inputs, Values};
use crate::edge::doctor::{self, Wanted};
use crate::edge::log;
use crate::edge::machine::Machine;
use crate::edge::rules;
use crate::edge::site::Site;
use crate::runtime::activation::{self, Passed};
use crate::runtime::node::Node;
use crate::runtime::serve_error::ServeError;
use crate::runtime::server::{self, Ended};
use crate::runtime::settings::{At, Endpoint, Settings};
use crate::runtime::stderr;

/// Serves until told to stop.
///
/// # Errors
/// [`ServeError`] when the node cannot start; nothing was served then.
pub fn run(config: Config, inputs: Inputs, tls: Option<Arc<ServerConfig>>) -> Result<Ended, ServeError> {
    log::init(&config.settings.log);
    let machine = Machine::read_quickly();
    warn_of_limits(&config, &machine);
    let values = config.values();
    let Config { mut settings, policy, .. } = config;
    settings.limits.memory_bytes = settings.limits.memory_bytes.or_else(|| machine.memory_share());
    settings.passed = passed(&settings)?;
    let is_strict = settings.auth.is_configured();
    if is_strict {
        tell_keys("authentication is configured", &policy);
    } else if !settings.open {
        tracing::info!(
            "listening on loopback alone; anyone on this machine may read and publish. [auth] says who may do what; \
             --open permits other addresses without it"
        );
    }
    let auth = Arc::new(Auth::new(policy, settings.auth.revocations_max));
    let make_edge = {
        let auth = Arc::clone(&auth);
        move |node: &Arc<Node>| Site::new(node, &auth)
    };
    certificates::tell(&settings.tls);
    let listeners = settings.tls.clone();
    let (listening, operators) = (Cell::new(None), Cell::new(None));
    let ended = server::serve(
        settings,
        tls,
        make_edge,
        |settings| {
            listening.set(admin::listen(settings)?);
            Ok(|| {
                let mut waits = listening.take();
                waits.iter_mut().for_each(admin::begin);
                listening.set(waits);
            })
        },
        |node, endpoints| {
            operators.set(listening.take().map(|listening| Admin::start(node, &auth.revocations, listening)));
            greet(endpoints);
        },
        |node| {
            reload(&inputs, &auth, node, is_strict, &values);
            certificates::reload(&listeners, node);
        },
    );
    // Operators look on until the last client is gone.
    drop(operators);
    stderr::flush();
    ended
}

/// The sockets that a service manager passed, if those that they reach may be reached.
fn passed(settings: &Settings) -> Result<Vec<Passed>, ServeError> {
    let passed = activation::passed()?;
    let loopback_alone = !settings.open && !settings.auth.is_configured();
    let is_far = |addr: SocketAddr| loopback_alone && !addr.ip().to_canonical().is_loopback();
    let far = passed.iter().find_map(|passed| match passed.at {
        At::Tcp(addr) if is_far(addr) => Some((passed, addr)),
        At::Tcp(_) | At::Unix(_) => None,
    });
    match far {
        Some((Passed { name, .. }, addr)) => Err(ServeError::PassedReachable { name: name.clone(), addr }),
        None => Ok(passed),
    }
}

/// Reads the configuration and its files again. What of them is wrong changes nothing.
fn reload(inputs: &Inputs, auth: &Arc<Auth>, node: &Node, is_strict: bool, values: &Values) {
    match config::load(inputs) {
        Ok(config) if config.settings.auth.is_configured() == is_strict => {
            let waiting = values.need_restart(&config.values());
            if is_strict {
                auth.replace(config.policy);
                rules::go_around(auth, node);
                tell_keys("keys and rules are loaded anew", &auth.policy());
            }
            if !waiting.is_empty() {
                tracing::warn!(
                    changed = waiting.join(", "),
                    "reload: these options have changed, and take effect by a restart alone"
                );
            }
        }
        Ok(_) => tracing::error!(
            "reload: authentication is turned on or off by a restart alone; the keys and rules stay as they were"
        ),
        Err(refusals) => {
            for refusal in refusals {
                tracing::error!(%refusal, "reload: the configuration is wrong; the keys and rules stay as they were");
            }
        }
    }
}

fn tell_keys(message: &str, policy: &Policy) {
    let (keys, api_keys) = policy.counts();
    tracing::info!(keys, api_keys, "{message}");
    for left_out in policy.left_out() {
        tracing::info!(left_out, "a key of auth.jwks_file is not used");
    }
}

/// Says what keeps the node from the connections that it is configured for: what `pushline doctor` finds, or, when nobody
/// chose their number, one line that names it.
fn warn_of_limits(config: &Config, machine: &Machine) {
    let report = doctor::examine(machine, &Wanted::new(&config.settings, None, machine));
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
fn greet(listening: &[Endpoint]) {
    use std::io::Write;
    for addr in listening.iter().filter(|endpoint| endpoint.tls).filter_map(Endpoint::addr) {
        let _ = writeln!(std::io::stdout(), "Pushline serves https://{addr}/");
    }
    let Some(addr) = listening.iter().filter(|endpoint| !endpoint.tls).find_map(Endpoint::addr) else {
        return;
    };
    // A closed stdout is no reason not to serve.
    let _ = writeln!(
        std::io::stdout(),
        "Pushline serves http://{addr}/ - try:\n  curl -N -H 'Accept: text/event-stream' http://{addr}/channels/news\n  \
         curl -d hello http://{addr}/channels/news"
    );
}
