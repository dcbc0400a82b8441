#!/usr/bin/env python3
"""Runs the cases that dump.py wrote through the fp8c binary: `compile --infer` in float32, then `run` on the CPU.

    run.py FOLDER --binary target/release/fp8c [--filter TEXT] [--verbose]

Counts cases that pass, are refused (exit status 1 or 2 and a sentence), are wrong, or crash. Operands that must be constant but are inputs
in the test become initializers, as exporters make them. Exit status 1 when anything is wrong or crashes. Needs PyPI's onnx and safetensors.
"""

import argparse
import collections
import concurrent.futures
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

# Two units in the last place of the expected format: the order of roundings is not part of an operator.
LEAST_RTOL = {TensorProto.BFLOAT16: 1 / 64, TensorProto.FLOAT16: 1 / 512}


def stored(array):
    """The array as the compiler stores its type: bf16 as it is, other floats f32, narrow integers i32."""
    array = np.asarray(array)
    name = array.dtype.name
    if name in ("float16", "float64"):
        return array.astype(np.float32)
    if name in ("uint32", "uint64"):
        return array.astype(np.int64)
    if name in ("int8", "uint8", "int16", "uint16"):
        return array.astype(np.int32)
    return array


def tensors(folder, entries):
    """Name -> array; None for what is not a tensor."""
    blob = (folder / "data.bin").read_bytes()
    out = {}
    for e in entries:
        if "shape" in e:
            dtype = helper.tensor_dtype_to_np_dtype(e["elem"])
            out[e["name"]] = np.frombuffer(blob[e["offset"] : e["offset"] + e["bytes"]], dtype).reshape(e["shape"])
        else:
            out[e["name"]] = None
    return out


def determining(model, message):
    """The graph inputs that determine the operands that a message says must be constant."""
    fed = {i.name for i in model.graph.input}
    open_names = []
    for operator, index in re.findall(r"\((\w+)\) needs [^()]*? to be constant[^()]*\(input (\d+)\)", message):
        open_names += [n.input[int(index)] for n in model.graph.node if n.op_type == operator and len(n.input) > int(index)]
    found, seen = set(), set()
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in fed:
            found.add(name)
        open_names += [i for n in model.graph.node if name in n.output for i in n.input]
    return found


def with_constants(model, inputs, names):
    """The model with shapes from the case and these inputs as constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.input[:]
    constants = []
    for i in model.graph.input:
        value = inputs[i.name]
        if i.name in names:
            constants.append(helper.make_node("Constant", [], [i.name], value=numpy_helper.from_array(np.array(value), i.name)))
        else:
            fresh = copy.graph.input.add()
            fresh.CopyFrom(i)
            if value is not None:
                del fresh.type.tensor_type.shape.dim[:]
                for d in value.shape:
                    fresh.type.tensor_type.shape.dim.add().dim_value = d
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    copy.graph.node.extend(constants + nodes)
    return copy


def call(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr.strip()


def verdict(binary, folder, work):
    case = json.loads((folder / "case.json").read_text())
    inputs, outputs = tensors(folder, case["inputs"]), tensors(folder, case["outputs"])
    model = onnx.load(folder / "model.onnx")
    constant = set()
    while True:
        plan = work / "case.plan"
        onnx.save(with_constants(model, inputs, constant), work / "case.onnx")
        code, said = call(binary, "compile", work / "case.onnx", "--infer", "--precision", "f32", "--target", "cpu", "-o", plan)
        if code == 0:
            break
        if code not in (1, 2) or not said or "internal error" in said:
            return "crash", f"compile ends with {code}: {said}"
        if plan.exists():
            return "wrong", "a refused model leaves a plan"
        more = determining(model, said) - constant
        if not more:
            return "refused", " ".join(said.split("hint:")[0].replace(str(work / "case.onnx"), "the model").split())
        constant |= more
    fed = {k: np.array(stored(v), order="C") for k, v in inputs.items() if k not in constant and v is not None}
    save_file(fed, work / "in.safetensors")
    code, said = call(binary, "run", plan, "--inputs", work / "in.safetensors", "--outputs", work / "out.safetensors")
    plan.unlink()
    if code != 0:
        return ("wrong" if code in (1, 2) else "crash"), f"run ends with {code}: {said}"
    got = load_file(work / "out.safetensors")
    for e in case["outputs"]:
        reason = compare(got.get(e["name"]), outputs[e["name"]], e["elem"], case)
        if reason:
            return "wrong", f"{e['name']}: {reason}"
    return "pass", ""


def compare(got, want, elem, case):
    if got is None or want is None:
        return "is missing"
    want = stored(want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"is {got.dtype} {got.shape}, expected {want.dtype} {want.shape}"
    if want.dtype.kind in "biu":
        return "" if np.array_equal(got, want) else f"differs at {np.argwhere(np.atleast_1d(got != want))[0]}"
    rtol = max(case["rtol"], LEAST_RTOL.get(elem, 0))
    a, b = got.astype(np.float64), want.astype(np.float64)
    close = np.isclose(a, b, rtol=rtol, atol=case["atol"], equal_nan=True)
    if close.all():
        return ""
    at = np.argwhere(np.atleast_1d(~close))[0]
    return f"{np.atleast_1d(a)[tuple(at)]} at {list(map(int, at))}, expected {np.atleast_1d(b)[tuple(at)]}"


def judge(binary, folder):
    with tempfile.TemporaryDirectory() as work:
        try:
            return folder.name, *verdict(binary, folder, pathlib.Path(work))
        except subprocess.TimeoutExpired:
            return folder.name, "crash", "does not end"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--filter", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="print every case")
    a = parser.parse_args()
    folders = sorted(p for p in a.folder.iterdir() if a.filter in p.name)
    counts, refusals = collections.Counter(), collections.defaultdict(list)
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        for name, kind, reason in pool.map(lambda f: judge(a.binary, f), folders):
            counts[kind] += 1
            if kind in ("wrong", "crash") or a.verbose:
                print(f"{kind}: {name}: {reason}", flush=True)
            elif kind == "refused":
                refusals[reason].append(name)
    for reason, names in sorted(refusals.items(), key=lambda r: -len(r[1])):
        print(f"refused {len(names):4} ({names[0]}..): {reason[:200]}")
    print(f"{len(folders)} cases: " + ", ".join(f"{counts[k]} {k}" for k in ("pass", "refused", "wrong", "crash")))
    sys.exit(bool(counts["wrong"] or counts["crash"]))


if __name__ == "__main__":
    main()
