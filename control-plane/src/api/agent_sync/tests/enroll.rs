//! Enrolling, certificates, revoking and twins. What needs TLS is tested on the real programs.

use gateway_proto::v1::tenant_service_client::TenantServiceClient;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tonic_types::StatusExt as _;

use super::*;
use crate::{
    ca::certified_agent,
    store::{Store, sqlite::testing},
};

fn signing_request() -> Vec<u8> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

impl ControlPlane {
    async fn enroll_with(&self, request: v1::EnrollAgentRequest) -> Result<v1::EnrollAgentResponse, Status> {
        let request = v1::EnrollAgentRequest { build: "1".into(), ..request };
        let mut client = AgentSyncServiceClient::new(self.channel.clone());
        client.enroll_agent(request).await.map(Response::into_inner)
    }

    async fn revoke(&self, id: &str) -> Result<v1::Agent, Status> {
        let request = v1::RevokeAgentRequest { id: id.into() };
        let response = AgentServiceClient::new(self.admin()).revoke_agent(request).await?;
        Ok(response.into_inner().agent.unwrap())
    }
}

fn as_agent(plane: &ControlPlane, enrolled: &v1::EnrollAgentResponse) -> TestAgent {
    let calls = InterceptedService::new(plane.channel.clone(), Bearer(enrolled.credential.clone()));
    TestAgent {
        id: enrolled.agent_id.clone(),
        region: enrolled.region.clone(),
        client: AgentSyncServiceClient::new(calls),
    }
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

/// Whoever has no join token does not wait for writers, and so keeps none of them waiting.
#[tokio::test]
async fn unknown_tokens_take_no_turn() {
    let plane = ControlPlane::start().await;
    let other = Store::open(plane._dir.path()).await.unwrap();
    let writing = other.begin_write().await.unwrap();
    let refused = plane.enroll("join_unknown", "eu").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    drop(writing);
    plane.stop().await;
}

/// A join token that has expired, or was used, is refused; both are told alike.
#[tokio::test]
async fn expired_and_used_tokens_are_refused() {
    let plane = ControlPlane::start().await;
    let token = plane.join_token("eu").await;
    let data_dir = plane._dir.path();
    let expire = |microsecond: i64| {
        testing::execute(data_dir, format!("UPDATE join_tokens SET expire_time = {microsecond}"))
    };
    expire(gateway_runtime::clock::now().as_microsecond() - 1).await;
    let late = plane.enroll(&token, "eu").await.unwrap_err();
    expire(gateway_runtime::clock::now().as_microsecond() + 60_000_000).await;
    plane.enroll(&token, "eu").await.unwrap();
    let used = plane.enroll(&token, "eu").await.unwrap_err();
    assert_eq!((late.code(), late.message()), (used.code(), used.message()));
    assert_eq!(late.code(), Code::Unauthenticated);
    plane.stop().await;
}

/// An agent that asks gets a certificate of a day that names it, and another one when it renews; a request that
/// cannot be granted takes neither the token nor the certificate away.
#[tokio::test]
async fn agents_get_and_renew_certificates() {
    let plane = ControlPlane::start().await;
    let join_token = plane.join_token("eu").await;
    // A pin behind the secret does no harm.
    let join_token = format!("{join_token}.whatever");
    let bad = v1::EnrollAgentRequest {
        join_token: join_token.clone(),
        certificate_signing_request: vec![1, 2, 3],
        ..Default::default()
    };
    assert_eq!(plane.enroll_with(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let good = v1::EnrollAgentRequest {
        join_token,
        certificate_signing_request: signing_request(),
        ..Default::default()
    };
    let enrolled = plane.enroll_with(good).await.unwrap();
    let first = enrolled.certificate.clone().unwrap();
    let named = certified_agent(&first.chain[0]).unwrap();
    assert_eq!(named.agent_id, enrolled.agent_id);
    assert_eq!(first.lifetime.unwrap().seconds, 24 * 3_600);
    let shown = plane.agent_when(&enrolled.agent_id, |_| true).await;
    assert_eq!(shown.certificate_expire_time, first.expire_time);
    let mut agent = as_agent(&plane, &enrolled);
    let empty = v1::RenewAgentCertificateRequest::default();
    assert_eq!(agent.client.renew_agent_certificate(empty).await.unwrap_err().code(), Code::InvalidArgument);
    let request = v1::RenewAgentCertificateRequest { certificate_signing_request: signing_request() };
    let renewed =
        agent.client.renew_agent_certificate(request).await.unwrap().into_inner().certificate.unwrap();
    assert_eq!(certified_agent(&renewed.chain[0]).unwrap().agent_id, enrolled.agent_id);
    assert!(renewed.chain[0] != first.chain[0] && renewed.chain[1] == first.chain[1]);
    // Without TLS the credential is enough, certificate or not.
    let hello = agent.hello();
    assert!(agent.config(hello).await.response().await.snapshot);
    plane.stop().await;
}

/// Agents that ask for no certificate enroll as ever.
#[tokio::test]
async fn certificates_are_optional() {
    let plane = ControlPlane::start().await;
    let join_token = plane.join_token("eu").await;
    let enrolled = plane.enroll(&join_token, "eu").await.unwrap();
    assert!(enrolled.certificate.is_none());
    assert!(plane.agent_when(&enrolled.agent_id, |_| true).await.certificate_expire_time.is_none());
    plane.stop().await;
}

/// Revoking ends every open stream of the agent at once, and its credential: no stream, no renewal. Other agents
/// go on; revoking again changes nothing.
#[tokio::test]
async fn revoked_agents_are_cut_off() {
    let plane = ControlPlane::start().await;
    let (mut agent, mut other) = (plane.agent("eu").await, plane.agent("eu").await);
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    config.response().await;
    let (mut reports, mut work) = (agent.reports().await, agent.work().await);
    let others = other.hello();
    let mut other_config = other.config(others).await;
    other_config.response().await;
    plane.agent_when(&agent.id, |agent| agent.state() == v1::AgentState::Online).await;

    let revoked = plane.revoke(&agent.id).await.unwrap();
    assert!(revoked.revoke_time.is_some());
    let ended = async {
        loop {
            if let Err(status) = config.next().await {
                return status;
            }
        }
    };
    for status in [ended.await, reports.next().await.unwrap_err(), work.next().await.unwrap_err()] {
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(reason(&status), "AGENT_REVOKED");
    }
    plane.agent_when(&agent.id, |agent| agent.state() == v1::AgentState::Revoked).await;
    let states = vec![v1::AgentState::Offline.into()];
    let watch = v1::WatchAgentsRequest { states, ..Default::default() };
    let watching = AgentServiceClient::new(plane.admin()).watch_agents(watch).await;
    let first = watching.unwrap().into_inner().message().await.unwrap().unwrap();
    assert!(first.is_caught_up, "a revoked agent is no reason for an alarm: {first:?}");
    let request = v1::RenewAgentCertificateRequest { certificate_signing_request: signing_request() };
    let refused = agent.client.renew_agent_certificate(request).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "AGENT_REVOKED"));
    let (_requests, receiver) = mpsc::channel(1);
    let refused = agent.client.stream_config(ReceiverStream::new(receiver)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unauthenticated, "AGENT_REVOKED"));

    plane.create_instance("inst_1", "1001", None, &[]).await;
    assert_eq!(other_config.response().await.version, 1);
    assert_eq!(plane.revoke(&agent.id).await.unwrap().revoke_time, revoked.revoke_time);
    assert_eq!(plane.revoke("agt_nobody").await.unwrap_err().code(), Code::NotFound);
    plane.stop().await;
}

/// A join token may be a tenant's; the agent that uses it is shown with the tenant, and a tenant that is not
/// there gets none.
#[tokio::test]
async fn join_tokens_may_be_a_tenants() {
    let plane = ControlPlane::start().await;
    let tenant = v1::Tenant { id: "acme".into(), display_name: "Acme".into(), ..Default::default() };
    let request = v1::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
    TenantServiceClient::new(plane.admin()).create_tenant(request).await.unwrap();
    let token = async |tenant_id: &str| {
        let request = v1::CreateJoinTokenRequest {
            region: "eu".into(),
            tenant_id: tenant_id.into(),
            ..Default::default()
        };
        AgentServiceClient::new(plane.admin()).create_join_token(request).await
    };
    for nobody in ["nobody", "Not An Id"] {
        assert_eq!(token(nobody).await.unwrap_err().code(), Code::NotFound, "{nobody}");
    }
    for (tenant_id, shown) in [("acme", "acme"), ("", "")] {
        let join_token = token(tenant_id).await.unwrap().into_inner().join_token;
        let enrolled = plane.enroll(&join_token, "eu").await.unwrap();
        assert_eq!(plane.agent_when(&enrolled.agent_id, |_| true).await.tenant_id, shown);
    }
    plane.stop().await;
}

/// A tenant goes when its agents are revoked, and its join tokens go with it; those of others stay.
#[tokio::test]
async fn tenants_with_agents_stay() {
    let plane = ControlPlane::start().await;
    let mut tenants = TenantServiceClient::new(plane.admin());
    let tenant = v1::Tenant { id: "acme".into(), ..Default::default() };
    let request = v1::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
    tenants.create_tenant(request).await.unwrap();
    let token = async || {
        let request = v1::CreateJoinTokenRequest {
            region: "eu".into(),
            tenant_id: "acme".into(),
            ..Default::default()
        };
        let made = AgentServiceClient::new(plane.admin()).create_join_token(request).await;
        made.unwrap().into_inner().join_token
    };
    let agent = plane.enroll(&token().await, "eu").await.unwrap().agent_id;
    let (unused, of_platform) = (token().await, plane.join_token("eu").await);
    let delete = v1::DeleteTenantRequest { id: "acme".into(), ..Default::default() };
    let refused = tenants.delete_tenant(delete.clone()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "IN_USE"));
    assert!(refused.message().contains(&agent) && refused.message().contains("RevokeAgent"), "{refused}");
    plane.revoke(&agent).await.unwrap();
    tenants.delete_tenant(delete).await.unwrap();
    let count: i64 = testing::value(plane._dir.path(), "SELECT count(*) FROM join_tokens").await;
    assert_eq!(count, 1);
    assert_eq!(plane.enroll(&unused, "eu").await.unwrap_err().code(), Code::Unauthenticated);
    // One that was made while the tenant was being deleted.
    testing::execute(plane._dir.path(), "UPDATE join_tokens SET tenant_id = 'acme'").await;
    assert_eq!(plane.enroll(&of_platform, "eu").await.unwrap_err().code(), Code::Unauthenticated);
    plane.stop().await;
}

/// A process that another with the same identity took over from is refused and shown while the other is
/// connected; the other is left alone.
#[tokio::test]
async fn twins_are_refused_and_shown() {
    let plane = ControlPlane::start().await;
    let mut agent = plane.agent("eu").await;
    let open = async |agent: &mut TestAgent, start_id: &'static str| {
        let (requests, receiver) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(receiver));
        request.metadata_mut().insert("gateway-start-id", MetadataValue::from_static(start_id));
        let responses = agent.client.stream_work(request).await.map(Response::into_inner);
        responses.map(|responses| Call::<v1::StreamWorkRequest, _> { requests, responses })
    };
    let mut first = open(&mut agent, "one").await.unwrap();
    let second = open(&mut agent, "two").await.unwrap();
    assert_eq!(reason(&first.next().await.unwrap_err()), "TAKEN_OVER");
    for _ in 0..3 {
        let refused = open(&mut agent, "one").await.err().unwrap();
        assert_eq!(reason(&refused), "AGENT_IDENTITY_IN_USE");
        assert!(refused.get_details_retry_info().unwrap().retry_delay.is_some());
    }
    let shown = plane.agent_when(&agent.id, |_| true).await;
    assert!(shown.twin_address.starts_with("127.0.0.1:"), "{}", shown.twin_address);
    drop(second);
    let back = async {
        loop {
            if let Ok(call) = open(&mut agent, "one").await {
                return call;
            }
        }
    };
    drop(tokio::time::timeout(DEADLINE, back).await.unwrap());
    plane.stop().await;
}

/// An agent of a tenant gets that tenant's routes, instances, subscriptions and opt-outs only.
#[tokio::test]
async fn agents_of_a_tenant_get_what_is_its() {
    let plane = ControlPlane::start().await;
    let tenant = v1::Tenant { id: "acme".into(), display_name: "Acme".into(), ..Default::default() };
    let request = v1::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
    TenantServiceClient::new(plane.admin()).create_tenant(request).await.unwrap();
    plane.create_instance("inst_other", "1001", None, &[]).await;
    plane.create_subscription("sub_other", "inst_other").await;
    let meta = v1::Meta { app_secrets: vec!["app-secret".into()], verify_tokens: vec!["verify".into()] };
    let own = v1::CreateInstanceRequest {
        instance: Some(v1::Instance {
            id: "inst_acme".into(),
            tenant_id: "acme".into(),
            display_name: "Acme".into(),
            provider_number_id: "2002".into(),
            ..Default::default()
        }),
        inbound_route: Some(v1::InboundRoute {
            tenant_id: "acme".into(),
            provider: v1::Provider::Meta.into(),
            credentials: Some(v1::inbound_route::Credentials::Meta(meta)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let own = InstanceServiceClient::new(plane.admin()).create_instance(own).await.unwrap().into_inner();
    plane.create_subscription("sub_acme", "inst_acme").await;
    let request =
        v1::CreateJoinTokenRequest { region: "eu".into(), tenant_id: "acme".into(), ..Default::default() };
    let token = AgentServiceClient::new(plane.admin()).create_join_token(request).await.unwrap().into_inner();
    let enrolled = plane.enroll(&token.join_token, "eu").await.unwrap();
    let mut agent = as_agent(&plane, &enrolled);
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let snapshot = config.response().await;
    let text = format!("{:?}", snapshot.upserts);
    for id in ["inst_acme", "sub_acme", &own.inbound_route.unwrap().id] {
        assert!(text.contains(id), "{id} is missing: {text}");
    }
    assert!(!text.contains("inst_other") && !text.contains("sub_other"), "{text}");
    assert_eq!(snapshot.upserts.len(), 3, "{text}");
    plane.create_subscription("sub_other_2", "inst_other").await;
    plane.create_subscription("sub_acme_2", "inst_acme").await;
    let mut seen = String::new();
    while !seen.contains("sub_acme_2") {
        seen.push_str(&format!("{:?}", config.response().await.upserts));
    }
    assert!(!seen.contains("other"), "{seen}");
    plane.stop().await;
}
