//! API keys. Secrets are kept as SHA-256 only; they are random, so a slow hash would add nothing.

use gateway_core::{tenant::TenantScope, time};
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use tonic::async_trait;

use super::{Connection, Store, StoreError, WriteTx, decode};

/// A key as a database gives it. When it was last used stands beside the body, so that noting a use rewrites no
/// resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyRow {
    /// The key without its last use.
    pub body: Vec<u8>,
    /// When it was last used.
    pub last_use_time: Option<Timestamp>,
}

/// Reads API keys.
#[async_trait]
pub trait ApiKeyReads: Send {
    /// The key that has a secret.
    async fn api_key_of_secret(&mut self, secret_hash: &[u8; 32]) -> Result<Option<ApiKeyRow>, StoreError>;

    /// A key.
    async fn api_key(&mut self, id: &str) -> Result<Option<ApiKeyRow>, StoreError>;

    /// Those of `ids`, at most 500, that are there, in no order.
    async fn api_keys_of_ids(&mut self, ids: &[String]) -> Result<Vec<ApiKeyRow>, StoreError>;

    /// Keys by id, after `after`, at most `limit`; only of a tenant (empty: of the platform).
    async fn api_keys(
        &mut self,
        tenant_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<ApiKeyRow>, StoreError>;
}

/// Changes API keys.
#[async_trait]
pub trait ApiKeyWrites: Send {
    /// Writes a new key. A conflict when its id or its secret is taken.
    async fn insert_api_key(
        &mut self,
        id: &str,
        tenant_id: &str,
        secret_hash: &[u8; 32],
        body: &[u8],
    ) -> Result<(), StoreError>;

    /// Changes the body of a key. Nothing when it is not there.
    async fn update_api_key(&mut self, id: &str, body: &[u8]) -> Result<(), StoreError>;

    /// Notes when a key was last used. Nothing when it is not there.
    async fn use_api_key(&mut self, id: &str, time: Timestamp) -> Result<(), StoreError>;

    /// Removes a tenant's keys.
    async fn delete_api_keys_of_tenant(&mut self, tenant_id: &str) -> Result<(), StoreError>;
}

fn read(row: ApiKeyRow) -> Result<v1::ApiKey, StoreError> {
    let mut key: v1::ApiKey = decode(&row.body)?;
    key.last_use_time = row.last_use_time.map(time::to_proto);
    Ok(key)
}

/// The key that has a secret, working or not.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_by_secret_hash(
    store: &Store,
    secret_hash: &[u8; 32],
) -> Result<Option<v1::ApiKey>, StoreError> {
    store.reader().await?.rows().api_key_of_secret(secret_hash).await?.map(read).transpose()
}

/// A key within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::ApiKey>, StoreError> {
    let key = connection.rows().api_key(id).await?.map(read).transpose()?;
    Ok(key.filter(|key| scope.contains(&key.tenant_id)))
}

/// Those of `ids`, at most 500, that are there, in no order.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_all(store: &Store, ids: &[String]) -> Result<Vec<v1::ApiKey>, StoreError> {
    let rows = store.reader().await?.rows().api_keys_of_ids(ids).await?;
    rows.into_iter().map(read).collect()
}

/// Keys in the order of their ids, after `after`, perhaps of one tenant only.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut dyn Connection,
    tenant_id: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::ApiKey>, StoreError> {
    let rows = connection.rows().api_keys(tenant_id, after.unwrap_or_default(), limit).await?;
    rows.into_iter().map(read).collect()
}

/// Writes a new key.
///
/// # Errors
/// When the database cannot be written, or the id is taken.
pub async fn create(
    transaction: &mut WriteTx,
    key: &v1::ApiKey,
    secret_hash: &[u8; 32],
) -> Result<(), StoreError> {
    let body = key.encode_to_vec();
    transaction.writes().insert_api_key(&key.id, &key.tenant_id, secret_hash, &body).await
}

/// Writes a changed key.
///
/// # Errors
/// When the database cannot be written.
pub async fn update(transaction: &mut WriteTx, key: &v1::ApiKey) -> Result<(), StoreError> {
    transaction.writes().update_api_key(&key.id, &key.encode_to_vec()).await
}

/// Notes when keys were last used.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_uses(store: &Store, uses: &[(String, Timestamp)]) -> Result<(), StoreError> {
    let mut transaction = store.begin_write().await?;
    for (id, time) in uses {
        transaction.writes().use_api_key(id, *time).await?;
    }
    transaction.commit().await
}
