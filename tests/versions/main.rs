//! Records how the programs of a version talk to each other, so that those of later versions are tested against
//! it: `just record-versions DIRECTORY NAME` with the programs of that version in the directory.
//!
//! What comes out, in `tests/versions/<name>/`:
//! - `first.bin`: every message between an agent that enrolls and its control plane: configuration and changes
//!   of it, events, attempts, opt-outs, an unrouted callback, a test event ([`gateway_tests::relay`])
//! - `control-plane/` and `agent/`: their data directories after that
//! - `second.bin`: the messages after both were started again
//!
//! Names, numbers and secrets are made up.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use gateway_proto::v1;
use gateway_tests::{
    Agent, ControlPlane, DEADLINE, MetaProvider, Receiver, Reply, Within as _,
    agent::AgentOptions,
    control_plane::ControlPlaneOptions,
    eventually,
    meta::{status, text_message, unique_wamid},
    programs::workspace_root,
    relay::{self, Relay},
    versions::{RECEIVER, copy},
    world::{APP_SECRET, INSTANCE_ID, PHONE_NUMBER_ID, create_instance, subscribe, update},
};

const FROM: &str = "966500000001";
const OPTS_OUT: &str = "966500000002";

/// Records how the programs of a version talk to each other.
#[derive(Parser)]
struct Arguments {
    /// Directory with `gateway-agent` and `gateway-control-plane` of the version.
    programs: PathBuf,
    /// What the version is called: the directory below `tests/versions`.
    name: String,
}

/// The two programs, and the line between them.
struct Gateway {
    control_plane: ControlPlane,
    agent: Agent,
    relay: Relay,
    provider: MetaProvider,
    receiver: Receiver,
    subscription: v1::WebhookSubscription,
}

impl Gateway {
    async fn start(directory: &Path, programs: &Path) -> anyhow::Result<Self> {
        let receiver = Receiver::start_at(RECEIVER.parse::<SocketAddr>()?).await?;
        receiver.answer_with(|webhook| match webhook.path.as_str() {
            "/broken" => Reply::Status(500),
            "/gone" => Reply::Status(410),
            _ => Reply::Status(200),
        });
        let options = ControlPlaneOptions {
            program: Some(programs.join("gateway-control-plane")),
            ..ControlPlaneOptions::default()
        };
        let control_plane = ControlPlane::start_with(directory, options).await?;
        let route = create_instance(control_plane.client()).await?;
        let url = receiver.url("/crm");
        let subscription = subscribe(control_plane.client(), &url, &["*"]).await?;
        for path in ["/broken", "/gone"] {
            subscribe(control_plane.client(), &receiver.url(path), &["message.received"]).await?;
        }
        let relay = Relay::start(&control_plane.url()).await?;
        let options = AgentOptions {
            program: Some(programs.join("gateway-agent")),
            control_plane_url: Some(relay.url()),
            // So that the recorded buffer is small.
            arguments: ["--buffer-segment-bytes", "64KiB"].map(str::to_owned).into(),
            ..AgentOptions::default()
        };
        let agent = Agent::start(directory, &control_plane, options).await?;
        let provider =
            MetaProvider::new(agent.callback_url(&route.callback_path), APP_SECRET, PHONE_NUMBER_ID)?;
        Ok(Self { control_plane, agent, relay, provider, receiver, subscription })
    }

    async fn delivered(&self, wamid: &str) -> anyhow::Result<()> {
        let is_it = |webhook: &gateway_tests::Webhook| {
            webhook.path == "/crm" && webhook.text("external_message_id") == wamid
        };
        self.receiver.find(is_it).within(DEADLINE).await?;
        Ok(())
    }

    async fn test_event(&self) -> anyhow::Result<()> {
        let request = v1::SendTestEventRequest { id: self.subscription.id.clone() };
        let mut subscriptions = self.control_plane.client().webhook_subscriptions();
        let event_id = subscriptions.send_test_event(request).await?.into_inner().event_id;
        self.receiver.find(|webhook| webhook.id() == event_id).within(DEADLINE).await?;
        Ok(())
    }

    /// Everything that an agent tells, once.
    async fn first_session(&self) -> anyhow::Result<()> {
        let (client, provider) = (self.control_plane.client(), &self.provider);
        let wamid = unique_wamid();
        let callback = provider.messages(&[text_message(&wamid, FROM, "hello from an earlier version")]);
        for _ in 0..2 {
            ensure!(provider.post(&callback).await?.status == 200, "the callback is refused");
        }
        self.delivered(&wamid).await?;
        provider.post(&provider.statuses(&[status(&unique_wamid(), FROM, "delivered")])).await?;
        provider.with_number("999999999999").say(FROM, "to nobody").await?;
        provider.say(OPTS_OUT, "STOP").await?;
        self.test_event().await?;
        let change = v1::WebhookSubscription { display_name: "changed".to_owned(), ..Default::default() };
        update(client, &self.subscription.id, change, "display_name").await?;
        let request =
            v1::RotateSigningSecretRequest { id: self.subscription.id.clone(), ..Default::default() };
        client.webhook_subscriptions().rotate_signing_secret(request).await?;
        self.settled().await
    }

    async fn second_session(&self) -> anyhow::Result<()> {
        let wamid = self.provider.say(FROM, "hello again").await?;
        self.delivered(&wamid).await?;
        self.provider.say(OPTS_OUT, "START").await?;
        self.test_event().await?;
        self.settled().await
    }

    /// Waits until the agent has everything, and has told everything.
    async fn settled(&self) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            let client = self.control_plane.client();
            let answer = client.agents().list_agents(v1::ListAgentsRequest::default()).await?.into_inner();
            let agent = answer.agents.first().context("find the agent")?;
            ensure!(agent.applied_version == answer.config_version, "{agent:?}");
            let request =
                v1::ListInboundLogsRequest { instance_id: INSTANCE_ID.to_owned(), ..Default::default() };
            let logs = client.inbound_logs().list_inbound_logs(request).await?.into_inner().inbound_logs;
            let logged = logs.iter().flat_map(|log| &log.deliveries);
            let open = logged.filter(|delivery| {
                let is_first = delivery.subscription_id == self.subscription.id;
                is_first && delivery.state() != v1::DeliveryState::Delivered
            });
            ensure!(open.count() == 0, "a delivery is open");
            let ids = self.receiver.by_id();
            ensure!(
                ids.keys().all(|id| logs.iter().any(|log| log.event_id == *id)),
                "an event is not logged"
            );
            Ok(())
        })
        .await
    }
}

/// Removes what belongs to a running process, and directories that a repository would not keep.
fn tidy(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            tidy(&path)?;
            if fs::read_dir(&path)?.next().is_none() {
                fs::remove_dir(&path)?;
            }
        } else if name == "lock" || name.ends_with("-shm") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let to = workspace_root().join("tests/versions").join(&arguments.name);
    fs::create_dir_all(&to)?;
    let directory = tempfile::tempdir()?;
    let mut gateway = Gateway::start(directory.path(), &arguments.programs).await?;
    gateway.first_session().await?;
    gateway.agent.stop().await?;
    gateway.control_plane.stop().await?;
    let first = gateway.relay.recorded();
    relay::write(&to.join("first.bin"), &first)?;
    for data_dir in [gateway.control_plane.data_dir(), gateway.agent.data_dir()] {
        let name = data_dir.file_name().context("name the data directory")?;
        copy(&data_dir, &to.join(name))?;
        tidy(&to.join(name))?;
    }
    gateway.control_plane.start_again().await?;
    gateway.agent.start_again().await?;
    gateway.second_session().await?;
    gateway.agent.stop().await?;
    let mut all = gateway.relay.recorded();
    relay::write(&to.join("second.bin"), &all.split_off(first.len()))
}
