//! Deadlines of calls that wait for their turn to write.

use std::time::Duration;

use super::*;
use crate::store::Store;

/// A deadline that passes while somebody else writes.
const DEADLINE: Duration = Duration::from_millis(200);

fn late(instance: v1::Instance) -> Request<v1::CreateInstanceRequest> {
    let mut request =
        Request::new(v1::CreateInstanceRequest { instance: Some(instance), ..Default::default() });
    request.set_timeout(DEADLINE);
    request
}

/// A call whose deadline has passed while it waited for its turn to write writes nothing afterwards, neither the
/// one that was next nor those behind it, and holds nobody up: the call after them gets its turn. Another process
/// holds the database meanwhile.
#[tokio::test]
async fn a_passed_deadline_writes_nothing() {
    let server = Server::start().await.with_instance().await;
    let other = Store::open(server._directory.path()).await.unwrap();
    let holder = other.begin_write().await.unwrap();
    let (mut next, mut behind) = (server.instances(), server.instances());
    let outcomes = tokio::join!(
        next.create_instance(late(instance("inst_2", "1002"))),
        behind.create_instance(late(instance("inst_3", "1003"))),
    );
    for outcome in [outcomes.0, outcomes.1] {
        let code = outcome.unwrap_err().code();
        assert!(matches!(code, Code::Cancelled | Code::DeadlineExceeded), "{code}");
    }
    // On the same connection, so that the server has seen the ends of both calls when it answers this one.
    server.instances().list_instances(v1::ListInstancesRequest::default()).await.unwrap();
    drop(holder);
    server.create_instance(instance("inst_4", "1004")).await.unwrap();
    let list = v1::ListInstancesRequest::default();
    let found = server.instances().list_instances(list).await.unwrap().into_inner().instances;
    let ids: Vec<_> = found.iter().map(|instance| instance.id.as_str()).collect();
    assert_eq!(ids, ["inst_1", "inst_4"]);
    let entries = server.entries().await;
    let audited: Vec<_> = entries.iter().map(|entry| entry.resource_id.as_str()).collect();
    assert_eq!(audited, ["route_1", "inst_1", "inst_4"]);
    other.close().await;
    server.stop().await;
}
