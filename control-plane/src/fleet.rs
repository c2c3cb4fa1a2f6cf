//! The agents as this process sees them: who is connected, what configuration each has accepted and
//! applied, what it refused, and how it is doing. In memory only; agents say it again when they
//! connect again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gateway_core::time;
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

/// Refused resources kept per agent; more are not listed.
const REFUSED_MAX: usize = 1_000;
/// Pairs of inbound route and reason kept per agent; more are not counted.
const REFUSED_CALLBACKS_MAX: usize = 10_000;
/// Webhook subscriptions over their share kept per agent; more are not listed.
const OVER_SHARE_MAX: usize = 100;

/// A configuration resource: its type as the oneof field of `ConfigResource` names it, and its id.
pub type ResourceKey = (String, String);

/// Connected agents. Cheap to clone.
#[derive(Clone, Default)]
pub struct Fleet {
    members: Arc<Mutex<Members>>,
}

#[derive(Default)]
struct Members {
    agents: HashMap<String, Member>,
    connections: u64,
}

/// What is known of an agent that was connected since this process started.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its region.
    pub region: String,
    /// Its program version.
    pub build: String,
    /// Whether its config stream is open.
    pub is_online: bool,
    /// The configuration it has stored.
    pub accepted_version: u64,
    /// The configuration its pipeline uses.
    pub applied_version: u64,
    /// What it could not use.
    pub refused: BTreeMap<ResourceKey, v1::RefusedResource>,
    /// The last it said about itself.
    pub health: v1::AgentHealth,
    /// When it was last heard.
    pub last_seen: Timestamp,
    connection: u64,
    superseded: CancellationToken,
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
        let member = Member {
            region: region.to_owned(),
            build: build.to_owned(),
            is_online: true,
            accepted_version: version,
            applied_version: 0,
            refused: before.map(|before| before.refused).unwrap_or_default(),
            health: v1::AgentHealth::default(),
            last_seen: clock::now(),
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
        let member = members.agents.get(agent_id).filter(|member| member.is_online);
        member.map_or(0, |member| member.applied_version)
    }

    /// How the agents of `regions` (empty: of any region) are doing, seen from one inbound route.
    pub fn diagnosis(&self, route_id: &str, regions: &[String], config_version: u64) -> FleetDiagnosis {
        let members = self.lock();
        let mut diagnosis = FleetDiagnosis::default();
        let mut refusals: BTreeMap<&str, v1::CallbackRefusal> = BTreeMap::new();
        for member in members.agents.values().filter(|member| serves(regions, &member.region)) {
            diagnosis.online += i32::from(member.is_online);
            diagnosis.current += i32::from(member.is_online && member.applied_version >= config_version);
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

/// An open config stream. Dropping it puts the agent offline, unless it has connected again meanwhile.
pub struct Connection {
    fleet: Fleet,
    agent_id: String,
    connection: u64,
    superseded: CancellationToken,
}

impl Connection {
    /// Cancelled when the agent has connected again.
    pub const fn superseded(&self) -> &CancellationToken {
        &self.superseded
    }

    /// The agent stored `version`. `cleared` are resources that it had refused before and was sent anew;
    /// `refused` those that it refuses now.
    pub fn accepted(&self, version: u64, cleared: &[ResourceKey], refused: Vec<v1::RefusedResource>) {
        self.change(|member| {
            member.accepted_version = version;
            for key in cleared {
                member.refused.remove(key);
            }
            for resource in refused {
                let key = (resource.r#type.clone(), resource.id.clone());
                if member.refused.len() < REFUSED_MAX || member.refused.contains_key(&key) {
                    member.refused.insert(key, resource);
                }
            }
        });
    }

    /// The agent was sent everything anew: what it refused before counts no more.
    pub fn forget_refused(&self) {
        self.change(|member| member.refused.clear());
    }

    /// The agent's pipeline uses `version`.
    pub fn applied(&self, version: u64) {
        self.change(|member| member.applied_version = version);
    }

    /// The agent says how it is doing.
    pub fn health(&self, mut health: v1::AgentHealth) {
        health.refused_callbacks.truncate(REFUSED_CALLBACKS_MAX);
        health.over_share_subscription_ids.truncate(OVER_SHARE_MAX);
        self.change(|member| member.health = health);
    }

    fn change(&self, change: impl FnOnce(&mut Member)) {
        let mut members = self.fleet.lock();
        let member =
            members.agents.get_mut(&self.agent_id).filter(|member| member.connection == self.connection);
        if let Some(member) = member {
            member.last_seen = clock::now();
            change(member);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut members = self.fleet.lock();
        let member =
            members.agents.get_mut(&self.agent_id).filter(|member| member.connection == self.connection);
        if let Some(member) = member {
            member.is_online = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_callbacks(count: u64) -> v1::AgentHealth {
        let refused = v1::RefusedCallbacks {
            inbound_route_id: "route_1".into(),
            reason: "wrong_signature".into(),
            count,
            last_time: Some(prost_types::Timestamp { seconds: i64::try_from(count).unwrap(), nanos: 0 }),
        };
        v1::AgentHealth { refused_callbacks: vec![refused], ..Default::default() }
    }

    /// An agent is online as long as its newest stream: the end of an older one changes nothing.
    #[test]
    fn reconnect_wins_over_the_old_stream() {
        let fleet = Fleet::new();
        let old = fleet.connect("agt_1", "eu", "1", 0);
        let new = fleet.connect("agt_1", "eu", "1", 4);
        assert!(old.superseded().is_cancelled() && !new.superseded().is_cancelled());
        old.applied(9);
        drop(old);
        let member = fleet.member("agt_1").unwrap();
        assert!(member.is_online);
        assert_eq!((member.accepted_version, member.applied_version), (4, 0));
        new.applied(5);
        assert_eq!(fleet.applied_version("agt_1"), 5);
        drop(new);
        assert_eq!((fleet.applied_version("agt_1"), fleet.applied_version("agt_2")), (0, 0));
        assert!(!fleet.member("agt_1").unwrap().is_online);
    }

    /// A diagnosis counts agents of the instance's regions and sums their refusals.
    #[test]
    fn diagnosis_sums_agents_of_the_regions() {
        let fleet = Fleet::new();
        let [one, two, _far] = [("agt_1", "eu"), ("agt_2", "eu"), ("agt_3", "us")]
            .map(|(id, region)| fleet.connect(id, region, "1", 0));
        one.applied(7);
        one.health(refused_callbacks(3));
        two.applied(6);
        two.health(refused_callbacks(5));
        let diagnosis = fleet.diagnosis("route_1", &["eu".into()], 7);
        assert_eq!((diagnosis.online, diagnosis.current), (2, 1));
        assert_eq!(diagnosis.refusals.len(), 1);
        assert_eq!((diagnosis.refusals[0].count, diagnosis.refusals[0].last_time.unwrap().seconds), (8, 5));
        assert_eq!(fleet.diagnosis("route_2", &[], 7).online, 3);
    }

    /// A refused resource stays listed until it is sent anew and taken.
    #[test]
    fn refused_resources_stay_until_accepted() {
        let fleet = Fleet::new();
        let connection = fleet.connect("agt_1", "eu", "1", 0);
        let refused =
            v1::RefusedResource { r#type: "instance".into(), id: "inst_1".into(), ..Default::default() };
        connection.accepted(2, &[], vec![refused]);
        connection.accepted(3, &[("instance".into(), "inst_2".into())], vec![]);
        assert_eq!(fleet.member("agt_1").unwrap().refused.len(), 1);
        connection.accepted(4, &[("instance".into(), "inst_1".into())], vec![]);
        assert!(fleet.member("agt_1").unwrap().refused.is_empty());
    }
}
