#!/usr/bin/env python3
"""Trains small models of many families with fp8c and compares them with PyTorch: losses of 60 AdamW steps, and every gradient.

    pip install torch==2.11.0 torchvision==0.26.0 transformers onnx onnxscript safetensors
    check.py FOLDER --binary target/release/fp8c [--only GLOB] [--export]

Exports what FOLDER does not hold yet (with --export nothing else), with both of PyTorch's exporters, then compiles each file in float32
for the CPU, trains it and prints a Markdown table. A loss is right within 1e-3 of PyTorch's at each step and 1e-5 at the first, a
gradient with a norm error below 1e-4, of a parameter that PyTorch has a gradient for. Gradients below 1e-6 of the norm of them all are
zero in exact arithmetic (key biases of attention) and only have to stay below 1e-5 of it. Each reference is also computed in float64: a
gradient past its bound is within float32's noise if PyTorch's own float32 is as far from float64. Where losses part later, because noise
moved a weight whose gradient is zero or near or a unit across the kink of its activation, fp8c must have the loss (1e-5) and gradients
(1e-4) that PyTorch has in float64 at fp8c's own parameters, after 10, 20, .. 50 steps. Of a table of positions that the exporter cut to
the rows that are read, those rows count. Batch normalisations that the exporter folded (`-bn`) leave other parameters: only the first
loss and the gradients of parameters that are left are compared. Exit status 1 if a row fails.
"""

import argparse
import copy
import fnmatch
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

import numpy as np

warnings.filterwarnings("ignore")
HERE = pathlib.Path(__file__).resolve().parent
BATCH, SEQ, STEPS, SEED = 4, 32, 60, 7
ADAMW = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
LOSS, FIRST, GRADIENT, ZERO = 1e-3, 1e-5, 1e-4, 1e-6
USUAL = ("dynamo-18", "dynamo-23", "torchscript-17")
DYNAMIC = ("dynamo-18", "dynamo-23", "dynamo-18-dynamic", "dynamo-23-dynamic", "dynamo-18-dynamic-logits", "torchscript-13", "torchscript-17",
           "torchscript-17-dynamic")
OPSETS = ("dynamo-18", "dynamo-19", "dynamo-20", "dynamo-21", "dynamo-22", "dynamo-23", "torchscript-13", "torchscript-14", "torchscript-15",
          "torchscript-16", "torchscript-17", "torchscript-18", "torchscript-20")


def texts():
    raw = np.frombuffer((HERE.parent / "text.txt").read_bytes(), dtype=np.uint8).astype(np.int64)
    at = np.random.default_rng(0).integers(0, len(raw) - SEQ - 1, size=BATCH * STEPS)
    return {"input_ids": np.stack([raw[a : a + SEQ] for a in at]), "labels": np.stack([raw[a + 1 : a + SEQ + 1] for a in at])}


def masked(hide):
    """Text of uneven lengths with 15% of the bytes hidden, which are to be told: their identifier is `hide`."""
    d, rng = texts(), np.random.default_rng(1)
    hidden = rng.random(d["input_ids"].shape) < 0.15
    keep = np.arange(SEQ)[None] < rng.integers(SEQ // 2, SEQ + 1, size=(len(hidden), 1))
    labels = np.where(hidden & keep, d["input_ids"], -100)
    return {"input_ids": np.where(hidden, hide, d["input_ids"]), "attention_mask": keep.astype(np.int64), "labels": labels}


def images(size):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, size=BATCH * STEPS)
    ramp = np.linspace(-1, 1, size)
    stripes = np.sin((labels[:, None, None] + 1) * (ramp[None, :, None] + ramp[None, None, :]))
    noise = rng.normal(scale=0.3, size=(len(labels), 3, size, size))
    return {"pixel_values": (stripes[:, None] + noise).astype(np.float32), "labels": labels}


def rows(data, step):
    return {k: v[step * BATCH : (step + 1) * BATCH] for k, v in data.items()}


def norm(x):
    return float(np.linalg.norm(np.asarray(x, dtype=np.float64)))


def reference(module, data, folder):
    """PyTorch's losses and first gradients, in float32 and float64."""
    import torch
    from safetensors.torch import save_file

    (folder / "data").mkdir(parents=True, exist_ok=True)
    for k, v in data.items():
        np.save(folder / "data" / f"{k}.npy", v)
    losses = {}
    for bits in ("32", "64"):
        model = copy.deepcopy(module).double() if bits == "64" else copy.deepcopy(module)
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
        losses[bits] = []
        for step in range(STEPS):
            fed = {k: torch.from_numpy(v) for k, v in rows(data, step).items()}
            fed = {k: v.double() if bits == "64" and v.is_floating_point() else v for k, v in fed.items()}
            optimizer.zero_grad()
            loss = model(**fed)
            loss.backward()
            if step == 0:
                grads = {k: p.grad.detach().clone().contiguous() for k, p in model.named_parameters() if p.grad is not None}
                save_file(grads, str(folder / f"grads{bits}.safetensors"))
            optimizer.step()
            losses[bits].append(float(loss))
    parameters = sum(p.numel() for p in module.parameters())
    (folder / "reference.json").write_text(json.dumps(dict(torch=torch.__version__, parameters=parameters, losses=losses)) + "\n")


def export(module, data, variant, path):
    """Writes `EXPORTER-OPSET[-dynamic][-logits]` of a loss module."""
    import torch

    exporter, opset, *rest = variant.split("-")
    first = {k: torch.from_numpy(v) for k, v in rows(data, 0).items()}
    if "logits" in rest:
        from models import Logits

        module = Logits(module.model)
        del first["labels"]
    axes = {k: {0: "batch", 1: "seq"} if v.dtype == torch.int64 and v.dim() == 2 else {0: "batch"} for k, v in first.items()}
    common = dict(input_names=list(first), opset_version=int(opset), verbose=False)
    if exporter == "dynamo":
        program = torch.onnx.export(module, tuple(first.values()), dynamo=True, dynamic_shapes=axes if "dynamic" in rest else None, **common)
        program.save(str(path))
    else:
        mode = torch.onnx.TrainingMode.TRAINING if module.training else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(module, tuple(first.values()), str(path), dynamo=False, training=mode,
                          dynamic_axes=axes if "dynamic" in rest else None, **common)


def exported(folder, only):
    """Makes what is missing; what could not be exported, by name, in the exporter's words."""
    import torch
    import models

    torch.set_num_threads(1)
    data = {"text": texts(), "masked": masked(2), "padded": masked(0), "image": images(32), "large": images(64)}
    for name, (make, kind, variants) in models.MODELS.items():
        missing = [v for v in variants if fnmatch.fnmatch(f"{name}/{v}", only)]
        missing = [v for v in missing if not any((folder / name / f"{v}{end}").exists() for end in (".onnx", ".failed"))]
        if not missing:
            continue
        torch.manual_seed(SEED)
        module = make()
        if not (folder / name / "reference.json").exists():
            reference(module, data[kind], folder / name)
        for variant in missing:
            path = folder / name / f"{variant}.onnx"
            try:
                export(copy.deepcopy(module), data[kind], variant, path)
                print(f"exported {name}/{variant}", file=sys.stderr, flush=True)
            except Exception as e:
                path.unlink(missing_ok=True)
                path.with_suffix(".failed").write_text(f"{type(e).__name__}: {e}")
                print(f"not exported {name}/{variant}: {str(e)[:200]!r}", file=sys.stderr, flush=True)


def at_own_parameters(binary, folder, data, work):
    """The worst errors of loss and gradients against PyTorch in float64 at the parameters of fp8c's checkpoints."""
    import torch
    import models
    from safetensors.numpy import load_file, save_file

    torch.manual_seed(SEED)
    module = models.MODELS[folder.name][0]().double()
    worst = [0.0, 0.0]
    for checkpoint in sorted((work / "checkpoints").glob("step-*"))[:-1]:
        batch = rows(data, int(checkpoint.name.split("-")[1]))
        save_file({k: np.ascontiguousarray(v) for k, v in batch.items()}, work / "in.safetensors")
        call(binary, "run", work / "m.plan", "--inputs", work / "in.safetensors", "--outputs", work / "out.safetensors", "--grads", "-q",
             "--checkpoint", checkpoint)
        out = load_file(work / "out.safetensors")
        held = load_file(checkpoint / "model.safetensors")
        with torch.no_grad():
            for k, p in ((k, p) for k, p in module.named_parameters() if k in held):
                if held[k].shape != tuple(p.shape):
                    raise RuntimeError(f"the checkpoint has another shape of {k}")
                p.copy_(torch.from_numpy(held[k]))
        fed = {k: torch.from_numpy(v) for k, v in batch.items()}
        module.zero_grad()
        loss = module(**{k: v.double() if v.is_floating_point() else v for k, v in fed.items()})
        loss.backward()
        got = next(v for k, v in out.items() if not k.startswith("grad."))
        exact = {k: p.grad.numpy() for k, p in module.named_parameters() if p.grad is not None}
        total = norm([norm(g) for g in exact.values()])
        errors = [norm(out[f"grad.{k}"] - g) / norm(g) for k, g in exact.items() if k in held and norm(g) > ZERO * total]
        worst = [max(worst[0], abs(float(got.reshape(-1)[0]) - float(loss)) / float(loss)), max([worst[1], *errors])]
    return worst


def call(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{args[0]}: " + " ".join(done.stderr.split())[:300])


def trained(binary, model, data, work):
    """fp8c's losses, and its gradients of the first batch."""
    from safetensors.numpy import load_file, save_file

    plan, log = work / "m.plan", work / "log.jsonl"
    rest = model.stem.split("-")[2:]
    dims = (["--dim", f"batch={BATCH}"] + (["--dim", f"seq={SEQ}"] if "input_ids" in data else [])) if "dynamic" in rest else []
    call(binary, "compile", model, "--mem", "4G", "--precision", "f32", "--target", "cpu", "-o", plan, "-q", *dims)
    files = [x for k in data for x in ("--data", f"{k}={model.parent / 'data' / k}.npy")]
    log.unlink(missing_ok=True)
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    call(binary, "train", plan, *files, "--steps", STEPS, "--no-shuffle", "--lr", ADAMW["lr"], "--weight-decay", ADAMW["weight_decay"], "--eps",
         ADAMW["eps"], "--betas", ",".join(map(str, ADAMW["betas"])), "--log", log, "-q", "--checkpoint", work / "checkpoints", "--every", 10, "--keep", 9)
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    save_file({k: np.ascontiguousarray(v) for k, v in rows(data, 0).items()}, work / "in.safetensors")
    call(binary, "run", plan, "--inputs", work / "in.safetensors", "--outputs", work / "out.safetensors", "--grads", "-q")
    out = load_file(work / "out.safetensors")
    return losses, {k[5:]: v for k, v in out.items() if k.startswith("grad.")}


def read_rows(got, want):
    """The rows of a table's gradient that are not zero, if these are all that `got` has: exporters keep only what constant indices read."""
    if got.ndim == 0 or want.ndim != got.ndim or got.shape[1:] != want.shape[1:]:
        return None
    rows = np.flatnonzero(want.any(axis=tuple(range(1, want.ndim))))
    return want[rows] if len(rows) == len(got) else None


def gradients(got, want, exact):
    """The worst norm error, its parameter, PyTorch's own error there, and parameters that fail."""
    total = norm([norm(g) for g in exact.values()])
    worst, bad = (0.0, "", 0.0), []
    for name in sorted(set(got) | set(want)):
        if name not in got or name not in want:
            bad.append(f"{'missing' if name in want else 'extra'} {name}")
        elif got[name].shape != want[name].shape and read_rows(got[name], want[name]) is None:
            bad.append(f"shape of {name}")
        elif norm(exact[name]) < ZERO * total:
            bad += [f"{name} is not zero"] * (norm(got[name]) > 1e-5 * total)
        else:
            read = want[name] if got[name].shape == want[name].shape else read_rows(got[name], want[name])
            error = norm(got[name].astype(np.float64) - read) / norm(want[name])
            own = norm(want[name].astype(np.float64) - exact[name]) / norm(exact[name])
            worst = max(worst, (error, name, own))
            bad += [f"gradient of {name}"] * (error > max(GRADIENT, 2 * own))
    return *worst, bad


def judged(binary, model, work):
    """One row of the table, and whether it passes."""
    from safetensors.numpy import load_file

    folder = model.parent
    ref = json.loads((folder / "reference.json").read_text())
    data = {p.stem: np.load(p) for p in sorted((folder / "data").iterdir())}
    head = f"| {folder.name} | {model.stem.replace('-', ' ')} | {ref['parameters']} |"
    if model.suffix == ".failed":
        return f"{head} | | | not exported: {' '.join(model.read_text().split())[:80]} |", None
    try:
        losses, got = trained(binary, model, data, work)
    except RuntimeError as e:
        return f"{head} | | | FAILS: {e} |", False
    relative = lambda a, b: [abs(x - y) / abs(y) for x, y in zip(a, b)]
    errors, own = relative(losses, ref["losses"]["32"]), relative(ref["losses"]["32"], ref["losses"]["64"])
    error, name, noise, bad = gradients(got, load_file(folder / "grads32.safetensors"), load_file(folder / "grads64.safetensors"))
    if folder.name.endswith("-bn"):
        bad = [b for b in bad if not b.startswith(("missing", "extra"))]
    bad += [f"{len(losses)} losses"] * (len(losses) != STEPS) + ["first loss"] * (errors[0] > FIRST)
    verdict = "pass"
    if folder.name.endswith("-bn"):
        verdict = "pass; batch normalisations folded by the exporter"
    elif max(errors) > LOSS and not bad:
        loss, gradient = at_own_parameters(binary, folder, data, work)
        verdict = f"pass at its own parameters: loss {loss:.1e}, gradients {gradient:.1e}; PyTorch's f32 is {max(own):.1e} from f64"
        bad += [f"loss and gradients at its own parameters: {loss:.1e}, {gradient:.1e}"] * (loss > FIRST or gradient > GRADIENT)
    elif error > GRADIENT:
        verdict = f"pass; PyTorch's f32 is {noise:.1e} from f64 in {name}"
    verdict = "FAILS: " + ", ".join(bad[:4]) if bad else verdict
    return f"{head} {max(errors):.1e} | {errors[0]:.1e} | {error:.1e} | {verdict} |", not bad


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--binary")
    parser.add_argument("--only", default="*", help="glob of MODEL/VARIANT")
    parser.add_argument("--export", action="store_true", help="only export")
    a = parser.parse_args()
    exported(a.folder, a.only)
    if a.export or not a.binary:
        return
    print("| model | exporter, opset | parameters | worst of 60 losses | first loss | worst gradient | verdict |\n" + "|---" * 7 + "|")
    failed = passed = 0
    with tempfile.TemporaryDirectory() as work:
        for model in sorted(p for p in a.folder.glob("*/*") if p.suffix in (".onnx", ".failed")):
            if fnmatch.fnmatch(f"{model.parent.name}/{model.stem}", a.only):
                row, ok = judged(a.binary, model, pathlib.Path(work))
                passed, failed = passed + (ok is True), failed + (ok is False)
                print(row, flush=True)
    print(f"\n{passed} pass, {failed} fail")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
