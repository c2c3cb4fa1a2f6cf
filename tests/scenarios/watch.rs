//! WatchInboundLogs: live, from the past, and resumed without gap or repeat.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use gateway_proto::v1::{self, InboundLogChange};
use gateway_tests::{DEADLINE, Reply, Within as _, World};
use tonic::Streaming;

const FROM: &str = "966500000001";

type Watch = Streaming<v1::WatchInboundLogsResponse>;

async fn watch(world: &World, request: v1::WatchInboundLogsRequest) -> anyhow::Result<Watch> {
    Ok(world.client().inbound_logs().watch_inbound_logs(request).await?.into_inner())
}

async fn next(watch: &mut Watch) -> anyhow::Result<v1::WatchInboundLogsResponse> {
    watch.message().within(DEADLINE).await??.context("the watch has ended")
}

/// Reads until every message was seen as recorded and as delivered; nothing comes twice.
async fn read(
    watch: &mut Watch,
    wamids: &BTreeSet<String>,
) -> anyhow::Result<Vec<v1::WatchInboundLogsResponse>> {
    let mut seen = Vec::new();
    let mut open: BTreeSet<(String, InboundLogChange)> = wamids
        .iter()
        .flat_map(|wamid| {
            [InboundLogChange::Recorded, InboundLogChange::Delivery].map(|change| (wamid.clone(), change))
        })
        .collect();
    while !open.is_empty() {
        let response = next(watch).await?;
        let log = response.inbound_log.as_ref().context("a response without a log")?;
        ensure!(!response.cursor.is_empty(), "a response without a cursor");
        let expected = open.remove(&(log.external_message_id.clone(), response.change()));
        ensure!(expected, "{:?} of {} came twice or uninvited", response.change(), log.external_message_id);
        seen.push(response);
    }
    Ok(seen)
}

async fn post(world: &World, count: usize) -> BTreeSet<String> {
    let mut wamids = BTreeSet::new();
    for _ in 0..count {
        wamids.insert(world.provider.say(FROM, "watch me").await.unwrap());
    }
    wamids
}

/// Without a cursor the watch starts now: what was before does not come, each event comes once as recorded
/// and once as delivered, in the state it then had.
#[tokio::test]
async fn watch_is_live() {
    let world = World::start().await.unwrap();
    let before = world.provider.say(FROM, "before").await.unwrap();
    let webhook = world.delivered(&before).await.unwrap();
    world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
    let mut live = watch(&world, v1::WatchInboundLogsRequest::default()).await.unwrap();
    let wamids = post(&world, 5).await;
    let seen = read(&mut live, &wamids).await.unwrap();
    for response in &seen {
        let (log, change) = (response.inbound_log.as_ref().unwrap(), response.change());
        assert_eq!(log.message_text, "watch me");
        if change == InboundLogChange::Delivery {
            assert_eq!(response.subscription_id, world.subscription.id);
            assert_eq!(log.deliveries[0].state(), v1::DeliveryState::Delivered);
        } else {
            assert!(response.subscription_id.is_empty());
        }
    }
}

/// A watch is broken off in the middle and resumed with its last cursor, once quietly and once over a
/// restart of the control plane with events in between: nothing is missing and nothing comes twice.
#[tokio::test]
async fn watch_resumes_without_gap_or_repeat() {
    let mut world = World::start().await.unwrap();
    let mut first = watch(&world, v1::WatchInboundLogsRequest::default()).await.unwrap();
    let mut wamids = post(&world, 10).await;
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(next(&mut first).await.unwrap());
    }
    drop(first);
    wamids.extend(post(&world, 3).await);
    let resume = |seen: &[v1::WatchInboundLogsResponse]| v1::WatchInboundLogsRequest {
        cursor: seen.last().map(|response| response.cursor.clone()).unwrap_or_default(),
        ..Default::default()
    };
    let mut second = watch(&world, resume(&seen)).await.unwrap();
    for _ in 0..8 {
        seen.push(next(&mut second).await.unwrap());
    }
    drop(second);
    world.control_plane.kill().await.unwrap();
    wamids.extend(post(&world, 4).await);
    world.control_plane.start_again().await.unwrap();
    let mut third = watch(&world, resume(&seen)).await.unwrap();
    while seen.len() < 2 * wamids.len() {
        seen.push(next(&mut third).await.unwrap());
    }
    let unique: BTreeSet<(String, InboundLogChange)> = seen
        .iter()
        .map(|response| (response.inbound_log.clone().unwrap().external_message_id, response.change()))
        .collect();
    assert_eq!(unique.len(), seen.len(), "something came twice");
    assert_eq!(unique.into_iter().map(|(wamid, _)| wamid).collect::<BTreeSet<_>>(), wamids);
}

/// With a start time the past comes first, then it goes on live; filters hold for both; a cursor of another
/// log is refused.
#[tokio::test]
async fn watch_gives_the_past_and_heeds_filters() {
    let world = World::start().await.unwrap();
    let mut wamids = post(&world, 3).await;
    for wamid in &wamids {
        let webhook = world.delivered(wamid).await.unwrap();
        world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
    }
    world.provider.say("966500000099", "somebody else").await.unwrap();
    let request = v1::WatchInboundLogsRequest {
        start_time: Some(prost_types::Timestamp {
            seconds: jiff::Timestamp::now().as_second() - 3_600,
            nanos: 0,
        }),
        from_phone: "+966500000001".to_owned(),
        events: vec!["message.*".to_owned()],
        instance_id: world.subscription.instance_id.clone(),
        ..Default::default()
    };
    let mut stream = watch(&world, request).await.unwrap();
    wamids.extend(post(&world, 2).await);
    let mut recorded = BTreeSet::new();
    while recorded.len() < wamids.len() {
        let response = next(&mut stream).await.unwrap();
        let log = response.inbound_log.clone().unwrap();
        assert_eq!(log.from_phone, "+966500000001");
        if response.change() == InboundLogChange::Recorded {
            assert!(recorded.insert(log.external_message_id), "recorded twice");
        }
    }
    assert_eq!(recorded, wamids);
    let request = v1::WatchInboundLogsRequest { cursor: "bm90IGEgY3Vyc29y".to_owned(), ..Default::default() };
    let refused = match world.client().inbound_logs().watch_inbound_logs(request).await {
        Ok(response) => response.into_inner().message().within(DEADLINE).await.unwrap().unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

/// Lists are newest first, in pages without gap or repeat, and every filter holds.
#[tokio::test]
async fn lists_have_pages_and_heed_filters() {
    let world = World::selecting(&["*"]).await.unwrap();
    let mut posted = Vec::new();
    for number in 0..7 {
        let wamid = world.provider.say(&format!("96650000000{number}"), "page me").await.unwrap();
        let webhook = world.delivered(&wamid).await.unwrap();
        world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
        posted.insert(0, wamid);
    }
    let list = async |request: v1::ListInboundLogsRequest| {
        let logs: Vec<v1::InboundLog> = world.client().list(request).try_collect().await.unwrap();
        logs.into_iter().map(|log| log.external_message_id).collect::<Vec<_>>()
    };
    let all = v1::ListInboundLogsRequest::default();
    assert_eq!(list(v1::ListInboundLogsRequest { page_size: 2, ..all.clone() }).await, posted);
    let one = v1::ListInboundLogsRequest { from_phone: "+966 50 000 0003".to_owned(), ..all.clone() };
    assert_eq!(list(one).await, [posted[3].clone()]);
    let one = v1::ListInboundLogsRequest { external_message_id: posted[5].clone(), ..all.clone() };
    assert_eq!(list(one).await, [posted[5].clone()]);
    let none = v1::ListInboundLogsRequest { instance_id: "inst-other".to_owned(), ..all.clone() };
    assert!(list(none).await.is_empty());
    let none = v1::ListInboundLogsRequest { events: vec!["recipient.*".to_owned()], ..all.clone() };
    assert!(list(none).await.is_empty());
    let middle = world.logs().await.unwrap().remove(3).receive_time;
    let newer = v1::ListInboundLogsRequest { start_time: middle, ..all.clone() };
    assert_eq!(list(newer).await, posted[..4]);
    let older = v1::ListInboundLogsRequest { end_time: middle, ..all };
    assert_eq!(list(older).await, posted[4..]);
}

/// A delivery that fails first and succeeds later comes as one change of state each.
#[tokio::test]
async fn watch_shows_a_recovery() {
    let world = World::start().await.unwrap();
    world.receiver.answer_with(|webhook| Reply::Status(if webhook.nth == 1 { 500 } else { 200 }));
    let mut stream = watch(&world, v1::WatchInboundLogsRequest::default()).await.unwrap();
    let wamid = world.provider.say(FROM, "second try").await.unwrap();
    let recorded = next(&mut stream).await.unwrap();
    assert_eq!(recorded.change(), InboundLogChange::Recorded);
    loop {
        let response = next(&mut stream).await.unwrap();
        let log = response.inbound_log.unwrap();
        assert_eq!(log.external_message_id, wamid);
        if log.deliveries[0].state() == v1::DeliveryState::Delivered {
            assert_eq!(log.deliveries[0].attempt_count, 2);
            break;
        }
    }
}
