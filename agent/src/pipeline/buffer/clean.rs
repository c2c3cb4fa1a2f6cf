//! Old segments leave: what is live in them moves to the newest segment, oldest segment first.
//!
//! Disk use stays under twice what is live plus one segment, marks apart: see [`is_time_to_clean`].

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use gateway_proto::v1;
use prost::Message as _;
use tracing::{error, warn};

use super::{
    engine::Engine,
    index::{Reported, Slot},
    journal::{
        Place,
        format::{CONTINUES, FRAME_BYTES, Kind, MOVED},
    },
    keeper::Reading,
    open::damage_report,
    record::{self, ReportHeader},
    round::Round,
};

/// How long to wait with an old segment that cannot go, because the disk refuses.
const CLEANING_PAUSE: Duration = Duration::from_secs(5);

/// Whether the oldest segment should go: nothing in it is live, or what is not live has grown to half of what
/// is, or it has to go because of damage in it or behind it.
fn is_time_to_clean(oldest_live: u64, on_disk: u64, live: u64, segment_bytes: u64, must_go: bool) -> bool {
    oldest_live == 0 || must_go || on_disk.saturating_sub(live) > live / 2 + segment_bytes / 2
}

impl Engine {
    /// Asks for the oldest segment if it should go.
    pub(super) fn clean(&mut self) {
        if self.cleaning.is_some() || self.is_failing || Instant::now() < self.clean_after {
            return;
        }
        let Some((number, segment)) = self.journal.oldest() else { return };
        let live = {
            let index = self.shared.index.read().unwrap_or_else(PoisonError::into_inner);
            index.bytes() + self.report_bytes() + self.opt_out_bytes
        };
        let must_go = self.journal.newest_damaged().is_some_and(|damaged| number <= damaged);
        let on_disk = self.journal.bytes();
        if is_time_to_clean(segment.live, on_disk, live, self.config.segment_bytes, must_go) {
            self.readings += 1;
            let reading = Reading { segment: number, number: self.readings };
            self.cleaning = Some(reading);
            self.keeper.read_segment(reading);
        }
    }

    /// The number that the first event behind the segment that is read got.
    pub(super) fn first_event_after(&self) -> u64 {
        self.cleaning.map_or(0, |reading| self.journal.first_event_after(reading.segment))
    }

    /// The oldest segment cannot go now: it is tried again in a while.
    pub(super) fn put_off_cleaning(&mut self) {
        self.cleaning = None;
        self.clean_after = Instant::now() + CLEANING_PAUSE;
    }

    /// The segment was read and all that was live in it is on disk elsewhere.
    pub(super) fn segment_read(&mut self, number: u32) {
        self.cleaning = None;
        let Some((oldest, segment)) = self.journal.oldest() else { return };
        if oldest != number {
            return;
        }
        if segment.live > 0 {
            // It can be a byte that changed since the start; the next start counts what is lost.
            error!(
                segment = number,
                live = segment.live,
                "kept an old segment: something in it did not move"
            );
            return self.put_off_cleaning();
        }
        match self.journal.remove_oldest() {
            Ok(None) => {}
            Ok(Some(name)) => {
                error!(name, "set a damaged segment of the buffer's journal aside, in quarantine");
                self.metrics.buffer_quarantined();
                let causes = ["a damaged journal segment was set aside; what could be read of it goes on"];
                self.announcements.push(damage_report(&causes, 0, 0, vec![name]));
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "failed to remove an old segment");
                self.put_off_cleaning();
            }
        }
    }
}

impl Round<'_> {
    /// Moves a record of an old segment, if it is live.
    pub(super) fn move_record(&mut self, segment: u32, offset: u32, kind: Kind, payload: &[u8]) {
        let bytes = u32::try_from(FRAME_BYTES + payload.len()).expect("a record is far below 4 GiB");
        let place = Place { segment, offset, bytes };
        match kind {
            Kind::Event => self.move_event(place, payload),
            Kind::Report => self.move_report(place, payload),
            Kind::Outcome | Kind::State => {
                if let Some(event) = record::leading_number(payload) {
                    self.move_state(segment, event);
                }
            }
            Kind::OptOut => self.move_opt_out(place, payload),
            Kind::Mark | Kind::Acked | Kind::Left => {}
        }
    }

    fn move_event(&mut self, place: Place, payload: &[u8]) {
        let Some(event) = record::leading_number(payload) else { return };
        let Some(slot) = self.slot(event).filter(|slot| slot.place == place) else { return };
        if slot.is_done() {
            return;
        }
        if slot.reported == Reported::No && slot.state_segment != 0 {
            // Its outcomes are in the old segment, or in one that is not held once its state moves on; in a
            // report they are kept.
            self.report_event(event);
        }
        let Some(slot) = self.slot(event) else { return };
        let place = self.plan.put(Kind::Event, CONTINUES | MOVED, |out| out.extend_from_slice(payload));
        self.plan.touched.insert(event, Slot { place, ..slot });
        self.put_state(event);
    }

    pub(super) fn put_state(&mut self, event: u64) {
        let Some(mut slot) = self.slot(event) else { return };
        slot.state_segment = self.plan.segment;
        let (reported, deliveries) = (slot.reported, slot.deliveries.as_slice());
        self.plan.put(Kind::State, MOVED, |out| record::put_state(out, event, reported, deliveries));
        self.plan.touched.insert(event, slot);
    }

    /// An open event whose newest state is in the old segment gets a record of it.
    fn move_state(&mut self, segment: u32, event: u64) {
        let Some(slot) = self.slot(event).filter(|slot| slot.state_segment == segment) else { return };
        if slot.reported == Reported::No {
            // Its outcomes are in the segment as well; in a report they are kept.
            self.report_event(event);
        }
        self.put_state(event);
    }

    fn move_report(&mut self, place: Place, payload: &[u8]) {
        let Some((header, report)) = record::read_report(payload) else { return };
        self.move_state(place.segment, header.event);
        let (lane, sequence) = (header.lane, header.sequence);
        let is_acked = self.plan.acked[lane as usize].is_some_and(|acked| sequence <= acked);
        let is_live = self.shared.lane(lane).find(sequence).is_some_and(|now| now.place == place);
        if is_live && !is_acked {
            // The deliveries have moved on since; their state is on its own.
            let header = ReportHeader { changes: Vec::new(), ..header };
            let place = self.plan.put(Kind::Report, MOVED, |out| record::put_report(out, &header, report));
            self.plan.moved_reports.push((lane, sequence, place));
        }
    }

    fn move_opt_out(&mut self, place: Place, payload: &[u8]) {
        let Ok(opt_out) = v1::OptOut::decode(payload) else { return };
        let is_replaced = self.plan.opt_outs.contains_key(&opt_out.id);
        if !is_replaced && self.opt_out_places.get(&opt_out.id) == Some(&place) {
            let place = self.plan.put(Kind::OptOut, MOVED, |out| out.extend_from_slice(payload));
            self.plan.opt_outs.insert(opt_out.id.clone(), (opt_out, place));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule keeps disk use under twice what is live plus one segment, whatever is live.
    #[test]
    fn disk_use_is_bounded() {
        let segment = 32 << 20;
        for live in [0, 1 << 20, 1 << 30, 10 << 30_u64] {
            let limit = 2 * live + segment;
            assert!(is_time_to_clean(1, limit, live, segment, false), "{live}");
            assert!(!is_time_to_clean(1, live + segment / 2, live, segment, false), "{live}");
        }
        assert!(is_time_to_clean(0, 1, 1 << 30, segment, false), "nothing in it is live");
        assert!(is_time_to_clean(1, 1, 1 << 30, segment, true), "it is damaged");
    }
}
