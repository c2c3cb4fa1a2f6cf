//! Changing keys, with the control plane stopped: [`data keys`](Store::rewrap) are sealed under the newest root
//! key, so that older ones can be thrown away, and on request made anew.
//!
//! Both go in short transactions. Stopped in between, the database opens as before, as long as all root keys are
//! given; the next run goes on where this one stopped.

use gateway_runtime::sealing::Key;

use super::{SealingError, WrappedKey};
use crate::store::{Store, StoreError, sealed, tenant_keys};

/// Data keys that are sealed anew in one transaction.
const KEYS_PER_TRANSACTION: usize = 100;
/// Rows that are sealed anew in one transaction.
const ROWS_PER_TRANSACTION: u32 = 500;

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many data keys are sealed under the newest root key.
    DataKeys {
        /// Done until now.
        done: usize,
        /// All that there are.
        total: usize,
    },
    /// The secrets of so many tenants are sealed under a new data key.
    Tenants {
        /// Done until now.
        done: usize,
        /// All that there are.
        total: usize,
        /// Rows sealed anew until now.
        rows: usize,
    },
    /// The database is written anew, without what its free pages hold.
    Wiping,
}

impl Store {
    /// Seals all data keys under the first of `root_keys`, which the store was opened with; with
    /// `renew_data_keys` makes new ones and seals all secrets under them. Nobody else may use the database.
    ///
    /// # Errors
    /// When a key or a secret cannot be opened, or the database not be written; what was done until then stays.
    pub async fn rewrap(
        &self,
        root_keys: &[Key],
        renew_data_keys: bool,
        mut progress: impl FnMut(Progress),
    ) -> Result<(), StoreError> {
        self.rewrap_data_keys(root_keys, &mut progress).await?;
        if renew_data_keys {
            self.renew_data_keys(&mut progress).await?;
        }
        progress(Progress::Wiping);
        self.wipe_if_due().await
    }

    async fn rewrap_data_keys(
        &self,
        root_keys: &[Key],
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), StoreError> {
        let all = tenant_keys::all(&mut self.reader().await?).await?;
        let newest = root_keys.first().expect("a store is opened with a root key");
        let is_older = |key: &&WrappedKey| key.root_key_id != newest.id().to_string();
        let older: Vec<&WrappedKey> = all.iter().filter(is_older).collect();
        let mut done = all.len() - older.len();
        for keys in older.chunks(KEYS_PER_TRANSACTION) {
            let mut transaction = self.begin_write().await?;
            for key in keys {
                let opened = key.open(root_keys)?;
                let rewrapped = WrappedKey::new(newest, &key.tenant_id, &opened);
                tenant_keys::replace(&mut transaction, &rewrapped).await?;
            }
            sealed::note_wipe(&mut transaction).await?;
            transaction.commit().await?;
            done += keys.len();
            progress(Progress::DataKeys { done, total: all.len() });
        }
        if older.is_empty() {
            progress(Progress::DataKeys { done, total: all.len() });
        }
        Ok(())
    }

    async fn renew_data_keys(&self, progress: &mut impl FnMut(Progress)) -> Result<(), StoreError> {
        let mut transaction = self.begin_write().await?;
        let until = tenant_keys::begin_renewal(&mut transaction).await?;
        transaction.commit().await?;
        let tenants = tenant_keys::newest(&mut self.reader().await?).await?;
        let (total, mut rows) = (tenants.len(), 0);
        for (done, (tenant_id, newest_seq)) in tenants.iter().enumerate() {
            if *newest_seq <= until {
                let mut transaction = self.begin_write().await?;
                let key = self.sealer().renew(tenant_id);
                tenant_keys::insert(&mut transaction, &key).await?;
                transaction.commit().await?;
            }
            rows += self.seal_under_newest(tenant_id).await?;
            let mut transaction = self.begin_write().await?;
            tenant_keys::delete_older(&mut transaction, tenant_id).await?;
            sealed::note_wipe(&mut transaction).await?;
            transaction.commit().await?;
            progress(Progress::Tenants { done: done + 1, total, rows });
        }
        let mut transaction = self.begin_write().await?;
        tenant_keys::end_renewal(&mut transaction).await?;
        transaction.commit().await
    }

    /// Returns how many rows were sealed anew.
    async fn seal_under_newest(&self, tenant_id: &str) -> Result<usize, StoreError> {
        let mut rows = 0;
        for table in sealed::TABLES {
            loop {
                let mut transaction = self.begin_write().await?;
                let sealed = table.seal_older(&mut transaction, tenant_id, ROWS_PER_TRANSACTION).await?;
                transaction.commit().await?;
                rows += sealed;
                if sealed == 0 {
                    break;
                }
            }
        }
        Ok(rows)
    }
}

/// The keys that `root_keys` names, for a database that exists: none is made.
///
/// # Errors
/// When a key file cannot be read.
pub fn existing(root_keys: &super::RootKeys) -> Result<Vec<Key>, SealingError> {
    root_keys.load(Some("of this data directory"))
}
