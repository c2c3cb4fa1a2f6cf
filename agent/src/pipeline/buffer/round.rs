//! Plans one commit: what is written, and what changes in memory once it is on disk. Nothing in memory
//! changes before, so that a failed commit leaves everything as it was.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, PoisonError},
};

use gateway_core::{delivery::DeliveryState, id::EventId};
use gateway_proto::v1;

use super::{
    AppendError, Entry, NewEvent, OpenDelivery, Outcome, Receipt,
    index::{Delivery, Index, Reported, Slot},
    record::{self, EventHeader, Lane, MARK_DAYS, Mark, ReportRecord},
    shared::{Reply, Shared},
    store::{Op, Store, StoreError},
};

/// Sequences are handed out of blocks whose end is on disk, so that none is used twice, whatever was
/// deleted: a used one would be ignored by the control plane.
const SEQUENCE_BLOCK: u64 = 100_000;

/// A counter that never repeats itself, restarts included.
pub(super) struct Counter {
    name: &'static str,
    next: u64,
    reserved: u64,
}

/// Names of the counters on disk.
pub(super) const COUNTER_NAMES: [&str; 3] = ["next_event", "next_report_urgent", "next_report_logs"];

impl Counter {
    /// Goes on at `next`, which nobody used.
    pub(super) const fn new(name: &'static str, next: u64) -> Self {
        Self { name, next, reserved: next }
    }

    fn take(&mut self, ops: &mut Vec<Op>) -> u64 {
        if self.next >= self.reserved {
            self.reserved = self.next + SEQUENCE_BLOCK;
            ops.push(Op::Put(record::meta_key(self.name), self.reserved.to_be_bytes().to_vec()));
        }
        self.next += 1;
        self.next - 1
    }
}

/// The counters of a buffer.
pub(super) struct Counters {
    pub(super) event: Counter,
    pub(super) reports: [Counter; 2],
}

impl Counters {
    /// After a failed commit: what was reserved may not be on disk.
    pub(super) fn forget_reservations(&mut self) {
        self.event.reserved = self.event.next;
        for counter in &mut self.reports {
            counter.reserved = counter.next;
        }
    }
}

/// Outcomes of events whose report is not written yet, because more may follow within moments.
pub(super) type Young = HashMap<u64, Vec<Arc<Outcome>>>;

/// What a commit is going to change.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) ops: Vec<Op>,
    pub(super) touched: BTreeMap<u64, Slot>,
    pub(super) freed: Vec<u64>,
    pub(super) new_events: Vec<(u64, Arc<v1::InboundLog>)>,
    /// Marks written, with what was there before.
    pub(super) marks: HashMap<EventId, (Mark, Option<Mark>)>,
    pub(super) opt_outs: HashMap<String, v1::OptOut>,
    pub(super) reports: [Vec<Arc<ReportRecord>>; 2],
    /// Per lane: acked up to here, and the time of the oldest report left.
    pub(super) acked: [Option<(u64, Option<i64>)>; 2],
    pub(super) bytes_added: u64,
    pub(super) bytes_removed: u64,
    pub(super) replies: Vec<(Reply, Result<Receipt, AppendError>)>,
    pub(super) outcomes: Vec<Arc<Outcome>>,
    /// Outcomes taken out of [`Young`] or new, and how many of them are from [`Young`].
    pub(super) young: HashMap<u64, (Vec<Arc<Outcome>>, usize)>,
}

/// A plan in the making.
pub(super) struct Round<'a> {
    pub(super) shared: &'a Shared,
    pub(super) store: &'a dyn Store,
    pub(super) index: &'a Index,
    pub(super) counters: &'a mut Counters,
    pub(super) young: &'a mut Young,
    pub(super) bytes_max: u64,
    pub(super) now_ms: i64,
    pub(super) plan: &'a mut Plan,
}

impl Round<'_> {
    /// An open event as this round leaves it.
    pub(super) fn slot(&self, sequence: u64) -> Option<Slot> {
        self.plan.touched.get(&sequence).or_else(|| self.index.get(sequence)).cloned()
    }

    /// Plans an entry, or answers why it is refused.
    pub(super) fn append(&mut self, entry: Entry, reply: Reply) -> Result<(), StoreError> {
        let bytes = (self.index.bytes + self.plan.bytes_added).saturating_sub(self.plan.bytes_removed);
        if bytes >= self.bytes_max {
            let refusal = AppendError::Full { bytes, bytes_max: self.bytes_max };
            self.plan.replies.push((reply, Err(refusal)));
            return Ok(());
        }
        for opt_out in entry.opt_outs {
            self.append_opt_out(opt_out);
        }
        let mut receipt = Receipt { stored: 0, duplicates: 0 };
        for event in entry.events {
            if self.is_duplicate(&event.id)? {
                receipt.duplicates += 1;
            } else {
                receipt.stored += 1;
                self.append_event(event);
            }
        }
        for unrouted in entry.unrouted {
            if self.is_duplicate(&unrouted.mark)? {
                receipt.duplicates += 1;
            } else {
                receipt.stored += 1;
                self.put_mark(unrouted.mark, 0);
                self.report(Lane::Logs, 0, v1::report::Report::UnroutedCallback(unrouted.callback));
            }
        }
        for mark in entry.marks {
            if self.is_duplicate(&mark)? {
                receipt.duplicates += 1;
            } else {
                self.put_mark(mark, 0);
            }
        }
        self.plan.replies.push((reply, Ok(receipt)));
        Ok(())
    }

    fn append_opt_out(&mut self, opt_out: v1::OptOut) {
        use prost::Message as _;
        self.plan.ops.push(Op::Put(record::opt_out_key(&opt_out.id), opt_out.encode_to_vec()));
        self.plan.opt_outs.insert(opt_out.id.clone(), opt_out.clone());
        self.report(Lane::Urgent, 0, v1::report::Report::OptOut(opt_out));
    }

    /// Whether the event was seen before; then it is counted.
    fn is_duplicate(&mut self, id: &EventId) -> Result<bool, StoreError> {
        let planned = self.plan.marks.get(id).copied();
        let (stored, mark) = match planned {
            Some((mark, before)) => (before, Some(mark)),
            None => {
                let stored = self.store.get(&record::mark_key(id))?;
                let stored = stored.as_deref().map(Mark::decode).transpose()?;
                (stored, stored)
            }
        };
        let Some(mut mark) = mark else { return Ok(false) };
        mark.duplicates = mark.duplicates.saturating_add(1);
        self.plan.ops.push(Op::Put(record::mark_key(id), mark.encode()));
        self.plan.marks.insert(*id, (mark, stored));
        if mark.sequence != 0 {
            // The event's own report goes first, so that the count has something to be counted on.
            if self.slot(mark.sequence).is_some_and(|slot| slot.reported == Reported::No) {
                self.report_event(mark.sequence)?;
            }
            let report = v1::DuplicateReport { event_id: id.to_string(), duplicate_count: mark.duplicates };
            self.report(Lane::Logs, 0, v1::report::Report::Duplicate(report));
        }
        Ok(true)
    }

    fn put_mark(&mut self, id: EventId, sequence: u64) {
        let expire_day = record::day_of(self.now_ms) + MARK_DAYS;
        let mark = Mark { expire_day, duplicates: 0, sequence };
        self.plan.ops.push(Op::Put(record::mark_key(&id), mark.encode()));
        self.plan.marks.insert(id, (mark, None));
    }

    fn append_event(&mut self, event: NewEvent) {
        let sequence = self.counters.event.take(&mut self.plan.ops);
        self.put_mark(event.id, sequence);
        let header = EventHeader {
            id: event.id,
            receive_ms: self.now_ms,
            subscriptions: event.subscriptions.iter().map(|id| id.as_str().into()).collect(),
        };
        let blob = record::encode_event(&header, &event.log);
        record::put_blob(&mut self.plan.ops, |chunk| record::event_key(sequence, chunk), &blob);
        let mut numbers = self.shared.subscriptions.lock().unwrap_or_else(PoisonError::into_inner);
        let deliveries: Vec<Delivery> = event
            .subscriptions
            .iter()
            .map(|id| Delivery {
                due_ms: self.now_ms,
                subscription: numbers.number(id),
                attempts: 0,
                state: DeliveryState::Pending,
            })
            .collect();
        drop(numbers);
        let slot = Slot {
            receive_ms: self.now_ms,
            bytes: u32::try_from(blob.len()).expect("a record is far below 4 GiB"),
            deliveries: deliveries.into(),
            reported: Reported::No,
            has_state: false,
        };
        self.plan.bytes_added += blob.len() as u64;
        self.plan.touched.insert(sequence, slot);
        self.plan.new_events.push((sequence, Arc::new(event.log)));
    }

    /// Writes a report and returns nothing: its sequence matters to the lane only.
    pub(super) fn report(&mut self, lane: Lane, event: u64, report: v1::report::Report) {
        let sequence = self.counters.reports[lane as usize].take(&mut self.plan.ops);
        let report = v1::Report { sequence, report: Some(report) };
        let record = ReportRecord::new(event, self.now_ms, report);
        record::put_blob(
            &mut self.plan.ops,
            |chunk| record::report_key(lane, sequence, chunk),
            &record.encode(),
        );
        self.plan.bytes_added += record.bytes as u64;
        self.plan.reports[lane as usize].push(Arc::new(record));
    }
}

impl Plan {
    /// What takes a failed commit back if it reached the disk all the same: its events were refused, so
    /// their marks must not make the provider's repeat a duplicate.
    pub(super) fn undo(&self, index: &Index, opt_outs: &HashMap<String, v1::OptOut>) -> Vec<Op> {
        use prost::Message as _;
        let mut ops = Vec::new();
        for (sequence, slot) in &self.touched {
            match index.get(*sequence) {
                None => {
                    record::delete_blob(
                        &mut ops,
                        |chunk| record::event_key(*sequence, chunk),
                        slot.bytes as usize,
                    );
                    ops.push(Op::Delete(record::state_key(*sequence)));
                }
                Some(before) if before.has_state => {
                    ops.push(Op::Put(record::state_key(*sequence), record::encode_state(&before.deliveries)));
                }
                Some(_) => ops.push(Op::Delete(record::state_key(*sequence))),
            }
        }
        for (id, (_, before)) in &self.marks {
            ops.push(match before {
                Some(mark) => Op::Put(record::mark_key(id), mark.encode()),
                None => Op::Delete(record::mark_key(id)),
            });
        }
        for lane in Lane::ALL {
            for report in &self.reports[lane as usize] {
                let key = |chunk| record::report_key(lane, report.sequence, chunk);
                record::delete_blob(&mut ops, key, report.bytes);
            }
        }
        for id in self.opt_outs.keys() {
            ops.push(match opt_outs.get(id) {
                Some(before) => Op::Put(record::opt_out_key(id), before.encode_to_vec()),
                None => Op::Delete(record::opt_out_key(id)),
            });
        }
        ops
    }

    /// Deliveries that are new in this plan.
    pub(super) fn new_deliveries(&self) -> Vec<OpenDelivery> {
        let of_event = |event: u64| {
            let slot = self.touched.get(&event);
            slot.into_iter().flat_map(move |slot| {
                slot.deliveries.as_slice().iter().map(move |delivery| OpenDelivery {
                    event,
                    subscription: delivery.subscription,
                    due_ms: delivery.due_ms,
                    held: false,
                })
            })
        };
        self.new_events.iter().flat_map(|(event, _)| of_event(*event)).collect()
    }
}
