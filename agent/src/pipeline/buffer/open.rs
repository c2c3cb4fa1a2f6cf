//! Opening the buffer: index, then journal, then its threads. Whatever is damaged is passed over, counted and
//! set aside; it never keeps the agent from serving.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Instant,
};

use gateway_core::time::to_proto;
use gateway_proto::v1;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::{metrics::Metrics, private};

use super::{
    Config,
    engine::{Engine, REPORT_PATIENCE, hold},
    home::settle_in,
    journal::{
        Journal,
        files::{Files, sync_directory},
    },
    keeper::{Keeper, KeeperInbox, open_in_time, set_aside},
    lock::DirectoryLock,
    mark_files::MarkFiles,
    marks::Marks,
    recover::{Damage, RecoverError, Recovered, check_versions, recover},
    shared::Shared,
    view::{Position, View},
};

/// There while the index is being opened, with how often that was tried: one that ends the process, as sled
/// can on a damaged index, is not tried a third time.
const OPENING: &str = "index.opening";
const OPENINGS_MAX: u32 = 2;

/// How far the clock may be behind what was written last.
const CLOCK_TOLERANCE_MS: i64 = 60_000;

/// Everything that is needed to open.
pub(super) struct Opening {
    pub(super) config: Config,
    pub(super) metrics: Metrics,
    pub(super) files: Box<dyn Files>,
    pub(super) lock: DirectoryLock,
}

/// What was found of the index.
struct Index {
    view: Option<Arc<View>>,
    position: Option<Position>,
    causes: Vec<&'static str>,
    quarantined: Vec<String>,
}

impl Opening {
    /// Opens, tells `opened`, and works until the buffer is closed.
    pub(super) fn run(self, opened: oneshot::Sender<Result<Arc<Shared>, RecoverError>>) {
        match self.open() {
            Ok(engine) => {
                // Nobody waits for the answer only when start-up was given up.
                if opened.send(Ok(Arc::clone(&engine.shared))).is_ok() {
                    engine.work();
                }
            }
            Err(failure) => drop(opened.send(Err(failure))),
        }
    }

    fn open(self) -> Result<Engine, RecoverError> {
        let started = Instant::now();
        let buffer = self.config.directory.clone();
        let directory = buffer.join("journal");
        private::create_directory(&directory)?;
        sync_directory(&buffer)?;
        // What a newer program wrote is not touched, the index included.
        check_versions(&directory)?;
        let mark_files = MarkFiles::open(&buffer)?;
        let mut index = open_index(&buffer);
        let mut recovered = recover(&directory, index.position)?;
        let damage = index.check_against(&buffer, &recovered);
        let is_behind = index.position.is_none_or(|position| recovered.is_behind(position));
        let journal_id = recovered.journal_id;
        let announcements = announce(&damage, &index.quarantined, &self.metrics);
        let last = recovered.last;
        let mut journal = Journal::new(
            &directory,
            self.config.segment_bytes,
            journal_id,
            self.files,
            std::mem::take(&mut recovered.segments),
            last,
        );
        recovered.hold_all(&mut journal);
        settle_in(&buffer, &mut recovered, &mut journal);
        let marks = Marks::default();
        marks.set_view(index.view.take());
        let keeper = Arc::new(KeeperInbox::default());
        let position = recovered.position();
        keeper.marks(marks.add(&recovered.marks), recovered.marks, position);
        let shared = Arc::new(Shared::new(
            journal.reader(),
            marks,
            recovered.index,
            recovered.subscriptions,
            recovered.lanes,
            recovered.opt_outs,
        ));
        shared.hand_out_before(recovered.counters.event, clock_went_back(recovered.newest_ms));
        shared.reports_planned.store(recovered.unreported.len(), Ordering::Release);
        shared.reports_added.notify_one();
        let keeper_thread = start_keeper(&self.config, &shared, &keeper, mark_files, is_behind)?;
        let stats = shared.stats();
        info!(events = stats.events, bytes = stats.bytes, duration = ?started.elapsed(), "opened the buffer");
        let opt_out_bytes = recovered.opt_out_places.values().map(|place| u64::from(place.bytes)).sum();
        let now = Instant::now();
        Ok(Engine {
            config: self.config,
            metrics: self.metrics,
            shared,
            journal,
            counters: recovered.counters,
            young: recovered.young,
            opt_out_places: recovered.opt_out_places,
            keeper,
            keeper_thread: Some(keeper_thread),
            deadlines: recovered.unreported.into_iter().map(|event| (now + REPORT_PATIENCE, event)).collect(),
            crowd: 0,
            cleaning: None,
            readings: 0,
            clean_after: now,
            opt_out_bytes,
            announcements,
            next_tick: now,
            is_low_on_space: false,
            is_full: false,
            is_failing: false,
            _lock: self.lock,
        })
    }
}

/// Starts the keeper of a buffer.
fn start_keeper(
    config: &Config,
    shared: &Arc<Shared>,
    inbox: &Arc<KeeperInbox>,
    mark_files: MarkFiles,
    is_behind: bool,
) -> io::Result<JoinHandle<()>> {
    let keeper = Keeper {
        buffer: config.directory.clone(),
        marks_bytes_max: config.marks_bytes_max,
        gather: config.marks_gather,
        inbox: Arc::clone(inbox),
        shared: Arc::clone(shared),
        mark_files,
        is_behind,
        is_filter_built: false,
        pending: Vec::new(),
        kept: 0,
    };
    keeper.start()
}

/// By how much the wall clock was set back while the program did not run; a minute is no matter.
fn clock_went_back(newest_ms: i64) -> i64 {
    let back_ms = newest_ms - gateway_runtime::clock::now().as_millisecond();
    if back_ms < CLOCK_TOLERANCE_MS {
        return 0;
    }
    warn!(
        seconds = back_ms / 1_000,
        "the clock was set back; deliveries in the buffer are due as much earlier"
    );
    back_ms
}

impl Recovered {
    /// Counts what every segment holds.
    fn hold_all(&self, journal: &mut Journal) {
        self.index.iter().for_each(|(_, slot)| hold(journal, slot));
        for lane in &self.lanes {
            lane.up_to(u64::MAX).for_each(|report| journal.hold(report.place.segment));
        }
        self.opt_out_places.values().for_each(|place| journal.hold(place.segment));
    }

    /// Whether the index lacks marks of segments that are gone.
    fn is_behind(&self, index: Position) -> bool {
        let first = self.segments.first_key_value().map_or(index.segment, |(first, _)| *first);
        index.segment < first && (index.segment, first) != (0, 1)
    }

    /// The end of what was read.
    fn position(&self) -> Position {
        let (segment, end) = self.last;
        let offset = u32::try_from(end).unwrap_or(u32::MAX);
        Position {
            journal: self.journal_id.into_bytes(),
            segment,
            offset,
            end: (segment, offset),
            next_event: self.counters.event,
        }
    }
}

impl Index {
    /// Sets an index of another journal aside. Returns all damage.
    fn check_against(&mut self, buffer: &Path, recovered: &Recovered) -> Damage {
        let mut damage = recovered.damage.clone();
        if let Some(position) =
            self.position.filter(|found| found.journal != recovered.journal_id.into_bytes())
        {
            // Its files must be closed before they move.
            self.view = None;
            self.position = None;
            if recovered.last.0 == 0 {
                damage.causes.push("the journal is missing");
                damage.events_lost_max += position.next_event - 1;
            } else {
                damage.causes.push("the index belongs to another journal");
            }
            self.quarantined.extend(set_aside(buffer, "other-journal"));
        }
        damage.causes.append(&mut self.causes);
        damage
    }
}

fn open_index(buffer: &Path) -> Index {
    let mut index = Index { view: None, position: None, causes: Vec::new(), quarantined: Vec::new() };
    let marker = buffer.join(OPENING);
    let tries = fs::read_to_string(&marker).ok().and_then(|tries| tries.trim().parse().ok()).unwrap_or(0);
    if tries >= OPENINGS_MAX {
        index.causes.push("opening the index ended the program");
        index.quarantined.extend(set_aside(buffer, "fatal"));
    }
    // A full disk must not keep the buffer from opening over it.
    drop(fs::write(&marker, (tries % OPENINGS_MAX + 1).to_string()));
    let opened = open_in_time(buffer).map(|opened| {
        let view = opened?;
        let position = view.position()?;
        Ok::<_, super::view::ViewError>((view, position))
    });
    match opened {
        Some(Ok((view, position))) => {
            index.view = Some(Arc::new(view));
            index.position = position;
        }
        Some(Err(failure)) if failure.is_full() => {
            warn!(error = &failure as &dyn std::error::Error, "failed to open the buffer's index");
        }
        Some(Err(failure)) => {
            warn!(error = &failure as &dyn std::error::Error, "failed to open the buffer's index");
            index.causes.push("the index is damaged");
            index.quarantined.extend(set_aside(buffer, "damaged"));
        }
        None => {
            index.causes.push("opening the index did not end");
            index.quarantined.extend(set_aside(buffer, "stuck"));
        }
    }
    drop(fs::remove_file(&marker));
    index
}

/// Tells people about damage. Returns what the control plane is told.
fn announce(damage: &Damage, quarantined: &[String], metrics: &Metrics) -> Vec<v1::report::Report> {
    quarantined.iter().for_each(|_| metrics.buffer_quarantined());
    if damage.causes.is_empty() {
        return Vec::new();
    }
    error!(
        causes = damage.causes.join("; "),
        unreadable_bytes = damage.unreadable_bytes,
        events_lost_max = damage.events_lost_max,
        quarantined = quarantined.join(", "),
        "the buffer is damaged; everything readable goes on"
    );
    vec![damage_report(&damage.causes, damage.unreadable_bytes, damage.events_lost_max, quarantined.to_vec())]
}

/// What the control plane is told of damage.
pub(super) fn damage_report(
    causes: &[&str],
    unreadable_bytes: u64,
    events_lost_max: u64,
    quarantined: Vec<String>,
) -> v1::report::Report {
    v1::report::Report::BufferDamage(v1::BufferDamage {
        time: Some(to_proto(gateway_runtime::clock::now())),
        cause: causes.join("; "),
        unreadable_bytes,
        events_lost_max,
        quarantined,
    })
}
