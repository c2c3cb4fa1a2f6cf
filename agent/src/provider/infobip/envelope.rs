//! `{"results":[…]}`, or one object. Results are gathered by the number that they are about.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::result;
use crate::provider::{
    ITEMS_MAX, Item, NormalizeError, Part, Target, body,
    json::{Fields, Object, elements},
};

const HEAD: &str = r#"{"results":["#;
const TAIL: &str = "]}";
/// How many of the newest parts are looked through for the number of a result, so that a batch of very many
/// numbers takes no longer. A number that comes back later than that begins a new part.
const PARTS_COMPARED_MAX: usize = 64;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    results: Vec<&'a RawValue>,
}

/// What a body says, by number.
pub fn parts(body: &[u8]) -> Result<Vec<Part<'_>>, NormalizeError> {
    let text = body::text(body)?;
    match serde_json::from_str::<Object<Envelope<'_>>>(text) {
        Ok(Object(envelope)) => of_results(&envelope.results),
        Err(_) => odd_shape(body::json(text)?),
    }
}

/// One object by itself, and whatever else is JSON.
fn odd_shape(root: &RawValue) -> Result<Vec<Part<'_>>, NormalizeError> {
    let results = Fields::of(root).and_then(|fields| fields.get("results")).and_then(elements);
    if let Some(results) = results {
        return of_results(&results);
    }
    let (target, item) = result::read(root);
    Ok(vec![Part { target, items: vec![item], original: vec![root.get().into()] }])
}

fn of_results<'a>(results: &[&'a RawValue]) -> Result<Vec<Part<'a>>, NormalizeError> {
    if results.len() > ITEMS_MAX {
        return Err(NormalizeError::TooManyItems);
    }
    let mut parts = Vec::new();
    for raw in results {
        let (target, item) = result::read(raw);
        add(&mut parts, target, item, raw);
    }
    for part in &mut parts {
        part.original.push(TAIL.into());
    }
    Ok(parts)
}

fn add<'a>(parts: &mut Vec<Part<'a>>, target: Target, item: Item, raw: &'a RawValue) {
    match parts.iter_mut().rev().take(PARTS_COMPARED_MAX).find(|part| part.target == target) {
        Some(part) => {
            part.items.push(item);
            part.original.extend([",".into(), raw.get().into()]);
        }
        None => {
            parts.push(Part { target, items: vec![item], original: vec![HEAD.into(), raw.get().into()] });
        }
    }
}
