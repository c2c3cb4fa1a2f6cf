//! Bad input: INVALID_ARGUMENT names the field, stale etags are ABORTED, repeats give the first answer.

use gateway_proto::v1;
use gateway_sdk::{Client, client::error::CallError};
use gateway_tests::{
    ControlPlane, World,
    control_plane::ControlPlaneOptions,
    world::{INSTANCE_ID, create_instance, meta_route, subscribe},
};
use prost_types::FieldMask;
use tonic::{Code, Response, Status};

/// A control plane with the instance of every world.
struct Api {
    client: Client,
    _control_plane: ControlPlane,
    _directory: tempfile::TempDir,
}

impl Api {
    async fn start() -> Self {
        Self::start_with(ControlPlaneOptions::default()).await
    }

    async fn start_with(options: ControlPlaneOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let control_plane = ControlPlane::start_with(directory.path(), options).await.unwrap();
        let client = control_plane.client().clone();
        create_instance(&client).await.unwrap();
        Self { client, _control_plane: control_plane, _directory: directory }
    }
}

fn refused<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> CallError {
    CallError::from(answer.expect_err("the call must be refused"))
}

/// The refusal is INVALID_ARGUMENT and names the field.
fn assert_names(error: &CallError, field: &str, input: &str) {
    assert_eq!(error.code, Code::InvalidArgument, "{input}: {error:?}");
    // An element of a repeated field has its index: `events[0]`.
    let path = |named: &str| {
        named.trim_end_matches(|end: char| end == ']' || end == '[' || end.is_ascii_digit()).to_owned()
    };
    let named = error.violations.iter().any(|violation| path(&violation.field).ends_with(field));
    assert!(named, "{input} does not name {field}: {error:?}");
    assert!(error.violations.iter().all(|violation| !violation.description.is_empty()), "{input}: {error:?}");
}

fn subscription(destination_url: &str, events: &[&str]) -> v1::CreateWebhookSubscriptionRequest {
    v1::CreateWebhookSubscriptionRequest {
        webhook_subscription: Some(v1::WebhookSubscription {
            instance_id: INSTANCE_ID.to_owned(),
            destination_url: destination_url.to_owned(),
            events: events.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Never allowed, whatever the operator allows: malformed URLs, user info, other schemes and ports, metadata
/// addresses in every spelling, private addresses outside of the allowed networks.
const NEVER: [&str; 38] = [
    "",
    "not a url",
    "ftp://example.com/x",
    "file:///etc/passwd",
    "//example.com",
    "https://",
    "https://:443/",
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://example.com/#fragment",
    "https://example.com:22/",
    "https://example.com/a b",
    "https://exam\tple.com/",
    "https://10.0.0.1/",
    "http://10.0.0.1/",
    "https://172.16.0.1/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://0.0.0.0/",
    "https://224.0.0.1/",
    "https://192.0.2.1/",
    "https://167772161/",
    "https://0xa.1/",
    "https://012.0.0.1/",
    "https://①⓪.0.0.1/",
    "https://10。0。0。1/",
    "https://169.254.169.254/latest/meta-data/",
    "http://169.254.169.254/",
    "https://2852039166/",
    "https://0xa9fea9fe/",
    "https://[::ffff:169.254.169.254]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[fe80::1]/",
    "https://[fc00::1]/",
    "https://[64:ff9b::10.0.0.1]/",
    "https://[2002:a00:1::]/",
    "https://[::10.0.0.1]/",
    "https://metadata.google.internal/",
];
/// Only where the operator allows loopback.
const LOOPBACK: [&str; 14] = [
    "http://127.0.0.1:9999/",
    "https://127.0.0.1/",
    "https://2130706433/",
    "https://0x7f.1/",
    "https://0177.0.0.1/",
    "https://127.1/",
    "https://0x7f000001/",
    "https://①②⑦.0.0.1/",
    "https://127。0。0。1/",
    "https://127.0.0.1./",
    "https://[::ffff:127.0.0.1]/",
    "https://localhost/",
    "https://localhost./",
    "https://hook.localhost/",
];
/// Allowed everywhere.
const PUBLIC: [&str; 3] =
    ["https://example.com/hook?key=value", "https://example.com:8443/", "https://93.184.215.14/hook"];

/// Destinations that must not be are refused with the field: with nothing allowed, plain http and loopback in
/// every spelling that URL parsers know as well.
#[tokio::test]
async fn bad_destinations_are_refused() {
    let options =
        |public_destinations_only| ControlPlaneOptions { public_destinations_only, ..Default::default() };
    for (strict, refused_too) in [(true, LOOPBACK.as_slice()), (false, &[])] {
        let api = Api::start_with(options(strict)).await;
        let mut subscriptions = api.client.webhook_subscriptions();
        let long = format!("https://example.com/{}", "x".repeat(2_048));
        let plain: &[&str] =
            if strict { &["http://example.com/", "https://[::1]/"] } else { &["https://[::1]/"] };
        for url in NEVER.iter().chain(refused_too).chain(plain).chain([&long.as_str()]) {
            let error = refused(subscriptions.create_webhook_subscription(subscription(url, &["*"])).await);
            assert_names(&error, "destination_url", url);
        }
        let allowed: &[&str] = if strict { &[] } else { &LOOPBACK };
        for url in PUBLIC.iter().chain(allowed) {
            let created = subscriptions.create_webhook_subscription(subscription(url, &["*"])).await;
            assert!(created.is_ok(), "{url}: {created:?}");
        }
    }
}

/// What a case changes in a good subscription.
type Change = fn(&mut v1::WebhookSubscription);

/// Unknown and missing events, odd headers, timeouts out of range, missing parents: each names its field.
#[tokio::test]
async fn bad_subscriptions_are_refused() {
    let api = Api::start().await;
    let mut subscriptions = api.client.webhook_subscriptions();
    let good = "https://example.com/";
    for events in
        [&[][..], &["message.unheard"], &["message.received", "Message.Read"], &["message.r*"], &[""]]
    {
        let error = refused(subscriptions.create_webhook_subscription(subscription(good, events)).await);
        assert_names(&error, "events", &format!("{events:?}"));
    }
    let with = |change: Change| {
        let mut request = subscription(good, &["*"]);
        change(request.webhook_subscription.as_mut().unwrap());
        request
    };
    let cases: [(&str, Change); 6] = [
        ("attempt_timeout", |subscription| {
            subscription.attempt_timeout = Some(prost_types::Duration { seconds: 31, nanos: 0 });
        }),
        ("attempt_timeout", |subscription| {
            subscription.attempt_timeout = Some(prost_types::Duration { seconds: 0, nanos: 1 });
        }),
        ("concurrency_max", |subscription| subscription.concurrency_max = 65),
        ("concurrency_max", |subscription| subscription.concurrency_max = -1),
        ("display_name", |subscription| subscription.display_name = "x".repeat(101)),
        ("id", |subscription| subscription.id = "Not An Id".to_owned()),
    ];
    for (field, change) in cases {
        let error = refused(subscriptions.create_webhook_subscription(with(change)).await);
        assert_names(&error, field, field);
    }
    for name in ["host", "Content-Type", "webhook-signature", "bad name", ""] {
        let mut request = subscription(good, &["*"]);
        request.webhook_subscription.as_mut().unwrap().headers.insert(name.to_owned(), "x".to_owned());
        let error = refused(subscriptions.create_webhook_subscription(request).await);
        assert_eq!(error.code, Code::InvalidArgument, "{name:?}: {error:?}");
        assert!(error.violations.iter().any(|violation| violation.field.contains("headers")), "{error:?}");
    }
    let orphan = v1::CreateWebhookSubscriptionRequest {
        webhook_subscription: Some(v1::WebhookSubscription {
            instance_id: "no-such-instance".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let error = refused(subscriptions.create_webhook_subscription(orphan).await);
    assert_eq!(error.code, Code::NotFound, "{error:?}");
}

/// Ids that break the pattern are refused with the field; taken ids and numbers are ALREADY_EXISTS; unknown
/// ones NOT_FOUND; what others refer to cannot be deleted.
#[tokio::test]
async fn bad_ids_and_references_are_refused() {
    let api = Api::start().await;
    let (mut instances, mut routes) = (api.client.instances(), api.client.inbound_routes());
    let instance = |id: &str, number: &str| v1::CreateInstanceRequest {
        instance: Some(v1::Instance {
            id: id.to_owned(),
            display_name: "Another".to_owned(),
            inbound_route_id: "route-test".to_owned(),
            provider_number_id: number.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    for id in ["ab", "-abc", "_abc", "Abc", "a b c", "a/b", "é12", "a.b.c", &"a".repeat(64)] {
        let error = refused(instances.create_instance(instance(id, "1")).await);
        assert_names(&error, "id", id);
        let route = v1::InboundRoute { id: id.to_owned(), ..meta_route("s", "v") };
        let request = v1::CreateInboundRouteRequest { inbound_route: Some(route), ..Default::default() };
        assert_names(&refused(routes.create_inbound_route(request).await), "id", id);
    }
    let error = refused(instances.create_instance(instance(INSTANCE_ID, "1")).await);
    assert_eq!(error.code, Code::AlreadyExists, "{error:?}");
    let error = refused(
        instances.create_instance(instance("inst-other", gateway_tests::world::PHONE_NUMBER_ID)).await,
    );
    assert_eq!(error.code, Code::AlreadyExists, "{error:?}");
    let error = refused(instances.create_instance(instance("inst-other", "")).await);
    assert_names(&error, "provider_number_id", "no number");
    let error =
        refused(instances.get_instance(v1::GetInstanceRequest { id: "no-such-one".to_owned() }).await);
    assert_eq!((error.code, error.reason.as_str()), (Code::NotFound, "NOT_FOUND"), "{error:?}");
    let request = v1::DeleteInboundRouteRequest { id: "route-test".to_owned(), ..Default::default() };
    let error = refused(routes.delete_inbound_route(request).await);
    assert_eq!(error.code, Code::FailedPrecondition, "{error:?}");
    subscribe(&api.client, "https://example.com/", &["*"]).await.unwrap();
    let request = v1::DeleteInstanceRequest { id: INSTANCE_ID.to_owned(), ..Default::default() };
    let error = refused(instances.delete_instance(request).await);
    assert_eq!(error.code, Code::FailedPrecondition, "{error:?}");
    let bare = v1::InboundRoute { provider: v1::Provider::Meta.into(), ..Default::default() };
    for route in [bare, v1::InboundRoute { provider: 0, ..meta_route("s", "v") }, meta_route("", "v")] {
        let request = v1::CreateInboundRouteRequest { inbound_route: Some(route), ..Default::default() };
        let error = refused(routes.create_inbound_route(request).await);
        assert_eq!(error.code, Code::InvalidArgument, "{error:?}");
        assert!(!error.violations.is_empty(), "{error:?}");
    }
}

/// A stale etag is ABORTED on update and delete, an unknown mask path or none INVALID_ARGUMENT, and only
/// what the mask names changes.
#[tokio::test]
async fn etags_and_masks_are_heeded() {
    let api = Api::start().await;
    let mut instances = api.client.instances();
    let update = |etag: &str, paths: &[&str]| v1::UpdateInstanceRequest {
        instance: Some(v1::Instance {
            id: INSTANCE_ID.to_owned(),
            display_name: "Changed".to_owned(),
            phone_number: "+966110000009".to_owned(),
            etag: etag.to_owned(),
            ..Default::default()
        }),
        update_mask: Some(FieldMask { paths: paths.iter().map(ToString::to_string).collect() }),
    };
    let get = v1::GetInstanceRequest { id: INSTANCE_ID.to_owned() };
    let before = instances.get_instance(get.clone()).await.unwrap().into_inner().instance.unwrap();
    for paths in [&["unheard"][..], &["display_name", "unheard"], &["id"], &["create_time"], &[]] {
        assert_names(
            &refused(instances.update_instance(update("", paths)).await),
            "update_mask",
            &format!("{paths:?}"),
        );
    }
    let changed = instances.update_instance(update(&before.etag, &["display_name"])).await.unwrap();
    let changed = changed.into_inner().instance.unwrap();
    assert_eq!((changed.display_name.as_str(), changed.phone_number.as_str()), ("Changed", ""));
    assert_ne!(changed.etag, before.etag);
    let error = refused(instances.update_instance(update(&before.etag, &["phone_number"])).await);
    assert_eq!((error.code, error.reason.as_str()), (Code::Aborted, "STALE_ETAG"), "{error:?}");
    let request = v1::DeleteInstanceRequest { id: INSTANCE_ID.to_owned(), etag: before.etag };
    assert_eq!(refused(instances.delete_instance(request).await).code, Code::Aborted);
    let request = v1::DeleteInstanceRequest { id: INSTANCE_ID.to_owned(), etag: changed.etag };
    instances.delete_instance(request).await.unwrap();
    assert_eq!(refused(instances.get_instance(get).await).code, Code::NotFound);
}

/// A create repeated with its `request_id` gives the first answer; another request with that id is refused.
#[tokio::test]
async fn repeated_creates_give_the_first_answer() {
    let api = Api::start().await;
    let mut subscriptions = api.client.webhook_subscriptions();
    let mut request = subscription("https://example.com/", &["*"]);
    request.request_id = "0a1b2c".to_owned();
    let first = subscriptions.create_webhook_subscription(request.clone()).await.unwrap().into_inner();
    let again = subscriptions.create_webhook_subscription(request.clone()).await.unwrap().into_inner();
    assert_eq!(first, again);
    let list = v1::ListWebhookSubscriptionsRequest::default();
    let listed = subscriptions.list_webhook_subscriptions(list).await.unwrap().into_inner();
    assert_eq!(listed.webhook_subscriptions.len(), 1);
    request.request_id = "x".repeat(129);
    let error = refused(subscriptions.create_webhook_subscription(request).await);
    assert_names(&error, "request_id", "a long request id");
}

/// Pages follow each other without gap or repeat; a token of another list or other filters, or none at all,
/// is INVALID_ARGUMENT, and so is a negative size.
#[tokio::test]
async fn page_tokens_belong_to_their_list() {
    let api = Api::start().await;
    let mut subscriptions = api.client.webhook_subscriptions();
    for _ in 0..5 {
        subscribe(&api.client, "https://example.com/", &["*"]).await.unwrap();
    }
    let list = |page_size: i32, page_token: &str, instance_id: &str| v1::ListWebhookSubscriptionsRequest {
        page_size,
        page_token: page_token.to_owned(),
        instance_id: instance_id.to_owned(),
    };
    let (mut ids, mut token) = (Vec::new(), String::new());
    let first =
        subscriptions.list_webhook_subscriptions(list(2, "", "")).await.unwrap().into_inner().next_page_token;
    loop {
        let page = subscriptions.list_webhook_subscriptions(list(2, &token, "")).await.unwrap().into_inner();
        ids.extend(page.webhook_subscriptions.into_iter().map(|subscription| subscription.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(ids.len() == 5 && ids.is_sorted(), "{ids:?}");
    for (size, token, instance) in [(2, "nonsense", ""), (2, first.as_str(), INSTANCE_ID), (-1, "", "")] {
        let error = refused(subscriptions.list_webhook_subscriptions(list(size, token, instance)).await);
        assert_names(&error, if size < 0 { "page_size" } else { "page_token" }, token);
    }
    let request = v1::ListInstancesRequest { page_token: first, ..Default::default() };
    assert_names(
        &refused(api.client.instances().list_instances(request).await),
        "page_token",
        "another list",
    );
}

/// Calls about opt-outs and logs: unknown purposes, contacts that are none, unknown events and ids.
#[tokio::test]
async fn bad_questions_are_refused() {
    let world = World::start().await.unwrap();
    let mut opt_outs = world.client().opt_outs();
    let check = |phone: &str, purpose: i32| v1::CheckSuppressionRequest {
        instance_id: INSTANCE_ID.to_owned(),
        phone: phone.to_owned(),
        purpose,
        ..Default::default()
    };
    for (phone, purpose, field) in [
        ("+966500000001", 0, "purpose"),
        ("+966500000001", 99, "purpose"),
        ("12ab", 6, "phone"),
        ("", 6, "phone"),
    ] {
        assert_names(&refused(opt_outs.check_suppression(check(phone, purpose)).await), field, phone);
    }
    let mut logs = world.client().inbound_logs();
    let request =
        v1::ListInboundLogsRequest { events: vec!["message.unheard".to_owned()], ..Default::default() };
    assert_names(&refused(logs.list_inbound_logs(request).await), "events", "an unknown event");
    let request = v1::GetInboundLogRequest { event_id: "evt_aaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned() };
    assert_eq!(refused(logs.get_inbound_log(request).await).code, Code::NotFound);
    let request = v1::CreateJoinTokenRequest { region: "EU West".to_owned(), ..Default::default() };
    assert_names(
        &refused(world.client().agents().create_join_token(request).await),
        "region",
        "a bad region",
    );
    let request = v1::DiagnoseInstanceRequest { id: INSTANCE_ID.to_owned() };
    let diagnosis = world.client().instances().diagnose_instance(request).await.unwrap().into_inner();
    assert_eq!(diagnosis.callback_path, world.inbound_route.callback_path);
    assert_eq!((diagnosis.online_agent_count, diagnosis.current_agent_count), (1, 1));
    assert_eq!(diagnosis.webhook_subscriptions.len(), 1);
    assert!(
        diagnosis.findings.iter().any(|finding| !finding.reason.is_empty() && !finding.advice.is_empty()),
        "{diagnosis:?}"
    );
}
