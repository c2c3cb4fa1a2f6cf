use super::*;
use crate::store::{Store, sqlite::testing};
use gateway_proto::v1::{self, config_resource::Resource};

/// `config.db` of the first schema, recorded from the program that wrote it: a route, an instance, two
/// subscriptions, one of them deleted, and two answers to requests.
const SCHEMA_1: &[u8] = include_bytes!("../../tests/fixtures/config-schema-1.db");
/// The signing secret that the program gave for `sub_1` of the recording.
const SIGNING_SECRET: &str = "whsec_PUr7+/R/u3qpZ74UZEkZeF+Y1mHU65k+ULwHBdIj4CY=";

/// A directory with the recorded database.
fn recorded() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.db"), SCHEMA_1).unwrap();
    directory
}

/// Everything in the files of the database.
fn bytes_on_disk(directory: &tempfile::TempDir) -> Vec<u8> {
    let mut bytes = Vec::new();
    for name in ["config.db", "config.db-wal"] {
        bytes.extend(std::fs::read(directory.path().join(name)).unwrap_or_default());
    }
    bytes
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The secrets of the recorded resources, as the store opens them.
async fn secrets(store: &Store) -> (String, String) {
    let mut connection = store.reader().await.unwrap();
    let route = crate::store::inbound_routes::find_any(&mut connection, "route_1").await.unwrap().unwrap();
    let subscription = crate::store::webhook_subscriptions::find_any(&mut connection, "sub_1").await;
    let subscription = subscription.unwrap().unwrap();
    (route.config.secrets[0].value.clone(), subscription.signing_secrets[0].value.clone())
}

fn expected() -> (String, String) {
    ("planted-app-secret".to_owned(), SIGNING_SECRET.to_owned())
}

/// A key of one tenant opens nothing of another, nor of another resource; the first root key seals data keys,
/// and every one of them opens.
#[test]
fn tenants_and_resources_are_kept_apart() {
    let roots = [Key::generate(), Key::generate()];
    let sealer = Sealer::open_keys(&roots, &[]).unwrap();
    let (sealed, key) = sealer.seal("one", "route/1", b"secret");
    let key = key.unwrap();
    assert_eq!(key.root_key_id, roots[0].id().to_string());
    assert_eq!(*sealer.open("one", "route/1", &sealed).unwrap(), b"secret");
    assert!(matches!(sealer.open("one", "route/2", &sealed), Err(SealingError::Refused { .. })));
    sealer.seal("two", "route/1", b"other");
    assert!(matches!(sealer.open("two", "route/1", &sealed), Err(SealingError::UnknownDataKey { .. })));
    assert!(matches!(sealer.open("three", "route/1", &sealed), Err(SealingError::UnknownDataKey { .. })));
    // The same with a restart in between, whatever the order of the root keys.
    let reversed = [roots[1].clone(), roots[0].clone()];
    let again = Sealer::open_keys(&reversed, std::slice::from_ref(&key)).unwrap();
    assert_eq!(*again.open("one", "route/1", &sealed).unwrap(), b"secret");
    assert!(again.seal("one", "route/1", b"secret").1.is_none());
    // A data key that is moved to another tenant is refused.
    let moved = WrappedKey { tenant_id: "two".to_owned(), ..key };
    assert!(matches!(Sealer::open_keys(&roots, &[moved]), Err(SealingError::DamagedDataKey { .. })));
}

/// A data key is stored with the first secret that is committed, also when the transaction before was dropped.
#[tokio::test]
async fn dropped_transaction_leaves_no_unknown_key() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let mut dropped = store.begin_write().await.unwrap();
    dropped.seal("ten_1", "a", b"secret").await.unwrap();
    drop(dropped);
    let mut transaction = store.begin_write().await.unwrap();
    let sealed = transaction.seal("ten_1", "a", b"secret").await.unwrap();
    transaction.commit().await.unwrap();
    store.close().await;
    let store = Store::open(directory.path()).await.unwrap();
    assert_eq!(*store.sealer().open("ten_1", "a", &sealed).unwrap(), b"secret");
}

/// The root key is made once, for its owner alone.
#[tokio::test]
async fn root_key_is_made_once_and_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(root_keys::FILE_NAME);
    Store::open(directory.path()).await.unwrap().close().await;
    let made = std::fs::read_to_string(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    Store::open(directory.path()).await.unwrap().close().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap(), made);
    assert!(Key::parse(&made).is_ok());
}

/// A database of the first schema opens with everything it had, in one step; afterwards nothing readable is
/// left in its files, free pages included.
#[tokio::test]
async fn first_schema_is_sealed() {
    let directory = recorded();
    for readable in ["planted-app-secret", "planted-password", SIGNING_SECRET] {
        assert!(contains(SCHEMA_1, readable), "{readable}");
    }
    for _ in 0..2 {
        let store = Store::open(directory.path()).await.unwrap();
        assert_eq!(secrets(&store).await, expected());
        assert_eq!(store.version().await.unwrap(), 6);
        let changes = store.changes_since(0).await.unwrap();
        assert_eq!(changes.upserts.len(), 3);
        let schema = "SELECT number FROM meta WHERE name = 'schema_version'";
        let schema: i64 = testing::value(directory.path(), schema).await;
        assert_eq!(schema, 2);
        for closed in [false, true] {
            if closed {
                store.close().await;
            }
            let bytes = bytes_on_disk(&directory);
            assert!(contains(&bytes, "sub_1"));
            for secret in ["planted-app", "planted-verify", "planted-header", "planted-password", "whsec_"] {
                assert!(!contains(&bytes, secret), "{secret}");
            }
        }
    }
}

/// Without its root key, or with another one, a database is not opened, in a text that names the key; the files
/// stay as they were, and the right key opens them.
#[tokio::test]
async fn wrong_root_key_is_refused_and_harms_nothing() {
    let directory = recorded();
    let right = RootKeys::Given(vec![Key::generate()]);
    let RootKeys::Given(keys) = &right else { unreachable!("given above") };
    let needed = keys[0].id().to_string();
    Store::open_sealed(directory.path(), &right).await.unwrap().close().await;
    let before = bytes_on_disk(&directory);
    let other = RootKeys::Given(vec![Key::generate()]);
    for wrong in [other, RootKeys::of_data_dir(directory.path())] {
        let refused = Store::open_sealed(directory.path(), &wrong).await.err().unwrap().to_string();
        assert!(refused.contains(&needed) && refused.contains("--root-key-file"), "{refused}");
        assert_eq!(bytes_on_disk(&directory), before);
        assert!(!directory.path().join(root_keys::FILE_NAME).exists());
    }
    let store = Store::open_sealed(directory.path(), &right).await.unwrap();
    assert_eq!(secrets(&store).await, expected());
}

/// A first schema that cannot be sealed, since its root key cannot be made, stays of the first schema.
#[tokio::test]
async fn failed_migration_changes_nothing() {
    let directory = recorded();
    let nowhere = RootKeys::File(directory.path().join("no/such/directory/root.key"));
    assert!(Store::open_sealed(directory.path(), &nowhere).await.is_err());
    let bytes = bytes_on_disk(&directory);
    assert!(contains(&bytes, "planted-app-secret"));
    let store = Store::open(directory.path()).await.unwrap();
    assert_eq!(secrets(&store).await, expected());
}

/// Sealed bytes that somebody put into another row are refused there, and name it.
#[tokio::test]
async fn swapped_rows_are_refused() {
    let directory = recorded();
    let store = Store::open(directory.path()).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let subscription = v1::WebhookSubscription {
        id: "sub_9".to_owned(),
        tenant_id: "default".to_owned(),
        instance_id: "inst_1".to_owned(),
        ..Default::default()
    };
    let mut config =
        v1::WebhookSubscriptionConfig { webhook_subscription: Some(subscription), ..Default::default() };
    crate::store::webhook_subscriptions::put(&mut transaction, &mut config).await.unwrap();
    transaction.commit().await.unwrap();
    let swap = "UPDATE webhook_subscriptions SET config =
                (SELECT config FROM webhook_subscriptions WHERE id = 'sub_1') WHERE id = 'sub_9'";
    testing::execute(directory.path(), swap).await;
    let refused = store.webhook_subscription("sub_9").await.unwrap_err().to_string();
    assert!(refused.contains("webhook_subscription/sub_9"), "{refused}");
    assert!(store.webhook_subscription("sub_1").await.unwrap().is_some());
    // All others still reach the agents.
    let changes = store.changes_since(0).await.unwrap();
    let ids = changes.upserts.iter().filter_map(|change| match &change.resource {
        Some(Resource::WebhookSubscription(config)) => {
            Some(config.webhook_subscription.as_ref()?.id.as_str())
        }
        _ => None,
    });
    assert_eq!(ids.collect::<Vec<_>>(), ["sub_1"]);
}

/// After re-wrapping, the newest root key alone opens the database, and older ones do not; doing it again
/// changes nothing. The secrets themselves are not touched.
#[tokio::test]
async fn rewrapping_makes_older_root_keys_useless() {
    let directory = recorded();
    let (old, new) = (Key::generate(), Key::generate());
    let given = |keys: &[&Key]| RootKeys::Given(keys.iter().map(|key| (*key).clone()).collect());
    Store::open_sealed(directory.path(), &given(&[&old])).await.unwrap().close().await;
    let both = [new.clone(), old.clone()];
    for _ in 0..2 {
        let store = Store::open_sealed(directory.path(), &given(&[&new, &old])).await.unwrap();
        let before: Vec<u8> = testing::value(directory.path(), "SELECT config FROM inbound_routes").await;
        let mut steps = Vec::new();
        store.rewrap(&both, false, |progress| steps.push(progress)).await.unwrap();
        assert_eq!(steps[0], rewrap::Progress::DataKeys { done: 1, total: 1 });
        let after: Vec<u8> = testing::value(directory.path(), "SELECT config FROM inbound_routes").await;
        assert_eq!(after, before);
        store.close().await;
    }
    let store = Store::open_sealed(directory.path(), &given(&[&new])).await.unwrap();
    assert_eq!(secrets(&store).await, expected());
    store.close().await;
    let refused = Store::open_sealed(directory.path(), &given(&[&old])).await.err().unwrap();
    assert!(refused.to_string().contains(&new.id().to_string()), "{refused}");
    assert!(!contains(&bytes_on_disk(&directory), &old.id().to_string()));
}

/// Runs a future for a number of steps, then drops it. True when it came to its end.
async fn run_steps(future: impl Future<Output = ()>, steps: usize) -> bool {
    let mut future = std::pin::pin!(future);
    let mut left = steps;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return std::task::Poll::Ready(false);
        }
        left -= 1;
        future.as_mut().poll(context).map(|()| true)
    })
    .await
}

/// Renewing data keys may be stopped at any step: the database opens as before, and the next run goes on. At the
/// end every row is sealed under the one new key of its tenant.
#[tokio::test]
async fn renewal_of_data_keys_can_be_interrupted() {
    let directory = recorded();
    Store::open(directory.path()).await.unwrap().close().await;
    let root_keys = rewrap::existing(&RootKeys::of_data_dir(directory.path())).unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let first_key = store.sealer().newest_key("default").unwrap();
    store.close().await;
    let (mut steps, mut interruptions) = (1, 0);
    loop {
        let store = Store::open(directory.path()).await.unwrap();
        assert_eq!(secrets(&store).await, expected(), "after {interruptions} interruptions");
        let renewal = async { store.rewrap(&root_keys, true, |_| {}).await.unwrap() };
        let finished = run_steps(renewal, steps).await;
        store.close().await;
        if finished {
            break;
        }
        (steps, interruptions) = (steps + 2, interruptions + 1);
    }
    assert!(interruptions > 5, "{interruptions}");
    let store = Store::open(directory.path()).await.unwrap();
    assert_eq!(secrets(&store).await, expected());
    let newest = store.sealer().newest_key("default").unwrap();
    assert_ne!(newest, first_key);
    for sql in [
        "SELECT config FROM inbound_routes",
        "SELECT config FROM webhook_subscriptions",
        "SELECT response FROM requests ORDER BY method LIMIT 1",
        "SELECT response FROM requests ORDER BY method DESC LIMIT 1",
    ] {
        let sealed: Vec<u8> = testing::value(directory.path(), sql).await;
        assert_eq!(KeyId::of_sealed(&sealed), Some(newest), "{sql}");
    }
    let keys: i64 = testing::value(directory.path(), "SELECT count(*) FROM tenant_keys").await;
    assert_eq!(keys, 1);
}
