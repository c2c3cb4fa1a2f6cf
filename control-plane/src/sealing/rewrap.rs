//! Changing keys, with the control plane stopped: [`data keys`](Store::rewrap) are sealed under the newest root
//! key, so that older ones can be thrown away, and on request made anew.
//!
//! Both go in short transactions. Stopped in between, the database opens as before, as long as all root keys are
//! given; the next run goes on where this one stopped.

use gateway_runtime::sealing::Key;
use sqlx::SqliteConnection;

use super::{SealingError, WrappedKey};
use crate::store::{Store, StoreError, from_sql, sealed, tenant_keys, to_sql};

/// Data keys that are sealed anew in one transaction.
const KEYS_PER_TRANSACTION: usize = 100;
/// Rows that are sealed anew in one transaction.
const ROWS_PER_TRANSACTION: u32 = 500;
/// The row of `meta` that says up to which `seq` of `tenant_keys` keys are to be renewed, while that goes on.
const RENEWAL: &str = "data_key_renewal";

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
        sealed::wipe_if_due(self.pool()).await
    }

    async fn rewrap_data_keys(
        &self,
        root_keys: &[Key],
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), StoreError> {
        let all = tenant_keys::all(&mut *self.reader().await?).await?;
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
        let until = self.begin_renewal().await?;
        let tenants: Vec<(String, i64)> = sqlx::query_as(
            "SELECT tenant_id, max(seq) FROM tenant_keys GROUP BY tenant_id ORDER BY tenant_id",
        )
        .fetch_all(self.pool())
        .await?;
        let (total, mut rows) = (tenants.len(), 0);
        for (done, (tenant_id, newest_seq)) in tenants.iter().enumerate() {
            if from_sql(*newest_seq) <= until {
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
        sqlx::query("DELETE FROM meta WHERE name = ?1")
            .bind(RENEWAL)
            .execute(transaction.connection())
            .await?;
        transaction.commit().await
    }

    /// Notes that data keys are being renewed, unless that is so since an earlier run. Returns the `seq` of the
    /// last key to be renewed.
    async fn begin_renewal(&self) -> Result<u64, StoreError> {
        let mut transaction = self.begin_write().await?;
        let connection: &mut SqliteConnection = transaction.connection();
        let newest: Option<i64> =
            sqlx::query_scalar("SELECT max(seq) FROM tenant_keys").fetch_one(&mut *connection).await?;
        sqlx::query("INSERT INTO meta (name, number) VALUES (?1, ?2) ON CONFLICT (name) DO NOTHING")
            .bind(RENEWAL)
            .bind(newest.unwrap_or(to_sql(0)))
            .execute(&mut *connection)
            .await?;
        let until: i64 = sqlx::query_scalar("SELECT number FROM meta WHERE name = ?1")
            .bind(RENEWAL)
            .fetch_one(connection)
            .await?;
        transaction.commit().await?;
        Ok(from_sql(until))
    }

    /// Returns how many rows were sealed anew.
    async fn seal_under_newest(&self, tenant_id: &str) -> Result<usize, StoreError> {
        let mut rows = 0;
        for table in &sealed::TABLES {
            loop {
                let mut transaction = self.begin_write().await?;
                let sealed = table
                    .seal_older(transaction.connection(), self.sealer(), tenant_id, ROWS_PER_TRANSACTION)
                    .await?;
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
