//! Configuration and opt-outs: one writer at a time, one gap-free `version`.
//!
//! The `version` is bumped in the transaction of every configuration change, so that whoever has version
//! N and asks for the changes since gets all of them. Opt-outs have a cursor of their own: they are an
//! append-only log and never take part in a rollback of configuration. `store_epoch` is made with the
//! database; another one means that versions and cursors cannot be compared.
//!
//! Two layers. This module and those below it are the same for every database: they seal and open secrets, write
//! the audit log, merge opt-outs, make etags, and tell those who watch. Below them an [`engine`] keeps rows:
//! [`sqlite`] today. What an engine promises is written at [`engine::Engine`] and at the trait of each table, and
//! the suite in `conformance` checks it (ADR 17).
//!
//! Reading goes through a [`Connection`]: a [`Reader`], or a [`WriteTx`], which sees what it has written.
//!
//! Tables: [`versions`] (the version, removals), [`tenant_keys`], [`tenants`], [`api_keys`], [`instances`],
//! [`inbound_routes`], [`route_reach`], [`webhook_subscriptions`], [`opt_out_policies`], [`opt_outs`], [`requests`];
//! [`agents`], [`fleet`] and [`work`] for the fleet; [`audit`]. A row carries the resource as protobuf bytes, and
//! beside it only what is looked up.

use std::{fmt, path::Path, sync::Arc};

use crate::{
    audit::{Audited, AuditedBy},
    sealing::{RootKeys, Sealer},
};
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

mod body;
mod error;
pub mod engine;
mod transaction;
pub mod check;
pub mod damaged;
pub mod versions;
pub mod config_index;
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
pub mod sqlite;
#[cfg(test)]
pub(crate) mod conformance;
#[cfg(test)]
mod layering;
#[cfg(test)]
mod tests;

use damaged::{Damages, Unread};
pub use engine::Engine;
pub use error::{Cause, Damage, StoreError, Trouble};
pub use opt_outs::OptOutRecorded;
pub use sqlite::FILE_NAME;
pub use transaction::{Connection, Reader, WriteTx};
pub use versions::REMOVAL_ORDER;

/// The method with which agents report opt-outs, as the audit log names it.
const REPORT: &str = "AgentSyncService/ReportLogs";

/// What changed in the configuration.
#[derive(Clone, Default, PartialEq)]
pub struct ConfigChanges {
    /// The version after the changes.
    pub version: u64,
    /// New and changed resources: routes, instances, policies, subscriptions, in this order.
    pub upserts: Vec<v1::ConfigResource>,
    /// Removed resources: subscriptions, policies, instances, routes, in this order.
    pub removals: Vec<v1::ConfigRemoval>,
    /// New and changed resources that cannot be read, in the order of `upserts`.
    pub left_out: Vec<Unread>,
}

impl fmt::Debug for ConfigChanges {
    /// How many, since the resources hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigChanges")
            .field("version", &self.version)
            .field("upserts", &self.upserts.len())
            .field("removals", &self.removals.len())
            .field("left_out", &self.left_out)
            .finish()
    }
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Box<dyn Engine>,
    /// Commits under way.
    commits: TaskTracker,
    epoch: String,
    sealer: Sealer,
    damages: Damages,
    version: watch::Sender<u64>,
    opt_out_cursor: watch::Sender<u64>,
}

/// A database that is ready for use.
pub struct Opened {
    /// Reads and writes it.
    pub engine: Box<dyn Engine>,
    /// Its name.
    pub epoch: String,
    /// What seals and opens its secrets.
    pub sealer: Sealer,
    /// Its newest committed version.
    pub version: u64,
    /// Where its opt-out log ends.
    pub opt_out_cursor: u64,
}

impl Store {
    /// Opens or creates the SQLite database in `data_dir`, whose secrets are sealed under the root key in the same
    /// directory.
    ///
    /// # Errors
    /// As [`Store::open_sealed`].
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        Self::open_sealed(data_dir, &RootKeys::of_data_dir(data_dir)).await
    }

    /// Opens or creates the SQLite database in `data_dir`, whose secrets are sealed under `root_keys`. A database
    /// of an older program is brought to this one's schema.
    ///
    /// # Errors
    /// When the file cannot be opened, was written by a newer program, or needs a root key that is not there;
    /// then it is left as it was.
    pub async fn open_sealed(data_dir: &Path, root_keys: &RootKeys) -> Result<Self, StoreError> {
        Ok(Self::of(sqlite::open(data_dir, root_keys).await?))
    }

    /// The store in a database that is open.
    pub fn of(opened: Opened) -> Self {
        let Opened { engine, epoch, sealer, version, opt_out_cursor } = opened;
        let (version, opt_out_cursor) = (watch::Sender::new(version), watch::Sender::new(opt_out_cursor));
        let (commits, damages) = (TaskTracker::new(), Damages::default());
        Self { inner: Arc::new(Inner { engine, commits, epoch, sealer, damages, version, opt_out_cursor }) }
    }

    /// Closes all connections; for the end of the process.
    pub async fn close(&self) {
        self.inner.commits.close();
        self.inner.commits.wait().await;
        self.inner.engine.close().await;
    }

    /// What seals and opens secrets.
    pub fn sealer(&self) -> &Sealer {
        &self.inner.sealer
    }

    /// The rows that are known to be damaged.
    pub fn damages(&self) -> &Damages {
        &self.inner.damages
    }

    /// A connection for reading. Each query sees what was committed when it began.
    ///
    /// # Errors
    /// When none becomes free in time.
    pub async fn reader(&self) -> Result<Reader, StoreError> {
        Ok(Reader::new(self.inner.engine.reader().await?, self.clone()))
    }

    /// Begins a transaction that may write. Waits until every writer before it is done.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn begin_write(&self) -> Result<WriteTx, StoreError> {
        Ok(WriteTx::new(self.inner.engine.begin_write().await?, self.clone()))
    }

    /// Writes what means nothing, durably, to see whether anything can be written.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn try_write(&self) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        transaction.writes().try_write().await?;
        transaction.commit().await
    }

    /// The newest committed configuration version.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn version(&self) -> Result<u64, StoreError> {
        self.reader().await?.rows().version().await
    }

    /// Follows the configuration version. It changes after every commit of a change.
    pub fn watch_version(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }

    /// Follows the cursor of the opt-out log, like [`Store::watch_version`].
    pub fn watch_opt_out_cursor(&self) -> watch::Receiver<u64> {
        self.inner.opt_out_cursor.subscribe()
    }

    /// Tells those who watch what was committed. Both only go up: a later commit may be told before this one.
    fn committed(&self, version: Option<u64>, opt_out_cursor: Option<u64>) {
        for (watched, newest) in
            [(&self.inner.version, version), (&self.inner.opt_out_cursor, opt_out_cursor)]
        {
            let Some(newest) = newest else { continue };
            watched.send_if_modified(|known| {
                let is_news = newest > *known;
                *known = newest.max(*known);
                is_news
            });
        }
    }

    /// Names this database: made at random when it was created.
    pub fn store_epoch(&self) -> &str {
        &self.inner.epoch
    }

    /// The etag of a configuration resource last changed in `version`.
    pub fn etag(&self, version: u64) -> String {
        versions::etag(version, &self.inner.epoch)
    }

    /// Everything that changed after `version`; with 0, everything that is there and no removals. All of
    /// it is one state: what another transaction commits meanwhile is not in it.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn changes_since(&self, version: u64) -> Result<ConfigChanges, StoreError> {
        let mut snapshot = Reader::new(self.inner.engine.snapshot().await?, self.clone());
        let now = snapshot.rows().version().await?;
        let mut left_out = Vec::new();
        let mut upserts = inbound_routes::changed_since(&mut snapshot, version, &mut left_out).await?;
        upserts.extend(instances::changed_since(&mut snapshot, version, &mut left_out).await?);
        upserts.extend(opt_out_policies::changed_since(&mut snapshot, version, &mut left_out).await?);
        upserts.extend(webhook_subscriptions::changed_since(&mut snapshot, version, &mut left_out).await?);
        let removals =
            if version == 0 { Vec::new() } else { versions::removed_since(&mut snapshot, version).await? };
        snapshot.finish().await?;
        Ok(ConfigChanges { version: now, upserts, removals, left_out })
    }

    /// An instance of any tenant.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn instance(&self, id: &str) -> Result<Option<v1::Instance>, StoreError> {
        instances::find_any(&mut self.reader().await?, id).await
    }

    /// The instance that has a number, in the form of [`gateway_core::snapshot::canonical_number`], on a route. None
    /// also when that instance cannot be read.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn instance_of_number(
        &self,
        inbound_route_id: &str,
        number_key: &str,
    ) -> Result<Option<v1::Instance>, StoreError> {
        let mut connection = self.reader().await?;
        match instances::holder_of_number(&mut connection, inbound_route_id, number_key).await? {
            Some(id) => {
                let read = instances::find_any(&mut connection, &id).await;
                Ok(damaged::or_note(self.damages(), (instances::TYPE, &id), read)?.flatten())
            }
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
        opt_outs::since(&mut self.reader().await?, cursor, limit).await
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

    /// Takes from the disk what rows held that were changed or removed, if [`sealed::note_wipe`] noted that.
    ///
    /// # Errors
    /// When the disk cannot take a second copy of the database for the time being.
    pub async fn wipe_if_due(&self) -> Result<(), StoreError> {
        self.inner.engine.wipe_if_due().await
    }
}

/// Leaves out what cannot be opened or read, and notes it, also in `left_out`: one damaged row must not keep all other
/// changes from all agents. An agent that has the resource keeps its last good value.
fn readable(
    damages: &Damages,
    unread: Unread,
    resource: Result<v1::ConfigResource, StoreError>,
    left_out: &mut Vec<Unread>,
) -> Option<Result<v1::ConfigResource, StoreError>> {
    match resource {
        Err(failure) if failure.is_damage() => {
            damages.note(unread.what.resource_type, &unread.what.id, failure);
            left_out.push(unread);
            None
        }
        resource => Some(resource),
    }
}

/// Opens and reads a sealed message of a tenant's resource.
fn open<M: Message + Default>(
    sealer: &Sealer,
    tenant_id: &str,
    resource: &str,
    sealed: &[u8],
) -> Result<M, StoreError> {
    Ok(M::decode(sealer.open(tenant_id, resource, sealed)?.as_slice())?)
}
