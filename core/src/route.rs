//! (event, snapshot) → deliveries: who gets an event. And whose a callback is that carries no number.

use std::sync::Arc;

use crate::{
    event::EventType,
    id::InstanceId,
    snapshot::{Snapshot, SubscriptionConfig},
};

/// The webhook subscriptions of the instance that selected the event, paused ones included: what is owed
/// to them is held.
pub fn subscribers<'a>(
    snapshot: &'a Snapshot,
    instance_id: &InstanceId,
    event_type: EventType,
) -> impl Iterator<Item = &'a Arc<SubscriptionConfig>> {
    snapshot
        .subscriptions_of(instance_id)
        .iter()
        .filter(move |subscription| subscription.events.matches(event_type))
}

/// The tenant of an instance and the provider's account that its number belongs to, where that is known.
pub struct AccountOf<'a> {
    /// The tenant.
    pub tenant_id: &'a str,
    /// The account.
    pub provider_account_id: Option<&'a str>,
}

/// The instances of a route that a callback is about which carries an account, or nothing, but no number: those
/// that name the account; or else, if all instances of the route belong to one tenant, those that name none.
/// What one customer's account does is none of another's business: where it cannot be told whose it is, nobody
/// gets it. A callback without an account is about all instances, if they belong to one tenant.
pub fn instances_of_account<'a, T>(
    of_route: &'a [T],
    account_id: Option<&str>,
    read: impl Fn(&T) -> AccountOf<'_>,
) -> Vec<&'a T> {
    let with = |wanted: Option<&str>| -> Vec<&T> {
        of_route.iter().filter(|one| read(one).provider_account_id == wanted).collect()
    };
    let everything: Vec<&T> = of_route.iter().collect();
    let (found, kept_apart) = match account_id.map(|account_id| with(Some(account_id))) {
        None => (everything.clone(), everything),
        Some(named) if named.is_empty() => (with(None), everything),
        Some(named) => (named.clone(), named),
    };
    let one_tenant = kept_apart.windows(2).all(|pair| read(pair[0]).tenant_id == read(pair[1]).tenant_id);
    if one_tenant { found } else { Vec::new() }
}

/// Whether the instance has a subscription that named the event or a wildcard that covers it.
pub fn is_selected(snapshot: &Snapshot, instance_id: &InstanceId, event_type: EventType) -> bool {
    subscribers(snapshot, instance_id, event_type).next().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tenants and accounts of a route's instances, the account of a callback, and which instances it is about.
    #[test]
    fn accounts_pick_their_instances() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, &'a [usize]);
        let cases: [Case<'_>; 9] = [
            (&[("a", "1"), ("b", "2")], Some("2"), &[1]),
            (&[("a", "1"), ("b", "2")], Some("3"), &[]),
            (&[("a", "1"), ("b", "2")], None, &[]),
            (&[("a", "1"), ("b", "1")], Some("1"), &[]),
            (&[("a", "1"), ("b", "")], Some("1"), &[0]),
            (&[("a", "1"), ("b", "")], Some("2"), &[]),
            (&[("a", "1"), ("a", "")], Some("2"), &[1]),
            (&[("a", "1"), ("a", "")], None, &[0, 1]),
            (&[], Some("1"), &[]),
        ];
        for (instances, account, expected) in cases {
            let numbered: Vec<_> = instances.iter().copied().enumerate().collect();
            let found = instances_of_account(&numbered, account, |(_, (tenant_id, account))| AccountOf {
                tenant_id,
                provider_account_id: Some(*account).filter(|account| !account.is_empty()),
            });
            let found: Vec<_> = found.into_iter().map(|(number, _)| *number).collect();
            assert_eq!(found, expected, "{instances:?} {account:?}");
        }
    }
}
