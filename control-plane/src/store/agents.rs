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
    last_seen_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS join_tokens (
    token_hash BLOB PRIMARY KEY,
    region TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS agent_buffer_damages (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS agent_buffer_damages_agent ON agent_buffer_damages (agent_id, seq);
";

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
}

/// Keeps a join token of `region` that can be used until `expire_time`, and forgets expired ones.
///
/// # Errors
/// When the database cannot be written.
pub async fn create_join_token(
    store: &Store,
    token_hash: &[u8; 32],
    region: &str,
    now: Timestamp,
    expire_time: Timestamp,
) -> Result<(), StoreError> {
    let mut tx = store.begin_write().await?;
    sqlx::query("DELETE FROM join_tokens WHERE expire_time < ?")
        .bind(now.as_microsecond())
        .execute(tx.connection())
        .await?;
    sqlx::query("INSERT INTO join_tokens (token_hash, region, create_time, expire_time) VALUES (?, ?, ?, ?)")
        .bind(token_hash.as_slice())
        .bind(region)
        .bind(now.as_microsecond())
        .bind(expire_time.as_microsecond())
        .execute(tx.connection())
        .await?;
    tx.commit().await
}

/// Uses a join token up, inside the caller's transaction, and returns its region. None when it is unknown,
/// used or expired.
///
/// # Errors
/// When the database cannot be written.
pub async fn consume_join_token(
    connection: &mut SqliteConnection,
    token_hash: &[u8; 32],
    now: Timestamp,
) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("DELETE FROM join_tokens WHERE token_hash = ? AND expire_time > ? RETURNING region")
        .bind(token_hash.as_slice())
        .bind(now.as_microsecond())
        .fetch_optional(connection)
        .await
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
        "INSERT INTO agents (id, region, build, credential_hash, create_time, last_seen_time) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(&agent.id)
    .bind(&agent.region)
    .bind(&agent.build)
    .bind(agent.credential_hash.as_slice())
    .bind(now.as_microsecond())
    .bind(now.as_microsecond())
    .execute(connection)
    .await?;
    Ok(())
}

/// Whose credential this is. Read once per stream, so there is no cache that a revocation would have to
/// reach.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_by_credential_hash(
    store: &Store,
    credential_hash: &[u8; 32],
) -> Result<Option<AgentIdentity>, StoreError> {
    let row: Option<(String, String)> =
        sqlx::query_as("SELECT id, region FROM agents WHERE credential_hash = ?")
            .bind(credential_hash.as_slice())
            .fetch_optional(store.pool())
            .await?;
    Ok(row.map(|(agent_id, region)| AgentIdentity { agent_id, region }))
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
    let row = sqlx::query("SELECT id, region, build, create_time, last_seen_time FROM agents WHERE id = ?")
        .bind(id)
        .fetch_optional(store.pool())
        .await?;
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
    let mut sql = QueryBuilder::<Sqlite>::new(
        "SELECT id, region, build, create_time, last_seen_time FROM agents WHERE id > ",
    );
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
    let time = |column| -> Result<Timestamp, sqlx::Error> {
        Timestamp::from_microsecond(row.try_get(column)?).map_err(|error| sqlx::Error::Decode(error.into()))
    };
    Ok(AgentRow {
        id: row.try_get("id")?,
        region: row.try_get("region")?,
        build: row.try_get("build")?,
        create_time: time("create_time")?,
        last_seen_time: time("last_seen_time")?,
    })
}
