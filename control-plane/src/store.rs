//! Configuration and opt-outs: one SQLite file, one writer at a time, one gap-free `version`.
//!
//! The `version` is bumped in the transaction of every configuration change, so that whoever has version
//! N and asks for the changes since gets all of them. Opt-outs have a cursor of their own: they are an
//! append-only log and never take part in a rollback of configuration. `store_epoch` is made with the
//! file; another one means that versions and cursors cannot be compared.
//!
//! Columns with secrets are sealed ([`crate::sealing`]); a [`Connection`] opens them.
//!
//! Tables: [`schema`] (meta, tombstones), [`tenant_keys`], [`tenants`], [`api_keys`],
//! [`instances`], [`inbound_routes`], [`webhook_subscriptions`], [`opt_out_policies`], [`opt_outs`], [`requests`]; [`agents`] and [`work`] for the fleet; [`audit`]. A row
//! carries the resource as protobuf bytes, and beside it only what is looked up.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gateway_core::violation::FieldViolations;
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message;
use sqlx::{
    Connection as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};
use tokio_util::task::TaskTracker;
use tracing::error;

use crate::{
    audit::{Audited, AuditedBy},
    sealing::{RootKeys, Sealer, SealingError},
};

mod connection;
pub mod damaged;
pub mod schema;
pub mod sealed;
pub mod tenant_keys;
pub mod tenants;
pub mod api_keys;
pub mod instances;
pub mod inbound_routes;
pub mod webhook_subscriptions;
pub mod opt_out_policies;
pub mod opt_outs;
pub mod requests;
pub mod agents;
pub mod work;
pub mod fleet;
pub mod route_reach;
pub mod audit;
#[cfg(test)]
mod tests;

pub use connection::Connection;
pub use opt_outs::OptOutRecorded;

/// Name of the database file in the data directory.
pub const FILE_NAME: &str = "config.db";
/// Connections to the file. Readers wait for a free one; there is one writer at a time.
const CONNECTIONS_MAX: u32 = 6;
/// The method with which agents report opt-outs, as the audit log names it.
const REPORT: &str = "AgentSyncService/ReportLogs";
/// How long SQLite waits for another process that holds the file, such as a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened.
    #[error("open configuration database `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The file was written by a newer program.
    #[error(
        "open configuration database with schema version {found}: this program knows versions up to {known}; \
         start a newer one"
    )]
    NewerSchema {
        /// The version of the file.
        found: i64,
        /// The newest version this program knows.
        known: i64,
    },
    /// A statement failed; its transaction is rolled back.
    #[error("use the configuration database")]
    Database(#[from] sqlx::Error),
    /// A stored resource cannot be read.
    #[error("decode a row of the configuration database")]
    Corrupt(#[from] prost::DecodeError),
    /// A secret cannot be opened.
    #[error(transparent)]
    Sealed(#[from] SealingError),
    /// A stored resource breaks a rule that held when it was written.
    #[error("use a row of table `{table}`")]
    Invalid {
        /// The table.
        table: &'static str,
        /// The rule.
        #[source]
        source: FieldViolations,
    },
}

impl StoreError {
    /// Whether a stored resource cannot be read, while the database itself can be used.
    pub const fn is_damage(&self) -> bool {
        matches!(self, Self::Sealed(_) | Self::Corrupt(_))
    }
}

/// What changed in the configuration.
#[derive(Clone, Default, PartialEq)]
pub struct ConfigChanges {
    /// The version after the changes.
    pub version: u64,
    /// New and changed resources: routes, instances, policies, subscriptions, in this order.
    pub upserts: Vec<v1::ConfigResource>,
    /// Removed resources: subscriptions, policies, instances, routes, in this order.
    pub removals: Vec<v1::ConfigRemoval>,
}

impl fmt::Debug for ConfigChanges {
    /// How many, since the resources hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigChanges")
            .field("version", &self.version)
            .field("upserts", &self.upserts.len())
            .field("removals", &self.removals.len())
            .finish()
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    pool: SqlitePool,
    write_turn: Arc<Mutex<()>>,
    /// Commits under way: at most one, since it has the turn to write.
    commits: TaskTracker,
    epoch: String,
    sealer: Sealer,
    version: watch::Sender<u64>,
    opt_out_cursor: watch::Sender<u64>,
}

impl Store {
    /// Opens or creates the database in `data_dir`, whose secrets are sealed under the root key in the same
    /// directory.
    ///
    /// # Errors
    /// As [`Store::open_sealed`].
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        Self::open_sealed(data_dir, &RootKeys::of_data_dir(data_dir)).await
    }

    /// Opens or creates the database in `data_dir`, whose secrets are sealed under `root_keys`. A database of
    /// an older program is brought to this one's schema.
    ///
    /// # Errors
    /// When the file cannot be opened, was written by a newer program, or needs a root key that is not there;
    /// then it is left as it was.
    pub async fn open_sealed(data_dir: &Path, root_keys: &RootKeys) -> Result<Self, StoreError> {
        let path = data_dir.join(FILE_NAME);
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            // After a full disk SQLite may have ended a transaction by itself; then its connection cannot begin
            // another one.
            .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Open { path, source })?;
        let sealer = schema::prepare(&pool, root_keys).await?;
        let mut connection = pool.acquire().await?;
        let epoch = schema::epoch(&mut connection).await?;
        let version = schema::version(&mut connection).await?;
        let cursor = opt_outs::newest_cursor(&mut connection).await?;
        drop(connection);
        let inner = Inner {
            pool,
            write_turn: Arc::default(),
            commits: TaskTracker::new(),
            epoch,
            sealer,
            version: watch::Sender::new(version),
            opt_out_cursor: watch::Sender::new(cursor),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Closes all connections; for the end of the process.
    pub async fn close(&self) {
        self.inner.commits.close();
        self.inner.commits.wait().await;
        self.inner.pool.close().await;
    }

    /// What seals and opens secrets.
    pub fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    /// The connections, for reading.
    pub fn pool(&self) -> &SqlitePool {
        &self.inner.pool
    }

    /// A connection for reading.
    ///
    /// # Errors
    /// When none becomes free in time.
    pub async fn reader(&self) -> Result<Connection, StoreError> {
        Ok(Connection::pooled(self.inner.pool.acquire().await?, self.inner.sealer.clone()))
    }

    /// Begins a transaction that may write. Waits until every writer before it is done.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn begin_write(&self) -> Result<WriteTx, StoreError> {
        let turn = Arc::clone(&self.inner.write_turn).lock_owned().await;
        let transaction = self.inner.pool.begin_with("BEGIN IMMEDIATE").await?;
        let transaction = Connection::transaction(transaction, self.inner.sealer.clone());
        let store = self.clone();
        let sealed_for = Vec::new();
        let after_commit = Vec::new();
        let (version, opt_out_cursor) = (None, None);
        Ok(WriteTx { transaction, store, version, opt_out_cursor, sealed_for, after_commit, _turn: turn })
    }

    /// Writes what means nothing, durably, to see whether anything can be written.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn try_write(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        schema::try_write(transaction.connection()).await?;
        transaction.commit().await
    }

    /// The newest committed configuration version.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn version(&self) -> Result<u64, StoreError> {
        schema::version(&mut *self.reader().await?).await
    }

    /// Follows the configuration version. It changes after every commit of a change.
    pub fn watch_version(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }

    /// Follows the cursor of the opt-out log, like [`Store::watch_version`].
    pub fn watch_opt_out_cursor(&self) -> watch::Receiver<u64> {
        self.inner.opt_out_cursor.subscribe()
    }

    /// Names this database: made at random when it was created.
    pub fn store_epoch(&self) -> &str {
        &self.inner.epoch
    }

    /// The etag of a configuration resource last changed in `version`.
    pub fn etag(&self, version: u64) -> String {
        schema::etag(version, &self.inner.epoch)
    }

    /// Everything that changed after `version`; with 0, everything that is there and no removals. All of
    /// it is one state: what another transaction commits meanwhile is not in it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn changes_since(&self, version: u64) -> Result<ConfigChanges, StoreError> {
        let transaction = self.inner.pool.begin().await?;
        let mut connection = Connection::transaction(transaction, self.inner.sealer.clone());
        let now = schema::version(&mut connection).await?;
        let since = to_sql(version);
        let mut upserts = inbound_routes::changed_since(&mut connection, since).await?;
        upserts.extend(instances::changed_since(&mut connection, since).await?);
        upserts.extend(opt_out_policies::changed_since(&mut connection, since).await?);
        upserts.extend(webhook_subscriptions::changed_since(&mut connection, since).await?);
        let removals =
            if version == 0 { Vec::new() } else { schema::removed_since(&mut connection, since).await? };
        connection.commit().await?;
        Ok(ConfigChanges { version: now, upserts, removals })
    }

    /// An instance of any tenant.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn instance(&self, id: &str) -> Result<Option<v1::Instance>, StoreError> {
        instances::find_any(&mut *self.reader().await?, id).await
    }

    /// The instance that has a number, in the form of [`gateway_core::snapshot::canonical_number`], on a route.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn instance_of_number(
        &self,
        inbound_route_id: &str,
        number_key: &str,
    ) -> Result<Option<v1::Instance>, StoreError> {
        let connection = &mut *self.reader().await?;
        match instances::holder_of_number(connection, inbound_route_id, number_key).await? {
            Some(id) => instances::find_any(connection, &id).await,
            None => Ok(None),
        }
    }

    /// A webhook subscription of any tenant, with its header values.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn webhook_subscription(
        &self,
        id: &str,
    ) -> Result<Option<v1::WebhookSubscription>, StoreError> {
        let found = webhook_subscriptions::find_any(&mut self.reader().await?, id).await?;
        Ok(found.and_then(|config| config.webhook_subscription))
    }

    /// Current records of the decisions after `cursor`, in their order, and the cursor after them. At most
    /// `limit` decisions; a contact with several decisions may come several times.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn opt_outs_since(
        &self,
        cursor: u64,
        limit: u32,
    ) -> Result<(Vec<v1::OptOut>, u64), StoreError> {
        opt_outs::since(&mut *self.reader().await?, cursor, limit).await
    }

    /// Merges decisions that an agent reports into the records, all in one transaction. Repeats change
    /// nothing; see [`gateway_core::opt_out`] for which decision wins.
    ///
    /// # Errors
    /// When the database cannot be written; then none is recorded.
    pub async fn record_opt_outs(
        &self,
        by: AuditedBy,
        decisions: Vec<v1::OptOut>,
    ) -> Result<Vec<OptOutRecorded>, StoreError> {
        let mut transaction = self.begin_write().await?;
        let mut recorded = Vec::with_capacity(decisions.len());
        for decision in &decisions {
            let outcome = opt_outs::record_reported(&mut transaction, decision).await?;
            if outcome.changed {
                let audited = Audited::written(REPORT, outcome.before.as_ref(), &outcome.opt_out);
                transaction.audit(by.clone(), audited).await?;
            }
            recorded.push(outcome);
        }
        transaction.commit().await?;
        Ok(recorded)
    }

    /// Pauses a subscription whose destination answered 410, if it still has that destination and is
    /// active. True when it was paused now.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn pause_subscription_gone(
        &self,
        subscription_id: &str,
        destination_url: &str,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin_write().await?;
        let paused =
            webhook_subscriptions::pause_gone(&mut transaction, subscription_id, destination_url, reason)
                .await?;
        if paused {
            transaction.commit().await?;
        }
        Ok(paused)
    }

    /// Pauses a subscription that was found at `found` to have nothing but failures, if it is active and was
    /// not changed after that. True when it was paused now.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn pause_subscription_failing(
        &self,
        subscription_id: &str,
        found: Timestamp,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin_write().await?;
        let paused =
            webhook_subscriptions::pause_failing(&mut transaction, subscription_id, found, reason).await?;
        if paused {
            transaction.commit().await?;
        }
        Ok(paused)
    }
}

/// A transaction that may write. Dropped without commit, it changes nothing.
pub struct WriteTx {
    transaction: Connection,
    store: Store,
    version: Option<u64>,
    opt_out_cursor: Option<u64>,
    /// Tenants whose data key was stored in this transaction.
    sealed_for: Vec<String>,
    /// Whom to tell of the commit.
    after_commit: Vec<Box<dyn FnOnce() + Send>>,
    _turn: OwnedMutexGuard<()>,
}

impl WriteTx {
    /// The connection, for statements inside the transaction.
    pub fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }

    /// The store that the transaction belongs to.
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// The version that this transaction's configuration changes have: one more than before it, and the
    /// same for all of them.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn bump_version(&mut self) -> Result<u64, StoreError> {
        if let Some(version) = self.version {
            return Ok(version);
        }
        let version = schema::bump_version(&mut self.transaction).await?;
        self.version = Some(version);
        Ok(version)
    }

    /// Writes an entry of the audit log, in this transaction: it and the change come together or not at all.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn audit(&mut self, by: impl Into<AuditedBy>, audited: Audited) -> Result<(), StoreError> {
        let AuditedBy { actor, source_address } = by.into();
        let now = clock::now();
        audit::insert(&mut self.transaction, now, &actor.to_string(), source_address, audited).await
    }

    /// Seals bytes of a tenant's resource; `tenant_id` is empty for what belongs to no tenant. The first time,
    /// the tenant's data key is made and stored in this transaction.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn seal(
        &mut self,
        tenant_id: &str,
        resource: &str,
        plain: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let (sealed, unstored) = self.transaction.sealer().seal(tenant_id, resource, plain);
        if let Some(key) = unstored {
            tenant_keys::insert(&mut self.transaction, &key).await?;
            self.sealed_for.push(key.tenant_id);
        }
        Ok(sealed)
    }

    /// Notes that the opt-out log now ends at `cursor`.
    fn logged_opt_out(&mut self, cursor: u64) {
        self.opt_out_cursor = Some(cursor);
    }

    /// Has `tell` called when the transaction is committed, and only then: also when the caller who commits has
    /// gone away meanwhile. It must not wait.
    pub fn after_commit(&mut self, tell: impl FnOnce() + Send + 'static) {
        self.after_commit.push(Box::new(tell));
    }

    /// Commits, durably, and then tells those who watch and those of [`Self::after_commit`].
    ///
    /// Cancel safe: once begun, commit and telling go on without the caller, whose deadline may pass in between.
    /// Otherwise there would be changes that nobody hears of.
    ///
    /// # Errors
    /// When the database cannot be written; then nothing is changed.
    pub async fn commit(self) -> Result<(), StoreError> {
        let commits = self.store.inner.commits.clone();
        let committed = commits.spawn(self.commit_and_tell()).await;
        // The task ends early only with the process.
        committed.unwrap_or(Err(StoreError::Database(sqlx::Error::WorkerCrashed)))
    }

    async fn commit_and_tell(self) -> Result<(), StoreError> {
        let Self { transaction, store, version, opt_out_cursor, sealed_for, after_commit, _turn } = self;
        transaction.commit().await?;
        sealed_for.iter().for_each(|tenant_id| store.inner.sealer.stored(tenant_id));
        if let Some(version) = version {
            store.inner.version.send_replace(version);
        }
        if let Some(cursor) = opt_out_cursor {
            store.inner.opt_out_cursor.send_replace(cursor);
        }
        after_commit.into_iter().for_each(|tell| tell());
        Ok(())
    }
}

impl Deref for WriteTx {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.transaction
    }
}

impl DerefMut for WriteTx {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.transaction
    }
}

/// SQLite's integers are signed.
pub(crate) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(crate) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Leaves out what cannot be opened or read, loudly: one damaged row must not keep all other changes from all agents.
/// An agent that has the resource keeps its last good value.
fn readable(
    resource_type: &'static str,
    id: &str,
    resource: Result<v1::ConfigResource, StoreError>,
) -> Option<Result<v1::ConfigResource, StoreError>> {
    match resource {
        Err(failure) if failure.is_damage() => {
            let error = format!("{:#}", anyhow::Error::from(failure));
            error!(
                resource_type,
                id, error, "failed to read a row: agents get no change of it; restore a backup"
            );
            None
        }
        resource => Some(resource),
    }
}

/// Reads a stored resource.
fn decode<M: Message + Default>(body: &[u8]) -> Result<M, StoreError> {
    Ok(M::decode(body)?)
}
