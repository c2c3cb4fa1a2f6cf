//! The audit log: who did what to which resource, from where, and what changed by it.
//!
//! Every method that changes something, and the one that shows a secret, writes one entry with
//! [`crate::store::WriteTx::audit`], in the transaction of the change: there is no change without its entry
//! and no entry without its change. [`diff`] finds what changed by reflection, so that a new field needs no
//! code here; [`fields`] says which fields may be shown, and a new one that is not in that list is hidden.

use std::net::SocketAddr;

use gateway_proto::v1;
use gateway_runtime::system;
use prost::Message;

use crate::{
    api::authorize::{Actor, Caller},
    store::damaged::Head,
};

pub mod diff;
pub mod fields;
mod resources;
pub mod commands;
#[cfg(test)]
mod tests;

pub use resources::{NewJoinToken, Resource};

/// Who did something, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedBy {
    /// Who.
    pub actor: Actor,
    /// The address the call came from, as its connection tells; None for the gateway itself.
    pub source_address: Option<SocketAddr>,
}

impl AuditedBy {
    /// The gateway by itself.
    pub const GATEWAY: Self = Self { actor: Actor::Gateway, source_address: None };

    /// Whoever runs this process, for its commands.
    pub fn command_line() -> Self {
        Self { actor: Actor::CommandLine(system::user_id()), source_address: None }
    }

    /// An agent.
    pub fn agent(id: &str, source_address: Option<SocketAddr>) -> Self {
        Self { actor: Actor::Agent(id.to_owned()), source_address }
    }
}

impl From<&Caller> for AuditedBy {
    fn from(caller: &Caller) -> Self {
        Self { actor: caller.actor.clone(), source_address: caller.source_address }
    }
}

/// What was done to a resource: an entry of the audit log without who, from where and when.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Audited {
    /// The tenant whose resource it is; empty for what belongs to none.
    pub tenant_id: String,
    /// The method, such as `InstanceService/CreateInstance`.
    pub method: &'static str,
    /// The resource's type, such as `instance`.
    pub resource_type: &'static str,
    /// The resource's id.
    pub resource_id: String,
    /// What changed, without secrets and personal data.
    pub changes: Vec<v1::AuditChange>,
}

impl Audited {
    /// A resource was made.
    pub fn created<R: Resource>(method: &'static str, after: &R) -> Self {
        Self { changes: changes(None, Some(after)), ..Self::seen(method, after) }
    }

    /// A resource was changed.
    pub fn changed<R: Resource>(method: &'static str, before: &R, after: &R) -> Self {
        Self { changes: changes(Some(before), Some(after)), ..Self::seen(method, after) }
    }

    /// A resource was made, or changed if it was there `before`.
    pub fn written<R: Resource>(method: &'static str, before: Option<&R>, after: &R) -> Self {
        Self { changes: changes(before, Some(after)), ..Self::seen(method, after) }
    }

    /// A resource was removed.
    pub fn deleted<R: Resource>(method: &'static str, before: &R) -> Self {
        Self { changes: changes(Some(before), None), ..Self::seen(method, before) }
    }

    /// A resource was removed that could not be read, so that nobody can tell what it was.
    pub fn deleted_unread<R: Resource>(method: &'static str, head: &Head) -> Self {
        let unread = v1::AuditChange {
            field: "…".to_owned(),
            before: "\"(could not be read)\"".to_owned(),
            after: String::new(),
        };
        Self {
            tenant_id: head.tenant_id.clone(),
            method,
            resource_type: R::TYPE,
            resource_id: head.id.clone(),
            changes: vec![unread],
        }
    }

    /// A secret of a resource was shown, or something was done with it that changes nothing of it.
    pub fn seen<R: Resource>(method: &'static str, resource: &R) -> Self {
        Self {
            tenant_id: resource.tenant_id().to_owned(),
            method,
            resource_type: R::TYPE,
            resource_id: resource.id().to_owned(),
            changes: Vec::new(),
        }
    }

    /// For a resource that does not name its tenant itself.
    #[must_use]
    pub fn of_tenant(self, tenant_id: impl ToString) -> Self {
        Self { tenant_id: tenant_id.to_string(), ..self }
    }
}

fn changes<R: Resource>(before: Option<&R>, after: Option<&R>) -> Vec<v1::AuditChange> {
    let encoded = |resource: Option<&R>| resource.map(Message::encode_to_vec);
    diff::changes(R::MESSAGE, R::FLAT_FIELD, encoded(before).as_deref(), encoded(after).as_deref())
}
