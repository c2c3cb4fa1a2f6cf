//! Tables `agents`, `join_tokens` and `agent_buffer_damages`: who may report for which region, and what broke. Tokens and credentials are kept as
//! SHA-256 only; both are random, so a slow hash would add nothing.

use std::collections::HashMap;

use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection, sqlite::SqliteRow};

use super::{Store, StoreError, decode};
use crate::api::authorize::AgentIdentity;

/// The tables.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS agents (
    id TEXT PRIMARY KEY,
    region TEXT NOT NULL,
    build TEXT NOT NULL,
    credential_hash BLOB NOT NULL UNIQUE,
    create_time INTEGER NOT NULL,
    last_seen_time INTEGER NOT NULL,
    tenant_id TEXT,
    certificate_expire_time INTEGER,
    revoke_time INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS join_tokens (
    token_hash BLOB PRIMARY KEY,
    region TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    tenant_id TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS agent_buffer_damages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS agent_buffer_damages_agent ON agent_buffer_damages (agent_id, seq);
";

/// Columns that the first databases did not have.
const ADDED_COLUMNS: [(&str, &str, &str); 4] = [
    ("agents", "tenant_id", "TEXT"),
    ("agents", "certificate_expire_time", "INTEGER"),
    ("agents", "revoke_time", "INTEGER"),
    ("join_tokens", "tenant_id", "TEXT"),
];

/// Adds the columns that an older database does not have.
///
/// # Errors
/// When the database cannot be written.
pub(super) async fn add_columns(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    for (table, column, kind) in ADDED_COLUMNS {
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM pragma_table_info(?) WHERE name = ?")
            .bind(table)
            .bind(column)
            .fetch_one(&mut *connection)
            .await?;
        if found == 0 {
            let sql = format!("ALTER TABLE {table} ADD COLUMN {column} {kind}");
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *connection).await?;
        }
    }
    Ok(())
}

/// Damages kept per agent; the oldest go.
pub const BUFFER_DAMAGES_MAX: u32 = 10;

/// An enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRow {
    /// Its id.
    pub id: String,
    /// Where it runs.
    pub region: String,
    /// Its program version when it last connected.
    pub build: String,
    /// When it enrolled.
    pub create_time: Timestamp,
    /// When it last connected.
    pub last_seen_time: Timestamp,
    /// The tenant it works for; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// When its newest client certificate expires; None when it never had one.
    pub certificate_expire_time: Option<Timestamp>,
    /// When it was revoked.
    pub revoke_time: Option<Timestamp>,
}

/// An agent that is about to exist.
#[derive(Debug, Clone)]
pub struct NewAgent {
    /// Its id.
    pub id: String,
    /// Its region.
    pub region: String,
    /// Its program version.
    pub build: String,
    /// SHA-256 of its credential.
    pub credential_hash: [u8; 32],
    /// The tenant it works for; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// When its client certificate expires; None when it has none.
    pub certificate_expire_time: Option<Timestamp>,
}

/// What a join token was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The region of the agent.
    pub region: String,
    /// Its tenant; None for an agent of the platform.
    pub tenant_id: Option<String>,
}

/// Keeps a join token that can be used until `expire_time`, and forgets expired ones, inside the caller's
/// transaction.
///
/// # Errors
/// When the database cannot be written.
pub async fn create_join_token(
    connection: &mut SqliteConnection,
    token_hash: &[u8; 32],
    token: &JoinToken,
    now: Timestamp,
    expire_time: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM join_tokens WHERE expire_time < ?")
        .bind(now.as_microsecond())
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO join_tokens (token_hash, region, create_time, expire_time, tenant_id) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(token_hash.as_slice())
    .bind(&token.region)
    .bind(now.as_microsecond())
    .bind(expire_time.as_microsecond())
    .bind(&token.tenant_id)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether a join token could be used at `now`.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_join_token(store: &Store, token_hash: &[u8; 32], now: Timestamp) -> Result<bool, StoreError> {
    let known = "SELECT EXISTS (SELECT 1 FROM join_tokens WHERE token_hash = ? AND expire_time > ?)";
    let known = sqlx::query_scalar(known).bind(token_hash.as_slice()).bind(now.as_microsecond());
    Ok(known.fetch_one(store.pool()).await?)
}

/// Uses a join token up, inside the caller's transaction, and returns what it was made for. None when it is unknown,
/// used or expired.
///
/// # Errors
/// When the database cannot be written.
pub async fn consume_join_token(
    connection: &mut SqliteConnection,
    token_hash: &[u8; 32],
    now: Timestamp,
) -> Result<Option<JoinToken>, sqlx::Error> {
    let row: Option<(String, Option<String>)> = sqlx::query_as(
        "DELETE FROM join_tokens WHERE token_hash = ? AND expire_time > ? RETURNING region, tenant_id",
    )
    .bind(token_hash.as_slice())
    .bind(now.as_microsecond())
    .fetch_optional(connection)
    .await?;
    Ok(row.map(|(region, tenant_id)| JoinToken { region, tenant_id }))
}

/// Records an agent, inside the caller's transaction.
///
/// # Errors
/// When the database cannot be written.
pub async fn create_agent(
    connection: &mut SqliteConnection,
    agent: &NewAgent,
    now: Timestamp,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO agents (id, region, build, credential_hash, create_time, last_seen_time, tenant_id,
         certificate_expire_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&agent.id)
    .bind(&agent.region)
    .bind(&agent.build)
    .bind(agent.credential_hash.as_slice())
    .bind(now.as_microsecond())
    .bind(now.as_microsecond())
    .bind(&agent.tenant_id)
    .bind(agent.certificate_expire_time.map(Timestamp::as_microsecond))
    .execute(connection)
    .await?;
    Ok(())
}

/// Who has a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An agent that may call.
    Agent(AgentIdentity),
    /// An agent that was revoked.
    Revoked,
}

/// The agent that has a credential.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_by_credential_hash(
    store: &Store,
    credential_hash: &[u8; 32],
) -> Result<Option<Holder>, StoreError> {
    let row: Option<(String, String, Option<String>, bool, bool)> = sqlx::query_as(
        "SELECT id, region, tenant_id, certificate_expire_time IS NOT NULL, revoke_time IS NOT NULL FROM agents
         WHERE credential_hash = ?",
    )
    .bind(credential_hash.as_slice())
    .fetch_optional(store.pool())
    .await?;
    Ok(row.map(|(agent_id, region, tenant_id, has_certificate, is_revoked)| {
        if is_revoked {
            Holder::Revoked
        } else {
            Holder::Agent(AgentIdentity { agent_id, region, tenant_id, has_certificate })
        }
    }))
}

/// Whether an agent was revoked, or is not there.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_revoked(store: &Store, id: &str) -> Result<bool, StoreError> {
    let known = sqlx::query_scalar("SELECT count(*) FROM agents WHERE id = ? AND revoke_time IS NULL");
    let known: i64 = known.bind(id).fetch_one(store.pool()).await?;
    Ok(known == 0)
}

/// Notes when an agent's new client certificate expires. False when the agent was revoked meanwhile.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_certificate(store: &Store, id: &str, expire_time: Timestamp) -> Result<bool, StoreError> {
    let mut tx = store.begin_write().await?;
    let recorded =
        sqlx::query("UPDATE agents SET certificate_expire_time = ? WHERE id = ? AND revoke_time IS NULL")
            .bind(expire_time.as_microsecond())
            .bind(id)
            .execute(tx.connection())
            .await?;
    tx.commit().await?;
    Ok(recorded.rows_affected() > 0)
}

/// Revokes an agent, inside the caller's transaction. One that was revoked before stays revoked since then.
///
/// # Errors
/// When the database cannot be written.
pub async fn revoke(connection: &mut SqliteConnection, id: &str, now: Timestamp) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE agents SET revoke_time = ? WHERE id = ? AND revoke_time IS NULL")
        .bind(now.as_microsecond())
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Notes that an agent connected.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_connection(
    store: &Store,
    id: &str,
    build: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut tx = store.begin_write().await?;
    sqlx::query("UPDATE agents SET build = ?, last_seen_time = ? WHERE id = ?")
        .bind(build)
        .bind(now.as_microsecond())
        .bind(id)
        .execute(tx.connection())
        .await?;
    tx.commit().await
}

/// One agent.
///
/// # Errors
/// When the database cannot be read.
pub async fn get(store: &Store, id: &str) -> Result<Option<AgentRow>, StoreError> {
    let row = sqlx::query("SELECT * FROM agents WHERE id = ?").bind(id).fetch_optional(store.pool()).await?;
    Ok(row.as_ref().map(agent).transpose()?)
}

/// At most `limit` agents with ids after `after`, by id, perhaps of one region only.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    store: &Store,
    region: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<AgentRow>, StoreError> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT * FROM agents WHERE id > ");
    sql.push_bind(after.unwrap_or_default().to_owned());
    if let Some(region) = region {
        sql.push(" AND region = ").push_bind(region.to_owned());
    }
    sql.push(" ORDER BY id LIMIT ").push_bind(limit);
    let rows = sql.build().fetch_all(store.pool()).await?;
    Ok(rows.iter().map(agent).collect::<Result<_, _>>()?)
}

/// Keeps a damage that an agent found in its buffer. False when it is known already: reports may repeat.
///
/// # Errors
/// When the database cannot be written.
pub async fn record_buffer_damage(
    store: &Store,
    agent_id: &str,
    damage: &v1::BufferDamage,
) -> Result<bool, StoreError> {
    let mut tx = store.begin_write().await?;
    let recorded = sqlx::query(
        "INSERT INTO agent_buffer_damages (agent_id, body) SELECT ?1, ?2
         WHERE NOT EXISTS (SELECT 1 FROM agent_buffer_damages WHERE agent_id = ?1 AND body = ?2)",
    )
    .bind(agent_id)
    .bind(damage.encode_to_vec())
    .execute(tx.connection())
    .await?;
    if recorded.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "DELETE FROM agent_buffer_damages WHERE agent_id = ?1 AND seq NOT IN
         (SELECT seq FROM agent_buffer_damages WHERE agent_id = ?1 ORDER BY seq DESC LIMIT ?2)",
    )
    .bind(agent_id)
    .bind(BUFFER_DAMAGES_MAX)
    .execute(tx.connection())
    .await?;
    tx.commit().await?;
    Ok(true)
}

/// The damages of the agents from id `first` to id `last`, each agent's newest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn buffer_damages(
    store: &Store,
    first: &str,
    last: &str,
) -> Result<HashMap<String, Vec<v1::BufferDamage>>, StoreError> {
    let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(
        "SELECT agent_id, body FROM agent_buffer_damages WHERE agent_id BETWEEN ? AND ? ORDER BY agent_id, seq DESC",
    )
    .bind(first)
    .bind(last)
    .fetch_all(store.pool())
    .await?;
    let mut damages: HashMap<String, Vec<v1::BufferDamage>> = HashMap::new();
    for (agent_id, body) in rows {
        damages.entry(agent_id).or_default().push(decode(&body)?);
    }
    Ok(damages)
}

fn agent(row: &SqliteRow) -> Result<AgentRow, sqlx::Error> {
    let parse =
        |micros| Timestamp::from_microsecond(micros).map_err(|error| sqlx::Error::Decode(error.into()));
    let time = |column| row.try_get(column).and_then(parse);
    let optional_time = |column| row.try_get::<Option<i64>, _>(column)?.map(parse).transpose();
    Ok(AgentRow {
        id: row.try_get("id")?,
        region: row.try_get("region")?,
        build: row.try_get("build")?,
        create_time: time("create_time")?,
        last_seen_time: time("last_seen_time")?,
        tenant_id: row.try_get("tenant_id")?,
        certificate_expire_time: optional_time("certificate_expire_time")?,
        revoke_time: optional_time("revoke_time")?,
    })
}

/// Ids of a tenant's agents that are not revoked, at most `limit`.
///
/// # Errors
/// When the database cannot be read.
pub async fn working_of_tenant(
    connection: &mut SqliteConnection,
    tenant_id: &str,
    limit: u32,
) -> Result<Vec<String>, StoreError> {
    let of = "SELECT id FROM agents WHERE tenant_id = ? AND revoke_time IS NULL ORDER BY id LIMIT ?";
    Ok(sqlx::query_scalar(of).bind(tenant_id).bind(limit).fetch_all(connection).await?)
}

/// Forgets a tenant's join tokens, inside the caller's transaction.
///
/// # Errors
/// When the database cannot be written.
pub(super) async fn delete_join_tokens_of_tenant(
    connection: &mut SqliteConnection,
    tenant_id: &str,
) -> Result<(), StoreError> {
    let delete = sqlx::query("DELETE FROM join_tokens WHERE tenant_id = ?").bind(tenant_id);
    delete.execute(connection).await?;
    Ok(())
}

/// Whether there is such a tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn is_tenant(store: &Store, tenant_id: &str) -> Result<bool, StoreError> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM tenants WHERE id = ? AND delete_time IS NULL")
        .bind(tenant_id)
        .fetch_one(store.pool())
        .await?;
    Ok(count > 0)
}
