//! Every change and every look at a secret is on record, and nothing else is.

mod everything;
mod deadlines;

use gateway_proto::v1::{
    audit_service_client::AuditServiceClient, tenant_service_client::TenantServiceClient,
};

use super::*;
use crate::audit::diff;

/// Methods that write an audit entry: those that change configuration, opt-outs, tenants, keys, agents or
/// secrets, the one that shows a secret, and the one that has a webhook sent.
const AUDITED: [&str; 29] = [
    "AgentService/CreateJoinToken",
    "AgentService/DrainAgent",
    "AgentService/RevokeAgent",
    "AgentSyncService/EnrollAgent",
    "AgentSyncService/ReportLogs",
    "InboundRouteService/AddInboundRouteSecret",
    "InboundRouteService/CreateInboundRoute",
    "InboundRouteService/DeleteInboundRoute",
    "InboundRouteService/RemoveInboundRouteSecret",
    "InboundRouteService/UpdateInboundRoute",
    "InstanceService/CreateInstance",
    "InstanceService/DeleteInstance",
    "InstanceService/UpdateInstance",
    "OptOutService/CreateOptOut",
    "OptOutService/DeleteOptOut",
    "OptOutService/UpdateOptOutPolicy",
    "TenantService/CreateApiKey",
    "TenantService/CreateTenant",
    "TenantService/DeleteTenant",
    "TenantService/RevokeApiKey",
    "TenantService/UpdateTenant",
    "WebhookSubscriptionService/CreateWebhookSubscription",
    "WebhookSubscriptionService/DeleteWebhookSubscription",
    "WebhookSubscriptionService/GetSigningSecret",
    "WebhookSubscriptionService/PauseWebhookSubscription",
    "WebhookSubscriptionService/ResumeWebhookSubscription",
    "WebhookSubscriptionService/RotateSigningSecret",
    "WebhookSubscriptionService/SendTestEvent",
    "WebhookSubscriptionService/UpdateWebhookSubscription",
];

/// Methods that write none: they read, or (the last ones) what they do is recorded elsewhere or not at all.
const SILENT: [&str; 26] = [
    "AgentService/GetAgent",
    "AgentService/ListAgents",
    "AgentService/WatchAgents",
    "AuditService/ListAuditEntries",
    "InboundLogService/GetInboundLog",
    "InboundLogService/ListDeliveryAttempts",
    "InboundLogService/ListInboundLogs",
    "InboundLogService/WatchInboundLogs",
    "InboundRouteService/GetInboundRoute",
    "InboundRouteService/ListInboundRoutes",
    "InboundRouteService/ListUnroutedCallbacks",
    "InstanceService/DiagnoseInstance",
    "InstanceService/GetInstance",
    "InstanceService/ListInstances",
    "OptOutService/CheckSuppression",
    "OptOutService/GetOptOut",
    "OptOutService/GetOptOutPolicy",
    "OptOutService/ListOptOuts",
    "TenantService/GetTenant",
    "TenantService/ListApiKeys",
    "TenantService/ListTenants",
    "WebhookSubscriptionService/GetWebhookSubscription",
    "WebhookSubscriptionService/ListWebhookSubscriptions",
    // An agent renews what it has, every day. Streams carry what others did.
    "AgentSyncService/RenewAgentCertificate",
    "AgentSyncService/StreamConfig",
    "AgentSyncService/StreamWork",
];

impl Server {
    fn audit(&self) -> AuditServiceClient<Client> {
        AuditServiceClient::new(self.admin())
    }

    fn tenants(&self) -> TenantServiceClient<Client> {
        TenantServiceClient::new(self.admin())
    }

    /// All entries, the oldest first, read page by page.
    async fn entries(&self) -> Vec<v1::AuditEntry> {
        let (mut entries, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::ListAuditEntriesRequest { page_size: 3, page_token, ..Default::default() };
            let page = self.audit().list_audit_entries(request).await.unwrap().into_inner();
            assert!(page.audit_entries.len() <= 3);
            entries.extend(page.audit_entries);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                entries.reverse();
                return entries;
            }
        }
    }

    /// A key of a tenant, which is made when there is none yet.
    async fn key_of(&self, tenant_id: &str, role: v1::Role) -> Client {
        let tenant = Some(v1::Tenant { id: tenant_id.into(), ..Default::default() });
        let made =
            self.tenants().create_tenant(v1::CreateTenantRequest { tenant, ..Default::default() }).await;
        assert!(made.is_ok() || refusal(made.map(|_| ())).0 == Code::AlreadyExists);
        let key = v1::ApiKey {
            tenant_id: tenant_id.into(),
            role: role.into(),
            display_name: "test".into(),
            ..Default::default()
        };
        let request = v1::CreateApiKeyRequest { api_key: Some(key), ..Default::default() };
        let secret = self.tenants().create_api_key(request).await.unwrap().into_inner().secret;
        self.with(Bearer::new(&secret))
    }
}

/// Somebody has decided of every method of the contract whether it is audited; a new one fails this.
#[test]
fn every_method_is_audited_or_silent_on_purpose() {
    let mut known: Vec<String> = Vec::new();
    for service in diff::pool().services() {
        known.extend(service.methods().map(|method| format!("{}/{}", service.name(), method.name())));
    }
    known.sort();
    let mut decided: Vec<String> = AUDITED.into_iter().chain(SILENT).map(str::to_owned).collect();
    decided.sort();
    assert_eq!(known, decided);
}

fn of_tenant(tenant_id: &str) -> v1::ListAuditEntriesRequest {
    v1::ListAuditEntriesRequest { tenant_id: tenant_id.into(), ..Default::default() }
}

/// What is refused, repeated or only read leaves no entry.
#[tokio::test]
async fn refused_calls_write_nothing() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let viewer = server.key_of("default", v1::Role::Viewer).await;
    let once = v1::CreateInstanceRequest {
        instance: Some(instance("inst_2", "1002")),
        request_id: "once".into(),
        ..Default::default()
    };
    server.instances().create_instance(once.clone()).await.unwrap();
    let before = server.entries().await;
    server.instances().create_instance(once).await.unwrap();
    let renamed = |etag: &str| v1::UpdateInstanceRequest {
        instance: Some(v1::Instance { id: "inst_1".into(), etag: etag.into(), ..Default::default() }),
        update_mask: mask(&["display_name"]),
    };
    assert_eq!(refusal(server.instances().update_instance(renamed("1-old")).await).0, Code::Aborted);
    let unnamed = v1::UpdateInstanceRequest { update_mask: None, ..renamed("") };
    assert_eq!(refusal(server.instances().update_instance(unnamed).await).0, Code::InvalidArgument);
    let in_use = v1::DeleteInstanceRequest { id: "inst_1".into(), ..Default::default() };
    assert_eq!(refusal(server.instances().delete_instance(in_use).await).0, Code::FailedPrecondition);
    let denied = InstanceServiceClient::new(viewer.clone()).update_instance(renamed("")).await;
    assert_eq!(refusal(denied).0, Code::PermissionDenied);
    let secret = |id: &str| v1::GetSigningSecretRequest { id: id.into() };
    assert_eq!(refusal(server.subscriptions().get_signing_secret(secret("sub_9")).await).0, Code::NotFound);
    let denied = WebhookSubscriptionServiceClient::new(viewer).get_signing_secret(secret("sub_1")).await;
    assert_eq!(refusal(denied).0, Code::PermissionDenied);
    server.instances().list_instances(v1::ListInstancesRequest::default()).await.unwrap();
    assert_eq!(server.entries().await, before);
    server.stop().await;
}

/// Admins of a tenant see their tenant's entries only, whatever they ask for; lesser roles see none.
#[tokio::test]
async fn tenants_see_their_own_entries() {
    let server = Server::start().await.with_instance().await;
    let acme = server.key_of("acme", v1::Role::TenantAdmin).await;
    let operator = server.key_of("acme", v1::Role::Operator).await;
    let mut audit = AuditServiceClient::new(acme.clone());
    let made = v1::CreateInboundRouteRequest { inbound_route: Some(route("route_2")), ..Default::default() };
    InboundRouteServiceClient::new(acme).create_inbound_route(made).await.unwrap();
    for named in ["", "acme"] {
        let found = audit.list_audit_entries(of_tenant(named)).await.unwrap().into_inner().audit_entries;
        let seen: Vec<_> =
            found.iter().map(|entry| (entry.method.as_str(), entry.tenant_id.as_str())).collect();
        let expected = [
            ("InboundRouteService/CreateInboundRoute", "acme"),
            ("TenantService/CreateApiKey", "acme"),
            ("TenantService/CreateApiKey", "acme"),
            ("TenantService/CreateTenant", "acme"),
        ];
        assert_eq!(seen, expected);
        assert!(found[0].actor.starts_with("api_key:key_"), "{}", found[0].actor);
    }
    let others = v1::ListAuditEntriesRequest { resource_id: "inst_1".into(), ..Default::default() };
    assert_eq!(audit.list_audit_entries(others.clone()).await.unwrap().into_inner().audit_entries, []);
    assert_eq!(server.audit().list_audit_entries(others).await.unwrap().into_inner().audit_entries.len(), 1);
    assert_eq!(refusal(audit.list_audit_entries(of_tenant("default")).await).0, Code::NotFound);
    let denied = AuditServiceClient::new(operator).list_audit_entries(of_tenant("")).await;
    assert_eq!(refusal(denied).0, Code::PermissionDenied);
    let first = v1::ListAuditEntriesRequest { page_size: 1, ..Default::default() };
    let token = server.audit().list_audit_entries(first).await.unwrap().into_inner().next_page_token;
    let stolen = v1::ListAuditEntriesRequest { page_token: token, ..Default::default() };
    assert_eq!(bad_fields(audit.list_audit_entries(stolen).await), ["page_token"]);
    server.stop().await;
}

/// Filters are checked and hold together, and a page token belongs to its filters.
#[tokio::test]
async fn filters_are_honoured() {
    let server = Server::start().await.with_instance().await;
    let list =
        async |request| server.audit().list_audit_entries(request).await.map(tonic::Response::into_inner);
    let all = list(v1::ListAuditEntriesRequest::default()).await.unwrap().audit_entries;
    let types: Vec<_> = all.iter().map(|entry| entry.resource_type.as_str()).collect();
    assert_eq!(types, ["instance", "inbound_route"]);
    assert!(all[0].id > all[1].id, "later entries have greater ids");
    let by = |resource_type: &str, actor: &str| v1::ListAuditEntriesRequest {
        resource_type: resource_type.into(),
        actor: actor.into(),
        ..Default::default()
    };
    assert_eq!(list(by("inbound_route", "admin_key")).await.unwrap().audit_entries, [all[1].clone()]);
    assert_eq!(list(by("inbound_route", "gateway")).await.unwrap().audit_entries, []);
    let (start_time, end_time) = (all[1].time, all[0].time);
    let between = v1::ListAuditEntriesRequest { start_time, end_time, ..Default::default() };
    assert_eq!(list(between).await.unwrap().audit_entries, [all[1].clone()]);
    let first = v1::ListAuditEntriesRequest { page_size: 1, ..Default::default() };
    let page_token = list(first).await.unwrap().next_page_token;
    let next = v1::ListAuditEntriesRequest { page_token, ..by("instance", "") };
    assert_eq!(bad_fields(list(next).await), ["page_token"]);
    let endless = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
    let never = v1::ListAuditEntriesRequest { start_time: endless, ..Default::default() };
    assert_eq!(bad_fields(list(never).await), ["start_time"]);
    server.stop().await;
}
