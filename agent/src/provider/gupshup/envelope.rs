//! Both versions, told apart by their shape: `entry` is version 3, `type` and `payload` are version 2.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{message, preference, status};
use crate::provider::{
    Item, NormalizeError, Part, Target,
    body::{self, UNKNOWN},
    json::{self, Fields, Object, identity},
    meta::{
        envelope::{Entry, is_whatsapp, of_entries, of_odd_entries, short},
        relay::Relay,
    },
};

/// What the documented bodies of both versions have at the top.
#[derive(Default, Deserialize)]
struct Root<'a> {
    #[serde(borrow)]
    object: Option<&'a RawValue>,
    #[serde(borrow)]
    entry: Option<Vec<Object<Entry<'a>>>>,
    #[serde(borrow)]
    gs_app_id: Option<&'a RawValue>,
    /// The app's name.
    #[serde(borrow)]
    app: Option<&'a RawValue>,
    /// The app's id; in few kinds only.
    #[serde(borrow, rename = "appId")]
    app_id: Option<&'a RawValue>,
    /// The app's phone number; not in all kinds.
    #[serde(borrow)]
    phone: Option<&'a RawValue>,
    /// The same in version 1.
    #[serde(borrow, rename = "waNumber")]
    wa_number: Option<&'a RawValue>,
    /// Milliseconds.
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
}

/// What a body says, by change.
pub fn parts(body: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let text = body::text(body)?;
    match serde_json::from_str::<Object<Root<'_>>>(text) {
        Ok(Object(root)) if root.is_of_another_product() => Ok(Vec::new()),
        Ok(Object(Root { entry: Some(entries), gs_app_id, .. })) => {
            of_entries(entries, Relay::Gupshup { app_id: gs_app_id.and_then(short) })
        }
        Ok(Object(root)) => root.part(text),
        Err(_) => odd_shape(text),
    }
}

/// JSON of another shape: what has entries is version 3 all the same, what has fields is version 2.
fn odd_shape(text: &str) -> Result<Vec<Part<'_>>, NormalizeError> {
    let raw = body::json(text)?;
    let Some(fields) = Fields::of(raw) else { return Root::default().part(text) };
    let root = Root {
        object: fields.get("object"),
        entry: None,
        gs_app_id: fields.get("gs_app_id"),
        app: fields.get("app"),
        app_id: fields.get("appId"),
        phone: fields.get("phone"),
        wa_number: fields.get("waNumber"),
        timestamp: fields.get("timestamp"),
        kind: fields.get("type"),
        payload: fields.get("payload"),
    };
    match fields.array("entry") {
        _ if root.is_of_another_product() => Ok(Vec::new()),
        Some(entries) => of_odd_entries(entries, Relay::Gupshup { app_id: root.gs_app_id.and_then(short) }),
        None => root.part(text),
    }
}

impl Root<'_> {
    /// Whether the body is Meta's about something else than WhatsApp.
    fn is_of_another_product(&self) -> bool {
        self.object.and_then(is_whatsapp) == Some(false)
    }

    /// What a body of version 2 says: one thing about one app. What is not known is passed on raw.
    fn part<'a>(&self, text: &'a str) -> Result<Vec<Part<'a>>, NormalizeError> {
        let kind = self.kind.and_then(name).unwrap_or_else(|| UNKNOWN.into());
        let items = match self.items(&kind) {
            Some(items) => items,
            None => vec![self.notice(&kind, text)?],
        };
        let target = Target {
            number: self.app.and_then(name),
            other_number: self.app_id.or(self.gs_app_id).and_then(name),
            display_phone: self.phone.or(self.wa_number).and_then(name),
            ..Target::default()
        };
        Ok(vec![Part { target, items, original: vec![text.into()] }])
    }

    fn items(&self, kind: &str) -> Option<Vec<Item>> {
        let (raw, time) = (self.payload?, self.timestamp.and_then(json::time));
        let payload = Fields::of(raw)?;
        match kind {
            "message" => Some(vec![message::received(raw, &payload, time)]),
            "message-event" => status::of_event(raw, &payload, time),
            "user-event" => preference::preference(&payload, time).map(|item| vec![item]),
            _ => None,
        }
    }

    fn notice(&self, kind: &str, text: &str) -> Result<Item, NormalizeError> {
        let raw = body::json(text)?;
        Ok(body::notice(kind, raw, &[kind, raw.get()], self.timestamp.and_then(json::time)))
    }
}

/// What tells an item without an id from all others: it has no time of its own either, so that of its callback
/// has to say which of two equal ones it is.
pub fn identity_without_id(raw: &RawValue, time: Option<Timestamp>) -> Box<str> {
    identity(&[raw.get(), &time.map(|time| time.to_string()).unwrap_or_default()])
}

fn name(raw: &RawValue) -> Option<Box<str>> {
    json::text(raw).filter(|text| !text.is_empty()).map(Box::from)
}
