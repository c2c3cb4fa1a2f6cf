//! A normal start and a normal stop say nothing that worries anybody: who is warned each time stops reading.

use anyhow::Context as _;
use gateway_proto::v1;
use gateway_tests::{DEADLINE, Within as _, World, control_plane::ControlPlaneOptions, world::WorldOptions};
use serde_json::Value;

const FROM: &str = "966500000001";

/// The lines of a log that are warnings or errors, or no log lines at all, such as those of a panic.
fn worries(log: &str) -> Vec<&str> {
    let is_calm = |line: &&str| {
        let level = serde_json::from_str::<Value>(line).ok();
        let level = level.as_ref().and_then(|line| line["level"].as_str());
        matches!(level, Some("INFO" | "DEBUG" | "TRACE"))
    };
    log.lines().filter(|line| !line.is_empty() && !is_calm(line)).collect()
}

/// The first start of a control plane and an agent, a message, and a stop, in plain text or with TLS: no log line of
/// either is a warning, both end with success, and nothing is done twice: over TLS the certificate that the agent
/// enrolled with is the one that it uses.
async fn first_start(control_plane: ControlPlaneOptions) {
    let mut world = World::start_with(WorldOptions { control_plane, ..Default::default() }).await.unwrap();
    let wamid = world.provider.say(FROM, "the first one").await.unwrap();
    let webhook = world.delivered(&wamid).await.unwrap();
    world.log_in(webhook.id(), v1::DeliveryState::Delivered).await.unwrap();
    let agent = world.agent.stop().await.unwrap();
    let control_plane = world.control_plane.stop().await.unwrap();
    assert!(agent.success() && control_plane.success(), "they ended with {agent} and {control_plane}");
    let logs = [world.agent.log_text().unwrap(), world.control_plane.log_text().unwrap()];
    for log in &logs {
        assert!(log.lines().count() > 2, "nothing is logged: {log}");
        assert_eq!(worries(log), Vec::<&str>::new());
    }
    assert!(!logs[0].contains("renewed the client certificate"), "{}", logs[0]);
}

/// Without TLS.
#[tokio::test]
async fn plain_first_start_worries_nobody() {
    first_start(ControlPlaneOptions::default()).await;
}

/// With TLS and the control plane's own authority.
#[tokio::test]
async fn tls_first_start_worries_nobody() {
    let arguments = vec!["--tls-own-ca".to_owned()];
    first_start(ControlPlaneOptions { arguments, ..Default::default() }).await;
}

/// Whoever opened a file with a secret to others hears of it at the next start, on both sides; the file stays as it
/// is.
#[tokio::test]
async fn open_files_with_secrets_are_told() {
    use std::{fs, os::unix::fs::PermissionsExt as _};
    let mut world = World::start().await.unwrap();
    world.agent.stop().await.unwrap();
    world.control_plane.stop().await.unwrap();
    let (ours, theirs) = (world.agent.data_dir(), world.control_plane.data_dir());
    let files = [
        ours.join("credential.json"),
        ours.join("config.key"),
        theirs.join("admin.key"),
        theirs.join("ca.key"),
    ];
    for file in &files {
        fs::set_permissions(file, fs::Permissions::from_mode(0o640)).unwrap();
    }
    world.control_plane.start_again().await.unwrap();
    world.agent.start_again().await.unwrap();
    let log = format!("{}{}", world.agent.log_text().unwrap(), world.control_plane.log_text().unwrap());
    let warnings = worries(&log);
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let is_it = |line: &&&str| line.contains(name) && line.contains("chmod 600") && line.contains("640");
        assert_eq!(warnings.iter().filter(is_it).count(), 1, "{name}: {warnings:#?}");
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o640);
    }
    assert_eq!(warnings.len(), files.len(), "{warnings:#?}");
}

/// An agent that starts without its control plane shows from the first moment which configuration it uses, and the
/// fleet shows it as soon as the agent is back.
#[tokio::test]
async fn the_version_in_use_is_shown_at_once() {
    let mut world = World::start().await.unwrap();
    let applied = world.agent.metric("gateway_config_applied_version").await.unwrap();
    assert!(applied > 0.0);
    world.control_plane.stop().await.unwrap();
    world.agent.stop().await.unwrap();
    world.agent.start_again().await.unwrap();
    assert_eq!(world.agent.metric("gateway_config_applied_version").await.unwrap(), applied);
    world.control_plane.start_again().await.unwrap();
    world.config_applied().within(DEADLINE).await.context("the agent is back").unwrap().unwrap();
}
