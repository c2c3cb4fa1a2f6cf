use proptest::prelude::*;

use super::*;
use crate::phone::normalize_phone;

/// A STOP by keyword of the demo contact, taken here, at this second.
pub fn decision(second: i64) -> Decision {
    Decision {
        tenant_id: TenantId::default_tenant(),
        instance_id: "demo-support-line".parse().unwrap(),
        contact: phone_contact("+966500000001"),
        direction: OptOutDirection::OptOut,
        scope: OptOutScope::NonEssential,
        reason: OptOutReason::RecipientRequestedStop,
        keyword: Some("stop".into()),
        external_message_id: Some("wamid.1".into()),
        note: None,
        event_time: at(second),
        origin: Origin::Here,
    }
}

/// The contact of a phone number.
pub fn phone_contact(phone: &str) -> ContactRef {
    ContactRef { phone: normalize_phone(phone), user_id: None }
}

/// A second of the test's clock.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_778_000_000 + second).unwrap()
}

fn stop(second: i64) -> Decision {
    decision(second)
}

fn start(second: i64) -> Decision {
    Decision {
        direction: OptOutDirection::OptIn,
        reason: OptOutReason::RecipientRequestedStart,
        keyword: Some("start".into()),
        external_message_id: Some("wamid.2".into()),
        ..decision(second)
    }
}

fn preference(direction: OptOutDirection, second: i64) -> Decision {
    Decision {
        direction,
        scope: OptOutScope::Marketing,
        reason: OptOutReason::ProviderPreference,
        keyword: None,
        ..decision(second)
    }
}

fn stop_marketing(second: i64) -> Decision {
    preference(OptOutDirection::OptOut, second)
}

fn resume_marketing(second: i64) -> Decision {
    preference(OptOutDirection::OptIn, second)
}

fn elsewhere(decision: Decision) -> Decision {
    Decision { origin: Origin::Elsewhere, ..decision }
}

const NOW: i64 = 1_000;

fn merged(decisions: &[Decision]) -> Merged {
    let mut last: Option<Merged> = None;
    for decision in decisions {
        last = Some(merge(last.as_ref().map(|merged| &merged.record), decision, at(NOW)));
    }
    last.unwrap()
}

fn outcome(decisions: &[Decision]) -> (OptOutState, OptOutScope) {
    let record = merged(decisions).record;
    (record.state(), record.scope())
}

const OUT: (OptOutState, OptOutScope) = (OptOutState::OptedOut, OptOutScope::NonEssential);
const OUT_MARKETING: (OptOutState, OptOutScope) = (OptOutState::OptedOut, OptOutScope::Marketing);
const IN: (OptOutState, OptOutScope) = (OptOutState::OptedIn, OptOutScope::NonEssential);

/// The later decision counts, whenever it arrives: a late retry of STOP does not undo a newer START.
#[test]
fn later_event_time_wins() {
    assert_eq!(outcome(&[stop(1)]), OUT);
    assert_eq!(outcome(&[stop(1), start(2)]), IN);
    assert_eq!(outcome(&[start(2), stop(1)]), IN);
    assert_eq!(outcome(&[start(1), stop(2)]), OUT);
    assert_eq!(outcome(&[stop(2), start(1)]), OUT);
}

/// Within one second the later received counts where one program took both.
#[test]
fn later_received_wins_a_tie_here() {
    assert_eq!(outcome(&[stop(1), start(1)]), IN);
    assert_eq!(outcome(&[start(1), stop(1)]), OUT);
    assert_eq!(outcome(&[stop(1), start(1), stop(1)]), OUT);
    assert_eq!(outcome(&[stop(1), start(1), stop(1), start(1)]), IN);
    assert_eq!(outcome(&[stop_marketing(1), stop(1), start(1)]), IN);
    assert_eq!(outcome(&[start(1), stop(1), start(2)]), IN);
}

/// The order of one agent survives the way to the others: they merge in any order and agree.
#[test]
fn the_order_of_a_tie_travels() {
    let first = merged(&[stop(1)]).record;
    let second = merge(Some(&first), &start(1), at(NOW)).record;
    for (one, other) in [(&first, &second), (&second, &first)] {
        assert_eq!(merge_record(Some(one), other, at(NOW)).record.state(), OptOutState::OptedIn);
    }
}

/// Between programs the opt-out wins a tie, whoever comes first.
#[test]
fn opt_out_wins_a_tie_between_programs() {
    assert_eq!(outcome(&[elsewhere(stop(1)), start(1)]), OUT);
    assert_eq!(outcome(&[start(1), elsewhere(stop(1))]), OUT);
    assert_eq!(outcome(&[elsewhere(start(1)), stop(1)]), OUT);
    assert_eq!(outcome(&[elsewhere(stop(1)), elsewhere(start(1))]), OUT);
    assert_eq!(outcome(&[elsewhere(stop_marketing(1)), start(1)]), OUT_MARKETING);
    let ordered_elsewhere = merged(&[stop(1), start(1)]).record;
    let opted_in = merge_record(None, &ordered_elsewhere, at(NOW)).record;
    assert_eq!(merge(Some(&opted_in), &stop(1), at(NOW)).record.state(), OptOutState::OptedOut);
}

/// A thousand changes of mind within a second do not reach into the next one, and end as an opt-out.
#[test]
fn ties_stay_within_their_millisecond() {
    let many: Vec<_> = (0..3_000).map(|index| if index % 2 == 0 { stop(1) } else { start(1) }).collect();
    let record = merged(&many).record;
    assert_eq!(record.state(), OptOutState::OptedOut);
    assert!(record.deciding().event_time.duration_since(at(1)) < SignedDuration::from_millis(1));
    assert_eq!(merge(Some(&record), &start(2), at(NOW)).record.state(), OptOutState::OptedIn);
}

/// The wider scope counts: it replaces a narrower one, and a narrower one leaves it alone.
#[test]
fn scope_is_never_narrowed_by_an_opt_out() {
    assert_eq!(outcome(&[stop_marketing(1)]), OUT_MARKETING);
    assert_eq!(outcome(&[stop_marketing(1), stop(2)]), OUT);
    assert_eq!(outcome(&[stop_marketing(2), stop(1)]), OUT);
    assert_eq!(outcome(&[stop(1), stop_marketing(2)]), OUT);
    let widened = merged(&[stop_marketing(1), stop(2)]);
    assert_eq!((widened.record.state(), widened.is_news), (OptOutState::OptedOut, true));
    let narrower = merge(Some(&widened.record), &stop_marketing(3), at(NOW));
    assert!(narrower.changed && !narrower.is_news);
}

/// A marketing opt-out that becomes a full one is told like a change of state, once, under an id of its own
/// that every agent gives it.
#[test]
fn a_wider_opt_out_is_news() {
    let mut record = None;
    let mut numbers = Vec::new();
    for decision in
        [stop_marketing(1), stop(2), stop(3), stop_marketing(4), start(5), stop_marketing(6), stop(7)]
    {
        let merged = merge(record.as_ref(), &decision, at(NOW));
        numbers.push((merged.record.change_number, merged.is_news));
        record = Some(merged.record);
    }
    assert_eq!(numbers, [(1, true), (2, true), (2, false), (2, false), (3, true), (4, true), (5, true)]);
    let marketing = merged(&[stop_marketing(1)]).record;
    let widened = merged(&[stop_marketing(1), stop(2)]).record;
    assert_ne!(widened.event_id(), marketing.event_id());
    let heard = merge_record(Some(&marketing), &widened, at(NOW));
    assert_eq!((heard.record.change_number, heard.record.event_id()), (2, widened.event_id()));
    assert!(!merge_record(Some(&heard.record), &marketing, at(NOW)).is_news);
}

/// START ends every opt-out before it; the provider's `resume` ends one of marketing only.
#[test]
fn opt_in_ends_what_it_is_about() {
    assert_eq!(outcome(&[stop(1), start(2)]), IN);
    assert_eq!(outcome(&[stop_marketing(1), start(2)]), IN);
    assert_eq!(outcome(&[stop_marketing(1), stop(2), start(3)]), IN);
    assert_eq!(outcome(&[stop_marketing(1), resume_marketing(2)]).0, OptOutState::OptedIn);
    assert_eq!(outcome(&[stop(1), resume_marketing(2)]), OUT);
    assert_eq!(outcome(&[stop_marketing(1), stop(2), resume_marketing(3)]), OUT);
    assert_eq!(outcome(&[stop(1), stop_marketing(5), start(3)]), OUT_MARKETING);
}

/// A change of state is counted once, however often the wish is repeated, and so is the first decision.
#[test]
fn changes_of_state_are_counted() {
    let mut record = None;
    let mut numbers = Vec::new();
    for decision in [stop(1), stop(2), stop(1), start(3), start(4), stop(5), stop_marketing(6)] {
        let merged = merge(record.as_ref(), &decision, at(NOW));
        numbers.push((merged.record.change_number, merged.is_news));
        record = Some(merged.record);
    }
    assert_eq!(numbers, [(1, true), (1, false), (1, false), (2, true), (2, false), (3, true), (3, false)]);
    let first = merged(&[start(1)]);
    assert!(first.is_news && first.record.change_number == 1);
}

/// Repeating a decision changes nothing, so nothing is stored or told again.
#[test]
fn repeats_change_nothing() {
    let once = merged(&[stop(1)]);
    let again = merge(Some(&once.record), &stop(1), at(NOW + 1));
    assert_eq!(again, Merged { changed: false, is_news: false, ..once.clone() });
    let echoed = merge_record(Some(&once.record), &once.record, at(NOW + 1));
    assert_eq!(echoed, again);
}

/// Two agents that see two STOPs of one contact name the same event; the next change has another id.
#[test]
fn event_ids_agree_between_agents() {
    let here = merged(&[stop(1)]).record;
    let there = merged(&[Decision { external_message_id: Some("wamid.9".into()), ..stop(2) }]).record;
    assert_eq!(here.event_id(), there.event_id());
    assert_eq!(here.id, there.id);
    assert_eq!(
        here.event_id(),
        EventId::derive(&["recipient.opted_out", "demo-support-line", "+966500000001", "1"])
    );
    assert_ne!(merged(&[stop(1), start(2), stop(3)]).record.event_id(), here.event_id());
    assert_ne!(merged(&[stop(1), start(2)]).record.event_id(), here.event_id());
}

/// National variants of a number are one contact with one id.
#[test]
fn national_variants_share_an_id() {
    let long = Decision { contact: phone_contact("+5511987654321"), ..stop(1) };
    let short = Decision { contact: phone_contact("+551187654321"), ..stop(1) };
    let (long, short) = (merged(&[long]).record, merged(&[short]).record);
    assert_eq!((long.id, long.event_id()), (short.id, short.event_id()));
    let both = merge_record(Some(&long), &short, at(NOW));
    assert!(!both.changed && both.left_over.is_none(), "a variant is no news");
}

/// A second key is learned, and the record keeps its id.
#[test]
fn a_second_key_is_learned() {
    let both = ContactRef { user_id: Some("SA.1".into()), ..phone_contact("+966500000001") };
    let known = merged(&[stop(1)]);
    let learned = merge(Some(&known.record), &Decision { contact: both.clone(), ..stop(1) }, at(NOW));
    assert_eq!(learned.record.contact, both);
    assert_eq!(learned.record.id, known.record.id);
    assert!(learned.changed && !learned.is_news && learned.left_over.is_none());
}

/// A contact that comes with another number takes its wish along, and the old number keeps it.
#[test]
fn a_changed_key_leaves_the_old_one_protected() {
    let contact = |phone| ContactRef { user_id: Some("SA.1".into()), ..phone_contact(phone) };
    let known = merged(&[Decision { contact: contact("+966500000001"), ..stop(1) }]).record;
    let moved = merge(Some(&known), &Decision { contact: contact("+966500000002"), ..start(2) }, at(NOW));
    assert_eq!(moved.record.contact, contact("+966500000002"));
    assert_eq!(moved.record.state(), OptOutState::OptedIn);
    let left_over = moved.left_over.unwrap();
    assert_eq!(left_over.contact, phone_contact("+966500000001"));
    assert_eq!((left_over.state(), left_over.id), (OptOutState::OptedOut, known.id));
    assert_ne!(moved.record.id, known.id);
}

/// A provider's clock that is years ahead does not make an opt-out endless.
#[test]
fn far_future_counts_as_now() {
    let endless = Decision { event_time: "2999-01-01T00:00:00Z".parse().unwrap(), ..stop(0) };
    let record = merged(&[endless]).record;
    assert_eq!(record.deciding().event_time, at(NOW));
    assert_eq!(merge(Some(&record), &start(NOW + 1), at(NOW + 1)).record.state(), OptOutState::OptedIn);
}

/// An opt-in whose clock is ahead does not outlast the STOP that follows it, however little ahead.
#[test]
fn an_opt_in_from_the_future_ends_with_the_next_opt_out() {
    let now = at(NOW).checked_add(SignedDuration::from_millis(900)).unwrap();
    for ahead in [1, 5, 59, 61, 20 * 3_600, 48 * 3_600] {
        let opted_in = merge(None, &start(NOW + ahead), now).record;
        assert_eq!(opted_in.deciding().event_time, at(NOW), "{ahead}");
        for second in [NOW, NOW + 5] {
            let after = merge(Some(&opted_in), &stop(second), now).record;
            assert_eq!(after.state(), OptOutState::OptedOut, "{ahead}, {second}");
        }
    }
    // A record of before, or of a program with another clock.
    let endless = merged(&[elsewhere(start(NOW + 3_600))]).record;
    assert_eq!(merge(Some(&endless), &stop(NOW), now).record.state(), OptOutState::OptedOut);
}

/// STOP and START by one clock that is ahead of ours end in the order of that clock, and of receipt within
/// its second.
#[test]
fn a_clock_ahead_keeps_its_order() {
    assert_eq!(outcome(&[stop(NOW + 5), start(NOW + 7)]), IN);
    assert_eq!(outcome(&[stop(NOW + 5), start(NOW + 5)]), IN);
    assert_eq!(outcome(&[stop(NOW + 5), start(NOW + 5), stop(NOW + 5)]), OUT);
    assert_eq!(outcome(&[stop(NOW + 5), start(NOW + 7), stop(NOW + 7)]), OUT);
    assert_eq!(outcome(&[stop(NOW + 5), start(NOW + 3)]), OUT);
    assert_eq!(outcome(&[stop(NOW + 5), start(NOW + 90_000), stop(NOW)]), OUT);
    assert_eq!(outcome(&[stop(NOW + 90_000), start(NOW)]), IN);
    assert_eq!(outcome(&[elsewhere(stop(NOW + 5)), start(NOW + 7)]), OUT);
}

/// Debug output carries neither number, user id, keyword nor message id.
#[test]
fn debug_is_masked() {
    let contact = ContactRef { user_id: Some("SA.1349120".into()), ..phone_contact("+966500000001") };
    let secret = Decision { contact, keyword: Some("kw-planted".into()), ..stop(1) };
    let text = format!("{secret:?} {:?}", merged(std::slice::from_ref(&secret)));
    for planted in ["96650000000", "1349120", "kw-planted", "wamid"] {
        assert!(!text.contains(planted), "{planted} in {text}");
    }
}

fn any_decision() -> impl Strategy<Value = Decision> {
    let wishes: [fn(i64) -> Decision; 4] = [stop, start, stop_marketing, resume_marketing];
    (0..wishes.len(), 0_i64..6).prop_map(move |(wish, second)| elsewhere(wishes[wish](second)))
}

/// What the module promises to be the same: state, scope and time, of each register.
fn essence(record: &OptOutRecord) -> impl PartialEq + std::fmt::Debug + use<> {
    let register = |mark: &Option<Mark>| mark.as_ref().map(Mark::rank);
    (
        record.state(),
        record.scope(),
        record.deciding().event_time,
        register(&record.full),
        register(&record.marketing),
    )
}

/// The definition, over the whole set at once: each register is the latest decision about it.
fn expected(decisions: &[Decision]) -> OptOutState {
    let latest = |is_about: fn(&Decision) -> bool| {
        decisions.iter().filter(|one| is_about(one)).map(|one| (one.event_time, one.direction)).max()
    };
    let full = latest(|one| one.scope == OptOutScope::NonEssential);
    let marketing =
        latest(|one| one.scope == OptOutScope::Marketing || one.direction == OptOutDirection::OptIn);
    let says_stop = |newest: Option<(Timestamp, OptOutDirection)>| {
        newest.is_some_and(|(_, direction)| direction == OptOutDirection::OptOut)
    };
    if says_stop(full) || says_stop(marketing) { OptOutState::OptedOut } else { OptOutState::OptedIn }
}

proptest! {
    /// Whatever the order and however often repeated, the same decisions give the same record.
    #[test]
    fn merging_is_commutative_and_idempotent(
        (decisions, shuffled, repeats) in prop::collection::vec(any_decision(), 1..8)
            .prop_flat_map(|all| (Just(all.clone()), Just(all.clone()).prop_shuffle(), prop::collection::vec(0..all.len(), 0..4)))
    ) {
        let one = merged(&decisions).record;
        let mut other = shuffled;
        other.extend(repeats.into_iter().map(|index| decisions[index].clone()));
        let two = merged(&other).record;
        prop_assert_eq!(essence(&one), essence(&two));
        prop_assert_eq!(one.state(), expected(&decisions));
    }

    /// However decisions are spread over records first, the records merge to the same.
    #[test]
    fn merging_records_is_associative(
        decisions in prop::collection::vec(any_decision(), 3..9), first in 1_usize..3, second in 1_usize..3
    ) {
        let (a, rest) = decisions.split_at(first.min(decisions.len() - 2));
        let (b, c) = rest.split_at(second.min(rest.len() - 1));
        let [a, b, c] = [a, b, c].map(|part| merged(part).record);
        let join = |one: &OptOutRecord, two: &OptOutRecord| merge_record(Some(one), two, at(NOW)).record;
        let left = join(&join(&a, &b), &c);
        let right = join(&a, &join(&b, &c));
        let turned = join(&c, &join(&b, &a));
        prop_assert_eq!(essence(&left), essence(&right));
        prop_assert_eq!(essence(&left), essence(&turned));
        prop_assert_eq!(essence(&left), essence(&merged(&decisions).record));
    }

    /// An opt-out is never lost, except to an opt-in that is later and about the same.
    #[test]
    fn opt_outs_end_only_by_later_opt_ins(decisions in prop::collection::vec(any_decision(), 1..8)) {
        let record = merged(&decisions).record;
        let unanswered = decisions.iter().filter(|one| one.direction == OptOutDirection::OptOut).any(|out| {
            !decisions.iter().any(|other| {
                other.direction == OptOutDirection::OptIn && other.scope >= out.scope && other.event_time > out.event_time
            })
        });
        if unanswered {
            prop_assert_eq!(record.state(), OptOutState::OptedOut);
        }
    }

    /// On one agent, by seconds, the last of the latest second counts; and what the agent recorded on the
    /// way gives the same result elsewhere, in any order.
    #[test]
    fn one_agent_orders_its_ties(
        (records, state, last) in prop::collection::vec((any::<bool>(), 0_i64..4), 1..8).prop_map(|wishes| {
            let mut records: Vec<OptOutRecord> = Vec::new();
            for (is_stop, second) in &wishes {
                let decision = if *is_stop { stop(*second) } else { start(*second) };
                records.push(merge(records.last(), &decision, at(NOW)).record);
            }
            let newest = wishes.iter().map(|(_, second)| *second).max().unwrap();
            let (last, _) = wishes.iter().rfind(|(_, second)| *second == newest).copied().unwrap();
            let state = records.last().unwrap().state();
            (records, state, last)
        }).prop_flat_map(|(records, state, last)| (Just(records).prop_shuffle(), Just(state), Just(last)))
    ) {
        prop_assert_eq!(state == OptOutState::OptedOut, last);
        let mut there: Option<OptOutRecord> = None;
        for record in &records {
            there = Some(merge_record(there.as_ref(), record, at(NOW)).record);
        }
        prop_assert_eq!(there.unwrap().state(), state);
    }
}
