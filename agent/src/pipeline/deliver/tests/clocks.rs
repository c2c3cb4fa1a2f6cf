//! A wall clock that jumps, at run time and across a restart.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

use super::*;

const HOUR_S: i64 = 3_600;
const JUMPS_S: [i64; 4] = [-24 * HOUR_S, -HOUR_S, HOUR_S, 24 * HOUR_S];

fn after_jump(seconds: i64) -> Timestamp {
    clock::now() + SignedDuration::from_secs(seconds)
}

/// Where the clock of [`jumps_change_nothing_at_run_time`] stands.
static JUMP_S: AtomicI64 = AtomicI64::new(0);

/// While the agent runs a jump changes nothing: what waits comes when its delay is over, neither at once nor
/// late, and what is new comes at once.
#[tokio::test]
async fn jumps_change_nothing_at_run_time() {
    for jump_s in JUMPS_S {
        JUMP_S.store(0, Ordering::Relaxed);
        let receiver = Receiver::start(|before| match before {
            0..4 => Reply::Status(500, "", ""),
            _ => Reply::Status(200, "", ""),
        })
        .await;
        let jumping = || after_jump(JUMP_S.load(Ordering::Relaxed));
        let delayed = after(&[2_000], subscription("sub_a", &receiver.url()));
        let world = World::with([delayed], jumping, Tuning::default()).await;
        world.buffer.append(entry((0..4).map(|number| event(number, &["sub_a"])))).await.unwrap();
        receiver.wait_for(4).await;
        let failed = Instant::now();
        JUMP_S.store(jump_s, Ordering::Relaxed);
        world.append(9, &["sub_a"]).await;
        receiver.wait_for(5).await;
        assert!(failed.elapsed() < Duration::from_millis(1_900), "{jump_s}: {:?}", failed.elapsed());
        // It is a late one that would not come in time.
        receiver.wait_for(9).await;
        let waited = failed.elapsed();
        assert!(waited > Duration::from_millis(1_900), "{jump_s}: {waited:?}");
        for number in 0..4 {
            let delivery = world.delivery(number, "sub_a", v1::DeliveryState::Delivered).await;
            assert_eq!(delivery.attempt_count, 2, "{jump_s}");
        }
        world.stop().await;
    }
}

/// A clock that was set forward while the agent was down makes every delivery come too early once, and no more;
/// one that was set back brings none early, and a new event waits for neither.
#[tokio::test]
async fn jumps_across_a_restart_cause_no_storm() {
    let jumped: [WallClock; 4] = JUMPS_S.map(|jump_s| match jump_s {
        ..0 if jump_s < -HOUR_S => (|| after_jump(-24 * HOUR_S)) as WallClock,
        ..0 => || after_jump(-HOUR_S),
        0..=HOUR_S => || after_jump(HOUR_S),
        _ => || after_jump(24 * HOUR_S),
    });
    for (jump_s, wall) in JUMPS_S.into_iter().zip(jumped) {
        let receiver = Receiver::start(|_| Reply::Status(500, "", "")).await;
        let failing = after(&[1_800_000, 1_800_000], subscription("sub_a", &receiver.url()));
        let world = World::new([failing]).await;
        world.buffer.append(entry((0..5).map(|number| event(number, &["sub_a"])))).await.unwrap();
        let made = |count| move |reported: &Reported| reported.attempts.len() >= count;
        world.reported_when("the first attempts are made", made(5)).await;

        let world = world.restart(wall).await;
        world.append(9, &["sub_a"]).await;
        let expected = if jump_s > 0 { 11 } else { 6 };
        let reported = world.reported_when("attempts are made after the jump", made(expected)).await;
        assert_eq!(receiver.requests().len(), expected, "{jump_s}");
        assert!(reported.deliveries.values().all(|delivery| delivery.next_attempt_time.is_some()));
        world.stop().await;
    }
}
