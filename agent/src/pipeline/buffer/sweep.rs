//! Forgets marks whose time is over, a few at a time.

use std::time::{Duration, Instant};

use super::{
    record::{self, Mark},
    store::{Op, Store, StoreError},
};

/// Marks looked at in one step: some milliseconds.
const STEP_MARKS_MAX: usize = 4_096;
/// How long to wait after all were looked at.
const PAUSE: Duration = Duration::from_secs(3_600);

/// Where the sweep is.
#[derive(Default)]
pub(super) struct Sweep {
    after: Option<Vec<u8>>,
    pause_until: Option<Instant>,
}

impl Sweep {
    /// Looks at the next few marks. Returns what removes those that expired before `today`.
    pub(super) fn step(&mut self, store: &dyn Store, today: u32) -> Result<Vec<Op>, StoreError> {
        if self.pause_until.is_some_and(|until| Instant::now() < until) {
            return Ok(Vec::new());
        }
        let (first, to) = record::all_marks();
        let mut from = self.after.take().unwrap_or_else(|| first.to_vec());
        from.push(0);
        let mut ops = Vec::new();
        let (mut looked_at, mut last) = (0, None);
        store.scan(&from, &to, &mut |key, value| {
            if Mark::decode(value).is_ok_and(|mark| mark.expire_day < today) {
                ops.push(Op::Delete(key.to_vec()));
            }
            looked_at += 1;
            last = Some(key.to_vec());
            looked_at < STEP_MARKS_MAX
        })?;
        if looked_at < STEP_MARKS_MAX {
            self.pause_until = Some(Instant::now() + PAUSE);
        } else {
            self.after = last;
        }
        Ok(ops)
    }
}
