//! What an agent does not start from, and when it does not look at an export at all.

use super::*;

/// Starts a new agent that cannot reach the control plane, in a directory of its own; it must end with this exit code,
/// and say this.
async fn ends(world: &World, name: &str, arguments: Vec<String>, code: i32, says: &str) {
    let options = AgentOptions {
        join_token: Some("wagw_join_x".to_owned()),
        control_plane_url: Some(nobody()),
        arguments,
        ..Default::default()
    };
    let mut agent = Agent::launch_alone(&world.directory().join(name), options).await.unwrap();
    let status = agent.process().ended().await.unwrap();
    let log = agent.log_text().unwrap();
    assert!(status.code() == Some(code) && log.contains(says), "{name}: {status}: {log}");
    assert!(!agent.data_dir().join("config.log").exists(), "{name}");
}

/// An export that was changed or cut, of another region, or for another key file, and a key without an export, end the
/// start with a reason, which is also why the agent could not enroll, and leave nothing behind from which a later start
/// would serve.
#[tokio::test]
async fn unusable_exports_are_refused() {
    let world = world().await;
    let (files, _) = export(&world, "elsewhere").await.unwrap();
    ends(&world, "lost", files.arguments(), 1, "it is for region `elsewhere`").await;
    let (files, _) = export(&world, REGION).await.unwrap();
    let (good, key) = (fs::read(&files.snapshot).unwrap(), fs::read(&files.key).unwrap());
    fs::remove_file(&files.key).unwrap();
    export(&world, REGION).await.unwrap();
    fs::write(&files.snapshot, &good).unwrap();
    ends(&world, "other-key", files.arguments(), 1, "made for another key file").await;
    fs::write(&files.key, key).unwrap();
    fs::write(&files.snapshot, &good[..good.len() / 2]).unwrap();
    ends(&world, "cut", files.arguments(), 1, "cut short").await;
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    fs::write(&files.snapshot, changed).unwrap();
    ends(&world, "changed", files.arguments(), 1, "damaged or changed").await;
    fs::remove_file(&files.snapshot).unwrap();
    ends(&world, "gone", files.arguments(), 1, "open `").await;
    ends(&world, "away", files.arguments(), 1, "could not enroll (reach the control plane at").await;
    ends(&world, "half", files.arguments().split_off(2), 64, "snapshot_file: must be set").await;
}

/// A new agent that reaches the control plane enrolls and has the newest configuration; the export is not even looked
/// at, so an old one in an image does no harm. Nor is it once the agent has a configuration.
#[tokio::test]
async fn exports_are_for_need_only() {
    let mut world = world().await;
    let files = Files::of(&world);
    fs::write(&files.snapshot, "an old one").unwrap();
    fs::write(&files.key, "and its key").unwrap();
    let join_token = world.control_plane.join_token(REGION).await.unwrap();
    let mut agent = launch_new(&world, &files, &join_token).await.unwrap();
    agent.wait_ready().await.unwrap();
    online(&world, 2).await;
    assert_eq!(agent.metric("gateway_enrolled").await.unwrap(), 1.0);
    world.control_plane.stop().await.unwrap();
    agent.kill().await.unwrap();
    agent.start_again().await.unwrap();
    say(&world, &calling(&world, &agent), FROM, "is anybody there?").await;
}

/// An agent that was revoked and comes back on an empty disk, with the join token and the export of its image, does not
/// serve from the export: the control plane answers, and refuses it.
#[tokio::test]
async fn revoked_agents_do_not_come_back_from_an_export() {
    let world = world().await;
    let (files, _) = export(&world, REGION).await.unwrap();
    let join_token = world.control_plane.join_token(REGION).await.unwrap();
    let known: BTreeSet<String> = online(&world, 1).await.into_iter().map(|agent| agent.id).collect();
    let mut agent = launch_new(&world, &files, &join_token).await.unwrap();
    agent.wait_ready().await.unwrap();
    let found = online(&world, 2).await;
    let revoked = found.into_iter().find(|agent| !known.contains(&agent.id)).unwrap();
    let request = v1::RevokeAgentRequest { id: revoked.id };
    world.client().agents().revoke_agent(request).await.unwrap();
    agent.kill().await.unwrap();
    fs::remove_dir_all(agent.data_dir()).unwrap();
    let mut agent = launch_new(&world, &files, &join_token).await.unwrap();
    let status = agent.process().ended().await.unwrap();
    let log = agent.log_text().unwrap();
    assert!(status.code() == Some(1) && log.contains("unknown, used or expired"), "{status}: {log}");
    assert!(
        !agent.data_dir().join("config.log").exists() && !agent.data_dir().join("unenrolled.json").exists()
    );
}

/// An agent that waits for the control plane does not end when its join token cannot be read for a moment, as while
/// somebody writes another one: it goes on with the one it has.
#[tokio::test]
async fn waiting_agents_keep_their_join_token() {
    let mut world = world().await;
    let join_token = world.control_plane.join_token(REGION).await.unwrap();
    world.control_plane.stop().await.unwrap();
    let options = AgentOptions {
        join_token: Some(join_token),
        control_plane_url: Some(world.control_plane.url()),
        ..Default::default()
    };
    let mut agent = Agent::launch_alone(&world.directory().join("new"), options).await.unwrap();
    let waits = |line: &serde_json::Value| line.to_string().contains("trying again").then_some(());
    agent.process().logged(waits).await.unwrap();
    fs::write(world.directory().join("new/join-token"), "").unwrap();
    let tries =
        || agent.log_text().map(|log| log.lines().filter(|line| line.contains("trying again")).count());
    let before = tries().unwrap();
    // One may have been under way when the token went.
    let goes_on = eventually(DEADLINE, async || {
        ensure!(tries()? > before + 1, "it does not go on trying");
        Ok(())
    });
    goes_on.await.unwrap();
    world.control_plane.start_again().await.unwrap();
    agent.wait_ready().await.unwrap();
}
