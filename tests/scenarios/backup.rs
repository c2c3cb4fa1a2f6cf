//! A control plane is backed up while it runs, and restored: opt-outs that came after the backup come back from the
//! agents.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use anyhow::{Context as _, ensure};
use gateway_tests::{DEADLINE, Within as _, World, eventually, programs::programs};
use tokio::process::Command;

mod damaged;

const BEFORE: &str = "966500000001";
const AFTER: &str = "966500000002";
const RETURNED: &str = "966500000003";
/// What a backup does not have and the next start needs.
const KEPT_ELSEWHERE: [&str; 3] = ["root.key", "ca.key", "admin.key"];

async fn control_plane_command(arguments: &[&str], paths: &[(&str, &Path)]) -> anyhow::Result<Output> {
    let mut command = Command::new(&programs().await?.control_plane);
    command.args(arguments);
    for (flag, path) in paths {
        command.arg(flag).arg(path);
    }
    command.output().within(DEADLINE).await?.context("run the control plane program")
}

async fn succeed(arguments: &[&str], paths: &[(&str, &Path)]) -> anyhow::Result<String> {
    let output = control_plane_command(arguments, paths).await?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{arguments:?} ended with {}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The data directory is lost and restored from the backup; keys come from where they were kept.
async fn lose_and_restore(world: &mut World, backup: &Path) -> anyhow::Result<PathBuf> {
    let data_dir = world.control_plane.data_dir();
    world.control_plane.kill().await?;
    let lost = data_dir.with_extension("lost");
    fs::rename(&data_dir, &lost)?;
    let told = succeed(
        &["restore"],
        &[("--from", backup), ("--data-dir", &data_dir), ("--previous-data-dir", &lost)],
    )
    .await?;
    ensure!(told.contains("restored configuration version"), "{told}");
    for name in KEPT_ELSEWHERE {
        if lost.join(name).exists() {
            fs::copy(lost.join(name), data_dir.join(name))?;
        }
    }
    Ok(lost)
}

/// One contact opts out before a backup, one after it, and a third one opts in again after it. The control plane is
/// lost and restored from that backup. As soon as the agent has connected, every answer is again what it was: the
/// later decision counts, and the earlier backup moves nothing backwards, neither there nor on the agent. The agent
/// goes on to take the configuration.
#[tokio::test]
async fn opt_outs_after_the_backup_come_back() {
    let mut world = World::start().await.unwrap();
    for phone in [BEFORE, RETURNED] {
        world.provider.say(phone, "STOP").await.unwrap();
        world.becomes_allowed(phone, false).await.unwrap();
    }
    let backup = world.directory().join("backup");
    let data_dir = world.control_plane.data_dir();
    let told = succeed(&["backup"], &[("--to", &backup), ("--data-dir", &data_dir)]).await.unwrap();
    assert!(told.contains("root key") && told.contains("config.db") && told.contains("logs.db"), "{told}");
    assert!(KEPT_ELSEWHERE.iter().all(|name| !backup.join(name).exists()));

    world.provider.say(AFTER, "STOP").await.unwrap();
    world.becomes_allowed(AFTER, false).await.unwrap();
    world.provider.say(RETURNED, "START").await.unwrap();
    world.becomes_allowed(RETURNED, true).await.unwrap();
    world.subscribe("/later", &["message.received"]).await.unwrap();

    lose_and_restore(&mut world, &backup).await.unwrap();
    // Seen while nobody is in control: it goes up with the others.
    world.provider.say(BEFORE, "hello?").await.unwrap();
    world.control_plane.start_again().await.unwrap();
    world.becomes_allowed(AFTER, false).await.unwrap();
    world.becomes_allowed(RETURNED, true).await.unwrap();
    world.becomes_allowed(BEFORE, false).await.unwrap();
    // The subscription that was made after the backup is gone, and the agent knows it.
    world.config_applied().await.unwrap();
    let told = eventually(DEADLINE, async || {
        let events = world.receiver.by_id();
        let told = events.values().filter(|webhooks| webhooks[0].event() == "recipient.opted_out").count();
        ensure!(told >= 3, "{told} of 3 opt-outs are told");
        Ok(told)
    });
    assert_eq!(told.await.unwrap(), 3, "nobody is told of an opt-out a second time");
    // It is as before for what comes now.
    world.provider.say(AFTER, "START").await.unwrap();
    world.becomes_allowed(AFTER, true).await.unwrap();
}

/// The agent is killed while the control plane is being restored, and starts after it: it still knows of which store
/// it heard last, and sends back what the new one does not have.
#[tokio::test]
async fn an_agent_that_was_away_sends_opt_outs_back_too() {
    let mut world = World::start().await.unwrap();
    let backup = world.directory().join("backup");
    let data_dir = world.control_plane.data_dir();
    succeed(&["backup"], &[("--to", &backup), ("--data-dir", &data_dir)]).await.unwrap();
    world.provider.say(AFTER, "STOP").await.unwrap();
    world.becomes_allowed(AFTER, false).await.unwrap();
    world.agent.kill().await.unwrap();
    lose_and_restore(&mut world, &backup).await.unwrap();
    world.control_plane.start_again().await.unwrap();
    assert!(world.is_allowed(AFTER).await.unwrap(), "the backup is older than the opt-out");
    world.agent.start_again().await.unwrap();
    world.becomes_allowed(AFTER, false).await.unwrap();
}

/// A backup with one byte changed, and a data directory in use, are refused with a reason and without doing anything;
/// a data directory in which a restore was interrupted is not started on.
#[tokio::test]
async fn restore_refuses_what_could_do_harm() {
    let mut world = World::start().await.unwrap();
    let (backup, other) = (world.directory().join("backup"), world.directory().join("other"));
    let data_dir = world.control_plane.data_dir();
    succeed(&["backup"], &[("--to", &backup), ("--data-dir", &data_dir)]).await.unwrap();
    let refused = async |to: &Path| {
        let output =
            control_plane_command(&["restore"], &[("--from", &backup), ("--data-dir", to)]).await.unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(refused(&data_dir).await.contains("not empty"));
    let file = backup.join("config.db");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&file, bytes).unwrap();
    assert!(refused(&other).await.contains("damaged"));
    assert!(fs::read_dir(&other).unwrap().next().is_none());
    world.control_plane.stop().await.unwrap();
    fs::create_dir(data_dir.join("restoring")).unwrap();
    world.control_plane.launch_again().unwrap();
    assert!(!world.control_plane.process().ended().await.unwrap().success());
    assert!(world.control_plane.log_text().unwrap().contains("interrupted"));
}
