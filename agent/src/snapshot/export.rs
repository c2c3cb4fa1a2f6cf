//! Starting from a snapshot export: a file with what the control plane would send, for a new agent that cannot reach
//! it. What is taken from it becomes the ordinary configuration on disk, so that the file is needed once.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufReader, Read as _},
    path::{Path, PathBuf},
};

use gateway_core::{
    snapshot::{
        Refused, Snapshot,
        export::{ExportHeader, ExportRefusal, FILE_NAME, KEY_PREFIX, SIGNING_KEY_PREFIX},
    },
    time::rfc3339_seconds,
    violation::FieldViolations,
};
use gateway_proto::v1;
use gateway_runtime::{
    private,
    signed_file::{BadKeyText, Kind, ReaderKey, SignedFile, SignedFileError},
};
use jiff::Timestamp;
use prost::Message as _;
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::{
    CLOCK_SKEW_MAX,
    disk::{ConfigLog, ConfigLogError, name_of},
};
use crate::{control_plane::Scope, opt_out::OptOuts};

#[cfg(test)]
mod tests;

const KIND: Kind = Kind { name: FILE_NAME, reader_prefix: KEY_PREFIX, writer_prefix: SIGNING_KEY_PREFIX };

/// No key file is longer, and a file that is taken for one may be a whole export.
const KEY_FILE_BYTES_MAX: usize = 4_096;

/// An export and the key that opens it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFiles {
    /// The export.
    pub snapshot: PathBuf,
    /// The file with the key.
    pub key: PathBuf,
}

/// Why an agent cannot start from an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file cannot be opened.
    #[error("open `{path}`")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key file is no text: it may be the export.
    #[error("use key file `{path}`: it is not a key file; perhaps it and the snapshot export are swapped")]
    NotAKeyFile {
        /// The file.
        path: PathBuf,
    },
    /// The key file does not hold a key.
    #[error("use key file `{path}`")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: BadKeyText,
    },
    /// The file cannot be read with this key, or not at all.
    #[error("use snapshot export `{path}`")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SignedFileError,
    },
    /// What is in it cannot be read, although it is signed.
    #[error("use snapshot export `{path}`: it holds what this program cannot read; use a newer one")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: prost::DecodeError,
    },
    /// It does not say for whom it is, although it is signed.
    #[error("use snapshot export `{path}`")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: FieldViolations,
    },
    /// It is not for this agent, or too old.
    #[error("use snapshot export `{path}`")]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ExportRefusal,
    },
    /// The disk cannot take it.
    #[error("keep what snapshot export `{path}` holds")]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigLogError,
    },
}

/// An export that this agent may start from.
pub struct Export {
    path: PathBuf,
    file: SignedFile<BufReader<File>>,
    /// What it says of itself.
    pub header: ExportHeader,
}

impl Export {
    /// Opens an export and checks all of it: that it is whole, signed by the control plane that the key names, for
    /// the region and tenant of `scope`, as far as the agent was told, and not expired at `now`.
    ///
    /// # Errors
    /// When it may not be used.
    pub fn open(files: &ExportFiles, scope: Scope<'_>, now: Timestamp) -> Result<Self, ExportError> {
        let path = files.snapshot.clone();
        let key = read_key(&files.key)?;
        let input = File::open(&path).map_err(ExportError::open(&path))?;
        let unusable = |source| ExportError::Unusable { path: path.clone(), source };
        let file = SignedFile::check(&KIND, BufReader::new(input), &key).map_err(unusable)?;
        let header = v1::SnapshotExportHeader::decode(file.header());
        let header = header.map_err(|source| ExportError::Unreadable { path: path.clone(), source })?;
        let header = ExportHeader::try_from(&header)
            .map_err(|source| ExportError::Header { path: path.clone(), source })?;
        let checked = header.check(scope.region, scope.tenant_id, now);
        checked.map_err(|source| ExportError::Refused { path: path.clone(), source })?;
        if header.create_time.duration_since(now) > CLOCK_SKEW_MAX {
            warn!(
                path = %path.display(),
                create_time = rfc3339_seconds(header.create_time),
                "the snapshot export was made after what our clock says, so that it may have expired unnoticed; set \
                 the clock"
            );
        }
        Ok(Self { path, file, header })
    }

    /// Takes everything from it: opt-outs into `opt_outs`, and all of it into `log`, where nothing may be yet. When
    /// `is_scope_sure` is false, or this program refuses something of it, the control plane is to send everything once
    /// more when it is back. Blocks on the disk.
    ///
    /// # Errors
    /// When the file or the disk cannot be read or written; then nothing is on disk.
    pub fn install(
        mut self,
        log: &ConfigLog,
        opt_outs: &OptOuts,
        is_scope_sure: bool,
    ) -> Result<(), ExportError> {
        let records = self.records()?;
        let refused = {
            let responses = records.iter().map(|record| self.response(record, true));
            Snapshot::default().apply_parts(responses).1
        };
        warn_of(&refused);
        let is_continued = is_scope_sure && refused.is_empty();
        // It may be all there is that an older program cannot use.
        let unusable: HashSet<(&str, &str)> =
            refused.iter().map(|refused| (refused.resource_type, refused.id.as_str())).collect();
        let parts = records.iter().enumerate().map(|(index, record)| {
            let mut part = self.response(record, is_continued);
            part.snapshot = index == 0;
            part.upserts.retain(|upsert| !unusable.contains(&name_of(upsert)));
            opt_outs.merge_from_stream(std::mem::take(&mut part.opt_outs));
            part
        });
        let stored = log.append(parts, || opt_outs.all());
        stored.map_err(|source| ExportError::Store { path: self.path.clone(), source })?;
        let ExportHeader { region, version, create_time, .. } = &self.header;
        let (path, create_time) = (self.path.display(), rfc3339_seconds(*create_time));
        info!(
            %path, region, version, create_time,
            "starting from a snapshot export: there is no configuration on disk, and none from the control plane now"
        );
        Ok(())
    }

    /// All records, each of which can be decoded; at least one.
    fn records(&mut self) -> Result<Vec<Zeroizing<Vec<u8>>>, ExportError> {
        let mut records = Vec::new();
        let unusable = |source| ExportError::Unusable { path: self.path.clone(), source };
        while let Some(record) = self.file.next_record().map_err(unusable)? {
            v1::StreamConfigResponse::decode(record.as_slice())
                .map_err(|source| ExportError::Unreadable { path: self.path.clone(), source })?;
            records.push(record);
        }
        if records.is_empty() {
            records.push(Zeroizing::default());
        }
        Ok(records)
    }

    /// A record as a part of a response of the config stream. Where the stream is not to go on from it, it has version
    /// and cursor 0: the answer to that is everything.
    fn response(&self, record: &[u8], is_continued: bool) -> v1::StreamConfigResponse {
        let decoded = v1::StreamConfigResponse::decode(record).expect("it was decoded before");
        v1::StreamConfigResponse {
            version: if is_continued { self.header.version } else { 0 },
            store_epoch: self.header.store_epoch.clone(),
            opt_out_cursor: if is_continued { self.header.opt_out_cursor } else { 0 },
            upserts: decoded.upserts,
            opt_outs: decoded.opt_outs,
            ..Default::default()
        }
    }
}

impl ExportError {
    fn open(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Open { path, source }
    }
}

fn read_key(path: &Path) -> Result<ReaderKey, ExportError> {
    private::warn_if_open_to_the_world(path);
    let mut bytes = Zeroizing::new(Vec::new());
    // At once, so that no copy of a key is left where it grew.
    bytes.reserve_exact(KEY_FILE_BYTES_MAX + 1);
    let read = File::open(path).and_then(|file| file.take(KEY_FILE_BYTES_MAX as u64).read_to_end(&mut bytes));
    read.map_err(ExportError::open(path))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| ExportError::NotAKeyFile { path: path.to_owned() })?;
    ReaderKey::parse(&KIND, text).map_err(|source| ExportError::Key { path: path.to_owned(), source })
}

/// Says what of an export this program cannot use.
fn warn_of(refused: &[Refused]) {
    for Refused { resource_type, id, violations, .. } in refused {
        warn!(resource_type, id, %violations, "left out of the snapshot export what this agent cannot use");
    }
}
