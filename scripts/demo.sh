#!/usr/bin/env bash
# Trains a small GPT-2 in fp8 within a budget that forces recomputation. Usage: demo.sh FP8C [STEPS]
set -euo pipefail
fp8c=$(realpath "$1")
steps=${2:-200}
cd "$(dirname "$0")/.."
mkdir -p demo
rm -rf demo/gpt2.plan demo/gpt2.jsonl demo/gpt2.checkpoints

echo "== compile: testdata/models/demo/model.onnx, fp8, 18 MiB =="
"$fp8c" compile testdata/models/demo/model.onnx --mem 18M --precision fp8 -o demo/gpt2.plan
echo
echo "== what was kept and what is recomputed =="
"$fp8c" inspect demo/gpt2.plan | grep -E '^(memory|saved|  m|products)'
echo
echo "== train: $steps steps on testdata/text.txt =="
"$fp8c" train demo/gpt2.plan --data testdata/text.txt --steps "$steps" --lr 1e-3 --warmup 20 --schedule cosine --grad-clip 1 \
    --log demo/gpt2.jsonl
echo "  plan        demo/gpt2.plan"
