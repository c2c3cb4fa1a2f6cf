//! WAHA (WhatsApp HTTP API, self-hosted), <https://waha.devlike.pro/docs/how-to/events/>.
//!
//! A callback is one event of one session: `event`, `session`, `me`, `payload`. A session is a linked phone, so
//! people are named by WhatsApp's own addresses ([`jid`](super::jid)), hidden ids among them, and what links the
//! phone can be in an event too: that is not passed on.

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal};

mod authenticate;
mod envelope;
mod contact;
mod data;
mod message;
mod status;
mod notice;
#[cfg(test)]
mod tests;

/// The adapter of WAHA.
pub struct Waha;

impl Provider for Waha {
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
