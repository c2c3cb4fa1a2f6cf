//! Write-only secrets stay with the host that they were given for.

use gateway_proto::v1::destination_authentication::Method;

use super::*;

const MASK: &str = "***";

fn authentication(method: Method) -> Option<v1::DestinationAuthentication> {
    Some(v1::DestinationAuthentication { method: Some(method) })
}

fn bearer(token: &str) -> Option<v1::DestinationAuthentication> {
    authentication(Method::Bearer(v1::BearerAuthentication { token: token.into() }))
}

fn oauth2(token_url: &str, client_secret: &str) -> Option<v1::DestinationAuthentication> {
    authentication(Method::Oauth2(v1::OAuth2Authentication {
        token_url: token_url.into(),
        client_id: "crm".into(),
        client_secret: client_secret.into(),
        scopes: Vec::new(),
    }))
}

/// A subscription to `destination_url` with the header `x-key` and a token.
fn with(destination_url: &str, secret: &str) -> v1::WebhookSubscription {
    v1::WebhookSubscription {
        destination_url: destination_url.into(),
        headers: [("x-key".to_owned(), secret.to_owned())].into(),
        authentication: bearer(secret),
        ..subscription("sub_1")
    }
}

/// A change of scheme, host or port that keeps secrets is refused for each of them, whether the update does not name
/// their fields or says `***`; the subscription stays as it was.
#[tokio::test]
async fn secrets_do_not_move() {
    let server = Server::start_allowing(&["127.0.0.0/8"]).await.with_instance().await;
    let created = server.create_subscription(with("https://example.com/hook", "planted")).await.unwrap();
    let fields = ["webhook_subscription.headers", "webhook_subscription.authentication"];
    let values = ["webhook_subscription.headers[x-key]", "webhook_subscription.authentication.bearer.token"];
    for elsewhere in
        ["https://collector.example/hook", "https://example.com:8443/hook", "http://example.com/hook"]
    {
        let moved = with(elsewhere, MASK);
        assert_eq!(
            bad_fields(update(&server, moved.clone(), &["destination_url"]).await),
            fields,
            "{elsewhere}"
        );
        let named = ["destination_url", "headers"];
        assert_eq!(bad_fields(update(&server, moved.clone(), &named).await), [values[0], fields[1]]);
        let named = ["authentication", "destination_url"];
        assert_eq!(bad_fields(update(&server, moved.clone(), &named).await), [fields[0], values[1]]);
        assert_eq!(bad_fields(update(&server, moved, &["*"]).await), values);
    }
    let read = v1::GetWebhookSubscriptionRequest { id: "sub_1".into() };
    let read = server.subscriptions().get_webhook_subscription(read).await.unwrap().into_inner();
    assert_eq!(read.webhook_subscription, Some(created));
    server.stop().await;
}

/// The path may change, and the same origin may be written differently; a move goes through once the secrets are sent
/// again or cleared, and when there are none.
#[tokio::test]
async fn destinations_move_without_stored_secrets() {
    let server = Server::start().await.with_instance().await;
    let named = ["destination_url", "headers", "authentication"];
    server.create_subscription(with("https://example.com/hook", "planted")).await.unwrap();
    for same in ["https://example.com/other?x=1", "https://EXAMPLE.com:443/hook"] {
        update(&server, with(same, MASK), &["destination_url"]).await.unwrap();
        update(&server, with(same, MASK), &["*"]).await.unwrap();
    }
    let renewed = update(&server, with("https://one.example/", "renewed"), &named).await.unwrap();
    assert_eq!((renewed.headers["x-key"].as_str(), renewed.authentication), (MASK, bearer(MASK)));
    let cleared =
        v1::WebhookSubscription { destination_url: "https://two.example/".into(), ..subscription("sub_1") };
    update(&server, cleared, &named).await.unwrap();
    let moved = update(&server, with("https://three.example/", MASK), &["destination_url"]).await.unwrap();
    assert_eq!((moved.destination_url.as_str(), moved.headers.len()), ("https://three.example/", 0));
    server.stop().await;
}

/// A client secret goes to the token URL: that one cannot move with the stored secret either.
#[tokio::test]
async fn client_secrets_do_not_move() {
    let server = Server::start().await.with_instance().await;
    let with = |token_url: &str, client_secret: &str| v1::WebhookSubscription {
        authentication: oauth2(token_url, client_secret),
        ..subscription("sub_1")
    };
    server.create_subscription(with("https://login.example.com/token", "planted")).await.unwrap();
    let field = ["webhook_subscription.authentication.oauth2.client_secret"];
    let moved = with("https://collector.example/token", MASK);
    for paths in [&["authentication"][..], &["*"]] {
        assert_eq!(bad_fields(update(&server, moved.clone(), paths).await), field);
    }
    update(&server, with("https://login.example.com/v2/token", MASK), &["authentication"]).await.unwrap();
    update(&server, with("https://collector.example/token", "renewed"), &["authentication"]).await.unwrap();
    server.stop().await;
}
