//! HTTP in: `GET` and `POST /callbacks/{provider}/{token}`, the limits, and the answers. What a callback
//! means is decided behind [`Accept`].
//!
//! An answer before authentication can only be 413 or 503. Nothing in an answer tells why a callback was
//! refused.

use std::{convert::Infallible, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use gateway_core::event::Provider as ProviderName;
use gateway_runtime::tls;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, warn};

use super::authenticate::Address;
use crate::{
    metrics::Metrics,
    provider::{CallbackRequest, Provider, Reply, provider},
};

mod body;
mod front;
#[cfg(test)]
mod tests;

use body::{BodyBudget, ReadBodyError};
pub use front::Front;
use front::Origin;

/// Longest time for the headers of a request, and for which an unused connection is kept open.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time from the headers of a request to its answer; beyond it the answer is 503.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Most connections at once. Beyond it new ones wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 4_096;
/// What a caller is told to wait when the agent is not ready or has no room this moment.
const RETRY_AFTER_SHORT: Duration = Duration::from_secs(1);
/// Pause after a failure to accept, which is usually one of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What became of a callback, and so the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Everything is on disk, or there was nothing to keep: 200, with what the provider wants to read. Meta
    /// counts anything but 200 as failure.
    Accepted(Reply),
    /// The handshake is answered: 200 with the challenge as the whole body.
    Challenge(String),
    /// The handshake is refused: 403.
    HandshakeRefused,
    /// The callback is not proved genuine: 401.
    NotAuthenticated,
    /// The body is not in the provider's format: 400.
    Unreadable,
    /// The media type or the encoding is not one that the provider sends: 415.
    WrongMediaType,
    /// The body is larger, or has more items, than any provider sends: 413.
    TooLarge,
    /// Nothing is known yet of routes and instances, or the agent stops: 503.
    NotReady,
    /// The callback took too long: 503.
    TimedOut,
    /// Too many callbacks are being taken: 503.
    Busy,
    /// The buffer takes nothing now: 503, to be tried again after this time.
    BufferRefused {
        /// Why: `buffer_full`, `disk_full`, …
        reason: &'static str,
        /// When to try again.
        retry_after: Duration,
    },
    /// No such path: 404.
    NotFound,
    /// Another method than GET and POST: 405.
    WrongMethod,
}

impl Answer {
    /// The outcome in metrics.
    pub const fn outcome(&self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Challenge(_) => "handshake_accepted",
            Self::HandshakeRefused => "handshake_refused",
            Self::NotAuthenticated => "not_authenticated",
            Self::Unreadable => "unreadable",
            Self::WrongMediaType => "wrong_media_type",
            Self::TooLarge => "too_large",
            Self::NotReady => "not_ready",
            Self::TimedOut => "timed_out",
            Self::Busy => "busy",
            Self::BufferRefused { reason, .. } => reason,
            Self::NotFound => "not_found",
            Self::WrongMethod => "wrong_method",
        }
    }

    const fn status(&self) -> StatusCode {
        match self {
            Self::Accepted(_) | Self::Challenge(_) => StatusCode::OK,
            Self::HandshakeRefused => StatusCode::FORBIDDEN,
            Self::NotAuthenticated => StatusCode::UNAUTHORIZED,
            Self::Unreadable => StatusCode::BAD_REQUEST,
            Self::WrongMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotReady | Self::TimedOut | Self::Busy | Self::BufferRefused { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::builder().status(self.status());
        if let Self::BufferRefused { retry_after, .. } = &self {
            response = response.header(header::RETRY_AFTER, retry_after.as_secs().max(1));
        } else if self.status() == StatusCode::SERVICE_UNAVAILABLE {
            response = response.header(header::RETRY_AFTER, RETRY_AFTER_SHORT.as_secs());
        }
        if self == Self::WrongMethod {
            response = response.header(header::ALLOW, "GET, POST");
        }
        let body = match self {
            // The challenge is the caller's text: a browser must not take it for a page.
            Self::Challenge(challenge) => {
                response = response
                    .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
                    .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
                Bytes::from(challenge)
            }
            Self::Accepted(reply) if !reply.body.is_empty() => {
                response = response.header(header::CONTENT_TYPE, reply.content_type);
                Bytes::from_static(reply.body.as_bytes())
            }
            _ => Bytes::new(),
        };
        response.body(Full::new(body)).expect("constant headers and numbers are valid")
    }
}

/// What a callback is handed to.
pub trait Accept: Clone + Send + Sync + 'static {
    /// Whether callbacks can be judged at all.
    fn is_ready(&self) -> bool;

    /// Answers a handshake.
    fn handshake(&self, address: Address<'_>, query: &str) -> Answer;

    /// Refuses a callback whose body is over the limit and was not read: who called is not known.
    fn refuse_too_large(&self, address: Address<'_>) -> Answer;

    /// Takes a callback. The answer is [`Answer::Accepted`] only once everything it comes to is on disk.
    /// Cancel safe: dropped early, the callback is taken or not, but never half.
    fn accept(&self, address: Address<'_>, request: CallbackRequest) -> impl Future<Output = Answer> + Send;

    /// Waits for what goes on after its request was dropped.
    fn drain(&self) -> impl Future<Output = ()> + Send;
}

/// The callback server.
pub struct CallbackServer<A> {
    /// Where callbacks come in; bound by the caller.
    pub listener: TcpListener,
    /// What they are handed to.
    pub accept: A,
    /// How they come in.
    pub front: Front,
    /// Counts them.
    pub metrics: Metrics,
}

impl<A: Accept> CallbackServer<A> {
    /// Serves until `stop`; then takes no new connection, answers the requests that have begun, and ends.
    ///
    /// # Errors
    /// Never; the result is for the supervisor.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { listener, accept, front, metrics } = self;
        let (budget, stopping) = (BodyBudget::default(), stop.clone());
        let handler = Handler { accept, front, metrics, budget, stop: stopping };
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        while let Some((stream, peer, slot)) = next_connection(&listener, &slots, &stop).await {
            connections.spawn(receive(stream, peer, slot, handler.clone(), stop.clone()));
            while connections.try_join_next().is_some() {}
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
        handler.accept.drain().await;
        Ok(())
    }
}

/// The next connection, once there is room for it; None at the stop.
async fn next_connection(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    stop: &CancellationToken,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let next = async {
        let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => return (stream, peer, slot),
                Err(error) => {
                    warn!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        connection = next => Some(connection),
        () = stop.cancelled() => None,
    }
}

/// One connection, from its first byte, which over HTTPS is that of the handshake.
async fn receive<A: Accept>(
    stream: TcpStream,
    peer: SocketAddr,
    slot: OwnedSemaphorePermit,
    handler: Handler<A>,
    stop: CancellationToken,
) {
    // An answer is one small packet; it must not wait for an acknowledgement. Failing is only slower.
    drop(stream.set_nodelay(true));
    let origin = handler.front.origin(peer.ip());
    let Some(acceptor) = handler.front.tls.clone() else {
        return serve(stream, origin, slot, handler, stop).await;
    };
    let stream = tokio::select! {
        stream = tls::handshake(&acceptor, stream) => stream,
        // Nothing was asked yet, so nothing needs an answer.
        () = stop.cancelled() => return,
    };
    match stream {
        Ok(stream) => serve(stream, origin, slot, handler, stop).await,
        Err(error) => debug!(error = format!("{:#}", anyhow::Error::from(error)), "refused a connection"),
    }
}

async fn serve<A: Accept, S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    origin: Origin,
    slot: OwnedSemaphorePermit,
    handler: Handler<A>,
    stop: CancellationToken,
) {
    let service = service_fn(|request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.handle(origin, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection broke");
    }
    drop(slot);
}

#[derive(Clone)]
struct Handler<A> {
    accept: A,
    front: Front,
    metrics: Metrics,
    budget: BodyBudget,
    stop: CancellationToken,
}

impl<A: Accept> Handler<A> {
    async fn handle(&self, origin: Origin, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let span = debug_span!("callback", http.request.method = parts.method.as_str());
        let (provider, answer) = match address(&path) {
            None => ("unknown", Answer::NotFound),
            Some(address) => {
                let base_url = self.front.base_url(origin, &parts.headers);
                let answering = self.answer(address, base_url, parts, body).instrument(span.clone());
                (provider_label(address.provider), answering.await)
            }
        };
        let (outcome, status) = (answer.outcome(), answer.status().as_u16());
        self.metrics.callback(provider, outcome);
        debug!(parent: &span, provider, outcome, http.response.status_code = status, "answered a callback");
        answer.into_response()
    }

    async fn answer(
        &self,
        address: Address<'_>,
        base_url: Option<Arc<str>>,
        parts: http::request::Parts,
        body: Incoming,
    ) -> Answer {
        match parts.method {
            Method::GET if !self.is_ready() => Answer::NotReady,
            Method::GET if !code(address.provider).is_some_and(Provider::calls_by_get) => {
                self.accept.handshake(address, parts.uri.query().unwrap_or_default())
            }
            Method::GET | Method::POST => self.callback(address, base_url, parts, body).await,
            _ => Answer::WrongMethod,
        }
    }

    async fn callback(
        &self,
        address: Address<'_>,
        base_url: Option<Arc<str>>,
        parts: http::request::Parts,
        body: Incoming,
    ) -> Answer {
        match timeout(REQUEST_TIMEOUT, self.take(address, base_url, parts, body)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Answer::TimedOut,
        }
    }

    /// Cancel safe: everything before [`Accept::accept`] only reads.
    async fn take(
        &self,
        address: Address<'_>,
        base_url: Option<Arc<str>>,
        parts: http::request::Parts,
        body: Incoming,
    ) -> Answer {
        if !self.is_ready() {
            body::discard(body).await;
            return Answer::NotReady;
        }
        let (body, _room) = match self.budget.read(&parts.headers, body).await {
            Ok(read) => read,
            Err(ReadBodyError::TooLarge) => return self.accept.refuse_too_large(address),
            Err(ReadBodyError::Busy) => return Answer::Busy,
            // Nobody is there to read the answer.
            Err(ReadBodyError::Broken) => return Answer::TimedOut,
        };
        let request = CallbackRequest {
            method: parts.method,
            headers: parts.headers,
            uri: parts.uri,
            body,
            public_base_url: base_url,
        };
        self.accept.accept(address, request).await
    }

    fn is_ready(&self) -> bool {
        self.accept.is_ready() && !self.stop.is_cancelled()
    }
}

/// Provider and token of `/callbacks/{provider}/{token}`, or of `/callbacks/{provider}/{token}/{segment}` of
/// providers that append one. Tokens need no percent-escapes, so none are read.
fn address(path: &str) -> Option<Address<'_>> {
    let (provider, rest) = path.strip_prefix("/callbacks/")?.split_once('/')?;
    let token = match rest.split_once('/') {
        None => rest,
        Some((token, appended)) => {
            let is_segment = !appended.is_empty() && !appended.contains('/');
            (is_segment && code(provider).is_some_and(Provider::extends_path)).then_some(token)?
        }
    };
    (!provider.is_empty() && !token.is_empty()).then_some(Address { provider, token })
}

/// The code of the provider of a path segment.
fn code(segment: &str) -> Option<&'static dyn Provider> {
    ProviderName::from_name(segment).map(provider)
}

fn provider_label(segment: &str) -> &'static str {
    ProviderName::from_name(segment).map_or("unknown", ProviderName::name)
}
