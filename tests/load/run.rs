//! One measurement, of the gateway or of the bare relay.

use std::{
    env, fs,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use gateway_proto::v1;
use gateway_tests::{
    ControlPlane, Within as _, eventually,
    figure::Spread,
    process::{Process, Usage, free_port},
    world::{self, INSTANCE_ID, PHONE_NUMBER_ID},
};
use tokio::{net::TcpStream, process::Command};

use crate::{
    gateway::{Destination, Gateway},
    generator::{Load, Target, post},
    receiver,
    tally::{Tally, wamid},
};

/// The app secret of the route.
pub const APP_SECRET: &str = world::APP_SECRET;
/// How long deliveries and logs may take after the last post.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// How long the control plane may take for a backlog.
const REPORT_MAX: Duration = Duration::from_secs(900);
/// Connections whose last message is looked for in the logs, to see when they are complete.
const LOG_PROBES: usize = 8;
/// Clock ticks per second in `/proc/self/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

/// What was measured.
#[derive(Default)]
pub struct Measurement {
    /// Callbacks answered 200.
    pub answered: usize,
    /// Those whose webhooks are measured; each of them has arrived.
    pub arrived: usize,
    /// From the first post to the last webhook.
    pub duration: Duration,
    /// How long the answers took.
    pub answers: Spread,
    /// From post to webhook.
    pub end_to_end: Spread,
    /// What the control plane has; none when it was not asked.
    pub logs: Option<Logs>,
    /// What the programs used: agent and control plane, or the relay.
    pub programs: Vec<Usage>,
    /// What generator and receiver used.
    pub load_cpu: Duration,
    /// Ids of the last messages of some connections.
    last: Vec<String>,
}

/// What the control plane has recorded.
#[derive(Clone, Copy)]
pub struct Logs {
    /// How many logs.
    pub recorded: usize,
    /// When they were complete, after the last webhook.
    pub after: Duration,
}

impl Measurement {
    /// Events per second, end to end.
    pub fn events_per_second(&self) -> f64 {
        let events = u32::try_from(self.arrived).unwrap_or(u32::MAX);
        f64::from(events) / self.duration.as_secs_f64()
    }

    /// What one event took of `cpu`, in microseconds.
    pub fn microseconds_per_event(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / f64::from(u32::try_from(self.answered).unwrap_or(u32::MAX))
    }
}

/// Measures a fresh control plane and agent, with this many events waiting for a destination that is dead.
pub async fn gateway(load: Load, backlog: usize) -> anyhow::Result<Measurement> {
    let tally = Arc::new(Tally::new(load.connections));
    // As many connections as the load has, within the limit.
    let mut destinations = vec![Destination::Receiver { concurrency_max: load.connections.clamp(8, 64) }];
    if backlog > 0 {
        destinations.push(Destination::BlackHole);
    }
    let mut gateway = Gateway::start(&tally, &destinations).await?;
    if backlog > 0 {
        gateway.provider(1)?.say_many(backlog).await?;
        reported(&gateway.control_plane).await?;
        gateway.target.phone_number_ids.truncate(1);
    }
    let mut measured = drive(&gateway.target, load, &tally).await?;
    logged(&gateway.control_plane, &measured.last).await?;
    // Before the logs are listed, which is no part of taking events.
    measured.programs = vec![gateway.agent.usage()?, gateway.control_plane.usage()?];
    measured.logs = Some(logs(&gateway.control_plane, &tally).await?);
    Ok(measured)
}

/// Waits until the control plane has everything that the agent has.
async fn reported(control_plane: &ControlPlane) -> anyhow::Result<()> {
    eventually(REPORT_MAX, async || {
        let response = control_plane.client().agents().list_agents(v1::ListAgentsRequest::default()).await?;
        let agent = response.into_inner().agents.into_iter().next().context("find the agent")?;
        let lag = agent.report_lag.unwrap_or_default();
        ensure!(lag.seconds == 0 && lag.nanos == 0, "the oldest report is {} s old", lag.seconds);
        Ok(())
    })
    .await
}

/// Measures the bare relay.
pub async fn relay(load: Load) -> anyhow::Result<Measurement> {
    let directory = tempfile::tempdir()?;
    let tally = Arc::new(Tally::new(load.connections));
    let (address, _receiver) = receiver::start(Arc::clone(&tally)).await?;
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()?));
    let mut command = Command::new(env::current_exe()?);
    command.args(["relay", "--listen", &listen.to_string(), "--forward", &address.to_string()]);
    command.arg("--file").arg(directory.path().join("callbacks"));
    let mut process = Process::spawn("relay", command, &directory.path().join("relay.log"))?;
    process.ready_when(async || Ok(TcpStream::connect(listen).await.map(drop)?)).await?;
    let target = Target {
        address: listen,
        path: "/".to_owned(),
        app_secret: APP_SECRET.to_owned(),
        phone_number_ids: vec![PHONE_NUMBER_ID.to_owned()],
    };
    let mut measured = drive(&target, load, &tally).await?;
    measured.programs = vec![process.usage()?];
    Ok(measured)
}

/// Posts, and waits until everything that was answered and is measured has arrived.
pub async fn drive(target: &Target, load: Load, tally: &Arc<Tally>) -> anyhow::Result<Measurement> {
    let (start, cpu) = (Instant::now(), own_cpu()?);
    let posted = post(target, load, tally).await?;
    let measured = posted.iter().map(|posted| posted.measured).sum();
    let arrived = tally.all_arrived(measured).within(DRAIN_MAX).await;
    arrived.with_context(|| format!("{} of {measured} webhooks have arrived", tally.arrived_count()))?;
    // Connections end in any order, and each has answered about the same: the last ones of the first few.
    let least = posted.iter().map(|posted| posted.answered).min().unwrap_or_default();
    ensure!(least > 0, "a connection got no answer");
    let last = (0..load.connections.min(LOG_PROBES)).map(|connection| wamid(connection, least - 1)).collect();
    Ok(Measurement {
        answered: posted.iter().map(|posted| posted.answered).sum(),
        arrived: measured,
        duration: tally.last_arrival().saturating_duration_since(start),
        answers: Spread::of(posted.into_iter().flat_map(|posted| posted.answers).collect()),
        end_to_end: tally.end_to_end(),
        load_cpu: own_cpu()?.saturating_sub(cpu),
        last,
        ..Measurement::default()
    })
}

/// Waits until the last messages are logged.
async fn logged(control_plane: &ControlPlane, last: &[String]) -> anyhow::Result<()> {
    let client = control_plane.client();
    for external_message_id in last {
        let request = v1::ListInboundLogsRequest {
            external_message_id: external_message_id.clone(),
            ..Default::default()
        };
        eventually(DRAIN_MAX, async || {
            let response = client.inbound_logs().list_inbound_logs(request.clone()).await?.into_inner();
            ensure!(!response.inbound_logs.is_empty(), "message {external_message_id} has no log");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Counts the logs, until there are as many as webhooks have arrived.
async fn logs(control_plane: &ControlPlane, tally: &Tally) -> anyhow::Result<Logs> {
    let mut after = tally.last_arrival().elapsed();
    let answered = tally.arrived_count();
    let mut recorded = count(control_plane).await?;
    let end = Instant::now() + DRAIN_MAX;
    while recorded < answered && Instant::now() < end {
        after = tally.last_arrival().elapsed();
        recorded = count(control_plane).await?;
    }
    Ok(Logs { recorded, after })
}

async fn count(control_plane: &ControlPlane) -> anyhow::Result<usize> {
    let instance_id = INSTANCE_ID.to_owned();
    let request = v1::ListInboundLogsRequest { page_size: 1_000, instance_id, ..Default::default() };
    let logs = control_plane.client().list(request);
    Ok(logs.try_fold(0, async |count, _| Ok(count + 1)).await?)
}

/// Processor time of this process.
fn own_cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("read /proc/self/stat")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(Duration::from_secs_f64(ticks / TICKS_PER_SECOND))
}
