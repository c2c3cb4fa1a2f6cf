//! From a change in the store to what one agent is sent.
//!
//! All config streams share one [`Publisher`]: agents that have the same version need the same changes, so
//! they are read once. What an agent gets depends on its region: the instances that it serves, their inbound
//! routes, webhook subscriptions and opt-out policies. An inbound route without any instance goes to every
//! region, so that callbacks for numbers that nobody has claimed yet are taken somewhere. When an instance
//! changes, its route and everything that hangs on it go along, although they have not changed themselves:
//! perhaps the instance has just come into the agent's region. Sending a resource again does no harm.
//!
//! What cannot be read is named where it would be sent: an agent that has it keeps its last good value. Of an instance that
//! cannot be read nobody knows its regions, so what hangs on it is not sent to anybody, and named to everybody.
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
        ConfigChanges, Store, StoreError,
        damaged::{LeftOut, Unread},
        instances, opt_out_policies,
        route_reach::{self, Reach},
        webhook_subscriptions,
    },
};

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
    /// Ids of webhook subscriptions that were deleted and are in use again. An agent that is not sent the new one may have
    /// the one before.
    reused: HashSet<String>,
    /// What cannot be read, whatever region it is for.
    pub left_out: Vec<LeftOut>,
}

struct Item {
    /// What travels together: the instance; empty for inbound routes.
    group: String,
    reach: Arc<Reach>,
    content: Content,
}

enum Content {
    Whole(Box<v1::ConfigResource>),
    /// It cannot be read.
    Unread(v1::ConfigUnreadable),
}

impl Content {
    fn instance(&self) -> Option<&str> {
        match self {
            Self::Whole(resource) => instance(resource).map(|found| found.id.as_str()),
            Self::Unread(unread) => (unread.r#type == instances::TYPE).then_some(unread.id.as_str()),
        }
    }

    fn key(&self) -> Option<ResourceKey> {
        match self {
            Self::Whole(resource) => resource_key(resource),
            Self::Unread(unread) => Some((unread.r#type.clone(), unread.id.clone())),
        }
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Whole(resource) => resource.encoded_len(),
            Self::Unread(unread) => unread.encoded_len(),
        }
    }

    /// Routes come first, since their group is empty; within an instance it comes before what hangs on it.
    fn rank(&self) -> u8 {
        match self {
            Self::Whole(resource) => rank(resource),
            Self::Unread(unread) if unread.r#type == "webhook_subscription" => 2,
            Self::Unread(unread) => u8::from(unread.r#type == "opt_out_policy"),
        }
    }

    /// Its name, to agents that may have it and are not sent it.
    fn unread(&self) -> Option<v1::ConfigUnreadable> {
        match self {
            Self::Unread(unread) => Some(unread.clone()),
            Self::Whole(resource) => {
                let (r#type, id) = resource_key(resource)?;
                Some(v1::ConfigUnreadable { r#type, id, version: resource.version })
            }
        }
    }
}

/// What becomes of a resource for an agent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Sent,
    /// It is named, and what the agent has of it stays.
    Kept,
    /// It is not for the agent.
    Left,
}

fn fate(reach: &Reach, region: &str) -> Fate {
    match reach.is_unsure {
        false if serves(&reach.regions, region) => Fate::Sent,
        false => Fate::Left,
        true if reach.regions.iter().any(|served| served == region) => Fate::Sent,
        true => Fate::Kept,
    }
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
            Regions::of(&changes.upserts, &changes.left_out)
        } else if changes.upserts.len() > LOOKUPS_MAX {
            let everything = self.store.changes_since(0).await?;
            let regions = Regions::of(&everything.upserts, &everything.left_out);
            add_dependents(&mut changes, everything);
            regions
        } else {
            self.look_up(&mut changes).await?
        };
        let changes = Arc::new(annotate(since, changes, &regions));
        *newest = Arc::downgrade(&changes);
        Ok(changes)
    }

    /// Adds what hangs on the instances among the changes, and finds the regions of all others.
    async fn look_up(&self, changes: &mut ConfigChanges) -> Result<Regions, StoreError> {
        let mut regions = Regions::of(&changes.upserts, &changes.left_out);
        let unread_routes = changes.left_out.iter().filter(|one| one.instance_id.is_empty());
        let route_ids = changes.upserts.iter().filter_map(route_id);
        for route_id in route_ids.chain(unread_routes.map(|one| one.what.id.as_str())) {
            // The instances among the changes are not all that it has.
            let reach = route_reach::regions(&mut self.store.reader().await?, route_id).await?;
            regions.routes.insert(route_id.to_owned(), reach.into());
        }
        let mut dependents = ConfigChanges::default();
        for instance_id in regions.instances.keys() {
            self.add_dependents_of(instance_id, &mut dependents).await?;
        }
        add_dependents(changes, dependents);
        let groups = changes.upserts.iter().map(group);
        let groups = groups.chain(changes.left_out.iter().map(|one| one.instance_id.as_str()));
        for instance_id in groups.filter(|group| !group.is_empty()) {
            if regions.instances.contains_key(instance_id) {
                continue;
            }
            let reach = match self.store.instance(instance_id).await {
                Ok(Some(instance)) => Reach { regions: instance.regions, is_unsure: false },
                Ok(None) => continue,
                Err(failure) if failure.is_damage() => UNSURE,
                Err(failure) => return Err(failure),
            };
            regions.instances.insert(instance_id.to_owned(), reach.into());
        }
        Ok(regions)
    }

    /// Adds the opt-out policy and the webhook subscriptions of an instance to `found`.
    async fn add_dependents_of(
        &self,
        instance_id: &str,
        found: &mut ConfigChanges,
    ) -> Result<(), StoreError> {
        let mut connection = self.store.reader().await?;
        let ConfigChanges { upserts, left_out, .. } = found;
        upserts.extend(opt_out_policies::of_instance(&mut connection, instance_id, left_out).await?);
        upserts.extend(webhook_subscriptions::of_instance(&mut connection, instance_id, left_out).await?);
        Ok(())
    }
}

/// Of an instance that cannot be read.
const UNSURE: Reach = Reach { regions: Vec::new(), is_unsure: true };

/// Where resources go, by their ids.
struct Regions {
    instances: HashMap<String, Arc<Reach>>,
    routes: HashMap<String, Arc<Reach>>,
}

impl Regions {
    /// As the instances among `upserts` say. A route that none of them is on is not in it.
    fn of(upserts: &[v1::ConfigResource], left_out: &[Unread]) -> Self {
        let mut instances: HashMap<String, Arc<Reach>> = HashMap::new();
        // None: one of its instances is served everywhere.
        let mut routes: HashMap<&str, Option<BTreeSet<&String>>> = HashMap::new();
        for instance in upserts.iter().filter_map(instance) {
            let reach = Reach { regions: instance.regions.clone(), is_unsure: false };
            instances.insert(instance.id.clone(), reach.into());
            let reach = routes.entry(&instance.inbound_route_id).or_insert_with(|| Some(BTreeSet::new()));
            match reach {
                Some(reach) if !instance.regions.is_empty() => reach.extend(&instance.regions),
                _ => *reach = None,
            }
        }
        let mut unsure: HashSet<&str> = HashSet::new();
        for unread in left_out.iter().filter(|one| one.what.resource_type == instances::TYPE) {
            instances.insert(unread.what.id.clone(), UNSURE.into());
            unsure.insert(&unread.inbound_route_id);
            routes.entry(&unread.inbound_route_id).or_insert_with(|| Some(BTreeSet::new()));
        }
        let reach = |(id, reach): (&str, Option<BTreeSet<&String>>)| {
            let is_unsure = reach.is_some() && unsure.contains(id);
            let regions = reach.into_iter().flatten().cloned().collect();
            (id.to_owned(), Arc::new(Reach { regions, is_unsure }))
        };
        Self { instances, routes: routes.into_iter().map(reach).collect() }
    }
}

/// Adds those of `candidates` that hang on an instance among the changes and are not among them.
fn add_dependents(changes: &mut ConfigChanges, candidates: ConfigChanges) {
    let instances: HashSet<String> =
        changes.upserts.iter().filter_map(instance).map(|found| found.id.clone()).collect();
    let present: HashSet<ResourceKey> = changes.upserts.iter().filter_map(resource_key).collect();
    let is_missing = |resource: &v1::ConfigResource| {
        instances.contains(group(resource))
            && resource_key(resource).is_some_and(|key| !present.contains(&key))
    };
    changes.upserts.extend(candidates.upserts.into_iter().filter(is_missing));
    for unread in candidates.left_out {
        let hangs_on_one =
            unread.what.resource_type != instances::TYPE && instances.contains(&unread.instance_id);
        if hangs_on_one && !changes.left_out.contains(&unread) {
            changes.left_out.push(unread);
        }
    }
}

fn annotate(since: u64, changes: ConfigChanges, regions: &Regions) -> Changes {
    let everywhere: Arc<Reach> = Arc::default();
    let reach_of = |route_id: Option<&str>, group: &str| match route_id {
        Some(id) => Some(Arc::clone(regions.routes.get(id).unwrap_or(&everywhere))),
        // What hangs on an instance that is gone meanwhile is about to be removed as well.
        None => regions.instances.get(group).cloned(),
    };
    let ConfigChanges { version, upserts, removals, left_out } = changes;
    let whole = upserts.into_iter().filter_map(|resource| {
        let group = group(&resource).to_owned();
        let reach = reach_of(route_id(&resource), &group)?;
        Some(Item { reach, group, content: Content::Whole(resource.into()) })
    });
    let unread = left_out.iter().filter_map(|Unread { what, version, instance_id, .. }| {
        let reach = reach_of(instance_id.is_empty().then_some(what.id.as_str()), instance_id)?;
        let (r#type, id) = (what.resource_type.to_owned(), what.id.clone());
        let content = Content::Unread(v1::ConfigUnreadable { r#type, id, version: *version });
        Some(Item { reach, group: instance_id.clone(), content })
    });
    let mut items: Vec<Item> = whole.chain(unread).collect();
    items.sort_by(|one, other| (&one.group, one.content.rank()).cmp(&(&other.group, other.content.rank())));
    let left_out = left_out.into_iter().map(|unread| unread.what).collect();
    let reused = reused(&items, &removals);
    Changes { since, version, items, removals, reused, left_out }
}

/// Ids of webhook subscriptions that are both there and deleted.
fn reused(items: &[Item], removals: &[v1::ConfigRemoval]) -> HashSet<String> {
    let subscriptions = removals.iter().filter(|removal| removal.r#type == webhook_subscriptions::TYPE);
    let removed: HashSet<&str> = subscriptions.map(|removal| removal.id.as_str()).collect();
    if removed.is_empty() {
        return HashSet::new();
    }
    let subscriptions = items.iter().filter_map(|item| item.content.key());
    let subscriptions = subscriptions.filter(|(kind, _)| kind == webhook_subscriptions::TYPE);
    subscriptions.map(|(_, id)| id).filter(|id| removed.contains(id.as_str())).collect()
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

pub mod divergences;
pub mod expected;
mod parts;
mod tenant;
#[cfg(test)]
mod tests;

pub use divergences::Divergences;
pub use expected::{Expectations, Expected};
pub use parts::{Part, Parts};
pub use tenant::{TenantFilter, keep_own_opt_outs};
