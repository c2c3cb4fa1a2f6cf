//! An agent's whole configuration, and applying a delta to it. Good resources of a delta apply even when
//! others are refused; a refused one keeps its last good value.

mod convert;
mod destination_settings;
pub mod digest;
pub mod export;

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use gateway_proto::v1;
use jiff::Timestamp;

pub use crate::inbound_route::RouteSecretKind;
use crate::{
    event::Provider,
    filter::EventFilter,
    id::{InboundRouteId, InstanceId, TenantId, WebhookSubscriptionId},
    opt_out::{KeywordSet, OptOutPolicy},
    phone::{Phone, normalize_phone},
    signature::{SigningKey, WebhookSecret},
    violation::FieldViolations,
};
use convert::policy_config;
pub use destination_settings::{
    Authentication, ClientCertificate, OAuth2, ORDERING_ATTEMPTS_DEFAULT, Ordering,
};

/// Longest whole attempt when the subscription does not say.
pub const ATTEMPT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);
/// Attempts that run at once per subscription when it does not say.
pub const CONCURRENCY_DEFAULT: usize = 8;

/// An inbound route as agents need it.
pub struct RouteConfig {
    /// The route's id.
    pub id: InboundRouteId,
    /// The company that calls.
    pub provider: Provider,
    /// The token in the callback path.
    pub callback_token: Box<str>,
    /// The provider's account; none for any.
    pub provider_account_id: Option<Box<str>>,
    /// Live secrets.
    pub secrets: Vec<RouteSecret>,
    /// Whether the token in the path is proof enough.
    pub callback_token_suffices: bool,
}

/// A secret of a route.
pub struct RouteSecret {
    /// What it is for.
    pub kind: RouteSecretKind,
    /// The value.
    pub value: Box<str>,
}

impl RouteConfig {
    /// The live secrets of one kind.
    pub fn secrets_of(&self, kind: RouteSecretKind) -> impl Iterator<Item = &str> {
        self.secrets.iter().filter(move |secret| secret.kind == kind).map(|secret| &*secret.value)
    }
}

/// An instance as agents need it.
pub struct InstanceConfig {
    /// The instance's id.
    pub id: InstanceId,
    /// Its tenant.
    pub tenant_id: TenantId,
    /// The name in webhook bodies.
    pub display_name: Arc<str>,
    /// The route that takes its callbacks.
    pub inbound_route_id: InboundRouteId,
    /// The provider's name of the number.
    pub provider_number_id: Box<str>,
    /// The business number.
    pub phone: Option<Phone>,
    /// The provider's account that the number belongs to.
    pub provider_account_id: Option<Box<str>>,
}

/// A webhook subscription as agents need it.
pub struct SubscriptionConfig {
    /// The subscription's id.
    pub id: WebhookSubscriptionId,
    /// The instance whose events are delivered.
    pub instance_id: InstanceId,
    /// Where to.
    pub destination: url::Url,
    /// Which events.
    pub events: EventFilter,
    /// Whether deliveries are held.
    pub paused: bool,
    /// Headers added to every webhook.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Longest whole attempt.
    pub attempt_timeout: Duration,
    /// Attempts that run at once.
    pub concurrency_max: usize,
    /// Secrets that sign, newest first, each with the time it stops.
    pub signing_secrets: Vec<(WebhookSecret, Option<Timestamp>)>,
    /// Ed25519 keys that sign too (`v1a`), newest first, each with the time it stops; none unless the
    /// subscription asks for `v1a`.
    pub signing_keys: Vec<(SigningKey, Option<Timestamp>)>,
    /// Delay before each attempt, the first included.
    pub retry_schedule: Arc<[Duration]>,
    /// Attempts begun per second on one agent; none for no limit.
    pub rate_per_second_max: Option<NonZeroU32>,
    /// In which order deliveries are attempted.
    pub ordering: Ordering,
    /// How webhooks prove to the destination that they may come in.
    pub authentication: Option<Authentication>,
    /// The certificate shown to a destination that asks for one.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// PEM certificates of issuers trusted beside the public ones.
    pub extra_ca_pem: Option<Arc<str>>,
}

/// How an instance understands keywords.
pub struct PolicyConfig {
    /// The policy.
    pub policy: OptOutPolicy,
    /// Its keywords, compiled.
    pub keywords: Arc<KeywordSet>,
}

/// What a configuration says about a webhook subscription that is owed deliveries.
pub enum SubscriptionLookup<'a> {
    /// It is known with these settings, or was until it departed: its deliveries are made.
    Known(&'a Arc<SubscriptionConfig>),
    /// It was deleted: its deliveries are cancelled.
    Deleted,
    /// Nothing: its deliveries wait.
    Unknown,
}

/// A resource that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The oneof field of `ConfigResource`.
    pub resource_type: &'static str,
    /// Its id.
    pub id: String,
    /// The version in which it was refused.
    pub version: u64,
    /// The bad fields.
    pub violations: FieldViolations,
}

/// A number as the provider names it, for lookup: phone-like values compare as digits.
fn number_key(route: &InboundRouteId, number: &str) -> (InboundRouteId, Box<str>) {
    (route.clone(), canonical_number(number).into())
}

/// The form in which `provider_number_id` values compare: digits for what is written like a phone number
/// (`+`, `whatsapp:` or a JID), the value itself otherwise.
pub fn canonical_number(number: &str) -> String {
    let number = number.trim();
    match normalize_phone(number) {
        Some(phone) => phone.digits().to_owned(),
        None => number.to_owned(),
    }
}

/// An agent's whole configuration. Cheap to share, replaced whole by [`Snapshot::apply`].
#[derive(Clone, Default)]
pub struct Snapshot {
    /// The version it stands at.
    pub version: u64,
    /// The store the version belongs to.
    pub store_epoch: Arc<str>,
    routes: HashMap<InboundRouteId, Arc<RouteConfig>>,
    routes_by_token: HashMap<Box<str>, Arc<RouteConfig>>,
    instances: HashMap<InstanceId, Arc<InstanceConfig>>,
    instances_by_number: HashMap<(InboundRouteId, Box<str>), Arc<InstanceConfig>>,
    instances_by_route: HashMap<InboundRouteId, Vec<Arc<InstanceConfig>>>,
    subscriptions: HashMap<WebhookSubscriptionId, Arc<SubscriptionConfig>>,
    subscriptions_by_instance: HashMap<InstanceId, Vec<Arc<SubscriptionConfig>>>,
    /// Subscriptions that are not for this agent any more, with their last settings: new events do not go
    /// to them, but what they are owed is still delivered.
    departed: HashMap<WebhookSubscriptionId, Arc<SubscriptionConfig>>,
    deleted: HashSet<Box<str>>,
    policies: HashMap<InstanceId, Arc<PolicyConfig>>,
}

impl Snapshot {
    /// The route of a callback token.
    pub fn route_by_token(&self, token: &str) -> Option<&Arc<RouteConfig>> {
        self.routes_by_token.get(token)
    }

    /// A route.
    pub fn route(&self, id: &str) -> Option<&Arc<RouteConfig>> {
        self.routes.get(id)
    }

    /// An instance.
    pub fn instance(&self, id: &str) -> Option<&Arc<InstanceConfig>> {
        self.instances.get(id)
    }

    /// The instance that claims a number on a route.
    pub fn instance_by_number(&self, route: &InboundRouteId, number: &str) -> Option<&Arc<InstanceConfig>> {
        self.instances_by_number.get(&number_key(route, number))
    }

    /// The instances of a route.
    pub fn instances_of(&self, route: &InboundRouteId) -> &[Arc<InstanceConfig>] {
        self.instances_by_route.get(route).map_or(&[], Vec::as_slice)
    }

    /// A webhook subscription.
    pub fn subscription(&self, id: &str) -> Option<&Arc<SubscriptionConfig>> {
        self.subscriptions.get(id)
    }

    /// What becomes of the deliveries that a webhook subscription is owed.
    pub fn look_up_subscription(&self, id: &str) -> SubscriptionLookup<'_> {
        match self.subscriptions.get(id).or_else(|| self.departed.get(id)) {
            Some(settings) => SubscriptionLookup::Known(settings),
            None if self.deleted.contains(id) => SubscriptionLookup::Deleted,
            None => SubscriptionLookup::Unknown,
        }
    }

    /// The webhook subscriptions of an instance.
    pub fn subscriptions_of(&self, instance: &InstanceId) -> &[Arc<SubscriptionConfig>] {
        self.subscriptions_by_instance.get(instance).map_or(&[], Vec::as_slice)
    }

    /// All webhook subscriptions, in no order.
    pub fn subscriptions(&self) -> impl Iterator<Item = &Arc<SubscriptionConfig>> {
        self.subscriptions.values()
    }

    /// The opt-out policy of an instance: its own, or the default.
    pub fn policy(&self, instance: &InstanceId) -> Arc<PolicyConfig> {
        self.policies.get(instance).cloned().unwrap_or_else(default_policy)
    }

    /// The configuration after a response of the config stream, and what of it was refused. A `snapshot`
    /// response replaces everything, but a refused resource keeps its last good value, and subscriptions that
    /// it does not name have departed. What the control plane cannot read keeps its last good value, too.
    #[must_use]
    pub fn apply(&self, response: &v1::StreamConfigResponse) -> (Self, Vec<Refused>) {
        self.apply_parts([response])
    }

    /// As [`Snapshot::apply`], of a response in parts: the first says whether it replaces everything, the last
    /// has the version. Only one part needs to be in memory at a time.
    #[must_use]
    pub fn apply_parts<R: Borrow<v1::StreamConfigResponse>>(
        &self,
        parts: impl IntoIterator<Item = R>,
    ) -> (Self, Vec<Refused>) {
        let mut begun: Option<Self> = None;
        let mut refused = Vec::new();
        for part in parts {
            let part = part.borrow();
            let next =
                begun.get_or_insert_with(|| if part.snapshot { self.all_departed() } else { self.clone() });
            next.version = part.version;
            next.store_epoch = part.store_epoch.as_str().into();
            for resource in &part.upserts {
                if let Err(refusal) = next.upsert(resource, self) {
                    refused.push(refusal);
                }
            }
            for named in &part.unreadable {
                next.keep_last_good(named, self);
            }
            for removal in &part.removals {
                next.remove(removal);
            }
        }
        let mut next = begun.unwrap_or_else(|| self.clone());
        next.rebuild_lookups();
        (next, refused)
    }

    /// Nothing, but for what is remembered of subscriptions that are not there.
    fn all_departed(&self) -> Self {
        let mut departed = self.departed.clone();
        departed.extend(self.subscriptions.iter().map(|(id, settings)| (id.clone(), Arc::clone(settings))));
        Self { departed, deleted: self.deleted.clone(), ..Self::default() }
    }

    fn upsert(&mut self, resource: &v1::ConfigResource, last_good: &Self) -> Result<(), Refused> {
        use v1::config_resource::Resource;
        let refuse = |resource_type, id: &str, violations| Refused {
            resource_type,
            id: id.to_owned(),
            version: resource.version,
            violations,
        };
        match &resource.resource {
            Some(Resource::InboundRoute(route)) => match RouteConfig::try_from(route) {
                Ok(good) => drop(self.routes.insert(good.id.clone(), Arc::new(good))),
                Err(violations) => {
                    keep(&mut self.routes, &last_good.routes, &route.id);
                    return Err(refuse("inbound_route", &route.id, violations));
                }
            },
            Some(Resource::Instance(instance)) => match InstanceConfig::try_from(instance) {
                Ok(good) => drop(self.instances.insert(good.id.clone(), Arc::new(good))),
                Err(violations) => {
                    keep(&mut self.instances, &last_good.instances, &instance.id);
                    return Err(refuse("instance", &instance.id, violations));
                }
            },
            Some(Resource::WebhookSubscription(config)) => {
                self.upsert_subscription(config, last_good)
                    .map_err(|(id, violations)| refuse("webhook_subscription", id, violations))?;
            }
            Some(Resource::OptOutPolicy(policy)) => match policy_config(policy) {
                Ok((id, good)) => drop(self.policies.insert(id, Arc::new(good))),
                Err(violations) => {
                    keep(&mut self.policies, &last_good.policies, &policy.instance_id);
                    return Err(refuse("opt_out_policy", &policy.instance_id, violations));
                }
            },
            None => {
                let mut violations = FieldViolations::new();
                violations.add("resource", "is of a kind that this agent does not know; update the agent");
                return Err(refuse("unknown", "", violations));
            }
        }
        Ok(())
    }

    /// Fails with the id.
    fn upsert_subscription<'a>(
        &mut self,
        config: &'a v1::WebhookSubscriptionConfig,
        last_good: &Self,
    ) -> Result<(), (&'a str, FieldViolations)> {
        let id = config.webhook_subscription.as_ref().map_or("", |subscription| &subscription.id);
        self.deleted.remove(id);
        let refused = match SubscriptionConfig::try_from(config) {
            Ok(good) => {
                self.subscriptions.insert(good.id.clone(), Arc::new(good));
                Ok(())
            }
            Err(violations) => {
                keep(&mut self.subscriptions, &last_good.subscriptions, id);
                Err((id, violations))
            }
        };
        if self.subscriptions.contains_key(id) {
            self.departed.remove(id);
        }
        refused
    }

    /// The control plane cannot read a resource: it stays what it was, if it was there.
    fn keep_last_good(&mut self, named: &v1::ConfigUnreadable, last_good: &Self) {
        let id = named.id.as_str();
        match named.r#type.as_str() {
            "inbound_route" => keep(&mut self.routes, &last_good.routes, id),
            "instance" => keep(&mut self.instances, &last_good.instances, id),
            "opt_out_policy" => keep(&mut self.policies, &last_good.policies, id),
            "webhook_subscription" => {
                keep(&mut self.subscriptions, &last_good.subscriptions, id);
                if self.subscriptions.contains_key(id) {
                    self.departed.remove(id);
                }
            }
            _ => {}
        }
    }

    fn remove(&mut self, removal: &v1::ConfigRemoval) {
        let id = removal.id.as_str();
        match removal.r#type.as_str() {
            "inbound_route" => drop(self.routes.remove(id)),
            "instance" => {
                self.instances.remove(id);
                self.policies.remove(id);
            }
            "webhook_subscription" => {
                let last = self.subscriptions.remove_entry(id);
                if removal.deleted {
                    self.departed.remove(id);
                    self.deleted.insert(id.into());
                } else {
                    self.departed.extend(last);
                }
            }
            "opt_out_policy" => drop(self.policies.remove(id)),
            _ => {}
        }
    }

    fn rebuild_lookups(&mut self) {
        self.routes_by_token =
            self.routes.values().map(|route| (route.callback_token.clone(), Arc::clone(route))).collect();
        self.instances_by_number = HashMap::with_capacity(self.instances.len());
        self.instances_by_route = HashMap::new();
        for instance in self.instances.values() {
            let key = number_key(&instance.inbound_route_id, &instance.provider_number_id);
            self.instances_by_number.insert(key, Arc::clone(instance));
            let of_route = self.instances_by_route.entry(instance.inbound_route_id.clone()).or_default();
            of_route.push(Arc::clone(instance));
        }
        self.subscriptions_by_instance = HashMap::new();
        for subscription in self.subscriptions.values() {
            let of_instance =
                self.subscriptions_by_instance.entry(subscription.instance_id.clone()).or_default();
            of_instance.push(Arc::clone(subscription));
        }
    }
}

fn keep<K: Clone + Eq + std::hash::Hash + std::borrow::Borrow<str>, V>(
    next: &mut HashMap<K, Arc<V>>,
    last_good: &HashMap<K, Arc<V>>,
    id: &str,
) {
    if let Some((id, value)) = last_good.get_key_value(id) {
        next.insert(id.clone(), Arc::clone(value));
    }
}

fn default_policy() -> Arc<PolicyConfig> {
    static DEFAULT: std::sync::LazyLock<Arc<PolicyConfig>> = std::sync::LazyLock::new(|| {
        let policy = OptOutPolicy::default();
        let keywords = KeywordSet::of(&policy);
        Arc::new(PolicyConfig { policy, keywords })
    });
    Arc::clone(&DEFAULT)
}

#[cfg(test)]
mod tests;
