//! Follows the work stream: test events, callbacks whose number was claimed, opt-outs recorded through the
//! API, deliveries that other agents gave away. Work is acked once it is durable in the buffer; the same work may come again, and derived event
//! ids make the repeat harmless.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use gateway_core::{
    event::{Contact, Content, Event, EventType},
    id::{EventId, WebhookSubscriptionId},
    snapshot::SubscriptionConfig,
    time::from_proto,
};
use gateway_proto::v1::{self, work::Work};
use gateway_runtime::{backoff::Backoff, clock};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    control_plane::{CallFailed, Client},
    pipeline::{
        Pipeline,
        buffer::{AppendError, TakenOver},
    },
    snapshot::SnapshotHandle,
};

const RECONNECT_FIRST: Duration = Duration::from_millis(200);
const RECONNECT_MAX: Duration = Duration::from_secs(10);
/// Acks that wait for the network. When full, no more work is taken.
const ACKS_MAX: usize = 64;
/// Work and configuration come on streams of their own, so work may be ahead of the configuration that it
/// needs: this long it is waited for.
const CONFIG_WAIT: Duration = Duration::from_secs(5);

/// Does what the control plane asks for.
pub struct Worker {
    /// The configuration in use.
    pub snapshot: SnapshotHandle,
    /// Where events go.
    pub pipeline: Pipeline,
}

impl Worker {
    /// Follows the stream, reconnecting, until `stop`.
    ///
    /// # Errors
    /// Never before `stop`; the result is for the supervisor.
    pub async fn run(self, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
        let mut backoff = Backoff::new(RECONNECT_FIRST, RECONNECT_MAX);
        let mut retry = self.snapshot.retry();
        loop {
            // The control plane paces agents at the config stream; this one keeps the same pace.
            tokio::select! {
                () = self.snapshot.connected() => {}
                () = stop.cancelled() => return Ok(()),
            }
            retry.begin();
            tokio::select! {
                ended = self.follow(client.clone(), &mut backoff) => {
                    if let Err(failure) = ended {
                        debug!(error = format!("{failure:#}"), "the work stream ended");
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
            if !retry.wait(&mut backoff, &stop).await {
                return Ok(());
            }
        }
    }

    async fn follow(&self, mut client: Client, backoff: &mut Backoff) -> anyhow::Result<()> {
        let (acks, requests) = mpsc::channel(ACKS_MAX);
        let takes_hand_overs = true;
        acks.send(v1::StreamWorkRequest { takes_hand_overs, ..v1::StreamWorkRequest::default() }).await?;
        let mut responses =
            client.stream_work(ReceiverStream::new(requests)).await.map_err(CallFailed::from)?.into_inner();
        while let Some(response) = responses.message().await.map_err(CallFailed::from)? {
            backoff.reset();
            if !response.work.is_empty() {
                self.fresh_configuration().await;
            }
            let mut hand_overs = Vec::new();
            for work in response.work {
                match work.work {
                    Some(Work::DeliveryHandOver(hand_over)) => {
                        hand_overs.push((work.id, hand_over));
                        continue;
                    }
                    Some(Work::TestEvent(test)) => self.test_event(&test).await?,
                    Some(Work::UnroutedCallback(callback)) => self.claimed_callback(callback).await?,
                    Some(Work::OptOut(opt_out)) => self.opt_out_notice(opt_out).await?,
                    None => warn!("skipped work of a kind that this agent does not know; update the agent"),
                }
                acks.send(acked(vec![work.id])).await?;
            }
            for ids in self.take_over(hand_overs).await? {
                acks.send(acked(ids)).await?;
            }
        }
        Ok(())
    }

    /// Waits until the configuration in use is not the one from disk, within [`CONFIG_WAIT`].
    async fn fresh_configuration(&self) {
        if tokio::time::timeout(CONFIG_WAIT, self.snapshot.fresh()).await.is_err() {
            debug!("doing work with the last good configuration; the control plane sent none yet");
        }
    }

    /// Takes deliveries over, those of each webhook subscription together. Returns the ids of the work that is
    /// durable. What the buffer has no room for is left out, and everything while this agent drains, and holds up no
    /// other work: when its lease is over, it comes again, to this agent or to another.
    async fn take_over(
        &self,
        hand_overs: Vec<(String, v1::DeliveryHandOver)>,
    ) -> anyhow::Result<Vec<Vec<String>>> {
        // An agent that says it is drained may be stopped for good: from then on it must take nothing more. Work may
        // be ahead of the end of the drain.
        let admitted = self.once(|_| self.snapshot.drain().admit()).await;
        let Some(_taking) = admitted else { return Ok(Vec::new()) };
        let mut by_subscription: BTreeMap<WebhookSubscriptionId, (Vec<String>, Vec<TakenOver>)> =
            BTreeMap::new();
        let mut durable = Vec::new();
        for (id, hand_over) in hand_overs {
            match TakenOver::try_from(hand_over) {
                Ok(taken) => {
                    let (ids, all) = by_subscription.entry(taken.subscription().clone()).or_default();
                    ids.push(id);
                    all.push(taken);
                }
                Err(error) => {
                    error!(
                        error = &error as &dyn std::error::Error,
                        "skipped a delivery that was handed over: it makes no sense"
                    );
                    durable.push(vec![id]);
                }
            }
        }
        for (ids, taken) in by_subscription.into_values() {
            match self.pipeline.take_over(taken).await {
                Ok(()) => durable.push(ids),
                Err(AppendError::Stopped) => return Err(AppendError::Stopped.into()),
                Err(refusal) => debug!(%refusal, "left deliveries that were handed over for later"),
            }
        }
        Ok(durable)
    }

    async fn test_event(&self, test: &v1::TestEventWork) -> anyhow::Result<()> {
        let known = self.once(|snapshot| snapshot.subscription(&test.subscription_id).cloned()).await;
        let (Some(subscription), Ok(id)) = (known, test.event_id.parse::<EventId>()) else {
            warn!("skipped a test event: its webhook subscription is gone");
            return Ok(());
        };
        let snapshot = self.snapshot.load();
        let Some(instance) = snapshot.instance(subscription.instance_id.as_str()) else {
            warn!("skipped a test event: its instance is gone");
            return Ok(());
        };
        let now = clock::now();
        let event = Event {
            id,
            event_type: EventType::WebhookTest,
            tenant_id: instance.tenant_id.clone(),
            instance_id: instance.id.clone(),
            instance_name: instance.display_name.clone(),
            contact: Contact::default(),
            business_phone: instance.phone.clone(),
            event_time: test.create_time.as_ref().and_then(from_proto).unwrap_or(now),
            is_time_ours: false,
            receive_time: now,
            content: test_content(&subscription),
        };
        let receivers: Vec<WebhookSubscriptionId> = vec![subscription.id.clone()];
        self.pipeline.append_event(&event, receivers).await.context("buffer a test event")
    }

    async fn claimed_callback(&self, callback: v1::UnroutedCallback) -> anyhow::Result<()> {
        let claimed = self
            .once(|snapshot| {
                let route = snapshot.route(&callback.inbound_route_id)?;
                let by_number = snapshot.instance_by_number(&route.id, &callback.provider_number_id);
                by_number.or_else(|| snapshot.instances_of(&route.id).first()).map(|_| ())
            })
            .await;
        if claimed.is_none() {
            debug!("a claimed callback has no instance any more; it goes back to the unrouted ones");
        }
        self.pipeline.replay_unrouted(callback).await.context("buffer a claimed callback")
    }

    async fn opt_out_notice(&self, opt_out: v1::OptOut) -> anyhow::Result<()> {
        if self.once(|snapshot| snapshot.instance(&opt_out.instance_id).map(|_| ())).await.is_none() {
            warn!("skipped an opt-out notice: its instance is gone");
            return Ok(());
        }
        self.pipeline.opt_out_notice(opt_out).await.context("buffer an opt-out notice")
    }

    /// What `find` finds in the configuration, now or as soon as a change brings it, within [`CONFIG_WAIT`].
    async fn once<T>(&self, find: impl Fn(&gateway_core::snapshot::Snapshot) -> Option<T>) -> Option<T> {
        let mut changed = self.snapshot.changed();
        let wait = async {
            loop {
                if let Some(found) = find(&self.snapshot.load()) {
                    return Some(found);
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(CONFIG_WAIT, wait).await.ok().flatten()
    }
}

fn acked(acked_work_ids: Vec<String>) -> v1::StreamWorkRequest {
    v1::StreamWorkRequest { acked_work_ids, ..v1::StreamWorkRequest::default() }
}

fn test_content(subscription: &SubscriptionConfig) -> Content {
    Content::Test { subscription_id: subscription.id.clone() }
}

#[cfg(test)]
mod tests;
