//! A file of the configuration log: a header, then records.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `WAGWSNP`, and the number of the format |
//! | 16 | the file's id, at random |
//! | 4 | CRC32C of these, little endian |
//!
//! and of each record
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the sealed bytes, little endian |
//! | 4 | CRC32C of the length and the sealed bytes, little endian |
//! | n | sealed ([`gateway_runtime::sealing`], bound to the file's id and the record's number): kind, protobuf |
//!
//! The protobuf is a response, and in the same message what was refused of it. The first records are the parts of the
//! base, the last of them marked; the others are deltas. The checksum tells
//! damage from another key; that nothing was changed or moved, the seal proves.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use gateway_proto::v1;
use gateway_runtime::sealing::{Key, KeyId};
use prost::Message as _;
use zeroize::Zeroizing;

use super::state::{Part, Refusals};

/// All formats but the first begin with this, the number of the format and the same header.
const NAME: &[u8; 7] = b"WAGWSNP";
const FORMAT: u8 = b'2';
const FILE_ID_BYTES: usize = 16;
const CHECKED_BYTES: usize = NAME.len() + 1 + FILE_ID_BYTES;
const HEADER_BYTES: usize = CHECKED_BYTES + 4;
/// How the first format began; a file of it has no header.
const FIRST_FORMAT: &[u8] = b"WAGWCFG";
const FRAME_HEADER_BYTES: usize = 8;
/// What records are bound to, beside their file and number.
const PLACE: &[u8] = b"configuration log";

/// What a record is; the first of its sealed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    BasePart = 1,
    LastBasePart = 2,
    Delta = 3,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        [Self::BasePart, Self::LastBasePart, Self::Delta].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// What is wrong with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The file ends in the midst of it.
    Cut,
    /// Its bytes were changed.
    Changed,
    /// It is sealed under this key.
    OtherKey(KeyId),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cut => f.write_str("cut short"),
            Self::Changed => f.write_str("changed"),
            Self::OtherKey(key) => write!(f, "sealed under key {key}"),
        }
    }
}

/// What came of reading a file.
pub enum Reading {
    /// There is none.
    Missing,
    /// It is of another format, and undamaged as far as one can tell.
    OtherFormat,
    /// Its base cannot be used, and so nothing of it.
    BaseDamaged(Damage),
    /// Its base is whole.
    Good {
        /// Goes on after the last good record.
        appender: Appender,
        /// What is wrong with the record after that.
        damage: Option<Damage>,
    },
}

/// Reads a file, giving its responses to `take`, each with what was refused of it; those of a damaged base too.
pub fn read(
    path: &Path,
    key: &Key,
    take: &mut impl FnMut(v1::StreamConfigResponse, Refusals),
) -> io::Result<Reading> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Reading::Missing),
        Err(error) => return Err(error),
    };
    let mut left = file.metadata()?.len();
    let mut input = BufReader::new(file);
    let mut header = [0; HEADER_BYTES];
    let header_bytes = usize::try_from(left).unwrap_or(usize::MAX).min(HEADER_BYTES);
    input.read_exact(&mut header[..header_bytes])?;
    if header[..header_bytes].starts_with(FIRST_FORMAT) {
        return Ok(Reading::OtherFormat);
    }
    if header_bytes < HEADER_BYTES {
        return Ok(Reading::BaseDamaged(Damage::Cut));
    }
    let (checked, crc) = header.split_at(CHECKED_BYTES);
    if crc32c::crc32c(checked).to_le_bytes() != crc || !checked.starts_with(NAME) {
        return Ok(Reading::BaseDamaged(Damage::Changed));
    }
    if checked[NAME.len()] != FORMAT {
        return Ok(Reading::OtherFormat);
    }
    left -= HEADER_BYTES as u64;
    let file_id: [u8; FILE_ID_BYTES] =
        checked[NAME.len() + 1..].try_into().expect("the id is the end of what is checked");
    let mut appender = Appender { file_id, records: 0, bytes: HEADER_BYTES as u64, base_bytes: 0 };
    let damage = loop {
        match read_record(&mut input, &mut left, key, &appender)? {
            Ok(Some(Record { kind, response, refused, bytes })) => {
                let is_base = appender.base_bytes == 0;
                if is_base == (kind == Kind::Delta) {
                    break Some(Damage::Changed);
                }
                take(response, refused);
                appender.records += 1;
                appender.bytes += bytes;
                if kind == Kind::LastBasePart {
                    appender.base_bytes = appender.bytes;
                }
            }
            Ok(None) => break None,
            Err(damage) => break Some(damage),
        }
    };
    Ok(match damage {
        damage if appender.base_bytes == 0 => Reading::BaseDamaged(damage.unwrap_or(Damage::Cut)),
        damage => Reading::Good { appender, damage },
    })
}

/// What a record brings, and how many bytes it has in the file.
struct Record {
    kind: Kind,
    response: v1::StreamConfigResponse,
    refused: Refusals,
    bytes: u64,
}

fn read_record(
    input: &mut impl Read,
    left: &mut u64,
    key: &Key,
    at: &Appender,
) -> io::Result<Result<Option<Record>, Damage>> {
    if *left == 0 {
        return Ok(Ok(None));
    }
    if *left < FRAME_HEADER_BYTES as u64 {
        return Ok(Err(Damage::Cut));
    }
    let (mut length, mut crc) = ([0; 4], [0; 4]);
    input.read_exact(&mut length)?;
    input.read_exact(&mut crc)?;
    *left -= FRAME_HEADER_BYTES as u64;
    let sealed_bytes = u32::from_le_bytes(length);
    if u64::from(sealed_bytes) > *left {
        return Ok(Err(Damage::Cut));
    }
    let mut sealed = vec![0; usize::try_from(sealed_bytes).unwrap_or(usize::MAX)];
    input.read_exact(&mut sealed)?;
    *left -= u64::from(sealed_bytes);
    if crc32c::crc32c_append(crc32c::crc32c(&length), &sealed).to_le_bytes() != crc {
        return Ok(Err(Damage::Changed));
    }
    let other_key = KeyId::of_sealed(&sealed).filter(|id| *id != key.id());
    if let Some(id) = other_key {
        return Ok(Err(Damage::OtherKey(id)));
    }
    let Ok(plain) = key.open(&[PLACE, &at.place()], &sealed) else { return Ok(Err(Damage::Changed)) };
    let record = plain.split_first().and_then(|(kind, response)| {
        Some(Record {
            kind: Kind::of(*kind)?,
            response: v1::StreamConfigResponse::decode(response).ok()?,
            refused: Refusals::decode(response).ok()?,
            bytes: FRAME_HEADER_BYTES as u64 + u64::from(sealed_bytes),
        })
    });
    Ok(record.map(Some).ok_or(Damage::Changed))
}

/// Where the next record of a file goes.
pub struct Appender {
    file_id: [u8; FILE_ID_BYTES],
    records: u64,
    bytes: u64,
    base_bytes: u64,
}

impl Appender {
    /// Writes a new file with a base, durable when this returns, for its owner alone.
    pub fn create(path: &Path, key: &Key, parts: impl Iterator<Item = Part>) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        let mut output = BufWriter::new(file);
        let mut checked = NAME.to_vec();
        checked.push(FORMAT);
        let file_id: [u8; FILE_ID_BYTES] = rand::random();
        checked.extend_from_slice(&file_id);
        output.write_all(&checked)?;
        output.write_all(&crc32c::crc32c(&checked).to_le_bytes())?;
        let mut appender = Self { file_id, records: 0, bytes: HEADER_BYTES as u64, base_bytes: 0 };
        for part in parts {
            let kind = if part.is_last { Kind::LastBasePart } else { Kind::BasePart };
            let record = appender.record(key, kind, &part.message, &part.refused)?;
            output.write_all(&record)?;
            appender.wrote(&record);
        }
        output.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        appender.base_bytes = appender.bytes;
        Ok(appender)
    }

    /// Appends a delta and what was refused of it, durably. What was behind the last good record is cut off.
    pub fn add(
        &mut self,
        path: &Path,
        key: &Key,
        response: &v1::StreamConfigResponse,
        refused: &Refusals,
    ) -> io::Result<()> {
        let record = self.record(key, Kind::Delta, response, refused)?;
        let mut file = OpenOptions::new().append(true).open(path)?;
        if file.metadata()?.len() != self.bytes {
            file.set_len(self.bytes)?;
        }
        if let Err(error) = file.write_all(&record).and_then(|()| file.sync_data()) {
            // A half-written record would hide every later one; a reader finds it all the same.
            drop(file.set_len(self.bytes));
            return Err(error);
        }
        self.wrote(&record);
        Ok(())
    }

    /// Length of the file up to the last good record.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length of the header and the base.
    pub const fn base_bytes(&self) -> u64 {
        self.base_bytes
    }

    /// Length of the deltas.
    pub const fn delta_bytes(&self) -> u64 {
        self.bytes - self.base_bytes
    }

    fn record(
        &self,
        key: &Key,
        kind: Kind,
        message: &impl prost::Message,
        refused: &Refusals,
    ) -> io::Result<Vec<u8>> {
        let bytes = 1 + message.encoded_len() + refused.encoded_len();
        let mut plain = Zeroizing::new(Vec::with_capacity(bytes));
        plain.push(kind as u8);
        message.encode(&mut *plain).map_err(io::Error::other)?;
        // One message after another is both of them (<https://protobuf.dev/programming-guides/encoding/#last-one-wins>).
        refused.encode(&mut *plain).map_err(io::Error::other)?;
        let sealed = key.seal(&[PLACE, &self.place()], &plain);
        let length = u32::try_from(sealed.len()).map_err(io::Error::other)?.to_le_bytes();
        let crc = crc32c::crc32c_append(crc32c::crc32c(&length), &sealed).to_le_bytes();
        Ok([&length[..], &crc, &sealed].concat())
    }

    fn wrote(&mut self, record: &[u8]) {
        self.records += 1;
        self.bytes += record.len() as u64;
    }

    /// What the next record is bound to: this file, and its number in it.
    fn place(&self) -> Vec<u8> {
        [&self.file_id[..], &self.records.to_be_bytes()].concat()
    }
}
