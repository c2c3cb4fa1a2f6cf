//! `grpc.health.v1.Health`: the same word as `/readyz`, for the whole server and for each service
//! (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
//!
//! Every service is told the same, since every one of them needs a store that can be written, sooner or later: a caller that
//! is sent elsewhere for changes is sent there for reading too.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::SERVICES;
use crate::writable::Trouble;

/// Says whether there is trouble until `stop`, and from then on that nothing is served.
pub(super) async fn follow(
    health: &HealthReporter,
    mut trouble: watch::Receiver<Trouble>,
    stop: CancellationToken,
) {
    let mut told = None;
    loop {
        let found = *trouble.borrow_and_update();
        // Those who watch hear of changes, not of every look.
        if told != Some(found.is_some()) {
            announce(health, found).await;
            told = Some(found.is_some());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            changed = trouble.changed() => if changed.is_err() {
                // Nobody looks any more: what was seen last stays, as `/readyz` has it.
                stop.cancelled().await;
                break;
            },
        }
    }
    announce(health, Some("stopping")).await;
}

/// Says whether there is trouble.
pub(super) async fn announce(health: &HealthReporter, trouble: Trouble) {
    let status = if trouble.is_none() { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in std::iter::once("").chain(SERVICES) {
        health.set_service_status(name, status).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
    use tonic::{Request, Status};
    use tonic_health::{
        pb::{
            HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus as Told,
            health_server::Health as _,
        },
        server::HealthService,
    };

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    /// Health follows what `/readyz` follows, for the whole server and each service, asked and watched; looks that see
    /// the same are told once, and a stop ends it all.
    #[tokio::test]
    async fn health_follows_readiness() {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        announce(&reporter, Some("starting")).await;
        let (seen, trouble) = watch::channel(None);
        let stop = CancellationToken::new();
        let names = || std::iter::once("").chain(SERVICES);
        let asked = |name: &str| Request::new(HealthCheckRequest { service: name.to_owned() });
        let mut watches = Vec::new();
        for name in names() {
            watches.push(service.watch(asked(name)).await.unwrap().into_inner().boxed());
        }
        let next = async |watches: &mut [BoxStream<'_, Result<HealthCheckResponse, Status>>],
                          wanted: Told| {
            for (name, watch) in names().zip(watches) {
                let told = tokio::time::timeout(DEADLINE, watch.next()).await.expect("it is told in time");
                assert_eq!(told.unwrap().unwrap().status(), wanted, "{name}");
                let checked = service.check(asked(name)).await.unwrap().into_inner();
                assert_eq!(checked.status(), wanted, "{name}");
            }
        };
        next(&mut watches, Told::NotServing).await;
        // By hand, so that each step is seen before the next; and without tokio's budget, which would cut one short.
        let mut following = Box::pin(tokio::task::unconstrained(follow(&reporter, trouble, stop.clone())));
        let mut step = async || futures_util::poll!(&mut following).is_ready();
        assert!(!step().await);
        next(&mut watches, Told::Serving).await;
        seen.send_replace(Some("the disk is full"));
        assert!(!step().await);
        next(&mut watches, Told::NotServing).await;
        // Found again, and found for another reason: nobody is told.
        for again in ["the disk is full", "the database cannot be written"] {
            seen.send_replace(Some(again));
            assert!(!step().await);
            assert!(watches.iter_mut().all(|watch| watch.next().now_or_never().is_none()));
        }
        seen.send_replace(None);
        assert!(!step().await);
        next(&mut watches, Told::Serving).await;
        drop(seen);
        assert!(!step().await);
        stop.cancel();
        assert!(step().await);
        next(&mut watches, Told::NotServing).await;
    }
}
