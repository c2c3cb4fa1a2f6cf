//! What the benches need of the buffer's insides. Nothing else uses it.

use std::{error::Error, path::Path, sync::Arc};

use gateway_core::id::EventId;
use gateway_proto::v1;
use uuid::Uuid;

use super::{
    journal::{
        Counters, Journal,
        files::RealFiles,
        format::{self, FIRST_VERSION, Kind},
    },
    record::{self, EventHeader, Mark},
    view::View,
};

/// Length of a segment, as agents have it.
pub const SEGMENT_BYTES: u64 = 32 << 20;

/// The id of an event by its number.
pub fn event_id(number: u64) -> EventId {
    EventId::derive(&["bench", &number.to_string()])
}

/// A journal that forgets what it wrote.
pub struct BenchJournal {
    journal: Journal,
    counters: Counters,
}

impl BenchJournal {
    /// In a directory.
    pub fn new(directory: &Path) -> Self {
        let files = Box::new(RealFiles);
        let (id, segments) = (Uuid::now_v7(), Default::default());
        let journal = Journal::new(directory, SEGMENT_BYTES, id, files, segments, (0, 0));
        Self { journal, counters: Counters::fresh() }
    }

    /// Appends records; they are on disk when it returns.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn append(&mut self, records: &[u8]) -> Result<(), Box<dyn Error>> {
        self.journal.prepare(&self.counters, FIRST_VERSION)?;
        self.journal.append(records)?;
        if self.journal.oldest().is_some() {
            self.journal.remove_oldest()?;
        }
        Ok(())
    }
}

/// Records of so many events whose logs have about so many bytes.
pub fn event_records(count: u64, bytes: usize) -> Vec<u8> {
    let log = v1::InboundLog { payload_json: "x".repeat(bytes), ..v1::InboundLog::default() };
    let mut records = Vec::new();
    for number in 1..=count {
        let (id, subscriptions) = (event_id(number), vec!["sub_bench"]);
        let header = EventHeader { number, id, receive_ms: 0, contact: 0, subscriptions };
        format::put(&mut records, Kind::Event, 0, |out| record::put_event(out, &header, &log));
    }
    records
}

/// Marks in an index.
#[derive(Clone)]
pub struct BenchIndex(Arc<View>);

impl BenchIndex {
    /// In a directory.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, Box<dyn Error>> {
        Ok(Self(Arc::new(View::open(directory)?)))
    }

    /// Takes the marks of these ids.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn apply(&self, ids: &[EventId]) -> Result<(), Box<dyn Error>> {
        Ok(self.0.apply(ids.iter().map(|id| (*id, Mark::new(0, 1))).collect(), None)?)
    }

    /// Whether it has the mark of an id.
    pub fn contains(&self, id: &EventId) -> bool {
        self.0.get(id).is_some()
    }
}
