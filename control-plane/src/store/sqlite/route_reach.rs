//! Table `route_reach`: in which version the instances of an inbound route changed last.
//!
//! Agents get the routes of the instances that their region serves, so a route is for other regions when one
//! of its instances comes, goes or moves, although the route itself is what it was. The row makes it part of
//! the changes since then.

use std::collections::BTreeSet;

use gateway_proto::v1;
use sqlx::SqliteConnection;

use super::{StoreError, decode};

/// The table.
pub const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS route_reach (
    route_id TEXT PRIMARY KEY NOT NULL,
    version INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS route_reach_version ON route_reach (version);
";

/// Notes that an instance is about to change in `version`: both the route that it has and the one that it will
/// have, if any.
///
/// # Errors
/// When the database cannot be written.
pub async fn touch(
    connection: &mut SqliteConnection,
    instance_id: &str,
    route_after: Option<&str>,
    version: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT OR REPLACE INTO route_reach (route_id, version)
         SELECT inbound_route_id, ?3 FROM instances WHERE id = ?1
         UNION SELECT ?2, ?3 WHERE ?2 IS NOT NULL",
    )
    .bind(instance_id)
    .bind(route_after)
    .bind(version)
    .execute(connection)
    .await?;
    Ok(())
}

/// The regions that get a route: those of its instances. Empty means every region: one of its instances is
/// served everywhere, or it has none.
///
/// # Errors
/// When the database cannot be read.
pub async fn regions(connection: &mut SqliteConnection, route_id: &str) -> Result<Vec<String>, StoreError> {
    let bodies: Vec<Vec<u8>> = sqlx::query_scalar("SELECT body FROM instances WHERE inbound_route_id = ?1")
        .bind(route_id)
        .fetch_all(connection)
        .await?;
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
