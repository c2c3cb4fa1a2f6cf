//! Opt-outs: merged into one record per contact, in a log that is only added to.

use gateway_core::tenant::TenantScope;
use gateway_proto::v1;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::{Factory, fixtures::*};
use crate::store::{
    Connection as _, Store, inbound_routes, instances,
    opt_outs::{self, OptOutFilter},
};

/// What was decided, without what differs from record to record: ids, times and etags of the record itself.
async fn decided(store: &Store) -> Vec<(String, String, i32, i64)> {
    let mut reader = store.reader().await.unwrap();
    let filter = OptOutFilter::default();
    let found = opt_outs::list(&mut reader, &TenantScope::All, &filter, None, 1_000).await.unwrap();
    let time = |found: &v1::OptOut| found.event_time.map_or(0, |time| time.seconds);
    let mut all: Vec<_> = found
        .into_iter()
        .map(|found| (found.phone.clone(), found.user_id.clone(), found.state, time(&found)))
        .collect();
    all.sort();
    all
}

/// Every decision that changed something has a place in the log, after all before it; what was there stays, also
/// after a restart, and pages of any size give the same.
pub(super) async fn log_is_only_added_to(factory: &impl Factory) {
    let mut known: Vec<u64> = Vec::new();
    for round in 0..3 {
        let store = factory.open().await;
        let mut watched = store.watch_opt_out_cursor();
        assert_eq!(*watched.borrow_and_update(), known.last().copied().unwrap_or(0));
        for number in 0..4 {
            let phone = format!("+96650000000{number}");
            let decision = if round == 1 { opt_in(&phone, 200) } else { opt_out(&phone, 100 * (round + 1)) };
            store.record_opt_outs(agent(), vec![decision]).await.unwrap();
            assert!(watched.has_changed().unwrap());
            let newest = *watched.borrow_and_update();
            let (_, read) = store.opt_outs_since(known.last().copied().unwrap_or(0), 10).await.unwrap();
            assert_eq!(newest, read);
            assert!(known.last().is_none_or(|last| newest > *last), "{newest} after {known:?}");
            known.push(newest);
        }
        let mut reader = store.reader().await.unwrap();
        let log = reader.rows().opt_out_log(0, 1_000).await.unwrap();
        let cursors: Vec<u64> = log.iter().map(|(cursor, _)| *cursor).collect();
        assert_eq!(cursors, known);
        for limit in [1, 3, 5] {
            let (mut paged, mut after) = (Vec::new(), 0);
            loop {
                let page = reader.rows().opt_out_log(after, limit).await.unwrap();
                let Some((last, _)) = page.last() else { break };
                after = *last;
                paged.extend(page);
            }
            assert_eq!(paged, log, "in pages of {limit}");
        }
        drop(reader);
        store.close().await;
    }
}

/// A repeat of a decision changes no record, adds nothing to the log and wakes nobody.
pub(super) async fn repeats_change_nothing(factory: &impl Factory) {
    let store = factory.open().await;
    let decisions = vec![opt_out("+5511987654321", 100), opt_out("+966500000002", 100)];
    let first = store.record_opt_outs(agent(), decisions.clone()).await.unwrap();
    assert!(first.iter().all(|one| one.changed && one.is_news && !one.opt_out.etag.is_empty()));
    let mut watched = store.watch_opt_out_cursor();
    let end = *watched.borrow_and_update();
    for _ in 0..2 {
        let repeated = store.record_opt_outs(agent(), decisions.clone()).await.unwrap();
        for (one, first) in repeated.iter().zip(&first) {
            assert!(!one.changed && !one.is_news);
            assert_eq!(one.opt_out, first.opt_out);
        }
    }
    assert!(!watched.has_changed().unwrap());
    assert_eq!(store.opt_outs_since(end, 10).await.unwrap(), (vec![], end));
    // A national variant of the number is the same contact.
    store.record_opt_outs(agent(), vec![opt_in("+551187654321", 300)]).await.unwrap();
    assert_eq!(decided(&store).await.len(), 2);
}

/// The same decisions in any order, some of them twice, in one transaction or in many, come to the same records.
pub(super) async fn order_does_not_matter(factory: &impl Factory) {
    let store = factory.open().await;
    let mut random = StdRng::seed_from_u64(7);
    let mut decisions = Vec::new();
    for number in 0..12 {
        let phone = format!("+96650000000{}", number % 3);
        let seconds = 100 + number;
        decisions.push(if random.random_bool(0.5) {
            opt_out(&phone, seconds)
        } else {
            opt_in(&phone, seconds)
        });
    }
    let mut expected = None;
    for round in 0..6 {
        let mut shuffled = decisions.clone();
        shuffled.extend(decisions[..4].to_vec());
        if round > 0 {
            shuffled.shuffle(&mut random);
        }
        // Each round has contacts of its own: those of another instance.
        let instance_id = format!("inst_{round}");
        shuffled.iter_mut().for_each(|decision| decision.instance_id.clone_from(&instance_id));
        for chunk in shuffled.chunks(random.random_range(1..=5)) {
            store.record_opt_outs(agent(), chunk.to_vec()).await.unwrap();
        }
        let mut reader = store.reader().await.unwrap();
        let filter = OptOutFilter { instance_id: Some(&instance_id), ..Default::default() };
        let found = opt_outs::list(&mut reader, &TenantScope::All, &filter, None, 100).await.unwrap();
        let mut found: Vec<_> = found
            .into_iter()
            .map(|one| (one.phone, one.state, one.reason, one.event_time.unwrap().seconds))
            .collect();
        found.sort();
        assert_eq!(found.len(), 3);
        assert_eq!(*expected.get_or_insert_with(|| found.clone()), found, "in round {round}");
    }
}

/// Opt-outs make no version, and nothing that is done to the configuration takes one away: not even the removal of
/// their instance, after which its id finds them again.
pub(super) async fn opt_outs_are_no_configuration(factory: &impl Factory) {
    let store = factory.open().await;
    put_route(&store, route("route_1")).await;
    put_instance(&store, instance("inst_1", "route_1")).await.unwrap();
    let version = store.version().await.unwrap();
    store.record_opt_outs(agent(), vec![opt_out("+966500000001", 100)]).await.unwrap();
    assert_eq!(store.version().await.unwrap(), version);
    assert!(store.changes_since(version).await.unwrap().upserts.is_empty());
    let (before, cursor) = (decided(&store).await, store.opt_outs_since(0, 10).await.unwrap());
    let mut transaction = store.begin_write().await.unwrap();
    instances::delete(&mut transaction, "inst_1").await.unwrap();
    inbound_routes::delete(&mut transaction, "route_1").await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!((decided(&store).await, store.opt_outs_since(0, 10).await.unwrap()), (before, cursor));
}

/// A decision that is not committed leaves neither a record nor a place in the log, and its cursor is the next one's
/// or is skipped: it is never given to two decisions that somebody saw.
pub(super) async fn dropped_decisions_leave_no_trace(factory: &impl Factory) {
    let store = factory.open().await;
    store.record_opt_outs(agent(), vec![opt_out("+966500000001", 100)]).await.unwrap();
    let (before, log) = (decided(&store).await, store.opt_outs_since(0, 10).await.unwrap());
    let watched = store.watch_opt_out_cursor();
    for _ in 0..3 {
        let mut dropped = store.begin_write().await.unwrap();
        opt_outs::record_reported(&mut dropped, &opt_in("+966500000001", 200)).await.unwrap();
        opt_outs::record_reported(&mut dropped, &opt_out("+966500000002", 100)).await.unwrap();
    }
    assert_eq!((decided(&store).await, store.opt_outs_since(0, 10).await.unwrap()), (before, log.clone()));
    assert!(!watched.has_changed().unwrap());
    store.record_opt_outs(agent(), vec![opt_in("+966500000001", 300)]).await.unwrap();
    let (next, cursor) = store.opt_outs_since(log.1, 10).await.unwrap();
    assert!(next.len() == 1 && cursor > log.1);
}

/// A decision that carries phone and user id joins the two records, and both keys find it from then on; when the user
/// id moves to another number, the old number keeps its opt-out.
pub(super) async fn keys_are_joined_and_kept(factory: &impl Factory) {
    let store = factory.open().await;
    let by_user_id = v1::OptOut { phone: String::new(), user_id: "US.1".into(), ..opt_out("", 150) };
    store.record_opt_outs(agent(), vec![opt_in("+966500000001", 100), by_user_id]).await.unwrap();
    assert_eq!(decided(&store).await.len(), 2);
    let both = v1::OptOut { user_id: "US.1".into(), ..opt_in("+966500000001", 120) };
    let recorded = store.record_opt_outs(agent(), vec![both]).await.unwrap().remove(0).opt_out;
    assert_eq!((recorded.phone.as_str(), recorded.user_id.as_str()), ("+966500000001", "US.1"));
    assert_eq!(recorded.state(), v1::OptOutState::OptedOut, "the later wish of either key counts");
    assert_eq!(decided(&store).await.len(), 1);
    let (log, _) = store.opt_outs_since(0, 100).await.unwrap();
    assert_eq!(log.last(), Some(&recorded));
    let moved = v1::OptOut { user_id: "US.1".into(), ..opt_out("+966500000002", 400) };
    store.record_opt_outs(agent(), vec![moved]).await.unwrap();
    let phones: Vec<_> = decided(&store).await.into_iter().map(|(phone, ..)| phone).collect();
    assert_eq!(phones, ["+966500000001", "+966500000002"]);
}
