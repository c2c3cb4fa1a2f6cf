//! What goes back to a control plane that was restored.

use gateway_core::{
    opt_out::{ContactRef, Decision, OptOutDirection, OptOutReason, OptOutScope, Origin, merge},
    phone::normalize_phone,
};
use jiff::Timestamp;

use super::*;
use crate::pipeline::tests::buffer;

const ALICE: &str = "+966500000001";
const BOB: &str = "+966500000002";
const CAROL: &str = "+966500000003";

/// What is known of a contact after one decision.
fn decided(phone: &str, direction: OptOutDirection, seconds: i64) -> v1::OptOut {
    let event_time = Timestamp::from_second(seconds).unwrap();
    let decision = Decision {
        tenant_id: "default".parse().unwrap(),
        instance_id: "inst-test".parse().unwrap(),
        contact: ContactRef { phone: normalize_phone(phone), user_id: None },
        direction,
        scope: OptOutScope::NonEssential,
        reason: OptOutReason::RecipientRequestedStop,
        keyword: None,
        external_message_id: None,
        note: None,
        event_time,
        origin: Origin::Elsewhere,
    };
    v1::OptOut::from(&merge(None, &decision, event_time).record)
}

/// Waits for the task that sends.
async fn sent(resend: &mut Resend) {
    while resend.sending.join_next().await.is_some() {}
}

/// The control plane forgot one opt-out and has an older decision of another contact; in a third it agrees. The first
/// two go back, with the later decision, and the intention is on disk until they are in the buffer: after a crash
/// in between the whole log is asked for again.
#[tokio::test]
async fn what_the_control_plane_forgot_goes_back() {
    let (out, back_in) = (OptOutDirection::OptOut, OptOutDirection::OptIn);
    let (buffer, directory) = buffer().await;
    let file = Resend::file_in(directory.path());
    let opt_outs = OptOuts::new();
    let known = vec![decided(ALICE, out, 100), decided(BOB, out, 200), decided(CAROL, out, 300)];
    opt_outs.merge_from_stream(known);
    let mut resend = Resend::new(file.clone());
    assert!(!resend.begins_anew());
    resend.begin();
    let mut restarted = Resend::new(file.clone());
    assert!(restarted.begins_anew(), "a crash must not forget it");
    let of_backup = vec![decided(ALICE, out, 100), decided(BOB, back_in, 150)];
    resend.merge(&opt_outs, of_backup);
    resend.send(&opt_outs, &buffer);
    sent(&mut resend).await;
    let mut reported: Vec<_> =
        buffer.local_opt_outs().into_iter().map(|sent| (sent.phone.clone(), sent.state())).collect();
    reported.sort();
    let expected = [BOB, CAROL].map(|phone| (phone.to_owned(), v1::OptOutState::OptedOut));
    assert_eq!(reported, expected);
    assert!(buffer.has_reports() && !resend.begins_anew() && !file.exists());
}

/// A control plane that knows everything, or something later, gets nothing back; nothing is compared with one that
/// is the same store as before.
#[tokio::test]
async fn nothing_goes_back_that_is_known() {
    let (buffer, directory) = buffer().await;
    let opt_outs = OptOuts::new();
    opt_outs.merge_from_stream(vec![decided(ALICE, OptOutDirection::OptOut, 100)]);
    let mut resend = Resend::new(Resend::file_in(directory.path()));
    resend.send(&opt_outs, &buffer);
    sent(&mut resend).await;
    resend.begin();
    resend.merge(&opt_outs, vec![decided(ALICE, OptOutDirection::OptOut, 170)]);
    resend.send(&opt_outs, &buffer);
    sent(&mut resend).await;
    assert!(buffer.local_opt_outs().is_empty() && !buffer.has_reports());
}
