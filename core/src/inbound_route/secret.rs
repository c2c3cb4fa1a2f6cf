//! What proves callbacks: the kinds of secrets, which provider takes which, and a secret's value.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_proto::v1;
use sha2::{Digest as _, Sha256};

use crate::{event::Provider, violation::FieldViolations};

/// Most live secrets of one kind.
pub const SECRETS_PER_KIND_MAX: usize = 8;
/// Longest secret, in bytes.
pub const SECRET_BYTES_MAX: usize = 1_024;

/// Headers that nobody sends as a proof: whoever calls sends them anyway, a proxy adds them, or HTTP gives them a
/// meaning of its own.
pub const UNPROVING_HEADERS: [&str; 32] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "date",
    "expect",
    "forwarded",
    "from",
    "host",
    "keep-alive",
    "origin",
    "pragma",
    "proxy-connection",
    "referer",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
];

/// Headers in which providers send a signature, or what belongs to one: another value with each callback, or the
/// same from everybody.
const SIGNATURE_HEADERS: [&str; 12] = [
    "messagebird-request-timestamp",
    "messagebird-signature",
    "messagebird-signature-jwt",
    "x-360dialog-signature",
    "x-hub-signature",
    "x-hub-signature-256",
    "x-twilio-signature",
    "x-twilio-webhooks-signature-settings",
    "x-webhook-hmac",
    "x-webhook-hmac-algorithm",
    "x-webhook-request-id",
    "x-webhook-timestamp",
];

/// The header that Evolution API takes for the key of its tokens, and never sends:
/// EvolutionAPI/evolution-api `src/api/integrations/event/webhook/webhook.controller.ts`.
const EVOLUTION_KEY_HEADER: &str = "jwt_key";

/// What a secret of a route is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteSecretKind {
    /// Meta: signs callbacks.
    MetaAppSecret,
    /// Meta: proves the handshake.
    MetaVerifyToken,
    /// `user:password` of HTTP Basic authentication.
    BasicCredential,
    /// `name: value` of a header.
    Header,
    /// Twilio: signs callbacks.
    TwilioAuthToken,
    /// Vonage: signs the bearer token.
    VonageSignatureSecret,
    /// MessageBird Conversations: signs the token.
    MessageBirdSigningKey,
    /// Bird Channels: signs callbacks.
    BirdSigningKey,
    /// WAHA: signs callbacks.
    WahaHmacKey,
    /// Evolution API: signs the bearer token.
    EvolutionJwtKey,
}

impl RouteSecretKind {
    const ALL: [Self; 10] = [
        Self::MetaAppSecret,
        Self::MetaVerifyToken,
        Self::BasicCredential,
        Self::Header,
        Self::TwilioAuthToken,
        Self::VonageSignatureSecret,
        Self::MessageBirdSigningKey,
        Self::BirdSigningKey,
        Self::WahaHmacKey,
        Self::EvolutionJwtKey,
    ];

    /// The kind of a protobuf value. None when unspecified or unknown to this build.
    pub fn from_proto(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| i32::from(kind.to_proto()) == number)
    }

    /// The protobuf value.
    pub const fn to_proto(self) -> v1::InboundRouteSecretKind {
        match self {
            Self::MetaAppSecret => v1::InboundRouteSecretKind::MetaAppSecret,
            Self::MetaVerifyToken => v1::InboundRouteSecretKind::MetaVerifyToken,
            Self::BasicCredential => v1::InboundRouteSecretKind::BasicCredential,
            Self::Header => v1::InboundRouteSecretKind::Header,
            Self::TwilioAuthToken => v1::InboundRouteSecretKind::TwilioAuthToken,
            Self::VonageSignatureSecret => v1::InboundRouteSecretKind::VonageSignatureSecret,
            Self::MessageBirdSigningKey => v1::InboundRouteSecretKind::MessagebirdSigningKey,
            Self::BirdSigningKey => v1::InboundRouteSecretKind::BirdSigningKey,
            Self::WahaHmacKey => v1::InboundRouteSecretKind::WahaHmacKey,
            Self::EvolutionJwtKey => v1::InboundRouteSecretKind::EvolutionJwtKey,
        }
    }

    /// The kinds that a provider's routes take.
    pub const fn of(provider: Provider) -> &'static [Self] {
        match provider {
            Provider::Meta => &[Self::MetaAppSecret, Self::MetaVerifyToken],
            Provider::Dialog360 | Provider::Infobip => &[Self::BasicCredential, Self::Header],
            Provider::Twilio => &[Self::TwilioAuthToken],
            Provider::Vonage => &[Self::VonageSignatureSecret],
            Provider::Gupshup => &[Self::Header],
            Provider::MessageBird => &[Self::MessageBirdSigningKey],
            Provider::Bird => &[Self::BirdSigningKey],
            Provider::Waha => &[Self::WahaHmacKey, Self::Header],
            Provider::Evolution => &[Self::EvolutionJwtKey, Self::Header],
        }
    }

    /// Whether a route cannot be without a secret of this kind: there is nothing else that could prove what it
    /// proves.
    pub const fn is_indispensable(self) -> bool {
        matches!(
            self,
            Self::MetaAppSecret
                | Self::MetaVerifyToken
                | Self::TwilioAuthToken
                | Self::MessageBirdSigningKey
                | Self::BirdSigningKey
        )
    }

    /// The kind with which a provider signs, of those whose routes take headers too, and its field in the provider's
    /// credentials.
    const fn beside_headers(provider: Provider) -> Option<(&'static str, Self)> {
        match provider {
            Provider::Waha => Some(("hmac_keys", Self::WahaHmacKey)),
            Provider::Evolution => Some(("jwt_keys", Self::EvolutionJwtKey)),
            _ => None,
        }
    }

    /// Checks one value for a route of `provider`: set, at most [`SECRET_BYTES_MAX`] bytes, without control
    /// characters, and of the kind's form. There is no minimum length: it is the provider's.
    pub fn check(self, provider: Provider, violations: &mut FieldViolations, field: &str, value: &str) {
        if value.is_empty() {
            violations.add(field, "must be set");
        } else if value.len() > SECRET_BYTES_MAX {
            violations.add(field, format!("must be at most {SECRET_BYTES_MAX} bytes long"));
        } else if value.chars().any(char::is_control) {
            // Mostly the end of the line that a file ends with.
            violations.add(field, "must not contain control characters");
        } else if self == Self::BasicCredential && basic_authorization(value).is_none() {
            violations.add(field, "must be `user:password`, neither empty");
        } else if self == Self::Header {
            match header_line(value) {
                None => {
                    violations.add(field, "must be `name: value`, a header's name and its value, neither empty");
                }
                Some((name, _)) if !is_proving(name) => violations.add(
                    field,
                    "must not be a header that everybody sends or a proxy adds: choose a name of your own, such as \
                     `x-hook-secret`",
                ),
                Some((name, _)) => {
                    if let Some(description) = why_no_secret(provider, name) {
                        violations.add(field, description);
                    }
                }
            }
        }
    }
}

/// Whether a header of this name can prove who sends it.
fn is_proving(name: &str) -> bool {
    !UNPROVING_HEADERS.iter().any(|unproving| unproving.eq_ignore_ascii_case(name))
}

/// Why a header of this name can never have the same secret in every callback of the provider, and what to give in
/// its place; None when it can.
fn why_no_secret(provider: Provider, name: &str) -> Option<String> {
    let is_key = provider == Provider::Evolution && name.eq_ignore_ascii_case(EVOLUTION_KEY_HEADER);
    let is_signature = SIGNATURE_HEADERS.iter().any(|header| header.eq_ignore_ascii_case(name));
    let reason = match (is_key, is_signature) {
        (true, _) => "must not be the header that holds the key of tokens, because it is never sent",
        (false, true) => "must not be a header that belongs to a signature, because no secret is in it",
        (false, false) => return None,
    };
    Some(match RouteSecretKind::beside_headers(provider) {
        Some((field, kind)) => {
            format!(
                "{reason}: give the key itself in `{field}` (a secret of `{}`)",
                kind.to_proto().as_str_name()
            )
        }
        None => format!("{reason}: choose a name of your own, such as `x-hook-secret`"),
    })
}

/// Whether the token in the callback path can be the only proof: of providers that cannot sign, or whose signing
/// can be switched off.
pub const fn callback_token_can_suffice(provider: Provider) -> bool {
    match provider {
        Provider::Meta | Provider::Twilio | Provider::MessageBird | Provider::Bird => false,
        Provider::Dialog360
        | Provider::Vonage
        | Provider::Infobip
        | Provider::Gupshup
        | Provider::Waha
        | Provider::Evolution => true,
    }
}

/// The `authorization` header of `user:password`, split at the first colon:
/// <https://www.rfc-editor.org/rfc/rfc7617#section-2>, in UTF-8. None when it has another form, or when either is
/// empty.
pub fn basic_authorization(credential: &str) -> Option<String> {
    let (user, password) = credential.split_once(':')?;
    let is_sendable = !user.is_empty() && !password.is_empty() && !credential.chars().any(char::is_control);
    is_sendable.then(|| format!("Basic {}", STANDARD.encode(credential)))
}

/// Name and value of `name: value`. None when it has another form: the name a token, the value visible ASCII,
/// <https://www.rfc-editor.org/rfc/rfc9110#section-5>.
pub fn header_line(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once(':')?;
    let value = value.trim_matches([' ', '\t']);
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_value = |byte: u8| (b' '..=b'~').contains(&byte) || byte == b'\t';
    let is_header =
        !name.is_empty() && name.bytes().all(is_token) && !value.is_empty() && value.bytes().all(is_value);
    is_header.then_some((name, value))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind has a protobuf value of its own, and belongs to at least one provider.
    #[test]
    fn kinds_round_trip() {
        for kind in RouteSecretKind::ALL {
            assert_eq!(RouteSecretKind::from_proto(kind.to_proto().into()), Some(kind));
            assert!(Provider::ALL.into_iter().any(|provider| RouteSecretKind::of(provider).contains(&kind)));
        }
        assert_eq!(RouteSecretKind::from_proto(0), None);
        assert_eq!(RouteSecretKind::from_proto(999), None);
    }

    /// A provider has a kind that is indispensable, or the token in the path can suffice: never neither, never
    /// both.
    #[test]
    fn every_provider_is_provable() {
        for provider in Provider::ALL {
            let needs = RouteSecretKind::of(provider).iter().any(|kind| kind.is_indispensable());
            assert_ne!(needs, callback_token_can_suffice(provider), "{}", provider.name());
        }
    }

    /// The documented vector: UTF-8, and a password may have colons.
    #[test]
    fn basic_credentials_are_encoded() {
        assert_eq!(
            basic_authorization("hook-user:p@ss:wörd").as_deref(),
            Some("Basic aG9vay11c2VyOnBAc3M6d8O2cmQ=")
        );
        for bad in ["", "user", "user:", ":password", "user:pass\nword"] {
            assert_eq!(basic_authorization(bad), None, "{bad:?}");
        }
    }

    /// A header line is split at the first colon and trimmed like HTTP does.
    #[test]
    fn header_lines_are_read() {
        assert_eq!(header_line("X-Hook-Secret: a b:c "), Some(("X-Hook-Secret", "a b:c")));
        assert_eq!(header_line("authorization:Bearer x"), Some(("authorization", "Bearer x")));
        for bad in ["", "x", "x:", "x: ", ": y", "a b: c", "x: ä", "x: y\r\nz: 1"] {
            assert_eq!(header_line(bad), None, "{bad:?}");
        }
    }

    /// No header that a stranger sends anyway is a secret, whatever its case; others are.
    #[test]
    fn secrets_are_no_headers_of_everybody() {
        let is_refused = |line: &str| {
            let mut violations = FieldViolations::new();
            RouteSecretKind::Header.check(Provider::Infobip, &mut violations, "value", line);
            !violations.0.is_empty()
        };
        for name in UNPROVING_HEADERS {
            assert!(is_refused(&format!("{name}: x")) && is_refused(&format!("{}:x", name.to_uppercase())));
        }
        for name in ["x-hook-secret", "authorization", "cookie", "x-host", "hosts"] {
            assert!(!is_refused(&format!("{name}: x")), "{name}");
        }
    }

    /// A header in which a provider sends its own proof is no secret on any route, nor is the one from which Evolution
    /// takes its key; what is said names the field for the key, and never the value.
    #[test]
    fn secrets_are_no_signatures() {
        let refusal = |provider, line: &str| {
            let mut violations = FieldViolations::new();
            RouteSecretKind::Header.check(provider, &mut violations, "value", line);
            violations.0.pop().map(|violation| violation.description)
        };
        for provider in Provider::ALL
            .into_iter()
            .filter(|one| RouteSecretKind::of(*one).contains(&RouteSecretKind::Header))
        {
            for name in SIGNATURE_HEADERS {
                for name in [name.to_owned(), name.to_uppercase()] {
                    let said = refusal(provider, &format!("{name}: planted")).unwrap();
                    assert!(!said.contains("planted"), "{said}");
                    let field =
                        RouteSecretKind::beside_headers(provider).map_or("x-hook-secret", |(field, _)| field);
                    assert!(said.contains(field), "{said}");
                }
            }
            let of_key = refusal(provider, "Jwt_Key: planted");
            assert_eq!(of_key.is_some(), provider == Provider::Evolution, "{provider:?}");
            assert_eq!(refusal(provider, "authorization: Bearer planted"), None);
        }
        let said = refusal(Provider::Evolution, "jwt_key: planted").unwrap();
        assert!(
            said.contains("`jwt_keys`") && said.contains("INBOUND_ROUTE_SECRET_KIND_EVOLUTION_JWT_KEY"),
            "{said}"
        );
        let said = refusal(Provider::Waha, "X-Webhook-Hmac: planted").unwrap();
        assert!(
            said.contains("`hmac_keys`") && said.contains("INBOUND_ROUTE_SECRET_KIND_WAHA_HMAC_KEY"),
            "{said}"
        );
    }

    /// The fingerprint is the head of the SHA-256 in hex: `printf abc | sha256sum`.
    #[test]
    fn fingerprint_is_sha256() {
        assert_eq!(SecretValue::new("abc").fingerprint(), "ba7816bf8f01");
    }
}
