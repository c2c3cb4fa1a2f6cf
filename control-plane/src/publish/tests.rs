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
    let regions = Regions::of(&upserts, &[]);
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
        assert!(bytes <= parts::RESPONSE_BYTES_MAX);
        assert_eq!((part.begins_snapshot, part.is_last), (place == 0, place == parts.len() - 1));
        let begins_whole = instance(&part.upserts[0]).is_some() || group(&part.upserts[0]) == "inst_large";
        assert!(begins_whole, "part {place} begins in the middle of an instance");
    }
}

fn unread(resource_type: &'static str, id: &str, instance_id: &str, route_id: &str) -> Unread {
    let what = LeftOut { resource_type, id: id.into() };
    Unread { what, version: 7, instance_id: instance_id.into(), inbound_route_id: route_id.into() }
}

/// The parts, with what cannot be read.
fn parts_around(since: u64, upserts: Vec<v1::ConfigResource>, left_out: Vec<Unread>, region: &str) -> Part {
    let regions = Regions::of(&upserts, &left_out);
    let changes = ConfigChanges { version: 9, upserts, left_out, ..Default::default() };
    let mut parts = Parts::new(Arc::new(annotate(since, changes, &regions)), region);
    let part = parts.next().unwrap();
    assert!(parts.next().is_none());
    part
}

fn named(part: &Part) -> Vec<(&str, &str, u64)> {
    let named = part.unreadable.iter();
    let named = named.map(|(_, named)| (named.r#type.as_str(), named.id.as_str(), named.version));
    let mut named: Vec<_> = named.collect();
    named.sort_unstable();
    named
}

/// What cannot be read is named to those who would be sent it, so that a snapshot does not take their last good value
/// away; others do not hear of it, and one whose region an instance has left is told to drop it.
#[test]
fn unreadable_resources_are_named_where_they_would_be_sent() {
    let upserts = || {
        vec![
            on_route(instance_in("inst_eu", &["eu"]), "route_eu"),
            on_route(instance_in("inst_us", &["us"]), "route_us"),
            subscription("sub_whole", "inst_eu", 0),
        ]
    };
    let left_out = || {
        vec![
            unread("inbound_route", "route_eu", "", ""),
            unread("webhook_subscription", "sub_eu", "inst_eu", ""),
            unread("opt_out_policy", "inst_us", "inst_us", ""),
        ]
    };
    let snapshot = parts_around(0, upserts(), left_out(), "eu");
    assert_eq!(ids(&snapshot), ["inst_eu", "sub_whole"]);
    assert_eq!(named(&snapshot), [("inbound_route", "route_eu", 7), ("webhook_subscription", "sub_eu", 7)]);
    let elsewhere = parts_around(0, upserts(), left_out(), "us");
    assert_eq!(named(&elsewhere), [("opt_out_policy", "inst_us", 7)]);
    let delta = parts_around(3, upserts(), left_out(), "us");
    let removed: Vec<_> = delta.removals.iter().map(|removal| removal.id.as_str()).collect();
    assert_eq!(removed, ["sub_whole", "sub_eu", "inst_eu", "route_eu"]);
}

/// Nobody knows for which regions an instance is that cannot be read: whoever has it keeps it with its route and all that
/// hangs on it, and nobody is sent any of that who is not certain to get it.
#[test]
fn what_hangs_on_an_unreadable_instance_stays_where_it_is() {
    let upserts = || {
        vec![
            route("route_1"),
            route("route_alone"),
            on_route(instance_in("inst_eu", &["eu"]), "route_1"),
            subscription("sub_1", "inst_lost", 0),
        ]
    };
    let left_out = || {
        vec![
            unread("instance", "inst_lost", "inst_lost", "route_1"),
            unread("instance", "inst_alone", "inst_alone", "route_alone"),
        ]
    };
    let lost =
        [("instance", "inst_alone", 7), ("instance", "inst_lost", 7), ("webhook_subscription", "sub_1", 1)];
    for since in [0, 3] {
        let certain = parts_around(since, upserts(), left_out(), "eu");
        assert_eq!(ids(&certain), ["route_1", "inst_eu"]);
        assert_eq!(named(&certain)[0], ("inbound_route", "route_alone", 1));
        assert_eq!(named(&certain)[1..], lost);
        let other = parts_around(since, upserts(), left_out(), "us");
        assert_eq!(other.upserts.len(), 0);
        let routes = [("inbound_route", "route_1", 1), ("inbound_route", "route_alone", 1)];
        assert_eq!(named(&other), [&routes[..], &lost[..]].concat());
        let removed: Vec<_> = other.removals.iter().map(|removal| removal.id.as_str()).collect();
        assert_eq!(removed, if since == 0 { vec![] } else { vec!["inst_eu"] });
    }
}

/// A damage between two versions reaches the delta of whoever follows, and the snapshot of whoever comes: both name it. An
/// agent of another tenant hears of none of it.
#[tokio::test]
async fn damage_is_named_in_deltas_and_snapshots() {
    use crate::store::{conformance::fixtures as rows, sqlite::testing};
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    rows::one_of_each(&store).await;
    rows::put_policy(&store, "inst_1").await;
    rows::put_subscription(&store, rows::subscription("sub_2", "inst_1")).await;
    let damage = "UPDATE instances SET body = x'ff'; UPDATE opt_out_policies SET body = x'ff';
                  UPDATE webhook_subscriptions SET config = x'00' WHERE id = 'sub_1';
                  UPDATE inbound_routes SET config = x'00'";
    testing::execute(directory.path(), damage).await;
    let publisher = Publisher::new(store.clone());
    let all = [
        ("inbound_route", "route_1", 1),
        ("instance", "inst_1", 2),
        ("opt_out_policy", "inst_1", 4),
        ("webhook_subscription", "sub_1", 3),
        ("webhook_subscription", "sub_2", 5),
    ];
    for (since, expected) in [(0, &all[..]), (1, &all[..]), (4, &all[4..])] {
        let changes = publisher.changes(since, 5).await.unwrap();
        let mut part = Parts::new(changes, "eu").next().unwrap();
        assert_eq!((named(&part), part.upserts.len()), (expected.to_vec(), 0), "since {since}");
        TenantFilter::read(&store, "default").await.unwrap().apply(&mut part);
        assert_eq!(named(&part), expected, "since {since}");
        TenantFilter::read(&store, "other").await.unwrap().apply(&mut part);
        assert_eq!(named(&part), []);
    }
}
