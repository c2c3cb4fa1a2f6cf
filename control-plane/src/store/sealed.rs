//! Which columns are sealed, and sealing all of them anew when data keys change.

use tonic::async_trait;

use super::{Connection as _, StoreError, WriteTx, inbound_routes, requests, webhook_subscriptions, work};

/// A table with a sealed column. Its rows have a tenant and a name of one or two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealedTable {
    /// Inbound routes, by id.
    InboundRoutes,
    /// Webhook subscriptions, by id.
    WebhookSubscriptions,
    /// Answers to requests, by method and request id.
    Requests,
    /// Queued work, by id.
    Work,
}

/// Every table with a sealed column. One that is missing here loses its contents when data keys are renewed.
pub const TABLES: [SealedTable; 4] =
    [SealedTable::InboundRoutes, SealedTable::WebhookSubscriptions, SealedTable::Requests, SealedTable::Work];

/// A sealed column of a row of a tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedColumn {
    /// The name of the row; its second part is empty where names have one.
    pub name: (String, String),
    /// The column.
    pub sealed: Vec<u8>,
}

/// Reads sealed columns, whatever is in them.
#[async_trait]
pub trait SealedReads: Send {
    /// At most `limit` rows of a tenant that are not sealed under the data key `key_id`, in no order. Bytes 1 to 8 of
    /// a sealed column, counted from 0, name its key.
    async fn sealed_under_others(
        &mut self,
        table: SealedTable,
        tenant_id: &str,
        key_id: &[u8],
        limit: u32,
    ) -> Result<Vec<SealedColumn>, StoreError>;
}

/// Changes sealed columns.
#[async_trait]
pub trait SealedWrites: Send {
    /// Changes the sealed column of a row, and nothing else of it: neither its version.
    async fn replace_sealed(
        &mut self,
        table: SealedTable,
        tenant_id: &str,
        column: &SealedColumn,
    ) -> Result<(), StoreError>;

    /// Notes that the disk holds what nobody is to read, for [`Engine::wipe_if_due`].
    ///
    /// [`Engine::wipe_if_due`]: super::Engine::wipe_if_due
    async fn note_wipe(&mut self) -> Result<(), StoreError>;
}

impl SealedTable {
    /// What a row is bound to, beside its tenant.
    pub(super) fn resource(self, (first, second): (&str, &str)) -> String {
        match self {
            Self::InboundRoutes => inbound_routes::sealed_resource(first),
            Self::WebhookSubscriptions => webhook_subscriptions::sealed_resource(first),
            Self::Requests => requests::sealed_resource(first, second),
            Self::Work => work::sealed_resource(first),
        }
    }

    /// Seals at most `limit` rows of a tenant anew that are sealed under another key than its newest. Returns
    /// how many there were.
    ///
    /// # Errors
    /// When a row cannot be opened, or the database not be written.
    pub async fn seal_older(
        self,
        transaction: &mut WriteTx,
        tenant_id: &str,
        limit: u32,
    ) -> Result<usize, StoreError> {
        let sealer = transaction.sealer().clone();
        let Some(newest) = sealer.newest_key(tenant_id) else { return Ok(0) };
        let rows = transaction
            .rows()
            .sealed_under_others(self, tenant_id, newest.as_bytes().as_slice(), limit)
            .await?;
        let count = rows.len();
        for SealedColumn { name, sealed } in rows {
            let resource = self.resource((&name.0, &name.1));
            let plain = sealer.open(tenant_id, &resource, &sealed)?;
            let (sealed, _) = sealer.seal(tenant_id, &resource, &plain);
            transaction.writes().replace_sealed(self, tenant_id, &SealedColumn { name, sealed }).await?;
        }
        Ok(count)
    }
}

/// Notes that the disk holds what nobody is to read, for [`Store::wipe_if_due`].
///
/// [`Store::wipe_if_due`]: super::Store::wipe_if_due
///
/// # Errors
/// When the database cannot be written.
pub async fn note_wipe(transaction: &mut WriteTx) -> Result<(), StoreError> {
    transaction.writes().note_wipe().await
}
