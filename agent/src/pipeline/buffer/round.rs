//! Plans one commit: what is written, and what changes in memory once it is on disk. Nothing in memory
//! changes before, so that a failed commit leaves everything as it was.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError},
};

use bytes::Bytes;
use gateway_core::{delivery::DeliveryState, id::EventId};
use gateway_proto::v1;
use prost::Message as _;

use super::{
    AppendError, Entry, NewEvent, OpenDelivery, Outcome, Receipt,
    index::{Delivery, Index, Reported, Slot},
    journal::{
        Counters, Place,
        format::{self, CONTINUES, Kind},
    },
    record::{self, EventHeader, Lane, LogIn, Mark, ReportHeader, ReportPlace, ReportRecord, StateChange},
    shared::{Reply, Shared},
};

/// Outcomes of events whose report is not written yet, because more may follow within moments.
pub(super) type Young = HashMap<u64, Vec<Arc<Outcome>>>;

/// What a commit is going to write and change.
#[derive(Default)]
pub(super) struct Plan {
    /// Records, one behind the other.
    pub(super) records: Vec<u8>,
    /// Where they go.
    pub(super) segment: u32,
    pub(super) offset: u32,
    pub(super) touched: BTreeMap<u64, Slot>,
    pub(super) new_events: Vec<(u64, Arc<v1::InboundLog>)>,
    pub(super) marks: HashMap<EventId, Mark>,
    pub(super) opt_outs: HashMap<String, (v1::OptOut, Place)>,
    pub(super) reports: [Vec<(ReportPlace, ReportRecord)>; 2],
    /// Reports that were moved: lane, sequence, and where they are now.
    pub(super) moved_reports: Vec<(Lane, u64, Place)>,
    /// Per lane: acked up to here.
    pub(super) acked: [Option<u64>; 2],
    /// Bytes of new events and reports.
    pub(super) bytes_added: u64,
    pub(super) replies: Vec<(Reply, Result<Receipt, AppendError>)>,
    pub(super) outcomes: Vec<Arc<Outcome>>,
    /// Outcomes taken out of [`Young`] or new, and how many of them are from [`Young`].
    pub(super) young: HashMap<u64, (Vec<Arc<Outcome>>, usize)>,
    /// Old segments that were read to their end.
    pub(super) segments_read: Vec<u32>,
    /// Deliveries that are given away.
    pub(super) handed_over: u64,
    /// Deliveries that were taken over.
    pub(super) taken_over: u64,
    /// What was given away is taken back.
    pub(super) takes_back: bool,
    /// Deliveries that come back, by event and subscription.
    pub(super) taken_back: Vec<(u64, u32)>,
    /// Their reports, by sequence.
    pub(super) reports_taken_back: Vec<u64>,
}

impl Plan {
    /// A plan whose records go to this place.
    pub(super) fn at((segment, offset): (u32, u32)) -> Self {
        Self { segment, offset, ..Self::default() }
    }

    /// Adds a record.
    pub(super) fn put(&mut self, kind: Kind, flags: u8, payload: impl FnOnce(&mut Vec<u8>)) -> Place {
        let start = self.records.len();
        format::put(&mut self.records, kind, flags, payload);
        let length = |bytes: usize| u32::try_from(bytes).expect("a commit is far below 4 GiB");
        Place {
            segment: self.segment,
            offset: self.offset + length(start),
            bytes: length(self.records.len() - start),
        }
    }

    /// Deliveries that are new in this plan, and those that come back.
    pub(super) fn new_deliveries(&self) -> Vec<OpenDelivery> {
        let mut open = Vec::with_capacity(self.new_events.len());
        for (event, _) in &self.new_events {
            if let Some(slot) = self.touched.get(event) {
                open.extend(OpenDelivery::all_of(*event, slot));
            }
        }
        for (event, subscription) in &self.taken_back {
            if let Some(slot) = self.touched.get(event) {
                let all = OpenDelivery::all_of(*event, slot);
                open.extend(all.filter(|delivery| delivery.subscription == *subscription));
            }
        }
        open
    }
}

/// Limits of what the buffer takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most bytes of events and reports.
    pub(super) bytes_max: u64,
    /// Most bytes of events that one subscription may be owed.
    pub(super) share_bytes_max: u64,
}

/// A plan in the making.
pub(super) struct Round<'a> {
    pub(super) shared: &'a Shared,
    pub(super) index: &'a Index,
    pub(super) counters: &'a mut Counters,
    pub(super) young: &'a mut Young,
    pub(super) opt_out_places: &'a HashMap<String, Place>,
    pub(super) limits: Limits,
    /// Bytes of reports before this round.
    pub(super) report_bytes: u64,
    /// The number that the first event behind the oldest segment got.
    pub(super) first_event_after: u64,
    pub(super) now_ms: i64,
    pub(super) plan: &'a mut Plan,
}

impl Round<'_> {
    /// An open event as this round leaves it.
    pub(super) fn slot(&self, event: u64) -> Option<Slot> {
        self.plan.touched.get(&event).or_else(|| self.index.get(event)).cloned()
    }

    /// Plans an entry, or answers why it is refused.
    pub(super) fn append(&mut self, entry: Entry, reply: Reply) {
        if let Err(refusal) = self.check_room(&entry) {
            self.plan.replies.push((reply, Err(refusal)));
            return;
        }
        let start = self.plan.records.len();
        let mut receipt = Receipt { stored: 0, duplicates: 0 };
        for opt_out in entry.opt_outs {
            self.append_opt_out(opt_out);
        }
        for event in entry.events {
            if self.is_duplicate(&event.id) {
                receipt.duplicates += 1;
            } else {
                receipt.stored += 1;
                self.append_event(event);
            }
        }
        for taken in entry.taken_over {
            if self.take_over(taken) {
                receipt.stored += 1;
            } else {
                receipt.duplicates += 1;
            }
        }
        for unrouted in entry.unrouted {
            if self.is_duplicate(&unrouted.mark) {
                receipt.duplicates += 1;
            } else {
                receipt.stored += 1;
                self.put_mark(unrouted.mark, Mark::new(self.now_ms, 0));
                self.report(Lane::Logs, v1::report::Report::UnroutedCallback(unrouted.callback));
            }
        }
        for mark in entry.marks {
            if self.is_duplicate(&mark) {
                receipt.duplicates += 1;
            } else {
                self.put_mark(mark, Mark::new(self.now_ms, 0));
            }
        }
        join_records(&mut self.plan.records[start..]);
        self.plan.replies.push((reply, Ok(receipt)));
    }

    fn check_room(&self, entry: &Entry) -> Result<(), AppendError> {
        let bytes = self.index.bytes() + self.report_bytes + self.plan.bytes_added;
        let Limits { bytes_max, share_bytes_max } = self.limits;
        if bytes >= bytes_max {
            return Err(AppendError::Full { bytes, bytes_max });
        }
        if share_bytes_max >= bytes_max {
            return Ok(());
        }
        let mut numbers = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let of_events = entry.events.iter().flat_map(|event| &event.subscriptions);
        let mut subscriptions = of_events.chain(entry.taken_over.iter().map(|taken| &taken.subscription));
        if subscriptions.any(|id| self.index.owed(numbers.number(id)) >= share_bytes_max) {
            return Err(AppendError::DestinationFull);
        }
        Ok(())
    }

    fn append_opt_out(&mut self, opt_out: v1::OptOut) {
        let place = self.plan.put(Kind::OptOut, 0, |out| opt_out.encode_raw(out));
        self.plan.opt_outs.insert(opt_out.id.clone(), (opt_out.clone(), place));
        self.report(Lane::Urgent, v1::report::Report::OptOut(opt_out));
    }

    /// The mark of what was seen before.
    pub(super) fn seen(&self, id: &EventId) -> Option<Mark> {
        self.plan.marks.get(id).copied().or_else(|| self.shared.marks.get(id))
    }

    /// Whether the event was seen before; then it is counted.
    fn is_duplicate(&mut self, id: &EventId) -> bool {
        let Some(mut mark) = self.seen(id) else { return false };
        mark.duplicates = mark.duplicates.saturating_add(1);
        self.put_mark(*id, mark);
        if mark.event != 0 {
            // The event's own report goes first, so that the count has something to be counted on.
            if self.slot(mark.event).is_some_and(|slot| slot.reported == Reported::No) {
                self.report_event(mark.event);
            }
            let report = v1::DuplicateReport { event_id: id.to_string(), duplicate_count: mark.repeats() };
            self.report(Lane::Logs, v1::report::Report::Duplicate(report));
        }
        true
    }

    pub(super) fn put_mark(&mut self, id: EventId, mark: Mark) {
        self.plan.put(Kind::Mark, 0, |out| record::put_mark(out, &id, mark));
        self.plan.marks.insert(id, mark);
    }

    fn append_event(&mut self, event: NewEvent) {
        let number = self.counters.event;
        self.counters.event += 1;
        let contact = event.contact();
        let header = EventHeader {
            number,
            id: event.id,
            receive_ms: self.now_ms,
            contact,
            subscriptions: event.subscriptions.iter().map(|id| id.as_str()).collect(),
        };
        let place = self.plan.put(Kind::Event, 0, |out| record::put_event(out, &header, &event.log));
        self.plan.marks.insert(event.id, Mark::new(self.now_ms, number));
        let mut numbers = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let delivery = |id| Delivery {
            due_ms: self.now_ms,
            subscription: numbers.number(id),
            attempts: 0,
            state: DeliveryState::Pending,
        };
        let deliveries: Vec<Delivery> = event.subscriptions.iter().map(delivery).collect();
        drop(numbers);
        let slot = Slot {
            receive_ms: self.now_ms,
            place,
            state_segment: 0,
            contact,
            deliveries: deliveries.into(),
            reported: Reported::No,
        };
        self.plan.bytes_added += u64::from(place.bytes);
        self.plan.touched.insert(number, slot);
        self.plan.new_events.push((number, Arc::new(event.log)));
    }

    /// Plans a report that is not about the deliveries of an event.
    pub(super) fn report(&mut self, lane: Lane, report: v1::report::Report) {
        self.report_about(lane, 0, LogIn::Nothing, Vec::new(), report);
    }

    /// Plans a report about an event, with its deliveries that changed.
    pub(super) fn report_about(
        &mut self,
        lane: Lane,
        event: u64,
        log: LogIn,
        changes: Vec<StateChange>,
        report: v1::report::Report,
    ) {
        let next = &mut self.counters.reports[lane as usize];
        let sequence = *next;
        *next += 1;
        let report = v1::Report { sequence, report: Some(report) }.encode_to_vec();
        let header = ReportHeader { lane, sequence, time_ms: self.now_ms, event, log, changes };
        let place = self.plan.put(Kind::Report, 0, |out| record::put_report(out, &header, &report));
        self.plan.bytes_added += u64::from(place.bytes);
        let time_s = record::seconds(self.now_ms);
        self.plan.reports[lane as usize].push((
            ReportPlace { sequence, event, place, time_s, log },
            ReportRecord { sequence, event, log, report: Bytes::from(report) },
        ));
    }
}

/// Makes records good only together.
fn join_records(records: &mut [u8]) {
    let mut at = 0;
    while let Some(next) = format::next_record(&records[at..]).filter(|next| at + next < records.len()) {
        format::set_flags(&mut records[at..at + next], CONTINUES);
        at += next;
    }
}
