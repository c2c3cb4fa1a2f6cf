//! TLS towards destinations: who is trusted, who we are, and what exactly is wrong with a certificate.

use std::sync::Arc;

use gateway_core::snapshot::ClientCertificate;
use gateway_runtime::tls::is_self_signed;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio_rustls::TlsConnector;
use tracing::warn;
use url::Host;

use crate::pipeline::deliver::failure::Failure;

mod certificate;

use certificate::verify_named;

/// TLS sessions that are remembered over all destinations that need no settings of their own.
const SESSIONS_MAX: usize = 1_024;

/// TLS for webhooks cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("set up TLS for webhooks")]
pub struct ClientError(#[source] Error);

/// A certificate that its own key signed, and that is not trusted.
#[derive(Debug, thiserror::Error)]
#[error("check certificate: it is self-signed")]
pub(crate) struct SelfSigned;

/// This machine has no root certificates.
#[derive(Debug, thiserror::Error)]
#[error("check certificate: there are no root certificates")]
pub(crate) struct NoRoots;

/// What a subscription says about TLS.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct TlsSettings {
    /// Shown to a server that asks for one.
    pub(crate) client_certificate: Option<Arc<ClientCertificate>>,
    /// Issuers trusted beside the public ones.
    pub(crate) extra_ca_pem: Option<Arc<str>>,
}

/// TLS towards one site.
pub(crate) struct TlsClient {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
    pub(super) shows_certificate: bool,
}

/// Whom we trust.
pub(crate) struct Trust {
    provider: Arc<CryptoProvider>,
    /// The root certificates of the system, if there are any.
    public: Option<Arc<dyn ServerCertVerifier>>,
    /// The configuration for every destination without settings of its own.
    plain: Arc<ClientConfig>,
}

impl Trust {
    pub(crate) fn new() -> Result<Self, ClientError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let public = match rustls_platform_verifier::Verifier::new(Arc::clone(&provider)) {
            Ok(verifier) => Some(Arc::new(verifier) as Arc<dyn ServerCertVerifier>),
            Err(failure) => {
                // A machine without any root certificate can still deliver to plain http destinations, and
                // where a subscription brings its own.
                warn!(
                    error = &failure as &dyn std::error::Error,
                    "no root certificates found: https destinations will be refused unless the subscription \
                     brings its own; install the package ca-certificates"
                );
                None
            }
        };
        let plain = config(&provider, public.clone(), None, None).map_err(ClientError)?;
        Ok(Self { provider, public, plain: Arc::new(plain) })
    }

    /// TLS towards `host`.
    pub(super) fn client(&self, host: &Host<&str>, settings: &TlsSettings) -> Result<TlsClient, Failure> {
        let config = if *settings == TlsSettings::default() {
            Arc::clone(&self.plain)
        } else {
            Arc::new(self.special(settings)?)
        };
        let name = match host {
            Host::Ipv4(ip) => ServerName::from(std::net::IpAddr::V4(*ip)),
            Host::Ipv6(ip) => ServerName::from(std::net::IpAddr::V6(*ip)),
            // RFC 6066, 3: the name is sent without a trailing dot.
            Host::Domain(name) => ServerName::try_from(name.trim_end_matches('.').to_owned())
                .map_err(|_| Failure::authentication("the host of the URL is no name that TLS can check"))?,
        };
        let shows_certificate = settings.client_certificate.is_some();
        Ok(TlsClient { connector: TlsConnector::from(config), name, shows_certificate })
    }

    fn special(&self, settings: &TlsSettings) -> Result<ClientConfig, Failure> {
        let extra = settings.extra_ca_pem.as_deref().map(|pem| self.extra(pem)).transpose()?;
        let shown = settings.client_certificate.as_deref().map(read_client_certificate).transpose()?;
        config(&self.provider, self.public.clone(), extra, shown).map_err(|_| {
            Failure::authentication(
                "the client certificate of the subscription and its key do not fit together",
            )
        })
    }

    fn extra(&self, pem: &str) -> Result<Extra, Failure> {
        let unusable = || Failure::authentication("the extra CA of the subscription cannot be used");
        let named: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let named = named.map_err(|_| unusable())?;
        let mut roots = RootCertStore::empty();
        for certificate in &named {
            roots.add(certificate.clone()).map_err(|_| unusable())?;
        }
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map(|issuers| Extra { issuers, named })
            .map_err(|_| unusable())
    }
}

/// What a subscription trusts beside the public roots.
#[derive(Debug)]
struct Extra {
    issuers: Arc<WebPkiServerVerifier>,
    /// The certificates themselves. One that a server shows as its own is trusted too: whoever made a
    /// certificate that is its own issuer has nothing else to name.
    named: Vec<CertificateDer<'static>>,
}

type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_client_certificate(certificate: &ClientCertificate) -> Result<Shown, Failure> {
    let unusable = || Failure::authentication("the client certificate of the subscription cannot be used");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes()).collect();
    let chain = chain.map_err(|_| unusable())?;
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).map_err(|_| unusable())?;
    if chain.is_empty() { Err(unusable()) } else { Ok((chain, key)) }
}

fn config(
    provider: &Arc<CryptoProvider>,
    public: Option<Arc<dyn ServerCertVerifier>>,
    extra: Option<Extra>,
    shown: Option<Shown>,
) -> Result<ClientConfig, Error> {
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let verifier = Explaining { public, extra, provider: Arc::clone(provider), schemes };
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    Ok(config)
}

/// Asks the public roots, then those of the subscription, and says more about a certificate that neither
/// trusts. It accepts nothing else, but for a certificate that the subscription named itself.
#[derive(Debug)]
struct Explaining {
    public: Option<Arc<dyn ServerCertVerifier>>,
    extra: Option<Extra>,
    provider: Arc<CryptoProvider>,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for Explaining {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut fault = CertificateError::Other(OtherError(Arc::new(NoRoots))).into();
        if let Some(public) = &self.public {
            match public.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                Ok(verified) => return Ok(verified),
                Err(error) => fault = error,
            }
        }
        if let Some(extra) = &self.extra {
            if extra.named.contains(end_entity) {
                return verify_named(end_entity, server_name, now);
            }
            let issuers = &extra.issuers;
            match issuers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
                Ok(verified) => return Ok(verified),
                // What is wrong under an issuer that the customer named says more.
                Err(error) if !is_about_issuer(&error) || self.public.is_none() => fault = error,
                Err(_unknown_issuer) => {}
            }
        }
        if is_about_issuer(&fault) && is_self_signed(end_entity) {
            fault = CertificateError::Other(OtherError(Arc::new(SelfSigned))).into();
        }
        Err(fault)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

/// Whether the fault may come from a certificate that is its own issuer: an unknown issuer, or one that is
/// marked as an issuer and used for a server (webpki has no variant of its own for it).
const fn is_about_issuer(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)))
}
