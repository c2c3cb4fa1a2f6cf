//! What agents are asked to do, until one of them has it on its own disk.

use gateway_proto::v1::{self, work::Work as Task};
use jiff::Timestamp;
use prost::Message as _;
use tonic::async_trait;

use super::{Connection as _, Store, StoreError, WriteTx, decode};

/// Queued work and its place.
#[derive(Debug, Clone)]
pub struct QueuedWork {
    /// Its place in the queue.
    pub seq: i64,
    /// The work, with its id.
    pub work: v1::Work,
}

/// What a piece of work is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject<'a> {
    /// An inbound route.
    InboundRoute(&'a str),
    /// An instance.
    Instance(&'a str),
    /// A webhook subscription.
    WebhookSubscription(&'a str),
}

/// Reads the queue.
#[async_trait]
pub trait WorkReads: Send {
    /// Place and body of the work for agents of `region`, in the order in which it was queued, after the place
    /// `after` (0: from the start), at most `limit`.
    async fn work(&mut self, region: &str, after: i64, limit: i64)
    -> Result<Vec<(i64, Vec<u8>)>, StoreError>;

    /// Whether agents of a tenant may do what a subject is about: an inbound route of the tenant; an instance of
    /// the tenant on such a route; a webhook subscription of such an instance. Never for an empty `tenant_id`.
    async fn is_work_of_tenant(&mut self, subject: Subject<'_>, tenant_id: &str) -> Result<bool, StoreError>;
}

/// Changes the queue.
#[async_trait]
pub trait WorkWrites: Send {
    /// Queues work for agents of `regions` (empty: of any), after all that was ever queued: no place is given twice.
    /// Nothing when work with this id is in the queue.
    async fn insert_work(
        &mut self,
        id: &str,
        regions: &[String],
        create_time: Timestamp,
        body: &[u8],
    ) -> Result<(), StoreError>;

    /// Removes work. Nothing when it is not there.
    async fn delete_work(&mut self, id: &str) -> Result<(), StoreError>;
}

/// Queues work for an agent of one of `regions` (empty: of any), inside the caller's transaction. Its id
/// must be set; when work with that id is in the queue, this one is it, and nothing changes.
///
/// # Errors
/// When the database cannot be written.
pub async fn insert(
    transaction: &mut WriteTx,
    regions: &[String],
    work: &v1::Work,
    create_time: Timestamp,
) -> Result<(), StoreError> {
    transaction.writes().insert_work(&work.id, regions, create_time, &work.encode_to_vec()).await
}

/// At most `limit` pieces of work for agents of `region` after the place `after`, oldest first.
///
/// # Errors
/// When the database cannot be read.
pub async fn list(
    store: &Store,
    region: &str,
    after: i64,
    limit: i64,
) -> Result<Vec<QueuedWork>, StoreError> {
    let rows = store.reader().await?.rows().work(region, after, limit).await?;
    rows.into_iter().map(|(seq, body)| Ok(QueuedWork { seq, work: decode(&body)? })).collect()
}

/// Keeps of `rows` what agents of one tenant may do: what concerns an instance on an inbound route of that tenant.
/// What comes in on a platform route is not theirs, whosever the instance is.
///
/// # Errors
/// When the database cannot be read.
pub async fn of_tenant(
    store: &Store,
    tenant_id: &str,
    rows: Vec<QueuedWork>,
) -> Result<Vec<QueuedWork>, StoreError> {
    let mut connection = store.reader().await?;
    let mut kept = Vec::new();
    for row in rows {
        let subject = match &row.work.work {
            Some(Task::TestEvent(event)) => Subject::WebhookSubscription(&event.subscription_id),
            Some(Task::UnroutedCallback(callback)) => Subject::InboundRoute(&callback.inbound_route_id),
            Some(Task::OptOut(opt_out)) => Subject::Instance(&opt_out.instance_id),
            Some(Task::DeliveryHandOver(delivery)) => match &delivery.inbound_log {
                Some(log) => Subject::Instance(&log.instance_id),
                None => continue,
            },
            None => continue,
        };
        if connection.rows().is_work_of_tenant(subject, tenant_id).await? {
            kept.push(row);
        }
    }
    Ok(kept)
}

/// Removes work that is durable on an agent. Work that is gone already is skipped.
///
/// # Errors
/// When the database cannot be written.
pub async fn delete(transaction: &mut WriteTx, ids: &[String]) -> Result<(), StoreError> {
    for id in ids {
        transaction.writes().delete_work(id).await?;
    }
    Ok(())
}
