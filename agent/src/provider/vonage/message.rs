//! A message of a contact,
//! <https://developer.vonage.com/en/api/messages#inbound-message>.

use gateway_core::{
    event::{Message, MessageContext, ProviderError},
    phone::normalize_phone,
};

use super::{contact::contact, content, envelope::Callback};
use crate::provider::{
    MessageItem,
    json::{Fields, kept},
    message::{self, UNSUPPORTED, correlation, identity, set_unsupported},
};

/// The message of a callback with this `message_type`.
pub fn read(callback: &Callback<'_>, kind: &str) -> MessageItem {
    let fields = &callback.fields;
    let external_message_id = fields.name("message_uuid");
    let identity = identity(external_message_id.as_deref(), callback.raw);
    let mut message = Message {
        external_message_id,
        context: context(callback),
        referral: callback.of_whatsapp("referral").map(kept),
        correlation: correlation(fields, "client_ref"),
        ..Message::default()
    };
    match content::read(kind, fields, &mut message) {
        Some(message_type) => message.message_type = message_type.into(),
        None => {
            set_unsupported(&mut message, Some(kind.into()), callback.raw);
            message.text = message.text.take().or_else(|| fields.name("text"));
            // What WhatsApp says of a message that Vonage cannot show.
            message.error = fields
                .name("provider_message")
                .filter(|_| kind == UNSUPPORTED)
                .map(|title| ProviderError { title: Some(title), ..ProviderError::default() });
        }
    }
    MessageItem {
        contact: contact(callback, fields.name("from"), "sender"),
        message,
        identity,
        is_echo: false,
        business_phone: fields.text("to").as_deref().and_then(normalize_phone),
        time: fields.time("timestamp"),
    }
}

/// The message answered, and the product asked about; None when nothing is said.
fn context(callback: &Callback<'_>) -> Option<MessageContext> {
    const PRODUCT: &str = "whatsapp_referred_product";
    let context = callback.fields.object("context");
    let of_context = |name| context.as_ref().and_then(|context: &Fields<'_>| context.get(name));
    let name = |name| context.as_ref().and_then(|context| context.name(name));
    message::context(MessageContext {
        id: name("message_uuid"),
        from: name("message_from"),
        referred_product: of_context(PRODUCT).or_else(|| callback.of_whatsapp(PRODUCT)).map(kept),
        ..MessageContext::default()
    })
}
