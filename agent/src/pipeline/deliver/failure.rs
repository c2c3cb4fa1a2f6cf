//! Why an attempt did not succeed: a kind that code decides on, and words for people. The words carry no
//! address, no body and nothing of the URL.

use std::{error::Error, io, time::Duration};

use gateway_core::destination::BlockedAddress;
use gateway_proto::v1::AttemptFailure;

use super::guard::{CONNECT_TIMEOUT, Unresolved};

/// Why an attempt did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: AttemptFailure,
    pub(super) text: String,
}

impl Failure {
    fn new(kind: AttemptFailure, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// The answer was not 2xx.
    pub(super) fn status(status: http::StatusCode) -> Self {
        let hint = match status.as_u16() {
            300..=399 => "; redirects are not followed",
            410 => "; the subscription is paused",
            _ => "",
        };
        Self::new(AttemptFailure::Status, format!("the destination answered {}{hint}", status.as_u16()))
    }

    /// The whole attempt took too long.
    pub(super) fn timeout(limit: Duration) -> Self {
        Self::new(AttemptFailure::Timeout, format!("no complete answer within {} s", limit.as_secs_f64()))
    }

    /// The address may not be reached.
    pub(super) fn blocked(blocked: BlockedAddress) -> Self {
        Self::new(AttemptFailure::BlockedAddress, blocked.to_string())
    }

    /// The request could not be built or the connection broke.
    pub(super) fn protocol(text: &'static str) -> Self {
        Self::new(AttemptFailure::Protocol, text)
    }

    /// What the HTTP client says.
    pub(super) fn of_client(error: &reqwest::Error) -> Self {
        if let Some(blocked) = find::<BlockedAddress>(error) {
            return Self::blocked(*blocked);
        }
        if find::<Unresolved>(error).is_some() {
            return Self::new(AttemptFailure::Dns, "the destination's name does not resolve");
        }
        if let Some(tls) = find::<rustls::Error>(error) {
            return Self::new(AttemptFailure::Tls, tls_text(tls));
        }
        if error.is_connect() && error.is_timeout() {
            let limit = CONNECT_TIMEOUT.as_secs();
            return Self::new(AttemptFailure::Connect, format!("no connection within {limit} s"));
        }
        if error.is_connect() {
            let kind = find::<io::Error>(error).map(io::Error::kind);
            return Self::new(AttemptFailure::Connect, connect_text(kind));
        }
        Self::protocol("the connection broke, or the answer was not HTTP")
    }

    /// The kind's name in metrics.
    pub(super) const fn metric(&self) -> &'static str {
        match self.kind {
            AttemptFailure::Dns => "dns",
            AttemptFailure::Connect => "connect",
            AttemptFailure::Tls => "tls",
            AttemptFailure::Timeout => "timeout",
            AttemptFailure::Status => "status",
            AttemptFailure::BlockedAddress => "blocked_address",
            AttemptFailure::Protocol | AttemptFailure::Unspecified => "protocol",
        }
    }
}

/// The first error of a type in the chain. An `io::Error` hides what it wraps from `source`, so it is
/// opened.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

const fn connect_text(kind: Option<io::ErrorKind>) -> &'static str {
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => "the destination refused the connection",
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof) => {
            "the destination closed the connection while it was being made"
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            "the destination cannot be reached from here"
        }
        _ => "no connection could be made",
    }
}

fn tls_text(error: &rustls::Error) -> String {
    use rustls::CertificateError as Bad;
    let text = match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => "the destination's certificate has expired",
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                "the destination's certificate is not valid yet"
            }
            Bad::UnknownIssuer => {
                "the destination's certificate comes from an unknown issuer, or intermediate certificates are missing"
            }
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => {
                "the destination's certificate is for another name"
            }
            Bad::Revoked => "the destination's certificate was revoked",
            _ => "the destination's certificate is not valid",
        },
        rustls::Error::PeerIncompatible(_) => {
            "the destination offers no TLS version or cipher suite in common (TLS 1.2 with ECDHE and AEAD, or TLS 1.3, is needed)"
        }
        rustls::Error::AlertReceived(alert) => {
            return format!("the destination ended the TLS handshake with the alert {alert:?}");
        }
        _ => "the TLS handshake failed",
    };
    text.to_owned()
}
