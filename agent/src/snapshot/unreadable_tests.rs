//! Resources that the control plane cannot read.

use gateway_core::snapshot::{Snapshot, digest::Digests};
use v1::config_resource::Resource;

use super::*;

fn route(version: u64, token: &str) -> v1::ConfigResource {
    let route = v1::InboundRouteConfig {
        id: "route_1".into(),
        provider: v1::Provider::Meta.into(),
        callback_token: token.into(),
        ..Default::default()
    };
    v1::ConfigResource { version, resource: Some(Resource::InboundRoute(route)) }
}

fn response(version: u64, upserts: Vec<v1::ConfigResource>, unreadable: &[(&str, &str, u64)]) -> Whole {
    let named = |(r#type, id, version): &(&str, &str, u64)| v1::ConfigUnreadable {
        r#type: (*r#type).to_owned(),
        id: (*id).to_owned(),
        version: *version,
    };
    let response = v1::StreamConfigResponse {
        version,
        store_epoch: "epoch".into(),
        snapshot: true,
        upserts,
        unreadable: unreadable.iter().map(named).collect(),
        ..Default::default()
    };
    Staged::default().complete(response).unwrap_or_else(|_| panic!("it is whole"))
}

/// What a follower does with a snapshot, without the stream.
fn take(log: &ConfigLog, current: &Snapshot, mut response: Whole) -> Snapshot {
    let (snapshot, refused) = current.apply_parts(response.parts());
    assert_eq!(refused, []);
    let named: Vec<Refused> = response
        .parts()
        .flat_map(|part| part.unreadable.iter().filter_map(unread).collect::<Vec<_>>())
        .collect();
    keep_unreadable(log, &mut response, &named);
    log.append_refusing(response.into_parts(), &named, Vec::new).unwrap();
    snapshot
}

/// A snapshot that names a resource as unreadable leaves it as it is, in use and on the disk, and counts it in the version
/// that it was named with; one that the agent never had is counted, too, since the control plane does so. A snapshot that
/// does not name it takes it away.
#[test]
fn what_the_control_plane_cannot_read_stays() {
    let directory = tempfile::tempdir().unwrap();
    let open = || restore(directory.path(), None, &OptOuts::new()).unwrap();
    let log = open();
    let first = take(&log, &Snapshot::default(), response(3, vec![route(3, "token")], &[]));
    assert!(first.route_by_token("token").is_some());
    let unreadable =
        [("inbound_route", "route_1", 7), ("instance", "inst_never", 5), ("of a later program", "x", 1)];
    let second = take(&log, &first, response(7, vec![], &unreadable));
    assert!(second.route_by_token("token").is_some());
    let mut expected = Digests::default();
    expected.add("inbound_route", "route_1", 7);
    expected.add("instance", "inst_never", 5);
    assert_eq!(log.digests("epoch", 7), expected.to_proto());
    drop(log);
    let log = open();
    assert!(log.snapshot().unwrap().route_by_token("token").is_some(), "a restart knows it");
    assert_eq!(log.digests("epoch", 7), expected.to_proto());
    let third = take(&log, &second, response(8, vec![], &[]));
    assert!(third.route_by_token("token").is_none());
    assert_eq!(log.digests("epoch", 8), Digests::default().to_proto());
}
