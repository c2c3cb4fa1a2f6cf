//! Where the buffer lives. Its buffer ids belong to one directory: of two copies that report under one id, the
//! control plane would take what the second says for repeats of the first, and drop it.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path, time::UNIX_EPOCH};

use tracing::warn;
use uuid::Uuid;

use super::{
    journal::{Counters, Journal, format::FIRST_VERSION},
    lane::LaneState,
    recover::Recovered,
};
use crate::private;

const HOME_FILE: &str = "home";

/// Beside a buffer, what is known of the directory it was last opened in.
#[derive(Debug, PartialEq, Eq)]
enum Home {
    /// It is this one.
    Here,
    /// It is another one: the buffer was copied, moved or restored. A note that cannot be read says so, too.
    Elsewhere,
    /// An older program did not say.
    Unknown,
}

/// Gives a buffer that was copied, moved or restored buffer ids of its own; what is not acked is reported again
/// under them. Binds the buffer to its directory. A disk that refuses does not keep the buffer from opening:
/// the next opening tries again.
pub(super) fn settle_in(buffer: &Path, recovered: &mut Recovered, journal: &mut Journal) {
    if let Err(failure) = try_settle_in(buffer, recovered, journal) {
        warn!(error = &*failure, "failed to bind the buffer to its directory; the next start tries again");
    }
}

fn try_settle_in(
    buffer: &Path,
    recovered: &mut Recovered,
    journal: &mut Journal,
) -> Result<(), Box<dyn std::error::Error>> {
    let mark = mark_of(buffer)?;
    match home(buffer, &mark)? {
        Home::Here => return Ok(()),
        Home::Unknown => {}
        Home::Elsewhere => {
            warn!("the buffer was copied or moved: reporting under a new buffer id");
            let Counters { buffer_ids, .. } = Counters::fresh();
            recovered.take_buffer_ids(buffer_ids);
            // They are in the journal before the directory counts as known, or a crash between would bring the
            // old ones back.
            journal.prepare(&recovered.counters, FIRST_VERSION)?;
        }
    }
    private::write_file(&buffer.join(HOME_FILE), mark.as_bytes())?;
    Ok(())
}

impl Recovered {
    fn take_buffer_ids(&mut self, buffer_ids: [Uuid; 2]) {
        let name = |(lane, id): (&mut LaneState, Uuid)| lane.buffer_id = id.to_string();
        self.lanes.iter_mut().zip(buffer_ids).for_each(name);
        self.counters.buffer_ids = buffer_ids;
    }
}

/// What tells a directory from every copy of it: device and inode, and when it was made, where the file system
/// says so, because inode numbers are used again.
fn mark_of(directory: &Path) -> io::Result<String> {
    let found = fs::metadata(directory)?;
    let made = found.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    let made = made.map_or_else(|| "-".to_owned(), |made| made.as_nanos().to_string());
    Ok(format!("1 {} {} {made}\n", found.dev(), found.ino()))
}

fn home(buffer: &Path, mark: &str) -> io::Result<Home> {
    match fs::read(buffer.join(HOME_FILE)) {
        Ok(stored) if stored == mark.as_bytes() => Ok(Home::Here),
        Ok(_) => Ok(Home::Elsewhere),
        Err(failure) if failure.kind() == io::ErrorKind::NotFound => Ok(Home::Unknown),
        Err(failure) => Err(failure),
    }
}
