#!/usr/bin/env python3
"""Kills a training N times with SIGKILL and compares its end with that of one that was left alone.

Usage: kill.py FP8C [KILLS]

A tiny GPT-2 is trained with --every 1 --keep 2 --resume, so that nearly all of the time goes into saving and pruning, where a kill can do
harm. After each kill the next start must resume from no more than one step before the last one that was done, without setting anything aside.
At the end the newest checkpoint must equal that of an undisturbed training byte for byte, the log must have every step once, and nothing else
may be left in the folder.
"""

import hashlib
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

fp8c, kills = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
random.seed(1)


def last_step(log):
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def digests(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}


with tempfile.TemporaryDirectory() as there:
    there = pathlib.Path(there)
    sizes = "--layers 1 --dim 16 --heads 2 --vocab 256 --seq 8 --batch 2".split()
    subprocess.run([fp8c, "new", "gpt2", *sizes, "-o", there / "m.json"], check=True)
    compile = [fp8c, "-q", "compile", there / "m.json", "--mem", "64M", "--target", "cpu", "-o", there / "m.plan"]
    subprocess.run(compile, check=True)
    (there / "data.txt").write_text(" ".join(str(i * 7919 % 1000) for i in range(2000)))

    def train(name, steps):
        options = f"--steps {steps} --device cpu --threads 1 --lr 1e-2 --every 1 --keep 2 --resume".split()
        places = ["--data", there / "data.txt", "--checkpoint", there / name, "--log", there / f"{name}.jsonl"]
        return [fp8c, "train", there / "m.plan", *places, *options]

    most_lost = phases = 0
    moments = {}
    for kill in range(kills):
        before = last_step(there / "killed.jsonl")
        process = subprocess.Popen(train("killed", 10**9), stderr=subprocess.PIPE, text=True)
        # Up to the first step of its own (the very first checkpoint is waited for: there is nothing to lose before), then a moment more.
        while last_step(there / "killed.jsonl") == before or not list((there / "killed").glob("step-*")):
            time.sleep(0.0005)
            assert process.poll() is None, process.stderr.read()
        time.sleep(random.uniform(0, 0.03))
        process.kill()
        said = process.communicate()[1]
        assert "set aside" not in said and "error" not in said, said
        resumed = re.search(r"resumed from step (\d+)", said)
        resumed = int(resumed.group(1)) if resumed else 0
        most_lost = max(most_lost, before - resumed)
        for left in (there / "killed").iterdir():
            kind = re.sub(r"\d+", "N", left.name)
            moments[kind] = moments.get(kind, 0) + 1
    total = last_step(there / "killed.jsonl") + 5
    for name in ["killed", "whole"]:
        subprocess.run(train(name, total), check=True, stderr=subprocess.DEVNULL)
    logs = [[json.loads(line) for line in (there / f"{name}.jsonl").read_text().splitlines()] for name in ["killed", "whole"]]
    equal_logs = [[(l["step"], l["loss"]) for l in log] for log in logs]
    newest = f"step-{total:06}"
    left = sorted(p.name for p in there.iterdir())
    print(f"{kills} kills, {total} steps; at most {most_lost} step lost")
    print("found after the kills:", ", ".join(f"{kind} {n}" for kind, n in sorted(moments.items())))
    same = digests(there / "killed" / newest) == digests(there / "whole" / newest)
    print("final checkpoint and log equal to an undisturbed training's:", same and equal_logs[0] == equal_logs[1])
    folder = sorted(p.name for p in (there / "killed").iterdir())
    print("left in the folder:", ", ".join(folder))
    assert most_lost <= 1 and same and equal_logs[0] == equal_logs[1]
    assert [s for s, _ in equal_logs[0]] == list(range(1, total + 1))
    assert folder == [f"step-{total - 1:06}", newest] and left == ["data.txt", "killed", "killed.jsonl", "m.json", "m.plan", "whole", "whole.jsonl"]
