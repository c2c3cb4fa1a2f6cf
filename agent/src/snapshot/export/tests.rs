use std::fs;

use gateway_core::time::to_proto;
use gateway_runtime::{
    sealing::Key,
    signed_file::{Writer, WriterKey},
};
use jiff::SignedDuration;
use v1::config_resource::Resource;

use super::*;

const NOW: &str = "2026-11-23T12:00:00Z";
const PHONE: &str = "+966500000001";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// A directory with an export and its key file, and an agent's data directory.
struct Place {
    directory: tempfile::TempDir,
    writer: WriterKey,
    reader: ReaderKey,
}

impl Place {
    fn new() -> Self {
        let writer = WriterKey::generate();
        let reader = ReaderKey::generate(&writer);
        let place = Self { directory: tempfile::tempdir().unwrap(), writer, reader };
        fs::write(place.files().key, &*place.reader.to_text(&KIND)).unwrap();
        place
    }

    fn files(&self) -> ExportFiles {
        let path = self.directory.path();
        ExportFiles { snapshot: path.join("exported"), key: path.join("key") }
    }

    /// Writes an export, as the control plane does.
    fn write(&self, header: &ExportHeader, records: &[v1::StreamConfigResponse]) {
        let file = File::create(self.files().snapshot).unwrap();
        let header = v1::SnapshotExportHeader::from(header).encode_to_vec();
        let mut writer = Writer::begin(&KIND, file, &self.reader, &header).unwrap();
        for record in records {
            writer.add(&record.encode_to_vec()).unwrap();
        }
        writer.finish(&self.writer).unwrap();
    }

    fn open(&self) -> Result<Export, ExportError> {
        Export::open(&self.files(), Scope { region: Some("eu"), tenant_id: Some("") }, now())
    }

    fn refusal(&self) -> String {
        format!("{:#}", anyhow::Error::from(self.open().err().expect("it must be refused")))
    }

    fn log(&self, key: &Key) -> (ConfigLog, OptOuts) {
        let (log, stored) = ConfigLog::open(self.directory.path(), key).unwrap();
        let opt_outs = OptOuts::new();
        opt_outs.merge_from_stream(stored);
        (log, opt_outs)
    }
}

fn header() -> ExportHeader {
    ExportHeader {
        region: "eu".to_owned(),
        tenant_id: None,
        version: 7,
        store_epoch: "epoch".to_owned(),
        opt_out_cursor: 3,
        create_time: now() - SignedDuration::from_hours(1),
        expire_time: now() + SignedDuration::from_hours(1),
        build: "1.0.0".to_owned(),
    }
}

fn instance(id: &str, tenant_id: &str) -> v1::ConfigResource {
    let instance = v1::Instance {
        id: id.to_owned(),
        tenant_id: tenant_id.to_owned(),
        display_name: "planted secret".to_owned(),
        inbound_route_id: "route_1".to_owned(),
        provider_number_id: id.to_owned(),
        ..v1::Instance::default()
    };
    v1::ConfigResource { version: 5, resource: Some(Resource::Instance(instance)) }
}

fn records() -> Vec<v1::StreamConfigResponse> {
    let opt_out = v1::OptOut {
        tenant_id: "default".to_owned(),
        instance_id: "inst_1".to_owned(),
        phone: PHONE.to_owned(),
        state: v1::OptOutState::OptedOut.into(),
        scope: v1::OptOutScope::NonEssential.into(),
        reason: v1::OptOutReason::RecipientRequestedStop.into(),
        event_time: Some(to_proto(now())),
        ..v1::OptOut::default()
    };
    let upserts = |id: &str| v1::StreamConfigResponse {
        upserts: vec![instance(id, "default")],
        ..v1::StreamConfigResponse::default()
    };
    let opt_outs = v1::StreamConfigResponse { opt_outs: vec![opt_out], ..Default::default() };
    vec![upserts("inst_1"), upserts("inst_2"), opt_outs]
}

fn instances(log: &ConfigLog) -> Vec<bool> {
    let snapshot = log.snapshot().unwrap();
    ["inst_1", "inst_2", "inst_bad"].map(|id| snapshot.instance(id).is_some()).to_vec()
}

/// What an export holds, of several records, is the agent's configuration on disk afterwards, sealed, with its opt-outs,
/// and the stream goes on from its version and cursor; the files are not needed any more.
#[test]
fn exports_become_the_configuration_on_disk() {
    let (place, key) = (Place::new(), Key::generate());
    place.write(&header(), &records());
    let (log, opt_outs) = place.log(&key);
    assert!(log.is_empty());
    place.open().unwrap().install(&log, &opt_outs, true).unwrap();
    assert_eq!(opt_outs.all().len(), 1);
    fs::remove_file(place.files().snapshot).unwrap();
    fs::remove_file(place.files().key).unwrap();
    let (log, opt_outs) = place.log(&key);
    assert_eq!((opt_outs.all().len(), opt_outs.all()[0].phone.as_str()), (1, PHONE));
    assert_eq!(instances(&log), [true, true, false]);
    let snapshot = log.snapshot().unwrap();
    assert_eq!((snapshot.version, &*snapshot.store_epoch, log.opt_out_cursor()), (7, "epoch", 3));
    for entry in fs::read_dir(place.directory.path()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(14).any(|window| window == b"planted secret"));
    }
}

/// Where it is not sure that the export holds everything that is the agent's, or the agent cannot use something of it,
/// the agent asks for everything: it says that it has version 0. What it can use it uses meanwhile.
#[test]
fn unsure_exports_are_not_continued() {
    let bad =
        v1::StreamConfigResponse { upserts: vec![instance("inst_bad", "No Tenant!")], ..Default::default() };
    let with_bad = [records(), vec![bad]].concat();
    for (records, is_scope_sure) in [(records(), false), (with_bad, true)] {
        let (place, key) = (Place::new(), Key::generate());
        place.write(&header(), &records);
        let (log, opt_outs) = place.log(&key);
        place.open().unwrap().install(&log, &opt_outs, is_scope_sure).unwrap();
        let (log, opt_outs) = place.log(&key);
        let snapshot = log.snapshot().unwrap();
        assert_eq!((snapshot.version, &*snapshot.store_epoch, log.opt_out_cursor()), (0, "epoch", 0));
        assert_eq!(instances(&log), [true, true, false]);
        assert_eq!(opt_outs.all().len(), 1);
    }
}

/// Cut at any byte or with any byte changed, an export is refused before anything of it is used.
#[test]
fn damaged_exports_are_refused() {
    let place = Place::new();
    place.write(&header(), &records());
    let good = fs::read(place.files().snapshot).unwrap();
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 0x10;
        for bad in [&good[..at], &changed[..]] {
            fs::write(place.files().snapshot, bad).unwrap();
            assert!(place.open().is_err(), "{at}");
        }
    }
    fs::write(place.files().snapshot, &good).unwrap();
    place.open().unwrap();
}

/// Each refusal says what is wrong and, where it can, what to do.
#[test]
fn refusals_are_clear() {
    let (place, other) = (Place::new(), Place::new());
    place.write(&header(), &records());
    let good = fs::read(place.files().snapshot).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(place.files().snapshot, bytes).unwrap();
        place.refusal()
    };
    assert!(refused(&good[..good.len() - 70]).contains("cut short"));
    let mut changed = good.clone();
    changed[good.len() / 2] ^= 1;
    assert!(refused(&changed).contains("damaged or changed"));
    changed = good.clone();
    changed[FILE_NAME.len()] = b'2';
    assert!(refused(&changed).contains("newer program"));
    assert!(
        refused(b"-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUX\n-----END").contains("not of this kind")
    );

    place.write(&ExportHeader { region: "us".to_owned(), ..header() }, &records());
    assert!(place.refusal().contains("it is for region `us`, and this agent runs in `eu`"));
    let tenant_id = Some("acme".parse().unwrap());
    place.write(&ExportHeader { tenant_id, ..header() }, &records());
    assert!(place.refusal().contains("it is for tenant `acme`, and this agent works for the platform"));
    place.write(&ExportHeader { expire_time: now(), ..header() }, &records());
    let expired = place.refusal();
    assert!(
        expired.contains("it expired at 2026-11-23T12:00:00Z") && expired.contains("export-snapshot"),
        "{expired}"
    );

    place.write(&header(), &records());
    let foreign = other.reader.to_text(&KIND);
    for (key, says) in [
        (foreign.as_str(), "the key file trusts"),
        (&*ReaderKey::generate(&place.writer).to_text(&KIND), "made for another key file"),
        (&*place.writer.to_text(&KIND), "must begin with `wagw_snapshot_key_`"),
        (&place.reader.to_text(&KIND)[..60], "copy the whole line"),
        ("wagw_snapshot_key_2.x.y", "newer program"),
    ] {
        fs::write(place.files().key, key).unwrap();
        let refusal = place.refusal();
        assert!(refusal.contains(says), "{refusal}");
    }
    fs::remove_file(place.files().key).unwrap();
    assert!(place.refusal().contains("open `"));
}

/// Whoever swaps the export and its key file is told so, also when the export is large.
#[test]
fn a_swapped_export_is_no_key_file() {
    let place = Place::new();
    for copies in [1, 1_000] {
        place.write(&header(), &vec![records(); copies].concat());
        let ExportFiles { snapshot, key } = place.files();
        let swapped = ExportFiles { snapshot: key, key: snapshot.clone() };
        let scope = Scope { region: Some("eu"), tenant_id: Some("") };
        let refusal = Export::open(&swapped, scope, now()).err().expect("it must be refused").to_string();
        let says = format!("use key file `{}`: it is not a key file", snapshot.display());
        assert!(refusal.starts_with(&says), "{refusal}");
    }
}
