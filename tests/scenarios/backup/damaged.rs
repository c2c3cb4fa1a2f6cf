//! Damaged rows in a backup: nobody can overlook them, and a restore of it takes nothing from the agents.

use gateway_tests::{database, world};

use super::*;

/// The webhook subscription cannot be read any more, as after damage to the disk.
const DAMAGE: &str = "UPDATE webhook_subscriptions SET config = zeroblob(100)";
/// The exit code of a backup that is written, with something damaged in it.
const EXIT_DAMAGED: i32 = 2;

/// A backup looks at what it has written: it names the row that is damaged and what can be done, ends with an exit code of
/// its own, and keeps the files, which can be restored. The running control plane says by itself which row it is. The agent,
/// which has a good copy of the webhook subscription, goes on to deliver by it when the restored control plane sends it
/// everything anew, and also after its own restart.
#[tokio::test]
async fn damage_is_told_and_agents_keep_what_is_lost() {
    let mut world = World::start().await.unwrap();
    let data_dir = world.control_plane.data_dir();
    let (good, bad) = (world.directory().join("good"), world.directory().join("bad"));
    let told = succeed(&["backup"], &[("--to", &good), ("--data-dir", &data_dir)]).await.unwrap();
    assert!(told.contains("nothing is damaged"), "{told}");

    database::execute(&data_dir.join("config.db"), DAMAGE).await.unwrap();
    let into_bad: [(&str, &Path); 2] = [("--to", &bad), ("--data-dir", &data_dir)];
    let backup = control_plane_command(&["backup"], &into_bad).await.unwrap();
    assert_eq!(backup.status.code(), Some(EXIT_DAMAGED), "{backup:?}");
    let (told, error) = (String::from_utf8_lossy(&backup.stdout), String::from_utf8_lossy(&backup.stderr));
    let id = world.subscription.id.clone();
    let named = format!("damaged: webhook subscription `{id}`: ");
    assert!(told.contains(&named) && told.contains("DeleteWebhookSubscription"), "{told}");
    assert!(error.contains("1 of ") && error.contains("rows cannot be read"), "{error}");
    assert!(bad.join("manifest.json").exists());

    lose_and_restore(&mut world, &bad).await.unwrap();
    world.control_plane.start_again().await.unwrap();
    let damaged = "gateway_store_damaged_rows{type=\"webhook_subscription\"}";
    let seen = eventually(DEADLINE, async || {
        ensure!(world.control_plane.metric(damaged).await? == 1.0, "the row is not known");
        let log = world.control_plane.log_text()?;
        ensure!(log.contains("failed to read a row") && log.contains(&id), "the log does not say it");
        Ok(())
    });
    seen.await.unwrap();
    // Which is another store now, so that the agent was sent everything.
    world.config_applied().await.unwrap();
    let wamid = world.provider.say(BEFORE, "still there?").await.unwrap();
    assert_eq!(world.delivered(&wamid).await.unwrap().path, world::PATH);

    world.agent.kill().await.unwrap();
    world.agent.start_again().await.unwrap();
    let wamid = world.provider.say(BEFORE, "and now?").await.unwrap();
    assert_eq!(world.delivered(&wamid).await.unwrap().path, world::PATH);
}
