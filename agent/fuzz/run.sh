#!/usr/bin/env bash
# Fuzzes every target for every provider, SECONDS each: agent/fuzz/run.sh [SECONDS] [PROVIDER…]
# Starts from the corpora and the fixtures; what it finds new is in target/fuzz/corpus/, what fails is printed and in
# target/fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-60}
shift || true
providers=("$@")
if [ ${#providers[@]} = 0 ]; then
    for directory in agent/fuzz/corpus/normalize/*/; do
        providers+=("$(basename "$directory")")
    done
fi

if ! rustc +nightly --version >/dev/null 2>&1; then
    echo "missing: a nightly compiler; install it with: rustup toolchain install nightly" >&2
    exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "missing: cargo-fuzz; install it with: cargo install --locked cargo-fuzz" >&2
    exit 1
fi

# Nothing here is `unsafe`, so that a sanitizer would find nothing and cost half of the speed.
cargo +nightly fuzz build --fuzz-dir agent/fuzz --target-dir target/fuzz --sanitizer none
programs=target/fuzz/$(rustc +nightly -vV | sed -n 's/^host: //p')/release

for target in normalize authenticate; do
    for provider in "${providers[@]}"; do
        printf '\n== %s of %s\n' "$target" "$provider"
        found=target/fuzz/corpus/$target/$provider
        failed=target/fuzz/artifacts/$target/$provider/
        mkdir -p "$found" "$failed"
        GATEWAY_FUZZ_PROVIDER=$provider "$programs/$target" \
            "$found" "agent/fuzz/corpus/$target/$provider" "tests/fixtures/$provider" \
            -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 \
            -artifact_prefix="$failed" -verbosity=0 -print_final_stats=1
    done
done
