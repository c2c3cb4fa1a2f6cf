//! Deliveries through a real buffer to real destinations on loopback.

use std::{collections::BTreeMap, time::Duration};

use gateway_core::{
    signature::{WebhookHeaders, WebhookSecret, verify_webhook},
    snapshot::{Snapshot, SubscriptionConfig},
};
use gateway_proto::v1;
use prost_types::Timestamp as ProtoTimestamp;

use super::*;
use crate::pipeline::buffer::{
    self, Lane, Owed, ReportLimits,
    tests::{DEADLINE, entry, event, event_id},
};

mod receiver;
mod bench;
mod failures;
mod ssrf;
mod tls;
mod authentication;
mod pauses;
mod pace;
mod order;
mod clocks;
mod hand_over;

use receiver::{Receiver, Reply, Script, ok};

const NEW_SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OLD_SECRET: &str = "whsec_ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
const EXPIRED_SECRET: &str = "whsec_H2+m9p0YXmCG0E5zMDYb+QAaO40M5REX";

/// A subscription as the control plane sends it, whose schedule wastes no time.
pub(super) fn subscription(id: &str, destination_url: &str) -> v1::WebhookSubscription {
    let subscription = v1::WebhookSubscription {
        id: id.to_owned(),
        instance_id: "inst_1".to_owned(),
        destination_url: destination_url.to_owned(),
        events: vec!["*".to_owned()],
        state: v1::WebhookSubscriptionState::Active.into(),
        ..v1::WebhookSubscription::default()
    };
    after(&[10, 10], subscription)
}

/// A subscription with these delays in milliseconds between its attempts.
fn after(delays_ms: &[u32], subscription: v1::WebhookSubscription) -> v1::WebhookSubscription {
    let delays = delays_ms.iter().map(|delay_ms| prost_types::Duration {
        seconds: i64::from(delay_ms / 1_000),
        nanos: i32::try_from(delay_ms % 1_000 * 1_000_000).unwrap(),
    });
    let retry_policy = Some(v1::RetryPolicy { delays: delays.collect() });
    v1::WebhookSubscription { retry_policy, ..subscription }
}

/// A subscription with the default schedule.
fn by_default(subscription: v1::WebhookSubscription) -> v1::WebhookSubscription {
    v1::WebhookSubscription { retry_policy: None, ..subscription }
}

/// A configuration in which a subscription was removed.
fn without(before: &Snapshot, id: &str, deleted: bool) -> Snapshot {
    let removal = v1::ConfigRemoval { r#type: "webhook_subscription".to_owned(), id: id.to_owned(), deleted };
    let response =
        v1::StreamConfigResponse { removals: vec![removal], ..v1::StreamConfigResponse::default() };
    before.apply(&response).0
}

/// A whole configuration of these subscriptions.
pub(super) fn snapshot(subscriptions: impl IntoIterator<Item = v1::WebhookSubscription>) -> Snapshot {
    let secret = |value: &str, expire_time| v1::SigningSecret {
        value: value.to_owned(),
        expire_time,
        create_time: None,
    };
    let at = |seconds| Some(ProtoTimestamp { seconds, nanos: 0 });
    let upserts = subscriptions.into_iter().map(|subscription| v1::ConfigResource {
        version: 1,
        resource: Some(v1::config_resource::Resource::WebhookSubscription(v1::WebhookSubscriptionConfig {
            webhook_subscription: Some(subscription),
            signing_secrets: vec![
                secret(NEW_SECRET, None),
                secret(OLD_SECRET, at(4_102_444_800)),
                secret(EXPIRED_SECRET, at(1_000_000_000)),
            ],
            ..Default::default()
        })),
    });
    let response = v1::StreamConfigResponse {
        version: 1,
        snapshot: true,
        upserts: upserts.collect(),
        ..v1::StreamConfigResponse::default()
    };
    let (snapshot, refused) = Snapshot::default().apply(&response);
    assert_eq!(refused, []);
    snapshot
}

/// An agent's back half.
struct World {
    directory: tempfile::TempDir,
    buffer: Buffer,
    snapshot: SnapshotHandle,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl World {
    /// With these subscriptions, and loopback allowed.
    async fn new(subscriptions: impl IntoIterator<Item = v1::WebhookSubscription>) -> Self {
        Self::with(subscriptions, clock::now, Tuning::default()).await
    }

    async fn with(
        subscriptions: impl IntoIterator<Item = v1::WebhookSubscription>,
        wall: WallClock,
        tuning: Tuning,
    ) -> Self {
        let snapshot = SnapshotHandle::fixed(snapshot(subscriptions));
        Self::start(tempfile::tempdir().unwrap(), snapshot, wall, tuning).await
    }

    async fn start(
        directory: tempfile::TempDir,
        snapshot: SnapshotHandle,
        wall: WallClock,
        tuning: Tuning,
    ) -> Self {
        let buffer = buffer::tests::open(directory.path()).await;
        let attempter = bench::attempter(bench::LOOPBACK);
        let deliverer = Deliverer::with(attempter, snapshot.clone(), buffer.clone(), wall, tuning);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(deliverer.run(stop.clone()));
        Self { directory, buffer, snapshot, stop, tasks }
    }

    /// Stops it and starts it again on the same disk, by this clock.
    async fn restart(mut self, wall: WallClock) -> Self {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
        self.buffer.close().await;
        let Self { directory, snapshot, .. } = self;
        Self::start(directory, snapshot, wall, Tuning::default()).await
    }

    /// Appends an event for these subscriptions.
    async fn append(&self, number: u32, subscriptions: &[&str]) {
        self.buffer.append(entry([event(number, subscriptions)])).await.unwrap();
    }

    /// What is reported so far: deliveries of each event as they stand, and all attempts.
    async fn reported(&self) -> Reported {
        let limits = ReportLimits { bytes: usize::MAX, count: usize::MAX };
        let batch = self.buffer.next_reports(Lane::Logs, 0, limits).await.unwrap();
        let mut reported = Reported::default();
        for report in batch.reports() {
            let (event_id, deliveries, attempts) = match report.report.unwrap() {
                v1::report::Report::Event(event) => {
                    let log = event.inbound_log.unwrap();
                    (log.event_id, log.deliveries, event.attempts)
                }
                v1::report::Report::Attempts(report) => (report.event_id, report.deliveries, report.attempts),
                v1::report::Report::DeliveryHandOver(hand_over) => {
                    reported.hand_overs.push(hand_over);
                    continue;
                }
                other => panic!("unexpected report {other:?}"),
            };
            for delivery in deliveries {
                reported.deliveries.insert((event_id.clone(), delivery.subscription_id.clone()), delivery);
            }
            reported.attempts.extend(attempts);
        }
        reported
    }

    /// Waits until the reports say so.
    async fn reported_when(&self, what: &str, condition: impl Fn(&Reported) -> bool) -> Reported {
        let reported = async {
            loop {
                let reported = self.reported().await;
                if condition(&reported) {
                    return reported;
                }
                self.buffer.new_reports().await;
            }
        };
        tokio::time::timeout(DEADLINE, reported)
            .await
            .unwrap_or_else(|_| panic!("waited in vain until {what}"))
    }

    /// Waits until one delivery is in a state.
    async fn delivery(&self, number: u32, subscription: &str, state: v1::DeliveryState) -> v1::Delivery {
        let key = (event_id(number).to_string(), subscription.to_owned());
        let is_there = |reported: &Reported| {
            reported.deliveries.get(&key).is_some_and(|delivery| delivery.state() == state)
        };
        self.reported_when(state.as_str_name(), is_there).await.deliveries.remove(&key).unwrap()
    }

    async fn stop(mut self) {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
        self.buffer.close().await;
    }
}

#[derive(Debug, Default)]
struct Reported {
    deliveries: BTreeMap<(String, String), v1::Delivery>,
    attempts: Vec<v1::DeliveryAttempt>,
    hand_overs: Vec<v1::DeliveryHandOver>,
}

/// The request is exactly what is documented, and a receiver with the new or the old secret accepts it.
#[tokio::test]
async fn delivers_a_signed_webhook() {
    let receiver = Receiver::start(ok).await;
    let headers = [("x-api-key", "customer's key"), ("user-agent", "not this one")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let subscription = v1::WebhookSubscription { headers, ..subscription("sub_a", &receiver.url()) };
    let world = World::new([subscription]).await;
    world.append(1, &["sub_a"]).await;
    let request = receiver.wait_for(1).await.remove(0);

    assert_eq!(request.line, "POST /webhooks?source=gateway HTTP/1.1");
    let mut names: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "accept-encoding",
            "content-length",
            "content-type",
            "host",
            "traceparent",
            "user-agent",
            "webhook-id",
            "webhook-signature",
            "webhook-timestamp",
            "x-api-key",
        ]
    );
    let header = |name| request.header(name).unwrap();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("accept-encoding"), "identity");
    assert_eq!(header("user-agent"), concat!("WhatsApp-Gateway/", env!("CARGO_PKG_VERSION")));
    assert_eq!(header("webhook-id"), event_id(1).to_string());
    assert_eq!(header("x-api-key"), "customer's key");
    assert_eq!(request.body, event(1, &[]).log.payload_json.as_bytes());

    let signed = WebhookHeaders {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
    };
    let verify = |secret| {
        let secrets = [WebhookSecret::parse(secret).unwrap()];
        verify_webhook(&secrets, signed, &request.body, clock::now().as_second())
    };
    assert_eq!((verify(NEW_SECRET), verify(OLD_SECRET)), (Ok(()), Ok(())));
    assert!(verify(EXPIRED_SECRET).is_err());
    assert_eq!(signed.signature.split(' ').count(), 2);
    let newest = WebhookSecret::parse(NEW_SECRET).unwrap();
    let timestamp = signed.timestamp.parse().unwrap();
    assert!(signed.signature.starts_with(&newest.sign(signed.id, timestamp, &request.body)));

    let delivery = world.delivery(1, "sub_a", v1::DeliveryState::Delivered).await;
    assert_eq!((delivery.attempt_count, delivery.last_status_code), (1, 200));
    let attempt = world.reported().await.attempts.remove(0);
    assert_eq!(
        (attempt.agent_id.as_str(), attempt.response_excerpt.as_ref()),
        ("agt_1", b"thanks".as_slice())
    );
    assert_eq!(attempt.failure(), v1::AttemptFailure::Unspecified);
    assert_eq!(uuid::Uuid::parse_str(&attempt.attempt_id).unwrap().get_version_num(), 7);
    world.stop().await;
}

/// A destination that fails gets the same bytes again under the same id, over the same connection, and is
/// given up after the schedule.
#[tokio::test]
async fn failures_are_retried_until_the_schedule_ends() {
    let receiver = Receiver::start(|before| match before {
        0 | 2.. => Reply::Status(500, "", "broken"),
        1 => Reply::Status(200, "", ""),
    })
    .await;
    let world = World::new([subscription("sub_a", &receiver.url())]).await;
    world.append(1, &["sub_a"]).await;
    let delivery = world.delivery(1, "sub_a", v1::DeliveryState::Delivered).await;
    assert_eq!(delivery.attempt_count, 2);
    let requests = receiver.requests();
    assert_eq!(requests[0].body, requests[1].body);
    assert_eq!(requests[0].header("webhook-id"), requests[1].header("webhook-id"));
    assert_eq!(requests[0].connection, requests[1].connection);

    world.append(2, &["sub_a"]).await;
    let delivery = world.delivery(2, "sub_a", v1::DeliveryState::Exhausted).await;
    assert_eq!((delivery.attempt_count, delivery.last_status_code), (3, 500));
    assert_eq!(delivery.last_error, "the destination answered 500");
    assert_eq!(receiver.requests().len(), 5);
    let attempts = world.reported().await.attempts;
    let numbers: Vec<u32> = attempts.iter().map(|attempt| attempt.attempt_number).collect();
    assert_eq!(numbers, [1, 2, 1, 2, 3]);
    assert_eq!(attempts[0].response_excerpt.as_ref(), b"broken");
    world.stop().await;
}

/// The documented schedule decides when the second attempt comes, and the destination's `Retry-After` makes
/// it later. Both survive a restart.
#[tokio::test]
async fn retry_after_is_honoured_and_kept() {
    let receiver = Receiver::start(|_| Reply::Status(503, "retry-after: 3600\r\n", "")).await;
    let world = World::new([by_default(subscription("sub_a", &receiver.url()))]).await;
    world.append(1, &["sub_a"]).await;
    let is_made = |reported: &Reported| !reported.attempts.is_empty();
    let reported = world.reported_when("the attempt is made", is_made).await;
    let delivery = reported.deliveries.values().next().unwrap();
    let begun = reported.attempts[0].start_time.as_ref().unwrap().seconds;
    let next = delivery.next_attempt_time.as_ref().unwrap().seconds;
    assert!((3_600..3_660).contains(&(next - begun)), "{}", next - begun);

    let World { buffer, stop, mut tasks, directory, .. } = world;
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    buffer.close().await;
    let buffer = buffer::tests::open(directory.path()).await;
    let open = buffer.take_new_deliveries();
    assert_eq!((open[0].due_ms / 1_000, open[0].attempts), (next, 1));
    assert_eq!(buffer.load(open[0].event, open[0].subscription).await.unwrap().unwrap().attempts, 1);
}

/// A destination that never answers holds up nobody else, not even another subscription of the same
/// instance, and no more attempts than allowed run at once.
#[tokio::test]
async fn slow_destination_harms_nobody_else() {
    let silent = Receiver::start(|_| Reply::Silence).await;
    let lively = Receiver::start(ok).await;
    let slow = v1::WebhookSubscription { concurrency_max: 2, ..subscription("sub_slow", &silent.url()) };
    let world = World::new([slow, subscription("sub_a", &lively.url())]).await;
    let events = (0..50).map(|number| event(number, &["sub_slow", "sub_a"]));
    world.buffer.append(entry(events)).await.unwrap();
    let requests = lively.wait_for(50).await;
    let mut ids: Vec<&str> = requests.iter().map(|request| request.header("webhook-id").unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 50);
    silent.wait_for(2).await;
    assert_eq!(silent.requests().len(), 2);
    let World { mut tasks, .. } = world;
    tasks.shutdown().await;
}

/// With a destination that takes webhooks, the message reaches it before the opt-out that it means, also when
/// other messages of the callback stand between them; another contact's opt-out waits for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opt_out_comes_after_its_message() {
    let of_contact = |number: u32, name: &str, phone: &str| {
        let mut event = event(number, &["sub_a"]);
        (event.log.event, event.log.from_phone) = (name.to_owned(), phone.to_owned());
        event
    };
    let receiver = Receiver::start(ok).await;
    let world = World::new([subscription("sub_a", &receiver.url())]).await;
    for round in 0..40 {
        let first = round * 3;
        let events = [
            of_contact(first, "message.received", "+966500000001"),
            of_contact(first + 1, "message.received", "+966500000002"),
            of_contact(first + 2, "recipient.opted_out", "+966500000001"),
        ];
        world.buffer.append(entry(events)).await.unwrap();
        let requests = receiver.wait_for(first as usize + 3).await;
        let place = |number| {
            let id = event_id(number).to_string();
            requests.iter().position(|request| request.header("webhook-id") == Some(&id))
        };
        assert!(place(first).unwrap() < place(first + 2).unwrap(), "round {round}");
    }
    world.stop().await;

    let silent = Receiver::start(|_| Reply::Silence).await;
    let world = World::new([subscription("sub_a", &silent.url())]).await;
    let events = [
        of_contact(1, "message.received", "+966500000001"),
        of_contact(2, "recipient.opted_out", "+966500000002"),
    ];
    world.buffer.append(entry(events)).await.unwrap();
    silent.wait_for(2).await;
    let World { mut tasks, .. } = world;
    tasks.shutdown().await;
}

/// Deliveries that were in the buffer before the start are made.
#[tokio::test]
async fn goes_on_after_a_restart() {
    let receiver = Receiver::start(ok).await;
    let directory = tempfile::tempdir().unwrap();
    let config = buffer::Config::for_tests(directory.path());
    let buffer = Buffer::open(config.clone(), Metrics::new()).await.unwrap();
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    buffer.close().await;

    let buffer = Buffer::open(config, Metrics::new()).await.unwrap();
    let snapshot = SnapshotHandle::fixed(snapshot([subscription("sub_a", &receiver.url())]));
    let policy = AddressPolicy::new(vec!["127.0.0.0/8".parse().unwrap()]);
    let settings = Config { agent_id: "agt_1".to_owned(), address_policy: policy };
    let deliverer = Deliverer::new(settings, snapshot, buffer.clone(), Metrics::new()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(deliverer.run(CancellationToken::new()));
    assert_eq!(receiver.wait_for(1).await[0].header("webhook-id"), Some(&*event_id(1).to_string()));
    tasks.shutdown().await;
}
