//! Values of keys: from TOML to what a worker may rely on.
//! Owns what each value may be, and the words that say so. Never names of keys or where a value came from.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Value;

use super::key::{LEVELS, POLICIES, Range};
use crate::domain::channel::Pattern;
use crate::edge::log;
use crate::runtime::settings::{AccessTo, AdminAddress, CertificateFiles, SlowPolicy};

/// Units of sizes. Only powers of two, so that nobody has to guess what `64K` is.
const UNITS: [(&str, usize); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A checked value, or what would be right.
pub type Read<T> = Result<T, String>;

pub fn switch(value: &Value, _: Range) -> Read<bool> {
    value.as_bool().ok_or_else(|| "must be true or false".into())
}

pub fn choice<T: Copy>(value: &Value, among: &[(&str, T)]) -> Read<T> {
    let found = among.iter().find(|(word, _)| value.as_str() == Some(word));
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let words: Vec<_> = among.iter().map(|(word, _)| format!("{word:?}")).collect();
        format!("must be one of {}", words.join(", "))
    })
}

/// A number of things, or of bytes (which may have a unit).
pub fn count(value: &Value, range: Range) -> Read<usize> {
    let (min, max, what, number) = match range {
        Range::Count(min, max) => (min, max, "a whole number from", plain(value)),
        Range::Bytes(min, max) => {
            (min, max, "a whole number of bytes, or one with a unit like \"64KiB\", from", {
                plain(value).or_else(|| value.as_str().and_then(size))
            })
        }
        Range::Seconds(..) | Range::Other => unreachable!("the table of keys gives counts a range of counts"),
    };
    number
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("must be {what} {min} to {max}"))
}

/// A number of things, or `"auto"`: one per core.
pub fn workers(value: &Value, range: Range) -> Read<Option<usize>> {
    if value.as_str() == Some("auto") {
        return Ok(None);
    }
    count(value, range).map(Some).map_err(|right| format!("{right}, or \"auto\" (one per core)"))
}

/// A number of bytes, or `"auto"`: a part of the machine's memory.
pub fn memory(value: &Value, range: Range) -> Read<Option<usize>> {
    if value.as_str() == Some("auto") {
        return Ok(None);
    }
    count(value, range).map(Some).map_err(|right| format!("{right}, or \"auto\" (half of the machine's)"))
}

pub fn seconds(value: &Value, range: Range) -> Read<Duration> {
    let Range::Seconds(min, max) = range else {
        unreachable!("the table of keys gives times a range of times")
    };
    let number = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64));
    number.filter(|number| (min..=max).contains(number)).map(Duration::from_secs_f64).ok_or_else(|| {
        format!("must be a number of seconds from {min} to {max}; fractions like 0.2 are fine")
    })
}

const ADDRESS: &str = "an address with a port, like \"127.0.0.1:8080\" or \"[::1]:8080\"";

/// One or more addresses.
pub fn addresses(value: &Value, range: Range) -> Read<Vec<SocketAddr>> {
    let addresses = addresses_or_none(value, range)?;
    if addresses.is_empty() { Err(format!("must have at least {ADDRESS}")) } else { Ok(addresses) }
}

/// Addresses, each once; port 0 (any free one) as often as wanted.
pub fn addresses_or_none(value: &Value, _: Range) -> Read<Vec<SocketAddr>> {
    const RIGHT: &str = ADDRESS;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for text in texts(value).ok_or_else(|| format!("must be a list of which each is {RIGHT}"))? {
        let address = text.parse().map_err(|_| format!("{text:?} must be {RIGHT} (no host names)"))?;
        if addresses.contains(&address) && address.port() != 0 {
            return Err(format!("must not name {address} twice"));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// Certificates as the file has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCertificate {
    certificate_file: PathBuf,
    key_file: PathBuf,
}

pub fn certificates(value: &Value, _: Range) -> Read<Vec<CertificateFiles>> {
    const RIGHT: &str = "each is { certificate_file = \"/etc/pushline/example.pem\", key_file = \"/etc/pushline/example.key\" }";
    let raw: Vec<RawCertificate> =
        value.clone().try_into().map_err(|error: toml::de::Error| format!("{}; {RIGHT}", error.message()))?;
    let checked = raw.into_iter().map(|RawCertificate { certificate_file, key_file }| {
        if certificate_file.as_os_str().is_empty() || key_file.as_os_str().is_empty() {
            return Err(format!("must name both files; {RIGHT}"));
        }
        Ok(CertificateFiles { certificate: certificate_file, key: key_file })
    });
    checked.collect()
}

/// The longest path of a unix socket: the kernel's field less its end (unix(7)), and less what a name of its own beside it
/// takes while it is made.
const SOCKET_PATH_BYTES_MAX: usize = 107 - 16;

/// Where operators look in; `None`: nowhere.
pub fn admin_address(value: &Value, _: Range) -> Read<Option<AdminAddress>> {
    const RIGHT: &str =
        "\"none\", an address with a port like \"127.0.0.1:9180\", or \"unix:/run/pushline/admin.sock\"";
    let text = value.as_str().ok_or_else(|| format!("must be {RIGHT}"))?;
    if text == "none" {
        return Ok(None);
    }
    let Some(path) = text.strip_prefix("unix:") else {
        let address = text.parse().map_err(|_| format!("must be {RIGHT} (no host names)"))?;
        return Ok(Some(AdminAddress::Tcp(address)));
    };
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(format!("must have an absolute path to a file after unix:, or be {RIGHT}"));
    }
    if path.len() > SOCKET_PATH_BYTES_MAX {
        return Err(format!(
            "must have a path of at most {SOCKET_PATH_BYTES_MAX} bytes: the kernel takes no longer one for a socket"
        ));
    }
    Ok(Some(AdminAddress::Unix(PathBuf::from(path))))
}

/// A SHA-256 digest in hexadecimal, or `"none"`.
pub fn sha256(value: &Value, _: Range) -> Read<Option<[u8; 32]>> {
    const RIGHT: &str = "must be the SHA-256 of the token as 64 hexadecimal digits (printf %s TOKEN | sha256sum), or \"none\"";
    let text = value.as_str().ok_or(RIGHT)?;
    if text == "none" {
        return Ok(None);
    }
    let digits: Option<Vec<u32>> = text.chars().map(|letter| letter.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == 64).ok_or(RIGHT)?;
    Ok(Some(std::array::from_fn(|at| (digits[2 * at] << 4 | digits[2 * at + 1]) as u8)))
}

/// Rules as the file has them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    channels: String,
    policy: Value,
}

pub fn rules(value: &Value, _: Range) -> Read<Vec<(Pattern, SlowPolicy)>> {
    const RIGHT: &str = "each rule is { channels = \"ticker/**\", policy = \"latest\" }";
    let raw: Vec<RawRule> =
        value.clone().try_into().map_err(|error: toml::de::Error| format!("{}; {RIGHT}", error.message()))?;
    raw.into_iter()
        .map(|RawRule { channels, policy }| {
            let pattern = Pattern::parse(&channels)
                .map_err(|error| format!("channels = {channels:?} is no pattern: {error}; {RIGHT}"))?;
            let policy =
                choice(&policy, POLICIES).map_err(|right| format!("policy = {policy} {right}; {RIGHT}"))?;
            Ok((pattern, policy))
        })
        .collect()
}

pub fn log_level(value: &Value, _: Range) -> Read<String> {
    let right = || {
        let levels = LEVELS.join(", ");
        format!("must be one of {levels}, or directives of the form \"info,pushline::edge=debug\" with them")
    };
    let text = value.as_str().ok_or_else(right)?;
    // EnvFilter takes a word that is no level for a target, and then logs nothing or everything.
    let is_level = |part: &str| LEVELS.contains(&part.rsplit('=').next().unwrap_or(part));
    if !text.split(',').all(is_level) {
        return Err(right());
    }
    log::filter(text).map_err(|error| format!("{}: {error}", right()))?;
    Ok(text.to_owned())
}

/// `"off"`, `"stdout"`, `"stderr"`, or the name of a file.
pub fn access_to(value: &Value, _: Range) -> Read<AccessTo> {
    match value.as_str() {
        Some("off") => Ok(AccessTo::Off),
        Some("stdout") => Ok(AccessTo::Stdout),
        Some("stderr") => Ok(AccessTo::Stderr),
        // A slip in one of the words above must not become a file of that name.
        Some(path) if path.contains('/') => Ok(AccessTo::File(path.into())),
        _ => Err("must be \"off\", \"stdout\", \"stderr\", or a file with its directory, like \
                  \"/var/log/pushline/access.log\" or \"./access.log\""
            .into()),
    }
}

pub fn origins(value: &Value, _: Range) -> Read<Vec<String>> {
    let texts = texts(value).ok_or("must be a list of origins, like [\"https://app.example\"]")?;
    texts.into_iter().map(|text| origin(text).map(|()| text.to_owned())).collect()
}

/// An origin as browsers send it: compared byte for byte, so only that form is of use.
fn origin(text: &str) -> Read<()> {
    let wrong = |why: &str| Err(format!("{text:?} {why}; an origin is like \"https://app.example\""));
    match text {
        "null" => {
            return wrong("cannot be allowed: sandboxed and local pages of anybody send it");
        }
        _ if text.matches('*').count() > usize::from(text.contains("://*.")) => {
            return wrong(
                "has a `*` that would let other people's pages act for your users: list each origin, or allow all below a \
                 domain of yours, like \"https://*.app.example\"",
            );
        }
        _ if text.chars().any(char::is_uppercase) => {
            return wrong("must be in lower case, as browsers send it");
        }
        _ => {}
    }
    let Some((scheme, rest)) = text.split_once("://") else { return wrong("must begin with its scheme") };
    let plain_scheme =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+.-".contains(&byte);
    if !scheme.starts_with(|first: char| first.is_ascii_lowercase()) || !scheme.bytes().all(plain_scheme) {
        return wrong("has no valid scheme");
    }
    if rest.contains(['/', '?', '#']) {
        return wrong("must end after its host and port: browsers send no path, not even a last `/`");
    }
    // The colons of an IPv6 address end at its bracket.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (rest, None),
    };
    // All below a domain: one of the operator's own, so more than a top-level one.
    let host = match host.strip_prefix("*.") {
        Some(domain)
            if !domain.contains('.') || domain.bytes().all(|byte| b"0123456789.".contains(&byte)) =>
        {
            return wrong("would allow everyone's pages: name a domain of your own after `*.`");
        }
        Some(domain) => domain,
        None => host,
    };
    let plain_host = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok_and(|address| address.to_string() == v6),
        None => !host.is_empty() && host.bytes().all(plain_host) && !host.starts_with('.'),
    };
    if !is_host {
        return wrong(
            "has no valid host (international names in their `xn--` form, IPv6 shortest, in brackets)",
        );
    }
    match (scheme, port) {
        (_, None) => Ok(()),
        ("https", Some("443")) | ("http", Some("80")) => {
            wrong("names its scheme's own port, which browsers leave out: leave it out too")
        }
        (_, Some(port)) => match port.parse::<u16>() {
            Ok(number) if number != 0 && number.to_string() == port => Ok(()),
            _ => wrong("has no valid port"),
        },
    }
}

/// A list of strings; one string is a list too, split at commas (environment variables have no other form).
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(text.split(',').map(str::trim).filter(|text| !text.is_empty()).collect()),
        Value::Array(values) => values.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

fn plain(value: &Value) -> Option<usize> {
    value.as_integer().and_then(|number| usize::try_from(number).ok())
}

/// `64KiB`, `1 MiB`.
fn size(text: &str) -> Option<usize> {
    let (number, unit) =
        UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), *bytes)))?;
    // `parse` alone would take a sign.
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if digits { number.parse::<usize>().ok()?.checked_mul(unit) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("64KiB", Some(65_536)),
            ("1 MiB", Some(1 << 20)),
            ("2GiB", Some(2 << 30)),
            ("512B", Some(512)),
            ("64K", None),
            ("64kb", None),
            ("64", None),
            ("KiB", None),
            ("-1KiB", None),
            ("+1KiB", None),
            ("1.5MiB", None),
            ("99999999999999999999GiB", None),
            ("18446744073709551615GiB", None),
        ] {
            assert_eq!(size(text), want, "{text}");
        }
    }

    #[test]
    fn origins_are_what_browsers_send() {
        for (text, why) in [
            ("https://app.example", None),
            ("http://localhost:3000", None),
            ("http://127.0.0.1:3000", None),
            ("http://[::1]:3000", None),
            ("http://[::1]", None),
            ("https://xn--bcher-kva.example", None),
            ("capacitor://localhost", None),
            ("chrome-extension://abcdefghijklmnop", None),
            ("*", Some("list each origin")),
            ("https://*.app.example", None),
            ("https://*.app.example:8443", None),
            ("https://*.app.example:443", Some("leave it out")),
            ("https://*.App.example", Some("lower case")),
            ("https://*app.example", Some("list each origin")),
            ("https://app.*.example", Some("list each origin")),
            ("https://*.*.example", Some("list each origin")),
            ("*://app.example", Some("list each origin")),
            ("https://*.example", Some("domain of your own")),
            ("https://*.", Some("domain of your own")),
            ("https://*.127.0.0.1", Some("domain of your own")),
            ("https://*..example.com", Some("host")),
            ("null", Some("sandboxed")),
            ("app.example", Some("scheme")),
            ("://app.example", Some("scheme")),
            ("", Some("scheme")),
            ("https://app.example/", Some("no path")),
            ("https://app.example/chat", Some("no path")),
            ("https://app.example?x", Some("no path")),
            ("https://App.example", Some("lower case")),
            ("https://app.example:443", Some("leave it out")),
            ("http://app.example:80", Some("leave it out")),
            ("https://app.example:0", Some("port")),
            ("https://app.example:08443", Some("port")),
            ("https://app.example:99999", Some("port")),
            ("https://app.example:", Some("port")),
            ("https://", Some("host")),
            ("https://user@app.example", Some("host")),
            ("https://bücher.example", Some("xn--")),
            ("http://[0:0:0:0:0:0:0:1]", Some("shortest")),
        ] {
            match (origin(text), why) {
                (Ok(()), None) => {}
                (Err(said), Some(why)) => {
                    assert!(said.contains(why) && said.contains(text), "{text}: {said}")
                }
                (got, _) => panic!("{text:?}: {got:?}"),
            }
        }
    }
}
