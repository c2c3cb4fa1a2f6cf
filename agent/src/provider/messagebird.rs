//! MessageBird Conversations, the generation before Bird, <https://developers.messagebird.com/api/conversations/>.
//!
//! A callback is about one message or one conversation: `type`, `contact`, `conversation`, `message`. Messages of
//! contacts and statuses of the business's own messages come in the same shape and are told apart by
//! `message.direction`. Channels of other platforms may call the same address; what they say is passed on raw.

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

/// The adapter of MessageBird Conversations.
pub struct MessageBird;

impl Provider for MessageBird {
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
