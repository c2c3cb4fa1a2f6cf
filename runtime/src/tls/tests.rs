use std::{fs, path::PathBuf, sync::Arc};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::{files::Look, *};
use crate::clock;

struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self { directory: tempfile::tempdir().unwrap() };
        files.renew();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn paths(&self) -> CertificateFiles {
        CertificateFiles { certificate: self.path("tls.pem"), key: self.path("tls.key") }
    }

    /// Writes a new certificate and key, and returns the certificate.
    fn renew(&self) -> CertificateDer<'static> {
        self.renew_for(1975, 4096)
    }

    /// The same with a certificate that is valid from the begin of one year to the begin of another.
    fn renew_for(&self, from: i32, until: i32) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(until, 1, 1));
        let made = params.self_signed(&key).unwrap();
        fs::write(self.path("tls.pem"), pem("CERTIFICATE", made.der())).unwrap();
        fs::write(self.path("tls.key"), pem("PRIVATE KEY", &key.serialize_der())).unwrap();
        made.der().clone()
    }
}

/// RFC 7468; a line of any length is read.
fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut body = String::new();
    for chunk in der.chunks(3) {
        let number = chunk.iter().fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        let number = number << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[usize::try_from(number >> (18 - 6 * place) & 63).unwrap()];
            body.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// The certificate that a server on `certificate` shows to a new connection.
async fn shown(certificate: &CurrentCertificate, trusted: &CertificateDer<'static>) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = acceptor(certificate.clone(), None, &[HTTP_1]);
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        handshake(&acceptor, stream).await.unwrap()
    };
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let calling = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    tokio::join!(serving, calling).1
}

/// New connections see the renewed certificate; a broken file, a key that does not fit and a missing file keep
/// the last good one, and are told once, at the second look.
#[tokio::test]
async fn renewed_files_are_used_and_broken_ones_are_not() {
    let files = Files::new();
    let mut certificate = FileCertificate::load(files.paths()).unwrap();
    let current = certificate.current();
    let renewed = files.renew();
    assert!(matches!(certificate.look(clock::now()), Look::Replaced));
    assert_eq!(shown(&current, &renewed).await, renewed.to_vec());

    let good_key = fs::read(files.path("tls.key")).unwrap();
    let other = Files::new();
    let breakages: [&dyn Fn(); 3] = [
        &|| fs::write(files.path("tls.key"), "not PEM").unwrap(),
        &|| assert!(fs::copy(other.path("tls.key"), files.path("tls.key")).unwrap() > 0),
        &|| fs::remove_file(files.path("tls.key")).unwrap(),
    ];
    for breakage in breakages {
        breakage();
        assert!(matches!(certificate.look(clock::now()), Look::Broken));
        assert!(matches!(certificate.look(clock::now()), Look::StaysBroken(_)));
        assert!(matches!(certificate.look(clock::now()), Look::Unchanged));
        assert_eq!(shown(&current, &renewed).await, renewed.to_vec());
    }
    fs::write(files.path("tls.key"), good_key).unwrap();
    assert!(matches!(certificate.look(clock::now()), Look::Unchanged));
    let again = files.renew();
    assert!(matches!(certificate.look(clock::now()), Look::Replaced));
    assert_eq!(shown(&current, &again).await, again.to_vec());
}

/// A renewed certificate that has expired, or is not valid yet, does not replace one that is valid; a person hears
/// of its dates once. It is used when its time comes, or when the one in use has expired as well. The metric says
/// when the one in use expires.
#[test]
fn certificates_out_of_their_time_are_not_used() {
    let at = |year: i16| jiff::civil::date(year, 7, 1).to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp();
    let files = Files::new();
    let good = files.renew_for(2020, 2022);
    let mut certificate = FileCertificate::load(files.paths()).unwrap();
    let current = certificate.current();
    let is_shown = |expected: &CertificateDer<'_>| current.load().unwrap().cert[0] == *expected;
    for (from, until) in [(2010, 2012), (2040, 2042)] {
        files.renew_for(from, until);
        assert!(matches!(certificate.look(at(2021)), Look::Broken));
        let Look::StaysBroken(error) = certificate.look(at(2021)) else { panic!("nobody hears of it") };
        let dates = [from, until].map(|year| format!("{year}-01-01T00:00:00Z"));
        assert!(dates.iter().all(|date| error.to_string().contains(date)), "{error}");
        assert!(matches!(certificate.look(at(2021)), Look::Unchanged));
        assert!(is_shown(&good));
    }
    let later = files.renew_for(2021, 2030);
    assert!(matches!(certificate.look(at(2020)), Look::Broken) && is_shown(&good));
    assert!(matches!(certificate.look(at(2021)), Look::Replaced) && is_shown(&later));
    let mut registry = prometheus_client::registry::Registry::with_prefix("gateway");
    ExpiryMetric::register(&mut registry).add("grpc", current.clone());
    let shown = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    };
    let line = r#"gateway_tls_certificate_expire_time_seconds{certificate="grpc"} 1893456000"#;
    assert!(shown().contains(line), "{}", shown());
    let expired = files.renew_for(2010, 2012);
    assert!(matches!(certificate.look(at(2031)), Look::Replaced) && is_shown(&expired));
    assert!(!shown().contains(line), "{}", shown());
}

/// A start with files that cannot be used fails and names the file.
#[test]
fn unusable_files_are_named() {
    let files = Files::new();
    fs::write(files.path("tls.pem"), "").unwrap();
    let error = FileCertificate::load(files.paths()).err().unwrap();
    assert!(error.to_string().contains("tls.pem"), "{error}");
    let missing = CertificateFiles { certificate: files.path("none.pem"), key: files.path("tls.key") };
    assert!(matches!(FileCertificate::load(missing).err().unwrap(), TlsFileError::Read { .. }));
}

/// Who never finishes its handshake is let go after ten seconds.
#[tokio::test(start_paused = true)]
async fn handshakes_end() {
    let files = Files::new();
    let certificate = FileCertificate::load(files.paths()).unwrap();
    let acceptor = acceptor(certificate.current(), None, &[HTTP_1]);
    let (_silent, ours) = tokio::io::duplex(1_024);
    let before = tokio::time::Instant::now();
    assert!(matches!(handshake(&acceptor, ours).await, Err(HandshakeError::TimedOut)));
    assert_eq!(before.elapsed(), HANDSHAKE_TIMEOUT);
}

/// A client shows its certificate to a server that takes its issuer or names none, and to no other.
#[test]
fn client_certificates_are_shown_to_their_issuer() {
    let made = rcgen::generate_simple_self_signed(["agent".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialized_der().to_vec().into());
    let current = CurrentCertificate::new(certified_key(vec![made.cert.der().clone()], key).unwrap());
    let resolve = |issuers: &[&[u8]]| ResolvesClientCert::resolve(&current, issuers, &[]).is_some();
    assert!(resolve(&[]) && resolve(&[b"rcgen self signed cert"]) && !resolve(&[b"somebody else"]));
    assert!(!resolve(&[b""]) && CurrentCertificate::default().load().is_none());
}
