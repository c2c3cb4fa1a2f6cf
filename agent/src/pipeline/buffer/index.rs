//! What is open, in memory: per event some tens of bytes. Bodies stay on disk.

use std::{collections::BTreeMap, sync::Arc};

use gateway_core::{delivery::DeliveryState, id::WebhookSubscriptionId};
use gateway_proto::v1;
use prost::Message as _;

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
    Many(Box<[Delivery]>),
}

impl From<Vec<Delivery>> for Deliveries {
    fn from(deliveries: Vec<Delivery>) -> Self {
        match deliveries.as_slice() {
            [one] => Self::One(*one),
            _ => Self::Many(deliveries.into()),
        }
    }
}

impl Deliveries {
    pub(super) fn as_slice(&self) -> &[Delivery] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [Delivery] {
        match self {
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(many) => many,
        }
    }

    pub(super) fn find(&self, subscription: u32) -> Option<&Delivery> {
        self.as_slice().iter().find(|delivery| delivery.subscription == subscription)
    }

    pub(super) fn find_mut(&mut self, subscription: u32) -> Option<&mut Delivery> {
        self.as_mut_slice().iter_mut().find(|delivery| delivery.subscription == subscription)
    }

    pub(super) fn are_settled(&self) -> bool {
        self.as_slice().iter().all(|delivery| delivery.state.is_settled())
    }
}

/// How far the report of an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reported {
    /// No report was written.
    No,
    /// The report is on disk and not acked.
    Queued,
    /// The control plane has it.
    Acked,
}

/// An open event: not settled, or its report not acked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) receive_ms: i64,
    /// Length of the event on disk.
    pub(super) bytes: u32,
    pub(super) deliveries: Deliveries,
    pub(super) reported: Reported,
    /// Whether its deliveries are on disk beside the event.
    pub(super) has_state: bool,
}

const CHUNK_SLOTS: u64 = 64;

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
    /// Bytes on disk of open events and of reports not acked.
    pub(super) bytes: u64,
}

const fn place(sequence: u64) -> (u64, usize) {
    let within = (sequence % CHUNK_SLOTS) as usize;
    (sequence / CHUNK_SLOTS, within)
}

impl Index {
    pub(super) fn get(&self, sequence: u64) -> Option<&Slot> {
        let (chunk, within) = place(sequence);
        self.chunks.get(&chunk)?.slots[within].as_ref()
    }

    pub(super) fn insert(&mut self, sequence: u64, slot: Slot) {
        let (chunk, within) = place(sequence);
        let chunk = self
            .chunks
            .entry(chunk)
            .or_insert_with(|| Box::new(Chunk { live: 0, slots: std::array::from_fn(|_| None) }));
        if chunk.slots[within].replace(slot).is_none() {
            chunk.live += 1;
            self.events += 1;
        }
    }

    pub(super) fn remove(&mut self, sequence: u64) {
        let (number, within) = place(sequence);
        let Some(chunk) = self.chunks.get_mut(&number) else { return };
        if chunk.slots[within].take().is_some() {
            chunk.live -= 1;
            self.events -= 1;
            if chunk.live == 0 {
                self.chunks.remove(&number);
            }
        }
    }

    /// How many events are open.
    pub(super) const fn len(&self) -> u64 {
        self.events
    }

    /// All open events in the order of their sequence.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Slot)> {
        self.chunks.iter().flat_map(|(number, chunk)| {
            let first = number * CHUNK_SLOTS;
            (first..).zip(&chunk.slots).filter_map(|(sequence, slot)| Some((sequence, slot.as_ref()?)))
        })
    }

    /// All open events, to change them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Slot)> {
        self.chunks.iter_mut().flat_map(|(number, chunk)| {
            let first = number * CHUNK_SLOTS;
            (first..).zip(&mut chunk.slots).filter_map(|(sequence, slot)| Some((sequence, slot.as_mut()?)))
        })
    }
}

/// Webhook subscriptions by number, so that a delivery needs four bytes for its own. Numbers are good until
/// the process ends.
#[derive(Default)]
pub(super) struct Subscriptions {
    ids: Vec<WebhookSubscriptionId>,
    numbers: std::collections::HashMap<WebhookSubscriptionId, u32>,
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
const LOG_CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;

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
