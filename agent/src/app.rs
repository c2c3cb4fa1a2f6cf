//! Configuration → parts joined together → run → drain.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use gateway_runtime::{
    admin::{self, Admin},
    backoff::Backoff,
    supervise::{OnEnd, Supervisor},
    tls::{self, FileCertificate},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    config::Config,
    control_plane::{self, Identity, IdentityError, JoinToken, Link},
    metrics::Metrics,
    opt_out::OptOuts,
    pipeline::{
        Pipeline,
        buffer::{self, Buffer},
        callback::Front,
        deliver, report,
    },
    private,
    provider::Refusals,
    snapshot::{self, Follower, SnapshotHandle, drain::Drain},
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
    let front = callback_front(&config, &supervisor)?;
    let metrics = Metrics::new();
    let handle = SnapshotHandle::empty();
    handle.drain().keep_in(&config.data_dir);
    let admin_addr = serve_admin(&config, &supervisor, &metrics, &handle).await?;

    let buffer =
        Buffer::open(buffer::Config::of(&config), metrics.clone()).await.context("open the buffer")?;
    let (identity, link) = identify(&config, handle.drain(), supervisor.stop()).await?;
    let client = control_plane::client(&link, &identity, &config.data_dir)?;
    let reports = control_plane::report_client(&link, &identity, &config.data_dir)?;
    let keeper = control_plane::Keeper::new(link, client.clone(), &config.data_dir, metrics.clone());
    supervisor.spawn("certificate", OnEnd::Shutdown, |stop| keeper.run(stop));

    let opt_outs = OptOuts::new();
    opt_outs.load(buffer.local_opt_outs());
    let log = snapshot::restore(&config.data_dir, config.config_key.as_ref(), &handle, &opt_outs)?;
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
        resend_file: snapshot::resend_file(&config.data_dir),
    };
    let config_client = client.clone();
    supervisor.spawn("snapshot", OnEnd::Shutdown, |stop| follower.run(config_client, stop));
    let worker = Worker { snapshot: handle, pipeline: pipeline.clone() };
    supervisor.spawn("work", OnEnd::Shutdown, |stop| worker.run(client, stop));
    supervisor.spawn("callback", OnEnd::Shutdown, |stop| pipeline.serve(callbacks, front, stop));
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
    let readiness = Arc::new(move || not_ready(&handle));
    let expiry = metrics.clone();
    let degraded = Arc::new(move || {
        let text = "the client certificate has expired, and the control plane has not renewed it";
        expiry.is_certificate_expired().then_some(text)
    });
    let admin = Admin { readiness, degraded, registry: metrics.registry() };
    let admin_addr = admin::serve(supervisor, listener, admin)?;
    info!(%admin_addr, "serving admin HTTP");
    Ok(admin_addr)
}

/// Why callbacks are not to be sent here, if they are not.
fn not_ready(handle: &SnapshotHandle) -> Option<&'static str> {
    if handle.drain().is_revoked() {
        return Some("revoked: new callbacks are refused until the agent enrolls anew");
    }
    if handle.drain().is_on() {
        return Some("draining: new callbacks are refused until DrainAgent is undone");
    }
    (!handle.is_ready()).then_some("no configuration yet: the control plane has not been reached")
}

/// How callbacks come in.
fn callback_front(config: &Config, supervisor: &Supervisor) -> anyhow::Result<Front> {
    let tls = config.callback_tls.clone().map(FileCertificate::load).transpose();
    let tls = tls.context("use --callback-tls-cert and --callback-tls-key")?;
    let acceptor = tls.as_ref().map(|file| tls::acceptor(file.current(), None, &[tls::HTTP_1]));
    if let Some(file) = tls {
        supervisor.spawn("callback-tls", OnEnd::Shutdown, |stop| file.watch(stop));
    }
    Ok(Front {
        public_base_url: config.public_base_url.clone(),
        tls: acceptor,
        trusted_proxies: config.callback_trusted_proxy.clone().into(),
    })
}

/// The stored identity, or a new one. A control plane that cannot be reached is waited for; one that refuses
/// is the end.
async fn identify(
    config: &Config,
    drain: &Drain,
    stop: &CancellationToken,
) -> anyhow::Result<(Identity, Link)> {
    let link = |pin| Link::new(&config.control_plane_url, config.control_plane_ca.as_deref(), pin);
    if let Some(identity) = control_plane::stored_identity(&config.data_dir)? {
        if let Some(asked) = config.region.clone().filter(|asked| *asked != identity.region) {
            let (enrolled, data_dir) = (identity.region, config.data_dir.clone());
            return Err(IdentityError::Region { asked, enrolled, data_dir }.into());
        }
        if drain.is_revoked() {
            error!("{}", snapshot::REVOKED);
        }
        let link = link(identity.control_plane_pin)?;
        return Ok((identity, link));
    }
    drain.begin_anew().context("forget that an earlier agent of this data directory was revoked")?;
    let token = JoinToken::read(config.join_token_file.as_deref(), &config.data_dir)?;
    let link = link(token.pin)?;
    let mut backoff = Backoff::new(ENROLL_RETRY_FIRST, ENROLL_RETRY_MAX);
    loop {
        let enrolling = control_plane::enroll(&link, &token, config.region.as_deref(), &config.data_dir);
        match enrolling.await {
            Ok(identity) => {
                info!(agent_id = identity.agent_id, region = identity.region, "enrolled");
                return Ok((identity, link));
            }
            Err(IdentityError::Away { url, message }) => {
                warn!(url, message, "failed to reach the control plane; trying again");
            }
            Err(failure) => return Err(failure.into()),
        }
        anyhow::ensure!(backoff.wait(stop).await, "stopped before the control plane could be reached");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A load balancer is told to send a revoked agent nothing, whatever else is so.
    #[test]
    fn revoked_agents_are_not_ready() {
        let handle = SnapshotHandle::fixed(gateway_core::snapshot::Snapshot::default());
        assert_eq!(not_ready(&handle), None);
        handle.drain().set(true).unwrap();
        assert!(not_ready(&handle).unwrap().starts_with("draining: "));
        handle.drain().revoke().unwrap();
        assert!(not_ready(&handle).unwrap().starts_with("revoked: "));
    }
}
