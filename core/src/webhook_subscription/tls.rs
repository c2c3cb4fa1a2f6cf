//! Certificates and keys of a subscription, as PEM. Whether a key belongs to its certificate is for those who
//! have cryptography.

use gateway_proto::v1;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{snapshot::ClientCertificate, violation::FieldViolations};

/// Longest chain or list of certificates, in bytes.
pub const PEM_BYTES_MAX: usize = 64 * 1_024;
/// Longest private key, in bytes.
pub const KEY_PEM_BYTES_MAX: usize = 16 * 1_024;
/// Most certificates of a client certificate's chain.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;
/// Most certificates of `extra_ca_pem`.
pub const EXTRA_CA_CERTIFICATES_MAX: usize = 16;

/// The client certificate. None when there is none.
pub(super) fn read_client_certificate(
    violations: &mut FieldViolations,
    certificate: Option<&v1::ClientCertificate>,
) -> Option<ClientCertificate> {
    let certificate = certificate?;
    let field = "webhook_subscription.client_certificate.certificate_chain_pem";
    check_certificates(violations, field, &certificate.certificate_chain_pem, CHAIN_CERTIFICATES_MAX);
    check_key(violations, &certificate.private_key_pem);
    Some(ClientCertificate {
        chain_pem: certificate.certificate_chain_pem.as_str().into(),
        key_pem: certificate.private_key_pem.as_str().into(),
    })
}

/// Checks the issuers that are trusted beside the public ones.
pub(super) fn check_extra_ca(violations: &mut FieldViolations, pem: &str) {
    if !pem.is_empty() {
        check_certificates(violations, "webhook_subscription.extra_ca_pem", pem, EXTRA_CA_CERTIFICATES_MAX);
    }
}

fn check_certificates(violations: &mut FieldViolations, field: &str, pem: &str, max: usize) {
    if pem.is_empty() {
        violations.add(field, "must be set: PEM that begins with `-----BEGIN CERTIFICATE-----`");
        return;
    }
    if pem.len() > PEM_BYTES_MAX {
        violations.add(field, format!("must be at most {PEM_BYTES_MAX} bytes long"));
        return;
    }
    if pem.contains("PRIVATE KEY-----") {
        violations
            .add(field, "must not contain a private key: this field is read back; give certificates only");
        return;
    }
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        if certificate.is_err() {
            violations.add(field, "must be PEM; a block of it is cut off or is not base64");
            return;
        }
        count += 1;
    }
    if count == 0 {
        violations.add(field, "must hold a certificate: PEM that begins with `-----BEGIN CERTIFICATE-----`");
    } else if count > max {
        violations.add(field, format!("must hold at most {max} certificates, has {count}"));
    }
}

fn check_key(violations: &mut FieldViolations, pem: &str) {
    const FIELD: &str = "webhook_subscription.client_certificate.private_key_pem";
    if pem.is_empty() {
        violations.add(FIELD, "must be set: PEM that begins with `-----BEGIN PRIVATE KEY-----`");
    } else if pem.len() > KEY_PEM_BYTES_MAX {
        violations.add(FIELD, format!("must be at most {KEY_PEM_BYTES_MAX} bytes long"));
    } else if pem.contains("BEGIN ENCRYPTED PRIVATE KEY-----") || pem.contains("Proc-Type: 4,ENCRYPTED") {
        violations.add(FIELD, "must not be encrypted; decrypt it first, such as with `openssl pkey`");
    } else if PrivateKeyDer::from_pem_slice(pem.as_bytes()).is_err() {
        let description = "must hold a private key as PEM: PKCS #8, PKCS #1 (`RSA`) or SEC1 (`EC`)";
        violations.add(FIELD, description);
    }
}
