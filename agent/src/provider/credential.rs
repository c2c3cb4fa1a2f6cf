//! What a provider that signs nothing was told to send along: HTTP Basic authentication or a header with a
//! secret in it; or nothing, where the token in the callback path suffices.

use std::borrow::Cow;

use gateway_core::{
    inbound_route::{basic_authorization, header_line},
    snapshot::{RouteConfig, RouteSecretKind},
};
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

use super::{CallbackRequest, Refusal};

/// Whether the request carries any one of the route's headers and Basic credentials, or needs none.
///
/// # Errors
/// Why it is not proved.
pub fn verify(route: &RouteConfig, request: &CallbackRequest) -> Result<(), Refusal> {
    if route.callback_token_suffices {
        return Ok(());
    }
    let (mut fits, mut is_carried, mut secrets) = (Choice::from(0), false, 0_usize);
    // Every secret is tried, so that the time does not tell which one fits.
    let mut compare = |name: &str, value: &str, normal: fn(&[u8]) -> Cow<'_, [u8]>| {
        secrets += 1;
        // Hashed first, so that neither content nor length shows in the time it takes.
        let ours = Sha256::digest(value.as_bytes());
        let mut given = request.headers.get_all(name).iter();
        match (given.next(), given.next()) {
            (None, _) => {}
            (Some(given), None) => {
                is_carried = true;
                fits |= Sha256::digest(normal(given.as_bytes())).ct_eq(&ours);
            }
            // A header that comes twice proves nothing: a proxy may have added one of them.
            (Some(_), Some(_)) => is_carried = true,
        }
    };
    for line in route.secrets_of(RouteSecretKind::Header) {
        if let Some((name, value)) = header_line(line) {
            compare(name, value, unchanged);
        }
    }
    for credential in route.secrets_of(RouteSecretKind::BasicCredential) {
        if let Some(value) = basic_authorization(credential) {
            compare(AUTHORIZATION.as_str(), &value, with_usual_scheme);
        }
    }
    match (bool::from(fits), is_carried, secrets) {
        (true, ..) => Ok(()),
        (false, _, 0) => Err(Refusal::MissingSecret),
        (false, false, _) => Err(Refusal::MissingCredential),
        (false, true, _) => Err(Refusal::WrongCredential),
    }
}

fn unchanged(given: &[u8]) -> Cow<'_, [u8]> {
    Cow::Borrowed(given)
}

/// The name of the scheme is `Basic` in any case: <https://www.rfc-editor.org/rfc/rfc9110#section-11.1>.
fn with_usual_scheme(given: &[u8]) -> Cow<'_, [u8]> {
    match given.split_first_chunk::<6>() {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"basic ") => [b"Basic ", token].concat().into(),
        _ => Cow::Borrowed(given),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::provider::tests::{request, route};

    const SECRETS: &[(RouteSecretKind, &str)] = &[
        (RouteSecretKind::BasicCredential, "hook-user:p@ss:wörd"),
        (RouteSecretKind::Header, "X-Hook-Secret: planted one"),
        (RouteSecretKind::Header, "X-Hook-Secret: planted two"),
        (RouteSecretKind::WahaHmacKey, "a key of another kind"),
    ];

    fn verify_with(secrets: &[(RouteSecretKind, &str)], headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let mut request = request(b"{}");
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        verify(&route(gateway_core::event::Provider::Infobip, secrets), &request)
    }

    /// Any one of the route's credentials is proof.
    #[test]
    fn any_credential_is_proof() {
        for header in [
            ("authorization", "Basic aG9vay11c2VyOnBAc3M6d8O2cmQ="),
            ("authorization", "basic aG9vay11c2VyOnBAc3M6d8O2cmQ="),
            ("x-hook-secret", "planted one"),
            ("x-hook-secret", "planted two"),
        ] {
            assert_eq!(verify_with(SECRETS, &[header]), Ok(()), "{header:?}");
        }
        let both = [("x-hook-secret", "wrong"), ("authorization", "Basic aG9vay11c2VyOnBAc3M6d8O2cmQ=")];
        assert_eq!(verify_with(SECRETS, &both), Ok(()));
    }

    /// Nothing, something else, and the value of another header are refused, each for its reason.
    #[test]
    fn other_callbacks_are_refused() {
        assert_eq!(verify_with(SECRETS, &[]), Err(Refusal::MissingCredential));
        assert_eq!(verify_with(SECRETS, &[("x-other", "planted one")]), Err(Refusal::MissingCredential));
        for header in [
            ("x-hook-secret", ""),
            ("x-hook-secret", "planted on"),
            ("x-hook-secret", "planted one!"),
            ("x-hook-secret", "a key of another kind"),
            ("authorization", "planted one"),
            ("authorization", "aG9vay11c2VyOnBAc3M6d8O2cmQ="),
            ("authorization", "Basic aG9vay11c2VyOnBAc3M6d8O2cmR="),
            ("authorization", "Bearer aG9vay11c2VyOnBAc3M6d8O2cmQ="),
        ] {
            assert_eq!(verify_with(SECRETS, &[header]), Err(Refusal::WrongCredential), "{header:?}");
        }
        let twice = [("x-hook-secret", "planted one"), ("x-hook-secret", "planted one")];
        assert_eq!(verify_with(SECRETS, &twice), Err(Refusal::WrongCredential));
        assert_eq!(verify_with(&SECRETS[3..], &[("x-hook-secret", "x")]), Err(Refusal::MissingSecret));
    }

    /// Nothing else is asked for where the token in the path suffices, and only there.
    #[test]
    fn token_suffices_only_when_told_so() {
        let mut route = route(gateway_core::event::Provider::Gupshup, &[]);
        assert_eq!(verify(&route, &request(b"{}")), Err(Refusal::MissingSecret));
        route.callback_token_suffices = true;
        assert_eq!(verify(&route, &request(b"{}")), Ok(()));
    }
}
