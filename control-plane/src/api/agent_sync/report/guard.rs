//! What an agent of one tenant may say: what is that tenant's. Anything else is taken out and the rest of the
//! message counts, since refusing it would hold up everything behind it. Agents of the platform may say anything.
//!
//! Instances are looked at where reports are read, and logs of other tenants' events where they are written.

use std::collections::HashMap;

use gateway_proto::v1::{self, report::Report as Reported};
use tracing::warn;

use crate::{
    api::authorize::AgentIdentity,
    store::{Store, StoreError, tenants},
};

/// Routes and subscriptions whose tenant is remembered; beyond that it starts anew.
const KNOWN_MAX: usize = 10_000;

/// Whose routes and subscriptions an agent speaks of.
pub(super) struct Guard {
    store: Store,
    agent_id: String,
    tenant_id: Option<String>,
    /// Whether they are the tenant's. What the store does not know is not in it, since it may know it soon.
    routes: HashMap<String, bool>,
    subscriptions: HashMap<String, bool>,
}

impl Guard {
    pub(super) fn new(store: Store, identity: &AgentIdentity) -> Self {
        let (agent_id, tenant_id) = (identity.agent_id.clone(), identity.tenant_id.clone());
        Self { store, agent_id, tenant_id, routes: HashMap::new(), subscriptions: HashMap::new() }
    }

    /// Whether the agent may speak of what is this tenant's.
    pub(super) fn allows_tenant(&self, tenant_id: &str) -> bool {
        let may = self.tenant_id.as_ref().is_none_or(|own| own == tenant_id);
        if !may {
            self.skipped();
        }
        may
    }

    /// The report without what it says of other tenants' routes and webhook subscriptions; None when nothing is
    /// left.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) async fn own(&mut self, report: Reported) -> Result<Option<Reported>, StoreError> {
        let Some(tenant_id) = self.tenant_id.clone() else { return Ok(Some(report)) };
        let own = match report {
            Reported::Event(mut event) => {
                if let Some(log) = &mut event.inbound_log {
                    self.keep_own(&tenant_id, &mut log.deliveries, |one| &one.subscription_id).await?;
                }
                self.keep_own(&tenant_id, &mut event.attempts, |one| &one.subscription_id).await?;
                Some(Reported::Event(event))
            }
            Reported::Attempts(mut report) => {
                self.keep_own(&tenant_id, &mut report.deliveries, |one| &one.subscription_id).await?;
                self.keep_own(&tenant_id, &mut report.attempts, |one| &one.subscription_id).await?;
                Some(Reported::Attempts(report))
            }
            Reported::DestinationGone(gone) => {
                let is_own = self.is_own_subscription(&tenant_id, &gone.subscription_id).await?;
                is_own.then_some(Reported::DestinationGone(gone))
            }
            Reported::UnroutedCallback(callback) => {
                let is_own = self.is_own_route(&tenant_id, &callback).await?;
                is_own.then_some(Reported::UnroutedCallback(callback))
            }
            // Looked at where its event's instance is.
            other @ (Reported::Duplicate(_)
            | Reported::OptOut(_)
            | Reported::BufferDamage(_)
            | Reported::DeliveryHandOver(_)) => Some(other),
        };
        if own.is_none() {
            self.skipped();
        }
        Ok(own)
    }

    async fn keep_own<T>(
        &mut self,
        tenant_id: &str,
        all: &mut Vec<T>,
        subscription_id: impl Fn(&T) -> &String,
    ) -> Result<(), StoreError> {
        let before = all.len();
        let mut kept = Vec::with_capacity(before);
        for one in all.drain(..) {
            if self.is_own_subscription(tenant_id, subscription_id(&one)).await? {
                kept.push(one);
            }
        }
        *all = kept;
        if all.len() < before {
            self.skipped();
        }
        Ok(())
    }

    async fn is_own_subscription(&mut self, tenant_id: &str, id: &str) -> Result<bool, StoreError> {
        if let Some(is_own) = self.subscriptions.get(id) {
            return Ok(*is_own);
        }
        let owner = tenants::of_subscription(&self.store, id).await?;
        Ok(remember(&mut self.subscriptions, id, owner, tenant_id))
    }

    async fn is_own_route(
        &mut self,
        tenant_id: &str,
        callback: &v1::UnroutedCallback,
    ) -> Result<bool, StoreError> {
        let id = callback.inbound_route_id.as_str();
        if let Some(is_own) = self.routes.get(id) {
            return Ok(*is_own);
        }
        let owner = tenants::of_route(&self.store, id).await?;
        Ok(remember(&mut self.routes, id, owner, tenant_id))
    }

    fn skipped(&self) {
        warn!(gateway.agent.id = self.agent_id, "skipped what an agent reported about another tenant");
    }
}

/// Whether what `owner` has is the tenant's; what is unknown is not.
fn remember(known: &mut HashMap<String, bool>, id: &str, owner: Option<String>, tenant_id: &str) -> bool {
    let Some(owner) = owner else { return false };
    if known.len() >= KNOWN_MAX {
        known.clear();
    }
    let is_own = owner == tenant_id;
    known.insert(id.to_owned(), is_own);
    is_own
}
