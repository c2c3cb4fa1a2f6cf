//! What changed between two states of a resource, found by reflection over its protobuf message.
//!
//! The unit is a leaf: a scalar, a time, a list, an entry of a map. Messages in a list are told apart by
//! their `id` if they have one, so that one more secret of ten is one change.

use std::{collections::BTreeMap, sync::LazyLock};

use gateway_core::time;
use gateway_proto::v1;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage as _,
    Value,
};
use serde_json::Value as Json;

use super::fields::{Visibility, visibility};

/// Most changes of an entry. With more, the last one tells how many are left out.
pub const CHANGES_MAX: usize = 32;
/// Longest value, and longest path, in bytes; longer ones are cut and end in [`ELLIPSIS`].
pub const TEXT_BYTES_MAX: usize = 256;
/// Stands for what was cut off a value, and for changes that were left out.
pub const ELLIPSIS: &str = "…";
/// Stands for secrets and personal data.
pub const HIDDEN: &str = "(hidden)";

/// Fields of a resource that every change changes, or that the entry itself names.
const UNTOLD: [&str; 5] = ["id", "tenant_id", "etag", "create_time", "update_time"];

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(gateway_proto::DESCRIPTORS).expect("the proto compiler made the descriptors")
});

/// The contract's descriptors.
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// The changed leaves between two encoded messages of one type, in the order of their numbers. None is a
/// resource that does not exist. `message` is named without its package; the fields of `flat_field` count
/// as the message's own.
pub(super) fn changes(
    message: &str,
    flat_field: Option<&str>,
    before: Option<&[u8]>,
    after: Option<&[u8]>,
) -> Vec<v1::AuditChange> {
    let name = format!("whatsapp_gateway.v1.{message}");
    let descriptor = POOL.get_message_by_name(&name).expect("a test looks every resource up");
    let decode = |bytes: &[u8]| {
        DynamicMessage::decode(descriptor.clone(), bytes).expect("the bytes were encoded from this message")
    };
    let (before, after) = (before.map(decode), after.map(decode));
    let mut diff = Diff::default();
    diff.resource(&descriptor, flat_field, before.as_ref(), after.as_ref());
    diff.finish()
}

#[derive(Default)]
struct Diff {
    changes: Vec<v1::AuditChange>,
    left_out: usize,
}

impl Diff {
    fn resource(
        &mut self,
        descriptor: &MessageDescriptor,
        flat_field: Option<&str>,
        before: Option<&DynamicMessage>,
        after: Option<&DynamicMessage>,
    ) {
        for field in descriptor.fields().filter(|field| !UNTOLD.contains(&field.name())) {
            if Some(field.name()) == flat_field {
                let Kind::Message(inner) = field.kind() else { continue };
                let (before, after) =
                    (before.and_then(|it| value(it, &field)), after.and_then(|it| value(it, &field)));
                self.resource(&inner, None, message(before.as_ref()), message(after.as_ref()));
            } else {
                self.field(field.name().to_owned(), &field, before, after);
            }
        }
    }

    fn message(
        &mut self,
        prefix: &str,
        descriptor: &MessageDescriptor,
        before: Option<&DynamicMessage>,
        after: Option<&DynamicMessage>,
    ) {
        for field in descriptor.fields() {
            self.field(format!("{prefix}.{}", field.name()), &field, before, after);
        }
    }

    fn field(
        &mut self,
        path: String,
        field: &FieldDescriptor,
        before: Option<&DynamicMessage>,
        after: Option<&DynamicMessage>,
    ) {
        let is_set =
            |message: Option<&DynamicMessage>| message.is_some_and(|message| message.has_field(field));
        let is_told = is_set(before) || is_set(after);
        let before = before.and_then(|before| value(before, field));
        let after = after.and_then(|after| value(after, field));
        if before == after || !is_told {
            return;
        }
        if let Some(keyed) = keyed(field) {
            let (mut before, mut after) = (keyed(before), keyed(after));
            let mut keys: Vec<_> = before.keys().chain(after.keys()).cloned().collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let (before, after) = (before.remove(&key), after.remove(&key));
                self.leaf(format!("{path}[{key}]"), field, before.as_ref(), after.as_ref());
            }
            return;
        }
        match field.kind() {
            Kind::Message(inner) if !field.is_list() && !is_scalar(&inner) => {
                let known = self.changes.len() + self.left_out;
                self.message(&path, &inner, message(before.as_ref()), message(after.as_ref()));
                if known == self.changes.len() + self.left_out {
                    // An empty message came or went.
                    self.leaf(path, field, before.as_ref(), after.as_ref());
                }
            }
            _ => self.leaf(path, field, before.as_ref(), after.as_ref()),
        }
    }

    fn leaf(&mut self, path: String, field: &FieldDescriptor, before: Option<&Value>, after: Option<&Value>) {
        if before == after {
            return;
        }
        if self.changes.len() == CHANGES_MAX {
            self.left_out += 1;
            return;
        }
        let shown = |value: Option<&Value>| {
            value.map_or_else(String::new, |value| cut(json(field, value).to_string()))
        };
        self.changes.push(v1::AuditChange { field: cut(path), before: shown(before), after: shown(after) });
    }

    fn finish(mut self) -> Vec<v1::AuditChange> {
        if self.left_out > 0
            && let Some(last) = self.changes.last_mut()
        {
            let after = format!("\"{} more\"", self.left_out + 1);
            *last = v1::AuditChange { field: ELLIPSIS.to_owned(), before: String::new(), after };
        }
        self.changes
    }
}

/// The field's value. None when it is a message that is not set.
fn value(message: &DynamicMessage, field: &FieldDescriptor) -> Option<Value> {
    let is_there = message.has_field(field) || !field.supports_presence();
    is_there.then(|| message.get_field(field).into_owned())
}

fn message(value: Option<&Value>) -> Option<&DynamicMessage> {
    value.and_then(Value::as_message)
}

type ReadEntries = fn(Option<Value>) -> BTreeMap<String, Value>;

/// How to read the entries of a map, or of a list whose messages have ids. None for other fields.
fn keyed(field: &FieldDescriptor) -> Option<ReadEntries> {
    let has_id = |kind: &Kind| {
        let id = kind.as_message().and_then(|message| message.get_field_by_name("id"));
        id.is_some_and(|id| id.kind() == Kind::String && !id.is_list())
    };
    if field.is_map() {
        Some(|value| match value {
            Some(Value::Map(entries)) => {
                entries.into_iter().map(|(key, value)| (key_text(&key), value)).collect()
            }
            _ => BTreeMap::new(),
        })
    } else if field.is_list() && has_id(&field.kind()) {
        Some(|value| {
            let Some(Value::List(list)) = value else { return BTreeMap::new() };
            list.into_iter().map(|value| (id_of(&value), value)).collect()
        })
    } else {
        None
    }
}

fn id_of(value: &Value) -> String {
    let id = message(Some(value)).and_then(|message| message.get_field_by_name("id"));
    id.and_then(|id| id.as_str().map(str::to_owned)).unwrap_or_default()
}

fn key_text(key: &MapKey) -> String {
    match key {
        MapKey::Bool(key) => key.to_string(),
        MapKey::I32(key) => key.to_string(),
        MapKey::I64(key) => key.to_string(),
        MapKey::U32(key) => key.to_string(),
        MapKey::U64(key) => key.to_string(),
        MapKey::String(key) => key.clone(),
    }
}

/// A message that is one value.
fn is_scalar(message: &MessageDescriptor) -> bool {
    matches!(message.full_name(), "google.protobuf.Timestamp" | "google.protobuf.Duration")
}

/// A value as JSON; texts as [`visibility`] of the field allows.
fn json(field: &FieldDescriptor, value: &Value) -> Json {
    match value {
        Value::Bool(value) => Json::from(*value),
        Value::I32(value) => Json::from(*value),
        Value::I64(value) => Json::from(*value),
        Value::U32(value) => Json::from(*value),
        Value::U64(value) => Json::from(*value),
        Value::F32(value) => Json::from(*value),
        Value::F64(value) => Json::from(*value),
        Value::String(text) => Json::from(text_of(field, text)),
        Value::Bytes(bytes) => Json::from(if bytes.is_empty() { "" } else { HIDDEN }),
        Value::EnumNumber(number) => {
            let kind = field.kind();
            let named = kind.as_enum().and_then(|of| of.get_value(*number));
            named.map_or_else(|| Json::from(*number), |named| Json::from(named.name()))
        }
        Value::Message(message) => json_of_message(message),
        Value::List(list) => list.iter().map(|value| json(field, value)).collect(),
        Value::Map(entries) => {
            entries.iter().map(|(key, value)| (key_text(key), json(field, value))).collect()
        }
    }
}

fn json_of_message(message: &DynamicMessage) -> Json {
    let number = |name: &str| message.get_field_by_name(name).and_then(|number| number.as_i64());
    let nanos = || message.get_field_by_name("nanos").and_then(|nanos| nanos.as_i32()).unwrap_or_default();
    match message.descriptor().full_name() {
        "google.protobuf.Timestamp" => {
            let time =
                prost_types::Timestamp { seconds: number("seconds").unwrap_or_default(), nanos: nanos() };
            time::from_proto(&time).map_or(Json::Null, |time| Json::from(time.to_string()))
        }
        "google.protobuf.Duration" => {
            let seconds = number("seconds").unwrap_or_default();
            let fraction = format!("{:09}", nanos().unsigned_abs());
            let sign = if seconds < 0 || nanos() < 0 { "-" } else { "" };
            let fraction = fraction.trim_end_matches('0');
            let point = if fraction.is_empty() { "" } else { "." };
            Json::from(format!("{sign}{}{point}{fraction}s", seconds.unsigned_abs()))
        }
        _ => message.fields().map(|(field, value)| (field.name().to_owned(), json(&field, value))).collect(),
    }
}

/// What may be shown of a text. That there is none may always be.
fn text_of(field: &FieldDescriptor, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    match visibility(field.full_name()) {
        Visibility::Shown => text.to_owned(),
        Visibility::UrlOnly => without_credentials(text),
        Visibility::Hidden => HIDDEN.to_owned(),
    }
}

/// A URL without user, query and fragment.
fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return HIDDEN.to_owned() };
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (shown, more) = rest.split_at(end);
    let authority_end = shown.find(['/', '\\']).unwrap_or(shown.len());
    let host = shown[..authority_end].rfind('@').map_or(0, |at| at + 1);
    let more = if more.is_empty() { String::new() } else { format!("?{HIDDEN}") };
    format!("{scheme}://{}{more}", &shown[host..])
}

/// Cuts a text to [`TEXT_BYTES_MAX`].
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX - ELLIPSIS.len()));
        text.push_str(ELLIPSIS);
    }
    text
}
