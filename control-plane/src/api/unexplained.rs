//! Refusals that tonic makes before a method is reached, and answers that it does not send because they are too large:
//! they get an `ErrorInfo` as all others have, and the code that the API documents where tonic has another one.

use std::{
    collections::HashMap,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::{Layer, Service};
use tracing::error;

use super::status::{DOMAIN, MESSAGE_BYTES_MAX, cut};

/// Where a refusal of a compressed message says which encodings are taken.
const ACCEPTED_ENCODINGS: &str = "grpc-accept-encoding";
/// Where a status carries its details.
const DETAILS_HEADER: &str = "grpc-status-details-bin";

/// Puts [`Explain`] around a service.
#[derive(Clone)]
pub(super) struct ExplainLayer;

impl<S> Layer<S> for ExplainLayer {
    type Service = Explain<S>;

    fn layer(&self, inner: S) -> Explain<S> {
        Explain { inner }
    }
}

/// Gives every refusal a reason, at the beginning of an answer and at its end.
#[derive(Clone)]
pub(super) struct Explain<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Explain<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let response = explain(answer.await?);
            Ok(response.map(|inner| Body::new(Explained { inner, method })))
        })
    }
}

/// An answer the end of which is looked at.
struct Explained {
    inner: Body,
    method: Uri,
}

impl http_body::Body for Explained {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        Poll::Ready(frame.map(|frame| Ok(explain_end(frame?, this.method.path()))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Adds a reason to an end that tonic made because the answer is too large, and says it to the operator: lists end
/// before that, and no resource may be so large.
fn explain_end(frame: Frame<Bytes>, method: &str) -> Frame<Bytes> {
    let mut trailers = match frame.into_trailers() {
        Ok(trailers) => trailers,
        Err(frame) => return frame,
    };
    if let Some(status) = too_large(&trailers) {
        error!(rpc.method = method, error = status.message(), "an answer was too large to be sent");
        // Texts and details are encoded, so that any can be a header.
        let _ = status.add_header(&mut trailers);
    }
    Frame::trailers(trailers)
}

/// What is to be said instead. An end with OUT_OF_RANGE without a reason is tonic's, which could not encode an answer.
fn too_large(trailers: &HeaderMap) -> Option<Status> {
    if trailers.contains_key(DETAILS_HEADER) {
        return None;
    }
    let status = Status::from_header_map(trailers).filter(|status| status.code() == Code::OutOfRange)?;
    let message = format!("the answer is too large to be sent: {}", status.message());
    let details = ErrorDetails::with_error_info("ANSWER_TOO_LARGE", DOMAIN, HashMap::new());
    Some(Status::with_error_details(Code::ResourceExhausted, message, details))
}

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

/// The status, with a reason if it has none. tonic calls a message that is too large OUT_OF_RANGE when it comes in, one
/// that cannot be decoded INTERNAL, and a deadline that has passed CANCELLED.
pub(super) fn with_reason(status: &Status) -> Status {
    if !status.details().is_empty() {
        return status.clone();
    }
    let reason = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => "MESSAGE_TOO_LARGE",
        // What it takes instead is told with it.
        Code::Unimplemented if status.metadata().contains_key(ACCEPTED_ENCODINGS) => "ENCODING_UNSUPPORTED",
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
        // A message that is none; what fails in here has its reason already.
        Code::Internal => Code::InvalidArgument,
        code => code,
    };
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    let message = cut(message, MESSAGE_BYTES_MAX);
    Status::with_error_details_and_metadata(code, message, details, status.metadata().clone())
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
        let mut compressed = Status::unimplemented("compressed with `gzip`");
        compressed.metadata_mut().insert(ACCEPTED_ENCODINGS, "identity".parse().unwrap());
        let compressed = explain(compressed.into_http());
        assert_eq!(reason(&compressed).as_deref(), Some("ENCODING_UNSUPPORTED"));
        assert_eq!(compressed.headers()[ACCEPTED_ENCODINGS], "identity");
        let unknown = explain(Status::unimplemented("").into_http());
        assert_eq!(reason(&unknown).as_deref(), Some("METHOD_UNKNOWN"));
        let malformed = explain(Status::internal("failed to decode Protobuf message").into_http());
        assert_eq!(reason(&malformed).as_deref(), Some("MESSAGE_MALFORMED"));
        assert_eq!(code(&malformed), Code::InvalidArgument);
        let ours = explain(crate::api::status::not_found("instance", "inst_1").into_http());
        assert_eq!(reason(&ours).as_deref(), Some("NOT_FOUND"));
        let answer = explain(http::Response::new(Body::empty()));
        assert!(reason(&answer).is_none() && answer.headers().is_empty());
    }

    /// An answer that ends because it is too large gets a reason, every other end stays as it is, and so does what
    /// comes before the end.
    #[test]
    fn only_unexplained_ends_change() {
        let end = |status: Status| {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            let after = explain_end(Frame::trailers(trailers.clone()), "/x/Y").into_trailers().unwrap();
            (trailers, Status::from_header_map(&after).unwrap(), after)
        };
        let (_, status, _) = end(Status::out_of_range("encoded message length too large"));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert_eq!(status.get_error_details().error_info().unwrap().reason, "ANSWER_TOO_LARGE");
        let ours = crate::api::status::exhausted("LIMIT", "is reached");
        for other in [Status::new(Code::Ok, ""), Status::cancelled("gone"), ours] {
            let (before, _, after) = end(other);
            assert_eq!(before, after);
        }
        let data = explain_end(Frame::data(Bytes::from_static(b"x")), "/x/Y");
        assert_eq!(data.into_data().unwrap(), "x");
    }
}
