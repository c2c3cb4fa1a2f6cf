//! Answers to creations that carried a `request_id`, so that a repeat gets the first answer
//! (<https://google.aip.dev/155>). Hash and answer are sealed together: a hash of what holds secrets would let
//! them be guessed.

use gateway_runtime::clock;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tonic::async_trait;
use zeroize::Zeroizing;

use super::{Connection as _, StoreError, WriteTx};

/// The type of stored answers.
pub(super) const TYPE: &str = "request";
/// Bytes of the hash of a request.
const HASH_BYTES: usize = 32;
/// How long an answer is kept.
const ANSWER_SECONDS_MAX: i64 = 24 * 3_600;
/// Longest `request_id`, in characters.
pub const REQUEST_ID_CHARS_MAX: usize = 128;

/// The name of an answer: the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerKey<'a> {
    /// The tenant that asked; empty for platform admins.
    pub tenant_id: &'a str,
    /// The method.
    pub method: &'a str,
    /// What the request was named.
    pub request_id: &'a str,
}

/// Reads answers.
#[async_trait]
pub trait RequestReads: Send {
    /// The sealed answer to a request, if it was given after `after`, in seconds since 1970.
    async fn answer(&mut self, key: AnswerKey<'_>, after: i64) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Changes answers.
#[async_trait]
pub trait RequestWrites: Send {
    /// Removes the answers that were given at `until` and before, in seconds since 1970.
    async fn forget_answers(&mut self, until: i64) -> Result<(), StoreError>;

    /// Keeps a sealed answer given at `time`. A conflict when there is one.
    async fn insert_answer(&mut self, key: AnswerKey<'_>, sealed: &[u8], time: i64)
    -> Result<(), StoreError>;
}

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

    const fn row(&self) -> AnswerKey<'a> {
        AnswerKey { tenant_id: self.owner, method: self.method, request_id: self.request_id }
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
    let after = clock::now_seconds() - ANSWER_SECONDS_MAX;
    let Some(sealed) = transaction.rows().answer(key.row(), after).await? else { return Ok(Recalled::New) };
    let resource = sealed_resource(key.method, key.request_id);
    let opened = transaction.sealer().open(key.owner, &resource, &sealed)?;
    match opened.split_first_chunk::<HASH_BYTES>() {
        Some((hash, response)) if *hash == key.hash => Ok(Recalled::Answered(M::decode(response)?)),
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
    transaction.writes().forget_answers(now - ANSWER_SECONDS_MAX).await?;
    transaction.writes().insert_answer(key.row(), &sealed, now).await
}
