//! `WebhookSubscriptionService`.

use std::time::Duration;

use gateway_core::{
    id::{EventId, TenantId},
    signature::WebhookSecret,
    time,
    webhook_subscription::{HEADER_MASK, PAUSE_REASON_CHARS_MAX, WebhookSubscription},
};
use gateway_proto::v1::{self, webhook_subscription_service_server::WebhookSubscriptionService, work::Work};
use gateway_runtime::clock;
use jiff::Timestamp;
use prost::Message as _;
use sqlx::SqliteConnection;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::{authorize, field_mask, instance, new_id, page::Page, repeat, status};
use crate::{
    app::State,
    store::{WriteTx, instances, requests, webhook_subscriptions},
};

const FIELDS: [&str; 6] =
    ["display_name", "destination_url", "events", "headers", "attempt_timeout", "concurrency_max"];
/// Why a subscription is paused when the caller does not say.
const PAUSE_REASON_DEFAULT: &str = "paused by the operator";
/// How long the old secret signs beside the new one when the caller does not say.
const GRACE_PERIOD_DEFAULT: Duration = Duration::from_secs(24 * 3_600);
/// Longest grace period.
const GRACE_PERIOD_MAX: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Most secrets that sign at once: each costs a signature in every webhook's header.
const SIGNING_SECRETS_MAX: usize = 5;

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
        WebhookSubscription::from_proto(subscription, &self.state.config.destinations)
            .map_err(status::invalid)
    }

    /// Callbacks that waited for an instance to have a subscription go on their way. The subscription stands
    /// whatever comes of it.
    async fn claim_unrouted(&self, instance_id: &str) {
        let claimed = async {
            let mut connection = self.state.store.reader().await?;
            let instance = instances::find_any(&mut connection, instance_id).await?;
            drop(connection);
            match instance {
                Some(instance) => self.state.work.claim_unrouted(&instance).await,
                None => Ok(0),
            }
        };
        if let Err(error) = claimed.await {
            warn!(gateway.instance.id = instance_id, %error, "failed to claim unrouted callbacks");
        }
    }

    async fn create(
        &self,
        transaction: &mut WriteTx,
        tenant_id: &TenantId,
        wanted: v1::WebhookSubscription,
    ) -> Result<v1::WebhookSubscription, Status> {
        let field = "webhook_subscription.instance_id";
        instance::find(transaction, tenant_id, field, &wanted.instance_id).await?;
        let mut subscription = wanted;
        if subscription.id.is_empty() {
            subscription.id = new_id("sub_");
        }
        let now = clock::now();
        subscription.tenant_id = tenant_id.to_string();
        subscription.set_state(v1::WebhookSubscriptionState::Active);
        subscription.pause_reason.clear();
        subscription.create_time = Some(time::to_proto(now));
        subscription.update_time = Some(time::to_proto(now));
        let headers = std::mem::take(&mut subscription.headers);
        set_headers(&mut subscription, headers)?;
        let checked = self.check(&subscription)?;
        if webhook_subscriptions::find_any(transaction, checked.id.as_str()).await?.is_some() {
            return Err(status::already_exists("webhook subscription", checked.id.as_str()));
        }
        let mut config = v1::WebhookSubscriptionConfig {
            webhook_subscription: Some(subscription),
            signing_secrets: vec![new_signing_secret(now)],
        };
        put(transaction, &mut config).await
    }
}

#[tonic::async_trait]
impl WebhookSubscriptionService for WebhookSubscriptionApi {
    async fn create_webhook_subscription(
        &self,
        request: Request<v1::CreateWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::CreateWebhookSubscriptionResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let request = request.into_inner();
        let missing = || status::missing_field("webhook_subscription");
        let wanted = request.webhook_subscription.ok_or_else(missing)?;
        let mut transaction = self.state.store.begin_write().await?;
        let parts = parts(&wanted);
        let key = repeat::key(&tenant_id, "CreateWebhookSubscription", &request.request_id, &parts)?;
        if let Some(answer) = repeat::answer(&mut transaction, &key).await? {
            return Ok(Response::new(answer));
        }
        let subscription = self.create(&mut transaction, &tenant_id, wanted).await?;
        let instance_id = subscription.instance_id.clone();
        let response = v1::CreateWebhookSubscriptionResponse { webhook_subscription: Some(subscription) };
        requests::remember(&mut transaction, &key, &response).await?;
        transaction.commit().await?;
        self.claim_unrouted(&instance_id).await;
        Ok(Response::new(response))
    }

    async fn get_webhook_subscription(
        &self,
        request: Request<v1::GetWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::GetWebhookSubscriptionResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let config = find(&mut connection, &tenant_id, "id", &id).await?;
        let webhook_subscription = config.webhook_subscription.map(masked);
        Ok(Response::new(v1::GetWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn list_webhook_subscriptions(
        &self,
        request: Request<v1::ListWebhookSubscriptionsRequest>,
    ) -> Result<Response<v1::ListWebhookSubscriptionsResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let request = request.into_inner();
        let of = request.instance_id.as_str();
        let page = Page::read("ListWebhookSubscriptions", &[of], request.page_size, &request.page_token)?;
        let of = Some(of).filter(|of| !of.is_empty());
        let mut connection = self.state.store.reader().await?;
        let (after, limit) = (page.after.as_deref(), page.limit());
        let mut found = webhook_subscriptions::list(&mut connection, &tenant_id, of, after, limit).await?;
        let next_page_token = page.cut(&mut found, |subscription| &subscription.id);
        let webhook_subscriptions = found.into_iter().map(masked).collect();
        Ok(Response::new(v1::ListWebhookSubscriptionsResponse { webhook_subscriptions, next_page_token }))
    }

    async fn update_webhook_subscription(
        &self,
        request: Request<v1::UpdateWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::UpdateWebhookSubscriptionResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let request = request.into_inner();
        let missing = || status::missing_field("webhook_subscription");
        let wanted = request.webhook_subscription.ok_or_else(missing)?;
        let mut transaction = self.state.store.begin_write().await?;
        let mut config = find(&mut transaction, &tenant_id, "webhook_subscription.id", &wanted.id).await?;
        let fields = field_mask::read(request.update_mask.as_ref(), &FIELDS)?;
        let subscription = config.webhook_subscription.get_or_insert_default();
        status::check_etag("webhook subscription", &wanted.id, &wanted.etag, &subscription.etag)?;
        apply(subscription, wanted, &fields)?;
        self.check(subscription)?;
        let webhook_subscription = Some(put_changed(&mut transaction, &mut config).await?);
        transaction.commit().await?;
        Ok(Response::new(v1::UpdateWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn delete_webhook_subscription(
        &self,
        request: Request<v1::DeleteWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::DeleteWebhookSubscriptionResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let v1::DeleteWebhookSubscriptionRequest { id, etag } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let config = find(&mut transaction, &tenant_id, "id", &id).await?;
        let current = config.webhook_subscription.unwrap_or_default().etag;
        status::check_etag("webhook subscription", &id, &etag, &current)?;
        webhook_subscriptions::delete(&mut transaction, &id).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::DeleteWebhookSubscriptionResponse {}))
    }

    async fn pause_webhook_subscription(
        &self,
        request: Request<v1::PauseWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::PauseWebhookSubscriptionResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let v1::PauseWebhookSubscriptionRequest { id, reason } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let mut config = find(&mut transaction, &tenant_id, "id", &id).await?;
        if reason.chars().count() > PAUSE_REASON_CHARS_MAX {
            let description = format!("must be at most {PAUSE_REASON_CHARS_MAX} characters long");
            return Err(status::invalid_field("reason", description));
        }
        let subscription = config.webhook_subscription.get_or_insert_default();
        subscription.set_state(v1::WebhookSubscriptionState::Paused);
        let reason = if reason.is_empty() { PAUSE_REASON_DEFAULT.to_owned() } else { reason };
        subscription.pause_reason = reason;
        let webhook_subscription = Some(put_changed(&mut transaction, &mut config).await?);
        transaction.commit().await?;
        Ok(Response::new(v1::PauseWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn resume_webhook_subscription(
        &self,
        request: Request<v1::ResumeWebhookSubscriptionRequest>,
    ) -> Result<Response<v1::ResumeWebhookSubscriptionResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let id = request.into_inner().id;
        let mut transaction = self.state.store.begin_write().await?;
        let mut config = find(&mut transaction, &tenant_id, "id", &id).await?;
        let subscription = config.webhook_subscription.get_or_insert_default();
        subscription.set_state(v1::WebhookSubscriptionState::Active);
        subscription.pause_reason.clear();
        let webhook_subscription = Some(put_changed(&mut transaction, &mut config).await?);
        transaction.commit().await?;
        Ok(Response::new(v1::ResumeWebhookSubscriptionResponse { webhook_subscription }))
    }

    async fn rotate_signing_secret(
        &self,
        request: Request<v1::RotateSigningSecretRequest>,
    ) -> Result<Response<v1::RotateSigningSecretResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let v1::RotateSigningSecretRequest { id, grace_period } = request.into_inner();
        let mut transaction = self.state.store.begin_write().await?;
        let mut config = find(&mut transaction, &tenant_id, "id", &id).await?;
        let grace_period = read_grace_period(grace_period.as_ref())?;
        let now = clock::now();
        let expire_time = now.saturating_add(grace_period).unwrap_or(Timestamp::MAX);
        let secret = new_signing_secret(now);
        rotate(&mut config.signing_secrets, secret.clone(), now, expire_time)?;
        put_changed(&mut transaction, &mut config).await?;
        transaction.commit().await?;
        Ok(Response::new(v1::RotateSigningSecretResponse {
            signing_secret: secret.value,
            previous_secret_expire_time: Some(time::to_proto(expire_time)),
        }))
    }

    async fn get_signing_secret(
        &self,
        request: Request<v1::GetSigningSecretRequest>,
    ) -> Result<Response<v1::GetSigningSecretResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let config = find(&mut connection, &tenant_id, "id", &id).await?;
        let newest = config.signing_secrets.into_iter().next().unwrap_or_default();
        let (signing_secret, create_time) = (newest.value, newest.create_time);
        Ok(Response::new(v1::GetSigningSecretResponse { signing_secret, create_time }))
    }

    async fn send_test_event(
        &self,
        request: Request<v1::SendTestEventRequest>,
    ) -> Result<Response<v1::SendTestEventResponse>, Status> {
        let tenant_id = authorize::tenant(&request)?;
        let id = request.into_inner().id;
        let mut connection = self.state.store.reader().await?;
        let config = find(&mut connection, &tenant_id, "id", &id).await?;
        let of = config.webhook_subscription.unwrap_or_default().instance_id;
        let instance = instance::find(&mut connection, &tenant_id, "id", &of).await?;
        drop(connection);
        let event_id = EventId::from_bytes(rand::random()).to_string();
        let work = v1::TestEventWork {
            event_id: event_id.clone(),
            subscription_id: id,
            create_time: Some(time::to_proto(clock::now())),
        };
        self.state.work.enqueue(&instance.regions, Work::TestEvent(work)).await?;
        Ok(Response::new(v1::SendTestEventResponse { event_id }))
    }
}

/// A subscription as callers see it: header values are secrets.
pub(super) fn masked(mut subscription: v1::WebhookSubscription) -> v1::WebhookSubscription {
    for value in subscription.headers.values_mut() {
        HEADER_MASK.clone_into(value);
    }
    subscription
}

async fn find(
    connection: &mut SqliteConnection,
    tenant_id: &TenantId,
    field: &str,
    id: &str,
) -> Result<v1::WebhookSubscriptionConfig, Status> {
    if id.is_empty() {
        return Err(status::missing_field(field));
    }
    let found = webhook_subscriptions::find(connection, tenant_id, id).await?;
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
            other => unreachable!("the mask allows only known fields, not `{other}`"),
        }
    }
    Ok(())
}

/// Replaces the headers. The mask in place of a value keeps the stored value; header names ignore case.
fn set_headers(
    subscription: &mut v1::WebhookSubscription,
    wanted: std::collections::HashMap<String, String>,
) -> Result<(), Status> {
    let stored = std::mem::take(&mut subscription.headers);
    for (name, value) in wanted {
        let kept = stored.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name));
        let value = match (value == HEADER_MASK, kept) {
            (false, _) => value,
            (true, Some((_, kept))) => kept.clone(),
            (true, None) => {
                let shown: String =
                    name.chars().filter(|character| !character.is_control()).take(64).collect();
                let field = format!("webhook_subscription.headers[{shown}]");
                return Err(status::invalid_field(
                    field,
                    "must have a value: there is no stored one to keep",
                ));
            }
        };
        subscription.headers.insert(name, value);
    }
    Ok(())
}

fn new_signing_secret(now: Timestamp) -> v1::SigningSecret {
    let secret =
        WebhookSecret::from_key(&rand::random::<[u8; 32]>()).expect("32 bytes are enough and not too many");
    v1::SigningSecret { value: secret.reveal(), expire_time: None, create_time: Some(time::to_proto(now)) }
}

fn read_grace_period(grace_period: Option<&prost_types::Duration>) -> Result<Duration, Status> {
    let Some(grace_period) = grace_period else { return Ok(GRACE_PERIOD_DEFAULT) };
    time::duration_from_proto(grace_period)
        .filter(|grace_period| *grace_period <= GRACE_PERIOD_MAX)
        .ok_or_else(|| status::invalid_field("grace_period", "must be between 0s and 7 days (604800s)"))
}

/// Puts the new secret first; those before it end at `expire_time` at the latest, and ended ones go.
fn rotate(
    secrets: &mut Vec<v1::SigningSecret>,
    newest: v1::SigningSecret,
    now: Timestamp,
    expire_time: Timestamp,
) -> Result<(), Status> {
    for secret in secrets.iter_mut() {
        let end = secret.expire_time.as_ref().and_then(time::from_proto);
        let end = end.map_or(expire_time, |end| end.min(expire_time));
        secret.expire_time = Some(time::to_proto(end));
    }
    let is_live = |secret: &v1::SigningSecret| {
        secret.expire_time.as_ref().and_then(time::from_proto).is_some_and(|end| end > now)
    };
    secrets.retain(is_live);
    if secrets.len() >= SIGNING_SECRETS_MAX {
        let message = format!(
            "{SIGNING_SECRETS_MAX} secrets sign already; wait until one ends, or rotate with a `grace_period` of 0s"
        );
        return Err(status::failed_precondition("TOO_MANY_SECRETS", message));
    }
    secrets.insert(0, newest);
    Ok(())
}
