//! Reads what is open from disk: at start, and when a damaged store was replaced.

use std::collections::{HashMap, HashSet};

use gateway_core::{delivery::DeliveryState, id::WebhookSubscriptionId};
use gateway_proto::v1;
use prost::Message as _;
use tracing::warn;
use uuid::Uuid;

use super::{
    OpenDelivery,
    index::{Delivery, Index, Reported, Slot, Subscriptions},
    lane::LaneState,
    record::{self, BadRecord, Lane},
    round::{COUNTER_NAMES, Counter, Counters},
    store::{Op, Store, StoreError},
};

/// Everything that a store holds.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) subscriptions: Subscriptions,
    pub(super) lanes: [LaneState; 2],
    pub(super) counters: Counters,
    pub(super) opt_outs: HashMap<String, v1::OptOut>,
    pub(super) open: Vec<OpenDelivery>,
    /// Events whose report is not written yet.
    pub(super) unreported: Vec<u64>,
}

const BUFFER_ID_NAMES: [&str; 2] = ["buffer_id_urgent", "buffer_id_logs"];

/// Reads a store, and gives a fresh one its ids.
pub(super) fn recover(store: &dyn Store) -> Result<Recovered, StoreError> {
    let buffer_ids = buffer_ids(store)?;
    let mut index = Index::default();
    let mut subscriptions = Subscriptions::default();
    let orphans = read_events(store, &mut index, &mut subscriptions)?;
    let mut states = read_states(store)?;
    let mut queued = HashSet::new();
    let mut lanes = Vec::with_capacity(2);
    for (lane, buffer_id) in Lane::ALL.into_iter().zip(buffer_ids) {
        let (state, bytes) = read_lane(store, lane, buffer_id, &mut queued)?;
        index.bytes += bytes;
        lanes.push(state);
    }
    let lanes: [LaneState; 2] = lanes.try_into().ok().expect("there are two lanes");
    let counters = read_counters(store, &index, &lanes)?;
    let (open, unreported) = join(&mut index, &mut states, &queued)?;
    let mut cleanup = orphans;
    cleanup.extend(states.into_keys().map(|sequence| Op::Delete(record::state_key(sequence))));
    if !cleanup.is_empty() {
        warn!(count = cleanup.len(), "removing pieces of events that are not whole");
        store.commit(cleanup)?;
    }
    let opt_outs = read_opt_outs(store)?;
    Ok(Recovered { index, subscriptions, lanes, counters, opt_outs, open, unreported })
}

fn buffer_ids(store: &dyn Store) -> Result<[String; 2], StoreError> {
    let mut ids = [String::new(), String::new()];
    let mut ops = Vec::new();
    for (id, name) in ids.iter_mut().zip(BUFFER_ID_NAMES) {
        match store.get(&record::meta_key(name))? {
            Some(stored) => *id = String::from_utf8(stored).map_err(|_| BadRecord("buffer id"))?,
            None => {
                *id = Uuid::now_v7().to_string();
                ops.push(Op::Put(record::meta_key(name), id.clone().into_bytes()));
            }
        }
    }
    if !ops.is_empty() {
        store.commit(ops)?;
    }
    Ok(ids)
}

/// Fills the index. Returns what removes chunks without a beginning.
fn read_events(
    store: &dyn Store,
    index: &mut Index,
    subscriptions: &mut Subscriptions,
) -> Result<Vec<Op>, StoreError> {
    let (from, to) = record::all_events();
    let mut orphans = Vec::new();
    let mut bad = Vec::new();
    store.scan(&from, &to, &mut |key, value| {
        let Some((sequence, chunk)) = record::sequence_of(key) else { return true };
        if chunk > 0 {
            if index.get(sequence).is_none() && !bad.contains(&sequence) {
                orphans.push(Op::Delete(key.to_vec()));
            }
            return true;
        }
        match slot_of(value, subscriptions) {
            Some(slot) => {
                index.bytes += u64::from(slot.bytes);
                index.insert(sequence, slot);
            }
            // Its header goes over several chunks, or it is damaged.
            None => bad.push(sequence),
        }
        true
    })?;
    for sequence in bad {
        let blob = record::read_blob(store, |chunk| record::event_key(sequence, chunk))?;
        let slot = blob.and_then(|blob| {
            let mut head = u32::try_from(blob.len()).ok()?.to_be_bytes().to_vec();
            head.extend_from_slice(&blob);
            slot_of(&head, subscriptions)
        });
        let slot = slot.ok_or(BadRecord("event"))?;
        index.bytes += u64::from(slot.bytes);
        index.insert(sequence, slot);
    }
    Ok(orphans)
}

fn slot_of(head: &[u8], subscriptions: &mut Subscriptions) -> Option<Slot> {
    let (length, first) = record::split_head(head)?;
    let (header, _) = record::decode_event_header(first)?;
    let mut deliveries = Vec::with_capacity(header.subscriptions.len());
    for id in &header.subscriptions {
        let id: WebhookSubscriptionId = id.parse().ok()?;
        deliveries.push(Delivery {
            due_ms: header.receive_ms,
            subscription: subscriptions.number(&id),
            attempts: 0,
            state: DeliveryState::Pending,
        });
    }
    Some(Slot {
        receive_ms: header.receive_ms,
        bytes: u32::try_from(length).ok()?,
        deliveries: deliveries.into(),
        reported: Reported::No,
        has_state: false,
    })
}

fn read_states(store: &dyn Store) -> Result<HashMap<u64, Vec<u8>>, StoreError> {
    let (from, to) = record::all_states();
    let mut states = HashMap::new();
    store.scan(&from, &to, &mut |key, value| {
        if let Some((sequence, _)) = record::sequence_of(key) {
            states.insert(sequence, value.to_vec());
        }
        true
    })?;
    Ok(states)
}

/// A lane as the disk has it, and its bytes. `queued` gets the events whose report waits.
fn read_lane(
    store: &dyn Store,
    lane: Lane,
    buffer_id: String,
    queued: &mut HashSet<u64>,
) -> Result<(LaneState, u64), StoreError> {
    let (mut first, mut last, mut oldest_ms, mut bytes) = (None, 0, None, 0);
    let (from, to) = (record::report_key(lane, 0, 0), record::report_key(lane, u64::MAX, u16::MAX));
    let mut is_bad = false;
    store.scan(&from, &to, &mut |key, value| {
        let Some((sequence, chunk)) = record::report_sequence_of(key) else { return true };
        if chunk > 0 {
            return true;
        }
        let head = record::split_head(value)
            .and_then(|(length, first)| Some((length, record::report_header(first)?)));
        let Some((length, (time_ms, event))) = head else {
            is_bad = true;
            return false;
        };
        first.get_or_insert(sequence);
        oldest_ms.get_or_insert(time_ms);
        last = sequence;
        bytes += length as u64;
        if event != 0 {
            queued.insert(event);
        }
        true
    })?;
    if is_bad {
        return Err(BadRecord("report").into());
    }
    let acked = first.map_or(0, |first: u64| first - 1);
    Ok((LaneState::new(buffer_id, acked, last.max(acked), oldest_ms), bytes))
}

fn read_counters(store: &dyn Store, index: &Index, lanes: &[LaneState; 2]) -> Result<Counters, StoreError> {
    let used = [index.iter().last().map_or(0, |(sequence, _)| sequence), lanes[0].durable, lanes[1].durable];
    let mut next = [0; 3];
    for ((next, name), used) in next.iter_mut().zip(COUNTER_NAMES).zip(used) {
        let stored = store.get(&record::meta_key(name))?;
        let reserved = stored.and_then(|bytes| bytes.try_into().ok()).map_or(1, u64::from_be_bytes);
        *next = reserved.max(used + 1);
    }
    let [event, urgent, logs] = COUNTER_NAMES;
    Ok(Counters {
        event: Counter::new(event, next[0]),
        reports: [Counter::new(urgent, next[1]), Counter::new(logs, next[2])],
    })
}

/// Brings events, their states and their reports together. What is left in `states` belongs to no event.
fn join(
    index: &mut Index,
    states: &mut HashMap<u64, Vec<u8>>,
    queued: &HashSet<u64>,
) -> Result<(Vec<OpenDelivery>, Vec<u64>), StoreError> {
    let (mut open, mut unreported) = (Vec::new(), Vec::new());
    for (event, slot) in index.iter_mut() {
        let state = states.remove(&event);
        slot.has_state = state.is_some();
        slot.reported = match (queued.contains(&event), slot.has_state) {
            (true, _) => Reported::Queued,
            (false, true) => Reported::Acked,
            (false, false) => Reported::No,
        };
        match state {
            Some(state) => record::decode_state(&state, slot.deliveries.as_mut_slice())?,
            // Reported without a state on disk: it was settled, and only the ack is missing.
            None if slot.reported == Reported::Queued => {
                for delivery in slot.deliveries.as_mut_slice() {
                    delivery.state = DeliveryState::Delivered;
                }
            }
            None => unreported.push(event),
        }
        let unsettled = slot.deliveries.as_slice().iter().filter(|delivery| !delivery.state.is_settled());
        open.extend(unsettled.map(|delivery| OpenDelivery {
            event,
            subscription: delivery.subscription,
            due_ms: delivery.due_ms,
            held: delivery.state == DeliveryState::Held,
        }));
    }
    Ok((open, unreported))
}

fn read_opt_outs(store: &dyn Store) -> Result<HashMap<String, v1::OptOut>, StoreError> {
    let (from, to) = record::all_opt_outs();
    let mut opt_outs = HashMap::new();
    let mut is_bad = false;
    store.scan(&from, &to, &mut |_, value| match v1::OptOut::decode(value) {
        Ok(opt_out) => {
            opt_outs.insert(opt_out.id.clone(), opt_out);
            true
        }
        Err(_) => {
            is_bad = true;
            false
        }
    })?;
    if is_bad { Err(BadRecord("opt-out").into()) } else { Ok(opt_outs) }
}
