//! One attempt: sign, send, read the beginning of the answer, say what it means.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use gateway_core::time::{duration_to_proto, to_proto};
use gateway_core::{destination::AddressPolicy, id::EventId, snapshot::SubscriptionConfig};
use gateway_proto::v1;
use gateway_runtime::clock;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use tokio::task::JoinSet;

use crate::{metrics::Metrics, pipeline::buffer::Owed};

use super::{
    ClientError,
    dial::{Answer, Dialer, Progress, Resolve, SystemResolver, retry_after},
    failure::{Failure, Party},
};

mod prepared;

use prepared::{Cache, Prepared, Webhook};

/// Below this time a connection that was not made is worth another try at once.
const QUICK_MAX: Duration = Duration::from_secs(1);
/// How often idle connections are looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);

/// An attempt that was made.
#[derive(Debug)]
pub(super) struct Made {
    /// What is reported of it.
    pub(super) attempt: v1::DeliveryAttempt,
    /// What it means for the delivery.
    pub(super) verdict: Verdict,
}

/// What an attempt means for its delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The destination took it.
    Delivered,
    /// The destination answered 410.
    Gone,
    /// It has to be tried again.
    Failed {
        /// When the destination wants to be asked again, at most 24 h.
        retry_after: Option<Duration>,
        /// The destination asks for fewer requests: 429 or 503.
        slow_down: bool,
        /// No connection was made, and that was known within a second.
        quick: bool,
        /// The cause is on this machine, and nothing was sent: it does not count against the destination.
        ours: bool,
    },
}

/// Makes attempts. Cheap to clone.
#[derive(Clone)]
pub(super) struct Attempter(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    /// Ends with the last attempter.
    _sweeper: JoinSet<()>,
}

struct Shared {
    dialer: Dialer,
    cache: Cache,
    agent_id: Arc<str>,
    metrics: Metrics,
}

impl Attempter {
    /// Attempts at what `policy` allows, on behalf of this agent. It is made inside the runtime.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(super) fn new(policy: AddressPolicy, agent_id: &str, metrics: Metrics) -> Result<Self, ClientError> {
        Self::with_resolver(policy, agent_id, metrics, Arc::new(SystemResolver::new()))
    }

    /// As [`Self::new`], with another way to look names up.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(super) fn with_resolver(
        policy: AddressPolicy,
        agent_id: &str,
        metrics: Metrics,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, ClientError> {
        let dialer = Dialer::new(policy, resolver)?;
        let shared = Arc::new(Shared { dialer, cache: Cache::default(), agent_id: agent_id.into(), metrics });
        let mut sweeper = JoinSet::new();
        sweeper.spawn(sweep(Arc::downgrade(&shared)));
        Ok(Self(Arc::new(Inner { shared, _sweeper: sweeper })))
    }

    /// Makes the next attempt of a delivery. Dropping the future ends the attempt.
    pub(super) async fn attempt(&self, owed: &Owed, config: &Arc<SubscriptionConfig>) -> Made {
        let Shared { agent_id, metrics, .. } = &*self.0.shared;
        let (start_time, started) = (clock::now(), Instant::now());
        let (mut progress, mut answer) = (Progress::new(), Answer::default());
        let sent = self.0.shared.send(owed, config, start_time, &mut progress, &mut answer);
        // Cancel safe: dropping `send` ends the request, and `answer` keeps what came.
        let result =
            tokio::time::timeout(config.attempt_timeout, sent).await.unwrap_or_else(|_elapsed| match answer
                .status
            {
                Some(status) if !status.is_success() => Err(Failure::status(Party::Destination, status)),
                _ => Err(Failure::timeout(progress.party, progress.phase(), config.attempt_timeout)),
            });
        let duration = started.elapsed();
        metrics.attempt(result.as_ref().err().map_or("delivered", Failure::metric), duration.as_secs_f64());
        let verdict = verdict(result.as_ref().err(), &answer, duration);
        let (kind, error) =
            result.err().map_or_else(Default::default, |failure| (failure.kind, failure.text));
        let attempt = v1::DeliveryAttempt {
            attempt_id: attempt_id(start_time),
            event_id: owed.log.event_id.clone(),
            subscription_id: config.id.as_str().to_owned(),
            attempt_number: owed.attempts.saturating_add(1),
            start_time: Some(to_proto(start_time)),
            duration: Some(duration_to_proto(duration)),
            status_code: answer.status.map_or(0, |status| i32::from(status.as_u16())),
            failure: kind.into(),
            error,
            response_excerpt: answer.excerpt.into(),
            agent_id: agent_id.as_ref().to_owned(),
        };
        Made { attempt, verdict }
    }

    /// Connections that were begun so far.
    #[cfg(test)]
    pub(super) fn dialled(&self) -> usize {
        self.0.shared.dialer.dialled.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Closes connections that were idle for long, until the last attempter is gone.
async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_PERIOD).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.cache.sweep();
    }
}

impl Shared {
    async fn send(
        &self,
        owed: &Owed,
        config: &Arc<SubscriptionConfig>,
        time: Timestamp,
        progress: &mut Progress,
        answer: &mut Answer,
    ) -> Result<(), Failure> {
        let prepared = self.cache.prepared(&self.dialer, config)?;
        let webhook = Webhook {
            id: value(owed.log.event_id.clone())?,
            timestamp: time.as_second().into(),
            signature: value(signature(&owed.log, config, time)?)?,
            traceparent: value(traceparent(&owed.log.event_id))?,
            body: Bytes::from_owner(Payload(Arc::clone(&owed.log))),
        };
        let status = match &prepared.tokens {
            None => self.send_with(&prepared, &webhook, None, progress, answer).await?,
            Some(tokens) => {
                let mut token = tokens.token(&self.dialer, None, progress).await?;
                let header = Some(&token.header);
                let status = self.send_with(&prepared, &webhook, header, progress, answer).await?;
                if status == StatusCode::UNAUTHORIZED && !token.is_fresh {
                    // The destination may have stopped taking the token before its time.
                    *answer = Answer::default();
                    token = tokens.token(&self.dialer, Some(token.number), progress).await?;
                    let header = Some(&token.header);
                    self.send_with(&prepared, &webhook, header, progress, answer).await?
                } else {
                    status
                }
            }
        };
        if status.is_success() { Ok(()) } else { Err(Failure::status(Party::Destination, status)) }
    }

    async fn send_with(
        &self,
        prepared: &Prepared,
        webhook: &Webhook,
        token: Option<&HeaderValue>,
        progress: &mut Progress,
        answer: &mut Answer,
    ) -> Result<StatusCode, Failure> {
        let request = || prepared.request(webhook, token);
        self.dialer.send(&prepared.site, prepared.concurrency_max(), request, progress, answer).await
    }
}

fn verdict(failure: Option<&Failure>, answer: &Answer, duration: Duration) -> Verdict {
    let Some(failure) = failure else { return Verdict::Delivered };
    match answer.status {
        Some(StatusCode::GONE) => Verdict::Gone,
        status => Verdict::Failed {
            retry_after: failure.retry_after.or_else(|| retry_after(answer)),
            slow_down: failure.slow_down
                || matches!(status, Some(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)),
            quick: failure.is_unconnected && !failure.is_ours && duration < QUICK_MAX,
            ours: failure.is_ours,
        },
    }
}

/// An id that sorts by time (UUIDv7, RFC 9562, 5.7). Its random part comes from the thread's generator: the
/// system's costs a call into the kernel for each.
fn attempt_id(time: Timestamp) -> String {
    let ms = u64::try_from(time.as_millisecond()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &rand::random()).into_uuid().to_string()
}

/// The body of a webhook, shared with the log it comes from.
struct Payload(Arc<v1::InboundLog>);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.0.payload_json.as_bytes()
    }
}

fn value(text: String) -> Result<HeaderValue, Failure> {
    HeaderValue::try_from(text).map_err(|_| Failure::protocol("the event's id cannot be sent in a header"))
}

/// The signatures of all live secrets, newest first, then those of all live keys, one space between them.
/// <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>
fn signature(log: &v1::InboundLog, config: &SubscriptionConfig, time: Timestamp) -> Result<String, Failure> {
    let (id, seconds, body) = (log.event_id.as_str(), time.as_second(), log.payload_json.as_bytes());
    let is_live = |expire: &Option<Timestamp>| expire.is_none_or(|expire| time < expire);
    let secrets = config.signing_secrets.iter().filter(|(_, expire)| is_live(expire));
    let keys = config.signing_keys.iter().filter(|(_, expire)| is_live(expire));
    let mut signatures = String::new();
    let v1 = secrets.map(|(secret, _)| secret.sign(id, seconds, body));
    for signature in v1.chain(keys.map(|(key, _)| key.sign(id, seconds, body))) {
        if !signatures.is_empty() {
            signatures.push(' ');
        }
        signatures.push_str(&signature);
    }
    if signatures.is_empty() {
        return Err(Failure::authentication("the subscription has no signing secret that is still valid"));
    }
    Ok(signatures)
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

    /// What the destination says decides; a token endpoint that says "gone" does not pause anything.
    #[test]
    fn verdicts_follow_the_destination() {
        let answered = |code, retry_after: Option<&'static str>| Answer {
            status: Some(StatusCode::from_u16(code).unwrap()),
            retry_after: retry_after.map(HeaderValue::from_static),
            ..Answer::default()
        };
        let of = |code, retry_after| {
            let failure = Failure::status(Party::Destination, StatusCode::from_u16(code).unwrap());
            verdict(Some(&failure), &answered(code, retry_after), Duration::ZERO)
        };
        let failed =
            |retry_after, slow_down| Verdict::Failed { retry_after, slow_down, quick: false, ours: false };
        assert_eq!(of(410, None), Verdict::Gone);
        assert_eq!(of(404, None), failed(None, false));
        assert_eq!(of(429, Some("7")), failed(Some(Duration::from_secs(7)), true));
        assert_eq!(of(503, Some("nonsense")), failed(None, true));
        assert_eq!(of(503, Some("-3")), failed(None, true));
        let day = Duration::from_secs(24 * 3_600);
        assert_eq!(of(500, Some("1000000000000")), failed(Some(day), false));
        let gone = Failure::status(Party::TokenEndpoint, StatusCode::GONE);
        assert_eq!(verdict(Some(&gone), &Answer::default(), Duration::ZERO), failed(None, false));
    }

    /// Only a connection that was not made within a second is worth a quick try.
    #[test]
    fn quick_means_unconnected_within_a_second() {
        let is_quick = |kind, after| {
            let failure = Failure::new(kind, "");
            let made = verdict(Some(&failure), &Answer::default(), after);
            matches!(made, Verdict::Failed { quick: true, .. })
        };
        let (at_once, late) = (Duration::from_millis(999), Duration::from_secs(1));
        assert!(is_quick(v1::AttemptFailure::Connect, at_once));
        assert!(is_quick(v1::AttemptFailure::Dns, at_once));
        assert!(is_quick(v1::AttemptFailure::Tls, at_once));
        assert!(!is_quick(v1::AttemptFailure::Connect, late));
        assert!(!is_quick(v1::AttemptFailure::BlockedAddress, at_once));
        assert!(!is_quick(v1::AttemptFailure::Protocol, at_once));
    }
}
