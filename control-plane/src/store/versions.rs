//! The configuration version, and what was removed from the configuration in which version.

use gateway_proto::v1;
use tonic::async_trait;

use super::{Connection, StoreError};

/// Order of removals: what refers to others goes before what is referred to.
pub const REMOVAL_ORDER: [&str; 4] = ["webhook_subscription", "opt_out_policy", "instance", "inbound_route"];

/// Reads the version and what was removed.
#[async_trait]
pub trait VersionReads: Send {
    /// The version: 0 in a new database.
    async fn version(&mut self) -> Result<u64, StoreError>;

    /// Type and id of what was removed after `version`, once each, by type and id. What is there again is among them only if
    /// that was noted with [`VersionWrites::reuse`].
    async fn removed_since(&mut self, version: u64) -> Result<Vec<(String, String)>, StoreError>;
}

/// Changes the version, and notes what is removed.
#[async_trait]
pub trait VersionWrites: Send {
    /// Adds one to the version, in this transaction, and gives the sum. So committed versions have no gap, and a
    /// version that was given and not committed is given again.
    async fn bump_version(&mut self) -> Result<u64, StoreError>;

    /// Changes something that nobody reads.
    async fn try_write(&mut self) -> Result<(), StoreError>;

    /// Notes that a resource is gone since `version`, in place of an earlier note of it.
    async fn bury(&mut self, resource_type: &'static str, id: &str, version: u64) -> Result<(), StoreError>;

    /// Notes that the id of a removed resource is in use again, for one that may be sent to others than the one before.
    async fn reuse(&mut self, resource_type: &'static str, id: &str) -> Result<(), StoreError>;

    /// Forgets that a resource was gone, since its id is in use again.
    async fn exhume(&mut self, resource_type: &'static str, id: &str) -> Result<(), StoreError>;
}

/// The etag of a resource last changed in `version` of the store `epoch`.
pub(super) fn etag(version: u64, epoch: &str) -> String {
    let head: String = epoch.chars().take(8).collect();
    format!("{version}-{head}")
}

pub(super) async fn removed_since(
    connection: &mut dyn Connection,
    version: u64,
) -> Result<Vec<v1::ConfigRemoval>, StoreError> {
    let rows = connection.rows().removed_since(version).await?;
    let mut removals: Vec<_> =
        rows.into_iter().map(|(r#type, id)| v1::ConfigRemoval { r#type, id, deleted: true }).collect();
    removals.sort_by_key(|removal| REMOVAL_ORDER.iter().position(|known| *known == removal.r#type));
    Ok(removals)
}
