//! TLS for tests: certificates made on the spot, servers that listen by TLS, and the client's half of a connection.
//! Which addresses speak TLS is remembered, so that every other client here speaks it with them by itself.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion};

use super::server::Server;

/// How clients come to each address that speaks TLS.
static CONFIGS: LazyLock<Mutex<HashMap<SocketAddr, Arc<ClientConfig>>>> = LazyLock::new(Mutex::default);

/// A certificate and its key, as PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// For these names, signed by itself.
    pub fn new(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Self { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    /// Writes `NAME.pem` and `NAME.key`, and gives the element of `tls.certificates` that names them.
    pub fn write(&self, dir: &Path, name: &str) -> String {
        let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).expect("a directory to write to");
        std::fs::write(&key, &self.key).expect("a directory to write to");
        format!("{{ certificate_file = '{}', key_file = '{}' }}", certificate.display(), key.display())
    }
}

/// A client's configuration that trusts these certificates alone. Sessions are resumed by what holds the same one.
pub fn client(trusted: &[&Identity], versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for identity in trusted {
        let der = rustls::pki_types::CertificateDer::from_pem_slice(identity.certificate.as_bytes());
        roots.add(der.expect("PEM")).expect("a certificate");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(versions).expect("versions");
    builder.with_root_certificates(roots).with_no_client_auth()
}

/// A server that listens plainly and by TLS.
pub struct TlsServer {
    pub server: Server,
    pub identity: Identity,
    pub plain: SocketAddr,
    pub tls: SocketAddr,
    /// The certificate's files are here.
    pub dir: Files,
}

impl TlsServer {
    /// # Panics
    /// When it does not start.
    pub fn start(args: &[&str]) -> Self {
        Self::start_with(Identity::new(&["localhost", "127.0.0.1"]), args)
    }

    pub fn start_with(identity: Identity, args: &[&str]) -> Self {
        let dir = Files::new();
        let certificates = format!("tls.certificates=[{}]", identity.write(&dir.0, "own"));
        let mut all = vec!["--set", "tls.listen=127.0.0.1:0", "--set", &certificates];
        all.extend(args);
        let server = Server::start(&all);
        let (plain, tls) = (server.addrs()[0], server.tls_addrs()[0]);
        speaks_tls(tls, client(&[&identity], rustls::DEFAULT_VERSIONS));
        Self { server, identity, plain, tls, dir }
    }

    /// What a client says first.
    pub fn hello(&self) -> Vec<u8> {
        let config = Arc::new(client(&[&self.identity], rustls::DEFAULT_VERSIONS));
        let mut hello = Vec::new();
        ClientTls::new(config, "localhost").conn.write_tls(&mut hello).expect("a vector");
        hello
    }

    /// Where its certificate's files are.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }
}

/// From now on every client here speaks TLS with the address.
pub fn speaks_tls(addr: SocketAddr, config: ClientConfig) {
    CONFIGS.lock().expect("no panic under the lock").insert(addr, Arc::new(config));
}

/// A server is about to end: the ports may be another's next, that speaks plainly.
pub fn speaks_no_more(addrs: &[SocketAddr]) {
    let mut configs = CONFIGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    configs.retain(|addr, _| !addrs.contains(addr));
}

/// A directory of its own, removed when dropped.
pub struct Files(pub std::path::PathBuf);

impl Files {
    pub fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("pushline-tls-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        Self(dir)
    }
}

impl Default for Files {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The client's half of one connection's TLS.
pub struct ClientTls {
    pub conn: ClientConnection,
    /// The server closed the connection without having said so by TLS.
    pub is_cut: bool,
}

impl ClientTls {
    /// For a connection to `addr`, if TLS is spoken there.
    pub fn of(addr: SocketAddr) -> Option<Self> {
        let config = CONFIGS.lock().expect("no panic under the lock").get(&addr).cloned()?;
        Some(Self::new(config, "localhost"))
    }

    pub fn new(config: Arc<ClientConfig>, name: &str) -> Self {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let conn = ClientConnection::new(config, name).expect("a configuration");
        Self { conn, is_cut: false }
    }

    /// # Errors
    /// Those of write, and of TLS.
    pub fn write_all(&mut self, stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
        while self.conn.is_handshaking() {
            self.conn.complete_io(stream)?;
        }
        for part in bytes.chunks(16 * 1024) {
            self.conn.writer().write_all(part)?;
            self.flush(stream)?;
        }
        self.flush(stream)
    }

    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while self.conn.wants_write() {
            self.conn.write_tls(stream)?;
        }
        Ok(())
    }

    /// # Errors
    /// Those of read, and of TLS.
    pub fn read(&mut self, stream: &mut TcpStream, room: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.conn.reader().read(room) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    self.is_cut = true;
                    return Ok(0);
                }
                other => return other,
            }
            self.flush(stream)?;
            self.conn.read_tls(stream)?;
            if let Err(error) = self.conn.process_new_packets() {
                let _ = self.flush(stream);
                return Err(io::Error::new(ErrorKind::InvalidData, error));
            }
        }
    }

    /// Says that nothing more comes.
    pub fn close(&mut self, stream: &mut TcpStream) {
        self.conn.send_close_notify();
        let _ = self.flush(stream);
    }
}
