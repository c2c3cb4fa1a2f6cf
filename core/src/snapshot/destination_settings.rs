//! How a subscription's deliveries are ordered, and how its webhooks prove to the destination that they may
//! come in. Nothing here prints a secret.

use std::fmt;

use gateway_proto::v1;

use crate::{snapshot::convert::parsed, violation::FieldViolations};

/// Failed attempts after which an ordered delivery is parked, when the subscription does not say.
pub const ORDERING_ATTEMPTS_DEFAULT: u32 = 5;

/// In which order the deliveries of a subscription are attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// Each when it is due.
    None,
    /// Those of one contact one after the other.
    Contact {
        /// A failing delivery holds its contact until this many attempts failed; then it is parked.
        attempts_max: u32,
    },
}

/// How webhooks prove to a destination that they may come in.
#[derive(Clone, PartialEq, Eq)]
pub enum Authentication {
    /// A secret in a header of its own.
    Header {
        /// The header's name, in lower case.
        name: Box<str>,
        /// The secret.
        value: Box<str>,
    },
    /// `authorization: Basic …` (RFC 7617).
    Basic {
        /// User name.
        username: Box<str>,
        /// Password, a secret.
        password: Box<str>,
    },
    /// `authorization: Bearer …` (RFC 6750) with a fixed token.
    Bearer {
        /// The token, a secret.
        token: Box<str>,
    },
    /// `authorization: Bearer …` with a token that an OAuth 2.0 server gives.
    OAuth2(Box<OAuth2>),
}

/// Client credentials of an OAuth 2.0 server (RFC 6749, 4.4).
#[derive(Clone, PartialEq, Eq)]
pub struct OAuth2 {
    /// Where tokens are asked for.
    pub token_url: url::Url,
    /// The client's name at the server.
    pub client_id: Box<str>,
    /// The client's secret.
    pub client_secret: Box<str>,
    /// What tokens are asked for; none leaves it to the server.
    pub scopes: Vec<Box<str>>,
}

/// A certificate with its key, for mutual TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM: the certificate, then those that lead to its issuer.
    pub chain_pem: Box<str>,
    /// PEM: its private key, a secret.
    pub key_pem: Box<str>,
}

impl fmt::Debug for Authentication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header { .. } => "Header(••••)",
            Self::Basic { .. } => "Basic(••••)",
            Self::Bearer { .. } => "Bearer(••••)",
            Self::OAuth2(_) => "OAuth2(••••)",
        })
    }
}

impl fmt::Debug for OAuth2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OAuth2(••••)")
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientCertificate(••••)")
    }
}

/// The ordering of a subscription that was validated when it was written.
pub(super) fn ordering(subscription: &v1::WebhookSubscription) -> Ordering {
    match subscription.ordering() {
        v1::DeliveryOrdering::Contact => Ordering::Contact {
            attempts_max: u32::try_from(subscription.ordering_attempts_max)
                .ok()
                .filter(|attempts| *attempts > 0)
                .unwrap_or(ORDERING_ATTEMPTS_DEFAULT),
        },
        v1::DeliveryOrdering::None | v1::DeliveryOrdering::Unspecified => Ordering::None,
    }
}

/// The authentication of a subscription. A way that this agent does not know is a violation: webhooks
/// without it would be refused by the destination.
pub(super) fn authentication(
    subscription: &v1::WebhookSubscription,
    violations: &mut FieldViolations,
) -> Option<Authentication> {
    use v1::destination_authentication::Method;
    let Some(method) = &subscription.authentication.as_ref()?.method else {
        violations.add("authentication.method", "is not known to this agent; update the agent");
        return None;
    };
    Some(match method {
        Method::Header(header) => Authentication::Header {
            name: header.name.to_ascii_lowercase().into(),
            value: header.value.as_str().into(),
        },
        Method::Basic(basic) => Authentication::Basic {
            username: basic.username.as_str().into(),
            password: basic.password.as_str().into(),
        },
        Method::Bearer(bearer) => Authentication::Bearer { token: bearer.token.as_str().into() },
        Method::Oauth2(oauth2) => Authentication::OAuth2(Box::new(OAuth2 {
            token_url: parsed(&oauth2.token_url, "authentication.oauth2.token_url", violations)?,
            client_id: oauth2.client_id.as_str().into(),
            client_secret: oauth2.client_secret.as_str().into(),
            scopes: oauth2.scopes.iter().map(|scope| scope.as_str().into()).collect(),
        })),
    })
}

/// The client certificate of a subscription.
pub(super) fn client_certificate(subscription: &v1::WebhookSubscription) -> Option<ClientCertificate> {
    subscription.client_certificate.as_ref().map(|certificate| ClientCertificate {
        chain_pem: certificate.certificate_chain_pem.as_str().into(),
        key_pem: certificate.private_key_pem.as_str().into(),
    })
}
