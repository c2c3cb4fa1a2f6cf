//! Instances.

use gateway_core::tenant::TenantScope;
use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{StoreError, WriteTx, decode, from_sql, route_reach, schema, tenants, to_sql};

/// The table. `number_key` is `provider_number_id` in the form in which it is unique within the route.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS instances (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    inbound_route_id TEXT NOT NULL REFERENCES inbound_routes (id),
    number_key TEXT NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (inbound_route_id, number_key)
) STRICT;
CREATE INDEX IF NOT EXISTS instances_version ON instances (version);
";

const TYPE: &str = "instance";

/// An instance within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut SqliteConnection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::Instance>, StoreError> {
    Ok(find_any(connection, id).await?.filter(|instance| scope.contains(&instance.tenant_id)))
}

/// An instance of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<v1::Instance>, StoreError> {
    let body: Option<Vec<u8>> = sqlx::query_scalar("SELECT body FROM instances WHERE id = ?1")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    body.map(|body| decode(&body)).transpose()
}

/// The id of the instance that has a number on a route.
///
/// # Errors
/// When the database cannot be read.
pub async fn holder_of_number(
    connection: &mut SqliteConnection,
    inbound_route_id: &str,
    number_key: &str,
) -> Result<Option<String>, StoreError> {
    let holder =
        sqlx::query_scalar("SELECT id FROM instances WHERE inbound_route_id = ?1 AND number_key = ?2")
            .bind(inbound_route_id)
            .bind(number_key);
    Ok(holder.fetch_optional(connection).await?)
}

/// Ids of instances of a route, at most `limit`.
///
/// # Errors
/// When the database cannot be read.
pub async fn ids_of_route(
    connection: &mut SqliteConnection,
    inbound_route_id: &str,
    limit: u32,
) -> Result<Vec<String>, StoreError> {
    let ids = sqlx::query_scalar("SELECT id FROM instances WHERE inbound_route_id = ?1 ORDER BY id LIMIT ?2")
        .bind(inbound_route_id)
        .bind(limit);
    Ok(ids.fetch_all(connection).await?)
}

/// Instances in the order of their ids, after `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut SqliteConnection,
    scope: &TenantScope,
    inbound_route_id: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::Instance>, StoreError> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT body FROM instances WHERE id > ");
    sql.push_bind(after.unwrap_or_default());
    if let Some(tenant_id) = scope.only() {
        sql.push(" AND tenant_id = ").push_bind(tenant_id);
    }
    if let Some(inbound_route_id) = inbound_route_id {
        sql.push(" AND inbound_route_id = ").push_bind(inbound_route_id);
    }
    sql.push(" ORDER BY id LIMIT ").push_bind(limit);
    let bodies: Vec<Vec<u8>> = sql.build_query_scalar().fetch_all(connection).await?;
    bodies.iter().map(|body| decode(body)).collect()
}

/// Writes a new or changed instance under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written, or id or number are taken.
pub async fn put(
    transaction: &mut WriteTx,
    instance: &mut v1::Instance,
    number_key: &str,
) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    instance.etag = transaction.store().etag(version);
    let connection = transaction.connection();
    schema::exhume(connection, TYPE, &instance.id).await?;
    route_reach::touch(connection, &instance.id, Some(&instance.inbound_route_id), to_sql(version)).await?;
    sqlx::query(
        "INSERT INTO instances (id, tenant_id, version, inbound_route_id, number_key, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (id) DO UPDATE SET version = excluded.version,
             inbound_route_id = excluded.inbound_route_id, number_key = excluded.number_key,
             body = excluded.body",
    )
    .bind(&instance.id)
    .bind(&instance.tenant_id)
    .bind(to_sql(version))
    .bind(&instance.inbound_route_id)
    .bind(number_key)
    .bind(instance.encode_to_vec())
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes an instance and its policy. Its opt-outs stay: they outlive it, should its id come back.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    super::opt_out_policies::delete(transaction, id).await?;
    let version = to_sql(transaction.bump_version().await?);
    let connection = transaction.connection();
    tenants::remember_owner(connection, TYPE, id).await?;
    route_reach::touch(connection, id, None, version).await?;
    sqlx::query("DELETE FROM instances WHERE id = ?1").bind(id).execute(&mut *connection).await?;
    schema::bury(connection, TYPE, id, version).await
}

pub(super) async fn changed_since(
    connection: &mut SqliteConnection,
    version: i64,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, body FROM instances WHERE version > ?1 ORDER BY version, id")
            .bind(version)
            .fetch_all(connection)
            .await?;
    let resource = |(version, body): (i64, Vec<u8>)| {
        let resource = Some(Resource::Instance(decode(&body)?));
        Ok(v1::ConfigResource { version: from_sql(version), resource })
    };
    rows.into_iter().map(resource).collect()
}
