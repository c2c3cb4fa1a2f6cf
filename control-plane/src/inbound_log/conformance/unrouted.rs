//! Unrouted callbacks: bounded, each listed once, and gone when taken.

use super::*;
use crate::inbound_log::{UNROUTED_PER_ROUTE_MAX, UnroutedNumber};

/// A callback with the id that an agent makes from its payload.
fn callback(route_id: &str, number: &str, payload: &str) -> Record {
    Record::Unrouted(v1::UnroutedCallback {
        id: format!("unrouted_{payload}"),
        inbound_route_id: route_id.into(),
        provider_number_id: number.into(),
        payload_json: payload.into(),
        ..Default::default()
    })
}

fn number(route_id: &str, key: &str) -> UnroutedNumber {
    UnroutedNumber { route_id: route_id.into(), number_key: key.into() }
}

impl<E: Engine> World<E> {
    /// The payloads of a route's callbacks, newest first.
    async fn payloads(&self, route_id: &str) -> Vec<String> {
        let (callbacks, next) =
            self.logs.list_unrouted(Some(&[route_id.to_owned()]), None, 100).await.unwrap();
        assert_eq!(next, None);
        callbacks.into_iter().map(|callback| callback.payload_json).collect()
    }
}

/// Unrouted callbacks are listed newest first, found by number however it is written, bounded per route
/// with the oldest going first, and gone when taken out.
pub(in super::super) async fn callbacks_are_kept_and_bounded<E: Engine>() {
    let world = World::<E>::new().await;
    let max = u64::try_from(UNROUTED_PER_ROUTE_MAX).unwrap();
    let many = (0..max + 5).map(|place| callback("route_1", "123", &place.to_string())).collect();
    world.append(batch("agt_1", 1, many)).await;
    let newest = world.logs.watch_unrouted();
    let before = *newest.borrow();
    let few = vec![
        callback("route_2", "+966 11 000 0000", "a"),
        callback("route_2", "966110000000", "b"),
        callback("route_2", "", "c"),
    ];
    world.append(batch("agt_1", max + 100, few)).await;
    let oldest = world.logs.unrouted_of(&number("route_1", "123"), -1, 1).await.unwrap();
    assert_eq!(oldest[0].callback.payload_json, "5");
    assert!(*newest.borrow() > before);
    assert_eq!(
        world.logs.unrouted_numbers(before).await.unwrap().len(),
        2,
        "two numbers, one of them none, came since"
    );
    assert_eq!(world.payloads("route_2").await, ["c", "b", "a"]);
    let of_number = world.logs.unrouted_of(&number("route_2", "966110000000"), -1, 10).await.unwrap();
    assert_eq!(of_number.len(), 2);
    let rest =
        world.logs.unrouted_of(&number("route_2", "966110000000"), of_number[0].seq, 10).await.unwrap();
    assert_eq!(rest[0].callback.payload_json, "b");
    world.logs.delete_unrouted(of_number.iter().map(|unrouted| unrouted.seq).collect()).await.unwrap();
    assert_eq!(world.payloads("route_2").await, ["c"]);
    assert_eq!(world.logs.unrouted_numbers(0).await.unwrap().len(), 2);
    let world = world.reopen().await;
    assert_eq!(world.payloads("route_2").await, ["c"]);
    world.close().await;
}

/// A callback that is reported again, under another buffer or by another agent, is listed once: in one group, later,
/// and after a restart. The same content on another route is another one, and so is one that an agent gave back under
/// another id.
pub(in super::super) async fn repeated_callbacks_are_listed_once<E: Engine>() {
    let mut world = World::<E>::new().await;
    let two =
        || vec![callback("route_1", "1", "a"), callback("route_1", "2", "b"), callback("route_1", "1", "a")];
    world.append(batch("agt_1", 1, two())).await;
    for (agent_id, buffer_id) in [("agt_1", "buf_2"), ("agt_2", "buf_1"), ("agt_1", "buf_3")] {
        let head = *world.logs.watch_unrouted().borrow();
        world.append(of_buffer(buffer_id, batch(agent_id, 1, two()))).await;
        assert_eq!(world.payloads("route_1").await, ["b", "a"]);
        assert_eq!(*world.logs.watch_unrouted().borrow(), head, "nobody is woken for a repeat");
        world = world.reopen().await;
    }
    let Record::Unrouted(given_back) = callback("route_1", "1", "a") else { unreachable!() };
    let given_back = v1::UnroutedCallback { id: "unrouted_again".into(), ..given_back };
    let others = vec![callback("route_2", "1", "a"), Record::Unrouted(given_back)];
    world.append(batch("agt_1", 4, others)).await;
    assert_eq!(world.payloads("route_1").await, ["a", "b", "a"]);
    assert_eq!(world.payloads("route_2").await, ["a"]);
    // Agents of another build send no ids: content and time tell.
    let unnamed = |payload: &str| {
        let Record::Unrouted(callback) = callback("route_3", "1", payload) else { unreachable!() };
        Record::Unrouted(v1::UnroutedCallback { id: String::new(), ..callback })
    };
    world.append(batch("agt_1", 10, vec![unnamed("a"), unnamed("b")])).await;
    world.append(of_buffer("buf_4", batch("agt_1", 1, vec![unnamed("a"), unnamed("b")]))).await;
    assert_eq!(world.payloads("route_3").await, ["b", "a"]);
    world.close().await;
}

/// What was taken out does not come back with a repeat.
pub(in super::super) async fn taken_callbacks_stay_taken<E: Engine>() {
    let world = World::<E>::new().await;
    let two = || vec![callback("route_1", "1", "a"), callback("route_1", "1", "b")];
    world.append(batch("agt_1", 1, two())).await;
    let taken = world.logs.unrouted_of(&number("route_1", "1"), -1, 1).await.unwrap();
    let seqs = || taken.iter().map(|unrouted| unrouted.seq).collect::<Vec<_>>();
    world.logs.delete_unrouted(seqs()).await.unwrap();
    world.append(of_buffer("buf_2", batch("agt_1", 1, two()))).await;
    assert_eq!(world.payloads("route_1").await, ["b"]);
    // Taking again changes nothing.
    world.logs.delete_unrouted(seqs()).await.unwrap();
    assert_eq!(world.payloads("route_1").await, ["b"]);
    world.close().await;
}

/// Pages of callbacks, of all routes or some, do not move when callbacks come in and are taken out between them.
pub(in super::super) async fn pages_of_callbacks_do_not_move_under_writes<E: Engine>() {
    for routes in [None, Some(vec!["route_0".to_owned(), "route_2".to_owned()]), Some(vec![])] {
        let world = World::<E>::new().await;
        let of = |place: u32| callback(&format!("route_{}", place % 3), "1", &format!("{place:03}"));
        world.append(batch("agt_1", 1, (0..60).map(of).collect())).await;
        let (mut found, mut before, mut place) = (Vec::new(), None, 100);
        loop {
            let (page, next) = world.logs.list_unrouted(routes.as_deref(), before, 7).await.unwrap();
            assert!(page.len() <= 7);
            found.extend(page.into_iter().map(|callback| callback.payload_json));
            before = next;
            let Some(next) = next else { break };
            world.append(batch("agt_1", place.into(), (place..place + 3).map(of).collect())).await;
            // Those of the page that was read may go.
            world.logs.delete_unrouted(vec![next, next + 1]).await.unwrap();
            place += 3;
        }
        let is_wanted =
            |place: &u32| routes.as_ref().is_none_or(|routes| !routes.is_empty() && place % 3 != 1);
        let expected: Vec<_> = (0..60).rev().filter(is_wanted).map(|place| format!("{place:03}")).collect();
        assert_eq!(found, expected, "{routes:?}");
        world.close().await;
    }
}

/// Callbacks that are too large for an answer are listed without their part, hide no other, and are handed out whole, a
/// few at a time.
pub(in super::super) async fn large_callbacks_hide_nothing<E: Engine>() {
    let world = World::<E>::new().await;
    let large =
        |place: usize| format!("{place}{}", "x".repeat(2 << 20)).repeat(if place == 1 { 2 } else { 1 });
    let of = |place| callback("route_1", "1", &large(place));
    world.append(batch("agt_1", 1, (0..4).map(of).collect())).await;
    let (mut found, mut before) = (Vec::new(), None);
    loop {
        let (page, next) = world.logs.list_unrouted(None, before, 100).await.unwrap();
        assert!(page.iter().map(|callback| callback.payload_json.len()).sum::<usize>() <= 3 << 20);
        found.extend(page.into_iter().map(|callback| (callback.payload_omitted, callback.payload_json)));
        before = next;
        if before.is_none() {
            break;
        }
    }
    let listed = |place| if place == 1 { (true, String::new()) } else { (false, large(place)) };
    assert!(found == (0..4).rev().map(listed).collect::<Vec<_>>());
    let (mut whole, mut after) = (Vec::new(), -1);
    loop {
        let next = world.logs.unrouted_of(&number("route_1", "1"), after, 100).await.unwrap();
        assert!(next.len() < 3);
        let Some(last) = next.last() else { break };
        after = last.seq;
        whole.extend(next.into_iter().map(|unrouted| unrouted.callback.payload_json));
    }
    assert!(whole == (0..4).map(large).collect::<Vec<_>>());
    world.close().await;
}
