//! Where readers come from: addresses of this machine, each with as many readers of one server as it has ephemeral ports.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, ToSocketAddrs as _};

use anyhow::{Context as _, Result, bail};

/// Readers from one address of loopback, well below the 28,232 ephemeral ports that Linux gives it.
const READERS_PER_SOURCE: usize = 10_000;
/// Of a list: a range that was mistyped is not to be tried address by address.
const SOURCES_MAX: usize = 4_096;

/// A server as it was named, and where that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `HOST:PORT`, as requests say it.
    pub host: String,
    pub address: SocketAddrV4,
}

/// Resolves `HOST:PORT`; of several addresses the first of IPv4.
pub fn resolve(host: &str) -> Result<Place> {
    let found =
        host.to_socket_addrs().with_context(|| format!("{host} is no HOST:PORT that is known here"))?;
    let address = found.into_iter().find_map(|address| match address {
        std::net::SocketAddr::V4(address) => Some(address),
        std::net::SocketAddr::V6(_) => None,
    });
    let address =
        address.with_context(|| format!("{host} has IPv6 addresses alone: the load speaks IPv4"))?;
    Ok(Place { host: host.to_owned(), address })
}

/// Empty: 127.0.x.y on loopback, elsewhere as the kernel chooses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources(Vec<Ipv4Addr>);

impl Sources {
    /// Addresses and ranges (`10.0.0.5,10.0.0.8-10.0.0.20`), each one of this machine.
    pub fn parse(text: &str) -> Result<Self> {
        let mut listed = Vec::new();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let address = |text: &str| -> Result<u32> {
                let address: Ipv4Addr =
                    text.trim().parse().with_context(|| format!("{text:?} is no IPv4 address"))?;
                Ok(address.into())
            };
            let (from, to) = (address(from)?, address(to)?);
            if from > to || (to - from) as usize >= SOURCES_MAX {
                bail!("{part}: a range begins with its lower end and has at most {SOURCES_MAX} addresses");
            }
            listed.extend((from..=to).map(Ipv4Addr::from));
        }
        for source in &listed {
            TcpListener::bind((*source, 0))
                .with_context(|| format!("{source} is no address of this machine"))?;
        }
        Ok(Self(listed))
    }

    /// The source of a reader of `dest`; `None`: the kernel chooses.
    pub fn of(&self, number: usize, dest: SocketAddrV4) -> Option<Ipv4Addr> {
        match &self.0[..] {
            [] if dest.ip().is_loopback() => {
                // 127.0.x.y by the reader's number, 127.0.0.1 left to others.
                let source = number / READERS_PER_SOURCE;
                Some(Ipv4Addr::new(127, 0, 1 + (source / 200) as u8, 1 + (source % 200) as u8))
            }
            [] => None,
            listed => Some(listed[number % listed.len()]),
        }
    }

    /// Whether so many readers of `dest` find a port.
    pub fn check(&self, readers: usize, dest: SocketAddrV4) -> Result<()> {
        if self.0.is_empty() && dest.ip().is_loopback() {
            return Ok(());
        }
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
        let ports = ports(&range).context("ip_local_port_range has two ports")?;
        let sources = self.0.len().max(1);
        if readers > ports * sources {
            bail!(
                "{readers} readers of {dest} from {sources} address(es): each allows at most {ports} \
                 (net.ipv4.ip_local_port_range); --sources names more"
            );
        }
        Ok(())
    }
}

/// How many there are in `32768\t60999`.
fn ports(range: &str) -> Option<usize> {
    let mut ends = range.split_whitespace().map_while(|end| end.parse::<usize>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    Some(last.checked_sub(first)? + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dest(text: &str) -> SocketAddrV4 {
        text.parse().expect("an address")
    }

    #[test]
    fn readers_are_spread() {
        let (near, far) = (dest("127.0.0.1:80"), dest("192.0.2.1:80"));
        let own = Sources::default();
        assert_eq!(own.of(0, near), Some(Ipv4Addr::new(127, 0, 1, 1)));
        assert_eq!(own.of(10_000, near), Some(Ipv4Addr::new(127, 0, 1, 2)));
        assert_eq!(own.of(2_000_000, near), Some(Ipv4Addr::new(127, 0, 2, 1)));
        assert_eq!(own.of(10_000, far), None);
        let listed = Sources::parse("127.0.0.9,127.0.0.11-127.0.0.12").expect("all of 127/8 is here");
        let sources: Vec<_> = (0..4).filter_map(|number| listed.of(number, far)).collect();
        assert_eq!(sources, [9, 11, 12, 9].map(|last| Ipv4Addr::new(127, 0, 0, last)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in ["", "x", "127.0.0.2-127.0.0.1", "127.0.0.1-127.9.0.0", "192.0.2.1"] {
            assert!(Sources::parse(text).is_err(), "{text}");
        }
        assert!(Sources::default().check(1_000_000, dest("127.0.0.1:80")).is_ok());
        let error = Sources::default().check(70_000, dest("192.0.2.1:80")).expect_err("too many");
        assert!(error.to_string().contains("--sources"), "{error}");
        assert_eq!(ports("32768\t60999\n"), Some(28_232));
    }

    #[test]
    fn names_are_resolved() {
        let place = resolve("localhost:8080").expect("known everywhere");
        assert_eq!((place.host.as_str(), place.address), ("localhost:8080", dest("127.0.0.1:8080")));
        for (host, said) in [("[::1]:80", "IPv4"), ("localhost", "HOST:PORT")] {
            let error = resolve(host).expect_err(host);
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
    }
}
