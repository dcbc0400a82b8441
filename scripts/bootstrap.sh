#!/usr/bin/env bash
# Installs what a fresh Debian 12 with a Rust toolchain lacks: a C++ compiler, cmake and libclang (for HiGHS), LLVM 22, ptxas, nvdisasm.
# Run by `make`; does nothing where all is there. Prints the path of ptxas last.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '%s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        say "need root to install packages: run 'apt-get install $PACKAGES' as root, then make again"; exit 1
    fi
}

PACKAGES="build-essential cmake pkg-config libclang-dev llvm-22-dev python3-venv"
missing=""
for p in $PACKAGES; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
    say "installing$missing"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq >&2
    # shellcheck disable=SC2086
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >&2
fi

command -v cargo >/dev/null || { say "no cargo on the PATH: install a Rust toolchain with rustup first"; exit 1; }
for c in rustfmt clippy; do
    cargo "${c/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$c" >&2
done

# ptxas and nvdisasm check the emitted PTX; they need no GPU. Older ones miscompile wgmma for sm_90a.
NVCC=13.5.37
current() { # has nvdisasm beside it and is of 13.1 or later
    [ -x "$(dirname "$1")/nvdisasm" ] || return 1
    local release
    release=$("$1" --version | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p')
    [ "$(printf '%s\n13.1\n' "$release" | sort -V | head -n 1)" = 13.1 ]
}
ptxas=$(command -v ptxas || true)
if [ -z "$ptxas" ] || ! current "$ptxas"; then
    ptxas=$(find .venv -path '*cu13/bin/ptxas' 2>/dev/null | head -n 1 || true)
    if [ -z "$ptxas" ] || ! current "$ptxas"; then
        say "installing ptxas and nvdisasm into .venv"
        python3 -m venv .venv
        .venv/bin/pip install --quiet --disable-pip-version-check nvidia-cuda-nvcc==$NVCC nvidia-cuda-nvdisasm==$NVCC >&2
        ptxas=$(find .venv -path '*cu13/bin/ptxas' | head -n 1)
    fi
fi
realpath "$ptxas"
