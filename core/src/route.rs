//! (event, snapshot) → deliveries: who gets an event.

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

/// Whether the instance has a subscription that named the event or a wildcard that covers it.
pub fn is_selected(snapshot: &Snapshot, instance_id: &InstanceId, event_type: EventType) -> bool {
    subscribers(snapshot, instance_id, event_type).next().is_some()
}
