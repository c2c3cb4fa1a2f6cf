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
    Agent, ControlPlane, Within as _,
    agent::AgentOptions,
    eventually,
    process::{Process, Usage, free_port},
    world::{self, PHONE_NUMBER_ID},
};
use tokio::{net::TcpStream, process::Command};

use crate::{
    generator::{Posted, Target, post},
    receiver,
    tally::{Tally, percentiles, wamid},
};

/// The app secret of the route.
pub const APP_SECRET: &str = world::APP_SECRET;
/// How long deliveries and logs may take after the last post.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// Connections whose last message is looked for in the logs, to see when they are complete.
const LOG_PROBES: usize = 8;
/// Clock ticks per second in `/proc/self/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

/// What was measured.
pub struct Measurement {
    /// Callbacks answered 200; each of them has arrived.
    pub answered: usize,
    /// From the first post to the last webhook.
    pub duration: Duration,
    /// Median and 99th percentile of the answer.
    pub answer_milliseconds: (f64, f64),
    /// Median and 99th percentile from post to webhook.
    pub end_to_end_milliseconds: (f64, f64),
    /// What the control plane has; none for the relay.
    pub logs: Option<Logs>,
    /// What the programs used: agent and control plane, or the relay.
    pub programs: Vec<Usage>,
    /// What generator and receiver used.
    pub load_cpu: Duration,
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
        let events = u32::try_from(self.answered).unwrap_or(u32::MAX);
        f64::from(events) / self.duration.as_secs_f64()
    }
}

/// Measures a fresh control plane and agent.
pub async fn gateway(connections: usize, duration: Duration) -> anyhow::Result<Measurement> {
    let directory = tempfile::tempdir()?;
    let tally = Arc::new(Tally::new(connections));
    let (address, _receiver) = receiver::start(Arc::clone(&tally)).await?;
    let control_plane = ControlPlane::start(directory.path()).await?;
    let route = world::create_instance(control_plane.client()).await?;
    let url = format!("http://{address}/");
    let events = ["message.received", "recipient.opted_out"];
    let subscription = world::subscribe(control_plane.client(), &url, &events).await?;
    widen(&control_plane, &subscription.id, connections).await?;
    let agent = Agent::start(directory.path(), &control_plane, AgentOptions::default()).await?;
    let target = Target {
        address: agent.callback_addr(),
        path: route.callback_path,
        app_secret: APP_SECRET.to_owned(),
        phone_number_id: PHONE_NUMBER_ID.to_owned(),
    };
    let mut measured = drive(&target, connections, duration, &tally).await?;
    measured.logs = Some(logs(&control_plane, &tally, &measured.last).await?);
    measured.programs = vec![agent.usage()?, control_plane.usage()?];
    Ok(measured.into())
}

/// Lets the subscription use as many connections as the load does, within its limit.
async fn widen(control_plane: &ControlPlane, id: &str, connections: usize) -> anyhow::Result<()> {
    let request = v1::UpdateWebhookSubscriptionRequest {
        webhook_subscription: Some(v1::WebhookSubscription {
            id: id.to_owned(),
            concurrency_max: i32::try_from(connections.clamp(8, 64))?,
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["concurrency_max".to_owned()] }),
    };
    control_plane.client().webhook_subscriptions().update_webhook_subscription(request).await?;
    Ok(())
}

/// Measures the bare relay.
pub async fn relay(connections: usize, duration: Duration) -> anyhow::Result<Measurement> {
    let directory = tempfile::tempdir()?;
    let tally = Arc::new(Tally::new(connections));
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
        phone_number_id: PHONE_NUMBER_ID.to_owned(),
    };
    let mut measured = drive(&target, connections, duration, &tally).await?;
    measured.programs = vec![process.usage()?];
    Ok(measured.into())
}

/// A measurement in the making.
struct Driven {
    answered: usize,
    duration: Duration,
    answer_milliseconds: (f64, f64),
    end_to_end_milliseconds: (f64, f64),
    load_cpu: Duration,
    /// Ids of the last messages of some connections.
    last: Vec<String>,
    logs: Option<Logs>,
    programs: Vec<Usage>,
}

impl From<Driven> for Measurement {
    fn from(driven: Driven) -> Self {
        let Driven {
            answered,
            duration,
            answer_milliseconds,
            end_to_end_milliseconds,
            load_cpu,
            logs,
            programs,
            ..
        } = driven;
        Self { answered, duration, answer_milliseconds, end_to_end_milliseconds, logs, programs, load_cpu }
    }
}

/// Posts, and waits until everything that was answered has arrived.
async fn drive(
    target: &Target,
    connections: usize,
    duration: Duration,
    tally: &Arc<Tally>,
) -> anyhow::Result<Driven> {
    let (start, cpu) = (Instant::now(), own_cpu()?);
    let posted = post(target, connections, duration, tally).await?;
    let answered = posted.iter().map(|posted| posted.answered).sum();
    let arrived = tally.all_arrived(answered).within(DRAIN_MAX).await;
    arrived.with_context(|| format!("{} of {answered} webhooks have arrived", tally.arrived_count()))?;
    let mut answers: Vec<Duration> =
        posted.iter().flat_map(|Posted { answers, .. }| answers).copied().collect();
    // Connections end in any order, and each has answered about the same: the last ones of the first few.
    let least = posted.iter().map(|posted| posted.answered).min().unwrap_or_default();
    ensure!(least > 0, "a connection got no answer");
    let last = (0..connections.min(LOG_PROBES)).map(|connection| wamid(connection, least - 1)).collect();
    Ok(Driven {
        answered,
        duration: tally.last_arrival() - start,
        answer_milliseconds: percentiles(&mut answers),
        end_to_end_milliseconds: tally.end_to_end_milliseconds(),
        load_cpu: own_cpu()?.saturating_sub(cpu),
        last,
        logs: None,
        programs: Vec::new(),
    })
}

/// Waits until the last messages are logged, then counts.
async fn logs(control_plane: &ControlPlane, tally: &Tally, last: &[String]) -> anyhow::Result<Logs> {
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
    let request = v1::ListInboundLogsRequest { page_size: 1_000, ..Default::default() };
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
