//! Opt-outs seen here: enforced at once, durable with the callback that carried them, and sent upward before
//! its events.
//!
//! Callbacks that carry a wish take turns, so that of two STOPs that race only the first changes the state
//! and only one `recipient.opted_out` comes of them. So do callbacks that name a contact by phone number and
//! user id where so far only one of them is opted out: the opt-out becomes one of both. All others pass by.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use gateway_core::{
    event::{Contact, Content, Message, OptOutNotice},
    id::{EventId, InstanceId},
    opt_out::{ContactRef, Decision, Merged, OptOutId, OptOutRecord, OptOutSet, link, merge, merge_record},
    phone::Phone,
    snapshot::{InstanceConfig, Snapshot},
};
use gateway_proto::v1;
use jiff::Timestamp;
use tracing::warn;

use crate::pipeline::{
    buffer::{AppendError, Buffer, Entry, NewEvent, Receipt},
    normalize::{About, Normalized, Origin, contact_ref, record},
};

/// A contact's wish that came with a callback, or a change of what the contact is known by.
pub struct Wish {
    /// The instance the contact wrote to.
    pub instance: Arc<InstanceConfig>,
    /// Who it is, with the name for the event.
    pub contact: Contact,
    /// The business number.
    pub business_phone: Option<Phone>,
    /// The event that carried it, or the mark that is appended for it. When the buffer has it already, the
    /// provider repeats itself, and a wish of long ago must not undo a newer one. None where a repeat cannot
    /// be told from the same wish made anew.
    pub mark: Option<EventId>,
    /// What the contact wrote.
    pub message_text: Option<Box<str>>,
    /// Whether the time of the wish is ours because the provider gave none.
    pub is_time_ours: bool,
    /// What is wished.
    pub kind: WishKind,
}

/// A contact whom a provider named by phone number and user id at once.
pub struct Sighting {
    /// The instance.
    pub instance: Arc<InstanceConfig>,
    /// Who it is, with the name for the event.
    pub contact: Contact,
    /// The business number.
    pub business_phone: Option<Phone>,
    /// The event that carried it: when the buffer has it already, the pair may be an old one.
    pub mark: EventId,
}

/// What is wished.
pub enum WishKind {
    /// To stop or to start again.
    Decide(Decision),
    /// What was wished under the old keys holds for the new ones.
    Follow {
        /// As the contact was known.
        from: ContactRef,
        /// As the contact is known now.
        to: ContactRef,
    },
}

/// What is done to another message, or told of the contact: no present wish.
const NO_WISHES: [&str; 4] = ["reaction", "edit", "revoke", "system"];

/// The texts of a message that may be a keyword: the body or caption, a button's text and payload, an
/// interactive reply's title and id, whatever the type is, known or not. None of a group message, a forwarded
/// one, a reaction or an edit: these are not the contact's own, present wish.
pub fn keyword_texts(message: &Message) -> Vec<&str> {
    let is_forwarded = message
        .context
        .as_ref()
        .is_some_and(|context| context.forwarded == Some(true) || context.frequently_forwarded == Some(true));
    let is_no_wish = |word: &str| NO_WISHES.iter().any(|other| word.eq_ignore_ascii_case(other));
    let words = [Some(&*message.message_type), message.raw_type.as_deref()];
    if is_forwarded || message.group_id.is_some() || words.into_iter().flatten().any(is_no_wish) {
        return Vec::new();
    }
    let reply = message.reply.as_ref();
    let texts = [
        message.text.as_deref(),
        reply.and_then(|reply| reply.title.as_deref()),
        reply.and_then(|reply| reply.id.as_deref()),
    ];
    texts.into_iter().flatten().collect()
}

/// What contacts decided, as far as this agent knows. Cheap to clone.
#[derive(Clone, Default)]
pub struct OptOuts(Arc<Inner>);

#[derive(Default)]
struct Inner {
    set: Mutex<OptOutSet>,
    /// Held from deciding to inserting, over the write to disk.
    turn: tokio::sync::Mutex<()>,
}

impl OptOuts {
    /// Nothing known yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what this agent recorded before it was started: [`Buffer::local_opt_outs`].
    pub fn load(&self, opt_outs: Vec<v1::OptOut>) {
        self.merge_from_stream(opt_outs);
    }

    /// Takes decisions from the control plane. Merging is commutative, so it does not matter what came
    /// first; a decision that cannot be read is skipped and never undoes one.
    pub fn merge_from_stream(&self, opt_outs: Vec<v1::OptOut>) {
        if opt_outs.is_empty() {
            return;
        }
        let records: Vec<OptOutRecord> = opt_outs.iter().filter_map(readable).collect();
        self.remember(&records);
    }

    /// Takes decisions from the control plane, and notes in `confirmed` the records in which it and this agent
    /// now agree.
    pub fn merge_and_confirm(&self, opt_outs: Vec<v1::OptOut>, confirmed: &mut HashSet<OptOutId>) {
        let records: Vec<OptOutRecord> = opt_outs.iter().filter_map(readable).collect();
        self.remember(&records);
        let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            let known = set.lookup(&record.instance_id, &record.contact);
            if let Some(known) = known.filter(|known| says_the_same(known, &record)) {
                confirmed.insert(known.id);
            }
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.0.set.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Every record but these.
    pub fn all_but(&self, confirmed: &HashSet<OptOutId>) -> Vec<OptOutRecord> {
        let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.iter().filter(|record| !confirmed.contains(&record.id)).collect()
    }

    /// Reports what is known now of the contacts of `records` once more, as if it had been seen here.
    ///
    /// # Errors
    /// When the buffer refuses; then nothing is reported.
    pub async fn report_again(&self, buffer: &Buffer, records: &[OptOutRecord]) -> Result<(), AppendError> {
        // A wish that is decided meanwhile must not be followed by what was known before it.
        let _turn = self.0.turn.lock().await;
        let opt_outs = {
            let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = |record: &OptOutRecord| {
                let known = set.lookup(&record.instance_id, &record.contact);
                v1::OptOut::from(known.as_ref().unwrap_or(record))
            };
            records.iter().map(newest).collect()
        };
        buffer.append(Entry { opt_outs, ..Entry::default() }).await?;
        Ok(())
    }

    /// Everything known, for the disk.
    pub fn all(&self) -> Vec<v1::OptOut> {
        let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.iter().map(|record| v1::OptOut::from(&record)).collect()
    }

    /// What is known of a contact at an instance.
    pub fn lookup(&self, instance: &InstanceConfig, contact: &ContactRef) -> Option<OptOutRecord> {
        self.0.set.lock().unwrap_or_else(PoisonError::into_inner).lookup(&instance.id, contact)
    }

    /// Whether a callback is to be decided: it carries a wish, or names a contact by two keys of which only one
    /// is opted out. All others need not take turns.
    pub fn concerns(&self, normalized: &Normalized, now: Timestamp) -> bool {
        if !normalized.wishes.is_empty() || normalized.sightings.is_empty() {
            return !normalized.wishes.is_empty();
        }
        let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        let gains = |sighting: &Sighting| {
            set.link(&sighting.instance.id, &contact_ref(&sighting.contact), now).is_some()
        };
        !set.is_empty() && normalized.sightings.iter().any(gains)
    }

    /// Decides the wishes of a callback and appends everything that comes of it in one entry. The decisions
    /// hold on this agent as soon as they are on disk.
    ///
    /// Not cancel safe: dropped between writing and remembering, the agent would not know what its disk
    /// knows. [`crate::pipeline::Pipeline`] runs it in a task of its own.
    ///
    /// # Errors
    /// When the buffer refuses; then nothing was decided.
    pub async fn append(
        &self,
        buffer: &Buffer,
        normalized: Normalized,
        snapshot: &Snapshot,
        origin: &Origin,
        now: Timestamp,
    ) -> Result<Receipt, AppendError> {
        if !self.concerns(&normalized, now) {
            return buffer.append(normalized.entry).await;
        }
        let _turn = self.0.turn.lock().await;
        let (entry, records) = self.decide(normalized, |id| buffer.contains(id), snapshot, origin, now);
        let receipt = buffer.append(entry).await?;
        self.remember(&records);
        Ok(receipt)
    }

    /// What is to be written, and what holds once it is.
    fn decide(
        &self,
        normalized: Normalized,
        is_known: impl Fn(&EventId) -> bool,
        snapshot: &Snapshot,
        origin: &Origin,
        now: Timestamp,
    ) -> (Entry, Vec<OptOutRecord>) {
        let Normalized { mut entry, mut wishes, sightings } = normalized;
        let mut marks = HashSet::new();
        wishes.retain(|wish| wish.mark.is_none_or(|mark| marks.insert(mark) && !is_known(&mark)));
        let set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        let mut round = Round { set: &set, decided: OptOutSet::new(), records: Vec::new(), now };
        for wish in wishes {
            round.take(&wish, &mut entry, snapshot, origin);
        }
        // Behind the wishes: one of them may be made under one key alone.
        for sighting in sightings.iter().filter(|sighting| !is_known(&sighting.mark)) {
            round.see(sighting, &mut entry, snapshot, origin);
        }
        (entry, round.records)
    }

    fn remember(&self, records: &[OptOutRecord]) {
        let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            set.insert(record);
        }
    }
}

/// The wishes of one callback, decided one after the other, each on top of those before.
struct Round<'a> {
    set: &'a OptOutSet,
    decided: OptOutSet,
    records: Vec<OptOutRecord>,
    now: Timestamp,
}

impl Round<'_> {
    fn take(&mut self, wish: &Wish, entry: &mut Entry, snapshot: &Snapshot, origin: &Origin) {
        let instance_id = &wish.instance.id;
        match &wish.kind {
            WishKind::Decide(decision) if decision.contact.is_empty() => {}
            WishKind::Decide(decision) => {
                let known = self.known(instance_id, &decision.contact);
                let merged = merge(known.as_ref(), decision, self.now);
                if merged.is_news {
                    entry.events.push(told(wish, decision, &merged.record, self.now, snapshot, origin));
                }
                self.keep(merged, entry);
            }
            WishKind::Follow { from, to } => {
                if from.is_empty() || to.is_empty() {
                    return;
                }
                // Nobody decided anything: the customer is told with the system message itself.
                let Some(moved) =
                    self.known(instance_id, from).map(|known| known.copy_to(to.clone(), self.now))
                else {
                    return;
                };
                let merged = merge_record(self.known(instance_id, to).as_ref(), &moved, self.now);
                self.keep(merged, entry);
            }
        }
    }

    /// An opt-out of one key becomes one of both. The customer hears of it only where that is another state than
    /// they were told of.
    fn see(&mut self, sighting: &Sighting, entry: &mut Entry, snapshot: &Snapshot, origin: &Origin) {
        let Sighting { instance, contact, business_phone, .. } = sighting;
        let keys = contact_ref(contact);
        let by_phone = ContactRef { user_id: None, ..keys.clone() };
        let by_user_id = ContactRef { phone: None, ..keys.clone() };
        let [by_phone, by_user_id] = [by_phone, by_user_id].map(|key| self.known(&instance.id, &key));
        let Some(merged) = link(&keys, by_phone.as_ref(), by_user_id.as_ref(), self.now) else { return };
        if merged.is_news {
            let about = About {
                instance,
                contact: contact.clone(),
                business_phone: business_phone.clone(),
                event_time: merged.record.deciding().event_time,
                is_time_ours: false,
                receive_time: self.now,
            };
            entry.events.push(state_event(&merged.record, about, snapshot, origin));
        }
        self.keep(merged, entry);
    }

    fn known(&self, instance_id: &InstanceId, contact: &ContactRef) -> Option<OptOutRecord> {
        self.decided.lookup(instance_id, contact).or_else(|| self.set.lookup(instance_id, contact))
    }

    fn keep(&mut self, merged: Merged, entry: &mut Entry) {
        if merged.changed {
            self.decided.insert(&merged.record);
            // What a key without its contact keeps is written as well, or a restart would forget it.
            for record in merged.left_over.into_iter().chain([merged.record]) {
                entry.opt_outs.push(v1::OptOut::from(&record));
                self.records.push(record);
            }
        }
    }
}

/// The event of a wish that the customer is told.
fn told(
    wish: &Wish,
    decision: &Decision,
    decided: &OptOutRecord,
    receive_time: Timestamp,
    snapshot: &Snapshot,
    origin: &Origin,
) -> NewEvent {
    let notice = OptOutNotice {
        reason: decision.reason.as_str(),
        message_text: wish.message_text.clone(),
        external_message_id: decision.external_message_id.clone(),
        scope: Some(decision.scope.as_str()),
        keyword: decision.keyword.clone(),
    };
    let about = About {
        instance: &wish.instance,
        contact: wish.contact.clone(),
        business_phone: wish.business_phone.clone(),
        event_time: decision.event_time,
        is_time_ours: wish.is_time_ours,
        receive_time,
    };
    let event = about.event(decided.event_id(), decided.event_type(), Content::OptOut(Box::new(notice)));
    record(&event, snapshot, origin)
}

/// The event of an opt-out or opt-in that was recorded through the API; None when its instance is gone or it
/// cannot be read.
pub fn notice(
    opt_out: &v1::OptOut,
    snapshot: &Snapshot,
    origin: &Origin,
    receive_time: Timestamp,
) -> Option<NewEvent> {
    let decided = readable(opt_out)?;
    let instance = snapshot.instance(decided.instance_id.as_str())?;
    let contact = Contact {
        phone: decided.contact.phone.clone(),
        user_id: decided.contact.user_id.clone(),
        ..Contact::default()
    };
    let about = About {
        instance,
        contact,
        business_phone: instance.phone.clone(),
        event_time: decided.deciding().event_time,
        is_time_ours: false,
        receive_time,
    };
    Some(state_event(&decided, about, snapshot, origin))
}

/// The event of the state that a record is in, where nobody wrote anything just now.
fn state_event(decided: &OptOutRecord, about: About<'_>, snapshot: &Snapshot, origin: &Origin) -> NewEvent {
    let deciding = decided.deciding();
    let notice = OptOutNotice {
        reason: deciding.reason.as_str(),
        message_text: None,
        external_message_id: deciding.external_message_id.clone(),
        scope: Some(decided.scope().as_str()),
        keyword: deciding.keyword.clone(),
    };
    let event = about.event(decided.event_id(), decided.event_type(), Content::OptOut(Box::new(notice)));
    record(&event, snapshot, origin)
}

/// Whether two records of a contact come to the same, now and for what is merged into them.
fn says_the_same(one: &OptOutRecord, other: &OptOutRecord) -> bool {
    let decided = |record: &OptOutRecord| {
        (record.state(), record.scope(), record.deciding().event_time, record.change_number)
    };
    decided(one) == decided(other) && one.contact == other.contact
}

fn readable(opt_out: &v1::OptOut) -> Option<OptOutRecord> {
    OptOutRecord::try_from(opt_out)
        .inspect_err(|violations| warn!(opt_out = opt_out.id, %violations, "failed to read an opt-out"))
        .ok()
}

#[cfg(test)]
mod tests;
