//! Following the events of a callback: recorded, delivered, received. The logs are asked again and again
//! until the step has come or its time is over.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use futures_util::TryStreamExt as _;
use gateway_sdk::{Client, Error, Timestamp, v1};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use super::{STEP_TIMEOUT, SuppressionReport, milliseconds, sample::Sample, target::Target};

/// How often a step is looked for.
const POLL: Duration = Duration::from_millis(5);
/// How far the clocks of this machine and the agent may be apart.
const CLOCK_SKEW_SECONDS: i64 = 30;

/// One event to wait for.
pub struct Expected {
    event: &'static str,
    filter: v1::ListInboundLogsRequest,
}

impl Expected {
    /// An event of the provider's message, of any instance when `instance_id` is empty.
    pub fn of_message(event: &'static str, instance_id: &str, message_id: &str) -> Self {
        let filter = v1::ListInboundLogsRequest {
            page_size: 1,
            events: vec![event.to_owned()],
            external_message_id: message_id.to_owned(),
            instance_id: instance_id.to_owned(),
            ..v1::ListInboundLogsRequest::default()
        };
        Self { event, filter }
    }

    /// An event of the contact that comes from now on, of any instance when `instance_id` is empty.
    pub fn of_contact(event: &'static str, instance_id: &str, sample: &Sample) -> Self {
        let since = gateway_runtime::clock::now().as_second() - CLOCK_SKEW_SECONDS;
        let filter = v1::ListInboundLogsRequest {
            page_size: 1,
            events: vec![event.to_owned()],
            from_phone: sample.contact.as_str().to_owned(),
            instance_id: instance_id.to_owned(),
            start_time: Timestamp::from_second(since).ok().map(gateway_core::time::to_proto),
            ..v1::ListInboundLogsRequest::default()
        };
        Self { event, filter }
    }
}

/// What became of one event. Times are milliseconds after the callback was sent.
#[derive(Serialize)]
pub struct EventReport {
    /// Its name.
    pub event: String,
    /// Its id.
    pub event_id: String,
    /// The instance it belongs to.
    pub instance_id: String,
    /// The agent that took it.
    pub agent_id: String,
    /// When it was seen in the inbound logs.
    pub logged_ms: f64,
    /// When its deliveries were seen to be settled.
    pub delivered_ms: f64,
    /// Its deliveries.
    pub deliveries: Vec<DeliveryReport>,
    /// The webhook, when the built-in receiver took it.
    pub webhook: Option<WebhookReport>,
    /// The body as recorded.
    pub payload: Box<RawValue>,
}

/// What became of one delivery.
#[derive(Serialize)]
pub struct DeliveryReport {
    /// The webhook subscription.
    pub subscription_id: String,
    /// `DELIVERED`, `EXHAUSTED`, …
    pub state: String,
    /// Its attempts.
    pub attempts: Vec<AttemptReport>,
}

/// One attempt.
#[derive(Serialize)]
pub struct AttemptReport {
    /// Counts from 1.
    pub number: u32,
    /// The answer's HTTP status; 0 when there was none.
    pub status_code: i32,
    /// How long it took.
    pub duration_ms: f64,
    /// Why it failed; empty when it did not.
    pub error: String,
}

/// A webhook, as the built-in receiver took it.
#[derive(Serialize, Deserialize)]
pub struct WebhookReport {
    /// Where it was received.
    #[serde(default)]
    pub url: String,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its body, byte for byte.
    pub body: Box<RawValue>,
}

/// Follows events.
pub struct Follower<'a> {
    pub client: &'a Client,
    pub http: &'a reqwest::Client,
    pub target: &'a Target,
    /// When the callback was sent.
    pub start: Instant,
}

impl Follower<'_> {
    /// Waits until the event is recorded and its deliveries are settled.
    pub async fn follow(&self, expected: &Expected) -> anyhow::Result<EventReport> {
        let log = until(async || self.logged(expected).await).await?.with_context(|| {
            format!(
                "the agent accepted the callback, but `{}` did not appear in the inbound logs within {} s. The \
                 number may belong to no instance (see InboundRouteService/ListUnroutedCallbacks), no webhook \
                 subscription may have selected the event, or the agent may have lost its control plane (see \
                 AgentService/ListAgents)",
                expected.event,
                STEP_TIMEOUT.as_secs()
            )
        })?;
        let logged_ms = milliseconds(self.start);
        let mut last = log.clone();
        let log = match until(async || self.settled(&log.event_id, &mut last).await).await? {
            Some(log) => log,
            None => anyhow::bail!(not_delivered(&last)),
        };
        let delivered_ms = milliseconds(self.start);
        Ok(EventReport {
            deliveries: self.deliveries(&log).await?,
            webhook: self.webhook(&log.event_id).await?,
            event: log.event,
            event_id: log.event_id,
            instance_id: log.instance_id,
            agent_id: log.agent_id,
            logged_ms,
            delivered_ms,
            payload: RawValue::from_string(log.payload_json).context("read the body in the inbound log")?,
        })
    }

    async fn logged(&self, expected: &Expected) -> anyhow::Result<Option<v1::InboundLog>> {
        let answer = self.client.inbound_logs().list_inbound_logs(expected.filter.clone()).await;
        let page = answer.map_err(Error::from).context("list inbound logs")?.into_inner();
        Ok(page.inbound_logs.into_iter().next())
    }

    async fn settled(
        &self,
        event_id: &str,
        last: &mut v1::InboundLog,
    ) -> anyhow::Result<Option<v1::InboundLog>> {
        let request = v1::GetInboundLogRequest { event_id: event_id.to_owned() };
        let answer = self.client.inbound_logs().get_inbound_log(request).await;
        let log = answer.map_err(Error::from).context("get the inbound log")?.into_inner().inbound_log;
        let log = log.context("get the inbound log: the answer is empty")?;
        last.clone_from(&log);
        let open = |delivery: &v1::Delivery| delivery.state() == v1::DeliveryState::Pending;
        Ok((!log.deliveries.is_empty() && !log.deliveries.iter().any(open)).then_some(log))
    }

    async fn deliveries(&self, log: &v1::InboundLog) -> anyhow::Result<Vec<DeliveryReport>> {
        let request =
            v1::ListDeliveryAttemptsRequest { event_id: log.event_id.clone(), ..Default::default() };
        let attempts: Vec<_> =
            self.client.list(request).try_collect().await.context("list delivery attempts")?;
        Ok(log.deliveries.iter().map(|delivery| DeliveryReport::new(delivery, &attempts)).collect())
    }

    /// None when there is no built-in receiver, or the webhook went elsewhere.
    async fn webhook(&self, event_id: &str) -> anyhow::Result<Option<WebhookReport>> {
        let Some(receiver_url) = &self.target.receiver_url else { return Ok(None) };
        let answer = self.http.get(format!("{receiver_url}/{event_id}")).send().await;
        let answer = answer.with_context(|| self.target.help("the built-in receiver does not answer"))?;
        if answer.status() != reqwest::StatusCode::OK {
            return Ok(None);
        }
        let body = answer.bytes().await.context("read the webhook from the built-in receiver")?;
        let webhook: WebhookReport = serde_json::from_slice(&body).context("read the webhook")?;
        Ok(Some(WebhookReport { url: receiver_url.clone(), ..webhook }))
    }

    /// Waits until marketing to the contact is suppressed.
    pub async fn suppression(
        &self,
        sample: &Sample,
        event: Option<&EventReport>,
    ) -> anyhow::Result<SuppressionReport> {
        let instance_id = event.map(|event| event.instance_id.clone()).unwrap_or_default();
        let request = v1::CheckSuppressionRequest {
            instance_id,
            phone: sample.contact.as_str().to_owned(),
            user_id: String::new(),
            purpose: v1::Purpose::Marketing.into(),
        };
        let check = async || {
            let answer = self.client.opt_outs().check_suppression(request.clone()).await;
            let answer = answer.map_err(Error::from).context("check suppression")?.into_inner();
            anyhow::Ok((!answer.allowed).then(|| answer.opt_out.unwrap_or_default().id))
        };
        let opt_out_id = until(check).await?.with_context(|| {
            format!("CheckSuppression still allows marketing {} s after the opt-out", STEP_TIMEOUT.as_secs())
        })?;
        Ok(SuppressionReport { marketing_allowed: false, opt_out_id, after_ms: milliseconds(self.start) })
    }
}

/// Asks until there is an answer, at most for [`STEP_TIMEOUT`].
async fn until<T>(mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<Option<T>> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(Some(answer));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        sleep(POLL).await;
    }
}

fn not_delivered(log: &v1::InboundLog) -> String {
    let seconds = STEP_TIMEOUT.as_secs();
    if log.deliveries.is_empty() {
        return format!(
            "`{}` is recorded as {}, but no webhook subscription of `{}` selected it",
            log.event, log.event_id, log.instance_id
        );
    }
    let mut text =
        format!("`{}` is recorded as {}, but not delivered after {seconds} s:", log.event, log.event_id);
    for delivery in log.deliveries.iter().filter(|delivery| delivery.state() == v1::DeliveryState::Pending) {
        text.push_str(&format!(
            " `{}` had {} attempts, the last one gave HTTP status {} {};",
            delivery.subscription_id, delivery.attempt_count, delivery.last_status_code, delivery.last_error
        ));
    }
    text.push_str(" it is tried again for three days");
    text
}

impl DeliveryReport {
    fn new(delivery: &v1::Delivery, attempts: &[v1::DeliveryAttempt]) -> Self {
        let state = delivery.state().as_str_name();
        let attempts = attempts
            .iter()
            .filter(|attempt| attempt.subscription_id == delivery.subscription_id)
            .map(|attempt| AttemptReport {
                number: attempt.attempt_number,
                status_code: attempt.status_code,
                duration_ms: attempt
                    .duration
                    .as_ref()
                    .and_then(gateway_core::time::duration_from_proto)
                    .map_or(0.0, |duration| (duration.as_secs_f64() * 10_000.0).round() / 10.0),
                error: attempt.error.clone(),
            })
            .collect();
        Self {
            subscription_id: delivery.subscription_id.clone(),
            state: state.strip_prefix("DELIVERY_STATE_").unwrap_or(state).to_owned(),
            attempts,
        }
    }
}
