use proptest::prelude::*;

use super::{
    super::{
        decision::{OptOutScope, OptOutState},
        record::tests::{at, decision, phone_contact},
    },
    *,
};

const NOW: i64 = 1_000;

fn instance() -> InstanceId {
    "demo-support-line".parse().unwrap()
}

fn user(user_id: &str) -> ContactRef {
    ContactRef { phone: None, user_id: Some(user_id.into()) }
}

fn both(phone: &str, user_id: &str) -> ContactRef {
    ContactRef { user_id: Some(user_id.into()), ..phone_contact(phone) }
}

fn stop(contact: ContactRef, second: i64) -> Decision {
    Decision { contact, ..decision(second) }
}

fn start(contact: ContactRef, second: i64) -> Decision {
    Decision {
        direction: OptOutDirection::OptIn,
        reason: OptOutReason::RecipientRequestedStart,
        ..stop(contact, second)
    }
}

fn state(set: &OptOutSet, contact: &ContactRef) -> Option<OptOutState> {
    set.lookup(&instance(), contact).map(|record| record.state())
}

const ONE: &str = "+966500000001";
const TWO: &str = "+966500000002";

/// A record is found by either key and by national variants of the number, at its own instance only.
#[test]
fn records_are_found_by_either_key() {
    let mut set = OptOutSet::new();
    set.apply(&stop(both("+5511987654321", "BR.1"), 1), at(NOW));
    for contact in [phone_contact("+5511987654321"), phone_contact("+551187654321"), user("BR.1")] {
        assert_eq!(state(&set, &contact), Some(OptOutState::OptedOut), "{contact:?}");
    }
    for contact in [phone_contact("+5511987654322"), user("BR.2"), ContactRef::default()] {
        assert_eq!(state(&set, &contact), None, "{contact:?}");
    }
    assert_eq!(set.lookup(&"other-instance".parse().unwrap(), &user("BR.1")), None);
    assert_eq!(set.len(), 1);
}

/// Deciding shows the result and leaves the set alone; inserting it is what counts, once.
#[test]
fn deciding_does_not_insert() {
    let mut set = OptOutSet::new();
    let merged = set.decide(&stop(phone_contact(ONE), 1), at(NOW));
    assert!(merged.is_news && set.is_empty());
    assert!(set.insert(&merged.record));
    assert!(!set.insert(&merged.record));
    assert_eq!(set.lookup(&instance(), &phone_contact(ONE)), Some(merged.record));
}

/// What the control plane sends back merges: it neither undoes a newer decision made here nor reverses
/// the order of a tie.
#[test]
fn both_sides_merge() {
    let mut set = OptOutSet::new();
    let first = set.apply(&stop(phone_contact(ONE), 1), at(NOW)).record;
    set.apply(&start(phone_contact(ONE), 1), at(NOW));
    let echo = OptOutRecord::try_from(&gateway_proto::v1::OptOut::from(&first)).unwrap();
    assert!(!set.insert(&echo));
    assert_eq!(state(&set, &phone_contact(ONE)), Some(OptOutState::OptedIn));
    let newer = merge(Some(&echo), &stop(phone_contact(ONE), 2), at(NOW)).record;
    assert!(set.insert(&newer));
    assert_eq!(state(&set, &phone_contact(ONE)), Some(OptOutState::OptedOut));
}

/// Two records turn out to be of one contact when a message names both keys: they become one.
#[test]
fn two_keys_of_one_contact_become_one_record() {
    let mut set = OptOutSet::new();
    set.apply(&stop(phone_contact(ONE), 5), at(NOW));
    set.apply(&start(user("SA.1"), 3), at(NOW));
    let seen = set.apply(&start(both(ONE, "SA.1"), 2), at(NOW));
    assert_eq!((seen.record.state(), seen.is_news), (OptOutState::OptedOut, false));
    assert_eq!(set.len(), 1);
    for contact in [phone_contact(ONE), user("SA.1")] {
        assert_eq!(state(&set, &contact), Some(OptOutState::OptedOut));
    }
}

/// A contact that shows up with another number is one contact; the old number stays protected.
#[test]
fn a_changed_number_leaves_the_old_one_protected() {
    let mut set = OptOutSet::new();
    set.apply(&stop(both(ONE, "SA.1"), 1), at(NOW));
    set.apply(&start(both(TWO, "SA.1"), 2), at(NOW));
    assert_eq!(state(&set, &phone_contact(ONE)), Some(OptOutState::OptedOut));
    assert_eq!(state(&set, &phone_contact(TWO)), Some(OptOutState::OptedIn));
    assert_eq!(state(&set, &user("SA.1")), Some(OptOutState::OptedIn));
    assert_eq!(set.len(), 2);
    let ids: std::collections::HashSet<_> = set.iter().map(|record| record.id).collect();
    assert_eq!(ids.len(), 2);
}

/// An opt-out follows its contact to a new number or user id, and stays with the old one.
#[test]
fn opt_outs_follow_their_contact() {
    let mut set = OptOutSet::new();
    set.apply(&stop(both(ONE, "SA.1"), 1), at(NOW));
    for (from, to) in [(phone_contact(ONE), phone_contact(TWO)), (user("SA.1"), user("SA.2"))] {
        let moved = set.follow(&instance(), &from, &to, at(NOW)).unwrap();
        assert_eq!(state(&set, &to), None, "following does not insert");
        set.insert(&moved.record);
        assert_eq!(state(&set, &to), Some(OptOutState::OptedOut));
        assert_eq!(state(&set, &from), Some(OptOutState::OptedOut));
        assert_eq!(set.follow(&instance(), &from, &to, at(NOW)), None, "once is enough");
    }
    assert_eq!(set.follow(&instance(), &user("SA.9"), &user("SA.10"), at(NOW)), None);
    let to = both(TWO, "SA.2");
    set.apply(&start(to.clone(), 9), at(NOW));
    assert_eq!(state(&set, &to), Some(OptOutState::OptedIn));
    assert_eq!(set.follow(&instance(), &phone_contact(ONE), &to, at(NOW)), None, "the newer opt-in stays");
}

/// What is packed comes out again, apart from notes and the message ids of others.
#[test]
fn records_survive_packing() {
    let mut set = OptOutSet::new();
    let mut expected = Vec::new();
    for index in 0..200_i64 {
        let contact = match index % 3 {
            0 => phone_contact(&format!("+96650000{index:04}")),
            1 => user(&format!("SA.{index}")),
            _ => both(&format!("+96650000{index:04}"), &format!("SA.{index}")),
        };
        let wish = if index % 2 == 0 { stop(contact, index) } else { start(contact, index) };
        let scope = if index % 5 == 0 { OptOutScope::Marketing } else { OptOutScope::NonEssential };
        let keyword = (index % 7 != 0).then(|| format!("word {}", index % 11).into());
        expected.push(set.apply(&Decision { scope, keyword, ..wish }, at(NOW)).record);
    }
    let mut found: Vec<_> = set.iter().collect();
    found.sort_by_key(|record| record.id);
    expected.sort_by_key(|record| record.id);
    assert_eq!(found, expected);
    let mut copy = OptOutSet::new();
    for record in &expected {
        copy.insert(&OptOutRecord::try_from(&gateway_proto::v1::OptOut::from(record)).unwrap());
    }
    assert_eq!(copy.len(), 200);
    assert!(copy.iter().all(|record| record.deciding().external_message_id.is_none()));
}

/// The memory that the type's documentation promises, index not counted.
#[test]
fn entries_stay_small() {
    assert!(size_of::<Option<Entry>>() <= 128, "{}", size_of::<Option<Entry>>());
}

/// As an agent does when a provider names both keys at once: the record, if there is one to make.
fn see(set: &mut OptOutSet, contact: &ContactRef) -> Option<Merged> {
    let linked = set.link(&instance(), contact, at(NOW))?;
    set.insert(&linked.record);
    Some(linked)
}

const OUT: Option<OptOutState> = Some(OptOutState::OptedOut);
const BACK: Option<OptOutState> = Some(OptOutState::OptedIn);

/// A contact who stopped under one key is left alone under the other as soon as both are named together. Not
/// news, because nothing else was told of the other key; seen again, nothing changes.
#[test]
fn opt_outs_become_one_for_both_keys() {
    for known in [phone_contact(ONE), user("SA.1")] {
        let mut set = OptOutSet::new();
        let first = set.apply(&stop(known, 1), at(NOW)).record;
        let linked = see(&mut set, &both(ONE, "SA.1")).unwrap();
        assert_eq!((linked.is_news, linked.record.id, linked.record.change_number), (false, first.id, 1));
        assert_eq!((state(&set, &phone_contact(ONE)), state(&set, &user("SA.1")), set.len()), (OUT, OUT, 1));
        assert_eq!(see(&mut set, &both(ONE, "SA.1")), None);
        set.apply(&start(user("SA.1"), 2), at(NOW));
        assert_eq!(state(&set, &phone_contact(ONE)), BACK, "one record has both");
        assert_eq!(see(&mut set, &both(ONE, "SA.1")), None);
    }
}

/// Where something else was told of the other key, the opt-out is news: that key goes from one state to the
/// other. Agents that learned of both in different order make the same record and name the same event.
#[test]
fn an_older_opt_in_under_the_other_key_gives_way() {
    let decisions = [start(phone_contact(ONE), 1), stop(user("SA.1"), 2)];
    let linked = [[0, 1], [1, 0]].map(|order| {
        let mut set = OptOutSet::new();
        for index in order {
            set.apply(&decisions[index], at(NOW));
        }
        see(&mut set, &both(ONE, "SA.1")).unwrap()
    });
    assert!(linked[0].is_news);
    assert_eq!(linked[0].record.change_number, 2);
    assert_eq!(linked[0], linked[1]);
    assert_eq!(linked[0].record.event_id(), linked[1].record.event_id());
}

/// Being seen ends no opt-out and narrows none: a newer START under the other key ends only what was said there.
#[test]
fn being_seen_ends_no_opt_out() {
    let mut set = OptOutSet::new();
    set.apply(&stop(phone_contact(ONE), 1), at(NOW));
    set.apply(&start(user("SA.1"), 2), at(NOW));
    assert_eq!(see(&mut set, &both(ONE, "SA.1")), None);
    assert_eq!((state(&set, &phone_contact(ONE)), state(&set, &user("SA.1"))), (OUT, BACK));
    set.apply(&Decision { scope: OptOutScope::Marketing, ..stop(user("SA.1"), 3) }, at(NOW));
    assert_eq!(see(&mut set, &both(ONE, "SA.1")), None);
    let full = set.lookup(&instance(), &phone_contact(ONE)).unwrap();
    assert_eq!(full.scope(), OptOutScope::NonEssential);
}

/// Nothing is made of contacts who decided nothing or started again, or who are named by one key.
#[test]
fn nothing_is_linked_without_an_opt_out() {
    let mut set = OptOutSet::new();
    set.apply(&start(phone_contact(ONE), 1), at(NOW));
    for contact in
        [both(ONE, "SA.1"), both(TWO, "SA.2"), phone_contact(ONE), user("SA.1"), ContactRef::default()]
    {
        assert_eq!(see(&mut set, &contact), None, "{contact:?}");
    }
}

/// A number that is seen with one user id and then another, again and again, is written once for each, and
/// every key stays opted out.
#[test]
fn alternating_pairs_settle() {
    let mut set = OptOutSet::new();
    set.apply(&stop(both(ONE, "SA.1"), 1), at(NOW));
    let linked = see(&mut set, &both(ONE, "SA.2")).unwrap();
    assert!(linked.left_over.is_some() && !linked.is_news);
    for user_id in ["SA.1", "SA.2", "SA.1"] {
        assert_eq!(see(&mut set, &both(ONE, user_id)), None, "{user_id}");
    }
    for key in [phone_contact(ONE), user("SA.1"), user("SA.2")] {
        assert_eq!(state(&set, &key), OUT, "{key:?}");
    }
}

/// A user id that comes with one number after another, as the business's own may, spreads nobody's STOP.
#[test]
fn a_shared_user_id_spreads_nothing() {
    let mut set = OptOutSet::new();
    set.apply(&stop(both(ONE, "SA.1"), 1), at(NOW));
    assert_eq!(see(&mut set, &both(TWO, "SA.1")), None);
    assert_eq!(state(&set, &phone_contact(ONE)), OUT);
    assert_eq!(set.lookup(&instance(), &phone_contact(TWO)), None);
}

/// The opt-outs of a small world: few keys, so that they meet often.
fn any_stop_or_start() -> impl Strategy<Value = Decision> {
    let contact = (0_usize..4, 0_usize..4).prop_filter_map("a contact has a key", |(phone, user_id)| {
        let contact = ContactRef {
            phone: [None, Some(ONE), Some(TWO), None][phone].and_then(normalize_phone),
            user_id: [None, Some("SA.1"), Some("SA.2"), None][user_id].map(Box::from),
        };
        (!contact.is_empty()).then_some(contact)
    });
    (contact, any::<bool>(), 0_i64..5).prop_map(|(contact, is_stop, second)| {
        if is_stop { stop(contact, second) } else { start(contact, second) }
    })
}

proptest! {
    /// Whatever contacts do with their keys: every key leads to one record that has it, no record is
    /// without a key, and the newest STOP under a key is in force there unless a later START named that
    /// key, or one that it shares a record with.
    #[test]
    fn index_and_records_agree(decisions in prop::collection::vec(any_stop_or_start(), 0..12)) {
        let mut set = OptOutSet::new();
        for decision in &decisions {
            let merged = set.apply(decision, at(NOW));
            prop_assert_eq!(set.lookup(&decision.instance_id, &decision.contact).map(|found| found.state()), Some(merged.record.state()));
        }
        prop_assert_eq!(set.iter().count(), set.len());
        for record in set.iter() {
            prop_assert!(!record.contact.is_empty());
            for key in [
                ContactRef { user_id: None, ..record.contact.clone() },
                ContactRef { phone: None, ..record.contact.clone() },
            ] {
                if !key.is_empty() {
                    prop_assert_eq!(set.lookup(&record.instance_id, &key), Some(record.clone()));
                }
            }
        }
        let latest_start = decisions.iter().filter(|one| one.direction == OptOutDirection::OptIn).map(|one| one.event_time).max();
        for out in decisions.iter().filter(|one| one.direction == OptOutDirection::OptOut) {
            if latest_start.is_none_or(|start| start < out.event_time) {
                prop_assert_eq!(state(&set, &out.contact), Some(OptOutState::OptedOut));
            }
        }
    }
}
