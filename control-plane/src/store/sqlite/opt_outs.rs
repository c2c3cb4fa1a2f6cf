//! Opt-outs: one record per contact and instance, found by phone (national variants match) or user id, and
//! the log of every decision that changed one.
//!
//! Records outlive their instance: should its id come back, they hold again.

use gateway_core::{
    id::{InstanceId, TenantId},
    opt_out::{ContactRef, Decision, Merged, OptOutRecord, merge, merge_record},
    tenant::TenantScope,
};
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use tracing::warn;

use super::{StoreError, WriteTx, decode, from_sql, instances, to_sql};

/// The tables. `phone_key` is the number's match key, and NULL when there is no phone; so with `user_id`.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS opt_outs (
    id TEXT PRIMARY KEY NOT NULL,
    tenant_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    phone_key TEXT,
    user_id TEXT,
    state INTEGER NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (instance_id, phone_key),
    UNIQUE (instance_id, user_id)
) STRICT;
CREATE INDEX IF NOT EXISTS opt_outs_phone ON opt_outs (phone_key, tenant_id) WHERE phone_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS opt_outs_user_id ON opt_outs (user_id, tenant_id) WHERE user_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS opt_out_log (
    cursor INTEGER PRIMARY KEY AUTOINCREMENT,
    opt_out_id TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT;
";

const TABLE: &str = "opt_outs";

/// What recording a decision came to.
#[derive(Debug, Clone, PartialEq)]
pub struct OptOutRecorded {
    /// The record as it now stands, with its etag.
    pub opt_out: v1::OptOut,
    /// The record as it stood; None when there was none.
    pub before: Option<v1::OptOut>,
    /// Whether the record is another one than before.
    pub changed: bool,
    /// Whether the customer is to be told: [`Merged::is_news`].
    pub is_news: bool,
}

/// Which opt-outs a list gives.
#[derive(Debug, Clone, Default)]
pub struct OptOutFilter<'a> {
    /// Only of this instance.
    pub instance_id: Option<&'a str>,
    /// Only of the phone number with this match key.
    pub phone_key: Option<&'a str>,
    /// Only in this state.
    pub state: Option<i32>,
}

/// An opt-out within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut SqliteConnection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::OptOut>, StoreError> {
    let body: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT body FROM opt_outs WHERE id = ?1 AND (?2 IS NULL OR tenant_id = ?2)")
            .bind(id)
            .bind(scope.only())
            .fetch_optional(connection)
            .await?;
    body.map(|body| decode(&body)).transpose()
}

/// Opt-outs in the order of their ids, after `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut SqliteConnection,
    scope: &TenantScope,
    filter: &OptOutFilter<'_>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::OptOut>, StoreError> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT body FROM opt_outs WHERE id > ");
    sql.push_bind(after.unwrap_or_default());
    if let Some(tenant_id) = scope.only() {
        sql.push(" AND tenant_id = ").push_bind(tenant_id);
    }
    if let Some(instance_id) = filter.instance_id {
        sql.push(" AND instance_id = ").push_bind(instance_id);
    }
    if let Some(phone_key) = filter.phone_key {
        sql.push(" AND phone_key = ").push_bind(phone_key);
    }
    if let Some(state) = filter.state {
        sql.push(" AND state = ").push_bind(state);
    }
    sql.push(" ORDER BY id LIMIT ").push_bind(limit);
    let bodies: Vec<Vec<u8>> = sql.build_query_scalar().fetch_all(connection).await?;
    bodies.iter().map(|body| decode(body)).collect()
}

/// The records that one of a contact's keys names, at one instance or (None) at all of the tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_contact(
    connection: &mut SqliteConnection,
    tenant_id: &TenantId,
    instance_id: Option<&str>,
    contact: &ContactRef,
) -> Result<Vec<v1::OptOut>, StoreError> {
    let (phone_key, user_id) = keys(contact);
    // Two queries, because SQLite would read the whole table for an OR over two indexes.
    let mut rows =
        of_key(connection, tenant_id, instance_id, " AND phone_key = ", phone_key.as_deref()).await?;
    for row in of_key(connection, tenant_id, instance_id, " AND user_id = ", user_id).await? {
        if rows.iter().all(|known| known.id != row.id) {
            rows.push(row);
        }
    }
    Ok(rows)
}

async fn of_key(
    connection: &mut SqliteConnection,
    tenant_id: &TenantId,
    instance_id: Option<&str>,
    condition: &'static str,
    key: Option<&str>,
) -> Result<Vec<v1::OptOut>, StoreError> {
    let Some(key) = key else { return Ok(Vec::new()) };
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT body FROM opt_outs WHERE tenant_id = ");
    sql.push_bind(tenant_id.as_str()).push(condition).push_bind(key);
    if let Some(instance_id) = instance_id {
        sql.push(" AND instance_id = ").push_bind(instance_id);
    }
    sql.push(" ORDER BY id");
    let bodies: Vec<Vec<u8>> = sql.build_query_scalar().fetch_all(connection).await?;
    bodies.iter().map(|body| decode(body)).collect()
}

/// What is known of a contact at an instance: when phone and user id name different records, their merger.
///
/// # Errors
/// When the database cannot be read.
pub async fn known(
    connection: &mut SqliteConnection,
    tenant_id: &TenantId,
    instance_id: &InstanceId,
    contact: &ContactRef,
) -> Result<Option<OptOutRecord>, StoreError> {
    let rows = of_contact(connection, tenant_id, Some(instance_id.as_str()), contact).await?;
    let records = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(merged_of(&records))
}

/// Merges a decision made through the API into what is known of its contact, and writes the outcome.
///
/// # Errors
/// When the database cannot be written.
pub async fn record(transaction: &mut WriteTx, decision: &Decision) -> Result<OptOutRecorded, StoreError> {
    let now = clock::now();
    let merger = |known: Option<&OptOutRecord>| merge(known, decision, now);
    let (tenant_id, instance_id) = (&decision.tenant_id, &decision.instance_id);
    write_merged(transaction, tenant_id, instance_id, &decision.contact, now, merger).await
}

/// Merges a record that an agent reports into what is known of its contact, and writes the outcome. One
/// that cannot be read is passed over: asking the agent for it again would give the same.
pub(super) async fn record_reported(
    transaction: &mut WriteTx,
    reported: &v1::OptOut,
) -> Result<OptOutRecorded, StoreError> {
    let mut incoming = match OptOutRecord::try_from(reported) {
        Ok(incoming) => incoming,
        Err(violations) => {
            warn!(%violations, "passed over a reported opt-out that cannot be read");
            let opt_out = reported.clone();
            return Ok(OptOutRecorded { opt_out, before: None, changed: false, is_news: false });
        }
    };
    // The tenant is the instance's, whatever the agent believes.
    if let Some(instance) = instances::find_any(transaction, incoming.instance_id.as_str()).await?
        && let Ok(tenant_id) = instance.tenant_id.parse()
    {
        incoming.tenant_id = tenant_id;
    }
    let now = clock::now();
    let merger = |known: Option<&OptOutRecord>| merge_record(known, &incoming, now);
    let (tenant_id, instance_id) = (&incoming.tenant_id, &incoming.instance_id);
    write_merged(transaction, tenant_id, instance_id, &incoming.contact, now, merger).await
}

async fn write_merged(
    transaction: &mut WriteTx,
    tenant_id: &TenantId,
    instance_id: &InstanceId,
    contact: &ContactRef,
    now: Timestamp,
    merger: impl FnOnce(Option<&OptOutRecord>) -> Merged,
) -> Result<OptOutRecorded, StoreError> {
    let rows = of_contact(transaction, tenant_id, Some(instance_id.as_str()), contact).await?;
    let before = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let known = merged_of(&before);
    let merged = merger(known.as_ref());
    if let ([row], false) = (rows.as_slice(), merged.changed) {
        let (opt_out, before) = (row.clone(), Some(row.clone()));
        return Ok(OptOutRecorded { opt_out, before, changed: false, is_news: false });
    }
    // The old rows go first, since a key belongs to one row.
    for row in &rows {
        sqlx::query("DELETE FROM opt_outs WHERE id = ?1")
            .bind(&row.id)
            .execute(transaction.connection())
            .await?;
    }
    let opt_out = put(transaction, &merged.record).await?;
    for old in &before {
        let contact = keys_only_in(&old.contact, &merged.record.contact);
        if !contact.is_empty() {
            put(transaction, &old.copy_to(contact, now)).await?;
        }
    }
    let before = known.as_ref().map(v1::OptOut::from);
    Ok(OptOutRecorded { opt_out, before, changed: true, is_news: merged.is_news })
}

/// Logs a record and writes it. Its etag names the place in the log.
async fn put(transaction: &mut WriteTx, record: &OptOutRecord) -> Result<v1::OptOut, StoreError> {
    let mut opt_out = v1::OptOut::from(record);
    let log =
        sqlx::query_scalar("INSERT INTO opt_out_log (opt_out_id, body) VALUES (?1, ?2) RETURNING cursor");
    let log = log.bind(&opt_out.id).bind(opt_out.encode_to_vec());
    let cursor: i64 = log.fetch_one(transaction.connection()).await?;
    transaction.logged_opt_out(from_sql(cursor));
    opt_out.etag = transaction.store().etag(from_sql(cursor));
    let (phone_key, user_id) = keys(&record.contact);
    sqlx::query(
        "INSERT OR REPLACE INTO opt_outs (id, tenant_id, instance_id, phone_key, user_id, state, body)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .bind(&opt_out.id)
    .bind(&opt_out.tenant_id)
    .bind(&opt_out.instance_id)
    .bind(phone_key)
    .bind(user_id)
    .bind(opt_out.state)
    .bind(opt_out.encode_to_vec())
    .execute(transaction.connection())
    .await?;
    Ok(opt_out)
}

fn read(row: &v1::OptOut) -> Result<OptOutRecord, StoreError> {
    OptOutRecord::try_from(row).map_err(|source| StoreError::Invalid { table: TABLE, source })
}

fn keys(contact: &ContactRef) -> (Option<String>, Option<&str>) {
    (contact.phone.as_ref().map(gateway_core::phone::Phone::match_key), contact.user_id.as_deref())
}

fn merged_of(records: &[OptOutRecord]) -> Option<OptOutRecord> {
    let (first, rest) = records.split_first()?;
    let merge_two = |merged: OptOutRecord, next: &OptOutRecord| {
        let now = merged.update_time.max(next.update_time);
        let mut both = merge_record(Some(&merged), next, now).record;
        // The record found by phone comes first, and its keys count.
        both.contact = next.contact.updated(&merged.contact);
        both
    };
    Some(rest.iter().fold(first.clone(), merge_two))
}

/// Keys that the successor of a record no longer has.
fn keys_only_in(old: &ContactRef, successor: &ContactRef) -> ContactRef {
    let (old_phone, successor_phone) = (keys(old).0, keys(successor).0);
    ContactRef {
        phone: old.phone.clone().filter(|_| old_phone != successor_phone),
        user_id: old.user_id.clone().filter(|user_id| Some(user_id) != successor.user_id.as_ref()),
    }
}

pub(super) async fn newest_cursor(connection: &mut SqliteConnection) -> Result<u64, StoreError> {
    let newest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(cursor) FROM opt_out_log").fetch_one(connection).await?;
    Ok(from_sql(newest.unwrap_or(0)))
}

pub(super) async fn since(
    connection: &mut SqliteConnection,
    cursor: u64,
    limit: u32,
) -> Result<(Vec<v1::OptOut>, u64), StoreError> {
    // A record that was merged into another has no row any more; the other one has a later entry.
    let rows: Vec<(i64, Option<Vec<u8>>)> = sqlx::query_as(
        "SELECT l.cursor, o.body FROM opt_out_log l LEFT JOIN opt_outs o ON o.id = l.opt_out_id
         WHERE l.cursor > ?1 ORDER BY l.cursor LIMIT ?2",
    )
    .bind(to_sql(cursor))
    .bind(limit)
    .fetch_all(connection)
    .await?;
    let newest = rows.last().map_or(cursor, |(newest, _)| from_sql(*newest));
    let bodies = rows.iter().filter_map(|(_, body)| body.as_deref());
    Ok((bodies.map(decode).collect::<Result<_, _>>()?, newest))
}
