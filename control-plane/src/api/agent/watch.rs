//! `WatchAgents`: all agents, then what changes.
//!
//! Nothing is kept for a watcher that does not read, but which state of each agent it was told: what it is
//! told next is looked up when it asks for it. All watchers share one view of the fleet, read anew at most
//! twice a second, however many watch.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, stream};
use gateway_core::violation::FieldViolations;
use gateway_proto::v1;
use prost::Message as _;
use tokio::{sync::Mutex, time::Instant};
use tonic::Status;

use super::{AgentApi, status};
use crate::store::agents;

/// How long a view of the fleet is taken as current.
const VIEW_LIFE: Duration = Duration::from_millis(500);
/// Least time between two messages about the same agent.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// Agents read by one query.
const ROWS_CHUNK: i64 = 1_000;

/// The responses of one watcher.
pub type WatchAgentsStream = Pin<Box<dyn Stream<Item = Result<v1::WatchAgentsResponse, Status>> + Send>>;

/// The fleet as it was a moment ago, for all who watch.
#[derive(Default)]
pub struct SharedView(Mutex<Option<(Instant, Arc<View>)>>);

/// The fleet at one moment.
struct View {
    /// By id.
    agents: Vec<(v1::Agent, u64)>,
    config_version: u64,
}

impl View {
    fn find(&self, id: &str) -> Option<&(v1::Agent, u64)> {
        let place = self.agents.binary_search_by(|(agent, _)| agent.id.as_str().cmp(id)).ok()?;
        self.agents.get(place)
    }
}

/// What tells two states of an agent apart. That it was heard again does not, nor does a clock that wavers
/// by less than a second.
fn digest(agent: &v1::Agent) -> u64 {
    let mut told = agent.clone();
    told.last_seen_time = None;
    if let Some(skew) = &mut told.clock_skew {
        // Rounded, so that a clock that is right does not change at every breath.
        *skew =
            prost_types::Duration { seconds: skew.seconds + i64::from(skew.nanos / 500_000_000), nanos: 0 };
    }
    let mut hasher = DefaultHasher::new();
    told.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

/// Refuses states that no agent is ever in.
///
/// # Errors
/// INVALID_ARGUMENT with every such state.
pub(super) fn check(request: &v1::WatchAgentsRequest) -> Result<(), Status> {
    let mut violations = FieldViolations::new();
    for (index, state) in request.states.iter().enumerate() {
        if v1::AgentState::try_from(*state).is_ok_and(|state| state != v1::AgentState::Unspecified) {
            continue;
        }
        let known = (1..).map_while(|number| v1::AgentState::try_from(number).ok());
        let names = known.map(|state| state.as_str_name()).collect::<Vec<_>>().join(", ");
        violations.add(format!("states[{index}]"), format!("must be one of {names}"));
    }
    violations.into_result(()).map_err(status::invalid)
}

/// One watcher.
pub(super) struct Watch {
    api: AgentApi,
    wanted: v1::WatchAgentsRequest,
    told: HashMap<String, Told>,
    /// Agents that have changed, by id. An agent is in it at most once.
    changed: VecDeque<String>,
    is_caught_up: bool,
    looked: Option<Instant>,
}

/// What a watcher was told last of an agent.
struct Told {
    digest: u64,
    at: Instant,
    region: String,
    /// Whether it was in a state that is watched.
    is_in: bool,
}

impl Watch {
    pub(super) fn new(api: AgentApi, wanted: v1::WatchAgentsRequest) -> Self {
        Self {
            api,
            wanted,
            told: HashMap::new(),
            changed: VecDeque::new(),
            is_caught_up: false,
            looked: None,
        }
    }

    pub(super) fn into_stream(self) -> WatchAgentsStream {
        let responses = stream::unfold(Some(self), |watch| async move {
            let mut watch = watch?;
            match watch.next().await? {
                Ok(response) => Some((Ok(response), Some(watch))),
                Err(status) => Some((Err(status), None)),
            }
        });
        responses.boxed()
    }

    /// The next message; None at shutdown.
    async fn next(&mut self) -> Option<Result<v1::WatchAgentsResponse, Status>> {
        loop {
            let view = match self.api.view().await {
                Ok(view) => view,
                Err(status) => return Some(Err(status)),
            };
            while let Some(id) = self.changed.pop_front() {
                if let Some(response) = self.tell(&view, &id) {
                    return Some(Ok(response));
                }
            }
            if self.looked.is_none() {
                self.look(&view);
                continue;
            }
            if !self.is_caught_up {
                self.is_caught_up = true;
                let config_version = view.config_version;
                let response =
                    v1::WatchAgentsResponse { is_caught_up: true, config_version, ..Default::default() };
                return Some(Ok(response));
            }
            tokio::select! {
                () = tokio::time::sleep(VIEW_LIFE) => {}
                () = self.api.state.stop.cancelled() => return None,
            }
            match self.api.view().await {
                Ok(view) => self.look(&view),
                Err(status) => return Some(Err(status)),
            }
        }
    }

    /// Notes which agents are to be told.
    fn look(&mut self, view: &View) {
        let now = Instant::now();
        self.looked = Some(now);
        let is_due = |told: &Told| now.duration_since(told.at) >= TELL_INTERVAL;
        let changed = view.agents.iter().filter(|(agent, digest)| match self.told.get(&agent.id) {
            Some(told) => told.digest != *digest && is_due(told) && (told.is_in || self.is_wanted(agent)),
            None => self.is_wanted(agent),
        });
        let gone = self.told.keys().filter(|id| view.find(id).is_none());
        self.changed = changed.map(|(agent, _)| &agent.id).chain(gone).cloned().collect();
    }

    fn is_wanted(&self, agent: &v1::Agent) -> bool {
        (self.wanted.region.is_empty() || self.wanted.region == agent.region)
            && (self.wanted.states.is_empty() || self.wanted.states.contains(&agent.state))
    }

    /// The message about one agent as it is now; None when there is nothing to say any more.
    fn tell(&mut self, view: &View, id: &str) -> Option<v1::WatchAgentsResponse> {
        let config_version = view.config_version;
        let Some((agent, digest)) = view.find(id) else {
            let told = self.told.remove(id)?;
            let agent = v1::Agent { id: id.to_owned(), region: told.region, ..Default::default() };
            let agent = Some(agent);
            return Some(v1::WatchAgentsResponse {
                agent,
                is_removed: true,
                config_version,
                ..Default::default()
            });
        };
        let is_in = self.is_wanted(agent);
        let was_in = self.told.get(id).is_some_and(|told| told.is_in);
        if !is_in && !was_in {
            return None;
        }
        let told = Told { digest: *digest, at: Instant::now(), region: agent.region.clone(), is_in };
        self.told.insert(id.to_owned(), told);
        Some(v1::WatchAgentsResponse { agent: Some(agent.clone()), config_version, ..Default::default() })
    }
}

impl AgentApi {
    /// The fleet as of at most [`VIEW_LIFE`] ago.
    async fn view(&self) -> Result<Arc<View>, Status> {
        let mut shared = self.view.0.lock().await;
        if let Some((_, view)) = shared.as_ref().filter(|(read, _)| read.elapsed() < VIEW_LIFE) {
            return Ok(Arc::clone(view));
        }
        let mut agents = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let rows = agents::list(&self.state.store, None, after.as_deref(), ROWS_CHUNK).await?;
            let Some(last) = rows.last() else { break };
            after = Some(last.id.clone());
            agents.extend(self.agents(rows).await?.into_iter().map(|agent| {
                let digest = digest(&agent);
                (agent, digest)
            }));
        }
        let config_version = self.state.store.version().await?;
        let view = Arc::new(View { agents, config_version });
        *shared = Some((Instant::now(), Arc::clone(&view)));
        Ok(view)
    }
}
