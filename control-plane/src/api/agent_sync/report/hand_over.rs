//! Deliveries that an agent gives away: which of them can be given to another agent.
//!
//! One that is not what it should be must not hold up what is behind it, and must not vanish either. Nobody could
//! deliver it, so the log shows its delivery as exhausted, which customers see and can replay; the operator gets an
//! error and a count. Only the report itself decides that: one that comes again finds the log as the first one left it,
//! and says the same. Whether the webhook subscription is there is another matter. That changes, so the queue looks at it.

use gateway_core::id::EventId;
use gateway_proto::v1;
use tonic::Status;
use tracing::{error, info};
use uuid::Uuid;

use super::ReportStream;
use crate::{
    inbound_log::{Record, SequencedRecord},
    work::{GivenAway, HandOverOutcome, settled},
};

/// What is wrong with a delivery that is given away. The text names a field, never what is in it.
type Flaw = &'static str;

impl ReportStream {
    /// Looks at a delivery that is given away: it goes into `given`, to be queued once the message's events are in the
    /// log, or the log is told that nobody makes it.
    pub(super) async fn given_away(
        &mut self,
        sequence: u64,
        mut hand_over: v1::DeliveryHandOver,
        given: &mut Vec<GivenAway>,
    ) -> Result<Option<SequencedRecord>, Status> {
        let id = match check(&hand_over) {
            Ok(id) => id,
            Err(flaw) => return Ok(self.refuse(sequence, &hand_over, flaw)),
        };
        let log = hand_over.inbound_log.get_or_insert_default();
        log.tenant_id = self.tenant_of(&log.instance_id, std::mem::take(&mut log.tenant_id)).await?;
        log.deliveries.clear();
        if !self.guard.allows_tenant(&log.tenant_id) {
            return Ok(None);
        }
        self.state.work.handed_over(HandOverOutcome::Queued, 1);
        given.push(GivenAway { sequence, id, hand_over });
        Ok(None)
    }

    fn refuse(&self, sequence: u64, hand_over: &v1::DeliveryHandOver, flaw: Flaw) -> Option<SequencedRecord> {
        self.state.work.handed_over(HandOverOutcome::Refused, 1);
        let event_id = hand_over.inbound_log.as_ref().and_then(|log| log.event_id.parse::<EventId>().ok());
        error!(
            gateway.agent.id = self.identity.agent_id,
            gateway.event.id = event_id.map(|id| id.to_string()),
            flaw,
            "an agent gave a delivery away that nobody can make; its log shows it as exhausted: replay it"
        );
        let record: Record = settled(hand_over, v1::DeliveryState::Exhausted)?;
        Some(SequencedRecord { sequence, record })
    }

    /// Queues what a message gave away; its events are in the log now.
    pub(super) async fn queue(&mut self, buffer_id: &str, given: Vec<GivenAway>) -> Result<(), Status> {
        let count = given.len();
        let from = (self.identity.agent_id.as_str(), self.identity.region.as_str());
        self.state.work.hand_over(from, buffer_id, given).await?;
        if count > 0 {
            info!(gateway.agent.id = self.identity.agent_id, count, "took over deliveries of an agent");
        }
        Ok(())
    }
}

/// The id of a delivery that another agent can make; otherwise what is wrong with it.
fn check(hand_over: &v1::DeliveryHandOver) -> Result<Uuid, Flaw> {
    let id = hand_over.id.parse::<Uuid>().map_err(|_| "id")?;
    let log = hand_over.inbound_log.as_ref().ok_or("inbound_log")?;
    if log.event_id.parse::<EventId>().is_err() {
        return Err("inbound_log.event_id");
    }
    if log.instance_id.is_empty() {
        return Err("inbound_log.instance_id");
    }
    if log.payload_json.is_empty() {
        return Err("inbound_log.payload_json");
    }
    let delivery = hand_over.delivery.as_ref().ok_or("delivery")?;
    if delivery.subscription_id.is_empty() {
        return Err("delivery.subscription_id");
    }
    match delivery.state() {
        v1::DeliveryState::Delivered | v1::DeliveryState::Exhausted | v1::DeliveryState::Cancelled => {
            Err("delivery.state")
        }
        _ => Ok(id),
    }
}
