use std::net::Ipv4Addr;

use futures_util::StreamExt as _;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{
    ClientConfig,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::*;

const DEADLINE: Duration = Duration::from_secs(9);
/// Older than anything here becomes.
const AGE: Duration = Duration::from_secs(24 * 3_600);

struct Port {
    authority: Arc<Authority>,
    address: SocketAddr,
    connections: Pin<Box<dyn Stream<Item = Result<Connection, Infallible>> + Send>>,
    stop: CancellationToken,
    _directory: tempfile::TempDir,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn port() -> Port {
    port_of(tempfile::tempdir().unwrap()).await
}

async fn port_of(directory: tempfile::TempDir) -> Port {
    let authority = Arc::new(Authority::open(directory.path(), clock::now()).unwrap());
    let stop = CancellationToken::new();
    let supervisor = Supervisor::new(stop.clone());
    let tls = Tls::OwnCa { names: vec!["localhost".into()] };
    let acceptor = tls.acceptor(&authority, &supervisor, &Metrics::new()).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    Port {
        authority,
        address,
        connections: incoming(listener, acceptor, AGE).boxed(),
        stop,
        _directory: directory,
    }
}

/// A client certificate of `authority` that was made at `made` for an hour.
fn certificate(
    authority: &Authority,
    made: jiff::Timestamp,
) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    let life = Duration::from_secs(3_600);
    let granted = authority.agent_certificate(request.der(), "agt_1", made, life).unwrap().ok().unwrap();
    let chain = granted.chain.into_iter().map(CertificateDer::from).collect();
    (chain, PrivateKeyDer::Pkcs8(key.serialize_der().into()))
}

impl Port {
    fn connector(
        &self,
        shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shown {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![tls::HTTP_2.to_vec()];
        TlsConnector::from(Arc::new(config))
    }

    /// What the port knows of a caller who shows this certificate; None when the handshake fails.
    async fn peer(
        &mut self,
        shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> Option<Peer> {
        let (connector, address) = (self.connector(shown), self.address);
        let calling = async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream =
                connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.ok()?;
            // A server refuses a certificate of TLS 1.3 after the client thinks it is done.
            stream.write_all(b"x").await.ok()?;
            let mut byte = [0];
            (stream.read(&mut byte).await.ok()? == 1).then_some(())
        };
        let accepting = async {
            let mut connection = self.connections.next().await.unwrap().unwrap();
            let mut byte = [0];
            connection.read_exact(&mut byte).await.unwrap();
            connection.write_all(&byte).await.unwrap();
            connection.flush().await.unwrap();
            (connection.connect_info(), connection)
        };
        tokio::pin!(calling, accepting);
        let both = async {
            tokio::select! {
                called = &mut calling => called.map(|()| unreachable!("the answer comes from the other side")),
                (peer, _connection) = &mut accepting => calling.await.map(|()| peer),
            }
        };
        tokio::time::timeout(DEADLINE, both).await.unwrap()
    }
}

/// Callers without a certificate get in as nobody; an agent's certificate names it, also when it has expired; one
/// of another authority is refused.
#[tokio::test]
async fn certificates_name_agents() {
    let mut port = port().await;
    let nobody = port.peer(None).await.unwrap();
    assert!(nobody.is_tls && nobody.certified.is_none() && nobody.address.is_some());
    let (now, authority) = (clock::now(), Arc::clone(&port.authority));
    let agent = port.peer(Some(certificate(&authority, now))).await.unwrap();
    assert_eq!(agent.certified.unwrap().agent_id, "agt_1");
    let long_ago = now - jiff::SignedDuration::from_hours(72);
    let expired = port.peer(Some(certificate(&authority, long_ago))).await.unwrap();
    assert!(expired.certified.unwrap().expire_seconds < now.as_second());
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Authority::open(elsewhere.path(), now).unwrap();
    assert!(port.peer(Some(certificate(&stranger, now))).await.is_none());
}

/// After the authority was replaced, certificates of the one before it still name their agents, for as long as its own
/// certificate is kept beside the new one.
#[tokio::test]
async fn certificates_of_an_earlier_authority_count_while_it_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let now = clock::now();
    let (file, earlier) =
        (|name| directory.path().join(name), Authority::open(directory.path(), now).unwrap());
    std::fs::rename(file("ca.pem"), file("ca-previous.pem")).unwrap();
    std::fs::remove_file(file("ca.key")).unwrap();
    let again = Authority::open(directory.path(), now).unwrap();
    assert_ne!(again.certificate(), earlier.certificate());
    let mut port = port_of(directory).await;
    assert_eq!(port.authority.certificate(), again.certificate());
    for authority in [&earlier, &again] {
        assert_eq!(
            port.peer(Some(certificate(authority, now))).await.unwrap().certified.unwrap().agent_id,
            "agt_1"
        );
    }
    let previous = port._directory.path().join("ca-previous.pem");
    std::fs::write(&previous, "no certificate").unwrap();
    let damaged = Authority::open(port._directory.path(), now).err().unwrap();
    assert!(matches!(damaged, ca::AuthorityError::Others(_)), "{damaged}");
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(port._directory.path().join("ca.key"), elsewhere.path().join("ca.key")).unwrap();
    let mut port = port_of(elsewhere).await;
    assert_eq!(port.authority.certificate(), again.certificate());
    assert!(port.peer(Some(certificate(&earlier, now))).await.is_none(), "the earlier one is not kept");
}

/// Clients that never finish their handshake, or speak no TLS, hold nobody up.
#[tokio::test]
async fn unfinished_handshakes_hold_nobody_up() {
    let mut port = port().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(TcpStream::connect(port.address).await.unwrap());
    }
    let mut plain = TcpStream::connect(port.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert!(port.peer(None).await.is_some());
    // The one that spoke plain text got a TLS alert (RFC 8446, 6: content type 21) and the end.
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, plain.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer.first(), Some(&21));
    drop(silent);
}

/// A caller who connects and then says nothing, or only a part of what a connection opens with, is closed after
/// 10 s, with and without TLS.
#[tokio::test]
async fn silent_connections_are_closed() {
    let mut port = port().await;
    let (connector, address) = (port.connector(None), port.address);
    let calling = async move {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        stream.write_all(b"PRI").await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let (_caller, encrypted) = tokio::join!(calling, port.connections.next());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut plain = incoming(listener, None, AGE).boxed();
    let (_silent, plain) = tokio::join!(TcpStream::connect(address), plain.next());
    // Nothing more comes over the wire: only time passes.
    tokio::time::pause();
    for accepted in [encrypted, plain] {
        let mut connection = accepted.unwrap().unwrap();
        let mut received = Vec::new();
        let read = connection.read_to_end(&mut received);
        let error = tokio::time::timeout(PATIENCE.opening * 2, read).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

/// A caller who has opened its connection may be silent for long: HTTP/2 probes it.
#[tokio::test]
async fn opened_connections_stay() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut connections = incoming(listener, None, AGE).boxed();
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut connection = connections.next().await.unwrap().unwrap();
    connection.read_exact(&mut [0; 24]).await.unwrap();
    tokio::time::pause();
    let read = tokio::time::timeout(PATIENCE.opening * 60, connection.read_u8()).await;
    assert!(read.is_err(), "{read:?}");
}

/// Beyond the bound connections wait until an open one ends, and are served then.
#[tokio::test]
async fn connections_are_bounded() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut connections = incoming_of(BoundedListener::new(listener, 1), None, None).boxed();
    let _first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"2").await.unwrap();
    let open = connections.next().await.unwrap().unwrap();
    tokio::time::pause();
    let refused = tokio::time::timeout(PATIENCE.opening, connections.next()).await;
    assert!(refused.is_err(), "accepted beyond the bound");
    tokio::time::resume();
    drop(open);
    let mut next = tokio::time::timeout(DEADLINE, connections.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(next.read_u8().await.unwrap(), b'2');
}
