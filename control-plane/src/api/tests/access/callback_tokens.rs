//! The token in a callback path, which can be all that proves a callback.

use std::collections::BTreeSet;

use gateway_core::api_key::Role;
use prost::Message;
use prost_reflect::MessageDescriptor;

use super::{world::*, *};
use crate::api::authorize::access::{self, Access};

/// Methods that a viewer may call and whose answers can hold a callback path; each is tried below.
const SHOWING: [&str; 3] = [
    "InboundRouteService/GetInboundRoute",
    "InboundRouteService/ListInboundRoutes",
    "InstanceService/DiagnoseInstance",
];

fn holds_callback_path(message: &MessageDescriptor, seen: &mut BTreeSet<String>) -> bool {
    seen.insert(message.full_name().to_owned())
        && message.fields().any(|field| {
            let kind = field.kind();
            field.name() == "callback_path"
                || kind.as_message().is_some_and(|inner| holds_callback_path(inner, seen))
        })
}

/// Somebody has looked at every method with which a viewer could read a callback path. A new one fails this until it
/// leaves the token out, and is tried below.
#[test]
fn methods_that_show_callback_paths_are_known() {
    let for_viewers = |name: &str| access::find(name) == Some(Access::Operator(Role::Viewer));
    let showing = operators_methods()
        .into_iter()
        .filter(|method| holds_callback_path(&method.output(), &mut BTreeSet::new()))
        .map(|method| name(&method))
        .filter(|name| for_viewers(name));
    assert_eq!(showing.collect::<BTreeSet<_>>(), SHOWING.map(str::to_owned).into());
}

/// What a client sees of `route_1` and `inst_1`: the callback paths, and all of the answers.
async fn seen(client: Client) -> (Vec<String>, Vec<u8>) {
    let mut routes = InboundRouteServiceClient::new(client.clone());
    let get = v1::GetInboundRouteRequest { id: "route_1".into() };
    let got = routes.get_inbound_route(get).await.unwrap().into_inner();
    let listed =
        routes.list_inbound_routes(v1::ListInboundRoutesRequest::default()).await.unwrap().into_inner();
    let diagnose = v1::DiagnoseInstanceRequest { id: "inst_1".into() };
    let diagnosed =
        InstanceServiceClient::new(client).diagnose_instance(diagnose).await.unwrap().into_inner();
    let answers = [got.encode_to_vec(), listed.encode_to_vec(), diagnosed.encode_to_vec()].concat();
    let mut shown: Vec<_> = got.inbound_route.into_iter().chain(listed.inbound_routes).collect();
    let mut paths: Vec<_> = shown.iter_mut().map(|route| std::mem::take(&mut route.callback_path)).collect();
    // Nothing else of a route depends on who looks.
    assert!(
        shown.iter().all(|route| route.id == "route_1" && route.secrets.len() == 2 && !route.etag.is_empty())
    );
    paths.push(diagnosed.callback_path);
    (paths, answers)
}

/// A viewer sees where callbacks come in, but not the token: neither where it is all that proves them, nor elsewhere,
/// since it may become that. Whoever may change something sees it.
#[tokio::test]
async fn viewers_see_no_callback_token() {
    let server = Server::start().await;
    let credentials =
        v1::Waha { hmac_keys: vec!["planted-hmac-key".into(); 1], headers: vec!["x-a: b".into()] };
    let waha = v1::InboundRoute {
        provider: v1::Provider::Waha.into(),
        credentials: Some(v1::inbound_route::Credentials::Waha(credentials)),
        ..route("route_1")
    };
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(waha), ..Default::default() };
    let made =
        server.routes().create_inbound_route(request).await.unwrap().into_inner().inbound_route.unwrap();
    server.create_instance(instance("inst_1", "1001")).await.unwrap();
    let path = made.callback_path.clone();
    let token = path.strip_prefix("/callbacks/waha/").unwrap().to_owned();
    let viewer = server.caller("", v1::Role::Viewer).await;
    for suffices in [false, true] {
        let route = v1::InboundRoute { callback_token_suffices: suffices, ..made.clone() };
        let route = Some(v1::InboundRoute { etag: String::new(), ..route });
        let update_mask = mask(&["callback_token_suffices"]);
        let update = v1::UpdateInboundRouteRequest { inbound_route: route, update_mask };
        server.routes().update_inbound_route(update).await.unwrap();
        let (paths, answers) = seen(viewer.clone()).await;
        assert_eq!(paths, ["/callbacks/waha/…"; 3]);
        assert!(!answers.windows(token.len()).any(|part| part == token.as_bytes()));
        for role in [v1::Role::Operator, v1::Role::TenantAdmin] {
            assert_eq!(seen(server.caller("", role).await).await.0, [path.as_str(); 3]);
        }
        assert_eq!(seen(server.admin()).await.0, [path.as_str(); 3]);
    }
    server.stop().await;
}
