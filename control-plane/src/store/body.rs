//! The form in which resources that are not sealed lie in their rows: the message, and behind it a field that no
//! message has, with a checksum over the message, its type and its id. Whoever does not know the field skips it, as
//! protobuf has it. So a changed byte, a missing field and a row that was exchanged with another one are damage, and
//! never another value.

use prost::{DecodeError, Message};
use sha2::{Digest as _, Sha256};

use super::{StoreError, damaged::PlainRow};
use crate::audit::Resource;

/// The key of field 1999 with 8 bytes (<https://protobuf.dev/programming-guides/encoding/#structure>). No message of
/// the gateway has so many fields. 0xf9 is in no UTF-8 text, so no text that ends a message passes for it.
const KEY: [u8; 2] = [0xf9, 0x7c];
const SUM_BYTES: usize = 8;

/// What is wrong with a stored resource.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It is no message.
    #[error("decode the row")]
    Decode(#[source] DecodeError),
    /// It is another message than the one that was stored.
    #[error("compare the row with its checksum: it was changed")]
    Changed,
    /// It was stored with a checksum, which is not there.
    #[error("compare the row with its checksum: it has none")]
    NoChecksum,
    /// It does not belong to its row.
    #[error("compare the row with its columns: it has the id or the tenant of another one")]
    OfAnotherRow,
}

fn sum(resource_type: &str, id: &str, message: &[u8]) -> [u8; SUM_BYTES] {
    let mut hash = Sha256::new();
    for part in [resource_type.as_bytes(), id.as_bytes()] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.update(message);
    let hash: [u8; 32] = hash.finalize().into();
    *hash.first_chunk().expect("a SHA-256 is longer")
}

/// The bytes to store of a message.
pub(super) fn encode(resource_type: &str, id: &str, message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(message.encoded_len() + KEY.len() + SUM_BYTES);
    message.encode_raw(&mut bytes);
    let sum = sum(resource_type, id, &bytes);
    bytes.extend(KEY);
    bytes.extend(sum);
    bytes
}

/// The bytes to store of a resource.
pub(super) fn of<R: Resource>(resource: &R) -> Vec<u8> {
    encode(R::TYPE, resource.id(), resource)
}

/// The message and its checksum; None where it was stored without.
fn split(bytes: &[u8]) -> Option<(&[u8], [u8; SUM_BYTES])> {
    let (rest, sum) = bytes.split_last_chunk::<SUM_BYTES>()?;
    Some((rest.strip_suffix(&KEY)?, *sum))
}

/// Whether it was stored with a checksum, right or wrong.
pub(super) fn has_sum(bytes: &[u8]) -> bool {
    split(bytes).is_some()
}

/// Reads a message. One that was stored without a checksum, by an earlier program, is read all the same.
pub(super) fn decode<M: Message + Default>(
    resource_type: &'static str,
    id: &str,
    bytes: &[u8],
) -> Result<M, StoreError> {
    let damaged = |source| StoreError::Damaged { resource_type, id: id.to_owned(), source };
    let message = match split(bytes) {
        Some((message, found)) if found == sum(resource_type, id, message) => message,
        Some(_) => return Err(damaged(Damage::Changed)),
        None => bytes,
    };
    M::decode(message).map_err(|source| damaged(Damage::Decode(source)))
}

/// Reads a resource, which must be the one that its row says it is.
pub(super) fn read<R: Resource + Default>(row: &PlainRow) -> Result<R, StoreError> {
    let resource: R = decode(R::TYPE, &row.id, &row.body)?;
    // Some do not name their tenant.
    let is_tenants = [row.tenant_id.as_str(), ""].contains(&resource.tenant_id());
    if resource.id() == row.id && is_tenants {
        return Ok(resource);
    }
    Err(StoreError::Damaged { resource_type: R::TYPE, id: row.id.clone(), source: Damage::OfAnotherRow })
}

/// As [`read`], of a resource that is always stored with a checksum.
pub(super) fn read_summed<R: Resource + Default>(row: &PlainRow) -> Result<R, StoreError> {
    if has_sum(&row.body) {
        return read(row);
    }
    let (resource_type, id) = (R::TYPE, row.id.clone());
    // Bytes that are nothing at all are told apart, for the log.
    read::<R>(row).and(Err(StoreError::Damaged { resource_type, id, source: Damage::NoChecksum }))
}

#[cfg(test)]
mod tests {
    use gateway_proto::v1;

    use super::*;

    fn row() -> PlainRow {
        let key = v1::ApiKey {
            id: "key_1".into(),
            tenant_id: "acme".into(),
            role: v1::Role::Viewer.into(),
            display_name: "A key".into(),
            expire_time: Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 7 }),
            revoke_time: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 7 }),
            ..Default::default()
        };
        let body = of(&key);
        PlainRow { id: key.id, tenant_id: key.tenant_id, parent_id: String::new(), version: 0, body }
    }

    /// Whichever byte is changed, however, and wherever it is cut: what must have a checksum is never read as another
    /// value.
    #[test]
    fn nothing_changed_is_read() {
        let whole = row();
        let good: v1::ApiKey = read_summed(&whole).unwrap();
        assert!(good.revoke_time.is_some());
        for place in 0..whole.body.len() {
            for mask in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
                let mut changed = whole.clone();
                changed.body[place] ^= mask;
                let failure = read_summed::<v1::ApiKey>(&changed).unwrap_err();
                assert!(failure.is_damage(), "byte {place} under {mask}: {failure}");
            }
            let mut cut = whole.clone();
            cut.body.truncate(place);
            assert!(read_summed::<v1::ApiKey>(&cut).unwrap_err().is_damage(), "cut at {place}");
        }
    }

    /// What is stored belongs to its row: its type, its id and its tenant.
    #[test]
    fn exchanged_rows_are_damage() {
        let whole = row();
        for other in [
            PlainRow { id: "key_2".into(), ..whole.clone() },
            PlainRow { tenant_id: "other".into(), ..whole.clone() },
        ] {
            assert!(read::<v1::ApiKey>(&other).unwrap_err().is_damage());
        }
        assert!(read::<v1::Instance>(&whole).unwrap_err().is_damage());
        let plain = v1::ApiKey { id: "key_1".into(), tenant_id: "other".into(), ..Default::default() };
        let plain = PlainRow { body: plain.encode_to_vec(), ..whole };
        assert!(matches!(
            read::<v1::ApiKey>(&plain).unwrap_err(),
            StoreError::Damaged { source: Damage::OfAnotherRow, .. }
        ));
    }

    /// What an earlier program stored without a checksum is read where that may be, and an earlier program reads what
    /// this one stores.
    #[test]
    fn earlier_programs_are_understood() {
        let whole = row();
        let good: v1::ApiKey = read(&whole).unwrap();
        assert_eq!(v1::ApiKey::decode(whole.body.as_slice()).unwrap(), good);
        let earlier = PlainRow { body: good.encode_to_vec(), ..whole };
        assert_eq!(read::<v1::ApiKey>(&earlier).unwrap(), good);
        let failure = read_summed::<v1::ApiKey>(&earlier).unwrap_err();
        assert!(matches!(failure, StoreError::Damaged { source: Damage::NoChecksum, .. }));
    }
}
