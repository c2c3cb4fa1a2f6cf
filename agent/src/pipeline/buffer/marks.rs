//! What was seen in the last eight days. The newest marks are in memory, all of them in the index, and their
//! truth is the journal and, for segments that left, the mark files.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    sync::{Arc, Condvar, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use gateway_core::id::EventId;

use super::{filter::Filter, record::Mark, view::View};

/// Marks in memory that the index does not have yet. While there are more, commits wait for the index; without one
/// the oldest are forgotten here, and the index gets them when it is built.
const RECENT_MAX: usize = 200_000;

/// The marks. Read by anybody, written by the buffer's thread.
#[derive(Default)]
pub(super) struct Marks {
    recent: Mutex<Recent>,
    applied: Condvar,
    view: RwLock<Option<Arc<View>>>,
}

/// Longest wait for the index. What is forgotten after it costs repeated webhooks until the index is built anew.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);

/// How much of what the index has the filter knows.
#[derive(Default)]
enum Known {
    /// Not all: every id may have been seen.
    #[default]
    Part,
    /// Not all yet; marks from now on are in it.
    Building(Filter),
    /// All.
    All(Filter),
}

/// An event id is a hash already.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut first = [0; 8];
        let count = bytes.len().min(first.len());
        first[..count].copy_from_slice(&bytes[..count]);
        self.0 ^= u64::from_ne_bytes(first);
    }

    fn write_usize(&mut self, _length: usize) {}
}

#[derive(Default)]
struct Recent {
    known: Known,
    marks: HashMap<EventId, (Mark, u64), BuildHasherDefault<IdHasher>>,
    batches: VecDeque<(u64, Vec<EventId>)>,
    next_batch: u64,
}

impl Marks {
    /// The mark of what has this id. An index that cannot be read knows nothing.
    pub(super) fn get(&self, id: &EventId) -> Option<Mark> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((mark, _)) = recent.marks.get(id) {
            return Some(*mark);
        }
        if matches!(&recent.known, Known::All(filter) if !filter.may_contain(id)) {
            return None;
        }
        drop(recent);
        self.view()?.get(id)
    }

    pub(super) fn view(&self) -> Option<Arc<View>> {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Uses another index, or none.
    pub(super) fn set_view(&self, view: Option<Arc<View>>) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// Keeps marks until the index has them. Returns what to name in [`Self::applied`].
    pub(super) fn add(&self, marks: &[(EventId, Mark)]) -> u64 {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = recent.next_batch;
        recent.next_batch += 1;
        for (id, mark) in marks {
            if let Known::Building(filter) | Known::All(filter) = &mut recent.known {
                filter.insert(id);
            }
            recent.marks.insert(*id, (*mark, batch));
        }
        recent.batches.push_back((batch, marks.iter().map(|(id, _)| *id).collect()));
        batch
    }

    /// Waits while there are too many, for the index to take some, as long as there is one.
    pub(super) fn wait_for_room(&self) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let give_up = Instant::now() + ROOM_TIMEOUT;
        while recent.marks.len() > RECENT_MAX {
            let now = Instant::now();
            if now >= give_up || self.view().is_none() {
                while recent.marks.len() > RECENT_MAX {
                    recent.forget_oldest();
                }
                return;
            }
            let waited = self.applied.wait_timeout(recent, give_up - now);
            recent = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the index has all of them.
    #[cfg(test)]
    pub(super) fn is_applied(&self) -> bool {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner).batches.is_empty()
    }

    /// Begins a new filter with room for about so many ids. Until [`Self::end_filter`] ids are looked up in the
    /// index.
    pub(super) fn begin_filter(&self, count: usize) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut filter = Filter::with_room_for(count);
        recent.marks.keys().for_each(|id| filter.insert(id));
        recent.known = Known::Building(filter);
    }

    /// Adds what the index has to the filter.
    pub(super) fn extend_filter(&self, marks: &[(EventId, Mark)]) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Known::Building(filter) = &mut recent.known {
            marks.iter().for_each(|(id, _)| filter.insert(id));
        }
    }

    /// The filter knows all that the index has.
    pub(super) fn end_filter(&self) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.known = match std::mem::take(&mut recent.known) {
            Known::Building(filter) => Known::All(filter),
            known => known,
        };
    }

    /// How many ids the filter has, if it has grown too full.
    pub(super) fn full_filter(&self) -> Option<usize> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        match &recent.known {
            Known::All(filter) if filter.is_full() => Some(filter.len()),
            _ => None,
        }
    }

    /// The index has all batches up to this one.
    pub(super) fn applied(&self, batch: u64) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        while recent.batches.front().is_some_and(|(oldest, _)| *oldest <= batch) {
            recent.forget_oldest();
        }
        self.applied.notify_all();
    }
}

impl Recent {
    fn forget_oldest(&mut self) {
        let Some((batch, ids)) = self.batches.pop_front() else { return self.marks.clear() };
        for id in ids {
            // A newer mark of the same id stays.
            if self.marks.get(&id).is_some_and(|(_, newest)| *newest == batch) {
                self.marks.remove(&id);
            }
        }
    }
}
