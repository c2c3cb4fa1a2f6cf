//! Writes what can be read and is live into a fresh buffer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use gateway_core::id::EventId;
use prost::Message as _;

use super::{
    super::{
        index::Delivery,
        journal::{
            Counters, Journal, Place,
            files::{RealFiles, sync_directory},
            format::{self, CONTINUES, HEADER_BYTES, Header, Kind, MOVED},
            read::{self, JournalReader, scan},
            segment_path,
        },
        keeper::mark_of,
        lock::DirectoryLock,
        mark_files::MarkFiles,
        open::damage_report,
        record::{self, Lane, LogIn, Mark, ReportHeader, StateChange, day_of},
        recover::{Recovered, recover_readable, recover_segment},
    },
    Progress, SEGMENT_BYTES, Stopped, ToolError, readable, reader,
};

/// Bytes of one commit.
const COMMIT_BYTES: usize = 4 << 20;

/// Where to salvage from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// A whole buffer.
    Buffer(&'a Stopped),
    /// One segment, such as one in quarantine: what is live as far as it tells.
    Segment(&'a Path),
}

/// What was carried over, and what was not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Salvaged {
    /// Open events.
    pub events: u64,
    /// Their deliveries that are not settled.
    pub deliveries: u64,
    /// Reports that the control plane has not acked.
    pub reports: u64,
    /// Decisions of contacts.
    pub opt_outs: u64,
    /// What was seen in the last eight days.
    pub marks: u64,
    /// What was wrong, for people; empty when nothing was.
    pub causes: Vec<&'static str>,
    /// Bytes that cannot be read.
    pub unreadable_bytes: u64,
    /// Events that may be lost with them.
    pub events_lost_max: u64,
}

impl Salvaged {
    /// Whether everything was carried over.
    pub fn is_complete(&self) -> bool {
        self.causes.is_empty()
    }

    fn unreadable(&mut self, events: u64) {
        let cause = "what is live became unreadable";
        if !self.causes.contains(&cause) {
            self.causes.push(cause);
        }
        self.events_lost_max += events;
    }
}

/// Makes a data directory `to`, which must not be there or be empty, with a fresh buffer in it. Its reports get
/// sequences of their own, and damage becomes a report, as when an agent finds it.
///
/// # Errors
/// When `to` is taken, the disk refuses, or the journal is of a newer program. Then nothing is left in `to`.
pub fn salvage(source: Source<'_>, to: &Path, progress: Progress<'_>) -> Result<Salvaged, ToolError> {
    let is_taken = match fs::read_dir(to) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(ToolError::read(to)(error)),
    };
    if is_taken {
        return Err(ToolError::TargetNotEmpty { directory: to.to_owned() });
    }
    let buffer = to.join("buffer");
    let lock = DirectoryLock::take(&buffer).map_err(ToolError::Lock)?;
    let salvaged = match source {
        Source::Buffer(stopped) => salvage_from(&stopped.journal(), Some(stopped), to, progress),
        Source::Segment(file) => salvage_segment(file, to, progress),
    };
    drop(lock);
    if salvaged.is_err() {
        // The first failure is what counts.
        drop(fs::remove_dir_all(&buffer));
    }
    salvaged
}

/// The segment becomes the only one of a journal, which is removed again.
fn salvage_segment(file: &Path, to: &Path, progress: Progress<'_>) -> Result<Salvaged, ToolError> {
    let bytes = fs::read(file).map_err(ToolError::read(file))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let digits: String = name.chars().take_while(char::is_ascii_digit).collect();
    let number = match Header::decode(&bytes[..bytes.len().min(HEADER_BYTES)]) {
        Ok(header) => header.number,
        Err(_) => digits.parse().ok().filter(|number| *number > 0).unwrap_or(1),
    };
    let alone = to.join("buffer").join("segment");
    let written = crate::private::create_directory(&alone)
        .and_then(|()| fs::write(segment_path(&alone, number), &bytes));
    written.map_err(ToolError::write(&alone))?;
    drop(bytes);
    let salvaged = salvage_from(&alone, None, to, progress)?;
    fs::remove_dir_all(&alone).map_err(ToolError::write(&alone))?;
    Ok(salvaged)
}

fn salvage_from(
    journal: &Path,
    buffer: Option<&Stopped>,
    to: &Path,
    progress: Progress<'_>,
) -> Result<Salvaged, ToolError> {
    progress("putting together what is live", 0, 1);
    let recovered = if buffer.is_some() { recover_readable(journal) } else { recover_segment(journal) };
    let recovered = recovered.map_err(ToolError::journal(journal))?;
    let reader = reader(journal, &recovered);
    let target = to.join("buffer");
    let mut salvaged = Salvaged {
        causes: recovered.damage.causes.clone(),
        unreadable_bytes: recovered.damage.unreadable_bytes,
        events_lost_max: recovered.damage.events_lost_max,
        ..Salvaged::default()
    };
    salvaged.marks = copy_marks(journal, &recovered, buffer, &target, progress)?;
    let counters = Counters { buffer_ids: Counters::fresh().buffer_ids, ..recovered.counters.clone() };
    let mut writer = Writer::new(&target, counters, recovered.index.version())?;
    let mut copying = Copying { journal, recovered: &recovered, reader: &reader, salvaged: &mut salvaged };
    copying.events(&mut writer, progress)?;
    copying.opt_outs(&mut writer)?;
    copying.reports(&mut writer, progress)?;
    if !salvaged.is_complete() {
        writer.damage(&salvaged);
    }
    writer.finish()?;
    for directory in [&target, to] {
        sync_directory(directory).map_err(ToolError::write(directory))?;
    }
    Ok(salvaged)
}

struct Copying<'a> {
    journal: &'a Path,
    recovered: &'a Recovered,
    reader: &'a JournalReader,
    salvaged: &'a mut Salvaged,
}

impl Copying<'_> {
    fn read(&self, place: Place, kind: Kind) -> Result<Option<Vec<u8>>, ToolError> {
        readable(self.reader.read(place, kind), self.journal)
    }

    /// Each event with where it stands, and with its attempts that are in no report yet.
    fn events(&mut self, writer: &mut Writer, progress: Progress<'_>) -> Result<(), ToolError> {
        let index = &self.recovered.index;
        for (done, (event, slot)) in index.iter().enumerate() {
            progress("copying events", done as u64, index.len());
            let Some(payload) = self.read(slot.place, Kind::Event)? else {
                self.salvaged.unreadable(1);
                continue;
            };
            writer.put(Kind::Event, CONTINUES | MOVED, |out| out.extend_from_slice(&payload));
            let deliveries = slot.deliveries.as_slice();
            let attempts = self.recovered.young.get(&event).map_or(&[][..], Vec::as_slice);
            let attempts = attempts.iter().filter_map(|outcome| {
                let (place, delivery) = slot.deliveries.find(outcome.subscription)?;
                Some((StateChange::of(place, delivery), outcome.attempt.as_ref()))
            });
            for (change, attempt) in attempts {
                let flags = CONTINUES | MOVED;
                writer.put(Kind::Outcome, flags, |out| record::put_outcome(out, event, change, attempt));
            }
            writer.put(Kind::State, MOVED, |out| record::put_state(out, event, slot.reported, deliveries));
            writer.commit_when_large()?;
            self.salvaged.events += 1;
            let is_open = |delivery: &&Delivery| !delivery.state.is_settled();
            self.salvaged.deliveries += deliveries.iter().filter(is_open).count() as u64;
        }
        Ok(())
    }

    fn opt_outs(&mut self, writer: &mut Writer) -> Result<(), ToolError> {
        for place in self.recovered.opt_out_places.values() {
            let Some(payload) = self.read(*place, Kind::OptOut)? else {
                self.salvaged.unreadable(0);
                continue;
            };
            writer.put(Kind::OptOut, MOVED, |out| out.extend_from_slice(&payload));
            writer.commit_when_large()?;
            self.salvaged.opt_outs += 1;
        }
        Ok(())
    }

    fn reports(&mut self, writer: &mut Writer, progress: Progress<'_>) -> Result<(), ToolError> {
        for lane in Lane::ALL {
            for (done, report) in self.recovered.lanes[lane as usize].up_to(u64::MAX).enumerate() {
                progress("copying reports", done as u64, done as u64 + 1);
                let payload = self.read(report.place, Kind::Report)?;
                let Some((header, report)) = payload.as_deref().and_then(record::read_report) else {
                    self.salvaged.unreadable(0);
                    continue;
                };
                // Where the deliveries stand is with their event.
                let header = ReportHeader { changes: Vec::new(), ..header };
                writer.put(Kind::Report, MOVED, |out| record::put_report(out, &header, report));
                writer.commit_when_large()?;
                self.salvaged.reports += 1;
            }
        }
        Ok(())
    }
}

/// Keeps the marks of the last eight days, oldest first.
fn copy_marks(
    journal: &Path,
    recovered: &Recovered,
    buffer: Option<&Stopped>,
    target: &Path,
    progress: Progress<'_>,
) -> Result<u64, ToolError> {
    let files = MarkFiles::open(target).map_err(ToolError::write(target))?;
    let today = day_of(gateway_runtime::clock::now().as_millisecond());
    let mut copied = 0;
    let mut copy = |marks: &[(EventId, Mark)]| {
        let kept: Vec<(EventId, Mark)> =
            marks.iter().filter(|(_, mark)| mark.expire_day >= today).copied().collect();
        copied += kept.len() as u64;
        files.add(&kept).map_err(ToolError::write(target))
    };
    if let Some(buffer) = buffer {
        let mut outcome = Ok(());
        let read = MarkFiles::existing(buffer.directory()).read(today, &mut |marks| {
            if outcome.is_ok() {
                outcome = copy(marks);
            }
        });
        match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            read => drop(read.map_err(ToolError::read(&buffer.directory().join("marks")))?),
        }
        outcome?;
    }
    for (done, number) in recovered.segments.keys().enumerate() {
        progress("copying marks", done as u64, recovered.segments.len() as u64);
        let path = segment_path(journal, *number);
        let bytes = fs::read(&path).map_err(ToolError::read(&path))?;
        let mut marks = Vec::new();
        scan(&bytes, Some(recovered.segments[number].bytes), &mut |found| {
            if let read::Found::Record(_, record) = found {
                marks.extend(mark_of(record));
            }
        });
        copy(&marks)?;
    }
    Ok(copied)
}

/// Writes the fresh journal.
struct Writer {
    directory: PathBuf,
    journal: Journal,
    counters: Counters,
    /// What the records need.
    version: u8,
    records: Vec<u8>,
}

impl Writer {
    fn new(target: &Path, counters: Counters, version: u8) -> Result<Self, ToolError> {
        let directory = target.join("journal");
        crate::private::create_directory(&directory).map_err(ToolError::write(&directory))?;
        let id = uuid::Uuid::now_v7();
        let journal =
            Journal::new(&directory, SEGMENT_BYTES, id, Box::new(RealFiles), Default::default(), (0, 0));
        Ok(Self { directory, journal, counters, version, records: Vec::new() })
    }

    fn put(&mut self, kind: Kind, flags: u8, payload: impl FnOnce(&mut Vec<u8>)) {
        format::put(&mut self.records, kind, flags, payload);
    }

    /// Tells the control plane what was lost.
    fn damage(&mut self, salvaged: &Salvaged) {
        let next = &mut self.counters.reports[Lane::Urgent as usize];
        let sequence = *next;
        *next += 1;
        let time_ms = gateway_runtime::clock::now().as_millisecond();
        let header = ReportHeader {
            lane: Lane::Urgent,
            sequence,
            time_ms,
            event: 0,
            log: LogIn::Nothing,
            changes: Vec::new(),
        };
        let damage =
            damage_report(&salvaged.causes, salvaged.unreadable_bytes, salvaged.events_lost_max, Vec::new());
        let report = gateway_proto::v1::Report { sequence, report: Some(damage) };
        let report = report.encode_to_vec();
        self.put(Kind::Report, 0, |out| record::put_report(out, &header, &report));
    }

    /// Commits when there is enough; only between events, because a group of records is in one segment.
    fn commit_when_large(&mut self) -> Result<(), ToolError> {
        if self.records.len() < COMMIT_BYTES { Ok(()) } else { self.commit() }
    }

    fn commit(&mut self) -> Result<(), ToolError> {
        let records = std::mem::take(&mut self.records);
        let prepared = self.journal.prepare(&self.counters, self.version).map(drop);
        prepared
            .and_then(|()| if records.is_empty() { Ok(()) } else { self.journal.append(&records) })
            .map_err(ToolError::write(&self.directory))
    }

    fn finish(mut self) -> Result<(), ToolError> {
        self.commit()
    }
}
