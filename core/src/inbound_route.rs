//! An inbound route: where one provider account calls us, with the secrets that prove it.

use std::fmt;

use gateway_proto::v1;
use sha2::{Digest as _, Sha256};

use crate::{
    event::Provider,
    id::InboundRouteId,
    instance::{DISPLAY_NAME_CHARS_MAX, check_text},
    snapshot::RouteSecretKind,
    violation::FieldViolations,
};

/// Most live secrets of one kind.
pub const SECRETS_PER_KIND_MAX: usize = 8;
/// Longest secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 1_024;
/// Longest `provider_account_id`, in characters.
pub const PROVIDER_ACCOUNT_ID_CHARS_MAX: usize = 128;

/// The provider of a protobuf value. None when unspecified or unknown to this build.
pub fn provider_from_proto(number: i32) -> Option<Provider> {
    match v1::Provider::try_from(number) {
        Ok(v1::Provider::Meta) => Some(Provider::Meta),
        Ok(v1::Provider::Unspecified) | Err(_) => None,
    }
}

/// The secret kind of a protobuf value. None when unspecified or unknown to this build.
pub fn secret_kind_from_proto(number: i32) -> Option<RouteSecretKind> {
    match v1::InboundRouteSecretKind::try_from(number) {
        Ok(v1::InboundRouteSecretKind::MetaAppSecret) => Some(RouteSecretKind::MetaAppSecret),
        Ok(v1::InboundRouteSecretKind::MetaVerifyToken) => Some(RouteSecretKind::MetaVerifyToken),
        Ok(v1::InboundRouteSecretKind::Unspecified) | Err(_) => None,
    }
}

/// The protobuf value of a secret kind.
pub const fn secret_kind_to_proto(kind: RouteSecretKind) -> v1::InboundRouteSecretKind {
    match kind {
        RouteSecretKind::MetaAppSecret => v1::InboundRouteSecretKind::MetaAppSecret,
        RouteSecretKind::MetaVerifyToken => v1::InboundRouteSecretKind::MetaVerifyToken,
    }
}

/// The provider that uses secrets of a kind.
pub const fn provider_of(kind: RouteSecretKind) -> Provider {
    match kind {
        RouteSecretKind::MetaAppSecret | RouteSecretKind::MetaVerifyToken => Provider::Meta,
    }
}

/// A secret value, kept exactly as given. Prints masked.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Box<str>);

impl SecretValue {
    /// Wraps a value.
    pub fn new(value: &str) -> Self {
        Self(value.into())
    }

    /// The value itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// First 12 hex digits of its SHA-256, to tell secrets apart without showing them.
    pub fn fingerprint(&self) -> String {
        let digest = Sha256::digest(self.0.as_bytes());
        digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("••••")
    }
}

/// The path to register at the provider: `/callbacks/{provider}/{token}`.
pub fn callback_path(provider: Provider, token: &str) -> String {
    format!("/callbacks/{}/{token}", provider.name())
}

/// A validated inbound route as an operator asks for it, before it has a callback token and secret ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundRoute {
    /// Its id.
    pub id: InboundRouteId,
    /// The company that calls.
    pub provider: Provider,
    /// Shown to people.
    pub display_name: String,
    /// The provider's account; empty for any.
    pub provider_account_id: String,
    /// Secrets, in the order given, at least one of each kind that the provider needs.
    pub secrets: Vec<(RouteSecretKind, SecretValue)>,
}

impl TryFrom<&v1::InboundRoute> for InboundRoute {
    type Error = FieldViolations;

    fn try_from(proto: &v1::InboundRoute) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let id = proto.id.parse::<InboundRouteId>();
        if let Err(error) = &id {
            violations.add("inbound_route.id", error.to_string());
        }
        let provider = provider_from_proto(proto.provider);
        if provider.is_none() {
            violations.add("inbound_route.provider", "must be PROVIDER_META");
        }
        check_descriptions(&mut violations, proto);
        let mut secrets = Vec::new();
        match &proto.credentials {
            None => violations.add("inbound_route.meta", "must be set: the credentials of the provider"),
            Some(v1::inbound_route::Credentials::Meta(meta)) => {
                let mut take = |field: &str, kind, values: &[String]| {
                    check_secrets(&mut violations, field, values);
                    secrets.extend(values.iter().map(|value| (kind, SecretValue::new(value))));
                };
                take("inbound_route.meta.app_secrets", RouteSecretKind::MetaAppSecret, &meta.app_secrets);
                take(
                    "inbound_route.meta.verify_tokens",
                    RouteSecretKind::MetaVerifyToken,
                    &meta.verify_tokens,
                );
            }
        }
        let (Ok(id), Some(provider)) = (id, provider) else { return Err(violations) };
        violations.into_result(Self {
            id,
            provider,
            display_name: proto.display_name.clone(),
            provider_account_id: proto.provider_account_id.clone(),
            secrets,
        })
    }
}

/// Checks the fields of a route that may be changed: `display_name` and `provider_account_id`.
pub fn check_descriptions(violations: &mut FieldViolations, proto: &v1::InboundRoute) {
    check_text(violations, "inbound_route.display_name", &proto.display_name, 0, DISPLAY_NAME_CHARS_MAX);
    let field = "inbound_route.provider_account_id";
    check_text(violations, field, &proto.provider_account_id, 0, PROVIDER_ACCOUNT_ID_CHARS_MAX);
}

fn check_secrets(violations: &mut FieldViolations, field: &str, values: &[String]) {
    if values.is_empty() {
        violations.add(field, "must have at least one value");
    } else if values.len() > SECRETS_PER_KIND_MAX {
        violations.add(field, format!("must have at most {SECRETS_PER_KIND_MAX} values"));
    }
    for (index, value) in values.iter().enumerate().take(SECRETS_PER_KIND_MAX) {
        check_secret(violations, &format!("{field}[{index}]"), value);
        if values[..index].contains(value) {
            violations.add(format!("{field}[{index}]"), "must differ from the values before it");
        }
    }
}

/// Checks one secret value: set, and at most [`SECRET_BYTES_MAX`] bytes. There is no minimum length: it is
/// the provider's.
pub fn check_secret(violations: &mut FieldViolations, field: &str, value: &str) {
    if value.is_empty() {
        violations.add(field, "must be set");
    } else if value.len() > SECRET_BYTES_MAX {
        violations.add(field, format!("must be at most {SECRET_BYTES_MAX} bytes long"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> v1::InboundRoute {
        v1::InboundRoute {
            id: "route_1".into(),
            provider: v1::Provider::Meta.into(),
            credentials: Some(v1::inbound_route::Credentials::Meta(v1::Meta {
                app_secrets: vec!["one".into(), "two".into()],
                verify_tokens: vec!["token".into()],
            })),
            ..Default::default()
        }
    }

    fn fields(proto: &v1::InboundRoute) -> Vec<String> {
        let violations = InboundRoute::try_from(proto).map(|_| ()).unwrap_err();
        violations.0.into_iter().map(|violation| violation.field).collect()
    }

    fn with(app_secrets: &[&str], verify_tokens: &[&str]) -> v1::InboundRoute {
        let own = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let meta = v1::Meta { app_secrets: own(app_secrets), verify_tokens: own(verify_tokens) };
        v1::InboundRoute { credentials: Some(v1::inbound_route::Credentials::Meta(meta)), ..valid() }
    }

    /// A valid request keeps its secrets in their order, of any length.
    #[test]
    fn valid_route_converts() {
        let route = InboundRoute::try_from(&valid()).unwrap();
        let kinds: Vec<_> = route.secrets.iter().map(|(kind, value)| (*kind, value.reveal())).collect();
        assert_eq!(
            kinds,
            [
                (RouteSecretKind::MetaAppSecret, "one"),
                (RouteSecretKind::MetaAppSecret, "two"),
                (RouteSecretKind::MetaVerifyToken, "token"),
            ]
        );
        assert!(InboundRoute::try_from(&with(&["x"], &["y"])).is_ok());
    }

    /// Each bad field is named, and no description shows a secret.
    #[test]
    fn each_bad_field_is_named() {
        assert_eq!(fields(&v1::InboundRoute { id: "x".into(), ..valid() }), ["inbound_route.id"]);
        assert_eq!(fields(&v1::InboundRoute { provider: 0, ..valid() }), ["inbound_route.provider"]);
        assert_eq!(fields(&v1::InboundRoute { provider: 999, ..valid() }), ["inbound_route.provider"]);
        assert_eq!(fields(&v1::InboundRoute { credentials: None, ..valid() }), ["inbound_route.meta"]);
        let named = v1::InboundRoute { display_name: "a".repeat(101), ..valid() };
        assert_eq!(fields(&named), ["inbound_route.display_name"]);
        let blank = v1::InboundRoute { display_name: "  ".into(), ..valid() };
        assert_eq!(fields(&blank), ["inbound_route.display_name"]);
        assert_eq!(fields(&with(&[], &["y"])), ["inbound_route.meta.app_secrets"]);
        assert_eq!(fields(&with(&["x"], &[""])), ["inbound_route.meta.verify_tokens[0]"]);
        assert_eq!(fields(&with(&["x", "x"], &["y"])), ["inbound_route.meta.app_secrets[1]"]);
        assert_eq!(fields(&with(&["x"; 9], &["y"]))[0], "inbound_route.meta.app_secrets");
        let long = "planted-secret".repeat(100);
        let violations = InboundRoute::try_from(&with(&[&long], &["y"])).unwrap_err();
        assert!(!violations.to_string().contains("planted"));
    }

    /// The fingerprint is the head of the SHA-256 in hex: `printf abc | sha256sum`.
    #[test]
    fn fingerprint_is_sha256() {
        assert_eq!(SecretValue::new("abc").fingerprint(), "ba7816bf8f01");
    }
}
