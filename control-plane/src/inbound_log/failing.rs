//! Which webhook subscriptions have had nothing but failures, since when, and in how many attempts.
//!
//! Every attempt passes here, so it costs a look-up in memory. The store's table is written in the transaction of the
//! reports, but only now and then for each subscription: what a crash forgets lets a subscription go on for
//! longer, and never pauses it by mistake.

use std::{collections::HashMap, time::Duration};

use super::stage::StagedAttempt;
use gateway_core::time;
use gateway_proto::v1;
use jiff::Timestamp;

/// How long every attempt must have failed before a subscription is paused.
pub const FAILING_MAX: Duration = Duration::from_secs(5 * 24 * 3_600);
/// How many attempts must have failed at least in that time.
pub const FAILING_ATTEMPTS_MIN: u64 = 12;

/// Subscriptions that are followed; more are not paused for their failures.
const SUBSCRIPTIONS_MAX: usize = 1_000_000;
/// How often a failing subscription is written.
const WRITE_FAILING_INTERVAL: Duration = Duration::from_secs(600);
/// How often one that is well is written.
const WRITE_WELL_INTERVAL: Duration = Duration::from_secs(3_600);
/// A success is written at once when the table says that the subscription has failed for longer than this: a
/// crash must not bring an old row of failures back.
const WRITE_RECOVERY_AFTER: Duration = Duration::from_secs(3_600);
/// How long a subscription is remembered after it was last written. It must be longer than any agent is away.
pub(super) const FORGET_AFTER: Duration = Duration::from_secs(60 * 24 * 3_600);
/// How long to wait for a pause before it is asked for again.
const TELL_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// A subscription that is to be paused, because every attempt of the last days failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingSubscription {
    /// The webhook subscription.
    pub subscription_id: Box<str>,
    /// When the first of the failed attempts began.
    pub since: Timestamp,
    /// How many there are.
    pub attempt_count: u64,
    /// When this was found. A subscription that was changed later is judged anew.
    pub time: Timestamp,
}

/// Times are microseconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Streak {
    /// When the newest attempt that succeeded began, or when the failures were forgotten. Attempts that began
    /// until then prove nothing.
    good_until: Option<i64>,
    failures: Option<Failures>,
    /// What the table has: when it was written, and since when the subscription fails.
    written: Option<(i64, Option<i64>)>,
    /// Whether the table has less than this.
    is_dirty: bool,
    /// When its pause was asked for.
    told: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Failures {
    first: i64,
    last: i64,
    count: u64,
}

impl Streak {
    fn failed(&mut self, start: i64) {
        if self.good_until.is_some_and(|good_until| start <= good_until) {
            return;
        }
        self.is_dirty = true;
        let failures = self.failures.get_or_insert(Failures { first: start, last: start, count: 0 });
        failures.first = failures.first.min(start);
        failures.last = failures.last.max(start);
        failures.count += 1;
    }

    fn succeeded(&mut self, start: i64) {
        if self.good_until.is_some_and(|good_until| start <= good_until) {
            return;
        }
        self.is_dirty = true;
        self.good_until = Some(start);
        self.failures = match self.failures {
            // Of the failures before and after it only the last is known to be after it.
            Some(failures) if failures.first <= start && start < failures.last => {
                Some(Failures { first: failures.last, last: failures.last, count: 1 })
            }
            failures => failures.filter(|failures| start < failures.first),
        };
        self.told = self.told.filter(|_| self.failures.is_some());
    }

    fn forget(&mut self, time: i64) {
        self.is_dirty = true;
        self.good_until = self.good_until.max(Some(time));
        (self.failures, self.told) = (None, None);
    }

    fn is_to_be_paused(&self) -> Option<Failures> {
        self.failures.filter(|failures| {
            failures.count >= FAILING_ATTEMPTS_MIN && failures.last - failures.first >= micros(FAILING_MAX)
        })
    }

    fn is_to_be_written(&self, now: i64) -> bool {
        let Some((written, failing_since)) = self.written else { return true };
        let first = self.failures.map(|failures| failures.first);
        let has_recovered = failing_since.is_some_and(|since| first.is_none_or(|first| first > since));
        if has_recovered && failing_since.is_some_and(|since| now - since >= micros(WRITE_RECOVERY_AFTER)) {
            return true;
        }
        let is_failing = first.is_some() || failing_since.is_some();
        let interval = if is_failing { WRITE_FAILING_INTERVAL } else { WRITE_WELL_INTERVAL };
        now.saturating_sub(written).saturating_abs() >= micros(interval)
    }
}

/// What a group of attempts changes.
#[derive(Default)]
pub(super) struct Changed {
    streaks: HashMap<Box<str>, Streak>,
    /// Those of them that are written.
    due: Vec<Box<str>>,
}

/// What the store's table says of a subscription. Times are microseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredStreak {
    /// The webhook subscription.
    pub(super) subscription_id: Box<str>,
    /// When the newest attempt that succeeded began, or when the failures were forgotten.
    pub(super) good_until: Option<i64>,
    /// When the first of the failed attempts began; None when there are none.
    pub(super) failing_since: Option<i64>,
    /// When the last of them began.
    pub(super) last_failure: Option<i64>,
    /// How many there are.
    pub(super) failure_count: u64,
    /// When this was written. Rows older than [`FORGET_AFTER`] are to be removed.
    pub(super) write_time: i64,
}

/// All subscriptions. The writer owns it.
pub(super) struct FailingSubscriptions {
    streaks: HashMap<Box<str>, Streak>,
}

impl FailingSubscriptions {
    /// As the table says.
    pub(super) fn new(rows: impl IntoIterator<Item = StoredStreak>) -> Self {
        let streak = |row: StoredStreak| {
            let failures = row.failing_since.zip(row.last_failure).map(|(first, last)| Failures {
                first,
                last,
                count: row.failure_count,
            });
            let written = Some((row.write_time, row.failing_since));
            (
                row.subscription_id,
                Streak { good_until: row.good_until, failures, written, ..Streak::default() },
            )
        };
        Self { streaks: rows.into_iter().map(streak).collect() }
    }

    /// Works out what these attempts change. Nothing is changed before [`FailingSubscriptions::committed`].
    pub(super) fn changed(&self, attempts: &[StagedAttempt], now: Timestamp) -> Changed {
        let now = now.as_microsecond();
        let mut changed = Changed::default();
        for v1::DeliveryAttempt { subscription_id, start_time, failure, .. } in
            attempts.iter().map(|staged| &staged.attempt)
        {
            let is_ours = *failure == v1::AttemptFailure::Gateway as i32;
            if is_ours || subscription_id.is_empty() {
                continue;
            }
            if !changed.streaks.contains_key(subscription_id.as_str()) {
                let known = self.streaks.get(subscription_id.as_str());
                if known.is_none() && self.streaks.len() + changed.streaks.len() >= SUBSCRIPTIONS_MAX {
                    continue;
                }
                changed.streaks.insert(subscription_id.as_str().into(), known.cloned().unwrap_or_default());
            }
            let Some(streak) = changed.streaks.get_mut(subscription_id.as_str()) else { continue };
            // An agent's clock may be ahead; it must not make days of minutes.
            let start = start_time.as_ref().and_then(time::from_proto);
            let start = start.map_or(now, |start| start.as_microsecond().min(now));
            if *failure == v1::AttemptFailure::Unspecified as i32 {
                streak.succeeded(start);
            } else {
                streak.failed(start);
            }
        }
        let due = changed.streaks.iter().filter(|(_, streak)| streak.is_to_be_written(now));
        changed.due = due.map(|(id, _)| id.clone()).collect();
        changed
    }

    /// Takes over what was committed, and says which subscriptions are to be paused.
    pub(super) fn committed(&mut self, changed: Changed, now: Timestamp) -> Vec<FailingSubscription> {
        let Changed { mut streaks, due } = changed;
        for id in due {
            if let Some(streak) = streaks.get_mut(&id) {
                streak.mark_written(now);
            }
        }
        let mut failing = Vec::new();
        for (id, streak) in &mut streaks {
            let Some(failures) = streak.is_to_be_paused() else { continue };
            let now_micros = now.as_microsecond();
            if streak.told.is_some_and(|told| now_micros - told < micros(TELL_AGAIN_AFTER)) {
                continue;
            }
            streak.told = Some(now_micros);
            failing.push(FailingSubscription {
                subscription_id: id.clone(),
                since: Timestamp::from_microsecond(failures.first).unwrap_or(Timestamp::UNIX_EPOCH),
                attempt_count: failures.count,
                time: now,
            });
        }
        self.streaks.extend(streaks);
        failing
    }

    /// Forgets what failed until `time`, and gives the row to write, if any. When it cannot be written, it is
    /// written with a later attempt.
    pub(super) fn forget(
        &mut self,
        subscription_id: &str,
        time: Timestamp,
        now: Timestamp,
    ) -> Option<StoredStreak> {
        let streak = self.streaks.get_mut(subscription_id)?;
        let has_failed =
            streak.failures.is_some() || streak.written.is_some_and(|(_, since)| since.is_some());
        streak.forget(time.as_microsecond());
        has_failed.then(|| streak.row(subscription_id, now))
    }

    /// Takes note that the row of [`FailingSubscriptions::forget`] was written.
    pub(super) fn forgotten(&mut self, subscription_id: &str, now: Timestamp) {
        if let Some(streak) = self.streaks.get_mut(subscription_id) {
            streak.mark_written(now);
        }
    }

    /// The rows of everything that is newer than the table; for the end of the process.
    pub(super) fn unwritten(&self, now: Timestamp) -> Vec<StoredStreak> {
        let unwritten = self.streaks.iter().filter(|(_, streak)| streak.is_dirty);
        unwritten.map(|(id, streak)| streak.row(id, now)).collect()
    }
}

impl Changed {
    /// The rows to write, in the transaction of the attempts.
    pub(super) fn rows(&self, now: Timestamp) -> Vec<StoredStreak> {
        self.due.iter().filter_map(|id| Some(self.streaks.get(id)?.row(id, now))).collect()
    }
}

impl Streak {
    fn row(&self, subscription_id: &str, now: Timestamp) -> StoredStreak {
        StoredStreak {
            subscription_id: subscription_id.into(),
            good_until: self.good_until,
            failing_since: self.failures.map(|failures| failures.first),
            last_failure: self.failures.map(|failures| failures.last),
            failure_count: self.failures.map_or(0, |failures| failures.count),
            write_time: now.as_microsecond(),
        }
    }

    fn mark_written(&mut self, now: Timestamp) {
        self.is_dirty = false;
        self.written = Some((now.as_microsecond(), self.failures.map(|failures| failures.first)));
    }
}

pub(super) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
