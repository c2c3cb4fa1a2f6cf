//! The fleet as operators see it: watching, draining, and who gets which route.

use super::*;

type WatchCall = Streaming<v1::WatchAgentsResponse>;

impl ControlPlane {
    async fn watch(&self, request: v1::WatchAgentsRequest) -> WatchCall {
        AgentServiceClient::new(self.admin()).watch_agents(request).await.unwrap().into_inner()
    }

    async fn drain(&self, id: &str, undo: bool) -> Result<v1::Agent, Status> {
        let request = v1::DrainAgentRequest { id: id.into(), undo };
        let drained = AgentServiceClient::new(self.admin()).drain_agent(request).await?;
        Ok(drained.into_inner().agent.unwrap())
    }
}

async fn told(watch: &mut WatchCall) -> v1::WatchAgentsResponse {
    tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap()
}

/// The next message about an agent in a state.
async fn told_state(watch: &mut WatchCall, state: v1::AgentState) -> v1::Agent {
    loop {
        let agent = told(watch).await.agent.unwrap();
        if agent.state() == state {
            return agent;
        }
    }
}

fn health(is_drained: bool) -> v1::StreamConfigRequest {
    let time = Some(gateway_core::time::to_proto(gateway_runtime::clock::now()));
    message(Message::Health(v1::AgentHealth { is_drained, time, ..Default::default() }))
}

/// Whoever watches is told all agents that there are, then that these were all, then each change: connected, with
/// address and clock skew, changed, gone offline. One that watches a region or a state hears of nothing else, but
/// hears when an agent leaves that state.
#[tokio::test]
async fn watchers_are_told_the_fleet_and_its_changes() {
    let plane = ControlPlane::start().await;
    let [mut agent, other] = [plane.agent("eu").await, plane.agent("us").await];
    let mut all = plane.watch(v1::WatchAgentsRequest::default()).await;
    let mut ids = [told(&mut all).await, told(&mut all).await].map(|told| told.agent.unwrap().id);
    ids.sort();
    let mut expected = [agent.id.clone(), other.id.clone()];
    expected.sort();
    assert_eq!(ids, expected);
    assert!(told(&mut all).await.is_caught_up);
    let online = v1::WatchAgentsRequest { region: "eu".into(), states: vec![v1::AgentState::Online.into()] };
    let mut online = plane.watch(online).await;
    assert!(told(&mut online).await.is_caught_up);

    let hello = agent.hello();
    let config = agent.config(hello).await;
    config.send(health(false)).await;
    for watch in [&mut all, &mut online] {
        let connected = told_state(watch, v1::AgentState::Online).await;
        assert_eq!(connected.id, agent.id);
        assert!(connected.address.starts_with("127.0.0.1:") && connected.connect_time.is_some());
    }
    let shown = plane.agent_when(&agent.id, |agent| agent.clock_skew.is_some()).await;
    assert!(shown.clock_skew.unwrap().seconds.abs() < 5);
    drop(config);
    for watch in [&mut all, &mut online] {
        let gone = told_state(watch, v1::AgentState::Offline).await;
        assert_eq!((gone.id.as_str(), gone.address.as_str()), (agent.id.as_str(), ""));
    }
    plane.stop().await;
}

/// Of an agent that changes all the time a watcher is told at most once within a second, and a watcher that did not
/// read for a while is told the last state and not those in between.
#[tokio::test]
async fn changes_in_between_are_left_out() {
    let plane = ControlPlane::start().await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    config.response().await;
    let mut watch = plane.watch(v1::WatchAgentsRequest::default()).await;
    while !told(&mut watch).await.is_caught_up {}
    let sent = async {
        for number in 1..=300_u64 {
            let health = v1::AgentHealth { buffer_events: number, ..Default::default() };
            config.send(message(Message::Health(health))).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let began = std::time::Instant::now();
    let heard = async {
        let mut count = 0_u64;
        loop {
            count += 1;
            if told(&mut watch).await.agent.unwrap().buffer_events == 300 {
                return (count, began.elapsed());
            }
        }
    };
    let ((), (count, took)) = tokio::join!(sent, heard);
    assert!(count <= took.as_secs() + 1, "{count} messages in {took:?}");
    plane.stop().await;
}

/// Draining is kept: the agent is told with its first response, also when it was away when it was asked; its state
/// goes from draining to drained, and back when that is undone. A draining agent is given no work, and gets it when
/// it does not drain any more. An agent that does not exist is NOT_FOUND.
#[tokio::test]
async fn draining_is_kept_and_told() {
    let plane = ControlPlane::start().await;
    plane.create_instance("inst-1", "123", None, &[]).await;
    plane.create_subscription("sub-1", "inst-1").await;
    let mut agent = plane.agent("eu").await;
    assert_eq!(plane.drain("agt_none", false).await.unwrap_err().code(), Code::NotFound);
    let asked = plane.drain(&agent.id, false).await.unwrap();
    assert_eq!(asked.state(), v1::AgentState::Offline);
    let drain_time = asked.drain_time.unwrap();
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let first = config.response().await;
    assert_eq!(first.drain, Some(true));
    config
        .send(message(Message::Applied(v1::ConfigApplied { version: first.version, ..Default::default() })))
        .await;
    let shown = plane.agent_when(&agent.id, |agent| agent.state() == v1::AgentState::Draining).await;
    assert_eq!(shown.drain_time, Some(drain_time));
    config.send(health(true)).await;
    plane.agent_when(&agent.id, |agent| agent.state() == v1::AgentState::Drained).await;
    // Asked again, nothing changes but that the agent has to say it again.
    assert_eq!(plane.drain(&agent.id, false).await.unwrap().drain_time, Some(drain_time));

    let mut work = agent.work().await;
    let request = v1::SendTestEventRequest { id: "sub-1".into() };
    WebhookSubscriptionServiceClient::new(plane.admin()).send_test_event(request).await.unwrap();
    let nothing = tokio::time::timeout(Duration::from_millis(300), work.responses.message()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    assert_eq!(plane.drain(&agent.id, true).await.unwrap().state(), v1::AgentState::Online);
    assert_eq!(config.response().await.drain, Some(false));
    assert_eq!(work.response().await.work.len(), 1);
    plane.stop().await;
}

/// A route with its secrets is in those regions that serve one of its instances: it comes with the first instance
/// and goes when the last one moves away or is deleted, although the route itself did not change. A route without
/// instances is everywhere.
#[tokio::test]
async fn routes_follow_their_instances() {
    let plane = ControlPlane::start().await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    config.response().await;
    let names = |response: &v1::StreamConfigResponse| {
        let upserts: Vec<_> = response.upserts.iter().map(|upsert| upsert.resource.is_some()).collect();
        let removals: Vec<_> = response.removals.iter().map(|removal| removal.r#type.clone()).collect();
        (upserts.len(), removals)
    };
    let route_id = plane.create_instance("inst-us", "1", None, &["us"]).await.inbound_route_id;
    assert_eq!(names(&config.response().await), (0, vec![]));
    plane.create_instance("inst-eu", "2", Some(&route_id), &["eu"]).await;
    assert_eq!(names(&config.response().await), (2, vec![]), "the route, and the instance on it");
    let update = v1::UpdateInstanceRequest {
        instance: Some(v1::Instance {
            id: "inst-eu".into(),
            regions: vec!["ap".into()],
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["regions".into()] }),
    };
    let mut instances = InstanceServiceClient::new(plane.admin());
    instances.update_instance(update).await.unwrap();
    assert_eq!(names(&config.response().await), (0, vec!["instance".into(), "inbound_route".into()]));
    for (id, last) in [("inst-us", false), ("inst-eu", true)] {
        let request = v1::DeleteInstanceRequest { id: id.into(), ..Default::default() };
        instances.delete_instance(request).await.unwrap();
        let (upserts, _) = names(&config.response().await);
        assert_eq!(upserts, usize::from(last), "the route without instances is everywhere");
    }
    plane.stop().await;
}
