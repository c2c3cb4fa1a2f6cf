//! Webhook subscriptions, each with its secrets: the form that agents get, sealed.

use gateway_core::{destination, tenant::TenantScope, time};
use gateway_proto::v1::{self, config_resource::Resource};
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use zeroize::Zeroizing;

use super::{
    Connection, StoreError, WriteTx,
    damaged::{self, Found},
    from_sql, readable, schema, tenants, to_sql,
};
use crate::audit::{Audited, AuditedBy};

/// The table.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS webhook_subscriptions (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    instance_id TEXT NOT NULL REFERENCES instances (id),
    config BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS webhook_subscriptions_version ON webhook_subscriptions (version);
CREATE INDEX IF NOT EXISTS webhook_subscriptions_instance ON webhook_subscriptions (instance_id, id);
";

const TYPE: &str = "webhook_subscription";

/// What the sealed `config` of a subscription is bound to, beside its tenant.
pub(super) fn sealed_resource(id: &str) -> String {
    format!("{TYPE}/{id}")
}

/// A row: version, id, tenant and the sealed configuration.
type Row = (i64, String, String, Vec<u8>);

fn open(
    connection: &Connection,
    (_, id, tenant_id, config): &Row,
) -> Result<v1::WebhookSubscriptionConfig, StoreError> {
    connection.open(tenant_id, &sealed_resource(id), config)
}

/// The form that agents get.
fn resource(connection: &Connection, row: &Row) -> Result<v1::ConfigResource, StoreError> {
    let mut config = open(connection, row)?;
    // Agents get no key that they do not need.
    if !config.webhook_subscription.as_ref().is_some_and(|found| found.asymmetric_signature) {
        config.signing_keys.clear();
    }
    let resource = Some(Resource::WebhookSubscription(config));
    Ok(v1::ConfigResource { version: from_sql(row.0), resource })
}

/// A subscription within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::WebhookSubscriptionConfig>, StoreError> {
    let row: Option<Row> = sqlx::query_as(
        "SELECT version, id, tenant_id, config FROM webhook_subscriptions
         WHERE id = ?1 AND (?2 IS NULL OR tenant_id = ?2)",
    )
    .bind(id)
    .bind(scope.only())
    .fetch_optional(&mut **connection)
    .await?;
    row.map(|row| open(connection, &row)).transpose()
}

/// A subscription within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<v1::WebhookSubscriptionConfig>>, StoreError> {
    let select = "SELECT id, tenant_id, version FROM webhook_subscriptions WHERE id = ?1";
    let found = find(connection, scope, id).await;
    damaged::or_head(connection, found, select, id).await
}

/// A subscription of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(
    connection: &mut Connection,
    id: &str,
) -> Result<Option<v1::WebhookSubscriptionConfig>, StoreError> {
    find(connection, &TenantScope::All, id).await
}

/// Subscriptions in the order of their ids, after `after`. One that cannot be read says so, and shows what is known.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut Connection,
    scope: &TenantScope,
    instance_id: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::WebhookSubscription>, StoreError> {
    let mut sql = QueryBuilder::<Sqlite>::new(
        "SELECT version, id, tenant_id, config, instance_id FROM webhook_subscriptions WHERE id > ",
    );
    sql.push_bind(after.unwrap_or_default());
    if let Some(tenant_id) = scope.only() {
        sql.push(" AND tenant_id = ").push_bind(tenant_id);
    }
    if let Some(instance_id) = instance_id {
        sql.push(" AND instance_id = ").push_bind(instance_id);
    }
    sql.push(" ORDER BY id LIMIT ").push_bind(limit);
    let rows: Vec<(i64, String, String, Vec<u8>, String)> =
        sql.build_query_as().fetch_all(&mut **connection).await?;
    let epoch = schema::epoch(connection).await?;
    let listed = |(version, id, tenant_id, config, instance_id)| {
        let row = (version, id, tenant_id, config);
        match open(connection, &row) {
            Err(failure) if failure.is_damage() => {
                let (version, id, tenant_id, _) = row;
                damaged::log(TYPE, &id, failure);
                let etag = schema::etag(from_sql(version), &epoch);
                let is_damaged = true;
                Ok(v1::WebhookSubscription {
                    id,
                    tenant_id,
                    instance_id,
                    etag,
                    is_damaged,
                    ..Default::default()
                })
            }
            opened => opened.map(|config| config.webhook_subscription.unwrap_or_default()),
        }
    };
    rows.into_iter().map(listed).collect()
}

/// Whether an instance has a subscription, in whatever state.
///
/// # Errors
/// When the database cannot be read.
pub async fn has_any(connection: &mut SqliteConnection, instance_id: &str) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM webhook_subscriptions WHERE instance_id = ?1)";
    Ok(sqlx::query_scalar(sql).bind(instance_id).fetch_one(connection).await?)
}

/// The instances of a route that have a subscription.
///
/// # Errors
/// When the database cannot be read.
pub async fn instances_of_route(
    connection: &mut SqliteConnection,
    inbound_route_id: &str,
) -> Result<Vec<String>, StoreError> {
    let ids = sqlx::query_scalar(
        "SELECT id FROM instances WHERE inbound_route_id = ?1
         AND EXISTS (SELECT 1 FROM webhook_subscriptions WHERE instance_id = instances.id)
         ORDER BY id",
    );
    Ok(ids.bind(inbound_route_id).fetch_all(connection).await?)
}

/// Writes a new or changed subscription under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written or the id is taken.
pub async fn put(
    transaction: &mut WriteTx,
    config: &mut v1::WebhookSubscriptionConfig,
) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    let subscription = config.webhook_subscription.get_or_insert_default();
    subscription.etag = transaction.store().etag(version);
    let (id, tenant_id) = (subscription.id.clone(), subscription.tenant_id.clone());
    let instance_id = subscription.instance_id.clone();
    let plain = Zeroizing::new(config.encode_to_vec());
    let sealed = transaction.seal(&tenant_id, &sealed_resource(&id), &plain).await?;
    let connection = transaction.connection();
    schema::exhume(connection, TYPE, &id).await?;
    sqlx::query(
        "INSERT INTO webhook_subscriptions (id, tenant_id, version, instance_id, config)
         VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (id) DO UPDATE SET version = excluded.version, config = excluded.config",
    )
    .bind(id)
    .bind(tenant_id)
    .bind(to_sql(version))
    .bind(instance_id)
    .bind(sealed)
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes a subscription.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    let version = to_sql(transaction.bump_version().await?);
    let connection = transaction.connection();
    tenants::remember_owner(connection, TYPE, id).await?;
    sqlx::query("DELETE FROM webhook_subscriptions WHERE id = ?1").bind(id).execute(&mut *connection).await?;
    schema::bury(connection, TYPE, id, version).await
}

/// Pauses an active subscription that still has this destination. True when it did.
pub(super) async fn pause_gone(
    transaction: &mut WriteTx,
    id: &str,
    destination_url: &str,
    reason: &str,
) -> Result<bool, StoreError> {
    let Some(mut config) = find_any(transaction, id).await? else { return Ok(false) };
    let subscription = config.webhook_subscription.get_or_insert_default();
    let is_active = subscription.state() == v1::WebhookSubscriptionState::Active;
    if !is_active || !destination::is_same(&subscription.destination_url, destination_url) {
        return Ok(false);
    }
    pause(transaction, &mut config, reason).await?;
    Ok(true)
}

/// Pauses an active subscription that was found at `found` to have nothing but failures, unless it was changed
/// after that. True when it was paused.
pub(super) async fn pause_failing(
    transaction: &mut WriteTx,
    id: &str,
    found: Timestamp,
    reason: &str,
) -> Result<bool, StoreError> {
    let Some(mut config) = find_any(transaction, id).await? else { return Ok(false) };
    let subscription = config.webhook_subscription.get_or_insert_default();
    let is_active = subscription.state() == v1::WebhookSubscriptionState::Active;
    let changed = subscription.update_time.as_ref().and_then(time::from_proto);
    if !is_active || changed.is_some_and(|changed| changed > found) {
        return Ok(false);
    }
    pause(transaction, &mut config, reason).await?;
    Ok(true)
}

async fn pause(
    transaction: &mut WriteTx,
    config: &mut v1::WebhookSubscriptionConfig,
    reason: &str,
) -> Result<(), StoreError> {
    let before = config.clone();
    let subscription = config.webhook_subscription.get_or_insert_default();
    subscription.set_state(v1::WebhookSubscriptionState::Paused);
    reason.clone_into(&mut subscription.pause_reason);
    subscription.update_time = Some(time::to_proto(clock::now()));
    put(transaction, config).await?;
    let audited = Audited::changed("PauseWebhookSubscription", &before, config);
    transaction.audit(AuditedBy::GATEWAY, audited).await
}

/// The subscriptions of an instance, in the form that agents get.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_instance(
    connection: &mut Connection,
    instance_id: &str,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT version, id, tenant_id, config FROM webhook_subscriptions WHERE instance_id = ?1 ORDER BY id",
    )
    .bind(instance_id)
    .fetch_all(&mut **connection)
    .await?;
    rows.iter().filter_map(|row| readable(TYPE, &row.1, resource(connection, row))).collect()
}

pub(super) async fn changed_since(
    connection: &mut Connection,
    version: i64,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT version, id, tenant_id, config FROM webhook_subscriptions WHERE version > ?1
         ORDER BY version, id",
    )
    .bind(version)
    .fetch_all(&mut **connection)
    .await?;
    rows.iter().filter_map(|row| readable(TYPE, &row.1, resource(connection, row))).collect()
}
