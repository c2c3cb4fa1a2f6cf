//! `ReportLogs`: what agents recorded. A message is acknowledged after its opt-outs and then its logs are
//! committed, and the deliveries that it gives away are queued; the next messages are read meanwhile.

use std::{collections::HashMap, net::SocketAddr};

use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream, stream::FuturesOrdered};
use gateway_core::id::TenantId;
use gateway_proto::v1::{self, report::Report as Reported};
use tonic::{Status, Streaming};
use tracing::{error, warn};

use super::{status, too_large};
use crate::{
    api::authorize::AgentIdentity,
    app::State,
    audit::AuditedBy,
    inbound_log::{LogStoreError, Record, ReportBatch, SequencedRecord},
    store::{Store, agents, tenants},
    work::GivenAway,
};

mod guard;
mod hand_over;

use guard::Guard;

/// Messages of one stream on their way to disk. When there are as many, the next one is not read.
const UNCOMMITTED_MAX: usize = 8;
/// Longest `buffer_id`.
const BUFFER_ID_BYTES_MAX: usize = 128;
/// Instances whose tenant a stream remembers; beyond that it starts anew.
const TENANTS_MAX: usize = 10_000;
/// Names of quarantined files kept per damage.
const QUARANTINED_MAX: usize = 100;
/// Longest text kept of a damage, in characters.
const DAMAGE_TEXT_CHARS_MAX: usize = 300;
/// Why a subscription is paused whose destination answered 410.
const GONE_REASON: &str = "destination answered 410 Gone";

type Committing = BoxFuture<'static, Committed>;

/// What became of a message's records.
struct Committed {
    buffer_id: String,
    outcome: Result<u64, LogStoreError>,
    /// The last sequence of the message.
    last_sequence: u64,
    /// What the message gave away: to be queued now, before it is acknowledged.
    given: Vec<GivenAway>,
}

/// One agent's reports.
pub(super) struct ReportStream {
    state: State,
    identity: AgentIdentity,
    guard: Guard,
    audited_by: AuditedBy,
    inbound: Streaming<v1::ReportLogsRequest>,
    /// Messages on their way to disk, in their order.
    committing: FuturesOrdered<Committing>,
    /// Set when no more messages are read; the outcome comes after the last acknowledgement.
    end: Option<Option<Status>>,
    tenants: HashMap<String, String>,
}

enum Woken {
    Message(Option<Result<v1::ReportLogsRequest, Status>>),
    Committed(Committed),
    Stop,
}

impl ReportStream {
    pub(super) fn new(
        state: State,
        identity: AgentIdentity,
        source_address: Option<SocketAddr>,
        inbound: Streaming<v1::ReportLogsRequest>,
    ) -> Self {
        Self {
            guard: Guard::new(state.store.clone(), &identity),
            state,
            audited_by: AuditedBy::agent(&identity.agent_id, source_address),
            identity,
            inbound,
            committing: FuturesOrdered::new(),
            end: None,
            tenants: HashMap::new(),
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<v1::ReportLogsResponse, Status>> {
        stream::unfold(Some(self), |reports| async move {
            let mut reports = reports?;
            match reports.next().await? {
                Ok(response) => Some((Ok(response), Some(reports))),
                Err(status) => Some((Err(status), None)),
            }
        })
    }

    /// The next acknowledgement. None at the end of the stream.
    async fn next(&mut self) -> Option<Result<v1::ReportLogsResponse, Status>> {
        loop {
            if self.committing.is_empty()
                && let Some(end) = self.end.take()
            {
                return end.map(Err);
            }
            match self.wait().await {
                Woken::Committed(Committed { buffer_id, outcome, last_sequence, given }) => {
                    let committed = match outcome {
                        Ok(committed) => committed,
                        Err(error) => return Some(Err(refusal(error))),
                    };
                    // In the order of the messages, since how far it got is remembered.
                    if let Err(status) = self.queue(&buffer_id, given).await {
                        return Some(Err(status));
                    }
                    // The log may be ahead, when it had later messages over an earlier stream; what those give away
                    // may not be queued yet.
                    let acked_sequence = committed.min(last_sequence);
                    return Some(Ok(v1::ReportLogsResponse { buffer_id, acked_sequence }));
                }
                Woken::Stop => self.end = Some(None),
                Woken::Message(None) => self.end = Some(None),
                Woken::Message(Some(Err(status))) => self.end = Some(too_large(&status)),
                Woken::Message(Some(Ok(message))) => {
                    if let Err(status) = self.take(message).await {
                        self.end = Some(Some(status));
                    }
                }
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        let reads = self.end.is_none() && self.committing.len() < UNCOMMITTED_MAX;
        tokio::select! {
            Some(committed) = self.committing.next(), if !self.committing.is_empty() => Woken::Committed(committed),
            message = self.inbound.next(), if reads => Woken::Message(message),
            () = self.state.stop.cancelled(), if self.end.is_none() => Woken::Stop,
        }
    }

    /// Commits opt-outs and pauses of a message, then hands its records to the writer.
    async fn take(&mut self, message: v1::ReportLogsRequest) -> Result<(), Status> {
        if message.buffer_id.is_empty() || message.buffer_id.len() > BUFFER_ID_BYTES_MAX {
            return Err(status::invalid_field("buffer_id", "must have 1 to 128 bytes"));
        }
        let mut batch = ReportBatch {
            agent_id: self.identity.agent_id.clone(),
            tenant_id: self.identity.tenant_id.clone(),
            buffer_id: message.buffer_id.clone(),
            records: Vec::with_capacity(message.reports.len()),
            last_sequence: 0,
        };
        let (mut opt_outs, mut gone, mut damages) = (Vec::new(), Vec::new(), Vec::new());
        let mut given = Vec::new();
        for v1::Report { sequence, report } in message.reports {
            batch.last_sequence = batch.last_sequence.max(sequence);
            let report = match report {
                Some(report) => match self.guard.own(report).await? {
                    None => continue,
                    own => own,
                },
                None => None,
            };
            let record = match report {
                Some(Reported::Event(event)) => self.event(event).await?,
                Some(Reported::Attempts(mut report)) => {
                    self.sign(&mut report.attempts);
                    Some(Record::Attempts(report))
                }
                Some(Reported::Duplicate(report)) => Some(Record::Duplicate(report)),
                Some(Reported::UnroutedCallback(mut callback)) => {
                    callback.agent_id.clone_from(&self.identity.agent_id);
                    Some(Record::Unrouted(callback))
                }
                Some(Reported::OptOut(mut opt_out)) => {
                    crate::inbound_log::bound_opt_out(&mut opt_out);
                    opt_out.tenant_id = self.tenant_of(&opt_out.instance_id, opt_out.tenant_id).await?;
                    if self.guard.allows_tenant(&opt_out.tenant_id) {
                        opt_outs.push(opt_out);
                    }
                    None
                }
                Some(Reported::DestinationGone(report)) => {
                    gone.push(report);
                    None
                }
                Some(Reported::BufferDamage(damage)) => {
                    damages.push(damage);
                    None
                }
                Some(Reported::DeliveryHandOver(hand_over)) => {
                    let told = self.given_away(sequence, hand_over, &mut given).await?;
                    batch.records.extend(told);
                    None
                }
                // A newer agent's report. Refusing it would hold up everything behind it.
                None => {
                    warn!(gateway.agent.id = self.identity.agent_id, "skipped a report of an unknown kind");
                    None
                }
            };
            batch.records.extend(record.map(|record| SequencedRecord { sequence, record }));
        }
        decide(&self.state.store, &self.audited_by, opt_outs, gone).await?;
        for damage in damages {
            record_damage(&self.state.store, &self.identity.agent_id, damage).await?;
        }
        self.submit(batch, given).await
    }

    async fn submit(&mut self, batch: ReportBatch, given: Vec<GivenAway>) -> Result<(), Status> {
        let (buffer_id, last_sequence) = (batch.buffer_id.clone(), batch.last_sequence);
        let submitted = self.state.logs.submit(batch).await?;
        self.committing.push_back(Box::pin(async move {
            Committed { buffer_id, outcome: submitted.committed().await, last_sequence, given }
        }));
        Ok(())
    }

    async fn event(&mut self, event: v1::EventReport) -> Result<Option<Record>, Status> {
        let Some(mut log) = event.inbound_log.filter(|log| !log.event_id.is_empty()) else {
            warn!(gateway.agent.id = self.identity.agent_id, "skipped an event without id");
            return Ok(None);
        };
        log.tenant_id = self.tenant_of(&log.instance_id, log.tenant_id).await?;
        if !self.guard.allows_tenant(&log.tenant_id) {
            return Ok(None);
        }
        log.agent_id.clone_from(&self.identity.agent_id);
        log.region.clone_from(&self.identity.region);
        let mut attempts = event.attempts;
        self.sign(&mut attempts);
        Ok(Some(Record::Event(Box::new(log), attempts)))
    }

    fn sign(&self, attempts: &mut [v1::DeliveryAttempt]) {
        for attempt in attempts {
            attempt.agent_id.clone_from(&self.identity.agent_id);
        }
    }

    /// The tenant of an instance, also of one that is gone meanwhile; when nothing is known of it, as after a
    /// restore, the one that the agent had from its configuration.
    async fn tenant_of(&mut self, instance_id: &str, reported: String) -> Result<String, Status> {
        if let Some(tenant_id) = self.tenants.get(instance_id) {
            return Ok(tenant_id.clone());
        }
        let Some(tenant_id) = tenants::of_instance(&self.state.store, instance_id).await? else {
            let is_tenant = reported.parse::<TenantId>().is_ok();
            return Ok(if is_tenant { reported } else { TenantId::default_tenant().to_string() });
        };
        if self.tenants.len() >= TENANTS_MAX {
            self.tenants.clear();
        }
        self.tenants.insert(instance_id.to_owned(), tenant_id.clone());
        Ok(tenant_id)
    }
}

/// Keeps a damage and says it, once, however often it is reported.
async fn record_damage(store: &Store, agent_id: &str, mut damage: v1::BufferDamage) -> Result<(), Status> {
    cut(&mut damage.cause);
    damage.quarantined.truncate(QUARANTINED_MAX);
    damage.quarantined.iter_mut().for_each(cut);
    if agents::record_buffer_damage(store, agent_id, &damage).await? {
        error!(
            gateway.agent.id = agent_id,
            cause = damage.cause,
            unreadable_bytes = damage.unreadable_bytes,
            events_lost_max = damage.events_lost_max,
            quarantined = damage.quarantined.join(", "),
            "an agent found its buffer damaged"
        );
    }
    Ok(())
}

/// Shortens a text of a damage to [`DAMAGE_TEXT_CHARS_MAX`], and takes out what could break a log line.
fn cut(text: &mut String) {
    let kept = text.chars().filter(|character| !character.is_control()).take(DAMAGE_TEXT_CHARS_MAX);
    *text = kept.collect();
}

/// Records opt-outs, and pauses subscriptions whose destination is gone. Repeats change nothing.
async fn decide(
    store: &Store,
    by: &AuditedBy,
    opt_outs: Vec<v1::OptOut>,
    gone: Vec<v1::DestinationGone>,
) -> Result<(), Status> {
    if !opt_outs.is_empty() {
        store.record_opt_outs(by.clone(), opt_outs).await?;
    }
    for report in gone {
        let (id, url) = (&report.subscription_id, &report.destination_url);
        if store.pause_subscription_gone(id, url, GONE_REASON).await? {
            tracing::info!(gateway.subscription.id = id, "paused a subscription whose destination is gone");
        }
    }
    Ok(())
}

/// A failed commit is the control plane's trouble: the agent keeps its records and comes back.
fn refusal(error: LogStoreError) -> Status {
    match error {
        LogStoreError::Write(_) => {
            // The caller learns that it may try again, the log learns why.
            let _ = Status::from(error);
            status::unavailable("LOGS_NOT_WRITABLE", "the inbound log cannot be written; try again later")
        }
        other => other.into(),
    }
}
