//! The hashes with which providers sign callbacks.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

/// HMAC-SHA1 of `message` under `key`.
pub fn hmac_sha1(key: &[u8], message: &[u8]) -> [u8; 20] {
    mac::<Hmac<Sha1>>(key, message).finalize().into_bytes().into()
}

/// HMAC-SHA256 of `message` under `key`.
pub fn hmac_sha256(key: &[u8], message: &[u8]) -> [u8; 32] {
    mac::<Hmac<Sha256>>(key, message).finalize().into_bytes().into()
}

/// HMAC-SHA512 of `message` under `key`.
pub fn hmac_sha512(key: &[u8], message: &[u8]) -> [u8; 64] {
    mac::<Hmac<Sha512>>(key, message).finalize().into_bytes().into()
}

/// Whether `signature` is HMAC-SHA1 of `message` under `key`, in constant time.
pub fn hmac_sha1_matches(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    mac::<Hmac<Sha1>>(key, message).verify_slice(signature).is_ok()
}

/// Whether `signature` is HMAC-SHA256 of `message` under `key`, in constant time.
pub fn hmac_sha256_matches(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    mac::<Hmac<Sha256>>(key, message).verify_slice(signature).is_ok()
}

/// Whether `signature` is HMAC-SHA512 of `message` under `key`, in constant time.
pub fn hmac_sha512_matches(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    mac::<Hmac<Sha512>>(key, message).verify_slice(signature).is_ok()
}

fn mac<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac
}

/// SHA-256 in lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    encode_hex(&Sha256::digest(bytes))
}

/// Bytes in lower-case hex.
pub fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
    text
}

/// Exactly `N` bytes of hex digits in either case; None for anything else.
pub fn decode_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The test cases with the key `Jefe` of RFC 2202 section 3 and RFC 4231 section 4.3.
    #[test]
    fn hmacs_are_the_documented_ones() {
        let (key, message) = (b"Jefe", b"what do ya want for nothing?");
        assert_eq!(encode_hex(&hmac_sha1(key, message)), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
        assert_eq!(
            encode_hex(&hmac_sha256(key, message)),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            encode_hex(&hmac_sha512(key, message)),
            "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fd\
             caeab1a34d4a6b4b636e070a38bce737"
        );
        assert!(hmac_sha1_matches(key, message, &hmac_sha1(key, message)));
        assert!(!hmac_sha1_matches(key, b"nothing", &hmac_sha1(key, message)));
        assert!(!hmac_sha512_matches(key, message, &hmac_sha256(key, message)));
    }

    /// Hex of the right length only, in either case.
    #[test]
    fn hex_round_trips() {
        assert_eq!(decode_hex::<3>(b"00fFa5"), Some([0, 255, 0xa5]));
        assert_eq!(encode_hex(&[0, 255, 0xa5]), "00ffa5");
        for bad in [&b""[..], b"00ff", b"00ffa", b"00ffag", b"00ffa5a5", b"+0ffa5", b"00ffa\xc3"] {
            assert_eq!(decode_hex::<3>(bad), None, "{bad:?}");
        }
        assert_eq!(sha256_hex(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
