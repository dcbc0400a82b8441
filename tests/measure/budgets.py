#!/usr/bin/env python3
"""Sweeps budgets from the least feasible to everything kept, trains some steps at each, and checks what a budget promises.

    budgets.py MODEL --precision fp8 --data tokens.txt --steps 4 --points 7 [--binary target/release/fp8c]
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
a.add_argument("model")
a.add_argument("--precision", default="f32")
a.add_argument("--data", action="append", required=True, help="as fp8c train takes it; repeats")
a.add_argument("--steps", default="4")
a.add_argument("--points", type=int, default=7)
a.add_argument("--binary", default="target/release/fp8c")
a = a.parse_args()
folder = pathlib.Path(tempfile.mkdtemp())
plan, log = folder / "b.plan", folder / "b.jsonl"


def compiled(budget):
    command = [a.binary, "compile", a.model, "--mem", str(budget), "--precision", a.precision, "--target", "cpu", "-o", plan, "--json"]
    return subprocess.run(command, capture_output=True, text=True)


def losses_and_peak():
    data = [x for d in a.data for x in ("--data", d)]
    command = [a.binary, "train", plan, *data, "--steps", a.steps, "--lr", "1e-3", "--log", log, "--json"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line)["loss"] for line in log.read_text().splitlines()], json.loads(run.stdout)["arena_peak_bytes"]


all_kept = json.loads(compiled(1 << 50).stdout)
high, low = all_kept["peak_bytes"]["device"], all_kept["least_budget_bytes"]
good, first, before = True, None, float("inf")
print("| budget | planned | executed | predicted s | recomputation s | gap |\n|---|---|---|---|---|---|")
for i in range(a.points):
    budget = low + (high - low) * i // (a.points - 1)
    report = json.loads(compiled(budget).stdout)
    planned, seconds = report["peak_bytes"]["device"], report["predicted"]["step_seconds"]
    losses, executed = losses_and_peak()
    first = first or losses
    good &= executed == planned <= budget and losses == first and seconds <= before
    before = seconds
    again, gap = report["predicted"]["recompute_seconds"], report["certificate"]["gap"]
    print(f"| {budget} | {planned} | {executed} | {seconds:.5f} | {again:.5f} | {gap:.1%} |")
refused = compiled(low - 1)
good &= refused.returncode == 1 and str(low) in refused.stderr
print("executed = planned <= budget, losses identical, time monotone, one byte less refused:", good)
sys.exit(not good)
