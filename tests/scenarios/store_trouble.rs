//! Databases of the control plane that cannot be used: it says so clearly, harms nothing, answers what it can,
//! and goes on by itself once that is mended.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use gateway_proto::v1;
use gateway_tests::{
    ControlPlane, DEADLINE, World,
    control_plane::ControlPlaneOptions,
    database::{Lock, execute},
    eventually,
    faults::{Fault, Faults},
    world::{WorldOptions, create_instance, subscribe},
};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const FROM: &str = "966500000001";
const URL: &str = "http://127.0.0.1:1025/x";
/// A change is refused within this time while somebody else writes.
const REFUSED_MAX: Duration = Duration::from_secs(15);
/// A user that owns nothing, for tests that run as root.
const NOBODY: u32 = 65_534;

/// Every file of a directory with its contents, but those that say who is running.
fn contents(directory: &Path) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut contents = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "lock"
            && !name.ends_with("-shm")
            && !name.ends_with("-wal")
            && entry.file_type()?.is_file()
        {
            contents.insert(name, fs::read(entry.path())?);
        }
    }
    Ok(contents)
}

/// The program does not start; gives what it says.
async fn refusal(control_plane: &mut ControlPlane) -> anyhow::Result<String> {
    control_plane.launch_again()?;
    let ended = control_plane.process().ended().await?;
    let text = control_plane.log_text()?;
    ensure!(!ended.success() && !text.contains("panicked"), "it ended with {ended}:\n{text}");
    Ok(text)
}

fn assert_unavailable(status: &Status, reason: &str) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let details = status.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some(reason), "{status:?}");
    assert!(details.retry_info().is_some_and(|retry| retry.retry_delay.is_some()), "{status:?}");
}

async fn create(control_plane: &ControlPlane) -> Result<(), Status> {
    let subscription = v1::WebhookSubscription {
        instance_id: "inst-test".to_owned(),
        destination_url: URL.to_owned(),
        events: vec!["message.received".to_owned()],
        ..Default::default()
    };
    let request = v1::CreateWebhookSubscriptionRequest {
        webhook_subscription: Some(subscription),
        ..Default::default()
    };
    // Longer than the control plane waits itself.
    let mut request = tonic::Request::new(request);
    request.set_timeout(DEADLINE);
    let mut subscriptions = control_plane.client().webhook_subscriptions();
    subscriptions.create_webhook_subscription(request).await.map(drop)
}

async fn subscriptions(control_plane: &ControlPlane) -> anyhow::Result<usize> {
    let request = v1::ListWebhookSubscriptionsRequest { page_size: 1_000, ..Default::default() };
    let mut client = control_plane.client().webhook_subscriptions();
    Ok(client.list_webhook_subscriptions(request).await?.into_inner().webhook_subscriptions.len())
}

/// Databases of a newer program: this one refuses to start, says which versions it knows, and leaves every byte
/// as it is, for either of the two files.
#[tokio::test]
async fn newer_schema_is_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    control_plane.stop().await.unwrap();
    for (file, column) in [("config.db", "number"), ("logs.db", "value")] {
        let database = control_plane.data_dir().join(file);
        let add = async |number: i64| {
            let set = format!("UPDATE meta SET {column} = {column} + {number} WHERE name = 'schema_version'");
            execute(&database, &set).await
        };
        add(97).await.unwrap();
        let before = contents(&control_plane.data_dir()).unwrap();
        let text = refusal(&mut control_plane).await.unwrap();
        assert!(text.contains("schema version") && text.contains("start "), "{file}: {text}");
        assert_eq!(contents(&control_plane.data_dir()).unwrap(), before, "{file}");
        add(-97).await.unwrap();
    }
    control_plane.start_again().await.unwrap();
    let request = v1::GetInstanceRequest { id: "inst-test".to_owned() };
    control_plane.client().instances().get_instance(request).await.unwrap();
}

/// Another process writes the database and does not stop: changes are refused with a reason and a time to come
/// again, reading goes on, and the change goes through once the other is done. A start waits or refuses, and
/// harms nothing.
#[tokio::test]
async fn locked_database_refuses_changes_only() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    create(&control_plane).await.unwrap();
    let database = control_plane.data_dir().join("config.db");
    let lock = Lock::of(&database).await.unwrap();
    let began = Instant::now();
    let refused = create(&control_plane).await.unwrap_err();
    assert_unavailable(&refused, "STORE_BUSY");
    assert!(began.elapsed() < REFUSED_MAX, "{:?}", began.elapsed());
    assert_eq!(subscriptions(&control_plane).await.unwrap(), 1);
    lock.release().await.unwrap();
    create(&control_plane).await.unwrap();
    assert_eq!(subscriptions(&control_plane).await.unwrap(), 2);

    control_plane.stop().await.unwrap();
    let lock = Lock::of(&database).await.unwrap();
    let text = refusal(&mut control_plane).await.unwrap();
    assert!(text.contains("config") && text.contains("locked"), "{text}");
    lock.release().await.unwrap();
    control_plane.start_again().await.unwrap();
    assert_eq!(subscriptions(&control_plane).await.unwrap(), 2);
}

/// The disk of the databases is full: changes are refused with a reason, nothing of them stays, reading goes on,
/// agents go on and keep their reports; with space again everything goes through, without a restart, and the
/// logs are complete.
#[tokio::test]
async fn full_disk_refuses_changes_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Faults::new(directory.path()).await.unwrap();
    let control_plane =
        ControlPlaneOptions { wrapper: faults.wrapper_of_all(), ..ControlPlaneOptions::default() };
    let world = World::start_with(WorldOptions { control_plane, ..WorldOptions::default() }).await.unwrap();
    let before = world.provider.say(FROM, "before").await.unwrap();
    world.delivered(&before).await.unwrap();
    let count = subscriptions(&world.control_plane).await.unwrap();
    faults.begin(Fault::DiskFull).unwrap();
    let refused = eventually(DEADLINE, async || match create(&world.control_plane).await {
        Err(status) => Ok(status),
        Ok(()) => anyhow::bail!("a change is taken"),
    });
    let refused = refused.await.unwrap();
    assert!(faults.has_fired());
    assert_unavailable(&refused, "STORE_FULL");
    let found = subscriptions(&world.control_plane).await.unwrap();
    let during = world.provider.say(FROM, "while the disk is full").await.unwrap();
    world.delivered(&during).await.unwrap();
    faults.end().unwrap();
    eventually(DEADLINE, async || Ok(create(&world.control_plane).await?)).await.unwrap();
    // Over each of its connections to the database.
    for _ in 0..20 {
        create(&world.control_plane).await.unwrap();
    }
    assert_eq!(subscriptions(&world.control_plane).await.unwrap(), found + 21);
    assert!(found >= count);
    world.config_applied().await.unwrap();
    eventually(DEADLINE, async || {
        let logs = world.logs().await?;
        let of = |wamid: &str| logs.iter().filter(|log| log.external_message_id == wamid).count();
        ensure!(of(&before) == 1 && of(&during) == 1, "{} and {} logs", of(&before), of(&during));
        Ok(())
    })
    .await
    .unwrap();
}

/// What must be read-only for whom: everything below the directory, for a user that owns nothing when the test
/// is root, who may write anywhere.
fn make_read_only(directory: &Path) -> anyhow::Result<Vec<String>> {
    for entry in fs::read_dir(directory)? {
        fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o444))?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o555))?;
    if fs::metadata("/proc/self")?.uid() != 0 {
        return Ok(Vec::new());
    }
    let parent = directory.parent().context("find the parent of the data directory")?;
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755))?;
    let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
    Ok(["setpriv", &user, &group, "--clear-groups"].map(str::to_owned).into())
}

/// Databases that cannot be written: the control plane refuses to start, names what it cannot use, and leaves
/// every byte as it is.
#[tokio::test]
async fn read_only_databases_are_refused_untouched() {
    let directory = tempfile::tempdir().unwrap();
    let mut control_plane = ControlPlane::start(directory.path()).await.unwrap();
    create_instance(control_plane.client()).await.unwrap();
    subscribe(control_plane.client(), URL, &["message.received"]).await.unwrap();
    control_plane.stop().await.unwrap();
    let data_dir = control_plane.data_dir();
    let before = contents(&data_dir).unwrap();
    let wrapper = make_read_only(&data_dir).unwrap();
    let options = ControlPlaneOptions { wrapper, ..ControlPlaneOptions::default() };
    let started = ControlPlane::start_with(directory.path(), options).await;
    let text = format!("{:#}", started.err().context("it starts").unwrap());
    assert!(text.contains("control-plane") && !text.contains("panicked"), "{text}");
    let denied = ["denied", "read-only", "readonly", "unable to open"];
    assert!(denied.iter().any(|word| text.to_lowercase().contains(word)), "{text}");
    fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(&data_dir).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(contents(&data_dir).unwrap(), before);
    control_plane.start_again().await.unwrap();
    assert_eq!(subscriptions(&control_plane).await.unwrap(), 1);
}
