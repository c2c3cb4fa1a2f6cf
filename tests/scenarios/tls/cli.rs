//! The command line with a control plane that speaks TLS.

use std::{fs, path::Path, process::Output};

use gateway_tests::{
    Within as _,
    world::{APP_SECRET, PHONE_NUMBER_ID},
};

use super::*;

/// `gateway trigger` at the agent of `world` and the control plane at `url`.
async fn trigger(world: &World, url: &str, ca: Option<&Path>) -> Output {
    let mut command = Command::new(&programs().await.unwrap().cli);
    let home = world.directory();
    command.env("XDG_RUNTIME_DIR", home).env("TMPDIR", home).env_remove("GATEWAY_CONTROL_PLANE_CA");
    command.args(["trigger", "message.received", "--json", "--phone-number", "+15550783881"]);
    let callback_url = world.agent.callback_url(&world.inbound_route.callback_path);
    for (flag, value) in [
        ("--callback-url", callback_url.as_str()),
        ("--secret", APP_SECRET),
        ("--provider-number-id", PHONE_NUMBER_ID),
        ("--control-plane-url", url),
        ("--api-key", world.control_plane.admin_key()),
    ] {
        command.args([flag, value]);
    }
    if let Some(ca) = ca {
        command.arg("--control-plane-ca").arg(ca);
    }
    command.kill_on_drop(true).output().within(DEADLINE).await.unwrap().unwrap()
}

/// The command line calls a control plane over TLS whose authority it is given. Without it, with another one, and with
/// http where it should be https or the reverse, it ends before it sends anything, and says what to give.
#[tokio::test]
async fn the_command_line_speaks_tls() {
    let (world, plain) = (world("24h").await, World::start().await.unwrap());
    let ca = world.control_plane.data_dir().join("ca.pem");
    let url = world.control_plane.url();
    let done = trigger(&world, &url, Some(&ca)).await;
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(report["events"][0]["event"], "message.received");
    assert_eq!(world.receiver.count(), 1);

    let other = plain.control_plane.data_dir().join("ca.pem");
    let empty = world.directory().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let no_tls = plain.control_plane.url();
    let (to_plain, to_tls) = (no_tls.replace("http://", "https://"), url.replace("https://", "http://"));
    for (url, ca, code, words) in [
        (&url, None, 1, "--control-plane-ca"),
        (&url, Some(&other), 1, "an authority that is not trusted here"),
        (&url, Some(&empty), 64, "certificate or more in PEM"),
        (&url, Some(&world.directory().join("missing.pem")), 64, "missing.pem"),
        (&to_tls, None, 64, "call it by https://"),
        (&to_plain, Some(&ca), 64, "call it by http://"),
        (&no_tls, Some(&ca), 64, "for https:// only"),
    ] {
        let refused = trigger(&world, url, ca.map(|path| path.as_path())).await;
        let text = String::from_utf8_lossy(&refused.stderr);
        assert!(
            refused.status.code() == Some(code) && text.contains(words),
            "{url}: {}: {text}",
            refused.status
        );
        assert!(!text.contains(world.control_plane.admin_key()), "{text}");
    }
    assert_eq!((world.receiver.count(), plain.receiver.count()), (1, 0));
}
