//! Table `queued_work`: what agents are asked to do, until one of them has it on its own disk. Bodies hold what
//! people wrote, so they are sealed: under the key of the tenant that the work is about, or the platform's.

use std::collections::HashMap;

use gateway_proto::v1::{self, work::Work as Task};
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::SqliteConnection;

use super::{Store, StoreError, WriteTx, sealed, tenant_keys, to_sql};
use crate::sealing::Sealer;

mod rows;
#[cfg(test)]
mod tests;

pub use rows::{SCHEMA, Waiting};

/// Readable rows that are sealed at a time.
const SEALED_AT_A_TIME: i64 = 100;

/// What kind of work there is, in the order in which it is given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkKind {
    /// A test event to send.
    TestEvent,
    /// An opt-out to tell the customer of.
    OptOut,
    /// A callback whose number was claimed.
    UnroutedCallback,
    /// A delivery that another agent gave away.
    DeliveryHandOver,
}

impl WorkKind {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 4] =
        [Self::TestEvent, Self::OptOut, Self::UnroutedCallback, Self::DeliveryHandOver];

    /// As it is stored. The indexes know that deliveries are 4.
    const fn number(self) -> i64 {
        match self {
            Self::TestEvent => 1,
            Self::OptOut => 2,
            Self::UnroutedCallback => 3,
            Self::DeliveryHandOver => 4,
        }
    }
}

/// Work to queue.
pub struct NewWork {
    /// The work; its id must be set, and what is to be done.
    pub work: v1::Work,
    /// The regions whose agents may do it; empty for any.
    pub regions: Vec<String>,
}

/// How much work of a kind is queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkCount {
    /// What kind.
    pub kind: WorkKind,
    /// Where deliveries wait; None for other kinds, of which this is the sum.
    pub region: Option<String>,
    /// Whose deliveries they are.
    pub tenant_id: String,
    /// How much there is.
    pub count: i64,
    /// When the oldest of it was queued.
    pub oldest: Timestamp,
}

/// What a piece of work is, and the id of what it is about.
fn about(task: &Task) -> (WorkKind, &str) {
    match task {
        Task::TestEvent(event) => (WorkKind::TestEvent, &event.subscription_id),
        Task::OptOut(opt_out) => (WorkKind::OptOut, &opt_out.instance_id),
        Task::UnroutedCallback(callback) => (WorkKind::UnroutedCallback, &callback.inbound_route_id),
        Task::DeliveryHandOver(hand_over) => {
            let subject = hand_over.delivery.as_ref().map(|delivery| delivery.subscription_id.as_str());
            (WorkKind::DeliveryHandOver, subject.unwrap_or_default())
        }
    }
}

/// What a sealed body is bound to, beside its tenant.
pub(super) fn sealed_resource(id: &str) -> String {
    format!("work/{id}")
}

/// Queues work inside the caller's transaction, for agents that use the newest configuration where that matters.
/// Work whose id is in the queue is skipped.
///
/// # Errors
/// When the database cannot be written.
pub async fn insert(tx: &mut WriteTx, all: &[NewWork]) -> Result<(), StoreError> {
    let newest = to_sql(super::schema::version(tx.connection()).await?);
    let create_time = clock::now().as_microsecond();
    let mut owners: HashMap<(WorkKind, &str), String> = HashMap::new();
    for NewWork { work, regions } in all {
        let Some(task) = &work.work else { continue };
        let (kind, subject) = about(task);
        let tenant_id = match owners.get(&(kind, subject)) {
            Some(tenant_id) => tenant_id.clone(),
            None => {
                let owner = rows::owner(tx.connection(), kind, subject).await?.unwrap_or_default();
                owners.insert((kind, subject), owner.clone());
                owner
            }
        };
        let body = tx.seal(&tenant_id, &sealed_resource(&work.id), &work.encode_to_vec()).await?;
        let row = rows::NewRow {
            id: &work.id,
            kind,
            regions,
            tenant_id: &tenant_id,
            subject,
            version: version_for(kind, newest),
            create_time,
            body: &body,
        };
        rows::insert(tx.connection(), &row).await?;
    }
    Ok(())
}

/// The configuration that an agent must use to be given work of a kind. With an older one it would not know the
/// webhook subscription, and record an event without deliveries or hold a delivery for nothing; and one that has none
/// is given nothing of that. For the other kinds agents wait themselves.
fn version_for(kind: WorkKind, newest: i64) -> i64 {
    match kind {
        WorkKind::TestEvent | WorkKind::OptOut => 0,
        WorkKind::UnroutedCallback | WorkKind::DeliveryHandOver => newest.max(1),
    }
}

/// At most `limit` pieces of work of a kind for agents of `region` after the place `after`, oldest first. For agents
/// of a tenant, what concerns an instance on an inbound route of that tenant: what comes in on a platform route
/// is not theirs, whosever the instance is.
///
/// # Errors
/// When the database cannot be read.
pub async fn waiting(
    store: &Store,
    kind: WorkKind,
    (region, tenant_id): (&str, Option<&str>),
    after: i64,
    limit: i64,
) -> Result<Vec<Waiting>, StoreError> {
    let mut connection = store.reader().await?;
    Ok(rows::waiting(&mut connection, kind, region, tenant_id, after, limit).await?)
}

/// At most `limit` deliveries to webhook subscriptions that are gone, after the place `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn orphans(store: &Store, after: i64, limit: i64) -> Result<Vec<Waiting>, StoreError> {
    Ok(rows::orphans(&mut *store.reader().await?, after, limit).await?)
}

/// The work at these places, in their order; what is gone is left out. Work that cannot be opened comes as the error.
///
/// # Errors
/// When the database cannot be read.
pub async fn read(
    store: &Store,
    seqs: &[i64],
) -> Result<Vec<(i64, Result<v1::Work, StoreError>)>, StoreError> {
    let mut connection = store.reader().await?;
    let rows = rows::bodies(&mut connection, seqs).await?;
    let open = |(seq, tenant_id, id, body): (i64, String, String, Vec<u8>)| {
        (seq, connection.open(&tenant_id, &sealed_resource(&id), &body))
    };
    Ok(rows.into_iter().map(open).collect())
}

/// How much is queued.
///
/// # Errors
/// When the database cannot be read.
pub async fn counts(store: &Store) -> Result<Vec<WorkCount>, StoreError> {
    let mut connection = store.reader().await?;
    let mut counts = Vec::new();
    for kind in WorkKind::ALL {
        let rows = rows::counts(&mut connection, kind).await?;
        counts.extend(rows.into_iter().map(|row| WorkCount {
            kind,
            region: (kind == WorkKind::DeliveryHandOver).then(|| row.regions.trim().to_owned()),
            tenant_id: row.tenant_id,
            count: row.count,
            oldest: Timestamp::from_microsecond(row.oldest).unwrap_or_default(),
        }));
    }
    Ok(counts)
}

/// Whose a webhook subscription is; None when it is gone.
///
/// # Errors
/// When the database cannot be read.
pub async fn subscription_owner(store: &Store, id: &str) -> Result<Option<String>, StoreError> {
    Ok(rows::owner(&mut *store.reader().await?, WorkKind::DeliveryHandOver, id).await?)
}

/// Removes work that is durable on an agent. Work that is gone already is skipped.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(connection: &mut SqliteConnection, ids: &[String]) -> Result<(), sqlx::Error> {
    for id in ids {
        rows::delete(&mut *connection, id).await?;
    }
    Ok(())
}

/// Queues what an agent gives away, each with its sequence in the agent's buffer, and notes how far that got, so
/// that a report that comes again brings no delivery back that was taken over meanwhile. `tell` is called once they
/// are queued.
///
/// # Errors
/// When the database cannot be written; then nothing is queued.
pub async fn hand_over(
    store: &Store,
    (agent_id, buffer_id): (&str, &str),
    given: Vec<(u64, NewWork)>,
    tell: impl FnOnce() + Send + 'static,
) -> Result<(), StoreError> {
    let mut tx = store.begin_write().await?;
    let position = rows::position(tx.connection(), agent_id, buffer_id).await?;
    let new: Vec<_> = given.into_iter().filter(|(sequence, _)| to_sql(*sequence) > position).collect();
    let Some(last) = new.iter().map(|(sequence, _)| *sequence).max() else { return Ok(()) };
    let new: Vec<NewWork> = new.into_iter().map(|(_, work)| work).collect();
    insert(&mut tx, &new).await?;
    rows::set_position(tx.connection(), agent_id, buffer_id, to_sql(last)).await?;
    tx.after_commit(tell);
    tx.commit().await
}

/// Seals what a program before sealing queued, inside the caller's transaction. What cannot be read stays where it
/// is, for the program that wrote it.
pub(super) async fn seal_readable(
    connection: &mut SqliteConnection,
    sealer: &Sealer,
) -> Result<(), StoreError> {
    let newest = to_sql(super::schema::version(connection).await?);
    let (mut after, mut any) = (0, false);
    loop {
        let page = rows::readable(connection, after, SEALED_AT_A_TIME).await?;
        let Some(last) = page.last() else { break };
        after = last.0;
        for (seq, id, regions, create_time, body) in page {
            let Some(task) = v1::Work::decode(body.as_slice()).ok().and_then(|work| work.work) else {
                continue;
            };
            let (kind, subject) = about(&task);
            let tenant_id = rows::owner(connection, kind, subject).await?.unwrap_or_default();
            let (body, unstored) = sealer.seal(&tenant_id, &sealed_resource(&id), &body);
            if let Some(key) = unstored {
                tenant_keys::insert(connection, &key).await?;
            }
            let regions: Vec<String> = regions.split_whitespace().map(str::to_owned).collect();
            let row = rows::NewRow {
                id: &id,
                kind,
                regions: &regions,
                tenant_id: &tenant_id,
                subject,
                version: version_for(kind, newest),
                create_time,
                body: &body,
            };
            rows::insert(connection, &row).await?;
            rows::delete_readable(connection, seq).await?;
            any = true;
        }
    }
    if any { sealed::note_wipe(connection).await } else { Ok(()) }
}
