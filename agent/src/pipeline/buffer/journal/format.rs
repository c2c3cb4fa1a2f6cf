//! Bytes of the journal. Numbers are big endian.
//!
//! A segment is a header of [`HEADER_BYTES`] and then records, one behind the other:
//!
//! | record | |
//! |---|---|
//! | marker | 1 byte, `0xB7`, so that the next record can be found behind a damaged one |
//! | version | 1 byte |
//! | kind, flags | 1 byte each |
//! | length | 4 bytes, of the payload |
//! | CRC32C | 4 bytes, of everything before it and the payload |
//! | payload | |
//!
//! The first 16 bytes of a segment (magic, version, their CRC) have this form in every version, so that a
//! newer journal is told from a damaged one.
//!
//! A segment has the lowest version that its records need, so that a program of before can go on with a journal as
//! long as nothing is in it that it would misread. What it does not know it refuses as a whole.

/// The newest version that this program reads.
pub(in super::super) const VERSION: u8 = HAND_OVERS;
/// The version of segments whose records every program reads.
pub(in super::super) const FIRST_VERSION: u8 = 1;
/// The version of segments with deliveries that are handed over: a program that does not know them would make
/// these itself.
pub(in super::super) const HAND_OVERS: u8 = 2;
/// Length of a segment's header.
pub(in super::super) const HEADER_BYTES: usize = 128;
/// Length of what precedes a payload.
pub(in super::super) const FRAME_BYTES: usize = 12;
/// Longest payload that is believed. A callback has at most 4 MiB.
const PAYLOAD_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"WAGWJRNL";
const PREFIX_BYTES: usize = 16;
const MARKER: u8 = 0xB7;
/// How a record is laid out. It is as in the beginning.
const FRAME_VERSION: u8 = 1;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(in super::super) enum Kind {
    /// An event was accepted; it is its own mark.
    Event = 1,
    /// A report was written, with the deliveries that changed.
    Report = 2,
    /// A delivery changed; a report with it follows.
    Outcome = 3,
    /// Something else was seen, or an event once more.
    Mark = 4,
    /// A contact decided.
    OptOut = 5,
    /// The control plane has the reports up to here.
    Acked = 6,
    /// Where an event stands, for one whose earlier records are going.
    State = 7,
    /// A segment is not needed any more and is about to be removed.
    Left = 8,
}

impl Kind {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Event,
            2 => Self::Report,
            3 => Self::Outcome,
            4 => Self::Mark,
            5 => Self::OptOut,
            6 => Self::Acked,
            7 => Self::State,
            8 => Self::Left,
            _ => return None,
        })
    }
}

/// More records follow that are good only together with this one.
pub(in super::super) const CONTINUES: u8 = 1;
/// A copy of a record of an older segment.
pub(in super::super) const MOVED: u8 = 2;

/// A whole record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Record<'a> {
    pub(in super::super) kind: Kind,
    pub(in super::super) flags: u8,
    pub(in super::super) payload: &'a [u8],
}

impl Record<'_> {
    /// Length with its frame.
    pub(in super::super) const fn bytes(&self) -> usize {
        FRAME_BYTES + self.payload.len()
    }
}

/// What is at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) enum Parsed<'a> {
    /// A whole record.
    Whole(Record<'a>),
    /// The bytes end within a record, as after a crash during a write.
    Short,
    /// No record.
    Bad,
}

/// Appends a record; `payload` writes its payload.
pub(in super::super) fn put(out: &mut Vec<u8>, kind: Kind, flags: u8, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[MARKER, FRAME_VERSION, kind as u8, flags, 0, 0, 0, 0, 0, 0, 0, 0]);
    payload(out);
    let length = u32::try_from(out.len() - start - FRAME_BYTES).expect("a record is far below 4 GiB");
    out[start + 4..start + 8].copy_from_slice(&length.to_be_bytes());
    let crc = crc_of(&out[start..]);
    out[start + 8..start + 12].copy_from_slice(&crc.to_be_bytes());
}

/// Where the record behind the first one of `records`, which are whole, begins.
pub(in super::super) fn next_record(records: &[u8]) -> Option<usize> {
    let length = records.get(4..8)?.try_into().map(u32::from_be_bytes).ok()?;
    Some(FRAME_BYTES + length as usize)
}

/// Adds flags to a whole record.
pub(in super::super) fn set_flags(record: &mut [u8], flags: u8) {
    record[3] |= flags;
    let crc = crc_of(record);
    record[8..12].copy_from_slice(&crc.to_be_bytes());
}

fn crc_of(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..8]), &record[FRAME_BYTES..])
}

/// Reads the record at the beginning of `bytes`.
pub(in super::super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    let Some((frame, rest)) = bytes.split_first_chunk::<FRAME_BYTES>() else {
        return if bytes.first().is_none_or(|marker| *marker == MARKER) {
            Parsed::Short
        } else {
            Parsed::Bad
        };
    };
    let [MARKER, FRAME_VERSION, kind, flags, length @ .., _, _, _, _] = frame else { return Parsed::Bad };
    let length = u32::from_be_bytes(*length) as usize;
    let (Some(kind), true) = (Kind::of(*kind), length <= PAYLOAD_BYTES_MAX) else { return Parsed::Bad };
    let Some(payload) = rest.get(..length) else { return Parsed::Short };
    let crc = u32::from_be_bytes([frame[8], frame[9], frame[10], frame[11]]);
    if crc_of(&bytes[..FRAME_BYTES + length]) == crc {
        Parsed::Whole(Record { kind, flags: *flags, payload })
    } else {
        Parsed::Bad
    }
}

/// Where the next whole record begins in `bytes`, if there is one.
pub(in super::super) fn find(bytes: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = bytes[from..].iter().position(|byte| *byte == MARKER) {
        let at = from + found;
        if matches!(parse(&bytes[at..]), Parsed::Whole(_)) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// The beginning of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Header {
    /// What its records need.
    pub(in super::super) version: u8,
    /// The segment's number; they count up from 1.
    pub(in super::super) number: u32,
    /// The journal that the segment belongs to.
    pub(in super::super) journal: [u8; 16],
    /// Up to where the segment before is good; none for the first one.
    pub(in super::super) previous_end: Option<u32>,
    /// The number that the next event gets.
    pub(in super::super) next_event: u64,
    /// The sequences that the next reports get, by lane.
    pub(in super::super) next_report: [u64; 2],
    /// The ids that these sequences are scoped to.
    pub(in super::super) buffer_ids: [[u8; 16]; 2],
}

/// A header cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum BadHeader {
    /// It is of a newer version.
    Newer(u8),
    /// It is not whole.
    Damaged,
}

impl Header {
    /// To bytes.
    pub(in super::super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[self.version, 0, 0, 0]);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_be_bytes());
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.previous_end.unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(&self.journal);
        bytes.extend_from_slice(&self.next_event.to_be_bytes());
        self.next_report.iter().for_each(|next| bytes.extend_from_slice(&next.to_be_bytes()));
        self.buffer_ids.iter().for_each(|id| bytes.extend_from_slice(id));
        bytes.resize(HEADER_BYTES - 4, 0);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes.try_into().expect("the length was just set")
    }

    /// From the bytes of a segment.
    ///
    /// # Errors
    /// When it is newer, or damaged.
    pub(in super::super) fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let mut rest = Reader(bytes.get(..HEADER_BYTES).ok_or(BadHeader::Damaged)?);
        let prefix = rest.take(PREFIX_BYTES - 4).ok_or(BadHeader::Damaged)?;
        let crc = u32::from_be_bytes(rest.array().ok_or(BadHeader::Damaged)?);
        if crc32c::crc32c(prefix) != crc || !prefix.starts_with(&MAGIC) {
            return Err(BadHeader::Damaged);
        }
        if prefix[8] > VERSION {
            return Err(BadHeader::Newer(prefix[8]));
        }
        let crc = Reader(&bytes[HEADER_BYTES - 4..]).array().map(u32::from_be_bytes);
        if crc != Some(crc32c::crc32c(&bytes[..HEADER_BYTES - 4])) {
            return Err(BadHeader::Damaged);
        }
        Self::read(prefix[8], &mut rest).ok_or(BadHeader::Damaged)
    }

    fn read(version: u8, rest: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            version,
            number: u32::from_be_bytes(rest.array()?),
            previous_end: Some(u32::from_be_bytes(rest.array()?)).filter(|end| *end > 0),
            journal: rest.array()?,
            next_event: u64::from_be_bytes(rest.array()?),
            next_report: [u64::from_be_bytes(rest.array()?), u64::from_be_bytes(rest.array()?)],
            buffer_ids: [rest.array()?, rest.array()?],
        })
    }
}

/// Takes bytes from the front; none when they are used up.
pub(in super::super) struct Reader<'a>(pub(in super::super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(in super::super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(in super::super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            version: FIRST_VERSION,
            number: 7,
            journal: [1; 16],
            previous_end: Some(99),
            next_event: 12,
            next_report: [3, 4],
            buffer_ids: [[5; 16], [6; 16]],
        }
    }

    /// A header comes back as it was written; one changed byte makes it damaged, and a newer version is told
    /// from damage.
    #[test]
    fn headers_come_back() {
        let newest = Header { version: VERSION, ..header() };
        assert_eq!(Header::decode(&newest.encode()), Ok(newest));
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Ok(header()));
        for at in 0..HEADER_BYTES {
            let mut damaged = bytes;
            damaged[at] ^= 0x20;
            assert_eq!(Header::decode(&damaged), Err(BadHeader::Damaged), "byte {at}");
        }
        let mut newer = bytes;
        newer[8] = VERSION + 1;
        let crc = crc32c::crc32c(&newer[..12]).to_be_bytes();
        newer[12..16].copy_from_slice(&crc);
        assert_eq!(Header::decode(&newer), Err(BadHeader::Newer(VERSION + 1)));
        assert_eq!(Header::decode(&bytes[..100]), Err(BadHeader::Damaged));
    }

    proptest! {
        /// Whatever is damaged, a record that is whole is found behind it, and nothing else is taken for one.
        #[test]
        fn records_are_found_behind_damage(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 2..6),
            at in any::<prop::sample::Index>(),
            with in 1..=255_u8,
        ) {
            let mut bytes = Vec::new();
            let mut starts = Vec::new();
            for payload in &payloads {
                starts.push(bytes.len());
                put(&mut bytes, Kind::Event, CONTINUES, |out| out.extend_from_slice(payload));
            }
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            let hit = starts.partition_point(|start| *start <= at) - 1;
            for (index, start) in starts.iter().enumerate() {
                let parsed = parse(&bytes[*start..]);
                if index == hit {
                    prop_assert!(!matches!(parsed, Parsed::Whole(_)));
                    let next = find(&bytes[*start..]).map(|found| start + found);
                    prop_assert_eq!(next, starts.get(index + 1).copied());
                } else {
                    let expected = Record { kind: Kind::Event, flags: CONTINUES, payload: &payloads[index] };
                    prop_assert_eq!(parsed, Parsed::Whole(expected));
                }
            }
        }

        /// Arbitrary bytes never panic.
        #[test]
        fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = find(&bytes);
            let _ = Header::decode(&bytes);
        }
    }
}
