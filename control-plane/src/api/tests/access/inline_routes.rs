//! An instance and its inbound route in one request are of one tenant.

use super::*;

async fn create(
    client: Client,
    instance: v1::Instance,
    route: v1::InboundRoute,
) -> Result<v1::CreateInstanceResponse, Status> {
    let request = v1::CreateInstanceRequest {
        instance: Some(instance),
        inbound_route: Some(route),
        ..Default::default()
    };
    Ok(InstanceServiceClient::new(client).create_instance(request).await?.into_inner())
}

/// An instance and a route with an id of its own, each naming a tenant or none.
fn pair(number: &str, of_instance: &str, of_route: &str) -> (v1::Instance, v1::InboundRoute) {
    let instance = v1::Instance {
        tenant_id: of_instance.into(),
        inbound_route_id: String::new(),
        ..instance(&format!("inst-{number}"), number)
    };
    (instance, v1::InboundRoute { tenant_id: of_route.into(), ..route(&format!("route-{number}")) })
}

/// A platform admin names the tenant at either of them or at both, and gets both in it; two names are refused, and a
/// tenant that is not there is NOT_FOUND.
#[tokio::test]
async fn both_are_of_the_tenant_that_either_names() {
    let server = Server::start().await;
    server.create_tenant("acme").await.unwrap();
    for (number, of_instance, of_route) in [("1", "acme", ""), ("2", "", "acme"), ("3", "acme", "acme")] {
        let (instance, route) = pair(number, of_instance, of_route);
        let created = create(server.admin(), instance, route).await.unwrap();
        let owners = (created.instance.unwrap().tenant_id, created.inbound_route.unwrap().tenant_id);
        assert_eq!(owners, ("acme".to_owned(), "acme".to_owned()), "{number}");
    }
    for (of_instance, of_route) in [("acme", "default"), ("default", "acme")] {
        let (instance, route) = pair("4", of_instance, of_route);
        assert_eq!(bad_fields(create(server.admin(), instance, route).await), ["inbound_route.tenant_id"]);
    }
    let (instance, route) = pair("4", "", "nobody");
    assert_eq!(refusal(create(server.admin(), instance, route).await).0, Code::NotFound);
    server.stop().await;
}

/// A tenant admin may name its own tenant at either of them; any other is NOT_FOUND, there or not, as in
/// CreateInboundRoute.
#[tokio::test]
async fn tenant_admins_name_only_their_own() {
    let server = Server::start().await;
    server.create_tenant("acme").await.unwrap();
    let admin = server.caller("acme", v1::Role::TenantAdmin).await;
    for (of_instance, of_route) in [("", "default"), ("acme", "default"), ("default", "acme"), ("", "nobody")]
    {
        let (instance, route) = pair("1", of_instance, of_route);
        assert_eq!(refusal(create(admin.clone(), instance, route).await).0, Code::NotFound);
    }
    let (instance, route) = pair("1", "", "acme");
    let created = create(admin, instance, route).await.unwrap();
    assert_eq!(created.inbound_route.unwrap().tenant_id, "acme");
    server.stop().await;
}

/// Bad fields of both are named at once, and none is made; a bad id of the route is named once.
#[tokio::test]
async fn bad_fields_of_both_are_named() {
    let server = Server::start().await;
    let instance = v1::Instance { display_name: String::new(), ..instance("Bad", "1") };
    let bad = v1::InboundRoute { id: "Bad".into(), credentials: None, ..route("") };
    let unbound = v1::Instance { inbound_route_id: "Bad".into(), ..instance.clone() };
    let fields = bad_fields(create(server.admin(), unbound, bad).await);
    assert_eq!(fields[..3], ["instance.id", "instance.display_name", "inbound_route.id"]);
    assert!(
        fields.len() > 3 && fields[3..].iter().all(|field| field.starts_with("inbound_route.")),
        "{fields:?}"
    );
    let other = v1::InboundRoute { display_name: "x".repeat(101), ..route("route_2") };
    let fields =
        ["instance.inbound_route_id", "instance.id", "instance.display_name", "inbound_route.display_name"];
    assert_eq!(bad_fields(create(server.admin(), instance, other).await), fields);
    server.stop().await;
}
