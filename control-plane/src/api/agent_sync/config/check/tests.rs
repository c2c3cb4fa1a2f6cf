use gateway_core::snapshot::digest::Digests;

use super::*;

fn digests(count: u64) -> Digests {
    let mut digests = Digests::default();
    (0..count).for_each(|number| digests.add("instance", &format!("inst_{number}"), 1));
    digests
}

/// A check against one that knows what is expected at a version: this many instances.
fn check(version: u64, count: u64) -> Check {
    let expectations = Expectations::default();
    let mut check = Check::new(&expectations);
    know(&mut check, version, count);
    check
}

fn know(check: &mut Check, version: u64, count: u64) {
    check.expectations.know(Expected::for_all(version, digests(count)));
}

fn compare(check: &mut Check, version: u64) -> Compared {
    check.compare(version, "eu", None)
}

/// What an agent says is compared when it is of the version that the stream has brought it to, and not with what is expected
/// at another one; then not for a minute, after which the last thing it said counts. An agent that says nothing is never compared.
#[tokio::test(start_paused = true)]
async fn compared_at_the_same_version_now_and_then() {
    let mut check = check(7, 2);
    assert_eq!(compare(&mut check, 7), Compared::Not);
    check.said(7, Vec::new());
    assert_eq!(compare(&mut check, 7), Compared::Not);
    check.said(6, digests(1).to_proto());
    assert_eq!(compare(&mut check, 7), Compared::Not, "it is behind");
    check.said(8, digests(1).to_proto());
    assert_eq!(compare(&mut check, 8), Compared::Not, "it is not known yet");
    know(&mut check, 9, 1);
    assert_eq!(compare(&mut check, 8), Compared::Not, "a change is on its way");
    check.said(9, digests(1).to_proto());
    assert_eq!(compare(&mut check, 9), Compared::Same(false));
    check.said(9, digests(3).to_proto());
    assert_eq!(compare(&mut check, 9), Compared::Not);
    tokio::time::advance(COMPARE_INTERVAL).await;
    let expected = [Difference { resource_type: "instance", expected: 1, said: 3 }];
    assert_eq!(compare(&mut check, 9), Compared::Differs(expected.to_vec()));
    assert_eq!(compare(&mut check, 9), Compared::Not, "once");
}

/// After everything was sent anew only what the agent says after its verdict on the last part counts, at once; and it is
/// sent once on a stream.
#[tokio::test(start_paused = true)]
async fn what_was_said_before_the_resend_is_taken_does_not_count() {
    let mut check = check(7, 2);
    check.said(7, digests(1).to_proto());
    assert!(matches!(compare(&mut check, 7), Compared::Differs(_)) && check.may_resend());
    check.begin_resend();
    check.said(7, digests(1).to_proto());
    check.sent("5");
    check.said(7, digests(1).to_proto());
    assert!(!check.is_taken("4"));
    tokio::time::advance(COMPARE_INTERVAL).await;
    assert_eq!(compare(&mut check, 7), Compared::Not);
    assert!(check.is_taken("5") && !check.is_taken("5"));
    check.said(7, digests(2).to_proto());
    assert_eq!(compare(&mut check, 7), Compared::Same(true));
    assert!(!check.may_resend());
    check.sent("6");
    tokio::time::advance(COMPARE_INTERVAL).await;
    check.said(7, digests(2).to_proto());
    assert_eq!(compare(&mut check, 7), Compared::Same(false));
}
