//! What of a log, an attempt or a callback fits into an answer. What is stored stays whole: a webhook body may have
//! 7 MiB, and gRPC clients take answers of 4 MiB by default, so that one such event would hide all others from them.

use gateway_proto::v1;
use prost::Message as _;

/// Longest `payload_json` in lists and watches; of a longer one they say that it was left out.
pub const LISTED_PAYLOAD_BYTES_MAX: usize = 256 * 1_024;
/// Longest answer about one log, some way under the 4 MiB that gRPC clients take by default.
pub const ANSWER_BYTES_MAX: usize = 4 * 1_024 * 1_024 - 16 * 1_024;
/// Longest text of any other field. Agents cut there, too; it is for those that do not.
const TEXT_BYTES_MAX: usize = 64 * 1_024;
/// Longest beginning of an answer's body.
const EXCERPT_BYTES_MAX: usize = 16 * 1_024;
/// Deliveries of a log in one answer, in bytes.
const DELIVERIES_BYTES_MAX: usize = 1_024 * 1_024;
/// Most bytes of the tag and the length before a part of a message.
pub(super) const FIELD_HEAD_BYTES: usize = 8;

/// A log as lists and watches give it: far smaller than a page.
pub(super) fn listed(mut log: v1::InboundLog) -> v1::InboundLog {
    bound(&mut log);
    omit_payload_over(&mut log, LISTED_PAYLOAD_BYTES_MAX);
    log
}

/// A log as an answer about it alone gives it: with its body, if that fits at all.
#[must_use]
pub fn alone(mut log: v1::InboundLog) -> v1::InboundLog {
    bound(&mut log);
    let rest = log.encoded_len() - log.payload_json.len();
    omit_payload_over(&mut log, ANSWER_BYTES_MAX.saturating_sub(rest));
    log
}

/// An attempt as lists give it.
pub(super) fn attempt(mut attempt: v1::DeliveryAttempt) -> v1::DeliveryAttempt {
    let v1::DeliveryAttempt { attempt_id, event_id, subscription_id, error, agent_id, .. } = &mut attempt;
    [attempt_id, event_id, subscription_id, error, agent_id].into_iter().for_each(cut);
    attempt.response_excerpt.truncate(EXCERPT_BYTES_MAX);
    attempt
}

/// A callback as lists give it. There is no other answer with it, so that it is whole up to the size of a page.
pub(super) fn callback(mut callback: v1::UnroutedCallback, payload_bytes_max: usize) -> v1::UnroutedCallback {
    let v1::UnroutedCallback {
        id, inbound_route_id, provider_number_id, provider_account_id, agent_id, ..
    } = &mut callback;
    [id, inbound_route_id, provider_number_id, provider_account_id, agent_id].into_iter().for_each(cut);
    callback.payload_omitted = callback.payload_json.len() > payload_bytes_max;
    if callback.payload_omitted {
        callback.payload_json = String::new();
    }
    callback
}

/// Cuts the texts of an opt-out that an agent reports, so that it fits into an answer. What providers send is far
/// shorter.
pub fn bound_opt_out(opt_out: &mut v1::OptOut) {
    let v1::OptOut { user_id, keyword, external_message_id, note, .. } = opt_out;
    [user_id, keyword, external_message_id, note].into_iter().for_each(cut);
}

/// Cuts a text at [`TEXT_BYTES_MAX`].
pub(super) fn cut(text: &mut String) {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    }
}

/// Bounds everything but the body.
fn bound(log: &mut v1::InboundLog) {
    let texts = [
        &mut log.event_id,
        &mut log.tenant_id,
        &mut log.instance_id,
        &mut log.event,
        &mut log.from_phone,
        &mut log.to_phone,
        &mut log.contact_user_id,
        &mut log.message_type,
        &mut log.message_text,
        &mut log.external_message_id,
        &mut log.agent_id,
        &mut log.region,
    ];
    texts.into_iter().for_each(cut);
    let mut bytes = 0;
    let fitting = log.deliveries.iter().take_while(|delivery| {
        bytes += delivery.encoded_len() + FIELD_HEAD_BYTES;
        bytes <= DELIVERIES_BYTES_MAX
    });
    let (kept, all) = (fitting.count(), log.deliveries.len());
    log.deliveries.truncate(kept);
    log.omitted_delivery_count = u32::try_from(all - kept).unwrap_or(u32::MAX);
}

fn omit_payload_over(log: &mut v1::InboundLog, bytes_max: usize) {
    log.payload_omitted = log.payload_json.len() > bytes_max;
    if log.payload_omitted {
        log.payload_json = String::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest log that an agent of ours can report, and one as another program might make it.
    fn large() -> [v1::InboundLog; 2] {
        let text = "é".repeat(40_000);
        let ours = v1::InboundLog {
            contact_user_id: text.clone(),
            message_text: text.clone(),
            payload_json: "x".repeat(7 << 20),
            ..Default::default()
        };
        let delivery =
            v1::Delivery { subscription_id: "s".repeat(63), last_error: text.clone(), ..Default::default() };
        let long = "é".repeat(400_000);
        let others = v1::InboundLog {
            event_id: long.clone(),
            tenant_id: long.clone(),
            instance_id: long.clone(),
            event: long.clone(),
            from_phone: long.clone(),
            to_phone: long.clone(),
            message_type: long.clone(),
            external_message_id: long.clone(),
            agent_id: long.clone(),
            region: long,
            deliveries: vec![delivery; 40],
            ..ours.clone()
        };
        [ours, others]
    }

    /// However large a log is, what lists and single answers give of it fits, and says what is missing.
    #[test]
    fn every_log_fits_into_an_answer() {
        for log in large() {
            let had = log.deliveries.len();
            for fitted in [listed(log.clone()), alone(log)] {
                assert!(fitted.encoded_len() <= 3 << 20);
                assert!(fitted.payload_omitted && fitted.payload_json.is_empty());
                assert!(fitted.message_text.len() > 60_000);
                let omitted = usize::try_from(fitted.omitted_delivery_count).unwrap();
                assert_eq!(fitted.deliveries.len() + omitted, had);
                assert_eq!(omitted > 0, had > 0);
            }
        }
    }

    /// A body is listed up to its limit, and an answer about one log has it as long as the whole of it fits.
    #[test]
    fn a_body_that_fits_stays_whole() {
        let of = |bytes| v1::InboundLog { payload_json: "x".repeat(bytes), ..Default::default() };
        for (bytes, is_listed, is_alone) in [
            (LISTED_PAYLOAD_BYTES_MAX, true, true),
            (LISTED_PAYLOAD_BYTES_MAX + 1, false, true),
            (ANSWER_BYTES_MAX - 16, false, true),
            (ANSWER_BYTES_MAX, false, false),
        ] {
            let (listed, alone) = (listed(of(bytes)), alone(of(bytes)));
            assert_eq!((listed.payload_omitted, alone.payload_omitted), (!is_listed, !is_alone), "{bytes}");
            assert_eq!(alone.payload_json.len(), if is_alone { bytes } else { 0 });
            assert!(alone.encoded_len() <= ANSWER_BYTES_MAX);
        }
    }

    /// A single delivery of another program that is larger than all may be is left out as well.
    #[test]
    fn a_huge_delivery_is_left_out() {
        let delivery = v1::Delivery { last_error: "x".repeat(2 << 20), ..Default::default() };
        let log = listed(v1::InboundLog { deliveries: vec![delivery], ..Default::default() });
        assert_eq!((log.deliveries.len(), log.omitted_delivery_count), (0, 1));
    }

    /// What is listed of attempts and of callbacks is bounded, too.
    #[test]
    fn attempts_and_callbacks_are_bounded() {
        let text = "x".repeat(1 << 20);
        let attempt = attempt(v1::DeliveryAttempt {
            attempt_id: text.clone(),
            event_id: text.clone(),
            subscription_id: text.clone(),
            error: text.clone(),
            agent_id: text.clone(),
            response_excerpt: text.clone().into(),
            ..Default::default()
        });
        assert!(attempt.encoded_len() < 512 * 1_024);
        let whole = v1::UnroutedCallback {
            provider_account_id: text.clone(),
            payload_json: text.clone(),
            ..Default::default()
        };
        let kept = callback(whole.clone(), text.len());
        assert!(
            !kept.payload_omitted && kept.payload_json == text && kept.provider_account_id.len() < 100_000
        );
        let cut = callback(whole, text.len() - 1);
        assert!(cut.payload_omitted && cut.payload_json.is_empty());
    }
}
