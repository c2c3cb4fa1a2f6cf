//! Instances.

use gateway_core::tenant::TenantScope;
use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use tonic::async_trait;

use super::{
    Connection, StoreError, WriteTx, decode, decode_all, opt_out_policies, route_reach, tenants, work,
};

const TYPE: &str = "instance";

/// A row of a configuration resource that is not sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionedBody {
    /// The version in which it changed last.
    pub version: u64,
    /// The resource.
    pub body: Vec<u8>,
}

/// A row of an instance.
#[derive(Debug, Clone, Copy)]
pub struct InstanceRow<'a> {
    /// Its id: the key.
    pub id: &'a str,
    /// Its tenant, which stays.
    pub tenant_id: &'a str,
    /// The version in which it changes.
    pub version: u64,
    /// Its inbound route.
    pub inbound_route_id: &'a str,
    /// `provider_number_id` in the form in which it is unique within the route.
    pub number_key: &'a str,
    /// The resource.
    pub body: &'a [u8],
}

/// Reads instances.
#[async_trait]
pub trait InstanceReads: Send {
    /// The body of an instance.
    async fn instance(&mut self, id: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// The id of the instance that has a number on a route.
    async fn instance_of_number(
        &mut self,
        inbound_route_id: &str,
        number_key: &str,
    ) -> Result<Option<String>, StoreError>;

    /// Ids of instances of a route, by id, at most `limit`.
    async fn instance_ids_of_route(
        &mut self,
        inbound_route_id: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError>;

    /// Ids and routes of all instances of a tenant, in no order.
    async fn instance_routes_of_tenant(
        &mut self,
        tenant_id: &str,
    ) -> Result<Vec<(String, String)>, StoreError>;

    /// Bodies by id, after `after`, at most `limit`; only of a tenant, only of a route.
    async fn instances(
        &mut self,
        tenant_id: Option<&str>,
        inbound_route_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<Vec<u8>>, StoreError>;

    /// What changed after `version`, by version and id.
    async fn instances_changed_since(&mut self, version: u64) -> Result<Vec<VersionedBody>, StoreError>;
}

/// Changes instances.
#[async_trait]
pub trait InstanceWrites: Send {
    /// Writes a new instance, or version, route, number and body of the one that has the id. A [`Conflict`] when
    /// another one has the number on the route, or there is no such route.
    ///
    /// [`Conflict`]: super::Trouble::Conflict
    async fn put_instance(&mut self, row: InstanceRow<'_>) -> Result<(), StoreError>;

    /// Removes an instance. A conflict when a policy or a webhook subscription refers to it.
    async fn delete_instance(&mut self, id: &str) -> Result<(), StoreError>;
}

/// An instance within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::Instance>, StoreError> {
    Ok(find_any(connection, id).await?.filter(|instance| scope.contains(&instance.tenant_id)))
}

/// An instance of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(connection: &mut dyn Connection, id: &str) -> Result<Option<v1::Instance>, StoreError> {
    connection.rows().instance(id).await?.map(|body| decode(&body)).transpose()
}

/// The id of the instance that has a number on a route.
///
/// # Errors
/// When the database cannot be read.
pub async fn holder_of_number(
    connection: &mut dyn Connection,
    inbound_route_id: &str,
    number_key: &str,
) -> Result<Option<String>, StoreError> {
    connection.rows().instance_of_number(inbound_route_id, number_key).await
}

/// Ids of instances of a route, at most `limit`.
///
/// # Errors
/// When the database cannot be read.
pub async fn ids_of_route(
    connection: &mut dyn Connection,
    inbound_route_id: &str,
    limit: u32,
) -> Result<Vec<String>, StoreError> {
    connection.rows().instance_ids_of_route(inbound_route_id, limit).await
}

/// Ids of all instances of a tenant, each with its inbound route's.
///
/// # Errors
/// When the database cannot be read.
pub async fn routes_of_tenant(
    connection: &mut dyn Connection,
    tenant_id: &str,
) -> Result<Vec<(String, String)>, StoreError> {
    connection.rows().instance_routes_of_tenant(tenant_id).await
}

/// Instances in the order of their ids, after `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    inbound_route_id: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::Instance>, StoreError> {
    let after = after.unwrap_or_default();
    decode_all(&connection.rows().instances(scope.only(), inbound_route_id, after, limit).await?)
}

/// Writes a new or changed instance under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written, or the number is taken.
pub async fn put(
    transaction: &mut WriteTx,
    instance: &mut v1::Instance,
    number_key: &str,
) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    instance.etag = transaction.store().etag(version);
    transaction.writes().exhume(TYPE, &instance.id).await?;
    route_reach::touch(transaction, &instance.id, Some(&instance.inbound_route_id), version).await?;
    let row = InstanceRow {
        id: &instance.id,
        tenant_id: &instance.tenant_id,
        version,
        inbound_route_id: &instance.inbound_route_id,
        number_key,
        body: &instance.encode_to_vec(),
    };
    transaction.writes().put_instance(row).await?;
    work::follow_instance(transaction, instance, version).await
}

/// Removes an instance and its policy. Its opt-outs stay: they outlive it, should its id come back.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    opt_out_policies::delete(transaction, id).await?;
    let version = transaction.bump_version().await?;
    tenants::remember_owner(transaction, TYPE, id).await?;
    route_reach::touch(transaction, id, None, version).await?;
    transaction.writes().delete_instance(id).await?;
    transaction.writes().bury(TYPE, id, version).await
}

pub(super) async fn changed_since(
    connection: &mut dyn Connection,
    version: u64,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows = connection.rows().instances_changed_since(version).await?;
    let resource = |VersionedBody { version, body }| {
        Ok(v1::ConfigResource { version, resource: Some(Resource::Instance(decode(&body)?)) })
    };
    rows.into_iter().map(resource).collect()
}
