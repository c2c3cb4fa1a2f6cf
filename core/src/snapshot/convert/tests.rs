//! The settings of a subscription, and the credentials of a route, as agents read them.

use gateway_proto::v1::destination_authentication::Method;

use super::*;
use crate::snapshot::{Authentication, ClientCertificate, OAuth2, Ordering};

const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn config() -> v1::WebhookSubscriptionConfig {
    let subscription = v1::WebhookSubscription {
        id: "sub_1".into(),
        instance_id: "inst_1".into(),
        destination_url: "https://example.com/".into(),
        events: vec!["*".into()],
        ..Default::default()
    };
    v1::WebhookSubscriptionConfig {
        webhook_subscription: Some(subscription),
        signing_secrets: vec![v1::SigningSecret { value: SECRET.into(), ..Default::default() }],
        ..Default::default()
    }
}

fn with(change: impl FnOnce(&mut v1::WebhookSubscription)) -> v1::WebhookSubscriptionConfig {
    let mut config = config();
    change(config.webhook_subscription.as_mut().unwrap());
    config
}

fn bad_fields(config: &v1::WebhookSubscriptionConfig) -> Vec<String> {
    let violations = SubscriptionConfig::try_from(config).err().unwrap();
    violations.0.into_iter().map(|violation| violation.field).collect()
}

fn key(seed: u8) -> v1::SigningSecret {
    v1::SigningSecret { value: SigningKey::from_seed(&[seed; 32]).reveal(), ..Default::default() }
}

/// A subscription that says nothing, such as one of an older control plane, has the documented defaults.
#[test]
fn unset_settings_are_the_defaults() {
    let read = SubscriptionConfig::try_from(&config()).unwrap();
    assert_eq!(*read.retry_schedule, retry::SCHEDULE);
    assert_eq!((read.rate_per_second_max, read.ordering), (None, Ordering::None));
    assert!(read.authentication.is_none() && read.client_certificate.is_none());
    assert!(read.extra_ca_pem.is_none() && read.signing_keys.is_empty());
}

/// Each setting arrives as it was given.
#[test]
fn settings_arrive() {
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    let config = with(|subscription| {
        subscription.retry_policy = Some(v1::RetryPolicy { delays: vec![seconds(3), seconds(7)] });
        subscription.rate_per_second_max = 10;
        subscription.set_ordering(v1::DeliveryOrdering::Contact);
        subscription.extra_ca_pem = "issuers".into();
        subscription.client_certificate = Some(v1::ClientCertificate {
            certificate_chain_pem: "chain".into(),
            private_key_pem: "planted".into(),
        });
    });
    let read = SubscriptionConfig::try_from(&config).unwrap();
    assert_eq!(*read.retry_schedule, [0, 3, 7].map(Duration::from_secs));
    assert_eq!(read.rate_per_second_max.map(NonZeroU32::get), Some(10));
    assert_eq!(read.ordering, Ordering::Contact { attempts_max: 5 });
    assert_eq!(read.extra_ca_pem.as_deref(), Some("issuers"));
    let certificate = read.client_certificate.unwrap();
    assert_eq!(*certificate, ClientCertificate { chain_pem: "chain".into(), key_pem: "planted".into() });
    assert!(!format!("{certificate:?}").contains("planted"));
    let parked = with(|subscription| {
        subscription.set_ordering(v1::DeliveryOrdering::Contact);
        subscription.ordering_attempts_max = 2;
    });
    let parked = SubscriptionConfig::try_from(&parked).unwrap();
    assert_eq!(parked.ordering, Ordering::Contact { attempts_max: 2 });
}

/// Each way to authenticate arrives, and prints masked; one that this agent does not know is refused, since
/// webhooks without it would be refused by the destination.
#[test]
fn authentication_arrives() {
    let header = v1::HeaderAuthentication { name: "X-Key".into(), value: "planted".into() };
    let basic = v1::BasicAuthentication { username: "crm".into(), password: "planted".into() };
    let oauth2 = v1::OAuth2Authentication {
        token_url: "https://login.example.com/token".into(),
        client_id: "crm".into(),
        client_secret: "planted".into(),
        scopes: vec!["a".into(), "b".into()],
    };
    let expected_oauth2 = OAuth2 {
        token_url: "https://login.example.com/token".parse().unwrap(),
        client_id: "crm".into(),
        client_secret: "planted".into(),
        scopes: vec!["a".into(), "b".into()],
    };
    for (method, expected) in [
        (Method::Header(header), Authentication::Header { name: "x-key".into(), value: "planted".into() }),
        (Method::Basic(basic), Authentication::Basic { username: "crm".into(), password: "planted".into() }),
        (
            Method::Bearer(v1::BearerAuthentication { token: "planted".into() }),
            Authentication::Bearer { token: "planted".into() },
        ),
        (Method::Oauth2(oauth2), Authentication::OAuth2(Box::new(expected_oauth2))),
    ] {
        let method = Some(method);
        let config = with(|subscription| {
            subscription.authentication = Some(v1::DestinationAuthentication { method });
        });
        let read = SubscriptionConfig::try_from(&config).unwrap().authentication.unwrap();
        assert!(read == expected && !format!("{read:?}").contains("planted"), "{read:?}");
    }
    let unknown = with(|subscription| {
        subscription.authentication = Some(v1::DestinationAuthentication { method: None });
    });
    assert_eq!(bad_fields(&unknown), ["authentication.method"]);
}

/// Keys sign, newest first, only for a subscription that asks for it; then there must be one.
#[test]
fn keys_sign_when_asked_for() {
    let mut config = config();
    config.signing_keys = vec![key(1), key(2)];
    assert!(SubscriptionConfig::try_from(&config).unwrap().signing_keys.is_empty());
    config.webhook_subscription.as_mut().unwrap().asymmetric_signature = true;
    let read = SubscriptionConfig::try_from(&config).unwrap();
    assert!(read.signing_keys[0].0 == SigningKey::from_seed(&[1; 32]));
    assert!(read.signing_keys[1].0 == SigningKey::from_seed(&[2; 32]));
    config.signing_keys[1].value = "whsk_".into();
    assert_eq!(bad_fields(&config), ["signing_keys[1].value"]);
    config.signing_keys.clear();
    assert_eq!(bad_fields(&config), ["signing_keys"]);
}

/// A route arrives with its provider, its secrets in their order, and what suffices; a provider or a kind of
/// secret that this agent does not know is named.
#[test]
fn routes_arrive() {
    let secret = |id: &str, kind: v1::InboundRouteSecretKind| v1::InboundRouteSecretValue {
        id: id.into(),
        kind: kind.into(),
        value: format!("planted {id}"),
    };
    for provider in Provider::ALL {
        let kinds = RouteSecretKind::of(provider);
        let config = v1::InboundRouteConfig {
            id: "route_1".into(),
            provider: provider.to_proto().into(),
            callback_token: "token".into(),
            provider_account_id: String::new(),
            secrets: kinds.iter().map(|kind| secret("key_1", kind.to_proto())).collect(),
            callback_token_suffices: provider == Provider::Waha,
        };
        let read = RouteConfig::try_from(&config).unwrap();
        assert_eq!((read.provider, read.callback_token_suffices), (provider, provider == Provider::Waha));
        assert!(read.secrets.iter().map(|secret| secret.kind).eq(kinds.iter().copied()));
        assert_eq!(read.secrets_of(kinds[0]).collect::<Vec<_>>(), ["planted key_1"]);
        let mut newer = v1::InboundRouteConfig { provider: 999, ..config };
        newer.secrets[0].kind = 999;
        let violations = RouteConfig::try_from(&newer).err().unwrap();
        let fields: Vec<_> = violations.0.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["provider", "secrets[0].kind"]);
        assert!(!violations.to_string().contains("planted"));
    }
}
