//! A backup is a consistent state, and only a whole and undamaged one is restored.

use gateway_runtime::supervise::Supervisor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    inbound_log::LogStore,
    store::{Store, agents, sqlite::testing},
};

struct Source {
    directory: tempfile::TempDir,
    store: Store,
    _logs: LogStore,
}

impl Source {
    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn backup_dir(&self) -> PathBuf {
        self.directory.path().join("backup")
    }

    fn restored_dir(&self) -> PathBuf {
        self.directory.path().join("restored")
    }
}

/// A control plane's databases in use, with ten configuration versions and a join token.
async fn source() -> Source {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    fs::create_dir(&data_dir).unwrap();
    let store = Store::open(&data_dir).await.unwrap();
    let supervisor = Supervisor::new(CancellationToken::new());
    let logs = LogStore::open(&data_dir, &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
    let source = Source { directory, store, _logs: logs };
    bump(&source.store, 10).await;
    let token =
        "INSERT INTO join_tokens (token_hash, region, create_time, expire_time) VALUES (x'00', 'eu', 0, 9)";
    testing::execute(&source.data_dir(), token).await;
    source
}

async fn bump(store: &Store, times: u32) {
    for _ in 0..times {
        let mut tx = store.begin_write().await.unwrap();
        tx.bump_version().await.unwrap();
        tx.commit().await.unwrap();
    }
}

/// A backup taken from databases in use restores to the state they had, as a store of another name, whose log has
/// another name as well; join tokens, which are used once, do not come back. What was committed after the backup
/// is not in it. Nobody else can read either directory.
#[tokio::test]
async fn restores_the_state_of_the_backup_as_a_new_store() {
    use std::os::unix::fs::PermissionsExt as _;
    let source = source().await;
    let mut told = Vec::new();
    let manifest =
        backup(&source.data_dir(), &source.backup_dir(), |progress| told.push(progress)).await.unwrap();
    assert_eq!((manifest.config_version, manifest.store_epoch.as_str()), (10, source.store.store_epoch()));
    assert!(
        told.iter().any(|told| told.doing == "copying") && told.iter().any(|told| told.doing == "checking")
    );
    bump(&source.store, 3).await;
    let restored = restore(&source.backup_dir(), &source.restored_dir(), |_| {}).await.unwrap();
    assert_eq!(restored, manifest);
    for file in [source.backup_dir().join(MANIFEST), source.restored_dir().join(store::FILE_NAME)] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o077, 0);
    }
    let names = fs::read_dir(source.restored_dir()).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [store::FILE_NAME, inbound_log::FILE_NAME]);
    // The root key is not in a backup.
    let root_keys = crate::sealing::RootKeys::of_data_dir(&source.data_dir());
    let store = Store::open_sealed(&source.restored_dir(), &root_keys).await.unwrap();
    assert_eq!(store.version().await.unwrap(), 10);
    assert_ne!(store.store_epoch(), manifest.store_epoch);
    assert!(agents::list(&store, None, None, 1).await.unwrap().is_empty());
    let tokens: i64 = testing::value(&source.restored_dir(), "SELECT count(*) FROM join_tokens").await;
    assert_eq!(tokens, 0);
    let supervisor = Supervisor::new(CancellationToken::new());
    LogStore::open(&source.restored_dir(), &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
}

/// Neither a backup nor a restore touches a directory that has something in it.
#[tokio::test]
async fn full_directories_are_refused() {
    let source = source().await;
    fs::create_dir(source.backup_dir()).unwrap();
    fs::create_dir(source.backup_dir().join("lost+found")).unwrap();
    backup(&source.data_dir(), &source.backup_dir(), |_| {}).await.unwrap();
    let again = backup(&source.data_dir(), &source.backup_dir(), |_| {}).await.unwrap_err();
    assert!(matches!(again, BackupError::NotEmpty(_)), "{again}");
    let over = restore(&source.backup_dir(), &source.data_dir(), |_| {}).await.unwrap_err();
    assert!(matches!(over, BackupError::NotEmpty(_)), "{over}");
}

/// A backup with a byte changed, a byte missing or a file missing, one that was never finished, and one of a newer
/// program are refused, and nothing is left where it was to go.
#[tokio::test]
async fn what_is_not_a_whole_backup_is_refused() {
    let source = source().await;
    let manifest = backup(&source.data_dir(), &source.backup_dir(), |_| {}).await.unwrap();
    let (from, to) = (source.backup_dir(), source.restored_dir());
    let refused = async || {
        let refused = restore(&from, &to, |_| {}).await.unwrap_err();
        assert!(!to.exists() || fs::read_dir(&to).unwrap().next().is_none(), "{refused}");
        refused
    };
    for (name, _) in DATABASES {
        let path = from.join(name);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [&flipped[..], &good[..good.len() - 1]] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(refused().await, BackupError::Damaged(found) if found == path));
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(refused().await, BackupError::File { .. }));
        fs::write(&path, good).unwrap();
    }
    let path = from.join(MANIFEST);
    let newer = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
    };
    newer(&|manifest| manifest.format = 2);
    assert!(matches!(refused().await, BackupError::Newer { found: 2, known: 1, .. }));
    newer(&|manifest| manifest.files[1].schema_version += 1);
    assert!(matches!(refused().await, BackupError::Newer { .. }));
    fs::write(&path, "{\"format\": 1").unwrap();
    assert!(matches!(refused().await, BackupError::Manifest { .. }));
    fs::remove_file(&path).unwrap();
    assert!(matches!(refused().await, BackupError::NoManifest(_)));
    newer(&|_| {});
    restore(&from, &to, |_| {}).await.unwrap();
}

/// A data directory in which a restore was interrupted is not taken for an empty one, at a start or by another
/// restore.
#[tokio::test]
async fn an_interrupted_restore_is_refused() {
    let source = source().await;
    backup(&source.data_dir(), &source.backup_dir(), |_| {}).await.unwrap();
    let to = source.restored_dir();
    fs::create_dir_all(to.join("restoring")).unwrap();
    assert!(matches!(refuse_unfinished(&to), Err(BackupError::Unfinished(_))));
    let again = restore(&source.backup_dir(), &to, |_| {}).await.unwrap_err();
    assert!(matches!(again, BackupError::NotEmpty(_)), "{again}");
    assert!(refuse_unfinished(&source.data_dir()).is_ok());
}

/// A backup that cannot be written leaves nothing that could be taken for one.
#[tokio::test]
async fn a_failed_backup_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("backup");
    let failed = backup(&directory.path().join("nowhere"), &to, |_| {}).await.unwrap_err();
    assert!(matches!(failed, BackupError::Database { .. }), "{failed}");
    assert!(fs::read_dir(&to).unwrap().next().is_none());
}
