//! 360dialog, <https://docs.360dialog.com/docs/waba-basics/webhook-events-and-notifications>: Meta's callbacks,
//! relayed.
//!
//! Nothing is signed for us and there is no handshake: a callback is proved by a header or a Basic credential
//! that 360dialog was told to send along, or by the token in its path. Numbers that still are on the
//! on-premises API send the `value` of a Meta callback without anything around it.

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal, credential};

mod envelope;
#[cfg(test)]
mod tests;

/// The adapter of 360dialog.
pub struct Dialog360;

impl Provider for Dialog360 {
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
