//! How long a call may take: 30 s, and not longer than its caller waits (`grpc-timeout`).
//!
//! tonic has such a limit as well, but outside all layers of ours, and it answers CANCELLED without a reason. So it is
//! not given ours, and the caller's ends here a moment before it ends there.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::status;

/// How long a unary call may take, and a stream until its first answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How much before the caller's deadline a call ends: enough to be first, and too little to be missed.
const EARLIER: Duration = Duration::from_millis(5);
/// The header with which callers say how long they wait.
const HEADER: &str = "grpc-timeout";
/// Digits that a deadline has at most (gRPC over HTTP/2, `TimeoutValue`).
const DIGITS_MAX: usize = 8;

/// How long a call with these headers may take.
fn limit(headers: &HeaderMap) -> Duration {
    let own = headers.get(HEADER).and_then(|value| parse(value.to_str().ok()?));
    // Of a very short deadline a tenth is left out.
    own.map_or(CALL_TIMEOUT, |own| own.saturating_sub(EARLIER.min(own / 10)).min(CALL_TIMEOUT))
}

/// A number of hours, minutes, seconds, or thousandths, millionths or billionths of one. None when it is no such.
fn parse(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number =
        (1..=DIGITS_MAX).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Puts [`Deadline`] around a service.
#[derive(Clone)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// Ends calls that take too long with DEADLINE_EXCEEDED. What a call was doing ends with it, except for a commit
/// that has begun.
#[derive(Clone)]
pub(super) struct Deadline<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Deadline<S>
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
        let limit = limit(request.headers());
        let answer = self.inner.call(request);
        Box::pin(async move {
            let in_time = tokio::time::timeout(limit, answer).await;
            in_time.unwrap_or_else(|_| Ok(status::deadline_exceeded().into_http()))
        })
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};
    use tonic_types::StatusExt as _;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    fn limit_of(text: &str) -> Duration {
        limit(&[(HEADER.parse().unwrap(), text.parse().unwrap())].into_iter().collect())
    }

    /// The caller's deadline counts in every unit, a little early, and never beyond our own; what is none is not there.
    #[test]
    fn the_shorter_limit_counts() {
        assert_eq!(limit(&HeaderMap::new()), CALL_TIMEOUT);
        assert_eq!(limit_of("2S"), Duration::from_millis(1_995));
        assert_eq!(limit_of("300m"), Duration::from_millis(295));
        assert_eq!(limit_of("10000u"), Duration::from_millis(9));
        assert_eq!(limit_of("1000000n"), Duration::from_micros(900));
        for long in ["1H", "1M", "99999999H"] {
            assert_eq!(limit_of(long), CALL_TIMEOUT, "{long}");
        }
        for none in ["", "S", "2", "2x", "-2S", "+2S", "123456789m", "ü"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    /// A call that takes too long is DEADLINE_EXCEEDED with a reason.
    #[tokio::test(start_paused = true)]
    async fn late_calls_are_told_why() {
        let never =
            service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
        let answer = DeadlineLayer.layer(never).oneshot(Request::new(Body::empty())).await.unwrap();
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(status.get_details_error_info().unwrap().reason, "DEADLINE_EXCEEDED");
    }
}
