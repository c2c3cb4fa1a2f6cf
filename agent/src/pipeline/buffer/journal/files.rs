//! The disk under the journal, as a seam for tests that make it fail.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// How much room a disk has.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Space {
    pub(in super::super) free_bytes: u64,
    pub(in super::super) total_bytes: u64,
}

/// Makes the files that are written.
pub(in super::super) trait Files: Send + 'static {
    /// Makes a file that must not be there yet, readable by this user only.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Writable>>;

    /// How much room the disk of a directory has.
    fn space(&self, directory: &Path) -> io::Result<Space>;
}

/// A file that is written. The descriptor is the only one that is synced, because a write-back error is
/// delivered once per open descriptor.
pub(in super::super) trait Writable: Send {
    /// Writes all bytes at an offset.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns once what was written is on disk (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts the file.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
}

/// The real disk.
pub(in super::super) struct RealFiles;

impl Files for RealFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Writable>> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(file))
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        let space = rustix::fs::statvfs(directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        Ok(Space { free_bytes: bytes(space.f_bavail), total_bytes: bytes(space.f_blocks) })
    }
}

impl Writable for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        Self::sync_data(self)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        Self::set_len(self, bytes)
    }
}

/// Makes what was created, renamed or removed in a directory durable.
pub(in super::super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Moves a file or directory out of the way, into `quarantine/` of the buffer's directory, and returns its
/// name there.
pub(in super::super) fn quarantine(buffer: &Path, path: &Path, reason: &str) -> io::Result<String> {
    let quarantine = buffer.join(QUARANTINE);
    crate::private::create_directory(&quarantine)?;
    forget_oldest(&quarantine)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let time = gateway_runtime::clock::now().strftime("%Y%m%dT%H%M%S%.6f");
    let name = format!("{name}.{time}.{reason}");
    fs::rename(path, quarantine.join(&name))?;
    sync_directory(&quarantine)?;
    sync_directory(buffer)?;
    Ok(name)
}

const QUARANTINE: &str = "quarantine";
/// Things kept in quarantine. When one more comes, the oldest is removed.
const QUARANTINED_MAX: usize = 64;

fn forget_oldest(quarantine: &Path) -> io::Result<()> {
    let mut kept: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(quarantine)? {
        let entry = entry?;
        kept.push((entry.metadata()?.modified()?, entry.path()));
    }
    kept.sort();
    let surplus = (kept.len() + 1).saturating_sub(QUARANTINED_MAX);
    for (_, path) in kept.into_iter().take(surplus) {
        if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
    }
    Ok(())
}
