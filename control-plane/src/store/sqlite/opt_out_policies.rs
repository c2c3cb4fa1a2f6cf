//! Opt-out policies that differ from the default.

use gateway_core::id::TenantId;
use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use sqlx::SqliteConnection;

use super::{StoreError, WriteTx, decode, from_sql, schema, to_sql};

/// The table.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS opt_out_policies (
    instance_id TEXT PRIMARY KEY NOT NULL REFERENCES instances (id),
    tenant_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS opt_out_policies_version ON opt_out_policies (version);
";

const TYPE: &str = "opt_out_policy";

/// The policy of an instance; None while it is the default.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut SqliteConnection,
    instance_id: &str,
) -> Result<Option<v1::OptOutPolicy>, StoreError> {
    let body: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT body FROM opt_out_policies WHERE instance_id = ?1")
            .bind(instance_id)
            .fetch_optional(connection)
            .await?;
    body.map(|body| decode(&body)).transpose()
}

/// Writes a policy under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written.
pub async fn put(
    transaction: &mut WriteTx,
    tenant_id: &TenantId,
    policy: &mut v1::OptOutPolicy,
) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    policy.etag = transaction.store().etag(version);
    let connection = transaction.connection();
    schema::exhume(connection, TYPE, &policy.instance_id).await?;
    sqlx::query(
        "INSERT INTO opt_out_policies (instance_id, tenant_id, version, body) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (instance_id) DO UPDATE SET version = excluded.version, body = excluded.body",
    )
    .bind(&policy.instance_id)
    .bind(tenant_id.as_str())
    .bind(to_sql(version))
    .bind(policy.encode_to_vec())
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes the policy of an instance that is about to be removed.
pub(super) async fn delete(transaction: &mut WriteTx, instance_id: &str) -> Result<(), StoreError> {
    if find(transaction.connection(), instance_id).await?.is_none() {
        return Ok(());
    }
    let version = to_sql(transaction.bump_version().await?);
    let connection = transaction.connection();
    let delete = sqlx::query("DELETE FROM opt_out_policies WHERE instance_id = ?1").bind(instance_id);
    delete.execute(&mut *connection).await?;
    schema::bury(connection, TYPE, instance_id, version).await
}

pub(super) async fn changed_since(
    connection: &mut SqliteConnection,
    version: i64,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "SELECT version, body FROM opt_out_policies WHERE version > ?1 ORDER BY version, instance_id",
    )
    .bind(version)
    .fetch_all(connection)
    .await?;
    let resource = |(version, body): (i64, Vec<u8>)| {
        let resource = Some(Resource::OptOutPolicy(decode(&body)?));
        Ok(v1::ConfigResource { version: from_sql(version), resource })
    };
    rows.into_iter().map(resource).collect()
}
