//! A backup of what is damaged says so.

use std::{fs, path::PathBuf};

use gateway_proto::v1;
use gateway_runtime::supervise::Supervisor;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    backup::backup,
    inbound_log::SqliteLogStore,
    store::{
        api_keys,
        conformance::fixtures::{agent, one_of_each, opt_out, put_policy},
        requests,
        sqlite::testing,
        work::{self, NewWork},
    },
};

/// A data directory with something of every kind, and the place of a backup.
struct Place {
    directory: tempfile::TempDir,
    store: Store,
    _logs: SqliteLogStore,
}

impl Place {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        fs::create_dir(&data_dir).unwrap();
        let store = Store::open(&data_dir).await.unwrap();
        let supervisor = Supervisor::new(CancellationToken::new());
        let logs =
            SqliteLogStore::open(&data_dir, &supervisor, tokio::sync::mpsc::channel(1).0).await.unwrap();
        let place = Self { directory, store, _logs: logs };
        place.fill().await;
        place
    }

    async fn fill(&self) {
        one_of_each(&self.store).await;
        put_policy(&self.store, "inst_1").await;
        self.store.record_opt_outs(agent(), vec![opt_out("+966500000001", 100)]).await.unwrap();
        let mut tx = self.store.begin_write().await.unwrap();
        let key = v1::ApiKey { id: "key_1".into(), tenant_id: "default".into(), ..Default::default() };
        api_keys::create(&mut tx, &key, &[1; 32]).await.unwrap();
        let test = v1::TestEventWork { subscription_id: "sub_1".into(), ..Default::default() };
        let work = v1::Work { id: "work_1".into(), work: Some(v1::work::Work::TestEvent(test)) };
        work::insert(&mut tx, &[NewWork { work, regions: Vec::new() }]).await.unwrap();
        let request = requests::RequestKey::new("default", "CreateInstance", "once", &[]);
        requests::remember(&mut tx, &request, &v1::Instance::default()).await.unwrap();
        tx.commit().await.unwrap();
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Makes a backup and looks through it.
    async fn verified(&self, name: &str, root_keys: &RootKeys) -> Verified {
        let to = self.directory.path().join(name);
        backup(&self.data_dir(), &to, |_| {}).await.unwrap();
        let bytes = || {
            let read = |name: &str| fs::read(to.join(name)).unwrap();
            DATABASES.map(|(name, _)| read(name))
        };
        let before = bytes();
        let verified = verify(&to, root_keys, |_| {}).await.unwrap();
        assert!(before == bytes(), "looking changes nothing");
        let mut files: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["config.db", "logs.db", "manifest.json"]);
        verified
    }
}

/// Every row of a backup is read; each damaged one is named, of whatever kind it is, and all of them at once.
#[tokio::test]
async fn damaged_rows_of_a_backup_are_named() {
    let place = Place::new().await;
    let root_keys = RootKeys::of_data_dir(&place.data_dir());
    let whole = place.verified("whole", &root_keys).await;
    assert!(whole.is_whole() && whole.not_opened.is_none(), "{whole:?}");
    // Tenant, key, route, instance, policy, subscription, opt-out and its entry, request, work.
    assert!(whole.rows >= 10, "{whole:?}");
    let damage = "UPDATE tenants SET body = x'ff'; UPDATE api_keys SET body = x'';
                  UPDATE inbound_routes SET config = x'00'; UPDATE instances SET body = x'ff';
                  UPDATE opt_out_policies SET body = x'ff'; UPDATE webhook_subscriptions SET config = x'00';
                  UPDATE opt_outs SET body = x'ff'; UPDATE requests SET response = x'00';
                  UPDATE queued_work SET body = x'00'";
    testing::execute(&place.data_dir(), damage).await;
    let found = place.verified("damaged", &root_keys).await;
    assert!(!found.is_whole());
    // The backup before left an entry in the audit log.
    assert_eq!((found.rows, found.structure.len(), &found.not_opened), (whole.rows + 1, 0, &None));
    let types: Vec<_> = found.damaged.iter().map(|row| row.resource_type).collect();
    let expected = [
        "api_key",
        "inbound_route",
        "instance",
        "opt_out",
        "opt_out_policy",
        "request",
        "tenant",
        "webhook_subscription",
        "work",
    ];
    assert_eq!(types, expected);
}

/// Without the root key what is sealed cannot be looked at, which is said, and is no damage; a data key that was changed
/// is one.
#[tokio::test]
async fn missing_keys_are_no_damage() {
    let place = Place::new().await;
    let absent = RootKeys::of_data_dir(&place.directory.path().join("nowhere"));
    let found = place.verified("no_key", &absent).await;
    assert!(found.is_whole(), "{found:?}");
    assert!(found.not_opened.is_some_and(|reason| reason.contains("root key")));
    // Route, subscription, request, work.
    assert_eq!(found.rows_not_opened, 4);
    assert!(!place.directory.path().join("nowhere").exists());
    testing::execute(&place.data_dir(), "UPDATE tenant_keys SET wrapped = zeroblob(length(wrapped))").await;
    let found = place.verified("key", &RootKeys::of_data_dir(&place.data_dir())).await;
    assert_eq!(found.damaged.iter().filter(|row| row.resource_type == "data_key").count(), 1);
    assert_eq!(found.damaged.len(), 5, "{found:?}");
}

/// A database whose pages are broken is told apart from one with damaged rows.
#[tokio::test]
async fn broken_structure_is_found() {
    let place = Place::new().await;
    let to = place.directory.path().join("backup");
    backup(&place.data_dir(), &to, |_| {}).await.unwrap();
    for name in ["logs.db", "config.db"] {
        let path = to.join(name);
        let mut bytes = fs::read(&path).unwrap();
        let good = bytes.clone();
        // The header of every page but the first, which must do for a file (<https://sqlite.org/fileformat.html>).
        let page = usize::from(u16::from_be_bytes([bytes[16], bytes[17]])).max(512);
        assert!(bytes.len() > page, "{name} has more than one page");
        bytes.chunks_mut(page).skip(1).for_each(|page| page[..8].fill(0xa5));
        fs::write(&path, bytes).unwrap();
        let found = verify(&to, &RootKeys::of_data_dir(&place.data_dir()), |_| {}).await.unwrap();
        assert!(found.structure.iter().any(|finding| finding.starts_with(name)), "{name}: {found:?}");
        fs::write(&path, good).unwrap();
    }
}
