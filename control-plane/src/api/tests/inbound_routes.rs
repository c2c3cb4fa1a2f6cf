use super::*;

mod providers;

async fn create(server: &Server, route: v1::InboundRoute) -> Result<v1::InboundRoute, Status> {
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(route), ..Default::default() };
    Ok(server.routes().create_inbound_route(request).await?.into_inner().inbound_route.unwrap())
}

async fn add(
    server: &Server,
    kind: v1::InboundRouteSecretKind,
    value: &str,
) -> Result<v1::InboundRouteSecret, Status> {
    let request = v1::AddInboundRouteSecretRequest {
        id: "route_1".into(),
        kind: kind.into(),
        value: value.to_owned(),
        ..Default::default()
    };
    let answer = server.routes().add_inbound_route_secret(request).await?.into_inner();
    Ok(answer.secret.unwrap())
}

async fn update(
    server: &Server,
    wanted: v1::InboundRoute,
    paths: &[&str],
) -> Result<v1::InboundRoute, Status> {
    let request = v1::UpdateInboundRouteRequest { inbound_route: Some(wanted), update_mask: mask(paths) };
    Ok(server.routes().update_inbound_route(request).await?.into_inner().inbound_route.unwrap())
}

async fn remove(server: &Server, secret_id: &str) -> Result<v1::InboundRoute, Status> {
    let request =
        v1::RemoveInboundRouteSecretRequest { id: "route_1".into(), secret_id: secret_id.to_owned() };
    Ok(server.routes().remove_inbound_route_secret(request).await?.into_inner().inbound_route.unwrap())
}

/// A route has an unguessable path, and shows its secrets by fingerprint only.
#[tokio::test]
async fn secrets_are_never_read_back() {
    let server = Server::start().await;
    let created = create(&server, route("route_1")).await.unwrap();
    let token = created.callback_path.strip_prefix("/callbacks/meta/").unwrap();
    assert!(token.len() >= 32);
    assert_eq!(created.secrets.len(), 2);
    assert!(
        created.secrets.iter().all(|secret| secret.id.starts_with("key_") && secret.fingerprint.len() == 12)
    );
    let other = create(&server, route("route_2")).await.unwrap();
    assert_ne!(created.callback_path, other.callback_path);
    let request = v1::GetInboundRouteRequest { id: "route_1".into() };
    let read = server.routes().get_inbound_route(request).await.unwrap().into_inner().inbound_route.unwrap();
    assert_eq!(read, created);
    assert!(read.credentials.is_none() && !format!("{read:?}").contains("planted"));
    server.stop().await;
}

/// A route without provider or credentials, or with a taken id, is refused.
#[tokio::test]
async fn bad_routes_are_refused() {
    let server = Server::start().await.with_route().await;
    let no_provider = v1::InboundRoute { provider: 0, ..route("route_2") };
    assert_eq!(bad_fields(create(&server, no_provider).await), ["inbound_route.provider"]);
    let bare = v1::InboundRoute { credentials: None, ..route("route_2") };
    assert_eq!(bad_fields(create(&server, bare).await), ["inbound_route.meta"]);
    assert_eq!(bad_fields(create(&server, route("route 2")).await), ["inbound_route.id"]);
    assert_eq!(refusal(create(&server, route("route_1")).await).0, Code::AlreadyExists);
    let request = v1::ListInboundRoutesRequest { provider: 77, ..Default::default() };
    let unknown = server.routes().list_inbound_routes(request).await;
    assert!(unknown.as_ref().unwrap_err().message().contains("PROVIDER_EVOLUTION"));
    assert_eq!(bad_fields(unknown), ["provider"]);
    server.stop().await;
}

/// A rotation adds, then removes; the last secret of a kind, a repeated value and a ninth are refused.
#[tokio::test]
async fn secrets_rotate() {
    use v1::InboundRouteSecretKind::{MetaAppSecret, MetaVerifyToken, Unspecified};
    let server = Server::start().await.with_route().await;
    let request = v1::GetInboundRouteRequest { id: "route_1".into() };
    let before =
        server.routes().get_inbound_route(request).await.unwrap().into_inner().inbound_route.unwrap();
    let old = before.secrets.iter().find(|secret| secret.kind() == MetaAppSecret).unwrap();
    assert_eq!(refusal(remove(&server, &old.id).await), (Code::FailedPrecondition, "LAST_SECRET".into()));
    assert_eq!(bad_fields(add(&server, Unspecified, "x").await), ["kind"]);
    assert_eq!(bad_fields(add(&server, MetaAppSecret, "").await), ["value"]);
    assert_eq!(refusal(add(&server, MetaAppSecret, "planted-app-secret").await).1, "SECRET_EXISTS");
    add(&server, MetaVerifyToken, "planted-app-secret").await.unwrap();
    let new = add(&server, MetaAppSecret, "new").await.unwrap();
    let after = remove(&server, &old.id).await.unwrap();
    assert!(after.secrets.iter().any(|secret| secret.id == new.id));
    assert!(after.secrets.iter().all(|secret| secret.id != old.id));
    assert_ne!(after.etag, before.etag);
    assert_eq!(refusal(remove(&server, "key_unknown").await).0, Code::NotFound);
    for number in 0..7 {
        add(&server, MetaAppSecret, &number.to_string()).await.unwrap();
    }
    assert_eq!(
        refusal(add(&server, MetaAppSecret, "ninth").await),
        (Code::FailedPrecondition, "TOO_MANY_SECRETS".into())
    );
    server.stop().await;
}

/// Descriptions change by mask; credentials have methods of their own.
#[tokio::test]
async fn descriptions_change_by_mask() {
    let server = Server::start().await.with_route().await;
    let wanted = v1::InboundRoute {
        display_name: "Main".into(),
        provider_account_id: "waba-1".into(),
        ..route("route_1")
    };
    let updated = update(&server, wanted.clone(), &["display_name"]).await.unwrap();
    assert_eq!((updated.display_name.as_str(), updated.provider_account_id.as_str()), ("Main", ""));
    for path in ["meta", "provider", "callback_path"] {
        assert_eq!(bad_fields(update(&server, wanted.clone(), &[path]).await), ["update_mask"]);
    }
    assert_eq!(update(&server, wanted, &["*"]).await.unwrap().provider_account_id, "waba-1");
    server.stop().await;
}

/// Without callbacks the list of unrouted ones is empty, and its tokens are checked like all others.
#[tokio::test]
async fn unrouted_callbacks_are_listed() {
    let server = Server::start().await.with_route().await;
    let request =
        v1::ListUnroutedCallbacksRequest { inbound_route_id: "route_1".into(), ..Default::default() };
    let page = server.routes().list_unrouted_callbacks(request).await.unwrap().into_inner();
    assert!(page.unrouted_callbacks.is_empty() && page.next_page_token.is_empty());
    let request = v1::ListUnroutedCallbacksRequest { page_token: "x".into(), ..Default::default() };
    assert_eq!(bad_fields(server.routes().list_unrouted_callbacks(request).await), ["page_token"]);
    server.stop().await;
}
