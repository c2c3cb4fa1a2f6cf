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

# Events per second end to end; `--baseline`: beside a bare relay; `--backlog EVENTS`, `--black-hole`, `--hanging`: in trouble.
load *arguments:
    cargo run --release -p gateway-tests --bin gateway-load -- {{arguments}}

# Benches of the agent, one after the other; `--bench journal` for one of them, `-- FILTER` for some of it.
bench *arguments:
    cargo bench -p gateway-agent {{arguments}}

# Kills the agent 200 times under load: nothing answered 200 is lost.
crash kills="200":
    GATEWAY_TESTS_KILL_CYCLES={{kills}} cargo test -p gateway-tests --test scenarios durable_before_ack::kill_9

# Damages 500 places of a buffer, lets 2,000,000 events wait, edits at random and leaves the control plane away: an hour.
soak damages="500" backlog="2000000" edits="10000" resources="100000" outage="600":
    GATEWAY_TESTS_DAMAGES={{damages}} cargo test --release -p gateway-tests --test scenarios damage::
    GATEWAY_TESTS_BACKLOG={{backlog}} cargo test --release -p gateway-tests --test scenarios backlog::
    GATEWAY_TESTS_EDITS={{edits}} GATEWAY_TESTS_RESOURCES={{resources}} cargo test --release -p gateway-tests --test scenarios config_stream::
    GATEWAY_TESTS_OUTAGE_SECONDS={{outage}} cargo test --release -p gateway-tests --test scenarios static_stability::

# Figures of the config stream: 100,000 subscriptions on a fresh agent, a change on 100 agents.
config-figures *arguments:
    cargo run --release -p gateway-tests --bin gateway-config-figures -- {{arguments}}

# Records how the programs in a directory talk to each other into tests/versions/NAME, for tests of later versions.
record-versions programs name:
    cargo run -p gateway-tests --bin gateway-record -- {{programs}} {{name}}

# Fuzzes reading and proving callbacks, SECONDS for each provider and target; needs a nightly and cargo-fuzz.
fuzz seconds="60" *providers:
    agent/fuzz/run.sh {{seconds}} {{providers}}

# Shows on system calls that no 200 is written before the fdatasync that covers it returned; needs strace.
trace *arguments:
    cargo run -p gateway-tests --bin gateway-trace -- {{arguments}}
