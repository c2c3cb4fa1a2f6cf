//! `StreamConfig`: configuration down, verdicts and health up.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, Stream, StreamExt as _, stream};
use gateway_core::{snapshot::digest::RESOURCE_TYPES, time};
use gateway_proto::v1::{self, stream_config_request::Message};
use gateway_runtime::clock;
use tokio::{sync::watch, time::Instant};
use tonic::{Status, Streaming};

mod check;

use check::{Check, Compared};

use super::{check_build, status, too_large};
use crate::{
    api::authorize::AgentIdentity,
    app::State,
    fleet::{Connection, ResourceKey, SILENCE_MAX},
    publish::{Changes, Part, Parts, Publisher, TenantFilter, divergences::Answer, keep_own_opt_outs},
    store::{agents, fleet},
};

/// How long an agent has to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Opt-outs of one response, of at most about 2 kB each.
const OPT_OUTS_PAGE: u32 = 1_000;
/// Responses whose verdict is awaited; the verdict on an older one no longer counts.
const UNANSWERED_MAX: usize = 256;
/// How often the store is looked at without being told of a change: a writer whose caller went away in
/// mid-commit tells nobody.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// A stream before and after the hello.
pub(super) struct ConfigStream {
    state: State,
    publisher: Arc<Publisher>,
    identity: AgentIdentity,
    address: Option<SocketAddr>,
    inbound: Streaming<v1::StreamConfigRequest>,
}

impl ConfigStream {
    pub(super) const fn new(
        state: State,
        publisher: Arc<Publisher>,
        identity: AgentIdentity,
        address: Option<SocketAddr>,
        inbound: Streaming<v1::StreamConfigRequest>,
    ) -> Self {
        Self { state, publisher, identity, address, inbound }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<v1::StreamConfigResponse, Status>> {
        stream::once(self.greet()).flat_map(|greeted| match greeted {
            Ok(agent) => stream::unfold(Some(agent), |agent| async move {
                let mut agent = agent?;
                match agent.next().await? {
                    Ok(response) => Some((Ok(response), Some(agent))),
                    Err(status) => Some((Err(status), None)),
                }
            })
            .boxed(),
            Err(status) => stream::once(async { Err(status) }).boxed(),
        })
    }

    /// Waits for the hello.
    async fn greet(mut self) -> Result<ConnectedAgent, Status> {
        let stop = self.state.stop.clone();
        let first = tokio::select! {
            first = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.message()) => first,
            () = stop.cancelled() => return Err(status::unavailable("SHUTTING_DOWN", "the control plane is shutting down")),
        };
        let first = first.map_err(|_| status::invalid_field("hello", "must come within 10s"))??;
        let Some(Message::Hello(hello)) = first.and_then(|request| request.message) else {
            return Err(status::invalid_field("hello", "must be the first message"));
        };
        if hello.agent_id != self.identity.agent_id {
            return Err(status::invalid_field("hello.agent_id", "must be the agent of the credential"));
        }
        if hello.region != self.identity.region {
            let description =
                format!("must be `{}`, the region the agent enrolled for", self.identity.region);
            return Err(status::invalid_field("hello.region", description));
        }
        check_build(&hello.build)?;
        let versions = self.state.store.watch_version();
        let opt_out_cursors = self.state.store.watch_opt_out_cursor();
        let version = self.state.store.version().await?;
        let is_ours = hello.store_epoch == self.state.store.store_epoch() && hello.version <= version;
        let (version, opt_out_cursor) = if is_ours { (hello.version, hello.opt_out_cursor) } else { (0, 0) };
        // A cursor of the future is of a log that was cut, by a restore: everything is sent again.
        let is_known = opt_out_cursor <= *opt_out_cursors.borrow();
        let opt_out_cursor = if is_known { opt_out_cursor } else { 0 };
        if let Err(wait) = self.state.fleet.admit(&self.state.store).await? {
            let message = "many agents are connecting; come again when `RetryInfo` says";
            return Err(status::unavailable_until("RECONNECT_LATER", message, wait));
        }
        let connection = self.state.fleet.connect(&hello.agent_id, &hello.region, &hello.build, version);
        connection.belongs_to(self.identity.tenant_id.clone());
        connection.comes_from(self.address);
        agents::record_connection(&self.state.store, &hello.agent_id, &hello.build, clock::now()).await?;
        // Watched from before it is read, so that no change is missed.
        let drains = self.state.fleet.watch_drains();
        let is_to_drain = fleet::is_to_drain(&self.state.store, &hello.agent_id).await?;
        connection.is_to_drain(is_to_drain);
        tracing::info!(gateway.agent.id = hello.agent_id, version, "agent connected");
        let mut check = Check::new(&self.state.divergences.expectations);
        if is_ours {
            check.said(version, hello.digests);
        }
        Ok(ConnectedAgent {
            state: self.state,
            publisher: self.publisher,
            agent_id: self.identity.agent_id,
            region: self.identity.region,
            tenant_id: self.identity.tenant_id,
            filter: None,
            inbound: self.inbound,
            connection,
            versions,
            opt_out_cursors,
            drains,
            is_to_drain,
            version: if version == 0 { None } else { Some(version) },
            newest_sent: version,
            opt_out_cursor,
            is_told: false,
            may_differ: true,
            may_have_opt_outs: true,
            may_drain: false,
            parts: None,
            check,
            nonces: 0,
            unanswered: VecDeque::new(),
            look_at: Instant::now() + LOOK_INTERVAL,
            silent_at: Instant::now() + SILENCE_MAX,
        })
    }
}

/// A response whose verdict is awaited.
struct Unanswered {
    nonce: String,
    version: u64,
    keys: Vec<ResourceKey>,
}

/// A connected agent.
struct ConnectedAgent {
    state: State,
    publisher: Arc<Publisher>,
    agent_id: String,
    region: String,
    /// The tenant the agent works for; None for an agent of the platform.
    tenant_id: Option<String>,
    /// What of the changes being sent is that tenant's.
    filter: Option<TenantFilter>,
    inbound: Streaming<v1::StreamConfigRequest>,
    connection: Connection,
    versions: watch::Receiver<u64>,
    opt_out_cursors: watch::Receiver<u64>,
    drains: watch::Receiver<u64>,
    /// Whether the agent is to drain; every response says it.
    is_to_drain: bool,
    /// The version the agent has once it has taken what was sent; None when it has none of ours.
    version: Option<u64>,
    /// The newest version that it can have.
    newest_sent: u64,
    opt_out_cursor: u64,
    /// Whether it was sent anything: even a configuration that has nothing is said.
    is_told: bool,
    /// Whether the store may have another version than the agent.
    may_differ: bool,
    /// Whether there may be opt-outs after the agent's cursor.
    may_have_opt_outs: bool,
    /// Whether it may have been asked to drain, or no more.
    may_drain: bool,
    /// Changes being sent.
    parts: Option<Parts>,
    /// Whether the agent has what it should have.
    check: Check,
    nonces: u64,
    unanswered: VecDeque<Unanswered>,
    look_at: Instant,
    /// When the agent counts as gone, unless it is heard before: its connection may be half open.
    silent_at: Instant,
}

enum Woken {
    Message(Option<Result<v1::StreamConfigRequest, Status>>),
    Changed,
    Silent,
    End,
}

impl ConnectedAgent {
    /// The next response; waits for a change. None at the end of the stream.
    async fn next(&mut self) -> Option<Result<v1::StreamConfigResponse, Status>> {
        loop {
            // Verdicts first: under a flood of changes they would never be heard otherwise.
            while let Some(message) = self.inbound.next().now_or_never() {
                match self.heard(message) {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(status) => return Some(Err(status)),
                }
            }
            match self.due().await {
                Ok(None) => {}
                Ok(Some(response)) => return Some(Ok(response)),
                Err(status) => return Some(Err(status)),
            }
            match self.wait().await {
                Woken::Changed => {}
                Woken::Silent => {
                    tracing::info!(gateway.agent.id = self.agent_id, "gave up an agent that says nothing");
                    return Some(Err(status::unavailable("AGENT_SILENT", "nothing was heard for 13 s")));
                }
                Woken::End => return None,
                Woken::Message(message) => match self.heard(message) {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(status) => return Some(Err(status)),
                },
            }
        }
    }

    async fn wait(&mut self) -> Woken {
        tokio::select! {
            message = self.inbound.next() => Woken::Message(message),
            // The senders live as long as the store, which this stream holds.
            _ = self.versions.changed() => {
                self.may_differ = true;
                Woken::Changed
            }
            _ = self.opt_out_cursors.changed() => {
                self.may_have_opt_outs = true;
                Woken::Changed
            }
            // So does the sender of this one.
            _ = self.drains.changed() => {
                self.may_drain = true;
                Woken::Changed
            }
            () = self.check.changed() => Woken::Changed,
            () = tokio::time::sleep_until(self.look_at) => {
                self.look_at = Instant::now() + LOOK_INTERVAL;
                (self.may_differ, self.may_have_opt_outs, self.may_drain) = (true, true, true);
                Woken::Changed
            }
            () = tokio::time::sleep_until(self.silent_at) => Woken::Silent,
            () = self.connection.superseded().cancelled() => Woken::End,
            () = self.state.stop.cancelled() => Woken::End,
        }
    }

    /// What the agent is to be told now, if anything.
    async fn due(&mut self) -> Result<Option<v1::StreamConfigResponse>, Status> {
        if let Some(part) = self.next_part() {
            return Ok(Some(part));
        }
        if self.may_drain && self.drain_changed().await? {
            let response = self.response();
            self.await_verdict(&response, Vec::new());
            return Ok(Some(response));
        }
        if self.may_differ {
            // Seen before it is read: what is committed in between wakes the stream again.
            self.versions.mark_unchanged();
            let newest = self.state.store.version().await?;
            self.may_differ = false;
            if !self.is_told || self.version != Some(newest) {
                let changes = self.publisher.changes(self.version.unwrap_or(0), newest).await?;
                self.begin(changes).await?;
                return Ok(self.next_part());
            }
        }
        if let Some(response) = self.opt_outs().await? {
            return Ok(Some(response));
        }
        // Last, so that nothing waits for it.
        if self.has_to_resend().await? { Ok(self.next_part()) } else { Ok(None) }
    }

    /// Begins to send changes.
    async fn begin(&mut self, changes: Arc<Changes>) -> Result<(), Status> {
        if let Some(tenant_id) = &self.tenant_id {
            self.filter = Some(TenantFilter::read(&self.state.store, tenant_id).await?);
        }
        self.parts = Some(Parts::new(changes, &self.region));
        Ok(())
    }

    /// Compares what the agent says that it has with what it should have. True when everything is being sent anew.
    async fn has_to_resend(&mut self) -> Result<bool, Status> {
        let Some(version) = self.version else { return Ok(false) };
        let differences = match self.check.compare(version, &self.region, self.tenant_id.as_deref()) {
            Compared::Differs(differences) => differences,
            Compared::Same(again) => {
                self.state.divergences.none();
                if again {
                    tracing::info!(
                        gateway.agent.id = self.agent_id,
                        "the agent has what it should have again"
                    );
                }
                return Ok(false);
            }
            Compared::Not => return Ok(false),
        };
        // While something changes, an agent may have a part of it early.
        if self.state.store.version().await? != version {
            self.check.again();
            return Ok(false);
        }
        // Of what cannot be read an agent has its last good value, which a snapshot would take away.
        if self.state.store.damages().all().iter().any(|row| RESOURCE_TYPES.contains(&row.resource_type)) {
            return Ok(false);
        }
        let differences: Vec<String> = differences
            .iter()
            .map(|one| format!("{}: has {}, should have {}", one.resource_type, one.said, one.expected))
            .collect();
        let differences = differences.join("; ");
        match self.state.divergences.found(&self.agent_id, self.check.may_resend()) {
            Answer::Resend => {}
            Answer::Persists => {
                tracing::error!(
                    gateway.agent.id = self.agent_id,
                    version,
                    differences,
                    "an agent does not have the configuration that it should have, although it was sent everything anew"
                );
                return Ok(false);
            }
            Answer::Nothing => return Ok(false),
        }
        let everything = self.publisher.changes(0, version).await?;
        if !everything.left_out.is_empty() {
            return Ok(false);
        }
        tracing::warn!(
            gateway.agent.id = self.agent_id,
            version,
            differences,
            "an agent does not have the configuration that it should have; sending it everything anew"
        );
        self.state.divergences.resends(&self.agent_id);
        self.check.begin_resend();
        // Until it has all of it, the agent has none of ours.
        self.version = None;
        self.begin(everything).await?;
        Ok(true)
    }

    /// Looks up whether the agent is to drain. True when it has to be told: what was sent last says otherwise.
    async fn drain_changed(&mut self) -> Result<bool, Status> {
        self.drains.mark_unchanged();
        let is_to_drain = fleet::is_to_drain(&self.state.store, &self.agent_id).await?;
        self.may_drain = false;
        let has_changed = is_to_drain != std::mem::replace(&mut self.is_to_drain, is_to_drain);
        if has_changed {
            self.connection.is_to_drain(is_to_drain);
            // A draining agent is given no work; now it may be.
            self.state.work.wake();
        }
        Ok(has_changed && self.is_told)
    }

    fn next_part(&mut self) -> Option<v1::StreamConfigResponse> {
        let parts = self.parts.as_mut()?;
        let version = parts.version();
        let Some(mut part) = parts.next() else {
            self.parts = None;
            return None;
        };
        if let Some(filter) = &mut self.filter {
            filter.apply(&mut part);
        }
        self.is_told = true;
        if part.begins_snapshot {
            self.connection.forget_refused();
        }
        if part.is_last {
            self.version = Some(version);
            self.parts = None;
        }
        let keys = part.keys();
        let Part { upserts, removals, unreadable, begins_snapshot, is_last } = part;
        let unreadable = unreadable.into_iter().map(|(_, named)| named).collect();
        let snapshot = begins_snapshot;
        let response =
            v1::StreamConfigResponse { snapshot, upserts, removals, unreadable, ..self.response() };
        if is_last {
            self.check.sent(&response.nonce);
        }
        self.await_verdict(&response, keys);
        Some(response)
    }

    async fn opt_outs(&mut self) -> Result<Option<v1::StreamConfigResponse>, Status> {
        if !self.may_have_opt_outs {
            return Ok(None);
        }
        self.opt_out_cursors.mark_unchanged();
        let since = self.opt_out_cursor;
        let (mut opt_outs, cursor) = self.state.store.opt_outs_since(since, OPT_OUTS_PAGE).await?;
        keep_own_opt_outs(&mut opt_outs, self.tenant_id.as_deref());
        if cursor == self.opt_out_cursor {
            self.may_have_opt_outs = false;
            return Ok(None);
        }
        self.opt_out_cursor = cursor;
        let response = v1::StreamConfigResponse { opt_outs, ..self.response() };
        self.await_verdict(&response, Vec::new());
        Ok(Some(response))
    }

    /// A response that says where the agent stands after it, with a nonce of its own.
    fn response(&mut self) -> v1::StreamConfigResponse {
        self.nonces += 1;
        v1::StreamConfigResponse {
            nonce: self.nonces.to_string(),
            version: self.version.unwrap_or(0),
            store_epoch: self.state.store.store_epoch().to_owned(),
            opt_out_cursor: self.opt_out_cursor,
            opt_out_cursor_newest: *self.opt_out_cursors.borrow(),
            drain: Some(self.is_to_drain),
            takes_hand_overs: true,
            time: Some(time::to_proto(clock::now())),
            ..Default::default()
        }
    }

    fn await_verdict(&mut self, response: &v1::StreamConfigResponse, keys: Vec<ResourceKey>) {
        if self.unanswered.len() == UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        let (nonce, version) = (response.nonce.clone(), response.version);
        self.newest_sent = self.newest_sent.max(version);
        self.unanswered.push_back(Unanswered { nonce, version, keys });
    }

    /// Takes what the agent says; false at the end of its side of the stream.
    fn heard(&mut self, message: Option<Result<v1::StreamConfigRequest, Status>>) -> Result<bool, Status> {
        let Some(request) = message else { return Ok(false) };
        // A broken connection is how agents leave; its error is of no use to anybody.
        let request = match request {
            Ok(request) => request,
            Err(status) => return too_large(&status).map_or(Ok(false), Err),
        };
        self.silent_at = Instant::now() + SILENCE_MAX;
        match request.message {
            Some(Message::Hello(_)) => return Err(status::invalid_field("hello", "must come once")),
            Some(Message::Ack(ack)) => self.verdict(&ack.nonce, Vec::new()),
            Some(Message::Nack(nack)) => self.verdict(&nack.nonce, nack.refused),
            Some(Message::Applied(applied)) if applied.version > self.newest_sent => {
                let description =
                    format!("must be a version that was sent; the newest is {}", self.newest_sent);
                return Err(status::invalid_field("applied.version", description));
            }
            Some(Message::Applied(applied)) => {
                self.connection.applied(applied.version);
                self.check.said(applied.version, applied.digests);
            }
            Some(Message::Health(health)) => self.connection.health(health),
            None => {}
        }
        Ok(true)
    }

    fn verdict(&mut self, nonce: &str, refused: Vec<v1::RefusedResource>) {
        if self.check.is_taken(nonce) {
            self.state.divergences.taken(&self.agent_id);
        }
        let Some(place) = self.unanswered.iter().position(|response| response.nonce == nonce) else { return };
        if let Some(Unanswered { version, keys, .. }) = self.unanswered.remove(place) {
            self.connection.accepted(version, &keys, refused);
        }
    }
}
