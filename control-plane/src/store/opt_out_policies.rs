//! Opt-out policies that differ from the default.

use gateway_core::id::TenantId;
use gateway_proto::v1::{self, config_resource::Resource};
use tonic::async_trait;

use super::{
    Connection, StoreError, WriteTx, body,
    damaged::{self, Found, LeftOut, PlainRow, Unread},
    readable,
};

const TYPE: &str = "opt_out_policy";

/// Reads opt-out policies. Their id is their instance's.
#[async_trait]
pub trait OptOutPolicyReads: Send {
    /// The policy of an instance.
    async fn opt_out_policy(&mut self, instance_id: &str) -> Result<Option<PlainRow>, StoreError>;

    /// What changed after `version`, by version and instance.
    async fn opt_out_policies_changed_since(&mut self, version: u64) -> Result<Vec<PlainRow>, StoreError>;
}

/// Changes opt-out policies.
#[async_trait]
pub trait OptOutPolicyWrites: Send {
    /// Writes the policy of an instance, in place of the one that it has. A conflict when there is no such instance.
    async fn put_opt_out_policy(&mut self, row: &PlainRow) -> Result<(), StoreError>;

    /// Removes the policy of an instance.
    async fn delete_opt_out_policy(&mut self, instance_id: &str) -> Result<(), StoreError>;
}

fn resource(row: &PlainRow) -> Result<v1::ConfigResource, StoreError> {
    let resource = Some(Resource::OptOutPolicy(body::read(row)?));
    Ok(v1::ConfigResource { version: row.version, resource })
}

/// Those that can be read, in the form that agents get.
fn resources(
    connection: &dyn Connection,
    rows: impl IntoIterator<Item = PlainRow>,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let readable = |row: PlainRow| {
        let what = LeftOut { resource_type: TYPE, id: row.id.clone() };
        let (instance_id, inbound_route_id) = (row.id.clone(), String::new());
        let unread = Unread { what, version: row.version, instance_id, inbound_route_id };
        readable(connection.damages(), unread, resource(&row), left_out)
    };
    rows.into_iter().filter_map(readable).collect()
}

/// The policy of an instance; None while it is the default.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    instance_id: &str,
) -> Result<Option<v1::OptOutPolicy>, StoreError> {
    connection.rows().opt_out_policy(instance_id).await?.map(|row| body::read(&row)).transpose()
}

/// The policy of an instance, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut dyn Connection,
    instance_id: &str,
) -> Result<Option<Found<v1::OptOutPolicy>>, StoreError> {
    let row = connection.rows().opt_out_policy(instance_id).await?;
    row.map(|row| damaged::or_head(body::read(&row), || row.head(connection.epoch()))).transpose()
}

/// The policy of an instance, in the form that agents get; none while it is the default. One that cannot be read is in
/// `left_out` instead.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_instance(
    connection: &mut dyn Connection,
    instance_id: &str,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let row = connection.rows().opt_out_policy(instance_id).await?;
    resources(connection, row, left_out)
}

/// Writes a policy under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written.
pub async fn put(
    transaction: &mut WriteTx,
    tenant_id: &TenantId,
    policy: &mut v1::OptOutPolicy,
) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    policy.etag = transaction.store().etag(version);
    transaction.writes().exhume(TYPE, &policy.instance_id).await?;
    let row = PlainRow {
        id: policy.instance_id.clone(),
        tenant_id: tenant_id.to_string(),
        parent_id: String::new(),
        version,
        body: body::of(policy),
    };
    transaction.mends(TYPE, &row.id);
    transaction.writes().put_opt_out_policy(&row).await
}

/// Removes the policy of an instance that is about to be removed.
pub(super) async fn delete(transaction: &mut WriteTx, instance_id: &str) -> Result<(), StoreError> {
    if transaction.rows().opt_out_policy(instance_id).await?.is_none() {
        return Ok(());
    }
    let version = transaction.bump_version().await?;
    transaction.mends(TYPE, instance_id);
    transaction.writes().delete_opt_out_policy(instance_id).await?;
    transaction.writes().bury(TYPE, instance_id, version).await
}

pub(super) async fn changed_since(
    connection: &mut dyn Connection,
    version: u64,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows = connection.rows().opt_out_policies_changed_since(version).await?;
    resources(connection, rows, left_out)
}
