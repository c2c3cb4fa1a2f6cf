//! What one recorded event costs the control plane in processor time, gRPC included.
//!
//! An agent's side runs on a thread of its own and does not count: `time` is the processor time of every
//! other thread of this process, and `thrpt` the events that one core would record in a second.
//!
//! - `backlog`: batches of 500 events as fast as they are taken, as after an outage.
//! - `live`: 16,000 events a second, sent every millisecond, as from an agent under load.
//!
//! `cargo bench -p gateway-control-plane --bench ingest`

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use gateway_control_plane::{
    app::{self, Running},
    config::{Config, Settings},
};
use gateway_core::id::EventId;
use gateway_proto::v1::{
    self, agent_service_client::AgentServiceClient, agent_sync_service_client::AgentSyncServiceClient,
    report::Report as Reported,
};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Streaming, transport::Channel};

/// The allocator of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Batches that an agent has under way.
const IN_FLIGHT_MAX: usize = 7;
/// Events of a full batch.
const BATCH_EVENTS: u64 = 500;
/// Events of one iteration.
const ITERATION_EVENTS: u64 = 4_000;
/// Events that come in a millisecond when the load is paced.
const EVENTS_PER_MILLISECOND: u64 = 16;
/// Instances that the events belong to.
const INSTANCES: u64 = 100;
/// The name of the thread that does not count.
const AGENT_THREAD: &str = "agent";
/// Threads are accounted in hundredths of a second (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// A running control plane.
struct Plane {
    runtime: Runtime,
    running: Running,
    stop: CancellationToken,
    _dir: TempDir,
}

impl Plane {
    fn start() -> Self {
        let dir = TempDir::new().expect("a temporary directory can be made");
        let free = Some("127.0.0.1:0".parse().expect("the address is valid"));
        let settings = Settings {
            data_dir: Some(dir.path().to_owned()),
            grpc_listen: free,
            admin_listen: free,
            ..Settings::default()
        };
        let config = Config::resolve(settings, None).expect("the settings are valid");
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder
            .worker_threads(2)
            .thread_name("plane")
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let stop = CancellationToken::new();
        let running = runtime.block_on(app::start(config, stop.clone())).expect("the control plane starts");
        Self { runtime, running, stop, _dir: dir }
    }

    fn stop(self) {
        self.stop.cancel();
        self.runtime.block_on(self.running.wait()).expect("the control plane stops");
    }
}

/// An agent with an open report stream.
struct Agent {
    requests: mpsc::Sender<v1::ReportLogsRequest>,
    acks: Streaming<v1::ReportLogsResponse>,
    sequence: u64,
    in_flight: usize,
}

impl Agent {
    async fn connect(url: String, admin_key: &str) -> Self {
        let channel = Channel::from_shared(url).expect("the address is a URL").connect().await;
        let channel = channel.expect("the control plane listens");
        let mut ask = Request::new(v1::CreateJoinTokenRequest { region: "eu".into(), ..Default::default() });
        authorize(&mut ask, admin_key);
        let token = AgentServiceClient::new(channel.clone()).create_join_token(ask).await;
        let join_token = token.expect("the admin may make join tokens").into_inner().join_token;
        let enroll = v1::EnrollAgentRequest { join_token, build: "1".into(), ..Default::default() };
        let mut client = AgentSyncServiceClient::new(channel);
        let enrolled = client.enroll_agent(enroll).await.expect("the token is good").into_inner();
        let (requests, receiver) = mpsc::channel(IN_FLIGHT_MAX);
        let mut open = Request::new(ReceiverStream::new(receiver));
        authorize(&mut open, &enrolled.credential);
        let acks = client.report_logs(open).await.expect("the agent may report").into_inner();
        Self { requests, acks, sequence: 0, in_flight: 0 }
    }

    async fn send(&mut self, count: u64) {
        let first = self.sequence + 1;
        self.sequence += count;
        let reports = (first..=self.sequence).map(report).collect();
        let request = v1::ReportLogsRequest { buffer_id: "buf_bench".into(), reports };
        self.requests.send(request).await.expect("the stream is open");
        self.in_flight += 1;
    }

    async fn wait_below(&mut self, in_flight: usize) {
        while self.in_flight >= in_flight {
            self.acks.message().await.expect("the stream is open").expect("an answer comes");
            self.in_flight -= 1;
        }
    }

    async fn backlog(&mut self, events: u64) {
        for _ in 0..events.div_ceil(BATCH_EVENTS) {
            self.wait_below(IN_FLIGHT_MAX).await;
            self.send(BATCH_EVENTS).await;
        }
        self.wait_below(1).await;
    }

    /// What comes while too many batches are under way waits for the next one, as in an agent's buffer.
    async fn live(&mut self, events: u64) {
        let mut ticks = interval(Duration::from_millis(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let (mut waiting, mut left) = (0, events);
        while left > 0 || waiting > 0 {
            if left > 0 {
                ticks.tick().await;
            }
            let arrived = left.min(EVENTS_PER_MILLISECOND);
            (waiting, left) = (waiting + arrived, left - arrived);
            while self.in_flight > 0
                && let Ok(ack) = tokio::time::timeout(Duration::ZERO, self.acks.message()).await
            {
                ack.expect("the stream is open").expect("an answer comes");
                self.in_flight -= 1;
            }
            if left == 0 {
                self.wait_below(IN_FLIGHT_MAX).await;
            }
            if self.in_flight < IN_FLIGHT_MAX && waiting > 0 {
                let count = waiting.min(BATCH_EVENTS);
                self.send(count).await;
                waiting -= count;
            }
        }
        self.wait_below(1).await;
    }
}

fn authorize<T>(request: &mut Request<T>, key: &str) {
    let value = format!("Bearer {key}").parse().expect("keys are visible ASCII");
    request.metadata_mut().insert("authorization", value);
}

/// A text message that was delivered at the first attempt.
fn report(number: u64) -> v1::Report {
    let event_id = EventId::derive(&["bench", &number.to_string()]).to_string();
    let wamid = format!("wamid.HBgMOTY2NTAwMDAwMDAxFQIAEhgUM0E{number:020}A==");
    let time = Some(prost_types::Timestamp { seconds: 1_770_000_000, nanos: 123_456_000 });
    let payload_json = format!(
        r#"{{"event":"message.received","instance_id":"inst_12345","instance_name":"faisak-demo","from":"+966500000001","message_text":"Inbound user text message number {number}","message_type":"text","external_message_id":"{wamid}","timestamp":"2026-05-07T10:00:00Z","event_id":"{event_id}","to":"+966110000000","contact":{{"name":"Somebody With A Name","user_id":"SA.1234567890123456","username":"somebody"}},"context":{{"external_message_id":"wamid.HBgMOTY2NTAwMDAwMDAxFQIAEhgUM0E12345678901234567890A==","from":"+966110000000"}}}}"#
    );
    let log = v1::InboundLog {
        event_id: event_id.clone(),
        instance_id: format!("inst_{}", number % INSTANCES),
        event: "message.received".into(),
        from_phone: format!("+9665{:08}", number % 50_000),
        to_phone: "+966110000000".into(),
        contact_user_id: "SA.1234567890123456".into(),
        message_type: "text".into(),
        message_text: format!("Inbound user text message number {number}"),
        external_message_id: wamid,
        event_time: time,
        receive_time: time,
        payload_json,
        deliveries: vec![v1::Delivery {
            subscription_id: "sub_12345".into(),
            state: v1::DeliveryState::Delivered.into(),
            attempt_count: 1,
            last_status_code: 200,
            ..Default::default()
        }],
        ..Default::default()
    };
    let attempt = v1::DeliveryAttempt {
        attempt_id: format!("0197a3c2-7b1e-7000-8000-{number:012x}"),
        event_id,
        subscription_id: "sub_12345".into(),
        attempt_number: 1,
        start_time: time,
        duration: Some(prost_types::Duration { seconds: 0, nanos: 350_000 }),
        status_code: 200,
        response_excerpt: b"{\"ok\":true}".as_slice().into(),
        ..Default::default()
    };
    let event = v1::EventReport { inbound_log: Some(log), attempts: vec![attempt] };
    v1::Report { sequence: number, report: Some(Reported::Event(event)) }
}

/// Processor time of all threads but the agent's.
fn plane_time() -> Duration {
    let mut ticks = 0_u32;
    for task in fs::read_dir("/proc/self/task").expect("this is Linux").flatten() {
        ticks += thread_ticks(&task.path()).unwrap_or(0);
    }
    TICK * ticks
}

fn thread_ticks(task: &Path) -> Option<u32> {
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    if name == AGENT_THREAD {
        return Some(0);
    }
    // Fields 14 and 15 of proc_pid_stat(5); `rest` begins with the third.
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u32>().ok()? + fields.next()?.parse::<u32>().ok()?)
}

fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ingest");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_secs(2)).measurement_time(Duration::from_secs(10));
    group.throughput(Throughput::Elements(ITERATION_EVENTS));
    for load in ["backlog", "live"] {
        let plane = Plane::start();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        let url = format!("http://{}", plane.running.grpc_addr);
        let mut agent = runtime.block_on(Agent::connect(url, plane.running.admin_key.reveal()));
        let (mut events, mut elapsed) = (0, Duration::ZERO);
        group.bench_function(BenchmarkId::from_parameter(load), |bencher| {
            bencher.iter_custom(|iterations| {
                let count = iterations * ITERATION_EVENTS;
                let (wall, before) = (Instant::now(), plane_time());
                runtime.block_on(async {
                    if load == "live" { agent.live(count).await } else { agent.backlog(count).await }
                });
                (events, elapsed) = (events + count, elapsed + wall.elapsed());
                plane_time() - before
            });
        });
        drop((agent, runtime));
        plane.stop();
        let mut out = std::io::stdout().lock();
        if events == 0 {
            continue;
        }
        let rate = events as f64 / elapsed.as_secs_f64();
        let _ = std::io::Write::write_fmt(
            &mut out,
            format_args!("ingest/{load}: {rate:.0} events/s by the clock\n"),
        );
    }
    group.finish();
}

/// Everything but the control plane runs on a thread with the agent's name.
fn main() {
    let bench = || {
        let mut criterion = Criterion::default().configure_from_args();
        measure(&mut criterion);
        criterion.final_summary();
    };
    let agent = thread::Builder::new().name(AGENT_THREAD.into()).spawn(bench);
    agent.expect("a thread can be made").join().expect("the bench ran to its end");
}
