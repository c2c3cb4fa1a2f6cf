//! What is in a buffer, and what of it is damaged.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde::Serialize;

use super::{
    super::{
        OpenDelivery,
        index::Index,
        journal::{
            format::{BadHeader, CONTINUES, HEADER_BYTES, Kind},
            read::{self, Gap, Stored, list, scan},
            segment_path,
        },
        mark_files::MarkFiles,
        record::Lane,
        recover::{Recovered, recover},
    },
    Progress, Stopped, ToolError,
};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Which journal it is.
    pub journal_id: String,
    /// Events that are not settled, or whose report is not acked.
    pub events_open: u64,
    /// Deliveries that are not settled.
    pub deliveries_open: u64,
    /// Deliveries that were given away, and of which the control plane has not acked the hand-over.
    pub deliveries_handing_over: u64,
    /// Bytes on disk of open events.
    pub event_bytes: u64,
    /// Reports that the control plane has not acked.
    pub reports_waiting: u64,
    /// Decisions of contacts that are kept.
    pub opt_outs: u64,
    /// What is wrong with the journal, for people.
    pub causes: Vec<&'static str>,
    /// Bytes of the journal that cannot be read.
    pub unreadable_bytes: u64,
    /// Events that may be lost with them.
    pub events_lost_max: u64,
}

/// A stretch of a file that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// Where it begins.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

impl From<Gap> for Stretch {
    fn from(gap: Gap) -> Self {
        Self { offset: gap.offset, bytes: gap.bytes }
    }
}

/// One segment of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedSegment {
    /// Its number.
    pub number: u32,
    /// Its length.
    pub bytes: u64,
    /// Whether its header is whole.
    pub is_header_good: bool,
    /// Records that can be read, by kind.
    pub records: BTreeMap<&'static str, u64>,
    /// Records that are still needed.
    pub live: u64,
    /// What cannot be read.
    pub damaged: Vec<Stretch>,
    /// Bytes behind the last commit, of a write that a crash or the disk cut off; nobody was answered for it.
    pub unused_bytes: u64,
}

/// The files with the marks of segments that left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifiedMarks {
    /// The file, by its name.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Marks in it.
    pub marks: u64,
    /// What cannot be read.
    pub damaged: Vec<Stretch>,
}

/// A buffer that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// What the journal comes to.
    pub found: Found,
    /// Its segments, oldest first.
    pub segments: Vec<VerifiedSegment>,
    /// The mark files, by day.
    pub marks: Vec<VerifiedMarks>,
    /// What was set aside earlier, by name.
    pub quarantined: Vec<String>,
    /// The newest segment, and up to where it is good.
    #[serde(skip)]
    pub(super) last: (u32, u64),
}

impl Verified {
    /// Whether nothing is damaged. What was set aside earlier does not count: everything live in it moved on.
    pub fn is_sound(&self) -> bool {
        self.found.causes.is_empty()
            && self.segments.iter().all(|segment| segment.damaged.is_empty())
            && self.marks.iter().all(|file| file.damaged.is_empty())
    }
}

/// Reads the whole journal and the mark files.
///
/// # Errors
/// When the disk refuses, or the journal is of a newer program.
pub fn verify(buffer: &Stopped, progress: Progress<'_>) -> Result<Verified, ToolError> {
    let journal = buffer.journal();
    progress("putting together what is live", 0, 1);
    let recovered = recover(&journal, None).map_err(ToolError::journal(buffer.directory()))?;
    let live = live_records(&recovered);
    let stored = list(&journal).map_err(ToolError::read(&journal))?;
    let mut segments = Vec::with_capacity(stored.len());
    for (index, segment) in stored.iter().enumerate() {
        progress("reading segments", index as u64, stored.len() as u64);
        let live = live.get(&segment.number).copied().unwrap_or(0);
        segments.push(VerifiedSegment { live, ..verify_segment(&journal, segment, stored.get(index + 1))? });
    }
    Ok(Verified {
        found: found(&recovered),
        segments,
        marks: verify_marks(buffer.directory())?,
        quarantined: quarantined(buffer.directory())?,
        last: recovered.last,
    })
}

fn found(recovered: &Recovered) -> Found {
    Found {
        journal_id: recovered.journal_id.to_string(),
        events_open: recovered.index.len(),
        deliveries_open: deliveries_open(&recovered.index),
        deliveries_handing_over: deliveries_handing_over(&recovered.index),
        event_bytes: recovered.index.bytes(),
        reports_waiting: recovered.lanes.iter().map(|lane| lane.up_to(u64::MAX).count() as u64).sum(),
        opt_outs: recovered.opt_outs.len() as u64,
        causes: recovered.damage.causes.clone(),
        unreadable_bytes: recovered.damage.unreadable_bytes,
        events_lost_max: recovered.damage.events_lost_max,
    }
}

/// Up to where a segment is good, if the one behind it says so.
fn known_end(segment: &Stored, next: Option<&Stored>) -> Option<u64> {
    let next = next.filter(|next| next.number == segment.number + 1)?;
    next.header.as_ref().ok()?.previous_end.map(u64::from)
}

fn verify_segment(
    journal: &Path,
    stored: &Stored,
    next: Option<&Stored>,
) -> Result<VerifiedSegment, ToolError> {
    let mut segment = VerifiedSegment {
        number: stored.number,
        bytes: stored.bytes,
        is_header_good: stored.header.is_ok(),
        records: BTreeMap::new(),
        live: 0,
        damaged: Vec::new(),
        unused_bytes: 0,
    };
    if stored.bytes < HEADER_BYTES as u64 && next.is_none() {
        // It was begun and never used.
        segment.unused_bytes = stored.bytes;
        return Ok(segment);
    }
    if stored.header == Err(BadHeader::Damaged) {
        segment.damaged.push(Stretch { offset: 0, bytes: stored.bytes.min(HEADER_BYTES as u64) });
    }
    let path = segment_path(journal, stored.number);
    let bytes = std::fs::read(&path).map_err(ToolError::read(&path))?;
    let (mut committed, mut group) = (HEADER_BYTES as u64, Vec::new());
    scan(&bytes, known_end(stored, next), &mut |found| match found {
        read::Found::Record(offset, record) => {
            group.push(record.kind);
            if record.flags & CONTINUES == 0 {
                committed = offset + record.bytes() as u64;
                segment.count(&mut group);
            }
        }
        read::Found::Gap(gap) => {
            committed = gap.offset + gap.bytes;
            segment.count(&mut group);
            segment.damaged.push(gap.into());
        }
        read::Found::Torn => {}
    });
    segment.unused_bytes = stored.bytes.saturating_sub(committed);
    Ok(segment)
}

impl VerifiedSegment {
    fn count(&mut self, group: &mut Vec<Kind>) {
        for kind in group.drain(..) {
            *self.records.entry(name(kind)).or_default() += 1;
        }
    }
}

fn deliveries_open(index: &Index) -> u64 {
    let of_slot = |(event, slot)| OpenDelivery::all_of(event, slot).count() as u64;
    index.iter().map(of_slot).sum()
}

fn deliveries_handing_over(index: &Index) -> u64 {
    let deliveries = index.iter().flat_map(|(_, slot)| slot.deliveries.as_slice());
    deliveries.filter(|delivery| delivery.state.is_handing_over()).count() as u64
}

const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Event => "event",
        Kind::Report => "report",
        Kind::Outcome => "outcome",
        Kind::Mark => "mark",
        Kind::OptOut => "opt_out",
        Kind::Acked => "acked",
        Kind::State => "state",
        Kind::Left => "left",
    }
}

/// Records that are needed, by segment.
fn live_records(recovered: &Recovered) -> HashMap<u32, u64> {
    let mut live = HashMap::new();
    let mut hold = |segment: u32| *live.entry(segment).or_default() += u64::from(segment != 0);
    for (_, slot) in recovered.index.iter() {
        hold(slot.place.segment);
        hold(slot.state_segment);
    }
    for lane in Lane::ALL {
        recovered.lanes[lane as usize].up_to(u64::MAX).for_each(|report| hold(report.place.segment));
    }
    recovered.opt_out_places.values().for_each(|place| hold(place.segment));
    live
}

fn verify_marks(buffer: &Path) -> Result<Vec<VerifiedMarks>, ToolError> {
    let files = match MarkFiles::existing(buffer).check() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        checked => checked.map_err(ToolError::read(&buffer.join("marks")))?,
    };
    let verified = files.into_iter().map(|file| VerifiedMarks {
        file: format!("{:06}.marks", file.day),
        bytes: file.bytes,
        marks: file.marks,
        damaged: file.gaps.into_iter().map(Stretch::from).collect(),
    });
    Ok(verified.collect())
}

fn quarantined(buffer: &Path) -> Result<Vec<String>, ToolError> {
    let directory = buffer.join("quarantine");
    let entries = match std::fs::read_dir(&directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(ToolError::read(&directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(ToolError::read(&directory))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
