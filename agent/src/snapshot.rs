//! Follows the config stream: validates each response, stores it, acks or nacks, and lets the pipeline use
//! it. What the pipeline uses is the last good configuration, also after a restart without a control plane.

pub mod disk;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use gateway_core::{
    snapshot::{Refused, Snapshot},
    time::duration_to_proto,
};
use gateway_proto::v1;
use gateway_runtime::backoff::Backoff;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    control_plane::{CallFailed, Client, Identity},
    metrics::Metrics,
    opt_out::OptOuts,
    pipeline::buffer::Buffer,
    provider::Refusals,
    snapshot::disk::ConfigLog,
};

/// First and longest delay between attempts to connect: short, so that a restarted control plane is found
/// at once, and full-jittered, so that a fleet does not return in one instant.
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// How often the agent says how it is doing.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// Messages to the control plane that wait. When full, the follower waits for the network.
const OUTGOING_MAX: usize = 64;

/// The configuration in use. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotHandle {
    current: Arc<ArcSwap<Snapshot>>,
    ready: Arc<AtomicBool>,
    fresh: watch::Sender<bool>,
    version: watch::Sender<u64>,
}

impl SnapshotHandle {
    /// Nothing configured, and not ready.
    pub fn empty() -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            ready: Arc::new(AtomicBool::new(false)),
            fresh: watch::Sender::new(false),
            version: watch::Sender::new(0),
        }
    }

    /// Ready, with this configuration.
    pub fn fixed(snapshot: Snapshot) -> Self {
        let handle = Self::empty();
        handle.replace(snapshot);
        handle
    }

    /// The configuration in use.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Whether some configuration, even an empty one, came from disk or wire.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Waits until the control plane has answered this process with a configuration: until then the one in
    /// use may be as old as the disk. Once so, it stays so.
    pub async fn fresh(&self) {
        let mut fresh = self.fresh.subscribe();
        // The sender is in `self`, so the wait does not fail.
        drop(fresh.wait_for(|is_fresh| *is_fresh).await);
    }

    /// Says that the configuration in use came from the control plane.
    fn mark_fresh(&self) {
        self.fresh.send_replace(true);
    }

    /// Wakes whenever another configuration is in use.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Uses this configuration from now on.
    pub fn replace(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.current.store(Arc::new(snapshot));
        self.ready.store(true, Ordering::Release);
        // Woken also when only secrets or opt-outs changed under the same version.
        self.version.send_modify(|current| *current = version);
    }
}

/// The parts the follower works with.
pub struct Follower {
    /// What it changes.
    pub handle: SnapshotHandle,
    /// Gets the decisions of contacts.
    pub opt_outs: OptOuts,
    /// Where it is kept.
    pub log: ConfigLog,
    /// Asked how the agent is doing.
    pub buffer: Buffer,
    /// Callbacks refused so far.
    pub refusals: Refusals,
    /// Shows the version in use.
    pub metrics: Metrics,
    /// Who the agent is.
    pub identity: Identity,
}

/// Reads the last good configuration from `data_dir` and uses it. Returns the log to go on with.
///
/// # Errors
/// When the file cannot be read or made.
pub fn restore(
    data_dir: &Path,
    handle: &SnapshotHandle,
    opt_outs: &OptOuts,
) -> Result<ConfigLog, disk::ConfigLogError> {
    let (log, responses) = ConfigLog::open(data_dir)?;
    if responses.is_empty() {
        return Ok(log);
    }
    let mut snapshot = Snapshot::default();
    for response in responses {
        snapshot = snapshot.apply(&response).0;
        opt_outs.merge_from_stream(response.opt_outs);
    }
    info!(version = snapshot.version, "using the last good configuration from disk");
    handle.replace(snapshot);
    Ok(log)
}

impl Follower {
    /// Follows the stream, reconnecting, until `stop`.
    ///
    /// # Errors
    /// Never before `stop`; the result is for the supervisor.
    pub async fn run(mut self, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MAX);
        let mut away = false;
        loop {
            let ended = tokio::select! {
                ended = self.follow(client.clone(), &mut backoff, &mut away) => ended,
                () = stop.cancelled() => return Ok(()),
            };
            if let Err(failure) = ended
                && !away
            {
                away = true;
                warn!(
                    error = format!("{failure:#}"),
                    "failed to follow the config stream; serving from the last good configuration"
                );
            }
            if !backoff.wait(&stop).await {
                return Ok(());
            }
        }
    }

    /// One connection, until it ends. Dropping it loses nothing: what was stored is stored.
    async fn follow(
        &mut self,
        mut client: Client,
        backoff: &mut Backoff,
        away: &mut bool,
    ) -> anyhow::Result<()> {
        let (outgoing, requests) = mpsc::channel(OUTGOING_MAX);
        outgoing.send(request(v1::stream_config_request::Message::Hello(self.hello()))).await?;
        let mut responses =
            client.stream_config(ReceiverStream::new(requests)).await.map_err(CallFailed::from)?.into_inner();
        let mut health = tokio::time::interval(HEALTH_INTERVAL);
        let mut staged = None;
        loop {
            tokio::select! {
                response = responses.message() => {
                    let response = response.map_err(CallFailed::from)?.context("read config stream: it ended")?;
                    if std::mem::take(away) {
                        info!("the control plane is back");
                    }
                    backoff.reset();
                    match whole(&mut staged, response) {
                        Ok(response) => self.take(response, &outgoing).await?,
                        Err(nonce) => outgoing.send(request(verdict(nonce, &[]))).await?,
                    }
                }
                _ = health.tick() => {
                    outgoing.send(request(v1::stream_config_request::Message::Health(self.health()))).await?;
                }
            }
        }
    }

    fn hello(&self) -> v1::ConfigHello {
        let snapshot = self.handle.load();
        v1::ConfigHello {
            agent_id: self.identity.agent_id.clone(),
            region: self.identity.region.clone(),
            build: crate::BUILD.to_owned(),
            version: snapshot.version,
            store_epoch: snapshot.store_epoch.to_string(),
            opt_out_cursor: self.log.opt_out_cursor(),
        }
    }

    fn health(&self) -> v1::AgentHealth {
        let stats = self.buffer.stats();
        let age = stats.oldest_age.map_or(0.0, |age| age.as_secs_f64());
        self.metrics.buffer(stats.events, stats.bytes, age);
        v1::AgentHealth {
            buffer_events: stats.events,
            buffer_oldest_age: stats.oldest_age.map(duration_to_proto),
            report_lag: stats.report_lag.map(duration_to_proto),
            refused_callbacks: self.refusals.all(),
            buffer_bytes: stats.bytes,
            buffer_bytes_max: self.buffer.bytes_max(),
            over_share_subscription_ids: self.buffer.over_share().iter().map(ToString::to_string).collect(),
        }
    }

    async fn take(
        &mut self,
        mut response: v1::StreamConfigResponse,
        outgoing: &mpsc::Sender<v1::StreamConfigRequest>,
    ) -> anyhow::Result<()> {
        let (snapshot, refused) = self.handle.load().apply(&response);
        let (nonce, version) = (response.nonce.clone(), response.version);
        debug!(version, refused = refused.len(), "took a configuration");
        self.keep_last_good(&mut response, &refused);
        let opt_outs = response.opt_outs.clone();
        self.opt_outs.merge_from_stream(opt_outs);
        self.store(response).await;
        outgoing.send(request(verdict(nonce, &refused))).await?;
        self.handle.replace(snapshot);
        self.handle.mark_fresh();
        self.metrics.applied_version(version);
        let applied = v1::ConfigApplied { version };
        outgoing.send(request(v1::stream_config_request::Message::Applied(applied))).await?;
        Ok(())
    }

    /// Puts the last good value in the place of what was refused, or leaves it out when there is none, so
    /// that the disk holds what is in use.
    fn keep_last_good(&self, response: &mut v1::StreamConfigResponse, refused: &[Refused]) {
        if refused.is_empty() {
            return;
        }
        let upserts = std::mem::take(&mut response.upserts);
        response.upserts.extend(upserts.into_iter().filter_map(|resource| {
            let (resource_type, id) = disk::name_of(&resource);
            if refused.iter().any(|refused| refused.resource_type == resource_type && refused.id == id) {
                self.log.last_good(resource_type, id)
            } else {
                Some(resource)
            }
        }));
    }

    /// Stores the response. A disk that cannot take it is an error for a person, but the configuration is
    /// used all the same: serving stale configuration would be worse.
    async fn store(&mut self, response: v1::StreamConfigResponse) {
        let all_opt_outs = if self.log.is_due_for_rewrite() { Some(self.opt_outs.all()) } else { None };
        let log = self.log.clone();
        let stored = tokio::task::spawn_blocking(move || log.append(response, all_opt_outs)).await;
        let failure = match stored {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => anyhow::Error::from(failure),
            Err(failure) => anyhow::Error::from(failure),
        };
        error!(error = format!("{failure:#}"), "failed to store the configuration; a restart would lose it");
    }
}

/// Collects the parts of a snapshot that is too large for one response: all but the last have version 0.
/// Using them one by one would mean a configuration that knows an instance and not its subscriptions.
/// Ok with the whole response, or the nonce of a part to ack.
fn whole(
    staged: &mut Option<v1::StreamConfigResponse>,
    response: v1::StreamConfigResponse,
) -> Result<v1::StreamConfigResponse, String> {
    let is_part = response.version == 0 && !response.upserts.is_empty();
    let collected = match staged.take() {
        None => response,
        Some(mut collected) => {
            collected.version = response.version;
            collected.nonce = response.nonce;
            collected.upserts.extend(response.upserts);
            collected.removals.extend(response.removals);
            collected.opt_outs.extend(response.opt_outs);
            collected.opt_out_cursor = response.opt_out_cursor;
            collected
        }
    };
    if !is_part {
        return Ok(collected);
    }
    let nonce = collected.nonce.clone();
    *staged = Some(collected);
    Err(nonce)
}

fn request(message: v1::stream_config_request::Message) -> v1::StreamConfigRequest {
    v1::StreamConfigRequest { message: Some(message) }
}

fn verdict(nonce: String, refused: &[Refused]) -> v1::stream_config_request::Message {
    if refused.is_empty() {
        return v1::stream_config_request::Message::Ack(v1::ConfigAck { nonce });
    }
    let refused = refused.iter().map(refused_to_proto).collect();
    v1::stream_config_request::Message::Nack(v1::ConfigNack { nonce, refused })
}

fn refused_to_proto(refused: &Refused) -> v1::RefusedResource {
    v1::RefusedResource {
        r#type: refused.resource_type.to_owned(),
        id: refused.id.clone(),
        version: refused.version,
        error: refused.violations.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(version: u64, nonce: &str, ids: &[&str]) -> v1::StreamConfigResponse {
        let instance = |id: &&str| v1::ConfigResource {
            version: 1,
            resource: Some(v1::config_resource::Resource::Instance(v1::Instance {
                id: (*id).to_owned(),
                ..v1::Instance::default()
            })),
        };
        v1::StreamConfigResponse {
            version,
            nonce: nonce.to_owned(),
            snapshot: nonce == "1",
            upserts: ids.iter().map(instance).collect(),
            ..v1::StreamConfigResponse::default()
        }
    }

    /// A configuration from disk is not fresh, whatever else changes; what the control plane delivers makes it so.
    #[tokio::test(start_paused = true)]
    async fn fresh_once_the_control_plane_delivers() {
        let handle = SnapshotHandle::fixed(Snapshot::default());
        let patience = Duration::from_secs(5);
        assert!(tokio::time::timeout(patience, handle.fresh()).await.is_err());
        handle.mark_fresh();
        handle.replace(Snapshot::default());
        assert!(tokio::time::timeout(patience, handle.fresh()).await.is_ok());
    }

    /// A snapshot in parts is used only when its last part is there, and then as one; an empty configuration
    /// of version 0 is whole by itself.
    #[test]
    fn parts_are_used_together() {
        let mut staged = None;
        assert_eq!(whole(&mut staged, part(0, "1", &["one"])), Err("1".to_owned()));
        assert_eq!(whole(&mut staged, part(0, "2", &["two"])), Err("2".to_owned()));
        let all = whole(&mut staged, part(7, "3", &["three"])).unwrap();
        assert!(all.snapshot && all.version == 7 && all.nonce == "3" && all.upserts.len() == 3);
        assert!(staged.is_none());
        assert!(whole(&mut staged, part(0, "1", &[])).is_ok());
    }
}
