//! `ReportLogs`, what can be read of it, and `StreamWork`.

use super::*;

/// What an agent reports can be listed, read and watched, once, however often it is sent.
#[tokio::test]
async fn reported_events_are_listed_and_watched() {
    let plane = ControlPlane::start().await;
    plane.create_instance("inst-1", "123", None, &[]).await;
    let mut agent = plane.agent("eu").await;
    let mut logs = InboundLogServiceClient::new(plane.admin());
    let filter = v1::WatchInboundLogsRequest { instance_id: "inst-1".into(), ..Default::default() };
    let mut watch = logs.watch_inbound_logs(filter.clone()).await.unwrap().into_inner();
    let mut stream = agent.reports().await;
    let batch = reports(vec![
        report(1, event("inst-1", 1)),
        report(2, event("inst-1", 2)),
        report(3, event("inst-9", 3)),
    ]);
    for _ in 0..2 {
        stream.send(batch.clone()).await;
        assert_eq!(stream.response().await.acked_sequence, 3);
    }
    let mut seen = Vec::new();
    for _ in 0..4 {
        let change = tokio::time::timeout(DEADLINE, watch.message()).await.unwrap().unwrap().unwrap();
        seen.push((change.change(), change.inbound_log.unwrap().external_message_id, change.cursor));
    }
    let kinds: Vec<_> = seen.iter().map(|(kind, id, _)| (*kind, id.as_str())).collect();
    let (recorded, delivery) = (v1::InboundLogChange::Recorded, v1::InboundLogChange::Delivery);
    assert_eq!(
        kinds,
        [(recorded, "wamid.1"), (delivery, "wamid.1"), (recorded, "wamid.2"), (delivery, "wamid.2")]
    );
    let resumed = v1::WatchInboundLogsRequest { cursor: seen[1].2.clone(), ..filter };
    let mut resumed = logs.watch_inbound_logs(resumed).await.unwrap().into_inner();
    assert_eq!(resumed.message().await.unwrap().unwrap().cursor, seen[2].2);
    let request = v1::ListInboundLogsRequest {
        instance_id: "inst-1".into(),
        events: vec!["message.*".into()],
        from_phone: "966500000001".into(),
        page_size: 1,
        ..Default::default()
    };
    let page = logs.list_inbound_logs(request.clone()).await.unwrap().into_inner();
    let newest = &page.inbound_logs[0];
    assert_eq!((newest.external_message_id.as_str(), newest.tenant_id.as_str()), ("wamid.2", "default"));
    assert_eq!((newest.agent_id.as_str(), newest.region.as_str()), (agent.id.as_str(), "eu"));
    let next = v1::ListInboundLogsRequest { page_token: page.next_page_token.clone(), ..request.clone() };
    let next = logs.list_inbound_logs(next).await.unwrap().into_inner();
    assert_eq!(
        (next.inbound_logs[0].external_message_id.as_str(), next.next_page_token.as_str()),
        ("wamid.1", "")
    );
    let other = v1::ListInboundLogsRequest { page_token: page.next_page_token, ..Default::default() };
    assert_eq!(logs.list_inbound_logs(other).await.unwrap_err().code(), Code::InvalidArgument);
    let event_id = newest.event_id.clone();
    let got = logs.get_inbound_log(v1::GetInboundLogRequest { event_id: event_id.clone() }).await.unwrap();
    assert_eq!(got.into_inner().inbound_log.as_ref(), Some(newest));
    let request = v1::ListDeliveryAttemptsRequest { event_id, ..Default::default() };
    let attempts = logs.list_delivery_attempts(request).await.unwrap().into_inner().delivery_attempts;
    assert_eq!((attempts.len(), attempts[0].agent_id.as_str()), (1, agent.id.as_str()));
    let absent = v1::GetInboundLogRequest { event_id: "evt_absent".into() };
    assert_eq!(logs.get_inbound_log(absent).await.unwrap_err().code(), Code::NotFound);
    plane.stop().await;
}

/// Bad filters and cursors name their field.
#[tokio::test]
async fn bad_log_requests_are_refused() {
    let plane = ControlPlane::start().await;
    let mut logs = InboundLogServiceClient::new(plane.admin());
    let bad_time = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
    for (request, field) in [
        (
            v1::ListInboundLogsRequest { events: vec!["message.recieved".into()], ..Default::default() },
            "events[0]",
        ),
        (v1::ListInboundLogsRequest { from_phone: "somebody".into(), ..Default::default() }, "from_phone"),
        (v1::ListInboundLogsRequest { start_time: bad_time, ..Default::default() }, "start_time"),
        (v1::ListInboundLogsRequest { page_size: -1, ..Default::default() }, "page_size"),
    ] {
        let refused = logs.list_inbound_logs(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(field), "{refused}");
    }
    let request = v1::WatchInboundLogsRequest { cursor: "other-1".into(), ..Default::default() };
    let refused = logs.watch_inbound_logs(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    plane.stop().await;
}

/// Callbacks that nobody claimed come to an agent as work once an instance with a webhook subscription claims
/// their number and the agent knows that, also when they are reported after that; they come until they are
/// acknowledged.
#[tokio::test]
async fn unrouted_callbacks_become_work() {
    let plane = ControlPlane::start().await;
    let first = plane.create_instance("inst-1", "111", None, &[]).await;
    let route_id = first.inbound_route_id.as_str();
    let mut agent = plane.agent("eu").await;
    let mut stream = agent.reports().await;
    stream.send(reports(vec![report(1, unrouted(route_id, "+966 50 000 0001", "a"))])).await;
    assert_eq!(stream.response().await.acked_sequence, 1);
    let mut routes = InboundRouteServiceClient::new(plane.admin());
    let list = v1::ListUnroutedCallbacksRequest { inbound_route_id: route_id.into(), ..Default::default() };
    let listed = routes.list_unrouted_callbacks(list.clone()).await.unwrap().into_inner().unrouted_callbacks;
    assert_eq!((listed.len(), listed[0].agent_id.as_str()), (1, agent.id.as_str()));
    let mut work = agent.work().await;
    plane.create_instance("inst-2", "+966500000001", Some(route_id), &["eu"]).await;
    let listed = routes.list_unrouted_callbacks(list.clone()).await.unwrap().into_inner().unrouted_callbacks;
    assert_eq!(listed.len(), 1, "nobody would get it yet");
    plane.create_subscription("sub-2", "inst-2").await;
    let early = tokio::time::timeout(Duration::from_millis(500), work.responses.message()).await;
    assert!(early.is_err(), "the agent does not know the subscription yet");
    let _config = current(&mut agent).await;
    let claimed = work.response().await;
    assert_eq!(payloads(&claimed), ["a"]);
    let listed = routes.list_unrouted_callbacks(list).await.unwrap().into_inner().unrouted_callbacks;
    assert!(listed.is_empty());
    stream.send(reports(vec![report(2, unrouted(route_id, "+966500000001", "b"))])).await;
    assert_eq!(payloads(&work.response().await), ["b"]);
    // Not acknowledged: the end of the stream gives both to the next agent, and to no other region.
    drop(work);
    let mut far = plane.agent("us").await;
    let _far_config = current(&mut far).await;
    let mut far_work = far.work().await;
    let mut other = plane.agent("eu").await;
    let _other_config = current(&mut other).await;
    let mut other_work = other.work().await;
    let mut again = Vec::new();
    while again.len() < 2 {
        again.extend(other_work.response().await.work);
    }
    let ids = again.iter().map(|work| work.id.clone()).collect();
    other_work.send(v1::StreamWorkRequest { acked_work_ids: ids, ..Default::default() }).await;
    drop(other_work);
    plane.stop().await;
    assert!(matches!(far_work.next().await, Ok(None) | Err(_)), "work of another region");
}

/// The config stream of an agent that has applied the newest configuration.
async fn current(agent: &mut TestAgent) -> Call<v1::StreamConfigRequest, v1::StreamConfigResponse> {
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    let version = config.response().await.version;
    config.send(message(Message::Applied(v1::ConfigApplied { version, ..Default::default() }))).await;
    config
}

/// A destination that answers 410 pauses its subscription, unless it has another destination by now.
#[tokio::test]
async fn gone_destinations_pause_their_subscription() {
    let plane = ControlPlane::start().await;
    plane.create_instance("inst-1", "123", None, &[]).await;
    plane.create_subscription("sub-1", "inst-1").await;
    let mut agent = plane.agent("eu").await;
    let mut stream = agent.reports().await;
    let mut client = WebhookSubscriptionServiceClient::new(plane.admin());
    for (sequence, url, state) in [
        (1, "https://example.com/before", v1::WebhookSubscriptionState::Active),
        (2, "https://example.com/hook", v1::WebhookSubscriptionState::Paused),
    ] {
        let gone = v1::DestinationGone {
            subscription_id: "sub-1".into(),
            destination_url: url.into(),
            ..Default::default()
        };
        stream.send(reports(vec![report(sequence, v1::report::Report::DestinationGone(gone))])).await;
        assert_eq!(stream.response().await.acked_sequence, sequence);
        let request = v1::GetWebhookSubscriptionRequest { id: "sub-1".into() };
        let subscription =
            client.get_webhook_subscription(request).await.unwrap().into_inner().webhook_subscription;
        assert_eq!(subscription.unwrap().state(), state);
    }
    plane.stop().await;
}

/// A report of failed attempts to `sub-1` of one event, evenly over `days`, the last of them an hour ago.
fn failures(number: u32, days: i64, count: i64) -> v1::report::Report {
    let v1::report::Report::Event(mut report) = event("inst-1", number) else { panic!("not an event") };
    let last = gateway_runtime::clock::now_seconds() - 3_600;
    let attempt = |index: i64| v1::DeliveryAttempt {
        event_id: report.inbound_log.as_ref().unwrap().event_id.clone(),
        subscription_id: "sub-1".into(),
        start_time: Some(prost_types::Timestamp {
            seconds: last - days * 86_400 * (count - 1 - index) / (count - 1),
            nanos: 0,
        }),
        failure: v1::AttemptFailure::Connect.into(),
        ..Default::default()
    };
    report.attempts = (0..count).map(attempt).collect();
    v1::report::Report::Event(report)
}

/// Five days of nothing but failures pause a subscription and say why; agents are told. After a resume the
/// same attempts, reported late, pause it no more.
#[tokio::test]
async fn subscriptions_that_only_fail_are_paused() {
    let plane = ControlPlane::start().await;
    plane.create_instance("inst-1", "123", None, &[]).await;
    plane.create_subscription("sub-1", "inst-1").await;
    let mut agent = plane.agent("eu").await;
    let hello = agent.hello();
    let mut config = agent.config(hello).await;
    config.response().await;
    let mut stream = agent.reports().await;
    let mut client = WebhookSubscriptionServiceClient::new(plane.admin());
    let mut get = async || {
        let request = v1::GetWebhookSubscriptionRequest { id: "sub-1".into() };
        client.get_webhook_subscription(request).await.unwrap().into_inner().webhook_subscription.unwrap()
    };
    stream.send(reports(vec![report(1, failures(1, 4, 72))])).await;
    stream.response().await;
    assert_eq!(get().await.state(), v1::WebhookSubscriptionState::Active);
    stream.send(reports(vec![report(2, failures(2, 6, 72))])).await;
    stream.response().await;
    let told = config.response().await;
    let resource = told.upserts.into_iter().next().unwrap().resource;
    let Some(v1::config_resource::Resource::WebhookSubscription(sent)) = resource else { panic!() };
    assert_eq!(sent.webhook_subscription.unwrap().state(), v1::WebhookSubscriptionState::Paused);
    let paused = get().await;
    let reason = paused.pause_reason.strip_prefix("every attempt since ").unwrap();
    assert!(reason.ends_with("Z failed (144 attempts); fix the destination, then resume"), "{reason}");
    let request = v1::ResumeWebhookSubscriptionRequest { id: "sub-1".into() };
    WebhookSubscriptionServiceClient::new(plane.admin()).resume_webhook_subscription(request).await.unwrap();
    stream.send(reports(vec![report(3, failures(3, 6, 72)), report(4, failures(4, 6, 72))])).await;
    stream.response().await;
    stream.send(reports(vec![report(5, event("inst-1", 5))])).await;
    stream.response().await;
    let resumed = get().await;
    assert_eq!((resumed.state(), resumed.pause_reason.as_str()), (v1::WebhookSubscriptionState::Active, ""));
    plane.stop().await;
}

/// Damages of an agent's buffer are kept and shown, newest first, ten at most; a repeated report adds nothing.
#[tokio::test]
async fn buffer_damages_are_shown() {
    let plane = ControlPlane::start().await;
    let mut agent = plane.agent("eu").await;
    let other = plane.agent("eu").await;
    let damage = |number: u32| v1::BufferDamage {
        time: Some(prost_types::Timestamp { seconds: i64::from(number), nanos: 0 }),
        cause: "checksum does not match".into(),
        unreadable_bytes: 512,
        events_lost_max: 3,
        quarantined: vec![format!("{number:016}.journal")],
    };
    let mut stream = agent.reports().await;
    let batch = |numbers: std::ops::Range<u32>| {
        let damages = numbers.map(|number| {
            let damaged = v1::report::Report::BufferDamage(damage(number));
            report(u64::from(number), damaged)
        });
        reports(damages.collect())
    };
    for _ in 0..2 {
        stream.send(batch(1..3)).await;
        assert_eq!(stream.response().await.acked_sequence, 2);
    }
    let shown = plane.agent_when(&agent.id, |_| true).await;
    assert_eq!(shown.buffer_damages, [damage(2), damage(1)]);
    let mut broken = damage(3);
    broken.cause = format!("planted\n{}", "x".repeat(1_000));
    stream.send(reports(vec![report(3, v1::report::Report::BufferDamage(broken))])).await;
    stream.send(batch(4..13)).await;
    while stream.response().await.acked_sequence < 12 {}
    let listed = AgentServiceClient::new(plane.admin()).list_agents(v1::ListAgentsRequest::default()).await;
    for listed in listed.unwrap().into_inner().agents {
        if listed.id == other.id {
            assert!(listed.buffer_damages.is_empty());
            continue;
        }
        let times: Vec<_> = listed.buffer_damages.iter().map(|damage| damage.time.unwrap().seconds).collect();
        assert_eq!(times, (3..13).rev().collect::<Vec<_>>());
        let cause = &listed.buffer_damages[9].cause;
        assert!(cause.chars().count() == 300 && !cause.contains('\n'), "{cause}");
    }
    plane.stop().await;
}
