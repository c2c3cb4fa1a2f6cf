//! Gives deliveries away while the agent drains and the control plane takes them: what cannot be made now, in
//! portions, as the reports go out. What runs and what is due is attempted first, and given away when that fails.

use std::{sync::Arc, time::Duration};

use gateway_core::delivery::DeliveryState;
use tokio_util::sync::CancellationToken;

use crate::pipeline::buffer::Outcome;

use super::{queue::Entry, runner::Runner};

/// How often it is looked for more to give away.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Deliveries that are given away before it is looked again whether they still should be.
const GIVE_AT_ONCE: usize = 512;

/// Gives away what is to be given away, until `stop`.
pub(super) async fn give_away(runner: Arc<Runner>, stop: CancellationToken) {
    let drain = runner.snapshot.drain();
    loop {
        tokio::select! {
            () = drain.begins_to_hand_over() => {}
            () = stop.cancelled() => return,
        }
        while drain.hands_over() {
            if stop.is_cancelled() {
                return;
            }
            let portion = portion(&runner);
            if portion.is_empty() {
                tokio::select! {
                    () = runner.buffer.reports_freed(), if !runner.buffer.may_hand_over() => {}
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                    () = stop.cancelled() => return,
                }
            }
            for (subscription, entry) in portion {
                let state = if entry.is_held { DeliveryState::Held } else { DeliveryState::Pending };
                let (event, state) = (entry.event, state.given_away());
                let outcome = Outcome { event, subscription, state, due_ms: None, attempt: None, gone: None };
                runner.buffer.settle(outcome).await;
            }
        }
        runner.lock().keep();
    }
}

fn portion(runner: &Runner) -> Vec<(u32, Entry)> {
    if !runner.gives_away() {
        return Vec::new();
    }
    let mut schedule = runner.lock();
    let portion = schedule.give_away(GIVE_AT_ONCE, runner.now());
    if schedule.needs_waking() {
        runner.wake.notify_one();
    }
    portion
}
