//! Signing secrets and keys.

use gateway_core::signature::{PublicKey, SigningKey};

use super::*;

async fn signing(server: &Server) -> v1::GetSigningSecretResponse {
    let request = v1::GetSigningSecretRequest { id: "sub_1".into() };
    server.subscriptions().get_signing_secret(request).await.unwrap().into_inner()
}

async fn rotate(server: &Server, seconds: i64) -> v1::RotateSigningSecretResponse {
    let grace_period = Some(prost_types::Duration { seconds, nanos: 0 });
    let request = v1::RotateSigningSecretRequest { id: "sub_1".into(), grace_period };
    server.subscriptions().rotate_signing_secret(request).await.unwrap().into_inner()
}

fn asymmetric(is_on: bool) -> v1::WebhookSubscription {
    v1::WebhookSubscription { asymmetric_signature: is_on, ..subscription("sub_1") }
}

/// The public key is shown while `v1a` is on; a rotation renews it together with the secret.
#[tokio::test]
async fn public_key_is_shown_and_rotates() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    assert_eq!(signing(&server).await.public_key, "");
    update(&server, asymmetric(true), &["asymmetric_signature"]).await.unwrap();
    let first = signing(&server).await;
    assert!(PublicKey::parse(&first.public_key).is_ok(), "{first:?}");
    let rotated = rotate(&server, 60).await;
    assert_ne!(rotated.public_key, first.public_key);
    let second = signing(&server).await;
    assert_eq!((&rotated.public_key, &rotated.signing_secret), (&second.public_key, &second.signing_secret));
    update(&server, asymmetric(false), &["asymmetric_signature"]).await.unwrap();
    assert_eq!(signing(&server).await.public_key, "");
    assert_eq!(rotate(&server, 0).await.public_key, "");
    update(&server, asymmetric(true), &["asymmetric_signature"]).await.unwrap();
    assert_ne!(signing(&server).await.public_key, second.public_key, "it rotates also while it is off");
    server.stop().await;
}

/// A subscription that was made before there were keys gets one when `v1a` is switched on, and keeps its secret.
#[tokio::test]
async fn older_subscriptions_get_a_key() {
    let server = Server::start().await.with_instance().await;
    server.create_subscription(subscription("sub_1")).await.unwrap();
    let before = signing(&server).await;
    let store = crate::store::Store::open(server._directory.path()).await.unwrap();
    let mut transaction = store.begin_write().await.unwrap();
    let found = crate::store::webhook_subscriptions::find_any(&mut transaction, "sub_1").await.unwrap();
    let mut config = found.unwrap();
    assert!(SigningKey::parse(&config.signing_keys[0].value).is_ok());
    config.signing_keys.clear();
    crate::store::webhook_subscriptions::put(&mut transaction, &mut config).await.unwrap();
    transaction.commit().await.unwrap();
    store.close().await;
    update(&server, asymmetric(true), &["asymmetric_signature"]).await.unwrap();
    let after = signing(&server).await;
    assert!(PublicKey::parse(&after.public_key).is_ok());
    assert_eq!(after.signing_secret, before.signing_secret);
    server.stop().await;
}
