//! What is remembered of webhook subscriptions that are not there any more.

use super::*;

fn upsert(id: &str) -> v1::ConfigResource {
    let subscription = v1::WebhookSubscription {
        id: id.to_owned(),
        instance_id: "inst_1".to_owned(),
        destination_url: "https://example.com/".to_owned(),
        events: vec!["*".to_owned()],
        ..v1::WebhookSubscription::default()
    };
    let secret = v1::SigningSecret {
        value: "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned(),
        ..v1::SigningSecret::default()
    };
    let config = v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(subscription),
        signing_secrets: vec![secret],
        ..Default::default()
    };
    let resource = Some(v1::config_resource::Resource::WebhookSubscription(config));
    v1::ConfigResource { version: 1, resource }
}

fn removal(id: &str, deleted: bool) -> v1::ConfigRemoval {
    v1::ConfigRemoval { r#type: "webhook_subscription".to_owned(), id: id.to_owned(), deleted }
}

/// The configuration after one more response.
fn after(
    before: &Snapshot,
    snapshot: bool,
    upserts: Vec<v1::ConfigResource>,
    removals: Vec<v1::ConfigRemoval>,
) -> Snapshot {
    let response =
        v1::StreamConfigResponse { snapshot, upserts, removals, ..v1::StreamConfigResponse::default() };
    let (next, refused) = before.apply(&response);
    assert_eq!(refused, []);
    next
}

/// How a subscription is looked up, and whether events go to it.
fn standing(snapshot: &Snapshot, id: &str) -> (&'static str, bool) {
    let lookup = match snapshot.look_up_subscription(id) {
        SubscriptionLookup::Known(settings) => {
            assert_eq!(settings.id.as_str(), id);
            "known"
        }
        SubscriptionLookup::Deleted => "deleted",
        SubscriptionLookup::Unknown => "unknown",
    };
    let instance = "inst_1".parse().unwrap();
    let is_present = snapshot.subscription(id).is_some();
    let gets_events = snapshot.subscriptions_of(&instance).iter().any(|one| one.id.as_str() == id);
    assert_eq!(gets_events, is_present);
    (lookup, gets_events)
}

/// One that left is known, but gets no events; one that is deleted is remembered as such, whether it was
/// there, had left or was never known; and each is back once it is sent again.
#[test]
fn left_is_not_deleted() {
    let known = after(&Snapshot::default(), true, vec![upsert("sub_1")], vec![]);
    assert_eq!(standing(&known, "sub_1"), ("known", true));
    let left = after(&known, false, vec![], vec![removal("sub_1", false)]);
    assert_eq!(standing(&left, "sub_1"), ("known", false));
    for before in [&known, &left, &Snapshot::default()] {
        assert_eq!(standing(before, "sub_2"), ("unknown", false));
        let deleted = after(before, false, vec![], vec![removal("sub_1", true)]);
        assert_eq!(standing(&deleted, "sub_1"), ("deleted", false));
        let back = after(&deleted, false, vec![upsert("sub_1")], vec![]);
        assert_eq!(standing(&back, "sub_1"), ("known", true));
    }
    let back = after(&left, false, vec![upsert("sub_1")], vec![]);
    assert_eq!(standing(&back, "sub_1"), ("known", true));
    assert!(back.departed.is_empty());
}

/// A whole configuration says nothing about what it does not name: that has left, and what was deleted stays so.
#[test]
fn whole_configuration_deletes_nothing() {
    let before =
        after(&Snapshot::default(), true, vec![upsert("sub_1"), upsert("sub_2"), upsert("sub_3")], vec![]);
    let before = after(&before, false, vec![], vec![removal("sub_3", true)]);
    let whole = after(&before, true, vec![upsert("sub_2")], vec![]);
    assert_eq!(standing(&whole, "sub_1"), ("known", false));
    assert_eq!(standing(&whole, "sub_2"), ("known", true));
    assert_eq!(standing(&whole, "sub_3"), ("deleted", false));
    assert_eq!(standing(&after(&whole, true, vec![], vec![]), "sub_1"), ("known", false));
}

/// A snapshot that names resources as unreadable leaves what there is of them as it is; a webhook subscription among them
/// has not departed. What is not named is gone.
#[test]
fn unreadable_resources_keep_their_last_good_value() {
    let unreadable = |r#type: &str, id: &str| v1::ConfigUnreadable {
        r#type: r#type.to_owned(),
        id: id.to_owned(),
        version: 9,
    };
    let instance = v1::Instance {
        id: "inst_kept".into(),
        tenant_id: "default".into(),
        display_name: "Kept".into(),
        inbound_route_id: "route_kept".into(),
        provider_number_id: "1".into(),
        ..Default::default()
    };
    let gone = v1::Instance { id: "inst_gone".into(), provider_number_id: "2".into(), ..instance.clone() };
    let resource = |instance| v1::ConfigResource {
        version: 1,
        resource: Some(v1::config_resource::Resource::Instance(instance)),
    };
    let before = v1::StreamConfigResponse {
        version: 1,
        snapshot: true,
        upserts: vec![resource(instance), resource(gone)],
        ..Default::default()
    };
    let (before, refused) = Snapshot::default().apply(&before);
    assert_eq!(refused, []);
    let after = v1::StreamConfigResponse {
        version: 9,
        snapshot: true,
        unreadable: vec![unreadable("instance", "inst_kept"), unreadable("instance", "inst_never")],
        ..Default::default()
    };
    let (after, refused) = before.apply(&after);
    assert_eq!((after.version, refused), (9, vec![]));
    assert!(after.instance("inst_kept").is_some() && after.instance("inst_gone").is_none());
    assert!(after.instance("inst_never").is_none());
    let route = "route_kept".parse().unwrap();
    assert!(after.instance_by_number(&route, "1").is_some());
}
