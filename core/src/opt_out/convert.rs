//! Opt-outs on the wire, and the decisions that operators make through the API.

use gateway_proto::v1;
use jiff::{SignedDuration, Timestamp};

use super::{
    decision::{
        ContactRef, Decision, OptOutDirection, OptOutId, OptOutReason, OptOutScope, OptOutState, Origin,
        is_identifier,
    },
    record::{Mark, OptOutRecord},
};
use crate::{
    id::{TenantId, decode_base32},
    phone::normalize_phone,
    time::{from_proto, to_proto},
    violation::FieldViolations,
};

/// Longest note of an opt-out, in characters.
pub const NOTE_CHARS_MAX: usize = 500;
/// How far the clock of whoever calls may be ahead of ours.
const AHEAD_MAX: SignedDuration = SignedDuration::from_mins(1);
/// Longest user id that a request may name, in bytes. Providers' own are shorter (Meta: 135).
pub const USER_ID_BYTES_MAX: usize = 256;

impl std::str::FromStr for OptOutId {
    type Err = InvalidOptOutId;

    fn from_str(text: &str) -> Result<Self, InvalidOptOutId> {
        text.strip_prefix("opt_").and_then(decode_base32).map(Self).ok_or(InvalidOptOutId)
    }
}

/// The text is not `opt_` and 26 characters of base32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be `opt_` followed by 26 characters of a-z and 2-7")]
pub struct InvalidOptOutId;

impl From<OptOutReason> for i32 {
    fn from(reason: OptOutReason) -> Self {
        let reason = match reason {
            OptOutReason::RecipientRequestedStop => v1::OptOutReason::RecipientRequestedStop,
            OptOutReason::ProviderPreference => v1::OptOutReason::ProviderPreference,
            OptOutReason::ProviderError => v1::OptOutReason::ProviderError,
            OptOutReason::Imported => v1::OptOutReason::Imported,
            OptOutReason::Operator => v1::OptOutReason::Operator,
            OptOutReason::RecipientRequestedStart => v1::OptOutReason::RecipientRequestedStart,
            OptOutReason::Other(number) => return number,
        };
        reason.into()
    }
}

impl From<i32> for OptOutReason {
    fn from(number: i32) -> Self {
        match v1::OptOutReason::try_from(number) {
            Ok(v1::OptOutReason::RecipientRequestedStop) => Self::RecipientRequestedStop,
            Ok(v1::OptOutReason::ProviderPreference) => Self::ProviderPreference,
            Ok(v1::OptOutReason::ProviderError) => Self::ProviderError,
            Ok(v1::OptOutReason::Imported) => Self::Imported,
            Ok(v1::OptOutReason::Operator) => Self::Operator,
            Ok(v1::OptOutReason::RecipientRequestedStart) => Self::RecipientRequestedStart,
            Ok(v1::OptOutReason::Unspecified) | Err(_) => Self::Other(number),
        }
    }
}

impl From<OptOutState> for v1::OptOutState {
    fn from(state: OptOutState) -> Self {
        match state {
            OptOutState::OptedOut => Self::OptedOut,
            OptOutState::OptedIn => Self::OptedIn,
        }
    }
}

impl From<OptOutScope> for v1::OptOutScope {
    fn from(scope: OptOutScope) -> Self {
        match scope {
            OptOutScope::NonEssential => Self::NonEssential,
            OptOutScope::Marketing => Self::Marketing,
        }
    }
}

impl From<&OptOutRecord> for v1::OptOut {
    /// The record with its deciding decision. The etag is the caller's.
    fn from(record: &OptOutRecord) -> Self {
        let deciding = record.deciding();
        Self {
            id: record.id.to_string(),
            tenant_id: record.tenant_id.to_string(),
            instance_id: record.instance_id.to_string(),
            phone: record.contact.phone.as_ref().map(|phone| phone.as_str().to_owned()).unwrap_or_default(),
            user_id: text(&record.contact.user_id),
            state: v1::OptOutState::from(record.state()).into(),
            scope: v1::OptOutScope::from(record.scope()).into(),
            reason: deciding.reason.into(),
            keyword: text(&deciding.keyword),
            external_message_id: text(&deciding.external_message_id),
            event_time: Some(to_proto(deciding.event_time)),
            change_number: record.change_number,
            note: text(&record.note),
            create_time: Some(to_proto(record.create_time)),
            update_time: Some(to_proto(record.update_time)),
            etag: String::new(),
            is_damaged: false,
        }
    }
}

impl TryFrom<&v1::OptOut> for OptOutRecord {
    type Error = FieldViolations;

    /// Reads a record that another part of the gateway, or this one's store, wrote. What decides is
    /// required: tenant, instance, a key, state and event time; the rest is taken as far as it is there,
    /// so that no opt-out is lost to a small fault. A scope of a later version counts as the wider one for
    /// an opt-out, and is refused for an opt-in.
    fn try_from(message: &v1::OptOut) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let tenant_id = parsed(&message.tenant_id, "tenant_id", &mut violations);
        let instance_id = parsed(&message.instance_id, "instance_id", &mut violations);
        let contact = contact(message, "", &mut violations);
        let direction = direction(message.state, &mut violations);
        let scope = match v1::OptOutScope::try_from(message.scope) {
            Ok(v1::OptOutScope::Marketing) => OptOutScope::Marketing,
            Err(_) if direction == Some(OptOutDirection::OptIn) => {
                violations.add("scope", "is one that this version does not know");
                OptOutScope::NonEssential
            }
            Ok(v1::OptOutScope::Unspecified | v1::OptOutScope::NonEssential) | Err(_) => {
                OptOutScope::NonEssential
            }
        };
        let event_time = message.event_time.as_ref().and_then(from_proto);
        if event_time.is_none() {
            violations.add("event_time", "is required");
        }
        let (Some(tenant_id), Some(instance_id), Some(contact), Some(direction), Some(event_time)) =
            (tenant_id, instance_id, contact, direction, event_time)
        else {
            return Err(violations);
        };
        let create_time = message.create_time.as_ref().and_then(from_proto).unwrap_or(event_time);
        let mark = Mark::exact(event_time, direction, message);
        let record = Self::from_mark(tenant_id, instance_id, contact, &mark, scope);
        violations.into_result(Self {
            id: message.id.parse().unwrap_or(record.id),
            change_number: message.change_number,
            note: optional(&message.note),
            create_time,
            update_time: message.update_time.as_ref().and_then(from_proto).unwrap_or(create_time),
            ..record
        })
    }
}

impl Mark {
    fn exact(event_time: Timestamp, direction: OptOutDirection, message: &v1::OptOut) -> Self {
        Self {
            event_time: Timestamp::from_microsecond(event_time.as_microsecond()).unwrap_or(event_time),
            direction,
            reason: message.reason.into(),
            origin: Origin::Elsewhere,
            keyword: optional(&message.keyword),
            external_message_id: optional(&message.external_message_id),
        }
    }
}

impl Decision {
    /// What CreateOptOut asks for. Paths of violations begin with `opt_out.`; tenant and existence of the
    /// instance are the caller's to check. `existing` is the record that matches the contact: an opt-out
    /// without `event_time` is made in the present second, as coarse as providers' clocks, and comes after
    /// everything that is known already.
    ///
    /// # Errors
    /// Fields that are missing or out of bounds; an `event_time` over a minute later than `now`.
    pub fn operator_opt_out(
        request: &v1::OptOut,
        tenant_id: TenantId,
        existing: Option<&OptOutRecord>,
        now: Timestamp,
    ) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let instance_id = parsed(&request.instance_id, "opt_out.instance_id", &mut violations);
        let contact = contact(request, "opt_out.", &mut violations);
        if request.user_id.len() > USER_ID_BYTES_MAX {
            violations.add("opt_out.user_id", format!("must have at most {USER_ID_BYTES_MAX} bytes"));
        } else if !request.user_id.is_empty() && !is_identifier(&request.user_id) {
            violations.add("opt_out.user_id", "must name one person: with a letter, or a digit other than 0");
        }
        let scope = match v1::OptOutScope::try_from(request.scope) {
            Ok(v1::OptOutScope::Marketing) => OptOutScope::Marketing,
            Ok(v1::OptOutScope::Unspecified | v1::OptOutScope::NonEssential) => OptOutScope::NonEssential,
            Err(_) => {
                violations
                    .add("opt_out.scope", "must be OPT_OUT_SCOPE_NON_ESSENTIAL or OPT_OUT_SCOPE_MARKETING");
                OptOutScope::NonEssential
            }
        };
        if request.note.chars().count() > NOTE_CHARS_MAX {
            violations.add("opt_out.note", format!("must have at most {NOTE_CHARS_MAX} characters"));
        }
        let event_time = match &request.event_time {
            None => {
                let second = whole_second(now);
                existing.and_then(OptOutRecord::newest_time).map_or(second, |newest| newest.max(second))
            }
            Some(given) => from_proto(given)
                .filter(|given| given.duration_since(now) <= AHEAD_MAX)
                .unwrap_or_else(|| {
                    violations.add("opt_out.event_time", "must be a time in the past");
                    now
                }),
        };
        let (Some(instance_id), Some(contact)) = (instance_id, contact) else {
            return Err(violations);
        };
        violations.into_result(Self {
            tenant_id,
            instance_id,
            contact,
            direction: OptOutDirection::OptOut,
            scope,
            reason: OptOutReason::Operator,
            keyword: None,
            external_message_id: None,
            note: optional(&request.note),
            event_time,
            origin: Origin::Elsewhere,
        })
    }

    /// The opt-in of DeleteOptOut: it ends every opt-out of the record. Its time is the present second, as
    /// coarse as providers' clocks, so that a STOP which follows within that second is not taken for an
    /// older one; but never before what it ends.
    pub fn operator_opt_in(record: &OptOutRecord, now: Timestamp) -> Self {
        let second = whole_second(now);
        let after =
            record.newest_time().and_then(|newest| newest.checked_add(SignedDuration::from_micros(1)).ok());
        Self {
            tenant_id: record.tenant_id.clone(),
            instance_id: record.instance_id.clone(),
            contact: record.contact.clone(),
            direction: OptOutDirection::OptIn,
            scope: OptOutScope::NonEssential,
            reason: OptOutReason::Operator,
            keyword: None,
            external_message_id: None,
            note: None,
            event_time: after.map_or(second, |after| after.max(second)),
            origin: Origin::Elsewhere,
        }
    }
}

/// The second that a time is in.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn contact(message: &v1::OptOut, prefix: &str, violations: &mut FieldViolations) -> Option<ContactRef> {
    let phone = normalize_phone(&message.phone);
    if phone.is_none() && !message.phone.is_empty() {
        violations.add(format!("{prefix}phone"), "must be a phone number in E.164: `+` and 7 to 15 digits");
        return None;
    }
    let contact = ContactRef { phone, user_id: optional(&message.user_id) };
    if contact.is_empty() {
        violations.add(format!("{prefix}phone"), "`phone` or `user_id` is required");
        return None;
    }
    Some(contact)
}

fn direction(state: i32, violations: &mut FieldViolations) -> Option<OptOutDirection> {
    match v1::OptOutState::try_from(state) {
        Ok(v1::OptOutState::OptedOut) => Some(OptOutDirection::OptOut),
        Ok(v1::OptOutState::OptedIn) => Some(OptOutDirection::OptIn),
        Ok(v1::OptOutState::Unspecified) | Err(_) => {
            violations.add("state", "must be OPT_OUT_STATE_OPTED_OUT or OPT_OUT_STATE_OPTED_IN");
            None
        }
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
    field: &str,
    violations: &mut FieldViolations,
) -> Option<T> {
    text.parse().map_err(|error: T::Err| violations.add(field, error.to_string())).ok()
}

fn optional(text: &str) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}

fn text(value: &Option<Box<str>>) -> String {
    value.as_deref().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
