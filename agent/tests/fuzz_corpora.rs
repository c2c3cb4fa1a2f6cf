//! The fuzz targets over their corpora and over all fixtures, with the compiler of every day, so that neither targets
//! nor corpora can rot. `just fuzz` looks for new inputs.

use std::{fs, path::Path};

use gateway_core::event::Provider;

#[path = "../fuzz/targets.rs"]
mod targets;

/// Largest file of a corpus, in bytes.
const INPUT_BYTES_MAX: usize = 4096;
/// Most files of a corpus.
const INPUTS_MAX: usize = 60;

/// The files of a directory below `agent/`, with their names.
fn files(directory: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths = entries.map(|entry| entry.expect("the directory can be read").path());
    paths.map(|path| (path.display().to_string(), fs::read(&path).expect("it is a file"))).collect()
}

fn corpus(target: &str, provider: Provider) -> Vec<(String, Vec<u8>)> {
    let inputs = files(&format!("fuzz/corpus/{target}/{}", provider.name()));
    assert!((10..=INPUTS_MAX).contains(&inputs.len()), "{target} of {}: {}", provider.name(), inputs.len());
    for (name, input) in &inputs {
        assert!(input.len() <= INPUT_BYTES_MAX, "{name} is small");
    }
    inputs
}

/// Runs a target, naming the input that fails.
fn run(target: fn(Provider, &[u8]), provider: Provider, name: &str, input: &[u8]) {
    let outcome = std::panic::catch_unwind(|| target(provider, input));
    assert!(outcome.is_ok(), "{name}");
}

/// What fuzzing found worth keeping, and every documented payload, normalize as the target promises.
#[test]
fn normalize_keeps_its_promises() {
    for provider in Provider::ALL {
        let fixtures = files(&format!("../tests/fixtures/{}", provider.name()));
        for (name, input) in corpus("normalize", provider).into_iter().chain(fixtures) {
            run(targets::normalize, provider, &name, input.trim_ascii_end());
        }
    }
}

/// Requests that fuzzing found worth keeping, and bare ones with every documented payload, prove nothing by
/// themselves; signed they do, and changed they do not any more.
#[test]
fn authenticate_keeps_its_promises() {
    for provider in Provider::ALL {
        for (name, input) in corpus("authenticate", provider) {
            run(targets::authenticate, provider, &name, &input);
        }
        for (name, body) in files(&format!("../tests/fixtures/{}", provider.name())) {
            let head = format!("POST /callbacks/{}/token-of-the-route\n\n", provider.name());
            run(targets::authenticate, provider, &name, &[head.as_bytes(), &body].concat());
        }
    }
}
