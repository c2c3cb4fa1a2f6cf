//! https, client certificates, and everything that can be wrong with them, told precisely.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::TlsAcceptor;
use v1::AttemptFailure as Kind;

use super::{
    bench::{LOOPBACK, attempter, failure, impatient, is_quick, owed, pem, settings},
    receiver::{Raw, hold},
    *,
};
use crate::pipeline::deliver::attempt::{Made, Verdict};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// An issuer of certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = params(&[], name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        pem("CERTIFICATE", self.0.der())
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn sign(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Identity { certificate: certificate.der().clone(), key }
    }
}

/// A certificate and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

impl Identity {
    fn self_signed(params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { certificate: params.self_signed(&key).unwrap().der().clone(), key }
    }

    fn to_proto(&self) -> v1::ClientCertificate {
        v1::ClientCertificate {
            certificate_chain_pem: pem("CERTIFICATE", &self.certificate),
            private_key_pem: pem("PRIVATE KEY", &self.key.serialize_der()),
        }
    }
}

fn params(names: &[&str], common_name: &str) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn localhost() -> CertificateParams {
    params(&["localhost"], "a destination")
}

/// What a destination does in the handshake.
struct Server<'a> {
    identity: &'a Identity,
    demands: Option<&'a Authority>,
    versions: &'a [&'static rustls::SupportedProtocolVersion],
    alpn: &'a [&'a [u8]],
}

impl<'a> Server<'a> {
    const fn new(identity: &'a Identity) -> Self {
        Self { identity, demands: None, versions: rustls::ALL_VERSIONS, alpn: &[] }
    }

    fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.versions)
            .unwrap();
        let builder = match self.demands {
            Some(authority) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(authority.roots(), provider).build().unwrap(),
            ),
            None => builder.with_no_client_auth(),
        };
        let key = PrivateKeyDer::try_from(self.identity.key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(vec![self.identity.certificate.clone()], key).unwrap();
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// A destination that answers 200 over TLS.
    async fn start(&self) -> Raw {
        let acceptor = self.acceptor();
        Raw::start(move |stream, _| serve(acceptor.clone(), stream)).await
    }
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream) {
    use tokio::io::AsyncReadExt as _;
    // The client may refuse us: that is what some tests are about.
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut request = [0; 16 * 1024];
    while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}

fn at(raw: &Raw) -> v1::WebhookSubscription {
    impatient(&format!("https://localhost:{}/", raw.address.port()))
}

async fn attempt(subscription: v1::WebhookSubscription) -> Made {
    attempter(LOOPBACK).attempt(&owed(), &settings(subscription)).await
}

/// The first attempt at a server whose issuer the subscription trusts.
async fn attempt_trusting(authority: &Authority, server: &Server<'_>) -> Made {
    let raw = server.start().await;
    attempt(v1::WebhookSubscription { extra_ca_pem: authority.pem(), ..at(&raw) }).await
}

/// A certificate of an issuer that the subscription trusts is accepted, with both versions of TLS, and the
/// connection serves many attempts. Another subscription does not trust it.
#[tokio::test]
async fn extra_issuers_are_trusted() {
    let authority = Authority::new("an issuer");
    let identity = authority.sign(&localhost());
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let raw = Server { versions, ..Server::new(&identity) }.start().await;
        let trusting = v1::WebhookSubscription { extra_ca_pem: authority.pem(), ..at(&raw) };
        let (attempter, config) = (attempter(LOOPBACK), settings(trusting));
        for _ in 0..3 {
            let made = attempter.attempt(&owed(), &config).await;
            assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
        }
        assert_eq!(raw.accepted(), 1);
        let made = attempter.attempt(&owed(), &settings(at(&raw))).await;
        let unknown = "the certificate of the destination comes from an unknown issuer, or intermediate \
                       certificates are missing";
        assert_eq!(failure(&made), (Kind::Tls, unknown));
        assert!(is_quick(&made));
    }
}

/// A bad certificate is refused, and the report says in which way it is bad: since when, until when, or for
/// which names it is. One that is its own issuer is taken where the subscription names it.
#[tokio::test]
async fn bad_certificates_are_explained() {
    let authority = Authority::new("an issuer");
    let (mut expired, mut early) = (localhost(), localhost());
    (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 3, 4));
    (early.not_before, early.not_after) = (date_time_ymd(2090, 5, 6), date_time_ymd(2091, 1, 1));
    let names = ["example.com", "*.example.com", "10.1.2.3"];
    for (params, expected) in [
        (expired, "the certificate of the destination expired on 2021-03-04"),
        (early, "the certificate of the destination is not valid until 2090-05-06"),
        (
            params(&names, "another"),
            "the certificate of the destination is for another name: `example.com`, `*.example.com`",
        ),
    ] {
        let identity = authority.sign(&params);
        let made = attempt_trusting(&authority, &Server::new(&identity)).await;
        assert_eq!(failure(&made), (Kind::Tls, expected));
    }
    let mut issuer_like = localhost();
    issuer_like.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    for params in [localhost(), issuer_like] {
        let identity = Identity::self_signed(&params);
        let made = attempt_trusting(&authority, &Server::new(&identity)).await;
        let expected =
            "the certificate of the destination is self-signed: give it, or its issuer, as extra CA";
        assert_eq!(failure(&made), (Kind::Tls, expected));
        let raw = Server::new(&identity).start().await;
        let extra_ca_pem = pem("CERTIFICATE", &identity.certificate);
        let naming = v1::WebhookSubscription { extra_ca_pem, ..at(&raw) };
        let made = attempt(naming.clone()).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
        let by_address = format!("https://127.0.0.1:{}/", raw.address.port());
        let made = attempt(v1::WebhookSubscription { destination_url: by_address, ..naming }).await;
        let for_name = "the certificate of the destination is for another name: `localhost`";
        assert_eq!(failure(&made), (Kind::Tls, for_name));
    }
}

/// A destination that speaks only HTTP/2, no TLS at all, or a TLS that we do not, is told apart.
#[tokio::test]
async fn other_protocols_are_named() {
    let authority = Authority::new("an issuer");
    let identity = authority.sign(&localhost());
    let server = Server { alpn: &[b"h2"], ..Server::new(&identity) };
    let http2 = "the destination speaks HTTP/2 only: it refused HTTP/1.1 in the TLS handshake";
    assert_eq!(failure(&attempt_trusting(&authority, &server).await), (Kind::Tls, http2));

    let plain_text = "the destination answered something that is not TLS: is it plain http on this port?";
    let eager = Raw::start(|mut stream, _| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap_or_default();
        hold(stream).await;
    })
    .await;
    let made = attempt(at(&eager)).await;
    assert_eq!(failure(&made), (Kind::Tls, plain_text));

    let no_version = "the destination offers no TLS version or cipher suite in common: TLS 1.3, or TLS 1.2 \
                      with ECDHE and AEAD, is needed";
    for (alert, expected) in [
        (70, no_version),
        (71, no_version),
        (
            40,
            "the destination ended the TLS handshake with the alert HandshakeFailure: no TLS version or \
             cipher suite in common, or it demands a client certificate",
        ),
        (80, "the destination ended the TLS handshake with the alert InternalError"),
        (112, "the destination does not serve its name over TLS (alert UnrecognisedName)"),
    ] {
        let raw = Raw::start(move |mut stream, _| async move {
            stream.write_all(&[0x15, 3, 3, 0, 2, 2, alert]).await.unwrap_or_default();
            hold(stream).await;
        })
        .await;
        assert_eq!(failure(&attempt(at(&raw)).await), (Kind::Tls, expected));
    }
    let raw = Raw::start(|stream, _| async move {
        let mut hello = [0; 64];
        stream.readable().await.unwrap();
        stream.try_read(&mut hello).unwrap_or_default();
        let mut stream = stream;
        stream.shutdown().await.unwrap_or_default();
        hold(stream).await;
    })
    .await;
    let closed = "the destination closed the connection in the TLS handshake";
    assert_eq!(failure(&attempt(at(&raw)).await), (Kind::Tls, closed));
}

/// A destination that demands a client certificate gets the subscription's; without one, or with one that it
/// does not take, the report says so.
#[tokio::test]
async fn client_certificates_are_shown() {
    let (authority, clients) = (Authority::new("an issuer"), Authority::new("an issuer of clients"));
    let identity = authority.sign(&localhost());
    let ours = clients.sign(&params(&[], "the gateway"));
    let stranger = Authority::new("another issuer").sign(&params(&[], "the gateway"));
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let raw = Server { demands: Some(&clients), versions, ..Server::new(&identity) }.start().await;
        let with = |certificate: Option<v1::ClientCertificate>| v1::WebhookSubscription {
            extra_ca_pem: authority.pem(),
            client_certificate: certificate,
            ..at(&raw)
        };
        let made = attempt(with(Some(ours.to_proto()))).await;
        assert_eq!(made.verdict, Verdict::Delivered, "{}", made.attempt.error);
        let made = attempt(with(None)).await;
        assert_eq!(made.attempt.failure(), Kind::Tls);
        assert!(made.attempt.error.starts_with("the destination demands a client certificate"), "{made:?}");
        let made = attempt(with(Some(stranger.to_proto()))).await;
        let refused = "the destination refused the client certificate (alert UnknownCA)";
        assert_eq!(failure(&made), (Kind::Tls, refused));
    }
}

/// Settings that cannot be used are the subscription's fault, and nothing is sent without them.
#[tokio::test]
async fn unusable_settings_are_named() {
    let authority = Authority::new("an issuer");
    let identity = authority.sign(&localhost());
    let other_key = KeyPair::generate().unwrap();
    let raw = Server::new(&identity).start().await;
    let certificate = |change: &dyn Fn(&mut v1::ClientCertificate)| {
        let mut certificate = identity.to_proto();
        change(&mut certificate);
        v1::WebhookSubscription { client_certificate: Some(certificate), ..at(&raw) }
    };
    let unusable = "the client certificate of the subscription cannot be used";
    for (subscription, expected) in [
        (
            v1::WebhookSubscription { extra_ca_pem: "nonsense".to_owned(), ..at(&raw) },
            "the extra CA of the subscription cannot be used",
        ),
        (certificate(&|certificate| certificate.private_key_pem.clear()), unusable),
        (certificate(&|certificate| "x".clone_into(&mut certificate.certificate_chain_pem)), unusable),
        (
            certificate(&|certificate| {
                certificate.private_key_pem = pem("PRIVATE KEY", &other_key.serialize_der());
            }),
            "the client certificate of the subscription and its key do not fit together",
        ),
    ] {
        assert_eq!(failure(&attempt(subscription).await), (Kind::Authentication, expected));
    }
    assert_eq!(raw.accepted(), 0);
}
