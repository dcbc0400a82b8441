#!/usr/bin/env bash
# Mean loss of the last fifth of a run in fp8, relative to the same run in bf16.
#     fp8.sh MODEL TOKENS LR SEED.. [binary: FP8C, steps: STEPS]
set -euo pipefail
model=$1 tokens=$2 lr=$3
shift 3
fp8c=${FP8C:-target/release/fp8c} steps=${STEPS:-1200}
folder=$(mktemp -d)
for precision in bf16 fp8; do
    "$fp8c" compile "$model" --mem 1G --precision $precision --target cpu -o "$folder/$precision.plan" --quiet
done
for seed in "$@"; do
    for precision in bf16 fp8; do
        "$fp8c" train "$folder/$precision.plan" --data "$tokens" --steps "$steps" --seed "$seed" --lr "$lr" --warmup 50 --schedule cosine \
            --log "$folder/$precision.$seed.jsonl" --quiet
    done
    python3 - "$folder" "$seed" <<'PYTHON'
import json, sys
folder, seed = sys.argv[1:]
def tail(precision):
    losses = [json.loads(line)["loss"] for line in open(f"{folder}/{precision}.{seed}.jsonl")]
    last = losses[-len(losses) // 5:]
    return sum(last) / len(last)
print(f"seed {seed}: bf16 {tail('bf16'):.4f}, fp8 {tail('fp8') / tail('bf16') - 1:+.2%}")
PYTHON
done
