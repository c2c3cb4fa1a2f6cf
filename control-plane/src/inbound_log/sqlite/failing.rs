//! The table of failing subscriptions.

use jiff::Timestamp;
use sqlx::SqliteConnection;

use super::insert::RowInsert;
use crate::inbound_log::failing::{FORGET_AFTER, FailingSubscriptions, StoredStreak, micros};

type Row = (String, Option<i64>, Option<i64>, Option<i64>, i64, i64);

/// Reads the table, and removes what is too old from it.
pub(super) async fn load(
    connection: &mut SqliteConnection,
    now: Timestamp,
) -> Result<FailingSubscriptions, sqlx::Error> {
    sqlx::query("DELETE FROM subscription_failures WHERE write_time < ?")
        .bind(now.as_microsecond() - micros(FORGET_AFTER))
        .execute(&mut *connection)
        .await?;
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT subscription_id, good_until, failing_since, last_failure, failure_count, write_time \
         FROM subscription_failures",
    )
    .fetch_all(connection)
    .await?;
    let row = |(id, good_until, failing_since, last_failure, count, write_time): Row| StoredStreak {
        subscription_id: id.into(),
        good_until,
        failing_since,
        last_failure,
        failure_count: u64::try_from(count).unwrap_or(0),
        write_time,
    };
    Ok(FailingSubscriptions::new(rows.into_iter().map(row)))
}

/// The statement that [`write`] runs.
pub(super) fn insert() -> RowInsert {
    RowInsert::new(
        "INSERT OR REPLACE INTO subscription_failures (subscription_id, good_until, failing_since, last_failure, \
         failure_count, write_time)",
        6,
        "",
    )
}

/// Writes rows.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    insert: &RowInsert,
    rows: Vec<StoredStreak>,
) -> Result<(), sqlx::Error> {
    insert
        .run(connection, rows, |streak, row| {
            row.bind(streak.subscription_id.into_string())?;
            row.bind(streak.good_until)?;
            row.bind(streak.failing_since)?;
            row.bind(streak.last_failure)?;
            row.bind(streak.failure_count.cast_signed())?;
            row.bind(streak.write_time)
        })
        .await
}
