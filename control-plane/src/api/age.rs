//! Calls that are still open when their connection is about to be cut for its age: they are told so.
//!
//! A connection that reaches its age is asked to end (GOAWAY), and cut some time later. Calls that answer once are over by
//! then. Streams of operators end with a status that says what to do; agents come again by themselves and need no word.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tokio::time::{Instant, sleep_until};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{
    authorize::access::{self, Access},
    ending::ending,
    status,
};
use crate::tls::Peer;

/// How much before the cut calls end, so that the caller hears of it.
const EARLIER: Duration = Duration::from_millis(500);

/// Puts [`Age`] around a service.
#[derive(Clone)]
pub(super) struct AgeLayer;

impl<S> Layer<S> for AgeLayer {
    type Service = Age<S>;

    fn layer(&self, inner: S) -> Age<S> {
        Age { inner }
    }
}

/// Ends answers that are not over when their connection ends.
#[derive(Clone)]
pub(super) struct Age<S> {
    inner: S,
}

/// When an answer over this connection ends. None for agents, and where connections have no age.
fn end_of(request: &Request<Body>) -> Option<Instant> {
    let end = request.extensions().get::<Peer>()?.end?;
    (access::of(request.uri().path()) != Access::Agent).then(|| end - EARLIER)
}

async fn told_at(end: Instant) -> Status {
    sleep_until(end).await;
    let message = "the connection has reached its age: call again; a watch goes on from its last cursor";
    status::unavailable_until("CONNECTION_TOO_OLD", message, Duration::ZERO)
}

impl<S> Service<Request<Body>> for Age<S>
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
        let end = end_of(&request);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match end {
                Some(end) => answer.map(|body| ending(body, told_at(end))),
                None => answer,
            })
        })
    }
}
