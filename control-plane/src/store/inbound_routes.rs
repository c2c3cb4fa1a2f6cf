//! Inbound routes. `body` is the route as operators see it, `config` the route as agents get it, with the
//! callback token and the secret values, sealed.

use std::fmt;

use gateway_core::tenant::TenantScope;
use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use sqlx::SqliteConnection;
use zeroize::Zeroizing;

use super::{
    Connection, StoreError, WriteTx,
    damaged::{self, Found},
    decode, from_sql, readable, schema, tenants, to_sql,
};

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

/// What the sealed `config` of a route is bound to, beside its tenant.
pub(super) fn sealed_resource(id: &str) -> String {
    format!("{TYPE}/{id}")
}

/// A route as operators see it, and as agents get it.
#[derive(Clone, PartialEq)]
pub struct StoredRoute {
    /// Without secret values.
    pub route: v1::InboundRoute,
    /// With secret values.
    pub config: v1::InboundRouteConfig,
}

impl fmt::Debug for StoredRoute {
    /// Without secret values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredRoute").field("id", &self.route.id).finish_non_exhaustive()
    }
}

/// A route within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<StoredRoute>, StoreError> {
    let row: Option<(String, Vec<u8>, Vec<u8>)> = sqlx::query_as(
        "SELECT tenant_id, body, config FROM inbound_routes WHERE id = ?1 AND (?2 IS NULL OR tenant_id = ?2)",
    )
    .bind(id)
    .bind(scope.only())
    .fetch_optional(&mut **connection)
    .await?;
    let stored = |(tenant_id, body, config): (String, Vec<u8>, Vec<u8>)| {
        let route = decode(&body)?;
        Ok(StoredRoute { route, config: connection.open(&tenant_id, &sealed_resource(id), &config)? })
    };
    row.map(stored).transpose()
}

/// A route of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(connection: &mut Connection, id: &str) -> Result<Option<StoredRoute>, StoreError> {
    find(connection, &TenantScope::All, id).await
}

/// A route within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<StoredRoute>>, StoreError> {
    let select = "SELECT id, tenant_id, version FROM inbound_routes WHERE id = ?1";
    let found = find(connection, scope, id).await;
    damaged::or_head(connection, found, select, id).await
}

/// Routes in the order of their ids, after `after`. One that cannot be read says so, and shows what is known.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut Connection,
    scope: &TenantScope,
    provider: Option<i32>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::InboundRoute>, StoreError> {
    let rows: Vec<ListRow> = sqlx::query_as(
        "SELECT id, tenant_id, version, provider, body, config FROM inbound_routes
         WHERE (?1 IS NULL OR tenant_id = ?1) AND (?2 IS NULL OR provider = ?2) AND id > ?3 ORDER BY id LIMIT ?4",
    )
    .bind(scope.only())
    .bind(provider)
    .bind(after.unwrap_or_default())
    .bind(limit)
    .fetch_all(&mut **connection)
    .await?;
    let epoch = schema::epoch(connection).await?;
    rows.into_iter().map(|row| listed(connection, row, &epoch)).collect()
}

/// A row: id, tenant, version, provider, and the route in both forms.
type ListRow = (String, String, i64, i32, Vec<u8>, Vec<u8>);

fn listed(connection: &Connection, row: ListRow, epoch: &str) -> Result<v1::InboundRoute, StoreError> {
    let (id, tenant_id, version, provider, body, config) = row;
    let opened = connection.open::<v1::InboundRouteConfig>(&tenant_id, &sealed_resource(&id), &config);
    let whole = opened.map(drop).and_then(|()| decode::<v1::InboundRoute>(&body));
    match whole {
        Err(failure) if failure.is_damage() => {
            damaged::log(TYPE, &id, failure);
            let head = v1::InboundRoute { id, tenant_id, provider, ..Default::default() };
            let etag = schema::etag(from_sql(version), epoch);
            // Only the secrets may be lost.
            Ok(v1::InboundRoute { is_damaged: true, etag, ..decode(&body).unwrap_or(head) })
        }
        whole => whole,
    }
}

/// The ids of all routes within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn ids(connection: &mut SqliteConnection, scope: &TenantScope) -> Result<Vec<String>, StoreError> {
    let ids = sqlx::query_scalar("SELECT id FROM inbound_routes WHERE ?1 IS NULL OR tenant_id = ?1");
    Ok(ids.bind(scope.only()).fetch_all(connection).await?)
}

/// Writes a new or changed route under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written, or id or token are taken.
pub async fn put(transaction: &mut WriteTx, stored: &mut StoredRoute) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    stored.route.etag = transaction.store().etag(version);
    let config = Zeroizing::new(stored.config.encode_to_vec());
    let (id, tenant_id) = (&stored.route.id, &stored.route.tenant_id);
    let config = transaction.seal(tenant_id, &sealed_resource(id), &config).await?;
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
    .bind(config)
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
    tenants::remember_owner(connection, TYPE, id).await?;
    sqlx::query("DELETE FROM inbound_routes WHERE id = ?1").bind(id).execute(&mut *connection).await?;
    schema::bury(connection, TYPE, id, version).await
}

pub(super) async fn changed_since(
    connection: &mut Connection,
    version: i64,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows: Vec<(i64, String, String, Vec<u8>)> = sqlx::query_as(
        "SELECT version, id, tenant_id, config FROM inbound_routes
         WHERE version > ?1 OR id IN (SELECT route_id FROM route_reach WHERE version > ?1) ORDER BY version, id",
    )
    .bind(version)
    .fetch_all(&mut **connection)
    .await?;
    let resource = |(version, id, tenant_id, config): (i64, String, String, Vec<u8>)| {
        let config = connection.open(&tenant_id, &sealed_resource(&id), &config);
        let resource = config.map(|config| Some(Resource::InboundRoute(config)));
        readable(
            TYPE,
            &id,
            resource.map(|resource| v1::ConfigResource { version: from_sql(version), resource }),
        )
    };
    rows.into_iter().filter_map(resource).collect()
}
