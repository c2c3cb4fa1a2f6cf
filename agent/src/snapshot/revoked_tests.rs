//! A follower whose control plane has revoked the agent.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use gateway_core::snapshot::Snapshot;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, body::Body, codegen::Service, server::NamedService, transport::Server};
use tonic_types::ErrorDetails;

use super::*;
use crate::{
    control_plane::{Link, client},
    pipeline::{
        buffer::tests::eventually,
        tests::{buffer, configuration},
    },
};

/// A control plane that refuses every call.
#[derive(Clone)]
struct Refusing;

fn refusal(code: Code, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, "whatsapp-gateway", HashMap::new());
    Status::with_error_details(code, "no", details)
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

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        ready(Ok(refusal(Code::Unauthenticated, "AGENT_REVOKED").into_http()))
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
    let data_dir = tempfile::tempdir().unwrap();
    let handle = SnapshotHandle::fixed(configuration(&[]));
    handle.drain().keep_in(data_dir.path());
    assert!(handle.drain().admit().is_some());
    let (follower, _buffer) = follower(&handle, data_dir.path()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let link = Link::new(&url, None, None).unwrap();
    let client = client(&link, &follower.identity, data_dir.path()).unwrap();
    let stop = CancellationToken::new();
    let (mut serving, mut following) = (JoinSet::new(), JoinSet::new());
    let server = Server::builder().add_service(Refusing);
    serving.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    following.spawn(follower.run(client, stop.clone()));
    eventually("the agent knows that it was revoked", || handle.drain().is_revoked()).await;
    assert!(handle.drain().admit().is_none() && !handle.drain().is_on());
    assert!(handle.is_ready() && handle.load().version == configuration(&[]).version);
    let file = data_dir.path().join("revoked");
    eventually("the disk is told", || file.exists()).await;
    let restarted = SnapshotHandle::fixed(Snapshot::default());
    restarted.drain().keep_in(data_dir.path());
    assert!(restarted.drain().is_revoked() && restarted.drain().admit().is_none());
    stop.cancel();
    following.join_next().await.unwrap().unwrap().unwrap();
}

/// Only the word of the control plane counts: another refusal, as of a control plane restored from before the agent
/// enrolled, leaves the agent as it is.
#[tokio::test]
async fn other_refusals_do_not_revoke() {
    let data_dir = tempfile::tempdir().unwrap();
    let handle = SnapshotHandle::fixed(configuration(&[]));
    let (follower, _buffer) = follower(&handle, data_dir.path()).await;
    for other in [
        refusal(Code::Unauthenticated, "UNAUTHENTICATED"),
        refusal(Code::Unavailable, "AGENT_REVOKED"),
        Status::unauthenticated("the agent was revoked"),
    ] {
        drop(follower.refused(other));
        assert!(!handle.drain().is_revoked());
    }
    drop(follower.refused(refusal(Code::Unauthenticated, "AGENT_REVOKED")));
    assert!(handle.drain().is_revoked());
}
