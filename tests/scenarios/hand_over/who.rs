//! Who is given deliveries, and who is not.

use anyhow::ensure;
use gateway_proto::v1::{self, stream_config_request::Message};
use gateway_tests::{
    Agent, DEADLINE, Reply, Within as _, World,
    agent::AgentOptions,
    eventually,
    proxy::Way,
    raw::RawAgent,
    versions::{Version, decoded},
    world::{add_instance, meta_route, subscribe_instance},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::fleet::{becomes, drain, id_of, refusing, retire_first, say, waits};

/// The version whose agents know nothing of this.
const EARLIER: &str = "fc31c71";
const ACME_NUMBER: &str = "106540352242999";

/// Tenant `acme` with a route, an instance and a subscription to `/acme`, and the callback path of the route.
async fn acme(world: &World) -> String {
    let client = world.client();
    let tenant = v1::Tenant { id: "acme".to_owned(), display_name: "Acme".to_owned(), ..Default::default() };
    let request = v1::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
    client.tenants().create_tenant(request).await.unwrap();
    let route =
        v1::InboundRoute { tenant_id: "acme".to_owned(), ..meta_route("acme-secret", "acme-verify-token") };
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(route), ..Default::default() };
    let route = client.inbound_routes().create_inbound_route(request).await.unwrap().into_inner();
    let route = route.inbound_route.unwrap();
    let instance = v1::Instance {
        id: "inst-acme".to_owned(),
        tenant_id: "acme".to_owned(),
        display_name: "Acme".to_owned(),
        inbound_route_id: route.id.clone(),
        provider_number_id: ACME_NUMBER.to_owned(),
        ..Default::default()
    };
    let request = v1::CreateInstanceRequest { instance: Some(instance), ..Default::default() };
    client.instances().create_instance(request).await.unwrap();
    subscribe_instance(client, "inst-acme", &world.receiver.url("/acme"), &["message.received"])
        .await
        .unwrap();
    world.config_applied().await.unwrap();
    route.callback_path
}

/// An agent that is bound to a tenant takes over what is that tenant's and nothing else; the rest waits for one of
/// the platform.
#[tokio::test]
async fn agents_of_a_tenant_take_what_is_its_own() {
    let world = refusing(&[2, 5]).await.unwrap();
    let path = acme(&world).await;
    let of_acme = world
        .provider
        .with_url(world.agent.callback_url(&path))
        .with_secret("acme-secret")
        .with_number(ACME_NUMBER);
    let own = of_acme.say("966500000007", "of acme").await.unwrap();
    world.receiver.message(&own).within(DEADLINE).await.unwrap();
    let others = say(&world, &world.provider, 3).await.unwrap();
    let id = id_of(&world.agent);
    drain(&world, &id, false).await.unwrap();
    becomes(&world, &id, v1::AgentState::Drained, DEADLINE).await.unwrap();
    waits(&world, 4.0).await.unwrap();
    let request = v1::CreateJoinTokenRequest {
        region: "test-region".to_owned(),
        tenant_id: "acme".to_owned(),
        ..Default::default()
    };
    let token = world.client().agents().create_join_token(request).await.unwrap().into_inner().join_token;
    let options = AgentOptions { join_token: Some(token), ..AgentOptions::default() };
    let bound = Agent::start(&world.directory().join("bound"), &world.control_plane, options).await.unwrap();
    world.receiver.answer_with(|_| Reply::Status(200));
    waits(&world, 3.0).await.unwrap();
    let event_id = world.receiver.message(&own).within(DEADLINE).await.unwrap().id().to_owned();
    world.log_in(&event_id, v1::DeliveryState::Delivered).await.unwrap();
    assert_eq!(world.attempts(&event_id).await.unwrap().last().unwrap().agent_id, id_of(&bound));
    for wamid in &others {
        let event_id = world.receiver.message(wamid).within(DEADLINE).await.unwrap().id().to_owned();
        assert_eq!(world.log(&event_id).await.unwrap().deliveries[0].state(), v1::DeliveryState::Pending);
    }
    drain(&world, &id, true).await.unwrap();
    waits(&world, 0.0).await.unwrap();
    for wamid in &others {
        let event_id = world.receiver.message(wamid).within(DEADLINE).await.unwrap().id().to_owned();
        world.log_in(&event_id, v1::DeliveryState::Delivered).await.unwrap();
        assert_eq!(world.attempts(&event_id).await.unwrap().last().unwrap().agent_id, id);
    }
}

/// An agent of the earlier version, played with the recorded bytes with which it opens its work stream, is given test
/// events past any number of deliveries, and no delivery.
#[tokio::test]
async fn earlier_agents_are_given_none() {
    let mut world = refusing(&[1, 2]).await.unwrap();
    add_instance(world.client(), "inst-raw", "route-test", "106540352242777").await.unwrap();
    let url = world.receiver.url("/raw");
    let test_only = subscribe_instance(world.client(), "inst-raw", &url, &["message.received"]);
    let test_only = test_only.await.unwrap();
    world.config_applied().await.unwrap();
    say(&world, &world.provider, 5).await.unwrap();
    retire_first(&mut world).await.unwrap();
    waits(&world, 5.0).await.unwrap();

    let version = Version::open(EARLIER).unwrap();
    let opening: Vec<v1::StreamWorkRequest> = decoded(&version.first, "StreamWork", Way::Up).unwrap();
    let earlier = RawAgent::enroll(&world.control_plane, "test-region").await.unwrap();
    let mut config = earlier.open_config(earlier.hello()).await.unwrap();
    let listed = world.client().agents().list_agents(v1::ListAgentsRequest::default()).await.unwrap();
    config.follow_to(listed.into_inner().config_version).await.unwrap();
    let (requests, outgoing) = mpsc::channel(8);
    requests.send(opening[0].clone()).await.unwrap();
    let mut client = earlier.client().await.unwrap();
    let mut work = client.stream_work(ReceiverStream::new(outgoing)).await.unwrap().into_inner();
    for _ in 0..2 {
        // It is there, however long this takes.
        config.say(Message::Health(v1::AgentHealth::default())).await.unwrap();
        let request = v1::SendTestEventRequest { id: test_only.id.clone() };
        world.client().webhook_subscriptions().send_test_event(request).await.unwrap();
        let response = work.message().within(DEADLINE).await.unwrap().unwrap().unwrap();
        let is_test = |work: &v1::Work| matches!(work.work, Some(v1::work::Work::TestEvent(_)));
        assert!(!response.work.is_empty() && response.work.iter().all(is_test), "{response:?}");
        let acked_work_ids = response.work.into_iter().map(|work| work.id).collect();
        requests.send(v1::StreamWorkRequest { acked_work_ids, ..Default::default() }).await.unwrap();
    }
    waits(&world, 5.0).await.unwrap();
    let acknowledged = eventually(DEADLINE, async || {
        let waiting = world.control_plane.metric("gateway_work_waiting{kind=\"test_event\"}").await?;
        ensure!(waiting == 0.0, "{waiting} test events wait");
        Ok(())
    });
    acknowledged.await.unwrap();
}
