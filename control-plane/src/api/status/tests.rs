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
        ("quota_exceeded", quota_exceeded("TOO_MANY_KEYS", "tenant:acme", "there are enough".to_owned())),
        ("deadline_exceeded", deadline_exceeded()),
        ("unauthenticated", unauthenticated("send a key")),
        ("agent_revoked", agent_revoked()),
        ("permission_denied", permission_denied("not with this key")),
        ("unavailable", unavailable("SHUTTING_DOWN", "it is shutting down")),
        ("unavailable_until", unavailable_until("BUSY", "too many", Duration::from_secs(2))),
        ("certificate_needed", certificate_needed("NO_CERTIFICATE", "show one")),
        ("internal", internal(&std::fmt::Error)),
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
    let bug = Status::from(StoreError::Database { trouble: Trouble::Other, source: "planted".into() });
    assert_eq!(bug.code(), Code::Internal);
    assert!(!bug.message().contains("planted"));
    assert_explained("a bug", &bug);
    assert_explained("closed logs", &Status::from(LogStoreError::Closed));
    assert_explained("another log's cursor", &Status::from(LogStoreError::UnknownCursor));
}

/// A database that is locked, read-only or full is told apart, and says when to come back; a rule of the tables that
/// the program should have looked at before is a bug.
#[test]
fn troubles_of_the_database_are_told_apart() {
    for (trouble, reason) in [
        (Trouble::Busy, "STORE_BUSY"),
        (Trouble::NotWritable, "STORE_NOT_WRITABLE"),
        (Trouble::Full, "STORE_FULL"),
    ] {
        let status = Status::from(StoreError::Database { trouble, source: "planted".into() });
        assert_explained(reason, &status);
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(status.get_details_error_info().unwrap().reason, reason);
    }
    let conflict =
        Status::from(StoreError::Database { trouble: Trouble::Conflict, source: "planted".into() });
    assert_eq!(conflict.code(), Code::Internal);
}

/// A refusal fits the headers that clients take, whatever it tells back: long ids are cut, and of very many bad fields
/// the first are named. What is short stays whole.
#[test]
fn refusals_are_short() {
    let long = "ä".repeat(20_000);
    let violations = || FieldViolations((0..500).map(|_| FieldViolation::new(&*long, &*long)).collect());
    for status in [
        not_found("instance", &long),
        damaged("instance", &long, "DeleteInstance"),
        already_exists("instance", &long),
        stale_etag("instance", &long),
        conflict("NUMBER_TAKEN", &*long),
        invalid(violations()),
        invalid_field("id", &*long),
        quota_exceeded("TOO_MANY_KEYS", "tenant:acme", long.clone()),
        crate::api::unexplained::with_reason(&Status::unimplemented(&*long)),
    ] {
        let headers = status.clone().into_http::<()>().into_parts().0.headers;
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 12_000, "{bytes} of {:?}", status.get_details_error_info());
    }
    let told = not_found("instance", &long);
    assert!(told.message().ends_with("…` does not exist"), "{}", told.message());
    assert!(!invalid(violations()).get_details_bad_request().unwrap().field_violations.is_empty());
    let id = "a".repeat(63);
    assert_eq!(not_found("instance", &id).get_details_error_info().unwrap().metadata["id"], id);
}
