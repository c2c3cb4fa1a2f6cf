//! What a database has to do to keep the store: rows in, rows out.
//!
//! An engine knows nothing of protobuf, sealing, opt-out rules and audit; it keeps bytes and the columns by which
//! they are found. The contract has two parts: the promises of [`Engine`] about transactions, and the order and the
//! limits of each query, which stand at the traits of the tables. `conformance` checks both.
//!
//! Texts are compared byte by byte: ids are in the order of their bytes, in every list. A list takes the id `after`
//! which it begins (empty: from the start) and how many rows it gives at most, and is one query, so that an entry
//! that is there all the while is neither missed nor repeated however others come and go between its pages.
//!
//! Every method fails with [`StoreError::Database`] when the database does; no other error comes from here, but for
//! those of opening. A failed statement leaves its transaction good for nothing but being dropped.

use tonic::async_trait;

use super::{
    StoreError,
    agents::{AgentReads, AgentWrites},
    api_keys::{ApiKeyReads, ApiKeyWrites},
    audit::{AuditReads, AuditWrites},
    fleet::{FleetReads, FleetWrites},
    inbound_routes::{InboundRouteReads, InboundRouteWrites},
    instances::{InstanceReads, InstanceWrites},
    opt_out_policies::{OptOutPolicyReads, OptOutPolicyWrites},
    opt_outs::{OptOutReads, OptOutWrites},
    requests::{RequestReads, RequestWrites},
    route_reach::{RouteReachReads, RouteReachWrites},
    sealed::{SealedReads, SealedWrites},
    tenant_keys::{TenantKeyReads, TenantKeyWrites},
    tenants::{TenantReads, TenantWrites},
    versions::{VersionReads, VersionWrites},
    webhook_subscriptions::{WebhookSubscriptionReads, WebhookSubscriptionWrites},
    work::{WorkReads, WorkWrites},
};

/// A database that is open.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// A connection for reading. Each query sees one state, which has all that was committed before the query began
    /// and nothing that is not committed; two queries may see two states.
    ///
    /// # Errors
    /// When none becomes free in time.
    async fn reader(&self) -> Result<Box<dyn Reads>, StoreError>;

    /// A connection for reading whose queries all see the state of its first one.
    ///
    /// # Errors
    /// When none becomes free in time.
    async fn snapshot(&self) -> Result<Box<dyn Reads>, StoreError>;

    /// Begins a transaction that may write, when every write transaction before it has ended, in whichever process.
    /// So a value that it reads cannot be changed by others before it ends: comparing an etag and then writing is a
    /// compare-and-set, and versions, cursors and sequences are committed in the order in which they are given.
    ///
    /// # Errors
    /// When the database cannot be written, or its turn does not come in time.
    async fn begin_write(&self) -> Result<Box<dyn Writes>, StoreError>;

    /// Takes from the disk what rows held that were changed or removed since [`SealedWrites::note_wipe`], if that was
    /// called, and forgets the note. Ended early, it leaves the note. Nobody else uses the database meanwhile. An
    /// engine whose disk is not ours to wipe only forgets the note.
    ///
    /// # Errors
    /// When the disk has no room for it.
    async fn wipe_if_due(&self) -> Result<(), StoreError>;

    /// Closes all connections, when those who use them have given them back.
    async fn close(&self);
}

/// Everything that can be read.
#[async_trait]
pub trait Reads:
    VersionReads
    + TenantKeyReads
    + SealedReads
    + TenantReads
    + ApiKeyReads
    + InboundRouteReads
    + RouteReachReads
    + InstanceReads
    + OptOutPolicyReads
    + WebhookSubscriptionReads
    + OptOutReads
    + RequestReads
    + AgentReads
    + FleetReads
    + WorkReads
    + AuditReads
{
    /// Gives a connection back that was read to its end. Dropping it does so too, and may take a moment longer.
    ///
    /// # Errors
    /// When the database fails; what was read is good nevertheless.
    async fn finish(self: Box<Self>) -> Result<(), StoreError>;
}

/// A transaction that may write, and sees what it has written. Dropped without commit, it changes nothing: not the
/// version, not a cursor, not the opt-out log.
#[async_trait]
pub trait Writes:
    Reads
    + VersionWrites
    + TenantKeyWrites
    + SealedWrites
    + TenantWrites
    + ApiKeyWrites
    + InboundRouteWrites
    + RouteReachWrites
    + InstanceWrites
    + OptOutPolicyWrites
    + WebhookSubscriptionWrites
    + OptOutWrites
    + RequestWrites
    + AgentWrites
    + FleetWrites
    + WorkWrites
    + AuditWrites
{
    /// Commits everything or nothing. When this returns Ok, it is on disk, and readers that begin now see it. When
    /// its caller goes away meanwhile it may be committed or not.
    ///
    /// # Errors
    /// When the database cannot be written; then nothing is changed.
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
}
