//! What is expected, against what is sent.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;
use crate::{
    publish::{Parts, Publisher, TenantFilter},
    store::{conformance::fixtures::*, inbound_routes, instances, opt_out_policies, webhook_subscriptions},
};

const REGIONS: [&str; 2] = ["eu", "us"];
const TENANTS: [&str; 2] = ["default", "acme"];

/// An agent that takes everything that it is sent.
struct Follower {
    region: &'static str,
    tenant_id: Option<&'static str>,
    version: u64,
    has: HashMap<(String, String), u64>,
}

impl Follower {
    fn digests(&self) -> Digests {
        let mut digests = Digests::default();
        self.has.iter().for_each(|((resource_type, id), version)| digests.add(resource_type, id, *version));
        digests
    }

    async fn follow(&mut self, store: &Store, publisher: &Publisher) {
        let newest = store.version().await.unwrap();
        let changes = publisher.changes(self.version, newest).await.unwrap();
        let mut filter = match self.tenant_id {
            Some(tenant_id) => Some(TenantFilter::read(store, tenant_id).await.unwrap()),
            None => None,
        };
        for mut part in Parts::new(changes, self.region) {
            if let Some(filter) = &mut filter {
                filter.apply(&mut part);
            }
            if part.begins_snapshot {
                self.has.clear();
            }
            for upsert in &part.upserts {
                let (resource_type, id) = gateway_core::snapshot::digest::name_of(upsert).unwrap();
                self.has.insert((resource_type.to_owned(), id.to_owned()), upsert.version);
            }
            for removal in part.removals {
                self.has.remove(&(removal.r#type, removal.id));
            }
        }
        self.version = newest;
    }
}

/// One random change of routes, instances, policies and webhook subscriptions, where it is allowed.
async fn edit(store: &Store, random: &mut StdRng) {
    let tenant_id = TENANTS[random.random_range(0..2)];
    let of_platform = random.random_range(0..4) == 0;
    let route_id =
        format!("route_{}_{}", if of_platform { "all" } else { tenant_id }, random.random_range(0..2));
    let instance_id = format!("inst_{tenant_id}_{}", random.random_range(0..3));
    let subscription_id = format!("sub_{tenant_id}_{}", random.random_range(0..4));
    let mut tx = store.begin_write().await.unwrap();
    let instance = instances::find_any(&mut tx, &instance_id).await.unwrap();
    let has_route = inbound_routes::find_any(&mut tx, &route_id).await.unwrap().is_some();
    let subscription = webhook_subscriptions::find_any(&mut tx, &subscription_id).await.unwrap();
    match random.random_range(0..10) {
        0 | 1 => {
            let owner = if of_platform { "" } else { tenant_id };
            inbound_routes::put(&mut tx, &mut route_of(owner, &route_id)).await.unwrap();
        }
        2..=4 if has_route => {
            let mut changed = instance_of(tenant_id, &instance_id, &route_id);
            let count = random.random_range(0..=REGIONS.len());
            changed.regions = REGIONS[..count].iter().map(|region| (*region).to_owned()).collect();
            if random.random_range(0..2) == 0 {
                changed.regions.reverse();
                changed.regions.truncate(1);
            }
            instances::put(&mut tx, &mut changed, &instance_id).await.unwrap();
        }
        5 | 6 if instance.is_some() && subscription.is_none() => {
            let mut config = subscription_of(tenant_id, &subscription_id, &instance_id);
            webhook_subscriptions::put(&mut tx, &mut config).await.unwrap();
        }
        5 | 6 => {
            if let Some(mut config) = subscription {
                webhook_subscriptions::put(&mut tx, &mut config).await.unwrap();
            }
        }
        7 if instance.is_some() => {
            let mut policy = v1::OptOutPolicy { instance_id: instance_id.clone(), ..Default::default() };
            opt_out_policies::put(&mut tx, &tenant_id.parse().unwrap(), &mut policy).await.unwrap();
        }
        8 if subscription.is_some() => {
            webhook_subscriptions::delete(&mut tx, &subscription_id).await.unwrap();
        }
        9 if has_route => {
            // Refused while an instance is on it.
            if inbound_routes::delete(&mut tx, &route_id).await.is_err() {
                return;
            }
        }
        _ if instance.is_some() => {
            if instances::delete(&mut tx, &instance_id).await.is_err() {
                return;
            }
        }
        _ => return,
    }
    tx.commit().await.unwrap();
}

/// Agents of every region, of the platform and of tenants, that follow random changes, each at its own pace, have at every
/// version what is expected at it: what is sent and what is expected are found in two ways.
#[tokio::test]
async fn whoever_follows_has_what_is_expected() {
    for seed in 0..6 {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).await.unwrap();
        let publisher = Publisher::new(store.clone());
        put_tenant(&store, "acme").await;
        let mut random = StdRng::seed_from_u64(seed);
        let mut followers = Vec::new();
        for region in REGIONS {
            for tenant_id in [None, Some("default"), Some("acme")] {
                // One of them hears of every change, the other now and then.
                for _ in 0..2 {
                    followers.push(Follower { region, tenant_id, version: 0, has: HashMap::new() });
                }
            }
        }
        for number in 0..150 {
            edit(&store, &mut random).await;
            let expected = Expected::read(&store).await.unwrap().unwrap();
            assert_eq!(expected.version, store.version().await.unwrap());
            for (place, follower) in followers.iter_mut().enumerate() {
                if place % 2 == 1 && random.random_range(0..6) != 0 {
                    continue;
                }
                follower.follow(&store, &publisher).await;
                let should = expected.of(follower.region, follower.tenant_id);
                let differences = should.differences(&follower.digests().to_proto());
                let (region, tenant_id) = (follower.region, follower.tenant_id);
                assert_eq!(
                    differences,
                    [],
                    "seed {seed}, change {number}, {region}, {tenant_id:?}, {:?}",
                    follower.has
                );
            }
        }
    }
}

/// What is asked for is read once, and again only for a later version.
#[tokio::test]
async fn what_is_asked_for_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    put_route(&store, route("route_1")).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let supervisor = Supervisor::new(stop.clone());
    let expectations = Expectations::default();
    let mut known = expectations.watch();
    spawn(&expectations, &store, &supervisor);
    assert!(known.borrow().is_none());
    for round in 1..=2 {
        let version = store.version().await.unwrap();
        expectations.want(version);
        tokio::time::timeout(DEADLINE, known.changed()).await.unwrap().unwrap();
        let expected = known.borrow_and_update().clone().unwrap();
        assert_eq!(expected.version, version);
        assert_eq!(expected.of("eu", None).to_proto()[0].count, round);
        expectations.want(version);
        expectations.want(version - 1);
        assert!(!known.has_changed().unwrap());
        put_route(&store, route(&format!("route_of_{round}"))).await;
    }
    stop.cancel();
    supervisor.wait(DEADLINE).await.unwrap();
}

/// The id of a webhook subscription that was deleted is in use again, for an instance of another region, before an agent
/// hears of either: it does not keep the deleted one.
#[tokio::test]
async fn an_id_that_is_used_again_elsewhere_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let publisher = Publisher::new(store.clone());
    put_route(&store, route("route_1")).await;
    for (id, region) in [("inst_1", "eu"), ("inst_2", "us")] {
        let regions = vec![region.to_owned()];
        put_instance(&store, v1::Instance { regions, ..instance(id, "route_1") }).await.unwrap();
    }
    let create = async |instance_id: &str| {
        let mut tx = store.begin_write().await.unwrap();
        webhook_subscriptions::put(&mut tx, &mut subscription("sub_1", instance_id)).await.unwrap();
        tx.commit().await.unwrap();
    };
    create("inst_1").await;
    let mut followers =
        REGIONS.map(|region| Follower { region, tenant_id: None, version: 0, has: HashMap::new() });
    for follower in &mut followers {
        follower.follow(&store, &publisher).await;
    }
    let mut tx = store.begin_write().await.unwrap();
    webhook_subscriptions::delete(&mut tx, "sub_1").await.unwrap();
    tx.commit().await.unwrap();
    create("inst_2").await;
    let expected = Expected::read(&store).await.unwrap().unwrap();
    for mut follower in followers {
        follower.follow(&store, &publisher).await;
        let should = expected.of(follower.region, None);
        assert_eq!(should.differences(&follower.digests().to_proto()), [], "{}", follower.region);
    }
}
