//! In which version the instances of an inbound route changed last.
//!
//! Agents get the routes of the instances that their region serves, so a route is for other regions when one
//! of its instances comes, goes or moves, although the route itself is what it was. What is noted here makes it
//! part of the changes since then.

use std::collections::BTreeSet;

use gateway_proto::v1;
use tonic::async_trait;

use super::{Connection, StoreError, WriteTx, decode};

/// Reads what decides who gets a route.
#[async_trait]
pub trait RouteReachReads: Send {
    /// The bodies of all instances on a route, in no order.
    async fn instance_bodies_of_route(&mut self, route_id: &str) -> Result<Vec<Vec<u8>>, StoreError>;
}

/// Notes what decides who gets a route.
#[async_trait]
pub trait RouteReachWrites: Send {
    /// Notes `version` for the route that an instance has, if it is there, and for `route_after`: from now on both
    /// are among the routes changed since before `version`.
    async fn touch_routes(
        &mut self,
        instance_id: &str,
        route_after: Option<&str>,
        version: u64,
    ) -> Result<(), StoreError>;
}

/// Notes that an instance is about to change in `version`: both the route that it has and the one that it will
/// have, if any.
pub(super) async fn touch(
    transaction: &mut WriteTx,
    instance_id: &str,
    route_after: Option<&str>,
    version: u64,
) -> Result<(), StoreError> {
    transaction.writes().touch_routes(instance_id, route_after, version).await
}

/// The regions that get a route: those of its instances. Empty means every region: one of its instances is
/// served everywhere, or it has none.
///
/// # Errors
/// When the database cannot be read.
pub async fn regions(connection: &mut dyn Connection, route_id: &str) -> Result<Vec<String>, StoreError> {
    let bodies = connection.rows().instance_bodies_of_route(route_id).await?;
    let mut all = BTreeSet::new();
    for body in bodies {
        let instance: v1::Instance = decode(&body)?;
        if instance.regions.is_empty() {
            return Ok(Vec::new());
        }
        all.extend(instance.regions);
    }
    Ok(all.into_iter().collect())
}
