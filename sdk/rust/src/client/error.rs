//! Why a call failed, with the details that the control plane gave.

use std::{collections::HashMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Why the client could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is not `http://host:port` or `https://host:port`, or its TLS settings are unusable.
    #[error("read endpoint `{endpoint}`")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// The certificate authority is not PEM, or there is no certificate in it.
    #[error("read the certificate authority: it must be one certificate or more in PEM")]
    CaCertificate,
    /// A certificate authority was given for an endpoint without TLS.
    #[error("use a certificate authority for `{endpoint}`: TLS is for https:// only")]
    CaWithoutTls {
        /// The endpoint.
        endpoint: String,
    },
    /// The server at the endpoint has no certificate that is trusted for it.
    #[error("trust the server at `{endpoint}`: {fault}")]
    Untrusted {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with its certificate.
        fault: String,
    },
    /// The endpoint is https, and the server there does not speak TLS.
    #[error(
        "speak TLS with `{endpoint}`: the server there does not; if it serves plain text, call it by http://"
    )]
    NoTls {
        /// The endpoint.
        endpoint: String,
    },
    /// The endpoint is http, and the server there speaks TLS.
    #[error("call `{endpoint}` in plain text: the server there speaks TLS; call it by https://")]
    WantsTls {
        /// The endpoint.
        endpoint: String,
    },
    /// The API key contains characters that no header can carry.
    #[error("read api key: it must be visible ASCII")]
    ApiKey,
    /// Nothing that speaks gRPC answers at the endpoint.
    #[error("connect to `{endpoint}`")]
    Connect {
        /// The endpoint.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The control plane refused or failed the call.
    #[error(transparent)]
    Call(#[from] Box<CallError>),
}

impl Error {
    /// The gRPC code, for a call that was refused or failed.
    pub fn code(&self) -> Option<Code> {
        self.call().map(|call| call.code)
    }

    /// The details, for a call that was refused or failed.
    pub fn call(&self) -> Option<&CallError> {
        match self {
            Self::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without a change: overload, a broken connection, a deadline.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Endpoint { .. }
            | Self::CaCertificate
            | Self::CaWithoutTls { .. }
            | Self::Untrusted { .. }
            | Self::NoTls { .. }
            | Self::WantsTls { .. }
            | Self::ApiKey => false,
            Self::Connect { .. } => true,
            Self::Call(call) => call.is_transient(),
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(CallError::from(status)))
    }
}

/// What the control plane answered instead of a result. <https://google.aip.dev/193>
#[derive(Debug, Clone)]
pub struct CallError {
    /// The gRPC code.
    pub code: Code,
    /// What is wrong, for people.
    pub message: String,
    /// A stable upper-case word for programs (`ErrorInfo.reason`); empty when none was given.
    pub reason: String,
    /// More about the reason (`ErrorInfo.metadata`).
    pub metadata: HashMap<String, String>,
    /// The fields at fault (`BadRequest`).
    pub violations: Vec<FieldViolation>,
    /// When to try again at the earliest (`RetryInfo`).
    pub retry_after: Option<Duration>,
}

/// One field of a request that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldViolation {
    /// The path of the field: `webhook_subscription.destination_url`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

impl CallError {
    /// Whether the same call may succeed later without a change.
    pub fn is_transient(&self) -> bool {
        // Broken connections surface as UNAVAILABLE, UNKNOWN, INTERNAL or CANCELLED, whichever layer saw them.
        matches!(
            self.code,
            Code::Unavailable
                | Code::Unknown
                | Code::Internal
                | Code::Cancelled
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
        )
    }
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info();
        let (reason, metadata) = info.map(|info| (info.reason, info.metadata)).unwrap_or_default();
        let violations = status
            .get_details_bad_request()
            .map(|bad| bad.field_violations)
            .unwrap_or_default()
            .into_iter()
            .map(|violation| FieldViolation { field: violation.field, description: violation.description })
            .collect();
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            reason,
            metadata,
            violations,
            retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", code_name(self.code))?;
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        for violation in &self.violations {
            write!(f, "; field `{}`: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

impl std::error::Error for CallError {}

/// The code as gRPC's documents and grpcurl's answers spell it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::ErrorDetails;

    /// Reason, field violations and retry delay of `google.rpc.Status` reach the caller, and the text shows
    /// which field is wrong.
    #[test]
    fn details_are_decoded() {
        let mut details = ErrorDetails::with_bad_request_violation("instance.id", "must match the pattern");
        details.set_error_info("INVALID_ID", "whatsapp-gateway", [("id".to_owned(), "X".to_owned())]);
        details.set_retry_info(Some(Duration::from_secs(3)));
        let status = Status::with_error_details(Code::InvalidArgument, "bad request", details);
        let error = Error::from(status);
        let call = error.call().unwrap();
        assert_eq!(call.reason, "INVALID_ID");
        assert_eq!(call.metadata["id"], "X");
        assert_eq!(call.retry_after, Some(Duration::from_secs(3)));
        assert_eq!(call.violations[0].field, "instance.id");
        assert!(!error.is_transient());
        assert_eq!(
            error.to_string(),
            "INVALID_ARGUMENT: bad request; field `instance.id`: must match the pattern"
        );
    }

    /// A status without details, or with bytes that are none, still gives code and message.
    #[test]
    fn a_bare_status_is_enough() {
        let status = Status::with_details(Code::Unavailable, "away", vec![1_u8, 2, 3].into());
        let error = Error::from(status);
        assert_eq!(error.code(), Some(Code::Unavailable));
        assert!(error.is_transient());
        assert_eq!(error.to_string(), "UNAVAILABLE: away");
    }
}
