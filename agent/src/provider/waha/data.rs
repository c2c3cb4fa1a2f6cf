//! `_data`: what the engine below WAHA says, in a form of its own: `type`, `notifyName`, … (WEBJS), a message of
//! WhiskeySockets/Baileys (NOWEB), or of tulir/whatsmeow (GOWS). It fills in what WAHA leaves out, and nothing
//! depends on it.

use gateway_core::event::Reaction;

use crate::provider::{jid::Jid, json::Fields};

/// How often a message was forwarded when WhatsApp calls it forwarded many times.
const FORWARDED_MANY_TIMES: i64 = 5;

/// The engine's words.
pub struct Data<'a> {
    fields: Option<Fields<'a>>,
    /// `message` of NOWEB, `Message` of GOWS.
    message: Option<Fields<'a>>,
    /// `Info` of GOWS.
    info: Option<Fields<'a>>,
}

impl<'a> Data<'a> {
    /// Reads `_data`.
    pub fn of(fields: Option<Fields<'a>>) -> Self {
        let object = |name| fields.as_ref().and_then(|fields: &Fields<'a>| fields.object(name));
        Self { message: object("message").or_else(|| object("Message")), info: object("Info"), fields }
    }

    fn text(&self, name: &str) -> Option<Box<str>> {
        self.fields.as_ref()?.name(name)
    }

    /// The profile name of whoever wrote.
    pub fn contact_name(&self) -> Option<Box<str>> {
        let of_info = || self.info.as_ref()?.name("PushName");
        self.text("notifyName").or_else(|| self.text("pushName")).or_else(of_info)
    }

    /// Other addresses of whoever wrote: the number behind a hidden id, or the other way round.
    pub fn other_names(&self, in_group: bool) -> Vec<Jid<'a>> {
        let names: &[&str] =
            if in_group { &["participantAlt", "participantPn"] } else { &["remoteJidAlt", "senderPn"] };
        let key = self.fields.as_ref().and_then(|fields| fields.object("key"));
        let of_key = names.iter().filter_map(|name| Jid::of(key.as_ref()?.text(name)?));
        let of_info = self.info.as_ref().and_then(|info| Jid::of(info.text("SenderAlt")?));
        of_key.chain(of_info).collect()
    }

    /// The engine's word for the type.
    pub fn word(&self) -> Option<Box<str>> {
        let key = || self.message.as_ref()?.iter().map(|(name, _)| name).find(|name| says_type(name));
        self.text("type").or_else(|| key().map(|name| String::from_utf8_lossy(name).into()))
    }

    /// Whether the engine calls it a text, or nothing at all.
    pub fn is_text(&self) -> bool {
        self.word().is_none_or(|word| matches!(&*word, "chat" | "conversation" | "extendedTextMessage"))
    }

    /// The reaction that a message is: the id of the message that is reacted to, and the emoji. NOWEB used to
    /// pass reactions on as messages, without WAHA's own `reaction`.
    pub fn reaction(&self) -> Option<Reaction> {
        let reaction = self.message.as_ref()?.object("reactionMessage")?;
        let key = reaction.object("key");
        let message_id = key.and_then(|key| key.name("id").or_else(|| key.name("ID")));
        Some(Reaction { message_id, emoji: reaction.name("text") })
    }

    /// Our type of a file, where the engine tells.
    pub fn media_type(&self) -> Option<&'static str> {
        let is_recorded = || {
            let audio = self.message.as_ref()?.object("audioMessage")?;
            audio.truth("ptt").or_else(|| audio.truth("PTT"))
        };
        Some(match &*self.word()? {
            "image" | "imageMessage" => "image",
            "video" | "videoMessage" | "ptv" | "ptvMessage" => "video",
            "ptt" => "voice",
            "audioMessage" if is_recorded() == Some(true) => "voice",
            "audio" | "audioMessage" => "audio",
            "document" | "documentMessage" | "documentWithCaptionMessage" => "document",
            "sticker" | "stickerMessage" => "sticker",
            _ => return None,
        })
    }

    /// The MIME type of a file that was not downloaded.
    pub fn mime_type(&self) -> Option<Box<str>> {
        self.text("mimetype")
    }

    /// Whether it was forwarded, and whether many times.
    pub fn forwarded(&self) -> (Option<bool>, Option<bool>) {
        let read = |fields: &Fields<'_>| {
            let score = fields.integer("forwardingScore");
            (fields.truth("isForwarded"), score.map(|score| score >= FORWARDED_MANY_TIMES))
        };
        let of_context = || {
            let (_, content) = self.message.as_ref()?.iter().find(|(name, _)| says_type(name))?;
            Some(read(&Fields::of(content)?.object("contextInfo")?))
        };
        let of_data = self.fields.as_ref().map(read).unwrap_or_default();
        let (forwarded, many_times) =
            if of_data == (None, None) { of_context().unwrap_or_default() } else { of_data };
        (forwarded.filter(|said| *said), many_times.filter(|said| *said))
    }
}

/// Whether a key of a message is its type, not something beside it.
fn says_type(name: &[u8]) -> bool {
    !matches!(name, b"messageContextInfo" | b"senderKeyDistributionMessage")
}
