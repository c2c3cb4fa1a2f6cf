//! What proves callbacks at each provider, and how a route is told.

use gateway_core::event::Provider;
use gateway_proto::v1::{self, InboundRouteSecretKind as Kind, inbound_route::Credentials};
use gateway_tests::signer::Secret;

/// The credentials of a route with one secret.
pub fn credentials(provider: Provider, secret: &Secret) -> Credentials {
    let of = |kind: Kind| if kind == secret.kind { vec![secret.value.clone()] } else { Vec::new() };
    let (basic_credentials, headers) = (of(Kind::BasicCredential), of(Kind::Header));
    match provider {
        Provider::Meta => Credentials::Meta(v1::Meta {
            app_secrets: of(Kind::MetaAppSecret),
            verify_tokens: vec!["verify-token-1".to_owned()],
        }),
        Provider::Dialog360 => Credentials::Dialog360(v1::Dialog360 { basic_credentials, headers }),
        Provider::Twilio => Credentials::Twilio(v1::Twilio { auth_tokens: of(Kind::TwilioAuthToken) }),
        Provider::Vonage => {
            Credentials::Vonage(v1::Vonage { signature_secrets: of(Kind::VonageSignatureSecret) })
        }
        Provider::Infobip => Credentials::Infobip(v1::Infobip { basic_credentials, headers }),
        Provider::Gupshup => Credentials::Gupshup(v1::Gupshup { headers }),
        Provider::MessageBird => {
            Credentials::Messagebird(v1::MessageBird { signing_keys: of(Kind::MessagebirdSigningKey) })
        }
        Provider::Bird => Credentials::Bird(v1::Bird { signing_keys: of(Kind::BirdSigningKey) }),
        Provider::Waha => Credentials::Waha(v1::Waha { hmac_keys: of(Kind::WahaHmacKey), headers }),
        Provider::Evolution => {
            Credentials::Evolution(v1::Evolution { jwt_keys: of(Kind::EvolutionJwtKey), headers })
        }
    }
}

/// The kinds of secret of which any one proves a provider's callbacks, the strongest first.
pub const fn kinds(provider: Provider) -> &'static [Kind] {
    match provider {
        Provider::Meta => &[Kind::MetaAppSecret],
        Provider::Dialog360 | Provider::Infobip => &[Kind::BasicCredential, Kind::Header],
        Provider::Twilio => &[Kind::TwilioAuthToken],
        Provider::Vonage => &[Kind::VonageSignatureSecret],
        Provider::Gupshup => &[Kind::Header],
        Provider::MessageBird => &[Kind::MessagebirdSigningKey],
        Provider::Bird => &[Kind::BirdSigningKey],
        Provider::Waha => &[Kind::WahaHmacKey, Kind::Header],
        Provider::Evolution => &[Kind::EvolutionJwtKey, Kind::Header],
    }
}

/// A secret of this kind, another one for each number. Long enough for every algorithm.
pub fn secret(kind: Kind, number: u32) -> Secret {
    let value = match kind {
        Kind::BasicCredential => format!("hook-user:p@ss:wörd-canary-{number}"),
        Kind::Header => format!("X-Hook-Secret: canary-header-{number}: of the route"),
        _ => format!("canary-secret-{number}-{:0<64}", kind.as_str_name().to_lowercase()),
    };
    Secret { kind, value }
}
