use std::os::unix::fs::PermissionsExt as _;

use gateway_core::snapshot::SubscriptionLookup;
use v1::config_resource::Resource;

use super::{state::SUBSCRIPTION, *};

mod digests;

fn delta(version: u64) -> v1::StreamConfigResponse {
    v1::StreamConfigResponse {
        version,
        store_epoch: "epoch".to_owned(),
        upserts: vec![instance(&format!("inst_{version}"), version, "")],
        opt_outs: vec![opt_out(version)],
        opt_out_cursor: version,
        ..v1::StreamConfigResponse::default()
    }
}

fn instance(id: &str, version: u64, secret: &str) -> v1::ConfigResource {
    let instance = v1::Instance {
        id: id.to_owned(),
        tenant_id: "default".to_owned(),
        display_name: secret.to_owned(),
        inbound_route_id: "route_1".to_owned(),
        provider_number_id: id.to_owned(),
        ..v1::Instance::default()
    };
    v1::ConfigResource { version, resource: Some(Resource::Instance(instance)) }
}

fn subscription(id: &str, version: u64) -> v1::ConfigResource {
    let subscription = v1::WebhookSubscription {
        id: id.to_owned(),
        tenant_id: "default".to_owned(),
        instance_id: "inst_1".to_owned(),
        destination_url: "https://example.com/hooks/of/a/customer".to_owned(),
        events: vec!["message.*".to_owned()],
        state: v1::WebhookSubscriptionState::Active.into(),
        ..v1::WebhookSubscription::default()
    };
    let secret = v1::SigningSecret {
        value: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
        ..v1::SigningSecret::default()
    };
    let config = v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(subscription),
        signing_secrets: vec![secret],
        signing_keys: Vec::new(),
    };
    v1::ConfigResource { version, resource: Some(Resource::WebhookSubscription(config)) }
}

fn opt_out(number: u64) -> v1::OptOut {
    v1::OptOut { id: format!("opt_{number}"), ..v1::OptOut::default() }
}

/// A snapshot response with `count` subscriptions.
fn snapshot_of(count: u64) -> v1::StreamConfigResponse {
    let upserts = (0..count).map(|number| subscription(&format!("sub_{number}"), 1)).collect();
    v1::StreamConfigResponse { snapshot: true, upserts, ..delta(1) }
}

fn reopen(directory: &Path, key: &Key) -> (ConfigLog, Vec<v1::OptOut>) {
    ConfigLog::open(directory, key).unwrap()
}

fn append(log: &ConfigLog, response: &v1::StreamConfigResponse) {
    log.append([response], || vec![opt_out(100)]).unwrap();
}

/// What the log says about instances `inst_1`, `inst_2`, …: the version, and which of them are there.
fn state(log: &ConfigLog) -> (u64, Vec<bool>) {
    let version = log.snapshot().map_or(0, |snapshot| snapshot.version);
    (version, (1..=6).map(|number| log.last_good("instance", &format!("inst_{number}")).is_some()).collect())
}

/// The state after the first `count` deltas.
fn state_after(count: u64) -> (u64, Vec<bool>) {
    (count, (1..=6).map(|number| number <= count).collect())
}

/// What was appended is there after a restart, opt-outs included: those of a base, then those of the deltas.
#[test]
fn survives_restart() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, opt_outs) = reopen(directory.path(), &key);
    assert!(log.snapshot().is_none() && opt_outs.is_empty());
    for version in 1..=3 {
        append(&log, &delta(version));
    }
    let (log, opt_outs) = reopen(directory.path(), &key);
    assert_eq!(state(&log), state_after(3));
    assert_eq!(opt_outs, [opt_out(100), opt_out(2), opt_out(3)]);
    assert_eq!(log.opt_out_cursor(), 3);
    append(&log, &delta(4));
    assert_eq!(state(&reopen(directory.path(), &key).0), state_after(4));
}

/// A snapshot takes the place of everything; the file before it is kept.
#[test]
fn snapshot_is_a_new_base() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &delta(1));
    append(&log, &v1::StreamConfigResponse { snapshot: true, ..delta(2) });
    let (log, opt_outs) = reopen(directory.path(), &key);
    assert_eq!(state(&log), (2, vec![false, true, false, false, false, false]));
    assert_eq!(opt_outs, [opt_out(100)]);
    fs::rename(directory.path().join(PREVIOUS_FILE), directory.path().join(FILE)).unwrap();
    assert_eq!(state(&reopen(directory.path(), &key).0), state_after(1));
}

/// A webhook subscription that departed or was deleted is known as such after a restart and a new base, since it
/// may be owed deliveries; one that comes back is there again.
#[test]
fn departed_and_deleted_subscriptions_are_remembered() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    let change = |upserts, removed: Option<bool>| v1::StreamConfigResponse {
        upserts,
        removals: Vec::from_iter(removed.map(|deleted| v1::ConfigRemoval {
            r#type: SUBSCRIPTION.to_owned(),
            id: "sub_a".to_owned(),
            deleted,
        })),
        store_epoch: "epoch".to_owned(),
        version: 7,
        ..Default::default()
    };
    append(&log, &change(vec![subscription("sub_a", 1)], None));
    for (removed, expected) in [(Some(false), "known"), (Some(true), "deleted"), (None, "known")] {
        let upserts = if removed.is_none() { vec![subscription("sub_a", 2)] } else { Vec::new() };
        append(&reopen(directory.path(), &key).0, &change(upserts, removed));
        for rewrite in [false, true] {
            let (log, _) = reopen(directory.path(), &key);
            if rewrite {
                log.lock().appender = None;
                append(&log, &change(Vec::new(), None));
            }
            let snapshot = reopen(directory.path(), &key).0.snapshot().unwrap();
            let found = match snapshot.look_up_subscription("sub_a") {
                SubscriptionLookup::Known(_) => "known",
                SubscriptionLookup::Deleted => "deleted",
                SubscriptionLookup::Unknown => "unknown",
            };
            assert_eq!((found, snapshot.subscription("sub_a").is_some()), (expected, removed.is_none()));
        }
    }
}

/// Two files, four deltas each, as bytes: the previous one, and the one whose base begins after its last delta.
fn two_files(directory: &Path, key: &Key) -> (Vec<u8>, Vec<u8>) {
    let (log, _) = reopen(directory, key);
    for version in 1..=6 {
        if version == 4 {
            log.lock().appender = None;
        }
        append(&log, &delta(version));
    }
    let read = |name| fs::read(directory.join(name)).unwrap();
    (read(PREVIOUS_FILE), read(FILE))
}

/// Cut at any byte, or with any byte changed, the log opens to a state that was stored, and never to one before
/// the previous file's last; then it goes on from there, and the rest is asked for by version.
#[test]
fn damage_at_any_byte_costs_only_what_follows_it() {
    let (made, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (previous, current) = two_files(made.path(), &key);
    let directory = tempfile::tempdir().unwrap();
    let mut reached = std::collections::BTreeSet::new();
    for place in 0..current.len() {
        let mut flipped = current.clone();
        flipped[place] ^= 0x40;
        for damaged in [&current[..place], &flipped[..]] {
            fs::write(directory.path().join(PREVIOUS_FILE), &previous).unwrap();
            fs::write(directory.path().join(FILE), damaged).unwrap();
            let (log, _) = reopen(directory.path(), &key);
            let version = state(&log).0;
            assert!((3..=5).contains(&version), "{place}: {version}");
            assert_eq!(state(&log), state_after(version), "{place}");
            assert_eq!(log.opt_out_cursor(), version);
            reached.insert((damaged.len() == current.len(), version));
            append(&log, &delta(version + 1));
            assert_eq!(state(&reopen(directory.path(), &key).0), state_after(version + 1), "{place}");
        }
    }
    let expected =
        [false, true].into_iter().flat_map(|flipped| (3..=5).map(move |version| (flipped, version)));
    assert!(reached.into_iter().eq(expected));
}

/// The same for the very first file, which has none before it: at worst nothing is known.
#[test]
fn damage_of_the_only_file_costs_only_what_follows_it() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &delta(1));
    append(&log, &delta(2));
    let path = directory.path().join(FILE);
    let whole = fs::read(&path).unwrap();
    for place in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[place] ^= 0x01;
        for damaged in [&whole[..place], &flipped[..]] {
            fs::write(&path, damaged).unwrap();
            let (log, _) = reopen(directory.path(), &key);
            let version = state(&log).0;
            assert!(version <= 1, "{place}");
            assert_eq!(state(&log), state_after(version), "{place}");
        }
    }
}

/// Records that are exchanged, repeated, or come from another file, end the reading like damage.
#[test]
fn records_cannot_be_moved() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    let path = directory.path().join(FILE);
    let length = || fs::metadata(&path).map_or(0, |metadata| usize::try_from(metadata.len()).unwrap());
    let mut ends = Vec::new();
    for version in 1..=3 {
        append(&log, &delta(version));
        ends.push(length());
    }
    let whole = fs::read(&path).unwrap();
    let [base, second, third] = [&whole[..ends[0]], &whole[ends[0]..ends[1]], &whole[ends[1]..]];
    let elsewhere = tempfile::tempdir().unwrap();
    let (other, _) = reopen(elsewhere.path(), &key);
    append(&other, &delta(1));
    append(&other, &delta(2));
    let foreign = fs::read(elsewhere.path().join(FILE)).unwrap();
    for (moved, version) in [
        ([base, third, second].concat(), 1),
        ([base, second, second].concat(), 2),
        ([base, &foreign[foreign.len() - second.len()..]].concat(), 1),
        (whole.clone(), 3),
    ] {
        fs::write(&path, moved).unwrap();
        assert_eq!(state(&reopen(directory.path(), &key).0), state_after(version));
    }
}

/// A crash between the two renames of a new base leaves the previous file, which is used.
#[test]
fn crash_while_a_base_takes_its_place_loses_nothing() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &delta(1));
    append(&log, &delta(2));
    fs::rename(directory.path().join(FILE), directory.path().join(PREVIOUS_FILE)).unwrap();
    fs::write(directory.path().join("config.log.new"), b"half a ba").unwrap();
    let (log, _) = reopen(directory.path(), &key);
    assert_eq!(state(&log), state_after(2));
    append(&log, &delta(3));
    assert_eq!(state(&reopen(directory.path(), &key).0), state_after(3));
}

/// A disk that refuses a delta loses none: the next one writes everything.
#[test]
fn refused_write_is_made_up_for() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &delta(1));
    let path = directory.path().join(FILE);
    let aside = directory.path().join("aside");
    fs::rename(&path, &aside).unwrap();
    assert!(matches!(log.append([delta(2)], Vec::new), Err(ConfigLogError::Write { .. })));
    fs::rename(&aside, &path).unwrap();
    assert_eq!(state(&reopen(directory.path(), &key).0), state_after(1));
    append(&log, &delta(3));
    assert_eq!(state(&reopen(directory.path(), &key).0), state_after(3));
}

/// Secrets are not readable in the files, which only their owner can open; the key file is made once.
#[test]
fn files_are_sealed_and_private() {
    let directory = tempfile::tempdir().unwrap();
    let key = key::load(directory.path(), None).unwrap();
    assert_eq!(key::load(directory.path(), None).unwrap(), key);
    let given = Key::generate();
    assert_eq!(key::load(directory.path(), Some(&given)).unwrap(), given);
    let (log, _) = reopen(directory.path(), &key);
    for version in 1..=3 {
        let upserts = vec![instance("inst_1", version, "planted-secret"), subscription("sub_a", version)];
        let snapshot = version == 3;
        append(&log, &v1::StreamConfigResponse { upserts, snapshot, ..delta(version) });
    }
    for name in [FILE, PREVIOUS_FILE, key::FILE] {
        let path = directory.path().join(name);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let bytes = fs::read(path).unwrap();
        for planted in ["planted", "whsec_", "example.com", "sub_a"] {
            assert!(!bytes.windows(planted.len()).any(|window| window == planted.as_bytes()), "{name}");
        }
    }
    fs::write(directory.path().join(key::FILE), "planted").unwrap();
    let refused = key::load(directory.path(), None).unwrap_err();
    assert!(
        matches!(refused, ConfigLogError::BadKeyFile { .. }) && !format!("{refused:?}").contains("planted")
    );
}

/// Under another key nothing is known, and nothing is touched until there is something new to store; with the
/// right key back it is all there.
#[test]
fn another_key_harms_nothing() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &delta(1));
    let other = Key::generate();
    let (log, _) = reopen(directory.path(), &other);
    assert_eq!(state(&log), state_after(0));
    assert_eq!(state(&reopen(directory.path(), &key).0), state_after(1));
    append(&log, &delta(1));
    assert_eq!(state(&reopen(directory.path(), &other).0), state_after(1));
}

/// A file of the first format is read with all it has, and what is on disk then is sealed; cut anywhere, it gives
/// a beginning of what it had.
#[test]
fn first_format_is_converted() {
    let key = Key::generate();
    let responses: Vec<_> = (1..=3).map(delta).collect();
    let bytes = first_format::tests::written(&responses);
    for cut in [bytes.len(), bytes.len() - 1, 9, 8, 7, 3, 0] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), &bytes[..cut]).unwrap();
        let expected = if cut == bytes.len() {
            3
        } else if cut < 10 {
            0
        } else {
            2
        };
        for _ in 0..2 {
            let (log, opt_outs) = reopen(directory.path(), &key);
            assert_eq!(state(&log), state_after(expected), "{cut}");
            assert_eq!(opt_outs.len() as u64, expected);
        }
        let (log, _) = reopen(directory.path(), &key);
        append(&log, &delta(expected + 1));
        assert_eq!(state(&reopen(directory.path(), &key).0), state_after(expected + 1));
        for entry in fs::read_dir(directory.path()).unwrap() {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(5).any(|window| window == b"inst_"));
        }
    }
}

/// A file of a newer format is refused and left alone.
#[test]
fn newer_format_is_refused() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let path = directory.path().join(FILE);
    let mut newer = b"WAGWSNP3".to_vec();
    newer.extend_from_slice(&[7; 16]);
    newer.extend_from_slice(&crc32c::crc32c(&newer).to_le_bytes());
    for bytes in [newer.as_slice(), b"WAGWCFG9 and more"] {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(ConfigLog::open(directory.path(), &key), Err(ConfigLogError::Format(_))));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

/// One change among 100,000 resources writes less than 5 KB, also right after a restart, and a new base is only
/// written once the deltas outweigh it.
#[test]
fn one_change_writes_little() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &snapshot_of(100_000));
    let path = directory.path().join(FILE);
    let length = || fs::metadata(&path).unwrap().len();
    let base = length();
    assert!(base > 10_000_000, "{base}");
    let change = |version: u64| v1::StreamConfigResponse {
        upserts: vec![subscription("sub_77", version)],
        opt_outs: Vec::new(),
        ..delta(version)
    };
    append(&log, &change(2));
    let first = length() - base;
    assert!(first < 5_000, "{first}");
    drop(log);
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &change(3));
    let second = length() - base - first;
    assert!(second < 5_000, "{second}");
    assert_eq!(log.last_good(SUBSCRIPTION, "sub_77").unwrap().version, 3);
    assert!(!directory.path().join(PREVIOUS_FILE).exists());
}

/// Deltas that outweigh their base make a new base, so that the files stay within a few times what is live.
#[test]
fn many_deltas_become_a_base() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    append(&log, &delta(1));
    let large = "x".repeat(100_000);
    for version in 2..=40 {
        let upserts = vec![instance("inst_2", version, &large)];
        append(&log, &v1::StreamConfigResponse { upserts, ..delta(version) });
        let length = fs::metadata(directory.path().join(FILE)).unwrap().len();
        assert!(length < DELTA_BYTES_MIN + 400_000, "{length}");
    }
    assert!(directory.path().join(PREVIOUS_FILE).exists());
    assert_eq!(reopen(directory.path(), &key).0.last_good("instance", "inst_2").unwrap().version, 40);
}
