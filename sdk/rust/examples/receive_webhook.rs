//! A receiver of webhooks: verifies, answers at once, handles every event once, prints one line for each.
//!
//! ```sh
//! WEBHOOK_SECRET=whsec_… cargo run -p gateway-sdk --example receive_webhook -- --listen 127.0.0.1:8099
//! ```
//!
//! It answers 204 to a genuine webhook and 401 to anything else. During a rotation `WEBHOOK_SECRET` may hold
//! both secrets, separated by a space.

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    io::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use clap::Parser;
use gateway_sdk::{Timestamp, webhook::WebhookVerifier};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, task::JoinSet};

/// Largest body taken; a larger one is answered 413.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long reading one body may take; a slower one is answered 408.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How many handled ids are remembered; the oldest are forgotten. A real receiver keeps them in its database,
/// in the transaction that handles the event.
const HANDLED_IDS_MAX: usize = 10_000;

/// Receives webhooks of WhatsApp Gateway and prints one line for each event.
///
/// The signing secret (`whsec_…`, from `GetSigningSecret`) comes from the environment variable
/// WEBHOOK_SECRET: other users of the machine can see flags.
#[derive(Parser)]
struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8099")]
    listen: SocketAddr,
}

struct Receiver {
    verifier: WebhookVerifier,
    handled: Mutex<Handled>,
}

#[derive(Default)]
struct Handled {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Handled {
    /// Whether the id is new; from now on it is not.
    fn is_first(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > HANDLED_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let secrets = std::env::var("WEBHOOK_SECRET").context("read the environment variable WEBHOOK_SECRET")?;
    let verifier =
        WebhookVerifier::new(secrets.split_whitespace()).context("read the secrets of WEBHOOK_SECRET")?;
    let receiver = Arc::new(Receiver { verifier, handled: Mutex::default() });
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    writeln!(std::io::stdout().lock(), "listening on http://{}", listener.local_addr()?)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let receiver = Arc::clone(&receiver);
                connections.spawn(async move {
                    let service = service_fn(|request| receive(&receiver, request));
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service);
                    // A connection that breaks is the sender's business: it tries again.
                    drop(connection.await);
                });
            }
            Some(_) = connections.join_next() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

async fn receive(
    receiver: &Receiver,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let status = answer(receiver, request).await;
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    Ok(response)
}

async fn answer(receiver: &Receiver, request: Request<Incoming>) -> StatusCode {
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED;
    }
    let (parts, body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return StatusCode::PAYLOAD_TOO_LARGE,
        Err(_) => return StatusCode::REQUEST_TIMEOUT,
    };
    // First proof, then parsing: a body that nobody vouches for is not looked at.
    let Ok(verified) = receiver.verifier.verify(&parts.headers, &body, Timestamp::now()) else {
        return StatusCode::UNAUTHORIZED;
    };
    let Ok(event) = verified.parse() else { return StatusCode::BAD_REQUEST };
    let first = receiver.handled.lock().is_ok_and(|mut handled| handled.is_first(verified.id()));
    let note = if first { "" } else { " (again, not handled twice)" };
    let line = format!("{} {} instance {}{note}", verified.id(), event.name(), event.instance_id());
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => StatusCode::NO_CONTENT,
        // Not handled, so the gateway shall send it again.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
