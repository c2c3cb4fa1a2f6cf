//! Watching inbound logs: every recorded log and every change of a delivery's state, in the order in
//! which they were committed, from any place of the past.

use std::{collections::VecDeque, sync::PoisonError};

use gateway_proto::v1;
use jiff::Timestamp;
use sqlx::{QueryBuilder, Sqlite};
use tokio::sync::watch;

use super::{
    LogFilter, LogStore, LogStoreError, changes,
    query::{ROWS_OF, ROWS_OF_WHERE, decode, json_array},
};

/// Changes read ahead of a watcher. A slow one makes nothing grow: it reads its next page when it is done.
const CHANGES_PAGE: usize = 128;

/// Where a watch begins.
#[derive(Debug, Clone, Copy)]
pub enum WatchFrom<'a> {
    /// With what is committed from now on.
    Now,
    /// With what was received since then.
    Time(Timestamp),
    /// Right after the response that carried this cursor.
    Cursor(&'a str),
}

/// One step of a watch.
#[derive(Debug, Clone)]
pub struct LogChange {
    /// The log as it now stands.
    pub log: v1::InboundLog,
    /// Where to resume.
    pub cursor: String,
    /// The delivery that changed state; None when the log was recorded.
    pub subscription_id: Option<String>,
}

/// A watch. Dropping it ends it.
pub struct LogWatch {
    logs: LogStore,
    filter: LogFilter,
    head: watch::Receiver<i64>,
    /// Everything up to here was looked at.
    cursor: i64,
    page: VecDeque<LogChange>,
}

impl LogStore {
    /// Watches logs that match `filter`.
    ///
    /// # Errors
    /// [`LogStoreError::UnknownCursor`] when the cursor is not of this database.
    pub async fn watch(&self, mut filter: LogFilter, from: WatchFrom<'_>) -> Result<LogWatch, LogStoreError> {
        let head = self.inner.head.clone();
        let newest = *head.borrow();
        let cursor = match from {
            WatchFrom::Now => newest,
            WatchFrom::Time(time) => {
                filter.start_time = Some(time);
                self.change_before(time).await?.unwrap_or(newest)
            }
            WatchFrom::Cursor(text) => self
                .parse_cursor(text)
                .filter(|cursor| *cursor <= newest)
                .ok_or(LogStoreError::UnknownCursor)?,
        };
        Ok(LogWatch { logs: self.clone(), filter, head, cursor, page: VecDeque::new() })
    }

    fn parse_cursor(&self, text: &str) -> Option<i64> {
        let (epoch, change_seq) = text.split_once('-')?;
        let change_seq = change_seq.parse().ok().filter(|change_seq| *change_seq >= 0)?;
        (epoch == self.inner.epoch).then_some(change_seq)
    }

    fn cursor_text(&self, change_seq: i64) -> String {
        format!("{}-{change_seq}", self.inner.epoch)
    }

    /// The last change before anything that was received at `time` or later. None when there is nothing
    /// of that kind.
    async fn change_before(&self, time: Timestamp) -> Result<Option<i64>, LogStoreError> {
        let time = time.as_microsecond();
        // The tail first: should it be sealed in between, its rows are found in both places, not in none.
        let tail = self.inner.index.read().unwrap_or_else(PoisonError::into_inner).tail_bounds();
        let sealed: Option<i64> = sqlx::query_scalar(
            "SELECT change_seq_first FROM log_segments WHERE receive_time_max >= ? ORDER BY segment LIMIT 1",
        )
        .bind(time)
        .fetch_optional(&self.inner.readers)
        .await
        .map_err(LogStoreError::read)?;
        let tail =
            tail.filter(|bounds| bounds.receive_time_max >= time).map(|bounds| bounds.change_seq_first);
        Ok(sealed.or(tail).map(|change_seq| change_seq - 1))
    }
}

impl LogWatch {
    /// The next change; waits for one. None when the store closes. Cancel safe.
    ///
    /// # Errors
    /// When the database cannot be read; the watch can be asked again.
    pub async fn next(&mut self) -> Option<Result<LogChange, LogStoreError>> {
        loop {
            if let Some(change) = self.page.pop_front() {
                return Some(Ok(change));
            }
            if self.logs.closing().is_cancelled() {
                return None;
            }
            let newest = *self.head.borrow_and_update();
            if self.cursor < newest {
                if let Err(error) = self.read(newest).await {
                    return Some(Err(error));
                }
                continue;
            }
            let closing = self.logs.closing().clone();
            tokio::select! {
                () = closing.cancelled() => return None,
                changed = self.head.changed() => if changed.is_err() { return None },
            }
        }
    }

    /// Reads the next page. Nothing moves before it is read, so dropping the future loses nothing.
    async fn read(&mut self, newest: i64) -> Result<(), LogStoreError> {
        let readers = &self.logs.inner.readers;
        let mut changes = changes::after(readers, self.cursor).await.map_err(LogStoreError::read)?;
        changes.retain(|change| change.change_seq <= newest);
        // Changes that are not there belong to logs that are gone.
        let end = changes.last().map_or(newest, |change| change.change_seq);
        let mut sql = QueryBuilder::<Sqlite>::new("SELECT wanted.key, logs.record FROM ");
        sql.push(ROWS_OF).push_bind(json_array(changes.iter().map(|change| change.log_seq)));
        sql.push(ROWS_OF_WHERE);
        self.filter.push(&mut sql);
        sql.push(" ORDER BY wanted.key LIMIT ").push_bind(i64::try_from(CHANGES_PAGE).unwrap_or(i64::MAX));
        let rows: Vec<(i64, Vec<u8>)> =
            sql.build_query_as().fetch_all(readers).await.map_err(LogStoreError::read)?;
        let is_cut = rows.len() == CHANGES_PAGE;
        let mut page = VecDeque::with_capacity(rows.len());
        let mut last = end;
        for (place, record) in rows {
            let Some(change) = usize::try_from(place).ok().and_then(|place| changes.get_mut(place)) else {
                continue;
            };
            last = change.change_seq;
            let (cursor, subscription_id) = (self.logs.cursor_text(last), change.subscription_id.take());
            page.push_back(LogChange { log: decode(&record)?, cursor, subscription_id });
        }
        self.page = page;
        self.cursor = if is_cut { last } else { end };
        Ok(())
    }
}
