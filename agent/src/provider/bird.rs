//! Bird Channels, the generation after MessageBird Conversations, <https://docs.bird.com/api/channels-api>.
//!
//! A callback has a `service`, an `event` and a `payload`: a message of a contact (`whatsapp.inbound`), one of the
//! business with its status (`whatsapp.outbound`), or what a contact did with one (`whatsapp.interaction`).

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal};

mod authenticate;
mod envelope;
mod contact;
mod message;
mod content;
mod status;
mod interaction;
#[cfg(test)]
mod tests;

/// The adapter of Bird Channels.
pub struct Bird;

impl Provider for Bird {
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
