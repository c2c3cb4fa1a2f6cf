//! The control plane's own certificate authority. It signs the client certificates of agents, and with
//! `--tls-own-ca` also the certificate that the gRPC port shows.
//!
//! Made at the first start and kept in the data directory: `ca.key` holds the key and the certificate, and
//! `ca.pem` the certificate alone, for clients. ECDSA P-256 throughout. Whoever has `ca.key` can make
//! certificates of agents, which without the agent's credential open nothing.
//!
//! An authority is replaced by another `ca.key`. Its certificate, as `ca-next.pem`, is told to agents before that, so that
//! they trust it when it comes. The certificate of the one before, as `ca-previous.pem`, keeps the certificates good that
//! agents have of it, until they have renewed them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway_runtime::{private, tls};
use jiff::Timestamp;
use rand::RngExt as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber, SigningKey, date_time_ymd,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use tracing::info;

#[cfg(test)]
mod tests;

/// The key and the certificate, in the data directory.
const KEY_FILE: &str = "ca.key";
/// The certificate alone, in the data directory.
pub const CERTIFICATE_FILE: &str = "ca.pem";
/// Certificates of authorities before this one, in the data directory, put there by the operator.
const PREVIOUS_FILE: &str = "ca-previous.pem";
/// Certificates of authorities to come, in the data directory, put there by the operator.
const NEXT_FILE: &str = "ca-next.pem";
/// Authorities that agents are told at most; they take no more.
const ANNOUNCED_MAX: usize = 8;
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Life of the authority's own certificate. A new one means that agents enroll again.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3_650);
/// Life of a certificate of the gRPC port. It is never older than a third of that.
pub const SERVER_LIFE: Duration = DAY.saturating_mul(90);
/// How long before its making a certificate is valid already, for those whose clock is behind.
const BACKDATED: Duration = DAY.saturating_mul(2);
/// Longest certificate signing request; one of P-256 has about 250 bytes.
const REQUEST_BYTES_MAX: usize = 4_096;
/// What the name of an agent in its certificate begins with.
const AGENT_NAME_PREFIX: &str = "urn:whatsapp-gateway:agent:";

/// The certificate authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("access certificate authority file `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is damaged.
    #[error(
        "read certificate authority of `{0}`: it must hold a private key and a certificate in PEM; restore it from \
         a backup, since agents trust this authority only"
    )]
    Damaged(PathBuf),
    /// The file of earlier authorities, or of those to come, is damaged.
    #[error("read the certificate authorities of `{0}`: it must hold certificates in PEM; mend or remove it")]
    Others(PathBuf),
    /// There are more authorities to come than agents take.
    #[error(
        "use the certificate authorities of `{0}`: agents take at most {ANNOUNCED_MAX} in all; remove some"
    )]
    TooMany(PathBuf),
    /// Making or using the key failed.
    #[error("use the certificate authority")]
    Signing(#[from] rcgen::Error),
    /// The certificate that was made cannot be served.
    #[error("use a certificate of the certificate authority")]
    Certificate(#[from] rustls::Error),
}

/// A certificate signing request that cannot be granted. For the caller.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRequest {
    /// Too long, not PKCS #10, or not signed by its own key.
    #[error("must be a certificate signing request (PKCS #10, DER) signed by its own key")]
    Unreadable,
    /// Another kind of key.
    #[error("must be for an ECDSA P-256 key")]
    Key,
}

/// A certificate of an agent.
pub struct AgentCertificate {
    /// The certificate, then the authority's, in DER.
    pub chain: Vec<Vec<u8>>,
    /// When it expires.
    pub expire_time: Timestamp,
}

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    previous: Vec<CertificateDer<'static>>,
    next: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Reads the authority of a data directory, or makes it.
    ///
    /// # Errors
    /// When the files cannot be used.
    pub fn open(data_dir: &Path, now: Timestamp) -> Result<Self, AuthorityError> {
        let path = data_dir.join(KEY_FILE);
        private::warn_if_open(&path);
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| AuthorityError::File { path, source }
        };
        let authority = match fs::read(&path) {
            Ok(bytes) => Self::parse(&bytes).ok_or(AuthorityError::Damaged(path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let (key, certificate) = make(now)?;
                let text = format!("{}{}", key.serialize_pem(), certificate.pem());
                private::write_file(&path, text.as_bytes()).map_err(failed(&path))?;
                let certificate = certificate.der().clone();
                let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
                Self { issuer, certificate, previous: Vec::new(), next: Vec::new() }
            }
            Err(source) => return Err(AuthorityError::File { path, source }),
        };
        let (path, pem) = (data_dir.join(CERTIFICATE_FILE), authority.pem());
        if fs::read(&path).ok().as_deref() != Some(pem.as_bytes()) {
            private::write_public_file(&path, pem.as_bytes()).map_err(failed(&path))?;
        }
        let (previous, next) = (others(data_dir, PREVIOUS_FILE)?, others(data_dir, NEXT_FILE)?);
        if next.len() >= ANNOUNCED_MAX {
            return Err(AuthorityError::TooMany(data_dir.join(NEXT_FILE)));
        }
        if !previous.is_empty() {
            info!(count = previous.len(), "agents may also show certificates of earlier authorities");
        }
        if !next.is_empty() {
            info!(count = next.len(), "agents are told to trust authorities to come");
        }
        Ok(Self { previous, next, ..authority })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(bytes).ok()?;
        let key = PrivateKeyDer::from_pem_slice(bytes).ok()?;
        let key = KeyPair::try_from(&key).ok()?;
        // A key that is not the certificate's would sign what nobody accepts.
        tls::certified_key(vec![certificate.clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .ok()?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).ok()?;
        Some(Self { issuer, certificate, previous: Vec::new(), next: Vec::new() })
    }

    /// The authority's certificate.
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The authorities whose certificates of agents count: this one, and those before it.
    pub fn trusted(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.previous)
    }

    /// The authorities whose certificates the gRPC port shows with `--tls-own-ca`: this one, and those to come.
    pub fn announced(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(self.next.iter().filter(|next| **next != self.certificate))
    }

    /// The authority's certificate as text (RFC 7468).
    pub fn pem(&self) -> String {
        let encoded = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let lines: Vec<&str> = encoded
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
            .collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// SHA-256 of the authority's certificate, as join tokens carry it: base64url without padding.
    pub fn pin(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(&self.certificate))
    }

    /// A certificate for the gRPC port, with a new key, for names and addresses by which it is called.
    ///
    /// # Errors
    /// When a name cannot be in a certificate.
    pub fn server_certificate(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<CertifiedKey, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = name("gateway-control-plane");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = self.sign(params, &key, now, SERVER_LIFE)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok(tls::certified_key(vec![certificate, self.certificate.clone()], key)?)
    }

    /// A client certificate for the key of `request`. Nothing else of the request counts.
    ///
    /// # Errors
    /// [`InvalidRequest`] inside when the request cannot be granted, otherwise that signing failed.
    pub fn agent_certificate(
        &self,
        request: &[u8],
        agent_id: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<Result<AgentCertificate, InvalidRequest>, AuthorityError> {
        if request.len() > REQUEST_BYTES_MAX {
            return Ok(Err(InvalidRequest::Unreadable));
        }
        // This checks that the request is signed by its own key.
        let Ok(request) = CertificateSigningRequestParams::from_der(&request.into()) else {
            return Ok(Err(InvalidRequest::Unreadable));
        };
        if *request.public_key.algorithm() != PKCS_ECDSA_P256_SHA256 {
            return Ok(Err(InvalidRequest::Key));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name(agent_id);
        let uri = format!("{AGENT_NAME_PREFIX}{agent_id}").try_into()?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = self.sign(params, &request.public_key, now, life)?;
        let chain = vec![certificate.to_vec(), self.certificate.to_vec()];
        Ok(Ok(AgentCertificate { chain, expire_time: seconds_after(now, life) }))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        key: &impl rcgen::PublicKeyData,
        now: Timestamp,
        life: Duration,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        set_times(&mut params, now, life);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }
}

/// The certificates in a file of the data directory; none without it.
fn others(data_dir: &Path, file: &str) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let path = data_dir.join(file);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(AuthorityError::File { path, source }),
    };
    let others: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    others.ok().filter(|others| !others.is_empty()).ok_or(AuthorityError::Others(path))
}

/// What a client certificate says about its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedAgent {
    /// The agent's id.
    pub agent_id: String,
    /// When the certificate expires, in seconds since 1970.
    pub expire_seconds: i64,
}

/// Reads a certificate whose signature was checked. None when it is not one of an agent.
pub fn certified_agent(certificate: &[u8]) -> Option<CertifiedAgent> {
    use x509_parser::{extensions::GeneralName, prelude::FromDer as _};
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(AGENT_NAME_PREFIX),
        _ => None,
    });
    let (Some(agent_id), None) = (names.next(), names.next()) else { return None };
    Some(CertifiedAgent {
        agent_id: agent_id.to_owned(),
        expire_seconds: parsed.validity().not_after.timestamp(),
    })
}

fn make(now: Timestamp) -> Result<(KeyPair, rcgen::Certificate), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // A name of its own, so that agents tell this authority from another one by the name alone.
    let number: u64 = rand::rng().random();
    params.distinguished_name = name(&format!("WhatsApp Gateway CA {number:016x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_times(&mut params, now, AUTHORITY_LIFE);
    let certificate = self_signed(&params, &key)?;
    Ok((key, certificate))
}

fn self_signed(
    params: &CertificateParams,
    key: &impl SigningKey,
) -> Result<rcgen::Certificate, rcgen::Error> {
    params.self_signed(key)
}

fn name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn set_times(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let since_1970 = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or(0));
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_1970.saturating_sub(BACKDATED);
    params.not_after = epoch + (since_1970 + life);
    // RFC 5280, 4.1.2.2: positive, at most 20 bytes.
    let mut serial: [u8; 16] = rand::rng().random();
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
}

/// Certificates know whole seconds only.
fn seconds_after(now: Timestamp, life: Duration) -> Timestamp {
    let seconds = now.as_second().saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}
