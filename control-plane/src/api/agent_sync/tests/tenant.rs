//! Agents that are bound to a tenant: what they are sent, what they are given to do, and what they may say.

use gateway_proto::v1::{
    config_resource::Resource, opt_out_service_client::OptOutServiceClient, report::Report as Reported,
    tenant_service_client::TenantServiceClient, work::Work as Task,
};

use super::*;

/// Tenant `acme` with an instance on a route of its own and one on a platform route, and tenant `default` with
/// an instance on a route of its own; each with a subscription. An agent of `acme` and one of the platform.
struct World {
    plane: ControlPlane,
    own_route: String,
    platform_route: String,
    other_route: String,
    bound: TestAgent,
    platform: TestAgent,
}

fn meta() -> v1::InboundRoute {
    let meta = v1::Meta { app_secrets: vec!["planted-secret".into()], verify_tokens: vec!["verify".into()] };
    v1::InboundRoute {
        provider: v1::Provider::Meta.into(),
        credentials: Some(v1::inbound_route::Credentials::Meta(meta)),
        ..Default::default()
    }
}

impl World {
    async fn start() -> Self {
        let plane = ControlPlane::start().await;
        let tenant = v1::Tenant { id: "acme".into(), display_name: "Acme".into(), ..Default::default() };
        let request = v1::CreateTenantRequest { tenant: Some(tenant), ..Default::default() };
        TenantServiceClient::new(plane.admin()).create_tenant(request).await.unwrap();
        let route = v1::InboundRoute { tenant_id: "acme".into(), ..meta() };
        let own_route = create_route(&plane, route, false).await;
        let platform_route = create_route(&plane, meta(), true).await;
        let other_route = plane.create_instance("inst_other", "1001", None, &[]).await.inbound_route_id;
        for (id, number, route) in
            [("inst_own", "2002", &own_route), ("inst_shared", "3003", &platform_route)]
        {
            create_acme_instance(&plane, id, number, route).await;
        }
        for of in ["other", "own", "shared"] {
            plane.create_subscription(&format!("sub_{of}"), &format!("inst_{of}")).await;
        }
        let bound = v1::CreateJoinTokenRequest {
            region: "eu".into(),
            tenant_id: "acme".into(),
            ..Default::default()
        };
        let token = AgentServiceClient::new(plane.admin()).create_join_token(bound).await.unwrap();
        let enrolled = plane.enroll(&token.into_inner().join_token, "eu").await.unwrap();
        let calls = InterceptedService::new(plane.channel.clone(), Bearer(enrolled.credential));
        let bound = TestAgent {
            id: enrolled.agent_id,
            region: "eu".into(),
            client: AgentSyncServiceClient::new(calls),
        };
        let platform = plane.agent("eu").await;
        Self { plane, own_route, platform_route, other_route, bound, platform }
    }

    async fn unrouted(&self) -> Vec<String> {
        let request = v1::ListUnroutedCallbacksRequest::default();
        let listed =
            InboundRouteServiceClient::new(self.plane.admin()).list_unrouted_callbacks(request).await;
        let mut payloads: Vec<_> =
            listed.unwrap().into_inner().unrouted_callbacks.into_iter().map(|one| one.payload_json).collect();
        payloads.sort();
        payloads
    }

    async fn log(&self, event_id: &str) -> v1::InboundLog {
        let request = v1::GetInboundLogRequest { event_id: event_id.into() };
        let log = InboundLogServiceClient::new(self.plane.admin()).get_inbound_log(request).await;
        log.unwrap().into_inner().inbound_log.unwrap()
    }

    async fn move_instance(&self, id: &str, route_id: &str) {
        let instance =
            v1::Instance { id: id.into(), inbound_route_id: route_id.into(), ..Default::default() };
        let request = v1::UpdateInstanceRequest {
            instance: Some(instance),
            update_mask: Some(prost_types::FieldMask { paths: vec!["inbound_route_id".into()] }),
        };
        InstanceServiceClient::new(self.plane.admin()).update_instance(request).await.unwrap();
    }
}

async fn create_route(plane: &ControlPlane, route: v1::InboundRoute, platform: bool) -> String {
    let request =
        v1::CreateInboundRouteRequest { inbound_route: Some(route), platform, ..Default::default() };
    let made = InboundRouteServiceClient::new(plane.admin()).create_inbound_route(request).await.unwrap();
    made.into_inner().inbound_route.unwrap().id
}

async fn create_acme_instance(plane: &ControlPlane, id: &str, number: &str, route_id: &str) {
    let instance = v1::Instance {
        id: id.into(),
        tenant_id: "acme".into(),
        display_name: id.into(),
        inbound_route_id: route_id.into(),
        provider_number_id: number.into(),
        ..Default::default()
    };
    let request = v1::CreateInstanceRequest { instance: Some(instance), ..Default::default() };
    InstanceServiceClient::new(plane.admin()).create_instance(request).await.unwrap();
}

fn ids(upserts: &[v1::ConfigResource]) -> Vec<String> {
    let id = |resource: &v1::ConfigResource| match resource.resource.clone().unwrap() {
        Resource::InboundRoute(route) => route.id,
        Resource::Instance(instance) => instance.id,
        Resource::WebhookSubscription(config) => config.webhook_subscription.unwrap().id,
        Resource::OptOutPolicy(policy) => policy.instance_id,
    };
    let mut ids: Vec<_> = upserts.iter().map(id).collect();
    ids.sort();
    ids
}

fn sorted<const N: usize>(mut ids: [&str; N]) -> [&str; N] {
    ids.sort_unstable();
    ids
}

/// The config stream of an agent that has applied what it was sent, and that.
async fn current(
    agent: &mut TestAgent,
) -> (Call<v1::StreamConfigRequest, v1::StreamConfigResponse>, v1::StreamConfigResponse) {
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let first = config.response().await;
    config
        .send(message(Message::Applied(v1::ConfigApplied { version: first.version, ..Default::default() })))
        .await;
    (config, first)
}

/// A platform route, with its secrets, is for agents of the platform, and so is an instance on it, whosever it
/// is. An instance that is moved there is taken from the tenant's agent, and is given back when it returns.
#[tokio::test]
async fn platform_routes_do_not_reach_agents_of_a_tenant() {
    let mut world = World::start().await;
    let (mut config, snapshot) = current(&mut world.bound).await;
    assert_eq!(ids(&snapshot.upserts), sorted([&world.own_route, "inst_own", "sub_own"]));
    let (_config, everything) = current(&mut world.platform).await;
    assert!(ids(&everything.upserts).contains(&world.platform_route));
    world.move_instance("inst_own", &world.platform_route).await;
    let mut removed = Vec::new();
    while removed.len() < 2 {
        let told = config.response().await;
        assert!(!ids(&told.upserts).contains(&world.platform_route), "{:?}", ids(&told.upserts));
        assert!(!ids(&told.upserts).iter().any(|id| id.contains("own_") || id == "inst_own"));
        removed.extend(told.removals.into_iter().map(|removal| removal.id));
    }
    assert_eq!(removed, ["sub_own", "inst_own"], "what refers to others goes first");
    world.move_instance("inst_own", &world.own_route).await;
    let mut seen = Vec::new();
    while !seen.contains(&"sub_own".to_owned()) {
        seen.extend(ids(&config.response().await.upserts));
    }
    assert!(seen.contains(&"inst_own".to_owned()) && !seen.contains(&world.platform_route));
    world.plane.stop().await;
}

/// Test events, opt-outs and claimed callbacks go to agents of the tenant whose route it is about, and to those
/// of the platform; work of other tenants and of platform routes never goes to an agent of a tenant.
#[tokio::test]
async fn work_goes_to_agents_of_the_tenant_alone() {
    let mut world = World::start().await;
    let mut reports_of_all = world.platform.reports().await;
    let callbacks =
        [(&world.other_route, "other"), (&world.platform_route, "shared"), (&world.own_route, "own")];
    let mut unclaimed = Vec::new();
    for (sequence, (route_id, name)) in (1..).zip(callbacks) {
        unclaimed.push(report(sequence, unrouted(route_id, "9009", name)));
    }
    reports_of_all.send(reports(unclaimed)).await;
    assert_eq!(reports_of_all.response().await.acked_sequence, 3);
    // In this order, so that what is not for the tenant's agent waits before what is.
    for of in ["other", "shared", "own"] {
        let request = v1::SendTestEventRequest { id: format!("sub_{of}") };
        WebhookSubscriptionServiceClient::new(world.plane.admin()).send_test_event(request).await.unwrap();
        let opt_out = v1::OptOut {
            instance_id: format!("inst_{of}"),
            phone: "+966500000001".into(),
            ..Default::default()
        };
        let request = v1::CreateOptOutRequest { opt_out: Some(opt_out), ..Default::default() };
        OptOutServiceClient::new(world.plane.admin()).create_opt_out(request).await.unwrap();
        let (id, admin) = (format!("late_{of}"), &world.plane);
        match of {
            "other" => {
                admin.create_instance(&id, "9009", Some(&world.other_route), &[]).await;
            }
            "shared" => create_acme_instance(admin, &id, "9009", &world.platform_route).await,
            _ => create_acme_instance(admin, &id, "9009", &world.own_route).await,
        }
        admin.create_subscription(&format!("sub_late_{of}"), &id).await;
    }
    assert!(world.unrouted().await.is_empty(), "all are claimed");
    let (_config, _) = current(&mut world.bound).await;
    let mut work = world.bound.work().await;
    let mut own = Vec::new();
    while own.len() < 3 {
        own.extend(work.response().await.work);
    }
    assert_eq!(names(&own), ["callback own", "opt-out inst_own", "test sub_own"]);
    let acked_work_ids = own.into_iter().map(|work| work.id).collect();
    work.send(v1::StreamWorkRequest { acked_work_ids, ..Default::default() }).await;
    let (_config, _) = current(&mut world.platform).await;
    let mut work_of_all = world.platform.work().await;
    let mut rest = Vec::new();
    while rest.len() < 6 {
        rest.extend(work_of_all.response().await.work);
    }
    assert!(!names(&rest).iter().any(|name| name.ends_with("own")), "{:?}", names(&rest));
    drop(work_of_all);
    world.plane.stop().await;
    assert!(matches!(work.next().await, Ok(None) | Err(_)), "work that is not the tenant's");
}

fn names(work: &[v1::Work]) -> Vec<String> {
    let name = |work: &v1::Work| match work.work.clone().unwrap() {
        Task::TestEvent(event) => format!("test {}", event.subscription_id),
        Task::OptOut(opt_out) => format!("opt-out {}", opt_out.instance_id),
        Task::UnroutedCallback(callback) => format!("callback {}", callback.payload_json),
        Task::DeliveryHandOver(hand_over) => format!("delivery {}", hand_over.id),
    };
    let mut names: Vec<_> = work.iter().map(name).collect();
    names.sort();
    names
}

fn delivered(subscription_id: &str) -> v1::Delivery {
    v1::Delivery {
        subscription_id: subscription_id.into(),
        state: v1::DeliveryState::Exhausted.into(),
        ..Default::default()
    }
}

fn gone(id: &str) -> Reported {
    Reported::DestinationGone(v1::DestinationGone {
        subscription_id: id.into(),
        destination_url: "https://example.com/hook".into(),
        ..Default::default()
    })
}

fn opt_out(instance_id: &str) -> Reported {
    Reported::OptOut(v1::OptOut {
        instance_id: instance_id.into(),
        tenant_id: "acme".into(),
        phone: "+966500000009".into(),
        state: v1::OptOutState::OptedOut.into(),
        scope: v1::OptOutScope::NonEssential.into(),
        reason: v1::OptOutReason::RecipientRequestedStop.into(),
        event_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..Default::default()
    })
}

/// An event of `inst_own` under an id, delivered to a subscription of its own and to one of another tenant.
fn own_event(event_id: &str) -> v1::EventReport {
    let Reported::Event(mut own) = event("inst_own", 1) else { panic!("not an event") };
    let log = own.inbound_log.as_mut().unwrap();
    event_id.clone_into(&mut log.event_id);
    log.deliveries = vec![delivered("sub_other"), delivered("sub_own")];
    let attempt = |id: &str| v1::DeliveryAttempt {
        event_id: event_id.to_owned(),
        subscription_id: id.into(),
        ..Default::default()
    };
    own.attempts = vec![attempt("sub_other"), attempt("sub_own")];
    own
}

/// Everything that there is to say of another tenant, whose event is `event_id`, and of platform routes.
fn said_of_others(world: &World, event_id: &str) -> Vec<Reported> {
    let Reported::Event(foreign) = event("inst_other", 1) else { panic!("not an event") };
    let attempts = v1::AttemptsReport {
        event_id: event_id.to_owned(),
        deliveries: vec![delivered("sub_own")],
        attempts: own_event(event_id).attempts,
    };
    let duplicate = v1::DuplicateReport { event_id: event_id.to_owned(), duplicate_count: 7 };
    vec![
        Reported::Event(foreign),
        Reported::Event(own_event(event_id)),
        Reported::Attempts(attempts),
        Reported::Duplicate(duplicate),
        unrouted(&world.other_route, "9009", "other"),
        unrouted(&world.platform_route, "9009", "shared"),
        unrouted("route_unknown", "9009", "unknown"),
        gone("sub_other"),
        opt_out("inst_other"),
    ]
}

/// What an agent of a tenant says of another tenant's events, routes and subscriptions, and of platform routes,
/// counts for nothing, and what it says beside that does.
#[tokio::test]
async fn reports_count_for_the_tenant_alone() {
    let mut world = World::start().await;
    let mut reports_of_all = world.platform.reports().await;
    let Reported::Event(foreign) = event("inst_other", 1) else { panic!("not an event") };
    let foreign_id = foreign.inbound_log.as_ref().unwrap().event_id.clone();
    reports_of_all.send(reports(vec![report(1, Reported::Event(foreign))])).await;
    reports_of_all.response().await;
    let before = world.log(&foreign_id).await;
    let own_id = EventId::derive(&["own"]).to_string();
    let mut said = said_of_others(&world, &foreign_id);
    said.extend([
        unrouted(&world.own_route, "9009", "own"),
        gone("sub_own"),
        opt_out("inst_own"),
        Reported::Event(own_event(&own_id)),
    ]);
    let mut stream = world.bound.reports().await;
    let count = u64::try_from(said.len()).unwrap();
    stream.send(reports((1..).zip(said).map(|(sequence, said)| report(sequence, said)).collect())).await;
    assert_eq!(stream.response().await.acked_sequence, count);
    assert_eq!(world.log(&foreign_id).await, before);
    let own_log = world.log(&own_id).await;
    assert_eq!(own_log.tenant_id, "acme");
    let told: Vec<_> = own_log.deliveries.iter().map(|one| one.subscription_id.as_str()).collect();
    assert_eq!(told, ["sub_own"]);
    let mut logs = InboundLogServiceClient::new(world.plane.admin());
    for (event_id, count) in [(own_id, 1), (foreign_id, 1)] {
        let request = v1::ListDeliveryAttemptsRequest { event_id, ..Default::default() };
        let attempts = logs.list_delivery_attempts(request).await.unwrap().into_inner().delivery_attempts;
        assert_eq!(attempts.len(), count, "{attempts:?}");
    }
    assert_eq!(world.unrouted().await, ["own"]);
    let mut subscriptions = WebhookSubscriptionServiceClient::new(world.plane.admin());
    for (id, state) in [
        ("sub_other", v1::WebhookSubscriptionState::Active),
        ("sub_own", v1::WebhookSubscriptionState::Paused),
    ] {
        let request = v1::GetWebhookSubscriptionRequest { id: id.into() };
        let found = subscriptions.get_webhook_subscription(request).await.unwrap().into_inner();
        assert_eq!(found.webhook_subscription.unwrap().state(), state, "{id}");
    }
    let listed = OptOutServiceClient::new(world.plane.admin())
        .list_opt_outs(v1::ListOptOutsRequest::default())
        .await
        .unwrap();
    let listed: Vec<_> = listed.into_inner().opt_outs.into_iter().map(|one| one.instance_id).collect();
    assert_eq!(listed, ["inst_own"]);
    world.plane.stop().await;
}
