//! A disk that refuses: never an answer that is not true, and service again without a restart.

use std::{
    io,
    sync::atomic::{AtomicBool, AtomicU64},
};

use super::*;
use crate::pipeline::buffer::store::{Op, Space, Store};

/// What goes wrong.
#[derive(Default)]
struct Faults {
    /// Commits fail.
    is_full: AtomicBool,
    /// Commits fail after they reached the disk, as when only the sync fails.
    sync_fails: AtomicBool,
    /// The store cannot be opened.
    open_fails: AtomicBool,
    /// Free bytes; 0 means plenty.
    free: AtomicU64,
}

struct FaultyDisk {
    inner: SledDisk,
    faults: Arc<Faults>,
}

struct FaultyStore {
    inner: Arc<dyn Store>,
    faults: Arc<Faults>,
}

impl Disk for FaultyDisk {
    fn open(&self) -> Result<Arc<dyn Store>, StoreError> {
        if self.faults.open_fails.load(Ordering::SeqCst) {
            return Err(StoreError::Io(io::ErrorKind::PermissionDenied.into()));
        }
        Ok(Arc::new(FaultyStore { inner: self.inner.open()?, faults: Arc::clone(&self.faults) }))
    }

    fn space(&self) -> io::Result<Space> {
        let free = self.faults.free.load(Ordering::SeqCst);
        Ok(Space { free_bytes: if free == 0 { u64::MAX } else { free }, total_bytes: 100_000 })
    }

    fn reduce(&self) -> io::Result<PathBuf> {
        self.inner.reduce()
    }

    fn set_aside(&self, reason: &str) -> io::Result<PathBuf> {
        self.inner.set_aside(reason)
    }
}

impl Store for FaultyStore {
    fn commit(&self, ops: Vec<Op>) -> Result<(), StoreError> {
        if self.faults.is_full.load(Ordering::SeqCst) {
            return Err(StoreError::of_io(io::ErrorKind::StorageFull.into()));
        }
        self.inner.commit(ops)?;
        if self.faults.sync_fails.load(Ordering::SeqCst) {
            return Err(StoreError::of_io(io::Error::from_raw_os_error(5)));
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.get(key)
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.inner.scan(from, to, visit)
    }
}

async fn open_faulty(config: Config) -> (Buffer, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let lock = DirectoryLock::take(&config.directory).unwrap();
    let disk = FaultyDisk { inner: SledDisk::new(&config.directory), faults: Arc::clone(&faults) };
    let buffer = Buffer::open_on(config, Metrics::new(), Box::new(disk), lock).await.unwrap();
    (buffer, faults)
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
async fn append_when_possible(buffer: &Buffer, entry: Entry) -> Receipt {
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
    faults.open_fails.store(true, Ordering::SeqCst);
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
    faults.open_fails.store(false, Ordering::SeqCst);
    let receipt = append_when_possible(&buffer, entry([event(2, &["sub_a"])])).await;
    assert_eq!(receipt, Receipt { stored: 1, duplicates: 0 });
    attempts_reported(&buffer, 2).await;
    assert_eq!(deliveries(&buffer, 1).await.len(), 1);
}

/// A sync that fails is not believed and not repeated: the event counts as refused although it may be on
/// disk, so the provider's repeat is stored and not taken for a duplicate. Sequences are not used twice.
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
    faults.sync_fails.store(false, Ordering::SeqCst);
    let receipt = append_when_possible(&buffer, entry([event(2, &["sub_a"])])).await;
    assert_eq!(receipt, Receipt { stored: 1, duplicates: 0 });
    assert_eq!(deliveries(&buffer, 2).await.len(), 2);
    buffer.close().await;

    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 2).await.len(), 2);
    assert_eq!(buffer.local_opt_outs(), [opt_out(1)]);
    let after = buffer.acked_sequence(Lane::Urgent);
    assert_eq!(reports_after(&buffer, Lane::Urgent, after).await.reports.len(), 1);
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

/// A damaged store is set aside, counted, and replaced by a fresh one with ids of its own: the agent starts.
#[tokio::test]
async fn damaged_store_is_set_aside() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    let old_id = buffer.buffer_id(Lane::Logs);
    buffer.close().await;
    let store = config(directory.path()).directory.join("store");
    std::fs::write(store.join("conf"), b"this is not what sled wrote").unwrap();

    let metrics = Metrics::new();
    let buffer = Buffer::open(config(directory.path()), metrics.clone()).await.unwrap();
    assert_ne!(buffer.buffer_id(Lane::Logs), old_id);
    assert!(buffer.is_drained());
    buffer.append(entry([event(2, &["sub_a"])])).await.unwrap();
    let quarantine = std::fs::read_dir(config(directory.path()).directory.join("quarantine")).unwrap();
    let mut names: Vec<String> =
        quarantine.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names[0].ends_with(".before-repair") && names[1].ends_with(".damaged"), "{names:?}");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics.registry().lock().unwrap()).unwrap();
    assert!(text.contains("buffer_quarantined_total 1"), "{text}");
}

/// A snapshot that is damaged costs nothing: the log has it all, and a copy of the files as they were found
/// is kept.
#[tokio::test]
async fn damaged_snapshot_is_repaired() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    buffer.close().await;
    // sled writes a snapshot at each start.
    open(directory.path()).await.close().await;
    let store = config(directory.path()).directory.join("store");
    let mut damaged = 0;
    for file in std::fs::read_dir(store).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_string_lossy().starts_with("snap.") {
            std::fs::write(file.path(), b"this is not what sled wrote").unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0);
    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 1).await.len(), 1);
    assert_eq!(buffer.append(entry([event(1, &["sub_a"])])).await.unwrap().duplicates, 1);
    assert!(config(directory.path()).directory.join("quarantine").exists());
}

/// A snapshot that a kill left unfinished does not keep the store from opening.
#[tokio::test]
async fn unfinished_snapshot_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let buffer = open(directory.path()).await;
    buffer.append(entry([event(1, &["sub_a"])])).await.unwrap();
    buffer.close().await;
    let store = config(directory.path()).directory.join("store");
    std::fs::write(store.join("snap.00000000000000FF.generating"), b"half").unwrap();
    let buffer = open(directory.path()).await;
    assert_eq!(deliveries(&buffer, 1).await.len(), 1);
}
