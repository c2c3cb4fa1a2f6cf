//! Inbound routes. `body` is the route as operators see it, `config` the route as agents get it, with the
//! callback token and the secret values.

use gateway_core::id::TenantId;
use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use sqlx::SqliteConnection;

use super::{StoreError, WriteTx, decode, from_sql, schema, to_sql};

/// The table.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS inbound_routes (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    provider INTEGER NOT NULL,
    callback_token TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL,
    config BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS inbound_routes_version ON inbound_routes (version);
";

const TYPE: &str = "inbound_route";

/// A route as operators see it, and as agents get it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredRoute {
    /// Without secret values.
    pub route: v1::InboundRoute,
    /// With secret values.
    pub config: v1::InboundRouteConfig,
}

/// A route of one tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut SqliteConnection,
    tenant_id: &TenantId,
    id: &str,
) -> Result<Option<StoredRoute>, StoreError> {
    Ok(find_any(connection, id).await?.filter(|found| found.route.tenant_id == tenant_id.as_str()))
}

/// A route of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<StoredRoute>, StoreError> {
    let row: Option<(Vec<u8>, Vec<u8>)> =
        sqlx::query_as("SELECT body, config FROM inbound_routes WHERE id = ?1")
            .bind(id)
            .fetch_optional(connection)
            .await?;
    let stored = |(body, config): (Vec<u8>, Vec<u8>)| {
        let route = decode(&body)?;
        Ok(StoredRoute { route, config: decode(&config)? })
    };
    row.map(stored).transpose()
}

/// Routes in the order of their ids, after `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut SqliteConnection,
    tenant_id: &TenantId,
    provider: Option<i32>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::InboundRoute>, StoreError> {
    let bodies: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT body FROM inbound_routes
         WHERE tenant_id = ?1 AND (?2 IS NULL OR provider = ?2) AND id > ?3 ORDER BY id LIMIT ?4",
    )
    .bind(tenant_id.as_str())
    .bind(provider)
    .bind(after.unwrap_or_default())
    .bind(limit)
    .fetch_all(connection)
    .await?;
    bodies.iter().map(|body| decode(body)).collect()
}

/// Writes a new or changed route under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written, or id or token are taken.
pub async fn put(transaction: &mut WriteTx, stored: &mut StoredRoute) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    stored.route.etag = transaction.store().etag(version);
    let connection = transaction.connection();
    schema::exhume(connection, TYPE, &stored.route.id).await?;
    sqlx::query(
        "INSERT INTO inbound_routes (id, tenant_id, version, provider, callback_token, body, config)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (id) DO UPDATE SET version = excluded.version, body = excluded.body,
             config = excluded.config",
    )
    .bind(&stored.route.id)
    .bind(&stored.route.tenant_id)
    .bind(to_sql(version))
    .bind(stored.route.provider)
    .bind(&stored.config.callback_token)
    .bind(stored.route.encode_to_vec())
    .bind(stored.config.encode_to_vec())
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a route that no instance refers to.
///
/// # Errors
/// When the database cannot be written, or an instance refers to it.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    let version = to_sql(transaction.bump_version().await?);
    let connection = transaction.connection();
    sqlx::query("DELETE FROM inbound_routes WHERE id = ?1").bind(id).execute(&mut *connection).await?;
    schema::bury(connection, TYPE, id, version).await
}

pub(super) async fn changed_since(
    connection: &mut SqliteConnection,
    version: i64,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, config FROM inbound_routes WHERE version > ?1 ORDER BY version, id")
            .bind(version)
            .fetch_all(connection)
            .await?;
    let resource = |(version, config): (i64, Vec<u8>)| {
        let resource = Some(Resource::InboundRoute(decode(&config)?));
        Ok(v1::ConfigResource { version: from_sql(version), resource })
    };
    rows.into_iter().map(resource).collect()
}
