//! From checked settings to a serving node.
//! Owns the order of starting: logs first, so that everything after can speak. Never parses settings.

use crate::edge::log;
use crate::runtime::settings::Settings;

/// Why a node does not serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("serving is not built yet")]
    NotYet,
}

/// Serves until told to stop.
///
/// # Errors
/// [`StartError`] when the node cannot start; nothing was served then.
pub fn run(settings: Settings) -> Result<(), StartError> {
    log::init(&settings.log);
    Err(StartError::NotYet)
}
