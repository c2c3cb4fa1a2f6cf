//! A fresh control plane and agent with instances and destinations, to be put under load.

use std::{io, sync::Arc};

use gateway_proto::v1;
use gateway_tests::{
    Agent, ControlPlane, MetaProvider,
    agent::AgentOptions,
    world::{self, INSTANCE_ID, PHONE_NUMBER_ID},
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};

use crate::{
    generator::Target,
    receiver::{self, HANGING_PATH, black_hole},
    run::APP_SECRET,
    tally::Tally,
};

/// What the subscriptions select.
const EVENTS: [&str; 2] = ["message.received", "recipient.opted_out"];

/// Where the events of an instance go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To the receiver, which takes them with so many connections.
    Receiver {
        /// Attempts at once.
        concurrency_max: usize,
    },
    /// To the receiver, which takes them and never answers.
    Hanging,
    /// To an address at which nobody accepts.
    BlackHole,
}

/// The programs and what is around them.
pub struct Gateway {
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The agent.
    pub agent: Agent,
    /// Where callbacks go, with the number of every instance.
    pub target: Target,
    _receiver: JoinSet<io::Result<()>>,
    _black_holes: Vec<TcpListener>,
    _directory: TempDir,
}

impl Gateway {
    /// Starts one with an instance for each destination; webhooks go to `tally`.
    pub async fn start(tally: &Arc<Tally>, destinations: &[Destination]) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (address, receiver) = receiver::start(Arc::clone(tally)).await?;
        let control_plane = ControlPlane::start(directory.path()).await?;
        let client = control_plane.client();
        let route = world::create_instance(client).await?;
        let (mut numbers, mut black_holes) = (Vec::new(), Vec::new());
        for (index, destination) in destinations.iter().enumerate() {
            let (mut instance, mut number) = (INSTANCE_ID.to_owned(), PHONE_NUMBER_ID.to_owned());
            if index > 0 {
                (instance, number) = (format!("inst-load-{index}"), format!("10654035300{index:04}"));
                world::add_instance(client, &instance, &route.id, &number).await?;
            }
            numbers.push(number);
            let url = match destination {
                Destination::Receiver { .. } => format!("http://{address}/"),
                Destination::Hanging => format!("http://{address}{HANGING_PATH}"),
                Destination::BlackHole => {
                    let listener = black_hole()?;
                    let url = format!("http://{}/", listener.local_addr()?);
                    black_holes.push(listener);
                    url
                }
            };
            let subscription = world::subscribe_instance(client, &instance, &url, &EVENTS).await?;
            if let Destination::Receiver { concurrency_max } = destination {
                let concurrency_max = i32::try_from(*concurrency_max)?;
                let change = v1::WebhookSubscription { concurrency_max, ..Default::default() };
                world::update(client, &subscription.id, change, "concurrency_max").await?;
            }
        }
        // A backlog to one destination may use all of a large buffer.
        let arguments =
            ["--buffer-bytes-max", "64GiB", "--buffer-destination-share", "100"].map(str::to_owned);
        let options = AgentOptions { arguments: arguments.into(), ..AgentOptions::default() };
        let agent = Agent::start(directory.path(), &control_plane, options).await?;
        let target = Target {
            address: agent.callback_addr(),
            path: route.callback_path,
            app_secret: APP_SECRET.to_owned(),
            phone_number_ids: numbers,
        };
        Ok(Self {
            control_plane,
            agent,
            target,
            _receiver: receiver,
            _black_holes: black_holes,
            _directory: directory,
        })
    }

    /// A provider that posts for the instance of this index.
    pub fn provider(&self, instance: usize) -> anyhow::Result<MetaProvider> {
        let url = self.agent.callback_url(&self.target.path);
        MetaProvider::new(url, APP_SECRET, &self.target.phone_number_ids[instance])
    }
}
