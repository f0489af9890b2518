//! Who a request is of, where a trusted proxy passes it on and says so in a field.
//! Owns the choice among the addresses that the field names: the nearest that is no trusted proxy's. Never asked about
//! requests from anyone else: their fields are theirs to write.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::proto::forwarded::{Hop, of_forwarded, of_x_forwarded_for};
use crate::proto::http::request::Fields;
use crate::runtime::peer::Peer;
use crate::runtime::settings::{Proxy, ProxyHeader};

/// What a proxy did that its operator should know, each told once.
static SENT_NONE: AtomicBool = AtomicBool::new(false);
static SENT_NONSENSE: AtomicBool = AtomicBool::new(false);

/// The client of a request that came from the trusted proxy `from`. Where the field does not say it, the last proxy that
/// is known stands for the client: never an address that somebody might have made up.
pub fn client(proxy: &Proxy, fields: &Fields<'_>, from: Peer) -> Peer {
    match proxy.header {
        ProxyHeader::None => from,
        ProxyHeader::Forwarded => {
            let values: Vec<&[u8]> = fields.all("forwarded").collect();
            nearest_stranger(proxy, of_forwarded(&values), from)
        }
        ProxyHeader::XForwardedFor => {
            let values: Vec<&[u8]> = fields.all("x-forwarded-for").collect();
            nearest_stranger(proxy, of_x_forwarded_for(&values), from)
        }
    }
}

fn nearest_stranger(proxy: &Proxy, hops: impl Iterator<Item = Hop>, from: Peer) -> Peer {
    let mut known = from;
    let mut said = false;
    for hop in hops {
        said = true;
        match hop {
            Hop::At(ip, port) => {
                known = Peer::new(ip, port);
                if !proxy.trusts(&known) {
                    return known;
                }
            }
            Hop::Hidden => return known,
            Hop::Malformed => {
                tell(&SENT_NONSENSE, from, "the field of proxy.header from a trusted proxy cannot be read");
                return known;
            }
        }
    }
    if !said {
        tell(&SENT_NONE, from, "a request of a trusted proxy is without the field of proxy.header");
    }
    known
}

fn tell(told: &AtomicBool, proxy: Peer, what: &'static str) {
    if !told.swap(true, Ordering::Relaxed) {
        tracing::info!(%proxy, "{what}: the address of the proxy counts as the client's; this is told once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(trusted: &[&str]) -> Proxy {
        Proxy {
            trusted: trusted.iter().map(|network| network.parse().expect("a network")).collect(),
            trusts_unix: true,
            protocol: false,
            header: ProxyHeader::XForwardedFor,
        }
    }

    #[test]
    fn the_nearest_that_is_no_proxy_counts() {
        let proxy = proxy(&["10.0.0.0/8", "2001:db8:1::/48"]);
        let from: Peer = "10.0.0.1:5000".parse::<std::net::SocketAddr>().expect("an address").into();
        for (value, want) in [
            ("192.0.2.1", "192.0.2.1"),
            ("1.1.1.1, 192.0.2.1", "192.0.2.1"),
            ("1.1.1.1, 192.0.2.1:7, 10.9.9.9", "192.0.2.1:7"),
            ("192.0.2.1, 2001:db8:1::5", "192.0.2.1"),
            ("192.0.2.1, ::ffff:10.2.3.4", "192.0.2.1"),
            ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("192.0.2.1, unknown", "10.0.0.1:5000"),
            ("192.0.2.1, _hidden, 10.2.2.2", "10.2.2.2"),
            ("192.0.2.1, nonsense", "10.0.0.1:5000"),
            ("", "10.0.0.1:5000"),
        ] {
            let values = [value.as_bytes()];
            let got = nearest_stranger(&proxy, of_x_forwarded_for(&values), from);
            assert_eq!(got.to_string(), want, "{value}");
        }
        let got = nearest_stranger(&proxy, of_x_forwarded_for(&[b"192.0.2.1"]), Peer::UNIX);
        assert_eq!(got.to_string(), "192.0.2.1");
    }
}
