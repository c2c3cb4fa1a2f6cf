//! Where a provider cannot prove its callbacks, the token in the path is proof enough if the operator says so.

use std::sync::Arc;

use anyhow::{Context as _, ensure};
use gateway_core::event::Provider;
use gateway_proto::v1::{self, InboundRouteSecretKind as Kind};
use gateway_tests::{Signer, World};

use super::{
    Line, each,
    line::{Call, create_instance},
    rotation::add,
    secrets::{kinds, secret},
};

/// Providers that cannot sign, or whose signing can be switched off.
const UNSIGNED: [Provider; 6] = [
    Provider::Dialog360,
    Provider::Vonage,
    Provider::Infobip,
    Provider::Gupshup,
    Provider::Waha,
    Provider::Evolution,
];

async fn suffices(line: &Line<'_>, suffices: bool) -> anyhow::Result<()> {
    let request = v1::UpdateInboundRouteRequest {
        inbound_route: Some(v1::InboundRoute {
            id: line.route.id.clone(),
            callback_token_suffices: suffices,
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["callback_token_suffices".to_owned()] }),
    };
    line.world.client().inbound_routes().update_inbound_route(request).await?;
    line.world.config_applied().await
}

fn code(error: &anyhow::Error) -> Option<tonic::Code> {
    error.downcast_ref::<tonic::Status>().map(tonic::Status::code)
}

/// Callbacks without any proof are taken as long as the route says that the token suffices. That cannot end
/// while nothing else would prove them; once a secret exists it can, and then they are refused.
#[tokio::test]
async fn unsigned_callbacks_are_taken_only_when_the_token_suffices() {
    let world = World::start().await.unwrap();
    let signer = Arc::new(Signer::start().await.unwrap());
    let mut lines = Vec::new();
    for provider in UNSIGNED {
        lines.push(Line::create(&world, &signer, provider, None).await.unwrap());
    }
    world.config_applied().await.unwrap();
    each(&lines, async |line| {
        let unsigned = async || {
            let (id, body) = line.message("unsigned");
            let status = line.call(&Call::of(body)).await?.status;
            if status == 200 {
                line.delivered("message.received", &id).await?;
            } else {
                ensure!(!line.heard(&id), "refused and delivered");
            }
            anyhow::Ok(status)
        };
        ensure!(unsigned().await? == 200, "refused at first");
        let refused = suffices(line, false).await.err().context("nothing would prove callbacks any more")?;
        ensure!(code(&refused) == Some(tonic::Code::FailedPrecondition), "{refused:#}");
        ensure!(unsigned().await? == 200, "refused after the refusal");

        let kinds = kinds(line.provider);
        let secret = secret(kinds.last().copied().unwrap_or(Kind::Header), 1);
        add(line, &secret).await?;
        ensure!(unsigned().await? == 200, "refused although the token still suffices");
        suffices(line, false).await?;
        ensure!(unsigned().await? == 401, "taken although the token suffices no more");
        let (id, body) = line.message("proved");
        let answer = line.call(&Call { secret: Some(secret), ..Call::of(body) }).await?;
        ensure!(answer.status == 200, "the secret proves nothing: {}", answer.status);
        line.delivered("message.received", &id).await?;

        suffices(line, true).await?;
        ensure!(unsigned().await? == 200, "refused although the token suffices again");
        Ok(())
    })
    .await;
}

/// Providers that always sign cannot be taken at their token's word.
#[tokio::test]
async fn signing_providers_must_sign() {
    let world = World::start().await.unwrap();
    for provider in Provider::ALL.into_iter().filter(|provider| !UNSIGNED.contains(provider)) {
        let mut request = create_instance(provider, "inst-unsigned", Some(&secret(kinds(provider)[0], 1)));
        request.inbound_route.as_mut().unwrap().callback_token_suffices = true;
        let refused = world.client().instances().create_instance(request).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{}: {refused}", provider.name());
        let violations = String::from_utf8_lossy(refused.details()).into_owned();
        assert!(violations.contains("callback_token_suffices"), "{}: {violations}", provider.name());
    }
}
