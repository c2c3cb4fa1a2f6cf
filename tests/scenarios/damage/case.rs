//! One case: a hurt buffer, an agent on it, and what must come of it.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{Agent, ControlPlane, DEADLINE, agent::AgentOptions, eventually};

use super::{
    backlog::{Backlog, arguments, event_id},
    injury::{Injury, Notice},
};

/// An agent serves within this time, whatever its buffer is like.
const SERVING_MAX: Duration = Duration::from_secs(30);
/// How long the backlog may take, on a machine with other work.
const DELIVERED_MAX: Duration = Duration::from_secs(90);
/// Lines of the agent's log that a failed case shows.
const LOG_LINES: usize = 12;

/// What came of a case.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// From start to the first callback answered 200.
    pub serving: Duration,
    /// From start to the last event of the backlog.
    pub delivered: Duration,
    /// Events of the backlog.
    pub events: u64,
    /// Those that did not arrive.
    pub lost: u64,
    /// How many the agent reported as lost at most.
    pub reported_lost_max: u64,
    /// Files and directories set aside.
    pub set_aside: u64,
}

/// The gateway of one case.
struct Case<'a> {
    backlog: &'a Backlog,
    injury: Injury,
    control_plane: ControlPlane,
    agent: Agent,
    launched: Instant,
}

/// Hurts a copy of the backlog and starts a gateway on it.
pub async fn run(backlog: &Backlog, injury: Injury) -> anyhow::Result<Outcome> {
    let directory = tempfile::tempdir()?;
    backlog.copy_to(directory.path())?;
    injury.inflict(&directory.path().join("agent/buffer"))?;
    backlog.world.receiver.forget();
    let control_plane = ControlPlane::start(directory.path()).await?;
    let launched = Instant::now();
    let options = AgentOptions {
        // It has enrolled before.
        join_token: Some("used".to_owned()),
        arguments: arguments(),
        ..AgentOptions::default()
    };
    let agent = Agent::launch(directory.path(), &control_plane, options).await?;
    let mut case = Case { backlog, injury, control_plane, agent, launched };
    let outcome = case.outcome().await;
    let log = case.agent.log_text().unwrap_or_default();
    // Attempts of this agent must not be taken for those of the next.
    case.agent.kill().await?;
    outcome.with_context(|| {
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    })
}

impl Case<'_> {
    async fn outcome(&mut self) -> anyhow::Result<Outcome> {
        self.agent.wait_ready().await?;
        let path = &self.backlog.world.inbound_route.callback_path;
        let provider = self.backlog.world.provider.with_url(self.agent.callback_url(path));
        let new =
            eventually(SERVING_MAX, async || provider.say("966500000001", "are you well?").await).await?;
        let serving = self.launched.elapsed();
        ensure!(serving < SERVING_MAX, "serving after {serving:?}");
        self.delivered(&new).await?;
        let delivered = self.launched.elapsed();
        self.settled().await?;
        let lost = self.missing();
        let damages = self.damages(lost.len()).await?;
        let set_aside = self.set_aside(!lost.is_empty(), &damages).await?;
        if self.injury.is_harmless {
            ensure!(lost.is_empty() && damages.is_empty() && set_aside == 0, "damage was seen: {damages:?}");
        }
        Ok(Outcome {
            serving,
            delivered,
            events: u64::try_from(self.backlog.pending.len())?,
            lost: u64::try_from(lost.len())?,
            reported_lost_max: damages.iter().map(|damage| damage.events_lost_max).sum(),
            set_aside,
        })
    }

    fn arrived(&self) -> BTreeSet<String> {
        self.backlog.world.receiver.all().iter().map(|webhook| webhook.id().to_owned()).collect()
    }

    /// Messages of the backlog that have not arrived.
    fn missing(&self) -> Vec<&String> {
        let arrived = self.arrived();
        self.backlog.pending.iter().filter(|wamid| !arrived.contains(&event_id(wamid))).collect()
    }

    /// Waits until the new message has arrived and every message of the backlog that was not touched.
    async fn delivered(&self, new: &str) -> anyhow::Result<()> {
        let owed: BTreeSet<String> = self
            .backlog
            .pending
            .difference(&self.injury.may_lose)
            .map(String::as_str)
            .chain([new])
            .map(event_id)
            .collect();
        eventually(DELIVERED_MAX, async || {
            let arrived = self.arrived();
            let missing = owed.difference(&arrived).count();
            ensure!(missing == 0, "{missing} of {} readable events have not arrived", owed.len());
            Ok(())
        })
        .await
    }

    /// Waits until the agent has nothing left to deliver and to report.
    async fn settled(&self) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            let events = self.agent.metric("gateway_buffer_events").await?;
            ensure!(events == 0.0, "{events} events are still in the buffer");
            Ok(())
        })
        .await
    }

    /// What the control plane was told of damage: at least what was lost, where that can be known.
    async fn damages(&self, lost: usize) -> anyhow::Result<Vec<v1::BufferDamage>> {
        let lost = u64::try_from(lost)?;
        let must_tell = match self.injury.notice {
            Notice::Nothing => 0,
            Notice::Some => lost.min(1),
            Notice::AtMost => lost,
        };
        eventually(DEADLINE, async || {
            let request = v1::ListAgentsRequest::default();
            let agents = self.control_plane.client().agents().list_agents(request).await?.into_inner().agents;
            let damages = agents.into_iter().next().context("find the agent")?.buffer_damages;
            let told: u64 = damages.iter().map(|damage| damage.events_lost_max).sum();
            ensure!(told >= must_tell, "{lost} events are lost, at most {told} were reported: {damages:?}");
            Ok(damages)
        })
        .await
    }

    /// How much is in quarantine: everything that was reported to be there, and something if events were lost
    /// of a file that is still there.
    async fn set_aside(&self, has_lost: bool, damages: &[v1::BufferDamage]) -> anyhow::Result<u64> {
        let quarantine = self.agent.data_dir().join("buffer/quarantine");
        let is_needed = has_lost && self.injury.notice != Notice::Nothing && self.injury.leaves_file();
        eventually(DEADLINE, async || {
            for name in damages.iter().flat_map(|damage| &damage.quarantined) {
                ensure!(quarantine.join(name).exists(), "`{name}` was reported and is not in quarantine");
            }
            let count = entries(&quarantine)?;
            ensure!(count > 0 || !is_needed, "events were lost, and nothing was set aside");
            Ok(count)
        })
        .await
    }
}

/// How many files and directories are in a directory; none when it is not there.
fn entries(directory: &Path) -> anyhow::Result<u64> {
    if !directory.exists() {
        return Ok(0);
    }
    Ok(u64::try_from(fs::read_dir(directory)?.count())?)
}
