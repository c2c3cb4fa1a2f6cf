//! Config → parts joined → run → drain.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use gateway_runtime::{
    admin::{self, Admin},
    clock, private,
    supervise::{OnEnd, Supervisor},
    system,
};
use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    admission::Admissions,
    api::{self, authorize::keys::KeyRing},
    audit::commands,
    backup,
    ca::Authority,
    config::{AdminKey, Config},
    fleet::{self, Fleet},
    inbound_log::{LogStore, SqliteLogStore},
    metrics::Metrics,
    pause,
    publish::{self, Divergences},
    scrub,
    sealing::rewrap,
    store::{self, Store},
    tls,
    work::{self, WorkQueue},
    writable,
};

/// How long tasks may take to end after a stop; then the process ends anyway.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);
/// Random characters of an admin key made here: 238 bits.
const ADMIN_KEY_CHARS: usize = 40;

/// The database files. They hold secrets and messages, so they are made before SQLite would make them,
/// readable by their owner only.
const DATABASES: [&str; 2] = [store::FILE_NAME, "logs.db"];

/// What every part of the control plane shares. Cheap to clone.
#[derive(Clone)]
pub struct State {
    /// Configuration and opt-outs.
    pub store: Store,
    /// Inbound logs.
    pub logs: Arc<dyn LogStore>,
    /// Connected agents.
    pub fleet: Fleet,
    /// Agents that do not have what they should have.
    pub divergences: Divergences,
    /// Which process speaks for an agent.
    pub admissions: Admissions,
    /// Signs the certificates of agents.
    pub authority: Arc<Authority>,
    /// Open calls of API keys.
    pub keys: KeyRing,
    /// What agents are asked to do.
    pub work: WorkQueue,
    /// The settings.
    pub config: Arc<Config>,
    /// The metrics.
    pub metrics: Metrics,
    /// SHA-256 of the admin key.
    pub admin_key_hash: [u8; 32],
    /// Cancelled at shutdown; streams end then.
    pub stop: CancellationToken,
}

/// A running control plane.
pub struct Running {
    /// The address bound for gRPC.
    pub grpc_addr: SocketAddr,
    /// The address bound for `/livez`, `/readyz` and `/metrics`.
    pub admin_addr: SocketAddr,
    /// The key of the platform admin.
    pub admin_key: AdminKey,
    supervisor: Supervisor,
    pub(crate) store: Store,
    _lock: DataDirLock,
}

impl Running {
    /// Waits until the control plane has stopped and drained.
    ///
    /// # Errors
    /// The failure that stopped it, or that tasks did not end in time.
    pub async fn wait(self) -> anyhow::Result<()> {
        let outcome = self.supervisor.wait(SHUTDOWN_GRACE).await;
        self.store.close().await;
        outcome
    }
}

/// Starts a control plane; it is serving when this returns, and stops when `stop` is cancelled.
///
/// # Errors
/// When the data directory is in use or cannot be used, or an address cannot be bound.
pub async fn start(config: Config, stop: CancellationToken) -> anyhow::Result<Running> {
    system::raise_open_files_limit(tls::CONNECTIONS_MAX);
    let lock = DataDirLock::take(&config.data_dir)?;
    backup::refuse_unfinished(&config.data_dir)?;
    for name in DATABASES {
        let path = config.data_dir.join(name);
        private_file(&path).with_context(|| format!("create database file `{}`", path.display()))?;
    }
    let supervisor = Supervisor::new(stop.clone());
    let store = Store::open_sealed(&config.data_dir, &config.root_keys).await?;
    let (admin_key, key_file) = admin_key(&config)?;
    let authority = Authority::open(&config.data_dir, clock::now())?;
    let grpc = bind(config.grpc_listen, "--grpc-listen").await?;
    let admin_listener = bind(config.admin_listen, "--admin-listen").await?;
    let (failing, failing_subscriptions) = mpsc::channel(pause::WAITING_MAX);
    let logs: Arc<dyn LogStore> =
        Arc::new(SqliteLogStore::open(&config.data_dir, &supervisor, failing).await?);
    pause::spawn(store.clone(), &supervisor, failing_subscriptions);
    let state = State {
        fleet: Fleet::default(),
        divergences: Divergences::default(),
        admissions: Admissions::default(),
        authority: Arc::new(authority),
        keys: KeyRing::default(),
        work: WorkQueue::new(store.clone(), logs.clone()),
        logs,
        metrics: Metrics::new(),
        admin_key_hash: Sha256::digest(admin_key.reveal()).into(),
        stop: stop.clone(),
        config: Arc::new(config),
        store: store.clone(),
    };
    work::spawn(&state, &supervisor);
    state.keys.spawn(store.clone(), &supervisor);
    fleet::spawn(&state.fleet, &state.store, &supervisor);
    state.divergences.register(&state.metrics.registry);
    publish::expected::spawn(&state.divergences.expectations, &state.store, &supervisor);
    spawn_version_gauge(&state, &supervisor);
    scrub::spawn(&state, &supervisor);
    scrub::spawn(&state, &supervisor);
    let ready = Arc::new(AtomicBool::new(false));
    let (readiness, trouble) = (Arc::clone(&ready), writable::spawn(&state, &supervisor));
    let followed = trouble.clone();
    let not_ready =
        move || if readiness.load(Ordering::Acquire) { *trouble.borrow() } else { Some("starting") };
    let admin = Admin {
        readiness: Arc::new(not_ready),
        degraded: Arc::new(|| None),
        registry: Arc::clone(&state.metrics.registry),
    };
    let admin_addr = admin::serve(&supervisor, admin_listener, admin)?;
    let grpc_addr = api::serve(&state, &supervisor, grpc, followed)?;
    ready.store(true, Ordering::Release);
    let key_from = key_file.map_or_else(|| "environment".to_owned(), |path| path.display().to_string());
    info!(%grpc_addr, %admin_addr, admin_key = key_from, config = ?state.config, "control plane is serving");
    Ok(Running { grpc_addr, admin_addr, admin_key, supervisor, store, _lock: lock })
}

/// Seals all data keys of a stopped control plane under its newest root key; with `renew_data_keys` makes new ones
/// and seals all secrets under them. Stopped in between, it goes on with the next call.
///
/// # Errors
/// When there is no database, its control plane runs, or a key is missing.
pub async fn rewrap(
    config: &Config,
    renew_data_keys: bool,
    progress: impl FnMut(rewrap::Progress),
) -> anyhow::Result<()> {
    let database = config.data_dir.join(store::FILE_NAME);
    anyhow::ensure!(
        database.exists(),
        "open configuration database `{}`: it does not exist",
        database.display()
    );
    let _lock = DataDirLock::take(&config.data_dir)?;
    let store = Store::open_sealed(&config.data_dir, &config.root_keys).await?;
    let root_keys = rewrap::existing(&config.root_keys)?;
    let newest = root_keys.first().map(|key| key.id().to_string()).unwrap_or_default();
    commands::rewrapping(&store, &newest, renew_data_keys).await.context("note it in the audit log")?;
    let rewrapped = store.rewrap(&root_keys, renew_data_keys, progress).await;
    store.close().await;
    Ok(rewrapped?)
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("bind {address} of {setting}"))
}

fn spawn_version_gauge(state: &State, supervisor: &Supervisor) {
    let (mut version, gauge) = (state.store.watch_version(), state.metrics.config_version.clone());
    supervisor.spawn("version-gauge", OnEnd::Log, |stop| async move {
        loop {
            gauge.set(i64::try_from(*version.borrow_and_update()).unwrap_or(i64::MAX));
            tokio::select! {
                changed = version.changed() => changed?,
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

/// The exclusive use of a data directory. The operating system ends it with the process, however that ends.
struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    fn take(data_dir: &Path) -> anyhow::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(data_dir)
            .with_context(|| format!("create data directory `{}`", data_dir.display()))?;
        let path = data_dir.join("lock");
        let mut file = private_file(&path).with_context(|| format!("open lock file `{}`", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).context("read lock file")?;
                anyhow::bail!(
                    "use data directory `{}`: another control plane (process {}) uses it; stop that one, or give \
                     this one its own --data-dir",
                    data_dir.display(),
                    holder.trim(),
                );
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock `{}`", path.display()));
            }
        }
        let written = file.set_len(0).and_then(|()| file.rewind());
        let written = written.and_then(|()| writeln!(file, "{}", std::process::id()));
        written.with_context(|| format!("write lock file `{}`", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// The admin key, and the file it is kept in unless it was given.
fn admin_key(config: &Config) -> anyhow::Result<(AdminKey, Option<PathBuf>)> {
    if let Some(key) = &config.admin_key {
        return Ok((key.clone(), None));
    }
    let path = config.data_dir.join("admin.key");
    private::warn_if_open(&path);
    let key = match fs::read_to_string(&path) {
        Ok(text) => AdminKey::parse(text.trim()).with_context(|| {
            format!("read admin key of `{}`; remove the file to get a new one", path.display())
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_admin_key(&path).with_context(|| format!("write admin key to `{}`", path.display()))?
        }
        Err(error) => {
            return Err(error).with_context(|| format!("read admin key of `{}`", path.display()));
        }
    };
    Ok((key, Some(path)))
}

/// Makes a key and writes it.
fn make_admin_key(path: &Path) -> anyhow::Result<AdminKey> {
    let random: String =
        rand::rng().sample_iter(rand::distr::Alphanumeric).take(ADMIN_KEY_CHARS).map(char::from).collect();
    let key = AdminKey::parse(&format!("wagw_admin_{random}"))?;
    private::write_file(path, format!("{}\n", key.reveal()).as_bytes())?;
    Ok(key)
}

#[cfg(test)]
mod tests;
