//! `gateway-control-plane rewrap`: what it does and says as a program.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use gateway_runtime::sealing::Key;

/// `config.db` of the first schema, in which secrets were readable.
const SCHEMA_1: &[u8] = include_bytes!("fixtures/config-schema-1.db");

fn rewrap(data_dir: &Path, keys: &[&PathBuf], more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway-control-plane"));
    for name in ["GATEWAY_CONTROL_PLANE_ROOT_KEY", "GATEWAY_CONTROL_PLANE_ROOT_KEYS"] {
        command.env_remove(name);
    }
    command.args(["rewrap", "--log-filter", "off", "--data-dir"]).arg(data_dir).args(more);
    for key in keys {
        command.arg("--root-key-file").arg(key);
    }
    command.output().expect("the program was built for this test")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A change of root key in three steps, as an operator makes it: with both keys, then with the new one, and the
/// old one opens nothing any more. Each step says how far it is, and none says a key.
#[test]
fn root_key_is_changed_in_steps() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.db"), SCHEMA_1).unwrap();
    let keys = [Key::generate(), Key::generate()];
    let [old, new] = ["old.key", "new.key"].map(|name| directory.path().join(name));
    for (path, key) in [&old, &new].into_iter().zip(&keys) {
        std::fs::write(path, key.to_base64().as_bytes()).unwrap();
    }
    let mut all = String::new();
    for (given, more, expected) in [
        (&[&old][..], &[][..], "1 of 1 data keys"),
        (&[&new, &old], &[], "1 of 1 data keys"),
        (&[&new], &["--data-keys"], "1 of 1 tenants"),
    ] {
        let output = rewrap(directory.path(), given, more);
        let text = said(&output);
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.contains(expected), "{text}");
        all += &text;
    }
    let refused = rewrap(directory.path(), &[&old], &[]);
    let text = said(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains(&keys[1].id().to_string()) && text.contains("--root-key-file"), "{text}");
    all += &text;
    assert!(keys.iter().all(|key| !all.contains(key.to_base64().as_str())), "{all}");
}

/// Without a database there is nothing to do, and none is made.
#[test]
fn missing_database_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let output = rewrap(directory.path(), &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("config.db"), "{}", said(&output));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
