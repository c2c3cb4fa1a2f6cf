//! Rows whose resource cannot be read: sealed bytes that do not open, or bytes that are not the message that was
//! stored. They do not keep the rows beside them from anybody, and they can be deleted.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};
use tracing::error;

use super::{StoreError, versions};

/// Every type of row that may be found damaged.
pub const TYPES: [&str; 11] = [
    "tenant",
    "api_key",
    "inbound_route",
    "instance",
    "opt_out_policy",
    "webhook_subscription",
    "opt_out",
    "audit_entry",
    "buffer_damage",
    "request",
    "work",
];

/// A row of a resource that is not sealed, as a database gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainRow {
    /// Its id: the key.
    pub id: String,
    /// Its tenant; empty for what belongs to none.
    pub tenant_id: String,
    /// What it hangs on: the inbound route of an instance, the instance of an opt-out. Empty for anything else.
    pub parent_id: String,
    /// The version in which it changed last, or how often it was written; 0 for what has neither.
    pub version: u64,
    /// The resource.
    pub body: Vec<u8>,
}

impl PlainRow {
    /// What is known without reading it, in the store `epoch`.
    pub(super) fn head(&self, epoch: &str) -> Head {
        let (id, tenant_id) = (self.id.clone(), self.tenant_id.clone());
        Head { id, tenant_id, etag: versions::etag(self.version, epoch) }
    }
}

/// A stored resource, readable or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found<T> {
    /// All of it.
    Whole(T),
    /// It cannot be read.
    Damaged(Head),
}

/// What is known of a resource that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its id.
    pub id: String,
    /// Its tenant; empty for what belongs to none.
    pub tenant_id: String,
    /// Its etag, as lists show it.
    pub etag: String,
}

/// A resource that is not among others because it cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeftOut {
    /// Its type: the oneof field of `ConfigResource`, or another one of [`TYPES`].
    pub resource_type: &'static str,
    /// Its id.
    pub id: String,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.resource_type.replace('_', " "), self.id)
    }
}

/// A configuration resource that is part of a change and cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// Which one.
    pub what: LeftOut,
    /// The version in which it changed last.
    pub version: u64,
    /// The instance that it is or hangs on; empty for an inbound route.
    pub instance_id: String,
    /// The inbound route of an instance; empty for anything else.
    pub inbound_route_id: String,
}

/// Labels of `gateway_store_damaged_rows`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    r#type: &'static str,
}

/// The rows of a store that are known to be damaged. Cheap to clone.
#[derive(Clone, Default)]
pub struct Damages {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    known: Mutex<BTreeSet<LeftOut>>,
    rows: Family<TypeLabels, Gauge>,
}

impl Damages {
    /// Shows how many there are, by type: `gateway_store_damaged_rows{type}`.
    pub fn register(&self, registry: &mut Registry) {
        self.count(&self.lock());
        let help = "Rows of the configuration database that were found damaged, by type";
        registry.register("store_damaged_rows", help, self.inner.rows.clone());
    }

    /// All of them.
    pub fn all(&self) -> Vec<LeftOut> {
        self.lock().iter().cloned().collect()
    }

    /// Notes a row that cannot be read, and says so in the log the first time.
    pub(super) fn note(&self, resource_type: &'static str, id: &str, failure: StoreError) {
        let mut known = self.lock();
        if !known.insert(LeftOut { resource_type, id: id.to_owned() }) {
            return;
        }
        self.count(&known);
        drop(known);
        let error = format!("{:#}", anyhow::Error::from(failure));
        error!(resource_type, id, error, "failed to read a row: {}", remedy(resource_type));
    }

    /// Whether a row is known to be damaged.
    pub(super) fn has(&self, resource_type: &'static str, id: &str) -> bool {
        self.lock().contains(&LeftOut { resource_type, id: id.to_owned() })
    }

    /// Forgets a row that was written anew or is gone.
    pub(super) fn forget(&self, resource_type: &'static str, id: &str) {
        let mut known = self.lock();
        if known.remove(&LeftOut { resource_type, id: id.to_owned() }) {
            self.count(&known);
        }
    }

    /// Keeps those that `is_found` says are there still.
    pub(super) fn retain(&self, is_found: impl Fn(&LeftOut) -> bool) {
        let mut known = self.lock();
        known.retain(is_found);
        self.count(&known);
    }

    fn count(&self, known: &BTreeSet<LeftOut>) {
        for r#type in TYPES {
            let count = known.iter().filter(|row| row.resource_type == r#type).count();
            let gauge = self.inner.rows.get_or_create(&TypeLabels { r#type });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<LeftOut>> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an operator can do about a damaged row of a type.
pub fn remedy(resource_type: &str) -> &'static str {
    match resource_type {
        "tenant" => {
            "restore a backup that has it, write it anew with UpdateTenant, or remove it with DeleteTenant"
        }
        "api_key" => {
            "it opens nothing; restore a backup that has it, or revoke it with RevokeApiKey and make another"
        }
        "inbound_route" => {
            "restore a backup that has it, or remove it with DeleteInboundRoute and create it anew; agents that have it \
             keep it"
        }
        "instance" => {
            "restore a backup that has it, or remove it with DeleteInstance and create it anew; agents that have it \
             keep it, and what hangs on it, as they are"
        }
        "opt_out_policy" => {
            "restore a backup that has it, or write all of it anew with UpdateOptOutPolicy and the `update_mask` `*`; \
             agents that have it keep it"
        }
        "webhook_subscription" => {
            "restore a backup that has it, or remove it with DeleteWebhookSubscription and create it anew; agents that \
             have it keep it"
        }
        "opt_out" => "restore a backup that has it, or remove it with DeleteOptOut and record it anew",
        "request" => "send the request with another `request_id`; the row is forgotten after a day",
        "work" => {
            "no agent gets it; restore a backup that has it, or delete what it is about, which removes the row"
        }
        "data_key" => "nothing that it seals can be read; restore a backup that has it",
        _ => "restore a backup that has it; nothing else depends on it",
    }
}

/// What was read, or what is known of it when it cannot be.
pub(super) fn or_head<T>(
    read: Result<T, StoreError>,
    head: impl FnOnce() -> Head,
) -> Result<Found<T>, StoreError> {
    match read {
        Err(failure) if failure.is_damage() => Ok(Found::Damaged(head())),
        read => read.map(Found::Whole),
    }
}

/// What was read, or None and a note of the damage when it cannot be.
pub(super) fn or_note<T>(
    damages: &Damages,
    (resource_type, id): (&'static str, &str),
    read: Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    match read {
        Err(failure) if failure.is_damage() => {
            damages.note(resource_type, id, failure);
            Ok(None)
        }
        read => read.map(Some),
    }
}
