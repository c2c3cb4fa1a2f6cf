//! Callbacks as Meta's Cloud API sends them: signed over the raw bytes, batched, with unique ids.
//! <https://developers.facebook.com/docs/graph-api/webhooks/getting-started>

use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway_core::signature::hmac_sha256;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// The signature's header.
pub const SIGNATURE_HEADER: &str = "x-hub-signature-256";

/// Messages of one callback when there are many.
const MANY_BATCH: usize = 250;
/// Connections that post them.
const MANY_CONNECTIONS: usize = 4;
/// Contacts that write them.
const MANY_CONTACTS: usize = 10_000;

/// One business number at Meta, and the app that calls us for it. Cheap to clone; clones share their
/// connections.
#[derive(Clone)]
pub struct MetaProvider {
    http: reqwest::Client,
    callback_url: String,
    app_secret: String,
    phone_number_id: String,
    display_phone_number: String,
}

/// What the gateway answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// From sending to the end of the answer.
    pub duration: Duration,
}

/// What goes into one request besides the body; the default is what Meta sends.
#[derive(Debug, Clone, Default)]
pub struct Disguise {
    /// The value of the signature header; none leaves it out, unset signs.
    pub signature: Option<Option<String>>,
    /// The content type; unset is `application/json`.
    pub content_type: Option<String>,
}

impl MetaProvider {
    /// A provider that posts to `callback_url` and signs with `app_secret`.
    ///
    /// # Errors
    /// When there can be no HTTP client.
    pub fn new(callback_url: String, app_secret: &str, phone_number_id: &str) -> anyhow::Result<Self> {
        Ok(Self {
            http: crate::http::client()?,
            callback_url,
            app_secret: app_secret.to_owned(),
            phone_number_id: phone_number_id.to_owned(),
            display_phone_number: "966110000000".to_owned(),
        })
    }

    /// The same app with another number.
    #[must_use]
    pub fn with_number(&self, phone_number_id: &str) -> Self {
        Self { phone_number_id: phone_number_id.to_owned(), ..self.clone() }
    }

    /// The same number with another app secret.
    #[must_use]
    pub fn with_secret(&self, app_secret: &str) -> Self {
        Self { app_secret: app_secret.to_owned(), ..self.clone() }
    }

    /// The same app, calling somewhere else.
    #[must_use]
    pub fn with_url(&self, callback_url: String) -> Self {
        Self { callback_url, ..self.clone() }
    }

    /// Where it posts to.
    pub fn callback_url(&self) -> &str {
        &self.callback_url
    }

    /// Its name of the number.
    pub fn phone_number_id(&self) -> &str {
        &self.phone_number_id
    }

    /// The signature of `body`.
    pub fn sign(&self, body: &[u8]) -> String {
        let mac = hmac_sha256(self.app_secret.as_bytes(), body);
        let hex: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256={hex}")
    }

    /// Posts `body`, signed.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post(&self, body: &Value) -> anyhow::Result<Answer> {
        self.post_bytes(serde_json::to_vec(body)?, Disguise::default()).await
    }

    /// Posts bytes as `disguise` says.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn post_bytes(&self, body: Vec<u8>, disguise: Disguise) -> anyhow::Result<Answer> {
        let signature = disguise.signature.unwrap_or_else(|| Some(self.sign(&body)));
        let content_type = disguise.content_type.as_deref().unwrap_or("application/json");
        let mut request = self.http.post(&self.callback_url).header(CONTENT_TYPE, content_type).body(body);
        if let Some(signature) = signature {
            request = request.header(SIGNATURE_HEADER, signature);
        }
        answer(request).await
    }

    /// Asks the handshake with these query parameters.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn handshake(&self, query: &[(&str, &str)]) -> anyhow::Result<Answer> {
        let mut url = reqwest::Url::parse(&self.callback_url)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        answer(self.http.get(url)).await
    }

    /// A callback with one change of the field `messages`.
    pub fn messages(&self, messages: &[Value]) -> Value {
        let contacts: Vec<Value> = messages
            .iter()
            .filter_map(|message| message["from"].as_str())
            .map(|from| json!({"profile": {"name": "Zoë"}, "wa_id": from}))
            .collect();
        envelope(&[self.change("messages", json!({"contacts": contacts, "messages": messages}))])
    }

    /// A callback with statuses.
    pub fn statuses(&self, statuses: &[Value]) -> Value {
        envelope(&[self.change("messages", json!({"statuses": statuses}))])
    }

    /// A callback of WhatsApp's own control for marketing messages: `stop`, `resume` or `signup`.
    pub fn preference(&self, wa_id: &str, value: &str, timestamp: i64) -> Value {
        let preference = json!({
            "wa_id": wa_id, "category": "marketing_messages", "value": value,
            "detail": "User changed marketing messages", "timestamp": timestamp,
        });
        let value = json!({"contacts": [{"wa_id": wa_id}], "user_preferences": [preference]});
        envelope(&[self.change("user_preferences", value)])
    }

    /// One change of this number: `value` with its metadata.
    pub fn change(&self, field: &str, mut value: Value) -> Value {
        value["messaging_product"] = json!("whatsapp");
        value["metadata"] = json!({
            "display_phone_number": self.display_phone_number,
            "phone_number_id": self.phone_number_id,
        });
        json!({"field": field, "value": value})
    }

    /// Posts a text message and gives its id.
    ///
    /// # Errors
    /// When it is not answered with 200.
    pub async fn say(&self, from: &str, text: &str) -> anyhow::Result<String> {
        let wamid = unique_wamid();
        let answer = self.post(&self.messages(&[text_message(&wamid, from, text)])).await?;
        anyhow::ensure!(answer.status == 200, "post a message: answered {}", answer.status);
        Ok(wamid)
    }

    /// Posts so many text messages of many contacts, in large callbacks over a few connections.
    ///
    /// # Errors
    /// When one of them is not answered with 200.
    pub async fn say_many(&self, count: usize) -> anyhow::Result<()> {
        let mut posters = JoinSet::new();
        for connection in 0..MANY_CONNECTIONS {
            let provider = self.clone();
            posters.spawn(async move {
                for first in (connection * MANY_BATCH..count).step_by(MANY_CONNECTIONS * MANY_BATCH) {
                    let messages: Vec<Value> = (first..count.min(first + MANY_BATCH))
                        .map(|number| {
                            let from = format!("9665{:08}", number % MANY_CONTACTS);
                            text_message(&unique_wamid(), &from, "one of very many")
                        })
                        .collect();
                    let answer = provider.post(&provider.messages(&messages)).await?;
                    anyhow::ensure!(answer.status == 200, "post messages: answered {}", answer.status);
                }
                Ok(())
            });
        }
        posters.join_all().await.into_iter().collect()
    }
}

/// Sends a request and reads its answer.
///
/// # Errors
/// When there is none.
pub async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
    let start = Instant::now();
    let answer = request.send().await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.bytes().await?;
    Ok(Answer { status, headers, body, duration: start.elapsed() })
}

/// A callback of a business account with these changes.
pub fn envelope(changes: &[Value]) -> Value {
    json!({"object": "whatsapp_business_account", "entry": [{"id": "102290129340398", "changes": changes}]})
}

/// A message id that nobody has.
pub fn unique_wamid() -> String {
    format!("wamid.{}", uuid::Uuid::new_v4().simple())
}

/// A text message, written now.
pub fn text_message(wamid: &str, from: &str, text: &str) -> Value {
    text_message_at(wamid, from, text, jiff::Timestamp::now().as_second())
}

/// A text message, written at a time in unix seconds.
pub fn text_message_at(wamid: &str, from: &str, text: &str, timestamp: i64) -> Value {
    json!({
        "from": from, "id": wamid, "timestamp": timestamp.to_string(),
        "type": "text", "text": {"body": text},
    })
}

/// A status of a message that the business sent.
pub fn status(wamid: &str, recipient: &str, status: &str) -> Value {
    json!({
        "id": wamid, "status": status, "recipient_id": recipient,
        "timestamp": jiff::Timestamp::now().as_second().to_string(),
    })
}
