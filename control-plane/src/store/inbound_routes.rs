//! Inbound routes: the route as operators see it, and as agents get it, with the callback token and the secret
//! values, sealed.

use std::fmt;

use gateway_core::tenant::TenantScope;
use gateway_proto::v1::{self, config_resource::Resource};
use prost::Message as _;
use tonic::async_trait;
use zeroize::Zeroizing;

use super::{
    Connection, StoreError, WriteTx, body,
    damaged::{self, Found, Head, LeftOut, Unread},
    open, readable, tenants, versions,
};
use crate::sealing::Sealer;

/// The type of inbound routes: the oneof field of `ConfigResource`.
pub const TYPE: &str = "inbound_route";

/// What the sealed `config` of a route is bound to, beside its tenant.
pub(super) fn sealed_resource(id: &str) -> String {
    format!("{TYPE}/{id}")
}

/// A route as operators see it, and as agents get it.
#[derive(Clone, PartialEq)]
pub struct StoredRoute {
    /// Without secret values.
    pub route: v1::InboundRoute,
    /// With secret values.
    pub config: v1::InboundRouteConfig,
}

impl fmt::Debug for StoredRoute {
    /// Without secret values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredRoute").field("id", &self.route.id).finish_non_exhaustive()
    }
}

/// A row of a configuration resource that is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedRow {
    /// The version in which it changed last.
    pub version: u64,
    /// Its id: the key.
    pub id: String,
    /// Its tenant, which stays; empty for the platform's.
    pub tenant_id: String,
    /// The resource as agents get it, sealed.
    pub sealed: Vec<u8>,
}

impl SealedRow {
    /// What is known without opening it, in the store `epoch`.
    pub(super) fn head(&self, epoch: &str) -> Head {
        let (id, tenant_id) = (self.id.clone(), self.tenant_id.clone());
        Head { id, tenant_id, etag: versions::etag(self.version, epoch) }
    }
}

/// A row of an inbound route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundRouteRow {
    /// Version, id, tenant, and the route as agents get it.
    pub row: SealedRow,
    /// Its provider, which stays.
    pub provider: i32,
    /// The route as operators see it.
    pub body: Vec<u8>,
}

/// Reads inbound routes.
#[async_trait]
pub trait InboundRouteReads: Send {
    /// A route, perhaps only of a tenant.
    async fn inbound_route(
        &mut self,
        tenant_id: Option<&str>,
        id: &str,
    ) -> Result<Option<InboundRouteRow>, StoreError>;

    /// Routes by id, after `after`, at most `limit`; only of a tenant, only of a provider.
    async fn inbound_routes(
        &mut self,
        tenant_id: Option<&str>,
        provider: Option<i32>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<InboundRouteRow>, StoreError>;

    /// The ids of all routes, or of those of a tenant, in no order.
    async fn inbound_route_ids(&mut self, tenant_id: Option<&str>) -> Result<Vec<String>, StoreError>;

    /// What changed after `version`, or was [touched] after it, by version and id.
    ///
    /// [touched]: super::route_reach::RouteReachWrites::touch_routes
    async fn inbound_routes_changed_since(&mut self, version: u64) -> Result<Vec<SealedRow>, StoreError>;
}

/// Changes inbound routes.
#[async_trait]
pub trait InboundRouteWrites: Send {
    /// Writes a new route, or version, body and configuration of the one that has the id. A conflict when the
    /// callback token, which stays, is another one's.
    async fn put_inbound_route(
        &mut self,
        row: &InboundRouteRow,
        callback_token: &str,
    ) -> Result<(), StoreError>;

    /// Removes a route. A conflict when an instance refers to it.
    async fn delete_inbound_route(&mut self, id: &str) -> Result<(), StoreError>;
}

/// A route within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<StoredRoute>, StoreError> {
    let row = connection.rows().inbound_route(scope.only(), id).await?;
    row.map(|row| read(connection.sealer(), &row)).transpose()
}

pub(super) fn read(
    sealer: &Sealer,
    InboundRouteRow { row, body, .. }: &InboundRouteRow,
) -> Result<StoredRoute, StoreError> {
    let config = open(sealer, &row.tenant_id, &sealed_resource(&row.id), &row.sealed)?;
    Ok(StoredRoute { route: body::decode(TYPE, &row.id, body)?, config })
}

/// A route of any tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_any(connection: &mut dyn Connection, id: &str) -> Result<Option<StoredRoute>, StoreError> {
    find(connection, &TenantScope::All, id).await
}

/// A route within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<StoredRoute>>, StoreError> {
    let Some(found) = connection.rows().inbound_route(scope.only(), id).await? else { return Ok(None) };
    let route = read(connection.sealer(), &found);
    damaged::or_head(route, || found.row.head(connection.epoch())).map(Some)
}

/// Routes in the order of their ids, after `after`. One that cannot be read says so, and shows what is known.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    provider: Option<i32>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::InboundRoute>, StoreError> {
    let after = after.unwrap_or_default();
    let rows = connection.rows().inbound_routes(scope.only(), provider, after, limit).await?;
    rows.iter().map(|row| listed(connection, row)).collect()
}

fn listed(connection: &dyn Connection, found: &InboundRouteRow) -> Result<v1::InboundRoute, StoreError> {
    match read(connection.sealer(), found) {
        Err(failure) if failure.is_damage() => {
            connection.damages().note(TYPE, &found.row.id, failure);
            let Head { id, tenant_id, etag } = found.row.head(connection.epoch());
            let head = v1::InboundRoute { id, tenant_id, provider: found.provider, ..Default::default() };
            // Only the secrets may be lost.
            Ok(v1::InboundRoute {
                is_damaged: true,
                etag,
                ..body::decode(TYPE, &found.row.id, &found.body).unwrap_or(head)
            })
        }
        whole => whole.map(|stored| stored.route),
    }
}

/// The ids of all routes within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn ids(connection: &mut dyn Connection, scope: &TenantScope) -> Result<Vec<String>, StoreError> {
    connection.rows().inbound_route_ids(scope.only()).await
}

/// The ids of a tenant's routes; none for an empty `tenant_id`, which is not a tenant.
///
/// # Errors
/// When the database cannot be read.
pub async fn ids_of_tenant(
    connection: &mut dyn Connection,
    tenant_id: &str,
) -> Result<Vec<String>, StoreError> {
    if tenant_id.is_empty() {
        return Ok(Vec::new());
    }
    connection.rows().inbound_route_ids(Some(tenant_id)).await
}

/// Writes a new or changed route under a new version; sets its etag.
///
/// # Errors
/// When the database cannot be written, or the token is taken.
pub async fn put(transaction: &mut WriteTx, stored: &mut StoredRoute) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    stored.route.etag = transaction.store().etag(version);
    let config = Zeroizing::new(stored.config.encode_to_vec());
    let (id, tenant_id) = (stored.route.id.clone(), stored.route.tenant_id.clone());
    let sealed = transaction.seal(&tenant_id, &sealed_resource(&id), &config).await?;
    transaction.writes().exhume(TYPE, &id).await?;
    let row = InboundRouteRow {
        row: SealedRow { version, id, tenant_id, sealed },
        provider: stored.route.provider,
        body: body::of(&stored.route),
    };
    transaction.mends(TYPE, &row.row.id);
    transaction.writes().put_inbound_route(&row, &stored.config.callback_token).await
}

/// Removes a route that no instance refers to.
///
/// # Errors
/// When the database cannot be written, or an instance refers to it.
pub async fn delete(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    let version = transaction.bump_version().await?;
    tenants::remember_owner(transaction, TYPE, id).await?;
    transaction.writes().delete_inbound_route(id).await?;
    transaction.mends(TYPE, id);
    transaction.writes().bury(TYPE, id, version).await
}

pub(super) async fn changed_since(
    connection: &mut dyn Connection,
    version: u64,
    left_out: &mut Vec<Unread>,
) -> Result<Vec<v1::ConfigResource>, StoreError> {
    let rows = connection.rows().inbound_routes_changed_since(version).await?;
    let resource = |SealedRow { version, id, tenant_id, sealed }: SealedRow| {
        let config = open(connection.sealer(), &tenant_id, &sealed_resource(&id), &sealed);
        let resource = config.map(|config| Some(Resource::InboundRoute(config)));
        let what = LeftOut { resource_type: TYPE, id };
        let unread = Unread { what, version, instance_id: String::new(), inbound_route_id: String::new() };
        let resource = resource.map(|resource| v1::ConfigResource { version, resource });
        readable(connection.damages(), unread, resource, left_out)
    };
    rows.into_iter().filter_map(resource).collect()
}
