//! Follows the config stream: validates each response, stores it, acks or nacks, and lets the pipeline use
//! it. What the pipeline uses is the last good configuration, also after a restart without a control plane.
//!
//! The stream also says whether the agent is to [`drain`], and who is at its other end: a control plane that was
//! restored from a backup gets the opt-outs back that it has forgotten ([`resend`]).

pub mod disk;
pub mod drain;
pub mod export;
mod handle;
mod resend;
#[cfg(test)]
mod revoked_tests;
#[cfg(test)]
mod unreadable_tests;
mod staged;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use resend::Resend;
use staged::{Staged, Whole};

pub use handle::{Retry, SnapshotHandle};

use gateway_core::{
    snapshot::{Refused, digest::RESOURCE_TYPES},
    time::{duration_to_proto, from_proto, to_proto},
    violation::FieldViolations,
};
use gateway_proto::v1;
use gateway_runtime::{backoff::Backoff, clock, sealing::Key};
use jiff::SignedDuration;
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic_types::StatusExt as _;
use tracing::{debug, error, info, warn};

use crate::{
    control_plane::{CallFailed, Client, Identity, StreamEnded},
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
/// Longest time for which the agent stays away when the control plane asks it to come again later.
const COME_AGAIN_MAX: Duration = Duration::from_secs(60);
/// What is added to that time at random, as a share of it: those who were told the same do not come in one
/// instant.
const COME_AGAIN_JITTER: f64 = 0.2;
/// How often the agent says how it is doing. The control plane takes 13 s of silence for its end.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);
/// How often it does while it drains: somebody waits for the end.
const HEALTH_INTERVAL_DRAINING: Duration = Duration::from_secs(1);
/// Clocks that differ by more are worth a warning: signatures and certificates carry times.
const CLOCK_SKEW_MAX: SignedDuration = SignedDuration::from_secs(30);
/// What the log says of a revoked agent, once per start.
pub const REVOKED: &str = "the control plane has revoked this agent: new callbacks are refused, what is in the buffer is \
                           delivered; to use it again, delete credential.json and start it with a new join token";
/// Messages to the control plane that wait. When full, the follower waits for the network.
const OUTGOING_MAX: usize = 64;

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
    /// Where it is kept that opt-outs are to go back to the control plane: [`resend_file`].
    pub resend_file: PathBuf,
}

/// The file that says, in a data directory, that opt-outs are to go back to the control plane.
pub fn resend_file(data_dir: &Path) -> PathBuf {
    Resend::file_in(data_dir)
}

/// The control plane asked to come again after this time. Context of the error that ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("come again after {0:?}")]
struct ComeAgain(Duration);

/// Whether a connection that was answered ended as they all do. One that was not answered did not work.
fn is_regular(ended: &anyhow::Error, was_answered: bool) -> bool {
    was_answered && ended.is::<StreamEnded>()
}

/// The error of a stream that ended, with the time that the control plane asks for, if it does.
fn failed(status: Status) -> anyhow::Error {
    let come_again = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let failure = anyhow::Error::from(CallFailed::from(status));
    match come_again {
        Some(delay) => failure.context(ComeAgain(delay.min(COME_AGAIN_MAX))),
        None => failure,
    }
}

/// What one connection knows.
#[derive(Default)]
struct Connection {
    /// Parts of a snapshot that is not complete yet.
    staged: Staged,
    /// Whether it was warned of the clocks.
    clock_is_off: bool,
}

/// Reads the last good configuration of `data_dir`, which is sealed under `given_key`, or the key that the data
/// directory keeps. What contacts decided goes into `opt_outs`; [`resume`] uses the rest.
///
/// # Errors
/// When the file cannot be read or made.
pub fn restore(
    data_dir: &Path,
    given_key: Option<&Key>,
    opt_outs: &OptOuts,
) -> Result<ConfigLog, disk::ConfigLogError> {
    let key = disk::key::load(data_dir, given_key)?;
    let (log, stored_opt_outs) = ConfigLog::open(data_dir, &key)?;
    opt_outs.merge_from_stream(stored_opt_outs);
    Ok(log)
}

/// Uses the configuration that is on disk, if there is one.
pub fn resume(log: &ConfigLog, handle: &SnapshotHandle) {
    if let Some(snapshot) = log.snapshot() {
        info!(version = snapshot.version, "using the last good configuration from disk");
        handle.replace(snapshot);
    }
}

impl Follower {
    /// Follows the stream, reconnecting, until `stop`.
    ///
    /// # Errors
    /// Never before `stop`; the result is for the supervisor.
    pub async fn run(mut self, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MAX);
        let mut away = false;
        let mut resend = Resend::new(self.resend_file.clone());
        let mut retry = self.handle.retry();
        loop {
            retry.begin();
            let ended = tokio::select! {
                ended = self.follow(client.clone(), &mut backoff, &mut away, &mut resend) => ended,
                () = stop.cancelled() => return Ok(()),
            };
            let was_answered = self.handle.set_connected(false);
            if let Some(ComeAgain(delay)) = ended.as_ref().err().and_then(|failure| failure.downcast_ref()) {
                let delay = delay.mul_f64(1.0 + COME_AGAIN_JITTER * rand::random::<f64>());
                debug!(?delay, "the control plane asked to come again later");
                tokio::select! {
                    () = tokio::time::sleep(delay) => continue,
                    () = stop.cancelled() => return Ok(()),
                }
            }
            match ended {
                Err(ended) if is_regular(&ended, was_answered) => {
                    debug!(error = format!("{ended:#}"), "the config stream ended; opening another")
                }
                // It was told loudly when the agent learned of it.
                Err(_) if self.handle.drain().is_revoked() => {}
                Err(failure) if !away => {
                    away = true;
                    warn!(
                        error = format!("{failure:#}"),
                        "failed to follow the config stream; serving from the last good configuration"
                    );
                }
                _ => {}
            }
            if !retry.wait(&mut backoff, &stop).await {
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
        resend: &mut Resend,
    ) -> anyhow::Result<()> {
        let (outgoing, requests) = mpsc::channel(OUTGOING_MAX);
        outgoing.send(request(v1::stream_config_request::Message::Hello(self.hello(resend)))).await?;
        let opened = client.stream_config(ReceiverStream::new(requests)).await;
        let mut responses = opened.map_err(failed)?.into_inner();
        let mut health_at = Instant::now();
        let mut connection = Connection::default();
        loop {
            tokio::select! {
                response = responses.message() => {
                    let response = StreamEnded::check(response)?.map_err(failed)?;
                    if std::mem::take(away) {
                        info!("the control plane is back");
                    }
                    backoff.reset();
                    self.handle.set_connected(true);
                    connection.compare_clocks(&response);
                    if self.drain(response.drain) {
                        health_at = Instant::now();
                    }
                    match connection.staged.complete(response) {
                        Ok(response) => self.take(response, &outgoing, resend).await?,
                        Err(nonce) => outgoing.send(request(verdict(nonce, &[]))).await?,
                    }
                }
                () = tokio::time::sleep_until(health_at) => {
                    let health = self.health();
                    let waits = health.is_draining && !health.is_drained;
                    let pause = if waits { HEALTH_INTERVAL_DRAINING } else { HEALTH_INTERVAL };
                    health_at = Instant::now() + pause;
                    outgoing.send(request(v1::stream_config_request::Message::Health(health))).await?;
                }
            }
        }
    }

    /// Begins or ends draining when the control plane says so. True when something changed.
    fn drain(&self, wanted: Option<bool>) -> bool {
        let Some(wanted) = wanted else { return false };
        let changed = self.handle.drain().set(wanted).unwrap_or_else(|error| {
            error!(%error, "failed to write down whether the agent drains; a restart could forget it");
            true
        });
        match (changed, wanted) {
            (true, true) => info!("draining: refusing new callbacks, emptying the buffer"),
            (true, false) => info!("taking callbacks again"),
            (false, _) => {}
        }
        changed
    }

    fn hello(&self, resend: &mut Resend) -> v1::ConfigHello {
        let opt_out_cursor = if resend.begins_anew() { 0 } else { self.log.opt_out_cursor() };
        let snapshot = self.handle.load();
        v1::ConfigHello {
            agent_id: self.identity.agent_id.clone(),
            region: self.identity.region.clone(),
            build: crate::BUILD.to_owned(),
            version: snapshot.version,
            store_epoch: snapshot.store_epoch.to_string(),
            opt_out_cursor,
            digests: self.log.digests(&snapshot.store_epoch, snapshot.version),
        }
    }

    fn health(&self) -> v1::AgentHealth {
        // Asked in this order: what is taken after the first question would show in the others.
        let is_quiet = self.handle.drain().is_quiet();
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
            time: Some(to_proto(clock::now())),
            is_draining: self.handle.drain().is_on(),
            is_drained: is_quiet && stats.events == 0 && !self.buffer.has_reports(),
        }
    }

    async fn take(
        &mut self,
        mut response: Whole,
        outgoing: &mpsc::Sender<v1::StreamConfigRequest>,
        resend: &mut Resend,
    ) -> anyhow::Result<()> {
        let current = self.handle.load();
        // Opt-outs without a configuration are in the buffer alone: nobody knows who has heard of them.
        let was_told = !current.store_epoch.is_empty() || !self.opt_outs.is_empty();
        if was_told && *current.store_epoch != *response.last.store_epoch {
            resend.begin();
        }
        let (snapshot, refused) = current.apply_parts(response.parts());
        let (nonce, version) = (response.last.nonce.clone(), response.last.version);
        debug!(version, refused = refused.len(), "took a configuration");
        keep_last_good(&self.log, &mut response, &refused);
        let mut unreadable = Vec::new();
        for part in response.parts() {
            resend.merge(&self.opt_outs, part.opt_outs.clone());
            unreadable.extend(part.unreadable.iter().filter_map(unread));
        }
        keep_unreadable(&self.log, &mut response, &unreadable);
        if response.last.opt_out_cursor >= response.last.opt_out_cursor_newest {
            resend.send(&self.opt_outs, &self.buffer);
        }
        let epoch = response.last.store_epoch.clone();
        // For the log both are one: what was sent, and what there is of it.
        let stored: Arc<[Refused]> = refused.iter().cloned().chain(unreadable).collect();
        self.store(response, stored).await;
        outgoing.send(request(verdict(nonce, &refused))).await?;
        self.handle.replace(snapshot);
        self.handle.mark_fresh();
        self.metrics.applied_version(version);
        let applied = v1::ConfigApplied { version, digests: self.log.digests(&epoch, version) };
        outgoing.send(request(v1::stream_config_request::Message::Applied(applied))).await?;
        Ok(())
    }

    /// Stores the response. A disk that cannot take it is an error for a person, but the configuration is
    /// used all the same: serving stale configuration would be worse.
    async fn store(&mut self, response: Whole, refused: Arc<[Refused]>) {
        let (log, opt_outs) = (self.log.clone(), self.opt_outs.clone());
        let append = move || log.append_refusing(response.into_parts(), &refused, || opt_outs.all());
        let failure = match tokio::task::spawn_blocking(append).await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => anyhow::Error::from(failure),
            Err(failure) => anyhow::Error::from(failure),
        };
        error!(error = format!("{failure:#}"), "failed to store the configuration; a restart would lose it");
    }
}

impl Connection {
    /// Warns when the control plane's clock and ours differ, once.
    fn compare_clocks(&mut self, response: &v1::StreamConfigResponse) {
        let Some(theirs) = response.time.as_ref().and_then(from_proto) else { return };
        let ahead = clock::now().duration_since(theirs);
        let is_off = ahead.abs() > CLOCK_SKEW_MAX;
        if is_off && !self.clock_is_off {
            let seconds_ahead = ahead.as_secs();
            warn!(seconds_ahead, "our clock differs from the control plane's; set one of them right");
        }
        self.clock_is_off = is_off;
    }
}

/// Puts the last good value in the place of what was refused, or leaves it out when there is none, so
/// that the disk holds what is in use.
fn keep_last_good(log: &ConfigLog, response: &mut Whole, refused: &[Refused]) {
    if refused.is_empty() {
        return;
    }
    let refused: HashSet<(&str, &str)> =
        refused.iter().map(|refused| (refused.resource_type, refused.id.as_str())).collect();
    response.change(|part| {
        let upserts = std::mem::take(&mut part.upserts);
        part.upserts.extend(upserts.into_iter().filter_map(|resource| {
            let (resource_type, id) = disk::name_of(&resource);
            if refused.contains(&(resource_type, id)) {
                log.last_good(resource_type, id)
            } else {
                Some(resource)
            }
        }));
    });
}

/// Puts the last good value of what the control plane cannot read into the response, if there is one, so that the disk
/// holds what is in use.
fn keep_unreadable(log: &ConfigLog, response: &mut Whole, unreadable: &[Refused]) {
    if unreadable.is_empty() {
        return;
    }
    response.change(|part| {
        let named = part.unreadable.iter().filter_map(unread);
        part.upserts.extend(named.filter_map(|named| log.last_good(named.resource_type, &named.id)));
    });
}

/// A resource that the control plane cannot read, as one that was sent and of which the last good value stays.
fn unread(named: &v1::ConfigUnreadable) -> Option<Refused> {
    let resource_type = RESOURCE_TYPES.into_iter().find(|known| *known == named.r#type)?;
    let violations = FieldViolations::new();
    Some(Refused { resource_type, id: named.id.clone(), version: named.version, violations })
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

    /// The end of a connection at its age is no reason to warn; one that ended before it was answered is, and so is
    /// a failure.
    #[test]
    fn connections_end_regularly() {
        let cut = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)));
        for end in [Ok(None::<()>), Err(cut)] {
            let ended = anyhow::Error::from(StreamEnded::check(end).unwrap_err());
            assert!(is_regular(&ended, true));
            assert!(!is_regular(&ended, false));
        }
        let refusal = StreamEnded::check(Err::<Option<()>, _>(Status::unauthenticated("revoked"))).unwrap();
        assert!(!is_regular(&failed(refusal.unwrap_err()), true));
    }

    /// The time that the control plane asks for is found in its refusal and bounded; another refusal asks for none.
    #[test]
    fn the_asked_time_is_kept() {
        let asked = |seconds| {
            let info = tonic_types::ErrorDetails::with_retry_info(Some(Duration::from_secs(seconds)));
            let refusal = Status::with_error_details(tonic::Code::Unavailable, "many agents", info);
            failed(refusal).downcast_ref::<ComeAgain>().copied()
        };
        assert_eq!(asked(7), Some(ComeAgain(Duration::from_secs(7))));
        assert_eq!(asked(3_600), Some(ComeAgain(COME_AGAIN_MAX)));
        assert!(failed(Status::unavailable("away")).downcast_ref::<ComeAgain>().is_none());
    }
}
