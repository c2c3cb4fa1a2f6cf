//! `messages[]` and `message_echoes[]`,
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/webhooks/reference/messages>.

use gateway_core::{
    event::{Contact, Message},
    opt_out::OptOutScope,
    phone::{Phone, normalize_phone},
};
use serde_json::value::RawValue;

use super::{contact::Contacts, content, error::Errors, relay::Relay};
use crate::provider::{
    ContactChange, Item, MessageItem, PreferenceIdentity, PreferenceItem,
    json::{Fields, kept},
    message::{UNSUPPORTED, identity, set_unsupported},
};

/// A message of a contact.
pub fn received(
    raw: &RawValue,
    contacts: &Contacts,
    alone: bool,
    business_phone: Option<&Phone>,
    relay: Relay<'_>,
) -> Vec<Item> {
    let Some(fields) = Fields::of(raw) else { return vec![unreadable(raw, business_phone, false)] };
    let message = read(raw, &fields, relay);
    let system = fields.object("system").filter(|_| &*message.message_type == "system");
    let contact = match &system {
        // Who changed their id is named by the new one, in `system` alone.
        Some(system) if !has_sender(&fields) => {
            contacts.join(new_number(system), system.identifier("user_id"), alone)
        }
        _ => contacts.join(fields.name("from"), fields.name("from_user_id"), alone),
    };
    let told = system.and_then(|system| system_item(&system, &fields, &contact));
    let item = MessageItem {
        identity: identity(message.external_message_id.as_deref(), raw),
        contact,
        message,
        is_echo: false,
        business_phone: business_phone.cloned(),
        time: fields.time("timestamp"),
    };
    std::iter::once(Item::Message(Box::new(item))).chain(told).collect()
}

/// A message that the business typed in its phone app.
pub fn echo(raw: &RawValue, contacts: &Contacts, alone: bool, relay: Relay<'_>) -> Vec<Item> {
    let Some(fields) = Fields::of(raw) else { return vec![unreadable(raw, None, true)] };
    let mut message = read(raw, &fields, relay);
    message.source = Some("app");
    let item = MessageItem {
        identity: identity(message.external_message_id.as_deref(), raw),
        contact: contacts.join(fields.name("to"), fields.name("to_user_id"), alone),
        message,
        is_echo: true,
        business_phone: fields.text("from").as_deref().and_then(normalize_phone),
        time: fields.time("timestamp"),
    };
    vec![Item::Message(Box::new(item))]
}

fn unreadable(raw: &RawValue, business_phone: Option<&Phone>, is_echo: bool) -> Item {
    let mut message = Message { source: is_echo.then_some("app"), ..Message::default() };
    set_unsupported(&mut message, None, raw);
    Item::Message(Box::new(MessageItem {
        identity: identity(message.external_message_id.as_deref(), raw),
        contact: Contact::default(),
        message,
        is_echo,
        business_phone: business_phone.cloned(),
        time: None,
    }))
}

fn read(raw: &RawValue, fields: &Fields<'_>, relay: Relay<'_>) -> Message {
    let errors = Errors::of(fields.get("errors"));
    let context = fields.object("context");
    let mut message = Message {
        external_message_id: fields.name("id"),
        context: context.and_then(|context| content::context(&context, relay.message_id(&context))),
        referral: fields.get("referral").map(kept),
        group_id: fields.name("group_id"),
        identity: fields.get("identity").map(kept),
        error: errors.first,
        raw: errors.say_more.then(|| kept(raw)),
        ..Message::default()
    };
    let literal = fields.name("type");
    match literal.as_deref() {
        Some(known) if content::read(known, fields, relay, &mut message).is_some() => {
            message.message_type = known.into()
        }
        _ => {
            // Of what Meta itself cannot show, `unsupported.type` says what it was.
            let shown = fields.object("unsupported").and_then(|unsupported| unsupported.name("type"));
            let shown = shown.filter(|_| literal.as_deref() == Some(UNSUPPORTED));
            set_unsupported(&mut message, shown.or(literal), raw);
            message.text = message.text.take().or_else(|| fields.object("text")?.name("body"));
        }
    }
    message
}

fn has_sender(fields: &Fields<'_>) -> bool {
    fields.identifier("from").is_some() || fields.identifier("from_user_id").is_some()
}

/// The contact's new number; `new_wa_id` is the word of before v12.
fn new_number(system: &Fields<'_>) -> Option<Box<str>> {
    system.identifier("wa_id").or_else(|| system.identifier("new_wa_id"))
}

/// What a system message means beside being one.
fn system_item(system: &Fields<'_>, fields: &Fields<'_>, contact: &Contact) -> Option<Item> {
    let user_id = system.identifier("user_id");
    match system.text("type")?.as_ref() {
        // `customer_changed_number` is the word of before v12.
        "user_changed_number" | "customer_changed_number" | "user_changed_user_id" => {
            let number = new_number(system);
            let from_user_id =
                fields.identifier("from_user_id").filter(|from| user_id.as_ref() != Some(from));
            let from = Contact {
                // Of a message without a sender the contact is the new one.
                phone: contact.phone.clone().filter(|_| has_sender(fields)),
                user_id: system.identifier("previous_user_id").or(from_user_id),
                ..Contact::default()
            };
            let to =
                Contact { phone: number.as_deref().and_then(normalize_phone), user_id, ..Contact::default() };
            Some(Item::ContactChange(Box::new(ContactChange { from, to })))
        }
        "user_preference_changed" => {
            let opts_out = match system.text("marketing")?.as_ref() {
                "stop" => true,
                "resume" => false,
                _ => return None,
            };
            Some(Item::Preference(Box::new(PreferenceItem {
                contact: contact.clone(),
                scope: OptOutScope::Marketing,
                opts_out,
                from_error: false,
                external_message_id: fields.name("id"),
                identity: PreferenceIdentity::ItemBefore,
                time: fields.time("timestamp"),
            })))
        }
        _ => None,
    }
}
