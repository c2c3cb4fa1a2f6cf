//! Reading inbound logs: pages, one log, attempts.

use std::sync::PoisonError;

use gateway_core::{event::EventType, filter::EventFilter, id::TenantId};
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::{QueryBuilder, Sqlite};
use tokio::time::Instant;

use super::{
    Inner,
    event_index::{Wanted, find_sealed},
    instance_index,
};
use crate::inbound_log::{
    LogFilter, LogPage, LogStoreError,
    event_key::event_key,
    fit,
    page::{INLINE_BYTES_MAX, PAGE_BYTES_MAX, SEARCH_TIME_MAX},
};

/// Logs read at once.
const LOGS_CHUNK: usize = 64;

/// A row of `logs`: what it is asked by, its sequence, and its record unless that has more than
/// [`INLINE_BYTES_MAX`].
pub(super) type LogRow = (i64, i64, Option<Vec<u8>>);

/// Asks for [`LogRow`]s by `key`. SQLite takes the length of a record from the head of its row.
pub(super) fn select_rows(key: &str) -> QueryBuilder<Sqlite> {
    QueryBuilder::new(format!(
        "SELECT {key}, logs.seq, CASE WHEN length(logs.record) <= {INLINE_BYTES_MAX} THEN logs.record END FROM "
    ))
}

/// Appends `AND …` for every condition on the table `logs`.
pub(super) fn push_filter(filter: &LogFilter, sql: &mut QueryBuilder<Sqlite>) {
    let equal = [
        (" AND logs.tenant_id = ", filter.tenant_id.as_ref().map(TenantId::as_str)),
        (" AND logs.instance_id = ", filter.instance_id.as_deref()),
        (" AND logs.from_phone = ", filter.from_phone.as_deref()),
        (" AND logs.external_message_id = ", filter.external_message_id.as_deref()),
    ];
    for (condition, value) in equal {
        if let Some(value) = value {
            sql.push(condition).push_bind(value.to_owned());
        }
    }
    let times =
        [(" AND logs.receive_time >= ", filter.start_time), (" AND logs.receive_time < ", filter.end_time)];
    for (condition, time) in times {
        if let Some(time) = time {
            sql.push(condition).push_bind(time.as_microsecond());
        }
    }
    if let Some(events) = filter.events.filter(|events| *events != EventFilter::ALL) {
        sql.push(" AND logs.event IN (");
        let mut names = sql.separated(", ");
        for event in EventType::ALL.iter().filter(|event| events.matches(**event)) {
            names.push_bind(event.name());
        }
        sql.push(")");
    }
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

impl Inner {
    pub(super) async fn list(
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
                for (_, seq, record) in self.rows(filter, &mut places, wanted).await? {
                    // Many large ones take long to read.
                    let is_late = record.is_none() && Instant::now() > deadline;
                    if page.logs.len() == limit || (is_late && !page.logs.is_empty()) {
                        return Ok(page);
                    }
                    let Some((log, _)) = self.listed(seq, record).await? else { continue };
                    bytes += log.encoded_len() + fit::FIELD_HEAD_BYTES;
                    if bytes > PAGE_BYTES_MAX && !page.logs.is_empty() {
                        return Ok(page);
                    }
                    page.logs.push(log);
                    page.next = Some(seq);
                }
            }
        }
        page.next = None;
        Ok(page)
    }

    fn tail_seqs(&self, filter: &LogFilter) -> Vec<i64> {
        let Some(instance_id) = &filter.instance_id else { return Vec::new() };
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
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
            (Some(instance_id), Some(segment)) => instance_index::sealed(&self.readers, segment, instance_id)
                .await
                .map_err(LogStoreError::read)?,
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
    ) -> Result<Vec<LogRow>, LogStoreError> {
        let mut sql = select_rows("logs.seq");
        match places {
            Places::All { first, last } => {
                sql.push("logs WHERE logs.seq >= ").push_bind(*first);
                sql.push(" AND logs.seq <= ").push_bind(*last);
                push_filter(filter, &mut sql);
                sql.push(" ORDER BY logs.seq DESC LIMIT ");
                sql.push_bind(i64::try_from(wanted).unwrap_or(i64::MAX));
            }
            Places::These(seqs) => {
                let newest = seqs.split_off(seqs.len().saturating_sub(wanted));
                sql.push(ROWS_OF).push_bind(json_array(newest));
                sql.push(ROWS_OF_WHERE);
                push_filter(filter, &mut sql);
            }
        }
        let mut rows: Vec<LogRow> =
            sql.build_query_as().fetch_all(&self.readers).await.map_err(LogStoreError::read)?;
        rows.sort_unstable_by_key(|(_, seq, _)| std::cmp::Reverse(*seq));
        if let Places::All { first, last } = places {
            *last = rows.last().filter(|_| rows.len() == wanted).map_or(*first, |(_, seq, _)| *seq) - 1;
        }
        Ok(rows)
    }

    /// A log as lists and watches give it, and how many bytes were read for it. None when it is gone meanwhile.
    pub(super) async fn listed(
        &self,
        seq: i64,
        record: Option<Vec<u8>>,
    ) -> Result<Option<(v1::InboundLog, usize)>, LogStoreError> {
        let record = match record {
            Some(record) => Some(record),
            None => self.record(seq).await?,
        };
        record.map(|record| Ok((fit::listed(decode(&record)?), record.len()))).transpose()
    }

    async fn record(&self, seq: i64) -> Result<Option<Vec<u8>>, LogStoreError> {
        sqlx::query_scalar("SELECT record FROM logs WHERE seq = ?")
            .bind(seq)
            .fetch_optional(&self.readers)
            .await
            .map_err(LogStoreError::read)
    }

    /// Ranges of rows that can hold what is wanted, newest first: the tail, then sealed segments of which
    /// the times fit.
    async fn ranges(&self, filter: &LogFilter, before: i64) -> Result<Vec<Range>, LogStoreError> {
        let time = |time: Option<Timestamp>, otherwise| time.map_or(otherwise, Timestamp::as_microsecond);
        let sealed: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT segment, seq_first, seq_last, receive_time_min, receive_time_max FROM log_segments \
             ORDER BY segment DESC",
        )
        .fetch_all(&self.readers)
        .await
        .map_err(LogStoreError::read)?;
        let first = sealed.first().map_or(0, |(_, _, seq_last, ..)| seq_last + 1);
        let tail = Range { segment: None, first, last: i64::MAX };
        let (start, end) = (time(filter.start_time, i64::MIN), time(filter.end_time, i64::MAX));
        let fitting = sealed.into_iter().filter(|(.., min, max)| *max >= start && *min < end);
        let sealed = fitting.map(|(segment, first, last, ..)| Range { segment: Some(segment), first, last });
        Ok(std::iter::once(tail).chain(sealed).filter(|range| range.first < before).collect())
    }

    pub(super) async fn get(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
    ) -> Result<Option<v1::InboundLog>, LogStoreError> {
        Ok(self.find(tenant_id, event_id).await?.map(|(_, log)| log))
    }

    pub(super) async fn find(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
    ) -> Result<Option<(i64, v1::InboundLog)>, LogStoreError> {
        let key = event_key(event_id);
        let recent = self.index.read().unwrap_or_else(PoisonError::into_inner).recent(&key);
        if let Some(seq) = recent
            && let Some(log) = self.row(tenant_id, event_id, seq).await?
        {
            return Ok(Some((seq, log)));
        }
        // An agent of another tenant may have claimed the id later.
        let wanted = if tenant_id.is_some() { Wanted::All } else { Wanted::Newest };
        for seq in find_sealed(&self.readers, &key, wanted).await.map_err(LogStoreError::read)? {
            if let Some(log) = self.row(tenant_id, event_id, seq).await? {
                return Ok(Some((seq, log)));
            }
        }
        Ok(None)
    }

    /// The log of this row, if it is of this event and tenant.
    async fn row(
        &self,
        tenant_id: Option<&TenantId>,
        event_id: &str,
        seq: i64,
    ) -> Result<Option<v1::InboundLog>, LogStoreError> {
        let log = self.record(seq).await?.map(|record| decode(&record)).transpose()?;
        let is_theirs =
            |log: &v1::InboundLog| tenant_id.is_none_or(|tenant_id| tenant_id.as_str() == log.tenant_id);
        Ok(log.filter(|log| is_theirs(log) && log.event_id == event_id))
    }

    pub(super) async fn last_event_time(
        &self,
        instance_id: &str,
    ) -> Result<Option<Timestamp>, LogStoreError> {
        let readers = &self.readers;
        let recent = {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
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
