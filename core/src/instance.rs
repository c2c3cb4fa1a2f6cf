//! An instance: one connected WhatsApp business number.

use gateway_proto::v1;

use crate::{
    id::{InboundRouteId, InstanceId, TenantId},
    inbound_route::PROVIDER_ACCOUNT_ID_CHARS_MAX,
    phone::{Phone, normalize_phone},
    snapshot::canonical_number,
    violation::FieldViolations,
};

/// Longest `display_name`, in characters.
pub const DISPLAY_NAME_CHARS_MAX: usize = 100;
/// Longest `provider_number_id`, in characters.
pub const PROVIDER_NUMBER_ID_CHARS_MAX: usize = 128;
/// Most regions of one instance.
pub const REGIONS_MAX: usize = 32;
/// Most labels of one instance.
pub const LABELS_MAX: usize = 64;
/// Longest label key, in characters.
pub const LABEL_KEY_CHARS_MAX: usize = 63;
/// Longest label value, in characters.
pub const LABEL_VALUE_CHARS_MAX: usize = 255;

/// A validated instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Its id, the `instance_id` of every webhook body.
    pub id: InstanceId,
    /// The tenant that owns it.
    pub tenant_id: TenantId,
    /// Its name, the `instance_name` of every webhook body.
    pub display_name: Box<str>,
    /// The inbound route that takes its callbacks.
    pub inbound_route_id: InboundRouteId,
    /// The provider's own name of the number, as given; compare by [`Instance::number_key`].
    pub provider_number_id: Box<str>,
    /// The business phone number, when known.
    pub phone_number: Option<Phone>,
    /// The provider's account that the number belongs to; empty for unknown.
    pub provider_account_id: Box<str>,
    /// Regions whose agents serve it; empty means all.
    pub regions: Box<[Box<str>]>,
}

impl Instance {
    /// The form of `provider_number_id` that is unique within the inbound route: phone-like values compare
    /// as digits.
    pub fn number_key(&self) -> String {
        canonical_number(&self.provider_number_id)
    }
}

/// Whether the text can name a region: `[a-z0-9][a-z0-9_-]{0,62}`.
pub fn is_region(text: &str) -> bool {
    let bytes = text.as_bytes();
    let starts_well = bytes.first().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let is_name =
        |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-');
    starts_well && bytes.len() <= 63 && bytes.iter().all(is_name)
}

impl TryFrom<&v1::Instance> for Instance {
    type Error = FieldViolations;

    fn try_from(proto: &v1::Instance) -> Result<Self, FieldViolations> {
        let mut violations = FieldViolations::new();
        let id = proto.id.parse::<InstanceId>();
        let tenant_id = proto.tenant_id.parse::<TenantId>();
        let inbound_route_id = proto.inbound_route_id.parse::<InboundRouteId>();
        note(&mut violations, "instance.id", id.as_ref().err());
        note(&mut violations, "instance.tenant_id", tenant_id.as_ref().err());
        note(&mut violations, "instance.inbound_route_id", inbound_route_id.as_ref().err());
        check_text(&mut violations, "instance.display_name", &proto.display_name, 1, DISPLAY_NAME_CHARS_MAX);
        let field = "instance.provider_number_id";
        check_text(&mut violations, field, &proto.provider_number_id, 1, PROVIDER_NUMBER_ID_CHARS_MAX);
        let phone_number = check_phone(&mut violations, &proto.phone_number);
        let (field, account) = ("instance.provider_account_id", &proto.provider_account_id);
        check_text(&mut violations, field, account, 0, PROVIDER_ACCOUNT_ID_CHARS_MAX);
        check_regions(&mut violations, &proto.regions);
        check_labels(&mut violations, &proto.labels);
        let (Ok(id), Ok(tenant_id), Ok(inbound_route_id)) = (id, tenant_id, inbound_route_id) else {
            return Err(violations);
        };
        violations.into_result(Self {
            id,
            tenant_id,
            display_name: proto.display_name.as_str().into(),
            inbound_route_id,
            provider_number_id: proto.provider_number_id.as_str().into(),
            phone_number,
            provider_account_id: account.as_str().into(),
            regions: proto.regions.iter().map(|region| region.as_str().into()).collect(),
        })
    }
}

fn note(violations: &mut FieldViolations, field: &str, error: Option<&impl ToString>) {
    if let Some(error) = error {
        violations.add(field, error.to_string());
    }
}

/// Notes a text that is shorter or longer than allowed, that is white space only, or that holds control
/// characters.
pub(crate) fn check_text(violations: &mut FieldViolations, field: &str, text: &str, min: usize, max: usize) {
    let chars = text.chars().count();
    if chars < min {
        violations.add(field, "must be set");
    } else if chars > max {
        violations.add(field, format!("must be at most {max} characters long, has {chars}"));
    } else if text.chars().any(char::is_control) {
        violations.add(field, "must not contain control characters");
    } else if chars > 0 && text.trim().is_empty() {
        violations.add(field, "must not be white space only");
    }
}

fn check_phone(violations: &mut FieldViolations, text: &str) -> Option<Phone> {
    if text.is_empty() {
        return None;
    }
    let phone = normalize_phone(text);
    if phone.is_none() {
        violations.add("instance.phone_number", "must be a phone number in E.164, such as `+966110000000`");
    }
    phone
}

fn check_regions(violations: &mut FieldViolations, regions: &[String]) {
    if regions.len() > REGIONS_MAX {
        violations.add("instance.regions", format!("must name at most {REGIONS_MAX} regions"));
    }
    for (index, region) in regions.iter().enumerate().take(REGIONS_MAX) {
        if !is_region(region) {
            violations.add(format!("instance.regions[{index}]"), "must match [a-z0-9][a-z0-9_-]{0,62}");
        }
    }
}

fn check_labels(violations: &mut FieldViolations, labels: &std::collections::HashMap<String, String>) {
    const FIELD: &str = "instance.labels";
    if labels.len() > LABELS_MAX {
        violations.add(FIELD, format!("must have at most {LABELS_MAX} labels"));
    }
    let is_bad_key = |key: &String| key.is_empty() || key.chars().count() > LABEL_KEY_CHARS_MAX;
    if labels.keys().any(is_bad_key) {
        violations.add(FIELD, format!("must have keys of 1 to {LABEL_KEY_CHARS_MAX} characters"));
    }
    if labels.values().any(|value| value.chars().count() > LABEL_VALUE_CHARS_MAX) {
        violations.add(FIELD, format!("must have values of at most {LABEL_VALUE_CHARS_MAX} characters"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> v1::Instance {
        v1::Instance {
            id: "demo-support-line".into(),
            tenant_id: "default".into(),
            display_name: "Demo Support Line".into(),
            inbound_route_id: "route_1".into(),
            provider_number_id: "106540352242922".into(),
            phone_number: "+966110000000".into(),
            regions: vec!["eu-1".into()],
            labels: [("team".to_owned(), "support".to_owned())].into(),
            ..Default::default()
        }
    }

    fn fields(proto: &v1::Instance) -> Vec<String> {
        let violations = Instance::try_from(proto).map(|_| ()).unwrap_err();
        violations.0.into_iter().map(|violation| violation.field).collect()
    }

    /// A valid instance converts, with its phone number normalized.
    #[test]
    fn valid_instance_converts() {
        let instance = Instance::try_from(&valid()).unwrap();
        assert_eq!(instance.id.as_str(), "demo-support-line");
        assert_eq!(instance.phone_number.as_ref().map(Phone::as_str), Some("+966110000000"));
    }

    /// Every field that breaks its limit is named, all in one answer.
    #[test]
    fn each_bad_field_is_named() {
        let bad = v1::Instance {
            id: "Bad Id".into(),
            display_name: String::new(),
            inbound_route_id: String::new(),
            provider_number_id: "x".repeat(129),
            phone_number: "not a phone".into(),
            regions: vec!["eu-1".into(), "EU".into()],
            labels: [("k".repeat(64), "v".repeat(256))].into(),
            ..valid()
        };
        assert_eq!(
            fields(&bad),
            [
                "instance.id",
                "instance.inbound_route_id",
                "instance.display_name",
                "instance.provider_number_id",
                "instance.phone_number",
                "instance.regions[1]",
                "instance.labels",
                "instance.labels",
            ]
        );
        assert_eq!(
            fields(&v1::Instance { display_name: "a".repeat(101), ..valid() }),
            ["instance.display_name"]
        );
        assert_eq!(
            fields(&v1::Instance { display_name: "a\nb".into(), ..valid() }),
            ["instance.display_name"]
        );
        assert_eq!(
            fields(&v1::Instance { display_name: " \u{3000}".into(), ..valid() }),
            ["instance.display_name"]
        );
        assert_eq!(fields(&v1::Instance { regions: vec!["a".into(); 33], ..valid() }), ["instance.regions"]);
    }

    /// Phone-like names of one number are one key; other names stay as they are.
    #[test]
    fn phone_like_numbers_compare_as_digits() {
        let key = |text: &str| {
            let proto = v1::Instance { provider_number_id: text.into(), ..valid() };
            Instance::try_from(&proto).unwrap().number_key()
        };
        for text in ["+966110000000", "966110000000", "whatsapp:+966110000000", "00966110000000"] {
            assert_eq!(key(text), "966110000000", "{text}");
        }
        for text in ["106540352242922", "session-A", "1065403522429221234"] {
            assert_eq!(key(text), text);
        }
    }
}
