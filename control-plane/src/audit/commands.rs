//! Commands of the control plane's program that give its secrets away or change what protects them. They leave an
//! entry of the audit log too, also while the control plane runs: both write to the same database, one after the other.

use std::{path::Path, time::Duration};

use gateway_proto::v1;
use gateway_runtime::clock;
use tracing::warn;

use super::{Audited, AuditedBy};
use crate::store::{
    self, Store, StoreError,
    sqlite::files::{self, Connected},
};

/// How long the entry of a backup waits for others who write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// A snapshot export with this header is about to have its name.
///
/// # Errors
/// When the database cannot be written.
pub async fn exported(store: &Store, header: &v1::SnapshotExportHeader) -> Result<(), StoreError> {
    note(store, Audited::created("ExportSnapshot", header)).await
}

/// Data keys are about to be sealed under the root key with this name; with `renew_data_keys` new ones are made.
///
/// # Errors
/// When the database cannot be written.
pub async fn rewrapping(store: &Store, root_key_id: &str, renew_data_keys: bool) -> Result<(), StoreError> {
    let renewed = v1::AuditChange {
        field: "data_keys".to_owned(),
        before: String::new(),
        after: "\"renewed\"".to_owned(),
    };
    let changes = if renew_data_keys { vec![renewed] } else { Vec::new() };
    let resource_id = root_key_id.to_owned();
    let rewrapped =
        Audited { method: "Rewrap", resource_type: "root_key", resource_id, changes, ..Audited::default() };
    note(store, rewrapped).await
}

async fn note(store: &Store, audited: Audited) -> Result<(), StoreError> {
    let mut transaction = store.begin_write().await?;
    transaction.audit(AuditedBy::command_line(), audited).await?;
    transaction.commit().await
}

/// The databases in `data_dir` are about to be copied. There is a backup without its entry when the database cannot be
/// written: that is when one is needed most.
pub async fn backing_up(data_dir: &Path) {
    let path = data_dir.join(store::FILE_NAME);
    if let Err(error) = note_backup(&path).await {
        let error = format!("{error:#}");
        warn!(error, path = %path.display(), "failed to note the backup in the audit log; it is made all the same");
    }
}

async fn note_backup(path: &Path) -> anyhow::Result<()> {
    let mut connection = files::open_source(path, BUSY_TIMEOUT).await?;
    let (epoch, _) = files::epoch_and_version(&mut connection).await?;
    note_in(&mut connection, copied("Backup", epoch)).await?;
    Ok(files::close(connection).await?)
}

/// A database was restored from a copy of the store with this name.
///
/// # Errors
/// When the database cannot be written.
pub(crate) async fn restored(connection: &mut Connected, epoch: &str) -> Result<(), StoreError> {
    note_in(connection, copied("Restore", epoch.to_owned())).await
}

fn copied(method: &'static str, epoch: String) -> Audited {
    Audited { method, resource_type: "backup", resource_id: epoch, ..Audited::default() }
}

async fn note_in(connection: &mut Connected, audited: Audited) -> Result<(), StoreError> {
    let actor = AuditedBy::command_line().actor.to_string();
    files::audit(connection, clock::now(), &actor, audited).await
}
