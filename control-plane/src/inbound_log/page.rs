//! What is asked of the inbound log, and the pages that it gives.

use std::time::Duration;

use gateway_core::{filter::EventFilter, id::TenantId};
use gateway_proto::v1;
use jiff::Timestamp;

/// How long one page may search. A filter that matches almost nothing then gives a page that is not full,
/// with a token to go on, instead of reading the whole database in one request.
pub(super) const SEARCH_TIME_MAX: Duration = Duration::from_secs(1);
/// A page of any list ends before it grows beyond this many bytes, unless its first entry alone does: gRPC clients
/// take 4 MiB by default.
pub const PAGE_BYTES_MAX: usize = 3 << 20;
/// A stored row of at most this many bytes is read together with others, a larger one alone, when it is its turn: so a
/// page of large ones does not pass through memory whole.
pub(super) const INLINE_BYTES_MAX: i64 = 64 * 1_024;
/// Unrouted callbacks kept per inbound route; the oldest go first.
pub const UNROUTED_PER_ROUTE_MAX: i64 = 10_000;

/// Which logs are wanted. What is None matches everything.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    /// Only logs of this tenant.
    pub tenant_id: Option<TenantId>,
    /// Only logs of this instance.
    pub instance_id: Option<String>,
    /// Only these events.
    pub events: Option<EventFilter>,
    /// Only logs from this phone, in E.164.
    pub from_phone: Option<String>,
    /// Only logs of this message of the provider.
    pub external_message_id: Option<String>,
    /// Only logs received at this time or later.
    pub start_time: Option<Timestamp>,
    /// Only logs received before this time.
    pub end_time: Option<Timestamp>,
}

/// A page of logs, newest recorded first.
#[derive(Debug, Default)]
pub struct LogPage {
    /// The logs.
    pub logs: Vec<v1::InboundLog>,
    /// Where the next page goes on; None on the last one.
    pub next: Option<i64>,
}

/// A page of attempts, oldest first.
#[derive(Debug, Default)]
pub struct AttemptPage {
    /// The attempts.
    pub attempts: Vec<v1::DeliveryAttempt>,
    /// Where the next page goes on; None on the last one.
    pub next: Option<i64>,
}

/// A page of unrouted callbacks, newest first, and where the next page goes on; None on the last one.
pub type UnroutedPage = (Vec<v1::UnroutedCallback>, Option<i64>);

/// An unrouted callback and its place.
#[derive(Debug, Clone)]
pub struct Unrouted {
    /// Its place in the list.
    pub seq: i64,
    /// The callback.
    pub callback: v1::UnroutedCallback,
}

/// A number of an inbound route for which callbacks are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnroutedNumber {
    /// The inbound route.
    pub route_id: String,
    /// The number as [`gateway_core::snapshot::canonical_number`] gives it; empty for account callbacks.
    pub number_key: String,
}
