//! Large configurations: an export of many records.

use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gateway_tests::figure;

use super::*;

/// How many webhook subscriptions there are; `just soak` sets 100,000.
const RESOURCES_ENV: &str = "GATEWAY_TESTS_RESOURCES";
const RESOURCES_DEFAULT: usize = 3_000;
/// Calls at the same time.
const AT_ONCE: usize = 32;
/// Bytes of a header of each subscription, so that not all of them fit into one record, which is at most 3 MiB.
const HEADER_BYTES: usize = 1_200;

/// Thousands of webhook subscriptions make an export of several records; a new agent starts from it with all of them, in
/// the version that it was made in.
#[tokio::test]
async fn large_configurations_are_exported() {
    let count = std::env::var(RESOURCES_ENV).map_or(RESOURCES_DEFAULT, |count| count.parse().unwrap());
    let mut world = world().await;
    // Small ones where it is their number that counts.
    let padding = if count > RESOURCES_DEFAULT { 1 } else { HEADER_BYTES };
    let create = async |number: usize| {
        let subscription = v1::WebhookSubscription {
            instance_id: SECOND_INSTANCE.to_owned(),
            destination_url: format!("http://127.0.0.1:1025/{number}"),
            events: vec!["provider.event".to_owned()],
            headers: [("x-padding".to_owned(), "x".repeat(padding))].into(),
            ..Default::default()
        };
        let request = v1::CreateWebhookSubscriptionRequest {
            webhook_subscription: Some(subscription),
            ..Default::default()
        };
        world.client().webhook_subscriptions().create_webhook_subscription(request).await
    };
    stream::iter(0..count).map(create).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await.unwrap();
    let began = Instant::now();
    let (files, shown) = export(&world, REGION).await.unwrap();
    let exporting = began.elapsed();
    assert!(shown.contains(&format!("{} webhook subscriptions", count + 2)), "{shown}");
    let bytes = fs::metadata(&files.snapshot).unwrap().len();
    let version = online(&world, 1).await[0].applied_version;
    let join_token = world.control_plane.join_token(REGION).await.unwrap();
    world.control_plane.stop().await.unwrap();
    world.agent.kill().await.unwrap();
    let began = Instant::now();
    let mut agent = launch_new(&world, &files, &join_token).await.unwrap();
    agent.wait_ready().await.unwrap();
    figure(format_args!(
        "{count} subscriptions: an export of {} KiB in {exporting:?}, a new agent ready in {:?} with {} MiB",
        bytes >> 10,
        began.elapsed(),
        agent.usage().unwrap().rss_bytes_max >> 20
    ));
    #[expect(clippy::cast_precision_loss, reason = "versions are far below 2^52")]
    let expected = version as f64;
    assert!((agent.metric("gateway_config_applied_version").await.unwrap() - expected).abs() < 0.5);
    say(&world, &calling(&world, &agent), FROM, "is anybody there?").await;
    world.control_plane.start_again().await.unwrap();
    let found = online(&world, 1).await.remove(0);
    assert_eq!(connected_with(&world, &found.id).unwrap(), version);
}
