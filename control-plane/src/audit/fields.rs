//! Which fields of resources the audit log may show: the only list of this kind.
//!
//! Numbers, booleans, enums and times are always shown, and so are the keys of maps. Texts and bytes are
//! shown only when they are listed so; a test fails while one is not listed at all. What is hidden still
//! shows that it changed.

/// Package of the messages below.
const PACKAGE: &str = "whatsapp_gateway.v1.";

/// How much of a field the audit log shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility {
    /// All of it.
    Shown,
    /// A URL without its user, query and fragment, which may carry credentials.
    UrlOnly,
    /// Nothing: a secret or personal data.
    Hidden,
}

use Visibility::{Hidden, Shown, UrlOnly};

/// Every text and bytes field of a resource, by its full name without the package.
pub const FIELDS: &[(&str, Visibility)] = &[
    // Instances. The number is a phone number; with some providers so is its id there.
    ("Instance.id", Shown),
    ("Instance.tenant_id", Shown),
    ("Instance.display_name", Shown),
    ("Instance.inbound_route_id", Shown),
    ("Instance.provider_number_id", Hidden),
    ("Instance.provider_account_id", Shown),
    ("Instance.phone_number", Hidden),
    ("Instance.regions", Shown),
    ("Instance.labels", Shown),
    ("Instance.etag", Shown),
    // Inbound routes. The callback path ends in a token; a fingerprint would outlive its secret here.
    ("InboundRoute.id", Shown),
    ("InboundRoute.tenant_id", Shown),
    ("InboundRoute.display_name", Shown),
    ("InboundRoute.provider_account_id", Shown),
    ("InboundRoute.callback_path", Hidden),
    ("InboundRoute.etag", Shown),
    ("InboundRouteSecret.id", Shown),
    ("InboundRouteSecret.fingerprint", Hidden),
    ("Meta.app_secrets", Hidden),
    ("Meta.verify_tokens", Hidden),
    ("Dialog360.basic_credentials", Hidden),
    ("Dialog360.headers", Hidden),
    ("Twilio.auth_tokens", Hidden),
    ("Vonage.signature_secrets", Hidden),
    ("Infobip.basic_credentials", Hidden),
    ("Infobip.headers", Hidden),
    ("Gupshup.headers", Hidden),
    ("MessageBird.signing_keys", Hidden),
    ("Bird.signing_keys", Hidden),
    ("Waha.hmac_keys", Hidden),
    ("Waha.headers", Hidden),
    ("Evolution.jwt_keys", Hidden),
    ("Evolution.headers", Hidden),
    // A callback that waits for an instance is no configuration, and nothing of it is audited.
    ("UnroutedCallback.id", Hidden),
    ("UnroutedCallback.inbound_route_id", Hidden),
    ("UnroutedCallback.provider_number_id", Hidden),
    ("UnroutedCallback.provider_account_id", Hidden),
    ("UnroutedCallback.payload_json", Hidden),
    ("UnroutedCallback.agent_id", Hidden),
    // Webhook subscriptions. Names of headers are keys of the map.
    ("WebhookSubscription.id", Shown),
    ("WebhookSubscription.tenant_id", Shown),
    ("WebhookSubscription.instance_id", Shown),
    ("WebhookSubscription.display_name", Shown),
    ("WebhookSubscription.destination_url", UrlOnly),
    ("WebhookSubscription.events", Shown),
    ("WebhookSubscription.pause_reason", Shown),
    ("WebhookSubscription.headers", Hidden),
    ("WebhookSubscription.etag", Shown),
    ("WebhookSubscription.extra_ca_pem", Hidden),
    ("HeaderAuthentication.name", Shown),
    ("HeaderAuthentication.value", Hidden),
    ("BasicAuthentication.username", Hidden),
    ("BasicAuthentication.password", Hidden),
    ("BearerAuthentication.token", Hidden),
    ("OAuth2Authentication.token_url", UrlOnly),
    ("OAuth2Authentication.client_id", Shown),
    ("OAuth2Authentication.client_secret", Hidden),
    ("OAuth2Authentication.scopes", Shown),
    ("ClientCertificate.certificate_chain_pem", Hidden),
    ("ClientCertificate.private_key_pem", Hidden),
    ("SigningSecret.value", Hidden),
    // Opt-outs. Keyword and note are somebody's words; providers' message ids carry the phone number.
    ("OptOut.id", Shown),
    ("OptOut.tenant_id", Shown),
    ("OptOut.instance_id", Shown),
    ("OptOut.phone", Hidden),
    ("OptOut.user_id", Hidden),
    ("OptOut.keyword", Hidden),
    ("OptOut.external_message_id", Hidden),
    ("OptOut.note", Hidden),
    ("OptOut.etag", Shown),
    ("OptOutPolicy.instance_id", Shown),
    ("OptOutPolicy.languages", Shown),
    ("OptOutPolicy.opt_out_keywords", Shown),
    ("OptOutPolicy.opt_in_keywords", Shown),
    ("OptOutPolicy.etag", Shown),
    // Tenants and their keys. The prefix of a key is how people tell keys apart; it is no secret.
    ("Tenant.id", Shown),
    ("Tenant.display_name", Shown),
    ("Tenant.etag", Shown),
    ("ApiKey.id", Shown),
    ("ApiKey.tenant_id", Shown),
    ("ApiKey.display_name", Shown),
    ("ApiKey.scopes", Shown),
    ("ApiKey.prefix", Shown),
    ("ApiKey.created_by", Shown),
    // The fleet.
    ("Agent.id", Shown),
    ("Agent.region", Shown),
    ("Agent.build", Shown),
    ("Agent.address", Shown),
    ("Agent.tenant_id", Shown),
    ("Agent.twin_address", Shown),
    ("Agent.over_share_subscription_ids", Shown),
    ("BufferDamage.cause", Shown),
    ("BufferDamage.quarantined", Shown),
    ("RefusedResource.type", Shown),
    ("RefusedResource.id", Shown),
    ("RefusedResource.error", Hidden),
    // What somebody took out of the control plane.
    ("SnapshotExportHeader.region", Shown),
    ("SnapshotExportHeader.tenant_id", Shown),
    ("SnapshotExportHeader.store_epoch", Shown),
    ("SnapshotExportHeader.build", Shown),
    ("CreateJoinTokenRequest.region", Shown),
    ("CreateJoinTokenRequest.tenant_id", Shown),
    ("CreateJoinTokenRequest.request_id", Hidden),
];

/// What may be shown of the text field with this full name; nothing when it is not listed.
pub fn visibility(full_name: &str) -> Visibility {
    let name = full_name.strip_prefix(PACKAGE).unwrap_or_default();
    FIELDS.iter().find(|(listed, _)| *listed == name).map_or(Hidden, |(_, visibility)| *visibility)
}
