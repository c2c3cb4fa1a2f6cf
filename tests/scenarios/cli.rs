//! The README's first command, and what comes next.

use std::fs;

use anyhow::Context as _;
use gateway_tests::{DEADLINE, process::Process, programs::programs};
use serde_json::Value;
use tokio::process::Command;

/// The last line of what `gateway dev` prints before it waits.
const WELCOME_END: &str = "Webhooks that the built-in receiver takes:";

/// A running `gateway dev` with its own home, so that it meets no other one.
struct Dev {
    process: Process,
    home: tempfile::TempDir,
}

impl Dev {
    async fn start() -> anyhow::Result<Self> {
        Self::start_in(tempfile::tempdir()?, &[]).await
    }

    async fn start_in(home: tempfile::TempDir, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = program(&home).await?;
        command.arg("dev").args(arguments);
        for flag in ["grpc", "control-plane-admin", "callback", "agent-admin", "receiver"] {
            command.args([&format!("--{flag}-listen"), "127.0.0.1:0"]);
        }
        let log = home.path().join("dev.log");
        let before = fs::read(&log).unwrap_or_default().len();
        let mut process = Process::spawn("gateway dev", command, &log)?;
        let ready = async || {
            let text = fs::read_to_string(&log)?;
            text[before..].contains(WELCOME_END).then_some(()).context("it says nothing yet")
        };
        process.ready_when(ready).await?;
        Ok(Self { process, home })
    }

    /// Runs `gateway` with these arguments to its end; gives what it printed.
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = program(&self.home).await?;
        let output = command.args(arguments).output().await?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "gateway {arguments:?}: {}: {complaint}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }
}

async fn program(home: &tempfile::TempDir) -> anyhow::Result<Command> {
    let mut command = Command::new(&programs().await?.cli);
    let path = home.path();
    command.kill_on_drop(true).current_dir(path).env("NO_COLOR", "1");
    for name in [
        "HOME",
        "TMPDIR",
        "XDG_RUNTIME_DIR",
        "XDG_STATE_HOME",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
    ] {
        command.env(name, path);
    }
    Ok(command)
}

/// `gateway dev` starts on free ports and prints what one needs; `gateway trigger` sends each sample through
/// the front door and shows what became of it; Ctrl-C ends it with success and leaves nothing behind.
#[tokio::test]
async fn dev_and_trigger_work_and_leave_nothing() {
    let mut dev = Dev::start().await.unwrap();
    let welcome = dev.process.log_text().unwrap();
    for expected in [
        "demo-support-line",
        "Demo Support Line",
        "/callbacks/meta/",
        "WhatsApp Gateway is running",
        "app secret",
        "verify token",
        "grpcurl",
        "curl",
    ] {
        assert!(welcome.contains(expected), "{expected} is not in:\n{welcome}");
    }
    for (kind, events) in [
        ("message.received", vec!["message.received"]),
        ("status", vec!["message.delivered", "message.status_updated"]),
        ("opt-out", vec!["message.received", "recipient.opted_out"]),
    ] {
        let printed = dev.run(&["trigger", kind, "--json"]).await.unwrap();
        let report: Value = serde_json::from_str(&printed).with_context(|| printed.clone()).unwrap();
        assert_eq!(report["callback"]["status_code"], 200, "{report}");
        let text = report["events"].to_string();
        assert_eq!(report["events"].as_array().map(Vec::len), Some(events.len()), "{report}");
        assert!(events.iter().all(|event| text.contains(event)), "{report}");
    }
    let shown = dev.run(&["trigger", "message.received", "--text", "for people"]).await.unwrap();
    for expected in ["webhook-signature", "webhook-id", "for people"] {
        assert!(shown.to_lowercase().contains(expected), "{expected} is not in:\n{shown}");
    }
    dev.process.signal("INT").await.unwrap();
    assert!(dev.process.ended().await.unwrap().success());
    let mut left: Vec<String> = fs::read_dir(dev.home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    left.retain(|name| name != "dev.log");
    let text = dev.process.log_text().unwrap();
    assert!(left.is_empty() || left.iter().all(|name| is_empty_directory(&dev, name)), "{left:?}\n{text}");
    assert!(dev.run(&["trigger", "status"]).await.is_err());
}

fn is_empty_directory(dev: &Dev, name: &str) -> bool {
    fs::read_dir(dev.home.path().join(name)).is_ok_and(|mut entries| entries.next().is_none())
}

/// With `--data-dir` everything is found again at the next start: secrets, callback path, events.
#[tokio::test]
async fn dev_finds_its_data_again() {
    let callback_path = |dev: &Dev| {
        let text = dev.process.log_text().unwrap();
        let start = text.find("/callbacks/meta/").unwrap();
        text[start..].split_whitespace().next().unwrap().to_owned()
    };
    let arguments = ["--data-dir", "kept"];
    let mut dev = Dev::start_in(tempfile::tempdir().unwrap(), &arguments).await.unwrap();
    dev.run(&["trigger", "message.received"]).await.unwrap();
    let path = callback_path(&dev);
    dev.process.signal("TERM").await.unwrap();
    assert!(dev.process.ended().await.unwrap().success());
    let Dev { home, .. } = dev;
    let dev = Dev::start_in(home, &arguments).await.unwrap();
    assert_eq!(callback_path(&dev), path);
    dev.run(&["trigger", "opt-out"]).await.unwrap();
}

/// Port 0 works for the programs themselves, and the address bound is logged; a bad setting ends them with
/// exit code 64 and a line that names it.
#[tokio::test]
async fn programs_log_their_addresses_and_name_bad_settings() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(&programs().await.unwrap().control_plane);
    command.args(["--grpc-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"]);
    command.arg("--data-dir").arg(directory.path().join("control-plane"));
    let mut process = Process::spawn("control plane", command, &directory.path().join("log")).unwrap();
    let address = process.logged(|line| line["grpc_addr"].as_str().map(str::to_owned)).await.unwrap();
    assert!(!address.ends_with(":0") && address.starts_with("127.0.0.1:"), "{address}");
    assert!(process.stop().await.unwrap().success());

    let (agent, control_plane) = (&programs().await.unwrap().agent, &programs().await.unwrap().control_plane);
    for (program, arguments, named) in [
        (agent, ["--region", "EU West"], "region"),
        (agent, ["--callback-listen", "0.0.0.0:0"], "callback_listen"),
        (control_plane, ["--grpc-listen", "0.0.0.0:0"], "0.0.0.0"),
    ] {
        let output = Command::new(program).args(arguments).current_dir(directory.path()).output();
        let output = tokio::time::timeout(DEADLINE, output).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{text}");
        assert!(text.contains(named), "{text}");
    }
}
