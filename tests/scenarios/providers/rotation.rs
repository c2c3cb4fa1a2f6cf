//! Secrets of every kind are replaced without a gap, and what is removed proves nothing any more.

use anyhow::{Context as _, ensure};
use gateway_core::event::Provider;
use gateway_proto::v1::{self, InboundRouteSecretKind as Kind};
use gateway_tests::{World, signer::Secret};
use reqwest::header::HeaderMap;

use super::{Line, each, line::Call, lines, lines_of_every_kind, secrets::secret};

/// Adds a secret to the line's route, and waits until the agent uses it.
pub async fn add(line: &Line<'_>, secret: &Secret) -> anyhow::Result<v1::InboundRouteSecret> {
    let request = v1::AddInboundRouteSecretRequest {
        id: line.route.id.clone(),
        kind: secret.kind.into(),
        value: secret.value.clone(),
        ..Default::default()
    };
    let response = line.world.client().inbound_routes().add_inbound_route_secret(request).await?;
    line.world.config_applied().await?;
    response.into_inner().secret.context("the response has no secret")
}

/// Removes a secret from the line's route, and waits until the agent uses it no more.
pub async fn remove(line: &Line<'_>, secret_id: &str) -> anyhow::Result<()> {
    let request =
        v1::RemoveInboundRouteSecretRequest { id: line.route.id.clone(), secret_id: secret_id.to_owned() };
    line.world.client().inbound_routes().remove_inbound_route_secret(request).await?;
    line.world.config_applied().await
}

/// The status of the answer to a new message that this secret proves.
async fn proved_by(line: &Line<'_>, secret: &Secret) -> anyhow::Result<u16> {
    let (id, body) = line.message("whatever proves it");
    let answer = line.call(&Call { secret: Some(secret.clone()), ..Call::of(body) }).await?;
    if answer.status == 200 {
        line.delivered("message.received", &id).await?;
    }
    Ok(answer.status)
}

/// A second secret proves callbacks as well as the first as soon as it is added; the first does so until it is
/// removed; and the last cannot be removed.
#[tokio::test]
async fn every_kind_of_secret_rotates() {
    let world = World::start().await.unwrap();
    let lines = lines_of_every_kind(&world).await.unwrap();
    each(&lines, async |line| {
        let first = line.secret.clone().context("the line has a secret")?;
        let second = secret(first.kind, 2);
        let both = async || anyhow::Ok((proved_by(line, &first).await?, proved_by(line, &second).await?));
        ensure!(both().await? == (200, 401), "before: {:?}", both().await?);
        let added = add(line, &second).await?;
        ensure!(both().await? == (200, 200), "with both: {:?}", both().await?);
        let first_id = line.route.secrets.iter().find(|secret| secret.kind() == first.kind);
        remove(line, &first_id.context("find the first secret")?.id).await?;
        ensure!(both().await? == (401, 200), "after: {:?}", both().await?);
        let refused = remove(line, &added.id).await.err().context("the last secret was removed")?;
        let code = refused.downcast_ref::<tonic::Status>().map(tonic::Status::code);
        ensure!(code == Some(tonic::Code::FailedPrecondition), "{refused:#}");
        ensure!(both().await? == (401, 200), "after the refusal: {:?}", both().await?);
        Ok(())
    })
    .await;
}

/// Meta's verify token, which proves the handshake, rotates like the others.
#[tokio::test]
async fn verify_tokens_rotate() {
    let world = World::start().await.unwrap();
    let lines = lines(&world, &[(Provider::Meta, Kind::MetaAppSecret)]).await.unwrap();
    let line = &lines[0];
    let handshake = async |token: &str| {
        let url = world.agent.callback_url(&format!(
            "{}?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={token}",
            line.route.callback_path
        ));
        let call = Call { by_get: true, ..Call::default() };
        line.send_to(&url, &call, &HeaderMap::new()).await.unwrap().status
    };
    assert_eq!((handshake("verify-token-1").await, handshake("verify-token-2").await), (200, 403));
    let second = Secret { kind: Kind::MetaVerifyToken, value: "verify-token-2".to_owned() };
    add(line, &second).await.unwrap();
    assert_eq!((handshake("verify-token-1").await, handshake("verify-token-2").await), (200, 200));
    let first = line.route.secrets.iter().find(|secret| secret.kind() == Kind::MetaVerifyToken).unwrap();
    remove(line, &first.id).await.unwrap();
    assert_eq!((handshake("verify-token-1").await, handshake("verify-token-2").await), (403, 200));
}

/// Kinds of equal strength are alternatives: a route moves from Basic credentials to a header, or from a token to
/// a header, and back, without a gap.
#[tokio::test]
async fn equal_kinds_are_alternatives() {
    let world = World::start().await.unwrap();
    let lines = lines(
        &world,
        &[
            (Provider::Dialog360, Kind::BasicCredential),
            (Provider::Infobip, Kind::BasicCredential),
            (Provider::Evolution, Kind::EvolutionJwtKey),
        ],
    );
    each(&lines.await.unwrap(), async |line| {
        let first = line.secret.clone().context("the line has a secret")?;
        let header = secret(Kind::Header, 2);
        ensure!(proved_by(line, &header).await? == 401, "the header proves before it is added");
        add(line, &header).await?;
        ensure!(proved_by(line, &first).await? == 200, "the first kind proves no more");
        ensure!(proved_by(line, &header).await? == 200, "the header does not prove");
        remove(line, &line.route.secrets[0].id).await?;
        ensure!(proved_by(line, &first).await? == 401, "the first kind still proves");
        ensure!(proved_by(line, &header).await? == 200, "the header proves no more");
        Ok(())
    })
    .await;
}

/// A signature is required as long as the route has a key for it: beside one, a header is not enough.
#[tokio::test]
async fn header_is_not_enough_beside_a_key() {
    let world = World::start().await.unwrap();
    let lines = lines(&world, &[(Provider::Waha, Kind::Header)]).await.unwrap();
    let line = &lines[0];
    let (header, key) = (secret(Kind::Header, 1), secret(Kind::WahaHmacKey, 1));
    assert_eq!(proved_by(line, &header).await.unwrap(), 200);
    let added = add(line, &key).await.unwrap();
    assert_eq!(proved_by(line, &header).await.unwrap(), 401);
    assert_eq!(proved_by(line, &key).await.unwrap(), 200);
    remove(line, &added.id).await.unwrap();
    assert_eq!(proved_by(line, &header).await.unwrap(), 200);
}
