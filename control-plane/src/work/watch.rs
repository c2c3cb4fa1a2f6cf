//! What operators see of the queue: how much waits and for how long, and that deliveries wait for which there is
//! nobody.

use std::{
    collections::{BTreeMap, HashMap},
    sync::PoisonError,
    time::Duration,
};

use gateway_runtime::{
    clock,
    supervise::{OnEnd, Supervisor},
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::time::Instant;
use tracing::{info, warn};

use super::{
    WorkQueue,
    deliveries::{Cancelled, Canceller},
};
use crate::{
    app::State,
    fleet::Fleet,
    store::{
        self,
        work::{WorkCount, WorkKind},
    },
};

/// How often the queue is counted, unless counting takes long.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
/// Counting takes no more than one part in so many of the time, up to [`COUNT_INTERVAL_MAX`].
const COUNT_SHARE: u32 = 20;
/// How long it is not counted at most, since deliveries to cancel wait for it as well.
const COUNT_INTERVAL_MAX: Duration = Duration::from_secs(30);
/// Deliveries for which there has been nobody for so long are worth a warning. Agents need a moment to come back after
/// a restart of the control plane.
const NOBODY_GRACE: Duration = Duration::from_secs(10);
/// How often the warning comes again.
const WARN_INTERVAL: Duration = Duration::from_mins(10);

impl EncodeLabelValue for WorkKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::TestEvent => "test_event",
            Self::OptOut => "opt_out",
            Self::UnroutedCallback => "unrouted_callback",
            Self::DeliveryHandOver => "delivery",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

/// Labels of work in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: WorkKind,
}

/// What became of a delivery that an agent gave away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HandOverOutcome {
    /// It waits for another agent, or did so already.
    Queued,
    /// Its webhook subscription is gone, since before it came or while it waited.
    Cancelled,
    /// It cannot be delivered by anybody: something about it is missing or wrong.
    Refused,
    /// What was queued could not be read, and was removed when its webhook subscription was gone.
    Unreadable,
}

impl HandOverOutcome {
    const ALL: [Self; 4] = [Self::Queued, Self::Cancelled, Self::Refused, Self::Unreadable];
}

impl EncodeLabelValue for HandOverOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let text = match self {
            Self::Queued => "queued",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Unreadable => "unreadable",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

/// Labels of `gateway_hand_overs_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: HandOverOutcome,
}

/// The metrics of the queue.
#[derive(Clone, Default)]
pub(super) struct WorkMetrics {
    waiting: Family<KindLabels, Gauge>,
    oldest_age: Family<KindLabels, Gauge>,
    hand_overs: Family<OutcomeLabels, Counter>,
}

impl WorkMetrics {
    fn register(&self, registry: &mut Registry) {
        for kind in WorkKind::ALL {
            drop(self.waiting.get_or_create(&KindLabels { kind }));
            drop(self.oldest_age.get_or_create(&KindLabels { kind }));
        }
        for outcome in HandOverOutcome::ALL {
            drop(self.hand_overs.get_or_create(&OutcomeLabels { outcome }));
        }
        let help = "Work that no agent has acknowledged yet, by its kind";
        registry.register("work_waiting", help, self.waiting.clone());
        let help = "Age of the oldest work that no agent has acknowledged yet, by its kind";
        registry.register("work_oldest_age_seconds", help, self.oldest_age.clone());
        let help = "Deliveries that agents gave away, by what became of them here";
        registry.register("hand_overs", help, self.hand_overs.clone());
    }

    fn set(&self, counts: &[WorkCount]) {
        let now = clock::now();
        for kind in WorkKind::ALL {
            let of_kind = counts.iter().filter(|count| count.kind == kind);
            let sum = of_kind.clone().map(|count| count.count).sum();
            let oldest = of_kind.map(|count| count.oldest).min();
            let age = oldest.map_or(0, |oldest| now.duration_since(oldest).as_secs().max(0));
            self.waiting.get_or_create(&KindLabels { kind }).set(sum);
            self.oldest_age.get_or_create(&KindLabels { kind }).set(age);
        }
    }
}

impl WorkQueue {
    /// Counts deliveries that agents gave away.
    pub fn handed_over(&self, outcome: HandOverOutcome, count: usize) {
        self.inner.metrics.hand_overs.get_or_create(&OutcomeLabels { outcome }).inc_by(count as u64);
    }

    /// How many were counted.
    #[cfg(test)]
    pub(super) fn counted(&self, outcome: HandOverOutcome) -> u64 {
        self.inner.metrics.hand_overs.get_or_create(&OutcomeLabels { outcome }).get()
    }

    /// Whether an open stream takes over deliveries of a tenant in a region, and its agent does not drain.
    fn has_taker(&self, fleet: &Fleet, region: &str, tenant_id: &str) -> bool {
        self.lock().streams().any(|open| {
            open.takes_hand_overs
                && open.region == region
                && open.tenant_id.as_ref().is_none_or(|own| own == tenant_id)
                && !fleet.is_to_drain(&open.agent_id)
        })
    }
}

/// A region in which deliveries wait for nobody.
struct Abandoned {
    since: Instant,
    warned: Option<Instant>,
}

/// Deliveries of a region for which there is nobody.
#[derive(Clone, Copy)]
struct Lonely {
    count: i64,
    oldest: jiff::Timestamp,
}

/// Starts the task that counts the queue, warns of deliveries for which there is nobody, and cancels those whose
/// webhook subscription is gone.
pub(super) fn spawn(state: &State, supervisor: &Supervisor) {
    {
        let mut registry = state.metrics.registry.lock().unwrap_or_else(PoisonError::into_inner);
        state.work.inner.metrics.register(&mut registry);
    }
    let state = state.clone();
    supervisor.spawn("work-watch", OnEnd::Log, |stop| async move {
        let (mut canceller, mut abandoned) = (Canceller::new(), HashMap::new());
        let mut cancelled_at = None;
        loop {
            let start = Instant::now();
            let counted = store::work::counts(&state.store).await;
            let took = start.elapsed();
            match counted {
                Ok(counts) => {
                    state.work.inner.metrics.set(&counts);
                    warn_of_abandoned(&state, &counts, &mut abandoned);
                    // Read before it is looked for: what is deleted meanwhile is found next time.
                    let version = *state.store.watch_version().borrow();
                    if WorkQueue::may_cancel(&counts, cancelled_at != Some(version)) {
                        match canceller.cancel(&state.work).await {
                            Ok(Cancelled { count, held }) => {
                                cancelled_at = (held == 0).then_some(version);
                                if count > 0 {
                                    info!(count, "cancelled deliveries whose webhook subscription is gone");
                                }
                            }
                            Err(error) => warn!(%error, "failed to cancel deliveries"),
                        }
                    }
                }
                Err(error) => warn!(%error, "failed to count the work that waits for agents"),
            }
            let pause = (took * COUNT_SHARE).clamp(COUNT_INTERVAL, COUNT_INTERVAL_MAX);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

/// Warns, when it has been so for a while and then now and then, of regions in which deliveries wait and no agent can
/// take them; and says when that is over.
fn warn_of_abandoned(state: &State, counts: &[WorkCount], abandoned: &mut HashMap<String, Abandoned>) {
    let mut lonely: BTreeMap<&str, Lonely> = BTreeMap::new();
    for count in counts {
        let Some(region) = &count.region else { continue };
        if !state.work.has_taker(&state.fleet, region, &count.tenant_id) {
            let found = lonely.entry(region).or_insert(Lonely { count: 0, oldest: count.oldest });
            found.count += count.count;
            found.oldest = found.oldest.min(count.oldest);
        }
    }
    abandoned.retain(|region, was| {
        let still = lonely.contains_key(region.as_str());
        if !still && was.warned.is_some() {
            info!(cloud.region = region, "deliveries that were handed over wait for no agent any more");
        }
        still
    });
    let now = Instant::now();
    for (region, Lonely { count, oldest }) in lonely {
        let was = abandoned.entry(region.to_owned()).or_insert(Abandoned { since: now, warned: None });
        let is_due = was.warned.map_or(now.duration_since(was.since) >= NOBODY_GRACE, |warned| {
            now.duration_since(warned) >= WARN_INTERVAL
        });
        if is_due {
            was.warned = Some(now);
            warn!(
                cloud.region = region,
                count,
                oldest_age_seconds = clock::now().duration_since(oldest).as_secs(),
                "deliveries that were handed over wait, and no agent of their region can take them; start one, or \
                 end the draining of one"
            );
        }
    }
}
