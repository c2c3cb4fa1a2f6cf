//! What the operating system allows the process: open files, space on disk.

use std::{io, path::Path};

use rustix::process::{Resource, Rlimit, getrlimit, getuid, setrlimit};
use tracing::{info, warn};

/// Files open beside connections: databases, journals, logs, timers.
const BESIDE_CONNECTIONS: u64 = 512;
/// What is asked for when there is no hard limit: more than any of our servers uses.
const UNLIMITED: u64 = 1 << 20;

/// The number of the user that runs this process.
pub fn user_id() -> u32 {
    getuid().as_raw()
}

/// Raises the soft limit of open files, usually 1,024, to the hard one, as a process may by itself (getrlimit(2)). When
/// that is less than `connections` and all else need, says so: then new connections wait, or fail, long before their
/// own limit is reached. Returns the limit there is now.
pub fn raise_open_files_limit(connections: usize) -> u64 {
    let found = getrlimit(Resource::Nofile);
    let hard = found.maximum.unwrap_or(UNLIMITED);
    let soft = found.current.unwrap_or(UNLIMITED);
    let mut limit = soft;
    if soft < hard {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: found.maximum }) {
            Ok(()) => {
                limit = hard;
                info!(before = soft, limit, "raised the limit of open files");
            }
            Err(error) => warn!(%error, limit, hard, "failed to raise the limit of open files"),
        }
    }
    let needed = needed(connections);
    if limit < needed {
        warn!(
            limit,
            needed,
            connections,
            "the limit of open files is too low for the connections that may be open: raise it, for example with \
             `ulimit -n` or `LimitNOFILE`"
        );
    }
    limit
}

fn needed(connections: usize) -> u64 {
    u64::try_from(connections).unwrap_or(u64::MAX).saturating_add(BESIDE_CONNECTIONS)
}

/// Bytes that this process may still write to the file system of `path`.
///
/// # Errors
/// When it cannot be asked.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(path)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soft limit that was low comes up to the hard one, and asking again changes nothing.
    #[test]
    fn the_limit_is_the_hard_one() {
        let before = getrlimit(Resource::Nofile);
        let hard = before.maximum.unwrap_or(UNLIMITED);
        let low = hard.min(before.current.unwrap_or(hard)) - 1;
        setrlimit(Resource::Nofile, Rlimit { current: Some(low), maximum: before.maximum }).unwrap();
        assert_eq!(raise_open_files_limit(1), hard);
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED), hard);
        assert_eq!(raise_open_files_limit(usize::MAX), hard);
        assert!(needed(4_096) > 4_096 && needed(usize::MAX) == u64::MAX);
    }

    /// A directory that is there has free space, one that is not is an error.
    #[test]
    fn free_space_is_asked_of_the_file_system() {
        let directory = tempfile::tempdir().unwrap();
        assert!(free_bytes(directory.path()).unwrap() > 0);
        assert!(free_bytes(&directory.path().join("nowhere")).is_err());
    }
}
