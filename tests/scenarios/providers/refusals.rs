//! Whatever is wrong with a callback's proof, the answer is the same blank 401, and only the operator learns why.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, ensure};
use gateway_core::event::Provider;
use gateway_proto::v1::{self, InboundRouteSecretKind as Kind};
use gateway_tests::{DEADLINE, World, eventually, signer::Proof};
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{Line, each, line::Call, lines_of_every_kind, secrets::secret};

/// Refused callbacks by reason.
type Counts = BTreeMap<String, u64>;

/// A word in every forged message.
const FORGED: &str = "forged";

/// Changed bodies, missing, foreign and stale proofs, those of another body or URL, and other algorithms are all
/// refused alike with nothing delivered, at each provider and for each kind of secret; `DiagnoseInstance` counts
/// them by reason.
#[tokio::test]
async fn forged_callbacks_are_refused_everywhere() {
    let world = World::start().await.unwrap();
    let lines = lines_of_every_kind(&world).await.unwrap();
    let counts_of_lines = Mutex::new(HashMap::new());
    each(&lines, async |line| {
        let mut counts = Counts::new();
        for forgery in forgeries(line).await? {
            let answer = line.send(&forgery.sent, &forgery.proof).await?;
            let found = (answer.status, answer.body.as_ref());
            ensure!(found == (401, b"".as_slice()), "{}: answered {found:?}", forgery.what);
            *counts.entry(forgery.reason.to_owned()).or_default() += 1;
        }
        elsewhere_is_refused(line).await?;
        let (id, body) = line.message("genuine");
        line.post(body).await?;
        line.delivered("message.received", &id).await?;
        counts_of_lines.lock().await.insert(line.instance_id.clone(), counts);
        Ok(())
    })
    .await;
    // What the answers do not say, the operator can see.
    let counts_of_lines = counts_of_lines.into_inner();
    each(&lines, async |line| diagnosed(line, &counts_of_lines[&line.instance_id]).await).await;
    let forged =
        world.receiver.all().into_iter().find(|webhook| webhook.text("message_text").contains(FORGED));
    assert!(forged.is_none(), "{:?}", forged.map(|webhook| webhook.json()));
}

/// A callback that must be refused.
struct Forgery {
    what: &'static str,
    sent: Call,
    proof: Proof,
    reason: &'static str,
}

async fn forgeries(line: &Line<'_>) -> anyhow::Result<Vec<Forgery>> {
    let kind = line.secret.as_ref().context("the line has a secret")?.kind;
    let call = || Call::of(line.message(FORGED).1);
    let is_credential = matches!(kind, Kind::BasicCredential | Kind::Header);
    let mut forgeries = Vec::new();

    let sent = call();
    let foreign = line.prove(&Call { secret: Some(secret(kind, 9)), ..sent.clone() }).await?;
    let reason = if is_credential { "wrong_credential" } else { "wrong_signature" };
    forgeries.push(Forgery { what: "another secret", sent, proof: foreign, reason });

    let sent = call();
    let proof = Proof { headers: HeaderMap::new(), ..line.prove(&sent).await? };
    let reason = if is_credential { "missing_credential" } else { "missing_signature" };
    forgeries.push(Forgery { what: "no proof", sent, proof, reason });

    if !is_credential && kind != Kind::EvolutionJwtKey {
        let genuine = call();
        let proof = line.prove(&genuine).await?;
        let mut changed = genuine;
        let place = changed.body.windows(FORGED.len()).position(|window| window == FORGED.as_bytes());
        changed.body[place.context("find the text")?] ^= 1;
        let has_hash = matches!(kind, Kind::VonageSignatureSecret | Kind::MessagebirdSigningKey);
        let reason = if has_hash { "wrong_body_hash" } else { "wrong_signature" };
        forgeries.push(Forgery { what: "a changed byte", sent: changed, proof: proof.clone(), reason });
        forgeries.push(Forgery { what: "the proof of another body", sent: call(), proof, reason });
    }
    for (what, options, reason) in odd_proofs(kind) {
        let sent = Call { options, ..call() };
        let proof = line.prove(&sent).await?;
        forgeries.push(Forgery { what, sent, proof, reason });
    }
    if let Some(reason) = reason_of_other_url(kind) {
        let sent = call();
        let elsewhere = Call { base: Some("https://other.example.com".to_owned()), ..sent.clone() };
        let proof = Proof { url: line.prove(&sent).await?.url, ..line.prove(&elsewhere).await? };
        forgeries.push(Forgery { what: "the proof of another URL", sent, proof, reason });
    }
    Ok(forgeries)
}

/// What a provider might do, and does not: options of the proof, and why it is refused.
fn odd_proofs(kind: Kind) -> Vec<(&'static str, Value, &'static str)> {
    let now = Timestamp::now().as_second();
    let claims = |claims: Value| json!({"claims": claims});
    let hour = 3_600;
    match kind {
        Kind::VonageSignatureSecret => vec![
            ("an old token", claims(json!({"iat": now - hour})), "expired"),
            ("a token of the future", claims(json!({"iat": now + hour})), "expired"),
            ("an expired token", claims(json!({"exp": now - 5})), "expired"),
            ("a token for no body", claims(json!({"payload_hash": null})), "wrong_body_hash"),
            ("another algorithm", json!({"algorithm": "HS512"}), "wrong_algorithm"),
            ("no algorithm", json!({"algorithm": "none"}), "wrong_algorithm"),
        ],
        Kind::MessagebirdSigningKey => vec![
            ("an expired token", claims(json!({"nbf": now - 120, "exp": now - 60})), "expired"),
            ("a token of the future", claims(json!({"nbf": now + 60, "exp": now + 120})), "expired"),
            ("a token for no body", claims(json!({"payload_hash": null})), "wrong_body_hash"),
            ("a token for no URL", claims(json!({"url_hash": null})), "wrong_url_hash"),
            ("a token of somebody else", claims(json!({"iss": "Somebody"})), "malformed_signature"),
            ("no algorithm", json!({"algorithm": "none"}), "wrong_algorithm"),
            ("an old signature of before 2021", json!({"old_time": now - hour}), "expired"),
        ],
        Kind::BirdSigningKey => vec![
            ("an old signature", json!({"time": now - hour}), "expired"),
            ("a signature of the future", json!({"time": now + hour}), "expired"),
        ],
        Kind::WahaHmacKey => vec![("another algorithm", json!({"algorithm": "sha256"}), "wrong_algorithm")],
        Kind::EvolutionJwtKey => vec![
            // Its retries carry the token of the first attempt for 20 minutes; an hour beyond `exp` is allowed.
            ("an old token", claims(json!({"iat": now - 600 - hour - 60})), "expired"),
            ("another algorithm", json!({"algorithm": "HS512"}), "wrong_algorithm"),
            ("no algorithm", json!({"algorithm": "none"}), "wrong_algorithm"),
        ],
        _ => Vec::new(),
    }
}

/// Why the proof of another URL is refused; none where the proof covers no URL.
fn reason_of_other_url(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::TwilioAuthToken | Kind::BirdSigningKey => Some("wrong_signature"),
        Kind::MessagebirdSigningKey => Some("wrong_url_hash"),
        _ => None,
    }
}

/// The token is good at its own provider's path only.
async fn elsewhere_is_refused(line: &Line<'_>) -> anyhow::Result<()> {
    let (call, own) = (Call::of(line.message(FORGED).1), format!("/{}/", line.provider.name()));
    let proof = line.prove(&call).await?;
    for other in Provider::ALL.into_iter().filter(|other| *other != line.provider) {
        let url = proof.url.replace(&own, &format!("/{}/", other.name()));
        let answer = line.send_to(&url, &call, &proof.headers).await?;
        let found = (answer.status, answer.body.as_ref());
        ensure!(found == (401, b"".as_slice()), "at the path of {}: answered {found:?}", other.name());
    }
    Ok(())
}

/// Waits until the operator is told of these refusals and of no others.
async fn diagnosed(line: &Line<'_>, counts: &Counts) -> anyhow::Result<()> {
    eventually(DEADLINE, async || {
        let request = v1::DiagnoseInstanceRequest { id: line.instance_id.clone() };
        let diagnosis = line.world.client().instances().diagnose_instance(request).await?.into_inner();
        let refusals = diagnosis.callback_refusals.iter();
        let found: Counts = refusals.map(|refusal| (refusal.reason.clone(), refusal.count)).collect();
        ensure!(found == *counts, "{found:?}, not {counts:?}");
        Ok(())
    })
    .await
}

/// Of what is proved and cannot be taken, and of what is too large to be read, the operator learns the reason too.
#[tokio::test]
async fn unfit_callbacks_are_diagnosed() {
    let world = World::start().await.unwrap();
    let lines = super::lines(&world, &[(Provider::Waha, Kind::WahaHmacKey)]).await.unwrap();
    let line = &lines[0];
    let as_text = Call { media_type: Some("text/plain".to_owned()), ..Call::of(line.message("as text").1) };
    assert_eq!(line.call(&as_text).await.unwrap().status, 415);
    assert_eq!(line.call(&Call::of("no JSON")).await.unwrap().status, 400);
    let large = Call::of(vec![b' '; (4 << 20) + 1]);
    for path in [&line.route.callback_path, "/callbacks/waha/unknown"] {
        let answer = line.send_to(&world.agent.callback_url(path), &large, &HeaderMap::new()).await.unwrap();
        assert_eq!(answer.status, 413, "{path}");
    }
    let counts = ["wrong_media_type", "unreadable_body", "too_large"].map(|reason| (reason.to_owned(), 1));
    diagnosed(line, &counts.into()).await.unwrap();
}

/// Evolution API sends a callback again for 20 minutes with the token of its first attempt, and drops it for good
/// when that is refused: a token ten minutes and more beyond its end is taken.
#[tokio::test]
async fn late_retries_of_evolution_are_taken() {
    let world = World::start().await.unwrap();
    let lines = super::lines(&world, &[(Provider::Evolution, Kind::EvolutionJwtKey)]).await.unwrap();
    let (id, body) = lines[0].message("after 1,215 seconds");
    let issued = Timestamp::now().as_second() - 1_300;
    let call = Call { options: json!({"claims": {"iat": issued}}), ..Call::of(body) };
    assert_eq!(lines[0].call(&call).await.unwrap().status, 200);
    lines[0].delivered("message.received", &id).await.unwrap();
}

/// The older signature of MessageBird, over the query, is taken while it is fresh; so are its longer hashes.
#[tokio::test]
async fn other_signatures_of_messagebird_are_taken() {
    let world = World::start().await.unwrap();
    let kind = Kind::MessagebirdSigningKey;
    let lines = super::lines(&world, &[(Provider::MessageBird, kind)]).await.unwrap();
    let now = Timestamp::now().as_second();
    for options in [json!({"old_time": now}), json!({"algorithm": "HS384"}), json!({"algorithm": "HS512"})] {
        let (id, body) = lines[0].message("signed otherwise");
        let call = Call { options: options.clone(), tail: "?tenant=7&id=9".to_owned(), ..Call::of(body) };
        assert_eq!(lines[0].call(&call).await.unwrap().status, 200, "{options}");
        lines[0].delivered("message.received", &id).await.unwrap();
    }
}

/// A token of Vonage is taken from the account or the application that the route is for, and from no other.
#[tokio::test]
async fn tokens_of_vonage_are_of_the_account() {
    let world = World::start().await.unwrap();
    let lines = super::lines(&world, &[(Provider::Vonage, Kind::VonageSignatureSecret)]).await.unwrap();
    let line = &lines[0];
    for (account, status) in
        [("a1b2c3d4", 200), ("ffffffff", 401), ("aaaaaaaa-bbbb-cccc-dddd-0123456789ab", 200), ("", 200)]
    {
        let request = v1::UpdateInboundRouteRequest {
            inbound_route: Some(v1::InboundRoute {
                id: line.route.id.clone(),
                provider_account_id: account.to_owned(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["provider_account_id".to_owned()] }),
        };
        world.client().inbound_routes().update_inbound_route(request).await.unwrap();
        world.config_applied().await.unwrap();
        let (id, body) = line.message("of an account");
        assert_eq!(line.call(&Call::of(body)).await.unwrap().status, status, "{account}");
        if status == 200 {
            line.delivered("message.received", &id).await.unwrap();
        }
    }
    diagnosed(line, &[("wrong_account".to_owned(), 1)].into()).await.unwrap();
}

/// Only Meta asks whether the address is ours, and only Twilio calls by GET: at all others a GET is refused, even
/// with what Meta would ask and a good proof.
#[tokio::test]
async fn other_providers_ask_no_handshake() {
    let world = World::start().await.unwrap();
    let mut lines = super::all_lines(&world).await.unwrap();
    lines.retain(|line| !matches!(line.provider, Provider::Meta | Provider::Twilio));
    each(&lines, async |line| {
        let query = "hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=verify-token-1";
        let answer = line.call(&Call { by_get: true, ..Call::of(query) }).await?;
        let found = (answer.status, answer.body.as_ref());
        ensure!(found == (403, b"".as_slice()), "answered {found:?}");
        Ok(())
    })
    .await;
}
