//! API keys. One that cannot be read opens nothing; so that no damage passes for another key, as for one that is not
//! revoked any more, every row has a checksum. Secrets are kept as SHA-256 only; they are random, so a slow hash would add nothing.

use gateway_core::{tenant::TenantScope, time};
use gateway_proto::v1;
use jiff::Timestamp;
use tonic::async_trait;

use super::{
    Connection, Store, StoreError, WriteTx, body,
    damaged::{self, Found, PlainRow},
};

pub(super) const TYPE: &str = "api_key";

/// A key as a database gives it. When it was last used stands beside the body, so that noting a use rewrites no
/// resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKeyRow {
    /// The key without its last use; its tenant is empty for platform admins'.
    pub row: PlainRow,
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
    let mut key: v1::ApiKey = body::read_summed(&row.row)?;
    key.last_use_time = row.last_use_time.map(time::to_proto);
    Ok(key)
}

/// Its body with a checksum, when it was stored by a program that made none; None when there is nothing to do, or it
/// cannot be read.
pub(super) fn summed(row: &PlainRow) -> Option<Vec<u8>> {
    let key: v1::ApiKey = (!body::has_sum(&row.body)).then(|| body::read(row).ok()).flatten()?;
    Some(body::of(&key))
}

/// Reads a key of a backup; `is_summed` says whether it must have a checksum.
///
/// # Errors
/// When it is damaged.
pub(crate) fn read_row(row: &PlainRow, is_summed: bool) -> Result<v1::ApiKey, StoreError> {
    if is_summed { body::read_summed(row) } else { body::read(row) }
}

/// The bytes to store of a key.
pub(crate) fn body_of(key: &v1::ApiKey) -> Vec<u8> {
    body::of(key)
}

/// The key that has a secret, working or not. One that cannot be read is noted.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_by_secret_hash(
    store: &Store,
    secret_hash: &[u8; 32],
) -> Result<Option<Found<v1::ApiKey>>, StoreError> {
    let Some(row) = store.reader().await?.rows().api_key_of_secret(secret_hash).await? else {
        return Ok(None);
    };
    let head = row.row.head(store.store_epoch());
    let id = head.id.clone();
    match damaged::or_note(store.damages(), (TYPE, &id), read(row))? {
        Some(key) => Ok(Some(Found::Whole(key))),
        None => Ok(Some(Found::Damaged(head))),
    }
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
    let row = connection.rows().api_key(id).await?.filter(|key| scope.contains(&key.row.tenant_id));
    row.map(read).transpose()
}

/// A key within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<v1::ApiKey>>, StoreError> {
    let row = connection.rows().api_key(id).await?.filter(|key| scope.contains(&key.row.tenant_id));
    let Some(row) = row else { return Ok(None) };
    let head = row.row.head(connection.epoch());
    damaged::or_head(read(row), || head).map(Some)
}

/// Those of `ids`, at most 500, that are there and can be read, in no order.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_all(store: &Store, ids: &[String]) -> Result<Vec<v1::ApiKey>, StoreError> {
    let rows = store.reader().await?.rows().api_keys_of_ids(ids).await?;
    let noted = |row: ApiKeyRow| {
        let id = row.row.id.clone();
        damaged::or_note(store.damages(), (TYPE, &id), read(row)).transpose()
    };
    rows.into_iter().filter_map(noted).collect()
}

/// Keys in the order of their ids, after `after`, perhaps of one tenant only. One that cannot be read says so, and
/// shows what is known.
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
    rows.into_iter().map(|row| listed(connection, row)).collect()
}

fn listed(connection: &dyn Connection, row: ApiKeyRow) -> Result<v1::ApiKey, StoreError> {
    let (id, tenant_id) = (row.row.id.clone(), row.row.tenant_id.clone());
    let last_use_time = row.last_use_time.map(time::to_proto);
    let whole = damaged::or_note(connection.damages(), (TYPE, &id), read(row))?;
    let head = || v1::ApiKey { id, tenant_id, last_use_time, is_damaged: true, ..Default::default() };
    Ok(whole.unwrap_or_else(head))
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
    let body = body::of(key);
    transaction.writes().insert_api_key(&key.id, &key.tenant_id, secret_hash, &body).await
}

/// Writes a changed key, also in the place of one that could not be read.
///
/// # Errors
/// When the database cannot be written.
pub async fn update(transaction: &mut WriteTx, key: &v1::ApiKey) -> Result<(), StoreError> {
    transaction.mends(TYPE, &key.id);
    transaction.writes().update_api_key(&key.id, &body::of(key)).await
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
