//! Keys that were made with keys.

use gateway_core::api_key::{Role, Scopes};

use super::{world::*, *};
use crate::{
    api::{agent::join_token, api_key, authorize::Caller},
    store::{Store, api_keys},
};

/// What a revocation is asked for.
fn with_created(id: &str) -> v1::RevokeApiKeyRequest {
    v1::RevokeApiKeyRequest { id: id.into(), revoke_created: true }
}

/// The ids of the keys that work.
async fn working(client: Client) -> Vec<String> {
    let list = tenants(client).list_api_keys(v1::ListApiKeysRequest::default()).await.unwrap().into_inner();
    let working = list.api_keys.into_iter().filter(|key| key.revoke_time.is_none());
    working.map(|key| key.id).collect()
}

/// Lists say who made a key. Revoking it leaves those that were made with it, unless asked for: then they, and those
/// made with them, go too, all of them on record and none of others. A key that is revoked already can be followed up.
#[tokio::test]
async fn created_keys_are_revoked_when_asked_for() {
    let server = Server::start().await;
    server.create_tenant("acme").await.unwrap();
    let admin = || key_of("acme", v1::Role::TenantAdmin);
    let with = |secret: &str| server.with(Bearer::new(secret));
    let (first, first_secret) = create_key(server.admin(), admin()).await.unwrap();
    let (second, second_secret) = create_key(with(&first_secret), admin()).await.unwrap();
    let (third, third_secret) = create_key(with(&second_secret), admin()).await.unwrap();
    let (sibling, sibling_secret) = create_key(server.admin(), admin()).await.unwrap();
    let (other, _) = create_key(with(&sibling_secret), key_of("acme", v1::Role::Viewer)).await.unwrap();
    assert_eq!(first.created_by, "admin_key");
    assert_eq!(third.created_by, format!("api_key:{}", second.id));
    let mut client = tenants(server.admin());
    let alone = v1::RevokeApiKeyRequest { id: first.id.clone(), ..Default::default() };
    assert_eq!(client.revoke_api_key(alone).await.unwrap().into_inner().revoked_count, 1);
    assert!(working(with(&third_secret)).await.contains(&second.id), "made keys go on");
    let answer = client.revoke_api_key(with_created(&first.id)).await.unwrap().into_inner();
    assert_eq!((answer.revoked_count, answer.api_key.unwrap().id), (2, first.id.clone()));
    let mut left = [sibling.id.clone(), other.id.clone()];
    left.sort();
    assert_eq!(working(server.admin()).await, left);
    let get = v1::GetTenantRequest { id: "acme".into() };
    assert_eq!(refusal(tenants(with(&third_secret)).get_tenant(get).await).0, Code::Unauthenticated);
    let entries = v1::ListAuditEntriesRequest { resource_type: "api_key".into(), ..Default::default() };
    let mut audit = v1::audit_service_client::AuditServiceClient::new(server.admin());
    let entries = audit.list_audit_entries(entries).await.unwrap().into_inner().audit_entries;
    let revoked = entries.into_iter().filter(|entry| entry.method == "TenantService/RevokeApiKey");
    let mut revoked: Vec<_> = revoked.map(|entry| entry.resource_id).collect();
    revoked.sort();
    let mut expected = [first.id.clone(), second.id.clone(), third.id.clone()];
    expected.sort();
    assert_eq!(revoked, expected);
    let again = client.revoke_api_key(with_created(&first.id)).await.unwrap().into_inner();
    assert_eq!(again.revoked_count, 0);
    server.stop().await;
}

/// Agents enroll with a token; gives what comes of it.
async fn enroll(server: &Server, join_token: &str) -> Result<v1::EnrollAgentResponse, Status> {
    let request = v1::EnrollAgentRequest {
        join_token: join_token.into(),
        region: "eu".into(),
        build: "1.0.0".into(),
        ..Default::default()
    };
    let mut client = AgentSyncServiceClient::new(server.channel.clone());
    client.enroll_agent(request).await.map(tonic::Response::into_inner)
}

/// Revoking a key with all that was made with it also takes back the join tokens that were made with these keys and not
/// used yet, each of them on record; those of others stay, and so does an agent that has enrolled with one.
#[tokio::test]
async fn join_tokens_of_revoked_keys_open_nothing() {
    let server = Server::start().await;
    let platform = || key_of("", v1::Role::PlatformAdmin);
    let (first, first_secret) = create_key(server.admin(), platform()).await.unwrap();
    let (_, second_secret) = create_key(server.with(Bearer::new(&first_secret)), platform()).await.unwrap();
    let token = async |client: Client| {
        let request = v1::CreateJoinTokenRequest { region: "eu".into(), ..Default::default() };
        AgentServiceClient::new(client).create_join_token(request).await.unwrap().into_inner()
    };
    let of_first = token(server.with(Bearer::new(&first_secret))).await;
    let of_second = token(server.with(Bearer::new(&second_secret))).await;
    let used = token(server.with(Bearer::new(&second_secret))).await;
    let others = token(server.admin()).await;
    let agent = enroll(&server, &used.join_token).await.unwrap();
    let mut client = tenants(server.admin());
    let alone = v1::RevokeApiKeyRequest { id: first.id.clone(), ..Default::default() };
    let answer = client.revoke_api_key(alone).await.unwrap().into_inner();
    assert_eq!(answer.revoked_join_token_count, 0, "what was made with it goes on unless asked for");
    let answer = client.revoke_api_key(with_created(&first.id)).await.unwrap().into_inner();
    assert_eq!((answer.revoked_count, answer.revoked_join_token_count), (1, 2));
    for taken_back in [&of_first, &of_second] {
        let refused = enroll(&server, &taken_back.join_token).await;
        assert_eq!(refusal(refused).0, Code::Unauthenticated);
    }
    enroll(&server, &others.join_token).await.unwrap();
    let get = v1::GetAgentRequest { id: agent.agent_id };
    let agent = AgentServiceClient::new(server.admin()).get_agent(get).await.unwrap().into_inner().agent;
    assert!(agent.unwrap().revoke_time.is_none());
    let entries = v1::ListAuditEntriesRequest { resource_type: "join_token".into(), ..Default::default() };
    let mut audit = v1::audit_service_client::AuditServiceClient::new(server.admin());
    let entries = audit.list_audit_entries(entries).await.unwrap().into_inner().audit_entries;
    let taken_back = entries.into_iter().filter(|entry| entry.method == "TenantService/RevokeApiKey");
    let mut taken_back: Vec<_> = taken_back.map(|entry| (entry.actor, entry.resource_id)).collect();
    taken_back.sort();
    let mut expected = [of_first.id, of_second.id].map(|id| ("admin_key".to_owned(), id));
    expected.sort();
    assert_eq!(taken_back, expected);
    let again = client.revoke_api_key(with_created(&first.id)).await.unwrap().into_inner();
    assert_eq!((again.revoked_count, again.revoked_join_token_count), (0, 0));
    server.stop().await;
}

/// A key that revokes the one it was made with, and all that were made with it, revokes itself, and has its answer.
#[tokio::test]
async fn a_created_key_may_revoke_its_creator() {
    let server = Server::start().await;
    let admin = || key_of("", v1::Role::TenantAdmin);
    let (first, secret) = create_key(server.admin(), admin()).await.unwrap();
    let (_, secret) = create_key(server.with(Bearer::new(&secret)), admin()).await.unwrap();
    let client = || tenants(server.with(Bearer::new(&secret)));
    assert_eq!(client().revoke_api_key(with_created(&first.id)).await.unwrap().into_inner().revoked_count, 2);
    let again = client().revoke_api_key(with_created(&first.id)).await;
    assert_eq!(refusal(again).0, Code::Unauthenticated);
    server.stop().await;
}

/// A key holds so many streams and not one more, of both services; the refusal says when to try again, and a stream
/// that ends makes room.
#[tokio::test]
async fn streams_per_key_are_bounded() {
    let server = Server::start().await;
    let (_, secret) = create_key(server.admin(), key_of("", v1::Role::PlatformAdmin)).await.unwrap();
    let client = || server.with(Bearer::new(&secret));
    let watch_logs = async || {
        let request = v1::WatchInboundLogsRequest::default();
        logs(client()).watch_inbound_logs(request).await.map(tonic::Response::into_inner)
    };
    let watch_agents = async || {
        let request = v1::WatchAgentsRequest::default();
        AgentServiceClient::new(client()).watch_agents(request).await.map(tonic::Response::into_inner)
    };
    let mut held = vec![watch_logs().await.unwrap()];
    let _agents = watch_agents().await.unwrap();
    let refused = loop {
        match watch_logs().await {
            Ok(stream) => held.push(stream),
            Err(refused) => break refused,
        }
        assert!(held.len() < 100, "the streams of a key are not bounded");
    };
    assert_eq!(held.len(), 63);
    assert!(refused.get_details_retry_info().unwrap().retry_delay.unwrap() > std::time::Duration::ZERO);
    assert_eq!(refusal::<()>(Err(refused)), (Code::ResourceExhausted, "TOO_MANY_STREAMS".to_owned()));
    assert_eq!(watch_agents().await.err().unwrap().code(), Code::ResourceExhausted);
    let (_, other) = create_key(server.admin(), key_of("", v1::Role::Viewer)).await.unwrap();
    let other = logs(server.with(Bearer::new(&other)));
    other.clone().watch_inbound_logs(v1::WatchInboundLogsRequest::default()).await.unwrap();
    drop(held.pop());
    let begin = std::time::Instant::now();
    while let Err(refused) = watch_logs().await {
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(begin.elapsed() < DEADLINE, "an ended stream makes no room");
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

/// Neither a key nor a join token can be made with a key that is revoked meanwhile: whoever stole a key could otherwise
/// keep one that was not there yet when all that were made with it were revoked.
#[tokio::test]
async fn no_key_is_made_with_a_revoked_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let caller = "key_1";
    let key = v1::ApiKey {
        id: caller.into(),
        role: v1::Role::PlatformAdmin.into(),
        display_name: "stolen".into(),
        ..Default::default()
    };
    let mut transaction = store.begin_write().await.unwrap();
    api_keys::create(&mut transaction, &key, &[1; 32]).await.unwrap();
    transaction.commit().await.unwrap();
    let holder = Caller::api_key(caller.into(), Role::PlatformAdmin, None, Scopes::default(), None, None);
    let request = || v1::CreateApiKeyRequest {
        api_key: Some(key_of("", v1::Role::PlatformAdmin)),
        ..Default::default()
    };
    let token = || v1::CreateJoinTokenRequest { region: "eu".into(), ..Default::default() };
    api_key::create(&store, &holder, request()).await.unwrap();
    join_token::create(&store, &holder, token()).await.unwrap();
    let mut revoking = store.begin_write().await.unwrap();
    let mut creating = Box::pin(api_key::create(&store, &holder, request()));
    let mut asking = Box::pin(join_token::create(&store, &holder, token()));
    assert!(futures_util::poll!(&mut creating).is_pending(), "it waits for its turn");
    assert!(futures_util::poll!(&mut asking).is_pending(), "it waits for its turn");
    let revoked = v1::ApiKey { revoke_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }), ..key };
    api_keys::update(&mut revoking, &revoked).await.unwrap();
    revoking.commit().await.unwrap();
    assert_eq!(creating.await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(asking.await.unwrap_err().code(), Code::Unauthenticated);
}
