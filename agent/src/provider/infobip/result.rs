//! One element of `results[]`, or an object by itself: what it is about is told by the fields it has.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{message, preference, status};
use crate::provider::{
    Item, Target,
    body::{UNKNOWN, notice},
    json::Fields,
};

/// The number that an element is about, and what it says.
pub fn read(raw: &RawValue) -> (Target, Item) {
    let Some(fields) = Fields::of(raw) else {
        return (Target::default(), notice(UNKNOWN, raw, &[UNKNOWN, raw.get()], None));
    };
    let kind = kind(&fields);
    let target = target(&fields, &kind);
    let told = |field: &str| notice(field, raw, &[field, raw.get()], time(&fields));
    let item = match kind {
        Kind::OtherChannel(channel) => told(&channel.to_lowercase()),
        Kind::Message => Item::Message(Box::new(message::read(raw, &fields))),
        Kind::Deletion => Item::Status(Box::new(status::deleted(raw, &fields))),
        Kind::Seen => Item::Status(Box::new(status::seen(raw, &fields))),
        Kind::Delivery => Item::Status(Box::new(status::delivery(raw, &fields))),
        Kind::Notification(content) => match preference::preference(&fields, &content) {
            Some(preference) => Item::Preference(Box::new(preference)),
            None => told(preference::word(&content).as_deref().unwrap_or(UNKNOWN)),
        },
        Kind::Unknown => told(fields.name("event").as_deref().unwrap_or(UNKNOWN)),
    };
    (target, item)
}

/// What an element is about.
enum Kind<'a> {
    /// Another channel of the account than WhatsApp.
    OtherChannel(Box<str>),
    /// A contact wrote.
    Message,
    /// A message was deleted.
    Deletion,
    /// The contact read a message.
    Seen,
    /// What became of a message.
    Delivery,
    /// A contact's settings; the field `content`.
    Notification(Fields<'a>),
    /// Something else.
    Unknown,
}

fn kind<'a>(fields: &Fields<'a>) -> Kind<'a> {
    // Messages name the channel in `integrationType`, reports in `channel`, if at all.
    let channel = fields.name("integrationType").or_else(|| fields.name("channel"));
    let is_whatsapp =
        |channel: &str| channel.get(..8).is_some_and(|beginning| beginning.eq_ignore_ascii_case("whatsapp"));
    let named_whatsapp = channel.as_deref().is_some_and(is_whatsapp);
    let has = |name| fields.get(name).is_some();
    match channel {
        Some(channel) if !named_whatsapp => Kind::OtherChannel(channel),
        _ if has("message") => Kind::Message,
        _ if has("deletedAt") => Kind::Deletion,
        _ if has("seenAt") => Kind::Seen,
        // A report whose status is missing or null is one all the same.
        _ if fields.iter().any(|(name, _)| name == b"status") || has("doneAt") || has("sentAt") => {
            Kind::Delivery
        }
        // A message whose content is missing.
        _ if has("integrationType") && has("receivedAt") => Kind::Message,
        _ => fields.object("content").map_or(Kind::Unknown, Kind::Notification),
    }
}

/// The business number: of a message the receiver, of notifications the field `sender`. Of reports it should be the
/// sender, which delivery reports do not name; that of seen and deletion reports is documented nowhere.
fn target(fields: &Fields<'_>, kind: &Kind<'_>) -> Target {
    let from = || fields.name("from").or_else(|| fields.name("sender"));
    let to = || fields.name("to").or_else(|| fields.name("destination"));
    let either_side = matches!(kind, Kind::Deletion | Kind::Seen | Kind::Delivery);
    let (number, other_number) = match kind {
        Kind::Message => (to(), None),
        Kind::Deletion | Kind::Seen | Kind::Delivery => (from(), to()),
        Kind::Notification(content) => (content.name("sender").or_else(from), None),
        Kind::OtherChannel(_) | Kind::Unknown => (to(), from()),
    };
    let platform = || fields.object("platform")?.name("applicationId");
    Target {
        display_phone: number.clone(),
        number,
        other_number,
        either_side,
        account_id: fields.name("applicationId").or_else(platform),
    }
}

fn time(fields: &Fields<'_>) -> Option<Timestamp> {
    ["createdAt", "receivedAt", "doneAt", "sentAt"].into_iter().find_map(|name| fields.time(name))
}
