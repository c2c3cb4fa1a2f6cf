//! An agent whose control plane has revoked it, or does not let it in beside a twin.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use gateway_core::snapshot::Snapshot;
use http_body_util::{BodyExt as _, Empty};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, body::Body, codegen::Service, server::NamedService, transport::Server};
use tonic_types::ErrorDetails;

use super::*;
use crate::{
    control_plane::{Link, client, report_client},
    pipeline::{
        buffer::tests::eventually,
        report::Reporter,
        tests::{buffer, configuration},
    },
};

/// How a control plane refuses a call.
#[derive(Clone, Copy)]
enum Refusal {
    /// Before it begins.
    AtOnce(&'static str, Code),
    /// When it is open already.
    Afterwards(&'static str, Code),
}

const REVOCATION: Refusal = Refusal::AtOnce("AGENT_REVOKED", Code::Unauthenticated);
const TWIN: Refusal = Refusal::AtOnce("AGENT_IDENTITY_IN_USE", Code::Unavailable);

/// A control plane that refuses every call: config streams in one way, all others in another.
#[derive(Clone)]
struct Refusing {
    config: Refusal,
    others: Refusal,
}

fn refusal(code: Code, reason: &str) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, "whatsapp-gateway", HashMap::new());
    if reason == "AGENT_IDENTITY_IN_USE" {
        details.set_retry_info(Some(Duration::from_secs(3_600)));
    }
    Status::with_error_details(code, "no", details)
}

/// A stream that is opened and then ends with this status.
fn opened(status: &Status) -> http::Response<Body> {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers).unwrap();
    let body = Empty::<bytes::Bytes>::new().with_trailers(async { Some(Ok(trailers)) });
    http::Response::builder().header("content-type", "application/grpc").body(Body::new(body)).unwrap()
}

impl NamedService for Refusing {
    const NAME: &'static str = "whatsapp_gateway.v1.AgentSyncService";
}

impl Service<http::Request<Body>> for Refusing {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let is_config = request.uri().path().ends_with("/StreamConfig");
        ready(Ok(match if is_config { self.config } else { self.others } {
            Refusal::AtOnce(reason, code) => refusal(code, reason).into_http(),
            Refusal::Afterwards(reason, code) => opened(&refusal(code, reason)),
        }))
    }
}

/// An agent of which the follower and the reporter call a control plane. Stopped by its end.
struct Agent {
    handle: SnapshotHandle,
    data_dir: tempfile::TempDir,
    tasks: JoinSet<()>,
    _buffer: tempfile::TempDir,
}

impl Agent {
    async fn start(control_plane: Refusing) -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let handle = SnapshotHandle::fixed(configuration(&[]));
        handle.drain().keep_in(data_dir.path());
        assert!(handle.drain().admit().is_some());
        let (follower, buffer) = follower(&handle, data_dir.path()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let link = Link::new(&url, None, None).unwrap();
        link.inform(handle.clone());
        let client = client(&link, &follower.identity, data_dir.path()).unwrap();
        let reports = report_client(&link, &follower.identity, data_dir.path()).unwrap();
        let reporter = Reporter::new(reports, follower.buffer.clone(), handle.clone());
        let mut tasks = JoinSet::new();
        let server = Server::builder().add_service(control_plane);
        tasks.spawn(async { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
        tasks.spawn(async { follower.run(client, CancellationToken::new()).await.unwrap() });
        tasks.spawn(async { reporter.run(CancellationToken::new()).await.unwrap() });
        Self { handle, data_dir, tasks, _buffer: buffer }
    }
}

async fn follower(handle: &SnapshotHandle, data_dir: &Path) -> (Follower, tempfile::TempDir) {
    let (buffer, directory) = buffer().await;
    let opt_outs = OptOuts::new();
    let identity = r#"{"agent_id":"agt_1","region":"eu","credential":"agent_secret"}"#;
    let follower = Follower {
        handle: handle.clone(),
        log: restore(data_dir, None, &opt_outs).unwrap(),
        opt_outs,
        buffer,
        refusals: Refusals::default(),
        metrics: Metrics::new(),
        identity: serde_json::from_str(identity).unwrap(),
        resend_file: resend_file(data_dir),
    };
    (follower, directory)
}

/// An agent that the control plane has revoked takes no callback any more, and a restart that cannot reach the control
/// plane does not either; what it has configured stays, so that it can deliver what it has.
#[tokio::test]
async fn revoked_agents_take_no_callbacks() {
    let mut agent = Agent::start(Refusing { config: REVOCATION, others: REVOCATION }).await;
    let handle = agent.handle.clone();
    eventually("the agent knows that it was revoked", || handle.drain().is_revoked()).await;
    assert!(handle.drain().admit().is_none() && !handle.drain().is_on());
    assert!(handle.is_ready() && handle.load().version == configuration(&[]).version);
    let file = agent.data_dir.path().join("revoked");
    eventually("the disk is told", || file.exists()).await;
    let restarted = SnapshotHandle::fixed(Snapshot::default());
    restarted.drain().keep_in(agent.data_dir.path());
    assert!(restarted.drain().is_revoked() && restarted.drain().admit().is_none());
    agent.tasks.shutdown().await;
}

/// Whichever stream hears of the revocation, when it is opened or later, the whole agent is revoked: the config stream may
/// be told to come again in an hour, because of a twin.
#[tokio::test]
async fn any_stream_hears_of_the_revocation() {
    let later = Refusal::Afterwards("AGENT_REVOKED", Code::Unauthenticated);
    for others in [REVOCATION, later] {
        let mut agent = Agent::start(Refusing { config: TWIN, others }).await;
        let handle = agent.handle.clone();
        eventually("the agent knows that it was revoked", || handle.drain().is_revoked()).await;
        assert!(handle.drain().admit().is_none());
        agent.tasks.shutdown().await;
    }
}

/// Who is kept out by a twin knows it, until the control plane answers the config stream again; callbacks are taken all
/// the while.
#[tokio::test]
async fn twins_are_known() {
    let mut agent = Agent::start(Refusing { config: TWIN, others: TWIN }).await;
    let handle = agent.handle.clone();
    eventually("the agent knows of its twin", || handle.has_twin()).await;
    assert!(handle.drain().admit().is_some() && !handle.drain().is_revoked());
    agent.tasks.shutdown().await;
    assert!(!handle.set_connected(true) && !handle.has_twin());
    handle.note_twin();
    assert!(handle.set_connected(false) && !handle.has_twin(), "it was refused before it was let in");
}

/// Only the word of the control plane counts: another refusal, as of a control plane restored from before the agent
/// enrolled, leaves the agent as it is.
#[tokio::test]
async fn other_refusals_do_not_revoke() {
    let handle = SnapshotHandle::fixed(configuration(&[]));
    let link = Link::new("http://localhost:1", None, None).unwrap();
    link.inform(handle.clone());
    for other in [
        refusal(Code::Unauthenticated, "UNAUTHENTICATED"),
        refusal(Code::Unavailable, "AGENT_REVOKED"),
        refusal(Code::Unauthenticated, "AGENT_IDENTITY_IN_USE"),
        Status::unauthenticated("the agent was revoked"),
        Status::unavailable("another process with this agent's identity is connected"),
    ] {
        link.refuse(&other);
        assert!(!handle.drain().is_revoked() && !handle.has_twin());
    }
    link.refuse(&refusal(Code::Unauthenticated, "AGENT_REVOKED"));
    assert!(handle.drain().is_revoked());
}
