//! Retry policy, rate, ordering, credentials and certificates of subscriptions.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_proto::v1::destination_authentication::Method;
use rcgen::{CertifiedKey, KeyPair};

use super::*;

fn certificate() -> (String, String) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(vec!["client.example.com".to_owned()]).unwrap();
    (pem("CERTIFICATE", cert.der()), pem("PRIVATE KEY", &signing_key.serialize_der()))
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

fn authentication(method: Method) -> Option<v1::DestinationAuthentication> {
    Some(v1::DestinationAuthentication { method: Some(method) })
}

fn oauth2(client_secret: &str) -> Option<v1::DestinationAuthentication> {
    authentication(Method::Oauth2(v1::OAuth2Authentication {
        token_url: "https://login.example.com/token".into(),
        client_id: "crm".into(),
        client_secret: client_secret.into(),
        scopes: vec!["webhooks".into()],
    }))
}

fn bearer(token: &str) -> Option<v1::DestinationAuthentication> {
    authentication(Method::Bearer(v1::BearerAuthentication { token: token.into() }))
}

/// A subscription with every setting.
fn full() -> v1::WebhookSubscription {
    let (certificate_chain_pem, private_key_pem) = certificate();
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    v1::WebhookSubscription {
        retry_policy: Some(v1::RetryPolicy { delays: vec![seconds(1), seconds(60)] }),
        rate_per_second_max: 10,
        ordering: v1::DeliveryOrdering::Contact.into(),
        ordering_attempts_max: 3,
        authentication: oauth2("planted-secret"),
        client_certificate: Some(v1::ClientCertificate { certificate_chain_pem, private_key_pem }),
        extra_ca_pem: certificate().0,
        asymmetric_signature: true,
        ..subscription("sub_1")
    }
}

/// What is stored, secrets included, as agents get it.
async fn stored(server: &Server) -> v1::WebhookSubscription {
    let store = crate::store::Store::open(server._directory.path()).await.unwrap();
    let stored = store.webhook_subscription("sub_1").await.unwrap().unwrap();
    store.close().await;
    stored
}

/// Every setting is stored as given and read back, secrets as `***`.
#[tokio::test]
async fn settings_round_trip() {
    let server = Server::start().await.with_instance().await;
    let given = full();
    let created = server.create_subscription(given.clone()).await.unwrap();
    let request = v1::GetWebhookSubscriptionRequest { id: "sub_1".into() };
    let read = server.subscriptions().get_webhook_subscription(request).await.unwrap().into_inner();
    let read = read.webhook_subscription.unwrap();
    assert_eq!(read, created);
    let listed = v1::ListWebhookSubscriptionsRequest::default();
    let listed = server.subscriptions().list_webhook_subscriptions(listed).await.unwrap().into_inner();
    assert_eq!(listed.webhook_subscriptions, std::slice::from_ref(&read));
    let mut masked = given.clone();
    masked.authentication = oauth2("***");
    masked.client_certificate.as_mut().unwrap().private_key_pem = "***".into();
    for (shown, expected) in [(read, masked), (stored(&server).await, given)] {
        let v1::WebhookSubscription { tenant_id, state, create_time, update_time, etag, .. } = shown.clone();
        assert_eq!(
            shown,
            v1::WebhookSubscription { tenant_id, state, create_time, update_time, etag, ..expected }
        );
    }
    server.stop().await;
}

/// Each path of the mask changes its field and no other, and `*` changes all of them.
#[tokio::test]
async fn each_setting_has_its_path() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let wanted = full();
    let mut expected = stored(&server).await;
    for path in [
        "retry_policy",
        "rate_per_second_max",
        "ordering",
        "ordering_attempts_max",
        "authentication",
        "client_certificate",
        "extra_ca_pem",
        "asymmetric_signature",
    ] {
        update(&server, wanted.clone(), &[path]).await.unwrap();
        let all = wanted.clone();
        match path {
            "retry_policy" => expected.retry_policy = all.retry_policy,
            "rate_per_second_max" => expected.rate_per_second_max = all.rate_per_second_max,
            "ordering" => expected.ordering = all.ordering,
            "ordering_attempts_max" => expected.ordering_attempts_max = all.ordering_attempts_max,
            "authentication" => expected.authentication = all.authentication,
            "client_certificate" => expected.client_certificate = all.client_certificate,
            "extra_ca_pem" => expected.extra_ca_pem = all.extra_ca_pem,
            _ => expected.asymmetric_signature = all.asymmetric_signature,
        }
        let now = stored(&server).await;
        (expected.update_time, expected.etag) = (now.update_time, now.etag.clone());
        assert_eq!(now, expected, "{path}");
    }
    let plain = update(&server, subscription("sub_1"), &["*"]).await.unwrap();
    assert_eq!((plain.authentication, plain.client_certificate, plain.retry_policy), (None, None, None));
    assert_eq!((plain.rate_per_second_max, plain.extra_ca_pem.as_str()), (0, ""));
    server.stop().await;
}

/// The mask in place of a secret keeps the stored one of the same kind; there is nothing to keep otherwise.
#[tokio::test]
async fn masks_keep_secrets() {
    let server = Server::start().await.with_instance().await;
    let (chain, key) = certificate();
    let with_key = |key: &str| {
        Some(v1::ClientCertificate { certificate_chain_pem: chain.clone(), private_key_pem: key.to_owned() })
    };
    let masked = v1::WebhookSubscription {
        authentication: bearer("***"),
        client_certificate: with_key("***"),
        ..subscription("sub_1")
    };
    let token = ["webhook_subscription.authentication.bearer.token"];
    assert_eq!(bad_fields(server.create_subscription(masked.clone()).await), token);
    let given = v1::WebhookSubscription {
        authentication: bearer("planted"),
        client_certificate: with_key(&key),
        ..subscription("sub_1")
    };
    server.create_subscription(given.clone()).await.unwrap();
    update(&server, masked.clone(), &["authentication", "client_certificate"]).await.unwrap();
    let kept = stored(&server).await;
    assert_eq!(
        (kept.authentication, kept.client_certificate),
        (given.authentication, given.client_certificate)
    );
    let other = v1::WebhookSubscription { authentication: oauth2("***"), ..subscription("sub_1") };
    let field = ["webhook_subscription.authentication.oauth2.client_secret"];
    assert_eq!(bad_fields(update(&server, other, &["authentication"]).await), field);
    update(&server, subscription("sub_1"), &["client_certificate"]).await.unwrap();
    let field = ["webhook_subscription.client_certificate.private_key_pem"];
    assert_eq!(bad_fields(update(&server, masked, &["client_certificate"]).await), field);
    server.stop().await;
}

/// A key of another certificate, a certificate that is none and an unusable key are found when they are given.
#[tokio::test]
async fn certificates_are_checked() {
    let server = Server::start().await.with_instance().await;
    let ((chain, key), another) =
        (certificate(), pem("PRIVATE KEY", &KeyPair::generate().unwrap().serialize_der()));
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let create = async |chain: &str, key: &str, extra_ca_pem: &str| {
        let certificate =
            v1::ClientCertificate { certificate_chain_pem: chain.into(), private_key_pem: key.into() };
        let wanted = v1::WebhookSubscription {
            client_certificate: Some(certificate),
            extra_ca_pem: extra_ca_pem.into(),
            ..subscription("sub_1")
        };
        server.create_subscription(wanted).await
    };
    let certificate = "webhook_subscription.client_certificate";
    for (chain, key, field) in [
        (&*chain, &*another, "private_key_pem"),
        (&*chain, no_key, "private_key_pem"),
        (no_certificate, &*key, "certificate_chain_pem"),
    ] {
        assert_eq!(bad_fields(create(chain, key, "").await), [format!("{certificate}.{field}")]);
    }
    let issuers = format!("{chain}{no_certificate}");
    assert_eq!(bad_fields(create(&chain, &key, &issuers).await), ["webhook_subscription.extra_ca_pem"]);
    create(&chain, &key, &chain).await.unwrap();
    server.stop().await;
}

/// Bad values come back as violations that name their fields, all at once, and name no secret.
#[tokio::test]
async fn bad_settings_are_named() {
    let server = Server::start().await.with_instance().await;
    let wanted = v1::WebhookSubscription {
        retry_policy: Some(v1::RetryPolicy { delays: vec![prost_types::Duration::default()] }),
        rate_per_second_max: 1_001,
        ordering: v1::DeliveryOrdering::Contact.into(),
        ordering_attempts_max: 21,
        authentication: bearer("planted secret"),
        extra_ca_pem: "planted".into(),
        ..subscription("sub_1")
    };
    let refused = server.create_subscription(wanted).await;
    assert!(!format!("{refused:?}").contains("planted"));
    let fields = [
        "retry_policy.delays[0]",
        "rate_per_second_max",
        "ordering_attempts_max",
        "authentication.bearer.token",
        "extra_ca_pem",
    ];
    assert_eq!(bad_fields(refused), fields.map(|field| format!("webhook_subscription.{field}")));
    server.stop().await;
}
