# Daily commands. `just check` is what CI runs.

# List the recipes.
default:
    @just --list

# Everything that must pass before a change lands.
check: test fmt clippy doc deny buf-lint buf-breaking

# All tests.
test:
    cargo test --workspace

# Formatting.
fmt:
    cargo fmt --all -- --check

# Lints, warnings denied.
clippy:
    cargo clippy --workspace --all-targets -- -D warnings

# Documentation, broken links denied.
doc:
    RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps

# Licences, sources and banned crates.
deny:
    cargo deny check bans licenses sources

# Style of the proto files.
buf-lint:
    buf lint

# The wire contract against the last agreed one.
buf-breaking:
    buf breaking --against proto/contract.binpb

# Renews the agreed contract: a commit of its own.
buf-agree:
    buf build -o proto/contract.binpb

# Events per second end to end, for 1, 16, 64 and 256 connections, beside a bare relay.
load *arguments:
    cargo run --release -p gateway-tests --bin gateway-load -- {{arguments}}
