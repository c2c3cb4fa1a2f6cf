//! Opt-outs: one record per contact and instance, found by phone (national variants match) or user id, and
//! the log of every decision that changed one.
//!
//! Records outlive their instance: should its id come back, they hold again.

use gateway_core::{
    id::{InstanceId, TenantId},
    opt_out::{ContactRef, Decision, Merged, OptOutRecord, merge, merge_record},
    tenant::TenantScope,
};
use gateway_proto::v1;
use gateway_runtime::clock;
use jiff::Timestamp;
use tonic::async_trait;
use tracing::warn;

use super::{
    Connection, StoreError, WriteTx, body,
    damaged::{self, Found, Head, PlainRow},
    versions,
};

const TABLE: &str = "opt_outs";
const TYPE: &str = "opt_out";

/// What recording a decision came to.
#[derive(Debug, Clone, PartialEq)]
pub struct OptOutRecorded {
    /// The record as it now stands, with its etag.
    pub opt_out: v1::OptOut,
    /// The record as it stood; None when there was none.
    pub before: Option<v1::OptOut>,
    /// Whether the record is another one than before.
    pub changed: bool,
    /// Whether the customer is to be told: [`Merged::is_news`].
    pub is_news: bool,
}

/// Which opt-outs a list gives.
#[derive(Debug, Clone, Default)]
pub struct OptOutFilter<'a> {
    /// Only of this instance.
    pub instance_id: Option<&'a str>,
    /// Only of the phone number with this match key.
    pub phone_key: Option<&'a str>,
    /// Only in this state.
    pub state: Option<i32>,
}

/// A row of an opt-out.
#[derive(Debug, Clone, Copy)]
pub struct OptOutRow<'a> {
    /// Its id: the key.
    pub id: &'a str,
    /// Its tenant.
    pub tenant_id: &'a str,
    /// Its instance, which may be gone.
    pub instance_id: &'a str,
    /// The match key of the phone number: unique within the instance.
    pub phone_key: Option<&'a str>,
    /// The user id: unique within the instance.
    pub user_id: Option<&'a str>,
    /// Its state.
    pub state: i32,
    /// The record.
    pub body: &'a [u8],
}

/// An opt-out as a database gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOptOut {
    /// Its id, tenant, instance and record.
    pub row: PlainRow,
    /// Its state.
    pub state: i32,
}

/// A key of a contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContactKey<'a> {
    /// The match key of the phone number.
    Phone(&'a str),
    /// The user id.
    UserId(&'a str),
}

/// Reads opt-outs.
#[async_trait]
pub trait OptOutReads: Send {
    /// An opt-out, perhaps only of a tenant.
    async fn opt_out(
        &mut self,
        tenant_id: Option<&str>,
        id: &str,
    ) -> Result<Option<StoredOptOut>, StoreError>;

    /// Opt-outs by id, after `after`, at most `limit`; only of a tenant, only what the filter names.
    async fn opt_outs(
        &mut self,
        tenant_id: Option<&str>,
        filter: &OptOutFilter<'_>,
        after: &str,
        limit: i64,
    ) -> Result<Vec<StoredOptOut>, StoreError>;

    /// Those of a tenant's opt-outs that have a key, by id; only at an instance.
    async fn opt_outs_of_contact(
        &mut self,
        tenant_id: &str,
        instance_id: Option<&str>,
        key: ContactKey<'_>,
    ) -> Result<Vec<StoredOptOut>, StoreError>;

    /// At most `limit` entries of the log after `cursor`, in its order: the cursor of each, and its opt-out as it is
    /// now; None when that has no row any more.
    async fn opt_out_log(
        &mut self,
        cursor: u64,
        limit: u32,
    ) -> Result<Vec<(u64, Option<StoredOptOut>)>, StoreError>;

    /// The newest entry of the log of an opt-out: its cursor, and the record as it was logged. May read all of the
    /// log.
    async fn newest_opt_out_entry(&mut self, id: &str) -> Result<Option<(u64, Vec<u8>)>, StoreError>;
}

/// Changes opt-outs. The log is only added to.
#[async_trait]
pub trait OptOutWrites: Send {
    /// Removes an opt-out; the log keeps what it was.
    async fn delete_opt_out(&mut self, id: &str) -> Result<(), StoreError>;

    /// Adds a record to the log, and gives its cursor: greater than that of every entry that was ever committed.
    async fn log_opt_out(&mut self, opt_out_id: &str, body: &[u8]) -> Result<u64, StoreError>;

    /// Writes an opt-out, in place of those that have its id or one of its keys.
    async fn put_opt_out(&mut self, row: OptOutRow<'_>) -> Result<(), StoreError>;
}

/// An opt-out within reach of a caller.
///
/// # Errors
/// When the database cannot be read.
pub async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<v1::OptOut>, StoreError> {
    match find_even_damaged(connection, scope, id).await? {
        None => Ok(None),
        Some(Found::Whole(opt_out)) => Ok(Some(opt_out)),
        // It is noted; read once more, it says what is wrong.
        Some(Found::Damaged(head)) => {
            let row = connection.rows().opt_out(None, &head.id).await?;
            row.map(|stored| body::read(&stored.row)).transpose()
        }
    }
}

/// An opt-out within reach of a caller, or what is known of one that cannot be read.
///
/// # Errors
/// When the database cannot be read.
pub async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    id: &str,
) -> Result<Option<Found<v1::OptOut>>, StoreError> {
    let Some(stored) = connection.rows().opt_out(scope.only(), id).await? else { return Ok(None) };
    let head = stored.row.head(connection.epoch());
    Ok(Some(match whole(connection, &stored).await? {
        Some(opt_out) => Found::Whole(opt_out),
        None => Found::Damaged(Head { etag: String::new(), ..head }),
    }))
}

/// An opt-out. What a row has lost is in the log, too: only where that is damaged as well there is none.
async fn whole(
    connection: &mut dyn Connection,
    StoredOptOut { row, .. }: &StoredOptOut,
) -> Result<Option<v1::OptOut>, StoreError> {
    let read = body::read(row);
    if let Some(opt_out) = damaged::or_note(connection.damages(), (TYPE, &row.id), read)? {
        return Ok(Some(opt_out));
    }
    let Some((cursor, body)) = connection.rows().newest_opt_out_entry(&row.id).await? else {
        return Ok(None);
    };
    let logged: Option<v1::OptOut> = body::read(&PlainRow { body, ..row.clone() }).ok();
    let etag = versions::etag(cursor, connection.epoch());
    Ok(logged.map(|opt_out| v1::OptOut { etag, ..opt_out }))
}

/// Removes an opt-out that cannot be read, as its operator asks: nothing is known of its contact then.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete_unread(transaction: &mut WriteTx, id: &str) -> Result<(), StoreError> {
    transaction.mends(TYPE, id);
    transaction.writes().delete_opt_out(id).await
}

/// Opt-outs in the order of their ids, after `after`. One that cannot be read says so, and shows what is known.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    filter: &OptOutFilter<'_>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<v1::OptOut>, StoreError> {
    let rows = connection.rows().opt_outs(scope.only(), filter, after.unwrap_or_default(), limit).await?;
    let mut listed = Vec::with_capacity(rows.len());
    for stored in rows {
        let opt_out = whole(connection, &stored).await?;
        listed.push(opt_out.unwrap_or_else(|| {
            let StoredOptOut { row: PlainRow { id, tenant_id, parent_id: instance_id, .. }, state } = stored;
            v1::OptOut { id, tenant_id, instance_id, state, is_damaged: true, ..Default::default() }
        }));
    }
    Ok(listed)
}

/// The records that one of a contact's keys names, at one instance or (None) at all of the tenant.
///
/// # Errors
/// When the database cannot be read, or one of the records cannot: nobody may take that for a contact who did not opt
/// out.
pub async fn of_contact(
    connection: &mut dyn Connection,
    tenant_id: &TenantId,
    instance_id: Option<&str>,
    contact: &ContactRef,
) -> Result<Vec<v1::OptOut>, StoreError> {
    let (records, damaged) = of_contact_even_damaged(connection, tenant_id, instance_id, contact).await?;
    match damaged.first() {
        // It says what is wrong.
        Some(stored) => body::read(&stored.row).map(|opt_out| vec![opt_out]),
        None => Ok(records),
    }
}

/// As [`of_contact`]; rows that cannot be read come beside the others.
async fn of_contact_even_damaged(
    connection: &mut dyn Connection,
    tenant_id: &TenantId,
    instance_id: Option<&str>,
    contact: &ContactRef,
) -> Result<(Vec<v1::OptOut>, Vec<StoredOptOut>), StoreError> {
    let (phone_key, user_id) = keys(contact);
    let keys = [phone_key.as_deref().map(ContactKey::Phone), user_id.map(ContactKey::UserId)];
    let (mut rows, mut damaged): (Vec<v1::OptOut>, Vec<StoredOptOut>) = (Vec::new(), Vec::new());
    // Two queries, because SQLite would read the whole table for an OR over two indexes.
    for key in keys.into_iter().flatten() {
        let found = connection.rows().opt_outs_of_contact(tenant_id.as_str(), instance_id, key).await?;
        for stored in found {
            if rows.iter().any(|known| known.id == stored.row.id) || damaged.contains(&stored) {
                continue;
            }
            match whole(connection, &stored).await? {
                Some(opt_out) => rows.push(opt_out),
                None => damaged.push(stored),
            }
        }
    }
    Ok((rows, damaged))
}

/// What is known of a contact at an instance: when phone and user id name different records, their merger.
///
/// # Errors
/// When the database cannot be read.
pub async fn known(
    connection: &mut dyn Connection,
    tenant_id: &TenantId,
    instance_id: &InstanceId,
    contact: &ContactRef,
) -> Result<Option<OptOutRecord>, StoreError> {
    let rows = of_contact(connection, tenant_id, Some(instance_id.as_str()), contact).await?;
    let records = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(merged_of(&records))
}

/// Merges a decision made through the API into what is known of its contact, and writes the outcome.
///
/// # Errors
/// When the database cannot be written.
pub async fn record(transaction: &mut WriteTx, decision: &Decision) -> Result<OptOutRecorded, StoreError> {
    let now = clock::now();
    let merger = |known: Option<&OptOutRecord>| merge(known, decision, now);
    let (tenant_id, instance_id) = (&decision.tenant_id, &decision.instance_id);
    write_merged(transaction, tenant_id, instance_id, &decision.contact, now, merger).await
}

/// Merges a record that an agent reports into what is known of its contact, and writes the outcome. One
/// that cannot be read is passed over: asking the agent for it again would give the same.
pub(super) async fn record_reported(
    transaction: &mut WriteTx,
    reported: &v1::OptOut,
) -> Result<OptOutRecorded, StoreError> {
    let mut incoming = match OptOutRecord::try_from(reported) {
        Ok(incoming) => incoming,
        Err(violations) => {
            warn!(%violations, "passed over a reported opt-out that cannot be read");
            let opt_out = reported.clone();
            return Ok(OptOutRecorded { opt_out, before: None, changed: false, is_news: false });
        }
    };
    // The tenant is the instance's, whatever the agent believes.
    let owner = transaction.rows().owner("instance", incoming.instance_id.as_str()).await?;
    if let Some(Ok(tenant_id)) = owner.map(|tenant_id| tenant_id.parse()) {
        incoming.tenant_id = tenant_id;
    }
    let now = clock::now();
    let merger = |known: Option<&OptOutRecord>| merge_record(known, &incoming, now);
    let (tenant_id, instance_id) = (&incoming.tenant_id, &incoming.instance_id);
    write_merged(transaction, tenant_id, instance_id, &incoming.contact, now, merger).await
}

async fn write_merged(
    transaction: &mut WriteTx,
    tenant_id: &TenantId,
    instance_id: &InstanceId,
    contact: &ContactRef,
    now: Timestamp,
    merger: impl FnOnce(Option<&OptOutRecord>) -> Merged,
) -> Result<OptOutRecorded, StoreError> {
    // What cannot be read gives way to the decision of now, and keeps no report of an agent waiting.
    let (rows, damaged) =
        of_contact_even_damaged(transaction, tenant_id, Some(instance_id.as_str()), contact).await?;
    for StoredOptOut { row, .. } in &damaged {
        delete_unread(transaction, &row.id).await?;
    }
    let before = rows.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let known = merged_of(&before);
    let merged = merger(known.as_ref());
    if let ([row], false) = (rows.as_slice(), merged.changed) {
        let (opt_out, before) = (row.clone(), Some(row.clone()));
        return Ok(OptOutRecorded { opt_out, before, changed: false, is_news: false });
    }
    // The old rows go first, since a key belongs to one row.
    for row in &rows {
        transaction.writes().delete_opt_out(&row.id).await?;
    }
    let opt_out = put(transaction, &merged.record).await?;
    for old in &before {
        let contact = keys_only_in(&old.contact, &merged.record.contact);
        if !contact.is_empty() {
            put(transaction, &old.copy_to(contact, now)).await?;
        }
    }
    let before = known.as_ref().map(v1::OptOut::from);
    Ok(OptOutRecorded { opt_out, before, changed: true, is_news: merged.is_news })
}

/// Logs a record and writes it. Its etag names the place in the log.
async fn put(transaction: &mut WriteTx, record: &OptOutRecord) -> Result<v1::OptOut, StoreError> {
    let mut opt_out = v1::OptOut::from(record);
    let cursor = transaction.writes().log_opt_out(&opt_out.id, &body::of(&opt_out)).await?;
    transaction.mends(TYPE, &opt_out.id);
    transaction.logged_opt_out(cursor);
    opt_out.etag = transaction.store().etag(cursor);
    let (phone_key, user_id) = keys(&record.contact);
    let row = OptOutRow {
        id: &opt_out.id,
        tenant_id: &opt_out.tenant_id,
        instance_id: &opt_out.instance_id,
        phone_key: phone_key.as_deref(),
        user_id,
        state: opt_out.state,
        body: &body::of(&opt_out),
    };
    transaction.writes().put_opt_out(row).await?;
    Ok(opt_out)
}

fn read(row: &v1::OptOut) -> Result<OptOutRecord, StoreError> {
    OptOutRecord::try_from(row).map_err(|source| StoreError::Invalid { table: TABLE, source })
}

fn keys(contact: &ContactRef) -> (Option<String>, Option<&str>) {
    (contact.phone.as_ref().map(gateway_core::phone::Phone::match_key), contact.user_id.as_deref())
}

fn merged_of(records: &[OptOutRecord]) -> Option<OptOutRecord> {
    let (first, rest) = records.split_first()?;
    let merge_two = |merged: OptOutRecord, next: &OptOutRecord| {
        let now = merged.update_time.max(next.update_time);
        let mut both = merge_record(Some(&merged), next, now).record;
        // The record found by phone comes first, and its keys count.
        both.contact = next.contact.updated(&merged.contact);
        both
    };
    Some(rest.iter().fold(first.clone(), merge_two))
}

/// Keys that the successor of a record no longer has.
fn keys_only_in(old: &ContactRef, successor: &ContactRef) -> ContactRef {
    let (old_phone, successor_phone) = (keys(old).0, keys(successor).0);
    ContactRef {
        phone: old.phone.clone().filter(|_| old_phone != successor_phone),
        user_id: old.user_id.clone().filter(|user_id| Some(user_id) != successor.user_id.as_ref()),
    }
}

pub(super) async fn since(
    connection: &mut dyn Connection,
    cursor: u64,
    limit: u32,
) -> Result<(Vec<v1::OptOut>, u64), StoreError> {
    // A record that was merged into another has no row any more; the other one has a later entry.
    let rows = connection.rows().opt_out_log(cursor, limit).await?;
    let newest = rows.last().map_or(cursor, |(newest, _)| *newest);
    let mut opt_outs = Vec::with_capacity(rows.len());
    for stored in rows.iter().filter_map(|(_, stored)| stored.as_ref()) {
        // One that cannot be read holds up nobody; agents that have it keep it.
        opt_outs.extend(whole(connection, stored).await?);
    }
    Ok((opt_outs, newest))
}
