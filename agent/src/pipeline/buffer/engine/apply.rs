//! What follows a commit: memory is brought up to what is on disk, then everybody is answered.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Instant,
};

use gateway_core::id::EventId;
use gateway_proto::v1;

use super::{
    super::{
        index::{Reported, Slot},
        journal::Journal,
        record::{Lane, Mark},
        round::Plan,
        view::Position,
    },
    Engine, REPORT_PATIENCE,
};

impl Engine {
    /// The commit is on disk: memory follows, then everybody is answered.
    pub(super) fn apply(&mut self, mut plan: Plan, (segment, offset): (u32, u32), bytes: usize) {
        let shared = Arc::clone(&self.shared);
        self.announcements.clear();
        let fresh = plan.new_deliveries();
        let marks: Vec<(EventId, Mark)> = std::mem::take(&mut plan.marks).into_iter().collect();
        if !marks.is_empty() {
            let offset = offset + u32::try_from(bytes).expect("a commit is far below 4 GiB");
            let journal = self.journal.id().into_bytes();
            let next_event = self.counters.event;
            let position = Position { journal, segment, offset, end: (segment, offset), next_event };
            self.keeper.marks(shared.marks.add(&marks), marks, position);
        }
        self.metrics.hand_overs("given", plan.handed_over);
        self.metrics.hand_overs("taken", plan.taken_over);
        let freed = self.apply_events(&mut plan);
        self.publish_logs(&freed, std::mem::take(&mut plan.new_events));
        self.apply_reports(&mut plan);
        self.apply_opt_outs(&mut plan);
        for (reply, answer) in plan.replies {
            // A caller that went away has its entry stored all the same.
            let _ = reply.send(answer);
        }
        if !fresh.is_empty() {
            shared.hand_out(fresh);
        }
        shared.end_outcomes(&plan.outcomes);
        plan.segments_read.into_iter().for_each(|segment| self.segment_read(segment));
        shared.marks.wait_for_room();
    }

    /// Brings the index up to the commit. Returns the events that nothing keeps any more.
    fn apply_events(&mut self, plan: &mut Plan) -> Vec<u64> {
        let shared = Arc::clone(&self.shared);
        let deadline = Instant::now() + REPORT_PATIENCE;
        let (mut planned, mut written, mut freed) = (0, 0, Vec::new());
        let mut index = shared.index.write().unwrap_or_else(PoisonError::into_inner);
        for (event, slot) in std::mem::take(&mut plan.touched) {
            let is_planned = slot.reported == Reported::No;
            if is_planned && let Some((outcomes, _)) = plan.young.remove(&event) {
                self.young.insert(event, outcomes);
            }
            let before = if slot.is_done() {
                freed.push(event);
                index.remove(event)
            } else {
                hold(&mut self.journal, &slot);
                index.insert(event, slot)
            };
            let Some(before) = before else {
                planned += usize::from(is_planned);
                if is_planned {
                    self.deadlines.push_back((deadline, event));
                }
                continue;
            };
            written += usize::from(before.reported == Reported::No && !is_planned);
            release(&mut self.journal, &before);
        }
        shared.reports_planned.fetch_add(planned, Ordering::AcqRel);
        shared.reports_planned.fetch_sub(written, Ordering::AcqRel);
        freed
    }

    fn apply_reports(&mut self, plan: &mut Plan) {
        let shared = Arc::clone(&self.shared);
        let has_reports = plan.reports.iter().any(|reports| !reports.is_empty());
        for lane in Lane::ALL {
            let mut state = shared.lane(lane);
            if let Some(acked) = plan.acked[lane as usize] {
                state.up_to(acked).for_each(|report| self.journal.release(report.place.segment));
                state.free(acked);
            }
            for (place, record) in plan.reports[lane as usize].drain(..) {
                self.journal.hold(place.place.segment);
                state.push(place, record);
            }
        }
        for (lane, sequence, place) in plan.moved_reports.drain(..) {
            if let Some(report) = shared.lane(lane).find(sequence) {
                self.journal.hold(place.segment);
                self.journal.release(report.place.segment);
                report.place = place;
            }
        }
        let taken_back = std::mem::take(&mut plan.reports_taken_back);
        if !taken_back.is_empty() {
            let places = shared.lane(Lane::Logs).take_back(&taken_back);
            places.into_iter().for_each(|place| self.journal.release(place.segment));
        }
        if has_reports || !taken_back.is_empty() {
            shared.reports_added.notify_one();
        }
        if plan.acked.iter().any(Option::is_some) || !taken_back.is_empty() {
            shared.reports_freed.notify_one();
        }
    }

    fn apply_opt_outs(&mut self, plan: &mut Plan) {
        if plan.opt_outs.is_empty() {
            return;
        }
        let mut opt_outs = self.shared.opt_outs.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, (opt_out, place)) in plan.opt_outs.drain() {
            self.journal.hold(place.segment);
            self.opt_out_bytes += u64::from(place.bytes);
            if let Some(before) = self.opt_out_places.insert(id.clone(), place) {
                self.opt_out_bytes -= u64::from(before.bytes);
                self.journal.release(before.segment);
            }
            opt_outs.insert(id, opt_out);
        }
    }

    fn publish_logs(&self, freed: &[u64], new_events: Vec<(u64, Arc<v1::InboundLog>)>) {
        let mut logs = self.shared.logs.lock().unwrap_or_else(PoisonError::into_inner);
        freed.iter().for_each(|event| logs.remove(*event));
        new_events.into_iter().for_each(|(event, log)| logs.insert(event, log));
    }
}

/// The segments with records of an event are needed.
pub(in super::super) fn hold(journal: &mut Journal, slot: &Slot) {
    journal.hold(slot.place.segment);
    if slot.state_segment != 0 {
        journal.hold(slot.state_segment);
    }
}

fn release(journal: &mut Journal, slot: &Slot) {
    journal.release(slot.place.segment);
    if slot.state_segment != 0 {
        journal.release(slot.state_segment);
    }
}
