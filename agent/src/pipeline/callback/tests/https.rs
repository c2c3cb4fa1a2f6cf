//! Callbacks over HTTPS: the certificate and its renewal, and handshakes that do not end.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_runtime::tls::{CertificateFiles, FileCertificate};
use tokio::net::TcpStream;

use super::*;

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// Writes a new certificate and key, and returns the certificate.
fn renew(directory: &Path) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(directory.join("tls.pem"), pem("CERTIFICATE", made.cert.der())).unwrap();
    fs::write(directory.join("tls.key"), pem("PRIVATE KEY", made.signing_key.serialized_der())).unwrap();
    made.cert.der().to_vec()
}

/// A front door over HTTPS whose certificate follows the files in `directory`.
async fn secure(directory: &Path) -> FrontDoor {
    let files = CertificateFiles { certificate: directory.join("tls.pem"), key: directory.join("tls.key") };
    let file = FileCertificate::load(files).unwrap();
    let acceptor = tls::acceptor(file.current(), None, &[tls::HTTP_1]);
    let front = Front { tls: Some(acceptor), ..Front::default() };
    let snapshot = SnapshotHandle::fixed(configuration(&[("sub-one", &["*"])]));
    let mut door = FrontDoor::behind(snapshot, front).await;
    door.server.spawn(file.watch(door.stop.clone()));
    door
}

/// A client that trusts this certificate only, with a connection of its own.
fn client(trusted: &[u8]) -> reqwest::Client {
    let root = reqwest::Certificate::from_der(trusted).unwrap();
    reqwest::Client::builder().no_proxy().timeout(DEADLINE).tls_certs_only([root]).build().unwrap()
}

async fn post(door: &FrontDoor, client: &reqwest::Client) -> Result<u16, reqwest::Error> {
    let body = fixture("text");
    let url = format!("https://localhost:{}/callbacks/meta/{TOKEN}", door.address.port());
    let request = client.post(url).header("content-type", "application/json");
    let request = request.header("x-hub-signature-256", signature(&body)).body(body);
    Ok(request.send().await?.status().as_u16())
}

/// Callbacks are taken over HTTPS with the certificate of the files. A renewed certificate is used by new
/// connections within seconds while open ones go on, and broken files change nothing.
#[tokio::test]
async fn renewed_certificates_are_used() {
    let directory = tempfile::tempdir().unwrap();
    let first = renew(directory.path());
    let door = secure(directory.path()).await;
    let open = client(&first);
    assert_eq!(post(&door, &open).await.unwrap(), 200);
    let second = renew(directory.path());
    let renewed = client(&second);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while post(&door, &renewed).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the renewed certificate is not used");
    }
    assert_eq!(post(&door, &open).await.unwrap(), 200);
    fs::write(directory.path().join("tls.pem"), "broken").unwrap();
    assert_eq!(post(&door, &client(&second)).await.unwrap(), 200);
    assert!(post(&door, &client(&first)).await.is_err());
}

/// Clients that connect and say nothing, or speak plain HTTP, hold nobody up, and stopping does not wait for them.
#[tokio::test]
async fn unfinished_handshakes_hold_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let certificate = renew(directory.path());
    let mut door = secure(directory.path()).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(door.address).await.unwrap());
    }
    let mut plain = TcpStream::connect(door.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, plain.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    assert_eq!(post(&door, &client(&certificate)).await.unwrap(), 200);
    door.stop.cancel();
    let stopped = async { while door.server.join_next().await.is_some() {} };
    tokio::time::timeout(tls::HANDSHAKE_TIMEOUT / 2, stopped).await.unwrap();
    drop(silent);
}
