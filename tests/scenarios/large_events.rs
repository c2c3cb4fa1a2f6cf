//! The largest event that is accepted hides no other.

use anyhow::{Context as _, ensure};
use gateway_proto::v1::{self, InboundLogChange};
use gateway_tests::{DEADLINE, Within as _, World, eventually};

const FROM: &str = "966500000001";
/// Bytes of a text with which a callback is just within the 4 MiB that agents take: its log is larger than the 4 MiB
/// that clients of the control plane take by default.
const TEXT_BYTES: usize = 4_180_000;

/// One signed callback of the largest size is delivered whole, and its log is listed and watched without its body: pages
/// and the watch go on past it, and what comes behind it is seen. A callback as large that nobody claims hides no other
/// either.
#[tokio::test]
async fn a_large_event_hides_no_other() {
    let world = World::start().await.unwrap();
    let text = "x".repeat(TEXT_BYTES);
    let before = world.provider.say(FROM, "before").await.unwrap();
    let large = world.provider.say(FROM, &text).await.unwrap();
    let after = world.provider.say(FROM, "after").await.unwrap();
    let wamids = [before, large.clone(), after];
    for wamid in &wamids {
        let webhook = world.delivered(wamid).await.unwrap();
        world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
    }
    let webhook = world.delivered(&large).await.unwrap();
    assert!(webhook.text("message_text") == text, "it is delivered whole");
    for page_size in [1, 2, 1_000] {
        assert_listed(&world, page_size, &wamids, &large).await.unwrap();
    }
    assert_watched(&world, &wamids, &large).await.unwrap();
    let alone = world.log(webhook.id()).await.unwrap();
    assert!(alone.payload_omitted, "it fits into no answer");

    let stranger = world.provider.with_number("999000999000999");
    for text in ["before", &text, "after"] {
        stranger.say(FROM, text).await.unwrap();
    }
    eventually(DEADLINE, async || {
        let request = v1::ListUnroutedCallbacksRequest { page_size: 1, ..Default::default() };
        let mut omitted = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListUnroutedCallbacksRequest { page_token, ..request.clone() };
            let page = world.client().inbound_routes().list_unrouted_callbacks(request).await?.into_inner();
            omitted.extend(page.unrouted_callbacks.iter().map(|callback| callback.payload_omitted));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        ensure!(omitted == [false, true, false], "listed {omitted:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Pages of this size give each log once.
async fn assert_listed(world: &World, page_size: i32, wamids: &[String], large: &str) -> anyhow::Result<()> {
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListInboundLogsRequest { page_size, page_token, ..Default::default() };
        let page = world.client().inbound_logs().list_inbound_logs(request).await?.into_inner();
        for log in page.inbound_logs {
            let is_large = log.external_message_id == large;
            ensure!(log.payload_omitted == is_large && log.payload_json.is_empty() == is_large);
            seen.push(log.external_message_id);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    // Callbacks that come at once may be recorded in another order.
    seen.sort();
    let mut expected = wamids.to_vec();
    expected.sort();
    ensure!(seen == expected, "listed {seen:?}");
    Ok(())
}

/// A watch from the beginning gives each log as recorded and as delivered.
async fn assert_watched(world: &World, wamids: &[String], large: &str) -> anyhow::Result<()> {
    let start_time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    let request = v1::WatchInboundLogsRequest { start_time, ..Default::default() };
    let mut watch = world.client().inbound_logs().watch_inbound_logs(request).await?.into_inner();
    let (mut recorded, mut delivered) = (Vec::new(), Vec::new());
    while recorded.len() < wamids.len() || delivered.len() < wamids.len() {
        let told = watch.message().within(DEADLINE).await??.context("the watch has ended")?;
        let change = told.change();
        let log = told.inbound_log.context("a response without a log")?;
        ensure!(log.payload_omitted == (log.external_message_id == large));
        match change {
            InboundLogChange::Recorded => recorded.push(log.external_message_id),
            _ => delivered.push(log.external_message_id),
        }
    }
    for mut seen in [recorded, delivered] {
        seen.sort();
        let mut expected = wamids.to_vec();
        expected.sort();
        ensure!(seen == expected, "watched {seen:?}");
    }
    Ok(())
}
