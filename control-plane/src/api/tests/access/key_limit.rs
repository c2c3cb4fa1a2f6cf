//! How many keys a tenant has.

use gateway_runtime::clock;

use super::{world::*, *};
use crate::{
    api::{api_key, authorize::Caller},
    store::{Store, api_keys, tenants},
};

const MAX: u32 = 1_000;

/// Puts keys of a tenant into the store, of which each is what `make` says.
async fn put(
    store: &Store,
    tenant_id: &str,
    prefix: &str,
    count: u32,
    make: impl Fn(v1::ApiKey) -> v1::ApiKey,
) {
    let mut transaction = store.begin_write().await.unwrap();
    for number in 0..count {
        let id = format!("key_{prefix}{number:04}");
        let mut hash = [0; 32];
        hash[..id.len()].copy_from_slice(id.as_bytes());
        let key = v1::ApiKey { id, ..key_of(tenant_id, v1::Role::Viewer) };
        api_keys::create(&mut transaction, &make(key), &hash).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

async fn create(store: &Store, key: v1::ApiKey) -> Result<v1::ApiKey, Status> {
    let request = v1::CreateApiKeyRequest { api_key: Some(key), ..Default::default() };
    let made = api_key::create(store, &Caller::admin_key(None), request).await?;
    Ok(made.api_key.unwrap())
}

/// A tenant has a thousand keys that work and not one more; the refusal says of what there are too many. Those that are
/// revoked or expired do not count, other tenants and the platform have their own, and a key that is revoked makes room.
#[tokio::test]
async fn working_keys_per_tenant_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let mut acme = v1::Tenant { id: "acme".into(), ..Default::default() };
    tenants::put(&mut transaction, &mut acme).await.unwrap();
    transaction.commit().await.unwrap();
    let past = Some(prost_types::Timestamp { seconds: clock::now_seconds() - 60, nanos: 0 });
    put(&store, "acme", "r", 700, |key| v1::ApiKey { revoke_time: past, ..key }).await;
    put(&store, "acme", "e", 700, |key| v1::ApiKey { expire_time: past, ..key }).await;
    put(&store, "acme", "w", MAX - 1, |key| key).await;
    let viewer = || key_of("acme", v1::Role::Viewer);
    let last = create(&store, viewer()).await.unwrap();
    let refused = create(&store, viewer()).await.unwrap_err();
    let quota = refused.get_details_quota_failure().unwrap().violations;
    assert_eq!(quota.iter().map(|found| found.subject.as_str()).collect::<Vec<_>>(), ["tenant:acme"]);
    assert!(refused.message().contains("RevokeApiKey"), "{}", refused.message());
    assert_eq!(refusal::<()>(Err(refused)), (Code::ResourceExhausted, "TOO_MANY_API_KEYS".to_owned()));
    create(&store, key_of("default", v1::Role::Viewer)).await.unwrap();
    create(&store, key_of("", v1::Role::PlatformAdmin)).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    api_keys::update(&mut transaction, &v1::ApiKey { revoke_time: past, ..last }).await.unwrap();
    transaction.commit().await.unwrap();
    create(&store, viewer()).await.unwrap();
    assert_eq!(create(&store, viewer()).await.unwrap_err().code(), Code::ResourceExhausted);
    put(&store, "", "p", MAX - 1, |key| v1::ApiKey { role: v1::Role::PlatformAdmin.into(), ..key }).await;
    let refused = create(&store, key_of("", v1::Role::PlatformAdmin)).await.unwrap_err();
    assert_eq!(refused.get_details_quota_failure().unwrap().violations[0].subject, "platform");
}
