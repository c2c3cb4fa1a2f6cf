//! Secrets of a subscription are write-only: they are read back as [`SECRET_MASK`], and the mask, written in
//! place of one, keeps the stored one.

use std::collections::HashMap;

use gateway_core::webhook_subscription::SECRET_MASK;
use gateway_proto::v1::{self, destination_authentication::Method};
use tonic::Status;

use super::status;

const NOTHING_TO_KEEP: &str = "must have a value: there is no stored one to keep";

/// A subscription as callers see it.
pub(in crate::api) fn masked(mut subscription: v1::WebhookSubscription) -> v1::WebhookSubscription {
    for value in subscription.headers.values_mut() {
        SECRET_MASK.clone_into(value);
    }
    let authentication = subscription.authentication.as_mut();
    if let Some(method) = authentication.and_then(|authentication| authentication.method.as_mut()) {
        SECRET_MASK.clone_into(secret(method).1);
    }
    if let Some(certificate) = &mut subscription.client_certificate {
        SECRET_MASK.clone_into(&mut certificate.private_key_pem);
    }
    subscription
}

/// The secret of a way to authenticate, and the path to it.
pub(super) fn secret(method: &mut Method) -> (&'static str, &mut String) {
    match method {
        Method::Header(header) => ("header.value", &mut header.value),
        Method::Basic(basic) => ("basic.password", &mut basic.password),
        Method::Bearer(bearer) => ("bearer.token", &mut bearer.token),
        Method::Oauth2(oauth2) => ("oauth2.client_secret", &mut oauth2.client_secret),
    }
}

/// The path to a header, whose name may be anything.
pub(super) fn header_field(name: &str) -> String {
    let shown: String = name.chars().filter(|character| !character.is_control()).take(64).collect();
    format!("webhook_subscription.headers[{shown}]")
}

/// Replaces the headers; their names ignore case.
pub(super) fn set_headers(
    subscription: &mut v1::WebhookSubscription,
    wanted: HashMap<String, String>,
) -> Result<(), Status> {
    let stored = std::mem::take(&mut subscription.headers);
    for (name, value) in wanted {
        let kept = stored.iter().find(|(known, _)| known.eq_ignore_ascii_case(&name));
        let value = match (value == SECRET_MASK, kept) {
            (false, _) => value,
            (true, Some((_, kept))) => kept.clone(),
            (true, None) => {
                return Err(status::invalid_field(header_field(&name), NOTHING_TO_KEEP));
            }
        };
        subscription.headers.insert(name, value);
    }
    Ok(())
}

/// Puts the stored secret in the place of the mask, if the way to authenticate is the same.
pub(super) fn keep_authentication(
    stored: Option<&v1::DestinationAuthentication>,
    wanted: Option<&mut v1::DestinationAuthentication>,
) -> Result<(), Status> {
    let Some(method) = wanted.and_then(|wanted| wanted.method.as_mut()) else { return Ok(()) };
    let (path, value) = secret(method);
    if value != SECRET_MASK {
        return Ok(());
    }
    let mut stored = stored.and_then(|stored| stored.method.clone());
    match stored.as_mut().map(secret) {
        Some((stored_path, kept)) if stored_path == path => *value = std::mem::take(kept),
        _ => {
            let field = format!("webhook_subscription.authentication.{path}");
            return Err(status::invalid_field(field, NOTHING_TO_KEEP));
        }
    }
    Ok(())
}

/// Puts the stored key in the place of the mask: a renewed certificate may keep its key.
pub(super) fn keep_client_certificate(
    stored: Option<&v1::ClientCertificate>,
    wanted: Option<&mut v1::ClientCertificate>,
) -> Result<(), Status> {
    let Some(wanted) = wanted.filter(|wanted| wanted.private_key_pem == SECRET_MASK) else { return Ok(()) };
    let Some(stored) = stored else {
        let field = "webhook_subscription.client_certificate.private_key_pem";
        return Err(status::invalid_field(field, NOTHING_TO_KEEP));
    };
    wanted.private_key_pem.clone_from(&stored.private_key_pem);
    Ok(())
}
