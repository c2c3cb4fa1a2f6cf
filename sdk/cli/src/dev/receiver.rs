//! The built-in receiver: verifies every webhook, remembers the newest, and shows them as JSON.

mod kept;
mod secrets;

use std::{
    collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, sync::Mutex, sync::PoisonError, time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use gateway_runtime::supervise::{OnEnd, Supervisor};
use gateway_sdk::{
    Client, Timestamp, v1,
    webhook::{VerifyError, WebhookVerifier},
};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::{net::TcpListener, sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::programs::all;
use crate::json;
use kept::{Kept, Shown, Webhook};
use secrets::Secrets;

const PATH: &str = "/webhooks";
/// Largest webhook taken; a larger one is answered 413.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
const STOP_GRACE: Duration = Duration::from_secs(5);

/// One webhook that came, for standard output. Nothing of what people wrote is in it.
pub struct Line {
    time: Timestamp,
    what: Result<Accepted, VerifyError>,
}

struct Accepted {
    event: String,
    event_id: String,
    instance_id: String,
    repeated: bool,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = gateway_core::time::rfc3339_seconds(self.time);
        let time = time.get(11..19).unwrap_or(&time);
        match &self.what {
            Ok(Accepted { event, event_id, instance_id, repeated }) => {
                let note = if *repeated { "  (repeated)" } else { "" };
                write!(f, "{time}  webhook  {event:<22} {event_id}  {instance_id}{note}")
            }
            Err(error) => write!(f, "{time}  webhook  refused with 401: {error}"),
        }
    }
}

/// A running receiver.
pub struct Receiver {
    url: String,
    supervisor: Supervisor,
    stop: CancellationToken,
}

struct Shared {
    client: Client,
    url: String,
    secrets: tokio::sync::Mutex<Secrets<WebhookVerifier>>,
    kept: Mutex<Kept>,
    lines: mpsc::Sender<Line>,
}

/// Binds the receiver's address.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address} of --receiver-listen"))
}

/// Where webhooks go and are shown.
pub fn url(listener: &TcpListener) -> anyhow::Result<String> {
    Ok(format!("http://{}{PATH}", listener.local_addr().context("read the receiver's address")?))
}

impl Receiver {
    /// Serves until stopped. Secrets come from `client`: of every subscription that delivers here.
    pub fn serve(listener: TcpListener, client: Client, lines: mpsc::Sender<Line>) -> anyhow::Result<Self> {
        let url = url(&listener)?;
        let shared = Arc::new(Shared {
            client,
            url: url.clone(),
            secrets: tokio::sync::Mutex::default(),
            kept: Mutex::default(),
            lines,
        });
        let router = Router::new()
            .route(PATH, get(list).post(receive))
            .route("/webhooks/{event_id}", get(show))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(shared);
        let stop = CancellationToken::new();
        let supervisor = Supervisor::new(stop.clone());
        supervisor.spawn("receiver", OnEnd::Shutdown, |stop| async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
            served.context("serve the receiver")
        });
        Ok(Self { url, supervisor, stop })
    }

    /// Where webhooks go and are shown.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Finishes open requests.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.supervisor.wait(STOP_GRACE).await
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let time = gateway_runtime::clock::now();
    let (status, what) = match shared.verify(&headers, &body, time).await {
        Ok(event_id) => match shared.keep(event_id, &headers, &body, time) {
            Some(accepted) => (StatusCode::NO_CONTENT, Ok(accepted)),
            None => return StatusCode::BAD_REQUEST,
        },
        Err(error) => (StatusCode::UNAUTHORIZED, Err(error)),
    };
    // When standard output cannot keep up, the line is left out.
    drop(shared.lines.try_send(Line { time, what }));
    status
}

/// Everything kept, as it is shown.
#[derive(Serialize)]
struct Webhooks<'a> {
    webhooks: Vec<Shown<'a>>,
}

async fn list(State(shared): State<Arc<Shared>>) -> Response {
    let kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
    shown(StatusCode::OK, &Webhooks { webhooks: kept.newest_first().map(Shown::from).collect() })
}

async fn show(State(shared): State<Arc<Shared>>, Path(event_id): Path<String>) -> Response {
    let kept = shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
    match kept.get(&event_id) {
        Some(webhook) => shown(StatusCode::OK, &Shown::from(webhook)),
        None => {
            let error = "no such webhook came, or it was too long ago";
            shown(StatusCode::NOT_FOUND, &BTreeMap::from([("error", error)]))
        }
    }
}

/// JSON for people: bodies keep the order of their keys.
fn shown<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let text = serde_json::to_string(value).expect("these types have string keys and plain values");
    (status, [(CONTENT_TYPE, "application/json")], json::pretty(&text) + "\n").into_response()
}

impl Shared {
    /// The event's id, when the webhook is genuine.
    async fn verify(&self, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Result<String, VerifyError> {
        let arrived = Instant::now();
        let mut secrets = self.secrets.lock().await;
        let check = |verifier: &WebhookVerifier| {
            verifier.verify(headers, body, now).map(|verified| verified.id().to_owned())
        };
        secrets.check(arrived, || async { self.ask_for_secrets().await.ok() }, check).await
    }

    async fn ask_for_secrets(&self) -> anyhow::Result<WebhookVerifier> {
        let mut values = Vec::new();
        for subscription in all(&self.client, v1::ListWebhookSubscriptionsRequest::default()).await? {
            if subscription.destination_url.starts_with(&self.url) {
                let request = v1::GetSigningSecretRequest { id: subscription.id };
                let answer = self.client.webhook_subscriptions().get_signing_secret(request).await;
                values.push(answer.map_err(gateway_sdk::Error::from)?.into_inner().signing_secret);
            }
        }
        Ok(WebhookVerifier::new(values)?)
    }

    /// None when the body is not an event.
    fn keep(&self, event_id: String, headers: &HeaderMap, body: &[u8], time: Timestamp) -> Option<Accepted> {
        let event = gateway_sdk::webhook::Event::from_slice(body).ok()?;
        let text = std::str::from_utf8(body).ok()?;
        let headers: BTreeMap<String, String> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let webhook = Webhook {
            event_id: event_id.clone(),
            receive_time: time.to_string(),
            receive_count: 1,
            headers,
            body: RawValue::from_string(text.to_owned()).ok()?,
        };
        let repeated = self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(webhook);
        Some(Accepted {
            event: event.name().to_owned(),
            event_id,
            instance_id: event.instance_id().to_owned(),
            repeated,
        })
    }
}
