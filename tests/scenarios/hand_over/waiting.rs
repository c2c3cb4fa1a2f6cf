//! Deliveries for which there is no agent yet.

use anyhow::ensure;
use gateway_proto::v1;
use gateway_tests::{DEADLINE, Reply, eventually};

use super::fleet::{all_delivered, id_of, join, refusing, retire_first, say, waits};

/// Metric of the control plane: deliveries that were given away.
const QUEUED: &str = "gateway_hand_overs_total{outcome=\"queued\"}";
const CANCELLED: &str = "gateway_hand_overs_total{outcome=\"cancelled\"}";

/// Without another agent the deliveries of a drained one wait in the control plane, over its restarts too; the log
/// goes on showing them as pending, a metric and a warning tell the operator. A new agent makes them.
#[tokio::test]
async fn deliveries_wait_for_a_new_agent() {
    let mut world = refusing(&[1, 2]).await.unwrap();
    let wamids = say(&world, &world.provider, 5).await.unwrap();
    retire_first(&mut world).await.unwrap();
    waits(&world, 5.0).await.unwrap();
    let counted = eventually(DEADLINE, async || {
        let queued = world.control_plane.metric(QUEUED).await?;
        ensure!(queued == 5.0, "{queued} are queued");
        Ok(())
    });
    counted.await.unwrap();
    let warned = eventually(DEADLINE, async || {
        let log = world.control_plane.log_text()?;
        let line = log.lines().find(|line| line.contains("no agent of their region can take them"));
        ensure!(line.is_some_and(|line| line.contains("test-region")), "nobody warns");
        Ok(())
    });
    warned.await.unwrap();
    world.control_plane.kill().await.unwrap();
    world.control_plane.start_again().await.unwrap();
    waits(&world, 5.0).await.unwrap();
    for log in world.logs().await.unwrap() {
        assert_eq!(log.deliveries[0].state(), v1::DeliveryState::Pending);
    }
    world.receiver.answer_with(|_| Reply::Status(200));
    let (new, _) = join(&world, "new").await.unwrap();
    let new_id = id_of(&new);
    for of_event in all_delivered(&world, &wamids).await.unwrap() {
        assert_eq!(of_event.last(), Some(&new_id));
    }
    waits(&world, 0.0).await.unwrap();
}

/// A webhook subscription that is deleted while its deliveries wait for an agent cancels them, and they are counted.
#[tokio::test]
async fn deleting_the_subscription_cancels_what_waits() {
    let mut world = refusing(&[1, 2]).await.unwrap();
    let wamids = say(&world, &world.provider, 3).await.unwrap();
    retire_first(&mut world).await.unwrap();
    waits(&world, 3.0).await.unwrap();
    let request =
        v1::DeleteWebhookSubscriptionRequest { id: world.subscription.id.clone(), ..Default::default() };
    world.client().webhook_subscriptions().delete_webhook_subscription(request).await.unwrap();
    let cancelled = eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        let states: Vec<_> = logs.iter().map(|log| log.deliveries[0].state()).collect();
        let all = states.iter().all(|state| *state == v1::DeliveryState::Cancelled);
        ensure!(all && states.len() == wamids.len(), "{states:?}");
        Ok(())
    });
    cancelled.await.unwrap();
    waits(&world, 0.0).await.unwrap();
    let counted = eventually(DEADLINE, async || {
        let [queued, cancelled] =
            [world.control_plane.metric(QUEUED).await?, world.control_plane.metric(CANCELLED).await?];
        ensure!([queued, cancelled] == [3.0, 3.0], "{queued} queued, {cancelled} cancelled");
        Ok(())
    });
    counted.await.unwrap();
}
