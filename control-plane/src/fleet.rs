//! The agents as this process sees them: who is connected, what configuration each has accepted and
//! applied, what it refused, and how it is doing. In memory only; agents say it again when they
//! connect again. When each was last heard is written down now and then, since the number of agents that
//! will come back after a restart is counted from it ([`pace`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gateway_core::time;
use gateway_proto::v1;
use gateway_runtime::{
    clock,
    supervise::{OnEnd, Supervisor},
};
use jiff::{SignedDuration, Timestamp};
use prost::Message;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::store::{Store, StoreError, fleet};

pub mod pace;
#[cfg(test)]
mod tests;

/// An agent of which nothing was heard for so long is offline. Agents say how they are every 5 s, so two
/// messages may be lost; and a dead agent shows as offline within 15 s.
pub const SILENCE_MAX: Duration = Duration::from_secs(13);
/// Clocks that differ by more are worth a warning: signatures and certificates carry times.
pub const CLOCK_SKEW_MAX: SignedDuration = SignedDuration::from_secs(30);
/// How often it is written down when agents were last heard.
const SEEN_INTERVAL: Duration = Duration::from_secs(300);
/// How long the number of agents is taken as known.
const SIZE_LIFE: Duration = Duration::from_secs(1);
/// Refused resources kept per agent, by number and in bytes; more are only counted. In bytes as well, so that an agent
/// fits into one answer.
const REFUSED_MAX: usize = 1_000;
const REFUSED_BYTES_MAX: usize = 1 << 20;
/// Refused resources that are counted beside those, at 8 bytes each.
const REFUSED_COUNTED_MAX: usize = 100_000;
/// Characters kept of why a resource was refused, and of its type and id; the rest is cut.
const REFUSED_TEXT_CHARS_MAX: usize = 512;
/// Pairs of inbound route and reason kept per agent; more are not counted.
const REFUSED_CALLBACKS_MAX: usize = 10_000;
/// Longest reason of refused callbacks and longest id of a webhook subscription, in characters; the rest is cut.
const HEALTH_TEXT_CHARS_MAX: usize = 63;
/// Webhook subscriptions over their share kept per agent; more are not listed.
const OVER_SHARE_MAX: usize = 100;

/// A configuration resource: its type as the oneof field of `ConfigResource` names it, and its id.
pub type ResourceKey = (String, String);

/// Connected agents. Cheap to clone.
#[derive(Clone, Default)]
pub struct Fleet {
    members: Arc<Mutex<Members>>,
    /// Counts changes of who is to drain.
    drains: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Members {
    agents: HashMap<String, Member>,
    connections: u64,
    pace: pace::Pace,
    /// How many agents there are, and when they were counted.
    size: Option<(usize, Instant)>,
}

/// What is known of an agent that was connected since this process started.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its region.
    pub region: String,
    /// The tenant it works for; None for an agent of the platform.
    pub tenant_id: Option<String>,
    /// Its program version.
    pub build: String,
    /// Where its config stream comes from; None when it has none.
    pub address: Option<SocketAddr>,
    /// When its newest config stream was opened.
    pub connect_time: Timestamp,
    /// The configuration it has stored.
    pub accepted_version: u64,
    /// The configuration its pipeline uses.
    pub applied_version: u64,
    /// What it could not use.
    pub refused: BTreeMap<ResourceKey, v1::RefusedResource>,
    /// Hashes of the keys of what else it could not use.
    unlisted: Arc<HashSet<u64>>,
    /// The last it said about itself.
    pub health: v1::AgentHealth,
    /// How far its clock is ahead of ours, as of its last word about itself.
    pub clock_skew: Option<SignedDuration>,
    /// Whether it is to drain.
    pub is_to_drain: bool,
    /// When it was last heard.
    pub last_seen: Timestamp,
    /// Whether its config stream is open.
    is_open: bool,
    heard: Instant,
    connection: u64,
    superseded: CancellationToken,
}

impl Member {
    /// Whether its config stream is open and it was heard within [`SILENCE_MAX`].
    pub fn is_online(&self) -> bool {
        self.is_open && self.heard.elapsed() < SILENCE_MAX
    }

    /// How many resources it could not use, as far as they are counted.
    pub fn refused_count(&self) -> usize {
        self.refused.len() + self.unlisted.len()
    }

    /// `cleared` were sent anew, and of them and others `refused` are refused now.
    fn judge(&mut self, cleared: &[ResourceKey], refused: Vec<v1::RefusedResource>) {
        for key in cleared {
            self.refused.remove(key);
        }
        if !self.unlisted.is_empty() {
            let unlisted = Arc::make_mut(&mut self.unlisted);
            for key in cleared {
                unlisted.remove(&hash(key));
            }
        }
        let mut bytes: usize = self.refused.values().map(Message::encoded_len).sum();
        for mut resource in refused {
            let uncut = (resource.r#type.clone(), resource.id.clone());
            for text in [&mut resource.r#type, &mut resource.id, &mut resource.error] {
                cut(text, REFUSED_TEXT_CHARS_MAX);
            }
            let key = (resource.r#type.clone(), resource.id.clone());
            bytes -= self.refused.remove(&key).as_ref().map_or(0, Message::encoded_len);
            let size = resource.encoded_len();
            if self.refused.len() < REFUSED_MAX && bytes + size <= REFUSED_BYTES_MAX {
                bytes += size;
                if !self.unlisted.is_empty() {
                    Arc::make_mut(&mut self.unlisted).remove(&hash(&uncut));
                }
                self.refused.insert(key, resource);
            } else if self.unlisted.len() < REFUSED_COUNTED_MAX {
                Arc::make_mut(&mut self.unlisted).insert(hash(&uncut));
            }
        }
    }

    /// What operators are told. `drains` is what was asked for.
    pub fn state(&self, drains: bool) -> v1::AgentState {
        match (self.is_online(), drains) {
            (false, _) => v1::AgentState::Offline,
            (true, false) => v1::AgentState::Online,
            (true, true) if self.health.is_drained => v1::AgentState::Drained,
            (true, true) => v1::AgentState::Draining,
        }
    }
}

/// How the agents that serve an instance are doing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FleetDiagnosis {
    /// Agents that are online.
    pub online: i32,
    /// Of those, agents that use the asked configuration version or a later one.
    pub current: i32,
    /// Callbacks of the inbound route that agents refused, by reason.
    pub refusals: Vec<v1::CallbackRefusal>,
}

impl Fleet {
    /// Nobody is connected yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// An agent has opened its config stream. It is online until the connection is dropped. A stream that
    /// it had open before is told to end: the agent has given it up.
    pub fn connect(&self, agent_id: &str, region: &str, build: &str, version: u64) -> Connection {
        let mut members = self.lock();
        members.connections += 1;
        let connection = members.connections;
        let superseded = CancellationToken::new();
        let before = members.agents.remove(agent_id);
        if let Some(before) = &before {
            before.superseded.cancel();
        }
        let (refused, unlisted) = before.map(|before| (before.refused, before.unlisted)).unwrap_or_default();
        let member = Member {
            region: region.to_owned(),
            tenant_id: None,
            build: build.to_owned(),
            address: None,
            connect_time: clock::now(),
            accepted_version: version,
            applied_version: 0,
            refused,
            unlisted,
            health: v1::AgentHealth::default(),
            clock_skew: None,
            is_to_drain: false,
            last_seen: clock::now(),
            is_open: true,
            heard: Instant::now(),
            connection,
            superseded: superseded.clone(),
        };
        members.agents.insert(agent_id.to_owned(), member);
        Connection { fleet: self.clone(), agent_id: agent_id.to_owned(), connection, superseded }
    }

    /// What is known of an agent; None when it was not connected since this process started.
    pub fn member(&self, agent_id: &str) -> Option<Member> {
        self.lock().agents.get(agent_id).cloned()
    }

    /// The configuration that an agent's pipeline uses; 0 while its config stream is not open or it has not
    /// said so yet.
    pub fn applied_version(&self, agent_id: &str) -> u64 {
        let members = self.lock();
        let member = members.agents.get(agent_id).filter(|member| member.is_open);
        member.map_or(0, |member| member.applied_version)
    }

    /// Whether a connected agent is to drain: then it is given nothing new to do.
    pub fn is_to_drain(&self, agent_id: &str) -> bool {
        self.lock().agents.get(agent_id).is_some_and(|member| member.is_to_drain)
    }

    /// Says that an agent was asked to drain, or no more: its config stream looks it up and tells it.
    pub fn drain_changed(&self, agent_id: &str) {
        if let Some(member) = self.lock().agents.get_mut(agent_id) {
            // What it said before the question is no answer to it.
            member.health.is_drained = false;
        }
        self.drains.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Wakes whenever somebody was asked to drain, or no more.
    pub fn watch_drains(&self) -> watch::Receiver<u64> {
        self.drains.subscribe()
    }

    /// Admits one more config stream, unless too many agents came within the last second ([`pace`]). Ok(Err)
    /// says how long the agent is to wait.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn admit(&self, store: &Store) -> Result<Result<(), Duration>, StoreError> {
        let known = self.lock().size.filter(|(_, counted)| counted.elapsed() < SIZE_LIFE);
        let size = match known {
            Some((size, _)) => size,
            None => {
                let size = fleet::size(store).await?;
                self.lock().size = Some((size, Instant::now()));
                size
            }
        };
        let mut members = self.lock();
        Ok(members.pace.admit(size, Instant::now()))
    }

    /// When each connected agent was last heard.
    fn seen(&self) -> Vec<(String, Timestamp)> {
        let members = self.lock();
        let online = members.agents.iter().filter(|(_, member)| member.is_online());
        online.map(|(id, member)| (id.clone(), member.last_seen)).collect()
    }

    /// How the agents of `regions` (empty: of any region) are doing, seen from one inbound route of
    /// `route_tenant` (empty: of the platform). Agents of other tenants do not serve it, and have no say.
    pub fn diagnosis(
        &self,
        (route_tenant, route_id): (&str, &str),
        regions: &[String],
        config_version: u64,
    ) -> FleetDiagnosis {
        let members = self.lock();
        let mut diagnosis = FleetDiagnosis::default();
        let mut refusals: BTreeMap<&str, v1::CallbackRefusal> = BTreeMap::new();
        let is_served_by = |member: &&Member| {
            let may = member.tenant_id.as_ref().is_none_or(|tenant_id| tenant_id == route_tenant);
            may && serves(regions, &member.region)
        };
        for member in members.agents.values().filter(is_served_by) {
            let is_online = member.is_online();
            diagnosis.online += i32::from(is_online);
            diagnosis.current += i32::from(is_online && member.applied_version >= config_version);
            let of_route =
                member.health.refused_callbacks.iter().filter(|refused| refused.inbound_route_id == route_id);
            for refused in of_route {
                let sum = refusals.entry(&refused.reason).or_default();
                sum.reason.clone_from(&refused.reason);
                sum.count = sum.count.saturating_add(refused.count);
                sum.last_time = later(sum.last_time, refused.last_time);
            }
        }
        diagnosis.refusals = refusals.into_values().collect();
        diagnosis
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the task that writes down when agents were last heard.
pub fn spawn(fleet: &Fleet, store: &Store, supervisor: &Supervisor) {
    let (fleet, store) = (fleet.clone(), store.clone());
    supervisor.spawn("fleet", OnEnd::Log, |stop| async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SEEN_INTERVAL) => {}
                () = stop.cancelled() => return Ok(()),
            }
            if let Err(error) = fleet::record_seen(&store, &fleet.seen()).await {
                warn!(%error, "failed to write down when agents were last heard");
            }
        }
    });
}

/// Whether agents of `region` serve what is limited to `regions`.
pub fn serves(regions: &[String], region: &str) -> bool {
    regions.is_empty() || regions.iter().any(|served| served == region)
}

fn later(
    one: Option<prost_types::Timestamp>,
    other: Option<prost_types::Timestamp>,
) -> Option<prost_types::Timestamp> {
    let read = |time: &Option<prost_types::Timestamp>| time.as_ref().and_then(time::from_proto);
    read(&one).max(read(&other)).map(time::to_proto)
}

fn hash(key: &ResourceKey) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Cuts a text of an agent that is too long; then it ends in `…`.
fn cut(text: &mut String, chars_max: usize) {
    if let Some((place, _)) = text.char_indices().nth(chars_max) {
        text.truncate(place);
        text.push('…');
    }
}

/// An open config stream. Dropping it puts the agent offline, unless it has connected again meanwhile.
pub struct Connection {
    fleet: Fleet,
    agent_id: String,
    connection: u64,
    superseded: CancellationToken,
}

impl Connection {
    /// Notes the tenant that the agent works for.
    pub fn belongs_to(&self, tenant_id: Option<String>) {
        self.change(|member| member.tenant_id = tenant_id);
    }

    /// Notes where the connection comes from.
    pub fn comes_from(&self, address: Option<SocketAddr>) {
        self.change(|member| member.address = address);
    }

    /// Notes whether the agent is to drain.
    pub fn is_to_drain(&self, drains: bool) {
        self.alter(|member| member.is_to_drain = drains);
    }

    /// Cancelled when the agent has connected again.
    pub const fn superseded(&self) -> &CancellationToken {
        &self.superseded
    }

    /// The agent stored `version`. `cleared` are resources that it had refused before and was sent anew;
    /// `refused` those that it refuses now.
    pub fn accepted(&self, version: u64, cleared: &[ResourceKey], refused: Vec<v1::RefusedResource>) {
        self.change(|member| {
            member.accepted_version = version;
            member.judge(cleared, refused);
        });
    }

    /// The agent was sent everything anew: what it refused before counts no more.
    pub fn forget_refused(&self) {
        self.change(|member| {
            member.refused.clear();
            member.unlisted = Arc::default();
        });
    }

    /// The agent's pipeline uses `version`.
    pub fn applied(&self, version: u64) {
        self.change(|member| member.applied_version = version);
    }

    /// The agent says how it is doing.
    pub fn health(&self, mut health: v1::AgentHealth) {
        health.refused_callbacks.truncate(REFUSED_CALLBACKS_MAX);
        health.over_share_subscription_ids.truncate(OVER_SHARE_MAX);
        let reasons = health.refused_callbacks.iter_mut().map(|refused| &mut refused.reason);
        for text in reasons.chain(&mut health.over_share_subscription_ids) {
            cut(text, HEALTH_TEXT_CHARS_MAX);
        }
        let clock_skew =
            health.time.as_ref().and_then(time::from_proto).map(|time| time.duration_since(clock::now()));
        let before = self.change(|member| {
            member.health = health;
            std::mem::replace(&mut member.clock_skew, clock_skew)
        });
        self.judge_clock(before.flatten(), clock_skew);
    }

    /// Says when the agent's clock goes wrong, and when it is right again; once each.
    fn judge_clock(&self, before: Option<SignedDuration>, now: Option<SignedDuration>) {
        let is_off = |skew: Option<SignedDuration>| skew.is_some_and(|skew| skew.abs() > CLOCK_SKEW_MAX);
        let clock_skew_seconds = now.map_or(0, |skew| skew.as_secs());
        match (is_off(before), is_off(now)) {
            (false, true) => warn!(
                gateway.agent.id = self.agent_id,
                clock_skew_seconds, "the clock of an agent differs from ours; set one of them right"
            ),
            (true, false) => {
                info!(
                    gateway.agent.id = self.agent_id,
                    clock_skew_seconds, "the clock of an agent is right again"
                );
            }
            _ => {}
        }
    }

    /// The agent was heard, and says this of itself.
    fn change<T>(&self, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        self.alter(|member| {
            member.last_seen = clock::now();
            member.heard = Instant::now();
            change(member)
        })
    }

    fn alter<T>(&self, change: impl FnOnce(&mut Member) -> T) -> Option<T> {
        let mut members = self.fleet.lock();
        let member =
            members.agents.get_mut(&self.agent_id).filter(|member| member.connection == self.connection);
        member.map(change)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut members = self.fleet.lock();
        let member =
            members.agents.get_mut(&self.agent_id).filter(|member| member.connection == self.connection);
        if let Some(member) = member {
            member.is_open = false;
            member.address = None;
        }
    }
}
