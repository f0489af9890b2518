//! Values of keys: from TOML to what a worker may rely on.
//! Owns what each value may be, and the words that say so. Never names of keys or where a value came from.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use toml::Value;

use super::key::{LEVELS, POLICIES, Range};
use crate::domain::channel::Pattern;
use crate::edge::log;
use crate::runtime::settings::{AccessTo, AdminAddress, At, CertificateFiles, Endpoint, SlowPolicy};
use crate::runtime::unix::PATH_BYTES_MAX;

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

/// Something that is counted, or `"none"`: as much as there is.
pub fn quota(value: &Value, range: Range) -> Read<Option<usize>> {
    if value.as_str() == Some("none") {
        return Ok(None);
    }
    count(value, range).map(Some).map_err(|right| format!("{right}, or \"none\" (as much as there is)"))
}

/// The same, counted by the second.
pub fn rate(value: &Value, range: Range) -> Read<Option<u32>> {
    // The table of keys keeps it far below.
    quota(value, range).map(|rate| rate.map(|rate| u32::try_from(rate).unwrap_or(u32::MAX)))
}

const PLACE: &str = "an address with a port, like \"127.0.0.1:8080\" or \"[::1]:8080\", or a unix socket, like \
                     \"unix:/run/pushline.sock\"";

/// One or more places to listen at, each once; port 0 (any free one) as often as wanted.
pub fn endpoints(value: &Value, _: Range) -> Read<Vec<Endpoint>> {
    let endpoints = places(value)?;
    if endpoints.is_empty() { Err(format!("must have at least {PLACE}")) } else { Ok(endpoints) }
}

fn places(value: &Value) -> Read<Vec<Endpoint>> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    for text in texts(value).ok_or_else(|| format!("must be a list of which each is {PLACE}"))? {
        let endpoint = Endpoint::plain(place(text)?);
        if endpoints.contains(&endpoint) && endpoint.addr().is_none_or(|addr| addr.port() != 0) {
            return Err(format!("must not name {endpoint} twice"));
        }
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

/// An address with a port, or `unix:` and a path.
fn place(text: &str) -> Read<At> {
    let Some(path) = text.strip_prefix("unix:") else {
        let addr = text.parse().map_err(|_| format!("{text:?} must be {PLACE} (no host names)"))?;
        return Ok(At::Tcp(addr));
    };
    if !path.starts_with('/') || path.ends_with('/') {
        return Err(format!("{text:?} must name a file by its whole path, like \"unix:/run/pushline.sock\""));
    }
    if path.len() > PATH_BYTES_MAX || path.contains('\0') {
        return Err(format!(
            "{text:?} must be a path of at most {PATH_BYTES_MAX} bytes: sockets take no longer ones"
        ));
    }
    Ok(At::Unix(path.into()))
}

/// Permissions of a file, in octal.
pub fn mode(value: &Value, _: Range) -> Read<u32> {
    let is_digit = |byte: u8| byte.is_ascii_digit();
    let digits = value.as_str().filter(|text| (3..=4).contains(&text.len()) && text.bytes().all(is_digit));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| {
        "must be permissions in octal, in quotes: \"0660\" (its user and group), \"0666\" (all)".into()
    })
}

/// Networks, addresses, and `unix`.
pub fn trusted(value: &Value, _: Range) -> Read<(Vec<IpNet>, bool)> {
    const RIGHT: &str = "a network like \"10.0.0.0/8\" or \"2001:db8::/32\", an address, or \"unix\" (who comes by a unix socket)";
    let (mut networks, mut unix) = (Vec::new(), false);
    for text in texts(value).ok_or_else(|| format!("must be a list of which each is {RIGHT}"))? {
        if text == "unix" {
            unix = true;
            continue;
        }
        let network =
            text.parse::<IpNet>().or_else(|error| text.parse::<IpAddr>().map(IpNet::from).map_err(|_| error));
        let network = network.map_err(|_| format!("{text:?} must be {RIGHT}"))?;
        if network.trunc() != network {
            return Err(format!("{text:?} has bits beyond its prefix: {} is the network", network.trunc()));
        }
        networks.push(network);
    }
    Ok((networks, unix))
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
    fn places_to_listen_at() {
        let read = |text: &str| endpoints(&Value::String(text.into()), Range::Other);
        let shown = |text: &str| {
            let endpoints = read(text).expect("good places");
            endpoints.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown("127.0.0.1:1,unix:/run/a.sock"), "127.0.0.1:1 unix:/run/a.sock");
        let long = format!("unix:/{}", "x".repeat(PATH_BYTES_MAX));
        for (text, why) in [
            ("unix:run/a.sock", "whole path"),
            ("unix:", "whole path"),
            ("unix:/run/", "whole path"),
            ("/run/a.sock", "unix:/run"),
            ("localhost:80", "no host names"),
            ("unix:/a,unix:/a", "twice"),
            (&long, "90 bytes"),
            ("", "at least"),
        ] {
            let told = read(text).expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    #[test]
    fn permissions_are_octal() {
        for (text, want) in [("0660", Some(0o660)), ("600", Some(0o600)), ("0777", Some(0o777))] {
            assert_eq!(mode(&Value::String(text.into()), Range::Other).ok(), want, "{text}");
        }
        for text in ["", "66", "0888", "1777", "00660", "rw-rw", "+660"] {
            assert!(mode(&Value::String(text.into()), Range::Other).is_err(), "{text}");
        }
        assert!(mode(&Value::Integer(660), Range::Other).is_err(), "660 is not 0660");
    }

    #[test]
    fn trusted_networks() {
        let read = |text: &str| trusted(&Value::String(text.into()), Range::Other);
        let (networks, unix) = read("10.0.0.0/8, 192.0.2.1,2001:db8::/32,unix").expect("good networks");
        let shown: Vec<_> = networks.iter().map(ToString::to_string).collect();
        assert_eq!((shown.join(" "), unix), ("10.0.0.0/8 192.0.2.1/32 2001:db8::/32".into(), true));
        for (text, why) in
            [("10.0.0.1/8", "10.0.0.0/8"), ("proxy.local", "network"), ("10.0.0.0/33", "network")]
        {
            let told = read(text).expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
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
