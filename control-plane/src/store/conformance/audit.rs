//! The audit log: with its change or not at all, and never changed.

use gateway_proto::v1;
use jiff::Timestamp;

use super::{Factory, fixtures::*};
use crate::{
    audit::Audited,
    store::{
        Store,
        audit::{self, AuditFilter, AuditPlace},
        inbound_routes,
    },
};

fn audited(tenant_id: &str, resource_type: &'static str, resource_id: &str) -> Audited {
    Audited {
        tenant_id: tenant_id.into(),
        method: "InstanceService/UpdateInstance",
        resource_type,
        resource_id: resource_id.into(),
        changes: Vec::new(),
    }
}

async fn add(store: &Store, time: Timestamp, actor: &str, audited: Audited) {
    let mut transaction = store.begin_write().await.unwrap();
    audit::insert(&mut transaction, time, actor, None, audited).await.unwrap();
    transaction.commit().await.unwrap();
}

async fn list(
    store: &Store,
    filter: &AuditFilter,
    before: Option<AuditPlace>,
    limit: i64,
) -> Vec<(AuditPlace, v1::AuditEntry)> {
    audit::list(&mut store.reader().await.unwrap(), filter, before, limit).await.unwrap()
}

async fn times(store: &Store, filter: &AuditFilter) -> Vec<i64> {
    let found = list(store, filter, None, 100).await;
    found.iter().map(|(place, _)| place.time / 1_000_000).collect()
}

/// An entry comes back whole, and only if the change that it tells was committed. Earlier ones stay as they are, also
/// after a restart.
pub(super) async fn entries_come_with_their_change(factory: &impl Factory) {
    let change =
        v1::AuditChange { field: "display_name".into(), before: "\"A\"".into(), after: "\"B\"".into() };
    let entry = Audited { changes: vec![change.clone()], ..audited("acme", "instance", "inst_1") };
    let address = "192.0.2.1:4711".parse().ok();
    let mut known = Vec::new();
    for round in 0..3 {
        let store = factory.open().await;
        let mut dropped = store.begin_write().await.unwrap();
        inbound_routes::put(&mut dropped, &mut route("route_1")).await.unwrap();
        audit::insert(&mut dropped, at(6), "gateway", None, entry.clone()).await.unwrap();
        drop(dropped);
        let mut transaction = store.begin_write().await.unwrap();
        audit::insert(&mut transaction, at(7 + round), "api_key:key_1", address, entry.clone())
            .await
            .unwrap();
        transaction.commit().await.unwrap();
        let found = list(&store, &AuditFilter::default(), None, 10).await;
        let expected = v1::AuditEntry {
            id: found[0].1.id.clone(),
            time: Some(prost_types::Timestamp { seconds: 7 + round, nanos: 0 }),
            tenant_id: "acme".into(),
            actor: "api_key:key_1".into(),
            source_address: "192.0.2.1:4711".into(),
            method: "InstanceService/UpdateInstance".into(),
            resource_type: "instance".into(),
            resource_id: "inst_1".into(),
            changes: vec![change.clone()],
            is_damaged: false,
        };
        assert_eq!(found[0].1, expected);
        assert_eq!(found[1..], known);
        known = found;
        store.close().await;
    }
    let ids: Vec<_> = known.iter().map(|(_, entry)| &entry.id).collect();
    assert!(ids.is_sorted_by(|one, next| one > next), "{ids:?}");
}

/// Filters hold together; the start of a time range is in it, its end is not.
pub(super) async fn audit_filters_narrow_the_list(factory: &impl Factory) {
    let store = &factory.open().await;
    add(store, at(1), "admin_key", audited("acme", "instance", "inst_1")).await;
    add(store, at(2), "api_key:key_1", audited("acme", "webhook_subscription", "sub_1")).await;
    add(store, at(3), "api_key:key_1", audited("acme", "instance", "inst_1")).await;
    add(store, at(4), "admin_key", audited("other", "instance", "inst_2")).await;
    add(store, at(5), "gateway", audited("", "agent", "agt_1")).await;
    let all = AuditFilter::default();
    let text = |value: &str| Some(value.to_owned());
    assert_eq!(times(store, &all).await, [5, 4, 3, 2, 1]);
    let acme = AuditFilter { tenant_id: text("acme"), ..all.clone() };
    assert_eq!(times(store, &acme).await, [3, 2, 1]);
    let of = |resource_type| AuditFilter { resource_type: text(resource_type), ..AuditFilter::default() };
    assert_eq!(times(store, &of("instance")).await, [4, 3, 1]);
    let instances = AuditFilter { resource_type: text("instance"), ..acme.clone() };
    assert_eq!(times(store, &instances).await, [3, 1]);
    let by_key = AuditFilter { actor: text("api_key:key_1"), ..instances };
    assert_eq!(times(store, &by_key).await, [3]);
    let by_admin = AuditFilter { actor: text("admin_key"), ..all.clone() };
    assert_eq!(times(store, &by_admin).await, [4, 1]);
    let one = AuditFilter { resource_id: text("inst_1"), end_time: Some(at(3)), ..acme };
    assert_eq!(times(store, &one).await, [1]);
    let between = AuditFilter { start_time: Some(at(2)), end_time: Some(at(4)), ..all };
    assert_eq!(times(store, &between).await, [3, 2]);
}

/// Pages join without gap or repeat while entries are added, also where several share one time.
pub(super) async fn audit_pages_under_writes(factory: &impl Factory) {
    let store = factory.open().await;
    for number in 0..10 {
        add(&store, at(number / 4), "admin_key", audited("acme", "instance", &number.to_string())).await;
    }
    for filter in
        [AuditFilter { tenant_id: Some("acme".into()), ..AuditFilter::default() }, AuditFilter::default()]
    {
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = list(&store, &filter, before, 3).await;
            let Some((last, _)) = page.last() else { break };
            before = Some(*last);
            seen.extend(page.into_iter().map(|(_, entry)| entry.resource_id.parse::<i64>().unwrap()));
            add(&store, at(100), "admin_key", audited("acme", "instance", "99")).await;
        }
        seen.retain(|number| *number != 99);
        assert_eq!(seen, (0..10).rev().collect::<Vec<_>>());
    }
}
