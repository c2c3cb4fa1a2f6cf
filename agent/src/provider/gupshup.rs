//! Gupshup, <https://docs.gupshup.io/docs/inbound-messages> and
//! <https://partner-docs.gupshup.io/docs/passthrough-v3-incoming-events>.
//!
//! A callback of version 2 says one thing about one app: `app` × `type` × `payload`. One of version 3 is Meta's,
//! relayed with additions. Both can come to one address (answers of flows are always of version 3), so each is
//! known by its shape. Nothing is signed, and there is no handshake: the test that is sent when an address is
//! saved wants an empty answer, which it gets like every other callback.

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal, credential};

mod envelope;
mod message;
mod status;
mod preference;
#[cfg(test)]
mod tests;

/// The adapter of Gupshup.
pub struct Gupshup;

impl Provider for Gupshup {
    fn authenticate(
        &self,
        route: &RouteConfig,
        request: &CallbackRequest,
        _now: Timestamp,
    ) -> Result<(), Refusal> {
        credential::verify(route, request)
    }

    fn normalize<'a>(&self, content: &'a [u8]) -> Result<Vec<Part<'a>>, NormalizeError> {
        envelope::parts(content)
    }
}
