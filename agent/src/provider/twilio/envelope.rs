//! What a callback is: a message, a status, or anything else that Twilio calls with. Messages carry no mark of
//! their own; they are told from statuses by what is in them.

use gateway_core::phone::normalize_phone;
use serde_json::value::RawValue;

use super::{
    message,
    parameters::{Parameters, is_json},
    status,
};
use crate::provider::{
    ITEMS_MAX, Item, NormalizeError, NoticeItem, Part, Target,
    body::{self, UNKNOWN},
    json::{elements, identity},
};

const WHATSAPP: &str = "whatsapp";

/// What a callback is, and so which of its sides is the business.
enum Kind {
    Message,
    Status,
    Other,
}

/// What a content says. Other products of Twilio send JSON lists; each element counts for itself.
pub fn parts(content: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    if !is_json(content) {
        let parameters = Parameters::of_form(content).ok_or(NormalizeError::TooManyItems)?;
        let part = (!parameters.is_empty()).then(|| part(&parameters));
        return Ok(part.into_iter().collect());
    }
    let root = body::json(body::text(content)?)?;
    let pieces = elements(root).unwrap_or_else(|| vec![root]);
    if pieces.len() > ITEMS_MAX {
        return Err(NormalizeError::TooManyItems);
    }
    let parts = pieces.into_iter().map(json_part).collect::<Result<Vec<_>, _>>()?;
    let items: usize = parts.iter().map(|part| part.items.len()).sum();
    if items > ITEMS_MAX { Err(NormalizeError::TooManyItems) } else { Ok(parts) }
}

/// Whether a content is a message, which Twilio wants answered.
pub fn is_message(content: &[u8]) -> bool {
    let parameters = if is_json(content) {
        serde_json::from_slice(content).ok().and_then(Parameters::of_json)
    } else {
        Parameters::of_form(content)
    };
    parameters.is_some_and(|parameters| matches!(kind(&parameters), Kind::Message))
}

fn json_part(raw: &RawValue) -> Result<Part<'_>, NormalizeError> {
    let mut part = part(&Parameters::of_json(raw).ok_or(NormalizeError::TooManyItems)?);
    if !raw.get().starts_with('{') {
        // Alone it would be read as a form.
        part.original = vec!["[".into(), raw.get().into(), "]".into()];
    }
    Ok(part)
}

fn part<'a>(parameters: &Parameters<'a>) -> Part<'a> {
    let (business, items) = match kind(parameters) {
        Kind::Message => (Some("To"), items_of(parameters, ["From", "To"], message::received)),
        Kind::Status => (Some("From"), items_of(parameters, ["To", "From"], status::of_message)),
        Kind::Other => (None, vec![notice(parameters, field_of(parameters))]),
    };
    let business = business.and_then(|name| parameters.get(name));
    let number = business.map(number);
    let target = Target {
        display_phone: number.clone(),
        number,
        // Of a message that has not left yet a service stands for the number that it will choose.
        other_number: parameters.name("MessagingServiceSid"),
        account_id: parameters.name("AccountSid"),
        ..Target::default()
    };
    Part { target, items, original: vec![parameters.json()] }
}

/// What is read of a callback with these two sides, the contact's first; raw when it came through a channel that is
/// not WhatsApp's: its people are not those of WhatsApp.
fn items_of(
    parameters: &Parameters<'_>,
    sides: [&str; 2],
    read: fn(&Parameters<'_>) -> Vec<Item>,
) -> Vec<Item> {
    match sides.into_iter().find_map(|side| channel(parameters.get(side)?)) {
        Some(channel) if !channel.eq_ignore_ascii_case(WHATSAPP) => {
            vec![notice(parameters, &channel.to_ascii_lowercase())]
        }
        _ => read(parameters),
    }
}

/// The channel of an address, `messenger:…`, <https://www.twilio.com/docs/messaging/channels>. An SMS has none, and
/// WhatsApp has been seen without.
fn channel(address: &str) -> Option<&str> {
    let (channel, _) = address.trim_start().split_once(':')?;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (channel.starts_with(|first: char| first.is_ascii_alphabetic()) && channel.bytes().all(is_word))
        .then_some(channel)
}

/// A business number without its channel, in E.164 if it is a phone number.
fn number(address: &str) -> Box<str> {
    match normalize_phone(address) {
        Some(phone) => phone.as_str().into(),
        None => address.strip_prefix("whatsapp:").unwrap_or(address).into(),
    }
}

fn kind(parameters: &Parameters<'_>) -> Kind {
    let is_received = ["SmsStatus", "MessageStatus"]
        .iter()
        .any(|name| parameters.is(name, "received") || parameters.is(name, "receiving"));
    let has_id = ["MessageSid", "SmsMessageSid", "SmsSid"].iter().any(|name| parameters.get(name).is_some());
    if is_received {
        Kind::Message
    } else if status::word(parameters).is_some_and(|word| {
        // A status repeats no text; but one that we know is one even if it does.
        parameters.get("Body").is_none() || status::is_known(word)
    }) {
        Kind::Status
    } else if has_id && ["Body", "NumMedia", "MessageType"].iter().any(|name| parameters.get(name).is_some())
    {
        Kind::Message
    } else {
        Kind::Other
    }
}

/// The word for what is neither a message nor a status: a call, an error report, an event of another product.
fn field_of<'a>(parameters: &'a Parameters<'_>) -> &'a str {
    parameters.get("EventType").or_else(|| parameters.get("type")).unwrap_or(UNKNOWN)
}

fn notice(parameters: &Parameters<'_>, field: &str) -> Item {
    Item::Notice(Box::new(NoticeItem {
        field: field.into(),
        raw: parameters.kept(),
        identity: identity(&[field, &parameters.json()]),
        time: None,
    }))
}
