//! Attempts of an event: the first ones lie with the log, the others in a table of their own, both in the order
//! in which they came in.

use futures_util::TryStreamExt as _;
use gateway_core::{id::TenantId, time};
use gateway_proto::v1;
use prost::Message as _;
use sqlx::{SqliteConnection, SqliteExecutor};

use super::{Inner, query::json_array};
use crate::inbound_log::{AttemptPage, LogStoreError, fit, page::PAGE_BYTES_MAX, stage::FirstAttempts};

/// Attempts read at once.
const ATTEMPTS_CHUNK: usize = 64;

/// Where an attempt lies. Their order is that of their time: of two agents that made attempts of one delivery, one
/// may report late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    start: Option<jiff::Timestamp>,
    attempt_seq: i64,
}

impl Inner {
    pub(super) async fn list_attempts(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
        subscription_id: Option<&str>,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Option<AttemptPage>, LogStoreError> {
        let Some((log_seq, _)) = self.find(tenant_id, event_id).await? else { return Ok(None) };
        let first = self.first_attempts(log_seq).await?;
        let mut places = self.attempt_places(log_seq, &first, subscription_id).await?;
        if let Some(after) = after {
            let seen = places.iter().position(|place| place.attempt_seq == after);
            places.drain(..seen.map_or(places.len(), |seen| seen + 1));
        }
        let mut page = AttemptPage::default();
        let mut bytes = 0;
        for chunk in places.chunks(ATTEMPTS_CHUNK) {
            for (attempt_seq, attempt) in self.attempts_at(log_seq, &first, chunk).await? {
                let attempt = fit::attempt(attempt);
                bytes += attempt.encoded_len() + fit::FIELD_HEAD_BYTES;
                if page.attempts.len() == limit || (bytes > PAGE_BYTES_MAX && !page.attempts.is_empty()) {
                    return Ok(Some(page));
                }
                page.attempts.push(attempt);
                page.next = Some(attempt_seq);
            }
        }
        page.next = None;
        Ok(Some(page))
    }

    /// Attempts that came with the log. Their sequences begin with 0.
    async fn first_attempts(&self, log_seq: i64) -> Result<Vec<v1::DeliveryAttempt>, LogStoreError> {
        let stored: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("SELECT first_attempts FROM logs WHERE seq = ?")
                .bind(log_seq)
                .fetch_optional(&self.readers)
                .await
                .map_err(LogStoreError::read)?;
        let first = FirstAttempts::decode(stored.flatten().unwrap_or_default().as_slice())
            .map_err(|source| LogStoreError::Corrupt { table: "logs", source })?;
        Ok(first.attempts)
    }

    /// Where the attempts of a log lie, of all subscriptions or one, oldest first.
    async fn attempt_places(
        &self,
        log_seq: i64,
        first: &[v1::DeliveryAttempt],
        subscription_id: Option<&str>,
    ) -> Result<Vec<Place>, LogStoreError> {
        let place = |attempt_seq, attempt: &v1::DeliveryAttempt| {
            let is_wanted = subscription_id.is_none_or(|wanted| wanted == attempt.subscription_id);
            let start = attempt.start_time.as_ref().and_then(time::from_proto);
            is_wanted.then_some(Place { start, attempt_seq })
        };
        let mut places: Vec<_> =
            (0..).zip(first).filter_map(|(attempt_seq, attempt)| place(attempt_seq, attempt)).collect();
        let mut rows = sqlx::query_as::<_, (i64, Vec<u8>)>(
            "SELECT attempt_seq, body FROM attempts WHERE log_seq = ? ORDER BY attempt_seq",
        )
        .bind(log_seq)
        .fetch(&self.readers);
        while let Some((attempt_seq, body)) = rows.try_next().await.map_err(LogStoreError::read)? {
            places.extend(place(attempt_seq, &decode(&body)?));
        }
        places.sort_unstable();
        Ok(places)
    }

    /// The attempts at these places, in their order.
    async fn attempts_at(
        &self,
        log_seq: i64,
        first: &[v1::DeliveryAttempt],
        places: &[Place],
    ) -> Result<Vec<(i64, v1::DeliveryAttempt)>, LogStoreError> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(LATER_ATTEMPTS)
            .bind(json_array(places.iter().map(|place| place.attempt_seq)))
            .bind(log_seq)
            .fetch_all(&self.readers)
            .await
            .map_err(LogStoreError::read)?;
        let mut found = Vec::with_capacity(places.len());
        for &Place { attempt_seq, .. } in places {
            let with_log = usize::try_from(attempt_seq).ok().and_then(|place| first.get(place));
            if let Some(attempt) = with_log {
                found.push((attempt_seq, attempt.clone()));
            } else if let Some((_, body)) = rows.iter().find(|row| row.0 == attempt_seq) {
                found.push((attempt_seq, decode(body)?));
            }
        }
        Ok(found)
    }
}

/// CROSS JOIN fixes the order of the loops: one seek for each of the list.
pub(super) const LATER_ATTEMPTS: &str = "SELECT attempts.attempt_seq, attempts.body FROM json_each(?) AS wanted \
    CROSS JOIN attempts ON attempts.log_seq = ? AND attempts.attempt_seq = wanted.value";

fn decode(body: &[u8]) -> Result<v1::DeliveryAttempt, LogStoreError> {
    v1::DeliveryAttempt::decode(body).map_err(|source| LogStoreError::Corrupt { table: "attempts", source })
}

/// The id of an attempt; the rest is skipped.
#[derive(Clone, PartialEq, prost::Message)]
struct AttemptId {
    #[prost(string, tag = "1")]
    attempt_id: String,
}

/// The ids of the attempts that came with their log.
#[derive(Clone, PartialEq, prost::Message)]
struct FirstAttemptIds {
    #[prost(message, repeated, tag = "1")]
    attempts: Vec<AttemptId>,
}

/// The ids of the stored attempts of logs, each with its log's sequence.
pub(super) async fn stored_ids(
    connection: &mut SqliteConnection,
    log_seqs: impl IntoIterator<Item = i64>,
) -> Result<Vec<(i64, String)>, LogStoreError> {
    let log_seqs = json_array(log_seqs);
    let mut ids = Vec::new();
    for (log_seq, attempts) in rows(&mut *connection, FIRST_OF, &log_seqs).await? {
        let first = FirstAttemptIds::decode(attempts.unwrap_or_default().as_slice())
            .map_err(|source| LogStoreError::Corrupt { table: "logs", source })?;
        ids.extend(first.attempts.into_iter().map(|attempt| (log_seq, attempt.attempt_id)));
    }
    for (log_seq, body) in rows(&mut *connection, LATER_OF, &log_seqs).await? {
        let attempt = AttemptId::decode(body.unwrap_or_default().as_slice())
            .map_err(|source| LogStoreError::Corrupt { table: "attempts", source })?;
        ids.push((log_seq, attempt.attempt_id));
    }
    Ok(ids)
}

type Body = (i64, Option<Vec<u8>>);

async fn rows(
    executor: impl SqliteExecutor<'_>,
    sql: &'static str,
    log_seqs: &str,
) -> Result<Vec<Body>, LogStoreError> {
    sqlx::query_as(sql).bind(log_seqs).fetch_all(executor).await.map_err(LogStoreError::read)
}

pub(super) const FIRST_OF: &str = "SELECT logs.seq, logs.first_attempts FROM json_each(?) AS wanted \
    CROSS JOIN logs ON logs.seq = wanted.value";
pub(super) const LATER_OF: &str = "SELECT attempts.log_seq, attempts.body FROM json_each(?) AS wanted \
    CROSS JOIN attempts ON attempts.log_seq = wanted.value";
