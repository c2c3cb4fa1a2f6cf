//! Reads the journal at start: what is open, which reports wait, and what cannot be read.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use gateway_core::{
    delivery::DeliveryState,
    id::{EventId, WebhookSubscriptionId},
};
use gateway_proto::v1;
use prost::Message as _;
use tracing::warn;
use uuid::Uuid;

use super::{
    index::{Delivery, Index, Reported, Slot, Subscriptions},
    journal::{
        Counters, Place, Segment,
        format::{BadHeader, CONTINUES, HEADER_BYTES, Header, Kind, MOVED, Record, VERSION},
        read::{Found, Stored, is_bad_sector, list, scan},
        segment_path,
    },
    keeper::mark_of,
    lane::LaneState,
    record::{self, Lane, LogIn, Mark, ReportPlace, StateChange},
    round::Young,
    view::Position,
};

mod finish;

/// The journal cannot be used, and must not be touched.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoverError {
    /// It was written by a newer program.
    #[error(
        "read the journal: segment {segment} has format {version}, this program knows {known}; \
         start the newer program again, or use another --data-dir"
    )]
    Newer {
        /// The segment.
        segment: u32,
        /// Its version.
        version: u8,
        /// Ours.
        known: u8,
    },
    /// The disk refused.
    #[error("read the journal")]
    Io(#[from] io::Error),
}

/// What could not be read.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Damage {
    /// What was wrong, for people; empty when nothing was.
    pub(super) causes: Vec<&'static str>,
    pub(super) unreadable_bytes: u64,
    /// Events that may be lost; some of them were delivered already.
    pub(super) events_lost_max: u64,
}

impl Damage {
    fn cause(&mut self, cause: &'static str) {
        if !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
    }
}

/// Everything that a journal holds.
pub(super) struct Recovered {
    pub(super) journal_id: Uuid,
    pub(super) segments: BTreeMap<u32, Segment>,
    /// The newest segment and up to where it is good.
    pub(super) last: (u32, u64),
    pub(super) counters: Counters,
    pub(super) index: Index,
    pub(super) subscriptions: Subscriptions,
    pub(super) lanes: [LaneState; 2],
    pub(super) opt_outs: HashMap<String, v1::OptOut>,
    pub(super) opt_out_places: HashMap<String, Place>,
    pub(super) young: Young,
    /// Events whose report is not written yet.
    pub(super) unreported: Vec<u64>,
    /// Marks that the index does not have.
    pub(super) marks: Vec<(EventId, Mark)>,
    pub(super) damage: Damage,
    /// When the newest record was written, in milliseconds since 1970; 0 when there is none.
    pub(super) newest_ms: i64,
}

/// Reads the journal in a directory. `position` is what the index reflects, as far as it belongs to this
/// journal.
pub(super) fn recover(directory: &Path, view: Option<Position>) -> Result<Recovered, RecoverError> {
    Replay::default().run(directory, view)
}

/// The segments of a directory, unless a newer program wrote one.
pub(super) fn check_versions(directory: &Path) -> Result<Vec<Stored>, RecoverError> {
    let stored = list(directory)?;
    for segment in &stored {
        if let Err(BadHeader::Newer(version)) = segment.header {
            return Err(RecoverError::Newer { segment: segment.number, version, known: VERSION });
        }
    }
    Ok(stored)
}

/// The same, with what a crash may have cut off: nobody was answered for it, but it can be read.
pub(super) fn recover_readable(directory: &Path) -> Result<Recovered, RecoverError> {
    Replay { keeps_torn: true, ..Replay::default() }.run(directory, None)
}

/// The same of a directory with one segment out of a journal.
pub(super) fn recover_segment(directory: &Path) -> Result<Recovered, RecoverError> {
    let all_before_it = (u32::MAX - 1, 0);
    Replay { keeps_torn: true, left: all_before_it, ..Replay::default() }.run(directory, None)
}

/// The same, with the events in the index that nothing keeps any more.
pub(super) fn recover_all(directory: &Path) -> Result<Recovered, RecoverError> {
    Replay { keeps_done: true, ..Replay::default() }.run(directory, None)
}

/// Marks kept in memory when there is no index: enough for the repeats of some minutes.
const MARKS_WITHOUT_INDEX_MAX: usize = 200_000;
/// Shorter than any event, for an upper bound of how many a damaged stretch can have held.
const EVENT_BYTES_MIN: u64 = 100;

#[derive(Default)]
struct Replay {
    /// The segment that is read.
    bytes: Vec<u8>,
    segments: BTreeMap<u32, Segment>,
    last: (u32, u64),
    counters: Option<Counters>,
    index: Index,
    subscriptions: Subscriptions,
    lanes: [BTreeMap<u64, ReportPlace>; 2],
    opt_outs: HashMap<String, v1::OptOut>,
    opt_out_places: HashMap<String, Place>,
    young: HashMap<u64, Vec<(StateChange, Option<v1::DeliveryAttempt>)>>,
    /// The newest hand-over of each delivery that is not acked: event and place, and the report's sequence.
    given: HashMap<(u64, u16), u64>,
    marks: VecDeque<(EventId, Mark)>,
    damage: Damage,
    view: Option<Position>,
    /// Number of the newest event that was written for the first time.
    newest_event: u64,
    /// The highest number of an event, moved ones included.
    highest_event: u64,
    /// Bytes before the next record that could not be read.
    gap: Option<u64>,
    is_moved: bool,
    newest_ms: i64,
    /// The newest segment that left, and the number of the first event behind it.
    left: (u32, u64),
    /// Whether events stay in the index that nothing keeps any more.
    keeps_done: bool,
    /// Whether records count that are good only together with others, whatever became of these.
    keeps_torn: bool,
}

impl Replay {
    fn run(mut self, directory: &Path, view: Option<Position>) -> Result<Recovered, RecoverError> {
        let stored = check_versions(directory)?;
        let headers = || stored.iter().filter_map(|segment| segment.header.as_ref().ok());
        // An index that was made before the first segment has the id already.
        let begun = || view.filter(|view| view.segment == 0).map(|view| view.journal);
        let stored_id = headers().next_back().map(|header| header.journal).or_else(begun);
        let journal_id = stored_id.map_or_else(Uuid::now_v7, Uuid::from_bytes);
        let view = view.filter(|view| view.journal == journal_id.into_bytes());
        self.view = view;
        for (index, segment) in stored.iter().enumerate() {
            self.segment(directory, segment, stored.get(index + 1))?;
        }
        self.check_beginning(&stored);
        self.check_against(view);
        Ok(self.finish(journal_id))
    }

    fn segment(&mut self, directory: &Path, stored: &Stored, next: Option<&Stored>) -> io::Result<()> {
        let number = stored.number;
        let is_missing = self.segments.last_key_value().is_some_and(|(newest, _)| number > newest + 1);
        if is_missing {
            self.damage.cause("a journal segment is missing");
            self.gap = Some(0);
        }
        let mut segment = Segment::default();
        match &stored.header {
            Ok(header) => {
                segment.first_event = header.next_event;
                self.counters(header);
            }
            // One that was begun when the program was killed, and never used.
            Err(_) if stored.bytes < HEADER_BYTES as u64 && next.is_none() => return Ok(()),
            Err(_) => {
                self.damage.cause("the beginning of a journal segment is damaged");
                segment.is_damaged = true;
            }
        }
        let end = next.filter(|next| next.number == number + 1);
        let end = end.and_then(|next| next.header.as_ref().ok()).and_then(|header| header.previous_end);
        // One piece of memory for all segments.
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let read =
            File::open(segment_path(directory, number)).and_then(|mut file| file.read_to_end(&mut bytes));
        match read {
            Err(error) if is_bad_sector(&error) => {
                self.damage.cause("a journal segment cannot be read");
                self.damage.unreadable_bytes += stored.bytes;
                self.gap = Some(self.gap.unwrap_or(0) + stored.bytes);
                segment.is_damaged = true;
                bytes.clear();
            }
            read => drop(read?),
        }
        segment.bytes = self.records(number, &bytes, end.map(u64::from), &mut segment.is_damaged);
        self.bytes = bytes;
        self.last = (number, segment.bytes);
        self.segments.insert(number, segment);
        Ok(())
    }

    /// Replays the records of a segment. Returns up to where it is good.
    fn records(&mut self, number: u32, bytes: &[u8], end: Option<u64>, is_damaged: &mut bool) -> u64 {
        let mut good_end = HEADER_BYTES as u64;
        let mut group: Vec<(u64, Record<'_>)> = Vec::new();
        scan(bytes, end, &mut |found| match found {
            Found::Record(offset, record) => {
                group.push((offset, record));
                if record.flags & CONTINUES == 0 {
                    good_end = offset + record.bytes() as u64;
                    group.drain(..).for_each(|(offset, record)| self.record(number, offset, record));
                }
            }
            Found::Gap(gap) => {
                *is_damaged = true;
                good_end = gap.offset + gap.bytes;
                group.drain(..).for_each(|(offset, record)| self.record(number, offset, record));
                self.damage.cause("records of the journal are damaged");
                self.damage.unreadable_bytes += gap.bytes;
                self.gap = Some(self.gap.unwrap_or(0) + gap.bytes);
            }
            // What a crash cut off was not answered.
            Found::Torn => {}
        });
        if let Some((offset, record)) = group.last().filter(|_| self.is_committed(number, group[0].0, end)) {
            good_end = offset + record.bytes() as u64;
            group.drain(..).for_each(|(offset, record)| self.record(number, offset, record));
        }
        good_end
    }

    /// Whether a record that is good only together with others, of which the last is missing, was committed with
    /// them: the index or the next segment say so.
    fn is_committed(&self, segment: u32, offset: u64, end: Option<u64>) -> bool {
        let is_seen = |view: Position| (view.segment, u64::from(view.offset)) > (segment, offset);
        self.keeps_torn || end.is_some() || self.view.is_some_and(is_seen)
    }

    fn counters(&mut self, header: &Header) {
        if self.newest_event == 0 {
            self.newest_event = header.next_event - 1;
        } else if self.gap.is_some() {
            self.count_lost(header.next_event);
        }
        let stored = Counters {
            event: header.next_event,
            reports: header.next_report,
            buffer_ids: header.buffer_ids.map(Uuid::from_bytes),
        };
        match &mut self.counters {
            None => self.counters = Some(stored),
            Some(counters) => {
                counters.event = counters.event.max(stored.event);
                for (mine, stored) in counters.reports.iter_mut().zip(stored.reports) {
                    *mine = (*mine).max(stored);
                }
                counters.buffer_ids = stored.buffer_ids;
            }
        }
    }

    /// All events before this number were written; those behind damage that were not read count as lost.
    fn count_lost(&mut self, number: u64) {
        self.damage.events_lost_max += number.saturating_sub(self.newest_event + 1);
        self.newest_event = self.newest_event.max(number.saturating_sub(1));
    }

    fn record(&mut self, segment: u32, offset: u64, record: Record<'_>) {
        let is_moved = record.flags & MOVED != 0;
        if let Some(bytes) = self.gap.as_mut().filter(|_| is_moved || self.is_moved) {
            // Moved ones are not counted by the numbers of new ones.
            self.damage.events_lost_max += std::mem::take(bytes) / EVENT_BYTES_MIN;
        }
        self.is_moved = is_moved;
        let place = Place {
            segment,
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            bytes: u32::try_from(record.bytes()).unwrap_or(u32::MAX),
        };
        if self.view.is_none_or(|view| (segment, place.offset) >= (view.segment, view.offset)) {
            self.marks.extend(mark_of(record));
            if self.view.is_none() && self.marks.len() > MARKS_WITHOUT_INDEX_MAX {
                self.marks.pop_front();
            }
        }
        let is_read = match record.kind {
            Kind::Event => self.event(place, record.payload, is_moved),
            Kind::Report => self.report(place, record.payload),
            Kind::Outcome => self.outcome(segment, record.payload),
            Kind::State => self.state(segment, record.payload),
            Kind::OptOut => self.opt_out(place, record.payload),
            Kind::Acked => self.acked(record.payload),
            Kind::Left => self.left(record.payload),
            Kind::Mark => Some(()),
        };
        if is_read.is_none() {
            warn!(segment, offset, "passed over a record of the journal that makes no sense");
            self.damage.cause("records of the journal make no sense");
            self.damage.unreadable_bytes += record.bytes() as u64;
        }
    }

    fn event(&mut self, place: Place, payload: &[u8], is_moved: bool) -> Option<()> {
        let (header, _) = record::read_event(payload)?;
        self.highest_event = self.highest_event.max(header.number);
        if !is_moved {
            if self.gap.take().is_some() {
                self.count_lost(header.number);
            }
            self.newest_event = self.newest_event.max(header.number);
        }
        self.newest_ms = self.newest_ms.max(header.receive_ms);
        if let Some(slot) = self.index.get(header.number) {
            let moved = Slot { place, ..slot.clone() };
            self.index.insert(header.number, moved);
            return Some(());
        }
        let mut deliveries = Vec::with_capacity(header.subscriptions.len());
        for id in &header.subscriptions {
            let id: WebhookSubscriptionId = id.parse().ok()?;
            deliveries.push(Delivery {
                due_ms: header.receive_ms,
                subscription: self.subscriptions.number(&id),
                attempts: 0,
                state: DeliveryState::Pending,
            });
        }
        let slot = Slot {
            receive_ms: header.receive_ms,
            place,
            state_segment: 0,
            contact: header.contact,
            deliveries: deliveries.into(),
            reported: Reported::No,
        };
        self.index.insert(header.number, slot);
        Some(())
    }

    /// Changes an open event, and forgets it when it is done.
    fn change(&mut self, segment: u32, event: u64, changes: &[StateChange], reported: Option<Reported>) {
        let Some(mut slot) = self.index.get(event).cloned() else { return };
        changes.iter().for_each(|change| change.apply(slot.deliveries.as_mut_slice()));
        slot.reported = reported.unwrap_or(slot.reported);
        if slot.is_done() && !self.keeps_done {
            self.index.remove(event);
            return;
        }
        if !changes.is_empty() {
            slot.state_segment = segment;
        }
        self.index.insert(event, slot);
    }

    fn report(&mut self, place: Place, payload: &[u8]) -> Option<()> {
        let (header, _) = record::read_report(payload)?;
        self.newest_ms = self.newest_ms.max(header.time_ms);
        let is_of_event = header.log == LogIn::Event;
        let reported = is_of_event.then_some(Reported::Queued);
        self.change(place.segment, header.event, &header.changes, reported);
        if is_of_event {
            self.young.remove(&header.event);
        }
        let report = ReportPlace {
            sequence: header.sequence,
            event: header.event,
            place,
            time_s: record::seconds(header.time_ms),
            log: header.log,
        };
        let lane = &mut self.lanes[header.lane as usize];
        if let LogIn::HandOver(place) = header.log {
            // One that was taken back and given away again: the ack of the old report says nothing of the new one.
            let newest = self.given.entry((header.event, place)).or_insert(header.sequence);
            let older = header.sequence.min(*newest);
            *newest = header.sequence.max(*newest);
            if older < *newest {
                lane.remove(&older);
            }
            if older == header.sequence && older < *newest {
                return Some(());
            }
        }
        lane.insert(header.sequence, report);
        Some(())
    }

    fn outcome(&mut self, segment: u32, payload: &[u8]) -> Option<()> {
        let (event, change, attempt) = record::read_outcome(payload)?;
        self.change(segment, event, &[change], None);
        self.young.entry(event).or_default().push((change, attempt));
        Some(())
    }

    fn state(&mut self, segment: u32, payload: &[u8]) -> Option<()> {
        let (event, reported, changes) = record::read_state(payload)?;
        self.change(segment, event, &changes, Some(reported));
        Some(())
    }

    fn opt_out(&mut self, place: Place, payload: &[u8]) -> Option<()> {
        let opt_out = v1::OptOut::decode(payload).ok()?;
        self.opt_out_places.insert(opt_out.id.clone(), place);
        self.opt_outs.insert(opt_out.id.clone(), opt_out);
        Some(())
    }

    fn acked(&mut self, payload: &[u8]) -> Option<()> {
        let (lane, sequence) = record::read_acked(payload)?;
        let left = self.lanes[lane as usize].split_off(&(sequence + 1));
        for report in std::mem::replace(&mut self.lanes[lane as usize], left).into_values() {
            if let LogIn::HandOver(place) = report.log {
                self.given.remove(&(report.event, place));
            }
            self.log_acked(report.event, report.log);
        }
        self.note_sequence(lane, sequence);
        Some(())
    }

    fn left(&mut self, payload: &[u8]) -> Option<()> {
        let left = record::read_left(payload)?;
        self.left = self.left.max(left);
        Some(())
    }

    fn note_sequence(&mut self, lane: Lane, sequence: u64) {
        if let Some(counters) = &mut self.counters {
            let next = &mut counters.reports[lane as usize];
            *next = (*next).max(sequence + 1);
        }
    }

    /// The oldest segment must be the one behind the newest that left.
    fn check_beginning(&mut self, stored: &[Stored]) {
        let (left, next_event) = self.left;
        let Some(first) = stored.first().filter(|first| first.number > left + 1) else { return };
        // Damage may have hit the record that said so.
        if self.damage.unreadable_bytes > 0 {
            return;
        }
        self.damage.cause("the beginning of the journal is missing");
        if let Ok(header) = &first.header {
            self.damage.events_lost_max += header.next_event.saturating_sub(next_event.max(1));
        }
    }

    /// What the index has seen of the journal and is not there any more was taken away, and nothing follows a
    /// damaged end that would say what was in it.
    fn check_against(&mut self, view: Option<Position>) {
        let position = |view: &Position| (view.segment, u64::from(view.offset));
        // The beginning of the next segment is the end of the last: see `View::reaches`.
        let is_next = |view: &Position| position(view) == (self.last.0.saturating_add(1), 0);
        let is_seen = |view: &Position| position(view) >= self.last && !is_next(view);
        match (view.filter(is_seen), self.gap) {
            (Some(view), gap) => {
                if position(&view) > self.last {
                    self.damage.cause("the end of the journal is missing");
                }
                if position(&view) > self.last || gap.is_some() {
                    self.count_lost(view.next_event);
                }
            }
            (None, Some(bytes)) => self.damage.events_lost_max += bytes / EVENT_BYTES_MIN,
            (None, None) => {}
        }
    }
}
