//! Standing, queues and turns together, without attempts.

use super::*;
use crate::pipeline::deliver::tests::{snapshot, subscription};
use gateway_core::snapshot::Snapshot;
use gateway_proto::v1;

const SUBSCRIPTION: u32 = 7;

fn config(state: v1::WebhookSubscriptionState) -> Arc<Snapshot> {
    let subscription = subscription("sub_a", "https://hooks.example.com/");
    Arc::new(snapshot([v1::WebhookSubscription { state: state.into(), ..subscription }]))
}

fn active() -> Arc<Snapshot> {
    config(v1::WebhookSubscriptionState::Active)
}

fn paused() -> Arc<Snapshot> {
    config(v1::WebhookSubscriptionState::Paused)
}

fn evaluate(schedule: &mut Schedule, config: &Snapshot) -> Option<ToRecord> {
    schedule.evaluate(SUBSCRIPTION, config.look_up_subscription("sub_a"), 0)
}

fn delivery(event: u64) -> OpenDelivery {
    OpenDelivery { event, subscription: SUBSCRIPTION, due_ms: 0, held: false, attempts: 0, contact: 0 }
}

fn take(schedule: &mut Schedule, events: std::ops::Range<u64>) -> Vec<DeliveryState> {
    events.filter_map(|event| schedule.take(&delivery(event), 0, Timestamp::UNIX_EPOCH)).collect()
}

fn done(next: Next) -> Done {
    Done { next, health: Health::Bad, took: Some(Duration::from_millis(1)) }
}

/// A pause records everything as held once, what is attempted then as soon as that has failed, and what is new
/// as it comes. One that was ended before all was recorded is made up for by the next.
#[test]
fn pauses_are_recorded() {
    let mut schedule = Schedule::new(Tuning::default());
    assert!(evaluate(&mut schedule, &active()).is_none());
    assert_eq!(take(&mut schedule, 0..20), []);
    let start = schedule.start(0).unwrap();

    let to_record = evaluate(&mut schedule, &paused()).unwrap();
    assert_eq!((to_record.state, to_record.events), (DeliveryState::Held, (1..20).collect()));
    assert!(schedule.start(0).is_none() && schedule.settings(SUBSCRIPTION).is_none());
    let wait = done(Next::Wait(Duration::from_secs(5)));
    let late = schedule.finish(SUBSCRIPTION, start.entry, wait, 0).unwrap();
    assert_eq!((late.state, late.events), (DeliveryState::Held, vec![0]));
    assert_eq!(take(&mut schedule, 20..21), [DeliveryState::Held]);
    assert!(evaluate(&mut schedule, &paused()).is_none());

    assert!(evaluate(&mut schedule, &active()).is_none());
    assert!(evaluate(&mut schedule, &paused()).is_none(), "all are recorded already");
    let to_record = ToRecord { subscription: SUBSCRIPTION, events: vec![1], state: DeliveryState::Held };
    assert!(schedule.goes_on(&to_record));
    evaluate(&mut schedule, &active());
    assert!(!schedule.goes_on(&to_record));
    let again = evaluate(&mut schedule, &paused()).unwrap();
    assert_eq!(again.events, (0..21).collect::<Vec<_>>());
}

/// 410 holds everything until the settings change; the delivery that was answered so is recorded by its
/// outcome.
#[test]
fn gone_is_gone_until_somebody_acts() {
    let mut schedule = Schedule::new(Tuning::default());
    let config = active();
    evaluate(&mut schedule, &config);
    take(&mut schedule, 0..3);
    let start = schedule.start(0).unwrap();
    let used = Used { settings: Arc::clone(&start.settings), config: Arc::clone(&config) };
    let held = schedule.finish(SUBSCRIPTION, start.entry, done(Next::Gone(used)), 0).unwrap();
    assert_eq!((held.state, held.events), (DeliveryState::Held, vec![1, 2]));
    evaluate(&mut schedule, &config);
    assert!(schedule.start(0).is_none());
    evaluate(&mut schedule, &active());
    let started: Vec<u64> =
        std::iter::from_fn(|| schedule.start(1_000)).map(|start| start.entry.event).collect();
    assert_eq!(started, [0, 1, 2]);
}

/// What is owed to a deleted subscription is cancelled, what is held, waits or runs as well as what is new.
#[test]
fn deletion_cancels_everything() {
    let mut schedule = Schedule::new(Tuning::default());
    evaluate(&mut schedule, &active());
    take(&mut schedule, 0..10);
    let start = schedule.start(0).unwrap();
    let cancelled = schedule.evaluate(SUBSCRIPTION, SubscriptionLookup::Deleted, 0).unwrap();
    assert_eq!((cancelled.state, cancelled.events), (DeliveryState::Cancelled, (1..10).collect()));
    let wait = done(Next::Wait(Duration::from_secs(5)));
    let last = schedule.finish(SUBSCRIPTION, start.entry, wait, 0).unwrap();
    assert_eq!((last.state, last.events), (DeliveryState::Cancelled, vec![0]));
    assert_eq!(take(&mut schedule, 10..11), [DeliveryState::Cancelled]);
    let due = schedule.fall_asleep().unwrap();
    schedule.wake(due);
    schedule.wake(2 * due);
    assert_eq!(schedule.fall_asleep(), None, "nothing is left of it");
}

/// Whoever looks at the timers is woken when there is an earlier one, and not for every attempt.
#[test]
fn nobody_is_woken_in_vain() {
    let mut schedule = Schedule::new(Tuning::default());
    evaluate(&mut schedule, &active());
    take(&mut schedule, 0..9);
    let mut starts: Vec<Start> = std::iter::from_fn(|| schedule.start(0)).collect();
    assert_eq!(starts.len(), 8);
    schedule.fall_asleep();
    let settled = Done { health: Health::Good, ..done(Next::Settled) };
    schedule.finish(SUBSCRIPTION, starts.remove(0).entry, settled, 0);
    starts.extend(schedule.start(0));
    assert!(!schedule.needs_waking());
    let wait = done(Next::Wait(Duration::from_secs(5)));
    schedule.finish(SUBSCRIPTION, starts.remove(0).entry, wait, 0);
    assert!(schedule.needs_waking());
    assert_eq!(schedule.fall_asleep(), Some(5_000));
    assert!(!schedule.needs_waking());
}
