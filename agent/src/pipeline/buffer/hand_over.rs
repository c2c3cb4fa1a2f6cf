//! Deliveries that go from one agent to another.
//!
//! Giving one away settles it here and queues a report that carries the whole event: the log is read from the event,
//! which stays until that report is acked. Both are one record of the journal, so that a delivery is either still
//! ours or on its way. Whatever was not reported about the event goes first.
//!
//! Taking one over stores the event anew, with this one delivery as it stood. The other agent reported the event, so
//! only attempts are reported from here on. A mark of the hand-over itself makes its repeats harmless; the event's own
//! mark says nothing about it, since this agent may have seen a repeat, or have given the delivery away itself.
//!
//! So an event can be stored several times, each time with other deliveries. Its mark knows the newest of these copies;
//! when that moves on, each delivery that the copy before has gets a mark of its own, by which it is found: another
//! agent that owed the same delivery may give it away too.

use std::sync::{Arc, PoisonError};

use gateway_core::{
    delivery::DeliveryState,
    event::EventType,
    id::{EventId, WebhookSubscriptionId},
    time::from_proto,
};
use gateway_proto::v1;
use uuid::Uuid;

use super::{
    Buffer, OpenDelivery, Outcome, contact,
    index::{Delivery, Reported, Slot},
    journal::format::Kind,
    record::{self, EventHeader, Lane, LogIn, Mark, StateChange},
    round::Round,
    shared::HandOvers,
};

/// Reports that are not acked. While there are as many nothing more is handed over, so that a control plane that is
/// away costs no memory, and what is due meanwhile is attempted here.
const REPORTS_WAITING_MAX: usize = 4_096;

/// A delivery that another agent gave away.
#[derive(Clone)]
pub struct TakenOver {
    /// Names the hand-over.
    pub(super) mark: EventId,
    pub(super) event_id: EventId,
    /// As the other agent reported it, with the webhook's body; without deliveries.
    pub(super) log: v1::InboundLog,
    pub(super) subscription: WebhookSubscriptionId,
    attempts: u16,
    due_ms: i64,
    is_held: bool,
}

/// A hand-over cannot be taken: it says too little.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHandOver {
    /// There is no event, or its id is none.
    #[error("read a hand-over: it has no event")]
    Event,
    /// There is no delivery, or its subscription's id is none.
    #[error("read a hand-over: it has no delivery")]
    Delivery,
    /// Nothing is owed any more.
    #[error("read a hand-over: its delivery is settled")]
    Settled,
}

impl TryFrom<v1::DeliveryHandOver> for TakenOver {
    type Error = InvalidHandOver;

    fn try_from(hand_over: v1::DeliveryHandOver) -> Result<Self, Self::Error> {
        let mut log = hand_over.inbound_log.ok_or(InvalidHandOver::Event)?;
        log.deliveries.clear();
        let event_id = log.event_id.parse().map_err(|_| InvalidHandOver::Event)?;
        let delivery = hand_over.delivery.ok_or(InvalidHandOver::Delivery)?;
        let subscription = delivery.subscription_id.parse().map_err(|_| InvalidHandOver::Delivery)?;
        let state = DeliveryState::from_proto(delivery.state());
        if state.is_settled() {
            return Err(InvalidHandOver::Settled);
        }
        let due = delivery.next_attempt_time.as_ref().and_then(from_proto);
        let due_ms = due.unwrap_or_else(gateway_runtime::clock::now).as_millisecond();
        Ok(Self {
            // A digest, since marks are kept by their first bytes, and those of a UUIDv7 are the time.
            mark: EventId::derive(&["hand-over", &hand_over.id]),
            event_id,
            log,
            subscription,
            attempts: u16::try_from(delivery.attempt_count).unwrap_or(u16::MAX),
            due_ms: (due_ms & !1) | i64::from(hand_over.had_quick_retry),
            is_held: state == DeliveryState::Held,
        })
    }
}

impl TakenOver {
    /// Whose it is.
    pub const fn subscription(&self) -> &WebhookSubscriptionId {
        &self.subscription
    }
}

/// Names the delivery of an event to a subscription among the marks.
fn mark_of_delivery(event_id: &EventId, subscription: &WebhookSubscriptionId) -> EventId {
    EventId::derive(&["delivery", &event_id.to_string(), subscription.as_str()])
}

impl OpenDelivery {
    /// Whether it had its quick retry: the lowest bit of its due time says so. One that was not attempted has any.
    pub(crate) const fn had_quick_retry(&self) -> bool {
        had_quick_retry(self.attempts, self.due_ms)
    }
}

const fn had_quick_retry(attempts: u16, due_ms: i64) -> bool {
    attempts > 0 && due_ms & 1 == 1
}

impl Buffer {
    /// Whether more may be handed over: few reports wait.
    pub(crate) fn may_hand_over(&self) -> bool {
        self.shared.lane(Lane::Logs).len() < REPORTS_WAITING_MAX
    }

    /// The control plane says whether it takes hand-overs. While it does not, nothing is given away, and what was comes
    /// back: such a control plane would ack the report unseen.
    pub(crate) fn control_plane_takes_hand_overs(&self, takes: bool) {
        self.shared.set_hand_overs(if takes { HandOvers::Reported } else { HandOvers::Kept });
    }

    /// Reports no hand-over until it is known whether the control plane takes it.
    pub(crate) fn hold_hand_overs(&self) {
        self.shared.set_hand_overs(HandOvers::Waiting);
    }

    /// Waits until reports are acked. Cancel safe; for one caller.
    pub(crate) async fn reports_freed(&self) {
        self.shared.reports_freed.notified().await;
    }
}

impl Round<'_> {
    /// Gives the delivery at this place of its event away, which is `before` until now.
    pub(super) fn hand_over(&mut self, outcome: &Arc<Outcome>, place: usize, before: DeliveryState) {
        let owed = outcome.state.owed();
        let is_kept = self.shared.hand_overs() == HandOvers::Kept;
        if outcome.attempt.is_some() || before != owed {
            self.change(&Arc::new(Outcome { state: owed, ..Outcome::clone(outcome) }), place);
        }
        if is_kept {
            return self.come_back(outcome.event, outcome.subscription);
        }
        self.report_event(outcome.event);
        let Some(mut slot) = self.slot(outcome.event) else { return };
        let delivery = slot.deliveries.as_slice()[place];
        let report = v1::DeliveryHandOver {
            id: Uuid::now_v7().to_string(),
            inbound_log: None,
            delivery: Some(self.delivery_to_proto(&delivery, Some(outcome))),
            had_quick_retry: had_quick_retry(delivery.attempts, delivery.due_ms),
        };
        let delivery = Delivery { state: outcome.state, ..delivery };
        slot.deliveries.as_mut_slice()[place] = delivery;
        slot.state_segment = self.plan.segment;
        self.plan.touched.insert(outcome.event, slot);
        let change = StateChange::of(place, &delivery);
        let report = v1::report::Report::DeliveryHandOver(report);
        let log = LogIn::HandOver(change.delivery);
        self.report_about(Lane::Logs, outcome.event, log, vec![change], report);
        self.plan.handed_over += 1;
    }

    /// Takes back what was given away and is not acked. It may be with the control plane all the same, if the ack is on
    /// its way: then both make it.
    pub(super) fn take_back_given(&mut self) {
        self.plan.takes_back = true;
        let acked = self.plan.acked[Lane::Logs as usize].unwrap_or(0);
        let given: Vec<(u64, u64, u16)> = {
            let lane = self.shared.lane(Lane::Logs);
            let given = lane.up_to(u64::MAX).filter(|report| report.sequence > acked);
            let given = given.filter_map(|report| match report.log {
                LogIn::HandOver(place) => Some((report.sequence, report.event, place)),
                LogIn::Nothing | LogIn::Event => None,
            });
            given.collect()
        };
        for (sequence, event, place) in given {
            self.plan.reports_taken_back.push(sequence);
            let Some(mut slot) = self.slot(event) else { continue };
            let delivery = slot.deliveries.as_mut_slice().get_mut(usize::from(place));
            let Some(delivery) = delivery.filter(|delivery| delivery.state.is_handing_over()) else {
                continue;
            };
            delivery.state = delivery.state.owed();
            let subscription = delivery.subscription;
            self.plan.touched.insert(event, slot);
            self.put_state(event);
            self.come_back(event, subscription);
        }
    }

    /// Whoever makes deliveries gets it anew.
    fn come_back(&mut self, event: u64, subscription: u32) {
        // It is handed out as it stands after this round.
        if let Some(slot) = self.slot(event) {
            self.plan.touched.insert(event, slot);
        }
        self.plan.taken_back.push((event, subscription));
    }

    /// Plans a delivery that another agent gave away. False when it is here already.
    pub(super) fn take_over(&mut self, taken: TakenOver) -> bool {
        if self.seen(&taken.mark).is_some() {
            return false;
        }
        self.put_mark(taken.mark, Mark::new(self.now_ms, 0));
        let seen = self.seen(&taken.event_id);
        let subscription = {
            let mut numbers = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
            numbers.number(&taken.subscription)
        };
        let older = self.seen(&mark_of_delivery(&taken.event_id, &taken.subscription));
        let copies = [seen, older].into_iter().flatten();
        if copies.into_iter().any(|mark| self.is_open(mark.event, subscription, &taken.event_id)) {
            return false;
        }
        if let Some(mark) = seen {
            // Repeats will be counted on what is stored now. What is here of the event is reported before.
            self.report_event(mark.event);
            self.mark_deliveries(mark.event, &taken.event_id);
        }
        self.store_taken(taken, subscription, seen);
        true
    }

    /// Whether this copy of the event has the delivery to the subscription, open.
    fn is_open(&self, event: u64, subscription: u32, id: &EventId) -> bool {
        let slot = self.slot(event);
        let delivery = slot.as_ref().and_then(|slot| slot.deliveries.find(subscription));
        let is_here = delivery.is_some_and(|(_, delivery)| !delivery.state.is_settled());
        is_here && self.is_copy(event, id)
    }

    /// Whether this number means the event. Marks may be older than the journal: then their numbers mean others.
    fn is_copy(&self, event: u64, id: &EventId) -> bool {
        self.event_id(event).is_some_and(|found| found == id.to_string())
    }

    /// Lets the deliveries of this copy of the event be found when the event's mark knows a newer one: those that are
    /// owed here, or can be once more.
    fn mark_deliveries(&mut self, event: u64, id: &EventId) {
        let Some(slot) = self.slot(event) else { return };
        let all = slot.deliveries.as_slice().iter();
        let owed = all.filter(|delivery| !delivery.state.is_settled() || delivery.state.is_handing_over());
        let marks: Vec<EventId> = {
            let numbers = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
            owed.map(|delivery| mark_of_delivery(id, &numbers.id(delivery.subscription))).collect()
        };
        if marks.is_empty() || !self.is_copy(event, id) {
            return;
        }
        for mark in marks {
            self.put_mark(mark, Mark::new(self.now_ms, event));
        }
    }

    fn store_taken(&mut self, taken: TakenOver, subscription: u32, seen: Option<Mark>) {
        let number = self.counters.event;
        self.counters.event += 1;
        let TakenOver { event_id, log, attempts, due_ms, is_held, .. } = taken;
        let contact = contact(EventType::from_name(&log.event), &log);
        let header = EventHeader {
            number,
            id: event_id,
            receive_ms: self.now_ms,
            contact,
            subscriptions: vec![taken.subscription.as_str()],
        };
        let place = self.plan.put(Kind::Event, 0, |out| record::put_event(out, &header, &log));
        let state = if is_held { DeliveryState::Held } else { DeliveryState::Pending };
        let delivery = Delivery { due_ms, subscription, attempts, state };
        self.plan.put(Kind::State, 0, |out| record::put_state(out, number, Reported::Acked, &[delivery]));
        let duplicates = seen.map_or(0, |mark| mark.duplicates);
        let is_taken_over = seen.is_none_or(|mark| mark.is_taken_over);
        // The event's record is a mark too, of an event that came in a callback and not again.
        self.put_mark(event_id, Mark { duplicates, is_taken_over, ..Mark::new(self.now_ms, number) });
        let slot = Slot {
            receive_ms: self.now_ms,
            place,
            state_segment: self.plan.segment,
            contact,
            deliveries: vec![delivery].into(),
            reported: Reported::Acked,
        };
        self.plan.bytes_added += u64::from(place.bytes);
        self.plan.touched.insert(number, slot);
        self.plan.new_events.push((number, Arc::new(log)));
        self.plan.taken_over += 1;
    }
}
