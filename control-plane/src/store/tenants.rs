//! Tenants, and whose the ids of what was deleted are.
//!
//! An id is never another tenant's, also when what had it is gone: agents and inbound logs speak of resources
//! by their ids alone for as long as they still know them. For the same reason a deleted tenant's id is not
//! given again.

use gateway_core::{id::TenantId, tenant::TenantScope};
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use tonic::async_trait;

use super::{
    Connection, Store, StoreError, WriteTx, body,
    damaged::{self, Found, Head, PlainRow},
    versions,
};

const TYPE: &str = "tenant";

/// Reads tenants, and whose an id is. A resource's type is the oneof field of `ConfigResource`: `instance`,
/// `inbound_route` or `webhook_subscription`.
#[async_trait]
pub trait TenantReads: Send {
    /// A tenant that is not deleted. Its version is how often it was written.
    async fn tenant(&mut self, id: &str) -> Result<Option<PlainRow>, StoreError>;

    /// How often a tenant was written, deleted or not.
    async fn tenant_changes(&mut self, id: &str) -> Result<Option<u64>, StoreError>;

    /// Tenants that are not deleted by id, after `after`, at most `limit`; perhaps only the one named.
    async fn tenants(
        &mut self,
        only: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<PlainRow>, StoreError>;

    /// Ids of a tenant's instances, by id, at most `limit`.
    async fn instance_ids_of_tenant(
        &mut self,
        tenant_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError>;

    /// Ids of a tenant's inbound routes, by id, at most `limit`.
    async fn inbound_route_ids_of_tenant(
        &mut self,
        tenant_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError>;

    /// The tenant (empty: the platform) that had the id of what was deleted last.
    async fn former_owner(
        &mut self,
        resource_type: &'static str,
        id: &str,
    ) -> Result<Option<String>, StoreError>;

    /// The tenant that has an id, or else had it.
    async fn owner(&mut self, resource_type: &'static str, id: &str) -> Result<Option<String>, StoreError>;
}

/// Changes tenants, and notes whose an id was.
#[async_trait]
pub trait TenantWrites: Send {
    /// Writes a new tenant, or the body of the one that has the id, with how often it was written.
    async fn put_tenant(&mut self, id: &str, changes: u64, body: &[u8]) -> Result<(), StoreError>;

    /// Marks a tenant as deleted. Its row stays.
    async fn delete_tenant(&mut self, id: &str, now: Timestamp) -> Result<(), StoreError>;

    /// Notes whose a resource is that is there and is about to be deleted, in place of an earlier note.
    async fn remember_owner(&mut self, resource_type: &'static str, id: &str) -> Result<(), StoreError>;
}

/// A tenant within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::Tenant>, StoreError> {
    if !scope.contains(id) {
        return Ok(None);
    }
    connection.rows().tenant(id).await?.map(|row| body::read(&row)).transpose()
}

/// A tenant within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<v1::Tenant>>, StoreError> {
    if !scope.contains(id) {
        return Ok(None);
    }
    let row = connection.rows().tenant(id).await?;
    row.map(|row| damaged::or_head(body::read(&row), || row.head(connection.epoch()))).transpose()
}

/// Whether a tenant has or had this id.
///
/// # Errors
/// When the database cannot be read.
pub async fn was_ever(connection: &mut dyn Connection, id: &str) -> Result<bool, StoreError> {
    Ok(connection.rows().tenant_changes(id).await?.is_some())
}

/// Tenants in the order of their ids, after `after`. One that cannot be read says so, and shows what is known.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::Tenant>, StoreError> {
    let rows = connection.rows().tenants(scope.only(), after.unwrap_or_default(), limit).await?;
    rows.iter().map(|row| listed(connection, row)).collect()
}

fn listed(connection: &dyn Connection, row: &PlainRow) -> Result<v1::Tenant, StoreError> {
    let whole = damaged::or_note(connection.damages(), (TYPE, &row.id), body::read(row))?;
    Ok(whole.unwrap_or_else(|| {
        let Head { id, etag, .. } = row.head(connection.epoch());
        v1::Tenant { id, etag, is_damaged: true, ..Default::default() }
    }))
}

/// Writes a new or changed tenant; sets its etag. Tenants are no part of what agents get, so this makes no new
/// configuration version.
///
/// # Errors
/// When the database cannot be written.
pub async fn put(transaction: &mut WriteTx, tenant: &mut v1::Tenant) -> Result<(), StoreError> {
    let changes = transaction.rows().tenant_changes(&tenant.id).await?.unwrap_or_default() + 1;
    tenant.etag = transaction.store().etag(changes);
    transaction.mends(TYPE, &tenant.id);
    transaction.writes().put_tenant(&tenant.id, changes, &body::of(tenant)).await
}

/// Id and body of the tenant that exists from the first start, as first written to the store `epoch`.
pub(super) fn first(epoch: &str) -> (String, Vec<u8>) {
    let now = Some(gateway_core::time::to_proto(clock::now()));
    let tenant = v1::Tenant {
        id: TenantId::default_tenant().to_string(),
        create_time: now,
        update_time: now,
        etag: versions::etag(1, epoch),
        ..v1::Tenant::default()
    };
    let body = body::of(&tenant);
    (tenant.id, body)
}

/// Deletes a tenant that has no instances, inbound routes and working agents, with its API keys and join tokens.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    transaction.writes().delete_api_keys_of_tenant(id).await?;
    transaction.writes().delete_join_tokens_of_tenant(id).await?;
    transaction.mends(TYPE, id);
    transaction.writes().delete_tenant(id, clock::now()).await
}

/// Ids of a tenant's instances, or else of its inbound routes, at most `limit`; empty when it has neither.
///
/// # Errors
/// When the database cannot be read.
pub async fn referring(
    connection: &mut dyn Connection,
    id: &str,
    limit: u32,
) -> Result<(&'static str, Vec<String>), StoreError> {
    let instances = connection.rows().instance_ids_of_tenant(id, limit).await?;
    if !instances.is_empty() {
        return Ok(("instances", instances));
    }
    Ok(("inbound routes", connection.rows().inbound_route_ids_of_tenant(id, limit).await?))
}

/// Notes whose a resource is that is about to be deleted.
pub(super) async fn remember_owner(
    transaction: &mut WriteTx,
    resource_type: &'static str,
    id: &str,
) -> Result<(), StoreError> {
    transaction.writes().remember_owner(resource_type, id).await
}

/// Whether an id was another tenant's. `tenant_id` is empty for the platform.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_owned_by_another(
    connection: &mut dyn Connection,
    resource_type: &'static str,
    id: &str,
    tenant_id: &str,
) -> Result<bool, StoreError> {
    let owner = connection.rows().former_owner(resource_type, id).await?;
    Ok(owner.is_some_and(|owner| owner != tenant_id))
}

/// The tenant of an instance, also of a deleted one; None when nothing is known of it.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_instance(store: &Store, instance_id: &str) -> Result<Option<String>, StoreError> {
    store.reader().await?.rows().owner("instance", instance_id).await
}

/// The tenant of an inbound route, also of a deleted one: empty for the platform's, None when nothing is known
/// of it.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_route(store: &Store, route_id: &str) -> Result<Option<String>, StoreError> {
    store.reader().await?.rows().owner("inbound_route", route_id).await
}

/// The tenant of a webhook subscription, also of a deleted one; None when nothing is known of it.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_subscription(store: &Store, subscription_id: &str) -> Result<Option<String>, StoreError> {
    store.reader().await?.rows().owner("webhook_subscription", subscription_id).await
}
