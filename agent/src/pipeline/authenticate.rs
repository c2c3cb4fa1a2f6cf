//! Proves that a callback is genuine, or refuses it without a word. What is proved is a type,
//! [`Authenticated`], that nothing else can make.

use std::sync::{Arc, LazyLock};

use gateway_core::{
    event::Provider,
    snapshot::{RouteConfig, RouteSecret, RouteSecretKind, Snapshot},
};
use jiff::Timestamp;

use crate::provider::{CallbackRequest, Refusal, provider};

/// A value that was proved to come from the provider account of a route.
pub struct Authenticated<T> {
    value: T,
    route: Arc<RouteConfig>,
}

impl<T> Authenticated<T> {
    /// The value.
    pub const fn value(&self) -> &T {
        &self.value
    }

    /// The route it came in on.
    pub const fn route(&self) -> &Arc<RouteConfig> {
        &self.route
    }
}

/// Why a callback is refused, and of which route, if there is one. For counters only.
pub struct Refused {
    /// The route of the token.
    pub route: Option<Arc<RouteConfig>>,
    /// Why.
    pub reason: Refusal,
}

impl Refused {
    /// A callback to this address that is refused before anything else of it is looked at.
    pub fn unseen(snapshot: &Snapshot, address: Address<'_>, reason: Refusal) -> Self {
        Self { route: route(snapshot, address), reason }
    }
}

/// The first two segments behind `/callbacks`.
#[derive(Clone, Copy)]
pub struct Address<'a> {
    /// The provider.
    pub provider: &'a str,
    /// The route's token.
    pub token: &'a str,
}

/// Proves a callback. An unknown token costs a signature check like a known one, so that neither answer nor
/// time tells which tokens exist.
///
/// # Errors
/// Why it is not genuine.
pub fn authenticate(
    snapshot: &Snapshot,
    address: Address<'_>,
    request: CallbackRequest,
    now: Timestamp,
) -> Result<Authenticated<CallbackRequest>, Refused> {
    let Some(route) = route(snapshot, address) else {
        let name = Provider::from_name(address.provider).unwrap_or(Provider::Meta);
        // The verdict does not matter, the time it takes does.
        let _verdict = std::hint::black_box(provider(name).authenticate(&DECOY, &request, now));
        return Err(Refused { route: None, reason: Refusal::UnknownToken });
    };
    match provider(route.provider).authenticate(&route, &request, now) {
        Ok(()) => Ok(Authenticated { value: request, route }),
        Err(reason) => Err(Refused { route: Some(route), reason }),
    }
}

/// The challenge of a handshake.
///
/// # Errors
/// Why it is not answered.
pub fn handshake(snapshot: &Snapshot, address: Address<'_>, query: &str) -> Result<String, Refused> {
    let Some(route) = route(snapshot, address) else {
        return Err(Refused { route: None, reason: Refusal::UnknownToken });
    };
    provider(route.provider).handshake(&route, query).map_err(|reason| Refused { route: Some(route), reason })
}

fn route(snapshot: &Snapshot, address: Address<'_>) -> Option<Arc<RouteConfig>> {
    let name = Provider::from_name(address.provider)?;
    snapshot.route_by_token(address.token).filter(|route| route.provider == name).cloned()
}

/// A route that nobody can call.
static DECOY: LazyLock<RouteConfig> = LazyLock::new(|| RouteConfig {
    id: "decoy".parse().expect("a constant that matches the pattern of ids"),
    provider: Provider::Meta,
    callback_token: "".into(),
    provider_account_id: None,
    secrets: [
        (RouteSecretKind::MetaAppSecret, "0123456789abcdef0123456789abcdef"),
        (RouteSecretKind::BasicCredential, "0123456789abcdef:0123456789abcdef"),
        (RouteSecretKind::Header, "x-decoy: 0123456789abcdef0123456789abcdef"),
        (RouteSecretKind::TwilioAuthToken, "0123456789abcdef0123456789abcdef"),
        (RouteSecretKind::VonageSignatureSecret, "0123456789abcdef0123456789abcdef"),
        (RouteSecretKind::MessageBirdSigningKey, "0123456789abcdef0123456789abcdef"),
        (RouteSecretKind::BirdSigningKey, "0123456789abcdef0123456789abcdef"),
        (RouteSecretKind::WahaHmacKey, "0123456789abcdef0123456789abcdef"),
        (RouteSecretKind::EvolutionJwtKey, "0123456789abcdef0123456789abcdef"),
    ]
    .map(|(kind, value)| RouteSecret { kind, value: value.into() })
    .into(),
    callback_token_suffices: false,
});
