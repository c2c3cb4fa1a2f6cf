//! Meta WhatsApp Cloud API, <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks>.
//!
//! A callback is `object` × `entry[]` × `changes[]`; a change has a `field` and a `value`. The field
//! `messages` carries messages and statuses of one number; all else is passed on raw, but for the contact's
//! own preferences, and for `history`, which is the past.

use gateway_core::snapshot::RouteConfig;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal};

mod handshake;
mod authenticate;
mod envelope;
mod value;
mod contact;
mod message;
mod content;
mod error;
mod status;
mod preference;
#[cfg(test)]
mod tests;

/// The adapter of Meta WhatsApp Cloud API.
pub struct Meta;

impl Provider for Meta {
    fn handshake(&self, route: &RouteConfig, query: &str) -> Result<String, Refusal> {
        handshake::answer(route, query)
    }

    fn authenticate(&self, route: &RouteConfig, request: &CallbackRequest) -> Result<(), Refusal> {
        authenticate::verify(route, &request.headers, &request.body)
    }

    fn accepts(&self, media_type: &str) -> bool {
        media_type == "application/json"
    }

    fn normalize<'a>(&self, body: &'a [u8]) -> Result<Vec<Part<'a>>, NormalizeError> {
        envelope::parts(body)
    }
}
