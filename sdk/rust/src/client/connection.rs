//! The connection under the generated clients, which says what a broken one means.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use super::fault;
use http::{Request, Response};
use tonic::{Code, Status, body::Body, codegen::Service, transport::Channel};

/// What a call says whose connection ended under it.
const LOST: &str = "the connection ended before the answer came: the call may be repeated, one that creates with \
                    the same `request_id`, since it may have taken effect";

/// A connection. A call that meets its end is UNAVAILABLE: the control plane stopped, or ended the connection because
/// of its age, and the next call makes a new one. <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
#[derive(Debug, Clone)]
pub struct Connection {
    channel: Channel,
}

impl Connection {
    pub(super) const fn new(channel: Channel) -> Self {
        Self { channel }
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.channel.poll_ready(context).map_err(explain)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.channel.call(request);
        Box::pin(async { answer.await.map_err(explain) })
    }
}

/// What the connection itself reports. Answers of the control plane, refusals too, do not come this way; what tonic
/// knows to be something else (a deadline, a refused connection, a reset stream) stays what it is.
fn explain(error: tonic::transport::Error) -> Status {
    if let Some(fault) = fault::of_certificate(&error) {
        return Status::unavailable(format!("the server is not trusted: {fault}"));
    }
    let status = Status::from_error(Box::new(error));
    if status.code() == Code::Unknown { Status::unavailable(LOST) } else { status }
}
