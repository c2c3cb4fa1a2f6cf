//! Files of records that many can read and only one can write: sealed under a key that the readers share, and signed
//! with a key that stays with the writer. So a reader's keys make no file that another reader would take.
//!
//! | bytes | what |
//! |---|---|
//! | 7 + 1 | the name of the kind of file, and the number of its format |
//! | 16 | the file's id, at random |
//! | 8 | the name of the key that signs: the beginning of the SHA-256 of the public key |
//! | 8 | the name of the key that the records are sealed under |
//! | 4 | length of the header, little endian |
//! | n | the header, readable |
//! | 4 + n | each record: its length, little endian, and the sealed bytes ([`crate::sealing`], bound to the kind, the file's id and the record's number) |
//! | 4 | zero: no more records |
//! | 64 | Ed25519 (<https://www.rfc-editor.org/rfc/rfc8032>) over a fixed text, the kind and the SHA-256 of all before |
//!
//! A reader checks the signature of the whole before it opens the first record.

use std::{
    fmt,
    io::{self, Read, Seek, SeekFrom, Write},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{SIGNATURE_LENGTH, Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::sealing::{Key, OpenError};

#[cfg(test)]
mod tests;

/// The format that is written; no other is known.
const FORMAT: u8 = b'1';
const NAME_BYTES: usize = 7;
const FILE_ID_BYTES: usize = 16;
const KEY_NAME_BYTES: usize = 8;
/// Everything before the header.
const PRELUDE_BYTES: usize = NAME_BYTES + 1 + FILE_ID_BYTES + 2 * KEY_NAME_BYTES + 4;
/// Longest header. Writing a longer one fails.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;
/// Longest sealed record. Writing a longer one fails.
pub const RECORD_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes read at once while the signature is checked.
const CHUNK_BYTES: usize = 256 * 1024;
/// What is signed begins with this, so that no signature made for another use fits.
const DOMAIN: &[u8] = b"signed file of records\0";
/// The version of the text form of keys.
const TEXT_FORMAT: &str = "1";
/// Bytes of SHA-256 that end the text of a key.
const CHECKSUM_BYTES: usize = 4;

/// One kind of such files.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// What a file begins with.
    pub name: &'static [u8; NAME_BYTES],
    /// What the text of its readers' key begins with.
    pub reader_prefix: &'static str,
    /// What the text of its writer's key begins with.
    pub writer_prefix: &'static str,
}

/// The name of a key that signs, which gives nothing of it away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SignerId([u8; KEY_NAME_BYTES]);

impl SignerId {
    fn of(key: &VerifyingKey) -> Self {
        let hash = Sha256::digest(key.as_bytes());
        let mut id = [0; KEY_NAME_BYTES];
        id.copy_from_slice(&hash[..KEY_NAME_BYTES]);
        Self(id)
    }
}

impl fmt::Display for SignerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SignerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a key. It says nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKeyText {
    /// It begins in another way.
    #[error("read key: it must begin with `{0}`")]
    Other(&'static str),
    /// A newer program wrote it.
    #[error("read key: it is of a newer format than this program knows; use a newer program")]
    Newer,
    /// It is cut or mistyped.
    #[error("read key: its checksum is wrong, so it is cut or changed; copy the whole line")]
    Damaged,
}

/// The key of a writer. Prints as its name.
#[derive(Clone)]
pub struct WriterKey(SigningKey);

impl WriterKey {
    /// A new key at random.
    pub fn generate() -> Self {
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        Self(SigningKey::from_bytes(&seed))
    }

    /// Reads the text of [`WriterKey::to_text`].
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, BadKeyText> {
        Ok(Self(SigningKey::from_bytes(&*from_text(kind.writer_prefix, text)?)))
    }

    /// The key as one line, for a file.
    pub fn to_text(&self, kind: &Kind) -> Zeroizing<String> {
        to_text(kind.writer_prefix, self.0.as_bytes())
    }

    /// The key's name.
    pub fn id(&self) -> SignerId {
        SignerId::of(&self.0.verifying_key())
    }
}

impl fmt::Debug for WriterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriterKey({})", self.id())
    }
}

/// What a reader needs: the key that opens, and the public half of the one that signs. Prints as their names.
#[derive(Clone)]
pub struct ReaderKey {
    seal: Key,
    signer: VerifyingKey,
}

impl ReaderKey {
    /// A new key that opens, for files that `writer` signs.
    pub fn generate(writer: &WriterKey) -> Self {
        Self { seal: Key::generate(), signer: writer.0.verifying_key() }
    }

    /// Reads the text of [`ReaderKey::to_text`].
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, BadKeyText> {
        let bytes = from_text::<64>(kind.reader_prefix, text)?;
        let (mut seal, mut signer) = (Zeroizing::new([0; 32]), [0; 32]);
        seal.copy_from_slice(&bytes[..32]);
        signer.copy_from_slice(&bytes[32..]);
        let signer = VerifyingKey::from_bytes(&signer).map_err(|_| BadKeyText::Damaged)?;
        Ok(Self { seal: Key::from_bytes(seal), signer })
    }

    /// The key as one line, for a file.
    pub fn to_text(&self, kind: &Kind) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 64]);
        bytes[..32].copy_from_slice(self.seal.reveal());
        bytes[32..].copy_from_slice(self.signer.as_bytes());
        to_text(kind.reader_prefix, &*bytes)
    }

    /// The name of the key that signs.
    pub fn signer(&self) -> SignerId {
        SignerId::of(&self.signer)
    }
}

impl fmt::Debug for ReaderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReaderKey({:?}, signed by {})", self.seal, self.signer())
    }
}

/// Prefix, format, base64 and checksum, with full stops between them.
fn to_text(prefix: &str, bytes: &[u8]) -> Zeroizing<String> {
    let body =
        Zeroizing::new(format!("{prefix}{TEXT_FORMAT}.{}", &*Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes))));
    let checksum = checksum(&body);
    Zeroizing::new(format!("{}.{checksum}", &*body))
}

fn checksum(body: &str) -> String {
    Sha256::digest(body)[..CHECKSUM_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_text<const N: usize>(prefix: &'static str, text: &str) -> Result<Zeroizing<[u8; N]>, BadKeyText> {
    let text = text.trim();
    let rest = text.strip_prefix(prefix).ok_or(BadKeyText::Other(prefix))?;
    let (format, _) = rest.split_once('.').ok_or(BadKeyText::Damaged)?;
    if format != TEXT_FORMAT {
        let is_number = !format.is_empty() && format.bytes().all(|byte| byte.is_ascii_digit());
        return Err(if is_number { BadKeyText::Newer } else { BadKeyText::Damaged });
    }
    let (body, found) = text.rsplit_once('.').ok_or(BadKeyText::Damaged)?;
    let encoded = body.get(prefix.len() + TEXT_FORMAT.len() + 1..).ok_or(BadKeyText::Damaged)?;
    if found != checksum(body) {
        return Err(BadKeyText::Damaged);
    }
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map(Zeroizing::new).map_err(|_| BadKeyText::Damaged)?;
    let bytes: [u8; N] = bytes.as_slice().try_into().map_err(|_| BadKeyText::Damaged)?;
    Ok(Zeroizing::new(bytes))
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SignedFileError {
    /// The disk refuses.
    #[error("read the file")]
    Io(#[from] io::Error),
    /// It begins in another way.
    #[error("read the file: it is not of this kind")]
    OtherKind,
    /// A newer program wrote it.
    #[error("read the file: it is of a newer format than this program knows; use a newer program")]
    NewerFormat,
    /// It ends too early.
    #[error("read the file: it is cut short")]
    Cut,
    /// It is for readers with another key.
    #[error("read the file: it was made for another key file")]
    OtherKey,
    /// Another one signed it.
    #[error("read the file: it is signed by key {found}, and the key file trusts {trusted} alone")]
    OtherSigner {
        /// Who signed it.
        found: SignerId,
        /// Who is trusted.
        trusted: SignerId,
    },
    /// Its signature is wrong.
    #[error("read the file: its signature is wrong, so it was damaged or changed")]
    Changed,
    /// A record cannot be opened, although the signature is right.
    #[error("read the file: a record cannot be opened")]
    Record(#[source] OpenError),
}

impl SignedFileError {
    /// An early end is damage like another.
    fn of(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Cut } else { Self::Io(error) }
    }
}

/// Where the next record belongs.
struct Place {
    name: &'static [u8; NAME_BYTES],
    file_id: [u8; FILE_ID_BYTES],
    records: u64,
}

impl Place {
    /// Gives the parts that the next record is bound to, and goes on.
    fn next<T>(&mut self, with: impl FnOnce(&[&[u8]]) -> T) -> T {
        let number = self.records.to_be_bytes();
        self.records += 1;
        with(&[self.name, &self.file_id, &number])
    }
}

/// Writes a file.
pub struct Writer<W> {
    output: W,
    hash: Sha256,
    seal: Key,
    place: Place,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file that holders of `key` can read.
    ///
    /// # Errors
    /// When it cannot be written, or the header is too long.
    pub fn begin(kind: &Kind, output: W, key: &ReaderKey, header: &[u8]) -> io::Result<Self> {
        let length = length(header, HEADER_BYTES_MAX)?;
        let file_id: [u8; FILE_ID_BYTES] = rand::random();
        let place = Place { name: kind.name, file_id, records: 0 };
        let mut writer = Self { output, hash: Sha256::new(), seal: key.seal.clone(), place, bytes: 0 };
        writer.put(kind.name)?;
        writer.put(&[FORMAT])?;
        writer.put(&file_id)?;
        writer.put(&key.signer().0)?;
        writer.put(key.seal.id().as_bytes())?;
        writer.put(&length)?;
        writer.put(header)?;
        Ok(writer)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// When it cannot be written, or is too long.
    pub fn add(&mut self, record: &[u8]) -> io::Result<()> {
        let Self { place, seal, .. } = self;
        let sealed = place.next(|place| seal.seal(place, record));
        self.put(&length(&sealed, RECORD_BYTES_MAX)?)?;
        self.put(&sealed)
    }

    /// Ends and signs the file. Returns where it was written to, and its length.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self, writer: &WriterKey) -> io::Result<(W, u64)> {
        self.put(&[0; 4])?;
        let message = signed_bytes(self.place.name, &self.hash.finalize());
        self.output.write_all(&writer.0.sign(&message).to_bytes())?;
        Ok((self.output, self.bytes + SIGNATURE_LENGTH as u64))
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.output.write_all(bytes)
    }
}

fn length(bytes: &[u8], max: usize) -> io::Result<[u8; 4]> {
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= max);
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the record or header is too long");
    length.map(u32::to_le_bytes).ok_or_else(too_long)
}

fn signed_bytes(name: &[u8; NAME_BYTES], hash: &[u8]) -> Vec<u8> {
    [DOMAIN, name, hash].concat()
}

/// A file whose signature was found to be right.
pub struct SignedFile<R> {
    input: R,
    header: Vec<u8>,
    seal: Key,
    place: Place,
    /// Hash of everything that was signed, and of what was read since.
    signed: [u8; 32],
    reread: Sha256,
    is_done: bool,
}

impl<R: Read + Seek> SignedFile<R> {
    /// Checks all of a file, which is read to its end once for it.
    ///
    /// # Errors
    /// When it is not whole, not signed by whom the key says, or not of this kind.
    pub fn check(kind: &Kind, mut input: R, key: &ReaderKey) -> Result<Self, SignedFileError> {
        let mut hash = Sha256::new();
        let mut prelude = [0; PRELUDE_BYTES];
        take(&mut input, &mut hash, &mut prelude)?;
        let (name, rest) = prelude.split_at(NAME_BYTES);
        if name != kind.name {
            return Err(SignedFileError::OtherKind);
        }
        if rest[0] != FORMAT {
            return Err(SignedFileError::NewerFormat);
        }
        let field = |at: usize, length: usize| &rest[1 + at..1 + at + length];
        let mut file_id = [0; FILE_ID_BYTES];
        file_id.copy_from_slice(field(0, FILE_ID_BYTES));
        let mut found = SignerId([0; KEY_NAME_BYTES]);
        found.0.copy_from_slice(field(FILE_ID_BYTES, KEY_NAME_BYTES));
        if found != key.signer() {
            return Err(SignedFileError::OtherSigner { found, trusted: key.signer() });
        }
        if field(FILE_ID_BYTES + KEY_NAME_BYTES, KEY_NAME_BYTES) != key.seal.id().as_bytes() {
            return Err(SignedFileError::OtherKey);
        }
        let mut length = [0; 4];
        length.copy_from_slice(field(FILE_ID_BYTES + 2 * KEY_NAME_BYTES, 4));
        let length = bounded(length, HEADER_BYTES_MAX)?;
        let mut header = vec![0; length];
        take(&mut input, &mut hash, &mut header)?;
        pass_records(&mut input, &mut hash)?;
        let signed: [u8; 32] = hash.finalize().into();
        let mut signature = [0; SIGNATURE_LENGTH];
        input.read_exact(&mut signature).map_err(SignedFileError::of)?;
        let message = signed_bytes(kind.name, &signed);
        let verified = key.signer.verify_strict(&message, &Signature::from_bytes(&signature));
        if verified.is_err() || input.read(&mut [0])? != 0 {
            return Err(SignedFileError::Changed);
        }
        input.seek(SeekFrom::Start(0))?;
        let mut reread = Sha256::new();
        let mut before = vec![0; PRELUDE_BYTES + header.len()];
        take(&mut input, &mut reread, &mut before)?;
        let place = Place { name: kind.name, file_id, records: 0 };
        Ok(Self { input, header, seal: key.seal.clone(), place, signed, reread, is_done: false })
    }

    /// The header.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The next record; None after the last one. Only once None has come, what came before is known to be what was
    /// checked: the file might have been written to meanwhile.
    ///
    /// # Errors
    /// When the disk refuses, or the file is another one than was checked.
    pub fn next_record(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, SignedFileError> {
        if self.is_done {
            return Ok(None);
        }
        let mut length = [0; 4];
        take(&mut self.input, &mut self.reread, &mut length)?;
        let length = bounded(length, RECORD_BYTES_MAX)?;
        if length == 0 {
            self.is_done = true;
            let is_same = <[u8; 32]>::from(self.reread.finalize_reset()) == self.signed;
            return if is_same { Ok(None) } else { Err(SignedFileError::Changed) };
        }
        let mut sealed = vec![0; length];
        take(&mut self.input, &mut self.reread, &mut sealed)?;
        let Self { place, seal, .. } = self;
        place.next(|place| seal.open(place, &sealed)).map(Some).map_err(SignedFileError::Record)
    }
}

fn take(input: &mut impl Read, hash: &mut Sha256, bytes: &mut [u8]) -> Result<(), SignedFileError> {
    input.read_exact(bytes).map_err(SignedFileError::of)?;
    hash.update(&*bytes);
    Ok(())
}

fn bounded(length: [u8; 4], max: usize) -> Result<usize, SignedFileError> {
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length <= max { Ok(length) } else { Err(SignedFileError::Changed) }
}

/// Reads over all records and the mark of their end.
fn pass_records(input: &mut impl Read, hash: &mut Sha256) -> Result<(), SignedFileError> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let mut length = [0; 4];
        take(input, hash, &mut length)?;
        let mut left = bounded(length, RECORD_BYTES_MAX)?;
        if left == 0 {
            return Ok(());
        }
        while left > 0 {
            let part = left.min(CHUNK_BYTES);
            take(input, hash, &mut chunk[..part])?;
            left -= part;
        }
    }
}
