//! What a backup does with SQLite files, those of the configuration and others.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use sqlx::{
    ConnectOptions as _, Connection as _, Sqlite, SqliteConnection, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{StoreError, from_sql};
use crate::{
    audit::Audited,
    store::{api_keys::ApiKeyRow, audit::row},
};

/// Opens a database that others may use meanwhile, to copy it.
///
/// # Errors
/// When it cannot be opened.
pub(crate) async fn open_source(
    path: &Path,
    busy_timeout: Duration,
) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(busy_timeout)
        .disable_statement_logging();
    SqliteConnection::connect_with(&options).await
}

/// Bytes of a database.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn size(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let size = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
    Ok(from_sql(sqlx::query_scalar(size).fetch_one(connection).await?))
}

/// Writes a consistent copy into the empty file `target`: `VACUUM INTO` reads one state of the database and hinders
/// nobody (<https://sqlite.org/lang_vacuum.html>).
///
/// # Errors
/// When the database cannot be read, or the file not be written.
pub(crate) async fn copy_into(connection: &mut SqliteConnection, target: &str) -> Result<(), sqlx::Error> {
    sqlx::query("VACUUM INTO ?1").bind(target).execute(connection).await?;
    Ok(())
}

/// Opens a copy that nobody uses, without changing it.
///
/// # Errors
/// When it cannot be opened.
pub(crate) async fn open_copy(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
    SqliteConnection::connect_with(&options).await
}

/// A connection that changes a restored copy, durably, and leaves no other file beside it.
///
/// # Errors
/// When it cannot be opened.
pub(crate) async fn open_restored(path: &Path) -> Result<SqliteConnection, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full);
    SqliteConnection::connect_with(&options).await
}

/// What is wrong with the structure of a database, in SQLite's words; nothing when it is whole
/// (<https://sqlite.org/pragma.html#pragma_quick_check>). Indexes are not compared with their tables: those of a copy were
/// made with it.
pub(crate) async fn quick_check(connection: &mut SqliteConnection) -> Vec<String> {
    let findings = sqlx::query_scalar("PRAGMA quick_check").fetch_all(connection).await;
    let findings: Vec<String> = findings.unwrap_or_else(|error| vec![error.to_string()]);
    findings.into_iter().filter(|finding| finding != "ok").collect()
}

/// Closes a connection, and says when something that it wrote is not on disk.
///
/// # Errors
/// When a file cannot be written.
pub(crate) async fn close(connection: SqliteConnection) -> Result<(), sqlx::Error> {
    connection.close().await
}

/// The version of the tables of a database; `is_config` tells the one of the configuration.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn schema_version(
    connection: &mut SqliteConnection,
    is_config: bool,
) -> Result<i64, sqlx::Error> {
    let query = if is_config {
        "SELECT number FROM meta WHERE name = 'schema_version'"
    } else {
        "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'schema_version'"
    };
    sqlx::query_scalar(query).fetch_one(connection).await
}

/// Epoch and version of a configuration database.
///
/// # Errors
/// When they cannot be read.
pub(crate) async fn epoch_and_version(
    connection: &mut SqliteConnection,
) -> Result<(String, u64), sqlx::Error> {
    let (epoch, version): (String, i64) = sqlx::query_as(
        "SELECT (SELECT text FROM meta WHERE name = 'store_epoch'), (SELECT number FROM meta WHERE name = 'version')",
    )
    .fetch_one(connection)
    .await?;
    Ok((epoch, from_sql(version)))
}

/// A connection to a file.
pub(crate) type Connected = SqliteConnection;

/// Opens a database that may be in use, to read it.
///
/// # Errors
/// When it cannot be opened.
pub(crate) async fn open_previous(path: &Path, busy_timeout: Duration) -> Result<Connected, sqlx::Error> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(busy_timeout);
    SqliteConnection::connect_with(&options).await
}

/// Begins a transaction; dropped without `commit`, it changes nothing.
///
/// # Errors
/// When the database cannot be written.
pub(crate) async fn begin(connection: &mut Connected) -> Result<Transaction<'_, Sqlite>, sqlx::Error> {
    connection.begin().await
}

/// All API keys of a configuration database, by id, and whether every one of them must have a checksum.
///
/// # Errors
/// When they cannot be read.
pub(crate) async fn api_keys(connection: &mut Connected) -> Result<(Vec<ApiKeyRow>, bool), sqlx::Error> {
    let are_summed = super::api_keys::are_summed(connection).await?;
    Ok((super::api_keys::all(connection).await?, are_summed))
}

/// Id, region and tenant (empty: the platform) of all agents that are not revoked, by id.
///
/// # Errors
/// When they cannot be read.
pub(crate) async fn working_agents(
    connection: &mut Connected,
) -> Result<Vec<(String, String, String)>, sqlx::Error> {
    let agents =
        "SELECT id, region, coalesce(tenant_id, '') FROM agents WHERE revoke_time IS NULL ORDER BY id";
    sqlx::query_as(agents).fetch_all(connection).await
}

/// The ids of all agents, each with whether it is revoked.
///
/// # Errors
/// When they cannot be read.
pub(crate) async fn revoked_agents(connection: &mut Connected) -> Result<Vec<(String, bool)>, sqlx::Error> {
    sqlx::query_as("SELECT id, revoke_time IS NOT NULL FROM agents").fetch_all(connection).await
}

/// Changes the body of an API key.
///
/// # Errors
/// When it cannot be written.
pub(crate) async fn update_api_key(
    connection: &mut Connected,
    id: &str,
    body: &[u8],
) -> Result<(), StoreError> {
    let update = sqlx::query("UPDATE api_keys SET body = ?2 WHERE id = ?1").bind(id).bind(body);
    update.execute(connection).await?;
    Ok(())
}

/// Revokes an agent.
///
/// # Errors
/// When it cannot be written.
pub(crate) async fn revoke_agent(
    connection: &mut Connected,
    id: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    let update = sqlx::query("UPDATE agents SET revoke_time = ?2 WHERE id = ?1");
    update.bind(id).bind(now.as_microsecond()).execute(connection).await?;
    Ok(())
}

/// Adds an entry of the audit log, made by `actor`.
///
/// # Errors
/// When it cannot be written.
pub(crate) async fn audit(
    connection: &mut Connected,
    now: Timestamp,
    actor: &str,
    audited: Audited,
) -> Result<(), StoreError> {
    super::audit::insert(connection, &row(now, actor, None, audited)).await
}
