//! What a contact did with a message of the business,
//! <https://docs.bird.com/api/channels-api/supported-channels/programmable-whatsapp/message-interactions>.

use gateway_core::{
    event::{Contact, EventType, Status},
    opt_out::OptOutScope,
};
use jiff::Timestamp;

use super::{
    message::whatsapp_message_id,
    status::{people, recipients},
};
use crate::provider::{
    Item, PreferenceIdentity, PreferenceItem, StatusItem,
    json::{Fields, identity},
};

/// The interaction. None for all that is only passed on raw.
pub fn interaction(payload: &Fields<'_>) -> Option<Vec<Item>> {
    let message_id = payload.name("messageId")?;
    let time = payload.time("createdAt").or_else(|| payload.time("updatedAt"));
    let recipients = who(payload)?.into_iter();
    let items = match payload.text("type")?.to_lowercase().as_str() {
        "read" => {
            let whatsapp_message_id = whatsapp_message_id(payload);
            let read = |(recipient, contact): (Box<str>, Contact)| {
                let status = Status {
                    external_message_id: Some(message_id.clone()),
                    status: "read".into(),
                    recipient,
                    whatsapp_message_id: whatsapp_message_id.clone(),
                    ..Status::default()
                };
                let event_type = Some(EventType::MessageRead);
                Item::Status(Box::new(StatusItem {
                    contact,
                    status,
                    identity: message_id.clone(),
                    event_type,
                    time,
                }))
            };
            recipients.map(read).collect()
        }
        "unsubscribe-request" => {
            let id = payload.name("id");
            let known = recipients.map(|(_, contact)| contact).filter(|contact| !contact.key().is_empty());
            known.map(|contact| opt_out(contact, &message_id, id.as_deref(), time)).collect()
        }
        _ => return None,
    };
    Some(items)
}

/// Who did it: the receiver of the message, or else the sender of the interaction.
fn who(payload: &Fields<'_>) -> Option<Vec<(Box<str>, Contact)>> {
    let receivers = recipients(payload)?;
    let is_nobody = receivers.iter().all(|(_, contact)| contact.key().is_empty());
    if is_nobody { people(payload.object("sender").as_ref()) } else { Some(receivers) }
}

/// The contact asked to be left alone, not only by marketing.
fn opt_out(contact: Contact, message_id: &str, id: Option<&str>, time: Option<Timestamp>) -> Item {
    let identity = match (id, time) {
        (Some(id), _) => PreferenceIdentity::Own(identity(&[contact.key(), id])),
        (None, Some(time)) => {
            PreferenceIdentity::Own(identity(&[contact.key(), message_id, &time.to_string()]))
        }
        (None, None) => PreferenceIdentity::Unknown,
    };
    Item::Preference(Box::new(PreferenceItem {
        contact,
        opts_out: true,
        scope: OptOutScope::NonEssential,
        from_error: false,
        external_message_id: Some(message_id.into()),
        identity,
        time,
    }))
}
