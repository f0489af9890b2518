//! From checked settings to a serving node.
//! Owns the order of starting: logs first, so that everything after can speak. Never parses settings.

use std::net::SocketAddr;

use crate::edge::log;
use crate::edge::site::Site;
use crate::runtime::server::{self, Ended, ServeError};
use crate::runtime::settings::Settings;

/// Serves until told to stop.
///
/// # Errors
/// [`ServeError`] when the node cannot start; nothing was served then.
pub fn run(settings: Settings) -> Result<Ended, ServeError> {
    log::init(&settings.log);
    if !settings.open {
        tracing::info!(
            "listening on loopback alone; anyone on this machine may read and publish. --open permits other addresses"
        );
    }
    server::serve(settings, Site::new, greet)
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
