//! TLS for listeners: a certificate and its key from files, read again when the files change, and handshakes
//! that hold nobody up.
//!
//! TLS 1.2 and 1.3 with the suites that rustls takes for good (<https://docs.rs/rustls>).

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use rustls::{
    ServerConfig, SignatureScheme,
    client::ResolvesClientCert,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

mod certificate;
mod expiry;
mod files;
#[cfg(test)]
mod tests;

pub use certificate::{Validity, is_self_signed};
pub use expiry::ExpiryMetric;
pub use files::{CertificateFiles, FileCertificate};

/// Longest time for the handshake of a connection.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Protocol name of HTTP/1.1 (RFC 7301, 6).
pub const HTTP_1: &[u8] = b"http/1.1";
/// Protocol name of HTTP/2 (RFC 9113, 3.2).
pub const HTTP_2: &[u8] = b"h2";

/// A certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    /// A file cannot be read.
    #[error("read `{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not PEM.
    #[error("parse `{path}` as PEM")]
    Pem {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A file has no certificate in it.
    #[error("find a certificate in `{0}`: there is none")]
    NoCertificate(String),
    /// The key is not that of the certificate, or of a kind that cannot be used.
    #[error("use the key of `{key}` with the certificate of `{certificate}`")]
    Pair {
        /// The file with the certificate.
        certificate: String,
        /// The file with the key.
        key: String,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The certificate cannot be used now.
    #[error("use the certificate of `{certificate}`: it is valid only from {} to {}", .validity.not_before, .validity.not_after)]
    NotValidNow {
        /// The file with the certificate.
        certificate: String,
        /// When it can be used.
        validity: Validity,
    },
}

/// The cryptography that everything here uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// The certificates in a PEM file, in their order.
///
/// # Errors
/// When it cannot be read or has none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let name = || path.display().to_string();
    let bytes = std::fs::read(path).map_err(|source| TlsFileError::Read { path: name(), source })?;
    parse_certificates(&bytes, &name())
}

fn parse_certificates(bytes: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found = parsed.map_err(|source| TlsFileError::Pem { path: name.to_owned(), source })?;
    if found.is_empty() { Err(TlsFileError::NoCertificate(name.to_owned())) } else { Ok(found) }
}

/// A certificate with its chain, and its key.
///
/// # Errors
/// When they do not belong together, or the key is of a kind that cannot be used.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
}

/// The certificate that handshakes show from now on; none for a client that has none yet. Cheap to clone.
/// Prints without the key.
#[derive(Clone, Default)]
pub struct CurrentCertificate(Arc<ArcSwapOption<CertifiedKey>>);

impl CurrentCertificate {
    /// Shows `certificate`.
    pub fn new(certificate: CertifiedKey) -> Self {
        Self(Arc::new(ArcSwapOption::from_pointee(certificate)))
    }

    /// Shows another one from the next handshake on.
    pub fn replace(&self, certificate: CertifiedKey) {
        self.0.store(Some(Arc::new(certificate)));
    }

    /// When the one that is shown can be used. None when there is none, or it cannot be read.
    pub fn validity(&self) -> Option<Validity> {
        validity(&*self.load()?)
    }

    /// The one that is shown.
    pub fn load(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// When a certificate can be used: the first of the chain, which is the one that is not an issuer.
fn validity(certificate: &CertifiedKey) -> Option<Validity> {
    Validity::of(certificate.cert.first()?)
}

impl fmt::Debug for CurrentCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.load().is_some() {
            "CurrentCertificate(set)"
        } else {
            "CurrentCertificate(none)"
        })
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.load()
    }
}

impl ResolvesClientCert for CurrentCertificate {
    /// Shows the certificate only to whom it is for: a server that names the issuers it takes and does not name
    /// ours would end the handshake.
    fn resolve(&self, issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let certificate = self.load()?;
        let names = |issuer: &[u8]| {
            let mut chain = certificate.cert.iter();
            chain.any(|one| one.windows(issuer.len()).any(|window| window == issuer))
        };
        let is_taken = issuers.is_empty() || issuers.iter().any(|issuer| !issuer.is_empty() && names(issuer));
        is_taken.then(|| Arc::clone(&certificate))
    }

    fn has_certs(&self) -> bool {
        self.0.load().is_some()
    }
}

/// How a listener speaks TLS: it shows `certificate`, speaks `protocols` and, with `clients`, asks who calls.
pub fn acceptor(
    certificate: CurrentCertificate,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    protocols: &[&[u8]],
) -> TlsAcceptor {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3");
    let clients = clients.unwrap_or_else(WebPkiClientVerifier::no_client_auth);
    let mut config = builder.with_client_cert_verifier(clients).with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// A connection that did not become a TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The other side did not finish.
    #[error("finish the TLS handshake within {HANDSHAKE_TIMEOUT:?}")]
    TimedOut,
    /// The other side speaks something else, trusts us not, or is not trusted.
    #[error("make the TLS handshake")]
    Failed(#[source] io::Error),
}

/// Takes a connection up to the end of its handshake, [`HANDSHAKE_TIMEOUT`] at most. To be awaited where only
/// this connection waits.
///
/// # Errors
/// When there is no TLS connection; the other side has been told as far as it listens.
pub async fn handshake<S>(acceptor: &TlsAcceptor, stream: S) -> Result<TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(HandshakeError::Failed(error)),
        Err(_elapsed) => Err(HandshakeError::TimedOut),
    }
}
