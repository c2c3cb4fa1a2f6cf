//! Whose callbacks are made, and what proves them: the values of `--provider` and `--proof`.

use clap::{ValueEnum, builder::PossibleValue};
use gateway_core::{
    event::Provider,
    inbound_route::{RouteSecretKind, callback_token_can_suffice},
};

use super::sample::Proof;
use crate::{BadConfig, demo::title};

/// A value of `--provider`.
#[derive(Clone, Copy)]
pub struct ProviderArg(pub Provider);

impl ProviderArg {
    const ALL: [Self; Provider::ALL.len()] = {
        let mut all = [Self(Provider::Meta); Provider::ALL.len()];
        let mut index = 0;
        while index < all.len() {
            all[index] = Self(Provider::ALL[index]);
            index += 1;
        }
        all
    };
}

impl ValueEnum for ProviderArg {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let proof = match self.0 {
            Provider::Meta => "signed with an app secret",
            Provider::Dialog360 => "Meta's callbacks with Basic authentication or a header",
            Provider::Twilio => "a form, signed with an auth token",
            Provider::Vonage => "a bearer token, signed with a signature secret",
            Provider::Infobip => "Basic authentication or a header",
            Provider::Gupshup => "format v2, with a header",
            Provider::MessageBird => "Conversations: a token, signed with a signing key",
            Provider::Bird => "Channels: signed with a signing key",
            Provider::Waha => "signed with an HMAC key, or a header",
            Provider::Evolution => "a bearer token, signed with a JWT key, or a header",
        };
        Some(PossibleValue::new(self.0.name()).help(format!("{}: {proof}", title(self.0))))
    }
}

/// What shows that a callback is genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProofArg {
    /// The provider's signature; the secret is its key
    Signature,
    /// HTTP Basic authentication; the secret is `user:password`
    Basic,
    /// A header; the secret is `name: value`
    Header,
    /// Nothing but the token in the callback URL, for routes where it suffices
    Token,
}

impl ProofArg {
    /// What needs a secret of this kind.
    pub const fn of(kind: RouteSecretKind) -> Self {
        match kind {
            RouteSecretKind::BasicCredential => Self::Basic,
            RouteSecretKind::Header => Self::Header,
            _ => Self::Signature,
        }
    }

    /// The one that is wanted, or else the best that the provider has.
    pub fn resolve(wanted: Option<Self>, provider: Provider) -> Result<Self, BadConfig> {
        let mut possible: Vec<_> = RouteSecretKind::of(provider).iter().map(|kind| Self::of(*kind)).collect();
        possible.dedup();
        if callback_token_can_suffice(provider) {
            possible.push(Self::Token);
        }
        let best = possible.first().copied().unwrap_or(Self::Token);
        let proof = wanted.unwrap_or(best);
        if possible.contains(&proof) {
            return Ok(proof);
        }
        let names: Vec<_> = possible.iter().map(|proof| proof.name()).collect();
        Err(BadConfig(format!(
            "--proof {}: callbacks of {} have no such proof; possible is {}",
            proof.name(),
            title(provider),
            names.join(", ")
        )))
    }

    /// With its secret.
    pub const fn with(self, secret: &str) -> Proof<'_> {
        match self {
            Self::Signature => Proof::Signature(secret),
            Self::Basic => Proof::Basic(secret),
            Self::Header => Proof::Header(secret),
            Self::Token => Proof::Token,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Signature => "signature",
            Self::Basic => "basic",
            Self::Header => "header",
            Self::Token => "token",
        }
    }

    /// What was sent, for people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Signature => "signed",
            Self::Basic => "with Basic authentication",
            Self::Header => "with a header",
            Self::Token => "with nothing but the token in its path",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each provider is a value; each has a best proof, and refuses those that it does not have.
    #[test]
    fn proofs_fit_the_provider() {
        assert!(ProviderArg::value_variants().iter().map(|arg| arg.0).eq(Provider::ALL));
        for (provider, best, impossible) in [
            (Provider::Meta, ProofArg::Signature, &[ProofArg::Basic, ProofArg::Header, ProofArg::Token][..]),
            (Provider::Dialog360, ProofArg::Basic, &[ProofArg::Signature]),
            (Provider::Twilio, ProofArg::Signature, &[ProofArg::Token]),
            (Provider::Vonage, ProofArg::Signature, &[ProofArg::Basic]),
            (Provider::Gupshup, ProofArg::Header, &[ProofArg::Signature, ProofArg::Basic]),
            (Provider::Waha, ProofArg::Signature, &[ProofArg::Basic]),
        ] {
            assert!(ProofArg::resolve(None, provider).is_ok_and(|proof| proof == best));
            for proof in impossible {
                let refused = ProofArg::resolve(Some(*proof), provider).unwrap_err().to_string();
                assert!(refused.contains(best.name()), "{refused}");
            }
        }
        assert!(ProofArg::resolve(Some(ProofArg::Token), Provider::Waha).is_ok());
    }
}
