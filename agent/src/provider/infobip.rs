//! Infobip WhatsApp, <https://www.infobip.com/docs/api/channels/whatsapp>.
//!
//! Messages of contacts and reports on messages of the business come as `results[]`; what is about a contact's
//! settings comes as one object. Infobip signs nothing: it sends along what its notification profile holds.

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal, credential};

mod envelope;
mod result;
mod message;
mod content;
mod status;
mod preference;
#[cfg(test)]
mod tests;

/// The adapter of Infobip WhatsApp.
pub struct Infobip;

impl Provider for Infobip {
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
