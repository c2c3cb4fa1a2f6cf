//! Data of a gateway whose agent was killed with a backlog in many small segments.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use gateway_core::id::EventId;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Reply, Webhook, Within as _, World,
    agent::AgentOptions,
    eventually,
    meta::{text_message, unique_wamid},
    world::{INSTANCE_ID, WorldOptions, update},
};
use tokio::task::JoinSet;

/// The smallest segments, so that there are many.
const SEGMENT_BYTES: &str = "64KiB";
/// Connections that post.
const CONNECTIONS: usize = 8;
/// Events that are delivered and reported before.
const SETTLED: usize = 300;
/// Events that were refused once: fewer than open a breaker.
const FAILED: usize = 5;
/// Events that are reported and not delivered.
const REPORTED: usize = 500;
/// Events that are neither.
const UNREPORTED: usize = 500;

/// The gateway, ended, and what is owed to its receiver, which lives on.
pub struct Backlog {
    /// The gateway: both programs have ended.
    pub world: World,
    /// Messages that were answered 200 and not delivered.
    pub pending: BTreeSet<String>,
}

impl Backlog {
    /// Makes one.
    pub async fn make() -> anyhow::Result<Self> {
        let agent = AgentOptions { arguments: arguments(), ..AgentOptions::default() };
        let mut world = World::start_with(WorldOptions { agent, ..WorldOptions::default() }).await?;
        // However long this takes, everything is due soon after the next start.
        let delays = vec![prost_types::Duration { seconds: 1, nanos: 0 }; 20];
        let change = v1::WebhookSubscription {
            attempt_timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
            retry_policy: Some(v1::RetryPolicy { delays }),
            ..Default::default()
        };
        for path in ["attempt_timeout", "retry_policy"] {
            update(world.client(), &world.subscription.id, change.clone(), path).await?;
        }
        world.config_applied().await?;
        for wamid in post(&world, SETTLED).await? {
            world.delivered(&wamid).await?;
        }
        let hang_later = |webhook: &Webhook| if webhook.nth == 1 { Reply::Status(500) } else { Reply::Hang };
        world.receiver.answer_with(hang_later);
        let before = world.receiver.count();
        let mut pending = post(&world, FAILED).await?;
        world.receiver.recorded(before + FAILED).within(DEADLINE).await?;
        // Attempts that never end, so that everything is due at once after the next start.
        world.receiver.answer_with(|_| Reply::Hang);
        pending.extend(post(&world, REPORTED).await?);
        for wamid in &pending {
            logged(&world, wamid).await?;
        }
        world.control_plane.stop().await?;
        pending.extend(post(&world, UNREPORTED).await?);
        world.agent.kill().await?;
        world.receiver.answer_with(|_| Reply::Status(200));
        Ok(Self { world, pending })
    }

    /// The agent's buffer.
    pub fn buffer(&self) -> PathBuf {
        self.world.agent.data_dir().join("buffer")
    }

    /// Copies all data to `directory`.
    pub fn copy_to(&self, directory: &Path) -> anyhow::Result<()> {
        for part in ["agent", "control-plane"] {
            copy(&self.world.directory().join(part), &directory.join(part))?;
        }
        Ok(())
    }
}

/// What agents are started with.
pub fn arguments() -> Vec<String> {
    ["--buffer-segment-bytes", SEGMENT_BYTES].map(str::to_owned).into()
}

/// The `webhook-id` of a message.
pub fn event_id(wamid: &str) -> String {
    EventId::derive(&["message.received", "meta", INSTANCE_ID, wamid, "", "", ""]).to_string()
}

/// Posts so many messages, which are all answered 200.
async fn post(world: &World, count: usize) -> anyhow::Result<BTreeSet<String>> {
    let mut posters = JoinSet::new();
    for connection in 0..CONNECTIONS {
        let provider = world.provider.clone();
        posters.spawn(async move {
            let mut wamids = Vec::new();
            for number in (connection..count).step_by(CONNECTIONS) {
                let wamid = unique_wamid();
                let message = text_message(&wamid, &format!("9665{:08}", number % 50), "owed");
                let answer = provider.post(&provider.messages(&[message])).await?;
                ensure!(answer.status == 200, "answered {}", answer.status);
                wamids.push(wamid);
            }
            anyhow::Ok(wamids)
        });
    }
    let mut wamids = BTreeSet::new();
    while let Some(posted) = posters.join_next().await {
        wamids.extend(posted??);
    }
    Ok(wamids)
}

/// Waits until a message is in the inbound logs.
async fn logged(world: &World, wamid: &str) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let request = v1::GetInboundLogRequest { event_id: event_id(wamid) };
        world.client().inbound_logs().get_inbound_log(request).await?;
        Ok(())
    })
    .await
}

/// Copies a directory.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read `{}`", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
