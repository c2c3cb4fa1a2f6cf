//! Snapshot exports: what a new agent of a region would be sent, as a file with which it can start while the control
//! plane is away.
//!
//! An export is sealed under a key that agents are given in a **key file**, and signed with a key that stays here, in
//! `snapshot-signing.key` of the data directory. So an agent can read exports, all secrets of its region included,
//! and cannot make one that another agent would take ([`gateway_runtime::signed_file`]). The selection is that of
//! the config stream ([`crate::publish`]).
//!
//! The control plane may run meanwhile, or not: only its database is needed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use gateway_core::{
    id::TenantId,
    snapshot::export::{ExportHeader, FILE_NAME, KEY_PREFIX, SIGNING_KEY_PREFIX},
    tenant::TenantScope,
};
use gateway_proto::v1::{self, config_resource::Resource};
use gateway_runtime::{
    clock, private,
    signed_file::{BadKeyText, Kind, ReaderKey, SignerId, Writer, WriterKey},
};
use jiff::Timestamp;
use prost::Message as _;
use zeroize::Zeroizing;

use crate::{
    audit::commands,
    publish::{Parts, Publisher, TenantFilter, keep_own_opt_outs},
    sealing::RootKeys,
    store::{
        self, Cause, Store, StoreError,
        damaged::LeftOut,
        sqlite::{files, schema::SCHEMA_VERSION},
        tenants,
    },
};

mod left_out;
#[cfg(test)]
mod tests;

pub use left_out::Named;

/// Name of the file in the data directory that keeps the key that signs.
pub const SIGNING_KEY_FILE: &str = "snapshot-signing.key";
/// How long an export may be used at least and at most.
pub const LIVES: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(90 * 24 * 3_600);
/// Opt-out decisions of one record.
const OPT_OUTS_PAGE: u32 = 1_000;
/// How long the first look at the database waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
const KIND: Kind = Kind { name: FILE_NAME, reader_prefix: KEY_PREFIX, writer_prefix: SIGNING_KEY_PREFIX };

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no database.
    #[error("open configuration database `{0}`: it does not exist; is --data-dir that of the control plane?")]
    NoDatabase(PathBuf),
    /// The control plane is of an older version than this program.
    #[error(
        "export from `{path}`: its tables are of version {found} and this program's of version {known}; use the program \
         that the control plane runs, so that nothing is changed under it"
    )]
    OlderSchema {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The version that this program writes.
        known: i64,
    },
    /// The database cannot be looked at.
    #[error("open configuration database `{path}`")]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Cause,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such tenant.
    #[error("export for tenant `{0}`: there is no such tenant")]
    NoTenant(TenantId),
    /// A key file cannot be read or made.
    #[error("use key file `{path}`")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A key file does not hold a key.
    #[error("use key file `{path}`")]
    BadKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: BadKeyText,
    },
    /// The agents' key file trusts another control plane.
    #[error(
        "use key file `{path}`: its agents trust exports signed by key {trusted}, and this control plane signs with \
         {ours}; put {SIGNING_KEY_FILE} back into the data directory, or give another --key-file, which is made, and \
         give that to the agents"
    )]
    OtherSigner {
        /// The key file.
        path: PathBuf,
        /// Whom it trusts.
        trusted: SignerId,
        /// Who we are.
        ours: SignerId,
    },
    /// Resources that would be in it cannot be read.
    #[error(
        "read {0}: what is stored is damaged, so an export would lack it; restore a backup, or delete it and create it \
         anew; --leave-out-damaged exports the rest"
    )]
    Damaged(Named),
    /// The audit log cannot say who made the export.
    #[error(
        "note the export in the audit log: there is none without its entry; make the configuration database writable, or \
         export from a restored backup"
    )]
    Audit(#[source] StoreError),
    /// The export would take the place of a key.
    #[error("write export `{0}`: that is a key file; give another --output")]
    OverKey(PathBuf),
    /// The export cannot be written.
    #[error("write export `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is to be exported, and where to.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// The region of the agents that are to start from it.
    pub region: String,
    /// Their tenant; None for agents of the platform.
    pub tenant_id: Option<TenantId>,
    /// The file to write. One that is there is replaced.
    pub output: PathBuf,
    /// The agents' key; made when it is not there.
    pub key_file: PathBuf,
    /// How long agents may start from it, within [`LIVES`].
    pub expires_in: Duration,
    /// Whether what cannot be read is left out; otherwise there is no export then.
    pub leave_out_damaged: bool,
}

/// What is in an export.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExportCounts {
    /// Inbound routes.
    pub inbound_routes: u64,
    /// Instances.
    pub instances: u64,
    /// Webhook subscriptions.
    pub webhook_subscriptions: u64,
    /// Opt-out policies.
    pub opt_out_policies: u64,
    /// Decisions of contacts; a contact may have several.
    pub opt_outs: u64,
}

/// An export that was written.
#[derive(Debug, Clone)]
pub struct Exported {
    /// What it says of itself.
    pub header: ExportHeader,
    /// What is in it.
    pub counts: ExportCounts,
    /// Its length.
    pub bytes: u64,
    /// The name of the key that signed it.
    pub signer: SignerId,
    /// Whether the key that signs was made now.
    pub is_signing_key_new: bool,
    /// Whether the agents' key file was made now.
    pub is_key_file_new: bool,
    /// What should be in it and cannot be read.
    pub left_out: Vec<LeftOut>,
}

/// Writes an export of the store in `data_dir`, whether its control plane runs or not. The file has its name when it is
/// whole and durable, and only its owner can read it.
///
/// # Errors
/// When the store, or what would be in the export, cannot be read, a key cannot be used, or the file cannot be written; then a file of this name that was
/// there before is as it was.
pub async fn export(
    data_dir: &Path,
    root_keys: &RootKeys,
    request: &ExportRequest,
) -> Result<Exported, ExportError> {
    let store = open(data_dir, root_keys).await?;
    let exported = export_from(&store, data_dir, request).await;
    store.close().await;
    exported
}

/// Opens the store of a control plane that may be running: nothing of it may be changed.
async fn open(data_dir: &Path, root_keys: &RootKeys) -> Result<Store, ExportError> {
    let path = data_dir.join(store::FILE_NAME);
    if !path.exists() {
        return Err(ExportError::NoDatabase(path));
    }
    let looked = async {
        let mut connection = files::open_source(&path, BUSY_TIMEOUT).await?;
        let found = files::schema_version(&mut connection, true).await?;
        files::close(connection).await?;
        Ok::<_, Cause>(found)
    };
    let found = looked.await.map_err(|source| ExportError::Database { path: path.clone(), source })?;
    if found < SCHEMA_VERSION {
        return Err(ExportError::OlderSchema { path, found, known: SCHEMA_VERSION });
    }
    Ok(Store::open_sealed(data_dir, root_keys).await?)
}

async fn export_from(
    store: &Store,
    data_dir: &Path,
    request: &ExportRequest,
) -> Result<Exported, ExportError> {
    if let Some(tenant_id) = &request.tenant_id {
        let found = tenants::find(&mut store.reader().await?, &TenantScope::All, tenant_id.as_str()).await?;
        found.ok_or_else(|| ExportError::NoTenant(tenant_id.clone()))?;
    }
    let (signing_key, is_signing_key_new) = signing_key(&data_dir.join(SIGNING_KEY_FILE))?;
    let (key, is_key_file_new) = reader_key(&request.key_file, &signing_key)?;
    // A key that is written over is lost, with every export that was made with it.
    if [&request.key_file, &data_dir.join(SIGNING_KEY_FILE)]
        .into_iter()
        .any(|key| is_same(key, &request.output))
    {
        return Err(ExportError::OverKey(request.output.clone()));
    }
    let mut unfinished = Unfinished::create(&request.output)?;
    let mut contents = Contents::read(store, request, clock::now()).await?;
    let left_out = std::mem::take(&mut contents.left_out);
    if !left_out.is_empty() && !request.leave_out_damaged {
        return Err(ExportError::Damaged(Named(left_out)));
    }
    let (header, counts) = contents.write(store, request, &key, &signing_key, &mut unfinished).await?;
    // Before the file has its name: there is no export without its entry.
    commands::exported(store, &(&header).into()).await.map_err(ExportError::Audit)?;
    let bytes = unfinished.take_name()?;
    let signer = signing_key.id();
    Ok(Exported { header, counts, bytes, signer, is_signing_key_new, is_key_file_new, left_out })
}

/// What is going to be written.
struct Contents {
    header: ExportHeader,
    parts: Parts,
    filter: Option<TenantFilter>,
    left_out: Vec<LeftOut>,
}

impl Contents {
    async fn read(store: &Store, request: &ExportRequest, now: Timestamp) -> Result<Self, ExportError> {
        let opt_out_cursor = *store.watch_opt_out_cursor().borrow();
        let newest = store.version().await?;
        let changes = Publisher::new(store.clone()).changes(0, newest).await?;
        let unreadable = changes.left_out.clone();
        let parts = Parts::new(changes, &request.region);
        let tenant_id = request.tenant_id.clone();
        let filter = match &tenant_id {
            Some(tenant_id) => Some(TenantFilter::read(store, tenant_id.as_str()).await?),
            None => None,
        };
        let left_out = left_out::of_agents(store, &unreadable, &request.region, filter.as_ref()).await?;
        let header = ExportHeader {
            region: request.region.clone(),
            tenant_id,
            version: parts.version(),
            store_epoch: store.store_epoch().to_owned(),
            opt_out_cursor,
            create_time: now,
            expire_time: now.saturating_add(request.expires_in).unwrap_or(Timestamp::MAX),
            build: env!("CARGO_PKG_VERSION").to_owned(),
        };
        Ok(Self { header, parts, filter, left_out })
    }

    /// One record at a time, so that what is encoded and sealed is never more than one response of the config stream.
    async fn write(
        mut self,
        store: &Store,
        request: &ExportRequest,
        key: &ReaderKey,
        signing_key: &WriterKey,
        unfinished: &mut Unfinished,
    ) -> Result<(ExportHeader, ExportCounts), ExportError> {
        let failed = ExportError::write(&request.output);
        let header = v1::SnapshotExportHeader::from(&self.header).encode_to_vec();
        let file = unfinished.file.by_ref();
        let mut writer = Writer::begin(&KIND, file, key, &header).map_err(&failed)?;
        let mut counts = ExportCounts::default();
        for mut part in self.parts.by_ref() {
            if let Some(filter) = &mut self.filter {
                filter.apply(&mut part);
            }
            counts.add(&part.upserts);
            let record = v1::StreamConfigResponse { upserts: part.upserts, ..Default::default() };
            writer.add(&Zeroizing::new(record.encode_to_vec())).map_err(&failed)?;
        }
        let mut cursor = 0;
        while cursor < self.header.opt_out_cursor {
            let (mut opt_outs, next) = store.opt_outs_since(cursor, OPT_OUTS_PAGE).await?;
            if next == cursor {
                break;
            }
            cursor = next;
            keep_own_opt_outs(&mut opt_outs, self.header.tenant_id.as_ref().map(TenantId::as_str));
            counts.opt_outs += opt_outs.len() as u64;
            let record = v1::StreamConfigResponse { opt_outs, ..Default::default() };
            writer.add(&record.encode_to_vec()).map_err(&failed)?;
        }
        writer.finish(signing_key).map_err(&failed)?;
        Ok((self.header, counts))
    }
}

impl ExportCounts {
    fn add(&mut self, upserts: &[v1::ConfigResource]) {
        for upsert in upserts {
            match &upsert.resource {
                Some(Resource::InboundRoute(_)) => self.inbound_routes += 1,
                Some(Resource::Instance(_)) => self.instances += 1,
                Some(Resource::WebhookSubscription(_)) => self.webhook_subscriptions += 1,
                Some(Resource::OptOutPolicy(_)) => self.opt_out_policies += 1,
                None => {}
            }
        }
    }
}

impl ExportError {
    fn write(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Write { path: path.to_owned(), source }
    }
}

/// Whether both are there and one file.
fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// A file on its way; dropped, it is gone.
struct Unfinished {
    file: BufWriter<File>,
    path: PathBuf,
    name: PathBuf,
}

impl Unfinished {
    fn create(name: &Path) -> Result<Self, ExportError> {
        // At random: in a container every process has the same id, and what one that was killed has left behind must be in
        // nobody's way.
        let path = name.with_added_extension(format!("{:016x}.new", rand::random::<u64>()));
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = BufWriter::new(file.map_err(ExportError::write(name))?);
        Ok(Self { file, path, name: name.to_owned() })
    }

    /// Makes it durable and gives it its name. Returns its length.
    fn take_name(mut self) -> Result<u64, ExportError> {
        let finished = self.finish();
        finished.map_err(ExportError::write(&self.name))
    }

    fn finish(&mut self) -> io::Result<u64> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        let bytes = self.file.get_ref().metadata()?.len();
        fs::rename(&self.path, &self.name)?;
        sync_directory_of(&self.name)?;
        Ok(bytes)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It has another name when it is finished; what cannot be removed is in nobody's way.
        drop(fs::remove_file(&self.path));
    }
}

/// Makes the name of a file durable.
fn sync_directory_of(name: &Path) -> io::Result<()> {
    let directory = name.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// The key that signs, and whether it was made now.
fn signing_key(path: &Path) -> Result<(WriterKey, bool), ExportError> {
    let made = WriterKey::generate();
    let is_new = make_once(path, &made.to_text(&KIND))?;
    private::warn_if_open(path);
    let key = WriterKey::parse(&KIND, &read_key(path)?);
    Ok((key.map_err(|source| ExportError::BadKey { path: path.to_owned(), source })?, is_new))
}

/// The key of the agents, and whether it was made now.
fn reader_key(path: &Path, signing_key: &WriterKey) -> Result<(ReaderKey, bool), ExportError> {
    let made = ReaderKey::generate(signing_key);
    let is_new = make_once(path, &made.to_text(&KIND))?;
    private::warn_if_open_to_the_world(path);
    let key = ReaderKey::parse(&KIND, &read_key(path)?);
    let key = key.map_err(|source| ExportError::BadKey { path: path.to_owned(), source })?;
    let (trusted, ours) = (key.signer(), signing_key.id());
    if trusted != ours {
        return Err(ExportError::OtherSigner { path: path.to_owned(), trusted, ours });
    }
    Ok((key, is_new))
}

fn read_key(path: &Path) -> Result<Zeroizing<String>, ExportError> {
    let text = fs::read_to_string(path).map(Zeroizing::new);
    text.map_err(|source| ExportError::KeyFile { path: path.to_owned(), source })
}

/// Writes a key file that is not there yet, whole and durable before it has its name, and its name before it is used:
/// agents would trust a key that a crash takes away. False when it is there: of two that make it at the same time one
/// wins, and both use that one.
fn make_once(path: &Path, text: &str) -> Result<bool, ExportError> {
    let failed = |source| ExportError::KeyFile { path: path.to_owned(), source };
    if path.try_exists().map_err(failed)? {
        return Ok(false);
    }
    let whole = path.with_added_extension(format!("{}.made", std::process::id()));
    private::write_shared_file(&whole, format!("{text}\n").as_bytes()).map_err(failed)?;
    let linked = fs::hard_link(&whole, path);
    fs::remove_file(&whole).map_err(failed)?;
    match linked {
        Ok(()) => sync_directory_of(path).map_err(failed).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed(error)),
    }
}
