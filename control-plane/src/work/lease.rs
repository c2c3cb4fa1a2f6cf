//! Who holds which work, and what each open stream has looked at. In memory, since it means nothing after a restart.
//!
//! A stream remembers up to which place it has looked at the work of each kind: everything before that is leased,
//! gone or not for it. So a long queue is read once per stream and not with every lease. What is given back lowers
//! the places of all streams that have passed it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    fleet,
    store::work::{Waiting, WorkKind},
};

/// How long an agent has to make work durable and acknowledge it, from when it got it or last acknowledged some.
pub const LEASE_TIME: Duration = Duration::from_secs(30);
/// Work that one stream holds unacknowledged, of deliveries and of all other kinds together each; more waits in
/// the queue.
pub(super) const LEASED_PER_STREAM_MAX: usize = 256;
/// The same in bytes, so that large events fill no memory. One piece may be larger.
const LEASED_BYTES_MAX: i64 = 4 << 20;
/// Work that cannot be opened and is remembered as such; beyond it, it is tried again.
const UNREADABLE_MAX: usize = 10_000;

/// What open streams hold.
#[derive(Default)]
pub(super) struct Leases {
    /// The stream that holds a piece of work.
    by_work: HashMap<String, u64>,
    streams: HashMap<u64, Open>,
    made: u64,
    /// Places of work that cannot be opened: for nobody.
    unreadable: HashSet<i64>,
}

/// An open stream.
pub(super) struct Open {
    pub(super) agent_id: String,
    pub(super) region: String,
    /// The tenant of the agent; None for an agent of the platform.
    pub(super) tenant_id: Option<String>,
    /// Whether its agent knows how to take over deliveries.
    pub(super) takes_hand_overs: bool,
    /// Notified when there may be work for it.
    pub(super) woken: Arc<Notify>,
    /// Up to where it has looked, by kind.
    looked: HashMap<WorkKind, i64>,
    /// When it begins to look from the start again.
    afresh: Instant,
    held: HashMap<String, Held>,
    /// When what it holds is free again.
    end: Instant,
}

struct Held {
    kind: WorkKind,
    seq: i64,
    bytes: i64,
}

/// Whether kinds of work share a limit.
fn is_alike(one: WorkKind, other: WorkKind) -> bool {
    (one == WorkKind::DeliveryHandOver) == (other == WorkKind::DeliveryHandOver)
}

impl Open {
    /// Pieces and bytes held of a kind and those that share its limit.
    fn load(&self, kind: WorkKind) -> (usize, i64) {
        let alike = self.held.values().filter(|held| is_alike(held.kind, kind));
        alike.fold((0, 0), |(count, bytes), held| (count + 1, bytes + held.bytes))
    }

    fn is_full(&self, kind: WorkKind, next_bytes: i64) -> bool {
        let (count, bytes) = self.load(kind);
        count >= LEASED_PER_STREAM_MAX || (count > 0 && bytes + next_bytes > LEASED_BYTES_MAX)
    }

    pub(super) fn serves(&self, regions: &[String]) -> bool {
        fleet::serves(regions, &self.region)
    }
}

impl Leases {
    pub(super) fn open(
        &mut self,
        agent_id: &str,
        region: &str,
        tenant_id: Option<&str>,
    ) -> (u64, Arc<Notify>) {
        self.made += 1;
        let woken = Arc::new(Notify::new());
        let now = Instant::now();
        let open = Open {
            agent_id: agent_id.to_owned(),
            region: region.to_owned(),
            tenant_id: tenant_id.map(str::to_owned),
            takes_hand_overs: false,
            woken: Arc::clone(&woken),
            looked: HashMap::new(),
            afresh: now + LEASE_TIME,
            held: HashMap::new(),
            end: now,
        };
        self.streams.insert(self.made, open);
        (self.made, woken)
    }

    /// Ends a stream; what it holds is free.
    pub(super) fn close(&mut self, stream: u64) {
        self.free_all(stream);
        self.streams.remove(&stream);
    }

    pub(super) fn stream(&mut self, stream: u64) -> &mut Open {
        self.streams.get_mut(&stream).expect("a stream is open as long as whoever asks for it")
    }

    pub(super) fn streams(&self) -> impl Iterator<Item = &Open> {
        self.streams.values()
    }

    /// Wakes streams, to look for work.
    pub(super) fn wake(&self, whom: impl Fn(&Open) -> bool) {
        self.streams.values().filter(|open| whom(open)).for_each(|open| open.woken.notify_one());
    }

    /// Frees what is held for too long.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let late: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, open)| open.end <= now && !open.held.is_empty())
            .map(|(id, _)| *id)
            .collect();
        late.into_iter().for_each(|stream| self.free_all(stream));
    }

    /// When the next stream holds something for too long; None when none holds anything.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.streams.values().filter(|open| !open.held.is_empty()).map(|open| open.end).min()
    }

    /// Where a stream is to look on for work of a kind. None when it holds so much that it is to do some first.
    pub(super) fn look_from(&mut self, stream: u64, kind: WorkKind) -> Option<i64> {
        let open = self.stream(stream);
        let now = Instant::now();
        if open.afresh <= now {
            // What was not for it may be by now: an instance has another route.
            open.looked.clear();
            open.afresh = now + LEASE_TIME;
        }
        let (count, bytes) = open.load(kind);
        let may = count <= LEASED_PER_STREAM_MAX / 2 && bytes <= LEASED_BYTES_MAX / 2;
        may.then(|| open.looked.get(&kind).copied().unwrap_or(0))
    }

    /// Leases those of `rows` that are free and adds their places to `taken`. False when it came to one that the stream
    /// cannot hold or its agent's configuration is too old for: there it looks on next time.
    pub(super) fn take(
        &mut self,
        stream: u64,
        kind: WorkKind,
        rows: Vec<Waiting>,
        applied_version: u64,
        taken: &mut Vec<i64>,
    ) -> Took {
        let Self { by_work, streams, unreadable, .. } = self;
        let open = streams.get_mut(&stream).expect("a stream is open as long as whoever asks for it");
        for row in rows {
            let is_free = !by_work.contains_key(&row.id) && !unreadable.contains(&row.seq);
            if is_free {
                if row.version > applied_version {
                    return Took::HoldsBack;
                }
                if open.is_full(kind, row.bytes) {
                    return Took::Full;
                }
                if open.held.is_empty() {
                    open.end = Instant::now() + LEASE_TIME;
                }
                by_work.insert(row.id.clone(), stream);
                open.held.insert(row.id, Held { kind, seq: row.seq, bytes: row.bytes });
                taken.push(row.seq);
            }
            open.looked.insert(kind, row.seq);
        }
        Took::All
    }

    /// What the stream held of these is done. Its agent is at work, so that it keeps the rest.
    pub(super) fn done(&mut self, stream: u64, ids: &[String]) {
        for id in ids {
            if let Some(holder) = self.by_work.remove(id)
                && let Some(open) = self.streams.get_mut(&holder)
            {
                open.held.remove(id);
            }
        }
        self.stream(stream).end = Instant::now() + LEASE_TIME;
    }

    /// Those of `ids` that the stream holds.
    pub(super) fn held_of(&self, stream: u64, ids: &[String]) -> Vec<String> {
        ids.iter().filter(|id| self.is_held_by(stream, id)).cloned().collect()
    }

    /// Whether the stream holds it.
    pub(super) fn is_held_by(&self, stream: u64, id: &str) -> bool {
        self.by_work.get(id) == Some(&stream)
    }

    /// Whether somebody holds it.
    pub(super) fn is_held(&self, id: &str) -> bool {
        self.by_work.contains_key(id)
    }

    /// Gives work back that the stream holds.
    pub(super) fn free(&mut self, stream: u64, ids: &[String]) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let mut freed = Vec::new();
        for id in ids {
            // What it holds no more may be another's by now.
            if let Some(held) = open.held.remove(id) {
                self.by_work.remove(id);
                freed.push(held);
            }
        }
        self.look_again(&freed);
    }

    /// Gives back what the stream holds at these places.
    pub(super) fn free_places(&mut self, stream: u64, seqs: &[i64]) {
        let held = &self.stream(stream).held;
        let at = held.iter().filter(|(_, held)| seqs.contains(&held.seq)).map(|(id, _)| id.clone());
        let ids: Vec<String> = at.collect();
        self.free(stream, &ids);
    }

    /// Work that was leased and is not there or cannot be opened.
    pub(super) fn forget(&mut self, stream: u64, seqs: &HashSet<i64>, unreadable: &[i64]) {
        let Self { by_work, streams, .. } = self;
        if let Some(open) = streams.get_mut(&stream) {
            open.held.retain(|id, held| {
                let is_gone = seqs.contains(&held.seq);
                if is_gone {
                    by_work.remove(id);
                }
                !is_gone
            });
        }
        if self.unreadable.len() + unreadable.len() > UNREADABLE_MAX {
            self.unreadable.clear();
        }
        self.unreadable.extend(unreadable);
    }

    fn free_all(&mut self, stream: u64) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let held = std::mem::take(&mut open.held);
        for id in held.keys() {
            self.by_work.remove(id);
        }
        let freed: Vec<Held> = held.into_values().collect();
        self.look_again(&freed);
    }

    /// Lets every stream that has passed work which is free again look at it.
    fn look_again(&mut self, freed: &[Held]) {
        if freed.is_empty() {
            return;
        }
        for open in self.streams.values_mut() {
            for held in freed {
                if let Some(looked) = open.looked.get_mut(&held.kind) {
                    *looked = (*looked).min(held.seq - 1);
                }
            }
            open.woken.notify_one();
        }
    }
}

/// How far a stream got with a page of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Took {
    /// Through all of it.
    All,
    /// To one more than it may hold.
    Full,
    /// To one that its agent's configuration is too old for.
    HoldsBack,
}
