//! Vonage Messages API, <https://developer.vonage.com/en/messages/overview>.
//!
//! A callback is one JSON object: a message of a contact when it has a `message_type`, a status of a message
//! of the business when it has a `status`. The same two addresses of a Vonage application get the callbacks
//! of its other channels (SMS, Viber, Messenger, …), which `channel` tells apart; they are passed on raw.

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal};

mod authenticate;
mod envelope;
mod contact;
mod message;
mod content;
mod status;
#[cfg(test)]
mod tests;

/// The adapter of Vonage Messages API.
pub struct Vonage;

impl Provider for Vonage {
    fn authenticate(
        &self,
        route: &RouteConfig,
        request: &CallbackRequest,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        authenticate::verify(route, request, now)
    }

    fn normalize<'a>(&self, content: &'a [u8]) -> Result<Vec<Part<'a>>, NormalizeError> {
        envelope::parts(content)
    }
}
