//! Repeats of creations the answers to which hold what is shown once.

use super::{world::*, *};

/// A repeat makes no second key and shows no secret; the key that it names can be revoked. Another request with the same
/// `request_id` is refused, and without one each call makes a key.
#[tokio::test]
async fn repeated_keys_have_no_secret() {
    let server = Server::start().await;
    let create = async |display_name: &str, request_id: &str| {
        let key = v1::ApiKey { display_name: display_name.into(), ..key_of("default", v1::Role::Viewer) };
        let request = v1::CreateApiKeyRequest { api_key: Some(key), request_id: request_id.into() };
        tenants(server.admin()).create_api_key(request).await.map(tonic::Response::into_inner)
    };
    let count = async || {
        let listed = tenants(server.admin()).list_api_keys(v1::ListApiKeysRequest::default()).await.unwrap();
        listed.into_inner().api_keys.len()
    };
    let first = create("one", "once").await.unwrap();
    let repeated = create("one", "once").await.unwrap();
    assert!(!first.secret.is_empty());
    assert_eq!(repeated, v1::CreateApiKeyResponse { secret: String::new(), ..first.clone() });
    assert_eq!(count().await, 1);
    assert_eq!(bad_fields(create("two", "once").await), ["request_id"]);
    assert_eq!(bad_fields(create("two", &"x".repeat(129)).await), ["request_id"]);
    for _ in 0..2 {
        create("one", "").await.unwrap();
    }
    assert_eq!(count().await, 3);
    let revoke = v1::RevokeApiKeyRequest { id: repeated.api_key.unwrap().id, ..Default::default() };
    let revoked = tenants(server.admin()).revoke_api_key(revoke).await.unwrap().into_inner();
    assert_eq!(revoked.revoked_count, 1);
    server.stop().await;
}

/// A repeat makes no second join token and shows none; the first works.
#[tokio::test]
async fn repeated_join_tokens_are_not_shown() {
    let server = Server::start().await;
    let create = async |region: &str| {
        let request = v1::CreateJoinTokenRequest {
            region: region.into(),
            request_id: "once".into(),
            ..Default::default()
        };
        let mut client = AgentServiceClient::new(server.admin());
        client.create_join_token(request).await.map(tonic::Response::into_inner)
    };
    let first = create("eu").await.unwrap();
    let repeated = create("eu").await.unwrap();
    assert_eq!(repeated, v1::CreateJoinTokenResponse { join_token: String::new(), ..first.clone() });
    assert_eq!(bad_fields(create("us").await), ["request_id"]);
    let request = v1::EnrollAgentRequest {
        join_token: first.join_token,
        region: "eu".into(),
        build: "1.0.0".into(),
        ..Default::default()
    };
    AgentSyncServiceClient::new(server.channel.clone()).enroll_agent(request).await.unwrap();
    server.stop().await;
}

/// A repeat adds no second secret, and is no conflict with itself.
#[tokio::test]
async fn repeated_route_secrets_are_added_once() {
    let server = Server::start().await.with_route().await;
    let add = async |value: &str, request_id: &str| {
        let request = v1::AddInboundRouteSecretRequest {
            id: "route_1".into(),
            kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
            value: value.into(),
            request_id: request_id.into(),
        };
        server.routes().add_inbound_route_secret(request).await.map(tonic::Response::into_inner)
    };
    let first = add("second-secret", "once").await.unwrap();
    assert_eq!(add("second-secret", "once").await.unwrap(), first);
    assert_eq!(bad_fields(add("third-secret", "once").await), ["request_id"]);
    assert_eq!(refusal(add("second-secret", "").await).1, "SECRET_EXISTS");
    let get = v1::GetInboundRouteRequest { id: "route_1".into() };
    let route = server.routes().get_inbound_route(get).await.unwrap().into_inner().inbound_route.unwrap();
    assert_eq!(Some(route), first.inbound_route);
    server.stop().await;
}
