//! Reading inbound logs: pages, one log, attempts.

use std::{sync::PoisonError, time::Duration};

use gateway_core::{event::EventType, filter::EventFilter, id::TenantId};
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite};
use tokio::time::Instant;

use super::{
    LogStore, LogStoreError,
    event_index::{EventKey, event_key, find_sealed},
    instance_index,
    stage::FirstAttempts,
};

/// How long one page may search. A filter that matches almost nothing then gives a page that is not full,
/// with a token to go on, instead of reading the whole database in one request.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(1);
/// A page ends before it grows beyond this many bytes, unless its first row alone does: gRPC clients take
/// 4 MiB by default.
pub(super) const PAGE_BYTES_MAX: usize = 3 << 20;
/// Logs read at once, so that a page of large ones does not pass through memory whole.
const LOGS_CHUNK: usize = 64;
/// Attempts read at once.
const ATTEMPTS_CHUNK: i64 = 256;

/// Which logs are wanted. What is None matches everything.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    /// Only logs of this tenant.
    pub tenant_id: Option<TenantId>,
    /// Only logs of this instance.
    pub instance_id: Option<String>,
    /// Only these events.
    pub events: Option<EventFilter>,
    /// Only logs from this phone, in E.164.
    pub from_phone: Option<String>,
    /// Only logs of this message of the provider.
    pub external_message_id: Option<String>,
    /// Only logs received at this time or later.
    pub start_time: Option<Timestamp>,
    /// Only logs received before this time.
    pub end_time: Option<Timestamp>,
}

impl LogFilter {
    /// Appends `AND …` for every condition on the table `logs`.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Sqlite>) {
        let equal = [
            (" AND logs.tenant_id = ", self.tenant_id.as_ref().map(TenantId::as_str)),
            (" AND logs.instance_id = ", self.instance_id.as_deref()),
            (" AND logs.from_phone = ", self.from_phone.as_deref()),
            (" AND logs.external_message_id = ", self.external_message_id.as_deref()),
        ];
        for (condition, value) in equal {
            if let Some(value) = value {
                sql.push(condition).push_bind(value.to_owned());
            }
        }
        let times =
            [(" AND logs.receive_time >= ", self.start_time), (" AND logs.receive_time < ", self.end_time)];
        for (condition, time) in times {
            if let Some(time) = time {
                sql.push(condition).push_bind(time.as_microsecond());
            }
        }
        if let Some(events) = self.events.filter(|events| *events != EventFilter::ALL) {
            sql.push(" AND logs.event IN (");
            let mut names = sql.separated(", ");
            for event in EventType::ALL.iter().filter(|event| events.matches(**event)) {
                names.push_bind(event.name());
            }
            sql.push(")");
        }
    }
}

/// A page of logs, newest recorded first.
#[derive(Debug, Default)]
pub struct LogPage {
    /// The logs.
    pub logs: Vec<v1::InboundLog>,
    /// Where the next page goes on; None on the last one.
    pub next: Option<i64>,
}

/// Rows with consecutive sequences: a sealed segment or, without one, the tail.
struct Range {
    segment: Option<i64>,
    first: i64,
    last: i64,
}

/// Rows that are to be looked at.
enum Places {
    /// All of these.
    All { first: i64, last: i64 },
    /// Only these, oldest first.
    These(Vec<i64>),
}

impl Places {
    fn is_empty(&self) -> bool {
        match self {
            Self::All { first, last } => first > last,
            Self::These(seqs) => seqs.is_empty(),
        }
    }
}

/// A page of attempts, oldest first.
#[derive(Debug, Default)]
pub struct AttemptPage {
    /// The attempts.
    pub attempts: Vec<v1::DeliveryAttempt>,
    /// Where the next page goes on; None on the last one.
    pub next: Option<i64>,
}

impl LogStore {
    /// A page of at most `limit` logs recorded before the place `before` (None: the newest), newest first.
    /// What is recorded meanwhile does not move later pages.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list(
        &self,
        filter: &LogFilter,
        before: Option<i64>,
        limit: usize,
    ) -> Result<LogPage, LogStoreError> {
        let deadline = Instant::now() + SEARCH_TIME_MAX;
        let before = before.unwrap_or(i64::MAX);
        let mut page = LogPage::default();
        let mut bytes = 0;
        // The tail first: should it be sealed in between, its rows are found in both places, not in none.
        let tail = self.tail_seqs(filter);
        for range in self.ranges(filter, before).await? {
            if Instant::now() > deadline {
                page.next = Some(range.last.saturating_add(1));
                return Ok(page);
            }
            let mut places = self.places(filter, &range, before, &tail).await?;
            while !places.is_empty() {
                // One more than wanted says whether there is another page.
                let wanted = (limit + 1 - page.logs.len()).min(LOGS_CHUNK);
                for (seq, record) in self.rows(filter, &mut places, wanted).await? {
                    bytes += record.len();
                    if page.logs.len() == limit || (bytes > PAGE_BYTES_MAX && !page.logs.is_empty()) {
                        return Ok(page);
                    }
                    page.logs.push(decode(&record)?);
                    page.next = Some(seq);
                }
            }
        }
        page.next = None;
        Ok(page)
    }

    fn tail_seqs(&self, filter: &LogFilter) -> Vec<i64> {
        let Some(instance_id) = &filter.instance_id else { return Vec::new() };
        let index = self.inner.index.read().unwrap_or_else(PoisonError::into_inner);
        index.tail_seqs(instance_id).to_vec()
    }

    /// Which rows of a range before the place `before` are to be looked at.
    async fn places(
        &self,
        filter: &LogFilter,
        range: &Range,
        before: i64,
        tail: &[i64],
    ) -> Result<Places, LogStoreError> {
        let (first, last) = (range.first, range.last.min(before.saturating_sub(1)));
        let mut seqs = match (&filter.instance_id, range.segment) {
            (None, _) => return Ok(Places::All { first, last }),
            (Some(_), None) => tail.to_vec(),
            (Some(instance_id), Some(segment)) => {
                instance_index::sealed(&self.inner.readers, segment, instance_id)
                    .await
                    .map_err(LogStoreError::read)?
            }
        };
        seqs.retain(|seq| (first..=last).contains(seq));
        Ok(Places::These(seqs))
    }

    /// At most `wanted` rows of the newest places, newest first, and takes these places out.
    async fn rows(
        &self,
        filter: &LogFilter,
        places: &mut Places,
        wanted: usize,
    ) -> Result<Vec<(i64, Vec<u8>)>, LogStoreError> {
        let mut sql = QueryBuilder::<Sqlite>::new("SELECT logs.seq, logs.record FROM ");
        match places {
            Places::All { first, last } => {
                sql.push("logs WHERE logs.seq >= ").push_bind(*first);
                sql.push(" AND logs.seq <= ").push_bind(*last);
                filter.push(&mut sql);
                sql.push(" ORDER BY logs.seq DESC LIMIT ");
                sql.push_bind(i64::try_from(wanted).unwrap_or(i64::MAX));
            }
            Places::These(seqs) => {
                let newest = seqs.split_off(seqs.len().saturating_sub(wanted));
                sql.push(ROWS_OF).push_bind(json_array(newest));
                sql.push(ROWS_OF_WHERE);
                filter.push(&mut sql);
            }
        }
        let mut rows: Vec<(i64, Vec<u8>)> =
            sql.build_query_as().fetch_all(&self.inner.readers).await.map_err(LogStoreError::read)?;
        rows.sort_unstable_by_key(|(seq, _)| std::cmp::Reverse(*seq));
        if let Places::All { first, last } = places {
            *last = rows.last().filter(|_| rows.len() == wanted).map_or(*first, |(seq, _)| *seq) - 1;
        }
        Ok(rows)
    }

    /// Ranges of rows that can hold what is wanted, newest first: the tail, then sealed segments of which
    /// the times fit.
    async fn ranges(&self, filter: &LogFilter, before: i64) -> Result<Vec<Range>, LogStoreError> {
        let time = |time: Option<Timestamp>, otherwise| time.map_or(otherwise, Timestamp::as_microsecond);
        let sealed: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT segment, seq_first, seq_last, receive_time_min, receive_time_max FROM log_segments \
             ORDER BY segment DESC",
        )
        .fetch_all(&self.inner.readers)
        .await
        .map_err(LogStoreError::read)?;
        let first = sealed.first().map_or(0, |(_, _, seq_last, ..)| seq_last + 1);
        let tail = Range { segment: None, first, last: i64::MAX };
        let (start, end) = (time(filter.start_time, i64::MIN), time(filter.end_time, i64::MAX));
        let fitting = sealed.into_iter().filter(|(.., min, max)| *max >= start && *min < end);
        let sealed = fitting.map(|(segment, first, last, ..)| Range { segment: Some(segment), first, last });
        Ok(std::iter::once(tail).chain(sealed).filter(|range| range.first < before).collect())
    }

    /// One log, None when it was not recorded or belongs to another tenant.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn get(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
    ) -> Result<Option<v1::InboundLog>, LogStoreError> {
        Ok(self.find(tenant_id, event_id).await?.map(|(_, log)| log))
    }

    async fn find(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
    ) -> Result<Option<(i64, v1::InboundLog)>, LogStoreError> {
        let Some(seq) = self.seq_of(&event_key(event_id)).await? else { return Ok(None) };
        let record: Option<Vec<u8>> = sqlx::query_scalar("SELECT record FROM logs WHERE seq = ?")
            .bind(seq)
            .fetch_optional(&self.inner.readers)
            .await
            .map_err(LogStoreError::read)?;
        let Some(record) = record else { return Ok(None) };
        let log = decode(&record)?;
        let is_theirs = tenant_id.is_none_or(|tenant_id| tenant_id.as_str() == log.tenant_id);
        Ok((is_theirs && log.event_id == event_id).then_some((seq, log)))
    }

    async fn seq_of(&self, key: &EventKey) -> Result<Option<i64>, LogStoreError> {
        let recent = self.inner.index.read().unwrap_or_else(PoisonError::into_inner).recent(key);
        match recent {
            Some(seq) => Ok(Some(seq)),
            None => find_sealed(&self.inner.readers, key).await.map_err(LogStoreError::read),
        }
    }

    /// A page of at most `limit` attempts of an event after the place `after`, oldest first. None when the
    /// event was not recorded or belongs to another tenant.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn list_attempts(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
        subscription_id: Option<&str>,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Option<AttemptPage>, LogStoreError> {
        let Some((log_seq, _)) = self.find(tenant_id, event_id).await? else { return Ok(None) };
        let mut page = AttemptPage::default();
        let mut bytes = 0;
        let mut after = after.unwrap_or(-1);
        let mut rows = self.first_attempts(log_seq, after).await?;
        let mut is_last = false;
        loop {
            for (attempt_seq, attempt) in rows {
                after = attempt_seq;
                if subscription_id.is_some_and(|wanted| wanted != attempt.subscription_id) {
                    continue;
                }
                bytes += attempt.encoded_len();
                if page.attempts.len() == limit || (bytes > PAGE_BYTES_MAX && !page.attempts.is_empty()) {
                    return Ok(Some(page));
                }
                page.attempts.push(attempt);
                page.next = Some(attempt_seq);
            }
            if is_last {
                page.next = None;
                return Ok(Some(page));
            }
            rows = self.later_attempts(log_seq, after).await?;
            is_last = rows.len() < usize::try_from(ATTEMPTS_CHUNK).unwrap_or(usize::MAX);
        }
    }

    /// Attempts after the place `after` that came with the log. Their places begin with 0.
    async fn first_attempts(
        &self,
        log_seq: i64,
        after: i64,
    ) -> Result<Vec<(i64, v1::DeliveryAttempt)>, LogStoreError> {
        let stored: Option<Option<Vec<u8>>> =
            sqlx::query_scalar("SELECT first_attempts FROM logs WHERE seq = ?")
                .bind(log_seq)
                .fetch_optional(&self.inner.readers)
                .await
                .map_err(LogStoreError::read)?;
        let first = FirstAttempts::decode(stored.flatten().unwrap_or_default().as_slice())
            .map_err(|source| LogStoreError::Corrupt { table: "logs", source })?;
        Ok((0..).zip(first.attempts).filter(|(attempt_seq, _)| *attempt_seq > after).collect())
    }

    /// Attempts after the place `after` that came later than the log.
    async fn later_attempts(
        &self,
        log_seq: i64,
        after: i64,
    ) -> Result<Vec<(i64, v1::DeliveryAttempt)>, LogStoreError> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT attempt_seq, body FROM attempts WHERE log_seq = ? AND attempt_seq > ? ORDER BY attempt_seq LIMIT ?",
        )
        .bind(log_seq)
        .bind(after)
        .bind(ATTEMPTS_CHUNK)
        .fetch_all(&self.inner.readers)
        .await
        .map_err(LogStoreError::read)?;
        let decode = |(attempt_seq, body): (i64, Vec<u8>)| {
            let attempt = v1::DeliveryAttempt::decode(body.as_slice())
                .map_err(|source| LogStoreError::Corrupt { table: "attempts", source })?;
            Ok((attempt_seq, attempt))
        };
        rows.into_iter().map(decode).collect()
    }

    /// The receive time of the newest log of an instance.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn last_event_time(&self, instance_id: &str) -> Result<Option<Timestamp>, LogStoreError> {
        let readers = &self.inner.readers;
        let recent = {
            let index = self.inner.index.read().unwrap_or_else(PoisonError::into_inner);
            index.tail_seqs(instance_id).last().copied()
        };
        let seq = match recent {
            Some(seq) => Some(seq),
            None => instance_index::newest_sealed(readers, instance_id).await.map_err(LogStoreError::read)?,
        };
        let time: Option<i64> = sqlx::query_scalar("SELECT receive_time FROM logs WHERE seq = ?")
            .bind(seq)
            .fetch_optional(readers)
            .await
            .map_err(LogStoreError::read)?;
        Ok(time.and_then(|time| Timestamp::from_microsecond(time).ok()))
    }
}

/// Joins rows to a list of sequences: this, the list as a parameter, then [`ROWS_OF_WHERE`]. CROSS JOIN fixes
/// the order of the loops: one seek for each of the list.
pub(super) const ROWS_OF: &str = "json_each(";
/// The rest of it; conditions may follow.
pub(super) const ROWS_OF_WHERE: &str = ") AS wanted CROSS JOIN logs ON logs.seq = wanted.value WHERE true";

/// A list as [`ROWS_OF`] takes it.
pub(super) fn json_array(seqs: impl IntoIterator<Item = i64>) -> String {
    let seqs: Vec<_> = seqs.into_iter().map(|seq| seq.to_string()).collect();
    format!("[{}]", seqs.join(","))
}

pub(super) fn decode(record: &[u8]) -> Result<v1::InboundLog, LogStoreError> {
    v1::InboundLog::decode(record).map_err(|source| LogStoreError::Corrupt { table: "logs", source })
}
