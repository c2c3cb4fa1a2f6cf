//! What agents are asked to do, until one of them has it on its own disk. Bodies hold what people wrote, so they are
//! sealed: under the key of the tenant that the work is about, or the platform's.

use std::collections::HashMap;

use gateway_proto::v1::{self, work::Work as Task};
use gateway_runtime::clock;
use jiff::{SignedDuration, Timestamp};
use prost::Message as _;
use tonic::async_trait;

use super::{Connection as _, Store, StoreError, WriteTx, body, open};
use crate::sealing::Sealer;

#[cfg(test)]
mod tests;

/// Buffers of an agent whose positions are kept: those used last. An agent has one, and another one after its disk was
/// lost or copied.
const POSITIONS_KEPT: u32 = 16;
/// How long a position is kept that is not moved. It must be longer than any agent is away; a report that comes again
/// after that costs a repeated webhook.
const POSITION_AGE_MAX: SignedDuration = SignedDuration::from_hours(60 * 24);

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
    pub(super) const fn number(self) -> i64 {
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

/// A piece of work to queue.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    /// Its id: unique.
    pub id: &'a str,
    /// What kind it is.
    pub kind: WorkKind,
    /// The regions whose agents may do it; empty for any. A delivery has one.
    pub regions: &'a [String],
    /// Whose key seals the body.
    pub tenant_id: &'a str,
    /// What it is about: a webhook subscription, an instance or an inbound route, as the kind has it.
    pub subject: &'a str,
    /// The configuration that an agent must use.
    pub version: u64,
    /// When it is queued.
    pub create_time: Timestamp,
    /// The work, sealed.
    pub body: &'a [u8],
}

/// Queued work without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its place in the queue.
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Size of the sealed body.
    pub bytes: i64,
    /// The configuration that an agent must use to be given it.
    pub version: u64,
}

/// A delivery to a webhook subscription that is gone, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    /// Its place in the queue.
    pub seq: i64,
    /// Its id.
    pub id: String,
    /// Whose key seals it.
    pub tenant_id: String,
    /// The webhook subscription.
    pub subscription_id: String,
}

/// The body of queued work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedWork {
    /// Its place in the queue.
    pub seq: i64,
    /// Whose key seals it.
    pub tenant_id: String,
    /// Its id.
    pub id: String,
    /// The work, sealed.
    pub body: Vec<u8>,
}

/// Queued work, with what can be known of it unopened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedWork {
    /// The body.
    pub sealed: SealedWork,
    /// What kind it is; None of one that this program does not know.
    pub kind: Option<WorkKind>,
    /// What it is about.
    pub subject: String,
}

/// Reads the queue. A place is a number that grows with every piece of work and is never given twice.
#[async_trait]
pub trait WorkReads: Send {
    /// Work of a kind for agents of `region` and, unless None, of a tenant, after the place `after` (0: from the
    /// start), in the order in which it was queued, at most `limit`. A tenant's is what concerns its own inbound
    /// routes, instances on them, and webhook subscriptions of these. A delivery to a webhook subscription that is gone,
    /// or another tenant's than it, is for nobody.
    async fn waiting_work(
        &mut self,
        kind: WorkKind,
        region: &str,
        tenant_id: Option<&str>,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Waiting>, StoreError>;

    /// Deliveries that are for nobody: to webhook subscriptions that are gone, or another tenant's than they. Those after
    /// the place `after`, by place, at most `limit`.
    async fn orphaned_work(&mut self, after: i64, limit: i64) -> Result<Vec<Orphan>, StoreError>;

    /// The work at these places that is still there, by place.
    async fn work_at(&mut self, seqs: &[i64]) -> Result<Vec<SealedWork>, StoreError>;

    /// All work after the place `after`, by place, at most `limit`.
    async fn all_work(&mut self, after: i64, limit: i64) -> Result<Vec<QueuedWork>, StoreError>;

    /// How much work of a kind there is: deliveries by region and tenant, all other work in one sum, whose `tenant_id`
    /// is empty. Nothing where there is none.
    async fn work_counts(&mut self, kind: WorkKind) -> Result<Vec<WorkCount>, StoreError>;

    /// Whose what work is about is, of those that are there.
    async fn work_owner(&mut self, kind: WorkKind, subject: &str) -> Result<Option<String>, StoreError>;

    /// Up to which sequence of an agent's buffer deliveries were taken over; 0 when none was.
    async fn hand_over_position(&mut self, agent_id: &str, buffer_id: &str) -> Result<u64, StoreError>;
}

/// Changes the queue.
#[async_trait]
pub trait WorkWrites: Send {
    /// Queues work after all that was ever queued. Nothing when work with this id is in the queue.
    async fn insert_work(&mut self, row: NewRow<'_>) -> Result<(), StoreError>;

    /// Removes work. Nothing when it is not there.
    async fn delete_work(&mut self, id: &str) -> Result<(), StoreError>;

    /// Notes at `now` up to which sequence of an agent's buffer deliveries were taken over, in place of an earlier note.
    async fn set_hand_over_position(
        &mut self,
        agent_id: &str,
        buffer_id: &str,
        sequence: u64,
        now: Timestamp,
    ) -> Result<(), StoreError>;

    /// Forgets the positions of an agent but for the `keep` that were set last, and those of all agents that were set
    /// before `before`.
    async fn forget_hand_over_positions(
        &mut self,
        agent_id: &str,
        keep: u32,
        before: Timestamp,
    ) -> Result<(), StoreError>;

    /// Deliveries to webhook subscriptions of an instance that wait in none of `regions` wait in the region `to` from now
    /// on, for agents that use the configuration `version`. They keep their places.
    async fn move_deliveries(
        &mut self,
        instance_id: &str,
        regions: &[String],
        to: &str,
        version: u64,
    ) -> Result<(), StoreError>;
}

/// What a piece of work is, and the id of what it is about.
pub(super) fn about(task: &Task) -> (WorkKind, &str) {
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

/// The type of queued work.
pub(super) const TYPE: &str = "work";

/// Opens queued work.
pub(super) fn open_row(sealer: &Sealer, row: &SealedWork) -> Result<v1::Work, StoreError> {
    open(sealer, &row.tenant_id, &sealed_resource(&row.id), &row.body)
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
    let newest = tx.rows().version().await?;
    let create_time = clock::now();
    let mut owners: HashMap<(WorkKind, &str), String> = HashMap::new();
    let mut served: HashMap<&str, Vec<String>> = HashMap::new();
    for NewWork { work, regions } in all {
        let Some(task) = &work.work else { continue };
        let (kind, subject) = about(task);
        let elsewhere = match task {
            Task::DeliveryHandOver(hand_over) => elsewhere(tx, hand_over, regions, &mut served).await?,
            _ => None,
        };
        let tenant_id = match owners.get(&(kind, subject)) {
            Some(tenant_id) => tenant_id.clone(),
            None => {
                let owner = tx.rows().work_owner(kind, subject).await?.unwrap_or_default();
                owners.insert((kind, subject), owner.clone());
                owner
            }
        };
        let tenant_id = match task {
            Task::DeliveryHandOver(hand_over) if !is_of(hand_over, &tenant_id) => String::new(),
            _ => tenant_id,
        };
        let body = tx.seal(&tenant_id, &sealed_resource(&work.id), &work.encode_to_vec()).await?;
        let row = NewRow {
            id: &work.id,
            kind,
            regions: elsewhere.as_ref().map_or(regions, std::slice::from_ref),
            tenant_id: &tenant_id,
            subject,
            version: version_for(kind, newest),
            create_time,
            body: &body,
        };
        tx.writes().insert_work(row).await?;
    }
    Ok(())
}

/// Whether a delivery is about an event of this tenant. To it, a webhook subscription of another one is as good as gone.
fn is_of(hand_over: &v1::DeliveryHandOver, tenant_id: &str) -> bool {
    hand_over.inbound_log.as_ref().is_some_and(|log| log.tenant_id == tenant_id)
}

/// Where a delivery goes when the regions in which it was given away do not serve its instance any more: to the first
/// one that does. There alone are agents that know its webhook subscription.
async fn elsewhere<'a>(
    tx: &mut WriteTx,
    hand_over: &'a v1::DeliveryHandOver,
    from: &[String],
    served: &mut HashMap<&'a str, Vec<String>>,
) -> Result<Option<String>, StoreError> {
    let Some(log) = &hand_over.inbound_log else { return Ok(None) };
    let instance_id = log.instance_id.as_str();
    if !served.contains_key(instance_id) {
        let row = tx.rows().instance(instance_id).await?;
        // Of an instance that is not there or cannot be read nothing better is known.
        let instance: v1::Instance = row.and_then(|row| body::read(&row).ok()).unwrap_or_default();
        served.insert(instance_id, instance.regions);
    }
    let regions = &served[instance_id];
    Ok(regions.first().filter(|_| !from.iter().any(|region| regions.contains(region))).cloned())
}

/// Takes the waiting deliveries of an instance out of regions that do not serve it any more, inside the transaction that
/// changes it. Streams of their new region find them within a lease's time.
///
/// # Errors
/// When the database cannot be written.
pub(super) async fn follow_instance(
    tx: &mut WriteTx,
    instance: &v1::Instance,
    version: u64,
) -> Result<(), StoreError> {
    let Some(to) = instance.regions.first() else { return Ok(()) };
    tx.writes().move_deliveries(&instance.id, &instance.regions, to, version).await
}

/// Forgets what is known of the buffers of an agent that never comes back.
///
/// # Errors
/// When the database cannot be written.
pub(super) async fn forget_agent(tx: &mut WriteTx, agent_id: &str) -> Result<(), StoreError> {
    tx.writes().forget_hand_over_positions(agent_id, 0, Timestamp::UNIX_EPOCH).await
}

/// The configuration that an agent must use to be given work of a kind. With an older one it would not know the
/// webhook subscription, and record an event without deliveries or hold a delivery for nothing; and one that has none
/// is given nothing of that. For the other kinds agents wait themselves.
pub(super) fn version_for(kind: WorkKind, newest: u64) -> u64 {
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
    store.reader().await?.rows().waiting_work(kind, region, tenant_id, after, limit).await
}

/// At most `limit` deliveries to webhook subscriptions that are gone, after the place `after`.
///
/// # Errors
/// When the database cannot be read.
pub async fn orphans(store: &Store, after: i64, limit: i64) -> Result<Vec<Orphan>, StoreError> {
    store.reader().await?.rows().orphaned_work(after, limit).await
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
    let rows = connection.rows().work_at(seqs).await?;
    let opened = |row: SealedWork| (row.seq, open_row(connection.sealer(), &row));
    Ok(rows.into_iter().map(opened).collect())
}

/// How much is queued.
///
/// # Errors
/// When the database cannot be read.
pub async fn counts(store: &Store) -> Result<Vec<WorkCount>, StoreError> {
    let mut connection = store.reader().await?;
    let mut counts = Vec::new();
    for kind in WorkKind::ALL {
        counts.extend(connection.rows().work_counts(kind).await?);
    }
    Ok(counts)
}

/// Removes work that is durable on an agent. Work that is gone already is skipped.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(tx: &mut WriteTx, ids: &[String]) -> Result<(), StoreError> {
    for id in ids {
        tx.mends(TYPE, id);
        tx.writes().delete_work(id).await?;
    }
    Ok(())
}

/// Queues what an agent gives away, each with its sequence in the agent's buffer, and notes how far that got, so
/// that a report that comes again brings no delivery back that was taken over meanwhile. `tell` is called once they
/// are queued. One whose webhook subscription is gone is queued too, without a tenant: the report may come again, and
/// what it adds to the log counts the first time only, so somebody else has to tell the log.
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
    let position = tx.rows().hand_over_position(agent_id, buffer_id).await?;
    let new: Vec<_> = given.into_iter().filter(|(sequence, _)| *sequence > position).collect();
    let Some(last) = new.iter().map(|(sequence, _)| *sequence).max() else { return Ok(()) };
    let new: Vec<NewWork> = new.into_iter().map(|(_, work)| work).collect();
    insert(&mut tx, &new).await?;
    let now = clock::now();
    tx.writes().set_hand_over_position(agent_id, buffer_id, last, now).await?;
    if position == 0 {
        let before = now.checked_sub(POSITION_AGE_MAX).unwrap_or(Timestamp::UNIX_EPOCH);
        tx.writes().forget_hand_over_positions(agent_id, POSITIONS_KEPT, before).await?;
    }
    tx.after_commit(tell);
    tx.commit().await
}
