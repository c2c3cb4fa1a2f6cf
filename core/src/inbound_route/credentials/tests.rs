use super::*;
use crate::inbound_route::{InboundRoute, SECRET_BYTES_MAX, callback_token_can_suffice};

/// The fields of each provider's credentials, in the order of [`RouteSecretKind::of`].
const FIELDS: [(Provider, &[&str]); 10] = [
    (Provider::Meta, &["app_secrets", "verify_tokens"]),
    (Provider::Dialog360, &["basic_credentials", "headers"]),
    (Provider::Twilio, &["auth_tokens"]),
    (Provider::Vonage, &["signature_secrets"]),
    (Provider::Infobip, &["basic_credentials", "headers"]),
    (Provider::Gupshup, &["headers"]),
    (Provider::MessageBird, &["signing_keys"]),
    (Provider::Bird, &["signing_keys"]),
    (Provider::Waha, &["hmac_keys", "headers"]),
    (Provider::Evolution, &["jwt_keys", "headers"]),
];

/// The credentials message of a provider, with the values of its first and second field.
fn message(provider: Provider, values: &[Vec<String>]) -> Credentials {
    let first = values[0].clone();
    let second = values.get(1).cloned().unwrap_or_default();
    match provider {
        Provider::Meta => Credentials::Meta(v1::Meta { app_secrets: first, verify_tokens: second }),
        Provider::Dialog360 => {
            Credentials::Dialog360(v1::Dialog360 { basic_credentials: first, headers: second })
        }
        Provider::Twilio => Credentials::Twilio(v1::Twilio { auth_tokens: first }),
        Provider::Vonage => Credentials::Vonage(v1::Vonage { signature_secrets: first }),
        Provider::Infobip => Credentials::Infobip(v1::Infobip { basic_credentials: first, headers: second }),
        Provider::Gupshup => Credentials::Gupshup(v1::Gupshup { headers: first }),
        Provider::MessageBird => Credentials::Messagebird(v1::MessageBird { signing_keys: first }),
        Provider::Bird => Credentials::Bird(v1::Bird { signing_keys: first }),
        Provider::Waha => Credentials::Waha(v1::Waha { hmac_keys: first, headers: second }),
        Provider::Evolution => Credentials::Evolution(v1::Evolution { jwt_keys: first, headers: second }),
    }
}

fn value(kind: RouteSecretKind, number: usize) -> String {
    match kind {
        RouteSecretKind::BasicCredential => format!("hook-user:planted:{number}"),
        RouteSecretKind::Header => format!("X-Hook-Secret: planted {number}"),
        _ => format!("planted-{number}"),
    }
}

fn route(provider: Provider, values: &[Vec<String>]) -> v1::InboundRoute {
    v1::InboundRoute {
        id: "route_1".into(),
        provider: provider.to_proto().into(),
        credentials: Some(message(provider, values)),
        ..Default::default()
    }
}

/// One good value in each field.
fn good(provider: Provider) -> Vec<Vec<String>> {
    RouteSecretKind::of(provider).iter().map(|kind| vec![value(*kind, 0)]).collect()
}

/// The fields that are refused; no description may show a value.
#[track_caller]
fn refused(route: &v1::InboundRoute) -> Vec<String> {
    let violations = InboundRoute::try_from(route).map(|_| ()).unwrap_err();
    assert!(!violations.to_string().contains("planted"), "{violations}");
    violations.0.into_iter().map(|violation| violation.field).collect()
}

/// Each provider's message becomes secrets of its kinds, in the order of its fields, exactly as given.
#[test]
fn every_provider_has_its_credentials() {
    for (provider, fields) in FIELDS {
        let kinds = RouteSecretKind::of(provider);
        assert_eq!(kinds.len(), fields.len());
        let values: Vec<Vec<_>> = kinds.iter().map(|kind| vec![value(*kind, 0), value(*kind, 1)]).collect();
        let route = InboundRoute::try_from(&route(provider, &values)).unwrap();
        let given: Vec<_> = kinds
            .iter()
            .zip(&values)
            .flat_map(|(kind, values)| values.iter().map(|value| (*kind, SecretValue::new(value))))
            .collect();
        assert_eq!((route.provider, route.secrets), (provider, given));
    }
}

/// Credentials of any other provider are refused under their own name.
#[test]
fn credentials_must_be_the_provider_s() {
    for (provider, _) in FIELDS {
        for (other, _) in FIELDS.into_iter().filter(|(other, _)| *other != provider) {
            let mixed = v1::InboundRoute {
                credentials: Some(message(other, &good(other))),
                ..route(provider, &good(provider))
            };
            assert_eq!(refused(&mixed), [format!("inbound_route.{}", other.name())], "{provider:?}");
        }
    }
}

/// Without a secret a route is refused, unless the token in its path suffices, which not every provider allows.
#[test]
fn proof_is_never_left_out_by_omission() {
    for (provider, fields) in FIELDS {
        let name = format!("inbound_route.{}", provider.name());
        let bare = v1::InboundRoute { credentials: None, ..route(provider, &good(provider)) };
        assert_eq!(refused(&bare), std::slice::from_ref(&name));
        let empty = route(provider, &vec![Vec::new(); fields.len()]);
        let suffices =
            |route: &v1::InboundRoute| v1::InboundRoute { callback_token_suffices: true, ..route.clone() };
        if callback_token_can_suffice(provider) {
            assert_eq!(refused(&empty), [name]);
            for route in [suffices(&bare), suffices(&empty), suffices(&route(provider, &good(provider)))] {
                assert!(InboundRoute::try_from(&route).unwrap().callback_token_suffices);
            }
        } else {
            let all: Vec<_> = fields.iter().map(|field| format!("{name}.{field}")).collect();
            assert_eq!(refused(&empty), all);
            let trusting = suffices(&route(provider, &good(provider)));
            assert_eq!(refused(&trusting), ["inbound_route.callback_token_suffices"]);
        }
    }
}

/// One secret in any field is enough where none is indispensable.
#[test]
fn alternatives_are_alternatives() {
    for (provider, fields) in FIELDS.into_iter().filter(|(provider, _)| callback_token_can_suffice(*provider))
    {
        for index in 0..fields.len() {
            let mut values = vec![Vec::new(); fields.len()];
            values[index] = vec![value(RouteSecretKind::of(provider)[index], 0)];
            assert_eq!(InboundRoute::try_from(&route(provider, &values)).unwrap().secrets.len(), 1);
        }
    }
}

/// A value that is missing, too long, malformed, given twice or one too many is named with its place.
#[test]
fn each_bad_value_is_named() {
    for (provider, fields) in FIELDS {
        for (index, (field, kind)) in fields.iter().zip(RouteSecretKind::of(provider)).enumerate() {
            let field = format!("inbound_route.{}.{field}", provider.name());
            let with = |own: Vec<String>| {
                let mut values = good(provider);
                values[index] = own;
                refused(&route(provider, &values))
            };
            let long = format!("{}{}", value(*kind, 0), "x".repeat(SECRET_BYTES_MAX));
            let mut bad = vec![String::new(), long];
            let malformed: &[&str] = match kind {
                RouteSecretKind::BasicCredential => {
                    &["planted", "planted:", ":planted", "planted:\nplanted", "planted\u{7f}:x"]
                }
                RouteSecretKind::Header => &[
                    "planted",
                    ": planted",
                    "planted:",
                    "planted: ",
                    "pla nted: x",
                    "planted: \u{e4}",
                    "planted: x\r\ny: z",
                    "planted: x\ty",
                    "host: planted",
                    "Content-Type: planted",
                    "X-Webhook-Hmac: planted",
                    "x-hub-signature-256: planted",
                ],
                _ => &["planted\n", "\tplanted", "pla\u{0}nted", "planted\u{85}"],
            };
            bad.extend(malformed.iter().map(|value| (*value).to_owned()));
            for bad in bad {
                assert_eq!(with(vec![value(*kind, 0), bad.clone()]), [format!("{field}[1]")], "{bad:?}");
            }
            assert_eq!(with(vec![value(*kind, 0), value(*kind, 0)]), [format!("{field}[1]")]);
            let many = (0..=SECRETS_PER_KIND_MAX).map(|number| value(*kind, number)).collect();
            assert_eq!(with(many), [field]);
        }
    }
}
