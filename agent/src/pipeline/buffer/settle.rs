//! The part of a round that ends things: outcomes, reports of events, acks.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use gateway_core::{delivery::DeliveryState, time::to_proto};
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;

use super::{
    Outcome,
    index::{Delivery, Reported},
    journal::format::Kind,
    record::{self, Lane, LogIn, StateChange},
    round::Round,
};

/// Attempts that go with the report of their event, in bytes. An attempt may carry 16 KiB of an answer, and an event may
/// have many: with its body the report must stay within one message, or it could never be sent, nor anything behind it.
const ATTEMPTS_WITH_EVENT_BYTES_MAX: usize = 256 * 1_024;
/// Attempts of one report without the event.
const ATTEMPTS_PER_REPORT: usize = 64;

impl Round<'_> {
    /// Takes what became of a delivery. What comes for a settled one is ignored, apart from the notice that
    /// its destination is gone.
    pub(super) fn outcome(&mut self, outcome: &Arc<Outcome>) {
        if let Some(gone) = &outcome.gone {
            self.report(Lane::Urgent, v1::report::Report::DestinationGone(gone.clone()));
        }
        let Some(slot) = self.slot(outcome.event) else { return };
        match slot.deliveries.find(outcome.subscription) {
            Some((place, delivery)) if !delivery.state.is_settled() => {
                if outcome.state.is_handing_over() {
                    self.hand_over(outcome, place, delivery.state);
                } else {
                    self.change(outcome, place);
                }
            }
            _ => {}
        }
    }

    /// Changes the delivery at this place of its event.
    pub(super) fn change(&mut self, outcome: &Arc<Outcome>, place: usize) {
        let Some(mut slot) = self.slot(outcome.event) else { return };
        let mut delivery = slot.deliveries.as_slice()[place];
        delivery.state = outcome.state;
        if let Some(attempt) = &outcome.attempt {
            delivery.attempts = u16::try_from(attempt.attempt_number).unwrap_or(u16::MAX);
        }
        delivery.due_ms = outcome.due_ms.unwrap_or(delivery.due_ms);
        slot.deliveries.as_mut_slice()[place] = delivery;
        slot.state_segment = self.plan.segment;
        let reported = slot.reported;
        self.plan.touched.insert(outcome.event, slot);
        if reported == Reported::No {
            self.young_outcomes(outcome.event).push(Arc::clone(outcome));
            return;
        }
        let report = v1::AttemptsReport {
            event_id: match &outcome.attempt {
                Some(attempt) => attempt.event_id.clone(),
                None => self.event_id(outcome.event).unwrap_or_default(),
            },
            deliveries: vec![self.delivery_to_proto(&delivery, Some(outcome))],
            attempts: outcome.attempt.iter().cloned().collect(),
        };
        let changes = vec![StateChange::of(place, &delivery)];
        let report = v1::report::Report::Attempts(report);
        self.report_about(Lane::Logs, outcome.event, LogIn::Nothing, changes, report);
    }

    fn young_outcomes(&mut self, event: u64) -> &mut Vec<Arc<Outcome>> {
        let young = &mut *self.young;
        let (outcomes, _) = self.plan.young.entry(event).or_insert_with(|| {
            let outcomes = young.remove(&event).unwrap_or_default();
            let before = outcomes.len();
            (outcomes, before)
        });
        outcomes
    }

    /// The id of an open event, if it can be read.
    pub(super) fn event_id(&self, event: u64) -> Option<String> {
        if let Some((_, log)) = self.plan.new_events.iter().find(|(new, _)| *new == event) {
            return Some(log.event_id.clone());
        }
        if let Some(log) = self.shared.cached_log(event) {
            return Some(log.event_id.clone());
        }
        let payload = self.shared.journal.read(self.slot(event)?.place, Kind::Event).ok()?;
        let (header, _) = record::read_event(&payload)?;
        Some(header.id.to_string())
    }

    pub(super) fn delivery_to_proto(&self, delivery: &Delivery, last: Option<&Outcome>) -> v1::Delivery {
        let attempt = last.and_then(|outcome| outcome.attempt.as_ref());
        let is_due = delivery.state == DeliveryState::Pending;
        let next_attempt_time = Timestamp::from_millisecond(delivery.due_ms).ok().filter(|_| is_due);
        let subscriptions = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        v1::Delivery {
            subscription_id: subscriptions.id(delivery.subscription).as_str().to_owned(),
            state: delivery.state.to_proto().into(),
            attempt_count: u32::from(delivery.attempts),
            last_status_code: attempt.map_or(0, |attempt| attempt.status_code),
            last_error: attempt.map(|attempt| attempt.error.clone()).unwrap_or_default(),
            next_attempt_time: next_attempt_time.map(to_proto),
        }
    }

    /// Plans the report of an event, with its deliveries as they stand and the attempts made so far; of many attempts
    /// the later ones come in reports behind it.
    pub(super) fn report_event(&mut self, event: u64) {
        let Some(mut slot) = self.slot(event).filter(|slot| slot.reported == Reported::No) else { return };
        let outcomes = self.young_outcomes(event).clone();
        let last: HashMap<u32, &Outcome> =
            outcomes.iter().map(|outcome| (outcome.subscription, &**outcome)).collect();
        let deliveries = slot.deliveries.as_slice();
        let to_proto =
            |delivery: &Delivery| self.delivery_to_proto(delivery, last.get(&delivery.subscription).copied());
        let mut attempts: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.attempt.clone()).collect();
        let mut bytes = 0;
        let with_event = attempts.iter().take_while(|attempt| {
            bytes += attempt.encoded_len();
            bytes <= ATTEMPTS_WITH_EVENT_BYTES_MAX
        });
        let later = attempts.split_off(with_event.count());
        let report = v1::EventReport {
            inbound_log: Some(v1::InboundLog {
                deliveries: deliveries.iter().map(to_proto).collect(),
                ..v1::InboundLog::default()
            }),
            attempts,
        };
        let touched = deliveries.iter().enumerate().filter(|(_, delivery)| delivery.is_touched());
        let changes = touched.map(|(place, delivery)| StateChange::of(place, delivery)).collect();
        let report = v1::report::Report::Event(report);
        self.report_about(Lane::Logs, event, LogIn::Event, changes, report);
        for attempts in later.chunks(ATTEMPTS_PER_REPORT) {
            let report = v1::AttemptsReport {
                event_id: attempts[0].event_id.clone(),
                deliveries: Vec::new(),
                attempts: attempts.to_vec(),
            };
            let report = v1::report::Report::Attempts(report);
            self.report_about(Lane::Logs, event, LogIn::Nothing, Vec::new(), report);
        }
        slot.reported = Reported::Queued;
        self.plan.touched.insert(event, slot);
    }

    /// Frees reports that are acked, and events that nothing keeps any more.
    pub(super) fn acked(&mut self, lane: Lane, sequence: u64) {
        let events: Vec<(u64, LogIn)> = {
            let state = self.shared.lane(lane);
            if sequence <= state.acked {
                return;
            }
            let with_log = state.up_to(sequence).filter(|report| report.log != LogIn::Nothing);
            with_log.map(|report| (report.event, report.log)).collect()
        };
        self.plan.put(Kind::Acked, 0, |out| record::put_acked(out, lane, sequence));
        self.plan.acked[lane as usize] = Some(sequence);
        for (event, log) in events {
            if let Some(mut slot) = self.slot(event) {
                slot.acked(log);
                self.plan.touched.insert(event, slot);
            }
        }
    }

    /// Writes for every event touched what is not in a report yet: the report itself, once each of its
    /// deliveries had an outcome, or else the outcomes that wait for it.
    pub(super) fn finish(&mut self) {
        let young: Vec<u64> = self.plan.young.keys().copied().collect();
        for event in young {
            let Some(slot) = self.slot(event).filter(|slot| slot.reported == Reported::No) else { continue };
            if slot.deliveries.as_slice().iter().all(Delivery::is_touched) {
                self.report_event(event);
                continue;
            }
            let (outcomes, before) = &self.plan.young[&event];
            let new: Vec<Arc<Outcome>> = outcomes[*before..].to_vec();
            for outcome in new {
                let Some((place, delivery)) = slot.deliveries.find(outcome.subscription) else { continue };
                let change = StateChange::of(place, delivery);
                let attempt = outcome.attempt.as_ref();
                self.plan.put(Kind::Outcome, 0, |out| record::put_outcome(out, event, change, attempt));
            }
        }
        let unowned: Vec<u64> = self.plan.new_events.iter().map(|(event, _)| *event).collect();
        for event in unowned {
            // Nobody subscribed to it: there is no outcome to wait for.
            if self.slot(event).is_some_and(|slot| slot.deliveries.as_slice().is_empty()) {
                self.report_event(event);
            }
        }
    }
}
