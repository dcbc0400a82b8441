#!/usr/bin/env bash
# Runs the CPU executor where its unsafe code cannot err unseen:
#   address    its tests under AddressSanitizer, with the checks of debug builds (bounds of unchecked accesses, alignment, overflow);
#              needs a nightly toolchain
#   valgrind   hostile kernels under valgrind, with scratch and output memory marked as holding nothing; needs valgrind
# Without an argument both. FP8C_SANITIZE_DIR is where it builds (default /tmp/fp8c-sanitize).
set -euo pipefail
cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
dir=${FP8C_SANITIZE_DIR:-/tmp/fp8c-sanitize}
kernels=${FP8C_SANITIZE_KERNELS:-20000}

address() {
    rustup run nightly rustc -V >/dev/null || { echo "there is no nightly toolchain: rustup toolchain install nightly" >&2; exit 1; }
    export RUSTFLAGS="-Zsanitizer=address -Cdebug-assertions=on -Coverflow-checks=on"
    export CARGO_TARGET_DIR=$dir/address ASAN_OPTIONS=detect_leaks=1
    cargo +nightly test --locked --release --target "$host" -p fp8c-kernels --lib -- cpu:: numerics::
    cargo +nightly run --locked --release --target "$host" -p fp8c-kernels --features reference --example hostile -- 0 "$kernels"
}

valgrind_() {
    command -v valgrind >/dev/null || { echo "there is no valgrind: apt install valgrind" >&2; exit 1; }
    export CARGO_TARGET_DIR=$dir/plain
    cargo build --locked --release -p fp8c-kernels --features reference --example hostile
    # Fair scheduling: workers wait for each other in loops.
    valgrind --quiet --error-exitcode=9 --fair-sched=yes --suppressions=scripts/valgrind.supp "$CARGO_TARGET_DIR/release/examples/hostile" 0 "$((kernels / 40))"
}

case ${1:-all} in
    address) address ;;
    valgrind) valgrind_ ;;
    all) (address) && valgrind_ ;;
    *) echo "usage: scripts/sanitize.sh [address|valgrind]" >&2; exit 2 ;;
esac
