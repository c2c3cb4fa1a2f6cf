//! The credentials of a route as they are asked for: one message per provider, taken apart into secrets.

use gateway_proto::v1::{self, inbound_route::Credentials};

use super::{RouteSecretKind, SECRETS_PER_KIND_MAX, SecretValue};
use crate::{event::Provider, violation::FieldViolations};

/// A field of a credentials message.
struct Field<'a> {
    name: &'static str,
    kind: RouteSecretKind,
    values: &'a [String],
}

/// The secrets of a route, in the order of the fields; what is wrong with them is noted.
pub fn secrets(
    violations: &mut FieldViolations,
    provider: Provider,
    route: &v1::InboundRoute,
) -> Vec<(RouteSecretKind, SecretValue)> {
    let wanted = format!("inbound_route.{}", provider.name());
    let Some(credentials) = &route.credentials else {
        if !route.callback_token_suffices {
            violations.add(wanted, "must be set: the credentials of the provider");
        }
        return Vec::new();
    };
    let (owner, fields) = take_apart(credentials);
    if owner != provider {
        let given = format!("inbound_route.{}", owner.name());
        violations.add(given, format!("must not be set: the provider's credentials are `{wanted}`"));
        return Vec::new();
    }
    let mut secrets = Vec::new();
    for Field { name, kind, values } in &fields {
        let field = format!("{wanted}.{name}");
        if values.is_empty() && kind.is_indispensable() {
            violations.add(&field, "must have at least one value");
        }
        check_values(violations, provider, &field, *kind, values);
        secrets.extend(values.iter().map(|value| (*kind, SecretValue::new(value))));
    }
    let is_needed =
        !route.callback_token_suffices && !fields.iter().any(|field| field.kind.is_indispensable());
    if secrets.is_empty() && is_needed {
        let names: Vec<_> = fields.iter().map(|field| format!("`{}`", field.name)).collect();
        let description = format!(
            "must have at least one value in {}; or set `callback_token_suffices` to take callbacks that nothing \
             proves but the token in their path",
            names.join(" or ")
        );
        violations.add(wanted, description);
    }
    secrets
}

fn take_apart(credentials: &Credentials) -> (Provider, Vec<Field<'_>>) {
    use RouteSecretKind as Kind;
    let field = |name, kind, values| Field { name, kind, values };
    match credentials {
        Credentials::Meta(v1::Meta { app_secrets, verify_tokens }) => (
            Provider::Meta,
            vec![
                field("app_secrets", Kind::MetaAppSecret, app_secrets),
                field("verify_tokens", Kind::MetaVerifyToken, verify_tokens),
            ],
        ),
        Credentials::Dialog360(v1::Dialog360 { basic_credentials, headers }) => (
            Provider::Dialog360,
            vec![
                field("basic_credentials", Kind::BasicCredential, basic_credentials),
                field("headers", Kind::Header, headers),
            ],
        ),
        Credentials::Twilio(v1::Twilio { auth_tokens }) => {
            (Provider::Twilio, vec![field("auth_tokens", Kind::TwilioAuthToken, auth_tokens)])
        }
        Credentials::Vonage(v1::Vonage { signature_secrets }) => (
            Provider::Vonage,
            vec![field("signature_secrets", Kind::VonageSignatureSecret, signature_secrets)],
        ),
        Credentials::Infobip(v1::Infobip { basic_credentials, headers }) => (
            Provider::Infobip,
            vec![
                field("basic_credentials", Kind::BasicCredential, basic_credentials),
                field("headers", Kind::Header, headers),
            ],
        ),
        Credentials::Gupshup(v1::Gupshup { headers }) => {
            (Provider::Gupshup, vec![field("headers", Kind::Header, headers)])
        }
        Credentials::Messagebird(v1::MessageBird { signing_keys }) => {
            (Provider::MessageBird, vec![field("signing_keys", Kind::MessageBirdSigningKey, signing_keys)])
        }
        Credentials::Bird(v1::Bird { signing_keys }) => {
            (Provider::Bird, vec![field("signing_keys", Kind::BirdSigningKey, signing_keys)])
        }
        Credentials::Waha(v1::Waha { hmac_keys, headers }) => (
            Provider::Waha,
            vec![field("hmac_keys", Kind::WahaHmacKey, hmac_keys), field("headers", Kind::Header, headers)],
        ),
        Credentials::Evolution(v1::Evolution { jwt_keys, headers }) => (
            Provider::Evolution,
            vec![field("jwt_keys", Kind::EvolutionJwtKey, jwt_keys), field("headers", Kind::Header, headers)],
        ),
    }
}

fn check_values(
    violations: &mut FieldViolations,
    provider: Provider,
    field: &str,
    kind: RouteSecretKind,
    values: &[String],
) {
    if values.len() > SECRETS_PER_KIND_MAX {
        violations.add(field, format!("must have at most {SECRETS_PER_KIND_MAX} values"));
    }
    for (index, value) in values.iter().enumerate().take(SECRETS_PER_KIND_MAX) {
        kind.check(provider, violations, &format!("{field}[{index}]"), value);
        if values[..index].contains(value) {
            violations.add(format!("{field}[{index}]"), "must differ from the values before it");
        }
    }
}

#[cfg(test)]
mod tests;
