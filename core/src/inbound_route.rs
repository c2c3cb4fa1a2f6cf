//! An inbound route: where one provider account calls us, with the secrets that prove it.

use gateway_proto::v1;

use crate::{
    event::Provider,
    id::InboundRouteId,
    instance::{DISPLAY_NAME_CHARS_MAX, check_text},
    violation::FieldViolations,
};

mod credentials;
mod secret;

pub use secret::{
    RouteSecretKind, SECRET_BYTES_MAX, SECRETS_PER_KIND_MAX, SecretValue, basic_authorization,
    callback_token_can_suffice, header_line,
};

/// Longest `provider_account_id`, in characters.
pub const PROVIDER_ACCOUNT_ID_CHARS_MAX: usize = 128;

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
    /// Secrets, in the order given: with `callback_token_suffices` perhaps none, otherwise at least one, and one
    /// of each indispensable kind.
    pub secrets: Vec<(RouteSecretKind, SecretValue)>,
    /// Whether the token in the callback path is proof enough.
    pub callback_token_suffices: bool,
}

impl TryFrom<&v1::InboundRoute> for InboundRoute {
    type Error = FieldViolations;

    fn try_from(proto: &v1::InboundRoute) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let id = proto.id.parse::<InboundRouteId>();
        if let Err(error) = &id {
            violations.add("inbound_route.id", error.to_string());
        }
        let provider = Provider::from_proto(proto.provider);
        if provider.is_none() {
            violations.add("inbound_route.provider", format!("must be one of {}", provider_names()));
        }
        check_descriptions(&mut violations, proto);
        let secrets = provider.map(|provider| {
            check_callback_token(&mut violations, provider, proto.callback_token_suffices);
            credentials::secrets(&mut violations, provider, proto)
        });
        let (Ok(id), Some(provider), Some(secrets)) = (id, provider, secrets) else { return Err(violations) };
        violations.into_result(Self {
            id,
            provider,
            display_name: proto.display_name.clone(),
            provider_account_id: proto.provider_account_id.clone(),
            secrets,
            callback_token_suffices: proto.callback_token_suffices,
        })
    }
}

/// The names of all providers in protobuf, for descriptions of violations.
pub fn provider_names() -> String {
    Provider::ALL.map(|provider| provider.to_proto().as_str_name()).join(", ")
}

/// Notes it when the token in the path is to suffice at a provider that always signs.
pub fn check_callback_token(violations: &mut FieldViolations, provider: Provider, suffices: bool) {
    if suffices && !callback_token_can_suffice(provider) {
        let description = format!("must be false: {} signs its callbacks", provider.to_proto().as_str_name());
        violations.add("inbound_route.callback_token_suffices", description);
    }
}

/// Checks the fields of a route that may be changed: `display_name` and `provider_account_id`.
pub fn check_descriptions(violations: &mut FieldViolations, proto: &v1::InboundRoute) {
    check_text(violations, "inbound_route.display_name", &proto.display_name, 0, DISPLAY_NAME_CHARS_MAX);
    let field = "inbound_route.provider_account_id";
    check_text(violations, field, &proto.provider_account_id, 0, PROVIDER_ACCOUNT_ID_CHARS_MAX);
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
}
