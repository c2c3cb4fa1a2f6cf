//! A disk that refuses: never an answer that is not true, and service again without a restart.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64},
};

use super::*;
use crate::pipeline::buffer::journal::files::{Files, Space, Writable};

/// What goes wrong.
#[derive(Default)]
pub(super) struct Faults {
    /// Nothing can be written.
    pub(super) is_full: AtomicBool,
    /// What was written is not synced.
    pub(super) sync_fails: AtomicBool,
    /// Counts down with every sync; the one that makes it 0 fails. 0 means that none does.
    pub(super) syncs_left: AtomicU64,
    /// How many files were begun.
    created: AtomicU64,
    /// Free bytes; 0 means plenty.
    free: AtomicU64,
}

struct FaultyFiles(Arc<Faults>);

struct FaultyFile {
    inner: Box<dyn Writable>,
    faults: Arc<Faults>,
}

impl Files for FaultyFiles {
    fn create(&self, path: &Path) -> io::Result<Box<dyn Writable>> {
        self.0.created.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FaultyFile { inner: RealFiles.create(path)?, faults: Arc::clone(&self.0) }))
    }

    fn space(&self, _directory: &Path) -> io::Result<Space> {
        let free = self.0.free.load(Ordering::SeqCst);
        Ok(Space { free_bytes: if free == 0 { u64::MAX } else { free }, total_bytes: 100_000 })
    }
}

impl Writable for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.faults.is_full.load(Ordering::SeqCst) {
            // Half of it got there.
            self.inner.write_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.inner.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let count_down = |left: u64| left.checked_sub(1);
        let is_last =
            self.faults.syncs_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down) == Ok(1);
        if is_last || self.faults.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.inner.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.inner.set_len(bytes)
    }
}

pub(super) async fn open_faulty(config: Config) -> (Buffer, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    (open_with(config, &faults).await, faults)
}

pub(super) async fn open_with(config: Config, faults: &Arc<Faults>) -> Buffer {
    let lock = DirectoryLock::take(&config.directory).unwrap();
    let files = Box::new(FaultyFiles(Arc::clone(faults)));
    Buffer::open_on(Opening { config, metrics: Metrics::new(), files, lock }).await.unwrap()
}

/// Acks every report until nothing is left.
async fn all_acked(buffer: &Buffer) {
    eventually("everything is freed", || {
        let durable = buffer.shared.lane(Lane::Logs).durable;
        buffer.acked(Lane::Logs, durable);
        buffer.is_drained()
    })
    .await;
}

/// Appends once the buffer takes appends again.
pub(super) async fn append_when_possible(buffer: &Buffer, entry: Entry) -> Receipt {
    let healthy = || buffer.shared.health() == Health::Good;
    eventually("the buffer recovers", healthy).await;
    buffer.append(entry).await.unwrap()
}

/// A full disk refuses appends, keeps what was accepted, loses no outcome, and is used again once there is
/// space.
#[tokio::test]
async fn full_disk_refuses_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let (buffer, faults) = open_faulty(config(directory.path())).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let delivery = deliveries(&buffer, 1).await[0];
    faults.is_full.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let refusal = buffer.append(entry([event(2, &["sub_a"])])).await.unwrap_err();
        assert_eq!(refusal, AppendError::DiskFull);
        assert_eq!(refusal.retry_after(), Duration::from_secs(10));
    }
    attempt(&buffer, delivery, DeliveryState::Pending, Some(0)).await;
    let owed = buffer.load(delivery.event, delivery.subscription).await.unwrap().unwrap();
    assert_eq!(owed.attempts, 1, "attempts count although they cannot be written yet");
    attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    faults.is_full.store(false, Ordering::SeqCst);
    let receipt = append_when_possible(&buffer, entry([event(2, &["sub_a"])])).await;
    assert_eq!(receipt, Receipt { stored: 1, duplicates: 0 });
    attempts_reported(&buffer, 2).await;
    assert_eq!(deliveries(&buffer, 1).await.len(), 1);
    kill(buffer).await;

    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 1).await.len(), 1, "what was half written is not there");
}

/// A sync that fails is not believed and not repeated: another segment is begun, the event counts as refused
/// although it may be on disk, so the provider's repeat is stored and not taken for a duplicate.
#[tokio::test]
async fn failed_sync_is_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let (buffer, faults) = open_faulty(config(directory.path())).await;
    let opt_out =
        |change_number| v1::OptOut { id: "opt_1".to_owned(), change_number, ..v1::OptOut::default() };
    let deciding =
        |number, change| Entry { opt_outs: vec![opt_out(change)], ..entry([event(number, &["sub_a"])]) };
    buffer.append(deciding(1, 1)).await.unwrap();
    faults.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(buffer.append(deciding(2, 2)).await, Err(AppendError::Broken));
    assert_eq!(buffer.local_opt_outs(), [opt_out(1)]);
    assert!(!buffer.contains(&event_id(2)));
    let created = faults.created.load(Ordering::SeqCst);
    faults.sync_fails.store(false, Ordering::SeqCst);
    let receipt = append_when_possible(&buffer, entry([event(2, &["sub_a"])])).await;
    assert_eq!(receipt, Receipt { stored: 1, duplicates: 0 });
    assert!(faults.created.load(Ordering::SeqCst) > created, "the failed segment is not written again");
    assert_eq!(deliveries(&buffer, 2).await.len(), 2);
    buffer.close().await;

    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 2).await.len(), 2);
    assert_eq!(buffer.local_opt_outs(), [opt_out(1)]);
    let after = buffer.acked_sequence(Lane::Urgent);
    assert_eq!(reports_after(&buffer, Lane::Urgent, after).await.reports().len(), 1);
}

/// While the disk has less space than configured, appends are refused and everything else goes on.
#[tokio::test]
async fn low_space_refuses_appends_only() {
    let directory = tempfile::tempdir().unwrap();
    let (buffer, faults) =
        open_faulty(Config { disk_free_bytes_min: Some(1_000), ..config(directory.path()) }).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let delivery = deliveries(&buffer, 1).await[0];
    faults.free.store(999, Ordering::SeqCst);
    eventually("appends are refused", || buffer.shared.health() == Health::DiskFull).await;
    assert_eq!(buffer.append(entry([event(2, &["sub_a"])])).await, Err(AppendError::DiskFull));
    attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    all_acked(&buffer).await;
    faults.free.store(0, Ordering::SeqCst);
    append_when_possible(&buffer, entry([event(2, &["sub_a"])])).await;
}

/// A buffer over its budget refuses, goes on with what it has, and accepts again when that is done.
#[tokio::test]
async fn full_budget_refuses_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    let limited = Config { bytes_max: 10_000, ..config(directory.path()) };
    let buffer = Buffer::open(limited, Metrics::new()).await.unwrap();
    let mut accepted = 0;
    let refusal = loop {
        match buffer.append(entry([event(accepted, &["sub_a"])])).await {
            Ok(_) => accepted += 1,
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refusal, AppendError::Full { bytes_max: 10_000, .. }), "{refusal:?}");
    assert!(refusal.retry_after() >= Duration::from_secs(1));
    for delivery in deliveries(&buffer, accepted as usize).await {
        attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    }
    all_acked(&buffer).await;
    buffer.append(entry([event(accepted, &["sub_a"])])).await.unwrap();
}

/// A destination that is owed its share takes nothing from the others: callbacks for it are refused, and it is
/// named; callbacks for others are taken.
#[tokio::test]
async fn no_destination_takes_more_than_its_share() {
    let directory = tempfile::tempdir().unwrap();
    let limited = Config { bytes_max: 20_000, destination_share: 25, ..config(directory.path()) };
    let buffer = Buffer::open(limited, Metrics::new()).await.unwrap();
    let mut accepted = 0;
    let refusal = loop {
        match buffer.append(entry([event(accepted, &["sub_a"])])).await {
            Ok(_) => accepted += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal, AppendError::DestinationFull);
    buffer.append(entry([event(1_000, &["sub_b"])])).await.unwrap();
    let over_share: WebhookSubscriptionId = "sub_a".parse().unwrap();
    eventually("it is named", || buffer.over_share() == [over_share.clone()]).await;
    for delivery in deliveries(&buffer, accepted as usize + 1).await {
        attempt(&buffer, delivery, DeliveryState::Delivered, None).await;
    }
    eventually("it is not named any more", || buffer.over_share().is_empty()).await;
    buffer.append(entry([event(accepted, &["sub_a"])])).await.unwrap();
}
