//! Control planes of two versions at a time, as while one is replaced behind a load balancer: the streams of an agent may
//! end at either.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use gateway_proto::v1::{self, config_resource::Resource, report::Report as Reported};
use gateway_tests::{
    Agent, DEADLINE, MetaProvider, Receiver, Reply, Within as _,
    agent::AgentOptions,
    eventually,
    raw::{self, CALLBACK_PATH, ConfigLink, RawControlPlane},
    world::{APP_SECRET, PHONE_NUMBER_ID, VERIFY_TOKEN},
};

use super::fleet::FROM;

const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// A subscription that is tried every few seconds: not so often that its breaker opens or its attempts end meanwhile.
fn subscription(receiver: &Receiver) -> v1::ConfigResource {
    let mut subscription = raw::subscription(1, "sub-one", &receiver.url("/one"), SECRET);
    if let Some(Resource::WebhookSubscription(config)) = &mut subscription.resource
        && let Some(subscription) = &mut config.webhook_subscription
    {
        let delays = vec![prost_types::Duration { seconds: 3, nanos: 0 }; 20];
        subscription.retry_policy = Some(v1::RetryPolicy { delays });
    }
    subscription
}

/// What a control plane that takes hand-overs says on the config stream.
fn response(version: u64, drain: Option<bool>) -> v1::StreamConfigResponse {
    v1::StreamConfigResponse {
        nonce: version.to_string(),
        version,
        store_epoch: "epoch".to_owned(),
        takes_hand_overs: true,
        drain,
        ..Default::default()
    }
}

/// Waits until the agent says of itself that it is so.
async fn becomes(
    link: &mut ConfigLink,
    what: &str,
    is_so: impl Fn(&v1::AgentHealth) -> bool,
) -> anyhow::Result<()> {
    let so = async {
        while !is_so(&link.health().await?) {}
        anyhow::Ok(())
    };
    so.within(DEADLINE).await.with_context(|| format!("wait until the agent {what}"))?
}

/// The events of deliveries that were handed over.
fn handed_over(control_plane: &RawControlPlane) -> BTreeSet<String> {
    let reports = control_plane.reports().into_iter();
    let logs = reports.filter_map(|report| match report.report? {
        Reported::DeliveryHandOver(hand_over) => hand_over.inbound_log,
        _ => None,
    });
    logs.map(|log| log.external_message_id).collect()
}

/// The config stream is with a control plane that takes hand-overs, the report stream with an earlier one, which would
/// ack them unseen: a draining agent reports none and makes its deliveries itself. Once its report stream is with one
/// that says that it takes them, they go there, whole.
#[tokio::test]
async fn the_report_stream_says_whether_it_takes_them() {
    let control_plane = RawControlPlane::start().await.unwrap();
    let receiver = Receiver::start().await.unwrap();
    receiver.answer_with(|_| Reply::Status(500));
    let directory = tempfile::tempdir().unwrap();
    let options = AgentOptions {
        control_plane_url: Some(control_plane.url()),
        join_token: Some("raw-join-token".to_owned()),
        ..AgentOptions::default()
    };
    let mut agent = Agent::launch_alone(directory.path(), options).await.unwrap();
    let mut link = control_plane.connected().await.unwrap();
    let upserts = vec![raw::route(1, APP_SECRET, VERIFY_TOKEN), raw::instance(1), subscription(&receiver)];
    let first = v1::StreamConfigResponse { snapshot: true, upserts, ..response(1, Some(false)) };
    link.send(first).await.unwrap();
    agent.wait_ready().await.unwrap();
    let provider = MetaProvider::new(agent.callback_url(CALLBACK_PATH), APP_SECRET, PHONE_NUMBER_ID).unwrap();
    let wamid = eventually(DEADLINE, async || provider.say(FROM, "one").await).await.unwrap();
    receiver.message(&wamid).within(DEADLINE).await.unwrap();
    link.send(response(2, Some(true))).await.unwrap();
    becomes(&mut link, "drains", |health| health.is_draining).await.unwrap();
    let so_far = receiver.by_id().values().map(Vec::len).sum::<usize>();
    let goes_on = eventually(DEADLINE, async || {
        let webhooks = receiver.by_id().values().map(Vec::len).sum::<usize>();
        ensure!(webhooks > so_far, "it was not tried again");
        Ok(())
    });
    goes_on.await.unwrap();
    receiver.answer_with(|_| Reply::Status(200));
    becomes(&mut link, "is drained", |health| health.is_drained).await.unwrap();
    assert!(handed_over(&control_plane).is_empty(), "it was acked unseen");

    receiver.answer_with(|_| Reply::Status(500));
    link.send(response(3, Some(false))).await.unwrap();
    let wamid = eventually(DEADLINE, async || provider.say(FROM, "two").await).await.unwrap();
    receiver.message(&wamid).within(DEADLINE).await.unwrap();
    control_plane.take_hand_overs(true);
    link.send(response(4, Some(true))).await.unwrap();
    let given = eventually(DEADLINE, async || {
        let given = handed_over(&control_plane);
        ensure!(given.contains(&wamid), "{given:?}");
        Ok(given)
    });
    assert_eq!(given.await.unwrap().len(), 1);
    becomes(&mut link, "is drained", |health| health.is_drained).await.unwrap();
}
