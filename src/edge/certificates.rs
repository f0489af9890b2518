//! Certificates: PEM files become what TLS connections are served with, at start and for each SIGHUP.
//! Owns which certificate a client gets, and what an operator is told of the files. Never a connection.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_name;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{InconsistentKeys, ServerConfig};

use crate::proto::http::date::format_imf_date;
use crate::proto::x509;
use crate::runtime::node::Node;
use crate::runtime::settings::{CertificateFiles, TlsListeners};
use crate::runtime::tls_keys;

/// The one protocol that is spoken here (RFC 7301). Who offers others, and not this one, is refused.
const PROTOCOL: &[u8] = b"http/1.1";
/// Sessions of clients of TLS 1.2 that take no tickets.
const SESSIONS_MAX: usize = 4_096;
/// An operator hears of a certificate that ends sooner. Whatever renews it has failed for weeks by then, mostly.
const ENDS_SOON_S: u64 = 14 * 86_400;

/// Why certificates are of no use.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{} is not PEM: {error}", path.display())]
    NotPem { path: PathBuf, error: String },
    #[error(
        "{} has no certificate; it must have the server's own first, then those between it and the root, each between \
         BEGIN CERTIFICATE and END CERTIFICATE",
        path.display()
    )]
    NoCertificate { path: PathBuf },
    #[error(
        "{} has no private key that can be read: it must be in PEM, as PKCS#8 (BEGIN PRIVATE KEY), SEC1 (BEGIN EC PRIVATE \
         KEY) or PKCS#1 (BEGIN RSA PRIVATE KEY), without a passphrase",
        path.display()
    )]
    NoKey { path: PathBuf },
    #[error("the key in {} does not belong to the certificate in {}", key.display(), certificate.display())]
    KeyOfAnother { certificate: PathBuf, key: PathBuf },
    #[error("{} and {} cannot be used: {error}", certificate.display(), key.display())]
    Unusable { certificate: PathBuf, key: PathBuf, error: rustls::Error },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// What TLS connections are served with; `None` where nobody listens for them. With what was there before, clients may
/// resume their sessions.
///
/// # Errors
/// [`CertificateError`], of the first file that is wrong.
pub fn load(
    tls: &TlsListeners,
    before: Option<&ServerConfig>,
) -> Result<Option<Arc<ServerConfig>>, CertificateError> {
    if tls.listen.is_empty() {
        return Ok(None);
    }
    let provider = Arc::new(tls_keys::provider());
    let mut keys = Vec::with_capacity(tls.certificates.len());
    for files in &tls.certificates {
        keys.push(Arc::new(read(files, &provider)?));
    }
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(ByName(keys)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    if let Some(before) = before {
        config.ticketer = Arc::clone(&before.ticketer);
        config.session_storage = Arc::clone(&before.session_storage);
    } else {
        config.ticketer = Ticketer::new()?;
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
    }
    Ok(Some(Arc::new(config)))
}

/// Loads the files anew, for handshakes from now on. Bad ones change nothing.
pub fn reload(tls: &TlsListeners, node: &Node) {
    if tls.listen.is_empty() {
        return;
    }
    let before = node.tls.load_full();
    match load(tls, before.as_deref()) {
        Ok(config) => {
            node.tls.store(config);
            tell(tls);
        }
        Err(error) => {
            tracing::error!(%error, "certificates are not loaded anew; the old ones are kept. Mend the file, and send SIGHUP");
        }
    }
}

/// Says until when each certificate is good.
pub fn tell(tls: &TlsListeners) {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    for CertificateFiles { certificate, .. } in &tls.certificates {
        let first = CertificateDer::from_pem_file(certificate).ok();
        let Some(end_s) = first.and_then(|der| x509::not_after(&der)) else { continue };
        let (file, date) = (certificate.display(), format_imf_date(end_s));
        let ends = std::str::from_utf8(&date).unwrap_or_default();
        if end_s <= now_s {
            tracing::warn!(%file, ends, "certificate has ended: clients refuse it; renew it, and send SIGHUP");
        } else if end_s - now_s < ENDS_SOON_S {
            tracing::warn!(%file, ends, "certificate ends soon; renew it, and send SIGHUP");
        } else {
            tracing::info!(%file, ends, "certificate");
        }
    }
}

fn read(
    files: &CertificateFiles,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<CertifiedKey, CertificateError> {
    let CertificateFiles { certificate, key } = files;
    let text = |path: &PathBuf| {
        fs::read(path).map_err(|error| CertificateError::Unreadable { path: path.clone(), error })
    };
    let chain = CertificateDer::pem_slice_iter(&text(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::NotPem { path: certificate.clone(), error: error.to_string() })?;
    if chain.is_empty() {
        return Err(CertificateError::NoCertificate { path: certificate.clone() });
    }
    let private = PrivateKeyDer::from_pem_slice(&text(key)?)
        .map_err(|_| CertificateError::NoKey { path: key.clone() })?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| {
        let (certificate, key) = (certificate.clone(), key.clone());
        match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                CertificateError::KeyOfAnother { certificate, key }
            }
            error => CertificateError::Unusable { certificate, key, error },
        }
    })
}

/// The certificates, in the order of the configuration.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    /// The first that is for the name that the client asks for (RFC 6066 §3) and whose key it can check; for any other
    /// name, or none, the first that it can check: what is wrong then, the client tells its user best.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let [only] = &self.0[..] {
            return Some(Arc::clone(only));
        }
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let checked = || {
            let schemes = hello.signature_schemes();
            self.0.iter().filter(move |certified| certified.key.choose_scheme(schemes).is_some())
        };
        let named = name.and_then(|name| checked().find(|certified| is_for(certified, &name)));
        named.or_else(|| checked().next()).or(self.0.first()).map(Arc::clone)
    }
}

fn is_for(certified: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let own = certified.cert.first();
    own.and_then(|own| ParsedCertificate::try_from(own).ok())
        .is_some_and(|own| verify_server_name(&own, name).is_ok())
}
