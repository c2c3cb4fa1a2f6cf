//! Twilio Programmable Messaging: forms, <https://www.twilio.com/docs/messaging/guides/webhook-request> and
//! <https://www.twilio.com/docs/messaging/guides/track-outbound-message-status>.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use gateway_core::signature::hmac_sha1;
use reqwest::Url;

use super::{CONTACT_NAME, Draft, Happening, Scene, Status, Unsigned, random};

/// An account SID of nobody.
const ACCOUNT_ID: &str = "AC00000000000000000000000000000000";
const API_VERSION: &str = "2010-04-01";

pub fn draft(scene: &Scene<'_>, happening: Happening<'_>) -> Draft {
    let message_id = format!("SM{}", random::hex(32));
    let contact = format!("whatsapp:{}", scene.contact.as_str());
    let business = format!("whatsapp:{}", scene.number.phone_number);
    let account_id = scene.number.account_id.unwrap_or(ACCOUNT_ID);
    let mut parameters = match happening {
        Happening::Text(text) => {
            let mut parameters = vec![
                ("SmsMessageSid", message_id.as_str()),
                ("NumMedia", "0"),
                ("ProfileName", CONTACT_NAME),
                ("MessageType", "text"),
                ("WaId", scene.contact.digits()),
                ("SmsStatus", "received"),
                ("Body", text),
                ("To", &business),
                ("NumSegments", "1"),
                ("From", &contact),
            ];
            // Twilio's own word for what it takes as the wish to stop.
            if text.trim().eq_ignore_ascii_case("stop") {
                parameters.push(("OptOutType", "STOP"));
            }
            parameters
        }
        Happening::Status(status) => {
            let word = word(status);
            let mut parameters =
                vec![("SmsStatus", word), ("MessageStatus", word), ("To", &contact), ("From", &business)];
            if status == Status::Failed {
                // The recipient cannot be reached on WhatsApp.
                parameters.push(("ErrorCode", "63024"));
            }
            parameters
        }
    };
    parameters.extend([
        ("SmsSid", message_id.as_str()),
        ("MessageSid", &message_id),
        ("AccountSid", account_id),
        ("ApiVersion", API_VERSION),
    ]);
    let body = form(&parameters);
    Draft { body, message_id }
}

/// `X-Twilio-Signature`, <https://www.twilio.com/docs/usage/security#validating-requests>: over the URL and the
/// decoded parameters, sorted by name.
pub fn sign(auth_token: &str, unsigned: &Unsigned<'_>) -> Vec<(&'static str, String)> {
    let mut parameters: Vec<_> = as_query(unsigned.body).query_pairs().into_owned().collect();
    parameters.sort();
    let mut message = unsigned.url.to_owned();
    for (name, value) in &parameters {
        message.push_str(name);
        message.push_str(value);
    }
    let signature = hmac_sha1(auth_token.as_bytes(), message.as_bytes());
    vec![("x-twilio-signature", STANDARD.encode(signature))]
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Sent => "sent",
        Status::Delivered => "delivered",
        Status::Read => "read",
        Status::Failed => "failed",
    }
}

/// A form is encoded like a query.
fn form(parameters: &[(&str, &str)]) -> String {
    let mut url = as_query("");
    url.query_pairs_mut().clear().extend_pairs(parameters);
    url.query().unwrap_or_default().to_owned()
}

fn as_query(form: &str) -> Url {
    let mut url = Url::parse("form:").expect("this is a URL");
    url.set_query(Some(form));
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway_sdk::Timestamp;

    /// The published example of the provider's own library, twilio/twilio-python
    /// `tests/unit/test_request_validator.py`.
    #[test]
    fn signatures_are_the_documented_ones() {
        let unsigned = Unsigned {
            url: "https://mycompany.com/myapp.php?foo=1&bar=2",
            body: "CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212",
            account_id: None,
            now: Timestamp::UNIX_EPOCH,
        };
        assert_eq!(
            sign("12345", &unsigned),
            [("x-twilio-signature", "RSOYDt4T1cUTdK1PDd93/VVr8B8=".to_owned())]
        );
    }

    /// Texts of any kind survive the form.
    #[test]
    fn forms_are_encoded() {
        assert_eq!(form(&[("Body", "Zoë & 1+1=2\n"), ("X", "")]), "Body=Zo%C3%AB+%26+1%2B1%3D2%0A&X=");
    }
}
