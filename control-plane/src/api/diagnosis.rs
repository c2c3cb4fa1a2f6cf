//! Why events of an instance do or do not arrive, for `DiagnoseInstance`.

use gateway_core::time;
use gateway_proto::v1;
use prost::Message;
use tonic::Status;

use super::{authorize::Caller, inbound_route, page::fitting, webhook_subscription::masked};
use crate::{
    app::State,
    fleet::FleetDiagnosis,
    store::{damaged::Found, inbound_routes, webhook_subscriptions},
};

/// Subscriptions looked at, and how many bytes of them are shown. Together with the rest it stays well within one answer.
const SUBSCRIPTIONS_MAX: usize = 100;
const SUBSCRIPTIONS_BYTES_MAX: usize = 2 << 20;
/// Reasons of refused callbacks that are shown. Agents of ours know some fifteen.
const REFUSALS_MAX: usize = 100;
/// Unrouted callbacks looked at for a number that nobody claims.
const UNROUTED_MAX: usize = 100;

/// Everything known of the flow of events of one instance, as far as a caller may know it.
///
/// # Errors
/// When a database cannot be read.
pub async fn of(
    state: &State,
    caller: &Caller,
    instance: &v1::Instance,
) -> Result<v1::DiagnoseInstanceResponse, Status> {
    let scope = &caller.tenants();
    let mut connection = state.store.reader().await?;
    // A platform route is not its tenants' to see: neither its path nor what else comes in on it.
    let route_id = &instance.inbound_route_id;
    let route = match inbound_routes::find_even_damaged(&mut connection, scope, route_id).await? {
        Some(Found::Whole(stored)) => Some(stored),
        Some(Found::Damaged(_)) => return Err(inbound_route::damaged(route_id)),
        None => None,
    };
    let id = Some(instance.id.as_str());
    // One more than wanted says whether there are others.
    let limit = i64::try_from(SUBSCRIPTIONS_MAX + 1).unwrap_or(i64::MAX);
    let found = webhook_subscriptions::list(&mut connection, scope, id, None, limit).await?;
    drop(connection);
    let found_count = found.len();
    let mut subscriptions: Vec<_> = found.into_iter().take(SUBSCRIPTIONS_MAX).map(masked).collect();
    let version = state.store.version().await?;
    // A route out of the caller's reach is the platform's.
    let route_tenant = route.as_ref().map_or("", |stored| &stored.route.tenant_id);
    let seen_from = (route_tenant, instance.inbound_route_id.as_str());
    let mut fleet = state.fleet.diagnosis(seen_from, &instance.regions, version);
    let last_event_time = state.logs.last_event_time(&instance.id).await?;
    let unrouted = match &route {
        Some(stored) => {
            let ids = [stored.route.id.clone()];
            state.logs.list_unrouted(Some(&ids), None, UNROUTED_MAX).await?.0
        }
        None => {
            fleet.refusals.clear();
            Vec::new()
        }
    };
    fleet.refusals.truncate(REFUSALS_MAX);
    let facts = Facts {
        fleet: &fleet,
        has_event: last_event_time.is_some(),
        has_unrouted: unrouted.iter().any(|callback| !callback.provider_number_id.is_empty()),
        subscriptions: &subscriptions,
    };
    let findings = findings(&facts);
    subscriptions.truncate(fitting(&subscriptions, SUBSCRIPTIONS_BYTES_MAX, Message::encoded_len));
    Ok(v1::DiagnoseInstanceResponse {
        findings,
        callback_path: route
            .map(|stored| inbound_route::shown_to(caller, stored.route).callback_path)
            .unwrap_or_default(),
        last_event_time: last_event_time.map(time::to_proto),
        online_agent_count: fleet.online,
        current_agent_count: fleet.current,
        callback_refusals: fleet.refusals,
        has_more_webhook_subscriptions: subscriptions.len() < found_count,
        webhook_subscriptions: subscriptions,
    })
}

struct Facts<'a> {
    fleet: &'a FleetDiagnosis,
    has_event: bool,
    has_unrouted: bool,
    subscriptions: &'a [v1::WebhookSubscription],
}

fn finding(reason: &str, description: impl Into<String>, advice: &str) -> v1::DiagnosisFinding {
    v1::DiagnosisFinding {
        reason: reason.to_owned(),
        description: description.into(),
        advice: advice.to_owned(),
    }
}

fn findings(facts: &Facts<'_>) -> Vec<v1::DiagnosisFinding> {
    let mut findings = Vec::new();
    let fleet = facts.fleet;
    if fleet.online == 0 {
        findings.push(finding(
            "NO_AGENT_ONLINE",
            "no agent that serves the instance is connected; agents may still work from their last configuration",
            "start an agent in one of the instance's regions, or look at its log for why it cannot connect",
        ));
    } else if fleet.current < fleet.online {
        findings.push(finding(
            "AGENTS_BEHIND",
            format!(
                "{} of {} online agents do not use the newest configuration yet",
                fleet.online - fleet.current,
                fleet.online
            ),
            "wait a moment; if it stays, look at `refused` of ListAgents",
        ));
    }
    findings.extend(facts.fleet.refusals.iter().filter(|refusal| refusal.count > 0).map(refused));
    if !facts.has_event {
        findings.push(finding(
            "NO_CALLBACK_YET",
            "no event was ever recorded for the instance",
            "register `callback_path` on the agents' public address at the provider, and subscribe to messages there",
        ));
    }
    if facts.has_unrouted {
        findings.push(finding(
            "UNROUTED_CALLBACKS",
            "callbacks come in on the inbound route for numbers that no instance with a webhook subscription claims",
            "compare `provider_number_id` with those of ListUnroutedCallbacks",
        ));
    }
    if facts.subscriptions.is_empty() {
        findings.push(finding(
            "NO_WEBHOOK_SUBSCRIPTION",
            "events are recorded but delivered to nobody",
            "create a webhook subscription for the instance",
        ));
    }
    for subscription in facts.subscriptions {
        if subscription.state() == v1::WebhookSubscriptionState::Paused {
            findings.push(finding(
                "WEBHOOK_SUBSCRIPTION_PAUSED",
                format!(
                    "webhook subscription `{}` is paused: {}",
                    subscription.id, subscription.pause_reason
                ),
                "mend the destination and call ResumeWebhookSubscription; what was held is delivered then",
            ));
        }
    }
    findings
}

fn refused(refusal: &v1::CallbackRefusal) -> v1::DiagnosisFinding {
    let callbacks = if refusal.count == 1 { "callback was" } else { "callbacks were" };
    let description =
        format!("{} {callbacks} refused on the inbound route: {}", refusal.count, refusal.reason);
    finding("CALLBACKS_REFUSED", description, advice(&refusal.reason))
}

/// What to do when callbacks are refused for a reason that an agent gives.
fn advice(reason: &str) -> &'static str {
    match reason {
        "missing_signature" => {
            "switch signing on at the provider, or remove the signing key from the inbound route if the provider \
             cannot sign"
        }
        "wrong_signature" => {
            "compare the secret at the provider with the fingerprints of the inbound route's secrets; if the \
             provider signs its URL, `--public-base-url` of the agents must be the address registered there"
        }
        "wrong_verify_token" => "compare the verify token at the provider with that of the inbound route",
        "missing_credential" => {
            "make the provider send one of the inbound route's headers or Basic credentials with every callback"
        }
        "wrong_credential" => {
            "compare the header or Basic credential at the provider with the fingerprints of the inbound route's \
             secrets"
        }
        "missing_secret" => "add a secret to the inbound route with AddInboundRouteSecret",
        "wrong_url_hash" | "missing_host" => {
            "start the agents with `--public-base-url`, the address that is registered at the provider"
        }
        "wrong_body_hash" => "look for a proxy before the agents that changes the body of requests",
        "expired" => {
            "compare the clocks of the agents with the provider's, and look for callbacks sent again"
        }
        "wrong_account" => {
            "compare the inbound route's `provider_account_id` with the account at the provider, or empty it"
        }
        "too_large" | "too_many_items" => {
            "look at what is sent to the callback URL: no provider sends callbacks that large"
        }
        "wrong_media_type" => {
            "make the provider send its callbacks uncompressed and in the documented format, mostly JSON, and look for \
             a proxy before the agents that changes headers"
        }
        "unreadable_body" => {
            "look at what is sent to the callback URL: it is proved, but not in the format of the inbound route's \
             provider"
        }
        _ => "look at the callbacks that the provider sends to this inbound route",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of refused callbacks reads right, also for one.
    #[test]
    fn refusals_are_counted_in_words() {
        for (count, wanted) in [(1, "1 callback was refused on "), (2, "2 callbacks were refused on ")] {
            let refusal = v1::CallbackRefusal { reason: "wrong_signature".into(), count, last_time: None };
            assert!(refused(&refusal).description.starts_with(wanted));
        }
    }

    /// Each reason that somebody can do something about has advice of its own.
    #[test]
    fn refusals_come_with_advice() {
        let reasons = [
            "missing_signature",
            "wrong_signature",
            "wrong_verify_token",
            "missing_credential",
            "wrong_credential",
            "missing_secret",
            "wrong_url_hash",
            "wrong_body_hash",
            "expired",
            "wrong_account",
            "too_large",
            "wrong_media_type",
            "unreadable_body",
        ];
        for (index, reason) in reasons.iter().enumerate() {
            assert_ne!(advice(reason), advice("anything else"), "{reason}");
            assert!(reasons[..index].iter().all(|other| advice(other) != advice(reason)), "{reason}");
        }
    }

    /// Each problem is found, agents first, and a healthy instance has none.
    #[test]
    fn problems_are_found_in_order() {
        let active = v1::WebhookSubscription { id: "sub_1".into(), ..Default::default() };
        let mut paused = active.clone();
        paused.set_state(v1::WebhookSubscriptionState::Paused);
        let healthy = FleetDiagnosis { online: 2, current: 2, refusals: vec![] };
        let facts = Facts { fleet: &healthy, has_event: true, has_unrouted: false, subscriptions: &[active] };
        assert_eq!(findings(&facts), []);
        let refusal = v1::CallbackRefusal { reason: "wrong_signature".into(), count: 3, last_time: None };
        let ill = FleetDiagnosis { online: 0, current: 0, refusals: vec![refusal] };
        let facts = Facts { fleet: &ill, has_event: false, has_unrouted: true, subscriptions: &[paused] };
        let reasons: Vec<_> = findings(&facts).into_iter().map(|finding| finding.reason).collect();
        assert_eq!(
            reasons,
            [
                "NO_AGENT_ONLINE",
                "CALLBACKS_REFUSED",
                "NO_CALLBACK_YET",
                "UNROUTED_CALLBACKS",
                "WEBHOOK_SUBSCRIPTION_PAUSED",
            ]
        );
    }
}
