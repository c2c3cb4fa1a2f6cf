//! Opt-out policies that differ from the default.

use gateway_core::id::TenantId;
use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use tonic::async_trait;

use super::{Connection, StoreError, WriteTx, decode, instances::VersionedBody};

const TYPE: &str = "opt_out_policy";

/// Reads opt-out policies.
#[async_trait]
pub trait OptOutPolicyReads: Send {
    /// The policy of an instance.
    async fn opt_out_policy(&mut self, instance_id: &str) -> Result<Option<VersionedBody>, StoreError>;

    /// What changed after `version`, by version and instance.
    async fn opt_out_policies_changed_since(
        &mut self,
        version: u64,
    ) -> Result<Vec<VersionedBody>, StoreError>;
}

/// Changes opt-out policies.
#[async_trait]
pub trait OptOutPolicyWrites: Send {
    /// Writes the policy of an instance, in place of the one that it has. A conflict when there is no such instance.
    async fn put_opt_out_policy(
        &mut self,
        instance_id: &str,
        tenant_id: &str,
        row: &VersionedBody,
    ) -> Result<(), StoreError>;

    /// Removes the policy of an instance.
    async fn delete_opt_out_policy(&mut self, instance_id: &str) -> Result<(), StoreError>;
}

fn resource(row: VersionedBody) -> Result<v1::ConfigResource, StoreError> {
    let resource = Some(Resource::OptOutPolicy(decode(&row.body)?));
    Ok(v1::ConfigResource { version: row.version, resource })
}

/// The policy of an instance; None while it is the default.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    instance_id: &str,
) -> Result<Option<v1::OptOutPolicy>, StoreError> {
    let row = connection.rows().opt_out_policy(instance_id).await?;
    row.map(|row| decode(&row.body)).transpose()
}

/// The policy of an instance, in the form that agents get; None while it is the default.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_instance(
    connection: &mut dyn Connection,
    instance_id: &str,
) -> Result<Option<v1::ConfigResource>, StoreError> {
    connection.rows().opt_out_policy(instance_id).await?.map(resource).transpose()
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
    let row = VersionedBody { version, body: policy.encode_to_vec() };
    transaction.writes().put_opt_out_policy(&policy.instance_id, tenant_id.as_str(), &row).await
}

/// Removes the policy of an instance that is about to be removed.
pub(super) async fn delete(transaction: &mut WriteTx, instance_id: &str) -> Result<(), StoreError> {
    if transaction.rows().opt_out_policy(instance_id).await?.is_none() {
        return Ok(());
    }
    let version = transaction.bump_version().await?;
    transaction.writes().delete_opt_out_policy(instance_id).await?;
    transaction.writes().bury(TYPE, instance_id, version).await
}

pub(super) async fn changed_since(
    connection: &mut dyn Connection,
    version: u64,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows = connection.rows().opt_out_policies_changed_since(version).await?;
    rows.into_iter().map(resource).collect()
}
