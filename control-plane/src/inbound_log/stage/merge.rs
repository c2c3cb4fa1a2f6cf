//! What two reports of the same delivery come to, in whatever order they arrive.

use gateway_proto::v1;

/// What a report says of attempts of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempted {
    /// Nothing.
    Not,
    /// At least one that was not known.
    New,
    /// Only some that were known: the report is a repeat.
    Again,
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merged {
    /// Nothing.
    Same,
    /// Something, but not the state; or the state is pending now, which is not worth telling.
    Changed,
    /// The state.
    Told,
}

/// How much a state settles. A delivery never goes back: not by what another agent says that owed it before it
/// was handed over or took the same event, and not by an old report that comes again. What was delivered was
/// delivered, and where every attempt failed, a deletion afterwards changes nothing.
fn settles(state: i32) -> u8 {
    match v1::DeliveryState::try_from(state) {
        Ok(v1::DeliveryState::Delivered) => 3,
        Ok(v1::DeliveryState::Exhausted) => 2,
        Ok(v1::DeliveryState::Cancelled) => 1,
        _ => 0,
    }
}

fn is_told(state: i32) -> bool {
    state != v1::DeliveryState::Unspecified as i32 && state != v1::DeliveryState::Pending as i32
}

/// Merges what an agent says of a delivery into what is known of it. The count of attempts is the highest that
/// was said; without an attempt the outcome of the last one stays.
pub(super) fn merge(
    known: &mut Vec<v1::Delivery>,
    mut reported: v1::Delivery,
    attempted: Attempted,
) -> Merged {
    let known_one = known.iter_mut().find(|delivery| delivery.subscription_id == reported.subscription_id);
    let Some(delivery) = known_one else {
        let merged = if is_told(reported.state) { Merged::Told } else { Merged::Changed };
        known.push(reported);
        return merged;
    };
    let (was, is) = (settles(delivery.state), settles(reported.state));
    let is_older = attempted == Attempted::Again || reported.attempt_count < delivery.attempt_count;
    if is < was || (is == was && is_older) {
        let is_more = reported.attempt_count > delivery.attempt_count;
        delivery.attempt_count = delivery.attempt_count.max(reported.attempt_count);
        return if is_more { Merged::Changed } else { Merged::Same };
    }
    reported.attempt_count = reported.attempt_count.max(delivery.attempt_count);
    if attempted == Attempted::Not {
        reported.last_status_code = delivery.last_status_code;
        reported.last_error.clone_from(&delivery.last_error);
    }
    if *delivery == reported {
        return Merged::Same;
    }
    let is_told = delivery.state != reported.state && is_told(reported.state);
    *delivery = reported;
    if is_told { Merged::Told } else { Merged::Changed }
}

#[cfg(test)]
mod tests {
    use v1::DeliveryState::{Cancelled, Delivered, Exhausted, Held, Pending};

    use super::*;

    fn delivery(state: v1::DeliveryState, attempt_count: u32) -> v1::Delivery {
        v1::Delivery {
            subscription_id: "sub_1".into(),
            state: state.into(),
            attempt_count,
            last_status_code: i32::try_from(attempt_count).unwrap(),
            ..Default::default()
        }
    }

    /// Of two states the one that settles more stays, whichever is reported first and whatever their counts of
    /// attempts; the count is the higher one. Only a change of state is told.
    #[test]
    fn settled_deliveries_stay_settled() {
        let order = [Pending, Cancelled, Exhausted, Delivered];
        for (place, settled) in order.into_iter().enumerate().skip(1) {
            for weaker in order[..place].iter().copied().chain([Held]) {
                for (counts, attempted) in
                    [((1, 3), Attempted::New), ((3, 1), Attempted::New), ((2, 2), Attempted::Not)]
                {
                    let (first, later) = (delivery(settled, counts.0), delivery(weaker, counts.1));
                    let mut known = vec![first.clone()];
                    let merged = merge(&mut known, later.clone(), attempted);
                    let kept = v1::Delivery { attempt_count: counts.0.max(counts.1), ..first.clone() };
                    assert_eq!(known, [kept], "{weaker:?} after {settled:?}");
                    assert_ne!(merged, Merged::Told);
                    let mut known = vec![later];
                    assert_eq!(merge(&mut known, first, attempted), Merged::Told);
                    assert_eq!(
                        (known[0].state(), known[0].attempt_count),
                        (settled, counts.0.max(counts.1)),
                        "{settled:?} after {weaker:?}"
                    );
                }
            }
        }
    }

    /// Of two reports that settle nothing the one with more attempts counts, and the later of two with as many,
    /// unless its attempts are known: then it is an old one.
    #[test]
    fn owed_deliveries_follow_the_newest_report() {
        let cases = [
            (delivery(Pending, 3), delivery(Held, 2), Attempted::New, Pending, Merged::Same),
            (delivery(Pending, 3), delivery(Held, 3), Attempted::Not, Held, Merged::Told),
            (delivery(Held, 3), delivery(Pending, 3), Attempted::Again, Held, Merged::Same),
            (delivery(Held, 3), delivery(Pending, 4), Attempted::New, Pending, Merged::Changed),
        ];
        for (before, reported, attempted, state, merged) in cases {
            let mut known = vec![before];
            assert_eq!(merge(&mut known, reported, attempted), merged);
            assert_eq!(known[0].state(), state);
        }
    }
}
