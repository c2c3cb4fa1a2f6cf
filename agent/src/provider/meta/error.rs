//! `errors`, which stand in a message, in a status, and in a value that is about neither,
//! <https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes>.

use gateway_core::event::ProviderError;
use serde_json::value::RawValue;

use crate::provider::json::{self, Fields, elements};

/// What `errors` says.
#[derive(Default)]
pub struct Errors {
    /// The first error that says anything: the one that is shown.
    pub first: Option<ProviderError>,
    /// The codes of all.
    pub codes: Vec<i64>,
    /// Whether there is more than `first` shows, so that its item has to be passed on raw.
    pub say_more: bool,
}

impl Errors {
    /// Reads `errors`; one error without an array around it is one error all the same.
    pub fn of(errors: Option<&RawValue>) -> Self {
        let Some(raw) = errors.filter(|raw| raw.get() != "\"\"") else { return Self::default() };
        let all = elements(raw).unwrap_or_else(|| vec![raw]);
        let mut errors = Self { say_more: all.len() > 1, ..Self::default() };
        for raw in all {
            let error = error(raw);
            errors.codes.extend(error.code);
            let says_nothing = error.code.is_none() && error.title.is_none() && error.details.is_none();
            let has_odd_code =
                error.code.is_none() && Fields::of(raw).is_some_and(|fields| fields.get("code").is_some());
            errors.say_more |= says_nothing || has_odd_code;
            if !says_nothing {
                errors.first.get_or_insert(error);
            }
        }
        errors
    }

    /// How long the texts of the first error are, in bytes.
    pub fn bytes(&self) -> usize {
        let texts = self.first.iter().flat_map(|error| [&error.title, &error.details]);
        texts.flatten().map(|text| text.len()).sum()
    }

    /// One error without an object of its own: `code` and `reason` of an item, as Gupshup writes them.
    pub fn flat(item: &Fields<'_>) -> Self {
        let error = ProviderError { code: item.integer("code"), title: item.name("reason"), details: None };
        let says_nothing = error.code.is_none() && error.title.is_none();
        let has_odd_code = error.code.is_none() && item.text("code").is_some_and(|code| !code.is_empty());
        Self {
            codes: error.code.into_iter().collect(),
            first: (!says_nothing).then_some(error),
            say_more: has_odd_code,
        }
    }
}

/// One error. `title` may be missing and repeated in `message`; `error_data` is an object or a text, and older
/// errors have `details` beside it. A number is a code, a text a title.
fn error(raw: &RawValue) -> ProviderError {
    let Some(error) = Fields::of(raw) else {
        let code = json::integer(raw);
        let title = json::text(raw).filter(|text| code.is_none() && !text.is_empty());
        return ProviderError { code, title: title.map(Box::from), details: None };
    };
    let data = error.get("error_data");
    let details = data.and_then(Fields::of).and_then(|data| data.name("details"));
    let details =
        details.or_else(|| data.and_then(json::text).map(Box::from)).or_else(|| error.name("details"));
    ProviderError {
        code: error.integer("code"),
        title: error.name("title").or_else(|| error.name("message")),
        details,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code and title of the first error.
    type First = (Option<i64>, Option<String>);

    /// The first error, the codes of all, and whether more is said.
    fn read(json: &str) -> (First, Vec<i64>, bool) {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        let Errors { first, codes, say_more } = Errors::of(Some(&raw));
        let first = first.unwrap_or_default();
        ((first.code, first.title.map(String::from)), codes, say_more)
    }

    /// Every error counts, whatever its shape; what the first one does not show is known to be more.
    #[test]
    fn errors_of_any_shape_are_read() {
        let title = |title: &str| (None, Some(title.to_owned()));
        let code = |code| (Some(code), None);
        assert_eq!(read("[]"), ((None, None), vec![], false));
        assert_eq!(read(r#""""#), ((None, None), vec![], false));
        assert_eq!(read(r#"[{"code":1}]"#), (code(1), vec![1], false));
        assert_eq!(read(r#"{"code":"1"}"#), (code(1), vec![1], false));
        assert_eq!(read(r#"[{"code":131026.0}]"#), (code(131_026), vec![131_026], false));
        assert_eq!(read(r#"[{"code":1},{"code":"131050"}]"#), (code(1), vec![1, 131_050], true));
        assert_eq!(read(r#"["x"]"#), (title("x"), vec![], false));
        assert_eq!(read(r#""x""#), (title("x"), vec![], false));
        assert_eq!(read("[131050]"), (code(131_050), vec![131_050], false));
        assert_eq!(read(r#"[null,{"title":"x"}]"#), (title("x"), vec![], true));
        assert_eq!(read(r#"[{"code":"odd","title":"x"}]"#), (title("x"), vec![], true));
        for unreadable in ["[[]]", "[{}]", "{}", r#"[{"code":{}}]"#] {
            assert_eq!(read(unreadable), ((None, None), vec![], true), "{unreadable}");
        }
    }
}
