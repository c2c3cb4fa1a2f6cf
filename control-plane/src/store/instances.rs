//! Instances.

use gateway_core::tenant::TenantScope;
use gateway_proto::v1::{self, config_resource::Resource};
use tonic::async_trait;

use super::{
    Connection, StoreError, WriteTx, body,
    damaged::{self, Found, Head, LeftOut, PlainRow, Unread},
    opt_out_policies, readable, route_reach, tenants, work,
};

/// The type of instances: the oneof field of `ConfigResource`.
pub const TYPE: &str = "instance";

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
    /// An instance.
    async fn instance(&mut self, id: &str) -> Result<Option<PlainRow>, StoreError>;

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

    /// Instances by id, after `after`, at most `limit`; only of a tenant, only of a route.
    async fn instances(
        &mut self,
        tenant_id: Option<&str>,
        inbound_route_id: Option<&str>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<PlainRow>, StoreError>;

    /// What changed after `version`, by version and id.
    async fn instances_changed_since(&mut self, version: u64) -> Result<Vec<PlainRow>, StoreError>;
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
    let row = connection.rows().instance(id).await?.filter(|row| scope.contains(&row.tenant_id));
    row.map(|row| body::read(&row)).transpose()
}

/// An instance within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<v1::Instance>>, StoreError> {
    let row = connection.rows().instance(id).await?.filter(|row| scope.contains(&row.tenant_id));
    row.map(|row| damaged::or_head(body::read(&row), || row.head(connection.epoch()))).transpose()
}

/// An instance of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(connection: &mut dyn Connection, id: &str) -> Result<Option<v1::Instance>, StoreError> {
    connection.rows().instance(id).await?.map(|row| body::read(&row)).transpose()
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

/// Instances in the order of their ids, after `after`. One that cannot be read says so, and shows what is known.
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
    let rows = connection.rows().instances(scope.only(), inbound_route_id, after, limit).await?;
    rows.iter().map(|row| listed(connection, row)).collect()
}

fn listed(connection: &dyn Connection, row: &PlainRow) -> Result<v1::Instance, StoreError> {
    let whole = damaged::or_note(connection.damages(), (TYPE, &row.id), body::read(row))?;
    Ok(whole.unwrap_or_else(|| {
        let Head { id, tenant_id, etag } = row.head(connection.epoch());
        let inbound_route_id = row.parent_id.clone();
        v1::Instance { id, tenant_id, inbound_route_id, etag, is_damaged: true, ..Default::default() }
    }))
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
        body: &body::of(instance),
    };
    transaction.writes().put_instance(row).await?;
    transaction.mends(TYPE, &instance.id);
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
    transaction.mends(TYPE, id);
    transaction.writes().bury(TYPE, id, version).await
}

pub(super) async fn changed_since(
    connection: &mut dyn Connection,
    version: u64,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows = connection.rows().instances_changed_since(version).await?;
    let resource = |row: PlainRow| {
        let resource = body::read(&row).map(|instance| Some(Resource::Instance(instance)));
        let PlainRow { id, parent_id, version, .. } = row;
        let resource = resource.map(|resource| v1::ConfigResource { version, resource });
        let what = LeftOut { resource_type: TYPE, id: id.clone() };
        let unread = Unread { what, version, instance_id: id, inbound_route_id: parent_id };
        readable(connection.damages(), unread, resource, left_out)
    };
    rows.into_iter().filter_map(resource).collect()
}
