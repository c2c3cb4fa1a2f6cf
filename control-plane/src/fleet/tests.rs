//! Who is online, what a diagnosis sums up, and what stays listed.

use super::*;

fn refused_callbacks(count: u64) -> v1::AgentHealth {
    let refused = v1::RefusedCallbacks {
        inbound_route_id: "route_1".into(),
        reason: "wrong_signature".into(),
        count,
        last_time: Some(prost_types::Timestamp { seconds: i64::try_from(count).unwrap(), nanos: 0 }),
    };
    v1::AgentHealth { refused_callbacks: vec![refused], ..Default::default() }
}

/// An agent is online as long as its newest stream: the end of an older one changes nothing.
#[test]
fn reconnect_wins_over_the_old_stream() {
    let fleet = Fleet::new();
    let old = fleet.connect("agt_1", "eu", "1", 0);
    let new = fleet.connect("agt_1", "eu", "1", 4);
    assert!(old.superseded().is_cancelled() && !new.superseded().is_cancelled());
    old.applied(9);
    drop(old);
    let member = fleet.member("agt_1").unwrap();
    assert!(member.is_online());
    assert_eq!((member.accepted_version, member.applied_version), (4, 0));
    new.applied(5);
    assert_eq!(fleet.applied_version("agt_1"), 5);
    drop(new);
    assert_eq!((fleet.applied_version("agt_1"), fleet.applied_version("agt_2")), (0, 0));
    assert!(!fleet.member("agt_1").unwrap().is_online());
}

/// A diagnosis counts agents of the instance's regions and sums their refusals.
#[test]
fn diagnosis_sums_agents_of_the_regions() {
    let fleet = Fleet::new();
    let [one, two, _far] = [("agt_1", "eu"), ("agt_2", "eu"), ("agt_3", "us")]
        .map(|(id, region)| fleet.connect(id, region, "1", 0));
    one.applied(7);
    one.health(refused_callbacks(3));
    two.applied(6);
    two.health(refused_callbacks(5));
    let diagnosis = fleet.diagnosis(("", "route_1"), &["eu".into()], 7);
    assert_eq!((diagnosis.online, diagnosis.current), (2, 1));
    assert_eq!(diagnosis.refusals.len(), 1);
    assert_eq!((diagnosis.refusals[0].count, diagnosis.refusals[0].last_time.unwrap().seconds), (8, 5));
    assert_eq!(fleet.diagnosis(("", "route_2"), &[], 7).online, 3);
}

/// An agent of a tenant counts for that tenant's routes only: others do not hear what it says of theirs.
#[test]
fn diagnosis_leaves_agents_of_other_tenants_out() {
    let fleet = Fleet::new();
    let [all, acme] = ["agt_1", "agt_2"].map(|id| fleet.connect(id, "eu", "1", 0));
    all.belongs_to(None);
    acme.belongs_to(Some("acme".into()));
    acme.health(refused_callbacks(3));
    let seen_from = |tenant| fleet.diagnosis((tenant, "route_1"), &[], 0);
    for tenant in ["", "default"] {
        assert_eq!((seen_from(tenant).online, seen_from(tenant).refusals.len()), (1, 0), "{tenant}");
    }
    assert_eq!((seen_from("acme").online, seen_from("acme").refusals.len()), (2, 1));
}

/// A refused resource stays listed until it is sent anew and taken.
#[test]
fn refused_resources_stay_until_accepted() {
    let fleet = Fleet::new();
    let connection = fleet.connect("agt_1", "eu", "1", 0);
    let refused =
        v1::RefusedResource { r#type: "instance".into(), id: "inst_1".into(), ..Default::default() };
    connection.accepted(2, &[], vec![refused]);
    connection.accepted(3, &[("instance".into(), "inst_2".into())], vec![]);
    assert_eq!(fleet.member("agt_1").unwrap().refused.len(), 1);
    connection.accepted(4, &[("instance".into(), "inst_1".into())], vec![]);
    assert!(fleet.member("agt_1").unwrap().refused.is_empty());
}

/// An agent of which nothing is heard is offline after 13 s, although its stream is open, as over a half-open
/// connection; when it is heard again it is online again. What it is told counts for nothing.
#[tokio::test(start_paused = true)]
async fn silence_puts_an_agent_offline() {
    let fleet = Fleet::new();
    let connection = fleet.connect("agt_1", "eu", "1", 0);
    let is_online = || fleet.member("agt_1").unwrap().is_online();
    tokio::time::advance(SILENCE_MAX - Duration::from_millis(1)).await;
    assert!(is_online());
    connection.is_to_drain(false);
    tokio::time::advance(Duration::from_millis(2)).await;
    assert!(!is_online());
    assert_eq!(fleet.diagnosis(("", "route_1"), &[], 0).online, 0);
    connection.health(v1::AgentHealth::default());
    assert!(is_online());
}

/// The state says what was asked for and what has come of it; an answer to an earlier question counts no
/// more.
#[tokio::test(start_paused = true)]
async fn state_follows_draining() {
    let fleet = Fleet::new();
    let connection = fleet.connect("agt_1", "eu", "1", 0);
    let state = |drains| fleet.member("agt_1").unwrap().state(drains);
    assert_eq!((state(false), state(true)), (v1::AgentState::Online, v1::AgentState::Draining));
    connection.health(v1::AgentHealth { is_drained: true, ..Default::default() });
    assert_eq!((state(false), state(true)), (v1::AgentState::Online, v1::AgentState::Drained));
    fleet.drain_changed("agt_1");
    assert_eq!(state(true), v1::AgentState::Draining);
    drop(connection);
    assert_eq!(state(true), v1::AgentState::Offline);
}

/// The skew of an agent's clock is what its own time says against ours, in both directions; an agent that
/// does not tell its time has none.
#[test]
fn clock_skew_is_measured() {
    let fleet = Fleet::new();
    let connection = fleet.connect("agt_1", "eu", "1", 0);
    let skew = || fleet.member("agt_1").unwrap().clock_skew;
    connection.health(v1::AgentHealth::default());
    assert_eq!(skew(), None);
    for hours in [24, -24] {
        let time = clock::now() + SignedDuration::from_hours(hours);
        connection.health(v1::AgentHealth { time: Some(time::to_proto(time)), ..Default::default() });
        let error = skew().unwrap() - SignedDuration::from_hours(hours);
        assert!(error.abs() < SignedDuration::from_secs(5), "{error:?}");
    }
}

/// However much an agent refuses, and however it says so, what is kept of it fits into an answer; what it can use again
/// makes room.
#[test]
fn what_is_kept_of_an_agent_is_bounded() {
    let fleet = Fleet::new();
    let agent = fleet.connect("agt_1", "eu", "1", 0);
    let refused = |id: usize| v1::RefusedResource {
        r#type: "instance".into(),
        id: format!("{id:04}"),
        version: 1,
        error: "\u{10348}".repeat(2_000),
    };
    agent.accepted(1, &[], (0..1_000).map(refused).collect());
    let member = fleet.member("agt_1").unwrap();
    let bytes: usize = member.refused.values().map(Message::encoded_len).sum();
    assert!((900_000..=REFUSED_BYTES_MAX).contains(&bytes), "{bytes}");
    let key = |id: usize| ("instance".to_owned(), format!("{id:04}"));
    assert!(!member.refused.contains_key(&key(999)));
    agent.accepted(2, &[key(0)], vec![refused(999), refused(1)]);
    let member = fleet.member("agt_1").unwrap();
    assert!(member.refused.contains_key(&key(999)) && member.refused.contains_key(&key(1)));
    let one = |id: usize| v1::RefusedResource { error: String::new(), ..refused(id) };
    let count = || fleet.member("agt_1").unwrap().refused_count();
    agent.forget_refused();
    assert_eq!(count(), 0);
    for _ in 0..2 {
        agent.accepted(3, &[], (0..1_500).map(one).collect());
        assert_eq!((fleet.member("agt_1").unwrap().refused.len(), count()), (REFUSED_MAX, 1_500));
    }
    agent.accepted(4, &[key(7), key(1_400)], vec![one(1_499)]);
    assert_eq!((fleet.member("agt_1").unwrap().refused.len(), count()), (REFUSED_MAX, 1_498));
    assert!(fleet.member("agt_1").unwrap().refused.contains_key(&key(1_499)));
    let agent = fleet.connect("agt_1", "eu", "1", 4);
    assert_eq!(count(), 1_498);
    agent.accepted(5, &[], (10_000..200_000).map(one).collect());
    assert_eq!(count(), REFUSED_MAX + REFUSED_COUNTED_MAX);
    agent.forget_refused();
    assert_eq!(count(), 0);
    let long = "x".repeat(1 << 20);
    let mut health = refused_callbacks(1);
    health.refused_callbacks[0].reason = long.clone();
    health.over_share_subscription_ids = vec![long; 3];
    agent.health(health);
    let health = fleet.member("agt_1").unwrap().health;
    assert!(health.encoded_len() < 1_024);
}
