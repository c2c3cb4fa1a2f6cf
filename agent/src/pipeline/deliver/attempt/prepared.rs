//! What is made once per subscription and used by all its attempts: site, target, header block, token
//! source.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use gateway_core::{
    id::WebhookSubscriptionId,
    signature::{WEBHOOK_ID, WEBHOOK_SIGNATURE, WEBHOOK_TIMESTAMP},
    snapshot::{Authentication, SubscriptionConfig},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;

use crate::pipeline::deliver::{
    dial::{self, Dialer, Site, TlsSettings, TokenSource, USER_AGENT, authorization},
    failure::{Failure, Party},
};

const ID: HeaderName = HeaderName::from_static(WEBHOOK_ID);
const TIMESTAMP: HeaderName = HeaderName::from_static(WEBHOOK_TIMESTAMP);
const SIGNATURE: HeaderName = HeaderName::from_static(WEBHOOK_SIGNATURE);
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Headers that would change how the request is framed. The control plane refuses them; an agent does not
/// rely on that.
const FRAMING: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
];
/// Sweeps that a subscription without attempts is remembered: ten minutes.
const SWEEPS_UNUSED_MAX: u32 = 60;

/// What differs from attempt to attempt.
pub(super) struct Webhook {
    pub(super) id: HeaderValue,
    pub(super) timestamp: HeaderValue,
    pub(super) signature: HeaderValue,
    pub(super) traceparent: HeaderValue,
    pub(super) body: Bytes,
}

/// What the attempts of a subscription share.
pub(super) struct Prepared {
    /// Kept, so that no other configuration can come to lie at its address.
    config: Arc<SubscriptionConfig>,
    pub(super) site: Arc<Site>,
    pub(super) tokens: Option<Arc<TokenSource>>,
    target: Uri,
    /// All headers, with places for what differs.
    headers: HeaderMap,
    was_used: AtomicBool,
}

impl Prepared {
    /// Reads the configuration of a subscription. `before` is what its last one came to: what has not changed
    /// is taken over, with its connections.
    fn new(
        dialer: &Dialer,
        config: &Arc<SubscriptionConfig>,
        before: Option<&Self>,
    ) -> Result<Self, Failure> {
        let party = Party::Destination;
        let tls = TlsSettings {
            client_certificate: config.client_certificate.clone(),
            extra_ca_pem: config.extra_ca_pem.clone(),
        };
        let site = match before {
            Some(before) if before.site.serves(&config.destination, &tls) => Arc::clone(&before.site),
            _ => Arc::new(dialer.site(party, &config.destination, tls.clone())?),
        };
        let tokens = match &config.authentication {
            Some(Authentication::OAuth2(settings)) => {
                let known = before.and_then(|before| before.tokens.as_ref());
                Some(match known {
                    Some(known) if known.serves(settings, &tls) => Arc::clone(known),
                    _ => Arc::new(TokenSource::new(dialer, settings, tls)?),
                })
            }
            _ => None,
        };
        Ok(Self {
            target: dial::target(party, &config.destination)?,
            headers: headers(config)?,
            config: Arc::clone(config),
            site,
            tokens,
            was_used: AtomicBool::new(true),
        })
    }

    pub(super) fn concurrency_max(&self) -> usize {
        self.config.concurrency_max
    }

    /// The request of one attempt.
    pub(super) fn request(&self, webhook: &Webhook, token: Option<&HeaderValue>) -> Request<Full<Bytes>> {
        let mut headers = self.headers.clone();
        headers.insert(ID, webhook.id.clone());
        headers.insert(TIMESTAMP, webhook.timestamp.clone());
        headers.insert(SIGNATURE, webhook.signature.clone());
        headers.insert(TRACEPARENT, webhook.traceparent.clone());
        if let Some(token) = token {
            headers.insert(header::AUTHORIZATION, token.clone());
        }
        let mut request = Request::new(Full::new(webhook.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = headers;
        request
    }
}

/// The headers of a webhook: those of the customer, its credentials, and ours. What the customer adds never
/// replaces one of ours.
fn headers(config: &SubscriptionConfig) -> Result<HeaderMap, Failure> {
    let mut headers = HeaderMap::with_capacity(config.headers.len() + 12);
    for (name, value) in &config.headers {
        add(&mut headers, name, value)?;
    }
    match &config.authentication {
        Some(Authentication::Header { name, value }) => add(&mut headers, name, value)?,
        Some(Authentication::Basic { username, password }) => {
            let credentials = STANDARD.encode(format!("{username}:{password}"));
            headers.insert(header::AUTHORIZATION, authorization("Basic", &credentials)?);
        }
        Some(Authentication::Bearer { token }) => {
            headers.insert(header::AUTHORIZATION, authorization("Bearer", token)?);
        }
        // The token is put in when it is known.
        Some(Authentication::OAuth2(_)) => {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(""));
        }
        None => {}
    }
    headers.insert(header::HOST, dial::host(Party::Destination, &config.destination)?);
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    for name in [ID, TIMESTAMP, SIGNATURE, TRACEPARENT] {
        headers.insert(name, HeaderValue::from_static(""));
    }
    Ok(headers)
}

fn add(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), Failure> {
    let bad = || Failure::protocol("a header of the subscription cannot be sent");
    let name: HeaderName = name.parse().map_err(|_| bad())?;
    if FRAMING.contains(&name) {
        return Err(bad());
    }
    let mut value: HeaderValue = value.parse().map_err(|_| bad())?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

/// What was prepared for each subscription, by the configuration it was prepared from.
#[derive(Default)]
pub(super) struct Cache(Mutex<HashMap<WebhookSubscriptionId, Entry>>);

struct Entry {
    prepared: Arc<Prepared>,
    sweeps_unused: u32,
}

impl Cache {
    /// What is prepared for this configuration of a subscription; made when it is a new one.
    pub(super) fn prepared(
        &self,
        dialer: &Dialer,
        config: &Arc<SubscriptionConfig>,
    ) -> Result<Arc<Prepared>, Failure> {
        let known = self.entries().get(config.id.as_str()).map(|entry| Arc::clone(&entry.prepared));
        if let Some(known) = known.as_ref().filter(|known| Arc::ptr_eq(&known.config, config)) {
            known.was_used.store(true, Ordering::Relaxed);
            return Ok(Arc::clone(known));
        }
        let prepared = Arc::new(Prepared::new(dialer, config, known.as_deref())?);
        let entry = Entry { prepared: Arc::clone(&prepared), sweeps_unused: 0 };
        self.entries().insert(config.id.clone(), entry);
        Ok(prepared)
    }

    /// Closes connections that were idle for long, and forgets subscriptions that are not used any more.
    pub(super) fn sweep(&self) {
        let mut kept = Vec::new();
        self.entries().retain(|_, entry| {
            let was_used = entry.prepared.was_used.swap(false, Ordering::Relaxed);
            entry.sweeps_unused = if was_used { 0 } else { entry.sweeps_unused + 1 };
            let is_kept = entry.sweeps_unused < SWEEPS_UNUSED_MAX;
            if is_kept {
                kept.push(Arc::clone(&entry.prepared));
            }
            is_kept
        });
        for prepared in kept {
            prepared.site.sweep();
            if let Some(tokens) = &prepared.tokens {
                tokens.sweep();
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<WebhookSubscriptionId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
