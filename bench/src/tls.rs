//! The readers' half of TLS, without I/O; and the certificate that the servers are given. Any certificate is good to these
//! readers: what is measured is the server.

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

/// One reader's TLS.
pub struct Tls(ClientConnection);

/// What all readers of a server have in common.
#[derive(Debug, Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    pub fn new(client: &Client) -> Result<Self> {
        Ok(Self(ClientConnection::new(Arc::clone(&client.config), client.name.clone())?))
    }

    pub fn is_open(&self) -> bool {
        !self.0.is_handshaking()
    }

    /// Takes bytes of the wire; appends plain ones to `plain`.
    pub fn feed(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<()> {
        while !wire.is_empty() {
            self.0.read_tls(&mut wire)?;
            let state = self.0.process_new_packets()?;
            let before = plain.len();
            plain.resize(before + state.plaintext_bytes_to_read(), 0);
            self.0.reader().read_exact(&mut plain[before..])?;
        }
        Ok(())
    }

    /// Makes of what is to be said what goes out, with what TLS itself has to say.
    pub fn seal(&mut self, out: &mut Vec<u8>) -> Result<()> {
        self.0.writer().write_all(out)?;
        out.clear();
        while self.0.wants_write() {
            self.0.write_tls(out)?;
        }
        Ok(())
    }
}

/// TLS 1.3, with the cipher that most browsers take where the CPU has AES. `host`: `HOST:PORT` of the server.
pub fn client(host: &str) -> Result<Client> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Any(provider)))
        .with_no_client_auth();
    // Each handshake is a whole one.
    config.resumption = rustls::client::Resumption::disabled();
    // Addresses go without a name (RFC 6066 §3), and ours were always asked for by this one.
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = if name.parse::<Ipv4Addr>().is_ok() { "localhost" } else { name };
    Ok(Client { config: Arc::new(config), name: ServerName::try_from(name.to_owned())? })
}

/// Believes everybody.
#[derive(Debug)]
struct Any(Arc<CryptoProvider>);

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_tls13_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Those of all servers under test, an ECDSA key as most have; made with openssl when they are not there yet.
pub fn files(folder: &Path) -> Result<Files> {
    let files = Files { certificate: folder.join("bench.pem"), key: folder.join("bench.key") };
    if files.certificate.is_file() && files.key.is_file() {
        return Ok(files);
    }
    std::fs::create_dir_all(folder)?;
    let words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "365",
    ];
    let output = Command::new("openssl")
        .args(words)
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout"])
        .arg(&files.key)
        .arg("-out")
        .arg(&files.certificate)
        .output()
        .context("openssl makes the certificate")?;
    if !output.status.success() {
        bail!("openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(files)
}
