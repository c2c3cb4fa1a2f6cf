//! What is known of one contact at one instance: the record that its wishes merge into.
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
//! first merged stays. `change_number` counts the changes that the customer is told: those of the state, and
//! a marketing opt-out that becomes a full one. It is not a function of the set: whoever hears of STOP,
//! START, STOP counts 3, whoever hears of the last STOP alone counts 1 until the records merge, and then the
//! larger number counts.
//!
//! Providers give whole seconds, so ties are common: STOP and START within one second. An agent that took
//! both knows their order, and writes it into the time: the second is a microsecond later ([`Origin`]).
//! Between agents nobody knows, and the opt-out stays. An opt-in so moved counts as later than an opt-out
//! of the same second that a third party has not heard of yet.
//!
//! A provider's clock that is ahead of ours must not decide what comes after it. An opt-in taken here is
//! never later than its recording, so that the next STOP ends it, except as far as it has to be to end an
//! opt-out that the same clock dates before it; an opt-out may be a minute ahead. And a STOP that is taken
//! here while an opt-in that is still ahead of our clock is in force came after that one.
//!
//! The wire ([`v1::OptOut`](gateway_proto::v1::OptOut)) carries one decision for each record: the deciding
//! one. A record that came over the wire or from a store therefore does not know a second opt-out beside
//! it; the one it knows has the wider scope and the later time of both, so that nothing is lost. The price:
//! where an opt-in arrives late, and was made between two opt-outs of different scope, the wider scope
//! stays until the next opt-in.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use super::decision::{
    ContactRef, Decision, OptOutDirection, OptOutId, OptOutReason, OptOutScope, OptOutState, Origin,
    opt_out_event_id,
};
use crate::{
    event::EventType,
    id::{EventId, InstanceId, TenantId},
    phone::Phone,
};

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
    fn new(decision: &Decision, event_time: Timestamp) -> Self {
        Self {
            event_time,
            direction: decision.direction,
            reason: decision.reason,
            origin: decision.origin,
            keyword: decision.keyword.clone(),
            external_message_id: decision.external_message_id.clone(),
        }
    }

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
    /// Counts the changes of state, and of an opt-out from marketing to everything, from 1.
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
        let says_stop =
            |mark: &Option<Mark>| mark.as_ref().is_some_and(|mark| mark.direction == OptOutDirection::OptOut);
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

    /// A record of one decision, made at its own time.
    pub(super) fn from_mark(
        tenant_id: TenantId,
        instance_id: InstanceId,
        contact: ContactRef,
        mark: &Mark,
        scope: OptOutScope,
    ) -> Self {
        let (full, marketing) = registers(mark.direction, scope);
        Self {
            id: OptOutId::derive(&instance_id, &contact),
            tenant_id,
            instance_id,
            contact,
            full: full.then(|| mark.clone()),
            marketing: marketing.then(|| mark.clone()),
            change_number: 1,
            note: None,
            create_time: mark.event_time,
            update_time: mark.event_time,
        }
    }

    /// The time of the newest decision, in force or not.
    pub fn newest_time(&self) -> Option<Timestamp> {
        self.full.iter().chain(&self.marketing).map(|mark| mark.event_time).max()
    }

    fn learn(&mut self, newer: &ContactRef) {
        let conflict = self.contact.conflicts_with(newer);
        self.contact = self.contact.updated(newer);
        if conflict {
            self.id = OptOutId::derive(&self.instance_id, &self.contact);
        }
    }

    /// This record under those of its keys that its successor does not have; none when there are none.
    pub(super) fn left_over(&self, successor: &Self) -> Option<Self> {
        let match_key = |record: &Self| record.contact.phone.as_ref().map(Phone::match_key);
        let contact = ContactRef {
            phone: self.contact.phone.clone().filter(|_| match_key(self) != match_key(successor)),
            user_id: self.contact.user_id.clone().filter(|id| Some(id) != successor.contact.user_id.as_ref()),
        };
        let id = OptOutId::derive(&self.instance_id, &contact);
        (!contact.is_empty()).then(|| Self { id, contact, ..self.clone() })
    }

    /// Writes the registers that a decision is about, where it is the newer one; says whether it wrote.
    fn write(&mut self, decision: &Decision, now: Timestamp) -> bool {
        let (full, marketing) = registers(decision.direction, decision.scope);
        let write = |register: &mut Option<Mark>| {
            let mark = Mark::new(decision, effective_time(register.as_ref(), decision, now));
            keep_newest(register, &mark)
        };
        let full = full && write(&mut self.full);
        let marketing = marketing && write(&mut self.marketing);
        full || marketing
    }

    /// Takes over the newer of each register.
    fn join(&mut self, other: &Self) -> bool {
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
    /// What was known, under the keys that the contact no longer has: to be stored too. None as long as
    /// keys are only learned.
    pub left_over: Option<OptOutRecord>,
    /// Whether the record is another one than before and has to be stored.
    pub changed: bool,
    /// Whether the contact went from one state to the other, decided for the first time, or widened an
    /// opt-out of marketing to everything: the customer is to be told, with [`OptOutRecord::event_id`].
    pub is_news: bool,
}

/// Merges a decision into what is known of the contact. `existing` is the record that matches the
/// decision's contact ([`ContactRef::matches`]); when phone and user id have one each, merge these first
/// with [`merge_record`]. Keys that the record lacks are learned; where a key differs, the decision's is
/// the newer one, the record gets a new id, and what was known of the old key is [`Merged::left_over`].
///
/// `now` is the time of recording. A provider's opt-in that is ahead of it, and an opt-out more than a minute
/// ahead, count as made in the present second: a wrong clock must make neither endless.
pub fn merge(existing: Option<&OptOutRecord>, decision: &Decision, now: Timestamp) -> Merged {
    let mut record = existing.cloned().unwrap_or_else(|| OptOutRecord::empty(decision, now));
    record.learn(&decision.contact);
    if record.write(decision, now) && decision.note.is_some() {
        record.note.clone_from(&decision.note);
    }
    finish(existing, record, 0, now)
}

/// Merges a record from elsewhere into what is known of the contact, as [`merge`] does with a decision.
/// Keys of the incoming record count where they differ. An incoming record of another instance is the
/// caller's mistake; it is merged all the same, since refusing would lose an opt-out.
pub fn merge_record(existing: Option<&OptOutRecord>, incoming: &OptOutRecord, now: Timestamp) -> Merged {
    let Some(known) = existing else {
        return Merged { record: incoming.clone(), left_over: None, changed: true, is_news: true };
    };
    let mut record = known.clone();
    record.learn(&incoming.contact);
    record.create_time = known.create_time.min(incoming.create_time);
    if record.join(incoming) && incoming.note.is_some() {
        record.note.clone_from(&incoming.note);
    }
    finish(existing, record, incoming.change_number, now)
}

/// The record of a contact whose two keys a provider names at once, where so far they had a record each, or one
/// of them none, and one is opted out: from then on both are. None where nothing is gained: no opt-out, one
/// record that has both keys already, both keys covered alike by records that have other keys too, or an
/// opt-in, taken under the other key, that is newer. That one ends what was said under its own key alone. None also
/// where the user id came with another number: one person's word must not become another's.
///
/// It is news ([`Merged::is_news`]) only if the customer was told something else of one of the keys before:
/// the contact stopped once, and that was told under the key that was known then.
pub fn link(
    contact: &ContactRef,
    by_phone: Option<&OptOutRecord>,
    by_user_id: Option<&OptOutRecord>,
    now: Timestamp,
) -> Option<Merged> {
    if contact.phone.is_none() || contact.user_id.is_none() {
        return None;
    }
    let by_user_id = by_user_id.filter(|other| by_phone.is_none_or(|one| one.contact != other.contact));
    let known = match (by_phone, by_user_id) {
        (Some(one), Some(other)) => joined(one, other),
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => return None,
    };
    let olds = || by_phone.into_iter().chain(by_user_id);
    let mut record = known.clone();
    record.learn(contact);
    let scope = record.opt_out_scope();
    let is_narrowed = olds().any(|old| old.opt_out_scope() > scope);
    let are_covered = olds().all(|old| old.opt_out_scope() == scope)
        && olds().count() == 2
        && olds().any(|old| old.contact.conflicts_with(contact));
    // A user id that came with another number: a provider may have given one, the business's perhaps, for several people.
    let is_of_another = |old: &OptOutRecord| {
        let phones = old.contact.phone.as_ref().zip(contact.phone.as_ref());
        phones.is_some_and(|(one, two)| one.match_key() != two.match_key())
    };
    if scope.is_none()
        || is_narrowed
        || are_covered
        || olds().any(is_of_another)
        || record.contact == known.contact && by_user_id.is_none()
    {
        return None;
    }
    let is_news = olds().any(|old| old.opt_out_scope() != scope);
    record.change_number = olds().map(|old| old.change_number).max().unwrap_or_default() + u64::from(is_news);
    record.update_time = now;
    Some(Merged { left_over: known.left_over(&record), record, changed: true, is_news })
}

/// What is known of a contact whose keys have a record each: that of the phone comes first.
pub(super) fn joined(first: &OptOutRecord, second: &OptOutRecord) -> OptOutRecord {
    let now = first.update_time.max(second.update_time);
    let contact = second.contact.updated(&first.contact);
    OptOutRecord { contact, ..merge_record(Some(first), second, now).record }
}

fn finish(
    existing: Option<&OptOutRecord>,
    mut record: OptOutRecord,
    known_number: u64,
    now: Timestamp,
) -> Merged {
    let is_news = existing.is_none_or(|known| {
        let (before, after) = (known.opt_out_scope(), record.opt_out_scope());
        before.is_some() != after.is_some() || after > before
    });
    record.change_number = (record.change_number + u64::from(is_news)).max(known_number);
    let changed = existing != Some(&record);
    if changed {
        record.update_time = now;
    }
    let left_over = existing.and_then(|known| known.left_over(&record));
    Merged { record, left_over, changed, is_news }
}

/// How far a provider's clock may be ahead of ours for an opt-out to keep its time.
const AHEAD_MAX: SignedDuration = SignedDuration::from_mins(1);
/// Resolution of providers' clocks, in microseconds: what lies below it orders decisions that tie.
const CLOCK_TICK_MICROS: i64 = 1_000;

/// The time under which a register records a decision. One that was taken here and ties with what the
/// register holds is moved within its millisecond: an opt-out beside the opt-in, where it wins; an opt-in
/// behind an opt-out that was taken here too. Otherwise it stays, and the opt-out wins. Where the provider's
/// clock is ahead, everything from the present second to the time it gave is such a tie.
fn effective_time(register: Option<&Mark>, decision: &Decision, now: Timestamp) -> Timestamp {
    if decision.origin == Origin::Elsewhere {
        return from_micros(decision.event_time.as_microsecond());
    }
    let ahead_max = match decision.direction {
        OptOutDirection::OptOut => AHEAD_MAX,
        OptOutDirection::OptIn => SignedDuration::ZERO,
    };
    let given = tick(decision.event_time);
    let is_ahead = decision.event_time.duration_since(now) > ahead_max;
    // As coarse as providers' clocks, so that what follows within the second ties with it.
    let recorded = if is_ahead { tick(now) - tick(now).rem_euclid(1_000_000) } else { given };
    let ties = recorded..given + CLOCK_TICK_MICROS;
    let held = register.filter(|mark| mark.direction != decision.direction);
    let moved = held.and_then(|mark| {
        let held = mark.event_time.as_microsecond();
        match decision.direction {
            OptOutDirection::OptOut => (ties.contains(&held) || mark.event_time > now).then_some(held),
            OptOutDirection::OptIn => {
                (mark.origin == Origin::Here && ties.contains(&(held + 1))).then_some(held + 1)
            }
        }
    });
    from_micros(moved.unwrap_or(recorded))
}

/// The beginning of the provider's tick that a time is in, in microseconds.
fn tick(time: Timestamp) -> i64 {
    time.as_microsecond().div_euclid(CLOCK_TICK_MICROS) * CLOCK_TICK_MICROS
}

/// A time of whole microseconds, so that every store keeps the order of decisions.
fn from_micros(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).expect("it was rounded down, within the range of Timestamp")
}

#[cfg(test)]
pub(super) mod tests;
