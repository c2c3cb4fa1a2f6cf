//! Configuration → parts joined together → run → drain.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use gateway_runtime::{
    admin::{self, Admin},
    backoff::Backoff,
    supervise::{OnEnd, Supervisor},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{info, warn};

use crate::{
    config::Config,
    control_plane::{self, Identity, IdentityError},
    metrics::Metrics,
    opt_out::OptOuts,
    pipeline::{
        Pipeline,
        buffer::{self, Buffer},
        deliver, report,
    },
    private,
    provider::Refusals,
    snapshot::{self, Follower, SnapshotHandle},
    work::Worker,
};

/// How often the agent looks for a free buffer or an answering control plane while it starts.
const ENROLL_RETRY_FIRST: Duration = Duration::from_millis(500);
const ENROLL_RETRY_MAX: Duration = Duration::from_secs(10);

/// A running agent.
pub struct Running {
    /// Where callbacks are taken.
    pub callback_addr: SocketAddr,
    /// Where admin HTTP is served.
    pub admin_addr: SocketAddr,
    /// Who the agent is.
    pub identity: Identity,
    supervisor: Supervisor,
    buffer: Buffer,
    grace: Duration,
}

impl Running {
    /// Waits until the agent has stopped and drained.
    ///
    /// # Errors
    /// What made it stop, unless it was told to.
    pub async fn wait(self) -> anyhow::Result<()> {
        let ended = self.supervisor.wait(self.grace).await;
        self.buffer.close().await;
        ended
    }
}

/// Starts an agent: returns once it takes callbacks. A new agent waits here for its control plane; one that
/// enrolled before does not.
///
/// # Errors
/// When an address is taken, the data directory cannot be used, or the control plane refuses the agent.
pub async fn start(config: Config, stop: CancellationToken) -> anyhow::Result<Running> {
    let config = Arc::new(config);
    private::create_directory(&config.data_dir)
        .with_context(|| format!("create data directory `{}`", config.data_dir.display()))?;
    info!(?config, "starting");
    let supervisor = Supervisor::new(stop);
    let callbacks = bind("callback-listen", config.callback_listen).await?;
    let callback_addr = callbacks.local_addr()?;
    let metrics = Metrics::new();
    let handle = SnapshotHandle::empty();
    let admin_addr = serve_admin(&config, &supervisor, &metrics, &handle).await?;

    let buffer =
        Buffer::open(buffer::Config::of(&config), metrics.clone()).await.context("open the buffer")?;
    let channel = control_plane::channel(&config.control_plane_url)?;
    let identity = identify(&config, channel.clone(), supervisor.stop()).await?;
    let client = control_plane::client(channel.clone(), &identity, &config.data_dir)?;
    let reports = control_plane::report_client(channel, &identity, &config.data_dir)?;

    let opt_outs = OptOuts::new();
    opt_outs.load(buffer.local_opt_outs());
    let log = snapshot::restore(&config.data_dir, &handle, &opt_outs)?;
    let refusals = Refusals::default();
    let pipeline = Pipeline::new(
        &identity,
        handle.clone(),
        buffer.clone(),
        opt_outs.clone(),
        metrics.clone(),
        refusals.clone(),
    );

    let watched = buffer.clone();
    supervisor.spawn("buffer", OnEnd::Shutdown, |stop| async move { Ok(watched.watch(stop).await?) });
    let delivery = deliver::Config::of(&config, &identity);
    let deliverer = deliver::Deliverer::new(delivery, handle.clone(), buffer.clone(), metrics.clone())?;
    supervisor.spawn("deliver", OnEnd::Shutdown, |stop| deliverer.run(stop));
    let reporter = report::Reporter::new(reports, buffer.clone());
    supervisor.spawn("report", OnEnd::Shutdown, |stop| reporter.run(stop));
    let follower = Follower {
        handle: handle.clone(),
        opt_outs,
        log,
        buffer: buffer.clone(),
        refusals,
        metrics,
        identity: identity.clone(),
    };
    let config_client = client.clone();
    supervisor.spawn("snapshot", OnEnd::Shutdown, |stop| follower.run(config_client, stop));
    let worker = Worker { snapshot: handle, pipeline: pipeline.clone() };
    supervisor.spawn("work", OnEnd::Shutdown, |stop| worker.run(client, stop));
    let public_base_url = config.public_base_url.clone();
    supervisor.spawn("callback", OnEnd::Shutdown, |stop| pipeline.serve(callbacks, public_base_url, stop));
    info!(%callback_addr, agent_id = identity.agent_id, "taking callbacks");
    Ok(Running { callback_addr, admin_addr, identity, supervisor, buffer, grace: config.shutdown_grace })
}

async fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}; choose another address with --{flag}"))
}

async fn serve_admin(
    config: &Config,
    supervisor: &Supervisor,
    metrics: &Metrics,
    handle: &SnapshotHandle,
) -> anyhow::Result<SocketAddr> {
    let listener = bind("admin-listen", config.admin_listen).await?;
    let handle = handle.clone();
    let readiness = Arc::new(move || {
        (!handle.is_ready()).then_some("no configuration yet: the control plane has not been reached")
    });
    let admin_addr = admin::serve(supervisor, listener, Admin { readiness, registry: metrics.registry() })?;
    info!(%admin_addr, "serving admin HTTP");
    Ok(admin_addr)
}

/// The stored identity, or a new one. A control plane that cannot be reached is waited for; one that refuses
/// is the end.
async fn identify(config: &Config, channel: Channel, stop: &CancellationToken) -> anyhow::Result<Identity> {
    if let Some(identity) = control_plane::stored_identity(&config.data_dir)? {
        if let Some(asked) = config.region.clone().filter(|asked| *asked != identity.region) {
            let (enrolled, data_dir) = (identity.region, config.data_dir.clone());
            return Err(IdentityError::Region { asked, enrolled, data_dir }.into());
        }
        return Ok(identity);
    }
    let mut backoff = Backoff::new(ENROLL_RETRY_FIRST, ENROLL_RETRY_MAX);
    loop {
        let enrolling = control_plane::enroll(
            channel.clone(),
            &config.control_plane_url,
            config.join_token_file.as_deref(),
            config.region.as_deref(),
            &config.data_dir,
        );
        match enrolling.await {
            Ok(identity) => {
                info!(agent_id = identity.agent_id, region = identity.region, "enrolled");
                return Ok(identity);
            }
            Err(IdentityError::Away { url, message }) => {
                warn!(url, message, "failed to reach the control plane; trying again");
            }
            Err(failure) => return Err(failure.into()),
        }
        anyhow::ensure!(backoff.wait(stop).await, "stopped before the control plane could be reached");
    }
}
