//! The gateway while destinations are in trouble: how little the others, and the provider, notice.

use std::{sync::Arc, time::Duration};

use gateway_tests::figure::Spread;

use crate::{
    gateway::{Destination, Gateway},
    generator::Load,
    run::{Measurement, drive},
    tally::Tally,
};

/// Instances, and so destinations, when all of them are black holes.
const BLACK_HOLES: usize = 10;

/// Measures the answers to the provider while no destination ever accepts a connection.
pub async fn black_hole(load: Load) -> anyhow::Result<Measurement> {
    let tally = Arc::new(Tally::over(load.connections, BLACK_HOLES).without_first(BLACK_HOLES));
    let gateway = Gateway::start(&tally, &[Destination::BlackHole; BLACK_HOLES]).await?;
    drive_over(&gateway, load, tally).await
}

/// Measures webhooks to all of so many destinations but the first, which answers or hangs.
pub async fn others(load: Load, destinations: usize, is_hanging: bool) -> anyhow::Result<Spread> {
    let healthy = Destination::Receiver { concurrency_max: 8 };
    let mut all = vec![healthy; destinations];
    if is_hanging {
        all[0] = Destination::Hanging;
    }
    let tally = Arc::new(Tally::over(load.connections, destinations).without_first(1));
    let gateway = Gateway::start(&tally, &all).await?;
    Ok(drive_over(&gateway, load, tally).await?.end_to_end)
}

async fn drive_over(gateway: &Gateway, load: Load, tally: Arc<Tally>) -> anyhow::Result<Measurement> {
    let mut measured = drive(&gateway.target, load, &tally).await?;
    measured.programs = vec![gateway.agent.usage()?, gateway.control_plane.usage()?];
    Ok(measured)
}

/// How many times as long as `without`.
pub fn ratio(with: Duration, without: Duration) -> f64 {
    with.as_secs_f64() / without.as_secs_f64()
}
