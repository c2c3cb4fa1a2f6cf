//! Files and directories that only their owner can read: they hold messages and secrets.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Makes a directory, and those above it, for the owner alone. One that is there stays as it is.
///
/// # Errors
/// When the disk refuses.
pub fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file for the owner alone: beside it first, synced, then renamed over it, so that a crash leaves
/// the old one or the new one.
///
/// # Errors
/// When the disk refuses.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// What is made here is closed to everybody else.
    #[test]
    fn others_are_kept_out() {
        let directory = tempfile::tempdir().unwrap();
        let (inner, file) = (directory.path().join("one/two"), directory.path().join("one/two/secret"));
        create_directory(&inner).unwrap();
        create_directory(&inner).unwrap();
        write_file(&file, b"secret").unwrap();
        for (path, mode) in [(inner, 0o700), (file, 0o600)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
    }
}
