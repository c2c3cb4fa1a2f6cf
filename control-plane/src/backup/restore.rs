//! Making a data directory from a backup.

use std::{fs, io, os::unix::fs::DirBuilderExt as _, path::Path};

use super::{
    BackupError, DATABASES, FORMAT, MANIFEST, Manifest, Progress, checksum, make_empty,
    revocations::{self, Credentials},
    sync_directory,
};
use crate::{
    inbound_log,
    store::{
        self,
        sqlite::{files, schema},
    },
};

/// What is being restored lies here, in the data directory, until all of it is there.
const UNFINISHED: &str = "restoring";

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The backup.
    pub manifest: Manifest,
    /// Who gets in now.
    pub credentials: Credentials,
}

/// Makes `data_dir`, which must be empty, from the backup in `from`: checks every byte, and gives the store and
/// the log a new epoch. Join tokens are forgotten, since some may have been used after the backup. With the data
/// directory that was in use until now, `previous`, what was revoked after the backup is revoked again.
///
/// # Errors
/// When the backup is damaged, not whole or of a newer program, `data_dir` is not empty, the database in `previous`
/// cannot be read, or a file cannot be read or written; then nothing is left in `data_dir`.
pub async fn restore(
    from: &Path,
    data_dir: &Path,
    previous: Option<&Path>,
    mut progress: impl FnMut(Progress),
) -> Result<Restored, BackupError> {
    let manifest = read_manifest(from)?;
    // What cannot be looked at says why when it is opened.
    if let Some(previous) = previous
        && let Ok(false) = previous.join(store::FILE_NAME).try_exists()
    {
        return Err(BackupError::NoPrevious(previous.to_owned()));
    }
    make_empty(data_dir)?;
    let unfinished = data_dir.join(UNFINISHED);
    fs::DirBuilder::new().mode(0o700).create(&unfinished).map_err(BackupError::file(&unfinished))?;
    let copied = async {
        copy(&manifest, from, &unfinished, &mut progress).await?;
        revocations::keep(&unfinished.join(store::FILE_NAME), previous, &manifest).await
    };
    let credentials = match copied.await {
        Ok(credentials) => credentials,
        Err(error) => {
            // The error that is returned says what is wrong.
            drop(fs::remove_dir_all(&unfinished));
            return Err(error);
        }
    };
    for (name, _) in DATABASES {
        let path = unfinished.join(name);
        fs::rename(&path, data_dir.join(name)).map_err(BackupError::file(&path))?;
    }
    sync_directory(data_dir)?;
    fs::remove_dir(&unfinished).map_err(BackupError::file(&unfinished))?;
    sync_directory(data_dir)?;
    Ok(Restored { manifest, credentials })
}

/// Refuses a data directory in which a restore was interrupted.
///
/// # Errors
/// [`BackupError::Unfinished`].
pub fn refuse_unfinished(data_dir: &Path) -> Result<(), BackupError> {
    if data_dir.join(UNFINISHED).exists() {
        return Err(BackupError::Unfinished(data_dir.to_owned()));
    }
    Ok(())
}

fn read_manifest(from: &Path) -> Result<Manifest, BackupError> {
    let path = from.join(MANIFEST);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BackupError::NoManifest(path)),
        Err(error) => return Err(BackupError::file(&path)(error)),
    };
    let damaged = |source| BackupError::Manifest { path: path.clone(), source };
    // A newer form may have other fields, so its number is looked at by itself.
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
    let format = value.get("format").and_then(serde_json::Value::as_i64).unwrap_or_default();
    check_version("the backup", format, FORMAT.into())?;
    let manifest: Manifest = serde_json::from_value(value).map_err(damaged)?;
    for (name, known) in DATABASES {
        let of_name = manifest.files.iter().find(|file| file.name == name);
        let file = of_name.ok_or_else(|| BackupError::Damaged(from.join(name)))?;
        check_version(name, file.schema_version, known)?;
    }
    Ok(manifest)
}

pub(super) fn check_version(name: &str, found: i64, known: i64) -> Result<(), BackupError> {
    if found > known {
        return Err(BackupError::Newer { name: name.to_owned(), found, known });
    }
    Ok(())
}

async fn copy(
    manifest: &Manifest,
    from: &Path,
    to: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BackupError> {
    for (name, known) in DATABASES {
        let (source, target) = (from.join(name), to.join(name));
        let (bytes, sha256) = checksum(name, &source, Some(&target), progress).await?;
        let is_it =
            |file: &&super::ManifestFile| file.name == name && file.bytes == bytes && file.sha256 == sha256;
        if manifest.files.iter().find(is_it).is_none() {
            return Err(BackupError::Damaged(source));
        }
        renew(name, known, &target).await?;
    }
    sync_directory(to)
}

/// Makes the copy a store of its own.
async fn renew(name: &str, known: i64, path: &Path) -> Result<(), BackupError> {
    let mut connection = files::open_restored(path).await.map_err(BackupError::database(path))?;
    let is_config = name == store::FILE_NAME;
    let found =
        files::schema_version(&mut connection, is_config).await.map_err(BackupError::database(path))?;
    check_version(name, found, known)?;
    if is_config {
        schema::renew_epoch(&mut connection).await.map_err(BackupError::Epoch)?;
    } else {
        inbound_log::forget_epoch(&mut connection).await.map_err(BackupError::database(path))?;
    }
    files::close(connection).await.map_err(BackupError::database(path))
}
