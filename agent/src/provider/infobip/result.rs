//! One element of `results[]`, or an object by itself: what it is about is told by the fields it has.

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{message, notification, report};
use crate::provider::{
    Item, NoticeItem, Target,
    json::{Fields, identity, kept},
};

/// The word for what does not say what it is.
const UNKNOWN: &str = "unknown";

/// The number that an element is about, and what it says.
pub fn read(raw: &RawValue) -> (Target, Item) {
    let Some(fields) = Fields::of(raw) else {
        return (Target::default(), notice(UNKNOWN, raw, None));
    };
    let kind = kind(&fields);
    let target = target(&fields, &kind);
    let told = |field: &str| notice(field, raw, time(&fields));
    let item = match kind {
        Kind::OtherChannel(channel) => told(&channel.to_lowercase()),
        Kind::Message => Item::Message(Box::new(message::read(raw, &fields))),
        Kind::Deletion => Item::Status(Box::new(report::deletion(raw, &fields))),
        Kind::Seen => Item::Status(Box::new(report::seen(raw, &fields))),
        Kind::Delivery => Item::Status(Box::new(report::delivery(raw, &fields))),
        Kind::Notification(content) => match notification::preference(&fields, &content) {
            Some(preference) => Item::Preference(Box::new(preference)),
            None => told(notification::word(&content).as_deref().unwrap_or(UNKNOWN)),
        },
        Kind::Unknown => told(UNKNOWN),
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
        _ if has("status") => Kind::Delivery,
        // A message whose content is missing.
        _ if has("integrationType") && has("receivedAt") => Kind::Message,
        _ => fields.object("content").map_or(Kind::Unknown, Kind::Notification),
    }
}

/// The business number: of a message the receiver, of reports the sender, of notifications the field `sender`.
/// Delivery reports do not name it.
fn target(fields: &Fields<'_>, kind: &Kind<'_>) -> Target {
    let from = || fields.name("from").or_else(|| fields.name("sender"));
    let to = || fields.name("to").or_else(|| fields.name("destination"));
    let (number, other_number) = match kind {
        Kind::Message => (to(), None),
        Kind::Deletion | Kind::Seen | Kind::Delivery => (from(), None),
        Kind::Notification(content) => (content.name("sender").or_else(from), None),
        Kind::OtherChannel(_) | Kind::Unknown => (to(), from()),
    };
    let platform = || fields.object("platform")?.name("applicationId");
    Target {
        display_phone: number.clone(),
        number,
        other_number,
        account_id: fields.name("applicationId").or_else(platform),
    }
}

/// Infobip's id of a message, or a hash of the element when it has none.
pub fn identity_of(message_id: Option<&str>, raw: &RawValue) -> Box<str> {
    message_id.map_or_else(|| identity(&[raw.get()]), Box::from)
}

fn notice(field: &str, raw: &RawValue, time: Option<Timestamp>) -> Item {
    let identity = identity(&[raw.get()]);
    Item::Notice(Box::new(NoticeItem { field: field.into(), raw: kept(raw), identity, time }))
}

fn time(fields: &Fields<'_>) -> Option<Timestamp> {
    ["createdAt", "receivedAt", "doneAt", "sentAt"].into_iter().find_map(|name| fields.time(name))
}
