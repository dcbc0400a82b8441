# make demo    builds everything and trains a small GPT-2 in fp8 within a small budget
# make test    formatting, lints and every test
# make build   the fp8c binary, target/release/fp8c

SHELL := /bin/bash
# Property tests repeat exactly; explore with another seed.
export PROPTEST_RNG_SEED ?= 20261122
export LLVM_SYS_221_PREFIX ?= /usr/lib/llvm-22
FP8C := target/release/fp8c

.PHONY: build test demo bootstrap clean

bootstrap:
	@mkdir -p target && scripts/bootstrap.sh > target/ptxas-path

build: bootstrap
	cargo build --release --locked --bin fp8c

test: bootstrap
	cargo fmt --all --check
	cargo clippy --release --locked --workspace --all-targets -- --deny warnings
	FP8C_PTXAS=$$(cat target/ptxas-path) cargo test --release --locked --workspace --no-fail-fast

demo: build
	scripts/demo.sh $(FP8C)

clean:
	cargo clean
	rm -rf demo .venv
