//! Who may look in: nobody by way of a browser, and whoever has the token, if there is one.
//! Owns the check that comes before every route. A page that a browser shows can reach loopback addresses, and by a name
//! of its own that is made to point there (DNS rebinding) even read what they answer: so `Host` must be this machine's own
//! name, and whatever a browser adds of itself is refused. There is no CORS.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::edge::origin::is_loopback;
use crate::proto::http::host;
use crate::runtime::settings::{Admin, AdminAddress};

use super::problem::Refused;

/// What is checked of every request.
pub struct Gate {
    /// The address is this machine's alone, so no other name leads here honestly.
    local: bool,
    token_sha256: Option<[u8; 32]>,
}

/// Answered without the token: they tell a probe no more than the clients' listeners tell anybody.
const OPEN_PATHS: [&str; 2] = ["/healthz", "/readyz"];

impl Gate {
    pub fn new(admin: &Admin) -> Self {
        let local = match &admin.listen {
            Some(AdminAddress::Tcp(addr)) => addr.ip().to_canonical().is_loopback(),
            Some(AdminAddress::Unix(_)) | None => true,
        };
        Self { local, token_sha256: admin.token_sha256 }
    }

    /// # Errors
    /// 403 for what a browser sent, 401 without the token.
    pub fn pass(&self, uri: &Uri, fields: &HeaderMap) -> Result<(), Refused> {
        let forbidden = |detail: &str| Err(Refused::new(StatusCode::FORBIDDEN, detail));
        if fields.contains_key(header::ORIGIN) || is_of_a_page(fields) {
            return forbidden("pages in a browser may not use this listener; use curl, or pushline itself");
        }
        if self.local && !is_own_host(uri, fields) {
            return forbidden(
                "Host is another name than this machine's for itself; use localhost, 127.0.0.1 or [::1]",
            );
        }
        if OPEN_PATHS.contains(&uri.path()) || self.has_token(fields) {
            return Ok(());
        }
        Err(Refused::new(
            StatusCode::UNAUTHORIZED,
            "this listener needs its token; send Authorization: Bearer TOKEN, whose SHA-256 is admin.token_sha256",
        ))
    }

    /// Digests are compared, and whole: how long it takes tells nothing of the token.
    fn has_token(&self, fields: &HeaderMap) -> bool {
        let Some(want) = &self.token_sha256 else { return true };
        let mut values = fields.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return false };
        let Some((scheme, token)) = value.as_bytes().split_at_checked(b"Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && bool::from(Sha256::digest(token.trim_ascii()).ct_eq(&want[..]))
    }
}

/// Browsers say so of requests that a page makes; `none`: somebody typed the address.
fn is_of_a_page(fields: &HeaderMap) -> bool {
    fields.get("sec-fetch-site").is_some_and(|site| site.as_bytes() != b"none")
}

fn is_own_host(uri: &Uri, fields: &HeaderMap) -> bool {
    let mut hosts = fields.get_all(header::HOST).iter();
    let (Some(value), None) = (hosts.next(), hosts.next()) else { return false };
    let is_own = |text: &[u8]| host::parse(text).is_some_and(|text| is_loopback(host::split(text).0));
    is_own(value.as_bytes()) && uri.authority().is_none_or(|authority| is_own(authority.as_str().as_bytes()))
}

pub async fn check(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    match gate.pass(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(gate: &Gate, path: &str, fields: &[(&'static str, &str)]) -> u16 {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, value.parse().expect("a value"));
        }
        match gate.pass(&path.parse().expect("a path"), &map) {
            Ok(()) => 200,
            Err(refused) => refused.into_response().status().as_u16(),
        }
    }

    #[test]
    fn pages_strangers_and_other_names_stay_outside() {
        let digest: [u8; 32] = Sha256::digest(b"secret").into();
        let admin = |text: &str, token_sha256| {
            Gate::new(&Admin {
                listen: Some(AdminAddress::Tcp(text.parse().expect("an address"))),
                token_sha256,
            })
        };
        let (bare, kept) = (admin("127.0.0.1:1", None), admin("127.0.0.1:1", Some(digest)));
        let far = admin("192.0.2.1:1", Some(digest));
        let local = ("host", "localhost:9180");
        let good = ("authorization", "Bearer secret");
        for (what, gate, path, fields, want) in [
            ("local", &bare, "/metrics", &[local][..], 200),
            ("a literal", &bare, "/metrics", &[("host", "127.0.0.1:9180")], 200),
            ("IPv6", &bare, "/metrics", &[("host", "[::1]")], 200),
            ("rebinding", &bare, "/metrics", &[("host", "evil.example:9180")], 403),
            ("rebinding, health too", &bare, "/healthz", &[("host", "evil.example")], 403),
            ("no host", &bare, "/metrics", &[], 403),
            ("two hosts", &bare, "/metrics", &[local, ("host", "localhost")], 403),
            ("absolute", &bare, "http://evil.example/metrics", &[local], 403),
            ("a page", &bare, "/metrics", &[local, ("origin", "http://localhost:9180")], 403),
            ("null", &bare, "/metrics", &[local, ("origin", "null")], 403),
            ("an image", &bare, "/metrics", &[local, ("sec-fetch-site", "cross-site")], 403),
            ("typed", &bare, "/metrics", &[local, ("sec-fetch-site", "none")], 200),
            ("no token", &kept, "/metrics", &[local], 401),
            ("the token", &kept, "/metrics", &[local, good], 200),
            ("any case", &kept, "/metrics", &[local, ("authorization", "bearer secret")], 200),
            ("another", &kept, "/metrics", &[local, ("authorization", "Bearer secreT")], 401),
            ("a part", &kept, "/metrics", &[local, ("authorization", "Bearer secre")], 401),
            ("basic", &kept, "/metrics", &[local, ("authorization", "Basic secret")], 401),
            ("two", &kept, "/metrics", &[local, good, good], 401),
            ("a token does not help a page", &kept, "/metrics", &[local, good, ("origin", "http://a")], 403),
            ("probes", &kept, "/readyz", &[local], 200),
            ("from afar", &far, "/metrics", &[("host", "node7.internal:9180"), good], 200),
            ("from afar, no token", &far, "/metrics", &[("host", "node7.internal:9180")], 401),
        ] {
            assert_eq!(status(gate, path, fields), want, "{what}");
        }
    }
}
