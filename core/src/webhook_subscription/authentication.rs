//! Credentials that webhooks carry to a destination. No description of a violation shows one.

use gateway_proto::v1::{self, destination_authentication::Method};

use super::headers::{HEADER_VALUE_BYTES_MAX, check_header_name, check_header_value};
use crate::{
    destination::{AddressPolicy, DestinationUrl},
    inbound_route::SecretValue,
    snapshot::{Authentication, OAuth2},
    violation::FieldViolations,
};

/// Longest user name, in characters; longest OAuth 2.0 client id, in bytes.
pub const USERNAME_CHARS_MAX: usize = 256;
/// Longest password, in characters; longest OAuth 2.0 client secret, in bytes.
pub const PASSWORD_CHARS_MAX: usize = 1_024;
/// Longest bearer token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 4_096;
/// Most OAuth 2.0 scopes.
pub const SCOPES_MAX: usize = 32;
/// Longest OAuth 2.0 scope, in bytes.
pub const SCOPE_BYTES_MAX: usize = 128;

const FIELD: &str = "webhook_subscription.authentication";
const AUTHORIZATION: &str = "authorization";

/// The credentials. None when there are none, or when they are bad.
pub(super) fn read_authentication(
    violations: &mut FieldViolations,
    proto: &v1::WebhookSubscription,
    headers: &[(Box<str>, SecretValue)],
    policy: &AddressPolicy,
) -> Option<Authentication> {
    let Some(method) = &proto.authentication.as_ref()?.method else {
        let description = "must have one of `header`, `basic`, `bearer` and `oauth2`; leave `authentication` out \
                           for none";
        violations.add(FIELD, description);
        return None;
    };
    let before = violations.0.len();
    let read = match method {
        Method::Header(header) => Some(read_header(violations, header, headers)),
        Method::Basic(basic) => Some(read_basic(violations, basic)),
        Method::Bearer(bearer) => {
            check_visible(violations, "bearer.token", &bearer.token, TOKEN_BYTES_MAX, false);
            Some(Authentication::Bearer { token: bearer.token.as_str().into() })
        }
        Method::Oauth2(oauth2) => read_oauth2(violations, oauth2, policy),
    };
    let sets_authorization = !matches!(method, Method::Header(_));
    if sets_authorization && headers.iter().any(|(name, _)| **name == *AUTHORIZATION) {
        let field = format!("webhook_subscription.headers[{AUTHORIZATION}]");
        violations.add(field, "must not be set beside `authentication`, which sets it; remove one of them");
    }
    read.filter(|_| violations.0.len() == before)
}

fn read_header(
    violations: &mut FieldViolations,
    header: &v1::HeaderAuthentication,
    headers: &[(Box<str>, SecretValue)],
) -> Authentication {
    let name = header.name.to_ascii_lowercase();
    let field = format!("{FIELD}.header.name");
    if name.is_empty() {
        violations.add(field, "must be set: a header name such as `x-api-key`");
    } else if let Err(problem) = check_header_name(&name) {
        violations.add(field, problem);
    } else if headers.iter().any(|(known, _)| **known == *name) {
        violations.add(field, "must not be one of the custom `headers` too; remove one of them");
    }
    let field = format!("{FIELD}.header.value");
    if header.value.is_empty() {
        violations.add(field, "must be set");
    } else if header.value.len() > HEADER_VALUE_BYTES_MAX {
        violations.add(field, format!("must be at most {HEADER_VALUE_BYTES_MAX} bytes long"));
    } else if check_header_value(&header.value).is_err() {
        violations.add(field, "must be visible ASCII characters, spaces and tabs");
    }
    Authentication::Header { name: name.into(), value: header.value.as_str().into() }
}

fn read_basic(violations: &mut FieldViolations, basic: &v1::BasicAuthentication) -> Authentication {
    // RFC 7617, 2: a colon ends the user name, and neither part has control characters.
    let field = format!("{FIELD}.basic.username");
    if basic.username.is_empty() {
        violations.add(field, "must be set");
    } else if basic.username.chars().count() > USERNAME_CHARS_MAX {
        violations.add(field, format!("must be at most {USERNAME_CHARS_MAX} characters long"));
    } else if basic.username.chars().any(|character| character == ':' || character.is_control()) {
        violations.add(field, "must not contain colons or control characters");
    }
    let field = format!("{FIELD}.basic.password");
    if basic.password.chars().count() > PASSWORD_CHARS_MAX {
        violations.add(field, format!("must be at most {PASSWORD_CHARS_MAX} characters long"));
    } else if basic.password.chars().any(char::is_control) {
        violations.add(field, "must not contain control characters");
    }
    Authentication::Basic {
        username: basic.username.as_str().into(),
        password: basic.password.as_str().into(),
    }
}

fn read_oauth2(
    violations: &mut FieldViolations,
    oauth2: &v1::OAuth2Authentication,
    policy: &AddressPolicy,
) -> Option<Authentication> {
    let token_url = DestinationUrl::parse(&oauth2.token_url, policy)
        .map_err(|error| violations.add(format!("{FIELD}.oauth2.token_url"), error.to_string()));
    check_visible(violations, "oauth2.client_id", &oauth2.client_id, USERNAME_CHARS_MAX, true);
    check_visible(violations, "oauth2.client_secret", &oauth2.client_secret, PASSWORD_CHARS_MAX, true);
    let field = format!("{FIELD}.oauth2.scopes");
    if oauth2.scopes.len() > SCOPES_MAX {
        violations.add(field, format!("must have at most {SCOPES_MAX} values"));
    } else {
        for (index, scope) in oauth2.scopes.iter().enumerate() {
            // RFC 6749, 3.3: scopes are separated by spaces, so they contain none.
            let is_scope = |byte: u8| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
            if scope.is_empty() || scope.len() > SCOPE_BYTES_MAX || !scope.bytes().all(is_scope) {
                let description =
                    "must be one scope: 1 to 128 visible ASCII characters without `\"` and `\\`";
                violations.add(format!("{field}[{index}]"), description);
            }
        }
    }
    Some(Authentication::OAuth2(Box::new(OAuth2 {
        token_url: token_url.ok()?.url().clone(),
        client_id: oauth2.client_id.as_str().into(),
        client_secret: oauth2.client_secret.as_str().into(),
        scopes: oauth2.scopes.iter().map(|scope| scope.as_str().into()).collect(),
    })))
}

fn check_visible(violations: &mut FieldViolations, field: &str, text: &str, max: usize, spaces: bool) {
    let field = format!("{FIELD}.{field}");
    let lowest = if spaces { b' ' } else { b'!' };
    if text.is_empty() {
        violations.add(field, "must be set");
    } else if text.len() > max {
        violations.add(field, format!("must be at most {max} characters long"));
    } else if !text.bytes().all(|byte| (lowest..=b'~').contains(&byte)) {
        let and_spaces = if spaces { " and spaces" } else { ", without spaces" };
        violations.add(field, format!("must be visible ASCII characters{and_spaces}"));
    }
}
