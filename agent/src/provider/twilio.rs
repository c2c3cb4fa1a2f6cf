//! Twilio Programmable Messaging, the WhatsApp channel,
//! <https://www.twilio.com/docs/messaging/guides/webhook-request>.
//!
//! A callback is one message or one status, as the parameters of a form; by `GET` they are the query. SMS comes
//! the same way and reads the same. No callback carries a time.

use gateway_core::snapshot::RouteConfig;
use http::Method;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal, Reply};

mod authenticate;
mod parameters;
mod envelope;
mod contact;
mod message;
mod content;
mod status;
#[cfg(test)]
mod tests;

/// TwiML that does nothing. Twilio reads the answer to a message as TwiML, and takes other text for an error or
/// for an answer to the contact, <https://www.twilio.com/docs/messaging/twiml>.
const NOTHING_TO_DO: Reply =
    Reply { content_type: "text/xml", body: r#"<?xml version="1.0" encoding="UTF-8"?><Response/>"# };

/// The adapter of Twilio.
pub struct Twilio;

impl Provider for Twilio {
    fn authenticate(
        &self,
        route: &RouteConfig,
        request: &CallbackRequest,
        _now: Timestamp,
    ) -> Result<(), Refusal> {
        authenticate::verify(route, request)
    }

    fn accepts(&self, media_type: &str) -> bool {
        matches!(media_type, "application/x-www-form-urlencoded" | "application/json")
    }

    fn content<'a>(&self, request: &'a CallbackRequest) -> &'a [u8] {
        if request.method == Method::GET {
            request.uri.query().unwrap_or_default().as_bytes()
        } else {
            &request.body
        }
    }

    fn normalize<'a>(&self, content: &'a [u8]) -> Result<Vec<Part<'a>>, NormalizeError> {
        envelope::parts(content)
    }

    fn reply(&self, content: &[u8]) -> Reply {
        if envelope::is_message(content) { NOTHING_TO_DO } else { Reply::EMPTY }
    }

    fn calls_by_get(&self) -> bool {
        true
    }
}
