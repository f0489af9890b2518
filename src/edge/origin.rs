//! Who may call from a browser: hosts, origins, CORS (Fetch standard).
//! Owns the decision, made before anything a request asks for is done, and the fields that tell a browser of it.

use std::net::IpAddr;

use crate::proto::http::host;
use crate::proto::http::request::Request;
use crate::proto::http::response::ResponseWriter;
use crate::runtime::settings::Settings;

/// How long a browser may remember a preflight, in seconds.
const MAX_AGE_S: u64 = 600;
const FIELDS: &str = "Authorization, Content-Type, Prefer, If-None-Match, Last-Event-ID, Pushline-Event, \
                      Pushline-TTL, Idempotency-Key";
const EXPOSED: &str = "ETag, Pushline-Cursor, Retry-After, Idempotency-Replayed, Preference-Applied";

/// What is checked of every request.
#[derive(Debug, Clone)]
pub struct Gate {
    /// Only loopback hosts and origins: nobody configured anything else.
    loopback_alone: bool,
    allowed: Vec<Allowed>,
}

/// An entry of `origins.allow`.
#[derive(Debug, Clone)]
enum Allowed {
    Exactly(String),
    /// Every host that has one label or more before `domain`, which begins with a dot; never that domain itself.
    Below {
        scheme: String,
        domain: String,
        port: Option<u16>,
    },
}

impl Allowed {
    fn new(text: &str) -> Self {
        match text.split_once("://*") {
            Some((scheme, rest)) if rest.starts_with('.') => {
                let (domain, port) = host::split(rest);
                Self::Below { scheme: scheme.to_owned(), domain: domain.to_owned(), port }
            }
            _ => Self::Exactly(text.to_owned()),
        }
    }

    fn fits(&self, origin: &str) -> bool {
        match self {
            Self::Exactly(allowed) => allowed.eq_ignore_ascii_case(origin),
            Self::Below { scheme, domain, port } => {
                let Some((its_scheme, authority)) = origin.split_once("://") else { return false };
                let (name, its_port) = host::split(authority);
                let Some((below, end)) =
                    name.len().checked_sub(domain.len()).and_then(|at| name.split_at_checked(at))
                else {
                    return false;
                };
                its_scheme.eq_ignore_ascii_case(scheme)
                    && its_port == *port
                    && end.eq_ignore_ascii_case(domain)
                    && below.split('.').all(|label| !label.is_empty())
                    && below.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            }
        }
    }
}

/// A request that passed, and the origin to tell its browser of.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passed<'r> {
    pub origin: Option<&'r str>,
}

/// Why a request did not pass: the answer is 403.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barred {
    Host,
    Origin,
}

impl Barred {
    /// For logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Host => "foreign_host",
            Self::Origin => "foreign_origin",
        }
    }

    pub const fn detail(self) -> &'static str {
        match self {
            Self::Host => {
                "this server serves loopback alone, and Host is another name; use localhost, 127.0.0.1 (or what else \
                 begins with 127) or [::1], or start it with --open"
            }
            Self::Origin => {
                "pages of this Origin may not use this server; add the origin to origins.allow in its configuration"
            }
        }
    }
}

impl Gate {
    pub fn new(settings: &Settings) -> Self {
        let loopback_alone = !settings.open && !settings.auth.is_configured();
        let allowed = settings.origins.allow.iter().map(|origin| Allowed::new(origin)).collect();
        Self { loopback_alone, allowed }
    }

    /// # Errors
    /// [`Barred`]
    pub fn pass<'r>(&self, request: &Request<'r>) -> Result<Passed<'r>, Barred> {
        if self.loopback_alone && !request.host.is_empty() && !is_loopback(host::name(request.host)) {
            return Err(Barred::Host);
        }
        let mut origins = request.fields.all("origin");
        let Some(origin) = origins.next() else { return Ok(Passed::default()) };
        let origin = std::str::from_utf8(origin).map_err(|_| Barred::Origin)?;
        if origins.next().is_some() || !self.allows(origin, request.host) {
            return Err(Barred::Origin);
        }
        Ok(Passed { origin: Some(origin) })
    }

    /// The same of a head that could not be read as a request: only to show the page that sent it the answer.
    pub fn pass_unread<'r>(&self, head: &'r [u8]) -> Passed<'r> {
        let value = |name: &str| {
            let mut lines = head.split(|byte| *byte == b'\n').skip(1).take_while(|line| line.len() > 1);
            let line = lines.find(|line| {
                line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
                    && line.get(name.len()) == Some(&b':')
            })?;
            std::str::from_utf8(line.get(name.len() + 1..)?).ok().map(str::trim)
        };
        let host = value("host").unwrap_or_default();
        Passed { origin: value("origin").filter(|origin| self.allows(origin, host)) }
    }

    fn allows(&self, origin: &str, own: &str) -> bool {
        // A serialized origin (RFC 6454 §6.2), and nothing more: no path, no user.
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            // Pages of extensions and apps have schemes of their own: only by name.
            _ => return self.allowed.iter().any(|allowed| allowed.fits(origin)),
        };
        if host::parse(authority.as_bytes()).is_none() {
            return false;
        }
        let (name, port) = host::split(authority);
        let (own_name, own_port) = host::split(own);
        let same_port = port.unwrap_or(default_port) == own_port.unwrap_or(default_port);
        (!own.is_empty() && name.eq_ignore_ascii_case(own_name) && same_port)
            || (self.loopback_alone && self.allowed.is_empty() && is_loopback(name))
            || self.allowed.iter().any(|allowed| allowed.fits(origin))
    }
}

/// A name or address of this machine for itself. DNS decides about no literal, so a page of another name cannot be made
/// to come from one.
pub(super) fn is_loopback(host: &str) -> bool {
    // As most say it.
    if matches!(host, "127.0.0.1" | "localhost") {
        return true;
    }
    let literal = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse().map(IpAddr::V6),
        None => host.parse().map(IpAddr::V4),
    };
    host.eq_ignore_ascii_case("localhost")
        || literal.is_ok_and(|address| address.to_canonical().is_loopback())
}

impl Passed<'_> {
    /// Appends what lets the browser show an answer to its page.
    pub fn write<'o>(self, writer: ResponseWriter<'o>) -> ResponseWriter<'o> {
        match self.origin {
            Some(origin) => writer
                .field("Access-Control-Allow-Origin", origin)
                .field("Access-Control-Allow-Credentials", "true")
                .field("Access-Control-Expose-Headers", EXPOSED),
            None => writer,
        }
    }

    /// Appends what answers a preflight for a path that takes `methods`.
    pub fn write_preflight<'o>(self, writer: ResponseWriter<'o>, methods: &str) -> ResponseWriter<'o> {
        self.write(writer)
            .field("Access-Control-Allow-Methods", methods)
            .field("Access-Control-Allow-Headers", FIELDS)
            .number("Access-Control-Max-Age", MAX_AGE_S)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_by_pattern() {
        let below = "https://*.example.com";
        for (allowed, origin, want) in [
            (below, "https://app.example.com", true),
            (below, "https://a.b.example.com", true),
            (below, "HTTPS://App.Example.COM", true),
            (below, "https://example.com", false),
            (below, "https://.example.com", false),
            (below, "https://a..example.com", false),
            (below, "https://evilexample.com", false),
            (below, "https://app.example.com.evil.example", false),
            (below, "https://app.example.com.", false),
            (below, "http://app.example.com", false),
            (below, "https://app.example.com:8443", false),
            (below, "https://evil.example/.example.com", false),
            (below, "https://evil.example?.example.com", false),
            (below, "https://user@x.example.com", false),
            (below, "https://*.example.com", false),
            (below, "null", false),
            ("https://*.example.com:8443", "https://a.example.com:8443", true),
            ("https://*.example.com:8443", "https://a.example.com", false),
            ("app://*.example.com", "app://a.example.com", true),
            ("https://app.example.com", "https://app.example.com", true),
            ("https://app.example.com", "https://b.app.example.com", false),
        ] {
            assert_eq!(Allowed::new(allowed).fits(origin), want, "{allowed} {origin}");
        }
    }
}
