//! A message of a contact, <https://www.twilio.com/docs/messaging/guides/webhook-request>.

use gateway_core::{
    event::{Contact, Message},
    opt_out::OptOutScope,
    phone::normalize_phone,
};

use super::{
    contact::contact,
    content::{context, has_more_media, location, media, media_kind, reply, text},
    parameters::Parameters,
};
use crate::provider::{Item, MessageItem, PreferenceIdentity, PreferenceItem, message::UNSUPPORTED};

/// Beside what came of an ad this is sent with every message.
const REFERRAL_COUNT: &str = "ReferralNumMedia";

/// A message, and the opt-out or opt-in that Twilio made of it.
pub fn received(parameters: &Parameters<'_>) -> Vec<Item> {
    let contact = contact(parameters, "From");
    let mut message = read(parameters);
    let decision = match parameters.get("OptOutType").map(str::to_ascii_uppercase).as_deref() {
        Some("STOP") => Some(preference(&contact, &message, true)),
        Some("START") => Some(preference(&contact, &message, false)),
        None | Some("HELP") => None,
        Some(_) => {
            message.raw.get_or_insert_with(|| parameters.kept());
            None
        }
    };
    let item = MessageItem {
        identity: message.external_message_id.clone().unwrap_or_else(|| parameters.identity()),
        contact,
        message,
        is_echo: false,
        business_phone: parameters.get("To").and_then(normalize_phone),
        time: None,
    };
    std::iter::once(Item::Message(Box::new(item))).chain(decision).collect()
}

/// The messaging service took the text for one of its keywords and sends the contact no more, or sends again,
/// <https://www.twilio.com/docs/messaging/tutorials/advanced-opt-out>.
fn preference(contact: &Contact, message: &Message, opts_out: bool) -> Item {
    Item::Preference(Box::new(PreferenceItem {
        contact: contact.clone(),
        opts_out,
        from_error: false,
        scope: OptOutScope::NonEssential,
        external_message_id: message.external_message_id.clone(),
        identity: PreferenceIdentity::ItemBefore,
        time: None,
    }))
}

fn read(parameters: &Parameters<'_>) -> Message {
    let literal = parameters.get("MessageType").map(str::to_ascii_lowercase);
    let (error, has_odd_code) = parameters.error();
    let mut message = Message {
        external_message_id: parameters.message_id(),
        text: text(parameters),
        media: media(parameters),
        reply: reply(parameters, literal.as_deref()),
        location: location(parameters),
        context: context(parameters),
        referral: parameters.beginning_with("Referral", REFERRAL_COUNT),
        error,
        ..Message::default()
    };
    let kind = match literal.as_deref() {
        None => kind_of(&message),
        Some(word) => is_content(word, &message).then_some(word),
    };
    message.message_type = kind.unwrap_or(UNSUPPORTED).into();
    let says_more = has_odd_code
        || has_more_media(parameters, message.media.as_ref())
        || (parameters.get("FlowData").is_some() && parameters.get("InteractiveData").is_some());
    if kind.is_none() {
        message.raw_type = parameters.name("MessageType");
    }
    message.raw = (kind.is_none() || says_more).then(|| parameters.kept());
    message
}

/// What a message is that does not say it itself; None when there is nothing in it.
fn kind_of(message: &Message) -> Option<&'static str> {
    let of_reply = |word: &str| if word == "button" { "button" } else { "interactive" };
    None.or_else(|| message.location.as_ref().map(|_| "location"))
        .or_else(|| message.reply.as_ref()?.reply_type.as_deref().map(of_reply))
        .or_else(|| message.media.as_ref().map(media_kind))
        .or_else(|| message.text.as_ref().map(|_| "text"))
}

/// Whether a message has the content that its own word promises, and the word is one that we know.
fn is_content(word: &str, message: &Message) -> bool {
    match word {
        "text" => message.text.is_some(),
        "image" | "video" | "audio" | "voice" | "document" | "sticker" | "contacts" => {
            message.media.is_some()
        }
        "location" => message.location.is_some(),
        "button" | "interactive" => message.reply.is_some(),
        _ => false,
    }
}
