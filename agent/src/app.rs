//! Configuration → parts joined together → run → drain.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use gateway_runtime::{
    admin::{self, Admin},
    supervise::{OnEnd, Supervisor},
    tls::{self, FileCertificate},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    config::Config,
    control_plane::{
        self, Identity,
        enrolment::{Enrolled, Enrolment, enroll_while_serving},
    },
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
    snapshot::{self, Follower, SnapshotHandle},
    work::Worker,
};

mod standing;

use standing::{Standing, Start};

/// How often the agent looks for a free buffer or an answering control plane while it starts.
const ENROLL_RETRY_FIRST: Duration = Duration::from_millis(500);
const ENROLL_RETRY_MAX: Duration = Duration::from_secs(10);
/// What `/readyz` says while the control plane lets another process in and not this one.
const TWIN: &str = "another process with this agent's identity is connected to the control plane: a data directory was copied";

/// A running agent.
pub struct Running {
    /// Where callbacks are taken.
    pub callback_addr: SocketAddr,
    /// Where admin HTTP is served.
    pub admin_addr: SocketAddr,
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

/// Starts an agent: returns once it takes callbacks. A new agent waits here for its control plane, unless it has a
/// snapshot export; one that enrolled before does not.
///
/// # Errors
/// When an address is taken, the data directory cannot be used, or the control plane refuses the agent.
pub async fn start(config: Config, stop: CancellationToken) -> anyhow::Result<Running> {
    let config = Arc::new(config);
    private::create_directory(&config.data_dir)
        .with_context(|| format!("create data directory `{}`", config.data_dir.display()))?;
    info!(?config, "starting");
    gateway_runtime::system::raise_open_files_limit(crate::pipeline::callback::CONNECTIONS_MAX);
    let supervisor = Supervisor::new(stop);
    let callbacks = bind("callback-listen", config.callback_listen).await?;
    let callback_addr = callbacks.local_addr()?;
    let metrics = Metrics::new();
    let front = callback_front(&config, &supervisor, &metrics)?;
    let handle = SnapshotHandle::empty();
    handle.drain().keep_in(&config.data_dir);
    let admin_addr = serve_admin(&config, &supervisor, &metrics, &handle).await?;

    let buffer =
        Buffer::open(buffer::Config::of(&config), metrics.clone()).await.context("open the buffer")?;
    // Until the reporter hears from the control plane.
    buffer.hold_hand_overs();
    let opt_outs = OptOuts::new();
    opt_outs.load(buffer.local_opt_outs());
    let log = snapshot::restore(&config.data_dir, config.config_key.as_ref(), &opt_outs)?;
    let start = Start { config: &config, log: &log, opt_outs: &opt_outs, drain: handle.drain() };
    let standing = start.standing(supervisor.stop()).await?;
    let enrolment = Enrolment::new(handle.clone());
    let identity = enroll(&config, &supervisor, standing, &enrolment, &metrics);
    snapshot::resume(&log, &handle);
    metrics.applied_version(handle.load().version);
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
    let (reported, reporting) = (buffer.clone(), handle.clone());
    spawn_enrolled(&supervisor, "report", &enrolment, |enrolled, stop| {
        report::Reporter::new(enrolled.reports, reported, reporting).run(stop)
    });
    let followed = (handle.clone(), buffer.clone(), snapshot::resend_file(&config.data_dir));
    spawn_enrolled(&supervisor, "snapshot", &enrolment, |enrolled, stop| {
        let (handle, buffer, resend_file) = followed;
        let Enrolled { identity, client, .. } = enrolled;
        Follower { handle, opt_outs, log, buffer, refusals, metrics, identity, resend_file }.run(client, stop)
    });
    let worker = Worker { snapshot: handle, pipeline: pipeline.clone() };
    spawn_enrolled(&supervisor, "work", &enrolment, |enrolled, stop| worker.run(enrolled.client, stop));
    supervisor.spawn("callback", OnEnd::Shutdown, |stop| pipeline.serve(callbacks, front, stop));
    let agent_id = Some(identity.agent_id).filter(|id| !id.is_empty());
    info!(%callback_addr, agent_id, "taking callbacks");
    Ok(Running { callback_addr, admin_addr, supervisor, buffer, grace: config.shutdown_grace })
}

/// Completes the enrolment of an agent that has a credential; one that has none goes on trying. Returns who the agent
/// is for now.
fn enroll(
    config: &Arc<Config>,
    supervisor: &Supervisor,
    standing: Standing,
    enrolment: &Enrolment,
    metrics: &Metrics,
) -> Identity {
    let (keeper_config, keeper_metrics) = (Arc::clone(config), metrics.clone());
    spawn_enrolled(supervisor, "certificate", enrolment, move |enrolled, stop| {
        let Enrolled { link, client, .. } = enrolled;
        keeper_metrics.enrolled(true);
        keeper_metrics.shows_certificate("client", link.certificate());
        control_plane::Keeper::new(link, client, &keeper_config.data_dir, keeper_metrics).run(stop)
    });
    match standing {
        Standing::Enrolled(enrolled) => {
            let identity = enrolled.identity.clone();
            metrics.enrolled(true);
            enrolment.complete(*enrolled);
            identity
        }
        Standing::Unenrolled(unenrolled) => {
            let identity = unenrolled.identity();
            let (config, enrolment) = (Arc::clone(config), enrolment.clone());
            supervisor.spawn("enroll", OnEnd::Shutdown, |stop| {
                enroll_while_serving(config, unenrolled, enrolment, stop)
            });
            identity
        }
    }
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
    let (handle, served) = (handle.clone(), handle.clone());
    let readiness = Arc::new(move || not_ready(&handle));
    let expiry = metrics.clone();
    let degraded = Arc::new(move || {
        if served.has_twin() {
            return Some(TWIN);
        }
        if !expiry.is_enrolled() {
            return Some("not enrolled: serving from a snapshot export, reports wait on disk");
        }
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
fn callback_front(config: &Config, supervisor: &Supervisor, metrics: &Metrics) -> anyhow::Result<Front> {
    let tls = config.callback_tls.clone().map(FileCertificate::load).transpose();
    let tls = tls.context("use --callback-tls-cert and --callback-tls-key")?;
    let acceptor = tls.as_ref().map(|file| tls::acceptor(file.current(), None, &[tls::HTTP_1]));
    if let Some(file) = tls {
        metrics.shows_certificate("callback", file.current());
        supervisor.spawn("callback-tls", OnEnd::Shutdown, |stop| file.watch(stop));
    }
    Ok(Front {
        public_base_url: config.public_base_url.clone(),
        tls: acceptor,
        trusted_proxies: config.callback_trusted_proxy.clone().into(),
    })
}

/// Runs a task that needs the control plane, once the agent has enrolled.
fn spawn_enrolled<F>(
    supervisor: &Supervisor,
    name: &'static str,
    enrolment: &Enrolment,
    run: impl FnOnce(Enrolled, CancellationToken) -> F + Send + 'static,
) where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let enrolment = enrolment.clone();
    supervisor.spawn(name, OnEnd::Shutdown, |stop| async move {
        let enrolled = tokio::select! {
            enrolled = enrolment.wait() => enrolled,
            () = stop.cancelled() => return Ok(()),
        };
        run(enrolled, stop).await
    });
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
