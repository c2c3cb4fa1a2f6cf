//! Watching inbound logs: every recorded log and every change of a delivery's state, in the order in
//! which they were committed, from any place of the past.

use std::{collections::VecDeque, sync::Arc};

use gateway_proto::v1;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{LogFilter, LogStoreError};

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
    /// The log as it now stands, as lists give it.
    pub log: v1::InboundLog,
    /// Where to resume.
    pub cursor: String,
    /// The delivery that changed state; None when the log was recorded.
    pub subscription_id: Option<String>,
}

/// What a watch reads from.
#[tonic::async_trait]
pub(super) trait ReadChanges: Send + Sync {
    /// Some of the changes after `after` and not after `newest`, of logs that match `filter`, in their order.
    async fn read(&self, filter: &LogFilter, after: i64, newest: i64) -> Result<ChangePage, LogStoreError>;
}

/// Changes read ahead of a watcher.
pub(super) struct ChangePage {
    /// They, each with its place.
    pub(super) changes: VecDeque<LogChange>,
    /// Up to where there is nothing else that matches.
    pub(super) end: i64,
}

/// A watch. Dropping it ends it.
pub struct LogWatch {
    reader: Arc<dyn ReadChanges>,
    filter: LogFilter,
    head: watch::Receiver<i64>,
    closing: CancellationToken,
    /// Everything up to here was looked at.
    cursor: i64,
    page: VecDeque<LogChange>,
}

/// The place in a cursor of the database with this name. None when it is a cursor of another one, or none.
pub(super) fn parse_cursor(epoch: &str, text: &str) -> Option<i64> {
    let (found, change_seq) = text.split_once('-')?;
    let change_seq = change_seq.parse().ok().filter(|change_seq| *change_seq >= 0)?;
    (found == epoch).then_some(change_seq)
}

/// The cursor of a place in the database with this name.
pub(super) fn cursor_text(epoch: &str, change_seq: i64) -> String {
    format!("{epoch}-{change_seq}")
}

impl LogWatch {
    /// A watch of what comes after `cursor`; `head` is the newest committed change.
    pub(super) fn new(
        reader: Arc<dyn ReadChanges>,
        filter: LogFilter,
        head: watch::Receiver<i64>,
        closing: CancellationToken,
        cursor: i64,
    ) -> Self {
        Self { reader, filter, head, closing, cursor, page: VecDeque::new() }
    }

    /// The next change; waits for one. None when the store closes. Cancel safe.
    ///
    /// # Errors
    /// When the database cannot be read; the watch can be asked again.
    pub async fn next(&mut self) -> Option<Result<LogChange, LogStoreError>> {
        loop {
            if let Some(change) = self.page.pop_front() {
                return Some(Ok(change));
            }
            if self.closing.is_cancelled() {
                return None;
            }
            let newest = *self.head.borrow_and_update();
            if self.cursor < newest {
                // Nothing moves before it is read, so dropping the future loses nothing.
                match self.reader.read(&self.filter, self.cursor, newest).await {
                    Ok(ChangePage { changes, end }) => (self.page, self.cursor) = (changes, end),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            }
            tokio::select! {
                () = self.closing.cancelled() => return None,
                changed = self.head.changed() => if changed.is_err() { return None },
            }
        }
    }
}
