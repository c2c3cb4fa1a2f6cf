//! `messagebird-signature` over the timestamp, the URL that Bird called and the body, see
//! [`signed_request`](crate::provider::signed_request).

use gateway_core::snapshot::{RouteConfig, RouteSecretKind};
use jiff::Timestamp;

use crate::provider::{
    CallbackRequest, Refusal,
    signed_request::{self, url_forms},
};

/// Whether the request is signed with a live key of the route.
pub fn verify(route: &RouteConfig, request: &CallbackRequest, now: Timestamp) -> Result<(), Refusal> {
    signed_request::verify(route, RouteSecretKind::BirdSigningKey, request, &url_forms(request.url()?), now)
}
