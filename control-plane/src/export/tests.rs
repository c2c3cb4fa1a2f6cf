use super::*;
use crate::store::{conformance::fixtures, inbound_routes, instances, webhook_subscriptions};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn data_dir(&self) -> &Path {
        self.directory.path()
    }

    fn request(&self) -> ExportRequest {
        ExportRequest {
            region: "eu".to_owned(),
            tenant_id: None,
            output: self.data_dir().join("exported"),
            key_file: self.data_dir().join("agents.key"),
            expires_in: Duration::from_secs(60),
            leave_out_damaged: false,
        }
    }

    async fn export(&self, request: &ExportRequest) -> Result<Exported, ExportError> {
        export(self.data_dir(), &RootKeys::of_data_dir(self.data_dir()), request).await
    }

    /// Names in the directory, but for those of the database.
    fn files(&self) -> Vec<String> {
        let names = fs::read_dir(self.data_dir()).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| !name.starts_with(store::FILE_NAME));
        names.sort();
        names
    }
}

/// Where no control plane has been there is no export, and nothing is made.
#[tokio::test]
async fn a_wrong_data_directory_is_refused() {
    let place = Place::new();
    let refused = place.export(&place.request()).await.unwrap_err();
    assert!(matches!(refused, ExportError::NoDatabase(_)), "{refused}");
    assert!(place.files().is_empty());
}

/// The tables of an older control plane, which may be running, are left as they are.
#[tokio::test]
async fn an_older_database_is_not_changed() {
    let place = Place::new();
    Store::open(place.data_dir()).await.unwrap().close().await;
    let path = place.data_dir().join(store::FILE_NAME);
    let older = "UPDATE meta SET number = 1 WHERE name = 'schema_version'";
    store::sqlite::testing::execute(place.data_dir(), older).await;
    let before = fs::read(&path).unwrap();
    let refused = place.export(&place.request()).await.unwrap_err();
    assert!(matches!(refused, ExportError::OlderSchema { found: 1, .. }), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// A key file of another control plane's agents, one that is damaged, a tenant that is not there, and a place that
/// cannot be written to are refused with a reason; the export that was there stays, and nothing else is left behind.
#[tokio::test]
async fn refusals_leave_the_last_export() {
    let (place, other) = (Place::new(), Place::new());
    for place in [&place, &other] {
        Store::open(place.data_dir()).await.unwrap().close().await;
        place.export(&place.request()).await.unwrap();
    }
    let good = fs::read(place.request().output).unwrap();
    let files = place.files();
    let refused = async |request: ExportRequest| {
        let refused = place.export(&request).await.unwrap_err();
        assert_eq!(fs::read(place.request().output).unwrap(), good);
        assert_eq!(place.files(), files, "{refused}");
        refused
    };
    let foreign = ExportRequest { key_file: other.request().key_file, ..place.request() };
    let foreign = refused(foreign).await;
    assert!(matches!(foreign, ExportError::OtherSigner { .. }), "{foreign}");
    let nobody = ExportRequest { tenant_id: Some("nobody".parse().unwrap()), ..place.request() };
    assert!(matches!(refused(nobody).await, ExportError::NoTenant(_)));
    let nowhere = ExportRequest { output: place.data_dir().join("no/where"), ..place.request() };
    assert!(matches!(refused(nowhere).await, ExportError::Write { .. }));
    // A directory cannot be replaced: found only when all is written.
    let taken = other.data_dir().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("x"), "").unwrap();
    assert!(matches!(
        refused(ExportRequest { output: taken, ..place.request() }).await,
        ExportError::Write { .. }
    ));
    fs::write(place.request().key_file, "wagw_snapshot_key_1.x.y").unwrap();
    let damaged = refused(place.request()).await;
    assert!(matches!(damaged, ExportError::BadKey { .. }), "{damaged}");
}

/// Half an export of a process that was killed is in nobody's way, also when the process ids are the same, as in
/// containers.
#[tokio::test]
async fn a_killed_export_is_in_nobodys_way() {
    let place = Place::new();
    Store::open(place.data_dir()).await.unwrap().close().await;
    let killed = Unfinished::create(&place.request().output).unwrap();
    place.export(&place.request()).await.unwrap();
    assert!(killed.path.exists());
}

/// An export is not written over a key, by whatever name: it could never be read, nor could those before it.
#[tokio::test]
async fn keys_are_not_written_over() {
    let place = Place::new();
    Store::open(place.data_dir()).await.unwrap().close().await;
    place.export(&place.request()).await.unwrap();
    let (key_file, signing_key) = (place.request().key_file, place.data_dir().join(SIGNING_KEY_FILE));
    let link = place.data_dir().join("link");
    fs::hard_link(&key_file, &link).unwrap();
    for output in [&key_file, &signing_key, &link] {
        let before = fs::read(output).unwrap();
        let request = ExportRequest { output: output.clone(), ..place.request() };
        let refused = place.export(&request).await.unwrap_err();
        assert!(matches!(refused, ExportError::OverKey(_)), "{refused}");
        assert_eq!(fs::read(output).unwrap(), before);
    }
}

/// What cannot be read is named, and the export that was there stays, unless it may be left out; then the summary has
/// it. What is not for the agents of the region or tenant is in nobody's way.
#[tokio::test]
async fn damaged_resources_are_not_left_out_silently() {
    let place = Place::new();
    let store = Store::open(place.data_dir()).await.unwrap();
    let mut tx = store.begin_write().await.unwrap();
    inbound_routes::put(&mut tx, &mut fixtures::route("route_1")).await.unwrap();
    inbound_routes::put(&mut tx, &mut fixtures::route_of("", "route_2")).await.unwrap();
    for (id, route, region) in [("inst_eu", "route_1", "eu"), ("inst_us", "route_2", "us")] {
        let mut instance = v1::Instance { regions: vec![region.to_owned()], ..fixtures::instance(id, route) };
        instances::put(&mut tx, &mut instance, id).await.unwrap();
    }
    for (id, instance) in [("sub_eu", "inst_eu"), ("sub_us", "inst_us")] {
        webhook_subscriptions::put(&mut tx, &mut fixtures::subscription(id, instance)).await.unwrap();
    }
    tx.commit().await.unwrap();
    store.close().await;
    place.export(&place.request()).await.unwrap();
    let good = fs::read(place.request().output).unwrap();
    let damage = "UPDATE webhook_subscriptions SET config = x'00'; UPDATE inbound_routes SET config = x'00'";
    store::sqlite::testing::execute(place.data_dir(), damage).await;
    let default = Some("default".parse().unwrap());
    let us = ExportRequest { region: "us".to_owned(), ..place.request() };
    let bound = |request: &ExportRequest| ExportRequest { tenant_id: default.clone(), ..request.clone() };
    let of_eu = "inbound route `route_1`, webhook subscription `sub_eu`";
    let cases = [
        (place.request(), of_eu),
        (bound(&place.request()), of_eu),
        (us.clone(), "inbound route `route_2`, webhook subscription `sub_us`"),
    ];
    for (request, named) in cases {
        let refused = place.export(&request).await.unwrap_err();
        assert!(refused.to_string().starts_with(&format!("read {named}: ")), "{refused}");
        assert!(refused.to_string().contains("--leave-out-damaged"), "{refused}");
        assert_eq!(fs::read(&request.output).unwrap(), good);
        let exported = place.export(&ExportRequest { leave_out_damaged: true, ..request }).await.unwrap();
        assert_eq!(Named(exported.left_out).to_string(), named);
        assert_eq!((exported.counts.instances, exported.counts.inbound_routes), (1, 0));
        fs::write(place.request().output, &good).unwrap();
    }
    let nothing = place.export(&bound(&us)).await.unwrap();
    assert_eq!((nothing.left_out, nothing.counts), (vec![], ExportCounts::default()));
}

/// A text names ten resources, and says how many more there are.
#[test]
fn many_damaged_resources_are_counted() {
    let left_out = |number| LeftOut { resource_type: "inbound_route", id: format!("route_{number}") };
    let ten = Named((0..10).map(left_out).collect()).to_string();
    assert!(ten.ends_with(", inbound route `route_9`"), "{ten}");
    assert_eq!(Named((0..12).map(left_out).collect()).to_string(), format!("{ten} and 2 more"));
}

/// What the audit log says of exports: actor, method, resource and tenant, and whether an address is named.
async fn entries(store: &Store) -> Vec<[String; 5]> {
    let filter =
        store::audit::AuditFilter { resource_type: Some("snapshot_export".to_owned()), ..Default::default() };
    let mut reader = store.reader().await.unwrap();
    let entries = store::audit::list(&mut reader, &filter, None, 9).await.unwrap();
    let shown = |(_, entry): (_, v1::AuditEntry)| {
        [entry.actor, entry.method, entry.resource_id, entry.tenant_id, entry.source_address]
    };
    entries.into_iter().map(shown).collect()
}

/// Who made an export is in the audit log, with region, tenant and expiry, also while a control plane has the database
/// open and writes: it sees the entry at once. An export that was refused leaves none.
#[tokio::test]
async fn exports_are_audited() {
    let place = Place::new();
    let running = Store::open(place.data_dir()).await.unwrap();
    let nobody = ExportRequest { tenant_id: Some("nobody".parse().unwrap()), ..place.request() };
    place.export(&nobody).await.unwrap_err();
    assert_eq!(entries(&running).await, [[""; 5]; 0]);
    place.export(&place.request()).await.unwrap();
    let writing = running.begin_write().await.unwrap();
    let tenants = ExportRequest { tenant_id: Some("default".parse().unwrap()), ..place.request() };
    let mut waiting = Box::pin(place.export(&tenants));
    // It cannot end before the other has written, whatever comes first.
    assert!(futures_util::poll!(&mut waiting).is_pending());
    writing.commit().await.unwrap();
    waiting.await.unwrap();
    let actor = format!("command_line:{}", gateway_runtime::system::user_id());
    let entry = |tenant_id: &str| [actor.as_str(), "ExportSnapshot", "eu", tenant_id, ""].map(str::to_owned);
    assert_eq!(entries(&running).await, [entry("default"), entry("")]);
    let mut reader = running.reader().await.unwrap();
    let all = store::audit::list(&mut reader, &store::audit::AuditFilter::default(), None, 1).await.unwrap();
    let changed: Vec<_> = all[0].1.changes.iter().map(|change| change.field.as_str()).collect();
    assert!(["region", "expire_time", "build"].iter().all(|field| changed.contains(field)), "{changed:?}");
}

/// There is no export without its entry: when that cannot be written the export of before stays, and nothing else.
#[tokio::test]
async fn an_export_that_cannot_be_audited_is_none() {
    let place = Place::new();
    Store::open(place.data_dir()).await.unwrap().close().await;
    place.export(&place.request()).await.unwrap();
    let (good, files) = (fs::read(place.request().output).unwrap(), place.files());
    let refuse =
        "CREATE TRIGGER planted BEFORE INSERT ON audit_entries BEGIN SELECT RAISE(ABORT, 'planted'); END";
    store::sqlite::testing::execute(place.data_dir(), refuse).await;
    let refused = place.export(&place.request()).await.unwrap_err();
    assert!(matches!(refused, ExportError::Audit(_)), "{refused}");
    assert_eq!(fs::read(place.request().output).unwrap(), good);
    assert_eq!(place.files(), files);
}
