//! A message of the business with its status,
//! <https://docs.bird.com/api/channels-api/message-status-and-interactions>.

use gateway_core::event::{Contact, EventType, ProviderError, Status};
use serde_json::value::RawValue;

use super::{contact::contact, message::whatsapp_message_id};
use crate::provider::{
    Item, StatusItem,
    json::{Fields, kept},
    message::{correlation, identity},
    preference::stopped_marketing,
    status::{settled, word},
};

/// Most recipients of one message. WhatsApp's messages have one; each repeats what is said of the message.
const RECIPIENTS_MAX: usize = 16;

/// The statuses of a payload, one for each recipient, and the opt-outs that they may tell of. None with more than
/// [`RECIPIENTS_MAX`].
pub fn outbound(raw: &RawValue, payload: &Fields<'_>) -> Option<Vec<Item>> {
    let recipients = recipients(payload)?;
    let word = word(payload.text("status"));
    let event_type = event_type(&word);
    let external_message_id = payload.name("id");
    let failure = payload.object("failure");
    let source = failure.as_ref().and_then(|failure| failure.object("source"));
    let item = StatusItem {
        identity: identity(external_message_id.as_deref(), raw),
        status: Status {
            external_message_id,
            // What the platform itself says of a failure is not in `error`.
            raw: (event_type.is_none() || source.is_some()).then(|| kept(raw)),
            status: word,
            error: error(payload, failure.as_ref()),
            correlation: correlation(payload, "reference"),
            whatsapp_message_id: whatsapp_message_id(payload),
            ..Status::default()
        },
        contact: Contact::default(),
        event_type,
        time: ["lastStatusAt", "updatedAt", "createdAt"].into_iter().find_map(|name| payload.time(name)),
    };
    let item = settled(item, || kept(raw));
    // The platform's own code; that of Bird beside it is one for all platforms.
    let code = source.and_then(|source| source.integer("code"));
    let items = recipients.into_iter().flat_map(|(recipient, contact)| {
        let status = Status { recipient, ..item.status.clone() };
        let item = StatusItem { contact, status, ..item.clone() };
        let opt_out = stopped_marketing(&item, code.as_slice());
        std::iter::once(Item::Status(Box::new(item))).chain(opt_out)
    });
    Some(items.collect())
}

/// Who a message went to, as Bird names them and as persons; nobody when the payload does not say.
/// None with more than [`RECIPIENTS_MAX`].
pub fn recipients(payload: &Fields<'_>) -> Option<Vec<(Box<str>, Contact)>> {
    people(payload.object("receiver").as_ref())
}

/// The persons of one side, as in [`recipients`].
pub fn people(side: Option<&Fields<'_>>) -> Option<Vec<(Box<str>, Contact)>> {
    let cards = side.and_then(|side| side.array("contacts")).unwrap_or_default();
    if cards.len() > RECIPIENTS_MAX {
        return None;
    }
    let one = |card: &Fields<'_>| {
        let contact = contact(Some(card), None);
        (card.name("identifierValue").unwrap_or_else(|| contact.key().into()), contact)
    };
    let mut all: Vec<_> = cards.into_iter().filter_map(Fields::of).map(|card| one(&card)).collect();
    if all.is_empty() {
        let card = side.and_then(|side| side.object("contact"));
        all.push(card.map(|card| one(&card)).unwrap_or_default());
    }
    Some(all)
}

fn event_type(word: &str) -> Option<EventType> {
    match word {
        "sent" => Some(EventType::MessageSent),
        "delivered" => Some(EventType::MessageDelivered),
        "read" => Some(EventType::MessageRead),
        "rejected" => Some(EventType::MessageFailed),
        // `sending_failed`, `delivery_failed`.
        _ if word.ends_with("failed") => Some(EventType::MessageFailed),
        _ => None,
    }
}

/// `failure.code` groups the errors of all platforms, `details` names this one, `reason` tells what the platform said
/// (<https://docs.bird.com/api/channels-api/message-status-and-interactions/message-failure-codes>).
fn error(payload: &Fields<'_>, failure: Option<&Fields<'_>>) -> Option<ProviderError> {
    let code = failure.and_then(|failure| failure.integer("code"));
    let (title, details) = (payload.name("details"), payload.name("reason"));
    let says_something = code.is_some() || title.is_some() || details.is_some();
    says_something.then_some(ProviderError { code, title, details })
}
