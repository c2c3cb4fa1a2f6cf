//! The last good configuration on disk: a base snapshot and a log of deltas, sealed.
//!
//! `config.log` begins with a base: everything there was when it was written. What the config stream brings after
//! that is appended, synced before it is acked, so that one change writes one record, however much there is.
//! When the deltas outweigh the base, a new base is written beside it; the file before it stays as
//! `config.log.previous`.
//!
//! A record that is torn or damaged ends the reading: what comes after it is asked for again by version. A
//! damaged base falls back to the previous file, which leads up to where the base began. Whatever is cut or
//! changed, the result is a state that was once stored.

use std::{
    borrow::Borrow,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use gateway_core::snapshot::{Refused, Snapshot};
use gateway_proto::v1;
use gateway_runtime::sealing::{BadKey, Key, KeyId};
use tracing::{error, warn};

mod file;
mod first_format;
pub mod key;
mod state;

use file::{Appender, Damage, Reading};
pub use state::name_of;
use state::{Refusals, State};

const FILE: &str = "config.log";
const PREVIOUS_FILE: &str = "config.log.previous";
/// Below this size of the deltas a new base is not worth it.
const DELTA_BYTES_MIN: u64 = 1 << 20;

/// Why the configuration cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum ConfigLogError {
    /// The file cannot be read.
    #[error("read configuration log `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is of another program version.
    #[error(
        "read configuration log `{0}`: its format is not known to this version; move it away to start from the control plane"
    )]
    Format(PathBuf),
    /// The file cannot be written.
    #[error("write configuration log `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key file cannot be read or made.
    #[error("keep the key of the configuration log in `{path}`")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key file does not hold a key.
    #[error("use key file `{path}`; move it and the configuration log away to start from the control plane")]
    BadKeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: BadKey,
    },
}

/// The configuration log. Cheap to clone.
#[derive(Clone)]
pub struct ConfigLog {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    directory: PathBuf,
    key: Key,
    state: State,
    /// Where the next delta goes; none when there must be a new base first.
    appender: Option<Appender>,
    /// Whether `config.log` is worth keeping when a new base takes its place.
    is_current_good: bool,
}

/// What a file holds.
struct Loaded {
    state: State,
    opt_outs: Vec<v1::OptOut>,
    appender: Option<Appender>,
}

impl ConfigLog {
    /// Opens the log of `data_dir`, which is sealed under `key`, and returns the opt-outs it holds, in their
    /// order. [`ConfigLog::snapshot`] has the rest.
    ///
    /// # Errors
    /// When it cannot be read, or is of another version. Damage is no error.
    pub fn open(data_dir: &Path, key: &Key) -> Result<(Self, Vec<v1::OptOut>), ConfigLogError> {
        let path = data_dir.join(FILE);
        let (loaded, is_current_good) = match load(&path, key)? {
            Ok(Some(loaded)) => (loaded, true),
            Ok(None) => (load_previous(data_dir, key)?, false),
            Err(damage) => {
                report(&path, key, damage);
                (load_previous(data_dir, key)?, false)
            }
        };
        let Loaded { state, opt_outs, appender } = loaded;
        let is_first_format = is_current_good && appender.is_none();
        let mut inner = Inner {
            directory: data_dir.to_owned(),
            key: key.clone(),
            state,
            appender,
            // A file of the first format has its secrets in the open.
            is_current_good: is_current_good && !is_first_format,
        };
        if is_first_format {
            inner.write_base(opt_outs.clone()).map_err(|source| ConfigLogError::Write { path, source })?;
        }
        Ok((Self { inner: Arc::new(Mutex::new(inner)) }, opt_outs))
    }

    /// Whether nothing was ever stored.
    pub fn is_empty(&self) -> bool {
        self.lock().state.is_empty()
    }

    /// The configuration. None when nothing was ever stored.
    pub fn snapshot(&self) -> Option<Snapshot> {
        let inner = self.lock();
        let parts = inner.state.parts().map(|part| part.read());
        (!inner.state.is_empty()).then(|| Snapshot::default().apply_parts(parts).0)
    }

    /// Up to where the opt-outs of the control plane are known.
    pub fn opt_out_cursor(&self) -> u64 {
        self.lock().state.opt_out_cursor
    }

    /// What the control plane is told that the agent has at this version; nothing when the log is at another one.
    pub fn digests(&self, store_epoch: &str, version: u64) -> Vec<v1::ConfigDigest> {
        let inner = self.lock();
        let is_there = inner.state.version == version && inner.state.store_epoch == store_epoch;
        if is_there { inner.state.digests().to_proto() } else { Vec::new() }
    }

    /// The value of a resource that was stored last.
    pub fn last_good(&self, resource_type: &'static str, id: &str) -> Option<v1::ConfigResource> {
        self.lock().state.resource(resource_type, id)
    }

    /// Adds a response of which nothing is refused, as [`Self::append_refusing`] does.
    ///
    /// # Errors
    /// As there.
    pub fn append<R: Borrow<v1::StreamConfigResponse>>(
        &self,
        parts: impl IntoIterator<Item = R>,
        all_opt_outs: impl FnOnce() -> Vec<v1::OptOut>,
    ) -> Result<(), ConfigLogError> {
        self.append_refusing(parts, &[], all_opt_outs)
    }

    /// Adds a response with all its parts, durably. In the place of what is `refused` it has the last good value, or
    /// nothing. When it replaces everything or has several parts, or the deltas
    /// have become too many, a new base is written with the opt-outs that `all_opt_outs` gives then. Blocks on the
    /// disk.
    ///
    /// # Errors
    /// When the disk cannot take it; the log on disk is then what it was, and the next call writes a new base.
    pub fn append_refusing<R: Borrow<v1::StreamConfigResponse>>(
        &self,
        parts: impl IntoIterator<Item = R>,
        refused: &[Refused],
        all_opt_outs: impl FnOnce() -> Vec<v1::OptOut>,
    ) -> Result<(), ConfigLogError> {
        let mut inner = self.lock();
        let refused = Refusals::of(refused);
        // Only a delta in one part is appended; parts of anything else are not kept.
        let (mut delta, mut count) = (None, 0);
        for part in parts {
            inner.state.absorb(part.borrow());
            count += 1;
            delta = (count == 1 && !part.borrow().snapshot).then_some(part);
        }
        inner.state.refuse(&refused);
        let is_due =
            |appender: &Appender| appender.delta_bytes() > DELTA_BYTES_MIN.max(appender.base_bytes());
        // Taken out, so that after a failure nothing is appended where something is missing.
        let written = match (inner.appender.take(), delta) {
            (Some(mut appender), Some(delta)) if !is_due(&appender) => {
                let added = appender.add(&inner.directory.join(FILE), &inner.key, delta.borrow(), &refused);
                added.map(|()| inner.appender = Some(appender))
            }
            _ => inner.write_base(all_opt_outs()),
        };
        written.map_err(|source| ConfigLogError::Write { path: inner.directory.join(FILE), source })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Writes all there is as a new base, beside the file, and lets it take the file's place.
    fn write_base(&mut self, opt_outs: Vec<v1::OptOut>) -> io::Result<()> {
        let (path, previous) = (self.directory.join(FILE), self.directory.join(PREVIOUS_FILE));
        let unfinished = self.directory.join("config.log.new");
        let appender = Appender::create(&unfinished, &self.key, self.state.parts_with(opt_outs))?;
        if self.is_current_good {
            // A crash after this leaves only the previous file, which is as good as it was.
            fs::rename(&path, &previous)?;
        }
        fs::rename(&unfinished, &path)?;
        fs::File::open(&self.directory)?.sync_all()?;
        self.appender = Some(appender);
        self.is_current_good = true;
        Ok(())
    }
}

/// What a file holds, whatever its format. Nothing when there is none; the damage when its base is not whole.
fn load(path: &Path, key: &Key) -> Result<Result<Option<Loaded>, Damage>, ConfigLogError> {
    let mut loaded = Loaded { state: State::default(), opt_outs: Vec::new(), appender: None };
    let mut absorb = |response: v1::StreamConfigResponse, refused: Refusals| {
        loaded.state.absorb(&response);
        loaded.state.refuse(&refused);
        loaded.opt_outs.extend(response.opt_outs);
    };
    let reading = file::read(path, key, &mut absorb);
    let reading = reading.map_err(|source| ConfigLogError::Read { path: path.to_owned(), source })?;
    Ok(match reading {
        Reading::Missing => Ok(None),
        Reading::OtherFormat => {
            let bytes =
                fs::read(path).map_err(|source| ConfigLogError::Read { path: path.to_owned(), source })?;
            if !first_format::read(&bytes, &mut |response| absorb(response, Refusals::default())) {
                return Err(ConfigLogError::Format(path.to_owned()));
            }
            Ok(Some(loaded))
        }
        Reading::BaseDamaged(damage) => Err(damage),
        Reading::Good { appender, damage } => {
            if let Some(damage) = damage {
                warn!(
                    path = %path.display(),
                    good_bytes = appender.bytes(),
                    %damage,
                    "the configuration log ends in a damaged record; using what is before it"
                );
            }
            loaded.appender = Some(appender);
            Ok(Some(loaded))
        }
    })
}

/// What the previous file holds; nothing when there is none, or it is damaged too.
fn load_previous(data_dir: &Path, key: &Key) -> Result<Loaded, ConfigLogError> {
    let path = data_dir.join(PREVIOUS_FILE);
    let nothing = Loaded { state: State::default(), opt_outs: Vec::new(), appender: None };
    Ok(match load(&path, key)? {
        Ok(Some(loaded)) => {
            warn!(
                path = %path.display(),
                version = loaded.state.version,
                "using the configuration before the last base"
            );
            // Deltas do not go into the previous file.
            Loaded { appender: None, ..loaded }
        }
        Ok(None) => nothing,
        Err(damage) => {
            report(&path, key, damage);
            nothing
        }
    })
}

/// Says that a file cannot be used.
fn report(path: &Path, key: &Key, damage: Damage) {
    let path = path.display();
    match damage {
        Damage::OtherKey(sealed_under) => {
            let ours: KeyId = key.id();
            error!(
                %path, %sealed_under, %ours,
                "the configuration log is sealed under another key; put the key back and restart, or the agent \
                 starts from the control plane"
            );
        }
        damage => warn!(%path, %damage, "the base of the configuration log is damaged; falling back"),
    }
}

#[cfg(test)]
mod tests;
