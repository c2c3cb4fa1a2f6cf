//! Following the configuration: whoever applies every delta has what a fresh snapshot has.

use std::collections::BTreeMap;

use gateway_proto::v1;
use prost::Message as _;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::task::JoinSet;

use super::{Factory, fixtures::*};
use crate::store::{
    ConfigChanges, Store, inbound_routes, instances, opt_out_policies, webhook_subscriptions,
};

/// What an agent has: every resource by type and id, with its version.
type State = BTreeMap<(String, String), (u64, Vec<u8>)>;

fn apply(state: &mut State, changes: &ConfigChanges) {
    for removal in &changes.removals {
        state.remove(&(removal.r#type.clone(), removal.id.clone()));
    }
    for resource in &changes.upserts {
        let body = v1::ConfigResource { version: 0, ..resource.clone() }.encode_to_vec();
        state.insert(name(resource), (resource.version, body));
    }
}

async fn snapshot(store: &Store) -> State {
    let mut state = State::new();
    apply(&mut state, &store.changes_since(0).await.unwrap());
    state
}

/// Makes one to four random changes in one transaction, which now and then is dropped. Gives whether it was committed.
async fn edit(store: &Store, random: &mut StdRng) -> bool {
    let mut transaction = store.begin_write().await.unwrap();
    let before = *store.watch_version().borrow();
    for _ in 0..random.random_range(1..=4) {
        let number = random.random_range(0..4);
        let (route_id, id) = (format!("route_{number}"), format!("inst_{}", random.random_range(0..6)));
        let subscription_id = format!("sub_{}", random.random_range(0..8));
        let found = instances::find_any(&mut transaction, &id).await.unwrap();
        let has_route = inbound_routes::find_any(&mut transaction, &route_id).await.unwrap().is_some();
        match random.random_range(0..8) {
            0 | 1 => inbound_routes::put(&mut transaction, &mut route(&route_id)).await.unwrap(),
            2 | 3 if has_route => {
                let mut changed = instance(&id, &route_id);
                changed.display_name = random.random_range(0..1_000_000).to_string();
                instances::put(&mut transaction, &mut changed, &id).await.unwrap();
            }
            4 if found.is_some() => {
                let mut config = subscription(&subscription_id, &id);
                if webhook_subscriptions::find_any(&mut transaction, &subscription_id)
                    .await
                    .unwrap()
                    .is_none()
                {
                    webhook_subscriptions::put(&mut transaction, &mut config).await.unwrap();
                }
            }
            5 if found.is_some() => {
                let mut policy = v1::OptOutPolicy { instance_id: id, ..Default::default() };
                let tenant_id = "default".parse().unwrap();
                opt_out_policies::put(&mut transaction, &tenant_id, &mut policy).await.unwrap();
            }
            6 => {
                if webhook_subscriptions::find_any(&mut transaction, &subscription_id)
                    .await
                    .unwrap()
                    .is_some()
                {
                    webhook_subscriptions::delete(&mut transaction, &subscription_id).await.unwrap();
                } else if has_route
                    && instances::ids_of_route(&mut transaction, &route_id, 1).await.unwrap().is_empty()
                {
                    inbound_routes::delete(&mut transaction, &route_id).await.unwrap();
                }
            }
            _ => {
                let is_used = webhook_subscriptions::has_any(&mut transaction, &id).await.unwrap();
                if found.is_some() && !is_used {
                    instances::delete(&mut transaction, &id).await.unwrap();
                }
            }
        }
    }
    if random.random_range(0..8) == 0 {
        return false;
    }
    // Some of the changes come to nothing.
    transaction.commit().await.unwrap();
    *store.watch_version().borrow() > before
}

/// Whatever was changed and removed: who is at any earlier version and gets the changes since has what a snapshot has.
pub(super) async fn deltas_make_the_snapshot(factory: &impl Factory) {
    let store = factory.open().await;
    let mut random = StdRng::seed_from_u64(1);
    // Followers that look after every change, after every third, after every seventh, ...
    let mut followers = [1, 3, 7, 20, 1_000].map(|every| (every, 0, State::new()));
    let (mut committed, mut removals) = (0, 0);
    for step in 1..=120 {
        committed += u64::from(edit(&store, &mut random).await);
        let snapshot = snapshot(&store).await;
        for (every, version, state) in &mut followers {
            if step % *every != 0 && step != 120 {
                continue;
            }
            let changes = store.changes_since(*version).await.unwrap();
            removals += if *every == 1 { changes.removals.len() } else { 0 };
            apply(state, &changes);
            *version = changes.version;
            assert_eq!(*state, snapshot, "at step {step}, looking every {every}");
        }
    }
    assert_eq!(store.version().await.unwrap(), committed);
    assert!(committed > 40 && removals > 10, "{committed} changes, {removals} removals");
}

/// A follower that is woken while others write gets every change once, and ends with what a snapshot has.
pub(super) async fn followers_miss_nothing(factory: &impl Factory) {
    let store = factory.open().await;
    let mut writing = JoinSet::new();
    for seed in 0..3 {
        let store = store.clone();
        writing.spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            for _ in 0..40 {
                edit(&store, &mut random).await;
            }
        });
    }
    let (mut state, mut version) = (State::new(), 0);
    let mut watched = store.watch_version();
    let following = async {
        loop {
            let is_over = writing.is_empty();
            let changes = store.changes_since(version).await.unwrap();
            for resource in &changes.upserts {
                let (kind, id) = name(resource);
                // A route may go along with an instance without having changed itself.
                let is_new = resource.version > version || kind == "inbound_route";
                assert!(is_new && resource.version <= changes.version, "{kind} {id} since {version}");
            }
            apply(&mut state, &changes);
            version = changes.version;
            if is_over {
                break;
            }
            tokio::select! {
                changed = watched.changed() => changed.unwrap(),
                Some(written) = writing.join_next() => written.unwrap(),
            }
        }
    };
    tokio::time::timeout(DEADLINE, following).await.unwrap();
    assert!(version > 40, "{version}");
    assert_eq!(version, store.version().await.unwrap());
    assert_eq!(state, snapshot(&store).await);
}
