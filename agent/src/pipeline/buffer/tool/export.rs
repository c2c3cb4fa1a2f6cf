//! The events of a buffer as JSON lines.

use std::io::Write;

use gateway_core::delivery::DeliveryState;
use gateway_proto::v1;
use jiff::Timestamp;
use prost::Message as _;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    super::{
        index::{Delivery, Reported, Slot, Subscriptions},
        journal::format::Kind,
        record,
        recover::{recover, recover_all},
    },
    Progress, Stopped, ToolError, readable, reader,
};

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    /// Events.
    pub events: u64,
    /// Events that should be there and cannot be read.
    pub unreadable: u64,
    /// Bytes of the journal that cannot be read.
    pub unreadable_bytes: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    event_id: &'a str,
    instance_id: &'a str,
    event: &'a str,
    receive_time: Option<String>,
    report: &'static str,
    subscriptions: Vec<Subscription>,
    payload: Payload<'a>,
}

#[derive(Serialize)]
struct Subscription {
    subscription_id: String,
    state: &'static str,
    attempts: u16,
    next_attempt_time: Option<String>,
}

/// The webhook body: JSON as it is, and text if it ever is not JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Json(&'a RawValue),
    Text(&'a str),
}

/// Writes one line for every open event: not settled, or its report not acked. With `all` those too that are
/// done and still in the journal. It is personal data.
///
/// # Errors
/// When the disk refuses, the journal is of a newer program, or `out` cannot be written.
pub fn export(
    buffer: &Stopped,
    all: bool,
    out: &mut dyn Write,
    progress: Progress<'_>,
) -> Result<Exported, ToolError> {
    let journal = buffer.journal();
    progress("putting together what is live", 0, 1);
    let recovered = if all { recover_all(&journal) } else { recover(&journal, None) };
    let recovered = recovered.map_err(ToolError::journal(buffer.directory()))?;
    let reader = reader(&journal, &recovered);
    let unreadable_bytes = recovered.damage.unreadable_bytes;
    let mut exported = Exported { unreadable_bytes, ..Exported::default() };
    for (index, (_, slot)) in recovered.index.iter().enumerate() {
        progress("writing events", index as u64, recovered.index.len());
        let payload = readable(reader.read(slot.place, Kind::Event), &journal)?;
        let log = payload.as_deref().and_then(record::read_event);
        let Some(log) = log.and_then(|(_, log)| v1::InboundLog::decode(log).ok()) else {
            exported.unreadable += 1;
            continue;
        };
        let subscription = |delivery: &Delivery| subscription(delivery, &recovered.subscriptions);
        let line = line(&log, slot, slot.deliveries.as_slice().iter().map(subscription).collect());
        let write = |out: &mut dyn Write| {
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")
        };
        write(out).map_err(ToolError::write("the output".as_ref()))?;
        exported.events += 1;
    }
    out.flush().map_err(ToolError::write("the output".as_ref()))?;
    Ok(exported)
}

fn line<'a>(log: &'a v1::InboundLog, slot: &Slot, subscriptions: Vec<Subscription>) -> Line<'a> {
    let body = log.payload_json.as_str();
    // A line break between the tokens of a body would break the line.
    let json = serde_json::from_str(body).ok().filter(|_| !body.contains('\n'));
    Line {
        event_id: &log.event_id,
        instance_id: &log.instance_id,
        event: &log.event,
        receive_time: time(slot.receive_ms),
        report: match slot.reported {
            Reported::No => "not_written",
            Reported::Queued => "waiting",
            Reported::Acked => "acked",
        },
        subscriptions,
        payload: json.map_or(Payload::Text(body), Payload::Json),
    }
}

fn subscription(delivery: &Delivery, subscriptions: &Subscriptions) -> Subscription {
    let is_due = delivery.state == DeliveryState::Pending;
    Subscription {
        subscription_id: subscriptions.id(delivery.subscription).to_string(),
        state: match delivery.state {
            DeliveryState::Pending => "pending",
            DeliveryState::Held => "held",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Exhausted => "exhausted",
            DeliveryState::Cancelled => "cancelled",
            DeliveryState::HandingOver { .. } => "handing_over",
            DeliveryState::HandedOver => "handed_over",
        },
        attempts: delivery.attempts,
        next_attempt_time: is_due.then(|| time(delivery.due_ms)).flatten(),
    }
}

/// RFC 3339, UTC; none for a time that there cannot be.
fn time(ms: i64) -> Option<String> {
    Timestamp::from_millisecond(ms).ok().map(|time| time.to_string())
}
