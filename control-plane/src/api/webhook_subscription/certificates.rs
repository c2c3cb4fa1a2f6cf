//! Certificates of a subscription as TLS will use them, so that a bad one is found when it is given and not
//! at the first attempt.

use gateway_core::{
    snapshot::ClientCertificate, violation::FieldViolations, webhook_subscription::WebhookSubscription,
};
use rustls::{
    Error, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

/// Checks the client certificate, that its key is its own, and the issuers of `extra_ca_pem`.
pub(super) fn check(subscription: &WebhookSubscription, extra_ca_pem: &str) -> Result<(), FieldViolations> {
    let mut violations = FieldViolations::new();
    if let Some(certificate) = &subscription.client_certificate {
        check_client_certificate(&mut violations, certificate);
    }
    let mut roots = RootCertStore::empty();
    for (index, issuer) in CertificateDer::pem_slice_iter(extra_ca_pem.as_bytes()).enumerate() {
        if issuer.map_or(true, |issuer| roots.add(issuer).is_err()) {
            let description = format!("must hold X.509 certificates only; number {} is none", index + 1);
            violations.add("webhook_subscription.extra_ca_pem", description);
            break;
        }
    }
    violations.into_result(())
}

fn check_client_certificate(violations: &mut FieldViolations, certificate: &ClientCertificate) {
    const CHAIN: &str = "webhook_subscription.client_certificate.certificate_chain_pem";
    const KEY: &str = "webhook_subscription.client_certificate.private_key_pem";
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes()).collect();
    let Ok(chain) = chain else { return violations.add(CHAIN, "must be PEM") };
    let Ok(key) = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()) else {
        return violations.add(KEY, "must be PEM");
    };
    match CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()) {
        Ok(_) => {}
        Err(Error::InconsistentKeys(_)) => {
            violations.add(KEY, "must be the key of the first certificate of `certificate_chain_pem`");
        }
        Err(Error::InvalidCertificate(_)) => {
            violations.add(CHAIN, "must begin with an X.509 certificate");
        }
        Err(_) => violations.add(KEY, "must be an RSA, ECDSA (P-256, P-384, P-521) or Ed25519 key"),
    }
}
