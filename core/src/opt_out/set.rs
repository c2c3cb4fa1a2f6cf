//! Every record an agent knows: those of the config stream, and those made here a moment ago. Lives in
//! memory; the caller makes decisions durable before it inserts them.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;

use super::{
    decision::{ContactRef, Decision, OptOutDirection, OptOutId, OptOutReason, Origin},
    record::{Mark, Merged, OptOutRecord, joined, link, merge, merge_record},
};
use crate::{
    id::{InstanceId, TenantId},
    phone::{Phone, normalize_phone},
};

/// An in-memory set of opt-outs: at most one record for each key of a contact at an instance.
///
/// Records are packed. Measured with a million records, indexes and spare capacity included: 195 bytes for
/// a contact known by phone, 285 for one known by phone and user id. To keep it so, message ids are
/// remembered only of decisions that this agent took itself, and notes not at all.
#[derive(Default)]
pub struct OptOutSet {
    instances: Vec<(TenantId, InstanceId)>,
    instance_numbers: HashMap<InstanceId, u32>,
    keywords: Vec<Arc<str>>,
    keyword_numbers: HashMap<Arc<str>, u32>,
    /// Slots of records; free ones are reused.
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Slots by instance and the digits of the phone's match key.
    phones: HashMap<(u32, u64), u32>,
    /// Slots by instance and user id.
    user_ids: HashMap<(u32, Arc<str>), u32>,
}

/// A packed record.
struct Entry {
    id: OptOutId,
    instance: u32,
    /// The digits of the phone number; 0 when unknown, which no number is.
    phone: u64,
    user_id: Option<Arc<str>>,
    full: Option<PackedMark>,
    marketing: Option<PackedMark>,
    change_number: u64,
    /// Microseconds since 1970.
    create_time: i64,
    /// Microseconds since 1970.
    update_time: i64,
    /// Message ids of decisions taken here: full, marketing.
    message_ids: Option<Box<[Option<Box<str>>; 2]>>,
}

/// A packed mark, without its message id.
#[derive(Clone, Copy)]
struct PackedMark {
    /// Microseconds since 1970.
    event_time: i64,
    /// Number of the keyword, from 1; 0 for none.
    keyword: u32,
    reason: OptOutReason,
    direction: OptOutDirection,
    origin: Origin,
}

impl OptOutSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many records there are, opted-in ones included.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known of a contact at an instance, found by phone number (national variants match) or user
    /// id. When the two name different records, their merger.
    pub fn lookup(&self, instance_id: &InstanceId, contact: &ContactRef) -> Option<OptOutRecord> {
        let instance = *self.instance_numbers.get(instance_id)?;
        let mut records = self.slots(instance, contact).into_iter().flatten().map(|slot| self.unpack(slot));
        let first = records.next()?;
        Some(match records.next() {
            Some(second) => joined(&first, &second),
            None => first,
        })
    }

    /// What a decision comes to, without inserting it: make the record durable, then [`Self::insert`] it.
    pub fn decide(&self, decision: &Decision, now: Timestamp) -> Merged {
        merge(self.lookup(&decision.instance_id, &decision.contact).as_ref(), decision, now)
    }

    /// What a record comes to: one from the control plane or from disk, or the result of
    /// [`Self::decide`]. Merges, so that neither order nor repetition matters, and no opt-out is lost.
    /// Says whether anything changed.
    ///
    /// A key belongs to one record. When the contact's keys are those of two records, these become one;
    /// a key that the contact no longer has keeps a record of its own, as it stood before.
    pub fn insert(&mut self, record: &OptOutRecord) -> bool {
        let instance = self.instance_number(record);
        let matched = self.slots(instance, &record.contact);
        let known = self.lookup(&record.instance_id, &record.contact);
        let merged = merge_record(known.as_ref(), record, record.update_time);
        if !merged.changed && matched[1].is_none() {
            return false;
        }
        let before: Vec<OptOutRecord> = matched.into_iter().flatten().map(|slot| self.remove(slot)).collect();
        self.put(instance, &merged.record);
        for left_over in before.iter().filter_map(|old| old.left_over(&merged.record)) {
            self.put(instance, &left_over);
        }
        true
    }

    /// [`Self::decide`] and [`Self::insert`] in one, for callers that need nothing in between.
    pub fn apply(&mut self, decision: &Decision, now: Timestamp) -> Merged {
        let merged = self.decide(decision, now);
        self.insert(&merged.record);
        merged
    }

    /// The record with which an opt-out follows its contact to a new number or user id (Meta:
    /// `user_changed_number`, `user_changed_user_id`), without inserting it; none when nothing is known of
    /// the old keys, or nothing would change. The old keys keep their record.
    pub fn follow(
        &self,
        instance_id: &InstanceId,
        from: &ContactRef,
        to: &ContactRef,
        now: Timestamp,
    ) -> Option<Merged> {
        let moved = self.lookup(instance_id, from)?.copy_to(to.clone(), now);
        let merged = merge_record(self.lookup(instance_id, to).as_ref(), &moved, now);
        merged.changed.then_some(merged)
    }

    /// The record that becomes one for both keys of a contact, by [`link`], without inserting it. Costs two
    /// look-ups where there is nothing to link.
    pub fn link(&self, instance_id: &InstanceId, contact: &ContactRef, now: Timestamp) -> Option<Merged> {
        let (phone, user_id) = contact.phone.as_ref().zip(contact.user_id.as_deref())?;
        let instance = *self.instance_numbers.get(instance_id)?;
        let by_phone = self.phones.get(&(instance, match_number(phone))).copied();
        let by_user_id = self.user_ids.get(&(instance, user_id.into())).copied();
        if by_phone == by_user_id {
            return None;
        }
        let [by_phone, by_user_id] = [by_phone, by_user_id].map(|slot| slot.map(|slot| self.unpack(slot)));
        link(contact, by_phone.as_ref(), by_user_id.as_ref(), now)
    }

    /// Every record, in no order.
    pub fn iter(&self) -> impl Iterator<Item = OptOutRecord> + '_ {
        (0..).zip(&self.entries).filter(|(_, entry)| entry.is_some()).map(|(slot, _)| self.unpack(slot))
    }

    /// The slots of a contact's keys, each once: the phone's, then the user id's.
    fn slots(&self, instance: u32, contact: &ContactRef) -> [Option<u32>; 2] {
        let by_phone = contact
            .phone
            .as_ref()
            .and_then(|phone| self.phones.get(&(instance, match_number(phone))).copied());
        let by_user_id = contact
            .user_id
            .as_deref()
            .and_then(|user_id| self.user_ids.get(&(instance, user_id.into())).copied())
            .filter(|slot| Some(*slot) != by_phone);
        if by_phone.is_some() { [by_phone, by_user_id] } else { [by_user_id, None] }
    }

    fn put(&mut self, instance: u32, record: &OptOutRecord) {
        let entry = self.pack(instance, record);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).expect("four thousand million records do not fit in memory")
        });
        if let Some(phone) = &record.contact.phone {
            self.phones.insert((instance, match_number(phone)), slot);
        }
        if let Some(user_id) = &entry.user_id {
            self.user_ids.insert((instance, Arc::clone(user_id)), slot);
        }
        self.entries[slot as usize] = Some(entry);
    }

    fn remove(&mut self, slot: u32) -> OptOutRecord {
        let record = self.unpack(slot);
        let entry = self.entries[slot as usize].take().expect("an indexed slot is taken");
        if let Some(phone) = &record.contact.phone {
            self.phones.remove(&(entry.instance, match_number(phone)));
        }
        if let Some(user_id) = entry.user_id {
            self.user_ids.remove(&(entry.instance, user_id));
        }
        self.free.push(slot);
        record
    }

    fn instance_number(&mut self, record: &OptOutRecord) -> u32 {
        if let Some(number) = self.instance_numbers.get(&record.instance_id) {
            return *number;
        }
        let number = u32::try_from(self.instances.len())
            .expect("four thousand million instances do not fit in memory");
        self.instances.push((record.tenant_id.clone(), record.instance_id.clone()));
        self.instance_numbers.insert(record.instance_id.clone(), number);
        number
    }

    fn keyword_number(&mut self, keyword: &str) -> u32 {
        if let Some(number) = self.keyword_numbers.get(keyword) {
            return *number;
        }
        let keyword: Arc<str> = keyword.into();
        self.keywords.push(Arc::clone(&keyword));
        let number =
            u32::try_from(self.keywords.len()).expect("four thousand million keywords do not fit in memory");
        self.keyword_numbers.insert(keyword, number);
        number
    }

    fn pack(&mut self, instance: u32, record: &OptOutRecord) -> Entry {
        let full = record.full.as_ref().map(|mark| self.pack_mark(mark));
        let marketing = record.marketing.as_ref().map(|mark| self.pack_mark(mark));
        let message_ids = [&record.full, &record.marketing].map(|mark| {
            let here = mark.as_ref().filter(|mark| mark.origin == Origin::Here);
            here.and_then(|mark| mark.external_message_id.clone())
        });
        Entry {
            id: record.id,
            instance,
            phone: record.contact.phone.as_ref().map_or(0, |phone| number(phone.digits())),
            user_id: record.contact.user_id.as_deref().map(Arc::from),
            full,
            marketing,
            change_number: record.change_number,
            create_time: record.create_time.as_microsecond(),
            update_time: record.update_time.as_microsecond(),
            message_ids: message_ids.iter().any(Option::is_some).then(|| Box::new(message_ids)),
        }
    }

    fn pack_mark(&mut self, mark: &Mark) -> PackedMark {
        PackedMark {
            event_time: mark.event_time.as_microsecond(),
            keyword: mark.keyword.as_ref().map_or(0, |keyword| self.keyword_number(keyword)),
            reason: mark.reason,
            direction: mark.direction,
            origin: mark.origin,
        }
    }

    fn unpack(&self, slot: u32) -> OptOutRecord {
        let entry = self.entries[slot as usize].as_ref().expect("an indexed slot is taken");
        let (tenant_id, instance_id) = &self.instances[entry.instance as usize];
        let message_id = |index: usize| entry.message_ids.as_ref().and_then(|ids| ids[index].clone());
        OptOutRecord {
            id: entry.id,
            tenant_id: tenant_id.clone(),
            instance_id: instance_id.clone(),
            contact: ContactRef {
                phone: (entry.phone != 0).then(|| normalize_phone(&format!("+{}", entry.phone))).flatten(),
                user_id: entry.user_id.as_deref().map(Box::from),
            },
            full: entry.full.map(|mark| self.unpack_mark(mark, message_id(0))),
            marketing: entry.marketing.map(|mark| self.unpack_mark(mark, message_id(1))),
            change_number: entry.change_number,
            note: None,
            create_time: time(entry.create_time),
            update_time: time(entry.update_time),
        }
    }

    fn unpack_mark(&self, mark: PackedMark, external_message_id: Option<Box<str>>) -> Mark {
        let keyword = (mark.keyword as usize).checked_sub(1).and_then(|index| self.keywords.get(index));
        Mark {
            event_time: time(mark.event_time),
            direction: mark.direction,
            reason: mark.reason,
            origin: mark.origin,
            keyword: keyword.map(|keyword| Box::from(&**keyword)),
            external_message_id,
        }
    }
}

fn match_number(phone: &Phone) -> u64 {
    number(&phone.match_key())
}

fn number(digits: &str) -> u64 {
    digits.parse().expect("a phone number has at most 15 digits, the first not 0")
}

fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).expect("it came from a Timestamp")
}

#[cfg(test)]
mod tests;
