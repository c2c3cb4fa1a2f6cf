//! What the agent says that it has.

use std::collections::BTreeMap;

use gateway_core::{snapshot::digest::Digests, violation::FieldViolations};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::snapshot::staged::{Staged, Whole};

const IDS: [&str; 4] = ["id_1", "id_2", "id_3", "id_4"];

/// What comes to one resource in a response.
#[derive(Debug, Clone, Copy)]
enum Change {
    Upsert {
        is_bad: bool,
    },
    /// The control plane cannot read it.
    Unreadable,
    Remove {
        deleted: bool,
    },
}

/// A response, or what the agent does between two of them.
#[derive(Debug, Clone)]
enum Step {
    Response { snapshot: bool, changes: Vec<(usize, bool, Change)> },
    Restart,
    NewBase,
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        5 => any::<bool>().prop_map(|is_bad| Change::Upsert { is_bad }),
        1 => Just(Change::Unreadable),
        2 => any::<bool>().prop_map(|deleted| Change::Remove { deleted }),
    ];
    let changes = vec((0..IDS.len(), any::<bool>(), change), 0..4);
    let response = (proptest::bool::weighted(0.15), changes);
    prop_oneof![
        6 => response.prop_map(|(snapshot, changes)| Step::Response { snapshot, changes }),
        1 => Just(Step::Restart),
        1 => Just(Step::NewBase),
    ]
}

fn resource(id: &str, is_subscription: bool, version: u64) -> v1::ConfigResource {
    if is_subscription { subscription(id, version) } else { instance(id, version, "") }
}

const fn type_of(is_subscription: bool) -> &'static str {
    if is_subscription { SUBSCRIPTION } else { "instance" }
}

/// What a control plane counts: everything sent and not removed, at the version it was sent in.
type Sent = BTreeMap<(&'static str, &'static str), u64>;

fn digests_of(sent: &Sent) -> Vec<v1::ConfigDigest> {
    let mut digests = Digests::default();
    sent.iter().for_each(|((resource_type, id), version)| digests.add(resource_type, id, *version));
    digests.to_proto()
}

/// A response and what is refused of it, of changes of which the last of each resource counts.
fn response(
    version: u64,
    snapshot: bool,
    changes: &[(usize, bool, Change)],
    sent: &mut Sent,
) -> (v1::StreamConfigResponse, Vec<Refused>) {
    if snapshot {
        sent.clear();
    }
    let last: BTreeMap<_, _> = changes
        .iter()
        .map(|(place, is_subscription, change)| ((*place, *is_subscription), *change))
        .collect();
    let mut response = v1::StreamConfigResponse { snapshot, upserts: Vec::new(), ..delta(version) };
    let mut refused = Vec::new();
    for ((place, is_subscription), change) in last {
        let (id, resource_type) = (IDS[place], type_of(is_subscription));
        match change {
            Change::Upsert { is_bad } => {
                sent.insert((resource_type, id), version);
                response.upserts.push(resource(id, is_subscription, version));
                if is_bad {
                    let violations = FieldViolations::new();
                    refused.push(Refused { resource_type, id: id.to_owned(), version, violations });
                }
            }
            Change::Unreadable => {
                sent.insert((resource_type, id), version);
                let (r#type, id) = (resource_type.to_owned(), id.to_owned());
                response.unreadable.push(v1::ConfigUnreadable { r#type, id, version });
            }
            Change::Remove { .. } if snapshot => {}
            Change::Remove { deleted } => {
                sent.remove(&(resource_type, id));
                let removal =
                    v1::ConfigRemoval { r#type: resource_type.to_owned(), id: id.to_owned(), deleted };
                response.removals.push(removal);
            }
        }
    }
    (response, refused)
}

fn whole(response: v1::StreamConfigResponse) -> Whole {
    Staged::default().complete(response).ok().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is sent, refused and removed, and however often the agent restarts or writes a new base: it says that it has
    /// everything that it was sent and not told to remove, in the version in which it was sent.
    #[test]
    fn says_what_it_was_sent(steps in vec(step(), 1..25)) {
        let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
        let (mut log, _) = reopen(directory.path(), &key);
        let (mut sent, mut version) = (Sent::new(), 0);
        for step in steps {
            match step {
                Step::Response { snapshot, changes } => {
                    version += 1;
                    let (response, refused) = response(version, snapshot, &changes, &mut sent);
                    let mut whole = whole(response);
                    crate::snapshot::keep_last_good(&log, &mut whole, &refused);
                    let unreadable = whole.last.unreadable.iter().filter_map(crate::snapshot::unread);
                    let unreadable: Vec<_> = unreadable.collect();
                    crate::snapshot::keep_unreadable(&log, &mut whole, &unreadable);
                    let refused: Vec<_> = refused.into_iter().chain(unreadable).collect();
                    log.append_refusing(whole.into_parts(), &refused, Vec::new).unwrap();
                }
                Step::Restart => log = reopen(directory.path(), &key).0,
                Step::NewBase => log.lock().appender = None,
            }
            if version > 0 {
                prop_assert_eq!(log.digests("epoch", version), digests_of(&sent));
            }
        }
        prop_assert_eq!(log.digests("epoch", version + 1), []);
        prop_assert_eq!(log.digests("another", version), []);
    }
}

/// The log of an earlier program does not say what was refused: the agent says that it has what it keeps, at the version
/// of the last good value.
#[test]
fn earlier_programs_kept_no_refusals() {
    let (directory, key) = (tempfile::tempdir().unwrap(), Key::generate());
    let (log, _) = reopen(directory.path(), &key);
    log.append([&snapshot_of(2)], Vec::new).unwrap();
    // As it stored a second version in which `sub_1` was refused.
    let kept = vec![subscription("sub_0", 2), subscription("sub_1", 1)];
    log.append([&v1::StreamConfigResponse { upserts: kept, ..delta(2) }], Vec::new).unwrap();
    let (log, _) = reopen(directory.path(), &key);
    let sent = Sent::from([((SUBSCRIPTION, "sub_0"), 2), ((SUBSCRIPTION, "sub_1"), 1)]);
    assert_eq!(log.digests("epoch", 2), digests_of(&sent));
}
