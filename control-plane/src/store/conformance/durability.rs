//! What is committed is there after a restart.

use gateway_core::tenant::TenantScope;

use super::{Factory, fixtures::*};
use crate::store::{opt_outs, tenants};

/// Configuration, removals, opt-outs and their log, version, cursor and epoch are the same after a restart; also after
/// one without a close.
pub(super) async fn everything_survives_a_restart(factory: &impl Factory) {
    let store = factory.open().await;
    one_of_each(&store).await;
    put_policy(&store, "inst_1").await;
    put_route(&store, route("route_2")).await;
    let mut transaction = store.begin_write().await.unwrap();
    crate::store::inbound_routes::delete(&mut transaction, "route_2").await.unwrap();
    transaction.commit().await.unwrap();
    store.record_opt_outs(agent(), vec![opt_out("+966500000001", 100)]).await.unwrap();
    let epoch = store.store_epoch().to_owned();
    let before = (store.changes_since(0).await.unwrap(), store.changes_since(1).await.unwrap());
    let log = store.opt_outs_since(0, 10).await.unwrap();
    assert_eq!(removed(&before.1), [("inbound_route", "route_2")]);
    for closes in [true, false] {
        if closes {
            store.close().await;
        }
        let store = factory.open().await;
        let after = (store.changes_since(0).await.unwrap(), store.changes_since(1).await.unwrap());
        assert_eq!(after, before);
        assert_eq!(store.opt_outs_since(0, 10).await.unwrap(), log);
        assert_eq!((store.store_epoch(), store.version().await.unwrap()), (epoch.as_str(), 6));
        assert_eq!((*store.watch_version().borrow(), *store.watch_opt_out_cursor().borrow()), (6, log.1));
        let mut reader = store.reader().await.unwrap();
        let found =
            opt_outs::list(&mut reader, &TenantScope::All, &Default::default(), None, 10).await.unwrap();
        assert_eq!(found, log.0);
    }
}

/// Each database has an epoch of its own, which is in its etags; a new one has version 0 and tenant `default`.
pub(super) async fn epochs_name_one_database<F: Factory>(factory: &F) {
    let (store, other) = (factory.open().await, F::fresh().await.open().await);
    assert!(store.store_epoch().len() >= 22);
    assert_ne!(store.store_epoch(), other.store_epoch());
    assert_ne!(store.etag(1), other.etag(1));
    assert_ne!(store.etag(1), store.etag(2));
    assert_eq!((store.version().await.unwrap(), *store.watch_opt_out_cursor().borrow()), (0, 0));
    assert_eq!(store.changes_since(0).await.unwrap(), Default::default());
    let mut reader = store.reader().await.unwrap();
    let found = tenants::list(&mut reader, &TenantScope::All, None, 10).await.unwrap();
    assert_eq!(found.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["default"]);
}
