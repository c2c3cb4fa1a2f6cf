//! A message of a contact,
//! <https://www.infobip.com/docs/api/channels/whatsapp/receive-whatsapp-messages>; the classes
//! `WhatsAppWebhook*` of infobip/infobip-api-java-client, `src/main/java/com/infobip/model/`.

use gateway_core::{
    event::{Contact, Message, MessageContext},
    phone::normalize_phone,
};
use serde_json::value::RawValue;

use super::content;
use crate::provider::{
    MessageItem,
    contact::of_field,
    json::{Fields, kept},
    message::{self, correlation, identity, set_unsupported},
};

/// The message of an element.
pub fn read(raw: &RawValue, fields: &Fields<'_>) -> MessageItem {
    let external_message_id = fields.name("messageId");
    let identity = identity(external_message_id.as_deref(), raw);
    let object = fields.object("message");
    let context = object.as_ref().and_then(|object| object.object("context"));
    let mut message = Message {
        external_message_id,
        context: context.as_ref().and_then(message_context),
        group_id: context.as_ref().and_then(|context| context.name("groupId")),
        referral: object.as_ref().and_then(|object| object.get("referral")).map(kept),
        identity: fields.get("identity").map(kept),
        correlation: correlation(fields, "callbackData"),
        ..Message::default()
    };
    let literal = object.as_ref().and_then(|object| object.name("type"));
    let known = literal.as_deref().zip(fields.get("message").zip(object.as_ref()));
    let keyword = fields.name("keyword");
    match known.and_then(|(kind, (raw, object))| content::read(kind, raw, object, keyword, &mut message)) {
        Some(message_type) => message.message_type = message_type.into(),
        None => set_unsupported(&mut message, literal, raw),
    }
    let name = fields.object("contact").and_then(|contact| contact.name("name"));
    MessageItem {
        contact: Contact { name, ..of_field(fields.name("from")) },
        message,
        identity,
        is_echo: false,
        business_phone: fields.text("to").as_deref().and_then(normalize_phone),
        time: fields.time("receivedAt"),
    }
}

/// What a message answers or forwards; None when nothing is said.
fn message_context(object: &Fields<'_>) -> Option<MessageContext> {
    message::context(MessageContext {
        id: object.name("id"),
        from: object.name("from"),
        forwarded: object.truth("forwarded"),
        frequently_forwarded: object.truth("frequentlyForwarded"),
        referred_product: object.get("referredProduct").map(kept),
    })
}
