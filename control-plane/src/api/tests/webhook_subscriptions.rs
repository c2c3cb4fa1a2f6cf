use super::*;

async fn secret(server: &Server) -> String {
    let request = v1::GetSigningSecretRequest { id: "sub_1".into() };
    server.subscriptions().get_signing_secret(request).await.unwrap().into_inner().signing_secret
}

fn to(destination_url: &str) -> v1::WebhookSubscription {
    v1::WebhookSubscription { destination_url: destination_url.into(), ..subscription("sub_1") }
}

/// A subscription is active from the start, with a signing secret that receivers' libraries take.
#[tokio::test]
async fn subscription_is_created_active() {
    let server = Server::start().await.with_instance().await;
    let created = server.create_subscription(subscription("sub_1")).await.unwrap();
    assert_eq!(created.state(), v1::WebhookSubscriptionState::Active);
    assert_eq!(created.tenant_id, "default");
    let secret = secret(&server).await;
    assert!(gateway_core::signature::WebhookSecret::parse(&secret).is_ok());
    let list = v1::ListWebhookSubscriptionsRequest { instance_id: "inst_1".into(), ..Default::default() };
    let listed = server.subscriptions().list_webhook_subscriptions(list).await.unwrap().into_inner();
    assert_eq!(listed.webhook_subscriptions, [created]);
    server.stop().await;
}

/// The instance is looked for first; then each bad field is named.
#[tokio::test]
async fn bad_subscriptions_are_refused() {
    let server = Server::start().await.with_instance().await;
    let orphan =
        v1::WebhookSubscription { instance_id: "inst_9".into(), events: vec![], ..subscription("x") };
    assert_eq!(refusal(server.create_subscription(orphan).await).0, Code::NotFound);
    let nowhere = v1::WebhookSubscription { instance_id: String::new(), ..subscription("sub_1") };
    assert_eq!(bad_fields(server.create_subscription(nowhere).await), ["webhook_subscription.instance_id"]);
    let misspelt =
        v1::WebhookSubscription { events: vec!["message.recieved".into()], ..subscription("sub_1") };
    let refused = server.create_subscription(misspelt).await;
    assert!(refused.as_ref().unwrap_err().message().contains("message.received"));
    assert_eq!(bad_fields(refused), ["webhook_subscription.events[0]"]);
    assert_eq!(
        bad_fields(server.create_subscription(subscription("Sub")).await),
        ["webhook_subscription.id"]
    );
    let headers = [("Webhook-Id".to_owned(), "1".to_owned())].into();
    let owned = v1::WebhookSubscription { headers, ..subscription("sub_1") };
    assert_eq!(
        bad_fields(server.create_subscription(owned).await),
        ["webhook_subscription.headers[Webhook-Id]"]
    );
    server.create_subscription(subscription("sub_1")).await.unwrap();
    assert_eq!(refusal(server.create_subscription(subscription("sub_1")).await).0, Code::AlreadyExists);
    server.stop().await;
}

/// Destinations with user info, plain http, private or metadata addresses in any spelling are refused, at
/// creation and on update.
#[tokio::test]
async fn forbidden_destinations_are_refused() {
    let server = Server::start().await.with_instance().await;
    let field = ["webhook_subscription.destination_url"];
    for destination in [
        "",
        "http://example.com/",
        "https://user:pw@example.com/",
        "https://example.com/#x",
        "https://example.com:22/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://localhost/",
        "https://[::1]/",
        "https://10.0.0.1/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/",
        "https://0xa9fea9fe/",
        "https://[fd00:ec2::254]/",
        "https://①②⑦.0.0.1/",
        "ftp://example.com/",
        "example.com",
    ] {
        assert_eq!(bad_fields(server.create_subscription(to(destination)).await), field, "{destination}");
    }
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let moved = update(&server, to("https://192.168.0.1/"), &["destination_url"]).await;
    assert_eq!(bad_fields(moved), field);
    server.stop().await;
}

/// Inside an allowed network http and private addresses are possible; metadata never is.
#[tokio::test]
async fn allowed_networks_are_possible() {
    let server = Server::start_allowing(&["0.0.0.0/0"]).await.with_instance().await;
    let metadata = server.create_subscription(to("http://169.254.169.254/")).await;
    assert_eq!(bad_fields(metadata), ["webhook_subscription.destination_url"]);
    server.create_subscription(to("http://127.0.0.1:8080/hook")).await.unwrap();
    server.stop().await;
}

/// Header values are secrets: they read back masked, the mask keeps them, and leaving one out removes it.
#[tokio::test]
async fn header_values_are_write_only() {
    let server = Server::start().await.with_instance().await;
    let headers = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let given = headers(&[("Authorization", "Bearer planted"), ("x-old", "planted")]);
    let created =
        server.create_subscription(v1::WebhookSubscription { headers: given, ..subscription("sub_1") });
    let created = created.await.unwrap();
    assert_eq!(created.headers, headers(&[("Authorization", "***"), ("x-old", "***")]));
    let kept = headers(&[("authorization", "***"), ("x-new", "planted")]);
    let wanted = v1::WebhookSubscription { headers: kept, ..subscription("sub_1") };
    let updated = update(&server, wanted, &["headers"]).await.unwrap();
    assert_eq!(updated.headers, headers(&[("authorization", "***"), ("x-new", "***")]));
    let unknown = v1::WebhookSubscription { headers: headers(&[("x-a", "***")]), ..subscription("sub_1") };
    let field = ["webhook_subscription.headers[x-a]"];
    assert_eq!(bad_fields(update(&server, unknown.clone(), &["headers"]).await), field);
    let fresh = v1::WebhookSubscription { id: "sub_2".into(), ..unknown };
    assert_eq!(bad_fields(server.create_subscription(fresh).await), field);
    server.stop().await;
}

/// The mask, the etag and the immutable instance are respected.
#[tokio::test]
async fn update_follows_mask_and_etag() {
    let server = Server::start().await.with_instance().await;
    let created = server.create_subscription(subscription("sub_1")).await.unwrap();
    let wanted =
        v1::WebhookSubscription { display_name: "CRM".into(), concurrency_max: 3, ..created.clone() };
    let updated = update(&server, wanted.clone(), &["display_name"]).await.unwrap();
    assert_eq!((updated.display_name.as_str(), updated.concurrency_max), ("CRM", 0));
    assert_eq!(
        refusal(update(&server, wanted, &["display_name"]).await),
        (Code::Aborted, "STALE_ETAG".into())
    );
    for path in ["instance_id", "state", "signing_secret"] {
        assert_eq!(bad_fields(update(&server, subscription("sub_1"), &[path]).await), ["update_mask"]);
    }
    assert_eq!(refusal(update(&server, subscription("sub_9"), &["*"]).await).0, Code::NotFound);
    server.stop().await;
}

/// Pausing says why, again changes the reason, and resuming forgets it.
#[tokio::test]
async fn subscription_pauses_and_resumes() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let pause = async |reason: String| {
        let request = v1::PauseWebhookSubscriptionRequest { id: "sub_1".into(), reason };
        let response = server.subscriptions().pause_webhook_subscription(request).await?;
        Ok::<_, Status>(response.into_inner().webhook_subscription.unwrap())
    };
    let paused = pause(String::new()).await.unwrap();
    assert_eq!(paused.state(), v1::WebhookSubscriptionState::Paused);
    assert_eq!(paused.pause_reason, "paused by the operator");
    assert_eq!(pause("maintenance".into()).await.unwrap().pause_reason, "maintenance");
    assert_eq!(bad_fields(pause("x".repeat(201)).await), ["reason"]);
    let request = v1::ResumeWebhookSubscriptionRequest { id: "sub_1".into() };
    let resumed = server.subscriptions().resume_webhook_subscription(request).await.unwrap().into_inner();
    let resumed = resumed.webhook_subscription.unwrap();
    assert_eq!((resumed.state(), resumed.pause_reason.as_str()), (v1::WebhookSubscriptionState::Active, ""));
    server.stop().await;
}

/// A rotation gives a new secret at once and says until when the old one signs; too many at once and a
/// period out of range are refused, an immediate end never is.
#[tokio::test]
async fn signing_secret_rotates() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let rotate = async |seconds: Option<i64>| {
        let grace_period = seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
        let request = v1::RotateSigningSecretRequest { id: "sub_1".into(), grace_period };
        server.subscriptions().rotate_signing_secret(request).await.map(tonic::Response::into_inner)
    };
    let first = secret(&server).await;
    let rotated = rotate(None).await.unwrap();
    assert_ne!(rotated.signing_secret, first);
    assert_eq!(secret(&server).await, rotated.signing_secret);
    let end = rotated.previous_secret_expire_time.unwrap().seconds - gateway_runtime::clock::now_seconds();
    assert!((86_000..=86_400).contains(&end), "{end}");
    for seconds in [-1, 604_801] {
        assert_eq!(bad_fields(rotate(Some(seconds)).await), ["grace_period"]);
    }
    for _ in 0..3 {
        rotate(None).await.unwrap();
    }
    assert_eq!(refusal(rotate(None).await), (Code::FailedPrecondition, "TOO_MANY_SECRETS".into()));
    let last = rotate(Some(0)).await.unwrap().signing_secret;
    assert_eq!(secret(&server).await, last);
    rotate(None).await.unwrap();
    server.stop().await;
}

/// A test event is queued under the id that the answer gives; of an unknown subscription there is none.
#[tokio::test]
async fn test_event_has_an_id() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let send = async |id: &str| {
        let request = v1::SendTestEventRequest { id: id.to_owned() };
        server.subscriptions().send_test_event(request).await.map(tonic::Response::into_inner)
    };
    let event_id = send("sub_1").await.unwrap().event_id;
    assert!(event_id.parse::<gateway_core::id::EventId>().is_ok(), "{event_id}");
    assert_eq!(refusal(send("sub_9").await).0, Code::NotFound);
    assert_eq!(bad_fields(send("").await), ["id"]);
    server.stop().await;
}
