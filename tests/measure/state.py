"""Losses of a model with each way to store what is trained, relative to f32: three seeds, mean of the last fifth.

    state.py FP8C MODEL TEXT STEPS SEED..
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

WAYS = {
    "f32": ["--precision", "f32"],
    "f32, bf16-sr": ["--precision", "f32", "--master", "bf16-sr"],
    "f32, e4m3": ["--precision", "f32", "--opt-state", "e4m3"],
    "fp8": ["--precision", "fp8"],
    "fp8, bf16-sr": ["--precision", "fp8", "--master", "bf16-sr"],
    "fp8, e4m3": ["--precision", "fp8", "--opt-state", "e4m3"],
    "fp8, bf16-sr, e4m3": ["--precision", "fp8", "--master", "bf16-sr", "--opt-state", "e4m3"],
    "fp8, bf16-sr, e4m3, previous": ["--precision", "fp8", "--master", "bf16-sr", "--opt-state", "e4m3", "--clip", "previous"],
}


def main() -> None:
    fp8c, model, text, steps, *seeds = sys.argv[1:]
    f32: dict[str, float] = {}
    for way, flags in WAYS.items():
        apart = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                plan, log = pathlib.Path(folder, "m.plan"), pathlib.Path(folder, "log.jsonl")
                run = lambda *args: subprocess.run([fp8c, *map(str, args), "-q"], check=True)
                run("compile", model, "--mem", "1G", "--target", "cpu", "--threads", 1, "-o", plan, *flags)
                settings = ["--lr", "1e-3", "--warmup", 50, "--schedule", "cosine", "--grad-clip", "1", "--seed", seed]
                run("train", plan, "--data", text, "--steps", steps, "--device", "cpu", "--log", log, "--threads", 1, *settings)
                losses = [json.loads(line)["loss"] for line in log.open()]
            last = statistics.mean(losses[-(int(steps) // 5) :])
            f32.setdefault(seed, last)
            apart.append(100 * (last / f32[seed] - 1))
        row = " | ".join(f"{a:+.2f}%" for a in apart)
        print(f"| {way} | {row} | {statistics.mean(apart):+.2f}% |", flush=True)


main()
