//! What watches read.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
};

use jiff::Timestamp;

use super::{
    Inner, changes,
    query::{LogRow, ROWS_OF, ROWS_OF_WHERE, json_array, push_filter, select_rows},
};
use crate::inbound_log::{
    LogChange, LogFilter, LogStoreError, LogWatch, WatchFrom, fit,
    live::{ChangePage, ReadChanges, cursor_text, parse_cursor},
    page::PAGE_BYTES_MAX,
};

/// Changes read ahead of a watcher, unless they are large: then it is fewer. A slow one makes nothing grow: it reads its
/// next page when it is done.
const CHANGES_PAGE: usize = 128;

impl Inner {
    pub(super) async fn watch(
        self: &Arc<Self>,
        mut filter: LogFilter,
        from: WatchFrom<'_>,
    ) -> Result<LogWatch, LogStoreError> {
        let head = self.head.clone();
        let newest = *head.borrow();
        let cursor = match from {
            WatchFrom::Now => newest,
            WatchFrom::Time(time) => {
                filter.start_time = Some(time);
                self.change_before(time).await?.unwrap_or(newest)
            }
            WatchFrom::Cursor(text) => parse_cursor(&self.epoch, text)
                .filter(|cursor| *cursor <= newest)
                .ok_or(LogStoreError::UnknownCursor)?,
        };
        let reader: Arc<dyn ReadChanges> = Arc::<Self>::clone(self);
        Ok(LogWatch::new(reader, filter, head, self.closing.clone(), cursor))
    }

    /// The last change before anything that was received at `time` or later. None when there is nothing
    /// of that kind.
    async fn change_before(&self, time: Timestamp) -> Result<Option<i64>, LogStoreError> {
        let time = time.as_microsecond();
        // The tail first: should it be sealed in between, its rows are found in both places, not in none.
        let tail = self.index.read().unwrap_or_else(PoisonError::into_inner).tail_bounds();
        let sealed: Option<i64> = sqlx::query_scalar(
            "SELECT change_seq_first FROM log_segments WHERE receive_time_max >= ? ORDER BY segment LIMIT 1",
        )
        .bind(time)
        .fetch_optional(&self.readers)
        .await
        .map_err(LogStoreError::read)?;
        let tail =
            tail.filter(|bounds| bounds.receive_time_max >= time).map(|bounds| bounds.change_seq_first);
        Ok(sealed.or(tail).map(|change_seq| change_seq - 1))
    }
}

#[tonic::async_trait]
impl ReadChanges for Inner {
    async fn read(&self, filter: &LogFilter, after: i64, newest: i64) -> Result<ChangePage, LogStoreError> {
        let mut changes = changes::after(&self.readers, after).await.map_err(LogStoreError::read)?;
        changes.retain(|change| change.change_seq <= newest);
        // Changes that are not there belong to logs that are gone.
        let end = changes.last().map_or(newest, |change| change.change_seq);
        let mut sql = select_rows("wanted.key");
        sql.push(ROWS_OF).push_bind(json_array(changes.iter().map(|change| change.log_seq)));
        sql.push(ROWS_OF_WHERE);
        push_filter(filter, &mut sql);
        sql.push(" ORDER BY wanted.key LIMIT ").push_bind(i64::try_from(CHANGES_PAGE).unwrap_or(i64::MAX));
        let rows: Vec<LogRow> =
            sql.build_query_as().fetch_all(&self.readers).await.map_err(LogStoreError::read)?;
        let mut is_cut = rows.len() == CHANGES_PAGE;
        let mut page = VecDeque::with_capacity(rows.len());
        let (mut last, mut bytes) = (end, 0);
        for (place, seq, record) in rows {
            if bytes > PAGE_BYTES_MAX {
                is_cut = true;
                break;
            }
            let Some(change) = usize::try_from(place).ok().and_then(|place| changes.get_mut(place)) else {
                continue;
            };
            last = change.change_seq;
            let Some((log, read)) = self.listed(seq, record).await? else { continue };
            bytes += read;
            let mut subscription_id = change.subscription_id.take();
            subscription_id.iter_mut().for_each(fit::cut);
            page.push_back(LogChange { log, cursor: cursor_text(&self.epoch, last), subscription_id });
        }
        Ok(ChangePage { changes: page, end: if is_cut { last } else { end } })
    }
}
