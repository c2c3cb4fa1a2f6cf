//! Meta WhatsApp Cloud API, <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks>.
//!
//! A callback is `object` × `entry[]` × `changes[]`; a change has a `field` and a `value`. The field
//! `messages` carries messages and statuses of one number; all else is passed on raw, but for the contact's
//! own preferences, and for `history`, which is the past.

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal};

mod handshake;
mod authenticate;
pub(super) mod envelope;
pub(super) mod relay;
pub(super) mod value;
pub(super) mod contact;
pub(super) mod message;
pub(super) mod content;
pub(super) mod error;
pub(super) mod status;
pub(super) mod preference;
#[cfg(test)]
mod tests;

/// The adapter of Meta WhatsApp Cloud API.
pub struct Meta;

impl Provider for Meta {
    fn handshake(&self, route: &RouteConfig, query: &str) -> Result<String, Refusal> {
        handshake::answer(route, query)
    }

    fn authenticate(
        &self,
        route: &RouteConfig,
        request: &CallbackRequest,
        _now: Timestamp,
    ) -> Result<(), Refusal> {
        authenticate::verify(route, request)
    }

    fn normalize<'a>(&self, content: &'a [u8]) -> Result<Vec<Part<'a>>, NormalizeError> {
        envelope::parts(content)
    }
}
