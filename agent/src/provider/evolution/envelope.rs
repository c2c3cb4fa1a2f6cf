//! The envelope: `event`, `instance`, `data`, `sender`, and what is not passed on: `apikey`, `destination`,
//! `server_url`. `date_time` is the server's local time under a false `Z`; it only tells one event from another.

use std::borrow::Cow;

use gateway_core::phone::Phone;
use serde_json::value::RawValue;

use super::{change, cut::cut, message, status};
use crate::provider::{
    ITEMS_MAX, Item, NormalizeError, Part, Target,
    body::{self, UNKNOWN},
    jid::Jid,
    json::{Fields, elements},
    login::{is_login, only},
};

/// So much of `instance` and `date_time` tells one event from another, in bytes: each element of `data` repeats it.
const STAMP_BYTES_MAX: usize = 256;

/// What an element of `data` is.
pub enum Read {
    /// This.
    Item(Item),
    /// Something that is not passed on.
    Nothing,
    /// Something else, which is passed on raw.
    Unknown,
}

/// One callback.
pub struct Callback<'a> {
    fields: Fields<'a>,
    /// `event` as it is written.
    name: Cow<'a, str>,
    /// `instance` and `date_time` as they are written.
    stamp: [&'a str; 2],
    /// `event` in lower case, with dots: `messages.upsert`.
    pub event: String,
    /// The number of the instance.
    pub phone: Option<Phone>,
}

/// What a body says.
pub fn parts(body: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    body::each(body::text(body)?, |fields| Callback::of(fields).part())
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(STAMP_BYTES_MAX)]
}

impl<'a> Callback<'a> {
    fn of(fields: Fields<'a>) -> Self {
        let name = fields.text("event").filter(|event| !event.is_empty());
        let name = name.unwrap_or(Cow::Borrowed(UNKNOWN));
        let written = |name| fields.get(name).map_or("", RawValue::get);
        Self {
            stamp: ["instance", "date_time"].map(|name| beginning(written(name))),
            event: name.to_lowercase().replace(['_', '-'], "."),
            phone: fields.text("sender").and_then(Jid::of).and_then(|sender| sender.phone()),
            name,
            fields,
        }
    }

    /// The event; None when it is one that is not passed on.
    fn part(&self) -> Result<Option<Part<'a>>, NormalizeError> {
        let data = self.fields.get("data").unwrap_or(RawValue::NULL);
        let (items, kept_data) = match &*self.event {
            // The past, and what gives access to the instance.
            "messages.set" | "messaging.history.set" | "instance.create" => return Ok(None),
            _ if is_login(&self.name) => return Ok(None),
            // A QR code of the next login can be in it.
            "connection.update" => {
                let state = ["instance", "state", "status", "statusReason"];
                let state = Fields::of(data).map(|data| only(&data, &state));
                let state = Cow::Owned(state.unwrap_or_else(|| "null".to_owned()));
                (vec![self.notice(&state)], state)
            }
            "messages.upsert"
            | "messages.edited"
            | "messages.delete"
            | "messages.update"
            | "send.message"
            | "send.message.update" => (self.items(data)?, cut(data)),
            _ => {
                let data = cut(data);
                (vec![self.notice(&data)], data)
            }
        };
        if items.is_empty() {
            return Ok(None);
        }
        let target = Target {
            number: self.fields.name("instance"),
            display_phone: self.phone.as_ref().map(|phone| phone.as_str().into()),
            ..Target::default()
        };
        Ok(Some(Part { target, items, original: self.original(kept_data) }))
    }

    /// What `data` says: one thing, or a list.
    fn items(&self, data: &RawValue) -> Result<Vec<Item>, NormalizeError> {
        let elements = elements(data).unwrap_or_else(|| vec![data]);
        if elements.len() > ITEMS_MAX {
            return Err(NormalizeError::TooManyItems);
        }
        let read = |raw| match Fields::of(raw) {
            None => Read::Unknown,
            Some(fields) => match &*self.event {
                "messages.upsert" => message::upserted(self, raw, &fields),
                "send.message" => message::sent(self, raw, &fields),
                "send.message.update" => message::sent_again(self, &fields),
                "messages.edited" => change::edited(self, &fields, None),
                "messages.delete" => change::deleted(self, &fields),
                _ => status::updated(self, raw, &fields),
            },
        };
        let items = elements.into_iter().filter_map(|raw| match read(raw) {
            Read::Item(item) => Some(item),
            Read::Nothing => None,
            Read::Unknown => Some(self.notice(&cut(raw))),
        });
        Ok(items.collect())
    }

    fn notice(&self, data: &str) -> Item {
        let [instance, date_time] = self.stamp;
        let raw: &RawValue = serde_json::from_str(data).unwrap_or(RawValue::NULL);
        body::notice(&self.name, raw, &[&self.event, instance, date_time, data], None)
    }

    /// The pieces of a body with all of it that is read.
    fn original(&self, data: Cow<'a, str>) -> Vec<Cow<'a, str>> {
        let mut pieces = Vec::with_capacity(11);
        pieces.extend([Cow::Borrowed(r#"{"data":"#), data]);
        for (name, key) in [
            ("event", r#","event":"#),
            ("instance", r#","instance":"#),
            ("date_time", r#","date_time":"#),
            ("sender", r#","sender":"#),
        ] {
            if let Some(raw) = self.fields.get(name) {
                pieces.extend([key, raw.get()].map(Cow::Borrowed));
            }
        }
        pieces.push(Cow::Borrowed("}"));
        pieces
    }
}
