//! Looking after the disk: free space, marks to forget, opening again after a failure, setting aside what
//! is damaged.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Instant,
};

use prost::Message as _;
use tracing::{error, info, warn};

use crate::metrics::Metrics;

use super::{
    engine::{Engine, TICK},
    index::Index,
    record::{self, Lane},
    recover::{Recovered, recover},
    round::Plan,
    shared::Health,
    store::{Disk, Op, Store, StoreError, open_or_replace},
};

/// Space kept free when no setting says how much.
const DISK_FREE_BYTES_MIN_DEFAULT: u64 = 64 << 20;
/// But of a small disk at most one part in so many.
const DISK_SHARE: u64 = 20;

impl Engine {
    pub(super) fn tick(&mut self) {
        self.next_tick = Instant::now() + TICK;
        let stats = self.shared.stats();
        let oldest_age = stats.oldest_age.map_or(0.0, |age| age.as_secs_f64());
        self.metrics.buffer(stats.events, stats.bytes, oldest_age);
        self.look_after_space();
        let Ok(store) = self.shared.store() else { return self.open_again() };
        let today = record::day_of(gateway_runtime::clock::now().as_millisecond());
        let swept = self.sweep.step(&*store, today);
        let done = swept.and_then(|ops| if ops.is_empty() { Ok(()) } else { store.commit(ops) });
        drop(store);
        if let Err(failure) = done {
            self.fail(Plan::default(), &[], &failure);
        }
    }

    fn look_after_space(&mut self) {
        let is_low = match self.disk.space() {
            Ok(space) => {
                let default = || DISK_FREE_BYTES_MIN_DEFAULT.min(space.total_bytes / DISK_SHARE);
                space.free_bytes < self.config.disk_free_bytes_min.unwrap_or_else(default)
            }
            Err(failure) => {
                warn!(error = &failure as &dyn std::error::Error, "failed to ask for the free disk space");
                false
            }
        };
        if is_low != self.is_low_on_space {
            self.is_low_on_space = is_low;
            if is_low {
                error!("the buffer's disk is nearly full; callbacks get 503 until there is space");
            } else {
                info!("the buffer's disk has space again");
            }
        }
        if self.shared.store().is_ok() {
            self.shared.set_health(if is_low { Health::DiskFull } else { Health::Good });
        }
    }

    /// Tries to use the disk again after a failure.
    fn open_again(&mut self) {
        let opened = open_or_replace(&*self.disk).and_then(|(store, is_replaced)| {
            if is_replaced {
                self.metrics.buffer_quarantined();
                self.start_anew(&*store)?;
            } else if !self.undo.is_empty() {
                store.commit(self.undo.clone())?;
            }
            Ok(store)
        });
        match opened {
            Ok(store) => {
                self.undo.clear();
                self.shared.set_store(Some(store));
                self.shared.set_health(if self.is_low_on_space { Health::DiskFull } else { Health::Good });
                info!("the buffer is open again");
            }
            Err(failure) => {
                warn!(error = &failure as &dyn std::error::Error, "failed to open the buffer again");
            }
        }
    }

    /// The store was replaced by a fresh one: what was in the old one is gone, apart from the decisions of
    /// contacts, which are in memory.
    fn start_anew(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let recovered = recover(store)?;
        let opt_outs = self.shared.opt_outs.lock().unwrap_or_else(PoisonError::into_inner);
        let ops: Vec<Op> = opt_outs
            .values()
            .map(|opt_out| Op::Put(record::opt_out_key(&opt_out.id), opt_out.encode_to_vec()))
            .collect();
        drop(opt_outs);
        store.commit(ops)?;
        self.counters = recovered.counters;
        self.young.clear();
        self.deadlines.clear();
        *self.shared.index.write().unwrap_or_else(PoisonError::into_inner) = Index::default();
        for (lane, state) in Lane::ALL.into_iter().zip(recovered.lanes) {
            *self.shared.lane(lane) = state;
        }
        self.shared.reports_planned.store(0, Ordering::Release);
        self.shared.inbox.lock().acked = [0; 2];
        Ok(())
    }
}

/// Opens the store and reads it. One that opens and then cannot be read is replaced as well.
pub(super) fn open_and_recover(
    disk: &dyn Disk,
    metrics: &Metrics,
) -> Result<(Arc<dyn Store>, Recovered), StoreError> {
    let (store, is_replaced) = open_or_replace(disk)?;
    if is_replaced {
        metrics.buffer_quarantined();
    }
    let damage = match recover(&*store) {
        Ok(recovered) => return Ok((store, recovered)),
        Err(failure) if failure.is_damage() => failure,
        Err(failure) => return Err(failure),
    };
    drop(store);
    let path = disk.set_aside("unreadable").map_err(StoreError::of_io)?;
    error!(
        error = &damage as &dyn std::error::Error,
        path = %path.display(),
        "failed to read the buffer; it was set aside and a fresh one is used, \
         events in it that were not delivered yet are not delivered"
    );
    metrics.buffer_quarantined();
    let store = disk.open()?;
    let recovered = recover(&*store)?;
    Ok((store, recovered))
}
