//! Field masks of updates.

use prost_types::FieldMask;
use tonic::Status;

use super::status;

/// The fields that an update changes, of those that it may change; `*` is all of them. A path may also be
/// written in lowerCamelCase, as JSON has it: `displayName`.
///
/// # Errors
/// INVALID_ARGUMENT when the mask is missing or empty, or names another field; the text names the path and
/// what is allowed.
pub fn read(mask: Option<&FieldMask>, allowed: &[&'static str]) -> Result<Vec<&'static str>, Status> {
    let list = || allowed.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ");
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        let description = format!("must name at least one field: {}, or `*` for all of them", list());
        return Err(status::invalid_field("update_mask", description));
    }
    if paths == ["*"] {
        return Ok(allowed.to_vec());
    }
    let mut fields = Vec::with_capacity(paths.len());
    for path in paths {
        let is_named = |field: &&&str| *field == path || lower_camel_case(field) == *path;
        let Some(field) = allowed.iter().find(is_named) else {
            let shown: String = path.chars().filter(|character| !character.is_control()).take(100).collect();
            let description = format!(
                "names `{shown}`, which cannot be changed here; allowed are {}, and `*` alone",
                list()
            );
            return Err(status::invalid_field("update_mask", description));
        };
        fields.push(*field);
    }
    Ok(fields)
}

/// The JSON name of a field: `display_name` is `displayName`.
fn lower_camel_case(field: &str) -> String {
    let mut name = String::with_capacity(field.len());
    let mut is_start = false;
    for character in field.chars() {
        if character == '_' {
            is_start = true;
        } else {
            name.push(if is_start { character.to_ascii_uppercase() } else { character });
            is_start = false;
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(paths: &[&str]) -> FieldMask {
        FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }
    }

    /// Known paths in both spellings and `*` are taken; missing, empty and unknown ones are refused with
    /// what is allowed.
    #[test]
    fn unknown_paths_are_refused() {
        let allowed = ["display_name", "labels"];
        assert_eq!(read(Some(&mask(&["labels"])), &allowed).unwrap(), ["labels"]);
        assert_eq!(read(Some(&mask(&["displayName", "labels"])), &allowed).unwrap(), allowed);
        assert_eq!(read(Some(&mask(&["display_name"])), &allowed).unwrap(), ["display_name"]);
        assert_eq!(read(Some(&mask(&["*"])), &allowed).unwrap(), allowed);
        assert!(read(None, &allowed).is_err());
        assert!(read(Some(&mask(&[])), &allowed).is_err());
        for path in ["id", "labels.team", "", "*x", "DisplayName", "displayname"] {
            let refused = read(Some(&mask(&["labels", path])), &allowed).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains("`display_name`"), "{}", refused.message());
        }
    }
}
