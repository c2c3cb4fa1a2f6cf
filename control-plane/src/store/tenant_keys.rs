//! The data keys that seal secrets, each sealed under a root key that is not in the database. See
//! [`crate::sealing`].

use gateway_runtime::clock;
use tonic::async_trait;

use super::{Connection, StoreError, WriteTx};
use crate::sealing::WrappedKey;

/// Reads data keys.
#[async_trait]
pub trait TenantKeyReads: Send {
    /// All keys, in the order in which they were inserted.
    async fn tenant_keys(&mut self) -> Result<Vec<WrappedKey>, StoreError>;

    /// Every tenant that has a key, by id, with the place of its newest one in the order of insertion.
    async fn newest_tenant_keys(&mut self) -> Result<Vec<(String, u64)>, StoreError>;
}

/// Changes data keys.
#[async_trait]
pub trait TenantKeyWrites: Send {
    /// Adds a key, as the newest of its tenant. One that is there already stays as it is, where it is.
    async fn insert_tenant_key(&mut self, key: &WrappedKey, now_seconds: i64) -> Result<(), StoreError>;

    /// Puts a key that is sealed under another root key into the place of the same key.
    async fn replace_tenant_key(&mut self, key: &WrappedKey) -> Result<(), StoreError>;

    /// Removes the keys of a tenant but its newest.
    async fn delete_older_tenant_keys(&mut self, tenant_id: &str) -> Result<(), StoreError>;

    /// Notes that the keys up to the newest one are being renewed, unless that is noted already, and gives the place
    /// that is noted: 0 when there was no key.
    async fn begin_renewal(&mut self) -> Result<u64, StoreError>;

    /// Forgets what [`Self::begin_renewal`] noted.
    async fn end_renewal(&mut self) -> Result<(), StoreError>;
}

/// All keys, in the order in which they were made.
///
/// # Errors
/// When the database cannot be read.
pub async fn all(connection: &mut dyn Connection) -> Result<Vec<WrappedKey>, StoreError> {
    connection.rows().tenant_keys().await
}

/// Tenants with a key, each with the place of its newest one.
pub(crate) async fn newest(connection: &mut dyn Connection) -> Result<Vec<(String, u64)>, StoreError> {
    connection.rows().newest_tenant_keys().await
}

/// Adds a key. One that is there already stays as it is.
///
/// # Errors
/// When the database cannot be written.
pub async fn insert(transaction: &mut WriteTx, key: &WrappedKey) -> Result<(), StoreError> {
    transaction.writes().insert_tenant_key(key, clock::now_seconds()).await
}

/// Puts a key that is sealed under another root key into the place of the same key.
///
/// # Errors
/// When the database cannot be written.
pub async fn replace(transaction: &mut WriteTx, key: &WrappedKey) -> Result<(), StoreError> {
    transaction.writes().replace_tenant_key(key).await
}

/// Removes the keys of a tenant but its newest. Nothing may be sealed under them any more.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete_older(transaction: &mut WriteTx, tenant_id: &str) -> Result<(), StoreError> {
    transaction.writes().delete_older_tenant_keys(tenant_id).await
}

/// Notes that all keys are being renewed, unless that is so since an earlier run. Gives the place of the last key to
/// be renewed.
///
/// # Errors
/// When the database cannot be written.
pub async fn begin_renewal(transaction: &mut WriteTx) -> Result<u64, StoreError> {
    transaction.writes().begin_renewal().await
}

/// Notes that no keys are being renewed any more.
///
/// # Errors
/// When the database cannot be written.
pub async fn end_renewal(transaction: &mut WriteTx) -> Result<(), StoreError> {
    transaction.writes().end_renewal().await
}
