//! A backup is a consistent state, and only a whole and undamaged one is restored.

use gateway_core::tenant::TenantScope;
use gateway_proto::v1;
use gateway_runtime::supervise::Supervisor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    inbound_log::SqliteLogStore,
    store::{Store, agents, api_keys, sqlite::testing},
};

struct Source {
    directory: tempfile::TempDir,
    store: Store,
    _logs: SqliteLogStore,
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
    let logs = SqliteLogStore::open(&data_dir, &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
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
    let restored = restore(&source.backup_dir(), &source.restored_dir(), None, |_| {}).await.unwrap();
    assert_eq!(restored.manifest, manifest);
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
    SqliteLogStore::open(&source.restored_dir(), &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
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
    let over = restore(&source.backup_dir(), &source.data_dir(), None, |_| {}).await.unwrap_err();
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
        let refused = restore(&from, &to, None, |_| {}).await.unwrap_err();
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
    restore(&from, &to, None, |_| {}).await.unwrap();
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
    let again = restore(&source.backup_dir(), &to, None, |_| {}).await.unwrap_err();
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

const REGION: &str = "eu";

/// Keys `key_1` to `key_3` and agents `agt_1` and `agt_2`, all working.
async fn with_credentials(store: &Store) {
    let mut tx = store.begin_write().await.unwrap();
    for number in 1..=3_u8 {
        let (id, display_name) = (format!("key_{number}"), format!("Key {number}"));
        let key = v1::ApiKey { id, display_name, role: v1::Role::PlatformAdmin.into(), ..Default::default() };
        api_keys::create(&mut tx, &key, &[number; 32]).await.unwrap();
    }
    for number in 1..=2_u8 {
        let agent = agents::NewAgent {
            id: format!("agt_{number}"),
            region: REGION.to_owned(),
            build: "1".to_owned(),
            credential_hash: [number; 32],
            tenant_id: None,
            certificate_expire_time: None,
        };
        agents::create_agent(&mut tx, &agent, clock::now()).await.unwrap();
    }
    tx.commit().await.unwrap();
}

fn ids(credentials: &[Credential]) -> Vec<&str> {
    credentials.iter().map(|credential| credential.id.as_str()).collect()
}

/// Whoever was revoked or deleted after the backup stays out when the database that was in use is there to tell, which
/// is on record; without it the list of those that get in says who they are. A database that cannot be read, or that
/// is of another store, is told apart.
#[tokio::test]
async fn revocations_after_the_backup_are_kept() {
    let source = source().await;
    with_credentials(&source.store).await;
    backup(&source.data_dir(), &source.backup_dir(), |_| {}).await.unwrap();
    let revoke =
        ["UPDATE agents SET revoke_time = 7 WHERE id = 'agt_1'", "DELETE FROM api_keys WHERE id = 'key_3'"];
    for sql in revoke {
        testing::execute(&source.data_dir(), sql).await;
    }
    let mut tx = source.store.begin_write().await.unwrap();
    let found = api_keys::find(&mut tx, &TenantScope::All, "key_1").await.unwrap().unwrap();
    let revoke_time = Some(prost_types::Timestamp { seconds: 7, nanos: 0 });
    api_keys::update(&mut tx, &v1::ApiKey { revoke_time, ..found }).await.unwrap();
    tx.commit().await.unwrap();

    let to = |name: &str| source.directory.path().join(name);
    let unseen = restore(&source.backup_dir(), &to("unseen"), None, |_| {}).await.unwrap().credentials;
    assert_eq!(ids(&unseen.working), ["key_1", "key_2", "key_3", "agt_1", "agt_2"]);
    assert!(
        unseen.revoked.is_empty() && unseen.working[0].name == "Key 1" && unseen.working[3].name == REGION
    );

    let nowhere = restore(&source.backup_dir(), &to("none"), Some(&to("nowhere")), |_| {}).await.unwrap_err();
    assert!(matches!(&nowhere, BackupError::NoPrevious(path) if *path == to("nowhere")), "{nowhere}");
    assert!(format!("{:#}", anyhow::Error::from(nowhere)).contains("there is no config.db in `"));
    assert!(!to("none").exists(), "nothing is restored unseen");
    fs::create_dir(to("odd")).unwrap();
    fs::write(to("odd").join(store::FILE_NAME), "no database").unwrap();
    let odd = restore(&source.backup_dir(), &to("none"), Some(&to("odd")), |_| {}).await.unwrap_err();
    assert!(matches!(odd, BackupError::Previous { .. }), "{odd}");
    assert!(fs::read_dir(to("none")).unwrap().next().is_none(), "nothing is restored unseen");

    fs::create_dir(to("other")).unwrap();
    Store::open(&to("other")).await.unwrap().close().await;
    let other = restore(&source.backup_dir(), &to("stranger"), Some(&to("other")), |_| {}).await.unwrap();
    assert_eq!(ids(&other.credentials.revoked), [""; 0], "another store says nothing of these");

    let restored = source.restored_dir();
    let kept = restore(&source.backup_dir(), &restored, Some(&source.data_dir()), |_| {}).await.unwrap();
    assert_eq!(ids(&kept.credentials.revoked), ["key_1", "key_3", "agt_1"]);
    assert_eq!(ids(&kept.credentials.working), ["key_2", "agt_2"]);
    let root_keys = crate::sealing::RootKeys::of_data_dir(&source.data_dir());
    let store = Store::open_sealed(&restored, &root_keys).await.unwrap();
    let mut reader = store.reader().await.unwrap();
    for (id, is_revoked) in [("key_1", true), ("key_2", false), ("key_3", true)] {
        let key = api_keys::find(&mut reader, &TenantScope::All, id).await.unwrap().unwrap();
        assert_eq!(key.revoke_time.is_some(), is_revoked, "{id}");
    }
    assert!(agents::is_revoked(&store, "agt_1").await.unwrap());
    assert!(!agents::is_revoked(&store, "agt_2").await.unwrap());
    let entries =
        store::audit::list(&mut reader, &store::audit::AuditFilter::default(), None, 9).await.unwrap();
    let of_commands: Vec<_> = entries
        .iter()
        .filter(|(_, entry)| entry.actor.starts_with("command_line:") && entry.resource_type == "backup")
        .map(|(_, entry)| entry.method.as_str())
        .collect();
    assert_eq!(of_commands, ["Restore", "Backup"], "a backup has its own entry");
    let mut entries: Vec<_> = entries
        .iter()
        .filter(|(_, entry)| entry.actor == "gateway")
        .map(|(_, entry)| (entry.actor.as_str(), entry.method.as_str(), entry.resource_id.as_str()))
        .collect();
    entries.sort_unstable();
    assert_eq!(
        entries,
        [("gateway", "Restore", "agt_1"), ("gateway", "Restore", "key_1"), ("gateway", "Restore", "key_3")]
    );
}

/// An older state of the store, as a snapshot of its disk that was taken before the backup, does not know the keys and
/// agents that came after it: that is no reason to revoke them.
#[tokio::test]
async fn an_older_state_revokes_nobody() {
    let source = source().await;
    let older = source.directory.path().join("older");
    backup(&source.data_dir(), &older, |_| {}).await.unwrap();
    bump(&source.store, 1).await;
    with_credentials(&source.store).await;
    backup(&source.data_dir(), &source.backup_dir(), |_| {}).await.unwrap();
    let restored = restore(&source.backup_dir(), &source.restored_dir(), Some(&older), |_| {}).await.unwrap();
    assert_eq!(ids(&restored.credentials.revoked), [""; 0]);
    assert_eq!(ids(&restored.credentials.working), ["key_1", "key_2", "key_3", "agt_1", "agt_2"]);
}
