//! TLS with certificates from files, on both programs, renewed while they run.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_sdk::{Client, ClientOptions};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tonic::transport::{Certificate, Channel, ClientTlsConfig};

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate of `issuer` for this machine.
fn write(directory: &Path, issuer: &Ca) {
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, issuer).unwrap();
    fs::write(directory.join("tls.pem"), pem("CERTIFICATE", certificate.der())).unwrap();
    fs::write(directory.join("tls.key"), pem("PRIVATE KEY", &key.serialize_der())).unwrap();
}

/// The admin's client.
fn client(control_plane: &ControlPlane, trusted: &str) -> Client {
    let url = control_plane.url().replace("http://", "https://");
    let options = ClientOptions::new(url, control_plane.admin_key()).with_ca_certificate(trusted);
    Client::connect_lazy(&options).unwrap()
}

async fn connects(control_plane: &ControlPlane, trusted: &Ca) -> bool {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem("CERTIFICATE", trusted.der())));
    let url = control_plane.url().replace("http://", "https://");
    Channel::from_shared(url).unwrap().tls_config(tls).unwrap().connect().await.is_ok()
}

/// A control plane serves the certificate of its files, and soon after they change the new one. Agents trust it
/// by `--control-plane-ca`, and go on when it changes.
#[tokio::test]
async fn renewed_files_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (ca(), ca());
    write(directory.path(), &first);
    let file = |name: &str| directory.path().join(name).display().to_string();
    let arguments = vec!["--tls-cert".into(), file("tls.pem"), "--tls-key".into(), file("tls.key")];
    let options = ControlPlaneOptions { arguments, ..Default::default() };
    let control_plane = ControlPlane::start_with(directory.path(), options).await.unwrap();
    assert!(connects(&control_plane, &first).await && !connects(&control_plane, &second).await);

    let both = [&first, &second].map(|ca| pem("CERTIFICATE", ca.der())).concat();
    fs::write(file("both.pem"), &both).unwrap();
    let client = client(&control_plane, &both);
    let request = v1::CreateJoinTokenRequest { region: "test-region".to_owned(), ..Default::default() };
    let join_token = client.agents().create_join_token(request).await.unwrap().into_inner().join_token;
    let options = AgentOptions {
        join_token: Some(join_token),
        control_plane_url: Some(control_plane.url().replace("http://", "https://")),
        arguments: vec!["--control-plane-ca".into(), file("both.pem")],
        ..Default::default()
    };
    let mut agent = Agent::launch_alone(&directory.path().join("edge"), options).await.unwrap();
    agent.wait_ready().await.unwrap();

    write(directory.path(), &second);
    eventually(DEADLINE, async || {
        ensure!(connects(&control_plane, &second).await, "the renewed certificate is not served");
        Ok(())
    })
    .await
    .unwrap();
    assert!(!connects(&control_plane, &first).await);
    fs::write(file("tls.key"), "broken").unwrap();
    let has_warned = async || {
        let log = control_plane.log_text()?;
        ensure!(log.contains("failed to read the renewed TLS certificate"), "no warning yet");
        Ok(())
    };
    eventually(DEADLINE, has_warned).await.unwrap();
    assert!(connects(&control_plane, &second).await);
    agent.kill().await.unwrap();
    agent.start_again().await.unwrap();
    let is_back = async || {
        let listed = client.agents().list_agents(v1::ListAgentsRequest::default()).await?.into_inner();
        ensure!(listed.agents[0].state() == v1::AgentState::Online, "{:?}", listed.agents[0]);
        Ok(())
    };
    eventually(DEADLINE, is_back).await.unwrap();
    // A caller in plain text gets nothing.
    let plain = Channel::from_shared(control_plane.url()).unwrap().connect().await;
    if let Ok(plain) = plain {
        let mut client = v1::agent_service_client::AgentServiceClient::new(plain);
        assert!(client.list_agents(v1::ListAgentsRequest::default()).await.is_err());
    }
}
