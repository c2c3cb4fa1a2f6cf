//! Why callbacks are refused, and how often: for `DiagnoseInstance`, since the caller is told nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use gateway_core::{id::InboundRouteId, time::to_proto};
use gateway_proto::v1;
use jiff::Timestamp;

/// Most pairs of route and reason that are counted apart. Beyond it refusals count without their route.
const PAIRS_MAX: usize = 10_000;

/// Why a callback is not taken. Its name goes to counters and diagnosis, never to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// No route has the token, or its provider is another one.
    UnknownToken,
    /// The route has no secret of the kind needed.
    MissingSecret,
    /// The signature is missing.
    MissingSignature,
    /// The signature is not of its documented form.
    MalformedSignature,
    /// The signature fits none of the route's secrets.
    WrongSignature,
    /// A parameter of the handshake is missing.
    MissingParameter,
    /// The handshake asks for something else than to subscribe.
    WrongMode,
    /// The handshake's token is none of the route's.
    WrongVerifyToken,
    /// The provider asks no handshake.
    NoHandshake,
    /// Neither a header nor a credential that the route expects is there.
    MissingCredential,
    /// The header or credential is none of the route's.
    WrongCredential,
    /// The signature is made with an algorithm that the provider does not use.
    WrongAlgorithm,
    /// The signature was made too long ago, or its time is yet to come.
    Expired,
    /// The signature is for another body.
    WrongBodyHash,
    /// The signature is for another URL: see the agent's public base URL.
    WrongUrlHash,
    /// The signature is for another account of the provider.
    WrongAccount,
    /// The request does not say which host it calls, and the agent has no public base URL.
    MissingHost,
    /// The body is over the limit, which is known before anything is proved; or what a genuine one comes to is.
    TooLarge,
    /// The media type or the encoding is not one that the provider sends.
    WrongMediaType,
    /// The body is not in the provider's format.
    UnreadableBody,
    /// The body has more items than any provider sends. Of a form it is known before anything is proved.
    TooManyItems,
}

impl Refusal {
    /// A stable lower-case word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnknownToken => "unknown_token",
            Self::MissingSecret => "missing_secret",
            Self::MissingSignature => "missing_signature",
            Self::MalformedSignature => "malformed_signature",
            Self::WrongSignature => "wrong_signature",
            Self::MissingParameter => "missing_parameter",
            Self::WrongMode => "wrong_mode",
            Self::WrongVerifyToken => "wrong_verify_token",
            Self::NoHandshake => "no_handshake",
            Self::MissingCredential => "missing_credential",
            Self::WrongCredential => "wrong_credential",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::Expired => "expired",
            Self::WrongBodyHash => "wrong_body_hash",
            Self::WrongUrlHash => "wrong_url_hash",
            Self::WrongAccount => "wrong_account",
            Self::MissingHost => "missing_host",
            Self::TooLarge => "too_large",
            Self::WrongMediaType => "wrong_media_type",
            Self::UnreadableBody => "unreadable_body",
            Self::TooManyItems => "too_many_items",
        }
    }
}

/// How many callbacks were refused since the start, by route and reason. Cheap to clone.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<Counts>>);

type Counts = BTreeMap<(Option<InboundRouteId>, Refusal), Count>;

struct Count {
    callbacks: u64,
    last_time: Timestamp,
}

impl Refusals {
    /// Counts one. The route is none when the token is unknown, so that a caller cannot make entries.
    pub fn count(&self, route: Option<&InboundRouteId>, reason: Refusal, now: Timestamp) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (route.cloned(), reason);
        if counts.len() >= PAIRS_MAX && !counts.contains_key(&key) {
            key.0 = None;
        }
        let count = counts.entry(key).or_insert(Count { callbacks: 0, last_time: now });
        count.callbacks += 1;
        count.last_time = now;
    }

    /// All counts, for the control plane.
    pub fn all(&self) -> Vec<v1::RefusedCallbacks> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = counts.iter().map(|((route, reason), count)| v1::RefusedCallbacks {
            inbound_route_id: route.as_ref().map(ToString::to_string).unwrap_or_default(),
            reason: reason.name().to_owned(),
            count: count.callbacks,
            last_time: Some(to_proto(count.last_time)),
        });
        entries.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each route and reason has its own figure; what would exceed the limit is still counted.
    #[test]
    fn refusals_are_counted_within_bounds() {
        let (refusals, now) = (Refusals::default(), Timestamp::UNIX_EPOCH);
        let route = |number: usize| format!("route-{number}").parse::<InboundRouteId>().unwrap();
        refusals.count(None, Refusal::UnknownToken, now);
        refusals.count(Some(&route(1)), Refusal::WrongSignature, now);
        refusals.count(Some(&route(1)), Refusal::WrongSignature, now);
        let all = refusals.all();
        assert_eq!(
            (all[0].inbound_route_id.as_str(), all[0].reason.as_str(), all[0].count),
            ("", "unknown_token", 1)
        );
        assert_eq!(
            (all[1].inbound_route_id.as_str(), all[1].reason.as_str(), all[1].count),
            ("route-1", "wrong_signature", 2)
        );
        for number in 0..2 * PAIRS_MAX {
            refusals.count(Some(&route(number)), Refusal::MissingSignature, now);
        }
        let all = refusals.all();
        assert!(all.len() <= PAIRS_MAX + 1, "{}", all.len());
        assert_eq!(all.iter().map(|entry| entry.count).sum::<u64>(), 3 + 2 * PAIRS_MAX as u64);
    }
}
