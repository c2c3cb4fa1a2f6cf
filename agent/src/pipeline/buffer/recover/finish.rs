//! What comes of the records once all of them are read.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use gateway_core::delivery::DeliveryState;
use uuid::Uuid;

use super::{
    super::{
        Outcome,
        index::{Delivery, Reported},
        journal::Counters,
        lane::LaneState,
        record::{Lane, LogIn, ReportPlace, StateChange},
        round::Young,
    },
    Damage, Recovered, Replay,
};

impl Replay {
    pub(super) fn finish(mut self, journal_id: Uuid) -> Recovered {
        let mut counters = self.counters.take().unwrap_or_else(Counters::fresh);
        counters.event = counters.event.max(self.newest_event.max(self.highest_event) + 1);
        for (next, reports) in counters.reports.iter_mut().zip(&self.lanes) {
            *next = (*next).max(reports.keys().next_back().map_or(1, |newest| newest + 1));
        }
        if self.damage != Damage::default() {
            // A sequence that was lost may have been used: the control plane would take its next user for
            // something it knows.
            counters.buffer_ids = Counters::fresh().buffer_ids;
        }
        self.forget_reports_without_log();
        let unreported = self.index.iter().filter(|(_, slot)| slot.reported == Reported::No);
        let unreported = unreported.map(|(event, _)| event).collect();
        let young = self.young();
        let buffer_ids = counters.buffer_ids;
        let lane = |lane: Lane, reports: BTreeMap<u64, ReportPlace>| {
            let next = counters.reports[lane as usize];
            LaneState::new(buffer_ids[lane as usize].to_string(), reports.into_values().collect(), next)
        };
        let [urgent, logs] = std::mem::take(&mut self.lanes);
        let lanes = [lane(Lane::Urgent, urgent), lane(Lane::Logs, logs)];
        Recovered {
            journal_id,
            segments: self.segments,
            last: self.last,
            counters,
            index: self.index,
            subscriptions: self.subscriptions,
            lanes,
            opt_outs: self.opt_outs,
            opt_out_places: self.opt_out_places,
            young,
            unreported,
            marks: self.marks.into(),
            damage: self.damage,
            newest_ms: self.newest_ms,
        }
    }

    /// Brings reports and events together: a report whose event could not be read cannot be sent, an event whose
    /// report could not be read is reported again, and a delivery whose hand-over could not be read stays here. Of
    /// several hand-overs of a delivery the newest counts, and none if it was taken back.
    fn forget_reports_without_log(&mut self) {
        let (mut queued, mut handing_over) = (HashSet::new(), HashSet::new());
        for reports in &mut self.lanes {
            reports.retain(|_, report| {
                match report.log {
                    LogIn::Nothing => return true,
                    LogIn::Event => drop(queued.insert(report.event)),
                    LogIn::HandOver(place) => {
                        let slot = self.index.get(report.event);
                        let delivery =
                            slot.and_then(|slot| slot.deliveries.as_slice().get(usize::from(place)));
                        let is_given = delivery.is_some_and(|delivery| delivery.state.is_handing_over());
                        let key = (report.event, place);
                        return is_given && handing_over.insert(key);
                    }
                }
                self.index.get(report.event).is_some()
            });
        }
        let again: Vec<u64> = self
            .index
            .iter()
            .filter(|(event, slot)| slot.reported == Reported::Queued && !queued.contains(event))
            .map(|(event, _)| event)
            .collect();
        for event in again {
            self.change(0, event, &[], Some(Reported::No));
        }
        self.take_back(&handing_over);
    }

    /// What was given away, and by no report that can be read, is still ours.
    fn take_back(&mut self, handing_over: &HashSet<(u64, u16)>) {
        let mut ours = Vec::new();
        for (event, slot) in self.index.iter() {
            let given = (0_u16..).zip(slot.deliveries.as_slice());
            let given = given.filter(|(_, delivery)| delivery.state.is_handing_over());
            for (place, delivery) in given.filter(|(place, _)| !handing_over.contains(&(event, *place))) {
                let delivery = Delivery { state: delivery.state.owed(), ..*delivery };
                ours.push((event, slot.state_segment, StateChange::of(usize::from(place), &delivery)));
            }
        }
        for (event, segment, change) in ours {
            self.change(segment, event, &[change], None);
        }
    }

    /// The control plane has a report that carries the log of an event.
    pub(super) fn log_acked(&mut self, event: u64, report: LogIn) {
        let Some(mut slot) = self.index.get(event).cloned() else { return };
        slot.acked(report);
        if slot.is_done() && !self.keeps_done {
            self.index.remove(event);
        } else {
            self.index.insert(event, slot);
        }
    }

    fn young(&mut self) -> Young {
        let mut young = Young::new();
        for (event, outcomes) in std::mem::take(&mut self.young) {
            let Some(slot) = self.index.get(event).filter(|slot| slot.reported == Reported::No) else {
                continue;
            };
            let deliveries = slot.deliveries.as_slice();
            let outcomes = outcomes.into_iter().filter_map(|(change, attempt)| {
                let delivery = deliveries.get(usize::from(change.delivery))?;
                let due_ms = (change.state == DeliveryState::Pending).then_some(change.due_ms);
                let (subscription, state) = (delivery.subscription, change.state);
                Some(Arc::new(Outcome { event, subscription, state, due_ms, attempt, gone: None }))
            });
            young.insert(event, outcomes.collect());
        }
        young
    }
}
