//! `WebhookSubscriptionService`.

mod certificates;
mod moved;
mod secrets;
mod signing;

use gateway_core::{
    id::EventId,
    tenant::TenantScope,
    time,
    webhook_subscription::{PAUSE_REASON_CHARS_MAX, WebhookSubscription},
};
use gateway_proto::v1::{self, webhook_subscription_service_server::WebhookSubscriptionService, work::Work};
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::{
    authorize::{self, Caller},
    field_mask, instance, new_id,
    page::{LARGE_CHUNK, Page},
    repeat, status,
};
use crate::{
    app::State,
    audit::Audited,
    store::{Connection, WriteTx, damaged::Found, instances, requests, tenants, webhook_subscriptions},
    work::{DueClaim, WorkQueue},
};
pub(super) use secrets::masked;
use secrets::{keep_authentication, keep_client_certificate, set_headers};

const FIELDS: [&str; 14] = [
    "display_name",
    "destination_url",
    "events",
    "headers",
    "attempt_timeout",
    "concurrency_max",
    "retry_policy",
    "rate_per_second_max",
    "ordering",
    "ordering_attempts_max",
    "authentication",
    "client_certificate",
    "extra_ca_pem",
    "asymmetric_signature",
];
/// Fields with which a failing destination is mended: what failed before a change of them counts no more.
const MENDING_FIELDS: [&str; 5] =
    ["destination_url", "headers", "authentication", "client_certificate", "extra_ca_pem"];
/// Why a subscription is paused when the caller does not say.
const PAUSE_REASON_DEFAULT: &str = "paused by the operator";

/// What is delivered from an instance, and where to.
pub struct WebhookSubscriptionApi {
    state: State,
}

impl WebhookSubscriptionApi {
    /// The service over `state`.
    pub const fn new(state: State) -> Self {
        Self { state }
    }

    fn check(&self, subscription: &v1::WebhookSubscription) -> Result<WebhookSubscription, Status> {
        let checked = WebhookSubscription::from_proto(subscription, &self.state.config.destinations)
            .map_err(status::invalid)?;
        certificates::check(&checked, &subscription.extra_ca_pem).map_err(status::invalid)?;
        Ok(checked)
    }

    /// What failed until now is not held against the subscription any more. When that cannot be written the
    /// change goes on all the same: at worst it is paused once more, with its reason.
    async fn forget_failures(&self, id: &str) {
        if let Err(error) = self.state.logs.forget_failures(id, clock::now()).await {
            warn!(gateway.subscription.id = id, %error, "failed to forget the failures of a subscription");
        }
    }

    /// Callbacks that waited for an instance to have a subscription go on their way. The subscription stands
    /// whatever comes of it.
    async fn claim_unrouted(&self, instance_id: &str, due: &DueClaim) {
        let claimed = async {
            let mut connection = self.state.store.reader().await?;
            let instance = instances::find_any(&mut connection, instance_id).await?;
            drop(connection);
            match instance {
                Some(instance) => self.state.work.claim_unrouted(&instance).await,
                None => Ok(0),
            }
        };
        match claimed.await {
            Ok(_) => due.claimed(),
            Err(error) => {
                warn!(gateway.instance.id = instance_id, %error, "failed to claim unrouted callbacks");
            }
        }
    }

    async fn create(
        &self,
        transaction: &mut WriteTx,
        caller: &Caller,
        wanted: v1::WebhookSubscription,
    ) -> Result<v1::WebhookSubscription, Status> {
        let field = "webhook_subscription.instance_id";
        let instance = instance::find(transaction, &caller.tenants(), field, &wanted.instance_id).await?;
        let mut subscription = wanted;
        if subscription.id.is_empty() {
            subscription.id = new_id("sub_");
        }
        let now = clock::now();
        subscription.tenant_id = instance.tenant_id;
        subscription.set_state(v1::WebhookSubscriptionState::Active);
        subscription.pause_reason.clear();
        subscription.is_damaged = false;
        subscription.create_time = Some(time::to_proto(now));
        subscription.update_time = Some(time::to_proto(now));
        let headers = std::mem::take(&mut subscription.headers);
        set_headers(&mut subscription, headers)?;
        keep_authentication(None, subscription.authentication.as_mut())?;
        keep_client_certificate(None, subscription.client_certificate.as_mut())?;
        let checked = self.check(&subscription)?;
        let (kind, id, owner) = ("webhook_subscription", checked.id.as_str(), &subscription.tenant_id);
        let is_others = tenants::is_owned_by_another(transaction, kind, id, owner).await?;
        if is_others || webhook_subscriptions::find_any(transaction, id).await?.is_some() {
            return Err(status::already_exists("webhook subscription", checked.id.as_str()));
        }
        let mut config = v1::WebhookSubscriptionConfig {
            webhook_subscription: Some(subscription),
            signing_secrets: vec![signing::new_secret(now)],
            signing_keys: vec![signing::new_key(now)],
        };
        // A subscription that had this id before may have failed.
        self.forget_failures(checked.id.as_str()).await;
        let created = put(transaction, &mut config).await?;
        let audited = Audited::created("WebhookSubscriptionService/CreateWebhookSubscription", &config);
        transaction.audit(caller, audited).await?;
        Ok(created)
    }
}

#[tonic::async_trait]
impl WebhookSubscriptionService for WebhookSubscriptionApi {
    async fn create_webhook_subscription(
        &self,
        request: Request<v1::CreateWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::CreateWebhookSubscriptionResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let missing = || status::missing_field("webhook_subscription");
        let wanted = request.webhook_subscription.ok_or_else(missing)?;
        let mut transaction = self.state.store.begin_write().await?;
        let parts = parts(&wanted);
        let key = repeat::key(&caller, "CreateWebhookSubscription", &request.request_id, &parts)?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let subscription = self.create(&mut transaction, &caller, wanted).await?;
        let instance_id = subscription.instance_id.clone();
        let response = v1::CreateWebhookSubscriptionResponse { webhook_subscription: Some(subscription) };
        requests::remember(&mut transaction, &key, &response).await?;
        let due = self.state.work.claim_due(&mut transaction);
        transaction.commit().await?;
        self.claim_unrouted(&instance_id, &due).await;
        Ok(Response::new(response))
    }

    async fn get_webhook_subscription(
        &self,
        request: Request<v1::GetWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::GetWebhookSubscriptionResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let config = find(&mut connection, &caller.tenants(), "id", &id).await?;
        let webhook_subscription = config.webhook_subscription.map(masked);
        Ok(Response::new(v1::GetWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn list_webhook_subscriptions(
        &self,
        request: Request<v1::ListWebhookSubscriptionsRequest>,
    ) -> Result<Response<v1::ListWebhookSubscriptionsResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let of = request.instance_id.as_str();
        let page = Page::read(
            "ListWebhookSubscriptions",
            &[caller.page_owner(), of],
            request.page_size,
            &request.page_token,
        )?;
        let of = Some(of).filter(|of| !of.is_empty());
        let mut connection = self.state.store.reader().await?;
        let (scope, limit) = (caller.tenants(), page.limit().min(LARGE_CHUNK));
        let (mut webhook_subscriptions, mut after) = (Vec::new(), page.after.clone());
        while !page.is_full(&webhook_subscriptions) {
            let found =
                webhook_subscriptions::list(&mut connection, &scope, of, after.as_deref(), limit).await?;
            let Some(last) = found.last() else { break };
            after = Some(last.id.clone());
            webhook_subscriptions.extend(found.into_iter().map(masked));
        }
        let next_page_token = page.cut(&mut webhook_subscriptions, |subscription| &subscription.id);
        Ok(Response::new(v1::ListWebhookSubscriptionsResponse { webhook_subscriptions, next_page_token }))
    }

    async fn update_webhook_subscription(
        &self,
        request: Request<v1::UpdateWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::UpdateWebhookSubscriptionResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let request = request.into_inner();
        let missing = || status::missing_field("webhook_subscription");
        let wanted = request.webhook_subscription.ok_or_else(missing)?;
        let mut transaction = self.state.store.begin_write().await?;
        let mut config =
            find(&mut transaction, &caller.tenants(), "webhook_subscription.id", &wanted.id).await?;
        let fields = field_mask::read(request.update_mask.as_ref(), &FIELDS)?;
        let before = config.clone();
        let subscription = config.webhook_subscription.get_or_insert_default();
        status::check_etag("webhook subscription", &wanted.id, &wanted.etag, &subscription.etag)?;
        let kept = moved::kept_secrets(subscription, &wanted, &fields);
        apply(subscription, wanted, &fields)?;
        let checked = self.check(subscription)?;
        kept.into_result(()).map_err(status::invalid)?;
        if subscription.asymmetric_signature && config.signing_keys.is_empty() {
            config.signing_keys.push(signing::new_key(clock::now()));
        }
        if fields.iter().any(|field| MENDING_FIELDS.contains(field)) {
            self.forget_failures(checked.id.as_str()).await;
        }
        let webhook_subscription = Some(put_changed(&mut transaction, &mut config).await?);
        let audited =
            Audited::changed("WebhookSubscriptionService/UpdateWebhookSubscription", &before, &config);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::UpdateWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn delete_webhook_subscription(
        &self,
        request: Request<v1::DeleteWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::DeleteWebhookSubscriptionResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::DeleteWebhookSubscriptionRequest { id, etag } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let found = find_even_damaged(&mut transaction, &caller.tenants(), "id", &id).await?;
        let current = match &found {
            Found::Whole(config) => config.webhook_subscription.as_ref().map_or("", |found| &found.etag),
            Found::Damaged(head) => &head.etag,
        };
        status::check_etag("webhook subscription", &id, &etag, current)?;
        webhook_subscriptions::delete(&mut transaction, &id).await?;
        let method = "WebhookSubscriptionService/DeleteWebhookSubscription";
        let audited = match &found {
            Found::Whole(config) => Audited::deleted(method, config),
            Found::Damaged(head) => Audited::deleted_unread::<v1::WebhookSubscriptionConfig>(method, head),
        };
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::DeleteWebhookSubscriptionResponse {}))
    }

    async fn pause_webhook_subscription(
        &self,
        request: Request<v1::PauseWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::PauseWebhookSubscriptionResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::PauseWebhookSubscriptionRequest { id, reason } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let mut config = find(&mut transaction, &caller.tenants(), "id", &id).await?;
        if reason.chars().count() > PAUSE_REASON_CHARS_MAX {
            let description = format!("must be at most {PAUSE_REASON_CHARS_MAX} characters long");
            return Err(status::invalid_field("reason", description));
        }
        let before = config.clone();
        let subscription = config.webhook_subscription.get_or_insert_default();
        subscription.set_state(v1::WebhookSubscriptionState::Paused);
        let reason = if reason.is_empty() { PAUSE_REASON_DEFAULT.to_owned() } else { reason };
        subscription.pause_reason = reason;
        let webhook_subscription = Some(put_changed(&mut transaction, &mut config).await?);
        let audited =
            Audited::changed("WebhookSubscriptionService/PauseWebhookSubscription", &before, &config);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::PauseWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn resume_webhook_subscription(
        &self,
        request: Request<v1::ResumeWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::ResumeWebhookSubscriptionResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut transaction = self.state.store.begin_write().await?;
        let mut config = find(&mut transaction, &caller.tenants(), "id", &id).await?;
        let before = config.clone();
        let subscription = config.webhook_subscription.get_or_insert_default();
        subscription.set_state(v1::WebhookSubscriptionState::Active);
        subscription.pause_reason.clear();
        self.forget_failures(&id).await;
        let webhook_subscription = Some(put_changed(&mut transaction, &mut config).await?);
        let audited =
            Audited::changed("WebhookSubscriptionService/ResumeWebhookSubscription", &before, &config);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::ResumeWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn rotate_signing_secret(
        &self,
        request: Request<v1::RotateSigningSecretRequest>,
    ) -> Result<Response<v1::RotateSigningSecretResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let v1::RotateSigningSecretRequest { id, grace_period } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let mut config = find(&mut transaction, &caller.tenants(), "id", &id).await?;
        let grace_period = signing::read_grace_period(grace_period.as_ref())?;
        let before = config.clone();
        let now = clock::now();
        let expire_time = now.saturating_add(grace_period).unwrap_or(Timestamp::MAX);
        signing::rotate(&mut config.signing_secrets, signing::new_secret(now), now, expire_time)?;
        signing::rotate(&mut config.signing_keys, signing::new_key(now), now, expire_time)?;
        put_changed(&mut transaction, &mut config).await?;
        let audited = Audited::changed("WebhookSubscriptionService/RotateSigningSecret", &before, &config);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        let public_key = signing::public_key(&config);
        Ok(Response::new(v1::RotateSigningSecretResponse {
            signing_secret: config.signing_secrets.into_iter().next().unwrap_or_default().value,
            previous_secret_expire_time: Some(time::to_proto(expire_time)),
            public_key,
        }))
    }

    async fn get_signing_secret(
        &self,
        request: Request<v1::GetSigningSecretRequest>,
    ) -> Result<Response<v1::GetSigningSecretResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        // No secret is shown unless that it was shown is on record.
        let mut transaction = self.state.store.begin_write().await?;
        let config = find(&mut transaction, &caller.tenants(), "id", &id).await?;
        let audited = Audited::seen("WebhookSubscriptionService/GetSigningSecret", &config);
        transaction.audit(&caller, audited).await?;
        transaction.commit().await?;
        let public_key = signing::public_key(&config);
        let newest = config.signing_secrets.into_iter().next().unwrap_or_default();
        let (signing_secret, create_time) = (newest.value, newest.create_time);
        Ok(Response::new(v1::GetSigningSecretResponse { signing_secret, create_time, public_key }))
    }

    async fn send_test_event(
        &self,
        request: Request<v1::SendTestEventRequest>,
    ) -> Result<Response<v1::SendTestEventResponse>, Status> {
        let caller = authorize::caller(&request)?;
        let id = request.into_inner().id;
        let mut transaction = self.state.store.begin_write().await?;
        let config = find(&mut transaction, &caller.tenants(), "id", &id).await?;
        let of = config.webhook_subscription.as_ref().map_or("", |found| &found.instance_id);
        let instance = instance::find(&mut transaction, &caller.tenants(), "id", of).await?;
        let event_id = EventId::from_bytes(rand::random()).to_string();
        let work = v1::TestEventWork {
            event_id: event_id.clone(),
            subscription_id: id,
            create_time: Some(time::to_proto(clock::now())),
        };
        WorkQueue::enqueue_in(&mut transaction, &instance.regions, Work::TestEvent(work)).await?;
        let audited = Audited::seen("WebhookSubscriptionService/SendTestEvent", &config);
        transaction.audit(&caller, audited).await?;
        let queue = self.state.work.clone();
        transaction.after_commit(move || queue.wake());
        transaction.commit().await?;
        Ok(Response::new(v1::SendTestEventResponse { event_id }))
    }
}

async fn find(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    field: &str,
    id: &str,
) -> Result<v1::WebhookSubscriptionConfig, Status> {
    match find_even_damaged(connection, scope, field, id).await? {
        Found::Whole(config) => Ok(config),
        Found::Damaged(_) => Err(status::damaged("webhook subscription", id, "DeleteWebhookSubscription")),
    }
}

async fn find_even_damaged(
    connection: &mut dyn Connection,
    scope: &TenantScope,
    field: &str,
    id: &str,
) -> Result<Found<v1::WebhookSubscriptionConfig>, Status> {
    if id.is_empty() {
        return Err(status::missing_field(field));
    }
    let found = webhook_subscriptions::find_even_damaged(connection, scope, id).await?;
    found.ok_or_else(|| status::not_found("webhook subscription", id))
}

/// Writes a subscription, and gives it as callers see it.
async fn put(
    transaction: &mut WriteTx,
    config: &mut v1::WebhookSubscriptionConfig,
) -> Result<v1::WebhookSubscription, Status> {
    webhook_subscriptions::put(transaction, config).await?;
    Ok(masked(config.webhook_subscription.clone().unwrap_or_default()))
}

async fn put_changed(
    transaction: &mut WriteTx,
    config: &mut v1::WebhookSubscriptionConfig,
) -> Result<v1::WebhookSubscription, Status> {
    let subscription = config.webhook_subscription.get_or_insert_default();
    subscription.update_time = Some(time::to_proto(clock::now()));
    put(transaction, config).await
}

/// What makes a creation's body: maps have no fixed encoding, so headers are a part of their own.
fn parts(wanted: &v1::WebhookSubscription) -> [Vec<u8>; 2] {
    let mut subscription = wanted.clone();
    let headers = repeat::map_part(&std::mem::take(&mut subscription.headers));
    [subscription.encode_to_vec(), headers]
}

fn apply(
    subscription: &mut v1::WebhookSubscription,
    wanted: v1::WebhookSubscription,
    fields: &[&str],
) -> Result<(), Status> {
    for field in fields {
        match *field {
            "display_name" => subscription.display_name.clone_from(&wanted.display_name),
            "destination_url" => subscription.destination_url.clone_from(&wanted.destination_url),
            "events" => subscription.events.clone_from(&wanted.events),
            "headers" => set_headers(subscription, wanted.headers.clone())?,
            "attempt_timeout" => subscription.attempt_timeout = wanted.attempt_timeout,
            "concurrency_max" => subscription.concurrency_max = wanted.concurrency_max,
            "retry_policy" => subscription.retry_policy.clone_from(&wanted.retry_policy),
            "rate_per_second_max" => subscription.rate_per_second_max = wanted.rate_per_second_max,
            "ordering" => subscription.ordering = wanted.ordering,
            "ordering_attempts_max" => subscription.ordering_attempts_max = wanted.ordering_attempts_max,
            "authentication" => {
                let stored = subscription.authentication.take();
                subscription.authentication.clone_from(&wanted.authentication);
                keep_authentication(stored.as_ref(), subscription.authentication.as_mut())?;
            }
            "client_certificate" => {
                let stored = subscription.client_certificate.take();
                subscription.client_certificate.clone_from(&wanted.client_certificate);
                keep_client_certificate(stored.as_ref(), subscription.client_certificate.as_mut())?;
            }
            "extra_ca_pem" => subscription.extra_ca_pem.clone_from(&wanted.extra_ca_pem),
            "asymmetric_signature" => subscription.asymmetric_signature = wanted.asymmetric_signature,
            other => unreachable!("the mask allows only known fields, not `{other}`"),
        }
    }
    Ok(())
}
