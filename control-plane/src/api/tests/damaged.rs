//! A stored resource that cannot be read is one resource less, and nothing else.

use gateway_proto::v1::audit_service_client::AuditServiceClient;

use super::*;
use crate::store::sqlite::testing;

/// Changes bytes that are sealed, as a bad disk would.
async fn damage(server: &Server, table: &str, id: &str) {
    let config = "CAST(substr(config, 1, length(config) - 4) || x'00000000' AS BLOB)";
    let sql = format!("UPDATE {table} SET config = {config} WHERE id = '{id}'");
    testing::execute(server._directory.path(), sql).await;
}

fn data_loss() -> (Code, String) {
    (Code::DataLoss, "DAMAGED_RESOURCE".to_owned())
}

/// The newest audit entry.
async fn newest(server: &Server) -> v1::AuditEntry {
    let mut client = AuditServiceClient::new(server.admin());
    let request = v1::ListAuditEntriesRequest { page_size: 1, ..Default::default() };
    client.list_audit_entries(request).await.unwrap().into_inner().audit_entries.remove(0)
}

fn could_not_be_read() -> Vec<v1::AuditChange> {
    let before = "\"(could not be read)\"".to_owned();
    vec![v1::AuditChange { field: "…".to_owned(), before, after: String::new() }]
}

async fn list(server: &Server) -> Vec<v1::WebhookSubscription> {
    let request = v1::ListWebhookSubscriptionsRequest::default();
    let response = server.subscriptions().list_webhook_subscriptions(request).await;
    response.unwrap().into_inner().webhook_subscriptions
}

/// A webhook subscription that cannot be read is shown as such in lists, beside the others; Get and changes say what
/// to do; it still holds its instance; another tenant does not hear of it; and it can be deleted, with its etag, which
/// is on record.
#[tokio::test]
async fn damaged_subscriptions_are_listed_and_deleted() {
    let server = Server::start().await.with_instance().await;
    for id in ["sub_1", "sub_2"] {
        server.create_subscription(subscription(id)).await.unwrap();
    }
    let whole = list(&server).await;
    damage(&server, "webhook_subscriptions", "sub_1").await;
    let found = list(&server).await;
    let head = v1::WebhookSubscription {
        id: "sub_1".into(),
        tenant_id: "default".into(),
        instance_id: "inst_1".into(),
        etag: whole[0].etag.clone(),
        is_damaged: true,
        ..Default::default()
    };
    assert_eq!(found, [head, whole[1].clone()]);
    let mut client = server.subscriptions();
    let get = v1::GetWebhookSubscriptionRequest { id: "sub_1".into() };
    let refused = client.get_webhook_subscription(get.clone()).await.unwrap_err();
    assert!(refused.message().contains("`sub_1`") && refused.message().contains("DeleteWebhookSubscription"));
    assert_eq!(refusal::<()>(Err(refused)), data_loss());
    assert_eq!(refusal(update(&server, subscription("sub_1"), &["events"]).await), data_loss());
    let delete = v1::DeleteInstanceRequest { id: "inst_1".into(), ..Default::default() };
    assert_eq!(refusal(server.instances().delete_instance(delete).await).1, "IN_USE");
    server.create_tenant("other").await.unwrap();
    let other = server.caller("other", v1::Role::Operator).await;
    let mut other = WebhookSubscriptionServiceClient::new(other);
    assert_eq!(refusal(other.get_webhook_subscription(get).await).0, Code::NotFound);
    let delete = |etag: &str| v1::DeleteWebhookSubscriptionRequest { id: "sub_1".into(), etag: etag.into() };
    assert_eq!(refusal(other.delete_webhook_subscription(delete("")).await).0, Code::NotFound);
    assert_eq!(refusal(client.delete_webhook_subscription(delete("stale")).await).0, Code::Aborted);
    client.delete_webhook_subscription(delete(&found[0].etag)).await.unwrap();
    assert_eq!(list(&server).await, [whole[1].clone()]);
    let entry = newest(&server).await;
    assert_eq!(
        (entry.resource_type.as_str(), entry.resource_id.as_str(), entry.tenant_id.as_str()),
        ("webhook_subscription", "sub_1", "default")
    );
    assert_eq!(entry.changes, could_not_be_read());
    server.create_subscription(subscription("sub_1")).await.unwrap();
    server.stop().await;
}

/// An inbound route whose secrets cannot be read is listed with what is known of it, and can be deleted once nothing
/// refers to it.
#[tokio::test]
async fn damaged_routes_are_listed_and_deleted() {
    let server = Server::start().await.with_route().await;
    let other = v1::CreateInboundRouteRequest { inbound_route: Some(route("route_2")), ..Default::default() };
    let other =
        server.routes().create_inbound_route(other).await.unwrap().into_inner().inbound_route.unwrap();
    let get = v1::GetInboundRouteRequest { id: "route_1".into() };
    let whole =
        server.routes().get_inbound_route(get.clone()).await.unwrap().into_inner().inbound_route.unwrap();
    damage(&server, "inbound_routes", "route_1").await;
    let list = v1::ListInboundRoutesRequest::default();
    let found = server.routes().list_inbound_routes(list).await.unwrap().into_inner().inbound_routes;
    assert_eq!(found, [v1::InboundRoute { is_damaged: true, ..whole.clone() }, other]);
    assert_eq!(refusal(server.routes().get_inbound_route(get).await), data_loss());
    let refused = server.create_instance(instance("inst_1", "1001")).await.unwrap_err();
    assert!(refused.message().contains("`route_1`") && refused.message().contains("DeleteInboundRoute"));
    assert_eq!(refusal::<()>(Err(refused)), data_loss());
    let again = v1::CreateInboundRouteRequest { inbound_route: Some(route("route_1")), ..Default::default() };
    assert_eq!(refusal(server.routes().create_inbound_route(again).await).1, "ALREADY_EXISTS");
    let delete = v1::DeleteInboundRouteRequest { id: "route_1".into(), etag: whole.etag };
    server.routes().delete_inbound_route(delete).await.unwrap();
    let entry = newest(&server).await;
    assert_eq!((entry.resource_id.as_str(), entry.changes), ("route_1", could_not_be_read()));
    server.stop().await;
}

/// The diagnosis of an instance names its inbound route when that cannot be read; the instance can be moved to another
/// one, and is diagnosed again.
#[tokio::test]
async fn a_damaged_route_is_named_by_the_diagnosis() {
    let server = Server::start().await.with_instance().await;
    let other = v1::CreateInboundRouteRequest { inbound_route: Some(route("route_2")), ..Default::default() };
    server.routes().create_inbound_route(other).await.unwrap();
    damage(&server, "inbound_routes", "route_1").await;
    let request = v1::DiagnoseInstanceRequest { id: "inst_1".into() };
    let refused = server.instances().diagnose_instance(request.clone()).await.unwrap_err();
    assert!(refused.message().contains("`route_1`") && refused.message().contains("DeleteInboundRoute"));
    assert_eq!(refusal::<()>(Err(refused)), data_loss());
    let moved = v1::Instance { inbound_route_id: "route_2".into(), ..instance("inst_1", "1001") };
    let moved = v1::UpdateInstanceRequest { instance: Some(moved), update_mask: mask(&["inbound_route_id"]) };
    server.instances().update_instance(moved).await.unwrap();
    server.instances().diagnose_instance(request).await.unwrap();
    server.stop().await;
}

/// Makes a stored body something else.
async fn spoil(server: &Server, table: &str, condition: &str) {
    let sql = format!("UPDATE {table} SET body = x'ffff' WHERE {condition}");
    testing::execute(server._directory.path(), sql).await;
}

/// An instance that cannot be read is shown as such in lists, beside the others; Get and changes say which one it is and
/// what to do; nothing is suppressed or allowed by it; and it can be deleted, which is on record.
#[tokio::test]
async fn damaged_instances_are_listed_and_deleted() {
    let server = Server::start().await.with_instance().await;
    let other = server.create_instance(instance("inst_2", "1002")).await.unwrap();
    spoil(&server, "instances", "id = 'inst_1'").await;
    let mut client = server.instances();
    let found = client.list_instances(v1::ListInstancesRequest::default()).await.unwrap().into_inner();
    let [damaged, whole] = found.instances.as_slice() else { panic!("{found:?}") };
    assert_eq!((damaged.id.as_str(), damaged.is_damaged, whole), ("inst_1", true, &other));
    let refused = client.get_instance(v1::GetInstanceRequest { id: "inst_1".into() }).await.unwrap_err();
    assert!(refused.message().contains("`inst_1`") && refused.message().contains("DeleteInstance"));
    assert_eq!(refusal::<()>(Err(refused)), data_loss());
    let check = v1::CheckSuppressionRequest {
        instance_id: "inst_1".into(),
        phone: "+966500000001".into(),
        purpose: v1::Purpose::Marketing.into(),
        ..Default::default()
    };
    assert_eq!(refusal(server.opt_outs().check_suppression(check).await), data_loss());
    let again = server.create_instance(instance("inst_1", "1003")).await;
    assert_eq!(refusal(again).1, "ALREADY_EXISTS");
    let delete = v1::DeleteInstanceRequest { id: "inst_1".into(), etag: damaged.etag.clone() };
    client.delete_instance(delete).await.unwrap();
    let entry = newest(&server).await;
    assert_eq!((entry.resource_id.as_str(), entry.changes), ("inst_1", could_not_be_read()));
    server.create_instance(instance("inst_1", "1001")).await.unwrap();
    server.stop().await;
}

/// An opt-out policy that cannot be read is not taken for another one, and can be written anew, all of it.
#[tokio::test]
async fn damaged_policies_are_written_anew() {
    let server = Server::start().await.with_instance().await;
    let mut client = server.opt_outs();
    let wanted = v1::OptOutPolicy { instance_id: "inst_1".into(), tenant_wide: true, ..Default::default() };
    let update = |paths: &[&str]| v1::UpdateOptOutPolicyRequest {
        opt_out_policy: Some(wanted.clone()),
        update_mask: mask(paths),
    };
    client.update_opt_out_policy(update(&["*"])).await.unwrap();
    spoil(&server, "opt_out_policies", "instance_id = 'inst_1'").await;
    let get = v1::GetOptOutPolicyRequest { instance_id: "inst_1".into() };
    let refused = client.get_opt_out_policy(get.clone()).await.unwrap_err();
    assert!(refused.message().contains("`inst_1`") && refused.message().contains("UpdateOptOutPolicy"));
    assert_eq!(refusal::<()>(Err(refused)), data_loss());
    assert_eq!(refusal(client.update_opt_out_policy(update(&["tenant_wide"])).await), data_loss());
    client.update_opt_out_policy(update(&["*"])).await.unwrap();
    let policy = client.get_opt_out_policy(get).await.unwrap().into_inner().opt_out_policy.unwrap();
    assert!(policy.tenant_wide);
    server.stop().await;
}

/// A tenant that cannot be read is listed; nothing new is made of it until it is written anew.
#[tokio::test]
async fn damaged_tenants_get_nothing_new() {
    let server = Server::start().await.with_route().await;
    server.create_tenant("acme").await.unwrap();
    spoil(&server, "tenants", "id IN ('acme', 'default')").await;
    let mut client = v1::tenant_service_client::TenantServiceClient::new(server.admin());
    let found = client.list_tenants(v1::ListTenantsRequest::default()).await.unwrap().into_inner().tenants;
    let found: Vec<_> = found.iter().map(|tenant| (tenant.id.as_str(), tenant.is_damaged)).collect();
    assert_eq!(found, [("acme", true), ("default", true)]);
    assert_eq!(refusal(client.get_tenant(v1::GetTenantRequest { id: "acme".into() }).await), data_loss());
    assert_eq!(refusal(server.create_instance(instance("inst_1", "1001")).await), data_loss());
    let key = v1::ApiKey { role: v1::Role::Viewer.into(), display_name: "A".into(), ..Default::default() };
    let key = v1::CreateApiKeyRequest { api_key: Some(key), ..Default::default() };
    assert_eq!(refusal(client.create_api_key(key).await), data_loss());
    let tenant = v1::Tenant { id: "default".into(), display_name: "Mended".into(), ..Default::default() };
    let update = v1::UpdateTenantRequest { tenant: Some(tenant), update_mask: mask(&["display_name"]) };
    client.update_tenant(update).await.unwrap();
    server.create_instance(instance("inst_1", "1001")).await.unwrap();
    client.delete_tenant(v1::DeleteTenantRequest { id: "acme".into(), ..Default::default() }).await.unwrap();
    let entry = newest(&server).await;
    assert_eq!((entry.resource_id.as_str(), entry.changes), ("acme", could_not_be_read()));
    server.stop().await;
}

/// An API key that cannot be read opens nothing; it is listed beside the others, which go on, and can be revoked.
#[tokio::test]
async fn damaged_keys_open_nothing_and_are_revoked() {
    let server = Server::start().await.with_instance().await;
    let mut admin = v1::tenant_service_client::TenantServiceClient::new(server.admin());
    let mut make = async |name: &str| {
        let api_key =
            v1::ApiKey { role: v1::Role::Viewer.into(), display_name: name.into(), ..Default::default() };
        let request = v1::CreateApiKeyRequest { api_key: Some(api_key), ..Default::default() };
        let made = admin.create_api_key(request).await.unwrap().into_inner();
        (made.api_key.unwrap().id, InstanceServiceClient::new(server.with(Bearer::new(&made.secret))))
    };
    let ((lost_id, mut lost), (_, mut good)) = (make("Lost").await, make("Good").await);
    let list = v1::ListInstancesRequest::default;
    lost.list_instances(list()).await.unwrap();
    spoil(&server, "api_keys", &format!("id = '{lost_id}'")).await;
    let refused = lost.list_instances(list()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("cannot be read"), "{}", refused.message());
    good.list_instances(list()).await.unwrap();
    let keys = admin.list_api_keys(v1::ListApiKeysRequest::default()).await.unwrap().into_inner().api_keys;
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().all(|key| key.is_damaged == (key.id == lost_id)));
    let revoke = v1::RevokeApiKeyRequest { id: lost_id.clone(), ..Default::default() };
    let revoked = admin.revoke_api_key(revoke).await.unwrap().into_inner();
    assert_eq!(revoked.revoked_count, 1);
    let key = revoked.api_key.unwrap();
    assert!(key.revoke_time.is_some() && !key.is_damaged && key.id == lost_id);
    assert_eq!(lost.list_instances(list()).await.unwrap_err().code(), Code::Unauthenticated);
    server.stop().await;
}

/// Damage is no reason to be taken out of service.
#[tokio::test]
async fn damage_leaves_the_control_plane_ready() {
    let server = Server::start().await.with_instance().await;
    spoil(&server, "instances", "id = 'inst_1'").await;
    server.instances().list_instances(v1::ListInstancesRequest::default()).await.unwrap();
    let address = server.running.as_ref().unwrap().admin_addr;
    let get = async |path: &str| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/metrics").await.contains("gateway_store_damaged_rows{type=\"instance\"} 1"));
    server.stop().await;
}
