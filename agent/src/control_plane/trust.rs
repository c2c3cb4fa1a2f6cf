//! Whose server the agent talks to: one whose certificate comes from the authority of `--control-plane-ca`, or
//! else from the one that the join token named, or else from one that the system trusts.
//!
//! An agent that was told whom to trust by a join token is told of other authorities by the control plane itself
//! ([`Pins`]), so that it can get a new one. What an operator gave it stays what it is.

use std::{
    fmt,
    path::Path,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway_runtime::tls::{self, CurrentCertificate, TlsFileError};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// TLS towards the control plane cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The control plane URL is not a URL.
    #[error("parse --control-plane-url")]
    Url(#[source] tonic::transport::Error),
    /// The host of the URL cannot be in a certificate.
    #[error("use the host `{0}` of --control-plane-url with TLS")]
    Host(String),
    /// The file of `--control-plane-ca` cannot be used.
    #[error("load --control-plane-ca")]
    CaFile(#[source] TlsFileError),
    /// TLS refuses what it was given.
    #[error("set up TLS to the control plane")]
    Tls(#[from] Error),
    /// The agent's own certificate cannot be used.
    #[error("use the client certificate of this agent")]
    Certificate(#[source] Error),
}

/// SHA-256 of the certificate of an authority. Written as base64url without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Pin([u8; 32]);

/// A pin that is not 32 bytes in base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("read a SHA-256 in base64url")]
pub struct BadPin;

impl Pin {
    /// The pin of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl FromStr for Pin {
    type Err = BadPin;

    fn from_str(text: &str) -> Result<Self, BadPin> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadPin)?;
        bytes.try_into().map(Self).map_err(|_| BadPin)
    }
}

impl TryFrom<String> for Pin {
    type Error = BadPin;

    fn try_from(text: String) -> Result<Self, BadPin> {
        text.parse()
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        URL_SAFE_NO_PAD.encode(pin.0)
    }
}

/// Authorities that are taken from the control plane at most. An answer with more counts as if it named none.
const AUTHORITIES_MAX: usize = 8;

/// The authorities that the certificate of the control plane may come from, where a join token named the first of them.
/// Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Pins(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    trusted: Vec<Pin>,
    /// The one by which the last connection was proven.
    proven: Option<Pin>,
}

impl Pins {
    pub(super) fn new(trusted: Vec<Pin>) -> Self {
        Self(Arc::new(Mutex::new(Known { trusted, proven: None })))
    }

    /// What is to be trusted once the control plane has named `authorities`, in DER: these, and the one by which it has
    /// proven itself, which comes first. What is neither goes: the agent has reached the control plane without it. None
    /// when that is what is trusted already, or the answer says nothing.
    pub(super) fn after(&self, authorities: &[Vec<u8>]) -> Option<Vec<Pin>> {
        let known = self.lock();
        let proven = known.proven?;
        if authorities.is_empty() || authorities.len() > AUTHORITIES_MAX {
            return None;
        }
        let mut trusted = vec![proven];
        for pin in authorities.iter().map(|authority| Pin::of(authority)) {
            if !trusted.contains(&pin) {
                trusted.push(pin);
            }
        }
        let is_same =
            trusted.len() == known.trusted.len() && trusted.iter().all(|pin| known.trusted.contains(pin));
        (!is_same).then_some(trusted)
    }

    /// Trusts these from now on.
    pub(super) fn replace(&self, trusted: Vec<Pin>) {
        self.lock().trusted = trusted;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The control plane's certificate does not come from the authority that the join token named.
#[derive(Debug, thiserror::Error)]
#[error(
    "its certificate does not come from the authority that the join token named: somebody is in between, or the \
     control plane has another authority than when the token was made"
)]
struct WrongAuthority;

/// TLS towards the control plane, in which the agent shows `certificate` once it has one. With `ca` the pins count for
/// nothing.
pub(super) fn client_config(
    ca: Option<&Path>,
    pins: Option<Pins>,
    certificate: CurrentCertificate,
) -> Result<ClientConfig, TrustError> {
    let verifier: Arc<dyn ServerCertVerifier> = match (ca, pins) {
        (Some(path), _) => webpki(tls::certificates(path).map_err(TrustError::CaFile)?)?,
        (None, Some(pins)) => Arc::new(Pinned { pins }),
        (None, None) => Arc::new(rustls_platform_verifier::Verifier::new(tls::provider())?),
    };
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![tls::HTTP_2.to_vec()];
    // A resumed session would go on with the client certificate of the session before.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn webpki(authorities: Vec<CertificateDer<'static>>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority)?;
    }
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), tls::provider());
    Ok(builder.build().map_err(|error| Error::General(error.to_string()))?)
}

/// Trusts some authorities, of which the server has to send the certificate of its own along.
struct Pinned {
    pins: Pins,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let trusted = self.pins.lock().trusted.clone();
        let mut verified = Err(CertificateError::Other(OtherError(Arc::new(WrongAuthority))).into());
        for authority in intermediates {
            let pin = Pin::of(authority);
            if !trusted.contains(&pin) {
                continue;
            }
            let verifier = webpki(vec![authority.clone().into_owned()])?;
            verified =
                verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
            if verified.is_ok() {
                self.pins.lock().proven = Some(pin);
                break;
            }
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &tls::provider().signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &tls::provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What is wrong with the server's certificate, when that is what a failed connection comes from.
pub(super) fn mistrust(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => Some(cause.to_string()),
        error @ Error::InvalidCertificate(_) => Some(error.to_string()),
        _ => None,
    }
}
