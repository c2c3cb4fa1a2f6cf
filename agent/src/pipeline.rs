//! The way of an event, in six stages. A stage turns its input into its output and knows no other stage; only
//! this file joins them.
//!
//! ```text
//!  callback ──▶ authenticate ──▶ normalize ──▶ buffer ──▶ 200        the provider's request
//!  HTTP in      Authenticated    Normalized    Entry on disk
//!                                                │
//!                                                ├──▶ deliver        to the customer's destination
//!                                                └──▶ report         to the control plane
//! ```
//!
//! | border | limit | beyond it |
//! |---|---|---|
//! | connections | [`callback::CONNECTIONS_MAX`] | wait in the listen queue |
//! | one body; all bodies | 4 MiB; 64 MiB | 413; 503 |
//! | items of a callback | [`crate::provider::ITEMS_MAX`] | 413 |
//! | one event; one part that nobody claims | [`normalize::EVENT_BYTES_MAX`] | 413 |
//! | callbacks waiting for the buffer | [`BUFFER_WAITERS_MAX`] | 503 |
//! | while the agent drains, or once it was revoked | none | 503 |
//! | the buffer | `buffer_bytes_max`, `disk_free_bytes_min` | 503 |
//! | what one destination is owed | `buffer_destination_share` | 503 for its callbacks |
//! | what is remembered of the last eight days | `buffer_marks_bytes_max` | the oldest is forgotten: a repeat is delivered again |

use std::sync::Arc;

use gateway_core::{event::Event, id::WebhookSubscriptionId, snapshot::Snapshot, time::from_proto};
use gateway_proto::v1;
use gateway_runtime::clock;
use http::{HeaderMap, Method, header};
use jiff::Timestamp;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    control_plane::Identity,
    metrics::Metrics,
    opt_out::{self, OptOuts},
    provider::{CallbackRequest, NormalizeError, Refusal, Refusals, Reply, provider},
    snapshot::SnapshotHandle,
};

pub mod callback;
pub mod authenticate;
pub mod normalize;
pub mod buffer;
pub mod deliver;
pub mod report;
#[cfg(test)]
pub(crate) mod tests;

use authenticate::{Address, Authenticated, Refused, authenticate, handshake};
use buffer::{AppendError, Buffer, Entry, NewEvent, Receipt, TakenOver};
use callback::{Accept, Answer, CallbackServer, Front};
use normalize::{Normalized, Normalizer, Origin, log};

/// Most callbacks that wait for the buffer at once. Beyond it callbacks are answered 503: the disk is behind,
/// and a longer queue would only make every answer slower than the provider waits.
pub const BUFFER_WAITERS_MAX: usize = 2_048;
/// What providers are told while the agent drains: others of its region take their callbacks.
const DRAINING: Answer =
    Answer::BufferRefused { reason: "draining", retry_after: std::time::Duration::from_secs(30) };
/// What providers are told by a revoked agent: nobody would see what it takes.
const REVOKED: Answer =
    Answer::BufferRefused { reason: "revoked", retry_after: std::time::Duration::from_secs(30) };
/// From this size on, a body is checked and read off the async threads: it would hold one up for longer than
/// half a millisecond.
const BLOCKING_BODY_BYTES: usize = 128 * 1024;

/// The first four stages: from a request to an entry on disk. Cheap to clone.
#[derive(Clone)]
pub struct Pipeline(Arc<Inner>);

struct Inner {
    origin: Origin,
    snapshot: SnapshotHandle,
    buffer: Buffer,
    opt_outs: OptOuts,
    metrics: Metrics,
    refusals: Refusals,
    waiters: Semaphore,
    /// Callbacks that carry a wish run to their end even if their request is dropped.
    tasks: TaskTracker,
}

impl Pipeline {
    /// Joins the stages of the agent `identity`.
    pub fn new(
        identity: &Identity,
        snapshot: SnapshotHandle,
        buffer: Buffer,
        opt_outs: OptOuts,
        metrics: Metrics,
        refusals: Refusals,
    ) -> Self {
        let origin = Origin { agent_id: identity.agent_id.clone(), region: identity.region.clone() };
        let (waiters, tasks) = (Semaphore::new(BUFFER_WAITERS_MAX), TaskTracker::new());
        Self(Arc::new(Inner { origin, snapshot, buffer, opt_outs, metrics, refusals, waiters, tasks }))
    }

    /// Takes callbacks on `listener` until `stop`, then finishes those that have begun. They come in as `front`
    /// says.
    ///
    /// # Errors
    /// Never; the result is for the supervisor.
    pub async fn serve(
        self,
        listener: TcpListener,
        front: Front,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let metrics = self.0.metrics.clone();
        CallbackServer { listener, accept: self, front, metrics }.run(stop).await
    }

    /// Buffers an event that is made here, for these subscriptions.
    ///
    /// # Errors
    /// When the buffer refuses.
    pub async fn append_event(
        &self,
        event: &Event,
        subscriptions: Vec<WebhookSubscriptionId>,
    ) -> Result<(), AppendError> {
        let log = log(event, &self.0.origin);
        let new = NewEvent { id: event.id, event_type: event.event_type, log, subscriptions };
        self.append(Entry { events: vec![new], ..Entry::default() }.into()).await?;
        Ok(())
    }

    /// Buffers deliveries that other agents gave away.
    ///
    /// # Errors
    /// When the buffer refuses; then none of them is taken.
    pub async fn take_over(&self, taken_over: Vec<TakenOver>) -> Result<(), AppendError> {
        self.0.buffer.append(Entry { taken_over, ..Entry::default() }).await?;
        Ok(())
    }

    /// Takes a callback that was kept because nobody claimed its number. What still nobody claims is kept
    /// again; what was taken before is a duplicate.
    ///
    /// # Errors
    /// When the buffer refuses.
    pub async fn replay_unrouted(&self, callback: v1::UnroutedCallback) -> Result<(), AppendError> {
        let snapshot = self.0.snapshot.load();
        let Some(route) = snapshot.route(&callback.inbound_route_id) else {
            warn!("skipped a claimed callback: its inbound route is gone");
            return Ok(());
        };
        let parts = match provider(route.provider).normalize(callback.payload_json.as_bytes()) {
            Ok(parts) => parts,
            Err(error) => {
                warn!(%error, "skipped a claimed callback: it cannot be read");
                return Ok(());
            }
        };
        let receive_time = callback.receive_time.as_ref().and_then(from_proto).unwrap_or_else(clock::now);
        let origin = &self.0.origin;
        let normalizer =
            Normalizer { route, snapshot: &snapshot, origin, receive_time, replay_time: Some(clock::now()) };
        let normalized = normalizer.normalize(parts);
        if normalized.is_too_large() {
            warn!("skipped a claimed callback: its events would be too large");
            return Ok(());
        }
        self.append(normalized).await?;
        Ok(())
    }

    /// Buffers the event of an opt-out or opt-in that was recorded through the API.
    ///
    /// # Errors
    /// When the buffer refuses.
    pub async fn opt_out_notice(&self, opt_out: v1::OptOut) -> Result<(), AppendError> {
        let snapshot = self.0.snapshot.load();
        let Some(event) = opt_out::notice(&opt_out, &snapshot, &self.0.origin, clock::now()) else {
            warn!("skipped an opt-out notice: its instance is gone");
            return Ok(());
        };
        self.append(Entry { events: vec![event], ..Entry::default() }.into()).await?;
        Ok(())
    }

    /// Appends. Cancel safe: with wishes in it, it goes on in a task of its own.
    async fn append(&self, normalized: Normalized) -> Result<Receipt, AppendError> {
        let offered = normalized.entry.events.len() + normalized.entry.unrouted.len();
        let appended = if !self.0.opt_outs.concerns(&normalized, clock::now()) {
            self.0.buffer.append(normalized.entry).await
        } else {
            let (pipeline, taking) = (self.clone(), self.0.snapshot.drain().hold());
            let deciding = self.0.tasks.spawn(async move {
                let decided = pipeline.decide(normalized).await;
                drop(taking);
                decided
            });
            deciding.await.unwrap_or(Err(AppendError::Stopped))
        };
        let counts = match &appended {
            Ok(receipt) => [("stored", receipt.stored), ("duplicate", receipt.duplicates)],
            Err(_) => [("refused", offered), ("stored", 0)],
        };
        for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            self.0.metrics.events(outcome, u64::try_from(count).unwrap_or(u64::MAX));
        }
        appended
    }

    async fn decide(&self, normalized: Normalized) -> Result<Receipt, AppendError> {
        let Inner { buffer, opt_outs, snapshot, origin, .. } = &*self.0;
        opt_outs.append(buffer, normalized, &snapshot.load(), origin, clock::now()).await
    }

    /// What a request comes to: authenticate, then normalize.
    fn examine(&self, address: Address<'_>, request: CallbackRequest) -> Result<(Normalized, Reply), Answer> {
        let now = clock::now();
        let snapshot = self.0.snapshot.load();
        let examined = authenticate(&snapshot, address, request, now).and_then(|callback| {
            self.read(&snapshot, &callback, now)
                .map_err(|reason| Refused { route: Some(Arc::clone(callback.route())), reason })
        });
        examined.map_err(|refused| self.refuse(&refused, now))
    }

    /// What a genuine callback comes to.
    fn read(
        &self,
        snapshot: &Snapshot,
        callback: &Authenticated<CallbackRequest>,
        now: Timestamp,
    ) -> Result<(Normalized, Reply), Refusal> {
        check_media_type(callback)?;
        let route = callback.route();
        let provider = provider(route.provider);
        let content = provider.content(callback.value());
        let parts = provider.normalize(content).map_err(|error| match error {
            NormalizeError::Unreadable => Refusal::UnreadableBody,
            NormalizeError::TooManyItems => Refusal::TooManyItems,
        })?;
        let origin = &self.0.origin;
        let normalizer = Normalizer { route, snapshot, origin, receive_time: now, replay_time: None };
        let normalized = normalizer.normalize(parts);
        if normalized.is_too_large() {
            Err(Refusal::TooLarge)
        } else {
            Ok((normalized, provider.reply(content)))
        }
    }

    /// Counts a refused callback, and gives the answer to it.
    fn refuse(&self, refused: &Refused, now: Timestamp) -> Answer {
        let Refused { route, reason } = refused;
        self.0.refusals.count(route.as_ref().map(|route| &route.id), *reason, now);
        debug!(reason = reason.name(), "refused a callback");
        match reason {
            Refusal::TooLarge | Refusal::TooManyItems => Answer::TooLarge,
            Refusal::WrongMediaType => Answer::WrongMediaType,
            Refusal::UnreadableBody => Answer::Unreadable,
            _ => Answer::NotAuthenticated,
        }
    }
}

impl From<Entry> for Normalized {
    fn from(entry: Entry) -> Self {
        Self { entry, ..Self::default() }
    }
}

impl Accept for Pipeline {
    fn is_ready(&self) -> bool {
        self.0.snapshot.is_ready()
    }

    fn handshake(&self, address: Address<'_>, query: &str) -> Answer {
        match handshake(&self.0.snapshot.load(), address, query) {
            Ok(challenge) => Answer::Challenge(challenge),
            Err(refused) => {
                self.refuse(&refused, clock::now());
                Answer::HandshakeRefused
            }
        }
    }

    fn refuse_too_large(&self, address: Address<'_>) -> Answer {
        let refused = Refused::unseen(&self.0.snapshot.load(), address, Refusal::TooLarge);
        self.refuse(&refused, clock::now())
    }

    async fn accept(&self, address: Address<'_>, request: CallbackRequest) -> Answer {
        let drain = self.0.snapshot.drain();
        let Some(_taking) = drain.admit() else {
            return if drain.is_revoked() { REVOKED } else { DRAINING };
        };
        let Ok(_waiting) = self.0.waiters.try_acquire() else { return Answer::Busy };
        let examined = if request.body.len() < BLOCKING_BODY_BYTES {
            self.examine(address, request)
        } else {
            let pipeline = self.clone();
            let [segment, token] = [address.provider, address.token].map(str::to_owned);
            let examining = tokio::task::spawn_blocking(move || {
                pipeline.examine(Address { provider: &segment, token: &token }, request)
            });
            examining.await.unwrap_or(Err(Answer::NotReady))
        };
        let (normalized, reply) = match examined {
            Ok(examined) => examined,
            Err(answer) => return answer,
        };
        if normalized.entry.events.is_empty()
            && normalized.entry.unrouted.is_empty()
            && normalized.wishes.is_empty()
        {
            return Answer::Accepted(reply);
        }
        match self.append(normalized).await {
            Ok(_on_disk) => Answer::Accepted(reply),
            Err(error) => Answer::BufferRefused { reason: reason(&error), retry_after: error.retry_after() },
        }
    }

    async fn drain(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

const fn reason(error: &AppendError) -> &'static str {
    match error {
        AppendError::Full { .. } => "buffer_full",
        AppendError::DestinationFull => "destination_full",
        AppendError::Busy => "buffer_busy",
        AppendError::DiskFull => "disk_full",
        AppendError::Broken => "buffer_broken",
        AppendError::Stopped => "stopped",
    }
}

/// Media type and encoding of a genuine callback. Bodies are never decompressed: one that decodes to
/// gigabytes is a few kilobytes on the wire.
fn check_media_type(callback: &Authenticated<CallbackRequest>) -> Result<(), Refusal> {
    let headers = &callback.value().headers;
    let is_encoded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"));
    // What is in the query has no media type.
    let accepted = callback.value().method == Method::GET
        || media_type(headers)
            .is_some_and(|media_type| provider(callback.route().provider).accepts(&media_type));
    if accepted && !is_encoded { Ok(()) } else { Err(Refusal::WrongMediaType) }
}

/// The media type in lower case, without parameters.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}
