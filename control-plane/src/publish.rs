//! From a change in the store to what one agent is sent.
//!
//! All config streams share one [`Publisher`]: agents that have the same version need the same changes, so
//! they are read once. What an agent gets depends on its region: the instances that it serves, their inbound
//! routes, webhook subscriptions and opt-out policies. An inbound route without any instance goes to every
//! region, so that callbacks for numbers that nobody has claimed yet are taken somewhere. When an instance
//! changes, its route and everything that hangs on it go along, although they have not changed themselves:
//! perhaps the instance has just come into the agent's region. Sending a resource again does no harm.
//!
//! An instance and what hangs on it travel in the same response wherever they fit, because an agent that
//! knew an instance without its subscriptions would deliver its events to nobody.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Arc, Weak},
};

use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use tokio::sync::Mutex;

use crate::{
    fleet::{ResourceKey, serves},
    store::{
        ConfigChanges, REMOVAL_ORDER, Store, StoreError, damaged::LeftOut, opt_out_policies, route_reach,
        webhook_subscriptions,
    },
};

/// Longest response, some way under the 4 MiB that gRPC clients take by default.
const RESPONSE_BYTES_MAX: usize = 3 * 1_024 * 1_024;
/// Changed resources that are looked up one by one. With more of them, reading everything once is faster.
const LOOKUPS_MAX: usize = 500;

/// Reads changes for config streams.
pub struct Publisher {
    store: Store,
    /// The changes read last, as long as a stream still sends them.
    newest: Mutex<Weak<Changes>>,
}

/// What changed after one version, with the regions each resource is for.
pub struct Changes {
    since: u64,
    /// The version an agent has after these changes.
    pub version: u64,
    items: Vec<Item>,
    removals: Vec<v1::ConfigRemoval>,
    /// What cannot be read, whatever region it is for.
    pub left_out: Vec<LeftOut>,
}

struct Item {
    /// What travels together: the instance; empty for inbound routes.
    group: String,
    /// Empty means every region.
    regions: Arc<[String]>,
    resource: v1::ConfigResource,
}

impl Publisher {
    /// Reads from `store`.
    pub fn new(store: Store) -> Self {
        Self { store, newest: Mutex::default() }
    }

    /// What changed after the version `since`; 0 is everything. `version` is the newest one known.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn changes(&self, since: u64, version: u64) -> Result<Arc<Changes>, StoreError> {
        let mut newest = self.newest.lock().await;
        if let Some(newest) = newest.upgrade()
            && newest.since == since
            && newest.version >= version
        {
            return Ok(newest);
        }
        let mut changes = self.store.changes_since(since).await?;
        let regions = if since == 0 {
            Regions::of(&changes.upserts)
        } else if changes.upserts.len() > LOOKUPS_MAX {
            let everything = self.store.changes_since(0).await?.upserts;
            let regions = Regions::of(&everything);
            add_dependents(&mut changes.upserts, everything);
            regions
        } else {
            self.look_up(&mut changes.upserts).await?
        };
        let changes = Arc::new(annotate(since, changes, &regions));
        *newest = Arc::downgrade(&changes);
        Ok(changes)
    }

    /// Adds what hangs on the instances among `upserts`, and finds the regions of all others.
    async fn look_up(&self, upserts: &mut Vec<v1::ConfigResource>) -> Result<Regions, StoreError> {
        let mut regions = Regions::of(upserts);
        for route_id in upserts.iter().filter_map(route_id) {
            // The instances among the changes are not all that it has.
            let reach = route_reach::regions(&mut self.store.reader().await?, route_id).await?;
            regions.routes.insert(route_id.to_owned(), reach.into());
        }
        let mut dependents = Vec::new();
        for instance_id in regions.instances.keys() {
            dependents.extend(self.dependents(instance_id).await?);
        }
        add_dependents(upserts, dependents);
        for instance_id in upserts.iter().map(group).filter(|group| !group.is_empty()) {
            if !regions.instances.contains_key(instance_id)
                && let Some(instance) = self.store.instance(instance_id).await?
            {
                regions.instances.insert(instance.id, instance.regions.into());
            }
        }
        Ok(regions)
    }

    /// The opt-out policy and the webhook subscriptions of an instance.
    async fn dependents(&self, instance_id: &str) -> Result<Vec<v1::ConfigResource>, StoreError> {
        let mut connection = self.store.reader().await?;
        let policy = opt_out_policies::of_instance(&mut connection, instance_id).await?;
        let subscriptions = webhook_subscriptions::of_instance(&mut connection, instance_id).await?;
        Ok(policy.into_iter().chain(subscriptions).collect())
    }
}

/// Regions that get a resource, by its id; empty means every region.
struct Regions {
    instances: HashMap<String, Arc<[String]>>,
    routes: HashMap<String, Arc<[String]>>,
}

impl Regions {
    /// As the instances among `upserts` say. A route that none of them is on is not in it.
    fn of(upserts: &[v1::ConfigResource]) -> Self {
        let mut instances: HashMap<String, Arc<[String]>> = HashMap::new();
        // None: one of its instances is served everywhere.
        let mut routes: HashMap<&str, Option<BTreeSet<&String>>> = HashMap::new();
        for instance in upserts.iter().filter_map(instance) {
            instances.insert(instance.id.clone(), instance.regions.clone().into());
            let reach = routes.entry(&instance.inbound_route_id).or_insert_with(|| Some(BTreeSet::new()));
            match reach {
                Some(reach) if !instance.regions.is_empty() => reach.extend(&instance.regions),
                _ => *reach = None,
            }
        }
        let named = |reach: Option<BTreeSet<&String>>| reach.into_iter().flatten().cloned().collect();
        let routes = routes.into_iter().map(|(id, reach)| (id.to_owned(), named(reach))).collect();
        Self { instances, routes }
    }
}

/// Adds those of `candidates` that hang on an instance among `upserts` and are not among them.
fn add_dependents(upserts: &mut Vec<v1::ConfigResource>, candidates: Vec<v1::ConfigResource>) {
    let instances: HashSet<String> =
        upserts.iter().filter_map(instance).map(|found| found.id.clone()).collect();
    let present: HashSet<ResourceKey> = upserts.iter().filter_map(resource_key).collect();
    let is_missing = |resource: &v1::ConfigResource| {
        instances.contains(group(resource))
            && resource_key(resource).is_some_and(|key| !present.contains(&key))
    };
    upserts.extend(candidates.into_iter().filter(is_missing));
}

fn annotate(since: u64, changes: ConfigChanges, regions: &Regions) -> Changes {
    let everywhere: Arc<[String]> = Arc::new([]);
    let mut items: Vec<Item> = changes
        .upserts
        .into_iter()
        .filter_map(|resource| {
            let group = group(&resource).to_owned();
            let regions = match route_id(&resource) {
                Some(id) => Some(regions.routes.get(id).unwrap_or(&everywhere)),
                None => regions.instances.get(&group),
            };
            // What hangs on an instance that is gone meanwhile is about to be removed as well.
            Some(Item { regions: Arc::clone(regions?), group, resource })
        })
        .collect();
    items.sort_by(|one, other| (&one.group, rank(&one.resource)).cmp(&(&other.group, rank(&other.resource))));
    let ConfigChanges { version, removals, left_out, .. } = changes;
    Changes { since, version, items, removals, left_out }
}

/// Routes come first, since their group is empty; within an instance it comes before what hangs on it.
fn rank(resource: &v1::ConfigResource) -> u8 {
    match resource.resource {
        Some(Resource::InboundRoute(_) | Resource::Instance(_)) => 0,
        Some(Resource::OptOutPolicy(_)) => 1,
        Some(Resource::WebhookSubscription(_)) | None => 2,
    }
}

/// The id of an inbound route; None of anything else.
fn route_id(resource: &v1::ConfigResource) -> Option<&str> {
    match &resource.resource {
        Some(Resource::InboundRoute(route)) => Some(&route.id),
        _ => None,
    }
}

fn instance(resource: &v1::ConfigResource) -> Option<&v1::Instance> {
    match &resource.resource {
        Some(Resource::Instance(instance)) => Some(instance),
        _ => None,
    }
}

/// The instance that a resource belongs to; empty for inbound routes.
fn group(resource: &v1::ConfigResource) -> &str {
    match &resource.resource {
        Some(Resource::Instance(instance)) => &instance.id,
        Some(Resource::OptOutPolicy(policy)) => &policy.instance_id,
        Some(Resource::WebhookSubscription(config)) => {
            config.webhook_subscription.as_ref().map_or("", |subscription| &subscription.instance_id)
        }
        Some(Resource::InboundRoute(_)) | None => "",
    }
}

fn resource_key(resource: &v1::ConfigResource) -> Option<ResourceKey> {
    let (kind, id) = match resource.resource.as_ref()? {
        Resource::InboundRoute(route) => ("inbound_route", &route.id),
        Resource::Instance(instance) => ("instance", &instance.id),
        Resource::WebhookSubscription(config) => {
            ("webhook_subscription", &config.webhook_subscription.as_ref()?.id)
        }
        Resource::OptOutPolicy(policy) => ("opt_out_policy", &policy.instance_id),
    };
    Some((kind.to_owned(), id.clone()))
}

/// Changes on their way to an agent, cut into responses.
pub struct Parts {
    changes: Arc<Changes>,
    region: String,
    next_item: usize,
    removals: Vec<v1::ConfigRemoval>,
    is_first: bool,
    is_done: bool,
}

/// One response's share of the changes.
pub struct Part {
    /// Resources that the agent is to have.
    pub upserts: Vec<v1::ConfigResource>,
    /// Resources that the agent is not to have; on the last part only.
    pub removals: Vec<v1::ConfigRemoval>,
    /// Whether it begins a snapshot: what the agent had before is gone.
    pub begins_snapshot: bool,
    /// After the last part the agent has the version of the changes, before it the one it had.
    pub is_last: bool,
}

impl Part {
    /// What the part speaks of.
    pub fn keys(&self) -> Vec<ResourceKey> {
        let removed = self.removals.iter().map(|removal| (removal.r#type.clone(), removal.id.clone()));
        self.upserts.iter().filter_map(resource_key).chain(removed).collect()
    }
}

impl Parts {
    /// `changes` for an agent of `region`.
    pub fn new(changes: Arc<Changes>, region: &str) -> Self {
        let removals = changes.removals.clone();
        Self { changes, region: region.to_owned(), next_item: 0, removals, is_first: true, is_done: false }
    }

    /// The version of the changes.
    pub fn version(&self) -> u64 {
        self.changes.version
    }

    fn is_snapshot(&self) -> bool {
        self.changes.since == 0
    }

    /// The next group that starts at `next_item`, and whether it has to be removed where it is not for: a route,
    /// or what hangs on an instance that is part of the changes.
    fn group(&self) -> (&[Item], bool) {
        let items = &self.changes.items[self.next_item..];
        let Some(first) = items.first() else { return (&[], false) };
        // Routes do not need each other, so each is a group of its own.
        let is_route = first.group.is_empty();
        let end = items.iter().position(|item| is_route || item.group != first.group);
        let end = if is_route { 1 } else { end.unwrap_or(items.len()) };
        (&items[..end], is_route || instance(&first.resource).is_some())
    }
}

impl Iterator for Parts {
    type Item = Part;

    /// At least one part, even when nothing concerns the agent: it learns the version.
    fn next(&mut self) -> Option<Part> {
        if self.is_done {
            return None;
        }
        let mut part = Part {
            upserts: Vec::new(),
            removals: Vec::new(),
            begins_snapshot: self.is_first && self.is_snapshot(),
            is_last: false,
        };
        self.is_first = false;
        let mut bytes = 0;
        while self.next_item < self.changes.items.len() {
            let changes = Arc::clone(&self.changes);
            let (group, is_whole) = self.group();
            let group = &changes.items[self.next_item..self.next_item + group.len()];
            if !serves(&group[0].regions, &self.region) {
                if is_whole && !self.is_snapshot() {
                    let keys = group.iter().filter_map(|item| resource_key(&item.resource));
                    let left = keys.map(|(r#type, id)| v1::ConfigRemoval { r#type, id, deleted: false });
                    self.removals.extend(left);
                }
                self.next_item += group.len();
                continue;
            }
            let size: usize = group.iter().map(|item| item.resource.encoded_len() + 8).sum();
            if bytes > 0 && bytes + size > RESPONSE_BYTES_MAX {
                return Some(part);
            }
            for item in group {
                let size = item.resource.encoded_len() + 8;
                if bytes > 0 && bytes + size > RESPONSE_BYTES_MAX {
                    return Some(part);
                }
                bytes += size;
                part.upserts.push(item.resource.clone());
                self.next_item += 1;
            }
        }
        self.is_done = true;
        part.is_last = true;
        part.removals = std::mem::take(&mut self.removals);
        // What refers to others goes before what is referred to.
        part.removals.sort_by_key(|removal| REMOVAL_ORDER.iter().position(|known| *known == removal.r#type));
        Some(part)
    }
}

mod tenant;
#[cfg(test)]
mod tests;

pub use tenant::{TenantFilter, keep_own_opt_outs};
