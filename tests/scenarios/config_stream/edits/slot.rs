//! A subscription that is edited, and what it had when.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use gateway_core::signature::WebhookSecret;
use gateway_proto::v1;
use gateway_sdk::Client;
use gateway_tests::{
    World,
    world::{add_instance, signing_secret, subscribe_instance, update},
};
use tonic::Code;

/// A value, from before the edit that set it was sent, to after the edit that ended it was answered.
#[derive(Debug, Clone)]
pub struct Known<T> {
    pub value: T,
    from: Instant,
    until: Option<Instant>,
}

impl<T> Known<T> {
    const fn since(from: Instant, value: T) -> Self {
        Self { value, from, until: None }
    }

    /// Whether it was known at `at`, or less than `window` before.
    pub fn covers(&self, at: Instant, window: Duration) -> bool {
        self.from <= at && self.until.is_none_or(|until| at <= until + window)
    }

    fn end(&mut self, until: Instant) {
        self.until.get_or_insert(until);
    }
}

/// One subscription from its creation to its deletion.
#[derive(Debug, Clone, Default)]
pub struct Life {
    /// Paths of its destinations, oldest first.
    pub destinations: Vec<Known<String>>,
    /// Its signing secrets, oldest first.
    pub secrets: Vec<Known<WebhookSecret>>,
}

impl Life {
    /// Where it delivers to; None when it was deleted.
    pub fn current_path(&self) -> Option<&str> {
        self.destinations.last().filter(|last| last.until.is_none()).map(|last| last.value.as_str())
    }

    fn end(&mut self) {
        let now = Instant::now();
        self.destinations.iter_mut().for_each(|known| known.end(now));
        self.secrets.iter_mut().for_each(|known| known.end(now));
    }
}

/// A subscription, and those that were in its place before.
pub struct Slot {
    instance_id: String,
    /// What its destinations' paths begin with.
    prefix: String,
    id: String,
    paused: bool,
    /// A secret that was added to the route, and may be removed again.
    route_secret: Option<String>,
    paths: usize,
    lives: Vec<Life>,
}

impl Slot {
    pub async fn create(world: &World, instance_id: &str, prefix: &str) -> anyhow::Result<Self> {
        let mut slot = Self {
            instance_id: instance_id.to_owned(),
            prefix: prefix.to_owned(),
            id: String::new(),
            paused: false,
            route_secret: None,
            paths: 0,
            lives: Vec::new(),
        };
        slot.begin_life(world).await?;
        Ok(slot)
    }

    pub fn into_lives(self) -> Vec<Life> {
        self.lives
    }

    fn life(&mut self) -> &mut Life {
        self.lives.last_mut().expect("a slot begins with a life")
    }

    fn next_path(&mut self) -> String {
        self.paths += 1;
        format!("{}/{}", self.prefix, self.paths)
    }

    async fn begin_life(&mut self, world: &World) -> anyhow::Result<()> {
        let (path, from) = (self.next_path(), Instant::now());
        let url = world.receiver.url(&path);
        let created =
            subscribe_instance(world.client(), &self.instance_id, &url, &["message.received"]).await?;
        let secret = signing_secret(world.client(), &created.id).await?;
        self.id = created.id;
        self.paused = false;
        self.lives.push(Life {
            destinations: vec![Known::since(from, path)],
            secrets: vec![Known::since(from, secret)],
        });
        Ok(())
    }

    pub async fn move_destination(&mut self, world: &World) -> anyhow::Result<()> {
        let (path, from) = (self.next_path(), Instant::now());
        let change =
            v1::WebhookSubscription { destination_url: world.receiver.url(&path), ..Default::default() };
        update(world.client(), &self.id, change, "destination_url").await?;
        let life = self.life();
        let now = Instant::now();
        life.destinations.iter_mut().for_each(|known| known.end(now));
        life.destinations.push(Known::since(from, path));
        Ok(())
    }

    pub async fn rotate(&mut self, world: &World, grace: Duration) -> anyhow::Result<()> {
        let from = Instant::now();
        let request =
            v1::RotateSigningSecretRequest { id: self.id.clone(), grace_period: Some(grace.try_into()?) };
        let rotated = match world.client().webhook_subscriptions().rotate_signing_secret(request).await {
            Ok(rotated) => rotated.into_inner(),
            // Too many secrets sign at the moment.
            Err(status) if status.code() == Code::FailedPrecondition => return Ok(()),
            Err(status) => return Err(status.into()),
        };
        let secret = WebhookSecret::parse(&rotated.signing_secret)?;
        let life = self.life();
        let end = Instant::now() + grace;
        life.secrets.iter_mut().for_each(|known| known.end(end));
        life.secrets.push(Known::since(from, secret));
        Ok(())
    }

    pub async fn pause_or_resume(&mut self, world: &World) -> anyhow::Result<()> {
        if self.paused {
            return self.resume(world.client()).await;
        }
        let request =
            v1::PauseWebhookSubscriptionRequest { id: self.id.clone(), reason: "edited".to_owned() };
        world.client().webhook_subscriptions().pause_webhook_subscription(request).await?;
        self.paused = true;
        Ok(())
    }

    pub async fn resume(&mut self, client: &Client) -> anyhow::Result<()> {
        if self.paused {
            let request = v1::ResumeWebhookSubscriptionRequest { id: self.id.clone() };
            client.webhook_subscriptions().resume_webhook_subscription(request).await?;
            self.paused = false;
        }
        Ok(())
    }

    async fn delete(&mut self, world: &World) -> anyhow::Result<()> {
        let request = v1::DeleteWebhookSubscriptionRequest { id: self.id.clone(), ..Default::default() };
        world.client().webhook_subscriptions().delete_webhook_subscription(request).await?;
        self.life().end();
        Ok(())
    }

    /// Another subscription in its place.
    pub async fn replace(&mut self, world: &World) -> anyhow::Result<()> {
        self.delete(world).await?;
        self.begin_life(world).await
    }

    /// Another subscription of another instance with the same number and id in its place.
    pub async fn replace_with_instance(&mut self, world: &World, number: &str) -> anyhow::Result<()> {
        self.delete(world).await?;
        let request = v1::DeleteInstanceRequest { id: self.instance_id.clone(), ..Default::default() };
        world.client().instances().delete_instance(request).await?;
        add_instance(world.client(), &self.instance_id, "route-test", number).await?;
        self.begin_life(world).await
    }

    pub async fn rename_instance(&mut self, world: &World) -> anyhow::Result<()> {
        let instance = v1::Instance {
            id: self.instance_id.clone(),
            display_name: format!("Line {}", self.paths),
            ..Default::default()
        };
        let request = v1::UpdateInstanceRequest {
            instance: Some(instance),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] }),
        };
        world.client().instances().update_instance(request).await?;
        Ok(())
    }

    /// A further secret of the route comes, or goes.
    pub async fn rotate_route(&mut self, world: &World) -> anyhow::Result<()> {
        let mut routes = world.client().inbound_routes();
        let id = world.inbound_route.id.clone();
        if let Some(secret_id) = self.route_secret.take() {
            let request = v1::RemoveInboundRouteSecretRequest { id, secret_id };
            routes.remove_inbound_route_secret(request).await?;
            return Ok(());
        }
        let request = v1::AddInboundRouteSecretRequest {
            id,
            kind: v1::InboundRouteSecretKind::MetaAppSecret.into(),
            value: format!("app-secret-of-{}-{}", self.prefix, self.paths),
            ..Default::default()
        };
        let added = match routes.add_inbound_route_secret(request).await {
            Ok(added) => added.into_inner(),
            // Enough secrets are live.
            Err(status) if matches!(status.code(), Code::FailedPrecondition | Code::ResourceExhausted) => {
                return Ok(());
            }
            Err(status) => return Err(status.into()),
        };
        self.route_secret = Some(added.secret.context("the response has no secret")?.id);
        Ok(())
    }
}
