//! `gateway dev` and `gateway trigger` as a person uses them: the real program, twice.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

#[path = "dev/providers.rs"]
mod providers;

const DEADLINE: Duration = Duration::from_secs(60);
const LISTENS: [&str; 5] = [
    "--grpc-listen",
    "--control-plane-admin-listen",
    "--callback-listen",
    "--agent-admin-listen",
    "--receiver-listen",
];

/// The program, with the session file in `directory`.
fn gateway(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.env("XDG_RUNTIME_DIR", directory).env("TMPDIR", directory).kill_on_drop(true);
    command
}

struct Dev {
    process: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    /// What it printed when it was ready.
    welcome: Vec<String>,
}

impl Dev {
    /// Starts `gateway dev` on free ports and waits until it says that it runs.
    async fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = gateway(directory);
        command.arg("dev").args(arguments).stdout(Stdio::piped());
        for listen in LISTENS {
            command.args([listen, "127.0.0.1:0"]);
        }
        let mut process = command.spawn().expect("the program starts");
        let mut stdout = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let mut welcome = Vec::new();
        loop {
            let line =
                timeout(DEADLINE, stdout.next_line()).await.expect("ready in time").expect("it can be read");
            let line = line.expect("it does not end before it is ready");
            let ready = line.starts_with("Webhooks that the built-in receiver takes");
            welcome.push(line);
            if ready {
                return Self { process, stdout, welcome };
            }
        }
    }

    /// The value of a line such as `  admin key   …`.
    fn fact(&self, name: &str) -> &str {
        let line = self.welcome.iter().find_map(|line| line.strip_prefix("  ")?.strip_prefix(name));
        line.expect("the welcome text has it").trim()
    }

    /// Stops it as Ctrl-C does, and returns its exit code.
    async fn interrupt(mut self) -> Option<i32> {
        let id = self.process.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-INT", &id]).status().await.expect("kill is there").success());
        timeout(DEADLINE, self.process.wait())
            .await
            .expect("stopped in time")
            .expect("it can be waited for")
            .code()
    }
}

async fn run(command: &mut Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("done in time").expect("the program starts")
}

/// Runs `gateway trigger … --json`, which must succeed.
async fn trigger(directory: &Path, arguments: &[&str]) -> Value {
    let output = run(gateway(directory).arg("trigger").args(arguments).arg("--json")).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

fn events(report: &Value) -> Vec<&str> {
    let events = report["events"].as_array().expect("it is a list");
    events.iter().filter_map(|event| event["event"].as_str()).collect()
}

/// Each kind of sample goes in at the agent's front door and comes out as signed webhooks, logged and
/// delivered at the first attempt; Ctrl-C ends it with exit code 0 and leaves no file behind.
#[tokio::test]
async fn samples_come_out_as_webhooks() {
    let directory = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(directory.path(), &[]).await;
    let received = trigger(directory.path(), &["message.received", "--text", "hello"]).await;
    assert_eq!(received["callback"]["status_code"], 200);
    assert_eq!(events(&received), ["message.received"]);
    let event = &received["events"][0];
    assert_eq!(event["webhook"]["body"]["message_text"], "hello");
    assert_eq!(event["webhook"]["headers"]["webhook-id"], event["event_id"]);
    assert_eq!(event["deliveries"][0]["attempts"][0]["number"], 1);
    assert_eq!(event["deliveries"][0]["attempts"][0]["status_code"], 204);
    let status = trigger(directory.path(), &["status", "--status", "read"]).await;
    assert_eq!(events(&status), ["message.read", "message.status_updated"]);
    let stop = trigger(directory.path(), &["opt-out", "--from", "+966500000042"]).await;
    assert_eq!(events(&stop), ["message.received", "recipient.opted_out"]);
    assert_eq!(stop["suppression"]["marketing_allowed"], false);
    let again = trigger(directory.path(), &["opt-out", "--from", "+966500000042"]).await;
    assert_eq!(events(&again), ["message.received"]);
    // One line for each webhook, without what people wrote.
    let line = timeout(DEADLINE, dev.stdout.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.contains("message.received") && !line.contains("hello"), "{line}");
    assert_eq!(dev.interrupt().await, Some(0));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

/// With a data directory, the second start finds what the first one made: keys, secrets, callback URL.
#[tokio::test]
async fn a_second_start_finds_everything() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let arguments = ["--data-dir", data.to_str().unwrap()];
    let facts = ["app secret", "verify token", "signing secret", "admin key"];
    let first = Dev::start(directory.path(), &arguments).await;
    let before = facts.map(|fact| first.fact(fact).to_owned());
    let path_before = first.fact("callback URL").rsplit('/').next().unwrap().to_owned();
    assert_eq!(first.interrupt().await, Some(0));
    let second = Dev::start(directory.path(), &arguments).await;
    assert_eq!(facts.map(|fact| second.fact(fact).to_owned()), before);
    assert!(second.fact("callback URL").ends_with(&path_before));
    // The receiver has another port now, and the demo subscription follows it.
    let report = trigger(directory.path(), &["message.received"]).await;
    assert!(report["events"][0]["webhook"]["headers"].is_object());
    assert_eq!(second.interrupt().await, Some(0));
}

/// With `--tls` the control plane is called over TLS, and `gateway trigger` finds its authority by itself.
#[tokio::test]
async fn tls_needs_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let dev = Dev::start(directory.path(), &["--tls"]).await;
    assert!(dev.fact("control plane").ends_with("(gRPC, TLS)"), "{:?}", dev.welcome);
    assert!(dev.welcome.iter().any(|line| line.contains("grpcurl -cacert /")), "{:?}", dev.welcome);
    let report = trigger(directory.path(), &["message.received"]).await;
    assert_eq!(events(&report), ["message.received"]);
    assert_eq!(dev.interrupt().await, Some(0));
}

/// A taken port is named together with the flag that chooses another one.
#[tokio::test]
async fn a_taken_port_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for listen in LISTENS {
        let mut command = gateway(directory.path());
        command.args(["dev", listen, &address]);
        for other in LISTENS.into_iter().filter(|other| *other != listen) {
            command.args([other, "127.0.0.1:0"]);
        }
        let output = run(&mut command).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(&address) && errors.contains(listen), "{errors}");
    }
}

/// A data directory that another one uses, or that cannot be made, is named, with what to do; the one that runs goes on.
#[tokio::test]
async fn unusable_data_directories_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (data, file) = (directory.path().join("data"), directory.path().join("file"));
    std::fs::write(&file, "").unwrap();
    let first = Dev::start(directory.path(), &["--data-dir", data.to_str().unwrap()]).await;
    for (path, words) in [(&data, "another control plane (process "), (&file, "may write")] {
        let mut command = gateway(directory.path());
        command.args(["dev", "--data-dir"]).arg(path);
        for listen in LISTENS {
            command.args([listen, "127.0.0.1:0"]);
        }
        let output = run(&mut command).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        let all = [path.to_str().unwrap(), words, "--data-dir"];
        assert!(all.iter().all(|text| errors.contains(text)), "{errors}");
    }
    trigger(directory.path(), &["message.received"]).await;
    assert_eq!(first.interrupt().await, Some(0));
}

/// Without a running `gateway dev`, a wrong secret or a public address, the message says what to do.
#[tokio::test]
async fn failures_say_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let output = run(gateway(directory.path()).args(["trigger", "status"])).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("gateway dev"));
    for wrong in [
        &["--provider-number-id", "1"][..],
        &["--from", "nobody", "--instance-id", "x"],
        &["--status", "lost"],
        &["--no-such-flag"],
    ] {
        let output = run(gateway(directory.path()).args(["trigger", "status"]).args(wrong)).await;
        assert_eq!(output.status.code(), Some(64), "{wrong:?}");
    }
    assert_eq!(run(gateway(directory.path()).arg("--help")).await.status.code(), Some(0));
    let output = run(gateway(directory.path()).args(["dev", "--callback-listen", "0.0.0.0:0"])).await;
    assert_eq!(output.status.code(), Some(64));
    let dev = Dev::start(directory.path(), &[]).await;
    let arguments = ["trigger", "message.received", "--app-secret", "another"];
    let output = run(gateway(directory.path()).args(arguments)).await;
    assert_eq!(output.status.code(), Some(1));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("401") && errors.contains("app secret"), "{errors}");
    let output = run(gateway(directory.path()).args(["trigger", "opt-out", "--text", "Hi"])).await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(64), 0), "nothing was sent");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no keyword"));
    assert_eq!(dev.interrupt().await, Some(0));
}
