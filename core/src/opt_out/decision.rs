//! One wish of a contact, and the record that wishes merge into.
//!
//! A record holds two registers, each the newest decision about one thing: whether the contact stopped
//! everything that is not essential, and whether the contact stopped marketing. A full opt-out writes the
//! first, a marketing opt-out the second, a full opt-in both, and the end of a marketing opt-out (a
//! provider's `resume`) the second only. The contact is opted out while either register says so, and the
//! wider scope is the one that counts. So a narrower opt-out never narrows a wider one, and resuming
//! marketing never ends a STOP.
//!
//! # What merging guarantees
//!
//! A register keeps the decision with the greatest (time, opt-out before opt-in). That is a maximum in a
//! total order, so over the same decisions state, scope and time of a record are the same in whatever
//! order and however often they are merged, on every agent and on the control plane: commutative,
//! associative, idempotent. An opt-out is never lost except to an opt-in that is later. Reason, keyword
//! and message id are those of a decision with that time; between two that agree in all of that, the
//! first merged stays. `change_number` is not a function of the set: whoever hears of STOP, START, STOP
//! counts 3, whoever hears of the last STOP alone counts 1 until the records merge, and then the larger
//! number counts.
//!
//! Providers give whole seconds, so ties are common: STOP and START within one second. An agent that took
//! both knows their order, and writes it into the time: the second is a microsecond later ([`Origin`]).
//! Between agents nobody knows, and the opt-out stays. An opt-in so moved counts as later than an opt-out
//! of the same second that a third party has not heard of yet.
//!
//! The wire carries one decision for each record: the deciding one. A record that reached us over the
//! wire therefore knows one register only, and its time covers both opt-outs, so that nothing is lost:
//! where a late opt-in falls between two opt-outs of different scope, the wider scope stays.

use std::fmt;

use jiff::Timestamp;

use crate::{
    event::EventType,
    id::{EventId, InstanceId, TenantId, base32},
    phone::Phone,
};

/// What a contact asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OptOutDirection {
    /// To start again.
    OptIn,
    /// To stop. Greater than an opt-in, so that it wins a tie.
    OptOut,
}

/// Whether a contact wants to be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptOutState {
    /// Sends that are not essential are suppressed.
    OptedOut,
    /// Nothing is suppressed.
    OptedIn,
}

/// How much an opt-out covers, or an opt-in ends. The wider one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OptOutScope {
    /// Marketing only.
    Marketing,
    /// Every purpose that the policy does not name essential.
    NonEssential,
}

impl OptOutScope {
    /// The word in webhook bodies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Marketing => "marketing",
            Self::NonEssential => "non_essential",
        }
    }
}

/// Why an opt-out was recorded or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptOutReason {
    /// The contact wrote a keyword or tapped a button.
    RecipientRequestedStop,
    /// The contact used WhatsApp's own control.
    ProviderPreference,
    /// A send failed with a code that says so (Meta 131050).
    ProviderError,
    /// It came with an import.
    Imported,
    /// Somebody recorded it through the API.
    Operator,
    /// The contact wrote a keyword that ends an opt-out.
    RecipientRequestedStart,
}

impl OptOutReason {
    /// The word in webhook bodies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RecipientRequestedStop => "recipient_requested_stop",
            Self::ProviderPreference => "provider_preference",
            Self::ProviderError => "provider_error",
            Self::Imported => "imported",
            Self::Operator => "operator",
            Self::RecipientRequestedStart => "recipient_requested_start",
        }
    }
}

/// Who took a decision first; matters only for ties of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// This program, just now: it knows the order in which its decisions came.
    Here,
    /// Another program, or this one in an earlier life.
    Elsewhere,
}

/// A contact as opt-outs know it. At least one key is set in every record. Prints masked.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct ContactRef {
    /// The phone number. National variants (Brazil, Mexico, Argentina) are the same contact.
    pub phone: Option<Phone>,
    /// The provider's user id.
    pub user_id: Option<Box<str>>,
}

impl ContactRef {
    /// What names the contact in derived ids: `+` and the digits with national variants folded, or else
    /// the user id. Empty when neither is known.
    pub fn key(&self) -> String {
        match (&self.phone, &self.user_id) {
            (Some(phone), _) => format!("+{}", phone.match_key()),
            (None, Some(user_id)) => user_id.to_string(),
            (None, None) => String::new(),
        }
    }

    /// Whether neither key is known.
    pub const fn is_empty(&self) -> bool {
        self.phone.is_none() && self.user_id.is_none()
    }

    /// Whether both name the same contact: one key agrees.
    pub fn matches(&self, other: &Self) -> bool {
        let phones = self.phone.as_ref().zip(other.phone.as_ref());
        let user_ids = self.user_id.as_ref().zip(other.user_id.as_ref());
        phones.is_some_and(|(one, two)| one.match_key() == two.match_key())
            || user_ids.is_some_and(|(one, two)| one == two)
    }

    /// These keys, and the other's where one is missing.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            phone: self.phone.as_ref().or(other.phone.as_ref()).cloned(),
            user_id: self.user_id.as_ref().or(other.user_id.as_ref()).cloned(),
        }
    }
}

impl fmt::Debug for ContactRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContactRef({:?}, user id {})", self.phone, if self.user_id.is_some() { "set" } else { "unset" })
    }
}

/// Names an opt-out: `opt_` and 26 characters of lower-case unpadded base32.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OptOutId(pub(super) [u8; 16]);

impl OptOutId {
    /// The id of a contact's opt-out at an instance: the first 16 bytes of SHA-256 over `opt_out`, instance
    /// id and [`ContactRef::key`], each preceded by its length as u32 big endian. It stays when a second
    /// key becomes known.
    pub fn derive(instance_id: &InstanceId, contact: &ContactRef) -> Self {
        Self(*EventId::derive(&["opt_out", instance_id.as_str(), &contact.key()]).as_bytes())
    }
}

impl fmt::Display for OptOutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "opt_{}", base32(&self.0))
    }
}

impl fmt::Debug for OptOutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The id of the event that tells of a change of state: `evt_` and base32 of the first 16 bytes of SHA-256
/// over event name, instance id, [`ContactRef::key`] and the decimal change number, each preceded by its
/// length as u32 big endian. Two agents that see two STOPs of one contact name the same event.
pub fn opt_out_event_id(
    event_name: &str,
    instance_id: &InstanceId,
    contact_key: &str,
    change_number: u64,
) -> EventId {
    EventId::derive(&[event_name, instance_id.as_str(), contact_key, &change_number.to_string()])
}

/// One wish of a contact. Prints without message id and keyword, and with the contact masked.
#[derive(Clone, PartialEq, Eq)]
pub struct Decision {
    /// The tenant of the instance.
    pub tenant_id: TenantId,
    /// The instance the contact wrote to.
    pub instance_id: InstanceId,
    /// Who decided. Not empty.
    pub contact: ContactRef,
    /// What they ask for.
    pub direction: OptOutDirection,
    /// How much of it. A keyword's opt-in ends everything: [`OptOutScope::NonEssential`].
    pub scope: OptOutScope,
    /// How we know.
    pub reason: OptOutReason,
    /// The keyword, folded; none when there was none.
    pub keyword: Option<Box<str>>,
    /// The provider's id of the message that carried it.
    pub external_message_id: Option<Box<str>>,
    /// An operator's remark.
    pub note: Option<Box<str>>,
    /// When the contact decided, by the provider's clock.
    pub event_time: Timestamp,
    /// Who took it first.
    pub origin: Origin,
}

impl fmt::Debug for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Decision({}, {:?}, ", self.instance_id, self.contact)?;
        write!(f, "{:?} of {:?} at {}, {:?}, {:?})", self.direction, self.scope, self.event_time, self.reason, self.origin)
    }
}

/// What one register of a record holds: the newest decision about one scope.
#[derive(Clone, PartialEq, Eq)]
pub struct Mark {
    /// When the contact decided, in microseconds; see the module about ties.
    pub event_time: Timestamp,
    /// What they asked for.
    pub direction: OptOutDirection,
    /// How we know.
    pub reason: OptOutReason,
    /// Who took it first.
    pub origin: Origin,
    /// The keyword, folded.
    pub keyword: Option<Box<str>>,
    /// The provider's id of the message.
    pub external_message_id: Option<Box<str>>,
}

impl Mark {
    /// The total order in which the greatest mark wins.
    fn rank(&self) -> (Timestamp, OptOutDirection) {
        (self.event_time, self.direction)
    }
}

/// What is known of one contact at one instance. Prints without message id and keyword, and with the
/// contact masked.
#[derive(Clone, PartialEq, Eq)]
pub struct OptOutRecord {
    /// Derived from the instance and the keys known at first.
    pub id: OptOutId,
    /// The tenant of the instance.
    pub tenant_id: TenantId,
    /// The instance.
    pub instance_id: InstanceId,
    /// The contact, with every key learned so far.
    pub contact: ContactRef,
    /// The newest decision about everything that is not essential.
    pub(super) full: Option<Mark>,
    /// The newest decision about marketing.
    pub(super) marketing: Option<Mark>,
    /// Counts the changes of state, from 1.
    pub change_number: u64,
    /// An operator's remark.
    pub note: Option<Box<str>>,
    /// When the first decision was recorded.
    pub create_time: Timestamp,
    /// When the newest decision was recorded.
    pub update_time: Timestamp,
}

impl fmt::Debug for OptOutRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OptOutRecord({}, {}, {:?}, ", self.id, self.instance_id, self.contact)?;
        let register = |mark: &Option<Mark>| mark.as_ref().map(Mark::rank);
        write!(f, "full {:?}, ", register(&self.full))?;
        write!(f, "marketing {:?}, change {})", register(&self.marketing), self.change_number)
    }
}

impl OptOutRecord {
    /// Whether the contact wants to be left alone.
    pub fn state(&self) -> OptOutState {
        if self.opt_out_scope().is_some() { OptOutState::OptedOut } else { OptOutState::OptedIn }
    }

    /// How much the opt-out covers, or the newest opt-in ended.
    pub fn scope(&self) -> OptOutScope {
        self.opt_out_scope().unwrap_or_else(|| match (&self.full, &self.marketing) {
            (Some(full), Some(marketing)) if marketing.rank() > full.rank() => OptOutScope::Marketing,
            (None, _) => OptOutScope::Marketing,
            _ => OptOutScope::NonEssential,
        })
    }

    /// The newest decision that is in force: among the opt-outs in force if there are any, otherwise among
    /// the opt-ins.
    pub fn deciding(&self) -> &Mark {
        let state = self.state();
        [self.full.as_ref(), self.marketing.as_ref()]
            .into_iter()
            .flatten()
            .filter(|mark| (mark.direction == OptOutDirection::OptOut) == (state == OptOutState::OptedOut))
            .reduce(|newest, mark| if mark.event_time > newest.event_time { mark } else { newest })
            .expect("a record is made from a decision, and a decision writes a register")
    }

    /// Why the contact is opted out or in.
    pub fn reason(&self) -> OptOutReason {
        self.deciding().reason
    }

    /// The event that tells of the present state.
    pub fn event_type(&self) -> EventType {
        match self.state() {
            OptOutState::OptedOut => EventType::RecipientOptedOut,
            OptOutState::OptedIn => EventType::RecipientOptedIn,
        }
    }

    /// The id of that event, by [`opt_out_event_id`].
    pub fn event_id(&self) -> EventId {
        opt_out_event_id(self.event_type().name(), &self.instance_id, &self.contact.key(), self.change_number)
    }

    /// The same wishes under other keys, for a contact that got a new number or user id. The old record
    /// stays: the old number may still be written to, or belong to somebody else soon.
    #[must_use]
    pub fn copy_to(&self, contact: ContactRef, now: Timestamp) -> Self {
        let id = OptOutId::derive(&self.instance_id, &contact);
        Self { id, contact, create_time: now, update_time: now, ..self.clone() }
    }

    fn opt_out_scope(&self) -> Option<OptOutScope> {
        let says_stop = |mark: &Option<Mark>| {
            mark.as_ref().is_some_and(|mark| mark.direction == OptOutDirection::OptOut)
        };
        if says_stop(&self.full) {
            Some(OptOutScope::NonEssential)
        } else {
            says_stop(&self.marketing).then_some(OptOutScope::Marketing)
        }
    }

    fn empty(decision: &Decision, now: Timestamp) -> Self {
        Self {
            id: OptOutId::derive(&decision.instance_id, &decision.contact),
            tenant_id: decision.tenant_id.clone(),
            instance_id: decision.instance_id.clone(),
            contact: decision.contact.clone(),
            full: None,
            marketing: None,
            change_number: 0,
            note: None,
            create_time: now,
            update_time: now,
        }
    }

    /// Writes the registers that a decision is about, where it is the newer one; says whether it wrote.
    pub(super) fn write(&mut self, mark: &Mark, scope: OptOutScope) -> bool {
        let (full, marketing) = registers(mark.direction, scope);
        let full = full && keep_newest(&mut self.full, mark);
        let marketing = marketing && keep_newest(&mut self.marketing, mark);
        full || marketing
    }

    /// Takes over the newer of each register.
    pub(super) fn join_marks(&mut self, other: &Self) -> bool {
        let full = other.full.as_ref().is_some_and(|mark| keep_newest(&mut self.full, mark));
        let marketing = other.marketing.as_ref().is_some_and(|mark| keep_newest(&mut self.marketing, mark));
        full || marketing
    }
}

/// Which registers a decision writes: (full, marketing).
const fn registers(direction: OptOutDirection, scope: OptOutScope) -> (bool, bool) {
    match (direction, scope) {
        (OptOutDirection::OptOut, OptOutScope::NonEssential) => (true, false),
        (_, OptOutScope::Marketing) => (false, true),
        (OptOutDirection::OptIn, OptOutScope::NonEssential) => (true, true),
    }
}

fn keep_newest(register: &mut Option<Mark>, mark: &Mark) -> bool {
    let is_newer = register.as_ref().is_none_or(|old| mark.rank() > old.rank());
    if is_newer {
        *register = Some(mark.clone());
    }
    is_newer
}

/// What merging came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The record as it now stands.
    pub record: OptOutRecord,
    /// Whether the record is another one than before and has to be stored.
    pub changed: bool,
    /// Whether the contact went from one state to the other, or decided for the first time: the customer
    /// is to be told, with [`OptOutRecord::event_id`].
    pub state_changed: bool,
}

/// Merges a decision into what is known of the contact. `existing` is the record that matches the
/// decision's contact ([`ContactRef::matches`]). Keys that the record lacks are learned; where a key
/// differs, the decision's is the newer one, and the caller keeps a record for the old key
/// ([`OptOutSet`](super::OptOutSet) does).
///
/// `now` is the time of recording. A decision more than a day ahead of it counts as made now: a wrong
/// clock must not make an opt-out endless.
pub fn merge(existing: Option<&OptOutRecord>, decision: &Decision, now: Timestamp) -> Merged {
    let mark = Mark {
        event_time: effective_time(existing, decision, now),
        direction: decision.direction,
        reason: decision.reason,
        origin: decision.origin,
        keyword: decision.keyword.clone(),
        external_message_id: decision.external_message_id.clone(),
    };
    let mut record = existing.cloned().unwrap_or_else(|| OptOutRecord::empty(decision, now));
    record.contact = decision.contact.or(&record.contact);
    if record.write(&mark, decision.scope) && decision.note.is_some() {
        record.note.clone_from(&decision.note);
    }
    finish(existing, record, 0, now)
}

/// Merges a record from elsewhere into what is known of the contact, as [`merge`] does with a decision.
/// Keys of the incoming record count where they differ. An incoming record of another instance is the
/// caller's mistake; it is merged all the same, since refusing would lose an opt-out.
pub fn merge_record(existing: Option<&OptOutRecord>, incoming: &OptOutRecord, now: Timestamp) -> Merged {
    let Some(known) = existing else {
        return Merged { record: incoming.clone(), changed: true, state_changed: true };
    };
    let mut record = known.clone();
    record.contact = incoming.contact.or(&known.contact);
    record.create_time = known.create_time.min(incoming.create_time);
    if record.join_marks(incoming) && incoming.note.is_some() {
        record.note.clone_from(&incoming.note);
    }
    finish(existing, record, incoming.change_number, now)
}

fn finish(
    existing: Option<&OptOutRecord>,
    mut record: OptOutRecord,
    known_number: u64,
    now: Timestamp,
) -> Merged {
    let state_changed = existing.map(OptOutRecord::state) != Some(record.state());
    record.change_number = (record.change_number + u64::from(state_changed)).max(known_number);
    let changed = existing != Some(&record);
    if changed {
        record.update_time = now;
    }
    Merged { record, changed, state_changed }
}

/// How far a provider's clock may be ahead of ours, in hours.
const AHEAD_MAX_HOURS: i64 = 24;
/// Resolution of providers' clocks, in microseconds: what lies below it orders decisions that tie.
const CLOCK_TICK_MICROS: i64 = 1_000;

/// The time under which a decision is recorded. One that was taken here and ties with one that is known
/// is moved within its millisecond: an opt-out beside the opt-in it follows, where it wins; an opt-in
/// behind an opt-out only if that was taken here too, otherwise it stays and the opt-out wins.
fn effective_time(existing: Option<&OptOutRecord>, decision: &Decision, now: Timestamp) -> Timestamp {
    let ahead_max = now.saturating_add(jiff::SignedDuration::from_hours(AHEAD_MAX_HOURS)).unwrap_or(now);
    let event_time = if decision.event_time > ahead_max { now } else { decision.event_time };
    let micros = event_time.as_microsecond();
    if decision.origin == Origin::Elsewhere {
        return from_micros(micros);
    }
    let tick = micros.div_euclid(CLOCK_TICK_MICROS) * CLOCK_TICK_MICROS;
    let last = tick + CLOCK_TICK_MICROS - 1;
    let (full, marketing) = registers(decision.direction, decision.scope);
    let ties = existing.into_iter().flat_map(|record| {
        [record.full.as_ref().filter(|_| full), record.marketing.as_ref().filter(|_| marketing)]
    });
    let moved = ties.flatten().filter_map(|mark| {
        let known = mark.event_time.as_microsecond();
        if mark.direction == decision.direction || !(tick..=last).contains(&known) {
            return None;
        }
        match decision.direction {
            OptOutDirection::OptOut => Some(known),
            OptOutDirection::OptIn => (mark.origin == Origin::Here).then(|| (known + 1).min(last)),
        }
    });
    from_micros(moved.max().unwrap_or(tick))
}

/// A time of whole microseconds, so that every store keeps the order of decisions.
fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).expect("it was rounded down, within the range of Timestamp")
}

#[cfg(test)]
pub(super) mod tests;
