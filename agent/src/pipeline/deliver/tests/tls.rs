//! https, and certificates that are wrong in a way that can be told.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, rustls};

use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn root(&self) -> reqwest::Certificate {
        reqwest::Certificate::from_der(self.0.der()).unwrap()
    }

    fn acceptor(&self, name: &str, is_expired: bool) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        if is_expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A destination that answers 200 over TLS. Returns its port.
async fn serve(acceptor: TlsAcceptor, tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 16 * 1024];
            if stream.read(&mut request).await.is_ok() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
        }
    });
    port
}

async fn attempt(acceptor: TlsAcceptor, roots: &[reqwest::Certificate]) -> v1::DeliveryAttempt {
    let mut tasks = JoinSet::new();
    let port = serve(acceptor, &mut tasks).await;
    let destination = subscription("sub_a", &format!("https://localhost:{port}/"));
    let world = World::with([destination], &["127.0.0.0/8", "::1/128"], retry::next_attempt, roots).await;
    world.append(1, &["sub_a"]).await;
    let is_made = |reported: &Reported| !reported.attempts.is_empty();
    let attempt = world.reported_when("the attempt is made", is_made).await.attempts.remove(0);
    world.stop().await;
    attempt
}

/// A good certificate is accepted; a bad one is refused, and the report says in which way it is bad.
#[tokio::test]
async fn certificates_are_checked_and_explained() {
    let authority = Authority::new();
    let roots = [authority.root()];
    let good = attempt(authority.acceptor("localhost", false), &roots).await;
    assert_eq!((good.status_code, good.error.as_str()), (200, ""));
    for (acceptor, roots, expected) in [
        (authority.acceptor("localhost", true), &roots[..], "the destination's certificate has expired"),
        (
            authority.acceptor("example.com", false),
            &roots[..],
            "the destination's certificate is for another name",
        ),
        (
            authority.acceptor("localhost", false),
            &[],
            "the destination's certificate comes from an unknown issuer, or intermediate certificates are missing",
        ),
    ] {
        let attempt = attempt(acceptor, roots).await;
        assert_eq!((attempt.failure(), attempt.error.as_str()), (v1::AttemptFailure::Tls, expected));
    }
}
