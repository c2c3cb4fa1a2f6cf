//! What one agent is sent of a change.

use super::*;
use crate::store::webhook_subscriptions;

fn route(id: &str) -> v1::ConfigResource {
    let route = v1::InboundRouteConfig { id: id.into(), ..Default::default() };
    v1::ConfigResource { version: 1, resource: Some(Resource::InboundRoute(route)) }
}

fn instance_in(id: &str, regions: &[&str]) -> v1::ConfigResource {
    let regions = regions.iter().map(|region| (*region).to_owned()).collect();
    let instance = v1::Instance { id: id.into(), regions, ..Default::default() };
    v1::ConfigResource { version: 1, resource: Some(Resource::Instance(instance)) }
}

fn subscription(id: &str, instance_id: &str, padding: usize) -> v1::ConfigResource {
    let subscription = v1::WebhookSubscription {
        id: id.into(),
        instance_id: instance_id.into(),
        display_name: "x".repeat(padding),
        ..Default::default()
    };
    let config =
        v1::WebhookSubscriptionConfig { webhook_subscription: Some(subscription), ..Default::default() };
    v1::ConfigResource { version: 1, resource: Some(Resource::WebhookSubscription(config)) }
}

fn parts(since: u64, upserts: Vec<v1::ConfigResource>, region: &str) -> Vec<Part> {
    let regions = Regions::of(&upserts);
    let changes = ConfigChanges { version: 9, upserts, ..Default::default() };
    Parts::new(Arc::new(annotate(since, changes, &regions)), region).collect()
}

fn ids(part: &Part) -> Vec<String> {
    part.keys().into_iter().map(|(_, id)| id).collect()
}

fn on_route(mut resource: v1::ConfigResource, route_id: &str) -> v1::ConfigResource {
    if let Some(Resource::Instance(instance)) = &mut resource.resource {
        instance.inbound_route_id = route_id.into();
    }
    resource
}

/// A region gets the routes of the instances that it serves, with their secrets, and no other's; a route
/// without any instance goes everywhere, so that its callbacks are taken and kept as unrouted. A route that has
/// left the region is removed after the instances that are on it.
#[test]
fn routes_go_where_their_instances_are_served() {
    let upserts = || {
        vec![
            route("route_eu"),
            route("route_us"),
            route("route_both"),
            route("route_all"),
            route("route_new"),
            on_route(instance_in("inst_1", &["eu"]), "route_eu"),
            on_route(instance_in("inst_2", &["us"]), "route_us"),
            on_route(instance_in("inst_3", &["us"]), "route_both"),
            on_route(instance_in("inst_4", &["eu"]), "route_both"),
            on_route(instance_in("inst_5", &["ap"]), "route_all"),
            on_route(instance_in("inst_6", &[]), "route_all"),
        ]
    };
    let snapshot = parts(0, upserts(), "eu");
    let sent = ids(&snapshot[0]);
    assert_eq!(sent, ["route_eu", "route_both", "route_all", "route_new", "inst_1", "inst_4", "inst_6"]);
    let delta = parts(3, upserts(), "eu");
    let removed: Vec<_> = delta[0].removals.iter().map(|removal| removal.id.as_str()).collect();
    assert_eq!(removed, ["inst_2", "inst_3", "inst_5", "route_us"]);
    assert!(delta[0].removals.iter().all(|removal| !removal.deleted));
}

/// An agent gets what its region serves, each instance before what hangs on it.
#[test]
fn snapshot_is_limited_to_the_region() {
    let upserts = vec![
        subscription("sub_eu", "inst_eu", 0),
        subscription("sub_us", "inst_us", 0),
        instance_in("inst_us", &["us", "ap"]),
        instance_in("inst_eu", &["eu"]),
        instance_in("inst_all", &[]),
        route("route_1"),
    ];
    let parts = parts(0, upserts, "eu");
    assert_eq!(parts.len(), 1);
    assert_eq!(ids(&parts[0]), ["route_1", "inst_all", "inst_eu", "sub_eu"]);
    assert!(parts[0].begins_snapshot && parts[0].is_last && parts[0].removals.is_empty());
}

/// When an instance leaves the agent's region, the agent is told to drop it and what hangs on it.
#[test]
fn leaving_a_region_removes() {
    let upserts = vec![instance_in("inst_1", &["us"]), subscription("sub_1", "inst_1", 0)];
    let parts = parts(3, upserts, "eu");
    assert!(parts[0].upserts.is_empty() && !parts[0].begins_snapshot);
    assert_eq!(ids(&parts[0]), ["sub_1", "inst_1"], "what refers to others goes first");
    assert_eq!(parts[0].removals.len(), 2);
    assert!(parts[0].removals.iter().all(|removal| !removal.deleted), "it is only not for this agent");
}

/// What is deleted is said to be deleted, which is not the same as leaving a region.
#[tokio::test]
async fn deleted_is_told_from_left() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    for id in ["sub_1", "sub_2"] {
        let mut transaction = store.begin_write().await.unwrap();
        webhook_subscriptions::delete(&mut transaction, id).await.unwrap();
        transaction.commit().await.unwrap();
    }
    let changes = store.changes_since(1).await.unwrap();
    let removals: Vec<_> =
        changes.removals.iter().map(|removal| (removal.id.as_str(), removal.deleted)).collect();
    assert_eq!(removals, [("sub_2", true)]);
}

/// Even when nothing concerns the agent there is a response, so that it learns the version.
#[test]
fn an_empty_change_is_said() {
    let parts = parts(3, vec![], "eu");
    assert_eq!(parts.len(), 1);
    assert!(parts[0].is_last);
}

/// A large configuration is cut into responses of bounded size; an instance stays with its subscriptions
/// where they fit, nothing is lost, and only the last part is the last.
#[test]
fn large_changes_are_cut() {
    let mut upserts = Vec::new();
    for number in 0..40 {
        let instance_id = format!("inst_{number:02}");
        upserts.push(instance_in(&instance_id, &[]));
        upserts
            .extend((0..5).map(|place| subscription(&format!("sub_{number}_{place}"), &instance_id, 50_000)));
    }
    // One instance that does not fit into any response.
    upserts.push(instance_in("inst_large", &[]));
    upserts.extend((0..100).map(|place| subscription(&format!("sub_large_{place}"), "inst_large", 50_000)));
    let total = upserts.len();
    let parts = parts(0, upserts, "eu");
    assert!(parts.len() > 4);
    assert_eq!(parts.iter().map(|part| part.upserts.len()).sum::<usize>(), total);
    for (place, part) in parts.iter().enumerate() {
        let bytes: usize = part.upserts.iter().map(prost::Message::encoded_len).sum();
        assert!(bytes <= RESPONSE_BYTES_MAX);
        assert_eq!((part.begins_snapshot, part.is_last), (place == 0, place == parts.len() - 1));
        let begins_whole = instance(&part.upserts[0]).is_some() || group(&part.upserts[0]) == "inst_large";
        assert!(begins_whole, "part {place} begins in the middle of an instance");
    }
}
