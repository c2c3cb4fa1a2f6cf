use super::{world::*, *};

/// A platform route `shared` with an instance of each of two tenants.
async fn prepare() -> Server {
    let server = Server::start().await;
    let request = v1::CreateInboundRouteRequest {
        inbound_route: Some(route("shared")),
        platform: true,
        ..Default::default()
    };
    let made = server.routes().create_inbound_route(request).await.unwrap().into_inner();
    assert_eq!(made.inbound_route.unwrap().tenant_id, "");
    for (tenant, number) in [("aaa-tenant", "1"), ("bbb-tenant", "2")] {
        server.create_tenant(tenant).await.unwrap();
        let made = server.create_instance(of(tenant, number)).await.unwrap();
        assert_eq!((made.tenant_id.as_str(), made.provider_account_id.as_str()), (tenant, tenant));
    }
    server
}

fn of(tenant: &str, number: &str) -> v1::Instance {
    v1::Instance {
        tenant_id: tenant.into(),
        inbound_route_id: "shared".into(),
        provider_account_id: tenant.into(),
        ..instance(&format!("inst-{number}"), number)
    }
}

async fn update(client: Client, instance: v1::Instance, paths: &[&str]) -> Result<v1::Instance, Status> {
    let request = v1::UpdateInstanceRequest { instance: Some(instance), update_mask: mask(paths) };
    Ok(InstanceServiceClient::new(client).update_instance(request).await?.into_inner().instance.unwrap())
}

/// Only a platform admin makes a platform route, and it names no tenant.
#[tokio::test]
async fn platform_routes_are_made_by_platform_admins() {
    let server = Server::start().await;
    let request = v1::CreateInboundRouteRequest {
        inbound_route: Some(v1::InboundRoute { tenant_id: "default".into(), ..route("shared") }),
        platform: true,
        ..Default::default()
    };
    let refused = server.routes().create_inbound_route(request.clone()).await;
    assert_eq!(bad_fields(refused), ["inbound_route.tenant_id"]);
    let admin = server.caller("", v1::Role::TenantAdmin).await;
    let refused = InboundRouteServiceClient::new(admin).create_inbound_route(request).await;
    assert_eq!(refusal(refused).0, Code::PermissionDenied);
    server.stop().await;
}

/// Secrets of a platform route are rotated with overlap, by id.
#[tokio::test]
async fn platform_secrets_rotate_with_overlap() {
    let server = prepare().await;
    let id = "shared".to_owned();
    let read = async || {
        let request = v1::GetInboundRouteRequest { id: id.clone() };
        let route = server.routes().get_inbound_route(request).await.unwrap().into_inner();
        route.inbound_route.unwrap().secrets.into_iter().map(|secret| secret.id).collect::<Vec<_>>()
    };
    let before = read().await;
    let kind = v1::InboundRouteSecretKind::MetaAppSecret.into();
    let request = v1::AddInboundRouteSecretRequest {
        id: id.clone(),
        kind,
        value: "newer".into(),
        ..Default::default()
    };
    let added = server.routes().add_inbound_route_secret(request).await.unwrap().into_inner().secret.unwrap();
    let both = read().await;
    assert!(both.len() == before.len() + 1 && both.contains(&added.id) && both.contains(&before[0]));
    let request = v1::RemoveInboundRouteSecretRequest { id: id.clone(), secret_id: before[0].clone() };
    server.routes().remove_inbound_route_secret(request).await.unwrap();
    let after = read().await;
    assert!(after.contains(&added.id) && !after.contains(&before[0]));
    server.stop().await;
}

/// A tenant whose instance is on a platform route sees neither the route nor what else comes in on it, and
/// can give it no instance.
#[tokio::test]
async fn tenants_do_not_see_platform_routes() {
    let server = prepare().await;
    server.report(vec![unrouted("shared", "somebody else's")]).await;
    let admin = server.caller("aaa-tenant", v1::Role::TenantAdmin).await;
    let mut routes = InboundRouteServiceClient::new(admin.clone());
    let id = "shared".to_owned();
    let got = routes.get_inbound_route(v1::GetInboundRouteRequest { id: id.clone() }).await;
    assert_eq!(refusal(got).0, Code::NotFound);
    let listed = routes.list_inbound_routes(v1::ListInboundRoutesRequest::default()).await.unwrap();
    assert!(listed.into_inner().inbound_routes.is_empty());
    let kind = v1::InboundRouteSecretKind::MetaAppSecret.into();
    let secret =
        v1::AddInboundRouteSecretRequest { id: id.clone(), kind, value: "mine".into(), ..Default::default() };
    assert_eq!(refusal(routes.add_inbound_route_secret(secret).await).0, Code::NotFound);
    for filter in ["", "shared"] {
        let request =
            v1::ListUnroutedCallbacksRequest { inbound_route_id: filter.into(), ..Default::default() };
        let listed = routes.list_unrouted_callbacks(request.clone()).await.unwrap().into_inner();
        assert!(listed.unrouted_callbacks.is_empty());
        let listed = server.routes().list_unrouted_callbacks(request).await.unwrap().into_inner();
        assert_eq!(listed.unrouted_callbacks.len(), 1);
    }
    let request = v1::CreateInstanceRequest { instance: Some(of("aaa-tenant", "3")), ..Default::default() };
    let created = InstanceServiceClient::new(admin.clone()).create_instance(request).await;
    assert_eq!(refusal(created).0, Code::NotFound);
    let request = v1::DiagnoseInstanceRequest { id: "inst-1".into() };
    let own =
        InstanceServiceClient::new(admin).diagnose_instance(request.clone()).await.unwrap().into_inner();
    assert!(own.callback_path.is_empty());
    assert!(own.findings.iter().all(|finding| finding.reason != "UNROUTED_CALLBACKS"));
    let all = server.instances().diagnose_instance(request).await.unwrap().into_inner();
    assert!(all.callback_path.starts_with("/callbacks/meta/"));
    assert!(all.findings.iter().any(|finding| finding.reason == "UNROUTED_CALLBACKS"));
    server.stop().await;
}

/// A callback without a number goes to the instance that names its account, once that has a subscription; one of
/// an account that nobody names stays in the list, and comes back to nobody.
#[tokio::test]
async fn account_callbacks_wait_for_their_account() {
    let server = prepare().await;
    let of_account = |account: &str| {
        v1::report::Report::UnroutedCallback(v1::UnroutedCallback {
            inbound_route_id: "shared".into(),
            provider_account_id: account.into(),
            payload_json: format!("of {account}"),
            ..Default::default()
        })
    };
    server.report(vec![of_account("nobody"), of_account("aaa-tenant"), of_account("bbb-tenant")]).await;
    let left = async || {
        let request = v1::ListUnroutedCallbacksRequest::default();
        let listed = server.routes().list_unrouted_callbacks(request).await.unwrap().into_inner();
        let accounts = listed.unrouted_callbacks.into_iter().map(|callback| callback.provider_account_id);
        accounts.collect::<Vec<_>>()
    };
    assert_eq!(left().await, ["bbb-tenant", "aaa-tenant", "nobody"]);
    let sub = v1::WebhookSubscription { instance_id: "inst-1".into(), ..subscription("sub-1") };
    server.create_subscription(sub).await.unwrap();
    assert_eq!(left().await, ["bbb-tenant", "nobody"]);
    let sub = v1::WebhookSubscription { instance_id: "inst-2".into(), ..subscription("sub-2") };
    server.create_subscription(sub).await.unwrap();
    assert_eq!(left().await, ["nobody"]);
    server.stop().await;
}

/// On a platform route a tenant renames its instance, but does not choose which callbacks it gets.
#[tokio::test]
async fn tenants_do_not_reroute_on_platform_routes() {
    let server = prepare().await;
    let admin = server.caller("aaa-tenant", v1::Role::TenantAdmin).await;
    let renamed = v1::Instance { display_name: "Renamed".into(), ..of("aaa-tenant", "1") };
    assert_eq!(update(admin.clone(), renamed, &["*"]).await.unwrap().display_name, "Renamed");
    let changes = [
        ("provider_number_id", v1::Instance { provider_number_id: "9".into(), ..of("aaa-tenant", "1") }),
        ("phone_number", v1::Instance { phone_number: "+966110000000".into(), ..of("aaa-tenant", "1") }),
        (
            "provider_account_id",
            v1::Instance { provider_account_id: "bbb-tenant".into(), ..of("aaa-tenant", "1") },
        ),
    ];
    for (path, changed) in changes {
        let refused = update(admin.clone(), changed.clone(), &[path]).await;
        assert_eq!(refusal(refused).0, Code::PermissionDenied, "{path}");
        update(server.admin(), changed, &[path]).await.unwrap();
    }
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(route("own")), ..Default::default() };
    InboundRouteServiceClient::new(admin.clone()).create_inbound_route(request).await.unwrap();
    let moved = v1::Instance { inbound_route_id: "own".into(), ..of("bbb-tenant", "2") };
    let refused = update(server.admin(), moved, &["inbound_route_id"]).await;
    assert_eq!(refusal(refused).0, Code::NotFound, "the route is another tenant's");
    let request = v1::DeleteInstanceRequest { id: "inst-1".into(), ..Default::default() };
    InstanceServiceClient::new(admin).delete_instance(request).await.unwrap();
    server.stop().await;
}
