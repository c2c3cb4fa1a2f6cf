//! What is wrong between two sides that do not agree on TLS.

use std::{error::Error as StdError, io, time::Duration};

use http::Uri;
use rustls::{
    CertificateError,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::Error;

/// What a connection in plain text opens with: the preface and empty settings (RFC 9113, 3.4).
const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The first byte of what a TLS server says to that: an alert (RFC 8446, 5.1).
const TLS_ALERT: u8 = 21;
/// How long a server is waited for that says nothing to it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Whether there is a certificate in `pem`, and nothing that cannot be read.
pub(super) fn has_certificates(pem: &str) -> bool {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    parsed.is_ok_and(|certificates| !certificates.is_empty())
}

/// Why a connection could not be made.
pub(super) fn of_connect(endpoint: &str, source: tonic::transport::Error) -> Error {
    let endpoint = endpoint.to_owned();
    if let Some(fault) = of_certificate(&source) {
        return Error::Untrusted { endpoint, fault };
    }
    match find(&source) {
        // What came instead of TLS does not look like it.
        Some(rustls::Error::InvalidMessage(_)) => Error::NoTls { endpoint },
        _ => Error::Connect { endpoint, source },
    }
}

/// What is wrong with the server's certificate, when that is what a connection failed for.
pub(super) fn of_certificate(error: &(dyn StdError + 'static)) -> Option<String> {
    match find(error)? {
        // The second is what another authority of the same name comes to.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => Some("its certificate comes from an authority that is not trusted here".to_owned()),
        fault @ rustls::Error::InvalidCertificate(_) => Some(fault.to_string()),
        _ => None,
    }
}

/// What TLS says, somewhere among the causes.
fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let wrapped = inner.and_then(|inner| inner.downcast_ref());
        if let Some(found) = cause.downcast_ref().or(wrapped) {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

/// Whether the server at an http endpoint answers in TLS. HTTP/2 itself would only tell that the connection broke.
pub(super) async fn wants_tls(uri: &Uri) -> bool {
    if uri.scheme_str() != Some("http") {
        return false;
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let asking = async {
        let mut stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
        stream.write_all(OPENING).await?;
        stream.read_u8().await
    };
    matches!(timeout(ANSWER_TIMEOUT, asking).await, Ok(Ok(TLS_ALERT)))
}
