//! Tenants, and whose the ids of what was deleted are.
//!
//! An id is never another tenant's, also when what had it is gone: agents and inbound logs speak of resources
//! by their ids alone for as long as they still know them. For the same reason a deleted tenant's id is not
//! given again.

use gateway_core::{id::TenantId, tenant::TenantScope};
use gateway_proto::v1;
use gateway_runtime::clock;
use prost::Message as _;
use sqlx::SqliteConnection;

use super::{Store, StoreError, WriteTx, agents, api_keys, decode, schema};

/// The tables. `delete_time` is in microseconds since 1970. `former_owners` names the tenant (empty: the
/// platform) of a deleted resource's id; `type` is the oneof field of `ConfigResource`.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS tenants (
    id TEXT PRIMARY KEY NOT NULL,
    change INTEGER NOT NULL,
    body BLOB NOT NULL,
    delete_time INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS former_owners (
    type TEXT NOT NULL,
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    PRIMARY KEY (type, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inbound_routes_tenant ON inbound_routes (tenant_id);
CREATE INDEX IF NOT EXISTS instances_tenant ON instances (tenant_id);
";

/// A tenant within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut SqliteConnection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::Tenant>, StoreError> {
    if !scope.contains(id) {
        return Ok(None);
    }
    let body: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT body FROM tenants WHERE id = ?1 AND delete_time IS NULL")
            .bind(id)
            .fetch_optional(connection)
            .await?;
    body.map(|body| decode(&body)).transpose()
}

/// Whether a tenant has or had this id.
///
/// # Errors
/// When the database cannot be read.
pub async fn was_ever(connection: &mut SqliteConnection, id: &str) -> Result<bool, StoreError> {
    let exists = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tenants WHERE id = ?1)");
    Ok(exists.bind(id).fetch_one(connection).await?)
}

/// Tenants in the order of their ids, after `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut SqliteConnection,
    scope: &TenantScope,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::Tenant>, StoreError> {
    let bodies: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT body FROM tenants
         WHERE (?1 IS NULL OR id = ?1) AND id > ?2 AND delete_time IS NULL ORDER BY id LIMIT ?3",
    )
    .bind(scope.only())
    .bind(after.unwrap_or_default())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    bodies.iter().map(|body| decode(body)).collect()
}

/// Writes a new or changed tenant; sets its etag. Tenants are no part of what agents get, so this makes no new
/// configuration version.
///
/// # Errors
/// When the database cannot be written.
pub async fn put(transaction: &mut WriteTx, tenant: &mut v1::Tenant) -> Result<(), StoreError> {
    let change: Option<i64> = sqlx::query_scalar("SELECT change FROM tenants WHERE id = ?1")
        .bind(&tenant.id)
        .fetch_optional(transaction.connection())
        .await?;
    let change = change.unwrap_or_default() + 1;
    tenant.etag = transaction.store().etag(super::from_sql(change));
    sqlx::query(
        "INSERT INTO tenants (id, change, body) VALUES (?1, ?2, ?3)
         ON CONFLICT (id) DO UPDATE SET change = excluded.change, body = excluded.body",
    )
    .bind(&tenant.id)
    .bind(change)
    .bind(tenant.encode_to_vec())
    .execute(transaction.connection())
    .await?;
    Ok(())
}

/// Deletes a tenant that has no instances, inbound routes and working agents, with its API keys and join tokens.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    api_keys::delete_of_tenant(transaction, id).await?;
    agents::delete_join_tokens_of_tenant(transaction.connection(), id).await?;
    sqlx::query("UPDATE tenants SET delete_time = ?2 WHERE id = ?1")
        .bind(id)
        .bind(clock::now().as_microsecond())
        .execute(transaction.connection())
        .await?;
    Ok(())
}

/// Ids of a tenant's instances, or else of its inbound routes, at most `limit`; empty when it has neither.
///
/// # Errors
/// When the database cannot be read.
pub async fn referring(
    connection: &mut SqliteConnection,
    id: &str,
    limit: u32,
) -> Result<(&'static str, Vec<String>), StoreError> {
    let of = "SELECT id FROM instances WHERE tenant_id = ?1 ORDER BY id LIMIT ?2";
    let instances: Vec<String> =
        sqlx::query_scalar(of).bind(id).bind(limit).fetch_all(&mut *connection).await?;
    if !instances.is_empty() {
        return Ok(("instances", instances));
    }
    let of = "SELECT id FROM inbound_routes WHERE tenant_id = ?1 ORDER BY id LIMIT ?2";
    let routes = sqlx::query_scalar(of).bind(id).bind(limit).fetch_all(connection).await?;
    Ok(("inbound routes", routes))
}

/// Makes the tenant that exists from the first start.
pub(super) async fn prepare(connection: &mut SqliteConnection, epoch: &str) -> Result<(), StoreError> {
    let now = Some(gateway_core::time::to_proto(clock::now()));
    let tenant = v1::Tenant {
        id: TenantId::default_tenant().to_string(),
        create_time: now,
        update_time: now,
        etag: schema::etag(1, epoch),
        ..v1::Tenant::default()
    };
    sqlx::query("INSERT INTO tenants (id, change, body) VALUES (?1, 1, ?2) ON CONFLICT (id) DO NOTHING")
        .bind(&tenant.id)
        .bind(tenant.encode_to_vec())
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes whose a resource is that is about to be deleted. `resource_type` is the oneof field of
/// `ConfigResource`.
pub(super) async fn remember_owner(
    connection: &mut SqliteConnection,
    resource_type: &'static str,
    id: &str,
) -> Result<(), StoreError> {
    let table = match resource_type {
        "instance" => {
            "INSERT OR REPLACE INTO former_owners SELECT ?1, id, tenant_id FROM instances WHERE id = ?2"
        }
        "inbound_route" => {
            "INSERT OR REPLACE INTO former_owners SELECT ?1, id, tenant_id FROM inbound_routes WHERE id = ?2"
        }
        _ => {
            "INSERT OR REPLACE INTO former_owners
             SELECT ?1, id, tenant_id FROM webhook_subscriptions WHERE id = ?2"
        }
    };
    sqlx::query(table).bind(resource_type).bind(id).execute(connection).await?;
    Ok(())
}

/// Whether an id was another tenant's. `tenant_id` is empty for the platform.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_owned_by_another(
    connection: &mut SqliteConnection,
    resource_type: &'static str,
    id: &str,
    tenant_id: &str,
) -> Result<bool, StoreError> {
    let owner: Option<String> =
        sqlx::query_scalar("SELECT tenant_id FROM former_owners WHERE type = ?1 AND id = ?2")
            .bind(resource_type)
            .bind(id)
            .fetch_optional(connection)
            .await?;
    Ok(owner.is_some_and(|owner| owner != tenant_id))
}

/// The tenant of an instance, also of a deleted one; None when nothing is known of it.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_instance(store: &Store, instance_id: &str) -> Result<Option<String>, StoreError> {
    let owner = sqlx::query_scalar(
        "SELECT tenant_id FROM instances WHERE id = ?1
         UNION ALL SELECT tenant_id FROM former_owners WHERE type = 'instance' AND id = ?1 LIMIT 1",
    );
    Ok(owner.bind(instance_id).fetch_optional(&mut *store.reader().await?).await?)
}

/// The tenant of an inbound route, also of a deleted one: empty for the platform's, None when nothing is known
/// of it.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_route(store: &Store, route_id: &str) -> Result<Option<String>, StoreError> {
    let owner = sqlx::query_scalar(
        "SELECT tenant_id FROM inbound_routes WHERE id = ?1
         UNION ALL SELECT tenant_id FROM former_owners WHERE type = 'inbound_route' AND id = ?1 LIMIT 1",
    );
    Ok(owner.bind(route_id).fetch_optional(&mut *store.reader().await?).await?)
}

/// The tenant of a webhook subscription, also of a deleted one; None when nothing is known of it.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_subscription(store: &Store, subscription_id: &str) -> Result<Option<String>, StoreError> {
    let owner = sqlx::query_scalar(
        "SELECT tenant_id FROM webhook_subscriptions WHERE id = ?1
         UNION ALL SELECT tenant_id FROM former_owners
         WHERE type = 'webhook_subscription' AND id = ?1 LIMIT 1",
    );
    Ok(owner.bind(subscription_id).fetch_optional(&mut *store.reader().await?).await?)
}
