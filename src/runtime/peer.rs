//! Who is at the other end of a connection, as far as the network tells.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A client's address: the socket's, or what a trusted proxy says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// IPv4 as IPv6 (RFC 4291 §2.5.5.2): half the size of what tells both apart.
    ip: Ipv6Addr,
    pub port: u16,
    pub is_unix: bool,
}

impl Peer {
    /// A process on this machine, by a unix socket: it has no address.
    pub const UNIX: Self = Self { ip: Ipv6Addr::UNSPECIFIED, port: 0, is_unix: true };

    pub fn new(ip: IpAddr, port: u16) -> Self {
        let ip = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self { ip, port, is_unix: false }
    }

    /// The address; `None`: it came by a unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        (!self.is_unix).then(|| IpAddr::V6(self.ip).to_canonical())
    }

    /// What one client is taken to have for itself: an IPv4 address, or an IPv6 network of 64 bits.
    pub fn network(&self) -> u128 {
        let bits = self.ip.to_bits();
        match self.ip.to_ipv4_mapped() {
            Some(_) => bits,
            None => bits >> 64 << 64,
        }
    }
}

impl From<SocketAddr> for Peer {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip(), addr.port())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip() {
            None => f.write_str("unix"),
            // A proxy's header mostly says none.
            Some(ip) if self.port == 0 => ip.fmt(f),
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_out_as_they_went_in() {
        for text in ["127.0.0.1:80", "[2001:db8::1]:443"] {
            assert_eq!(Peer::from(text.parse::<SocketAddr>().expect("an address")).to_string(), text);
        }
        assert_eq!(Peer::UNIX.to_string(), "unix");
        assert_eq!(Peer::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0).to_string(), "::1");
        let network = |text: &str| Peer::new(text.parse().expect("an address"), 1).network();
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8::1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }
}
