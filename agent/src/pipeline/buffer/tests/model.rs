//! The buffer against a model in memory, with random actions, kills and restarts.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Action {
    /// Appends events of these numbers in one entry, for one or two subscriptions.
    Append(Vec<u32>, bool),
    /// Makes an attempt of the n-th open delivery.
    Attempt { pick: usize, is_delivered: bool },
    /// Gives the n-th open delivery away.
    Give(usize),
    /// A control plane comes that takes no hand-overs, and then one that does.
    TakeBack,
    /// Takes a delivery of the event of this number over; the same number of a hand-over may come again.
    TakeOver { number: u32, hand_over: u32 },
    /// Takes reports and acks this share of them.
    Report { share: f64 },
    /// Stops and starts in good order.
    Restart,
    /// Kills and starts.
    Kill,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (prop::collection::vec(0..40_u32, 1..5), any::<bool>())
            .prop_map(|(numbers, both)| Action::Append(numbers, both)),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(pick, is_delivered)| Action::Attempt { pick, is_delivered }),
        2 => any::<usize>().prop_map(Action::Give),
        1 => Just(Action::TakeBack),
        3 => (0..50_u32, 0..4_u32).prop_map(|(number, hand_over)| Action::TakeOver { number, hand_over }),
        2 => (0.0..1.0).prop_map(|share| Action::Report { share }),
        1 => Just(Action::Restart),
        1 => Just(Action::Kill),
    ]
}

/// What must be true, kept in memory.
#[derive(Default)]
struct Model {
    /// Events seen and how often they were repeated.
    accepted: BTreeMap<u32, u32>,
    /// Those of them that another agent reports.
    foreign: BTreeSet<u32>,
    /// Hand-overs that were taken or found to be nothing new.
    hand_overs: BTreeSet<String>,
    /// What deliveries that were taken over, by event and subscription, are stored as, the newest last.
    taken: BTreeMap<(u32, &'static str), Vec<u64>>,
    /// Deliveries stored.
    stored: usize,
    /// Open deliveries by event and subscription.
    open: BTreeMap<(u64, String), OpenDelivery>,
    /// Deliveries settled since the last moment at which all outcomes were surely on disk.
    settled_lately: BTreeMap<(u64, String), OpenDelivery>,
    /// Every report seen, by sequence: a sequence means the same for ever.
    reports: HashMap<u64, v1::Report>,
    /// Those of hand-overs that were taken back; they are never reported again.
    taken_back: BTreeSet<u64>,
    acked: u64,
}

struct World {
    directory: tempfile::TempDir,
    buffer: Buffer,
    model: Model,
}

impl World {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let buffer = open(directory.path()).await;
        Self { directory, buffer, model: Model::default() }
    }

    fn key(&self, delivery: OpenDelivery) -> (u64, String) {
        (delivery.event, self.buffer.subscription_id(delivery.subscription).as_str().to_owned())
    }

    async fn act(&mut self, action: Action) {
        match action {
            Action::Append(numbers, both) => self.append(numbers, both).await,
            Action::Attempt { pick, is_delivered } => self.attempt(pick, is_delivered).await,
            Action::Give(pick) => self.give(pick).await,
            Action::TakeBack => self.take_back().await,
            Action::TakeOver { number, hand_over } => self.take_over(number, hand_over).await,
            Action::Report { share } => self.report(share).await,
            Action::Restart => {
                self.buffer.close().await;
                self.reopen(false).await;
            }
            Action::Kill => {
                kill(self.buffer.clone()).await;
                self.reopen(true).await;
            }
        }
    }

    async fn append(&mut self, numbers: Vec<u32>, both: bool) {
        let subscriptions: &[&str] = if both { &["sub_a", "sub_b"] } else { &["sub_a"] };
        let mut expected = Receipt { stored: 0, duplicates: 0 };
        for number in &numbers {
            match self.model.accepted.get_mut(number) {
                Some(count) => {
                    *count += 1;
                    expected.duplicates += 1;
                }
                None => {
                    self.model.accepted.insert(*number, 0);
                    expected.stored += 1;
                }
            }
        }
        let entry = entry(numbers.iter().map(|number| event(*number, subscriptions)));
        assert_eq!(self.buffer.append(entry).await.unwrap(), expected);
        self.model.stored += expected.stored * subscriptions.len();
        for delivery in deliveries(&self.buffer, expected.stored * subscriptions.len()).await {
            self.model.open.insert(self.key(delivery), delivery);
        }
    }

    async fn attempt(&mut self, pick: usize, is_delivered: bool) {
        let Some(key) = self.model.open.keys().nth(pick % self.model.open.len().max(1)).cloned() else {
            return;
        };
        let delivery = self.model.open[&key];
        if is_delivered {
            attempt(&self.buffer, delivery, DeliveryState::Delivered, None).await;
            self.model.open.remove(&key);
            self.model.settled_lately.insert(key, delivery);
        } else {
            attempt(&self.buffer, delivery, DeliveryState::Pending, Some(1_000)).await;
        }
    }

    async fn give(&mut self, pick: usize) {
        let Some(key) = self.model.open.keys().nth(pick % self.model.open.len().max(1)).cloned() else {
            return;
        };
        let delivery = self.model.open.remove(&key).unwrap();
        let state = if delivery.held { DeliveryState::Held } else { DeliveryState::Pending };
        hand_over::give(&self.buffer, delivery, state).await;
        self.model.settled_lately.insert(key, delivery);
    }

    async fn take_back(&mut self) {
        self.buffer.control_plane_takes_hand_overs(false);
        // Behind the second one, all that the first one brought is handed out.
        for _ in 0..2 {
            self.buffer.append(Entry::default()).await.unwrap();
        }
        for delivery in self.buffer.take_new_deliveries() {
            let key = self.key(delivery);
            assert!(self.model.open.insert(key, delivery).is_none(), "it is handed out once");
        }
        let is_hand_over =
            |report: &v1::Report| matches!(report.report, Some(v1::report::Report::DeliveryHandOver(_)));
        // A kill may have forgotten acks: then both make it.
        let acked = self.buffer.acked_sequence(Lane::Logs);
        let waiting = self.model.reports.values().filter(|report| report.sequence > acked);
        let taken_back = waiting.filter(|report| is_hand_over(report)).map(|report| report.sequence);
        self.model.taken_back.extend(taken_back);
        self.buffer.control_plane_takes_hand_overs(true);
    }

    async fn take_over(&mut self, number: u32, hand_over: u32) {
        let id = format!("{number} {hand_over}");
        let subscription = ["sub_t", "sub_u"][usize::from(hand_over % 2 == 1)];
        let foreign = hand_over::foreign(&id, number, subscription, hand_over);
        let copies = self.model.taken.entry((number, subscription)).or_default();
        let is_open = |copy: &u64| self.model.open.contains_key(&(*copy, subscription.to_owned()));
        let (is_here, was_here) = (copies.last().is_some_and(is_open), copies.iter().any(is_open));
        let is_new = self.model.hand_overs.insert(id);
        let receipt = hand_over::take(&self.buffer, foreign.clone()).await.unwrap();
        let is_taken = receipt == Receipt { stored: 1, duplicates: 0 };
        assert!(is_taken || receipt == Receipt { stored: 0, duplicates: 1 });
        assert!(!is_taken || (is_new && !is_here), "it is here");
        // An older copy that was taken back may be known too.
        assert!(is_taken || !is_new || was_here, "it was refused");
        if !is_taken {
            return;
        }
        let delivery = deliveries(&self.buffer, 1).await[0];
        let owed = self.buffer.load(delivery.event, delivery.subscription).await.unwrap().unwrap();
        assert_eq!((Some(&*owed.log), owed.attempts), (foreign.inbound_log.as_ref(), hand_over));
        self.model.accepted.entry(number).or_insert_with(|| {
            self.model.foreign.insert(number);
            0
        });
        self.model.stored += 1;
        copies.push(delivery.event);
        self.model.open.insert(self.key(delivery), delivery);
    }

    async fn report(&mut self, share: f64) {
        let batch = self.buffer.next_reports(Lane::Logs, self.model.acked, LIMITS).await.unwrap();
        let mut last = self.model.acked;
        for report in &batch.reports() {
            assert!(report.sequence > last, "sequences grow");
            assert!(!self.model.taken_back.contains(&report.sequence), "it was taken back");
            last = report.sequence;
            let before = self.model.reports.insert(report.sequence, report.clone());
            assert!(before.is_none_or(|before| before == *report), "a sequence means the same for ever");
        }
        let count = (batch.reports().len() as f64 * share) as usize;
        if let Some(report) = batch.reports().get(count) {
            self.model.acked = report.sequence;
            self.buffer.acked(Lane::Logs, report.sequence);
        }
    }

    /// After a start the open deliveries are those of the model; after a kill some outcomes of the last
    /// moments may be forgotten, which costs a repeated webhook and nothing else.
    async fn reopen(&mut self, was_killed: bool) {
        self.buffer = open(self.directory.path()).await;
        let found: BTreeMap<(u64, String), OpenDelivery> = self
            .buffer
            .take_new_deliveries()
            .into_iter()
            .map(|delivery| (self.key(delivery), delivery))
            .collect();
        let lately = std::mem::take(&mut self.model.settled_lately);
        for key in self.model.open.keys() {
            assert!(found.contains_key(key), "delivery {key:?} was lost");
        }
        for key in found.keys().filter(|key| !self.model.open.contains_key(*key)) {
            assert!(was_killed && lately.contains_key(key), "delivery {key:?} came back");
        }
        self.model.open = found;
    }

    /// In the end everything is delivered and reported exactly once, and nothing is left.
    async fn finish(mut self) {
        while let Some((_, delivery)) = self.model.open.pop_first() {
            attempt(&self.buffer, delivery, DeliveryState::Delivered, None).await;
        }
        self.buffer.close().await;
        self.reopen(false).await;
        assert!(self.model.open.is_empty());
        let mut after = self.model.acked;
        loop {
            let batch = self.buffer.next_reports(Lane::Logs, after, LIMITS).await.unwrap();
            if batch.last == after {
                break;
            }
            after = batch.last;
            for report in batch.reports() {
                self.model.reports.insert(report.sequence, report);
            }
        }
        self.buffer.acked(Lane::Logs, after);
        eventually("all is freed", || self.buffer.is_drained()).await;
        assert_eq!(self.buffer.stats().bytes, 0);
        self.check_reports();
    }

    fn check_reports(&self) {
        let mut reported: BTreeMap<String, u32> = BTreeMap::new();
        let mut duplicates: BTreeMap<String, u32> = BTreeMap::new();
        let mut ended = 0;
        let delivered = |deliveries: &[v1::Delivery]| {
            let is_it = |delivery: &&v1::Delivery| delivery.state() == v1::DeliveryState::Delivered;
            deliveries.iter().filter(is_it).count()
        };
        for (_, report) in self.model.reports.iter().filter(|(at, _)| !self.model.taken_back.contains(at)) {
            match report.report.clone() {
                Some(v1::report::Report::Event(event)) => {
                    let log = event.inbound_log.unwrap();
                    ended += delivered(&log.deliveries);
                    *reported.entry(log.event_id).or_default() += 1;
                }
                Some(v1::report::Report::Duplicate(duplicate)) => {
                    let count = duplicates.entry(duplicate.event_id).or_default();
                    *count = duplicate.duplicate_count.max(*count);
                }
                Some(v1::report::Report::Attempts(report)) => ended += delivered(&report.deliveries),
                Some(v1::report::Report::DeliveryHandOver(hand_over)) => {
                    assert!(hand_over.inbound_log.is_some_and(|log| !log.payload_json.is_empty()));
                    ended += 1;
                }
                _ => {}
            }
        }
        assert_eq!(ended, self.model.stored, "each delivery was made or given away, once");
        let own = self.model.accepted.keys().filter(|number| !self.model.foreign.contains(number));
        let expected: BTreeMap<String, u32> = own.map(|number| (event_id(*number).to_string(), 1)).collect();
        assert_eq!(reported, expected, "each event is reported once");
        let repeated = self.model.accepted.iter().filter(|(_, count)| **count > 0);
        // The first callback with an event that another agent reports is no repeat here.
        let count =
            |number: &u32, seen_again: u32| seen_again - u32::from(self.model.foreign.contains(number));
        let expected: BTreeMap<String, u32> = repeated
            .map(|(number, seen_again)| (event_id(*number).to_string(), count(number, *seen_again)))
            .collect();
        assert_eq!(duplicates, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order, what was accepted is delivered and reported, and nothing else.
    #[test]
    fn agrees_with_the_model(actions in prop::collection::vec(action(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for action in actions {
                world.act(action).await;
            }
            world.finish().await;
        });
    }
}
