//! Webhook subscriptions, each with its secrets: the form that agents get, sealed.

use std::collections::{HashMap, HashSet};

use gateway_core::{destination, tenant::TenantScope, time};
use gateway_proto::v1::{self, config_resource::Resource};
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use tonic::async_trait;
use zeroize::Zeroizing;

use super::{
    Connection, StoreError, WriteTx,
    damaged::{self, Damages, Found, Head, LeftOut, Unread},
    inbound_routes::SealedRow,
    readable, tenants,
};
use crate::{
    audit::{Audited, AuditedBy},
    sealing::Sealer,
};

pub(crate) const TYPE: &str = "webhook_subscription";
/// Rows that [`instances_of`] reads at a time.
const READ_AT_A_TIME: i64 = 500;

/// What the sealed `config` of a subscription is bound to, beside its tenant.
pub(super) fn sealed_resource(id: &str) -> String {
    format!("{TYPE}/{id}")
}

/// A row of a webhook subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionRow {
    /// Version, id, tenant and configuration.
    pub row: SealedRow,
    /// Its instance, which stays.
    pub instance_id: String,
}

/// Reads webhook subscriptions.
#[async_trait]
pub trait WebhookSubscriptionReads: Send {
    /// A subscription, perhaps only of a tenant.
    async fn webhook_subscription(
        &mut self,
        tenant_id: Option<&str>,
        id: &str,
    ) -> Result<Option<SealedRow>, StoreError>;

    /// Subscriptions by id, after `after`, at most `limit`; only of a tenant, only of an instance.
    async fn webhook_subscriptions(
        &mut self,
        tenant_id: Option<&str>,
        instance_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<SubscriptionRow>, StoreError>;

    /// All subscriptions of an instance, by id.
    async fn webhook_subscriptions_of_instance(
        &mut self,
        instance_id: &str,
    ) -> Result<Vec<SubscriptionRow>, StoreError>;

    /// Whether an instance has a subscription.
    async fn has_webhook_subscription(&mut self, instance_id: &str) -> Result<bool, StoreError>;

    /// The instances of a route that have a subscription, by id.
    async fn subscribed_instances_of_route(
        &mut self,
        inbound_route_id: &str,
    ) -> Result<Vec<String>, StoreError>;

    /// What changed after `version`, by version and id.
    async fn webhook_subscriptions_changed_since(
        &mut self,
        version: u64,
    ) -> Result<Vec<SubscriptionRow>, StoreError>;
}

/// Changes webhook subscriptions.
#[async_trait]
pub trait WebhookSubscriptionWrites: Send {
    /// Writes a new subscription, or version and configuration of the one that has the id. A conflict when there is
    /// no such instance.
    async fn put_webhook_subscription(&mut self, row: &SubscriptionRow) -> Result<(), StoreError>;

    /// Removes a subscription.
    async fn delete_webhook_subscription(&mut self, id: &str) -> Result<(), StoreError>;
}

pub(super) fn open(sealer: &Sealer, row: &SealedRow) -> Result<v1::WebhookSubscriptionConfig, StoreError> {
    super::open(sealer, &row.tenant_id, &sealed_resource(&row.id), &row.sealed)
}

/// The form that agents get.
fn resource(sealer: &Sealer, row: &SealedRow) -> Result<v1::ConfigResource, StoreError> {
    let mut config = open(sealer, row)?;
    // Agents get no key that they do not need.
    if !config.webhook_subscription.as_ref().is_some_and(|found| found.asymmetric_signature) {
        config.signing_keys.clear();
    }
    let resource = Some(Resource::WebhookSubscription(config));
    Ok(v1::ConfigResource { version: row.version, resource })
}

/// Those that can be read, in the form that agents get.
fn resources(
    (sealer, damages): (&Sealer, &Damages),
    rows: Vec<SubscriptionRow>,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let readable = |SubscriptionRow { row, instance_id }| {
        let resource = resource(sealer, &row);
        let what = LeftOut { resource_type: TYPE, id: row.id };
        let unread = Unread { what, version: row.version, instance_id, inbound_route_id: String::new() };
        readable(damages, unread, resource, left_out)
    };
    rows.into_iter().filter_map(readable).collect()
}

/// A subscription within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::WebhookSubscriptionConfig>, StoreError> {
    let row = connection.rows().webhook_subscription(scope.only(), id).await?;
    row.map(|row| open(connection.sealer(), &row)).transpose()
}

/// A subscription of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(
    connection: &mut dyn Connection,
    id: &str,
) -> Result<Option<v1::WebhookSubscriptionConfig>, StoreError> {
    find(connection, &TenantScope::All, id).await
}

/// A subscription within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<v1::WebhookSubscriptionConfig>>, StoreError> {
    let Some(row) = connection.rows().webhook_subscription(scope.only(), id).await? else { return Ok(None) };
    damaged::or_head(open(connection.sealer(), &row), || row.head(connection.epoch())).map(Some)
}

/// Subscriptions in the order of their ids, after `after`. One that cannot be read says so, and shows what is known.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    instance_id: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::WebhookSubscription>, StoreError> {
    let after = after.unwrap_or_default();
    let rows = connection.rows().webhook_subscriptions(scope.only(), instance_id, after, limit).await?;
    rows.iter().map(|row| listed(connection, row)).collect()
}

fn listed(
    connection: &dyn Connection,
    found: &SubscriptionRow,
) -> Result<v1::WebhookSubscription, StoreError> {
    match open(connection.sealer(), &found.row) {
        Err(failure) if failure.is_damage() => {
            connection.damages().note(TYPE, &found.row.id, failure);
            let Head { id, tenant_id, etag } = found.row.head(connection.epoch());
            let (instance_id, is_damaged) = (found.instance_id.clone(), true);
            Ok(v1::WebhookSubscription { id, tenant_id, instance_id, etag, is_damaged, ..Default::default() })
        }
        opened => opened.map(|config| config.webhook_subscription.unwrap_or_default()),
    }
}

/// Whether an instance has a subscription, in whatever state.
///
/// # Errors
/// When the database cannot be read.
pub async fn has_any(connection: &mut dyn Connection, instance_id: &str) -> Result<bool, StoreError> {
    connection.rows().has_webhook_subscription(instance_id).await
}

/// The instances of a route that have a subscription.
///
/// # Errors
/// When the database cannot be read.
pub async fn instances_of_route(
    connection: &mut dyn Connection,
    inbound_route_id: &str,
) -> Result<Vec<String>, StoreError> {
    connection.rows().subscribed_instances_of_route(inbound_route_id).await
}

/// The instances of subscriptions that need not be readable, by the subscriptions' ids. Reads all subscriptions.
///
/// # Errors
/// When the database cannot be read.
pub async fn instances_of(
    connection: &mut dyn Connection,
    ids: &HashSet<&str>,
) -> Result<HashMap<String, String>, StoreError> {
    let (mut after, mut found) = (String::new(), HashMap::new());
    loop {
        let rows = connection.rows().webhook_subscriptions(None, None, &after, READ_AT_A_TIME).await?;
        let Some(last) = rows.last() else { return Ok(found) };
        after.clone_from(&last.row.id);
        let named = rows.into_iter().filter(|row| ids.contains(row.row.id.as_str()));
        found.extend(named.map(|row| (row.row.id, row.instance_id)));
    }
}

/// Writes a new or changed subscription under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written.
pub async fn put(
    transaction: &mut WriteTx,
    config: &mut v1::WebhookSubscriptionConfig,
) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    let subscription = config.webhook_subscription.get_or_insert_default();
    subscription.etag = transaction.store().etag(version);
    let (id, tenant_id) = (subscription.id.clone(), subscription.tenant_id.clone());
    let instance_id = subscription.instance_id.clone();
    let plain = Zeroizing::new(config.encode_to_vec());
    let sealed = transaction.seal(&tenant_id, &sealed_resource(&id), &plain).await?;
    // Agents that are not sent this one may have one of the same id that was deleted.
    transaction.writes().reuse(TYPE, &id).await?;
    transaction.mends(TYPE, &id);
    let row = SubscriptionRow { row: SealedRow { version, id, tenant_id, sealed }, instance_id };
    transaction.writes().put_webhook_subscription(&row).await
}

/// Removes a subscription.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    tenants::remember_owner(transaction, TYPE, id).await?;
    transaction.writes().delete_webhook_subscription(id).await?;
    transaction.mends(TYPE, id);
    transaction.writes().bury(TYPE, id, version).await
}

/// Pauses an active subscription that still has this destination. True when it did.
pub(super) async fn pause_gone(
    transaction: &mut WriteTx,
    id: &str,
    destination_url: &str,
    reason: &str,
) -> Result<bool, StoreError> {
    let Some(mut config) = find_any(transaction, id).await? else { return Ok(false) };
    let subscription = config.webhook_subscription.get_or_insert_default();
    let is_active = subscription.state() == v1::WebhookSubscriptionState::Active;
    if !is_active || !destination::is_same(&subscription.destination_url, destination_url) {
        return Ok(false);
    }
    pause(transaction, &mut config, reason).await?;
    Ok(true)
}

/// Pauses an active subscription that was found at `found` to have nothing but failures, unless it was changed
/// after that. True when it was paused.
pub(super) async fn pause_failing(
    transaction: &mut WriteTx,
    id: &str,
    found: Timestamp,
    reason: &str,
) -> Result<bool, StoreError> {
    let Some(mut config) = find_any(transaction, id).await? else { return Ok(false) };
    let subscription = config.webhook_subscription.get_or_insert_default();
    let is_active = subscription.state() == v1::WebhookSubscriptionState::Active;
    let changed = subscription.update_time.as_ref().and_then(time::from_proto);
    if !is_active || changed.is_some_and(|changed| changed > found) {
        return Ok(false);
    }
    pause(transaction, &mut config, reason).await?;
    Ok(true)
}

async fn pause(
    transaction: &mut WriteTx,
    config: &mut v1::WebhookSubscriptionConfig,
    reason: &str,
) -> Result<(), StoreError> {
    let before = config.clone();
    let subscription = config.webhook_subscription.get_or_insert_default();
    subscription.set_state(v1::WebhookSubscriptionState::Paused);
    reason.clone_into(&mut subscription.pause_reason);
    subscription.update_time = Some(time::to_proto(clock::now()));
    put(transaction, config).await?;
    let audited = Audited::changed("PauseWebhookSubscription", &before, config);
    transaction.audit(AuditedBy::GATEWAY, audited).await
}

/// The subscriptions of an instance, in the form that agents get. Those that cannot be read are in `left_out` instead.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_instance(
    connection: &mut dyn Connection,
    instance_id: &str,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows = connection.rows().webhook_subscriptions_of_instance(instance_id).await?;
    resources((connection.sealer(), connection.damages()), rows, left_out)
}

pub(super) async fn changed_since(
    connection: &mut dyn Connection,
    version: u64,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows = connection.rows().webhook_subscriptions_changed_since(version).await?;
    resources((connection.sealer(), connection.damages()), rows, left_out)
}
