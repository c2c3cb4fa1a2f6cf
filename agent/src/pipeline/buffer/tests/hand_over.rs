//! Deliveries that are given away and taken over: never lost in between, at any moment a crash may choose.

use gateway_core::time::to_proto;
use jiff::Timestamp;

use super::*;
use crate::pipeline::buffer::journal::{format, read};

mod crash;
mod repeats;
mod take_back;

/// In the year 2100; an even number of milliseconds.
const DUE_MS: i64 = 4_102_444_800_000;

/// Gives a delivery away, as the deliverer does with one that waits.
pub(super) async fn give(buffer: &Buffer, delivery: OpenDelivery, state: DeliveryState) {
    let OpenDelivery { event, subscription, .. } = delivery;
    let state = state.given_away();
    buffer.settle(Outcome { event, subscription, state, due_ms: None, attempt: None, gone: None }).await;
}

/// A hand-over of another agent, with a body that is like none of this one's.
pub(super) fn foreign(id: &str, number: u32, subscription: &str, attempts: u32) -> v1::DeliveryHandOver {
    let mut log = event(number, &[]).log;
    log.payload_json.push_str(" as frozen there");
    let due = Timestamp::from_millisecond(DUE_MS).unwrap();
    let delivery = v1::Delivery {
        subscription_id: subscription.to_owned(),
        state: v1::DeliveryState::Pending.into(),
        attempt_count: attempts,
        next_attempt_time: Some(to_proto(due)),
        ..v1::Delivery::default()
    };
    let (inbound_log, delivery) = (Some(log), Some(delivery));
    v1::DeliveryHandOver { id: id.to_owned(), inbound_log, delivery, had_quick_retry: attempts > 1 }
}

pub(super) async fn take(buffer: &Buffer, hand_over: v1::DeliveryHandOver) -> Result<Receipt, AppendError> {
    let taken_over = vec![TakenOver::try_from(hand_over).unwrap()];
    buffer.append(Entry { taken_over, ..Entry::default() }).await
}

const TAKEN: Result<Receipt, AppendError> = Ok(Receipt { stored: 1, duplicates: 0 });
const KNOWN: Result<Receipt, AppendError> = Ok(Receipt { stored: 0, duplicates: 1 });

/// Reports until there are so many hand-overs.
async fn until_handed_over(buffer: &Buffer, count: usize) -> (Vec<v1::Report>, u64) {
    let (mut after, mut reports) = (buffer.acked_sequence(Lane::Logs), Vec::new());
    while hand_overs(&reports).len() < count {
        let batch = reports_after(buffer, Lane::Logs, after).await;
        after = batch.last;
        reports.extend(batch.reports());
    }
    (reports, after)
}

fn hand_overs(reports: &[v1::Report]) -> Vec<v1::DeliveryHandOver> {
    let of = |report: &v1::Report| match &report.report {
        Some(v1::report::Report::DeliveryHandOver(hand_over)) => Some(hand_over.clone()),
        _ => None,
    };
    reports.iter().filter_map(of).collect()
}

/// What the reports are, in a word each.
fn kinds(reports: &[v1::Report]) -> Vec<&'static str> {
    let kind = |report: &v1::Report| match report.report {
        Some(v1::report::Report::Event(_)) => "event",
        Some(v1::report::Report::Attempts(_)) => "attempts",
        Some(v1::report::Report::Duplicate(_)) => "duplicate",
        Some(v1::report::Report::DeliveryHandOver(_)) => "hand-over",
        _ => "other",
    };
    reports.iter().map(kind).collect()
}

fn version(directory: &Path, segment: u32) -> u8 {
    let segments = read::list(&config(directory).directory.join("journal")).unwrap();
    segments.into_iter().find(|stored| stored.number == segment).unwrap().header.unwrap().version
}

/// Fills segment after segment with what nobody needs, so that old ones leave.
async fn fill_until(buffer: &Buffer, mut is_enough: impl FnMut() -> bool) {
    let started = Instant::now();
    for change_number in 1.. {
        if is_enough() {
            return;
        }
        assert!(started.elapsed() < DEADLINE, "old segments never leave");
        let id = format!("opt_{}", change_number % 50);
        let reason = "x".repeat(2_000);
        let opt_out = v1::OptOut { id, note: reason, change_number, ..v1::OptOut::default() };
        buffer.append(Entry { opt_outs: vec![opt_out], ..Entry::default() }).await.unwrap();
        let durable = buffer.shared.lane(Lane::Urgent).durable;
        buffer.acked(Lane::Urgent, durable);
    }
}

/// What is given away is reported whole, behind the report of its event, also when the reports are read from disk. It is
/// owed here no more, also after a kill, and nothing of it is left once the report is acked.
#[tokio::test]
async fn given_away_with_its_event() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a", "sub_b"])])).await.unwrap();
    let open_deliveries = deliveries(&buffer, 2).await;
    attempt(&buffer, open_deliveries[0], DeliveryState::Pending, Some(DUE_MS | 1)).await;
    give(&buffer, open_deliveries[0], DeliveryState::Pending).await;
    let (reports, _) = until_handed_over(&buffer, 1).await;
    assert_eq!(kinds(&reports), ["event", "hand-over"]);
    let Some(v1::report::Report::Event(reported)) = &reports[0].report else { panic!("{reports:?}") };
    let shown = &reported.inbound_log.as_ref().unwrap().deliveries[0];
    assert_eq!((shown.state(), shown.attempt_count), (v1::DeliveryState::Pending, 1));
    assert_eq!(reported.attempts.len(), 1, "the attempt is in the log");
    let hand_over = hand_overs(&reports).remove(0);
    assert_eq!(hand_over.inbound_log, Some(event(1, &[]).log));
    let delivery = hand_over.delivery.as_ref().unwrap();
    assert_eq!((delivery.subscription_id.as_str(), delivery.attempt_count), ("sub_a", 1));
    assert_eq!((delivery.state(), hand_over.had_quick_retry), (v1::DeliveryState::Pending, true));
    assert_eq!(delivery.next_attempt_time.as_ref().unwrap().seconds, DUE_MS / 1_000);
    assert_eq!(uuid::Uuid::parse_str(&hand_over.id).unwrap().get_version_num(), 7);
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    let left = deliveries(&buffer, 1).await[0];
    assert_eq!(buffer.subscription_id(left.subscription).as_str(), "sub_b");
    assert!(buffer.load(left.event, open_deliveries[0].subscription).await.unwrap().is_none());
    let (again, last) = until_handed_over(&buffer, 1).await;
    assert_eq!(again, reports, "from disk they are the same");
    attempt(&buffer, left, DeliveryState::Delivered, None).await;
    buffer.acked(Lane::Logs, last - 1);
    eventually("the event is acked", || buffer.acked_sequence(Lane::Logs) == last - 1).await;
    assert!(!buffer.is_drained(), "the hand-over still needs the event");
    let last = attempts_reported(&buffer, 1).await;
    buffer.acked(Lane::Logs, last);
    eventually("all is freed", || buffer.is_drained()).await;
    assert_eq!(buffer.stats(), BufferStats::default());
}

/// An attempt that fails while the agent drains goes with the hand-over; the pause of a subscription that was not
/// recorded yet is, too.
#[tokio::test]
async fn last_words_go_first() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"]), event(2, &["sub_a"])])).await.unwrap();
    let [first, second] = deliveries(&buffer, 2).await[..] else { panic!("there are two") };
    eventually("both are reported", || buffer.shared.reports_planned.load(Ordering::Acquire) == 0).await;
    let failed = outcome(first, 1, &event(1, &[]).log, DeliveryState::Pending.given_away());
    buffer.settle(Outcome { due_ms: Some(DUE_MS), ..failed }).await;
    give(&buffer, second, DeliveryState::Held).await;
    let (reports, _) = until_handed_over(&buffer, 2).await;
    assert_eq!(kinds(&reports), ["event", "event", "attempts", "hand-over", "attempts", "hand-over"]);
    let shown = |index: usize| match &reports[index].report {
        Some(v1::report::Report::Attempts(attempts)) => attempts.clone(),
        _ => panic!("{reports:?}"),
    };
    assert_eq!((shown(2).attempts.len(), shown(2).deliveries[0].state()), (1, v1::DeliveryState::Pending));
    assert_eq!((shown(4).attempts.len(), shown(4).deliveries[0].state()), (0, v1::DeliveryState::Held));
    assert_eq!(shown(4).event_id, event_id(2).to_string());
    let given = hand_overs(&reports).into_iter().map(|hand_over| hand_over.delivery.unwrap());
    let given: Vec<_> = given.map(|delivery| (delivery.state(), delivery.attempt_count)).collect();
    assert_eq!(given, [(v1::DeliveryState::Pending, 1), (v1::DeliveryState::Held, 0)]);

    // What comes for a delivery that was given away changes nothing.
    buffer.settle(outcome(first, 2, &event(1, &[]).log, DeliveryState::Delivered)).await;
    buffer.append(entry([event(3, &[])])).await.unwrap();
    let behind = reports_after(&buffer, Lane::Logs, reports[5].sequence).await.reports();
    assert_eq!(kinds(&behind), ["event"], "the one appended after it");
}

/// What is taken over is attempted with the body, the number of the next attempt and the time of the agent that
/// gave it away, also after a kill; only its attempts are reported, and a provider's repeat is a duplicate.
#[tokio::test]
async fn taken_over_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    assert_eq!(take(&buffer, foreign("h1", 1, "sub_a", 3)).await, TAKEN);
    let taken = deliveries(&buffer, 1).await[0];
    assert_eq!((taken.due_ms, taken.attempts, taken.held), (DUE_MS | 1, 3, false));
    assert!(taken.had_quick_retry());
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 1).await, [taken]);
    let owed = buffer.load(taken.event, taken.subscription).await.unwrap().unwrap();
    assert_eq!((owed.attempts, &*owed.log), (3, &foreign("h1", 1, "sub_a", 3).inbound_log.unwrap()));
    let repeat = buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    assert_eq!(repeat, Receipt { stored: 0, duplicates: 1 });
    attempt(&buffer, taken, DeliveryState::Delivered, None).await;
    let last = attempts_reported(&buffer, 1).await;
    let reports = reports_after(&buffer, Lane::Logs, 0).await.reports();
    assert_eq!(kinds(&reports), ["duplicate", "attempts"]);
    let Some(v1::report::Report::Attempts(attempts)) = &reports[1].report else { panic!("{reports:?}") };
    assert_eq!((attempts.attempts[0].attempt_number, attempts.deliveries[0].attempt_count), (4, 4));
    buffer.acked(Lane::Logs, last);
    eventually("all is freed", || buffer.is_drained()).await;
}

/// The same hand-over again changes nothing, whatever became of it and however many came in between, also after a
/// restart. Another one of the same delivery is taken, unless the delivery is here already.
#[tokio::test]
async fn repeats_of_hand_overs_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    assert_eq!(take(&buffer, foreign("h1", 1, "sub_a", 1)).await, TAKEN);
    assert_eq!(take(&buffer, foreign("h2", 1, "sub_b", 1)).await, TAKEN);
    assert_eq!(take(&buffer, foreign("h3", 1, "sub_b", 1)).await, KNOWN, "it is open");
    buffer.append(entry([event(2, &["sub_a"])])).await.unwrap();
    assert_eq!(take(&buffer, foreign("h4", 2, "sub_a", 1)).await, KNOWN, "it is its own");
    assert_eq!(take(&buffer, foreign("h5", 2, "sub_b", 1)).await, TAKEN);
    for delivery in deliveries(&buffer, 4).await {
        attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    }
    buffer.close().await;
    let buffer = open(directory.path()).await;
    for (id, number, subscription) in [("h1", 1, "sub_a"), ("h2", 1, "sub_b"), ("h5", 2, "sub_b")] {
        assert_eq!(take(&buffer, foreign(id, number, subscription, 1)).await, KNOWN, "{id}");
    }
    assert_eq!(buffer.take_new_deliveries(), []);
    assert_eq!(take(&buffer, foreign("h6", 1, "sub_a", 2)).await, TAKEN, "it was given away once more");
}

/// Several agents may owe the same deliveries, because the provider repeated the callback, and give all of them away to
/// this one: each is here once, in whichever copy of the event, also after a restart. One that is done is taken anew.
#[tokio::test]
async fn each_delivery_of_an_event_is_here_once() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(2, &["sub_a", "sub_b"])])).await.unwrap();
    for (id, number, subscription, receipt) in [
        ("h1", 1, "sub_a", TAKEN),
        ("h2", 1, "sub_b", TAKEN),
        ("h3", 1, "sub_a", KNOWN),
        ("h4", 1, "sub_b", KNOWN),
        ("h5", 1, "sub_c", TAKEN),
        ("h6", 1, "sub_a", KNOWN),
        ("h7", 2, "sub_c", TAKEN),
        ("h8", 2, "sub_a", KNOWN),
        ("h9", 2, "sub_b", KNOWN),
    ] {
        assert_eq!(take(&buffer, foreign(id, number, subscription, 1)).await, receipt, "{id}");
    }
    kill(buffer).await;
    let buffer = open(directory.path()).await;
    for (id, number, subscription) in [("h10", 1, "sub_a"), ("h11", 1, "sub_b"), ("h12", 2, "sub_a")] {
        assert_eq!(take(&buffer, foreign(id, number, subscription, 1)).await, KNOWN, "{id}");
    }
    let all = deliveries(&buffer, 6).await;
    let done = all.iter().find(|one| one.attempts == 1).unwrap();
    assert_eq!(buffer.subscription_id(done.subscription).as_str(), "sub_a");
    attempt(&buffer, *done, DeliveryState::Delivered, None).await;
    attempts_reported(&buffer, 1).await;
    assert_eq!(take(&buffer, foreign("h13", 1, "sub_a", 2)).await, TAKEN);
    assert_eq!(take(&buffer, foreign("h14", 1, "sub_b", 2)).await, KNOWN);
    assert_eq!(deliveries(&buffer, 1).await[0].attempts, 2);
}

/// A delivery that comes back to the agent that gave it away is taken, also before the report is acked; both are freed
/// when both are done.
#[tokio::test]
async fn own_delivery_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let delivery = deliveries(&buffer, 1).await[0];
    give(&buffer, delivery, DeliveryState::Held).await;
    let (reports, last) = until_handed_over(&buffer, 1).await;
    let hand_over = hand_overs(&reports).remove(0);
    assert_eq!(take(&buffer, hand_over.clone()).await, TAKEN);
    assert_eq!(take(&buffer, hand_over).await, KNOWN);
    let back = deliveries(&buffer, 1).await[0];
    assert!(back.held && back.event != delivery.event);
    buffer.acked(Lane::Logs, last);
    eventually("the first is freed", || buffer.stats().events == 1).await;
    // And once more away and back.
    give(&buffer, back, DeliveryState::Held).await;
    let (reports, last) = until_handed_over(&buffer, 1).await;
    assert_eq!(kinds(&reports), ["hand-over"], "its event was reported");
    let hand_over = hand_overs(&reports).remove(0);
    assert_eq!(hand_over.inbound_log.as_ref().unwrap().payload_json, event(1, &[]).log.payload_json);
    assert_eq!(take(&buffer, hand_over).await, TAKEN);
    buffer.acked(Lane::Logs, last);
    let again = deliveries(&buffer, 1).await[0];
    attempt(&buffer, again, DeliveryState::Delivered, None).await;
    let last = attempts_reported(&buffer, 1).await;
    buffer.acked(Lane::Logs, last);
    eventually("all is freed", || buffer.is_drained()).await;
}

/// Marks outlive the journal they belong to. Their numbers then mean other events, which are not taken for the one
/// that is handed over.
#[tokio::test]
async fn numbers_of_another_journal_mean_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let older = event(2, &["sub_a"]);
    let mark = crate::pipeline::buffer::record::Mark::new(0, 1);
    buffer.shared.marks.add(&[(older.id, mark)]);
    assert_eq!(take(&buffer, foreign("h1", 2, "sub_a", 1)).await, TAKEN);
    let taken = deliveries(&buffer, 2).await[1];
    let owed = buffer.load(taken.event, taken.subscription).await.unwrap().unwrap();
    assert_eq!(owed.log.event_id, older.id.to_string());
}

/// A full buffer, and a destination that is owed its whole share, take nothing over, and what is taken counts for
/// both.
#[tokio::test]
async fn nothing_is_taken_without_room() {
    let directory = tempfile::tempdir().unwrap();
    let small = Config { bytes_max: 20_000, destination_share: 30, ..config(directory.path()) };
    let buffer = Buffer::open(small, Metrics::new()).await.unwrap();
    let mut refusals = Vec::new();
    for subscription in ["sub_a", "sub_b", "sub_c", "sub_d", "sub_e"] {
        let mut count = 0;
        refusals.push(loop {
            match take(&buffer, foreign(&format!("{subscription}_{count}"), count, subscription, 1)).await {
                Ok(_) => count += 1,
                Err(refusal) => break refusal,
            }
        });
    }
    assert_eq!(refusals[..3], [AppendError::DestinationFull; 3]);
    assert!(matches!(refusals[4], AppendError::Full { .. }), "{refusals:?}");
    let refused = buffer.append(entry([event(1_000, &["sub_a"])])).await;
    assert!(refused.is_err(), "callbacks for it are refused as well");
}

/// What says too little, or of a delivery that is not owed, is no hand-over.
#[test]
fn unfit_hand_overs_are_refused() {
    let refusal = |change: fn(&mut v1::DeliveryHandOver)| {
        let mut hand_over = foreign("h1", 1, "sub_a", 1);
        change(&mut hand_over);
        TakenOver::try_from(hand_over).err()
    };
    assert_eq!(refusal(|_| {}), None);
    assert_eq!(refusal(|whole| whole.inbound_log = None), Some(InvalidHandOver::Event));
    let nameless = refusal(|whole| whole.inbound_log.as_mut().unwrap().event_id.clear());
    assert_eq!(nameless, Some(InvalidHandOver::Event));
    assert_eq!(refusal(|whole| whole.delivery = None), Some(InvalidHandOver::Delivery));
    let nobody = refusal(|whole| whole.delivery.as_mut().unwrap().subscription_id.clear());
    assert_eq!(nobody, Some(InvalidHandOver::Delivery));
    let settled = refusal(|whole| {
        whole.delivery.as_mut().unwrap().set_state(v1::DeliveryState::Delivered);
    });
    assert_eq!(settled, Some(InvalidHandOver::Settled));
}

/// A journal is as every program reads it until something is handed over. A program that does not know hand-overs then
/// refuses it as a whole, until nothing of them is left.
#[tokio::test]
async fn older_programs_misread_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"]), event(2, &["sub_a"])])).await.unwrap();
    take(&buffer, foreign("h1", 3, "sub_a", 1)).await.unwrap();
    let open_deliveries = deliveries(&buffer, 3).await;
    assert_eq!(version(directory.path(), 1), format::FIRST_VERSION);
    give(&buffer, open_deliveries[0], DeliveryState::Pending).await;
    let (_, last) = until_handed_over(&buffer, 1).await;
    assert_eq!(version(directory.path(), 2), format::HAND_OVERS);
    buffer.close().await;
    // The next segment may get what moves out of that one.
    let buffer = open(directory.path()).await;
    take(&buffer, foreign("h2", 4, "sub_a", 1)).await.unwrap();
    assert_eq!(version(directory.path(), 3), format::HAND_OVERS);
    buffer.acked(Lane::Logs, last);
    let versions = || {
        let segments = read::list(&config(directory.path()).directory.join("journal")).unwrap();
        segments.into_iter().map(|segment| segment.header.unwrap().version).collect::<Vec<_>>()
    };
    fill_until(&buffer, || versions().iter().all(|version| *version == format::FIRST_VERSION)).await;
    kill(buffer).await;
    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 3).await.len(), 3, "all that was owed is still owed");
}

/// What old segments hold of hand-overs moves on: the report, that the delivery is not ours, and how a taken delivery
/// stands.
#[tokio::test]
async fn hand_overs_move_with_their_events() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a", "sub_b"])])).await.unwrap();
    let own = deliveries(&buffer, 2).await;
    give(&buffer, own[0], DeliveryState::Pending).await;
    take(&buffer, foreign("h1", 2, "sub_a", 3)).await.unwrap();
    deliveries(&buffer, 1).await;
    let (reports, event_acked) = until_handed_over(&buffer, 1).await;
    buffer.acked(Lane::Logs, event_acked - 1);
    let oldest = || read::list(&config(directory.path()).directory.join("journal")).unwrap().remove(0).number;
    fill_until(&buffer, || oldest() > 3).await;
    assert_eq!(version(directory.path(), oldest()), format::HAND_OVERS);
    kill(buffer).await;
    let buffer = open(directory.path()).await;
    let left: Vec<OpenDelivery> = deliveries(&buffer, 2).await;
    let names: Vec<String> =
        left.iter().map(|delivery| buffer.subscription_id(delivery.subscription).to_string()).collect();
    assert_eq!(names, ["sub_b", "sub_a"]);
    assert_eq!((left[1].attempts, left[1].due_ms), (3, DUE_MS | 1));
    let (again, _) = until_handed_over(&buffer, 1).await;
    assert_eq!(hand_overs(&again), hand_overs(&reports));
}

/// Deliveries that came in, from callbacks and from other agents, are those that were made, given away or are still
/// owed, and the metrics count the same.
#[tokio::test]
async fn deliveries_add_up() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let buffer = Buffer::open(config(directory.path()), metrics.clone()).await.unwrap();
    buffer.append(entry((0..20).map(|number| event(number, &["sub_a", "sub_b"])))).await.unwrap();
    for number in 30..40 {
        take(&buffer, foreign(&format!("h{number}"), number, "sub_a", 1)).await.unwrap();
        take(&buffer, foreign(&format!("h{number}"), number, "sub_a", 1)).await.unwrap();
    }
    let open_deliveries = deliveries(&buffer, 50).await;
    for (place, delivery) in open_deliveries.into_iter().enumerate() {
        match place % 3 {
            0 => give(&buffer, delivery, DeliveryState::Pending).await,
            1 => attempt(&buffer, delivery, DeliveryState::Delivered, None).await,
            _ => {}
        }
    }
    let (_, _) = until_handed_over(&buffer, 17).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics.registry().lock().unwrap()).unwrap();
    let count = |direction: &str| {
        let name = format!("gateway_hand_overs_total{{direction=\"{direction}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name)).expect("it is counted");
        line.parse::<u64>().unwrap()
    };
    assert_eq!((count("given"), count("taken")), (17, 10));
    buffer.close().await;
    let buffer = open(directory.path()).await;
    let (made, owed) = (17, buffer.take_new_deliveries().len() as u64);
    assert_eq!(20 * 2 + count("taken"), made + count("given") + owed);
}
