//! What a change says, by its field, and the number or account it is about.

use gateway_core::phone::{Phone, normalize_phone};
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::{contact::Contacts, envelope::Change, error::Errors, message, preference, status};
use crate::provider::{
    Item, NormalizeError, Target,
    body::{self, UNKNOWN},
    json::{self, Fields, elements},
    message::UNSUPPORTED,
};

/// What is sent of a business that also uses the phone app, and is no event: `history`, its messages of up to 180
/// days ago, sent when it joins, and `smb_app_state_sync`, the address book of its phone. The one is the past, the
/// other tells of people who never wrote.
const NEVER_TOLD: [&str; 2] = ["history", "smb_app_state_sync"];
/// What the business wrote in its phone app.
const ECHOES: &str = "smb_message_echoes";
/// Fields whose values hold lists that we know. Each of the lists is read in each of them, because Meta adds
/// lists to values.
const FIELDS_WITH_LISTS: [&str; 4] = ["messages", ECHOES, "user_preferences", "calls"];
/// The lists.
const LISTS: [&str; 4] = ["messages", "message_echoes", "statuses", "user_preferences"];
/// What stands beside lists and says nothing by itself.
const ABOUT_LISTS: [&str; 3] = ["messaging_product", "metadata", "contacts"];

/// Longest error that is repeated with each of several messages, in bytes.
const ERROR_BYTES_MAX: usize = 2048;

/// Whether an object has one of the lists.
pub fn has_list(object: &Fields<'_>) -> bool {
    LISTS.iter().any(|list| object.get(list).is_some())
}

/// The number or account of a change, and its items. Fails when there are more than `items_max`.
pub fn change_part(change: &Change<'_>, items_max: usize) -> Result<(Target, Vec<Item>), NormalizeError> {
    let field = change.field.and_then(json::text);
    let field = field.as_deref().filter(|field| !field.is_empty()).unwrap_or(UNKNOWN);
    if NEVER_TOLD.contains(&field) {
        return Ok((Target::default(), Vec::new()));
    }
    let Some((raw, value)) = change.value.and_then(|raw| Fields::of(raw).map(|value| (raw, value))) else {
        let (account_id, other_number) = (change.account_id(), change.relay.app_id());
        let target = Target { account_id, other_number, ..Target::default() };
        let raw = change.whole.or(change.value).unwrap_or(RawValue::NULL);
        return Ok((target, vec![notice(change, field, raw, None)]));
    };
    let target = target(change, &value);
    let value = Value { contacts: Contacts::of(value.get("contacts")), fields: value };
    let mut items = Vec::new();
    let mut says_more = true;
    if FIELDS_WITH_LISTS.contains(&field) {
        items = value.items(change, field, &target, items_max)?;
        let errors_are_told = value.explain(&mut items);
        says_more = items.is_empty() || change.whole.is_some() || value.says_more(errors_are_told);
    }
    if says_more {
        items.push(notice(change, field, change.whole.unwrap_or(raw), value.time()));
    }
    Ok((target, items))
}

/// Some name the business in the context of a message by the id of its number: digits, but no phone number.
fn name_business(item: &mut Item, target: &Target, business_phone: Option<&Phone>) {
    let Item::Message(item) = item else { return };
    let context = item.message.context.as_mut();
    let Some(from) = context.and_then(|context| context.from.as_mut()) else { return };
    let (Some(id), Some(number)) = (from.strip_prefix('+'), target.number.as_deref()) else { return };
    if id == number {
        *from = business_phone.map_or(id, Phone::as_str).into();
    }
}

struct Value<'a> {
    fields: Fields<'a>,
    contacts: Contacts,
}

impl Value<'_> {
    /// What the lists say, list by list.
    fn items(
        &self,
        change: &Change<'_>,
        field: &str,
        target: &Target,
        items_max: usize,
    ) -> Result<Vec<Item>, NormalizeError> {
        let lists = LISTS.map(|name| self.fields.array(name).unwrap_or_default());
        let count = lists.iter().map(Vec::len).sum();
        if count > items_max {
            return Err(NormalizeError::TooManyItems);
        }
        let [messages, echoes, statuses, preferences] = lists;
        let (contacts, alone, relay) = (self.contacts.for_items(count), count == 1, change.relay);
        let business_phone = target.display_phone.as_deref().and_then(normalize_phone);
        let mut items = Vec::with_capacity(count);
        for raw in messages {
            items.extend(if field == ECHOES && is_from(raw, business_phone.as_ref()) {
                message::echo(raw, contacts, alone, relay)
            } else {
                message::received(raw, contacts, alone, business_phone.as_ref(), relay)
            });
        }
        for raw in echoes {
            items.extend(message::echo(raw, contacts, alone, relay));
        }
        for raw in statuses {
            if field == "calls" {
                items.push(status::of_call(raw, contacts, alone, relay));
            } else if let Some(test) = relay.test(raw) {
                items.push(notice(change, test, raw, None));
            } else {
                items.extend(status::of_message(raw, contacts, alone, relay));
            }
        }
        for raw in preferences {
            let known = preference::preference(raw, contacts, alone);
            items.push(known.unwrap_or_else(|| notice(change, field, raw, None)));
        }
        items.iter_mut().for_each(|item| name_business(item, target, business_phone.as_ref()));
        Ok(items)
    }

    /// The errors of the value explain messages that are unsupported and have none of their own. Says whether
    /// the messages now say all that the errors do.
    fn explain(&self, items: &mut [Item]) -> bool {
        let errors = Errors::of(self.fields.get("errors"));
        let mut is_told = errors.first.is_none();
        if items.len() > 1 && errors.bytes() > ERROR_BYTES_MAX {
            return is_told;
        }
        for item in items {
            if let Item::Message(item) = item
                && &*item.message.message_type == UNSUPPORTED
                && item.message.error.is_none()
            {
                item.message.error.clone_from(&errors.first);
                is_told = true;
            }
        }
        is_told && !errors.say_more
    }

    /// Whether the value says more than its lists, so that it is passed on raw beside their items: a list that
    /// is none, errors that explain no message, a key that nobody reads.
    fn says_more(&self, errors_are_told: bool) -> bool {
        self.fields.iter().any(|(name, raw)| {
            let is_empty =
                || raw.get() == "null" || elements(raw).is_some_and(|elements| elements.is_empty());
            let is_read = match std::str::from_utf8(name) {
                Ok("errors") => errors_are_told,
                Ok(name) if LISTS.contains(&name) => raw.get().starts_with('['),
                Ok(name) => ABOUT_LISTS.contains(&name),
                Err(_) => false,
            };
            !is_read && !is_empty()
        })
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

/// Whether a message is the business's own.
fn is_from(raw: &RawValue, business_phone: Option<&Phone>) -> bool {
    let from = Fields::of(raw).and_then(|fields| normalize_phone(&fields.text("from")?));
    from.is_some() && from.as_ref() == business_phone
}

fn target(change: &Change<'_>, value: &Fields<'_>) -> Target {
    let metadata = value.object("metadata");
    let of_metadata = |name| metadata.as_ref().and_then(|metadata| metadata.name(name));
    // For partner events `entry.id` is the partner's account; the customer's is in `waba_info`.
    let customer = value.object("waba_info").and_then(|info| info.name("waba_id"));
    let number = of_metadata("phone_number_id");
    Target {
        other_number: change.relay.other_number(number.as_deref()),
        number,
        display_phone: of_metadata("display_phone_number").or_else(|| value.name("display_phone_number")),
        account_id: customer.or_else(|| change.account_id()),
        ..Target::default()
    }
}

fn notice<'a>(change: &Change<'a>, field: &str, raw: &RawValue, value_time: Option<Timestamp>) -> Item {
    let text = |raw: Option<&'a RawValue>| raw.map_or("", RawValue::get);
    let parts = [text(change.account), field, text(change.entry_time), raw.get()];
    body::notice(field, raw, &parts, change.entry_time.and_then(json::time).or(value_time))
}
