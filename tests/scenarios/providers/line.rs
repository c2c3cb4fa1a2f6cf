//! A number at one provider: its instance, its inbound route, and the provider that calls there.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use gateway_core::event::Provider;
use gateway_proto::v1;
use gateway_tests::{
    DEADLINE, Signer, Webhook, Within as _, World, eventually, http,
    meta::Answer,
    signer::{Proof, Secret, Unproved},
    world::subscribe_instance,
};
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde_json::Value;

use super::{
    dialect::{self, Said, Told},
    secrets::credentials,
};

/// The contact of most callbacks.
pub const FROM: &str = "966500000001";
/// Its name.
pub const NAME: &str = "Zoë";

/// A number at one provider.
pub struct Line<'a> {
    /// The gateway.
    pub world: &'a World,
    /// The provider.
    pub provider: Provider,
    /// The instance's id.
    pub instance_id: String,
    /// Its inbound route.
    pub route: v1::InboundRoute,
    /// What proves callbacks; none where the token in the path suffices.
    pub secret: Option<Secret>,
    signer: Arc<Signer>,
    http: reqwest::Client,
}

/// One callback; the default is as the provider makes it.
#[derive(Clone, Default)]
pub struct Call {
    /// The body, or with `by_get` the query.
    pub body: Vec<u8>,
    /// Called by `GET`.
    pub by_get: bool,
    /// The media type; unset is the provider's.
    pub media_type: Option<String>,
    /// What stands behind the callback path.
    pub tail: String,
    /// The public address that the provider calls; unset is the agent's own.
    pub base: Option<String>,
    /// What it is proved with; unset is the route's own secret.
    pub secret: Option<Secret>,
    /// What is to differ in the proof.
    pub options: Value,
}

impl<'a> Line<'a> {
    /// Creates the instance with its route, whose first secret is this one, and a subscription of every event
    /// that delivers to `/<provider>`.
    ///
    /// # Errors
    /// When something of it is refused.
    pub async fn create(
        world: &'a World,
        signer: &Arc<Signer>,
        provider: Provider,
        secret: Option<Secret>,
    ) -> anyhow::Result<Self> {
        let instance_id =
            format!("inst-{}-{}", provider.name(), &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let request = create_instance(provider, &instance_id, secret.as_ref());
        let response = world.client().instances().create_instance(request).await?.into_inner();
        let route = response.inbound_route.context("the response has no inbound route")?;
        let destination = world.receiver.url(&format!("/{instance_id}"));
        subscribe_instance(world.client(), &instance_id, &destination, &["*"]).await?;
        let (signer, http) = (Arc::clone(signer), http::client()?);
        Ok(Self { world, provider, instance_id, route, secret, signer, http })
    }

    /// A text message of [`FROM`], and its id.
    pub fn message(&self, text: &str) -> (String, Vec<u8>) {
        self.message_of(FROM, text)
    }

    /// A text message of a contact, and its id.
    pub fn message_of(&self, from: &str, text: &str) -> (String, Vec<u8>) {
        let (id, number) = (dialect::new_id(self.provider, from), dialect::number(self.provider));
        let said = Said { number, id: &id, from, name: NAME, text };
        let body = dialect::message(self.provider, said);
        (id, body)
    }

    /// A status of a message to [`FROM`], and the message's id.
    pub fn status(&self, failure: Option<i64>) -> (String, Vec<u8>) {
        let (id, number) = (dialect::new_own_id(self.provider, FROM), dialect::number(self.provider));
        let body = dialect::status(self.provider, Told { number, id: &id, to: FROM, failure });
        (id, body)
    }

    /// Proves a callback without sending it.
    ///
    /// # Errors
    /// When the provider's own library would not take the proof.
    pub async fn prove(&self, call: &Call) -> anyhow::Result<Proof> {
        let own = format!("http://{}", self.world.agent.callback_addr());
        let base = call.base.as_deref().unwrap_or(&own);
        let url = format!("{base}{}{}", self.route.callback_path, call.tail());
        let Some(secret) = call.secret.as_ref().or(self.secret.as_ref()) else {
            return Ok(Proof { url, headers: HeaderMap::new() });
        };
        let (method, body) = if call.by_get { ("GET", &[][..]) } else { ("POST", &*call.body) };
        self.signer.prove(&Unproved { secret, method, url: &url, body, options: &call.options }).await
    }

    /// Sends a callback with a proof, perhaps that of another one.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send(&self, call: &Call, proof: &Proof) -> anyhow::Result<Answer> {
        let base = call.base.as_deref().unwrap_or_default();
        let url = match proof.url.strip_prefix(base).filter(|_| !base.is_empty()) {
            // The proxy that stands before the agent passes path and query on.
            Some(target) => self.world.agent.callback_url(target),
            None => proof.url.clone(),
        };
        self.send_to(&url, call, &proof.headers).await
    }

    /// Sends a callback to any URL.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn send_to(&self, url: &str, call: &Call, headers: &HeaderMap) -> anyhow::Result<Answer> {
        let method = if call.by_get { Method::GET } else { Method::POST };
        let mut request = self.http.request(method, url).headers(headers.clone());
        if !call.by_get {
            let media_type = call.media_type.as_deref().unwrap_or(dialect::media_type(self.provider));
            request = request.header(CONTENT_TYPE, media_type).body(call.body.clone());
        }
        gateway_tests::meta::answer(request).await
    }

    /// Proves and sends a callback.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(&self, call: &Call) -> anyhow::Result<Answer> {
        self.send(call, &self.prove(call).await?).await
    }

    /// Proves and sends a body, which must be taken.
    ///
    /// # Errors
    /// When the answer is another one than 200.
    pub async fn post(&self, body: Vec<u8>) -> anyhow::Result<Answer> {
        let answer = self.call(&Call { body, ..Call::default() }).await?;
        ensure!(answer.status == 200, "post a callback: answered {}", answer.status);
        Ok(answer)
    }

    /// The webhook of an event about a message.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn delivered(&self, event: &str, id: &str) -> anyhow::Result<Arc<Webhook>> {
        let webhook = self.told(event, |webhook| webhook.text("external_message_id") == id).await;
        webhook.with_context(|| format!("about message {id}"))
    }

    /// The webhook of an event that fits.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn told(&self, event: &str, fits: impl Fn(&Webhook) -> bool) -> anyhow::Result<Arc<Webhook>> {
        let path = format!("/{}", self.instance_id);
        let webhook = self
            .world
            .receiver
            .find(|webhook| webhook.path == path && webhook.event() == event && fits(webhook));
        webhook.within(DEADLINE).await.with_context(|| format!("receive {event}"))
    }

    /// Whether a message was delivered so far.
    pub fn heard(&self, id: &str) -> bool {
        self.world.receiver.all().iter().any(|webhook| webhook.text("external_message_id") == id)
    }

    /// Waits until marketing to a contact is allowed or not.
    ///
    /// # Errors
    /// When it does not come to that.
    pub async fn marketing(&self, phone: &str, allowed: bool) -> anyhow::Result<()> {
        eventually(DEADLINE, async || {
            let found = self.may(phone, v1::Purpose::Marketing).await?;
            ensure!(found == allowed, "marketing is allowed: {found}");
            Ok(())
        })
        .await
    }

    /// Whether something may be sent to a contact.
    ///
    /// # Errors
    /// When the control plane refuses to say.
    pub async fn may(&self, phone: &str, purpose: v1::Purpose) -> anyhow::Result<bool> {
        let request = v1::CheckSuppressionRequest {
            instance_id: self.instance_id.clone(),
            phone: phone.to_owned(),
            purpose: purpose.into(),
            ..Default::default()
        };
        Ok(self.world.client().opt_outs().check_suppression(request).await?.into_inner().allowed)
    }
}

impl Call {
    /// A callback with this body.
    pub fn of(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    fn tail(&self) -> String {
        if self.by_get {
            format!("{}?{}", self.tail, String::from_utf8_lossy(&self.body))
        } else {
            self.tail.clone()
        }
    }
}

/// Asks for an instance with its route.
pub fn create_instance(
    provider: Provider,
    instance_id: &str,
    secret: Option<&Secret>,
) -> v1::CreateInstanceRequest {
    v1::CreateInstanceRequest {
        instance: Some(v1::Instance {
            id: instance_id.to_owned(),
            display_name: format!("{} Line", provider.name()),
            provider_number_id: dialect::number(provider).to_owned(),
            phone_number: format!("+{}", dialect::BUSINESS),
            ..Default::default()
        }),
        inbound_route: Some(v1::InboundRoute {
            provider: provider.to_proto().into(),
            credentials: secret.map(|secret| credentials(provider, secret)),
            callback_token_suffices: secret.is_none(),
            ..Default::default()
        }),
        ..Default::default()
    }
}
