use std::io::Cursor;

use super::*;

const KIND: Kind = Kind { name: b"TESTING", reader_prefix: "test_reader_", writer_prefix: "test_writer_" };
const OTHER_KIND: Kind = Kind { name: b"ANOTHER", ..KIND };

struct Keys {
    writer: WriterKey,
    reader: ReaderKey,
}

fn keys() -> Keys {
    let writer = WriterKey::generate();
    let reader = ReaderKey::generate(&writer);
    Keys { writer, reader }
}

fn written(keys: &Keys, records: &[&[u8]]) -> Vec<u8> {
    let mut writer = Writer::begin(&KIND, Vec::new(), &keys.reader, b"header").unwrap();
    for record in records {
        writer.add(record).unwrap();
    }
    let (bytes, length) = writer.finish(&keys.writer).unwrap();
    assert_eq!(bytes.len() as u64, length);
    bytes
}

fn read(bytes: &[u8], key: &ReaderKey) -> Result<(Vec<u8>, Vec<Vec<u8>>), SignedFileError> {
    let mut file = SignedFile::check(&KIND, Cursor::new(bytes), key)?;
    let mut records = Vec::new();
    while let Some(record) = file.next_record()? {
        records.push(record.to_vec());
    }
    Ok((file.header().to_vec(), records))
}

/// What was written is read again by whoever has the key, and shows nobody else what is in it.
#[test]
fn reads_what_was_written() {
    let keys = keys();
    let long = vec![7; 3 * CHUNK_BYTES + 1];
    let bytes = written(&keys, &[b"planted secret", b"", &long]);
    assert!(!bytes.windows(7).any(|window| window == b"planted"));
    let (header, records) = read(&bytes, &keys.reader).unwrap();
    assert_eq!(header, b"header");
    assert_eq!(records, [b"planted secret".to_vec(), Vec::new(), long]);
    assert!(read(&written(&keys, &[]), &keys.reader).unwrap().1.is_empty());
}

/// Cut at any byte, with any bit flipped, or with a byte more, a file gives out not one record.
#[test]
fn damage_anywhere_is_refused_before_anything_is_read() {
    let keys = keys();
    let bytes = written(&keys, &[b"one", b"two"]);
    let refused = |bytes: &[u8]| SignedFile::check(&KIND, Cursor::new(bytes), &keys.reader).is_err();
    for end in 0..bytes.len() {
        assert!(refused(&bytes[..end]), "cut at {end}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(&changed), "bit {bit}");
    }
    assert!(refused(&[&bytes[..], b"x"].concat()));
    assert!(!refused(&bytes));
}

/// A reader cannot make a file that another reader takes: it has the key that seals, not the one that signs.
#[test]
fn readers_cannot_write() {
    let keys = keys();
    let forger = WriterKey::generate();
    // With its own signature over the true writer's name, and under its own name.
    let mut writer = Writer::begin(&KIND, Vec::new(), &keys.reader, b"header").unwrap();
    writer.add(b"forged").unwrap();
    let (forged, _) = writer.finish(&forger).unwrap();
    assert!(matches!(read(&forged, &keys.reader), Err(SignedFileError::Changed)));
    let own = ReaderKey { seal: keys.reader.seal.clone(), signer: forger.0.verifying_key() };
    let mut writer = Writer::begin(&KIND, Vec::new(), &own, b"header").unwrap();
    writer.add(b"forged").unwrap();
    let (forged, _) = writer.finish(&forger).unwrap();
    assert!(read(&forged, &own).is_ok());
    assert!(matches!(read(&forged, &keys.reader), Err(SignedFileError::OtherSigner { .. })));
}

/// Another key, another kind, and a newer format are told apart from damage.
#[test]
fn refusals_say_what_is_wrong() {
    let keys = keys();
    let bytes = written(&keys, &[b"one"]);
    let other = ReaderKey::generate(&keys.writer);
    assert!(matches!(read(&bytes, &other), Err(SignedFileError::OtherKey)));
    let as_other = SignedFile::check(&OTHER_KIND, Cursor::new(&bytes), &keys.reader);
    assert!(matches!(as_other, Err(SignedFileError::OtherKind)));
    let mut newer = bytes.clone();
    newer[NAME_BYTES] = b'2';
    assert!(matches!(read(&newer, &keys.reader), Err(SignedFileError::NewerFormat)));
    assert!(matches!(read(&bytes[..bytes.len() - 1], &keys.reader), Err(SignedFileError::Cut)));
}

/// A record of another file, or from another place in the same one, is refused although it is genuine.
#[test]
fn records_stay_in_their_place() {
    let keys = keys();
    let sealed = |records: &[&[u8]]| {
        let bytes = written(&keys, records);
        bytes[PRELUDE_BYTES + b"header".len()..bytes.len() - SIGNATURE_LENGTH - 4].to_vec()
    };
    let (first, second) = (sealed(&[b"one", b"two"]), sealed(&[b"one", b"two"]));
    let half = first.len() / 2;
    // As the writer itself would sign it, were it tricked into it.
    let resigned = |records: &[&[u8]]| {
        let mut bytes = written(&keys, &[])[..PRELUDE_BYTES + b"header".len()].to_vec();
        bytes.extend(records.concat());
        bytes.extend([0; 4]);
        let message = signed_bytes(KIND.name, &Sha256::digest(&bytes));
        bytes.extend(keys.writer.0.sign(&message).to_bytes());
        bytes
    };
    for records in [[&first[..half], &first[half..]], [&first[half..], &second[..half]]] {
        let bytes = resigned(&records);
        assert!(matches!(read(&bytes, &keys.reader), Err(SignedFileError::Record(_))));
    }
}

/// Keys read from their text as the same keys; a text that is cut or changed anywhere, of a newer format, or of another
/// key is refused, and not shown.
#[test]
fn keys_are_kept_as_text() {
    let keys = keys();
    let bytes = written(&keys, &[b"one"]);
    let text = keys.reader.to_text(&KIND);
    assert!(text.starts_with("test_reader_1."), "{}", &text[..16]);
    read(&bytes, &ReaderKey::parse(&KIND, &format!(" {}\n", &*text)).unwrap()).unwrap();
    let writer = WriterKey::parse(&KIND, &keys.writer.to_text(&KIND)).unwrap();
    assert_eq!(writer.id(), keys.reader.signer());
    for end in 0..text.len() {
        assert!(ReaderKey::parse(&KIND, &text[..end]).is_err(), "cut at {end}");
        let mut changed = text.as_bytes().to_vec();
        changed[end] ^= 1;
        let changed = String::from_utf8(changed).unwrap();
        assert!(ReaderKey::parse(&KIND, &changed).is_err(), "{end}");
    }
    assert_eq!(ReaderKey::parse(&KIND, "test_reader_2.x.y").unwrap_err(), BadKeyText::Newer);
    let other = ReaderKey::parse(&KIND, &keys.writer.to_text(&KIND)).unwrap_err();
    assert_eq!(other, BadKeyText::Other("test_reader_"));
    for printed in [format!("{:?}", keys.reader), format!("{:?}", keys.writer)] {
        assert!(printed.len() < 70, "{printed}");
    }
}
