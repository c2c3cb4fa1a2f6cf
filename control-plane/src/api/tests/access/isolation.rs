//! Every method, called by one tenant with the ids of another.

use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MethodDescriptor, ReflectMessage as _};

use super::{world::*, *};

/// Fields that end like ids and name no resource of ours.
const NO_RESOURCES: [&str; 6] = [
    "request_id",
    "external_message_id",
    "provider_number_id",
    "provider_account_id",
    "user_id",
    "contact_user_id",
];

/// Methods after which the methods before them would find nothing, in the order in which they work.
const LAST: [&str; 6] = [
    "InboundRouteService/RemoveInboundRouteSecret",
    "OptOutService/DeleteOptOut",
    "WebhookSubscriptionService/DeleteWebhookSubscription",
    "InstanceService/DeleteInstance",
    "InboundRouteService/DeleteInboundRoute",
    "TenantService/RevokeApiKey",
];

/// What another tenant gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// NOT_FOUND: it is about one resource.
    NotFound,
    /// An answer without anything of the owner.
    Clean,
    /// PERMISSION_DENIED: only platform admins call it.
    Denied,
}

use Expected::{Clean, Denied, NotFound};

/// What there is of tenant `aaa-tenant`, with an id in every form that names something.
struct Owned {
    secret_id: String,
    opt_out_id: String,
    key_id: String,
}

const EVENT: &str = "evt_aaaaaaaaaaaaaaaaaaaaaaaaaa";

impl Owned {
    /// What shows in an answer that it has something of the owner.
    fn marks(&self) -> Vec<&[u8]> {
        vec![b"aaa-", EVENT.as_bytes(), self.secret_id.as_bytes(), self.opt_out_id.as_bytes()]
    }
}

async fn prepare(server: &Server) -> Owned {
    server.create_tenant("aaa-tenant").await.unwrap();
    server.create_tenant("bbb-tenant").await.unwrap();
    let owner = server.caller("aaa-tenant", v1::Role::TenantAdmin).await;
    let route =
        v1::CreateInboundRouteRequest { inbound_route: Some(route("aaa-route")), ..Default::default() };
    let mut routes = InboundRouteServiceClient::new(owner.clone());
    let route = routes.create_inbound_route(route).await.unwrap().into_inner().inbound_route.unwrap();
    let request = v1::CreateInstanceRequest { instance: Some(own_instance()), ..Default::default() };
    InstanceServiceClient::new(owner.clone()).create_instance(request).await.unwrap();
    let request = v1::CreateWebhookSubscriptionRequest {
        webhook_subscription: Some(own_subscription("aaa-instance-sub")),
        ..Default::default()
    };
    let mut subscriptions = WebhookSubscriptionServiceClient::new(owner.clone());
    subscriptions.create_webhook_subscription(request).await.unwrap();
    let request = v1::CreateOptOutRequest { opt_out: Some(own_opt_out("")), ..Default::default() };
    let opt_out = OptOutServiceClient::new(owner.clone()).create_opt_out(request).await.unwrap();
    let key = v1::ApiKey { display_name: "aaa-key".into(), ..key_of("", v1::Role::Viewer) };
    let (key, _) = create_key(owner.clone(), key).await.unwrap();
    let reports = vec![event("aaa-instance", EVENT), unrouted("aaa-route", "aaa-payload")];
    server.report(reports).await;
    Owned {
        secret_id: route.secrets[0].id.clone(),
        opt_out_id: opt_out.into_inner().opt_out.unwrap().id,
        key_id: key.id,
    }
}

fn own_instance() -> v1::Instance {
    v1::Instance {
        tenant_id: "aaa-tenant".into(),
        inbound_route_id: "aaa-route".into(),
        ..instance("aaa-instance", "1001")
    }
}

fn own_subscription(id: &str) -> v1::WebhookSubscription {
    v1::WebhookSubscription {
        tenant_id: "aaa-tenant".into(),
        instance_id: "aaa-instance".into(),
        ..subscription(id)
    }
}

fn own_opt_out(id: &str) -> v1::OptOut {
    v1::OptOut {
        id: id.into(),
        tenant_id: "aaa-tenant".into(),
        instance_id: "aaa-instance".into(),
        phone: "+966500000001".into(),
        ..Default::default()
    }
}

/// A request with the owner's ids that would be good if the owner made it, and what another tenant gets for
/// it. None for a method that nobody thought of.
fn case(method: &str, owned: &Owned) -> Option<(Expected, Vec<u8>)> {
    let (service, rpc) = method.split_once('/').unwrap();
    match service {
        "InstanceService" => instances(rpc),
        "InboundRouteService" => inbound_routes(rpc, owned),
        "WebhookSubscriptionService" => subscriptions(rpc),
        "OptOutService" => opt_outs(rpc, owned),
        "InboundLogService" => inbound_logs(rpc),
        "TenantService" => tenants_and_keys(rpc, owned),
        "AuditService" => audit(rpc),
        // Agents belong to the platform.
        "AgentService" => Some((Denied, Vec::new())),
        _ => None,
    }
}

fn instances(rpc: &str) -> Option<(Expected, Vec<u8>)> {
    let id = "aaa-instance".to_owned();
    Some(match rpc {
        "CreateInstance" => {
            let instance = v1::Instance {
                id: "aaa-another".into(),
                provider_number_id: "1002".into(),
                ..own_instance()
            };
            let request = v1::CreateInstanceRequest { instance: Some(instance), ..Default::default() };
            (NotFound, request.encode_to_vec())
        }
        "GetInstance" => (NotFound, v1::GetInstanceRequest { id }.encode_to_vec()),
        "ListInstances" => {
            let inbound_route_id = "aaa-route".into();
            (Clean, v1::ListInstancesRequest { inbound_route_id, ..Default::default() }.encode_to_vec())
        }
        "UpdateInstance" => {
            let request =
                v1::UpdateInstanceRequest { instance: Some(own_instance()), update_mask: mask(&["*"]) };
            (NotFound, request.encode_to_vec())
        }
        "DeleteInstance" => {
            (NotFound, v1::DeleteInstanceRequest { id, ..Default::default() }.encode_to_vec())
        }
        "DiagnoseInstance" => (NotFound, v1::DiagnoseInstanceRequest { id }.encode_to_vec()),
        _ => return None,
    })
}

fn inbound_routes(rpc: &str, owned: &Owned) -> Option<(Expected, Vec<u8>)> {
    let id = "aaa-route".to_owned();
    Some(match rpc {
        "CreateInboundRoute" => {
            let route = v1::InboundRoute { tenant_id: "aaa-tenant".into(), ..route("aaa-another") };
            let request = v1::CreateInboundRouteRequest { inbound_route: Some(route), ..Default::default() };
            (NotFound, request.encode_to_vec())
        }
        "GetInboundRoute" => (NotFound, v1::GetInboundRouteRequest { id }.encode_to_vec()),
        "ListInboundRoutes" => (Clean, v1::ListInboundRoutesRequest::default().encode_to_vec()),
        "UpdateInboundRoute" => {
            let inbound_route = v1::InboundRoute { tenant_id: "aaa-tenant".into(), ..route(&id) };
            let request = v1::UpdateInboundRouteRequest {
                inbound_route: Some(inbound_route),
                update_mask: mask(&["display_name"]),
            };
            (NotFound, request.encode_to_vec())
        }
        "DeleteInboundRoute" => {
            (NotFound, v1::DeleteInboundRouteRequest { id, ..Default::default() }.encode_to_vec())
        }
        "AddInboundRouteSecret" => {
            let kind = v1::InboundRouteSecretKind::MetaAppSecret.into();
            let value = "another-app-secret".into();
            (
                NotFound,
                v1::AddInboundRouteSecretRequest { id, kind, value, ..Default::default() }.encode_to_vec(),
            )
        }
        "RemoveInboundRouteSecret" => {
            let secret_id = owned.secret_id.clone();
            (NotFound, v1::RemoveInboundRouteSecretRequest { id, secret_id }.encode_to_vec())
        }
        "ListUnroutedCallbacks" => {
            let request = v1::ListUnroutedCallbacksRequest { inbound_route_id: id, ..Default::default() };
            (Clean, request.encode_to_vec())
        }
        _ => return None,
    })
}

fn subscriptions(rpc: &str) -> Option<(Expected, Vec<u8>)> {
    let id = "aaa-instance-sub".to_owned();
    let request = match rpc {
        "CreateWebhookSubscription" => v1::CreateWebhookSubscriptionRequest {
            webhook_subscription: Some(own_subscription("aaa-another")),
            ..Default::default()
        }
        .encode_to_vec(),
        "GetWebhookSubscription" => v1::GetWebhookSubscriptionRequest { id }.encode_to_vec(),
        "ListWebhookSubscriptions" => {
            let instance_id = "aaa-instance".into();
            let request = v1::ListWebhookSubscriptionsRequest { instance_id, ..Default::default() };
            return Some((Clean, request.encode_to_vec()));
        }
        "UpdateWebhookSubscription" => v1::UpdateWebhookSubscriptionRequest {
            webhook_subscription: Some(own_subscription(&id)),
            update_mask: mask(&["destination_url", "events"]),
        }
        .encode_to_vec(),
        "DeleteWebhookSubscription" => {
            v1::DeleteWebhookSubscriptionRequest { id, ..Default::default() }.encode_to_vec()
        }
        "PauseWebhookSubscription" => {
            v1::PauseWebhookSubscriptionRequest { id, ..Default::default() }.encode_to_vec()
        }
        "ResumeWebhookSubscription" => v1::ResumeWebhookSubscriptionRequest { id }.encode_to_vec(),
        "RotateSigningSecret" => v1::RotateSigningSecretRequest { id, ..Default::default() }.encode_to_vec(),
        "GetSigningSecret" => v1::GetSigningSecretRequest { id }.encode_to_vec(),
        "SendTestEvent" => v1::SendTestEventRequest { id }.encode_to_vec(),
        _ => return None,
    };
    Some((NotFound, request))
}

fn opt_outs(rpc: &str, owned: &Owned) -> Option<(Expected, Vec<u8>)> {
    let (id, instance_id) = (owned.opt_out_id.clone(), "aaa-instance".to_owned());
    let request = match rpc {
        "CheckSuppression" => v1::CheckSuppressionRequest {
            instance_id,
            phone: "+966500000001".into(),
            purpose: v1::Purpose::Marketing.into(),
            ..Default::default()
        }
        .encode_to_vec(),
        "CreateOptOut" => {
            let opt_out = Some(own_opt_out(&id));
            v1::CreateOptOutRequest { opt_out, ..Default::default() }.encode_to_vec()
        }
        "GetOptOut" => v1::GetOptOutRequest { id }.encode_to_vec(),
        "ListOptOuts" => {
            let request = v1::ListOptOutsRequest { instance_id, ..Default::default() };
            return Some((Clean, request.encode_to_vec()));
        }
        "DeleteOptOut" => v1::DeleteOptOutRequest { id, ..Default::default() }.encode_to_vec(),
        "GetOptOutPolicy" => v1::GetOptOutPolicyRequest { instance_id }.encode_to_vec(),
        "UpdateOptOutPolicy" => {
            let opt_out_policy = Some(v1::OptOutPolicy { instance_id, ..Default::default() });
            let update_mask = mask(&["tenant_wide"]);
            v1::UpdateOptOutPolicyRequest { opt_out_policy, update_mask }.encode_to_vec()
        }
        _ => return None,
    };
    Some((NotFound, request))
}

fn inbound_logs(rpc: &str) -> Option<(Expected, Vec<u8>)> {
    let (event_id, instance_id) = (EVENT.to_owned(), "aaa-instance".to_owned());
    Some(match rpc {
        "ListInboundLogs" => {
            (Clean, v1::ListInboundLogsRequest { instance_id, ..Default::default() }.encode_to_vec())
        }
        "GetInboundLog" => (NotFound, v1::GetInboundLogRequest { event_id }.encode_to_vec()),
        "WatchInboundLogs" => {
            let start_time = Some(prost_types::Timestamp { seconds: 1_600_000_000, nanos: 0 });
            let request = v1::WatchInboundLogsRequest { instance_id, start_time, ..Default::default() };
            (Clean, request.encode_to_vec())
        }
        "ListDeliveryAttempts" => {
            let subscription_id = "aaa-instance-sub".into();
            let request = v1::ListDeliveryAttemptsRequest { event_id, subscription_id, ..Default::default() };
            (NotFound, request.encode_to_vec())
        }
        _ => return None,
    })
}

fn tenants_and_keys(rpc: &str, owned: &Owned) -> Option<(Expected, Vec<u8>)> {
    let id = "aaa-tenant".to_owned();
    Some(match rpc {
        "CreateTenant" | "DeleteTenant" => (Denied, Vec::new()),
        "GetTenant" => (NotFound, v1::GetTenantRequest { id }.encode_to_vec()),
        "ListTenants" => (Clean, v1::ListTenantsRequest::default().encode_to_vec()),
        "UpdateTenant" => {
            let tenant = Some(v1::Tenant { id, ..Default::default() });
            let update_mask = mask(&["display_name"]);
            (NotFound, v1::UpdateTenantRequest { tenant, update_mask }.encode_to_vec())
        }
        "CreateApiKey" => {
            let key = v1::ApiKey { id: "aaa-key".into(), ..key_of(&id, v1::Role::Viewer) };
            (NotFound, v1::CreateApiKeyRequest { api_key: Some(key), ..Default::default() }.encode_to_vec())
        }
        "ListApiKeys" => {
            let request = v1::ListApiKeysRequest { tenant_id: id, ..Default::default() };
            (NotFound, request.encode_to_vec())
        }
        "RevokeApiKey" => (
            NotFound,
            v1::RevokeApiKeyRequest { id: owned.key_id.clone(), ..Default::default() }.encode_to_vec(),
        ),
        _ => return None,
    })
}

fn audit(rpc: &str) -> Option<(Expected, Vec<u8>)> {
    let request = v1::ListAuditEntriesRequest {
        tenant_id: "aaa-tenant".into(),
        resource_id: "aaa-instance".into(),
        ..Default::default()
    };
    (rpc == "ListAuditEntries").then(|| (NotFound, request.encode_to_vec()))
}

/// Fails unless every field of a request that names a resource does name one.
fn check_names_everything(method: &str, message: &DynamicMessage) {
    for field in message.descriptor().fields() {
        if field.is_list() || field.is_map() {
            continue;
        }
        let value = message.get_field(&field);
        match field.kind() {
            Kind::Message(_) if message.has_field(&field) => {
                check_names_everything(method, value.as_message().unwrap());
            }
            Kind::String if field.name() == "id" || field.name().ends_with("_id") => {
                let is_named = NO_RESOURCES.contains(&field.name()) || !value.as_str().unwrap().is_empty();
                assert!(is_named, "the case of {method} leaves `{}` empty", field.full_name());
            }
            _ => {}
        }
    }
}

fn has_any_of(owned: &Owned, answer: &[u8]) -> bool {
    owned.marks().iter().any(|mark| answer.windows(mark.len()).any(|window| window == *mark))
}

/// The whole answer of a stream that never ends by itself: until the caller's key is revoked.
async fn watched(server: &Server, tenant_id: &str, method: &MethodDescriptor, request: Vec<u8>) -> Vec<u8> {
    let (key, secret) = create_key(server.admin(), key_of(tenant_id, v1::Role::TenantAdmin)).await.unwrap();
    let mut stream = open(server.with(Bearer::new(&secret)), method, request).await.unwrap();
    tenants(server.admin())
        .revoke_api_key(v1::RevokeApiKeyRequest { id: key.id, ..Default::default() })
        .await
        .unwrap();
    let mut answer = Vec::new();
    loop {
        match tokio::time::timeout(DEADLINE, stream.message()).await.unwrap() {
            Ok(message) => answer.extend(message.expect("it has no end")),
            Err(status) => {
                assert_eq!(status.code(), Code::Unauthenticated);
                return answer;
            }
        }
    }
}

/// Another tenant's administrator gets nothing by any method of operators, whatever ids the requests name: it
/// is NOT_FOUND, or an answer without it. The same requests are then good for the owner, so that it was the
/// ids alone. A method or a field of ids that has no case here fails.
#[tokio::test]
async fn no_method_crosses_tenants() {
    let server = Server::start().await;
    let owned = prepare(&server).await;
    let stranger = server.caller("bbb-tenant", v1::Role::TenantAdmin).await;
    let mut cases = Vec::new();
    for method in operators_methods() {
        let name = name(&method);
        let covered = case(&name, &owned);
        let (expected, request) = covered.unwrap_or_else(|| panic!("{name} has no case"));
        let message = DynamicMessage::decode(method.input(), request.as_slice()).unwrap();
        if expected != Denied {
            check_names_everything(&name, &message);
        }
        match expected {
            Denied | NotFound => {
                let code = if expected == Denied { Code::PermissionDenied } else { Code::NotFound };
                assert_eq!(refusal(call(stranger.clone(), &method, request.clone()).await).0, code, "{name}");
            }
            Clean => {
                let answer = match method.is_server_streaming() {
                    true => watched(&server, "bbb-tenant", &method, request.clone()).await,
                    false => call(stranger.clone(), &method, request.clone()).await.unwrap(),
                };
                assert!(!has_any_of(&owned, &answer), "{name}: {}", String::from_utf8_lossy(&answer));
            }
        }
        cases.push((name, method, expected, request));
    }
    let rank = |name: &str| LAST.iter().position(|last| *last == name).map_or(0, |place| place + 1);
    cases.sort_by_key(|(name, ..)| rank(name));
    // The cases made a second subscription and a second instance, which hold what is deleted last.
    let owner = server.caller("aaa-tenant", v1::Role::TenantAdmin).await;
    for (name, method, expected, request) in cases {
        if expected == Denied {
            continue;
        }
        remove_second(&owner, &name).await;
        let answer = call(owner.clone(), &method, request).await;
        let answer = answer.unwrap_or_else(|status| panic!("{name} is no good request: {status:?}"));
        assert!(expected != Clean || has_any_of(&owned, &answer), "{name} shows the owner nothing");
    }
    server.stop().await;
}

/// Deletes what the case of a creation made, before what it refers to is deleted.
async fn remove_second(owner: &Client, next: &str) {
    let id = "aaa-another".to_owned();
    match next {
        "InstanceService/DeleteInstance" => {
            let request = v1::DeleteWebhookSubscriptionRequest { id, ..Default::default() };
            let mut subscriptions = WebhookSubscriptionServiceClient::new(owner.clone());
            subscriptions.delete_webhook_subscription(request).await.unwrap();
        }
        "InboundRouteService/DeleteInboundRoute" => {
            let request = v1::DeleteInstanceRequest { id, ..Default::default() };
            InstanceServiceClient::new(owner.clone()).delete_instance(request).await.unwrap();
        }
        _ => {}
    }
}

/// A page token of one tenant is refused when another brings it, and a platform admin's too.
#[tokio::test]
async fn page_tokens_do_not_cross_tenants() {
    let server = Server::start().await;
    let owned = prepare(&server).await;
    assert!(!owned.key_id.is_empty());
    let owner = server.caller("aaa-tenant", v1::Role::TenantAdmin).await;
    let request = v1::ListApiKeysRequest { page_size: 1, ..Default::default() };
    let page = tenants(owner.clone()).list_api_keys(request.clone()).await.unwrap().into_inner();
    let next = v1::ListApiKeysRequest { page_token: page.next_page_token, ..request.clone() };
    let all = tenants(server.admin()).list_api_keys(request.clone()).await.unwrap().into_inner();
    let of_platform = v1::ListApiKeysRequest { page_token: all.next_page_token, ..request };
    let stranger = server.caller("bbb-tenant", v1::Role::TenantAdmin).await;
    for (caller, token) in [(&stranger, &next), (&stranger, &of_platform), (&owner, &of_platform)] {
        assert_eq!(bad_fields(tenants(caller.clone()).list_api_keys(token.clone()).await), ["page_token"]);
    }
    tenants(owner).list_api_keys(next).await.unwrap();
    server.stop().await;
}

/// A watch gives the caller's tenant alone, without filters and from the cursor of somebody else's watch.
#[tokio::test]
async fn watches_and_cursors_do_not_cross_tenants() {
    let server = Server::start().await;
    prepare(&server).await;
    let stranger = server.caller("bbb-tenant", v1::Role::TenantAdmin).await;
    let request = v1::CreateInstanceRequest {
        instance: Some(v1::Instance { inbound_route_id: String::new(), ..instance("bbb-instance", "7") }),
        inbound_route: Some(route("bbb-route")),
        ..Default::default()
    };
    InstanceServiceClient::new(stranger.clone()).create_instance(request).await.unwrap();
    let start_time = Some(prost_types::Timestamp { seconds: 1_600_000_000, nanos: 0 });
    let past = v1::WatchInboundLogsRequest { start_time, ..Default::default() };
    let owner = server.caller("aaa-tenant", v1::Role::Viewer).await;
    let mut owners = logs(owner).watch_inbound_logs(past.clone()).await.unwrap().into_inner();
    let cursor = owners.message().await.unwrap().unwrap().cursor;
    let resumed = v1::WatchInboundLogsRequest { cursor, ..Default::default() };
    server.report(vec![event("aaa-instance", "evt_2"), event("bbb-instance", "evt_3")]).await;
    for request in [past, resumed] {
        let mut watch = logs(stranger.clone()).watch_inbound_logs(request).await.unwrap().into_inner();
        let first = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(first.inbound_log.unwrap().event_id, "evt_3");
    }
    server.stop().await;
}
