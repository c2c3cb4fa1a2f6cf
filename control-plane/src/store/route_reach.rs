//! In which version the instances of an inbound route changed last.
//!
//! Agents get the routes of the instances that their region serves, so a route is for other regions when one
//! of its instances comes, goes or moves, although the route itself is what it was. What is noted here makes it
//! part of the changes since then.

use std::collections::BTreeSet;

use gateway_proto::v1;
use tonic::async_trait;

use super::{Connection, StoreError, WriteTx, body, damaged, damaged::PlainRow, instances};

/// Reads what decides who gets a route.
#[async_trait]
pub trait RouteReachReads: Send {
    /// All instances on a route, in no order.
    async fn instances_on_route(&mut self, route_id: &str) -> Result<Vec<PlainRow>, StoreError>;
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

/// Where an inbound route, or what hangs on an instance, goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// The regions that get it. Empty means every region, unless `is_unsure`.
    pub regions: Vec<String>,
    /// Whether it may be for other regions, too: of an instance that cannot be read nobody knows.
    pub is_unsure: bool,
}

/// The regions that get a route: those of its instances; all of them when one of its instances is served everywhere,
/// or it has none.
///
/// # Errors
/// When the database cannot be read.
pub async fn regions(connection: &mut dyn Connection, route_id: &str) -> Result<Reach, StoreError> {
    let rows = connection.rows().instances_on_route(route_id).await?;
    let (mut all, mut is_unsure) = (BTreeSet::new(), false);
    for row in rows {
        let read = body::read::<v1::Instance>(&row);
        match damaged::or_note(connection.damages(), (instances::TYPE, &row.id), read)? {
            Some(instance) if instance.regions.is_empty() => return Ok(Reach::default()),
            Some(instance) => all.extend(instance.regions),
            None => is_unsure = true,
        }
    }
    Ok(Reach { regions: all.into_iter().collect(), is_unsure })
}
