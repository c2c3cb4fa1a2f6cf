//! What holds for the routes of every provider, by a table.

use gateway_core::{
    event::Provider,
    inbound_route::{RouteSecretKind, SECRETS_PER_KIND_MAX, callback_token_can_suffice},
};
use v1::{InboundRouteSecretKind as Kind, inbound_route::Credentials};

use super::*;

/// Each provider, and the fields of its credentials with the kinds of secrets that they hold.
const PROVIDERS: [(Provider, &[(&str, Kind)]); 10] = [
    (Provider::Meta, &[("app_secrets", Kind::MetaAppSecret), ("verify_tokens", Kind::MetaVerifyToken)]),
    (Provider::Dialog360, &[("basic_credentials", Kind::BasicCredential), ("headers", Kind::Header)]),
    (Provider::Twilio, &[("auth_tokens", Kind::TwilioAuthToken)]),
    (Provider::Vonage, &[("signature_secrets", Kind::VonageSignatureSecret)]),
    (Provider::Infobip, &[("basic_credentials", Kind::BasicCredential), ("headers", Kind::Header)]),
    (Provider::Gupshup, &[("headers", Kind::Header)]),
    (Provider::MessageBird, &[("signing_keys", Kind::MessagebirdSigningKey)]),
    (Provider::Bird, &[("signing_keys", Kind::BirdSigningKey)]),
    (Provider::Waha, &[("hmac_keys", Kind::WahaHmacKey), ("headers", Kind::Header)]),
    (Provider::Evolution, &[("jwt_keys", Kind::EvolutionJwtKey), ("headers", Kind::Header)]),
];

/// The credentials of a provider, with the values of its first and second field.
fn credentials(provider: Provider, values: &[Vec<String>]) -> Credentials {
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

/// A value of the form that the kind wants, which must never be read back.
fn value(kind: Kind, number: usize) -> String {
    match kind {
        Kind::BasicCredential => format!("planted-user:planted:{number}"),
        Kind::Header => format!("x-hook-secret: planted {number}"),
        _ => format!("planted-{number}"),
    }
}

fn good(fields: &[(&str, Kind)]) -> Vec<Vec<String>> {
    fields.iter().map(|(_, kind)| vec![value(*kind, 0)]).collect()
}

/// A route `route_1` of the provider.
fn route_of(provider: Provider, values: &[Vec<String>]) -> v1::InboundRoute {
    v1::InboundRoute {
        provider: provider.to_proto().into(),
        credentials: Some(credentials(provider, values)),
        ..route("route_1")
    }
}

/// A route of a provider that nothing proves but the token in its path.
fn trusting_route(provider: Provider) -> v1::InboundRoute {
    v1::InboundRoute {
        credentials: None,
        callback_token_suffices: true,
        provider: provider.to_proto().into(),
        ..route("route_1")
    }
}

async fn get(server: &Server) -> v1::InboundRoute {
    let request = v1::GetInboundRouteRequest { id: "route_1".into() };
    server.routes().get_inbound_route(request).await.unwrap().into_inner().inbound_route.unwrap()
}

async fn delete(server: &Server) {
    let request = v1::DeleteInboundRouteRequest { id: "route_1".into(), ..Default::default() };
    server.routes().delete_inbound_route(request).await.unwrap();
}

fn kinds(route: &v1::InboundRoute) -> Vec<Kind> {
    route.secrets.iter().map(v1::InboundRouteSecret::kind).collect()
}

/// Every kind of secret rotates: another is added, both are live, the old one goes; and no answer ever shows a
/// value.
#[tokio::test]
async fn every_kind_of_secret_rotates() {
    let server = Server::start().await;
    for (provider, fields) in PROVIDERS {
        let created = create(&server, route_of(provider, &good(fields))).await.unwrap();
        assert!(created.callback_path.starts_with(&format!("/callbacks/{}/", provider.name())));
        assert_eq!(kinds(&created), fields.iter().map(|(_, kind)| *kind).collect::<Vec<_>>());
        for (_, kind) in fields {
            let old = created.secrets.iter().find(|secret| secret.kind() == *kind).unwrap();
            let repeated = add(&server, *kind, &value(*kind, 0)).await;
            assert_eq!(refusal(repeated), (Code::AlreadyExists, "SECRET_EXISTS".into()));
            let new = add(&server, *kind, &value(*kind, 1)).await.unwrap();
            assert_ne!(new.fingerprint, old.fingerprint);
            let both = get(&server).await;
            assert_eq!(both.secrets.iter().filter(|secret| secret.kind() == *kind).count(), 2);
            let after = remove(&server, &old.id).await.unwrap();
            assert!(after.secrets.contains(&new) && !after.secrets.contains(old));
            for answer in [format!("{new:?}"), format!("{both:?}"), format!("{after:?}")] {
                assert!(!answer.contains("planted"), "{answer}");
            }
        }
        assert!(!format!("{created:?}").contains("planted"));
        delete(&server).await;
    }
    server.stop().await;
}

/// The last secret of a kind that nothing else replaces stays, and so does the last one of all; once the token in
/// the path suffices, the last one may go, and then it suffices for good until there is a secret again.
#[tokio::test]
async fn something_always_proves_callbacks() {
    let server = Server::start().await;
    for (provider, fields) in PROVIDERS {
        let created = create(&server, route_of(provider, &good(fields))).await.unwrap();
        let trusting = trusting_route(provider);
        let (last, others) = created.secrets.split_last().unwrap();
        if !callback_token_can_suffice(provider) {
            for secret in &created.secrets {
                let refused = remove(&server, &secret.id).await;
                assert_eq!(refusal(refused), (Code::FailedPrecondition, "LAST_SECRET".into()));
            }
            let refused = update(&server, trusting, &["callback_token_suffices"]).await;
            assert_eq!(bad_fields(refused), ["inbound_route.callback_token_suffices"]);
            delete(&server).await;
            continue;
        }
        for secret in others {
            remove(&server, &secret.id).await.unwrap();
        }
        let refused = remove(&server, &last.id).await;
        assert!(refused.as_ref().unwrap_err().message().contains("callback_token_suffices"));
        assert_eq!(refusal(refused), (Code::FailedPrecondition, "LAST_SECRET".into()));
        let updated = update(&server, trusting.clone(), &["callback_token_suffices"]).await.unwrap();
        assert!(updated.callback_token_suffices);
        assert_eq!(remove(&server, &last.id).await.unwrap().secrets, []);
        let strict = v1::InboundRoute { callback_token_suffices: false, ..trusting };
        let refused = update(&server, strict.clone(), &["callback_token_suffices"]).await;
        assert!(refused.as_ref().unwrap_err().message().contains("AddInboundRouteSecret"));
        assert_eq!(refusal(refused), (Code::FailedPrecondition, "NO_SECRET".into()));
        let (_, kind) = fields[0];
        add(&server, kind, &value(kind, 1)).await.unwrap();
        let updated = update(&server, strict, &["callbackTokenSuffices"]).await.unwrap();
        assert!(!updated.callback_token_suffices && get(&server).await == updated);
        delete(&server).await;
    }
    server.stop().await;
}

/// A route without a secret is made only by saying so, together with an instance too, and where the provider does
/// not always sign.
#[tokio::test]
async fn the_token_in_the_path_suffices_by_word_only() {
    let server = Server::start().await;
    for (provider, _) in PROVIDERS {
        let trusting = trusting_route(provider);
        let silent = v1::InboundRoute { callback_token_suffices: false, ..trusting.clone() };
        assert_eq!(bad_fields(create(&server, silent).await), [format!("inbound_route.{}", provider.name())]);
        let request = v1::CreateInstanceRequest {
            instance: Some(instance("inst_1", "1001")),
            inbound_route: Some(trusting.clone()),
            ..Default::default()
        };
        let made = server.instances().create_instance(request).await;
        if !callback_token_can_suffice(provider) {
            assert_eq!(bad_fields(made), ["inbound_route.callback_token_suffices"]);
            assert_eq!(
                bad_fields(create(&server, trusting).await),
                ["inbound_route.callback_token_suffices"]
            );
            continue;
        }
        assert!(made.unwrap().into_inner().inbound_route.unwrap().callback_token_suffices);
        assert!(get(&server).await.callback_token_suffices);
        let request = v1::DeleteInstanceRequest { id: "inst_1".into(), ..Default::default() };
        server.instances().delete_instance(request).await.unwrap();
        delete(&server).await;
    }
    server.stop().await;
}

/// A kind of another provider is refused, and the text names those that fit.
#[tokio::test]
async fn kinds_must_fit_the_provider() {
    let server = Server::start().await;
    let all: Vec<Kind> =
        (0..64).filter_map(RouteSecretKind::from_proto).map(RouteSecretKind::to_proto).collect();
    assert_eq!(all.len(), 10);
    for (provider, fields) in PROVIDERS {
        create(&server, route_of(provider, &good(fields))).await.unwrap();
        for kind in all.iter().filter(|kind| fields.iter().all(|(_, own)| own != *kind)) {
            let refused = add(&server, *kind, &value(*kind, 1)).await;
            let message = refused.as_ref().unwrap_err().message();
            assert!(fields.iter().all(|(_, own)| message.contains(own.as_str_name())), "{message}");
            assert!(!message.contains("planted"), "{message}");
            assert_eq!(bad_fields(refused), ["kind"]);
        }
        assert_eq!(bad_fields(add(&server, Kind::Unspecified, "").await), ["kind", "value"]);
        delete(&server).await;
    }
    server.stop().await;
}

/// A malformed, a repeated and a ninth value are refused alike at creation and when added, and never shown.
#[tokio::test]
async fn bad_values_are_refused() {
    let server = Server::start().await;
    for (provider, fields) in PROVIDERS {
        for (index, (field, kind)) in fields.iter().enumerate() {
            let path = format!("inbound_route.{}.{field}", provider.name());
            let with = |values: Vec<String>| {
                let mut all = good(fields);
                all[index] = values;
                create(&server, route_of(provider, &all))
            };
            let bad: &[&str] = match kind {
                Kind::BasicCredential => &["", "planted", ":planted", "planted:\n"],
                Kind::Header => {
                    &["", "planted", "planted:", ": planted", "a planted: x", "planted: x\r\ny: z"]
                }
                _ => &[""],
            };
            for bad in bad {
                let refused = with(vec![value(*kind, 0), (*bad).to_owned()]).await;
                assert!(!format!("{refused:?}").contains("planted"), "{refused:?}");
                assert_eq!(bad_fields(refused), [format!("{path}[1]")], "{bad:?}");
            }
            let repeated = with(vec![value(*kind, 0), value(*kind, 0)]).await;
            assert_eq!(bad_fields(repeated), [format!("{path}[1]")]);
            let many = |count| (0..count).map(|number| value(*kind, number)).collect::<Vec<_>>();
            assert_eq!(bad_fields(with(many(SECRETS_PER_KIND_MAX + 1)).await), [path]);
            with(many(SECRETS_PER_KIND_MAX)).await.unwrap();
            for bad in bad {
                let refused = add(&server, *kind, bad).await;
                assert!(!format!("{refused:?}").contains("planted"), "{refused:?}");
                assert_eq!(bad_fields(refused), ["value"]);
            }
            let ninth = add(&server, *kind, &value(*kind, 99)).await;
            assert_eq!(refusal(ninth), (Code::FailedPrecondition, "TOO_MANY_SECRETS".into()));
            delete(&server).await;
        }
    }
    server.stop().await;
}

/// Credentials of another provider are refused under their own name.
#[tokio::test]
async fn credentials_must_be_the_provider_s() {
    let server = Server::start().await;
    for ((provider, _), (other, fields)) in PROVIDERS.into_iter().zip(PROVIDERS.into_iter().cycle().skip(1)) {
        let mixed =
            v1::InboundRoute { provider: provider.to_proto().into(), ..route_of(other, &good(fields)) };
        assert_eq!(bad_fields(create(&server, mixed).await), [format!("inbound_route.{}", other.name())]);
    }
    server.stop().await;
}

/// Routes are listed by any provider.
#[tokio::test]
async fn routes_are_listed_by_provider() {
    let server = Server::start().await;
    for (provider, fields) in PROVIDERS {
        let id = format!("route-{}", provider.name());
        create(&server, v1::InboundRoute { id, ..route_of(provider, &good(fields)) }).await.unwrap();
    }
    for (provider, _) in PROVIDERS {
        let request =
            v1::ListInboundRoutesRequest { provider: provider.to_proto().into(), ..Default::default() };
        let listed = server.routes().list_inbound_routes(request).await.unwrap().into_inner().inbound_routes;
        let ids: Vec<_> = listed.iter().map(|route| route.id.as_str()).collect();
        assert_eq!(ids, [format!("route-{}", provider.name())]);
    }
    server.stop().await;
}
