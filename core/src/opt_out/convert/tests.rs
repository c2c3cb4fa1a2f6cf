use super::{
    super::record::{
        merge, merge_record,
        tests::{at, decision, phone_contact},
    },
    *,
};

const NOW: i64 = 1_000;

fn record() -> OptOutRecord {
    let contact = ContactRef { user_id: Some("SA.1".into()), ..phone_contact("+966500000001") };
    merge(None, &Decision { contact, note: Some("by mail".into()), ..decision(1) }, at(NOW)).record
}

fn fields(violations: &FieldViolations) -> Vec<&str> {
    violations.0.iter().map(|violation| &*violation.field).collect()
}

/// A record survives the wire: everything it shows, and how it merges.
#[test]
fn records_round_trip() {
    let stop = record();
    let start = merge(
        Some(&stop),
        &Decision {
            direction: OptOutDirection::OptIn,
            reason: OptOutReason::RecipientRequestedStart,
            ..decision(1)
        },
        at(NOW),
    )
    .record;
    let marketing = merge(None, &Decision { scope: OptOutScope::Marketing, ..decision(1) }, at(NOW)).record;
    for record in [stop, start, marketing] {
        let message = v1::OptOut::from(&record);
        let read = OptOutRecord::try_from(&message).unwrap();
        assert_eq!(v1::OptOut::from(&read), message);
        assert_eq!((read.state(), read.scope(), read.id), (record.state(), record.scope(), record.id));
        let echoed = merge_record(Some(&record), &read, at(NOW));
        assert!(!echoed.is_news && echoed.record.change_number == record.change_number);
        assert!(!merge_record(Some(&echoed.record), &read, at(NOW)).changed, "an echo is taken once at most");
    }
}

/// The wire shows the words of the contract.
#[test]
fn messages_show_the_decision() {
    let message = v1::OptOut::from(&record());
    assert!(message.id.starts_with("opt_") && message.id.len() == 30);
    assert_eq!(message.phone, "+966500000001");
    assert_eq!(message.user_id, "SA.1");
    assert_eq!(message.state(), v1::OptOutState::OptedOut);
    assert_eq!(message.scope(), v1::OptOutScope::NonEssential);
    assert_eq!(message.reason(), v1::OptOutReason::RecipientRequestedStop);
    assert_eq!((&*message.keyword, &*message.external_message_id), ("stop", "wamid.1"));
    assert_eq!((message.change_number, &*message.note), (1, "by mail"));
    assert_eq!(message.event_time, Some(to_proto(at(1))));
    assert_eq!(
        (message.create_time, message.update_time),
        (Some(to_proto(at(NOW))), Some(to_proto(at(NOW))))
    );
}

/// Over the wire two opt-outs of different scope become one of the wider scope and the later time, so
/// that an opt-in between them ends neither.
#[test]
fn nothing_is_lost_where_the_wire_has_one_decision() {
    let later_marketing = Decision { scope: OptOutScope::Marketing, ..decision(5) };
    let both = merge(Some(&record()), &later_marketing, at(NOW)).record;
    let read = OptOutRecord::try_from(&v1::OptOut::from(&both)).unwrap();
    assert_eq!((read.state(), read.scope()), (OptOutState::OptedOut, OptOutScope::NonEssential));
    assert_eq!(read.newest_time(), Some(at(5)));
    let between = Decision { direction: OptOutDirection::OptIn, ..decision(3) };
    assert_eq!(merge(Some(&read), &between, at(NOW)).record.state(), OptOutState::OptedOut);
}

/// What decides is required, each fault is named; anything else may be missing or of a later version.
#[test]
fn records_need_what_decides() {
    let violations = OptOutRecord::try_from(&v1::OptOut::default()).unwrap_err();
    assert_eq!(fields(&violations), ["tenant_id", "instance_id", "phone", "state", "event_time"]);
    let message = v1::OptOut::from(&record());
    let odd =
        v1::OptOut { id: "?".into(), reason: 99, scope: 99, create_time: None, update_time: None, ..message };
    let read = OptOutRecord::try_from(&odd).unwrap();
    assert_eq!(
        (read.scope(), read.reason(), read.id),
        (OptOutScope::NonEssential, OptOutReason::Other(99), record().id)
    );
    assert_eq!(v1::OptOut::from(&read).reason, 99);
    let opt_in = v1::OptOut { state: v1::OptOutState::OptedIn.into(), ..odd };
    assert_eq!(fields(&OptOutRecord::try_from(&opt_in).unwrap_err()), ["scope"]);
    let bad_phone = v1::OptOut { phone: "US.1".into(), ..v1::OptOut::from(&record()) };
    assert_eq!(fields(&OptOutRecord::try_from(&bad_phone).unwrap_err()), ["phone"]);
}

fn request() -> v1::OptOut {
    v1::OptOut {
        instance_id: "demo-support-line".into(),
        phone: "+966 50 000 0001".into(),
        ..v1::OptOut::default()
    }
}

fn operator_opt_out(
    request: &v1::OptOut,
    existing: Option<&OptOutRecord>,
) -> Result<Decision, FieldViolations> {
    Decision::operator_opt_out(request, TenantId::default_tenant(), existing, at(NOW))
}

/// A request with the least fields is a full opt-out made now.
#[test]
fn operator_opts_out() {
    let decision = operator_opt_out(&request(), None).unwrap();
    let record = merge(None, &decision, at(NOW)).record;
    assert_eq!((record.state(), record.scope()), (OptOutState::OptedOut, OptOutScope::NonEssential));
    assert_eq!((record.reason(), record.newest_time()), (OptOutReason::Operator, Some(at(NOW))));
    assert_eq!(record.contact, phone_contact("+966500000001"));
}

/// Bad fields of a request are named with their path, all at once.
#[test]
fn bad_requests_are_refused() {
    let bad = v1::OptOut {
        instance_id: "X".into(),
        phone: "12".into(),
        user_id: "u".repeat(257),
        scope: 7,
        note: "é".repeat(501),
        event_time: Some(to_proto(at(NOW + 61))),
        ..v1::OptOut::default()
    };
    let violations = operator_opt_out(&bad, None).unwrap_err();
    assert_eq!(
        fields(&violations),
        [
            "opt_out.instance_id",
            "opt_out.phone",
            "opt_out.user_id",
            "opt_out.scope",
            "opt_out.note",
            "opt_out.event_time"
        ]
    );
    let nobody = v1::OptOut { phone: String::new(), ..request() };
    assert_eq!(fields(&operator_opt_out(&nobody, None).unwrap_err()), ["opt_out.phone"]);
    let at_the_limit = v1::OptOut { user_id: "u".repeat(256), note: "é".repeat(500), ..request() };
    assert!(operator_opt_out(&at_the_limit, None).is_ok());
}

/// An operator's word comes after what is known, also where a provider's clock is ahead of ours; and a
/// STOP of the same second, which came after it, still counts.
#[test]
fn operators_come_last() {
    for second in [1, NOW, NOW + 30] {
        let known = merge(None, &decision(second), at(NOW)).record;
        let ended = merge(Some(&known), &Decision::operator_opt_in(&known, at(NOW)), at(NOW));
        assert!(ended.is_news && ended.record.state() == OptOutState::OptedIn, "{second}");
        let again = merge(Some(&ended.record), &decision(second.max(NOW)), at(NOW)).record;
        assert_eq!(again.state(), OptOutState::OptedOut, "{second}");
        let renewed = operator_opt_out(&request(), Some(&ended.record)).unwrap();
        assert_eq!(
            merge(Some(&ended.record), &renewed, at(NOW)).record.state(),
            OptOutState::OptedOut,
            "{second}"
        );
    }
}

/// Ids convert both ways; anything else is refused.
#[test]
fn ids_round_trip() {
    let id = record().id;
    assert_eq!(id.to_string().parse(), Ok(id));
    for bad in ["", "opt_", "evt_aaaaaaaaaaaaaaaaaaaaaaaaaa", "opt_AAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        assert_eq!(bad.parse::<OptOutId>(), Err(InvalidOptOutId), "{bad}");
    }
}
