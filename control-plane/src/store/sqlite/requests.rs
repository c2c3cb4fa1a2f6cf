//! Answers to creations that carried a `request_id`, so that a repeat gets the first answer
//! (<https://google.aip.dev/155>). Hash and answer are sealed together: a hash of what holds secrets would let
//! them be guessed.

use gateway_runtime::clock;
use prost::Message;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{StoreError, WriteTx, decode};

/// The table. `response` is sealed: the hash of the request, then the answer. `request_hash` is empty; it had the
/// hash in the first schema. `create_time` is in seconds since 1970.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS requests (
    tenant_id TEXT NOT NULL,
    method TEXT NOT NULL,
    request_id TEXT NOT NULL,
    request_hash BLOB NOT NULL,
    response BLOB NOT NULL,
    create_time INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, method, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_create_time ON requests (create_time);
";

/// Bytes of the hash of a request.
pub(super) const HASH_BYTES: usize = 32;
/// How long an answer is kept.
const ANSWER_SECONDS_MAX: i64 = 24 * 3_600;
/// Longest `request_id`, in characters.
pub const REQUEST_ID_CHARS_MAX: usize = 128;

/// One request that may be repeated.
pub struct RequestKey<'a> {
    owner: &'a str,
    method: &'static str,
    request_id: &'a str,
    hash: [u8; HASH_BYTES],
}

/// What the sealed answer to a request is bound to, beside its tenant.
pub(super) fn sealed_resource(method: &str, request_id: &str) -> String {
    format!("request/{method}/{request_id}")
}

/// What is known of a request.
pub enum Recalled<M> {
    /// It is new, or carries no `request_id`.
    New,
    /// It was answered before.
    Answered(M),
    /// Another request had this `request_id`.
    Different,
}

impl<'a> RequestKey<'a> {
    /// Names a request of a tenant, or of platform admins where `owner` is empty. `parts` are what makes its
    /// body, in a fixed order and encoding.
    pub fn new(owner: &'a str, method: &'static str, request_id: &'a str, parts: &[Vec<u8>]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
        Self { owner, method, request_id, hash: hash.finalize().into() }
    }
}

/// Looks a request up.
///
/// # Errors
/// When the database cannot be read.
pub async fn recall<M: Message + Default>(
    transaction: &mut WriteTx,
    key: &RequestKey<'_>,
) -> Result<Recalled<M>, StoreError> {
    if key.request_id.is_empty() {
        return Ok(Recalled::New);
    }
    let sealed: Option<Vec<u8>> = sqlx::query_scalar(
        "SELECT response FROM requests
         WHERE tenant_id = ?1 AND method = ?2 AND request_id = ?3 AND create_time > ?4",
    )
    .bind(key.owner)
    .bind(key.method)
    .bind(key.request_id)
    .bind(clock::now_seconds() - ANSWER_SECONDS_MAX)
    .fetch_optional(transaction.connection())
    .await?;
    let Some(sealed) = sealed else { return Ok(Recalled::New) };
    let resource = sealed_resource(key.method, key.request_id);
    let opened = transaction.sealer().open(key.owner, &resource, &sealed)?;
    match opened.split_first_chunk::<HASH_BYTES>() {
        Some((hash, response)) if *hash == key.hash => Ok(Recalled::Answered(decode(response)?)),
        _ => Ok(Recalled::Different),
    }
}

/// Keeps the answer to a request, and forgets those that are too old.
///
/// # Errors
/// When the database cannot be written.
pub async fn remember(
    transaction: &mut WriteTx,
    key: &RequestKey<'_>,
    response: &impl Message,
) -> Result<(), StoreError> {
    if key.request_id.is_empty() {
        return Ok(());
    }
    let plain = Zeroizing::new([&key.hash[..], &response.encode_to_vec()].concat());
    let resource = sealed_resource(key.method, key.request_id);
    let sealed = transaction.seal(key.owner, &resource, &plain).await?;
    let now = clock::now_seconds();
    sqlx::query("DELETE FROM requests WHERE create_time <= ?1")
        .bind(now - ANSWER_SECONDS_MAX)
        .execute(transaction.connection())
        .await?;
    sqlx::query(
        "INSERT INTO requests (tenant_id, method, request_id, request_hash, response, create_time)
         VALUES (?1, ?2, ?3, x'', ?4, ?5)",
    )
    .bind(key.owner)
    .bind(key.method)
    .bind(key.request_id)
    .bind(sealed)
    .bind(now)
    .execute(transaction.connection())
    .await?;
    Ok(())
}
