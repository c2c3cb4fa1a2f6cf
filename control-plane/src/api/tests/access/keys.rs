use gateway_core::time;
use gateway_runtime::clock;
use jiff::ToSpan as _;
use sha2::{Digest as _, Sha256};

use super::{world::*, *};
use crate::store::sqlite::testing;

async fn list(client: Client) -> Result<Vec<v1::ApiKey>, Status> {
    let request = v1::ListApiKeysRequest::default();
    Ok(tenants(client).list_api_keys(request).await?.into_inner().api_keys)
}

async fn revoke(client: Client, id: &str) -> Result<v1::ApiKey, Status> {
    let request = v1::RevokeApiKeyRequest { id: id.into(), ..Default::default() };
    Ok(tenants(client).revoke_api_key(request).await?.into_inner().api_key.unwrap())
}

async fn watch(client: Client) -> tonic::Streaming<v1::WatchInboundLogsResponse> {
    let request = v1::WatchInboundLogsRequest::default();
    logs(client).watch_inbound_logs(request).await.unwrap().into_inner()
}

/// The refusal with which a stream ends.
async fn end<T: std::fmt::Debug>(stream: &mut tonic::Streaming<T>) -> (Code, String) {
    refusal(tokio::time::timeout(DEADLINE, stream.message()).await.expect("an end in time"))
}

fn unauthenticated() -> (Code, String) {
    (Code::Unauthenticated, "UNAUTHENTICATED".to_owned())
}

/// A secret has the documented form, is given once, and is nowhere in the database but as its hash.
#[tokio::test]
async fn secret_is_shown_once_and_not_kept() {
    let server = Server::start().await;
    let (key, secret) = create_key(server.admin(), key_of("", v1::Role::Viewer)).await.unwrap();
    assert!(secret.starts_with("wagw_live_") && secret.len() == 46 && key.id.starts_with("key_"));
    assert!(secret.starts_with(&key.prefix) && key.prefix.len() == 14);
    assert_eq!(key.tenant_id, "default");
    assert_eq!(list(server.with(Bearer::new(&secret))).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(list(server.admin()).await.unwrap()[0].id, key.id);
    let hash: [u8; 32] = Sha256::digest(&secret).into();
    let mut has_hash = false;
    for file in ["config.db", "config.db-wal"] {
        let bytes = std::fs::read(server._directory.path().join(file)).unwrap_or_default();
        let has = |wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
        assert!(!has(&secret.as_bytes()[key.prefix.len()..]), "{file} has the secret");
        has_hash |= has(&hash);
    }
    assert!(has_hash);
    server.stop().await;
}

/// A key with a wrong checksum is refused without a look into the database: even one that is there.
#[tokio::test]
async fn wrong_checksum_is_refused_unseen() {
    let server = Server::start().await;
    let (_, good) = create_key(server.admin(), key_of("", v1::Role::Viewer)).await.unwrap();
    let last = if good.ends_with('0') { '1' } else { '0' };
    let planted = format!("{}{last}", &good[..45]);
    let copy = "INSERT INTO api_keys SELECT 'key_planted', tenant_id, ?1, NULL, body FROM api_keys";
    let hash: [u8; 32] = Sha256::digest(&planted).into();
    testing::change(server._directory.path(), copy, &hash).await;
    let list = |secret: &str| {
        let client = server.with(Bearer::new(secret));
        async move { InstanceServiceClient::new(client).list_instances(v1::ListInstancesRequest::default()).await }
    };
    list(&good).await.unwrap();
    assert_eq!(refusal(list(&planted).await), unauthenticated());
    server.stop().await;
}

/// Revoking a key ends its open streams and shuts out new calls; other keys go on. Revoking it again changes
/// nothing.
#[tokio::test]
async fn revocation_ends_streams() {
    let server = Server::start().await.with_instance().await;
    let (key, secret) = create_key(server.admin(), key_of("", v1::Role::Viewer)).await.unwrap();
    let client = || server.with(Bearer::new(&secret));
    let other = server.caller("", v1::Role::Viewer).await;
    let (mut revoked, mut kept) = (watch(client()).await, watch(other.clone()).await);
    let begin = std::time::Instant::now();
    let answer = revoke(server.admin(), &key.id).await.unwrap();
    assert!(answer.revoke_time.is_some());
    assert_eq!(end(&mut revoked).await, unauthenticated());
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    let get = v1::GetTenantRequest { id: "default".into() };
    assert_eq!(refusal(tenants(client()).get_tenant(get.clone()).await), unauthenticated());
    assert_eq!(revoke(server.admin(), &key.id).await.unwrap().revoke_time, answer.revoke_time);
    server.report(vec![event("inst_1", "evt_1")]).await;
    assert!(tokio::time::timeout(DEADLINE, kept.message()).await.unwrap().unwrap().is_some());
    tenants(other).get_tenant(get).await.unwrap();
    server.stop().await;
}

/// Also a revocation that this process did not see ends streams: one that another process wrote.
#[tokio::test]
async fn revocation_elsewhere_ends_streams() {
    let server = Server::start().await;
    let mut stream = watch(server.caller("", v1::Role::Viewer).await).await;
    testing::execute(server._directory.path(), "DELETE FROM api_keys").await;
    let begin = std::time::Instant::now();
    assert_eq!(end(&mut stream).await, unauthenticated());
    assert!(begin.elapsed() < std::time::Duration::from_secs(5));
    server.stop().await;
}

/// A key that revokes itself has its answer, and opens nothing after it.
#[tokio::test]
async fn key_may_revoke_itself() {
    let server = Server::start().await;
    let (key, secret) = create_key(server.admin(), key_of("", v1::Role::TenantAdmin)).await.unwrap();
    let client = || server.with(Bearer::new(&secret));
    assert_eq!(revoke(client(), &key.id).await.unwrap().id, key.id);
    assert_eq!(refusal(list(client()).await), unauthenticated());
    server.stop().await;
}

/// A key stops working when it expires, open streams included.
#[tokio::test]
async fn expiry_ends_streams() {
    let server = Server::start().await;
    let expire_time = Some(time::to_proto(clock::now() + 2.seconds()));
    let key = v1::ApiKey { expire_time, ..key_of("", v1::Role::Viewer) };
    let (_, secret) = create_key(server.admin(), key).await.unwrap();
    let mut stream = watch(server.with(Bearer::new(&secret))).await;
    assert_eq!(end(&mut stream).await, unauthenticated());
    let get = v1::GetTenantRequest { id: "default".into() };
    let refused = tenants(server.with(Bearer::new(&secret))).get_tenant(get).await;
    assert_eq!(refusal(refused), unauthenticated());
    server.stop().await;
}

/// That a key was used can be seen soon after.
#[tokio::test]
async fn use_is_noted() {
    let server = Server::start().await;
    let caller = server.caller("", v1::Role::Viewer).await;
    assert_eq!(list(server.admin()).await.unwrap()[0].last_use_time, None);
    let get = v1::GetTenantRequest { id: "default".into() };
    tenants(caller).get_tenant(get).await.unwrap();
    let noted = async { while list(server.admin()).await.unwrap()[0].last_use_time.is_none() {} };
    tokio::time::timeout(DEADLINE, noted).await.unwrap();
    server.stop().await;
}

/// A creator cannot give more than it has: role, tenant, scopes, time.
#[tokio::test]
async fn creator_gives_at_most_what_it_has() {
    let server = Server::start().await;
    server.create_tenant("acme").await.unwrap();
    let (soon, later) = (clock::now() + 1.hours(), clock::now() + 2.hours());
    let [soon, later] = [soon, later].map(|time| Some(time::to_proto(time)));
    let scopes = vec!["TenantService".to_owned(), "InstanceService/GetInstance".to_owned()];
    let own =
        v1::ApiKey { scopes: scopes.clone(), expire_time: soon, ..key_of("acme", v1::Role::TenantAdmin) };
    let (_, secret) = create_key(server.admin(), own).await.unwrap();
    let as_creator = |key: v1::ApiKey| create_key(server.with(Bearer::new(&secret)), key);
    let good = v1::ApiKey { scopes, expire_time: soon, ..key_of("", v1::Role::TenantAdmin) };
    let (made, _) = as_creator(good.clone()).await.unwrap();
    assert_eq!(made.tenant_id, "acme");
    let wider = |scopes: &[&str]| v1::ApiKey {
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        ..good.clone()
    };
    let denied = [
        v1::ApiKey { role: v1::Role::PlatformAdmin.into(), ..good.clone() },
        wider(&[]),
        wider(&["InstanceService"]),
        wider(&["TenantService", "OptOutService"]),
        v1::ApiKey { expire_time: None, ..good.clone() },
        v1::ApiKey { expire_time: later, ..good.clone() },
    ];
    for key in denied {
        assert_eq!(refusal(as_creator(key.clone()).await).0, Code::PermissionDenied, "{key:?}");
    }
    let foreign = v1::ApiKey { tenant_id: "default".into(), ..good };
    assert_eq!(refusal(as_creator(foreign).await).0, Code::NotFound);
    let operator = server.caller("acme", v1::Role::Operator).await;
    assert_eq!(refusal(create_key(operator, key_of("", v1::Role::Viewer)).await).0, Code::PermissionDenied);
    server.stop().await;
}

/// A platform admin's key belongs to no tenant and reaches all; others name one that exists.
#[tokio::test]
async fn platform_keys_reach_every_tenant() {
    let server = Server::start().await.with_instance().await;
    let platform = server.caller("", v1::Role::PlatformAdmin).await;
    let (key, _) = create_key(platform.clone(), key_of("", v1::Role::PlatformAdmin)).await.unwrap();
    assert_eq!(key.tenant_id, "");
    let get = v1::GetInstanceRequest { id: "inst_1".into() };
    InstanceServiceClient::new(platform.clone()).get_instance(get).await.unwrap();
    let owned = create_key(platform.clone(), key_of("default", v1::Role::PlatformAdmin)).await;
    assert_eq!(bad_fields(owned), ["api_key.tenant_id"]);
    let nobodys = create_key(platform, key_of("nobody", v1::Role::Viewer)).await;
    assert_eq!(refusal(nobodys).0, Code::NotFound);
    server.stop().await;
}
