//! Phone numbers as WhatsApp writes them, in E.164.

use std::fmt;

/// A phone number in E.164: `+` and 7 to 15 digits, the first not 0. Prints masked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(transparent)]
pub struct Phone(Box<str>);

impl Phone {
    /// `+` and digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digits without `+`.
    pub fn digits(&self) -> &str {
        &self.0[1..]
    }

    /// The digits with national variants folded to one form, for comparing numbers of one person that
    /// businesses store in different forms: Brazil with or without the 9 after the area code, Mexico with
    /// or without the 1, Argentina with or without the 9. Never for showing.
    pub fn match_key(&self) -> String {
        let digits = self.digits();
        if let Some(rest) = digits.strip_prefix("55")
            && rest.len() == 11
            && rest.as_bytes()[2] == b'9'
        {
            return format!("55{}{}", &rest[..2], &rest[3..]);
        }
        if let Some(rest) = digits.strip_prefix("521")
            && rest.len() == 10
        {
            return format!("52{rest}");
        }
        if let Some(rest) = digits.strip_prefix("549")
            && rest.len() == 10
        {
            return format!("54{rest}");
        }
        digits.to_owned()
    }
}

impl fmt::Debug for Phone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+••••{}", &self.0[self.0.len().saturating_sub(2)..])
    }
}

/// Reads a phone number in any form that providers and people use: with `whatsapp:`, a JID suffix, `+`,
/// `00`, spaces, `-`, brackets. None for what is not a dialable number: letters, user ids, groups, LIDs.
pub fn normalize_phone(raw: &str) -> Option<Phone> {
    let text = raw.trim();
    let text = text.strip_prefix("whatsapp:").unwrap_or(text);
    let text = match text.split_once('@') {
        Some((number, "c.us" | "s.whatsapp.net")) => {
            number.split_once(':').map_or(number, |(number, _)| number)
        }
        Some(_) => return None,
        None => text,
    };
    let mut digits = String::with_capacity(16);
    digits.push('+');
    let mut plus_seen = false;
    for character in text.chars() {
        match character {
            '0'..='9' => digits.push(character),
            '+' if digits.len() == 1 && !plus_seen => plus_seen = true,
            ' ' | '-' | '(' | ')' | '\u{a0}' => {}
            _ => return None,
        }
        if digits.len() > 20 {
            return None;
        }
    }
    if !plus_seen && digits.starts_with("+00") {
        digits.drain(1..3);
    }
    let count = digits.len() - 1;
    ((7..=15).contains(&count) && !digits.starts_with("+0")).then(|| Phone(digits.into_boxed_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalized(raw: &str) -> Option<String> {
        normalize_phone(raw).map(|phone| phone.as_str().to_owned())
    }

    /// Every form in which a provider writes a dialable number gives E.164.
    #[test]
    fn dialable_forms_are_normalized() {
        for raw in [
            "966500000001",
            "+966500000001",
            "00966500000001",
            "whatsapp:+966500000001",
            "966500000001@c.us",
            "966500000001:12@s.whatsapp.net",
            "+966 50-000 (0001)",
            " 966500000001\n",
        ] {
            assert_eq!(normalized(raw).as_deref(), Some("+966500000001"), "{raw}");
        }
    }

    /// What cannot be dialled is never put into a phone field.
    #[test]
    fn other_identifiers_are_refused() {
        for raw in [
            "",
            "+",
            "US.13491208655302741918",
            "123@lid",
            "1203@g.us",
            "abc",
            "123456",
            "0123456789",
            "1234567890123456",
            "++966500000001",
            "9665+00000001",
        ] {
            assert_eq!(normalized(raw), None, "{raw}");
        }
    }

    /// Variants of one person's number match each other, and nothing else does.
    #[test]
    fn national_variants_match() {
        for (one, other) in [
            ("+5511987654321", "+551187654321"),
            ("+5215512345678", "+525512345678"),
            ("+5491123456789", "+541123456789"),
        ] {
            let key = |raw| normalize_phone(raw).map(|phone| phone.match_key());
            assert_eq!(key(one), key(other), "{one}");
            assert!(key(one).is_some());
        }
        let key = |raw| normalize_phone(raw).map(|phone| phone.match_key());
        assert_ne!(key("+551187654321"), key("+551287654321"));
    }

    /// A number never shows in debug output.
    #[test]
    fn debug_is_masked() {
        let phone = normalize_phone("+966500000001").unwrap();
        assert_eq!(format!("{phone:?}"), "+••••01");
    }
}
