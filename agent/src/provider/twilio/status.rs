//! A status of a message of the business,
//! <https://www.twilio.com/docs/messaging/guides/track-outbound-message-status>. No order is promised, and none is
//! made: each status is passed on as it comes.

use std::borrow::Cow;

use gateway_core::{
    event::{EventType, Status},
    opt_out::OptOutScope,
};

use super::{contact::contact, parameters::Parameters};
use crate::provider::{Item, StatusItem, preference::of_failure, status};

/// "Attempt to send to unsubscribed recipient", <https://www.twilio.com/docs/api/errors/21610>: the contact stopped
/// all messages of this sender, and a send tells us so.
const UNSUBSCRIBED: i64 = 21_610;
/// Statuses without an event of their own.
const ON_THE_WAY: [&str; 6] =
    ["accepted", "scheduled", "queued", "sending", "canceled", "partially_delivered"];

/// The word of a status, in the parameter that later replaced the other.
pub fn word<'a>(parameters: &'a Parameters<'_>) -> Option<&'a str> {
    parameters.get("MessageStatus").or_else(|| parameters.get("SmsStatus"))
}

/// Whether we know the word, in any case.
pub fn is_known(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    event_type(&word).is_some() || ON_THE_WAY.contains(&word.as_str())
}

/// A status of a message, and the opt-out that it may tell of.
pub fn of_message(parameters: &Parameters<'_>) -> Vec<Item> {
    let word = status::word(word(parameters).map(Cow::Borrowed));
    let event_type = event_type(&word);
    let contact = contact(parameters, "To");
    let external_message_id = parameters.message_id();
    let (error, has_odd_code) = parameters.error();
    let is_unsubscribed = error.as_ref().is_some_and(|error| error.code == Some(UNSUBSCRIBED));
    let item = StatusItem {
        contact,
        identity: external_message_id.clone().unwrap_or_else(|| parameters.identity()),
        status: Status {
            external_message_id,
            status: word,
            recipient: parameters.name("To").unwrap_or_default(),
            error,
            raw: (event_type.is_none() || has_odd_code).then(|| parameters.kept()),
            ..Status::default()
        },
        event_type,
        time: None,
    };
    let item = status::settled(item, || parameters.kept());
    let opt_out = is_unsubscribed.then(|| of_failure(&item, OptOutScope::NonEssential)).flatten();
    std::iter::once(Item::Status(Box::new(item))).chain(opt_out).collect()
}

fn event_type(word: &str) -> Option<EventType> {
    match word {
        "sent" => Some(EventType::MessageSent),
        "delivered" => Some(EventType::MessageDelivered),
        "read" => Some(EventType::MessageRead),
        "failed" | "undelivered" => Some(EventType::MessageFailed),
        _ => None,
    }
}
