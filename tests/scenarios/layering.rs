//! Who may depend on whom.

use std::{collections::BTreeSet, process::Command};

use gateway_tests::programs::workspace_root;
use serde_json::Value;

/// Each crate and the crates of ours that it may depend on.
const ALLOWED: [(&str, &[&str]); 6] = [
    ("gateway-proto", &[]),
    ("gateway-core", &["gateway-proto"]),
    ("gateway-runtime", &[]),
    ("gateway-sdk", &["gateway-core", "gateway-proto"]),
    ("gateway-control-plane", &["gateway-core", "gateway-proto", "gateway-runtime"]),
    ("gateway-agent", &["gateway-core", "gateway-proto", "gateway-runtime"]),
];

/// `core` decides and does nothing else.
const NEVER_IN_CORE: [&str; 9] =
    ["tokio", "tonic", "hyper", "axum", "reqwest", "sled", "rand", "tracing", "sqlx"];

/// The table of the layers, compared with what the manifests say.
#[test]
fn crates_depend_only_on_the_layers_below() {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace_root())
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, allowed) in ALLOWED {
        let dependencies = dependencies(&metadata, name);
        let ours = dependencies.iter().filter(|dependency| dependency.starts_with("gateway-"));
        let forbidden: Vec<_> = ours.filter(|dependency| !allowed.contains(&dependency.as_str())).collect();
        assert!(forbidden.is_empty(), "{name} depends on {forbidden:?}");
    }
    let core = dependencies(&metadata, "gateway-core");
    let forbidden: Vec<_> = NEVER_IN_CORE.iter().filter(|name| core.contains(**name)).collect();
    assert!(forbidden.is_empty(), "gateway-core depends on {forbidden:?}");
}

/// What a crate depends on outside of its tests.
fn dependencies(metadata: &Value, name: &str) -> BTreeSet<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == name).unwrap();
    let dependencies = package["dependencies"].as_array().unwrap().iter();
    dependencies
        .filter(|dependency| dependency["kind"].is_null())
        .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
        .collect()
}
