//! What is in a message. Each kind of content has parameters of its own, and empty ones of other kinds may come
//! with them.

use gateway_core::event::{Location, Media, MessageContext, Reply};

use super::parameters::Parameters;
use crate::provider::message::{self, response};

/// The text: of a button its label, of a list or a place what stands for it where the body is empty.
pub fn text(parameters: &Parameters<'_>) -> Option<Box<str>> {
    ["ButtonText", "Body", "ListTitle", "Label", "Address"].into_iter().find_map(|name| parameters.name(name))
}

/// The first file. Its content type has parameters, and decides what kind of message it is.
pub fn media(parameters: &Parameters<'_>) -> Option<Media> {
    let url = parameters.name("MediaUrl0");
    let mime_type = parameters.name("MediaContentType0");
    // `…/Media/ME…`, <https://www.twilio.com/docs/messaging/api/media-resource>.
    let id = url.as_deref().and_then(|url| url.rsplit_once("/Media/")).map(|(_, id)| id);
    let id = id.filter(|id| id.starts_with("ME") && !id.contains(['/', '?', '.'])).map(Box::from);
    (url.is_some() || mime_type.is_some()).then(|| Media { id, url, mime_type, ..Media::default() })
}

/// Whether there are more files than the first, or files that are announced and not there.
pub fn has_more_media(parameters: &Parameters<'_>, media: Option<&Media>) -> bool {
    let count: usize = parameters.get("NumMedia").and_then(|count| count.trim().parse().ok()).unwrap_or(0);
    count > usize::from(media.is_some()) || parameters.get("MediaUrl1").is_some()
}

/// What kind of message a file makes: a contact card comes as one, and so does everything that is recorded.
pub fn media_kind(media: &Media) -> &'static str {
    let mime_type = media.mime_type.as_deref().unwrap_or_default();
    let mime_type = mime_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match mime_type.split_once('/') {
        Some(("image", _)) => "image",
        Some(("video", _)) => "video",
        Some(("audio", _)) => "audio",
        Some(("text", "vcard" | "x-vcard")) => "contacts",
        _ => "document",
    }
}

/// A place.
pub fn location(parameters: &Parameters<'_>) -> Option<Location> {
    let (latitude, longitude) = (parameters.number("Latitude"), parameters.number("Longitude"));
    (latitude.is_some() || longitude.is_some()).then(|| Location {
        latitude,
        longitude,
        name: parameters.name("Label"),
        address: parameters.name("Address"),
        url: None,
    })
}

/// The choice of a button or a list, or the answers of a flow. `kind` is Twilio's own word for the message, which
/// tells a template's button from another's.
pub fn reply(parameters: &Parameters<'_>, kind: Option<&str>) -> Option<Reply> {
    let reply = |word: &str, id: &str, title: &str| Reply {
        reply_type: Some(word.into()),
        id: parameters.name(id),
        title: parameters.name(title),
        ..Reply::default()
    };
    let word = if kind == Some("interactive") { "button_reply" } else { "button" };
    let button = reply(word, "ButtonPayload", "ButtonText");
    let list = reply("list_reply", "ListId", "ListTitle");
    if button.id.is_some() || button.title.is_some() {
        Some(button)
    } else if list.id.is_some() || list.title.is_some() {
        Some(Reply { description: parameters.name("ListDescription"), ..list })
    } else {
        let flow = parameters.get("FlowData").or_else(|| parameters.get("InteractiveData"))?;
        Some(Reply { reply_type: Some("nfm_reply".into()), response: response(flow), ..Reply::default() })
    }
}

/// What a message answers or forwards. `false` says no more than nothing does.
pub fn context(parameters: &Parameters<'_>) -> Option<MessageContext> {
    let truth = |name| parameters.is(name, "true").then_some(true);
    message::context(MessageContext {
        id: parameters.name("OriginalRepliedMessageSid"),
        from: parameters.name("OriginalRepliedMessageSender"),
        forwarded: truth("Forwarded"),
        frequently_forwarded: truth("FrequentlyForwarded"),
        referred_product: None,
    })
}
