//! The reporter against a control plane that behaves well, badly, and not at all.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use gateway_core::{delivery::DeliveryState, snapshot::Snapshot};
use gateway_proto::v1::agent_sync_service_server::{AgentSyncService, AgentSyncServiceServer};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::*;
use crate::{
    control_plane::{Identity, Link, report_client},
    metrics::Metrics,
    pipeline::buffer::{
        self, Entry, OpenDelivery, Outcome,
        tests::{DEADLINE, entry, event, event_id, eventually},
    },
};

/// What a control plane got, over all its lives.
#[derive(Default)]
struct Log {
    /// Every report, with the buffer id it came under.
    reports: Vec<(String, v1::Report)>,
    authorization: Option<String>,
}

struct ControlPlane {
    log: Arc<Mutex<Log>>,
    count: watch::Sender<usize>,
    /// After how many requests a stream breaks without an ack; 0 means never.
    breaks_after: usize,
    /// Whether it says of its streams that hand-overs are taken; None while it opens none. Open ones end with a change.
    takes_hand_overs: watch::Sender<Option<bool>>,
}

struct Service(Arc<ControlPlane>);

#[tonic::async_trait]
impl AgentSyncService for Service {
    type StreamConfigStream = tokio_stream::Empty<Result<v1::StreamConfigResponse, Status>>;
    type ReportLogsStream = ReceiverStream<Result<v1::ReportLogsResponse, Status>>;
    type StreamWorkStream = tokio_stream::Empty<Result<v1::StreamWorkResponse, Status>>;

    async fn enroll_agent(
        &self,
        _: Request<v1::EnrollAgentRequest>,
    ) -> Result<Response<v1::EnrollAgentResponse>, Status> {
        Err(Status::internal("not asked for"))
    }

    async fn renew_agent_certificate(
        &self,
        _: Request<v1::RenewAgentCertificateRequest>,
    ) -> Result<Response<v1::RenewAgentCertificateResponse>, Status> {
        Err(Status::internal("not asked for"))
    }

    async fn stream_config(
        &self,
        _: Request<Streaming<v1::StreamConfigRequest>>,
    ) -> Result<Response<Self::StreamConfigStream>, Status> {
        Err(Status::internal("not asked for"))
    }

    async fn report_logs(
        &self,
        request: Request<Streaming<v1::ReportLogsRequest>>,
    ) -> Result<Response<Self::ReportLogsStream>, Status> {
        let mut takes_hand_overs = self.0.takes_hand_overs.subscribe();
        let Some(takes) = *takes_hand_overs.borrow_and_update() else {
            return Err(Status::unavailable("away"));
        };
        let authorization =
            request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.0.log.lock().unwrap().authorization = authorization;
        let (acks, responses) = mpsc::channel(16);
        let (this, mut requests) = (Arc::clone(&self.0), request.into_inner());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut taken = 0;
            loop {
                let request = tokio::select! {
                    request = requests.message() => request,
                    _ = takes_hand_overs.changed() => return,
                };
                let Ok(Some(request)) = request else { return };
                taken += 1;
                let last = request.reports.last().map_or(0, |report| report.sequence);
                let id = request.buffer_id.clone();
                let count = {
                    let mut log = this.log.lock().unwrap();
                    log.reports.extend(request.reports.into_iter().map(|report| (id.clone(), report)));
                    log.reports.len()
                };
                this.count.send_replace(count);
                if taken == this.breaks_after {
                    drop(acks.send(Err(Status::unavailable("going away"))).await);
                    return;
                }
                let ack = v1::ReportLogsResponse { buffer_id: request.buffer_id, acked_sequence: last };
                if acks.send(Ok(ack)).await.is_err() {
                    return;
                }
            }
        });
        tasks.detach_all();
        let mut response = Response::new(ReceiverStream::new(responses));
        if takes {
            response.metadata_mut().insert("gateway-takes-hand-overs", "true".parse().unwrap());
        }
        Ok(response)
    }

    async fn stream_work(
        &self,
        _: Request<Streaming<v1::StreamWorkRequest>>,
    ) -> Result<Response<Self::StreamWorkStream>, Status> {
        Err(Status::internal("not asked for"))
    }
}

impl ControlPlane {
    fn new(breaks_after: usize) -> Arc<Self> {
        let takes_hand_overs = watch::Sender::new(Some(false));
        Arc::new(Self { log: Arc::default(), count: watch::Sender::new(0), breaks_after, takes_hand_overs })
    }

    /// Serves on this listener until the set is dropped.
    fn serve(self: &Arc<Self>, listener: TcpListener) -> JoinSet<()> {
        let service = AgentSyncServiceServer::new(Service(Arc::clone(self)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        tasks
    }

    /// Ids of the events reported, in order of arrival, once there are `count` reports.
    async fn events_after(&self, count: usize) -> Vec<String> {
        let mut counter = self.count.subscribe();
        let came = counter.wait_for(|came| *came >= count);
        tokio::time::timeout(DEADLINE, came).await.expect("reports come").unwrap();
        let log = self.log.lock().unwrap();
        let event = |report: &v1::Report| match &report.report {
            Some(v1::report::Report::Event(event)) => {
                event.inbound_log.as_ref().map(|log| log.event_id.clone())
            }
            _ => None,
        };
        log.reports.iter().filter_map(|(_, report)| event(report)).collect()
    }
}

struct Agent {
    directory: tempfile::TempDir,
    buffer: Buffer,
    snapshot: SnapshotHandle,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Agent {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = buffer::Config::for_tests(directory.path());
        let buffer = Buffer::open(config, Metrics::new()).await.unwrap();
        let snapshot = SnapshotHandle::fixed(Snapshot::default());
        Self { directory, buffer, snapshot, stop: CancellationToken::new(), tasks: JoinSet::new() }
    }

    fn report_to(&mut self, address: SocketAddr) {
        let identity: Identity =
            serde_json::from_str(r#"{"agent_id":"agt_1","region":"eu","credential":"agent_secret"}"#)
                .unwrap();
        let link = Link::new(&format!("http://{address}"), None, None).unwrap();
        let client = report_client(&link, &identity, self.directory.path()).unwrap();
        let reporter = Reporter::new(client, self.buffer.clone(), self.snapshot.clone());
        self.tasks.spawn(reporter.run(self.stop.clone()));
    }

    async fn append(&self, numbers: std::ops::Range<u32>) {
        self.buffer.append(entry(numbers.map(|number| event(number, &[])))).await.unwrap();
    }
}

fn ids(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| event_id(number).to_string()).collect()
}

/// Everything recorded arrives in order with the agent's credential, under growing sequences, and is freed
/// once it is acked. What was recorded while the control plane was away comes first.
#[tokio::test]
async fn reports_arrive_in_order_and_are_freed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut agent = Agent::new().await;
    agent.append(0..1_200).await;
    agent.report_to(address);
    let control_plane = ControlPlane::new(0);
    let _serving = control_plane.serve(listener);
    control_plane.events_after(1_200).await;
    agent.append(1_200..1_210).await;
    assert_eq!(control_plane.events_after(1_210).await, ids(0..1_210));
    eventually("all is freed", || agent.buffer.is_drained()).await;
    let log = control_plane.log.lock().unwrap();
    assert_eq!(log.authorization.as_deref(), Some("Bearer agent_secret"));
    assert!(log.reports.is_sorted_by_key(|(_, report)| report.sequence));
}

/// A stream that breaks loses nothing: what was not acked is sent again under the same sequences, and
/// nothing else is.
#[tokio::test]
async fn broken_stream_leaves_no_gap() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut agent = Agent::new().await;
    agent.report_to(listener.local_addr().unwrap());
    let control_plane = ControlPlane::new(2);
    let _serving = control_plane.serve(listener);
    for round in 0..6 {
        agent.append(round * 10..round * 10 + 10).await;
        let so_far = |log: &Log| {
            let reports = log.reports.iter().map(|(_, report)| (report.sequence, report.clone()));
            reports.collect::<std::collections::BTreeMap<_, _>>().len()
        };
        let expected = (round as usize + 1) * 10;
        eventually("all have come", || so_far(&control_plane.log.lock().unwrap()) == expected).await;
    }
    eventually("all is freed", || agent.buffer.is_drained()).await;
    let log = control_plane.log.lock().unwrap();
    let mut by_sequence = std::collections::BTreeMap::new();
    for (_, report) in &log.reports {
        let before = by_sequence.insert(report.sequence, report);
        assert!(before.is_none_or(|before| before == report), "a sequence means the same for ever");
    }
    assert!(log.reports.len() > by_sequence.len(), "a broken stream repeats");
}

/// An opt-out does not wait behind a backlog of logs: it has a buffer id of its own and is in the first
/// message.
#[tokio::test]
async fn opt_outs_overtake_logs() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut agent = Agent::new().await;
    agent.append(0..600).await;
    let opt_out = v1::OptOut { id: "opt_1".to_owned(), ..v1::OptOut::default() };
    agent.buffer.append(Entry { opt_outs: vec![opt_out.clone()], ..Entry::default() }).await.unwrap();
    agent.report_to(listener.local_addr().unwrap());
    let control_plane = ControlPlane::new(0);
    let _serving = control_plane.serve(listener);
    control_plane.events_after(601).await;
    let log = control_plane.log.lock().unwrap();
    assert_eq!(log.reports[0].1.report, Some(v1::report::Report::OptOut(opt_out)));
    assert_ne!(log.reports[0].0, log.reports[1].0);
}

/// At the end what is left is sent before the reporter stops; without a control plane it gives up after a
/// few seconds and everything stays.
#[tokio::test]
async fn drains_at_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut agent = Agent::new().await;
    agent.report_to(listener.local_addr().unwrap());
    let control_plane = ControlPlane::new(0);
    let serving = control_plane.serve(listener);
    agent.append(0..1).await;
    control_plane.events_after(1).await;
    agent.append(1..50).await;
    agent.stop.cancel();
    agent.tasks.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(control_plane.events_after(50).await, ids(0..50));
    drop(serving);

    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    agent.append(50..51).await;
    agent.report_to(unused);
    agent.tasks.join_next().await.unwrap().unwrap().unwrap();
    assert!(agent.buffer.has_reports());
}

impl ControlPlane {
    /// How many hand-overs came.
    fn hand_overs(&self) -> usize {
        let log = self.log.lock().unwrap();
        let is_one =
            |report: &v1::Report| matches!(report.report, Some(v1::report::Report::DeliveryHandOver(_)));
        log.reports.iter().filter(|(_, report)| is_one(report)).count()
    }
}

impl Agent {
    /// Gives a delivery away.
    async fn give(&self, delivery: OpenDelivery) {
        let OpenDelivery { event, subscription, .. } = delivery;
        let state = DeliveryState::Pending.given_away();
        self.buffer
            .settle(Outcome { event, subscription, state, due_ms: None, attempt: None, gone: None })
            .await;
    }

    fn hands_over(&self) -> bool {
        self.snapshot.drain().hands_over()
    }
}

/// A control plane takes hand-overs over a stream that says so, and over no other, whatever was said before: from one
/// that does not say so they come back before anything is reported, and nothing more is given away. While there is no
/// stream they wait.
#[tokio::test]
async fn each_stream_says_whether_hand_overs_are_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut agent = Agent::new().await;
    agent.buffer.hold_hand_overs();
    agent.snapshot.drain().set(true).unwrap();
    agent.buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let mut owed = Vec::new();
    eventually("it is owed", || {
        owed.extend(agent.buffer.take_new_deliveries());
        !owed.is_empty()
    })
    .await;
    let delivery = owed[0];
    agent.report_to(listener.local_addr().unwrap());
    let control_plane = ControlPlane::new(0);
    control_plane.takes_hand_overs.send_replace(Some(true));
    let _serving = control_plane.serve(listener);
    eventually("it may give away", || agent.hands_over()).await;
    control_plane.takes_hand_overs.send_replace(None);
    eventually("the stream has ended", || !agent.hands_over()).await;
    agent.give(delivery).await;
    // An earlier one: the hand-over comes back, and what is behind it is reported.
    control_plane.takes_hand_overs.send_replace(Some(false));
    eventually("it is owed here again", || agent.buffer.take_new_deliveries() == [delivery]).await;
    agent.append(2..3).await;
    assert_eq!(control_plane.events_after(2).await, ids(1..3));
    assert!(control_plane.hand_overs() == 0 && !agent.hands_over());
    // And the new one again.
    control_plane.takes_hand_overs.send_replace(Some(true));
    eventually("it may give away", || agent.hands_over()).await;
    agent.give(delivery).await;
    eventually("it is handed over", || control_plane.hand_overs() == 1).await;
    control_plane.takes_hand_overs.send_replace(None);
    eventually("the stream has ended", || !agent.hands_over()).await;
}
