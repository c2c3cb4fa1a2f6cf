//! What a provider says, in our words: which instance it is about, the events, who gets them, and the wishes
//! of contacts. Pure: the same callback and configuration always give the same.

use std::sync::Arc;

use gateway_core::{
    event::{Contact, Content, Event, EventType, ProviderNotice},
    id::{EventId, base32},
    opt_out::{
        ContactRef, Decision, OptOutDirection, OptOutReason, OptOutScope, Origin as TakenBy, find_keyword,
    },
    payload,
    phone::{Phone, normalize_phone},
    route::{AccountOf, instances_of_account, is_selected, subscribers},
    snapshot::{InstanceConfig, RouteConfig, Snapshot, canonical_number},
    time::to_proto,
};
use gateway_proto::v1;
use jiff::Timestamp;

mod log;

pub use log::log;

use super::buffer::{Entry, NewEvent, NewUnrouted};
use crate::{
    control_plane::MESSAGE_BYTES_MAX,
    opt_out::{Sighting, Wish, WishKind, keyword_texts},
    provider::{
        Item, MessageItem, NoticeItem, Part, PreferenceIdentity, PreferenceItem, StatusItem, Target,
        contact::of_persons, json::identity,
    },
};

/// Longest webhook body of an event, and longest part that is kept, in bytes. With the columns of its log it stays
/// within one message to the control plane: a larger one could never be reported, nor anything behind it. Bodies
/// can be longer than their callback, which may say in one byte what takes six in JSON.
pub const EVENT_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 1024 * 1024;

/// The agent that takes callbacks.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Its id.
    pub agent_id: String,
    /// Where it runs.
    pub region: String,
}

/// What one callback comes to.
#[derive(Default)]
pub struct Normalized {
    /// Events, parts that nobody claims, and the marks of wishes that came alone.
    pub entry: Entry,
    /// Wishes of contacts, in the order in which they came. Deciding them takes what is known of the
    /// contact, and may add events.
    pub wishes: Vec<Wish>,
    /// Contacts that are named by phone number and user id at once, in messages and statuses.
    pub sightings: Vec<Sighting>,
}

impl Normalized {
    /// Whether an event or a part is too large to be reported.
    pub fn is_too_large(&self) -> bool {
        let kept = |part: &NewUnrouted| {
            let v1::UnroutedCallback { provider_number_id, provider_account_id, payload_json, .. } =
                &part.callback;
            provider_number_id.len() + provider_account_id.len() + payload_json.len()
        };
        self.entry.events.iter().any(|event| event.log.payload_json.len() > EVENT_BYTES_MAX)
            || self.entry.unrouted.iter().any(|part| kept(part) > EVENT_BYTES_MAX)
    }
}

/// What normalizing works with.
pub struct Normalizer<'a> {
    /// The route the callback came in on.
    pub route: &'a RouteConfig,
    /// The configuration.
    pub snapshot: &'a Snapshot,
    /// This agent.
    pub origin: &'a Origin,
    /// When the callback was taken.
    pub receive_time: Timestamp,
    /// Set for a callback that was kept and comes again, now: what still nobody claims is then new once
    /// more, because the control plane has forgotten it.
    pub replay_time: Option<Timestamp>,
}

impl Normalizer<'_> {
    /// The events and wishes of a callback's parts.
    pub fn normalize(&self, parts: Vec<Part<'_>>) -> Normalized {
        let mut normalized = Normalized::default();
        for mut part in parts {
            let instances = self.instances(&part);
            if self.is_of_other_side(&part.target) {
                part.turn();
            }
            match instances.split_last() {
                None => normalized.entry.unrouted.push(self.unrouted(&part)),
                Some((last, others)) => {
                    for instance in others {
                        self.take(instance, &part.target, part.items.clone(), &mut normalized);
                    }
                    self.take(last, &part.target, part.items, &mut normalized);
                }
            }
        }
        normalized
    }

    fn take(
        &self,
        instance: &Arc<InstanceConfig>,
        target: &Target,
        items: Vec<Item>,
        normalized: &mut Normalized,
    ) {
        let business_phone = target.display_phone.as_deref().and_then(normalize_phone);
        let business_phone = business_phone.or_else(|| instance.phone.clone());
        let mut of_instance =
            OfInstance { normalizer: self, instance, business_phone, newest_event: None, normalized };
        let mut items = items.into_iter().map(of_persons).peekable();
        while let Some(item) = items.next() {
            of_instance.item(item, items.peek());
        }
    }

    /// Whom a part is about. A number belongs to one instance. What is about an account and carries no
    /// number goes to the instances that [`instances_of_account`] finds, if the route is for that account.
    fn instances(&self, part: &Part<'_>) -> Vec<Arc<InstanceConfig>> {
        let Target { number, account_id, .. } = &part.target;
        if let Some(instance) = self.by_number(&part.target) {
            return vec![instance];
        }
        let of_route = self.snapshot.instances_of(&self.route.id);
        let account_fits =
            self.route.provider_account_id.as_ref().is_none_or(|ours| Some(ours) == account_id.as_ref());
        let mut all: Vec<_> = instances_of_account(of_route, account_id.as_deref(), |one| AccountOf {
            tenant_id: one.tenant_id.as_str(),
            provider_account_id: one.provider_account_id.as_deref(),
        });
        let only_notices = part.items.iter().all(|item| matches!(item, Item::Notice(_)));
        if number.is_none() && account_fits && (only_notices || all.len() == 1) {
            all.sort_unstable_by(|one, two| one.id.cmp(&two.id));
            all.into_iter().cloned().collect()
        } else {
            Vec::new()
        }
    }

    /// The instance that claims a number. The display phone decides only where a callback carries no number, or
    /// two names of it, of which an instance can have a third (Gupshup's two versions name a number differently).
    /// Otherwise a number that nobody claims stays unrouted, whatever is displayed with it.
    fn by_number(&self, target: &Target) -> Option<Arc<InstanceConfig>> {
        let by_name = [&target.number, &target.other_number]
            .into_iter()
            .flatten()
            .find_map(|number| self.snapshot.instance_by_number(&self.route.id, number));
        if by_name.is_some() || (target.number.is_some() && target.other_number.is_none()) {
            return by_name.cloned();
        }
        let phone = normalize_phone(target.display_phone.as_deref()?)?;
        let claims = |instance: &&Arc<InstanceConfig>| {
            instance.phone.as_ref() == Some(&phone)
                || canonical_number(&instance.provider_number_id) == phone.digits()
        };
        self.snapshot.instances_of(&self.route.id).iter().find(claims).cloned()
    }

    /// Whether of a report's two sides only the second is a number of ours.
    fn is_of_other_side(&self, target: &Target) -> bool {
        let is_ours = |number: &Option<Box<str>>| {
            let number = number.as_deref();
            number.is_some_and(|number| self.snapshot.instance_by_number(&self.route.id, number).is_some())
        };
        target.either_side && !is_ours(&target.number) && is_ours(&target.other_number)
    }

    fn unrouted(&self, part: &Part<'_>) -> NewUnrouted {
        let body = part.original.concat();
        let hash = identity(&[&body]);
        let again = self.replay_time.map(|time| time.to_string()).unwrap_or_default();
        let mark = EventId::derive(&["unrouted", self.route.id.as_str(), &hash, &again]);
        let text = |value: &Option<Box<str>>| value.as_deref().unwrap_or_default().to_owned();
        let callback = v1::UnroutedCallback {
            id: format!("unrouted_{}", base32(mark.as_bytes())),
            inbound_route_id: self.route.id.to_string(),
            provider_number_id: text(&part.target.number),
            provider_account_id: text(&part.target.account_id),
            receive_time: Some(to_proto(self.receive_time)),
            payload_json: body,
            agent_id: self.origin.agent_id.clone(),
            payload_omitted: false,
        };
        NewUnrouted { mark, callback }
    }
}

/// Normalizing a part for one instance.
struct OfInstance<'a> {
    normalizer: &'a Normalizer<'a>,
    instance: &'a Arc<InstanceConfig>,
    business_phone: Option<Phone>,
    /// The event of the newest message or status: what a wish that follows it came with.
    newest_event: Option<EventId>,
    normalized: &'a mut Normalized,
}

impl OfInstance<'_> {
    fn item(&mut self, item: Item, next: Option<&Item>) {
        match item {
            Item::Message(item) => {
                let own = match next {
                    Some(Item::Preference(own)) if own.identity == PreferenceIdentity::ItemBefore => {
                        Some(own)
                    }
                    _ => None,
                };
                self.message(*item, own.map(|own| &**own));
            }
            Item::Status(item) => self.status(*item),
            Item::Preference(item) => self.preference(&item),
            Item::ContactChange(change) => {
                let kind = WishKind::Follow { from: contact_ref(&change.from), to: contact_ref(&change.to) };
                self.wish(Wish { mark: self.newest_event, ..self.wish_of(change.to, kind, None) });
            }
            Item::Notice(item) => self.notice(*item),
        }
    }

    /// A message. What the provider itself made of it, `own`, counts more than what we make of its words.
    fn message(&mut self, item: MessageItem, own: Option<&PreferenceItem>) {
        let event_type = if item.is_echo { EventType::MessageSent } else { EventType::MessageReceived };
        let id = self.event_id(event_type, [&item.identity, "", "", ""]);
        self.newest_event = Some(id);
        // Such a message tells of a change, from one number to another.
        if &*item.message.message_type != "system" {
            self.sighting(&item.contact, id);
        }
        let agrees = |decision: &Decision| {
            let wants_out = decision.direction == OptOutDirection::OptOut;
            own.is_none_or(|own| own.opts_out == wants_out && own.scope == decision.scope)
        };
        let wish = if item.is_echo { None } else { self.keyword_wish(&item).filter(agrees) };
        let business_phone = item.business_phone.or_else(|| self.business_phone.clone());
        let wish = wish.map(|decision| {
            let wish = self.wish_of(item.contact.clone(), WishKind::Decide(decision), item.time);
            Wish { mark: Some(id), message_text: item.message.text.clone(), ..wish }
        });
        let content = Content::Message(Box::new(item.message));
        let event = self.event(id, event_type, content, item.time);
        self.push(Event { business_phone, contact: item.contact, ..event });
        if let Some(wish) = wish {
            self.wish(wish);
        }
    }

    /// What a contact's own message asks for, if it is a keyword.
    fn keyword_wish(&self, item: &MessageItem) -> Option<Decision> {
        let policy = self.normalizer.snapshot.policy(&self.instance.id);
        let found = find_keyword(&policy.keywords, &keyword_texts(&item.message))?;
        let reason = match found.direction {
            OptOutDirection::OptOut => OptOutReason::RecipientRequestedStop,
            OptOutDirection::OptIn => OptOutReason::RecipientRequestedStart,
        };
        Some(Decision {
            keyword: Some(found.keyword.into()),
            external_message_id: item.message.external_message_id.clone(),
            ..self.decision(&item.contact, found.direction, found.scope, reason, item.time)
        })
    }

    fn status(&mut self, item: StatusItem) {
        let StatusItem { contact, status, identity, event_type, time } = item;
        let code = status.error.as_ref().and_then(|error| error.code).map(|code| code.to_string());
        let every = EventType::MessageStatusUpdated;
        let is_wanted = || is_selected(self.normalizer.snapshot, &self.instance.id, every);
        let again = (event_type.is_none() || is_wanted()).then_some(every);
        self.newest_event = None;
        for event_type in event_type.into_iter().chain(again) {
            // Not the provider's word: some have several for one event, which happens once.
            let word = payload::status_word(event_type, &status.status);
            let parts = [&*identity, word, &*status.recipient, code.as_deref().unwrap_or_default()];
            let id = self.event_id(event_type, parts);
            let event = self.event(id, event_type, Content::Status(Box::new(status.clone())), time);
            self.push(Event { contact: contact.clone(), ..event });
            self.newest_event.get_or_insert(id);
        }
        if let Some(id) = self.newest_event {
            self.sighting(&contact, id);
        }
    }

    fn preference(&mut self, item: &PreferenceItem) {
        let direction = if item.opts_out { OptOutDirection::OptOut } else { OptOutDirection::OptIn };
        let reason =
            if item.from_error { OptOutReason::ProviderError } else { OptOutReason::ProviderPreference };
        let mark = match &item.identity {
            PreferenceIdentity::ItemBefore => self.newest_event,
            PreferenceIdentity::Own(identity) => {
                let provider = self.normalizer.route.provider.name();
                let mark = EventId::derive(&["preference", provider, self.instance.id.as_str(), identity]);
                self.normalized.entry.marks.push(mark);
                Some(mark)
            }
            PreferenceIdentity::Unknown => None,
        };
        let decision = Decision {
            external_message_id: item.external_message_id.clone(),
            ..self.decision(&item.contact, direction, item.scope, reason, item.time)
        };
        let wish = self.wish_of(item.contact.clone(), WishKind::Decide(decision), item.time);
        self.wish(Wish { mark, ..wish });
    }

    fn notice(&mut self, item: NoticeItem) {
        let id = self.event_id(EventType::ProviderEvent, [&item.identity, "", "", ""]);
        let content = Content::Provider(ProviderNotice { field: item.field, raw: item.raw });
        self.push(self.event(id, EventType::ProviderEvent, content, item.time));
    }

    /// The id, from the provider's id, status, recipient and error code: a repeat of the item gives it again.
    fn event_id(&self, event_type: EventType, [id, status, recipient, code]: [&str; 4]) -> EventId {
        let provider = self.normalizer.route.provider.name();
        EventId::derive(&[
            event_type.name(),
            provider,
            self.instance.id.as_str(),
            id,
            status,
            recipient,
            code,
        ])
    }

    /// The provider's time, or else ours, as coarse as a provider's: of what happens within its second neither
    /// is the earlier.
    fn time(&self, time: Option<Timestamp>) -> Timestamp {
        time.unwrap_or_else(|| self.receive_second())
    }

    fn receive_second(&self) -> Timestamp {
        let receive_time = self.normalizer.receive_time;
        Timestamp::from_second(receive_time.as_second()).unwrap_or(receive_time)
    }

    fn event(&self, id: EventId, event_type: EventType, content: Content, time: Option<Timestamp>) -> Event {
        let about = About {
            instance: self.instance,
            contact: Contact::default(),
            business_phone: self.business_phone.clone(),
            event_time: self.time(time),
            is_time_ours: time.is_none(),
            receive_time: self.normalizer.receive_time,
        };
        about.event(id, event_type, content)
    }

    fn push(&mut self, event: Event) {
        let new = record(&event, self.normalizer.snapshot, self.normalizer.origin);
        self.normalized.entry.events.push(new);
    }

    fn decision(
        &self,
        contact: &Contact,
        direction: OptOutDirection,
        scope: OptOutScope,
        reason: OptOutReason,
        time: Option<Timestamp>,
    ) -> Decision {
        let mut event_time = self.time(time);
        if self.normalizer.replay_time.is_some() && direction == OptOutDirection::OptIn {
            // A callback that was kept says nothing of the time since it came.
            event_time = event_time.min(self.receive_second());
        }
        Decision {
            tenant_id: self.instance.tenant_id.clone(),
            instance_id: self.instance.id.clone(),
            contact: contact_ref(contact),
            direction,
            scope,
            reason,
            keyword: None,
            external_message_id: None,
            note: None,
            event_time,
            origin: TakenBy::Here,
        }
    }

    /// A wish without mark and text.
    fn wish_of(&self, contact: Contact, kind: WishKind, time: Option<Timestamp>) -> Wish {
        Wish {
            instance: Arc::clone(self.instance),
            contact,
            business_phone: self.business_phone.clone(),
            mark: None,
            message_text: None,
            is_time_ours: time.is_none(),
            kind,
        }
    }

    /// Notes whom an event names by both keys, if that is true today, and not the business.
    fn sighting(&mut self, contact: &Contact, mark: EventId) {
        let Some(phone) = &contact.phone else { return };
        let own = [self.business_phone.as_ref(), self.instance.phone.as_ref()];
        let is_own = own.into_iter().flatten().any(|own| own.match_key() == phone.match_key());
        if contact.user_id.is_some() && !is_own && self.normalizer.replay_time.is_none() {
            self.normalized.sightings.push(Sighting {
                instance: Arc::clone(self.instance),
                contact: contact.clone(),
                business_phone: self.business_phone.clone(),
                mark,
            });
        }
    }

    fn wish(&mut self, wish: Wish) {
        self.normalized.wishes.push(wish);
    }
}

/// The keys of a contact.
pub fn contact_ref(contact: &Contact) -> ContactRef {
    ContactRef { phone: contact.phone.clone(), user_id: contact.user_id.clone() }
}

/// What every event of an instance and a contact has.
pub struct About<'a> {
    /// The instance.
    pub instance: &'a InstanceConfig,
    /// The person.
    pub contact: Contact,
    /// The business number.
    pub business_phone: Option<Phone>,
    /// When it happened.
    pub event_time: Timestamp,
    /// Whether that time is ours because the provider gave none.
    pub is_time_ours: bool,
    /// When the agent took it.
    pub receive_time: Timestamp,
}

impl About<'_> {
    /// An event with this content.
    pub fn event(self, id: EventId, event_type: EventType, content: Content) -> Event {
        Event {
            id,
            event_type,
            tenant_id: self.instance.tenant_id.clone(),
            instance_id: self.instance.id.clone(),
            instance_name: Arc::clone(&self.instance.display_name),
            contact: self.contact,
            business_phone: self.business_phone,
            event_time: self.event_time,
            is_time_ours: self.is_time_ours,
            receive_time: self.receive_time,
            content,
        }
    }
}

/// An event as the buffer takes it: its log, its frozen body, and who gets it now.
pub fn record(event: &Event, snapshot: &Snapshot, origin: &Origin) -> NewEvent {
    let subscriptions = subscribers(snapshot, &event.instance_id, event.event_type);
    NewEvent {
        id: event.id,
        event_type: event.event_type,
        log: log(event, origin),
        subscriptions: subscriptions.map(|subscription| subscription.id.clone()).collect(),
    }
}

#[cfg(test)]
mod tests;
