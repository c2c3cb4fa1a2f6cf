//! Authenticated encryption of bytes that rest on a disk, under keys that have names.
//!
//! Sealed bytes are: format version (1 byte), key id (8 bytes), nonce (24 random bytes), and the
//! XChaCha20-Poly1305 ciphertext with its tag
//! (<https://datatracker.ietf.org/doc/html/draft-irtf-cfrg-xchacha-03>). What they were sealed for is not in
//! them but bound to them: bytes that are moved to another place cannot be opened there.

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{AeadInOut as _, Tag},
};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// The format that is written; no other is known.
const FORMAT: u8 = 1;
const KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 8;
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_BYTES;
/// How many bytes longer sealed bytes are than what was sealed.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Kept apart from every other use of SHA-256.
const KEY_ID_DOMAIN: &[u8] = b"key id\0";

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: [GeneralPurpose; 2] =
    [GeneralPurpose::new(&alphabet::STANDARD, LENIENT), GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT)];

/// The name of a key: 8 bytes of a hash of it, so that the same key has the same name everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KEY_ID_BYTES]);

impl KeyId {
    /// The bytes of the name.
    pub const fn as_bytes(&self) -> &[u8; KEY_ID_BYTES] {
        &self.0
    }

    /// Reads a name as it prints: 16 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = from_hex(text)?;
        Some(Self(bytes.as_slice().try_into().ok()?))
    }

    /// The name of the key under which bytes were sealed. None when they are not sealed bytes.
    pub fn of_sealed(sealed: &[u8]) -> Option<Self> {
        let (format, rest) = sealed.split_first()?;
        let id = rest.first_chunk()?;
        (*format == FORMAT && sealed.len() >= OVERHEAD_BYTES).then_some(Self(*id))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a key. It says nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("read a key: it must be 32 bytes, written as base64 (44 characters) or hexadecimal (64 digits)")]
pub struct BadKey;

/// Why bytes cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// They are too short or begin in another way.
    #[error("open sealed bytes: they are not in a known format")]
    Format,
    /// They were sealed under another key.
    #[error("open sealed bytes: they are sealed under key `{0}`")]
    OtherKey(KeyId),
    /// They were changed, or sealed for another place.
    #[error("open sealed bytes: they were changed, or sealed for another place")]
    NotAuthentic,
}

/// A key of 32 bytes. Prints as its name, and is wiped from memory when dropped.
#[derive(Clone)]
pub struct Key {
    id: KeyId,
    secret: Zeroizing<[u8; KEY_BYTES]>,
}

impl Key {
    /// A new key at random.
    pub fn generate() -> Self {
        Self::from_bytes(Zeroizing::new(rand::random()))
    }

    /// The key of these bytes.
    pub fn from_bytes(secret: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let hash = Sha256::new().chain_update(KEY_ID_DOMAIN).chain_update(secret.as_slice()).finalize();
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&hash[..KEY_ID_BYTES]);
        Self { id: KeyId(id), secret }
    }

    /// Reads a key from text: base64, with or without padding, or hexadecimal. White space around it is left
    /// out.
    ///
    /// # Errors
    /// When it is not 32 bytes.
    pub fn parse(text: &str) -> Result<Self, BadKey> {
        let text = text.trim();
        let decoded = from_hex(text)
            .filter(|bytes| bytes.len() == KEY_BYTES)
            .or_else(|| BASE64.iter().find_map(|engine| engine.decode(text).ok()).map(Zeroizing::new));
        let secret: [u8; KEY_BYTES] = decoded.ok_or(BadKey)?.as_slice().try_into().map_err(|_| BadKey)?;
        Ok(Self::from_bytes(Zeroizing::new(secret)))
    }

    /// The key's name, which gives nothing of it away.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// The key itself, to be sealed under another one.
    pub fn reveal(&self) -> &[u8; KEY_BYTES] {
        &self.secret
    }

    /// The key as base64, to be kept in a file.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.secret.as_slice()))
    }

    /// Seals bytes for a place, which `place` names in parts; only the same parts open them.
    pub fn seal(&self, place: &[&[u8]], plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let mut sealed = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        sealed.push(FORMAT);
        sealed.extend_from_slice(&self.id.0);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let tag = self
            .cipher()
            .encrypt_inout_detached(
                &XNonce::from(nonce),
                &self.associated_data(place),
                (&mut sealed[HEADER_BYTES..]).into(),
            )
            .expect("what is sealed is far below the 256 GiB that the cipher can take");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// Opens what [`Key::seal`] made for the same place.
    ///
    /// # Errors
    /// When the bytes were sealed under another key, for another place, or were changed.
    pub fn open(&self, place: &[&[u8]], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let id = KeyId::of_sealed(sealed).ok_or(OpenError::Format)?;
        if id != self.id {
            return Err(OpenError::OtherKey(id));
        }
        let (header, rest) = sealed.split_at(HEADER_BYTES);
        let (ciphertext, tag) = rest.split_at(rest.len() - TAG_BYTES);
        let nonce: [u8; NONCE_BYTES] =
            header[1 + KEY_ID_BYTES..].try_into().expect("the header ends with the nonce");
        let tag = Tag::<XChaCha20Poly1305>::try_from(tag).expect("the tag was split off at its length");
        let mut plain = Zeroizing::new(ciphertext.to_vec());
        self.cipher()
            .decrypt_inout_detached(
                &XNonce::from(nonce),
                &self.associated_data(place),
                plain.as_mut_slice().into(),
                &tag,
            )
            .map_err(|_| OpenError::NotAuthentic)?;
        Ok(plain)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.secret).into())
    }

    /// Format, key and place, each part of the place after its length, so that no two places read the same.
    fn associated_data(&self, place: &[&[u8]]) -> Vec<u8> {
        let mut data = vec![FORMAT];
        data.extend_from_slice(&self.id.0);
        for part in place {
            data.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            data.extend_from_slice(part);
        }
        data
    }
}

impl PartialEq for Key {
    /// By name: two keys of one name are the same key.
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

fn from_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes: Option<Vec<u8>> =
        pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect();
    bytes.filter(|_| rest.is_empty()).map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was sealed opens under the same key and for the same place only, and does not show.
    #[test]
    fn opens_only_where_it_was_sealed() {
        let (key, other) = (Key::generate(), Key::generate());
        let place: [&[u8]; 2] = [b"tenant", b"resource"];
        let sealed = key.seal(&place, b"planted secret");
        assert_eq!(sealed.len(), b"planted secret".len() + OVERHEAD_BYTES);
        assert!(!sealed.windows(7).any(|window| window == b"planted"));
        assert_eq!(*key.open(&place, &sealed).unwrap(), b"planted secret");
        assert_eq!(key.open(&[b"tenant", b"another"], &sealed), Err(OpenError::NotAuthentic));
        assert_eq!(key.open(&[b"tenantr", b"esource"], &sealed), Err(OpenError::NotAuthentic));
        assert_eq!(other.open(&place, &sealed), Err(OpenError::OtherKey(key.id())));
        assert_ne!(key.seal(&place, b"planted secret"), sealed, "every sealing has a nonce of its own");
        assert!(key.open(&[], &key.seal(&[], b"")).unwrap().is_empty());
    }

    /// A bit flipped anywhere, or a cut anywhere, is found.
    #[test]
    fn changes_are_found() {
        let key = Key::generate();
        let sealed = key.seal(&[b"place"], b"plain");
        for index in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[index] ^= 1;
            assert!(key.open(&[b"place"], &changed).is_err(), "{index}");
            assert!(key.open(&[b"place"], &sealed[..index]).is_err(), "{index}");
        }
    }

    /// A key reads from base64 of either alphabet and from hexadecimal as one key; anything else is refused,
    /// without showing it.
    #[test]
    fn keys_are_read_in_every_spelling() {
        let key = Key::from_bytes(Zeroizing::new([0xfb; 32]));
        let base64 = key.to_base64();
        let url_safe = base64.replace('+', "-").replace('/', "_");
        let hex = "fB".repeat(32);
        for text in [&*base64, &url_safe, base64.trim_end_matches('='), &hex, &format!(" {hex}\n")] {
            assert_eq!(Key::parse(text).unwrap().reveal(), key.reveal(), "{text}");
        }
        for text in ["", "planted", &hex[..62], &base64[..40], &"z".repeat(64)] {
            assert!(!Key::parse(text).unwrap_err().to_string().contains("planted"));
        }
        assert_eq!(KeyId::parse(&key.id().to_string()), Some(key.id()));
        assert_eq!(format!("{key:?}"), format!("Key({})", key.id()));
    }
}
