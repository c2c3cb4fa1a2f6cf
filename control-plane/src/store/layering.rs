//! Who may know which database the store is in.

use std::{fs, path::Path};

/// Where SQLite may be named, from the sources: the store's engine, and the inbound log, which has one of its own.
const ALLOWED: [&str; 3] = ["store/sqlite", "store/layering.rs", "inbound_log"];

fn sources(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The driver of the database is named below the engine and nowhere else, so that another engine needs no other code.
#[test]
fn only_the_engine_knows_its_database() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut seen) = (Vec::new(), 0);
    sources(&root, &mut found);
    for path in found {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
        let text = fs::read_to_string(&path).unwrap();
        let names_it = ["sqlx", "SqliteConnection", "SqlitePool"].iter().any(|word| text.contains(word));
        seen += usize::from(names_it);
        let may = ALLOWED.iter().any(|allowed| name.starts_with(allowed));
        assert!(may || !names_it, "{name} names the driver of the database: go through `Store`");
    }
    assert!(seen > 10, "the engine was looked at");
}
