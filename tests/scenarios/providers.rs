//! Every provider, with callbacks that its own library proves: what it says arrives, what it did not say does not.

pub mod dialect;
mod secrets;
mod line;
mod messages;
mod opt_outs;
mod refusals;
mod oddities;
mod public_url;
mod rotation;
mod callback_token;
mod unclaimed;
mod linked_phones;
mod fixtures;

use std::sync::Arc;

use anyhow::Context as _;
use gateway_core::event::Provider;
use gateway_proto::v1::InboundRouteSecretKind as Kind;
use gateway_tests::{Signer, World};

pub use line::{Call, Line};
use secrets::{kinds, secret};

/// A line at every provider, proved by its strongest kind of secret, in use on the agent.
pub async fn all_lines(world: &World) -> anyhow::Result<Vec<Line<'_>>> {
    let strongest = Provider::ALL.map(|provider| (provider, kinds(provider)[0]));
    lines(world, &strongest).await
}

/// A line at every provider for each kind of secret that proves its callbacks.
async fn lines_of_every_kind(world: &World) -> anyhow::Result<Vec<Line<'_>>> {
    let all: Vec<_> = Provider::ALL
        .into_iter()
        .flat_map(|provider| kinds(provider).iter().map(move |kind| (provider, *kind)))
        .collect();
    lines(world, &all).await
}

async fn lines<'a>(world: &'a World, wanted: &[(Provider, Kind)]) -> anyhow::Result<Vec<Line<'a>>> {
    let signer = Arc::new(Signer::start().await?);
    let mut lines = Vec::with_capacity(wanted.len());
    for (provider, kind) in wanted {
        let line = Line::create(world, &signer, *provider, Some(secret(*kind, 1))).await;
        lines.push(line.with_context(|| format!("create a line at {}", provider.name()))?);
    }
    world.config_applied().await?;
    Ok(lines)
}

/// Holds a promise against each of several lines, and fails with all that break it.
async fn each<'a>(lines: &[Line<'a>], promise: impl AsyncFn(&Line<'a>) -> anyhow::Result<()>) {
    let mut broken = Vec::new();
    for line in lines {
        if let Err(error) = promise(line).await {
            let kind = line.secret.as_ref().map(|secret| secret.kind.as_str_name());
            broken.push(format!("{} {}: {error:#}", line.provider.name(), kind.unwrap_or_default()));
        }
    }
    assert!(broken.is_empty(), "{} of {}:\n{}", broken.len(), lines.len(), broken.join("\n"));
}
