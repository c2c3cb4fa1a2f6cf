//! The connection to the control plane: made when first used, made anew when it breaks, over TLS when the URL
//! says so.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use gateway_runtime::tls::CurrentCertificate;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::rt;
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    Code, Status,
    body::Body,
    codegen::Service,
    transport::{Channel, Endpoint},
};

use super::{
    certificate::AgentCertificate,
    is_revocation, is_twin,
    trust::{self, Pins, TrustError},
};
use crate::snapshot::SnapshotHandle;

/// Longest time for name, connection and TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// So that a dead connection is seen within 30 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The way to the control plane. Cheap to clone.
#[derive(Clone)]
pub struct Link {
    channel: Channel,
    url: Arc<str>,
    shared: Arc<Shared>,
}

struct Shared {
    is_tls: bool,
    certificate: CurrentCertificate,
    /// The authorities that may be changed; None where others decide whom to trust.
    pins: Option<Pins>,
    /// What is wrong with the server's certificate, as the last connection showed.
    untrusted: Mutex<Option<String>>,
    /// Ends the connections that were made with an earlier certificate.
    connections: Mutex<CancellationToken>,
    refused: AtomicBool,
    refusal: Notify,
    /// Who is told what answers say of the agent itself.
    agent: OnceLock<SnapshotHandle>,
}

impl Shared {
    /// Takes what a status says of the agent itself. `at_once` when the call was not begun.
    fn note(&self, headers: &HeaderMap, at_once: bool) {
        // Most calls end well, and cost nothing here.
        let has_status = headers.get(Status::GRPC_STATUS).is_some_and(|status| status != "0");
        let Some(status) = has_status.then(|| Status::from_header_map(headers)).flatten() else { return };
        let agent = self.agent.get();
        if is_revocation(&status) {
            // No certificate would help.
            if let Some(agent) = agent {
                agent.revoke();
            }
        } else if is_twin(&status) {
            if let Some(agent) = agent {
                agent.note_twin();
            }
        } else if at_once && status.code() == Code::Unauthenticated {
            self.refused.store(true, Ordering::Release);
            self.refusal.notify_one();
        }
    }
}

impl Link {
    /// A link that connects when first used and reconnects by itself. `ca` is the file of an authority,
    /// `pins` are the authority that the join token named and those that the control plane did.
    ///
    /// # Errors
    /// When `url` is not a URL, or TLS cannot be set up.
    pub fn new(
        url: &str,
        ca: Option<&Path>,
        pins: impl IntoIterator<Item = super::Pin>,
    ) -> Result<Self, TrustError> {
        let uri: Uri = Endpoint::from_shared(url.to_owned()).map_err(TrustError::Url)?.uri().clone();
        let pins: Vec<_> = pins.into_iter().collect();
        let pins = Some(pins).filter(|pins| ca.is_none() && !pins.is_empty()).map(Pins::new);
        let shared = Arc::new(Shared {
            pins: pins.clone(),
            is_tls: uri.scheme_str() == Some("https"),
            certificate: CurrentCertificate::default(),
            untrusted: Mutex::default(),
            connections: Mutex::default(),
            refused: AtomicBool::new(false),
            refusal: Notify::new(),
            agent: OnceLock::new(),
        });
        let channel = if shared.is_tls {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let name = ServerName::try_from(host.clone()).map_err(|_| TrustError::Host(host))?;
            let config = trust::client_config(ca, pins, shared.certificate.clone())?;
            let tls = TlsConnector::from(Arc::new(config));
            let connector = Connector { http: HttpConnector::new(), tls, name, shared: Arc::clone(&shared) };
            // TLS is the connector's, so the address is spelled as one without; the port of https is not http's.
            let port = uri.port_u16().unwrap_or(443);
            let address = format!("http://{}:{port}", uri.host().unwrap_or_default());
            endpoint(&address)?.origin(uri).connect_with_connector_lazy(connector)
        } else {
            endpoint(url)?.connect_lazy()
        };
        Ok(Self { channel, url: url.into(), shared })
    }

    /// From now on `agent` is told at once what the control plane says of the agent itself, whichever call it answers:
    /// that it was revoked, or has a twin. Only the first one is told.
    pub fn inform(&self, agent: SnapshotHandle) {
        self.shared.agent.get_or_init(|| agent);
    }

    /// What clients call through.
    pub fn calls(&self) -> Calls {
        Calls { channel: self.channel.clone(), shared: Arc::clone(&self.shared) }
    }

    /// Where the control plane is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether connections are encrypted.
    pub fn is_tls(&self) -> bool {
        self.shared.is_tls
    }

    /// Shows this certificate in connections to come.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn show(&self, certificate: &AgentCertificate) -> Result<(), TrustError> {
        let certified = certificate.certified_key().map_err(TrustError::Certificate)?;
        self.shared.certificate.replace(certified);
        Ok(())
    }

    /// The certificate that connections show.
    pub fn certificate(&self) -> CurrentCertificate {
        self.shared.certificate.clone()
    }

    /// What is wrong with the server's certificate, if the last connection failed for that.
    pub fn untrusted(&self) -> Option<String> {
        self.shared.untrusted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The authorities that the control plane may change; None where an operator or the system decides.
    pub(super) fn pins(&self) -> Option<&Pins> {
        self.shared.pins.as_ref()
    }

    /// There is another certificate: whoever waits to call again does so now.
    pub(super) fn note_certificate(&self) {
        if let Some(agent) = self.shared.agent.get() {
            agent.note_certificate();
        }
    }

    /// Ends the connection there is, so that the next call makes one with the certificate of now.
    pub(super) fn reconnect(&self) {
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *connections).cancel();
    }

    /// Waits until the control plane has refused a call for who called it. Cancel safe.
    pub(super) async fn refused(&self) {
        while !self.shared.refused.swap(false, Ordering::AcqRel) {
            self.shared.refusal.notified().await;
        }
    }

    /// Forgets refusals before now. True when there were any that [`Self::refused`] has not told.
    pub(super) fn forget_refusals(&self) -> bool {
        self.shared.refused.swap(false, Ordering::AcqRel)
    }

    #[cfg(test)]
    pub(crate) fn refuse(&self, status: &Status) {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).unwrap();
        self.shared.note(&headers, true);
    }
}

fn endpoint(url: &str) -> Result<Endpoint, TrustError> {
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(TrustError::Url)?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .initial_stream_window_size(Some(4 * 1024 * 1024))
        .initial_connection_window_size(Some(8 * 1024 * 1024)))
}

/// A channel that notes what the control plane says of who calls it: in one place, for the answers of all calls. Cheap to
/// clone.
#[derive(Clone)]
pub struct Calls {
    channel: Channel,
    shared: Arc<Shared>,
}

impl Service<Request<Body>> for Calls {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, tonic::transport::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), tonic::transport::Error>> {
        Service::poll_ready(&mut self.channel, context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answering = Service::call(&mut self.channel, request);
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let response = answering.await?;
            // A call that is refused at once has its status in the headers, one that was begun at the end.
            shared.note(response.headers(), true);
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        shared.note(trailers, false);
                    }
                    frame
                }))
            }))
        })
    }
}

#[derive(Clone)]
struct Connector {
    http: HttpConnector,
    tls: TlsConnector,
    name: ServerName<'static>,
    shared: Arc<Shared>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Cuttable<TlsStream<TcpStream>>>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::poll_ready(&mut self.http, context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = Service::call(&mut self.http, uri);
        let (tls, name, shared) = (self.tls.clone(), self.name.clone(), Arc::clone(&self.shared));
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            // Failing is only slower.
            drop(stream.set_nodelay(true));
            let token = shared.connections.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let made = tls.connect(name, stream).await;
            let mistrust = made.as_ref().err().and_then(trust::mistrust);
            *shared.untrusted.lock().unwrap_or_else(PoisonError::into_inner) = mistrust;
            Ok(TokioIo::new(Cuttable { stream: made?, cut: Box::pin(token.cancelled_owned()) }))
        })
    }
}

/// A connection that ends when it is told to.
struct Cuttable<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Cuttable<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.cut.as_mut().poll(context).is_ready() {
            // Nothing read is the end.
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(ready!(Pin::new(&mut this.stream).poll_read(context, buffer)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cuttable<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

// What tonic asks of a connection, said once where it is made.
const _: () = {
    const fn is_connection<T: rt::Read + rt::Write + Send + Unpin>() {}
    is_connection::<TokioIo<Cuttable<TlsStream<TcpStream>>>>();
};
