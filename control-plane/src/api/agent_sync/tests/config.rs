//! Enrollment and `StreamConfig`.

use gateway_core::{
    signature::{PublicKey, WebhookHeaders, WebhookSecret, verify_webhook_with},
    snapshot::{RouteConfig, RouteSecretKind, SubscriptionConfig},
};
use gateway_proto::v1::{config_resource::Resource, inbound_route_service_client::InboundRouteServiceClient};

use super::*;

/// A join token enrolls one agent, in its region only; refused uses do not use it up.
#[tokio::test]
async fn join_token_is_used_once() {
    let plane = ControlPlane::start().await;
    let token = plane.join_token("eu").await;
    assert_eq!(plane.enroll("join_unknown", "eu").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(plane.enroll(&token, "us").await.unwrap_err().code(), Code::InvalidArgument);
    let enrolled = plane.enroll(&token, "").await.unwrap();
    assert!(enrolled.agent_id.starts_with("agt_") && enrolled.credential.starts_with("agent_"));
    assert_eq!(enrolled.region, "eu");
    assert_eq!(plane.enroll(&token, "eu").await.unwrap_err().code(), Code::Unauthenticated);
    let request = v1::ListAgentsRequest { region: "eu".into(), ..Default::default() };
    let listed = AgentServiceClient::new(plane.admin()).list_agents(request).await.unwrap().into_inner();
    assert_eq!(listed.agents.len(), 1);
    assert_eq!(
        (listed.agents[0].state(), listed.agents[0].build.as_str()),
        (v1::AgentState::Offline, "1.2.3")
    );
    plane.stop().await;
}

/// An agent is told that there is nothing, then of every change; its verdicts show in the fleet, and the
/// end of its stream puts it offline.
#[tokio::test]
async fn config_changes_reach_an_agent() {
    let plane = ControlPlane::start().await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let first = config.response().await;
    assert!(first.snapshot && first.upserts.is_empty() && !first.store_epoch.is_empty());
    plane.create_instance("inst-0", "122", None, &["us"]).await;
    let first = config.response().await;
    assert_eq!(first.upserts.len(), 0, "another region's instance and its route: {first:?}");
    plane.create_instance("inst-1", "123", None, &["eu"]).await;
    let delta = config.response().await;
    assert_eq!(delta.upserts.len(), 2, "{delta:?}");
    assert!(!delta.snapshot && delta.version > first.version);
    let refused =
        v1::RefusedResource { r#type: "instance".into(), id: "inst-1".into(), ..Default::default() };
    config.send(message(Message::Nack(v1::ConfigNack { nonce: delta.nonce, refused: vec![refused] }))).await;
    config
        .send(message(Message::Applied(v1::ConfigApplied { version: delta.version, ..Default::default() })))
        .await;
    let health = v1::AgentHealth {
        buffer_events: 7,
        buffer_bytes: 4_096,
        buffer_bytes_max: 1 << 30,
        over_share_subscription_ids: vec!["sub-1".into()],
        ..Default::default()
    };
    config.send(message(Message::Health(health))).await;
    let shown = plane.agent_when(&agent.id, |agent| agent.buffer_events == 7).await;
    assert_eq!((shown.state(), shown.build.as_str()), (v1::AgentState::Online, "1.2.4"));
    assert_eq!((shown.accepted_version, shown.applied_version), (delta.version, delta.version));
    assert_eq!(shown.refused.len(), 1);
    assert_eq!((shown.buffer_bytes, shown.buffer_bytes_max), (4_096, 1 << 30));
    assert_eq!(shown.over_share_subscription_ids, ["sub-1"]);
    plane.create_subscription("sub-1", "inst-1").await;
    plane.create_subscription("sub-2", "inst-1").await;
    for id in ["sub-1", "sub-2"] {
        let subscribed = config.response().await;
        let resource = subscribed.upserts[0].resource.as_ref();
        let Some(Resource::WebhookSubscription(sent)) = resource else { panic!("{subscribed:?}") };
        assert_eq!(sent.webhook_subscription.as_ref().unwrap().id, id);
        assert_eq!((sent.signing_secrets.len(), sent.signing_keys.len()), (1, 0));
    }
    drop(config);
    plane.agent_when(&agent.id, |agent| agent.state() == v1::AgentState::Offline).await;
    plane.stop().await;
}

/// What an agent can not have is not shown as in use: a stream that says so ends with the reason.
#[tokio::test]
async fn versions_that_were_not_sent_are_not_applied() {
    let plane = ControlPlane::start().await;
    plane.create_instance("inst-1", "123", None, &["eu"]).await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let sent = config.response().await.version;
    let applied = |version| message(Message::Applied(v1::ConfigApplied { version, ..Default::default() }));
    config.send(applied(sent)).await;
    plane.agent_when(&agent.id, |agent| agent.applied_version == sent).await;
    config.send(applied(sent + 1)).await;
    let ended = async {
        loop {
            if let Err(status) = config.next().await {
                return status;
            }
        }
    };
    assert_eq!(ended.await.code(), Code::InvalidArgument);
    let shown = plane.agent_when(&agent.id, |agent| agent.state() == v1::AgentState::Offline).await;
    assert_eq!(shown.applied_version, sent);
    plane.stop().await;
}

/// An agent that comes back with a version of this store gets what changed since; with a version of
/// another store, or of the future, everything.
#[tokio::test]
async fn reconnecting_agents_get_what_they_miss() {
    let plane = ControlPlane::start().await;
    let instance = plane.create_instance("inst-1", "123", None, &[]).await;
    plane.create_subscription("sub-1", "inst-1").await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let snapshot = agent.config(hello.clone()).await.response().await;
    assert!(snapshot.snapshot);
    assert_eq!(snapshot.upserts.len(), 3);
    plane.create_instance("inst-2", "456", Some(&instance.inbound_route_id), &[]).await;
    let known = v1::ConfigHello {
        version: snapshot.version,
        store_epoch: snapshot.store_epoch.clone(),
        ..hello.clone()
    };
    let delta = agent.config(known.clone()).await.response().await;
    assert_eq!(
        (delta.snapshot, delta.upserts.len()),
        (false, 2),
        "the instance, and the route that it is on"
    );
    let current = v1::ConfigHello { version: delta.version, ..known.clone() };
    let nothing = agent.config(current).await.response().await;
    assert_eq!((nothing.snapshot, nothing.upserts.len(), nothing.version), (false, 0, delta.version));
    for hello in [
        v1::ConfigHello { store_epoch: "another".into(), ..known.clone() },
        v1::ConfigHello { version: 1_000_000, ..known.clone() },
    ] {
        let everything = agent.config(hello).await.response().await;
        assert_eq!((everything.snapshot, everything.upserts.len()), (true, 4));
    }
    plane.stop().await;
}

/// A hello that is missing, late or of somebody else is refused.
#[tokio::test]
async fn foreign_hellos_are_refused() {
    let plane = ControlPlane::start().await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    for bad in [
        v1::ConfigHello { agent_id: "agt_other".into(), ..hello.clone() },
        v1::ConfigHello { region: "us".into(), ..hello.clone() },
        v1::ConfigHello { build: String::new(), ..hello.clone() },
    ] {
        let refused = agent.config(bad).await.next().await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let (requests, receiver) = mpsc::channel(1);
    requests.send(message(Message::Applied(v1::ConfigApplied::default()))).await.unwrap();
    let mut responses = agent.client.stream_config(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::InvalidArgument);
    let mut anonymous = AgentSyncServiceClient::new(plane.admin());
    let (_requests, receiver) = mpsc::channel(1);
    let refused = anonymous.stream_config(ReceiverStream::new(receiver)).await;
    assert!(refused.is_err(), "the admin key is no agent credential");
    plane.stop().await;
}

/// An opt-out that one agent reports reaches another agent, and comes again after a reconnect only when
/// its cursor is unknown.
#[tokio::test]
async fn reported_opt_outs_reach_other_agents() {
    let plane = ControlPlane::start().await;
    plane.create_instance("inst-1", "123", None, &[]).await;
    let (mut one, mut two) = (plane.agent("eu").await, plane.agent("us").await);
    let hello = two.hello();
    let mut config = two.config(hello.clone()).await;
    let first = config.response().await;
    let opt_out = v1::OptOut {
        instance_id: "inst-1".into(),
        phone: "+966500000001".into(),
        state: v1::OptOutState::OptedOut.into(),
        scope: v1::OptOutScope::NonEssential.into(),
        reason: v1::OptOutReason::RecipientRequestedStop.into(),
        event_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..Default::default()
    };
    let mut stream = one.reports().await;
    stream.send(reports(vec![report(1, v1::report::Report::OptOut(opt_out))])).await;
    assert_eq!(stream.response().await.acked_sequence, 1);
    let told = config.response().await;
    assert_eq!((told.opt_outs.len(), told.version), (1, first.version));
    assert_eq!(
        (told.opt_outs[0].phone.as_str(), told.opt_outs[0].tenant_id.as_str()),
        ("+966500000001", "default")
    );
    let known = v1::ConfigHello {
        version: first.version,
        store_epoch: first.store_epoch,
        opt_out_cursor: told.opt_out_cursor,
        ..hello
    };
    let mut config = two.config(known.clone()).await;
    assert_eq!(config.response().await.opt_out_cursor, told.opt_out_cursor);
    let mut config = two.config(v1::ConfigHello { opt_out_cursor: 0, ..known }).await;
    assert!(config.response().await.opt_outs.is_empty());
    assert_eq!(config.response().await.opt_outs.len(), 1);
    plane.stop().await;
}

/// The secret and the public key that the API shows are those with which agents sign, from the first webhook
/// on and through rotations; the old ones sign beside them until the time that the rotation named.
#[tokio::test]
async fn shown_secrets_are_those_that_sign() {
    let plane = ControlPlane::start().await;
    plane.create_instance("inst-1", "123", None, &[]).await;
    plane.create_subscription("sub-1", "inst-1").await;
    let mut client = WebhookSubscriptionServiceClient::new(plane.admin());
    let wanted =
        v1::WebhookSubscription { id: "sub-1".into(), asymmetric_signature: true, ..Default::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["asymmetric_signature".into()] });
    let request = v1::UpdateWebhookSubscriptionRequest { webhook_subscription: Some(wanted), update_mask };
    client.update_webhook_subscription(request).await.unwrap();
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let mut stream = agent.config(hello).await;
    let mut seen: Vec<(String, String)> = Vec::new();
    for round in 0..5 {
        let config = subscription_config(&stream.response().await);
        let request = v1::GetSigningSecretRequest { id: "sub-1".into() };
        let shown = client.get_signing_secret(request).await.unwrap().into_inner();
        seen.insert(0, (shown.signing_secret, shown.public_key));
        assert_eq!((config.signing_secrets.len(), config.signing_keys.len()), (round + 1, round + 1));
        for (place, (secret, public_key)) in seen.iter().enumerate() {
            let signature = config.signing_secrets[place].0.sign("evt_1", 1_000, b"{}");
            let headers = WebhookHeaders { id: "evt_1", timestamp: "1000", signature: &signature };
            let secret = WebhookSecret::parse(secret).unwrap();
            assert_eq!(verify_webhook_with(&[secret], &[], headers, b"{}", 1_000), Ok(()), "{round} {place}");
            let signature = config.signing_keys[place].0.sign("evt_1", 1_000, b"{}");
            let headers = WebhookHeaders { id: "evt_1", timestamp: "1000", signature: &signature };
            let key = PublicKey::parse(public_key).unwrap();
            assert_eq!(verify_webhook_with(&[], &[key], headers, b"{}", 1_000), Ok(()), "{round} {place}");
        }
        let ends: Vec<_> = config.signing_secrets.iter().map(|(_, end)| end.is_some()).collect();
        assert_eq!(ends, (0..=round).map(|place| place > 0).collect::<Vec<_>>());
        assert!(config.signing_keys.iter().map(|(_, end)| end.is_some()).eq(ends));
        if round < 4 {
            let request = v1::RotateSigningSecretRequest { id: "sub-1".into(), grace_period: None };
            client.rotate_signing_secret(request).await.unwrap();
        }
    }
    plane.stop().await;
}

/// What proves callbacks of a route reaches agents with its values: the secrets, each addition and removal, and
/// whether the token in the path suffices.
#[tokio::test]
async fn route_credentials_reach_agents() {
    let plane = ControlPlane::start().await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    config.response().await;
    let mut routes = InboundRouteServiceClient::new(plane.admin());
    let waha = v1::Waha { hmac_keys: vec!["key-1".into()], headers: vec!["x-hook: 1".into()] };
    let route = v1::InboundRoute {
        id: "route-1".into(),
        provider: v1::Provider::Waha.into(),
        credentials: Some(v1::inbound_route::Credentials::Waha(waha)),
        ..Default::default()
    };
    let request = v1::CreateInboundRouteRequest { inbound_route: Some(route.clone()), ..Default::default() };
    let created = routes.create_inbound_route(request).await.unwrap().into_inner().inbound_route.unwrap();
    let keys = |route: &RouteConfig| -> Vec<String> {
        route.secrets_of(RouteSecretKind::WahaHmacKey).map(str::to_owned).collect()
    };
    let read = route_config(&config.response().await);
    assert_eq!((keys(&read), read.callback_token_suffices), (vec!["key-1".to_owned()], false));
    assert_eq!(read.secrets_of(RouteSecretKind::Header).collect::<Vec<_>>(), ["x-hook: 1"]);
    let request = v1::AddInboundRouteSecretRequest {
        id: "route-1".into(),
        kind: v1::InboundRouteSecretKind::WahaHmacKey.into(),
        value: "key-2".into(),
        ..Default::default()
    };
    routes.add_inbound_route_secret(request).await.unwrap();
    assert_eq!(keys(&route_config(&config.response().await)), ["key-1", "key-2"]);
    let secret_id = created.secrets[0].id.clone();
    let request = v1::RemoveInboundRouteSecretRequest { id: "route-1".into(), secret_id };
    routes.remove_inbound_route_secret(request).await.unwrap();
    assert_eq!(keys(&route_config(&config.response().await)), ["key-2"]);
    let request = v1::UpdateInboundRouteRequest {
        inbound_route: Some(v1::InboundRoute { callback_token_suffices: true, ..route }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["callback_token_suffices".into()] }),
    };
    routes.update_inbound_route(request).await.unwrap();
    let read = route_config(&config.response().await);
    assert_eq!((keys(&read), read.callback_token_suffices), (vec!["key-2".to_owned()], true));
    plane.stop().await;
}

/// The only route of a response, as agents read it.
fn route_config(response: &v1::StreamConfigResponse) -> RouteConfig {
    let [v1::ConfigResource { resource: Some(Resource::InboundRoute(config)), .. }] = &response.upserts[..]
    else {
        panic!("{} resources instead of a route", response.upserts.len())
    };
    RouteConfig::try_from(config).unwrap()
}

/// The only subscription of a response, as agents read it.
fn subscription_config(response: &v1::StreamConfigResponse) -> SubscriptionConfig {
    let config = response.upserts.iter().find_map(|resource| match &resource.resource {
        Some(Resource::WebhookSubscription(config)) => Some(config),
        _ => None,
    });
    SubscriptionConfig::try_from(config.unwrap()).unwrap()
}
