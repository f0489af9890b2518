//! Makes API keys: what `pushline api-key` prints. The key itself is kept nowhere, the configuration has its digest.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use toml::Value;

use crate::domain::auth::{Act, pattern_for};
use crate::domain::channel::NameError;
use crate::edge::config::auth::is_api_key_name;

/// Finds a key that was put where it should not be; scanners look for such prefixes.
const PREFIX: &str = "pushline_";
const KEY_BYTES: usize = 32;

/// Why no key was made.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum NotMade {
    #[error("api-key: the name must have 1 to 128 bytes and no control characters")]
    Name,
    #[error("api-key: --{} {pattern:?} is no channel pattern: {error}", act.as_str())]
    Pattern { act: Act, pattern: String, error: NameError },
    #[error("api-key: this machine has no random bytes: {0}")]
    Random(getrandom::Error),
}

/// A new key, and the line that permits it: what to print.
///
/// # Errors
/// [`NotMade`]
pub fn make(name: &str, grants: &[(Act, Vec<String>)]) -> Result<String, NotMade> {
    if !is_api_key_name(name) {
        return Err(NotMade::Name);
    }
    for (act, patterns) in grants {
        for pattern in patterns {
            if let Err(error) = pattern_for(pattern, Some(name)) {
                return Err(NotMade::Pattern { act: *act, pattern: pattern.clone(), error });
            }
        }
    }
    let mut random = [0; KEY_BYTES];
    getrandom::fill(&mut random).map_err(NotMade::Random)?;
    let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    Ok(text(name, &key, grants))
}

fn text(name: &str, key: &str, grants: &[(Act, Vec<String>)]) -> String {
    let mut line = format!("{{ name = {}, sha256 = \"", Value::from(name));
    for byte in Sha256::digest(key) {
        let _ = write!(line, "{byte:02x}");
    }
    line.push('"');
    let nothing_is_said = grants.iter().all(|(_, patterns)| patterns.is_empty());
    for (act, patterns) in grants {
        let patterns: Vec<Value> = match act {
            Act::Publish if nothing_is_said => vec!["**".into()],
            _ => patterns.iter().map(|pattern| pattern.as_str().into()).collect(),
        };
        let _ = write!(line, ", {} = {}", act.as_str(), Value::Array(patterns));
    }
    line.push_str(" }");
    format!(
        "# The key of {name}, shown this once: its publisher sends it as `Authorization: Bearer KEY`.\n{key}\n\n\
         # What permits it: an entry of auth.api_keys in pushline.toml (then SIGHUP).\n{line}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::config::{Inputs, load};

    #[test]
    fn what_is_printed_is_what_the_configuration_takes() {
        let grants = |publish: &[&str], subscribe: &[&str]| {
            let owned = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            [(Act::Publish, owned(publish)), (Act::Subscribe, owned(subscribe)), (Act::Delete, vec![])]
        };
        for (name, grants, publishes, reads) in [
            ("app", grants(&[], &[]), true, false),
            ("a \"b\" \\ c", grants(&["news/**"], &["**"]), true, true),
            ("reader", grants(&[], &["**"]), false, true),
        ] {
            let printed = make(name, &grants).expect("a key");
            let lines: Vec<&str> =
                printed.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
            let [key, line] = lines[..] else { panic!("{printed}") };
            let set = vec![format!("auth.api_keys=[{line}]")];
            let config =
                load(&Inputs { set, ..Inputs::default() }).unwrap_or_else(|errors| panic!("{errors:?}"));
            assert_eq!(config.policy.api_key(&Sha256::digest(key).into()), Some(0), "{printed}");
            let made = &config.settings.auth.api_keys[0];
            assert_eq!(made.name, name);
            let may = |patterns: &[crate::domain::channel::Pattern]| {
                patterns.iter().any(|pattern| pattern.matches("news/a"))
            };
            assert_eq!(
                (may(&made.grants.publish), may(&made.grants.subscribe)),
                (publishes, reads),
                "{printed}"
            );
        }
        assert_ne!(make("a", &[]), make("a", &[]));
        assert_eq!(make("", &[]), Err(NotMade::Name));
        assert!(matches!(
            make("a", &[(Act::Publish, vec!["a//b".into()])]),
            Err(NotMade::Pattern { act: Act::Publish, .. })
        ));
    }
}
