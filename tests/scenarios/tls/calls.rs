//! What an agent must show beside its credential, seen from the wire.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_proto::v1::agent_sync_service_client::AgentSyncServiceClient;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};
use tonic_types::StatusExt as _;

use super::*;

struct Enrolled {
    id: String,
    credential: String,
    certificate: Identity,
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// A key and a request for its certificate.
fn new_key() -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    (key, request)
}

fn identity(key: &KeyPair, certificate: &v1::AgentCertificate) -> Identity {
    let chain: String = certificate.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    Identity::from_pem(chain, pem("PRIVATE KEY", &key.serialize_der()))
}

async fn channel(control_plane: &ControlPlane, shown: Option<Identity>) -> Channel {
    let authority = fs::read_to_string(control_plane.data_dir().join("ca.pem")).unwrap();
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
    if let Some(identity) = shown {
        tls = tls.identity(identity);
    }
    let endpoint = Channel::from_shared(control_plane.url()).unwrap().tls_config(tls).unwrap();
    endpoint.connect().await.unwrap()
}

async fn enroll(control_plane: &ControlPlane) -> Enrolled {
    let (key, certificate_signing_request) = new_key();
    let request = v1::EnrollAgentRequest {
        join_token: control_plane.join_token("eu").await.unwrap(),
        build: "1".to_owned(),
        certificate_signing_request,
        ..Default::default()
    };
    let mut client = AgentSyncServiceClient::new(channel(control_plane, None).await);
    let response = client.enroll_agent(request).await.unwrap().into_inner();
    let certificate = identity(&key, &response.certificate.unwrap());
    Enrolled { id: response.agent_id, credential: response.credential, certificate }
}

fn with_credential<T>(message: T, credential: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {credential}").parse().unwrap());
    request
}

/// Opens a work stream over `channel` and closes it.
async fn open(channel: &Channel, credential: &str) -> Result<(), Status> {
    let (_requests, receiver) = mpsc::channel(1);
    let request = with_credential(ReceiverStream::new(receiver), credential);
    AgentSyncServiceClient::new(channel.clone()).stream_work(request).await.map(drop)
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

async fn control_plane(lifetime: &str) -> (ControlPlane, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (ControlPlane::start_with(directory.path(), own_ca(lifetime)).await.unwrap(), directory)
}

/// Over TLS an agent with a certificate needs both, credential and certificate, of the same agent. Expiry of the
/// certificate ends new streams also on an open connection; renewing needs the credential alone.
#[tokio::test]
async fn credential_and_certificate_belong_together() {
    let (control_plane, _directory) = control_plane("10s").await;
    let (one, other) = (enroll(&control_plane).await, enroll(&control_plane).await);
    let bare = channel(&control_plane, None).await;
    let shown = channel(&control_plane, Some(one.certificate)).await;
    open(&shown, &one.credential).await.unwrap();
    assert_eq!(reason(&open(&bare, &one.credential).await.unwrap_err()), "CERTIFICATE_REQUIRED");
    assert_eq!(open(&shown, &other.credential).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(open(&shown, "agent_nobody").await.unwrap_err().code(), Code::Unauthenticated);
    eventually(DEADLINE, async || {
        let refused = open(&shown, &one.credential).await.err().context("the certificate has not expired")?;
        ensure!(reason(&refused) == "CERTIFICATE_EXPIRED", "{refused}");
        Ok(())
    })
    .await
    .unwrap();
    let (key, certificate_signing_request) = new_key();
    let message = v1::RenewAgentCertificateRequest { certificate_signing_request };
    let renew = with_credential(message, &one.credential);
    let renewed = AgentSyncServiceClient::new(bare.clone()).renew_agent_certificate(renew).await.unwrap();
    let renewed = identity(&key, &renewed.into_inner().certificate.unwrap());
    open(&channel(&control_plane, Some(renewed)).await, &one.credential).await.unwrap();
}

/// Agents without a certificate, of an older program, work over TLS with their credential; once revoked they do
/// so no more.
#[tokio::test]
async fn agents_without_certificate_use_their_credential() {
    let (control_plane, _directory) = control_plane("24h").await;
    let bare = channel(&control_plane, None).await;
    let request = v1::EnrollAgentRequest {
        join_token: control_plane.join_token("eu").await.unwrap(),
        build: "1".to_owned(),
        ..Default::default()
    };
    let mut client = AgentSyncServiceClient::new(bare.clone());
    let enrolled = client.enroll_agent(request).await.unwrap().into_inner();
    open(&bare, &enrolled.credential).await.unwrap();
    let request = v1::RevokeAgentRequest { id: enrolled.agent_id };
    control_plane.client().agents().revoke_agent(request).await.unwrap();
    assert_eq!(open(&bare, &enrolled.credential).await.unwrap_err().code(), Code::Unauthenticated);
}

/// A revoked agent's certificate and credential are worth nothing, also over a connection that is open.
#[tokio::test]
async fn revoking_ends_certificates() {
    let (control_plane, _directory) = control_plane("24h").await;
    let agent = enroll(&control_plane).await;
    let shown = channel(&control_plane, Some(agent.certificate)).await;
    open(&shown, &agent.credential).await.unwrap();
    let request = v1::RevokeAgentRequest { id: agent.id };
    control_plane.client().agents().revoke_agent(request).await.unwrap();
    assert_eq!(open(&shown, &agent.credential).await.unwrap_err().code(), Code::Unauthenticated);
    let (_, certificate_signing_request) = new_key();
    let message = v1::RenewAgentCertificateRequest { certificate_signing_request };
    let renew = with_credential(message, &agent.credential);
    let refused = AgentSyncServiceClient::new(shown).renew_agent_certificate(renew).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
}
