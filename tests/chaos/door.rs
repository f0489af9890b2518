//! The ways in: plainly, by TLS, by a unix socket, and through a proxy that says who the client is; and a server that is
//! come to in all of them. Owns how connections begin. What is said on them is the clients'.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use crate::common::http::Conn;
use crate::common::rng::Rng;
use crate::common::server::Server;
use crate::common::tls::{Files, Identity, client, speaks_tls};
use crate::common::token::{KEYS, api_key};

/// The address whose PROXY headers are believed, and that must send one: `127.0.0.2`.
const PROXY: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Plain,
    Tls,
    Unix,
    Proxy,
    ProxyTls,
}

impl Door {
    pub const ALL: [Self; 5] = [Self::Plain, Self::Tls, Self::Unix, Self::Proxy, Self::ProxyTls];

    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::ProxyTls)
    }

    pub const fn is_behind_proxy(self) -> bool {
        matches!(self, Self::Proxy | Self::ProxyTls)
    }
}

/// Where the doors of a server are.
#[derive(Debug, Clone)]
pub struct Doors {
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    unix: PathBuf,
}

impl Doors {
    /// A connection of this client's, which is known by an address of its own whichever way it comes (by a unix socket, by
    /// none).
    ///
    /// # Errors
    /// Those of connect.
    pub fn enter(&self, door: Door, who: u8, rng: &mut Rng) -> io::Result<Conn> {
        let conn = self.knock(door, who)?;
        if door.is_behind_proxy() {
            let header = introduction(who, rng);
            let cut = if rng.once_in(4) { rng.below(header.len()) } else { 0 };
            // It may be closed as it comes.
            let mut stream = conn.stream();
            let _ = stream.write_all(&header[..cut]).and_then(|()| stream.write_all(&header[cut..]));
        }
        Ok(conn)
    }

    /// The same, but a proxy says nothing yet.
    ///
    /// # Errors
    /// Those of connect.
    pub fn knock(&self, door: Door, who: u8) -> io::Result<Conn> {
        match door {
            Door::Plain => Conn::try_open_as(who, self.plain),
            Door::Tls => Conn::try_open_as(who, self.tls),
            Door::Unix => Conn::try_open_unix(&self.unix),
            Door::Proxy => Conn::try_open_as(PROXY, self.plain),
            Door::ProxyTls => Conn::try_open_as(PROXY, self.tls),
        }
    }
}

/// A PROXY header for this client, of either version and family. All of its IPv6 addresses are of one network.
pub fn introduction(who: u8, rng: &mut Rng) -> Vec<u8> {
    let port = u16::try_from(rng.within(1_024..=65_535)).expect("a port");
    let rest = u16::try_from(rng.below(65_536)).expect("16 bits");
    match rng.below(4) {
        0 => format!("PROXY TCP4 203.0.113.{who} 10.0.0.1 {port} 80\r\n").into_bytes(),
        1 => format!("PROXY TCP6 2001:db8:0:{who:x}::{rest:x} ::1 {port} 80\r\n").into_bytes(),
        2 => {
            let ends = [203, 0, 113, who, 10, 0, 0, 1];
            version_2(0x21, 0x11, &[&ends[..], &port.to_be_bytes(), &[0, 80]].concat())
        }
        _ => {
            let mut ends = [0; 32];
            ends[..8].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, who]);
            ends[14..16].copy_from_slice(&rest.to_be_bytes());
            // What proxies add is passed over.
            let added = [[0x04, 0x02, 0x00].as_slice(), &[0; 512]].concat();
            version_2(0x21, 0x21, &[&ends[..], &port.to_be_bytes(), &[0, 80], &added].concat())
        }
    }
}

/// A header of version 2.
pub fn version_2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// What a server is started with, and started again with.
pub struct Site {
    /// The certificate's files, which are written over and over; not while a server starts, which would rightly refuse half
    /// of one.
    pub dir: Mutex<Files>,
    pub identities: [Identity; 2],
    /// The API key of honest publishers.
    pub key: String,
    unix: PathBuf,
    args: Vec<String>,
}

impl Site {
    pub fn new(workers: &str, settings: &[&[&str]]) -> Self {
        let dir = Files::new();
        let unix = dir.0.join("door.sock");
        let identities = [Identity::new(&["localhost"]), Identity::new(&["localhost"])];
        let (key, key_line) = api_key(&["honest", "--publish", "**"]);
        let own = [
            format!("tls.certificates=[{}]", identities[0].write(&dir.0, "own")),
            format!("auth.api_keys=[{key_line}]"),
            format!("proxy.trusted=127.0.0.{PROXY}"),
            "proxy.protocol=true".to_owned(),
            // Honest clients are nobody in particular; liars show tokens too.
            KEYS.to_owned(),
            r#"auth.anonymous={ subscribe = ["**"], publish = ["**"], delete = ["**"] }"#.to_owned(),
        ];
        let all =
            settings.iter().flat_map(|some| some.iter().map(|setting| (*setting).to_owned())).chain(own);
        let mut args = vec!["--workers".to_owned(), workers.to_owned()];
        args.extend(["--listen".to_owned(), format!("unix:{}", unix.display())]);
        args.extend(all.flat_map(|setting| ["--set".to_owned(), setting]));
        Self { dir: Mutex::new(dir), unix, identities, key, args }
    }

    /// Started where nobody serves yet.
    pub fn start(&self) -> (Server, Doors) {
        let server = self.serve("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", &[]);
        let (plain, tls) = (server.addr(), server.tls_addrs()[0]);
        let trusted = [&self.identities[0], &self.identities[1]];
        speaks_tls(tls, client(&trusted, rustls::DEFAULT_VERSIONS));
        (server, Doors { plain, tls, unix: self.unix.clone() })
    }

    /// Started in the place of the one that serves.
    pub fn take_over(&self, doors: &Doors, admin: SocketAddr) -> Server {
        let [plain, tls, admin] = [doors.plain, doors.tls, admin].map(|addr| addr.to_string());
        self.serve(&plain, &tls, &admin, &["--takeover"])
    }

    fn serve(&self, plain: &str, tls: &str, admin: &str, more: &[&str]) -> Server {
        let (tls, admin) = (format!("tls.listen={tls}"), format!("admin.listen={admin}"));
        let mut args = vec!["--listen", plain, "--set", &tls, "--set", &admin];
        args.extend(self.args.iter().map(String::as_str));
        args.extend(more);
        let whole = self.dir.lock().expect("no panic under the lock");
        let mut server = Server::start_bare(&args);
        drop(whole);
        server.expect_panics();
        server
    }
}
