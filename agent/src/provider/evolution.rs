//! Evolution API v2 (self-hosted), <https://doc.evolution-api.com/v2/en/configuration/webhooks>; the wire facts are
//! from its code, EvolutionAPI/evolution-api `src/api/integrations/`.
//!
//! A callback is one event of one instance: `event`, `instance`, `data`, `sender`. An instance is a linked phone
//! (or a number of Meta's Cloud API, whose messages it rewrites into the same form), so `data` is mostly what
//! WhiskeySockets/Baileys says. The envelope also carries the key of the instance (`apikey`) and our own address
//! (`destination`), and some events what links the phone: none of that is passed on or kept.

use gateway_core::snapshot::RouteConfig;
use jiff::Timestamp;

use super::{CallbackRequest, NormalizeError, Part, Provider, Refusal};

mod authenticate;
mod envelope;
mod cut;
mod key;
mod message;
mod content;
mod choice;
mod bytes;
mod change;
mod status;
#[cfg(test)]
mod tests;

/// The adapter of Evolution API.
pub struct Evolution;

impl Provider for Evolution {
    /// With `byEvents` on, the name of the event is appended: `…/messages-upsert`. The body names it too.
    fn extends_path(&self) -> bool {
        true
    }

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
