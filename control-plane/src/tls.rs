//! Connections of the gRPC port: plain on loopback, TLS elsewhere, each with what is known of who calls.

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::{Stream, stream};
use gateway_runtime::{
    clock,
    connections::{self, BoundedListener, Patience},
    supervise::{OnEnd, Supervisor},
    tls::{self, CertificateFiles, CurrentCertificate, FileCertificate, HandshakeError},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::{Connected, TcpConnectInfo};
use tracing::{debug, warn};

use crate::{
    ca::{self, Authority, CertifiedAgent},
    metrics::Metrics,
};

#[cfg(test)]
mod tests;

/// Open connections, those in their handshake included. Beyond it new ones wait in the listen queue.
pub const CONNECTIONS_MAX: usize = 4_096;
/// A connection opens with the preface of HTTP/2, 24 bytes (RFC 9113, 3.4), 10 s after it was accepted or its
/// handshake has ended at most. From then on HTTP/2 itself probes those that are silent.
const PATIENCE: Patience =
    Patience { opening_bytes: 24, opening: Duration::from_secs(10), idle: None, age: None };
/// How often the port's own certificate is made anew.
const OWN_CERTIFICATE_INTERVAL: Duration = Duration::from_secs(24 * 3_600);

/// How the gRPC port speaks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Tls {
    /// Plain text.
    #[default]
    Off,
    /// TLS with a certificate from files.
    Files {
        /// PEM file of the certificate and its chain.
        certificate: PathBuf,
        /// PEM file of its key.
        key: PathBuf,
    },
    /// TLS with a certificate of the control plane's own authority.
    OwnCa {
        /// Names and addresses by which the port is called.
        names: Vec<String>,
    },
}

impl Tls {
    /// Whether join tokens say whom to trust.
    pub const fn is_own_ca(&self) -> bool {
        matches!(self, Self::OwnCa { .. })
    }

    /// Prepares the certificate and keeps it fresh. None without TLS.
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub fn acceptor(
        &self,
        authority: &Arc<Authority>,
        supervisor: &Supervisor,
        metrics: &Metrics,
    ) -> anyhow::Result<Option<TlsAcceptor>> {
        let current = match self {
            Self::Off => return Ok(None),
            Self::Files { certificate, key } => {
                let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
                let file = FileCertificate::load(files).context("use --tls-cert and --tls-key")?;
                let current = file.current();
                supervisor.spawn("tls-files", OnEnd::Shutdown, |stop| file.watch(stop));
                current
            }
            Self::OwnCa { names } => own_certificate(authority, names.clone(), supervisor)?,
        };
        metrics.shows_certificate(current.clone());
        let verifier = AgentVerifier::new(authority).context("trust certificates of agents")?;
        Ok(Some(tls::acceptor(current, Some(Arc::new(verifier)), &[tls::HTTP_2])))
    }
}

fn own_certificate(
    authority: &Arc<Authority>,
    names: Vec<String>,
    supervisor: &Supervisor,
) -> anyhow::Result<CurrentCertificate> {
    let made =
        authority.server_certificate(&names, clock::now()).context("make the certificate of --tls-name")?;
    let current = CurrentCertificate::new(made);
    let (shown, authority) = (current.clone(), Arc::clone(authority));
    supervisor.spawn("tls-certificate", OnEnd::Shutdown, |stop| async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(OWN_CERTIFICATE_INTERVAL) => {}
                () = stop.cancelled() => return Ok(()),
            }
            shown.replace(authority.server_certificate(&names, clock::now())?);
        }
    });
    Ok(current)
}

/// Takes certificates of agents, expired ones too: an agent that could not renew its certificate in time comes
/// back with the expired one, and is told so by the method it calls instead of by a broken handshake. Whoever
/// has no certificate gets in as well; methods decide what that is good for.
struct AgentVerifier(Arc<dyn ClientCertVerifier>);

impl AgentVerifier {
    fn new(authority: &Authority) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for trusted in authority.trusted() {
            roots.add(trusted.clone())?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
        Ok(Self(verifier.allow_unauthenticated().build()?))
    }
}

impl fmt::Debug for AgentVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AgentVerifier")
    }
}

impl ClientCertVerifier for AgentVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.0.verify_client_cert(certificate, intermediates, now);
        let expired = matches!(
            verified,
            Err(Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        );
        let agent = if expired { ca::certified_agent(certificate) } else { None };
        let Some(agent) = agent else { return verified };
        let then = Duration::from_secs(u64::try_from(agent.expire_seconds).unwrap_or(0));
        self.0.verify_client_cert(certificate, intermediates, UnixTime::since_unix_epoch(then))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Who is at the other end of a connection. In the extensions of every request.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Whether the connection is encrypted.
    pub is_tls: bool,
    /// The agent that its certificate names, if it showed one; perhaps it has expired.
    pub certified: Option<Arc<CertifiedAgent>>,
    /// When the connection is cut, if it is still open then.
    pub end: Option<Instant>,
    local_address: Option<SocketAddr>,
}

impl Peer {
    /// The same as tonic says it of plain connections.
    pub const fn connect_info(&self) -> TcpConnectInfo {
        TcpConnectInfo { local_addr: self.local_address, remote_addr: self.address }
    }
}

/// An accepted connection.
pub enum Connection {
    /// Without TLS.
    Plain(connections::Connection<TcpStream>),
    /// With TLS, after the handshake.
    Tls(Box<connections::Connection<TlsStream<TcpStream>>>),
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        let (stream, session, end) = match self {
            Self::Plain(stream) => (stream.get_ref(), None, stream.end()),
            Self::Tls(connection) => {
                let (stream, session) = connection.get_ref().get_ref();
                (stream, Some(session), connection.end())
            }
        };
        let shown = session.and_then(|session| session.peer_certificates()?.first());
        Peer {
            address: stream.peer_addr().ok(),
            local_address: stream.local_addr().ok(),
            is_tls: session.is_some(),
            certified: shown.and_then(|certificate| ca::certified_agent(certificate)).map(Arc::new),
            end,
        }
    }
}

/// The connections that come in on `listener`. Handshakes run beside each other, so that one that never ends
/// holds nobody up. At most [`CONNECTIONS_MAX`] are open at a time, and one that does not open in time, or becomes
/// older than `age_max`, ends with an error of its reads.
pub fn incoming(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    age_max: Duration,
) -> impl Stream<Item = Result<Connection, Infallible>> {
    incoming_of(BoundedListener::new(listener, CONNECTIONS_MAX), acceptor, Some(age_max))
}

fn incoming_of(
    listener: BoundedListener,
    acceptor: Option<TlsAcceptor>,
    age: Option<Duration>,
) -> impl Stream<Item = Result<Connection, Infallible>> {
    let patience = Patience { age, ..PATIENCE };
    let incoming = Incoming { listener, acceptor, patience, handshakes: JoinSet::new() };
    stream::unfold(incoming, |mut incoming| async move {
        let connection = incoming.next().await;
        Some((Ok(connection), incoming))
    })
}

struct Incoming {
    listener: BoundedListener,
    acceptor: Option<TlsAcceptor>,
    patience: Patience,
    handshakes: JoinSet<Result<connections::Connection<TlsStream<TcpStream>>, HandshakeError>>,
}

impl Incoming {
    async fn next(&mut self) -> Connection {
        let patience = self.patience;
        loop {
            tokio::select! {
                (stream, _, place) = self.listener.accept() => {
                    // Small answers must not wait for an acknowledgement. Failing is only slower.
                    drop(stream.set_nodelay(true));
                    let Some(acceptor) = self.acceptor.clone() else {
                        return Connection::Plain(connections::Connection::new(stream, patience, place));
                    };
                    self.handshakes.spawn(async move {
                        let stream = tls::handshake(&acceptor, stream).await?;
                        Ok(connections::Connection::new(stream, patience, place))
                    });
                }
                Some(finished) = self.handshakes.join_next() => match finished {
                    Ok(Ok(stream)) => return Connection::Tls(Box::new(stream)),
                    Ok(Err(error)) => debug!(error = format!("{:#}", anyhow::Error::from(error)), "refused a connection"),
                    Err(error) => warn!(%error, "failed to finish a handshake"),
                },
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
