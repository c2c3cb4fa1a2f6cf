//! Ids as providers make them: new for every sample, so that the gateway does not take it for a repeat.

use rand::RngExt as _;

/// `digits` hex digits, lower case.
pub fn hex(digits: usize) -> String {
    of(b"0123456789abcdef", digits)
}

/// `characters` letters and digits.
pub fn letters(characters: usize) -> String {
    rand::rng().sample_iter(rand::distr::Alphanumeric).take(characters).map(char::from).collect()
}

/// A message id of WhatsApp's Cloud API.
pub fn wamid() -> String {
    format!("wamid.{}", letters(30))
}

/// A message id of WhatsApp Web.
pub fn web_id() -> String {
    format!("3EB0{}", of(b"0123456789ABCDEF", 18))
}

/// A UUID of version 4, <https://www.rfc-editor.org/rfc/rfc9562#section-5.4>.
pub fn uuid() -> String {
    let text = hex(32);
    let variant = of(b"89ab", 1);
    let (time, low, third) = (&text[..8], &text[8..12], &text[13..16]);
    format!("{time}-{low}-4{third}-{variant}{}-{}", &text[17..20], &text[20..])
}

/// A ULID, <https://github.com/ulid/spec>.
pub fn ulid() -> String {
    format!("01{}", of(b"0123456789abcdefghjkmnpqrstvwxyz", 24))
}

fn of(alphabet: &[u8], count: usize) -> String {
    let mut random = rand::rng();
    (0..count).map(|_| char::from(alphabet[random.random_range(0..alphabet.len())])).collect()
}

#[cfg(test)]
mod tests {
    /// The version and the variant of a UUID stand where they belong.
    #[test]
    fn uuids_are_uuids() {
        let uuid = super::uuid();
        let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
        assert_eq!((lengths, uuid.as_bytes()[14]), (vec![8, 4, 4, 4, 12], b'4'));
        assert!(b"89ab".contains(&uuid.as_bytes()[19]), "{uuid}");
    }
}
