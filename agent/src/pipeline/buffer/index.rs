//! What is open, in memory: 48 bytes per event with one delivery. Bodies stay on disk.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use gateway_core::{delivery::DeliveryState, id::WebhookSubscriptionId};
use gateway_proto::v1;
use prost::Message as _;

use super::{
    journal::{
        Place,
        format::{FIRST_VERSION, HAND_OVERS},
    },
    record::LogIn,
};

/// One event owed to one subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivery {
    /// When the next attempt is due, wall clock; meaningless unless pending.
    pub(super) due_ms: i64,
    /// The subscription, by its number in [`Subscriptions`].
    pub(super) subscription: u32,
    pub(super) attempts: u16,
    pub(super) state: DeliveryState,
}

impl Delivery {
    /// Whether something happened to it since the event was appended.
    pub(super) fn is_touched(&self) -> bool {
        self.attempts > 0 || self.state != DeliveryState::Pending
    }
}

/// The deliveries of an event: mostly one, which then needs no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deliveries {
    One(Delivery),
    /// Behind one pointer, so that the common case is as small as one delivery.
    Many(Box<Several>),
}

/// The deliveries of an event with none, or more than one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Several(Vec<Delivery>);

impl From<Vec<Delivery>> for Deliveries {
    fn from(deliveries: Vec<Delivery>) -> Self {
        match deliveries.as_slice() {
            [one] => Self::One(*one),
            _ => Self::Many(Box::new(Several(deliveries))),
        }
    }
}

impl Deliveries {
    pub(super) fn as_slice(&self) -> &[Delivery] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => &many.0,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Delivery] {
        match self {
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(many) => &mut many.0,
        }
    }

    /// The delivery to a subscription and its place among the others.
    pub(super) fn find(&self, subscription: u32) -> Option<(usize, &Delivery)> {
        let mut deliveries = self.as_slice().iter().enumerate();
        deliveries.find(|(_, delivery)| delivery.subscription == subscription)
    }

    /// Whether all are settled, and those that were handed over are the control plane's.
    pub(super) fn are_done(&self) -> bool {
        let is_done = |delivery: &Delivery| delivery.state.is_settled() && !delivery.state.is_handing_over();
        self.as_slice().iter().all(is_done)
    }

    fn given_away(&self) -> u64 {
        self.as_slice().iter().filter(|delivery| delivery.state.is_given_away()).count() as u64
    }

    /// The control plane answers for the delivery at this place, if it is still the one that was given away.
    pub(super) fn handed_over(&mut self, place: u16) {
        if let Some(delivery) = self.as_mut_slice().get_mut(usize::from(place))
            && delivery.state.is_handing_over()
        {
            delivery.state = DeliveryState::HandedOver;
        }
    }
}

/// How far the report of an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reported {
    /// No report was written.
    No = 0,
    /// The report is on disk and not acked.
    Queued = 1,
    /// The control plane has it.
    Acked = 2,
}

/// An open event: not settled, or one of its reports that carry its log not acked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) receive_ms: i64,
    /// Where the event is.
    pub(super) place: Place,
    /// The segment with the newest record that changed it; 0 while nothing did.
    pub(super) state_segment: u32,
    /// Hash of the contact, for ordering; 0 when there is none.
    pub(super) contact: u32,
    pub(super) deliveries: Deliveries,
    pub(super) reported: Reported,
}

impl Slot {
    /// The control plane has a report that carries the event's log.
    pub(super) fn acked(&mut self, report: LogIn) {
        match report {
            LogIn::Nothing => {}
            LogIn::Event => self.reported = Reported::Acked,
            LogIn::HandOver(place) => self.deliveries.handed_over(place),
        }
    }

    /// Whether nothing keeps it any more.
    pub(super) fn is_done(&self) -> bool {
        self.reported == Reported::Acked && self.deliveries.are_done()
    }
}

/// So many that a chunk fills a size class of the allocator, 4 KiB.
const CHUNK_SLOTS: u64 = 85;

/// Neighbours in sequence share an allocation: a backlog is dense, and a map entry per event would double
/// its memory.
struct Chunk {
    live: u32,
    slots: [Option<Slot>; CHUNK_SLOTS as usize],
}

/// All open events.
#[derive(Default)]
pub(super) struct Index {
    chunks: BTreeMap<u64, Box<Chunk>>,
    events: u64,
    /// Bytes on disk of open events.
    bytes: u64,
    /// Bytes on disk of the events that each subscription, by its number, is owed.
    owed: Vec<u64>,
    /// Deliveries of open events that were given away.
    given_away: u64,
}

const fn place(event: u64) -> (u64, usize) {
    let within = (event % CHUNK_SLOTS) as usize;
    (event / CHUNK_SLOTS, within)
}

impl Index {
    pub(super) fn get(&self, event: u64) -> Option<&Slot> {
        let (chunk, within) = place(event);
        self.chunks.get(&chunk)?.slots[within].as_ref()
    }

    /// Changes where an event stands, or adds it. Returns how it was.
    pub(super) fn insert(&mut self, event: u64, slot: Slot) -> Option<Slot> {
        let (chunk, within) = place(event);
        let bytes = u64::from(slot.place.bytes);
        for delivery in slot.deliveries.as_slice().iter().filter(|delivery| !delivery.state.is_settled()) {
            let subscription = delivery.subscription as usize;
            if subscription >= self.owed.len() {
                self.owed.resize(subscription + 1, 0);
            }
            self.owed[subscription] += bytes;
        }
        self.bytes += bytes;
        self.given_away += slot.deliveries.given_away();
        let chunk = self
            .chunks
            .entry(chunk)
            .or_insert_with(|| Box::new(Chunk { live: 0, slots: std::array::from_fn(|_| None) }));
        let before = chunk.slots[within].replace(slot);
        match &before {
            Some(before) => self.discount(before),
            None => {
                chunk.live += 1;
                self.events += 1;
            }
        }
        before
    }

    /// Forgets an event. Returns how it was.
    pub(super) fn remove(&mut self, event: u64) -> Option<Slot> {
        let (number, within) = place(event);
        let chunk = self.chunks.get_mut(&number)?;
        let before = chunk.slots[within].take()?;
        chunk.live -= 1;
        self.events -= 1;
        if chunk.live == 0 {
            self.chunks.remove(&number);
        }
        self.discount(&before);
        Some(before)
    }

    /// An event does not stand like this any more.
    fn discount(&mut self, before: &Slot) {
        let bytes = u64::from(before.place.bytes);
        self.bytes -= bytes;
        self.given_away -= before.deliveries.given_away();
        for delivery in before.deliveries.as_slice().iter().filter(|delivery| !delivery.state.is_settled()) {
            self.owed[delivery.subscription as usize] -= bytes;
        }
    }

    /// What the records of what is open need.
    pub(super) const fn version(&self) -> u8 {
        if self.given_away > 0 { HAND_OVERS } else { FIRST_VERSION }
    }

    /// Bytes on disk of open events.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes on disk of the events that a subscription is owed.
    pub(super) fn owed(&self, subscription: u32) -> u64 {
        self.owed.get(subscription as usize).copied().unwrap_or(0)
    }

    /// Subscriptions that are owed more bytes than this.
    pub(super) fn owed_more_than(&self, bytes: u64) -> Vec<u32> {
        let owed = (0..).zip(&self.owed);
        owed.filter(|(_, owed)| **owed > bytes).map(|(subscription, _)| subscription).collect()
    }

    /// How many events are open.
    pub(super) const fn len(&self) -> u64 {
        self.events
    }

    /// The open events of a range in the order of their sequence.
    pub(super) fn range(&self, events: std::ops::Range<u64>) -> impl Iterator<Item = (u64, &Slot)> {
        let first = events.start / CHUNK_SLOTS;
        let chunks = self.chunks.range(first..).map(|(number, chunk)| (*number, chunk));
        chunks
            .flat_map(|(number, chunk)| (number * CHUNK_SLOTS..).zip(&chunk.slots))
            .filter_map(|(event, slot)| Some((event, slot.as_ref()?)))
            .skip_while(move |(event, _)| *event < events.start)
            .take_while(move |(event, _)| *event < events.end)
    }

    /// All open events in the order of their sequence.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Slot)> {
        self.chunks.iter().flat_map(|(number, chunk)| {
            let first = number * CHUNK_SLOTS;
            (first..).zip(&chunk.slots).filter_map(|(sequence, slot)| Some((sequence, slot.as_ref()?)))
        })
    }
}

/// Webhook subscriptions by number, so that a delivery needs four bytes for its own. Numbers are good until
/// the process ends.
#[derive(Default)]
pub(super) struct Subscriptions {
    ids: Vec<WebhookSubscriptionId>,
    numbers: HashMap<WebhookSubscriptionId, u32>,
}

impl Subscriptions {
    pub(super) fn number(&mut self, id: &WebhookSubscriptionId) -> u32 {
        if let Some(number) = self.numbers.get(id) {
            return *number;
        }
        let number = u32::try_from(self.ids.len()).expect("there are fewer than 2^32 subscriptions");
        self.ids.push(id.clone());
        self.numbers.insert(id.clone(), number);
        number
    }

    pub(super) fn id(&self, number: u32) -> WebhookSubscriptionId {
        self.ids[number as usize].clone()
    }
}

/// Logs of the newest events, so that the first attempt and the report need not read the disk. When it is
/// full, the oldest go, and are read from disk.
#[derive(Default)]
pub(super) struct LogCache {
    logs: BTreeMap<u64, (Arc<v1::InboundLog>, u32)>,
    bytes: usize,
}

/// What a log in memory costs beside its encoded size.
const LOG_OVERHEAD_BYTES: u32 = 512;
/// Bytes of logs kept in memory.
const LOG_CACHE_BYTES_MAX: usize = 12 * 1024 * 1024;

impl LogCache {
    pub(super) fn get(&self, sequence: u64) -> Option<Arc<v1::InboundLog>> {
        self.logs.get(&sequence).map(|(log, _)| Arc::clone(log))
    }

    pub(super) fn insert(&mut self, sequence: u64, log: Arc<v1::InboundLog>) {
        let bytes = u32::try_from(log.encoded_len()).unwrap_or(u32::MAX).saturating_add(LOG_OVERHEAD_BYTES);
        self.bytes += bytes as usize;
        self.logs.insert(sequence, (log, bytes));
        while self.bytes > LOG_CACHE_BYTES_MAX {
            let Some((_, (_, bytes))) = self.logs.pop_first() else { break };
            self.bytes -= bytes as usize;
        }
    }

    pub(super) fn remove(&mut self, sequence: u64) {
        if let Some((_, bytes)) = self.logs.remove(&sequence) {
            self.bytes -= bytes as usize;
        }
    }
}
