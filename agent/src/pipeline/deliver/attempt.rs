//! One attempt: sign, send, read the beginning of the answer, decide what follows.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway_core::{
    delivery::DeliveryState,
    destination::AddressPolicy,
    id::EventId,
    retry::{self, Next},
    signature::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP},
    snapshot::SubscriptionConfig,
    time::{duration_to_proto, to_proto},
};
use gateway_proto::v1;
use gateway_runtime::clock;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    metrics::Metrics,
    pipeline::buffer::{Outcome, Owed},
};

use super::{ClientError, failure::Failure, guard::Guard};

/// Most bytes of an answer that are read; then the connection is closed.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of an answer that are kept.
const EXCERPT_BYTES_MAX: usize = 16 * 1024;

/// The schedule of attempts, as [`retry::next_attempt`].
pub(super) type Schedule = fn(u32, Option<Duration>, f64) -> Next;

/// Makes attempts. Cheap to clone.
#[derive(Clone)]
pub(super) struct Attempter {
    guard: Guard,
    agent_id: Arc<str>,
    metrics: Metrics,
    schedule: Schedule,
}

/// What came back.
#[derive(Default)]
struct Answer {
    status: Option<StatusCode>,
    retry_after: Option<Duration>,
    excerpt: Vec<u8>,
}

impl Attempter {
    pub(super) fn new(
        policy: AddressPolicy,
        roots: &[reqwest::Certificate],
        agent_id: &str,
        metrics: Metrics,
        schedule: Schedule,
    ) -> Result<Self, ClientError> {
        let guard = Guard::new(policy, roots)?;
        Ok(Self { guard, agent_id: agent_id.into(), metrics, schedule })
    }

    /// Makes the next attempt of a delivery. Dropping the future ends the attempt.
    pub(super) async fn attempt(
        &self,
        event: u64,
        subscription: u32,
        owed: &Owed,
        config: &SubscriptionConfig,
    ) -> Outcome {
        let (start_time, started) = (clock::now(), Instant::now());
        let mut answer = Answer::default();
        let sent = self.send(&owed.log, config, start_time, &mut answer);
        // Cancel safe: dropping `send` ends the request, and `answer` keeps what came.
        let result = tokio::time::timeout(config.attempt_timeout, sent)
            .await
            .unwrap_or_else(|_elapsed| Err(Failure::timeout(config.attempt_timeout)));
        let duration = started.elapsed();
        let name = result.as_ref().err().map_or("delivered", Failure::metric);
        self.metrics.attempt(name, duration.as_secs_f64());
        let number = owed.attempts + 1;
        let (state, due_ms) = self.decide(&result, number, &answer);
        let is_gone = answer.status == Some(StatusCode::GONE) && result.is_err();
        let (kind, error) =
            result.err().map_or_else(Default::default, |failure| (failure.kind, failure.text));
        let attempt = v1::DeliveryAttempt {
            attempt_id: Uuid::now_v7().to_string(),
            event_id: owed.log.event_id.clone(),
            subscription_id: config.id.as_str().to_owned(),
            attempt_number: number,
            start_time: Some(to_proto(start_time)),
            duration: Some(duration_to_proto(duration)),
            status_code: answer.status.map_or(0, |status| i32::from(status.as_u16())),
            failure: kind.into(),
            error,
            response_excerpt: answer.excerpt.into(),
            agent_id: self.agent_id.as_ref().to_owned(),
        };
        let gone = is_gone.then(|| v1::DestinationGone {
            subscription_id: config.id.as_str().to_owned(),
            destination_url: config.destination.as_str().to_owned(),
            time: Some(to_proto(clock::now())),
        });
        Outcome { event, subscription, state, due_ms, attempt: Some(attempt), gone }
    }

    fn decide(
        &self,
        result: &Result<(), Failure>,
        number: u32,
        answer: &Answer,
    ) -> (DeliveryState, Option<i64>) {
        if result.is_ok() {
            return (DeliveryState::Delivered, None);
        }
        if answer.status == Some(StatusCode::GONE) {
            return (DeliveryState::Held, None);
        }
        match (self.schedule)(number, answer.retry_after, rand::random()) {
            Next::After(delay) => {
                let delay_ms = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
                (DeliveryState::Pending, Some(clock::now().as_millisecond().saturating_add(delay_ms)))
            }
            Next::Exhausted => (DeliveryState::Exhausted, None),
        }
    }

    async fn send(
        &self,
        log: &v1::InboundLog,
        config: &SubscriptionConfig,
        time: Timestamp,
        answer: &mut Answer,
    ) -> Result<(), Failure> {
        let client = self.guard.client_for(&config.destination).map_err(Failure::blocked)?;
        let headers = headers(log, config, time)?;
        let body = Bytes::copy_from_slice(log.payload_json.as_bytes());
        let request = client.post(config.destination.clone()).headers(headers).body(body);
        let mut response = request.send().await.map_err(|error| Failure::of_client(&error))?;
        self.guard.check_peer(&config.destination, response.remote_addr()).map_err(Failure::blocked)?;
        answer.status = Some(response.status());
        answer.retry_after = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry::parse_retry_after(value, clock::now()));
        let mut bytes_read = 0;
        while bytes_read < RESPONSE_BYTES_MAX {
            let chunk = response.chunk().await.map_err(|error| Failure::of_client(&error))?;
            let Some(chunk) = chunk else { break };
            bytes_read += chunk.len();
            let room = EXCERPT_BYTES_MAX - answer.excerpt.len();
            answer.excerpt.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        if response.status().is_success() { Ok(()) } else { Err(Failure::status(response.status())) }
    }
}

/// The headers of a webhook: ours, those of the customer, and those of Standard Webhooks,
/// <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>. What the
/// customer adds never replaces one of ours.
fn headers(log: &v1::InboundLog, config: &SubscriptionConfig, time: Timestamp) -> Result<HeaderMap, Failure> {
    let bad = || Failure::protocol("a header of the subscription cannot be sent");
    let mut headers = HeaderMap::with_capacity(config.headers.len() + 8);
    for (name, value) in &config.headers {
        let name: HeaderName = name.parse().map_err(|_| bad())?;
        let mut value: HeaderValue = value.parse().map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    let seconds = time.as_second();
    let ours = |text: &str| HeaderValue::from_str(text).map_err(|_| bad());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(WEBHOOK_ID, ours(&log.event_id)?);
    headers.insert(WEBHOOK_TIMESTAMP, seconds.into());
    headers.insert(WEBHOOK_SIGNATURE, ours(&signature(log, config, time))?);
    headers.insert("traceparent", ours(&traceparent(&log.event_id))?);
    Ok(headers)
}

const USER_AGENT: &str = concat!("WhatsApp-Gateway/", env!("CARGO_PKG_VERSION"));

/// The signatures of all live secrets, newest first, one space between them.
fn signature(log: &v1::InboundLog, config: &SubscriptionConfig, time: Timestamp) -> String {
    let live = config.signing_secrets.iter().filter(|(_, expire)| expire.is_none_or(|expire| time < expire));
    let signatures: Vec<String> = live
        .map(|(secret, _)| secret.sign(&log.event_id, time.as_second(), log.payload_json.as_bytes()))
        .collect();
    signatures.join(" ")
}

/// W3C trace context: the trace is the event's, the same in every attempt, the span is the attempt's.
/// <https://www.w3.org/TR/trace-context/#traceparent-header>
fn traceparent(event_id: &str) -> String {
    let trace = match event_id.parse::<EventId>() {
        Ok(id) => u128::from_be_bytes(*id.as_bytes()),
        Err(_) => rand::random(),
    };
    format!("00-{:032x}-{:016x}-01", trace.max(1), rand::random::<u64>().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The trace is the event's and valid, whatever the id looks like.
    #[test]
    fn traceparent_is_valid() {
        let id = EventId::derive(&["an event"]).to_string();
        let (first, second) = (traceparent(&id), traceparent(&id));
        assert_eq!(first[..36], second[..36]);
        assert_ne!(first, second);
        for text in [first, traceparent("not an id")] {
            assert_eq!(text.len(), 55);
            assert!(text.starts_with("00-") && text.ends_with("-01"), "{text}");
        }
    }
}
