//! Connections of the store: an engine's, together with what is the same for every engine.

use gateway_runtime::clock;

use super::{
    Store, StoreError, Trouble, audit,
    damaged::Damages,
    engine::{Reads, Writes},
};
use crate::{
    audit::{Audited, AuditedBy},
    sealing::Sealer,
};

/// What the store can be read through: a [`Reader`] or a [`WriteTx`].
pub trait Connection: Send {
    /// The rows.
    fn rows(&mut self) -> &mut dyn Reads;

    /// What opens sealed columns.
    fn sealer(&self) -> &Sealer;

    /// The name of the store.
    fn epoch(&self) -> &str;

    /// Where damaged rows are noted.
    fn damages(&self) -> &Damages;
}

/// A connection for reading.
pub struct Reader {
    rows: Box<dyn Reads>,
    store: Store,
}

impl Reader {
    pub(super) fn new(rows: Box<dyn Reads>, store: Store) -> Self {
        Self { rows, store }
    }

    /// Gives the connection back.
    pub(super) async fn finish(self) -> Result<(), StoreError> {
        self.rows.finish().await
    }
}

impl Connection for Reader {
    fn rows(&mut self) -> &mut dyn Reads {
        &mut *self.rows
    }

    fn sealer(&self) -> &Sealer {
        self.store.sealer()
    }

    fn epoch(&self) -> &str {
        self.store.store_epoch()
    }

    fn damages(&self) -> &Damages {
        self.store.damages()
    }
}

/// A transaction that may write. Dropped without commit, it changes nothing.
pub struct WriteTx {
    rows: Box<dyn Writes>,
    store: Store,
    version: Option<u64>,
    opt_out_cursor: Option<u64>,
    /// Tenants whose data key was stored in this transaction.
    sealed_for: Vec<String>,
    /// Whom to tell of the commit.
    after_commit: Vec<Box<dyn FnOnce() + Send>>,
}

impl Connection for WriteTx {
    fn rows(&mut self) -> &mut dyn Reads {
        &mut *self.rows
    }

    fn sealer(&self) -> &Sealer {
        self.store.sealer()
    }

    fn epoch(&self) -> &str {
        self.store.store_epoch()
    }

    fn damages(&self) -> &Damages {
        self.store.damages()
    }
}

impl WriteTx {
    pub(super) fn new(rows: Box<dyn Writes>, store: Store) -> Self {
        Self {
            rows,
            store,
            version: None,
            opt_out_cursor: None,
            sealed_for: Vec::new(),
            after_commit: Vec::new(),
        }
    }

    /// The rows, to be changed.
    pub(super) fn writes(&mut self) -> &mut dyn Writes {
        &mut *self.rows
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
        let version = self.rows.bump_version().await?;
        self.version = Some(version);
        Ok(version)
    }

    /// Writes an entry of the audit log, in this transaction: it and the change come together or not at all.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn audit(&mut self, by: impl Into<AuditedBy>, audited: Audited) -> Result<(), StoreError> {
        let AuditedBy { actor, source_address } = by.into();
        audit::insert(self, clock::now(), &actor.to_string(), source_address, audited).await
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
        let (sealed, unstored) = self.store.sealer().seal(tenant_id, resource, plain);
        if let Some(key) = unstored {
            self.rows.insert_tenant_key(&key, clock::now_seconds()).await?;
            self.sealed_for.push(key.tenant_id);
        }
        Ok(sealed)
    }

    /// Notes that a row is written anew or removed: if it was damaged, that is over with the commit.
    pub(super) fn mends(&mut self, resource_type: &'static str, id: &str) {
        let damages = self.store.damages().clone();
        if damages.has(resource_type, id) {
            let id = id.to_owned();
            self.after_commit(move || damages.forget(resource_type, &id));
        }
    }

    /// Notes that the opt-out log now ends at `cursor`.
    pub(super) fn logged_opt_out(&mut self, cursor: u64) {
        self.opt_out_cursor = Some(cursor);
    }

    /// Has `tell` called when the transaction is committed, and only then: also when the caller who commits has
    /// gone away meanwhile. It must not wait. A later transaction may be told of before.
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
        committed.unwrap_or_else(|error| {
            Err(StoreError::Database { trouble: Trouble::Other, source: error.into() })
        })
    }

    async fn commit_and_tell(self) -> Result<(), StoreError> {
        let Self { rows, store, version, opt_out_cursor, sealed_for, after_commit } = self;
        rows.commit().await?;
        sealed_for.iter().for_each(|tenant_id| store.sealer().stored(tenant_id));
        store.committed(version, opt_out_cursor);
        after_commit.into_iter().for_each(|tell| tell());
        Ok(())
    }
}
