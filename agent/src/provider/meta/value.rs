//! What a change says, by its field, and the number or account it is about.

use gateway_core::phone::normalize_phone;
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{
    contact::Contacts,
    envelope::{Change, UNKNOWN_FIELD},
    message, preference, status,
};
use crate::provider::{
    Item, NormalizeError, NoticeItem, Target,
    json::{self, Fields, identity, kept},
};

/// The number or account of a change, and its items. Fails when there are more than `items_max`.
pub fn change_part(change: &Change<'_>, items_max: usize) -> Result<(Target, Vec<Item>), NormalizeError> {
    let field = change.field.and_then(json::text);
    let field = field.as_deref().filter(|field| !field.is_empty()).unwrap_or(UNKNOWN_FIELD);
    if field == "history" {
        // Messages of up to 180 days ago, sent when a business that also uses the phone app joins. They are
        // the past: neither events nor opt-outs.
        return Ok((Target::default(), Vec::new()));
    }
    let Some((raw, value)) = change.value.and_then(|raw| Fields::of(raw).map(|value| (raw, value))) else {
        let target = Target { account_id: change.account_id(), ..Target::default() };
        let raw = change.value.unwrap_or(RawValue::NULL);
        return Ok((target, vec![notice(change, field, raw, None)]));
    };
    let target = target(change, &value);
    let value = Value { contacts: Contacts::of(value.get("contacts")), fields: value, items_max };
    let mut items = match field {
        "messages" => value.messages(&target)?,
        "smb_message_echoes" => {
            value.each("message_echoes", |raw, alone| message::echo(raw, &value.contacts, alone))?
        }
        "user_preferences" => value.each("user_preferences", |raw, alone| {
            let known = preference::preference(raw, &value.contacts, alone);
            vec![known.unwrap_or_else(|| notice(change, field, raw, None))]
        })?,
        "calls" => value.each("statuses", |raw, alone| vec![status::of_call(raw, &value.contacts, alone)])?,
        _ => Vec::new(),
    };
    if items.is_empty() || value.says_more(field, &items) {
        items.push(notice(change, field, raw, value.time()));
    }
    Ok((target, items))
}

struct Value<'a> {
    fields: Fields<'a>,
    contacts: Contacts,
    items_max: usize,
}

impl<'a> Value<'a> {
    fn each(
        &self,
        name: &str,
        item: impl Fn(&'a RawValue, bool) -> Vec<Item>,
    ) -> Result<Vec<Item>, NormalizeError> {
        let elements = self.fields.array(name).unwrap_or_default();
        if elements.len() > self.items_max {
            return Err(NormalizeError::TooManyItems);
        }
        let alone = elements.len() == 1;
        Ok(elements.into_iter().flat_map(|raw| item(raw, alone)).collect())
    }

    fn messages(&self, target: &Target) -> Result<Vec<Item>, NormalizeError> {
        let business_phone = target.display_phone.as_deref().and_then(normalize_phone);
        let error = self.fields.get("errors").and_then(status::first_error);
        let mut items = self.each("messages", |raw, alone| {
            message::received(raw, &self.contacts, alone, business_phone.as_ref(), error.as_ref())
        })?;
        items.extend(self.each("statuses", |raw, alone| status::of_message(raw, &self.contacts, alone))?);
        Ok(items)
    }

    /// Whether the value says more than the items, so that it is passed on raw beside them: calls beside call
    /// statuses, lists that are none, and errors of the account that explain no message.
    fn says_more(&self, field: &str, items: &[Item]) -> bool {
        let has = |name| self.fields.get(name).is_some_and(|raw| raw.get() != "[]");
        let is_unsupported = |item: &Item| matches!(item, Item::Message(item) if item.message.raw.is_some());
        match field {
            "messages" => {
                let odd_list = ["messages", "statuses"]
                    .iter()
                    .any(|name| has(name) && self.fields.array(name).is_none());
                odd_list || (has("errors") && !items.iter().any(is_unsupported))
            }
            "calls" => has("calls") || has("errors"),
            _ => false,
        }
    }

    /// The time of the first call, group change, ….
    fn time(&self) -> Option<Timestamp> {
        let first = |name| Fields::of(self.fields.array(name)?.first()?)?.time("timestamp");
        ["calls", "groups", "user_preferences"]
            .into_iter()
            .find_map(first)
            .or_else(|| self.fields.time("timestamp"))
    }
}

fn target(change: &Change<'_>, value: &Fields<'_>) -> Target {
    let metadata = value.object("metadata");
    let of_metadata = |name| metadata.as_ref().and_then(|metadata| metadata.name(name));
    // For partner events `entry.id` is the partner's account; the customer's is in `waba_info`.
    let customer = value.object("waba_info").and_then(|info| info.name("waba_id"));
    Target {
        number: of_metadata("phone_number_id"),
        display_phone: of_metadata("display_phone_number").or_else(|| value.name("display_phone_number")),
        account_id: customer.or_else(|| change.account_id()),
    }
}

fn notice(change: &Change<'_>, field: &str, raw: &RawValue, value_time: Option<Timestamp>) -> Item {
    let text = |raw: Option<&'_ RawValue>| raw.map(|raw| raw.get().to_owned()).unwrap_or_default();
    Item::Notice(Box::new(NoticeItem {
        field: field.into(),
        raw: kept(raw),
        identity: identity(&[&text(change.account), field, &text(change.entry_time), raw.get()]),
        time: change.entry_time.and_then(json::time).or(value_time),
    }))
}
