"""Planning against depth: CPU seconds of a compilation, and the gap, for a GPT-2 of several depths at several budgets.

    python tests/measure/depth.py BINARY FAMILY LAYERS..

Prints one row a depth and budget: the least budget plus 5%, plus 20%, and half of the way to everything kept.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile

SIZES = ["--dim", "256", "--heads", "4", "--vocab", "512", "--seq", "128", "--batch", "4"]


def compile_at(binary, model, plan, budget):
    """Compiles, and gives the CPU seconds and the plan's report."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([binary, "compile", model, "--mem", str(budget), "--target", "cpu", "-o", plan, "-q"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown = json.loads(subprocess.run([binary, "inspect", plan, "--json"], check=True, capture_output=True).stdout)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, shown


def main():
    binary, family, depths = sys.argv[1], sys.argv[2], sys.argv[3:]
    print("| layers | budget | arena | CPU s | step s | of it recomputation | gap |\n|---|---|---|---|---|---|---|")
    for layers in depths:
        with tempfile.TemporaryDirectory() as folder:
            at = pathlib.Path(folder)
            model, plan = str(at / "m.json"), str(at / "m.plan")
            subprocess.run([binary, "new", family, "--layers", layers, *SIZES, "-o", model], check=True, capture_output=True)
            _, everything = compile_at(binary, model, plan, 1 << 50)
            least, most = everything["least_budget_bytes"], everything["peak_bytes"]["device"]
            for name, budget in [("least + 5%", least * 105 // 100), ("least + 20%", least * 120 // 100), ("half way", (least + most) // 2)]:
                seconds, shown = compile_at(binary, model, plan, budget)
                step, again = shown["predicted"]["step_seconds"], shown["predicted"]["recompute_seconds"]
                gap = 100 * shown["certificate"]["gap"]
                arena = shown["peak_bytes"]["device"]
                print(f"| {layers} | {budget} ({name}) | {arena} | {seconds:.1f} | {step:.4f} | {again:.4f} | {gap:.3f}% |", flush=True)


if __name__ == "__main__":
    main()
