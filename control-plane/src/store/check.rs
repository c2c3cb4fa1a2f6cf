//! Reading every row once, to find those that cannot be read before somebody needs them.

use std::collections::BTreeSet;

use gateway_proto::v1;

use super::{
    Connection, Store, StoreError, agents, api_keys,
    audit::{self, AuditFilter, AuditPlace},
    body,
    damaged::{LeftOut, PlainRow},
    inbound_routes, requests,
    sealed::SealedTable,
    webhook_subscriptions,
    work::{self, WorkKind},
};
use crate::{audit::Resource, sealing::SealingError};

/// Rows that are read at a time.
const ROWS_AT_A_TIME: i64 = 500;
/// Stored answers to requests of a tenant that are read. There are those of a day.
const REQUESTS_MAX: u32 = 10_000;
/// Longer than the name of any key: nothing is sealed under it, however short or damaged.
const NO_KEY: [u8; 9] = [0; 9];

/// A queued piece of work that cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadWork {
    /// Its id.
    pub id: String,
    /// What kind it is; None of one that this program does not know.
    pub kind: Option<WorkKind>,
    /// What it is about.
    pub subject: String,
}

/// What reading every row came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Rows that were read.
    pub rows: u64,
    /// Those that cannot be.
    pub damaged: BTreeSet<LeftOut>,
    /// The queued work among them.
    pub work: Vec<UnreadWork>,
    /// Rows that were not opened, since their key is not there.
    pub not_opened: u64,
}

/// What is read, table by table.
#[derive(Clone, Copy)]
enum Table {
    Tenants,
    ApiKeys,
    InboundRoutes,
    Instances,
    OptOutPolicies,
    WebhookSubscriptions,
    OptOuts,
    Requests,
    Work,
    BufferDamages,
    Audit,
}

impl Table {
    const ALL: [Self; 11] = [
        Self::Tenants,
        Self::ApiKeys,
        Self::InboundRoutes,
        Self::Instances,
        Self::OptOutPolicies,
        Self::WebhookSubscriptions,
        Self::OptOuts,
        Self::Requests,
        Self::Work,
        Self::BufferDamages,
        Self::Audit,
    ];
}

/// Where a page begins.
#[derive(Default)]
struct Place {
    id: String,
    seq: i64,
    audit: Option<AuditPlace>,
}

/// Reads every row, a few hundred at a time.
pub struct Check {
    store: Store,
    checked: Checked,
    /// What was known before.
    before: BTreeSet<LeftOut>,
    /// Tables that are to be read, the next one last, and where.
    tables: Vec<Table>,
    place: Place,
    /// Whether every API key has a checksum.
    are_keys_summed: bool,
    /// Whether a data key that is not there is no damage.
    lacks_keys: bool,
}

impl Check {
    /// Of all tables of `store`.
    pub fn new(store: &Store) -> Self {
        let before = store.damages().all().into_iter().collect();
        let tables = Table::ALL.into_iter().rev().collect();
        let (checked, place) = (Checked::default(), Place::default());
        let (are_keys_summed, lacks_keys) = (true, false);
        Self { store: store.clone(), checked, before, tables, place, are_keys_summed, lacks_keys }
    }

    /// Of all tables of a copy. `are_keys_summed` says whether its API keys must have checksums, `lacks_keys` that not all
    /// data keys could be opened.
    pub fn of_copy(store: &Store, are_keys_summed: bool, lacks_keys: bool) -> Self {
        Self { are_keys_summed, lacks_keys, ..Self::new(store) }
    }

    /// Reads the next rows, notes those that are damaged in [`Store::damages`], and gives how many were read until now;
    /// None when there are no more.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn advance(&mut self) -> Result<Option<u64>, StoreError> {
        let Some(table) = self.tables.last().copied() else { return Ok(None) };
        let place = std::mem::take(&mut self.place);
        match self.page(table, place).await? {
            Some(next) => self.place = next,
            None => drop(self.tables.pop()),
        }
        Ok(Some(self.checked.rows))
    }

    /// What it came to when there are no more; what was known to be damaged and is not any more is forgotten.
    pub fn finish(self) -> Checked {
        let Self { store, checked, before, .. } = self;
        // What others found meanwhile is not known here.
        store.damages().retain(|row| !before.contains(row) || checked.damaged.contains(row));
        checked
    }

    /// Reads a page, and gives the place of the next one; None after the last.
    async fn page(&mut self, table: Table, place: Place) -> Result<Option<Place>, StoreError> {
        let mut connection = self.store.reader().await?;
        let (after, limit) = (place.id.as_str(), ROWS_AT_A_TIME);
        match table {
            Table::Tenants => {
                let rows = connection.rows().tenants(None, after, limit).await?;
                self.plain::<v1::Tenant>(&rows)
            }
            Table::Instances => {
                let rows = connection.rows().instances(None, None, after, limit).await?;
                self.plain::<v1::Instance>(&rows)
            }
            Table::ApiKeys => {
                let rows = connection.rows().api_keys(None, after, limit).await?;
                rows.iter().try_for_each(|key| {
                    self.row(api_keys::TYPE, &key.row.id, api_keys::read_row(&key.row, self.are_keys_summed))
                })?;
                Ok(rows.into_iter().last().map(|key| Place { id: key.row.id, ..Place::default() }))
            }
            Table::OptOuts => {
                let rows = connection.rows().opt_outs(None, &Default::default(), after, limit).await?;
                let rows: Vec<PlainRow> = rows.into_iter().map(|stored| stored.row).collect();
                self.plain::<v1::OptOut>(&rows)
            }
            // At most one for each instance.
            Table::OptOutPolicies => {
                let rows = connection.rows().opt_out_policies_changed_since(0).await?;
                self.plain::<v1::OptOutPolicy>(&rows).map(|_| None)
            }
            Table::InboundRoutes => {
                let rows = connection.rows().inbound_routes(None, None, after, limit).await?;
                rows.iter().try_for_each(|found| {
                    let read = inbound_routes::read(connection.sealer(), found);
                    self.row(inbound_routes::TYPE, &found.row.id, read)
                })?;
                Ok(rows.into_iter().last().map(|found| Place { id: found.row.id, ..Place::default() }))
            }
            Table::WebhookSubscriptions => {
                let rows = connection.rows().webhook_subscriptions(None, None, after, limit).await?;
                rows.iter().try_for_each(|found| {
                    let read = webhook_subscriptions::open(connection.sealer(), &found.row);
                    self.row(webhook_subscriptions::TYPE, &found.row.id, read)
                })?;
                Ok(rows.into_iter().last().map(|found| Place { id: found.row.id, ..Place::default() }))
            }
            Table::Requests => self.requests(&mut connection).await.map(|()| None),
            Table::Work => self.work(&mut connection, place.seq).await,
            Table::BufferDamages => {
                for (agent_id, body) in connection.rows().buffer_damages("", "\u{10ffff}").await? {
                    self.row(agents::DAMAGE_TYPE, &agent_id, agents::read_damage(&agent_id, &body))?;
                }
                Ok(None)
            }
            Table::Audit => {
                let rows = connection.rows().audit_rows(&AuditFilter::default(), place.audit, limit).await?;
                rows.iter().try_for_each(|(seq, row)| {
                    self.row(audit::TYPE, &audit::id(*seq), audit::read(*seq, row))
                })?;
                let last = rows.last().map(|(seq, row)| AuditPlace { time: row.time, seq: *seq });
                Ok(last.map(|audit| Place { audit: Some(audit), ..Place::default() }))
            }
        }
    }

    /// Counts a row, and notes it when it cannot be read.
    fn row<T>(
        &mut self,
        resource_type: &'static str,
        id: &str,
        read: Result<T, StoreError>,
    ) -> Result<(), StoreError> {
        self.checked.rows += 1;
        match read {
            Ok(_) => Ok(()),
            Err(StoreError::Sealed(SealingError::UnknownDataKey { .. })) if self.lacks_keys => {
                self.checked.not_opened += 1;
                Ok(())
            }
            Err(failure) if failure.is_damage() => {
                self.checked.damaged.insert(LeftOut { resource_type, id: id.to_owned() });
                self.store.damages().note(resource_type, id, failure);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn plain<R: Resource + Default>(&mut self, rows: &[PlainRow]) -> Result<Option<Place>, StoreError> {
        rows.iter().try_for_each(|row| self.row(R::TYPE, &row.id, body::read::<R>(row)))?;
        Ok(rows.last().map(|row| Place { id: row.id.clone(), ..Place::default() }))
    }

    async fn requests(&mut self, connection: &mut dyn Connection) -> Result<(), StoreError> {
        let tenants = connection.rows().newest_tenant_keys().await?;
        for (tenant_id, _) in tenants {
            let table = SealedTable::Requests;
            let rows =
                connection.rows().sealed_under_others(table, &tenant_id, &NO_KEY, REQUESTS_MAX).await?;
            for found in rows {
                let resource = table.resource((&found.name.0, &found.name.1));
                let read = connection.sealer().open(&tenant_id, &resource, &found.sealed);
                self.row(
                    requests::TYPE,
                    &format!("{}/{}", found.name.0, found.name.1),
                    read.map_err(Into::into),
                )?;
            }
        }
        Ok(())
    }

    async fn work(
        &mut self,
        connection: &mut dyn Connection,
        after: i64,
    ) -> Result<Option<Place>, StoreError> {
        let rows = connection.rows().all_work(after, ROWS_AT_A_TIME).await?;
        let last = rows.last().map(|row| Place { seq: row.sealed.seq, ..Place::default() });
        for work::QueuedWork { sealed, kind, subject } in rows {
            let count = self.checked.damaged.len();
            self.row(work::TYPE, &sealed.id, work::open_row(connection.sealer(), &sealed))?;
            if self.checked.damaged.len() > count {
                self.checked.work.push(UnreadWork { id: sealed.id, kind, subject });
            }
        }
        Ok(last)
    }
}

/// Removes queued work that cannot be opened and is about something that is gone: nobody can do it. Deliveries have their
/// own way. Gives the ids of what is removed.
///
/// # Errors
/// When the database cannot be read or written.
pub async fn remove_unread_work(store: &Store, found: &[UnreadWork]) -> Result<Vec<String>, StoreError> {
    let mut gone = Vec::new();
    for UnreadWork { id, kind, subject } in found {
        let Some(kind) = kind.filter(|kind| *kind != WorkKind::DeliveryHandOver) else { continue };
        let owner = store.reader().await?.rows().work_owner(kind, subject).await?;
        if owner.is_none() {
            gone.push(id.clone());
        }
    }
    if !gone.is_empty() {
        let mut transaction = store.begin_write().await?;
        work::delete(&mut transaction, &gone).await?;
        gone.iter().for_each(|id| transaction.mends(work::TYPE, id));
        transaction.commit().await?;
    }
    Ok(gone)
}
