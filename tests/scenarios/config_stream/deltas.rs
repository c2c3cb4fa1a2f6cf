//! An agent is sent what it does not have and what concerns it, and no more.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gateway_proto::v1::{self, config_resource::Resource};
use gateway_tests::{
    ControlPlane, Proxy, figure,
    proxy::Way,
    raw::RawAgent,
    world::{add_instance, create_instance, subscribe, subscribe_instance, update},
};

/// How many resources there are when one changes; `just soak` sets 100,000.
const RESOURCES_ENV: &str = "GATEWAY_TESTS_RESOURCES";
const RESOURCES_DEFAULT: usize = 3_000;
/// The most that an agent is sent for one change, all bytes of the connection counted.
const DELTA_BYTES_MAX: u64 = 5_000;
/// Calls at the same time.
const AT_ONCE: usize = 32;

async fn version(control_plane: &ControlPlane) -> anyhow::Result<u64> {
    let request = v1::ListAgentsRequest::default();
    Ok(control_plane.client().agents().list_agents(request).await?.into_inner().config_version)
}

/// The ids of the resources in responses.
fn ids(responses: &[v1::StreamConfigResponse]) -> BTreeSet<String> {
    let id = |resource: &v1::ConfigResource| match resource.resource.as_ref()? {
        Resource::InboundRoute(route) => Some(route.id.clone()),
        Resource::Instance(instance) => Some(instance.id.clone()),
        Resource::WebhookSubscription(config) => Some(config.webhook_subscription.as_ref()?.id.clone()),
        Resource::OptOutPolicy(policy) => Some(format!("policy of {}", policy.instance_id)),
    };
    responses.iter().flat_map(|response| &response.upserts).filter_map(id).collect()
}

fn removed(responses: &[v1::StreamConfigResponse]) -> BTreeSet<(String, bool)> {
    let removals = responses.iter().flat_map(|response| &response.removals);
    removals.map(|removal| (removal.id.clone(), removal.deleted)).collect()
}

/// An agent that comes back is sent the change that it missed and nothing else: one of thousands of resources
/// costs less than 5 KB on the wire, everything of the connection counted.
#[tokio::test]
async fn reconnecting_costs_the_change_only() {
    let count = std::env::var(RESOURCES_ENV).map_or(RESOURCES_DEFAULT, |count| count.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    let create = async |number: usize| {
        let url = format!("http://127.0.0.1:1025/{number}");
        subscribe(control_plane.client(), &url, &["message.received"]).await
    };
    let subscriptions: Vec<_> =
        stream::iter(0..count).map(create).buffer_unordered(AT_ONCE).try_collect().await.unwrap();
    let proxy = Proxy::start(control_plane.grpc_addr()).await.unwrap();
    let agent = RawAgent::enroll(&control_plane, "test-region").await.unwrap().at(proxy.url());
    let known = version(&control_plane).await.unwrap();
    let mut session = agent.open_config(agent.hello()).await.unwrap();
    let snapshot = session.follow_to(known).await.unwrap();
    assert!(snapshot[0].snapshot && ids(&snapshot).len() >= count);
    let whole = proxy.bytes(Way::Down);
    drop(session);
    proxy.until_open(0).await;

    let change = v1::WebhookSubscription { display_name: "changed".to_owned(), ..Default::default() };
    update(control_plane.client(), &subscriptions[0].id, change, "display_name").await.unwrap();
    let hello = v1::ConfigHello {
        version: known,
        store_epoch: snapshot[0].store_epoch.clone(),
        opt_out_cursor: snapshot[snapshot.len() - 1].opt_out_cursor,
        ..agent.hello()
    };
    let mut session = agent.open_config(hello).await.unwrap();
    let delta = session.follow_to(known + 1).await.unwrap();
    let sent = proxy.bytes(Way::Down) - whole;
    figure(format_args!("one change of {count} resources: {sent} bytes sent; everything: {whole}"));
    assert!(!delta[0].snapshot);
    assert_eq!(ids(&delta), BTreeSet::from([subscriptions[0].id.clone()]));
    assert!(sent < DELTA_BYTES_MAX, "{sent} bytes");
}

async fn add_regional(control_plane: &ControlPlane, id: &str, regions: &[&str]) -> anyhow::Result<String> {
    add_instance(control_plane.client(), id, "route-test", &format!("number-{id}")).await?;
    set_regions(control_plane, id, regions).await?;
    let url = format!("http://127.0.0.1:1025/{id}");
    Ok(subscribe_instance(control_plane.client(), id, &url, &["*"]).await?.id)
}

async fn set_regions(control_plane: &ControlPlane, id: &str, regions: &[&str]) -> anyhow::Result<()> {
    let instance = v1::Instance {
        id: id.to_owned(),
        regions: regions.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let request = v1::UpdateInstanceRequest {
        instance: Some(instance),
        update_mask: Some(prost_types::FieldMask { paths: vec!["regions".to_owned()] }),
    };
    control_plane.client().instances().update_instance(request).await?;
    Ok(())
}

/// An agent has the instances of its region and what hangs on them, and hears nothing of others: neither at
/// first, nor when they change, nor when they go. What moves comes and goes.
#[tokio::test]
async fn agents_get_only_what_concerns_their_region() {
    let directory = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    let mine = add_regional(&control_plane, "inst-north", &["north"]).await.unwrap();
    let other = add_regional(&control_plane, "inst-south", &["south"]).await.unwrap();
    let both = add_regional(&control_plane, "inst-both", &["north", "south"]).await.unwrap();
    let agent = RawAgent::enroll(&control_plane, "north").await.unwrap();
    let mut session = agent.open_config(agent.hello()).await.unwrap();
    let first = session.follow_to(version(&control_plane).await.unwrap()).await.unwrap();
    let has = ids(&first);
    let of_others = |has: &BTreeSet<String>| has.iter().any(|id| id.contains("south") || *id == other);
    assert!([&mine, &both].iter().all(|id| has.contains(*id)) && has.contains("inst-test"), "{has:?}");
    assert!(!of_others(&has), "{has:?}");

    // The others' changes are a version and nothing else.
    let change = v1::WebhookSubscription { display_name: "changed".to_owned(), ..Default::default() };
    update(control_plane.client(), &other, change.clone(), "display_name").await.unwrap();
    let next = session.follow_to(version(&control_plane).await.unwrap()).await.unwrap();
    assert!(ids(&next).is_empty() && removed(&next).is_empty(), "{next:?}");
    update(control_plane.client(), &both, change, "display_name").await.unwrap();
    let next = session.follow_to(version(&control_plane).await.unwrap()).await.unwrap();
    assert_eq!(ids(&next), BTreeSet::from([both.clone()]));

    // What moves away is gone, and not deleted; what moves here comes with what hangs on it.
    set_regions(&control_plane, "inst-north", &["south"]).await.unwrap();
    let next = session.follow_to(version(&control_plane).await.unwrap()).await.unwrap();
    let gone = removed(&next);
    let left = |id: &str| (id.to_owned(), false);
    assert!(gone.contains(&left("inst-north")) && gone.contains(&left(&mine)), "{gone:?}");
    set_regions(&control_plane, "inst-south", &["north"]).await.unwrap();
    let next = session.follow_to(version(&control_plane).await.unwrap()).await.unwrap();
    let came = ids(&next);
    assert!(came.contains("inst-south") && came.contains(&other), "{came:?}");
}
