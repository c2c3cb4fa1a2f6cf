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
