//! Refusals that tonic makes before a method is reached: they get an `ErrorInfo` as all others have, and the code that
//! the API documents where tonic has another one.

use std::collections::HashMap;

use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::status::DOMAIN;

/// Where a status carries its details.
const DETAILS_HEADER: &str = "grpc-status-details-bin";

/// Adds a reason to a refusal that has none.
pub(super) fn explain(response: http::Response<Body>) -> http::Response<Body> {
    let headers = response.headers();
    if headers.contains_key(DETAILS_HEADER) {
        return response;
    }
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => with_reason(&status).into_http(),
        _ => response,
    }
}

/// The status, with a reason if it has none. tonic calls a message that is too large OUT_OF_RANGE when it comes in, and
/// a deadline that has passed CANCELLED.
pub(super) fn with_reason(status: &Status) -> Status {
    if !status.details().is_empty() {
        return status.clone();
    }
    let reason = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => "MESSAGE_TOO_LARGE",
        Code::Unimplemented => "METHOD_UNKNOWN",
        Code::Internal | Code::InvalidArgument => "MESSAGE_MALFORMED",
        Code::Cancelled | Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        _ => "REFUSED",
    };
    let message = match status.message() {
        "" if status.code() == Code::Unimplemented => "this control plane has no such method",
        message => message,
    };
    let code = match status.code() {
        Code::OutOfRange => Code::ResourceExhausted,
        Code::Cancelled => Code::DeadlineExceeded,
        code => code,
    };
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(response: &http::Response<Body>) -> Option<String> {
        let status = Status::from_header_map(response.headers())?;
        Some(status.get_error_details().error_info()?.reason.clone())
    }

    /// What has no reason gets one, what has one keeps it, and an answer stays as it is.
    #[test]
    fn only_unexplained_refusals_change() {
        let too_large = explain(Status::out_of_range("too large").into_http());
        assert_eq!(reason(&too_large).as_deref(), Some("MESSAGE_TOO_LARGE"));
        let code =
            |response: &http::Response<Body>| Status::from_header_map(response.headers()).unwrap().code();
        assert_eq!(code(&too_large), Code::ResourceExhausted);
        assert_eq!(code(&explain(Status::cancelled("Timeout expired").into_http())), Code::DeadlineExceeded);
        let ours = explain(crate::api::status::not_found("instance", "inst_1").into_http());
        assert_eq!(reason(&ours).as_deref(), Some("NOT_FOUND"));
        let answer = explain(http::Response::new(Body::empty()));
        assert!(reason(&answer).is_none() && answer.headers().is_empty());
    }
}
