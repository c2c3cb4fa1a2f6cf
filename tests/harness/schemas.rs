//! The JSON Schemas that customers validate webhook bodies with, `sdk/schemas/<event>.json`.

use std::{collections::HashMap, error::Error, fs, path::Path};

use anyhow::{Context as _, ensure};
use jsonschema::{Retrieve, Uri, Validator};
use serde_json::Value;

use crate::{programs::workspace_root, receiver::Webhook};

/// The schemas, by event.
pub struct Schemas(HashMap<String, Validator>);

impl Schemas {
    /// Reads all of them.
    ///
    /// # Errors
    /// When one is missing or is no JSON Schema.
    pub fn load() -> anyhow::Result<Self> {
        let mut schemas = HashMap::new();
        for entry in fs::read_dir(directory())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(event) = name.strip_suffix(".json") else { continue };
            let validator = compile(&path).with_context(|| format!("read schema `{name}`"))?;
            schemas.insert(event.to_owned(), validator);
        }
        Ok(Self(schemas))
    }

    /// Validates the body of `webhook` by the schema of its event.
    ///
    /// # Errors
    /// What the schema does not allow, or that there is none.
    pub fn check(&self, webhook: &Webhook) -> anyhow::Result<()> {
        let body = webhook.json();
        let event = webhook.event();
        let schema = self.0.get(&event).with_context(|| format!("find the schema of event `{event}`"))?;
        let errors: Vec<String> =
            schema.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
        ensure!(errors.is_empty(), "validate {body}: {errors:?}");
        Ok(())
    }
}

fn directory() -> std::path::PathBuf {
    workspace_root().join("sdk/schemas")
}

fn compile(path: &Path) -> anyhow::Result<Validator> {
    let schema: Value = serde_json::from_slice(&fs::read(path)?)?;
    jsonschema::options()
        .with_retriever(Neighbours)
        .build(&schema)
        .map_err(|error| anyhow::anyhow!("{}: {error}", error.instance_path()))
}

/// Schemas that others refer to are files beside them; nothing is fetched.
struct Neighbours;

impl Retrieve for Neighbours {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let name = uri.as_str().rsplit('/').next().unwrap_or_default();
        Ok(serde_json::from_slice(&fs::read(directory().join(name))?)?)
    }
}
