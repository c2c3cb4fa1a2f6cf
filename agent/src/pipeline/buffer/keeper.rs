//! The keeper's thread: does for the buffer's thread what takes long and nobody waits for. It brings marks into
//! the index, forgets those that expired, and reads old segments so that what is live in them can move on.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use gateway_core::id::EventId;
use tracing::{error, info, warn};

use super::{
    journal::{
        files::quarantine,
        format::{Kind, MOVED, Record},
        read::{Found, scan},
    },
    mark_files::MarkFiles,
    record::{self, Mark, day_of},
    shared::Shared,
    view::{self, Position, View, ViewError},
};

/// Bytes of records in one note.
const MOVE_BYTES: usize = 512 * 1024;
/// Notes with records that wait. When there are as many, reading waits.
const MOVES_WAITING_MAX: usize = 4;
/// Marks that the index takes at once.
const APPLY_MARKS: usize = 2_048;
/// How often the index learns how far the journal is.
const NOTE_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked for what has expired.
const SWEEP_PAUSE: Duration = Duration::from_secs(3_600);
/// How long to wait after the disk refused.
const FAILURE_PAUSE: Duration = Duration::from_secs(5);
/// How long opening the index may take. sled can hang on a damaged one.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// One reading of an old segment. A segment is read again when a commit failed meanwhile; what is still on its
/// way from the reading before must not count for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    /// The segment.
    pub(super) segment: u32,
    /// Counts all readings.
    pub(super) number: u64,
}

/// What the keeper tells the buffer's thread.
pub(super) enum Note {
    /// Records of a segment that is read; those that are live move on.
    Records {
        /// Of which reading.
        reading: Reading,
        /// Each with where it begins.
        records: Vec<(u32, Kind, Vec<u8>)>,
    },
    /// All records of the segment were sent and its marks are kept elsewhere: it may go.
    SegmentRead {
        /// By which reading.
        reading: Reading,
    },
    /// The segment could not be read, or its marks not be kept elsewhere.
    SegmentUnread {
        /// Which reading failed.
        reading: Reading,
    },
    /// An event that is owed could not be read.
    EventUnreadable,
    /// Mark files are damaged.
    MarksUnreadable {
        /// How much of them.
        bytes: u64,
    },
    /// The index was damaged and is built again.
    IndexReplaced {
        /// Why.
        cause: &'static str,
        /// Where the damaged one is, in quarantine.
        name: Option<String>,
    },
}

/// What the keeper is asked to do.
#[derive(Default)]
struct Jobs {
    marks: Vec<MarkBatch>,
    marks_count: usize,
    read_segment: Option<Reading>,
    moves_waiting: usize,
    is_closing: bool,
}

/// The way to the keeper.
#[derive(Default)]
pub(super) struct KeeperInbox {
    jobs: Mutex<Jobs>,
    arrived: Condvar,
}

impl KeeperInbox {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks that are on disk now, up to a position of the journal.
    pub(super) fn marks(&self, batch: u64, marks: Vec<(EventId, Mark)>, position: Position) {
        let mut jobs = self.lock();
        let is_first = jobs.marks.is_empty();
        jobs.marks_count += marks.len();
        jobs.marks.push((batch, marks, position));
        if is_first || jobs.marks_count >= APPLY_MARKS {
            self.arrived.notify_one();
        }
    }

    /// Asks for the records of a segment.
    pub(super) fn read_segment(&self, reading: Reading) {
        self.lock().read_segment = Some(reading);
        self.arrived.notify_one();
    }

    /// A note with records was dealt with.
    pub(super) fn moved(&self) {
        let mut jobs = self.lock();
        jobs.moves_waiting = jobs.moves_waiting.saturating_sub(1);
        self.arrived.notify_one();
    }

    /// Ends the thread.
    pub(super) fn close(&self) {
        self.lock().is_closing = true;
        self.arrived.notify_all();
    }
}

/// What the keeper needs.
pub(super) struct Keeper {
    pub(super) buffer: PathBuf,
    pub(super) marks_bytes_max: u64,
    /// How long marks wait for company.
    pub(super) gather: Duration,
    pub(super) inbox: Arc<KeeperInbox>,
    pub(super) shared: Arc<Shared>,
    pub(super) mark_files: MarkFiles,
    /// Whether the index lacks marks that the journal and the mark files have.
    pub(super) is_behind: bool,
    /// Whether the filter knows what the index has.
    pub(super) is_filter_built: bool,
    /// Marks that the index does not have yet.
    pub(super) pending: Vec<MarkBatch>,
    /// The newest segment whose marks are in the mark files.
    pub(super) kept: u32,
}

/// Marks of a commit: their batch, and the position of the journal behind them.
pub(super) type MarkBatch = (u64, Vec<(EventId, Mark)>, Position);

/// Batches that wait for the index. Beyond it they are left to the next time it is built.
const PENDING_MAX: usize = 100_000;

/// Why the index cannot be built now.
#[derive(Debug, thiserror::Error)]
enum RebuildError {
    #[error(transparent)]
    View(#[from] ViewError),
    #[error("read the marks")]
    Io(#[from] std::io::Error),
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(self) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("keeper".to_owned()).spawn(move || self.run())
    }

    /// Works until closed.
    fn run(mut self) {
        let mut next_sweep = Instant::now();
        loop {
            let is_full = self.shared.marks.full_filter().is_some();
            if self.is_behind || is_full || !self.is_filter_built || self.shared.marks.view().is_none() {
                self.rebuild();
            }
            let (reading, is_closing) = self.wait(next_sweep);
            self.apply();
            if is_closing {
                return self.close();
            }
            if let Some(reading) = reading {
                self.read(reading);
            }
            if next_sweep <= Instant::now() {
                self.sweep();
                next_sweep = Instant::now() + SWEEP_PAUSE;
            }
        }
    }

    /// Waits for something to do, at most until then, and until there are enough marks or they have waited for
    /// company long enough. Returns the segment to read and whether to end.
    fn wait(&mut self, until: Instant) -> (Option<Reading>, bool) {
        let inbox = Arc::clone(&self.inbox);
        let mut jobs = inbox.lock();
        let (mut gather_until, mut note_at) = (None, Instant::now() + NOTE_INTERVAL);
        while jobs.marks_count < APPLY_MARKS && jobs.read_segment.is_none() && !jobs.is_closing {
            let now = Instant::now();
            let mut wake = until;
            if let Some((_, _, newest)) = jobs.marks.last() {
                let newest = *newest;
                wake = wake.min(*gather_until.get_or_insert(now + self.gather)).min(note_at);
                if now >= note_at {
                    drop(jobs);
                    self.note_end(newest);
                    note_at = now + NOTE_INTERVAL;
                    jobs = inbox.lock();
                    continue;
                }
            }
            if wake <= now {
                break;
            }
            jobs = inbox.arrived.wait_timeout(jobs, wake - now).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.pending.append(&mut jobs.marks);
        jobs.marks_count = 0;
        let surplus = self.pending.len().saturating_sub(PENDING_MAX);
        self.pending.drain(..surplus);
        self.is_behind |= surplus > 0;
        (jobs.read_segment.take(), jobs.is_closing)
    }

    /// Lets the next start see whether the end of the journal is missing.
    fn note_end(&mut self, newest: Position) {
        let noted = self.shared.marks.view().map_or(Ok(()), |view| view.note_end(newest));
        if let Err(failure) = noted {
            self.lose_view(&failure);
        }
    }

    fn close(&self) {
        if let Some(view) = self.shared.marks.view()
            && let Err(failure) = view.flush()
        {
            warn!(error = &failure as &dyn std::error::Error, "failed to write the buffer's index");
        }
        self.shared.marks.set_view(None);
    }

    /// Brings marks into the index, a few thousand at a time.
    fn apply(&mut self) {
        while !self.is_behind && !self.pending.is_empty() {
            let Some(view) = self.shared.marks.view() else { return };
            let (mut count, mut batches) = (0, 0);
            while count < APPLY_MARKS && batches < self.pending.len() {
                count += self.pending[batches].1.len();
                batches += 1;
            }
            let taken = &self.pending[..batches];
            let Some((last, _, position)) = taken.last() else { return };
            let (last, position) = (*last, *position);
            let marks = taken.iter().flat_map(|(_, marks, _)| marks).copied().collect();
            match view.apply(marks, Some(position)) {
                Ok(()) => {
                    self.shared.marks.applied(last);
                    self.pending.drain(..batches);
                }
                Err(failure) => self.lose_view(&failure),
            }
        }
        if self.pending.is_empty() {
            // What a burst needed is given back.
            self.pending = Vec::new();
        }
    }

    /// The index cannot be used: another one is made from the journal.
    fn lose_view(&mut self, failure: &ViewError) {
        error!(
            error = failure as &dyn std::error::Error,
            "failed to use the buffer's index; it is built again from the journal"
        );
        self.shared.marks.set_view(None);
        self.is_behind = true;
        if !failure.is_full() {
            let name = set_aside(&self.buffer, "damaged");
            self.shared.inbox.note(Note::IndexReplaced { cause: "the index could not be used", name });
        }
    }

    /// Fills the filter: from the index, or, when that lacks marks, from the mark files and the journal, and then the
    /// index too.
    fn rebuild(&mut self) {
        let was_behind = self.is_behind;
        match self.try_rebuild() {
            Ok(()) => {
                self.is_filter_built = true;
                self.is_behind = false;
                if was_behind {
                    info!("the buffer's index is up to date");
                }
            }
            Err(RebuildError::View(failure)) if !was_behind => self.lose_view(&failure),
            Err(failure) => {
                warn!(
                    error = &failure as &dyn std::error::Error,
                    "failed to build the buffer's index; trying again"
                );
                let jobs = self.inbox.lock();
                let wait = |jobs: &mut Jobs| !jobs.is_closing;
                drop(self.inbox.arrived.wait_timeout_while(jobs, FAILURE_PAUSE, wait));
            }
        }
    }

    fn try_rebuild(&mut self) -> Result<(), RebuildError> {
        let view = match self.shared.marks.view() {
            Some(view) => view,
            None => Arc::new(View::open(&self.buffer)?),
        };
        // Repeats are recognized from here on as far as the marks are in.
        self.shared.marks.set_view(Some(Arc::clone(&view)));
        let count = self.shared.marks.full_filter().unwrap_or(0).max(self.mark_files.count()?);
        self.shared.marks.begin_filter(count);
        if self.is_behind {
            view.forget(u32::MAX)?;
            self.fill(&view)?;
        } else {
            view.visit(&mut |marks| self.shared.marks.extend_filter(marks))?;
        }
        self.shared.marks.end_filter();
        Ok(())
    }

    /// Brings all marks of the mark files and the journal into an empty index.
    fn fill(&self, view: &View) -> Result<(), RebuildError> {
        let today = day_of(gateway_runtime::clock::now().as_millisecond());
        let mut failure = None;
        let mut take = |marks: &[(EventId, Mark)]| {
            self.shared.marks.extend_filter(marks);
            if let Err(error) = view.apply(marks.to_vec(), None) {
                failure.get_or_insert(error);
            }
        };
        let unreadable_bytes = self.mark_files.read(today, &mut take)?;
        for number in self.shared.journal.ends().into_keys() {
            match self.shared.journal.read_segment(number) {
                Ok(segment) => take(&marks_of(&segment)),
                // It left meanwhile, and its marks are in the mark files.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        if unreadable_bytes > 0 {
            error!(
                unreadable_bytes,
                "mark files of the buffer are damaged: some repeats will not be recognized"
            );
            self.shared.inbox.note(Note::MarksUnreadable { bytes: unreadable_bytes });
        }
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    /// Reads a segment: keeps its marks elsewhere, and sends its records, those that the buffer's thread may
    /// need, in portions.
    fn read(&mut self, reading: Reading) {
        let segment = match self.read_and_keep_marks(reading.segment) {
            Ok(segment) => segment,
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    segment = reading.segment,
                    "failed to read an old segment or to keep its marks; it stays for now"
                );
                return self.shared.inbox.note(Note::SegmentUnread { reading });
            }
        };
        let mut records = Vec::new();
        let mut bytes = 0;
        scan(&segment, None, &mut |found| {
            let Found::Record(offset, record) = found else { return };
            if matches!(record.kind, Kind::Mark | Kind::Acked | Kind::Left) {
                return;
            }
            bytes += record.payload.len();
            let offset = u32::try_from(offset).expect("a segment is below 4 GiB");
            records.push((offset, record.kind, record.payload.to_vec()));
            if bytes >= MOVE_BYTES {
                bytes = 0;
                self.send(reading, std::mem::take(&mut records));
            }
        });
        self.send(reading, records);
        self.shared.inbox.note(Note::SegmentRead { reading });
    }

    /// A segment, whose marks are in the mark files then. They are added once, however often it is read.
    fn read_and_keep_marks(&mut self, number: u32) -> std::io::Result<Vec<u8>> {
        let segment = match self.shared.journal.read_segment(number) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        if number > self.kept {
            self.mark_files.add(&marks_of(&segment))?;
            self.kept = number;
            // The index must not be behind a segment that is gone, nor seem to be.
            let has_all = !self.is_behind && self.pending.is_empty();
            let reached = if has_all { number.saturating_add(1) } else { 0 };
            let view = self.shared.marks.view();
            let noted = view.map_or(Ok(()), |view| view.reaches(reached).and_then(|()| view.flush()));
            if let Err(failure) = noted {
                self.lose_view(&failure);
            }
        }
        Ok(segment)
    }

    fn send(&self, reading: Reading, records: Vec<(u32, Kind, Vec<u8>)>) {
        if records.is_empty() {
            return;
        }
        let jobs = self.inbox.lock();
        let wait = |jobs: &mut Jobs| jobs.moves_waiting >= MOVES_WAITING_MAX && !jobs.is_closing;
        let waited = self.inbox.arrived.wait_while(jobs, wait);
        waited.unwrap_or_else(PoisonError::into_inner).moves_waiting += 1;
        self.shared.inbox.note(Note::Records { reading, records });
    }

    /// Forgets what has expired.
    fn sweep(&mut self) {
        let today = day_of(gateway_runtime::clock::now().as_millisecond());
        let first_kept = self.mark_files.forget(today, self.marks_bytes_max).unwrap_or_else(|error| {
            warn!(error = &error as &dyn std::error::Error, "failed to remove old mark files");
            today
        });
        let forgotten = self.shared.marks.view().map_or(Ok(()), |view| view.forget(first_kept));
        if let Err(failure) = forgotten {
            self.lose_view(&failure);
        }
    }
}

/// The marks that the records of a segment make.
fn marks_of(segment: &[u8]) -> Vec<(EventId, Mark)> {
    let mut marks = Vec::new();
    scan(segment, None, &mut |found| {
        if let Found::Record(_, record) = found {
            marks.extend(mark_of(record));
        }
    });
    marks
}

/// The mark that a record makes. An event that was moved has its mark, with the repeats that were counted, in a
/// mark file.
pub(super) fn mark_of(record: Record<'_>) -> Option<(EventId, Mark)> {
    match record.kind {
        Kind::Event if record.flags & MOVED == 0 => {
            let (header, _) = record::read_event(record.payload)?;
            Some((header.id, Mark::new(header.receive_ms, header.number)))
        }
        Kind::Mark => record::read_mark(record.payload),
        _ => None,
    }
}

/// Moves the index out of the way. Returns its name in quarantine.
pub(super) fn set_aside(buffer: &Path, reason: &str) -> Option<String> {
    let directory = view::directory(buffer);
    if !directory.exists() {
        return None;
    }
    match quarantine(buffer, &directory, reason) {
        Ok(name) => Some(name),
        Err(error) => {
            error!(error = &error as &dyn std::error::Error, "failed to set the buffer's index aside");
            None
        }
    }
}

/// Opens the index on a thread of its own, since sled can hang on a damaged one. None when it takes too long.
pub(super) fn open_in_time(buffer: &Path) -> Option<Result<View, ViewError>> {
    let (opened, outcome) = std::sync::mpsc::sync_channel(1);
    let buffer = buffer.to_owned();
    let spawned = std::thread::Builder::new().name("index".to_owned()).spawn(move || {
        // Nobody waits any more when it took too long.
        let _ = opened.send(View::open(&buffer));
    });
    match spawned {
        Ok(_) => outcome.recv_timeout(OPEN_TIMEOUT).ok(),
        Err(error) => Some(Err(ViewError::Io(error))),
    }
}
