use gateway_core::api_key::Role;

use super::{world::*, *};
use crate::api::authorize::access::{self, Access};

fn needed(method: &str) -> Role {
    match access::find(method) {
        Some(Access::Operator(role)) => role,
        other => panic!("{method} is not an operators' method: {other:?}"),
    }
}

/// Every method of operators is UNAUTHENTICATED without a key, PERMISSION_DENIED with every role below its
/// need, and open with every other.
#[tokio::test]
async fn every_method_needs_its_role() {
    let server = Server::start().await;
    server.create_tenant("aaa-tenant").await.unwrap();
    let mut callers = Vec::new();
    for role in Role::ALL {
        let tenant = if role == Role::PlatformAdmin { "" } else { "aaa-tenant" };
        callers.push((role, server.caller(tenant, role.to_proto()).await));
    }
    for method in operators_methods() {
        let name = name(&method);
        let nobody = call(server.with(Bearer(None)), &method, Vec::new()).await;
        assert_eq!(refusal(nobody), (Code::Unauthenticated, "UNAUTHENTICATED".to_owned()), "{name}");
        for (role, caller) in &callers {
            let outcome = open(caller.clone(), &method, Vec::new()).await.map(|_| ());
            if *role < needed(&name) {
                let denied = (Code::PermissionDenied, "PERMISSION_DENIED".to_owned());
                assert_eq!(refusal(outcome), denied, "{name} as {role}");
            } else {
                let code = outcome.err().map(|status| status.code());
                let is_shut = matches!(code, Some(Code::PermissionDenied | Code::Unauthenticated));
                assert!(!is_shut, "{name} as {role}: {code:?}");
            }
        }
    }
    server.stop().await;
}

/// A creation that carries an inbound route needs what creating one needs.
#[tokio::test]
async fn inline_routes_need_a_tenant_admin() {
    let server = Server::start().await;
    let operator = server.caller("", v1::Role::Operator).await;
    let request = v1::CreateInstanceRequest {
        instance: Some(v1::Instance { inbound_route_id: String::new(), ..instance("inst_1", "1") }),
        inbound_route: Some(route("")),
        ..Default::default()
    };
    let refused = InstanceServiceClient::new(operator).create_instance(request.clone()).await;
    assert_eq!(refusal(refused).0, Code::PermissionDenied);
    let admin = server.caller("", v1::Role::TenantAdmin).await;
    InstanceServiceClient::new(admin).create_instance(request).await.unwrap();
    server.stop().await;
}

/// A key with scopes opens these only, and reflection, which tells what they are.
#[tokio::test]
async fn scopes_narrow_a_key() {
    let server = Server::start().await;
    let scopes = vec!["InstanceService".to_owned(), "InboundRouteService/ListInboundRoutes".to_owned()];
    let key = v1::ApiKey { scopes, ..key_of("", v1::Role::TenantAdmin) };
    let (_, secret) = create_key(server.admin(), key).await.unwrap();
    let narrow = || server.with(Bearer::new(&secret));
    let list = v1::ListInstancesRequest::default();
    InstanceServiceClient::new(narrow()).list_instances(list).await.unwrap();
    let mut routes = InboundRouteServiceClient::new(narrow());
    routes.list_inbound_routes(v1::ListInboundRoutesRequest::default()).await.unwrap();
    let get = routes.get_inbound_route(v1::GetInboundRouteRequest { id: "route_1".into() }).await;
    assert_eq!(refusal(get).0, Code::PermissionDenied);
    let tenants = tenants(narrow()).list_tenants(v1::ListTenantsRequest::default()).await;
    assert_eq!(refusal(tenants).0, Code::PermissionDenied);
    assert!(!list_services(narrow()).await.unwrap().is_empty());
    server.stop().await;
}
