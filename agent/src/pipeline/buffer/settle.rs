//! The part of a round that ends things: outcomes, reports of events, acks.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
};

use gateway_core::{delivery::DeliveryState, time::to_proto};
use gateway_proto::v1;
use jiff::Timestamp;

use super::{
    Outcome,
    index::{Delivery, Reported},
    lane,
    record::{self, Lane},
    round::Round,
    store::{Op, StoreError},
};

impl Round<'_> {
    /// Takes what became of a delivery. What comes for a settled one is ignored, apart from the notice that
    /// its destination is gone.
    pub(super) fn outcome(&mut self, outcome: &Arc<Outcome>) -> Result<(), StoreError> {
        if let Some(gone) = &outcome.gone {
            self.report(Lane::Urgent, 0, v1::report::Report::DestinationGone(gone.clone()));
        }
        let Some(mut slot) = self.slot(outcome.event) else { return Ok(()) };
        let Some(delivery) = slot.deliveries.find_mut(outcome.subscription) else { return Ok(()) };
        if delivery.state.is_settled() {
            return Ok(());
        }
        delivery.state = outcome.state;
        if let Some(attempt) = &outcome.attempt {
            delivery.attempts = u16::try_from(attempt.attempt_number).unwrap_or(u16::MAX);
        }
        delivery.due_ms = outcome.due_ms.unwrap_or(delivery.due_ms);
        let delivery = *delivery;
        let reported = slot.reported;
        self.plan.touched.insert(outcome.event, slot);
        if reported == Reported::No {
            self.young_outcomes(outcome.event).push(Arc::clone(outcome));
            return Ok(());
        }
        let report = v1::AttemptsReport {
            event_id: self.event_id(outcome)?,
            deliveries: vec![self.delivery_to_proto(&delivery, Some(outcome))],
            attempts: outcome.attempt.iter().cloned().collect(),
        };
        self.report(Lane::Logs, 0, v1::report::Report::Attempts(report));
        Ok(())
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

    fn event_id(&self, outcome: &Outcome) -> Result<String, StoreError> {
        if let Some(attempt) = &outcome.attempt {
            return Ok(attempt.event_id.clone());
        }
        if let Some(log) = self.shared.cached_log(outcome.event) {
            return Ok(log.event_id.clone());
        }
        let log = record::read_log(self.store, outcome.event)?;
        Ok(log.map(|log| log.event_id).unwrap_or_default())
    }

    fn delivery_to_proto(&self, delivery: &Delivery, last: Option<&Outcome>) -> v1::Delivery {
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

    /// Writes the report of an event, with its deliveries as they stand and the attempts made so far.
    pub(super) fn report_event(&mut self, event: u64) -> Result<(), StoreError> {
        let Some(mut slot) = self.slot(event).filter(|slot| slot.reported == Reported::No) else {
            return Ok(());
        };
        let outcomes = self.young_outcomes(event).clone();
        let last: HashMap<u32, &Outcome> =
            outcomes.iter().map(|outcome| (outcome.subscription, &**outcome)).collect();
        let deliveries = slot
            .deliveries
            .as_slice()
            .iter()
            .map(|delivery| self.delivery_to_proto(delivery, last.get(&delivery.subscription).copied()))
            .collect();
        let report = v1::EventReport {
            inbound_log: Some(v1::InboundLog { deliveries, ..v1::InboundLog::default() }),
            attempts: outcomes.iter().filter_map(|outcome| outcome.attempt.clone()).collect(),
        };
        self.report(Lane::Logs, event, v1::report::Report::Event(report));
        slot.reported = Reported::Queued;
        self.plan.touched.insert(event, slot);
        Ok(())
    }

    /// Frees reports that are acked, and events that nothing keeps any more.
    pub(super) fn acked(&mut self, lane: Lane, sequence: u64) -> Result<(), StoreError> {
        if sequence <= self.shared.lane(lane).acked {
            return Ok(());
        }
        let (records, oldest_ms) = lane::acked_reports(self.shared, self.store, lane, sequence)?;
        let Some(last) = records.last().map(|record| record.sequence) else { return Ok(()) };
        for record in records {
            let key = |chunk| record::report_key(lane, record.sequence, chunk);
            record::delete_blob(&mut self.plan.ops, key, record.bytes);
            self.plan.bytes_removed += record.bytes as u64;
            if let Some(mut slot) = (record.event != 0).then(|| self.slot(record.event)).flatten() {
                slot.reported = Reported::Acked;
                self.plan.touched.insert(record.event, slot);
            }
        }
        self.plan.acked[lane as usize] = Some((last, oldest_ms));
        Ok(())
    }

    /// Decides for every event touched what becomes of it on disk: its report is written once each of its
    /// deliveries had an outcome, its state is kept while it is unsettled, and at the end it is deleted.
    pub(super) fn finish(&mut self) -> Result<(), StoreError> {
        let touched: Vec<u64> = self.plan.touched.keys().copied().collect();
        for event in touched {
            let is_complete = self
                .slot(event)
                .is_some_and(|slot| slot.deliveries.as_slice().iter().all(Delivery::is_touched));
            if is_complete {
                self.report_event(event)?;
            }
            let Some(mut slot) = self.slot(event) else { continue };
            if slot.reported == Reported::No {
                continue;
            }
            if !slot.deliveries.are_settled() {
                let state = record::encode_state(&slot.deliveries);
                self.plan.ops.push(Op::Put(record::state_key(event), state));
                slot.has_state = true;
                self.plan.touched.insert(event, slot);
                continue;
            }
            if slot.has_state {
                self.plan.ops.push(Op::Delete(record::state_key(event)));
                slot.has_state = false;
            }
            if slot.reported == Reported::Acked {
                let key = |chunk| record::event_key(event, chunk);
                record::delete_blob(&mut self.plan.ops, key, slot.bytes as usize);
                self.plan.bytes_removed += u64::from(slot.bytes);
                self.plan.freed.push(event);
            }
            self.plan.touched.insert(event, slot);
        }
        Ok(())
    }
}
