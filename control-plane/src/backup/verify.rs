//! Looking through a backup that was written.

use std::path::Path;

use tokio::time::Instant;

use super::{BackupError, DATABASES, PROGRESS_INTERVAL, Progress, Unit, watched};
use crate::{
    sealing::RootKeys,
    store::{
        self, Store,
        check::Check,
        damaged::LeftOut,
        sqlite::{self, files},
    },
};

/// What looking through a backup came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// What is wrong with the structure of its databases, in SQLite's words; empty when nothing is.
    pub structure: Vec<String>,
    /// Rows of the configuration database that were looked at.
    pub rows: u64,
    /// Those that cannot be read.
    pub damaged: Vec<LeftOut>,
    /// Why some of what is sealed was not looked at; None when all of it was.
    pub not_opened: Option<String>,
    /// How many rows these are.
    pub rows_not_opened: u64,
}

impl Verified {
    /// Whether nothing is damaged, as far as it was looked at.
    pub const fn is_whole(&self) -> bool {
        self.structure.is_empty() && self.damaged.is_empty()
    }
}

/// Looks through the backup in `directory`: the structure of both databases, and every row of the configuration, whether
/// what is sealed opens with `root_keys` and every resource is the one that was stored. Of the inbound logs it does not
/// look at the rows. Nothing is changed. A key that is not there is no damage.
///
/// # Errors
/// When a file cannot be read.
pub async fn verify(
    directory: &Path,
    root_keys: &RootKeys,
    mut progress: impl FnMut(Progress),
) -> Result<Verified, BackupError> {
    let mut verified = Verified::default();
    for (name, _) in DATABASES {
        let path = directory.join(name);
        let mut copy = files::open_copy(&path).await.map_err(BackupError::database(&path))?;
        let began = Instant::now();
        let doing = "checking the structure of";
        let mut tell = |done| progress(Progress { doing, name, unit: Unit::Seconds, done, total: 0 });
        let findings = watched(files::quick_check(&mut copy), || began.elapsed().as_secs(), &mut tell).await;
        verified.structure.extend(findings.into_iter().map(|finding| format!("{name}: {finding}")));
        files::close(copy).await.map_err(BackupError::database(&path))?;
    }
    rows(&directory.join(store::FILE_NAME), root_keys, &mut verified, &mut progress).await?;
    Ok(verified)
}

/// Looks at the rows. What SQLite cannot read at all is a damage of the structure.
async fn rows(
    path: &Path,
    root_keys: &RootKeys,
    verified: &mut Verified,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BackupError> {
    let opened = match sqlite::open_copy(path, root_keys).await {
        Ok(opened) => opened,
        Err(error) => {
            verified.structure.push(format!("{}: {}", store::FILE_NAME, chain(error)));
            return Ok(());
        }
    };
    verified.not_opened = opened.missing_key;
    let store = Store::of(opened.opened);
    let mut check = Check::of_copy(&store, opened.are_keys_summed, verified.not_opened.is_some());
    let mut told = Instant::now();
    let mut tell = |done| {
        let doing = "looking at the rows of";
        progress(Progress { doing, name: store::FILE_NAME, unit: Unit::Rows, done, total: 0 });
    };
    loop {
        match check.advance().await {
            Ok(None) => break,
            Ok(Some(done)) if told.elapsed() >= PROGRESS_INTERVAL => {
                told = Instant::now();
                tell(done);
            }
            Ok(Some(_)) => {}
            Err(error) => {
                verified.structure.push(format!("{}: {}", store::FILE_NAME, chain(error)));
                break;
            }
        }
    }
    let checked = check.finish();
    tell(checked.rows);
    verified.rows = checked.rows;
    verified.rows_not_opened = checked.not_opened;
    verified.damaged = opened.damaged_keys;
    verified.damaged.extend(checked.damaged);
    store.close().await;
    Ok(())
}

fn chain(error: store::StoreError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

#[cfg(test)]
mod tests;
