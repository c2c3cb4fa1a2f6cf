//! The store in one SQLite file.
//!
//! SQLite has one writer at a time for each file; in this process a mutex gives writers their turn, so that they wait
//! in a row instead of asking again and again. Readers use the write-ahead log and never wait for a writer.

use std::{path::Path, sync::Arc, time::Duration};

use gateway_runtime::sealing::Key;
use sqlx::{
    Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction,
    pool::PoolConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tonic::async_trait;

use super::{
    Engine, Opened, StoreError,
    damaged::{LeftOut, PlainRow},
    engine::{Reads, Writes},
};
use crate::sealing::{RootKeys, Sealer, SealingError};

mod error;
pub(crate) mod files;
pub(crate) mod schema;
mod sealed;
mod tenant_keys;
mod tenants;
mod api_keys;
mod instances;
mod inbound_routes;
mod webhook_subscriptions;
mod opt_out_policies;
mod opt_outs;
mod requests;
mod agents;
mod work;
mod fleet;
mod route_reach;
mod audit;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// Name of the database file in the data directory.
pub const FILE_NAME: &str = "config.db";
/// Connections to the file. Readers wait for a free one; there is one writer at a time.
const CONNECTIONS_MAX: u32 = 6;
/// How long SQLite waits for another process that holds the file, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The connections to the file.
struct Database {
    pool: SqlitePool,
    write_turn: Arc<Mutex<()>>,
}

/// Opens or creates the database in `data_dir`, whose secrets are sealed under `root_keys`, and brings it to this
/// program's schema.
///
/// # Errors
/// When the file cannot be opened, was written by a newer program, or needs a root key that is not there;
/// then it is left as it was.
pub(super) async fn open(data_dir: &Path, root_keys: &RootKeys) -> Result<Opened, StoreError> {
    let path = data_dir.join(FILE_NAME);
    let pool = connect(&path)
        .await
        .map_err(|source| StoreError::Open { database: path.display().to_string(), source: source.into() })?;
    let sealer = schema::prepare(&pool, root_keys).await?;
    let mut connection = pool.acquire().await?;
    let epoch = schema::epoch(&mut connection).await?;
    let version = schema::version(&mut connection).await?;
    let opt_out_cursor = opt_outs::newest_cursor(&mut connection).await?;
    drop(connection);
    let engine = Box::new(Database { pool, write_turn: Arc::default() });
    Ok(Opened { engine, epoch, sealer, version, opt_out_cursor })
}

/// A copy of a database, opened to look at it.
pub(crate) struct Copy {
    /// The copy. Nothing can be written to it.
    pub(crate) opened: Opened,
    /// Data keys that cannot be opened although their root key is there.
    pub(crate) damaged_keys: Vec<LeftOut>,
    /// Why data keys cannot be opened whose root key is not there.
    pub(crate) missing_key: Option<String>,
    /// Whether every API key must have a checksum.
    pub(crate) are_keys_summed: bool,
}

/// Opens a copy that nobody uses, with those of `root_keys` that are there.
///
/// # Errors
/// When it cannot be read.
pub(crate) async fn open_copy(path: &Path, root_keys: &RootKeys) -> Result<Copy, StoreError> {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
    let pool =
        SqlitePoolOptions::new().max_connections(1).connect_with(options).await.map_err(|source| {
            StoreError::Open { database: path.display().to_string(), source: source.into() }
        })?;
    let mut connection = pool.acquire().await?;
    let wrapped = tenant_keys::all(&mut connection).await?;
    let (mut opened, mut damaged_keys, mut missing_key) = (Vec::new(), Vec::new(), None);
    // Without a data key nothing is sealed, and no root key is to be made here.
    let root_keys = match wrapped.first().map(|key| root_keys.load(Some(&key.root_key_id))) {
        None => vec![Key::generate()],
        Some(Ok(root_keys)) => root_keys,
        Some(Err(error)) => {
            missing_key = Some(error.to_string());
            vec![Key::generate()]
        }
    };
    for key in wrapped {
        match key.open(&root_keys) {
            Ok(_) => opened.push(key),
            Err(SealingError::DamagedDataKey { key_id, .. }) => {
                damaged_keys.push(LeftOut { resource_type: "data_key", id: key_id });
            }
            Err(error) => drop(missing_key.get_or_insert(error.to_string())),
        }
    }
    let sealer = Sealer::open_keys(&root_keys, &opened)?;
    let epoch = schema::epoch(&mut connection).await?;
    let version = schema::version(&mut connection).await?;
    let are_keys_summed = api_keys::are_summed(&mut connection).await?;
    drop(connection);
    let engine = Box::new(Database { pool, write_turn: Arc::default() });
    let opened = Opened { engine, epoch, sealer, version, opt_out_cursor: 0 };
    Ok(Copy { opened, damaged_keys, missing_key, are_keys_summed })
}

async fn connect(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT);
    SqlitePoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        // After a full disk SQLite may have ended a transaction by itself; then its connection cannot begin
        // another one.
        .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
        .connect_with(options)
        .await
}

#[async_trait]
impl Engine for Database {
    async fn reader(&self) -> Result<Box<dyn Reads>, StoreError> {
        Ok(Box::new(Rows::Pooled(self.pool.acquire().await?)))
    }

    async fn snapshot(&self) -> Result<Box<dyn Reads>, StoreError> {
        Ok(Box::new(Rows::Snapshot(self.pool.begin().await?)))
    }

    async fn begin_write(&self) -> Result<Box<dyn Writes>, StoreError> {
        let turn = Arc::clone(&self.write_turn).lock_owned().await;
        let transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Box::new(Rows::Write { transaction, _turn: turn }))
    }

    async fn wipe_if_due(&self) -> Result<(), StoreError> {
        sealed::wipe_if_due(&self.pool).await
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection. What it can be used for is decided by the trait that it is given away as.
enum Rows {
    Pooled(PoolConnection<Sqlite>),
    Snapshot(Transaction<'static, Sqlite>),
    Write {
        transaction: Transaction<'static, Sqlite>,
        /// Given up after the transaction has ended.
        _turn: OwnedMutexGuard<()>,
    },
}

impl Rows {
    fn connection(&mut self) -> &mut SqliteConnection {
        match self {
            Self::Pooled(connection) => connection,
            Self::Snapshot(transaction) | Self::Write { transaction, .. } => transaction,
        }
    }

    async fn end(self) -> Result<(), StoreError> {
        match self {
            Self::Pooled(_) => Ok(()),
            Self::Snapshot(transaction) | Self::Write { transaction, .. } => Ok(transaction.commit().await?),
        }
    }
}

#[async_trait]
impl Reads for Rows {
    async fn finish(self: Box<Self>) -> Result<(), StoreError> {
        self.end().await
    }
}

#[async_trait]
impl Writes for Rows {
    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.end().await
    }
}

/// Id, tenant, what it hangs on, version and body.
type PlainColumns = (String, String, String, i64, Vec<u8>);

fn plain((id, tenant_id, parent_id, version, body): PlainColumns) -> PlainRow {
    PlainRow { id, tenant_id, parent_id, version: from_sql(version), body }
}

/// SQLite's integers are signed.
fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
