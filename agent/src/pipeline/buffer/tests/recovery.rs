//! What the journal says at start, in journals written by hand.

use gateway_core::id::EventId;

use super::*;
use crate::pipeline::buffer::{
    index::{Delivery, Reported},
    journal::{
        Counters, Journal,
        format::{self, CONTINUES, FIRST_VERSION, HEADER_BYTES, Kind, MOVED},
        segment_path,
    },
    record::{self, EventHeader, LogIn, ReportHeader, StateChange},
    recover::{Recovered, recover},
    view::Position,
};

/// A journal that is written by hand.
struct Hand {
    directory: tempfile::TempDir,
    journal: Journal,
    counters: Counters,
    records: Vec<u8>,
}

impl Hand {
    fn new() -> Self {
        Self::after(tempfile::tempdir().unwrap(), uuid::Uuid::now_v7(), (0, 0), Counters::fresh())
    }

    fn after(directory: tempfile::TempDir, id: uuid::Uuid, last: (u32, u64), counters: Counters) -> Self {
        let files = Box::new(RealFiles);
        let journal = Journal::new(directory.path(), 1 << 20, id, files, Default::default(), last);
        Self { directory, journal, counters, records: Vec::new() }
    }

    fn event(&mut self, number: u64, flags: u8) -> &mut Self {
        let id = EventId::derive(&["by hand", &number.to_string()]);
        let header = EventHeader { number, id, receive_ms: 1_000, contact: 0, subscriptions: vec!["sub_a"] };
        let payload_json =
            format!(r#"{{"event":"message.received","instance_id":"inst_1","event_id":"{id}"}}"#);
        let log = v1::InboundLog { event_id: id.to_string(), payload_json, ..v1::InboundLog::default() };
        format::put(&mut self.records, Kind::Event, flags, |out| record::put_event(out, &header, &log));
        self
    }

    fn state(&mut self, event: u64, reported: Reported, delivery: Delivery) -> &mut Self {
        let put = |out: &mut Vec<u8>| record::put_state(out, event, reported, &[delivery]);
        format::put(&mut self.records, Kind::State, MOVED, put);
        self
    }

    /// The report of an event, with its delivery as it stands now.
    fn report(&mut self, sequence: u64, event: u64, state: DeliveryState) -> &mut Self {
        let changes = vec![StateChange { delivery: 0, attempts: 1, state, due_ms: 7 }];
        let header =
            ReportHeader { lane: Lane::Logs, sequence, time_ms: 0, event, log: LogIn::Event, changes };
        format::put(&mut self.records, Kind::Report, 0, |out| record::put_report(out, &header, &[]));
        self
    }

    fn acked(&mut self, sequence: u64) -> &mut Self {
        let put = |out: &mut Vec<u8>| record::put_acked(out, Lane::Logs, sequence);
        format::put(&mut self.records, Kind::Acked, 0, put);
        self
    }

    /// A segment leaves, and the first event behind it has this number.
    fn left(&mut self, segment: u32, next_event: u64) -> &mut Self {
        let put = |out: &mut Vec<u8>| record::put_left(out, segment, next_event);
        format::put(&mut self.records, Kind::Left, 0, put);
        self
    }

    /// Writes what was put. Returns up to where.
    fn commit(&mut self) -> u64 {
        let (_, offset) = self.journal.prepare(&self.counters, FIRST_VERSION).unwrap();
        let records = std::mem::take(&mut self.records);
        self.journal.append(&records).unwrap();
        u64::from(offset) + records.len() as u64
    }

    /// Begins the next segment after an end.
    fn next_segment(self, number: u32, end: u64) -> Self {
        Self::after(self.directory, self.journal.id(), (number, end), self.counters)
    }

    fn change(&self, number: u32, change: impl FnOnce(&mut Vec<u8>)) {
        let path = segment_path(self.directory.path(), number);
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(path, bytes).unwrap();
    }

    fn recover(&self) -> Recovered {
        recover(self.directory.path(), None).unwrap()
    }
}

fn pending(attempts: u16) -> Delivery {
    Delivery { due_ms: 9_000, subscription: 0, attempts, state: DeliveryState::Pending }
}

fn open_events(recovered: &Recovered) -> Vec<u64> {
    recovered.index.iter().map(|(event, _)| event).collect()
}

/// A beginning that was taken away is told, with how many events it can have held.
#[test]
fn missing_beginning_is_told() {
    let mut hand = Hand::new();
    hand.event(1, 0).event(2, 0);
    let end = hand.commit();
    hand.counters.event = 3;
    let mut hand = hand.next_segment(1, end);
    hand.event(3, 0).commit();
    std::fs::remove_file(segment_path(hand.directory.path(), 1)).unwrap();
    let damage = hand.recover().damage;
    assert_eq!(damage.causes, ["the beginning of the journal is missing"]);
    assert_eq!(damage.events_lost_max, 2);
}

/// An event that was moved stands as its state says when its first segment is gone, and takes its new place when it is
/// not.
#[test]
fn moved_events_stand_as_they_did() {
    let mut hand = Hand::new();
    hand.event(1, 0).event(2, 0);
    let end = hand.commit();
    let mut hand = hand.next_segment(1, end);
    hand.event(1, CONTINUES | MOVED).state(1, Reported::Acked, pending(3)).left(1, 3).commit();
    for is_gone in [false, true] {
        if is_gone {
            std::fs::remove_file(segment_path(hand.directory.path(), 1)).unwrap();
        }
        let recovered = hand.recover();
        let slot = recovered.index.get(1).expect("it is open");
        assert_eq!((slot.place.segment, slot.state_segment, slot.reported), (2, 2, Reported::Acked));
        assert_eq!(slot.deliveries.as_slice(), [pending(3)]);
        assert_eq!(recovered.damage, Default::default());
        assert_eq!(open_events(&recovered), if is_gone { vec![1] } else { vec![1, 2] });
    }
}

/// An event whose copy can be read and whose state cannot is delivered again rather than lost.
#[test]
fn moved_event_without_state_is_delivered() {
    let mut hand = Hand::new();
    hand.event(1, CONTINUES | MOVED).state(1, Reported::Acked, pending(3)).event(2, 0).commit();
    let event = {
        let mut one = Vec::new();
        std::mem::swap(&mut one, &mut hand.event(1, 0).records);
        one.len()
    };
    hand.change(1, |bytes| bytes[HEADER_BYTES + event + 20] ^= 1);
    let recovered = hand.recover();
    assert_eq!(recovered.index.get(1).unwrap().deliveries.as_slice()[0].attempts, 0);
    assert_eq!(open_events(&recovered), [1, 2]);
    assert_eq!(recovered.unreported, [1, 2]);
}

/// Records that are good only together and whose end a crash cut off do not count, and the next segment says so even
/// though they are still there.
#[test]
fn torn_group_does_not_count() {
    let mut hand = Hand::new();
    hand.event(1, 0);
    let good = hand.commit();
    hand.event(2, CONTINUES).event(3, CONTINUES).commit();
    let recovered = hand.recover();
    assert_eq!(open_events(&recovered), [1]);
    assert_eq!(recovered.last, (1, good));
    assert_eq!(recovered.damage, Default::default());
    assert_eq!(recovered.counters.event, 2);

    let mut hand = hand.next_segment(1, good);
    hand.event(2, 0).commit();
    let recovered = hand.recover();
    assert_eq!(open_events(&recovered), [1, 2]);
    assert_eq!((recovered.index.get(2).unwrap().place.segment, recovered.damage), (2, Default::default()));
}

/// But where the index has seen such a group, the crash came later and something else cut it off: what can be read of
/// it counts, now and after the next start, and what cannot counts as lost.
#[test]
fn committed_group_counts_as_far_as_it_goes() {
    let mut hand = Hand::new();
    hand.event(1, 0);
    hand.commit();
    hand.event(2, CONTINUES).event(3, CONTINUES).event(4, 0);
    let end = hand.commit();
    hand.change(1, |bytes| bytes.truncate(bytes.len() - 10));
    let offset = u32::try_from(end).unwrap();
    let position = Position {
        journal: hand.journal.id().into_bytes(),
        segment: 1,
        offset,
        end: (1, offset),
        next_event: 5,
    };
    let recovered = recover(hand.directory.path(), Some(position)).unwrap();
    assert_eq!(open_events(&recovered), [1, 2, 3]);
    assert_eq!(recovered.damage.events_lost_max, 1);

    let (segment, good) = recovered.last;
    let mut hand = hand.next_segment(segment, good);
    hand.event(5, 0).commit();
    assert_eq!(open_events(&hand.recover()), [1, 2, 3, 5]);
}

/// A report whose event cannot be read is not sent, an event whose report cannot be read is reported again, and no sequence
/// comes twice.
#[test]
fn reports_and_events_are_brought_together() {
    let mut hand = Hand::new();
    hand.event(1, 0);
    let first = hand.records.len();
    hand.event(2, 0).report(1, 1, DeliveryState::Delivered);
    let second = hand.records.len();
    hand.report(2, 2, DeliveryState::Pending);
    hand.commit();
    let damaged =
        [(HEADER_BYTES + first - 1, vec![2], vec![2_u64]), (HEADER_BYTES + second + 13, vec![1, 2], vec![1])];
    for (at, events, sequences) in damaged {
        hand.change(1, |bytes| bytes[at] ^= 1);
        let recovered = hand.recover();
        assert_eq!(open_events(&recovered), events);
        let found: Vec<u64> =
            recovered.lanes[Lane::Logs as usize].up_to(u64::MAX).map(|report| report.sequence).collect();
        assert_eq!(found, sequences);
        let again: Vec<u64> = if sequences == [1] { vec![2] } else { Vec::new() };
        assert_eq!(recovered.unreported, again);
        assert_ne!(recovered.counters.buffer_ids, hand.counters.buffer_ids, "sequences begin anew");
        hand.change(1, |bytes| bytes[at] ^= 1);
    }
    assert_eq!(hand.recover().counters.buffer_ids, hand.counters.buffer_ids);
}

/// A delivery that is given away is not ours as long as the report that says so is there; where that cannot be read it
/// is ours again, as it was.
#[test]
fn unreported_hand_overs_are_ours() {
    for (was_held, state) in [(false, DeliveryState::Pending), (true, DeliveryState::Held)] {
        let mut hand = Hand::new();
        let given = Delivery { state: DeliveryState::HandingOver { was_held }, ..pending(3) };
        hand.event(1, CONTINUES | MOVED).state(1, Reported::Acked, given);
        let report = hand.records.len();
        let header = ReportHeader {
            lane: Lane::Logs,
            sequence: 1,
            time_ms: 0,
            event: 1,
            log: LogIn::HandOver(0),
            changes: Vec::new(),
        };
        format::put(&mut hand.records, Kind::Report, MOVED, |out| record::put_report(out, &header, &[]));
        hand.event(2, 0).commit();
        assert_eq!(hand.recover().index.get(1).unwrap().deliveries.as_slice(), [given]);
        hand.change(1, |bytes| bytes[HEADER_BYTES + report + 20] ^= 1);
        let ours = Delivery { state, ..pending(3) };
        assert_eq!(hand.recover().index.get(1).unwrap().deliveries.as_slice(), [ours]);
    }
}

/// Damage among moved records is counted once, however many of them follow.
#[test]
fn loss_among_moved_records_is_counted_once() {
    let mut hand = Hand::new();
    hand.event(1, MOVED);
    let first = hand.records.len();
    for number in 2..100 {
        hand.event(number, MOVED);
    }
    hand.commit();
    hand.change(1, |bytes| bytes[HEADER_BYTES + first + 20] ^= 1);
    let recovered = hand.recover();
    assert_eq!(recovered.index.len(), 98);
    assert!((1..=2).contains(&recovered.damage.events_lost_max), "{:?}", recovered.damage);
}

/// What is damaged at the very end is counted, although nothing behind it says what it was.
#[test]
fn loss_at_the_end_is_counted() {
    let mut hand = Hand::new();
    hand.event(1, 0);
    let good = hand.commit();
    hand.event(2, 0).event(3, 0);
    let end = hand.commit();
    hand.change(1, |bytes| bytes[usize::try_from(good).unwrap()..].fill(0xB7));
    let recovered = hand.recover();
    assert_eq!(open_events(&recovered), [1]);
    assert!(recovered.damage.events_lost_max >= 2, "{:?}", recovered.damage);
    let journal = hand.journal.id().into_bytes();
    let offset = u32::try_from(end).unwrap();
    let position = Position { journal, segment: 1, offset, end: (1, offset), next_event: 4 };
    let recovered = recover(hand.directory.path(), Some(position)).unwrap();
    assert_eq!(recovered.damage.events_lost_max, 2, "the index knows better");
}

/// Settled and acked in any order, over several segments, leaves nothing open.
#[test]
fn done_events_leave() {
    let mut hand = Hand::new();
    hand.event(1, 0).event(2, 0).event(3, 0);
    let end = hand.commit();
    let mut hand = hand.next_segment(1, end);
    hand.report(1, 1, DeliveryState::Delivered).report(2, 2, DeliveryState::Pending).acked(2);
    hand.state(2, Reported::Acked, Delivery { state: DeliveryState::Exhausted, ..pending(12) }).commit();
    let recovered = hand.recover();
    assert_eq!(open_events(&recovered), [3]);
    assert_eq!((recovered.counters.event, recovered.counters.reports), (4, [1, 3]));
}

/// Without any header the numbers go on behind what the records have, also where all of them were moved, and the
/// sequences are of another id.
#[test]
fn counters_survive_lost_headers() {
    for flags in [0, MOVED] {
        let mut hand = Hand::new();
        hand.event(70, flags).event(71, flags).report(40, 70, DeliveryState::Pending).commit();
        hand.change(1, |bytes| bytes[..HEADER_BYTES].fill(0));
        let recovered = hand.recover();
        assert_eq!(open_events(&recovered), [70, 71]);
        assert_eq!((recovered.counters.event, recovered.counters.reports[Lane::Logs as usize]), (72, 41));
        assert_ne!(recovered.counters.buffer_ids, hand.counters.buffer_ids);
        assert!(recovered.segments[&1].is_damaged);
    }
}

/// A segment that was begun and never used, as after a kill, is passed over without a word.
#[test]
fn unused_segment_is_no_damage() {
    let mut hand = Hand::new();
    hand.event(1, 0);
    let end = hand.commit();
    for begun in [0, 50, HEADER_BYTES - 1] {
        std::fs::write(segment_path(hand.directory.path(), 2), vec![0; begun]).unwrap();
        let recovered = hand.recover();
        assert_eq!((open_events(&recovered), recovered.last), (vec![1], (1, end)));
        assert_eq!(recovered.damage, Default::default());
    }
}
