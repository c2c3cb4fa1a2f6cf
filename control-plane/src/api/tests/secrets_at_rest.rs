//! Secrets are sealed on disk and stay with who asks for them by name.

use gateway_proto::v1::destination_authentication::Method;

use super::*;

/// Every file of the data directory that may hold rows.
fn files(server: &Server) -> Vec<(String, Vec<u8>)> {
    let names = ["config.db", "config.db-wal", "config.db-shm", "logs.db", "logs.db-wal"];
    let read = |name: &str| std::fs::read(server._directory.path().join(name)).unwrap_or_default();
    names.iter().map(|name| ((*name).to_owned(), read(name))).collect()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[track_caller]
fn assert_sealed(files: &[(String, Vec<u8>)], secrets: &[String]) {
    assert!(files.iter().any(|(_, bytes)| contains(bytes, "sub_1")), "the search finds what is there");
    for (name, bytes) in files {
        for secret in secrets {
            assert!(!contains(bytes, secret), "{name} has {secret}");
        }
    }
}

fn guarded(id: &str, method: Method) -> v1::WebhookSubscription {
    v1::WebhookSubscription {
        headers: [("x-key".to_owned(), "planted-header".to_owned())].into(),
        authentication: Some(v1::DestinationAuthentication { method: Some(method) }),
        asymmetric_signature: true,
        ..subscription(id)
    }
}

fn methods() -> [Method; 4] {
    let text = |text: &str| text.to_owned();
    [
        Method::Header(v1::HeaderAuthentication { name: text("x-a"), value: text("planted-value") }),
        Method::Basic(v1::BasicAuthentication { username: text("shop"), password: text("planted-password") }),
        Method::Bearer(v1::BearerAuthentication { token: text("planted-bearer") }),
        Method::Oauth2(v1::OAuth2Authentication {
            token_url: text("https://example.com/token"),
            client_id: text("shop"),
            client_secret: text("planted-client-secret"),
            ..Default::default()
        }),
    ]
}

/// Secrets that were written through the API, or made by it, are in no file of the control plane, while it runs
/// and after; and no answer has them but those of GetSigningSecret and RotateSigningSecret.
#[tokio::test]
async fn secrets_are_on_no_disk_and_in_no_other_answer() {
    let mut server = Server::start().await.with_instance().await;
    let mut said = String::new();
    let mut secrets: Vec<String> = vec!["planted-".to_owned(), "whsec_".to_owned(), "whsk_".to_owned()];
    let added = v1::AddInboundRouteSecretRequest {
        id: "route_1".into(),
        kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
        value: "planted-second-secret".into(),
        ..Default::default()
    };
    said += &format!("{:?}", server.routes().add_inbound_route_secret(added).await.unwrap());
    let repeated = v1::CreateInboundRouteRequest {
        inbound_route: Some(route("route_2")),
        request_id: "again".into(),
        ..Default::default()
    };
    for _ in 0..2 {
        said += &format!("{:?}", server.routes().create_inbound_route(repeated.clone()).await.unwrap());
    }
    let mut subscriptions = server.subscriptions();
    for (number, method) in methods().into_iter().enumerate() {
        let id = format!("sub_{}", number + 1);
        let request = v1::CreateWebhookSubscriptionRequest {
            webhook_subscription: Some(guarded(&id, method)),
            request_id: id.clone(),
        };
        for _ in 0..2 {
            said +=
                &format!("{:?}", subscriptions.create_webhook_subscription(request.clone()).await.unwrap());
        }
        let rotate = v1::RotateSigningSecretRequest { id: id.clone(), grace_period: None };
        let rotated = subscriptions.rotate_signing_secret(rotate).await.unwrap().into_inner();
        let get = v1::GetSigningSecretRequest { id: id.clone() };
        let shown = subscriptions.get_signing_secret(get).await.unwrap().into_inner();
        assert_eq!(rotated.signing_secret, shown.signing_secret);
        secrets.push(shown.signing_secret.trim_start_matches("whsec_").to_owned());
        let pause = v1::PauseWebhookSubscriptionRequest { id: id.clone(), ..Default::default() };
        said += &format!("{:?}", subscriptions.pause_webhook_subscription(pause).await.unwrap());
        let get = v1::GetWebhookSubscriptionRequest { id: id.clone() };
        said += &format!("{:?}", subscriptions.get_webhook_subscription(get).await.unwrap());
        let renamed = v1::WebhookSubscription { display_name: "New".into(), ..subscription(&id) };
        said += &format!("{:?}", update(&server, renamed, &["display_name"]).await.unwrap());
    }
    said += &format!(
        "{:?}",
        subscriptions
            .list_webhook_subscriptions(v1::ListWebhookSubscriptionsRequest::default())
            .await
            .unwrap()
    );
    said += &format!(
        "{:?}",
        server.routes().list_inbound_routes(v1::ListInboundRoutesRequest::default()).await.unwrap()
    );
    let get = v1::GetInboundRouteRequest { id: "route_1".into() };
    said += &format!("{:?}", server.routes().get_inbound_route(get).await.unwrap());
    let diagnose = v1::DiagnoseInstanceRequest { id: "inst_1".into() };
    said += &format!("{:?}", server.instances().diagnose_instance(diagnose).await.unwrap());
    for secret in &secrets {
        assert!(!said.contains(secret), "an answer has {secret}");
    }
    assert_sealed(&files(&server), &secrets);
    server.stop.cancel();
    server.running.take().unwrap().wait().await.unwrap();
    assert_sealed(&files(&server), &secrets);
}
