//! What a contact chose: a button, a row of a list, a flow. In the words that Meta has for the same.

use gateway_core::event::{Message, Reply};
use serde_json::value::RawValue;

use super::cut::cut;
use crate::provider::json::{self, Fields, kept};

/// Reads a choice; None when it is none. Gives the type of the message.
pub fn read(kind: &str, content: &Fields<'_>, message: &mut Message) -> Option<&'static str> {
    let (message_type, reply_type, reply) = match kind {
        "templateButtonReplyMessage" => {
            let (id, title) = (content.name("selectedId"), content.name("selectedDisplayText"));
            ("button", "button", Reply { id, title, ..Reply::default() })
        }
        "buttonsResponseMessage" => {
            let (id, title) = (content.name("selectedButtonId"), content.name("selectedDisplayText"));
            ("interactive", "button_reply", Reply { id, title, ..Reply::default() })
        }
        "listResponseMessage" => {
            let row = content.object("singleSelectReply").and_then(|reply| reply.name("selectedRowId"));
            let (title, description) = (content.name("title"), content.name("description"));
            ("interactive", "list_reply", Reply { id: row, title, description, ..Reply::default() })
        }
        "interactiveResponseMessage" => ("interactive", "nfm_reply", native_flow(content)?),
        _ => return None,
    };
    message.text.clone_from(&reply.title);
    message.reply = Some(Reply { reply_type: Some(reply_type.into()), ..reply });
    Some(message_type)
}

/// Buttons and flows of the newer kind: the answer is JSON in a text.
fn native_flow(content: &Fields<'_>) -> Option<Reply> {
    let flow = content.object("nativeFlowResponseMessage")?;
    let params = flow.get("paramsJson");
    let cut = params.map(cut);
    let whole = cut.as_deref().and_then(|params| serde_json::from_str(params).ok());
    let json = params.and_then(json::text);
    let parsed: Option<&RawValue> = json.as_deref().and_then(|json| serde_json::from_str(json).ok());
    let said = parsed.and_then(Fields::of);
    let first = |names: &[&str]| names.iter().find_map(|name| said.as_ref()?.name(name));
    let text = content.object("body").and_then(|body| body.name("text"));
    Some(Reply {
        id: first(&["id", "selectedId", "selectedRowId"]),
        title: text.or_else(|| first(&["display_text", "title"])).or_else(|| flow.name("name")),
        // A text that is no JSON stays a text, and JSON without a text around it is taken as it is.
        response: parsed.or(whole).map(kept),
        ..Reply::default()
    })
}

/// The type of a message that is told by its text alone: of a number of the Cloud API, what was chosen comes like a
/// text that was written, and only `messageType` tells the difference.
pub fn told_by_text(literal: Option<&str>, message: &mut Message) -> &'static str {
    let kind = match literal {
        Some("interactiveMessage") => "interactive",
        Some("buttonMessage") => "button",
        _ => return "text",
    };
    message.reply = Some(Reply { title: message.text.clone(), ..Reply::default() });
    kind
}
