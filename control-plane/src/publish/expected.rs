//! What agents should have, in digests, to compare what they say that they have with it.
//!
//! It is read from the database as it is, not added up from changes: an error in what was sent would be in the sum as
//! well. One reading serves every agent: resources are added up by who gets them, which is few sums, and an agent's digests
//! are those of the sums that are for it. A task reads when somebody asks for a version that is not known yet; nobody waits
//! for it, and it takes a small share of the time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use gateway_core::snapshot::digest::Digests;
use gateway_proto::v1;
use gateway_runtime::supervise::{OnEnd, Supervisor};
use tokio::{sync::watch, time::Instant};
use tracing::debug;

use crate::{
    fleet::serves,
    store::{Store, StoreError, config_index::IndexVisitor},
};

/// Longest pause that the share asks for: a machine that stood still during a reading is no reason to wait for minutes.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Shortest pause between two readings.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Pause when a damaged row keeps everybody from knowing.
const PAUSE_DAMAGED: Duration = Duration::from_mins(1);
/// Reading takes no more than one part in so many of the time.
const READING_SHARE: u32 = 20;

/// What agents should have at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The version.
    pub version: u64,
    sums: HashMap<Audience, Digests>,
}

/// Who gets a resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Audience {
    /// Its regions; empty for all.
    regions: Arc<[String]>,
    /// The tenant whose agents get it, beside those of the platform.
    tenant_id: Option<Arc<str>>,
}

impl Expected {
    /// What an agent should have; `tenant_id` is None for one of the platform.
    pub fn of(&self, region: &str, tenant_id: Option<&str>) -> Digests {
        let mut digests = Digests::default();
        for (audience, sum) in &self.sums {
            let is_for = tenant_id.is_none() || audience.tenant_id.as_deref() == tenant_id;
            if is_for && serves(&audience.regions, region) {
                digests.merge(sum);
            }
        }
        digests
    }

    /// The same for every agent.
    #[cfg(test)]
    pub(crate) fn for_all(version: u64, digests: Digests) -> Self {
        let audience = Audience { regions: Arc::new([]), tenant_id: None };
        Self { version, sums: HashMap::from([(audience, digests)]) }
    }

    /// Reads it; None when not everything can be read.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn read(store: &Store) -> Result<Option<Self>, StoreError> {
        let mut reading = Reading::default();
        let version = store.visit_config(&mut reading).await?;
        reading.add_routes();
        Ok(version.map(|version| Self { version, sums: reading.sums }))
    }
}

#[derive(Default)]
struct Reading {
    sums: HashMap<Audience, Digests>,
    routes: HashMap<String, Route>,
    instances: HashMap<String, Audience>,
    /// One of each, since most are the same.
    regions: HashMap<Vec<String>, Arc<[String]>>,
}

struct Route {
    version: u64,
    tenant_id: Option<Arc<str>>,
    /// Whether an instance is on it.
    is_used: bool,
    /// The regions of its instances; None when one of them is for all.
    reach: Option<BTreeSet<String>>,
}

impl Reading {
    fn add(&mut self, audience: Audience, resource_type: &str, id: &str, version: u64) {
        self.sums.entry(audience).or_default().add(resource_type, id, version);
    }

    /// A route is for the regions of its instances, and for all while it has none.
    fn add_routes(&mut self) {
        for (id, route) in std::mem::take(&mut self.routes) {
            let reach = route.reach.filter(|_| route.is_used).unwrap_or_default();
            let audience = Audience { regions: reach.into_iter().collect(), tenant_id: route.tenant_id };
            self.add(audience, "inbound_route", &id, route.version);
        }
    }
}

impl IndexVisitor for Reading {
    fn inbound_route(&mut self, id: &str, tenant_id: &str, version: u64) {
        // Platform routes, and the instances on them, are for agents of the platform.
        let tenant_id = (!tenant_id.is_empty()).then(|| tenant_id.into());
        let route = Route { version, tenant_id, is_used: false, reach: Some(BTreeSet::new()) };
        self.routes.insert(id.to_owned(), route);
    }

    fn instance(&mut self, instance: &v1::Instance, version: u64) {
        let known = self.regions.get(&instance.regions).cloned();
        let regions = known.unwrap_or_else(|| {
            let regions: Arc<[String]> = instance.regions.clone().into();
            self.regions.insert(instance.regions.clone(), Arc::clone(&regions));
            regions
        });
        let mut tenant_id = None;
        if let Some(route) = self.routes.get_mut(&instance.inbound_route_id) {
            tenant_id = route.tenant_id.clone().filter(|tenant_id| **tenant_id == *instance.tenant_id);
            route.is_used = true;
            match &mut route.reach {
                Some(reach) if !regions.is_empty() => reach.extend(regions.iter().cloned()),
                reach => *reach = None,
            }
        }
        let audience = Audience { regions, tenant_id };
        self.instances.insert(instance.id.clone(), audience.clone());
        self.add(audience, "instance", &instance.id, version);
    }

    fn dependent(&mut self, resource_type: &'static str, id: &str, instance_id: &str, version: u64) {
        if let Some(audience) = self.instances.get(instance_id).cloned() {
            self.add(audience, resource_type, id, version);
        }
    }
}

/// What is expected of agents, as far as somebody asked for it. Cheap to clone.
#[derive(Clone, Default)]
pub struct Expectations {
    wanted: Arc<watch::Sender<Option<u64>>>,
    known: Arc<watch::Sender<Option<Arc<Expected>>>>,
}

impl Expectations {
    /// Asks for what is expected at a version, or at a later one when there is one by then.
    pub fn want(&self, version: u64) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = *wanted < Some(version);
            if is_new {
                *wanted = Some(version);
            }
            is_new
        });
    }

    /// This is expected now.
    #[cfg(test)]
    pub(crate) fn know(&self, expected: Expected) {
        self.known.send_replace(Some(Arc::new(expected)));
    }

    /// What is expected at the newest version that is known; wakes when another one is.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<Expected>>> {
        self.known.subscribe()
    }
}

/// Reads what is asked for, until shutdown.
pub fn spawn(expectations: &Expectations, store: &Store, supervisor: &Supervisor) {
    let (expectations, store) = (expectations.clone(), store.clone());
    supervisor.spawn("expected-config", OnEnd::Log, |stop| async move {
        let mut wanted = expectations.wanted.subscribe();
        let mut known = None;
        loop {
            tokio::select! {
                // The sender lives as long as this task.
                _ = wanted.wait_for(|wanted| *wanted > known) => {}
                () = stop.cancelled() => return Ok(()),
            }
            let (began, mut pause_min) = (Instant::now(), PAUSE_MIN);
            match Expected::read(&store).await {
                Ok(Some(expected)) => {
                    known = Some(expected.version);
                    expectations.known.send_replace(Some(Arc::new(expected)));
                }
                // The store has said which row it is. Nothing is compared until it can be read.
                Ok(None) => pause_min = PAUSE_DAMAGED,
                Err(error) => {
                    debug!(error = format!("{:#}", anyhow::Error::from(error)), "failed to read digests")
                }
            }
            let pause = (began.elapsed() * READING_SHARE).min(PAUSE_MAX).max(pause_min);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
    });
}

#[cfg(test)]
mod tests;
