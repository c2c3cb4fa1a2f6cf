//! Rows whose bytes are not what was stored.

use gateway_core::{opt_out::ContactRef, phone::normalize_phone, tenant::TenantScope};
use gateway_proto::v1;

use super::{Factory, fixtures::*};
use crate::store::{
    Connection as _, Store, agents, api_keys,
    audit::{self, AuditFilter, AuditRow},
    check::Check,
    damaged::{Found, Head, LeftOut, PlainRow},
    instances::{self, InstanceRow},
    opt_out_policies,
    opt_outs::{self, OptOutFilter, OptOutRow},
    tenants, webhook_subscriptions,
};

/// No message.
const GARBAGE: &[u8] = &[0xff; 40];

fn head(store: &Store, id: &str, tenant_id: &str, version: u64) -> Head {
    Head { id: id.into(), tenant_id: tenant_id.into(), etag: store.etag(version) }
}

fn damaged<T>(found: Option<Found<T>>) -> Head {
    let Some(Found::Damaged(head)) = found else { panic!("it is whole or not there") };
    head
}

fn left_out(resource_type: &'static str, id: &str) -> LeftOut {
    LeftOut { resource_type, id: id.into() }
}

/// Writes bytes in the place of an instance.
async fn damage_instance(store: &Store, id: &str, body: &[u8]) {
    let mut transaction = store.begin_write().await.unwrap();
    let found = transaction.rows().instance(id).await.unwrap().unwrap();
    let row = InstanceRow {
        id,
        tenant_id: &found.tenant_id,
        version: found.version,
        inbound_route_id: &found.parent_id,
        number_key: id,
        body,
    };
    transaction.writes().put_instance(row).await.unwrap();
    transaction.commit().await.unwrap();
}

/// A damaged instance is listed with what its columns know, beside the others, for its tenant; who asks for it learns
/// that it is damaged and which one it is, and another tenant that there is none; it is no part of the changes, which
/// say so; written anew or removed, it is no damage any more. An exchanged row is damage, too.
pub(super) async fn instances_are_listed_around_damage(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    put_instance(&store, instance("inst_2", "route_1")).await.unwrap();
    let whole = store.instance("inst_2").await.unwrap().unwrap();
    let mut reader = store.reader().await.unwrap();
    let of_another = reader.rows().instance("inst_2").await.unwrap().unwrap().body;
    let cut = of_another[..of_another.len() - 20].to_vec();
    for body in [GARBAGE, &of_another, &cut, &[]] {
        damage_instance(&store, "inst_1", body).await;
        let found = instances::list(&mut reader, &one("default"), None, None, 10).await.unwrap();
        let shown = v1::Instance {
            id: "inst_1".into(),
            tenant_id: "default".into(),
            inbound_route_id: "route_1".into(),
            etag: store.etag(2),
            is_damaged: true,
            ..Default::default()
        };
        assert_eq!(found, [shown, whole.clone()]);
        let failure = instances::find(&mut reader, &one("default"), "inst_1").await.unwrap_err();
        assert!(failure.is_damage() && failure.to_string().contains("instance `inst_1`"), "{failure}");
        let found = instances::find_even_damaged(&mut reader, &TenantScope::All, "inst_1").await.unwrap();
        assert_eq!(damaged(found), head(&store, "inst_1", "default", 2));
        assert_eq!(instances::find(&mut reader, &one("other"), "inst_1").await.unwrap(), None);
        let changes = store.changes_since(0).await.unwrap();
        assert_eq!(changed(&changes), ["route_1", "inst_2", "sub_1"]);
        assert_eq!(changes.left_out.len(), 1);
        let left = &changes.left_out[0];
        assert_eq!((&left.what, left.version), (&left_out("instance", "inst_1"), 2));
        assert_eq!((left.instance_id.as_str(), left.inbound_route_id.as_str()), ("inst_1", "route_1"));
        assert_eq!(store.damages().all(), [left_out("instance", "inst_1")]);
    }
    put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    assert_eq!(store.damages().all(), []);
    damage_instance(&store, "inst_1", GARBAGE).await;
    let mut transaction = store.begin_write().await.unwrap();
    webhook_subscriptions::delete(&mut transaction, "sub_1").await.unwrap();
    instances::delete(&mut transaction, "inst_1").await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(changed(&store.changes_since(0).await.unwrap()), ["route_1", "inst_2"]);
}

/// A damaged tenant is listed beside the others, and is not there for whoever needs one that can be read; a damaged
/// opt-out policy is not taken for the default one. Both can be written anew.
pub(super) async fn tenants_and_policies_are_listed_around_damage(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    put_policy(&store, "inst_1").await;
    put_tenant(&store, "acme").await;
    let mut transaction = store.begin_write().await.unwrap();
    transaction.writes().put_tenant("acme", 1, GARBAGE).await.unwrap();
    let policy = PlainRow {
        id: "inst_1".into(),
        tenant_id: "default".into(),
        parent_id: String::new(),
        version: 4,
        body: GARBAGE.to_vec(),
    };
    transaction.writes().put_opt_out_policy(&policy).await.unwrap();
    transaction.commit().await.unwrap();
    let mut reader = store.reader().await.unwrap();
    let found = tenants::list(&mut reader, &TenantScope::All, None, 10).await.unwrap();
    let found: Vec<_> = found.iter().map(|tenant| (tenant.id.as_str(), tenant.is_damaged)).collect();
    assert_eq!(found, [("acme", true), ("default", false)]);
    assert!(tenants::find(&mut reader, &TenantScope::All, "acme").await.unwrap_err().is_damage());
    let found = tenants::find_even_damaged(&mut reader, &one("acme"), "acme").await.unwrap();
    assert_eq!(damaged(found), head(&store, "acme", "acme", 1));
    assert_eq!(tenants::find_even_damaged(&mut reader, &one("default"), "acme").await.unwrap(), None);
    assert!(opt_out_policies::find(&mut reader, "inst_1").await.unwrap_err().is_damage());
    let found = opt_out_policies::find_even_damaged(&mut reader, "inst_1").await.unwrap();
    assert_eq!(damaged(found).etag, store.etag(4));
    let changes = store.changes_since(0).await.unwrap();
    assert_eq!(changed(&changes), ["route_1", "inst_1", "sub_1"]);
    assert_eq!(changes.left_out[0].what, left_out("opt_out_policy", "inst_1"));
    put_policy(&store, "inst_1").await;
    put_tenant(&store, "acme").await;
    assert!(opt_out_policies::find(&mut reader, "inst_1").await.unwrap().is_some());
    assert!(tenants::find(&mut reader, &TenantScope::All, "acme").await.unwrap().is_some());
    assert_eq!(store.damages().all(), []);
}

/// A damaged API key opens nothing, whatever its bytes pass for, and is listed beside the others; one of many keys in use
/// does not hide what became of the others.
pub(super) async fn damaged_keys_open_nothing(factory: &impl Factory) {
    let store = factory.open().await;
    let key = |id: &str| v1::ApiKey {
        id: id.into(),
        tenant_id: "default".into(),
        role: v1::Role::Viewer.into(),
        revoke_time: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
        ..Default::default()
    };
    let mut transaction = store.begin_write().await.unwrap();
    for (number, id) in [(1, "key_1"), (2, "key_2")] {
        api_keys::create(&mut transaction, &key(id), &[number; 32]).await.unwrap();
    }
    transaction.commit().await.unwrap();
    let mut reader = store.reader().await.unwrap();
    let whole = reader.rows().api_key("key_1").await.unwrap().unwrap().row.body;
    // The key of the field `revoke_time`, 10, becomes that of another one; and the field is gone with its checksum.
    let mut not_revoked = whole.clone();
    let place = whole.iter().position(|byte| *byte == 0x52).unwrap();
    not_revoked[place] = 0x5a;
    let without = prost::Message::encode_to_vec(&v1::ApiKey { revoke_time: None, ..key("key_1") });
    let other = reader.rows().api_key("key_2").await.unwrap().unwrap().row.body;
    for body in [GARBAGE.to_vec(), not_revoked, without, other] {
        let mut transaction = store.begin_write().await.unwrap();
        transaction.writes().update_api_key("key_1", &body).await.unwrap();
        transaction.commit().await.unwrap();
        let found = api_keys::find_by_secret_hash(&store, &[1; 32]).await.unwrap();
        assert_eq!(damaged(found).id, "key_1");
        let all = api_keys::find_all(&store, &["key_1".into(), "key_2".into()]).await.unwrap();
        assert_eq!(all, [key("key_2")]);
        assert!(api_keys::find(&mut reader, &one("default"), "key_1").await.unwrap_err().is_damage());
        assert_eq!(api_keys::find(&mut reader, &one("other"), "key_1").await.unwrap(), None);
        let found = api_keys::list(&mut reader, Some("default"), None, 10).await.unwrap();
        let shown = v1::ApiKey { is_damaged: true, role: 0, revoke_time: None, ..key("key_1") };
        assert_eq!(found, [shown, key("key_2")]);
    }
    let mut transaction = store.begin_write().await.unwrap();
    api_keys::update(&mut transaction, &key("key_1")).await.unwrap();
    transaction.commit().await.unwrap();
    assert!(matches!(api_keys::find_by_secret_hash(&store, &[1; 32]).await.unwrap(), Some(Found::Whole(_))));
    assert_eq!(store.damages().all(), []);
}

async fn damage_opt_out(store: &Store, opt_out: &v1::OptOut, id: &str) {
    let phone = normalize_phone(&opt_out.phone).unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let row = OptOutRow {
        id,
        tenant_id: &opt_out.tenant_id,
        instance_id: &opt_out.instance_id,
        phone_key: Some(&phone.match_key()),
        user_id: None,
        state: opt_out.state,
        body: GARBAGE,
    };
    transaction.writes().put_opt_out(row).await.unwrap();
    transaction.commit().await.unwrap();
}

/// What the row of an opt-out has lost, the log has: nobody is written to because of a damage. Where the log does not
/// have it either, the row is listed, it keeps the opt-outs beside it from nobody, its contact is not taken for one who
/// did not opt out, and the next decision takes its place.
pub(super) async fn opt_outs_survive_damage(factory: &impl Factory) {
    let store = factory.open().await;
    let (one_phone, other_phone) = ("+966500000001", "+966500000002");
    let recorded = store.record_opt_outs(agent(), vec![opt_out(one_phone, 100)]).await.unwrap().remove(0);
    let (whole, tenant) = (recorded.opt_out, "default".parse().unwrap());
    damage_opt_out(&store, &whole, &whole.id).await;
    let mut reader = store.reader().await.unwrap();
    let scope = one("default");
    assert_eq!(opt_outs::find(&mut reader, &scope, &whole.id).await.unwrap(), Some(whole.clone()));
    assert_eq!(store.opt_outs_since(0, 10).await.unwrap().0, std::slice::from_ref(&whole));
    let contact = |phone: &str| ContactRef { phone: normalize_phone(phone), user_id: None };
    let known = opt_outs::of_contact(&mut reader, &tenant, None, &contact(one_phone)).await.unwrap();
    assert_eq!(known, std::slice::from_ref(&whole));

    damage_opt_out(&store, &opt_out(other_phone, 100), "opt_lost").await;
    let all = opt_outs::list(&mut reader, &scope, &OptOutFilter::default(), None, 10).await.unwrap();
    let (lost, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|found| found.is_damaged);
    assert_eq!((others, lost.len(), lost[0].id.as_str()), (vec![whole.clone()], 1, "opt_lost"));
    assert_eq!(lost[0].state(), v1::OptOutState::OptedOut);
    assert!(opt_outs::find(&mut reader, &scope, "opt_lost").await.unwrap_err().is_damage());
    let unknown = opt_outs::of_contact(&mut reader, &tenant, None, &contact(other_phone)).await;
    assert!(unknown.unwrap_err().is_damage());
    let reported = vec![opt_out(other_phone, 200), opt_out(one_phone, 300)];
    let recorded = store.record_opt_outs(agent(), reported).await.unwrap();
    assert!(recorded[0].changed && recorded[0].before.is_none());
    assert_eq!(recorded[1].before.as_ref().map(|before| before.id.clone()), Some(whole.id));
    let all = opt_outs::list(&mut reader, &scope, &OptOutFilter::default(), None, 10).await.unwrap();
    assert_eq!(all.iter().map(|found| found.is_damaged).collect::<Vec<_>>(), [false, false]);
    assert_eq!(store.damages().all(), []);
}

/// Reading every row finds each that is damaged, by type and id, and counts all; what is only read by others is not hidden
/// by a damage: the audit log and the damages of agents' buffers go on around it.
pub(super) async fn every_row_is_checked(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    agents::record_buffer_damage(&store, "agt_1", &v1::BufferDamage::default()).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let entry = |resource_id: &str, body: &[u8]| AuditRow {
        time: 7,
        tenant_id: "default".into(),
        actor: "admin_key".into(),
        resource_type: "instance".into(),
        resource_id: resource_id.into(),
        body: body.to_vec(),
    };
    transaction.writes().insert_audit_row(&entry("inst_1", GARBAGE)).await.unwrap();
    transaction.writes().insert_audit_row(&entry("inst_2", &[])).await.unwrap();
    transaction.writes().insert_buffer_damage("agt_1", GARBAGE).await.unwrap();
    transaction.commit().await.unwrap();
    let mut reader = store.reader().await.unwrap();
    let found = audit::list(&mut reader, &AuditFilter::default(), None, 10).await.unwrap();
    let found: Vec<_> =
        found.iter().map(|(_, entry)| (entry.resource_id.as_str(), entry.is_damaged)).collect();
    assert_eq!(found, [("inst_2", false), ("inst_1", true)]);
    assert_eq!(agents::buffer_damages(&store, "agt_1", "agt_1").await.unwrap()["agt_1"].len(), 1);
    damage_instance(&store, "inst_1", GARBAGE).await;
    let mut check = Check::new(&store);
    while check.advance().await.unwrap().is_some() {}
    let checked = check.finish();
    // Tenant, route, instance, subscription, two entries, two damages.
    assert_eq!(checked.rows, 8);
    let types: Vec<_> = checked.damaged.iter().map(|row| row.resource_type).collect();
    assert_eq!(types, ["audit_entry", "buffer_damage", "instance"]);
    assert_eq!(store.damages().all(), checked.damaged.into_iter().collect::<Vec<_>>());
}
