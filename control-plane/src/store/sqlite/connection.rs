//! A connection of the configuration database, together with what opens its sealed columns.

use std::ops::{Deref, DerefMut};

use prost::Message;
use sqlx::{Sqlite, SqliteConnection, Transaction, pool::PoolConnection};

use super::{StoreError, decode};
use crate::sealing::Sealer;

/// A connection for reading, or the transaction of a writer. Where nothing sealed is read, it serves as the
/// [`SqliteConnection`] that it is.
pub struct Connection {
    handle: Handle,
    sealer: Sealer,
}

enum Handle {
    Pooled(PoolConnection<Sqlite>),
    Transaction(Transaction<'static, Sqlite>),
}

impl Connection {
    pub(super) const fn pooled(connection: PoolConnection<Sqlite>, sealer: Sealer) -> Self {
        Self { handle: Handle::Pooled(connection), sealer }
    }

    pub(super) const fn transaction(transaction: Transaction<'static, Sqlite>, sealer: Sealer) -> Self {
        Self { handle: Handle::Transaction(transaction), sealer }
    }

    /// Ends the transaction, if there is one.
    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self.handle {
            Handle::Pooled(_) => Ok(()),
            Handle::Transaction(transaction) => transaction.commit().await,
        }
    }

    pub(super) const fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    /// Opens and reads a sealed message of a tenant's resource.
    pub(super) fn open<M: Message + Default>(
        &self,
        tenant_id: &str,
        resource: &str,
        sealed: &[u8],
    ) -> Result<M, StoreError> {
        decode(&self.sealer.open(tenant_id, resource, sealed)?)
    }
}

impl Deref for Connection {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        match &self.handle {
            Handle::Pooled(connection) => connection,
            Handle::Transaction(transaction) => transaction,
        }
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        match &mut self.handle {
            Handle::Pooled(connection) => connection,
            Handle::Transaction(transaction) => transaction,
        }
    }
}
