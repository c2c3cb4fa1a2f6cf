//! `GET ?hub.mode=subscribe&hub.challenge=…&hub.verify_token=…`, sent each time the callback URL is saved:
//! <https://developers.facebook.com/docs/graph-api/webhooks/getting-started#verification-requests>.

use std::borrow::Cow;

use gateway_core::snapshot::{RouteConfig, RouteSecretKind};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use crate::provider::Refusal;

/// The challenge, verbatim, when the token is one of the route's.
pub fn answer(route: &RouteConfig, query: &str) -> Result<String, Refusal> {
    let parameter = |name: &str| -> Result<Cow<'_, str>, Refusal> {
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
            .ok_or(Refusal::MissingParameter)
    };
    let (mode, challenge, token) =
        (parameter("hub.mode")?, parameter("hub.challenge")?, parameter("hub.verify_token")?);
    if mode != "subscribe" {
        return Err(Refusal::WrongMode);
    }
    let mut tokens =
        route.secrets_of(RouteSecretKind::MetaVerifyToken).filter(|ours| !ours.is_empty()).peekable();
    if tokens.peek().is_none() {
        return Err(Refusal::MissingSecret);
    }
    // Hashed first, so that neither content nor length of our tokens shows in the time it takes.
    let given = Sha256::digest(token.as_bytes());
    let fits =
        tokens.fold(Choice::from(0), |fits, ours| fits | Sha256::digest(ours.as_bytes()).ct_eq(&given));
    if fits.into() { Ok(challenge.into_owned()) } else { Err(Refusal::WrongVerifyToken) }
}
