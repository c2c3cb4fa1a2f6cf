use super::{world::*, *};

async fn delete(server: &Server, id: &str) -> Result<(), Status> {
    let request = v1::DeleteTenantRequest { id: id.into(), ..Default::default() };
    tenants(server.admin()).delete_tenant(request).await.map(|_| ())
}

async fn get(client: Client, id: &str) -> Result<v1::Tenant, Status> {
    let request = v1::GetTenantRequest { id: id.into() };
    Ok(tenants(client).get_tenant(request).await?.into_inner().tenant.unwrap())
}

/// Tenants are made, read, listed, changed under their etag and deleted; `default` is there and stays.
#[tokio::test]
async fn tenants_live_and_die() {
    let server = Server::start().await;
    let created = server.create_tenant("acme").await.unwrap();
    assert_eq!(get(server.admin(), "acme").await.unwrap(), created);
    assert!(server.create_tenant("").await.unwrap().id.starts_with("ten_"));
    assert_eq!(refusal(server.create_tenant("acme").await).0, Code::AlreadyExists);
    assert_eq!(bad_fields(server.create_tenant("Acme").await), ["tenant.id"]);
    let request = v1::ListTenantsRequest::default();
    let listed = tenants(server.admin()).list_tenants(request.clone()).await.unwrap().into_inner().tenants;
    assert_eq!(
        listed.iter().map(|tenant| tenant.id.as_str()).take(2).collect::<Vec<_>>(),
        ["acme", "default"]
    );
    let own = server.caller("acme", v1::Role::TenantAdmin).await;
    let listed = tenants(own.clone()).list_tenants(request).await.unwrap().into_inner().tenants;
    assert_eq!(listed, std::slice::from_ref(&created));
    let renamed = v1::Tenant { display_name: "Acme".into(), ..created.clone() };
    let update = v1::UpdateTenantRequest { tenant: Some(renamed), update_mask: mask(&["display_name"]) };
    let updated =
        tenants(own.clone()).update_tenant(update.clone()).await.unwrap().into_inner().tenant.unwrap();
    assert!(updated.display_name == "Acme" && updated.etag != created.etag);
    assert_eq!(refusal(tenants(own).update_tenant(update).await).1, "STALE_ETAG");
    assert_eq!(refusal(delete(&server, "default").await).1, "DEFAULT_TENANT");
    delete(&server, "acme").await.unwrap();
    assert_eq!(refusal(get(server.admin(), "acme").await).0, Code::NotFound);
    assert_eq!(refusal(delete(&server, "acme").await).0, Code::NotFound);
    assert_eq!(refusal(server.create_tenant("acme").await).0, Code::AlreadyExists, "its logs may be there");
    server.stop().await;
}

/// A tenant goes when nothing of it is left, and with it its keys and what they opened.
#[tokio::test]
async fn deletion_ends_calls_of_the_tenant() {
    let server = Server::start().await;
    server.create_tenant("acme").await.unwrap();
    let owner = server.caller("acme", v1::Role::TenantAdmin).await;
    let request =
        v1::CreateInboundRouteRequest { inbound_route: Some(route("acme-route")), ..Default::default() };
    InboundRouteServiceClient::new(owner.clone()).create_inbound_route(request).await.unwrap();
    assert_eq!(refusal(delete(&server, "acme").await).1, "IN_USE");
    let request = v1::DeleteInboundRouteRequest { id: "acme-route".into(), ..Default::default() };
    InboundRouteServiceClient::new(owner.clone()).delete_inbound_route(request).await.unwrap();
    let watch = logs(owner.clone()).watch_inbound_logs(v1::WatchInboundLogsRequest::default()).await;
    let mut watch = watch.unwrap().into_inner();
    delete(&server, "acme").await.unwrap();
    let ended = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap();
    assert_eq!(refusal(ended).0, Code::Unauthenticated);
    assert_eq!(refusal(get(owner, "acme").await).0, Code::Unauthenticated);
    server.stop().await;
}

/// A `request_id` is the tenant's own: another tenant that uses the same one gets no answer of the first.
#[tokio::test]
async fn request_ids_do_not_cross_tenants() {
    let server = Server::start().await;
    server.create_tenant("aaa-tenant").await.unwrap();
    let request = v1::CreateInboundRouteRequest {
        inbound_route: Some(route("")),
        request_id: "once".into(),
        ..Default::default()
    };
    let mut ids = Vec::new();
    let callers = [
        server.caller("aaa-tenant", v1::Role::TenantAdmin).await,
        server.caller("default", v1::Role::TenantAdmin).await,
        server.admin(),
    ];
    for caller in &callers {
        let mut routes = InboundRouteServiceClient::new(caller.clone());
        let first = routes.create_inbound_route(request.clone()).await.unwrap().into_inner();
        let again = routes.create_inbound_route(request.clone()).await.unwrap().into_inner();
        assert_eq!(first, again);
        ids.push(first.inbound_route.unwrap().id);
    }
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
    server.stop().await;
}

/// An id stays its tenant's when what had it is gone: what agents still report of it is for that tenant, and
/// nobody else can take it.
#[tokio::test]
async fn ids_of_the_deleted_stay_with_their_tenant() {
    let server = Server::start().await;
    server.create_tenant("aaa-tenant").await.unwrap();
    let [owner, other] = ["aaa-tenant", "default"].map(|tenant| server.caller(tenant, v1::Role::TenantAdmin));
    let (owner, other) = (owner.await, other.await);
    let create = |client: Client| async move {
        let request = v1::CreateInstanceRequest {
            instance: Some(v1::Instance { inbound_route_id: String::new(), ..instance("inst_1", "1") }),
            inbound_route: Some(route("")),
            ..Default::default()
        };
        InstanceServiceClient::new(client).create_instance(request).await
    };
    create(owner.clone()).await.unwrap();
    let request = v1::DeleteInstanceRequest { id: "inst_1".into(), ..Default::default() };
    InstanceServiceClient::new(owner.clone()).delete_instance(request).await.unwrap();
    assert_eq!(refusal(create(other.clone()).await).0, Code::AlreadyExists);
    server.report(vec![event("inst_1", "evt_late")]).await;
    let get = v1::GetInboundLogRequest { event_id: "evt_late".into() };
    assert_eq!(refusal(logs(other).get_inbound_log(get.clone()).await).0, Code::NotFound);
    logs(owner.clone()).get_inbound_log(get).await.unwrap();
    create(owner).await.unwrap();
    server.stop().await;
}

/// An agent of one tenant reports for that tenant alone; what it says of others is skipped.
#[tokio::test]
async fn agents_of_a_tenant_report_for_it_alone() {
    let server = Server::start().await.with_instance().await;
    server.create_tenant("acme").await.unwrap();
    let own = v1::InboundRoute { tenant_id: "acme".into(), ..route("acme-route") };
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(own), ..Default::default() };
    server.routes().create_inbound_route(request).await.unwrap();
    let own = v1::Instance { inbound_route_id: "acme-route".into(), ..instance("acme-instance", "1") };
    server.create_instance(own).await.unwrap();
    server.report_as("acme", vec![event("inst_1", "evt_1"), event("acme-instance", "evt_2")]).await;
    let list = v1::ListInboundLogsRequest::default();
    let listed = logs(server.admin()).list_inbound_logs(list).await.unwrap().into_inner().inbound_logs;
    assert_eq!(listed.iter().map(|log| log.event_id.as_str()).collect::<Vec<_>>(), ["evt_2"]);
    server.stop().await;
}

/// What a platform admin creates belongs to the tenant of its parent, or the one that is named, or `default`.
#[tokio::test]
async fn platform_admin_creates_for_tenants() {
    let server = Server::start().await;
    server.create_tenant("acme").await.unwrap();
    let own = v1::InboundRoute { tenant_id: "acme".into(), ..route("acme-route") };
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(own), ..Default::default() };
    let made = server.routes().create_inbound_route(request).await.unwrap().into_inner();
    assert_eq!(made.inbound_route.unwrap().tenant_id, "acme");
    let on_route = |id: &str, number: &str| v1::Instance {
        inbound_route_id: "acme-route".into(),
        ..instance(id, number)
    };
    assert_eq!(server.create_instance(on_route("inst_1", "1")).await.unwrap().tenant_id, "acme");
    let foreign = v1::Instance { tenant_id: "default".into(), ..on_route("inst_2", "2") };
    assert_eq!(refusal(server.create_instance(foreign).await).0, Code::NotFound, "the route is acme's");
    let sub = server.create_subscription(subscription("sub_1")).await.unwrap();
    assert_eq!(sub.tenant_id, "acme");
    let nobodys = v1::InboundRoute { tenant_id: "nobody".into(), ..route("route_2") };
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(nobodys), ..Default::default() };
    assert_eq!(refusal(server.routes().create_inbound_route(request).await).0, Code::NotFound);
    server.stop().await;
}
