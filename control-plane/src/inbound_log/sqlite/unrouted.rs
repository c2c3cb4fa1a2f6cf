//! Callbacks for numbers that no instance with a webhook subscription claims: kept, bounded, listed, and
//! taken out once claimed.

use gateway_proto::v1;
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use tokio::sync::oneshot;

use super::{Inner, writer::Job};
use crate::inbound_log::{
    LogStoreError, UNROUTED_PER_ROUTE_MAX, Unrouted, UnroutedNumber, UnroutedPage, fit,
    page::{INLINE_BYTES_MAX, PAGE_BYTES_MAX},
};

/// Routes that one listing looks at; of a tenant with more, those beyond have to be asked for one by one.
const ROUTES_MAX: usize = 10_000;

/// A callback's place, and its body unless that has more than [`INLINE_BYTES_MAX`].
type Row = (i64, Option<Vec<u8>>);

/// Asks for [`Row`]s; the condition follows.
fn select_rows() -> QueryBuilder<Sqlite> {
    QueryBuilder::new(format!(
        "SELECT seq, CASE WHEN length(body) <= {INLINE_BYTES_MAX} THEN body END FROM unrouted_callbacks WHERE "
    ))
}

/// Drops the oldest callbacks of a route beyond its limit.
pub(super) async fn trim(connection: &mut SqliteConnection, route_id: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM unrouted_callbacks WHERE route_id = ? AND seq <= \
         (SELECT seq FROM unrouted_callbacks WHERE route_id = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)",
    )
    .bind(route_id)
    .bind(route_id)
    .bind(UNROUTED_PER_ROUTE_MAX)
    .execute(connection)
    .await?;
    Ok(())
}

impl Inner {
    pub(super) async fn list_unrouted(
        &self,
        route_ids: Option<&[String]>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<UnroutedPage, LogStoreError> {
        let mut sql = select_rows();
        sql.push("seq < ");
        sql.push_bind(before.unwrap_or(i64::MAX));
        if let Some(route_ids) = route_ids {
            sql.push(" AND route_id IN (");
            let mut separated = sql.separated(", ");
            for route_id in route_ids.iter().take(ROUTES_MAX) {
                separated.push_bind(route_id.clone());
            }
            sql.push(")");
        }
        sql.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX - 1) + 1);
        let rows = self.unrouted_rows(sql).await?;
        let has_more = rows.len() > limit;
        let (mut page, mut last, mut bytes) = (Vec::new(), None, 0);
        for (seq, body) in rows {
            if page.len() == limit {
                return Ok((page, last));
            }
            let Some(whole) = self.unrouted(seq, body).await? else {
                // It was claimed meanwhile.
                last = Some(seq);
                continue;
            };
            let callback = fit::callback(whole.callback, PAGE_BYTES_MAX);
            bytes += callback.encoded_len() + fit::FIELD_HEAD_BYTES;
            if bytes > PAGE_BYTES_MAX && !page.is_empty() {
                return Ok((page, last));
            }
            page.push(callback);
            last = Some(seq);
        }
        Ok((page, last.filter(|_| has_more)))
    }

    pub(super) async fn unrouted_of(
        &self,
        number: &UnroutedNumber,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Unrouted>, LogStoreError> {
        let mut sql = select_rows();
        sql.push("route_id = ")
            .push_bind(number.route_id.clone())
            .push(" AND number_key = ")
            .push_bind(number.number_key.clone())
            .push(" AND seq > ")
            .push_bind(after);
        sql.push(" ORDER BY seq LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (seq, body) in self.unrouted_rows(sql).await? {
            if bytes > PAGE_BYTES_MAX {
                break;
            }
            let Some(unrouted) = self.unrouted(seq, body).await? else { continue };
            bytes += unrouted.callback.payload_json.len();
            found.push(unrouted);
        }
        Ok(found)
    }

    pub(super) async fn unrouted_numbers(&self, after: i64) -> Result<Vec<UnroutedNumber>, LogStoreError> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT DISTINCT route_id, number_key FROM unrouted_callbacks WHERE seq > ?")
                .bind(after)
                .fetch_all(&self.readers)
                .await
                .map_err(LogStoreError::read)?;
        Ok(rows.into_iter().map(|(route_id, number_key)| UnroutedNumber { route_id, number_key }).collect())
    }

    async fn unrouted_rows(&self, mut sql: QueryBuilder<Sqlite>) -> Result<Vec<Row>, LogStoreError> {
        sql.build_query_as().fetch_all(&self.readers).await.map_err(LogStoreError::read)
    }

    /// The callback of a row. None when it is gone meanwhile.
    async fn unrouted(&self, seq: i64, body: Option<Vec<u8>>) -> Result<Option<Unrouted>, LogStoreError> {
        let body = match body {
            Some(body) => Some(body),
            None => sqlx::query_scalar("SELECT body FROM unrouted_callbacks WHERE seq = ?")
                .bind(seq)
                .fetch_optional(&self.readers)
                .await
                .map_err(LogStoreError::read)?,
        };
        let Some(body) = body else { return Ok(None) };
        let mut callback = v1::UnroutedCallback::decode(body.as_slice())
            .map_err(|source| LogStoreError::Corrupt { table: "unrouted_callbacks", source })?;
        callback.id = format!("unrouted_{seq}");
        Ok(Some(Unrouted { seq, callback }))
    }

    pub(super) async fn delete_unrouted(&self, seqs: Vec<i64>) -> Result<(), LogStoreError> {
        let (answer, receiver) = oneshot::channel();
        self.jobs.send(Job::DeleteUnrouted { seqs, answer }).await.map_err(|_| LogStoreError::Closed)?;
        receiver.await.map_err(|_| LogStoreError::Closed)?
    }
}
