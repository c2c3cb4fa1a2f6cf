//! Whom the client trusts, and what it says of those it does not trust.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::*;

/// An authority, in PEM, and a server whose certificate, for `localhost`, comes from it.
struct Secured {
    ca: String,
    port: u16,
    fake: Arc<Fake>,
    _serving: JoinSet<()>,
}

struct Encrypted<S>(S);

impl<S> Connected for Encrypted<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<S: AsyncRead + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::pin::Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

async fn secured(authority: &str) -> Secured {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, authority);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &*ca).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
        tokio_rustls::rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let fake = Arc::new(Fake::default());
    let (accepted, incoming) = tokio::sync::mpsc::channel(1);
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Those that are refused, or refuse, are the test.
            if let Ok(stream) = acceptor.accept(stream).await {
                accepted.send(Ok::<_, std::io::Error>(Encrypted(stream))).await.unwrap();
            }
        }
    });
    let service = InboundLogServiceServer::from_arc(Arc::clone(&fake));
    serving.spawn(async move {
        let incoming = ReceiverStream::new(incoming);
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    });
    Secured { ca: ca.pem(), port, fake, _serving: serving }
}

fn options(scheme: &str, host: &str, port: u16) -> ClientOptions {
    ClientOptions::new(format!("{scheme}://{host}:{port}"), "secret-key")
}

/// A server is called over TLS by whoever trusts its authority, with several authorities in one text too.
#[tokio::test]
async fn the_given_authority_is_trusted() {
    let (server, other) = (secured("one").await, secured("other").await);
    let both = format!("{}{}", other.ca, server.ca);
    for ca in [&server.ca, &both] {
        let client =
            Client::connect(options("https", "localhost", server.port).with_ca_certificate(ca)).await;
        let request = v1::ListInboundLogsRequest::default();
        client.unwrap().inbound_logs().list_inbound_logs(request).await.unwrap();
    }
    assert_eq!(server.fake.headers.lock().unwrap().len(), 2);
}

/// Another authority, another name and none at all are refused before the key is sent, and the error says which
/// it is; so does a call of a client that connects only then.
#[tokio::test]
async fn other_servers_are_refused() {
    let (server, other, namesake) = (secured("one").await, secured("other").await, secured("one").await);
    let named = options("https", "localhost", server.port);
    for (options, words) in [
        (named.clone().with_ca_certificate(&other.ca), "an authority that is not trusted here"),
        (named.clone().with_ca_certificate(&namesake.ca), "an authority that is not trusted here"),
        (options("https", "127.0.0.1", server.port).with_ca_certificate(&server.ca), "localhost"),
    ] {
        let lazy = Client::connect_lazy(&options).unwrap();
        let error = Client::connect(options).await.err().unwrap();
        assert!(matches!(error, Error::Untrusted { .. }) && !error.is_transient(), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        let request = v1::ListInboundLogsRequest::default();
        let status = lazy.inbound_logs().list_inbound_logs(request).await.unwrap_err();
        assert!(status.code() == Code::Unavailable && status.message().contains(words), "{status:?}");
    }
    assert!(server.fake.headers.lock().unwrap().is_empty());
}

/// A client with TLS at a server without, and the reverse, hear what to change; so does who gives an authority
/// that is none, or one for plain text.
#[tokio::test]
async fn mix_ups_are_named() {
    let server = secured("one").await;
    let error = Client::connect(options("http", "localhost", server.port)).await.err().unwrap();
    assert!(matches!(error, Error::WantsTls { .. }) && error.to_string().contains("https://"), "{error:?}");
    let (plain, _serving) = serve(Arc::default()).await;
    let address: http::Uri = plain.endpoint.parse().unwrap();
    let at_plain = options("https", "127.0.0.1", address.port_u16().unwrap()).with_ca_certificate(&server.ca);
    let error = Client::connect(at_plain).await.err().unwrap();
    assert!(matches!(error, Error::NoTls { .. }) && error.to_string().contains("http://"), "{error:?}");
    let error = Client::connect(plain.with_ca_certificate(&server.ca)).await.err().unwrap();
    assert!(matches!(error, Error::CaWithoutTls { .. }), "{error:?}");
    for text in ["", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "not PEM"] {
        let options = options("https", "localhost", server.port).with_ca_certificate(text);
        assert!(matches!(Client::connect_lazy(&options), Err(Error::CaCertificate)), "{text}");
    }
}
