//! A snapshot export holds what a new agent is sent, and is made beside a running control plane.

use std::{fs::File, os::unix::fs::PermissionsExt as _, path::Path};

use gateway_core::snapshot::export::{ExportHeader, FILE_NAME, KEY_PREFIX, SIGNING_KEY_PREFIX};
use gateway_proto::v1::{
    config_resource::Resource, opt_out_service_client::OptOutServiceClient,
    tenant_service_client::TenantServiceClient,
};
use gateway_runtime::signed_file::{Kind, ReaderKey, SignedFile};
use prost::Message as _;

use super::*;
use crate::{
    export::{ExportRequest, Exported, export},
    sealing::RootKeys,
};

const KIND: Kind = Kind { name: FILE_NAME, reader_prefix: KEY_PREFIX, writer_prefix: SIGNING_KEY_PREFIX };

/// Everything that an agent takes from its stream before it waits for changes.
type Contents = (Vec<v1::ConfigResource>, Vec<v1::OptOut>);

fn request(plane: &ControlPlane, region: &str, tenant_id: Option<&str>) -> ExportRequest {
    ExportRequest {
        region: region.to_owned(),
        tenant_id: tenant_id.map(|id| id.parse().unwrap()),
        output: plane.data_dir().join("exported"),
        key_file: plane.data_dir().join("snapshot.key"),
        expires_in: Duration::from_secs(3_600),
        leave_out_damaged: false,
    }
}

async fn exported(plane: &ControlPlane, request: &ExportRequest) -> Exported {
    export(plane.data_dir(), &RootKeys::of_data_dir(plane.data_dir()), request).await.unwrap()
}

fn read(request: &ExportRequest) -> (ExportHeader, Contents) {
    let key = ReaderKey::parse(&KIND, &std::fs::read_to_string(&request.key_file).unwrap()).unwrap();
    let mut file = SignedFile::check(&KIND, File::open(&request.output).unwrap(), &key).unwrap();
    let header = v1::SnapshotExportHeader::decode(file.header()).unwrap();
    let (mut upserts, mut opt_outs) = (Vec::new(), Vec::new());
    while let Some(record) = file.next_record().unwrap() {
        let record = v1::StreamConfigResponse::decode(record.as_slice()).unwrap();
        upserts.extend(record.upserts);
        opt_outs.extend(record.opt_outs);
    }
    (ExportHeader::try_from(&header).unwrap(), (upserts, opt_outs))
}

/// What a new agent is sent, with the version and cursor that it has then.
async fn sent(agent: &mut TestAgent) -> (u64, u64, Contents) {
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let (mut upserts, mut opt_outs) = (Vec::new(), Vec::new());
    loop {
        let response = config.response().await;
        upserts.extend(response.upserts);
        opt_outs.extend(response.opt_outs);
        if response.opt_out_cursor == response.opt_out_cursor_newest {
            return (response.version, response.opt_out_cursor, (upserts, opt_outs));
        }
    }
}

async fn opt_out(plane: &ControlPlane, instance_id: &str, phone: &str) {
    let opt_out = v1::OptOut { instance_id: instance_id.into(), phone: phone.into(), ..Default::default() };
    let request = v1::CreateOptOutRequest { opt_out: Some(opt_out), ..Default::default() };
    OptOutServiceClient::new(plane.admin()).create_opt_out(request).await.unwrap();
}

/// Two tenants, instances in several regions, a subscription and an opt-out of each.
async fn plane() -> ControlPlane {
    let plane = ControlPlane::start().await;
    let tenant = v1::Tenant { id: "acme".into(), display_name: "Acme".into(), ..Default::default() };
    let request = v1::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
    TenantServiceClient::new(plane.admin()).create_tenant(request).await.unwrap();
    for (id, number, regions) in
        [("inst_eu", "1", &["eu"][..]), ("inst_us", "2", &["us"]), ("inst_all", "3", &[])]
    {
        plane.create_instance(id, number, None, regions).await;
        plane.create_subscription(&format!("sub_{id}"), id).await;
        opt_out(&plane, id, "+966500000001").await;
    }
    let meta = v1::Meta { app_secrets: vec!["planted-secret".into()], verify_tokens: vec!["verify".into()] };
    let request = v1::CreateInstanceRequest {
        instance: Some(v1::Instance {
            id: "inst_acme".into(),
            tenant_id: "acme".into(),
            display_name: "Acme".into(),
            provider_number_id: "4".into(),
            ..Default::default()
        }),
        inbound_route: Some(v1::InboundRoute {
            provider: v1::Provider::Meta.into(),
            credentials: Some(v1::inbound_route::Credentials::Meta(meta)),
            ..Default::default()
        }),
        ..Default::default()
    };
    InstanceServiceClient::new(plane.admin()).create_instance(request).await.unwrap();
    plane.create_subscription("sub_acme", "inst_acme").await;
    opt_out(&plane, "inst_acme", "+966500000002").await;
    plane
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Taken while the control plane runs, an export holds byte for byte what a new agent of that region is sent, no more
/// and no less, with its version and cursor; only its owner can read it, and no secret shows in it.
#[tokio::test]
async fn exports_hold_what_a_new_agent_is_sent() {
    let plane = plane().await;
    let request = request(&plane, "eu", None);
    let told = exported(&plane, &request).await;
    let (header, contents) = read(&request);
    let (version, cursor, expected) = sent(&mut plane.agent("eu").await).await;
    assert_eq!((header.version, header.opt_out_cursor), (version, cursor));
    assert_eq!(header, told.header);
    assert_eq!(header.store_epoch.len(), 22);
    assert!(contents == expected, "{} and {} resources", contents.0.len(), expected.0.len());
    assert_eq!((told.counts.instances, told.counts.webhook_subscriptions, told.counts.opt_outs), (3, 3, 4));
    let bytes = std::fs::read(&request.output).unwrap();
    assert_eq!(bytes.len() as u64, told.bytes);
    assert!(!bytes.windows(14).any(|window| window == b"planted-secret"));
    let signing_key = plane.data_dir().join(crate::export::SIGNING_KEY_FILE);
    for path in [&request.output, &request.key_file, &signing_key] {
        assert_eq!(mode(path), 0o600, "{}", path.display());
    }
    assert!(!plane.data_dir().join("exported.new").exists());
    plane.stop().await;
}

/// An export for a tenant holds what an agent of that tenant is sent, and nothing of others.
#[tokio::test]
async fn exports_for_a_tenant_hold_its_own_alone() {
    let plane = plane().await;
    let request = request(&plane, "eu", Some("acme"));
    exported(&plane, &request).await;
    let (header, contents) = read(&request);
    assert_eq!(header.tenant_id.unwrap().as_str(), "acme");
    let bound =
        v1::CreateJoinTokenRequest { region: "eu".into(), tenant_id: "acme".into(), ..Default::default() };
    let token = AgentServiceClient::new(plane.admin()).create_join_token(bound).await.unwrap();
    let enrolled = plane.enroll(&token.into_inner().join_token, "eu").await.unwrap();
    let calls = InterceptedService::new(plane.channel.clone(), Bearer(enrolled.credential));
    let mut agent =
        TestAgent { id: enrolled.agent_id, region: "eu".into(), client: AgentSyncServiceClient::new(calls) };
    let (_, _, expected) = sent(&mut agent).await;
    assert!(contents == expected);
    let is_of_acme = |upsert: &v1::ConfigResource| match upsert.resource.as_ref().unwrap() {
        Resource::Instance(instance) => instance.tenant_id == "acme",
        Resource::WebhookSubscription(config) => {
            config.webhook_subscription.as_ref().unwrap().id == "sub_acme"
        }
        _ => true,
    };
    assert!(contents.0.len() == 3 && contents.0.iter().all(is_of_acme));
    assert_eq!(contents.1.len(), 1);
    plane.stop().await;
}

/// A later export takes the place of the one before, under the same keys, also when the control plane is stopped.
#[tokio::test]
async fn exports_are_renewed_under_the_same_keys() {
    let plane = plane().await;
    let request = request(&plane, "eu", None);
    let first = exported(&plane, &request).await;
    assert!(first.is_signing_key_new && first.is_key_file_new);
    let key = std::fs::read(&request.key_file).unwrap();
    plane.create_subscription("sub_later", "inst_eu").await;
    let dir = plane.stop_and_keep().await;
    let second = export(dir.path(), &RootKeys::of_data_dir(dir.path()), &request).await.unwrap();
    assert!(!second.is_signing_key_new && !second.is_key_file_new);
    assert_eq!((second.signer, second.header.version), (first.signer, first.header.version + 1));
    assert_eq!(std::fs::read(&request.key_file).unwrap(), key);
    let (header, contents) = read(&request);
    assert_eq!((header, contents.0.len()), (second.header, 9 + 1));
}

/// A join token of another tenant than that of the export from which an agent serves is refused, and is not used up:
/// what the agent has taken could not be reported.
#[tokio::test]
async fn agents_enroll_for_the_tenant_of_their_export() {
    let plane = plane().await;
    let ask = async |join_token: &str, tenant_id: &str| {
        let request = v1::EnrollAgentRequest {
            join_token: join_token.to_owned(),
            build: "1".into(),
            tenant_id: Some(tenant_id.to_owned()),
            ..Default::default()
        };
        AgentSyncServiceClient::new(plane.channel.clone()).enroll_agent(request).await.map(|_| ())
    };
    let of_platform = plane.join_token("eu").await;
    let bound =
        v1::CreateJoinTokenRequest { region: "eu".into(), tenant_id: "acme".into(), ..Default::default() };
    let of_acme = AgentServiceClient::new(plane.admin()).create_join_token(bound).await.unwrap();
    let of_acme = of_acme.into_inner().join_token;
    for (token, tenant_id) in [(&of_platform, "acme"), (&of_acme, ""), (&of_acme, "other")] {
        let refused = ask(token, tenant_id).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("tenant_id"), "{}", refused.message());
    }
    ask(&of_platform, "").await.unwrap();
    ask(&of_acme, "acme").await.unwrap();
    plane.stop().await;
}
