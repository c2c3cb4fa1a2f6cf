//! Signatures and hashes of what a provider sent, whatever the algorithm.

use gateway_core::signature::decode_hex;
use sha2::{Digest as _, Sha256};

use super::Refusal;

/// Whether what is signed `fits` under any of the secrets. Empty secrets are none.
///
/// # Errors
/// Why it is not proved.
pub fn verify<'a>(
    secrets: impl Iterator<Item = &'a str>,
    mut fits: impl FnMut(&[u8]) -> bool,
) -> Result<(), Refusal> {
    let (mut is_proved, mut is_signable) = (false, false);
    // Every secret is tried, so that the time does not tell which one fits.
    for secret in secrets.filter(|secret| !secret.is_empty()) {
        is_proved |= fits(secret.as_bytes());
        is_signable = true;
    }
    match (is_proved, is_signable) {
        (true, _) => Ok(()),
        (false, true) => Err(Refusal::WrongSignature),
        (false, false) => Err(Refusal::MissingSecret),
    }
}

/// Whether `hex`, in either case, is the SHA-256 of `bytes`. Neither is secret.
pub fn is_sha256_of(hex: &str, bytes: &[u8]) -> bool {
    decode_hex::<32>(hex.as_bytes()).is_some_and(|hash| hash == *Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every secret but the empty one is tried, also after one that fits.
    #[test]
    fn every_secret_is_tried() {
        let verify_with = |secrets: &[&str], right: &str| {
            let mut tried = Vec::new();
            let verdict = verify(secrets.iter().copied(), |secret| {
                tried.push(String::from_utf8(secret.to_vec()).unwrap());
                secret == right.as_bytes()
            });
            (verdict, tried.concat())
        };
        assert_eq!(verify_with(&["a", "", "b", "c"], "b"), (Ok(()), "abc".to_owned()));
        assert_eq!(verify_with(&["a", "b"], "c"), (Err(Refusal::WrongSignature), "ab".to_owned()));
        assert_eq!(verify_with(&["", ""], ""), (Err(Refusal::MissingSecret), String::new()));
        assert_eq!(verify_with(&[], ""), (Err(Refusal::MissingSecret), String::new()));
    }

    /// The hash of exactly these bytes is recognized, in digits of either case.
    #[test]
    fn hashes_are_compared() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(is_sha256_of(abc, b"abc") && is_sha256_of(&abc.to_uppercase(), b"abc"));
        for (hex, bytes) in [(abc, &b"abd"[..]), (&abc[1..], b"abc"), ("", b""), ("x", b"abc")] {
            assert!(!is_sha256_of(hex, bytes), "{hex}");
        }
    }
}
