#!/usr/bin/env bash
# Fuzzes one kind of input. Usage: fuzz.sh TARGET SECONDS; targets are the files of fuzz/targets.
# Needs a nightly toolchain and cargo-fuzz (cargo install cargo-fuzz). Corpus and findings stay in fuzz/corpus and fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 2 ] && [ -f "fuzz/targets/$1.rs" ] || {
    echo "usage: scripts/fuzz.sh TARGET SECONDS, TARGET one of: $(basename -s .rs fuzz/targets/*.rs | tr '\n' ' ')" >&2
    exit 2
}
target=$1 seconds=$2
cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }

mkdir -p "fuzz/corpus/$target"
cargo run --quiet --release --locked -p fp8c-tests --example seeds -- "$target" "fuzz/corpus/$target"
# Without a sanitizer: what is fuzzed is safe Rust but for the memory maps, and runs twice as often. An input that takes 10 s of wall time
# or brings the process above 1 GiB is a finding, as a panic is.
exec cargo +nightly fuzz run --release --sanitizer none "$target" -- \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=65536 -len_control=0 -print_final_stats=1
