use std::collections::BTreeSet;

use super::*;

/// One refusal of each function that makes one, by the function's name.
fn refusals() -> Vec<(&'static str, Status)> {
    let violations = || FieldViolations(vec![FieldViolation::new("id", "must be set")]);
    let names = || ["inst_1".to_owned()].into_iter();
    vec![
        ("invalid", invalid(violations())),
        ("invalid_field", invalid_field("id", "must be set")),
        ("missing_field", missing_field("id")),
        ("not_found", not_found("instance", "inst_1")),
        ("damaged", damaged("instance", "inst_1", "DeleteInstance")),
        ("already_exists", already_exists("instance", "inst_1")),
        ("conflict", conflict("NUMBER_TAKEN", "somebody has it")),
        ("failed_precondition", failed_precondition("LAST_SECRET", "it is the last one")),
        ("stale_etag", stale_etag("instance", "inst_1")),
        ("in_use", in_use("inbound route", "route_1", "instances", names())),
        ("check_etag", check_etag("instance", "inst_1", "1-a", "2-a").unwrap_err()),
        ("exhausted", exhausted("TOO_MANY_KEYS", "there are enough")),
        ("exhausted_until", exhausted_until("TOO_MANY_STREAMS", "there are enough", Duration::from_secs(2))),
        ("deadline_exceeded", deadline_exceeded()),
        ("unauthenticated", unauthenticated("send a key")),
        ("agent_revoked", agent_revoked()),
        ("permission_denied", permission_denied("not with this key")),
        ("unavailable", unavailable("SHUTTING_DOWN", "it is shutting down")),
        ("unavailable_until", unavailable_until("BUSY", "too many", Duration::from_secs(2))),
        ("certificate_needed", certificate_needed("NO_CERTIFICATE", "show one")),
        ("internal", internal(&sqlx::Error::WorkerCrashed)),
    ]
}

/// Public functions of the module that give a status.
fn constructors() -> BTreeSet<&'static str> {
    let source = include_str!("../status.rs");
    let declarations = source.split("\npub fn ").skip(1);
    let gives_status = |declaration: &&str| {
        let signature = declaration.split(" {\n").next().unwrap_or_default();
        signature.rsplit("->").next().is_some_and(|given| given.contains("Status"))
    };
    let name = |declaration: &'static str| declaration.split(['(', '<']).next().unwrap_or_default();
    declarations.filter(gives_status).map(name).collect()
}

#[track_caller]
fn assert_explained(name: &str, status: &Status) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{name} has no ErrorInfo"));
    let is_stable =
        |character: char| character.is_ascii_uppercase() || character.is_ascii_digit() || character == '_';
    assert!(!info.reason.is_empty() && info.reason.chars().all(is_stable), "{name}: {}", info.reason);
    assert_eq!(info.domain, DOMAIN, "{name}");
    assert!(!status.message().is_empty(), "{name}");
    let has_fields = status.get_details_bad_request().is_some_and(|bad| !bad.field_violations.is_empty());
    assert_eq!(has_fields, status.code() == Code::InvalidArgument, "{name}");
    let delay = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
    let can_come_back = status.code() == Code::Unavailable || name == "exhausted_until";
    assert_eq!(delay.is_some_and(|delay| !delay.is_zero()), can_come_back, "{name}");
}

/// Every refusal has a stable reason; bad input names its fields, and what is away says when to come back. A
/// new function of the module fails this until it is in the list.
#[test]
fn every_refusal_is_explained() {
    let refusals = refusals();
    let listed: BTreeSet<_> = refusals.iter().map(|(name, _)| *name).collect();
    assert_eq!(listed, constructors());
    for (name, status) in &refusals {
        assert_explained(name, status);
    }
}

/// The caller learns nothing of a cause inside; a store that shuts down, or is busy, is not a bug.
#[test]
fn causes_stay_inside() {
    let bug = Status::from(StoreError::Database(sqlx::Error::ColumnNotFound("planted".into())));
    assert_eq!(bug.code(), Code::Internal);
    assert!(!bug.message().contains("planted"));
    assert_explained("a bug", &bug);
    let busy = Status::from(StoreError::Database(sqlx::Error::PoolTimedOut));
    assert_eq!(busy.get_details_error_info().unwrap().reason, "STORE_BUSY");
    assert_explained("no connection", &busy);
    assert_explained("closed logs", &Status::from(LogStoreError::Closed));
    assert_explained("another log's cursor", &Status::from(LogStoreError::UnknownCursor));
}

/// A database that is locked, read-only or full is told apart, and says when to come back.
#[tokio::test]
async fn troubles_of_the_database_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(directory.path().join("test.db"))
        .create_if_missing(true)
        .busy_timeout(Duration::ZERO);
    let pool = sqlx::SqlitePool::connect_with(options.clone()).await.unwrap();
    sqlx::raw_sql("CREATE TABLE t (body BLOB)").execute(&pool).await.unwrap();
    let reason = |error: sqlx::Error| {
        let status = Status::from(StoreError::Database(error));
        assert_explained("a trouble", &status);
        (status.code(), status.get_details_error_info().unwrap().reason)
    };
    let holder = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let locked = pool.begin_with("BEGIN IMMEDIATE").await.map(|_| ()).unwrap_err();
    assert_eq!(reason(locked), (Code::Unavailable, "STORE_BUSY".to_owned()));
    drop(holder);
    let reading = sqlx::SqlitePool::connect_with(options.read_only(true)).await.unwrap();
    let read_only = sqlx::raw_sql("INSERT INTO t VALUES (1)").execute(&reading).await.unwrap_err();
    assert_eq!(reason(read_only), (Code::Unavailable, "STORE_NOT_WRITABLE".to_owned()));
    let mut connection = pool.acquire().await.unwrap();
    sqlx::raw_sql("PRAGMA max_page_count = 3").execute(&mut *connection).await.unwrap();
    let full =
        sqlx::raw_sql("INSERT INTO t VALUES (zeroblob(100000))").execute(&mut *connection).await.unwrap_err();
    assert_eq!(reason(full), (Code::Unavailable, "STORE_FULL".to_owned()));
}
