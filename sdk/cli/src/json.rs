//! JSON for people: indented, in the order in which it was written.

/// Indents JSON text without changing the order of its keys or the form of its numbers. Text that is not JSON
/// comes out with odd white space and otherwise unchanged.
pub fn pretty(text: &str) -> String {
    let mut pretty = String::with_capacity(text.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut characters = text.chars().filter(Relevant::default().keep()).peekable();
    while let Some(character) = characters.next() {
        if in_string {
            pretty.push(character);
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
            continue;
        }
        match character {
            '{' | '[' => {
                pretty.push(character);
                if let Some(closing) = characters.next_if(|next| matches!(next, '}' | ']')) {
                    pretty.push(closing);
                } else {
                    depth += 1;
                    new_line(&mut pretty, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut pretty, depth);
                pretty.push(character);
            }
            ',' => {
                pretty.push(character);
                new_line(&mut pretty, depth);
            }
            ':' => pretty.push_str(": "),
            _ => {
                in_string = character == '"';
                pretty.push(character);
            }
        }
    }
    pretty
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
}

/// Drops white space outside of strings.
#[derive(Default)]
struct Relevant {
    in_string: bool,
    escaped: bool,
}

impl Relevant {
    fn keep(mut self) -> impl FnMut(&char) -> bool {
        move |character| {
            let inside = self.in_string;
            if inside {
                self.in_string = self.escaped || *character != '"';
                self.escaped = !self.escaped && *character == '\\';
            } else {
                self.in_string = *character == '"';
            }
            inside || !character.is_ascii_whitespace()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys keep their order, numbers their digits, strings whatever is in them.
    #[test]
    fn order_and_content_are_kept() {
        let text = r#"{"z":1.50,"a":[1, {"b":"x: {\"y\\\",[ \\"}],"empty":{ },"none":[], "n":null}"#;
        let expected = concat!(
            "{\n  \"z\": 1.50,\n  \"a\": [\n    1,\n    {\n      \"b\": \"x: {\\\"y\\\\\\\",[ \\\\\"\n    }\n  ],\n",
            "  \"empty\": {},\n  \"none\": [],\n  \"n\": null\n}"
        );
        assert_eq!(pretty(text), expected);
        let before: serde_json::Value = serde_json::from_str(text).unwrap();
        let after: serde_json::Value = serde_json::from_str(&pretty(text)).unwrap();
        assert_eq!(before, after);
    }
}
