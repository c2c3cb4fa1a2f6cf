//! Files and directories that only their owner can read: keys, credentials and what people write.
//!
//! A file gets its name when it is whole and durable, so that a crash at any moment leaves the old one or the new
//! one, never a part of one.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tracing::warn;

/// Read and written by the owner alone.
const OWNER_ONLY: u32 = 0o600;
/// Read by everybody.
const PUBLIC: u32 = 0o644;
/// Any access of anybody but the owner.
const ANY_OTHER: u32 = 0o077;
/// Any access of those who are not even in the file's group.
const WORLD: u32 = 0o007;

/// Makes a directory, and those above it, for the owner alone. One that is there stays as it is.
///
/// # Errors
/// When the disk refuses.
pub fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file for the owner alone, in the place of the one that is there. Not for a file that several processes
/// write at the same time: see [`write_shared_file`].
///
/// # Errors
/// When the disk refuses; the file that was there is then as it was, but for a failure of the very last step.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, &beside(path, "new"), bytes, OWNER_ONLY)
}

/// As [`write_file`], for a file that several processes write: the last one wins. What a process that was killed
/// has left behind stays there.
///
/// # Errors
/// As [`write_file`].
pub fn write_shared_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, &beside(path, &format!("{}.new", std::process::id())), bytes, OWNER_ONLY)
}

/// As [`write_file`], for a file that everybody may read, such as a certificate.
///
/// # Errors
/// As [`write_file`].
pub fn write_public_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write(path, &beside(path, "new"), bytes, PUBLIC)
}

fn beside(path: &Path, extension: &str) -> PathBuf {
    path.with_added_extension(extension)
}

fn write(path: &Path, unfinished: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // One that a crash left behind may be open to more than this file is to be, or a link to another place.
    match fs::remove_file(unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(unfinished, path)?;
    match path.parent() {
        // The directory of a bare file name is the current one.
        Some(directory) if directory.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Warns when anybody but its owner can get at a file that a program of ours made for itself. Its own mode is all
/// that is looked at: what the directories above it allow is not.
pub fn warn_if_open(path: &Path) {
    if let Some(mode) = open_to(path, ANY_OTHER) {
        warn!(
            path = %path.display(),
            mode = format!("{mode:03o}"),
            "a file with secrets is open to others than its owner; close it with `chmod 600`, and consider what is \
             in it as known to them"
        );
    }
}

/// Warns when everybody can get at a file with a secret that somebody gave. Its group may: that is how such files
/// are handed to a program.
pub fn warn_if_open_to_the_world(path: &Path) {
    if let Some(mode) = open_to(path, WORLD) {
        warn!(
            path = %path.display(),
            mode = format!("{mode:03o}"),
            "a file with a secret is open to every user of this machine; close it with `chmod o=`, and consider the \
             secret as known to them"
        );
    }
}

/// The mode of a file that is open to some of `others`. None when there is no such file.
fn open_to(path: &Path, others: u32) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & others != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// What is made here is closed to everybody else, also where a file with wider access was before; what is
    /// public is not.
    #[test]
    fn others_are_kept_out() {
        let directory = tempfile::tempdir().unwrap();
        let (inner, file) = (directory.path().join("one/two"), directory.path().join("one/two/secret.json"));
        create_directory(&inner).unwrap();
        create_directory(&inner).unwrap();
        write_public_file(&file, b"public").unwrap();
        assert_eq!(mode(&file), 0o644);
        for write in [write_file, write_shared_file] {
            write(&file, b"secret").unwrap();
            assert_eq!((mode(&inner), mode(&file)), (0o700, 0o600));
            assert_eq!(fs::read(&file).unwrap(), b"secret");
        }
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
    }

    /// A write that fails, or that a crash cut off, leaves the old file whole; what the crash left behind is in
    /// nobody's way, and neither its mode nor where it points to is inherited.
    #[test]
    fn a_write_is_all_or_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (file, unfinished) = (directory.path().join("ca.key"), directory.path().join("ca.key.new"));
        write_file(&file, b"old").unwrap();
        fs::create_dir(&unfinished).unwrap();
        write_file(&file, b"new").unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"old");
        fs::remove_dir(&unfinished).unwrap();

        fs::write(&unfinished, "a part of the ne").unwrap();
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o666)).unwrap();
        write_file(&file, b"new").unwrap();
        assert_eq!((fs::read(&file).unwrap(), mode(&file)), (b"new".to_vec(), 0o600));

        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, "untouched").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &unfinished).unwrap();
        write_file(&file, b"newer").unwrap();
        assert_eq!(fs::read(&elsewhere).unwrap(), b"untouched");
        assert_eq!(fs::read(&file).unwrap(), b"newer");
    }

    /// A file of ours is open when anybody else can do anything with it, a given one when everybody can; a missing
    /// one is not.
    #[test]
    fn open_files_are_seen() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tls.key");
        assert_eq!((open_to(&file, ANY_OTHER), open_to(&file, WORLD)), (None, None));
        fs::write(&file, "key").unwrap();
        for (mode, ours, given) in [
            (0o600, None, None),
            (0o400, None, None),
            (0o640, Some(0o640), None),
            (0o644, Some(0o644), Some(0o644)),
            (0o602, Some(0o602), Some(0o602)),
        ] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!((open_to(&file, ANY_OTHER), open_to(&file, WORLD)), (ours, given), "{mode:o}");
        }
    }
}
