//! `message.content`, an object with one key for what the type says
//! (messagebird/go-rest-api, `conversation/message.go` and `conversation/whatsapp.go`).

use gateway_core::event::{Location, Media, Message, MessageContext, Reply};

use crate::provider::{
    json::{Fields, kept},
    message,
};

/// Reads the content of a message of this type into `message` and gives our word for the type. None when the type is
/// not known or the content is not what the type says.
pub fn read(kind: &str, content: &Fields<'_>, message: &mut Message) -> Option<&'static str> {
    let message_type = match kind {
        "text" => {
            message.text = Some(content.text(kind)?.into());
            "text"
        }
        "image" => media(&content.object(kind)?, "url", message, "image")?,
        "video" => media(&content.object(kind)?, "url", message, "video")?,
        "audio" => media(&content.object(kind)?, "url", message, "audio")?,
        "file" => media(&content.object(kind)?, "url", message, "document")?,
        "whatsappSticker" => media(&content.object(kind)?, "link", message, "sticker")?,
        "location" => {
            let location = content.object(kind)?;
            let place = Location {
                latitude: location.number("latitude"),
                longitude: location.number("longitude"),
                ..Location::default()
            };
            message::set_location(message, place)?;
            "location"
        }
        "interactive" => interactive(&content.object(kind)?, message)?,
        "button" => button(&content.object(kind)?, message)?,
        "whatsappOrder" => {
            message.text = content.object(kind)?.name("text");
            message.order = content.get(kind).map(kept);
            "order"
        }
        // Plain text, where it answers a message.
        "whatsappText" => {
            let text = content.object(kind)?;
            message.text = Some(text.object("text")?.text("body")?.into());
            message.context = text.object("context").and_then(|fields| context(&fields));
            "text"
        }
        _ => return None,
    };
    Some(message_type)
}

fn media(
    object: &Fields<'_>,
    url: &str,
    message: &mut Message,
    message_type: &'static str,
) -> Option<&'static str> {
    message.text = object.name("caption");
    message.media = Some(Media { url: Some(object.name(url)?), ..Media::default() });
    Some(message_type)
}

/// The choice of a button or a list row.
fn interactive(object: &Fields<'_>, message: &mut Message) -> Option<&'static str> {
    let reply = object.object("reply")?;
    let (id, title) = (reply.name("id"), reply.name("text"));
    id.as_ref().or(title.as_ref())?;
    message.text.clone_from(&title);
    message.reply = Some(Reply {
        reply_type: object.name("type"),
        id,
        title,
        description: reply.name("description"),
        response: None,
    });
    Some("interactive")
}

/// The quick reply of a template, which is not in the public libraries: read as Meta writes it.
fn button(object: &Fields<'_>, message: &mut Message) -> Option<&'static str> {
    let (id, title) = (object.name("payload"), object.name("text"));
    id.as_ref().or(title.as_ref())?;
    message.text.clone_from(&title);
    message.reply = Some(Reply { reply_type: Some("button".into()), id, title, ..Reply::default() });
    Some("button")
}

fn context(fields: &Fields<'_>) -> Option<MessageContext> {
    message::context(MessageContext {
        id: fields.name("id"),
        from: fields.name("from"),
        referred_product: fields.get("referred_product").map(kept),
        ..MessageContext::default()
    })
}
